"""What the families of commands share of the command line: adding one, and options that several have."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

from nvb_diffusers import DEFAULT_CHECKPOINT

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], purpose: str
) -> argparse.ArgumentParser:
    """A new command, which `run` does with its arguments."""
    command = commands.add_parser(name, help=purpose, description=purpose)
    command.set_defaults(run=run)
    return command


def add_checkpoint(command: argparse._ActionsContainer) -> None:
    """`--checkpoint`."""
    command.add_argument(
        "--checkpoint", default=DEFAULT_CHECKPOINT, help="folder or Hub id (default: the packaged one)"
    )


def whole_number(minimum: int) -> Callable[[str], int]:
    """The type of an option that is a whole number of at least this."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {minimum}")
        return int(text)

    return parse
