"""Train an autoencoder from scratch, for a backbone that does not start from a published Stable Diffusion.

    accelerate launch training/train_autoencoder.py --data_dir heads-v1-128 --resolution 128 --output_dir autoencoder

The model is diffusers' AutoencoderDC; `--model_config` gives another shape. Latents are deterministic; noise added to
them in training keeps the decoder smooth, and the scaling factor that gives them unit variance is stored in the config.
`--vae_name_or_path VAE --decoder_only` sharpens the decoder of a pipeline that is trained already.
To resume, run the same command again with `--resume_from_checkpoint latest`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from diffusers import AutoencoderDC
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from nvb_diffusers.data.datasets import FaceDataset, SampleTransform, held_out_batch
from nvb_diffusers.data.images import psnr, to_images
from nvb_diffusers.data.keys import KeySampler, draw_noise
from nvb_diffusers.training.backbone import new_model
from nvb_diffusers.training.checkpoints import (
    CurveTracker,
    checkpoint_step,
    find_checkpoint,
    one_line,
    save_checkpoint,
    write_folder,
)
from nvb_diffusers.training.processes import any_process, mean_parts

# f8, 8 latent channels; a level without layers is a patchifying stem, which saves most of the cost on a CPU.
DEFAULT_CONFIG = {
    "latent_channels": 8,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": [48, 48, 96, 192],
    "decoder_block_out_channels": [48, 48, 96, 192],
    "encoder_layers_per_block": [0, 1, 1, 2],
    "decoder_layers_per_block": [0, 1, 1, 2],
    "encoder_qkv_multiscales": [[], [], [], []],
    "decoder_qkv_multiscales": [[], [], [], []],
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="a set in the project's format")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--model_config", help="a JSON file with AutoencoderDC's arguments")
    parser.add_argument("--vae_name_or_path", help="an autoencoder to go on with, instead of a new one")
    parser.add_argument(
        "--decoder_only", action="store_true", help="leave encoder and scale as they are, so that latents stay valid"
    )
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_batch_size", type=int, default=16)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=100_000)
    parser.add_argument("--max_train_seconds", type=float, help="end cleanly, with a checkpoint, after this time")
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--lr_scheduler", default="constant_with_warmup")
    parser.add_argument("--lr_warmup_steps", type=int, default=200)
    parser.add_argument("--adam_weight_decay", type=float, default=1e-2)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--gradient_loss_weight", type=float, default=1.0, help="of the picture's finite differences")
    parser.add_argument("--latent_loss_weight", type=float, default=1e-4, help="keeps the latents' scale bounded")
    parser.add_argument("--latent_noise", type=float, default=0.05, help="standard deviation, in latent units")
    parser.add_argument("--ema_decay", type=float, default=0.999)
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"))
    parser.add_argument("--dataloader_num_workers", type=int, default=1)
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--checkpoints_total_limit", type=int, default=2)
    parser.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or latest")
    parser.add_argument("--validation_steps", type=int, default=500)
    parser.add_argument("--num_validation_images", type=int, default=64)
    parser.add_argument("--logging_steps", type=int, default=10)
    parser.add_argument("--report_to", default="tensorboard", help="a tracker of accelerate, or none")
    return parser.parse_args(argv)


def load_autoencoder(args: argparse.Namespace) -> AutoencoderDC:
    """The autoencoder to go on with, or a new one."""
    if args.vae_name_or_path:
        if args.model_config:
            raise ValueError("--vae_name_or_path brings its own shape: leave out --model_config")
        return AutoencoderDC.from_pretrained(args.vae_name_or_path, use_safetensors=True)
    if args.decoder_only:
        raise ValueError("--decoder_only needs an autoencoder to go on with: give --vae_name_or_path")
    return new_model(AutoencoderDC, args.model_config) if args.model_config else AutoencoderDC(**DEFAULT_CONFIG)


class NoisyAutoencoder(torch.nn.Module):
    """Encoder, noise on the latents and decoder in one forward, which is what distributed training synchronizes."""

    def __init__(self, vae: AutoencoderDC) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = self.vae.encode(pixel_values).latent  # (B, C, h, w)
        return self.vae.decode(latents + noise).sample, latents


def compute_loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], latent_shape: tuple[int, ...], args: argparse.Namespace
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    pixel_values = batch["pixel_values"]  # (B, 3, S, S)
    noise = args.latent_noise * draw_noise(batch["key"], latent_shape, args.seed)  # (B, C, h, w)
    decoded, latents = model(pixel_values, noise)
    error = decoded.float() - pixel_values
    pixel_loss = error.abs().mean()
    gradient_loss = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    latent_loss = latents.float().square().mean()
    loss = pixel_loss + args.gradient_loss_weight * gradient_loss + args.latent_loss_weight * latent_loss
    return loss, {"pixel_loss": pixel_loss, "gradient_loss": gradient_loss, "latent_loss": latent_loss}


@torch.no_grad()
def validate(vae: AutoencoderDC, pixel_values: torch.Tensor, folder: Path) -> dict[str, float]:
    """PSNR over held-out pictures (N, 3, S, S), and a grid of the first 8: the pictures above, decoded below."""
    decoded = torch.cat([vae.decode(vae.encode(part).latent).sample for part in pixel_values.split(16)])
    pictures = to_images(torch.cat([pixel_values[:8], decoded[:8]]))
    make_image_grid(pictures, rows=2, cols=len(pictures) // 2).save(folder / "validation.png")
    return {"validation_psnr": psnr(decoded, pixel_values).mean().item()}


@torch.no_grad()
def latent_scale(vae: AutoencoderDC, pixel_values: torch.Tensor) -> float:
    """The factor that gives the latents of pictures (N, 3, S, S) unit variance."""
    return 1 / torch.cat([vae.encode(part).latent for part in pixel_values.split(16)]).std().item()


def train(args: argparse.Namespace) -> None:
    start_time = time.monotonic()
    # 1. Accelerator
    output_dir = Path(args.output_dir)
    resume_from = find_checkpoint(output_dir, args.resume_from_checkpoint)
    step = checkpoint_step(resume_from) if resume_from else 0
    trackers = [CurveTracker(output_dir, step)] + ([args.report_to] if args.report_to != "none" else [])
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=trackers,
        project_dir=output_dir,
        # The main process makes validation pictures and caches latents while the others wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )
    accelerator.init_trackers("autoencoder", vars(args))
    set_seed(args.seed)

    # 2. Models
    vae = load_autoencoder(args)
    vae.to(memory_format=torch.channels_last)

    # 3. What trains: all of it, or the decoder
    vae.encoder.requires_grad_(not args.decoder_only)
    trainable = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    ema = EMAModel(trainable, decay=args.ema_decay, use_ema_warmup=True, power=0.75)

    # 4. Optimizer
    optimizer = torch.optim.AdamW(trainable, lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )

    # 5. Data
    transform = SampleTransform(args.resolution, (), seed=args.seed)
    dataset = FaceDataset(args.data_dir, "train", transform)
    samples_per_step = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    dataloader = DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        sampler=KeySampler(len(dataset), args.seed, start=step * samples_per_step),
        num_workers=args.dataloader_num_workers,
        drop_last=True,
    )
    side = args.resolution // vae.spatial_compression_ratio
    latent_shape = (vae.config.latent_channels, side, side)
    model, optimizer, dataloader, scheduler = accelerator.prepare(
        NoisyAutoencoder(vae), optimizer, dataloader, scheduler
    )
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    held_out = held_out_batch(FaceDataset(args.data_dir, "validation", transform), args.num_validation_images)
    held_out_pixels = held_out["pixel_values"].to(accelerator.device)

    # 6. Resume
    if resume_from:
        accelerator.load_state(str(resume_from))
        ema.to(accelerator.device)

    # 7. Loop
    batches = iter(dataloader)
    saved = step
    with tqdm(initial=step, total=args.max_train_steps, disable=not accelerator.is_main_process) as progress:
        while step < args.max_train_steps:
            elapsed = time.monotonic() - start_time
            if args.max_train_seconds and any_process(accelerator, elapsed > args.max_train_seconds):
                break
            step_parts = []
            for _ in range(args.gradient_accumulation_steps):
                with accelerator.accumulate(model):
                    with accelerator.autocast():
                        loss, parts = compute_loss(model, next(batches), latent_shape, args)
                    step_parts.append({"loss": loss, **parts})
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(trainable, args.max_grad_norm)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
            ema.step(trainable)
            step += 1
            progress.update()
            if step % args.logging_steps == 0:
                values = mean_parts(accelerator, step_parts)
                accelerator.log({**values, "learning_rate": scheduler.get_last_lr()[0]}, step=step)
            due = step % args.validation_steps == 0 and step < args.max_train_steps  # the last one is made below
            if due and accelerator.is_main_process:
                ema.store(trainable)
                ema.copy_to(trainable)
                accelerator.log(validate(vae, held_out_pixels, output_dir), step=step)
                ema.restore(trainable)
            if step % args.checkpointing_steps == 0:
                save_checkpoint(accelerator, output_dir, step, args.checkpoints_total_limit)
                saved = step

    # 8. Save
    if step > saved:
        save_checkpoint(accelerator, output_dir, step, args.checkpoints_total_limit)
    if accelerator.is_main_process:
        ema.copy_to(trainable)
        if not args.decoder_only:
            vae.register_to_config(scaling_factor=latent_scale(vae, held_out_pixels))
        accelerator.log(validate(vae, held_out_pixels, output_dir), step=step)
        write_folder(output_dir / "vae", vae.save_pretrained)
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> int:
    try:
        train(parse_args(argv))
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
