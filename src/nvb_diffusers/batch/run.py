"""The loop over many photos: while the model paints a group, the next one is read and the one before is encoded.

Processes share the blocks of photos: process p of P does blocks p, p + P, ... A block becomes one shard, and its groups
are the same whoever does it, so that P processes make what one makes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from tqdm import tqdm

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.batch.shards import Shard, ShardFolder
from nvb_diffusers.batch.sources import PhotoFile, Photos
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.data.images import load_photo, to_images
from nvb_diffusers.face_crop import MAX_PHOTO_PIXELS, crop_face
from nvb_diffusers.files import one_line
from nvb_diffusers.pipeline_inputs import Background
from nvb_diffusers.provenance import Mark, marked_png

Item = TypeVar("Item")
ENCODERS = 2  # threads that make files of pictures


@dataclass(frozen=True)
class BatchSettings:
    """What decides the views of every photo.

    Args:
        num_views, yaw, pitch: cameras evenly from yaw to yaw, in degrees.
        aligned: whether the photos are square crops, framed as in training.
        num_inference_steps, guidance_scale: None for what suits the checkpoint.
        seed: of the noise, the same for every photo.
        background: as of the pipeline's call.
        mark: of the pictures.
        batch_size: photos in one call of the pipeline.
        shard_size: photos of one shard.
    """

    num_views: int = 7
    yaw: tuple[float, float] = (-45.0, 45.0)
    pitch: float = 0.0
    aligned: bool = False
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    background: Background = "turn"
    mark: Mark | None = "visible+invisible"
    batch_size: int = 4
    shard_size: int = 64


class Read(NamedTuple):
    """A photo that was read: the crop to make views of, or why there is none."""

    photo: PhotoFile
    crop: Image.Image | None
    reason: str


class Made(NamedTuple):
    """What was made of a photo: a record, and files that threads are still encoding."""

    number: int
    record: dict[str, Any]
    files: list[tuple[str, Future[bytes]]]


def make_views(
    pipe: NVBFacePipeline,
    photos: Photos,
    folder: str | Path,
    settings: BatchSettings,
    made_of: Mapping[str, Any],
    process: int = 0,
    processes: int = 1,
) -> None:
    """Make the shards of a process that are not done yet; a photo that cannot be done is noted and left out.

    Args:
        pipe: what paints, with a view transformer.
        photos: of `open_photos`.
        folder: of the shards; another call with the same settings goes on where one was stopped.
        settings: what is made.
        made_of: what else tells one batch from another, such as what paints it.
        process, processes: which one this is, and of how many.

    Raises:
        ValueError: the folder holds something else.
        OSError: the source cannot be read on, or the disk is full.
    """
    shards = ShardFolder(Path(folder), {**made_of, "made of": photos.made_of, **asdict(settings)})

    def wanted(number: int) -> bool:
        return number % processes == process and not shards.has(number)

    with (
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(ENCODERS) as encoder,
        _bar(photos, settings, wanted) as bar,
    ):
        for block in photos.blocks(settings.shard_size, wanted):
            with shards.write(block.number) as shard:
                # A group's files are encoded while the next one is painted.
                for made in _one_ahead(_made(pipe, block.photos, settings, shard, reader, encoder)):
                    for one in made:
                        shard.add(one.number, one.record, [(ending, file.result()) for ending, file in one.files])
            bar.update(shard.count)


def _bar(photos: Photos, settings: BatchSettings, wanted: Callable[[int], bool]) -> tqdm:
    """Photos a second and, where their number is known, how many are left for this process."""
    total = None
    if photos.count is not None:
        size, starts = settings.shard_size, range(0, photos.count, settings.shard_size)
        total = sum(min(size, photos.count - start) for start in starts if wanted(start // size))
    return tqdm(total=total, unit="photo", smoothing=0.1)


def _made(
    pipe: NVBFacePipeline,
    photos: Sequence[PhotoFile],
    settings: BatchSettings,
    shard: Shard,
    reader: ThreadPoolExecutor,
    encoder: ThreadPoolExecutor,
) -> Iterator[list[Made]]:
    """What is made of the photos, group by group; those that fail are noted in the shard."""
    size = pipe.sample_size
    cameras = orbit_cameras(settings.num_views, settings.yaw, settings.pitch)  # (V, 25)
    step = settings.batch_size
    groups = (photos[start : start + step] for start in range(0, len(photos), step))
    for group in _one_ahead(reader.submit(_read, group, size, settings.aligned) for group in groups):
        whole = [read for read in group.result() if read.crop is not None]
        for read in group.result():
            if read.crop is None:
                shard.add_failure(read.photo.number, read.photo.name, read.reason)
        yield _paint(pipe, whole, cameras, settings, encoder) if whole else []


def _read(photos: Sequence[PhotoFile], size: int, aligned: bool) -> list[Read]:
    return [_read_one(photo, size, aligned) for photo in photos]


def _read_one(photo: PhotoFile, size: int, aligned: bool) -> Read:
    try:
        if photo.file is None:
            raise ValueError(f"'{photo.name}' has no picture in the column where the first ones have theirs")
        image = load_photo(photo.file, MAX_PHOTO_PIXELS, name=f"'{photo.name}'")
        if not aligned:
            return Read(photo, crop_face(image, size).image, "")
        if image.width != image.height:
            raise ValueError(f"'{photo.name}' is {image.width}x{image.height} px, but a crop is square")
        return Read(photo, image, "")
    except (ValueError, OSError) as error:
        return Read(photo, None, one_line(error))


def _paint(
    pipe: NVBFacePipeline,
    group: Sequence[Read],
    cameras: torch.Tensor,
    settings: BatchSettings,
    encoder: ThreadPoolExecutor,
) -> list[Made]:
    """Views of a group, of which every photo has the same noise, drawn on the CPU."""
    out = pipe(
        [read.crop for read in group if read.crop is not None],
        cameras=cameras,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        generator=[torch.Generator().manual_seed(settings.seed) for _ in group],
        background=settings.background,
    )
    made = []
    for row, read in enumerate(group):
        files = [
            (f"view_{index:02d}.png", encoder.submit(marked_png, view, settings.mark))
            for index, view in enumerate(out.images[row])
        ]
        if out.evidence is not None:
            maps = to_images(out.evidence[row] * 2 - 1)
            files += [(f"evidence_{index:02d}.png", encoder.submit(_png, map_)) for index, map_ in enumerate(maps)]
        record = {
            "photo": read.photo.name,
            "seed": settings.seed,
            "source_camera": out.source_cameras[row].tolist(),
            "cameras": cameras.tolist(),
        }
        made.append(Made(read.photo.number, record, files))
    return made


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, of which the next is begun before one is given."""
    previous: list[Item] = []
    for item in items:
        yield from previous
        previous = [item]
    yield from previous
