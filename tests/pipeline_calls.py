"""How the tests of the pipeline call it: random pictures, given noise, few steps."""

import numpy as np
import torch
from conftest import LATENT_SHAPE, SIDE

from nvb_diffusers.camera import orbit_cameras

STEPS = 2
CAMERAS = orbit_cameras(3, yaw_range_deg=(-40, 40))


def picture(seed=0, side=SIDE):
    """A random picture (H, W, 3) in [0, 1]."""
    return np.random.default_rng(seed).random((side, side, 3), dtype=np.float32)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, *LATENT_SHAPE, generator=seeded(seed))


def views(pipe, image=None, cameras=CAMERAS, **kwargs):
    """The views of a call as an array, in few steps and with a seed."""
    settings = {"num_inference_steps": STEPS, "generator": seeded(), "output_type": "np"}
    return pipe(picture() if image is None else image, cameras, **(settings | kwargs)).images


def difference(first, second):
    """The largest difference of two arrays of one shape."""
    assert first.shape == second.shape
    return np.abs(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)).max()
