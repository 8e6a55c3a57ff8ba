"""Pictures to diffusion latents, with any of diffusers' autoencoders, and a cache of them on disk."""

import os
from pathlib import Path

import datasets
import numpy as np
import torch
from diffusers import ModelMixin
from PIL import Image
from tqdm.auto import tqdm


def encode_latents(vae: ModelMixin, pixel_values: torch.Tensor) -> torch.Tensor:
    """Scaled latents (B, C, h, w) of pictures (B, 3, S, S) in [-1, 1]; of a distribution, its mode.

    AutoencoderKL gives a distribution, AutoencoderTiny `latents`, AutoencoderDC `latent`.
    """
    encoded = vae.encode(pixel_values.to(vae.dtype))
    if hasattr(encoded, "latent_dist"):
        latents = encoded.latent_dist.mode()
    else:
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def with_latents(batch: dict[str, torch.Tensor], vae: ModelMixin) -> dict[str, torch.Tensor]:
    """The batch with `latents` (..., C, h, w) in float32 of its `pixel_values` (..., 3, S, S), unless it has them."""
    if "latents" in batch:
        return batch
    pixel_values = batch["pixel_values"]
    latents = encode_latents(vae, pixel_values.flatten(0, -4)).float()
    return {**batch, "latents": latents.unflatten(0, pixel_values.shape[:-3])}


@torch.no_grad()
def cache_latents(
    vae: ModelMixin, records: datasets.Dataset, resolution: int, path: str | Path, batch_size: int = 64
) -> np.ndarray:
    """Latents (N, 2, C, h, w) in half precision of every picture and of its mirror image, read from `path` if it exists.

    Args:
        vae: the autoencoder; its device is used.
        records: an HF data set with an `image` column of square pictures.
        resolution: side at which the pictures are encoded.
        path: a .npy file, written at once.
        batch_size: pictures at a time.
    """
    path = Path(path)
    if path.exists():
        return np.load(path, mmap_mode="r")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    cache = None
    for start in tqdm(range(0, len(records), batch_size), desc="caching latents"):
        images = records[start : start + batch_size]["image"]
        resized = [image.resize((resolution, resolution), Image.Resampling.LANCZOS) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2)
        pixels = (pixels.float() / 127.5 - 1).to(vae.device)  # (B, 3, S, S)
        both = torch.stack([encode_latents(vae, pixels), encode_latents(vae, pixels.flip(-1))], dim=1)
        if cache is None:
            shape = (len(records), *both.shape[1:])
            cache = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
        cache[start : start + len(images)] = both.cpu().numpy()
    assert cache is not None  # load_records gives no empty split
    cache.flush()
    os.replace(part, path)
    return np.load(path, mmap_mode="r")
