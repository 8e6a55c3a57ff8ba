"""The camera that saw given points of a head at given places of its image: pose from dense correspondences.

A network that says of every pixel which point of a head it shows leaves the camera to geometry, which stays right under
a crop that misses its aim. First two clouds of points are aligned (Kabsch); then the error in the image is lowered by
Gauss-Newton steps. In both a point that fits badly counts little (Cauchy's weights).
"""

import torch

from .camera import FOCAL, RADIUS, camera_from_angles, join_camera, rigid_transform, split_camera, unproject_points

NUM_ALIGNMENTS, NUM_FITTING_STEPS = 8, 6
FAR_OFF, OFF = 0.1, 0.01  # world units, and a share of the image's side: a point that misses its place so counts half
DAMPING = 1e-6  # of the normal equations, for points that say nothing of some direction
LEAST_SUPPORT = 0.01  # mean weight of the points below which nothing is known
FURTHEST = 2.0  # factor by which the distance may differ from `RADIUS`


@torch.no_grad()
def fit_cameras(
    points: torch.Tensor, uvz: torch.Tensor, weights: torch.Tensor, otherwise: torch.Tensor
) -> torch.Tensor:
    """Cameras (B, 25) of EG3D's intrinsics that see points where they are seen.

    Args:
        points: (B, N, 3) in the world.
        uvz: (B, N, 3), where an image shows them, as shares of it, and about how far along the forward axis.
        weights: (B, N), how much each counts.
        otherwise: (B, 25), where nothing fits.
    """
    with torch.autocast(points.device.type, enabled=False):  # half precision would move points
        return _fit(points.float(), uvz.float(), weights.float(), otherwise.float())


def _fit(points: torch.Tensor, uvz: torch.Tensor, weights: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """The same in single precision."""
    known = points.isfinite().all(dim=-1) & uvz.isfinite().all(dim=-1)  # (B, N)
    points, uvz = (part.nan_to_num(0.0, 0.0, 0.0) for part in (points, uvz))
    weights = weights * known
    rotation, translation = _align(points, uvz, weights)
    for _ in range(NUM_FITTING_STEPS):
        rotation, translation = _gauss_newton_step(rotation, translation, points, uvz[..., :2], weights)
    position = -(translation[:, None] @ rotation)[:, 0]  # (B, 3)
    intrinsics = split_camera(camera_from_angles(0.0, 0.0).to(points))[1].expand_as(rotation)
    cameras = join_camera(rigid_transform(rotation.mT, position), intrinsics)
    distance = torch.linalg.vector_norm(position, dim=-1) / RADIUS
    fits = (weights.mean(dim=-1) > LEAST_SUPPORT) & (distance < FURTHEST) & (distance > 1 / FURTHEST)  # not NaN
    return torch.where(fits[:, None], cameras, otherwise)


def _align(points: torch.Tensor, uvz: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation (B, 3, 3) and translation (B, 3) that bring world points nearest to what depth says in the camera."""
    camera = points.new_zeros(25)
    camera[[0, 5, 10, 15, 24]] = 1.0
    camera[[16, 20]], camera[[18, 21]] = FOCAL, 0.5
    seen = unproject_points(uvz, camera)  # (B, N, 3), in the camera's axes
    counted = weights
    for _ in range(NUM_ALIGNMENTS):
        rotation, translation = _kabsch(points, seen, counted)
        error = points @ rotation.mT + translation[:, None] - seen
        counted = weights / (1 + error.square().sum(dim=-1) / FAR_OFF**2)
    return rotation, translation


def _kabsch(points: torch.Tensor, seen: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation (B, 3, 3) and translation (B, 3) that bring points (B, N, 3) nearest to others, by weights (B, N)."""
    shares = (weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-6))[..., None]  # (B, N, 1)
    mean, seen_mean = ((part * shares).sum(dim=1) for part in (points, seen))  # (B, 3) each
    covariance = (shares * (points - mean[:, None])).mT @ (seen - seen_mean[:, None])  # (B, 3, 3)
    left, _, right = torch.linalg.svd(covariance)
    handedness = torch.ones_like(mean)
    handedness[:, 2] = torch.linalg.det(left) * torch.linalg.det(right)
    rotation = right.mT @ (handedness[..., None] * left.mT)
    return rotation, seen_mean - (rotation @ mean[..., None])[..., 0]


def _gauss_newton_step(
    rotation: torch.Tensor, translation: torch.Tensor, points: torch.Tensor, uv: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A step of all six numbers of each pose, the turn being about the world's origin, in the head."""
    turned = points @ rotation.mT  # (B, N, 3)
    x, y, z = (turned + translation[:, None]).unbind(dim=-1)
    z = z.clamp(min=0.1)
    error = torch.stack([FOCAL * x / z + 0.5, FOCAL * y / z + 0.5], dim=-1) - uv  # (B, N, 2)
    zero = torch.zeros_like(z)
    of_place = torch.stack([1 / z, zero, -x / z**2, zero, 1 / z, -y / z**2], dim=-1).unflatten(-1, (2, 3)) * FOCAL
    of_turn = torch.linalg.cross(turned[..., None, :].expand_as(of_place), of_place, dim=-1)  # of a turn's vector
    jacobian = torch.cat([of_turn, of_place], dim=-1)  # (B, N, 2, 6)
    counted = weights / (1 + error.square().sum(dim=-1) / OFF**2)  # (B, N)
    weighted = (jacobian * counted[..., None, None]).flatten(1, 2)  # (B, 2 N, 6)
    normal = weighted.mT @ jacobian.flatten(1, 2) / points.shape[1]  # (B, 6, 6)
    slope = weighted.mT @ error.flatten(1, 2)[..., None] / points.shape[1]  # (B, 6, 1)
    step = torch.linalg.solve(normal + DAMPING * torch.eye(6).to(normal), -slope)[..., 0]
    turn = torch.linalg.matrix_exp(_cross_matrix(step[:, :3]))
    return turn @ rotation, translation + step[:, 3:]


def _cross_matrix(vectors: torch.Tensor) -> torch.Tensor:
    """The matrices (B, 3, 3) by which vectors (B, 3) are multiplied crosswise with others."""
    x, y, z = vectors.unbind(dim=-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
