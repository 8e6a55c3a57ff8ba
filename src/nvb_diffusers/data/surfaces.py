"""Heads with the depth and the mask of every image, for the appearance model, and what varies them in training.

Rendered heads stand before few kinds of backdrop, in one renderer's colors, cropped without error. What is drawn for a
sample makes it unlike them, and is a value like a degradation: other `Colors`, the same for all images of the sample;
another `Backdrop` behind the head; a `CropError`, as face crops of photos have it.

    depth/<identity>/<view>.png   distance along the camera's forward axis: 16 bit, 1/10000 world units, 0 behind all
    masks/<identity>/<view>.png   how much of a pixel the head covers: 8 bit

Spatial numbers are shares of the image's side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
import torch
from PIL import Image

from nvb_diffusers.data.datasets import MultiViewFaceDataset, SampleTransform, image_paths, read_record
from nvb_diffusers.data.keys import VARIED, sample_generator
from nvb_diffusers.warp import unproject_depth

DEPTH_UNIT = 1e-4  # world units of one step of a depth image
VARIATIONS = ("colors", "backdrop", "crop")
GAMMA, GAIN, OFFSET, GRAY = 0.25, 0.12, 0.06, 0.15  # three deviations and a probability
BACKDROP, PICTURE, NOISE, BLURRED = 0.5, 0.55, 0.25, 0.4  # probabilities; the other backdrops are of one color
CROP, SHIFT, SCALE, ROLL = 0.7, 0.03, 0.06, 5.0  # a probability and three deviations, roll's in degrees
INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


class SurfaceImage(NamedTuple):
    """An image and what it shows.

    Args:
        image: (S, S, 3), 8 bit.
        depth: (S, S), along the camera's forward axis in world units; 0 behind everything.
        mask: (S, S) in [0, 1], how much of each pixel the head covers.
        positions: (S, S, 3), which point of the world each pixel shows; any behind everything.
    """

    image: np.ndarray
    depth: np.ndarray
    mask: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class Colors:
    """Another light and another camera: gamma, then a gain for each channel and an offset, then perhaps gray."""

    gamma: float
    gain: tuple[float, float, float]
    offset: float
    gray: bool

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Self:
        """Colors that a photo might have."""
        gamma, red, green, blue = np.exp(generator.normal(size=4) * [GAMMA, GAIN, GAIN, GAIN]).tolist()
        return cls(gamma, (red, green, blue), generator.normal() * OFFSET, bool(generator.random() < GRAY))

    def run(self, image: np.ndarray) -> np.ndarray:
        """Change an image (S, S, 3) of 8 bit."""
        shades = (np.arange(256, dtype=np.float32) / 255)[:, None] ** self.gamma * self.gain + self.offset  # (256, 3)
        changed = np.stack([shades[image[..., channel], channel] for channel in range(3)], axis=-1)
        if self.gray:
            changed = changed.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
        return _to_bytes(changed * 255)


@dataclass(frozen=True)
class Backdrop:
    """What stands behind a head: a part of another image of the set, color noise, or one color, perhaps out of focus.

    Args:
        kind: picture, noise or plain.
        other: which image of the set, as a share of their number.
        roll, scale, shift: of that image: degrees, a factor, and shares of the side.
        cells: squares of noise along a side.
        interpolation: between those squares, one of OpenCV's.
        seed: of the noise or the color.
        colors: of the backdrop alone.
        blur: deviation of a Gaussian, 0 for none.
    """

    kind: str
    other: float
    roll: float
    scale: float
    shift: tuple[float, float]
    cells: int
    interpolation: int
    seed: int
    colors: Colors
    blur: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Self:
        """A backdrop of any kind."""
        place = generator.random()
        right, down = generator.uniform(-0.47, 0.47, 2).tolist()
        return cls(
            kind="picture" if place < PICTURE else "noise" if place < PICTURE + NOISE else "plain",
            other=generator.random(),
            roll=generator.uniform(-17, 17),
            scale=float(np.exp(generator.uniform(0, 1.2))),
            shift=(right, down),
            cells=int(generator.integers(2, 24)),
            interpolation=int(generator.choice(INTERPOLATIONS)),
            seed=int(generator.integers(2**31)),
            colors=Colors.draw(generator),
            blur=generator.uniform(0.002, 0.024) if generator.random() < BLURRED else 0.0,
        )

    def run(self, head: SurfaceImage, picture: np.ndarray) -> SurfaceImage:
        """Put the backdrop behind a head; `picture` (S, S, 3) is the other image."""
        side = len(head.image)
        backdrop = self.colors.run(self._paint(side, picture))
        if self.blur:
            backdrop = cv2.GaussianBlur(backdrop, (0, 0), self.blur * side)
        mask = head.mask[..., None]
        return head._replace(image=_to_bytes(head.image * mask + backdrop * (1 - mask)))

    def _paint(self, side: int, picture: np.ndarray) -> np.ndarray:
        if self.kind == "picture":
            matrix = _affine(side, self.roll, self.scale, self.shift)
            return cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REFLECT)
        cells = self.cells if self.kind == "noise" else 1
        noise = np.random.default_rng(self.seed).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        return cv2.resize(noise, (side, side), interpolation=self.interpolation)


@dataclass(frozen=True)
class CropError:
    """Shift (right and down, shares of the side), scale and roll in degrees by which a crop misses its aim."""

    shift: tuple[float, float]
    scale: float
    roll: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Self:
        """Errors as of a face detector."""
        right, down = (generator.normal(size=2) * SHIFT).tolist()
        return cls((right, down), float(np.exp(generator.normal() * SCALE)), generator.normal() * ROLL)

    def run(self, head: SurfaceImage) -> SurfaceImage:
        """Move image, depth, mask and positions alike; what they hold stays."""
        side = len(head.image)
        matrix = _affine(side, self.roll, self.scale, self.shift)

        def moved(values: np.ndarray, interpolation: int, border: int) -> np.ndarray:
            return cv2.warpAffine(values, matrix, (side, side), flags=interpolation, borderMode=border)

        return SurfaceImage(
            image=moved(head.image, cv2.INTER_LINEAR, cv2.BORDER_REFLECT),
            depth=moved(head.depth, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT),
            mask=moved(head.mask, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE),
            positions=moved(head.positions, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT),
        )


@dataclass(frozen=True)
class Variation:
    """What is changed in all images of a sample, in this order; None for what stays."""

    backdrop: Backdrop | None = None
    colors: Colors | None = None
    crop: CropError | None = None

    @classmethod
    def draw(cls, generator: np.random.Generator, kinds: Sequence[str]) -> Self:
        """Draw for one sample what `kinds`, some of `VARIATIONS`, allow."""
        backdrop = Backdrop.draw(generator) if "backdrop" in kinds and generator.random() < BACKDROP else None
        colors = Colors.draw(generator) if "colors" in kinds else None
        crop = CropError.draw(generator) if "crop" in kinds and generator.random() < CROP else None
        return cls(backdrop, colors, crop)


class SurfaceDataset(MultiViewFaceDataset):
    """Several images of one head with depth and masks, the source view first.

    Args:
        data_dir: a folder in the project's format, every image with its camera, its depth and its mask.
        split: train, validation or test.
        transform: what happens to the images of a sample after they were varied; it leaves nothing out.
        num_target_views: other views beside the source.
        variations: which of `VARIATIONS` are drawn.

    Raises:
        ValueError: a depth map or a mask is missing, or the transform crops, so that depth would not fit.
    """

    def __init__(
        self,
        data_dir: str | Path,
        split: str,
        transform: SampleTransform,
        num_target_views: int,
        variations: Sequence[str] = (),
    ) -> None:
        super().__init__(data_dir, split, transform, num_target_views)
        if transform.crop_jitter:
            raise ValueError("random crops change the camera, which depth maps would have to follow: leave them out")
        self.variations, folder = tuple(variations), Path(data_dir)
        names = [path.relative_to(folder / "images").with_suffix(".png") for path in image_paths(self.records)]
        self.depths, self.masks = ([folder / part / name for name in names] for part in ("depth", "masks"))
        for path in (*self.depths, *self.masks):
            if not path.is_file():
                raise ValueError(f"{path} does not exist: images with depth and masks are needed, as of nvb-heads")

    def __getitem__(self, key: int) -> dict[str, torch.Tensor]:
        """Sample of a key, as of `MultiViewFaceDataset`, and `depth`, `mask` (V, S, S), `positions` (V, 3, S, S).

        With crop errors it has no `camera_params`, as no camera sees such crops.
        """
        variation = Variation.draw(sample_generator(key, self.transform.seed, VARIED), self.variations)
        chosen = self.chosen_views(key)
        records = [read_record(self.records, index) for index in chosen]
        heads = [self._varied(*pair, variation) for pair in zip(records, chosen, strict=True)]
        images = [{**record, "image": Image.fromarray(head.image)} for record, head in zip(records, heads, strict=True)]
        sample = self.transform(images, key)
        side, flipped = self.transform.resolution, bool(sample["flipped"])
        sample["depth"] = _stack([head.depth for head in heads], side, cv2.INTER_NEAREST_EXACT, flipped)
        sample["mask"] = _stack([head.mask for head in heads], side, cv2.INTER_AREA, flipped)
        positions = np.stack([head.positions for head in heads]).transpose(3, 0, 1, 2)  # (3, V, S', S')
        along = [_stack(plane, side, cv2.INTER_NEAREST_EXACT, flipped) for plane in positions]  # (V, S, S) each
        sample["positions"] = torch.stack([-along[0] if flipped else along[0], *along[1:]], dim=1)
        if "crop" in self.variations:
            del sample["camera_params"]
        return sample

    def _varied(self, record: dict[str, Any], index: int, variation: Variation) -> SurfaceImage:
        """One image with its depth and mask, at the size that it is stored at."""
        image = np.asarray(record["image"])
        depth, mask = _plane(self.depths[index], np.uint16, image), _plane(self.masks[index], np.uint8, image)
        depth = depth * DEPTH_UNIT
        points = unproject_depth(torch.from_numpy(np.where(depth > 0, depth, 1)), torch.tensor(record["camera"]))
        head = SurfaceImage(image, depth, mask / 255, points.unflatten(0, depth.shape).numpy())
        if variation.backdrop is not None:
            other = int(variation.backdrop.other * len(self.records))
            picture = read_record(self.records, other)["image"].resize(image.shape[:2])
            head = variation.backdrop.run(head, np.asarray(picture))
        if variation.colors is not None:
            head = head._replace(image=variation.colors.run(head.image))
        return head if variation.crop is None else variation.crop.run(head)


def _plane(path: Path, kind: type[np.generic], image: np.ndarray) -> np.ndarray:
    """The one channel (S, S) of a file of this kind of numbers, as floats; it must be as large as its image."""
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError(f"cannot read {path}: it is no PNG")
    if values.dtype != kind or values.shape != image.shape[:2]:
        raise ValueError(
            f"{path} holds {values.dtype} {values.shape}, but {np.dtype(kind)} {image.shape[:2]} is accepted"
        )
    return values.astype(np.float32)


def _stack(planes: Sequence[np.ndarray], side: int, interpolation: int, flipped: bool) -> torch.Tensor:
    """Planes (V, S, S) as the images of the sample show them: resized, and mirrored or not."""
    sized = [
        plane if len(plane) == side else cv2.resize(plane, (side, side), interpolation=interpolation)
        for plane in planes
    ]
    stacked = np.stack(sized)
    return torch.from_numpy(np.ascontiguousarray(stacked[..., ::-1] if flipped else stacked)).float()


def _affine(side: int, roll: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    """The matrix (2, 3) that turns and scales an image about its middle and then moves it, in pixels."""
    middle = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), roll, scale)
    matrix[:, 2] += np.multiply(shift, side)
    return matrix


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return image.round().clip(0, 255).astype(np.uint8)
