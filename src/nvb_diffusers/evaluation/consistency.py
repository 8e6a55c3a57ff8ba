"""Whether views show one scene: each view is warped into another through the true geometry and compared there.

The face is warped through exact depth, the background as a panorama infinitely far away, by the cameras' rotation
alone. An error is to be read beside that of the true views, which is not zero either: highlights move with the camera,
and every warp resamples. Nor is the smallest error the best: views without any detail agree perfectly.

A depth map (H, W) holds, for each pixel, the distance along the camera's forward axis in world units; 0 stands for the
background, and NaN for a pixel of which nothing is known.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F

from nvb_diffusers.camera import (
    angle_between_cameras,
    join_camera,
    pixel_centers,
    project_points,
    rigid_transform,
    split_camera,
    unproject_points,
)

MAX_ANGLE_DEG = 40.0  # of two views that are compared
DEPTH_TOLERANCE = 0.01  # world units; a face is about 0.3 wide
STEEPEST_SLOPE = 4.0  # of depth against the image plane, 76 degrees; what is steeper is an edge, or seen too obliquely
EDGE_MARGIN = 1 / 128  # share of the picture's side that is left out along depth edges, where a pixel mixes two things
UNKNOWN_MARGIN = 1 / 16  # share of the side around merged depths in which background cannot be told from head
GRADIENT_SCALES = (1, 2)  # times 1/128 of the side: the blurs of the gradient features
GRADIENT_FLOOR = 0.01  # per pixel of the blur: fainter gradients are noise, and are not normalized up
TRUTH_SUFFIX = " of the truth"


class Layer(NamedTuple):
    """A part of a scene that V views show: the face, or the background.

    Args:
        depths: (V, H, W).
        mask: (V, H, W), the pixels that show this part clearly.
        cameras: (V, 25).
        tolerance: difference of depth beyond which one view does not see what another does, in world units.
    """

    depths: torch.Tensor
    mask: torch.Tensor
    cameras: torch.Tensor
    tolerance: float


def score_identity(
    images: torch.Tensor, depths: torch.Tensor, cameras: torch.Tensor, truths: torch.Tensor
) -> dict[str, float]:
    """How far the views of one face disagree with each other, over all ordered pairs less than 40 degrees apart.

    Args:
        images: generated views (V, 3, H, W) in [-1, 1].
        depths: (V, H, W), of the true views.
        cameras: (V, 25).
        truths: true views (V, 3, H, W) in [-1, 1], at the same cameras.

    Returns:
        "warp error": mean absolute difference of the face in [0, 1]; "feature error": that of `gradient_features`, of
        about 1 for unrelated pictures; "background error": as the first, of the background; and the same three "of
        the truth". Lower is better, down to that of the truth. NaN where no pixel is seen by both of a pair, as is the
        background if all views are further apart than the field of view.
    """
    _check_views(images, depths, cameras, truths)
    angles = angle_between_cameras(cameras[:, None], cameras[None])
    close = (angles < MAX_ANGLE_DEG) & ~torch.eye(len(cameras), dtype=torch.bool, device=cameras.device)
    pairs = [(target, row.nonzero().flatten().tolist()) for target, row in enumerate(close) if row.any()]
    errors = _pair_errors({"": images, TRUTH_SUFFIX: truths}, depths, cameras, pairs)
    names = {"warp error": "face", "feature error": "features", "background error": "background"}
    return {name + suffix: errors[key + suffix] for suffix in ("", TRUTH_SUFFIX) for name, key in names.items()}


def orbit_flicker(
    frames: torch.Tensor, depths: torch.Tensor, cameras: torch.Tensor, truths: torch.Tensor | None = None
) -> dict[str, float]:
    """How much each frame of an orbit differs from the one before it, once that is warped to its camera.

    Args:
        frames: (F, 3, H, W) in [-1, 1], in the order of the orbit.
        depths: (F, H, W), of the true head, for instance by `merge_depths`.
        cameras: (F, 25).
        truths: (F, 3, H, W) in [-1, 1], where they are known.

    Returns:
        "flicker" and "background flicker": mean absolute difference in [0, 1] of the face and of the background, and,
        with truths, the same "of the truth". NaN where nothing is seen by two frames in turn.
    """
    _check_views(frames, depths, cameras, truths)
    pictures = {"": frames} if truths is None else {"": frames, TRUTH_SUFFIX: truths}
    errors = _pair_errors(pictures, depths, cameras, [(target, [target - 1]) for target in range(1, len(frames))])
    names = {"flicker": "face", "background flicker": "background"}
    return {name + suffix: errors[key + suffix] for suffix in pictures for name, key in names.items()}


def surface_layer(depths: torch.Tensor, cameras: torch.Tensor) -> Layer:
    """The surface in depth maps (V, H, W), away from depth edges and from parts seen very obliquely."""
    pixel = depths / (split_camera(cameras)[1][..., :1, :1] * depths.shape[-1])  # width in world units
    known = torch.where(depths > 0, depths, torch.nan)  # NaN reaches the neighbors, which are then at an edge
    smooth = _largest(known, 1) + _largest(-known, 1) <= 2 * STEEPEST_SLOPE * pixel
    return Layer(depths, ~_grown(~smooth, round(EDGE_MARGIN * depths.shape[-1])), cameras, DEPTH_TOLERANCE)


def background_layer(depths: torch.Tensor, cameras: torch.Tensor) -> Layer:
    """The background of depth maps (V, H, W), infinitely far away: a plane before cameras that only turn."""
    cam2world, intrinsics = split_camera(cameras)
    rotation = cam2world[..., :3, :3]
    turning = join_camera(rigid_transform(rotation, torch.zeros_like(rotation[..., 0])), intrinsics)
    mask = ~_grown(depths != 0, 1 + round(EDGE_MARGIN * depths.shape[-1]))
    return Layer(torch.ones_like(depths), mask, turning, torch.inf)


def warp(layer: Layer, values: torch.Tensor, target: int, sources: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Views as the target view should show them: each of its pixels is unprojected, then found in every source view.

    Args:
        layer: of V views.
        values: (V, C, H, W), pictures or features.
        target: index of a view; P of its pixels are in the layer's mask, row by row.
        sources: indices of N views.

    Returns:
        (N, C, P), sampled linearly, and whether the source sees that point (N, P): not outside its picture, near an
        edge, or hidden.
    """
    pixels, picks = layer.mask[target], list(sources)
    height, width = pixels.shape
    centers = pixel_centers(height, width, pixels.device)[pixels]  # (P, 2)
    uvz = torch.cat([centers, layer.depths[target][pixels][:, None]], dim=-1)  # (P, 3)
    points = unproject_points(uvz, layer.cameras[target])
    seen = project_points(points, layer.cameras[picks])  # (N, P, 3)
    extra = torch.stack([layer.depths[picks].nan_to_num(), layer.mask[picks].to(values)], dim=1)
    grid = (2 * seen[:, None, :, :2] - 1).to(values)  # (N, 1, P, 2)
    sampled = F.grid_sample(torch.cat([values[picks], extra], dim=1), grid, align_corners=False)[:, :, 0]
    depth, inside = sampled[:, -2], sampled[:, -1] > 0.999  # short of 1 by rounding
    visible = inside & (seen[..., 2] > 0) & ((depth - seen[..., 2]).abs() < layer.tolerance)
    return sampled[:, :-2], visible


def gradient_features(images: torch.Tensor) -> torch.Tensor:
    """Normalized gradients (N, 4, H, W) of pictures (N, 3, H, W) in [0, 1]: fixed features, which no training made.

    Horizontal and vertical differences of the blurred luminance (Rec. 601) at two scales, each divided by the root
    mean square of the gradient around it. So a detail counts by its shape and not by its contrast.
    """
    luminance = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    features = []
    for scale in GRADIENT_SCALES:
        sigma = scale * images.shape[-1] / 128
        padded = F.pad(_blurred(luminance, sigma), (1, 1, 1, 1), mode="replicate")
        horizontal = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        vertical = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        gradient = torch.cat([horizontal, vertical], dim=1) * sigma  # (N, 2, H, W)
        energy = _blurred(gradient.square().sum(dim=1, keepdim=True), 3 * sigma)
        features.append(gradient / (energy + GRADIENT_FLOOR**2).sqrt())
    return torch.cat(features, dim=1)


def merge_depths(depths: torch.Tensor, cameras: torch.Tensor, asked: torch.Tensor, size: int) -> torch.Tensor:
    """Depth maps (F, S, S) at asked cameras, from those of known views: their pixels splatted, the nearest kept.

    What no known view sees is NaN, as is a margin around the head, where unseen hair cannot be told from background.

    Args:
        depths: (V, H, W).
        cameras: (V, 25), of `depths`.
        asked: (F, 25).
        size: side of the maps in pixels; each known pixel fills one, so a smaller side than that of `depths` leaves
            fewer holes.
    """
    height, width = depths.shape[-2:]
    centers = pixel_centers(height, width, depths.device).expand(*depths.shape, 2)
    uvz = torch.cat([centers, depths[..., None]], dim=-1)
    points = unproject_points(uvz.flatten(1, 2), cameras)[depths.flatten(1) > 0]  # (P, 3)
    merged = torch.stack([_splat(project_points(points, camera), size) for camera in asked])  # (F, S, S)
    near_head = _grown(merged > 0, round(UNKNOWN_MARGIN * size))
    return torch.where((merged == 0) & near_head, torch.nan, merged)


def _pair_errors(
    pictures: dict[str, torch.Tensor],
    depths: torch.Tensor,
    cameras: torch.Tensor,
    pairs: Iterable[tuple[int, Sequence[int]]],
) -> dict[str, float]:
    """Mean absolute differences over pairs, each pixel counted once: of the face, its features and the background.

    Args:
        pictures: views (V, 3, H, W) in [-1, 1] by a suffix of the scores' names.
        depths: (V, H, W).
        cameras: (V, 25).
        pairs: a target view, and the views that are warped into it.
    """
    images = {suffix: views.float().clamp(-1, 1) / 2 + 0.5 for suffix, views in pictures.items()}
    far = {f"background{suffix}": views for suffix, views in images.items()}
    near = {f"face{suffix}": views for suffix, views in images.items()}
    near |= {f"features{suffix}": gradient_features(views) for suffix, views in images.items()}
    parts = ((surface_layer(depths, cameras), near), (background_layer(depths, cameras), far))
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in (*near, *far)}
    for (target, sources), (layer, values) in product(pairs, parts):
        stacked = torch.cat(list(values.values()), dim=1)  # (V, C, H, W)
        warped, visible = warp(layer, stacked, target, sources)  # (N, C, P), (N, P)
        difference = (warped - stacked[target][:, layer.mask[target]]).abs()
        for name, part in zip(values, difference.split([v.shape[1] for v in values.values()], dim=1), strict=True):
            total = part.mean(dim=1)[visible].sum(dtype=torch.float64)
            sums[name] += torch.stack([total, visible.sum().to(total)]).cpu()
    return {name: (total / count).item() for name, (total, count) in sums.items()}


def _splat(uvz: torch.Tensor, size: int) -> torch.Tensor:
    """Depth map (S, S) of projected points (P, 3): in each pixel the mean of those at the nearest depth; 0 for none."""
    inside = ((uvz[:, :2] >= 0) & (uvz[:, :2] < 1)).all(dim=-1)
    column, row = (uvz[inside, :2] * size).long().unbind(-1)
    depth, pixel = uvz[inside, 2], row * size + column
    nearest = depth.new_full((size * size,), torch.inf).scatter_reduce(0, pixel, depth, "amin")
    front = depth < nearest[pixel] + DEPTH_TOLERANCE
    total = torch.zeros_like(nearest).index_add(0, pixel[front], depth[front])
    return (total / pixel[front].bincount(minlength=size * size).clamp(min=1)).unflatten(0, (size, size))


def _largest(maps: torch.Tensor, margin: int) -> torch.Tensor:
    """Largest value (..., H, W) within `margin` pixels along each axis; NaN wins."""
    size = 2 * margin + 1
    pooled = F.max_pool2d(maps.reshape(-1, 1, *maps.shape[-2:]), (1, size), stride=1, padding=(0, margin))
    return F.max_pool2d(pooled, (size, 1), stride=1, padding=(margin, 0)).reshape(maps.shape)


def _grown(mask: torch.Tensor, margin: int) -> torch.Tensor:
    """A mask (..., H, W) grown by `margin` pixels along each axis."""
    return _largest(mask.float(), margin) > 0


def _blurred(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Maps (N, 1, H, W) under a Gaussian of `sigma` pixels, the picture's border repeated outwards."""
    reach = round(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.softmax(-offsets.square() / (2 * sigma**2), dim=0)
    maps = F.conv2d(F.pad(maps, (reach, reach, 0, 0), mode="replicate"), kernel[None, None, None])
    return F.conv2d(F.pad(maps, (0, 0, reach, reach), mode="replicate"), kernel[None, None, :, None])


def _check_views(
    images: torch.Tensor, depths: torch.Tensor, cameras: torch.Tensor, truths: torch.Tensor | None
) -> None:
    """Raise a ValueError unless there is a depth map, a camera and a truth of the same size for each view."""
    size = (len(images), *images.shape[2:])
    expected: Sequence[tuple[str, torch.Tensor, tuple[int, ...]]] = [
        ("depths", depths, size),
        ("cameras", cameras, (len(images), 25)),
        ("truths", images if truths is None else truths, tuple(images.shape)),
    ]
    for name, tensor, shape in expected:
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"`{name}` has shape {tuple(tensor.shape)}, but for views {tuple(images.shape)} it must be {shape}."
            )
