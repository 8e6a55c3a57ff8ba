"""Checkpoint folders that are whole or absent, and the curve file that continues across a resume."""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nvb_diffusers.files import hidden_path, one_line, read_json, replaced_folder, write_json, write_whole

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
AVERAGES = "averages.safetensors"


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
    """The checkpoint to resume from: one of the run's by its name, another folder, or the newest for `latest`.

    It is None for `latest` where the run has none yet.

    Raises:
        ValueError: there is no such checkpoint; or the run went further than it, so that its own later checkpoints
            would be taken for the newest.
    """
    folders = list_checkpoints(output_dir)
    if resume_from == "latest":
        return folders[-1] if folders else None
    folder = Path(resume_from) if resume_from is not None else None
    own = [path for path in folders if path.name == resume_from]
    if own:  # by bare name, as diffusers' scripts take it
        folder = own[0]
    if folder is not None and not folder.is_dir():
        raise ValueError(f"no checkpoint at {folder}: give a checkpoint-N folder, or latest")
    step = checkpoint_step(folder) if folder is not None else 0
    if folders and checkpoint_step(folders[-1]) > step:
        raise ValueError(
            f"{output_dir} already holds {folders[-1].name}: go on from it with --resume_from_checkpoint latest, or "
            "choose another --output_dir"
        )
    return folder


def save_checkpoint(
    accelerator: Accelerator, output_dir: str | Path, step: int, limit: int, write: Callable[[Path], None]
) -> None:
    """Save the training state as `checkpoint-N`, whole or not at all; then drop the oldest beyond `limit`, 0 for none.

    Args:
        accelerator: knows the other processes.
        output_dir: the run's folder.
        step: N.
        limit: how many are kept.
        write: called in every process with the folder to fill.

    Raises:
        OSError: the state could not be written, for one because the disk is full; older checkpoints are untouched.
    """
    folder = Path(output_dir) / f"checkpoint-{step}"
    if accelerator.is_main_process:
        for left in Path(output_dir).glob(".checkpoint-*"):  # by a run that was killed while it saved
            shutil.rmtree(left)
    accelerator.wait_for_everyone()
    write_folder(
        folder,
        write,
        replace=accelerator.is_main_process,
        wait=accelerator.wait_for_everyone,
    )
    if accelerator.is_main_process and limit:
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
        wait: called before and after the writing, for other processes that write too.

    Raises:
        OSError: the folder could not be written; what was at its place before is still there.
    """
    room = ""
    try:
        with replaced_folder(folder) if replace else nullcontext(hidden_path(folder)) as part:
            wait()
            room = f" ({shutil.disk_usage(part).free / 1e9:.2f} GB free)"
            write(part)
            wait()
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        raise OSError(f"cannot write {folder}{room}: {one_line(error)}") from error
    wait()


def save_only_trainable(accelerator: Accelerator) -> None:
    """Make checkpoints hold just the parameters that train; frozen ones come from the base model again."""

    def save(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        for number, model in enumerate(models):
            weights.pop()
            if accelerator.is_main_process:
                save_file(_trainable_state(accelerator.unwrap_model(model)), _trainable_file(folder, number))

    def load(models: list[torch.nn.Module], folder: str) -> None:
        for number in reversed(range(len(models))):
            model = accelerator.unwrap_model(models.pop())
            state = load_file(_trainable_file(folder, number))
            expected = {name: value.shape for name, value in _trainable_state(model).items()}
            if {name: value.shape for name, value in state.items()} != expected:
                raise ValueError(f"{folder} was saved with other trainable parameters: use the same training options")
            model.load_state_dict(state, strict=False)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_averages(accelerator: Accelerator, ema: EMAModel) -> None:
    """Make checkpoints hold the averaged weights: as safetensors and JSON, since accelerate's own way runs pickles."""

    def save(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        if accelerator.is_main_process:
            state = ema.state_dict()
            averages = {str(number): value.contiguous() for number, value in enumerate(state.pop("shadow_params"))}
            save_file(averages, Path(folder, AVERAGES))
            write_json(Path(folder, AVERAGES).with_suffix(".json"), state)

    def load(models: list[torch.nn.Module], folder: str) -> None:
        averages = load_file(Path(folder, AVERAGES))
        if len(averages) != len(ema.shadow_params):
            raise ValueError(f"{folder} holds {len(averages)} averaged weights, but {len(ema.shadow_params)} train")
        shadow = [averages[str(number)] for number in range(len(averages))]
        ema.load_state_dict({**read_json(Path(folder, AVERAGES).with_suffix(".json")), "shadow_params": shadow})

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def load_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Take up the state that `save_checkpoint` wrote; nothing in the folder is executed.

    accelerate's own files are read by `torch.load(weights_only=True)`, but the state of objects registered with it is
    unpickled: no run of ours registers any.

    Raises:
        ValueError: the folder holds such a pickle, or is damaged, or of another run.
    """
    for path in sorted(folder.glob("custom_checkpoint_*.pkl")):
        raise ValueError(f"{path} is a pickle that no run writes and that would run the code in it: it is not loaded")
    try:
        accelerator.load_state(str(folder))
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, UnpicklingError, SafetensorError) as error:
        raise ValueError(f"cannot resume from {folder}: {one_line(error)}") from error


class CurveTracker(GeneralTracker):
    """Writes what is logged as lines of JSON to `curve.jsonl`.

    Args:
        output_dir: the run's folder.
        resume_step: lines beyond this step, of a run that was stopped after its last checkpoint, are dropped.
    """

    name = "curve"
    requires_logging_directory = False

    def __init__(self, output_dir: str | Path, resume_step: int = 0) -> None:
        super().__init__()
        self.path, self.resume_step = Path(output_dir) / "curve.jsonl", resume_step

    @on_main_process
    def start(self) -> None:
        """Cut the file at the step where the run begins; called by accelerate once processes know each other."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a full disk may have cut the last one
        kept = [line for line in whole if json.loads(line)["step"] <= self.resume_step]
        write_whole(self.path, "".join(kept))

    @property
    def tracker(self) -> "CurveTracker":
        """This object: there is no other run object behind it."""
        return self

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keep the run's options in `options.json`."""
        write_json(self.path.with_name("options.json"), values)

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def _trainable_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().contiguous() for name, value in model.named_parameters() if value.requires_grad}


def _trainable_file(folder: str, number: int) -> str:
    return os.path.join(folder, f"trainable_{number}.safetensors")
