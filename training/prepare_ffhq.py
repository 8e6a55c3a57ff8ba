"""Make a set for restoration (step 1) from FFHQ: one picture, one identity.

    python training/prepare_ffhq.py --image_dir ffhq/images1024x1024 --output_dir ffhq-512 \
        --metadata ffhq/ffhq-dataset-v2.json
    python training/prepare_ffhq.py --image_dir FFHQ_512 --labels FFHQ_512/dataset.json --output_dir ffhq-eg3d-512

It reads a folder of square, aligned pictures, at any depth (`00000.png`, `00000/00000.png`, `00000/img00000000.png`);
the number in the name is the identity. Two files may come with them, and belong to different crops, so give one:

- `--metadata`: FFHQ's `ffhq-dataset-v2.json`, for the pictures as FFHQ aligned them. Five landmarks are taken from
  its 68 per picture (`image.face_landmarks`, pixels of `image.pixel_size`).
- `--labels`: EG3D's `dataset.json`, for the pictures as EG3D cropped them anew. It gives each picture its camera;
  mirrored copies and pictures without a label are left out.

Run it again to go on after a stop.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvb_diffusers.camera import mirror_camera
from nvb_diffusers.data.fingerprint import fingerprint
from nvb_diffusers.data.images import PHOTO_SUFFIXES, is_photo, left_out_note
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
from nvb_diffusers.files import read_json
from nvb_diffusers.option_types import OneLineParser, filled_text, number, whole_number


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_dir", type=filled_text, required=True, help="folder of aligned pictures")
    parser.add_argument("--output_dir", type=filled_text, required=True, help="the set to write")
    parser.add_argument("--metadata", help="ffhq-dataset-v2.json, for landmarks")
    parser.add_argument("--labels", help="dataset.json of EG3D, for cameras")
    parser.add_argument(
        "--size", type=whole_number(1, 65536), default=512, help="width and height of the pictures, in pixels"
    )
    parser.add_argument(
        "--validation", type=number(low=0, high=1), default=0.01, help="share of the identities for validation"
    )
    parser.add_argument("--test", type=number(low=0, high=1), default=0.01, help="share of the identities for test")
    parser.add_argument("--format", choices=IMAGE_FORMATS, default="webp", help="both are without loss")
    parser.add_argument("--workers", type=whole_number(1, 1024), default=os.cpu_count() or 1, help="pictures at a time")
    return parser.parse_args(argv)


def find_pictures(image_dir: Path) -> list[str]:
    """The pictures of a folder at any depth, as relative paths in order, without EG3D's mirrored copies.

    Other files are named in one line on standard error.
    """
    files = list(image_dir.rglob("*"))
    if note := left_out_note(files):
        print(f"note: {image_dir}: {note}", file=sys.stderr)
    paths = sorted(path for path in files if is_photo(path))
    return [path.relative_to(image_dir).as_posix() for path in paths if not path.stem.endswith("_mirror")]


def identity_of(name: str) -> int:
    """The number of a picture, the last one in its file name."""
    numbers = re.findall(r"\d+", Path(name).stem)
    if not numbers:
        raise ValueError(f"picture {name} has no number in its name")
    return int(numbers[-1])


def without_mirrored(labels: list[tuple[str, list[float]]]) -> dict[str, list[float]]:
    """The camera of each picture, without the mirrored copies.

    EG3D's tools renumber the pictures, so a copy is known only by its place, after its original, and by its camera,
    which is exactly the mirrored one.
    """
    cameras = torch.tensor([camera for _, camera in labels], dtype=torch.float64)
    copies = (mirror_camera(cameras[:-1]) - cameras[1:]).abs().amax(dim=-1) < 1e-6
    return {name: camera for (name, camera), copy in zip(labels, [False, *copies.tolist()], strict=True) if not copy}


def read_landmarks(path: str, identities: Sequence[int]) -> dict[int, np.ndarray]:
    """Landmarks (5, 2) of FFHQ's own alignment, as shares of the picture."""
    entries = read_json(path)
    landmarks = {}
    for identity in identities:
        try:
            image = entries[str(identity)]["image"]
            points = np.asarray(image["face_landmarks"], dtype=np.float64).reshape(68, 2) / image["pixel_size"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has no 68 landmarks for picture {identity} ({error!r})") from None
        # The usual 68: 36-41 and 42-47 are the eyes from left to right, 30 the nose tip, 48 and 54 the mouth's corners.
        eyes = points[36:42].mean(0), points[42:48].mean(0)
        landmarks[identity] = np.stack([*eyes, points[30], points[48], points[54]])
    return landmarks


def build_records(args: argparse.Namespace) -> tuple[list[str], list[dict[str, Any]]]:
    """The pictures to read and the records they become."""
    if args.metadata and args.labels:
        raise ValueError("--metadata and --labels belong to different crops of FFHQ: give one of them")
    if not Path(args.image_dir).is_dir():
        raise ValueError(f"no folder {args.image_dir}")
    cameras = without_mirrored(read_eg3d_labels(args.labels)) if args.labels else {}
    names = list(cameras) if args.labels else find_pictures(Path(args.image_dir))
    if not names:
        raise ValueError(f"no photos ({', '.join(sorted(PHOTO_SUFFIXES))}) in {args.image_dir}")
    identities = [identity_of(name) for name in names]
    if len(set(identities)) < len(identities):
        raise ValueError(f"two pictures of {args.image_dir} have the same number: give each set its own folder")
    landmarks = read_landmarks(args.metadata, identities) if args.metadata else {}
    splits = split_by_identity(identities, args.validation, args.test)
    records: list[dict[str, Any]] = []
    for name, identity in zip(names, identities, strict=True):
        record = {"file_name": f"{identity:06d}/00.{args.format}", "identity": identity, "view": 0}
        if args.labels:
            record["camera"] = cameras[name]
        if args.metadata:
            record["landmarks"] = np.round(landmarks[identity] * args.size, 3).tolist()
        records.append(dict(record, split=splits[identity]))
        check_record(records[-1])
    return names, records


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set; return 0, or 2 after an error, which is one line on stderr."""
    args = parse_args(argv)
    try:
        names, records = build_records(args)
        settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "workers")}
        sources = [Path(args.image_dir) / name for name in names]
        targets = [f"images/{record['file_name']}" for record in records]
        made_of = {target: fingerprint([path]) for target, path in zip(targets, sources, strict=True)}
        begin_data_set(args.output_dir, settings, [path for path in (args.metadata, args.labels) if path], made_of)

        def work(index: int) -> float:
            return resize_image(sources[index], Path(args.output_dir) / targets[index], args.size)

        map_parallel(work, range(len(names)), args.workers)
        path = write_records(args.output_dir, records)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(records)} pictures of {args.size} px: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
