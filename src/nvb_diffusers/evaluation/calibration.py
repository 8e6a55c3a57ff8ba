"""Whether the deviation of several samples tells where they are wrong."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.uncertainty import sample_views

BLOCK = 8  # pixels; single pixels of a deviation of few samples are mostly chance


def invented_honesty(deviation: torch.Tensor, error: torch.Tensor) -> tuple[float, float]:
    """Mean deviation, and Spearman's rank correlation between deviation and error over blocks of 8 x 8 pixels.

    1 where the image is the more wrong the more the samples deviate, 0 where the map tells nothing.

    Args:
        deviation: (V, H, W) of several samples of each view.
        error: (V, H, W), of their mean against the truth.
    """
    blocks = [F.avg_pool2d(values[:, None], BLOCK).flatten() for values in (deviation, error)]
    ranks = np.stack([_ranks(values.double().numpy()) for values in blocks])
    return deviation.mean().item(), float(np.corrcoef(ranks)[0, 1])


def sample_honesty(
    pipeline: NVBFacePipeline,
    image: Image.Image,
    cameras: torch.Tensor,
    truths: torch.Tensor,
    num_samples: int,
    num_inference_steps: int | None,
    seed: int,
) -> tuple[float, float]:
    """`invented_honesty` of a pipeline's views of one input.

    Args:
        pipeline: with a view transformer.
        image: the degraded input.
        cameras: (V, 25).
        truths: (V, 3, S, S) in [-1, 1].
        num_samples: samples of each view.
        num_inference_steps: of every sample; None for what suits the pipeline.
        seed: of the noise.
    """
    conditioning = pipeline.encode(image, cameras, num_inference_steps)
    views = sample_views(pipeline, conditioning, num_samples, generator=torch.Generator().manual_seed(seed))
    mean = views.samples.mean(dim=0)  # (V, 3, S, S) in [0, 1]
    return invented_honesty(views.deviation, (mean - (truths / 2 + 0.5)).abs().mean(dim=1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (N,) of values, the mean rank where several are equal."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]
