"""Seven views of the face in a photo: python examples/views.py PHOTO [PIPELINE]."""

import sys

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.face_crop import crop_face, load_photo

photo, *pipeline = sys.argv[1:]
pipe = NVBFacePipeline.from_pretrained(*pipeline or [DEFAULT_CHECKPOINT])
face = crop_face(load_photo(photo), size=pipe.image_encoder.config.sample_size).image
views = pipe(face, cameras=orbit_cameras(7, yaw_range_deg=(-45, 45))).images
for number, view in enumerate(views):
    view.save(f"view_{number:02d}.png")
