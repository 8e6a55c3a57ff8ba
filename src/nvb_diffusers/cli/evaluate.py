"""`nvb-face eval`: frozen test sets, the scores of any method's images on them, and comparisons of methods.

What measures is imported by the command that needs it, since its networks' libraries take seconds to import.
"""

import argparse
import inspect
import os
from dataclasses import asdict

from nvb_diffusers import DEFAULT_CHECKPOINT
from nvb_diffusers.cli.options import Commands, add_checkpoint, add_command
from nvb_diffusers.data.degradation import PRESETS
from nvb_diffusers.evaluation.test_sets import load_test_set, make_test_set
from nvb_diffusers.files import check_replaceable, only_writer, replaced_folder, write_json
from nvb_diffusers.loading import open_checkpoint
from nvb_diffusers.option_types import LARGEST_SEED, a_path, filled_text, rank, whole_number

SETTINGS = {
    name: parameter.default
    for name, parameter in inspect.signature(make_test_set).parameters.items()
    if parameter.default is not inspect.Parameter.empty
}


def add_commands(commands: Commands) -> None:
    """Add `eval` and its own subcommands."""
    purpose = "Freeze test sets, score any method's images on them, and compare methods."
    family = commands.add_parser("eval", help=purpose, description=purpose)
    commands = family.add_subparsers(metavar="COMMAND", required=True)

    purpose = "Freeze a test set: degraded inputs, cameras, truths and their checksums."
    make_set = add_command(commands, "make-set", run_make_set, purpose)
    make_set.add_argument("data", type=a_path, help="a multi-view set in the project's format")
    make_set.add_argument("--out", type=a_path, required=True, help="folder to make; it must not exist")
    for name, default in SETTINGS.items():
        choices = list(PRESETS) if name == "preset" else None
        kind = filled_text if isinstance(default, str) else whole_number(0, LARGEST_SEED)
        option = f"--{name.replace('_', '-')}"
        make_set.add_argument(option, type=kind, default=default, choices=choices, help="default %(default)s")

    purpose = "Score a folder of images of any method: a line each, a summary with intervals, a table."
    score = add_command(commands, "score", run_score, purpose)
    score.add_argument("set", type=a_path, help="a test set made by make-set")
    score.add_argument("predictions", type=a_path, help="folder with <identity>/<view>.png")
    score.add_argument("--out", type=a_path, help="folder for the scores (default: PREDICTIONS-scores)")
    score.add_argument(
        "--camera-predictor", default=DEFAULT_CHECKPOINT,
        help="pipeline that predicts cameras, folder or Hub id, or none (default: the packaged one)",
    )  # fmt: skip
    score.add_argument("--arcface", type=a_path, help="ArcFace as an ONNX file (default: insightface's, where it is)")

    purpose = "Run the methods of a comparison on the same test sets; run again, it goes on where it was."
    compare = add_command(commands, "compare", run_compare, purpose)
    compare.add_argument("configuration", help="a JSON file, or the name of a packaged comparison such as default")
    compare.add_argument("data", type=a_path, help="a multi-view set in the project's format")
    compare.add_argument("--out", type=a_path, required=True, help="folder for everything")
    compare.add_argument("--workers", type=whole_number(1, 1024), default=os.cpu_count() or 1,
                         help="processes that share the methods (default %(default)s)")  # fmt: skip

    purpose = "Write the report of a comparison again: report.md and one self-contained report.html."
    report = add_command(commands, "report", run_report, purpose)
    report.add_argument("comparison", type=a_path, help="folder that compare wrote")

    purpose = "Draw what a method made of some people of a comparison, chosen by rank, so that nobody picks them."
    rows = add_command(commands, "rows", run_rows, purpose)
    rows.add_argument("comparison", type=a_path, help="folder that compare wrote")
    rows.add_argument(
        "--row", type=filled_text, default="ours", help="the method's name in the comparison (default %(default)s)"
    )
    rows.add_argument(
        "--preset", choices=sorted(PRESETS), default="medium", help="the degradation (default %(default)s)"
    )
    rows.add_argument("--ranks", type=rank, nargs="+", default=[1, 2, -2, -1],
                      help="1 is the best by the mean SSIM of the views, -1 the worst (default 1 2 -2 -1)")  # fmt: skip
    rows.add_argument("--out", type=a_path, required=True, help="image to write")

    purpose = "Real photos: whether the person is recognized in the views, and whether they turn as told."
    photos = add_command(commands, "photos", run_photos, purpose)
    photos.add_argument("photos", type=a_path, help="a folder of photos, or one")
    photos.add_argument("--out", type=a_path, required=True, help="folder for measurements, table and contact sheets")
    photos.add_argument("--shrink", type=whole_number(1), nargs="+", default=[1, 4, 8, 16], metavar="TIMES",
                        help="how many times smaller each photo is made first (default 1 4 8 16)")  # fmt: skip
    photos.add_argument(
        "--seed", type=whole_number(0, LARGEST_SEED), default=0, help="of the noise (default %(default)s)"
    )
    add_checkpoint(photos)


def run_make_set(args: argparse.Namespace) -> None:
    """`nvb-face eval make-set`."""
    make_test_set(args.data, args.out, **{name: getattr(args, name) for name in SETTINGS})
    print(f"{args.out}: a test set, written")


def run_score(args: argparse.Namespace) -> None:
    """`nvb-face eval score`."""
    from nvb_diffusers.evaluation.networks import find_networks
    from nvb_diffusers.evaluation.score import score_predictions
    from nvb_diffusers.evaluation.summaries import summary_table

    predictions = args.predictions.resolve()
    out = args.out or predictions.with_name(f"{predictions.name}-scores")
    networks = find_networks(None if args.camera_predictor == "none" else args.camera_predictor, args.arcface)
    summary = score_predictions(load_test_set(args.set), predictions, out, networks)
    print(summary_table(summary), end="")


def run_compare(args: argparse.Namespace) -> None:
    """`nvb-face eval compare`."""
    from nvb_diffusers.evaluation.compare import compare
    from nvb_diffusers.evaluation.configuration import read_comparison
    from nvb_diffusers.evaluation.report import write_report

    with only_writer(args.out):
        results = compare(read_comparison(args.configuration), args.data, args.out, workers=args.workers)
        markdown, page = write_report(args.out)
    print(f"{len(results.rows)} rows; read {markdown} or {page}")


def run_report(args: argparse.Namespace) -> None:
    """`nvb-face eval report`."""
    from nvb_diffusers.evaluation.report import write_report

    markdown, page = write_report(args.comparison)
    print(f"{markdown} and {page}, written")


def run_rows(args: argparse.Namespace) -> None:
    """`nvb-face eval rows`."""
    from nvb_diffusers.evaluation.figures import draw_ranks

    draw_ranks(args.comparison, args.row, args.preset, args.ranks).save(args.out, quality=88)
    print(f"{args.out}, written")


def run_photos(args: argparse.Namespace) -> None:
    """`nvb-face eval photos`."""
    from nvb_diffusers.evaluation.networks import find_dlib, find_mesh
    from nvb_diffusers.evaluation.photos import PhotoSheets, score_photos, summarize_photos

    check_replaceable(args.out, "photos.json")
    networks = find_dlib(), find_mesh(solid=True)
    pipe = open_checkpoint(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    with replaced_folder(args.out) as folder:
        results = score_photos(pipe, args.photos, *networks, args.shrink, args.seed, PhotoSheets(folder))
        table = summarize_photos(results)
        write_json(folder / "photos.json", [asdict(result) for result in results])
        (folder / "photos.md").write_text(table, encoding="utf-8")
    print(table, end="")
