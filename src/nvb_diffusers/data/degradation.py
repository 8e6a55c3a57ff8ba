"""Blind face degradation as a value: drawn once, written to JSON, applied any number of times with the same result.

Eq. 7 of the paper compares features of the source with features of every target view after **the same** degradation,
so a degradation here is a list of operations with plain numbers, not a random function. Applied to two images of
one size, one `DegradationParams` uses the same kernels, the same noise pattern, the same resizing and the same JPEG.

    params = draw_degradation(np.random.default_rng(3), "severe")
    source, target = apply(source, params), apply(target, params)

Presets. All numbers hold for a 512 px image; a-b is a uniform draw. Sigma in pixels, noise as standard deviation of
8-bit values, Poisson as factor on the shot noise of 256 photons. `factor` is how much smaller the final image is
before it is enlarged again; the scale of pass 1 is relative to the input, that of the last pass to input / factor.

|                  | mild    | medium         | severe         | real_esrgan    | codeformer |
|------------------|---------|----------------|----------------|----------------|------------|
| numbers from     | ours    | ours           | ours           | Real-ESRGAN x4 | CodeFormer III |
| factor           | 1.5-4   | 4-8            | 12.8-21.3      | 4              | 1-12       |
| kernels          | 2       | 6, sinc .1     | 6, sinc .1     | 6, sinc .1     | 2          |
| pass 1: taps     | 41      | 7-21           | 21-41          | 7-21           | 41         |
| sigma            | .1-2.5  | .5-3           | 2-8            | .2-3           | .1-10      |
| up / down / keep | keep    | .2 / .7 / .1   | .1 / .8 / .1   | .2 / .7 / .1   | keep       |
| scale            | 1       | .4-1.2         | .2-1.2         | .15-1.5        | 1          |
| Gauss / Poisson  | 0-8     | 1-15 / .05-1.5 | 8-30 / .5-3    | 1-30 / .05-3   | 0-15       |
| JPEG             | 60-95   | 50-95          | 30-80          | 30-95          | 60-100     |
| pass 2: blur p   |         | .8             | .8             | .8             |            |
| taps             |         | 7-21           | 7-21           | 7-21           |            |
| sigma            |         | .2-1.5         | .2-1.5         | .2-1.5         |            |
| up / down / keep |         | .3 / .4 / .3   | .3 / .4 / .3   | .3 / .4 / .3   |            |
| scale            |         | .5-1.2         | .6-1.2         | .3-1.2         |            |
| Gauss / Poisson  |         | 1-10 / .05-1   | 3-15 / .05-1.5 | 1-25 / .05-2.5 |            |
| JPEG             |         | 40-95          | 30-75          | 30-95          |            |
| final sinc p     |         | .8             | .8             | .8             |            |

A sixth, `clean`, leaves the image as it is: for models of clean photos, and as the first point of a curve.

Kernels: 2 is isotropic or anisotropic Gaussian, half each; 6 is isotropic .45, anisotropic .25, generalized .12 and
.03, plateau .12 and .03 (isotropic and anisotropic). Two-pass presets choose Gauss or Poisson noise with probability
one half each and make it gray with .4. The final sinc comes before or after the last JPEG with equal probability.

Other sizes than 512. A degradation looks the same at every size. At side R (the shorter one) an intermediate image
that has 512 f pixels at 512 keeps 512 f pixels, but never gets more than R (f R if f > 1): `severe` is a face of 24 to
40 px for every R up to 512. Sigma, kernel radius (at least 3 taps), sinc wavelength and noise are multiplied by the
density, the pixels it has over the pixels it has at 512. Above 512 factors stay, and the density is R / 512.

The noise of a seed is numpy's, JPEG and filters are OpenCV's: results are equal to the bit for one version of both.
Poisson noise is its normal approximation, since a sampled Poisson variable has no pattern that two images can share.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TypeVar, get_type_hints

import cv2
import numpy as np
from PIL import Image

from nvb_diffusers.data.kernels import KERNEL_KINDS, gaussian_kernel, gaussian_line, sinc_kernel

REFERENCE_SIZE = 512
PHOTONS = 256
RESIZE_MODES = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
NOISE_KINDS = ("gaussian", "poisson")

Range = tuple[float, float]
ImageType = TypeVar("ImageType", np.ndarray, Image.Image)


def _scaled_taps(taps: int, density: float) -> int:
    return 2 * max(1, round(taps // 2 * density)) + 1


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Blur:
    """One of the six kernels; `taps`, `sigma_x` and `sigma_y` in pixels of the 512 px chain (see `gaussian_kernel`)."""

    kind: str
    taps: int
    sigma_x: float
    sigma_y: float
    rotation: float
    shape: float

    def __post_init__(self) -> None:
        _check(self.kind in KERNEL_KINDS, f"blur kind is {self.kind!r}, expected one of {', '.join(KERNEL_KINDS)}")
        _check(self.taps % 2 == 1 and 3 <= self.taps <= 101, f"blur taps is {self.taps}, expected odd, 3 to 101")
        _check(math.isfinite(self.rotation), f"blur rotation is {self.rotation}, expected a finite angle")
        numbers = (self.sigma_x, self.sigma_y, self.shape)
        _check(all(0 < n < math.inf for n in numbers), f"blur sigma and shape are {numbers}, expected above 0")

    def run(self, image: np.ndarray, density: float) -> np.ndarray:
        """(H, W, 3) -> (H, W, 3), blurred."""
        taps, sigma_x, sigma_y = _scaled_taps(self.taps, density), self.sigma_x * density, self.sigma_y * density
        if self.kind == "isotropic":  # the only separable one
            line = gaussian_line(taps, sigma_x)
            return cv2.sepFilter2D(image, -1, line, line)
        kernel = gaussian_kernel(self.kind, taps, sigma_x, sigma_y, self.rotation, self.shape)
        return cv2.filter2D(image, -1, kernel)


@dataclass(frozen=True)
class Sinc:
    """The circular low-pass filter; `taps` in pixels, `cutoff` in radians per pixel of the 512 px chain."""

    taps: int
    cutoff: float

    def __post_init__(self) -> None:
        _check(self.taps % 2 == 1 and 3 <= self.taps <= 101, f"sinc taps is {self.taps}, expected odd, 3 to 101")
        _check(0 < self.cutoff <= math.pi, f"sinc cutoff is {self.cutoff}, expected above 0 and at most pi")

    def run(self, image: np.ndarray, density: float) -> np.ndarray:
        """(H, W, 3) -> (H, W, 3); unchanged where the image is too coarse to hold what the filter removes."""
        cutoff = self.cutoff / density
        if cutoff >= math.pi:
            return image
        return cv2.filter2D(image, -1, sinc_kernel(_scaled_taps(self.taps, density), cutoff))


@dataclass(frozen=True)
class Resize:
    """To `scale` times the input's size in the 512 px chain, by one of `RESIZE_MODES`."""

    scale: float
    mode: str

    def __post_init__(self) -> None:
        _check(0 < self.scale <= 4, f"resize scale is {self.scale}, expected above 0 and at most 4")
        _check(self.mode in RESIZE_MODES, f"resize mode is {self.mode!r}, expected one of {', '.join(RESIZE_MODES)}")

    def run(self, image: np.ndarray, input_size: tuple[int, int]) -> tuple[np.ndarray, float]:
        """(H, W, 3) -> the resized image and its density, pixels per pixel of the 512 px chain.

        Args:
            image: at its present size.
            input_size: Height and width of the input of the chain.
        """
        side = min(input_size)
        scale = min(self.scale * max(REFERENCE_SIZE / side, 1), max(self.scale, 1))
        height, width = (max(1, round(length * scale)) for length in input_size)
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=RESIZE_MODES[self.mode])
        return image, scale * side / (self.scale * REFERENCE_SIZE)


@dataclass(frozen=True)
class Noise:
    """Gaussian (`strength` in 8-bit values) or Poisson (`strength` times the shot noise of 256 photons) noise.

    The pattern is a function of `seed` and the size alone; Poisson noise weights it with the root of the intensity.
    `gray` noise is equal in the three channels.
    """

    kind: str
    strength: float
    gray: bool
    seed: int

    def __post_init__(self) -> None:
        _check(self.kind in NOISE_KINDS, f"noise kind is {self.kind!r}, expected one of {', '.join(NOISE_KINDS)}")
        _check(0 <= self.strength < math.inf, f"noise strength is {self.strength}, expected 0 or more")
        _check(self.seed >= 0, f"noise seed is {self.seed}, expected 0 or more")

    def run(self, image: np.ndarray, density: float) -> np.ndarray:
        """(H, W, 3) -> (H, W, 3) in [0, 1], with noise."""
        channels = 1 if self.gray else 3
        pattern = np.random.default_rng(self.seed).standard_normal((*image.shape[:2], channels), dtype=np.float32)
        if self.kind == "gaussian":
            pattern *= self.strength * density / 255
        else:
            intensity = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if self.gray else image
            pattern *= np.sqrt(np.maximum(intensity, 0))
            pattern *= self.strength * density / math.sqrt(PHOTONS)
        noisy = image + pattern
        return np.clip(noisy, 0, 1, out=noisy)


@dataclass(frozen=True)
class Jpeg:
    """JPEG at `quality` 1 to 100, chroma at half resolution."""

    quality: int

    def __post_init__(self) -> None:
        _check(1 <= self.quality <= 100, f"JPEG quality is {self.quality}, expected 1 to 100")

    def run(self, image: np.ndarray, density: float) -> np.ndarray:
        """(H, W, 3) -> (H, W, 3) in [0, 1], after the codec."""
        bgr = cv2.cvtColor(_to_bytes(image), cv2.COLOR_RGB2BGR)
        _, code = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        return _to_float(cv2.cvtColor(cv2.imdecode(code, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


Operation = Blur | Sinc | Resize | Noise | Jpeg
OPERATIONS: dict[str, type] = {"blur": Blur, "sinc": Sinc, "resize": Resize, "noise": Noise, "jpeg": Jpeg}


@dataclass(frozen=True)
class DegradationParams:
    """A degradation: operations in the order in which they are applied, and the preset they were drawn from."""

    preset: str
    operations: tuple[Operation, ...]

    def to_json(self) -> str:
        """One JSON object; `from_json` gives an equal value back, to the last bit of every number."""
        names = {cls: name for name, cls in OPERATIONS.items()}
        operations = [{"operation": names[type(operation)], **asdict(operation)} for operation in self.operations]
        return json.dumps({"preset": self.preset, "operations": operations}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "DegradationParams":
        """Read what `to_json` wrote; `ValueError` for anything else."""
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"degradation is not JSON: {error}") from error
        if not isinstance(record, dict) or set(record) != {"preset", "operations"}:
            raise ValueError("degradation JSON needs exactly the keys 'preset' and 'operations'")
        if not isinstance(record["preset"], str) or not isinstance(record["operations"], list):
            raise ValueError("degradation JSON needs a string 'preset' and a list 'operations'")
        return cls(record["preset"], tuple(_read_operation(entry) for entry in record["operations"]))


def _read_operation(entry: object) -> Operation:
    if not isinstance(entry, dict) or entry.get("operation") not in tuple(OPERATIONS):
        raise ValueError(f"degradation JSON has {entry!r}, expected an 'operation' of {', '.join(OPERATIONS)}")
    cls = OPERATIONS[entry["operation"]]
    values = {name: value for name, value in entry.items() if name != "operation"}
    types = get_type_hints(cls)
    if set(values) != set(types):
        raise ValueError(f"operation {entry['operation']!r} has fields {sorted(values)}, expected {sorted(types)}")
    for name, value in values.items():
        # bool is an int to Python, and JSON may write the float 1.0 as 1
        if type(value) is not types[name] and not (type(value) is int and types[name] is float):
            raise ValueError(f"operation {entry['operation']!r}: {name} is {value!r}, expected {types[name].__name__}")
    return cls(**values)


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _to_float(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) * np.float32(1 / 255)


def apply(image: ImageType, params: DegradationParams) -> ImageType:
    """(H, W, 3) uint8 RGB array, or an RGB PIL image -> the degraded image, of the same size and type."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        given = f"PIL mode {image.mode}" if isinstance(image, Image.Image) else f"{pixels.dtype} {pixels.shape}"
        raise ValueError(f"image is {given}, expected an RGB image: uint8 (H, W, 3) or PIL mode RGB")
    input_size = pixels.shape[:2]
    degraded, density = _to_float(pixels), min(input_size) / REFERENCE_SIZE
    for operation in params.operations:
        if isinstance(operation, Resize):
            degraded, density = operation.run(degraded, input_size)
        else:
            degraded = operation.run(degraded, density)
    result = _to_bytes(degraded)
    return Image.fromarray(result) if isinstance(image, Image.Image) else result


@dataclass(frozen=True)
class PassRanges:
    """What one pass of blur, resize, noise and JPEG is drawn from; pairs are the ends of a uniform draw."""

    taps: tuple[int, int]
    sigma: Range
    gaussian: Range
    jpeg: tuple[int, int]
    kernels: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    blur_probability: float = 1.0
    sinc_probability: float = 0.1
    up_down_keep: tuple[float, float, float] = (0.2, 0.7, 0.1)
    scale: Range = (1.0, 1.0)
    modes: tuple[str, ...] = ("area", "bilinear", "bicubic")
    poisson: Range = (0.0, 0.0)
    gaussian_probability: float = 0.5
    gray_probability: float = 0.4


@dataclass(frozen=True)
class Preset:
    """The passes, the factor by which the image is smaller after the last one, and what ends the chain."""

    factor: Range
    passes: tuple[PassRanges, ...]
    final_sinc_probability: float
    enlarge_mode: str


def _face_preset(factor: Range, sigma: Range, gaussian: Range, jpeg: tuple[int, int]) -> Preset:
    ranges = PassRanges(
        (41, 41), sigma, gaussian, jpeg, kernels=(0.5, 0.5, 0.0, 0.0, 0.0, 0.0), sinc_probability=0.0,
        up_down_keep=(0.0, 0.0, 1.0), modes=("bilinear",), gaussian_probability=1.0, gray_probability=0.0,
    )  # fmt: skip
    return Preset(factor, (ranges,), final_sinc_probability=0.0, enlarge_mode="bilinear")


def _second_order_preset(factor: Range, first: PassRanges, second: PassRanges) -> Preset:
    second = replace(second, blur_probability=0.8, up_down_keep=(0.3, 0.4, 0.3))
    return Preset(factor, (first, second), final_sinc_probability=0.8, enlarge_mode="bicubic")


PRESETS: dict[str, Preset] = {
    "clean": Preset((1.0, 1.0), (), final_sinc_probability=0.0, enlarge_mode="bilinear"),
    "mild": _face_preset((1.5, 4.0), sigma=(0.1, 2.5), gaussian=(0.0, 8.0), jpeg=(60, 95)),
    "medium": _second_order_preset(
        (4.0, 8.0),
        PassRanges((7, 21), (0.5, 3.0), (1.0, 15.0), (50, 95), scale=(0.4, 1.2), poisson=(0.05, 1.5)),
        PassRanges((7, 21), (0.2, 1.5), (1.0, 10.0), (40, 95), scale=(0.5, 1.2), poisson=(0.05, 1.0)),
    ),
    "severe": _second_order_preset(
        (12.8, 21.3),
        PassRanges((21, 41), (2.0, 8.0), (8.0, 30.0), (30, 80), scale=(0.2, 1.2), poisson=(0.5, 3.0),
                   up_down_keep=(0.1, 0.8, 0.1)),
        PassRanges((7, 21), (0.2, 1.5), (3.0, 15.0), (30, 75), scale=(0.6, 1.2), poisson=(0.05, 1.5)),
    ),
    "real_esrgan": _second_order_preset(
        (4.0, 4.0),
        PassRanges((7, 21), (0.2, 3.0), (1.0, 30.0), (30, 95), scale=(0.15, 1.5), poisson=(0.05, 3.0)),
        PassRanges((7, 21), (0.2, 1.5), (1.0, 25.0), (30, 95), scale=(0.3, 1.2), poisson=(0.05, 2.5)),
    ),
    "codeformer": _face_preset((1.0, 12.0), sigma=(0.1, 10.0), gaussian=(0.0, 15.0), jpeg=(60, 100)),
}  # fmt: skip


def draw_degradation(generator: np.random.Generator, preset: str) -> DegradationParams:
    """Draw one degradation from a preset.

    Args:
        generator: The only source of randomness; equal states give equal degradations.
        preset: A key of `PRESETS`.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}")
    chain = PRESETS[preset]
    final_scale = 1 / generator.uniform(*chain.factor)
    operations: list[Operation] = []
    for index, ranges in enumerate(chain.passes, start=1):
        is_last = index == len(chain.passes)
        operations += _draw_pass(generator, ranges, base_scale=final_scale if is_last else 1.0)
        jpeg = Jpeg(int(generator.integers(*ranges.jpeg, endpoint=True)))
        operations += _draw_final(generator, chain, ranges, final_scale, jpeg) if is_last else [jpeg]
    return DegradationParams(preset, (*operations, Resize(1.0, chain.enlarge_mode)))


def _draw_pass(generator: np.random.Generator, ranges: PassRanges, base_scale: float) -> list[Operation]:
    """Blur, resize to a scale relative to `base_scale`, noise."""
    operations: list[Operation] = []
    if generator.random() < ranges.blur_probability:
        operations.append(_draw_blur(generator, ranges))
    direction = generator.choice(("up", "down", "keep"), p=ranges.up_down_keep)
    low, high = {"up": (1.0, ranges.scale[1]), "down": (ranges.scale[0], 1.0), "keep": (1.0, 1.0)}[direction]
    operations.append(Resize(base_scale * generator.uniform(low, high), str(generator.choice(ranges.modes))))
    kind = "gaussian" if generator.random() < ranges.gaussian_probability else "poisson"
    strength = generator.uniform(*(ranges.gaussian if kind == "gaussian" else ranges.poisson))
    gray = bool(generator.random() < ranges.gray_probability)
    operations.append(Noise(kind, strength, gray, seed=int(generator.integers(2**32))))
    return operations


def _draw_blur(generator: np.random.Generator, ranges: PassRanges) -> Blur | Sinc:
    taps = _draw_taps(generator, ranges)
    if generator.random() < ranges.sinc_probability:
        return Sinc(taps, generator.uniform(np.pi / (3 if taps < 13 else 5), np.pi))
    kind = str(generator.choice(KERNEL_KINDS, p=ranges.kernels))
    sigma_x, sigma_y, rotation = generator.uniform(*ranges.sigma), generator.uniform(*ranges.sigma), 0.0
    if kind.endswith("anisotropic"):
        rotation = generator.uniform(-np.pi, np.pi)
    else:
        sigma_y = sigma_x
    shape = 1.0
    if kind.startswith("generalized"):
        shape = generator.uniform(*((0.5, 1.0) if generator.random() < 0.5 else (1.0, 4.0)))
    elif kind.startswith("plateau"):
        shape = generator.uniform(1.0, 2.0)
    return Blur(kind, taps, sigma_x, sigma_y, rotation, shape)


def _draw_taps(generator: np.random.Generator, ranges: PassRanges) -> int:
    low, high = ranges.taps
    return int(low + 2 * generator.integers((high - low) // 2, endpoint=True))


def _draw_final(
    generator: np.random.Generator, chain: Preset, ranges: PassRanges, scale: float, jpeg: Jpeg
) -> list[Operation]:
    """The last resize, with or without a sinc filter, and the last JPEG, in random order."""
    resize: list[Operation] = [Resize(scale, str(generator.choice(ranges.modes)))]
    if generator.random() < chain.final_sinc_probability:
        resize.append(Sinc(_draw_taps(generator, ranges), generator.uniform(np.pi / 3, np.pi)))
    if len(chain.passes) > 1 and generator.random() < 0.5:
        return [jpeg, *resize]
    return [*resize, jpeg]
