"""Data sets of the training steps, over the one on-disk format (`nvb_diffusers.data.records`).

Step 1 reads single images (`FaceDataset`), step 2 several of one identity (`MultiViewFaceDataset`). Both give,
besides the clean images, their degraded copies, all made with one `DegradationParams` drawn for the sample (Eq. 7).
A sample is asked for by its key (`nvb_diffusers.data.keys`), from which everything random in it follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from nvb_diffusers.camera import mirror_camera
from nvb_diffusers.data.degradation import apply, draw_degradation
from nvb_diffusers.data.fingerprint import file_hash, fingerprint
from nvb_diffusers.data.images import load_photo, resized, to_pixel_values
from nvb_diffusers.data.keys import HELD_OUT_KEY, VIEWS, KeySampler, ShardSampler, sample_generator
from nvb_diffusers.data.records import metadata_path, read_records
from nvb_diffusers.data.shards import RECORD_FEATURES, ShardedRecords

FLIP_PROBABILITY = 0.5


def load_records(data_dir: str | Path, split: str) -> datasets.Dataset:
    """The checked records of one split as an HF data set; `read_record` decodes its images.

    Raises:
        ValueError: names file and line of a bad record; or the split has no images.
    """
    folder = Path(data_dir) / "images"
    records = [record for record in read_records(data_dir) if record["split"] == split]
    if not records:
        raise ValueError(f"{folder / 'metadata.jsonl'} has no image in split {split!r}")
    columns: dict[str, list[Any]] = {
        "image": [str(folder / record["file_name"]) for record in records],
        "identity": [str(record["identity"]) for record in records],
        "view": [record["view"] for record in records],
        "camera": [record.get("camera") for record in records],
    }
    return datasets.Dataset.from_dict(columns, features=RECORD_FEATURES)


def read_record(records: datasets.Dataset | ShardedRecords, index: int) -> dict[str, Any]:
    """One record with its image, read as every photo is.

    Raises:
        ValueError: names the image that cannot be read, or is not square.
    """
    record = records[index]
    content, path = record["image"]["bytes"], record["image"]["path"]
    name = records.image_name(index) if isinstance(records, ShardedRecords) else path
    image = load_photo(path if content is None else BytesIO(content), name=name)
    width, height = image.size
    if width != height:
        raise ValueError(f"image {name} is {width}x{height}, but training images are square crops")
    return {**record, "image": image}


def image_paths(records: datasets.Dataset) -> list[Path]:
    """Where the images are."""
    return [Path(image["path"]) for image in records["image"]]


def data_fingerprint(data_dir: str | Path, records: datasets.Dataset | ShardedRecords | None) -> str | None:
    """A text that is equal for a data set whose metadata and images of a split are as they were; None for shards."""
    metadata = metadata_path(data_dir)
    if not isinstance(records, datasets.Dataset) or not metadata.is_file():
        return None
    return fingerprint(image_paths(records), file_hash(metadata))


def file_names(records: datasets.Dataset) -> list[str]:
    """Where the images are, from the folder of their identity on."""
    return ["/".join(path.parts[-2:]) for path in image_paths(records)]


@dataclass(frozen=True)
class SampleTransform:
    """What happens to the images of a sample.

    Args:
        resolution: side of the images in pixels.
        presets: names of degradation presets, one of which is drawn for each sample; none for clean images alone.
        seed: of everything drawn.
        flip: whether half of the samples are mirrored, with their cameras.
        crop_jitter: largest share of the side that a random crop leaves out; the crop enters the intrinsics.
    """

    resolution: int
    presets: Sequence[str]
    seed: int = 0
    flip: bool = True
    crop_jitter: float = 0.0

    def __post_init__(self) -> None:
        """Raise a ValueError for a side that no image has."""
        if self.resolution < 1:
            raise ValueError(f"resolution is {self.resolution}, expected at least 1")

    def __call__(self, records: Sequence[dict[str, Any]], key: int) -> dict[str, torch.Tensor]:
        """Images of one sample, all with the same flip and the same degradation.

        Returns:
            `pixel_values` and, with presets, `degraded_pixel_values` (V, 3, S, S) in [-1, 1]; `camera_params` (V, 25)
            where the records have cameras; `flipped` and `key`, scalars.
        """
        generator = np.random.default_rng([self.seed, key])
        flipped = self.flip and generator.random() < FLIP_PROBABILITY
        clean, cameras = [], []
        for record in records:
            camera = torch.tensor(record["camera"], dtype=torch.float32) if record["camera"] is not None else None
            image, camera = self._crop(record["image"], camera, generator)
            clean.append(image[:, ::-1] if flipped else image)
            cameras.append(mirror_camera(camera) if flipped and camera is not None else camera)
        sample = {
            "pixel_values": to_pixel_values(clean),
            "flipped": torch.tensor(flipped),
            "key": torch.tensor(key),
        }
        if self.presets:
            degradation = draw_degradation(generator, str(generator.choice(list(self.presets))))
            degraded = [apply(np.ascontiguousarray(image), degradation) for image in clean]
            sample["degraded_pixel_values"] = to_pixel_values(degraded)
        if all(camera is not None for camera in cameras):
            sample["camera_params"] = torch.stack([camera for camera in cameras if camera is not None])
        return sample

    def _crop(
        self, image: Image.Image, camera: torch.Tensor | None, generator: np.random.Generator
    ) -> tuple[np.ndarray, torch.Tensor | None]:
        """A random square of the image, resized, and the camera that sees just that square."""
        side = 1.0 - self.crop_jitter * generator.random()
        left, top = (1.0 - side) * generator.random(2)
        width, height = image.size
        box = (left * width, top * height, (left + side) * width, (top + side) * height)
        if camera is not None:
            affine = torch.tensor([[1 / side, 0, -left / side], [0, 1 / side, -top / side], [0, 0, 1]]).float()
            camera = torch.cat([camera[:16], (affine @ camera[16:].view(3, 3)).flatten()])
        return resized(image, self.resolution, box), camera


class _Samples:
    """What both data sets can: give only their first samples, and cached latents with each."""

    records: datasets.Dataset | ShardedRecords
    latents: np.ndarray | None = None  # (N, 2, C, h, w), of every image of `records` and of its mirror image
    limit: int | None = None

    def keep_first(self, count: int) -> None:
        """Have no more samples than so many, the first ones.

        Raises:
            ValueError: the data set is streamed.
        """
        if isinstance(self.records, ShardedRecords):
            raise ValueError("a streamed data set is read by shards and cannot be cut: leave out --max_train_samples")
        self.limit = count

    def use_latents(self, latents: np.ndarray) -> None:
        """Give these latents with every sample, so that nobody has to encode the images again."""
        count = len(self.records)
        if latents.shape[:2] != (count, 2):
            raise ValueError(
                f"cached latents have shape {latents.shape}, expected ({count}, 2, ...): remove the old cache"
            )
        self.latents = latents


class FaceDataset(_Samples, Dataset):
    """Single images for step 1.

    Args:
        data_dir: a folder in the project's format; cameras are optional.
        split: train, validation or test.
        transform: what happens to each image.
        streaming: whether `data_dir` holds shards (`nvb_diffusers.data.shards`), and may be a URL.
    """

    def __init__(self, data_dir: str | Path, split: str, transform: SampleTransform, streaming: bool = False) -> None:
        self.records = ShardedRecords(str(data_dir), split) if streaming else load_records(data_dir, split)
        self.transform = transform
        self.has_cameras = _has_cameras(self.records)

    def __len__(self) -> int:
        return min(len(self.records), self.limit or len(self.records))

    def __getitem__(self, key: int) -> dict[str, torch.Tensor]:
        """Sample of a key: the transform's values without V, and `latents` (C, h, w) where they are cached."""
        index = key % len(self)
        sample = self.transform([read_record(self.records, index)], key)
        if not self.has_cameras:  # of any image, or of some, which would not make a batch
            sample.pop("camera_params", None)
        if self.latents is not None:
            sample["latents"] = _cached(self.latents, [index], sample)
        return {name: value[0] if value.ndim > 0 else value for name, value in sample.items()}


class MultiViewFaceDataset(_Samples, Dataset):
    """Several images of one identity for step 2: the source view first, then the targets.

    The source view is among the views to be made, so that a pipeline can also give back the input's own view.

    Args:
        data_dir: a folder in the project's format, every image with its camera.
        split: train, validation or test.
        transform: what happens to the images of a sample.
        num_target_views: other views beside the source, 7 in the paper.
        streaming: whether `data_dir` holds shards (`nvb_diffusers.data.shards`), and may be a URL.
    """

    def __init__(
        self,
        data_dir: str | Path,
        split: str,
        transform: SampleTransform,
        num_target_views: int = 7,
        streaming: bool = False,
    ) -> None:
        self.records = ShardedRecords(str(data_dir), split) if streaming else load_records(data_dir, split)
        if num_target_views < 0:
            raise ValueError(f"num_target_views is {num_target_views}, expected 0 or more")
        self.transform, self.num_views = transform, num_target_views + 1
        if not _has_cameras(self.records):
            raise ValueError(f"{data_dir} has images without a camera in split {split!r}: step 2 needs them all")
        self.views = _views_by_identity(self.records)
        fewest = min(len(views) for views in self.views)
        if fewest < self.num_views:
            raise ValueError(
                f"an identity in {data_dir} has {fewest} views, but {num_target_views} targets and the source need "
                f"{self.num_views}: lower --num_target_views"
            )

    def __len__(self) -> int:
        return min(len(self.views), self.limit or len(self.views))

    def __getitem__(self, key: int) -> dict[str, torch.Tensor]:
        """Sample of a key: the transform's values, V = 1 + targets, and `latents` (V, C, h, w) if they are cached."""
        chosen = self.chosen_views(key)
        sample = self.transform([read_record(self.records, index) for index in chosen], key)
        if self.latents is not None:
            sample["latents"] = _cached(self.latents, chosen, sample)
        return sample

    def chosen_views(self, key: int) -> list[int]:
        """The records that the sample of a key shows, the source view first."""
        generator = sample_generator(key, self.transform.seed, VIEWS)
        return generator.permutation(self.views[key % len(self)])[: self.num_views].tolist()


def key_sampler(
    dataset: FaceDataset | MultiViewFaceDataset, seed: int, start: int, batch_size: int, readers: int
) -> Sampler[int]:
    """Endless keys of the data set's samples: of a streamed one in an order in which each reader stays in one shard.

    Args:
        dataset: what the keys are of.
        seed: of the order.
        start: keys to leave out, when a run resumes.
        batch_size: keys in a row that one reader gets.
        readers: worker processes that load data, over all processes of the run.
    """
    if not isinstance(dataset.records, ShardedRecords):
        return KeySampler(len(dataset), seed, start)
    by_identity = isinstance(dataset, MultiViewFaceDataset)
    lengths = [len(views) if by_identity else sum(views) for views in dataset.records.views_per_shard]
    return ShardSampler(lengths, seed, batch_size, readers, start)


def held_out_batch(dataset: FaceDataset | MultiViewFaceDataset, count: int) -> dict[str, torch.Tensor]:
    """Up to `count` samples evenly taken from the data set, stacked (N, ...), the same in every run."""
    first = HELD_OUT_KEY // len(dataset) * len(dataset)  # a multiple of the length, so that keys still name the samples
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    samples = [dataset[first + int(index)] for index in indices]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def split_batch(batch: dict[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """The batch (N, ...) in parts of at most `size` samples."""
    parts = {name: value.split(size) for name, value in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _has_cameras(records: datasets.Dataset | ShardedRecords) -> bool:
    """Whether every image has its camera."""
    if isinstance(records, ShardedRecords):
        return records.has_cameras
    return all(camera is not None for camera in records["camera"])


def _views_by_identity(records: datasets.Dataset | ShardedRecords) -> list[Sequence[int]]:
    """The records of each identity, in the order in which the identities come first."""
    if isinstance(records, ShardedRecords):
        return records.views
    by_identity: dict[str, list[int]] = {}
    for index, identity in enumerate(records["identity"]):
        by_identity.setdefault(identity, []).append(index)
    return list(by_identity.values())


def _cached(latents: np.ndarray, indices: Sequence[int], sample: dict[str, torch.Tensor]) -> torch.Tensor:
    """Latents (V, C, h, w) of images as the sample shows them, mirrored or not."""
    orientation = int(sample["flipped"])
    return torch.from_numpy(np.stack([latents[index, orientation] for index in indices]).astype(np.float32))
