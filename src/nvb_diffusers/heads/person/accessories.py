"""Glasses, hats, earrings and scarves as values.

Everything is drawn independently of skin tone; hats and earrings depend on sex as they do in life.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..mesh.surfaces import Color
from .chance import pick

SHARES = {"glasses": 0.16, "hat": 0.12, "scarf": 0.08}
EARRING_SHARES = (0.06, 0.24)  # of men, of women

# kind: (weight, exponent of the rim's superellipse, height over width, radius of the rim or 0, opacity of the lenses)
GLASSES = {
    "round": (0.22, (2.0, 2.3), (0.9, 1.0), (0.010, 0.020), 0.10),
    "oval": (0.25, (2.4, 3.2), (0.70, 0.82), (0.012, 0.028), 0.10),
    "square": (0.25, (4.0, 6.0), (0.68, 0.85), (0.016, 0.034), 0.10),
    "rimless": (0.10, (3.0, 4.5), (0.62, 0.75), (0.004, 0.005), 0.12),
    "sunglasses": (0.18, (2.6, 4.0), (0.74, 0.95), (0.012, 0.032), 0.88),
}
FRAME_COLORS: list[Color] = [(0.04, 0.04, 0.045), (0.04, 0.04, 0.045), (0.25, 0.14, 0.08), (0.55, 0.5, 0.42),
                               (0.3, 0.3, 0.33), (0.5, 0.1, 0.12), (0.12, 0.16, 0.3)]  # fmt: skip
LENS_COLORS: list[Color] = [(0.03, 0.03, 0.035), (0.10, 0.06, 0.03), (0.03, 0.06, 0.05)]
# kind: (weight for men, for women)
HATS = {
    "beanie": (0.34, 0.24),
    "cap": (0.36, 0.16),
    "wide brim": (0.12, 0.18),
    "bucket": (0.10, 0.08),
    "head wrap": (0.05, 0.10),
    "headscarf": (0.0, 0.24),
}
CLOTH_COLORS: list[Color] = [
    (0.85, 0.85, 0.84), (0.07, 0.07, 0.08), (0.07, 0.07, 0.08), (0.14, 0.18, 0.32), (0.48, 0.12, 0.13),
    (0.2, 0.3, 0.22), (0.58, 0.52, 0.43), (0.33, 0.34, 0.38), (0.68, 0.48, 0.22), (0.33, 0.22, 0.4), (0.78, 0.62, 0.64),
    (0.22, 0.46, 0.6),
    (0.72, 0.66, 0.55), (0.38, 0.25, 0.16),
]  # fmt: skip
EARRINGS = {"stud": 0.4, "hoop": 0.35, "drop": 0.25}
METALS: list[Color] = [(0.85, 0.66, 0.32), (0.78, 0.78, 0.8), (0.78, 0.78, 0.8), (0.9, 0.87, 0.8), (0.35, 0.5, 0.62)]
SCARVES = {"wool": 0.55, "silk": 0.45}


@dataclass(frozen=True)
class Accessories:
    """What one person wears: kinds ("" for none), colors in sRGB 0..1 and sizes in dm."""

    glasses: str = ""
    frame_color: Color = (0.0, 0.0, 0.0)
    lens_color: Color = (0.0, 0.0, 0.0)
    lens_exponent: float = 2.0
    lens_height: float = 1.0
    rim: float = 0.0
    hat: str = ""
    hat_color: Color = (0.0, 0.0, 0.0)
    hat_trim: Color = (0.0, 0.0, 0.0)
    hat_size: float = 0.5  # 0..1: slouch of a beanie, width of a brim, height of a wrap
    hat_turn: float = 0.0  # radians the hat is turned about the head
    earrings: str = ""
    earring_color: Color = (0.0, 0.0, 0.0)
    earring_size: float = 0.0
    scarf: str = ""
    scarf_color: Color = (0.0, 0.0, 0.0)
    scarf_size: float = 0.0

    def describe(self) -> dict[str, str]:
        """The kinds, as they go into the metadata."""
        return {"glasses": self.glasses, "hat": self.hat, "earrings": self.earrings, "scarf": self.scarf}


def draw_accessories(rng: np.random.Generator, female: float) -> Accessories:
    """Random glasses, hat, earrings and scarf for a person of some sex, `female` from 0 to 1."""
    worn: dict[str, Any] = {}
    if rng.random() < SHARES["glasses"]:
        worn |= _draw_glasses(rng)
    if rng.random() < SHARES["hat"]:
        worn |= {
            "hat": pick(rng, {kind: man * (1 - female) + woman * female for kind, (man, woman) in HATS.items()}),
            "hat_color": _color(rng, CLOTH_COLORS),
            "hat_trim": _color(rng, CLOTH_COLORS),
            "hat_size": float(rng.random()),
            "hat_turn": float(rng.normal(0, 0.06)),
        }
    if rng.random() < EARRING_SHARES[0] * (1 - female) + EARRING_SHARES[1] * female:
        worn |= {
            "earrings": pick(rng, EARRINGS),
            "earring_color": _color(rng, METALS),
            "earring_size": float(rng.random()) * (0.4 + 0.6 * female),
        }
    if rng.random() < SHARES["scarf"]:
        worn |= {
            "scarf": pick(rng, SCARVES),
            "scarf_color": _color(rng, CLOTH_COLORS),
            "scarf_size": float(rng.random()),
        }
    return Accessories(**worn)


def _draw_glasses(rng: np.random.Generator) -> dict[str, Any]:
    kind = pick(rng, {name: weight for name, (weight, *_) in GLASSES.items()})
    _, exponent, height, rim, _ = GLASSES[kind]
    return {
        "glasses": kind,
        "frame_color": _color(rng, FRAME_COLORS),
        "lens_color": _color(rng, LENS_COLORS) if kind == "sunglasses" else (0.6, 0.65, 0.65),
        "lens_exponent": float(rng.uniform(*exponent)),
        "lens_height": float(rng.uniform(*height)),
        "rim": float(rng.uniform(*rim)),
    }


def _color(rng: np.random.Generator, palette: list[Color]) -> Color:
    red, green, blue = np.clip(np.array(palette[rng.integers(len(palette))]) * rng.uniform(0.85, 1.15), 0, 1)
    return float(red), float(green), float(blue)
