"""Measure what the photo's own pixels cost on one core: reading, projecting to each view, fusing.

    python benchmarks/appearance_speed.py
    python benchmarks/appearance_speed.py --sizes 256 512 --num_views 1 7 28

Times are those of the processor, not of the clock, and the fastest of three runs counts, so that other work on the
machine weighs little. The surface is a ball, the weights are random: what is computed does not depend on them.
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from nvb_diffusers import AppearanceModel
from nvb_diffusers.camera import camera_from_angles, orbit_cameras, pixel_centers
from nvb_diffusers.option_types import OneLineParser, whole_number

NUM_REPEATS = 3
T = TypeVar("T")


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(description="Milliseconds to read, project and fuse a photo, on one core.")
    parser.add_argument(
        "--sizes", type=whole_number(16, 4096), nargs="+", default=[128, 256], help="sides of photo and views"
    )
    parser.add_argument("--num_views", type=whole_number(1, 10_000), nargs="+", default=[1, 7])
    return parser.parse_args()


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """What a call gives, and the milliseconds of its fastest run."""
    times = []
    for _ in range(NUM_REPEATS):
        start = time.process_time()
        result = run()
        times.append(1000 * (time.process_time() - start))
    return result, min(times)


@torch.no_grad()
def measure(model: AppearanceModel, size: int, num_views: int) -> tuple[float, float, float]:
    """Milliseconds to read a photo, to project it to the views, and to fuse them."""
    source, targets = camera_from_angles(0.0, 0.0)[None], orbit_cameras(num_views, (-45.0, 45.0))[None]
    surface, reading = timed(lambda: model.read_photo(torch.zeros(1, 3, size, size), source))
    distance = (pixel_centers(size, size) - 0.5).square().sum(dim=-1)[None]  # (1, S, S), from the middle
    ball = surface._replace(depth=2.7 - 0.5 * (0.2 - distance).clamp(min=0).sqrt(), mask=(distance < 0.2).float())
    layers, projecting = timed(lambda: model.project(ball, targets))
    _, fusing = timed(lambda: model.fuse(layers, torch.zeros(1, num_views, 3, size // 2, size // 2)))
    return reading, projecting, fusing


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    model = AppearanceModel().eval()
    print("| size | views | read, ms | project, ms a view | fuse, ms a view |")
    print("|---|---|---|---|---|")
    for size in args.sizes:
        for num_views in args.num_views:
            reading, projecting, fusing = measure(model, size, num_views)
            print(f"| {size} | {num_views} | {reading:.0f} | {projecting / num_views:.0f} | {fusing / num_views:.0f} |")


if __name__ == "__main__":
    main()
