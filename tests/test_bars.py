import importlib.util
import json
import math

import datasets
import pytest
import torch
from conftest import ROOT, SIDE, tiny_pipeline
from PIL import Image
from small_data import write_small_set

from nvb_diffusers.camera import camera_from_angles
from nvb_diffusers.evaluation.bars import (
    encoder_embedding,
    generate_views,
    identity_triplets,
    image_scores,
    mean_faces,
    predict_cameras,
    within_range,
)
from nvb_diffusers.training.format import read_records, write_records


def test_scores_of_a_known_offset():
    """Assert that a constant offset of 0.2 in [-1, 1] is 20 dB, and that a picture is its own best match."""
    target = torch.rand(2, 3, 16, 16) - 0.5
    scores, similarity = image_scores(torch.stack([target[0] + 0.2, target[1]]), target)
    assert scores[0].item() == pytest.approx(20 * math.log10(2 / 0.2), abs=1e-3)
    assert similarity[1].item() == pytest.approx(1, abs=1e-5)
    assert similarity[0] < similarity[1]


def test_mean_face_is_that_of_the_nearest_cameras(tmp_path):
    """Assert that the mean takes the pictures on the camera's own side."""
    cameras = camera_from_angles(torch.tensor([-30.0, -28.0, 28.0, 30.0]), 0.0)
    paths = []
    for number, grey in enumerate((10, 30, 200, 220)):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (8, 8), (grey,) * 3).save(paths[-1])
    records = datasets.Dataset.from_dict({"image": paths, "camera": cameras.tolist()})
    records = records.cast_column("image", datasets.Image(mode="RGB"))
    faces = mean_faces(records, camera_from_angles(torch.tensor([-29.0, 29.0]), 0.0), 4, neighbours=2)
    assert faces.shape == (2, 3, 4, 4)
    expected = torch.tensor([20 / 127.5 - 1, 210 / 127.5 - 1])
    assert torch.allclose(faces.mean(dim=(1, 2, 3)), expected, atol=1e-6)


def test_identity_triplets_count_the_nearer_person():
    """Assert 1 for views of the right people, 0 for swapped people, and a share for one person who is mistaken."""
    people = torch.eye(3)[:, None, :, None, None].expand(3, 2, 3, 1, 1)  # (N, V, 3, 1, 1), one channel a person

    def embed(pictures):
        return pictures.flatten(1)

    assert identity_triplets(embed, people, people) == 1
    assert identity_triplets(embed, people.roll(1, dims=0), people) == pytest.approx(0.0)
    mistaken = people.clone()
    mistaken[0] = people[1]  # person 0 looks like person 1: loses to 1, ties with 2
    assert identity_triplets(embed, mistaken, people) == pytest.approx(4 / 6)


def test_predicted_cameras_are_those_of_the_call():
    """Assert that the camera measured on a picture is the one that a call reports for it."""
    pipe = tiny_pipeline()
    pictures = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    views, cameras = generate_views(pipe, pictures, camera_from_angles(torch.zeros(2, 1), 0.0), 2, seed=0)
    assert views.shape == (2, 1, 3, SIDE, SIDE)
    assert torch.allclose(predict_cameras(pipe, pictures, 2), cameras, atol=1e-5)
    assert encoder_embedding(pipe, pictures).shape == (2, 12 * 64)


def test_range_of_angles():
    """Assert that yaw and pitch are both bounded, on both sides."""
    cameras = camera_from_angles(torch.tensor([0.0, -44.0, 46.0, 0.0]), torch.tensor([14.0, 0.0, 0.0, -16.0]))
    assert within_range(cameras, 45, 15).tolist() == [True, True, False, False]


def test_evaluation_of_a_folder_gives_a_table(tmp_path, capsys):
    """Assert that the script measures a saved pipeline twice alike, and names every rival."""
    write_small_set(tmp_path / "data")
    records = read_records(tmp_path / "data")
    write_records(tmp_path / "data", [r | {"split": "test" if r["identity"] > 1 else "train"} for r in records])
    tiny_pipeline().save_pretrained(tmp_path / "pipe")
    spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "training/evaluate.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arguments = ["--checkpoint", str(tmp_path / "pipe"), "--data_dir", str(tmp_path / "data")]
    arguments += ["--num_identities", "2", "--num_target_views", "2", "--num_inference_steps", "2"]
    results = []
    for run in ("first", "second"):
        assert script.main([*arguments, "--output_dir", str(tmp_path / run)]) == 0
        results.append(json.loads((tmp_path / run / "results.json").read_text()))
        results[-1].pop("options")
    assert results[0] == results[1]
    printed = capsys.readouterr().out
    assert all(name in printed for name in results[0]["novel views"])
    assert (tmp_path / "first/contact_sheet.png").is_file()
    assert script.main([*arguments, "--output_dir", str(tmp_path), "--data_dir", str(tmp_path / "none")]) == 2
