"""Pictures of a run for the trackers that show some."""

from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image


def send_picture(accelerator: Accelerator, path: Path, step: int) -> None:
    """Give a picture to all trackers of the run that take pictures, under its file's name."""
    takers = [tracker for tracker in accelerator.trackers if hasattr(tracker, "log_images")]
    if not takers:
        return
    with Image.open(path) as image:
        pictures = np.asarray(image.convert("RGB"))[None]  # (1, H, W, 3)
    for tracker in takers:
        axes = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}  # which takes others unless told
        tracker.log_images({path.stem: pictures}, step=step, **axes)
