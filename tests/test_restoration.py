"""The pixel restorer of the appearance model, and how far a restoration follows it."""

import pytest
import torch
from conftest import SIDE, tiny_pipeline
from diffusers import DiffusionPipeline

from nvb_diffusers.models.pixel_restorer import PixelRestorer
from nvb_diffusers.pipeline_inputs import FIDELITY


def pictures(count=2, side=SIDE, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def restored(pipe, images, **kwargs):
    """Restored pictures (B, 1, 3, S, S) of a few steps from the same noise."""
    options = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(3)}
    return pipe.restore(images, **(options | kwargs)).images


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(appearance=True)


# The network


def test_any_size_that_the_patches_divide():
    """Assert the input's shape, for channels and sides of any kind."""
    model = PixelRestorer(in_channels=2, patch_size=3, hidden_size=5, num_layers=1)
    assert model(torch.randn(4, 2, 6, 9)).shape == (4, 2, 6, 9)


def test_it_sees_its_neighborhood_and_by_channel_attention_the_whole():
    """Assert that a changed pixel changes the patches within a patch a convolution, and with attention all of them."""
    torch.manual_seed(0)
    model, sample = PixelRestorer(3, 4, 6, num_layers=1), torch.randn(1, 3, 48, 48)
    changed = sample.clone()
    changed[0, 1, 22, 27] += 1  # in patch (5, 6); conv_in, two of the block and conv_out reach 4 patches

    def reached():
        with torch.no_grad():
            difference = (model(changed) - model(sample)).abs().sum(dim=1)[0]
        return difference.unflatten(1, (12, 4)).unflatten(0, (12, 4)).amax(dim=(1, 3)) > 0  # (12, 12)

    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[1:10, 2:11] = True
    assert torch.equal(reached(), expected)  # the attention of a new model weighs nothing
    torch.nn.init.normal_(model.blocks[0].channel_attention.weight)
    assert reached().all()


def test_a_new_one_changes_little():
    """Assert that training begins near the photo: a tenth of its contrast at most."""
    torch.manual_seed(0)
    sample = pictures() * 2 - 1
    with torch.no_grad():
        change = PixelRestorer(3, 4, 64, 6)(sample) - sample
    assert 0 < change.std() < 0.1 * sample.std()


# In the pipeline


def test_fidelity_weighs_the_two_pictures(pipe):
    """Assert the weighted mean of what UNet and restorer make, of each image its own; unasked, the restorer alone."""
    images = pictures()
    painted = restored(pipe, images, fidelity=0)
    with torch.no_grad():
        restorer = pipe.appearance.restorer
        both = restorer(images * 2 - 1) + restorer(images.flip(-1) * 2 - 1).flip(-1)
        faithful = (both / 4 + 0.5).clamp(0, 1)
    assert (painted[:, 0] - faithful).abs().mean() > 0.05
    for fidelity, weight in ((0.3, 0.3), (1, 1), (None, FIDELITY)):
        expected = (1 - weight) * painted[:, 0] + weight * faithful
        torch.testing.assert_close(restored(pipe, images, fidelity=fidelity)[:, 0], expected, atol=1e-5, rtol=0)


def test_the_unet_runs_only_where_it_is_seen(pipe):
    """Assert that with fidelity 1 no step is made, and just below it all are, to nearly the same picture."""
    steps = []

    def count(pipeline, step, timestep, tensors):
        steps.append(step)
        return tensors

    alone = restored(pipe, pictures(), fidelity=1, callback_on_step_end=count)
    assert not steps
    mixed = restored(pipe, pictures(), fidelity=1 - 1e-6, callback_on_step_end=count)
    assert steps
    torch.testing.assert_close(alone, mixed, atol=1e-5, rtol=0)


def test_every_image_follows_its_own_photo(pipe):
    """Assert that with fidelity 1 images of a list get what each gets alone, whatever the seed."""
    images = pictures(3)
    together = restored(pipe, images, fidelity=1)
    assert together.shape == (3, 1, 3, SIDE, SIDE)
    for index in range(3):
        torch.testing.assert_close(together[index], restored(pipe, images[index], fidelity=1), atol=1e-5, rtol=0)


def test_latents_are_the_unets(pipe):
    """Assert that an appearance model does not change them, and a pipeline without one restores as with fidelity 0."""
    plain = tiny_pipeline()
    images = pictures()
    assert torch.equal(restored(pipe, images, output_type="latent"), restored(plain, images, output_type="latent"))
    assert torch.equal(restored(pipe, images, fidelity=0), restored(plain, images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fidelity": 1.2}, "`fidelity` is 1.2, but 0 to 1 is accepted"),
        ({"fidelity": -0.1}, "`fidelity` is -0.1, but 0 to 1 is accepted"),
        ({"fidelity": float("nan")}, "`fidelity` is nan, but 0 to 1 is accepted"),
        ({"fidelity": 0.5, "output_type": "latent"}, "only images of a pipeline with an appearance model have one"),
    ],
)
def test_fidelity_that_cannot_be_had_is_refused(pipe, arguments, message):
    """Assert one clear line for numbers out of range, for latents, and without a restorer."""
    with pytest.raises(ValueError, match=message):
        restored(pipe, pictures(), **arguments)
    with pytest.raises(ValueError, match="only images of a pipeline with an appearance model have one"):
        tiny_pipeline().restore(pictures(), fidelity=0.5)


def test_it_is_saved_with_the_pipeline(pipe, tmp_path):
    """Assert that our loader and the base class bring it back to the bit, also in half precision."""
    pipe.save_pretrained(tmp_path)
    for loader in (type(pipe), DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(restored(loaded, pictures()), restored(pipe, pictures()))
    half = type(pipe).from_pretrained(tmp_path, dtype=torch.float16)
    half.set_progress_bar_config(disable=True)
    assert half.appearance.dtype == torch.float16
    torch.testing.assert_close(
        restored(half, pictures()), restored(pipe, pictures()), atol=0.02, rtol=0, check_dtype=False
    )
