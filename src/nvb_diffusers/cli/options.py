"""What the families of commands share of the command line: adding one, and options that several have."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

from nvb_diffusers import DEFAULT_CHECKPOINT
from nvb_diffusers.credentials import Sign, open_certificate
from nvb_diffusers.option_types import a_path, filled_text
from nvb_diffusers.provenance import MARKS, Mark

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int | None], purpose: str
) -> argparse.ArgumentParser:
    """A new command, which `run` does with its arguments; the exit status is what it returns, None for 0."""
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


def add_mark(command: argparse.ArgumentParser) -> None:
    """`--mark`."""
    command.add_argument(
        "--mark",
        choices=(*MARKS, "none"),
        default=MARKS[0],
        help="what says in a picture that it is synthetic (default %(default)s)",
    )


def add_certificate(command: argparse.ArgumentParser) -> None:
    """`--certificate` and `--key`."""
    command.add_argument(
        "--certificate", type=a_path, help="PEM with your certificate and its issuers': signs what is written (C2PA)"
    )
    command.add_argument("--key", type=a_path, help="PEM with the private key of --certificate")


def read_certificate(args: argparse.Namespace) -> Sign:
    """What signs a file in its place; without a certificate it stays as it is.

    Raises:
        ValueError: one of the two is missing, or they cannot sign.
    """
    if args.certificate is None and args.key is None:
        return lambda path: None
    if args.certificate is None or args.key is None:
        raise ValueError("signing needs both --certificate and --key")
    return open_certificate(args.certificate, args.key)


def read_mark(args: argparse.Namespace) -> Mark | None:
    """The mark that was asked for, None for none."""
    return None if args.mark == "none" else args.mark
