"""Views of a face at any camera from one degraded photo, in one diffusion run: NVB-Face as a diffusers pipeline."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Threads that wait for one another spin, which on a machine with other work takes several times as long as sleeping.
# The variables are read as torch loads, so whoever imports torch first, or sets one of them, decides.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


__version__ = "0.1.0.dev0"


@contextmanager
def _without_collections() -> Iterator[None]:
    """Load modules without looking for garbage among them, which takes a fourth of the time and finds none."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()  # into the oldest generation, which is not looked at again soon
        if collects:
            gc.enable()


with _without_collections():
    import diffusers
    from diffusers import ModelMixin
    from diffusers.pipelines import pipeline_loading_utils

    # Saved pipelines then name our components by package and class alone, and load from a Hub id as from a folder.
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault(
        "nvb_diffusers", {"ModelMixin": ["save_pretrained", "from_pretrained"]}
    )

    from .conditioning import Conditioning
    from .face_crop import read_face
    from .models.appearance import AppearanceModel
    from .models.image_encoder import TimeAwareImageEncoder
    from .models.view_transformer import ViewTransformer3D
    from .pipeline_nvb_face import NVBFacePipeline
    from .pipeline_output import NVBFacePipelineOutput, NVBFaceRestorationOutput

# `DiffusionPipeline.from_pretrained` looks a pipeline's class up in diffusers itself.
diffusers.NVBFacePipeline = NVBFacePipeline

DEFAULT_CHECKPOINT = str(Path(__file__).parent / "default_checkpoint")

__all__ = [
    "DEFAULT_CHECKPOINT",
    "AppearanceModel",
    "Conditioning",
    "ModelMixin",
    "NVBFacePipeline",
    "NVBFacePipelineOutput",
    "NVBFaceRestorationOutput",
    "TimeAwareImageEncoder",
    "ViewTransformer3D",
    "read_face",
]
