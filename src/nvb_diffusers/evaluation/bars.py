"""The bars of a small pipeline: novel views, camera, obedience, identity and restoration, each against a rival."""

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.camera import angle_between_cameras, angles_from_camera, average_cameras
from nvb_diffusers.training.pictures import psnr, resized


def mean_faces(records: datasets.Dataset, cameras: torch.Tensor, resolution: int, neighbours: int = 64) -> torch.Tensor:
    """The training set's mean face at each camera: the mean of the pictures with the nearest orientations.

    Args:
        records: pictures of the training split with their cameras.
        cameras: (N, 25).
        resolution: side of the pictures.
        neighbours: pictures in each mean.

    Returns:
        (N, 3, S, S) in [-1, 1].
    """
    known = torch.tensor(records["camera"], dtype=torch.float32)  # (M, 25)
    faces = []
    for camera in cameras:
        nearest = angle_between_cameras(known, camera.expand_as(known)).argsort()[:neighbours].tolist()
        images = [resized(image, resolution) for image in records[nearest]["image"]]
        mean = np.mean(images, axis=0, dtype=np.float32)
        faces.append(torch.from_numpy(mean / 127.5 - 1).permute(2, 0, 1))
    return torch.stack(faces)


def image_scores(pixel_values: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """PSNR in dB and SSIM (Wang 2004) of each picture (N,), of (N, 3, S, S) in [-1, 1]."""
    clipped = pixel_values.float().clamp(-1, 1)
    ssim = structural_similarity_index_measure(clipped, target, data_range=2.0, reduction="none")
    assert isinstance(ssim, torch.Tensor)
    return psnr(clipped, target), ssim


def generate_views(
    pipeline: NVBFacePipeline,
    sources: torch.Tensor,
    cameras: torch.Tensor | None,
    num_inference_steps: int,
    seed: int,
    batch_size: int = 4,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Views (N, V, 3, S, S) in [-1, 1] of sources (N, 3, S, S) at cameras (N, V, 25), and predicted source cameras.

    Without cameras the sources are restored: V is 1, and no camera is predicted.
    """
    views, source_cameras = [], []
    for start in range(0, len(sources), batch_size):
        images = list(sources[start : start + batch_size] / 2 + 0.5)
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(images))]
        options: dict[str, Any] = {
            "num_inference_steps": num_inference_steps,
            "generator": generators,
            "output_type": "pt",
        }
        if cameras is None:
            output: Any = pipeline.restore(images, **options)
        else:
            output = pipeline(images, cameras=cameras[start : start + batch_size], **options)
            source_cameras.append(output.source_cameras.cpu())
        views.append(output.images.float().cpu() * 2 - 1)
    return torch.cat(views), torch.cat(source_cameras) if source_cameras else None


@torch.no_grad()
def predict_cameras(pipeline: NVBFacePipeline, pixel_values: torch.Tensor, num_inference_steps: int) -> torch.Tensor:
    """Cameras (N, 25) of pictures (N, 3, S, S), averaged over the time steps of a run as the pipeline does."""
    pipeline.scheduler.set_timesteps(num_inference_steps)
    timesteps = pipeline.scheduler.timesteps.unique()
    cameras = []
    for part in pixel_values.split(8):
        pixels = part.to(pipeline.device, pipeline.image_encoder.dtype)
        features = pipeline.encode_images(pixels, timesteps)  # (T, N, C, 8, 8)
        predicted = pipeline.view_transformer.predict_camera(features.flatten(0, 1))  # (T*N, 25)
        cameras.append(average_cameras(predicted.unflatten(0, features.shape[:2])).cpu())
    return torch.cat(cameras)


def identity_triplets(
    embed: Callable[[torch.Tensor], torch.Tensor], views: torch.Tensor, truths: torch.Tensor
) -> float:
    """Share of triplets in which a generated view is nearer to its true view than another person's true view is.

    Args:
        embed: gives embeddings (M, E) of pictures (M, 3, S, S).
        views: generated (N, V, 3, S, S).
        truths: (N, V, 3, S, S), at the same cameras.
    """
    generated = F.normalize(embed(views.flatten(0, 1)), dim=-1).unflatten(0, views.shape[:2])  # (N, V, E)
    true = F.normalize(embed(truths.flatten(0, 1)), dim=-1).unflatten(0, truths.shape[:2])
    similarity = torch.einsum("nve,mwe->nvmw", generated, true).amax(dim=-1)  # nearest view of each person (N, V, N)
    own = similarity.diagonal(dim1=0, dim2=2).mT[..., None]  # (N, V, 1)
    others = ~torch.eye(len(views), dtype=torch.bool)[:, None].expand_as(similarity)
    return (own > similarity)[others].float().mean().item()


@torch.no_grad()
def encoder_embedding(pipeline: NVBFacePipeline, pixel_values: torch.Tensor) -> torch.Tensor:
    """Features (N, C*8*8) of the pipeline's own encoder at time step 0: an identity measure of no outside network."""
    parts = [
        pipeline.image_encoder(part.to(pipeline.device, pipeline.image_encoder.dtype), 0).sample.float().cpu()
        for part in pixel_values.split(32)
    ]
    features = torch.cat(parts)
    return (features - features.mean(dim=0)).flatten(1)


def within_range(cameras: torch.Tensor, yaw_deg: float, pitch_deg: float) -> torch.Tensor:
    """Which cameras (..., 25) lie within +-yaw and +-pitch, as booleans (...)."""
    yaw, pitch, _ = angles_from_camera(cameras).unbind(-1)
    return (yaw.abs() <= yaw_deg) & (pitch.abs() <= pitch_deg)
