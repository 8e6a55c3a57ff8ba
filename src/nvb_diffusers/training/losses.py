"""The losses of both steps: diffusion (Eq. 2), features (Eq. 7) and camera (Eq. 8); the appearance model's are ours."""

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

SQUARED_ERROR_FLOOR = 1e-4  # of images in [-1, 1]: 46 dB
DEPTH_CLAMP, DEPTH_GRADIENT_CLAMP = 0.15, 0.03  # world units


def diffusion_target(
    scheduler: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the UNet should predict (N, C, h, w), by the scheduler's prediction type.

    Raises:
        ValueError: the prediction type is none of epsilon, v_prediction and sample.
    """
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if prediction_type == "sample":
        return latents
    raise ValueError(f"prediction type is {prediction_type!r}, expected epsilon, v_prediction or sample")


def diffusion_loss(
    model_pred: torch.Tensor,
    target: torch.Tensor,
    timesteps: torch.Tensor,
    scheduler: DDPMScheduler,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """Mean squared error of the UNet's prediction (N, C, h, w), a scalar (Eq. 2).

    Args:
        model_pred: the prediction.
        target: from `diffusion_target`.
        timesteps: (N,).
        scheduler: gives the prediction type and the signal-to-noise ratio of each time step.
        snr_gamma: weighs time steps as min(SNR, gamma) in units of the clean sample (Min-SNR, arXiv 2303.09556); None
            for equal weights.
    """
    errors = F.mse_loss(model_pred.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))  # (N,)
    if snr_gamma is None:
        return errors.mean()
    snr = compute_snr(scheduler, timesteps)
    # An error of the clean sample is SNR times one of epsilon, and SNR + 1 times one of v.
    per_sample = {"epsilon": snr.clamp(min=1e-8), "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return (snr.clamp(max=snr_gamma) / per_sample[scheduler.config.prediction_type] * errors).mean()


def feature_loss(features: torch.Tensor, target_features: torch.Tensor, cosine_weight: float = 2.0) -> torch.Tensor:
    """Distance of view features (B, V, C, H, W) from those of the degraded true views, a scalar (Eq. 7).

    Mean squared error + `cosine_weight` (lambda) x (1 - cosine over C): means over elements and over positions.
    """
    features, target_features = features.float(), target_features.float()
    cosine = F.cosine_similarity(features, target_features, dim=2)  # (B, V, H, W)
    return F.mse_loss(features, target_features) + cosine_weight * (1 - cosine).mean()


def camera_loss(source_cameras: torch.Tensor, true_cameras: torch.Tensor) -> torch.Tensor:
    """Squared distance of predicted labels (B, 25) from the true ones, summed over the 25 numbers, a scalar (Eq. 8)."""
    return (source_cameras.float() - true_cameras.float()).square().sum(dim=-1).mean()


def restoration_loss(pixel_values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean logarithm of the squared error of each image (N, 3, S, S), PSNR but for its factor, a scalar.

    Every image counts alike, however degraded it was. Without the floor the clean ones, of nearly no error, would
    outweigh all others, and a network would learn to do nothing.
    """
    squared_error = F.mse_loss(pixel_values.float(), target, reduction="none").mean(dim=(1, 2, 3))  # (N,)
    return (squared_error + SQUARED_ERROR_FLOOR).log().mean()


def depth_loss(depth: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Absolute error of depth maps (N, S, S) where `mask`, in world units, clamped against outliers, a scalar."""
    return _masked_mean((depth - target).abs().clamp(max=DEPTH_CLAMP), mask).mean()


def position_loss(positions: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean distance of points (N, 3, S, S) from the true ones where `mask` (N, S, S), in world units, a scalar."""
    distance = ((positions - target).square().sum(dim=1) + 1e-8).sqrt()  # (N, S, S), of finite slope at 0
    return _masked_mean(distance, mask).mean()


def depth_gradient_loss(depth: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Error of the differences between depths (N, S, S) at 1 and 4 pixels where `mask`, clamped at edges, a scalar."""
    total = depth.new_zeros(())
    for step in (1, 4):
        for dim in (-1, -2):
            error = (_differences(depth, step, dim) - _differences(target, step, dim)).abs()
            both = mask.narrow(dim, step, error.shape[dim]) & mask.narrow(dim, 0, error.shape[dim])
            total = total + _masked_mean(error.clamp(max=DEPTH_GRADIENT_CLAMP * step**0.5), both).mean() / step
    return total


def gradient_loss(pixel_values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Error of the differences between pixels (N, 3, S, S) that are 1, 2 and 4 apart, which blur pays for, a scalar."""
    total = pixel_values.new_zeros(())
    for step in (1, 2, 4):
        for dim in (-1, -2):
            error = _differences(pixel_values, step, dim) - _differences(target, step, dim)
            total = total + error.abs().mean() / step
    return total


def _differences(maps: torch.Tensor, step: int, dim: int) -> torch.Tensor:
    length = maps.shape[dim] - step
    return maps.narrow(dim, step, length) - maps.narrow(dim, 0, length)


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Means (N,) of values (N, H, W) where the mask is; 0 where it is nowhere."""
    return (values * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)
