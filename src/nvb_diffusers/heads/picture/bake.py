"""Light that arrives at points of a head, from the shadow maps of all its lights: computed once for all views.

Irradiance is kept per vertex, so that a view only adds what depends on where it is seen from.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ..head.hair import Strands
from ..mesh.template import Template
from .light import KEYS, Environment

TILE = 120  # px of a light's shadow map
REACH = 2.15  # dm from the middle of the map to its sides
MIDDLE = np.array([0.0, 0.15, -0.25])  # dm from the world's origin
STATIONS = 3  # points of a strand that light is computed at
EVERY = 6  # strands of which one is lit; the others take the light of the nearest
# how far light wraps around the skin before it is in shadow, and rounds of diffusion: red travels farthest
WRAP, ROUNDS = (0.26, 0.19, 0.15), ((2, 1, 1), (5, 3, 2))


def light_projections(directions: np.ndarray) -> np.ndarray:
    """(L, 4, 4) from dm to the clip space of each light's orthographic map, which looks against its direction."""
    back = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    right = np.cross([0.0, 1.0, 0.01], back)
    right = right / np.linalg.norm(right, axis=1, keepdims=True)
    axes = np.stack([right, np.cross(back, right), -back], axis=1) / REACH
    matrices = np.zeros((len(directions), 4, 4), np.float32)
    matrices[:, :3, :3], matrices[:, :3, 3], matrices[:, 3, 3] = axes, -axes @ MIDDLE, 1
    return matrices


def visibility(maps: np.ndarray, projections: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(P, L) 0 to 1: how much of each light points (P, 3) see, with soft edges of a texel.

    Args:
        maps: (L, TILE, TILE) depth 0 to 1 of the nearest surface.
        projections: (L, 4, 4).
    """
    seen = np.empty((len(projections), len(points)), np.float32)
    for light, (matrix, depth) in enumerate(zip(projections, maps.reshape(len(maps), -1), strict=True)):
        x, y, z = (points @ matrix[:3, :3].T + matrix[:3, 3]).T
        column, row = ((value * 0.5 + 0.5) * TILE - 0.5 for value in (x, y))
        left, low = (np.clip(value, 0, TILE - 2).astype(np.int32) for value in (column, row))
        right_share, upper_share = np.clip(column - left, 0, 1), np.clip(row - low, 0, 1)
        place, z = low * TILE + left, 1.0 - 90 * (z * 0.5 + 0.5 - 0.009)
        corners = [np.clip(depth[place + offset] * 90 + z, 0, 1) for offset in (0, 1, TILE, TILE + 1)]
        lower = corners[0] + right_share * (corners[1] - corners[0])
        upper = corners[2] + right_share * (corners[3] - corners[2])
        seen[light] = lower + upper_share * (upper - lower)
    return seen.T


def key_share(seen: np.ndarray, environment: Environment) -> np.ndarray:
    """(P,) how much of the key lights' power arrives where (P, L) of the lights is seen."""
    power = environment.radiance[:KEYS].sum(axis=1)
    return seen[..., :KEYS] @ (power / power.sum())


def light_surface(template: Template, normals: np.ndarray, seen: np.ndarray, environment: Environment) -> np.ndarray:
    """(N, 4): irradiance of the head's vertices, diffused under the skin, and the share of the key lights."""
    cosine, total = normals @ environment.directions.T, environment.radiance.sum(axis=0)
    light = np.empty((len(normals), 4), np.float32)
    for channel, wrap in enumerate(WRAP):
        wrapped = np.clip((cosine + wrap) / (1 + wrap), 0, 1) * seen
        light[:, channel] = wrapped @ environment.radiance[:, channel]
    inside = ~template.skin  # eyes, teeth: their own normals say little
    light[inside, :3] = 0.75 * light[inside, :3] + 0.125 * seen[inside].mean(axis=1, keepdims=True) * total
    light[:, :3] += 0.009 * total
    open_share = np.clip((seen.mean(axis=1) - 0.08) / 0.22, 0, 1)
    open_share = template.skin * (0.25 + 0.75 * open_share)  # nostrils and mouth stay dark
    light[:, 3] = key_share(seen, environment)
    for channel, rounds in enumerate((*ROUNDS[min(template.level, 1)], 1)):
        spread = light[:, channel]
        for _ in range(rounds):
            spread = 0.35 * spread + 0.65 * (template.neighbor_mean @ spread)
        light[:, channel] = light[:, channel] + (open_share if channel < 3 else 1.0) * (spread - light[:, channel])
    return light


@dataclass(frozen=True)
class StrandPoints:
    """The lit points of some strands: `stations` (K,) along every `EVERY`th strand; tangents (n, S, 3) of all."""

    stations: np.ndarray
    tangents: np.ndarray
    points: np.ndarray


def strand_points(strands: Strands, points: np.ndarray) -> StrandPoints:
    """Choose the points of strands (n, S, 3), given in dm from the world's origin, that light is computed at."""
    tangents = np.gradient(points, axis=1)
    tangents /= np.maximum(np.linalg.norm(tangents, axis=2, keepdims=True), 1e-8)
    stations = np.unique(np.linspace(0, points.shape[1] - 1, STATIONS).astype(int))
    return StrandPoints(stations, tangents.astype(np.float32), points[::EVERY, stations].reshape(-1, 3))


def light_strands(chosen: StrandPoints, points: np.ndarray, seen: np.ndarray, environment: Environment) -> np.ndarray:
    """(n, S, 4): irradiance of strands (n, S, 3) and the share of the key lights, from `seen` (P, L)."""
    tangent = chosen.tangents[::EVERY, chosen.stations].reshape(-1, 3)
    across = np.sqrt(np.clip(1 - (tangent @ environment.directions.T) ** 2, 0, 1))
    radiance = environment.radiance
    lit = ((0.25 + 0.75 * across) * seen) @ radiance * 0.42 + 0.0125 * radiance.sum(axis=0)
    lit = np.column_stack([lit, key_share(seen, environment)]).reshape(-1, len(chosen.stations), 4)
    count = points.shape[1]
    place = np.interp(np.arange(count), chosen.stations, np.arange(len(chosen.stations)))
    before = np.minimum(place.astype(int), len(chosen.stations) - 2)
    share = (place - before)[None, :, None]
    lit = (lit[:, before] * (1 - share) + lit[:, before + 1] * share).astype(np.float32)
    middle = count // 2
    nearest = cKDTree(points[::EVERY, middle]).query(points[:, middle])[1]
    return lit[nearest]
