"""What all heads share: the mesh, where hair may root, neighbors and landmarks, computed once per process.

Places are told by the template's own shape ("rest space", dm): a vertex keeps its rest position whatever the identity,
so a rule such as "lips" or "above the hairline" is written once. The template's eyes are at y = 7.3, its chin at
y = 6.1 and z = 1.2, its crown at y = 8.4.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from .basis import LASHES, LEFT_EYE, MASKS, RIGHT_EYE, SKIN, Basis, subdivide

SCALP_ROOTS, BROW_ROOTS = 60_000, 16_000
SHADOW_CELL = 0.16  # dm


@dataclass(frozen=True)
class Pool:
    """Places on the skin, in random order: (K, 3) vertex indices, (K, 3) weights, (K, 3) position in rest space."""

    corners: np.ndarray
    weights: np.ndarray
    rest: np.ndarray


class Template:
    """The shared mesh.

    Args:
        basis: shapes and coarse mesh.
        level: steps of subdivision: 0 is enough up to about 300 px.
    """

    def __init__(self, basis: Basis, level: int = 0) -> None:
        self.basis, self.level = basis, level
        self.shapes = sp.csr_matrix(basis.shapes.astype(np.float32).reshape(len(basis.names), -1))
        self.names, self.tokens = basis.names.tolist(), basis.tokens.tolist()
        quads, part = basis.quads, basis.quad_part
        self.refine = sp.identity(len(basis.rest), np.float32, format="csr")
        for _ in range(level):
            step, quads = subdivide(quads, self.refine.shape[0])
            self.refine, part = step @ self.refine, np.tile(part, 4)
        self.rest = (self.refine @ basis.rest).astype(np.float32)
        self.count = len(self.rest)
        order = _neighbors_first(self.rest[quads].mean(axis=1))
        self.triangles = quads[order][:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3).astype(np.int32)
        self.triangle_part = np.repeat(part[order], 2)
        self.part = np.zeros(self.count, np.int32)
        self.part[self.triangles] = self.triangle_part[:, None]
        self.masks = dict(zip(MASKS, np.clip(self.refine @ basis.masks, 0, 1).T, strict=True))
        self.skin = self.part == SKIN
        self.skin_triangles = self.triangles_of(SKIN)
        self.left_eye, self.right_eye = np.flatnonzero(self.part == LEFT_EYE), np.flatnonzero(self.part == RIGHT_EYE)
        x, y, z = self.rest.T
        self.nose_tip = int(np.argmax(np.where(self.skin & (np.abs(x) < 0.06) & (y > 6.7) & (y < 7.2), z, -9)))
        on_lips = self.masks["lips"] > 0.5
        self.mouth_left = int(np.argmax(np.where(on_lips, x, -9)))
        self.mouth_right = int(np.argmin(np.where(on_lips, x, 9)))

    def triangles_of(self, *parts: int) -> np.ndarray:
        """(M, 3) triangles of some parts."""
        return self.triangles[np.isin(self.triangle_part, parts)]

    @cached_property
    def faces_at_vertex(self) -> sp.csr_matrix:
        """(N, M) 1 where a triangle meets a vertex."""
        count = len(self.triangles)
        ones = np.ones(3 * count, np.float32)
        return sp.csr_matrix((ones, (self.triangles.ravel(), np.repeat(np.arange(count), 3))), (self.count, count))

    @cached_property
    def neighbor_mean(self) -> sp.csr_matrix:
        """(N, N) the mean over the neighbors of each vertex."""
        ends = np.concatenate([self.triangles[:, [0, 1]], self.triangles[:, [1, 2]], self.triangles[:, [2, 0]]])
        adjacent = sp.csr_matrix((np.ones(len(ends), np.float32), (ends[:, 0], ends[:, 1])), (self.count, self.count))
        adjacent = ((adjacent + adjacent.T) > 0).astype(np.float32)
        return (sp.diags(1 / np.maximum(np.asarray(adjacent.sum(axis=1)).ravel(), 1)) @ adjacent).astype(np.float32)

    @cached_property
    def shadow_triangles(self) -> np.ndarray:
        """(M, 3) the skin with vertices merged within cells: a coarse surface is enough to cast a shadow."""
        cell = np.round(self.rest / SHADOW_CELL).astype(np.int64) + 1000
        _, first, merged = np.unique(cell @ [1, 10_000, 100_000_000], return_index=True, return_inverse=True)
        corners = first[merged][self.skin_triangles]
        apart = (corners != np.roll(corners, 1, axis=1)).all(axis=1)
        triangles = np.unique(corners[apart], axis=0)
        return triangles[_neighbors_first(self.rest[triangles].mean(axis=1))]

    def normals(self, vertices: np.ndarray) -> np.ndarray:
        """(N, 3) unit normals of the mesh with these vertices, weighted by area."""
        a, b, c = (vertices[self.triangles[:, corner]] for corner in range(3))
        summed = self.faces_at_vertex @ np.cross(b - a, c - a)
        return (summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-8)).astype(np.float32)

    @cached_property
    def roots(self) -> Pool:
        """Where scalp hair and beard may root: from the neck upwards, but not on lips, ears or behind them."""
        pool, masks = self._scatter(SCALP_ROOTS, self.rest[self.skin_triangles][:, :, 1].mean(axis=1) > 5.8, seed=7)
        x, y, z = np.abs(pool.rest[:, 0]), pool.rest[:, 1], pool.rest[:, 2]
        beside_ear = (x > 0.76) & (z > 0.22) & (z < 0.75) & (y > 6.75) & (y < 7.38)
        bare = (masks["lips"] > 0.1) | (masks["inside-mouth"] > 0.1) | (masks["ears"] > 0.4) | beside_ear
        return Pool(pool.corners[~bare], pool.weights[~bare], pool.rest[~bare])

    @cached_property
    def brow_roots(self) -> Pool:
        """Where brows may root: a dense pool about both brows."""
        x, y, z = self.rest[self.skin_triangles].mean(axis=1).T
        return self._scatter(BROW_ROOTS, (np.abs(x) < 0.66) & (y > 7.35) & (y < 7.78) & (z > 0.9), seed=8)[0]

    def _scatter(self, count: int, allowed: np.ndarray, seed: int) -> tuple[Pool, dict[str, np.ndarray]]:
        """Evenly spread places on the allowed (M,) skin triangles, and the masks (K,) there."""
        rng = np.random.default_rng(seed)
        corners = self.rest[self.skin_triangles]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) * allowed
        chosen = self.skin_triangles[rng.choice(len(area), count, p=area / area.sum())]
        weights = rng.dirichlet([1, 1, 1], count).astype(np.float32)
        masks = {name: (mask[chosen] * weights).sum(axis=1) for name, mask in self.masks.items()}
        return Pool(chosen, weights, np.einsum("nk,nki->ni", weights, self.rest[chosen])), masks

    @cached_property
    def lashes(self) -> list[tuple[np.ndarray, np.ndarray, bool]]:
        """Of each of the four lash rows: vertices at the lid from one corner to the other, at the ends, is upper."""
        cards = self.triangles_of(LASHES)
        links = sp.csr_matrix(
            (np.ones(cards.size), (cards.ravel(), np.roll(cards, 1, axis=1).ravel())), (self.count, self.count)
        )
        label = sp.csgraph.connected_components(links, directed=False)[1]
        rows = []
        for number in np.unique(label[self.part == LASHES]):
            row = np.flatnonzero(label == number)
            place = self.rest[row]
            eye = self.rest[self.left_eye if place[:, 0].mean() > 0 else self.right_eye].mean(axis=0)
            distance = np.linalg.norm(place - eye, axis=1)
            at_lid = row[distance < 0.158]
            at_lid = at_lid[np.argsort(self.rest[at_lid, 0])]
            apart = np.abs(place[:, 0] - self.rest[at_lid, None, 0])
            ends = row[np.argmax(distance - 3 * apart, axis=1)]
            rows.append((at_lid, ends, bool(place[:, 1].mean() > eye[1])))
        return rows


def _neighbors_first(points: np.ndarray) -> np.ndarray:
    """(N,) an order of points (N, 3) along Morton's curve: a renderer then computes most shared vertices only once."""
    cell = ((points - points.min(axis=0)) / np.ptp(points, axis=0).max() * 255).astype(np.int64)
    code = sum(((cell >> bit) & 1) @ [1, 2, 4] << (3 * bit) for bit in range(8))
    return np.argsort(code, kind="stable")
