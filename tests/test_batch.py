"""Many photos in one go: from any source, in shards, by any number of processes, through kills and bad photos."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from functools import partial

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import ROOT, group_ends, load_script, tiny_pipeline
from PIL import Image

from nvb_diffusers.batch import BatchSettings, finish, make_views, open_photos
from nvb_diffusers.batch.run import _one_ahead
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.provenance import mark_image

COUNT, BAD = 11, {2: b"no picture", 7: b""}
SETTINGS = BatchSettings(num_views=2, aligned=True, num_inference_steps=1, batch_size=2, shard_size=3)
SCRIPT = ROOT / "examples/batch_views.py"
QUIET = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
QUIET["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])


def photo_bytes(number):
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return BAD.get(number, file.getvalue())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same photos, two of which are none, as a folder, as two tars and as parquet; and a tiny pipeline's folder."""
    folder = tmp_path_factory.mktemp("batch")
    for name in ("photos", "tars", "parquet"):
        (folder / name).mkdir()
    for number in range(COUNT):
        (folder / f"photos/p{number:02d}.png").write_bytes(photo_bytes(number))
    for part, numbers in enumerate((range(5), range(5, COUNT))):
        with tarfile.open(folder / f"tars/{part}.tar", "w") as tar:
            for number in numbers:
                member = tarfile.TarInfo(f"p{number:02d}.png")
                member.size = len(photo_bytes(number))
                tar.addfile(member, io.BytesIO(photo_bytes(number)))
    rows = {"face": [{"bytes": photo_bytes(n), "path": f"p{n:02d}.png"} for n in range(COUNT)]}
    features = datasets.Features({"face": datasets.Image(decode=False)})
    table = datasets.Dataset.from_dict(rows, features=features)
    table.cast_column("face", datasets.Image()).to_parquet(folder / "parquet/all.parquet")
    tiny_pipeline(appearance=True).save_pretrained(folder / "pipeline")
    return folder


def every_block(photos, size=4):
    return [
        (photo.number, photo.file.read_bytes() if hasattr(photo.file, "read_bytes") else photo.file.getvalue())
        for block in photos.blocks(size, lambda number: True)
        for photo in block.photos
    ]


@pytest.mark.parametrize("source", ["photos", "tars", "parquet", "tars/0.tar", "parquet/all.parquet"])
def test_photos_come_in_order_from_any_source(place, source):
    """Assert every photo's number and bytes, and that blocks hold those that are wanted alone."""
    expected = [(number, photo_bytes(number)) for number in range(5 if source == "tars/0.tar" else COUNT)]
    photos = open_photos(str(place / source))
    assert every_block(photos) == expected
    (block,) = photos.blocks(4, lambda number: number == 1)
    assert [photo.number for photo in block.photos] == [n for n, _ in expected][4:8]
    assert photos.count == (COUNT if source == "photos" else None)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def members(folder):
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image).astype(int)


def test_shards_hold_what_the_pipeline_makes_of_each_photo(place, tmp_path, capsys):
    """Assert views with marks, evidence and cameras of nine photos, within a level, and the two others by reason."""
    pipe = tiny_pipeline(appearance=True)
    pipe.set_progress_bar_config(disable=True)
    make_views(pipe, open_photos(str(place / "photos")), tmp_path / "out", SETTINGS, {})
    assert finish(tmp_path / "out") == 1
    assert capsys.readouterr().out.endswith("views of 9 photos in 4 shards; 2 failed, see failed.jsonl\n")
    failed = [json.loads(line) for line in (tmp_path / "out/failed.jsonl").read_text().splitlines()]
    assert [(failure["number"], failure["photo"]) for failure in failed] == [(2, "p02.png"), (7, "p07.png")]
    assert all("cannot read" in failure["reason"] for failure in failed)
    make_views(pipe, open_photos(str(place / "tars")), tmp_path / "of tars", SETTINGS, {})
    finish(tmp_path / "of tars")
    again = [json.loads(line) for line in (tmp_path / "of tars/failed.jsonl").read_text().splitlines()]
    assert again[0]["reason"] == "cannot read image 'p02': Pillow cannot decode it (cannot identify image file)"
    found, cameras = members(tmp_path / "out"), orbit_cameras(2, (-45.0, 45.0))
    assert len(found) == 9 * 5
    for number in set(range(COUNT)) - set(BAD):
        generator = torch.Generator().manual_seed(0)
        out = pipe(place / f"photos/p{number:02d}.png", cameras=cameras, num_inference_steps=1, generator=generator)
        record = json.loads(found[f"{number:08d}.json"])
        assert record["photo"] == f"p{number:02d}.png"
        torch.testing.assert_close(torch.tensor(record["cameras"]), cameras)
        torch.testing.assert_close(torch.tensor(record["source_camera"]), out.source_cameras[0], atol=1e-4, rtol=0)
        for index, view in enumerate(out.images):
            made = pixels(found[f"{number:08d}.view_{index:02d}.png"])
            assert (np.abs(made - pixels_of(mark_image(view))) > 1).mean() < 0.01  # edges of what is seen may move
            evidence = pixels(found[f"{number:08d}.evidence_{index:02d}.png"])
            assert (np.abs(evidence - 255 * out.evidence[index].movedim(0, -1).numpy()) > 1).mean() < 0.01


def test_a_link_that_leads_nowhere_fails_alone(tmp_path):
    """Assert that it is listed, and that the photo beside it is done."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").symlink_to("nowhere")
    (tmp_path / "photos/b.png").write_bytes(photo_bytes(0))
    make_views(tiny_pipeline(appearance=True), open_photos(str(tmp_path / "photos")), tmp_path / "out", SETTINGS, {})
    assert finish(tmp_path / "out") == 1
    (failed,) = map(json.loads, (tmp_path / "out/failed.jsonl").read_text().splitlines())
    assert (failed["photo"], failed["number"]) == ("a.png", 0)
    assert "00000001.view_00.png" in members(tmp_path / "out")


def test_a_name_that_is_no_text_is_written_as_its_bytes(tmp_path):
    """Assert the record of a photo whose name is Latin-1, and of one with a newline in it, as lines of text."""
    folder = os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(photo_bytes(0))
    make_views(tiny_pipeline(appearance=True), open_photos(str(tmp_path / "photos")), tmp_path / "out", SETTINGS, {})
    found = members(tmp_path / "out")
    assert json.loads(found["00000000.json"])["photo"] == r"caf\xe9.png"
    assert json.loads(found["00000001.json"])["photo"] == r"two\nlines.png"


def test_a_sample_without_the_picture_fails_alone(tmp_path):
    """Assert the reason for a sample of a tar whose picture has another ending than the first ones'."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in (*(f"{number}.png" for number in range(6)), "c.bmp", "d.png"):
            member = tarfile.TarInfo(name)
            member.size = len(photo_bytes(0))
            tar.addfile(member, io.BytesIO(photo_bytes(0)))
    make_views(tiny_pipeline(appearance=True), open_photos(str(tmp_path / "t.tar")), tmp_path / "out", SETTINGS, {})
    assert finish(tmp_path / "out") == 1
    (failed,) = map(json.loads, (tmp_path / "out/failed.jsonl").read_text().splitlines())
    assert failed["reason"] == "'c' has no picture in the column where the first ones have theirs"


def test_what_lies_beside_a_tar_is_told(place, tmp_path, capsys):
    """Assert one line about files of a folder that are not read, as its tars are, and none where there are none."""
    folder = shutil.copytree(place / "tars", tmp_path / "t")
    open_photos(str(folder))
    assert capsys.readouterr().err == ""
    for name in ("photo.jpg", "more.tar.gz", "index.json"):
        (folder / name).write_bytes(b"")
    open_photos(str(folder))
    assert capsys.readouterr().err == f"note: '{folder}': left out for their endings: 1 with .gz, 1 with .jpg\n"


@pytest.mark.parametrize("of_files", [True, False])
def test_parquet_of_other_programs(tmp_path, of_files):
    """Assert that columns of bytes are read that no program of Hugging Face has written."""
    contents = [photo_bytes(number) for number in (0, 1)]
    column = [{"bytes": content, "path": None} for content in contents] if of_files else contents
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "photo": column}), tmp_path / "all.parquet")
    assert every_block(open_photos(str(tmp_path / "all.parquet"))) == list(enumerate(contents))


@pytest.mark.parametrize("declared", [True, False])
def test_images_go_before_other_bytes(tmp_path, declared):
    """Assert that a checksum's column, which stands first, is not taken for the photos', unless it is asked for."""
    files = [{"bytes": photo_bytes(number), "path": None} for number in (0, 1)]
    table = pyarrow.table({"sha": [b"a", b"b"], "photo": files})
    if declared:
        features = datasets.Features({"sha": datasets.Value("binary"), "photo": datasets.Image()})
        datasets.Dataset.from_dict(table.to_pydict(), features=features).to_parquet(tmp_path / "all.parquet")
    else:
        pyarrow.parquet.write_table(table, tmp_path / "all.parquet")
    assert every_block(open_photos(str(tmp_path / "all.parquet"))) == [(0, photo_bytes(0)), (1, photo_bytes(1))]
    assert every_block(open_photos(str(tmp_path / "all.parquet"), column="sha")) == [(0, b"a"), (1, b"b")]


def pixels_of(image):
    return np.asarray(image).astype(int)


def test_two_processes_make_what_one_makes(place, tmp_path):
    """Assert the same files to the byte, whoever came first, and from tars as from a folder but for the names."""
    pipe = tiny_pipeline(appearance=True)
    pipe.set_progress_bar_config(disable=True)
    run = partial(make_views, pipe, open_photos(str(place / "photos")))
    run(tmp_path / "one", SETTINGS, {})
    for process in (1, 0):
        run(tmp_path / "two", SETTINGS, {}, process, 2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    make_views(pipe, open_photos(str(place / "tars")), tmp_path / "tars", SETTINGS, {})
    views = {name: content for name, content in members(tmp_path / "one").items() if name.endswith(".png")}
    assert views == {name: content for name, content in members(tmp_path / "tars").items() if name.endswith(".png")}


def test_what_is_done_is_not_done_again(place, tmp_path):
    """Assert that a second call paints only the shard that is missing, the same, and that none is taken for another."""
    pipe = tiny_pipeline(appearance=True)
    pipe.set_progress_bar_config(disable=True)
    photos = open_photos(str(place / "photos"))
    make_views(pipe, photos, tmp_path, SETTINGS, {})
    before = contents(tmp_path)
    (tmp_path / "views-00001.json").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    make_views(pipe, photos, tmp_path, SETTINGS, {})
    assert contents(tmp_path) == before
    changed = [path.name for path in tmp_path.glob("*.tar") if path.stat().st_mtime_ns != times[path.name]]
    assert changed == ["views-00001.tar"]
    more = tmp_path.with_name("more")
    shutil.copytree(place / "photos", more)
    shutil.copy(more / "p00.png", more / "a.png")  # which would give every photo another number
    with pytest.raises(ValueError, match=r"was prepared with made of = "):
        make_views(pipe, open_photos(str(more)), tmp_path, SETTINGS, {})
    with pytest.raises(ValueError, match=r"was prepared with num_views = 2, now num_views = 3: choose another"):
        make_views(pipe, photos, tmp_path, BatchSettings(**{**vars(SETTINGS), "num_views": 3}), {})


def test_the_next_is_begun_before_one_is_given():
    """Assert the order of begun and given items, and that none is lost."""
    events = []

    def items():
        for item in "abc":
            events.append(f"begin {item}")
            yield item

    for item in _one_ahead(items()):
        events.append(f"give {item}")
    assert events == ["begin a", "begin b", "give a", "begin c", "give b", "give c"]
    assert list(_one_ahead([])) == []


# The script, in real processes


def command(place, out, *words):
    common = ["--aligned", "--num_views", 2, "--num_inference_steps", 1, "--batch_size", 2, "--shard_size", 2]
    words = [place / "photos", "--out", out, "--checkpoint", place / "pipeline", *common, *words]
    return [sys.executable, *map(str, [SCRIPT, *words])]


def test_it_survives_a_kill(place, tmp_path):
    """Assert that a script killed at a moment of chance, and given again, leaves what an undisturbed one leaves."""
    with subprocess.Popen(command(place, tmp_path / "killed"), env=QUIET, start_new_session=True) as process:
        wanted = random.randint(1, 8)
        while process.poll() is None and sum(len(files) for _, _, files in os.walk(tmp_path)) < wanted:
            time.sleep(0.002)
        process.kill()
    assert group_ends(process.pid)
    (tmp_path / "killed/.views-00000.json.part").mkdir(parents=True, exist_ok=True)  # as a kill at its renaming leaves
    for out in ("killed", "whole"):
        assert subprocess.run(command(place, tmp_path / out), env=QUIET).returncode == 1
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(members(tmp_path / "whole")) == 9 * 5


def test_it_runs_under_accelerate(place, tmp_path):
    """Assert that two processes, launched as on two GPUs, share the shards and say once how it went."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**QUIET, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launch, *command(place, tmp_path / "out")[1:]], env=env, stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if "views of" in line]
    assert lines == [f"{tmp_path / 'out'}: views of 9 photos in 6 shards; 2 failed, see failed.jsonl"]
    assert len(members(tmp_path / "out")) == 9 * 5


BAD_COMMANDS = {
    "no such source": (["nowhere/at/all", "--out", "o"], "there is no folder or file 'nowhere/at/all'"),
    "one photo": (["photos/p00.png", "--out", "o"], "is one file: give a folder of photos"),
    "an empty folder": (["empty", "--out", "o"], "holds no photo"),
    "two kinds": (["mixed", "--out", "o"], "holds .parquet and .tar files: give a folder of one kind"),
    "no column": (["parquet", "--out", "o", "--column", "image"], "'image' is no column of images; there are: face"),
    "a broken archive": (["broken", "--out", "o"], "cannot open the data set 'parquet'"),
    "out is a file": (["photos", "--out", "photos/p00.png"], "is not a data set being prepared"),
    "out holds photos": (["photos", "--out", "photos"], "is not a data set being prepared"),
    "no model": (["photos", "--out", "o", "--checkpoint", "none"], "neither a folder nor a Hub id"),
    "no views": (["photos", "--out", "o", "--num_views", "0"], "'0' is not a whole number"),
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_a_bad_command_is_one_line(place, tmp_path, capsys, monkeypatch, name):
    """Assert exit status 2, one line that says what is accepted, and that no photo changed and no folder came."""
    monkeypatch.chdir(tmp_path)
    for link in ("photos", "parquet"):
        (tmp_path / link).symlink_to(place / link)
    for folder in ("empty", "mixed", "broken"):
        (tmp_path / folder).mkdir()
    for file in ("mixed/a.tar", "mixed/b.parquet", "broken/a.parquet"):
        (tmp_path / file).write_bytes(b"nothing")
    before = contents(place / "photos")
    words, expected = BAD_COMMANDS[name]
    if "--checkpoint" not in words:
        words = [*words, "--checkpoint", str(place / "pipeline")]
    script = load_script("batch_views", "examples")
    try:
        status = script.main([*words, "--aligned"])
    except SystemExit as stop:
        status = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Loading pipeline")]
    assert status == 2
    assert len(lines) == 1, lines
    assert expected in lines[0]
    assert contents(place / "photos") == before
    assert not (tmp_path / "o").exists()
