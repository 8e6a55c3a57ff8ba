"""The one on-disk format of every data set: `images/<identity>/<view>.webp` + `images/metadata.jsonl`.

One line of `metadata.jsonl` is one image, a JSON object with

- `file_name`: the image, relative to `images/`;
- `identity` (a text; a number stands for its digits) and `view` (number): who, and which of their images;
- `split`: train, validation or test, the same one for every image of an identity;
- `camera`, optional: 25 numbers, cam2world (4, 4) in OpenCV axes, then intrinsics (3, 3) normalized by image size;
- `landmarks`, optional: (5, 2) pixels from the image's top left edge: the eyes, the tip of the nose and the corners
  of the mouth, left to right as seen from the front;
- anything else: attributes, kept as they are.

An identity is one head at one moment, so any two of its images are views of the same thing. HF `datasets` reads the
same folder as an `imagefolder`. The metadata is written last and at once, so a folder that has it is whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from nvb_diffusers.camera import check_camera_params
from nvb_diffusers.data.fingerprint import drop_outdated, file_hash
from nvb_diffusers.data.images import is_system_file, load_photo, photo_size
from nvb_diffusers.files import check_name, path_inside, read_json, replaced_file, write_json, write_whole

SPLITS = ("train", "validation", "test")
IMAGE_FORMATS = ("webp", "png")

Identity = TypeVar("Identity", int, str)
Item = TypeVar("Item")
Result = TypeVar("Result")


def metadata_path(data_dir: str | Path) -> Path:
    """The file that lists the images of a data set."""
    return Path(data_dir) / "images" / "metadata.jsonl"


def read_records(data_dir: str | Path) -> list[dict[str, Any]]:
    """Read and check the records of a data set, in the order of the file.

    Args:
        data_dir: the folder that holds `images/metadata.jsonl`.

    Raises:
        ValueError: names file and line, as in `.../metadata.jsonl:17: view is None, ...`.
    """
    path = metadata_path(data_dir)
    if not path.is_file():
        raise ValueError(f"no data set at {data_dir}: {path} does not exist")
    records, lines = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not a JSON object ({error})") from None
            lines.append(number)
    if not records:
        raise ValueError(f"{path} is empty")
    _check_records(path, records, lines)
    return records


def write_records(data_dir: str | Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Check the records and write them at once; their images must already be there.

    Returns:
        The path of `metadata.jsonl`.
    """
    path = metadata_path(data_dir)
    _check_records(path, records, range(1, len(records) + 1))
    text = "".join(json.dumps(dict(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    write_whole(path, text)
    return path


def check_record(record: Mapping[str, Any]) -> None:
    """Raise ValueError where one record does not hold what the format asks for (its image is not looked at)."""
    if not isinstance(record, Mapping):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    missing = [key for key in ("file_name", "identity", "view", "split") if key not in record]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    file_name, identity, view, split = (record[key] for key in ("file_name", "identity", "view", "split"))
    path_inside("", file_name, "file_name")
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise ValueError(f"identity is {identity!r}, expected a whole number or a text")
    check_name(str(identity), "identity")
    if isinstance(view, bool) or not isinstance(view, int):
        raise ValueError(f"view is {view!r}, expected a whole number")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    if record.get("camera") is not None:
        _check_camera(record["camera"])
    if record.get("landmarks") is not None:
        check_landmarks(record["landmarks"])


def check_landmarks(value: Any) -> None:
    """Raise ValueError unless the value is five finite points of two pixels."""
    landmarks = _numbers(value, "landmarks")
    if landmarks.shape != (5, 2):
        raise ValueError(f"landmarks have shape {landmarks.shape}, expected (5, 2)")


def split_by_identity(
    identities: Iterable[Identity], validation: float = 0.05, test: float = 0.05, seed: int = 0
) -> dict[Identity, str]:
    """Give every identity one split, by a hash of its name.

    An identity keeps its split when others join or leave the set, so the parts are only about as large as asked for.

    Args:
        identities: may repeat.
        validation: share of the identities, 0 to 1.
        test: share of the identities, 0 to 1.
        seed: another number gives another split.
    """
    if min(validation, test) < 0 or validation + test > 1:
        raise ValueError(f"shares: validation {validation}, test {test}; expected 0 or more each, at most 1 together")
    splits = {}
    for identity in identities:
        digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        splits[identity] = "test" if place < test else "validation" if place < test + validation else "train"
    return splits


def read_eg3d_labels(path: str | Path) -> list[tuple[str, list[float]]]:
    """File names and cameras (25 numbers) of a `dataset.json` as EG3D and PanoHead write it, in its order.

    Copies mirrored by EG3D's tools (`*_mirror.*`) are left out: our data sets flip images themselves.
    """
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not labels or not all(isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) for item in labels):
        raise ValueError(f'{path} holds no cameras: expected {{"labels": [["<file name>", [25 numbers]], ...]}}')
    for name, camera in labels:
        try:
            path_inside("", name, "file name")
            _check_camera(camera)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return [(name, camera) for name, camera in labels if not Path(name).stem.endswith("_mirror")]


def begin_data_set(
    data_dir: str | Path,
    settings: Mapping[str, Any],
    inputs: Iterable[str | Path] = (),
    made_of: Mapping[str, str] | None = None,
    index: str = "images/metadata.jsonl",
) -> None:
    """Make the folder of a new data set and note how it is made, in `prepare.json`, and of what, in `sources.json`.

    A second call with the same settings and inputs goes on where the first stopped: files are written at once, so
    those already there are whole and of these settings. Files whose sources changed are removed, to be made anew.

    Args:
        data_dir: the folder to make, which must be new, empty or begun in this way.
        settings: JSON values.
        inputs: files that all images depend on, such as labels; their contents count, by a hash.
        made_of: the `fingerprint` of the sources of each file to be made, by its name in the folder.
        index: the file in the folder that is written last.

    Raises:
        ValueError: the folder is of other settings or inputs, or holds something else.
    """
    folder = Path(data_dir)
    note = folder / "prepare.json"
    now = {**settings, **{f"sha256 of {Path(path).name}": file_hash(path) for path in inputs}}
    if note.is_file():
        before = read_json(note)
        now = json.loads(json.dumps(now))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            key = changed[0]
            raise ValueError(
                f"{folder} was prepared with {key} = {before.get(key)!r}, now {key} = {now.get(key)!r}: "
                "choose another output folder, or remove this one"
            )
    elif folder.exists() and (not folder.is_dir() or any(_counts(path) for path in folder.iterdir())):
        raise ValueError(f"{folder} exists and is not a data set being prepared: choose an empty or a new folder")
    else:
        write_json(note, now)
    if made_of is not None:
        drop_outdated(folder, "sources.json", index, made_of)


def _counts(path: Path) -> bool:
    """Whether a file makes a folder one that is not empty; what another process is just writing is hidden."""
    is_being_written = path.name.startswith(".") and path.name.endswith(".part")
    return not is_system_file(path) and not is_being_written


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write an image without loss, as the suffix of the path says, and at once."""
    with replaced_file(path) as part:
        if Path(path).suffix == ".webp":
            image.save(part, format="WEBP", lossless=True, method=0)  # 15x the speed of the default for 9 % more bytes
        else:
            image.save(part, format="PNG")


def resize_image(source: str | Path, target: str | Path, size: int) -> float:
    """Write one square image at another size, unless it is there, and return the new size over the old one.

    Lanczos, a low-pass filter where the image shrinks.
    """
    width, height = photo_size(source)
    if width != height:
        raise ValueError(f"image {source} is {width}x{height}, expected a square")
    if not Path(target).exists():
        # Averages whole blocks first, to no less than 3x the size: as good, and faster on large images.
        save_image(load_photo(source).resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0), target)
    return size / width


def map_parallel(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """Apply a function to every item and stop at the first error. In threads: Pillow works outside Python's lock."""
    pool = ThreadPoolExecutor(workers)
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)


def _check_records(path: Path, records: Sequence[Mapping[str, Any]], lines: Sequence[int]) -> None:
    """Check each record, its image, and that no file and no view is listed twice and no identity is in two splits."""
    sound = _all_sound([record.get("camera") for record in records if isinstance(record, Mapping)])
    line_of_file: dict[str, int] = {}
    line_of_view: dict[tuple[str, int], int] = {}
    split_of_identity: dict[str, tuple[str, int]] = {}
    for record, number in zip(records, lines, strict=True):
        try:
            check_record({**record, "camera": None} if sound and isinstance(record, Mapping) else record)
            file_name, identity, split = record["file_name"], record["identity"], record["split"]
            if not (path.parent / file_name).is_file():
                raise ValueError(f"image {file_name} does not exist")
            first = line_of_file.setdefault(file_name, number)
            if first != number:
                raise ValueError(f"image {file_name} is already on line {first}")
            first_split, first = split_of_identity.setdefault(str(identity), (split, number))
            if first_split != split:
                raise ValueError(f"identity {identity} is in split {split}, but in {first_split} on line {first}")
            first = line_of_view.setdefault((str(identity), record["view"]), number)
            if first != number:
                raise ValueError(f"view {record['view']} of identity {identity} is already on line {first}")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None


def _numbers(value: Any, name: str) -> np.ndarray:
    try:
        numbers = np.asarray(value)
    except (TypeError, ValueError):
        numbers = np.asarray("")
    if numbers.dtype.kind not in "iuf":  # texts and booleans would be taken for numbers
        raise ValueError(f"{name} is not a list of numbers of one shape")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds a number that is not finite")
    return numbers


def _all_sound(cameras: Sequence[Any]) -> bool:
    """Whether all cameras that are there are right, checked at once: one by one they take most of the time."""
    try:
        numbers = np.array([camera for camera in cameras if camera is not None])
        if len(numbers) and numbers.dtype.kind not in "iuf":
            return False
        if len(numbers):
            check_camera_params(torch.from_numpy(numbers))
    except (TypeError, ValueError):
        return False
    return len(numbers) == 0 or numbers.shape[1:] == (25,)


def _check_camera(value: Any) -> None:
    """Raise ValueError unless the value is 25 numbers of a camera."""
    camera = _numbers(value, "camera")
    if camera.shape != (25,):
        raise ValueError(f"camera has shape {camera.shape}, expected 25 numbers: cam2world 16, intrinsics 9")
    check_camera_params(torch.from_numpy(camera), "camera")
