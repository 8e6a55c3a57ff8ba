"""The measures, each a small function; the networks that some of them look through are given to them.

Images are (N, 3, S, S) in [-1, 1]. What the tables show of each measure is in `METRICS`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from nvb_diffusers.camera import angle_between_cameras, join_camera, rigid_transform, split_camera, unproject_points

NIQE = "NIQE (fitted on truths)"  # the column
NIQE_BLOCKS = 4  # along each side of an image


class Metric(NamedTuple):
    """How a measure is shown."""

    unit: str
    better: str
    """"higher" or "lower"."""
    digits: int


# By the name of a column without what follows in brackets, which names the network that it looks through.
METRICS = {
    "PSNR": Metric("dB", "higher", 2),
    "SSIM": Metric("", "higher", 3),
    "LPIPS": Metric("", "lower", 3),
    "DISTS": Metric("", "lower", 3),
    "FID": Metric("", "lower", 2),
    "ID": Metric("", "higher", 3),
    "dlib-ID": Metric("", "higher", 3),
    "POSE": Metric("deg", "lower", 2),
    "asked POSE": Metric("deg", "lower", 2),
    "NIQE": Metric("", "lower", 2),
    "rank correlation": Metric("", "higher", 3),
}


def describe(name: str) -> Metric:
    """What is known of the measure in a column; unknown ones are errors, of which less is better."""
    return METRICS.get(name.split(" (")[0], Metric("", "lower", 4))


def ssim(images: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """Structural similarity (N,), at most 1, which is an image with itself (Wang et al. 2004; torchmetrics)."""
    value = structural_similarity_index_measure(images, truths, data_range=2.0, reduction="none")
    assert isinstance(value, torch.Tensor)
    return value


def identity_cosine(embedding: np.ndarray, truth: np.ndarray) -> float:
    """Cosine of two face embeddings (E,), -1 to 1; 1 is the same image (ArcFace, Deng et al. 2019, as in the paper).

    Which cosine means "another person" depends on the network: about 0 for ArcFace, but 0.9 for dlib's.
    """
    return float(embedding @ truth / (np.linalg.norm(embedding) * np.linalg.norm(truth)))


def pose_error(seen: torch.Tensor, reference: torch.Tensor) -> float:
    """Angle in degrees, 0 to 180, between the orientation of the camera (25,) seen in an image and another one."""
    return angle_between_cameras(seen, reference).item()


def fit_mesh(landmarks: Sequence[np.ndarray], cameras: torch.Tensor) -> np.ndarray:
    """The mean head's mesh (K, 3) in the world: the points nearest to the rays of all images (triangulation).

    Args:
        landmarks: (K, 2) of each image, as shares of its side.
        cameras: (N, 25), of the images.
    """
    normal, right = np.zeros((len(landmarks[0]), 3, 3)), np.zeros((len(landmarks[0]), 3))
    for points, camera in zip(landmarks, cameras, strict=True):
        origin = split_camera(camera)[0][:3, 3].double().numpy()
        uvz = torch.from_numpy(np.concatenate([points, np.ones((len(points), 1))], axis=1))
        direction = unproject_points(uvz, camera.double()).numpy() - origin
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        across = np.eye(3) - direction[:, :, None] * direction[:, None]  # (K, 3, 3) removes what lies along the ray
        normal += across
        right += across @ origin
    return np.linalg.solve(normal, right[..., None])[..., 0]


def camera_from_mesh(landmarks: np.ndarray, mesh: np.ndarray, camera: torch.Tensor) -> torch.Tensor:
    """The camera (25,) that sees the points of a mesh (K, 3) at landmarks (K, 2), by PnP with known intrinsics.

    Args:
        landmarks: as shares of the image's side.
        mesh: the same points in the world.
        camera: (25,) whose intrinsics the image has.
    """
    intrinsics = split_camera(camera)[1]
    landmarks = np.ascontiguousarray(landmarks)
    _, turn, shift = cv2.solvePnP(mesh, landmarks, intrinsics.double().numpy(), None, flags=cv2.SOLVEPNP_SQPNP)
    turn, shift = cv2.solvePnPRefineLM(mesh, landmarks, intrinsics.double().numpy(), None, turn, shift)
    rotation = torch.from_numpy(cv2.Rodrigues(turn)[0]).float()  # world to camera
    return join_camera(rigid_transform(rotation.T, -rotation.T @ torch.from_numpy(shift[:, 0]).float()), intrinsics)


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Frechet distance of two Gaussians fitted to features (N, E) and (M, E); 0 or more, 0 for equal ones.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)): FID where the features are Inception's (Heusel et al. 2017). It is
    biased upwards where N is not many times E: compare it only between sets of the same size.
    """
    features, others = features.astype(np.float64), others.astype(np.float64)
    means = features.mean(axis=0), others.mean(axis=0)
    (a, trace_a), (b, trace_b) = (_centered(part) for part in (features, others))
    # With C1 = A'A and C2 = B'B, the trace of the root of C1 C2 is the sum of the singular values of A B'.
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(np.sum((means[0] - means[1]) ** 2) + trace_a + trace_b - 2 * root, 0.0))


def _centered(features: np.ndarray) -> tuple[np.ndarray, float]:
    """A factor (min(N, E), E) of the covariance matrix, and its trace."""
    centered = (features - features.mean(axis=0)) / np.sqrt(max(len(features) - 1, 1))
    factor = np.asarray(np.linalg.qr(centered, mode="r")) if len(centered) > centered.shape[1] else centered
    return factor, float(np.sum(centered**2))


class NaturalModel(NamedTuple):
    """Mean (36,) and covariance (36, 36) of the block features of good images."""

    mean: np.ndarray
    covariance: np.ndarray


def fit_niqe(images: torch.Tensor) -> NaturalModel:
    """The model of what good images are like, from the blocks of (N, 3, S, S)."""
    features = np.concatenate([niqe_features(image) for image in images])
    return NaturalModel(features.mean(axis=0), np.cov(features, rowvar=False))


def niqe(image: torch.Tensor, model: NaturalModel) -> float:
    """Natural image quality (3, S, S) without a truth, 0 or more, lower is better (Mittal et al. 2013, Eq. 10).

    The distance of the image's own Gaussian of block features from the model's. Blocks are a quarter of the side
    here, for 96 pixels there, and the model is fitted to the images it is given: not comparable with other papers'.
    """
    features = niqe_features(image)
    difference = features.mean(axis=0) - model.mean
    covariance = (np.cov(features, rowvar=False) + model.covariance) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(covariance) @ difference))


def niqe_features(image: torch.Tensor) -> np.ndarray:
    """Block features (B, 36) of an image (3, S, S): 18 at full size and 18 at half (Mittal et al. 2013, Eq. 1-8)."""
    gray = (image.permute(1, 2, 0).numpy().astype(np.float64) + 1) * 127.5 @ np.array([0.299, 0.587, 0.114])
    side = gray.shape[0] // NIQE_BLOCKS // 2 * 2  # of a block, even so that it has a half
    gray = gray[: side * NIQE_BLOCKS, : side * NIQE_BLOCKS]
    half = cv2.resize(gray, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.concatenate([_scale_features(gray, side), _scale_features(half, side // 2)], axis=1)


def _scale_features(gray: np.ndarray, side: int) -> np.ndarray:
    """Features (B, 18) at one scale: the fit of the normalized pixels, and of their products with four neighbors."""
    mean = cv2.GaussianBlur(gray, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)
    variance = cv2.GaussianBlur(gray**2, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE) - mean**2
    normalized = (gray - mean) / (np.sqrt(np.maximum(variance, 0)) + 1)
    shape, _, left, right = _fit_asymmetric(_blocks(normalized, side))
    columns = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        columns += _fit_asymmetric(_blocks(normalized * np.roll(normalized, shift, axis=(0, 1)), side))
    return np.stack(columns, axis=1)


def _blocks(values: np.ndarray, side: int) -> np.ndarray:
    """Pixels (B, side * side) of the blocks of (S, S)."""
    count = len(values) // side
    return values.reshape(count, side, count, side).swapaxes(1, 2).reshape(count * count, side * side)


_SHAPES = np.arange(0.2, 10.0, 0.001)
_log_gamma = torch.lgamma(torch.from_numpy(np.stack([1 / _SHAPES, 2 / _SHAPES, 3 / _SHAPES]))).numpy()
_RATIOS = np.exp(2 * _log_gamma[1] - _log_gamma[0] - _log_gamma[2])  # grows with the shape


def _fit_asymmetric(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Shape, mean, left and right scale, each (B,), of the asymmetric generalized Gaussian of samples (B, N).

    By their moments (Lasmar et al. 2009).
    """
    negative, positive = values < 0, values > 0
    squares = values**2
    left = np.sqrt((squares * negative).sum(1) / np.maximum(negative.sum(1), 1)) + 1e-9
    right = np.sqrt((squares * positive).sum(1) / np.maximum(positive.sum(1), 1)) + 1e-9
    gamma = left / right
    ratio = np.abs(values).mean(1) ** 2 / (squares.mean(1) + 1e-12)
    ratio *= (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2
    nearest = np.clip(np.searchsorted(_RATIOS, ratio), 0, len(_SHAPES) - 1)
    shape, (one, two, three) = _SHAPES[nearest], _log_gamma[:, nearest]
    left, right = left * np.exp((one - three) / 2), right * np.exp((one - three) / 2)
    mean = (right - left) * np.exp(two - one)
    return shape, mean, left, right


def resize_square(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images (N, 3, side, side), by antialiased bicubic interpolation where their size is another."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
