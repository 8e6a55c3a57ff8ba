"""What a batch leaves: shards in the layout of webdataset, each whole or absent, and what could not be done.

    prepare.json        what all shards were made with
    views-00003.tar     of photo 200, for instance: 00000200.json, 00000200.view_00.png, 00000200.evidence_00.png
    views-00003.json    how many photos the shard's block has, and which of them failed; written after the shard
    failed.jsonl        one line for each photo that failed, of all shards; written last

Tars hold no times and no owners: what is made twice is the same file twice.
"""

import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvb_diffusers.data.records import begin_data_set
from nvb_diffusers.data.tar_shards import add_sample
from nvb_diffusers.files import as_line, read_json, replaced_file, write_json, write_whole

FAILED = "failed.jsonl"


class ShardFolder:
    """The folder of a batch.

    Args:
        folder: new, empty, or begun with the same settings.
        settings: JSON values that decide what is in the shards.

    Raises:
        ValueError: the folder holds something else, or shards of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        begin_data_set(folder, settings, index=FAILED)

    def has(self, number: int) -> bool:
        """Whether a shard is done."""
        return self._record(number).is_file()

    @contextmanager
    def write(self, number: int) -> Iterator["Shard"]:
        """A shard to be filled, which is done at the end of the block; an error leaves nothing of it."""
        with replaced_file(self.folder / f"views-{number:05d}.tar") as part, tarfile.open(part, "w") as tar:
            shard = Shard(tar)
            yield shard
        write_json(self._record(number), {"photos": shard.count, "failed": shard.failed})

    def _record(self, number: int) -> Path:
        return self.folder / f"views-{number:05d}.json"


class Shard:
    """A shard that is being written.

    Attributes:
        count: photos so far, those that failed among them.
        failed: number, name and reason of each of these.
    """

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar, self.count, self.failed = tar, 0, list[dict[str, Any]]()

    def add(self, number: int, record: Mapping[str, Any], files: Sequence[tuple[str, bytes]]) -> None:
        """Add what was made of a photo: a record, and files by their endings."""
        self.count += 1
        content = json.dumps(record, ensure_ascii=False).encode()
        add_sample(self._tar, number, [("json", content), *files])

    def add_failure(self, number: int, name: str, reason: str) -> None:
        """Note a photo of which nothing could be made."""
        self.count += 1
        self.failed.append({"number": number, "photo": name, "reason": reason})


def finish(folder: str | Path) -> int:
    """Once all shards of a folder are done, write `failed.jsonl` and say how it went.

    Returns:
        The exit status: 1 where a photo failed, else 0.
    """
    for left in Path(folder).glob(".views-*.part"):  # by a process that was killed as it gave a file its name
        shutil.rmtree(left)
    records = [read_json(path) for path in sorted(Path(folder).glob("views-*.json"))]
    failed = [failure for record in records for failure in record["failed"]]
    write_whole(Path(folder) / FAILED, "".join(json.dumps(failure) + "\n" for failure in failed))
    total = sum(record["photos"] for record in records)
    where = f"; {len(failed)} failed, see {FAILED}" if failed else ""
    print(f"{as_line(folder)}: views of {total - len(failed)} photos in {len(records)} shards{where}")
    return 1 if failed else 0
