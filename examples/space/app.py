"""The page as a Hugging Face Space, which shows what listens at port 7860."""

import os

from nvb_diffusers import DEFAULT_CHECKPOINT
from nvb_diffusers.app.page import serve
from nvb_diffusers.loading import load_pipeline

pipe = load_pipeline(os.environ.get("CHECKPOINT", DEFAULT_CHECKPOINT), needs_views=True)
serve(pipe, examples=[], host="0.0.0.0", port=7860)
