"""The examples as a user runs them, on a tiny pipeline: their files hold what the pipeline's own call makes."""

import runpy
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SIDE, tiny_pipeline
from PIL import Image, ImageSequence

from nvb_diffusers import NVBFacePipeline, provenance, read_face
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.person import read_person
from nvb_diffusers.provenance import mark_image, says_synthetic

PHOTO, SMALL = (ROOT / f"examples/inputs/{name}.jpg" for name in ("astronaut", "astronaut_small"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs an example on a photo in an empty folder, with the same noise as the pipeline that comes back with it."""
    monkeypatch.chdir(tmp_path)

    def load(*args, real=NVBFacePipeline.from_pretrained):
        loaded = real(*args)
        torch.manual_seed(5)
        return loaded

    def run_example(name, photo, appearance=False, words=None):
        pipe = tiny_pipeline(appearance=appearance)
        pipe.register_to_config(default_num_inference_steps=2)
        pipe.save_pretrained("pipeline")
        monkeypatch.setattr(sys, "argv", words or [name, str(photo), "pipeline"])
        monkeypatch.setattr(NVBFacePipeline, "from_pretrained", load)
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return load("pipeline")

    return run_example


def pixels(image):
    return np.asarray(Image.open(image) if isinstance(image, str) else image).astype(int)


def assert_written(names, images):
    """Assert that files hold these images, to the bit, with their marks."""
    for name, image in zip(names, images, strict=True):
        assert pixels(image).shape == (SIDE, SIDE, 3)
        assert np.array_equal(pixels(name), pixels(mark_image(image)))
        assert says_synthetic(name)


def test_views(run):
    """Assert the seven views from yaw -45 to 45 in their order."""
    pipe = run("views.py", PHOTO)
    images = pipe(read_face(PHOTO, pipe), cameras=orbit_cameras(7, (-45, 45))).images
    assert_written([f"view_{number:02d}.png" for number in range(7)], images)


@pytest.mark.parametrize("name", ["views.py", "restore.py", "orbit_video.py", "what_is_invented.py"])
def test_what_it_is_given_stays(run, tmp_path, name):
    """Assert that a photo with the name of a result is refused, and is as it was."""
    for result in ("view_02.png", "restored.png", "orbit.gif", "what_is_invented.png"):
        Image.open(SMALL).save(tmp_path / result)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    written = {"views.py": "view_02.png", "restore.py": "restored.png", "orbit_video.py": "orbit.gif"}
    with pytest.raises(ValueError, match="is the photo itself"):
        run(name, written.get(name, "what_is_invented.png"))
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_restore(run):
    """Assert the photo's own view, restored."""
    pipe = run("restore.py", PHOTO)
    assert_written(["restored.png"], pipe.restore(read_face(PHOTO, pipe)).images)


def test_orbit_video(run):
    """Assert 24 views there and back, in the 256 colors of a GIF, which takes little of their contrast."""
    pipe = run("orbit_video.py", PHOTO)
    views = pipe(read_face(PHOTO, pipe), cameras=orbit_cameras(24, (-40, 40))).images
    with Image.open("orbit.gif") as video:
        frames = [pixels(frame.convert("RGB")) for frame in ImageSequence.Iterator(video)]
    assert len(frames) == 24 + 22
    for frame, view in zip(frames, [*views, *views[-2:0:-1]], strict=True):
        assert np.abs(frame - pixels(mark_image(view))).mean() < 0.25 * pixels(view).std()
    assert says_synthetic("orbit.gif")


@pytest.mark.parametrize("appearance", [True, False])
def test_what_is_invented(run, appearance, monkeypatch):
    """Assert rows of the first seed's views, of their evidence where there is any, and of maps up to the hottest."""
    monkeypatch.setattr(provenance, "mark_image", lambda image, mark: image)  # colors are read from it below
    pipe = run("what_is_invented.py", PHOTO, appearance)
    out = pipe(read_face(PHOTO, pipe), cameras=orbit_cameras(3, (-30, 30)), output_type="pt")
    views = out.images.movedim(1, -1).numpy()  # (V, S, S, 3)
    assert says_synthetic("what_is_invented.png")
    sheet = pixels("what_is_invented.png") / 255
    rows = sheet.reshape(-1, SIDE, 3, SIDE, 3).swapaxes(1, 2)  # (rows, V, S, S, 3)
    assert len(rows) == 2 + appearance
    assert np.abs(rows[0] - views).max() < 1 / 255
    maps = (rows[-1] * 255).round().astype(int)
    assert (maps == [128, 0, 0]).all(axis=-1).any()
    assert len(np.unique(maps.reshape(-1, 3), axis=0)) > 64
    if appearance:
        evidence = 2 * rows[1] - views.mean(axis=-1, keepdims=True)
        seen, mirrored, invented = evidence.reshape(-1, 3).T
        assert np.abs(evidence - out.evidence.movedim(1, -1).numpy()).max() < 2 / 255
        assert np.abs(seen + mirrored + invented - 1).max() < 6 / 255
        assert min(part.max() - part.min() for part in (seen, mirrored, invented)) > 0.02


def test_several_photos(run, monkeypatch, capsys):
    """Assert seven views of one person from two photos, which are those of the call, and what is said of them."""
    words = ["several_photos.py", str(PHOTO), str(SMALL), "--pipeline", "pipeline"]
    pipe = run("several_photos.py", PHOTO, appearance=True, words=words)
    cameras = orbit_cameras(7, (-45, 45))
    out = pipe(conditioning=read_person(pipe, [read_face(photo, pipe) for photo in (PHOTO, SMALL)], cameras))
    assert_written([f"view_{number:02d}.png" for number in range(7)], out.images)
    assert f"invented: {out.evidence[:, 2].mean():.0%} of all pixels" in capsys.readouterr().out
