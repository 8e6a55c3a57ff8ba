"""What every training run needs and none decides: processes, data loader, optimizer, EMA, clock, checkpoints and log.

`Run` is no trainer: it yields batches and takes losses. What trains, the losses, what is validated and what is saved
stand in the script:

    with Run("restoration", args) as run:
        model, = run.prepare([model], dataset)
        for batch in run:
            run.step(*compute_loss(model, batch, args))
            if run.validates:
                run.log(validate(...))
        run.save(pipeline, publish)
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from nvb_diffusers.data.datasets import (
    FaceDataset,
    MultiViewFaceDataset,
    data_fingerprint,
    held_out_batch,
    key_sampler,
)
from nvb_diffusers.files import one_line, only_writer, read_json
from nvb_diffusers.stopping import Stopped, StopRequest, asked_to_stop, begin_worker, stop_by_signals
from nvb_diffusers.training import sharding
from nvb_diffusers.training.checkpoints import (
    CurveTracker,
    checkpoint_step,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_averages,
    save_checkpoint,
    save_only_trainable,
    write_folder,
)
from nvb_diffusers.training.frozen import FrozenWeights
from nvb_diffusers.training.health import Health
from nvb_diffusers.training.optimizer import MuonAdamW, OptimizerSettings, adamw, use_settings
from nvb_diffusers.training.options import SECRETS
from nvb_diffusers.training.pictures import send_picture
from nvb_diffusers.training.start import check_room, check_start, repository

Arguments = ParamSpec("Arguments")
Batch = dict[str, torch.Tensor]
# Options that say how far to go and whom to tell, not what is trained.
OF_ONE_CALL = {
    *("resume_from_checkpoint", "max_train_steps", "num_train_epochs", "max_train_seconds", "config_file"),
    *("report_to", "logging_dir", "tracker_project_name", "push_to_hub", "hub_model_id"),
}
PICTURES = "validation*.png"  # that scripts leave in the run's folder when they validate
CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, and of ARM


class Savable(Protocol):
    """A pipeline or a model of diffusers."""

    def save_pretrained(self, save_directory: str | Path) -> Any: ...  # noqa: D102


class Run:
    """One run of a training script, from its first step or from a checkpoint to its last step or the end of its time.

    Args:
        name: of the run, for trackers.
        args: the options of `options.add_run_arguments`, and the script's own, which are logged with them.

    Attributes:
        accelerator: knows the device and the other processes.
        output_dir: the run's folder.
        global_step: optimizer steps made, those before a resume among them.
        validates: whether the script should validate now, in this process; from then until the next batch the models
            have their averaged weights. True every `--validation_steps` and at the last step.

    Raises:
        ValueError, OSError: there is no such checkpoint, the folder holds another run's, another process writes to it,
            or what the run will need at its end is not there (`check_start`).
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self._start = time.monotonic()
        check_start(args)
        self._name = args.tracker_project_name or name
        self.args, self.output_dir = args, Path(args.output_dir)
        self._resume_from = find_checkpoint(self.output_dir, args.resume_from_checkpoint)
        self.global_step = checkpoint_step(self._resume_from) if self._resume_from else 0
        self.validates, self._forward = False, ExitStack()  # what a batch's losses are computed under
        self._held, self._signals, self._stop = ExitStack(), ExitStack(), StopRequest()  # the folder, and the loop's
        self._health, self._frozen = Health(self.output_dir), FrozenWeights((), "no")
        trackers = [CurveTracker(self.output_dir, self.global_step)]
        self.accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            log_with=trackers + ([args.report_to] if args.report_to != "none" else []),
            project_config=ProjectConfiguration(str(self.output_dir), str(self.output_dir / args.logging_dir)),
            # The main process validates and caches latents while the others wait for it.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
        )
        sharding.check_launch(self.accelerator)
        if sharding.is_asked():
            sharding.check_options(args)
        if self.accelerator.is_main_process:
            self._held.enter_context(only_writer(self.output_dir))
        set_seed(args.seed)
        if args.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        note = slow_bf16_note(self.accelerator.device) if self.accelerator.mixed_precision == "bf16" else None
        if note and self.accelerator.is_main_process:
            print(note, file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._forward.close()
        self._signals.close()
        self._held.close()
        if error is None:
            self.accelerator.wait_for_everyone()  # a process that leaves first can abort the others
            self.accelerator.end_training()

    def prepare(
        self, models: Sequence[torch.nn.Module], dataset: FaceDataset | MultiViewFaceDataset
    ) -> list[torch.nn.Module]:
        """Make optimizer, averaged weights and data loader; then take up the checkpoint, where the run resumes.

        Args:
            models: those of their parameters that require gradients train.
            dataset: whose samples are trained on.

        Returns:
            The models as they are to be called in training, wrapped for the processes of the run.
        """
        args, processes = self.args, self.accelerator.num_processes
        self._data = {"data": data_fingerprint(args.data_dir, dataset.records)}
        if args.max_train_samples is not None:
            dataset.keep_first(args.max_train_samples)
        batch_size, workers = args.train_batch_size, args.dataloader_num_workers
        whole_batch = batch_size * processes * args.gradient_accumulation_steps
        if args.num_train_epochs is not None:
            args.max_train_steps = args.num_train_epochs * math.ceil(len(dataset) / whole_batch)
        self._sharded = sharding.Sharded(models, self.accelerator.device) if sharding.is_asked() else None
        if self._sharded:
            models = self._sharded.models
        named = [pair for model in models for pair in model.named_parameters() if pair[1].requires_grad]
        self.trainable = [parameter for _, parameter in named]
        check_room(self.output_dir, self.trainable, self._checkpoints_to_come())
        self._ema = EMAModel(self.trainable, decay=args.ema_decay, use_ema_warmup=True, power=0.75)
        settings = OptimizerSettings(
            args.learning_rate * (whole_batch if args.scale_lr else 1),
            args.adam_weight_decay,
            (args.adam_beta1, args.adam_beta2),
            args.adam_epsilon,
            args.use_8bit_adam,
        )
        optimizer = MuonAdamW(named, settings) if args.use_muon else adamw(self.trainable, settings)
        lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps * processes,
            num_training_steps=args.max_train_steps * processes,
            num_cycles=args.lr_num_cycles,
            power=args.lr_power,
        )
        start = self.global_step * whole_batch
        sampler = key_sampler(dataset, args.seed, start, batch_size, readers=max(1, workers) * processes)
        dataloader = DataLoader(
            dataset, batch_size, sampler=sampler, num_workers=workers, drop_last=True, worker_init_fn=begin_worker
        )
        self._optimizer = self.accelerator.prepare_optimizer(optimizer)
        self._dataloader = self.accelerator.prepare_data_loader(dataloader)
        self._lr_scheduler = self.accelerator.prepare_scheduler(lr_scheduler)
        self._models = list(models) if self._sharded else [self.accelerator.prepare_model(model) for model in models]
        self._ema.to(self.accelerator.device)
        save_only_trainable(self.accelerator)
        save_averages(self.accelerator, self._ema)
        if self._resume_from:
            self._read_state(self._resume_from, lr_scheduler)
            self._ema.to(self.accelerator.device)
            self._ema.decay = args.ema_decay
            use_settings(optimizer, lr_scheduler, settings)
            self._tell_changes()
        self.accelerator.init_trackers(self._name, self._described())
        return self._models

    def halve_frozen(self, *models: torch.nn.Module) -> None:
        """Keep what does not train of models in autocast's precision while steps are made; call it after `prepare`."""
        if not self._sharded:  # whose rows are of one precision
            self._frozen = FrozenWeights(models, self.accelerator.mixed_precision)
            self._frozen.halve()

    def __iter__(self) -> Iterator[Batch]:
        """Batches, each to be answered by one `step`, under autocast until then; at the end the EMA's weights stay.

        Raises:
            Stopped: a signal came; the run's last checkpoint is of the step that it was at.
        """
        args, batches = self.args, iter(self._dataloader)
        self._ends, self._stops = self.global_step >= args.max_train_steps, False
        bar = tqdm(initial=self.global_step, total=args.max_train_steps, disable=not self.accelerator.is_main_process)
        self._stop = self._signals.enter_context(asked_to_stop())
        with bar as self._progress:
            while not self._ends:
                self._parts: list[dict[str, torch.Tensor]] = []
                for _ in range(args.gradient_accumulation_steps):
                    batch = next(batches)
                    with self.accelerator.accumulate(*self._models):
                        self._forward.enter_context(self.accelerator.autocast())
                        yield batch
                if self.validates:
                    for picture in sorted(self.output_dir.glob(PICTURES)):
                        send_picture(self.accelerator, picture, self.global_step)
                    if self._sharded:
                        self._sharded.put_whole_aside()
                    else:
                        self._ema.restore(self.trainable)
                    self.validates = False
                    self._frozen.halve()
                if self._stops:
                    how = f"at step {self.global_step}, with a checkpoint: --resume_from_checkpoint latest goes on"
                    raise Stopped(self._stop.number or signal.SIGTERM, f" {how}")
        self._signals.close()
        self._frozen.make_whole()
        if self._sharded:
            self._sharded.fill_whole(self._ema.shadow_params)
        else:
            self._ema.copy_to(self.trainable)

    def step(self, loss: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        """Backward, and an optimizer step once the gradients of `--gradient_accumulation_steps` batches are there.

        Args:
            loss: a scalar.
            parts: scalars to be logged beside it.
        """
        self._forward.close()
        self._parts.append({"loss": loss.detach(), **parts})
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            norm = self.accelerator.clip_grad_norm_(self.trainable, self.args.max_grad_norm or math.inf)
            if not self._health.note(sharding.whole(norm), self.global_step + 1) and self.accelerator.scaler is None:
                self._optimizer.zero_grad()  # a step without gradients is none; with a scaler, that leaves it out
        self._optimizer.step()
        self._lr_scheduler.step()
        self._optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self._end_step()

    def held_out(self, dataset: FaceDataset | MultiViewFaceDataset) -> Batch:
        """`--num_validation_samples` of a data set (N, ...), on the run's device; the same in every run."""
        batch = held_out_batch(dataset, self.args.num_validation_samples)
        return {name: value.to(self.accelerator.device) for name, value in batch.items()}

    def log(self, values: dict[str, float]) -> None:
        """Send values of this step to all trackers."""
        self.accelerator.log(values, step=self.global_step)

    def save(self, result: Savable, publish: Callable[..., object], folder: str = "pipeline") -> None:
        """Write what the run made, whole or not at all, and share it where `--push_to_hub` says so.

        Args:
            result: with the averaged weights, which the models have once the loop is over.
            publish: called with the result, the repository's id and `token`, the Hub's or None.
            folder: in the run's folder.
        """
        if self.accelerator.is_main_process:
            write_folder(self.output_dir / folder, result.save_pretrained)
            if self.args.push_to_hub:
                try:
                    publish(result, repository(self.args), token=self.args.hub_token)
                except Exception as error:  # of whichever HTTP library the Hub's client has
                    raise OSError(
                        f"{self.output_dir / folder} is written, but not published: {one_line(error)}"
                    ) from error

    def _end_step(self) -> None:
        args = self.args
        self._ema.step(self.trainable)
        self.global_step += 1
        self._progress.update()
        if _is_due(self.global_step, args.logging_steps):
            means = _mean_parts(self.accelerator, self._parts)
            self.log({**means, "learning_rate": self._lr_scheduler.get_last_lr()[0]})
            self._progress.set_postfix(loss=f"{means['loss']:.4g}")
        late, self._stops = _any_process(self.accelerator, self._time_is_up(), self._stop.number is not None)
        self._ends = self.global_step >= args.max_train_steps or late or self._stops
        if self._ends or _is_due(self.global_step, args.checkpointing_steps):
            self._save_checkpoint()  # before a validation, which may fail
        due = not self._stops and (self._ends or _is_due(self.global_step, args.validation_steps))
        self.validates = due and self.accelerator.is_main_process
        if self.validates:
            self._frozen.make_whole()
        if self._sharded and due:
            self._sharded.fill_whole(self._ema.shadow_params)  # every process has rows of them
        elif self.validates:
            self._ema.store(self.trainable)
            self._ema.copy_to(self.trainable)

    def _save_checkpoint(self) -> None:
        """Save what can be gone on from: after a bad step nothing, so that the last good checkpoint stays the newest.

        Raises:
            ValueError: the run ends with a bad step, or a weight is not finite.
        """
        self._health.check(self.trainable, self.global_step)
        if self._health.is_good:
            limit = self.args.checkpoints_total_limit
            save_checkpoint(self.accelerator, self.output_dir, self.global_step, limit, self._write_state)
        elif self._ends:
            raise self._health.lost(self.global_step)

    def _write_state(self, folder: Path) -> None:
        """Fill a checkpoint's folder, with every process's rows where the models are sharded."""
        if self._sharded:
            sharding.save_state(folder, self.trainable, self._ema, self._optimizer.optimizer)
        else:
            self.accelerator.save_state(str(folder))

    def _read_state(self, folder: Path, lr_scheduler: torch.optim.lr_scheduler.LambdaLR) -> None:
        """Take up a checkpoint; one of rows may have been written by any number of processes.

        Raises:
            ValueError: the folder is damaged, of another run, or was written whole where the models are sharded.
        """
        if sharding.is_sharded(folder):
            sharding.check_options(self.args)
            sharding.load_state(folder, self.trainable, self._ema, self._optimizer.optimizer)
            lr_scheduler.last_epoch = self.global_step * self.accelerator.num_processes  # as accelerate counts
        elif self._sharded:
            raise ValueError(f"{folder} was saved by a run that was not sharded: go on without FSDP")
        else:
            load_checkpoint(self.accelerator, folder)

    def _checkpoints_to_come(self) -> int:
        """How many checkpoints more than now there will be at once, at least the first."""
        args = self.args
        left = args.max_train_steps - self.global_step
        made = math.ceil(left / (args.checkpointing_steps or args.max_train_steps))
        kept = args.checkpoints_total_limit + 1 if args.checkpoints_total_limit else 1  # all of them: who can tell
        return max(1, min(made, kept) - len(list_checkpoints(self.output_dir)))

    def _tell_changes(self) -> None:
        """One line that says which options are others than those of the run so far; the new ones are used."""
        before = self.output_dir / "options.json"
        if not before.is_file() or not self.accelerator.is_main_process:
            return
        old, new = read_json(before), self._described()
        changed = [name for name in new if name not in OF_ONE_CALL and name in old and old[name] != new[name]]
        if changed:
            words = ", ".join(f"{name} {new[name]} (was {old[name]})" for name in changed)
            print(f"note: the run goes on from step {self.global_step} with {words}", file=sys.stderr)

    def _described(self) -> dict[str, Any]:
        """The options of the run, and what its data set is, to tell whether they are those of before."""
        options = {name: value for name, value in vars(self.args).items() if name not in SECRETS}
        return {**_plain_options(options), **self._data}

    def _time_is_up(self) -> bool:
        limit = self.args.max_train_seconds
        return limit is not None and time.monotonic() - self._start > limit


def one_line_errors(main: Callable[Arguments, None]) -> Callable[Arguments, int]:
    """Make a script's main function return its exit status, and say in one line on stderr why it is not 0.

    It is 2 where the script's input is at fault, and 128 and the signal's number where it was told to stop.
    """

    @wraps(main)
    def run_main(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        try:
            with stop_by_signals():
                main(*args, **kwargs)
        except (ValueError, OSError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return stopped.status
        return 0

    return run_main


def slow_bf16_note(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """One line for a run in bf16 on a CPU that has no instructions for it; None elsewhere."""
    if device.type != "cpu" or not cpuinfo.exists() or CPU_BF16_FLAGS & set(cpuinfo.read_text().split()):
        return None
    return "note: this CPU has no bf16 instructions, so bf16 takes about ten times as long as --mixed_precision no"


def _is_due(step: int, every: int) -> bool:
    """Whether something happens at this step that happens every so many steps, 0 for never."""
    return every > 0 and step % every == 0


def _plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options as trackers and JSON take them: no lists."""
    return {name: " ".join(value) if isinstance(value, list) else value for name, value in options.items()}


def _any_process(accelerator: Accelerator, *conditions: bool) -> list[bool]:
    """Which conditions hold in at least one process; every process asks, and all get the same answer."""
    if accelerator.num_processes == 1:
        return list(conditions)
    counts = accelerator.reduce(torch.tensor(conditions, dtype=torch.float32, device=accelerator.device), "sum")
    return [count > 0 for count in counts.tolist()]


def _mean_parts(accelerator: Accelerator, parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Mean of each part of a loss over micro-batches and processes, as one process with the whole batch has it."""
    means = {name: torch.stack([part[name].detach().float() for part in parts]).mean() for name in parts[0]}
    return {name: value.item() for name, value in accelerator.reduce(means, "mean").items()}
