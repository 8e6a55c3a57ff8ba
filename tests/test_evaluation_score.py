import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import write_small_set

from nvb_diffusers.camera import project_points
from nvb_diffusers.cli import main
from nvb_diffusers.data.images import to_pixel_values
from nvb_diffusers.data.records import read_records, write_records
from nvb_diffusers.evaluation import score
from nvb_diffusers.evaluation.metrics import NIQE
from nvb_diffusers.evaluation.networks import Networks
from nvb_diffusers.evaluation.results import Entry, Summary
from nvb_diffusers.evaluation.score import read_scores, score_predictions
from nvb_diffusers.evaluation.summaries import summary_table
from nvb_diffusers.evaluation.test_sets import load_test_set, make_test_set, view_name

FACES = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A test set of four identities, and networks that know its pictures."""
    folder = tmp_path_factory.mktemp("score")
    data = write_small_set(folder / "data")
    records = read_records(data)
    write_records(data, [record | {"split": "test" if record["identity"] > 1 else "train"} for record in records])
    test_set = load_test_set(make_test_set(data, folder / "set", num_target_views=2, resolution=32))
    return test_set, stub_networks(test_set)


def stub_networks(test_set):
    """The camera of the most similar truth, and the identity of the most similar one; nobody in a dark picture."""
    truths, cameras, people = [], [], []
    for number, identity in enumerate(test_set.identities):
        for view, camera in score._cameras_by_view(identity).items():
            truths += to_pixel_values([test_set.truth(identity.identity, view)])
            cameras.append(camera)
            people.append(number)
    truths, cameras = torch.stack(truths), torch.stack(cameras)

    def nearest(pictures):
        return (pictures[:, None] - truths).square().mean(dim=(2, 3, 4)).argmin(dim=1)

    def identify(picture):
        return None if picture.max() < -0.9 else np.eye(FACES)[people[nearest(picture[None])]]

    return Networks(
        identities={"ID": identify},
        cameras={"POSE (own predictor)": lambda pictures: cameras[nearest(pictures)]},
        features={"FID (means)": lambda pictures: pictures.mean(dim=(2, 3)).numpy()},
        not_run={"LPIPS": "weights absent"},
    )


def copy_truths(test_set, folder):
    shutil.copytree(test_set.folder / "truths", folder)
    return folder


def means(summary, task):
    return {column: entry.mean for column, entry in summary.tasks[task].items()}


def test_truths_score_the_ideal(made, tmp_path):
    """Assert the ideal value in every column for the truths, and that the table shows what was not run."""
    test_set, networks = made
    summary = score_predictions(test_set, test_set.folder / "truths", tmp_path / "scores", networks, progress=False)
    for task, count in (("novel_views", 8), ("restoration", 4)):
        values = means(summary, task)
        assert values["PSNR"] > 100
        assert values["SSIM"] == pytest.approx(1, abs=1e-5)
        assert values["ID"] == pytest.approx(1)
        assert values["POSE (own predictor)"] == values["asked POSE (own predictor)"] == 0
        assert values["FID (means)"] == pytest.approx(0, abs=1e-6)
        assert values[NIQE] > 0
        assert {entry.count for entry in summary.tasks[task].values()} == {count}
    assert summary.missing == {"novel_views": 0, "restoration": 0}
    assert summary == Summary.from_json(json.loads((tmp_path / "scores/summary.json").read_text()))
    table = summary_table(summary)
    assert "| PSNR (dB, higher is better) |" in table
    assert "Not run: LPIPS (weights absent)" in table


def test_what_is_seen_in_truths_is_kept_where_it_can_be(made, tmp_path, monkeypatch):
    """Assert that a network looks at truths once, again after damage, and each time in a read-only place."""
    test_set, _ = made
    seen = []

    def observe(image):
        seen.append(1)
        return image.mean(dim=(1, 2)).numpy()

    def look():
        seen.clear()
        images = torch.zeros(2, 3, 8, 8)
        found = score._observe_all(test_set, "dlib-ID", observe, ["a", "b"], images, progress=False)
        assert [value.tolist() for value in found.values()] == [[0.0] * 3] * 2
        return len(seen)

    assert [look(), look()] == [2, 0]
    (note,) = test_set.folder.parent.glob(".set-*.npz")
    note.write_bytes(note.read_bytes()[:100])
    assert [look(), look()] == [2, 0]
    note.unlink()

    def refuse(path):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(score, "replaced_file", refuse)
    assert [look(), look()] == [2, 2]


def test_shuffled_predictions_are_clearly_worse(made, tmp_path):
    """Assert that pictures of the wrong people and of the wrong views cost identity, pose and PSNR."""
    test_set, networks = made
    folder = tmp_path / "shuffled"
    paths = sorted(path.relative_to(test_set.folder / "truths") for path in test_set.folder.glob("truths/*/*.png"))
    for source, target in zip(paths, paths[4:] + paths[:4], strict=True):  # 3 views a person
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(test_set.folder / "truths" / source, folder / target)
    values = means(score_predictions(test_set, folder, tmp_path / "scores", networks, progress=False), "novel_views")
    assert values["PSNR"] < 20
    assert values["ID"] < 0.2
    assert values["POSE (own predictor)"] > 15


def test_failures_and_missing_views_are_counted(made, tmp_path):
    """Assert that a face not found is a failure and not a zero, and that absent views are counted and not scored."""
    test_set, networks = made
    folder = copy_truths(test_set, tmp_path / "partial")
    first, last = test_set.identities[0], test_set.identities[-1]
    Image.new("RGB", (32, 32)).save(folder / view_name(first.identity, first.targets[0].view))
    (folder / view_name(last.identity, last.source_view)).unlink()
    summary = score_predictions(test_set, folder, tmp_path / "scores", networks, progress=False)
    assert summary.tasks["novel_views"]["ID"] == Entry(mean=1, low=1, high=1, count=7, failures=1)
    assert summary.missing == {"novel_views": 0, "restoration": 1}
    assert summary.tasks["restoration"]["PSNR"].count == 3
    assert "(1 missing)" in summary_table(summary)
    rows = [row for row in read_scores(tmp_path / "scores") if row.identity == first.identity]
    assert [row.values["ID"] for row in rows].count(None) == 1


def test_only_what_changed_is_measured_again(made, tmp_path, monkeypatch):
    """Assert that rows of unchanged pictures are kept, also after a cut-off line, and none for new measures."""
    test_set, networks = made
    folder, out = copy_truths(test_set, tmp_path / "predictions"), tmp_path / "scores"
    measured = []
    measure = score._measure_views

    def count(test_set, identity, files, networks, references):
        measured.extend(files.values())
        return measure(test_set, identity, files, networks, references)

    monkeypatch.setattr(score, "_measure_views", count)
    first = score_predictions(test_set, folder, out, networks, progress=False)
    rows = read_scores(out)
    assert len(measured) == len(rows) == 12
    assert score_predictions(test_set, folder, out, networks, progress=False) == first
    assert len(measured) == 12
    changed = folder / view_name(rows[0].identity, rows[0].view)
    Image.new("RGB", (32, 32), (90, 60, 50)).save(changed)
    score_predictions(test_set, folder, out, networks, progress=False)
    assert measured[12:] == [changed]
    text = (out / "scores.jsonl").read_text()
    (out / "scores.jsonl").write_text(text[:-20])
    score_predictions(test_set, folder, out, networks, progress=False)
    assert len(measured) == 14
    assert (out / "scores.jsonl").read_text() == text
    score_predictions(test_set, folder, out, Networks(), progress=False)
    assert len(measured) == 26


def test_sizes_and_folders_that_do_not_fit(made, tmp_path, capsys):
    """Assert that another size is resized and said, and that no square, no picture and the set itself are refused."""
    test_set, networks = made
    name = view_name(test_set.identities[0].identity, test_set.identities[0].targets[0].view)
    path = tmp_path / "predictions" / name
    path.parent.mkdir(parents=True)
    with Image.open(test_set.folder / "truths" / name) as image:
        image.resize((64, 64)).save(path)
    summary = score_predictions(test_set, tmp_path / "predictions", tmp_path / "scores", networks, progress=False)
    assert "is 64 px, resized to 32" in capsys.readouterr().err
    assert summary.tasks["novel_views"]["PSNR"].mean > 25
    Image.new("RGB", (32, 40)).save(path)
    with pytest.raises(ValueError, match="32x40, expected a square"):
        score_predictions(test_set, tmp_path / "predictions", tmp_path / "scores", networks, progress=False)
    with pytest.raises(ValueError, match="has no prediction"):
        score_predictions(test_set, tmp_path, tmp_path / "scores", networks, progress=False)
    with pytest.raises(ValueError, match="inside the test set"):
        score_predictions(test_set, tmp_path / "predictions", test_set.folder / "x", networks, progress=False)
    other = {"set": "0", "measures": [], "camera_predictor": None}
    (tmp_path / "scores/settings.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="another test set"):
        score_predictions(test_set, test_set.folder / "truths", tmp_path / "scores", networks, progress=False)


def test_consistency_is_scored_where_there_is_depth(tmp_path, monkeypatch):
    """Assert that each identity's views go in with depth and cameras, and that what is not seen is left out."""
    data = write_small_set(tmp_path / "data")
    for record in read_records(data):
        path = (data / "depth" / record["file_name"]).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64), 27000, dtype=np.uint16)).save(path)
    test_set = load_test_set(make_test_set(data, tmp_path / "set", num_target_views=2, resolution=32))
    calls = []

    def stub(images, depths, cameras, truths):
        calls.append((images, depths, cameras, truths))
        return {"warp error": 0.25, "background error": float("nan")}

    monkeypatch.setattr(score.consistency, "score_identity", stub)
    folder, out = copy_truths(test_set, tmp_path / "predictions"), tmp_path / "scores"
    (folder / "configuration.json").write_text('{"method": "truth"}')
    for _ in range(2):
        summary = score_predictions(test_set, folder, out, Networks(), progress=False)
    assert summary.tasks["consistency"] == {"warp error": Entry(mean=0.25, low=0.25, high=0.25, count=1, failures=0)}
    assert summary.configuration == {"method": "truth"}
    ((images, depths, cameras, truths),) = calls  # the second run keeps the row
    assert images.shape == truths.shape == (2, 3, 32, 32)
    assert torch.equal(images, truths)
    assert torch.allclose(depths, torch.full((2, 32, 32), 2.7))
    assert torch.equal(cameras, test_set.identities[0].cameras)


def test_command_scores_a_folder(made, tmp_path, monkeypatch, capsys):
    """Assert that the command prints the table, writes beside the predictions, and says what is wrong in one line."""
    test_set, networks = made
    folder = copy_truths(test_set, tmp_path / "mine")
    find = "nvb_diffusers.evaluation.networks.find_networks"
    monkeypatch.setattr(find, lambda predictor, arcface: networks if predictor is None else None)
    assert main(["eval", "score", str(test_set.folder), str(folder), "--camera-predictor", "none"]) == 0
    assert "### Novel views" in capsys.readouterr().out
    assert (tmp_path / "mine-scores/summary.json").is_file()
    assert main(["eval", "score", str(folder), str(folder), "--camera-predictor", "none"]) == 2
    assert "no test set at" in capsys.readouterr().err


def test_truths_are_seen_once(made, tmp_path):
    """Assert that what an unchanging network sees in the truths is kept beside the set, and a mesh gives the camera."""
    test_set, _ = made
    calls = []
    points = np.random.default_rng(0).uniform(-0.2, 0.2, (12, 3))
    by_picture = {}

    def key(picture):
        return picture.numpy().tobytes()

    for identity in test_set.identities:
        for view, camera in score._cameras_by_view(identity).items():
            seen = project_points(torch.from_numpy(points), camera)[:, :2].double().numpy()
            by_picture[key(to_pixel_values([test_set.truth(identity.identity, view)])[0])] = seen

    def observe(picture):
        calls.append(picture)
        return by_picture[key(picture)]

    networks = Networks(meshes={"POSE (mediapipe)": observe})
    for run in ("a", "b"):
        summary = score_predictions(test_set, test_set.folder / "truths", tmp_path / run, networks, progress=False)
        values = means(summary, "novel_views")
        assert values["POSE (mediapipe)"] == pytest.approx(0, abs=1e-3)
        assert values["asked POSE (mediapipe)"] < 0.1
    assert len(calls) == 12 + 12 + 12  # the truths once, and the predictions of both runs
