"""Measure whether the marks of synthetic pictures are found after damage, and that no other picture is accused.

    nvb-heads --output_dir heads --identities 40 --views 3 --size 256
    python benchmarks/marks.py heads/images --others examples/inputs

The pictures of the folder are marked, damaged and looked at; unmarked, they are looked at as well, and so are the
others and noise.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from nvb_diffusers.option_types import OneLineParser, a_path, whole_number
from nvb_diffusers.provenance import find_marks, mark_image

SUFFIXES = {".png", ".jpg", ".webp"}


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=a_path, help="pictures that were not marked, at any depth")
    parser.add_argument("--others", type=a_path, nargs="*", default=[], help="folders of more that were not marked")
    parser.add_argument("--number", type=whole_number(1), default=100)
    return parser.parse_args()


def open_pictures(folder: Path) -> list[Image.Image]:
    """All pictures of a folder, at any depth, in RGB."""
    return [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES]


def jpeg(image: Image.Image) -> Image.Image:
    """After JPEG at quality 75."""
    image.save(content := io.BytesIO(), "JPEG", quality=75)
    return Image.open(content).convert("RGB")


def half(image: Image.Image) -> Image.Image:
    """Half as wide and high."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def crop(image: Image.Image) -> Image.Image:
    """Without a twentieth at each edge."""
    x, y = round(0.05 * image.width), round(0.05 * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


DAMAGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "JPEG 75": jpeg,
    "half the size": half,
    "10 % cropped": crop,
    "all three": lambda image: jpeg(half(crop(image))),
}


def main() -> None:
    args = parse_args()
    pictures = open_pictures(args.folder)
    pictures = pictures[:: max(1, len(pictures) // args.number)][: args.number]
    start = time.perf_counter()
    marked = [mark_image(picture) for picture in pictures]
    milliseconds = 1000 * (time.perf_counter() - start) / len(pictures)
    errors = [
        np.square(np.asarray(picture) / 1.0 - np.asarray(mark_image(picture, "invisible"))).mean()
        for picture in pictures
    ]
    decibels = 10 * np.log10(255**2 / max(errors))
    print(f"{len(pictures)} pictures; marking takes {milliseconds:.1f} ms each, and the invisible mark alone", end=" ")
    print(f"leaves at least {decibels:.1f} dB\n")
    print("| damage | visible found | invisible found | least visible | least invisible |")
    print("|---|---|---|---|---|")
    for name, damage in DAMAGES.items():
        found = [find_marks(damage(picture)) for picture in marked]
        shares = [np.mean([kind in one.names for one in found]) for kind in ("visible", "invisible")]
        least = min(one.visible for one in found), min(one.invisible for one in found)
        print(f"| {name} | {shares[0]:.0%} | {shares[1]:.0%} | {least[0]:.2f} | {least[1]:.1f} |")
    generator = np.random.default_rng(0)
    noise = [Image.fromarray(generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)) for _ in range(20)]
    others = [picture for folder in args.others for picture in open_pictures(folder)]
    unmarked = [*pictures, *map(half, pictures), *map(jpeg, pictures), *others, *noise]
    found = [find_marks(picture) for picture in unmarked]
    accused = sum(bool(one.names) for one in found)
    most = max(one.visible for one in found), max(one.invisible for one in found)
    print(f"\n{accused} of {len(unmarked)} unmarked are accused; at most {most[0]:.2f} and {most[1]:.1f}")


if __name__ == "__main__":
    main()
