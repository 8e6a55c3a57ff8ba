"""Measure what it costs to draw and to apply a degradation on one core, for each preset and image size.

    python benchmarks/degradation_speed.py
    python benchmarks/degradation_speed.py --sizes 128 512 --num_samples 200

Each sample is a degradation of its own, since their costs differ widely: the table shows the mean, the 95th percentile
and the slowest. Times are those of the processor, not of the clock, and the fastest of three runs counts, so that other
work on the machine weighs little.
"""

import argparse
import time

import cv2
import numpy as np

from nvb_diffusers.data.degradation import PRESETS, apply, draw_degradation
from nvb_diffusers.option_types import LARGEST_SEED, OneLineParser, whole_number

NUM_REPEATS = 3


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(description="Milliseconds to draw and to apply a degradation, on one core.")
    parser.add_argument(
        "--sizes", type=whole_number(16, 4096), nargs="+", default=[128, 256, 512], help="sides of the square images"
    )
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--num_samples", type=whole_number(1), default=100, help="degradations drawn for each row")
    parser.add_argument("--seed", type=whole_number(0, LARGEST_SEED), default=0)
    return parser.parse_args()


def soft_image(generator: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) uint8: colored shades with some grain, so that the codec has as much to do as on a photo."""
    coarse = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    shades = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    grain = generator.normal(0, 4, shades.shape)
    return np.clip(shades + grain, 0, 255).astype(np.uint8)


def measure(preset: str, size: int, num_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(num_samples,), (num_samples,) milliseconds to draw each degradation and to apply it."""
    generator = np.random.default_rng(seed)
    image = soft_image(generator, size)
    apply(image, draw_degradation(generator, preset))  # warm up
    draw_times, apply_times = [], []
    for _ in range(num_samples):
        start = time.process_time()
        params = draw_degradation(generator, preset)
        draw_times.append(time.process_time() - start)
        repeats = []
        for _ in range(NUM_REPEATS):
            start = time.process_time()
            apply(image, params)
            repeats.append(time.process_time() - start)
        apply_times.append(min(repeats))
    return 1000 * np.array(draw_times), 1000 * np.array(apply_times)


def main() -> None:
    args = parse_args()
    cv2.setNumThreads(1)
    print("| preset | size | draw, ms | apply, ms: mean | 95 % | slowest |")
    print("|---|---|---|---|---|---|")
    for size in args.sizes:
        for preset in args.presets:
            draw_ms, apply_ms = measure(preset, size, args.num_samples, args.seed)
            figures = (np.median(draw_ms), apply_ms.mean(), np.percentile(apply_ms, 95), apply_ms.max())
            print(f"| {preset} | {size} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")


if __name__ == "__main__":
    main()
