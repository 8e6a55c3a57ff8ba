"""Seven views of the face in a photo."""

from pathlib import Path

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, read_face
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.cli.photos import keep_photos
from nvb_diffusers.option_types import OneLineParser, a_path
from nvb_diffusers.provenance import save_marked

parser = OneLineParser(description=__doc__)
parser.add_argument("photo", type=a_path)
parser.add_argument("pipeline", nargs="?", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
args = parser.parse_args()
outputs = [Path(f"view_{number:02d}.png") for number in range(7)]
keep_photos([args.photo], outputs)

pipe = NVBFacePipeline.from_pretrained(args.pipeline)
face = read_face(args.photo, pipe)
views = pipe(face, cameras=orbit_cameras(7, yaw_range_deg=(-45, 45))).images
for view, output in zip(views, outputs, strict=True):
    save_marked(view, output)
