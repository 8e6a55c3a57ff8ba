"""Measure both training steps against their bound, the bare UNet's forward and backward pass on the same batch.

    python benchmarks/training_speed.py                          # the small default model, at 128 pixels
    python benchmarks/training_speed.py --data_dir heads-v1-128  # and with a real set, through the data loader
    python benchmarks/training_speed.py --paper_size             # memory and cost on Stable Diffusion 2.1, no GPU

The first two time the loop of each script: its `compute_loss`, backward, clipping, AdamW, learning rate and EMA. Bound
and step take turns, and each is compared within a turn, since machines do not keep their speed. A step has more to do
than the UNet, so its bound is the UNet's rate times the share of the UNet in the step's floating point operations.
Peak memory is that of a process of its own for each row: on a GPU what torch allocates, on a CPU how much the resident
set grows after the imports.

`--paper_size` runs the same `compute_loss` on tensors without contents: shapes and lifetimes are real, so sizes and
operations are counted, not estimated; the time that follows from them is an estimate.
"""

import argparse
import json
import resource
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import train_novel_view
import train_restoration
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from nvb_diffusers import TimeAwareImageEncoder, ViewTransformer3D
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.data.datasets import FaceDataset, MultiViewFaceDataset, SampleTransform
from nvb_diffusers.data.keys import KeySampler
from nvb_diffusers.models.unet import SD21_UNET_CONFIG, add_adapter, convert_unet
from nvb_diffusers.training.backbone import load_scheduler
from nvb_diffusers.training.optimizer import adamw

STEPS = ("restoration", "novel_view")
SCRIPTS = {"restoration": train_restoration, "novel_view": train_novel_view}
DEFAULT = Path(__file__).parent / "default"

# The paper's size and schedule, on Stable Diffusion 2.1
PAPER_RESOLUTION = 512
PAPER_CONFIGS: tuple[dict[str, Any], ...] = (SD21_UNET_CONFIG, {}, {})  # encoder and view transformer by default
PAPER_BATCH = {"restoration": 8, "novel_view": 2}
PAPER_VIEWS = 8
PICTURES = {"restoration": 1, "novel_view": PAPER_VIEWS}  # of a sample
PAPER_ITERATIONS = {"restoration": 200_000, "novel_view": 300_000}
PAPER_SETTINGS = (
    ("restoration", "lora", "encoder, attn2, LoRA"),
    ("restoration", "full", "encoder, UNet"),
    ("novel_view", "full", "view transformer"),
)
SD_VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
PEAK_TFLOPS = {"A100": 312, "H100 SXM": 989}  # bf16, dense, by the manufacturer

Batch = dict[str, torch.Tensor]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--precisions", nargs="+", choices=("no", "bf16"), default=("no", "bf16"))
    parser.add_argument("--unet_config", default=DEFAULT / "unet.json")
    parser.add_argument("--encoder_config", default=DEFAULT / "image_encoder.json")
    parser.add_argument("--view_transformer_config", default=DEFAULT / "view_transformer.json")
    parser.add_argument("--unet_training", choices=("lora", "full"), default="full")
    parser.add_argument("--restoration_batch_size", type=int, default=32)
    parser.add_argument("--novel_view_batch_size", type=int, default=4)
    parser.add_argument("--num_target_views", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=8, help="turns of bound and step; their medians are printed")
    parser.add_argument("--data_dir", help="also read this set through the data loader, latents cached")
    parser.add_argument("--degradation", nargs="+", default=["mild", "medium", "severe"])
    parser.add_argument("--dataloader_num_workers", type=int, default=2)
    parser.add_argument("--paper_size", action="store_true", help="memory and cost of the paper's model instead")
    parser.add_argument("--utilization", type=float, default=0.4, help="assumed share of a GPU's peak, for the cost")
    return parser.parse_args(argv)


# The models and one step of either script


@dataclass
class Models:
    """The networks of both steps; `trained` holds those that the step trains, under their own names."""

    image_encoder: torch.nn.Module
    unet: torch.nn.Module
    latent_head: torch.nn.Module | None
    view_transformer: torch.nn.Module | None

    def trained(self) -> list[torch.nn.Module]:
        models = (self.image_encoder, self.unet, self.latent_head) if self.latent_head else (self.view_transformer,)
        return [model for model in models if model is not None]


def make_models(step: str, configs: Sequence[dict[str, Any]], unet_training: str) -> Models:
    """New networks as the step's script sets them up, from the configurations of UNet, encoder and view transformer."""
    unet_config, encoder_config, view_transformer_config = configs
    image_encoder = TimeAwareImageEncoder(**encoder_config)
    unet = convert_unet(UNet2DConditionModel(**unet_config), image_encoder.config.out_channels)
    if step == "restoration":
        if unet_training == "lora":
            add_adapter(unet)
        models = Models(image_encoder, unet, train_restoration.make_latent_head(image_encoder, unet), None)
    else:
        for frozen in (image_encoder, unet):
            frozen.requires_grad_(False).eval()
        width = image_encoder.config.out_channels
        view_transformer = ViewTransformer3D(**{"in_channels": width, **view_transformer_config})
        models = Models(image_encoder, unet, None, train_novel_view.NovelViewModel(view_transformer))
    for model in models.trained():
        model.train()
    return models


def make_batch(step: str, models: Models, batch_size: int, num_views: int, device: torch.device | str) -> Batch:
    """Random pictures and latents in the shapes of the script's data set, latents included."""
    shape = (batch_size,) if step == "restoration" else (batch_size, num_views)
    side, resolution = models.unet.config.sample_size, models.image_encoder.config.sample_size
    batch = {
        "degraded_pixel_values": torch.rand(*shape, 3, resolution, resolution, device=device) * 2 - 1,
        "latents": torch.randn(*shape, models.unet.config.in_channels, side, side, device=device),
        "key": torch.arange(batch_size, device=device),
    }
    if step == "novel_view":
        batch["camera_params"] = orbit_cameras(num_views, (-45, 45)).to(device).repeat(batch_size, 1, 1)
    return batch


def script_options(step: str) -> argparse.Namespace:
    """The defaults of the step's own options."""
    return SCRIPTS[step].parse_args(["--data_dir", "-", "--output_dir", "-", "--pretrained_model_name_or_path", "-"])


def make_loss(step: str, models: Models, scheduler: DDPMScheduler) -> Callable[[Batch], torch.Tensor]:
    """The step's `compute_loss`, as its loop calls it."""
    options = script_options(step)
    if step == "novel_view":
        (model,) = models.trained()
        networks = (model, models.unet, models.image_encoder)
        return lambda batch: train_novel_view.compute_loss(*networks, scheduler, batch, options)[0]
    parts = (models.image_encoder, models.unet, models.latent_head, scheduler)
    return lambda batch: train_restoration.compute_loss(*parts, batch, options)[0]


def unet_pass(models: Models, batch: Batch) -> None:
    """Forward and backward of the UNet on the latents of a batch; in step 2 it is frozen and passes gradients on."""
    latents = batch["latents"].flatten(0, -4)  # (N, C, h, w)
    length = models.image_encoder.config.feature_size**2
    shape = (len(latents), length, models.unet.config.cross_attention_dim)
    encoder_hidden_states = torch.zeros(shape, device=latents.device, requires_grad=True)
    timesteps = torch.zeros(len(latents), device=latents.device, dtype=torch.long)
    models.unet(latents, timesteps, encoder_hidden_states).sample.float().square().mean().backward()


class Loop:
    """What the script does for a batch, and the bound, on the machine's accelerator or CPU."""

    def __init__(self, step: str, args: argparse.Namespace, precision: str) -> None:
        torch.manual_seed(0)
        self.step, self.accelerator = step, Accelerator(mixed_precision=precision)
        device, options = self.accelerator.device, script_options(step)
        self.models = make_models(step, read_configs(args), args.unet_training)
        for model in (self.models.image_encoder, self.models.unet):
            model.to(device, memory_format=torch.channels_last)
        self.trainable = [p for model in self.models.trained() for p in model.parameters() if p.requires_grad]
        self.ema = EMAModel(self.trainable, decay=options.ema_decay, use_ema_warmup=True, power=0.75)
        optimizer = adamw(self.trainable, options.learning_rate, options.adam_weight_decay, options.use_8bit_adam)
        lr_scheduler = get_scheduler(options.lr_scheduler, optimizer, num_warmup_steps=options.lr_warmup_steps)
        *prepared, self.optimizer, self.lr_scheduler = self.accelerator.prepare(
            *self.models.trained(), optimizer, lr_scheduler
        )
        self.prepared, self.max_grad_norm = prepared, options.max_grad_norm
        self.ema.to(device)
        self.loss = make_loss(step, self.models, load_scheduler(None, None, False))
        size = args.restoration_batch_size if step == "restoration" else args.novel_view_batch_size
        self.batch = make_batch(step, self.models, size, args.num_target_views + 1, device)

    def train(self, batch: Batch) -> None:
        """One turn of the script's loop."""
        with self.accelerator.accumulate(*self.prepared):
            if self.step == "restoration":
                loss = self.loss(batch)
            else:
                with self.accelerator.autocast():
                    loss = self.loss(batch)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.trainable, self.max_grad_norm)
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad()
        self.ema.step(self.trainable)

    def bound(self) -> None:
        """The bare UNet."""
        with self.accelerator.autocast():
            unet_pass(self.models, self.batch)
        self.models.unet.zero_grad()


def read_configs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The configurations of UNet, encoder and view transformer."""
    paths = (args.unet_config, args.encoder_config, args.view_transformer_config)
    return [json.loads(Path(path).read_text()) for path in paths]


# Measuring on this machine, each row in a process of its own


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """How long a call takes, with what it leaves to a GPU."""
    start = time.perf_counter()
    function(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_rates(step: str, args: argparse.Namespace, precision: str) -> dict[str, float]:
    """Samples/s of bound and step, and their ratio; with a data set, the step fed by the data loader, and it alone."""
    loop = Loop(step, args, precision)
    for _ in range(2):
        loop.bound(), loop.train(loop.batch)
    times = np.array([(seconds(loop.bound), seconds(loop.train, loop.batch)) for _ in range(args.rounds)])
    size = len(loop.batch["key"])
    rates = {
        "bound": size / np.median(times[:, 0]),
        "in memory": size / np.median(times[:, 1]),
        "ratio": np.median(times[:, 0] / times[:, 1]),
    }
    if args.data_dir:
        for name, train in (("loader alone", False), ("data loader", True)):
            batches = read_batches(loop, args)

            def turns(count: int, batches: Iterator[Batch] = batches, train: bool = train) -> None:
                for _ in range(count):
                    batch = next(batches)
                    if train:
                        loop.train(batch)

            turns(2 * args.dataloader_num_workers + 1)  # those that the workers have made ahead
            rates[name] = size * args.rounds / seconds(turns, args.rounds)
    return {name: float(rate) for name, rate in rates.items()}


def read_batches(loop: Loop, args: argparse.Namespace) -> Iterator[Batch]:
    """Batches of the real set, degraded, with random numbers in place of cached latents."""
    transform = SampleTransform(loop.models.image_encoder.config.sample_size, args.degradation)
    dataset: FaceDataset | MultiViewFaceDataset
    if loop.step == "restoration":
        dataset = FaceDataset(args.data_dir, "train", transform)
    else:
        dataset = MultiViewFaceDataset(args.data_dir, "train", transform, args.num_target_views)
    shape = (len(dataset.records), 2, *loop.batch["latents"].shape[-3:])
    dataset.use_latents(np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(np.float16))
    loader = DataLoader(
        dataset,
        batch_size=len(loop.batch["key"]),
        sampler=KeySampler(len(dataset), seed=0),
        num_workers=args.dataloader_num_workers,
        drop_last=True,
    )
    return iter(loop.accelerator.prepare(loader))


def measure_memory(step: str, args: argparse.Namespace, precision: str, bound: bool) -> float:
    """Peak bytes of three turns of the bound or of the step."""
    before = resident_peak()
    loop = Loop(step, args, precision)
    for _ in range(3):
        loop.bound() if bound else loop.train(loop.batch)
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_peak() - before


def resident_peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, called in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def report_rates(args: argparse.Namespace) -> Iterator[str]:
    """The table of this machine, line by line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    sizes = f"{args.restoration_batch_size} pictures, {args.novel_view_batch_size} x {args.num_target_views + 1} views"
    resolution = read_configs(args)[1]["sample_size"]
    yield f"{device}; {resolution} px; batch {sizes}; UNet training: {args.unet_training}\n"
    yield "| step | precision | row | samples/s | of the UNet's rate | of the bound | peak memory, GB |"
    yield "|---|---|---|---|---|---|---|"
    for step in args.steps:
        with torch.device("meta"):
            models = make_models(step, read_configs(args), args.unet_training)
            unet_flops, all_flops = count_flops(step, models, args.num_target_views + 1)
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
        yield f"| {step} | | share of the UNet in the operations | | {share:.2f} | 1 | |"


# Counting on tensors without contents


def no_draws(step: str) -> Any:
    """Let the script draw nothing: keys without contents cannot seed a generator."""

    def timesteps(keys: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(keys)

    def noise(keys: torch.Tensor, shape: tuple[int, ...], *_: Any) -> torch.Tensor:
        return torch.empty(len(keys), *shape, device=keys.device)

    def dropped(keys: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(keys, dtype=torch.bool)

    return mock.patch.multiple(SCRIPTS[step], draw_timesteps=timesteps, draw_noise=noise, draw_choices=dropped)


def count_flops(step: str, models: Models, num_views: int) -> tuple[int, int]:
    """Floating point operations a sample, forward and backward: of the bare UNet, and of the whole step."""
    batch = make_batch(step, models, 1, num_views, "meta")
    with FlopCounterMode(display=False) as unet_counter:
        unet_pass(models, batch)
    loss = make_loss(step, models, load_scheduler(None, None, False))
    with no_draws(step), FlopCounterMode(display=False) as counter:
        loss(batch).backward()
    return unet_counter.get_total_flops(), counter.get_total_flops()


class LiveMemory(TorchDispatchMode):
    """Follows the bytes of all storages made under it, from their making to their end; `peak` is the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage not in inputs and storage not in self.known:
                self.known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._end, storage.nbytes())
        return outputs

    def _end(self, size: int) -> None:
        self.live -= size


def without_contents(model: torch.nn.Module) -> None:
    """Give a model from the meta device parameters of the CPU that take no memory, within a FakeTensorMode.

    Norms get float32 inputs, as a GPU's autocast gives them and a CPU's does not.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.nn.Parameter(torch.empty(parameter.shape), requires_grad=parameter.requires_grad)
            setattr(module, name, empty)
            empty.grad = torch.empty(parameter.shape) if empty.requires_grad else None
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))


def peak_activations(step: str, unet_training: str, checkpointing: bool, batch_size: int) -> int:
    """Peak bytes of forward and backward at paper size beyond parameters and gradients, in half precision autocast."""
    with torch.device("meta"):
        models = make_models(step, PAPER_CONFIGS, unet_training)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for model in (models.image_encoder, models.unet, *models.trained()):
            without_contents(model)
        if checkpointing:
            enable_checkpointing(step, models)
        batch = make_batch(step, models, batch_size, PAPER_VIEWS, "cpu")
        loss = make_loss(step, models, load_scheduler(None, None, False))
        # float16 is as large as bfloat16, for which the view transformer has a kernel of its own on CPUs.
        with no_draws(step), LiveMemory() as memory:
            with torch.autocast("cpu", torch.float16):
                value = loss(batch)
            value.backward()
    return memory.peak


def peak_encoding(pictures: int) -> int:
    """Peak bytes of encoding pictures to latents at paper size, in half precision autocast."""
    with torch.device("meta"):
        vae = AutoencoderKL(**SD_VAE_CONFIG).requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_contents(vae)
        pixel_values = torch.empty(pictures, 3, PAPER_RESOLUTION, PAPER_RESOLUTION)
        with LiveMemory() as memory, torch.no_grad(), torch.autocast("cpu", torch.float16):
            vae.encode(pixel_values)
    return memory.peak


def enable_checkpointing(step: str, models: Models) -> None:
    """What the script's `--gradient_checkpointing` does."""
    models.unet.enable_gradient_checkpointing()
    if step == "restoration":
        models.image_encoder.enable_gradient_checkpointing()
    else:
        models.trained()[0].view_transformer.enable_gradient_checkpointing()


def vae_flops() -> int:
    """Floating point operations of encoding one picture to latents at paper size."""
    with torch.device("meta"):
        vae = AutoencoderKL(**SD_VAE_CONFIG)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vae.encode(torch.empty(1, 3, PAPER_RESOLUTION, PAPER_RESOLUTION))
    return counter.get_total_flops()


def report_paper_size(args: argparse.Namespace) -> Iterator[str]:
    """The tables of the paper's size, line by line."""
    yield "Memory of one GPU in GB (1e9 bytes), counted: float32 parameters and AdamW, bf16 autocast\n"
    columns = "parameters | gradients | AdamW | EMA | batch | activations | encoding latents | sum"
    yield f"| step | trains | checkpointing | {columns} |"
    yield "|---" * 11 + "|"
    with torch.device("meta"):
        vae_bytes = model_bytes([AutoencoderKL(**SD_VAE_CONFIG)])
    for step, unet_training, name in PAPER_SETTINGS:
        with torch.device("meta"):
            models = make_models(step, PAPER_CONFIGS, unet_training)
        every = {id(model): model for model in (models.image_encoder, models.unet, *models.trained())}.values()
        trained = model_bytes(models.trained(), trainable=True)
        fixed = (model_bytes(every) + vae_bytes, trained, 2 * trained, trained)
        for checkpointing in (False, True):
            for batch_size in (1, PAPER_BATCH[step]):
                activations = peak_activations(step, unet_training, checkpointing, batch_size)
                encoding = peak_encoding(batch_size * PICTURES[step])
                sizes = (*fixed, batch_size, activations, encoding, sum(fixed) + max(activations, encoding))
                cells = [str(size) if size < 1000 else f"{size / 1e9:.1f}" for size in sizes]
                yield f"| {step} | {name} | {'yes' if checkpointing else 'no'} | {' | '.join(cells)} |"
    yield "\nLatents are encoded before the step, so the larger of the two counts; --latents_cache makes that zero."
    yield "Several GPUs (DDP) need the gradients once more, for their buckets. Not counted: the CUDA context,"
    yield "fragmentation, validation pictures."

    yield "\nOperations of one sample in TFLOP, forward and backward, without checkpointing, counted; days on one GPU,"
    yield f"estimated from its peak in bf16 (dense) at {args.utilization:.0%} utilization\n"
    names = [f"days, {name} ({peak} TFLOP/s)" for name, peak in PEAK_TFLOPS.items()]
    yield f"| step | latents | samples | UNet | all | samples/s, {next(iter(PEAK_TFLOPS))} | {' | '.join(names)} |"
    yield "|---|" + "---|" * (5 + len(names))
    encode = vae_flops()
    for step in STEPS:
        samples = PAPER_ITERATIONS[step] * PAPER_BATCH[step]
        with torch.device("meta"):
            unet, everything = count_flops(step, make_models(step, PAPER_CONFIGS, "lora"), PAPER_VIEWS)
        for latents, extra in (("cached", 0), ("encoded each time", PICTURES[step] * encode)):
            flops = everything + extra
            rates = [1e12 * peak * args.utilization / flops for peak in PEAK_TFLOPS.values()]
            days = [f"{samples / rate / 86400:.1f}" for rate in rates]
            start = f"| {step} | {latents} | {samples / 1e6:.1f}M | {unet / 1e12:.2f} | {flops / 1e12:.2f} |"
            yield f"{start} {rates[0]:.1f} | {' | '.join(days)} |"


def model_bytes(models: Iterable[torch.nn.Module], trainable: bool = False) -> int:
    """Bytes of the parameters, or of those that train."""
    parameters = [p for model in models for p in model.parameters() if p.requires_grad or not trainable]
    return sum(p.numel() * p.element_size() for p in {id(p): p for p in parameters}.values())


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    for line in report_paper_size(args) if args.paper_size else report_rates(args):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
