"""Several methods on the same frozen test sets, as one folder from one configuration.

    COMPARISON/sets/<preset>/                test sets
    COMPARISON/predictions/<row>/<preset>/   what each method made
    COMPARISON/scores/<row>/<preset>/        scores.jsonl, summary.json
    COMPARISON/calibration/<preset>.json     whether the deviation of several samples tells where they are wrong
    COMPARISON/comparison.json               all of it, for the report

What exists is kept, so a run that was killed goes on where it was. A method whose pipeline is absent is left out, and
named with the reason.
"""

import itertools
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nvb_diffusers import DEFAULT_CHECKPOINT
from nvb_diffusers.camera import angle_between_cameras, angles_from_camera
from nvb_diffusers.data.fingerprint import file_hash
from nvb_diffusers.evaluation.acceptance import measure_requirements, target_images
from nvb_diffusers.evaluation.calibration import sample_honesty
from nvb_diffusers.evaluation.configuration import Comparison, ComparisonFolder, Row
from nvb_diffusers.evaluation.figures import comparison_figures
from nvb_diffusers.evaluation.intervals import Interval, bootstrap_interval
from nvb_diffusers.evaluation.methods import Method, OneStage, checkpoint_folder, identity_seed, write_predictions
from nvb_diffusers.evaluation.networks import Networks, OwnPredictor, find_networks
from nvb_diffusers.evaluation.results import (
    NOVEL_VIEWS,
    Calibration,
    Requirement,
    Result,
    Results,
    SourceCamera,
    YawBin,
    index_results,
)
from nvb_diffusers.evaluation.score import read_scores, score_predictions
from nvb_diffusers.evaluation.test_sets import TestSet, load_test_set, make_test_set, source_hash
from nvb_diffusers.files import read_json, write_json, write_whole
from nvb_diffusers.stopping import begin_worker

YAW_EDGES_DEG = (0, 10, 20, 30, 45, 60)


class Job(NamedTuple):
    """A method on a degradation."""

    row: Row
    method: Method
    preset: str
    num_orbits: int


def compare(
    comparison: Comparison,
    data_dir: str | Path,
    out: str | Path,
    camera_predictor: str | None = DEFAULT_CHECKPOINT,
    workers: int = 1,
) -> Results:
    """Run what has not been run yet, and gather everything.

    Args:
        comparison: what to compare.
        data_dir: the multi-view set that test sets and mean faces come from.
        out: the folder; checkpoints in the comparison are relative to the working directory.
        camera_predictor: the pipeline that the predictions are looked at through (`find_networks`).
        workers: processes, of one thread each, that share the methods; 1 for none but this one.

    Returns:
        The content of `comparison.json`.
    """
    folder, absent = ComparisonFolder(Path(out)), {}
    jobs = []
    for row in comparison.rows:
        method = row.build(str(data_dir), comparison.num_inference_steps)
        missing = [name for name in method.checkpoints if not _is_pipeline(checkpoint_folder(name))]
        if missing:
            absent[row.name] = f"no pipeline at {missing[0]}"
            continue
        for preset in comparison.presets(row):
            jobs.append(Job(row, method, preset, row.num_orbits if preset == comparison.preset else 0))
    for preset in dict.fromkeys([comparison.preset, *(job.preset for job in jobs)]):
        _keep_test_set(comparison, preset, Path(data_dir), folder)
    rows = _run_jobs(jobs, folder, camera_predictor, workers)
    first = comparison.rows[0].build(str(data_dir), comparison.num_inference_steps)
    ran = comparison.rows[0].name not in absent
    results = Results(
        title=comparison.title,
        preset=comparison.preset,
        rows=tuple(rows),
        not_run=absent,
        calibration=_calibrate(comparison, first, folder) if ran and isinstance(first, OneStage) else {},
        requirements=_requirements(comparison, first, rows, folder) if ran and isinstance(first, OneStage) else (),
        figures=comparison_figures(comparison, rows, folder),
    )
    write_json(folder.results, results.to_json())
    return results


def errors_by_yaw(test_set: TestSet, scores: Path) -> tuple[YawBin, ...]:
    """PSNR of the views by how far they are from the source in yaw."""
    cameras = {(i.identity, target.view): target.camera for i in test_set.identities for target in i.targets}
    sources = {i.identity: i.source_camera for i in test_set.identities}
    psnr = _psnr_of_views(scores)
    if not psnr:
        return ()
    asked = torch.stack([cameras[view] for view in psnr])
    source = torch.stack([sources[identity] for identity, _ in psnr])
    turned = (angles_from_camera(asked)[:, 0] - angles_from_camera(source)[:, 0]).abs().numpy()
    values, identities = np.array(list(psnr.values())), np.array([identity for identity, _ in psnr])
    bins = []
    for low, high in itertools.pairwise(YAW_EDGES_DEG):
        chosen = (turned >= low) & (turned < high)
        if chosen.any():
            bins.append(YawBin(low, high, bootstrap_interval(values[chosen], identities[chosen].tolist())))
    return tuple(bins)


def paired_lead(scores: Path, rival_scores: Path) -> Interval:
    """How far the PSNR of views is above that of a rival's views of the same people from the same cameras, in dB."""
    ours, rival = _psnr_of_views(scores), _psnr_of_views(rival_scores)
    views = [view for view in ours if view in rival]
    return bootstrap_interval([ours[view] - rival[view] for view in views], [identity for identity, _ in views])


def _psnr_of_views(scores: Path) -> dict[tuple[str, int], float]:
    """PSNR by identity and view."""
    chosen = [(score, score.values["PSNR"]) for score in read_scores(scores) if score.task == NOVEL_VIEWS]
    return {(s.identity, s.view): value for s, value in chosen if s.view is not None and value is not None}


def _run_jobs(
    jobs: Sequence[Job], folder: ComparisonFolder, camera_predictor: str | None, workers: int
) -> list[Result]:
    """The results of all jobs, in their order; each process does every n-th of them, with networks of its own."""
    if workers == 1:
        return _run_share(jobs, folder, camera_predictor)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), begin_worker) as pool:
        futures = [
            pool.submit(_run_share, jobs[number::workers], folder, camera_predictor, 1) for number in range(workers)
        ]
        shares = [future.result() for future in futures]
    return [shares[number % workers][number // workers] for number in range(len(jobs))]


def _run_share(
    jobs: Sequence[Job], folder: ComparisonFolder, camera_predictor: str | None, threads: int | None = None
) -> list[Result]:
    """The results of some jobs, in their order."""
    if threads is not None:
        torch.set_num_threads(threads)
    networks = find_networks(camera_predictor)
    return [_run_job(job, folder, networks) for job in jobs]


def _run_job(job: Job, folder: ComparisonFolder, networks: Networks) -> Result:
    name, preset = job.row.name, job.preset
    test_set = load_test_set(folder.test_set(preset), verify=False)
    predictions, scores = folder.predictions(name, preset), folder.scores(name, preset)
    settings: dict[str, object] = {
        "name": name,
        "method": job.row.method,
        **job.row.options,
        "num_inference_steps": job.method.num_inference_steps,
        "made_of": job.method.made_of(),
        "test_set": file_hash(test_set.folder / "manifest.json"),
    }
    _keep_settings(predictions / "configuration.json", settings)
    write_predictions(job.method, test_set, predictions, job.num_orbits)
    summary = score_predictions(test_set, predictions, scores, networks)
    return Result(name, preset, summary, _source_camera(test_set, predictions), errors_by_yaw(test_set, scores))


def _source_camera(test_set: TestSet, predictions: Path) -> SourceCamera | None:
    """Angles between the predicted and the true camera of each input, where a method predicts one."""
    angles = {}
    for identity in test_set.identities:
        path = predictions / identity.identity / "camera.json"
        if path.is_file():
            predicted = torch.tensor(read_json(path))
            angles[identity.identity] = angle_between_cameras(predicted, identity.source_camera).item()
    if not angles:
        return None
    values = list(angles.values())
    return SourceCamera(bootstrap_interval(values, list(angles)), float(np.median(values)))


def _keep_test_set(comparison: Comparison, preset: str, data_dir: Path, folder: ComparisonFolder) -> None:
    """Make the test set of a degradation, or check the one that is there."""
    path, options = folder.test_set(preset), comparison.test_set
    settings = {"data": data_dir.resolve().name, **options.to_json(), "sha256": source_hash(data_dir, options.split)}
    _keep_settings(path.with_name(f"{preset}.json"), settings)
    if path.exists():
        load_test_set(path)
        return
    make_test_set(
        data_dir,
        path,
        preset=preset,
        seed=options.seed,
        split=options.split,
        num_identities=options.num_identities,
        num_target_views=options.num_target_views,
        resolution=options.resolution,
    )


def _keep_settings(path: Path, settings: Mapping[str, object]) -> None:
    """Note what the files beside it are made with; what was made with anything else must not be gone on with."""
    content = json.dumps(settings, indent=2)
    if path.is_file() and path.read_text() != content:
        raise ValueError(f"{path} tells of other settings, weights or data: give another folder (--out)")
    write_whole(path, content)


def _is_pipeline(folder: str) -> bool:
    return (Path(folder) / "model_index.json").is_file()


def _calibrate(comparison: Comparison, method: OneStage, folder: ComparisonFolder) -> dict[str, Calibration]:
    """For each degradation of the first row the deviation of its samples, and its correlation with their error."""
    if not comparison.num_calibrated:
        return {}
    presets = comparison.presets(comparison.rows[0])
    settings: dict[str, object] = {
        "num_samples": comparison.num_samples,
        "num_calibrated": comparison.num_calibrated,
        "num_inference_steps": method.num_inference_steps,
        "made_of": method.made_of(),
        "test_sets": {preset: file_hash(folder.test_set(preset) / "manifest.json") for preset in presets},
    }
    _keep_settings(folder.calibration("settings"), settings)
    results = {}
    for preset in presets:
        path = folder.calibration(preset)
        if not path.is_file():
            test_set = load_test_set(folder.test_set(preset), verify=False)
            pairs = [
                sample_honesty(
                    method.pipeline,
                    test_set.input(identity.identity),
                    identity.cameras,
                    target_images(test_set.folder / "truths", identity),
                    comparison.num_samples,
                    method.num_inference_steps,
                    identity_seed(identity.identity),
                )
                for identity in test_set.identities[: comparison.num_calibrated]
            ]
            deviation, correlation = (
                bootstrap_interval(values, range(len(pairs))) for values in zip(*pairs, strict=True)
            )
            write_json(path, Calibration(deviation, correlation).to_json())
        results[preset] = Calibration.from_json(read_json(path))
    return results


def _requirements(
    comparison: Comparison, method: OneStage, rows: Sequence[Result], folder: ComparisonFolder
) -> tuple[Requirement, ...]:
    """What is required of the first row on the main degradation, by its own encoder and camera predictor."""
    ours, *rivals = index_results(rows).items()
    name, by_preset = ours
    if comparison.preset not in by_preset:
        return ()
    leads = {
        (rival, preset): paired_lead(folder.scores(name, preset), folder.scores(rival, preset))
        for rival, presets in rivals
        for preset in presets
        if preset in by_preset
    }
    test_set = load_test_set(folder.test_set(comparison.preset), verify=False)
    predictor = OwnPredictor(checkpoint_folder(method.checkpoint))
    return measure_requirements(test_set, folder.predictions(name, comparison.preset), rows, leads, predictor)
