"""What derived data was made of: the one way in which caches, prepared images and results know their sources again.

Small files count by their content (`file_hash`). Of many or large ones, reading which would take as long as making
everything anew, size and modification time count (`fingerprint`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nvb_diffusers.files import read_json, write_whole


def file_hash(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(paths: Iterable[str | Path], *facts: Any) -> str:
    """A text that is equal for equal facts and files that are as they were, also in another folder.

    Args:
        paths: files in their order, which count by size and modification time.
        facts: JSON values, for instance the names by which the files are known.

    Raises:
        ValueError: a file is missing.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in paths:
        try:
            status = Path(path).stat()
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from None
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def drop_outdated(folder: str | Path, note: str, index: str, made_of: Mapping[str, str]) -> None:
    """Remove files of a folder that were made of something else, and note what they are made of from now on.

    Args:
        folder: where the files are, or will be.
        note: a JSON file there with what an earlier call was given.
        index: the file there that is written last and lists the others; it goes first, until they are whole again.
        made_of: the fingerprint of what each file is made of, by the file's name in the folder.
    """
    folder, path = Path(folder), Path(folder) / note
    before = read_json(path) if path.is_file() else {}
    if before == made_of:
        return
    (folder / index).unlink(missing_ok=True)
    for name, sources in made_of.items():
        if before.get(name) != sources:
            (folder / name).unlink(missing_ok=True)
    write_whole(path, json.dumps(made_of, indent=0))
