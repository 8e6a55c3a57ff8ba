"""The benchmark of the appearance model's parts: its measures by hand, and its tables on a small model and set."""

import math

import pytest
import torch
from conftest import tiny_pipeline

from benchmarks import appearance_parts


def test_measures_by_hand():
    """Assert the PSNR of a known error under a mask alone, and the sharpness of half the contrast."""
    truth = torch.zeros(1, 3, 4, 4)
    images, mask = truth.clone(), torch.zeros(1, 4, 4)
    images[..., :2] = 0.2  # an error of 0.1 in [0, 1]
    mask[..., :2] = 1
    assert appearance_parts.masked_psnr(images, truth, mask) == pytest.approx(20.0, abs=1e-4)
    assert math.isnan(appearance_parts.masked_psnr(images, truth, torch.zeros_like(mask)))
    stripes = torch.tensor([-1.0, 1.0]).repeat(2).expand(1, 3, 4, 4)
    whole = torch.ones(1, 4, 4)
    assert appearance_parts.sharpness(stripes / 2, stripes, whole) == pytest.approx(0.5)
    assert appearance_parts.shown([1.0, float("nan"), 3.0]).startswith("2.00 [1.00, 3.00")


def test_the_tables(tmp_path, capsys, rendered_heads):
    """Assert a row for each way and kind; plain pasting is what a new fuser makes, and nothing is NaN."""
    pipe = tiny_pipeline(appearance=True)
    pipe.register_to_config(default_num_inference_steps=1)
    pipe.save_pretrained(tmp_path / "pipe")
    words = ["--num_identities", "1", "--num_target_views", "2"]
    appearance_parts.main([str(rendered_heads), "--checkpoint", str(tmp_path / "pipe"), *words])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 6 + 1 + 3 + 1 + 4
    assert not [line for line in lines if "nan" in line]
    assert lines[6].startswith("| the UNet's view alone")
    assert all(float(line.split("|")[2].split()[0]) > 5 for line in lines[1:7])
