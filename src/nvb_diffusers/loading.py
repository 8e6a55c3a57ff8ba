"""A checkpoint as people name it, on the best device there is, in the dtype that suits it, with a sampler by name."""

import re
from pathlib import Path

import diffusers
import torch

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline
from nvb_diffusers.data.fingerprint import fingerprint

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_pipeline(
    checkpoint: str = DEFAULT_CHECKPOINT,
    device: str | None = None,
    dtype: str | None = None,
    scheduler: str | None = None,
    needs_views: bool = False,
) -> NVBFacePipeline:
    """A pipeline that is ready to be called.

    Args:
        checkpoint: folder or Hub id.
        device: as torch names it; None for the best there is.
        dtype: one of `DTYPES`; None for float16 on CUDA, else float32.
        scheduler: one of `SCHEDULERS`; None for the checkpoint's own.
        needs_views: whether a checkpoint that can only restore is refused.

    Raises:
        ValueError: there is no such checkpoint or device, or the checkpoint makes no views.
    """
    device = device or best_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use the device '{device}': {error}") from error
    dtype = dtype or ("float16" if torch.device(device).type == "cuda" else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    pipe = open_checkpoint(checkpoint, DTYPES[dtype])
    if needs_views and pipe.view_transformer is None:
        raise ValueError(f"'{checkpoint}' has no view transformer: it can only restore (nvb-face restore)")
    if scheduler is not None:
        pipe.scheduler = SCHEDULERS[scheduler].from_config(pipe.scheduler.config)
    return pipe.to(device)


def open_checkpoint(checkpoint: str, dtype: torch.dtype = torch.float32) -> NVBFacePipeline:
    """The pipeline of a folder or a Hub id, on the CPU.

    Raises:
        ValueError: it is neither, or this build carries no weights.
    """
    if checkpoint == DEFAULT_CHECKPOINT and not Path(checkpoint).is_dir():
        raise ValueError("this build carries no trained weights: give a pipeline folder or a Hub id (--checkpoint)")
    if not Path(checkpoint).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint):
        raise ValueError(f"'{checkpoint}' is neither a folder nor a Hub id such as user/repo")
    return NVBFacePipeline.from_pretrained(checkpoint, dtype=dtype)


def weights_fingerprint(checkpoint: str) -> str:
    """A text that is equal for a folder with the same files as before; the same for every Hub id."""
    return fingerprint(sorted(path for path in Path(checkpoint).rglob("*") if path.is_file()))


def best_device() -> str:
    """CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
