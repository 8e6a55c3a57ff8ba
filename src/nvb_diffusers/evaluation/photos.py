"""Real photos: is the person recognized in the views, and do they turn as told?

There is no true view to compare with. A face network's distance between each view and the photo's own undamaged crop
tells whether it shows the same person; as a view that does not turn would win that, the camera seen in the view is
measured beside it, by the pipeline's own predictor and from outside, by how far a face mesh has turned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.camera import angles_from_camera, camera_from_angles, join_camera, rigid_transform, split_camera
from nvb_diffusers.data.contact_sheet import contact_sheet
from nvb_diffusers.data.images import list_photos, load_photo, to_pixel_values
from nvb_diffusers.evaluation.intervals import bootstrap_interval
from nvb_diffusers.evaluation.networks import Observer
from nvb_diffusers.face_crop import MAX_PHOTO_PIXELS, crop_face

ANGLES = ((-45, 0), (-30, 0), (-15, 0), (15, 0), (30, 0), (45, 0), (0, -15), (0, 15))  # yaw and pitch in degrees
WHOLE_SIDE = 512  # pixels of the crop that is made smaller
SAME_PERSON = 0.6  # dlib's threshold on the distance of two faces


@dataclass
class PhotoView:
    """What is measured of one view of one photo; None where no face was found.

    Args:
        photo: file name.
        shrinkage: how many times smaller the photo's crop of 512 px was made.
        yaw_deg, pitch_deg: of the camera asked for.
        distance: of the face network, to the undamaged photo.
        own_yaw_deg, own_pitch_deg: of the camera that the pipeline predicts for the view.
        mesh_yaw_deg, mesh_pitch_deg: of the camera by which the face mesh has turned from the undamaged photo's.
    """

    photo: str
    shrinkage: int
    yaw_deg: float
    pitch_deg: float
    distance: float | None
    own_yaw_deg: float
    own_pitch_deg: float
    mesh_yaw_deg: float | None
    mesh_pitch_deg: float | None


@dataclass
class PhotoSheets:
    """Draws views of photos to look at, one file for each photo and shrinkage.

    Args:
        folder: where the files go.
    """

    folder: Path

    def draw(self, photo: str, shrinkage: int, images: Sequence[Image.Image]) -> None:
        """Write the input, followed by its views, as a contact sheet."""
        labels = ["input", *(f"yaw {yaw:+d} pitch {pitch:+d}" for yaw, pitch in ANGLES)]
        contact_sheet(images, labels).save(self.folder / f"{photo}_{shrinkage}x.png")


def shrink(image: Image.Image, times: int) -> Image.Image:
    """An image made some times smaller by area, and enlarged again by cubic interpolation."""
    width, height = image.size
    small = image.resize((max(1, width // times), max(1, height // times)), Image.Resampling.BOX)
    return small.resize((width, height), Image.Resampling.BICUBIC)


def turned_camera(points: np.ndarray, source_points: np.ndarray, source_camera: torch.Tensor) -> torch.Tensor:
    """The camera (25,) that sees a rigid mesh at points (K, 3), if `source_camera` (25,) sees it at source_points.

    Points are in camera axes (x right, y down, z forward), of any scale and place: only the turn between them counts
    (Kabsch 1976).
    """
    centered, source = (part - part.mean(axis=0) for part in (points, source_points))
    left, _, right = np.linalg.svd(centered.T @ source)
    handedness = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    turn = torch.from_numpy(left @ handedness @ right).float()  # source camera's axes to the view's
    cam2world, intrinsics = split_camera(source_camera)
    rotation = cam2world[:3, :3] @ turn.T
    return join_camera(rigid_transform(rotation, -2.7 * rotation[:, 2]), intrinsics)


@torch.no_grad()
def score_photos(
    pipeline: NVBFacePipeline,
    folder: Path,
    embed: Observer,
    mesh: Observer,
    shrinkages: Sequence[int],
    seed: int,
    sheets: "PhotoSheets",
) -> list[PhotoView]:
    """Measure views of every photo of a folder.

    Args:
        pipeline: with a view transformer.
        folder: of photos, each with a face.
        embed: the face network, whose numbers' distance is compared with `SAME_PERSON`.
        mesh: points (K, 3) of a face.
        shrinkages: how many times smaller each photo is made.
        seed: of the noise.
        sheets: draws the views of each photo.
    """
    cameras = torch.stack([camera_from_angles(*pair) for pair in ANGLES])
    results = []
    for path in tqdm(list_photos(folder), desc="photos", unit="photo"):
        try:
            face = crop_face(load_photo(path, MAX_PHOTO_PIXELS), WHOLE_SIDE).image
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        whole = to_pixel_values([face])[0]
        embedding, source_points = embed(whole), mesh(whole)
        if embedding is None or source_points is None:
            raise ValueError(f"{path}: the face networks find no face in the undamaged photo")
        source_camera = pipeline.predict_cameras(face)[0].cpu()
        for times in shrinkages:
            image = face if times == 1 else shrink(face, times)
            views = pipeline(image, cameras=cameras, generator=torch.Generator().manual_seed(seed)).images
            own = angles_from_camera(pipeline.predict_cameras(views).cpu())
            sheets.draw(path.name, times, [image, *views])
            for pair, view, seen in zip(ANGLES, to_pixel_values(views), own.tolist(), strict=True):
                found, points = embed(view), mesh(view)
                distance = None if found is None else float(np.linalg.norm(found - embedding))
                turned: list[float | None] = [None, None]
                if points is not None:
                    turned = angles_from_camera(turned_camera(points, source_points, source_camera))[:2].tolist()
                results.append(PhotoView(path.name, times, *pair, distance, *seen[:2], *turned))
    return results


def summarize_photos(results: Sequence[PhotoView]) -> str:
    """A table in Markdown: recognition and turn by shrinkage and angle, with 95 % intervals over photos."""
    lines = [
        "| smaller | yaw, pitch | same person | distance, median | face found | off, own (deg) | off, mesh (deg) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    keys = dict.fromkeys((r.shrinkage, (abs(r.yaw_deg), abs(r.pitch_deg))) for r in results)
    for shrinkage, angle in keys:
        rows = [r for r in results if (r.shrinkage, (abs(r.yaw_deg), abs(r.pitch_deg))) == (shrinkage, angle)]
        same = [float(r.distance is not None and r.distance < SAME_PERSON) for r in rows]
        interval = bootstrap_interval(same, [r.photo for r in rows])
        distances = [r.distance for r in rows if r.distance is not None]
        own = [max(abs(r.own_yaw_deg - r.yaw_deg), abs(r.own_pitch_deg - r.pitch_deg)) for r in rows]
        turned = [
            max(abs(r.mesh_yaw_deg - r.yaw_deg), abs(r.mesh_pitch_deg - r.pitch_deg))
            for r in rows
            if r.mesh_yaw_deg is not None and r.mesh_pitch_deg is not None
        ]
        lines.append(
            f"| {shrinkage}x | ±{angle[0]:g}, ±{angle[1]:g} | "
            f"{100 * interval.mean:.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}] | "
            f"{_median(distances)} | {len(distances)} of {len(rows)} | {_median(own)} | {_median(turned)} |"
        )
    return "\n".join(lines) + "\n"


def _median(values: Sequence[float]) -> str:
    return f"{np.median(values):.2f}" if values else "none"
