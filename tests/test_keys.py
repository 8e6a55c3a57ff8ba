"""Keys and what is drawn from them: the same after a resume, over processes, in any batch."""

from itertools import islice

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from nvb_diffusers.data.keys import (
    DROPPED,
    GIVEN,
    HELD_OUT_KEY,
    KeySampler,
    ShardSampler,
    draw_choices,
    draw_noise,
    draw_offsets,
    draw_timesteps,
)


def take(sampler, count):
    return list(islice(sampler, count))


def test_each_epoch_is_a_permutation_and_they_differ():
    """Assert that every stretch of `length` keys names every sample once, in an order that changes."""
    keys = np.array(take(KeySampler(7, seed=3), 35)).reshape(5, 7)
    assert all(sorted(epoch % 7) == list(range(7)) for epoch in keys)
    assert len({tuple(epoch % 7) for epoch in keys}) > 1
    assert (keys // 7 == np.arange(5)[:, None]).all()
    assert take(KeySampler(7, seed=3), 7) != take(KeySampler(7, seed=4), 7)


@pytest.mark.parametrize("start", [0, 1, 6, 7, 20])
def test_a_resumed_sampler_continues(start):
    """Assert that leaving out `start` keys gives the rest of the same sequence."""
    assert take(KeySampler(7, seed=3, start=start), 15) == take(KeySampler(7, seed=3), start + 15)[start:]
    options = {"lengths": [3, 5, 2], "seed": 3, "batch_size": 2, "readers": 2}
    assert take(ShardSampler(**options, start=start), 15) == take(ShardSampler(**options), start + 15)[start:]


def test_an_empty_data_set_is_refused():
    """Assert that an empty set is an error rather than an endless loop."""
    with pytest.raises(ValueError, match="no sample"):
        KeySampler(0, seed=0)


@pytest.mark.parametrize("resume_at", [0, 2])
def test_two_processes_share_the_batches_of_one(resume_at):
    """Assert that step n of two processes holds the keys of step n of one process with the double batch."""
    steps, batch = 5, 3

    def keys_of(num_processes, process):
        per_process = batch if num_processes == 2 else 2 * batch
        sampler = KeySampler(11, seed=1, start=resume_at * 2 * batch)
        loader = DataLoader(range(10**9), batch_size=per_process, sampler=sampler, drop_last=True)
        loader = prepare_data_loader(loader, num_processes=num_processes, process_index=process, put_on_device=False)
        return [keys.tolist() for keys in islice(loader, steps)]

    alone, first, second = keys_of(1, 0), keys_of(2, 0), keys_of(2, 1)
    assert [a + b for a, b in zip(first, second, strict=True)] == alone


def test_shard_sampler_visits_every_sample_equally_often():
    """Assert that each reader stays in a shard until it is through, and that the shards of an epoch are dealt once."""
    lengths, readers, batch = [4, 2, 6], 2, 2
    first = np.cumsum([0, *lengths])
    keys = take(ShardSampler(lengths, seed=5, batch_size=batch, readers=readers), 4 * 12 * readers)
    for reader in range(readers):
        own = [k for i in range(reader, len(keys) // batch, readers) for k in keys[i * batch : (i + 1) * batch]]
        shards = [(key // 12, int(np.searchsorted(first, key % 12, "right")) - 1) for key in own]
        changes = [shard for shard, before in zip(shards, [None, *shards], strict=False) if shard != before]
        assert len(changes) == len(set(changes)), "a reader came back to a shard it had left"
        for epoch, shard in changes[:-1]:
            inside = [key % 12 for key, place in zip(own, shards, strict=True) if place == (epoch, shard)]
            assert sorted(inside) == list(range(first[shard], first[shard + 1]))
    assert len(set(keys)) == len(keys), "two readers read the same sample"


def test_draws_depend_on_the_key_alone():
    """Assert that time step, noise and dropping of a sample do not depend on the batch it is in."""
    keys = torch.tensor([5, 9, HELD_OUT_KEY + 1])
    timesteps, noise = draw_timesteps(keys, 1000, seed=2), draw_noise(keys, (4, 3, 2), seed=2)
    dropped = draw_choices(keys, 0.5, 2, DROPPED)
    for i in range(3):
        assert draw_timesteps(keys[i : i + 1], 1000, seed=2).item() == timesteps[i].item()
        assert torch.equal(draw_noise(keys[i : i + 1], (4, 3, 2), seed=2)[0], noise[i])
        assert draw_choices(keys[i : i + 1], 0.5, 2, DROPPED).item() == dropped[i].item()
    assert not torch.equal(noise, draw_noise(keys, (4, 3, 2), seed=3))


def test_offsets_are_one_for_each_channel():
    """Assert a number for each view and channel of a sample, of unit deviation, that depends on its key alone."""
    keys = torch.tensor([5, 9])
    offsets = draw_offsets(keys, (3, 4, 8, 6), seed=2)
    assert offsets.shape == (2, 3, 4, 1, 1)
    assert torch.equal(draw_offsets(keys[1:], (3, 4, 8, 6), seed=2)[0], offsets[1])
    assert not torch.equal(offsets[0], offsets[1])
    assert not torch.equal(offsets[..., 0, 0], draw_noise(keys, (3, 4), seed=2))
    assert draw_offsets(torch.arange(500), (4, 8, 8), seed=0).std() == pytest.approx(1.0, abs=0.05)


def test_draws_have_the_right_statistics():
    """Assert uniform time steps, unit noise, and the share of dropped samples."""
    keys = torch.arange(2000)
    timesteps = draw_timesteps(keys, 50, seed=0)
    assert timesteps.min() == 0
    assert timesteps.max() == 49
    assert abs(timesteps.float().mean() - 24.5) < 1.0  # the standard error is 0.32
    noise = draw_noise(keys[:200], (4, 8, 8), seed=0)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs(draw_choices(keys, 0.2, 0, DROPPED).float().mean() - 0.2) < 0.04
    assert not draw_choices(keys, 0.0, 0, DROPPED).any()
    assert draw_choices(keys, 1.0, 0, DROPPED).all()
    together = draw_choices(keys, 0.5, 0, DROPPED) == draw_choices(keys, 0.5, 0, GIVEN)
    assert abs(together.float().mean() - 0.5) < 0.05, "the two choices are not independent"
