"""Cameras from dense correspondences."""

import torch

from nvb_diffusers.camera import angle_between_cameras, camera_from_angles, project_points, split_camera
from nvb_diffusers.camera_fit import fit_cameras

OTHERWISE = camera_from_angles(torch.tensor([1.0, 2, 3, 4]), 5.0)


def correspondences(cameras: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (B, N, 3) of a bent surface and where cameras see them."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(2, len(cameras), 500, generator=generator) - 0.5) * 0.5
    points = torch.stack([x, y, 0.2 - x.square() - 0.5 * y.square()], dim=-1)
    return points, project_points(points, cameras)


def some_cameras() -> torch.Tensor:
    yaw, pitch = torch.tensor([0.0, -50, 35, 70]), torch.tensor([0.0, 20, -25, 5])
    cameras = camera_from_angles(yaw, pitch, roll_deg=torch.tensor([0.0, 25, -10, 3]), radius=2.5)
    cameras[:, 3] += 0.07  # beside the head's middle
    return cameras


def test_exact_correspondences_give_the_camera_whatever_the_depth_says():
    cameras = some_cameras()
    points, uvz = correspondences(cameras)
    uvz[..., 2] += 0.05 * torch.randn(uvz.shape[:2], generator=torch.Generator().manual_seed(1))
    fitted = fit_cameras(points, uvz, torch.ones(4, 500), OTHERWISE)
    assert angle_between_cameras(fitted, cameras).max() < 0.02
    torch.testing.assert_close(split_camera(fitted)[0][:, :3, 3], split_camera(cameras)[0][:, :3, 3], atol=2e-3, rtol=0)


def test_points_without_weight_and_a_fifth_of_wrong_ones_do_not_move_it():
    cameras = some_cameras()
    points, uvz = correspondences(cameras)
    weights = torch.ones(4, 500)
    weights[:, :100] = 0
    points[:, :100] = 7.0
    points[:, 400:] += 0.3  # wrong, and unknown to be
    assert angle_between_cameras(fit_cameras(points, uvz, weights, OTHERWISE), cameras).max() < 1.0


def test_noise_of_many_points_averages_out():
    cameras = some_cameras()
    points, uvz = correspondences(cameras)
    noisy = points + 0.005 * torch.randn(points.shape, generator=torch.Generator().manual_seed(2))
    assert angle_between_cameras(fit_cameras(noisy, uvz, torch.ones(4, 500), OTHERWISE), cameras).max() < 1.0


def test_where_nothing_is_known_the_other_camera_stays():
    points, uvz = correspondences(some_cameras())
    nothing = fit_cameras(points, uvz, torch.zeros(4, 500), OTHERWISE)
    nonsense = fit_cameras(torch.full_like(points, torch.nan), uvz, torch.ones(4, 500), OTHERWISE)
    assert torch.equal(nothing, OTHERWISE)
    assert torch.equal(nonsense, OTHERWISE)
