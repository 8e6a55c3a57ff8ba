"""Methods that turn the inputs of a test set into predictions: ours, the two-stage chain, and rivals without a model.

    PREDICTIONS/<identity>/<view>.png         every target view, and the source view restored
    PREDICTIONS/<identity>/camera.json        the camera that the method saw the input with, where it predicts one
    PREDICTIONS/orbit/<identity>/<frame>.png  a dense orbit, of the identities that it is asked of

What is complete is left as it is, so a run that was killed goes on where it was.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline
from nvb_diffusers.camera import angle_between_cameras, camera_from_angles, orbit_cameras
from nvb_diffusers.data.datasets import file_names, load_records, read_record
from nvb_diffusers.data.fingerprint import file_hash, fingerprint
from nvb_diffusers.data.images import resized
from nvb_diffusers.data.records import save_image
from nvb_diffusers.evaluation.test_sets import TestSet, view_name
from nvb_diffusers.files import write_whole
from nvb_diffusers.schema import JsonData

ORBIT_YAW_DEG = (-45.0, 45.0)
PACKAGED = "default"  # the name of the packaged pipeline

M = TypeVar("M", bound="Method")


METHODS: dict[str, type["Method"]] = {}
"""Every method by the name that a comparison calls it."""


@dataclass(frozen=True)
class Prediction:
    """What a method makes of one input."""

    views: list[Image.Image]
    restored: Image.Image | None = None
    source_camera: torch.Tensor | None = None
    """(25,)"""


@dataclass(frozen=True, kw_only=True)
class Method(JsonData, ABC):
    """Anything that makes views of an input; a subclass under `register` is all that another method needs.

    The fields of a subclass are its options in a comparison's file. It is made anew in every process, so what it loads
    is loaded when it is first called, as by `cached_property`.

    Args:
        data_dir: the multi-view set in the project's format that the comparison is made on.
        num_inference_steps: of the views, and of the restoration; None for what suits the pipeline.
    """

    data_dir: str | None = None
    num_inference_steps: int | None = None

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Pipelines that it needs, by the names that `checkpoint_folder` knows."""
        return ()

    def made_of(self) -> list[str]:
        """Hashes that are equal for equal weights and settings of its pipelines, wherever they are."""
        folders = [Path(checkpoint_folder(name)) for name in self.checkpoints]
        files = [file for folder in folders for file in sorted(folder.rglob("*"))]
        return [file_hash(file) for file in files if file.suffix in (".json", ".safetensors")]

    @abstractmethod
    def __call__(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """Views of an input at cameras (V, 25), the same for the same seed."""


def register(name: str) -> Callable[[type[M]], type[M]]:
    """Give a method the name that a comparison calls it by."""

    def add(method: type[M]) -> type[M]:
        METHODS[name] = method
        return method

    return add


@register("one_stage")
@dataclass(frozen=True, kw_only=True)
class OneStage(Method):
    """Ours: one diffusion run from the degraded input to every view.

    Args:
        checkpoint: a pipeline with a view transformer.
        constant_camera: whether the volume is built with the frontal camera instead of the predicted one, for a view
            transformer that was trained so.
        fidelity: of the restoration, as in a call of the pipeline.
        own_pixels: whether the photo's own pixels are carried to the views, where the pipeline has an appearance model.
    """

    checkpoint: str = PACKAGED
    constant_camera: bool = False
    fidelity: float | None = None
    own_pixels: bool = True

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Its pipeline."""
        return (self.checkpoint,)

    @cached_property
    def pipeline(self) -> NVBFacePipeline:
        """Loaded when it is first used."""
        left_out = {} if self.own_pixels else {"appearance": None}
        pipeline = NVBFacePipeline.from_pretrained(checkpoint_folder(self.checkpoint), **left_out)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def __call__(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """Views of the input, and the input restored."""
        return replace(self.views(image, cameras, seed), restored=self.restore(image, seed))

    def restore(self, image: Image.Image, seed: int) -> Image.Image:
        """The input's own view, restored."""
        generator = torch.Generator().manual_seed(seed)
        output = self.pipeline.restore(
            image, fidelity=self.fidelity, num_inference_steps=self.num_inference_steps, generator=generator
        )
        return at_width(output.images[0], image.width)

    def views(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """Views at cameras (V, 25) without the restoration."""
        given = camera_from_angles(0, 0)[None] if self.constant_camera else None
        output = self.pipeline(
            image,
            cameras=cameras,
            source_cameras=given,
            num_inference_steps=self.num_inference_steps,
            generator=torch.Generator().manual_seed(seed),
        )
        views = [at_width(view, image.width) for view in output.images]
        return Prediction(views, source_camera=None if given is not None else output.source_cameras[0].cpu())


@register("two_stage")
@dataclass(frozen=True, kw_only=True)
class TwoStage(Method):
    """The chain that people use: one model restores the input, another makes views of the restored image.

    Args:
        checkpoint: the pipeline that restores.
        view_checkpoint: the one that makes views, at the camera that it sees the restored image with; None for the
            same.
        fidelity: of the restoration, as in a call of the pipeline.
    """

    checkpoint: str = PACKAGED
    view_checkpoint: str | None = None
    fidelity: float | None = None

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Its pipelines."""
        return (self.checkpoint,) if self.view_checkpoint is None else (self.checkpoint, self.view_checkpoint)

    @cached_property
    def _stages(self) -> tuple[OneStage, ...]:
        """The pipeline that restores, and the one that makes views."""
        return tuple(
            OneStage(checkpoint=name, fidelity=self.fidelity, num_inference_steps=self.num_inference_steps)
            for name in self.checkpoints
        )

    def __call__(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """Views of the restored input, and that."""
        restored = self._stages[0].restore(image, seed)
        return replace(self._stages[-1].views(restored, cameras, seed), restored=restored)


@register("input")
@dataclass(frozen=True, kw_only=True)
class InputAsView(Method):
    """The degraded input shown as every view: what a view model has to beat to be worth anything."""

    def __call__(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """The input, once for each camera."""
        return Prediction([image] * len(cameras), image)


@register("mean_face")
@dataclass(frozen=True, kw_only=True)
class MeanFace(Method):
    """The training set's mean face at each camera, whoever is asked for.

    Args:
        neighbors: images in each mean, those with the nearest orientations.
    """

    neighbors: int = 64

    @cached_property
    def _records(self) -> tuple[datasets.Dataset, torch.Tensor]:
        if self.data_dir is None:
            raise ValueError("a mean face needs the multi-view set that it is the mean of (data_dir)")
        records = load_records(self.data_dir, "train")
        return records, torch.tensor(records["camera"], dtype=torch.float32)  # (M, 25)

    def made_of(self) -> list[str]:
        """The fingerprint of the images and cameras that the means are of."""
        records, _ = self._records
        return [
            fingerprint((image["path"] for image in records["image"]), file_names(records), list(records["camera"]))
        ]

    def __call__(self, image: Image.Image, cameras: torch.Tensor, seed: int) -> Prediction:
        """Mean faces of the input's size."""
        records, known = self._records
        faces = []
        for camera in cameras:
            nearest = angle_between_cameras(known, camera.expand_as(known)).argsort()[: self.neighbors].tolist()
            images = [resized(read_record(records, index)["image"], image.width) for index in nearest]
            faces.append(Image.fromarray(np.mean(images, axis=0).round().astype(np.uint8)))
        return Prediction(faces)


def at_width(image: Image.Image, width: int) -> Image.Image:
    """A square image of the test set's size, where a pipeline makes another."""
    return image if image.width == width else image.resize((width, width), Image.Resampling.LANCZOS)


def checkpoint_folder(name: str) -> str:
    """The pipeline of a name in a comparison: `PACKAGED` is the packaged one, any other a folder."""
    return DEFAULT_CHECKPOINT if name == PACKAGED else name


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
            for target, image in zip(identity.targets, prediction.views, strict=True):
                _save(image, folder / view_name(name, target.view))
            if prediction.restored is not None:
                _save(prediction.restored, folder / view_name(name, identity.source_view))
            if prediction.source_camera is not None:
                content = json.dumps(prediction.source_camera.tolist())
                write_whole(folder / name / "camera.json", content)
            write_whole(folder / name / "done", b"")
        if number < num_orbits and not (folder / "orbit" / name / "done").is_file():
            for frame, image in enumerate(method(test_set.input(name), orbit, seed).views):
                _save(image, folder / "orbit" / view_name(name, frame))
            write_whole(folder / "orbit" / name / "done", b"")


def identity_seed(identity: str) -> int:
    """The seed of an identity's noise, whichever others are in the set."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image, path)
