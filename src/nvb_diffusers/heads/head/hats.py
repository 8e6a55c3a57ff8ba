"""Hats: covers over the head's capsule map, from a rim up to the crown, with brims."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from ..mesh.basis import SKIN
from ..mesh.capsule import CapsuleMap
from ..mesh.surfaces import Mesh, ball, grid_mesh, linear
from ..person.accessories import Accessories
from .head import Head

Rim = Callable[[np.ndarray], np.ndarray]  # a hat's lower rim: its station at azimuths
HEM = 3.0  # a headscarf's hem below the middle of its opening, over half the opening's height
# kind: level of the rim over the brows' top (dm), station of the rim at the back
RIMS = {
    "beanie": (0.06, -0.25),
    "cap": (0.12, -0.05),
    "wide brim": (0.14, 0.0),
    "bucket": (0.10, -0.05),
    "head wrap": (0.14, -0.15),
}
# (share of the way from the rim to the crown, dm over the skin); two points at one share make an edge
CAP = [(-0.02, 0.01), (-0.02, 0.04), (0.15, 0.07), (0.3, 0.11), (0.45, 0.14), (0.6, 0.13), (0.8, 0.10), (1.0, 0.08)]
CUFF = [(0.0, 0.02), (0.0, 0.08), (0.03, 0.11), (0.22, 0.13), (0.26, 0.11), (0.27, 0.07)]
BUCKET = [(-0.04, 0.03), (0.15, 0.06), (0.35, 0.10), (0.5, 0.15), (0.6, 0.18), (0.66, 0.17), (0.85, 0.10), (1.0, 0.07)]
CROWN = [(-0.03, 0.03), (0.1, 0.06), (0.25, 0.12), (0.4, 0.20), (0.52, 0.28), (0.60, 0.31), (0.68, 0.28), (0.85, 0.18),
         (1.0, 0.14)]  # fmt: skip
BAND = [(-0.03, 0.03), (-0.03, 0.05), (0.02, 0.06), (0.14, 0.10), (0.15, 0.06)]


def uncovered(worn: Accessories, head: Head) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """How far a place (azimuth, station) is outside of the hat, in about dm; 0 or less under it."""
    skin = head.skin_map
    if worn.hat != "headscarf":
        rim = _rim(worn, head, skin)
        return lambda azimuth, station: rim(azimuth) - station
    across, along, center = _opening(head, skin)
    hem = center - HEM * along
    return lambda azimuth, station: np.maximum(
        1 - np.hypot(azimuth / across, (station - center) / along), hem - station
    )


def brow_top(head: Head) -> float:
    """The level (y) of the brows' upper rim."""
    pool = head.brow_roots
    upper = np.flatnonzero((pool.rest[:, 1] > 7.53) & (pool.rest[:, 1] < 7.6))[::8]
    return float(np.einsum("nk,nk->n", pool.weights[upper], head.vertices[pool.corners[upper], 1]).max())


def _station_of_level(skin: CapsuleMap, azimuth: float, level: float) -> float:
    """The station at which the skin at `azimuth` has the level y."""
    stations = np.linspace(-1.0, 1.2, 120)
    levels = skin.points(np.full(120, azimuth), stations, skin.skin(np.full(120, azimuth), stations)[..., 0])[:, 1]
    return float(np.interp(level, levels, stations))


def _rim(worn: Accessories, head: Head, skin: CapsuleMap) -> Rim:
    """A hat's lower rim: its station at azimuths."""
    above, back = RIMS[worn.hat]
    front = _station_of_level(skin, 0.0, brow_top(head) + above)
    # over the ears the rim is nearer to the back's level than half-way
    return lambda azimuth: back + (front - back) * (0.5 + 0.5 * np.cos(azimuth - worn.hat_turn)) ** 1.4


def _reach(skin: CapsuleMap, azimuth: np.ndarray, station: np.ndarray, roundness: float) -> np.ndarray:
    """Distance from the axis to a hat's inside. `roundness` 1 fills the head's flat sides up to a circle."""
    # an ear under the hat bends it smoothly: the skin as it is a little above counts as well
    tight = np.maximum(
        skin.skin(azimuth, np.maximum(station, 0.12))[..., 0], 0.97 * skin.skin(azimuth, station)[..., 0]
    )
    return tight + roundness * np.maximum(tight.mean(-1, keepdims=True) - tight, 0)


def _shell(
    skin: CapsuleMap, rim: Rim, profile: list[tuple[float, float]], columns: int = 72, roundness: float = 0.0,
    relief: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:  # fmt: skip
    """(R, columns, 3): a cover from the rim to the crown, `profile` [(share of the way, dm over the skin), ...]."""
    azimuth = np.linspace(-np.pi, np.pi, columns, endpoint=False)
    share, height = _fine_profile(profile)
    way = share[:, None]
    station = rim(azimuth) + (np.pi / 2 - rim(azimuth)) * way
    azimuth = np.broadcast_to(azimuth, station.shape)
    over = height[:, None] + (0.0 if relief is None else relief(azimuth, way))
    return skin.points(azimuth, station, _reach(skin, azimuth, station, roundness) + over)


def _fine_profile(profile: list[tuple[float, float]], step: float = 0.06) -> tuple[np.ndarray, np.ndarray]:
    """The profile with points at most `step` apart: longer chords would cut through the head."""
    pieces = []
    for (low, start), (high, end) in pairwise(profile):
        t = np.linspace(0, 1, int(np.ceil((high - low) / step)) + 1, endpoint=False)
        pieces.append(np.stack([low + t * (high - low), start + t * (end - start)], 1))
    share, height = np.concatenate([*pieces, [profile[-1]]]).T
    return share, height


def hat_meshes(worn: Accessories, head: Head, skin: CapsuleMap) -> list[Mesh]:
    """The meshes of a hat, its crown first."""
    if worn.hat == "headscarf":
        return [_headscarf(worn, head, skin)]
    rim = _rim(worn, head, skin)
    makers = {"beanie": _beanie, "cap": _cap, "wide brim": _wide_brim, "bucket": _bucket, "head wrap": _head_wrap}
    return makers[worn.hat](worn, skin, rim)


def _beanie(worn: Accessories, skin: CapsuleMap, rim: Rim) -> list[Mesh]:
    """A knitted cap, from tight to slouchy, with a turned-up cuff."""
    slouch, color = worn.hat_size, linear(worn.hat_color)
    knit = lambda azimuth, way: 0.010 * np.cos(60 * azimuth) * (way < 0.97)  # noqa: E731
    top = [(0.0, 0.03), (0.02, 0.06), (0.3, 0.09), (0.55, 0.10 + 0.1 * slouch), (0.75, 0.10 + 0.25 * slouch),
           (0.9, 0.10 + 0.4 * slouch), (1.0, 0.10 + 0.45 * slouch)]  # fmt: skip
    trim = linear(worn.hat_trim) if slouch > 0.6 else color
    return [
        grid_mesh(_shell(skin, rim, top, 240, 0.3, knit), True, skin.center, color, 0.0),
        grid_mesh(_shell(skin, rim, CUFF, 240, 0.3, knit), True, skin.center, trim, 0.0),
    ]


def _cap(worn: Accessories, skin: CapsuleMap, rim: Rim) -> list[Mesh]:
    """A baseball cap with its visor and the button on top."""
    color = linear(worn.hat_color)
    trim = linear(worn.hat_trim) if worn.hat_size > 0.5 else color
    top = _shell(skin, rim, [(1.0, 0.08)], 1)[0, 0]
    seams = lambda azimuth, way: -0.012 * np.exp(-((np.sin(3 * azimuth) / 0.12) ** 2)) * (way > 0)  # noqa: E731
    visor = _brim(skin, rim, 0.2, worn.hat_turn, 0.36 * np.pi, 0.62 + 0.2 * worn.hat_size, 0.15, trim)
    return [grid_mesh(_shell(skin, rim, CAP, 144, 0.2, seams), True, skin.center, color, 0.05), visor,
            grid_mesh(*ball(top, 0.045), color, 0.05)]  # fmt: skip


def _bucket(worn: Accessories, skin: CapsuleMap, rim: Rim) -> list[Mesh]:
    """A soft hat with a flat top and a brim that slopes down."""
    color = linear(worn.hat_color)
    brim = _brim(skin, rim, 0.4, 0.0, np.pi, 0.3 + 0.15 * worn.hat_size, 0.7, color)
    return [grid_mesh(_shell(skin, rim, BUCKET, 72, 0.4), True, skin.center, color, 0.0), brim]


def _wide_brim(worn: Accessories, skin: CapsuleMap, rim: Rim) -> list[Mesh]:
    """A hat with a band about its crown and a wide, nearly level brim."""
    color = linear(worn.hat_color)
    return [
        grid_mesh(_shell(skin, rim, CROWN, 72, 0.4), True, skin.center, color, 0.05),
        grid_mesh(_shell(skin, rim, BAND, 72, 0.4), True, skin.center, linear(worn.hat_trim), 0.2),
        _brim(skin, rim, 0.4, 0.0, np.pi, 0.4 + 0.4 * worn.hat_size, 0.12, color),
    ]


def _head_wrap(worn: Accessories, skin: CapsuleMap, rim: Rim) -> list[Mesh]:
    """Cloth wound about the head in slanting folds, from a flat to a tall wrap."""
    lift = 0.05 + 0.4 * worn.hat_size
    share = np.linspace(0, 1, 24)
    over = np.interp(
        share,
        [0, 0.02, 0.2, 0.45, 0.6, 0.8, 1],
        [0.01, 0.07, 0.15, 0.17 + 0.3 * lift, 0.17 + 0.6 * lift, 0.16 + lift, 0.12 + lift],
    )
    folds = lambda azimuth, way: 0.05 * np.abs(np.sin(2 * np.sin(azimuth) + 11 * way)) * (way < 0.95) * (way > 0)  # noqa: E731
    points = _shell(skin, rim, list(zip(share, over, strict=True)), 120, 0.3, folds)
    return [grid_mesh(points, True, skin.center, linear(worn.hat_color), 0.05)]


def _brim(
    skin: CapsuleMap,
    rim: Rim,
    roundness: float,
    turn: float,
    half: float,
    width: float,
    droop: float,
    color: np.ndarray,
) -> Mesh:
    """A sheet that leaves the rim within `half` radians of the front; its upper and lower side are one surface."""
    full = half == np.pi
    azimuth = np.linspace(-np.pi, np.pi, 72, endpoint=False) if full else np.linspace(-half, half, 36) + turn
    start = skin.points(azimuth, rim(azimuth), _reach(skin, azimuth, rim(azimuth), roundness) + 0.01)
    outward = np.stack([np.sin(azimuth), np.zeros_like(azimuth), np.cos(azimuth)], -1)
    edge, slope = np.ones(len(azimuth)), np.full(len(azimuth), droop)
    if not full:  # a visor goes forward and bends down at its sides
        bend = ((azimuth - turn) / half) ** 2
        outward = np.array([np.sin(turn), 0.0, np.cos(turn)]) + 0.3 * outward * [1, 0, 0]
        edge, slope = np.sqrt(np.maximum(1 - bend**2, 0)), droop + 0.4 * bend
    across = np.linspace(0, 1, 8)[:, None, None]
    reach = across * (width * edge)[:, None]
    upper = start + outward * reach - np.array([0, 1.0, 0]) * slope[:, None] * reach * (0.6 + 0.4 * across)
    lower = upper - [0, 0.02, 0]
    sheet = np.concatenate([lower, upper[::-1]])  # from the rim out below, back in above
    return grid_mesh(sheet, full, np.concatenate([0.5 * (lower + upper)] * 2) - outward * 0.02, color, 0.05)


def _opening(head: Head, skin: CapsuleMap) -> tuple[float, float, float]:
    """A headscarf's opening for the face: half its width in azimuth, half its height and its middle in station."""
    top = _station_of_level(skin, 0.0, brow_top(head) + 0.22)
    bottom = chin_level(head) - skin.center[1] + 0.06
    return 0.92, 0.5 * (top - bottom), 0.5 * (top + bottom)


def chin_level(head: Head) -> float:
    """The level of the chin's lowest point."""
    near = (head.part == SKIN) & (np.abs(head.rest[:, 0]) < 0.12) & (head.rest[:, 2] > 1.2)
    return float(head.vertices[near & (head.rest[:, 1] < 6.5), 1].min())


def _headscarf(worn: Accessories, head: Head, skin: CapsuleMap, columns: int = 128, rows: int = 24) -> Mesh:
    """Rays in the plane of azimuth and station run from the opening's oval to the crown, the back and the hem below."""
    across, along, center = _opening(head, skin)
    around = (np.arange(columns) + 0.5) * 2 * np.pi / columns  # never straight up or to the side
    direction = np.stack([across * np.cos(around), along * np.sin(around)], -1)
    to_side = np.pi / np.abs(direction[:, 0])
    to_level = np.where(direction[:, 1] > 0, np.pi / 2 - center, -HEM * along) / direction[:, 1]
    way = np.concatenate([[0, 0], np.linspace(0, 1, rows) ** 1.3])[:, None]
    way = 1 + (np.minimum(to_side, to_level) - 1) * way
    azimuth, station = direction[:, 0] * way, center + direction[:, 1] * way
    # cloth spans hollows: it lies as far out as the skin around, and below the jaw as the jaw above it
    near = [skin.skin(azimuth + a, station + s)[..., 0] for a in (-0.2, 0, 0.2) for s in (-0.1, 0, 0.12)]
    loose = np.clip((way - 1) / 0.5, 0, 1)
    hang = [0.95 * skin.skin(azimuth, np.minimum(station + s, 0))[..., 0] * loose for s in (0.3, 0.5, 0.7, 0.9)]
    own = skin.skin(azimuth, station)[..., 0]
    reach = own + (np.maximum.reduce([*near, *hang]) - own) * np.minimum(4 * loose, 1)  # the edge hugs the face
    slant = station * (1 - 0.25 * np.cos(azimuth)) + 0.12 * np.sin(3 * azimuth)
    folds = np.abs(np.sin(5 * slant + worn.hat_size * 6)) * np.clip((-0.3 - station) / 0.5, 0, 1)
    over = np.minimum(0.05 + 0.10 * loose, 0.12) + 0.07 * folds * loose
    over[0] = -0.06
    return grid_mesh(skin.points(azimuth, station, reach + over), True, skin.center, linear(worn.hat_color), 0.0)
