"""`nvb-face degrade`: photos as bad as those that the models learn to read."""

import argparse
import re
from pathlib import Path

import numpy as np

from nvb_diffusers.cli.options import Commands, add_command
from nvb_diffusers.cli.photos import check_folder, for_each, name_outputs, tell_failures
from nvb_diffusers.data.degradation import PRESETS, apply, draw_degradation
from nvb_diffusers.data.images import list_photos, load_photo
from nvb_diffusers.face_crop import MAX_PHOTO_PIXELS
from nvb_diffusers.files import as_line, filled_folder
from nvb_diffusers.option_types import LARGEST_SEED, a_path, whole_number


def add_commands(commands: Commands) -> None:
    """Add `degrade`."""
    purpose = "A degraded copy of a photo, and the degradation as JSON beside it."
    degrade = add_command(commands, "degrade", run_degrade, purpose)
    degrade.add_argument("photo", type=a_path, help="a photo, or a folder of them")
    degrade.add_argument("--preset", default="severe", choices=PRESETS, help="how much (default %(default)s)")
    degrade.add_argument(
        "--seed", type=whole_number(0, LARGEST_SEED), default=0, help="which degradation (default %(default)s)"
    )
    degrade.add_argument("--out", type=a_path, help="folder to write to (default: where the photo is)")


def run_degrade(args: argparse.Namespace) -> int:
    """`nvb-face degrade`."""
    if args.out is not None:
        check_folder(args.out)
    photos = list_photos(args.photo, is_result=_is_result)
    folder = args.out or photos[0].parent
    files = name_outputs(photos, lambda name: folder / f"{name}_{args.preset}_{args.seed}.png")
    for file in files:
        if file.exists() and not _is_result(file):
            raise ValueError(f"'{file}' exists and is no degraded copy: choose another --out")
    params = draw_degradation(np.random.default_rng(args.seed), args.preset)

    def make(index: int) -> None:
        image = apply(load_photo(photos[index], MAX_PHOTO_PIXELS), params)
        with filled_folder(folder) as stage:
            image.save(stage / files[index].name)
            (stage / files[index].name).with_suffix(".json").write_text(params.to_json() + "\n", encoding="utf-8")
        print(as_line(files[index]))

    return tell_failures(for_each(photos, make), len(photos), folder)


def _is_result(file: Path) -> bool:
    """Whether a file is a degraded copy that an earlier call made, with its JSON beside it."""
    name = re.fullmatch(rf".+_({'|'.join(PRESETS)})_\d+\.png", file.name)
    return name is not None and file.with_suffix(".json").is_file()
