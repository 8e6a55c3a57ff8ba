"""Warps through exact geometry: a textured ball before a far panorama, rendered by casting rays in the test."""

import math

import pytest
import torch

from nvb_diffusers.camera import camera_from_angles, split_camera, unproject_points
from nvb_diffusers.evaluation.consistency import orbit_flicker, score_identity
from nvb_diffusers.warp import background_layer, merge_depths, surface_layer, warp_views

SIDE, BALL = 96, 0.22  # pixels, world units
YAWS, PITCH = (-24.0, -8.0, 5.0, 20.0), 4.0


def pixel_grid():
    v, u = torch.meshgrid(*[(torch.arange(SIDE) + 0.5) / SIDE] * 2, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)], dim=-1)  # (S, S, 3)


def texture(points):
    """Smooth colors (..., 3) in [-1, 1] of places or directions."""
    waves = torch.tensor([[9.0, 4.0, 2.0], [3.0, 11.0, -5.0], [-6.0, 5.0, 8.0]])
    return torch.sin(points @ waves.T) * 0.8


def render(camera):
    """Picture (3, S, S) and depth (S, S) of the ball from a camera (25,)."""
    center = split_camera(camera)[0][:3, 3]
    offset = unproject_points(pixel_grid().flatten(0, 1), camera).unflatten(0, (SIDE, SIDE)) - center  # at depth 1
    a, b, c = offset.square().sum(-1), (offset * center).sum(-1), center.square().sum() - BALL**2
    root = b.square() - a * c
    hit = root > 0
    depth = torch.where(hit, (-b - root.clamp(min=0).sqrt()) / a, 0.0)
    surface = texture(4 * (center + offset * depth[..., None]))
    background = texture(torch.nn.functional.normalize(offset, dim=-1))
    return torch.where(hit[..., None], surface, background).permute(2, 0, 1), depth


def views(yaws=YAWS):
    cameras = torch.stack([camera_from_angles(yaw, PITCH) for yaw in yaws])
    pictures, depths = zip(*(render(camera) for camera in cameras), strict=True)
    return torch.stack(pictures), torch.stack(depths), cameras


def test_exact_pictures_agree_and_wrong_ones_do_not():
    """Assert errors near 0 for the truth, and clearly more for shuffled views, moved ones and noise."""
    pictures, depths, cameras = views()
    exact = score_identity(pictures, depths, cameras, pictures)
    assert exact["warp error"] < 0.01
    assert exact["background error"] < 0.01
    assert exact["feature error"] < 0.15
    for name in ("warp error", "feature error", "background error"):
        assert exact[f"{name} of the truth"] == exact[name]
    for wrong in (pictures[[1, 2, 3, 0]], torch.rand_like(pictures) * 2 - 1):
        other = score_identity(wrong, depths, cameras, pictures)
        assert other["warp error of the truth"] == exact["warp error"]
        for name in ("warp error", "background error"):
            assert other[name] > 4 * exact[name]
        assert other["feature error"] > 1.5 * exact["feature error"]


def test_one_brighter_view_is_measured_in_units_of_the_picture():
    """Assert that a view brighter by 0.2 in [-1, 1] is off by 0.1 in [0, 1] in the pairs that it is in."""
    pictures, depths, cameras = views((-6.0, 6.0))
    brighter = pictures.clone()
    brighter[1] += 0.2
    assert score_identity(brighter, depths, cameras, pictures)["warp error"] == pytest.approx(0.1, abs=0.01)


def test_a_warp_lands_where_the_other_camera_sees_it():
    """Assert that surface and background, each warped, are what the target shows, where they are said to be seen."""
    pictures, depths, cameras = views((-5.0, 3.0, 0.0))  # a picture shows 13 degrees of the background
    for make, largest in ((surface_layer, 0.08), (background_layer, 0.02)):
        layer = make(depths, cameras)
        warped, visible = warp_views(layer, pictures, 2, [0, 1])  # (2, 3, P), (2, P)
        shown = pictures[2][:, layer.mask[2]]
        assert (visible.float().mean(dim=1) > 0.2).all()
        assert ((warped - shown).abs().amax(dim=1) * visible).max() < largest


def test_what_is_hidden_is_not_compared():
    """Assert that of a ball seen from sides 90 degrees apart, only what faces the other camera is seen by both."""
    pictures, depths, cameras = views((-45.0, 45.0))
    layer = surface_layer(depths, cameras)
    _, visible = warp_views(layer, pictures, 1, [0])
    assert 0 < visible.sum() < 0.6 * layer.mask[1].sum()
    columns = torch.arange(SIDE).expand(SIDE, SIDE)[layer.mask[1]].float()
    # the camera at +45 has what the one at -45 sees too on its left
    assert columns[visible[0]].mean() < columns.mean() - 5


def test_layers_leave_the_outline_out():
    """Assert that surface and background never touch, and are most of the picture."""
    _, depths, cameras = views((0.0,))
    surface, background = (make(depths, cameras).mask[0] for make in (surface_layer, background_layer))
    assert not (surface & background).any()
    assert 0.6 < (surface | background).float().mean() < 1
    assert (depths[0][surface] > 0).all()
    assert (depths[0][background] == 0).all()


def test_flicker_is_that_of_single_frames():
    """Assert almost none in an exact orbit, and more where the brightness alternates, by face and by background."""
    frames, depths, cameras = views([float(yaw) for yaw in range(-12, 13, 4)])
    exact = orbit_flicker(frames, depths, cameras, frames)
    assert exact["flicker"] < 0.006
    assert exact["flicker of the truth"] == exact["flicker"]
    solid = (depths > 0)[:, None].expand_as(frames)
    odd = (torch.arange(len(frames)) % 2 == 1)[:, None, None, None]
    face = orbit_flicker(torch.where(solid & odd, frames + 0.2, frames), depths, cameras)
    assert face["flicker"] == pytest.approx(0.1, abs=0.012)
    assert face["background flicker"] == pytest.approx(exact["background flicker"], abs=1e-6)


def test_merged_depths_are_those_of_the_scene():
    """Assert the ball's depth from a camera between the known ones, and its background where nothing hides it."""
    _, depths, cameras = views((-15.0, 0.0, 15.0))
    asked = camera_from_angles(7.0, PITCH)[None]
    merged = merge_depths(depths, cameras, asked, SIDE)[0]
    _, expected = render(asked[0])
    both = (merged > 0) & (expected > 0)
    assert both.sum() > 0.8 * (expected > 0).sum()
    assert (merged - expected)[both].abs().median() < 0.003
    assert ((merged == 0) & (expected > 0)).sum() < 0.01 * (expected > 0).sum()


def test_views_too_far_apart_have_no_error():
    """Assert NaN where no pair is within the angle that is compared."""
    pictures, depths, cameras = views((-60.0, 60.0))
    scores = score_identity(pictures, depths, cameras, pictures)
    assert all(math.isnan(value) for value in scores.values())
