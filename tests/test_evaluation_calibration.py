"""The honesty of the deviation: against scipy, and on a made-up case that is known."""

import numpy as np
import pytest
import torch
from conftest import tiny_pipeline
from PIL import Image
from scipy.stats import spearmanr

from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.evaluation.calibration import invented_honesty, sample_honesty


def blocks(values):
    """Maps (2, 16, 24) that are constant in each block of 8 x 8."""
    return torch.tensor(values, dtype=torch.float32).reshape(2, 2, 3).repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_rank_correlation_is_scipys_with_and_without_ties():
    """Assert Spearman's coefficient of the block means, which pixels inside a block do not change."""
    rng = np.random.default_rng(0)
    for deviation in (rng.random(12), rng.integers(0, 4, 12) / 4):
        error = deviation + rng.random(12)
        noise = torch.randn(2, 16, 24)
        noise -= torch.nn.functional.avg_pool2d(noise[:, None], 8)[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2)
        mean, correlation = invented_honesty(blocks(deviation), blocks(error) + noise)
        assert mean == pytest.approx(deviation.mean(), abs=1e-6)
        assert correlation == pytest.approx(spearmanr(deviation, error).statistic, abs=1e-3)


def test_an_honest_map_and_a_lying_one():
    """Assert 1 where the error grows with the deviation, however bent, and -1 where it shrinks."""
    values = np.arange(1, 13) / 12
    assert invented_honesty(blocks(values), blocks(values**3))[1] == pytest.approx(1)
    assert invented_honesty(blocks(values), blocks(1 / values))[1] == pytest.approx(-1)


def test_a_pipelines_samples_against_truths():
    """Assert that truths equal to the samples' mean leave no error, so nothing to rank, and others do."""
    pipe, image = tiny_pipeline(), Image.new("RGB", (64, 64), (90, 70, 50))
    cameras = orbit_cameras(2, (-20, 20))
    truths = torch.rand(2, 3, 64, 64) * 2 - 1
    first, again, other = (sample_honesty(pipe, image, cameras, truths, 3, 1, seed=seed) for seed in (4, 4, 5))
    assert first == again != other
    assert -1 <= first[1] <= 1
