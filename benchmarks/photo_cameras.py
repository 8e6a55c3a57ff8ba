"""How well the cameras of photos are read: their turns against those of a face mesh, which knows nothing of the model.

    python -m benchmarks.photo_cameras FOLDER

FOLDER has photos of one person from several sides. The mesh tells how far the face has turned from one photo to
another, so each estimate is judged up to a constant: by features alone, as in the paper, and by features and points, as
in a call. A slope of 1 is a turn read in full, 0 one that is not seen.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline
from nvb_diffusers.camera import angles_from_camera
from nvb_diffusers.data.images import list_photos, load_photo, to_pixel_values
from nvb_diffusers.evaluation.networks import find_mesh
from nvb_diffusers.evaluation.photos import turned_camera
from nvb_diffusers.face_crop import MAX_PHOTO_PIXELS, crop_face
from nvb_diffusers.option_types import OneLineParser, a_path, filled_text

WHOLE_SIDE = 512  # pixels of the crop that the mesh is found in


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=a_path)
    parser.add_argument("--checkpoint", type=filled_text, default=DEFAULT_CHECKPOINT)
    return parser.parse_args(argv)


def estimates(pipe: NVBFacePipeline, faces: list[Image.Image]) -> dict[str, torch.Tensor]:
    """Cameras (N, 25) of crops by each way."""
    cameras = {"features and points": pipe.predict_cameras(at_size(faces, pipe.sample_size)).cpu()}
    pipe.register_modules(appearance=None)
    return {"features": pipe.predict_cameras(at_size(faces, pipe.sample_size)).cpu(), **cameras}


def at_size(faces: list[Image.Image], side: int) -> list[Image.Image]:
    """Crops as a pipeline reads them."""
    return [face.resize((side, side), Image.Resampling.LANCZOS) for face in faces]


def turns(cameras: torch.Tensor, meshes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Yaw and pitch (N, 2) as read, and as the mesh has turned from the most frontal photo, in degrees."""
    read = angles_from_camera(cameras)[:, :2].numpy()
    front = int(np.abs(read[:, 0]).argmin())
    turned = [turned_camera(points, meshes[front], cameras[front]) for points in meshes]
    return read, angles_from_camera(torch.stack(turned))[:, :2].numpy()


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    args = parse_args(argv)
    pipe = NVBFacePipeline.from_pretrained(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    mesh = find_mesh(solid=True)
    crops = [crop_face(load_photo(path, MAX_PHOTO_PIXELS), WHOLE_SIDE).image for path in list_photos(args.folder)]
    found = [(crop, points) for crop in crops if (points := mesh(to_pixel_values([crop])[0])) is not None]
    print(f"{len(found)} of {len(crops)} photos, with a mesh\n")
    print("| cameras by | yaw off (deg) | slope | pitch off (deg) | slope |\n|---|---|---|---|---|")
    for name, cameras in estimates(pipe, [crop for crop, _ in found]).items():
        read, turned = turns(cameras, [points for _, points in found])
        difference = read - turned
        constant = np.median(difference, axis=0)  # which pose is called frontal, differs
        off = np.abs(difference - constant).mean(axis=0)
        slopes = [np.polyfit(turned[:, axis], read[:, axis], 1)[0] for axis in (0, 1)]
        print(f"| {name} | {off[0]:.1f} | {slopes[0]:.2f} | {off[1]:.1f} | {slopes[1]:.2f} |")


if __name__ == "__main__":
    main()
