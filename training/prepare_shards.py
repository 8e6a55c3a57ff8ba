"""Pack a data set in the project's format into shards, which training reads with `--streaming`.

    python training/prepare_shards.py --data_dir heads-v1 --output_dir heads-v1-shards

The shards are parquet files, or tar files as webdataset reads them. They hold the files of the pictures as they are,
the views of an identity side by side. Copy the folder wherever fsspec reads (the Hub, S3, a web server) and give that
address as `--data_dir`. Run it again to go on after a stop.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet

from nvb_diffusers.data.fingerprint import fingerprint
from nvb_diffusers.data.records import SPLITS, begin_data_set, read_records
from nvb_diffusers.data.shards import INDEX_FILE, RECORD_FEATURES
from nvb_diffusers.data.tar_shards import write_tar
from nvb_diffusers.files import replaced_file, write_whole
from nvb_diffusers.option_types import OneLineParser, filled_text, number, whole_number

MEGABYTE = 1e6
ENDINGS = {"parquet": "parquet", "webdataset": "tar"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=filled_text, required=True, help="the set to read")
    parser.add_argument("--output_dir", type=filled_text, required=True, help="the folder to write")
    parser.add_argument(
        "--shard_size",
        type=number(above=0),
        default=256,
        help="about how many megabytes; each data loading worker holds one",
    )
    parser.add_argument("--shard_format", choices=tuple(ENDINGS), default="parquet")
    parser.add_argument(
        "--shuffle_seed", type=whole_number(0), help="mix the identities, as for sets joined from several sources"
    )
    return parser.parse_args(argv)


def group_by_identity(records: Sequence[dict[str, Any]], shuffle_seed: int | None) -> list[list[dict[str, Any]]]:
    """The records of each identity, in the order in which the identities come first, or in a random one."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(str(record["identity"]), []).append(record)
    identities = list(groups.values())
    if shuffle_seed is None:
        return identities
    return [identities[index] for index in np.random.default_rng(shuffle_seed).permutation(len(identities))]


def fill_shards(
    identities: Sequence[list[dict[str, Any]]], folder: Path, shard_bytes: float
) -> list[list[list[dict[str, Any]]]]:
    """Identities in shards of about `shard_bytes`: a shard is closed by the identity that reaches them."""
    shards: list[list[list[dict[str, Any]]]] = []
    size = shard_bytes
    for views in identities:
        if size >= shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(views)
        size += sum((folder / view["file_name"]).stat().st_size for view in views)
    return shards


def write_shard(path: Path, folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write one shard at once, in the format of its ending."""
    rows = [
        {
            "image": {"bytes": (folder / record["file_name"]).read_bytes(), "path": record["file_name"]},
            "identity": str(record["identity"]),
            "view": record["view"],
            "camera": record.get("camera"),
        }
        for record in records
    ]
    with replaced_file(path) as part:
        if path.suffix == ".tar":
            write_tar(part, rows)
        else:
            pyarrow.parquet.write_table(datasets.Dataset.from_list(rows, features=RECORD_FEATURES).data.table, part)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the shards; return 0, or 2 after an error, which is one line on stderr."""
    args = parse_args(argv)
    try:
        records = read_records(args.data_dir)
        folder, target = Path(args.data_dir) / "images", Path(args.output_dir)
        index: dict[str, list[dict[str, Any]]] = {}
        shards: dict[str, list[dict[str, Any]]] = {}  # the records of each file
        for split in SPLITS:
            identities = group_by_identity([r for r in records if r["split"] == split], args.shuffle_seed)
            index[split] = []
            for number, shard in enumerate(fill_shards(identities, folder, args.shard_size * MEGABYTE)):
                name = f"{split}-{number:05d}.{ENDINGS[args.shard_format]}"
                shards[name] = [view for identity in shard for view in identity]
                cameras = all(view.get("camera") is not None for view in shards[name])
                index[split].append({"file": name, "views": [len(i) for i in shard], "cameras": cameras})
        made_of = {name: fingerprint((folder / v["file_name"] for v in views), views) for name, views in shards.items()}
        settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
        begin_data_set(target, settings, made_of=made_of, index=INDEX_FILE)
        for name, views in shards.items():
            if not (target / name).exists():
                write_shard(target / name, folder, views)
        for path in target.glob(f"*.{ENDINGS[args.shard_format]}"):
            if path.name not in shards:  # of the set as it was: tools that read every file would mix them
                path.unlink()
        write_whole(target / INDEX_FILE, json.dumps(index))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(records)} pictures in {sum(map(len, index.values()))} shards: {target / INDEX_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
