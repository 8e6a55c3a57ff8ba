"""Cameras as plain tensors: labels, angles, orbits, projection, frustum points and volume sampling.

A camera is `camera_params` (..., 25), the label of EG3D: a row-major 4x4 `cam2world` in OpenCV axes (x right, y down,
z forward) followed by 3x3 `intrinsics` normalized by the image size. The world has x to the right, y up and z out of
the face, so a frontal camera has R = diag(1, -1, -1) and t = (0, 0, radius). Angles are true degrees.

One rule places samples everywhere: cell i of n has its center at (i + 0.5) / n (`align_corners=False`), for pixels, for
depth planes and for voxels alike. Image coordinates (u, v) run from 0 to 1, u to the right and v down.

Geometry is computed in float32 even where autocast is on, because half precision moves a sample by a whole cell.
"""

import math
from collections.abc import Sequence
from numbers import Real

import torch
import torch.nn.functional as F

RADIUS = 2.7
FOCAL = 4.2647  # of EG3D's labels, 2985.29 / 700: a full field of view of 13.37 degrees
RIGID_TOLERANCE = 1e-2  # lets bfloat16 labels pass, and stops a cam2world that is scaled by 1 %
MAX_FOCAL, MAX_CENTER, MAX_OFF, MAX_DISTANCE = 50.0, 1.5, 1.5, 100.0  # beyond, numbers are of another convention

Angle = float | torch.Tensor


def camera_from_angles(
    yaw_deg: Angle, pitch_deg: Angle, roll_deg: Angle = 0.0, radius: Angle = RADIUS, focal: Angle = FOCAL
) -> torch.Tensor:
    """Camera that looks at the origin from a direction.

    Args:
        yaw_deg: broadcasts with the others; degrees about the world's y axis, positive moves the camera to +x.
        pitch_deg: degrees of elevation, positive moves the camera up to +y.
        roll_deg: degrees about the camera's own forward axis, positive turns its right side down.
        radius: distance from the origin in world units.
        focal: focal length as a share of the image size, the same along both axes.

    Returns:
        (..., 25), float32, with the broadcast shape of the arguments in front.

    Raises:
        ValueError: a number, other than those in tensors, is not finite, or the pitch beyond 90 degrees.
    """
    arguments = (yaw_deg, pitch_deg, roll_deg, radius, focal)
    _check_finite(*arguments)
    if not isinstance(pitch_deg, torch.Tensor) and abs(pitch_deg) > 90:
        raise ValueError(f"a camera's pitch is {pitch_deg:g} degrees, expected -90 to 90")
    device = next((value.device for value in arguments if isinstance(value, torch.Tensor)), None)
    tensors = [torch.as_tensor(value, dtype=torch.float32, device=device) for value in arguments]
    yaw, pitch, roll, distance, scale = torch.broadcast_tensors(*tensors)
    cos, sin, zero, one = roll.deg2rad().cos(), roll.deg2rad().sin(), torch.zeros_like(roll), torch.ones_like(roll)
    turn = _matrix([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])
    rotation = _product(_upright_rotation(yaw.deg2rad(), pitch.deg2rad()), turn)
    translation = -distance[..., None] * rotation[..., 2]
    intrinsics = _matrix([[scale, zero, one / 2], [zero, scale, one / 2], [zero, zero, one]])
    return join_camera(rigid_transform(rotation, translation), intrinsics)


def _check_finite(*values: Angle) -> None:
    for value in values:
        if not isinstance(value, torch.Tensor) and not (isinstance(value, Real) and math.isfinite(value)):
            raise ValueError(f"a camera's angle or length is {value!r}, expected a finite number")


def orbit_cameras(num_views: int, yaw_range_deg: tuple[float, float], pitch_deg: float = 0.0) -> torch.Tensor:
    """Cameras (V, 25) at evenly spaced yaws, both ends included; a single view stands in the middle of the range."""
    if num_views < 1:
        raise ValueError(f"`num_views` is {num_views}, but an orbit needs at least 1 view.")
    start, end = yaw_range_deg
    _check_finite(start, end)
    yaw = torch.linspace(start, end, num_views) if num_views > 1 else torch.tensor([(start + end) / 2])
    return camera_from_angles(yaw, pitch_deg)


def angles_from_camera(camera_params: torch.Tensor) -> torch.Tensor:
    """Yaw, pitch and roll (..., 3) in degrees of the camera's orientation, whatever its position (..., 25).

    The inverse of `camera_from_angles`, for yaw and roll within +-180 and pitch within +-90 degrees.
    """
    rotation = split_camera(camera_params)[0][..., :3, :3]
    right, backward = rotation[..., 0], -rotation[..., 2]
    yaw = torch.atan2(backward[..., 0], backward[..., 2])
    pitch = torch.atan2(backward[..., 1], torch.hypot(backward[..., 0], backward[..., 2]))
    upright = _upright_rotation(yaw, pitch)
    roll = torch.atan2((upright[..., 1] * right).sum(-1), (upright[..., 0] * right).sum(-1))
    return torch.rad2deg(torch.stack([yaw, pitch, roll], dim=-1))


def split_camera(camera_params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`cam2world` (..., 4, 4) and normalized `intrinsics` (..., 3, 3) of (..., 25), at least float32."""
    if camera_params.shape[-1:] != (25,):
        raise ValueError(f"cameras have shape {tuple(camera_params.shape)}, expected (..., 25)")
    params = _at_least_float32(camera_params)
    return params[..., :16].unflatten(-1, (4, 4)), params[..., 16:].unflatten(-1, (3, 3))


def join_camera(cam2world: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """The label (..., 25) of `cam2world` (..., 4, 4) and normalized `intrinsics` (..., 3, 3)."""
    return torch.cat([cam2world.flatten(-2), intrinsics.flatten(-2)], dim=-1)


def rigid_transform(rotation: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
    """The 4x4 transform (..., 4, 4) of a rotation (..., 3, 3) and a translation (..., 3)."""
    bottom = rotation.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*rotation.shape[:-2], 1, 4)
    return torch.cat([torch.cat([rotation, translation[..., None]], dim=-1), bottom], dim=-2)


def project_points(points: torch.Tensor, camera_params: torch.Tensor) -> torch.Tensor:
    """Where world points fall in a camera's image.

    Args:
        points: (..., N, 3) in the world.
        camera_params: (..., 25).

    Returns:
        (..., N, 3): u and v as shares of the image, and the depth z along the camera's forward axis.
    """
    cam2world, intrinsics = split_camera(camera_params)
    offset = _at_least_float32(points) - cam2world[..., None, :3, 3]
    in_camera = _product(offset, cam2world[..., :3, :3])  # the rotation's inverse: its transpose from the left
    depth = in_camera[..., 2:]
    uv = _product(in_camera / depth, intrinsics.mT)[..., :2]
    return torch.cat([uv, depth], dim=-1)


def unproject_points(uvz: torch.Tensor, camera_params: torch.Tensor) -> torch.Tensor:
    """World points (..., N, 3) of (u, v, depth) (..., N, 3): the inverse of `project_points`."""
    cam2world, intrinsics = split_camera(camera_params)
    (fx, skew, cx), (_, fy, cy) = (intrinsics[..., None, row, :].unbind(-1) for row in (0, 1))
    u, v, depth = _at_least_float32(uvz).unbind(-1)
    y = (v - cy) / fy
    x = (u - cx - skew * y) / fx
    in_camera = torch.stack([x, y, torch.ones_like(x)], dim=-1) * depth[..., None]
    return _product(in_camera, cam2world[..., :3, :3].mT) + cam2world[..., None, :3, 3]


def mirror_camera(camera_params: torch.Tensor) -> torch.Tensor:
    """Camera (..., 25) of the horizontally mirrored image, in a world mirrored at x = 0.

    It negates R01, R02, R10, R20 and t0 (EG3D's rule), and carries the principal point and the skew along.
    """
    cam2world, intrinsics = split_camera(camera_params)
    flip = cam2world.new_tensor([-1.0, 1.0, 1.0, 1.0])
    mirrored = intrinsics.clone()
    mirrored[..., 0, 1] = -intrinsics[..., 0, 1]
    mirrored[..., 0, 2] = 1 - intrinsics[..., 0, 2]
    return join_camera(flip[:, None] * cam2world * flip, mirrored)


def check_camera_params(camera_params: torch.Tensor, name: str = "cameras") -> None:
    """Raise a ValueError unless (..., 25) holds finite, rigid cameras of this module's convention."""
    if not isinstance(camera_params, torch.Tensor):
        raise ValueError(f"`{name}` is a {type(camera_params).__name__}, but a tensor (..., 25) is accepted.")
    if camera_params.shape[-1:] != (25,):
        raise ValueError(
            f"`{name}` has shape {tuple(camera_params.shape)}, but its last dimension must be 25: "
            "a row-major 4x4 cam2world, then 3x3 intrinsics."
        )
    if not torch.isfinite(camera_params).all():
        raise ValueError(f"`{name}` holds values that are not finite.")
    cam2world, intrinsics = split_camera(camera_params)
    rotation = cam2world[..., :3, :3]
    identity = torch.eye(4, dtype=rotation.dtype, device=rotation.device)
    excess = (_product(rotation.mT, rotation) - identity[:3, :3]).abs().amax(dim=(-2, -1))
    last_row = (cam2world[..., 3, :] - identity[3]).abs().amax(dim=-1)
    handedness = (torch.linalg.det(rotation) - 1).abs()
    deviation = torch.stack([excess, last_row, handedness]).max().item()
    if deviation > RIGID_TOLERANCE:
        raise ValueError(
            f"`{name}` holds a cam2world that is not rigid: it deviates by {deviation:.3g} from a right-handed "
            f"rotation with the last row 0 0 0 1, and at most {RIGID_TOLERANCE} is accepted."
        )
    bottom = (intrinsics[..., 2, :] - identity[2, :3]).abs().amax().item()
    if bottom > RIGID_TOLERANCE:
        raise ValueError(f"`{name}` holds intrinsics whose last row is {bottom:.3g} off 0 0 1.")
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]]).min().item()
    if focal <= 0:
        raise ValueError(f"`{name}` holds a focal length of {focal:.3g}, but it must be a positive share of the image.")
    _refuse_other_conventions(cam2world, intrinsics, name)


def _refuse_other_conventions(cam2world: torch.Tensor, intrinsics: torch.Tensor, name: str) -> None:
    """Raise a ValueError that names the convention where valid numbers make no camera of a head at the origin."""
    focal, position = intrinsics[..., 0, 0].max().item(), cam2world[..., :3, 3]
    if focal > MAX_FOCAL:
        raise ValueError(
            f"`{name}` holds a focal length of {focal:.5g} image sizes, as if intrinsics were in pixels: divide their "
            "first row by the width and their second by the height."
        )
    center = (intrinsics[..., :2, 2] - 0.5).abs().max().item()
    if center > MAX_CENTER:
        raise ValueError(f"`{name}` holds a principal point {center:.3g} image sizes off the middle of the image.")
    distance = torch.linalg.vector_norm(position, dim=-1)
    if distance.max().item() > MAX_DISTANCE:
        raise ValueError(
            f"`{name}` holds a camera {distance.max().item():.5g} units from the head, as if in millimeters: a frontal "
            f"camera of focal length {FOCAL} is {RADIUS} away."
        )
    ahead = -_product(position[..., None, :], cam2world[..., :3, :3])[..., 0, :]  # the origin, from the camera
    if (ahead[..., 2] < -1e-2 * distance).any():
        raise ValueError(
            f"`{name}` holds a camera that looks away from the head at the origin, as in OpenGL's or Blender's axes: "
            "negate the second and the third column of its rotation."
        )
    on_axis = (position[..., 2] > 0) & (position[..., :2].abs().amax(dim=-1) < 1e-2 * distance)
    shown = _product((ahead / ahead[..., 2:].clamp(min=1e-6))[..., None, :], intrinsics.mT)[..., 0, :2]
    off = (shown - 0.5).abs().amax(dim=-1)  # image sizes from the middle of the image to where the origin falls
    if (on_axis & (off > MAX_OFF)).any():
        raise ValueError(f"`{name}` holds a camera that does not see the head, as a world2cam would: give its inverse.")
    if off.max().item() > MAX_OFF:
        raise ValueError(
            f"`{name}` holds a camera that does not see the head: the world's origin, where the head is, falls "
            f"{off.max().item():.3g} image sizes off the middle of its image, and at most {MAX_OFF:g} is accepted."
        )


def average_cameras(camera_params: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean camera (..., 25) over the first dimension of (N, ..., 25), by weights (N, ...) that sum to 1 over it.

    The rotation is the one nearest to the mean matrix (by singular values), so the result is rigid; the position and
    the intrinsics are plain means.
    """
    if weights is None:
        weights = camera_params.new_full(camera_params.shape[:-1], 1 / len(camera_params))
    cam2world, intrinsics = ((part * weights[..., None, None]).sum(dim=0) for part in split_camera(camera_params))
    left, _, right = torch.linalg.svd(cam2world[..., :3, :3])
    handedness = torch.ones_like(left[..., 0])
    handedness[..., 2] = torch.linalg.det(left) * torch.linalg.det(right)
    rotation = _product(left * handedness[..., None, :], right)
    return join_camera(rigid_transform(rotation, cam2world[..., :3, 3]), intrinsics)


def angle_between_cameras(camera_params: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Angle (...) in degrees of the turn between the orientations of two cameras (..., 25)."""
    rotation, other_rotation = (split_camera(params)[0][..., :3, :3] for params in (camera_params, other))
    distance = torch.linalg.matrix_norm(rotation - other_rotation)  # Frobenius: sqrt 8 sin(angle / 2)
    return torch.rad2deg(2 * torch.asin((distance / 8**0.5).clamp(max=1)))


def frustum_points(
    camera_params: torch.Tensor, height: int, width: int, depth: int, near: float, far: float
) -> torch.Tensor:
    """World points of a grid of cells between two planes before the camera, each at the center of its cell.

    Args:
        camera_params: (..., 25).
        height, width: cells of the image.
        depth: cells between the planes.
        near, far: distance of the planes along the camera's forward axis, in world units.

    Returns:
        (..., D, H, W, 3).
    """
    z, v, u = torch.meshgrid(*(_cell_centers(n, camera_params.device) for n in (depth, height, width)), indexing="ij")
    uvz = torch.stack([u, v, near + (far - near) * z], dim=-1)  # (D, H, W, 3)
    return unproject_points(uvz.flatten(0, 2), camera_params).unflatten(-2, (depth, height, width))


def pixel_centers(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """(u, v) of each pixel's center (H, W, 2), as shares of the image."""
    v, u = torch.meshgrid(_cell_centers(height, device), _cell_centers(width, device), indexing="ij")
    return torch.stack([u, v], dim=-1)


def voxel_centers(
    volume_size: int | Sequence[int], half_extent: float, device: torch.device | None = None
) -> torch.Tensor:
    """World points (Z, Y, X, 3) at the voxel centers of the cube; `volume_size` is one side or (Z, Y, X)."""
    sizes = (volume_size,) * 3 if isinstance(volume_size, int) else tuple(volume_size)
    z, y, x = torch.meshgrid(*(_cell_centers(n, device) for n in sizes), indexing="ij")
    return half_extent * (2 * torch.stack([x, y, z], dim=-1) - 1)


def sample_volume(volume: torch.Tensor, points: torch.Tensor, half_extent: float) -> torch.Tensor:
    """Trilinear samples of a volume that fills the cube |x|, |y|, |z| <= half_extent.

    A point outside the cube gives exactly 0. Between voxel centers the value is linear; in the half voxel between the
    outermost centers and the cube's faces it stays what it is at those centers.

    Args:
        volume: (B, C, Z, Y, X), each index growing with its world axis.
        points: (B, ..., 3) as (x, y, z) in the world.
        half_extent: half the side of the cube in world units.

    Returns:
        (B, C, ...), in the volume's dtype.
    """
    points = _at_least_float32(points)
    grid = (points / half_extent).flatten(1, -2)[:, None, None].to(torch.promote_types(points.dtype, volume.dtype))
    samples = F.grid_sample(volume.to(grid.dtype), grid, padding_mode="border", align_corners=False)  # (B, C, 1, 1, N)
    inside = (points.abs() <= half_extent).all(dim=-1)[:, None]  # (B, 1, ...)
    samples = samples.reshape(*samples.shape[:2], *points.shape[1:-1])
    return (samples * inside).to(volume.dtype)


def _upright_rotation(yaw: torch.Tensor, pitch: torch.Tensor) -> torch.Tensor:
    """Rotation (..., 3, 3) of a camera without roll, columns right, down, forward; angles in radians."""
    (cos_y, sin_y), (cos_p, sin_p) = (yaw.cos(), yaw.sin()), (pitch.cos(), pitch.sin())
    right = torch.stack([cos_y, torch.zeros_like(yaw), -sin_y], dim=-1)
    down = torch.stack([sin_y * sin_p, -cos_p, cos_y * sin_p], dim=-1)
    forward = -torch.stack([sin_y * cos_p, sin_p, cos_y * cos_p], dim=-1)
    return torch.stack([right, down, forward], dim=-1)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Matrix product of (..., L, M) and (..., M, N) that autocast cannot turn into half precision."""
    return (left[..., :, :, None] * right[..., None, :, :]).sum(dim=-2)


def _matrix(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    """The matrix (..., R, C) of rows of tensors of one shape."""
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _cell_centers(count: int, device: torch.device | None) -> torch.Tensor:
    """Centers of `count` equal cells of the unit interval."""
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself in float32 or float64, else as float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
