"""Photos read by one rule at every door, and images as tensors and back, with their PSNR."""

import importlib
import importlib.util
import math
import re
import stat
import struct
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import ExifTags, Image, ImageCms, ImageOps

JPEG_SUFFIXES = {".jfif", ".jif", ".jpe", ".jpeg", ".jpg"}
HEIF_SUFFIXES = {".heic", ".heif"}  # phones' own format, where its reader is installed
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
OTHER_SUFFIXES = {".avif", ".bmp", ".gif", ".png", ".tif", ".tiff", ".webp"}
PHOTO_SUFFIXES = JPEG_SUFFIXES | OTHER_SUFFIXES | (HEIF_SUFFIXES if HAS_HEIF else set())
ALPHA_BACKGROUND = (128, 128, 128)
SRGB = ImageCms.createProfile("sRGB")
DAMAGES = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow reports damaged files as

if HAS_HEIF:
    importlib.import_module("pillow_heif").register_heif_opener()

_opening = threading.Lock()  # filters of warnings belong to the whole process

Photo = str | Path | BinaryIO | Image.Image


def load_photo(photo: Photo, max_pixels: int | None = None, name: str | None = None) -> Image.Image:
    """Read a photo of any kind as an upright 8-bit image in sRGB, without its metadata.

    The EXIF rotation is applied, colors with a profile of their own are converted, alpha is laid over gray, 16-bit gray
    is scaled, and an animation gives its first frame.

    Args:
        photo: a path, an open file or an image, which stays as it is.
        max_pixels: a larger photo is shrunk to about as many; a JPEG then needs little memory.
        name: what errors call it; a path is called by itself.

    Raises:
        ValueError: there is no such file, it cannot be decoded, or it is so large that it may be an attack.
    """
    name = name or (f"'{photo}'" if isinstance(photo, str | Path) else "the given image")
    if not isinstance(photo, str | Path | Image.Image) and not hasattr(photo, "read"):
        raise ValueError(f"cannot read image {photo!r}: expected a path, an open file or an image")
    with _reported(name), photo.copy() if isinstance(photo, Image.Image) else _open(photo) as image:
        return _read(image, max_pixels)


def photo_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of the photo that `load_photo` gives, without decoding it."""
    with _reported(f"'{path}'"), _open(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return image.size[::-1] if turned else image.size


def is_photo(path: Path) -> bool:
    """Whether a file of a folder is a photo by its name; what is hidden beside photos, such as `._a.jpg`, is not."""
    return path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")


def list_photos(path: Path, is_result: Callable[[Path], bool] = lambda _: False) -> list[Path]:
    """The photo itself, or those of a folder by name, with one line on standard error about files that are no photos.

    Args:
        path: of the photo, or of the folder.
        is_result: whether a file of the folder is an earlier result of the caller, which is not one of the photos.
    """
    if not path.is_dir():
        if not path.exists():
            raise ValueError(f"there is no photo '{path}'")
        return [path]
    files = sorted(path.iterdir())
    photos = [file for file in files if is_photo(file) and not is_result(file)]
    note = left_out_note(files)
    if not photos:
        endings = ", ".join(sorted(PHOTO_SUFFIXES))
        raise ValueError(f"the folder '{path}' holds no photo ({endings})" + (f"; {note}" if note else ""))
    if note:
        print(f"note: '{path}': {note}", file=sys.stderr)
    return photos


def left_out_note(files: Iterable[Path], is_taken: Callable[[Path], bool] = is_photo) -> str:
    """Which files of a folder are not taken for their endings, in words; empty where there are none."""
    others = (file for file in files if not is_taken(file) and not file.name.startswith(".") and file.is_file())
    endings = Counter(file.suffix.lower() or "no ending" for file in others if not is_system_file(file))
    endings.pop(".json", None)  # what our own commands write beside photos
    if not endings:
        return ""
    counts = ", ".join(f"{count} with {ending}" for ending, count in sorted(endings.items()))
    hint = "; pip install pillow-heif for .heic" if HEIF_SUFFIXES & endings.keys() else ""
    return f"left out for their endings: {counts}{hint}"


def is_system_file(path: Path) -> bool:
    """Whether a file was left in a folder by a system that showed it, so that the folder still counts as empty."""
    return path.name in (".DS_Store", "Thumbs.db", "desktop.ini") or path.name.startswith("._")


def resized(image: Image.Image, resolution: int, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """Pixels (S, S, 3) of an image, or of its `box` (left, top, right, bottom); Lanczos where sizes differ."""
    width, height = image.size
    if (width, height) == (resolution, resolution) and box in (None, (0, 0, width, height)):
        return np.asarray(image)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))


def to_pixel_values(images: Sequence[np.ndarray | Image.Image]) -> torch.Tensor:
    """(N, 3, S, S) in [-1, 1] of uint8 images (S, S, 3)."""
    pixels = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_images(pixel_values: torch.Tensor) -> list[Image.Image]:
    """PIL images of (N, 3, S, S) in [-1, 1]; values beyond are clipped."""
    scaled = ((pixel_values.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(image) for image in scaled.permute(0, 2, 3, 1).cpu().numpy()]


def to_grid(*rows: torch.Tensor) -> Image.Image:
    """One image of rows of equally many images (N, 3, S, S) in [-1, 1]."""
    return make_image_grid(to_images(torch.cat(rows)), rows=len(rows), cols=len(rows[0]))


def psnr(pixel_values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each image (N,), of (N, 3, S, S) in [-1, 1]; values beyond are clipped."""
    error = (pixel_values.float().clamp(-1, 1) - target.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=1e-12))


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Report an image that cannot be read in one line that names it."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"cannot read image {name}: there is no such file") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"cannot read image {name}: it is too large ({error})") from None
    except DAMAGES as error:
        reason = re.sub(r" ?<\S+ object at 0x\w+>", "", " ".join(str(error).split()))  # another one in each run
        raise ValueError(f"cannot read image {name}: Pillow cannot decode it ({reason})") from None


def _open(photo: str | Path | BinaryIO) -> Image.Image:
    if isinstance(photo, str | Path):
        mode = Path(photo).stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe would be waited for, a device may have no end
            raise ValueError(f"it is a {'folder' if stat.S_ISDIR(mode) else 'pipe or a device'}, and no file")
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels are an error
        return Image.open(photo)


def _read(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """An upright 8-bit sRGB version of an image of any mode; `image` itself may change."""
    shades = image.mode not in ("1", "P", "PA") and not image.mode.startswith(("I", "F"))
    if shades:  # before anything is decoded
        _shrink(image, max_pixels)
    ImageOps.exif_transpose(image, in_place=True)
    if not shades:
        image = _with_shades(image)
        _shrink(image, max_pixels)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha, image = image.getchannel("A"), image.convert("RGB")
    image = _to_srgb(image)
    image.info = {}
    if alpha is None:
        return image
    flat = Image.new("RGB", image.size, ALPHA_BACKGROUND)
    flat.paste(image, mask=alpha)
    return flat


def _shrink(image: Image.Image, max_pixels: int | None) -> None:
    """Reduce an image in place to about `max_pixels`; a JPEG is decoded at reduced size."""
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        scale = math.sqrt(max_pixels / (width * height))
        image.thumbnail((max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.LANCZOS)


def _with_shades(image: Image.Image) -> Image.Image:
    """An image of two values, of a palette or of 16-bit gray in a mode whose values can be averaged."""
    if image.mode in ("1", "P", "PA"):
        return image.convert("L" if image.mode == "1" else "RGBA" if image.has_transparency_data else "RGB")
    gray = np.asarray(image)
    if gray.dtype.kind == "f" or gray.max() > 65535 or gray.min() < 0:
        raise ValueError(f"its pixels of mode {image.mode} are no 16-bit integers")
    scaled = Image.fromarray((gray // 256).astype(np.uint8))
    scaled.info = image.info
    return scaled


def _to_srgb(image: Image.Image) -> Image.Image:
    """An image without alpha in sRGB, by its embedded profile where that is whole and fits."""
    embedded = image.info.get("icc_profile")
    if embedded:
        try:
            profile = ImageCms.ImageCmsProfile(BytesIO(embedded))
            space, description = profile.profile.xcolor_space.strip(), profile.profile.profile_description or ""
            if space == "RGB" and image.mode != "CMYK":
                image = image.convert("RGB")
            fits = image.mode == {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space)
            if fits and not description.startswith("sRGB"):
                converted = ImageCms.profileToProfile(image, profile, SRGB, outputMode="RGB")
                image = converted if converted is not None else image
        except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
            pass  # browsers, too, show a photo with a broken profile as if it had none
    return image.convert("RGB")
