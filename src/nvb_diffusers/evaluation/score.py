"""Scores of a folder of predictions on a test set, whatever made them.

    PREDICTIONS/<identity>/<view>.png            a view; the source's own view is a restoration
    PREDICTIONS/orbit/<identity>/<frame>.png     optional: a dense orbit at pitch 0, evenly over `ORBIT_YAW_DEG`
    PREDICTIONS/configuration.json               optional: what made them, taken into the summary

    SCORES/scores.jsonl      one line an image: values by measure, null where no face was found; and one line an
                             identity for the consistency of its views
    SCORES/summary.json      means over images with 95 % intervals over identities
    SCORES/settings.json     what rows are kept for, when the command is run again: those of unchanged images

A measure is left out of a row where the truth itself shows no face to its network.
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from tqdm import tqdm

from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.data.fingerprint import file_hash
from nvb_diffusers.data.images import load_photo, psnr, to_pixel_values
from nvb_diffusers.evaluation import consistency
from nvb_diffusers.evaluation.methods import ORBIT_YAW_DEG
from nvb_diffusers.evaluation.metrics import (
    NIQE,
    NaturalModel,
    camera_from_mesh,
    fit_mesh,
    fit_niqe,
    identity_cosine,
    niqe,
    pose_error,
    ssim,
)
from nvb_diffusers.evaluation.networks import Networks, Observer
from nvb_diffusers.evaluation.results import CONSISTENCY, NOVEL_VIEWS, RESTORATION, Score, Summary
from nvb_diffusers.evaluation.summaries import summarize
from nvb_diffusers.evaluation.test_sets import TestIdentity, TestSet, load_images, view_name
from nvb_diffusers.files import read_json, replaced_file, write_json, write_whole
from nvb_diffusers.warp import merge_depths

CACHED = ("dlib-ID", "POSE (mediapipe)")  # what is seen in the truths, by networks that never change
Kept = dict[tuple[str, int | None, str], Score]
"""Scores by identity, view and sha256."""


@dataclass
class References:
    """What is known of the truths before any prediction is measured."""

    natural: NaturalModel
    observed: dict[str, dict[str, np.ndarray | None]]
    """By column, then by `view_name`."""
    meshes: dict[str, np.ndarray]
    """The mean head's mesh, by column."""


def score_predictions(
    test_set: TestSet, predictions: str | Path, out: str | Path, networks: Networks, progress: bool = True
) -> Summary:
    """Measure every prediction that there is; run again, it measures only what is new or changed.

    Args:
        test_set: the truths and cameras.
        predictions: folder of any method.
        out: folder to write to.
        networks: what to look through (`find_networks`).
        progress: whether to show a bar.

    Returns:
        The content of `summary.json`.
    """
    predictions, out = Path(predictions), Path(out)
    if out.resolve().is_relative_to(test_set.folder.resolve()):
        raise ValueError(f"{out} is inside the test set, which must stay as it is: give another folder (--out)")
    files = _list_predictions(test_set, predictions)
    kept = _kept_scores(out, test_set, networks)
    references: References | None = None
    scores: list[Score] = []
    with (out / "scores.jsonl").open("a") as log:
        for identity in tqdm(test_set.identities, desc=predictions.name, disable=not progress):
            hashes = {view: file_hash(path) for view, path in files[identity.identity].items()}
            old = [kept.get((identity.identity, view, digest)) for view, digest in hashes.items()]
            new = [view for view, score in zip(hashes, old, strict=True) if score is None]
            found = [score for score in old if score is not None]
            if new:
                references = references or _references(test_set, networks, progress)
                found += _measure_views(test_set, identity, {v: files[identity.identity][v] for v in new}, networks,
                                        references)  # fmt: skip
            found += _measure_consistency(test_set, identity, files[identity.identity], predictions, kept)
            for score in found:
                if _key(score) not in kept:
                    log.write(_line(score))
            log.flush()
            scores += sorted(found, key=lambda score: -1 if score.view is None else score.view)
    write_whole(out / "scores.jsonl", "".join(map(_line, scores)))
    summary = summarize(test_set, predictions, files, scores, networks)
    write_json(out / "summary.json", summary.to_json())
    return summary


def read_scores(folder: str | Path) -> list[Score]:
    """What `scores.jsonl` holds; a last line that a kill cut off is left out."""
    path = Path(folder) / "scores.jsonl"
    scores = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except ValueError:
            break
        scores.append(Score.from_json(values))
    return scores


def _key(score: Score) -> tuple[str, int | None, str]:
    return score.identity, score.view, score.sha256


def _line(score: Score) -> str:
    return json.dumps(score.to_json()) + "\n"


def _list_predictions(test_set: TestSet, predictions: Path) -> dict[str, dict[int, Path]]:
    """The images that are there, by identity and view."""
    files: dict[str, dict[int, Path]] = {}
    for identity in test_set.identities:
        views = sorted({identity.source_view, *(target.view for target in identity.targets)})
        paths = {view: predictions / view_name(identity.identity, view) for view in views}
        files[identity.identity] = {view: path for view, path in paths.items() if path.is_file()}
    if not any(files.values()):
        example = view_name(test_set.identities[0].identity, test_set.identities[0].targets[0].view)
        raise ValueError(f"{predictions} has no prediction for this test set: expected files such as {example}")
    for paths in files.values():
        for path in paths.values():
            _check_size(path, test_set.resolution)
    return files


def _kept_scores(out: Path, test_set: TestSet, networks: Networks) -> Kept:
    """Scores of an earlier run that still hold, if it was of the same set and through the same networks."""
    settings = {
        "set": file_hash(test_set.folder / "manifest.json"),
        "measures": networks.columns,
        "networks": networks.fingerprints,
    }
    note = out / "settings.json"
    before = read_json(note) if note.is_file() else settings
    if before["set"] != settings["set"]:
        raise ValueError(f"{out} holds the scores of another test set: choose another folder (--out)")
    scores = read_scores(out) if before == settings else []
    write_json(note, settings)
    write_whole(out / "scores.jsonl", "".join(map(_line, scores)))
    return {_key(score): score for score in scores}


def _references(test_set: TestSet, networks: Networks, progress: bool) -> References:
    """Look at all truths; what unchanging networks see is kept in a hidden file beside the set."""
    names, cameras = [], []
    for identity in test_set.identities:
        for view, camera in _cameras_by_view(identity).items():
            names.append(view_name(identity.identity, view))
            cameras.append(camera)
    images = to_pixel_values([load_photo(test_set.folder / "truths" / name) for name in names])
    observed, meshes = {}, {}
    for column, observe in (networks.identities | networks.meshes).items():
        seen = _observe_all(test_set, column, observe, names, images, progress)
        observed[column] = seen
        if column in networks.meshes:
            points = {name: points for name, points in seen.items() if points is not None}
            known = [camera for name, camera in zip(names, cameras, strict=True) if name in points]
            if points:
                meshes[column] = fit_mesh(list(points.values()), torch.stack(known))
    return References(fit_niqe(images), observed, meshes)


def _observe_all(
    test_set: TestSet, column: str, observe: Observer, names: Sequence[str], images: Iterable[torch.Tensor],
    progress: bool,
) -> dict[str, np.ndarray | None]:  # fmt: skip
    """What a network sees in each truth; kept beside the test set, where that can be."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in column)
    cache = test_set.folder.with_name(f".{test_set.folder.name}-{slug}.npz")
    digest = file_hash(test_set.folder / "manifest.json")
    if column in CACHED and cache.is_file():
        # One that is damaged is made anew.
        with suppress(OSError, ValueError, KeyError, BadZipFile), cache.open("rb") as file, np.load(file) as arrays:
            if str(arrays["manifest"]) == digest:
                return {name: arrays.get(name) for name in names}
    bar = tqdm(images, desc=f"{column}: truths", disable=not progress)
    seen = {name: observe(image) for name, image in zip(names, bar, strict=True)}
    if column in CACHED:
        arrays = {name: value for name, value in seen.items() if value is not None} | {"manifest": np.array(digest)}
        with suppress(OSError), replaced_file(cache) as part:  # a set may be where nothing can be written
            np.savez(part, allow_pickle=False, **arrays)
    return seen


def _measure_views(
    test_set: TestSet, identity: TestIdentity, files: dict[int, Path], networks: Networks, references: References
) -> list[Score]:
    """Scores of some images of one identity."""
    names = [view_name(identity.identity, view) for view in files]
    asked = torch.stack([_cameras_by_view(identity)[view] for view in files])  # (N, 25)
    images = load_images(files.values(), test_set.resolution)  # (N, 3, S, S)
    truths = load_images((test_set.folder / "truths" / name for name in names), test_set.resolution)
    columns: dict[str, list[float]] = {
        "PSNR": psnr(images, truths).tolist(),
        "SSIM": ssim(images, truths).tolist(),
        NIQE: [niqe(image, references.natural) for image in images],
    }
    for column, compare in networks.comparators.items():
        columns[column] = compare(images, truths).tolist()
    for column, predict in networks.cameras.items():
        cameras, true_cameras = predict(images), predict(truths)
        columns[column] = [pose_error(*pair) for pair in zip(cameras, true_cameras, strict=True)]
        columns[f"asked {column}"] = [pose_error(*pair) for pair in zip(cameras, asked, strict=True)]
    scores = []
    for number, (view, path) in enumerate(files.items()):
        values: dict[str, float | None] = {column: entries[number] for column, entries in columns.items()}
        values |= _observe_face(images[number], names[number], asked[number], networks, references)
        task = RESTORATION if view == identity.source_view else NOVEL_VIEWS
        ordered = {column: values[column] for column in networks.columns if column in values}
        scores.append(Score(task, identity.identity, view, file_hash(path), ordered))
    return scores


def _observe_face(
    image: torch.Tensor, name: str, asked: torch.Tensor, networks: Networks, references: References
) -> dict[str, float | None]:
    """Measures that need a face found: None where it is found in the truth alone."""
    values: dict[str, float | None] = {}
    for column, observe in networks.identities.items():
        truth = references.observed[column][name]
        if truth is not None:
            embedding = observe(image)
            values[column] = None if embedding is None else identity_cosine(embedding, truth)
    for column, observe in networks.meshes.items():
        truth = references.observed[column][name]
        if truth is not None:
            points, mesh = observe(image), references.meshes[column]
            seen = None if points is None else camera_from_mesh(points, mesh, asked)
            values[column] = None if seen is None else pose_error(seen, camera_from_mesh(truth, mesh, asked))
            values[f"asked {column}"] = None if seen is None else pose_error(seen, asked)
    return values


def _measure_consistency(
    test_set: TestSet, identity: TestIdentity, files: dict[int, Path], predictions: Path,
    kept: Kept,
) -> list[Score]:  # fmt: skip
    """The score of an identity's views together; none where the set has no depth or there are fewer than two views."""
    name = identity.identity
    views = [target.view for target in identity.targets if target.view in files]
    maps = {view: test_set.depth(name, view) for view in _cameras_by_view(identity)}
    depths = {view: depth for view, depth in maps.items() if depth is not None}
    if len(views) < 2 or len(depths) < len(maps):
        return []
    frames = sorted((predictions / "orbit" / name).glob("*.png"))
    hashes = [file_hash(path) for path in (*(files[view] for view in views), *frames)]
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    if (name, None, digest) in kept:
        return [kept[name, None, digest]]
    cameras = _cameras_by_view(identity)
    values = consistency.score_identity(
        load_images((files[view] for view in views), test_set.resolution),
        torch.stack([depths[view] for view in views]),
        torch.stack([cameras[view] for view in views]),
        load_images((test_set.folder / "truths" / view_name(name, view) for view in views), test_set.resolution),
    )
    if len(frames) > 1:
        orbit = orbit_cameras(len(frames), ORBIT_YAW_DEG)
        known = torch.stack(list(depths.values())), torch.stack(list(cameras.values()))
        merged = merge_depths(*known, orbit, test_set.resolution)
        values |= consistency.orbit_flicker(load_images(frames, test_set.resolution), merged, orbit)
    seen: dict[str, float | None] = {column: value for column, value in values.items() if not math.isnan(value)}
    return [Score(CONSISTENCY, name, None, digest, seen)]


def _cameras_by_view(identity: TestIdentity) -> dict[int, torch.Tensor]:
    """The camera (25,) of the source view and of each target."""
    return {identity.source_view: identity.source_camera, **{t.view: t.camera for t in identity.targets}}


def _check_size(path: Path, resolution: int) -> None:
    """Refuse an image that is no square; say so where it will be resized."""
    width, height = load_photo(path).size
    if width != height:
        raise ValueError(f"prediction {path} is {width}x{height}, expected a square of {resolution}")
    if width != resolution:
        print(f"{path} is {width} px, resized to {resolution}", file=sys.stderr)
