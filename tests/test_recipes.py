"""The recipes: the default one from nothing to a pipeline at tiny size, the others as far as the commands they give."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SIDE, load_script, tiny_appearance, tiny_encoder, tiny_unet, tiny_view_transformer

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.camera import orbit_cameras

RECIPES = ROOT / "training/recipes"
STAGES = ("restoration", "features", "novel_view", "restorer", "reader", "fuser_small", "fuser")
RESULTS = ["autoencoder/vae", *(f"{name}/pipeline" for name in STAGES)]
TINY_VAE = {
    "latent_channels": 4,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    **{f"{part}_block_out_channels": [8] * 4 for part in ("encoder", "decoder")},
    **{f"{part}_layers_per_block": [0, 1, 1, 1] for part in ("encoder", "decoder")},
    **{f"{part}_qkv_multiscales": [[]] * 4 for part in ("encoder", "decoder")},
}
RECORD = """#!/usr/bin/env bash
[ "${1:-}" != - ] || exit 0
printf '%s\\n' "$(basename "$0")" "$@" END >> "$COMMANDS"
while [ $# -gt 0 ]; do
    [ "$1" != --output_dir ] || { mkdir -p "$2/vae" "$2/pipeline"; touch "$2/curve.jsonl"; }
    shift
done
"""


def write_shapes(folder):
    """Shapes of tiny models, under the names that the default recipe asks for."""
    folder.mkdir()
    models = {"unet": tiny_unet(), "image_encoder": tiny_encoder(), "view_transformer": tiny_view_transformer()}
    models["appearance"] = tiny_appearance(sample_size=SIDE)
    for name, model in models.items():
        shape = {key: value for key, value in model.config.items() if not key.startswith("_")}
        (folder / f"{name}.json").write_text(json.dumps(shape))
    (folder / "autoencoder.json").write_text(json.dumps(TINY_VAE))
    return folder


def contents(folder):
    """Every file of a folder, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(find_spec("moderngl") is None or find_spec("anny") is None, reason="moderngl or anny is missing")
@pytest.mark.timeout(900)
def test_the_default_recipe_goes_from_nothing_to_a_pipeline(tmp_path):
    """Assert that it ends in a pipeline that makes views, also after a kill, which costs no stage that was done."""
    out = tmp_path / "run"
    sizes = {"IDENTITIES": 8, "VIEWS": 4, "RENDERED": 64, "SIZE": 64, "MINUTES": 0.1, "PRECISION": "no"}
    environment = {**os.environ, "OUT": str(out), "MODELS": str(write_shapes(tmp_path / "models"))}
    environment |= {name: str(value) for name, value in sizes.items()}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [str(RECIPES / "default.sh")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while not (out / "restoration/curve.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (out / "fuser").exists()
    done = {
        path: when for folder in ("heads", "heads-64", "autoencoder") for path, when in contents(out / folder).items()
    }

    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.splitlines()[-1] == f"The pipeline: {out / RESULTS[-1]}"
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert all((out / result).is_dir() for result in RESULTS)
    pipe = NVBFacePipeline.from_pretrained(out / RESULTS[-1])
    assert pipe.appearance is not None
    views = pipe(
        torch.rand(3, 64, 64), cameras=orbit_cameras(2, (-20, 20)), num_inference_steps=1, output_type="pt"
    ).images
    assert torch.isfinite(views).all()

    before = contents(out)
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-3000:]
    assert contents(out) == before


@pytest.mark.parametrize("recipe", ["default", "overfit", "paper_sd21"])
def test_recipes_give_options_that_their_scripts_have(recipe, tmp_path):
    """Assert that every command is understood, shapes are there, and each stage reads what one before has made."""
    for name in ("python", "accelerate", "nvb-heads"):
        (tmp_path / name).write_text(RECORD)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "COMMANDS": str(tmp_path / "commands")}
    environment |= {"OUT": str(tmp_path / "out"), "FACES": "faces", "HEADS": "heads", "MINUTES": "60"}
    subprocess.run([str(RECIPES / f"{recipe}.sh")], env=environment, check=True, capture_output=True)
    commands = [part.splitlines() for part in (tmp_path / "commands").read_text().split("\nEND\n") if part]
    made, seconds = set(), 0.0
    for program, *words in commands:
        words = words[words[:1] == ["launch"] :]
        if program == "nvb-heads":
            from nvb_diffusers.heads import cli

            cli.parse_args(words)
            continue
        args = load_script(Path(words[0]).stem).parse_args(words[1:])
        for name, value in vars(args).items():
            assert not name.endswith("_config") or value is None or Path(value).is_file()
            if name.endswith("name_or_path") and str(value).startswith(str(tmp_path)):
                assert str(value) in made
        made |= {f"{args.output_dir}/vae", f"{args.output_dir}/pipeline"}
        seconds += getattr(args, "max_train_seconds", 0)
    assert seconds == pytest.approx(3600)


@pytest.mark.parametrize(("name", "machines", "processes"), [("1_gpu", 1, 1), ("8_gpus", 1, 8), ("64_gpus", 8, 64)])
def test_launch_files_say_how_many_processes(name, machines, processes):
    """Assert what accelerate makes of each file and of the rank and host that its head gives."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    words = ["--config_file", str(ROOT / f"training/configs/{name}.yaml")]
    words += ["--machine_rank", "3", "--main_process_ip", "10.0.0.1"] if machines > 1 else []
    args = _validate_launch_command(launch_command_parser().parse_args([*words, "train.py", "--seed", "1"]))[0]
    assert (args.num_machines, args.num_processes, args.mixed_precision) == (machines, processes, "bf16")
    assert args.multi_gpu == (processes > 1)
    assert (args.machine_rank, args.main_process_ip) == ((3, "10.0.0.1") if machines > 1 else (0, None))
    assert (args.training_script, args.training_script_args) == ("train.py", ["--seed", "1"])


def test_the_launch_file_of_sharded_models_asks_for_fsdp2():
    """Assert what a process started by it finds in its environment."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(ROOT / "training/configs/8_gpus_fsdp.yaml"), "train.py"]
    args = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    environment = prepare_multi_gpu_env(args)
    assert (args.num_processes, args.mixed_precision, args.use_fsdp) == (8, "bf16", True)
    expected = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    assert {name: environment[name] for name in expected} == expected
    assert environment["FSDP_OFFLOAD_PARAMS"] == environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_a_script_starts_from_a_launch_file(tmp_path):
    """Assert that a process which a file starts has its precision, and one process."""
    (tmp_path / "say.py").write_text(
        "from accelerate import Accelerator\na = Accelerator()\nprint('SAID', a.num_processes, a.mixed_precision)\n"
    )
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "training/configs/1_gpu.yaml"]
    done = subprocess.run([*words, "--cpu", tmp_path / "say.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "SAID 1 bf16" in done.stdout
