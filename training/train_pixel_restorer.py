"""Train the pixel restorer of a pipeline, which keeps restorations faithful to the photo (ours, beyond the paper).

    accelerate launch training/train_pixel_restorer.py --pretrained_model_name_or_path step2/pipeline --data_dir DATA \
        --resolution 512 --output_dir restorer

Nothing else of the pipeline is trained or needed, so that this can come before or after step 2. A pipeline that has a
pixel restorer goes on with it, unless `--pixel_restorer_config` asks for a new one.
To resume, run the same command again with `--resume_from_checkpoint latest`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from nvb_diffusers import NVBFacePipeline, PixelRestorer
from nvb_diffusers.data.datasets import FaceDataset
from nvb_diffusers.data.images import psnr, to_grid
from nvb_diffusers.hub import publish
from nvb_diffusers.training.backbone import new_model
from nvb_diffusers.training.options import add_degradation_arguments, add_run_arguments, make_transform
from nvb_diffusers.training.run import Run, one_line_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="the pipeline that it is for")
    parser.add_argument("--pixel_restorer_config", help="a JSON file with PixelRestorer's arguments, for a new one")
    add_degradation_arguments(parser)
    add_run_arguments(
        parser,
        train_batch_size=4,  # small ones learn most a image
        learning_rate=1e-3,
        lr_scheduler="cosine",
        lr_warmup_steps=50,
        max_grad_norm=0.5,
        ema_decay=0.999,
    )
    return parser.parse_args(argv)


def compute_loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    restored = model(batch["degraded_pixel_values"]).sample  # (B, 3, S, S)
    squared_error = F.mse_loss(restored.float(), batch["pixel_values"], reduction="none").mean(dim=(1, 2, 3))  # (B,)
    loss = squared_error.clamp(min=1e-8).log().mean()  # PSNR but for its factor: every image counts alike (HINet)
    return loss, {"pixel_loss": loss}


@torch.no_grad()
def validate(pixel_restorer: PixelRestorer, held_out: dict[str, torch.Tensor], folder: Path) -> dict[str, float]:
    """PSNR over held-out images, and a grid of the first 8: degraded, restored, clean."""
    pixel_values, degraded = held_out["pixel_values"], held_out["degraded_pixel_values"]  # (N, 3, S, S)
    restored = torch.cat([pixel_restorer(part).sample for part in degraded.split(16)]).clamp(-1, 1)
    to_grid(degraded[:8], restored[:8], pixel_values[:8]).save(folder / "validation.png")
    shown = {"validation": restored, "degraded": degraded}
    return {f"{name}_psnr": psnr(images, pixel_values).mean().item() for name, images in shown.items()}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with Run("pixel_restorer", args) as run:
        # 1. The model, new or gone on with: all of it trains
        pipeline = NVBFacePipeline.from_pretrained(args.pretrained_model_name_or_path)
        pixel_restorer = pipeline.pixel_restorer
        if pixel_restorer is None or args.pixel_restorer_config is not None:
            pixel_restorer = new_model(PixelRestorer, args.pixel_restorer_config)
            pipeline.register_modules(pixel_restorer=pixel_restorer)
        pixel_restorer.train().requires_grad_(True).to(memory_format=torch.channels_last)

        # 2. Data
        dataset, validation = (
            FaceDataset(args.data_dir, split, make_transform(args, split), args.streaming)
            for split in ("train", "validation")
        )
        held_out = run.held_out(validation)

        # 3. Training
        (model,) = run.prepare([pixel_restorer], dataset)
        for batch in run:
            run.step(*compute_loss(model, batch))
            if run.validates:
                run.log(validate(pixel_restorer, held_out, run.output_dir))
        run.save(pipeline, publish)


if __name__ == "__main__":
    sys.exit(main())
