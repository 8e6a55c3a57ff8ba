"""Train the pixel restorer of a pipeline, which keeps restorations faithful to the photo (ours, beyond the paper).

    accelerate launch training/train_pixel_restorer.py --pretrained_model_name_or_path step2/pipeline --data_dir DATA \
        --resolution 512 --output_dir restorer

Nothing else of the pipeline is trained or needed, so that this can come before or after step 2. A pipeline that has a
pixel restorer goes on with it, unless `--pixel_restorer_config` asks for a new one.
To resume, run the same command again with `--resume_from_checkpoint latest`.
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
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from nvb_diffusers import NVBFacePipeline, PixelRestorer
from nvb_diffusers.data.datasets import FaceDataset, SampleTransform, held_out_batch, key_sampler
from nvb_diffusers.data.degradation import PRESETS
from nvb_diffusers.data.images import psnr, to_images
from nvb_diffusers.hub import publish
from nvb_diffusers.training.backbone import new_model
from nvb_diffusers.training.checkpoints import (
    CurveTracker,
    checkpoint_step,
    find_checkpoint,
    one_line,
    save_checkpoint,
    write_folder,
)
from nvb_diffusers.training.optimizer import adamw
from nvb_diffusers.training.processes import any_process, mean_parts


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Models
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="the pipeline that it is for")
    parser.add_argument("--pixel_restorer_config", help="a JSON file with PixelRestorer's arguments, for a new one")
    # Data
    parser.add_argument("--data_dir", required=True, help="a set in the project's format")
    parser.add_argument(
        "--streaming", action="store_true", help="data_dir, or a URL, holds shards of prepare_shards.py"
    )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--degradation", nargs="+", choices=sorted(PRESETS), default=["real_esrgan"])
    parser.add_argument("--crop_jitter", type=float, default=0.0, help="largest share of the side that crops leave out")
    parser.add_argument("--dataloader_num_workers", type=int, default=2)
    # Optimization
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_batch_size", type=int, default=4, help="per process; small ones learn most a picture")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=100_000)
    parser.add_argument("--max_train_seconds", type=float, help="end cleanly, with a checkpoint, after this time")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--lr_scheduler", default="cosine")
    parser.add_argument("--lr_warmup_steps", type=int, default=50)
    parser.add_argument("--adam_weight_decay", type=float, default=1e-2)
    parser.add_argument("--use_8bit_adam", action="store_true", help="needs bitsandbytes")
    parser.add_argument("--max_grad_norm", type=float, default=0.5)
    parser.add_argument("--ema_decay", type=float, default=0.999)
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"))
    # Checkpoints, validation, sharing
    parser.add_argument("--checkpointing_steps", type=int, default=1000)
    parser.add_argument("--checkpoints_total_limit", type=int, default=2)
    parser.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or latest")
    parser.add_argument("--validation_steps", type=int, default=1000)
    parser.add_argument("--num_validation_images", type=int, default=64)
    parser.add_argument("--logging_steps", type=int, default=10)
    parser.add_argument("--report_to", default="tensorboard", help="a tracker of accelerate, or none")
    parser.add_argument("--push_to_hub", metavar="REPO_ID")
    return parser.parse_args(argv)


def compute_loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    restored = model(batch["degraded_pixel_values"]).sample  # (B, 3, S, S)
    squared_error = F.mse_loss(restored.float(), batch["pixel_values"], reduction="none").mean(dim=(1, 2, 3))  # (B,)
    loss = squared_error.clamp(min=1e-8).log().mean()  # PSNR but for its factor: every picture counts alike (HINet)
    return loss, {"pixel_loss": loss}


@torch.no_grad()
def validate(pixel_restorer: PixelRestorer, held_out: dict[str, torch.Tensor], folder: Path) -> dict[str, float]:
    """PSNR over held-out pictures, and a grid of the first 8: degraded, restored, clean."""
    pixel_values, degraded = held_out["pixel_values"], held_out["degraded_pixel_values"]  # (N, 3, S, S)
    restored = torch.cat([pixel_restorer(part).sample for part in degraded.split(16)]).clamp(-1, 1)
    rows = to_images(torch.cat([degraded[:8], restored[:8], pixel_values[:8]]))
    make_image_grid(rows, rows=3, cols=len(rows) // 3).save(folder / "validation.png")
    return {
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
        # The main process makes validation pictures while the others wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )
    accelerator.init_trackers("pixel_restorer", {**vars(args), "degradation": " ".join(args.degradation)})
    set_seed(args.seed)

    # 2. Models
    pipeline = NVBFacePipeline.from_pretrained(args.pretrained_model_name_or_path)
    pixel_restorer = pipeline.pixel_restorer
    if pixel_restorer is None or args.pixel_restorer_config is not None:
        pixel_restorer = new_model(PixelRestorer, args.pixel_restorer_config)
        pipeline.register_modules(pixel_restorer=pixel_restorer)

    # 3. What trains: all of it
    pixel_restorer.train().requires_grad_(True).to(memory_format=torch.channels_last)
    trainable = list(pixel_restorer.parameters())
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
    transform = SampleTransform(args.resolution, args.degradation, seed=args.seed, crop_jitter=args.crop_jitter)
    dataset = FaceDataset(args.data_dir, "train", transform, args.streaming)
    samples_per_step = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    readers = max(1, args.dataloader_num_workers) * accelerator.num_processes
    dataloader = DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        sampler=key_sampler(dataset, args.seed, step * samples_per_step, args.train_batch_size, readers),
        num_workers=args.dataloader_num_workers,
        drop_last=True,
    )
    model, optimizer, dataloader, lr_scheduler = accelerator.prepare(
        pixel_restorer, optimizer, dataloader, lr_scheduler
    )
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    held_out = held_out_batch(
        FaceDataset(args.data_dir, "validation", replace(transform, flip=False, crop_jitter=0.0), args.streaming),
        args.num_validation_images,
    )
    held_out = {name: value.to(accelerator.device) for name, value in held_out.items()}

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
                        loss, parts = compute_loss(model, next(batches))
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
                accelerator.log(validate(pixel_restorer, held_out, output_dir), step=step)
                ema.restore(trainable)
            if step % args.checkpointing_steps == 0:
                save_checkpoint(accelerator, output_dir, step, args.checkpoints_total_limit)
                saved = step

    # 8. Save
    if step > saved:
        save_checkpoint(accelerator, output_dir, step, args.checkpoints_total_limit)
    if accelerator.is_main_process:
        ema.copy_to(trainable)
        accelerator.log(validate(pixel_restorer, held_out, output_dir), step=step)
        write_folder(output_dir / "pipeline", pipeline.save_pretrained)
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
