"""Photos in, files out: each photo of a folder is done whole or not at all, and one that fails costs one line.

No photo is ever written over, and no two photos of a folder share a result.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from imageio_ffmpeg import count_frames_and_secs

from nvb_diffusers.files import one_line


def name_outputs(photos: Sequence[Path], path_of: Callable[[str], Path]) -> list[Path]:
    """An output path of its own for each photo: by its stem, or by its whole name where photos share a stem.

    Names that differ in capitals alone count as shared: not every disk tells them apart.
    """
    names, before = [photo.stem for photo in photos], None
    while names != before:  # a.jpg.png gives way to a.jpg, which gave way to a.png
        before, uses = names, Counter(name.casefold() for name in names)
        names = [photo.name if uses[name.casefold()] > 1 else name for photo, name in zip(photos, names, strict=True)]
    return [path_of(name) for name in names]


def for_each(photos: Sequence[Path], make: Callable[[int], None]) -> None:
    """Do all photos; where some of a folder cannot be done, the others are, and the last line says how many."""
    failed = 0
    for index, photo in enumerate(photos):
        try:
            make(index)
        except (ValueError, OSError) as error:
            if len(photos) == 1:
                raise
            failed += 1
            complain(error, photo)
    if failed:
        raise ValueError(f"{failed} of {len(photos)} photos could not be done")


def check_folder(folder: Path, photos: Path | None = None) -> None:
    """Raise a ValueError where `--out` cannot be a folder, or is the one whose photos must stay as they are."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "cannot be written to" if existing.is_dir() else "is a file"
        raise ValueError(f"'{existing}' {what}, but --out is a folder to write to")
    if photos is not None and photos.is_dir() and folder.exists() and folder.samefile(photos):
        raise ValueError(f"--out '{folder}' is the photos' own folder: give another one, so that none is written over")


def keep_photos(photos: Sequence[Path], outputs: Iterable[Path]) -> None:
    """Raise a ValueError where an output would take the place of a photo, by whatever path."""
    known = {(photo.stat().st_dev, photo.stat().st_ino) for photo in photos}
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
    print("nvb-face:", one_line(error) if photo is None else f"{photo.name}: {one_line(error)}", file=sys.stderr)
