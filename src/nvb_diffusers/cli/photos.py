"""Photos in, files out: each photo of a folder is done whole or not at all, and one that fails costs one line.

No photo is ever written over, and no two photos of a folder share a result.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from imageio_ffmpeg import count_frames_and_secs

from nvb_diffusers.files import as_line, one_line, write_whole

FAILED = "failed.jsonl"  # which photos of a folder could not be done, in the folder of what was made of the others


def name_outputs(photos: Sequence[Path], path_of: Callable[[str], Path]) -> list[Path]:
    """An output path of its own for each photo: by its stem, or by its whole name where another result has that.

    Names that differ in capitals alone count as shared: not every disk tells them apart.
    """
    names, before = [photo.stem for photo in photos], None
    while names != before:  # a.jpg.png gives way to a.jpg, which gave way to a.png
        before, uses = names, Counter([FAILED, *(name.casefold() for name in names)])
        names = [photo.name if uses[name.casefold()] > 1 else name for photo, name in zip(photos, names, strict=True)]
    return [path_of(name) for name in names]


class Failure(NamedTuple):
    """A photo that could not be done, and why."""

    photo: Path
    reason: str


def for_each(photos: Sequence[Path], make: Callable[[int], None]) -> list[Failure]:
    """Do all photos; where some of several cannot be done, the others are, and each that fails costs one line."""
    failed = []
    for index, photo in enumerate(photos):
        try:
            make(index)
        except (ValueError, OSError) as error:
            if len(photos) == 1:
                raise
            failed.append(Failure(photo, one_line(error)))
            complain(error, photo)
    return failed


def tell_failures(failed: Sequence[Failure], count: int, folder: Path) -> int:
    """List in a folder which of so many photos failed, where any did; the exit status is then 1, else 0."""
    path = folder / FAILED
    if not failed:
        path.unlink(missing_ok=True)  # of an earlier call
        return 0
    lines = [json.dumps({"photo": as_line(failure.photo.name), "reason": failure.reason}) + "\n" for failure in failed]
    write_whole(path, "".join(lines))
    complain(ValueError(f"{len(failed)} of {count} photos could not be done: {path}"))
    return 1


def check_folder(folder: Path, photos: Path | None = None) -> None:
    """Raise a ValueError where `--out` cannot be a folder, or is the one whose photos must stay as they are."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "cannot be written to" if existing.is_dir() else "is a file"
        raise ValueError(f"'{existing}' {what}, but --out is a folder to write to")
    if photos is not None and photos.is_dir() and folder.exists() and folder.samefile(photos):
        raise ValueError(f"--out '{folder}' is the photos' own folder: give another one, so that none is written over")


def keep_photos(photos: Sequence[Path], outputs: Iterable[Path]) -> None:
    """Raise a ValueError where a file that is written or removed is a photo, by whatever path."""
    there = [photo.stat() for photo in photos if photo.exists()]  # a link may lead nowhere
    known = {(status.st_dev, status.st_ino) for status in there}
    for output in outputs:
        if output.exists() and (output.stat().st_dev, output.stat().st_ino) in known:
            raise ValueError(f"'{output}' is the photo itself: choose another output, so that it is not written over")


def count_frames(video: Path) -> int:
    """How many frames can be read of a video."""
    try:
        return count_frames_and_secs(str(video))[0]
    except RuntimeError:  # what there is of it is no video
        return 0


def complain(error: BaseException, photo: Path | None = None) -> None:
    """One line on standard error, that names the photo where there are several."""
    about = "" if photo is None else f"{as_line(photo.name)}: "
    print(f"nvb-face: {about}{one_line(error)}", file=sys.stderr)
