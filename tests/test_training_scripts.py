"""The training scripts at tiny size: they learn, resume to the bit, fail in one line and share work over processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from conftest import (
    ROOT,
    load_script,
    tiny_encoder,
    tiny_scheduler,
    tiny_unet,
    tiny_vae,
    tiny_view_transformer,
)
from PIL import Image
from safetensors.torch import load_file
from small_data import write_small_set

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.data.datasets import MultiViewFaceDataset, SampleTransform, held_out_batch
from nvb_diffusers.data.keys import draw_timesteps
from nvb_diffusers.models.unet import load_adapter
from nvb_diffusers.training import run as run_module
from nvb_diffusers.training import start
from nvb_diffusers.training.backbone import load_unet
from nvb_diffusers.training.checkpoints import list_checkpoints

TRAINING = ROOT / "training"
SCRIPTS = {name: load_script(f"train_{name}") for name in ("autoencoder", "restoration", "novel_view")}
prepare_shards = load_script("prepare_shards")
STEPS = ["restoration", "novel_view"]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Forget the processes and precision of the run before, which accelerate keeps for the life of a process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def write_config(path, model):
    path.write_text(json.dumps({name: value for name, value in model.config.items() if not name.startswith("_")}))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, a base model, shapes of new models, and what step 1 makes of them."""
    folder = tmp_path_factory.mktemp("training")
    write_small_set(folder / "data")
    torch.manual_seed(0)
    for name, model in (("unet", tiny_unet()), ("vae", tiny_vae()), ("scheduler", tiny_scheduler())):
        model.save_pretrained(folder / "base" / name)
    write_config(folder / "unet.json", tiny_unet())
    write_config(folder / "encoder.json", tiny_encoder())
    write_config(folder / "transformer.json", tiny_view_transformer())
    vae = {
        "latent_channels": 4,
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        **{f"{part}_block_out_channels": [8] * 4 for part in ("encoder", "decoder")},
        **{f"{part}_layers_per_block": [0, 1, 1, 1] for part in ("encoder", "decoder")},
        **{f"{part}_qkv_multiscales": [[]] * 4 for part in ("encoder", "decoder")},
    }
    (folder / "vae.json").write_text(json.dumps(vae))
    place = SimpleNamespace(folder=folder, data=folder / "data", base=folder / "base", step1=folder / "step1/pipeline")
    assert run("restoration", place, folder / "step1", "--max_train_steps", 2) == 0
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return place


def arguments(script, place, output, *extra):
    """A command line of the script at tiny size; later options replace earlier ones."""
    common = {"--data_dir": place.data, "--output_dir": output, "--resolution": 64, "--report_to": "none"}
    common |= {"--dataloader_num_workers": 0, "--logging_steps": 1, "--lr_warmup_steps": 0, "--max_train_steps": 3}
    steps = {"--num_inference_steps": 1}
    options = {
        "autoencoder": {"--model_config": place.folder / "vae.json", "--train_batch_size": 4},
        "restoration": {
            **steps,
            "--pretrained_model_name_or_path": place.base,
            "--encoder_config": place.folder / "encoder.json",
            "--train_batch_size": 4,
            "--num_validation_samples": 2,
            "--rank": 2,
        },
        "novel_view": {
            **steps,
            "--pretrained_model_name_or_path": place.step1,
            "--view_transformer_config": place.folder / "transformer.json",
            "--num_target_views": 1,
            "--num_validation_samples": 1,
        },
    }[script]
    degradation = [] if script == "autoencoder" else ["--degradation", "mild", "medium"]
    return [str(word) for pair in (common | options).items() for word in pair] + degradation + [str(w) for w in extra]


def run(script, place, output, *extra):
    return SCRIPTS[script].main(arguments(script, place, output, *extra))


def curve(folder, name="loss"):
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def newest(folder):
    return list_checkpoints(folder)[-1]


def weights(folder):
    """The trained parameters in the newest checkpoint."""
    return {f"{path.name} {k}": v for path in newest(folder).glob("*.safetensors") for k, v in load_file(path).items()}


def gradients(folder):
    """The running means of the gradients in the newest checkpoint, in which they add up, as in no weight of AdamW."""
    states = torch.load(newest(folder) / "optimizer.bin", weights_only=True)["state"]
    return {str(number): state["exp_avg"] for number, state in states.items()}


def assert_equal(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        if tolerance:
            torch.testing.assert_close(one[name], other[name], **tolerance)
        else:
            assert torch.equal(one[name], other[name]), name


def assert_one_line(capsys, words):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, lines
    assert words in lines[0]


# What they learn


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_loss_falls(script, place, tmp_path):
    """Assert that training on the small set lowers the loss, and that its parts are logged apart."""
    more = {
        "autoencoder": (20, 1e-2),
        "restoration": (24, 1e-2),
        "novel_view": (12, 3e-3),
    }
    more = more[script]
    extra = ["--max_train_steps", more[0], "--learning_rate", more[1]]
    assert run(script, place, tmp_path / "run", *extra) == 0
    losses = curve(tmp_path / "run")
    quarter = len(losses) // 4
    factor = {"autoencoder": 0.8, "restoration": 0.97, "novel_view": 0.9}[script]
    assert sum(losses[-quarter:]) < factor * sum(losses[:quarter])
    line = json.loads((tmp_path / "run/curve.jsonl").read_text().splitlines()[0])
    if script == "novel_view":
        expected = line["diffusion_loss"] + 10 * line["feature_loss"] + 0.05 * line["camera_loss"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert (tmp_path / "run/validation.png").exists()
    assert curve(tmp_path / "run", "validation_psnr")


def test_step_1_trains_the_adapter_alone(place, tmp_path, monkeypatch):
    """Assert that in lora mode the base stays as it is to the bit, and the fused pipeline is base + adapter."""
    live = []
    fuse = SCRIPTS["restoration"].fuse_adapter
    monkeypatch.setattr(SCRIPTS["restoration"], "fuse_adapter", lambda unet: live.append(unet) or fuse(unet))
    assert run("restoration", place, tmp_path, "--learning_rate", 1e-2, "--ema_decay", 0.5) == 0
    base = load_unet(str(place.base), None)
    for name, value in live[0].state_dict().items():
        plain = name.replace(".base_layer", "")
        if "lora_" not in name and ".attn2." not in name:
            assert torch.equal(value, base.state_dict()[plain]), name
    pipeline = NVBFacePipeline.from_pretrained(tmp_path / "pipeline")
    load_adapter(base, tmp_path / "adapter")
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([7, 700]), torch.randn(2, 64, 12)
    with torch.no_grad():
        fused, adapted = pipeline.unet(*inputs).sample, base(*inputs).sample
        plain = load_unet(str(place.base), None)(*inputs).sample
    torch.testing.assert_close(fused, adapted, atol=1e-5, rtol=0)
    assert (adapted - plain).abs().max() > 1e-3
    assert_equal(
        pipeline.image_encoder.state_dict(),
        load_file(tmp_path / "adapter/image_encoder/diffusion_pytorch_model.safetensors"),
    )


def test_step_1_trains_a_new_backbone_in_full(place, tmp_path):
    """Assert that a UNet made from a shape trains in every parameter, and no adapter is written."""
    extra = ["--unet_config", place.folder / "unet.json", "--vae_name_or_path", place.base / "vae"]
    extra += ["--unet_training", "full", "--checkpointing_steps", 1, "--checkpoints_total_limit", 9]
    assert run("restoration", place, tmp_path, *extra, "--learning_rate", 1e-3) == 0
    first, last = (load_file(tmp_path / f"checkpoint-{n}/trainable_1.safetensors") for n in (1, 3))
    assert first.keys() == tiny_unet().state_dict().keys()
    assert all(not torch.equal(first[name], last[name]) for name in first)
    assert not (tmp_path / "adapter").exists()


def test_step_2_leaves_encoder_unet_and_autoencoder_as_they_are(place, tmp_path):
    """Assert that all but the view transformer is the same to the bit after step 2."""
    assert run("novel_view", place, tmp_path, "--learning_rate", 1e-2) == 0
    before, after = (NVBFacePipeline.from_pretrained(path) for path in (place.step1, tmp_path / "pipeline"))
    for name in ("image_encoder", "unet", "vae"):
        assert_equal(getattr(before, name).state_dict(), getattr(after, name).state_dict())
    assert dict(before.scheduler.config) == dict(after.scheduler.config)
    assert all(name.startswith(("trainable_0", "averages")) for name in weights(tmp_path))


def test_train_unet_trains_the_unet_too(place, tmp_path):
    """Assert that the UNet moves, the encoder does not, and that the run's pipeline can be gone on with."""
    extra = ["--train_unet", "--num_diffusion_views", 1, "--learning_rate", 1e-3, "--max_train_steps", 2]
    assert run("novel_view", place, tmp_path / "run", *extra) == 0
    before, after = (NVBFacePipeline.from_pretrained(path) for path in (place.step1, tmp_path / "run/pipeline"))
    old, new = (dict(pipeline.unet.named_parameters()) for pipeline in (before, after))
    assert all(not torch.equal(old[key], new[key]) for key in old)
    for name in ("image_encoder", "vae"):
        assert_equal(getattr(before, name).state_dict(), getattr(after, name).state_dict())
    assert curve(tmp_path / "run", "validation_restoration_loss")
    line = json.loads((tmp_path / "run/curve.jsonl").read_text().splitlines()[0])
    expected = line["diffusion_loss"] + line["restoration_loss"] + 10 * line["feature_loss"]
    assert line["loss"] == pytest.approx(expected + 0.05 * line["camera_loss"], rel=1e-5)
    assert run("novel_view", place, tmp_path / "frozen", *extra[1:]) == 0
    frozen = json.loads((tmp_path / "frozen/curve.jsonl").read_text().splitlines()[0])
    assert frozen["diffusion_loss"] == pytest.approx(line["diffusion_loss"], rel=1e-4)  # not that of restoring

    words = arguments("novel_view", place, tmp_path / "on", "--learning_rate", 0, "--max_train_steps", 1)
    shape = words.index("--view_transformer_config")
    words[shape : shape + 2] = ["--pretrained_model_name_or_path", str(tmp_path / "run/pipeline")]
    assert SCRIPTS["novel_view"].main(words) == 0
    gone_on = NVBFacePipeline.from_pretrained(tmp_path / "on/pipeline")
    assert_equal(gone_on.view_transformer.state_dict(), after.view_transformer.state_dict())


def test_a_dropped_view_is_painted_without_features(place, tmp_path):
    """Assert that views and restorations are then the same task, but not in validation, where nothing is dropped."""
    losses, held_out = {}, {}
    for share in (0.0, 1.0):
        extra = ["--train_unet", "--conditioning_dropout", share, "--learning_rate", 0, "--max_train_steps", 1]
        assert run("novel_view", place, tmp_path / str(share), *extra) == 0
        losses[share] = [curve(tmp_path / str(share), name)[0] for name in ("diffusion_loss", "restoration_loss")]
        held_out[share] = curve(tmp_path / str(share), "validation_diffusion_loss")
    assert losses[1.0][0] == pytest.approx(losses[1.0][1], rel=1e-6)  # at other places of one batch
    assert losses[0.0][0] != pytest.approx(losses[0.0][1], rel=1e-6)
    assert held_out[0.0] == held_out[1.0]


def test_decoder_only_keeps_the_latents(place, tmp_path, capsys):
    """Assert that encoder and scale stay as they were to the bit while every part of the decoder moves."""
    assert run("autoencoder", place, tmp_path / "whole") == 0
    words = arguments("autoencoder", place, tmp_path / "sharper", "--decoder_only", "--learning_rate", 1e-2)
    shape = words.index("--model_config")
    del words[shape : shape + 2]
    assert SCRIPTS["autoencoder"].main(words) == 2
    assert_one_line(capsys, "--decoder_only needs an autoencoder to go on with")
    assert SCRIPTS["autoencoder"].main([*words, "--vae_name_or_path", str(tmp_path / "whole/vae")]) == 0
    before, after = (
        load_file(tmp_path / name / "vae/diffusion_pytorch_model.safetensors") for name in ("whole", "sharper")
    )
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("encoder."), name
    scales = [json.loads((tmp_path / name / "vae/config.json").read_text()) for name in ("whole", "sharper")]
    assert scales[0]["scaling_factor"] == scales[1]["scaling_factor"]


def test_a_centered_view_transformer_knows_the_mean_features(place, tmp_path):
    """Assert that the saved mean is that of the degraded pictures' features, also in a run that was resumed."""
    shape = json.loads((place.folder / "transformer.json").read_text()) | {"num_source_layers": 1}
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    extra = ["--view_transformer_config", tmp_path / "shape.json"]
    assert run("novel_view", place, tmp_path / "run", *extra, "--max_train_steps", 1) == 0
    assert run("novel_view", place, tmp_path / "run", *extra, "--resume_from_checkpoint", "latest") == 0
    assert run("novel_view", place, tmp_path / "straight", *extra) == 0
    resumed, straight = (
        NVBFacePipeline.from_pretrained(tmp_path / name / "pipeline").view_transformer.state_dict()
        for name in ("run", "straight")
    )
    assert_equal(resumed, straight)
    pipeline = NVBFacePipeline.from_pretrained(place.step1)
    transform = SampleTransform(64, ["mild", "medium"], seed=0)
    batch = held_out_batch(MultiViewFaceDataset(place.data, "train", transform, 1), 64)
    pictures = batch["degraded_pixel_values"]  # (4, 2, 3, 64, 64)
    times = draw_timesteps(batch["key"], 1000, 0).repeat_interleave(2)
    with torch.no_grad():
        expected = pipeline.image_encoder(pictures.flatten(0, 1), times).sample.mean(dim=0)
    torch.testing.assert_close(straight["mean_features"], expected, atol=1e-5, rtol=1e-4)


# Options that change what they should


def test_conditioning_dropout_hides_the_photo(place, tmp_path):
    """Assert that with all samples without photo the diffusion loss teaches the encoder nothing, and else it does."""
    moved = {}
    for share in (0.0, 1.0):
        extra = ["--conditioning_dropout", share, "--adam_weight_decay", 0, "--checkpointing_steps", 1]
        assert run("restoration", place, tmp_path / str(share), *extra) == 0
        states = [
            load_file(tmp_path / f"{share}/checkpoint-{step}/trainable_0.safetensors")["conv_in.weight"]
            for step in (2, 3)
        ]
        moved[share] = not torch.equal(*states)
    assert moved == {0.0: True, 1.0: False}


def test_prediction_type_reaches_the_pipeline(place, tmp_path):
    """Assert that the UNet learns another target, and that the saved scheduler knows."""
    for name in ("v_prediction", "sample"):
        extra = ["--prediction_type", name, "--snr_gamma", 5, "--zero_terminal_snr", "--max_train_steps", 1]
        assert run("restoration", place, tmp_path / name, *extra) == 0
        config = NVBFacePipeline.from_pretrained(tmp_path / name / "pipeline").scheduler.config
        assert config.prediction_type == name
        assert config.rescale_betas_zero_snr
    assert curve(tmp_path / "sample") != curve(tmp_path / "v_prediction")


def test_feature_loss_and_camera_conditioning(place, tmp_path):
    """Assert that the ablation leaves the feature loss out of the sum, and that given cameras change the volume."""
    variants = {
        "paper": [],
        "ablation": ["--feature_loss_weight", 0],
        "given": ["--camera_conditioning", "ground_truth"],
        "constant": ["--camera_conditioning", "constant"],
        "one": ["--num_diffusion_views", 1],
        "none": ["--num_diffusion_views", 0],
    }
    lines, later = {}, {}
    for name, extra in variants.items():
        assert run("novel_view", place, tmp_path / name, *extra, "--learning_rate", 1e-2, "--max_train_steps", 2) == 0
        lines[name], later[name] = map(json.loads, (tmp_path / name / "curve.jsonl").read_text().splitlines()[:2])
    paper, ablation, given, constant, one, none = (lines[name] for name in variants)
    assert ablation["loss"] == pytest.approx(ablation["diffusion_loss"] + 0.05 * ablation["camera_loss"], rel=1e-5)
    assert ablation["feature_loss"] == paper["feature_loss"]
    assert given["camera_loss"] == constant["camera_loss"] == paper["camera_loss"]
    # a new model ignores the camera, so the first step tells nothing
    assert len({later[name]["feature_loss"] for name in ("paper", "given", "constant")}) == 3
    assert one["feature_loss"] == paper["feature_loss"]
    assert one["diffusion_loss"] != paper["diffusion_loss"]
    assert none["feature_loss"] == paper["feature_loss"]
    assert none["loss"] == pytest.approx(10 * none["feature_loss"] + 0.05 * none["camera_loss"], rel=1e-5)


def test_muon_goes_on_where_it_stopped(place, tmp_path):
    """Assert that a resumed run with Muon ends at the weights of an uninterrupted one, which are not AdamW's."""
    for name, extra in {"adamw": [], "muon": ["--use_muon"], "stopped": ["--use_muon", "--max_train_steps", 2]}.items():
        assert run("novel_view", place, tmp_path / name, "--learning_rate", 1e-2, *extra) == 0
    resume = ["--use_muon", "--resume_from_checkpoint", "latest"]
    assert run("novel_view", place, tmp_path / "stopped", "--learning_rate", 1e-2, *resume) == 0
    assert_equal(weights(tmp_path / "stopped"), weights(tmp_path / "muon"))
    assert curve(tmp_path / "muon")[-1] != curve(tmp_path / "adamw")[-1]


@pytest.mark.parametrize("script", STEPS)
def test_cached_latents_and_shards_change_nothing(script, place, tmp_path):
    """Assert the loss of pictures encoded on the fly from cached latents, and a run over shards."""
    assert run(script, place, tmp_path / "plain", "--max_train_steps", 2) == 0
    extra = ["--max_train_steps", 2, "--latents_cache", tmp_path / "latents.npy"]
    assert run(script, place, tmp_path / "cached", *extra) == 0
    assert curve(tmp_path / "cached") == pytest.approx(curve(tmp_path / "plain"), rel=1e-3)
    assert prepare_shards.main(["--data_dir", str(place.data), "--output_dir", str(tmp_path / "shards")]) == 0
    extra = ["--streaming", "--data_dir", tmp_path / "shards", "--dataloader_num_workers", 1]
    assert run(script, place, tmp_path / "streamed", *extra, "--max_train_steps", 4, "--checkpointing_steps", 2) == 0
    assert curve(tmp_path / "streamed", "validation_psnr")[0] > 0
    assert run(script, place, tmp_path / "stopped", *extra, "--max_train_steps", 2) == 0
    resume = ["--max_train_steps", 4, "--resume_from_checkpoint", "latest"]
    assert run(script, place, tmp_path / "stopped", *extra, *resume) == 0
    assert curve(tmp_path / "stopped") == curve(tmp_path / "streamed")


@pytest.mark.parametrize("script", SCRIPTS)
def test_accumulated_batches_are_one_batch(script, place, tmp_path):
    """Assert that two batches of one with accumulation give the losses and weights of one batch of two."""
    extra = ["--max_train_steps", 2, "--learning_rate", 1e-4]
    assert run(script, place, tmp_path / "one", "--train_batch_size", 2, *extra) == 0
    extra += ["--train_batch_size", 1, "--gradient_accumulation_steps", 2]
    assert run(script, place, tmp_path / "two", *extra) == 0
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-5)
    assert_equal(gradients(tmp_path / "one"), gradients(tmp_path / "two"), atol=1e-6, rtol=1e-5)
    assert_equal(weights(tmp_path / "one"), weights(tmp_path / "two"), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("script", STEPS)
def test_gradient_checkpointing_changes_nothing(script, place, tmp_path):
    """Assert equal losses and weights with activations computed twice."""
    assert run(script, place, tmp_path / "plain") == 0
    assert run(script, place, tmp_path / "saved", "--gradient_checkpointing") == 0
    assert curve(tmp_path / "saved") == pytest.approx(curve(tmp_path / "plain"), rel=1e-6)
    assert_equal(weights(tmp_path / "plain"), weights(tmp_path / "saved"), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("script", SCRIPTS)
def test_bfloat16_is_close(script, place, tmp_path):
    """Assert that mixed precision gives nearly the same losses, and weights in 32 bits."""
    assert run(script, place, tmp_path / "full", "--max_train_steps", 1) == 0
    AcceleratorState._reset_state(True)
    assert run(script, place, tmp_path / "half", "--max_train_steps", 1, "--mixed_precision", "bf16") == 0
    assert curve(tmp_path / "half")[0] == pytest.approx(curve(tmp_path / "full")[0], rel=0.05)
    assert curve(tmp_path / "half") != curve(tmp_path / "full")
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "half").values())


def test_the_default_tracker_takes_the_options(place, tmp_path):
    """Assert that TensorBoard, which knows neither lists nor paths, gets every option."""
    assert run("restoration", place, tmp_path, "--report_to", "tensorboard", "--max_train_steps", 1) == 0
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    assert json.loads((tmp_path / "options.json").read_text())["degradation"] == "mild medium"


def test_publishing(place, tmp_path, monkeypatch):
    """Assert that the finished pipeline is published under the name given."""
    monkeypatch.setattr(start.HfApi, "whoami", lambda self: {"name": "me"})
    for script in STEPS:
        published = []
        monkeypatch.setattr(
            SCRIPTS[script], "publish", lambda pipeline, name, token, to=published: to.append((pipeline, name))
        )
        extra = ["--max_train_steps", 1, "--push_to_hub", "--hub_model_id", "me/face"]
        assert run(script, place, tmp_path / script, *extra) == 0
        (pipeline, name) = published[0]
        assert name == "me/face"
        assert isinstance(pipeline, NVBFacePipeline)
        assert (pipeline.view_transformer is not None) == (script == "novel_view")


@pytest.mark.parametrize("script", STEPS)
def test_an_offset_of_the_noise_is_learned_from(script, place, tmp_path):
    """Assert another loss with it, from the first step on."""
    for offset in (0.0, 0.5):
        extra = ["--max_train_steps", 1, "--noise_offset", offset]
        assert run(script, place, tmp_path / f"{offset}", *extra) == 0
        AcceleratorState._reset_state(True)
    losses = [curve(tmp_path / f"{offset}")[0] for offset in (0.0, 0.5)]
    assert losses[0] != losses[1]


def test_a_variant_of_the_base_is_asked_for(place, tmp_path, capsys):
    """Assert that a base that has half-precision files alone trains with --variant, and else is one line."""
    base = tmp_path / "base"
    for name, model in (("unet", tiny_unet()), ("vae", tiny_vae())):
        model.half().save_pretrained(base / name, variant="fp16")
    tiny_scheduler().save_pretrained(base / "scheduler")
    extra = ["--max_train_steps", 1, "--pretrained_model_name_or_path", base]
    assert run("restoration", place, tmp_path / "without", *extra) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert run("restoration", place, tmp_path / "with", *extra, "--variant", "fp16") == 0


@pytest.mark.parametrize("script", STEPS)
def test_own_images_are_shown_at_validations(script, place, tmp_path):
    """Assert a picture of two photos of one's own, which are in it as given, and of what the model makes of them."""
    rng, paths = np.random.default_rng(5), [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    extra = ["--max_train_steps", 1, "--validation_images", *paths]
    assert run(script, place, tmp_path / "run", *extra) == 0
    sheet = np.asarray(Image.open(tmp_path / "run/validation_own.png"))
    columns, rows = (2, 2) if script == "restoration" else (4, 2)
    assert sheet.shape == (64 * rows, 64 * columns, 3)
    corner = {"restoration": (0, 64), "novel_view": (64, 0)}[script]  # of the second photo
    for path, (top, left) in zip(paths, ((0, 0), corner), strict=True):
        assert np.array_equal(sheet[top : top + 64, left : left + 64], np.asarray(Image.open(path)))
    assert sheet.std() > 1


@pytest.mark.parametrize("script", STEPS)
def test_own_images_are_checked_at_the_start(script, place, tmp_path, capsys):
    """Assert one line for a photo that is not there and for one that is no square, before a step is made."""
    Image.new("RGB", (64, 32)).save(tmp_path / "wide.png")
    for name, expected in (("none.png", "none.png"), ("wide.png", "it is 64x32 px, but a crop is square")):
        extra = ["--max_train_steps", 1, "--validation_images", tmp_path / name]
        assert run(script, place, tmp_path / "run", *extra) == 2
        assert expected in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "run").exists()


# Stop and go on


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_resumed_run_is_the_same_run(script, place, tmp_path):
    """Assert the curve and weights of an uninterrupted run, to the bit, with accumulation and validation between."""
    extra = ["--gradient_accumulation_steps", 2, "--train_batch_size", 1, "--validation_steps", 2]
    extra += ["--checkpointing_steps", 2, "--learning_rate", 1e-3]
    assert run(script, place, tmp_path / "whole", *extra, "--max_train_steps", 5) == 0
    assert run(script, place, tmp_path / "parts", *extra, "--max_train_steps", 3) == 0
    resume = ["--resume_from_checkpoint", "latest", "--max_train_steps", 5]
    assert run(script, place, tmp_path / "parts", *extra, *resume) == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert_equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    final = {
        "autoencoder": "vae",
        "novel_view": "pipeline/view_transformer",
    }
    final = f"{final.get(script, 'pipeline/image_encoder')}/diffusion_pytorch_model.safetensors"
    assert_equal(load_file(tmp_path / "parts" / final), load_file(tmp_path / "whole" / final))


def test_a_changed_data_set_is_told(place, tmp_path, capsys):
    """Assert one line on resume where an image is another than before, and none where nothing changed."""
    data = write_small_set(tmp_path / "data")
    words = ["--data_dir", data, "--resume_from_checkpoint", "latest"]
    for steps, image in ((1, None), (2, None), (3, data / "images/000000/01.png")):
        if image is not None:
            image.write_bytes((data / "images/000001/01.png").read_bytes())
        assert run("restoration", place, tmp_path / "run", *words, "--max_train_steps", steps) == 0
        assert ("goes on from step 2 with data " in capsys.readouterr().err) == (image is not None)


STOP_IN_SAVE = """
import sys, time
sys.path.insert(0, {training!r})
from accelerate import Accelerator
import train_restoration

def save_state(self, folder, real=Accelerator.save_state):
    real(self, folder)
    if "checkpoint-4" in folder:
        open(folder + "/optimizer.bin", "wb").write(b"half")
        open(folder + "/saving", "w").close()
        time.sleep(600)

Accelerator.save_state = save_state
train_restoration.main({arguments!r})
"""


def test_kill_9_in_the_middle_of_a_save(place, tmp_path):
    """Assert that a run killed while it saves leaves whole checkpoints alone, and the same command goes on exactly."""
    extra = ["--checkpointing_steps", 2, "--max_train_steps", 6, "--resume_from_checkpoint", "latest"]
    extra += ["--checkpoints_total_limit", 2]
    words = arguments("restoration", place, tmp_path / "killed", *extra)
    program = STOP_IN_SAVE.format(training=str(TRAINING), arguments=words)
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while not list((tmp_path / "killed").rglob("saving")):  # in the hidden folder that becomes the checkpoint
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    names = os.listdir(tmp_path / "killed")
    assert "checkpoint-2" in names
    assert "checkpoint-4" not in names
    assert len(curve(tmp_path / "killed")) == 4
    assert run("restoration", place, tmp_path / "killed", *extra) == 0
    assert run("restoration", place, tmp_path / "whole", *extra) == 0
    assert (tmp_path / "killed/curve.jsonl").read_text() == (tmp_path / "whole/curve.jsonl").read_text()
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert sorted(path.name for path in (tmp_path / "killed").glob("*checkpoint*")) == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_time_limit_ends_with_a_checkpoint(script, place, tmp_path, monkeypatch):
    """Assert a checkpoint, a validation and a pipeline at the step that the time reached, and that it goes on."""
    clock = iter(range(1000))
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert run(script, place, tmp_path, "--max_train_seconds", 1.5, "--max_train_steps", 9) == 0
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert (tmp_path / ("vae" if script == "autoencoder" else "pipeline")).is_dir()
    extra = ["--max_train_steps", 3, "--resume_from_checkpoint", "latest"]
    assert run(script, place, tmp_path, *extra) == 0
    assert len(curve(tmp_path)) == 3


def test_a_validation_that_fails_loses_nothing(place, tmp_path, monkeypatch):
    """Assert a checkpoint of the step that was validated, from which the same command makes the pipeline."""
    script = SCRIPTS["novel_view"]
    with monkeypatch.context() as broken:
        broken.setattr(script, "validate", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("novel_view", place, tmp_path, "--max_train_steps", 2)
    assert newest(tmp_path).name == "checkpoint-2"
    assert run("novel_view", place, tmp_path, "--max_train_steps", 2, "--resume_from_checkpoint", "latest") == 0
    whole = tmp_path / "whole"
    assert run("novel_view", place, whole, "--max_train_steps", 2) == 0
    name = "pipeline/view_transformer/diffusion_pytorch_model.safetensors"
    assert_equal(load_file(tmp_path / name), load_file(whole / name))


# Errors


def test_a_wrong_path_or_file_is_one_line(place, tmp_path, capsys):
    """Assert that each of these exits with 2 and one line that names what is wrong."""
    bad_json, bad_key = tmp_path / "bad.json", tmp_path / "key.json"
    bad_json.write_text("{")
    bad_key.write_text('{"widths": 3}')
    cases = [
        ("restoration", ["--data_dir", tmp_path / "none"], "no data set at"),
        ("restoration", ["--pretrained_model_name_or_path", tmp_path / "none"], str(tmp_path / "none")),
        ("restoration", ["--encoder_config", tmp_path / "none.json"], "none.json"),
        ("restoration", ["--encoder_config", bad_json], "bad.json is not JSON"),
        ("restoration", ["--encoder_config", bad_key], "unexpected keyword argument 'widths'"),
        ("restoration", ["--resume_from_checkpoint", tmp_path / "none"], "no checkpoint at"),
        ("restoration", ["--latents_cache", tmp_path / "x.npy", "--crop_jitter", 0.1], "not with --crop_jitter"),
        ("novel_view", ["--pretrained_model_name_or_path", tmp_path / "none"], str(tmp_path / "none")),
        ("novel_view", ["--num_target_views", 7], "lower --num_target_views"),
        ("novel_view", ["--num_diffusion_views", 3], "a sample has 2 views"),
        ("novel_view", ["--num_diffusion_views", 0, "--train_unet"], "--train_unet needs one"),
        ("novel_view", ["--conditioning_dropout", 0.1], "goes with --train_unet alone"),
        ("novel_view", ["--streaming"], "prepare_shards.py makes it"),
        ("autoencoder", ["--model_config", bad_key], "unexpected keyword argument 'widths'"),
    ]
    for number, (script, extra, words) in enumerate(cases):
        assert run(script, place, tmp_path / str(number), *extra) == 2
        assert_one_line(capsys, words)


def test_an_unreadable_picture_is_one_line(place, tmp_path, capsys):
    """Assert that a picture that breaks during training ends the run in one line, from a worker process."""
    data = write_small_set(tmp_path / "data")
    (data / "images/000002/01.png").write_bytes(b"no picture")
    extra = ["--data_dir", data, "--checkpointing_steps", 1, "--train_batch_size", 1, "--max_train_steps", 20]
    assert run("restoration", place, tmp_path / "run", *extra, "--dataloader_num_workers", 1) == 2
    assert_one_line(capsys, "cannot read image")
    saved = list((tmp_path / "run").glob("checkpoint-*"))
    assert saved
    (tmp_path / "data").joinpath("images/000002/01.png").write_bytes((data / "images/000002/00.png").read_bytes())
    extra[-1] = max(int(path.name.split("-")[1]) for path in saved) + 1
    assert run("restoration", place, tmp_path / "run", *extra, "--resume_from_checkpoint", "latest") == 0


@pytest.mark.parametrize("script", ["autoencoder", "restoration"])
def test_a_full_disk_is_one_line(script, place, tmp_path, capsys, monkeypatch):
    """Assert that a checkpoint which cannot be written ends the run in one line and keeps the one before."""
    real, calls = Accelerator.save_state, []

    def save_state(self, folder):
        calls.append(folder)
        if len(calls) == 2:
            Path(folder, "optimizer.bin").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return real(self, folder)

    monkeypatch.setattr(Accelerator, "save_state", save_state)
    extra = ["--checkpointing_steps", 1, "--max_train_steps", 5]
    assert run(script, place, tmp_path, *extra) == 2
    assert_one_line(capsys, "No space left on device")
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-1"]
    assert run(script, place, tmp_path, *extra, "--resume_from_checkpoint", "latest", "--max_train_steps", 2) == 0


def test_a_run_is_not_begun_over_another(place, tmp_path, capsys):
    """Assert that a second run in the same folder has to say that it goes on."""
    assert run("autoencoder", place, tmp_path) == 0
    before = (tmp_path / "curve.jsonl").read_text()
    assert run("autoencoder", place, tmp_path) == 2
    assert_one_line(capsys, "already holds checkpoint-3")
    assert (tmp_path / "curve.jsonl").read_text() == before


# Several processes

TWO_PROCESSES = """
import sys
sys.path.insert(0, {training!r})
from accelerate import Accelerator
import train_novel_view, train_restoration

Accelerator.end_training = lambda self: None  # it would end the group of processes, which the second run needs
sys.exit(train_restoration.main({restoration!r}) or train_novel_view.main({novel_view!r}))
"""


def test_two_processes_are_one_with_the_double_batch(place, tmp_path):
    """Assert equal losses and weights after two steps of both scripts, by two processes and by one."""
    extra = {
        "restoration": ["--conditioning_dropout", 0.3],
        "novel_view": ["--camera_conditioning", "mixed", "--train_unet"],
    }
    words = {}
    for script in STEPS:
        common = [*extra[script], "--max_train_steps", 2, "--learning_rate", 1e-4, "--max_train_seconds", 600]
        assert run(script, place, tmp_path / f"{script}-one", *common, "--train_batch_size", 2) == 0
        more = ["--train_batch_size", 1, "--validation_steps", 1]
        words[script] = arguments(script, place, tmp_path / f"{script}-two", *common, *more)
    (tmp_path / "both.py").write_text(TWO_PROCESSES.format(training=str(TRAINING), **words))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([*launch, str(tmp_path / "both.py")], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    for script in STEPS:
        one, two = tmp_path / f"{script}-one", tmp_path / f"{script}-two"
        assert curve(two) == pytest.approx(curve(one), rel=1e-5)
        assert_equal(gradients(one), gradients(two), atol=1e-6, rtol=1e-5)
        assert_equal(weights(one), weights(two), atol=2e-5, rtol=1e-4)
        states = sorted(path.name for path in (two / "checkpoint-2").glob("random_states_*"))
        assert states == ["random_states_0.pkl", "random_states_1.pkl"]
