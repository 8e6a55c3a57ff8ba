"""Draw what a comparison made of some people, chosen by rank, so that nobody picks them by liking.

    python training/draw_rows.py comparison --ranks 1 2 -2 -1 --out training/good_and_bad.jpg

People are ranked by the mean SSIM of their views. Each has two rows: the input and its views, and below them the
restoration and the true views. Rank 1 is the best, -1 the worst.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nvb_diffusers.camera import angles_from_camera
from nvb_diffusers.data.contact_sheet import contact_sheet
from nvb_diffusers.data.records import load_image
from nvb_diffusers.evaluation.compare import row_folder
from nvb_diffusers.evaluation.score import read_scores
from nvb_diffusers.evaluation.test_sets import TestIdentity, load_test_set, view_name


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="a folder that nvb-face-eval compare filled")
    parser.add_argument("--row", default="ours", help="the method")
    parser.add_argument("--preset", default="medium", help="the degradation")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, -2, -1])
    parser.add_argument("--out", type=Path, required=True, help="the picture")
    return parser.parse_args(argv)


def rank_identities(scores: Path) -> list[str]:
    """Names of people, those with the highest mean SSIM of their views first."""
    values = defaultdict(list)
    for score in read_scores(scores):
        if score["task"] == "novel_views":
            values[score["identity"]].append(score["values"]["SSIM"])
    return sorted(values, key=lambda name: -float(np.mean(values[name])))


def draw_identity(
    identity: TestIdentity, test_set: Path, predictions: Path, title: str
) -> tuple[list[Image.Image], list[str]]:
    """Pictures and labels of a person's two rows."""
    names = [view_name(identity.identity, target.view) for target in identity.targets]
    yaws = [f"yaw {yaw:+.0f}" for yaw in angles_from_camera(identity.cameras)[:, 0].tolist()]
    above = [test_set / "inputs" / f"{identity.identity}.png", *(predictions / name for name in names)]
    restored = predictions / view_name(identity.identity, identity.source_view)
    below = [restored, *(test_set / "truths" / name for name in names)]
    return [load_image(path) for path in above + below], [title, *yaws, "restored", *["truth"] * len(names)]


def draw(args: argparse.Namespace) -> None:
    names = rank_identities(args.comparison / "scores" / row_folder(args.row) / args.preset)
    test_set = load_test_set(args.comparison / "sets" / args.preset, verify=False)
    identities = {identity.identity: identity for identity in test_set.identities}
    predictions = args.comparison / "predictions" / row_folder(args.row) / args.preset
    pictures, labels = [], []
    for rank in args.ranks:
        if not 1 <= abs(rank) <= len(names):
            raise ValueError(f"--ranks {rank}: there are {len(names)} people, 1 to {len(names)} or -{len(names)} to -1")
        place = rank - 1 if rank > 0 else len(names) + rank
        identity = identities[names[place]]
        some = draw_identity(identity, test_set.folder, predictions, f"rank {place + 1} of {len(names)}")
        pictures += some[0]
        labels += some[1]
    contact_sheet(pictures, labels, columns=1 + len(identity.targets)).save(args.out, quality=88)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        draw(parse_args(argv))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
