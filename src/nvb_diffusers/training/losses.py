"""The losses of both steps: diffusion (Eq. 2), features (Eq. 7) and camera (Eq. 8)."""

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr


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
