"""Commands in real processes, told to stop as terminals and clusters do: one line, nothing half-written, no orphans."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, assert_same_results, group_ends, tiny_pipeline
from PIL import Image
from small_data import write_small_set

from nvb_diffusers.stopping import Stopped, asked_to_stop, stop_by_signals
from nvb_diffusers.training.checkpoints import list_checkpoints

NVB_FACE = ["-c", "import sys; from nvb_diffusers.cli import main; sys.exit(main(sys.argv[1:]))"]
QUIET = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}


def stop(command, number, ready):
    """Tell all processes of a command to stop once it is ready; its exit status and its lines of standard error."""
    command = [sys.executable, *map(str, command)]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, start_new_session=True, env=QUIET, text=True, **streams) as process:
        while not ready():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        os.killpg(process.pid, number)
        lines = process.communicate(timeout=60)[1].splitlines()
    assert group_ends(process.pid)
    return process.returncode, lines


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a tiny pipeline of random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_training_ends_with_a_checkpoint_and_one_line(number, checkpoint, tmp_path):
    """Assert that workers of the data loader say nothing and end, and that the run left its step behind."""
    write_small_set(tmp_path / "data")
    command = [ROOT / "training/train_novel_view.py", "--pretrained_model_name_or_path", checkpoint]
    command += ["--data_dir", tmp_path / "data", "--output_dir", tmp_path / "run", "--resolution", 64]
    command += ["--train_batch_size", 1, "--num_target_views", 1, "--dataloader_num_workers", 2]
    command += ["--logging_steps", 1, "--report_to", "none", "--degradation", "mild"]
    curve = tmp_path / "run/curve.jsonl"
    status, lines = stop(command, number, lambda: curve.exists() and curve.read_text().count("\n") > 1)
    assert status == 128 + number
    assert not [line for line in lines if "Traceback" in line or "Error" in line]
    (saved,) = list_checkpoints(tmp_path / "run")
    assert f"stopped by {number.name} at step {saved.name.removeprefix('checkpoint-')}, " in lines[-1]
    assert not (tmp_path / "run/pipeline").exists()


def test_heads_go_on_after_a_stop(opengl, tmp_path):
    """Assert one line that says so, and that no worker is left."""
    folder = tmp_path / "heads"
    command = ["-m", "nvb_diffusers.heads.cli", "--output_dir", folder, "--size", 64, "--views", 2]
    command += ["--identities", 500, "--workers", 2]
    status, lines = stop(command, signal.SIGINT, lambda: any(folder.glob("records/*.json")))
    assert status == 130
    assert lines == ["nvb-heads: stopped by SIGINT; the same command goes on"]
    assert not (folder / "images/metadata.jsonl").exists()


def test_a_command_stops_in_one_line(checkpoint, tmp_path):
    """Assert that views that were under way leave nothing behind."""
    Image.new("RGB", (40, 40), "red").save(tmp_path / "face.png")
    program = (
        "import sys, time; from pathlib import Path; from nvb_diffusers import cli; views = cli.views\n"
        "real = views.contact_sheet\n"
        "views.contact_sheet = lambda *args: (Path(sys.argv[-1]).touch(), time.sleep(60), real(*args))\n"
        "sys.exit(cli.main(sys.argv[1:-1]))"
    )
    words = ["views", tmp_path / "face.png", "--aligned", "--out", tmp_path / "out", "--checkpoint", checkpoint]
    command = ["-c", program, *words, "--steps", "1", "--device", "cpu", tmp_path / "ready"]
    status, lines = stop(command, signal.SIGTERM, (tmp_path / "ready").exists)
    assert status == 143
    assert lines[-1:] == ["nvb-face: stopped by SIGTERM"]
    assert not (tmp_path / "out").exists()


def killed_at(command, folder, count):
    """Kill a command without warning once it has left so many files, half of one perhaps."""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        [sys.executable, *map(str, command)], env=QUIET, start_new_session=True, **streams
    ) as process:
        while process.poll() is None and sum(len(files) for _, _, files in os.walk(folder)) < count:
            time.sleep(0.002)
        assert process.poll() is None, "it was done before"
        process.kill()
    assert group_ends(process.pid)


def contents(folder):
    """What is in the files of a folder; hidden ones count, too."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_of_photos_survives_kills(checkpoint, tmp_path):
    """Assert that a command killed at moments of chance, and given again, ends with what it makes undisturbed."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for shade in range(6):
        Image.new("RGB", (40, 40), (40 * shade, 99, 0)).save(photos / f"{shade}.png")
    words = ["--aligned", "--num", "2", "--checkpoint", checkpoint, "--steps", "1", "--device", "cpu"]
    command = [*NVB_FACE, "views", photos, *words, "--out", tmp_path / "killed"]
    killed_at(command, tmp_path / "killed", random.randint(1, 20))
    for out in ("killed", "whole"):
        assert subprocess.run([sys.executable, *map(str, command[:-1]), tmp_path / out], env=QUIET).returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_comparison_survives_kills(checkpoint, tmp_path):
    """Assert the same of a comparison: nothing is made twice wrongly, and nothing half is taken for whole."""
    write_small_set(tmp_path / "data")
    rows = [{"name": "ours", "method": "one_stage", "checkpoint": str(checkpoint)}, {"name": "in", "method": "input"}]
    options = {"split": "train", "num_identities": 3, "num_target_views": 2, "resolution": 64}
    values = {"title": "t", "rows": rows, "preset": "mild", "test_set": options, "num_inference_steps": 1}
    (tmp_path / "c.json").write_text(json.dumps({**values, "num_figures": 1}))
    command = [*NVB_FACE, "eval", "compare", tmp_path / "c.json", tmp_path / "data", "--workers", "1"]
    killed_at([*command, "--out", tmp_path / "killed"], tmp_path / "killed", random.randint(1, 40))
    results = []
    for out in ("killed", "whole"):
        done = subprocess.run([sys.executable, *map(str, [*command, "--out", tmp_path / out])], env=QUIET)
        assert done.returncode == 0
        results.append(json.loads((tmp_path / out / "comparison.json").read_text()))
        assert not list((tmp_path / out).rglob(".*.part"))
    assert_same_results(*results)


def test_a_second_signal_stops_at_once():
    """Assert that a loop's first signal is noted and its second raised, and what follows the loop hears the first."""

    def send(number):
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # a handler runs between two instructions

    with stop_by_signals():
        with asked_to_stop() as request:
            send(signal.SIGINT)
            assert request.number == signal.SIGINT
            with pytest.raises(Stopped, match="SIGTERM"):
                send(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGINT"):
            send(signal.SIGINT)


AFTER_A_HANG_UP = """
import os, sys, time
from nvb_diffusers.stopping import asked_to_stop
with asked_to_stop() as request:
    print("ready", flush=True)
    while request.number is None:
        time.sleep(0.01)
    time.sleep(0.3)  # in which the shell tells it once more
    print("a line of progress", flush=True)
    open(sys.argv[1], "w").write(str(request.number))
"""


def test_a_closed_terminal_lets_a_run_end_well(tmp_path):
    """Assert that a loop hears of it, twice, and goes on to its own end although nobody reads its lines."""
    pid, terminal = os.forkpty()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execve(sys.executable, [sys.executable, "-c", AFTER_A_HANG_UP, str(tmp_path / "heard")], QUIET)
    while b"ready" not in os.read(terminal, 100):
        pass
    os.close(terminal)
    time.sleep(0.1)
    os.kill(pid, signal.SIGHUP)
    assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "heard").read_text() == str(int(signal.SIGHUP))


def test_what_nohup_began_goes_on():
    """Assert that a hang-up which is ignored when a command begins stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)
