"""Meshes of what is worn, made of grids of points: sheets, tubes and balls."""

from dataclasses import dataclass

import numpy as np

Color = tuple[float, float, float]  # sRGB, 0..1
# points (R, C, 3), whether columns join up, and what is inside: the first arguments of `grid_mesh`
Surface = tuple[np.ndarray, bool, np.ndarray]


@dataclass(frozen=True, eq=False)
class Mesh:
    """Vertices and unit outward normals (N, 3), triangles (M, 3); color in linear RGB; alpha below 1 for lenses."""

    vertices: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray
    color: np.ndarray
    gloss: float
    alpha: float = 1.0


def grid_mesh(
    points: np.ndarray, closed: bool, inside: np.ndarray, color: np.ndarray, gloss: float, alpha: float = 1.0
) -> Mesh:
    """A mesh of points (R, C, 3), whose columns join up where closed; normals point away from `inside` (..., 3)."""
    rows, columns = points.shape[:2]
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    right = (column + 1) % columns
    a, b, c, d = (
        row * columns + column,
        row * columns + right,
        (row + 1) * columns + right,
        (row + 1) * columns + column,
    )
    triangles = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    vertices = points.reshape(-1, 3)
    corners = vertices[triangles]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.stack([np.bincount(triangles.ravel(), np.repeat(cross[:, i], 3), len(vertices)) for i in range(3)], 1)
    away = vertices - np.broadcast_to(inside, points.shape).reshape(-1, 3)
    if np.einsum("ni,ni->", normals, away) < 0:
        normals, triangles = -normals, triangles[:, ::-1]
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    away = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
    normals = np.where(length > 1e-9, normals / np.maximum(length, 1e-9), away)
    return Mesh(
        vertices.astype(np.float32),
        normals.astype(np.float32),
        np.ascontiguousarray(triangles, np.int32),
        color,
        gloss,
        alpha,
    )


def tube(path: np.ndarray, radius: np.ndarray, closed: bool = False, flat: float = 1.0) -> Surface:
    """A tube about path (N, 3) of radius (N,) or (N, K) at K angles; `flat` squeezes it along z."""
    radius = radius[:, :, None] if radius.ndim == 2 else np.repeat(radius[:, None, None], 10, axis=1)
    tangent = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    tangent = tangent / np.linalg.norm(tangent, axis=1, keepdims=True)
    across = np.cross(tangent, np.where(np.abs(tangent[:, 2:]) < 0.8, [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]))
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    turn = np.linspace(0, 2 * np.pi, radius.shape[1], endpoint=False)[:, None]
    ring = across[:, None] * np.cos(turn) + np.cross(tangent, across)[:, None] * np.sin(turn)
    points = path[:, None] + ring * radius * [1, 1, flat]
    if closed:
        rows = [*range(len(path)), 0]
        return points[rows], True, path[rows, None]
    shut = np.repeat(path[[0, -1], None], radius.shape[1], axis=1)  # the ends
    return np.concatenate([shut[:1], points, shut[1:]]), True, path[[0, *range(len(path)), -1], None]


def ball(center: np.ndarray, radius: float) -> Surface:
    """Points of a ball and its inside."""
    turn, rise = np.linspace(0, 2 * np.pi, 12, endpoint=False), np.linspace(-np.pi / 2, np.pi / 2, 8)[:, None]
    unit = np.stack([np.cos(rise) * np.sin(turn), np.sin(rise) + 0 * turn, np.cos(rise) * np.cos(turn)], -1)
    return center + radius * unit, True, center


def linear(color: Color) -> np.ndarray:
    """Linear RGB (3,) of an sRGB color."""
    return np.array(color, np.float32) ** 2.2
