"""Train an autoencoder from scratch, for a backbone that does not start from a published Stable Diffusion.

    accelerate launch training/train_autoencoder.py --data_dir heads-128 --resolution 128 --output_dir autoencoder \
        --model_config training/recipes/models/autoencoder.json

The model is diffusers' AutoencoderDC. Latents are deterministic; noise added to them in training keeps the decoder
smooth, and the scaling factor that gives them unit variance is stored in the config.
`--vae_name_or_path VAE --decoder_only` sharpens the decoder of a pipeline that is trained already.
To resume, run the same command again with `--resume_from_checkpoint latest`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderDC

from nvb_diffusers.data.datasets import FaceDataset, SampleTransform
from nvb_diffusers.data.images import psnr, to_grid
from nvb_diffusers.data.keys import draw_noise
from nvb_diffusers.option_types import OneLineParser, number
from nvb_diffusers.training import options
from nvb_diffusers.training.backbone import new_model
from nvb_diffusers.training.run import Run, one_line_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_config", help="a JSON file with AutoencoderDC's arguments, for a new one")
    parser.add_argument("--vae_name_or_path", help="an autoencoder to go on with, instead of a new one")
    parser.add_argument(
        "--decoder_only", action="store_true", help="leave encoder and scale as they are, so that latents stay valid"
    )
    parser.add_argument(
        "--gradient_loss_weight", type=number(low=0), default=1.0, help="of the image's finite differences"
    )
    parser.add_argument(
        "--latent_loss_weight", type=number(low=0), default=1e-4, help="keeps the latents' scale bounded"
    )
    parser.add_argument("--latent_noise", type=number(low=0), default=0.05, help="standard deviation, in latent units")
    options.add_run_arguments(
        parser,
        resolution=256,
        train_batch_size=16,
        learning_rate=2e-4,
        lr_warmup_steps=200,
        ema_decay=0.999,
        dataloader_num_workers=1,
    )
    return options.parse_run_args(parser, argv)


def load_autoencoder(args: argparse.Namespace) -> AutoencoderDC:
    """The autoencoder to go on with, or a new one."""
    if args.vae_name_or_path:
        if args.model_config:
            raise ValueError("--vae_name_or_path brings its own shape: leave out --model_config")
        return AutoencoderDC.from_pretrained(args.vae_name_or_path, use_safetensors=True)
    if args.decoder_only:
        raise ValueError("--decoder_only needs an autoencoder to go on with: give --vae_name_or_path")
    if args.model_config is None:
        raise ValueError("no autoencoder: give --model_config for a new one, or --vae_name_or_path to go on with one")
    return new_model(AutoencoderDC, args.model_config)


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
    """PSNR over held-out images (N, 3, S, S), and a grid of the first 8: the images above, decoded below."""
    decoded = torch.cat([vae.decode(vae.encode(part).latent).sample for part in pixel_values.split(16)])
    to_grid(pixel_values[:8], decoded[:8]).save(folder / "validation.png")
    return {"validation_psnr": psnr(decoded, pixel_values).mean().item()}


@torch.no_grad()
def latent_scale(vae: AutoencoderDC, pixel_values: torch.Tensor) -> float:
    """The factor that gives the latents of images (N, 3, S, S) unit variance."""
    return 1 / torch.cat([vae.encode(part).latent for part in pixel_values.split(16)]).std().item()


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with Run("autoencoder", args) as run:
        # 1. Data: clean images
        transform = SampleTransform(args.resolution, (), seed=args.seed, flip=not args.no_flip)
        dataset = FaceDataset(args.data_dir, "train", transform, args.streaming)
        validation = FaceDataset(args.data_dir, "validation", transform, args.streaming)

        # 2. The model: all of it trains, or the decoder
        vae = load_autoencoder(args)
        vae.to(memory_format=torch.channels_last)
        vae.encoder.requires_grad_(not args.decoder_only)
        held_out = run.held_out(validation)["pixel_values"]
        side = args.resolution // vae.spatial_compression_ratio
        latent_shape = (vae.config.latent_channels, side, side)

        # 3. Training
        (model,) = run.prepare([NoisyAutoencoder(vae)], dataset)
        for batch in run:
            run.step(*compute_loss(model, batch, latent_shape, args))
            if run.validates:
                run.log(validate(vae, held_out, run.output_dir))
        if not args.decoder_only:
            vae.register_to_config(scaling_factor=latent_scale(vae, held_out))
        run.save(vae, publish=AutoencoderDC.push_to_hub, folder="vae")


if __name__ == "__main__":
    sys.exit(main())
