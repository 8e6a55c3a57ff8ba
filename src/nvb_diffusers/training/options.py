"""The options that training scripts share, under the same names, with the same meaning in all of them."""

import argparse
from typing import Any

from nvb_diffusers.data.datasets import SampleTransform
from nvb_diffusers.data.degradation import PRESETS
from nvb_diffusers.option_types import LARGEST_SEED, filled_text, number, whole_number

# Those of diffusers that need no options of their own.
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


def add_run_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add the options that every training script has.

    Args:
        parser: of the script, which adds its own.
        defaults: values of these options that this script replaces.
    """
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", type=filled_text, required=True, help="a set in the project's format")
    add("--streaming", action="store_true", help="data_dir, or a URL, holds shards of prepare_shards.py")
    add("--output_dir", type=filled_text, required=True)
    add("--resolution", type=whole_number(16, 4096, multiple_of=8), default=512)
    add("--dataloader_num_workers", type=whole_number(0, 1024), default=2)

    add = parser.add_argument_group("optimization").add_argument
    add("--seed", type=whole_number(0, LARGEST_SEED), default=0)
    add("--train_batch_size", type=whole_number(1), default=8, help="per process")
    add("--gradient_accumulation_steps", type=whole_number(1), default=1)
    add("--max_train_steps", type=whole_number(1), default=100_000)
    add("--max_train_seconds", type=number(above=0), help="end cleanly, with a checkpoint, after this time")
    add("--learning_rate", type=number(low=0), default=1e-4)
    add("--lr_scheduler", choices=LR_SCHEDULERS, default="constant_with_warmup")
    add("--lr_warmup_steps", type=whole_number(0), default=500)
    add("--adam_weight_decay", type=number(low=0), default=1e-2)
    add("--use_8bit_adam", action="store_true", help="needs bitsandbytes")
    add("--use_muon", action="store_true", help="Muon for the matrices of attention and feed-forward")
    add("--max_grad_norm", type=number(low=0), default=1.0, help="longer gradients are shortened; 0 for none")
    add("--ema_decay", type=number(low=0, below=1), default=0.9999, help="of the averaged weights; 0 for no average")
    add("--mixed_precision", choices=("no", "fp16", "bf16"))

    add = parser.add_argument_group("checkpoints, validation, sharing").add_argument
    add("--checkpointing_steps", type=whole_number(0), default=1000, help="0 for the end alone")
    add("--checkpoints_total_limit", type=whole_number(0), default=2, help="the newest are kept; 0 to keep all")
    add("--resume_from_checkpoint", type=filled_text, help="a checkpoint folder, or latest")
    add("--validation_steps", type=whole_number(0), default=1000, help="0 for the end alone")
    add("--num_validation_samples", type=whole_number(1), default=64)
    add("--logging_steps", type=whole_number(0), default=10, help="0 for never")
    add("--report_to", type=filled_text, default="tensorboard", help="a tracker of accelerate, or none")
    add("--push_to_hub", metavar="REPO_ID")
    parser.set_defaults(**defaults)


def add_degradation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of scripts that learn from degraded images, for `make_transform`."""
    add = parser.add_argument_group("degraded samples").add_argument
    add("--degradation", nargs="+", choices=sorted(PRESETS), default=["real_esrgan"])
    add(
        "--crop_jitter", type=number(low=0, below=1), default=0.0, help="largest share of the side that crops leave out"
    )


def make_transform(args: argparse.Namespace, split: str) -> SampleTransform:
    """What the options of a script do to the samples of a split: those held out are whole and not mirrored."""
    if split != "train":
        return SampleTransform(args.resolution, args.degradation, seed=args.seed, flip=False)
    return SampleTransform(args.resolution, args.degradation, seed=args.seed, crop_jitter=args.crop_jitter)
