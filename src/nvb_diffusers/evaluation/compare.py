"""The comparisons: several methods on the same frozen test sets, as one folder from one configuration file.

    COMPARISON/sets/<preset>/                test sets
    COMPARISON/predictions/<row>/<preset>/   what each method made
    COMPARISON/scores/<row>/<preset>/        scores.jsonl, summary.json
    COMPARISON/invented/<preset>.json        whether the deviation of several samples tells where they are wrong
    COMPARISON/comparison.json               all of it, for the report

What exists is kept, so a run that was killed goes on where it was. A row whose pipeline is absent is left out, and
named with the reason.
"""

import itertools
import json
import multiprocessing
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline
from nvb_diffusers.camera import angle_between_cameras, angles_from_camera
from nvb_diffusers.evaluation.acceptance import measure_bars, target_pictures
from nvb_diffusers.evaluation.intervals import Interval, bootstrap_interval
from nvb_diffusers.evaluation.invented import sample_honesty
from nvb_diffusers.evaluation.methods import (
    InputAsView,
    MeanFace,
    Method,
    OneStage,
    TwoStage,
    identity_seed,
    write_predictions,
)
from nvb_diffusers.evaluation.networks import Networks, OwnPredictor, find_networks
from nvb_diffusers.evaluation.score import read_scores, score_predictions
from nvb_diffusers.evaluation.test_sets import TestSet, file_hash, load_test_set, make_test_set, view_name
from nvb_diffusers.files import read_json, write_json, write_whole

METHODS = ("one_stage", "two_stage", "input", "mean_face")
PACKAGED = Path(__file__).with_name("comparisons")
YAW_EDGES_DEG = (0, 10, 20, 30, 45, 60)


@dataclass(frozen=True)
class Row:
    """One method of a comparison.

    Args:
        name: as the tables call it.
        method: one of `METHODS`.
        checkpoint: pipeline of one stage, or of the restoration of two; "default" for the packaged one.
        view_checkpoint: pipeline that makes the views of two stages; None for the same.
        constant_camera: whether the volume is built with the frontal camera.
        presets: degradations it is run on; None for the comparison's main one.
        num_orbits: identities of whom it makes a dense orbit on the main preset.
        fidelity: of its restorations; None for what the pipeline does unasked.
    """

    name: str
    method: str
    checkpoint: str = "default"
    view_checkpoint: str | None = None
    constant_camera: bool = False
    presets: Sequence[str] | None = None
    num_orbits: int = 0
    fidelity: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What to compare, on what.

    Args:
        title: of the report.
        rows: the methods; the first is the one whose samples are asked what they invent.
        preset: the main degradation.
        test_set: arguments of `make_test_set` besides the preset.
        num_samples: seeds for each view in the test of what is invented.
        num_invented: identities in that test; 0 leaves it out.
        num_figures: identities shown.
        num_inference_steps: of every pipeline; None for what suits each.
    """

    title: str
    rows: tuple[Row, ...]
    preset: str
    test_set: dict[str, Any]
    num_samples: int = 4
    num_invented: int = 0
    num_figures: int = 6
    num_inference_steps: int | None = None

    def presets(self, row: Row) -> Sequence[str]:
        """The degradations that a row is run on."""
        return (self.preset,) if row.presets is None else row.presets


def read_comparison(name: str | Path) -> Comparison:
    """The comparison that a JSON file describes, or one of the packaged ones by its name.

    Raises:
        ValueError: there is no such comparison, or it holds a name that is unknown, missing or there twice.
    """
    path = Path(name)
    if not path.is_file():
        packaged = {file.stem: file for file in sorted(PACKAGED.glob("*.json"))}
        if str(name) not in packaged:
            raise ValueError(f"'{name}' is neither a file nor a packaged comparison ({', '.join(packaged)})")
        path = packaged[str(name)]
    values = read_json(path)
    _check_names(values, Comparison, path)
    for row in values["rows"]:
        _check_names(row, Row, path)
        if row["method"] not in METHODS:
            raise ValueError(f"{path}: method is {row['method']!r}, expected one of {', '.join(METHODS)}")
    names = [row_folder(row["name"]) for row in values["rows"]]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: two rows have the same name, or names that differ in punctuation alone: {names}")
    return Comparison(**{**values, "rows": tuple(Row(**row) for row in values["rows"])})


def compare(
    comparison: Comparison,
    data_dir: str | Path,
    out: str | Path,
    camera_predictor: str | None = DEFAULT_CHECKPOINT,
    workers: int = 1,
) -> dict[str, Any]:
    """Run what has not been run yet, and gather everything.

    Args:
        comparison: what to compare.
        data_dir: the multi-view set that test sets and mean faces come from.
        out: the folder; checkpoints in the comparison are relative to the working directory.
        camera_predictor: the pipeline that the predictions are looked at through (`find_networks`).
        workers: processes, of one thread each, that share the rows; 1 for none but this one.

    Returns:
        The content of `comparison.json`.
    """
    out = Path(out)
    absent = {}
    for row in comparison.rows:
        missing = [path for path in (row.checkpoint, row.view_checkpoint) if path and not _checkpoint_exists(path)]
        if missing:
            absent[row.name] = f"no pipeline at {missing[0]}"
    jobs = [(row, preset) for row in comparison.rows if row.name not in absent for preset in comparison.presets(row)]
    for preset in dict.fromkeys([comparison.preset, *(preset for _, preset in jobs)]):
        _test_set(comparison, preset, Path(data_dir), out)
    summaries = _run_rows(comparison, jobs, Path(data_dir), out, camera_predictor, workers)

    results: dict[str, Any] = {"title": comparison.title, "rows": [], "not_run": absent, "by_preset": {}, "by_yaw": {}}
    for (row, preset), summary in zip(jobs, summaries, strict=True):
        results["rows"].append({"name": row.name, "configuration": asdict(row), "preset": preset, **summary})
        if len(comparison.presets(row)) > 1:
            results["by_preset"].setdefault(row.name, {})[preset] = summary["novel_views"]
        if preset == comparison.preset:
            scores = out / "scores" / row_folder(row.name) / preset
            results["by_yaw"][row.name] = errors_by_yaw(_test_set(comparison, preset, Path(data_dir), out), scores)
    if comparison.num_invented:
        results["invented"] = _invented(comparison, out)
    results["bars"] = _bars(comparison, results, out)
    results["figures"] = _figures(comparison, results, out)
    write_json(out / "comparison.json", results)
    return results


def errors_by_yaw(test_set: TestSet, scores: Path) -> list[dict[str, Any]]:
    """PSNR of the views by how far they are from the source in yaw: `yaw` [from, to) in degrees and `psnr`."""
    cameras = {(i.identity, target.view): target.camera for i in test_set.identities for target in i.targets}
    sources = {i.identity: i.source_camera for i in test_set.identities}
    rows = [row for row in read_scores(scores) if row["task"] == "novel_views"]
    if not rows:
        return []
    asked = torch.stack([cameras[row["identity"], row["view"]] for row in rows])
    source = torch.stack([sources[row["identity"]] for row in rows])
    turned = (angles_from_camera(asked)[:, 0] - angles_from_camera(source)[:, 0]).abs().numpy()
    values = np.array([row["values"]["PSNR"] for row in rows])
    identities = np.array([row["identity"] for row in rows])
    bins = []
    for low, high in itertools.pairwise(YAW_EDGES_DEG):
        chosen = (turned >= low) & (turned < high)
        if chosen.any():
            interval = bootstrap_interval(values[chosen], identities[chosen].tolist())
            bins.append({"yaw": [low, high], "psnr": interval._asdict()})
    return bins


def paired_lead(scores: Path, rival_scores: Path) -> Interval:
    """How far the PSNR of views is above that of a rival's views of the same people from the same cameras, in dB."""
    ours, rival = (
        {
            (row["identity"], row["view"]): row["values"]["PSNR"]
            for row in read_scores(folder)
            if row["task"] == "novel_views"
        }
        for folder in (scores, rival_scores)
    )
    views = [view for view in ours if view in rival]
    return bootstrap_interval([ours[view] - rival[view] for view in views], [identity for identity, _ in views])


def row_folder(name: str) -> str:
    """The name of a row as a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _run_rows(
    comparison: Comparison,
    jobs: Sequence[tuple[Row, str]],
    data_dir: Path,
    out: Path,
    camera_predictor: str | None,
    workers: int,
) -> list[dict[str, Any]]:
    """The summaries of methods on degradations, in their order."""
    if workers == 1:
        networks = find_networks(camera_predictor)
        return [_run_row(comparison, row, preset, data_dir, out, networks) for row, preset in jobs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker, (camera_predictor,)) as pool:
        futures = [pool.submit(_run_in_worker, comparison, row, preset, data_dir, out) for row, preset in jobs]
        return [future.result() for future in futures]


_worker: dict[str, Networks] = {}  # what a worker process keeps between its rows


def _begin_worker(camera_predictor: str | None) -> None:
    torch.set_num_threads(1)
    _worker["networks"] = find_networks(camera_predictor)


def _run_in_worker(comparison: Comparison, row: Row, preset: str, data_dir: Path, out: Path) -> dict[str, Any]:
    return _run_row(comparison, row, preset, data_dir, out, _worker["networks"])


def _run_row(
    comparison: Comparison, row: Row, preset: str, data_dir: Path, out: Path, networks: Networks
) -> dict[str, Any]:
    """The summary of one method on one degradation."""
    test_set = load_test_set(out / "sets" / preset, verify=False)
    folder = out / "predictions" / row_folder(row.name) / preset
    method = _method(row, comparison.num_inference_steps, data_dir)
    _keep_settings(
        folder / "configuration.json",
        {**asdict(row), "num_inference_steps": comparison.num_inference_steps, "weights": _weights(row)},
    )
    write_predictions(method, test_set, folder, row.num_orbits if preset == comparison.preset else 0)
    summary = score_predictions(test_set, folder, out / "scores" / row_folder(row.name) / preset, networks)
    angles = _source_angles(test_set, folder)
    if angles:
        names = [identity.identity for identity in test_set.identities]
        summary["source_camera"] = {"mean angle (deg)": bootstrap_interval(angles, names)._asdict(),
                                    "median angle (deg)": float(np.median(angles))}  # fmt: skip
    return summary


def _test_set(comparison: Comparison, preset: str, data_dir: Path, out: Path) -> TestSet:
    folder = out / "sets" / preset
    _keep_settings(out / "sets" / f"{preset}.json", {"data": Path(data_dir).resolve().name, **comparison.test_set})
    if not folder.exists():
        make_test_set(data_dir, folder, preset=preset, **comparison.test_set)
    return load_test_set(folder)


def _keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Note what the files beside it are made with; what was made with anything else must not be gone on with."""
    content = json.dumps(settings, indent=2)
    if path.is_file() and path.read_text() != content:
        raise ValueError(f"{path} tells of other settings or weights: give another folder (--out)")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def _weights(row: Row) -> list[str]:
    """Equal for equal weights, and defaults of calls, of a row's pipelines."""
    names = [name for name in (row.checkpoint, row.view_checkpoint) if name] if row.method.endswith("_stage") else []
    folders = [Path(_checkpoint(name)) for name in names]
    files = [
        file for folder in folders for file in (folder / "model_index.json", *sorted(folder.rglob("*.safetensors")))
    ]
    return [file_hash(file) for file in files]


def _method(row: Row, num_inference_steps: int | None, data_dir: Path) -> Method:
    if row.method == "input":
        return InputAsView()
    if row.method == "mean_face":
        return MeanFace(data_dir)
    first = OneStage(_pipeline(row.checkpoint), num_inference_steps, row.constant_camera, row.fidelity)
    if row.method == "one_stage":
        return first
    second = first if row.view_checkpoint is None else OneStage(_pipeline(row.view_checkpoint), num_inference_steps)
    return TwoStage(first, second)


def _pipeline(checkpoint: str) -> NVBFacePipeline:
    pipeline = NVBFacePipeline.from_pretrained(_checkpoint(checkpoint))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _checkpoint(name: str) -> str:
    return DEFAULT_CHECKPOINT if name == "default" else name


def _checkpoint_exists(checkpoint: str) -> bool:
    return checkpoint == "default" or (Path(checkpoint) / "model_index.json").is_file()


def _source_angles(test_set: TestSet, folder: Path) -> list[float]:
    """Angles in degrees between the predicted and the true camera of each input, where a method predicts one."""
    angles = []
    for identity in test_set.identities:
        path = folder / identity.identity / "camera.json"
        if path.is_file():
            predicted = torch.tensor(read_json(path))
            angles.append(angle_between_cameras(predicted, identity.source_camera).item())
    return angles


def _invented(comparison: Comparison, out: Path) -> dict[str, Any]:
    """For each degradation of the first row the deviation of its samples, and its correlation with their error."""
    first = comparison.rows[0]
    results, pipeline = {}, None
    options = (comparison.num_samples, comparison.num_invented, comparison.num_inference_steps)
    _keep_settings(out / "invented" / "settings.json", {"options": options, "weights": _weights(first)})
    for preset in comparison.presets(first):
        path = out / "invented" / f"{preset}.json"
        if not path.is_file():
            pipeline = pipeline or _pipeline(first.checkpoint)
            test_set = load_test_set(out / "sets" / preset, verify=False)
            pairs = [
                sample_honesty(
                    pipeline,
                    test_set.input(identity.identity),
                    identity.cameras,
                    target_pictures(test_set.folder / "truths", identity),
                    comparison.num_samples,
                    comparison.num_inference_steps,
                    identity_seed(identity.identity),
                )
                for identity in test_set.identities[: comparison.num_invented]
            ]
            values = dict(zip(("deviation", "rank_correlation"), zip(*pairs, strict=True), strict=True))
            names = range(len(pairs))
            entries = {name: bootstrap_interval(value, names)._asdict() for name, value in values.items()}
            write_json(path, entries)
        results[preset] = read_json(path)
    return results


def _bars(comparison: Comparison, results: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """The bars of the first row on the main degradation, by its own encoder and camera predictor."""
    first = comparison.rows[0]
    summaries: dict[str, dict[str, Any]] = {}
    for row in results["rows"]:
        summaries.setdefault(row["name"], {})[row["preset"]] = row
    if first.method != "one_stage" or comparison.preset not in summaries.get(first.name, {}):
        return []
    test_set = load_test_set(out / "sets" / comparison.preset, verify=False)
    predictions = out / "predictions" / row_folder(first.name) / comparison.preset
    ours = out / "scores" / row_folder(first.name)
    leads = {
        (name, preset): paired_lead(ours / preset, out / "scores" / row_folder(name) / preset)
        for name, by_preset in summaries.items()
        for preset in by_preset
        if name != first.name and preset in summaries[first.name]
    }
    return measure_bars(test_set, predictions, summaries, leads, OwnPredictor(_checkpoint(first.checkpoint)))


def _figures(comparison: Comparison, results: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Figure 3: methods one below another for some identities; Figure 4: one method over degradations."""
    test_set = load_test_set(out / "sets" / comparison.preset, verify=False)
    chosen = np.linspace(0, len(test_set.identities) - 1, comparison.num_figures).round().astype(int)
    folders = {row["name"]: row_folder(row["name"]) for row in results["rows"] if row["preset"] == comparison.preset}
    presets = list(results["by_preset"].get(comparison.rows[0].name, {}))
    figures = []
    for index in chosen:
        identity = test_set.identities[index]
        names = [view_name(identity.identity, target.view) for target in identity.targets]
        picture = f"inputs/{identity.identity}.png"
        rows = [("photo", [f"sets/{comparison.preset}/{picture}"])]
        rows += [
            (name, [f"predictions/{folder}/{comparison.preset}/{view}" for view in names])
            for name, folder in folders.items()
        ]
        rows.append(("truth", [f"sets/{comparison.preset}/truths/{view}" for view in names]))
        figures.append(_figure(f"Identity {identity.identity}, {comparison.preset}", rows, out))
    first = row_folder(comparison.rows[0].name)
    for index in chosen[: 2 if len(presets) > 1 else 0]:
        identity = test_set.identities[index]
        names = [view_name(identity.identity, target.view) for target in identity.targets]
        rows = [
            (preset, [f"sets/{preset}/inputs/{identity.identity}.png"]
             + [f"predictions/{first}/{preset}/{view}" for view in names])
            for preset in presets
        ]  # fmt: skip
        rows.append(("truth", ["", *(f"sets/{comparison.preset}/truths/{view}" for view in names)]))
        title = f"{comparison.rows[0].name} by degradation, identity {identity.identity}"
        figures.append(_figure(title, rows, out))
    return figures


def _figure(title: str, rows: Iterable[tuple[str, list[str]]], out: Path) -> dict[str, Any]:
    """A figure of the pictures that are there; an empty name leaves a gap."""
    found = [
        {"label": label, "images": [name for name in names if not name or (out / name).is_file()]}
        for label, names in rows
    ]
    return {"title": title, "rows": [row for row in found if any(row["images"])]}


def _check_names(values: Any, kind: type, path: str | Path) -> None:
    """Whether a JSON object holds the fields of a data class."""
    known = {field.name for field in fields(kind)}
    if not isinstance(values, dict) or not set(values) <= known:
        unknown = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{path}: {unknown} is not known, expected {', '.join(sorted(known))}")
    try:
        kind(**values)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None
