"""Intervals of means over a test set: identities are drawn, not images, since views of one face are alike."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from nvb_diffusers.schema import JsonData


@dataclass(frozen=True)
class Interval(JsonData):
    """A value and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


LEVEL = 0.95
NORMAL_QUANTILE = 1.959964  # of the same level, two-sided


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable], num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean of values and its percentile bootstrap interval (Efron and Tibshirani 1993, 13.3) over groups.

    Args:
        values: (N,), without gaps.
        groups: the identity of each value (N,); whole identities are drawn with replacement.
        num_resamples: how many draws.
        seed: of the draws.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or len(values) != len(groups):
        raise ValueError(f"values have shape {values.shape} and groups {len(groups)}: expected as many of both, not 0")
    index = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    of_value = np.array([index[group] for group in groups])
    sums, counts = np.bincount(of_value, weights=values), np.bincount(of_value)
    draws = np.random.default_rng(seed).integers(len(index), size=(num_resamples, len(index)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)  # (R,)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def jackknife_interval(statistic: Callable[[np.ndarray], float], groups: Sequence[Hashable]) -> Interval:
    """A value of a whole set, such as a Frechet distance, and its normal interval from leaving out each group once.

    A bootstrap would be biased here: a draw holds fewer different images, which alone raises such a distance.

    Args:
        statistic: the value of the images that a mask (N,) of booleans keeps.
        groups: the identity of each image (N,).
    """
    names = np.array([str(group) for group in groups])
    value = statistic(np.ones(len(names), dtype=bool))
    count = len(np.unique(names))
    if count == 1:
        return Interval(value, value, value)
    without = np.array([statistic(names != name) for name in np.unique(names)])
    error = float(np.sqrt((count - 1) / count * np.sum((without - without.mean()) ** 2)))
    return Interval(value, value - NORMAL_QUANTILE * error, value + NORMAL_QUANTILE * error)
