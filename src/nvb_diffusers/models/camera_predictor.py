"""The view transformer's camera predictor: features of a photo become the camera it was taken with (Eq. 3)."""

import torch
import torch.nn.functional as F
from torch import nn

from ..camera import FOCAL, RADIUS, join_camera, rigid_transform

# How far a predicted camera may be from EG3D's, whatever the features: these bounds hold by construction.
LOOK_AT_REACH = 0.25  # of the point it looks at, along each axis, in world units
RADIUS_REACH = 0.25  # of its distance from that point, as a share
FOCAL_REACH = 0.5  # of its focal length, as a share
PRINCIPAL_POINT_REACH = 0.25  # of its principal point from the middle, as a share of the image


class CameraPredictor(nn.Module):
    """Features (B, C, H, W) -> a valid camera (B, 25), in float32 (Eq. 3).

    Whatever the features, the rotation is orthonormal and the position and the intrinsics stay within the bounds at the
    top of this file. A new predictor stays near the frontal camera of EG3D.
    """

    def __init__(self, in_channels: int, hidden_size: int, feature_size: int) -> None:
        super().__init__()
        side = -(-feature_size // 4)  # after two halvings, rounded up
        self.norm = nn.LayerNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, hidden_size, kernel_size=3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(hidden_size, hidden_size, kernel_size=3, stride=2, padding=1)
        self.linear1 = nn.Linear(hidden_size * side**2, hidden_size)
        self.linear2 = nn.Linear(hidden_size, 13)
        nn.init.normal_(self.linear2.weight, std=0.01)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Predict the cameras of features (B, C, H, W)."""
        bounded = features.clamp(-1e4, 1e4)  # so that no finite input overflows in the norm
        hidden_states = self.norm(bounded.movedim(1, -1)).movedim(-1, 1)  # (B, C, H, W)
        hidden_states = F.silu(self.conv1(hidden_states))
        hidden_states = F.silu(self.conv2(hidden_states))
        hidden_states = F.silu(self.linear1(hidden_states.flatten(1)))
        prediction = self.linear2(hidden_states).float()  # (B, 13)

        frontal = prediction.new_tensor([1.0, 0.0, 0.0, 0.0, -1.0, 0.0])
        rotation = rotation_from_6d(frontal + prediction[:, :6])  # (B, 3, 3)
        look_at, radius, focal, principal_point = prediction[:, 6:].tanh().split([3, 1, 1, 2], dim=-1)
        position = LOOK_AT_REACH * look_at - RADIUS * (1 + RADIUS_REACH * radius) * rotation[..., 2]
        f = FOCAL * (1 + FOCAL_REACH * focal[:, 0])
        cx, cy = (0.5 + PRINCIPAL_POINT_REACH * principal_point).unbind(-1)
        zero, one = torch.zeros_like(f), torch.ones_like(f)
        intrinsics = torch.stack([f, zero, cx, zero, f, cy, zero, zero, one], dim=-1).unflatten(-1, (3, 3))
        return join_camera(rigid_transform(rotation, position), intrinsics)


def rotation_from_6d(vectors: torch.Tensor) -> torch.Tensor:
    """Rotation (..., 3, 3) from its first two columns (..., 6), made orthonormal by Gram-Schmidt.

    Any finite input gives a rotation: vectors that are zero or parallel are replaced by a coordinate axis.
    """
    first, second = vectors.unflatten(-1, (2, 3)).unbind(-2)
    first, second = (v / v.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) for v in (first, second))
    x_axis = F.one_hot(torch.zeros_like(first[..., 0], dtype=torch.long), 3).to(first.dtype)
    right = F.normalize(torch.where(first.norm(dim=-1, keepdim=True) < 0.5, x_axis, first), dim=-1)
    parallel = torch.linalg.cross(right, second).norm(dim=-1, keepdim=True) < 1e-3
    other_axis = F.one_hot(right.abs().argmin(dim=-1), 3).to(right.dtype)
    down = torch.where(parallel, other_axis, second)
    for _ in range(2):  # the second pass removes what rounding left of the first column
        down = F.normalize(down - (down * right).sum(dim=-1, keepdim=True) * right, dim=-1)
    return torch.stack([right, down, torch.linalg.cross(right, down)], dim=-1)
