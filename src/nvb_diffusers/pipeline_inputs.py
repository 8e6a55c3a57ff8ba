"""What the pipeline is given, read and checked: components, weights files, pictures and cameras."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin, SchedulerMixin, UNet2DConditionModel
from PIL import Image

from .camera import camera_from_angles
from .data.images import load_photo

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SMALLEST_SIDE = 8  # pixels; below it a picture holds no face

ImageInput = Image.Image | str | Path | np.ndarray | torch.Tensor
Cameras = torch.Tensor | np.ndarray | Sequence[Any]


def check_components(
    image_encoder: ModelMixin,
    view_transformer: ModelMixin | None,
    unet: UNet2DConditionModel,
    vae: ModelMixin,
    scheduler: SchedulerMixin,
) -> None:
    """Raise a ValueError where widths do not fit, or where the scheduler's prediction type is unknown."""
    width = unet.config.cross_attention_dim
    if image_encoder.config.out_channels != width:
        raise ValueError(
            f"The image encoder's features are {image_encoder.config.out_channels} wide, but the UNet's "
            f"cross-attention reads {width}: `nvb_diffusers.models.unet.convert_unet` changes the UNet."
        )
    if view_transformer is not None and view_transformer.config.in_channels != width:
        raise ValueError(
            f"The view transformer's features are {view_transformer.config.in_channels} wide, but the UNet's "
            f"cross-attention reads {width}."
        )
    if vae.config.latent_channels != unet.config.in_channels:
        raise ValueError(
            f"The VAE's latents have {vae.config.latent_channels} channels, but the UNet takes "
            f"{unet.config.in_channels}."
        )
    prediction_type = scheduler.config.get("prediction_type")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"The scheduler predicts {prediction_type!r}, but one of {PREDICTION_TYPES} is accepted.")


def refuse_pickle(kwargs: dict[str, Any], weights_file: str | Path | None = None) -> None:
    """Take `use_safetensors` out of `kwargs`; raise a ValueError where it is False or the file is of another kind."""
    if kwargs.pop("use_safetensors", True) is False:
        raise ValueError("`use_safetensors=False` was given, but only safetensors weights are loaded, never a pickle.")
    if weights_file is not None and Path(weights_file).suffix != ".safetensors":
        raise ValueError(f"{weights_file} is no .safetensors file, and a pickle is refused: convert it first.")


def image_list(image: Any) -> list[ImageInput]:
    """The pictures of a list, a tuple or a batch (B, ...); anything else is one picture, which is read later."""
    if isinstance(image, list | tuple) or (isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 4):
        return list(image)
    return [image]


def read_image(image: ImageInput, size: int) -> Image.Image | torch.Tensor:
    """A square face crop, resized: a PIL image in RGB, or a tensor (1, 3, S, S) in [0, 1]."""
    if isinstance(image, str | Path | Image.Image):
        image = load_photo(image)
        _check_side(*image.size)
        return image.resize((size, size), Image.Resampling.LANCZOS)
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.array(image)).movedim(-1, 0)  # a copy, as torch takes no read-only arrays
    elif isinstance(image, torch.Tensor):
        tensor = image
    else:
        raise ValueError(f"An image is a {type(image).__name__}, but a PIL image, path, array or tensor is accepted.")
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(
            f"An image has shape {tuple(image.shape)}, but an array (H, W, 3) or a tensor (3, H, W) is accepted."
        )
    _check_side(tensor.shape[2], tensor.shape[1])
    low, high = tensor.aminmax()
    if not (tensor.is_floating_point() and low >= 0 and high <= 1):  # which is also false for NaN
        raise ValueError(
            f"An image's pixels are {tensor.dtype} from {low:.4g} to {high:.4g}, but floating-point numbers from 0 to "
            "1 are accepted."
        )
    pixels = tensor[None].float()
    if tensor.shape[1] != size:
        pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return pixels


def _check_side(width: int, height: int) -> None:
    """Raise a ValueError where a picture's size in pixels is not that of a face crop."""
    if width != height or width < SMALLEST_SIDE:
        raise ValueError(
            f"An image is {width}x{height}, but a square face crop of at least {SMALLEST_SIDE} pixels is needed: "
            "`nvb_diffusers.read_face` makes one from any photo."
        )


def camera_tensor(cameras: Cameras, name: str) -> torch.Tensor:
    """Labels (..., 25) as given, or those of (yaw, pitch) pairs in degrees (V, 2); of one label (25,), (1, 25)."""
    try:
        tensor = torch.as_tensor(cameras if isinstance(cameras, torch.Tensor) else np.array(cameras)).float()
    except (TypeError, ValueError):
        raise ValueError(
            f"`{name}` are no numbers in rows of equal length: a tensor (V, 25) or (B, V, 25), or a sequence of "
            "(yaw, pitch) in degrees is accepted."
        ) from None
    if tensor.ndim == 2 and tensor.shape[1] == 2:
        yaw_deg, pitch_deg = tensor.unbind(-1)
        return camera_from_angles(yaw_deg, pitch_deg)
    return tensor[None] if tensor.shape == (25,) else tensor
