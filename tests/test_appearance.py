"""The appearance model: what it reads, carries and fuses, on small models and a surface of known geometry."""

import pytest
import torch
from conftest import APPEARANCE

from nvb_diffusers import AppearanceModel
from nvb_diffusers.camera import angles_from_camera, camera_from_angles
from nvb_diffusers.models.appearance import PhotoSurface, joined_cameras

BATCH, VIEWS, SIDE = 2, 3, 48


def tiny_model(seed=0, **kwargs):
    torch.manual_seed(seed)
    return AppearanceModel(**(APPEARANCE | {"sample_size": SIDE} | kwargs)).eval()


def trained(model):
    """The model with an effect of all its layers, as training gives it."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.05)
    return model


def photos(seed=0, batch=BATCH):
    low = torch.rand(batch, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(low, SIDE, mode="bicubic").clamp(-1, 1)


def source_cameras():
    return torch.stack([camera_from_angles(0, 0), camera_from_angles(10, -5)])


def target_cameras():
    angles = [[(0, 0), (20, 0), (-20, 5)], [(10, -5), (30, 0), (-10, 0)]]
    return torch.stack([torch.stack([camera_from_angles(*pair) for pair in row]) for row in angles])


def disc_surface(pixels, cameras):
    """A flat disc before each camera, the rest backdrop."""
    place = (torch.arange(SIDE) + 0.5) / SIDE - 0.5
    mask = ((place[:, None].square() + place.square()) < 0.3**2).float().expand(len(pixels), SIDE, SIDE)
    return PhotoSurface(pixels, torch.full_like(mask, 2.7), mask, cameras)


def views(side=24):
    return torch.full((BATCH, VIEWS, 3, side, side), 0.9)


@torch.no_grad()
def test_a_new_model_reads_the_photo_as_it_is():
    """Assert that restored pixels are nearly the photo's, depth a face's and the mask undecided before training."""
    surface = tiny_model().read_photo(photos(), source_cameras())
    assert (surface.pixel_values - photos()).abs().mean() < 0.1
    assert (surface.depth - 2.55).abs().max() < 1e-6
    assert (surface.mask - 0.5).abs().max() < 1e-6
    assert surface.depth.shape == surface.mask.shape == (BATCH, SIDE, SIDE)


@torch.no_grad()
def test_at_the_source_camera_the_photo_comes_back():
    """Assert that plain pasting of a new model gives the photo, person and backdrop, at the photo's own camera."""
    model, pixels = tiny_model(), photos()
    layers = model.project(disc_surface(pixels, source_cameras()), source_cameras()[:, None])
    fused = model.fuse(layers, views()[:, :1])
    inner = disc_surface(pixels, source_cameras()).mask > 0
    difference = (fused.pixel_values[:, 0] - pixels).abs().mean(dim=1)
    assert (layers.direct[:, 0, 3] > 0.99)[inner].float().mean() > 0.8
    clear = -torch.nn.functional.max_pool2d(-layers.direct[:, 0, 3], 9, stride=1, padding=4) > 0.99  # not near an edge
    assert clear.float().mean() > 0.05
    assert difference[clear].mean() < 0.06  # a little of the view is mixed in
    assert difference.mean() < 0.15
    assert fused.evidence[:, 0, 0].mean() > 0.8
    assert layers.background[:, 0, 3][~inner].min() > 0.9


@torch.no_grad()
def test_evidence_sums_to_one_and_follows_the_layers():
    """Assert that what no layer shows is invented, and that the evidence of every pixel is whole."""
    model = trained(tiny_model())
    layers = model.project(disc_surface(photos(), source_cameras()), target_cameras())
    fused = model.fuse(layers, views())
    assert fused.pixel_values.shape == (BATCH, VIEWS, 3, SIDE, SIDE)
    assert fused.evidence.shape == (BATCH, VIEWS, 3, SIDE, SIDE)
    assert (fused.evidence.sum(dim=2) - 1).abs().max() < 1e-5
    nothing = type(layers)(*(torch.zeros_like(layer) for layer in layers))
    pasted = tiny_model().fuse(nothing, views())
    assert pasted.evidence[:, :, 2].min() > 0.9
    assert (pasted.pixel_values - 0.9).abs().max() < 0.1


@torch.no_grad()
def test_views_are_fused_each_for_itself():
    """Assert that a view does not depend on the others of its call, nor on the other photos."""
    model = trained(tiny_model())
    whole = model(photos(), source_cameras(), target_cameras(), views())
    one = model(photos()[1:], source_cameras()[1:], target_cameras()[1:, 2:], views()[1:, 2:])
    assert (whole.pixel_values[1:, 2:] - one.pixel_values).abs().max() < 1e-4
    assert (whole.evidence[1:, 2:] - one.evidence).abs().max() < 1e-4


@torch.no_grad()
def test_it_works_at_other_sizes():
    """Assert that the same weights read and fuse pictures of another side."""
    model = trained(tiny_model())
    small = torch.nn.functional.interpolate(photos(), 32, mode="area")
    fused = model(small, source_cameras(), target_cameras(), views())
    assert fused.pixel_values.shape == (BATCH, VIEWS, 3, 32, 32)


def test_sides_that_do_not_fit_are_refused():
    """Assert one line that says which sides are accepted."""
    with pytest.raises(ValueError, match=r"44, 44\), but its sides must be divisible by 8"):
        tiny_model().read_photo(photos()[..., :44, :44], source_cameras())


def test_losses_reach_restorer_and_fuser():
    """Assert that fused pixels teach the fuser and, through the carried photo, the restorer."""
    model = trained(tiny_model())
    known = disc_surface(photos(), source_cameras())
    surface = model.read_photo(photos(), source_cameras())._replace(depth=known.depth, mask=known.mask)
    fused = model.fuse(model.project(surface, target_cameras()), views())
    fused.pixel_values.square().mean().backward()
    for part in (model.restorer, model.fuser):
        assert all(parameter.grad is not None for parameter in part.parameters())
        assert any(parameter.grad.abs().max() > 0 for parameter in part.parameters())


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(tmp_path):
    """Assert equality to the bit after a round trip through safetensors."""
    model = trained(tiny_model())
    model.save_pretrained(tmp_path)
    loaded = AppearanceModel.from_pretrained(tmp_path)
    arguments = (photos(), source_cameras(), target_cameras(), views())
    assert torch.equal(loaded(*arguments).pixel_values, model(*arguments).pixel_values)


def test_two_estimates_that_differ_much_are_not_averaged():
    """Assert the mean of cameras 4 degrees apart, the points' one where they are 20 apart, and what is between."""
    yaws = [4.0, 20.0, 10.0]
    fitted = torch.stack([camera_from_angles(yaw, 0) for yaw in yaws])
    joined = joined_cameras(camera_from_angles(0, 0).expand(3, 25), fitted)
    expected = torch.tensor([2.0, 20.0, 7.5])
    torch.testing.assert_close(angles_from_camera(joined)[:, 0], expected, atol=0.02, rtol=0)


@torch.no_grad()
def test_a_backdrop_ends_softly():
    """Assert that from another camera no step of the backdrop's visibility is a hard edge, and that it is whole where
    the photo shows it far from its edges.
    """
    surface = disc_surface(photos(), source_cameras())._replace(mask=torch.zeros(BATCH, SIDE, SIDE))
    shown = tiny_model().project(surface, camera_from_angles(15, 0).expand(BATCH, 1, 25)).background[:, 0, 3]
    assert shown.min() == 0
    assert shown.max() == 1
    steps = max(shown.diff(dim=dim).abs().max() for dim in (-1, -2))
    assert steps < 0.4
