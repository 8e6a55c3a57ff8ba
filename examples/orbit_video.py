"""A video that swings around the face in a photo."""

from pathlib import Path

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, read_face
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.cli.photos import keep_photos
from nvb_diffusers.option_types import OneLineParser, a_path
from nvb_diffusers.provenance import save_marked_video

parser = OneLineParser(description=__doc__)
parser.add_argument("photo", type=a_path)
parser.add_argument("pipeline", nargs="?", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
args = parser.parse_args()
output = Path("orbit.gif")
keep_photos([args.photo], [output])

pipe = NVBFacePipeline.from_pretrained(args.pipeline)
face = read_face(args.photo, pipe)
views = pipe(face, cameras=orbit_cameras(24, (-40, 40)), view_batch_size=8).images
save_marked_video([*views, *views[-2:0:-1]], output, fps=12)
