"""Runs of the training scripts that are stopped, killed, go on or fail."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file
from small_data import write_small_set
from training_runs import (
    SCRIPTS,
    TRAINING,
    arguments,
    assert_equal,
    assert_one_line,
    curve,
    newest,
    run,
    weights,
)

from nvb_diffusers.training import run as run_module

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


# Stop and go on


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_resumed_run_is_the_same_run(script, place, tmp_path):
    """Assert the curve and weights of an uninterrupted run, to the bit, with accumulation and validation between."""
    extra = ["--gradient_accumulation_steps", 2, "--train_batch_size", 1, "--validation_steps", 2]
    extra += ["--checkpointing_steps", 2, "--learning_rate", 1e-3]
    assert run(script, place, tmp_path / "whole", *extra, "--max_train_steps", 5) == 0
    assert run(script, place, tmp_path / "parts", *extra, "--max_train_steps", 3) == 0
    resume = ["--resume_from_checkpoint", "latest", "--max_train_steps", 5]
    assert run(script, place, tmp_path / "parts", *extra, *resume) == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert_equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    final = {
        "autoencoder": "vae",
        "novel_view": "pipeline/view_transformer",
    }
    final = f"{final.get(script, 'pipeline/image_encoder')}/diffusion_pytorch_model.safetensors"
    assert_equal(load_file(tmp_path / "parts" / final), load_file(tmp_path / "whole" / final))


def test_a_changed_data_set_is_told(place, tmp_path, capsys):
    """Assert one line on resume where an image is another than before, and none where nothing changed."""
    data = write_small_set(tmp_path / "data")
    words = ["--data_dir", data, "--resume_from_checkpoint", "latest"]
    for steps, image in ((1, None), (2, None), (3, data / "images/000000/01.png")):
        if image is not None:
            image.write_bytes((data / "images/000001/01.png").read_bytes())
        assert run("restoration", place, tmp_path / "run", *words, "--max_train_steps", steps) == 0
        assert ("goes on from step 2 with data " in capsys.readouterr().err) == (image is not None)


STOP_IN_SAVE = """
import sys, time
sys.path.insert(0, {training!r})
from accelerate import Accelerator
import train_restoration

def save_state(self, folder, real=Accelerator.save_state):
    real(self, folder)
    if "checkpoint-4" in folder:
        open(folder + "/optimizer.bin", "wb").write(b"half")
        open(folder + "/saving", "w").close()
        time.sleep(600)

Accelerator.save_state = save_state
train_restoration.main({arguments!r})
"""


def test_kill_9_in_the_middle_of_a_save(place, tmp_path):
    """Assert that a run killed while it saves leaves whole checkpoints alone, and the same command goes on exactly."""
    extra = ["--checkpointing_steps", 2, "--max_train_steps", 6, "--resume_from_checkpoint", "latest"]
    extra += ["--checkpoints_total_limit", 2]
    words = arguments("restoration", place, tmp_path / "killed", *extra)
    program = STOP_IN_SAVE.format(training=str(TRAINING), arguments=words)
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while not list((tmp_path / "killed").rglob("saving")):  # in the hidden folder that becomes the checkpoint
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    names = os.listdir(tmp_path / "killed")
    assert "checkpoint-2" in names
    assert "checkpoint-4" not in names
    assert len(curve(tmp_path / "killed")) == 4
    assert run("restoration", place, tmp_path / "killed", *extra) == 0
    assert run("restoration", place, tmp_path / "whole", *extra) == 0
    assert (tmp_path / "killed/curve.jsonl").read_text() == (tmp_path / "whole/curve.jsonl").read_text()
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert sorted(path.name for path in (tmp_path / "killed").glob("*checkpoint*")) == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_time_limit_ends_with_a_checkpoint(script, place, tmp_path, monkeypatch):
    """Assert a checkpoint, a validation and a pipeline at the step that the time reached, and that it goes on."""
    clock = iter(range(1000))
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert run(script, place, tmp_path, "--max_train_seconds", 1.5, "--max_train_steps", 9) == 0
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert (tmp_path / ("vae" if script == "autoencoder" else "pipeline")).is_dir()
    extra = ["--max_train_steps", 3, "--resume_from_checkpoint", "latest"]
    assert run(script, place, tmp_path, *extra) == 0
    assert len(curve(tmp_path)) == 3


def test_a_validation_that_fails_loses_nothing(place, tmp_path, monkeypatch):
    """Assert a checkpoint of the step that was validated, from which the same command makes the pipeline."""
    script = SCRIPTS["novel_view"]
    with monkeypatch.context() as broken:
        broken.setattr(script, "validate", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("novel_view", place, tmp_path, "--max_train_steps", 2)
    assert newest(tmp_path).name == "checkpoint-2"
    assert run("novel_view", place, tmp_path, "--max_train_steps", 2, "--resume_from_checkpoint", "latest") == 0
    whole = tmp_path / "whole"
    assert run("novel_view", place, whole, "--max_train_steps", 2) == 0
    name = "pipeline/view_transformer/diffusion_pytorch_model.safetensors"
    assert_equal(load_file(tmp_path / name), load_file(whole / name))


# Errors


def test_a_wrong_path_or_file_is_one_line(place, tmp_path, capsys):
    """Assert that each of these exits with 2 and one line that names what is wrong."""
    bad_json, bad_key = tmp_path / "bad.json", tmp_path / "key.json"
    bad_json.write_text("{")
    bad_key.write_text('{"widths": 3}')
    cases = [
        ("restoration", ["--data_dir", tmp_path / "none"], "no data set at"),
        ("restoration", ["--pretrained_model_name_or_path", tmp_path / "none"], str(tmp_path / "none")),
        ("restoration", ["--encoder_config", tmp_path / "none.json"], "none.json"),
        ("restoration", ["--encoder_config", bad_json], "bad.json is not JSON"),
        ("restoration", ["--encoder_config", bad_key], "unexpected keyword argument 'widths'"),
        ("restoration", ["--resume_from_checkpoint", tmp_path / "none"], "no checkpoint at"),
        ("restoration", ["--latents_cache", tmp_path / "x.npy", "--crop_jitter", 0.1], "not with --crop_jitter"),
        ("novel_view", ["--pretrained_model_name_or_path", tmp_path / "none"], str(tmp_path / "none")),
        ("novel_view", ["--num_target_views", 7], "lower --num_target_views"),
        ("novel_view", ["--num_diffusion_views", 3], "a sample has 2 views"),
        ("novel_view", ["--num_diffusion_views", 0, "--train_unet"], "--train_unet needs one"),
        ("novel_view", ["--conditioning_dropout", 0.1], "goes with --train_unet alone"),
        ("novel_view", ["--streaming"], "prepare_shards.py makes it"),
        ("autoencoder", ["--model_config", bad_key], "unexpected keyword argument 'widths'"),
    ]
    for number, (script, extra, words) in enumerate(cases):
        assert run(script, place, tmp_path / str(number), *extra) == 2
        assert_one_line(capsys, words)


def test_an_unreadable_picture_is_one_line(place, tmp_path, capsys):
    """Assert that a picture that breaks during training ends the run in one line, from a worker process."""
    data = write_small_set(tmp_path / "data")
    (data / "images/000002/01.png").write_bytes(b"no picture")
    extra = ["--data_dir", data, "--checkpointing_steps", 1, "--train_batch_size", 1, "--max_train_steps", 20]
    assert run("restoration", place, tmp_path / "run", *extra, "--dataloader_num_workers", 1) == 2
    assert_one_line(capsys, "cannot read image")
    saved = list((tmp_path / "run").glob("checkpoint-*"))
    assert saved
    (tmp_path / "data").joinpath("images/000002/01.png").write_bytes((data / "images/000002/00.png").read_bytes())
    extra[-1] = max(int(path.name.split("-")[1]) for path in saved) + 1
    assert run("restoration", place, tmp_path / "run", *extra, "--resume_from_checkpoint", "latest") == 0


@pytest.mark.parametrize("script", ["autoencoder", "restoration"])
def test_a_full_disk_is_one_line(script, place, tmp_path, capsys, monkeypatch):
    """Assert that a checkpoint which cannot be written ends the run in one line and keeps the one before."""
    real, calls = Accelerator.save_state, []

    def save_state(self, folder):
        calls.append(folder)
        if len(calls) == 2:
            Path(folder, "optimizer.bin").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return real(self, folder)

    monkeypatch.setattr(Accelerator, "save_state", save_state)
    extra = ["--checkpointing_steps", 1, "--max_train_steps", 5]
    assert run(script, place, tmp_path, *extra) == 2
    assert_one_line(capsys, "No space left on device")
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-1"]
    assert run(script, place, tmp_path, *extra, "--resume_from_checkpoint", "latest", "--max_train_steps", 2) == 0


def test_a_run_is_not_begun_over_another(place, tmp_path, capsys):
    """Assert that a second run in the same folder has to say that it goes on."""
    assert run("autoencoder", place, tmp_path) == 0
    before = (tmp_path / "curve.jsonl").read_text()
    assert run("autoencoder", place, tmp_path) == 2
    assert_one_line(capsys, "already holds checkpoint-3")
    assert (tmp_path / "curve.jsonl").read_text() == before
