"""Glasses, hats, earrings and scarves: what is drawn, and their meshes on one head, in dm, in the identity's own space.

Scarves, like hats, are grids over the `CapsuleMap` of the head, at some distance from the skin. Everything is drawn
independently of skin tone; hats and earrings depend on sex as they do in life.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .capsule import CapsuleMap, capsule_map
from .hair import Strands
from .hats import chin_level, hat_meshes, uncovered
from .surfaces import Color, Mesh, Surface, ball, grid_mesh, linear, tube

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

    def describe(self) -> dict[str, Any]:
        """The kinds and main colors as JSON-able values."""
        words = {name: getattr(self, name) for name in ("glasses", "hat", "earrings", "scarf")}
        colors = {"hat": self.hat_color, "scarf": self.scarf_color}
        return words | {f"{name}_color": [round(c, 3) for c in color] for name, color in colors.items() if words[name]}


# ---------------------------------------------------------------- drawing


def draw_accessories(rng: np.random.Generator, attributes: Any) -> Accessories:
    """Random glasses, hat, earrings and scarf for a person of `attributes.female` (0..1)."""
    female = attributes.female
    worn: dict[str, Any] = {}
    if rng.random() < SHARES["glasses"]:
        worn |= _draw_glasses(rng)
    if rng.random() < SHARES["hat"]:
        worn |= {
            "hat": _pick(rng, {kind: man * (1 - female) + woman * female for kind, (man, woman) in HATS.items()}),
            "hat_color": _color(rng, CLOTH_COLORS),
            "hat_trim": _color(rng, CLOTH_COLORS),
            "hat_size": float(rng.random()),
            "hat_turn": float(rng.normal(0, 0.06)),
        }
    if rng.random() < EARRING_SHARES[0] * (1 - female) + EARRING_SHARES[1] * female:
        worn |= {
            "earrings": _pick(rng, EARRINGS),
            "earring_color": _color(rng, METALS),
            "earring_size": float(rng.random()) * (0.4 + 0.6 * female),
        }
    if rng.random() < SHARES["scarf"]:
        worn |= {
            "scarf": _pick(rng, SCARVES),
            "scarf_color": _color(rng, CLOTH_COLORS),
            "scarf_size": float(rng.random()),
        }
    return Accessories(**worn)


def _draw_glasses(rng: np.random.Generator) -> dict[str, Any]:
    kind = _pick(rng, {name: weight for name, (weight, *_) in GLASSES.items()})
    _, exponent, height, rim, _ = GLASSES[kind]
    return {
        "glasses": kind,
        "frame_color": _color(rng, FRAME_COLORS),
        "lens_color": _color(rng, LENS_COLORS) if kind == "sunglasses" else (0.6, 0.65, 0.65),
        "lens_exponent": float(rng.uniform(*exponent)),
        "lens_height": float(rng.uniform(*height)),
        "rim": float(rng.uniform(*rim)),
    }


def _pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    shares = np.array(list(weights.values()))
    return list(weights)[rng.choice(len(shares), p=shares / shares.sum())]


def _color(rng: np.random.Generator, palette: list[Color]) -> Color:
    red, green, blue = np.clip(np.array(palette[rng.integers(len(palette))]) * rng.uniform(0.85, 1.15), 0, 1)
    return float(red), float(green), float(blue)


# ---------------------------------------------------------------- on the head


def build(accessories: Accessories, head: Any) -> list[Mesh]:
    """The meshes of everything worn; opaque ones first, lenses last."""
    skin = capsule_map(head)
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


def tuck_hair(accessories: Accessories, head: Any, strands: list[Strands]) -> list[Strands]:
    """Strands under the hat: those wholly covered go, the others are pressed to the head there and near the rim."""
    if not accessories.hat:
        return strands
    skin, distance_outside, tucked = capsule_map(head), uncovered(accessories, head), []
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


def _scarf(worn: Accessories, head: Any, skin: CapsuleMap) -> list[Mesh]:
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


def _lobes(head: Any) -> list[tuple[np.ndarray, float]]:
    """For each ear the lobe's outer side and the side's sign (+1 the subject's left)."""
    ear = (head.masks["ears"] > 0.5) & (head.part == 0) & (head.rest[:, 1] < 6.98)
    lobes = []
    for side in (1.0, -1.0):
        points = head.vertices[ear & (head.rest[:, 0] * side > 0.5)]
        low = points[points[:, 1] < points[:, 1].min() + 0.06]
        lobes.append((low[(low[:, 0] * side).argmax()] + [0.01 * side, 0.03, 0], side))
    return lobes


def _earrings(worn: Accessories, head: Any) -> list[Mesh]:
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
            radius = 0.008 + (0.03 + 0.03 * worn.earring_size) * np.sqrt(np.maximum(t**3 * (1 - t) * 9.5, 0))
            meshes.append(grid_mesh(*tube(path, radius), color, 0.9))
    return meshes


# ---------------------------------------------------------------- glasses


def _glasses(worn: Accessories, head: Any, skin: CapsuleMap) -> list[Mesh]:
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


def _lens_plane(head: Any, eyes: np.ndarray, half: float) -> float:
    """Z of the lenses: just before cheeks and brows, but no nearer than 2.2 cm before the eyes' middles."""
    near = (head.part == 0) & (np.abs(head.vertices[:, 1] - eyes[1]) < 0.8 * half)
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
