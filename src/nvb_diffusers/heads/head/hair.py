"""Strands of scalp hair, brows, beard and lashes, grown on the head in dm, in the identity's own space.

A few hundred guide strands (one a lock) are integrated over the skin. Every other strand follows the guides nearest to
its root, runs into its own lock towards the end, and is then curled, roughened, kept out of the face and out of the
skin. All steps work on whole arrays; the skin is asked through `CapsuleMap`.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.spatial import cKDTree

from ..mesh.capsule import CapsuleMap
from ..mesh.template import Pool
from ..person.attributes import Attributes
from ..person.hairline import beard_cover, length_share, scalp_value, smooth_step
from ..person.hairstyles import HairStyle
from .head import Head

UP, FRONT, LEFT = np.eye(3, dtype=np.float32)[[1, 2, 0]]
ROPE_STRANDS = 14
COMBED_FORWARD: dict[str, Any] = {
    "forward": 1.4, "away": 0.3, "sideways": 0.0, "back": 0.0, "up": 0.0, "gravity": 0.5, "lift": 0.25,
    "curtain": False,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Strands:
    """Points (N, S, 3) of N strands from root to end, in dm; the width in pixels counts at 512 px."""

    points: np.ndarray
    width_px: float
    kind: Literal["hair", "brow", "beard", "lash"]


@dataclass(frozen=True, eq=False)
class Roots:
    """Where strands begin: position, normal and position in rest space, each (N, 3)."""

    position: np.ndarray
    normal: np.ndarray
    rest: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "Roots":
        return Roots(self.position[index], self.normal[index], self.rest[index])


def grow_all(head: Head, attributes: Attributes, rng: np.random.Generator) -> list[Strands]:
    """All strands of one person: scalp hair first."""
    style = attributes.hairstyle
    skin = head.skin_map
    return [
        *grow_scalp_hair(head, style, skin, rng),
        grow_brows(head, attributes.female, attributes.age, rng),
        *grow_beard(head, style, rng),
        *grow_lashes(head, attributes.female, rng),
    ]


# ---------------------------------------------------------------- scalp hair


def _scalp_roots(head: Head, style: HairStyle, rng: np.random.Generator) -> Roots:
    """Up to `style.strands` roots (one a rope for ropes), thinned out towards the hairline and on faded sides."""
    pool = head.roots
    value = scalp_value(pool.rest, style) + rng.normal(0, 0.035, len(pool.rest))
    inside = np.flatnonzero((value > 0) & (rng.random(len(value)) < np.maximum(length_share(style, pool.rest), 0.35)))
    count = min(len(inside), style.strands or style.locks)
    return _at(head, pool, rng.choice(inside, count, replace=False))


def grow_scalp_hair(head: Head, style: HairStyle, skin: CapsuleMap, rng: np.random.Generator) -> list[Strands]:
    """The scalp's strands: fine ends and the rest have two widths, so that hair thins out towards its ends."""
    if style.kind == "bald":
        return []
    roots = _scalp_roots(head, style, rng)
    if style.ropes:
        return [grow_ropes(head, roots, style, skin, rng)]
    fringe = _fringe_roots(style, roots.rest, rng)
    guides = rng.permutation(len(roots.rest))[: style.locks]
    paths = grow_guides(head, roots[guides], fringe[guides], style, skin, rng)
    points = follow(roots, fringe, guides, paths, style, skin, rng)
    fine = len(points) // 4  # their ends stand out of the locks
    hair = [Strands(points[fine:], style.width, "hair"), Strands(points[:fine], 0.55 * style.width, "hair")]
    if style.gather:
        hair.append(Strands(_gathered(head, style, rng), style.width, "hair"))
    return hair


def _fringe_roots(style: HairStyle, rest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,): which roots belong to the fringe."""
    return (style.fringe > 0) & (rest[:, 2] > 0.75) & (np.abs(rest[:, 0]) < rng.uniform(0.42, 0.6))


def _knot(head: Head, style: HairStyle) -> np.ndarray:
    """Where gathered hair meets behind the head: the higher, the more volume it has."""
    offset = np.array([0.0, 0.25 + style.volume * 10, -2.2 + style.volume * 2])
    return head.eyes + offset


def grow_guides(
    head: Head, roots: Roots, fringe: np.ndarray, style: HairStyle, skin: CapsuleMap, rng: np.random.Generator
) -> np.ndarray:
    """(G, S, 3): one path a lock. Fringes are combed forward, gathered hair runs straight to its knot."""
    length = style.length * length_share(style, roots.rest) * (1 - 0.6 * style.jitter * rng.random(len(fringe)) ** 2)
    steps = max(style.segments, 10) if style.segments > 1 else 1
    if style.gather:
        t = np.linspace(0, 1, steps + 1, dtype=np.float32)[:, None]
        straight = roots.position[:, None] * (1 - t) + _knot(head, style) * t
        paths = skin.push_out(
            straight, style.volume * np.minimum(1, 4 * t[:, 0]) * (0.3 + 0.7 * rng.random((len(length), 1)))
        )
    else:
        paths = _integrate(head, roots, length, steps, style, skin, rng)
    if fringe.any():
        combed = replace(style, **COMBED_FORWARD, sweep=rng.uniform(-0.5, 0.5))
        short = np.maximum(0.35, 0.55 * (roots.rest[fringe, 1] - 7.45) + 0.25) * style.fringe
        paths[fringe] = _integrate(head, roots[fringe], short, steps, combed, skin, rng)
    return paths


def _integrate(
    head: Head,
    roots: Roots,
    length: np.ndarray,
    steps: int,
    style: HairStyle,
    skin: CapsuleMap,
    rng: np.random.Generator,
) -> np.ndarray:
    """(G, steps + 1, 3): paths that set out as they are combed, bend down by their weight and slide over the skin."""
    normal, eyes = roots.normal, head.eyes
    crown = np.array([0.0, roots.position[:, 1].max() - 0.1, eyes[2] - 1.35], np.float32)
    comb = _combing(roots, crown, style)
    jitter = rng.normal(0, style.messy, normal.shape).astype(np.float32)
    heading = _unit(normal * style.lift + comb * (1 - style.lift) + jitter)
    layer = style.volume * (0.15 + 0.85 * rng.random(len(length)))
    step = (length / steps)[:, None]
    point = roots.position + 0.01 * normal
    path = [point]
    for k in range(1, steps + 1):
        t = k / steps
        pull = comb * max(0.0, 1 - (1 + style.curtain) * t) * (1 - style.lift) + normal * style.lift * max(0.0, 0.6 - t)
        if style.curtain:  # below the ears it hangs in towards the neck
            inwards = -0.5 * point[:, :1] * smooth_step(eyes[1] + 0.2, eyes[1] - 0.6, point[:, 1:2])
            pull = pull + inwards * LEFT
        weight = style.gravity * (0.3 + t)
        heading = _unit(style.stiffness * heading + 0.5 * pull - weight * UP + 0.25 * jitter)
        moved = skin.push_out(point + heading * step, np.minimum(layer, 0.02 + 4 * t * layer))
        heading = _unit(moved - point)
        point = point + heading * step
        path.append(point)
    return np.stack(path, 1)


def _combing(roots: Roots, crown: np.ndarray, style: HairStyle) -> np.ndarray:
    """(G, 3): the unit direction along the scalp in which each root's hair is combed."""
    position, normal = roots.position, roots.normal
    side = np.where(position[:, :1] >= style.part, 1.0, -1.0)
    front = smooth_step(0.3, 1.0, position[:, 2:] - crown[2])
    comb = _unit(position - crown) * style.away + FRONT * style.forward + UP * style.up
    comb = comb + LEFT * (side * style.sideways * (0.25 + front) + style.sweep * front) - FRONT * style.back * front
    comb = comb + 0.3 * style.messy * _field(position)
    return _unit(comb - normal * (comb * normal).sum(1, keepdims=True)).astype(np.float32)


def follow(
    roots: Roots, fringe: np.ndarray, guides: np.ndarray, paths: np.ndarray, style: HairStyle, skin: CapsuleMap,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """(N, S, 3): every root's strand, from the paths (G, S', 3) of the roots at `guides` (G,)."""
    count = len(roots.position)
    steps = np.linspace(0, paths.shape[1] - 1, style.segments + 1).round().astype(int)
    paths = paths[:, steps].astype(np.float32)
    # hair does not mix across the parting, nor the fringe with the rest
    parted = 0.4 * style.curtain * np.where(roots.position[:, 0] >= style.part, 1, -1)
    place = np.column_stack([roots.position, parted, 3.0 * fringe])
    distance, near = cKDTree(place[guides]).query(place, k=2)
    weight = (1 / (distance + 0.02) ** 2).astype(np.float32)
    weight = (weight / weight.sum(1, keepdims=True))[:, :, None, None]
    offset = paths - paths[:, :1]
    offset = offset[near[:, 0]] * weight[:, 0] + offset[near[:, 1]] * weight[:, 1]

    t = np.linspace(0, 1, style.segments + 1, dtype=np.float32)[:, None]
    length = 1 - style.jitter * rng.random((count, 1, 1), dtype=np.float32) ** 1.5
    points = roots.position[:, None] + offset * length
    lock = paths[near[:, 0]]
    points += style.clump * t**1.3 * (lock[:, :1] + (lock - lock[:, :1]) * length - points)
    points += style.spread * t * (1.3 - 0.8 * t) * rng.normal(size=(count, 1, 3)).astype(np.float32)
    if style.curl:
        points += _curls(points, near[:, 0], style, rng)
    points += style.frizz * t * np.cumsum(rng.standard_normal(points.shape, dtype=np.float32), 1)
    if style.curtain:
        points = np.where(fringe[:, None, None], points, _open_curtain(points, skin, rng))
    return skin.push_out(points, np.minimum(0.015 + 0.3 * t[:, 0] * style.volume, 0.05)).astype(np.float32)


def _curls(points: np.ndarray, lock: np.ndarray, style: HairStyle, rng: np.random.Generator) -> np.ndarray:
    """(N, S, 3): offsets of helices about strands (N, S, 3); strands of one lock turn nearly together."""
    tangent = _unit(np.gradient(points, axis=1))
    across = _unit(np.cross(tangent, np.where(np.abs(tangent[..., 1:2]) < 0.9, UP, LEFT)))
    length = np.linalg.norm(np.diff(points, axis=1), axis=2).sum(1)[:, None]
    t = np.linspace(0, 1, points.shape[1], dtype=np.float32)
    lock_phase, lock_pitch = rng.uniform(0, 2 * np.pi, lock.max() + 1), rng.uniform(0.8, 1.2, lock.max() + 1)
    phase = lock_phase[lock] + rng.normal(0, 0.5, len(lock))
    angle = (phase[:, None] + style.pitch * lock_pitch[lock, None] * t * length).astype(np.float32)
    radius = style.curl * np.minimum(1, 3 * t)[:, None]
    return radius * (across * np.cos(angle)[..., None] + np.cross(tangent, across) * np.sin(angle)[..., None])


def _open_curtain(points: np.ndarray, skin: CapsuleMap, rng: np.random.Generator) -> np.ndarray:
    """Long hair (N, S, 3) slid sideways around the head, out of the face; below the chin it may fall in front."""
    azimuth, station, distance = skin.coordinates(points)
    side = np.where(points[:, :1, 0] + 0.3 * (points[:, -1:, 0] - points[:, :1, 0]) >= 0, 1, -1)
    turned = azimuth * side  # from the front towards the side on which the strand hangs
    edge = np.interp(station, [-2.2, -1.5, -0.9, -0.2, 0.25, 0.6], [0.55, 0.75, 0.95, 1.0, 0.85, 0.4])
    edge = edge + 0.12 * rng.normal(size=(len(points), 1))
    slide = smooth_step(0.85, 0.5, station) * (turned > -0.5 * np.pi) * 0.8 * np.maximum(edge - turned, 0)
    azimuth = side * (turned + slide)
    # before the neck it hangs back towards it instead of straight down from the face
    inside = skin.skin(azimuth, station)[..., 0]
    distance = inside + (distance - inside) * (1 - 0.3 * smooth_step(-0.5, -1.3, station))
    return skin.points(azimuth, station, distance)


# ---------------------------------------------------------------- ropes and gathered hair


def grow_ropes(head: Head, roots: Roots, style: HairStyle, skin: CapsuleMap, rng: np.random.Generator) -> Strands:
    """Locs and braids: each guide is a rope of strands that wind about its path; cornrows keep to the scalp."""
    if style.ropes == "cornrows":
        paths = _cornrow_paths(head, style, skin)
    else:
        length = style.length * (1 - style.jitter * rng.random(len(roots.position)))
        paths = _integrate(head, roots, length, style.segments, style, skin, rng)
        if style.curtain:
            paths = _open_curtain(paths, skin, rng)
        paths = skin.push_out(paths, 0.04)
    braided = style.ropes != "locs"
    radius = {"locs": 0.037, "braids": 0.032, "cornrows": 0.06}[style.ropes]
    t = np.linspace(0, 1, paths.shape[1], dtype=np.float32)
    turn = np.linspace(0, 2 * np.pi, ROPE_STRANDS, endpoint=False)[:, None] + (2.5 if braided else 5.0) * t
    knots = 0.3 * np.cos(np.pi * np.arange(len(t)) + 3 * turn[:, :1]) if braided else 0.0
    girth = radius * (1 - 0.65 * t**4) * (1 + knots)  # (ROPE_STRANDS or none, S)
    tangent = _unit(np.gradient(paths, axis=1))
    across = _unit(np.cross(tangent, np.where(np.abs(tangent[..., 1:2]) < 0.9, UP, LEFT)))[:, None]
    beyond = np.cross(tangent[:, None], across)
    ring = across * np.cos(turn)[..., None] + beyond * np.sin(turn)[..., None]
    points = paths[:, None] + girth[..., None] * ring  # (G, ROPE_STRANDS, S, 3)
    return Strands(points.reshape(-1, len(t), 3).astype(np.float32), style.width, "hair")


def _cornrow_paths(head: Head, style: HairStyle, skin: CapsuleMap, rows: int = 15) -> np.ndarray:
    """(rows, S, 3): rows from the hairline over the scalp to the nape, then hanging for `style.length`."""
    pool = head.roots
    inside = scalp_value(pool.rest, style) > 0.05
    position = _at(head, pool, np.flatnonzero(inside)[::4]).position - skin.center
    across = position[:, 0] / np.linalg.norm(position, axis=1)
    angle = (np.arctan2(position[:, 1], position[:, 2]) + np.pi / 2) % (2 * np.pi) - np.pi / 2  # pi/2 on top
    row_across = np.linspace(-0.9, 0.9, rows)
    row = np.abs(across[:, None] - row_across).argmin(1)
    paths = []
    for k, side in enumerate(row_across):
        first = max(angle[row == k].min() + 0.03, 0.2)  # rows at the side begin over the ear
        last = angle[row == k].max() - 0.03
        hanging = round(style.segments * style.length / (style.length + 2.2))
        along = np.linspace(first, last, style.segments + 1 - hanging)
        level = np.sqrt(1 - side**2)
        rays = np.stack([np.full_like(along, side), level * np.sin(along), level * np.cos(along)], 1)
        azimuth, station, _ = skin.coordinates(skin.center + rays)
        for _ in range(4):  # the ray's point on the skin: its station depends on its distance below the skull
            reach = skin.skin(azimuth, station)[..., 0] / np.maximum(skin.coordinates(skin.center + rays)[2], 1e-3)
            azimuth, station, _ = skin.coordinates(skin.center + rays * reach[:, None])
        on_scalp = skin.push_out(skin.center + rays * reach[:, None], 0.03)
        drop = np.linspace(0, style.length, hanging + 1)[1:, None]
        paths.append(np.concatenate([on_scalp, skin.push_out(on_scalp[-1] - drop * UP - 0.1 * drop * FRONT, 0.06)]))
    return np.stack(paths).astype(np.float32)


def _gathered(head: Head, style: HairStyle, rng: np.random.Generator, count: int = 900) -> np.ndarray:
    """(count, S, 3): the knot of a bun, wound about its axis, or a ponytail."""
    knot = _knot(head, style)
    t = np.linspace(0, 1, 11, dtype=np.float32)[:, None]
    if style.gather == "ponytail":
        start = _unit(np.array([0, 0.1, -1]) + 0.2 * rng.normal(size=(count, 1, 3)))
        fall = style.length * (1 - 0.35 * rng.random((count, 1, 1)) ** 2)
        points = knot + 0.05 * rng.normal(size=(count, 1, 3)) + start * t * 0.7 - UP * t**2 * fall
        return (points + 0.04 * t * rng.normal(size=(count, 1, 3))).astype(np.float32)
    axis = _unit(np.array([0, knot[1] - head.eyes[1], -1.4]))
    turn = rng.uniform(0, 2 * np.pi, (count, 1)) + 1.6 * t[:, 0]
    tilt = rng.uniform(0, 2 * np.pi, (count, 1)) + 0.8 * t[:, 0]
    thick = 0.16 * np.sqrt(rng.uniform(0.5, 1, (count, 1)))
    ring = 0.24 * rng.uniform(0.8, 1.25) + thick * np.cos(tilt)
    around = np.cos(turn)[..., None] * LEFT + np.sin(turn)[..., None] * np.cross(axis, LEFT)
    return (knot + 0.12 * axis + ring[..., None] * around + (thick * np.sin(tilt))[..., None] * axis).astype(np.float32)


# ---------------------------------------------------------------- brows, beard, lashes


def grow_brows(head: Head, female: float, age: float, rng: np.random.Generator) -> Strands:
    """Two brows: upright at the nose, lying outwards along the arch, thin at the outer end and at the rims."""
    pool = head.brow_roots
    inner, outer = rng.uniform(0.10, 0.17), rng.uniform(0.53, 0.62)
    level, arch = rng.uniform(7.47, 7.515), rng.uniform(0.02, 0.075)
    width = rng.uniform(0.026, 0.048) * (1.12 - 0.4 * female)
    along = (np.abs(pool.rest[:, 0]) - inner) / (outer - inner)
    above = pool.rest[:, 1] - level - arch * (1 - ((along - 0.62) / 0.62) ** 2)
    half = width * np.interp(along, [0, 0.15, 0.6, 1], [0.75, 1, 0.8, 0.25])
    density = (
        smooth_step(1.2, 0.3, np.abs(above) / half)
        * smooth_step(0.0, 0.18, along)
        * (along < 1)
        * (pool.rest[:, 2] > 0.9)
    )
    density *= rng.uniform(0.13, 0.32) * (1 - 0.25 * smooth_step(0.75, 1.0, np.asarray(age, np.float32)))
    chosen = np.flatnonzero(density > rng.random(len(density)))[:800]
    roots, along = _at(head, pool, chosen), np.clip(along[chosen, None], 0, 1)
    side = np.sign(pool.rest[chosen, :1])
    rise = 1.1 * (1 - along) ** 2 - 0.35 * along - 0.5 * np.clip(above[chosen, None] / width, -1, 1)  # rims lean in
    direction = side * LEFT * (0.3 + along) + rise * UP + 0.12 * rng.normal(size=(len(chosen), 3))
    points = _short_strands(roots, direction, rng.uniform(0.04, 0.08, len(chosen)), 0.2, 3, 0.1)
    return Strands(points, 1.1, "brow")


def grow_beard(head: Head, style: HairStyle, rng: np.random.Generator) -> list[Strands]:
    """The beard's strands; none for shaved skin (which `beard_cover` shades)."""
    if style.beard_length == 0:
        return []
    pool = head.roots
    cover = beard_cover(style, pool.rest)
    chosen = np.flatnonzero(0.95 * cover > rng.random(len(cover)))
    chosen = rng.permutation(chosen)[: 1100 if style.beard == "stubble" else 3000]
    roots = _at(head, pool, chosen)
    outwards = np.sign(roots.rest[:, :1]) * (0.15 + 0.35 * (roots.rest[:, 1:2] > 6.66))
    direction = (
        outwards * LEFT - UP + 0.1 * FRONT + 0.3 * rng.normal(size=roots.rest.shape) + 0.35 * _field(5 * roots.rest)
    )
    length = style.beard_length * rng.uniform(0.55, 1, len(chosen)) * (0.45 + 0.55 * cover[chosen])
    segments = 1 if style.beard == "stubble" else 4
    points = _short_strands(roots, direction, length, 0.3, segments, 0.45)
    rough = np.linspace(0, 0.07, segments + 1)[:, None] * style.beard_length
    points += rough * np.cumsum(rng.normal(size=points.shape), 1)
    return [Strands(points.astype(np.float32), 0.5 if style.beard == "stubble" else 0.85, "beard")]


def grow_lashes(head: Head, female: float, rng: np.random.Generator) -> list[Strands]:
    """Upper and lower lashes between neighboring root-to-end pairs of the lash planes."""
    strands = []
    for root, end, upper in head.lashes:
        count = 30 if upper else 10
        place = rng.uniform(0, len(root) - 1.001, count)
        low, part = place.astype(int), (place % 1)[:, None]
        start = head.vertices[root[low]] * (1 - part) + head.vertices[root[low + 1]] * part
        finish = head.vertices[end[low]] * (1 - part) + head.vertices[end[low + 1]] * part
        reach = (finish - start) * rng.uniform(0.6, 1.0, (count, 1)) * (0.6 + 0.4 * female) * (1.0 if upper else 0.5)
        t = np.linspace(0, 1, 4)[:, None]
        points = start[:, None] + reach[:, None] * t + UP * (0.02 if upper else -0.006) * (t**2 - 0.5 * t)
        strands.append(Strands(points.astype(np.float32), 0.5 if upper else 0.3, "lash"))
    return strands


def _short_strands(
    roots: Roots, direction: np.ndarray, length: np.ndarray, lift: float, segments: int, droop: float
) -> np.ndarray:
    """(N, segments + 1, 3): strands that leave the skin at a slope and bend back to it by `droop` of their length."""
    normal = roots.normal
    tangent = _unit(direction - normal * (direction * normal).sum(1, keepdims=True))
    leaving = _unit(tangent + lift * normal)[:, None]
    t = np.linspace(0, 1, segments + 1)[:, None]
    length = length[:, None, None]
    fall = -UP if droop > 0.3 else -normal[:, None]
    return (roots.position[:, None] + 0.004 * normal[:, None] + length * (leaving * t + droop * fall * t**2)).astype(
        np.float32
    )


# ---------------------------------------------------------------- small things


def _at(head: Head, pool: Pool, chosen: np.ndarray) -> Roots:
    """The pool's roots `chosen` on this head."""
    corners, weights = pool.corners[chosen], pool.weights[chosen]
    position = np.einsum("nk,nki->ni", weights, head.vertices[corners])
    normal = _unit(np.einsum("nk,nki->ni", weights, head.normals[corners]))
    return Roots(position, normal, pool.rest[chosen])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None], 1e-8)


def _field(points: np.ndarray) -> np.ndarray:
    """(N, 3): a smooth pseudo-random direction in -1..1 for points (N, 3)."""
    waves = points @ np.array([[9.1, -7.3, 4.2], [5.2, 8.8, -9.7], [-6.4, 7.9, 8.3]], np.float32)
    return np.sin(waves + np.sin(1.7 * waves[:, [1, 2, 0]]))
