"""A video that swings around the face in a photo: python examples/orbit_video.py PHOTO [PIPELINE]."""

import sys

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, read_face
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.provenance import save_marked_video

photo, *pipeline = sys.argv[1:]
pipe = NVBFacePipeline.from_pretrained(*pipeline or [DEFAULT_CHECKPOINT])
face = read_face(photo, pipe)
views = pipe(face, cameras=orbit_cameras(24, (-40, 40)), view_batch_size=8).images
save_marked_video([*views, *views[-2:0:-1]], "orbit.gif", fps=12)
