"""`Run` on a model of three weights: when it validates, which weights are seen when, and where it stops."""

import argparse
import os
import pickle
import re
import signal
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import load_script
from huggingface_hub.errors import LocalTokenNotFoundError
from run_calls import Samples, curve, options, saved, train

from nvb_diffusers.stopping import SIGNALS, Stopped
from nvb_diffusers.training import health, start
from nvb_diffusers.training.checkpoints import list_checkpoints
from nvb_diffusers.training.run import Run, one_line_errors, slow_bf16_note

SCRIPTS = [load_script(f"train_{name}") for name in ("autoencoder", "restoration", "novel_view")]

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_it_validates_with_averaged_weights_and_goes_on_with_its_own(tmp_path):
    """Assert validation at every second step and at the last; what it sees is neither trained on nor in checkpoints."""
    words = ["--max_train_steps", 5, "--checkpointing_steps", 1, "--checkpoints_total_limit", 9]
    validated, stepped, last = train(tmp_path / "run", *words, "--validation_steps", 2)
    assert list(validated) == [2, 4, 5]
    assert list(stepped) == [1, 3]
    assert torch.equal(last, validated[5])
    assert not torch.equal(last, saved(tmp_path / "run", 5))
    assert torch.equal(stepped[3], saved(tmp_path / "run", 3))
    assert curve(tmp_path / "run", "part") == {n: 2 * loss for n, loss in curve(tmp_path / "run", "loss").items()}
    _, never, same = train(tmp_path / "never", *words, "--validation_steps", 99)
    assert list(never) == [1, 2, 3, 4]
    assert torch.equal(never[3], stepped[3])
    assert torch.equal(same, last)


def test_a_run_that_is_done_does_nothing_more(tmp_path):
    """Assert that the same command again takes no step, validates nothing, and ends with the same weights."""
    words = ["--max_train_steps", 3, "--resume_from_checkpoint", "latest"]
    _, _, last = train(tmp_path, *words)
    before = (tmp_path / "curve.jsonl").read_text()
    validated, stepped, again = train(tmp_path, *words)
    assert not validated
    assert not stepped
    assert torch.equal(again, last)
    assert (tmp_path / "curve.jsonl").read_text() == before


def test_zero_is_never(tmp_path):
    """Assert that 0 leaves checkpoints and validation to the end and logs nothing, and that a limit of 0 keeps all."""
    words = ["--max_train_steps", 3, "--checkpointing_steps", 0, "--validation_steps", 0, "--logging_steps", 0]
    validated, stepped, _ = train(tmp_path / "run", *words, "--max_grad_norm", 0)
    assert (list(validated), list(stepped)) == ([3], [1, 2])
    assert [folder.name for folder in list_checkpoints(tmp_path / "run")] == ["checkpoint-3"]
    assert curve(tmp_path / "run", "loss") == {}
    train(tmp_path / "all", "--max_train_steps", 4, "--checkpointing_steps", 1, "--checkpoints_total_limit", 0)
    assert len(list_checkpoints(tmp_path / "all")) == 4


def test_gradients_are_not_shortened_without_a_limit(tmp_path):
    """Assert that --max_grad_norm 0 trains as a limit that is never reached, and not with gradients of 0."""
    _, _, free = train(tmp_path / "free", "--max_train_steps", 2, "--max_grad_norm", 0)
    _, _, high = train(tmp_path / "high", "--max_train_steps", 2, "--max_grad_norm", 1e9)
    assert torch.equal(free, high)
    torch.manual_seed(0)
    assert not torch.equal(free, torch.nn.Linear(3, 1, bias=False).weight)


# A loss that is lost


def train_with_nan(folder, bad_steps, *words):
    """Run with losses that are NaN at some steps; the weights after each step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1, bias=False)
    weights = {0: model.weight.detach().clone()}
    with Run("test", options(folder, *words, "--validation_steps", 99)) as run:
        (wrapped,) = run.prepare([model], Samples())
        for batch in run:
            factor = float("nan") if run.global_step + 1 in bad_steps else 1.0
            run.step(factor * wrapped(batch["values"]).square().mean(), {})
            if not run.validates:
                weights[run.global_step] = model.weight.detach().clone()
    return weights


def test_one_bad_step_is_left_out(tmp_path):
    """Assert that a step without finite gradients changes no weight, makes no checkpoint, and the run goes on."""
    words = ["--max_train_steps", 5, "--checkpointing_steps", 1, "--checkpoints_total_limit", 0]
    weights = train_with_nan(tmp_path, {2}, *words)
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert [folder.name for folder in list_checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (1, 3, 4, 5)]


@pytest.mark.parametrize("steps", [6, 50])
def test_a_lost_run_ends_with_its_last_good_checkpoint(tmp_path, monkeypatch, steps):
    """Assert one line that names it, after so many bad steps or at the end, whatever the limit of checkpoints."""
    monkeypatch.setattr(health, "PATIENCE", 9)
    words = ["--max_train_steps", steps, "--checkpointing_steps", 1, "--checkpoints_total_limit", 1]
    with pytest.raises(ValueError, match=rf"not finite at step {min(steps, 11)}, .*go back to .*checkpoint-2"):
        train_with_nan(tmp_path, range(3, 99), *words)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert saved(tmp_path, 2).isfinite().all()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """Assert an error for them, and none for others."""
    good, bad = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.tensor([1.0, float("inf")]))
    health.Health(tmp_path).check([good], 7)
    with pytest.raises(ValueError, match="at step 7, after 0 such steps in a row: begin again, with a lower"):
        health.Health(tmp_path).check([good, bad], 7)


# What is asked when a run resumes


def test_options_asked_on_resume_are_used_and_told(tmp_path, capsys):
    """Assert the new learning rate, weight decay and EMA in what the run does, and one line about them."""
    train(tmp_path, "--max_train_steps", 2)
    capsys.readouterr()
    asked = ["--learning_rate", 0.01, "--adam_weight_decay", 0.3, "--ema_decay", 0.5]
    resume = ["--max_train_steps", 4, "--resume_from_checkpoint", "latest"]
    _, _, last = train(tmp_path, *asked, *resume)
    assert curve(tmp_path, "learning_rate") == {1: 0.1, 2: 0.1, 3: 0.01, 4: 0.01}
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert note.endswith("step 2 with learning_rate 0.01 (was 0.1), adam_weight_decay 0.3 (was 0.01), "
                         "ema_decay 0.5 (was 0.9999)")  # fmt: skip
    state = torch.load(tmp_path / "checkpoint-4/optimizer.bin", weights_only=True)["param_groups"][0]
    assert (state["lr"], state["weight_decay"]) == (0.01, 0.3)
    train(tmp_path / "other", "--max_train_steps", 2)
    _, _, other = train(tmp_path / "other", *asked[:4], *resume)
    assert torch.equal(saved(tmp_path, 4), saved(tmp_path / "other", 4))
    assert not torch.equal(last, other)  # the average alone


def test_a_schedule_goes_on_at_its_place_with_a_new_rate(tmp_path):
    """Assert that a resumed cosine is the one of the new rate at this step."""
    words = ["--lr_scheduler", "cosine", "--max_train_steps", 4]
    train(tmp_path / "new", *words, "--learning_rate", 0.02)
    train(tmp_path / "run", *words, "--max_train_seconds", 1e-9)
    train(tmp_path / "run", *words, "--learning_rate", 0.02, "--resume_from_checkpoint", "latest")
    resumed, whole = (curve(tmp_path / name, "learning_rate") for name in ("run", "new"))
    assert resumed[1] != whole[1]
    assert {step: resumed[step] for step in (2, 3, 4)} == pytest.approx({step: whole[step] for step in (2, 3, 4)})


def test_a_refused_resume_changes_no_file(tmp_path):
    """Assert that a checkpoint of other shapes is one line, and that options and curve are as they were."""
    train(tmp_path, "--max_train_steps", 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = ["--max_train_steps", 4, "--resume_from_checkpoint", "latest", "--learning_rate", 0.5]
    with pytest.raises(ValueError, match="saved with other trainable parameters"):
        Run("test", options(tmp_path, *words)).prepare([torch.nn.Linear(3, 2, bias=False)], Samples())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# What is known at the start


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--report_to", "nobody"], "--report_to nobody: it is no tracker"),
        (["--report_to", "clearml"], "--report_to clearml: it is not installed; here there are: none"),
        (["--push_to_hub", "--hub_model_id", "me/my model"], "--hub_model_id 'me/my model': "),
        (["--push_to_hub", "--hub_model_id", "a/b/c"], "--hub_model_id 'a/b/c': "),
        (["--push_to_hub", "--hub_model_id", ""], "--hub_model_id '': "),
        (["--push_to_hub"], "--hub_model_id run: no token of the Hub is stored here"),
        (["--output_dir", __file__], "test_run.py is a file, expected a folder"),
        (["--output_dir", f"{__file__}/run"], "test_run.py is a file, expected a folder"),
    ],
)
def test_what_can_be_known_is_known_at_the_start(tmp_path, monkeypatch, words, expected):
    """Assert one line before anything is made."""
    monkeypatch.setattr(start.HfApi, "whoami", no_token)
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        Run("test", options(tmp_path / "run", *words))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_must_be_writable(tmp_path, monkeypatch):
    """Assert that the folder that would hold a new one is asked, which is named."""
    start.check_writable(tmp_path / "a/b")
    monkeypatch.setattr(start.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=rf"--output_dir .*/a/b: {tmp_path} cannot be written to"):
        start.check_writable(tmp_path / "a/b")


def no_token(self):
    raise LocalTokenNotFoundError("Token is required")


def unreachable(self):
    raise RuntimeError("[Errno 111]\nConnection refused")  # no OSError, as those of the Hub's client


def test_a_repository_is_one_of_the_token(monkeypatch):
    """Assert that a Hub that does not answer and a foreign namespace are one line, and one's own and a group's pass."""
    monkeypatch.setattr(start.HfApi, "whoami", lambda self: {"name": "me", "orgs": [{"name": "lab"}]})
    for repo_id in ("face", "me/face", "lab/face"):
        start.check_repository(repo_id)
    with pytest.raises(ValueError, match="--hub_model_id you/face: the token may write to me, lab"):
        start.check_repository("you/face")
    monkeypatch.setattr(start.HfApi, "whoami", unreachable)
    with pytest.raises(ValueError, match=r"the Hub does not answer to the token: \[Errno 111\] Connection refused"):
        start.check_repository("me/face")


def test_checkpoints_must_fit_the_disk(tmp_path, monkeypatch):
    """Assert that three checkpoints of a run that keeps two are asked for, and one where it makes but one."""
    layer = torch.nn.Linear(1000, 250, bias=False)  # 1 MB, 4 in a checkpoint
    monkeypatch.setattr(start.shutil, "disk_usage", lambda path: argparse.Namespace(free=10e6))
    words = ["--checkpointing_steps", 1, "--checkpoints_total_limit", 2]
    with pytest.raises(ValueError, match=r"3 checkpoints take 0.01 GB, but 0.01 GB are free"):
        Run("test", options(tmp_path / "run", *words)).prepare([layer], Samples())
    once = ["--checkpointing_steps", 0, "--max_train_steps", 1]
    Run("test", options(tmp_path / "run", *once)).prepare([layer], Samples())


# Precision, errors and shared options


def test_losses_are_made_under_autocast_and_gradients_are_not(tmp_path):
    """Assert that autocast is on from the batch to `step`, and off in what follows."""
    model = torch.nn.Linear(3, 1)
    with Run("test", options(tmp_path, "--max_train_steps", 2, "--mixed_precision", "bf16")) as run:
        (wrapped,) = run.prepare([model], Samples())
        for batch in run:
            assert torch.is_autocast_enabled("cpu")
            run.step(wrapped(batch["values"]).mean(), {})
            assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("device", "cpuinfo", "slow"),
    [
        ("cpu", "flags\t\t: fpu sse2 avx2 avx512f\n", True),
        ("cpu", "flags\t\t: fpu avx512f avx512_bf16 amx_tile\n", False),
        ("cpu", "flags\t\t: fpu amx_bf16\n", False),
        ("cpu", "Features\t: fp asimd bf16 i8mm\n", False),
        ("cpu", "Features\t: fp asimd svebf16x\n", True),
        ("cuda", "flags\t\t: fpu sse2\n", False),
        ("cpu", None, False),
    ],
)
def test_bf16_without_instructions_is_told_in_one_line(tmp_path, device, cpuinfo, slow):
    """Assert one line where a CPU would emulate bf16, and none on GPUs, nor where the system does not say."""
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    note = slow_bf16_note(torch.device(device), path)
    assert (note is not None) == slow
    assert not slow or len(note.splitlines()) == 1


def test_errors_of_the_input_are_one_line_and_others_pass(capsys):
    """Assert exit status 2 and one line for errors of values and files; a mistake in the program is no such thing."""

    def fail(error):
        @one_line_errors
        def main(argv=None):
            raise error

        return main

    assert fail(ValueError("no\nsuch set"))(None) == 2
    assert fail(FileNotFoundError("no file"))(None) == 2
    assert capsys.readouterr().err == "error: no such set\nerror: no file\n"
    with pytest.raises(KeyError):
        fail(KeyError("x"))(None)


def test_shared_options_are_in_every_script():
    """Assert that each script has all options of a run, so that a command line goes from one to the next."""
    required = ["--data_dir", "-", "--output_dir", "-", "--pretrained_model_name_or_path", "-"]
    shared = vars(options("-")).keys()
    for script in SCRIPTS:
        words = required[:4] if script.__name__ == "train_autoencoder" else required
        assert vars(script.parse_args(words)).keys() >= shared


class Trap:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"])
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_resuming_runs_no_code_of_the_folder(tmp_path, name, save):
    """Assert that a pickle placed in a checkpoint, in torch's format and in Python's, is never executed."""
    folder = tmp_path / "run"
    train(folder, "--max_train_steps", 1)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    written = {path.name for path in (folder / "checkpoint-1").iterdir()}
    assert not {path for path in written if path.endswith(".pkl")} - {"random_states_0.pkl"}
    save({"a": Trap(tmp_path / "ran")}, folder / "checkpoint-1" / name)
    words = ["--max_train_steps", 2, "--resume_from_checkpoint", "latest"]
    if name == "random_states_0.pkl":  # accelerate goes on without them; a run of ours draws nothing from them
        train(folder, *words)
    else:
        with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint-1: |would run the code in it"):
            train(folder, *words)
    assert not (tmp_path / "ran").exists()


# Stops


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint(number, tmp_path):
    """Assert that a stopped run says where it is, that it can go on exactly, and that handlers are given back."""
    words = ["--max_train_steps", 4, "--resume_from_checkpoint", "latest"]
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Stopped, match=f"^stopped by {number.name} at step 2, ") as stopped:
        train(tmp_path / "parts", *words, in_step=lambda step: step == 1 and os.kill(os.getpid(), number))
    assert stopped.value.status == 128 + number
    assert [path.name for path in list_checkpoints(tmp_path / "parts")] == ["checkpoint-2"]
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert torch.equal(train(tmp_path / "parts", *words)[2], train(tmp_path / "whole", *words)[2])


def test_a_folder_has_one_run(tmp_path):
    """Assert that a second run in the folder is refused, and that the end of the first makes room and no folder."""
    with Run("test", options(tmp_path / "run")):
        with pytest.raises(ValueError, match="is being written to by another process"):
            Run("test", options(tmp_path / "run"))
        assert (tmp_path / "run").is_dir()
    with Run("test", options(tmp_path / "run")):
        pass
    assert not (tmp_path / "run").exists()  # nothing was written


def test_what_is_no_pipeline_stays(tmp_path):
    """Assert that a folder in the place of what a run makes is refused before it begins, unless a run made it."""
    (tmp_path / "pipeline").mkdir()
    start.check_start(options(tmp_path))  # an empty one does not matter
    (tmp_path / "pipeline/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"pipeline' holds other things, without a model_index.json"):
        start.check_start(options(tmp_path))
    (tmp_path / "pipeline/model_index.json").write_text("{}")
    start.check_start(options(tmp_path))


def test_a_refused_resume_changes_nothing(tmp_path):
    """Assert that a run that cannot go on leaves every file as it was."""
    train(tmp_path, "--max_train_steps", 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = ["--resume_from_checkpoint", "latest", "--learning_rate", 0.5, "--max_train_steps", 3]
    with pytest.raises(ValueError, match="other trainable parameters"):
        train(tmp_path, *words, outputs=2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
