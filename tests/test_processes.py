"""Runs of the training scripts that several processes share."""

from shutil import copytree

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import LATENT_SHAPE, SIDE
from safetensors.torch import load_file
from training_runs import FSDP, STEPS, arguments, assert_equal, curve, gradients, run, run_together, weights

from nvb_diffusers import NVBFacePipeline

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


EXTRA = {
    "restoration": ["--conditioning_dropout", 0.3],
    "novel_view": ["--camera_conditioning", "mixed", "--train_unet"],
}


def both_steps(place, folder, name, *extra, **environment):
    """Run both steps by two processes, each with one sample of a batch of two."""
    common = ["--learning_rate", 1e-4, *extra]
    commands = [
        (f"train_{script}", arguments(script, place, folder / f"{script}-{name}", *EXTRA[script], *common))
        for script in STEPS
    ]
    run_together(folder / f"{name}.py", commands, **environment)


def pictures(folder):
    """What the pipeline that a run saved makes of a plain picture: two views, or after step 1 its restoration."""
    pipe = NVBFacePipeline.from_pretrained(folder / "pipeline")
    photo = torch.full((3, SIDE, SIDE), 0.4)
    noise = torch.randn(1, 2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    if pipe.view_transformer is None:
        return pipe.restore(photo, latents=noise[:, :1], output_type="pt").images
    return pipe(photo, [(0, 0), (30, 0)], latents=noise, output_type="pt").images


@pytest.fixture(scope="module")
def one(place, tmp_path_factory):
    """Four steps of both scripts by one process, with a checkpoint after the second and the last."""
    folder = tmp_path_factory.mktemp("one")
    common = ["--max_train_steps", 4, "--checkpointing_steps", 2, "--learning_rate", 1e-4, "--train_batch_size", 2]
    for script in STEPS:
        assert run(script, place, folder / f"{script}-one", *EXTRA[script], *common) == 0
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
    return folder


def test_two_processes_are_one_with_the_double_batch(place, one, tmp_path):
    """Assert equal losses and weights after four steps of both scripts, by two processes and by one."""
    more = ["--max_train_steps", 4, "--train_batch_size", 1, "--validation_steps", 1, "--max_train_seconds", 600]
    both_steps(place, tmp_path, "two", *more)
    for script in STEPS:
        alone, two = one / f"{script}-one", tmp_path / f"{script}-two"
        assert curve(two) == pytest.approx(curve(alone), rel=1e-5)
        assert_equal(gradients(alone), gradients(two), atol=1e-6, rtol=1e-5)
        assert_equal(weights(alone), weights(two), atol=2e-5, rtol=1e-4)
        states = sorted(path.name for path in (two / "checkpoint-4").glob("random_states_*"))
        assert states == ["random_states_0.pkl", "random_states_1.pkl"]


def test_sharded_models_learn_what_whole_ones_learn(place, one, tmp_path):
    """Assert one process's losses, validations and views, resumed from rows by two processes and by one, whole."""
    four = ["--max_train_steps", 4, "--checkpointing_steps", 2, "--train_batch_size", 1, "--validation_steps", 3]
    both_steps(place, tmp_path, "sharded", *four, **FSDP)
    for script in STEPS:
        alone, sharded = one / f"{script}-one", tmp_path / f"{script}-sharded"
        assert curve(sharded) == pytest.approx(curve(alone), rel=1e-4)
        assert curve(sharded, "validation_psnr")[-1] == pytest.approx(curve(alone, "validation_psnr")[-1], abs=1e-3)
        torch.testing.assert_close(pictures(sharded), pictures(alone), atol=1e-4, rtol=0)
        names = sorted(path.name for path in (sharded / "checkpoint-2").iterdir())
        assert names == ["sharded-00001-of-00002.safetensors", "sharded-00002-of-00002.safetensors", "sharded.json"]
        assert_rows(sharded / "checkpoint-4", alone)
        for name in ("again", "whole"):
            copytree(sharded / "checkpoint-2", tmp_path / f"{script}-{name}/checkpoint-2")
    resumed = [*four, "--resume_from_checkpoint", "latest"]
    both_steps(place, tmp_path, "again", *resumed, **FSDP)
    for script in STEPS:
        common = [*EXTRA[script], "--learning_rate", 1e-4, *resumed, "--train_batch_size", 2]
        assert run(script, place, tmp_path / f"{script}-whole", *common) == 0
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        rest = curve(one / f"{script}-one")[2:]
        for name in ("again", "whole"):
            folder = tmp_path / f"{script}-{name}"
            assert curve(folder) == pytest.approx(rest, rel=1e-4)
            expected = pictures(one / f"{script}-one")
            torch.testing.assert_close(pictures(folder), expected, atol=1e-4, rtol=0)


def test_a_sharded_autoencoder_learns_what_a_whole_one_learns(place, tmp_path):
    """Assert one process's losses and pictures, of a model that trains from its first layer to its last."""
    words = arguments("autoencoder", place, tmp_path / "sharded", "--train_batch_size", 2, "--validation_steps", 2)
    run_together(tmp_path / "sharded.py", [("train_autoencoder", words)], **FSDP)
    assert run("autoencoder", place, tmp_path / "one", "--validation_steps", 2) == 0
    for name in ("loss", "validation_psnr"):
        assert curve(tmp_path / "sharded", name) == pytest.approx(curve(tmp_path / "one", name), rel=1e-4)


def assert_rows(folder, alone):
    """Assert that the rows of two processes, one after the other, are the weights and gradients of one process."""
    first, second = (load_file(path) for path in sorted(folder.glob("*.safetensors")))
    assert first.keys() == second.keys()
    shared = sum(bool(first[name].numel() and second[name].numel()) for name in first if name.startswith("weights"))
    assert shared > len(gradients(alone)) / 2  # rows of most parameters are on both
    for number, mean in gradients(alone).items():
        rows = torch.cat([half[f"optimizer.{number}.exp_avg"] for half in (first, second)])
        torch.testing.assert_close(rows, mean, atol=1e-6, rtol=1e-4)
