"""Views of thousands of photos, unattended, on any number of GPUs and machines.

    accelerate launch examples/batch_views.py PHOTOS --out VIEWS

PHOTOS is a folder of photos, or of .tar files in the layout of webdataset or .parquet files, or the id of a data set on
the Hub, which is streamed. VIEWS gets shards in the layout of webdataset: pictures, cameras and evidence of each photo.
After a stop, the same command goes on. Photos that cannot be done are listed in VIEWS/failed.jsonl; then the exit
status is 1.
"""

import argparse
import sys
from collections.abc import Sequence

import diffusers
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from nvb_diffusers import DEFAULT_CHECKPOINT
from nvb_diffusers.batch import BatchSettings, finish, make_views, open_photos
from nvb_diffusers.files import one_line
from nvb_diffusers.loading import load_pipeline, weights_fingerprint
from nvb_diffusers.option_types import LARGEST_SEED, OneLineParser, a_path, filled_text, number, whole_number
from nvb_diffusers.provenance import MARKS
from nvb_diffusers.stopping import Stopped, stop_by_signals


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, settings = parser.add_argument, BatchSettings()
    add("photos", type=filled_text)
    add("--out", type=a_path, required=True, help="folder of the shards")
    add("--split", type=filled_text, default="train", help="of a data set on the Hub")
    add("--column", type=filled_text, help="of the images in a data set; default: the first one")
    add("--checkpoint", type=filled_text, default=DEFAULT_CHECKPOINT, help="folder or Hub id")
    add("--num_views", type=whole_number(1, 1000), default=settings.num_views, help="cameras")
    add("--yaw", type=number(low=-180, high=180), nargs=2, default=settings.yaw, metavar=("FROM", "TO"))
    add("--pitch", type=number(low=-90, high=90), default=settings.pitch)
    add("--background", choices=("turn", "photo"), default=settings.background)
    add("--aligned", action="store_true", help="the photos are square crops, framed as in training")
    add("--num_inference_steps", type=whole_number(1, 1000), help="default: the checkpoint's own")
    add("--guidance_scale", type=number(low=0, high=1000), help="default: the checkpoint's own")
    add("--seed", type=whole_number(0, LARGEST_SEED), default=settings.seed)
    add("--mark", choices=(*MARKS, "none"), default=settings.mark)
    add("--batch_size", type=whole_number(1), default=settings.batch_size, help="photos in one call")
    add("--shard_size", type=whole_number(1), default=settings.shard_size, help="photos of one shard")
    return parser.parse_args(argv)


def make(args: argparse.Namespace) -> int:
    """Make this process's shards; the first process tells what failed of all."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    photos = open_photos(args.photos, args.split, args.column)
    settings = BatchSettings(
        num_views=args.num_views,
        yaw=(args.yaw[0], args.yaw[1]),
        pitch=args.pitch,
        aligned=args.aligned,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
        background=args.background,
        mark=None if args.mark == "none" else args.mark,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
    )
    pipe = load_pipeline(args.checkpoint, str(state.device), needs_views=True)
    pipe.set_progress_bar_config(disable=True)
    made_of = {"split": args.split, "column": args.column, "checkpoint": args.checkpoint}
    made_of["weights"] = weights_fingerprint(args.checkpoint)
    make_views(pipe, photos, args.out, settings, made_of, state.process_index, state.num_processes)
    state.wait_for_everyone()
    return finish(args.out) if state.is_main_process else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status is 0; 1 where photos failed; 2 after an error, which is one line."""
    args = parse_args(argv)
    diffusers.utils.logging.disable_progress_bar()  # of loading
    try:
        with stop_by_signals():
            return make(args)
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        return stopped.status


if __name__ == "__main__":
    sys.exit(main())
