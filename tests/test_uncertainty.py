"""Several samples of every view: they share the conditioning, and their deviation is what it says."""

import pytest
import torch
from conftest import SIDE, tiny_pipeline
from pipeline_calls import CAMERAS, STEPS, picture, seeded

from nvb_diffusers.uncertainty import sample_views


@pytest.mark.parametrize("image", [picture(5), [picture(5), picture(6)]], ids=["one", "list"])
def test_samples_are_calls_one_after_another(pipe, image):
    """Assert that the samples are the views of calls that draw from one generator, and differ from one another."""
    conditioning = pipe.encode(image, CAMERAS, STEPS)
    output = sample_views(pipe, conditioning, 3, guidance_scale=2.0, eta=1.0, generator=seeded(3), view_batch_size=2)
    generator = seeded(3)
    for sample in output.samples:
        settings = {"guidance_scale": 2.0, "eta": 1.0, "generator": generator, "view_batch_size": 2}
        images = pipe(image, CAMERAS, STEPS, output_type="pt", **settings).images
        torch.testing.assert_close(sample, images, atol=1e-5, rtol=0)
    assert output.samples.shape == (3, *((2,) if isinstance(image, list) else ()), 3, 3, SIDE, SIDE)
    assert (output.samples[1:] - output.samples[:-1]).abs().amax(dim=(-3, -2, -1)).min() > 1e-3


def test_the_deviation_is_that_of_the_samples(pipe):
    """Assert the standard deviation over samples, averaged over colors, for each view of each photo."""
    output = sample_views(pipe, pipe.encode([picture(), picture(1)], CAMERAS, STEPS), 4, generator=seeded())
    mean = output.samples.mean(dim=0)
    expected = ((output.samples - mean).square().sum(dim=0) / 3).sqrt().mean(dim=2)
    assert output.deviation.shape == (2, 3, SIDE, SIDE)
    torch.testing.assert_close(output.deviation, expected, atol=1e-5, rtol=0)
    assert output.deviation.max() > 0
    assert sample_views(pipe, pipe.encode(picture(), CAMERAS, STEPS), 2).deviation.shape == (3, SIDE, SIDE)


def test_the_conditioning_is_made_once(pipe):
    """Assert that samples need no pass of encoder and view transformer but those of `encode`."""
    conditioning, passes = pipe.encode(picture(), CAMERAS, STEPS), []
    pipe.image_encoder.register_forward_hook(lambda *_: passes.append("encoder"))
    pipe.view_transformer.proj_in.register_forward_hook(lambda *_: passes.append("view transformer"))
    pipe.unet.register_forward_hook(lambda *_: passes.append("unet"))
    sample_views(pipe, conditioning, 5)
    assert passes == ["unet"] * 5 * STEPS


def test_one_sample_does_not_deviate():
    """Assert one error for too few samples."""
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="`num_samples` is 1, but a deviation needs at least 2"):
        sample_views(pipe, pipe.encode(picture(), CAMERAS, STEPS), 1)
