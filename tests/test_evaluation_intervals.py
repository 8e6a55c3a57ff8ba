import numpy as np
import pytest

from nvb_diffusers.evaluation.intervals import NORMAL_QUANTILE, Interval, bootstrap_interval, jackknife_interval


def test_interval_covers_the_mean_of_grouped_values():
    """Assert that the interval holds the true mean about as often as it says, where pictures as units would not."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    covered = {"identities": 0, "pictures": 0}
    for _ in range(150):
        values = rng.normal(size=40)[groups] + 0.3 * rng.normal(size=200)  # views of one identity are alike
        for name, units in {"identities": groups, "pictures": np.arange(200)}.items():
            interval = bootstrap_interval(values, units, num_resamples=300)
            covered[name] += interval.low <= 0 <= interval.high
    assert 0.87 <= covered["identities"] / 150 <= 0.99
    assert covered["pictures"] / 150 < 0.75


def test_interval_is_seeded_and_weighs_pictures():
    """Assert the mean over pictures, equal results for one seed, and no width where all values are equal."""
    values, groups = [1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"]
    interval = bootstrap_interval(values, groups, seed=3)
    assert interval.mean == 2
    assert (interval.low, interval.high) == (1, 5)
    assert interval == bootstrap_interval(values, groups, seed=3)
    assert bootstrap_interval([4.0, 4.0], ["a", "b"]) == Interval(4, 4, 4)
    with pytest.raises(ValueError, match="expected as many"):
        bootstrap_interval([], [])


def test_jackknife_of_a_mean_is_its_standard_error():
    """Assert that, with one value a group, the interval is the mean's own normal interval."""
    values = np.random.default_rng(1).normal(size=30)
    interval = jackknife_interval(lambda kept: values[kept].mean(), list(range(30)))
    error = values.std(ddof=1) / np.sqrt(30)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.mean == pytest.approx(NORMAL_QUANTILE * error)
    assert jackknife_interval(lambda kept: 7.0, ["a", "a"]) == Interval(7, 7, 7)
