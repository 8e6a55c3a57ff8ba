"""Really run the paper's size, without a GPU: a step of both trainings, stop and resume, the adapter, a call.

    python -m benchmarks.real_size --work runs/real-size

The base has Stable Diffusion 2.1's shapes and random weights, the pictures are colored noise: what is shown is that all
of it runs and loads, in how much memory. Each stage is a process of its own, whose peak is measured; it takes about an
hour on two cores and 25 GB of disk. `--size tiny` runs the same stages in a minute.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image

from benchmarks.paper_size import SD_VAE_CONFIG
from nvb_diffusers.camera import camera_from_angles
from nvb_diffusers.data.records import write_records
from nvb_diffusers.models.unet import SD21_UNET_CONFIG
from nvb_diffusers.option_types import OneLineParser, a_path

ROOT = Path(__file__).parents[1]
TINY_UNET = {"block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1, "cross_attention_dim": 32,
             "attention_head_dim": 8, "norm_num_groups": 8, "sample_size": 16}  # fmt: skip
TINY_VAE = {**SD_VAE_CONFIG, "block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
TINY_ENCODER = {"patch_size": 4, "block_out_channels": (8, 16, 32), "layers_per_block": 1, "out_channels": 64,
                "attention_resolutions": (8,), "norm_num_groups": 4, "time_embed_channels": 16}  # fmt: skip
TINY_VIEWS = {"in_channels": 64, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "time_embed_channels": 16}

RELOAD = """
import sys, torch
from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.models.unet import convert_unet, fuse_adapter, load_adapter
from nvb_diffusers.training.backbone import load_unet
base, step1 = sys.argv[1:]
trained = NVBFacePipeline.from_pretrained(step1 + "/pipeline").unet
unet = convert_unet(load_unet(base, None), trained.config.cross_attention_dim)
load_adapter(unet, step1 + "/adapter")
for (name, value), expected in zip(fuse_adapter(unet).named_parameters(), trained.parameters(), strict=True):
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4, msg=name)
"""
CALL = """
import sys, torch
from nvb_diffusers import NVBFacePipeline
pipe = NVBFacePipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
pipe.vae.enable_tiling()
out = pipe(sys.argv[2], cameras=[(-20, 0), (20, 0)], num_inference_steps=2, view_batch_size=1, output_type="pt")
side = pipe.sample_size
assert out.images.shape == (2, 3, side, side) and out.images.isfinite().all(), out.images.shape
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=a_path, required=True, help="a new folder")
    parser.add_argument("--size", choices=("paper", "tiny"), default="paper")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="bf16")
    return parser.parse_args(argv)


def write_base(folder: Path, is_tiny: bool) -> None:
    """A base model in Stable Diffusion's layout, of random weights in half precision."""
    unet = UNet2DConditionModel(**(TINY_UNET if is_tiny else SD21_UNET_CONFIG))
    vae = AutoencoderKL(**(TINY_VAE if is_tiny else SD_VAE_CONFIG), latent_channels=4)
    unet.half().save_pretrained(folder / "unet")
    vae.half().save_pretrained(folder / "vae")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )


def write_data(folder: Path, side: int) -> Path:
    """Two identities of two views each; the path of one picture."""
    random, records = np.random.default_rng(0), []
    for identity, split in enumerate(("train", "validation")):
        for view in range(2):
            name = f"{identity:06d}/{view:02d}.png"
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            noise.resize((side, side), Image.Resampling.BICUBIC).save(path)
            camera = camera_from_angles(30.0 * view - 15, 0.0).tolist()
            records.append({"file_name": name, "identity": identity, "view": view, "camera": camera, "split": split})
    write_records(folder, records)
    return path


def stage(name: str, words: Sequence[object]) -> None:
    """Run a process to its end; print a row with its time and the most memory it held."""
    start = time.monotonic()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, *map(str, words)], env=env, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name}: exit status {process.returncode}")
    scale = 1e9 if sys.platform == "darwin" else 1e6  # bytes or kilobytes
    print(f"| {name} | {(time.monotonic() - start) / 60:.1f} | {usage.ru_maxrss / scale:.1f} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, a row after each stage."""
    args = parse_args(argv)
    is_tiny, work = args.size == "tiny", args.work
    side = 128 if is_tiny else 512
    write_base(work / "base", is_tiny)
    photo = write_data(work / "data", side)
    encoder, views = work / "encoder.json", work / "view_transformer.json"
    encoder.write_text(json.dumps({**(TINY_ENCODER if is_tiny else {}), "sample_size": side}))
    views.write_text(json.dumps(TINY_VIEWS if is_tiny else {}))
    common = ["--data_dir", work / "data", "--resolution", side, "--train_batch_size", 1, "--gradient_checkpointing",
              "--mixed_precision", args.mixed_precision, "--num_inference_steps", 1, "--num_validation_samples", 1,
              "--dataloader_num_workers", 0, "--report_to", "none", "--degradation", "mild",
              "--validation_steps", 0]  # fmt: skip
    one = ["training/train_restoration.py", "--pretrained_model_name_or_path", work / "base",
           "--encoder_config", encoder, "--output_dir", work / "step1", *common]  # fmt: skip
    two = ["training/train_novel_view.py", "--pretrained_model_name_or_path", work / "step1/pipeline",
           "--view_transformer_config", views, "--num_target_views", 1,
           "--output_dir", work / "step2", *common]  # fmt: skip
    print("| stage | minutes | most memory, GB |\n|---|---|---|", flush=True)
    stage("step 1: an optimizer step", [*one, "--max_train_steps", 1])
    stage("step 1: resumed, another step", [*one, "--max_train_steps", 2, "--resume_from_checkpoint", "latest"])
    stage("its adapter on the base again: the same UNet", ["-c", RELOAD, work / "base", work / "step1"])
    stage("step 2: an optimizer step", [*two, "--max_train_steps", 1])
    stage("step 2: resumed, another step", [*two, "--max_train_steps", 2, "--resume_from_checkpoint", "latest"])
    stage("a call: 2 steps, 2 views, decoded in tiles", ["-c", CALL, work / "step2/pipeline", photo])


if __name__ == "__main__":
    main()
