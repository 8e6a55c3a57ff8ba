"""`Run` on a model of three weights: when it validates, which weights are seen when, and where it stops."""

import argparse
import json
import pickle
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import load_script
from safetensors.torch import load_file
from torch.utils.data import Dataset

from nvb_diffusers.training.options import add_run_arguments
from nvb_diffusers.training.run import Run, one_line_errors, slow_bf16_note

SCRIPTS = [load_script(f"train_{name}") for name in ("autoencoder", "restoration", "novel_view")]


class Samples(Dataset):
    """Pairs of a sample's key and three numbers."""

    records = None  # neither shards nor files

    def __len__(self):
        return 5

    def __getitem__(self, key):
        return {"key": torch.tensor(key), "values": torch.arange(3.0) + key % 5}


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


def train(folder, *words):
    """Run to the end; the weight as it was at each validation, after each step, and at the end."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1, bias=False)
    validated, stepped = {}, {}
    with Run("test", options(folder, *words)) as run:
        (wrapped,) = run.prepare([model], Samples())
        for batch in run:
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
