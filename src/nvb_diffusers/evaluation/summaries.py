"""Summaries of scores: means over images with 95 % intervals over identities, as data and as a table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nvb_diffusers.data.fingerprint import file_hash
from nvb_diffusers.evaluation.intervals import Interval, bootstrap_interval, jackknife_interval
from nvb_diffusers.evaluation.metrics import describe, frechet_distance
from nvb_diffusers.evaluation.networks import Networks
from nvb_diffusers.evaluation.results import (
    CONSISTENCY,
    NOVEL_VIEWS,
    RESTORATION,
    TASK_TITLES,
    TASKS,
    Entry,
    Score,
    Summary,
)
from nvb_diffusers.evaluation.test_sets import TestSet, load_images, view_name
from nvb_diffusers.files import read_json


def summarize(
    test_set: TestSet, predictions: Path, files: dict[str, dict[int, Path]], scores: Sequence[Score], networks: Networks
) -> Summary:
    """The content of `summary.json`.

    Args:
        test_set: the truths.
        predictions: folder of any method, with `configuration.json` where it says what made them.
        files: what is there, by identity and view.
        scores: of it.
        networks: whose features the Frechet distances are taken of.
    """
    wanted = {
        NOVEL_VIEWS: len(test_set.identities) * test_set.settings.num_target_views,
        RESTORATION: len(test_set.identities),
    }
    tasks: dict[str, dict[str, Entry]] = {}
    for task in TASKS:
        chosen = [score for score in scores if score.task == task]
        columns = dict.fromkeys(column for score in chosen for column in score.values)
        ordered = list(columns) if task == CONSISTENCY else sorted(columns, key=networks.columns.index)
        tasks[task] = {column: _summarize_column(chosen, column) for column in ordered}
        if chosen and task != CONSISTENCY:
            tasks[task] |= _frechet_entries(test_set, files, chosen, networks)
    not_run = dict(networks.not_run)
    if not tasks[CONSISTENCY]:
        not_run[CONSISTENCY] = "the test set has no depth, or no identity has two views"
    configuration = predictions / "configuration.json"
    return Summary(
        test_set=test_set.settings,
        manifest=file_hash(test_set.folder / "manifest.json"),
        configuration=read_json(configuration) if configuration.is_file() else None,
        missing={task: count - sum(score.task == task for score in scores) for task, count in wanted.items()},
        tasks=tasks,
        not_run=not_run,
    )


def _summarize_column(scores: Sequence[Score], column: str) -> Entry:
    asked = [(score.identity, score.values[column]) for score in scores if column in score.values]
    found = [(identity, value) for identity, value in asked if value is not None]
    interval = bootstrap_interval([value for _, value in found], [name for name, _ in found]) if found else None
    return Entry.of(interval, len(found), len(asked) - len(found))


def _frechet_entries(
    test_set: TestSet, files: dict[str, dict[int, Path]], scores: Sequence[Score], networks: Networks
) -> dict[str, Entry]:
    """Distances between all images and all truths of a task, by measure."""
    views = [(score.identity, score.view) for score in scores if score.view is not None]
    entries = {}
    for column, extract in networks.features.items():
        images = extract(load_images((files[identity][view] for identity, view in views), test_set.resolution))
        names = [view_name(identity, view) for identity, view in views]
        truths = extract(load_images((test_set.folder / "truths" / name for name in names), test_set.resolution))
        entries[column] = Entry.of(_frechet_interval(images, truths, [identity for identity, _ in views]), len(views))
    return entries


def _frechet_interval(features: np.ndarray, truths: np.ndarray, identities: Sequence[str]) -> Interval:
    interval = jackknife_interval(lambda kept: frechet_distance(features[kept], truths[kept]), identities)
    return replace(interval, low=max(interval.low, 0.0))


def summary_table(summary: Summary) -> str:
    """A summary as Markdown."""
    settings = summary.test_set
    lines = [f"{settings.num_identities} identities of {settings.data} ({settings.split}), degraded with "
             f"{settings.preset} (seed {settings.seed}), {settings.resolution} px."]  # fmt: skip
    for task, title in TASK_TITLES.items():
        entries = summary.tasks[task]
        if not entries:
            continue
        missing = summary.missing.get(task, 0)
        lines += ["", f"### {title}" + (f" ({missing} missing)" if missing else ""), ""]
        lines += ["| measure | mean | 95 % interval | count | failures |", "| --- | --- | --- | --- | --- |"]
        for name, entry in entries.items():
            metric = describe(name)
            mean, low, high = (
                "-" if value is None else f"{value:.{metric.digits}f}" for value in (entry.mean, entry.low, entry.high)
            )
            unit = f" ({metric.unit}, {metric.better} is better)" if metric.unit else f" ({metric.better} is better)"
            lines.append(f"| {name}{unit} | {mean} | {low} to {high} | {entry.count} | {entry.failures} |")
    lines += ["", *(f"Not run: {name} ({reason})" for name, reason in summary.not_run.items())]
    return "\n".join(lines).rstrip() + "\n"
