import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import gennorm

from nvb_diffusers.camera import angle_between_cameras, camera_from_angles, project_points
from nvb_diffusers.data.images import psnr
from nvb_diffusers.evaluation.metrics import (
    _fit_asymmetric,
    camera_from_mesh,
    describe,
    fit_mesh,
    fit_niqe,
    frechet_distance,
    identity_cosine,
    niqe,
    pose_error,
    resize_square,
    ssim,
)


def smooth_pictures(count: int, side: int = 64) -> torch.Tensor:
    """Pictures (N, 3, S, S) of large and small shapes."""
    torch.manual_seed(0)
    sizes = (3, 9, 27, side)
    layers = [
        resize_square(torch.rand(count, 3, size, size) - 0.5, side) / index for index, size in enumerate(sizes, 1)
    ]
    return sum(layers).clamp(-1, 1)


def test_psnr_and_ssim_of_flat_pictures():
    """Assert the values that the formulas give by hand: of an offset of 0.2, and of two constant pictures."""
    dark, bright = torch.full((1, 3, 16, 16), -0.5), torch.full((1, 3, 16, 16), -0.3)
    assert psnr(bright, dark).item() == pytest.approx(20 * math.log10(2 / 0.2), abs=1e-3)
    stabiliser = (0.01 * 2) ** 2
    expected = (2 * 0.5 * 0.3 + stabiliser) / (0.5**2 + 0.3**2 + stabiliser)
    assert ssim(bright, dark).item() == pytest.approx(expected, abs=1e-4)
    assert ssim(dark, dark).item() == pytest.approx(1, abs=1e-6)


def test_ssim_falls_with_a_shift():
    """Assert that a picture is its own best match and that a known shift costs more the larger it is."""
    picture = smooth_pictures(1)
    values = [ssim(picture.roll(shift, dims=3), picture).item() for shift in (0, 1, 4)]
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values[0] > values[1] > values[2]


def test_frechet_distance_of_known_gaussians():
    """Assert |m|^2 + sum (s - 1)^2 for a whitened sample scaled by s and moved by m, and 0 for itself."""
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(50, 3))
    sample -= sample.mean(axis=0)
    sample = sample @ np.linalg.inv(np.linalg.cholesky(np.cov(sample, rowvar=False)).T)  # covariance of exactly 1
    scale, move = np.array([2.0, 0.5, 1.0]), np.array([3.0, 0.0, -1.0])
    assert frechet_distance(sample * scale + move, sample) == pytest.approx(10 + 1 + 0.25)
    assert frechet_distance(sample, sample) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [40, 6])
def test_frechet_distance_is_that_of_the_matrix_root(count):
    """Assert agreement with scipy's matrix root, with more and with fewer pictures than features."""
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(8, 8))
    first, second = rng.normal(size=(count, 8)) @ mixing, rng.normal(size=(count + 3, 8)) + 0.5
    covariances = [np.cov(part, rowvar=False) + 1e-12 * np.eye(8) for part in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-3)


def test_identity_cosine_by_hand():
    """Assert the cosine of embeddings of any length."""
    assert identity_cosine(np.array([3.0, 4.0]), np.array([6.0, 8.0])) == pytest.approx(1)
    assert identity_cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))


def test_pose_error_of_cameras_a_known_angle_apart():
    """Assert the angle of a turn in yaw and of one in roll, wherever the camera stands."""
    start = camera_from_angles(10.0, 0.0)
    assert pose_error(camera_from_angles(35.0, 0.0), start) == pytest.approx(25, abs=1e-2)
    assert pose_error(camera_from_angles(10.0, 0.0, 8.0, radius=2.0), start) == pytest.approx(8, abs=1e-2)


def test_mesh_and_cameras_come_back_from_their_projections():
    """Assert that points seen from known cameras are found in the world, and new cameras from the points."""
    torch.manual_seed(0)
    points = torch.rand(20, 3, dtype=torch.float64) * 0.3 - 0.15
    cameras = camera_from_angles(torch.tensor([-30.0, 0.0, 25.0, 5.0]), torch.tensor([5.0, -10.0, 0.0, 20.0]))
    seen = [project_points(points, camera)[:, :2].double().numpy() for camera in cameras]
    mesh = fit_mesh(seen[:3], cameras[:3])
    assert np.abs(mesh - points.numpy()).max() < 1e-4
    found = camera_from_mesh(seen[3], mesh, cameras[3])
    assert angle_between_cameras(found, cameras[3]).item() < 0.05
    assert torch.allclose(found, cameras[3], atol=5e-3)


def test_niqe_fit_finds_the_shape_of_a_distribution():
    """Assert the shape and scale of samples of a known generalized Gaussian, and the sides of a lopsided one."""
    for shape in (1.0, 2.0, 4.0):
        samples = gennorm.rvs(shape, scale=1.5, size=(2, 20000), random_state=0)
        fitted, mean, left, right = _fit_asymmetric(samples)
        assert fitted == pytest.approx(shape, rel=0.08)
        assert left == pytest.approx(1.5, rel=0.04)
        assert np.abs(mean).max() < 0.1
        assert right == pytest.approx(left, rel=0.05)
    lopsided = np.where(samples > 0, samples * 3, samples)[:1]
    _, mean, left, right = _fit_asymmetric(lopsided)
    assert right / left == pytest.approx(3, rel=0.05)
    assert mean > 0


def test_niqe_is_least_for_what_it_was_fitted_on():
    """Assert that noise and blur both move a picture away from the model of good ones."""
    pictures = smooth_pictures(12)
    model = fit_niqe(pictures)
    good = np.mean([niqe(picture, model) for picture in pictures])
    noisy = (pictures + 0.3 * torch.randn(pictures.shape)).clamp(-1, 1)
    blurred = resize_square(resize_square(pictures, 16), 64)
    assert np.mean([niqe(picture, model) for picture in noisy]) > 1.5 * good
    assert np.mean([niqe(picture, model) for picture in blurred]) > 1.5 * good


def test_every_column_is_described_by_its_name():
    """Assert that the network in brackets does not matter, and that unknown columns are errors."""
    assert describe("POSE (mediapipe)") == describe("POSE (own predictor)")
    assert describe("asked POSE (mediapipe)").unit == "deg"
    assert describe("dlib-ID").better == "higher"
    assert describe("warp error").better == "lower"
