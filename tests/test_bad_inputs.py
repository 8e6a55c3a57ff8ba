"""Bad inputs at every door, as rows of a table: each is refused in one line that names it, and leaves nothing behind.

Options of commands and scripts have a table of their own, in test_option_types.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LATENT_SHAPE, SIDE, load_script, tiny_pipeline
from PIL import Image
from pipeline_calls import CAMERAS, noise, picture
from safetensors.torch import load_file, save_file
from small_data import write_small_set

from nvb_diffusers import AppearanceModel, NVBFacePipeline, TimeAwareImageEncoder, ViewTransformer3D, cli, read_face
from nvb_diffusers.camera import angles_from_camera, camera_from_angles, check_camera_params, orbit_cameras
from nvb_diffusers.data.datasets import SampleTransform
from nvb_diffusers.data.records import read_records
from nvb_diffusers.evaluation.configuration import read_comparison
from nvb_diffusers.loading import load_pipeline

NAN, INF = float("nan"), float("inf")
ONE_LINE = r"^[^\n]+$"


@pytest.fixture(scope="module")
def pipe():
    """A tiny pipeline of all components, which no row may change."""
    return tiny_pipeline(appearance=True)


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipe"
    pipe.save_pretrained(folder)
    return folder


def contents(folder):
    """Every file, and what it holds where it can be read."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(words, call):
    """Assert that a call ends in a ValueError of one line with these words."""
    with pytest.raises(ValueError, match=ONE_LINE) as error:
        call()
    assert words in str(error.value)


# Calls of the pipeline

BAD = {
    "guidance_scale": (NAN, INF, -INF, -1, -0.5, "2", True, 1j),
    "eta": (NAN, INF, -0.1, 1.1, "0", None),
    "num_inference_steps": (0, -5, 1.5, NAN, "4", True, 1001, 10**9),
    "view_batch_size": (0, -1, 1.5, NAN, "2", True),
    "output_type": ("jpeg", "PIL", "", None, 3),
    "background": ("sea", "", (0, 0), (0, 0, 2), (-1, 0, 0), (NAN, 0, 0), ("r", "g", "b"), None, 7),
    "generator": ([], [torch.Generator()] * 3, 7, "seed"),
    "latents": (
        torch.zeros(1, 3, 4, 9, 9),
        torch.full((1, 1, *LATENT_SHAPE), NAN),
        torch.full((1, 1, *LATENT_SHAPE), INF),
        np.zeros((1, 1, *LATENT_SHAPE)),
        "noise",
        torch.zeros(1, 1, *LATENT_SHAPE, dtype=torch.int32),
    ),
    "cameras": (
        [],
        [(0, 0, 0)],
        [(NAN, 0)],
        [(0, INF)],
        [(0, 95)],
        [("left", 0)],
        "front",
        torch.zeros(2, 24),
        torch.zeros(2, 25),
        torch.full((1, 25), NAN),
        torch.zeros(0, 25),
        orbit_cameras(2, (-20, 20)).to(torch.complex64),
    ),
    "source_cameras": (torch.zeros(1, 25), torch.zeros(2, 25), [(0, NAN)], "front", torch.full((1, 25), INF)),
    "callback_on_step_end": ("call me", 7),
}
CALLS = [(name, value) for name, values in BAD.items() for value in values]
SAME = {"callback_on_step_end": "callback"}


@pytest.mark.parametrize(("name", "value"), CALLS, ids=lambda value: str(value)[:30].replace("\n", " "))
def test_a_bad_argument(pipe, name, value):
    """Assert that a call that no model could answer rightly is refused, and that the error names the argument."""
    settings = {"image": picture(), "cameras": CAMERAS[:1], "num_inference_steps": 1, name: value}
    refused("camera" if "camera" in name else SAME.get(name, name), lambda: pipe(**settings))


IMAGES = {
    "nothing": (None, "image"),
    "no image": ([], "empty"),
    "a number": (7, "int"),
    "bytes": (b"png", "bytes"),
    "not square": (np.zeros((40, 50, 3), np.float32), "square"),
    "too small": (np.zeros((4, 4, 3), np.float32), "4x4"),
    "two channels": (np.zeros((40, 40, 2), np.float32), "shape"),
    "channels first": (np.zeros((3, 40, 40), np.float32), "shape"),
    "channels last": (torch.zeros(40, 40, 3), "shape"),
    "above one": (np.full((40, 40, 3), 200.0, np.float32), "200"),
    "below zero": (np.full((40, 40, 3), -1.0, np.float32), "-1"),
    "not a number": (np.full((40, 40, 3), NAN, np.float32), "nan"),
    "infinite": (torch.full((3, 40, 40), INF), "inf"),
    "complex": (torch.zeros(3, 40, 40, dtype=torch.complex64), "complex"),
    "objects": (np.full((40, 40, 3), None), "object"),
    "texts": (np.full((40, 40, 3), "x"), "U1"),
    "sparse": (torch.zeros(3, 40, 40).to_sparse(), "sparse"),
    "meta": (torch.zeros(3, 40, 40, device="meta"), "meta"),
    "no such file": ("none.png", "none.png"),
    "an address": ("https://example.org/face.png", "https://"),
    "a folder": (Path(__file__).parent, "folder"),
    "a text file": (__file__, "cannot read"),
    "a five-dimensional batch": (torch.zeros(1, 1, 3, 40, 40), "shape"),
    "one good, one bad": ([picture(), np.zeros((40, 50, 3), np.float32)], "square"),
}


@pytest.mark.parametrize("door", ["call", "restore", "predict_cameras"])
@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image(pipe, door, name):
    """Assert that what is no face crop is refused by every method that takes one."""
    image, words = IMAGES[name]
    doors = {
        "call": lambda: pipe(image, CAMERAS[:1], num_inference_steps=1),
        "restore": lambda: pipe.restore(image, num_inference_steps=1),
        "predict_cameras": lambda: pipe.predict_cameras(image, num_inference_steps=1),
    }
    refused(words, doors[door])


RESTORATIONS = {
    "fidelity": (NAN, INF, -0.1, 1.1, "1", True),
    "guidance_scale": (NAN, -1),
    "eta": (NAN, 2),
    "num_inference_steps": (0, 1.5),
}


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in RESTORATIONS.items() for v in values])
def test_a_bad_restoration(pipe, name, value):
    """Assert the same of `restore`, where the UNet runs."""
    refused(name, lambda: pipe.restore(picture(), **{"fidelity": 0.5, "num_inference_steps": 1, name: value}))


# Cameras of other conventions

GOOD = camera_from_angles(20.0, 10.0)


def camera_with(change):
    """A good camera, changed: cam2world (4, 4) and intrinsics (3, 3) are given to be changed in place."""
    matrix, intrinsics = GOOD[:16].reshape(4, 4).clone(), GOOD[16:].reshape(3, 3).clone()
    return torch.cat([part.flatten() for part in (change(matrix, intrinsics) or (matrix, intrinsics))])


CONVENTIONS = {
    "intrinsics in pixels": (lambda m, k: (m, k * torch.tensor([[512.0], [512.0], [1.0]])), "pixel"),
    "OpenGL axes": (lambda m, k: (m @ torch.diag(torch.tensor([1.0, -1, -1, 1])), k), "OpenGL"),
    "world2cam": (lambda m, k: (torch.linalg.inv(m), k), "world2cam"),
    "millimeters": (
        lambda m, k: (torch.cat([m[:, :3], m[:, 3:] * torch.tensor([[1000.0]] * 3 + [[1.0]])], 1), k),
        "unit",
    ),
    "principal point outside": (lambda m, k: (m, k + torch.tensor([[0, 0, 3.0], [0, 0, 0], [0, 0, 0]])), "principal"),
    "no rotation": (lambda m, k: (m * torch.tensor([2.0, 1, 1, 1]), k), "rotation"),
    "mirrored": (lambda m, k: (m @ torch.diag(torch.tensor([-1.0, 1, 1, 1])), k), ""),
    "no focal length": (lambda m, k: (m, k * torch.tensor([[0.0], [0.0], [1.0]])), ""),
    "negative focal length": (lambda m, k: (m, k * torch.tensor([[-1.0], [1.0], [1.0]])), ""),
    "last row": (lambda m, k: (m + torch.eye(4)[3] * torch.tensor([[0.0], [0], [0], [1]]), k), ""),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_camera_of_another_convention(pipe, name):
    """Assert that it is told by name where it has one, by the check itself and by a call."""
    change, words = CONVENTIONS[name]
    camera = camera_with(change)
    refused(words, lambda: check_camera_params(camera, "camera"))
    refused(words, lambda: pipe(picture(), camera[None], num_inference_steps=1))


# Folders of pipelines and models


def edit_json(name, **changes):
    def edit(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def write_text(name, text):
    return lambda folder: (folder / name).write_text(text)


def edit_weights(part, change):
    def edit(folder):
        (path,) = (folder / part).glob("*.safetensors")
        state = load_file(path)
        change(state, sorted(state)[3])
        save_file(state, path, metadata={"format": "pt"})

    return edit


def remove(state, name):
    del state[name]


def fill(value):
    return lambda state, name: state[name].fill_(value)


def whole_numbers(state, name):
    state[name] = state[name].int()


def longer(state, name):
    state[name] = torch.cat([state[name]] * 2)


PARTS = ("unet", "vae", "view_transformer", "appearance", "image_encoder")
INDEX = "model_index.json"
FOLDERS = {
    **{f"{part} lacks a tensor": (edit_weights(part, remove), "lacks the tensor") for part in PARTS},
    **{f"{part} holds NaN": (edit_weights(part, fill(NAN)), "not finite") for part in PARTS},
    **{f"{part} is infinite": (edit_weights(part, fill(INF)), "not finite") for part in PARTS},
    **{f"{part} is of whole numbers": (edit_weights(part, whole_numbers), "I32") for part in PARTS},
    **{f"{part} is of another shape": (edit_weights(part, longer), "expected shape") for part in PARTS},
    **{f"{part}'s configuration is a list": (write_text(f"{part}/config.json", "[]"), part) for part in PARTS},
    **{f"{part}'s configuration is empty": (write_text(f"{part}/config.json", ""), part) for part in PARTS},
    **{
        f"{part} has no configuration": (lambda f, part=part: (f / part / "config.json").unlink(), "") for part in PARTS
    },
    "scaling 0": (edit_json("vae/config.json", scaling_factor=0), "scaling_factor"),
    "scaling null": (edit_json("vae/config.json", scaling_factor=None), "scaling_factor"),
    "scaling text": (edit_json("vae/config.json", scaling_factor="1"), "scaling_factor"),
    "no heads": (edit_json("view_transformer/config.json", num_heads=0), "num_heads"),
    "heads as text": (edit_json("view_transformer/config.json", num_heads="4"), "num_heads"),
    "half a head": (edit_json("view_transformer/config.json", num_heads=1.5), "num_heads"),
    "negative width": (edit_json("view_transformer/config.json", hidden_size=-8), "hidden_size"),
    "near beyond far": (edit_json("view_transformer/config.json", near=9.0), "near"),
    "no patch": (edit_json("image_encoder/config.json", patch_size=0), "patch_size"),
    "no steps of patches": (edit_json("appearance/config.json", patch_size=0), "patch_size"),
    "channels are a number": (edit_json("appearance/config.json", reader_channels=5), "reader_channels"),
    "negative channels": (edit_json("appearance/config.json", reader_channels=[-8, 12]), "reader_channels"),
    "negative UNet": (edit_json("unet/config.json", block_out_channels=[-8, 16]), "cannot be loaded"),
    "no groups": (edit_json("unet/config.json", norm_num_groups=0), "cannot be loaded"),
    "widths do not fit": (edit_json("unet/config.json", cross_attention_dim=99), ""),
    "steps as text": (edit_json(INDEX, default_num_inference_steps="four"), "default_num_inference_steps"),
    "no steps": (edit_json(INDEX, default_num_inference_steps=0), "default_num_inference_steps"),
    "guidance as text": (edit_json(INDEX, default_guidance_scale="x"), "default_guidance_scale"),
    "negative guidance": (edit_json(INDEX, default_guidance_scale=-1), "default_guidance_scale"),
    "index is a list": (write_text(INDEX, "[]"), INDEX),
    "index is empty": (write_text(INDEX, ""), INDEX),
    "index of nothing": (write_text(INDEX, "{}"), INDEX),
    "index is cut off": (write_text(INDEX, '{"_class_name": "NVB'), INDEX),
    "index is nested deeply": (write_text(INDEX, "[" * 100_000), INDEX),
    "no component": (edit_json(INDEX, unet=None), ""),
    "half a component": (edit_json(INDEX, unet=["diffusers"]), ""),
    "no such class": (edit_json(INDEX, unet=["diffusers", "Nope"]), "Nope"),
    "no such library": (edit_json(INDEX, unet=["nope", "UNet"]), "nope"),
    "another prediction": (edit_json("scheduler/scheduler_config.json", prediction_type="flow"), ""),
    "no weights": (lambda f: next((f / "unet").glob("*.safetensors")).unlink(), ""),
    "weights are a text": (write_text("unet/diffusion_pytorch_model.safetensors", "weights"), "Damaged"),
    "weights are empty": (write_text("vae/diffusion_pytorch_model.safetensors", ""), "Damaged"),
    "no folder of a component": (lambda f: shutil.rmtree(f / "vae"), ""),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), ""),
    "no index": (lambda f: (f / INDEX).unlink(), INDEX),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bad_pipeline_folder(saved, tmp_path, name):
    """Assert that a damaged folder is refused when it is loaded, not answered by black or random images."""
    edit, words = FOLDERS[name]
    folder = shutil.copytree(saved, tmp_path / "pipe")
    edit(folder)
    with pytest.raises((ValueError, OSError), match=r"[^\n]") as error:
        NVBFacePipeline.from_pretrained(folder)
    assert words in str(error.value)


MODELS = {"image_encoder": TimeAwareImageEncoder, "view_transformer": ViewTransformer3D, "appearance": AppearanceModel}
MODEL_ROWS = {
    "lacks a tensor": (remove, "lacks the tensor"),
    "holds NaN": (fill(NAN), "not finite"),
    "is of whole numbers": (whole_numbers, "I32"),
}


@pytest.mark.parametrize("row", MODEL_ROWS)
@pytest.mark.parametrize("part", MODELS)
def test_a_bad_model(saved, tmp_path, part, row):
    """Assert the same of our models alone."""
    change, words = MODEL_ROWS[row]
    folder = shutil.copytree(saved, tmp_path / "pipe")
    edit_weights(part, change)(folder)
    refused(words, lambda: MODELS[part].from_pretrained(folder, subfolder=part))


# Photos, at the doors of the command


def bomb(path):
    Image.new("1", (20_000, 20_000)).save(path)


PHOTOS = {
    "nothing there": (lambda path: None, ""),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "text": (lambda path: path.write_text("no photo"), ""),
    "cut off": (lambda path: cut(path), ""),
    "a pipe": (lambda path: os.mkfifo(path), ""),
    "a dead link": (lambda path: path.symlink_to("nowhere.png"), ""),
    "an empty folder": (lambda path: path.mkdir(), ""),
    "no face": (lambda path: Image.new("RGB", (300, 300), "gray").save(path), "no face"),
    "one pixel": (lambda path: Image.new("RGB", (1, 1)).save(path), ""),
    "a line": (lambda path: Image.new("RGB", (4000, 2)).save(path), ""),
    "too many pixels": (bomb, "pixels"),
}


def cut(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:500])


def run_command(capsys, *words):
    """Exit status and lines of standard error."""
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("command", ["views", "restore", "orbit", "degrade"])
@pytest.mark.parametrize("name", PHOTOS)
def test_a_bad_photo(capsys, saved, tmp_path, command, name):
    """Assert exit status 2 and one line that names the photo, by each command, and no file."""
    make, words = PHOTOS[name]
    photo, model = tmp_path / "photo.png", ["--checkpoint", saved, "--steps", "1", "--device", "cpu"]
    make(photo)
    if command == "degrade" and name in ("no face", "one pixel", "a line"):
        pytest.skip("a photo without a face can be degraded")
    out = {"orbit": [tmp_path / "o.gif"], "degrade": ["--out", tmp_path / "o", "--preset", "mild"]}
    arguments = out.get(command, ["--out", tmp_path / "o"])
    before = sorted(path.name for path in tmp_path.iterdir())
    status, lines = run_command(capsys, command, photo, *arguments, *(model if command != "degrade" else ()))
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("nvb-face: ")
    assert words in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", [name for name in PHOTOS if name != "an empty folder"])
def test_a_bad_photo_of_read_face(pipe, tmp_path, name):
    """Assert the same in Python."""
    make, words = PHOTOS[name]
    make(tmp_path / "photo.png")
    refused(words, lambda: read_face(tmp_path / "photo.png", pipe))


DETECTORS = {"nothing there": lambda path: None, "a pipe": os.mkfifo, "a text": lambda path: path.write_text("onnx")}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_bad_detector(capsys, saved, tmp_path, name):
    """Assert one line that names the file, and no waiting for it."""
    detector = tmp_path / "detector.onnx"
    DETECTORS[name](detector)
    photo = Path(__file__).parents[1] / "examples/inputs/astronaut_small.jpg"
    words = ["--detector", detector, "--checkpoint", saved, "--device", "cpu"]
    status, lines = run_command(capsys, "views", photo, "--out", tmp_path / "o", *words)
    assert status == 2
    assert len(lines) == 1
    assert "detector.onnx" in lines[0]


# Data sets

GOOD_RECORD = {"file_name": "a.png", "identity": 1, "view": 0, "split": "train", "camera": GOOD.tolist()}
RECORDS = {
    "a list": ([[1, 2]], ""),
    "a text": (["a.png"], ""),
    "no name": ([{k: v for k, v in GOOD_RECORD.items() if k != "file_name"}], "file_name"),
    "no identity": ([{k: v for k, v in GOOD_RECORD.items() if k != "identity"}], "identity"),
    "name is a number": ([{**GOOD_RECORD, "file_name": 7}], "file_name"),
    "name climbs": ([{**GOOD_RECORD, "file_name": "../a.png"}], "file_name"),
    "name is absolute": ([{**GOOD_RECORD, "file_name": "/etc/passwd"}], "file_name"),
    "name is not there": ([{**GOOD_RECORD, "file_name": "b.png"}], "b.png"),
    "identity is a boolean": ([{**GOOD_RECORD, "identity": True}], "identity"),
    "identity is a list": ([{**GOOD_RECORD, "identity": [1]}], "identity"),
    "identity climbs": ([{**GOOD_RECORD, "identity": "../x"}], "identity"),
    "identity is empty": ([{**GOOD_RECORD, "identity": ""}], "identity"),
    "view is a text": ([{**GOOD_RECORD, "view": "0"}], "view"),
    "view is a fraction": ([{**GOOD_RECORD, "view": 0.5}], "view"),
    "view is a boolean": ([{**GOOD_RECORD, "view": False}], "view"),
    "split is unknown": ([{**GOOD_RECORD, "split": "dev"}], "split"),
    "split is a list": ([{**GOOD_RECORD, "split": ["train"]}], "split"),
    "camera is short": ([{**GOOD_RECORD, "camera": [0.0] * 24}], "camera"),
    "camera is of texts": ([{**GOOD_RECORD, "camera": [str(n) for n in GOOD.tolist()]}], "camera"),
    "camera is of booleans": ([{**GOOD_RECORD, "camera": [True] * 25}], "camera"),
    "camera is nested": ([{**GOOD_RECORD, "camera": [GOOD.tolist()]}], "camera"),
    "camera is an object": ([{**GOOD_RECORD, "camera": {"yaw": 3}}], "camera"),
    "camera is NaN": ([{**GOOD_RECORD, "camera": [NAN] * 25}], "camera"),
    "four landmarks": ([{**GOOD_RECORD, "landmarks": [[0, 0]] * 4}], "landmarks"),
    "landmarks of texts": ([{**GOOD_RECORD, "landmarks": [["a", "b"]] * 5}], "landmarks"),
    "the same file twice": ([GOOD_RECORD, {**GOOD_RECORD, "view": 1}], "already on line 1"),
    "two splits": ([GOOD_RECORD, {**GOOD_RECORD, "file_name": "c.png", "view": 1, "split": "test"}], "split"),
    "the same view twice": ([GOOD_RECORD, {**GOOD_RECORD, "file_name": "c.png"}], "already on line 1"),
    "7 and '7'": (
        [{**GOOD_RECORD, "identity": 7}, {**GOOD_RECORD, "identity": "7", "file_name": "c.png"}],
        "already on line 1",
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_bad_record(tmp_path, name):
    """Assert that file and line are named."""
    records, words = RECORDS[name]
    (tmp_path / "images").mkdir()
    for image in ("a.png", "c.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / "images" / image)
    path = tmp_path / "images/metadata.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    refused(f"metadata.jsonl:{len(records)}: ", lambda: read_records(tmp_path))
    refused(words, lambda: read_records(tmp_path))


TEXTS = {
    "empty": "",
    "blank": "\n\n",
    "no JSON": "{file_name: 1}",
    "cut off": '{"file_name": "a',
    "binary": "\x00\x01",
    "nested deeply": "[" * 100_000,
}


@pytest.mark.parametrize("name", TEXTS)
def test_metadata_that_is_no_json(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/metadata.jsonl").write_text(TEXTS[name])
    refused("metadata.jsonl", lambda: read_records(tmp_path))


# Files of comparisons, and the commands that read them

ROW = {"name": "a", "method": "input"}
COMPARISONS = {
    "a list": ([], ""),
    "a number": (3, ""),
    "nothing": ({}, "title"),
    "no rows": ({"title": "t", "preset": "mild", "test_set": {}}, "rows"),
    "rows are an object": ({"title": "t", "preset": "mild", "test_set": {}, "rows": {}}, "rows"),
    "a row is a text": ({"title": "t", "preset": "mild", "test_set": {}, "rows": ["a"]}, "rows"),
    "title is a number": ({"title": 1, "preset": "mild", "test_set": {}, "rows": [ROW]}, "title"),
    "preset is unknown": ({"title": "t", "preset": "x", "test_set": {}, "rows": [ROW]}, "preset"),
    "a set of texts": ({"title": "t", "preset": "mild", "test_set": {"seed": "1"}, "rows": [ROW]}, "seed"),
    "a set of fractions": ({"title": "t", "preset": "mild", "test_set": {"seed": 0.5}, "rows": [ROW]}, "seed"),
    "a set of booleans": ({"title": "t", "preset": "mild", "test_set": {"seed": True}, "rows": [ROW]}, "seed"),
    "orbits of texts": (
        {"title": "t", "preset": "mild", "test_set": {}, "rows": [{**ROW, "num_orbits": "2"}]},
        "num_orbits",
    ),
    "presets of numbers": (
        {"title": "t", "preset": "mild", "test_set": {}, "rows": [{**ROW, "presets": [1]}]},
        "presets",
    ),
    "an unknown method": ({"title": "t", "preset": "mild", "test_set": {}, "rows": [{**ROW, "method": "x"}]}, "method"),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_bad_comparison(capsys, tmp_path, name):
    """Assert that the file is named, by the reader and in one line of the command."""
    content, words = COMPARISONS[name]
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(content))
    refused(words, lambda: read_comparison(path))
    status, lines = run_command(capsys, "eval", "compare", path, tmp_path, "--out", tmp_path / "o")
    assert status == 2
    assert len(lines) == 1
    assert "comparison.json" in lines[0]
    assert not (tmp_path / "o").exists()


EVALUATIONS = {
    "no set": ["score", "none", "predictions"],
    "no predictions": ["score", "data", "none"],
    "a report of nothing": ["report", "none"],
    "a report of a set": ["report", "data"],
    "rows of nothing": ["rows", "none", "--out", "o.png"],
    "rows of a set": ["rows", "data", "--out", "o.png"],
    "a rank of 0": ["rows", "data", "--ranks", "0", "--out", "o.png"],
    "a rank of text": ["rows", "data", "--ranks", "best", "--out", "o.png"],
    "a preset of text": ["rows", "data", "--preset", "x", "--out", "o.png"],
    "an empty row": ["rows", "data", "--row", "", "--out", "o.png"],
    "a set of no data": ["make-set", "none", "--out", "o"],
    "a set over a set": ["make-set", "data", "--out", "data"],
    "photos of nothing": ["photos", "none", "--out", "o"],
    "photos over photos": ["photos", "data", "--out", "data"],
    "an unknown comparison": ["compare", "none", "data", "--out", "o"],
    "a comparison that is a folder": ["compare", "data", "data", "--out", "o"],
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_bad_evaluation(capsys, tmp_path, monkeypatch, name):
    """Assert one line, and that no file came, went or changed."""
    monkeypatch.chdir(tmp_path)
    write_small_set(tmp_path / "data")
    before = contents(tmp_path)
    status, lines = run_command(capsys, "eval", *EVALUATIONS[name])
    assert status == 2
    assert len(lines) == 1, lines
    assert contents(tmp_path) == before


# Training scripts, as they begin

TRAINING = {name: load_script(f"train_{name}") for name in ("autoencoder", "restoration", "novel_view", "appearance")}
BEGINNINGS = {
    "no data": ["--data_dir", "none"],
    "data is a file": ["--data_dir", "file"],
    "data is an address": ["--data_dir", "https://example.org/data"],
    "output is a file": ["--output_dir", "file"],
    "output is below a file": ["--output_dir", "file/run"],
    "no such checkpoint": ["--resume_from_checkpoint", "checkpoint-7"],
    "an unknown tracker": ["--report_to", "crystal_ball"],
    "a bad repository": ["--push_to_hub", "--hub_model_id", "a/b/c"],
    "no file of options": ["--config_file", "none.json"],
    "options are a folder": ["--config_file", "data"],
    "no epoch": ["--num_train_epochs", "0"],
    "an unknown precision": ["--mixed_precision", "fp7"],
    "a resolution of text": ["--resolution", "large"],
}


@pytest.mark.parametrize("script", TRAINING)
@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_bad_beginning(capsys, saved, tmp_path, monkeypatch, script, name):
    """Assert exit status 2 and one line before anything is trained, and that no file came, went or changed."""
    monkeypatch.chdir(tmp_path)
    write_small_set(tmp_path / "data")
    (tmp_path / "file").write_text("a file")
    words = ["--data_dir", "data", "--output_dir", "run", "--report_to", "none", *BEGINNINGS[name]]
    own = {"autoencoder": [], "restoration": [], "novel_view": [], "appearance": ["--train", "reader"]}[script]
    if script != "autoencoder":
        own += ["--pretrained_model_name_or_path", str(saved)]
    before = contents(tmp_path)
    try:
        status = TRAINING[script].main([*words, *own])
    except SystemExit as stop:
        status = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(lines) == 1, lines
    assert contents(tmp_path) == before
    assert not (tmp_path / "run").exists()


CALLBACK = {"cameras": CAMERAS[:1], "num_inference_steps": 2}
PYTHON = {
    "an angle of NaN": (lambda pipe: camera_from_angles(NAN, 0), "nan"),
    "an angle of text": (lambda pipe: camera_from_angles("left", 0), "left"),
    "a pitch of 200": (lambda pipe: camera_from_angles(0, 200), "200"),
    "an orbit of nothing": (lambda pipe: orbit_cameras(0, (-20, 20)), "num_views"),
    "an orbit of NaN": (lambda pipe: orbit_cameras(2, (NAN, 20)), "nan"),
    "24 numbers": (lambda pipe: angles_from_camera(torch.zeros(24)), "(24,)"),
    "a camera of text": (lambda pipe: check_camera_params("front"), "str"),
    "another conditioning": (lambda pipe: pipe(conditioning=7), "conditioning"),
    "a text for a callback's": (lambda pipe: pipe(picture(), callback_on_step_end=lambda *_: "x", **CALLBACK), "str"),
    "latents of another shape": (
        lambda pipe: pipe(picture(), callback_on_step_end=lambda *_: {"latents": torch.zeros(3)}, **CALLBACK),
        "latents",
    ),
    "cameras of others": (
        lambda pipe: pipe.appearance.read_photo(torch.zeros(2, 3, SIDE, SIDE), GOOD[None]),
        "(2, 25)",
    ),
    "four channels": (lambda pipe: pipe.appearance.restore(torch.zeros(1, 4, SIDE, SIDE)), "(1, 4,"),
    "a photo of number": (lambda pipe: read_face(7, pipe), "7"),
    "no photo": (lambda pipe: read_face(None, pipe), "None"),
    "images of no size": (lambda pipe: SampleTransform(0, ["mild"]), "resolution"),
    "an unknown dtype": (lambda pipe: load_pipeline(dtype="float7", device="cpu"), "float7"),
    "a dtype as text": (lambda pipe: NVBFacePipeline.from_pretrained("x", dtype="float16"), "float16"),
}


@pytest.mark.parametrize("name", PYTHON)
def test_other_calls(pipe, name):
    """Assert the same of functions and models that people call themselves."""
    call, words = PYTHON[name]
    refused(words, lambda: call(pipe))


def test_the_table_is_long():
    """Assert that it has the 250 rows that it is meant to have, of each door some."""
    doors = {
        "arguments": len(CALLS),
        "images": 3 * len(IMAGES),
        "restorations": sum(map(len, RESTORATIONS.values())),
        "cameras": len(CONVENTIONS),
        "folders": len(FOLDERS),
        "models": len(MODELS) * len(MODEL_ROWS),
        "photos": 5 * len(PHOTOS) - 4 + len(DETECTORS),
        "other calls": len(PYTHON),
        "records": len(RECORDS) + len(TEXTS),
        "comparisons": len(COMPARISONS) + len(EVALUATIONS),
        "beginnings": len(TRAINING) * len(BEGINNINGS),
    }
    assert min(doors.values()) >= 9
    assert sum(doors.values()) >= 250
    assert noise(1, 1).shape == (1, 1, *LATENT_SHAPE)
    assert SIDE >= 16
