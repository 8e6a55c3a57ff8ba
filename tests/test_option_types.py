"""Numbers and texts on the command line: each wrong one is one line that says what is accepted, before any work."""

import argparse
import re

import pytest
from conftest import ROOT, load_script

from nvb_diffusers.cli import build_parser
from nvb_diffusers.heads.cli import parse_args as parse_heads
from nvb_diffusers.option_types import filled_text, number, whole_number

REQUIRED = {
    "train_autoencoder": ["--data_dir", "d", "--output_dir", "o"],
    "train_restoration": ["--data_dir", "d", "--output_dir", "o"],
    "train_novel_view": ["--data_dir", "d", "--output_dir", "o", "--pretrained_model_name_or_path", "p"],
    "train_appearance": [
        *("--train", "fuser", "--pretrained_model_name_or_path", "p", "--data_dir", "d", "--output_dir", "o")
    ],
    "prepare_resized": ["--data_dir", "d", "--output_dir", "o", "--size", "32"],
    "prepare_ffhq": ["--image_dir", "d", "--output_dir", "o"],
    "prepare_panohead": ["--data_dir", "d", "--output_dir", "o"],
    "prepare_nersemble": ["--data_dir", "d", "--landmarks", "l", "--output_dir", "o"],
    "prepare_shards": ["--data_dir", "d", "--output_dir", "o"],
}
PARSE = {name: load_script(name).parse_args for name in REQUIRED}
PARSE |= {"nvb-heads": parse_heads, "nvb-face": lambda argv: build_parser().parse_args(argv)}
VIEWS = ["views", "face.png", "--out", "o"]
REQUIRED |= {"nvb-heads": ["--output_dir", "o"], "nvb-face": VIEWS}
NO_COUNTS = ("-1", "1.5", "nan", "inf", "", "1e3", "0x10", "٣", "1_000", " 4", "9" * 5000)
NO_NUMBERS = ("nan", "inf", "-inf", "1e999", "", "a", "1,5")
TRAINING = ("train_autoencoder", "train_restoration", "train_novel_view")

RUN_OPTIONS = {  # what is refused, and what is accepted at the edge
    "resolution": (("0", "15", "63", "8192", *NO_COUNTS), ("16", "64", "512")),
    "dataloader_num_workers": (NO_COUNTS, ("0", "2")),
    "seed": (("4294967296", *NO_COUNTS), ("0", "4294967295")),
    "train_batch_size": (("0", *NO_COUNTS), ("1",)),
    "gradient_accumulation_steps": (("0", *NO_COUNTS), ("1",)),
    "max_train_steps": (("0", *NO_COUNTS), ("1",)),
    "max_train_seconds": (("0", "-3", *NO_NUMBERS), ("0.5",)),
    "learning_rate": (("-1e-4", *NO_NUMBERS), ("0", "5e-5")),
    "lr_warmup_steps": (NO_COUNTS, ("0",)),
    "lr_scheduler": (("piecewise_constant", "cosin", ""), ("cosine", "polynomial")),
    "adam_weight_decay": (("-0.01", *NO_NUMBERS), ("0",)),
    "max_grad_norm": (("-1", *NO_NUMBERS), ("0", "1")),
    "ema_decay": (("1", "1.5", "-0.1", *NO_NUMBERS), ("0", "0.9999")),
    "checkpointing_steps": (NO_COUNTS, ("0", "1")),
    "checkpoints_total_limit": (NO_COUNTS, ("0", "1")),
    "validation_steps": (NO_COUNTS, ("0",)),
    "num_validation_samples": (("0", *NO_COUNTS), ("1",)),
    "logging_steps": (NO_COUNTS, ("0",)),
    "data_dir": (("", "  "), ("my set",)),
    "output_dir": (("",), ("run 1",)),
    "resume_from_checkpoint": (("",), ("latest",)),
    "max_train_samples": (("0", *NO_COUNTS), ("1",)),
    "num_train_epochs": (("0", *NO_COUNTS), ("1",)),
    "lr_num_cycles": (("0", *NO_COUNTS), ("2",)),
    "lr_power": (("0", "-1", *NO_NUMBERS), ("0.5",)),
    "adam_beta1": (("1", "-0.1", *NO_NUMBERS), ("0", "0.99")),
    "adam_beta2": (("1", "-0.1", *NO_NUMBERS), ("0", "0.99")),
    "adam_epsilon": (("0", *NO_NUMBERS), ("1e-6",)),
    "logging_dir": (("",), ("logs",)),
    "tracker_project_name": (("",), ("faces",)),
}
OWN_OPTIONS = [
    ("train_autoencoder", "gradient_loss_weight", ("-1", *NO_NUMBERS), ("0",)),
    ("train_autoencoder", "latent_loss_weight", ("-1", *NO_NUMBERS), ("0",)),
    ("train_autoencoder", "latent_noise", ("-1", *NO_NUMBERS), ("0",)),
    ("train_restoration", "rank", ("0", *NO_COUNTS), ("1",)),
    ("train_restoration", "conditioning_dropout", ("1.1", "-0.1", *NO_NUMBERS), ("0", "1")),
    ("train_restoration", "latent_loss_weight", ("-1", *NO_NUMBERS), ("0",)),
    ("train_restoration", "snr_gamma", ("0", "-5", *NO_NUMBERS), ("5",)),
    ("train_restoration", "num_inference_steps", ("0", "1001", *NO_COUNTS), ("1", "1000")),
    ("train_restoration", "crop_jitter", ("1", "-0.1", *NO_NUMBERS), ("0", "0.3")),
    ("train_novel_view", "conditioning_dropout", ("1.1", "-0.1", *NO_NUMBERS), ("1",)),
    ("train_novel_view", "feature_loss_weight", ("-1", *NO_NUMBERS), ("0",)),
    ("train_novel_view", "cosine_weight", ("-1", *NO_NUMBERS), ("0",)),
    ("train_novel_view", "camera_loss_weight", ("-1", *NO_NUMBERS), ("0",)),
    ("train_novel_view", "num_diffusion_views", NO_COUNTS, ("0",)),
    ("train_novel_view", "num_target_views", ("0", *NO_COUNTS), ("1",)),
    ("train_novel_view", "snr_gamma", ("0", *NO_NUMBERS), ("5",)),
    ("train_novel_view", "num_inference_steps", ("0", *NO_COUNTS), ("20",)),
    ("train_novel_view", "pretrained_model_name_or_path", ("",), ("p",)),
    ("train_appearance", "num_target_views", ("0", *NO_COUNTS), ("1",)),
    ("train_appearance", "num_inference_steps", ("0", *NO_COUNTS), ("4",)),
    ("train_restoration", "noise_offset", ("-1", *NO_NUMBERS), ("0", "0.1")),
    ("train_restoration", "revision", ("",), ("main",)),
    ("train_restoration", "variant", ("",), ("fp16",)),
    ("train_restoration", "cache_dir", ("",), ("downloads",)),
    ("train_novel_view", "noise_offset", ("-1", *NO_NUMBERS), ("0", "0.1")),
    ("train_appearance", "adversarial_weight", ("-1", *NO_NUMBERS), ("0",)),
    ("prepare_resized", "size", ("0", *NO_COUNTS), ("1",)),
    ("prepare_resized", "workers", ("0", *NO_COUNTS), ("1",)),
    ("prepare_ffhq", "size", ("0", *NO_COUNTS), ("512",)),
    ("prepare_ffhq", "validation", ("1.1", "-0.1", *NO_NUMBERS), ("0", "1")),
    ("prepare_ffhq", "test", ("2", *NO_NUMBERS), ("0.5",)),
    ("prepare_panohead", "size", ("0", *NO_COUNTS), ("512",)),
    ("prepare_panohead", "validation", ("1.1", *NO_NUMBERS), ("0",)),
    ("prepare_nersemble", "tolerance", ("0", "-1", *NO_NUMBERS), ("0.02",)),
    ("prepare_nersemble", "test", ("-1", *NO_NUMBERS), ("1",)),
    ("prepare_shards", "shard_size", ("0", "-3", *NO_NUMBERS), ("0.01",)),
    ("prepare_shards", "shuffle_seed", NO_COUNTS, ("0",)),
    ("nvb-heads", "identities", ("0", *NO_COUNTS), ("1",)),
    ("nvb-heads", "first", NO_COUNTS, ("0",)),
    ("nvb-heads", "views", ("0", *NO_COUNTS), ("1",)),
    ("nvb-heads", "size", ("15", *NO_COUNTS), ("16",)),
    ("nvb-heads", "seed", ("4294967296", *NO_COUNTS), ("0",)),
    ("nvb-heads", "level", NO_COUNTS, ("0",)),
    ("nvb-face", "num", ("0", "100000000", *NO_COUNTS), ("1",)),
    ("nvb-face", "steps", ("0", "1001", *NO_COUNTS), ("50",)),
    ("nvb-face", "seed", ("4294967296", *NO_COUNTS), ("0",)),
    ("nvb-face", "pitch", ("91", "-90.5", *NO_NUMBERS), ("-90", "20")),
    ("nvb-face", "yaw", ("-45", "1:2:3", "nan:3", "0:inf", "-181:0", "0:720", ""), ("-45:45", "-180:180")),
    ("nvb-face", "guidance-scale", ("-1", *NO_NUMBERS), ("1.5",)),
    ("nvb-face", "out", ("",), ("a folder",)),
    ("nvb-face", "checkpoint", ("",), ("user/model",)),
]
CASES = [
    *((script, name, *values) for script in TRAINING for name, values in RUN_OPTIONS.items()),
    *OWN_OPTIONS,
]


@pytest.mark.parametrize(("script", "option", "refused", "accepted"), CASES, ids=lambda value: str(value)[:40])
def test_every_option_is_checked_where_it_enters(capsys, script, option, refused, accepted):
    """Assert exit status 2 and one line that names the option for what is refused, and nothing for what is not."""
    for value in accepted:
        PARSE[script]([*REQUIRED[script], f"--{option}={value}"])
    for value in refused:
        with pytest.raises(SystemExit) as end:
            PARSE[script]([*REQUIRED[script], f"--{option}={value}"])
        error = capsys.readouterr().err
        assert end.value.code == 2
        assert error.count("\n") == 1, error
        assert f"--{option}" in error
        assert len(error) < 300


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (whole_number(1), "0", "'0' is not a whole number of at least 1"),
        (whole_number(0, 9), "10", "'10' is not a whole number of at least 0 and at most 9"),
        (
            whole_number(8, 64, multiple_of=8),
            "20",
            "a whole number of at least 8 and at most 64 that is a multiple of 8",
        ),
        (number(low=0, below=1), "1", "'1' is not a number at least 0 and below 1"),
        (number(above=0), "0", "'0' is not a number above 0"),
        (number(), "nan", "'nan' is not a number"),
        (filled_text, " ", "it is empty"),
    ],
)
def test_errors_say_what_is_accepted(kind, text, expected):
    """Assert the words for each kind of limit."""
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(text)
    assert expected in str(error.value)


def test_what_is_read_is_a_number():
    """Assert the values themselves."""
    assert whole_number(0)("007") == 7
    assert number(low=0)("5e-5") == 5e-5
    assert filled_text(" a ") == " a "


def test_no_option_is_unchecked():
    """Assert that no parser prints several lines, and that no number or path is taken as Python reads it."""
    for folder in ("src", "training", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert not re.findall(r"argparse\.ArgumentParser\((?!\[)|type=(?:int|float|str|Path)\b", text), path
