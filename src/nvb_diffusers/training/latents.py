"""Images to diffusion latents, with any of diffusers' autoencoders, and a cache of them on disk."""

import hashlib
import json
from pathlib import Path

import datasets
import numpy as np
import torch
from diffusers import ModelMixin
from tqdm.auto import tqdm

from nvb_diffusers.data.datasets import file_names, read_record
from nvb_diffusers.data.fingerprint import fingerprint
from nvb_diffusers.data.images import resized
from nvb_diffusers.files import read_json, replaced_file, write_whole


def encode_latents(vae: ModelMixin, pixel_values: torch.Tensor) -> torch.Tensor:
    """Scaled latents (B, C, h, w) of images (B, 3, S, S) in [-1, 1]; of a distribution, its mode.

    AutoencoderKL gives a distribution, AutoencoderTiny `latents`, AutoencoderDC `latent`.
    """
    encoded = vae.encode(pixel_values.to(vae.dtype))
    if hasattr(encoded, "latent_dist"):
        latents = encoded.latent_dist.mode()
    else:
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


def latent_side(vae: ModelMixin, resolution: int) -> int:
    """Side of the latents of images of a resolution."""
    widths = vae.config.get("block_out_channels") or vae.config.get("encoder_block_out_channels")
    return resolution // 2 ** (len(widths) - 1)


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
    """Latents (N, 2, C, h, w) in float16 of every image and of its mirror image, from disk where they are there.

    Args:
        vae: on the device that it should run on.
        records: N images.
        resolution: at which the images are encoded.
        path: a .npy file, written at once; a note beside it says what it holds.
        batch_size: images at a time.

    Raises:
        ValueError: the file holds the latents of another autoencoder, resolution or list of images.
    """
    path = Path(path)
    note, content = path.with_name(f"{path.name}.json"), _describe(vae, records, resolution)
    if path.exists():
        if not note.exists() or read_json(note) != content:
            raise ValueError(f"{path} holds latents of another autoencoder, resolution or data set: remove it")
        return np.load(path, mmap_mode="r")
    write_whole(note, json.dumps(content))
    # Not a memory map, with which a full disk would kill the process instead of raising an error.
    with replaced_file(path) as part, part.open("wb") as file:
        for start in tqdm(range(0, len(records), batch_size), desc="caching latents"):
            indices = range(start, min(start + batch_size, len(records)))
            pixels = np.stack([resized(read_record(records, index)["image"], resolution) for index in indices])
            pixel_values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, S, S)
            pixel_values = pixel_values.to(vae.device)
            both = torch.stack([encode_latents(vae, pixel_values), encode_latents(vae, pixel_values.flip(-1))], dim=1)
            if start == 0:
                header = {"descr": "<f2", "fortran_order": False, "shape": (len(records), *both.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(both.to(torch.float16).cpu().contiguous().numpy().tobytes())
    return np.load(path, mmap_mode="r")


def _describe(vae: ModelMixin, records: datasets.Dataset, resolution: int) -> dict[str, str | int]:
    """What a cache depends on."""
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    weights = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for _, value in sorted(vae.state_dict().items()):
        weights.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    paths = [image["path"] for image in records["image"]]
    images = fingerprint(paths, file_names(records))
    return {"autoencoder": weights.hexdigest()[:16], "resolution": resolution, "images": images}
