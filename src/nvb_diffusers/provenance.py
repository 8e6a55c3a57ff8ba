"""Marks that say of a picture that it is synthetic: one that people see, one that programs find, and metadata.

A generated view of a real person must say what it is (the paper's appendix F). The visible mark is a small plate within
the middle 80 % of the picture. The invisible one is a pattern in the brightness, drawn from a text and repeated every
`TILE` pixels: a spread-spectrum watermark, found by correlation at any shift, after JPEG, cropping and halving.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

Mark = Literal["visible+invisible", "invisible"]
MARKS: tuple[Mark, ...] = ("visible+invisible", "invisible")

PAYLOAD = "synthetic, nvb-face"  # the text that the invisible pattern is drawn from
TILE = 256  # px after which the pattern repeats
BAND = (1 / 24, 1 / 5)  # cycles a pixel: below, a picture's own shapes; above, what halving and JPEG take away
STRENGTH, MOST_ACTIVITY = 1.5, 1.25  # levels of 255, where nothing hides them and where much does: at least 38 dB
LEAST_CONTRAST = 4.0  # of 255, standard deviation where a plate is looked for
SCALES = (0.5, 0.75, 1.0, 4 / 3, 1.5, 2.0)  # at which the pattern is looked for
MOST_PIXELS = 1024  # side of the part that is looked at
FOUND_INVISIBLE = 7.5  # deviations of the highest correlation; unmarked pictures stay below 6

TEXT = "SYNTHETIC"
PLATE_SHARE = 1 / 14  # of the picture's shorter side
PLATE_INSET = 0.115  # from the left and the lower edge: a crop to 80 % keeps it
PLATE_SHADE, PLATE_OPACITY = 24, 0.7
CROPS = (1.0, 0.95, 0.9, 0.85, 0.8)  # shares of the side that may be left, which make the plate look larger
READABLE = 200  # px of a side, below which the plate is looked for at twice the size, too
FOUND_VISIBLE = 0.52  # correlation with the plate; unmarked pictures stay below 0.48

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
DESCRIPTION = f"Synthetic: made from a photo by nvb-face, {SOURCE_TYPE}"
XMP_KEY = "XML:com.adobe.xmp"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    f'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


class FoundMarks(NamedTuple):
    """What a picture carries.

    Args:
        visible: correlation with the plate, at most 1.
        invisible: how many deviations the pattern stands out.
        metadata: whether it says that it is synthetic.
    """

    visible: float
    invisible: float
    metadata: bool

    @property
    def names(self) -> list[str]:
        """Names of the marks that are there."""
        there = (self.visible >= FOUND_VISIBLE, self.invisible >= FOUND_INVISIBLE, self.metadata)
        return [name for name, found in zip(("visible", "invisible", "metadata"), there, strict=True) if found]


def mark_image(image: Image.Image, mark: Mark | None = "visible+invisible") -> Image.Image:
    """A picture with its marks, in RGB; the given one stays as it is.

    Args:
        image: at least 64 px wide and high, so that the plate can be read.
        mark: which; None for none.

    Raises:
        ValueError: there is no such mark, or the picture is too small.
    """
    if mark is not None and mark not in MARKS:
        raise ValueError(f"`mark` is {mark!r}, but {', '.join(map(repr, MARKS))} or None is accepted.")
    if mark is None:
        return image
    if min(image.size) < 64:
        raise ValueError(f"The picture is {image.width}x{image.height} px, but marks need 64.")
    marked = _with_pattern(np.asarray(image.convert("RGB")))
    return Image.fromarray(_with_plate(marked) if mark == "visible+invisible" else marked)


def save_marked(image: Image.Image, path: str | Path, mark: Mark | None = "visible+invisible") -> None:
    """Save a picture with its marks and, in PNG, JPEG and WebP, with metadata that name its digital source type."""
    path = Path(path)
    if path.suffix.lower() == ".png":
        path.write_bytes(marked_png(image, mark))
    elif mark is None:
        image.save(path)
    else:
        mark_image(image, mark).save(path, xmp=XMP.encode(), quality=95)


def marked_png(image: Image.Image, mark: Mark | None = "visible+invisible") -> bytes:
    """A picture with its marks as a PNG file with the same metadata."""
    info, file = PngInfo(), BytesIO()
    if mark is not None:
        info.add_text("Description", DESCRIPTION)
        info.add_itxt(XMP_KEY, XMP)
    mark_image(image, mark).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def save_marked_video(
    frames: Sequence[Image.Image], path: str | Path, fps: int, mark: Mark | None = "visible+invisible"
) -> None:
    """Save frames with their marks as an .mp4 or a .gif, which runs in a loop, with the same metadata."""
    path, marked = Path(path), [mark_image(frame, mark) for frame in frames]
    description = None if mark is None else DESCRIPTION
    if path.suffix.lower() == ".gif":
        options = {} if description is None else {"comment": description}
        marked[0].save(path, save_all=True, append_images=marked[1:], duration=1000 / fps, loop=0, **options)
        return
    output_params = [] if description is None else ["-metadata", f"comment={description}"]
    imageio.mimwrite(path, [np.asarray(frame) for frame in marked], fps=fps, output_params=output_params)


def find_marks(image: Image.Image) -> FoundMarks:
    """Look for the marks in the pixels of a picture."""
    pixels = np.asarray(image.convert("RGB"))
    return FoundMarks(_visible(pixels), _invisible(pixels), metadata=False)


def says_synthetic(path: str | Path) -> bool:
    """Whether the metadata of a file name the digital source type of synthetic media."""
    return SOURCE_TYPE.encode() in Path(path).read_bytes()


@cache
def _pattern() -> np.ndarray:
    """The pattern (TILE, TILE) of deviation 1: phases from the payload's hash, which no library's version changes."""
    frequencies = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE))
    draws = hashlib.shake_256(PAYLOAD.encode()).digest(2 * frequencies.size)
    phases = 2 * np.pi * np.frombuffer(draws, "<u2").reshape(frequencies.shape) / 65536
    spectrum = np.exp(1j * phases) * ((frequencies > BAND[0]) & (frequencies < BAND[1]))
    pattern = np.fft.irfft2(spectrum, (TILE, TILE))
    return pattern / pattern.std()


def _brightness(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _activity(brightness: np.ndarray, fine: float, coarse: float) -> tuple[np.ndarray, np.ndarray]:
    """Brightness without its slow changes, and how strong the rest is around each pixel."""
    detail = brightness - cv2.GaussianBlur(brightness, (0, 0), fine)
    return detail, np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), coarse))


def _with_pattern(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) with the pattern, stronger where there is more to hide it."""
    height, width = pixels.shape[:2]
    _, activity = _activity(_brightness(pixels), 3, 4)
    tiles = np.tile(_pattern(), (-(-height // TILE), -(-width // TILE)))[:height, :width]
    strength = STRENGTH * (0.75 + np.clip(activity / 8, 0, MOST_ACTIVITY))
    return np.clip(np.rint(pixels + (strength * tiles)[..., None]), 0, 255).astype(np.uint8)


def _invisible(pixels: np.ndarray) -> float:
    """How many deviations the pattern stands out at the best scale and shift."""
    top, left = (max(0, (side - MOST_PIXELS) // 2) for side in pixels.shape[:2])
    brightness = _brightness(pixels[top : top + MOST_PIXELS, left : left + MOST_PIXELS])
    scales = (s for s in SCALES if round(s * min(brightness.shape)) >= 1)  # a line has no half
    scaled = (cv2.resize(brightness, None, fx=s, fy=s, interpolation=cv2.INTER_CUBIC) for s in scales)
    return max(_correlation(plane) for plane in scaled)


def _correlation(brightness: np.ndarray) -> float:
    """The highest circular correlation of a picture, folded onto one tile, with the pattern, in deviations."""
    detail, activity = _activity(brightness, 4, 6)
    detail /= activity + 1.5
    height, width = detail.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    folded = np.pad(detail, ((0, rows * TILE - height), (0, columns * TILE - width)))
    spectrum = np.fft.rfft2(folded.reshape(rows, TILE, columns, TILE).sum(axis=(0, 2)))
    size = np.abs(spectrum)
    correlation = np.fft.irfft2(spectrum / (size + 1e-3) * np.conj(np.fft.rfft2(_pattern())), (TILE, TILE))
    deviation = correlation.std()
    return float(correlation.max() / deviation) if deviation > 0 else 0.0  # 0 of a plain color


def _plate(height: int) -> np.ndarray:
    """The plate (height, width) of a mark, from 0 to 255: pale letters on a dark ground."""
    large = ImageFont.load_default(size=64)
    left, top, right, bottom = large.getbbox(TEXT)
    plate = Image.new("L", (int(right - left) + 48, int(bottom - top) + 40), PLATE_SHADE)
    ImageDraw.Draw(plate).text((24 - left, 20 - top), TEXT, fill=255, font=large)
    width = round(plate.width * height / plate.height)
    return np.asarray(plate.resize((width, height), Image.Resampling.LANCZOS), np.float32)


def _with_plate(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) with the plate in the lower left."""
    side = min(pixels.shape[:2])
    plate = _plate(max(8, round(side * PLATE_SHARE)))
    height, width = plate.shape
    bottom, left = (round(length * PLATE_INSET) for length in pixels.shape[:2])
    window = np.s_[pixels.shape[0] - bottom - height : pixels.shape[0] - bottom, left : left + width]
    marked = pixels.copy()
    mixed = (1 - PLATE_OPACITY) * pixels[window] + PLATE_OPACITY * plate[..., None]
    marked[window] = np.rint(mixed).astype(np.uint8)
    return marked


def _visible(pixels: np.ndarray) -> float:
    """The highest correlation with the plate, at the sizes that a crop may have left it."""
    planes = [_brightness(pixels)]
    if min(pixels.shape[:2]) < READABLE:  # a small plate lies between the pixels
        planes.append(cv2.resize(planes[0], None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
    return max((_match(plane, plate) for plane in planes for plate in _plates(min(plane.shape))), default=0.0)


def _plates(side: int) -> Iterator[np.ndarray]:
    for height in sorted({round(side * PLATE_SHARE / share) for share in CROPS}):
        if height >= 5:
            yield _plate(height)


def _match(brightness: np.ndarray, plate: np.ndarray) -> float:
    if any(has < needs for has, needs in zip(brightness.shape, plate.shape, strict=True)):
        return 0.0
    correlation = cv2.matchTemplate(brightness, plate, cv2.TM_CCOEFF_NORMED)
    rows, columns = correlation.shape
    size = plate.shape[1], plate.shape[0]
    mean = cv2.boxFilter(brightness, cv2.CV_64F, size, anchor=(0, 0))[:rows, :columns]
    square = cv2.sqrBoxFilter(brightness, cv2.CV_64F, size, anchor=(0, 0))[:rows, :columns]
    contrast = np.sqrt(np.maximum(square - mean**2, 0))
    return float(correlation[contrast > LEAST_CONTRAST].max(initial=0.0))  # of a plain area it is rounding alone
