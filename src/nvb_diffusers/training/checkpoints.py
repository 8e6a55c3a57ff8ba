"""Checkpoint folders that are whole or absent, and the curve file that continues across a resume."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The `checkpoint-N` folders of a run, by N."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]
    return sorted(folders, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """N of `checkpoint-N`."""
    match = CHECKPOINT.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} is no checkpoint: expected a folder named checkpoint-N")
    return int(match.group(1))


def find_checkpoint(output_dir: str | Path, resume_from: str | None) -> Path | None:
    """The checkpoint to resume from: a folder, or the newest for `latest` (None where the run has none yet)."""
    if resume_from is None:
        return None
    if resume_from == "latest":
        folders = list_checkpoints(output_dir)
        return folders[-1] if folders else None
    folder = Path(resume_from)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint at {folder}: give a checkpoint-N folder, or latest")
    checkpoint_step(folder)
    return folder


def save_checkpoint(accelerator: Accelerator, output_dir: str | Path, step: int, limit: int | None) -> None:
    """Save the training state as `checkpoint-N`, whole or not at all; then drop the oldest beyond `limit`.

    Raises:
        OSError: the state could not be written, for one because the disk is full; older checkpoints are untouched.
    """
    folder = Path(output_dir) / f"checkpoint-{step}"

    def write(part: Path) -> None:
        accelerator.save_state(str(part))

    if accelerator.is_main_process:
        shutil.rmtree(_part(folder), ignore_errors=True)
    accelerator.wait_for_everyone()
    write_folder(folder, write, replace=accelerator.is_main_process, wait=accelerator.wait_for_everyone)
    if accelerator.is_main_process and limit is not None:
        for old in list_checkpoints(output_dir)[:-limit]:
            shutil.rmtree(old)


def write_folder(
    folder: Path, write: Callable[[Path], None], replace: bool = True, wait: Callable[[], None] = lambda: None
) -> None:
    """Let `write` fill a hidden folder, then give it its name, so that `folder` is never half-written.

    Args:
        folder: replaced where it exists.
        write: called with the hidden folder's path.
        replace: whether this process does the renaming.
        wait: called between the writing and the renaming, for other processes that write too.
    """
    part = _part(folder)
    try:
        part.mkdir(parents=True, exist_ok=True)
        write(part)
    except Exception as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(f"cannot write {folder}: {one_line(error)}") from error
    wait()
    if replace:
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
        shutil.rmtree(old, ignore_errors=True)
    wait()


def save_only_trainable(accelerator: Accelerator) -> None:
    """Make checkpoints hold just the parameters that train; frozen ones come from the base model again.

    With a sharded model (FSDP, DeepSpeed) accelerate keeps its own way of saving.
    """
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return

    def save(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        for number, model in enumerate(models):
            weights.pop()
            if accelerator.is_main_process:
                save_file(_trainable_state(accelerator.unwrap_model(model)), _trainable_file(folder, number))

    def load(models: list[torch.nn.Module], folder: str) -> None:
        for number in reversed(range(len(models))):
            model = accelerator.unwrap_model(models.pop())
            state = load_file(_trainable_file(folder, number))
            expected = _trainable_state(model).keys()
            if state.keys() != expected:
                raise ValueError(f"{folder} was saved with other trainable parameters: use the same training options")
            model.load_state_dict(state, strict=False)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def one_line(error: BaseException) -> str:
    """The last line of an error's text: what a person reads, without a worker's traceback."""
    lines = str(error).strip().splitlines()
    return (lines[-1] if lines else type(error).__name__).removeprefix("ValueError: ")


class CurveTracker(GeneralTracker):
    """Writes what is logged as lines of JSON to `curve.jsonl`.

    Args:
        output_dir: the run's folder.
        resume_step: lines beyond this step, of a run that was stopped after its last checkpoint, are dropped.
    """

    name = "curve"
    requires_logging_directory = False

    @on_main_process
    def __init__(self, output_dir: str | Path, resume_step: int = 0) -> None:
        super().__init__()
        self.path = Path(output_dir) / "curve.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= resume_step]
        self.path.write_text("".join(f"{line}\n" for line in kept))

    @property
    def tracker(self) -> "CurveTracker":
        """This object: there is no other run object behind it."""
        return self

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keep the run's options in `options.json`."""
        self.path.with_name("options.json").write_text(json.dumps(values, indent=2, default=str) + "\n")

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def _trainable_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().contiguous() for name, value in model.named_parameters() if value.requires_grad}


def _trainable_file(folder: str, number: int) -> str:
    return os.path.join(folder, f"trainable_{number}.safetensors")


def _part(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")
