"""The examples that are shell scripts, as a user runs them, at tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import (
    ROOT,
    SIDE,
    tiny_appearance,
    tiny_encoder,
    tiny_pipeline,
    tiny_scheduler,
    tiny_unet,
    tiny_vae,
    tiny_view_transformer,
)
from small_data import write_small_set

from nvb_diffusers import NVBFacePipeline


def run(name, *words, **variables):
    """Run an example in its own process, with this interpreter's commands."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PATH": path, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    env |= {key: str(value) for key, value in variables.items()}
    done = subprocess.run([ROOT / "examples" / name, *map(str, words)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fine_tuning(tmp_path):
    """Assert that the view transformer trains on, the rest stays to the bit, and that its views are there, with a base
    whose own pixels are larger than its latents', as those of the packaged one are.
    """
    base = tiny_pipeline(appearance=True)
    base.register_modules(appearance=tiny_appearance(sample_size=2 * SIDE).eval())
    base.register_to_config(default_num_inference_steps=1)
    base.save_pretrained(tmp_path / "base")
    write_small_set(tmp_path / "data")
    words = ["--max_train_steps", 2, "--train_batch_size", 1, "--num_target_views", 1, "--num_validation_samples", 1]
    words += ["--num_inference_steps", 1, "--dataloader_num_workers", 0, "--report_to", "none", "--lr_warmup_steps", 0]
    run("fine_tune.sh", *words, BASE=tmp_path / "base", DATA=tmp_path / "data", OUT=tmp_path / "out")
    tuned = NVBFacePipeline.from_pretrained(tmp_path / "out/pipeline")
    for name in ("image_encoder", "unet", "vae", "view_transformer", "appearance"):
        before, after = (getattr(pipe, name).state_dict() for pipe in (base, tuned))
        same = all(torch.equal(before[key], after[key]) for key in before)
        assert same == (name != "view_transformer"), name
    assert len(list((tmp_path / "out/views").glob("view_*.png"))) == 7


def test_comparing_methods(opengl, tmp_path):
    """Assert scores of a pipeline and of the input on rendered heads, and a report."""
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    rows = [
        {"name": "ours", "method": "one_stage", "checkpoint": str(tmp_path / "pipe")},
        {"name": "input", "method": "input"},
    ]
    options = {"split": "test", "num_identities": 2, "num_target_views": 2, "resolution": 64}
    values = {"title": "t", "rows": rows, "preset": "mild", "test_set": options, "num_inference_steps": 1}
    (tmp_path / "c.json").write_text(json.dumps({**values, "num_figures": 1}))
    run("compare_methods.sh", "--workers", 1, OUT=tmp_path / "o", COMPARISON=tmp_path / "c.json", IDENTITIES=2, SIZE=64)
    result = json.loads((tmp_path / "o/comparison/comparison.json").read_text())
    assert {"ours", "input"} <= set(json.dumps(result).split('"'))
    assert list((tmp_path / "o/comparison").glob("*.html"))


def test_another_base(tmp_path):
    """Assert both steps on a base whose cross-attention is narrower than the features, its adapter, and the views."""
    data = write_small_set(tmp_path / "data", views=8)
    models = {"unet": tiny_unet(cross_attention_dim=8), "vae": tiny_vae(), "scheduler": tiny_scheduler()}
    for name, model in models.items():
        model.save_pretrained(tmp_path / "base" / name)
    shapes = {"encoder": tiny_encoder(), "view_transformer": tiny_view_transformer()}
    for name, model in shapes.items():
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    words = ["--max_train_steps", 1, "--train_batch_size", 1, "--num_validation_samples", 1, "--resolution", SIDE]
    words += ["--num_inference_steps", 1, "--dataloader_num_workers", 0, "--report_to", "none"]
    words += ["--mixed_precision", "no", "--lr_warmup_steps", 0]
    places = {"BASE": tmp_path / "base", "FACES": data, "HEADS": data, "OUT": tmp_path / "out", "STEPS": 1}
    places |= {name.upper(): tmp_path / f"{name}.json" for name in shapes}
    run("another_base.sh", *words, **places)
    made = NVBFacePipeline.from_pretrained(tmp_path / "out/novel_view/pipeline")
    assert made.unet.config.cross_attention_dim == tiny_encoder().config.out_channels
    before, after = models["unet"].state_dict(), made.unet.state_dict()
    assert torch.equal(before["conv_in.bias"], after["conv_in.bias"])  # LoRA is on weights alone
    outputs = [key for key in before if "attn2.to_out.0.weight" in key]  # attn2 trains in full
    assert outputs
    assert not any(torch.equal(before[key], after[key]) for key in outputs)
    assert list((tmp_path / "out/restoration/adapter").rglob("*.safetensors"))
    assert len(list((tmp_path / "out/views").glob("view_*.png"))) == 7
