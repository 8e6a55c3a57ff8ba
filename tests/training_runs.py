"""Runs of the training scripts at tiny size, and what they leave."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
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
from safetensors.torch import load_file
from small_data import write_small_set

from nvb_diffusers.training.checkpoints import list_checkpoints

TRAINING = ROOT / "training"
SCRIPTS = {name: load_script(f"train_{name}") for name in ("autoencoder", "restoration", "novel_view")}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as `accelerate launch --use_fsdp` sets them
STEPS = ["restoration", "novel_view"]


@pytest.fixture
def fresh_accelerate():
    """Forget the processes and precision of the run before, which accelerate keeps for the life of a process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def write_config(path, model):
    path.write_text(json.dumps({name: value for name, value in model.config.items() if not name.startswith("_")}))


@pytest.fixture(scope="session")
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


def run_together(program, commands, processes=2, **environment):
    """Run the main functions of scripts one after the other in so many processes.

    Args:
        program: a file that is written and launched.
        commands: script and words of each.
    """
    lines = ["import sys", f"sys.path.insert(0, {str(TRAINING)!r})", "from accelerate import Accelerator"]
    lines += ["Accelerator.end_training = lambda self: None  # it would end the group of processes"]
    for script, words in commands:
        lines += [f"import {script}", f"if status := {script}.main({words!r}):", "    sys.exit(status)"]
    program.write_text("\n".join(lines))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    variables = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", **environment}
    finished = subprocess.run([*launch, str(program)], env=variables, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]


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
