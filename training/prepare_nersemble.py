"""Make a multi-view set (step 2) from NeRSemble: 16 calibrated cameras around a head.

    python training/prepare_nersemble.py --data_dir nersemble --landmarks landmarks.json --output_dir nersemble-512

It reads both published layouts, the frames of version 1 and the videos of version 2:

    <data_dir>/<subject>/camera_params.json  or  <data_dir>/<subject>/calibration/camera_params.json
    <data_dir>/<subject>/sequences/<sequence>/frame_<timestep>/images*/cam_<serial>.png (or .jpg; or extra_sequences/)
    <data_dir>/<subject>/sequences/<sequence>/images/cam_<serial>.mp4

`camera_params.json` holds `world_2_cam` (a 4x4 matrix per serial number, OpenCV axes, meters) and one `intrinsics`
(3x3, in pixels of the full 2200 x 3208 picture; smaller pictures scale them). Pixels are counted from the edge.

`--landmarks` is a JSON that says which moments to prepare and where five points lie in some of their pictures, found by
any detector: `{"018/EMO-1-shout+laugh/00012/222200037": [[x, y], ...], ...}`, keyed by subject, sequence, timestep and
serial; eyes, nose tip and corners of the mouth, left to right as seen from the front, in pixels. Two views of a moment
are enough, frontal ones are best; wrong detections are dropped where they disagree with the others. Every camera of a
moment is prepared, those without landmarks too.

What happens: (1) the points of each moment are triangulated; (2) one similarity per subject (`--align moment`: per
moment) moves the median of them onto the mean face of our world; (3) it moves the cameras, its scale goes into their
distance, so they stay rigid; (4) each picture is cropped to the square that is 0.633 wide at the world's origin, as in
EG3D's pictures, and the crop is carried into the intrinsics: focal length and principal point differ from view to view.
Parts of the square outside the picture are black. `similarities.json` keeps the similarities.

One moment is one identity of the set; the split is by subject. Run it again to go on after a stop.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from nvb_diffusers.camera import FOCAL, RADIUS
from nvb_diffusers.data.fingerprint import fingerprint
from nvb_diffusers.data.images import load_photo, photo_size
from nvb_diffusers.data.records import (
    IMAGE_FORMATS,
    begin_data_set,
    check_landmarks,
    check_record,
    map_parallel,
    save_image,
    split_by_identity,
    write_records,
)
from nvb_diffusers.face_crop import MEAN_HEAD
from nvb_diffusers.files import read_json, write_json
from nvb_diffusers.option_types import OneLineParser, filled_text, number, whole_number

CALIBRATION_SIZE = (2200, 3208)  # width and height of the pictures that `intrinsics` is for
VIEW_WIDTH = RADIUS / FOCAL  # of a frontal EG3D picture in the plane of the origin, in world units


@dataclass(frozen=True)
class Similarity:
    """Source world to ours: point -> scale * rotation (3, 3) @ point + translation (3,)."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray
    residual: float  # root mean square distance of the fitted points, in our world's units

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Move points (..., 3)."""
        return self.scale * points @ self.rotation.T + self.translation


@dataclass(frozen=True)
class Picture:
    """One picture of a moment: where it is and how its camera sees the source world."""

    path: Path
    timestep: int
    serial: str
    size: tuple[int, int]  # width, height in pixels
    world_2_cam: np.ndarray  # (4, 4)
    pixel_intrinsics: np.ndarray  # (3, 3), in pixels of this picture

    @property
    def projection(self) -> np.ndarray:
        """Source world to pixels, (3, 4)."""
        return self.pixel_intrinsics @ self.world_2_cam[:3]


Moment = tuple[str, str, str]  # subject, sequence, timestep
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, beyond the picture where need be
Record = dict[str, Any]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=filled_text, required=True, help="folder of the subjects")
    parser.add_argument(
        "--landmarks", type=filled_text, required=True, help="JSON of five points per picture, see above"
    )
    parser.add_argument("--output_dir", type=filled_text, required=True, help="the set to write")
    parser.add_argument("--align", choices=("subject", "moment"), default="subject", help="what shares a similarity")
    parser.add_argument(
        "--tolerance", type=number(above=0), default=0.02, help="largest error of a landmark, of picture width"
    )
    parser.add_argument(
        "--size", type=whole_number(1, 65536), default=512, help="width and height of the pictures, in pixels"
    )
    parser.add_argument(
        "--validation", type=number(low=0, high=1), default=0.05, help="share of the subjects for validation"
    )
    parser.add_argument("--test", type=number(low=0, high=1), default=0.1, help="share of the subjects for test")
    parser.add_argument("--format", choices=IMAGE_FORMATS, default="webp", help="both are without loss")
    parser.add_argument("--workers", type=whole_number(1, 1024), default=os.cpu_count() or 1, help="pictures at a time")
    return parser.parse_args(argv)


# Files


def read_landmarks(path: str) -> dict[Moment, dict[str, np.ndarray]]:
    """Landmarks (5, 2) in pixels per moment and serial."""
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no landmarks")
    moments: dict[Moment, dict[str, np.ndarray]] = {}
    for key, value in content.items():
        names = re.fullmatch(r"([^/]+)/([^/]+)/(\d+)/([^/]+)", key)
        if names is None:
            raise ValueError(f"{path}: {key!r} is not subject/sequence/timestep/serial")
        subject, sequence, timestep, serial = names.groups()
        try:
            check_landmarks(value)
        except ValueError as error:
            raise ValueError(f"{path}: {key}: {error}") from None
        moments.setdefault((subject, sequence, timestep), {})[serial] = np.array(value, dtype=np.float64)
    return moments


def read_calibration(subject_dir: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """World to camera (4, 4) per serial, and the intrinsics (3, 3) in pixels of the full picture."""
    paths = [subject_dir / "camera_params.json", subject_dir / "calibration" / "camera_params.json"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"no calibration of subject {subject_dir.name}: neither {paths[0]} nor {paths[1]} exists")
    content = read_json(path)
    try:
        intrinsics = np.asarray(content["intrinsics"], dtype=np.float64).reshape(3, 3)
        cameras = content["world_2_cam"].items()
        return {serial: np.asarray(value, dtype=np.float64).reshape(4, 4) for serial, value in cameras}, intrinsics
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: expected world_2_cam (4x4 per serial) and intrinsics (3x3), got {error!r}") from None


def find_pictures(data_dir: Path, moment: Moment) -> dict[str, Path]:
    """The frame, or the video it is in, of each camera of a moment."""
    subject, sequence, timestep = moment
    found: dict[str, Path] = {}
    for folder in (data_dir / subject / "sequences" / sequence, data_dir / subject / "extra_sequences" / sequence):
        frames = [path for suffix in ("png", "jpg") for path in folder.glob(f"frame_{timestep}/images*/cam_*.{suffix}")]
        for path in [*frames, *folder.glob("images/cam_*.mp4")]:
            other = found.setdefault(path.stem.removeprefix("cam_"), path)
            if other != path:
                raise ValueError(f"two pictures of one camera and moment: {other} and {path}")
    if not found:
        raise ValueError(f"no pictures of {'/'.join(moment)} in {data_dir}")
    return found


def read_picture(path: Path, timestep: int) -> Image.Image:
    """Read a picture, or the frame of a video, as RGB."""
    if path.suffix != ".mp4":
        return load_photo(path)
    video = cv2.VideoCapture(str(path))
    video.set(cv2.CAP_PROP_POS_FRAMES, timestep)
    success, frame = video.read()
    video.release()
    if not success:
        raise ValueError(f"cannot read frame {timestep} of {path}")
    return Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, without decoding a picture."""
    if path.suffix != ".mp4":
        return photo_size(path)
    video = cv2.VideoCapture(str(path))
    size = int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
    video.release()
    if not all(size):
        raise ValueError(f"cannot read video {path}")
    return size


def read_moment(
    data_dir: Path, moment: Moment, cameras: dict[str, np.ndarray], intrinsics: np.ndarray
) -> list[Picture]:
    """The pictures of a moment in the order of their serials, each with its own intrinsics in pixels."""
    pictures = []
    for serial, path in sorted(find_pictures(data_dir, moment).items()):
        if serial not in cameras:
            raise ValueError(f"camera {serial} of {path} is not in the calibration of subject {moment[0]}")
        width, height = picture_size(path)
        shrink = np.array([width, height]) / CALIBRATION_SIZE
        if abs(shrink[0] / shrink[1] - 1) > 0.01:
            raise ValueError(f"picture {path} is {width}x{height}, expected the whole picture, shaped 2200x3208")
        scaled = np.diag([*shrink, 1.0]) @ intrinsics
        pictures.append(Picture(path, int(moment[2]), serial, (width, height), cameras[serial], scaled))
    return pictures


# Geometry


def triangulate(points: np.ndarray, projections: np.ndarray, widths: np.ndarray, tolerance: float) -> np.ndarray:
    """World points (N, 3) of image points (V, N, 2) in pixels seen through projections (V, 3, 4).

    Linear least squares. While a view disagrees with the solution by more than the tolerance, a share of its width
    (V,), the worst view is dropped.
    """
    kept = np.arange(len(points))
    while len(kept) >= 2:
        p, m = points[kept, :, :, None], projections[kept, None]
        rows = p * m[:, :, 2:] - m[:, :, :2]  # (V, N, 2, 4): u * m3 - m1, v * m3 - m2
        rows = rows.transpose(1, 0, 2, 3).reshape(points.shape[1], -1, 4)
        homogeneous = np.linalg.svd(rows)[2][:, -1]
        world = homogeneous[:, :3] / homogeneous[:, 3:]
        errors = np.linalg.norm(project(world, projections[kept]) - points[kept], axis=-1).max(-1) / widths[kept]
        if errors.max() <= tolerance:
            return world
        kept = np.delete(kept, errors.argmax())
    raise ValueError(f"fewer than 2 of {len(points)} views have landmarks that agree within {tolerance} of their width")


def project(points: np.ndarray, projections: np.ndarray) -> np.ndarray:
    """Pixels (V, N, 2) of world points (N, 3) through projections (V, 3, 4)."""
    seen = points @ projections[:, :, :3].transpose(0, 2, 1) + projections[:, None, :, 3]
    return seen[..., :2] / seen[..., 2:]


def fit_similarity(source: np.ndarray, target: np.ndarray) -> Similarity:
    """The similarity that moves points (N, 3) onto others with least squared distance (Umeyama 1991)."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    source_offset, target_offset = source - source_mean, target - target_mean
    u, values, vt = np.linalg.svd(target_offset.T @ source_offset)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])  # no reflection
    rotation = (u * sign) @ vt
    scale = float((values * sign).sum() / (source_offset**2).sum())
    distances = np.linalg.norm(target_offset - scale * source_offset @ rotation.T, axis=-1)
    translation = target_mean - scale * rotation @ source_mean
    return Similarity(scale, rotation, translation, residual=float(np.sqrt((distances**2).mean())))


def triangulate_moment(pictures: list[Picture], landmarks: dict[str, np.ndarray], tolerance: float) -> np.ndarray:
    """The five points (5, 3) of a moment in the source world, from the pictures that have landmarks."""
    seen = [picture for picture in pictures if picture.serial in landmarks]
    if not seen:
        raise ValueError("landmarks are given for none of its cameras")
    pixels = np.stack([landmarks[picture.serial] for picture in seen])
    projections = np.stack([picture.projection for picture in seen])
    return triangulate(pixels, projections, np.array([picture.size[0] for picture in seen]), tolerance)


def frame_picture(picture: Picture, similarity: Similarity) -> tuple[Box, np.ndarray]:
    """The square to cut out and the camera (25,) of what it shows."""
    rotation, translation = picture.world_2_cam[:3, :3], picture.world_2_cam[:3, 3]
    cam2world = np.eye(4)
    cam2world[:3, :3] = similarity.rotation @ rotation.T
    cam2world[:3, 3] = similarity(-rotation.T @ translation)
    origin = -cam2world[:3, :3].T @ cam2world[:3, 3]  # our world's origin in the camera
    if origin[2] <= 0:
        raise ValueError(f"picture {picture.path} was taken from behind its camera: calibration and landmarks disagree")
    u, v, _ = picture.pixel_intrinsics @ origin / origin[2]
    side = max(1, round(picture.pixel_intrinsics[0, 0] * VIEW_WIDTH / origin[2]))
    left, top = round(u - side / 2), round(v - side / 2)
    if not (0 <= u <= picture.size[0] and 0 <= v <= picture.size[1]):
        raise ValueError(f"picture {picture.path} does not show the head: calibration and landmarks disagree")
    crop = np.array([[1 / side, 0, -left / side], [0, 1 / side, -top / side], [0, 0, 1]])
    camera = np.concatenate([cam2world.ravel(), (crop @ picture.pixel_intrinsics).ravel()])
    return (left, top, left + side, top + side), camera


# The set


def read_moments(data_dir: Path, landmarks: dict[Moment, dict[str, np.ndarray]]) -> dict[Moment, list[Picture]]:
    """The pictures of every moment that has landmarks."""
    calibrations = {subject: read_calibration(data_dir / subject) for subject in {moment[0] for moment in landmarks}}
    return {moment: read_moment(data_dir, moment, *calibrations[moment[0]]) for moment in sorted(landmarks)}


def align(points: dict[Moment, np.ndarray], share: str) -> tuple[dict[str, Similarity], dict[Moment, Similarity]]:
    """The similarities by the name of what shares them, and that of each moment."""
    groups: dict[str, list[Moment]] = {}
    for moment in points:
        groups.setdefault(moment[0] if share == "subject" else "_".join(moment), []).append(moment)
    similarities = {
        name: fit_similarity(np.median([points[moment] for moment in moments], axis=0), MEAN_HEAD)
        for name, moments in groups.items()
    }
    return similarities, {moment: similarities[name] for name, moments in groups.items() for moment in moments}


def build_set(args: argparse.Namespace) -> tuple[list[tuple[Picture, Box, Record]], dict[str, Similarity]]:
    """The pictures, the squares to cut out, the records they become; and the similarities."""
    landmarks = read_landmarks(args.landmarks)
    moments = read_moments(Path(args.data_dir), landmarks)
    points = {}
    for moment, pictures in moments.items():
        try:
            points[moment] = triangulate_moment(pictures, landmarks[moment], args.tolerance)
        except ValueError as error:
            raise ValueError(f"{'/'.join(moment)}: {error}") from None
    similarities, similarity_of = align(points, args.align)
    splits = split_by_identity((moment[0] for moment in moments), args.validation, args.test)
    cuts = []
    for moment, pictures in moments.items():
        for view, picture in enumerate(pictures):
            box, camera = frame_picture(picture, similarity_of[moment])
            pixels = (project(points[moment], picture.projection[None])[0] - box[:2]) * args.size / (box[2] - box[0])
            record = {
                "file_name": f"{'_'.join(moment)}/{view:02d}.{args.format}",
                "identity": "_".join(moment),
                "view": view,
                "camera": np.round(camera, 8).tolist(),
                "landmarks": np.round(pixels, 3).tolist(),
                "split": splits[moment[0]],
                "subject": moment[0],
                "sequence": moment[1],
                "timestep": picture.timestep,
                "serial": picture.serial,
            }
            try:
                check_record(record)
            except ValueError as error:
                raise ValueError(f"camera {picture.serial} of subject {moment[0]}: {error}") from None
            cuts.append((picture, box, record))
    return cuts, similarities


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set; return 0, or 2 after an error, which is one line on stderr."""
    args = parse_args(argv)
    try:
        cuts, similarities = build_set(args)
        settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "workers")}
        made_of = {  # a new calibration shows in the square that is cut out
            f"images/{record['file_name']}": fingerprint([picture.path], picture.timestep, box)
            for picture, box, record in cuts
        }
        begin_data_set(args.output_dir, settings, [args.landmarks], made_of)
        output_dir = Path(args.output_dir)

        def work(cut: tuple[Picture, Box, Record]) -> Record:
            picture, box, record = cut
            target = output_dir / "images" / record["file_name"]
            if not target.exists():
                square = read_picture(picture.path, picture.timestep).crop(box)
                save_image(square.resize((args.size, args.size), Image.Resampling.LANCZOS), target)
            return record

        records = map_parallel(work, cuts, args.workers)
        values = {
            group: {name: np.asarray(value).tolist() for name, value in vars(similarity).items()}
            for group, similarity in similarities.items()
        }
        write_json(output_dir / "similarities.json", values)
        path = write_records(output_dir, records)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    residual = max(similarity.residual for similarity in similarities.values())
    print(f"{len(records)} pictures of {args.size} px, faces at most {residual:.3f} off the mean one: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
