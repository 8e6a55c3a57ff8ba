"""Whether views show one scene: each view is warped into another through the true geometry and compared there.

The face is warped through exact depth, the background as a panorama infinitely far away, by the cameras' rotation
alone. An error is to be read beside that of the true views, which is not zero either: highlights move with the camera,
and every warp resamples. Nor is the smallest error the best: views without any detail agree perfectly.

A depth map (H, W) holds, for each pixel, the distance along the camera's forward axis in world units; 0 stands for the
background, and NaN for a pixel of which nothing is known.
"""

from collections.abc import Iterable, Sequence
from itertools import product

import torch
import torch.nn.functional as F

from nvb_diffusers.camera import angle_between_cameras
from nvb_diffusers.warp import background_layer, surface_layer, warp_views

MAX_ANGLE_DEG = 40.0  # of two views that are compared
GRADIENT_SCALES = (1, 2)  # times 1/128 of the side: the blurs of the gradient features
GRADIENT_FLOOR = 0.01  # per pixel of the blur: fainter gradients are noise, and are not normalized up
TRUTH_SUFFIX = " of the truth"


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
        about 1 for unrelated images; "background error": as the first, of the background; and the same three "of
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
        depths: (F, H, W), of the true head, for instance by `warp.merge_depths`.
        cameras: (F, 25).
        truths: (F, 3, H, W) in [-1, 1], where they are known.

    Returns:
        "flicker" and "background flicker": mean absolute difference in [0, 1] of the face and of the background, and,
        with truths, the same "of the truth". NaN where nothing is seen by two frames in turn.
    """
    _check_views(frames, depths, cameras, truths)
    by_suffix = {"": frames} if truths is None else {"": frames, TRUTH_SUFFIX: truths}
    errors = _pair_errors(by_suffix, depths, cameras, [(target, [target - 1]) for target in range(1, len(frames))])
    names = {"flicker": "face", "background flicker": "background"}
    return {name + suffix: errors[key + suffix] for suffix in by_suffix for name, key in names.items()}


def gradient_features(images: torch.Tensor) -> torch.Tensor:
    """Normalized gradients (N, 4, H, W) of images (N, 3, H, W) in [0, 1]: fixed features, which no training made.

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


def _pair_errors(
    by_suffix: dict[str, torch.Tensor],
    depths: torch.Tensor,
    cameras: torch.Tensor,
    pairs: Iterable[tuple[int, Sequence[int]]],
) -> dict[str, float]:
    """Mean absolute differences over pairs, each pixel counted once: of the face, its features and the background.

    Args:
        by_suffix: views (V, 3, H, W) in [-1, 1] by a suffix of the scores' names.
        depths: (V, H, W).
        cameras: (V, 25).
        pairs: a target view, and the views that are warped into it.
    """
    images = {suffix: views.float().clamp(-1, 1) / 2 + 0.5 for suffix, views in by_suffix.items()}
    far = {f"background{suffix}": views for suffix, views in images.items()}
    near = {f"face{suffix}": views for suffix, views in images.items()}
    near |= {f"features{suffix}": gradient_features(views) for suffix, views in images.items()}
    parts = ((surface_layer(depths, cameras), near), (background_layer(depths, cameras), far))
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in (*near, *far)}
    for (target, sources), (layer, values) in product(pairs, parts):
        stacked = torch.cat(list(values.values()), dim=1)  # (V, C, H, W)
        warped, visible = warp_views(layer, stacked, target, sources)  # (N, C, P), (N, P)
        difference = (warped - stacked[target][:, layer.mask[target]]).abs()
        for name, part in zip(values, difference.split([v.shape[1] for v in values.values()], dim=1), strict=True):
            total = part.mean(dim=1)[visible].sum(dtype=torch.float64)
            sums[name] += torch.stack([total, visible.sum().to(total)]).cpu()
    return {name: (total / count).item() for name, (total, count) in sums.items()}


def _blurred(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Maps (N, 1, H, W) under a Gaussian of `sigma` pixels, the image's border repeated outwards."""
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
