"""Conditioning: what is known of every view at every time step before any noise."""

from dataclasses import dataclass

import torch
from diffusers import ModelMixin

from .camera import average_cameras

BATCH = 32  # feature maps at a time, where `view_batch_size` does not say


@dataclass(frozen=True)
class Conditioning:
    """What is known of every view at every time step before any noise: made by `NVBFacePipeline.encode`.

    Args:
        encoder_hidden_states: (T, B, V, L, C), the features of each view that the UNet's cross-attention reads.
        timesteps: (T,), all different, the smallest first.
        num_inference_steps: the denoising steps that they belong to.
        source_cameras: (B, 25), the camera of each input, as predicted or as given.
        surface: what the appearance model read of the photos, a `PhotoSurface`; None without that model.
        layers: the photos' pixels as each view's camera sees them, `PhotoLayers`; None without that model.
        is_batch: whether several images were given, so that the views come as a list for each.
    """

    encoder_hidden_states: torch.Tensor
    timesteps: torch.Tensor
    num_inference_steps: int
    source_cameras: torch.Tensor
    surface: tuple[torch.Tensor, ...] | None
    layers: tuple[torch.Tensor, ...] | None
    is_batch: bool


def encode_images(
    image_encoder: ModelMixin, pixel_values: torch.Tensor, timesteps: torch.Tensor, view_batch_size: int | None = None
) -> torch.Tensor:
    """Features (T, B, C, 8, 8) of images (B, 3, S, S) at each of the time steps (T,) (Eq. 1)."""
    num_steps, num_images = len(timesteps), len(pixel_values)
    timesteps = timesteps.to(pixel_values.device)
    index = torch.arange(num_steps * num_images)
    features = [
        image_encoder(pixel_values[i % num_images], timesteps[i // num_images]).sample
        for i in index.split(view_batch_size or BATCH)
    ]
    return torch.cat(features).unflatten(0, (num_steps, num_images))


def mean_cameras(
    view_transformer: ModelMixin, features: torch.Tensor, view_batch_size: int | None = None
) -> torch.Tensor:
    """Cameras (B, 25), one for the whole run: the mean of those predicted from features (T, B, C, 8, 8) (Eq. 3)."""
    parts = features.flatten(0, 1).to(view_transformer.dtype).split(view_batch_size or BATCH)
    predicted = torch.cat([view_transformer.predict_camera(part) for part in parts])
    return average_cameras(predicted.unflatten(0, features.shape[:2]))


def find_cameras(
    view_transformer: ModelMixin,
    appearance: ModelMixin | None,
    features: torch.Tensor,
    photos: torch.Tensor,
    given: torch.Tensor | None,
    view_batch_size: int | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
    """Source cameras (B, 25), given or predicted, and the surface that the appearance model reads, if there is one.

    Args:
        view_transformer: predicts cameras from features.
        appearance: corrects them by the photo's pixels.
        features: (T, B, C, 8, 8) of the images.
        photos: (B, 3, S, S) in [-1, 1], the same images for the appearance model.
        given: (B, 25), None for predicted ones.
        view_batch_size: feature maps at a time.
    """
    sources = mean_cameras(view_transformer, features, view_batch_size) if given is None else given
    sources = sources.to(features.device)
    if appearance is None:
        return sources, None
    surface = appearance.read_photo(photos, sources, correct=given is None)
    return surface.source_cameras, surface


def encode_views(
    view_transformer: ModelMixin,
    features: torch.Tensor,
    timesteps: torch.Tensor,
    cameras: torch.Tensor,
    source_cameras: torch.Tensor,
    view_batch_size: int | None = None,
) -> torch.Tensor:
    """Features (T, B, V, C, 8, 8) of every view: one volume for each image and step, however many the views (Eq. 3-6).

    Args:
        view_transformer: makes them.
        features: (T, B, C, 8, 8) of the images.
        timesteps: (T,) that they are of.
        cameras: (B, V, 25) of the views.
        source_cameras: (B, 25) of the images, one for the whole run.
        view_batch_size: feature maps at a time.
    """
    limit = view_batch_size or BATCH
    num_steps, num_images = features.shape[:2]
    views = []
    for part, part_timesteps, part_sources, part_targets in zip(
        features.flatten(0, 1).to(view_transformer.dtype).split(limit),
        timesteps.to(features.device).repeat_interleave(num_images).split(limit),
        source_cameras.repeat(num_steps, 1).split(limit),
        cameras.repeat(num_steps, 1, 1).split(limit),
        strict=True,
    ):
        source = view_transformer.read_source(part, part_timesteps, part_sources)
        volume = view_transformer.build_volume(source)  # (n, C, Z, Y, X)
        # Contiguous, so that rounding does not depend on the number of views.
        projected = [
            view_transformer.project(volume, source, some.contiguous())
            for some in part_targets.split(max(1, limit // len(volume)), dim=1)
        ]
        views.append(torch.cat(projected, dim=1))
    return torch.cat(views).unflatten(0, (num_steps, num_images))
