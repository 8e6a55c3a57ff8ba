"""The training benchmarks count what they say, and time the very step that the scripts train with."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import tiny_encoder, tiny_unet, tiny_view_transformer

from benchmarks import paper_size, steps, training_speed


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
