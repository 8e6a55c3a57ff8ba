"""The marks of synthetic pictures: found after damage, in no other picture, and in every file that leaves."""

import io

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from nvb_diffusers import provenance
from nvb_diffusers.cli import main
from nvb_diffusers.provenance import find_marks, mark_image, save_marked, save_marked_video, says_synthetic

PHOTO = ROOT / "examples/inputs/astronaut.jpg"
PATTERN = [-0.0611, 0.3947, 0.1742, -0.8958, -0.5787, -0.8343]


@pytest.fixture(scope="module")
def pictures():
    """Four pictures of 256 px of different kinds: a face, a room, soft noise, and a plain color."""
    photo = Image.open(PHOTO).convert("RGB")
    face, room = photo.crop((160, 0, 416, 256)), photo.crop((0, 0, 512, 512)).resize((256, 256))
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    soft = Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC)
    return [face, room, soft, Image.new("RGB", (256, 256), (90, 140, 200))]


def damaged(image):
    """Cropped, halved, and then saved as JPEG."""
    small = image.crop((13, 13, 243, 243)).resize((115, 115), Image.Resampling.LANCZOS)
    small.save(content := io.BytesIO(), "JPEG", quality=75)
    return Image.open(content)


def test_both_marks_are_found_after_all_damages_together(pictures):
    """Assert both, of every kind of picture, at once and after a crop, half the size and JPEG."""
    for picture in pictures:
        for image in (mark_image(picture), damaged(mark_image(picture))):
            assert find_marks(image).names == ["visible", "invisible"]


def test_no_unmarked_picture_is_accused(pictures):
    """Assert no mark in the same pictures before, nor in noise, nor in a tiny one."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 200, 3), dtype=np.uint8))
    for picture in (*pictures, *map(damaged, pictures), noise, noise.resize((9, 7)), Image.new("1", (64, 64))):
        assert find_marks(picture).names == []


def test_the_invisible_mark_alone_changes_little_everywhere(pictures):
    """Assert at least 38 dB, no plate, and that the given picture and one marked with nothing stay as they are."""
    for picture in pictures:
        before = np.asarray(picture).copy()
        marked = mark_image(picture, "invisible")
        error = np.mean((np.asarray(marked).astype(float) - before) ** 2)
        assert 0 < error < 255**2 / 10**3.8
        assert find_marks(marked).names == ["invisible"]
        assert np.array_equal(np.asarray(picture), before)
        assert mark_image(picture, None) is picture


def test_the_plate_survives_a_crop_to_80_percent():
    """Assert that the plate alone differs from the invisible mark, and lies in the middle 80 % of any shape."""
    for size in ((256, 256), (300, 200), (64, 128)):
        picture = Image.new("RGB", size, (200, 180, 160))
        both, one = (np.asarray(mark_image(picture, mark)).astype(int) for mark in provenance.MARKS)
        rows, columns = np.nonzero(np.abs(both - one).sum(axis=2))
        for places, side in ((rows, size[1]), (columns, size[0])):
            assert 0.1 * side <= places.min() < places.max() < 0.9 * side


def test_the_pattern_is_the_same_on_every_machine():
    """Assert values of the pattern, which pictures that are out there depend on."""
    pattern = provenance._pattern()
    assert pattern.shape == (256, 256)
    assert pattern.std() == pytest.approx(1)
    assert pattern[:2, :3].ravel() == pytest.approx(PATTERN, abs=1e-3)


def test_files_say_that_they_are_synthetic(pictures, tmp_path):
    """Assert marks and metadata of each format, and neither where none was asked for."""
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.mp4"):
        for mark, names in (("visible+invisible", ["visible", "invisible", "metadata"]), (None, [])):
            path = tmp_path / name
            if path.suffix in (".gif", ".mp4"):
                save_marked_video(pictures[:2] * 2, path, 12, mark)
            else:
                save_marked(pictures[0], path, mark)
            assert says_synthetic(path) is bool(names)
            assert main(["verify", str(path)]) == (0 if names else 1)
    with Image.open(tmp_path / "a.gif") as video:
        assert (video.n_frames, video.info["loop"], video.info["duration"]) == (4, 0, 80)


def test_verify_tells_of_each_file(pictures, tmp_path, capsys):
    """Assert a line for each file, exit status 1 where one has no mark, and one line for what is no picture."""
    save_marked(pictures[0], tmp_path / "ours.png")
    pictures[0].save(tmp_path / "other.png")
    (tmp_path / "text.mp4").write_text("no video")
    files = [str(tmp_path / name) for name in ("ours.png", "other.png")]
    assert main(["verify", *files]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{files[0]}: visible, invisible, metadata (visible ")
    assert second.startswith(f"{files[1]}: no mark (")
    for name, line in (("text.mp4", "cannot read a frame of"), ("absent.png", "no such file")):
        assert main(["verify", str(tmp_path / name)]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert line in error


def test_bars_are_no_mark():
    """Assert that a photo on plain ground of any shade, where a correlation is rounding alone, is not accused."""
    photo = Image.open(ROOT / "examples/inputs/astronaut.jpg").convert("RGB").resize((288, 288))
    for shade in (0, 24, 128, 255):
        for size in ((512, 288), (388, 388), (288, 512)):
            picture = Image.new("RGB", size, (shade, shade, shade))
            picture.paste(photo, ((size[0] - 288) // 2, (size[1] - 288) // 2))
            found = find_marks(picture)
            assert found.visible < 0.5, (shade, size)
            assert find_marks(mark_image(picture)).visible > 0.8


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (7, 7)])
def test_a_line_of_pixels_has_no_mark(tmp_path, capsys, size):
    """Assert exit 1 for pictures of which half the size is nothing, and what marks need."""
    image = Image.new("RGB", size, (90, 80, 70))
    image.save(tmp_path / "line.png")
    assert main(["verify", str(tmp_path / "line.png")]) == 1
    assert "no mark" in capsys.readouterr().out
    with pytest.raises(ValueError, match="but marks need 64"):
        mark_image(image)


def test_marks_are_checked(pictures):
    """Assert one clear line for a mark that does not exist, and for a picture that cannot hold one."""
    with pytest.raises(ValueError, match=r"`mark` is 'loud', but 'visible\+invisible', 'invisible' or None"):
        mark_image(pictures[0], "loud")
    with pytest.raises(ValueError, match="63x80 px, but marks need 64"):
        mark_image(Image.new("RGB", (63, 80)))


def test_a_name_stays_in_its_line(tmp_path, capsys):
    """Assert that no name makes a second line of the result, which could say something of another file."""
    path = tmp_path / "one\nother.png: visible.png"
    Image.new("RGB", (64, 64)).save(path)
    assert main(["verify", str(path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert r"one\nother.png: visible.png: no mark" in line
