"""What covers neck and shoulders: the skin's own mesh, thickened and cut off at a neckline."""

from dataclasses import dataclass

import numpy as np

PALETTE = [
    (0.85, 0.85, 0.84), (0.06, 0.06, 0.07), (0.12, 0.16, 0.30), (0.45, 0.10, 0.12), (0.20, 0.30, 0.22),
    (0.55, 0.50, 0.42), (0.30, 0.32, 0.36), (0.65, 0.45, 0.20), (0.30, 0.20, 0.38), (0.75, 0.60, 0.62),
    (0.20, 0.45, 0.60), (0.35, 0.24, 0.17),
]  # fmt: skip
PATTERNS = {"plain": 0, "stripes": 1, "vertical stripes": 2, "spots": 3, "checks": 4}
PATTERN_SHARES = (0.58, 0.15, 0.09, 0.07, 0.11)
CUTS = {"round": 0.52, "v-neck": 0.24, "wide": 0.12, "turtleneck": 0.12}
THICKNESS = 0.05  # dm between skin and cloth


@dataclass(frozen=True)
class Clothes:
    """Neckline, pattern and the two linear RGB colors (3,) of a top."""

    cut: str
    depth: float
    pattern: str
    color: np.ndarray
    second: np.ndarray


def draw_clothes(rng: np.random.Generator) -> Clothes:
    """Draw a top; the colors are independent of each other."""
    colors = [
        (np.array(PALETTE[rng.integers(len(PALETTE))]) * rng.uniform(0.8, 1.15)).clip(0, 1) ** 2.2 for _ in range(2)
    ]
    return Clothes(
        cut=list(CUTS)[rng.choice(len(CUTS), p=list(CUTS.values()))],
        depth=float(rng.uniform(0.0, 1.0)),
        pattern=list(PATTERNS)[rng.choice(len(PATTERNS), p=PATTERN_SHARES)],
        color=colors[0],
        second=colors[1],
    )


def cloth_value(clothes: Clothes, rest: np.ndarray) -> np.ndarray:
    """(N,): how far below the neckline points (N, 3) of the rest space lie, in dm; negative where there is no cloth."""
    angle = np.arctan2(np.abs(rest[:, 0]), rest[:, 2] - 0.2)
    if clothes.cut == "turtleneck":
        return np.interp(angle, [0, 1.3, np.pi], [5.98, 6.2, 6.45]) - 0.06 * clothes.depth - rest[:, 1]
    line = np.interp(angle, [0, 0.6, 1.3, 2.2, np.pi], [5.62, 5.84, 5.98, 6.08, 6.10]) + 0.12 * clothes.depth - 0.06
    if clothes.cut == "v-neck":
        line = line - (0.3 + 0.4 * clothes.depth) * np.clip(1 - np.abs(rest[:, 0]) / 0.5, 0, 1) * (rest[:, 2] > 0.1)
    if clothes.cut == "wide":
        line = line - 0.10 - 0.12 * clothes.depth
    return line - rest[:, 1]
