import pytest
import torch

from nvb_diffusers.camera import camera_from_angles, check_camera_params, split_camera
from nvb_diffusers.models.camera_predictor import (
    FOCAL_REACH,
    LOOK_AT_REACH,
    PRINCIPAL_POINT_REACH,
    RADIUS_REACH,
    CameraPredictor,
    rotation_from_6d,
)


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    return CameraPredictor(in_channels=10, hidden_size=24, feature_size=7)


def source_features(count):
    return torch.randn(count, 10, 7, 7, generator=torch.Generator().manual_seed(1))


def test_predicted_camera_starts_frontal_and_learns(predictor):
    """Assert a new predictor within 10 degrees and 5 % of the frontal camera, and a gradient to all its weights."""
    cameras = predictor(source_features(2))
    rotation, frontal = split_camera(cameras)[0][:, :3, :3], split_camera(camera_from_angles(0, 0))[0][:3, :3]
    assert (rotation - frontal).abs().max() < 0.17
    assert cameras[:, 11].tolist() == pytest.approx([2.7, 2.7], rel=0.05)
    assert cameras[:, 16].tolist() == pytest.approx([4.2647, 4.2647], rel=0.05)
    (cameras - camera_from_angles(torch.tensor([-40.0, 40.0]), 6.0)).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in predictor.parameters())
    assert not torch.equal(cameras[0], cameras[1])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 100.0, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predicted_cameras_are_valid_whatever_the_features(predictor, scale, dtype):
    """Assert orthonormal rotations to 1e-5 and bounded numbers, for noise of any size and for wild weights."""
    torch.nn.init.normal_(predictor.linear2.weight, std=20)
    features = (source_features(40) / 5).clamp(-1, 1) * scale
    with torch.no_grad():
        cameras = predictor.to(dtype)(features.to(dtype))
    assert cameras.dtype == torch.float32
    check_camera_params(cameras)
    cam2world, intrinsics = split_camera(cameras)
    rotation = cam2world[:, :3, :3]
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3).expand(40, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(40), atol=1e-5, rtol=0)
    distance = cam2world[:, :3, 3].norm(dim=-1)
    assert (distance - 2.7).abs().max() <= 2.7 * RADIUS_REACH + 3**0.5 * LOOK_AT_REACH + 1e-5
    assert (intrinsics[:, 0, 0] / 4.2647 - 1).abs().max() <= FOCAL_REACH + 1e-5
    assert (intrinsics[:, :2, 2] - 0.5).abs().max() <= PRINCIPAL_POINT_REACH


def test_rotation_from_6d_keeps_rotations_and_repairs_the_rest():
    """Assert that a rotation's own columns give it back, and that zero, parallel, tiny and huge vectors give some."""
    rotation = split_camera(camera_from_angles(torch.tensor([25.0, -130.0]), -40, 70))[0][:, :3, :3]
    columns = rotation[..., :2].mT.flatten(1)
    torch.testing.assert_close(rotation_from_6d(columns), rotation)
    torch.testing.assert_close(rotation_from_6d(columns * 1e25), rotation)
    odd = [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 2, 1],
        [1, 2, 3, 0, 0, 0],
        [1, 2, 3, -2, -4, -6],
        [1, 2, 3, 1, 2, 3.0001],
        [1, 2, 3, 1, 2, 3.01],
        [1e-38, 0, 1e-38, 3e38, 3e38, 3e38],
        [1e-44, 0, 0, 1e-44, 0, 0],
    ]
    vectors = torch.tensor(odd, dtype=torch.float32, requires_grad=True)
    repaired = rotation_from_6d(vectors)
    torch.testing.assert_close(repaired.mT @ repaired, torch.eye(3).expand(8, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(repaired), torch.ones(8), atol=1e-5, rtol=0)
    repaired[:6].square().sum().backward()
    assert vectors.grad[:6].isfinite().all()
