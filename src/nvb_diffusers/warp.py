"""Geometry that moves pixels between cameras: the surface that a depth map describes, seen from another camera.

A depth map (B, H, W) holds the distance of each pixel's surface along its camera's forward axis, in world units; a mask
says where the surface is. Rays of a target camera are followed until they meet that surface (relief mapping), rather
than its points splatted: a stretched surface then shows neither holes nor moire, and what hides what follows from the
order along the ray. A face is nearly symmetric about x = 0, so that its mirror image is the same surface seen from the
mirrored camera.

All functions are pure, and differentiable in the values that they carry.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .camera import (
    join_camera,
    mirror_camera,
    pixel_centers,
    project_points,
    rigid_transform,
    split_camera,
    unproject_points,
)

NUM_STEPS = 32  # along a ray from the nearest to the furthest that the surface reaches
NUM_FINE_STEPS, NUM_HALVINGS = 3, 4  # of a ray whose neighbors are known
STEEPEST_SLOPE = 4.0  # of depth against the image plane, 76 degrees: what is steeper is an edge, or seen too obliquely
DEPTH_TOLERANCE = 0.01  # world units; a face is about 0.3 wide
HIDDEN_TOLERANCE = 0.02  # world units; what lies deeper than a true depth map by more is hidden in it
EDGE_MARGIN = 1 / 128  # share of an image's side that is left out along depth edges, where a pixel mixes two things
UNKNOWN_MARGIN = 1 / 16  # share of the side around merged depths in which background cannot be told from head
EMPTY_DEPTH = 100.0  # world units, where a depth map has no surface: behind everything


class SeenSurface(NamedTuple):
    """What V target cameras see of the surface in each of B depth maps.

    Args:
        uv: (B, V, S, S, 2), where in the source's image each target pixel lies, as shares of it.
        visibility: (B, V, S, S) in [0, 1]: 1 where the source shows the point, 0 where nothing is or another part hides
            it from the source.
        stretch: (B, V, S, S), target pixels for one pixel of the source along the axis that is drawn out most, at
            least 1.
    """

    uv: torch.Tensor
    visibility: torch.Tensor
    stretch: torch.Tensor


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


class _Rays(NamedTuple):
    """Rays of N target pixels as the source sees them: ((2 u - 1) z, (2 v - 1) z) is `start_xy` + t `step_xy`, and z
    `start_z` + t `step_z`, with t the depth for the target; (B, V, 1, 2), (B, V, 1), (B, V, N, 2), (B, V, N).
    """

    start_xy: torch.Tensor
    start_z: torch.Tensor
    step_xy: torch.Tensor
    step_z: torch.Tensor


def see_surface(
    depth: torch.Tensor, mask: torch.Tensor, source_cameras: torch.Tensor, target_cameras: torch.Tensor, size: int
) -> SeenSurface:
    """What target cameras see of the surface that sources see.

    Args:
        depth: (B, H, W), along the sources' forward axes in world units.
        mask: (B, H, W) in [0, 1], where the surface is.
        source_cameras: (B, 25).
        target_cameras: (B, V, 25).
        size: S, side of what the targets see in pixels.
    """
    surface = torch.where(mask > 0.5, depth, EMPTY_DEPTH)  # (B, H, W)
    solid = EMPTY_DEPTH - surface[:, None]  # (B, 1, H, W), so that outside of the image zeros stand for nothing
    known = (mask * smooth_surface(surface, source_cameras))[:, None]  # (B, 1, H, W)
    rays = _rays_in_source(source_cameras, target_cameras, size)
    near, far = _depth_range(depth, mask > 0.5, source_cameras, target_cameras)  # (B, V, 1) each
    t = _first_crossing(solid, rays, near, far, size)  # (B, V, S*S)
    met = _behind(solid, rays, t).abs() < (far - near) / NUM_STEPS  # not at a cliff, which nothing brings together
    grid, _ = _at(rays, t)  # (B, V, S*S, 2)
    visibility = _sample(known, grid) * met
    uv = (grid / 2 + 0.5).unflatten(2, (size, size))
    return SeenSurface(uv, visibility.unflatten(2, (size, size)), _stretch(uv, depth.shape[1], depth.shape[2]))


def see_mirrored_surface(
    depth: torch.Tensor, mask: torch.Tensor, source_cameras: torch.Tensor, target_cameras: torch.Tensor, size: int
) -> SeenSurface:
    """What target cameras would see of the mirror image of the surface at x = 0; arguments of `see_surface`."""
    seen = see_surface(depth, mask, source_cameras, mirror_camera(target_cameras), size)
    return SeenSurface(seen.uv.flip(-2), seen.visibility.flip(-1), seen.stretch.flip(-1))


def see_background(source_cameras: torch.Tensor, target_cameras: torch.Tensor, size: int) -> torch.Tensor:
    """Where in the sources' images (B, V, S, S, 2) the targets' background lies, which is infinitely far away."""
    turning = without_position(target_cameras.flatten(0, 1))
    points = unproject_depth(turning.new_ones(len(turning), size, size), turning)  # (B*V, S*S, 3)
    sources = without_position(source_cameras)[:, None]
    uvz = project_points(points.unflatten(0, target_cameras.shape[:2]), sources)  # (B, V, S*S, 3)
    return uvz[..., :2].unflatten(2, (size, size))


def unproject_depth(depth: torch.Tensor, camera_params: torch.Tensor) -> torch.Tensor:
    """World points (..., H*W, 3) of all pixels of depth maps (..., H, W) that cameras (..., 25) see."""
    uv = pixel_centers(depth.shape[-2], depth.shape[-1], depth.device).expand(*depth.shape, 2)
    return unproject_points(torch.cat([uv, depth[..., None]], dim=-1).flatten(-3, -2), camera_params)


def carry(values: torch.Tensor, uv: torch.Tensor) -> torch.Tensor:
    """Values (B, V, C, S, S) at places uv (B, V, S, S, 2) in images (B, C, H, W), sampled linearly, repeated beyond."""
    grid = (2 * uv - 1).flatten(1, 2).to(values)  # (B, V*S, S, 2)
    sampled = F.grid_sample(values, grid, padding_mode="border", align_corners=False)  # (B, C, V*S, S)
    return sampled.unflatten(2, uv.shape[1:3]).movedim(2, 1)


def registered_truth(
    seen: SeenSurface,
    truth: torch.Tensor,
    depth: torch.Tensor,
    source_cameras: torch.Tensor,
    target_depth: torch.Tensor,
    target_cameras: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """True views as they would be if the surface that was read were the true one.

    The surface and the camera that are read of a photo err, so that carried pixels come to lie a little beside their
    place. An error against the truth then pays for blur. Here the truth moves along: the source's pixel that was
    carried to a target's pixel is followed, by the true depth and cameras, to where the target truly shows it.

    Args:
        seen: what the targets see of the surface that was read, of side S.
        truth: (B, V, C, S, S), true views.
        depth: (B, H, W), the true one of the sources; 0 behind everything.
        source_cameras: (B, 25), the true ones.
        target_depth: (B, V, H', W'), the true one of the targets.
        target_cameras: (B, V, 25).

    Returns:
        (B, V, C, S, S), the truth where nothing was carried, or where the true target does not see what was; and
        where it is registered (B, V, S, S).
    """
    points = unproject_depth(torch.where(depth > 0, depth, 1.0), source_cameras)[:, None]  # (B, 1, H*W, 3)
    places = project_points(points, target_cameras).unflatten(2, depth.shape[1:])  # (B, V, H, W, 3)
    present = (depth > 0).to(places)[:, None, ..., None].expand(*places.shape[:-1], 1)  # (B, V, H, W, 1)
    maps = torch.cat([places, present], dim=-1).movedim(-1, 2).flatten(0, 1)  # (B*V, 4, H, W)
    u, v, z, inside_head = carry(maps, seen.uv.flatten(0, 1)[:, None])[:, 0].unbind(dim=1)  # (B*V, S, S) each
    uv = torch.stack([u, v], dim=-1)[:, None]  # (B*V, 1, S, S, 2), in the true targets
    registered = carry(truth.flatten(0, 1), uv)[:, 0]  # (B*V, C, S, S)
    shown = carry(target_depth.flatten(0, 1)[:, None], uv)[:, 0, 0]  # (B*V, S, S)
    sound = (shown - z).abs() < HIDDEN_TOLERANCE
    sound &= (inside_head > 0.99) & (seen.visibility.flatten(0, 1) > 0.5)
    sound &= ((uv > 0) & (uv < 1)).all(dim=-1)[:, 0]
    target = torch.where(sound[:, None], registered, truth.flatten(0, 1))
    return target.unflatten(0, truth.shape[:2]), sound.unflatten(0, truth.shape[:2])


def without_position(camera_params: torch.Tensor) -> torch.Tensor:
    """Cameras (..., 25) that only turn: to them everything infinitely far away looks as to the given ones."""
    cam2world, intrinsics = split_camera(camera_params)
    rotation = cam2world[..., :3, :3]
    return join_camera(rigid_transform(rotation, torch.zeros_like(rotation[..., 0])), intrinsics)


def smooth_surface(depth: torch.Tensor, cameras: torch.Tensor) -> torch.Tensor:
    """1 where depth maps (B, H, W) show a surface that is seen clearly, 0 along depth edges and at grazing angles."""
    pixel = depth / (split_camera(cameras)[1][..., :1, :1] * depth.shape[-1])  # width in world units
    range_of_depth = _largest(depth, 1) + _largest(-depth, 1)
    return (range_of_depth <= 2 * STEEPEST_SLOPE * pixel).to(depth)


def surface_layer(depths: torch.Tensor, cameras: torch.Tensor) -> Layer:
    """The surface in depth maps (V, H, W), away from depth edges and from parts seen very obliquely."""
    smooth = (smooth_surface(torch.where(depths == 0, EMPTY_DEPTH, depths), cameras) > 0) & (depths > 0)
    return Layer(depths, ~_grown(~smooth, round(EDGE_MARGIN * depths.shape[-1])), cameras, DEPTH_TOLERANCE)


def background_layer(depths: torch.Tensor, cameras: torch.Tensor) -> Layer:
    """The background of depth maps (V, H, W), infinitely far away: a plane before cameras that only turn."""
    mask = ~_grown(depths != 0, 1 + round(EDGE_MARGIN * depths.shape[-1]))
    return Layer(torch.ones_like(depths), mask, without_position(cameras), torch.inf)


def warp_views(
    layer: Layer, values: torch.Tensor, target: int, sources: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views as the target view should show them: each of its pixels is unprojected, then found in every source view.

    Args:
        layer: of V views.
        values: (V, C, H, W), images or features.
        target: index of a view; P of its pixels are in the layer's mask, row by row.
        sources: indices of N views.

    Returns:
        (N, C, P), sampled linearly, and whether the source sees that point (N, P): not outside its image, near an
        edge, or hidden.
    """
    pixels, picks = layer.mask[target], list(sources)
    points = unproject_depth(layer.depths[target], layer.cameras[target])[pixels.flatten()]  # (P, 3)
    seen = project_points(points, layer.cameras[picks])  # (N, P, 3)
    extra = torch.stack([layer.depths[picks].nan_to_num(), layer.mask[picks].to(values)], dim=1)
    grid = (2 * seen[:, None, :, :2] - 1).to(values)  # (N, 1, P, 2)
    sampled = F.grid_sample(torch.cat([values[picks], extra], dim=1), grid, align_corners=False)[:, :, 0]
    depth, inside = sampled[:, -2], sampled[:, -1] > 0.999  # short of 1 by rounding
    visible = inside & (seen[..., 2] > 0) & ((depth - seen[..., 2]).abs() < layer.tolerance)
    return sampled[:, :-2], visible


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
    points = unproject_depth(depths, cameras)[depths.flatten(1) > 0]  # (P, 3)
    merged = torch.stack([_splat(project_points(points, camera), size) for camera in asked])  # (F, S, S)
    near_head = _grown(merged > 0, round(UNKNOWN_MARGIN * size))
    return torch.where((merged == 0) & near_head, torch.nan, merged)


def _rays_in_source(source_cameras: torch.Tensor, target_cameras: torch.Tensor, size: int) -> _Rays:
    """Rays of target pixels as the sources see them."""
    at_one = unproject_depth(target_cameras.new_ones(*target_cameras.shape[:2], size, size), target_cameras)
    center = split_camera(target_cameras)[0][..., None, :3, 3]  # (B, V, 1, 3)
    cam2world, intrinsics = split_camera(source_cameras[:, None])
    to_grid = intrinsics.new_tensor([[2.0, 0.0, -1.0], [0.0, 2.0, -1.0], [0.0, 0.0, 1.0]]) @ intrinsics  # u to 2 u - 1
    to_image = cam2world[..., :3, :3] @ to_grid.mT  # (B, 1, 3, 3), for offsets as rows
    start = (center - cam2world[..., None, :3, 3]) @ to_image  # (B, V, 1, 3)
    step = (at_one - center) @ to_image  # (B, V, S*S, 3)
    return _Rays(start[..., :2], start[..., 2], step[..., :2].contiguous(), step[..., 2].contiguous())


def _depth_range(
    depth: torch.Tensor, present: torch.Tensor, source_cameras: torch.Tensor, target_cameras: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depths (B, V, 1) for the targets between which the whole surface lies."""
    points = unproject_depth(depth, source_cameras)[:, None]  # (B, 1, H*W, 3)
    z = project_points(points, target_cameras)[..., 2]  # (B, V, H*W)
    there = present.flatten(1)[:, None]  # (B, 1, H*W)
    near, far = z.masked_fill(~there, torch.inf).amin(-1), z.masked_fill(~there, -torch.inf).amax(-1)
    empty = near > far
    near, far = near.masked_fill(empty, 1.0), far.masked_fill(empty, 1.0)
    margin = 0.02 * (far - near) + 1e-3
    return (near - margin)[..., None], (far + margin)[..., None]


def _first_crossing(solid: torch.Tensor, rays: _Rays, near: torch.Tensor, far: torch.Tensor, size: int) -> torch.Tensor:
    """Depths (B, V, S*S) for the targets at which rays first come to lie behind the surface; `far` where none does.

    Every fourth ray is followed from near to far, the others between what their neighbors found.
    """
    coarse_xy, coarse_z = (x.unflatten(2, (size, size))[:, :, ::2, ::2] for x in (rays.step_xy, rays.step_z))
    coarse = rays._replace(step_xy=coarse_xy.flatten(2, 3), step_z=coarse_z.flatten(2, 3))
    before, after = (x.unflatten(2, coarse_z.shape[2:]) for x in _march(solid, coarse, near, far, NUM_STEPS))
    before, after = (
        x.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., :size, :size].flatten(2)
        for x in (-_largest(-before, 1), _largest(after, 1))
    )
    before, after = _march(solid, rays, before, after, NUM_FINE_STEPS)
    for _ in range(NUM_HALVINGS):
        middle = (before + after) / 2
        is_behind = _behind(solid, rays, middle) > 0
        before, after = torch.where(is_behind, before, middle), torch.where(is_behind, middle, after)
    gap_before, gap_after = (_behind(solid, rays, t) for t in (before, after))
    share = (gap_before / (gap_before - gap_after).clamp(max=-1e-9)).clamp(0, 1)  # the secant rule
    return before + (after - before) * share


def _march(
    solid: torch.Tensor, rays: _Rays, near: torch.Tensor, far: torch.Tensor, num_steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depths (B, V, N) of rays before and after they first come to lie behind the surface; both `far` if never."""
    near, far = (x.expand_as(rays.step_z) for x in (near, far))
    length = (far - near) / num_steps
    crossing = torch.full_like(far, num_steps + 1)  # the step at whose end a ray first lies behind
    for index in range(num_steps, 0, -1):
        crossing = torch.where(_behind(solid, rays, near + length * index) > 0, float(index), crossing)
    crossed = crossing <= num_steps
    after = torch.where(crossed, near + length * crossing, far)
    return torch.where(crossed, after - length, far), after


def _at(rays: _Rays, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places (B, V, N, 2) in the source's image, -1 to 1, and depths (B, V, N), of rays at depths t for the targets."""
    z = rays.start_z + t * rays.step_z
    return (rays.start_xy + t[..., None] * rays.step_xy) / z[..., None], z


def _behind(solid: torch.Tensor, rays: _Rays, t: torch.Tensor) -> torch.Tensor:
    """How far (B, V, N) rays at depths t for the targets lie behind the surface, which is `solid` before nothing."""
    grid, z = _at(rays, t)
    return z - EMPTY_DEPTH + _sample(solid, grid)


def _sample(maps: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Maps (B, 1, H, W) at places (B, V, N, 2), zero outside the image: (B, V, N)."""
    return F.grid_sample(maps, grid, align_corners=False)[:, 0]


def _stretch(uv: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Inverse of the smaller singular value of the map from target to source pixels, (B, V, S, S) of uv (..., 2)."""
    pixels = uv * uv.new_tensor([width, height])
    along_x, along_y = (torch.gradient(pixels, dim=dim)[0] for dim in (-2, -3))  # (B, V, S, S, 2)
    half = (along_x.square().sum(-1) + along_y.square().sum(-1)) / 2
    determinant = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
    smaller = half - (half.square() - determinant.square()).clamp(min=0).sqrt()  # squared
    return smaller.clamp(min=1e-6).rsqrt().clamp(min=1)


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
