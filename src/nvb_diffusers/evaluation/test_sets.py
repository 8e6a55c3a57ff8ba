"""A test set as files, so that the exact images exist for good and any method can be scored on them.

    SET/set.json                          what the set was made of
    SET/records.jsonl                     one line an identity: source view and camera, degradation, targets
    SET/inputs/<identity>.png             the degraded source view: all that a method may see, beside the cameras
    SET/truths/<identity>/<view>.png      the source view and every target view, clean
    SET/depth/<identity>/<view>.png       z-depth of the truths where the data has it: 16 bit, world units x 10000
    SET/manifest.json                     sha256 of every other file

Nothing in it depends on the machine or the time, so the same command makes the same bytes, for one version of the
libraries that resize and degrade. Another preset or resolution leaves the choice of identities and views as it is.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nvb_diffusers.data.degradation import PRESETS, DegradationParams, apply, draw_degradation
from nvb_diffusers.data.fingerprint import file_hash
from nvb_diffusers.data.images import load_photo, resized, to_pixel_values
from nvb_diffusers.data.records import read_records
from nvb_diffusers.files import check_name, read_json, replaced_folder
from nvb_diffusers.schema import JsonData

VERSION = 1
DEPTH_UNIT = 1e-4  # world units of one step of a depth image
# What is drawn for an identity comes from separate generators, so that one draw more leaves the other as it was.
CHOSEN_VIEWS, DEGRADATION = range(2)


@dataclass(frozen=True)
class TestSetSettings(JsonData):
    """What a test set was made of: the content of `set.json`, as `make_test_set` describes it."""

    __test__ = False  # its name must not make a test of it

    version: int
    data: str
    split: str
    preset: str
    seed: int
    resolution: int
    num_identities: int
    num_target_views: int


@dataclass(frozen=True)
class TargetView:
    """A view that a method is asked for."""

    view: int
    camera: torch.Tensor
    """(25,)"""
    landmarks: np.ndarray | None
    """(5, 2) as in the data's format, in pixels of the set's resolution."""


@dataclass(frozen=True)
class TestIdentity:
    """One identity of a test set."""

    __test__ = False

    identity: str
    source_view: int
    source_camera: torch.Tensor
    """(25,)"""
    degradation: DegradationParams
    targets: tuple[TargetView, ...]

    @property
    def cameras(self) -> torch.Tensor:
        """Cameras (V, 25) of the targets."""
        return torch.stack([target.camera for target in self.targets])


@dataclass(frozen=True)
class TestSet:
    """A test set on disk."""

    __test__ = False

    folder: Path
    settings: TestSetSettings
    identities: tuple[TestIdentity, ...]

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return self.settings.resolution

    def input(self, identity: str) -> Image.Image:
        """The degraded source view."""
        return load_photo(self.folder / "inputs" / f"{identity}.png")

    def truth(self, identity: str, view: int) -> Image.Image:
        """The clean image of a target view or of the source view."""
        return load_photo(self.folder / "truths" / view_name(identity, view))

    def depth(self, identity: str, view: int) -> torch.Tensor | None:
        """z-depth (S, S) of a truth in world units, 0 where there is background; None where the data has none."""
        path = self.folder / "depth" / view_name(identity, view)
        if not path.is_file():
            return None
        with Image.open(path) as image:
            return torch.from_numpy(np.asarray(image).astype(np.float32)) * DEPTH_UNIT


def view_name(identity: str, view: int) -> str:
    """Where the image of a view is, in the truths, the depths and the predictions alike."""
    return f"{identity}/{view:02d}.png"


def make_test_set(
    data_dir: str | Path,
    out: str | Path,
    preset: str = "medium",
    seed: int = 0,
    split: str = "test",
    num_identities: int = 60,
    num_target_views: int = 7,
    resolution: int = 128,
) -> Path:
    """Freeze a test set, whole or not at all.

    Args:
        data_dir: a multi-view set in the project's format, every image with its camera.
        out: folder to make; it must not exist.
        preset: how much the inputs are degraded.
        seed: of the choice of views and of the degradations, each identity's apart from the others.
        split: where the identities are from.
        num_identities: evenly spaced over the split; fewer where it has fewer.
        num_target_views: views beside the source.
        resolution: side of the images in pixels.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists: a test set is made once, choose another folder")
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}")
    if min(num_identities, num_target_views) < 1 or resolution < 16:
        raise ValueError(
            f"num_identities is {num_identities}, num_target_views {num_target_views} and resolution {resolution}: "
            "expected at least 1, 1 and 16"
        )
    by_identity = _records_by_identity(data_dir, split, num_target_views + 1)
    chosen = np.linspace(0, len(by_identity) - 1, min(num_identities, len(by_identity))).round().astype(int)
    names = [list(by_identity)[index] for index in chosen]
    settings = TestSetSettings(
        version=VERSION,
        data=Path(data_dir).resolve().name,
        split=split,
        preset=preset,
        seed=seed,
        resolution=resolution,
        num_identities=len(names),
        num_target_views=num_target_views,
    )
    with replaced_folder(out) as part:
        lines = [_write_identity(Path(data_dir), part, name, by_identity[name], settings) for name in names]
        (part / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (part / "set.json").write_text(json.dumps(settings.to_json(), indent=2) + "\n")
        (part / "manifest.json").write_text(json.dumps(_hashes(part), indent=2) + "\n")
    return out


def source_hash(data_dir: str | Path, split: str) -> str:
    """Of all that a test set of a split depends on in the data: its records, images and depths, by their content."""
    folder, digest = Path(data_dir), hashlib.sha256()
    for record in read_records(data_dir):
        if record["split"] == split:
            digest.update(json.dumps(record, sort_keys=True).encode())
            for path in (folder / "images" / record["file_name"], _depth_path(folder, record)):
                digest.update(file_hash(path).encode() if path.is_file() else b"none")
    return digest.hexdigest()


def load_test_set(folder: str | Path, verify: bool = True) -> TestSet:
    """Read a test set.

    Args:
        folder: as `make_test_set` makes it.
        verify: whether to compare every file with the manifest.

    Raises:
        ValueError: there is no test set, or a file is missing, additional or changed; it is named.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"no test set at {folder}: make one with `nvb-face eval make-set`")
    if verify:
        _check_manifest(folder)
    settings = TestSetSettings.from_json(read_json(folder / "set.json"))
    if settings.version != VERSION:
        raise ValueError(f"{folder} is a test set of version {settings.version}, expected {VERSION}")
    lines = (folder / "records.jsonl").read_text().splitlines()
    return TestSet(folder, settings, tuple(_read_identity(json.loads(line)) for line in lines))


def load_images(paths: Iterable[Path], resolution: int) -> torch.Tensor:
    """Images (N, 3, S, S) in [-1, 1], at a set's resolution."""
    return to_pixel_values([resized(load_photo(path), resolution) for path in paths])


def _records_by_identity(data_dir: str | Path, split: str, num_views: int) -> dict[str, list[dict[str, Any]]]:
    """The records of each identity of a split by view, under the name that is used for files."""
    by_identity: dict[str, list[dict[str, Any]]] = {}
    for record in read_records(data_dir):
        if record["split"] == split:
            by_identity.setdefault(_identity_name(record["identity"]), []).append(record)
    if not by_identity:
        raise ValueError(f"{data_dir} has no image in split {split!r}")
    for name, records in by_identity.items():
        if any(record.get("camera") is None for record in records):
            raise ValueError(f"identity {name} in {data_dir} has an image without a camera: a test set needs them all")
        if len(records) < num_views:
            raise ValueError(
                f"identity {name} in {data_dir} has {len(records)} views, but {num_views - 1} targets and the source "
                f"need {num_views}: lower --num-target-views"
            )
        records.sort(key=lambda record: record["view"])
    return by_identity


def _identity_name(identity: int | str) -> str:
    name = check_name(f"{identity:06d}" if isinstance(identity, int) else identity, "identity")
    if name.casefold() == "orbit":
        raise ValueError(f"identity is {name!r}, but a folder of that name holds the orbits: choose another")
    return name


def _write_identity(
    data_dir: Path, out: Path, name: str, records: Sequence[dict[str, Any]], settings: TestSetSettings
) -> dict[str, Any]:
    """Write the images of one identity; returns its line of `records.jsonl`."""
    order = _generator(settings.seed, name, CHOSEN_VIEWS).permutation(len(records))
    source, *targets = (records[index] for index in order[: settings.num_target_views + 1])
    targets.sort(key=lambda record: record["view"])
    degradation = draw_degradation(_generator(settings.seed, name, DEGRADATION), settings.preset)
    sides = {}
    for record in (source, *targets):
        view, image = record["view"], load_photo(data_dir / "images" / record["file_name"])
        if image.width != image.height:
            raise ValueError(f"image {record['file_name']} is {image.width}x{image.height}, expected a square")
        sides[view] = image.width
        truth = resized(image, settings.resolution)
        _save(truth, out / "truths" / view_name(name, view))
        _copy_depth(data_dir, out, record, name, settings.resolution)
        if record is source:
            _save(apply(truth, degradation), out / "inputs" / f"{name}.png")
    scale = {view: settings.resolution / side for view, side in sides.items()}
    return {
        "identity": name,
        "source_view": source["view"],
        "source_camera": source["camera"],
        "degradation": json.loads(degradation.to_json()),
        "targets": [
            {
                "view": record["view"],
                "camera": record["camera"],
                "landmarks": _scaled(record.get("landmarks"), scale[record["view"]]),
            }
            for record in targets
        ],
    }


def _generator(seed: int, identity: str, stream: int) -> np.random.Generator:
    """The generator of one of the draws of an identity, whichever others are in the set."""
    key = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, stream, key])


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def _depth_path(data_dir: Path, record: dict[str, Any]) -> Path:
    return (data_dir / "depth" / record["file_name"]).with_suffix(".png")


def _copy_depth(data_dir: Path, out: Path, record: dict[str, Any], name: str, resolution: int) -> None:
    """Depth at the set's resolution, by nearest: a mean of face and background would be a place that nothing is at."""
    path = _depth_path(data_dir, record)
    if path.is_file():
        with Image.open(path) as image:
            depth = np.asarray(image.resize((resolution, resolution), Image.Resampling.NEAREST))
        _save(depth.astype(np.uint16), out / "depth" / view_name(name, record["view"]))


def _scaled(landmarks: Sequence[Sequence[float]] | None, scale: float) -> list[list[float]] | None:
    if landmarks is None:
        return None
    return (np.asarray(landmarks, dtype=np.float64) * scale).round(3).tolist()


def _read_identity(line: dict[str, Any]) -> TestIdentity:
    targets = tuple(
        TargetView(
            target["view"],
            torch.tensor(target["camera"], dtype=torch.float32),
            None if target["landmarks"] is None else np.asarray(target["landmarks"], dtype=np.float64),
        )
        for target in line["targets"]
    )
    degradation = DegradationParams.from_json(json.dumps(line["degradation"]))
    source_camera = torch.tensor(line["source_camera"], dtype=torch.float32)
    return TestIdentity(_identity_name(line["identity"]), line["source_view"], source_camera, degradation, targets)


def _hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file but the manifest, by its path in the set."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: file_hash(path) for name, path in names.items() if name != "manifest.json"}


def _check_manifest(folder: Path) -> None:
    expected, found = read_json(folder / "manifest.json"), _hashes(folder)
    for kind, names in {
        "changed": [name for name in expected if name in found and found[name] != expected[name]],
        "missing": [name for name in expected if name not in found],
        "not in the manifest": [name for name in found if name not in expected],
    }.items():
        if names:
            others = f" (and {len(names) - 1} others)" if len(names) > 1 else ""
            raise ValueError(f"{folder} is not the test set it was: {sorted(names)[0]}{others} is {kind}")
