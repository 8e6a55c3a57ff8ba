"""The options that training scripts share, under the same names, with the same meaning in all of them."""

import argparse
from typing import Any

from nvb_diffusers.data.datasets import SampleTransform
from nvb_diffusers.data.degradation import PRESETS


def add_run_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add the options that every training script has.

    Args:
        parser: of the script, which adds its own.
        defaults: values of these options that this script replaces.
    """
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", required=True, help="a set in the project's format")
    data.add_argument("--streaming", action="store_true", help="data_dir, or a URL, holds shards of prepare_shards.py")
    data.add_argument("--output_dir", required=True)
    data.add_argument("--resolution", type=int, default=512)
    data.add_argument("--dataloader_num_workers", type=int, default=2)

    optimization = parser.add_argument_group("optimization")
    add = optimization.add_argument
    add("--seed", type=int, default=0)
    add("--train_batch_size", type=int, default=8, help="per process")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--max_train_steps", type=int, default=100_000)
    add("--max_train_seconds", type=float, help="end cleanly, with a checkpoint, after this time")
    add("--learning_rate", type=float, default=1e-4)
    add("--lr_scheduler", default="constant_with_warmup")
    add("--lr_warmup_steps", type=int, default=500)
    add("--adam_weight_decay", type=float, default=1e-2)
    add("--use_8bit_adam", action="store_true", help="needs bitsandbytes")
    add("--use_muon", action="store_true", help="Muon for the matrices of attention and feed-forward")
    add("--max_grad_norm", type=float, default=1.0)
    add("--ema_decay", type=float, default=0.9999)
    add("--mixed_precision", choices=("no", "fp16", "bf16"))

    output = parser.add_argument_group("checkpoints, validation, sharing")
    add = output.add_argument
    add("--checkpointing_steps", type=int, default=1000)
    add("--checkpoints_total_limit", type=int, default=2)
    add("--resume_from_checkpoint", help="a checkpoint folder, or latest")
    add("--validation_steps", type=int, default=1000)
    add("--num_validation_samples", type=int, default=64)
    add("--logging_steps", type=int, default=10)
    add("--report_to", default="tensorboard", help="a tracker of accelerate, or none")
    add("--push_to_hub", metavar="REPO_ID")
    parser.set_defaults(**defaults)


def add_degradation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of scripts that learn from degraded images, for `make_transform`."""
    add = parser.add_argument_group("degraded samples").add_argument
    add("--degradation", nargs="+", choices=sorted(PRESETS), default=["real_esrgan"])
    add("--crop_jitter", type=float, default=0.0, help="largest share of the side that crops leave out")


def make_transform(args: argparse.Namespace, split: str) -> SampleTransform:
    """What the options of a script do to the samples of a split: those held out are whole and not mirrored."""
    if split != "train":
        return SampleTransform(args.resolution, args.degradation, seed=args.seed, flip=False)
    return SampleTransform(args.resolution, args.degradation, seed=args.seed, crop_jitter=args.crop_jitter)
