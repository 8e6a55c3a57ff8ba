import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import write_small_set

from nvb_diffusers.cli import main
from nvb_diffusers.data.degradation import apply
from nvb_diffusers.data.records import read_records, write_records
from nvb_diffusers.evaluation.test_sets import load_test_set, make_test_set

SMALL = {"num_identities": 3, "num_target_views": 2, "resolution": 32}


@pytest.fixture
def data(tmp_path):
    """Identities 1 to 5 for test, with depth for identity 5 and landmarks."""
    folder = write_small_set(tmp_path / "data")
    records = read_records(folder)
    for record in records:
        record |= {"split": "test" if record["identity"] > 0 else "train", "landmarks": [[8.0, 16.0]] * 5}
        if record["identity"] == 5:
            depth = np.full((64, 64), 27000, dtype=np.uint16)
            depth[:, :32] = 0
            path = folder / "depth" / record["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(depth).save(path)
    write_records(folder, records)
    return folder


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_same_command_makes_the_same_files(data, tmp_path):
    """Assert equal manifests for equal settings; and that another preset changes the inputs alone."""
    first = manifest(make_test_set(data, tmp_path / "a", seed=4, **SMALL))
    assert first == manifest(make_test_set(data, tmp_path / "b", seed=4, **SMALL))
    severe = manifest(make_test_set(data, tmp_path / "c", preset="severe", seed=4, **SMALL))
    assert severe.keys() == first.keys()
    changed = {name for name in first if severe[name] != first[name]}
    assert all(name.startswith("inputs/") or name in ("records.jsonl", "set.json") for name in changed)
    assert sum(name.startswith("inputs/") for name in changed) == 3
    assert first != manifest(make_test_set(data, tmp_path / "d", seed=5, **SMALL))


def test_set_says_what_it_holds(data, tmp_path):
    """Assert that inputs are the degraded truths of the source, and cameras, landmarks and depth the data's."""
    test_set = load_test_set(make_test_set(data, tmp_path / "set", **SMALL))
    cameras = {(record["identity"], record["view"]): record["camera"] for record in read_records(data)}
    assert [identity.identity for identity in test_set.identities] == ["000001", "000003", "000005"]
    for identity in test_set.identities:
        name, source = identity.identity, identity.source_view
        expected = apply(test_set.truth(name, source), identity.degradation)
        assert np.array_equal(np.asarray(test_set.input(name)), np.asarray(expected))
        assert sorted([source, *(target.view for target in identity.targets)]) == [0, 1, 2]
        assert identity.cameras.shape == (2, 25)
        for target in identity.targets:
            assert torch.allclose(target.camera, torch.tensor(cameras[int(name), target.view]))
            assert target.landmarks.tolist() == [[4.0, 8.0]] * 5
        depth = test_set.depth(name, source)
        assert (depth is not None) == (name == "000005")
    assert depth.shape == (32, 32)
    assert depth[:, :16].max() == 0
    assert torch.allclose(depth[:, 16:], torch.tensor(2.7))


@pytest.mark.parametrize("change", ["changed", "missing", "not in the manifest"])
def test_tampering_is_named(data, tmp_path, change):
    """Assert that a file that was changed, removed or added is found and named."""
    folder = make_test_set(data, tmp_path / "set", **SMALL)
    path = folder / "inputs" / ("extra.png" if change == "not in the manifest" else "000003.png")
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(b"other")
    with pytest.raises(ValueError, match=f"inputs/{path.name} is {change}"):
        load_test_set(folder)
    assert len(load_test_set(folder, verify=False).identities) == 3


def test_bad_requests_leave_nothing(data, tmp_path, capsys):
    """Assert one line for an existing folder, an unknown split, too many views and a broken image, and no remains."""
    out = tmp_path / "set"
    assert main(["eval", "make-set", str(data), "--out", str(data)]) == 2
    assert "exists" in capsys.readouterr().err
    for options, message in ((["--split", "nobody"], "no image in split"), ([], "lower --num-target-views")):
        assert main(["eval", "make-set", str(data), "--out", str(out), *options]) == 2
        assert message in capsys.readouterr().err
    next(data.glob("images/000003/*.png")).write_bytes(b"broken")
    arguments = ["eval", "make-set", str(data), "--out", str(out), "--num-target-views", "2"]
    assert main(arguments) == 2
    assert "cannot read image" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "set" in path.name]
    with pytest.raises(ValueError, match="make one with"):
        load_test_set(out)


def test_command_makes_a_set(data, tmp_path, capsys):
    """Assert that the command's options reach the set."""
    options = ["--num-identities", "2", "--num-target-views", "1", "--resolution", "16", "--preset", "mild"]
    assert main(["eval", "make-set", str(data), "--out", str(tmp_path / "set"), *options]) == 0
    settings = load_test_set(tmp_path / "set").settings
    assert settings.preset == "mild"
    assert (settings.num_identities, settings.resolution, settings.data) == (2, 16, "data")


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/x", "..", ".", "a/b", "orbit", "", 7.5])
def test_identities_of_a_received_set_stay_inside(data, tmp_path, name):
    """Assert that no identity of a test set, whose manifest agrees, can place predictions outside of their folder."""
    folder = make_test_set(data, tmp_path / "set", **SMALL)
    records = folder / "records.jsonl"
    first, *others = records.read_text().splitlines()
    records.write_text("\n".join([json.dumps({**json.loads(first), "identity": name}), *others]) + "\n")
    with pytest.raises(ValueError, match="identity is"):
        load_test_set(folder, verify=False)


def test_identities_as_preparation_writes_them_are_taken(data, tmp_path):
    """Assert that signs and spaces in names that the data's format takes make a set whose files are named so."""
    path = data / "images/metadata.jsonl"
    names = {"3": "017_EMO-1-shout+laugh_00012", "4": "a b#c", "5": "née", "6": "~x"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["identity"] = names.get(str(line["identity"]), line["identity"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    test_set = load_test_set(make_test_set(data, tmp_path / "set", **SMALL))
    assert {identity.identity for identity in test_set.identities} & set(names.values())
    for identity in test_set.identities:
        assert test_set.input(identity.identity).size == (32, 32)
