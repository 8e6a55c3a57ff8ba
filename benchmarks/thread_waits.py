"""Measure how threads that wait for one another should do so: seven views of the default, beside other busy processes.

    python benchmarks/thread_waits.py
    python benchmarks/thread_waits.py --busy 0 1 2 --calls 5

GNU's OpenMP lets a thread spin for a while before it sleeps. Spinning is fastest on a machine that is free, and steals
the core of the thread that is waited for on one that is not. Each row is a process of its own, as the variables are
read once; medians of its calls after the first.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.face_crop import read_face
from nvb_diffusers.option_types import OneLineParser, whole_number

WAYS = {
    "GNU's default": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": ""},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": ""},
    "GOMP_SPINCOUNT=1000, ours": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": "1000"},
}


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(description="Seconds of a call of the pipeline, by how its threads wait.")
    parser.add_argument("--busy", type=whole_number(0, 64), nargs="+", default=[0, 1], help="other busy processes")
    parser.add_argument("--calls", type=whole_number(2, 1000), default=4)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    return parser.parse_args()


def measure(calls: int) -> None:
    """Print seconds by the clock and of the processor."""
    pipe = NVBFacePipeline.from_pretrained(DEFAULT_CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    face, cameras = read_face("examples/inputs/astronaut_small.jpg", pipe), orbit_cameras(7, (-45.0, 45.0))
    times = []
    for _ in range(calls):
        start, processor = time.perf_counter(), time.process_time()
        pipe(face, cameras=cameras)
        times.append((time.perf_counter() - start, time.process_time() - processor))
    print(*(f"{statistics.median(column):.2f}" for column in zip(*times[1:], strict=True)))


def in_process(calls: int, variables: dict[str, str]) -> list[str]:
    """What `measure` prints in a process that is started with these variables; empty ones are taken away."""
    inherited = {name: value for name, value in os.environ.items() if name not in variables}
    environment = inherited | {name: value for name, value in variables.items() if value}
    # Whatever the package would set itself is kept out: torch comes first.
    command = [sys.executable, "-c", f"import torch, runpy; runpy.run_path({__file__!r}, run_name='__main__')"]
    arguments = ["--measure", "--calls", str(calls)]
    printed = subprocess.run([*command, *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return printed.stdout.split()


def main() -> None:
    args = parse_args()
    if args.measure:
        return measure(args.calls)
    print("| busy processes | how threads wait | a call, s | of the processor, s |")
    print("|---|---|---|---|")
    for number in args.busy:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
        try:
            for name, variables in WAYS.items():
                print("|", " | ".join([str(number), name, *in_process(args.calls, variables)]), "|", flush=True)
        finally:
            for process in busy:
                process.kill()
    return None


if __name__ == "__main__":
    main()
