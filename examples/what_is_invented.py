"""What is invented in views of a face, as one image.

Its rows: the views; over them what the photo shows in red, what its mirror image shows in green and what is invented in
blue, where the pipeline has an appearance model; and how far other seeds deviate, from blue to red.
"""

from pathlib import Path

import cv2
from diffusers.utils import make_image_grid
from PIL import Image

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, read_face
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.cli.photos import keep_photos
from nvb_diffusers.data.images import to_images
from nvb_diffusers.option_types import OneLineParser, a_path
from nvb_diffusers.provenance import save_marked
from nvb_diffusers.uncertainty import sample_views

parser = OneLineParser(description=__doc__)
parser.add_argument("photo", type=a_path)
parser.add_argument("pipeline", nargs="?", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
args = parser.parse_args()
output = Path("what_is_invented.png")
keep_photos([args.photo], [output])

pipe = NVBFacePipeline.from_pretrained(args.pipeline)
conditioning = pipe.encode(read_face(args.photo, pipe), cameras=orbit_cameras(3, yaw_range_deg=(-30, 30)))
views = pipe(conditioning=conditioning, output_type="pt")
images = to_images(2 * views.images - 1)
if views.evidence is not None:
    gray = views.images.mean(dim=1, keepdim=True)  # (V, 1, S, S)
    images += to_images(gray + views.evidence - 1)
deviation = sample_views(pipe, conditioning, num_samples=6).deviation
for heat in (deviation / deviation.max() * 255).byte().numpy():
    images.append(Image.fromarray(cv2.applyColorMap(heat, cv2.COLORMAP_JET)[..., ::-1]))
save_marked(make_image_grid(images, rows=len(images) // 3, cols=3), output)
