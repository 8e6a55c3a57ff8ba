"""The command `nvb-face-eval`: frozen test sets, and the scores of any method's pictures on them."""

import argparse
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import diffusers

from nvb_diffusers import DEFAULT_CHECKPOINT
from nvb_diffusers.cli import OneLineParser
from nvb_diffusers.data.degradation import PRESETS
from nvb_diffusers.evaluation.compare import compare, read_comparison
from nvb_diffusers.evaluation.networks import find_networks
from nvb_diffusers.evaluation.report import write_report
from nvb_diffusers.evaluation.score import score_predictions, summary_table
from nvb_diffusers.evaluation.test_sets import load_test_set, make_test_set
from nvb_diffusers.files import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 after one line on standard error that says what was wrong."""
    diffusers.utils.logging.disable_progress_bar()  # of loading, which takes a second
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        print("nvb-face-eval:", one_line(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `run`, the function that does it."""
    parser = OneLineParser(prog="nvb-face-eval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    purpose = "Freeze a test set: degraded inputs, cameras, truths and their checksums."
    make_set = commands.add_parser("make-set", help=purpose, description=purpose)
    make_set.set_defaults(run=run_make_set)
    make_set.add_argument("data", type=Path, help="a multi-view set in the project's format")
    make_set.add_argument("--out", type=Path, required=True, help="folder to make; it must not exist")
    for name, parameter in inspect.signature(make_test_set).parameters.items():
        if name not in ("data_dir", "out"):
            choices = list(PRESETS) if name == "preset" else None
            make_set.add_argument(
                f"--{name}", type=type(parameter.default), default=parameter.default, choices=choices,
                help="default %(default)s",
            )  # fmt: skip

    purpose = "Score a folder of pictures of any method: rows, a summary with intervals, a table."
    score = commands.add_parser("score", help=purpose, description=purpose)
    score.set_defaults(run=run_score)
    score.add_argument("set", type=Path, help="a test set made by make-set")
    score.add_argument("predictions", type=Path, help="folder with <identity>/<view>.png")
    score.add_argument("--out", type=Path, help="folder for the scores (default: PREDICTIONS-scores)")
    score.add_argument(
        "--camera_predictor", default=DEFAULT_CHECKPOINT,
        help="pipeline that predicts cameras, folder or Hub id, or none (default: the packaged one)",
    )  # fmt: skip
    score.add_argument("--arcface", type=Path, help="ArcFace as an ONNX file (default: insightface's, where it is)")

    purpose = "Run the methods of a configuration file on the same test sets; run again, it goes on where it was."
    comparison = commands.add_parser("compare", help=purpose, description=purpose)
    comparison.set_defaults(run=run_compare)
    comparison.add_argument("configuration", type=Path, help="JSON, as in evaluation/comparisons/")
    comparison.add_argument("data", type=Path, help="a multi-view set in the project's format")
    comparison.add_argument("--out", type=Path, required=True, help="folder for everything")
    comparison.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that share the rows (default %(default)s)"
    )

    purpose = "Write the report of a comparison again: report.md and one self-contained report.html."
    report = commands.add_parser("report", help=purpose, description=purpose)
    report.set_defaults(run=run_report)
    report.add_argument("comparison", type=Path, help="folder that compare wrote")
    return parser


def run_make_set(args: argparse.Namespace) -> None:
    """`nvb-face-eval make-set`."""
    settings = {name: value for name, value in vars(args).items() if name not in ("command", "run", "data", "out")}
    make_test_set(args.data, args.out, **settings)
    print(f"{args.out}: a test set, written")


def run_score(args: argparse.Namespace) -> None:
    """`nvb-face-eval score`."""
    predictions = args.predictions.resolve()
    out = args.out or predictions.with_name(f"{predictions.name}-scores")
    networks = find_networks(None if args.camera_predictor == "none" else args.camera_predictor, args.arcface)
    summary = score_predictions(load_test_set(args.set), predictions, out, networks)
    print(summary_table(summary), end="")


def run_compare(args: argparse.Namespace) -> None:
    """`nvb-face-eval compare`."""
    comparison = read_comparison(args.configuration)
    results = compare(comparison, args.data, args.out, workers=args.workers)
    markdown, page = write_report(args.out)
    print(f"{len(results['rows'])} rows; read {markdown} or {page}")


def run_report(args: argparse.Namespace) -> None:
    """`nvb-face-eval report`."""
    markdown, page = write_report(args.comparison)
    print(f"{markdown} and {page}, written")


if __name__ == "__main__":
    sys.exit(main())
