"""The face in a photo, restored at its own view: python examples/restore.py PHOTO [PIPELINE]."""

import sys

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline
from nvb_diffusers.face_crop import crop_face, load_photo

photo, *pipeline = sys.argv[1:]
pipe = NVBFacePipeline.from_pretrained(*pipeline or [DEFAULT_CHECKPOINT])
face = crop_face(load_photo(photo), size=pipe.image_encoder.config.sample_size).image
pipe.restore(face).images[0].save("restored.png")
