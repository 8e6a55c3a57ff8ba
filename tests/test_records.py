"""The on-disk format: what is read back, what is refused and where, splits, and writing at once."""

import json

import numpy as np
import pytest
from PIL import Image

from nvb_diffusers.camera import camera_from_angles
from nvb_diffusers.data import records as on_disk
from nvb_diffusers.data.images import load_photo


def make_set(folder, identities=3, views=2, size=7):
    """A small valid set; returns its records."""
    records = []
    for identity in range(identities):
        for view in range(views):
            name = f"{identity:03d}/{view:02d}.webp"
            on_disk.save_image(Image.new("RGB", (size, size), (identity, view, 9)), folder / "images" / name)
            records.append(
                {
                    "file_name": name,
                    "identity": identity,
                    "view": view,
                    "camera": camera_from_angles(10.0 * view, -5.0).tolist(),
                    "landmarks": [[1, 2], [5, 2], [3, 3.5], [2, 5], [4, 5]],
                    "split": on_disk.SPLITS[identity % 3],
                    "hair": "kurz, grau ü",
                }
            )
    on_disk.write_records(folder, records)
    return records


def replace_line(folder, number, **changes):
    """Change the values of one line, or drop those that become None."""
    path = on_disk.metadata_path(folder)
    lines = path.read_text().splitlines()
    record = {**json.loads(lines[number - 1]), **changes}
    lines[number - 1] = json.dumps({key: value for key, value in record.items() if value is not ...})
    path.write_text("\n".join(lines) + "\n")


def test_records_come_back_as_written(tmp_path):
    """Assert that a set is read back equal, in order, attributes and non-ASCII text included."""
    records = make_set(tmp_path)
    assert on_disk.read_records(tmp_path) == records
    assert on_disk.read_records(str(tmp_path)) == records


def test_camera_and_landmarks_are_optional(tmp_path):
    """Assert that a restoration-only set, without cameras and landmarks, is valid."""
    make_set(tmp_path)
    replace_line(tmp_path, 4, camera=..., landmarks=...)
    record = on_disk.read_records(tmp_path)[3]
    assert "camera" not in record
    assert "landmarks" not in record


def scaled_camera(factor):
    camera = camera_from_angles(20.0, 0.0).numpy().astype(float)
    camera[:11] *= factor
    return camera.tolist()


def mirrored_camera():
    camera = camera_from_angles(20.0, 0.0).numpy().astype(float)
    camera[[0, 4, 8]] *= -1  # one column of the rotation: a reflection
    return camera.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_name": "000/99.webp"}, "000/99.webp does not exist"),
        ({"file_name": "../secret.webp"}, "leaves its folder"),
        ({"file_name": "/etc/passwd"}, "leaves its folder"),
        ({"file_name": 3}, "expected a relative path"),
        ({"file_name": "000/00.webp"}, "already on line 1"),
        ({"identity": ...}, "identity missing"),
        ({"identity": 1.5}, "identity is 1.5"),
        ({"identity": 0}, "identity 0 is in split test, but in train on line 1"),
        ({"view": "left"}, "view is 'left'"),
        ({"split": "training"}, "split is 'training', expected one of train, validation, test"),
        ({"camera": [0.0] * 24}, r"camera has shape \(24,\), expected 25 numbers"),
        ({"camera": [float("nan")] * 25}, "camera holds a number that is not finite"),
        ({"camera": ["a"] * 25}, "camera is not a list of numbers"),
        ({"camera": []}, r"camera has shape \(0,\)"),
        ({"camera": [scaled_camera(1.0)]}, r"camera has shape \(1, 25\)"),
        ({"identity": "0", "split": "test"}, "identity 0 is in split test, but in train on line 1"),
        ({"camera": scaled_camera(1.01)}, "`camera` holds a cam2world that is not rigid"),
        ({"camera": mirrored_camera()}, "`camera` holds a cam2world that is not rigid"),
        ({"camera": [*scaled_camera(1.0)[:16], *[-4.0, 0, 0.5, 0, 4.0, 0.5, 0, 0, 1]]}, "focal length of -4"),
        ({"landmarks": [[1, 2]] * 4}, r"landmarks have shape \(4, 2\)"),
        ({"landmarks": [[1, 2], [3]]}, "landmarks is not a list of numbers"),
    ],
)
def test_bad_record_is_refused_with_file_and_line(tmp_path, changes, message):
    """Assert that each kind of bad record is refused by a message with the file, the line and what is wrong."""
    make_set(tmp_path)
    replace_line(tmp_path, 5, **changes)
    with pytest.raises(ValueError, match=rf"metadata\.jsonl:5: .*{message}"):
        on_disk.read_records(tmp_path)


def test_line_numbers_count_blank_lines_and_broken_json(tmp_path):
    """Assert that the line named is the one an editor shows."""
    make_set(tmp_path)
    path = on_disk.metadata_path(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", lines[1], '{"file_name": ']) + "\n")
    with pytest.raises(ValueError, match=r"metadata\.jsonl:4: not a JSON object"):
        on_disk.read_records(tmp_path)
    path.write_text("\n".join([lines[0], "", "[1, 2]"]))
    with pytest.raises(ValueError, match=r"metadata\.jsonl:3: expected a JSON object, got list"):
        on_disk.read_records(tmp_path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        on_disk.read_records(tmp_path)


def test_missing_set_is_named(tmp_path):
    """Assert that a folder without a set is refused by its path."""
    with pytest.raises(ValueError, match=r"no data set at .*nothing"):
        on_disk.read_records(tmp_path / "nothing")


def test_bad_records_are_not_written(tmp_path):
    """Assert that refused records leave the metadata of before, and no other file."""
    records = make_set(tmp_path)
    before = on_disk.metadata_path(tmp_path).read_bytes()
    with pytest.raises(ValueError, match=r"metadata\.jsonl:2: .*split"):
        on_disk.write_records(tmp_path, [records[0], {**records[1], "split": "none"}])
    assert on_disk.metadata_path(tmp_path).read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))


def test_split_is_of_the_identity_alone():
    """Assert that the split of an identity depends on neither the others, nor their order, nor repetition."""
    identities = [f"subject{number:04d}" for number in range(4000)]
    splits = on_disk.split_by_identity(identities, validation=0.1, test=0.2)
    again = on_disk.split_by_identity(identities[::-7] * 2, validation=0.1, test=0.2)
    assert again.items() <= splits.items()
    shares = {split: sum(value == split for value in splits.values()) / len(splits) for split in on_disk.SPLITS}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.02)
    assert on_disk.split_by_identity(identities, 0.1, 0.2, seed=1) != splits
    assert on_disk.split_by_identity([4], 0, 0) == {4: "train"}
    assert on_disk.split_by_identity([4], 0, 1) == {4: "test"}


@pytest.mark.parametrize("shares", [(-0.1, 0.2), (0.6, 0.6)])
def test_impossible_shares_are_refused(shares):
    """Assert that negative shares and shares of more than all are refused."""
    with pytest.raises(ValueError, match="at most 1 together"):
        on_disk.split_by_identity([1], *shares)


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_pictures_are_stored_without_loss(tmp_path, suffix):
    """Assert that a noisy picture comes back to the bit."""
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    on_disk.save_image(Image.fromarray(pixels), tmp_path / "new" / f"a.{suffix}")
    np.testing.assert_array_equal(np.asarray(load_photo(tmp_path / "new" / f"a.{suffix}")), pixels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"a.{suffix}"]


def test_unreadable_pictures_are_named(tmp_path):
    """Assert that missing, cut off and foreign files are refused by name."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    on_disk.save_image(Image.fromarray(noise), tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    (tmp_path / "text.png").write_text("hello")
    for name, message in {
        "none.png": "there is no such file",
        "cut.png": "cannot read",
        "text.png": "cannot read",
    }.items():
        with pytest.raises(ValueError, match=message) as info:
            load_photo(tmp_path / name)
        assert name in str(info.value)


def test_prepared_folder_goes_on_only_with_its_settings(tmp_path):
    """Assert that a folder is taken up with the same settings and inputs, and refused with others or when foreign."""
    folder = tmp_path / "set"
    on_disk.begin_data_set(folder, {"size": 5, "format": "png"})
    on_disk.begin_data_set(folder, {"format": "png", "size": 5})
    for name in (".DS_Store", "._set", "Thumbs.db"):
        (tmp_path / "shown").mkdir(exist_ok=True)
        (tmp_path / "shown" / name).touch()
    on_disk.begin_data_set(tmp_path / "shown", {"size": 5})  # as good as empty
    with pytest.raises(ValueError, match="was prepared with size = 5, now size = 6"):
        on_disk.begin_data_set(folder, {"size": 6, "format": "png"})
    (tmp_path / "labels.json").write_text("[1]")
    on_disk.begin_data_set(tmp_path / "other", {}, inputs=[tmp_path / "labels.json"])
    (tmp_path / "labels.json").write_text("[2]")
    with pytest.raises(ValueError, match=r"was prepared with sha256 of labels\.json = "):
        on_disk.begin_data_set(tmp_path / "other", {}, inputs=[tmp_path / "labels.json"])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="not a data set being prepared"):
        on_disk.begin_data_set(foreign, {"size": 5})
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


def test_parallel_map_keeps_order_and_stops_at_an_error():
    """Assert that results keep the order of the items and an error ends the work."""
    assert on_disk.map_parallel(lambda item: item * 2, range(50), workers=4) == list(range(0, 100, 2))
    done = []

    def work(item):
        if item == 3:
            raise ValueError("item 3")
        done.append(item)

    with pytest.raises(ValueError, match="item 3"):
        on_disk.map_parallel(work, range(5000), workers=1)
    assert len(done) < 5000 - 1


def test_hub_library_reads_the_same_folder(tmp_path):
    """Assert that HF `datasets` reads a set, its note on the preparation beside it, as an imagefolder."""
    datasets = pytest.importorskip("datasets", reason="the training extra is not installed")
    on_disk.begin_data_set(tmp_path / "set", {"size": 7})
    records = make_set(tmp_path / "set")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == len(records)
    assert {(row["identity"], row["view"]) for row in loaded} == {(row["identity"], row["view"]) for row in records}
    assert all(row["image"].getpixel((0, 0)) == (row["identity"], row["view"], 9) for row in loaded)


def test_synthetic_heads_are_valid(rendered_heads):
    """Assert that rendered heads are in the format: 8 people with 4 views each, in three splits."""
    records = on_disk.read_records(rendered_heads)
    assert [(row["identity"], row["view"]) for row in records] == [(i, v) for i in range(8) for v in range(4)]
    people = {split: {row["identity"] for row in records if row["split"] == split} for split in on_disk.SPLITS}
    assert {split: len(identities) for split, identities in people.items()} == {"train": 4, "validation": 2, "test": 2}
    for row in records:
        assert load_photo(rendered_heads / "images" / row["file_name"]).size == (128, 128)
