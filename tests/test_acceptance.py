"""The requirements by hand-made pictures, cameras and summaries."""

from types import SimpleNamespace

import pytest
import torch
from conftest import SIDE, tiny_pipeline
from small_data import write_small_set

from nvb_diffusers.camera import camera_from_angles
from nvb_diffusers.evaluation.acceptance import (
    encoder_embedding,
    identity_triplets,
    measure_requirements,
    obedience,
    requirement_lines,
)
from nvb_diffusers.evaluation.intervals import Interval
from nvb_diffusers.evaluation.methods import InputAsView, write_predictions
from nvb_diffusers.evaluation.results import Entry, Result, SourceCamera, Summary
from nvb_diffusers.evaluation.test_sets import load_test_set, make_test_set


def test_identity_triplets_count_the_nearer_person():
    """Assert 1 for views of the right people, 0 for swapped people, and a share for one person who is mistaken."""
    people = torch.eye(3)[:, None, :, None, None].expand(3, 2, 3, 1, 1)  # (N, V, 3, 1, 1), one channel a person

    def embed(pictures):
        return pictures.flatten(1)

    assert identity_triplets(embed, people, people) == 1
    assert identity_triplets(embed, people.roll(1, dims=0), people) == pytest.approx(0.0)
    mistaken = people.clone()
    mistaken[0] = people[1]  # person 0 looks like person 1: loses to 1, ties with 2
    assert identity_triplets(embed, mistaken, people) == pytest.approx(4 / 6)


def test_obedience_is_the_median_within_the_range():
    """Assert that a view beyond the range is not asked, and that the others count by their median."""
    yaws = torch.tensor([[0.0, -44.0, 60.0, 30.0]])
    asked = camera_from_angles(yaws, 0.0)  # (1, 4, 25)
    seen = camera_from_angles(yaws + torch.tensor([[2.0, 5.0, 90.0, 4.0]]), 0.0)[0]
    marks = torch.arange(4.0).reshape(1, 4, 1, 1, 1).expand(1, 4, 3, 2, 2)  # each picture holds its own number

    def predict(pictures):
        return seen[pictures[:, 0, 0, 0].long()]

    assert obedience(predict, marks, asked) == pytest.approx(4.0, abs=1e-2)
    assert obedience(predict, marks[:, [0, 2]], asked[:, [0, 2]]) == pytest.approx(2.0, abs=1e-2)


def test_requirements_of_a_comparison(tmp_path):
    """Assert leads, angles and verdicts from summaries and pictures, and that what is just missed is missed."""
    write_small_set(tmp_path / "data")
    make_test_set(
        tmp_path / "data", tmp_path / "set", split="train", num_identities=3, num_target_views=2, resolution=64
    )
    test_set = load_test_set(tmp_path / "set")
    write_predictions(InputAsView(), test_set, tmp_path / "views")
    pipe = tiny_pipeline()
    predictor = SimpleNamespace(
        pipeline=pipe, cameras=lambda pictures: camera_from_angles(0, 0).expand(len(pictures), 25)
    )

    def result(name, preset, restored, angle=None):
        tasks = {"restoration": {"PSNR": Entry(restored, restored, restored, 3, 0)}}
        seen = None if angle is None else SourceCamera(Interval(angle, angle, angle), angle)
        return Result(name, preset, Summary(test_set.settings, "", None, {}, tasks, {}), seen)

    rows = [
        result("ours", "mild", 30, 5.0),
        result("ours", "medium", 28, 0.0),
        result("ours", "severe", 26, 7.9),
        result("input", "medium", 26.6),
    ]
    leads = {
        ("input", "medium"): Interval(0.5, 0.1, 0.9),
        ("rival", "medium"): Interval(0.25, -0.1, 0.6),
        ("rival", "severe"): Interval(-0.3, -0.7, -0.1),
    }
    requirements = measure_requirements(test_set, tmp_path / "views", rows, leads, predictor)
    values = [(requirement.value, requirement.met) for requirement in requirements]
    assert values[:2] == [(0.5, True), (0.25, False)]  # a lead that may be none is none
    assert values[3:5] == [(5.0, False), (7.9, True)]
    assert requirements[-1].value == pytest.approx(1.4)
    assert not requirements[-1].met
    assert requirements[5].value == requirements[6].value > 0  # the predictor sees every image from the front
    head, lines = requirement_lines(requirements)
    assert {len(line) for line in lines} == {len(head)}
    assert [line[2:] for line in lines[:3]] == [
        ["0.50 [0.10, 0.90] dB", "met"],
        ["0.25 [-0.10, 0.60] dB", "**missed**"],
        ["-0.30 [-0.70, -0.10] dB", ""],  # another degradation is told and nothing is required of it
    ]
    assert lines[2][0] == "PSNR of the views above `rival`, paired, at `severe`"
    for side in (SIDE, 2 * SIDE):  # an appearance model's views are larger than what the encoder reads
        assert encoder_embedding(predictor, torch.zeros(2, 3, side, side)).shape == (2, 12 * 64)
