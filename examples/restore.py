"""The face in a photo, restored at its own view: python examples/restore.py PHOTO [PIPELINE]."""

import sys

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, read_face
from nvb_diffusers.provenance import save_marked

photo, *pipeline = sys.argv[1:]
pipe = NVBFacePipeline.from_pretrained(*pipeline or [DEFAULT_CHECKPOINT])
face = read_face(photo, pipe)
save_marked(pipe.restore(face).images[0], "restored.png")
