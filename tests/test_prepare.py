"""The preparation scripts, on small sets made in the formats they read: known 3D points land on the right pixels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, load_script
from PIL import Image

from nvb_diffusers.camera import camera_from_angles, join_camera, mirror_camera, project_points, split_camera
from nvb_diffusers.data.images import load_photo
from nvb_diffusers.data.records import read_records, save_image, split_by_identity, write_records

DOT = (0.11, 0.09, 0.06)  # a point of our world, off every axis


ffhq, nersemble, panohead, resized = (
    load_script(f"prepare_{name}") for name in ("ffhq", "nersemble", "panohead", "resized")
)


def draw_dot(width, height, center, sigma=2.5):
    """A gray picture with one bright dot at (x, y) pixels from its top left edge."""
    x, y = np.arange(width) + 0.5 - center[0], np.arange(height) + 0.5 - center[1]
    dot = np.exp(-(x[None] ** 2 + y[:, None] ** 2) / (2 * sigma**2))
    return Image.fromarray(np.repeat((40 + 200 * dot)[..., None], 3, axis=2).round().astype(np.uint8))


def find_dot(path):
    """The center (x, y) of the bright dot, in pixels from the top left edge."""
    weights = np.asarray(load_photo(path), dtype=np.float64).mean(2)
    weights = np.where(weights > 70, weights - 40, 0)
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


def project_dot(camera, size, point=DOT):
    """Where our projection puts a point of our world in a prepared picture, in pixels."""
    point, camera = torch.tensor([point], dtype=torch.float64), torch.tensor(camera, dtype=torch.float64)
    return project_points(point, camera)[0, :2].numpy() * size


def orbit(num_views, pitch=7.0):
    return [camera_from_angles(yaw, pitch).tolist() for yaw in np.linspace(-50, 50, num_views)]


def assert_dots_land(folder, size, num_pictures):
    records = read_records(folder)
    assert len(records) == num_pictures
    for record in records:
        path = Path(folder) / "images" / record["file_name"]
        assert load_photo(path).size == (size, size)
        np.testing.assert_allclose(find_dot(path), project_dot(record["camera"], size), atol=0.1)
    return records


# Any set at another size


@pytest.fixture
def heads(tmp_path):
    """A set of 2 identities x 3 views at 60 px in our format, a dot in each picture."""
    records = []
    for identity in range(2):
        for view, camera in enumerate(orbit(3)):
            name = f"{identity:04d}/{view:02d}.webp"
            center = project_dot(camera, 60)
            save_image(draw_dot(60, 60, center), tmp_path / "heads/images" / name)
            record = {"file_name": name, "identity": identity, "view": view, "camera": camera, "beard": "none"}
            records.append({**record, "landmarks": [center.tolist()] * 5, "split": ("train", "test")[identity]})
    write_records(tmp_path / "heads", records)
    return tmp_path / "heads"


def resize_arguments(heads, size=30, **others):
    arguments = {"data_dir": heads, "output_dir": heads.parent / "small", "size": size, "workers": 2, **others}
    return [text for name, value in arguments.items() for text in (f"--{name}", str(value))]


@pytest.mark.parametrize(("size", "suffix"), [(30, "webp"), (84, "png")])
def test_resized_set_keeps_all_but_the_size(heads, size, suffix):
    """Assert that dots and landmarks scale with the picture and everything else of a record stays."""
    assert resized.main(resize_arguments(heads, size, format=suffix)) == 0
    records = assert_dots_land(heads.parent / "small", size, num_pictures=6)
    for before, after in zip(read_records(heads), records, strict=True):
        assert after["file_name"] == before["file_name"].replace(".webp", f".{suffix}")
        np.testing.assert_allclose(after["landmarks"], np.array(before["landmarks"]) * size / 60, atol=1e-3)
        different = {key for key in before if before[key] != after[key]}
        assert different - {"file_name"} == {"landmarks"}


def test_resizing_goes_on_after_a_broken_picture(heads, capsys):
    """Assert that an unreadable picture gives one line and no metadata, and a second run makes only what is missing."""
    broken = heads / "images/0001/02.webp"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    assert resized.main(resize_arguments(heads)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: cannot read image")
    assert message.count("\n") == 1
    small = heads.parent / "small"
    assert not (small / "images/metadata.jsonl").exists()
    assert not list(small.rglob("*.part"))
    done = {path: path.stat().st_mtime_ns for path in small.rglob("*.webp")}
    broken.write_bytes(whole)
    assert resized.main(resize_arguments(heads)) == 0
    assert len(read_records(small)) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())


def test_resizing_refuses_a_folder_of_another_size(heads, capsys):
    """Assert that pictures of two sizes never mix in one folder, and a bad size makes no folder."""
    assert resized.main(resize_arguments(heads, 30)) == 0
    assert resized.main(resize_arguments(heads, 20)) == 2
    assert "was prepared with size = 30, now size = 20" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        resized.main(resize_arguments(heads, 0, output_dir=heads.parent / "none"))
    assert stop.value.code == 2
    assert not (heads.parent / "none").exists()


def test_resizing_refuses_oblong_pictures(heads, capsys):
    """Assert that a picture that is not square is named instead of squeezed."""
    save_image(Image.new("RGB", (60, 50)), heads / "images/0000/01.webp")
    assert resized.main(resize_arguments(heads)) == 2
    assert "01.webp is 60x50, expected a square" in capsys.readouterr().err


def test_script_runs_as_a_command(heads):
    """Assert that from the command line an error is one line and exit code 2, without a traceback."""
    command = [sys.executable, str(ROOT / "training/prepare_resized.py"), *resize_arguments(heads, data_dir="nothing")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith("error: no data set at nothing")


# FFHQ


def test_ffhq_without_labels_has_landmarks_and_no_camera(tmp_path):
    """Assert that FFHQ's 68 points become our five, scaled from its 1024 px, and no camera is made up."""
    points = np.zeros((68, 2))
    points[36:42] = np.add((400, 480), [[-20, 0], [-10, -8], [10, -8], [20, 0], [10, 8], [-10, 8]])
    points[42:48], points[30], points[48], points[54] = (624, 480), (512, 600), (420, 720), (604, 720)
    entries = {}
    for number in (0, 1003):
        save_image(Image.new("RGB", (64, 64)), tmp_path / f"ffhq/{number // 1000 * 1000:05d}/{number:05d}.png")
        image = {"pixel_size": [1024, 1024], "face_landmarks": points.tolist()}
        entries[str(number)] = {"category": "training", "image": image, "in_the_wild": {}}
    (tmp_path / "ffhq.json").write_text(json.dumps(entries))
    folders = ["--image_dir", str(tmp_path / "ffhq"), "--output_dir", str(tmp_path / "out")]
    assert ffhq.main([*folders, "--metadata", str(tmp_path / "ffhq.json"), "--size", "32"]) == 0
    records = read_records(tmp_path / "out")
    assert [(record["file_name"], record["identity"]) for record in records] == [
        ("000000/00.webp", 0),
        ("001003/00.webp", 1003),
    ]
    assert all("camera" not in record for record in records)
    assert records[0]["landmarks"] == [[12.5, 15.0], [19.5, 15.0], [16.0, 18.75], [13.125, 22.5], [18.875, 22.5]]


@pytest.mark.parametrize("renumbered", [False, True])
def test_ffhq_with_eg3d_labels_leaves_mirrored_copies_out(tmp_path, renumbered):
    """Assert that cameras fit their pictures, and that copies are found by name or, renumbered, by their camera."""
    labels = []
    for number, camera in enumerate(orbit(3, pitch=4.0)):
        names = f"00000/img{2 * number:08d}.png", f"00000/img{2 * number + 1:08d}.png"
        if not renumbered:
            names = f"{number:05d}.png", f"{number:05d}_mirror.png"
        mirrored = mirror_camera(torch.tensor(camera, dtype=torch.float64)).tolist()
        for name, label in zip(names, (camera, mirrored), strict=True):
            save_image(draw_dot(80, 80, project_dot(label, 80)), tmp_path / "eg3d" / name)
            labels.append([name, label])
    labels = labels if renumbered else labels[::2] + labels[1::2]  # mirror_dataset.py appends the copies
    (tmp_path / "eg3d/dataset.json").write_text(json.dumps({"labels": labels}))
    arguments = ["--image_dir", str(tmp_path / "eg3d"), "--labels", str(tmp_path / "eg3d/dataset.json")]
    assert ffhq.main([*arguments, "--output_dir", str(tmp_path / "out"), "--size", "48"]) == 0
    # A frontal camera is its own mirror image, and so is its copy.
    expected = [0, 2, 4] if renumbered else [0, 1, 2]
    records = assert_dots_land(tmp_path / "out", 48, num_pictures=3)
    assert [record["identity"] for record in records] == expected


def test_ffhq_refuses_what_it_cannot_match(tmp_path, capsys):
    """Assert that two crops at once, pictures of one number and missing landmarks are refused, with nothing written."""
    save_image(Image.new("RGB", (8, 8)), tmp_path / "a/00007.png")
    (tmp_path / "ffhq.json").write_text("{}")
    folders = ["--image_dir", str(tmp_path / "a"), "--output_dir", str(tmp_path / "out")]
    assert ffhq.main([*folders, "--metadata", "x.json", "--labels", "y.json"]) == 2
    assert ffhq.main([*folders, "--metadata", str(tmp_path / "ffhq.json")]) == 2
    save_image(Image.new("RGB", (8, 8)), tmp_path / "a/b/img7.png")
    assert ffhq.main(folders) == 2
    errors = capsys.readouterr().err.splitlines()
    for error, message in zip(errors, ("different crops", "no 68 landmarks for picture 7", "same number"), strict=True):
        assert message in error
    assert not (tmp_path / "out").exists()


# PanoHead, EG3D


def make_views(folder, name_of, seeds=(3, 11), num_views=4):
    """Pictures of an even orbit per seed, whose two middle cameras mirror each other, and their dataset.json."""
    labels = []
    for seed in seeds:
        for view, camera in enumerate(orbit(num_views)):
            save_image(draw_dot(72, 72, project_dot(camera, 72)), folder / name_of(seed, view))
            labels.append([name_of(seed, view), camera])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


@pytest.mark.parametrize(
    ("name_of", "regex"),
    [
        (lambda seed, view: f"seed{seed:04d}/{view}.png", None),
        (lambda seed, view: f"00000/seed{seed:04d}_view{view}.png", r"(seed\d+)_"),
    ],
)
def test_panohead_views_are_grouped_by_identity(tmp_path, name_of, regex):
    """Assert that all views of a seed form one identity in order, mirrored pairs included, and dots land."""
    make_views(tmp_path / "views", name_of)
    arguments = ["--data_dir", str(tmp_path / "views"), "--output_dir", str(tmp_path / "out"), "--size", "40"]
    assert panohead.main(arguments + (["--identity_regex", regex] if regex else [])) == 0
    records = assert_dots_land(tmp_path / "out", 40, num_pictures=8)
    pairs = [(record["identity"], record["view"]) for record in records]
    assert pairs == [(seed, view) for seed in ("seed0003", "seed0011") for view in range(4)]


@pytest.mark.parametrize(
    ("change", "regex", "message"),
    [
        (lambda labels: labels[5][1].pop(), None, "seed0011/1.png: camera has shape (24,)"),
        (lambda labels: labels[0].append(1), None, "holds no cameras"),
        (lambda labels: labels[3].__setitem__(0, 7), None, "holds no cameras"),
        (lambda labels: labels.clear(), None, "holds no cameras"),
        (lambda labels: None, "seed", "has no group"),
        (lambda labels: None, "(s", "--identity_regex '(s' is no pattern: missing )"),
        (lambda labels: None, "(person)", "finds nothing in seed0003/0.png"),
        (lambda labels: labels[2].__setitem__(0, "2.png"), None, "2.png is in no folder of its own"),
    ],
)
def test_panohead_refuses_bad_labels(tmp_path, capsys, change, regex, message):
    """Assert that labels or an expression that cannot be used are named in one line, with nothing written."""
    make_views(tmp_path / "views", lambda seed, view: f"seed{seed:04d}/{view}.png")
    path = tmp_path / "views/dataset.json"
    content = json.loads(path.read_text())
    change(content["labels"])
    path.write_text(json.dumps(content))
    arguments = ["--data_dir", str(tmp_path / "views"), "--output_dir", str(tmp_path / "out")]
    assert panohead.main(arguments + (["--identity_regex", regex] if regex else [])) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# NeRSemble

SERIALS = ("220700191", "221501007", "222200036", "222200037", "222200049")
FULL_INTRINSICS = np.array([[6400.0, 0, 1120], [0, 6420, 1590], [0, 0, 1]])
SHRINK = 8  # pictures of 275 x 401
METERS = 0.37  # a unit of our world in meters


def subject_world(seed):
    """A rotation (3, 3) and a translation (3,) from our world, in meters, to the world of a subject's calibration."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return rotation * np.linalg.det(rotation), np.array([0.3, -0.8, 1.1]) * (seed % 5)


def make_subject(root, subject, moments, layout="frames", offset=(0.0, 0.0, 0.0)):
    """A subject in NeRSemble's format, a dot in each picture; returns its landmarks.

    The five points are those of the mean face, moved by the offset (in our world) at every second moment.
    """
    rotation, translation = subject_world(int(subject))
    world_2_cam, landmarks = {}, {}
    for serial, yaw in zip(SERIALS, (-62, -25, 0, 31, 60), strict=True):
        ours = camera_from_angles(yaw, 6.0, roll_deg=yaw / 6, radius=2.3 + yaw / 300).double()
        cam2world = split_camera(ours)[0].numpy()
        source = np.eye(4)
        source[:3, :3] = rotation @ cam2world[:3, :3]
        source[:3, 3] = METERS * rotation @ cam2world[:3, 3] + translation
        world_2_cam[serial] = np.linalg.inv(source)
    folder = root / subject if layout == "frames" else root / subject / "calibration"
    folder.mkdir(parents=True)
    calibration = {"world_2_cam": {serial: matrix.tolist() for serial, matrix in world_2_cam.items()}}
    (folder / "camera_params.json").write_text(json.dumps({**calibration, "intrinsics": FULL_INTRINSICS.tolist()}))
    for number, (sequence, timestep) in enumerate(moments):
        ours = np.vstack([nersemble.MEAN_HEAD + np.array(offset) * (number % 2), DOT])
        points = METERS * ours @ rotation.T + translation
        for serial, matrix in world_2_cam.items():
            seen = (points @ matrix[:3, :3].T + matrix[:3, 3]) @ FULL_INTRINSICS.T
            pixels = seen[:, :2] / seen[:, 2:] / SHRINK
            image = draw_dot(275, 401, pixels[5], sigma=5)
            if layout == "frames":
                save_image(image, root / subject / f"sequences/{sequence}/frame_{timestep}/images-2x/cam_{serial}.png")
            else:
                write_video(root / subject / f"sequences/{sequence}/images/cam_{serial}.mp4", image, int(timestep))
            landmarks[f"{subject}/{sequence}/{timestep}/{serial}"] = pixels[:5].tolist()
    return landmarks


def write_video(path, image, timestep):
    """A video of black frames but for one, and one more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    even = image.resize((276, 402))  # the codec wants even sizes; the shape stays within one percent
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 24, even.size)
    for number in range(timestep + 2):
        frame = np.asarray(even)[..., ::-1] if number == timestep else np.zeros((402, 276, 3), dtype=np.uint8)
        video.write(np.ascontiguousarray(frame))
    video.release()


def prepare_nersemble(root, landmarks, *arguments, size=96):
    (root.parent / "landmarks.json").write_text(json.dumps(landmarks))
    folders = ["--data_dir", str(root), "--output_dir", str(root.parent / "out"), "--workers", "2"]
    return nersemble.main(
        [*folders, "--landmarks", str(root.parent / "landmarks.json"), "--size", str(size), *arguments]
    )


def test_nersemble_points_land_through_the_reported_similarity(tmp_path):
    """Assert that a point known in the subject's world, moved by the reported similarity, projects onto its dot."""
    moments = [("EMO-1-shout+laugh", "00012"), ("EXP-2-eyes", "00003")]
    landmarks = make_subject(tmp_path / "data", "018", moments) | make_subject(tmp_path / "data", "240", moments[:1])
    assert prepare_nersemble(tmp_path / "data", landmarks) == 0
    records = assert_dots_land(tmp_path / "out", 96, num_pictures=15)
    similarities = json.loads((tmp_path / "out/similarities.json").read_text())
    assert sorted(similarities) == ["018", "240"]
    for record in records:
        rotation, translation = subject_world(int(record["subject"]))
        source_point = METERS * rotation @ DOT + translation
        similarity = similarities[record["subject"]]
        point = similarity["scale"] * np.array(similarity["rotation"]) @ source_point + similarity["translation"]
        np.testing.assert_allclose(point, DOT, atol=1e-6)
        dot = find_dot(tmp_path / "out/images" / record["file_name"])
        np.testing.assert_allclose(dot, project_dot(record["camera"], 96, point.tolist()), atol=0.5)
        nose = project_dot(record["camera"], 96, nersemble.MEAN_HEAD[2].tolist())
        np.testing.assert_allclose(record["landmarks"][2], nose, atol=1e-2)
    assert records[0]["identity"] == "018_EMO-1-shout+laugh_00012"
    assert (records[0]["timestep"], records[0]["serial"]) == (12, SERIALS[0])


def test_nersemble_frames_every_view_alike(tmp_path):
    """Assert that the world's origin is in the middle of each picture, which is 0.633 wide there, at any distance."""
    landmarks = make_subject(tmp_path / "data", "018", [("HAIR", "00000")])
    assert prepare_nersemble(tmp_path / "data", landmarks) == 0
    for record in read_records(tmp_path / "out"):
        camera = torch.tensor(record["camera"], dtype=torch.float64)
        cam2world, intrinsics = split_camera(camera)
        sides = torch.stack([-cam2world[:3, 0], 0 * cam2world[:3, 0], cam2world[:3, 0]]) * 2.7 / 4.2647 / 2
        np.testing.assert_allclose(project_points(sides, camera)[:, 0], [0, 0.5, 1], atol=1 / 150)  # whole pixels
        np.testing.assert_allclose(intrinsics[0, 0], 4.2647 * cam2world[:3, 3].norm() / 2.7, rtol=5e-3)
        assert not torch.equal(join_camera(cam2world, intrinsics)[16:], camera_from_angles(0.0, 0.0)[16:])


def test_nersemble_reads_videos(tmp_path):
    """Assert that the frame of the moment is taken from the videos of version 2."""
    landmarks = make_subject(tmp_path / "data", "017", [("SEN-10-port_strong_smokey", "00004")], layout="videos")
    landmarks = {key: (np.array(value) * (276 / 275, 402 / 401)).tolist() for key, value in landmarks.items()}
    assert prepare_nersemble(tmp_path / "data", landmarks) == 0
    for record in read_records(tmp_path / "out"):
        dot = find_dot(tmp_path / "out/images" / record["file_name"])
        np.testing.assert_allclose(dot, project_dot(record["camera"], 96), atol=0.5)


def test_nersemble_drops_a_wrong_detection(tmp_path):
    """Assert that one view's landmarks, found on something else, change nothing."""
    landmarks = make_subject(tmp_path / "data", "018", [("HAIR", "00000")])
    wrong = f"018/HAIR/00000/{SERIALS[1]}"
    landmarks[wrong] = (np.array(landmarks[wrong]) * 0.5 + 20).tolist()
    del landmarks[f"018/HAIR/00000/{SERIALS[4]}"]
    assert prepare_nersemble(tmp_path / "data", landmarks) == 0
    assert_dots_land(tmp_path / "out", 96, num_pictures=5)
    assert json.loads((tmp_path / "out/similarities.json").read_text())["018"]["residual"] < 1e-6


@pytest.mark.parametrize(("share", "scattered"), [("subject", True), ("moment", False)])
def test_nersemble_similarity_is_shared_as_asked(tmp_path, share, scattered):
    """Assert that a head that moved between moments stays moved with one similarity per subject, and not per moment."""
    moments = [("HAIR", "00000"), ("HAIR", "00009")]
    landmarks = make_subject(tmp_path / "data", "018", moments, offset=(0.05, 0.0, 0.0))
    assert prepare_nersemble(tmp_path / "data", landmarks, "--align", share) == 0
    similarities = json.loads((tmp_path / "out/similarities.json").read_text())
    assert len(similarities) == (1 if scattered else 2)
    noses = {record["identity"]: record["landmarks"][2][0] for record in read_records(tmp_path / "out")}
    first, second = noses.values()
    assert (abs(first - second) > 3) == scattered


def test_nersemble_splits_by_subject(tmp_path):
    """Assert that all moments of a subject are in the split of its name."""
    moments = [("HAIR", "00000"), ("HAIR", "00009")]
    landmarks = {}
    for subject in ("018", "030", "101"):
        landmarks |= make_subject(tmp_path / "data", subject, moments)
    assert prepare_nersemble(tmp_path / "data", landmarks, "--test", "0.4", "--validation", "0.3", size=16) == 0
    splits = split_by_identity(("018", "030", "101"), validation=0.3, test=0.4)
    assert len(set(splits.values())) > 1
    assert all(record["split"] == splits[record["subject"]] for record in read_records(tmp_path / "out"))


def test_nersemble_names_what_does_not_fit(tmp_path, capsys):
    """Assert that each thing that cannot be prepared gives one line that names it, and nothing is written."""
    root = tmp_path / "data"
    landmarks = make_subject(root, "018", [("HAIR", "00000")])
    frame = root / "018/sequences/HAIR/frame_00000/images-2x"
    one = dict([next(iter(landmarks.items()))])

    def error_of(values):
        assert prepare_nersemble(root, values) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return error

    assert "018/HAIR/00000: fewer than 2 of 1 views" in error_of(one)
    assert "'018/HAIR/1' is not subject/sequence/timestep/serial" in error_of({"018/HAIR/1": [[0, 0]] * 5})
    assert "landmarks have shape (4, 2)" in error_of({"018/HAIR/0/1": [[0, 0]] * 4})
    assert "no calibration of subject 019" in error_of({"019/HAIR/0/1": [[0, 0]] * 5})
    assert "no pictures of 018/HAIR/7" in error_of({"018/HAIR/7/1": [[0, 0]] * 5})
    path = root / "018/camera_params.json"
    calibration = path.read_text()
    content = json.loads(calibration)
    content["world_2_cam"][SERIALS[0]] = np.diag([1, 1, 1.1, 1]) @ content["world_2_cam"][SERIALS[0]]
    content["world_2_cam"][SERIALS[0]] = content["world_2_cam"][SERIALS[0]].tolist()
    path.write_text(json.dumps(content))
    two = {key: value for key, value in landmarks.items() if SERIALS[0] not in key}
    assert f"camera {SERIALS[0]} of subject 018: `camera` holds a cam2world that is not rigid" in error_of(two)
    path.write_text("{}")
    assert "expected world_2_cam (4x4 per serial)" in error_of(landmarks)
    path.write_text(calibration)
    save_image(Image.new("RGB", (275, 401)), frame.parent / f"images-4x/cam_{SERIALS[0]}.png")
    assert "two pictures of one camera" in error_of(landmarks)
    (frame.parent / f"images-4x/cam_{SERIALS[0]}.png").unlink()
    save_image(Image.new("RGB", (275, 275)), frame / f"cam_{SERIALS[0]}.png")
    assert "275x275, expected the whole picture" in error_of(landmarks)
    (frame / f"cam_{SERIALS[0]}.png").rename(frame / "cam_9.png")
    assert "camera 9 of" in error_of(landmarks)


def test_an_endless_pattern_is_stopped(tmp_path):
    """Assert that a pattern of exponential time costs a second and one line."""
    panohead = load_script("prepare_panohead")
    with pytest.raises(ValueError, match=r"takes longer than 1\.0 s on a+!: give a simpler one"):
        panohead.identity_of("a" * 60 + "!", "(a|aa)+$")
    assert panohead.identity_of("seed0001/0003.png", r"(seed\d+)") == "seed0001"
