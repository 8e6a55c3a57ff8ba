"""The head as a height over a capsule: what hair and clothes need to know of the skin, without a search tree.

The capsule's axis is a ray from the middle of the skull straight down through neck and trunk. A point has three
coordinates: azimuth (radians about the axis, 0 before the face, +pi/2 at the subject's left ear), station (dm along the
capsule: the point's level below the middle of the skull, or above it the arc up to the crown at pi/2) and the distance
from the axis. Skull, neck and shoulders have one skin distance for each azimuth and station, up to folds such as the
ears, where the outermost counts.
"""

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

COLUMNS, ROWS = 80, 60
LOWEST, HIGHEST = -3.1, np.pi / 2
FINE_AREA = 0.004  # dm^2: larger triangles are sampled by LATTICE, smaller ones by their middle
LATTICE = np.array([(i, j, 4 - i - j) for i in range(5) for j in range(5 - i)], np.float32) / 4


class CapsuleMap:
    """Distance of the skin from the capsule's axis on a regular grid of azimuth and station."""

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray, eyes: np.ndarray) -> None:
        """Vertices (N, 3) of the skin in dm, triangles (M, 3), eyes (3,): the point between the eyes."""
        self.center = np.array([0.0, eyes[1] + 0.15, eyes[2] - 0.75], np.float32)
        azimuth, station, distance = self.coordinates(_samples(vertices, triangles))
        column = ((azimuth / (2 * np.pi) + 0.5) * COLUMNS).astype(int) % COLUMNS
        row = ((station - LOWEST) / (HIGHEST - LOWEST) * ROWS).astype(int)
        kept = (row >= 0) & (row < ROWS)
        grid = np.zeros(ROWS * COLUMNS, np.float32)
        np.maximum.at(grid, row[kept] * COLUMNS + column[kept], distance[kept])
        grid = np.pad(grid.reshape(ROWS, COLUMNS), ((0, 1), (COLUMNS // 2, COLUMNS // 2)), mode="wrap")
        grid[-1] = grid[-2].max()  # the crown is one point
        nearest = distance_transform_edt(grid == 0, return_distances=False, return_indices=True)
        grid = gaussian_filter(grid[tuple(nearest)], 0.7)[:, COLUMNS // 2 - 1 : -COLUMNS // 2 + 1]
        slope_station, slope_azimuth = np.gradient(grid, (HIGHEST - LOWEST) / ROWS, 2 * np.pi / COLUMNS)
        self.table = np.stack([grid, slope_azimuth, slope_station], -1).astype(np.float32)

    def coordinates(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Azimuth, station and distance from the axis, each (...), of points (..., 3)."""
        x, y, z = np.moveaxis(points - self.center, -1, 0)
        level = np.hypot(x, z)
        upper = np.maximum(y, 0)
        return np.arctan2(x, z), np.where(y > 0, np.arctan2(upper, level), y), np.hypot(level, upper)

    def points(self, azimuth: np.ndarray, station: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """The inverse of `coordinates`: (..., 3)."""
        elevation = np.maximum(station, 0)
        level = np.cos(elevation) * distance
        y = np.where(station > 0, np.sin(elevation) * distance, station)
        return np.stack([np.sin(azimuth) * level, y, np.cos(azimuth) * level], -1) + self.center

    def skin(self, azimuth: np.ndarray, station: np.ndarray) -> np.ndarray:
        """(..., 3): the skin's distance from the axis and its slopes along azimuth and station, bilinear."""
        u = (azimuth / (2 * np.pi) + 0.5) * COLUMNS + 0.5
        v = np.clip((station - LOWEST) / (HIGHEST - LOWEST) * ROWS - 0.5, 0, ROWS - 0.001)
        column, row = np.clip(u.astype(int), 0, COLUMNS), v.astype(int)
        fu, fv = (u - column)[..., None], (v - row)[..., None]
        flat, index = self.table.reshape(-1, 3), row * (COLUMNS + 2) + column
        lower = flat[index] * (1 - fu) + flat[index + 1] * fu
        upper = flat[index + COLUMNS + 2] * (1 - fu) + flat[index + COLUMNS + 3] * fu
        return lower * (1 - fv) + upper * fv

    def height(self, points: np.ndarray) -> np.ndarray:
        """(...): how far points (..., 3) lie outside the skin, measured from the axis, in dm."""
        azimuth, station, distance = self.coordinates(points)
        return distance - self.skin(azimuth, station)[..., 0]

    def push_out(self, points: np.ndarray, margin: np.ndarray | float) -> np.ndarray:
        """Points (..., 3) moved to lie at least `margin` (...) dm outside the skin, along the skin's normal."""
        azimuth, station, distance = self.coordinates(points)
        skin, slope_azimuth, slope_station = np.moveaxis(self.skin(azimuth, station), -1, 0)
        slope_azimuth = slope_azimuth / distance
        missing = np.maximum(margin - (distance - skin), 0) / (1 + slope_azimuth**2 + slope_station**2)
        # one Newton step on distance - skin(azimuth, station): outwards, and down the skin's slopes
        azimuth = azimuth - missing * slope_azimuth / distance
        station = np.minimum(station - missing * slope_station, HIGHEST)
        return self.points(azimuth, station, distance + missing)


def _samples(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(K, 3) points that cover the triangles, no farther apart than a cell of the map."""
    corners = vertices[triangles]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    fine = np.einsum("ni,ni->n", cross, cross) > (2 * FINE_AREA) ** 2
    return np.concatenate([corners[~fine].mean(1), np.einsum("kj,nji->nki", LATTICE, corners[fine]).reshape(-1, 3)])
