"""Meshes of glasses, earrings and scarves on one head, in dm, in the identity's own space, and hair under a hat.

Scarves, like hats, are grids over the `CapsuleMap` of the head, at some distance from the skin.
"""

from dataclasses import replace

import numpy as np

from ..mesh.basis import SKIN
from ..mesh.capsule import CapsuleMap
from ..mesh.surfaces import Mesh, Surface, ball, grid_mesh, linear, tube
from ..person.accessories import GLASSES, Accessories
from .hair import Strands
from .hats import chin_level, hat_meshes, uncovered
from .head import Head


def build(accessories: Accessories, head: Head) -> list[Mesh]:
    """The meshes of everything worn; opaque ones first, lenses last."""
    skin = head.skin_map
    meshes = []
    if accessories.hat:
        meshes += hat_meshes(accessories, head, skin)
    if accessories.scarf:
        meshes += _scarf(accessories, head, skin)
    if accessories.earrings and accessories.hat != "headscarf":
        meshes += _earrings(accessories, head)
    if accessories.glasses:
        meshes += _glasses(accessories, head, skin)
    return meshes


def tuck_hair(accessories: Accessories, head: Head, strands: list[Strands]) -> list[Strands]:
    """Strands under the hat: those wholly covered go, the others are pressed to the head there and near the rim."""
    if not accessories.hat:
        return strands
    skin, distance_outside = head.skin_map, uncovered(accessories, head)
    tucked: list[Strands] = []
    scarfed = accessories.hat == "headscarf"  # holds all hair of the scalp; other hats let long hair out
    for group in strands:
        if scarfed and group.kind == "hair":
            continue
        azimuth, station, distance = skin.coordinates(group.points)
        outside = distance_outside(azimuth, station)
        kept = (outside > 0).all(1) if scarfed else (outside > 0).any(1)
        room = skin.skin(azimuth, station)[..., 0] + 0.01 + 0.6 * np.maximum(outside, 0)
        pressed = skin.points(azimuth, station, np.minimum(distance, room)) if group.kind == "hair" else group.points
        if kept.any():
            tucked.append(replace(group, points=pressed[kept].astype(np.float32)))
    return tucked


# ---------------------------------------------------------------- scarves, earrings


def _scarf(worn: Accessories, head: Head, skin: CapsuleMap) -> list[Mesh]:
    """Two windings about the neck in folds, and an end that hangs on the chest."""
    wool = worn.scarf == "wool"
    thick = 0.16 + 0.08 * worn.scarf_size if wool else 0.09 + 0.05 * worn.scarf_size
    color, gloss = linear(worn.scarf_color), 0.0 if wool else 0.25
    chin = chin_level(head) - skin.center[1]
    azimuth, around = np.linspace(-np.pi, np.pi, 96, endpoint=False), np.linspace(0, 2 * np.pi, 24, endpoint=False)
    meshes = []
    for k, (level, tilt) in enumerate([(-0.18 - 0.8 * thick, 0.10), (-0.18 - 1.9 * thick, -0.08)]):
        station = chin + level + tilt * np.sin(azimuth + 2 * k) - 0.10 * np.cos(azimuth)
        reach = np.minimum(skin.skin(azimuth, station)[..., 0] + (0.6 + 0.6 * k) * thick, 1.0)
        folds = (
            1 + 0.16 * np.cos(4 * around + 3 * azimuth[:, None]) + 0.10 * np.cos(7 * around - 5 * azimuth[:, None] + k)
        )
        folds *= 1 + 0.12 * np.sin(4 * azimuth + 3 * k)[:, None]
        meshes.append(grid_mesh(*tube(skin.points(azimuth, station, reach), thick * folds, closed=True), color, gloss))
    way, side = np.linspace(0, 1, 16), 0.3 if worn.scarf_size > 0.5 else -0.3
    station = chin - 0.3 - thick - 1.5 * way
    reach = np.maximum.accumulate(skin.skin(np.full(16, side), station)[..., 0] + 0.8 * thick)
    end = thick * (0.8 + 0.8 * way[:, None]) * (1 + 0.14 * np.cos(6 * around + way[:, None]))
    meshes.append(grid_mesh(*tube(skin.points(np.full(16, side), station, reach), end, flat=0.5), color, gloss))
    return meshes


def _lobes(head: Head) -> list[tuple[np.ndarray, float]]:
    """For each ear the lobe's outer side and the side's sign (+1 the subject's left)."""
    ear = (head.masks["ears"] > 0.5) & (head.part == SKIN) & (head.rest[:, 1] < 6.98)
    lobes = []
    for side in (1.0, -1.0):
        points = head.vertices[ear & (head.rest[:, 0] * side > 0.5)]
        low = points[points[:, 1] < points[:, 1].min() + 0.06]
        lobes.append((low[(low[:, 0] * side).argmax()] + [0.01 * side, 0.03, 0], side))
    return lobes


def _earrings(worn: Accessories, head: Head) -> list[Mesh]:
    color, meshes = linear(worn.earring_color), []
    for lobe, side in _lobes(head):
        outward = np.array([side, 0.0, 0.0])
        if worn.earrings == "stud":
            radius = 0.028 + 0.02 * worn.earring_size
            meshes.append(grid_mesh(*ball(lobe + 0.5 * radius * outward, radius), color, 0.9))
        elif worn.earrings == "hoop":
            radius = 0.08 + 0.2 * worn.earring_size
            turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)[:, None]
            forward = np.array([0.35 * side, 0.0, 0.94])
            path = (
                lobe + 0.02 * outward - [0, radius, 0] + radius * (np.cos(turn) * [0, 1.0, 0] + np.sin(turn) * forward)
            )
            meshes.append(
                grid_mesh(*tube(path, np.full(36, 0.012 + 0.008 * worn.earring_size), closed=True), color, 0.9)
            )
        else:
            length = 0.15 + 0.3 * worn.earring_size
            t = np.linspace(0.001, 1, 14)
            path = lobe + 0.03 * outward - np.stack([0 * t, t * length, 0 * t], 1)
            girth = 0.008 + (0.03 + 0.03 * worn.earring_size) * np.sqrt(np.maximum(t**3 * (1 - t) * 9.5, 0))
            meshes.append(grid_mesh(*tube(path, girth), color, 0.9))
    return meshes


# ---------------------------------------------------------------- glasses


def _glasses(worn: Accessories, head: Head, skin: CapsuleMap) -> list[Mesh]:
    """Rims or bare lenses before the eyes, a bridge over the nose and temples to the ears."""
    eyes = 0.5 * (head.eye_left + head.eye_right)
    half = 0.40 * float(np.linalg.norm(head.eye_left - head.eye_right))
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    power = 2 / worn.lens_exponent
    outline = np.stack(
        [np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** power, np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** power],
        1,
    )
    outline *= [half, half * worn.lens_height]
    front = _lens_plane(head, eyes, half)
    frame, lenses = [], []
    for side, eye in ((1.0, head.eye_left), (-1.0, head.eye_right)):
        center = np.array([eye[0] + 0.01 * side, eye[1] - 0.03, front])
        loop = center + _bend(outline, side, half)
        frame.append(tube(loop, np.full(40, worn.rim), closed=True))
        rings = np.linspace(1, 0, 6)[:, None, None]
        lens, behind = center + _bend(rings * outline, side, half), center - [0, 0, 5.0]
        lenses.append(grid_mesh(lens, True, behind, linear(worn.lens_color), 1.0, GLASSES[worn.glasses][4]))
        hinge = loop[np.argmax(side * loop[:, 0])] + [0, 0.06, 0]
        frame.append(_temple(hinge, eyes, side, skin, max(worn.rim, 0.01)))
    t = np.linspace(-1, 1, 9)
    gap = 0.5 * (head.eye_left[0] - head.eye_right[0]) - half + 0.02
    arch = 1 - t**2
    bridge = np.stack([eyes[0] + t * gap, eyes[1] + 0.03 + 0.035 * arch, front + 0.03 + 0.02 * arch], 1)
    frame.append(tube(bridge, np.full(9, 0.9 * max(worn.rim, 0.01))))
    color = linear(worn.frame_color)
    return [grid_mesh(*bar, color, 0.6) for bar in frame] + lenses


def _lens_plane(head: Head, eyes: np.ndarray, half: float) -> float:
    """Z of the lenses: just before cheeks and brows, but no nearer than 2.2 cm before the eyes' middles."""
    near = (head.part == SKIN) & (np.abs(head.vertices[:, 1] - eyes[1]) < 0.8 * half)
    lateral = np.abs(head.vertices[:, 0] - eyes[0])
    near &= (lateral > 0.16) & (lateral < 2.4 * half)
    return float(np.clip(head.vertices[near, 2].max() + 0.03, eyes[2] + 0.22, eyes[2] + 0.36))


def _bend(outline: np.ndarray, side: float, half: float) -> np.ndarray:
    """(..., 3): an outline (..., 2) wrapped back towards the temple and tilted in at the cheek."""
    x, y = outline[..., 0], outline[..., 1]
    outer = x * side / half
    return np.stack([x, y, -0.04 * outer**2 - 0.05 * outer + 0.10 * y], -1)


def _temple(hinge: np.ndarray, eyes: np.ndarray, side: float, skin: CapsuleMap, rim: float) -> Surface:
    """A bar from the hinge back over the ear, clear of the skin."""
    t = np.linspace(0, 1, 14)[:, None]
    ear = np.array([hinge[0] + 0.02 * side, eyes[1] + 0.10, eyes[2] - 0.72])
    path = hinge * (1 - t) + ear * t
    azimuth, station, distance = skin.coordinates(path)
    beside = skin.skin(azimuth, np.maximum(station, 0.06))[..., 0] + 0.03  # above the ear, which the map would include
    distance = np.where(t[:, 0] > 0.15, np.maximum(distance, beside), distance)
    return tube(skin.points(azimuth, station, distance), np.full(14, 0.8 * rim))
