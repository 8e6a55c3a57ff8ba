"""Measure a pipeline against its bars on held-out identities, and print the table of README and model card.

    python training/evaluate.py --data_dir heads-v1-128 --output_dir evaluation

Inputs are degraded with a fixed seed, so the same command gives the same table.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import make_image_grid

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline
from nvb_diffusers.camera import angle_between_cameras
from nvb_diffusers.evaluation.bars import (
    encoder_embedding,
    generate_views,
    identity_triplets,
    image_scores,
    mean_faces,
    predict_cameras,
    within_range,
)
from nvb_diffusers.training.checkpoints import one_line
from nvb_diffusers.training.data import MultiViewFaceDataset, SampleTransform, held_out_batch, load_records
from nvb_diffusers.training.pictures import to_images


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    parser.add_argument("--without_feature_loss", help="the pipeline of the ablation")
    parser.add_argument("--data_dir", required=True, help="a multi-view set in the project's format")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_identities", type=int, default=60)
    parser.add_argument("--num_target_views", type=int, default=7)
    parser.add_argument("--num_inference_steps", type=int, default=20)
    return parser.parse_args(argv)


def sample(args: argparse.Namespace, resolution: int, preset: str) -> dict[str, torch.Tensor]:
    """Held-out identities with view 0 degraded: (N, V, ...)."""
    transform = SampleTransform(resolution, (preset,), seed=args.seed, flip=False)
    dataset = MultiViewFaceDataset(args.data_dir, args.split, transform, args.num_target_views)
    return held_out_batch(dataset, args.num_identities)


def measure(pipeline: NVBFacePipeline, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    resolution = pipeline.image_encoder.config.sample_size
    steps, seed = args.num_inference_steps, args.seed
    batch = sample(args, resolution, args.preset)
    sources, truths = batch["degraded_pixel_values"][:, 0], batch["pixel_values"]  # view 0 is the source's own
    cameras, targets = batch["camera_params"][:, 1:], truths[:, 1:]
    flat = targets.flatten(0, 1)

    # Novel views, and what they are compared with
    views, _ = generate_views(pipeline, sources, cameras, steps, seed)
    restored, _ = generate_views(pipeline, sources, None, steps, seed)
    two_stage, _ = generate_views(pipeline, restored[:, 0].clamp(-1, 1), cameras, steps, seed)
    records = load_records(args.data_dir, "train")
    rivals = {
        "ours": views.flatten(0, 1),
        "degraded input as the view": sources[:, None].expand_as(targets).flatten(0, 1),
        "mean training face at the camera": mean_faces(records, cameras.flatten(0, 1), resolution),
        "two-stage: restore, then views": two_stage.flatten(0, 1),
    }
    if args.without_feature_loss:
        ablation = NVBFacePipeline.from_pretrained(args.without_feature_loss)
        ablation.set_progress_bar_config(disable=True)
        rivals["without the feature loss"] = generate_views(ablation, sources, cameras, steps, seed)[0].flatten(0, 1)
    results: dict[str, Any] = {"novel views": {}}
    for name, pictures in rivals.items():
        scores, similarity = image_scores(pictures, flat)
        results["novel views"][name] = {"psnr": scores.mean().item(), "ssim": similarity.mean().item()}

    # Restoration; the degraded picture already has its full size, by bicubic or another interpolation of its chain
    before, _ = image_scores(sources, truths[:, 0])
    after, _ = image_scores(restored[:, 0], truths[:, 0])
    results["restoration"] = {"degraded_psnr": before.mean().item(), "restored_psnr": after.mean().item()}

    # Camera of the input, by preset
    results["camera"] = {}
    for preset in ("mild", "medium", "severe"):
        degraded = sample(args, resolution, preset)
        predicted = predict_cameras(pipeline, degraded["degraded_pixel_values"][:, 0], steps)
        angles = angle_between_cameras(predicted, degraded["camera_params"][:, 0])
        results["camera"][preset] = angles.median().item()

    # Do the views obey, and do they show the same person?
    obeyed = angle_between_cameras(predict_cameras(pipeline, rivals["ours"], steps), cameras.flatten(0, 1))
    asked = within_range(cameras.flatten(0, 1), 45.0, 15.0)
    truth = angle_between_cameras(predict_cameras(pipeline, flat, steps), cameras.flatten(0, 1))
    results["obey"] = {"generated": obeyed[asked].median().item(), "truth": truth[asked].median().item()}
    results["identity"] = identity_triplets(lambda pictures: encoder_embedding(pipeline, pictures), views, targets)
    save_contact_sheet(folder / "contact_sheet.png", sources, views, targets)
    return results


def save_contact_sheet(path: Path, sources: torch.Tensor, views: torch.Tensor, truths: torch.Tensor) -> None:
    """Twelve identities, two rows each: the input and its generated views, then the true views below them."""
    rows = []
    for index in torch.linspace(0, len(sources) - 1, min(12, len(sources))).round().long().tolist():
        blank = torch.ones_like(sources[index])
        rows += [torch.cat([sources[index][None], views[index]]), torch.cat([blank[None], truths[index]])]
    make_image_grid(to_images(torch.cat(rows)), rows=len(rows), cols=len(rows[0])).save(path)


def table(results: dict[str, Any], args: argparse.Namespace) -> str:
    """The results as Markdown."""
    lines = [
        f"{args.num_identities} identities of split `{args.split}`, degraded with `{args.preset}` (seed {args.seed}), "
        f"{args.num_target_views} views each, {args.num_inference_steps} steps.",
        "",
        "| novel views | PSNR (dB) | SSIM |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {name} | {row['psnr']:.2f} | {row['ssim']:.3f} |" for name, row in results["novel views"].items()]
    restoration, camera, obey = results["restoration"], results["camera"], results["obey"]
    lines += [
        "",
        "| measure | bar | value |",
        "| --- | --- | --- |",
        f"| predicted input camera, `mild`, median angle | < 5 deg | {camera['mild']:.1f} deg |",
        f"| predicted input camera, `medium`, median angle | | {camera['medium']:.1f} deg |",
        f"| predicted input camera, `severe`, median angle | < 8 deg | {camera['severe']:.1f} deg |",
        f"| camera predicted in a generated view against the asked one, yaw +-45, pitch +-15, median | < 6 deg "
        f"| {obey['generated']:.1f} deg |",
        f"| the same in the true views | | {obey['truth']:.1f} deg |",
        f"| identity triplets by the encoder's features | >= 90 % | {100 * results['identity']:.1f} % |",
        f"| restoration, gain over the degraded input's {restoration['degraded_psnr']:.2f} dB | >= 1.5 dB "
        f"| {restoration['restored_psnr'] - restoration['degraded_psnr']:.2f} dB |",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        folder = Path(args.output_dir)
        pipeline = NVBFacePipeline.from_pretrained(args.checkpoint)
        pipeline.set_progress_bar_config(disable=True)
        folder.mkdir(parents=True, exist_ok=True)
        results = measure(pipeline, args, folder)
        (folder / "results.json").write_text(json.dumps({"options": vars(args), **results}, indent=2) + "\n")
        (folder / "table.md").write_text(table(results, args))
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(table(results, args), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
