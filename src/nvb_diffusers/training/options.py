"""The options that training scripts share, under the same names, with the same meaning in all of them.

The names are those of diffusers' own scripts, where these have the same option.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from nvb_diffusers.data.datasets import SampleTransform
from nvb_diffusers.data.degradation import PRESETS
from nvb_diffusers.data.images import load_photo, resized, to_pixel_values
from nvb_diffusers.files import read_json
from nvb_diffusers.option_types import LARGEST_SEED, OneLineParser, filled_text, number, whole_number

# Those of diffusers that need no options of their own.
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
SECRETS = {"hub_token"}  # which no file and no tracker gets to see
NO_OPTIONS = {"data"}  # what a run's options.json holds beside its options


def add_run_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add the options that every training script has.

    Args:
        parser: of the script, which adds its own.
        defaults: values of these options that this script replaces.
    """
    parser.add_argument("--config_file", type=filled_text, help="JSON of options, as a run's options.json; others win")
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", type=filled_text, required=True, help="a set in the project's format")
    add("--streaming", action="store_true", help="data_dir, or a URL, holds shards of prepare_shards.py")
    add("--output_dir", type=filled_text, required=True)
    add("--resolution", type=whole_number(16, 4096, multiple_of=8), default=512)
    add("--dataloader_num_workers", type=whole_number(0, 1024), default=2)
    add("--no_flip", action="store_true", help="mirror no image")
    add("--max_train_samples", type=whole_number(1), help="train on so many of the set alone, the first ones")

    add = parser.add_argument_group("optimization").add_argument
    add("--seed", type=whole_number(0, LARGEST_SEED), default=0)
    add("--train_batch_size", type=whole_number(1), default=8, help="per process")
    add("--gradient_accumulation_steps", type=whole_number(1), default=1)
    add("--max_train_steps", type=whole_number(1), default=100_000)
    add("--num_train_epochs", type=whole_number(1), help="passes over the set, instead of --max_train_steps")
    add("--max_train_seconds", type=number(above=0), help="end cleanly, with a checkpoint, after this time")
    add("--learning_rate", type=number(low=0), default=1e-4)
    add("--scale_lr", action="store_true", help="multiply the rate by processes, batch and accumulation")
    add("--lr_scheduler", choices=LR_SCHEDULERS, default="constant_with_warmup")
    add("--lr_warmup_steps", type=whole_number(0), default=500)
    add("--lr_num_cycles", type=whole_number(1), default=1, help="of cosine_with_restarts")
    add("--lr_power", type=number(above=0), default=1.0, help="of polynomial")
    add("--adam_beta1", type=number(low=0, below=1), default=0.9)
    add("--adam_beta2", type=number(low=0, below=1), default=0.999)
    add("--adam_epsilon", type=number(above=0), default=1e-8)
    add("--adam_weight_decay", type=number(low=0), default=1e-2)
    add("--use_8bit_adam", action="store_true", help="needs bitsandbytes")
    add("--use_muon", action="store_true", help="Muon for the matrices of attention and feed-forward")
    add("--max_grad_norm", type=number(low=0), default=1.0, help="longer gradients are shortened; 0 for none")
    add("--ema_decay", type=number(low=0, below=1), default=0.9999, help="of the averaged weights; 0 for no average")
    add("--mixed_precision", choices=("no", "fp16", "bf16"))
    add("--allow_tf32", action="store_true", help="faster products on Ampere GPUs and later, with fewer bits")

    add = parser.add_argument_group("checkpoints, validation, sharing").add_argument
    add("--checkpointing_steps", type=whole_number(0), default=1000, help="0 for the end alone")
    add("--checkpoints_total_limit", type=whole_number(0), default=0, help="the newest are kept; 0 to keep all")
    add("--resume_from_checkpoint", type=filled_text, help="checkpoint-N of this run, another folder, or latest")
    add("--validation_steps", type=whole_number(0), default=1000, help="0 for the end alone")
    add("--num_validation_samples", type=whole_number(1), default=64)
    add("--logging_steps", type=whole_number(0), default=10, help="0 for never")
    add("--report_to", type=filled_text, default="tensorboard", help="a tracker of accelerate, or none")
    add("--logging_dir", type=filled_text, default="logs", help="of the tracker, inside of output_dir")
    add("--tracker_project_name", type=filled_text, help="default: the script's own")
    add("--push_to_hub", action="store_true")
    add("--hub_model_id", help="the repository to push to; default: the name of output_dir")
    add("--hub_token", help="default: the one that is stored here")
    parser.set_defaults(**defaults)


def parse_run_args(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of a command line (the process's for None), after those of its `--config_file`, which they replace.

    The file has options by name: true for one without a value, lists or texts for several values, and null, false
    or nothing for what is left at its default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    before = OneLineParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    before.add_argument("--config_file")
    try:
        config_file = before.parse_known_args(words)[0].config_file
        return parser.parse_args([*(_words_of_file(parser, config_file) if config_file else []), *words])
    except ValueError as error:
        parser.error(f"--config_file: {error}")


def _words_of_file(parser: argparse.ArgumentParser, config_file: str) -> list[str]:
    """A file's options as words of a command line.

    Raises:
        ValueError: it holds no JSON object, or an option that there is not.
    """
    config = read_json(config_file)
    if not isinstance(config, dict):
        raise ValueError(f"{config_file} holds no JSON object with options")
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    words: list[str] = []
    for name, value in config.items():
        if name in NO_OPTIONS or value is None or value is False:
            continue
        if name not in actions or name in ("help", "config_file"):
            raise ValueError(f"{config_file} has {name!r}, which is no option here")
        action = actions[name]
        if action.nargs == 0:
            if value is not True:
                raise ValueError(f"{config_file} has {name!r}: {value!r}, but true or false is accepted")
            words += action.option_strings[:1]
        elif action.nargs is not None:
            several = value if isinstance(value, list) else str(value).split()
            words += [*action.option_strings[:1], *map(str, several)]
        else:
            words.append(f"{action.option_strings[0]}={value}")
    return words


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which files of `--pretrained_model_name_or_path` are meant, for `loading_options`."""
    add = parser.add_argument_group("the base").add_argument
    add("--revision", type=filled_text, help="branch, tag or commit")
    add("--variant", type=filled_text, help="of the weights' files, for instance fp16")
    add("--cache_dir", type=filled_text, help="where downloads go; default: the Hub's own")


def loading_options(args: argparse.Namespace) -> dict[str, str]:
    """Those of the options that are given, as `from_pretrained` takes them."""
    given = {name: getattr(args, name) for name in ("revision", "variant", "cache_dir")}
    return {name: value for name, value in given.items() if value is not None}


def add_diffusion_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of scripts in which a UNet learns to denoise."""
    add = parser.add_argument_group("diffusion").add_argument
    add("--noise_offset", type=number(low=0), default=0.0, help="of each channel of the noise as a whole")
    add("--snr_gamma", type=number(above=0), help="Min-SNR weighting")
    add("--latents_cache", help="a .npy file: encode all target latents once")
    add("--gradient_checkpointing", action="store_true")
    add("--num_inference_steps", type=whole_number(1, 1000), default=20, help="of validation images")
    add("--validation_images", type=filled_text, nargs="+", help="aligned crops of your own, which are shown, too")


def check_latents_cache(args: argparse.Namespace) -> None:
    """Raise a ValueError where a cache of latents does not go with other options."""
    if args.latents_cache and (args.crop_jitter or args.streaming):
        raise ValueError("--latents_cache holds all whole images: not with --crop_jitter, nor with --streaming")


def read_validation_images(args: argparse.Namespace) -> torch.Tensor | None:
    """The user's own images (N, 3, S, S) in [-1, 1], at the run's resolution; None where none were given.

    Raises:
        ValueError: one cannot be read, or is not square.
    """
    if not args.validation_images:
        return None
    images = [load_photo(path) for path in args.validation_images]
    for path, image in zip(args.validation_images, images, strict=True):
        if image.width != image.height:
            raise ValueError(f"--validation_images {path}: it is {image.width}x{image.height} px, but a crop is square")
    return to_pixel_values([resized(image, args.resolution) for image in images])


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
    flip = not args.no_flip
    return SampleTransform(args.resolution, args.degradation, seed=args.seed, flip=flip, crop_jitter=args.crop_jitter)
