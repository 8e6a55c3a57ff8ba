"""Seven views of the face in a photo: python examples/views.py PHOTO [PIPELINE]."""

import sys

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, read_face
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.provenance import save_marked

photo, *pipeline = sys.argv[1:]
pipe = NVBFacePipeline.from_pretrained(*pipeline or [DEFAULT_CHECKPOINT])
face = read_face(photo, pipe)
views = pipe(face, cameras=orbit_cameras(7, yaw_range_deg=(-45, 45))).images
for number, view in enumerate(views):
    save_marked(view, f"view_{number:02d}.png")
