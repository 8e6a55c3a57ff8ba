r"""Make a multi-view set (step 2) from pictures rendered by PanoHead, EG3D or a relative, with their `dataset.json`.

    python training/prepare_panohead.py --data_dir panohead_views --output_dir panohead-512
    python training/prepare_panohead.py --data_dir views --output_dir views-512 --identity_regex '(seed\d+)'

It reads `{"labels": [["seed0001/0003.png", [25 numbers]], ...]}`, file names relative to the folder of the JSON. Each
camera is the row-major cam2world in OpenCV axes and the intrinsics normalized by image size, in a world with x right,
y up and z out of the face: ours, so it is kept as it is. The identity is the picture's folder, or what the first group
of `--identity_regex` finds in the file name; the views of an identity are numbered in the order of the file.

PanoHead's cameras look exactly at the origin and its crop is not EG3D's: do not mix the two in one set.
Run it again to go on after a stop.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import regex  # type: ignore[import-untyped]

from nvb_diffusers.data.fingerprint import fingerprint
from nvb_diffusers.data.records import (
    IMAGE_FORMATS,
    begin_data_set,
    check_record,
    map_parallel,
    read_eg3d_labels,
    resize_image,
    split_by_identity,
    write_records,
)
from nvb_diffusers.option_types import OneLineParser, filled_text, number, whole_number

REGEX_SECONDS = 1.0  # a pattern such as (a|aa)+$ takes ages on some names


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data_dir", type=filled_text, required=True, help="folder with dataset.json and the pictures it names"
    )
    parser.add_argument("--output_dir", type=filled_text, required=True, help="the set to write")
    parser.add_argument("--identity_regex", help="its first group in the file name is the identity; else the folder is")
    parser.add_argument(
        "--size", type=whole_number(1, 65536), default=512, help="width and height of the pictures, in pixels"
    )
    parser.add_argument(
        "--validation", type=number(low=0, high=1), default=0.05, help="share of the identities for validation"
    )
    parser.add_argument("--test", type=number(low=0, high=1), default=0.05, help="share of the identities for test")
    parser.add_argument("--format", choices=IMAGE_FORMATS, default="webp", help="both are without loss")
    parser.add_argument("--workers", type=whole_number(1, 1024), default=os.cpu_count() or 1, help="pictures at a time")
    return parser.parse_args(argv)


def identity_of(name: str, identity_regex: str | None) -> str:
    """Whom a picture shows, as a text that can name a folder."""
    if identity_regex is None:
        identity = PurePosixPath(name).parent.as_posix()
        if identity == ".":
            raise ValueError(f"picture {name} is in no folder of its own: say with --identity_regex whom it shows")
    else:
        try:
            match = regex.search(identity_regex, name, timeout=REGEX_SECONDS)
        except TimeoutError:
            raise ValueError(
                f"--identity_regex {identity_regex!r} takes longer than {REGEX_SECONDS} s on {name}: give a simpler one"
            ) from None
        if match is None or not match.group(1):
            raise ValueError(f"--identity_regex {identity_regex!r} finds nothing in {name}")
        identity = match.group(1)
    return identity.replace("/", "_")


def build_records(args: argparse.Namespace) -> tuple[list[str], list[dict[str, Any]]]:
    """The pictures to read and the records they become."""
    try:
        groups = regex.compile(args.identity_regex or "()").groups
    except regex.error as error:
        raise ValueError(f"--identity_regex {args.identity_regex!r} is no pattern: {error}") from None
    if groups < 1:
        raise ValueError(f"--identity_regex {args.identity_regex!r} has no group, as in '(seed\\d+)'")
    labels = read_eg3d_labels(Path(args.data_dir) / "dataset.json")
    identities = [identity_of(name, args.identity_regex) for name, _ in labels]
    splits = split_by_identity(identities, args.validation, args.test)
    views: Counter[str] = Counter()
    records = []
    for (_, camera), identity in zip(labels, identities, strict=True):
        view = views[identity]
        views[identity] += 1
        record = {"file_name": f"{identity}/{view:03d}.{args.format}", "identity": identity, "view": view}
        records.append(dict(record, camera=camera, split=splits[identity]))
        check_record(records[-1])
    return [name for name, _ in labels], records


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set; return 0, or 2 after an error, which is one line on stderr."""
    args = parse_args(argv)
    try:
        names, records = build_records(args)
        settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "workers")}
        sources = [Path(args.data_dir) / name for name in names]
        targets = [f"images/{record['file_name']}" for record in records]
        made_of = {target: fingerprint([path]) for target, path in zip(targets, sources, strict=True)}
        begin_data_set(args.output_dir, settings, [Path(args.data_dir) / "dataset.json"], made_of)

        def work(index: int) -> float:
            return resize_image(sources[index], Path(args.output_dir) / targets[index], args.size)

        map_parallel(work, range(len(names)), args.workers)
        path = write_records(args.output_dir, records)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    num_identities = len({record["identity"] for record in records})
    print(f"{len(records)} pictures of {args.size} px, {num_identities} identities: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
