"""Views of every face crop in a folder, shared among processes, one a GPU.

accelerate launch examples/batch_on_many_gpus.py FOLDER [PIPELINE]
"""

import sys
from pathlib import Path

from accelerate import PartialState

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.provenance import save_marked

folder, *pipeline = sys.argv[1:]
state = PartialState()
pipe = NVBFacePipeline.from_pretrained(*pipeline or [DEFAULT_CHECKPOINT]).to(state.device)
with state.split_between_processes(sorted(Path(folder).glob("*.png"))) as photos:
    for start in range(0, len(photos), 8):
        batch = photos[start : start + 8]
        images = pipe(batch, cameras=orbit_cameras(7, (-45, 45))).images
        for photo, views in zip(batch, images, strict=True):
            for number, view in enumerate(views):
                save_marked(view, f"{photo.stem}_{number:02d}.png")
