"""What the families of commands share of the command line: adding one, and options that several have."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

from nvb_diffusers import DEFAULT_CHECKPOINT
from nvb_diffusers.option_types import filled_text

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
        "--checkpoint",
        type=filled_text,
        default=DEFAULT_CHECKPOINT,
        help="folder or Hub id (default: the packaged one)",
    )
