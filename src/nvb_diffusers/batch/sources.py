"""Photos from a folder, from a data set of Hugging Face or from tar or parquet files, in blocks, not decoded yet.

Every photo has a number, its place in the source. A block is a number of photos in a row, so that what is in a block
depends on the source alone and not on who reads it.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from nvb_diffusers.data.fingerprint import fingerprint
from nvb_diffusers.data.images import left_out_note, list_photos
from nvb_diffusers.files import as_line, one_line

ARCHIVES = {".tar": "webdataset", ".parquet": "parquet"}  # and which builder of `datasets` reads them


class PhotoFile(NamedTuple):
    """A photo as it is stored.

    Args:
        number: its place in the source, from 0.
        name: what people call it.
        file: a path, or the bytes of a file; None where the source has none for it.
    """

    number: int
    name: str
    file: Path | BytesIO | None


class Block(NamedTuple):
    """Photos in a row: those numbered from `number` times the size of a block on."""

    number: int
    photos: list[PhotoFile]


class FolderPhotos:
    """The photos of a folder, by name.

    Args:
        folder: its files that are photos by their endings.

    Attributes:
        count: how many there are.
        made_of: another text where another photo, or another number of them, is there.
    """

    def __init__(self, folder: Path) -> None:
        self.paths = list_photos(folder)
        there = [path for path in self.paths if path.exists()]  # a link that leads nowhere fails in its turn
        self.made_of = fingerprint(there, [path.name for path in self.paths])
        self.count: int | None = len(self.paths)

    def blocks(self, size: int, wanted: Callable[[int], bool]) -> Iterator[Block]:
        """The blocks of so many photos whose numbers are wanted."""
        for number in range(-(-len(self.paths) // size)):
            if wanted(number):
                first = number * size
                paths = self.paths[first : first + size]
                yield Block(number, [PhotoFile(first + i, as_line(path.name), path) for i, path in enumerate(paths)])


class StreamedPhotos:
    """The photos of a data set of Hugging Face, which is read from its beginning and need not fit on the disk.

    Args:
        records: an iterable data set with a column of images.
        column: of the images; None for the first one.
        made_of: another text where the data set is another, as far as can be told.

    Attributes:
        count: None, as nobody knows before the end.

    Raises:
        ValueError: it has no such column.
    """

    count: int | None = None

    def __init__(self, records: Any, column: str | None, made_of: str) -> None:
        import datasets

        self.made_of = made_of

        features = records.features or records._resolve_features().features
        images = [name for kind in range(3) for name, feature in features.items() if _kind(feature) == kind]
        if column is None and not images:
            raise ValueError(f"the data set has no column of images: it has {', '.join(features)}")
        if column is not None and column not in images:
            raise ValueError(f"{column!r} is no column of images; there are: {', '.join(images) or 'none'}")
        self.column = column or images[0]
        self.records = records.cast_column(self.column, datasets.Image(decode=False))

    def blocks(self, size: int, wanted: Callable[[int], bool]) -> Iterator[Block]:
        """The blocks of so many photos whose numbers are wanted; the others are read past.

        Raises:
            OSError: the data set cannot be read on.
        """
        records, number = iter(self.records), 0
        while True:
            try:
                rows = list(islice(records, size))
            except Exception as error:  # of whichever protocol and format
                raise OSError(f"cannot read the data set after photo {number * size}: {one_line(error)}") from error
            if not rows:
                return
            if wanted(number):
                yield Block(number, [self._photo(number * size + i, row) for i, row in enumerate(rows)])
            number += 1

    def _photo(self, number: int, row: dict[str, Any]) -> PhotoFile:
        image = row[self.column] or {}
        name = row.get("__key__") or image.get("path") or f"photo {number}"
        content, path = image.get("bytes"), image.get("path")
        if content is not None:
            return PhotoFile(number, str(name), BytesIO(content))
        return PhotoFile(number, str(name), Path(path) if path else None)


Photos = FolderPhotos | StreamedPhotos


def open_photos(source: str, split: str = "train", column: str | None = None) -> Photos:
    """Photos by whatever name people give.

    Args:
        source: a folder of photos, or of .tar files in the layout of webdataset, or of .parquet files; one such file;
            or the id of a data set on the Hub, which is streamed.
        split: of a data set on the Hub.
        column: of the images in a data set; None for its first one.

    Raises:
        ValueError: there is no such source, it holds no photos, or no data set can be made of it.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in ARCHIVES and not file.name.startswith("."))
        note = left_out_note(path.iterdir(), is_taken=files.__contains__) if files else ""
        if note:
            print(f"note: '{as_line(path)}': {note}", file=sys.stderr)
        return _of_files(files, column) if files else FolderPhotos(path)
    if path.is_file():
        if path.suffix not in ARCHIVES:
            raise ValueError(f"'{source}' is one file: give a folder of photos, a .tar or a .parquet file")
        return _of_files([path], column)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise ValueError(f"there is no folder or file '{source}', and it is no id of a data set such as user/faces")
    return StreamedPhotos(_stream(source, split=split), column, source)


def _kind(feature: Any) -> int | None:
    """How surely a column is one of images: 0 as declared, 1 as files with paths, 2 as any bytes; None if it is not."""
    import datasets

    if isinstance(feature, datasets.Image):
        return 0
    if isinstance(feature, dict):
        return 1 if "bytes" in feature else None
    return 2 if getattr(feature, "dtype", None) in ("binary", "large_binary") else None


def _of_files(files: Sequence[Path], column: str | None) -> StreamedPhotos:
    endings = {file.suffix for file in files}
    if len(endings) > 1:
        raise ValueError(f"'{files[0].parent}' holds {' and '.join(sorted(endings))} files: give a folder of one kind")
    records = _stream(ARCHIVES[files[0].suffix], data_files=[str(file) for file in files], split="train")
    return StreamedPhotos(records, column, fingerprint(files, [file.name for file in files]))


def _stream(*args: Any, **kwargs: Any) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError("data sets need datasets: pip install datasets") from None
    try:
        return datasets.load_dataset(*args, streaming=True, **kwargs)
    except Exception as error:  # of whichever protocol and format
        raise ValueError(f"cannot open the data set {args[0]!r}: {one_line(error)}") from error
