"""Light on a head: a few strong key lights and a sphere of weak ones, told as directions and radiance.

Directions are unit vectors (3,) from the head to the light, in the world's axes. Radiance is linear RGB and already
holds the solid angle, so that the irradiance of a surface is the sum of radiance * cosine * visibility.
"""

from dataclasses import dataclass

import numpy as np

from ..head.head import direction
from .backdrop import SCENES, paint

KEYS, AROUND = 3, 9
STYLES = {"soft": 0.30, "side": 0.25, "front": 0.20, "rim": 0.15, "above": 0.10}
FORWARD = np.array([0.0, 0.15, 0.99])  # where a face looks that the light is measured on
# sRGB of what is above, around and below, and how far these vary
SURROUNDINGS = {
    "room": ((0.85, 0.80, 0.74), (0.62, 0.57, 0.52), (0.36, 0.32, 0.28)),
    "shelves": ((0.80, 0.76, 0.70), (0.48, 0.43, 0.38), (0.30, 0.26, 0.22)),
    "street": ((0.80, 0.88, 1.00), (0.62, 0.62, 0.62), (0.38, 0.37, 0.36)),
    "garden": ((0.78, 0.88, 1.00), (0.55, 0.62, 0.48), (0.32, 0.38, 0.24)),
    "studio": ((0.75, 0.75, 0.75), (0.62, 0.62, 0.62), (0.45, 0.45, 0.45)),
    "night": ((0.30, 0.32, 0.42), (0.48, 0.42, 0.36), (0.28, 0.26, 0.26)),
}


@dataclass(frozen=True)
class Environment:
    """Where a head is.

    Attributes:
        scene: one of `backdrop.SCENES`.
        style: one of `STYLES`.
        backdrop: (H, W, 3) uint8, see `backdrop`.
        directions: (L, 3), the `KEYS` key lights first.
        radiance: (L, 3).
        above, below: (3,) radiance that shiny skin mirrors.
    """

    scene: str
    style: str
    backdrop: np.ndarray
    directions: np.ndarray
    radiance: np.ndarray
    above: np.ndarray
    below: np.ndarray


def draw_environment(rng: np.random.Generator, melanin: float) -> Environment:
    """Draw a scene and its light, exposed for the face; a photographer opens up for darker skin."""
    scene = list(SCENES)[rng.choice(len(SCENES), p=list(SCENES.values()))]
    style = list(STYLES)[rng.choice(len(STYLES), p=list(STYLES.values()))]
    backdrop = paint(rng, scene)
    around = _sphere(AROUND)
    weak = _surround_radiance(rng, scene, around, backdrop)
    keys, strong = _draw_keys(rng, style)

    ambient = (weak * np.maximum(around @ FORWARD, 0)[:, None]).sum(axis=0).mean()
    weak = weak * rng.uniform(0.20, 0.42) / ambient
    tint = weak.mean(axis=0) / weak.mean()
    weak = weak / tint**0.55  # cameras balance white in part
    key = (strong * np.maximum(keys @ FORWARD, 0)[:, None]).sum(axis=0).mean()
    strong = strong * min(1.5, rng.uniform(0.45, 0.95) / max(key, 0.3))
    exposure = 1 + 0.55 * melanin
    sky = weak * AROUND / 4 * exposure
    return Environment(
        scene=scene,
        style=style,
        backdrop=backdrop,
        directions=np.concatenate([keys, around]).astype(np.float32),
        radiance=(np.concatenate([strong, weak]) * exposure).astype(np.float32),
        above=sky[around[:, 1] > 0.2].mean(axis=0),
        below=sky[around[:, 1] < -0.2].mean(axis=0),
    )


def _sphere(count: int) -> np.ndarray:
    """(count, 3) directions spread evenly over the sphere, by the Fibonacci spiral."""
    index = np.arange(count) + 0.5
    height, azimuth = 1 - 2 * index / count, index * np.pi * (1 + 5**0.5)
    level = np.sqrt(1 - height**2)
    return np.stack([level * np.sin(azimuth), height, level * np.cos(azimuth)], axis=1)


def _surround_radiance(rng: np.random.Generator, scene: str, around: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """(L, 3) of the weak lights: a gradient from below to above, uneven, and the backdrop's color from behind."""
    below, level, above = (np.array(SURROUNDINGS[scene][i]) ** 2.2 for i in (2, 1, 0))
    height = around[:, 1:2]
    radiance = np.where(height > 0, level + height * (above - level), level - height * (below - level))
    behind = (backdrop[::32, ::32].reshape(-1, 3).mean(axis=0) / 255) ** 2.2 * 1.3
    radiance = radiance + np.maximum(-around[:, 2:], 0) * (behind - radiance)
    uneven = np.exp(
        0.45 * np.sin(around @ rng.normal(0, 2, (3, 3)) + rng.uniform(0, 6.28, 3)).sum(axis=1, keepdims=True)
    )
    return radiance * uneven * (1 + 0.07 * rng.normal(size=3))


def _draw_keys(rng: np.random.Generator, style: str) -> tuple[np.ndarray, np.ndarray]:
    """Directions and radiance (KEYS, 3) of main light, second light and fill."""
    yaws = [rng.uniform(-75, 75), rng.uniform(-180, 180), rng.uniform(-180, 180)]
    pitches = rng.uniform(8, 55, KEYS)
    power = np.array([1.0, 0.35, 0.2]) * rng.uniform(0.5, 1.2, KEYS)
    side = rng.choice([-1, 1])
    if style == "side":
        yaws[0] = side * rng.uniform(45, 90)
    elif style == "front":
        yaws[0], pitches[0] = rng.uniform(-25, 25), rng.uniform(5, 35)
    elif style == "above":
        pitches[0] = rng.uniform(50, 70)
    elif style == "rim":
        yaws[1], pitches[1] = side * rng.uniform(110, 165), rng.uniform(0, 40)
        power[1] *= 2.2
    else:
        power *= 0.45
    warmth = rng.normal(0, 0.13, KEYS)
    color = 1 + warmth[:, None] * (1, 0, -1)
    return np.stack([direction(yaw, pitch) for yaw, pitch in zip(yaws, pitches, strict=True)]), power[:, None] * color
