"""A photo read once, for cameras that come one after the other: on a page, in a game, while somebody drags.

    reading = read_once(pipe, face)
    pipe(conditioning=look(pipe, reading, [(20, 0)]))

What does not depend on the cameras (features, source camera, surface) is kept; `look` adds what does. Both together are
what `pipe.encode` does at once.
"""

from dataclasses import dataclass

import torch

from .conditioning import Conditioning, encode_views, find_cameras
from .pipeline_inputs import Cameras, ImageInput, read_cameras
from .pipeline_nvb_face import NVBFacePipeline


@dataclass(frozen=True)
class Reading:
    """What one photo says, whatever the cameras.

    Args:
        features: (T, 1, C, 8, 8).
        timesteps: (T,), all different, the smallest first.
        num_inference_steps: the denoising steps that they belong to.
        source_cameras: (1, 25), predicted.
        surface: what the appearance model read; None without one.
    """

    features: torch.Tensor
    timesteps: torch.Tensor
    num_inference_steps: int
    source_cameras: torch.Tensor
    surface: tuple[torch.Tensor, ...] | None


@torch.no_grad()
def read_once(pipe: NVBFacePipeline, face: ImageInput, num_inference_steps: int | None = None) -> Reading:
    """Read an aligned, square face crop.

    Args:
        pipe: with a view transformer.
        face: of `read_face`.
        num_inference_steps: denoising steps of the views to come; None for what suits the checkpoint.

    Raises:
        ValueError: as a call.
    """
    pipe._check_components(for_views=True)
    timesteps, features = pipe._encode_images([face], num_inference_steps, None)
    photos = pipe.preprocess_images([face], pipe.sample_size)  # (1, 3, S, S)
    sources, surface = find_cameras(pipe.view_transformer, pipe.appearance, features, photos, None)
    return Reading(features, timesteps, pipe._num_steps(num_inference_steps), sources, surface)


@torch.no_grad()
def look(pipe: NVBFacePipeline, reading: Reading, cameras: Cameras) -> Conditioning:
    """The conditioning of views at cameras (V, 25), or (yaw, pitch) in degrees.

    Raises:
        ValueError: a camera is none.
    """
    targets, _ = read_cameras(cameras, None, 1)  # (1, V, 25)
    assert targets is not None  # cameras were given
    targets = targets.to(reading.features.device)
    views = encode_views(
        pipe.view_transformer, reading.features, reading.timesteps, targets, reading.source_cameras
    )  # (T, 1, V, C, 8, 8)
    return Conditioning(
        encoder_hidden_states=views.flatten(4).mT,
        timesteps=reading.timesteps,
        num_inference_steps=reading.num_inference_steps,
        source_cameras=reading.source_cameras,
        surface=reading.surface,
        layers=None if reading.surface is None else pipe.appearance.project(reading.surface, targets),
        is_batch=False,
    )
