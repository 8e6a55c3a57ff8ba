"""What the pipeline is given, read and checked: components, weights files, images, cameras and noise."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin, SchedulerMixin, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from PIL import Image

from .camera import camera_from_angles, check_camera_params
from .conditioning import Conditioning
from .data.images import load_photo

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
FIDELITY = 1.0  # of a restoration where there is an appearance model
SMALLEST_SIDE = 8  # pixels; below it an image holds no face

ImageInput = Image.Image | str | Path | np.ndarray | torch.Tensor
Cameras = torch.Tensor | np.ndarray | Sequence[Any]
Background = str | tuple[float, float, float]


def check_components(
    image_encoder: ModelMixin,
    unet: UNet2DConditionModel,
    vae: ModelMixin,
    scheduler: SchedulerMixin,
    view_transformer: ModelMixin | None,
) -> None:
    """Raise a ValueError where one is missing, sizes do not fit, or the scheduler's prediction type is unknown."""
    needed = {"image_encoder": image_encoder, "unet": unet, "vae": vae, "scheduler": scheduler}
    for name, component in needed.items():
        if component is None:
            raise ValueError(f"`{name}` is None, but only `view_transformer` and `appearance` may be left out.")
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
    if view_transformer is not None and view_transformer.config.feature_size != image_encoder.config.feature_size:
        raise ValueError(
            f"The view transformer's feature maps have side {view_transformer.config.feature_size}, but the image "
            f"encoder's have {image_encoder.config.feature_size}."
        )
    scaling_factor = vae.config.get("scaling_factor")
    if not isinstance(scaling_factor, int | float) or not math.isfinite(scaling_factor) or scaling_factor == 0:
        raise ValueError(f"The VAE's `scaling_factor` is {scaling_factor!r}, expected a number other than 0.")
    if vae.config.latent_channels != unet.config.in_channels:
        raise ValueError(
            f"The VAE's latents have {vae.config.latent_channels} channels, but the UNet takes "
            f"{unet.config.in_channels}."
        )
    prediction_type = scheduler.config.get("prediction_type")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"The scheduler predicts {prediction_type!r}, but one of {PREDICTION_TYPES} is accepted.")


def check_positive(name: str, value: int | None) -> None:
    """Raise a ValueError where something was given that is no whole number of at least 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
        raise ValueError(f"`{name}` is {value!r}, but it must be a whole number of at least 1.")


def check_denoising(
    num_views: tuple[int, int],
    latent_shape: tuple[int, int, int],
    generator: torch.Generator | list[torch.Generator] | None,
    latents: torch.Tensor | None,
    view_batch_size: int | None,
    output_type: str,
) -> None:
    """Raise a ValueError for noise that does not fit (B, V) views with latents (C, h, w), and for unknown outputs."""
    num_images = num_views[0]
    for one in generator if isinstance(generator, list) else [generator]:
        if one is not None and not isinstance(one, torch.Generator):
            raise ValueError(f"`generator` is {one!r}, but a torch.Generator, or one for each image, is accepted.")
    if isinstance(generator, list) and len(generator) != num_images:
        raise ValueError(f"{len(generator)} generators were given for {num_images} images, but one each is needed.")
    accepted = dict.fromkeys(((*num_views, *latent_shape), (num_images, 1, *latent_shape)))
    if latents is not None:
        if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
            kind = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
            raise ValueError(f"`latents` is of {kind}, but a tensor of floating-point numbers is accepted.")
        if tuple(latents.shape) not in accepted:
            shapes = " or ".join(map(str, accepted))
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}, but {shapes} is accepted.")
        if not latents.isfinite().all():
            raise ValueError("`latents` holds numbers that are not finite.")
    check_positive("view_batch_size", view_batch_size)
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"`output_type` is {output_type!r}, but pil, np, pt or latent is accepted.")


def check_number(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise a ValueError where something is no finite number from `low` to `high`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        accepted = f"{low:g} to {high:g}" if high < math.inf else f"a finite number of at least {low:g}"
        raise ValueError(f"`{name}` is {value!r}, but {accepted} is accepted.")


def check_guidance(guidance_scale: float | None, eta: float) -> None:
    """Raise a ValueError where the UNet's predictions could not be weighed so, nor DDIM's noise."""
    if guidance_scale is not None:
        check_number("guidance_scale", guidance_scale, low=0)
    check_number("eta", eta, low=0, high=1)


def read_defaults(num_inference_steps: int | None, guidance_scale: float | None) -> dict[str, int | float | None]:
    """What calls take that ask for nothing, as a pipeline's config names it.

    Raises:
        ValueError: no call could take it.
    """
    check_positive("default_num_inference_steps", num_inference_steps)
    if guidance_scale is not None:
        check_number("default_guidance_scale", guidance_scale, low=0)
    return {"default_num_inference_steps": num_inference_steps, "default_guidance_scale": guidance_scale}


def read_names(callback: Any, callback_tensor_inputs: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """The tensors that a callback is given: those that one of diffusers' own says it takes, else those asked for.

    Raises:
        ValueError: no callback can be given one of them.
    """
    if callback is not None and not callable(callback):
        raise ValueError(f"`callback_on_step_end` is {callback!r}, but a function is accepted.")
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        callback_tensor_inputs = callback.tensor_inputs
    unknown = [name for name in callback_tensor_inputs if name not in known]
    if unknown:
        raise ValueError(f"Callbacks cannot be given {unknown}, but only {list(known)}.")
    return callback_tensor_inputs


def image_list(image: Any) -> list[ImageInput]:
    """The images of a list, a tuple or a batch (B, ...), or of a list of batches; another is one image, read later.

    Raises:
        ValueError: there is none.
    """
    if image is None:
        raise ValueError("`image` is missing: give one, or the `conditioning` that `encode` made of one.")
    if not isinstance(image, list | tuple) and not _is_batch(image):
        return [image]
    images = [one for item in image for one in (item if _is_batch(item) else [item])]
    if len(images) == 0:
        raise ValueError("The list of images is empty, but at least one is needed.")
    return images


def _is_batch(image: Any) -> bool:
    return isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 4


def read_image(image: ImageInput, size: int) -> Image.Image | torch.Tensor:
    """A square face crop, resized: a PIL image in RGB, or a tensor (1, 3, S, S) in [0, 1]."""
    if isinstance(image, str | Path | Image.Image):
        image = load_photo(image)
        _check_side(*image.size)
        return image.resize((size, size), Image.Resampling.LANCZOS)
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "biuf":
            raise ValueError(
                f"An image's pixels are {image.dtype}, but floating-point numbers from 0 to 1 are accepted."
            )
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
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex():
        kind = "meta" if tensor.is_meta else tensor.dtype if tensor.is_complex() else tensor.layout
        raise ValueError(f"An image is a {kind} tensor, but one of floating-point numbers from 0 to 1 is accepted.")
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
    """Raise a ValueError where an image's size in pixels is not that of a face crop."""
    if width != height or width < SMALLEST_SIDE:
        raise ValueError(
            f"An image is {width}x{height}, but a square face crop of at least {SMALLEST_SIDE} pixels is needed: "
            "`nvb_diffusers.read_face` makes one from any photo."
        )


def camera_tensor(cameras: Cameras, name: str) -> torch.Tensor:
    """Labels (..., 25) as given, or those of (yaw, pitch) pairs in degrees (V, 2); of one label (25,), (1, 25)."""
    try:
        tensor = torch.as_tensor(cameras if isinstance(cameras, torch.Tensor) else np.array(cameras))
        if tensor.is_complex():
            raise TypeError
        tensor = tensor.float()
    except (TypeError, ValueError):
        raise ValueError(
            f"`{name}` are no numbers in rows of equal length: a tensor (V, 25) or (B, V, 25), or a sequence of "
            "(yaw, pitch) in degrees is accepted."
        ) from None
    if tensor.ndim == 2 and tensor.shape[1] == 2:
        yaw_deg, pitch_deg = tensor.unbind(-1)
        if (pitch_deg.abs() > 90).any():
            raise ValueError(f"`{name}` has a pitch of {pitch_deg.abs().max():g} degrees, but -90 to 90 is accepted.")
        return camera_from_angles(yaw_deg, pitch_deg)
    return tensor[None] if tensor.shape == (25,) else tensor


def read_cameras(
    cameras: Cameras | None, source_cameras: Cameras | None, num_images: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Cameras of the views (B, V, 25) and of the B images (B, 25), each None where it was not given.

    Raises:
        ValueError: a shape is another, or a camera is none.
    """
    targets = None if cameras is None else camera_tensor(cameras, "cameras")  # (V, 25) or (B, V, 25)
    if targets is not None:
        if targets.numel() == 0:
            raise ValueError("`cameras` is empty, but at least one view is needed.")
        if targets.ndim not in (2, 3) or (targets.ndim == 3 and len(targets) != num_images):
            raise ValueError(
                f"`cameras` has shape {tuple(targets.shape)}, but (V, 25), ({num_images}, V, 25) or a sequence of "
                "(yaw, pitch) in degrees is accepted."
            )
        check_camera_params(targets, "cameras")
        targets = targets.expand(num_images, -1, -1)
    sources = None if source_cameras is None else camera_tensor(source_cameras, "source_cameras")
    if sources is not None:
        if sources.shape != (num_images, 25):
            raise ValueError(f"`source_cameras` has shape {tuple(sources.shape)}, but ({num_images}, 25) is accepted.")
        check_camera_params(sources, "source_cameras")
    return targets, sources


def count_views(
    image: Any,
    cameras: Cameras | None,
    num_inference_steps: int | None,
    source_cameras: Cameras | None,
    conditioning: Conditioning | None,
) -> tuple[int, int]:
    """How many images B, and views of each V, a call is to make.

    Raises:
        ValueError: a shape is another, a camera is none, or the others were given with a conditioning made of them.
    """
    if conditioning is None:
        num_images = len(image_list(image))
        targets, _ = read_cameras(cameras, source_cameras, num_images)
        return num_images, 1 if targets is None else targets.shape[1]
    if not isinstance(conditioning, Conditioning):
        raise ValueError(f"`conditioning` is a {type(conditioning).__name__}, but only what `encode` made is accepted.")
    given = {
        "image": image,
        "cameras": cameras,
        "num_inference_steps": num_inference_steps,
        "source_cameras": source_cameras,
    }
    clashing = ", ".join(f"`{name}`" for name, value in given.items() if value is not None)
    if clashing:
        raise ValueError(f"{clashing} and `conditioning` were given, which was made with its own: leave out one.")
    return conditioning.encoder_hidden_states.shape[1], conditioning.encoder_hidden_states.shape[2]


def check_background(background: Background, possible: bool) -> None:
    """Raise a ValueError unless it is turn, photo or three numbers from 0 to 1, or where only turn is possible."""
    if isinstance(background, str):
        accepted = background in ("turn", "photo")
    else:
        parts = background if isinstance(background, list | tuple) else ()
        accepted = len(parts) == 3 and all(isinstance(part, Real) and 0 <= part <= 1 for part in parts)
    if not accepted:
        raise ValueError(f"`background` is {background!r}, but turn, photo or (r, g, b) from 0 to 1 is accepted.")
    if background != "turn" and not possible:
        raise ValueError(f"`background` is {background!r}, but a pipeline without an appearance model has only turn.")


def read_fidelity(fidelity: float | None, possible: bool) -> float:
    """The fidelity of a restoration, unasked `FIDELITY` where one is possible; a ValueError for any other number."""
    if fidelity is None:
        return FIDELITY if possible else 0.0
    check_number("fidelity", fidelity, low=0, high=1)
    if fidelity > 0 and not possible:
        raise ValueError(
            f"`fidelity` is {fidelity}, but only images of a pipeline with an appearance model have one: leave it out."
        )
    return float(fidelity)
