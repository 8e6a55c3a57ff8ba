"""Images of a comparison side by side, for people to look at."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nvb_diffusers.camera import angles_from_camera
from nvb_diffusers.data.contact_sheet import contact_sheet
from nvb_diffusers.data.images import load_photo
from nvb_diffusers.evaluation.compare import row_folder
from nvb_diffusers.evaluation.score import read_scores
from nvb_diffusers.evaluation.test_sets import TestIdentity, load_test_set, view_name


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
    scores = comparison / "scores" / row_folder(row) / preset
    names = rank_identities(scores)
    if not names:
        raise ValueError(f"{scores} has no scores of views: give a method (--row) and a degradation (--preset) of "
                         "the comparison")  # fmt: skip
    test_set = load_test_set(comparison / "sets" / preset, verify=False)
    identities = {identity.identity: identity for identity in test_set.identities}
    predictions = comparison / "predictions" / row_folder(row) / preset
    images: list[Image.Image] = []
    labels: list[str] = []
    for rank in ranks:
        if not 1 <= abs(rank) <= len(names):
            raise ValueError(f"--ranks {rank}: there are {len(names)} people, 1 to {len(names)} or -{len(names)} to -1")
        place = rank - 1 if rank > 0 else len(names) + rank
        identity = identities[names[place]]
        images += _identity_images(identity, test_set.folder, predictions)
        views = [f"yaw {yaw:+.0f}" for yaw in angles_from_camera(identity.cameras)[:, 0].tolist()]
        labels += [f"rank {place + 1} of {len(names)}", *views, "restored", *["truth"] * len(views)]
    return contact_sheet(images, labels, columns=1 + len(views))


def rank_identities(scores: Path) -> list[str]:
    """Names of people, those with the highest mean SSIM of their views first."""
    values = defaultdict(list)
    for score in read_scores(scores):
        if score["task"] == "novel_views":
            values[score["identity"]].append(score["values"]["SSIM"])
    return sorted(values, key=lambda name: -float(np.mean(values[name])))


def _identity_images(identity: TestIdentity, test_set: Path, predictions: Path) -> list[Image.Image]:
    """A person's two lines: the input and its views, the restoration and the true views."""
    names = [view_name(identity.identity, target.view) for target in identity.targets]
    above = [test_set / "inputs" / f"{identity.identity}.png", *(predictions / name for name in names)]
    restored = predictions / view_name(identity.identity, identity.source_view)
    return [load_photo(path) for path in (*above, restored, *(test_set / "truths" / name for name in names))]
