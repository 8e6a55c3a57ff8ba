"""Weights that are elsewhere until a model runs: every way into our models must bring them, not `forward` alone.

Elsewhere is accelerate's meta device, or a disk in diffusers' group offloading, and the tensors hold nothing meanwhile.
So a way in that misses them gives other numbers or an error on a machine without any accelerator, too.
"""

import pytest
import torch
from accelerate import cpu_offload
from conftest import tiny_pipeline
from diffusers.hooks import apply_group_offloading
from pipeline_calls import CAMERAS, picture, seeded

from nvb_diffusers.models.entries import ModelWithEntries, entry

CPU = torch.device("cpu")
MODELS = ("image_encoder", "view_transformer", "appearance", "unet", "vae")


def everything(pipe):
    """What each public call of a pipeline makes of a photo, with guidance."""
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt"}
    made = pipe(picture(), cameras=CAMERAS[:2], generator=seeded(0), **settings)
    restored = pipe.restore(picture(), fidelity=0.5, generator=seeded(0), **settings)
    return [made.images, made.evidence, made.source_cameras, restored.images, pipe.predict_cameras(picture())]


@pytest.fixture(scope="module")
def expected():
    return everything(tiny_pipeline(appearance=True))


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("name", MODELS)
def test_group_offloading(name, kind, expected, tmp_path):
    """Assert the same views, evidence, cameras and restorations as without it, twice."""
    pipe = tiny_pipeline(appearance=True)
    settings = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(getattr(pipe, name), CPU, CPU, kind, offload_to_disk_path=str(tmp_path), **settings)
    for _ in range(2):
        torch.testing.assert_close(everything(pipe), expected, atol=1e-5, rtol=1e-5)


def test_sequential_offloading(expected):
    """Assert the same with accelerate's hooks on all models, whose weights are on the meta device between."""
    pipe = tiny_pipeline(appearance=True)
    for name in MODELS:
        cpu_offload(getattr(pipe, name), CPU, offload_buffers=True)
    for _ in range(2):
        torch.testing.assert_close(everything(pipe), expected, atol=1e-5, rtol=1e-5)


def test_an_entry_runs_in_one_call_of_its_model():
    """Assert that hooks on `forward` see each entry once, also of one inside of another, and after an error, too."""

    class Doubler(ModelWithEntries, torch.nn.Module):
        def forward(self, value):
            return self.double(value) + 1

        @entry
        def double(self, value):
            return 2 * value

        @entry
        def fourfold(self, value):
            return self.double(self.double(value))

    model, calls = Doubler(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert [model(3), model.double(3), model.fourfold(3)] == [7, 6, 12]
    assert len(calls) == 3
    with pytest.raises(TypeError):
        model.double(None)
    model.double(1)
    assert len(calls) == 4
