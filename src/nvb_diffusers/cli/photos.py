"""Photos in, files out: each photo of a folder is done whole or not at all, and one that fails costs one line."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nvb_diffusers.files import one_line


def name_outputs(photos: Sequence[Path], path_of: Callable[[str], Path]) -> list[Path]:
    """An output path for each photo, by its stem, or by its whole name where photos share a stem."""
    stems = [photo.stem for photo in photos]
    return [path_of(photo.stem if stems.count(photo.stem) == 1 else photo.name) for photo in photos]


def for_each(photos: Sequence[Path], make: Callable[[int], None]) -> None:
    """Do all photos; where some of a folder cannot be done, the others are, and the last line says how many."""
    failed = 0
    for index, photo in enumerate(photos):
        try:
            make(index)
        except ValueError as error:
            if len(photos) == 1:
                raise
            failed += 1
            complain(error, photo)
    if failed:
        raise ValueError(f"{failed} of {len(photos)} photos could not be done")


def check_folder(folder: Path) -> None:
    """Raise a ValueError where `--out` cannot be a folder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file, but --out is a folder to write to")


def complain(error: Exception, photo: Path | None = None) -> None:
    """One line on standard error, that names the photo where there are several."""
    print("nvb-face:", one_line(error) if photo is None else f"{photo.name}: {one_line(error)}", file=sys.stderr)
