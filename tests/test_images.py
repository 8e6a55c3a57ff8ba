"""A photo is read by one rule at every door: upright, in sRGB, of 8 bits, alpha over gray, damages named."""

import os
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, load_script
from PIL import Image, ImageCms

from nvb_diffusers import face_crop, read_face
from nvb_diffusers.data.datasets import FaceDataset, SampleTransform
from nvb_diffusers.data.images import is_photo, load_photo, photo_size
from nvb_diffusers.data.records import resize_image, write_records
from nvb_diffusers.pipeline_inputs import read_image

ASTRONAUT = ROOT / "examples/inputs/astronaut.jpg"
SIDE = 64
COLORS = np.array([[[200, 40, 40], [40, 160, 60]], [[50, 70, 190], [220, 200, 60]]], np.uint8)  # of the quadrants
TO_XYZ = {  # columns: red, green and blue, under D50
    "sRGB": [[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]],
    "Display P3": [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]],
}


def quadrants(colors):
    """Pixels (64, 64, ...) of four quadrants (2, 2, ...)."""
    return np.repeat(np.repeat(colors, SIDE // 2, 0), SIDE // 2, 1)


def wide_profile() -> bytes:
    """An ICC profile with the primaries of Display P3 and a gamma of 2.2."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    text = b"Display P3\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(79)}
    tags[b"cprt"], tags[b"wtpt"] = b"text\0\0\0\0none\0", xyz([0.9642, 1.0, 0.8249])
    for name, column in zip("rgb", np.transpose(TO_XYZ["Display P3"]), strict=True):
        tags[f"{name}XYZ".encode()] = xyz(column)
        tags[f"{name}TRC".encode()] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">I4sI4s4s4s", 132 + 12 * len(tags) + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


def wide_to_srgb(colors):
    """What colors of `wide_profile` are in sRGB, by the definitions of both."""
    linear = (colors / 255) ** 2.2 @ (np.linalg.inv(TO_XYZ["sRGB"]) @ TO_XYZ["Display P3"]).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def write_photo(kind, folder):
    """A square photo of some kind: its path and the colors (2, 2, 3) that everyone should see in it."""
    image, colors = Image.fromarray(quadrants(COLORS)), COLORS.astype(float)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("00001.jpg" if kind in ("turned", "cmyk") else "00001.png")
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn clockwise
        image.rotate(90).save(path, exif=exif, quality=98, subsampling=0)
    elif kind == "transparent":
        alpha = quadrants(np.array([[255, 0], [255, 128]], np.uint8))
        image.putalpha(Image.fromarray(alpha))
        image.save(path)
        colors[0, 1], colors[1, 1] = 128, (128 * 127 + colors[1, 1] * 128) / 255
    elif kind == "palette":
        image.quantize(8).save(path, transparency=0)
        index = quadrants(np.zeros((2, 2), np.uint8)) + np.asarray(image.quantize(8))
        colors[index[:: SIDE // 2, :: SIDE // 2] == 0] = 128
    elif kind == "deep":
        gray = np.array([[1000, 20000], [40000, 65535]])
        Image.fromarray(quadrants(gray.astype(np.uint16))).save(path)
        colors = np.repeat((gray // 257).astype(float)[..., None], 3, -1)
    elif kind == "cmyk":
        image.convert("CMYK").save(path, quality=98, subsampling=0)
    elif kind == "wide":
        image.save(path, icc_profile=wide_profile())
        colors = wide_to_srgb(colors)
        assert np.abs(colors - COLORS).max() > 15  # those who leave the profile out are seen
    return path, colors


def through_path(path, tmp_path):
    return read_image(path, SIDE)


def through_pil(path, tmp_path):
    with Image.open(path) as image:
        return read_image(image, SIDE)


def through_read_face(path, tmp_path):
    pipe = SimpleNamespace(sample_size=SIDE)
    crop = SimpleNamespace(image=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(face_crop, "crop_face", lambda image, size, **options: SimpleNamespace(image=image))
        crop = read_face(path, pipe)
    return crop


def through_resizing(path, tmp_path):
    resize_image(path, tmp_path / "resized.png", SIDE)
    return Image.open(tmp_path / "resized.png")


def through_a_prepared_set(path, tmp_path):
    arguments = ["--image_dir", path.parent, "--output_dir", tmp_path / "ffhq", "--size", SIDE, "--format", "png"]
    assert load_script("prepare_ffhq").main([*map(str, arguments), "--validation", "0", "--test", "0"]) == 0
    return Image.open(tmp_path / "ffhq/images/000001/00.png")


def in_a_set(path, tmp_path):
    """A set that holds the photo's own bytes."""
    target = tmp_path / "set/images/1" / path.name
    target.parent.mkdir(parents=True)
    target.write_bytes(path.read_bytes())
    write_records(tmp_path / "set", [{"file_name": f"1/{path.name}", "identity": 1, "view": 0, "split": "train"}])
    return tmp_path / "set"


def through_training(path, tmp_path, **options):
    transform = SampleTransform(SIDE, (), flip=False)
    folder = in_a_set(path, tmp_path) if not options else tmp_path / "shards"
    pixel_values = FaceDataset(folder, "train", transform, **options)[0]["pixel_values"]
    return Image.fromarray(((pixel_values + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())


def through_shards(path, tmp_path):
    arguments = ["--data_dir", in_a_set(path, tmp_path), "--output_dir", tmp_path / "shards"]
    assert load_script("prepare_shards").main([*map(str, arguments)]) == 0
    return through_training(path, tmp_path, streaming=True)


DOORS = {name: door for name, door in globals().items() if name.startswith("through_")}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("kind", ["turned", "transparent", "palette", "deep", "cmyk", "wide"])
def test_every_door_shows_the_same_photo(kind, door, tmp_path):
    """Assert upright quadrants of the right colors, and no metadata that another program could apply once more."""
    path, colors = write_photo(kind, tmp_path / "photos")
    image = door(path, tmp_path)
    assert (image.mode, image.size, image.info.keys() & {"icc_profile", "exif"}) == ("RGB", (SIDE, SIDE), set())
    seen = np.asarray(image)[SIDE // 4 :: SIDE // 2, SIDE // 4 :: SIDE // 2].astype(float)
    np.testing.assert_allclose(seen, colors, atol=4 if path.suffix == ".jpg" else 1.5)


def test_a_profile_of_srgb_changes_nothing():
    """Assert that the profile which most photos carry costs no level of any color."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(np.asarray(load_photo(image)), pixels)
    assert "icc_profile" in image.info  # what was given is as it was


@pytest.mark.parametrize("profile", [b"no profile", wide_profile()[:200]])
def test_a_broken_profile_is_left_out(profile):
    """Assert that a photo with a broken profile is shown as if it had none."""
    image = Image.fromarray(quadrants(COLORS))
    image.info["icc_profile"] = profile
    np.testing.assert_array_equal(np.asarray(load_photo(image)), quadrants(COLORS))


def test_gray_with_a_profile_of_colors():
    """Assert that a gray photo with a profile of colors, as cameras write it, stays gray."""
    image = Image.new("L", (9, 7), 120)
    image.info["icc_profile"] = wide_profile()
    red, green, blue = load_photo(image).getpixel((3, 3))
    assert red == green == blue == pytest.approx(120, abs=3)


def test_a_decompression_bomb_is_one_line(tmp_path, monkeypatch):
    """Assert that a photo of far too many pixels is named, and one of many is read without a warning."""
    Image.new("L", (100, 100), 99).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6_000)
    assert load_photo(tmp_path / "bomb.png").size == (100, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    for read in (load_photo, photo_size):
        with pytest.raises(ValueError, match=r"cannot read image '.*bomb\.png': it is too large \("):
            read(tmp_path / "bomb.png")


def test_size_is_that_of_the_upright_photo(tmp_path):
    """Assert width and height of a photo stored on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert photo_size(tmp_path / "turned.jpg") == load_photo(tmp_path / "turned.jpg").size == (20, 30)


@pytest.mark.parametrize(("name", "expected"), [
    ("a.jpg", True), ("a.JPEG", True), ("a.webp", True), ("._a.jpg", False), (".DS_Store", False), ("Thumbs.db", False),
    ("a.json", False), (".a.png.part", False),
])  # fmt: skip
def test_what_counts_as_a_photo(tmp_path, name, expected):
    """Assert that suffixes count in either case, and what systems hide in folders does not."""
    assert is_photo(tmp_path / name) is expected


def test_exif_rotation_is_applied(tmp_path):
    """Assert that a picture stored on its side is read upright."""
    picture = Image.new("RGB", (30, 20), (200, 0, 0))
    picture.paste((0, 0, 200), (0, 0, 30, 10))  # blue above
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    loaded = load_photo(tmp_path / "turned.png")
    assert loaded.size == (30, 20)
    assert loaded.getpixel((15, 3)) == (0, 0, 200)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_become_rgb(mode):
    """Assert that a light gray picture of any mode is read as light gray."""
    loaded = load_photo(Image.new("L", (9, 7), 255).convert("RGB").convert(mode))
    assert (loaded.mode, loaded.size) == ("RGB", (9, 7))
    assert min(loaded.getpixel((4, 3))) > 250


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_gray(mode):
    """Assert that a see-through pixel is mid gray and an opaque one keeps its color."""
    picture = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    picture.paste((255, 255, 255, 255), (0, 0, 4, 8))
    loaded = load_photo(picture.convert(mode))
    assert loaded.getpixel((1, 1)) == (255, 255, 255)
    assert loaded.getpixel((6, 6)) == (128, 128, 128)


def test_sixteen_bit_gray_is_scaled(tmp_path):
    """Assert that half of 16 bits is half of 8 bits."""
    Image.fromarray(np.full((5, 6), 32896, np.uint16)).save(tmp_path / "deep.png")
    assert load_photo(tmp_path / "deep.png").getpixel((2, 2)) == (128, 128, 128)


def test_animation_gives_its_first_frame(tmp_path):
    """Assert that the first picture of a GIF is read."""
    frames = [Image.new("RGB", (10, 8), color) for color in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    red, green, _ = load_photo(tmp_path / "two.gif").getpixel((3, 3))
    assert red > 240 > 10 > green


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_photo_is_reduced(tmp_path, suffix):
    """Assert that a picture of 100 megapixels is read, without a warning, at the size asked for and in proportion."""
    Image.new("L", (12_500, 8_000), 99).save(tmp_path / f"huge.{suffix}")
    loaded = load_photo(tmp_path / f"huge.{suffix}", max_pixels=100_000)
    assert 80_000 < loaded.width * loaded.height <= 100_000
    assert loaded.width / loaded.height == pytest.approx(12.5 / 8, rel=0.01)
    assert loaded.getpixel((5, 5)) == (99, 99, 99)


def test_unreadable_files_are_named(tmp_path):
    """Assert that text, a cut-off picture and a missing file each give one ValueError with the file's name."""
    (tmp_path / "text.jpg").write_text("no picture")
    whole = ASTRONAUT.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"text\.jpg.*cannot decode"):
        load_photo(tmp_path / "text.jpg")
    with pytest.raises(ValueError, match=r"cut\.jpg.*cannot decode"):
        load_photo(tmp_path / "cut.jpg")
    with pytest.raises(ValueError, match=r"none\.jpg.*no such file"):
        load_photo(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="no 16-bit integers"):
        load_photo(Image.fromarray(np.ones((4, 4), np.float32)))


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    """Assert that what is no file is named and not waited for, at both doors."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", "/dev/stdin" if not os.path.isfile("/dev/stdin") else "/dev/null"):
        for read in (load_photo, photo_size):
            with pytest.raises(ValueError, match="a pipe or a device"):
                read(path)
