"""Where hair grows: hairline, beard and length as functions of the place in rest space (the template's shape, dm)."""

import numpy as np

from .hairstyles import HairStyle

# hairline: level (rest space, dm) at angles (degrees) about the skull's vertical axis, from the forehead to the nape
HAIRLINE_ANGLE = np.radians([0, 22, 40, 55, 68, 78, 88, 104, 122, 150, 180])
HAIRLINE_LEVEL = np.array([8.10, 8.10, 8.02, 7.78, 7.48, 7.12, 7.34, 7.28, 6.95, 6.70, 6.62])


def scalp_value(rest: np.ndarray, style: HairStyle) -> np.ndarray:
    """(N,): dm above the hairline of points (N, 3) in rest space, negative outside of the scalp's hair."""
    angle = np.arctan2(np.abs(rest[:, 0]), rest[:, 2] - 0.45)
    line = np.interp(angle, HAIRLINE_ANGLE, HAIRLINE_LEVEL)
    temples = smooth_step(0.3, 0.75, angle) * smooth_step(1.2, 0.8, angle)
    line = line + style.recede * (0.75 * smooth_step(1.15, 0.25, angle) + 0.5 * temples)
    value = rest[:, 1] - line - 0.015 * np.sin(angle * 9 + rest[:, 0] * 7)
    if style.bare_crown:
        crown = np.linalg.norm(rest - [0.0, 8.36, 0.12], axis=1)
        value = np.minimum(value, 0.5 * (crown - style.bare_crown))
    return value


def scalp_cover(style: HairStyle, rest: np.ndarray) -> np.ndarray:
    """(N,) 0..1: how far the skin at points (N, 3) in rest space takes the color of the scalp hair."""
    cover = style.cap * smooth_step(-0.06, 0.10, scalp_value(rest, style))
    return cover * (length_share(style, rest) ** 0.5 if style.kind == "fade" else 1.0)


def beard_cover(style: HairStyle, rest: np.ndarray) -> np.ndarray:
    """(N,) 0..1: density of the beard at points (N, 3) in rest space; of the shaved one where none is worn."""
    side, y, z = np.abs(rest[:, 0]), rest[:, 1], rest[:, 2]
    angle = np.arctan2(side, z - 0.45)
    cheek = np.interp(angle, [0, 0.25, 0.45, 0.7, 1.0, 1.3, 1.5], [6.80, 6.80, 6.70, 6.70, 6.86, 7.2, 7.2])
    throat = smooth_step(6.48, 6.64, y + 0.45 * z)
    jaw = smooth_step(cheek + 0.03, cheek - 0.10, y) * throat * smooth_step(1.50, 1.38, angle)
    mustache = smooth_step(0.34, 0.27, side) * smooth_step(6.70, 6.73, y) * smooth_step(6.87, 6.81, y) * (z > 1.2)
    chin = smooth_step(0.30, 0.22, side) * smooth_step(6.54, 6.44, y) * throat
    ring = (
        smooth_step(0.40, 0.33, side)
        * smooth_step(0.24, 0.30, side)
        * smooth_step(6.3, 6.4, y)
        * smooth_step(6.84, 6.78, y)
        * (z > 1.1)
    )
    full = np.maximum(jaw, mustache)
    if style.beard == "goatee":
        return np.maximum.reduce([chin, ring, mustache])
    if style.beard == "mustache":
        return mustache
    if style.beard == "chin strap":
        return np.maximum(
            jaw * smooth_step(cheek - 0.12, cheek - 0.22, y) * smooth_step(0.15, 0.35, angle), chin * (y < 6.35)
        )
    if style.beard == "sideburns":
        return jaw * smooth_step(0.95, 1.1, angle)
    return full


def length_share(style: HairStyle, rest: np.ndarray) -> np.ndarray:
    """(N,): length at points (N, 3) in rest space over the style's length."""
    return np.interp(rest[:, 1], [6.6, 7.25, 7.9], [style.nape, style.sides, 1.0])


def smooth_step(low: float | np.ndarray, high: float | np.ndarray, value: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at `low` to 1 at `high`, whichever is the larger."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
