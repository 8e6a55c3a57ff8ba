import copy

import torch

from nvb_diffusers.training.optimizer import MuonAdamW, OptimizerSettings

RATE, DECAY = 0.01, 0.1
SETTINGS = OptimizerSettings(RATE, DECAY)


def small_model():
    """Matrices in blocks of pairwise different sizes, and beside them what is none of Muon's."""
    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {
            "proj_in": torch.nn.Linear(3, 5),
            "blocks": torch.nn.ModuleList([torch.nn.Linear(5, 5), torch.nn.Linear(5, 8), torch.nn.Linear(8, 7)]),
            "conv_blocks": torch.nn.ModuleList([torch.nn.Conv2d(7, 7, 1)]),
        }
    )


def train(model, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        hidden = model["proj_in"](torch.randn(6, 3, generator=generator))
        for linear in model["blocks"]:
            hidden = linear(hidden).tanh()
        loss = model["conv_blocks"][0](hidden[..., None, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_muon_has_the_matrices_of_blocks_and_adamw_the_rest():
    """Assert the first step: of a block's matrix an orthogonal one of AdamW's size, of all else the rate itself."""
    model = small_model()
    optimizer = MuonAdamW(model.named_parameters(), SETTINGS)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train(model, optimizer, 1)
    for name, value in model.named_parameters():
        update = (value.detach() - before[name] * (1 - RATE * DECAY)) / RATE
        if name in ("blocks.0.weight", "blocks.1.weight", "blocks.2.weight"):
            singular = torch.linalg.svdvals(update) / (0.2 * max(update.shape) ** 0.5)
            assert singular[2] > 0.5, name  # Newton-Schulz brings all but the smallest into about 0.7 to 1.2
            assert singular[0] < 1.3, name
        else:
            torch.testing.assert_close(update.abs(), torch.ones_like(update), atol=1e-2, rtol=0, msg=name)


def test_a_scheduler_and_a_saved_state_reach_both():
    """Assert that a rate of 0 stops everything, also after loading, and that a loaded optimizer goes on the same."""
    model = small_model()
    optimizer = MuonAdamW(model.named_parameters(), SETTINGS)
    train(model, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    twin = small_model()
    twin.load_state_dict(model.state_dict())
    other = MuonAdamW(twin.named_parameters(), SETTINGS)
    other.load_state_dict(state)
    train(model, optimizer, 2, seed=2)
    train(twin, other, 2, seed=2)
    for (name, value), expected in zip(twin.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(value, expected), name

    torch.optim.lr_scheduler.LambdaLR(other, lambda _: 0.0)
    assert [group["lr"] for group in other.param_groups] == [0.0, 0.0]
    train(twin, other, 1, seed=3)
    for value, expected in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(value, expected)
    assert all(value.grad is not None for value in twin.parameters())
