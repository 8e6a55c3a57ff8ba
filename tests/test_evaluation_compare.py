"""Methods and comparisons at tiny size: every row on the same frozen sets, resumed where it was."""

import json
import shutil
from dataclasses import astuple, dataclass

import numpy as np
import pytest
import torch
from conftest import assert_same_results, tiny_pipeline
from PIL import Image
from small_data import write_small_set

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.camera import camera_from_angles
from nvb_diffusers.cli import main
from nvb_diffusers.evaluation import configuration, methods
from nvb_diffusers.evaluation.compare import compare, errors_by_yaw, paired_lead
from nvb_diffusers.evaluation.configuration import read_comparison, row_folder
from nvb_diffusers.evaluation.methods import InputAsView, MeanFace, OneStage, TwoStage, write_predictions
from nvb_diffusers.evaluation.report import write_report
from nvb_diffusers.evaluation.results import Results, Score
from nvb_diffusers.evaluation.score import read_scores
from nvb_diffusers.evaluation.test_sets import load_test_set, make_test_set

SET = {"split": "train", "num_identities": 3, "num_target_views": 2, "resolution": 64}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    write_small_set(folder / "data")
    make_test_set(folder / "data", folder / "set", **SET)
    tiny_pipeline().save_pretrained(folder / "pipeline")
    tiny_pipeline(seed=1).save_pretrained(folder / "other")
    return folder


def cameras(*yaws):
    return torch.stack([camera_from_angles(yaw, 2.0) for yaw in yaws])


def test_own_pixels_can_be_left_out(tmp_path):
    """Assert that the same weights without the photo's pixels give other views, at the input's size all the same."""
    tiny_pipeline(appearance=True).save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    views = [
        OneStage(checkpoint=str(tmp_path), own_pixels=own, num_inference_steps=1)(image, cameras(0, 20), seed=1).views
        for own in (True, False)
    ]
    assert all(view.size == (48, 48) for of_method in views for view in of_method)
    difference = np.abs(np.asarray(views[0][0], dtype=float) - np.asarray(views[1][0], dtype=float))
    assert difference.mean() > 2


def photo():
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def write_scores(folder, scores):
    folder.mkdir(exist_ok=True)
    (folder / "scores.jsonl").write_text("".join(json.dumps(score.to_json()) + "\n" for score in scores))


def pixels(picture):
    return np.asarray(picture).astype(int)


def test_two_stages_see_the_restored_picture(place):
    """Assert that the chain's views are those of the restored picture, and its restoration that of one stage."""
    one, other = (OneStage(checkpoint=str(place / name), num_inference_steps=2) for name in ("pipeline", "other"))
    two_stage = TwoStage(checkpoint=one.checkpoint, view_checkpoint=other.checkpoint, num_inference_steps=2)
    chain = two_stage(photo(), cameras(-20, 30), seed=4)
    restored = one.restore(photo(), 4)
    expected = other.views(restored, cameras(-20, 30), 4)
    assert np.array_equal(pixels(chain.restored), pixels(restored))
    assert len(chain.views) == 2
    for view, of_other in zip(chain.views, expected.views, strict=True):
        assert np.array_equal(pixels(view), pixels(of_other))
    assert torch.equal(chain.source_camera, expected.source_camera)
    assert not np.array_equal(pixels(one.views(photo(), cameras(-20, 30), 4).views[0]), pixels(chain.views[0]))


def test_a_constant_camera_is_given_and_not_reported(place, monkeypatch):
    """Assert that the pipeline is given the frontal camera, else none, and that it counts as no prediction."""
    given, call = [], NVBFacePipeline.__call__

    def note(pipeline, image, *args, source_cameras, **kwargs):
        given.append(source_cameras)
        return call(pipeline, image, *args, source_cameras=source_cameras, **kwargs)

    monkeypatch.setattr(NVBFacePipeline, "__call__", note)
    options = {"checkpoint": str(place / "pipeline"), "num_inference_steps": 2}
    predicted = OneStage(**options).views(photo(), cameras(15), seed=4)
    constant = OneStage(**options, constant_camera=True).views(photo(), cameras(15), seed=4)
    assert given[0] is None
    assert torch.equal(given[1], camera_from_angles(0, 0)[None])
    assert constant.source_camera is None
    assert predicted.source_camera.shape == (25,)


def test_the_mean_face_is_that_of_the_nearest_orientations(place):
    """Assert the mean of the two training pictures that are nearest to the camera, and of all for all."""
    # yaws are -20, 0 and 20, the pitch of identity i is 3 i: nearest to (-20, 1) are identities 0 and 1
    near = MeanFace(data_dir=str(place / "data"), neighbors=2)(photo(), camera_from_angles(-20, 1)[None], seed=0).views[
        0
    ]
    pictures = [pixels(Image.open(place / f"data/images/{i:06d}/00.png")) for i in (0, 1)]
    assert np.abs(pixels(near) - np.mean(pictures, axis=0)).max() <= 0.5


def test_predictions_go_on_where_they_were(place, tmp_path):
    """Assert that a complete identity is not made again, an incomplete one is, and both are what one run makes."""
    test_set, calls = load_test_set(place / "set"), []
    one_stage = OneStage(checkpoint=str(place / "pipeline"), num_inference_steps=1)

    def method(image, asked, seed):
        calls.append(seed)
        return one_stage(image, asked, seed)

    write_predictions(method, test_set, tmp_path / "p", num_orbits=1, num_orbit_frames=3)
    before = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(calls) == len(set(calls)) + 1 == 4
    assert len(list((tmp_path / "p/orbit").rglob("*.png"))) == 3
    second = test_set.identities[1]
    (tmp_path / "p" / second.identity / "done").unlink()
    (tmp_path / "p" / second.identity / f"{second.source_view:02d}.png").unlink()
    write_predictions(method, test_set, tmp_path / "p", num_orbits=1, num_orbit_frames=3)
    assert calls[4:] == [calls[2]]
    assert before == {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_the_input_is_its_own_restoration(place, tmp_path):
    """Assert that the rival without a model writes the input as every view and as the source view."""
    test_set = load_test_set(place / "set")
    write_predictions(InputAsView(), test_set, tmp_path)
    for identity in test_set.identities:
        pictures = sorted((tmp_path / identity.identity).glob("*.png"))
        assert len(pictures) == 3
        for path in pictures:
            assert np.array_equal(pixels(Image.open(path)), pixels(test_set.input(identity.identity)))


def test_a_comparison_from_its_file(place, tmp_path, monkeypatch):
    """Assert rows by preset and yaw, a missing pipeline named, figures of files, and nothing made twice."""
    rows = [
        {"name": "Ours!", "method": "one_stage", "checkpoint": str(place / "pipeline"), "presets": ["mild", "severe"]},
        {"name": "input", "method": "input"},
        {"name": "elsewhere", "method": "input", "presets": ["severe"]},
        {"name": "rival", "method": "two_stage", "checkpoint": str(place / "pipeline"), "view_checkpoint": "absent"},
    ]
    file = tmp_path / "comparison.json"
    values = {"title": "tiny", "rows": rows, "preset": "mild", "test_set": SET, "num_inference_steps": 1}
    values |= {"num_samples": 3, "num_calibrated": 2}
    file.write_text(json.dumps(values))
    results = compare(read_comparison(file), place / "data", tmp_path / "out", None)
    ran = [(row.name, row.preset) for row in results.rows]
    assert ran == [("Ours!", "mild"), ("Ours!", "severe"), ("input", "mild"), ("elsewhere", "severe")]
    assert results.not_run == {"rival": "no pipeline at absent"}
    assert set(results.by_preset) == {"Ours!"}
    assert set(results.by_preset["Ours!"]) == {"mild", "severe"}
    assert results.rows[0].source_camera.median > 0
    assert results.rows[2].source_camera is None
    leads = [(r.measure, r.required) for r in results.requirements if ", paired" in r.measure]
    assert leads == [
        ("PSNR of the views above `input`, paired", "clearly: interval above 0"),
        ("PSNR of the views above `elsewhere`, paired, at `severe`", ""),
    ]
    assert set(results.calibration) == {"mild", "severe"}
    assert results.calibration["mild"].deviation.mean > 0
    bins = results.rows[2].by_yaw
    assert [(entry.low, entry.high) for entry in bins] == [(20, 30), (30, 45)]  # views are 20 and 40 degrees apart
    for figure in results.figures:
        assert all((tmp_path / "out" / name).is_file() for row in figure.rows for name in row.images if name)
    assert Results.from_json(json.loads((tmp_path / "out/comparison.json").read_text())) == results
    monkeypatch.setattr("nvb_diffusers.evaluation.methods.save_image", None)  # a picture made again would fail
    assert compare(read_comparison(file), place / "data", tmp_path / "out", None) == results


def test_rows_are_drawn_by_rank(place, tmp_path, capsys):
    """Assert that the best person by SSIM comes first, with two rows, and one line for a rank that is not there."""
    rows = ({"name": "input", "method": "input"},)
    values = {"title": "tiny", "rows": rows, "preset": "severe", "test_set": SET, "num_inference_steps": 1}
    (tmp_path / "comparison.json").write_text(json.dumps(values))
    compare(read_comparison(tmp_path / "comparison.json"), place / "data", tmp_path / "out", None)
    options = ["--row", "input", "--preset", "severe", "--out", str(tmp_path / "rows.png")]
    command = ["eval", "rows", str(tmp_path / "out"), *options]
    assert main([*command, "--ranks", "1", "-1"]) == 0
    with Image.open(tmp_path / "rows.png") as sheet:
        assert sheet.size == (3 * (64 + 6) + 6, 4 * (64 + 13 + 12) + 6)
        first = pixels(sheet.crop((6, 6, 70, 70)))
    scores = [score for score in read_scores(tmp_path / "out/scores/input/severe") if score.task == "novel_views"]
    means = {
        s.identity: np.mean([other.values["SSIM"] for other in scores if other.identity == s.identity]) for s in scores
    }
    best = max(means, key=means.get)
    assert len(set(means.values())) == 3
    assert np.array_equal(first, pixels(Image.open(tmp_path / f"out/sets/severe/inputs/{best}.png")))
    assert main([*command, "--ranks", "4"]) == 2
    assert "--ranks 4: there are 3 people" in capsys.readouterr().err
    assert main([*command, "--row", "nobody"]) == 2
    assert "has no scores of views" in capsys.readouterr().err


def test_results_of_other_settings_are_not_gone_on_with(place, tmp_path):
    """Assert one error after other weights, steps or test sets, before anything of the old results is touched."""
    rows = [{"name": "ours", "method": "one_stage", "checkpoint": str(tmp_path / "pipeline")}]
    values = {"title": "t", "rows": rows, "preset": "mild", "test_set": SET, "num_inference_steps": 1}
    file = tmp_path / "comparison.json"

    def run(**change):
        file.write_text(json.dumps(values | change))
        return compare(read_comparison(file), place / "data", tmp_path / "out", None)

    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    before = run()
    for change in ({"num_inference_steps": 2}, {"test_set": SET | {"num_target_views": 1}}):
        with pytest.raises(ValueError, match="other settings, weights or data"):
            run(**change)
    assert run() == before
    tiny_pipeline(seed=1).save_pretrained(tmp_path / "pipeline")
    with pytest.raises(ValueError, match="other settings, weights or data"):
        run()


def test_results_of_other_data_are_not_gone_on_with(place, tmp_path):
    """Assert the same after a changed picture or line under its old name, a changed config, or mean faces of others."""
    made_of = {"data": tmp_path / "data", "pipeline": tmp_path / "pipeline"}
    shutil.copytree(place / "data", tmp_path / "kept/data")
    tiny_pipeline().save_pretrained(tmp_path / "kept/pipeline")
    rows = [
        {"name": "mean", "method": "mean_face", "neighbors": 2},
        {"name": "ours", "method": "one_stage", "checkpoint": str(made_of["pipeline"])},
    ]
    test_set = SET | {"split": "test", "num_identities": 1}
    values = {"title": "t", "rows": rows, "preset": "mild", "test_set": test_set, "num_inference_steps": 1}
    (tmp_path / "comparison.json").write_text(json.dumps(values))
    metadata, schedule = "data/images/metadata.jsonl", "pipeline/scheduler/scheduler_config.json"

    def run():
        return compare(read_comparison(tmp_path / "comparison.json"), made_of["data"], tmp_path / "out", None)

    def paint(split):
        lines = [json.loads(line) for line in (tmp_path / metadata).read_text().splitlines()]
        name = next(line["file_name"] for line in lines if line["split"] == split)
        Image.new("RGB", (64, 64), (0, 200, 0)).save(made_of["data"] / "images" / name)

    def replace_text(file, old, new):
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new))

    shutil.copytree(tmp_path / "kept", tmp_path, dirs_exist_ok=True)
    before = run()
    for change in (
        lambda: paint("test"),
        lambda: paint("train"),  # of which the mean faces are made
        lambda: replace_text(metadata, '"split": "test"', '"beard": "full", "split": "test"'),
        lambda: replace_text(schedule, '"leading"', '"trailing"'),
    ):
        change()
        with pytest.raises(ValueError, match="other settings, weights or data"):
            run()
        shutil.copytree(tmp_path / "kept", tmp_path, dirs_exist_ok=True)
    assert run() == before


def test_a_new_rival_is_one_class(place, tmp_path, monkeypatch):
    """Assert that a class of one's own, with an option, is compared and reported with no edit elsewhere."""
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.setattr(configuration, "METHODS", methods.METHODS)

    @methods.register("gray")
    @dataclass(frozen=True, kw_only=True)
    class Gray(methods.Method):
        brightness: float = 0.5

        def __call__(self, image, cameras, seed):
            return methods.Prediction(
                [Image.new("RGB", image.size, (round(255 * self.brightness),) * 3)] * len(cameras)
            )

    rows = [{"name": "input", "method": "input"}, {"name": "Gray, dark", "method": "gray", "brightness": 0.25}]
    values = {"title": "rivals", "rows": rows, "preset": "mild", "test_set": SET}
    (tmp_path / "rivals.json").write_text(json.dumps(values))
    results = compare(read_comparison(tmp_path / "rivals.json"), place / "data", tmp_path / "out", None)
    assert [row.name for row in results.rows] == ["input", "Gray, dark"]
    assert results.rows[1].summary.configuration["brightness"] == 0.25
    assert results.rows[1].summary.missing == {"novel_views": 0, "restoration": 3}
    (path, *_) = (tmp_path / "out/predictions/gray-dark/mild").rglob("*.png")
    assert set(np.unique(pixels(Image.open(path)))) == {64}
    assert "| Gray, dark | " in write_report(tmp_path / "out")[0].read_text()


def test_workers_give_what_one_process_gives(place, tmp_path):
    """Assert the results of one process from two, which compute in one thread each."""
    rows = [{"name": name, "method": name} for name in ("input", "mean_face")]
    values = {"title": "tiny", "rows": rows, "preset": "mild", "test_set": SET, "num_inference_steps": 1}
    (tmp_path / "comparison.json").write_text(json.dumps(values))
    comparison = read_comparison(tmp_path / "comparison.json")
    one, two = (
        compare(comparison, place / "data", tmp_path / str(workers), None, workers=workers) for workers in (1, 2)
    )
    assert_same_results(one, two)


def test_a_lead_is_paired_by_view(tmp_path):
    """Assert the mean difference over the views that both have, and an interval as narrow as they are alike."""
    psnr = {"one": (10.0, 20.0, 30.0), "other": (9.5, 19.5, 29.3), "far": (11.0, 15.0, 30.0)}
    for name, values in psnr.items():
        views = [("a", 0, values[0]), ("a", 1, values[1]), ("b", 0, values[2])] + [("c", 0, 50.0)] * (name == "one")
        scores = [Score("novel_views", identity, view, "", {"PSNR": value}) for identity, view, value in views]
        write_scores(tmp_path / name, [*scores, Score("restoration", "a", 0, "", {"PSNR": 1.0})])
    lead = paired_lead(tmp_path / "one", tmp_path / "other")
    assert astuple(lead) == pytest.approx(((0.5 + 0.5 + 0.7) / 3, 0.5, 0.7))
    assert astuple(paired_lead(tmp_path / "one", tmp_path / "far")) == pytest.approx((4 / 3, 0.0, 2.0))


def test_errors_by_yaw_are_means_of_their_bins(place, tmp_path):
    """Assert hand-made scores averaged by the angle between source and target."""
    test_set = load_test_set(place / "set")
    scores = [
        Score(
            "novel_views", identity.identity, target.view, "", {"PSNR": 10.0 + abs(target.view - identity.source_view)}
        )
        for identity in test_set.identities
        for target in identity.targets
    ]
    write_scores(tmp_path, scores)
    means = {(entry.low, entry.high): entry.psnr.mean for entry in errors_by_yaw(test_set, tmp_path)}
    assert means == {(20, 30): 11.0, (30, 45): 12.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titel": "x"}, r"c\.json: 'titel' is not known"),
        ({"title": 3}, "title is 3, expected a valid string"),
        ({"rows": []}, "at least one method"),
        ({"rows": [{"name": "a", "method": "magic"}]}, "method is 'magic'"),
        ({"rows": [{"name": "a", "method": "input", "fidelity": 1}]}, "'fidelity' is not known"),
        (
            {"rows": [{"name": "a", "method": "two_stage", "view_checkpoint": 1}]},
            "view_checkpoint is 1, expected a valid string",
        ),
        ({"test_set": {"num_people": 3}}, "'test_set.num_people' is not known"),
        ({"rows": [{"name": "a", "method": "input"}, {"name": "A!", "method": "input"}]}, "the same name"),
        ({"rows": [{"method": "input"}]}, "name"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, change, message):
    """Assert one line that names what is wrong."""
    rows = [{"name": "a", "method": "input"}]
    values = {"title": "t", "rows": rows, "preset": "mild", "test_set": {}, "num_inference_steps": 1, **change}
    (tmp_path / "c.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        read_comparison(tmp_path / "c.json")


def test_rows_become_folders():
    """Assert names without anything a file system minds."""
    assert row_folder("Two-stage: restore, then views!") == "two-stage-restore-then-views"


def test_packaged_comparisons_are_known_by_name(tmp_path):
    """Assert that each is whole and is found by its name, and that another name gets the list."""
    assert read_comparison("default").rows[0].name == "ours"
    assert len(read_comparison("ablations").rows) > 1
    with pytest.raises(
        ValueError, match=r"neither a file nor a packaged comparison \(ablations, appearance, default\)"
    ):
        read_comparison("defualt")
