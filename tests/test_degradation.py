"""Degradations as values: kernels by hand, noise by its statistics, replay to the bit, severity by PSNR."""

import io
import json
import math
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from nvb_diffusers.data.degradation import (
    PRESETS,
    Blur,
    DegradationParams,
    Jpeg,
    Noise,
    Resize,
    Sinc,
    apply,
    draw_degradation,
)
from nvb_diffusers.data.kernels import KERNEL_KINDS, gaussian_kernel, sinc_kernel


def draw(preset: str, seed: int = 0) -> DegradationParams:
    return draw_degradation(np.random.default_rng(seed), preset)


def portrait(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: an oval with eyes and a mouth, fine hair strands above it, on a soft background."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 200, (4, 4, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
    strands = cv2.GaussianBlur(rng.normal(60, 60, (height, width)), (0, 0), sigmaX=0.6, sigmaY=4)
    v, u = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]

    def oval(center_u: float, center_v: float, radius_u: float, radius_v: float) -> np.ndarray:
        return ((u - center_u) / radius_u) ** 2 + ((v - center_v) / radius_v) ** 2 < 1

    hair = oval(0.5, 0.42, 0.36, 0.4)
    image[hair] = np.clip(strands[hair, None] * [1.0, 0.8, 0.6], 0, 255)
    image[oval(0.5, 0.55, 0.28, 0.38)] = (214, 160, 130)
    for center_u in (0.4, 0.6):
        image[oval(center_u, 0.48, 0.06, 0.025)] = (245, 245, 245)
        image[oval(center_u, 0.48, 0.022, 0.022)] = (40, 25, 20)
        image[oval(center_u, 0.42, 0.07, 0.012)] = (50, 35, 30)
    image[oval(0.5, 0.75, 0.1, 0.03)] = (165, 60, 65)
    return image


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((first.astype(float) - second) ** 2))


def mean_psnr(pictures: list[np.ndarray], preset: str) -> float:
    return float(np.mean([psnr(picture, apply(picture, draw(preset, i))) for i, picture in enumerate(pictures)]))


def frequency_response(kernel: np.ndarray, omega_x: float, omega_y: float) -> float:
    offsets = np.arange(len(kernel)) - len(kernel) // 2
    return float(np.cos(omega_y * offsets) @ kernel @ np.cos(omega_x * offsets))


# Kernels


def test_gaussian_kernel_by_hand():
    """Assert that 3 taps of sigma 1 hold exp(-1/2) and exp(-1) over their sum (1 + 2 exp(-1/2))^2 = 4.897641."""
    kernel = gaussian_kernel("isotropic", 3, 1.0, 1.0, 0.0, 1.0)
    corner, edge, center = 0.075114, 0.123841, 0.204180
    expected = [[corner, edge, corner], [edge, center, edge], [corner, edge, corner]]
    np.testing.assert_allclose(kernel, expected, atol=1e-6)


def test_shapes_by_hand():
    """Assert both families at shape 2: at offsets 1 and sqrt(2), d^2 is 1 and 4."""
    generalized = gaussian_kernel("generalized_isotropic", 3, 1.0, 1.0, 0.0, 2.0)
    plateau = gaussian_kernel("plateau_isotropic", 3, 1.0, 1.0, 0.0, 2.0)
    assert generalized[1, 2] / generalized[1, 1] == pytest.approx(math.exp(-0.5))
    assert generalized[2, 2] / generalized[1, 1] == pytest.approx(math.exp(-2))
    assert plateau[1, 2] / plateau[1, 1] == pytest.approx(1 / 2)
    assert plateau[2, 2] / plateau[1, 1] == pytest.approx(1 / 5)


@pytest.mark.parametrize("kind", KERNEL_KINDS)
def test_kernels_sum_to_one(kind):
    """Assert that every kind keeps the mean brightness, has its size, and is symmetric about its center."""
    kernel = gaussian_kernel(kind, 17, 2.3, 1.1, 0.7, 1.4)
    assert kernel.shape == (17, 17)
    assert kernel.dtype == np.float32
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-8)


def test_isotropic_kernel_has_its_sigma():
    """Assert that the isotropic kernel equals its transpose and has the variance sigma^2 along both axes."""
    kernel = gaussian_kernel("isotropic", 21, 2.0, 2.0, 0.0, 1.0)
    offsets = np.arange(21) - 10
    np.testing.assert_array_equal(kernel, kernel.T)
    assert kernel.sum(axis=0) @ offsets**2 == pytest.approx(4, rel=1e-3)


def test_anisotropic_kernel_turns_from_x_to_y():
    """Assert the covariance of sigmas 3 and 1 at 30 degrees: 9 c^2 + s^2 = 7, 9 s^2 + c^2 = 3, 8 s c = 3.4641."""
    kernel = gaussian_kernel("anisotropic", 35, 3.0, 1.0, math.pi / 6, 1.0).astype(float)
    offsets = np.arange(35) - 17
    assert kernel.sum(axis=0) @ offsets**2 == pytest.approx(7, rel=1e-3)  # rows summed away: along x
    assert kernel.sum(axis=1) @ offsets**2 == pytest.approx(3, rel=1e-3)
    assert offsets @ kernel @ offsets == pytest.approx(3.4641, rel=1e-3)


def test_sinc_kernel_is_a_bessel_function():
    """Assert the ratio to the center, 2 J1(c r) / (c r): J1(2) = 0.576725 at r = 1, J1(4) / 2 = -0.033022 at r = 2."""
    kernel = sinc_kernel(5, 2.0)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert kernel[2, 3] / kernel[2, 2] == pytest.approx(0.576725, abs=1e-5)
    assert kernel[0, 2] / kernel[2, 2] == pytest.approx(-0.033022, abs=1e-5)


@pytest.mark.parametrize("cutoff", [math.pi / 5, math.pi / 3, 1.8])
@pytest.mark.parametrize("direction", [0.0, 0.4, math.pi / 4])
def test_sinc_kernel_cuts_off(cutoff, direction):
    """Assert that frequencies below the cutoff pass and those above are blocked, equally in every direction."""
    kernel = sinc_kernel(41, cutoff)

    def response(fraction: float) -> float:
        omega = fraction * cutoff
        return frequency_response(kernel, omega * math.cos(direction), omega * math.sin(direction))

    assert response(0.5) == pytest.approx(1, abs=0.1)
    assert response(1.0) == pytest.approx(0.5, abs=0.12)
    assert response(1.6) == pytest.approx(0, abs=0.1)


# Operations


def test_blur_of_a_point_is_the_kernel_at_the_right_scale():
    """Assert that sigma 4 with 25 taps at a quarter of the pixels is sigma 1 with 7 taps, separable or not."""
    point = np.zeros((11, 13, 3), np.float32)
    point[5, 6] = 1
    for kind, sigma_y, rotation in (("isotropic", 4.0, 0.0), ("anisotropic", 6.0, 0.5)):
        expected = gaussian_kernel(kind, 7, 1.0, sigma_y / 4, rotation, 1.0)
        blurred = Blur(kind, 25, 4.0, sigma_y, rotation, 1.0).run(point, density=0.25)
        for channel in range(3):
            np.testing.assert_allclose(blurred[2:9, 3:10, channel], expected, atol=1e-6)


def test_blur_has_three_taps_at_least():
    """Assert that a 7 tap kernel at 1/16 of the pixels still reaches the neighbors."""
    point = np.zeros((5, 5, 3), np.float32)
    point[2, 2] = 1
    blurred = Blur("isotropic", 7, 16.0, 16.0, 0.0, 1.0).run(point, density=1 / 16)
    assert np.count_nonzero(blurred[..., 0]) == 9


def test_sinc_at_a_coarse_picture_does_nothing():
    """Assert that a cutoff of pi / 2 is above what half of the pixels can hold."""
    picture = np.random.default_rng(0).random((6, 7, 3), dtype=np.float32)
    np.testing.assert_array_equal(Sinc(9, math.pi / 2).run(picture, density=0.5), picture)
    assert not np.array_equal(Sinc(9, math.pi / 2).run(picture, density=1.0), picture)


@pytest.mark.parametrize(
    ("scale", "side", "expected_side", "expected_density"),
    [
        (1 / 16, 512, 32, 1.0),
        (1 / 16, 256, 32, 1.0),  # the same small face
        (1 / 16, 1024, 64, 2.0),
        (1 / 2, 128, 128, 0.5),  # 256 px would be more than there are
        (1.5, 128, 192, 0.25),
        (1.0, 128, 128, 0.25),
    ],
)
def test_resize_at_other_sizes(scale, side, expected_side, expected_density):
    """Assert the size of the intermediate picture, and its pixels per pixel of the 512 px chain, by hand."""
    picture = np.zeros((side, side, 3), np.float32)
    resized, density = Resize(scale, "area").run(picture, (side, side))
    assert resized.shape == (expected_side, expected_side, 3)
    assert density == pytest.approx(expected_density)


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_gaussian_noise_statistics(density):
    """Assert mean 0, the stated standard deviation, and independent channels, within 5 standard errors."""
    picture = np.full((120, 130, 3), 0.5, np.float32)
    residual = (Noise("gaussian", 20.0, gray=False, seed=1).run(picture, density) - 0.5) * 255
    sigma, count = 20 * density, residual.size
    assert abs(residual.mean()) < 5 * sigma / math.sqrt(count)
    assert residual.std() == pytest.approx(sigma, rel=5 / math.sqrt(2 * count))
    correlation = np.corrcoef(residual.reshape(-1, 3).T)
    assert np.abs(correlation[np.triu_indices(3, 1)]).max() < 5 / math.sqrt(count / 3)


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_gray_noise_is_equal_in_all_channels(kind):
    """Assert one value for three channels, also over a colored picture."""
    picture = np.broadcast_to(np.float32([0.3, 0.5, 0.6]), (20, 30, 3)).copy()
    strength = {"gaussian": 5.0, "poisson": 0.5}[kind]
    residual = Noise(kind, strength, gray=True, seed=2).run(picture, 1.0) - picture
    assert residual.std() > 0.005
    np.testing.assert_allclose(residual[..., :1].repeat(3, axis=2), residual, atol=1e-6)


def test_poisson_variance_is_proportional_to_intensity():
    """Assert the variance strength^2 x intensity / 256 at three intensities."""
    for intensity in (0.1, 0.25, 0.64):
        picture = np.full((150, 160, 3), intensity, np.float32)
        residual = Noise("poisson", 1.5, gray=False, seed=3).run(picture, 1.0) - picture
        assert residual.var() == pytest.approx(1.5**2 * intensity / 256, rel=5 * math.sqrt(2 / residual.size))


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_is_the_codec_at_that_quality(quality):
    """Assert agreement with another encoder at that quality and its chroma sampling, and less at a neighboring one."""
    image = portrait(72, 88)

    def other_encoder(quality: int) -> np.ndarray:
        code = io.BytesIO()
        Image.fromarray(image).save(code, "JPEG", quality=quality, subsampling="4:2:0")
        return np.asarray(Image.open(code).convert("RGB"))

    ours = apply(image, DegradationParams("test", (Jpeg(quality),)))
    at_quality, below = (np.abs(ours.astype(int) - other_encoder(q)).mean() for q in (quality, quality - 10))
    assert at_quality < 0.2 < below


def test_jpeg_keeps_the_channels_in_order():
    """Assert that red stays red and blue stays blue."""
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16, 0] = image[:, 16:, 2] = 255
    degraded = apply(image, DegradationParams("test", (Jpeg(90),))).astype(int)
    assert np.abs(degraded - image)[:, [*range(12), *range(20, 32)]].max() < 5  # chroma runs over the border


# Values


@pytest.mark.parametrize("preset", PRESETS)
def test_replay_is_equal_to_the_bit(preset):
    """Assert that a degradation applied again, from JSON and to a PIL picture, gives the same bytes each time."""
    image = portrait(62, 75)
    original = image.copy()
    for seed in range(6):
        params = draw(preset, seed)
        first = apply(image, params)
        np.random.standard_normal(3)  # noqa: NPY002 - the global generator plays no part
        np.testing.assert_array_equal(apply(image, params), first)
        np.testing.assert_array_equal(apply(image, DegradationParams.from_json(params.to_json())), first)
        picture = apply(Image.fromarray(image), params)
        assert isinstance(picture, Image.Image)
        np.testing.assert_array_equal(np.asarray(picture), first)
    np.testing.assert_array_equal(image, original)


@pytest.mark.parametrize("preset", PRESETS)
def test_json_round_trip_is_exact(preset):
    """Assert equal values after JSON, for every number drawn, and equal values from equal generators."""
    for seed in range(30):
        params = draw(preset, seed)
        assert DegradationParams.from_json(params.to_json()) == params
        assert draw(preset, seed) == params
        assert hash(draw(preset, seed)) == hash(params)
    assert (draw(preset, 1) != draw(preset, 2)) == (preset != "clean")


def test_clean_changes_nothing():
    """Assert that the clean preset gives the picture's own bytes back."""
    image = portrait(62, 75)
    np.testing.assert_array_equal(apply(image, draw("clean", 3)), image)


@pytest.mark.parametrize("gray", [False, True])
def test_two_pictures_get_the_same_noise(gray):
    """Assert the same residual on two pictures to rounding; a Poisson residual up to the root of the intensity."""
    dark, bright = np.full((40, 50, 3), 80, np.uint8), np.full((40, 50, 3), 160, np.uint8)
    density = 40 / 512
    gaussian = DegradationParams("test", (Noise("gaussian", 8 / density, gray, seed=5),))
    on_dark, on_bright = (apply(image, gaussian).astype(int) - image for image in (dark, bright))
    assert on_dark.std() == pytest.approx(8, rel=0.1)
    assert np.abs(on_dark - on_bright).max() <= 1
    poisson = DegradationParams("test", (Noise("poisson", 1 / density, gray, seed=5),))
    on_dark, on_bright = (apply(image, poisson).astype(int) - image for image in (dark, bright))
    assert np.abs(on_dark * math.sqrt(2) - on_bright).max() <= 0.5 * math.sqrt(2) + 0.5 + 1e-6


@pytest.mark.parametrize("preset", PRESETS)
def test_a_whole_chain_treats_two_pictures_alike(preset):
    """Assert that what the chain leaves on two flat pictures of different brightness is the same pattern."""
    for seed in range(3):
        params = draw(preset, seed)
        # without the codec, which rounds each picture in its own way
        params = DegradationParams("test", tuple(op for op in params.operations if not isinstance(op, Jpeg)))
        first, second = (apply(np.full((60, 70, 3), level, np.uint8), params).astype(float) for level in (110, 130))
        first, second = first - first.mean(), second - second.mean()
        if first.std() > 2:  # rounding to bytes hides weaker noise
            assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.95


# Presets


def test_kernel_kinds_come_with_their_probabilities():
    """Assert the frequencies of Real-ESRGAN's kernels in its first pass, within 4 standard deviations."""
    count = 1500
    first = [draw("real_esrgan", seed).operations[0] for seed in range(count)]
    kinds = Counter("sinc" if isinstance(blur, Sinc) else blur.kind for blur in first)
    shares = (0.9 * 0.45, 0.9 * 0.25, 0.9 * 0.12, 0.9 * 0.03, 0.9 * 0.12, 0.9 * 0.03, 0.1)
    for kind, probability in zip((*KERNEL_KINDS, "sinc"), shares, strict=True):
        tolerance = 4 * math.sqrt(probability * (1 - probability) / count)
        assert kinds[kind] / count == pytest.approx(probability, abs=tolerance), kind


@pytest.mark.parametrize("preset", PRESETS)
def test_draws_lie_in_the_preset(preset):
    """Assert that taps, sigmas, noise and JPEG qualities lie between the ends that the preset states."""
    passes = PRESETS[preset].passes
    for seed in range(100):
        operations = draw(preset, seed).operations
        noises = [op for op in operations if isinstance(op, Noise)]
        jpegs = [op for op in operations if isinstance(op, Jpeg)]
        assert len(noises) == len(jpegs) == len(passes)
        for ranges, noise, jpeg in zip(passes, noises, jpegs, strict=True):
            low, high = ranges.gaussian if noise.kind == "gaussian" else ranges.poisson
            assert low <= noise.strength <= high
            assert ranges.jpeg[0] <= jpeg.quality <= ranges.jpeg[1]
        for blur in (op for op in operations if isinstance(op, Blur)):
            assert min(r.taps[0] for r in passes) <= blur.taps <= max(r.taps[1] for r in passes)
            for sigma in (blur.sigma_x, blur.sigma_y):
                assert min(r.sigma[0] for r in passes) <= sigma <= max(r.sigma[1] for r in passes)


def test_final_sinc_comes_before_and_after_the_last_jpeg():
    """Assert that four in five second-order chains end with a sinc, half of these before the JPEG."""
    endings = Counter()
    for seed in range(500):
        names = [type(op).__name__ for op in draw("real_esrgan", seed).operations[-4:]]
        endings[" ".join(names)] += 1
    before, after = endings["Resize Sinc Jpeg Resize"], endings["Jpeg Resize Sinc Resize"]
    assert before / 500 == pytest.approx(0.4, abs=0.09)
    assert after / 500 == pytest.approx(0.4, abs=0.09)
    assert not any(isinstance(op, Sinc) for seed in range(50) for op in draw("codeformer", seed).operations)


@pytest.mark.parametrize("side", [64, 128, 512])
def test_severe_is_a_face_of_24_to_40_pixels(side):
    """Assert the size of the smallest picture of the chain's end at every input size."""
    picture = np.zeros((side, side, 3), np.float32)
    for seed in range(40):
        final = [op for op in draw("severe", seed).operations if isinstance(op, Resize)][-2]
        assert 24 <= final.run(picture, (side, side))[0].shape[0] <= 40


def test_looks_the_same_at_another_size():
    """Assert that degrading, then shrinking, is close to shrinking, then degrading (noise and JPEG left out)."""
    large = portrait(512, 512)
    small = cv2.resize(large, (256, 256), interpolation=cv2.INTER_AREA)
    for seed in range(4):
        operations = tuple(op for op in draw("severe", seed).operations if not isinstance(op, Noise | Jpeg))
        params = DegradationParams("test", operations)
        shrunk = cv2.resize(apply(large, params), (256, 256), interpolation=cv2.INTER_AREA)
        assert psnr(shrunk, apply(small, params)) > 32


@pytest.mark.parametrize(("height", "width"), [(128, 128), (151, 112)])
def test_psnr_falls_with_severity(height, width):
    """Assert mild, medium, severe in this order and at least 2 dB apart on drawn portraits."""
    pictures = [portrait(height, width, seed) for seed in range(16)]
    mild, medium, severe = (mean_psnr(pictures, preset) for preset in ("mild", "medium", "severe"))
    assert mild > medium + 2
    assert medium > severe + 2


def test_psnr_falls_with_severity_on_heads(rendered_heads):
    """Assert the classes of severity on rendered heads of 128 px: about 34, 28 and 23 dB."""
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(rendered_heads.glob("images/*/*.webp"))]
    assert len(pictures) == 32
    mild, medium, severe = (mean_psnr(pictures, preset) for preset in ("mild", "medium", "severe"))
    assert 32 < mild < 36
    assert 26 < medium < 29.5
    assert 21.5 < severe < 24.5
    assert mild > medium + 2
    assert medium > severe + 2


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("height", "width"), [(33, 47), (128, 96), (5, 9), (1, 3)])
def test_output_has_the_size_of_the_input(preset, height, width):
    """Assert the size for odd, unequal and tiny pictures."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for seed in range(4):
        degraded = apply(image, draw(preset, seed))
        assert degraded.shape == image.shape
        assert degraded.dtype == np.uint8


# Bad input


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 9, 3), np.float32),
        np.zeros((8, 9), np.uint8),
        np.zeros((8, 9, 1), np.uint8),
        np.zeros((8, 9, 4), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
        Image.new("L", (9, 8)),
        Image.new("RGBA", (9, 8)),
    ],
)
def test_other_images_are_refused(image):
    """Assert one line that names what was given and what is accepted."""
    with pytest.raises(ValueError, match=r"image is .*expected an RGB image"):
        apply(image, draw("mild"))


def test_unknown_preset_lists_the_known_ones():
    """Assert that the message names every preset."""
    with pytest.raises(ValueError, match=r"'harsh'.*mild, medium, severe, real_esrgan, codeformer"):
        draw("harsh")


def changed(**values: object) -> str:
    """JSON of one blur with some of its fields replaced."""
    blur = {"operation": "blur", "kind": "isotropic", "taps": 7, "sigma_x": 1.0, "sigma_y": 1.0, "rotation": 0.0}
    return json.dumps({"preset": "test", "operations": [{**blur, "shape": 1.0, **values}]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not JSON"),
        ("[]", "'preset' and 'operations'"),
        ('{"preset": "mild"}', "'preset' and 'operations'"),
        ('{"preset": 3, "operations": []}', "string 'preset'"),
        ('{"preset": "mild", "operations": [3]}', "expected an 'operation'"),
        ('{"preset": "mild", "operations": [{"operation": "sharpen"}]}', "expected an 'operation'"),
        ('{"preset": "mild", "operations": [{"operation": ["jpeg"]}]}', "expected an 'operation'"),
        ('{"preset": "mild", "operations": [{"operation": "jpeg"}]}', "expected .'quality'."),
        ('{"preset": "mild", "operations": [{"operation": "jpeg", "quality": 101}]}', "1 to 100"),
        ('{"preset": "mild", "operations": [{"operation": "jpeg", "quality": 90.5}]}', "expected int"),
        ('{"preset": "mild", "operations": [{"operation": "resize", "scale": 0, "mode": "area"}]}', "above 0"),
        (changed(sigma_x="2"), "expected float"),
        (changed(sigma_y=float("nan")), "above 0"),
        (changed(rotation=float("inf")), "finite"),
        (changed(taps=8), "odd"),
        (changed(taps=True), "expected int"),
        (changed(kind="box"), "expected one of isotropic"),
        (changed(extra=1), "has fields"),
    ],
)
def test_malformed_json_is_refused(text, message):
    """Assert a ValueError that names what is wrong."""
    with pytest.raises(ValueError, match=message):
        DegradationParams.from_json(text)


def test_whole_numbers_may_be_written_without_a_point():
    """Assert that 1 is read for 1.0, since other JSON writers shorten it."""
    assert DegradationParams.from_json(changed(sigma_x=1)) == DegradationParams.from_json(changed())
