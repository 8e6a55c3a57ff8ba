"""What options of every command and script may be: checked once, where they are read, before anything is loaded.

Each function gives a `type` for `argparse`, whose error says what was given and what is accepted. A parser that is a
`OneLineParser` prints it in one line.
"""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

MOST = 10**12  # of anything that is counted
LARGEST_SEED = 2**32 - 1  # that all of NumPy's and torch's generators take


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors, and those of its subcommands, are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def whole_number(minimum: int, maximum: int = MOST, multiple_of: int = 1) -> Callable[[str], int]:
    """A whole number of at least this and at most that, in ASCII digits."""
    expected = f"a whole number of at least {minimum}" + (f" and at most {maximum}" if maximum < MOST else "")
    if multiple_of > 1:
        expected += f" that is a multiple of {multiple_of}"

    def parse(text: str) -> int:
        # The length is looked at first: of very long texts int() refuses some, and takes minutes for others.
        short = text.isascii() and text.isdecimal() and len(text) <= len(str(MOST))
        if not short or not minimum <= int(text) <= maximum or int(text) % multiple_of:
            raise argparse.ArgumentTypeError(f"{_shown(text)} is not {expected}")
        return int(text)

    return parse


def number(
    low: float = -math.inf, high: float = math.inf, above: float = -math.inf, below: float = math.inf
) -> Callable[[str], float]:
    """A finite number.

    Args:
        low: the least that is accepted.
        high: the largest that is accepted.
        above: what it must exceed.
        below: what it must stay below.
    """
    limits = {"at least": low, "at most": high, "above": above, "below": below}
    expected = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high and above < value < below):
            raise argparse.ArgumentTypeError(f"{_shown(text)} is not a number {expected}".rstrip())
        return value

    return parse


def filled_text(text: str) -> str:
    """A text that is not empty, such as a folder, which would stand for the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def a_path(text: str) -> Path:
    """A path that is not empty."""
    return Path(filled_text(text))


def rank(text: str) -> int:
    """A place in an order: 1 for the first, -1 for the last."""
    if not re.fullmatch(r"-?[1-9]\d{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no rank: 1 is the best, -1 the worst")
    return int(text)


def _shown(text: str) -> str:
    """The text as an error shows it, short even where it is long."""
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
