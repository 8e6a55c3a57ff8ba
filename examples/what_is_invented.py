"""Views of a face beside maps of what was invented in them: python examples/what_is_invented.py PHOTO [PIPELINE]."""

import sys

import cv2
from PIL import Image

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, read_face
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.data.images import to_images
from nvb_diffusers.uncertainty import sample_views

photo, *pipeline = sys.argv[1:]
pipe = NVBFacePipeline.from_pretrained(*pipeline or [DEFAULT_CHECKPOINT])
face = read_face(photo, pipe)
conditioning = pipe.encode(face, cameras=orbit_cameras(3, yaw_range_deg=(-30, 30)))
out = sample_views(pipe, conditioning, num_samples=6)
for number, (view, deviation) in enumerate(zip(to_images(out.samples[0] * 2 - 1), out.deviation, strict=True)):
    view.save(f"view_{number:02d}.png")
    heat = (deviation / out.deviation.max() * 255).byte().numpy()  # blue where the samples agree, red where they do not
    Image.fromarray(cv2.applyColorMap(heat, cv2.COLORMAP_JET)[..., ::-1]).save(f"invented_{number:02d}.png")
