"""Files and folders are written whole or not at all: after errors, kills, full disks and beside other writers."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nvb_diffusers import files
from nvb_diffusers.files import (
    check_name,
    filled_folder,
    hidden_path,
    one_line,
    path_inside,
    read_json,
    replaced_file,
    replaced_folder,
    write_json,
    write_whole,
)

WRITE = {
    "file": "with files.replaced_file(path) as part:\n    part.write_text('new')\n    stop()",
    "folder": "with files.replaced_folder(path) as part:\n    (part / 'a').write_text('new')\n    stop()",
    "files": "with files.filled_folder(path) as part:\n    (part / 'a').write_text('new')\n    stop()",
}
WRITERS = {"file": replaced_file, "folder": replaced_folder, "files": filled_folder}


@contextmanager
def other_process(path: Path, kind: str, seconds: float) -> Iterator[subprocess.Popen]:
    """A process that writes half of a target, says so, sleeps and writes the rest; it needs the standard library."""
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import files
path = Path(sys.argv[2])
def stop():
    print("half", flush=True)
    time.sleep({seconds})
{WRITE[kind]}
"""
    command = [sys.executable, "-I", "-c", code, str(Path(files.__file__).parent), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        yield process


def make_target(path: Path, kind: str) -> None:
    """The target as an earlier write left it."""
    if kind == "file":
        path.write_text("old")
    else:
        path.mkdir()
        (path / "a").write_text("old")
        (path / "b").write_text("old")


def contents(folder: Path) -> dict[str, str]:
    """Every file below the folder, hidden ones too, with its text; empty folders as None."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def write(path: Path, kind: str, error: BaseException | None = None) -> None:
    with WRITERS[kind](path) as part:
        (part if kind == "file" else part / "a").write_text("new")
        if error is not None:
            raise error


OLD = {
    "file": {"out": "old"},
    "folder": {"out/a": "old", "out/b": "old"},
    "files": {"out/a": "old", "out/b": "old"},
}
NEW = {"file": {"out": "new"}, "folder": {"out/a": "new"}, "files": {"out/a": "new", "out/b": "old"}}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_target_is_replaced_at_the_end_alone(tmp_path, kind):
    """Assert that until the block ends the target holds the old content, then the new one, and nothing else is left."""
    make_target(tmp_path / "out", kind)
    with WRITERS[kind](tmp_path / "out") as part:
        (part if kind == "file" else part / "a").write_text("new")
        seen = {name: text for name, text in contents(tmp_path).items() if ".out.part" not in name}
        assert seen == OLD[kind]
    assert contents(tmp_path) == NEW[kind]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [True, False])
def test_an_error_leaves_what_was_there(tmp_path, kind, error, exists):
    """Assert that after an error the old target is whole, and that no file and no empty folder is left beside it."""
    path = tmp_path / "out" if exists else tmp_path / "deep" / "er" / "out"
    if exists:
        make_target(path, kind)
    with pytest.raises(type(error)):
        write(path, kind, error)
    assert contents(tmp_path) == (OLD[kind] if exists else {})


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_of_the_renaming_leaves_what_was_there(tmp_path, monkeypatch, kind):
    """Assert that a failing last rename keeps the old target, even a folder that had to make room for the new one."""
    make_target(tmp_path / "out", kind)
    rename = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(source) == hidden_path(tmp_path / "out"):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "out", kind)
    assert contents(tmp_path) == OLD[kind]


def test_a_flush_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    """Assert that a disk which is full only when it is flushed does not cost the old file."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "out", "new")
    assert contents(tmp_path) == {"out": "old"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_disk_is_an_oserror(tmp_path):
    """Assert that the operating system's own error for a full disk comes out, and that the old file stays."""

    def fill_the_disk() -> None:
        with replaced_file(tmp_path / "out") as part:
            part.symlink_to("/dev/full")
            part.write_text("new")

    (tmp_path / "out").write_text("old")
    with pytest.raises(OSError, match="No space"):
        fill_the_disk()
    assert contents(tmp_path) == {"out": "old"}


@pytest.mark.skipif(sys.platform == "win32", reason="locks need fcntl")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_killed_process_leaves_the_target_and_the_next_write_clears_up(tmp_path, kind):
    """Assert that a process killed in the middle leaves the old target, and the next write nothing but the new one."""
    make_target(tmp_path / "out", kind)
    with other_process(tmp_path / "out", kind, seconds=60) as process:
        process.send_signal(signal.SIGKILL)
    visible = {name: text for name, text in contents(tmp_path).items() if ".out.part" not in name}
    assert visible == OLD[kind]
    assert visible != contents(tmp_path)  # the killed process was in the middle
    write(tmp_path / "out", kind)
    assert contents(tmp_path) == NEW[kind]


def test_a_folder_moved_out_of_the_way_by_a_killed_run_comes_back(tmp_path):
    """Assert that a run killed between its two renames costs nothing: the next write, even one that fails, mends it."""
    make_target(tmp_path / "out", "folder")
    hidden = hidden_path(tmp_path / "out")
    hidden.mkdir(parents=True)
    os.replace(tmp_path / "out", hidden.with_name("out.old"))
    with pytest.raises(KeyError), replaced_folder(tmp_path / "out"):
        raise KeyError
    assert contents(tmp_path) == OLD["folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="locks need fcntl")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_second_process_waits_for_the_first(tmp_path, kind):
    """Assert that a writer who comes in the middle of another's write spoils neither and is the last to stay."""
    file = tmp_path / ("out" if kind == "file" else "out/a")
    with other_process(tmp_path / "out", kind, seconds=0.3) as process:
        assert not file.exists()
        with WRITERS[kind](tmp_path / "out") as part:
            assert file.read_text() == "new"  # the first one is done before we begin
            (part if kind == "file" else part / "a").write_text("newest")
    assert process.returncode == 0
    assert contents(tmp_path) == {"out" if kind == "file" else "out/a": "newest"}


@pytest.fixture
def quick_switches():
    """Let threads take turns at nearly every step, so that no order of theirs is rare."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def test_threads_write_one_file_whole(tmp_path, quick_switches):
    """Assert that of many threads that write one file at once, one's content stays, whole, and no other file."""
    texts = [str(number) * 20_000 for number in range(8)]
    errors: list[BaseException] = []

    def work(text: str) -> None:
        try:
            for _ in range(25):
                write_whole(tmp_path / "new" / "out", text)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    assert (tmp_path / "new" / "out").read_text() in texts


def test_the_path_to_write_to_keeps_the_suffix(tmp_path):
    """Assert that writers which go by the suffix, as Pillow and numpy do, see the target's own."""
    with replaced_file(tmp_path / "a.tar.gz") as part:
        assert part == hidden_path(tmp_path / "a.tar.gz")
        assert part.name == "a.tar.gz"
        part.write_bytes(b"")


def test_files_may_be_added_to_the_current_folder(tmp_path, monkeypatch):
    """Assert that `.`, a path without a name, is filled in place."""
    monkeypatch.chdir(tmp_path)
    with filled_folder(".") as part:
        (part / "a").write_text("new")
    assert contents(tmp_path) == {"a": "new"}


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    """Assert that neither a file becomes a folder nor a folder a file without anyone having asked for it."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file", "folder")
    with pytest.raises(OSError, match="folder"):
        write(tmp_path / "folder", "file")
    assert contents(tmp_path) == {"file": "old", "folder": ""}


def test_text_is_utf8_and_json_comes_back(tmp_path):
    """Assert the bytes of text and the round trip of JSON."""
    write_whole(tmp_path / "text", "Zoë\n")
    assert (tmp_path / "text").read_bytes() == b"Zo\xc3\xab\n"
    write_json(tmp_path / "json", {"a": [1.5, None, "ë"]})
    assert read_json(tmp_path / "json") == {"a": [1.5, None, "ë"]}
    assert (tmp_path / "json").read_text().endswith("}\n")


@pytest.mark.parametrize("content", [b"", b"{", b"[1,\n2", b"\xff\xfe\x00", b"[" * 100_000])
def test_broken_json_is_named_in_one_line(tmp_path, content):
    """Assert that a broken file is a ValueError of one line that holds its path."""
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not JSON") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_missing_json_is_named(tmp_path):
    """Assert that a file that is not there, or is a folder, is a ValueError with its path and the reason."""
    with pytest.raises(ValueError, match=r"cannot read .*a\.json: No such file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"cannot read .*: it is no file"):
        read_json(tmp_path)


def test_one_line():
    """Assert that errors of several lines, of none and of a data loading worker become one line."""
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    trace = "Caught ValueError in DataLoader worker process 0.\nTraceback ...\nValueError: picture x is broken"
    assert one_line(ValueError(trace)) == "picture x is broken"


OUTSIDE = ["../x", "a/../../x", "/etc/passwd", "C:/x", "..", "a\\b", "..\\x", "", "a\0b", "a\nb", "\udcff", 7, None]


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_names_in_files_stay_inside(name):
    """Assert that no name leads out of the folder that it is relative to, and that the line says what it is."""
    with pytest.raises(ValueError, match=r"^image (is|'.*' leaves)") as refusal:
        path_inside("folder", name, "image")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [*OUTSIDE, ".", ".hidden", "a/b", "/a", "x" * 201, "é" * 101], ids=repr)
def test_identifiers_name_one_file(name):
    """Assert that what stands for a file's name has no path in it, is not hidden and fits with a suffix."""
    if name == "C:/x":
        name = "C:/"
    with pytest.raises(ValueError, match=r"^identity is .*which cannot name a file: .* at most 200 bytes$"):
        check_name(name, "identity")


@pytest.mark.parametrize(
    "name", ["017_EMO-1-shout+laugh_00012", "a b#c&d", "x..y", "née", "x" * 200, "000007", "~", "-"]
)
def test_names_of_the_world_are_taken(name):
    """Assert that spaces, signs and other alphabets are fine, on their own and in a path."""
    assert check_name(name) == name
    assert path_inside("folder", f"{name}/00.png") == Path("folder") / name / "00.png"


def test_a_record_comes_last(tmp_path, monkeypatch):
    """Assert that at no moment a record stands beside files of which it does not tell."""
    with filled_folder(tmp_path / "views", "a.json") as stage:
        for name in ("a.json", "b", "c"):
            (stage / name).write_text("old")
    seen, real = [], os.replace

    def replace(source, target):
        seen.append({path.name: path.read_text() for path in (tmp_path / "views").iterdir() if path.is_file()})
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with filled_folder(tmp_path / "views", "a.json", ["b", "c"]) as stage:
        for name in ("a.json", "b"):
            (stage / name).write_text("new")
    assert seen == [{}, {"b": "new"}]
    assert {path.name: path.read_text() for path in (tmp_path / "views").iterdir()} == {"a.json": "new", "b": "new"}


def test_only_what_it_was_is_replaced(tmp_path):
    """Assert that a folder of other things and a file may not be replaced, and nothing and the same kind may."""
    folder = tmp_path / "results"
    files.check_replaceable(folder, "known")
    folder.mkdir()
    files.check_replaceable(folder, "known")
    (folder / "letter").touch()
    with pytest.raises(ValueError, match="holds other things, without a known"):
        files.check_replaceable(folder, "known")
    (folder / "known").touch()
    files.check_replaceable(folder, "known")
    with pytest.raises(ValueError, match="is a file"):
        files.check_replaceable(folder / "known", "known")
