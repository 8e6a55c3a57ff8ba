"""Shards as webdataset has them: tar files in which the files of a sample share their name up to the first dot.

00000000.png   the picture's file as it is
00000000.json  {"path": "000003/00.png", "identity": "3", "view": 0, "camera": [25 numbers] or null}
"""

import io
import json
import tarfile
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import IO, Any

COLUMNS = ("image", "identity", "view", "camera")


def add_sample(tar: tarfile.TarFile, number: int, files: Iterable[tuple[str, bytes]]) -> None:
    """Add the files of a sample, given by their endings."""
    for ending, content in files:
        member = tarfile.TarInfo(f"{number:08d}.{ending}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def write_tar(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records, of which `image` holds `bytes` and `path`; the same records give the same bytes."""
    with tarfile.open(path, "w") as tar:
        for number, record in enumerate(records):
            values = {"path": record["image"]["path"], **{name: record[name] for name in COLUMNS[1:]}}
            ending = Path(values["path"]).suffix.lstrip(".")
            add_sample(tar, number, [(ending, record["image"]["bytes"]), ("json", json.dumps(values).encode())])


def read_tar(file: IO[bytes]) -> dict[str, list[Any]]:
    """The columns of a shard, from a file that is read from its beginning to its end once.

    Raises:
        ValueError: a sample has no picture, or no values beside it.
    """
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    with tarfile.open(fileobj=file, mode="r|") as tar:
        contents = ((m.name, tar.extractfile(m).read()) for m in tar if m.isfile())  # type: ignore[union-attr]
        for key, members in groupby(contents, lambda member: member[0].partition(".")[0]):
            parts = {name.partition(".")[2]: content for name, content in members}
            if len(parts) != 2 or "json" not in parts:
                raise ValueError(f"sample {key} has {', '.join(parts)}, expected a picture and json")
            values = json.loads(parts.pop("json"))
            columns["image"].append({"bytes": next(iter(parts.values())), "path": values["path"]})
            for name in COLUMNS[1:]:
                columns[name].append(values[name])
    return columns
