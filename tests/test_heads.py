"""Synthetic heads: cameras that fit the pixels, depth that fits the cameras, the same bytes always, and a whole set."""

import json
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import cv2
import datasets
import numpy as np
import pytest
import torch
from conftest import group_ends

from nvb_diffusers.camera import camera_from_angles, project_points, unproject_points
from nvb_diffusers.data.datasets import MultiViewFaceDataset, SampleTransform
from nvb_diffusers.data.records import read_records

if find_spec("moderngl") is None or find_spec("anny") is None:
    pytest.skip("moderngl or anny is not installed", allow_module_level=True)

from nvb_diffusers.heads import cli, datasheet
from nvb_diffusers.heads.mesh.basis import default_cache, load_basis
from nvb_diffusers.heads.mesh.template import Template
from nvb_diffusers.heads.picture.cameras import label, look_at_origin, orbit, project
from nvb_diffusers.heads.picture.renderer import DEPTH_SCALE, Renderer
from nvb_diffusers.heads.picture.scene import make_scene

SIZE, VIEWS, IDENTITIES = 64, 3, 2
SMALL = ["--size", str(SIZE), "--views", str(VIEWS), "--identities", str(IDENTITIES), "--split_sizes", "0", "0"]


@pytest.fixture(scope="module")
def loaded(opengl):
    """A renderer at 128 px, with one identity loaded, and that scene."""
    template = Template(load_basis(default_cache()))
    renderer = Renderer(template, 128, 1.5)
    scene = make_scene(template, 0, 3)
    renderer.load(scene)
    return renderer, scene


def run(output_dir, *arguments):
    """Run the command with small images."""
    cli.render(cli.parse_args(["--output_dir", str(output_dir), *SMALL, *arguments]))
    return output_dir


def contents(folder):
    """The bytes of every file of a data set by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(opengl, tmp_path_factory):
    """A small set made by one worker."""
    return run(tmp_path_factory.mktemp("heads") / "one", "--workers", "1")


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (-37.0, 11.0), (58.0, -19.0)])
def test_cameras_are_the_package_s(yaw, pitch):
    """Assert that labels are those of `camera_from_angles`, and that points project as with `project_points`."""
    cam2world = look_at_origin(yaw, pitch)
    expected = camera_from_angles(yaw, pitch)
    torch.testing.assert_close(torch.tensor(label(cam2world)), expected, atol=1e-6, rtol=0)
    points = np.array([[0.1, -0.2, 0.15], [-0.05, 0.02, 0.2]])
    uv = project_points(torch.tensor(points), expected)[:, :2]
    torch.testing.assert_close(torch.tensor(project(points, cam2world)), uv, atol=1e-6, rtol=0, check_dtype=False)


@pytest.mark.parametrize("yaw", [0.0, 30.0, -30.0])
def test_a_landmark_is_where_it_is_seen(loaded, yaw, monkeypatch):
    """Assert that the pupils' landmarks lie within 1.5 px of the irises' centers, painted green and without lids."""
    renderer, scene = loaded
    cam2world = look_at_origin(yaw, 2.0)
    monkeypatch.setattr(renderer, "_draw_skin", lambda eye: None)
    monkeypatch.setattr(renderer, "strands", [])
    before = renderer.draw(cam2world).rgb.astype(int)
    eyes = renderer.surfaces["eyes"]
    iris = eyes["iris"].value
    eyes["iris"].value = (0.0, 8.0, 0.0)
    after = renderer.draw(cam2world).rgb.astype(int)
    eyes["iris"].value = iris
    changed = np.abs(after - before).sum(axis=-1) > 30
    pupils = np.array(scene.landmarks(cam2world, 128))[:2]
    y, x = np.mgrid[:128, :128] + 0.5
    for pupil in pupils:
        near = changed & (np.hypot(x - pupil[0], y - pupil[1]) < 8)
        assert 15 < near.sum() < 80
        assert np.hypot(x[near].mean() - pupil[0], y[near].mean() - pupil[1]) < 1.5


def test_nose_and_mouth_lie_on_the_surface(loaded):
    """Assert that the depth image, at the landmarks that no lid or strand covers, is the landmarks' own depth."""
    renderer, scene = loaded
    cam2world = look_at_origin(0.0, 0.0)
    depth = renderer.draw(cam2world).depth / DEPTH_SCALE
    landmarks = scene.head.to_world(scene.head.landmarks)[2:]
    forward = ((landmarks - cam2world[:3, 3]) @ cam2world[:3, :3])[:, 2]
    column, row = np.array(scene.landmarks(cam2world, 128))[2:].astype(int).T
    assert np.abs(depth[row, column] - forward).max() < 0.01  # of 0.633 units that the image spans


def test_depth_agrees_with_the_cameras(loaded):
    """Assert that the depth of one view, unprojected with its label, lies on the depth of another view."""
    renderer, _ = loaded
    cam2world = [look_at_origin(yaw, 0.0) for yaw in (-8.0, 8.0)]
    labels = [torch.tensor(label(camera)) for camera in cam2world]
    depths = []
    for camera in cam2world:
        depths.append(renderer.draw(camera).depth.astype(np.float32) / DEPTH_SCALE)
    inner = cv2.erode((depths[0] > 0).astype(np.uint8), np.ones((9, 9)))
    inner[:8] = inner[-8:] = 0  # may leave the other image
    row, column = np.nonzero(inner)
    uvz = np.stack([(column + 0.5) / 128, (row + 0.5) / 128, depths[0][row, column]], axis=1)
    points = unproject_points(torch.tensor(uvz, dtype=torch.float32), labels[0])
    u, v, z = project_points(points, labels[1]).T.numpy()
    there = depths[1][(v * 128).astype(int), (u * 128).astype(int)]
    assert len(z) > 2000
    assert np.median(np.abs(there - z)) < 0.003  # of 0.633 units that the image spans
    assert np.abs(points.numpy()).max() < 0.6


def test_any_number_of_workers_gives_the_same_bytes(whole, tmp_path):
    """Assert that two workers write the files of one worker, byte by byte."""
    assert contents(run(tmp_path / "two", "--workers", "2")) == contents(whole)


def test_a_killed_run_goes_on(whole, tmp_path):
    """Assert that no worker outlives a killed command, and that called again it ends with the set of one run."""
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "nvb_diffusers.heads.cli", "--output_dir", str(folder), *SMALL, "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while not list(folder.glob("images/*/00.webp")) and process.poll() is None:
        time.sleep(0.005)
    process.kill()  # the command alone
    assert process.wait() == -signal.SIGKILL
    assert group_ends(process.pid)
    assert not (folder / "images/metadata.jsonl").exists()
    assert contents(run(folder, "--workers", "1")) == contents(whole)


def test_other_settings_are_refused(whole):
    """Assert that a set is not mixed with images of another size."""
    with pytest.raises(ValueError, match="size = 64, now size = 32"):
        run(whole, "--size", "32")


def test_every_picture_has_a_face_in_frame(whole):
    """Assert that eyes, nose and mouth lie inside of every image, on the person."""
    records = read_records(whole)
    assert len(records) == IDENTITIES * VIEWS
    for record in records:
        landmarks = np.array(record["landmarks"])
        assert (landmarks > 0).all()
        assert (landmarks < SIZE).all()
        name = record["file_name"].removesuffix(".webp")
        mask = cv2.imread(str(whole / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        depth = cv2.imread(str(whole / "depth" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        x, y = landmarks.astype(int).T
        assert (mask[y, x] == 255).all()
        assert depth.dtype == np.uint16
        assert ((depth > 0) == (mask > 0)).mean() > 0.999
        assert 0.15 < (mask > 0).mean() < 0.95


def test_the_set_loads(whole):
    """Assert that `datasets` reads the folder, and step 2 its views with their cameras."""
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(whole / "images"), split="train", cache_dir=str(whole.parent)
    )
    assert len(loaded) == IDENTITIES * VIEWS
    assert loaded[0]["image"].size == (SIZE, SIZE)
    sample = MultiViewFaceDataset(whole, "train", SampleTransform(32, ("mild",), seed=0), num_target_views=2)[0]
    assert sample["camera_params"].shape == (3, 25)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--output_dir"),
        (["--output_dir", "x", "--size", "3"], "--size: '3' is not a whole number of at least 16"),
        (["--output_dir", "x", "--level", "-1"], "--level: '-1' is not a whole number of at least 0"),
        (["--output_dir", "x", "--cameras", "ring"], "random"),
        (["--output_dir", __file__], "is a file"),
    ],
)
def test_an_error_is_one_line(capsys, arguments, words):
    """Assert that a wrong argument ends the command with status 2 and one line that names it."""
    try:
        status = cli.main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nvb-heads: ")
    assert words in line


def test_the_datasheet_measures_a_set(rendered_heads, capsys):
    """Assert that the table counts the images and that hair covers a part of them, and that no set is one line."""
    assert datasheet.main(["--data_dir", str(rendered_heads)]) == 0
    rows = dict(line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert rows["images, identities"] == "32, 8"
    assert 0.02 < float(rows["hair area over image, from the front"].split()[0]) < 0.4
    assert datasheet.main(["--data_dir", str(rendered_heads / "images")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_orbits_are_evenly_spaced():
    """Assert that an orbit goes from yaw -45 to 45 at pitch 0."""
    labels = np.array([label(camera) for camera in orbit(5)])
    expected = np.array([camera_from_angles(yaw, 0.0).tolist() for yaw in (-45.0, -22.5, 0.0, 22.5, 45.0)])
    np.testing.assert_allclose(labels, expected, atol=1e-6)


def test_records_hold_the_attributes(whole):
    """Assert that an image's record says what was drawn, as JSON."""
    record = json.loads((whole / "images/metadata.jsonl").read_text().splitlines()[0])
    assert {
        "age",
        "melanin",
        "hair",
        "hat",
        "glasses",
        "earrings",
        "scarf",
        "light",
        "scene",
        "expression",
    } <= record.keys()
