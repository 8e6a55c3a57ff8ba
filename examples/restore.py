"""The face in a photo, restored at its own view."""

from pathlib import Path

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline, read_face
from nvb_diffusers.cli.photos import keep_photos
from nvb_diffusers.option_types import OneLineParser, a_path
from nvb_diffusers.provenance import save_marked

parser = OneLineParser(description=__doc__)
parser.add_argument("photo", type=a_path)
parser.add_argument("pipeline", nargs="?", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
args = parser.parse_args()
output = Path("restored.png")
keep_photos([args.photo], [output])

pipe = NVBFacePipeline.from_pretrained(args.pipeline)
face = read_face(args.photo, pipe)
save_marked(pipe.restore(face).images[0], output)
