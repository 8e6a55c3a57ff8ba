"""Randomness that belongs to a sample, not to a process.

Every sample of a run has a number, its `key`. Its degradation, mirror flip, time step and noise are drawn from generators
seeded by (seed, key), so a run resumed at step N, or spread over P processes, sees what one uninterrupted process sees.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

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


def draw_timesteps(keys: torch.Tensor, num_train_timesteps: int, seed: int) -> torch.Tensor:
    """Uniform time steps (B,) of the samples with these keys (B,)."""
    draws = [_generator(key, seed, stream=0).integers(num_train_timesteps) for key in keys.tolist()]
    return torch.tensor(draws, device=keys.device, dtype=torch.long)


def draw_noise(keys: torch.Tensor, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Gaussian noise (B, *shape) of the samples with these keys (B,)."""
    draws = [_generator(key, seed, stream=1).standard_normal(shape, dtype=np.float32) for key in keys.tolist()]
    return torch.from_numpy(np.stack(draws)).to(keys.device, dtype)


def draw_dropped(keys: torch.Tensor, probability: float, seed: int) -> torch.Tensor:
    """Which of the samples (B,) lose their conditioning, as booleans."""
    draws = [_generator(key, seed, stream=2).random() < probability for key in keys.tolist()]
    return torch.tensor(draws, device=keys.device)


def _generator(key: int, seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream, key])
