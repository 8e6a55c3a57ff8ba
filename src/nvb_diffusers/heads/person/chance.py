"""Where everything random of an identity comes from."""

import zlib
from collections.abc import Mapping

import numpy as np


def stream(seed: int, identity: int, purpose: str) -> np.random.Generator:
    """The random numbers of one identity for one purpose.

    Streams are independent: a change to one thing (say, the clothes) leaves all others as they were, and it does not
    matter which process renders whom.
    """
    return np.random.default_rng([seed, identity, zlib.crc32(purpose.encode())])


def pick(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    """One of the names, as often as its share of all weights."""
    shares = np.array(list(weights.values()))
    return list(weights)[rng.choice(len(shares), p=shares / shares.sum())]
