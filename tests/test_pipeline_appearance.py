"""The photo's own pixels in the pipeline: what calls give back with an appearance model and without one."""

import numpy as np
import pytest
import torch
from conftest import LATENT_SHAPE, SIDE, tiny_appearance, tiny_pipeline

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.camera import camera_from_angles
from nvb_diffusers.models.appearance import PhotoSurface, own_backdrop

LARGE = 2 * SIDE
CAMERAS = [(0, 0), (25, 0), (-10, 5)]


@pytest.fixture(scope="module")
def pipe():
    """A pipeline whose views are twice as large as what its UNet paints."""
    plain = tiny_pipeline()
    torch.manual_seed(1)
    appearance = tiny_appearance(sample_size=LARGE).eval()
    # A person on the left half, whatever the photo, whose mask the fuser knows.
    appearance.reader.conv_out.bias.data[16:32] = 3.0
    torch.nn.init.normal_(appearance.reader.conv_out.weight[32:], std=0.1)  # positions
    pipe = NVBFacePipeline(**(plain.components | {"appearance": appearance}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def photo(seed=0):
    low = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(low, LARGE, mode="bicubic").clamp(0, 1)[0]


def call(pipe, image=None, **kwargs):
    settings = {"cameras": CAMERAS, "num_inference_steps": 2, "output_type": "pt", "latents": torch.ones(1, 1, 4, 8, 8)}
    return pipe(photo() if image is None else image, **(settings | kwargs))


def test_views_have_the_appearance_models_size(pipe):
    """Assert sizes of views and evidence, one by one and in lists, and that evidence sums to 1."""
    output = call(pipe)
    assert pipe.sample_size == LARGE
    assert output.images.shape == output.evidence.shape == (3, 3, LARGE, LARGE)
    assert (output.evidence.sum(dim=1) - 1).abs().max() < 1e-5
    batch = call(pipe, [photo(), photo(1)], latents=torch.ones(2, 1, 4, 8, 8))
    assert batch.images.shape == batch.evidence.shape == (2, 3, 3, LARGE, LARGE)
    # On the mean: rounding decides whether a ray at the very edge of a surface still meets it.
    assert (batch.images[0] - output.images).abs().mean() < 1e-4
    assert (batch.evidence[0] - output.evidence).abs().mean() < 1e-4


def test_without_it_the_papers_system_remains(pipe):
    """Assert views of the UNet alone, without evidence, and latents that an appearance model leaves, given a camera."""
    plain = tiny_pipeline()
    output = call(plain)
    assert plain.sample_size == SIDE
    assert output.images.shape == (3, 3, SIDE, SIDE)
    assert output.evidence is None
    given = camera_from_angles(5.0, 2.0)[None]
    latents = [call(some, output_type="latent", source_cameras=given) for some in (pipe, plain)]
    assert latents[0].images.shape == (3, *LATENT_SHAPE)
    assert (latents[0].images - latents[1].images).abs().max() < 1e-5
    assert latents[0].evidence is None


def test_a_predicted_camera_is_corrected_by_the_photo_and_a_given_one_is_not(pipe):
    """Assert that it is joined with the camera that fits the pixels, for calls and for predictions."""
    plain = tiny_pipeline()
    predicted = plain.predict_cameras(photo(), 2)
    surface = pipe.appearance.read_photo(photo()[None] * 2 - 1, predicted, correct=True)
    assert not torch.allclose(surface.source_cameras, predicted, atol=1e-3)
    for cameras in (call(pipe).source_cameras, pipe.predict_cameras(photo(), 2)):
        torch.testing.assert_close(cameras, surface.source_cameras, atol=1e-4, rtol=0)
    given = camera_from_angles(5.0, 2.0)[None]
    assert torch.equal(call(pipe, source_cameras=given).source_cameras, given)


def test_views_are_what_the_model_fuses(pipe):
    """Assert that a call's pixels are those of the model's own verbs on the same photo, camera and decoded views."""
    output = call(pipe)
    with torch.no_grad():
        conditioning = pipe.encode(photo(), CAMERAS, 2)
        decoded = pipe.decode_latents(call(pipe, output_type="latent").images)[None]
        surface = pipe.appearance.read_photo(photo()[None] * 2 - 1, conditioning.source_cameras)
        cameras = torch.as_tensor(np.array(pipe_cameras()))[None]
        fused = pipe.appearance.fuse(pipe.appearance.project(surface, cameras), decoded)
    assert ((fused.pixel_values[0] / 2 + 0.5).clamp(0, 1) - output.images).abs().max() < 1e-4


def pipe_cameras():
    return [camera_from_angles(*pair).numpy() for pair in CAMERAS]


def test_conditioning_carries_the_pixels_along(pipe):
    """Assert that a conditioning gives the views of a whole call, and the photo is read and projected once for it."""
    conditioning = pipe.encode(photo(), CAMERAS, 2)
    again = pipe(conditioning=conditioning, latents=torch.ones(1, 1, 4, 8, 8), output_type="pt")
    assert (again.images - call(pipe).images).abs().max() < 1e-4


def test_few_views_at_a_time_are_the_same_views(pipe):
    """Assert that a bound on the memory changes nothing."""
    assert (call(pipe, view_batch_size=2).images - call(pipe).images).abs().max() < 1e-4


def test_a_color_stands_where_nobody_is(pipe):
    """Assert that by the mask a person stands before the color asked for or the photo's backdrop."""
    with torch.no_grad():
        pipe.appearance.fuser.conv_out.bias[-16:] = 0.0
    turning, green = call(pipe), call(pipe, background=(0.0, 1.0, 0.0))
    still = call(pipe, background="photo")
    with torch.no_grad():
        conditioning = pipe.encode(photo(), CAMERAS, 2)
        decoded = pipe.decode_latents(call(pipe, output_type="latent").images)[None]
        mask = pipe.appearance.fuse(conditioning.layers, decoded).mask[0][:, None]
        backdrop = own_backdrop(conditioning.surface) / 2 + 0.5
    color = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    assert ((1 - mask) * color + mask * turning.images - green.images).abs().max() < 0.02  # before clipping
    assert ((1 - mask) * backdrop + mask * turning.images - still.images).abs().mean() < 0.02


def test_backdrops_are_filled_in_behind_the_person():
    """Assert that known backdrop stays and that behind the person stands what is around, nothing of the person."""
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:44, 20:44] = 1
    pixels = torch.where(mask[:, None] > 0, 1.0, -0.5).expand(1, 3, 64, 64)
    backdrop = own_backdrop(PhotoSurface(pixels, mask, mask, torch.zeros(1, 25)))
    assert (backdrop + 0.5).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("background", "message"),
    [
        ("blur", "`background` is 'blur', but turn, photo or"),
        ((0, 0, 2), r"`background` is \(0, 0, 2\), but turn"),
        ((0, 1), r"`background` is \(0, 1\), but turn"),
    ],
)
def test_other_backgrounds_are_refused(pipe, background, message):
    """Assert one line for what is no background, and for one that a pipeline without the model cannot make."""
    with pytest.raises(ValueError, match=message):
        call(pipe, background=background)
    with pytest.raises(ValueError, match="without an appearance model has only turn"):
        call(tiny_pipeline(), background="photo")


def test_restorations_have_one_size(pipe):
    """Assert that whatever the fidelity a restoration has the size of the views."""
    for fidelity in (0, 0.5, 1):
        restored = pipe.restore(photo(), fidelity=fidelity, num_inference_steps=1, output_type="pt").images
        assert restored.shape == (1, 3, LARGE, LARGE)


def test_saved_and_loaded_with_the_pipeline(pipe, tmp_path):
    """Assert the same views from a saved pipeline, whose index names our class by the package alone."""
    pipe.save_pretrained(tmp_path)
    loaded = NVBFacePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(call(loaded).images, call(pipe).images)
    assert '"appearance": [\n    "nvb_diffusers",\n    "AppearanceModel"' in (tmp_path / "model_index.json").read_text()
