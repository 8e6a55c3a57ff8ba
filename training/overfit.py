"""Show that every script learns: overfit four identities, from autoencoder to novel views, and print the PSNR.

    python training/overfit.py --data_dir heads-v1 --output_dir overfit

Four identities of the set are resized to 64 px and stand both for training and for validation, so a program without a
fault must reproduce them almost perfectly. It takes about half an hour on two cores; `--minutes` sets the time of each
step. The pictures are in `<output_dir>/<step>/validation.png`. Run it again to go on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvb_diffusers.data.images import load_photo
from nvb_diffusers.data.records import read_records, save_image, write_records

SIZE = 64
FEATURES = 128
SHAPES: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "latent_channels": 16,
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_block_out_channels": [32, 32, 64, 128],
        "decoder_block_out_channels": [32, 32, 64, 128],
        "encoder_layers_per_block": [0, 1, 1, 1],
        "decoder_layers_per_block": [0, 1, 1, 1],
        "encoder_qkv_multiscales": [[], [], [], []],
        "decoder_qkv_multiscales": [[], [], [], []],
    },
    "unet": {
        "sample_size": 8,
        "in_channels": 16,
        "out_channels": 16,
        "block_out_channels": [96, 128],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": FEATURES,
        "attention_head_dim": [3, 4],
        "use_linear_projection": True,
    },
    "image_encoder": {
        "sample_size": SIZE,
        "patch_size": 4,
        "block_out_channels": [64, 128],
        "layers_per_block": 1,
        "out_channels": FEATURES,
        "attention_resolutions": [],
        "time_embed_channels": 64,
        "use_place_embedding": True,
    },
    "view_transformer": {
        "hidden_size": 128,
        "num_layers": 2,
        "num_heads": 4,
        "num_aggregator_layers": 1,
        "aggregator_hidden_size": 64,
        "time_embed_channels": 64,
    },
}
DEGRADATION = "mild"
VIEWS = 4


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="a multi-view set in the project's format")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--identities", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=10, help="training time of each step")
    return parser.parse_args(argv)


def write_subset(data_dir: str, output_dir: Path, count: int) -> None:
    """First views of the first identities at 64 px, once for training and once, under other names, for validation."""
    records = read_records(data_dir)
    chosen = list(dict.fromkeys(record["identity"] for record in records))[:count]
    written = []
    for record in records:
        if record["identity"] not in chosen or record["view"] >= VIEWS:
            continue
        image = load_photo(Path(data_dir) / "images" / record["file_name"]).resize((SIZE, SIZE), reducing_gap=3.0)
        for split in ("train", "validation"):
            identity = f"{split}-{record['identity']}"
            name = f"{identity}/{record['view']:02d}.png"
            path = output_dir / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(image, path)
            copied = {key: record[key] for key in ("view", "camera")}
            written.append({"file_name": name, "identity": identity, "split": split, **copied})
    write_records(output_dir, written)


def run(script: str, output_dir: Path, arguments: Sequence[str | Path]) -> dict[str, float]:
    """Run one training script; the first and last values of its curve, by name."""
    folder = Path(__file__).parent
    common = ["--output_dir", output_dir, "--resolution", SIZE, "--report_to", "none", "--lr_warmup_steps", 50]
    common += ["--ema_decay", 0.99, "--validation_steps", 10**9, "--checkpointing_steps", 10**9]
    command = [sys.executable, folder / script, *arguments, *common, "--resume_from_checkpoint", "latest"]
    subprocess.run([str(part) for part in command], check=True)
    lines = [json.loads(line) for line in (output_dir / "curve.jsonl").read_text().splitlines()]
    return {**{f"first_{name}": value for name, value in lines[0].items()}, **lines[-2], **lines[-1]}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    root = Path(args.output_dir)
    try:
        write_subset(args.data_dir, root / "data", args.identities)
        for name, shape in SHAPES.items():
            (root / f"{name}.json").write_text(json.dumps(shape))
        limits = ["--data_dir", root / "data", "--max_train_seconds", 60 * args.minutes]
        shape = ["--model_config", root / "autoencoder.json", "--latent_noise", 0]
        autoencoder = run("train_autoencoder.py", root / "autoencoder", [*limits, *shape, "--learning_rate", 2e-3])
        options = [*limits, "--degradation", DEGRADATION, "--learning_rate", 1e-3]
        backbone = ["--unet_config", root / "unet.json", "--vae_name_or_path", root / "autoencoder" / "vae"]
        encoder = ["--encoder_config", root / "image_encoder.json", "--latent_loss_weight", 0.5]
        schedule = ["--unet_training", "full", "--prediction_type", "v_prediction", "--zero_terminal_snr"]
        batch = ["--train_batch_size", 16]
        restoration = run(
            "train_restoration.py", root / "restoration", [*options, *backbone, *encoder, *schedule, *batch]
        )
        shape = ["--view_transformer_config", root / "view_transformer.json"]
        base = ["--pretrained_model_name_or_path", root / "restoration" / "pipeline"]
        novel_view = run(
            "train_novel_view.py", root / "novel_view", [*options, *base, *shape, "--num_target_views", VIEWS - 1]
        )
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("| step | PSNR of what it made (dB) | of the degraded input (dB) | training loss, first -> last |")
    print("| --- | --- | --- | --- |")
    rows = (("autoencoder", autoencoder, "loss"), ("restoration", restoration, "diffusion_loss"))
    for name, curve, loss in (*rows, ("novel view", novel_view, "loss")):
        degraded = f"{curve['degraded_psnr']:.1f}" if "degraded_psnr" in curve else ""
        fall = f"{curve[f'first_{loss}']:.3f} -> {curve[loss]:.3f}"
        print(f"| {name} | {curve['validation_psnr']:.1f} | {degraded} | {fall} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
