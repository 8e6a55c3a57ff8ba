"""Measure both training steps against their bound, the bare UNet's forward and backward pass on the same batch.

    python -m benchmarks.training_speed                          # the small default model, at 128 pixels
    python -m benchmarks.training_speed --data_dir heads-v1-128  # and with a real set, through the data loader
    python -m benchmarks.training_speed --data_dir heads-v1-shards --streaming  # of prepare_shards.py, parquet or tar

Timed is a `Run` with the `compute_loss` of the step's script: backward, clipping, AdamW, learning rate and EMA. Bound
and step take turns, and each is compared within a turn, since machines do not keep their speed. A step has more to do
than the UNet, so its bound is the UNet's rate times the share of the UNet in the step's floating point operations.
With a set, the share of the time in which the step waits for its batch is printed too.
Peak memory is that of a process of its own for each row: on a GPU what torch allocates, on a CPU how much the resident
set grows after the imports.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import torch

from benchmarks.steps import STEPS, Step, count_flops, make_batch, make_step, unet_pass
from nvb_diffusers.data.datasets import FaceDataset, MultiViewFaceDataset, SampleTransform
from nvb_diffusers.option_types import OneLineParser, whole_number
from nvb_diffusers.training.run import Batch, Run

MODELS = Path(__file__).parents[1] / "training/recipes/models"
NEVER = 1 << 30  # steps

DataSet = FaceDataset | MultiViewFaceDataset


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--precisions", nargs="+", choices=("no", "bf16"), default=("no", "bf16"))
    parser.add_argument("--unet_config", default=MODELS / "unet.json")
    parser.add_argument("--encoder_config", default=MODELS / "image_encoder.json")
    parser.add_argument("--view_transformer_config", default=MODELS / "view_transformer.json")
    parser.add_argument("--unet_training", choices=("lora", "full"), default="full")
    parser.add_argument("--restoration_batch_size", type=whole_number(1), default=32)
    parser.add_argument("--novel_view_batch_size", type=whole_number(1), default=4)
    parser.add_argument("--num_target_views", type=whole_number(1), default=7)
    parser.add_argument(
        "--rounds", type=whole_number(1), default=8, help="turns of bound and step; their medians are printed"
    )
    parser.add_argument("--data_dir", help="also read this set through the data loader, latents cached")
    parser.add_argument("--streaming", action="store_true", help="the set is in shards")
    parser.add_argument("--degradation", nargs="+", default=["mild", "medium", "severe"])
    parser.add_argument("--dataloader_num_workers", type=whole_number(0, 1024), default=2)
    return parser.parse_args(argv)


def read_configs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The configurations of UNet, encoder and view transformer."""
    paths = (args.unet_config, args.encoder_config, args.view_transformer_config)
    return [json.loads(Path(path).read_text()) for path in paths]


class SamplesInMemory(FaceDataset):
    """The samples of one batch (B, ...), again and again."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.records = datasets.Dataset.from_dict({"number": list(range(len(batch["latents"])))})

    def __getitem__(self, key: int) -> Batch:
        values = {name: value[key % len(self)] for name, value in self.batch.items()}
        return {**values, "key": torch.tensor(key)}


class Turns:
    """Turns of a step and of its bound, in one run."""

    def __init__(
        self, run: Run, step: Step, latents: torch.Tensor, dataset: FaceDataset | MultiViewFaceDataset
    ) -> None:
        for model in (step.image_encoder, step.unet):
            model.to(run.accelerator.device, memory_format=torch.channels_last)
        self.run, self.step, self.latents = run, step, latents.to(run.accelerator.device)
        self.models = run.prepare(step.trained, dataset)
        self.batches, self.waited = iter(run), 0.0  # seconds

    def train(self) -> None:
        """One turn of the script's loop."""
        start = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - start
        self.run.step(*self.step.compute_loss(self.models, batch))

    def load(self) -> None:
        """A batch that nobody learns from."""
        next(self.batches)

    def bound(self) -> None:
        """The bare UNet."""
        with self.run.accelerator.autocast():
            unet_pass(self.step, self.latents)
        self.step.unet.zero_grad()


@contextmanager
def make_turns(name: str, args: argparse.Namespace, precision: str, from_disk: bool = False) -> Iterator[Turns]:
    """A run of one of `STEPS`, fed from memory or from the real set."""
    torch.manual_seed(0)
    step = make_step(name, read_configs(args), args.unet_training)
    options = step.args
    options.train_batch_size = args.restoration_batch_size if name == "restoration" else args.novel_view_batch_size
    options.mixed_precision = precision
    options.dataloader_num_workers = args.dataloader_num_workers if from_disk else 0
    options.max_train_steps = options.validation_steps = options.checkpointing_steps = options.logging_steps = NEVER
    batch = make_batch(step, options.train_batch_size, args.num_target_views + 1)
    dataset = open_dataset(name, step, args) if from_disk else SamplesInMemory(batch)
    with TemporaryDirectory() as options.output_dir, Run("speed", options) as run:
        yield Turns(run, step, batch["latents"], dataset)


def open_dataset(name: str, step: Step, args: argparse.Namespace) -> DataSet:
    """The real set, degraded, with random numbers in place of cached latents."""
    transform = SampleTransform(step.image_encoder.config.sample_size, args.degradation)
    dataset: DataSet
    if name == "restoration":
        dataset = FaceDataset(args.data_dir, "train", transform, args.streaming)
    else:
        dataset = MultiViewFaceDataset(args.data_dir, "train", transform, args.num_target_views, args.streaming)
    config = step.unet.config
    shape = (len(dataset.records), 2, config.in_channels, config.sample_size, config.sample_size)
    dataset.use_latents(np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(np.float16))
    return dataset


def seconds(function: Callable[[], None], times: int = 1) -> float:
    """How long calls take, with what they leave to a GPU."""
    start = time.perf_counter()
    for _ in range(times):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_rates(name: str, args: argparse.Namespace, precision: str) -> dict[str, float]:
    """Samples/s of bound and step, and their ratio; with a data set, the step fed by the data loader, and it alone."""
    with make_turns(name, args, precision) as turns:
        size = turns.run.args.train_batch_size
        for _ in range(2):
            turns.bound()
            turns.train()
        times = np.array([(seconds(turns.bound), seconds(turns.train)) for _ in range(args.rounds)])
    rates = {
        "bound": size / np.median(times[:, 0]),
        "in memory": size / np.median(times[:, 1]),
        "ratio": np.median(times[:, 0] / times[:, 1]),
    }
    if args.data_dir:
        for row in ("loader alone", "data loader"):
            with make_turns(name, args, precision, from_disk=True) as turns:
                turn = turns.load if row == "loader alone" else turns.train
                seconds(turn, 2 * args.dataloader_num_workers + 1)  # those that the workers have made ahead
                turns.waited = 0.0
                taken = seconds(turn, args.rounds)
                rates[row] = size * args.rounds / taken
                rates["waits"] = turns.waited / taken  # of the last row, the whole step
    return {row: float(rate) for row, rate in rates.items()}


def measure_memory(name: str, args: argparse.Namespace, precision: str, bound: bool) -> float:
    """Peak bytes of three turns of the bound or of the step."""
    before = resident_peak()
    with make_turns(name, args, precision) as turns:
        seconds(turns.bound if bound else turns.train, 3)
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_peak() - before


def resident_peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, called in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def report(args: argparse.Namespace) -> Iterator[str]:
    """The table of this machine, line by line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    sizes = f"{args.restoration_batch_size} images, {args.novel_view_batch_size} x {args.num_target_views + 1} views"
    configs = read_configs(args)
    yield f"{device}; {configs[1]['sample_size']} px; batch {sizes}; UNet training: {args.unet_training}\n"
    yield "| step | precision | row | samples/s | of the UNet's rate | of the bound | peak memory, GB |"
    yield "|---|---|---|---|---|---|---|"
    for step in args.steps:
        unet_flops, all_flops = count_flops(step, configs, args.unet_training, args.num_target_views + 1)
        share = unet_flops / all_flops
        for precision in args.precisions:
            rates = in_new_process(measure_rates, step, args, precision)
            memory = [in_new_process(measure_memory, step, args, precision, bound) / 1e9 for bound in (True, False)]
            start = f"| {step} | {'fp32' if precision == 'no' else precision} |"
            yield f"{start} bare UNet | {rates['bound']:.1f} | 1 | | {memory[0]:.2f} |"
            ratios = f"{rates['ratio']:.2f} | {rates['ratio'] / share:.2f}"
            yield f"{start} step, in memory | {rates['in memory']:.1f} | {ratios} | {memory[1]:.2f} |"
            if args.data_dir:
                ratio = rates["data loader"] / rates["bound"]
                yield f"{start} step, data loader | {rates['data loader']:.1f} | {ratio:.2f} | {ratio / share:.2f} | |"
                yield f"{start} data loader alone | {rates['loader alone']:.1f} | | | |"
                yield f"{start} share of the step that waits for data | {rates['waits']:.1%} | | | |"
        yield f"| {step} | | share of the UNet in the operations | | {share:.2f} | 1 | |"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    for line in report(args):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
