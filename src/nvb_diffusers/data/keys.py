"""Randomness that belongs to a sample, not to a process.

Every sample of a run has a number, its `key`. Its degradation, mirror flip, time step and noise are drawn from
generators seeded by (seed, key), so a run resumed at step N, or spread over P processes, sees what one uninterrupted
process sees.
"""

from collections.abc import Iterator, Sequence
from itertools import count, islice

import numpy as np
import torch
from torch.utils.data import Sampler

# What is drawn for a sample comes from separate generators, so that one draw more leaves the others as they were.
TIMESTEPS, NOISE, DROPPED, VIEWS, GIVEN, VARIED, RETURNED, OFFSETS = range(8)

HELD_OUT_KEY = 1 << 40  # about where the keys of validation samples begin: none of training's, the same in every run


class KeySampler(Sampler[int]):
    """Endless keys 0, 1, 2, ... in which each stretch of `length` keys is a new permutation of the data set.

    The key `epoch * length + index` names both the sample (`key % length`) and how many times it was seen.

    Args:
        length: samples in the data set.
        seed: another number gives other permutations.
        start: keys to leave out, when a run resumes.
    """

    def __init__(self, length: int, seed: int, start: int = 0) -> None:
        if length < 1:
            raise ValueError("the data set has no sample to draw from: check its folder and its split")
        self.length, self.seed, self.start = length, seed, start

    def __iter__(self) -> Iterator[int]:
        epoch, position = divmod(self.start, self.length)
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
            for index in order[position:]:
                yield epoch * self.length + int(index)
            epoch, position = epoch + 1, 0


class ShardSampler(Sampler[int]):
    """Endless keys of a data set in shards, in an order in which each reader stays in one shard until it is through.

    All shards follow each other in a new order in every epoch, and the next shard in this endless row goes to the next
    reader; within a shard the samples come in a new order too. Reader r gets the batches r, r + readers, ..., which is
    how batches are dealt to the processes of a run and to the workers of a process. The order of the samples depends on
    the number of readers, the sample of a key does not.

    Args:
        lengths: samples in each shard.
        seed: another number gives other orders.
        batch_size: keys in a row that one reader gets.
        readers: workers that load data, over all processes.
        start: keys to leave out, when a run resumes.
    """

    def __init__(self, lengths: Sequence[int], seed: int, batch_size: int, readers: int, start: int = 0) -> None:
        self.lengths, self.seed, self.start = list(lengths), seed, start
        self.batch_size, self.readers = batch_size, readers

    def __iter__(self) -> Iterator[int]:
        return islice(self._all_keys(), self.start, None)

    def _all_keys(self) -> Iterator[int]:
        streams = [self._reader_keys(reader) for reader in range(self.readers)]
        while True:
            for stream in streams:
                yield from islice(stream, self.batch_size)

    def _reader_keys(self, reader: int) -> Iterator[int]:
        first = np.concatenate([[0], np.cumsum(self.lengths)]).tolist()
        for visit in count(reader, self.readers):
            epoch, place = divmod(visit, len(self.lengths))
            shard = int(np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))[place])
            order = np.random.default_rng([self.seed, epoch, shard + 1]).permutation(self.lengths[shard])
            for index in order.tolist():
                yield epoch * first[-1] + first[shard] + index


def draw_timesteps(keys: torch.Tensor, num_train_timesteps: int, seed: int) -> torch.Tensor:
    """Uniform time steps (B,) of the samples with these keys (B,)."""
    draws = [sample_generator(key, seed, TIMESTEPS).integers(num_train_timesteps) for key in keys.tolist()]
    return torch.tensor(draws, device=keys.device, dtype=torch.long)


def draw_noise(
    keys: torch.Tensor, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Gaussian noise (B, *shape) of the samples with these keys (B,)."""
    draws = [sample_generator(key, seed, NOISE).standard_normal(shape, dtype=np.float32) for key in keys.tolist()]
    return torch.from_numpy(np.stack(draws)).to(keys.device, dtype)


def draw_offsets(keys: torch.Tensor, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Gaussian offsets (B, ..., C, 1, 1) for noise (B, *shape), whose last axes are C, h and w: one for each channel.

    Noise that is a little brighter or darker as a whole lets a model learn bright and dark images.
    """
    shape = (*shape[:-2], 1, 1)
    draws = [sample_generator(key, seed, OFFSETS).standard_normal(shape, dtype=np.float32) for key in keys.tolist()]
    return torch.from_numpy(np.stack(draws)).to(keys.device)


def draw_choices(keys: torch.Tensor, probability: float, seed: int, stream: int) -> torch.Tensor:
    """Of which samples (B,) something is true that has this probability, as booleans."""
    draws = [sample_generator(key, seed, stream).random() < probability for key in keys.tolist()]
    return torch.tensor(draws, device=keys.device)


def sample_generator(key: int, seed: int, stream: int) -> np.random.Generator:
    """The generator of one of the streams of the sample with this key."""
    return np.random.default_rng([seed, stream, key])
