"""Methods that turn the inputs of a test set into predictions: ours, the two-stage chain, and rivals without a model.

    PREDICTIONS/<identity>/<view>.png         every target view, and the source view restored
    PREDICTIONS/<identity>/camera.json        the camera that the method saw the input with, where it predicts one
    PREDICTIONS/orbit/<identity>/<frame>.png  a dense orbit, of the identities that it is asked of

What is complete is left as it is, so a run that was killed goes on where it was.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.camera import angle_between_cameras, camera_from_angles, orbit_cameras
from nvb_diffusers.data.datasets import load_records
from nvb_diffusers.data.images import resized
from nvb_diffusers.data.records import save_image
from nvb_diffusers.evaluation.test_sets import TestSet, view_name
from nvb_diffusers.files import write_whole

ORBIT_YAW_DEG = (-45.0, 45.0)


@dataclass(frozen=True)
class Prediction:
    """What a method makes of one input."""

    views: list[Image.Image]
    restored: Image.Image | None = None
    source_camera: torch.Tensor | None = None
    """(25,)"""


class Method(Protocol):
    """Anything that makes views of an input at cameras (V, 25)."""

    def __call__(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """Views of the input, the same for the same seed."""


@dataclass(frozen=True)
class OneStage:
    """Ours: one diffusion run from the degraded input to every view.

    Args:
        pipeline: with a view transformer.
        num_inference_steps: of the views, and of the restoration; None for what suits the pipeline.
        constant_camera: whether the volume is built with the frontal camera instead of the predicted one, for a view
            transformer that was trained so.
        fidelity: of the restoration, as in a call of the pipeline.
    """

    pipeline: NVBFacePipeline
    num_inference_steps: int | None = None
    constant_camera: bool = False
    fidelity: float | None = None

    def __call__(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """Views of the input, and the input restored."""
        return replace(self.views(image, cameras, seed), restored=self.restore(image, seed))

    def restore(self, image: Image.Image, seed: int) -> Image.Image:
        """The input's own view, restored."""
        output: Any = self.pipeline.restore(image, fidelity=self.fidelity, **self._options(seed))
        return output.images[0]

    def views(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """Views at cameras (V, 25) without the restoration."""
        given = camera_from_angles(0, 0)[None] if self.constant_camera else None
        output: Any = self.pipeline(image, cameras=cameras, source_cameras=given, **self._options(seed))
        return Prediction(output.images, source_camera=None if given is not None else output.source_cameras[0].cpu())

    def _options(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        return {"num_inference_steps": self.num_inference_steps, "generator": generator}


@dataclass(frozen=True)
class TwoStage:
    """The chain that people use: one model restores the input, another makes views of the restored picture.

    Args:
        restoration: makes the restored picture.
        novel_view: makes views of it, at the camera that it sees the restored picture with.
    """

    restoration: OneStage
    novel_view: OneStage

    def __call__(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """Views of the restored input, and that."""
        restored = self.restoration.restore(image, seed)
        return replace(self.novel_view.views(restored, cameras, seed), restored=restored)


@dataclass(frozen=True)
class InputAsView:
    """The degraded input shown as every view: what a view model has to beat to be worth anything."""

    def __call__(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """The input, once for each camera."""
        return Prediction([image] * len(cameras), image)


@dataclass(frozen=True)
class MeanFace:
    """The training set's mean face at each camera, whoever is asked for.

    Args:
        data_dir: a multi-view set in the project's format.
        neighbors: pictures in each mean, those with the nearest orientations.
    """

    data_dir: str | Path
    neighbors: int = 64

    @cached_property
    def _records(self) -> tuple[Any, torch.Tensor]:
        records = load_records(self.data_dir, "train")
        return records, torch.tensor(records["camera"], dtype=torch.float32)  # (M, 25)

    def __call__(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """Mean faces of the input's size."""
        records, known = self._records
        faces = []
        for camera in cameras:
            nearest = angle_between_cameras(known, camera.expand_as(known)).argsort()[: self.neighbors].tolist()
            pictures = [resized(picture, image.width) for picture in records[nearest]["image"]]
            faces.append(Image.fromarray(np.mean(pictures, axis=0).round().astype(np.uint8)))
        return Prediction(faces)


def write_predictions(
    method: Method, test_set: TestSet, folder: str | Path, num_orbits: int = 0, num_orbit_frames: int = 15
) -> None:
    """Let a method predict a whole test set.

    Args:
        method: what to score.
        test_set: its inputs and cameras.
        folder: where the predictions go.
        num_orbits: identities of whom a dense orbit is made too, the first ones.
        num_orbit_frames: its frames, evenly over `ORBIT_YAW_DEG` at pitch 0.
    """
    folder = Path(folder)
    orbit = orbit_cameras(num_orbit_frames, ORBIT_YAW_DEG)
    for number, identity in enumerate(tqdm(test_set.identities, desc=folder.name)):
        name, seed = identity.identity, identity_seed(identity.identity)
        if not (folder / name / "done").is_file():
            prediction = method(test_set.input(name), identity.cameras, seed)
            for target, picture in zip(identity.targets, prediction.views, strict=True):
                _save(picture, folder / view_name(name, target.view))
            if prediction.restored is not None:
                _save(prediction.restored, folder / view_name(name, identity.source_view))
            if prediction.source_camera is not None:
                content = json.dumps(prediction.source_camera.tolist())
                write_whole(folder / name / "camera.json", content)
            write_whole(folder / name / "done", b"")
        if number < num_orbits and not (folder / "orbit" / name / "done").is_file():
            for frame, picture in enumerate(method(test_set.input(name), orbit, seed).views):
                _save(picture, folder / "orbit" / view_name(name, frame))
            write_whole(folder / "orbit" / name / "done", b"")


def identity_seed(identity: str) -> int:
    """The seed of an identity's noise, whichever others are in the set."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big")


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(picture, path)
