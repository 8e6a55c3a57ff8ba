"""Pictures at the size of training, as tensors and back, and their PSNR."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import Image


def resized(image: Image.Image, resolution: int, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """Pixels (S, S, 3) of a picture, or of its `box` (left, top, right, bottom); Lanczos where sizes differ."""
    width, height = image.size
    if (width, height) == (resolution, resolution) and box in (None, (0, 0, width, height)):
        return np.asarray(image)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))


def to_pixel_values(pictures: Sequence[np.ndarray | Image.Image]) -> torch.Tensor:
    """(N, 3, S, S) in [-1, 1] of uint8 pictures (S, S, 3)."""
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_images(pixel_values: torch.Tensor) -> list[Image.Image]:
    """PIL images of (N, 3, S, S) in [-1, 1]; values beyond are clipped."""
    scaled = ((pixel_values.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in scaled.permute(0, 2, 3, 1).cpu().numpy()]


def to_grid(*rows: torch.Tensor) -> Image.Image:
    """One picture of rows of equally many pictures (N, 3, S, S) in [-1, 1]."""
    return make_image_grid(to_images(torch.cat(rows)), rows=len(rows), cols=len(rows[0]))


def psnr(pixel_values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each picture (N,), of (N, 3, S, S) in [-1, 1]; values beyond are clipped."""
    error = (pixel_values.float().clamp(-1, 1) - target.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=1e-12))
