"""What the pipeline gives back."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput

from .conditioning import Conditioning
from .pipeline_inputs import Background


@dataclass
class NVBFacePipelineOutput(BaseOutput):
    """Views.

    Args:
        images: the V views of the input as PIL images; for a list of inputs a list of such lists. With `output_type`
            "np" (V, H, W, 3) and "pt" (V, 3, H, W) in [0, 1], with "latent" (V, C, h, w); with B in front for a list.
        source_cameras: (B, 25), the camera of each input, as predicted or as given.
        evidence: (V, 3, H, W), or (B, V, 3, H, W): how much of each pixel is seen in the photo, seen in its mirror
            image, and invented, which sum to 1. None for latents, and of a pipeline without an appearance model, whose
            views are invented as a whole.
    """

    images: Any
    source_cameras: torch.Tensor
    evidence: torch.Tensor | None = None


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


def at_size(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (N, 3, S, S) of this side, by cubic interpolation where it is another."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True)


def fuse_views(
    appearance: ModelMixin,
    views: torch.Tensor,
    conditioning: Conditioning,
    background: Background,
    view_batch_size: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B*V, 3, S, S) and evidence (B, V, 3, S, S) of views (B*V, 3, s, s) and the photos' own pixels.

    Args:
        appearance: the model that read the photos.
        views: as decoded, in [-1, 1].
        conditioning: of these views.
        background: as in a call.
        view_batch_size: views at a time.
    """
    shape = conditioning.encoder_hidden_states.shape[1:3]  # (B, V)
    fused = appearance.fuse(conditioning.layers, views.unflatten(0, shape), view_batch_size)
    images = fused.pixel_values
    if background != "turn":
        images = appearance.on_backdrop(fused, conditioning.surface, background)
    return images.flatten(0, 1), fused.evidence
