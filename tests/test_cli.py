"""The command `nvb-face`: what it writes, what it prints, and that its errors are one line and leave nothing behind."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SIDE, tiny_pipeline
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, cli, loading
from nvb_diffusers.camera import camera_from_angles
from nvb_diffusers.cli.info import count_gflop, passes_gflop
from nvb_diffusers.data.contact_sheet import contact_sheet
from nvb_diffusers.data.degradation import DegradationParams, apply
from nvb_diffusers.provenance import mark_image


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a tiny pipeline of random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def face(tmp_path):
    """A square crop without a face in it, to be used with --aligned."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "face.png")
    return tmp_path / "face.png"


@pytest.fixture
def run(checkpoint, capsys):
    """Runs the command on the tiny checkpoint; gives exit status, standard output and the lines of standard error."""

    def call(*args, model=True):
        options = ("--checkpoint", checkpoint, "--steps", "2", "--device", "cpu") if model else ()
        try:
            status = cli.main([str(arg) for arg in (*args, *options)])
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return call


def everything_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_fewer_views_leave_none_of_before(run, face, tmp_path):
    """Assert that pictures which the record no longer tells of are gone, and that what is not ours stays."""
    run("views", face, "--aligned", "--num", "3", "--out", tmp_path / "o")
    (tmp_path / "o/mine.png").write_text("not a view")
    run("views", face, "--aligned", "--num", "2", "--out", tmp_path / "o")
    files = ["cameras.json", "contact_sheet.png", "mine.png", "view_00.png", "view_01.png"]
    assert everything_below(tmp_path / "o") == files


def test_a_video_that_breaks_off_is_an_error(checkpoint, face, tmp_path):
    """Assert one line and no file where there is no room for the video, of which ffmpeg says nothing."""
    words = ["orbit", str(face), str(tmp_path / "o.mp4"), "--aligned", "--checkpoint", str(checkpoint), "--steps", "1"]
    program = (
        "import resource, signal, sys; from nvb_diffusers.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "o.mp4': the video broke off" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "o.mp4").exists()


def test_a_line_of_pixels_stops_nobody(run, face, tmp_path):
    """Assert that a photo of which the detector sees nothing costs one line, and that the others are done."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40000, 10)).save(tmp_path / "photos/line.png")
    shutil.copy(ROOT / "examples/inputs/astronaut_small.jpg", tmp_path / "photos")
    status, _, errors = run("views", tmp_path / "photos", "--num", "1", "--out", tmp_path / "o")
    assert status == 1
    assert any("line.png: " in line and "no face" in line for line in errors)
    assert (tmp_path / "o/astronaut_small/view_00.png").is_file()


def test_views_writes_pictures_sheet_and_cameras(run, face, tmp_path):
    """Assert that each asked camera gives its picture, and that the JSON says which is which."""
    status, out, _ = run(
        "views", face, "--aligned", "--yaw", "-30:10", "--num", 3, "--pitch", -5, "--out", tmp_path / "o"
    )
    assert status == 0
    assert "3 views" in out
    files = ["cameras.json", "contact_sheet.png", "view_00.png", "view_01.png", "view_02.png"]
    assert everything_below(tmp_path / "o") == files
    record = json.loads((tmp_path / "o/cameras.json").read_text())
    assert [view["file"] for view in record["views"]] == files[2:]
    assert [(view["yaw_deg"], view["pitch_deg"]) for view in record["views"]] == [(-30, -5), (-10, -5), (10, -5)]
    torch.testing.assert_close(torch.tensor(record["views"][0]["camera"]), camera_from_angles(-30.0, -5.0))
    assert len(record["source"]["camera"]) == 25
    assert record["crop_affine"] is None
    with Image.open(tmp_path / "o/view_02.png") as view, Image.open(tmp_path / "o/contact_sheet.png") as sheet:
        assert view.size == (SIDE, SIDE)
        assert sheet.width > 4 * SIDE


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' solver on numpy 2.4
def test_views_are_those_of_the_pipeline(run, checkpoint, face, tmp_path):
    """Assert that the options reach the pipeline: the same picture as a direct call with that scheduler and seed."""
    options = ["--aligned", "--num", "1", "--yaw", "20:20", "--seed", "7", "--scheduler", "dpm++"]
    run("views", face, *options, "--out", tmp_path / "o")
    pipe = NVBFacePipeline.from_pretrained(checkpoint)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(7)
    expected = pipe(Image.open(face), cameras=[(20, 0)], num_inference_steps=2, generator=generator).images[0]
    with Image.open(tmp_path / "o/view_00.png") as view:
        marked = np.asarray(mark_image(expected)).astype(int)
        assert np.abs(np.asarray(view) - marked).max() <= 2  # of one level in the view the mark may make two
    run("views", face, *options, "--mark", "none", "--out", tmp_path / "plain")
    with Image.open(tmp_path / "plain/view_00.png") as view:
        assert np.abs(np.asarray(view).astype(int) - np.asarray(expected)).max() <= 1
        assert not view.info


def test_a_real_photo_is_cropped(run, tmp_path):
    """Assert that a photo goes through the face crop, whose affine is recorded."""
    photo = ROOT / "examples/inputs/astronaut_small.jpg"
    assert run("views", photo, "--num", 1, "--out", tmp_path / "o")[0] == 0
    affine = np.array(json.loads((tmp_path / "o/cameras.json").read_text())["crop_affine"])
    assert affine.shape == (2, 3)
    assert 0.5 < affine[0, 0] * 112 / 154 < 1.5  # about the whole head fills the crop


def test_folder_does_every_photo_it_can(run, face, tmp_path):
    """Assert that one bad file among photos costs one line and exit 1, and the others are done, each in its folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(face, folder / "a.png")
    shutil.copy(face, folder / "b.png")
    (folder / "bad.jpg").write_text("no picture")
    status, _, errors = run("views", folder, "--aligned", "--num", 1, "--out", tmp_path / "o")
    assert status == 1
    assert [line for line in errors if line.startswith("nvb-face:")] == errors[-2:]
    assert "bad.jpg" in errors[-2]
    assert "1 of 3" in errors[-1]
    (failure,) = map(json.loads, (tmp_path / "o/failed.jsonl").read_text().splitlines())
    assert failure["photo"] == "bad.jpg"
    assert "cannot read" in failure["reason"]
    files = ["cameras.json", "contact_sheet.png", "view_00.png"]
    made = ["a", *(f"a/{f}" for f in files), "b", *(f"b/{f}" for f in files)]
    assert everything_below(tmp_path / "o") == [*made, "failed.jsonl"]
    (folder / "bad.jpg").unlink()
    assert run("views", folder, "--aligned", "--num", 1, "--out", tmp_path / "o")[0] == 0
    assert everything_below(tmp_path / "o") == made


def test_what_a_folder_has_is_not_made_again(run, face, tmp_path):
    """Assert that only what is missing, of another photo, of other options or of other weights is made again."""
    (tmp_path / "photos").mkdir()
    for name in "ab":
        shutil.copy(face, tmp_path / f"photos/{name}.png")

    def made(*words):
        status, out, _ = run("views", tmp_path / "photos", "--aligned", "--num", 1, "--out", tmp_path / "o", *words)
        assert status == 0
        return [line.split(":")[0][-1] for line in out.splitlines() if "made before" not in line]

    assert made() == ["a", "b"]
    before = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*.*")}
    assert made() == []
    (tmp_path / "o/b/view_00.png").unlink()
    assert made() == ["b"]
    Image.new("RGB", (40, 40), "red").save(tmp_path / "photos/a.png")
    assert made() == ["a"]
    assert made("--seed", 1) == ["a", "b"]
    shutil.copy(face, tmp_path / "photos/a.png")
    assert made() == ["a", "b"]
    assert {path: path.read_bytes() for path in (tmp_path / "o").rglob("*.*")} == before


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_orbit_swings_there_and_back(run, face, tmp_path, suffix):
    """Assert that three cameras make a film of four frames: the ends are not shown twice."""
    status, out, _ = run("orbit", face, tmp_path / f"orbit{suffix}", "--aligned", "--num", 3)
    assert status == 0
    assert "3 views" in out
    assert everything_below(tmp_path) == ["face.png", f"orbit{suffix}"]
    if suffix == ".gif":
        with Image.open(tmp_path / "orbit.gif") as film:
            assert film.n_frames == 4


def test_restore_writes_one_picture(run, face, tmp_path):
    """Assert that the restored picture takes the photo's name and the pipeline's size."""
    assert run("restore", face, "--aligned", "--out", tmp_path / "o")[0] == 0
    with Image.open(tmp_path / "o/face.png") as picture:
        assert picture.size == (SIDE, SIDE)


def test_fidelity_reaches_the_pipeline(run, face, tmp_path):
    """Assert that what is asked of a restoration changes it, and one line where the pipeline cannot give it."""
    tiny_pipeline(appearance=True).save_pretrained(tmp_path / "faithful")
    options = ["--aligned", "--checkpoint", tmp_path / "faithful", "--steps", 1]
    for fidelity in (0, 1):
        words = [*options, "--fidelity", fidelity, "--out", tmp_path / str(fidelity)]
        assert run("restore", face, *words, model=False)[0] == 0
    assert (tmp_path / "0/face.png").read_bytes() != (tmp_path / "1/face.png").read_bytes()
    status, _, errors = run("restore", face, "--aligned", "--fidelity", 0.5, "--out", tmp_path / "o")
    assert status == 2
    assert "a pipeline with an appearance model" in errors[-1]


def test_backgrounds_reach_the_pipeline(run, face, tmp_path):
    """Assert that backdrop and color change views, and one line for what is neither or cannot be had."""
    tiny_pipeline(appearance=True).save_pretrained(tmp_path / "own")
    words = ["--aligned", "--checkpoint", tmp_path / "own", "--steps", 1, "--num", 1, "--yaw", "20:20"]
    for name in ("turn", "photo", "#00ff00"):
        options = [*words, "--background", name, "--out", tmp_path / name.strip("#")]
        assert run("views", face, *options, model=False)[0] == 0
    files = [(tmp_path / name / "view_00.png").read_bytes() for name in ("turn", "photo", "00ff00")]
    assert len(set(files)) == 3
    status, _, errors = run("views", face, "--aligned", "--background", "photo", "--out", tmp_path / "o")
    assert status == 2
    assert "without an appearance model has only turn" in errors[-1]
    status, _, errors = run("views", face, "--background", "blurred", "--out", tmp_path / "o")
    assert status == 2
    assert "'blurred' is not turn, photo or a color" in errors[-1]


def test_degrade_can_be_replayed_from_its_json(run, face, tmp_path):
    """Assert that the parameters written beside the picture give that picture again, and another seed another one."""
    assert run("degrade", face, "--preset", "mild", "--seed", 3, model=False)[0] == 0
    params = DegradationParams.from_json((tmp_path / "face_mild_3.json").read_text())
    with Image.open(face) as photo, Image.open(tmp_path / "face_mild_3.png") as degraded:
        np.testing.assert_array_equal(np.asarray(apply(photo.convert("RGB"), params)), np.asarray(degraded))
    assert run("degrade", face, "--preset", "mild", "--seed", 4, "--out", tmp_path / "o", model=False)[0] == 0
    assert (tmp_path / "o/face_mild_4.png").read_bytes() != (tmp_path / "face_mild_3.png").read_bytes()


def test_steps_unasked_are_those_of_the_checkpoint(face, checkpoint, tmp_path, run, monkeypatch):
    """Assert that who gives no steps gets what the checkpoint says, and the paper's 50 where it says nothing."""
    NVBFacePipeline(**tiny_pipeline().components, default_num_inference_steps=6).save_pretrained(tmp_path / "six")
    asked = []
    set_timesteps = DDIMScheduler.set_timesteps

    def note(scheduler, steps, *args, **kwargs):
        asked.append(steps)
        return set_timesteps(scheduler, steps, *args, **kwargs)

    monkeypatch.setattr(DDIMScheduler, "set_timesteps", note)
    for path, steps in ((tmp_path / "six", 6), (checkpoint, 50)):
        for extra, expected in (([], steps), (["--steps", 7], 7)):
            options = ["--aligned", "--out", tmp_path / "o", "--device", "cpu", "--checkpoint", path, *extra]
            assert run("restore", face, *options, model=False)[0] == 0
            assert set(asked) == {expected}
            asked.clear()


def test_info_counts_parameters_and_work(run, checkpoint):
    """Assert that the table holds each component's true number of parameters."""
    status, out, _ = run("info", "--checkpoint", checkpoint, model=False)
    assert status == 0
    pipe = tiny_pipeline()
    for name in ("image_encoder", "view_transformer", "unet", "vae"):
        count = sum(p.numel() for p in getattr(pipe, name).parameters())
        (line,) = [line for line in out.splitlines() if line.startswith(name)]
        assert f"{count:,}" in line
    assert "UNet step" in out


def test_info_of_the_paper_size_needs_no_memory(run):
    """Assert that the paper's pipeline is described: 116M encoder and 866M UNet in bfloat16."""
    status, out, errors = run("info", "--paper-size", model=False)
    assert status == 0
    assert errors == []
    assert "115,809,216" in out
    assert "865,910,724" in out
    assert "512x512" in out


def test_gflop_of_a_matrix_product_and_of_twice_the_views():
    """Assert that a product of 20x30 and 30x50 counts 60,000 operations, and that guidance-free passes are positive."""
    assert count_gflop(lambda: torch.ones(20, 30) @ torch.ones(30, 50)) == pytest.approx(2 * 20 * 30 * 50 / 1e9)
    gflop = passes_gflop(tiny_pipeline())
    assert list(gflop) == ["encoder pass", "source", "volume", "view", "UNet step", "decoding"]
    assert min(gflop.values()) > 0
    assert "view" not in passes_gflop(tiny_pipeline(view_transformer=False))
    assert passes_gflop(tiny_pipeline(appearance=True))["fusion"] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("views", "none.jpg", "--out", "o"), "there is no photo 'none.jpg'"),
        (("views", "face.png", "--out", "o", "--yaw", "30"), "-45:45"),
        (("views", "face.png", "--out", "o", "--num", "0"), "at least 1"),
        (("views", "face.png", "--out", "face.png"), "is a file"),
        (("views", "text.jpg", "--out", "o"), "Pillow cannot decode it"),
        (("views", "empty", "--out", "o"), "holds no photo"),
        (("views", "wide.png", "--aligned", "--out", "o"), "square"),
        (("views", "face.png", "--out", "o", "--device", "quantum"), "quantum"),
        (("views", "face.png", "--out", "o", "--scheduler", "magic"), "magic"),
        (("views", "face.png", "--out", "o", "--detector", "text.jpg"), "ONNX"),
        (("orbit", "face.png", "film.avi"), ".mp4 or a .gif"),
        (("orbit", "empty", "film.gif"), "is a folder"),
        (("views", "face.png", "--out", "o", "--checkpoint", "no/such/folder"), "neither a folder nor a Hub id"),
        (("degrade", "face.png", "--preset", "cruel"), "cruel"),
        (("degrade", "face.png", "--seed", "-1"), "seed"),
        ((), "COMMAND"),
        (("eval",), "COMMAND"),
        (("eval", "make-set", "empty", "--out", "set"), "no data set at empty"),
        (("eval", "make-set", "empty", "--out", "set", "--preset", "cruel"), "cruel"),
        (("eval", "make-set", "empty", "--out", "set", "--num-identities", "-3"), "at least 0"),
        (("eval", "score", "empty", "empty", "--camera-predictor", "none"), "no test set at empty"),
        (("eval", "compare", "nothing", "empty", "--out", "o"), "neither a file nor a packaged comparison"),
        (("eval", "compare", "text.jpg", "empty", "--out", "o"), "text.jpg is not JSON"),
        (("eval", "compare", "default", "empty", "--out", "o", "--workers", "0"), "at least 1"),
        (("eval", "report", "empty"), "no comparison.json"),
        (("eval", "rows", "empty", "--out", "rows.png", "--ranks", "first"), "first"),
        (("eval", "rows", "empty", "--out", "rows.png"), "no scores of views"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors_are_one_line_and_leave_nothing(run, checkpoint, face, tmp_path, monkeypatch, args, message):
    """Assert that what cannot be done exits 2 with one line that says why, and that no file appears."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (60, 40)).save("wide.png")
    before = everything_below(tmp_path)
    model = bool(args) and args[0] not in ("degrade", "eval") and "--checkpoint" not in args and "--device" not in args
    if "--device" in args:
        args = (*args, "--checkpoint", checkpoint)
    status, out, errors = run(*args, model=model)
    assert status == 2
    assert out == ""
    assert len(errors) == 1
    assert message in errors[0]
    assert everything_below(tmp_path) == before


def test_only_measuring_imports_its_libraries():
    """Assert that help and views know nothing of the extras of training and evaluation, nor of what measures."""
    code = """import sys
from nvb_diffusers.cli import main
for argv in (["--help"], ["views", "none.jpg", "--out", "o"]):
    try:
        main(argv)
    except SystemExit:
        pass
names = {name.split(".")[0] for name in sys.modules} | set(sys.modules)
print(names & {"datasets", "torchmetrics", "nvb_diffusers.evaluation.metrics", "nvb_diffusers.training"})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_step_1_pipeline_restores_but_has_no_views(run, face, tmp_path):
    """Assert that without a view transformer `restore` works and `views` says why it cannot."""
    tiny_pipeline(view_transformer=False).save_pretrained(tmp_path / "step1")
    options = ("--aligned", "--out", tmp_path / "o", "--checkpoint", tmp_path / "step1", "--steps", 1)
    assert run("restore", face, *options, model=False)[0] == 0
    status, _, errors = run("views", face, *options, model=False)
    assert status == 2
    assert len(errors) == 1
    assert "view transformer" in errors[0]


def test_a_failed_write_leaves_nothing(run, face, tmp_path, monkeypatch):
    """Assert that the files of a photo appear together or not at all, and that the error is one line."""

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("nvb_diffusers.cli.views.contact_sheet", fail)
    status, _, errors = run("views", face, "--aligned", "--num", 1, "--out", tmp_path / "o")
    assert status == 2
    assert errors[-1] == "nvb-face: disk full"
    assert everything_below(tmp_path) == ["face.png"]


def test_missing_default_weights_are_named(monkeypatch, face, run, tmp_path):
    """Assert that a build without weights says so and names the option."""
    absent = DEFAULT_CHECKPOINT + "_absent"
    monkeypatch.setattr(loading, "DEFAULT_CHECKPOINT", absent)
    status, _, errors = run("restore", face, "--out", tmp_path / "o", "--checkpoint", absent, model=False)
    assert status == 2
    assert len(errors) == 1
    assert "no trained weights" in errors[0]


def test_contact_sheet_holds_the_pictures_in_rows():
    """Assert that five pictures in rows of three lie where the grid says, each unchanged."""
    colors = [(10 * i, 200, 5 * i) for i in range(5)]
    sheet = contact_sheet([Image.new("RGB", (30, 20), color) for color in colors], list("abcde"), columns=3)
    for index, color in enumerate(colors):
        row, column = divmod(index, 3)
        assert sheet.getpixel((6 + 36 * column + 15, 6 + 45 * row + 10)) == color


def photos_of(folder, face, names):
    """A folder with copies of a photo under these names, and what they hold."""
    folder.mkdir()
    for name in names:
        with Image.open(face) as image:
            image.resize((48, 48)).save(folder / name, format="PNG")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("restore", "photos", "--aligned", "--out", "photos"), "the photos' own folder"),
        (("restore", "photos/me.png", "--aligned", "--out", "photos"), "the photos' own folder"),
        (("restore", "photos", "--aligned", "--out", "link"), "the photos' own folder"),
        (("restore", "photos/me.png", "--aligned", "--out", "hard"), "is the photo itself"),
        (("views", "photos", "--aligned", "--num", "1", "--out", "photos"), "the photos' own folder"),
        (("views", "photos/view_00.png", "--aligned", "--num", "1", "--out", "photos"), "is the photo itself"),
        (("orbit", "photos/me.gif", "photos/me.gif", "--aligned", "--num", "2"), "is the photo itself"),
        (("orbit", "photos/me.gif", "link/../link/me.gif", "--aligned", "--num", "2"), "is the photo itself"),
        (("degrade", "photos"), "view_00_severe_0.png' exists and is no degraded copy"),
        (("degrade", "photos/me.png"), "me_severe_0.png' exists and is no degraded copy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_no_photo_is_written_over(run, face, tmp_path, monkeypatch, args, message):
    """Assert that an output that would take a photo's place is refused in one line, by whatever path it is given."""
    monkeypatch.chdir(tmp_path)
    photos = photos_of(
        tmp_path / "photos", face, ["me.png", "me.gif", "view_00.png", "me_severe_0.png", "view_00_severe_0.png"]
    )
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard/me.png").hardlink_to(tmp_path / "photos/me.png")
    before = everything_below(tmp_path)
    status, _, errors = run(*args, model=args[0] != "degrade")
    assert status == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert everything_below(tmp_path) == before
    assert {name: (tmp_path / "photos" / name).read_bytes() for name in photos} == photos


def test_each_photo_of_a_folder_has_a_result_of_its_own(run, face, tmp_path):
    """Assert that names that share a stem, contain one another or differ in capitals give as many results."""
    names = ["a.jpg", "a.png", "a.jpg.png", "B.png", "b.jpg", "c d#+.png", "x" * 251 + ".png", "phone.jfif"]
    names.append("failed.jsonl.png")  # whose stem is the name of the list of those that failed
    photos = photos_of(tmp_path / "photos", face, names)
    for command in (["restore"], ["views", "--num", "1"]):
        out = tmp_path / command[0]
        status, _, errors = run(*command, tmp_path / "photos", "--aligned", "--out", out)
        assert status == 0, errors[-2:]
        results = {path.name.casefold() for path in out.iterdir()}
        assert len(results) == len(photos)


def test_degrading_a_folder_twice_leaves_its_results_alone(run, face, tmp_path):
    """Assert that a second call degrades the photos again, by another preset too, and never a degraded copy."""
    photos_of(tmp_path / "photos", face, ["a.png", "b.jpg"])
    for options in ([], [], ["--preset", "mild"], ["--seed", 1]):
        assert run("degrade", tmp_path / "photos", *options, model=False)[0] == 0
    results = {f"{name}_{end}" for name in "ab" for end in ("severe_0", "mild_0", "severe_1")}
    expected = {f"{name}.{suffix}" for name in results for suffix in ("png", "json")} | {"a.png", "b.jpg"}
    assert set(everything_below(tmp_path / "photos")) == expected


def test_a_view_of_before_is_no_photo_to_remove(run, face, tmp_path):
    """Assert that fewer views of a view are refused, which would remove it, and made elsewhere; it stays to the bit."""
    assert run("views", face, "--aligned", "--num", 3, "--out", tmp_path / "out")[0] == 0
    view = tmp_path / "out/view_02.png"
    before = view.read_bytes()
    status, _, errors = run("views", view, "--aligned", "--num", 2, "--out", tmp_path / "out")
    assert status == 2
    assert any("is the photo itself" in line for line in errors)
    assert run("views", view, "--aligned", "--num", 2, "--out", tmp_path / "other")[0] == 0
    assert view.read_bytes() == before


def test_a_link_that_leads_nowhere_stops_no_other_photo(run, face, tmp_path):
    """Assert exit 1, a line that names it, and the views of the other."""
    photos_of(tmp_path / "photos", face, ["a.png"])
    (tmp_path / "photos/b.png").symlink_to("nowhere")
    words = ["--aligned", "--num", 1, "--out", tmp_path / "out"]
    status, _, errors = run("views", tmp_path / "photos", *words)
    assert status == 1
    assert any("b.png: cannot read image" in line for line in errors)
    assert (tmp_path / "out/a/view_00.png").is_file()


def test_photos_left_out_for_their_endings_are_named(run, face, tmp_path):
    """Assert that one line counts them, without hidden files and our own JSON, and that it says what helps."""
    photos_of(tmp_path / "photos", face, ["a.png"])
    for name in ("b.HEIC", "c.heic", "d.cr2", "noending", ".DS_Store", "._a.png", "Thumbs.db", "a.json"):
        (tmp_path / "photos" / name).touch()
    status, _, errors = run("degrade", tmp_path / "photos", model=False)
    assert status == 0
    assert errors == [
        f"note: '{tmp_path / 'photos'}': left out for their endings: 1 with .cr2, 2 with .heic, 1 with no ending; "
        "pip install pillow-heif for .heic"
    ]
    (tmp_path / "photos/a.png").unlink()
    status, _, errors = run("degrade", tmp_path / "photos", "--out", tmp_path / "o", model=False)
    assert status == 2
    assert "holds no photo" in errors[0]
    assert "2 with .heic" in errors[0]


def test_names_that_are_not_utf8_are_done_and_printed(face, tmp_path):
    """Assert that a console in ASCII gets a line for a photo whose name no encoding can show, and that it is done."""
    name = os.fsdecode(b"caf\xe9.png")
    photos_of(tmp_path / "photos", face, [name, "d\N{LATIN SMALL LETTER E WITH ACUTE}.png"])
    code = "import sys; from nvb_diffusers.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "degrade", tmp_path / "photos", "--out", tmp_path / "o"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == b""
    assert len(everything_below(tmp_path / "o")) == 4
