"""Make a data set at another picture size from one in the project's format.

    python training/prepare_resized.py --data_dir heads-v1 --output_dir heads-v1-128 --size 128

Pictures are resampled with Lanczos (a low-pass filter when they shrink) and stored without loss. Landmarks are scaled;
cameras stay as they are, their intrinsics are normalized by the picture's size. Run it again to go on after a stop.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nvb_diffusers.data.fingerprint import fingerprint
from nvb_diffusers.data.records import (
    IMAGE_FORMATS,
    begin_data_set,
    map_parallel,
    metadata_path,
    read_records,
    resize_image,
    write_records,
)
from nvb_diffusers.option_types import OneLineParser, filled_text, whole_number


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=filled_text, required=True, help="the set to read")
    parser.add_argument("--output_dir", type=filled_text, required=True, help="the set to write")
    parser.add_argument(
        "--size", type=whole_number(1, 65536), required=True, help="width and height of the new pictures, in pixels"
    )
    parser.add_argument("--format", choices=IMAGE_FORMATS, default="webp", help="both are without loss")
    parser.add_argument("--workers", type=whole_number(1, 1024), default=os.cpu_count() or 1, help="pictures at a time")
    return parser.parse_args(argv)


def resize_record(record: dict[str, Any], file_name: str, scale: float) -> dict[str, Any]:
    """The record of a resized picture. Landmarks count pixels from the edge, so no half pixel enters."""
    resized = dict(record, file_name=file_name)
    if record.get("landmarks") is not None:
        resized["landmarks"] = [[round(scale * value, 3) for value in point] for point in record["landmarks"]]
    return resized


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set; return 0, or 2 after an error, which is one line on stderr."""
    args = parse_args(argv)
    try:
        records = read_records(args.data_dir)
        source, target = Path(args.data_dir) / "images", Path(args.output_dir) / "images"
        names = [str(PurePosixPath(record["file_name"]).with_suffix(f".{args.format}")) for record in records]
        if len(set(names)) < len(names):
            raise ValueError(f"two pictures of {args.data_dir} differ only in their suffix")
        settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "workers")}
        pairs = zip(names, records, strict=True)
        made_of = {f"images/{name}": fingerprint([source / record["file_name"]]) for name, record in pairs}
        begin_data_set(args.output_dir, settings, [metadata_path(args.data_dir)], made_of)

        def work(index: int) -> dict[str, Any]:
            record, name = records[index], names[index]
            return resize_record(record, name, resize_image(source / record["file_name"], target / name, args.size))

        path = write_records(args.output_dir, map_parallel(work, range(len(records)), args.workers))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(records)} pictures of {args.size} px: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
