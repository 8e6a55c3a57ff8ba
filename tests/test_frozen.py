"""Frozen weights in half precision."""

import torch
from torch import nn

from nvb_diffusers.training.frozen import FrozenWeights


def test_frozen_layers_are_halved_and_come_back_to_the_bit():
    """Assert which parameters are in half precision meanwhile: those of layers that autocast casts, and frozen."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Linear(5, 6), nn.Linear(6, 7))
    model.requires_grad_(False)[3].requires_grad_(True)
    model[2].bias.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = FrozenWeights([model], "bf16")
    for _ in range(2):
        frozen.halve()
        halved = {name for name, value in model.named_parameters() if value.dtype == torch.bfloat16}
        assert halved == {"0.weight", "0.bias", "2.weight"}
        with torch.autocast("cpu", torch.bfloat16):
            assert model[:2](torch.ones(1, 3, 2, 2)).shape == (1, 4, 2, 2)
        frozen.make_whole()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_autocast_nothing_is_halved():
    """Assert that a run in full precision keeps all weights as they are."""
    layer = nn.Linear(2, 3).requires_grad_(False)
    FrozenWeights([layer], "no").halve()
    assert layer.weight.dtype == torch.float32
