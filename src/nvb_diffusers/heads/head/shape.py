"""How much of each blend shape an identity has.

Drawn one by one, a hundred shapes of a face give caricatures. Here those that stretch the same way share a common
factor (a wide face has a wide nose, mouth and jaw), and each keeps only a small part of its own.
"""

import math
import re
from functools import cache

import numpy as np

from ..mesh.basis import MACROS
from ..mesh.template import Template
from ..person.attributes import EXPRESSIONS, Attributes

AGES = np.linspace(-1 / 3, 1, 5)  # of MACROS["age"]; a newborn has no shape, and nobody below "baby" is drawn
THIRDS = np.array([0.0, 0.5, 1.0])
# the two ends of a shape that goes both ways, by the last word of their names
ENDS = {"incr": "decr", "up": "down", "out": "in", "forward": "backward", "convex": "concave", "uncompress": "compress"}
POSITIVE = {
    end: (positive, sign) for positive, negative in ENDS.items() for end, sign in ((positive, 1), (negative, -1))
}
# standard deviation of a shape by the first pattern that its name matches; 1 is the far end of what was modeled
SPREADS = [
    (r"nose-(volume|point|scale-depth)", 0.13),
    (r"nose", 0.17),
    (r"(head|neck)-(trans|angle)", 0.07),
    (r"head-(age|fat)|neck-double", 0.12),
    (r"measure-neck|neck", 0.12),
    (r"head|forehead", 0.16),
    (r"chin-(width|bones|prominent|prognathism|jaw)", 0.16),
    (r"eye-(trans|push)", 0.14),
    (r"mouth", 0.19),
    (r"ear", 0.22),
    (r"", 0.21),
]
# what a drawn value lies around, where it is not 0: the basis has smaller eyes than people
MEANS = [(r"eye-scale", 0.30), (r"eye-height", 0.25)]
# (what the name holds, how much of its variance a shape shares with the others of its kind)
FACTORS = [
    (r"scale-horiz|width", 0.45),
    (r"scale-vert|height", 0.35),
    (r"scale-depth|trans-(for|back)ward", 0.35),
    (r"volume|fat", 0.4),
]
ONE_OF_SEVERAL = (
    r"head-(oval|round|rectangular|square|triangular|invertedtriangular|diamond)|ear-shape-.*"  # most: none
)
ASYMMETRY = 0.09
NOT_AT_RANDOM = ("eyeLook", "tongue", "jaw", "eyeBlink", "mouthFunnel", "mouthPucker")


def shape_weights(template: Template, attributes: Attributes, rng: np.random.Generator) -> np.ndarray:
    """(K,) weight of every shape of the basis."""
    macro = _macro_weights(attributes)
    local, face = _LocalShapes(rng), _expression_weights(template, attributes, rng)
    weights = np.zeros(len(template.names))
    for index, (name, tokens) in enumerate(zip(template.names, template.tokens, strict=True)):
        kind, _, rest = name.partition(":")
        if kind == "macro":
            weights[index] = math.prod(macro[token] for token in tokens.split("|"))
        elif kind == "local":
            weights[index] = local.weight(rest)
        else:
            weights[index] = face.get(rest, 0.0)
    return weights


def _macro_weights(attributes: Attributes) -> dict[str, float]:
    """Share of each value that macro shapes combine."""
    weights = dict(zip(MACROS["ancestry"], attributes.ancestry, strict=True))
    weights.update(male=1 - attributes.female, female=attributes.female)
    weights.update(_tent(MACROS["age"], attributes.age, AGES))
    weights.update(_tent(MACROS["muscle"], attributes.muscle, THIRDS))
    weights.update(_tent(MACROS["weight"], attributes.weight, THIRDS))
    return weights


def _tent(names: list[str], value: float, anchors: np.ndarray) -> dict[str, float]:
    """Shares of a linear interpolation between anchors."""
    return {name: float(np.interp(value, anchors, np.eye(len(anchors))[i])) for i, name in enumerate(names)}


class _LocalShapes:
    """Draws a value for each pair of opposite shapes, the same one for the left and the right side."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.values: dict[str, float] = {}
        self.factors = rng.normal(size=len(FACTORS))

    def weight(self, name: str) -> float:
        """Weight, at least 0, of a shape such as "l-eye-scale-decr"."""
        if name.startswith("asym"):
            return max(0.0, self.rng.normal(0, ASYMMETRY))
        key, sign = _key_and_sign(name)
        if key not in self.values:
            self.values[key] = self._draw(key)
        return max(0.0, sign * self.values[key])

    def _draw(self, key: str) -> float:
        if re.fullmatch(ONE_OF_SEVERAL, key):
            return (self.rng.random() < 0.2) * self.rng.uniform(0.1, 0.5)
        spread, factor = _spread_and_factor(key)
        value = self.rng.normal()
        if factor is not None:
            share = FACTORS[factor][1]
            value = math.sqrt(share) * self.factors[factor] + math.sqrt(1 - share) * value
        mean = next((mean for pattern, mean in MEANS if re.match(pattern, key)), 0.0)
        return mean + min(max(spread * value, -0.6), 0.6)


@cache
def _key_and_sign(name: str) -> tuple[str, int]:
    """The name of a pair of opposite shapes, and which end of it a shape is."""
    stem, _, end = re.sub(r"^[lr]-", "", name).rpartition("-")
    positive, sign = POSITIVE.get(end, (end, 1))
    return f"{stem}-{positive}", sign


@cache
def _spread_and_factor(key: str) -> tuple[float, int | None]:
    """The standard deviation of a pair of shapes, and the number of the factor it depends on."""
    spread = next(spread for pattern, spread in SPREADS if re.match(pattern, key))
    return spread, next((i for i, (pattern, _) in enumerate(FACTORS) if re.search(pattern, key)), None)


def _expression_weights(template: Template, attributes: Attributes, rng: np.random.Generator) -> dict[str, float]:
    """Activation of the expression units: the expression, three small others, and lids that follow the gaze."""
    active: dict[str, float] = {}
    for unit, value in EXPRESSIONS[attributes.expression][1].items():
        for side in ("Left", "Right") if unit.endswith("Both") else ("",):
            uneven = 1 + 0.12 * rng.normal() if side else 1.0
            active[unit.removesuffix("Both") + side] = value * attributes.strength * uneven
    units = [name.removeprefix("face:") for name in template.names if name.startswith("face:")]
    for unit in rng.choice([unit for unit in units if not unit.startswith(NOT_AT_RANDOM)], 3, replace=False).tolist():
        active[unit] = active.get(unit, 0.0) + rng.uniform(0, 0.2)
    pitch = attributes.gaze_deg[1]
    lids = "eyeLookUp" if pitch > 0 else "eyeLookDown"
    for side in ("Left", "Right"):
        active[lids + side] = min(1.0, abs(pitch) / 25)
    return active
