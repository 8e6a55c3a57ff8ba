"""A small multi-view set in the project's format, made in the test."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from nvb_diffusers.camera import camera_from_angles


def write_small_set(folder: Path, identities: int = 6, views: int = 3, size: int = 64) -> Path:
    """Smooth colored pictures; the last identity is for test, the one before for validation, the others train."""
    rng = np.random.default_rng(0)
    lines = []
    for identity in range(identities):
        split = "train" if identity < identities - 2 else ("validation", "test")[identity - identities + 2]
        for view in range(views):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            name = f"{identity:06d}/{view:02d}.png"
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(path)
            camera = camera_from_angles(20.0 * view - 20, 3.0 * identity).tolist()
            record = {"file_name": name, "identity": identity, "view": view, "camera": camera, "split": split}
            lines.append(json.dumps(record))
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
