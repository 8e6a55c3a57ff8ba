"""Images of a comparison side by side, for people to look at."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nvb_diffusers.camera import angles_from_camera
from nvb_diffusers.data.contact_sheet import contact_sheet
from nvb_diffusers.data.images import load_photo
from nvb_diffusers.evaluation.configuration import Comparison, ComparisonFolder
from nvb_diffusers.evaluation.results import NOVEL_VIEWS, Figure, FigureRow, Result
from nvb_diffusers.evaluation.score import read_scores
from nvb_diffusers.evaluation.test_sets import TestIdentity, load_test_set, view_name


def comparison_figures(comparison: Comparison, rows: Sequence[Result], folder: ComparisonFolder) -> tuple[Figure, ...]:
    """Figure 3: methods one below another for some identities; Figure 4: one method over degradations."""
    main, first = comparison.preset, comparison.rows[0].name
    test_set = load_test_set(folder.test_set(main), verify=False)
    chosen = np.linspace(0, len(test_set.identities) - 1, comparison.num_figures).round().astype(int)
    identities = [test_set.identities[index] for index in chosen]
    names = [row.name for row in rows if row.preset == main]
    presets = [row.preset for row in rows if row.name == first]
    figures = [_methods_figure(identity, names, main, folder) for identity in identities]
    if len(presets) > 1:
        figures += [_presets_figure(identity, first, presets, main, folder) for identity in identities[:2]]
    return tuple(figures)


def _methods_figure(identity: TestIdentity, names: Sequence[str], preset: str, folder: ComparisonFolder) -> Figure:
    """The photo, the views of each method, the true views."""
    views = [view_name(identity.identity, target.view) for target in identity.targets]
    test_set = folder.test_set(preset)
    rows = {"photo": [test_set / "inputs" / f"{identity.identity}.png"]}
    rows |= {name: [folder.predictions(name, preset) / view for view in views] for name in names}
    rows |= {"truth": [test_set / "truths" / view for view in views]}
    return _figure(f"Identity {identity.identity}, {preset}", rows, folder)


def _presets_figure(
    identity: TestIdentity, name: str, presets: Sequence[str], main: str, folder: ComparisonFolder
) -> Figure:
    """For each degradation the input and one method's views of it, then the true views."""
    views = [view_name(identity.identity, target.view) for target in identity.targets]
    rows: dict[str, list[Path | None]] = {
        preset: [
            folder.test_set(preset) / "inputs" / f"{identity.identity}.png",
            *(folder.predictions(name, preset) / view for view in views),
        ]
        for preset in presets
    }
    rows["truth"] = [None, *(folder.test_set(main) / "truths" / view for view in views)]
    return _figure(f"{name} by degradation, identity {identity.identity}", rows, folder)


def _figure(title: str, rows: Mapping[str, Sequence[Path | None]], folder: ComparisonFolder) -> Figure:
    """A figure of the images that are there; None leaves a gap."""
    found = [
        FigureRow(
            label,
            tuple(
                "" if path is None else path.relative_to(folder.path).as_posix()
                for path in paths
                if path is None or path.is_file()
            ),
        )
        for label, paths in rows.items()
    ]
    return Figure(title, tuple(row for row in found if any(row.images)))


def draw_ranks(comparison: Path, row: str, preset: str, ranks: Sequence[int]) -> Image.Image:
    """What a method made of some people, who are chosen by rank, so that nobody picks them by liking.

    People are ranked by the mean SSIM of their views. Each has two lines: the input and its views, and below them the
    restoration and the true views.

    Args:
        comparison: a folder that `compare` filled.
        row: name of the method in the comparison.
        preset: the degradation.
        ranks: 1 is the best, -1 the worst.
    """
    folder = ComparisonFolder(comparison)
    scores = folder.scores(row, preset)
    names = rank_identities(scores)
    if not names:
        raise ValueError(f"{scores} has no scores of views: give a method (--row) and a degradation (--preset) of "
                         "the comparison")  # fmt: skip
    test_set = load_test_set(folder.test_set(preset), verify=False)
    identities = {identity.identity: identity for identity in test_set.identities}
    images: list[Image.Image] = []
    labels: list[str] = []
    for rank in ranks:
        if not 1 <= abs(rank) <= len(names):
            raise ValueError(f"--ranks {rank}: there are {len(names)} people, 1 to {len(names)} or -{len(names)} to -1")
        place = rank - 1 if rank > 0 else len(names) + rank
        identity = identities[names[place]]
        images += _identity_images(identity, test_set.folder, folder.predictions(row, preset))
        views = [f"yaw {yaw:+.0f}" for yaw in angles_from_camera(identity.cameras)[:, 0].tolist()]
        labels += [f"rank {place + 1} of {len(names)}", *views, "restored", *["truth"] * len(views)]
    return contact_sheet(images, labels, columns=1 + len(views))


def rank_identities(scores: Path) -> list[str]:
    """Names of people, those with the highest mean SSIM of their views first."""
    values = defaultdict(list)
    for score in read_scores(scores):
        ssim = score.values.get("SSIM")
        if score.task == NOVEL_VIEWS and ssim is not None:
            values[score.identity].append(ssim)
    return sorted(values, key=lambda name: -float(np.mean(values[name])))


def _identity_images(identity: TestIdentity, test_set: Path, predictions: Path) -> list[Image.Image]:
    """A person's two lines: the input and its views, the restoration and the true views."""
    names = [view_name(identity.identity, target.view) for target in identity.targets]
    above = [test_set / "inputs" / f"{identity.identity}.png", *(predictions / name for name in names)]
    restored = predictions / view_name(identity.identity, identity.source_view)
    return [load_photo(path) for path in (*above, restored, *(test_set / "truths" / name for name in names))]
