"""Views of one person from several photos: python examples/several_photos.py PHOTO PHOTO ... [--pipeline PIPELINE].

What one photo does not show, another may: less is invented than from one.
"""

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, read_face
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.option_types import OneLineParser
from nvb_diffusers.person import read_person
from nvb_diffusers.provenance import save_marked

parser = OneLineParser()
parser.add_argument("photos", nargs="+")
parser.add_argument("--pipeline", default=DEFAULT_CHECKPOINT)
args = parser.parse_args()

pipe = NVBFacePipeline.from_pretrained(args.pipeline)
cameras = orbit_cameras(7, yaw_range_deg=(-45, 45))
faces = [read_face(photo, pipe) for photo in args.photos]
out = pipe(conditioning=read_person(pipe, faces, cameras))
for number, view in enumerate(out.images):
    save_marked(view, f"view_{number:02d}.png")
if out.evidence is not None:
    print(f"invented: {out.evidence[:, 2].mean():.0%} of all pixels")
