"""Train the appearance model of a pipeline, which carries the photo's own pixels to its views (ours, beyond the paper).

    accelerate launch training/train_appearance.py --train restorer --pretrained_model_name_or_path step2/pipeline \
        --data_dir HEADS --output_dir restorer

A run trains one of three parts and leaves the others as they are: the restorer makes a degraded photo clean; the reader
finds depth and mask of the person in it; the fuser weighs the pixels that both carry to a camera against the view that
the pipeline makes there. It trains last, since it sees what the others give. HEADS has `depth/` and `masks/`. A
pipeline that has an appearance model goes on with it, unless `--appearance_config` asks for a new one.
To resume, run the same command again with `--resume_from_checkpoint latest`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from nvb_diffusers import AppearanceModel, NVBFacePipeline
from nvb_diffusers.data.datasets import split_batch
from nvb_diffusers.data.images import psnr, to_grid
from nvb_diffusers.data.keys import RETURNED, draw_choices, draw_noise
from nvb_diffusers.data.surfaces import VARIATIONS, SurfaceDataset
from nvb_diffusers.hub import publish
from nvb_diffusers.models.appearance import DEPTH_SCALE, MEAN_DEPTH, POSITION_SCALE, FusedViews, PhotoLayers
from nvb_diffusers.option_types import OneLineParser, number, whole_number
from nvb_diffusers.training import options
from nvb_diffusers.training.adversary import PatchDiscriminator
from nvb_diffusers.training.backbone import new_model
from nvb_diffusers.training.fusion import FusionTask, at_size, fusion_task
from nvb_diffusers.training.losses import (
    depth_gradient_loss,
    depth_loss,
    gradient_loss,
    position_loss,
    restoration_loss,
)
from nvb_diffusers.training.run import Batch, Run, one_line_errors

DEPTH_WEIGHT, DEPTH_GRADIENT_WEIGHT, POSITION_WEIGHT, READ_MASK_WEIGHT = 10.0, 15.0, 10.0, 0.3  # of the reader's losses
GRADIENT_WEIGHT, FUSED_MASK_WEIGHT = 0.7, 0.1  # of the fuser's, beside 1 for the pixels
ADVERSARY_BEGINS, ADVERSARY_RISES = 0.1, 0.2  # shares of the run: before, the judge learns alone
RETURNED_SHARE = 0.3  # of samples, of which the photo's own view is among the targets: the photo must come back
DEGRADED_PSNR = 36.0  # dB below which a photo has something to be restored


class Part(NamedTuple):
    """What differs between the runs of the three parts: what varies the images, and the learning rate."""

    variations: tuple[str, ...]
    learning_rate: float


PARTS = {
    "restorer": Part(("colors", "backdrop"), 6e-4),
    "reader": Part(VARIATIONS, 1.2e-3),
    "fuser": Part(("colors",), 8e-4),  # another backdrop would have to turn with the cameras
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", choices=tuple(PARTS), required=True, help="which part")
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="the pipeline that it is for")
    parser.add_argument("--appearance_config", help="a JSON file with AppearanceModel's arguments, for a new one")
    parser.add_argument("--num_target_views", type=whole_number(1), default=2, help="of the fuser, beside the source")
    parser.add_argument(
        "--num_inference_steps", type=whole_number(1), help="of the views to fuse; default: the pipeline's own"
    )
    parser.add_argument(
        "--adversarial_weight", type=number(low=0), default=0.012, help="of the fuser's; 0 for no adversary"
    )
    options.add_loading_arguments(parser)
    options.add_degradation_arguments(parser)
    options.add_run_arguments(
        parser,
        resolution=None,  # the model's sample_size; the fuser reads at that, and may fuse at a smaller one
        degradation=["clean", "clean", "mild", "mild", "medium", "medium", "severe"],
        learning_rate=None,
        lr_scheduler="cosine",
        lr_warmup_steps=100,
        max_grad_norm=0.5,
        ema_decay=0.998,
        num_validation_samples=16,
    )
    args = options.parse_run_args(parser, argv)
    if args.learning_rate is None:
        args.learning_rate = PARTS[args.train].learning_rate
    return args


class FuserModel(torch.nn.Module):
    """Fusion and its judge in one forward, which is what distributed training synchronizes."""

    def __init__(self, appearance: AppearanceModel, judge: PatchDiscriminator | None) -> None:
        super().__init__()
        self.appearance, self.judge = appearance, judge

    def forward(
        self, layers: PhotoLayers, views: torch.Tensor, truth: torch.Tensor
    ) -> tuple[FusedViews, dict[str, torch.Tensor]]:
        """Fuse layers with views (B, V, 3, s, s); what the judge says of them and of the truth (B, V, 3, S, S)."""
        fused = self.appearance.fuse(layers, views)
        if self.judge is None:
            return fused, {}
        fooling, judging = self.judge.losses(fused.pixel_values.flatten(0, 1), truth.flatten(0, 1))
        return fused, {"adversarial_loss": fooling, "judge_loss": judging}


@torch.no_grad()
def with_views(batch: Batch, pipeline: NVBFacePipeline, args: argparse.Namespace) -> Batch:
    """A batch (B, V + 1, ...) of sources and targets with the pipeline's `views` (B, V, 3, s, s) of the sources.

    What is of the targets (B, V, ...) is named so; the `predicted_cameras` (B, 25) are the sources' beside the true.
    """
    keys, num_images = batch["key"], batch["pixel_values"].shape[1]
    targets = torch.arange(1, num_images, device=keys.device).repeat(len(keys), 1)  # (B, V)
    targets[draw_choices(keys, RETURNED_SHARE, args.seed, RETURNED), -1] = 0
    rows = torch.arange(len(keys), device=keys.device)[:, None]
    names = ("pixel_values", "depth", "mask", "camera_params")
    of_targets = {f"target_{name}": batch[name][rows, targets] for name in names}
    of_sources = {name: batch[name][:, 0] for name in (*names, "degraded_pixel_values")}
    side = pipeline.unet.config.sample_size
    views, predicted_cameras, *_ = pipeline(
        list(of_sources["degraded_pixel_values"] / 2 + 0.5),
        cameras=of_targets["target_camera_params"],
        num_inference_steps=args.num_inference_steps,
        latents=draw_noise(keys, (1, pipeline.unet.config.in_channels, side, side), args.seed),
        output_type="pt",
        return_dict=False,
    )
    made = {"views": views * 2 - 1, "predicted_cameras": predicted_cameras}
    return {"key": keys, **of_sources, **of_targets, **{name: value.to(keys.device) for name, value in made.items()}}


def compute_loss(
    model: torch.nn.Module, appearance: AppearanceModel, batch: Batch, args: argparse.Namespace, progress: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    if args.train == "fuser":
        return fuser_loss(model, fusion_task(appearance, batch, args.resolution), args.adversarial_weight, progress)
    made = model(batch["degraded_pixel_values"].flatten(0, 1)).float()  # (B, C, S, S)
    if args.train == "restorer":
        loss = restoration_loss(made, batch["pixel_values"].flatten(0, 1))
        return loss, {"pixel_loss": loss}
    return reader_loss(made, *(batch[name].flatten(0, 1) for name in ("depth", "mask", "positions")))


def reader_loss(
    read: torch.Tensor, true_depth: torch.Tensor, true_mask: torch.Tensor, true_positions: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of what the reader's network says (B, 5, S, S), against true depth and mask (B, S, S) and positions."""
    depth, shown = MEAN_DEPTH + DEPTH_SCALE * read[:, 0], (true_mask > 0.5) & (true_depth > 0)
    parts = {
        "depth_loss": depth_loss(depth, true_depth, shown),
        "depth_gradient_loss": depth_gradient_loss(depth, true_depth, shown),
        "position_loss": position_loss(POSITION_SCALE * read[:, 2:], true_positions, shown),
        "mask_loss": F.binary_cross_entropy_with_logits(read[:, 1], true_mask),
    }
    loss = DEPTH_WEIGHT * parts["depth_loss"] + DEPTH_GRADIENT_WEIGHT * parts["depth_gradient_loss"]
    return loss + POSITION_WEIGHT * parts["position_loss"] + READ_MASK_WEIGHT * parts["mask_loss"], parts


def fuser_loss(
    model: torch.nn.Module, task: FusionTask, adversarial_weight: float, progress: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of fuser and judge at a progress of the run from 0 to 1."""
    fused, judged = model(task.layers, task.views, task.truth)
    images, target = fused.pixel_values.flatten(0, 1), task.target.flatten(0, 1)  # (B*V, 3, S, S)
    parts = {
        "pixel_loss": F.l1_loss(images, target),
        "gradient_loss": gradient_loss(images, target),
        "mask_loss": F.binary_cross_entropy_with_logits(fused.mask.logit(eps=1e-4), task.mask),
        **judged,
    }
    loss = parts["pixel_loss"] + GRADIENT_WEIGHT * parts["gradient_loss"] + FUSED_MASK_WEIGHT * parts["mask_loss"]
    if judged:
        rise = min(max((progress - ADVERSARY_BEGINS) / ADVERSARY_RISES, 0.0), 1.0)
        loss = loss + adversarial_weight * rise * parts["adversarial_loss"] + parts["judge_loss"]
    return loss, parts


@torch.no_grad()
def validate(appearance: AppearanceModel, held_out: Batch, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """What the part that trains does to held-out samples, and a grid of the first ones."""
    parts = split_batch(held_out, args.train_batch_size)
    if args.train == "fuser":
        return validate_fuser(appearance, parts, folder / "validation.png", args.resolution)
    degraded, pixel_values = (held_out[name].flatten(0, 1) for name in ("degraded_pixel_values", "pixel_values"))
    if args.train == "restorer":
        restored = torch.cat([appearance.restore(part["degraded_pixel_values"].flatten(0, 1)) for part in parts])
        to_grid(degraded[:8], restored[:8], pixel_values[:8]).save(folder / "validation.png")
        before, after = psnr(degraded, pixel_values), psnr(restored, pixel_values)
        counted = (before < DEGRADED_PSNR) | (before >= DEGRADED_PSNR).all()  # clean ones have no limit
        return {"validation_psnr": after[counted].mean().item(), "degraded_psnr": before[counted].mean().item()}
    surfaces = [
        appearance.read_photo(part["degraded_pixel_values"][:, 0], part["camera_params"][:, 0]) for part in parts
    ]
    depth, mask = (torch.cat([getattr(surface, name) for surface in surfaces]) for name in ("depth", "mask"))
    true_depth, true_mask = held_out["depth"].flatten(0, 1), held_out["mask"].flatten(0, 1)  # (N, S, S)
    shown = (true_mask > 0.5) & (true_depth > 0)
    shades = [((MEAN_DEPTH - plane) / (2 * DEPTH_SCALE)) * shown for plane in (depth, true_depth)]
    planes = [plane[:8, None].expand(-1, 3, -1, -1) for plane in (*shades, mask * 2 - 1, true_mask * 2 - 1)]
    to_grid(degraded[:8], *planes).save(folder / "validation.png")
    return {
        "validation_depth_error": ((depth - true_depth).abs() * shown).sum().item() / shown.sum().clamp(min=1).item(),
        "validation_mask_error": (mask - true_mask).abs().mean().item(),
    }


def validate_fuser(appearance: AppearanceModel, parts: Sequence[Batch], path: Path, size: int) -> dict[str, float]:
    """Of fused and of generated views: PSNR, and sharpness, the gradients' energy over the truth's; what is seen."""
    values: list[list[torch.Tensor]] = []
    rows: list[torch.Tensor] = []
    for part in parts:
        task = fusion_task(appearance, part, size)
        fused = appearance.fuse(task.layers, task.views)
        images, truth = fused.pixel_values.flatten(0, 1), task.truth.flatten(0, 1)
        views = F.interpolate(task.views.flatten(0, 1), images.shape[-2:], mode="bicubic").clamp(-1, 1)
        shares = fused.evidence.mean(dim=(0, 1, 3, 4))
        values.append(
            [psnr(images, truth).mean(), psnr(views, truth).mean()]
            + [_energy(shown) / _energy(truth) for shown in (images, views)]
            + [shares[0], shares[1]]
        )
        photo = at_size(part["degraded_pixel_values"], size).repeat_interleave(task.views.shape[1], dim=0)
        carried = [layer[:, :, :3].flatten(0, 1) for layer in (task.layers.direct, task.layers.mirrored)]
        evidence = fused.evidence.flatten(0, 1) * 2 - 1
        rows += torch.stack([photo, *carried, views, images, task.target.flatten(0, 1), truth, evidence], dim=1)
    to_grid(*rows[:12]).save(path)
    names = ("psnr", "generated_psnr", "sharpness", "generated_sharpness", "seen", "mirrored")
    means = torch.tensor(values).mean(dim=0).tolist()
    return {f"validation_{name}": mean for name, mean in zip(names, means, strict=True)}


def _energy(images: torch.Tensor) -> torch.Tensor:
    return sum((images.diff(dim=dim).abs().mean() for dim in (-1, -2)), torch.zeros(()))


def trained_part(appearance: AppearanceModel, args: argparse.Namespace) -> torch.nn.Module:
    """The part to be trained, which alone requires gradients; with the fuser its judge."""
    appearance.requires_grad_(False)
    part = getattr(appearance, args.train).requires_grad_(True)
    if args.train != "fuser":
        return part
    return FuserModel(appearance, PatchDiscriminator() if args.adversarial_weight else None)


def check_options(args: argparse.Namespace, sample_size: int) -> None:
    """Refuse options that do not go together, for a model of this size."""
    if args.streaming:
        raise ValueError("--streaming: shards hold no depth and masks, which this needs")
    if args.train != "fuser":
        return
    if sample_size % args.resolution:
        raise ValueError(f"--resolution {args.resolution}: the model reads {sample_size} px, which it must divide")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with Run("appearance", args) as run:
        # 1. The model, new or gone on with; the pipeline paints without it until the run is over
        pipeline = NVBFacePipeline.from_pretrained(args.pretrained_model_name_or_path, **options.loading_options(args))
        pipeline.set_progress_bar_config(disable=True)
        appearance = pipeline.appearance
        if appearance is None or args.appearance_config is not None:
            appearance = new_model(AppearanceModel, args.appearance_config)
        pipeline.register_modules(appearance=None)
        pipeline.to(run.accelerator.device)
        appearance.to(run.accelerator.device, memory_format=torch.channels_last)

        # 2. Data: the fuser reads photos of the model's own size, whatever the size of its views
        sample_size = appearance.config.sample_size
        args.resolution = args.resolution or sample_size
        check_options(args, sample_size)
        side = sample_size if args.train == "fuser" else args.resolution
        num_target_views = args.num_target_views if args.train == "fuser" else 0
        dataset, validation = (
            SurfaceDataset(
                args.data_dir,
                split,
                replace(options.make_transform(args, split), resolution=side),
                num_target_views,
                PARTS[args.train].variations if split == "train" else (),
            )
            for split in ("train", "validation")
        )
        held_out = run.held_out(validation)
        if args.train == "fuser":
            parts = [with_views(part, pipeline, args) for part in split_batch(held_out, args.train_batch_size)]
            held_out = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

        # 3. Training
        (model,) = run.prepare([trained_part(appearance, args)], dataset)
        for batch in run:
            if args.train == "fuser":
                batch = with_views(batch, pipeline, args)
            run.step(*compute_loss(model, appearance, batch, args, run.global_step / args.max_train_steps))
            if run.validates:
                run.log(validate(appearance, held_out, run.output_dir, args))
        pipeline.register_modules(appearance=appearance)
        run.save(pipeline, publish)


if __name__ == "__main__":
    sys.exit(main())
