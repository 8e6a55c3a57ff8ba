"""What derived data was made of: what counts as the same, and what a folder keeps when its sources change."""

import json
import os
import shutil

import pytest
import torch
from conftest import load_script, tiny_vae
from PIL import Image
from small_data import write_small_set

from nvb_diffusers.data.datasets import FaceDataset, MultiViewFaceDataset, SampleTransform, load_records
from nvb_diffusers.data.fingerprint import drop_outdated, file_hash, fingerprint
from nvb_diffusers.training.latents import cache_latents

resized, ffhq, shards = (load_script(f"prepare_{name}") for name in ("resized", "ffhq", "shards"))
GREEN = (0, 200, 0)


@pytest.fixture
def data(tmp_path):
    return write_small_set(tmp_path / "data")


def lines_of(data):
    return [json.loads(line) for line in (data / "images/metadata.jsonl").read_text().splitlines()]


def write_lines(data, lines):
    (data / "images/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def paint(data, index=0):
    """Another picture under the name of an old one."""
    path = data / "images" / lines_of(data)[index]["file_name"]
    Image.new("RGB", (64, 64), GREEN).save(path)
    return path


def test_a_fingerprint_knows_files_facts_and_order(tmp_path):
    """Assert equal texts for equal files anywhere, and others after a change of size, time, order or facts."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("bb")
    known = fingerprint([one, two], {"box": (1, 2)})
    (tmp_path / "moved").mkdir()
    moved = [shutil.copy2(path, tmp_path / "moved") for path in (one, two)]
    assert fingerprint(moved, {"box": [1, 2]}) == known
    assert fingerprint([two, one], {"box": (1, 2)}) != known
    assert fingerprint([one, two], {"box": (1, 3)}) != known
    os.utime(one, ns=(0, 12345))
    assert fingerprint([one, two], {"box": (1, 2)}) != known
    with pytest.raises(ValueError, match=r"cannot read .*three"):
        fingerprint([tmp_path / "three"])
    assert file_hash(one) == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


def test_only_what_is_outdated_goes(tmp_path):
    """Assert that files of other sources go, the list of all with them, and that files of nobody's note stay."""
    for name in ("a", "b", "c", "list"):
        (tmp_path / name).touch()
    drop_outdated(tmp_path, "note.json", "list", {"a": "1", "b": "1"})
    assert sorted(os.listdir(tmp_path)) == ["c", "note.json"]  # of an unknown origin
    for name in ("a", "b", "list"):
        (tmp_path / name).touch()
    drop_outdated(tmp_path, "note.json", "list", {"a": "1", "b": "1"})
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "list", "note.json"]
    drop_outdated(tmp_path, "note.json", "list", {"a": "2", "b": "1"})
    assert sorted(os.listdir(tmp_path)) == ["b", "c", "note.json"]


@pytest.mark.parametrize("change", ["another set", "a picture", "a name"])
def test_cached_latents_of_other_pictures_are_refused(tmp_path, data, change):
    """Assert one line where names are the same and pictures are not, or the other way round."""
    vae, cache = tiny_vae().eval(), tmp_path / "latents.npy"
    cache_latents(vae, load_records(data, "train"), 64, cache)
    if change == "another set":
        data = write_small_set(tmp_path / "other")
    elif change == "a picture":
        paint(data)
    else:
        lines = lines_of(data)
        lines[0]["file_name"], lines[1]["file_name"] = lines[1]["file_name"], lines[0]["file_name"]
        write_lines(data, lines)
    with pytest.raises(ValueError, match="holds latents of another autoencoder, resolution or data set: remove it"):
        cache_latents(vae, load_records(data, "train"), 64, cache)


def test_prepared_pictures_follow_their_sources(tmp_path, data):
    """Assert that a changed picture is made anew, the others not, and that nothing changes where nothing did."""
    command = ["--data_dir", str(data), "--output_dir", str(tmp_path / "small"), "--size", "32", "--format", "png"]
    assert resized.main(command) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "small/images").rglob("*.png")}
    changed = tmp_path / "small/images" / paint(data, 4).relative_to(data / "images")
    assert resized.main(command) == 0
    assert Image.open(changed).getpixel((9, 9)) == GREEN
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path for path in before if before[path] != after[path]] == [changed]
    assert resized.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == after


def test_prepared_ffhq_follows_its_photos(tmp_path):
    """Assert the same where one photo takes the number of another."""
    (tmp_path / "photos/a").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "photos/00001.png")
    command = ["--image_dir", str(tmp_path / "photos"), "--output_dir", str(tmp_path / "out"), "--size", "64"]
    assert ffhq.main([*command, "--format", "png"]) == 0
    (tmp_path / "photos/00001.png").unlink()
    Image.new("RGB", (64, 64), GREEN).save(tmp_path / "photos/a/00001.png")
    assert ffhq.main([*command, "--format", "png"]) == 0
    assert Image.open(tmp_path / "out/images/000001/00.png").getpixel((9, 9)) == GREEN


@pytest.mark.parametrize("change", ["a picture", "a camera", "an identity", "fewer"])
def test_shards_follow_their_set(tmp_path, data, change):
    """Assert that shards packed again are those of a fresh folder, whatever changed in the set."""
    command = ["--data_dir", str(data), "--shard_size", "0.01", "--output_dir"]
    assert shards.main([*command, str(tmp_path / "shards")]) == 0
    lines = lines_of(data)
    if change == "a picture":
        paint(data)
    elif change == "a camera":
        lines[0]["camera"] = lines[1]["camera"]
    elif change == "an identity":
        lines[0]["identity"] = lines[-1]["identity"] + 1
    else:
        lines = lines[6:]
    write_lines(data, lines)
    for name in ("shards", "fresh"):
        assert shards.main([*command, str(tmp_path / name)]) == 0
    again, fresh = (
        {path.name: file_hash(path) for path in (tmp_path / name).glob("*") if path.suffix == ".parquet"}
        for name in ("shards", "fresh")
    )
    assert again == fresh
    assert (tmp_path / "shards/shards.json").read_bytes() == (tmp_path / "fresh/shards.json").read_bytes()


def test_shards_of_two_sets_are_not_mixed(tmp_path, data):
    """Assert one line for a shard that the list beside it does not describe: its people would share samples."""
    other = write_small_set(tmp_path / "other", views=4)
    for source in (data, other):
        words = ["--data_dir", str(source), "--output_dir", str(tmp_path / f"{source.name}-shards")]
        assert shards.main(words) == 0
    shutil.copy(tmp_path / "other-shards/train-00000.parquet", tmp_path / "data-shards")
    dataset = MultiViewFaceDataset(tmp_path / "data-shards", "train", SampleTransform(64, ()), 2, streaming=True)
    with pytest.raises(ValueError, match=r"train-00000.parquet is not the shard that shards.json lists"):
        dataset[0]
    assert torch.is_tensor(FaceDataset(tmp_path / "other-shards", "train", SampleTransform(64, ()), True)[0]["key"])
