"""What the pipeline gives back."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput


@dataclass
class NVBFacePipelineOutput(BaseOutput):
    """Views.

    Args:
        images: the V views of the input as PIL images; for a list of inputs a list of such lists. With `output_type`
            "np" (V, H, W, 3) and "pt" (V, 3, H, W) in [0, 1], with "latent" (V, C, h, w); with B in front for a list.
        source_cameras: (B, 25), the camera of each input, as predicted or as given.
    """

    images: Any
    source_cameras: torch.Tensor


@dataclass
class NVBFaceRestorationOutput(BaseOutput):
    """Restored inputs.

    Args:
        images: as the views of `NVBFacePipelineOutput`, with V = 1.
    """

    images: Any


def by_image(images: torch.Tensor | None, num_views: int, is_batch: bool, output_type: str) -> Any:
    """The V views of each image of a batch, or those of the only one.

    Args:
        images: (B*V, 3, S, S) in [-1, 1], or latents (B*V, C, h, w).
        num_views: V.
        is_batch: whether the B images came in a list.
        output_type: pil, np, pt or latent.
    """
    shown = VaeImageProcessor().postprocess(images, output_type=output_type)
    if isinstance(shown, list):
        of_images: Any = [shown[i : i + num_views] for i in range(0, len(shown), num_views)]
    else:
        of_images = shown.reshape(-1, num_views, *shown.shape[1:])
    return of_images if is_batch else of_images[0]
