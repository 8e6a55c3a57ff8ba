"""The color and shine of every vertex of the skin, in linear RGB.

What is broad (tone, blush, shade about the eyes, lips, shaved beard, make-up) is a color of each vertex, computed
once; what is finer than the mesh (pores, freckles, moles, wrinkles) is added by the shader at the strengths told here.
"""

from functools import cache
from itertools import pairwise

import numpy as np
from scipy.spatial import cKDTree

from ..mesh.template import Template
from ..person.hairline import beard_cover, scalp_cover, smooth_step
from ..person.hairstyles import HairColors, HairStyle
from ..person.skin import SkinLook

MOUTH_INSIDE = np.array([0.20, 0.05, 0.045])


def skin_colors(
    template: Template, look: SkinLook, style: HairStyle, colors: HairColors, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Albedo (N, 3) of each vertex and its shine (N,): 1 on bare skin, 0 in the mouth and under hair."""
    rest, places = template.rest, face_places(template)
    lips, inside, ears = (template.masks[name] for name in ("lips", "inside-mouth", "ears"))
    mottling = _waves(rest, rng)
    albedo = look.tone * (1 + np.array([0.045, 0.055, 0.06]) * mottling[:, None])

    def tint(albedo: np.ndarray, amount: np.ndarray, factor: tuple[float, float, float]) -> np.ndarray:
        return albedo * (1 + amount[:, None] * (np.array(factor) - 1))

    albedo = tint(albedo, np.clip(places["blush"] * look.redness * (0.9 + 0.3 * mottling), 0, 1), (1.16, 0.78, 0.74))
    albedo = tint(albedo, np.clip(look.tired * places["under eyes"], 0, 1), (0.78, 0.66, 0.68))
    albedo = tint(albedo, places["fold"] * (0.35 + 0.5 * look.wrinkles), (0.84, 0.74, 0.72))
    albedo = tint(albedo, 0.5 * places["below lips"], (0.86, 0.78, 0.76))
    albedo = tint(albedo, 0.45 * ears, (1.05, 0.80, 0.76))
    albedo = tint(albedo, places["nostrils"], (0.30, 0.20, 0.18))
    albedo = tint(albedo, places["lid rims"], (0.34, 0.26, 0.25))
    albedo = _mix(albedo, 0.6 * colors.brow + 0.01, 0.7 * places["brows"] * (0.8 + 0.2 * mottling))
    albedo = _mix(albedo, look.eye_shadow, look.make_up * places["lids"])

    if style.stubble:
        shaved = beard_cover(style, rest) * style.stubble * (0.8 + 0.2 * mottling)
        shade = (0.38 * albedo + 0.62 * (0.5 * colors.beard + 0.02)) * (0.92, 0.96, 1.02)
        albedo = _mix(albedo, shade, np.clip(shaved, 0, 1) * 0.85)
    albedo = _mix(albedo, look.lips * (1 + 0.08 * mottling[:, None]), smooth_step(0.12, 0.75, lips))
    albedo = _mix(albedo, MOUTH_INSIDE * (0.4 + look.tone.mean()), smooth_step(0.2, 0.7, inside))
    scalp = scalp_cover(style, rest) * (1 - smooth_step(0.3, 0.7, ears)) * template.skin
    albedo = _mix(albedo, 0.92 * 0.5 * colors.hair + 0.08 * 0.5 * albedo, scalp)
    shine = (1 - 0.85 * smooth_step(0.2, 0.8, inside)) * (1 - 0.8 * scalp) * (1 + 0.3 * smooth_step(0.3, 0.8, lips))
    return albedo.astype(np.float32), shine.astype(np.float32)


@cache
def face_places(template: Template) -> dict[str, np.ndarray]:
    """(N,) 0..1 each: where a face has a color or a texture of its own."""
    rest = template.rest
    x, y, z = np.abs(rest[:, 0]), rest[:, 1], rest[:, 2]
    chin, nose = _spot(rest, (0.0, 6.3, 1.3), 0.2), _spot(rest, (0.0, 6.93, 1.66), 0.16)
    lid = template.masks["eyelids"] * smooth_step(7.24, 7.32, y)
    forehead = smooth_step(7.58, 7.72, y) * smooth_step(8.15, 7.95, y) * smooth_step(0.75, 0.35, x) * (z > 1.0)
    return {
        "blush": _spot(rest, (0.42, 6.95, 1.25), 0.28) + 0.8 * nose + 0.35 * chin,
        "under eyes": _spot(rest, (0.30, 7.14, 1.33), 0.12) + 0.8 * _spot(rest, (0.17, 7.26, 1.34), 0.08),
        "fold": _line(rest, [(0.20, 6.93, 1.42), (0.30, 6.78, 1.40), (0.37, 6.60, 1.30)], 0.055),
        "below lips": _spot(rest, (0.0, 6.50, 1.50), 0.09),
        "lids": np.maximum(lid, 0.6 * _spot(rest, (0.31, 7.40, 1.32), 0.10)),
        "nostrils": _spot(rest, (0.092, 6.868, 1.565), 0.04),
        "lid rims": smooth_step(0.075, 0.02, _distance_to_lashes(template)),
        "brows": _line(rest, [(0.15, 7.49, 1.45), (0.35, 7.54, 1.38), (0.55, 7.49, 1.2)], 0.06),
        "wrinkles": np.maximum(forehead, 0.8 * _spot(rest, (0.58, 7.28, 1.12), 0.12)),
    }


def _distance_to_lashes(template: Template) -> np.ndarray:
    """(N,) dm from each vertex to the nearest root of an upper lash."""
    roots = np.concatenate([at_lid for at_lid, _, upper in template.lashes if upper])
    return cKDTree(template.rest[roots]).query(template.rest)[0]


def _spot(rest: np.ndarray, place: tuple[float, float, float], radius: float) -> np.ndarray:
    """(N,) 1 at a place of the left half of the face and at its mirror image, falling off as a Gaussian."""
    offset = np.abs(rest[:, :1]) * (1, 0, 0) + rest * (0, 1, 1) - place
    return np.exp(-(offset**2).sum(axis=1) / radius**2)


def _line(rest: np.ndarray, places: list[tuple[float, float, float]], radius: float) -> np.ndarray:
    """(N,) 1 along a line through places of the left half of the face, and along its mirror image."""
    points = np.concatenate([np.linspace(a, b, 6) for a, b in pairwise(places)])
    return np.max([_spot(rest, tuple(point), radius) for point in points], axis=0)


def _waves(rest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) about -1..1: a smooth random field, different for each identity."""
    frequencies = rng.normal(size=(3, 10)) * np.geomspace(2, 12, 10)
    return np.sin(rest @ frequencies + rng.uniform(0, 6.28, 10)).mean(axis=1) * 2


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    return first + share[:, None] * (second - first)
