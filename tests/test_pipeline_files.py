"""A pipeline as diffusers' users handle one: what is no pipeline's or a pickle's is refused with what helps instead."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_appearance, tiny_encoder, tiny_pipeline, tiny_unet, tiny_view_transformer
from diffusers import DiffusionPipeline
from diffusers.callbacks import PipelineCallback
from PIL import Image
from safetensors.torch import save_file

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.models.unet import add_adapter, save_adapter

IMAGE = Image.new("RGB", (64, 64), (120, 90, 80))
DEFAULTS = {"default_num_inference_steps": 3, "default_guidance_scale": 2.0}


class Trap:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a tiny pipeline."""
    folder = tmp_path_factory.mktemp("saved")
    NVBFacePipeline(**tiny_pipeline().components, **DEFAULTS).save_pretrained(folder)
    return folder


def call(pipe, **kwargs):
    options = {"cameras": [(10, 0)], "num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    return pipe(IMAGE, generator=torch.Generator().manual_seed(0), **(options | kwargs)).images


@pytest.mark.parametrize("make", [tiny_encoder, tiny_view_transformer, tiny_appearance])
def test_our_models_refuse_pickles(make, tmp_path):
    """Assert that each class loads safetensors alone, runs nothing of a pickle beside it, and writes no pickle."""
    model = make()
    model.save_pretrained(tmp_path / "good")
    again = type(model).from_pretrained(tmp_path / "good")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    (tmp_path / "bad/diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "bad/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    for kwargs, message in (({}, "a pickle is refused"), ({"use_safetensors": False}, "never a pickle")):
        with pytest.raises(ValueError, match=message):
            type(model).from_pretrained(tmp_path / "bad", **kwargs)
    with pytest.raises(ValueError, match="safe_serialization"):
        model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good"]


def test_pipelines_are_saved_as_no_pickle(saved, tmp_path):
    """Assert that a pickle, which could not be loaded again, is refused before anything is written."""
    with pytest.raises(ValueError, match="safe_serialization"):
        NVBFacePipeline.from_pretrained(saved).save_pretrained(tmp_path / "o", safe_serialization=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("run", "is the folder of a training run, and no pipeline: give .*run/pipeline"),
        ("run/checkpoint-20", "is a checkpoint to resume training from, and no pipeline: give .*run/pipeline"),
        ("young", "is the folder of a training run, and no pipeline: the run writes one at its end, .*young/pipeline"),
        ("young/checkpoint-2", "is a checkpoint to resume training from, and no pipeline: the run writes one"),
        ("run/pipeline/unet", "is a folder without model_index.json, and no pipeline: give .*run/pipeline$"),
        ("empty", "holds no pipeline: it has no model_index.json"),
        ("half", r"holds its weights as a variant alone: give variant='fp16'"),
    ],
)
def test_what_is_no_pipeline_says_what_to_give(saved, tmp_path, monkeypatch, given, message):
    """Assert that folders of runs, checkpoints, components and variants are refused in one line with what helps."""
    for folder in ("run/checkpoint-20", "young/checkpoint-2", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copytree(saved, tmp_path / "run/pipeline")
    if given == "half":
        NVBFacePipeline.from_pretrained(saved).save_pretrained(tmp_path / "half", variant="fp16")
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / given, given):
        with pytest.raises(ValueError, match=message) as refusal:
            NVBFacePipeline.from_pretrained(source)
        assert "\n" not in str(refusal.value)


def test_pipelines_made_of_others_keep_their_defaults(saved):
    """Assert that components, and diffusers' from_pipe, give a pipeline that does the same as the one they are of."""
    pipe = NVBFacePipeline.from_pretrained(saved)
    for again in (NVBFacePipeline(**pipe.components), NVBFacePipeline.from_pipe(pipe)):
        assert {name: again.config[name] for name in DEFAULTS} == DEFAULTS
        assert again.unet is pipe.unet
        again.set_progress_bar_config(disable=True)
        torch.testing.assert_close(call(again, guidance_scale=None), call(pipe, guidance_scale=2.0))
    changed = NVBFacePipeline.from_pipe(pipe, default_guidance_scale=4.0, view_transformer=None)
    assert changed.config.default_guidance_scale == 4.0
    assert changed.view_transformer is None
    assert "default_guidance_scale" not in tiny_pipeline().components
    assert isinstance(pipe, DiffusionPipeline)


def test_callbacks_may_return_nothing_and_interrupt(saved):
    """Assert that a callback without a result changes nothing, and that `_interrupt` ends the call after its step."""
    pipe = NVBFacePipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append(step)

    def stop(pipe, step, timestep, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = step == 1

    expected = call(pipe)
    assert torch.equal(call(pipe, callback_on_step_end=watch), expected)
    assert seen == [0, 1, 2]
    seen.clear()
    stopped = call(pipe, callback_on_step_end=stop)
    assert len(seen) == 2
    assert pipe.interrupt
    assert torch.equal(stopped, seen[-1])
    assert torch.equal(call(pipe), expected)
    assert not pipe.interrupt


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_the_dtype_asked_for_is_given(saved, low_cpu_mem_usage):
    """Assert that every weight of every model has it, by either of diffusers' ways of loading."""
    pipe = NVBFacePipeline.from_pretrained(saved, dtype=torch.bfloat16, low_cpu_mem_usage=low_cpu_mem_usage)
    for model in (part for part in pipe.components.values() if isinstance(part, torch.nn.Module)):
        assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}


def test_callbacks_of_diffusers_name_their_own_tensors(saved):
    """Assert that diffusers' callback classes are given what they say they take, whatever the call says."""

    class Halve(PipelineCallback):
        tensor_inputs = ("latents", "encoder_hidden_states")

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            assert set(callback_kwargs) == set(self.tensor_inputs)
            return {"latents": callback_kwargs["latents"] / 2}

    pipe = NVBFacePipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    assert not torch.equal(
        call(pipe, callback_on_step_end=Halve(cutoff_step_ratio=None, cutoff_step_index=3)), call(pipe)
    )


def test_lora_of_which_nothing_fits_is_refused(tmp_path):
    """Assert that an adapter of training, keys without their prefix and shapes of another UNet cost one line."""
    pipe, trained = tiny_pipeline(), tiny_unet()
    add_adapter(trained, rank=2)
    save_adapter(trained, tmp_path / "adapter")
    module = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    loras = {}
    for name, prefix, width in (("none", "", 16), ("text", "text_encoder.", 16), ("wide", "unet.", 24)):
        lora = {"lora_A.weight": torch.ones(2, width), "lora_B.weight": torch.ones(width, 2)}
        loras[name] = {f"{prefix}{module}.{key}": value for key, value in lora.items()}
        save_file(loras[name], tmp_path / f"{name}.safetensors")
    sources = [tmp_path / "adapter", loras["none"], tmp_path / "none.safetensors", loras["text"]]
    for source in sources:
        with pytest.raises(ValueError, match=r"No key of .* begins with `unet.`.*load_adapter"):
            pipe.load_lora_weights(source)
    with pytest.raises(ValueError, match=r"does not fit the UNet: [^\n]*$"):
        pipe.load_lora_weights(tmp_path / "wide.safetensors")
    assert pipe.get_list_adapters().get("unet", []) == []
    pipe.save_pretrained(tmp_path / "pipe")  # which no wrapped layer may be left for
