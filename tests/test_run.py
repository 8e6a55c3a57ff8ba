"""`Run` on a model of three weights: when it validates, which weights are seen when, and where it stops."""

import argparse
import json
import os
import pickle
import re
import signal
from io import BytesIO
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import load_script
from huggingface_hub.errors import LocalTokenNotFoundError
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Dataset

from nvb_diffusers.option_types import OneLineParser
from nvb_diffusers.stopping import SIGNALS, Stopped
from nvb_diffusers.training import health, start
from nvb_diffusers.training import options as shared_options
from nvb_diffusers.training.checkpoints import list_checkpoints
from nvb_diffusers.training.options import add_run_arguments, parse_run_args
from nvb_diffusers.training.run import Run, one_line_errors, slow_bf16_note

SCRIPTS = [load_script(f"train_{name}") for name in ("autoencoder", "restoration", "novel_view")]


class Samples(Dataset):
    """Pairs of a sample's key and three numbers."""

    records = None  # neither shards nor files
    count = 5

    def keep_first(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        return {"key": torch.tensor(key), "values": torch.arange(3.0) + key % self.count}


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Forget the processes and precision of the run before, which accelerate keeps for the life of a process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def options(folder, *words):
    parser = argparse.ArgumentParser()
    add_run_arguments(parser, train_batch_size=2, learning_rate=0.1, lr_warmup_steps=0, dataloader_num_workers=0)
    common = ["--data_dir", "-", "--output_dir", str(folder), "--report_to", "none", "--logging_steps", "1"]
    return parser.parse_args([*common, *map(str, words)])


def train(folder, *words, in_step=lambda step: None, outputs=1):
    """Run to the end; the weight as it was at each validation, after each step, and at the end."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, outputs, bias=False)
    validated, stepped = {}, {}
    with Run("test", options(folder, *words)) as run:
        (wrapped,) = run.prepare([model], Samples())
        for batch in run:
            in_step(run.global_step)
            loss = wrapped(batch["values"]).square().mean()
            run.step(loss, {"part": 2 * loss.detach()})
            if run.validates:
                validated[run.global_step] = model.weight.detach().clone()
                run.log({"validation": 1.0})
            else:
                stepped[run.global_step] = model.weight.detach().clone()
    return validated, stepped, model.weight.detach().clone()


def curve(folder, name):
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def saved(folder, step):
    return load_file(folder / f"checkpoint-{step}/trainable_0.safetensors")["weight"]


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


# What users of diffusers' scripts expect


def test_epochs_are_passes_over_the_set(tmp_path):
    """Assert two passes over five samples in batches of two as six steps, over the first three of them as four."""
    train(tmp_path / "all", "--num_train_epochs", 2)
    assert max(curve(tmp_path / "all", "loss")) == 6
    train(tmp_path / "three", "--num_train_epochs", 2, "--max_train_samples", 3)
    assert max(curve(tmp_path / "three", "loss")) == 4
    assert json.loads((tmp_path / "three/options.json").read_text())["max_train_steps"] == 4


def test_fewer_samples_are_the_first_ones(tmp_path):
    """Assert that a run of one sample sees it alone, again and again."""
    seen = []
    model = torch.nn.Linear(3, 1, bias=False)
    with Run("test", options(tmp_path, "--max_train_steps", 3, "--max_train_samples", 1)) as run:
        (wrapped,) = run.prepare([model], Samples())
        for batch in run:
            seen += batch["values"].tolist()
            run.step(wrapped(batch["values"]).square().mean(), {})
    assert seen == [[0.0, 1.0, 2.0]] * 6


def test_a_scaled_rate_is_of_the_whole_batch(tmp_path):
    """Assert the rate times two samples and three accumulated batches."""
    train(tmp_path, "--max_train_steps", 1, "--scale_lr", "--gradient_accumulation_steps", 3, "--learning_rate", 0.01)
    assert curve(tmp_path, "learning_rate") == {1: pytest.approx(0.06)}


def test_cycles_and_power_shape_the_rate(tmp_path):
    """Assert two falls of a cosine with two cycles, and the squares of a polynomial of power 2."""
    words = ["--max_train_steps", 5, "--lr_scheduler"]
    train(tmp_path / "cycles", *words, "cosine_with_restarts", "--lr_num_cycles", 2)
    rates = list(curve(tmp_path / "cycles", "learning_rate").values())
    assert rates[0] > rates[1] < rates[2] > rates[3]
    train(tmp_path / "power", *words, "polynomial", "--lr_power", 2)
    ends = 1e-7  # diffusers' own end of the fall
    expected = {step: pytest.approx((0.1 - ends) * (1 - step / 5) ** 2 + ends) for step in range(1, 6)}
    assert curve(tmp_path / "power", "learning_rate") == expected


def test_adams_own_numbers_reach_it_and_a_resume_changes_them(tmp_path):
    """Assert them in the optimizer's state, those of a new command after a resume."""
    words = ["--adam_beta1", 0.8, "--adam_beta2", 0.95, "--adam_epsilon", 1e-6]

    def state(step):
        group = torch.load(tmp_path / f"checkpoint-{step}/optimizer.bin", weights_only=True)["param_groups"][0]
        return group["betas"], group["eps"]

    train(tmp_path, "--max_train_steps", 1, *words)
    assert state(1) == ((0.8, 0.95), 1e-6)
    train(tmp_path, "--max_train_steps", 2, *words[:2], "--resume_from_checkpoint", "latest")
    assert state(2) == ((0.8, 0.999), 1e-8)


def test_a_checkpoint_of_the_run_is_known_by_its_name(tmp_path):
    """Assert that checkpoint-2 is that of the run's folder, whatever the working directory."""
    words = ["--max_train_steps", 4]
    train(tmp_path / "whole", *words)
    train(tmp_path / "parts", "--max_train_steps", 2)
    train(tmp_path / "parts", *words, "--resume_from_checkpoint", "checkpoint-2")
    assert curve(tmp_path / "parts", "loss") == curve(tmp_path / "whole", "loss")
    with pytest.raises(ValueError, match="no checkpoint at checkpoint-9"):
        train(tmp_path / "parts", *words, "--resume_from_checkpoint", "checkpoint-9")


def test_all_checkpoints_are_kept_unasked(tmp_path):
    """Assert that no checkpoint goes unless a limit was asked for."""
    train(tmp_path, "--max_train_steps", 4, "--checkpointing_steps", 1)
    assert len(list_checkpoints(tmp_path)) == 4


def test_tf32_is_asked_for(tmp_path):
    """Assert that products take it with the option alone."""
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        train(tmp_path / "exact", "--max_train_steps", 1)
        assert not torch.backends.cuda.matmul.allow_tf32
        train(tmp_path / "fast", "--max_train_steps", 1, "--allow_tf32")
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_a_tracker_gets_its_folder_its_name_and_the_picture(tmp_path):
    """Assert where TensorBoard writes, and that it holds the picture that a script left when it validated."""
    model = torch.nn.Linear(3, 1, bias=False)
    words = ["--report_to", "tensorboard", "--logging_dir", "told", "--tracker_project_name", "faces"]
    with Run("test", options(tmp_path, "--max_train_steps", 1, *words)) as run:
        (wrapped,) = run.prepare([model], Samples())
        for batch in run:
            run.step(wrapped(batch["values"]).square().mean(), {})
            Image.new("RGB", (6, 4), (10, 200, 30)).save(tmp_path / "validation.png")
    (events,) = (tmp_path / "told/faces").glob("events.out.tfevents.*")
    loaded = EventAccumulator(str(events)).Reload()
    (picture,) = loaded.Images("validation")
    with Image.open(BytesIO(picture.encoded_image_string)) as image:
        assert image.size == (6, 4)
        assert image.convert("RGB").getpixel((3, 2)) == (10, 200, 30)


def test_the_token_is_used_and_told_to_nobody(tmp_path, monkeypatch):
    """Assert that publishing gets token and name, by default the folder's, and that no file of the run has it."""
    tokens, published = [], []
    monkeypatch.setattr(start, "HfApi", lambda token: tokens.append(token) or argparse.Namespace(whoami=me))
    words = ["--max_train_steps", 1, "--push_to_hub", "--hub_token", "hf_secret", "--report_to", "tensorboard"]
    with Run("test", options(tmp_path / "face", *words)) as run:
        (wrapped,) = run.prepare([torch.nn.Linear(3, 1, bias=False)], Samples())
        for batch in run:
            run.step(wrapped(batch["values"]).square().mean(), {})
        result = argparse.Namespace(save_pretrained=lambda folder: Path(folder, "file").touch())
        run.save(result, lambda made, name, token: published.append((name, token)))
    assert (tokens, published) == (["hf_secret"], [("face", "hf_secret")])
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


def me():
    return {"name": "me"}


def parsed(*words):
    parser = OneLineParser()
    shared_options.add_run_arguments(parser)
    shared_options.add_degradation_arguments(parser)
    return parse_run_args(parser, [*map(str, words)])


def test_a_file_of_options_is_a_command_line(tmp_path):
    """Assert every kind of value, that words on the line win, and that a run's own options.json is such a file."""
    path = tmp_path / "options.json"
    path.write_text(json.dumps({"data_dir": "my set", "output_dir": "o", "no_flip": True, "use_muon": False, "data": 1,
                                "degradation": ["mild", "severe"], "learning_rate": 1e-3, "seed": None}))  # fmt: skip
    args = parsed("--config_file", path, "--learning_rate", 0.5)
    assert (args.data_dir, args.no_flip, args.use_muon, args.seed) == ("my set", True, False, 0)
    assert (args.degradation, args.learning_rate) == (["mild", "severe"], 0.5)
    train(tmp_path / "run", "--max_train_steps", 2, "--no_flip", "--learning_rate", 0.02)
    parser = OneLineParser()
    shared_options.add_run_arguments(parser)
    again = parse_run_args(parser, ["--config_file", str(tmp_path / "run/options.json")])
    assert (again.output_dir, again.no_flip, again.learning_rate) == (str(tmp_path / "run"), True, 0.02)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1]", "holds no JSON object"),
        ("{", "JSON"),
        ('{"learning_rat": 1}', "has 'learning_rat', which is no option here"),
        ('{"help": true}', "has 'help', which is no option here"),
        ('{"no_flip": "yes"}', "true or false is accepted"),
        ('{"learning_rate": "fast"}', "'fast' is not a number"),
        ('{"max_train_steps": 0}', "'0' is not a whole number"),
    ],
)
def test_a_bad_file_of_options_is_one_line(tmp_path, capsys, content, expected):
    """Assert exit status 2 and one line that says what is wrong."""
    path = tmp_path / "options.json"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        parsed("--data_dir", "d", "--output_dir", "o", "--config_file", path)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


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
