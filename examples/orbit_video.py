"""A video that swings around the face in a photo: python examples/orbit_video.py PHOTO [PIPELINE]."""

import sys

from diffusers.utils import export_to_gif

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, read_face
from nvb_diffusers.camera import orbit_cameras

photo, *pipeline = sys.argv[1:]
pipe = NVBFacePipeline.from_pretrained(*pipeline or [DEFAULT_CHECKPOINT])
face = read_face(photo, pipe)
views = pipe(face, cameras=orbit_cameras(24, (-40, 40)), view_batch_size=8).images
export_to_gif([*views, *views[-2:0:-1]], "orbit.gif", fps=12)
