"""Data sets in shards, read one shard at a time from a folder or a URL, so that a set may be larger than the disk.

`training/prepare_shards.py` makes them from a folder in the project's format: parquet or tar files with the bytes of
the images inside, the views of an identity side by side in one file, and `shards.json`, which says what is in which:

    {"train": [{"file": "train-00000.parquet", "views": [16, 16, ...], "cameras": true}, ...], ...}

where `views` counts the images of each identity. Every HF data set tool reads the parquet files as they are, and
webdataset the tar files (`tar_shards`).
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from typing import IO, Any

import datasets
import fsspec
import pyarrow
import pyarrow.parquet

from nvb_diffusers.data.tar_shards import read_tar
from nvb_diffusers.files import one_line, path_inside

INDEX_FILE = "shards.json"
RECORD_FEATURES = datasets.Features(
    {
        "image": datasets.Image(decode=False),  # `load_photo` decodes it, by the one rule
        "identity": datasets.Value("string"),
        "view": datasets.Value("int64"),
        "camera": datasets.List(datasets.Value("float64")),
    }
)


class ShardedRecords:
    """The records of one split, of which one shard at a time is in memory.

    Reading records in their order, or shard by shard (`ShardSampler`), reads each shard once; jumping about reads a
    whole shard for every record.

    Args:
        data_dir: a folder, or a URL of fsspec such as `hf://datasets/<user>/<name>`, with `shards.json`.
        split: train, validation or test.

    Raises:
        ValueError: there are no shards of the split at `data_dir`.
    """

    def __init__(self, data_dir: str, split: str) -> None:
        self.data_dir = data_dir.rstrip("/")
        shards = _read_index(self.data_dir).get(split)
        if not shards:
            raise ValueError(f"{self.data_dir}/{INDEX_FILE} has no shard of split {split!r}")
        self.files: list[str] = [path_inside("", shard["file"], "file").as_posix() for shard in shards]
        self.views_per_shard: list[list[int]] = [shard["views"] for shard in shards]
        self.has_cameras = all(shard["cameras"] for shard in shards)
        self._starts = list(accumulate((sum(views) for views in self.views_per_shard), initial=0))
        self._loaded: tuple[int, datasets.Dataset] | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One record; its image is the bytes of a file."""
        shard, place = self._locate(index)
        return self._load(shard)[place]

    @property
    def views(self) -> list[Sequence[int]]:
        """The indices of the records of each identity."""
        ends = list(accumulate((count for views in self.views_per_shard for count in views), initial=0))
        return [range(start, end) for start, end in pairwise(ends)]

    def image_name(self, index: int) -> str:
        """Which image of which shard a record is."""
        shard, place = self._locate(index)
        return f"{self._load(shard)[place]['image']['path']} in {self.data_dir}/{self.files[shard]}"

    def _locate(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _load(self, shard: int) -> datasets.Dataset:
        if self._loaded is None or self._loaded[0] != shard:
            self._loaded = None  # before the next one comes: there is room for one
            path = f"{self.data_dir}/{self.files[shard]}"
            try:
                with fsspec.open(path) as file:
                    table = _read_table(path, file)
            except Exception as error:  # each protocol of fsspec has errors of its own
                raise OSError(f"cannot read shard {path}: {one_line(error)}") from None
            found = [len(list(views)) for _, views in groupby(table["identity"].to_pylist())]
            if found != self.views_per_shard[shard]:
                raise ValueError(f"{path} is not the shard that {INDEX_FILE} lists: copy the folder again, whole")
            self._loaded = shard, datasets.Dataset(datasets.table.InMemoryTable(table))
        return self._loaded[1]


def _read_table(path: str, file: IO[bytes]) -> pyarrow.Table:
    if path.endswith(".tar"):
        return datasets.Dataset.from_dict(read_tar(file), features=RECORD_FEATURES).data.table
    return pyarrow.parquet.read_table(file)


def _read_index(data_dir: str) -> dict[str, Any]:
    path = f"{data_dir}/{INDEX_FILE}"
    try:
        with fsspec.open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        raise ValueError(
            f"no shards at {data_dir}: {path} does not exist, training/prepare_shards.py makes it"
        ) from None
    except Exception as error:  # each protocol of fsspec has errors of its own
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from None
