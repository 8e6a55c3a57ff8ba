"""Checkpoint folders are whole or absent, errors are one line, and the curve continues."""

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from nvb_diffusers.files import one_line
from nvb_diffusers.training.checkpoints import (
    CurveTracker,
    find_checkpoint,
    list_checkpoints,
    save_checkpoint,
    save_only_trainable,
    write_folder,
)


@pytest.fixture
def trained():
    """An accelerator with a prepared layer, of which the bias is frozen."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True)
    layer = torch.nn.Linear(4, 3)
    layer.bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([layer.weight])
    layer, optimizer = accelerator.prepare(layer, optimizer)
    save_only_trainable(accelerator)
    yield accelerator, layer
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def save_state(accelerator):
    """What an unsharded run writes into the folder of a checkpoint."""
    return lambda folder: accelerator.save_state(str(folder))


def make_checkpoints(folder, *steps):
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir()


def test_latest_is_the_largest_number(tmp_path):
    """Assert order by number, not by name, and that other names are no checkpoints."""
    assert find_checkpoint(tmp_path, "latest") is None
    make_checkpoints(tmp_path, 9, 10, 100)
    (tmp_path / ".checkpoint-200.part").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-100"
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-100")).name == "checkpoint-100"
    assert find_checkpoint(tmp_path / "other", None) is None


def test_a_run_is_not_begun_over_another(tmp_path):
    """Assert that a new run, or one from an older checkpoint, does not mix its checkpoints with later ones."""
    make_checkpoints(tmp_path, 9, 10)
    for resume_from in (None, str(tmp_path / "checkpoint-9")):
        with pytest.raises(ValueError, match=r"already holds checkpoint-10: go on from it with --resume_from"):
            find_checkpoint(tmp_path, resume_from)
    with pytest.raises(ValueError, match=r"no checkpoint at .*checkpoint-11"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-11"))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ValueError, match="expected a folder named checkpoint-N"):
        find_checkpoint(tmp_path / "new", str(tmp_path / "elsewhere"))


def test_a_checkpoint_holds_what_trains_and_comes_back(trained, tmp_path):
    """Assert that saving and loading restores the trained weight, and the frozen bias is not in the folder."""
    accelerator, layer = trained
    weight = layer.weight.detach().clone()
    save_checkpoint(accelerator, tmp_path, 5, 2, save_state(accelerator))
    torch.nn.init.zeros_(layer.weight)
    accelerator.load_state(str(tmp_path / "checkpoint-5"))
    assert torch.equal(layer.weight, weight)
    assert load_file(tmp_path / "checkpoint-5/trainable_0.safetensors").keys() == {"weight"}
    layer.bias.requires_grad_(True)
    with pytest.raises(ValueError, match="saved with other trainable parameters"):
        accelerator.load_state(str(tmp_path / "checkpoint-5"))


def test_pruning_keeps_the_newest(trained, tmp_path):
    """Assert that the oldest beyond the limit go, without a limit none, and the remains of a killed save too."""
    accelerator, _ = trained
    for step in (8, 9, 10):
        save_checkpoint(accelerator, tmp_path, step, 2, save_state(accelerator))
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    (tmp_path / ".checkpoint-11.part").mkdir()
    (tmp_path / ".checkpoint-11.part" / "optimizer.bin").write_bytes(b"half")
    save_checkpoint(accelerator, tmp_path, 12, 0, save_state(accelerator))
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-10", "checkpoint-12", "checkpoint-9"]


def test_a_save_that_fails_leaves_nothing_and_drops_nothing(trained, tmp_path, monkeypatch):
    """Assert one line, no folder and no remains, and that older checkpoints are still there."""
    accelerator, _ = trained
    save_checkpoint(accelerator, tmp_path, 1, 1, save_state(accelerator))

    def full(folder):
        (Path(folder) / "optimizer.bin").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(accelerator, "save_state", full)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint-2 \(.* GB free\): .*No space left on device"):
        save_checkpoint(accelerator, tmp_path, 2, 1, save_state(accelerator))
    assert os.listdir(tmp_path) == ["checkpoint-1"]


def test_a_file_size_limit_is_one_line(trained, tmp_path):
    """Assert that the real writers of torch and safetensors, stopped by the system, give an OSError and no folder."""
    accelerator, _ = trained
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"^cannot write .*checkpoint-3 .*$"):
            save_checkpoint(accelerator, tmp_path, 3, 1, save_state(accelerator))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line(trained, tmp_path):
    """Assert the same on a disk that is really full."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    accelerator, layer = trained
    try:
        save_checkpoint(accelerator, tmp_path, 1, 0, save_state(accelerator))
        (tmp_path / "other").write_bytes(bytes(os.statvfs(tmp_path).f_bavail * 4096 - 4096))
        with pytest.raises(OSError, match=r"^cannot write .*checkpoint-2 \(0.00 GB free\).*$"):
            save_checkpoint(accelerator, tmp_path, 2, 1, save_state(accelerator))
        assert sorted(os.listdir(tmp_path)) == ["checkpoint-1", "other"]
        weight = layer.weight.detach().clone()
        accelerator.load_state(str(tmp_path / "checkpoint-1"))
        assert torch.equal(layer.weight, weight)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_write_folder_replaces_at_once(tmp_path):
    """Assert that a folder is replaced by a whole one, and kept where writing fails."""
    folder = tmp_path / "pipeline"
    for content in ("one", "two"):
        write_folder(folder, lambda part, text=content: (part / "file").write_text(text))
        assert (folder / "file").read_text() == content

    def fail(part):
        (part / "file").write_text("three")
        raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(OSError, match=r"cannot write .*pipeline .*unexpected pos"):
        write_folder(folder, fail)
    assert (folder / "file").read_text() == "two"
    assert os.listdir(tmp_path) == ["pipeline"]


def test_a_mistake_in_the_program_is_not_a_full_disk(tmp_path):
    """Assert that other errors than those of writing pass as they are."""
    with pytest.raises(TypeError):
        write_folder(tmp_path / "pipeline", lambda part: len(None))


class Broken(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise ValueError("cannot read image 3.png: it is cut short")


def test_an_error_of_a_worker_is_one_line():
    """Assert that the traceback that torch puts in a worker's error is left out."""
    with pytest.raises(ValueError, match="DataLoader worker") as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert one_line(caught.value) == "cannot read image 3.png: it is cut short"


def read_steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_the_curve_goes_on_at_the_checkpoint(tmp_path):
    """Assert that lines after the checkpoint go, a line cut short goes, and a new run starts a new curve."""
    path = tmp_path / "curve.jsonl"
    tracker = CurveTracker(tmp_path)
    tracker.start()
    for step in range(1, 6):
        tracker.log({"loss": 0.5}, step=step)
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    CurveTracker(tmp_path, 3).start()
    assert read_steps(path) == [1, 2, 3]
    CurveTracker(tmp_path).start()
    assert read_steps(path) == []


def test_options_are_kept(tmp_path):
    """Assert that the run's options lie beside the curve."""
    tracker = CurveTracker(tmp_path / "run")
    tracker.start()
    tracker.store_init_configuration({"seed": 3, "data_dir": "x", "rank": None})
    assert json.loads((tmp_path / "run/options.json").read_text()) == {"seed": 3, "data_dir": "x", "rank": None}
