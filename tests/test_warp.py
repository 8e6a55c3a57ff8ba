"""Surfaces of known geometry, a plane and a ball, seen from other cameras."""

import math

import pytest
import torch

from nvb_diffusers.camera import camera_from_angles, mirror_camera, pixel_centers, split_camera, unproject_points
from nvb_diffusers.warp import (
    carry,
    registered_truth,
    see_background,
    see_mirrored_surface,
    see_surface,
    smooth_surface,
    unproject_depth,
    without_position,
)

SIDE, BALL = 96, 0.22  # pixels, world units


def rays(camera):
    """Center (3,) of a camera (25,), and the offsets (S, S, 3) of its pixels at depth 1."""
    center = split_camera(camera)[0][:3, 3]
    uv1 = torch.cat([pixel_centers(SIDE, SIDE), torch.ones(SIDE, SIDE, 1)], dim=-1)
    return center, unproject_points(uv1.flatten(0, 1), camera).unflatten(0, (SIDE, SIDE)) - center


def texture(points):
    """Smooth colors (3, S, S) of places (S, S, 3)."""
    waves = torch.tensor([[9.0, 4.0, 2.0], [3.0, 11.0, -5.0], [-6.0, 5.0, 8.0]])
    return torch.sin(4 * points @ waves.T).movedim(-1, 0) * 0.8


def ball(camera, middle=(0.0, 0.0, 0.0)):
    """Depth, mask (S, S) and colors (3, S, S) of a ball."""
    center, offset = rays(camera)
    start = center - torch.tensor(middle)
    a, b, c = offset.square().sum(-1), (offset * start).sum(-1), start.square().sum() - BALL**2
    root = b.square() - a * c
    depth = torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, 0.0)
    return depth, (root > 0).float(), texture(center + offset * depth[..., None])


def plane(camera):
    """Depth, mask (S, S) and colors (3, S, S) of the plane z = 0."""
    center, offset = rays(camera)
    depth = -center[2] / offset[..., 2]
    return depth, torch.ones(SIDE, SIDE), texture(center + offset * depth[..., None])


def cameras(*angles):
    return torch.stack([camera_from_angles(*angle) for angle in angles])[None]


def seen_from(scene, source, targets, see=see_surface):
    """What targets (1, V, 25) see of a scene that a source (25,) sees, and the colors that it carries there."""
    depth, mask, colors = scene(source)
    seen = see(depth[None], mask[None], source[None], targets, SIDE)
    return seen, carry(colors[None], seen.uv)


def test_the_same_camera_gives_the_photo_back():
    """Assert that every pixel away from edges comes from itself, unstretched."""
    source = camera_from_angles(12, -5)
    seen, carried = seen_from(ball, source, source[None, None])
    depth, _, colors = ball(source)
    clear = smooth_surface(depth[None], source[None])[0] > 0
    clear &= depth > 0
    assert clear.float().mean() > 0.2
    assert (seen.uv[0, 0] - pixel_centers(SIDE, SIDE))[clear].abs().max() < 1e-4
    assert (carried[0, 0] - colors)[:, clear].abs().max() < 1e-3
    assert seen.visibility[0, 0][clear].min() > 0.99
    assert seen.visibility[0, 0][depth == 0].max() < 0.01
    assert seen.stretch[0, 0][clear].max() < 1.05


@pytest.mark.parametrize("scene", [plane, ball])
def test_other_cameras_see_the_true_colors(scene):
    """Assert that where a surface is said to be seen its colors are those of the truth, and that most of it is."""
    source, targets = camera_from_angles(-10, 4), cameras((15, 0), (-30, 10), (0, -15))
    seen, carried = seen_from(scene, source, targets)
    for view in range(targets.shape[1]):
        _, mask, colors = scene(targets[0, view])
        visible = seen.visibility[0, view] > 0.99
        assert (carried[0, view] - colors)[:, visible].abs().mean() < 0.01
        assert visible[mask > 0].float().mean() > 0.6


def test_there_and_back():
    """Assert that a point of the source, found in a target, leads back to where it came from."""
    source, target = camera_from_angles(5, 0), camera_from_angles(25, 8)
    there, _ = seen_from(ball, source, target[None, None])
    back, _ = seen_from(ball, target, source[None, None])
    round_trip = carry(there.uv[0].movedim(-1, 1), back.uv)[0, 0].movedim(0, -1)  # (S, S, 2)
    both = (back.visibility[0, 0] > 0.99) & (carry(there.visibility, back.uv)[0, 0, 0] > 0.99)
    assert both.float().mean() > 0.1
    assert (round_trip - pixel_centers(SIDE, SIDE))[both].abs().max() < 0.5 / SIDE


def test_what_hides_what():
    """Assert that a ball before a plane hides it, and that what lies behind the ball for the source is not seen."""
    source, target = camera_from_angles(0, 0), camera_from_angles(25, 0)

    def scene(camera):
        near_depth, near, near_colors = ball(camera, (0.0, 0.0, 0.25))
        far_depth, far, far_colors = plane(camera)
        return torch.where(near > 0, near_depth, far_depth), far, torch.where(near > 0, near_colors, far_colors)

    seen, carried = seen_from(scene, source, target[None, None])
    _, _, truth = scene(target)
    visible = seen.visibility[0, 0] > 0.99
    assert (carried[0, 0] - truth)[:, visible].abs().mean() < 0.02
    # On the plane the source's shadow of the ball falls where no visible pixel may lie.
    center, offset = rays(target)
    on_plane = ball(target, (0.0, 0.0, 0.25))[1] == 0
    places = center + offset * (-center[2] / offset[..., 2])[..., None]
    to_source = split_camera(source)[0][:3, 3] - places
    toward = torch.tensor([0.0, 0.0, 0.25]) - places
    along = (toward * to_source).sum(-1, keepdim=True) / to_source.square().sum(-1, keepdim=True) * to_source
    shadow = on_plane & ((toward - along).norm(dim=-1) < BALL - 0.01)
    assert shadow.sum() > 50
    assert visible[shadow].float().mean() < 0.02


def test_a_stretched_surface_has_no_holes():
    """Assert that a plane seen at 60 degrees by the source is whole from the front, stretched by 1 / cos."""
    source, target = camera_from_angles(60, 0), camera_from_angles(0, 0)
    seen, carried = seen_from(plane, source, target[None, None])
    inside = ((seen.uv[0, 0] > 0.02) & (seen.uv[0, 0] < 0.98)).all(-1)
    assert seen.visibility[0, 0][inside].min() > 0.99
    assert (carried[0, 0] - plane(target)[2])[:, inside].abs().mean() < 0.05
    middle = seen.stretch[0, 0, SIDE // 2, SIDE // 2].item()
    assert math.isclose(middle, 1 / math.cos(math.radians(60)), rel_tol=0.05)


def test_the_mirror_image_is_the_surface_seen_by_the_mirrored_camera():
    """Assert that a ball beside the axis appears on the other side, with mirrored colors."""
    source, target = camera_from_angles(10, 0), camera_from_angles(-20, 5)

    def beside(camera):
        return ball(camera, (0.05, 0.0, 0.0))

    seen, carried = seen_from(beside, source, target[None, None], see_mirrored_surface)
    center, offset = rays(target)
    depth, mask, _ = ball(target, (-0.05, 0.0, 0.0))
    mirrored_places = (center + offset * depth[..., None]) * torch.tensor([-1.0, 1.0, 1.0])
    visible = seen.visibility[0, 0] > 0.99
    assert visible[mask > 0].float().mean() > 0.6
    assert (carried[0, 0] - texture(mirrored_places))[:, visible].abs().mean() < 0.01
    straight, _ = seen_from(beside, source, mirror_camera(target)[None, None])
    assert torch.equal(straight.uv[0, 0].flip(1), seen.uv[0, 0])


def test_the_background_turns_as_if_infinitely_far():
    """Assert that a direction falls where the source sees that direction, whatever the cameras' positions."""
    source, target = camera_from_angles(3, 0), camera_from_angles(0, 2)
    uv = see_background(source[None], target[None, None], SIDE)[0, 0]
    _, direction = rays(target)
    expected = torch.nn.functional.normalize(direction, dim=-1)
    uv1 = torch.cat([uv, torch.ones(SIDE, SIDE, 1)], dim=-1)
    found = unproject_points(uv1.flatten(0, 1), without_position(source)).unflatten(0, (SIDE, SIDE))
    assert (torch.nn.functional.normalize(found, dim=-1) - expected).abs().max() < 1e-5


def test_unprojected_depth_lies_on_the_ball():
    """Assert that every pixel of the ball's depth map is 0.22 from its middle."""
    camera = camera_from_angles(33, -12)
    depth, mask, _ = ball(camera)
    points = unproject_depth(depth, camera)
    assert (points.norm(dim=-1)[mask.flatten() > 0] - BALL).abs().max() < 1e-5


def test_carried_values_have_gradients():
    """Assert that a loss on a target reaches the photo's pixels, each by what it gave."""
    source = camera_from_angles(0, 0)
    depth, mask, colors = ball(source)
    colors = colors[None].requires_grad_()
    seen = see_surface(depth[None], mask[None], source[None], cameras((20, 0)), SIDE)
    (carry(colors, seen.uv) * seen.visibility[:, :, None]).sum().backward()
    assert colors.grad[0, 0][mask > 0].mean() > 0.3
    assert colors.grad[0, 0][mask == 0].abs().mean() < 0.05


REGISTRATION = ((0, 0), (25, 5), (-35, -5))  # of the source and two targets


def registration(scene, read_depth):
    """A scene read with some depth, carried to targets, and the truth registered to that.

    Returns:
        carried colors, truth, target (1, 2, 3, S, S), where it is registered and what is visible (1, 2, S, S).
    """
    source, *targets = (camera_from_angles(*angles) for angles in REGISTRATION)
    targets = torch.stack(targets)[None]
    depth, mask, colors = scene(source)
    seen = see_surface(read_depth(depth)[None], mask[None], source[None], targets, SIDE)
    true_depth, _, truth = (torch.stack(part)[None] for part in zip(*(scene(t) for t in targets[0]), strict=True))
    target, sound = registered_truth(seen, truth, depth[None], source[None], true_depth, targets)
    return carry(colors[None], seen.uv), truth, target, sound, seen.visibility > 0.99


def test_truth_registered_to_an_exact_surface_is_the_truth():
    """Assert that with exact depth and cameras nothing moves, and that nearly all that is seen is registered."""
    _, truth, target, sound, visible = registration(ball, lambda depth: depth)
    assert (sound & visible).sum() > 0.9 * visible.sum()
    assert (target - truth).abs().mean(dim=2)[sound].mean() < 0.01
    assert torch.equal(*(x.movedim(2, -1)[~sound] for x in (target, truth)))


def test_truth_registered_to_a_misplaced_surface_is_what_was_carried():
    """Assert that a depth which errs by 7 pixels is no error against the registered truth, but a large one else."""
    carried, truth, target, sound, _ = registration(ball, lambda depth: depth - 0.1)
    assert sound.sum() > 500
    unregistered = (carried - truth).abs().mean(dim=2)[sound].mean()
    assert (carried - target).abs().mean(dim=2)[sound].mean() < 0.1 * unregistered
    assert unregistered > 0.2


def test_what_the_true_target_hides_is_not_registered():
    """Assert that the plane is registered beside a ball that was overlooked, and not where that hides it."""
    middle = (0.15, 0.0, 0.3)

    def scene(camera):
        near_depth, near, near_colors = ball(camera, middle)
        far_depth, far, far_colors = plane(camera)
        return torch.where(near > 0, near_depth, far_depth), far, torch.where(near > 0, near_colors, far_colors)

    source, *targets = (camera_from_angles(*angles) for angles in REGISTRATION)
    _, _, _, sound, visible = registration(scene, lambda depth: plane(source)[0])
    flat = see_surface(*(x[None] for x in plane(source)[:2]), source[None], torch.stack(targets)[None], SIDE)
    of_plane = visible & (carry(ball(source, middle)[1][None, None], flat.uv)[:, :, 0] == 0)
    hidden = torch.stack([ball(target, middle)[1] > 0 for target in targets])[None]
    assert (of_plane & hidden).sum() > 300
    assert sound[of_plane & hidden].float().mean() < 0.02
    assert sound[of_plane & ~hidden].float().mean() > 0.9
