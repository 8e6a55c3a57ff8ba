"""What is drawn for an identity, before any geometry: who they are, what they do and what they wear."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .accessories import Accessories, draw_accessories
from .chance import stream
from .clothes import Clothes, draw_clothes
from .hairstyles import HairColors, HairStyle, draw_colors, draw_hairstyle
from .skin import SkinLook, draw_skin

# Activations of expression units at full strength; "Both" stands for the left and the right one.
EXPRESSIONS: dict[str, tuple[float, dict[str, float]]] = {
    "neutral": (0.27, {}),
    "smile": (0.24, {"mouthSmileBoth": 0.65, "cheekSquintBoth": 0.4, "mouthDimpleBoth": 0.2}),
    "laugh": (0.10, {"mouthSmileBoth": 0.75, "jawOpen": 0.28, "cheekSquintBoth": 0.6, "mouthUpperUpBoth": 0.25,
                     "eyeSquintBoth": 0.35}),
    "talk": (0.10, {"jawOpen": 0.22, "mouthFunnel": 0.2, "mouthLowerDownBoth": 0.2}),
    "surprise": (0.05, {"jawOpen": 0.35, "browInnerUp": 0.6, "browOuterUpBoth": 0.6, "eyeWideBoth": 0.55}),
    "angry": (0.05, {"browDownBoth": 0.8, "noseSneerBoth": 0.3, "mouthPressBoth": 0.5}),
    "sad": (0.06, {"browInnerUp": 0.6, "mouthFrownBoth": 0.6, "mouthShrugLower": 0.3}),
    "pucker": (0.03, {"mouthPucker": 0.55}),
    "smirk": (0.04, {"mouthSmileLeft": 0.6, "cheekSquintLeft": 0.4, "mouthDimpleLeft": 0.3}),
    "squint": (0.03, {"eyeSquintBoth": 0.6}),
    "sleepy": (0.03, {"eyeBlinkBoth": 0.4}),
}  # fmt: skip
IRISES = [
    (0.25, 0.13, 0.07),
    (0.17, 0.09, 0.055),
    (0.35, 0.22, 0.10),
    (0.28, 0.34, 0.20),
    (0.24, 0.38, 0.52),
    (0.36, 0.46, 0.52),
]
IRIS_SHARES_FAIR, IRIS_SHARES_DARK = (0.35, 0.35, 0.12, 0.06, 0.07, 0.05), (0.35, 0.58, 0.06, 0.01, 0.0, 0.0)


@dataclass(frozen=True)
class Attributes:
    """One identity.

    Attributes:
        age: as in the shape basis: 1/3 a child, 2/3 about 25 years, 1 very old.
        female: 0 to 1.
        ancestry: shares of MakeHuman's african, asian and caucasian shapes.
        muscle, weight: 0 to 1, 0.5 is average.
        expression: one of `EXPRESSIONS`.
        strength: of the expression.
        gaze_deg: yaw and pitch of the eyes in the head, positive to the subject's left and up.
        neck_deg: yaw, pitch and roll of the shoulders under the head.
        iris: linear RGB.
    """

    age: float
    female: float
    ancestry: tuple[float, float, float]
    muscle: float
    weight: float
    expression: str
    strength: float
    gaze_deg: tuple[float, float]
    neck_deg: tuple[float, float, float]
    iris: np.ndarray
    skin: SkinLook
    hairstyle: HairStyle
    hair_colors: HairColors
    clothes: Clothes
    accessories: Accessories

    def describe(self) -> dict[str, Any]:
        """What goes into the metadata."""
        return {
            "age": round(self.age, 3),
            "female": round(self.female, 3),
            "ancestry": [round(share, 3) for share in self.ancestry],
            "melanin": round(self.skin.melanin, 3),
            "expression": self.expression,
            "gaze": [round(angle, 1) for angle in self.gaze_deg],
            "neck": [round(angle, 1) for angle in self.neck_deg],
            "hair": self.hairstyle.kind,
            "beard": self.hairstyle.beard,
            "clothes": self.clothes.cut,
            **self.accessories.describe(),
        }


def draw_attributes(seed: int, identity: int) -> Attributes:
    """Everything that is drawn for an identity but its shape, hair strands, light and cameras."""
    rng = stream(seed, identity, "person")
    age, female, parts = _draw_age(rng), float(rng.beta(0.25, 0.25)), rng.gamma(0.45, size=3) + 1e-4
    african, asian, caucasian = (parts / parts.sum()).tolist()
    ancestry = (african, asian, caucasian)
    kinds, shares = list(EXPRESSIONS), [share for share, _ in EXPRESSIONS.values()]
    skin = draw_skin(stream(seed, identity, "skin"), age, female, ancestry)
    fairness = caucasian * (1 - skin.melanin)
    hair_rng = stream(seed, identity, "hair style")
    return Attributes(
        age=age,
        female=female,
        ancestry=ancestry,
        muscle=float(rng.uniform(0.25, 0.75)),
        weight=float(np.clip(rng.normal(0.5, 0.18), 0.05, 0.95)),
        expression=kinds[rng.choice(len(kinds), p=shares)],
        strength=float(rng.uniform(0.45, 1.0)),
        gaze_deg=_draw_gaze(rng),
        neck_deg=tuple(np.clip(rng.normal(0, (9, 3.5, 3)), (-22, -8, -7), (22, 8, 7)).tolist()),
        iris=_draw_iris(rng, fairness),
        skin=skin,
        hairstyle=draw_hairstyle(hair_rng, female, age, african),
        hair_colors=draw_colors(hair_rng, female, age, fairness),
        clothes=draw_clothes(stream(seed, identity, "clothes")),
        accessories=draw_accessories(stream(seed, identity, "accessories"), female),
    )


def _draw_age(rng: np.random.Generator) -> float:
    """8 % children and youths, 60 % grown, the others from middle age on."""
    group = rng.choice(3, p=(0.08, 0.60, 0.32))
    return float(rng.uniform((0.36, 0.58, 0.76)[group], (0.55, 0.76, 1.0)[group]))


def _draw_gaze(rng: np.random.Generator) -> tuple[float, float]:
    """Most people look about where their face points to, some aside."""
    spread = (4.0, 2.5) if rng.random() < 0.65 else (14.0, 6.0)
    yaw, pitch = np.clip(rng.normal(0, spread), (-24, -11), (24, 9))
    return float(yaw), float(pitch)


def _draw_iris(rng: np.random.Generator, fairness: float) -> np.ndarray:
    shares = IRIS_SHARES_FAIR if fairness > 0.35 else IRIS_SHARES_DARK
    return (np.array(IRISES[rng.choice(len(IRISES), p=shares)]) * rng.uniform(0.9, 1.25)) ** 2.2
