"""`nvb-face verify`: which marks of synthetic pictures files carry."""

import argparse
from contextlib import closing
from pathlib import Path

from imageio_ffmpeg import read_frames
from PIL import Image

from nvb_diffusers.cli.options import Commands, add_command
from nvb_diffusers.cli.photos import count_frames, for_each
from nvb_diffusers.credentials import read_signature
from nvb_diffusers.data.images import load_photo
from nvb_diffusers.face_crop import MAX_PHOTO_PIXELS
from nvb_diffusers.files import as_line
from nvb_diffusers.option_types import a_path
from nvb_diffusers.provenance import find_marks, says_synthetic

VIDEOS = (".mp4", ".mov", ".webm", ".mkv")


def add_commands(commands: Commands) -> None:
    """Add `verify`."""
    purpose = "Which marks pictures and videos carry; exit status 1 where one has none or was changed since signed."
    verify = add_command(commands, "verify", run_verify, purpose)
    verify.add_argument("files", type=a_path, nargs="+", help="pictures, .gif or .mp4, of which the first frame counts")


def run_verify(args: argparse.Namespace) -> int:
    """`nvb-face verify`."""
    unmarked = 0

    def look(index: int) -> None:
        nonlocal unmarked
        file = args.files[index]
        found = find_marks(_first_picture(file))._replace(metadata=says_synthetic(file))
        signature = read_signature(file)
        changed = signature is not None and not signature.is_intact
        unmarked += changed or not found.names
        values = f"visible {found.visible:.2f}, invisible {found.invisible:.1f}"
        signed = "" if signature is None else f"; {'CHANGED since it was ' * changed}signed by {signature.signer}"
        print(f"{as_line(file)}: {', '.join(found.names) or 'no mark'} ({values}){signed}")

    if failed := for_each(args.files, look):
        raise ValueError(f"{len(failed)} of {len(args.files)} files could not be read")
    return int(unmarked > 0)


def _first_picture(file: Path) -> Image.Image:
    """A picture, or the first frame of a video."""
    if file.suffix.lower() not in VIDEOS or not file.is_file():
        return load_photo(file, MAX_PHOTO_PIXELS)
    if not count_frames(file):
        raise ValueError(f"cannot read a frame of '{file}'")
    with closing(read_frames(str(file))) as frames:
        size = next(frames)["size"]  # before the frames, what is known of them
        return Image.frombytes("RGB", size, next(frames))
