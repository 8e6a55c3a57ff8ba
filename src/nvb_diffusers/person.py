"""Several photos of one person in one call: what one photo does not show, another may (ours, beyond the paper).

    views = pipe(conditioning=read_person(pipe, [a, b, c], cameras)).images

The photos are encoded as a batch, each for the same cameras. Then, for each view, their features are averaged, those of
photos from nearby most, and every pixel is carried from the photo that sees it best.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from .camera import angle_between_cameras
from .conditioning import Conditioning
from .pipeline_inputs import Cameras, ImageInput, read_cameras
from .pipeline_nvb_face import NVBFacePipeline

NEAR_DEG = 12.0  # angle between the cameras of a photo and a view over which the weight of its features falls to 1/e
CHOICE_POWER = 2  # how much the best photo of a pixel outweighs the others: their mean would be blurred


def read_person(
    pipe: NVBFacePipeline,
    faces: Sequence[ImageInput],
    cameras: Cameras,
    num_inference_steps: int | None = None,
    source_cameras: Cameras | None = None,
    view_batch_size: int | None = None,
) -> Conditioning:
    """Read B face crops of one person, for views at cameras.

    Args:
        pipe: with a view transformer.
        faces: of `read_face`, at least one.
        cameras: (V, 25), or (yaw, pitch) in degrees.
        num_inference_steps: as in `pipe.encode`, and so are the others.
        source_cameras: (B, 25); None for predicted ones.
        view_batch_size: feature maps at a time.

    Returns:
        A conditioning of one image, for `pipe(conditioning=...)`. Its source camera and its own backdrop are the first
        photo's.

    Raises:
        ValueError: as a call.
    """
    conditioning = pipe.encode(list(faces), cameras, num_inference_steps, source_cameras, view_batch_size)
    return join_photos(conditioning, cameras)


def join_photos(conditioning: Conditioning, cameras: Cameras) -> Conditioning:
    """The conditioning of one person from that of B photos.

    Args:
        conditioning: of `pipe.encode` with a list of photos.
        cameras: (V, 25), or (yaw, pitch) in degrees, that it was encoded for.

    Returns:
        A conditioning of one image. Its source camera and its own backdrop are the first photo's.

    Raises:
        ValueError: it is of one image alone, or was encoded for another number of cameras.
    """
    if not conditioning.is_batch:
        raise ValueError("`conditioning` is of one photo: encode a list of photos of the person.")
    states, sources = conditioning.encoder_hidden_states, conditioning.source_cameras  # (T, B, V, L, C), (B, 25)
    targets, _ = read_cameras(cameras, None, len(sources))  # (B, V, 25)
    if targets is None or targets.shape[1] != states.shape[2]:
        given = None if targets is None else targets.shape[1]
        raise ValueError(f"`cameras` are {given}, but the photos were encoded for {states.shape[2]}.")
    angles = angle_between_cameras(sources[:, None], targets.to(sources))  # (B, V) in degrees
    weights = torch.softmax(-angles / NEAR_DEG, dim=0).to(states)  # over the photos
    return replace(
        conditioning,
        encoder_hidden_states=(states * weights[:, :, None, None]).sum(dim=1, keepdim=True),
        source_cameras=sources[:1],
        surface=None if conditioning.surface is None else _first(conditioning.surface),
        layers=None if conditioning.layers is None else _joined(conditioning.layers),
        is_batch=False,
    )


def _first(surface: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The first photo's `PhotoSurface`."""
    return type(surface)(*(part[:1] for part in surface))


def _joined(layers: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """`PhotoLayers` (1, V, ...) of those of B photos: at each pixel mostly the photo that sees it best."""
    direct, mirrored, background = layers  # (B, V, 5, S, S) twice, (B, V, 4, S, S)
    trusts = [layer[:, :, 3] * layer[:, :, 4] for layer in (direct, mirrored)] + [background[:, :, 3]]  # (B, V, S, S)
    return type(layers)(*(_chosen(layer, trust) for layer, trust in zip(layers, trusts, strict=True)))


def _chosen(layer: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
    """A layer (1, V, C, S, S) of those of B photos, each pixel weighed by a power of its trust (B, V, S, S)."""
    weights = (trust / trust.amax(dim=0).clamp(min=1e-6)) ** CHOICE_POWER + 1e-6
    weights = weights / weights.sum(dim=0)
    return (layer * weights[:, :, None]).sum(dim=0, keepdim=True)
