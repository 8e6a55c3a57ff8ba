"""What users of diffusers' training scripts expect of a run's options."""

import argparse
import json
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_calls import Samples, curve, options, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nvb_diffusers.option_types import OneLineParser
from nvb_diffusers.training import options as shared_options
from nvb_diffusers.training import start
from nvb_diffusers.training.checkpoints import list_checkpoints
from nvb_diffusers.training.options import parse_run_args
from nvb_diffusers.training.run import Run

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


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
