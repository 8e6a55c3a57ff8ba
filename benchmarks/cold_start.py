"""Time `nvb-face views` from nothing to its files, the imports in it and its memory; medians of several processes.

    python benchmarks/cold_start.py

Needs a machine that does nothing else.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from nvb_diffusers.option_types import OneLineParser, a_path, whole_number

PHOTO = Path(__file__).parents[1] / "examples/inputs/astronaut_small.jpg"
VIEWS = "import sys; from nvb_diffusers.cli import main; sys.exit(main())"  # as the console script does it
IMPORTS = "import nvb_diffusers.cli, os; os._exit(0)"
TORCH = "import torch, os; os._exit(0)"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=a_path, default=PHOTO)
    parser.add_argument("--rounds", type=whole_number(1), default=5)
    return parser.parse_args(argv)


def seconds(program: str, *words: str) -> float:
    """How long a program takes in a process of its own."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    args = parse_args(argv)
    times: dict[str, list[float]] = {"torch alone": [], "all imports": [], "seven views, all in all": []}
    with tempfile.TemporaryDirectory() as folder:
        seconds(TORCH)  # from the disk into memory
        for _ in range(args.rounds):  # in turns, so that all see the same machine
            words = ["views", str(args.photo), "--out", folder]
            values = [seconds(TORCH), seconds(IMPORTS), seconds(VIEWS, *words)]
            for measured, value in zip(times.values(), values, strict=True):
                measured.append(value)
    print("| what | seconds, median | least to most |\n|---|---|---|")
    for name, measured in times.items():
        print(f"| {name} | {statistics.median(measured):.2f} | {min(measured):.2f} to {max(measured):.2f} |")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\npeak memory of a process: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
