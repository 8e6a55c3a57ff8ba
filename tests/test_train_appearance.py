"""The parts of the appearance model, trained at tiny size: they learn, leave the others alone, resume to the bit."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import load_script, tiny_appearance, tiny_pipeline
from safetensors.torch import load_file
from training_runs import FSDP, run_together

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.data.datasets import SampleTransform, held_out_batch
from nvb_diffusers.data.images import photo_size
from nvb_diffusers.data.surfaces import SurfaceDataset
from nvb_diffusers.models.appearance import PhotoSurface
from nvb_diffusers.training.adversary import PatchDiscriminator
from nvb_diffusers.training.checkpoints import list_checkpoints
from nvb_diffusers.training.fusion import at_size, fusion_task

SIDE = 64
PARTS = ("restorer", "reader", "fuser")
script = load_script("train_appearance")


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(autouse=True)
def small_judge(monkeypatch):
    """A judge of few channels."""
    monkeypatch.setattr(script, "PatchDiscriminator", lambda: PatchDiscriminator((8, 8, 8)))


@pytest.fixture(scope="module")
def place(rendered_heads, tmp_path_factory):
    """A pipeline that paints in one step, and the shape of a new appearance model."""
    folder = tmp_path_factory.mktemp("appearance")
    pipeline = tiny_pipeline()
    pipeline.register_to_config(default_num_inference_steps=1)
    pipeline.save_pretrained(folder / "pipeline")
    config = {name: value for name, value in tiny_appearance(sample_size=SIDE).config.items() if name[0] != "_"}
    (folder / "appearance.json").write_text(json.dumps(config))
    return SimpleNamespace(folder=folder, data=rendered_heads, shape=folder / "appearance.json")


def arguments(part, place, output, *extra, new=True):
    """A command line at tiny size; later options replace earlier ones."""
    options = {"--train": part, "--pretrained_model_name_or_path": place.folder / "pipeline"}
    options |= {"--data_dir": place.data, "--output_dir": output, "--report_to": "none", "--logging_steps": 1}
    options |= {"--dataloader_num_workers": 0, "--train_batch_size": 2, "--num_validation_samples": 2}
    options |= {"--lr_warmup_steps": 0, "--lr_scheduler": "constant", "--max_train_steps": 3}
    options |= {"--appearance_config": place.shape} if new else {}
    return [str(word) for pair in options.items() for word in pair] + [str(word) for word in extra]


def run(part, place, output, *extra, new=True):
    return script.main(arguments(part, place, output, *extra, new=new))


def curve(folder, name="loss"):
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def weights(folder):
    """The trained parameters in the newest checkpoint."""
    return load_file(list_checkpoints(folder)[-1] / "trainable_0.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("part", "steps", "learning_rate"), [("restorer", 30, 3e-3), ("reader", 50, 5e-3)])
def test_the_loss_falls(part, steps, learning_rate, place, tmp_path):
    """Assert that restorer and reader learn, that they log their losses apart, and that a validation image is there."""
    extra = ["--max_train_steps", steps, "--learning_rate", learning_rate, "--degradation", "severe"]
    assert run(part, place, tmp_path, *extra) == 0
    losses = curve(tmp_path)
    fall = 0.05 if part == "restorer" else 0.1 * losses[0]
    assert sum(losses[-8:]) / 8 < sum(losses[:8]) / 8 - fall
    line = json.loads((tmp_path / "curve.jsonl").read_text().splitlines()[0])
    if part == "reader":
        expected = 10 * line["depth_loss"] + 15 * line["depth_gradient_loss"]
        expected += 10 * line["position_loss"] + 0.3 * line["mask_loss"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert 0 < curve(tmp_path, "validation_depth_error")[0] < 0.1
    else:
        assert curve(tmp_path, "validation_psnr")[0] > curve(tmp_path, "degraded_psnr")[0]
    assert photo_size(tmp_path / "validation.png")[0] == 2 * SIDE


def test_the_fuser_and_its_judge_learn(place, tmp_path):
    """Assert that mask and held-out views improve, and that the judge learns on, but weighs nothing at first."""
    extra = ["--max_train_steps", 18, "--learning_rate", 5e-3, "--adversarial_weight", 0.1, "--ema_decay", 0.7]
    assert run("fuser", place, tmp_path, *extra, "--validation_steps", 3, "--checkpointing_steps", 9) == 0
    masks, views = curve(tmp_path, "mask_loss"), curve(tmp_path, "validation_psnr")
    assert sum(masks[-6:]) < sum(masks[:6])
    assert views[-1] > views[0]
    early, late = (load_file(folder / "trainable_0.safetensors") for folder in list_checkpoints(tmp_path))
    assert all(not torch.equal(early[name], late[name]) for name in early if name.startswith("judge."))
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    for line, rise in ((lines[0], 0.0), (lines[-1], 1.0)):
        own = line["pixel_loss"] + 0.7 * line["gradient_loss"] + 0.1 * line["mask_loss"] + line["judge_loss"]
        assert line["loss"] == pytest.approx(own + 0.1 * rise * line["adversarial_loss"], rel=1e-4)
    assert curve(tmp_path, "validation_psnr")[0] > curve(tmp_path, "validation_generated_psnr")[0]
    assert photo_size(tmp_path / "validation.png") == (8 * SIDE, 4 * SIDE)


@pytest.mark.parametrize("part", PARTS)
def test_only_the_part_moves(part, place, tmp_path):
    """Assert that all else of pipeline and model is the same to the bit, and that a run goes on from another's part."""
    before = NVBFacePipeline.from_pretrained(place.folder / "pipeline")
    torch.manual_seed(1)
    before.register_modules(appearance=tiny_appearance(sample_size=SIDE))
    before.save_pretrained(tmp_path / "before")
    extra = ["--pretrained_model_name_or_path", tmp_path / "before", "--learning_rate", 1e-2]
    assert run(part, place, tmp_path / "run", *extra, "--max_train_steps", 2, new=False) == 0
    after = NVBFacePipeline.from_pretrained(tmp_path / "run/pipeline")
    for name in ("image_encoder", "unet", "vae", "view_transformer"):
        assert_equal(getattr(before, name).state_dict(), getattr(after, name).state_dict())
    old, new = before.appearance.state_dict(), after.appearance.state_dict()
    assert old.keys() == new.keys()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert {name.split(".")[0] for name in moved} == {part}
    assert len(moved) > 0.5 * sum(name.startswith(part) for name in old)


@pytest.mark.parametrize("part", PARTS)
def test_a_resumed_run_is_the_same_run(part, place, tmp_path):
    """Assert the curve and weights of an uninterrupted run, to the bit; the judge's are among them."""
    extra = ["--validation_steps", 2, "--checkpointing_steps", 2, "--learning_rate", 1e-3, "--max_train_steps"]
    assert run(part, place, tmp_path / "whole", *extra, 4) == 0
    real = script.Run._time_is_up
    try:  # a stop must not change how far the run has come, which the judge's weight follows
        script.Run._time_is_up = lambda self: self.global_step == 3
        assert run(part, place, tmp_path / "parts", *extra, 4) == 0
    finally:
        script.Run._time_is_up = real
    assert [path.name for path in list_checkpoints(tmp_path / "parts")] == ["checkpoint-2", "checkpoint-3"]
    assert run(part, place, tmp_path / "parts", *extra, 4, "--resume_from_checkpoint", "latest") == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert_equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert any(name.startswith("judge.") for name in weights(tmp_path / "whole")) == (part == "fuser")
    final = "pipeline/appearance/diffusion_pytorch_model.safetensors"
    assert_equal(load_file(tmp_path / "parts" / final), load_file(tmp_path / "whole" / final))


def test_the_fuser_trains_at_a_smaller_side_and_without_a_judge(place, tmp_path):
    """Assert that photos are still read at the model's size, views fused at the smaller one, and nothing is judged."""
    extra = ["--resolution", 32, "--adversarial_weight", 0, "--max_train_steps", 1]
    assert run("fuser", place, tmp_path, *extra) == 0
    assert photo_size(tmp_path / "validation.png") == (8 * 32, 4 * 32)
    assert not curve(tmp_path, "judge_loss")
    assert all(name.startswith("appearance.fuser.") for name in weights(tmp_path))


def test_sharded_parts_learn(place, tmp_path):
    """Assert one process's losses of the reader, and of the fuser, whose whole model stays in use, a finished run."""
    halves = ["--train_batch_size", 1, "--validation_steps", 2]
    commands = [("train_appearance", arguments(part, place, tmp_path / part, *halves)) for part in ("reader", "fuser")]
    run_together(tmp_path / "sharded.py", commands, **FSDP)
    assert run("reader", place, tmp_path / "one", "--validation_steps", 2) == 0
    for name in ("loss", "validation_depth_error"):
        assert curve(tmp_path / "reader", name) == pytest.approx(curve(tmp_path / "one", name), rel=1e-4)
    assert len(curve(tmp_path / "fuser", "adversarial_loss")) == 3
    assert NVBFacePipeline.from_pretrained(tmp_path / "fuser/pipeline").appearance is not None


def test_the_photos_own_view_is_among_the_targets_of_some(place):
    """Assert that it replaces the last target of three in ten samples, with its camera, depth and mask."""
    pipeline = NVBFacePipeline.from_pretrained(place.folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    dataset = SurfaceDataset(place.data, "train", SampleTransform(SIDE, ("clean",)), 2)
    batch = held_out_batch(dataset, 2)
    args = SimpleNamespace(seed=0, num_inference_steps=1)
    returned = []
    for key in range(30):
        batch["key"] = torch.tensor([key, 1000 + key])
        made = script.with_views(batch, pipeline, args)
        for sample in range(2):
            own = torch.equal(made["target_pixel_values"][sample, 1], batch["pixel_values"][sample, 0])
            expected = [1, 0 if own else 2]
            for name in ("pixel_values", "camera_params", "depth", "mask"):
                assert torch.equal(made[f"target_{name}"][sample], batch[name][sample, expected])
            returned.append(own)
    assert 0.1 < sum(returned) / len(returned) < 0.5
    assert made["views"].shape == (2, 2, 3, SIDE, SIDE)
    assert made["predicted_cameras"].shape == (2, 25)


def test_what_an_exact_reader_carries_is_the_truth(place):
    """Assert that with true depth, mask and camera the registered truth is what is carried, and is the truth."""
    dataset = SurfaceDataset(place.data, "train", SampleTransform(SIDE, ("clean",)), 2)
    batch = held_out_batch(dataset, 3)
    names = ("pixel_values", "depth", "mask", "camera_params")
    task_batch = {name: batch[name][:, 0] for name in names} | {f"target_{n}": batch[n][:, 1:] for n in names}
    task_batch["degraded_pixel_values"] = task_batch["pixel_values"]
    task_batch["predicted_cameras"], task_batch["views"] = task_batch["camera_params"], torch.zeros(3, 2, 3, 32, 32)
    appearance = tiny_appearance(sample_size=SIDE)
    exact = PhotoSurface(*(task_batch[name] for name in names))
    wrong = exact._replace(source_cameras=exact.source_cameras.roll(1, dims=0))
    errors = {}
    for name, surface in (("exact", exact), ("wrong", wrong)):
        appearance.read_photo = lambda *_, correct, read=surface: read
        task = fusion_task(appearance, task_batch, SIDE)
        seen = task.layers.direct[:, :, 3] > 0.99
        carried = task.layers.direct[:, :, :3]
        against = {"truth": task.truth, "target": task.target}
        errors[name] = {key: (carried - value).abs().mean(dim=2)[seen].mean() for key, value in against.items()}
    assert errors["exact"]["truth"] < 0.15
    assert errors["exact"]["target"] < errors["exact"]["truth"]
    assert errors["wrong"]["truth"] > 1.5 * errors["exact"]["truth"]
    assert errors["wrong"]["target"] < 0.7 * errors["wrong"]["truth"]


def test_smaller_planes_are_means_of_blocks():
    """Assert the mean of 2 x 2 pixels."""
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(at_size(images, 4), images.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5)))


def test_what_does_not_go_is_one_line(place, tmp_path, capsys):
    """Assert that each of these exits with 2 and one line that names what is wrong."""
    bare = shutil.copytree(place.data, tmp_path / "bare", ignore=shutil.ignore_patterns("masks"))
    cases = [
        ("reader", ["--data_dir", tmp_path / "none"], "no data set at"),
        ("restorer", ["--data_dir", bare], "images with depth and masks are needed"),
        ("fuser", ["--num_target_views", 7], "lower --num_target_views"),
        ("fuser", ["--resolution", 48], "--resolution 48: the model reads 64 px, which it must divide"),
        ("reader", ["--streaming"], "shards hold no depth and masks"),
        ("reader", ["--crop_jitter", 0.1], "random crops change the camera"),
    ]
    for number, (part, extra, words) in enumerate(cases):
        assert run(part, place, tmp_path / str(number), *extra) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, lines
        assert words in lines[0]
