"""Files and folders that are written whole or not at all; every file that the package writes goes through here.

A target is written under a hidden name beside it, `.<name>.part/<name>`, flushed to the disk and then renamed. An error
leaves what was there before, and nothing else. A run that is killed can leave the hidden folder, which the next write
of the same target clears. Two writers of one target take turns, by a lock that ends with its process; the last stays.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

if sys.platform != "win32":
    import fcntl

_HELD: set[int] = set()  # descriptors of folders that this process alone writes to
MAX_NAME_BYTES = 240  # of a file's name: what disks take, 255, leaves room for the dot and the suffix beside it
MAX_IDENTIFIER_BYTES = 200  # of a name that suffixes are added to, and others before it


@contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """Yield the path to write a file to, which takes its place at the end of the block.

    Args:
        path: the file to make or to replace; folders that are missing above it are made.

    Raises:
        OSError: the file could not be written or renamed.
    """
    target = _absolute(path)
    with _hidden_folder(target) as hidden:
        yield hidden / target.name
        _flush(hidden)
        os.replace(hidden / target.name, target)


@contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which takes its place at the end of the block.

    Args:
        path: the folder to make or to replace with all that it holds.

    Raises:
        OSError: the folder could not be written or renamed.
    """
    target = _absolute(path)
    with _hidden_folder(target) as hidden:
        part = hidden_path(target)
        part.mkdir()
        yield part
        _flush(hidden)
        if target.is_dir():
            os.replace(target, _previous(target))  # a folder that is not empty cannot be renamed over
        try:
            os.replace(part, target)
        finally:
            _put_back(target)


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Keep other processes from writing to a folder for the length of the block; a process that died keeps nobody.

    Args:
        folder: made where it is missing, and taken away again where nothing was written to it.

    Raises:
        ValueError: another process holds it.
    """
    target = _absolute(folder)
    if target.exists() and not target.is_dir():
        raise ValueError(f"'{folder}' is a file, expected a folder to write to")
    missing = [path for path in (target, *target.parents) if not path.exists()]  # the innermost first
    target.mkdir(parents=True, exist_ok=True)
    descriptor = None
    try:
        if sys.platform != "win32":
            descriptor = os.open(target, os.O_RDONLY)
            _HELD.add(descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{folder} is being written to by another process: wait, or choose another") from None
            except OSError:  # some network file systems have no locks
                pass
        yield
    finally:
        if descriptor is not None and descriptor in _HELD:
            _HELD.remove(descriptor)
            os.close(descriptor)
        _remove_empty(missing)


def check_replaceable(folder: str | Path, known_by: str) -> None:
    """Look whether a folder may be replaced with all that it holds: only one that is empty, or what it will be again.

    Args:
        folder: it need not exist.
        known_by: a file that only folders of this kind hold.

    Raises:
        ValueError: it is something else.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"'{folder}' is a file, expected a folder to write")
    if path.exists() and any(path.iterdir()) and not (path / known_by).is_file():
        raise ValueError(f"'{folder}' holds other things, without a {known_by}: it is not written over, choose another")


@contextmanager
def filled_folder(path: str | Path, record: str | None = None, stale: Iterable[str] = ()) -> Iterator[Path]:
    """Yield an empty folder to put files in, which all move to `path` at the end; others there stay.

    Args:
        path: the folder to add the files to, replacing those of the same names.
        record: the one of them that tells of the others. The old one goes before they come and the new one comes last,
            so that none ever tells of files that are not there yet.
        stale: files that the old record told of, which go with it unless they are written again.

    Raises:
        OSError: the files could not be written or moved.
    """
    target = _absolute(path)
    with _hidden_folder(target / target.name) as hidden:
        yield hidden
        _flush(hidden)
        if record is not None:
            (target / record).unlink(missing_ok=True)
        for name in stale:
            (target / name).unlink(missing_ok=True)
        for file in sorted(hidden.iterdir(), key=lambda file: (file.name == record, file.name)):
            os.replace(file, target / file.name)


def hidden_path(path: str | Path) -> Path:
    """Where `replaced_file` and `replaced_folder` write a target, for other processes that help to fill it."""
    target = _absolute(path)
    return target.with_name(f".{_short(target.name)}.part") / target.name


def path_inside(folder: str | Path, name: object, what: str = "name") -> Path:
    """The path of a name that stands in a file, which must be a relative one that stays inside of the folder.

    Raises:
        ValueError: it is no text, is absolute or climbs out, or no disk can hold it; `what` says what it is.
    """
    if not isinstance(name, str) or not _is_writable(name) or "\\" in name:
        raise ValueError(f"{what} is {name!r}, expected a relative path with forward slashes")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
        raise ValueError(f"{what} {name!r} leaves its folder, expected a relative path inside of it")
    return Path(folder) / name


def check_name(name: object, what: str = "name") -> str:
    """A text from a file, which must do as the name of a file or a folder on its own, whatever stands around it.

    Raises:
        ValueError: it cannot; `what` says what it is in the file.
    """
    if isinstance(name, str) and _is_writable(name) and not re.search(r"[/\\]|^\.", name):
        if len(name.encode()) <= MAX_IDENTIFIER_BYTES:
            return name
        name = f"{name[:20]}..."
    raise ValueError(
        f"{what} is {name!r}, which cannot name a file: expected a text without slashes, without a point at its start "
        f"and of at most {MAX_IDENTIFIER_BYTES} bytes"
    )


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write a file of these bytes, or of this text in UTF-8."""
    with replaced_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file for people to read, too: indented, with a newline at its end."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is missing or broken; it is named, in one line.
    """
    if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
        raise ValueError(f"cannot read {path}: it is no file")
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """An error's text in one line; of an error in a data loading worker only the last, without the traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "in DataLoader worker process" in lines[0]:
        return re.sub(r"^[\w.]+: ", "", lines[-1])
    return " ".join(lines) or type(error).__name__


def as_line(path: str | Path) -> str:
    """A path or a name as a line of text, whatever bytes it has on the disk."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _absolute(path: str | Path) -> Path:
    """The path with a name of its own, which `.` has not."""
    return Path(os.path.abspath(path))


def _is_writable(name: str) -> bool:
    """Whether a text has no control characters, and can be written as UTF-8."""
    try:
        return bool(name.encode()) and re.search(r"[\x00-\x1f\x7f]", name) is None
    except UnicodeEncodeError:
        return False


def _short(name: str) -> str:
    """The name, or a hash of it where it leaves no room for what is added to it."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= MAX_NAME_BYTES else hashlib.sha256(encoded).hexdigest()


def _previous(target: Path) -> Path:
    """Where the folder that is replaced waits for the moment between two renames."""
    hidden = hidden_path(target)
    return hidden.with_name(f"{_short(hidden.name)}.old")


def _put_back(target: Path) -> None:
    """Give the previous folder its name back where none took its place."""
    if _previous(target).exists() and not target.exists():
        os.replace(_previous(target), target)


@contextmanager
def _hidden_folder(target: Path) -> Iterator[Path]:
    """The empty folder in which `target` is written, this writer's own; it goes at the end."""
    hidden = hidden_path(target).parent
    missing = [folder for folder in hidden.parents if not folder.exists()]  # the innermost first
    lock = _lock(hidden)
    try:
        _put_back(target)  # of a run that was killed between two renames
        for left in hidden.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        _remove_empty(missing)  # they hold the target, unless there was an error


def _lock(folder: Path) -> int | None:
    """Make the folder and wait until it is ours; the descriptor that holds the lock, where there are locks."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # a folder that went before pathlib had looked at it, or a file, which stays
            if folder.is_file():
                raise
            continue
        if sys.platform == "win32":
            return None
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another writer was done with it just now
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)  # the folder we waited for went with the writer before us


def _let_go() -> None:
    """Close what the parent of a forked process holds: the process may outlive it."""
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _remove_empty(folders: list[Path]) -> None:
    """Take away those of nested folders, the innermost first, that hold nothing."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _flush(folder: Path) -> None:
    """Have the files on the disk itself before they get their names: the machine may lose its power, too."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
