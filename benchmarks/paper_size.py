"""Count memory and cost of both training steps at the paper's size, on Stable Diffusion 2.1, without a GPU.

    python -m benchmarks.paper_size

The `compute_loss` of each script runs on tensors without contents: shapes and lifetimes are real, so sizes and
operations are counted, not estimated; the time that follows from them is an estimate.
"""

import argparse
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.steps import (
    STEPS,
    Step,
    count_flops,
    make_batch,
    make_empty_step,
    make_step,
    networks,
    without_contents,
)
from nvb_diffusers.models.unet import SD21_UNET_CONFIG
from nvb_diffusers.option_types import OneLineParser, number
from nvb_diffusers.training.frozen import FrozenWeights
from training.train_novel_view import NovelViewModel

RESOLUTION = 512
CONFIGS: tuple[dict[str, Any], ...] = (SD21_UNET_CONFIG, {}, {})  # encoder and view transformer by default
BATCH = {"restoration": 8, "novel_view": 2}
VIEWS = 8
IMAGES = {"restoration": 1, "novel_view": VIEWS}  # of a sample
ITERATIONS = {"restoration": 200_000, "novel_view": 300_000}
SETTINGS = (
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


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--utilization", type=number(above=0, high=1), default=0.4, help="assumed share of a GPU's peak, for the cost"
    )
    return parser.parse_args(argv)


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


def checkpointed(step: Step) -> list[ModelMixin]:
    """The models that a script's `--gradient_checkpointing` computes twice."""
    first = step.trained[0]
    return [step.unet, first.view_transformer if isinstance(first, NovelViewModel) else step.image_encoder]


def peak_activations(name: str, unet_training: str, checkpointing: bool, batch_size: int) -> int:
    """Peak bytes of forward and backward beyond parameters and gradients, in half precision autocast."""
    keys = torch.arange(batch_size)  # with contents, as they seed what the script draws
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = make_empty_step(name, CONFIGS, unet_training)
        if checkpointing:  # as the scripts do
            for model in checkpointed(step):
                model.enable_gradient_checkpointing()
        FrozenWeights([step.image_encoder, step.unet], "fp16").halve()  # as the scripts do
        batch = {**make_batch(step, batch_size, VIEWS), "key": keys}
        # float16 is as large as bfloat16, for which the view transformer has a kernel of its own on CPUs.
        with LiveMemory() as memory:
            with torch.autocast("cpu", torch.float16):
                loss, _ = step.compute_loss(step.trained, batch)
            loss.backward()
    return memory.peak


def peak_encoding(images: int) -> int:
    """Peak bytes of encoding images to latents, in half precision autocast."""
    with torch.device("meta"):
        vae = AutoencoderKL(**SD_VAE_CONFIG).requires_grad_(False)
    with FakeTensorMode():
        without_contents(vae)
        pixel_values = torch.empty(images, 3, RESOLUTION, RESOLUTION)
        with LiveMemory() as memory, torch.no_grad(), torch.autocast("cpu", torch.float16):
            vae.encode(pixel_values)
    return memory.peak


def encoding_flops() -> int:
    """Floating point operations of encoding one image to latents."""
    with torch.device("meta"):
        vae = AutoencoderKL(**SD_VAE_CONFIG)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vae.encode(torch.empty(1, 3, RESOLUTION, RESOLUTION))
    return counter.get_total_flops()


def model_bytes(models: Iterable[torch.nn.Module], trainable: bool = False) -> int:
    """Bytes of the parameters, or of those that train."""
    parameters = [p for model in models for p in model.parameters() if p.requires_grad or not trainable]
    return sum(p.numel() * p.element_size() for p in {id(p): p for p in parameters}.values())


def report_memory() -> Iterator[str]:
    """The table of bytes, line by line."""
    yield "Memory of one GPU in GB (1e9 bytes), counted: bf16 autocast and what is frozen in bf16, all else and AdamW"
    yield "in float32\n"
    columns = "parameters | gradients | AdamW | EMA | batch | activations | encoding latents | sum"
    yield f"| step | trains | checkpointing | {columns} |"
    yield "|---" * 11 + "|"
    with torch.device("meta"):
        vae_bytes = model_bytes([AutoencoderKL(**SD_VAE_CONFIG)])
    for name, unet_training, trains in SETTINGS:
        with torch.device("meta"):
            step = make_step(name, CONFIGS, unet_training)
        trained = model_bytes(step.trained, trainable=True)
        halved = sum(weight.nbytes for weight in FrozenWeights(networks(step), "bf16").weights) // 2
        fixed = (model_bytes(networks(step)) - halved + vae_bytes, trained, 2 * trained, trained)
        for checkpointing in (False, True):
            for batch_size in (1, BATCH[name]):
                activations = peak_activations(name, unet_training, checkpointing, batch_size)
                encoding = peak_encoding(batch_size * IMAGES[name])
                sizes = (*fixed, batch_size, activations, encoding, sum(fixed) + max(activations, encoding))
                cells = [str(size) if size < 1000 else f"{size / 1e9:.1f}" for size in sizes]
                yield f"| {name} | {trains} | {'yes' if checkpointing else 'no'} | {' | '.join(cells)} |"
    yield "\nLatents are encoded before the step, so the larger of the two counts; --latents_cache makes that zero."
    yield "Several GPUs (DDP) need the gradients once more, for their buckets. Not counted: the CUDA context,"
    yield "fragmentation, validation images."


def report_cost(utilization: float) -> Iterator[str]:
    """The table of operations and days, line by line."""
    yield "Operations of one sample in TFLOP, forward and backward, without checkpointing, counted; days on one GPU,"
    yield f"estimated from its peak in bf16 (dense) at {utilization:.0%} utilization\n"
    names = [f"days, {name} ({peak} TFLOP/s)" for name, peak in PEAK_TFLOPS.items()]
    yield f"| step | latents | samples | UNet | all | samples/s, {next(iter(PEAK_TFLOPS))} | {' | '.join(names)} |"
    yield "|---|" + "---|" * (5 + len(names))
    encoding = encoding_flops()
    for name in STEPS:
        samples = ITERATIONS[name] * BATCH[name]
        unet, everything = count_flops(name, CONFIGS, "lora", VIEWS)
        for latents, extra in (("cached", 0), ("encoded each time", IMAGES[name] * encoding)):
            flops = everything + extra
            rates = [1e12 * peak * utilization / flops for peak in PEAK_TFLOPS.values()]
            days = [f"{samples / rate / 86400:.1f}" for rate in rates]
            start = f"| {name} | {latents} | {samples / 1e6:.1f}M | {unet / 1e12:.2f} | {flops / 1e12:.2f} |"
            yield f"{start} {rates[0]:.1f} | {' | '.join(days)} |"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    for lines in (report_memory(), ["\n"], report_cost(args.utilization)):
        for line in lines:
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
