"""Views of one person from several photos.

What one photo does not show, another may: less is invented than from one.
"""

from pathlib import Path

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, read_face
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.cli.photos import keep_photos
from nvb_diffusers.option_types import OneLineParser, a_path
from nvb_diffusers.person import read_person
from nvb_diffusers.provenance import save_marked

parser = OneLineParser(description=__doc__)
parser.add_argument("photos", nargs="+", type=a_path)
parser.add_argument("--pipeline", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
args = parser.parse_args()
outputs = [Path(f"view_{number:02d}.png") for number in range(7)]
keep_photos(args.photos, outputs)

pipe = NVBFacePipeline.from_pretrained(args.pipeline)
cameras = orbit_cameras(7, yaw_range_deg=(-45, 45))
faces = [read_face(photo, pipe) for photo in args.photos]
out = pipe(conditioning=read_person(pipe, faces, cameras))
for view, output in zip(out.images, outputs, strict=True):
    save_marked(view, output)
if out.evidence is not None:
    print(f"invented: {out.evidence[:, 2].mean():.0%} of all pixels")
