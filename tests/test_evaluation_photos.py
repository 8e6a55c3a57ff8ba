"""Real photos: what is measured of them, with face networks that are told what to see."""

import math

import numpy as np
import pytest
import torch
from conftest import tiny_pipeline
from PIL import Image

from nvb_diffusers import face_crop
from nvb_diffusers.camera import angle_between_cameras, camera_from_angles, split_camera
from nvb_diffusers.evaluation import photos
from nvb_diffusers.evaluation.photos import (
    ANGLES,
    PhotoSheets,
    PhotoView,
    score_photos,
    shrink,
    summarize_photos,
    turned_camera,
)


def points_in_camera(camera, scale=1.0, shift=0.0):
    """A rigid cloud of points (K, 3) as a camera (25,) has it, in its own axes, of any scale and place."""
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    rotation = split_camera(camera)[0][:3, :3]
    return (scale * (points @ rotation) + shift).numpy()


@pytest.mark.parametrize("angles", [(30, 0), (-45, 10), (0, -15)])
def test_a_turned_mesh_gives_the_camera(angles):
    """Assert that the turn between two views of a rigid mesh, whatever its scale and place, is that of the cameras."""
    source, target = camera_from_angles(8, -3), camera_from_angles(*angles)
    seen = turned_camera(points_in_camera(target, 3.0, 0.4), points_in_camera(source), source)
    assert angle_between_cameras(seen, target) < 0.05


def test_shrinking_keeps_size_and_means():
    """Assert that what is left of a checkered image made smaller than its squares is their mean."""
    squares = np.indices((64, 64)).sum(axis=0) % 2 * 200
    image = shrink(Image.fromarray(squares.astype(np.uint8)).convert("RGB"), 8)
    assert image.size == (64, 64)
    assert np.abs(np.asarray(image, dtype=int) - 100).max() <= 1


def test_photos_are_measured_and_drawn(tmp_path, monkeypatch):
    """Assert a line for every angle and shrinkage, distances to the undamaged photo, and a sheet to look at."""
    pipe = tiny_pipeline()
    crop = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    monkeypatch.setattr(
        photos, "crop_face", lambda image, size, **_: face_crop.FaceCrop(crop, np.eye(2, 3), np.zeros((5, 2)), 1)
    )
    (tmp_path / "photos").mkdir()
    crop.save(tmp_path / "photos/me.png")

    def embed(image):
        return image.mean(dim=(1, 2)).numpy()

    def mesh(image):
        return points_in_camera(camera_from_angles(20, 0))

    results = score_photos(pipe, tmp_path / "photos", embed, mesh, (1, 4), 0, PhotoSheets(tmp_path))
    assert [(r.shrinkage, (r.yaw_deg, r.pitch_deg)) for r in results] == [(t, pair) for t in (1, 4) for pair in ANGLES]
    assert {path.name for path in tmp_path.glob("*.png")} == {"me.png_1x.png", "me.png_4x.png"}
    source = pipe.predict_cameras(crop)[0]
    expected = angle_between_cameras(turned_camera(mesh(None), mesh(None), source), source)
    assert expected < 0.05
    assert all(r.distance is not None and math.isfinite(r.distance) for r in results)


def test_the_table_counts_and_measures():
    """Assert shares, medians and missing faces by hand."""
    one = PhotoView("a", 1, 30, 0, 0.3, 28, 0, 33, 1)
    far = PhotoView("b", 1, -30, 0, 0.9, -20, 0, None, None)
    lost = PhotoView("b", 1, 30, 0, None, 30, 0, None, None)
    table = summarize_photos([one, far, lost])
    (row,) = table.splitlines()[2:]
    assert row.startswith("| 1x | ±30, ±0 | 33 % [")
    assert row.endswith("| 0.60 | 2 of 3 | 2.00 | 3.00 |")
