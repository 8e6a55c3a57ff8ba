"""What the appearance model's fuser is given and what it should make of that (ours)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from nvb_diffusers.models.appearance import AppearanceModel, PhotoLayers
from nvb_diffusers.warp import registered_truth, see_surface


class FusionTask(NamedTuple):
    """What the fuser is given and what it should make of it.

    Args:
        layers: the photo's pixels, carried to V targets.
        views: (B, V, 3, s, s), the pipeline's.
        target: (B, V, 3, S, S), the truth registered to the carried pixels.
        truth: (B, V, 3, S, S).
        mask: (B, V, S, S), the true one.
    """

    layers: PhotoLayers
    views: torch.Tensor
    target: torch.Tensor
    truth: torch.Tensor
    mask: torch.Tensor


@torch.no_grad()
def fusion_task(appearance: AppearanceModel, batch: dict[str, torch.Tensor], size: int) -> FusionTask:
    """Read photos, carry them to targets at some side, and register the truth to what was carried.

    Args:
        appearance: its restorer and reader.
        batch: of the photos `degraded_pixel_values` (B, 3, S', S'), `predicted_cameras` and the true `camera_params`
            (B, 25), and the true `depth` (B, S', S'); of the targets `target_pixel_values` (B, V, 3, S', S'),
            `target_camera_params`, `target_depth`, `target_mask`, and the pipeline's `views` of them.
        size: S, which divides S'.
    """
    surface = appearance.read_photo(batch["degraded_pixel_values"], batch["predicted_cameras"], correct=True)
    cameras = batch["target_camera_params"]
    with torch.autocast(cameras.device.type, enabled=False):  # half precision would move pixels
        pixels = at_size(surface.pixel_values, size)
        depth, mask = (at_size(plane[:, None], size)[:, 0] for plane in (surface.depth, surface.mask))
        surface = surface._replace(pixel_values=pixels, depth=depth, mask=mask)
        truth = at_size(batch["target_pixel_values"].flatten(0, 1), size).unflatten(0, cameras.shape[:2])
        seen = see_surface(surface.depth, surface.mask, surface.source_cameras, cameras, size)
        target, _ = registered_truth(
            seen, truth, batch["depth"], batch["camera_params"], batch["target_depth"], cameras
        )
        layers = appearance.project(surface, cameras)
        return FusionTask(layers, batch["views"], target, truth, at_size(batch["target_mask"], size))


def at_size(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (N, C, H, W) with sides of `size` pixels, a part of the given ones, by means of blocks."""
    return F.interpolate(images, (size, size), mode="area")
