"""Measure a call of the pipeline against the naive loop over views and steps, and against its floor, the bare UNet.

    python -m benchmarks.pipeline_speed                             # the default checkpoint
    python -m benchmarks.pipeline_speed --paper_size --dtype bfloat16 --views 1 8 --out speed

Four ways of the same views take turns in one run: `naive` encodes the photo, builds the volume and projects it for each
view and step, and decodes view by view; `ours` is the pipeline's call, and `with the photo` the same with its own
pixels, where there is an appearance model; `floor` is the UNet's loop and the decoding alone, on the same batch.
Ratios are of medians. Peak memory is what torch allocates on a GPU, with the weights; on a CPU it is not measured. The
share of the peak compares counted operations with what a large matrix product reached in the same run.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch.utils.flop_counter import FlopCounterMode

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.cli.info import paper_size_pipeline
from nvb_diffusers.denoising import guided_prediction
from nvb_diffusers.evaluation.charts import Series, line_chart
from nvb_diffusers.evaluation.intervals import Interval
from nvb_diffusers.option_types import OneLineParser, a_path, whole_number

PRODUCT_SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices whose product is the machine's peak
CONVOLUTION = (16, 320, 64)  # images, channels and side of the widest convolution of Stable Diffusion's UNet
Way = Callable[[], torch.Tensor]


class Row(NamedTuple):
    """What one way of making the views took.

    Args:
        num_views: of one photo.
        way: its name.
        seconds: of each round.
        gflop: counted in one call.
        memory: peak bytes; 0 where it is not measured.
    """

    num_views: int
    way: str
    seconds: list[float]
    gflop: float
    memory: int


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    which.add_argument("--paper_size", action="store_true", help="the paper's sizes on SD 2.1's layout, random weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--views", type=whole_number(1, 10_000), nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--view_batch_size", type=whole_number(1), help="views at a time; default: all")
    parser.add_argument("--num_inference_steps", type=whole_number(1, 1000), default=4)
    parser.add_argument("--rounds", type=whole_number(1), default=5, help="turns, after one that is not counted")
    parser.add_argument("--naive_views", type=whole_number(0), default=8, help="no naive loop of more views than that")
    parser.add_argument("--compile", action="store_true", help="compile UNet and decoder; the first turn pays for it")
    parser.add_argument("--out", type=a_path, help="a new folder for table and chart")
    return parser.parse_args(argv)


@torch.no_grad()
def naive(
    pipe: NVBFacePipeline,
    photo: torch.Tensor,
    cameras: torch.Tensor,
    latents: torch.Tensor,
    num_inference_steps: int,
    source_camera: torch.Tensor | None = None,
) -> torch.Tensor:
    """Views (V, 3, S, S) of a photo (3, S, S) in [0, 1], everything again for each view and step.

    Args:
        pipe: with a view transformer.
        photo: the input.
        cameras: (V, 25).
        latents: (1, C, h, w), the noise of all views.
        num_inference_steps: of the scheduler.
        source_camera: (1, 25); None for the one predicted at each step.
    """
    pixel_values, views = pipe.preprocess_images([photo]), []
    guidance_scale = pipe.config.default_guidance_scale or 1.0
    for camera in cameras.to(pixel_values.device):
        sample = latents.to(pixel_values) * pipe.scheduler.init_noise_sigma
        pipe.scheduler.set_timesteps(num_inference_steps, device=pixel_values.device)
        for t in pipe.scheduler.timesteps:
            features = pipe.image_encoder(pixel_values, t[None]).sample
            predicted = pipe.view_transformer.predict_camera(features)
            sources = predicted if source_camera is None else source_camera.to(predicted)
            source = pipe.view_transformer.read_source(features, t[None], sources)
            volume = pipe.view_transformer.build_volume(source)
            states = pipe.view_transformer.project(volume, source, camera[None, None]).flatten(3).mT  # (1, 1, L, C)
            model_input = pipe.scheduler.scale_model_input(sample, t)
            prediction = guided_prediction(pipe.unet, model_input, t, states[0].to(sample), guidance_scale)
            sample = pipe.scheduler.step(prediction, t, sample, return_dict=False)[0]
        views.append(pipe.decode_latents(sample))
    return torch.cat(views) / 2 + 0.5


@torch.no_grad()
def floor(
    pipe: NVBFacePipeline, states: torch.Tensor, latents: torch.Tensor, num_inference_steps: int, size: int | None
) -> torch.Tensor:
    """Images (V, 3, S, S) of the UNet's loop and the decoding alone, reading states (V, L, C) at every step."""
    sample = latents.to(states).expand(len(states), -1, -1, -1) * pipe.scheduler.init_noise_sigma
    guidance_scale = pipe.config.default_guidance_scale or 1.0
    pipe.scheduler.set_timesteps(num_inference_steps, device=states.device)
    for t in pipe.scheduler.timesteps:
        model_input = pipe.scheduler.scale_model_input(sample, t)
        prediction = guided_prediction(pipe.unet, model_input, t, states, guidance_scale, size)
        sample = pipe.scheduler.step(prediction, t, sample, return_dict=False)[0]
    return pipe.decode_latents(sample, size)


def open_pipeline(args: argparse.Namespace) -> NVBFacePipeline:
    """The pipeline of the options, on the GPU where there is one."""
    dtype, device = getattr(torch, args.dtype), "cuda" if torch.cuda.is_available() else "cpu"
    if not args.paper_size:
        pipe = NVBFacePipeline.from_pretrained(args.checkpoint, dtype=dtype)
    else:
        pipe = paper_size_pipeline()
        pipe.register_modules(scheduler=DDIMScheduler())  # with its contents
        for model in (pipe.image_encoder, pipe.view_transformer, pipe.unet, pipe.vae):
            model.to_empty(device=device)
            torch.nn.Module.to(model, dtype).requires_grad_(False).eval()
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data.normal_(std=0.02)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    if args.compile:
        pipe.unet.compile()
        pipe.vae.decoder.compile()
    return pipe


def make_ways(pipe: NVBFacePipeline, num_views: int, args: argparse.Namespace) -> dict[str, Way]:
    """The ways of making so many views of one photo, by their names."""
    steps, size, device = args.num_inference_steps, args.view_batch_size, pipe.unet.device
    torch.manual_seed(0)
    photo, cameras = torch.rand(3, pipe.sample_size, pipe.sample_size), orbit_cameras(num_views, (-45.0, 45.0))
    config = pipe.unet.config
    latents = torch.randn(1, config.in_channels, config.sample_size, config.sample_size, device=device)
    states = torch.randn(num_views, pipe.image_encoder.config.feature_size**2, config.cross_attention_dim)
    states = states.to(device, pipe.unet.dtype)
    appearance = pipe.appearance

    def ours(appearance: Any) -> torch.Tensor:
        pipe.register_modules(appearance=appearance)
        return pipe(
            photo, cameras, steps, latents=latents[None], view_batch_size=size, output_type="pt", return_dict=False
        )[0]

    ways: dict[str, Way] = {
        "floor": lambda: floor(pipe, states, latents, steps, size),
        "ours": lambda: ours(None),
    }
    if appearance is not None:
        ways["with the photo"] = lambda: ours(appearance)
    if num_views <= args.naive_views:
        ways["naive"] = lambda: naive(pipe, photo, cameras, latents, steps)
    return ways


def timed(way: Way) -> float:
    """Seconds of a call, with what it leaves to a GPU."""
    start = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(pipe: NVBFacePipeline, num_views: int, args: argparse.Namespace) -> list[Row]:
    """A row for each way; all take turns."""
    appearance, ways = pipe.appearance, make_ways(pipe, num_views, args)
    gflop, memory = {}, {}
    for name, way in ways.items():  # the first turn, which is not counted
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if args.compile:
            timed(way)  # operations of compiled code are not counted
            gflop[name] = 0.0
        else:
            with FlopCounterMode(display=False) as counter:
                timed(way)
            gflop[name] = counter.get_total_flops() / 1e9
        memory[name] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    pipe.register_modules(appearance=appearance)
    return [Row(num_views, name, seconds[name], gflop[name], memory[name]) for name in ways]


def machine_peak(dtype: torch.dtype, device: str) -> dict[str, float]:
    """TFLOP/s of a large matrix product and of a convolution, the best of ten."""
    side, (images, channels, width) = PRODUCT_SIDE[device], CONVOLUTION
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    pixels = torch.randn(images if device == "cuda" else 1, channels, width, width, device=device, dtype=dtype)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    works = {
        "matrix product": (lambda: matrix @ matrix, 2 * side**3),
        "convolution": (
            lambda: torch.nn.functional.conv2d(pixels, weight, padding=1),
            2 * pixels.numel() * 9 * channels,
        ),
    }
    with torch.no_grad():
        return {name: flop / min(timed(work) for _ in range(10)) / 1e12 for name, (work, flop) in works.items()}


def growth(rows: Sequence[Row], way: str) -> tuple[float, float]:
    """Seconds of a call and of each view in it: the line that fits the medians of a way best."""
    views, seconds = np.array([(row.num_views, median(row.seconds)) for row in rows if row.way == way]).T
    slope, start = np.polyfit(views, seconds, deg=1) if len(views) > 1 else (np.nan, np.nan)
    return float(start), float(slope)


def report(rows: Sequence[Row], peak: dict[str, float]) -> Iterator[str]:
    """The table of all rows, line by line."""
    yield "Peak: " + ", ".join(f"{name} {value:.2f} TFLOP/s" for name, value in peak.items()) + "\n"
    yield "| views | way | median, s | least to most, s | of the floor | of the peak | memory, GB |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        of_floor = next(r for r in rows if r.num_views == row.num_views and r.way == "floor")
        seconds = median(row.seconds)
        share = f"{row.gflop / 1e3 / seconds / peak['matrix product']:.1%}" if row.gflop else ""
        memory = f"{row.memory / 1e9:.2f}" if row.memory else ""
        spread = f"{min(row.seconds):.3f} to {max(row.seconds):.3f}"
        ratio = f"{seconds / median(of_floor.seconds):.2f}"
        yield f"| {row.num_views} | {row.way} | {seconds:.3f} | {spread} | {ratio} | {share} | {memory} |"
    yield ""
    for way in dict.fromkeys(row.way for row in rows):
        start, slope = growth(rows, way)
        yield f"{way}: {start:.3f} s and {slope:.4f} s a view"


def chart(rows: Sequence[Row]) -> str:
    """Seconds of each way by the number of views, from the least to the most, as SVG."""
    series = [
        Series(
            way,
            [
                (row.num_views, Interval(median(row.seconds), min(row.seconds), max(row.seconds)))
                for row in rows
                if row.way == way
            ],
        )
        for way in dict.fromkeys(row.way for row in rows)
    ]
    return line_chart(series, "seconds of a call", {row.num_views: str(row.num_views) for row in rows})


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.out is not None:
        args.out.mkdir(parents=True)  # before anything is measured
    pipe = open_pipeline(args)
    device = pipe.unet.device.type
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    what = "the paper's size" if args.paper_size else args.checkpoint
    at_a_time = args.view_batch_size or "all"
    lines = [f"{name}; {what}; {args.dtype}; {args.num_inference_steps} steps; views at a time: {at_a_time}"]
    print(*lines, flush=True)
    peak, rows = machine_peak(getattr(torch, args.dtype), device), []
    for num_views in args.views:
        rows += measure(pipe, num_views, args)
        print(f"{num_views} views measured", file=sys.stderr, flush=True)
    lines += report(rows, peak)
    print(*lines[1:], sep="\n")
    if args.out is not None:
        (args.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (args.out / "chart.svg").write_text(chart(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
