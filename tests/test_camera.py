import json

import pytest
import torch

from nvb_diffusers.camera import (
    angles_from_camera,
    average_cameras,
    camera_from_angles,
    check_camera_params,
    frustum_points,
    join_camera,
    mirror_camera,
    orbit_cameras,
    pixel_centers,
    project_points,
    sample_volume,
    split_camera,
    unproject_points,
    voxel_centers,
)

FFHQ_LABEL = """0.99994 0.01079 0.00012 0.00152  0.01079 -0.99988 0.01075 -0.01205  0.00023 -0.01075 -0.99994 2.69997
0 0 0 1  4.2647 0 0.5 0 4.2647 0.5 0 0 1"""


def assert_close(actual, expected, atol):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


def odd_cameras():
    """Three cameras that differ in every number, with a principal point off the middle and skewed pixels."""
    cam2world, intrinsics = split_camera(camera_from_angles(torch.tensor([-50.0, 5.0, 70.0]), 11.0, -8.0, 2.4, 3.9))
    intrinsics = intrinsics + torch.tensor([[0.0, 0.07, 0.03], [0.0, 0.2, -0.04], [0.0, 0.0, 0.0]])
    return join_camera(cam2world, intrinsics)


def test_published_label_is_a_frontal_face():
    """Assert that a real FFHQ label passes the check and reads back as frontal within 1.5 degrees."""
    label = torch.tensor([float(number) for number in FFHQ_LABEL.split()])
    check_camera_params(label)
    assert angles_from_camera(label).abs().max() < 1.5


def test_frontal_camera_is_the_published_one():
    """Assert every number of the frontal camera, rotation diag(1, -1, -1) at (0, 0, 2.7)."""
    expected = [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.2647, 0, 0.5, 0, 4.2647, 0.5, 0, 0, 1]
    assert_close(camera_from_angles(0, 0), expected, atol=1e-6)


def test_signs_of_the_angles():
    """Assert that yaw +30 stands at +x, pitch +30 at +y, and roll +90 turns the camera's right side down."""
    assert_close(camera_from_angles(30, 0)[[3, 7, 11]], [1.35, 0, 2.338269], atol=1e-5)
    assert_close(camera_from_angles(0, 30)[[3, 7, 11]], [0, 1.35, 2.338269], atol=1e-5)
    assert_close(camera_from_angles(0, 0, 90)[[0, 4, 8]], [0, -1, 0], atol=1e-6)


def test_angles_round_trip_over_a_grid():
    """Assert that angles_from_camera inverts camera_from_angles, also beyond profile and for other radii."""
    yaw, pitch, roll = torch.meshgrid(
        torch.arange(-170, 171, 34.0), torch.arange(-85, 86, 17.0), torch.arange(-175, 176, 35.0), indexing="ij"
    )
    cameras = camera_from_angles(yaw, pitch, roll, radius=3.1, focal=2.0)
    check_camera_params(cameras)
    assert cameras.shape == (11, 11, 11, 25)
    assert_close(angles_from_camera(cameras), torch.stack([yaw, pitch, roll], dim=-1), atol=1e-4)


def test_cameras_look_at_the_origin_from_their_radius():
    """Assert that the origin falls on the middle of the image at depth `radius`."""
    cameras = camera_from_angles(torch.tensor([-70.0, 20.0]), 15, 40, radius=1.9)
    assert_close(project_points(torch.zeros(1, 3), cameras), [[[0.5, 0.5, 1.9]]] * 2, atol=1e-6)


def test_orbit_spaces_views_evenly():
    """Assert the yaws of an orbit, the middle for a single view, and a ValueError for none."""
    assert_close(angles_from_camera(orbit_cameras(4, (-45, 30), pitch_deg=5))[:, 0], [-45, -20, 5, 30], atol=1e-4)
    assert_close(angles_from_camera(orbit_cameras(1, (-45, 30)))[:, 0], [-7.5], atol=1e-4)
    with pytest.raises(ValueError, match="at least 1 view"):
        orbit_cameras(0, (-45, 45))


def test_projection_by_hand():
    """Assert u, v and depth of a point right of, above and before the origin, seen from the front."""
    # depth 2.7 - 0.7 = 2; u = 0.5 + 4.2647 * 0.1 / 2; v = 0.5 - 4.2647 * 0.2 / 2, because v runs down
    uvz = project_points(torch.tensor([[0.1, 0.2, 0.7]]), camera_from_angles(0, 0))
    assert_close(uvz, [[0.713235, 0.07353, 2.0]], atol=1e-5)


def test_unprojection_inverts_projection():
    """Assert that points come back through cameras with rotation, skew and a shifted principal point."""
    points = 0.4 * torch.randn(3, 7, 3, generator=torch.Generator().manual_seed(0))
    assert_close(unproject_points(project_points(points, odd_cameras()), odd_cameras()), points, atol=1e-5)


def test_split_and_join_are_inverse():
    """Assert that a label survives being taken apart, bit for bit."""
    assert torch.equal(join_camera(*split_camera(odd_cameras())), odd_cameras())


def test_mirror_negates_the_published_entries():
    """Assert the rule: R01, R02, R10, R20 and t0 change sign, nothing else does, for a centered camera."""
    camera = camera_from_angles(33, 12, 7)
    signs = torch.ones(25)
    signs[[1, 2, 3, 4, 8]] = -1
    assert torch.equal(mirror_camera(camera), camera * signs)
    assert_close(angles_from_camera(mirror_camera(camera)), [-33, 12, -7], atol=1e-4)


def test_mirrored_camera_sees_the_mirrored_world():
    """Assert that a point mirrored at x = 0 falls at 1 - u, also with skew and a shifted principal point."""
    points = 0.3 * torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(1))
    uvz = project_points(points, odd_cameras())
    mirrored = project_points(points * torch.tensor([-1.0, 1.0, 1.0]), mirror_camera(odd_cameras()))
    assert_close(mirrored, torch.stack([1 - uvz[..., 0], uvz[..., 1], uvz[..., 2]], dim=-1), atol=1e-5)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, float("nan"), "not finite"),
        (0, 1.05, "not rigid"),
        (10, 1.0, "not rigid: it deviates by 2 "),  # a mirror image of a rotation
        (14, 0.5, "last row"),
        (16, -4.2647, "focal length of -4.26"),
    ],
)
def test_check_refuses_what_is_no_camera(index, value, message):
    """Assert one clear ValueError for each way in which a single number spoils a camera."""
    cameras = camera_from_angles(torch.zeros(2, 3), 0)
    cameras[1, 2, index] = value
    with pytest.raises(ValueError, match=message):
        check_camera_params(cameras, "target_cameras")


def in_other_convention(which):
    """Cameras of an orbit as other programs write them."""
    cam2world, intrinsics = split_camera(orbit_cameras(3, (-40, 40), 10))
    if which == "pixels":
        intrinsics = intrinsics * torch.tensor([512.0, 512.0, 1.0])[:, None]
    elif which == "OpenGL":
        cam2world = cam2world * torch.tensor([1.0, -1.0, -1.0, 1.0])
    elif which == "world2cam":
        cam2world = torch.linalg.inv(cam2world)
    elif which == "millimeters":
        cam2world[:, :3, 3] *= 400
    elif which == "principal point":
        intrinsics[:, 1, 2] = 2.5
    elif which == "does not see the head: the world's origin":  # of a head that stands elsewhere
        cam2world[:, :3, 3] += torch.tensor([1.0, 0.5, 0.0])
    return join_camera(cam2world, intrinsics)


@pytest.mark.parametrize(
    "which",
    [
        "pixels",
        "OpenGL",
        "world2cam",
        "millimeters",
        "principal point",
        "does not see the head: the world's origin",
    ],
)
def test_other_conventions_are_named(which):
    """Assert that cameras of another convention are refused by its name, and ours in any framing are not."""
    with pytest.raises(ValueError, match=which):
        check_camera_params(in_other_convention(which))
    angles = torch.arange(-180.0, 180, 30), torch.arange(-80.0, 81, 20), torch.arange(-90.0, 91, 45)
    yaw, pitch, roll = torch.meshgrid(*angles, indexing="ij")
    for radius, focal in ((2.7, 4.26), (0.8, 1.0), (30.0, 45.0)):
        check_camera_params(camera_from_angles(yaw, pitch, roll, radius, focal))


def test_pixel_centers_are_the_middles_of_cells():
    """Assert (u, v) of a 2x3 image by hand."""
    expected = [[[1 / 6, 0.25], [0.5, 0.25], [5 / 6, 0.25]], [[1 / 6, 0.75], [0.5, 0.75], [5 / 6, 0.75]]]
    torch.testing.assert_close(pixel_centers(2, 3), torch.tensor(expected))


def test_check_names_the_argument_and_its_shape():
    """Assert that a wrong last dimension is told with the argument's name, and that half precision labels pass."""
    with pytest.raises(ValueError, match=r"`poses` has shape \(4, 16\)"):
        check_camera_params(torch.zeros(4, 16), "poses")
    check_camera_params(camera_from_angles(37, 21, 9).bfloat16())


def test_average_of_an_orbit_is_its_middle():
    """Assert that the mean of views around yaw 20 looks from yaw 20, and that each of a batch is averaged alone."""
    cameras = torch.stack([orbit_cameras(5, (0, 40), pitch_deg=4), orbit_cameras(5, (-60, 0))], dim=1)  # (5, 2, 25)
    assert_close(angles_from_camera(average_cameras(cameras))[:, 0], [20, -30], atol=1e-3)
    assert_close(average_cameras(cameras)[:, 16:], cameras[0, :, 16:], atol=1e-6)


def test_weights_turn_the_average():
    """Assert that three parts of yaw 20 and one of yaw 0 make 15.04 degrees: atan2(.75 sin 20, .25 + .75 cos 20)."""
    pair = torch.stack([camera_from_angles(0, 0), camera_from_angles(20, 0)])
    average = average_cameras(pair, torch.tensor([0.25, 0.75]))
    assert_close(angles_from_camera(average)[0], 15.04, atol=0.01)


def test_average_is_rigid_for_any_rotations():
    """Assert that means of far apart cameras are right-handed rotations to 1e-5."""
    angles = 180 * torch.randn(3, 3, 200, generator=torch.Generator().manual_seed(2))
    rotation = split_camera(average_cameras(camera_from_angles(*angles)))[0][:, :3, :3]
    assert_close(rotation.mT @ rotation, torch.eye(3).expand(200, 3, 3), atol=1e-5)
    assert_close(torch.linalg.det(rotation), torch.ones(200), atol=1e-5)


def test_frustum_points_lie_at_cell_centers():
    """Assert that points project to pixel centers and to the centers of equal depth cells."""
    points = frustum_points(odd_cameras(), height=6, width=7, depth=5, near=2.0, far=3.0)
    assert points.shape == (3, 5, 6, 7, 3)
    uvz = project_points(points.flatten(1, 3), odd_cameras()).unflatten(1, (5, 6, 7))
    assert_close(uvz[:, 0, 0, 0], [[0.5 / 7, 0.5 / 6, 2.1]] * 3, atol=1e-5)
    assert_close(uvz[:, 4, 5, 6], [[6.5 / 7, 5.5 / 6, 2.9]] * 3, atol=1e-5)
    assert_close(uvz[:, 1, 2, 3], [[3.5 / 7, 2.5 / 6, 2.3]] * 3, atol=1e-5)


def test_one_cell_is_the_middle_of_the_view():
    """Assert that a frustum of one cell around the radius holds the origin."""
    points = frustum_points(orbit_cameras(4, (-90, 90)), 1, 1, 1, near=2.2, far=3.2)
    assert_close(points, torch.zeros(4, 1, 1, 1, 3), atol=1e-6)


def test_voxel_centers_by_hand():
    """Assert order and place of voxel centers: x runs fastest, and the outermost are half a voxel from the faces."""
    centers = voxel_centers((2, 3, 4), half_extent=0.6)
    assert centers.shape == (2, 3, 4, 3)
    assert_close(centers[0, 0, 0], [-0.45, -0.4, -0.3], atol=1e-6)
    assert_close(centers[1, 2, 0], [-0.45, 0.4, 0.3], atol=1e-6)


def test_ramp_volume_gives_back_the_coordinates():
    """Assert that a volume that holds x, y and z returns the world points inside the hull of its voxel centers."""
    half_extent, sizes = 0.35, (5, 6, 7)
    ramp = voxel_centers(sizes, half_extent).permute(3, 0, 1, 2)  # (3, Z, Y, X)
    volume = torch.stack([ramp, 2 * ramp])
    reach = half_extent * (1 - 1 / torch.tensor([7.0, 6.0, 5.0]))
    points = reach * (2 * torch.rand(2, 4, 11, 3, generator=torch.Generator().manual_seed(3)) - 1)
    samples = sample_volume(volume, points, half_extent)  # (2, 3, 4, 11)
    assert_close(samples[0].movedim(0, -1), points[0], atol=1e-5)
    assert_close(samples[1].movedim(0, -1), 2 * points[1], atol=1e-5)


def test_volume_ends_at_the_cube():
    """Assert the outermost voxel's value up to the face, and exactly 0 beyond it, along each axis."""
    volume = torch.full((1, 2, 3, 4, 5), 3.0)
    for axis in range(3):
        points = torch.zeros(1, 4, 3)
        points[0, :, axis] = torch.tensor([0.4999, -0.5, 0.5001, -0.5001])
        assert_close(sample_volume(volume, points, half_extent=0.5), [[[3, 3, 0, 0]] * 2], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_blurs_values_but_not_places(dtype):
    """Assert that a half precision volume is sampled where the float32 one is, and keeps its dtype."""
    generator = torch.Generator().manual_seed(4)
    volume = torch.randn(1, 2, 5, 6, 7, generator=generator).to(dtype)
    points = 0.4 * torch.rand(1, 50, 3, generator=generator)
    samples = sample_volume(volume, points, 0.4)
    assert samples.dtype == dtype
    assert torch.equal(samples, sample_volume(volume.float(), points, 0.4).to(dtype))


def test_autocast_leaves_geometry_alone():
    """Assert that points under bfloat16 autocast are bit for bit those without it."""
    expected = frustum_points(odd_cameras(), 3, 4, 5, 2.0, 3.0)
    with torch.autocast("cpu", torch.bfloat16):
        points = frustum_points(odd_cameras(), 3, 4, 5, 2.0, 3.0)
        assert torch.equal(project_points(points[:, 0, 0], odd_cameras())[0, 0, 2].round(decimals=4), torch.tensor(2.1))
    assert torch.equal(points, expected)


def test_labels_of_the_heads_are_orbit_cameras(rendered_heads):
    """Assert that stored labels are our own cameras: rebuilt from their angles, they agree to the digits stored."""
    with (rendered_heads / "images/metadata.jsonl").open() as file:
        labels = torch.tensor([json.loads(line)["camera"] for line in file])
    assert labels.shape == (32, 25)
    check_camera_params(labels)
    angles = angles_from_camera(labels)
    assert angles[:, 0].abs().max() < 61
    assert angles[:, 1].abs().max() < 21
    assert_close(camera_from_angles(*angles.unbind(-1)), labels, atol=1e-5)
