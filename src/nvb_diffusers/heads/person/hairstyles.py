"""Hair styles, beards and hair colors as tables, and how they are drawn with age and sex.

Lengths are in dm. A range (low, high) in a table is drawn uniformly, a list picks one of its values. Age runs as in the
shape basis (1/3 a child, 2/3 about 25 years, 1 very old), female from 0 to 1.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .chance import pick


@dataclass(frozen=True)
class HairStyle:
    """What `hair.grow_all` needs to know of one person's scalp hair and beard."""

    kind: str
    # where it grows
    strands: int = 2600
    recede: float = 0.0  # how far the hairline has gone back at the temples and the forehead
    bare_crown: float = 0.0  # radius of a bald crown
    cap: float = 0.85  # how much of the scalp's skin takes the hair's color
    # how long it is: at the nape, above the ears and on top as shares of `length`; jitter from strand to strand
    length: float = 0.4
    nape: float = 1.0
    sides: float = 1.0
    jitter: float = 0.3
    fringe: float = 0.0  # length of a fringe, 0 without
    # where it is combed to: weights of directions along the scalp, and `lift` away from it
    away: float = 1.0  # from the crown
    forward: float = 0.0
    up: float = 0.0
    back: float = 0.0
    sideways: float = 0.0  # from the parting
    sweep: float = 0.0  # towards the subject's left
    part: float = 0.0  # x of the parting
    lift: float = 0.3
    gravity: float = 0.15
    stiffness: float = 1.0
    volume: float = 0.1  # height of the outermost strands over the scalp
    curtain: bool = False  # long hair that is kept out of the face
    gather: str = ""  # "bun" or "ponytail"
    ropes: str = ""  # "locs", "braids" or "cornrows"
    # texture
    segments: int = 6
    width: float = 1.44  # px at 512 px
    locks: int = 300  # guide strands
    clump: float = 0.4  # how far the strands of a lock run together at their ends
    messy: float = 0.1
    spread: float = 0.03
    curl: float = 0.0  # radius of the curls
    pitch: float = 0.0  # radians of a curl's turn per dm
    frizz: float = 0.004
    # face
    beard: str = "none"
    beard_length: float = 0.0
    stubble: float = 0.0  # how dark shaved skin is


SHORT = {"nape": 0.28, "sides": (0.3, 0.6), "strands": 3400, "width": 1.2}
LONG = {
    "sideways": 0.7, "lift": 0.13, "stiffness": 0.7, "gravity": 0.5, "curtain": True,
    "part": [-0.38, -0.22, 0.0, 0.22, 0.38], "volume": (0.05, 0.14), "messy": 0.06, "jitter": 0.45, "segments": 10,
    "strands": 3200, "locks": 320, "width": 1.32, "spread": 0.05,
}  # fmt: skip
COILS = {"curl": (0.025, 0.04), "pitch": (45, 65), "frizz": 0.028, "gravity": 0.0, "lift": 0.9, "stiffness": 1.5,
         "segments": 8, "strands": 3200, "width": 1.32, "messy": 0.22, "jitter": 0.15, "clump": 0.2,
         "cap": 0.95}  # fmt: skip
ROPES = {"strands": 0, "cap": 0.8, "segments": 12, "width": 1.56, "messy": 0.12, "jitter": 0.25, "lift": 0.3,
         "volume": (0.05, 0.12)}  # fmt: skip

# kind: (weight for men, for women, how much likelier with tightly curled hair, what differs from HairStyle's defaults)
STYLES: dict[str, tuple[float, float, float, dict[str, Any]]] = {
    "bald": (0.06, 0.004, 1.0, {
        "strands": 0, "cap": (0.1, 0.4),
    }),
    "buzz": (0.10, 0.02, 1.5, {
        "length": (0.04, 0.09), "lift": 0.7, "segments": 1, "strands": 4200, "volume": 0.02, "gravity": 0.0,
        "messy": 0.25, "spread": 0.004, "cap": 0.92, "clump": 0.0,
    }),
    "fade": (0.08, 0.01, 2.5, {
        **COILS, "length": (0.1, 0.3), "nape": 0.06, "sides": (0.1, 0.3), "segments": 4, "strands": 4200,
        "curl": (0.015, 0.025), "cap": 0.9,
    }),
    "short": (0.17, 0.05, 0.5, {
        **SHORT, "length": (0.25, 0.45), "lift": (0.25, 0.5), "forward": (0.0, 0.8), "sweep": (-0.8, 0.8),
        "volume": (0.05, 0.14), "messy": (0.08, 0.22), "clump": (0.15, 0.5), "segments": 5,
    }),
    "pixie": (0.02, 0.06, 0.5, {
        "length": (0.45, 0.7), "nape": 0.35, "sides": (0.6, 0.9), "lift": 0.25, "forward": (0.3, 0.9),
        "sweep": (-0.6, 0.6), "gravity": 0.25, "volume": (0.06, 0.13), "clump": (0.3, 0.6),
    }),
    "parted": (0.12, 0.02, 0.4, {
        **SHORT, "length": (0.5, 0.8), "lift": (0.2, 0.35), "sideways": 0.9, "part": [-0.4, 0.4], "back": 0.4,
        "gravity": 0.16, "volume": (0.08, 0.18), "messy": 0.08, "clump": (0.3, 0.6),
    }),
    "slick": (0.07, 0.03, 0.5, {
        "nape": 0.5, "sides": (0.5, 0.9), "length": (0.5, 0.9), "lift": 0.12, "back": 1.4, "away": 0.6,
        "gravity": 0.1, "volume": (0.04, 0.1), "messy": 0.05, "clump": 0.5,
    }),
    "quiff": (0.08, 0.01, 0.5, {
        **SHORT, "length": (0.4, 0.65), "lift": (0.32, 0.5), "back": (0.5, 1.0), "up": 0.7, "gravity": 0.04,
        "volume": (0.1, 0.2), "messy": 0.09, "clump": 0.4,
    }),
    "crop": (0.10, 0.04, 0.6, {
        **SHORT, "length": (0.35, 0.6), "lift": 0.25, "forward": (0.6, 1.2), "away": 0.8,
        "sweep": (-0.3, 0.3), "gravity": 0.2, "volume": (0.06, 0.13), "messy": (0.08, 0.2),
        "clump": (0.25, 0.6),
    }),
    "afro": (0.04, 0.06, 4.0, {
        **COILS, "length": (0.3, 1.0), "nape": 0.45, "sides": 0.75, "strands": 3600,
    }),
    "coils": (0.05, 0.05, 4.0, {
        **COILS, "length": (0.3, 0.6), "nape": 0.4, "sides": (0.5, 0.8), "lift": 0.6, "gravity": 0.08,
        "clump": 0.7, "locks": 420, "strands": 3000, "segments": 9,
    }),
    "curly": (0.07, 0.07, 1.5, {
        "length": (0.4, 0.8), "nape": 0.5, "sides": (0.5, 0.9), "lift": 0.45, "gravity": 0.14,
        "volume": (0.1, 0.2), "messy": 0.2, "curl": (0.035, 0.07), "pitch": (14, 24), "frizz": 0.008,
        "segments": 10, "strands": 2400, "clump": 0.65,
    }),
    "locs": (0.025, 0.025, 6.0, {
        **ROPES, "ropes": "locs", "length": (0.7, 2.4), "gravity": 0.5, "curtain": True, "locks": 150,
        "sideways": 0.5, "away": 0.8,
    }),
    "braids": (0.012, 0.04, 6.0, {
        **ROPES, "ropes": "braids", "length": (1.6, 2.8), "gravity": 0.5, "curtain": True, "locks": 110,
        "sideways": 0.6, "part": [-0.3, 0.0, 0.3], "segments": 18, "jitter": 0.12,
    }),
    "cornrows": (0.025, 0.025, 6.0, {
        **ROPES, "ropes": "cornrows", "length": [0.0, 0.4, 1.2], "segments": 22, "cap": 0.6,
    }),
    "bob": (0.02, 0.15, 0.4, {
        **LONG, "length": (1.1, 1.7), "jitter": 0.2, "curl": (0.0, 0.03), "pitch": (2, 5), "segments": 9,
        "clump": (0.3, 0.5),
    }),
    "long": (0.02, 0.13, 0.4, {
        **LONG, "length": (2.0, 3.0), "curl": (0.01, 0.04), "pitch": (1.5, 3), "clump": (0.4, 0.6),
    }),
    "wavy": (0.02, 0.11, 0.6, {
        **LONG, "length": (1.5, 3.0), "curl": (0.05, 0.1), "pitch": (4, 8), "clump": (0.5, 0.75),
        "segments": 14, "strands": 2400, "width": 1.56,
    }),
    "long curly": (0.01, 0.07, 2.0, {
        **LONG, "length": (1.4, 2.6), "curl": (0.06, 0.1), "pitch": (9, 15), "frizz": 0.01,
        "volume": (0.12, 0.28), "clump": 0.75, "segments": 18, "strands": 2000, "locks": 300, "width": 1.56,
    }),
    "bun": (0.006, 0.08, 0.8, {
        "gather": "bun", "strands": 2400, "volume": (0.03, 0.06), "cap": 1.0, "locks": 200, "clump": 0.3,
    }),
    "ponytail": (0.006, 0.07, 0.8, {
        "gather": "ponytail", "strands": 2200, "volume": (0.03, 0.06), "cap": 1.0, "locks": 200, "clump": 0.3,
        "length": (1.2, 2.2),
    }),
}  # fmt: skip
# relative weight of a style for children and for old people, 1 where not listed
FOR_CHILDREN = {"bald": 0.0, "slick": 0.2, "quiff": 0.4, "crop": 2.0, "fade": 0.6, "bun": 0.6}
FOR_OLD = {"bald": 2.5, "buzz": 1.3, "fade": 0.3, "quiff": 0.4, "crop": 0.5, "long": 0.25, "wavy": 0.35,
           "long curly": 0.4,
           "ponytail": 0.3, "pixie": 2.5, "short": 1.6, "curly": 1.5, "bob": 1.3, "locs": 0.6,
           "braids": 0.4}  # fmt: skip
NEVER_RECEDES = {"bob", "long", "wavy", "long curly", "bun", "ponytail", "locs", "braids", "cornrows", "bald"}
FRINGE_SHARE = {"bob": 0.4, "long": 0.3, "wavy": 0.2, "bun": 0.3, "ponytail": 0.35}

# kind: (weight of young men, of old men, length)
BEARDS: dict[str, tuple[float, float, tuple[float, float]]] = {
    "none": (0.42, 0.50, (0.0, 0.0)),
    "stubble": (0.26, 0.10, (0.015, 0.03)),
    "short": (0.14, 0.12, (0.05, 0.12)),
    "full": (0.06, 0.12, (0.13, 0.32)),
    "goatee": (0.06, 0.05, (0.06, 0.16)),
    "mustache": (0.04, 0.08, (0.07, 0.14)),
    "chin strap": (0.02, 0.01, (0.04, 0.09)),
    "sideburns": (0.00, 0.02, (0.06, 0.12)),
}


def _draw(rng: np.random.Generator, value: Any) -> Any:
    if isinstance(value, tuple):
        return float(rng.uniform(*value))
    return value[rng.integers(len(value))] if isinstance(value, list) else value


def _ramp(low: float, high: float, value: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))


def draw_hairstyle(rng: np.random.Generator, female: float, age: float, coiled: float = 0.3) -> HairStyle:
    """A random style. `coiled` 0..1 is how likely tightly curled hair is (the ancestry's share)."""
    child, old = _ramp(0.6, 0.5, age), _ramp(0.74, 0.95, age)
    weights = {}
    for kind, (man, woman, tight, _) in STYLES.items():
        weight = (man * (1 - female) + woman * female) * tight ** (2 * (coiled - 0.3))
        weight *= 1 + child * (FOR_CHILDREN.get(kind, 1.0) - 1)
        weights[kind] = weight * (1 + old * (FOR_OLD.get(kind, 1.0) - 1))
    kind = pick(rng, weights)
    drawn = {name: _draw(rng, value) for name, value in STYLES[kind][3].items()}
    style = HairStyle(kind=kind, **drawn)
    return replace(style, **_loss(rng, style, female, age), **_fringe(rng, style), **_beard(rng, female, age))


def _loss(rng: np.random.Generator, style: HairStyle, female: float, age: float) -> dict[str, Any]:
    """Hairlines go back and crowns thin out with age, in men far more than in women."""
    manhood = _ramp(0.62, 0.95, age) * (1 - female)
    if style.kind in NEVER_RECEDES:
        return {}
    return {
        "recede": max(0.0, rng.normal(0.02 + 0.22 * manhood, 0.05 + 0.16 * manhood)) * (0.25 + 0.75 * (1 - female)),
        "bare_crown": float(rng.uniform(0.25, 0.65)) if rng.random() < 0.4 * manhood else 0.0,
    }


def _fringe(rng: np.random.Generator, style: HairStyle) -> dict[str, Any]:
    return {"fringe": float(rng.uniform(0.85, 1.1))} if rng.random() < FRINGE_SHARE.get(style.kind, 0.0) else {}


def _beard(rng: np.random.Generator, female: float, age: float) -> dict[str, Any]:
    if female > 0.4 or age < 0.6:
        return {}
    old = _ramp(0.7, 0.95, age)
    kind = pick(rng, {name: young * (1 - old) + late * old for name, (young, late, _) in BEARDS.items()})
    shade = {"none": (0.0, 0.35), "stubble": (0.45, 0.8)}.get(kind, (0.55, 0.85))
    return {"beard": kind, "beard_length": _draw(rng, BEARDS[kind][2]), "stubble": _draw(rng, shade)}


@dataclass(frozen=True)
class HairColors:
    """Linear RGB (3,) of scalp hair, its tips, brows and beard; the shares of strands that are gray."""

    hair: np.ndarray
    tip: np.ndarray
    brow: np.ndarray
    beard: np.ndarray
    gray: float
    beard_gray: float
    dyed: bool


def _linear(*srgb: float) -> np.ndarray:
    return np.array(srgb) ** 2.2


GRAY = _linear(0.70, 0.69, 0.68)
DARK = [_linear(0.07, 0.06, 0.055), _linear(0.13, 0.095, 0.075), _linear(0.20, 0.14, 0.10)]
BROWN = [_linear(0.30, 0.20, 0.13), _linear(0.40, 0.27, 0.17), _linear(0.36, 0.20, 0.12)]
FAIR = [_linear(0.62, 0.47, 0.29), _linear(0.76, 0.62, 0.42), _linear(0.52, 0.38, 0.24), _linear(0.60, 0.28, 0.12)]
NATURAL_DYES = [DARK[0], DARK[2], BROWN[0], BROWN[1], FAIR[0], FAIR[1], _linear(0.45, 0.14, 0.10)]
BRIGHT_DYES = [_linear(0.55, 0.12, 0.2), _linear(0.2, 0.25, 0.55), _linear(0.6, 0.35, 0.5), _linear(0.15, 0.4, 0.35),
               _linear(0.85, 0.82, 0.75)]  # fmt: skip


def draw_colors(rng: np.random.Generator, female: float, age: float, fairness: float) -> HairColors:
    """Natural, dyed or graying hair. `fairness` 0..1 is how likely other colors than dark are.

    Brows and beard follow the natural color of the scalp hair: brows a little darker than fair hair, beards a little
    redder; the beard grays before the scalp, the brows after it.
    """
    draw = rng.random()
    palette = FAIR if draw < 0.5 * fairness else BROWN if draw < 1.2 * fairness else DARK
    natural = palette[rng.integers(len(palette))] * rng.uniform(0.8, 1.2)
    bright = rng.random() < 0.025
    covers_gray = rng.random() < 0.15 + 0.35 * female * _ramp(0.7, 0.85, age)
    dyed = bright or (covers_gray and age > 0.6)
    dyes = BRIGHT_DYES if bright else NATURAL_DYES if rng.random() < 0.4 else [natural]
    hair = dyes[rng.integers(len(dyes))] * rng.uniform(0.9, 1.1) if dyed else natural
    turned = float(np.clip(_ramp(0.72, 0.97, age) * rng.uniform(-0.1, 1.7), 0, 1))
    gray, beard_gray = 0.0 if dyed else turned, min(1.0, 1.3 * turned)
    brow = (0.025 + natural * (1 - 0.25 * _ramp(0.1, 0.3, float(natural.mean())))) * rng.uniform(0.85, 1.1)
    beard = natural * np.array([1.15, 0.95, 0.85]) * rng.uniform(0.85, 1.05)
    mixed = hair * (1 - 0.5 * gray) + GRAY * 0.5 * gray  # dull before it is white: the share `gray` of the strands is
    return HairColors(
        hair=mixed,
        tip=mixed * rng.uniform(1.0, 1.45),
        brow=brow * (1 - 0.6 * turned) + GRAY * 0.8 * 0.6 * turned,
        beard=beard,
        gray=gray,
        beard_gray=beard_gray,
        dyed=dyed,
    )
