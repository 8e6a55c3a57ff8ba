"""The training benchmarks count what they say, and time the very step that the scripts train with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import tiny_encoder, tiny_pipeline, tiny_unet, tiny_view_transformer

from benchmarks import paper_size, pipeline_speed, steps, training_speed
from nvb_diffusers.camera import orbit_cameras


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Forget the processes and precision of the run before, which accelerate keeps for the life of a process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def configs():
    """Shapes of UNet, encoder and view transformer."""
    models = (tiny_unet(), tiny_encoder(), tiny_view_transformer())
    return [{name: value for name, value in model.config.items() if not name.startswith("_")} for model in models]


def test_operations_are_counted_per_view(configs):
    """Assert that the UNet's grow with the views of step 2 and not of step 1, and that a step has more to do."""
    two, four = (steps.count_flops("novel_view", configs, "full", views) for views in (2, 4))
    assert four[0] == 2 * two[0]
    assert two[0] < two[1] < four[1] < 2 * two[1]
    alone, same = (steps.count_flops("restoration", configs, "full", views) for views in (2, 4))
    assert alone == same
    assert alone[0] < alone[1]


@pytest.mark.parametrize("name", steps.STEPS)
def test_what_is_timed_trains(name, configs, tmp_path):
    """Assert that a turn of the step moves what the script trains, and a turn of the bound moves nothing."""
    words = ["--restoration_batch_size", "2", "--novel_view_batch_size", "2", "--num_target_views", "1"]
    for part, config in zip(("unet", "encoder", "view_transformer"), configs, strict=True):
        (tmp_path / f"{part}.json").write_text(json.dumps(config))
        words += [f"--{part}_config", str(tmp_path / f"{part}.json")]
    with training_speed.make_turns(name, training_speed.parse_args(words), "no") as turns:
        parameters = [p for model in turns.step.trained for p in model.parameters()]
        start = [p.detach().clone() for p in parameters]
        turns.bound()
        assert all(torch.equal(p, q) for p, q in zip(parameters, start, strict=True))
        turns.train()
        turns.train()  # the learning rate begins at 0
        assert any(not torch.equal(p, q) for p, q in zip(parameters, start, strict=True))
        assert turns.run.global_step == 2


def test_a_step_that_waits_for_data_says_how_long(monkeypatch):
    """Assert the seconds of a slow loader, and that those of the step are not among them."""
    monkeypatch.setattr(training_speed.Turns, "__init__", lambda self: None)
    turns, clock = training_speed.Turns(), iter([1.0, 4.0, 10.0, 10.5])
    monkeypatch.setattr(training_speed.time, "perf_counter", lambda: next(clock))
    turns.batches, turns.waited, turns.models = iter([{}, {}]), 0.0, []
    turns.step = SimpleNamespace(compute_loss=lambda models, batch: (None, {}))
    turns.run = SimpleNamespace(step=lambda loss, parts: None)
    turns.train()
    turns.train()
    assert turns.waited == 3.5


def test_live_memory_is_the_most_at_a_time():
    """Assert the bytes of what lives together, neither of what has ended nor of views of the same storage."""
    with paper_size.LiveMemory() as memory:
        first = torch.empty(1000)
        del first
        second = torch.empty(500)
        third = second.view(5, 100) + 1
    assert memory.peak == 4000
    assert memory.live == 4 * (500 + 500)
    del third
    assert memory.live == 4 * 500


def test_bytes_of_a_model_count_each_parameter_once():
    """Assert float32 bytes of a layer that two models share, and of its trainable part."""
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert paper_size.model_bytes([layer, torch.nn.Sequential(layer)]) == 4 * 8
    assert paper_size.model_bytes([layer], trainable=True) == 4 * 6


def test_the_pipelines_views_are_those_of_the_naive_loop():
    """Assert that what is saved over views and steps changes nothing, and that the floor is the same loop."""
    pipe = tiny_pipeline()
    pipe.register_to_config(default_guidance_scale=1.5)
    photo, cameras = torch.rand(3, pipe.sample_size, pipe.sample_size), orbit_cameras(3, (-30.0, 30.0))
    source, side = orbit_cameras(1, (0.0, 0.0)), pipe.unet.config.sample_size
    latents = torch.randn(1, pipe.unet.config.in_channels, side, side)
    expected = pipeline_speed.naive(pipe, photo, cameras, latents, 3, source)
    conditioning = pipe.encode(photo, cameras, 3, source)
    views = pipe(conditioning=conditioning, latents=latents[None], output_type="pt").images
    torch.testing.assert_close(views, expected.clamp(0, 1), rtol=0, atol=1e-4)
    states = conditioning.encoder_hidden_states[-1, 0]  # of one step, read at all: other pictures, of the same shape
    assert pipeline_speed.floor(pipe, states, latents, 3, 2).shape == expected.shape


def test_growth_is_the_line_through_the_medians():
    """Assert start and slope by hand-made times, of which one is far off."""
    rows = [pipeline_speed.Row(n, "ours", [1 + 0.5 * n, 9.0, 1 + 0.5 * n], 0.0, 0) for n in (1, 2, 4)]
    assert pipeline_speed.growth(rows, "ours") == pytest.approx((1.0, 0.5))
    floor = pipeline_speed.Row(1, "floor", [0.5, 0.5], 1000.0, 2 * 10**9)
    lines = list(pipeline_speed.report([floor, *rows[:1]], {"matrix product": 4.0}))
    assert "| 1 | floor | 0.500 | 0.500 to 0.500 | 1.00 | 50.0% | 2.00 |" in lines
    assert "| 1 | ours | 1.500 | 1.500 to 9.000 | 3.00 |  |  |" in lines


def test_the_gpu_run_goes_through_without_one(tmp_path):
    """Assert that each stage leaves its log, and that a failing one is named and shows in the status."""
    script = Path(__file__).parents[1] / "benchmarks/gpu_run.sh"
    binary = Path(sys.executable).parent
    environment = os.environ | {"OUT": str(tmp_path / "out"), "SIZE": "default", "VIEWS": "1", "ROUNDS": "1"}
    environment["PATH"] = f"{binary}:{environment['PATH']}"
    done = subprocess.run(["bash", str(script)], env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "floor:" in (tmp_path / "out/default.log").read_text()
    environment["VIEWS"] = "none"
    done = subprocess.run(["bash", str(script)], env=environment, text=True, capture_output=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("failed: default;")
