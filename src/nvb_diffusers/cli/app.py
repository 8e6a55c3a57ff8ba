"""`nvb-face app`: a page to turn a head in, in the browser."""

import argparse
from importlib.util import find_spec

from nvb_diffusers.cli.options import Commands, add_checkpoint, add_command
from nvb_diffusers.data.images import list_photos
from nvb_diffusers.loading import DTYPES, load_pipeline
from nvb_diffusers.option_types import a_path, filled_text, whole_number


def add_commands(commands: Commands) -> None:
    """Add `app`."""
    app = add_command(commands, "app", run_app, "A page in the browser: drop a photo, turn the head.")
    app.add_argument(
        "--host", type=filled_text, default="127.0.0.1", help="0.0.0.0 to let others in (default %(default)s)"
    )
    app.add_argument("--port", type=whole_number(1, 65535), help="default: the first that is free from 7860 on")
    app.add_argument("--examples", type=a_path, help="a folder of photos to try")
    add_checkpoint(app)
    app.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the best there is)")
    app.add_argument("--dtype", choices=DTYPES, help="default: float16 on CUDA, else float32")


def run_app(args: argparse.Namespace) -> None:
    """`nvb-face app`."""
    if find_spec("gradio") is None:
        raise ValueError('the page needs gradio: pip install -c constraints.txt ".[app]"')
    examples = [str(photo) for photo in list_photos(args.examples)] if args.examples else []
    pipe = load_pipeline(args.checkpoint, args.device, args.dtype, needs_views=True)
    from nvb_diffusers.app.page import serve  # which takes seconds to import

    serve(pipe, examples, args.host, args.port)
