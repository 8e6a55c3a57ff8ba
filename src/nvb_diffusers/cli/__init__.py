"""The command `nvb-face`: views, orbits and restorations of the faces in photos, and how good they are."""

import argparse
import gc
import io
import sys
from collections.abc import Sequence

import diffusers

from nvb_diffusers import __version__
from nvb_diffusers.cli import app, degrade, evaluate, info, verify, views
from nvb_diffusers.cli.photos import complain
from nvb_diffusers.option_types import OneLineParser
from nvb_diffusers.stopping import Stopped, stop_by_signals

FAMILIES = (views, app, verify, degrade, info, evaluate)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or another after one line on standard error that says why."""
    if argv is None:  # the process is this command's
        gc.freeze()  # what the imports left: looking through it for garbage takes a second at the end
    diffusers.utils.logging.disable_progress_bar()  # of loading, which takes a second
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of photos that the console cannot show
    args = build_parser().parse_args(_join_ranges(sys.argv[1:] if argv is None else argv))
    try:
        with stop_by_signals():
            status: int | None = args.run(args)
    except (ValueError, OSError, ImportError) as error:
        complain(error)
        return 2
    except Stopped as stopped:
        complain(stopped)
        return stopped.status
    return status or 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `run`, the function that does it."""
    parser = OneLineParser(prog="nvb-face", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for family in FAMILIES:
        family.add_commands(commands)
    return parser


def _join_ranges(argv: Sequence[str]) -> list[str]:
    """`--yaw -45:45` as `--yaw=-45:45`: argparse takes the value for an option otherwise."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] == "--yaw":
            joined[-1] = f"--yaw={argument}"
        else:
            joined.append(argument)
    return joined


if __name__ == "__main__":
    sys.exit(main())
