"""What is invented: several samples of the same views, and where they deviate."""

from dataclasses import dataclass

import torch

from .pipeline_nvb_face import Conditioning, NVBFacePipeline


@dataclass(frozen=True)
class ViewSamples:
    """Views made several times, each time from other noise.

    Args:
        samples: (K, V, 3, S, S) in [0, 1]; (K, B, V, 3, S, S) for a list of images.
        deviation: (V, S, S), or (B, V, S, S): standard deviation of each pixel over the samples, the mean of the three
            colors, in [0, 1]. High where the photo did not determine the view: it was invented.
    """

    samples: torch.Tensor
    deviation: torch.Tensor


def sample_views(
    pipe: NVBFacePipeline,
    conditioning: Conditioning,
    num_samples: int,
    guidance_scale: float | None = None,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    view_batch_size: int | None = None,
) -> ViewSamples:
    """Make the same views several times; the first sample is what a call with this generator gives.

    Args:
        pipe: with a view transformer.
        conditioning: of `pipe.encode`, which all samples share.
        num_samples: K, 2 or more.
        guidance_scale: as in a call.
        eta: as in a call.
        generator: of the noise of all samples, one after another.
        view_batch_size: as in a call.

    Raises:
        ValueError: there are not at least 2 samples, which a deviation needs, or as a call.
    """
    if num_samples < 2:
        raise ValueError(f"`num_samples` is {num_samples}, but a deviation needs at least 2.")
    samples = torch.stack(
        [
            pipe(
                conditioning=conditioning,
                guidance_scale=guidance_scale,
                eta=eta,
                generator=generator,
                view_batch_size=view_batch_size,
                output_type="pt",
            )
            .images.float()
            .cpu()
            for _ in range(num_samples)
        ]
    )
    return ViewSamples(samples, samples.std(dim=0).mean(dim=-3))
