"""Skin: its tone, and how much it shows of what age, sun and make-up leave on it."""

from dataclasses import dataclass

import numpy as np

# sRGB from the fairest to the darkest skin, at even steps of melanin
TONES = np.array(
    [(246, 212, 194), (238, 198, 172), (226, 180, 148), (200, 148, 112), (160, 106, 74), (112, 70, 48), (72, 46, 34)]
)
MELANIN_OF_ANCESTRY = (0.80, 0.36, 0.22)
LIPSTICKS = [
    (0.70, 0.18, 0.22),
    (0.62, 0.25, 0.30),
    (0.75, 0.35, 0.38),
    (0.45, 0.12, 0.18),
    (0.78, 0.40, 0.36),
    (0.55, 0.28, 0.24),
]
EYE_SHADOWS = [(0.35, 0.22, 0.18), (0.25, 0.18, 0.20), (0.45, 0.30, 0.32), (0.30, 0.32, 0.40), (0.20, 0.16, 0.14)]


@dataclass(frozen=True)
class SkinLook:
    """Colors in linear RGB (3,), all else 0 to 1: what is drawn for one identity's skin."""

    melanin: float
    tone: np.ndarray
    lips: np.ndarray
    gloss: float
    redness: float
    tired: float  # shade under the eyes
    freckles: float
    spots: float
    moles: float
    wrinkles: float
    eye_shadow: np.ndarray
    make_up: float  # how much of the eye shadow


def draw_skin(rng: np.random.Generator, age: float, female: float, ancestry: tuple[float, float, float]) -> SkinLook:
    """Tone over the whole human range, tied loosely to ancestry, and what age and sex do to it."""
    melanin = float(np.clip(np.dot(ancestry, MELANIN_OF_ANCESTRY) + rng.normal(0, 0.11), 0.03, 0.97))
    place = melanin * (len(TONES) - 1)
    tone = np.array([np.interp(place, np.arange(len(TONES)), channel) for channel in (TONES / 255.0).T]) ** 2.2
    tone = 0.84 * tone * (1 + rng.normal(0, (0.03, 0.0, 0.05)))
    lips = tone * (0.92, 0.60, 0.60) * rng.uniform(0.85, 1.05)
    made_up = female > 0.6 and age > 0.58 and rng.random() < 0.5
    if made_up and rng.random() < 0.75:
        lips = 0.35 * lips + 0.65 * np.array(LIPSTICKS[rng.integers(len(LIPSTICKS))]) ** 2.2
    old = float(np.clip((age - 0.70) / 0.28, 0, 1))
    return SkinLook(
        melanin=melanin,
        tone=tone,
        lips=lips,
        gloss=float(rng.uniform(0, 1)),
        redness=float(rng.uniform(0.3, 1.0) * (1 - 0.6 * melanin)),
        tired=float(rng.uniform(0.1, 0.7) * (0.6 + 0.4 * old)),
        freckles=float((rng.random() < 0.16) * rng.uniform(0.4, 1.0) * (melanin < 0.5)),
        spots=float((rng.random() < 0.15 + 0.5 * old) * rng.uniform(0.2, 0.7)),
        moles=float((rng.random() < 0.3) * rng.uniform(0.5, 1.0)),
        wrinkles=old * float(rng.uniform(0.4, 1.0)),
        eye_shadow=np.array(EYE_SHADOWS[rng.integers(len(EYE_SHADOWS))]) ** 2.2,
        make_up=float(made_up * rng.uniform(0.2, 0.7)),
    )
