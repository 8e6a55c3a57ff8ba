"""The training scripts at tiny size: they learn, and their options change what they should."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import (
    load_script,
    tiny_scheduler,
    tiny_unet,
    tiny_vae,
)
from PIL import Image
from safetensors.torch import load_file
from training_runs import (
    SCRIPTS,
    STEPS,
    arguments,
    assert_equal,
    assert_one_line,
    curve,
    gradients,
    run,
    weights,
)

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.data.datasets import MultiViewFaceDataset, SampleTransform, held_out_batch
from nvb_diffusers.data.keys import draw_timesteps
from nvb_diffusers.models.unet import load_adapter
from nvb_diffusers.training import start
from nvb_diffusers.training.backbone import load_unet
from nvb_diffusers.training.run import Run

prepare_shards = load_script("prepare_shards")
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


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


@pytest.mark.parametrize("script", STEPS)
def test_frozen_weights_in_half_precision_change_nothing(script, place, tmp_path, monkeypatch):
    """Assert that under autocast steps see frozen weights of half the bytes, and that losses, validations and all that
    is saved are those of a run which keeps them whole.
    """
    seen = []
    compute_loss = SCRIPTS[script].compute_loss

    def looked(*args):
        unet = args[1] if script == "novel_view" else args[0][1]
        frozen = {p.dtype for n, p in unet.named_parameters() if not p.requires_grad and "to_q" in n and p.ndim == 2}
        seen.append((torch.is_autocast_enabled("cpu"), frozen))
        return compute_loss(*args)

    monkeypatch.setattr(SCRIPTS[script], "compute_loss", looked)
    words = ["--max_train_steps", 3, "--validation_steps", 1, "--mixed_precision", "bf16"]
    assert run(script, place, tmp_path / "halved", *words) == 0
    assert {kind for steps, kinds in seen if steps for kind in kinds} == {torch.bfloat16}
    assert {kind for steps, kinds in seen if not steps for kind in kinds} == {torch.float32}
    AcceleratorState._reset_state(True)
    monkeypatch.setattr(Run, "halve_frozen", lambda self, *models: None)
    assert run(script, place, tmp_path / "whole", *words) == 0
    for name in ("loss", "validation_psnr"):
        assert curve(tmp_path / "halved", name) == pytest.approx(curve(tmp_path / "whole", name), rel=1e-5)
    assert_equal(weights(tmp_path / "halved"), weights(tmp_path / "whole"), atol=1e-6, rtol=1e-5)
    halved, whole = (
        load_file(next((tmp_path / n / "pipeline/unet").glob("*.safetensors"))) for n in ("halved", "whole")
    )
    assert_equal(halved, whole, atol=1e-6, rtol=1e-5)


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
