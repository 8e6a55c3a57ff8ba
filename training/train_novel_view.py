"""Step 2 of NVB-Face: train the view transformer to turn one view's features into those of any view (Eq. 3-9).

    accelerate launch training/train_novel_view.py --pretrained_model_name_or_path step1/pipeline \
        --data_dir DATA --resolution 512 --output_dir step2

The image encoder, the UNet and the autoencoder stay frozen; with `--train_unet` (ours) the UNet learns to paint from
the view transformer's features, too, and goes on with restoring beside it. Defaults are the paper's: the source and 7
target views a sample, 300k iterations, learning rate 1e-4, batch 2, lambda 2, lambda_1 10, lambda_2 0.05. A pipeline
that has a view transformer goes on with it. To resume, run the same command again with
`--resume_from_checkpoint latest`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from nvb_diffusers import NVBFacePipeline, TimeAwareImageEncoder, ViewTransformer3D
from nvb_diffusers.camera import angle_between_cameras, camera_from_angles
from nvb_diffusers.data.datasets import MultiViewFaceDataset, SampleTransform, held_out_batch, key_sampler, split_batch
from nvb_diffusers.data.degradation import PRESETS
from nvb_diffusers.data.images import psnr, to_images
from nvb_diffusers.data.keys import DROPPED, GIVEN, draw_choices, draw_noise, draw_timesteps
from nvb_diffusers.hub import publish
from nvb_diffusers.training.backbone import new_model
from nvb_diffusers.training.checkpoints import (
    CurveTracker,
    checkpoint_step,
    find_checkpoint,
    one_line,
    save_checkpoint,
    save_only_trainable,
    write_folder,
)
from nvb_diffusers.training.latents import cache_latents, with_latents
from nvb_diffusers.training.losses import camera_loss, diffusion_loss, diffusion_target, feature_loss
from nvb_diffusers.training.optimizer import MuonAdamW, adamw
from nvb_diffusers.training.processes import any_process, mean_parts

# Share of samples whose volume is built with a given source camera: the true one, or "constant", the frontal one.
GIVEN_CAMERAS = {"predicted": 0.0, "mixed": 0.5, "ground_truth": 1.0, "constant": 1.0}
CENTERING_SAMPLES = 64


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Models
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="the pipeline that step 1 made")
    parser.add_argument(
        "--view_transformer_config", help="a JSON file with ViewTransformer3D's arguments, for a new one"
    )
    parser.add_argument(
        "--train_unet",
        action="store_true",
        help="the UNet learns on, from the view transformer's features and from the encoder's (ours)",
    )
    parser.add_argument(
        "--conditioning_dropout",
        type=float,
        default=0.0,
        help="share that --train_unet paints without features, for guidance",
    )
    parser.add_argument("--gradient_checkpointing", action="store_true")
    # Losses
    parser.add_argument("--feature_loss_weight", type=float, default=10.0, help="lambda_1; 0 for the ablation")
    parser.add_argument("--cosine_weight", type=float, default=2.0, help="lambda, inside the feature loss")
    parser.add_argument("--camera_loss_weight", type=float, default=0.05, help="lambda_2")
    parser.add_argument(
        "--camera_conditioning",
        choices=tuple(GIVEN_CAMERAS),
        default="predicted",
        help="the source camera that the volume is built with; constant, the frontal one, for the ablation",
    )
    parser.add_argument(
        "--num_diffusion_views", type=int, help="views that the diffusion loss sees, 0 for none; default: all"
    )
    # Data
    parser.add_argument(
        "--data_dir", required=True, help="a set in the project's format, every picture with its camera"
    )
    parser.add_argument(
        "--streaming", action="store_true", help="data_dir, or a URL, holds shards of prepare_shards.py"
    )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--num_target_views", type=int, default=7)
    parser.add_argument("--degradation", nargs="+", choices=sorted(PRESETS), default=["real_esrgan"])
    parser.add_argument("--latents_cache", help="a .npy file: encode all target latents once")
    parser.add_argument("--dataloader_num_workers", type=int, default=2)
    # Optimization
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_batch_size", type=int, default=2, help="per process")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=300_000)
    parser.add_argument("--max_train_seconds", type=float, help="end cleanly, with a checkpoint, after this time")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--lr_scheduler", default="constant_with_warmup")
    parser.add_argument("--lr_warmup_steps", type=int, default=500)
    parser.add_argument("--adam_weight_decay", type=float, default=1e-2)
    parser.add_argument("--use_muon", action="store_true", help="Muon for the matrices of attention and feed-forward")
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
    parser.add_argument("--num_validation_samples", type=int, default=16)
    parser.add_argument("--num_inference_steps", type=int, default=20, help="of validation pictures")
    parser.add_argument("--logging_steps", type=int, default=10)
    parser.add_argument("--report_to", default="tensorboard", help="a tracker of accelerate, or none")
    parser.add_argument("--push_to_hub", metavar="REPO_ID")
    return parser.parse_args(argv)


class NovelViewModel(torch.nn.Module):
    """Camera prediction, volume and projection in one forward, which is what distributed training synchronizes."""

    def __init__(self, view_transformer: ViewTransformer3D) -> None:
        super().__init__()
        self.view_transformer = view_transformer

    def forward(
        self,
        features: torch.Tensor,
        timesteps: torch.Tensor,
        cameras: torch.Tensor,
        given_cameras: torch.Tensor,
        given: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, V, C, 8, 8) of all views (B, V, 25) from those of view 0, and its predicted camera (B, 25).

        The volume is conditioned on given_cameras (B, 25) where `given` (B,), else on the predicted ones.
        """
        predicted_cameras = self.view_transformer.predict_camera(features)  # Eq. 3
        source_cameras = torch.where(given[:, None], given_cameras, predicted_cameras)
        feature_volume = self.view_transformer.build_volume(features, timesteps, source_cameras)  # Eq. 3, 4
        views = self.view_transformer.project(feature_volume, cameras, features, timesteps, source_cameras)  # Eq. 5, 6
        return views, predicted_cameras


def compute_loss(
    model: torch.nn.Module,
    unet: torch.nn.Module,
    image_encoder: TimeAwareImageEncoder,
    scheduler: DDPMScheduler,
    batch: dict[str, torch.Tensor],
    args: argparse.Namespace,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    degraded, cameras, keys = batch["degraded_pixel_values"], batch["camera_params"], batch["key"]
    num_samples, num_views = degraded.shape[:2]  # view 0 is the source
    timesteps = draw_timesteps(keys, scheduler.config.num_train_timesteps, args.seed)  # (B,): one for all views

    with torch.no_grad():
        encoded = image_encoder(degraded.flatten(0, 1), timesteps.repeat_interleave(num_views)).sample
    target_features = encoded.unflatten(0, (num_samples, num_views))  # (B, V, C, 8, 8)
    given = draw_choices(keys, GIVEN_CAMERAS[args.camera_conditioning], args.seed, GIVEN)  # (B,)
    constant = args.camera_conditioning == "constant"
    given_cameras = camera_from_angles(0, 0).to(cameras).expand(num_samples, 25) if constant else cameras[:, 0]
    features, predicted_cameras = model(target_features[:, 0], timesteps, cameras, given_cameras, given)

    parts = {
        "feature_loss": feature_loss(features, target_features, args.cosine_weight),  # Eq. 7
        "camera_loss": camera_loss(predicted_cameras, cameras[:, 0]),  # Eq. 8
    }
    loss = args.feature_loss_weight * parts["feature_loss"] + args.camera_loss_weight * parts["camera_loss"]
    shown = shown_views(args, num_views)  # N of the V views, the last ones: their order is random
    if shown:
        painted = {"diffusion_loss": features}
        if args.train_unet:  # the same views from their own degraded pictures, as in step 1
            painted["restoration_loss"] = target_features
        latents = batch["latents"][:, -shown:].flatten(0, 1)  # (B*N, C, h, w)
        timesteps = timesteps.repeat_interleave(shown)
        noise = draw_noise(keys, (shown, *latents.shape[1:]), args.seed).flatten(0, 1)
        noisy_latents = scheduler.add_noise(latents, noise, timesteps)
        target = diffusion_target(scheduler, latents, noise, timesteps)
        repeats = len(painted)
        conditioning = torch.cat([part[:, -shown:].flatten(0, 1) for part in painted.values()])  # (P*B*N, C, 8, 8)
        dropped = draw_choices(keys, args.conditioning_dropout, args.seed, DROPPED).repeat_interleave(shown)
        null_features = image_encoder.null_features(1).to(conditioning)
        conditioning = torch.where(dropped.repeat(repeats)[:, None, None, None], null_features, conditioning)
        encoder_hidden_states = conditioning.flatten(2).mT  # (P*B*N, L, C)
        sample = unet(noisy_latents.repeat(repeats, 1, 1, 1), timesteps.repeat(repeats), encoder_hidden_states).sample
        for name, part in zip(painted, sample.chunk(repeats), strict=True):
            parts[name] = diffusion_loss(part, target, timesteps, scheduler, args.snr_gamma)  # Eq. 2
            loss = loss + parts[name]
    return loss, parts  # Eq. 9


def shown_views(args: argparse.Namespace, num_views: int) -> int:
    """How many views of a sample the diffusion loss sees, the last ones."""
    return num_views if args.num_diffusion_views is None else args.num_diffusion_views


@torch.no_grad()
def center(pipeline: NVBFacePipeline, batch: dict[str, torch.Tensor], args: argparse.Namespace) -> None:
    """Set the view transformer's mean features to those of a batch of training samples, the same in every run."""
    degraded = batch["degraded_pixel_values"].to(pipeline.device)  # (N, V, 3, S, S)
    timesteps = draw_timesteps(batch["key"], pipeline.scheduler.config.num_train_timesteps, args.seed)  # (N,)
    features = [
        pipeline.image_encoder(pictures, timestep.to(pipeline.device)).sample
        for pictures, timestep in zip(degraded, timesteps, strict=True)
    ]
    pipeline.view_transformer.mean_features.copy_(torch.cat(features).mean(dim=0))


@torch.no_grad()
def validate(
    pipeline: NVBFacePipeline, held_out: dict[str, torch.Tensor], folder: Path, args: argparse.Namespace
) -> dict[str, float]:
    """Losses, camera error and PSNR over held-out samples, and a grid: input and views above, the true views below."""
    pixel_values, degraded = held_out["pixel_values"], held_out["degraded_pixel_values"]  # (N, V, 3, S, S)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    networks = (NovelViewModel(pipeline.view_transformer), pipeline.unet, pipeline.image_encoder)
    whole = argparse.Namespace(**{**vars(args), "conditioning_dropout": 0.0})
    parts = [compute_loss(*networks, scheduler, part, whole) for part in split_batch(held_out, args.train_batch_size)]
    values = {f"validation_{name}": sum(part[name].item() for _, part in parts) / len(parts) for name in parts[0][1]}
    noise = draw_noise(held_out["key"], held_out["latents"].shape[2:], args.seed)[:, None]  # (N, 1, C, h, w)
    views, source_cameras = [], []
    for part, part_noise in zip(split_batch(held_out, 4), noise.split(4), strict=True):
        output = pipeline(
            list(part["degraded_pixel_values"][:, 0] / 2 + 0.5),
            cameras=part["camera_params"],
            num_inference_steps=args.num_inference_steps,
            latents=part_noise,
            output_type="pt",
        )
        views.append(output.images)
        source_cameras.append(output.source_cameras)
    generated = torch.cat(views).to(pixel_values) * 2 - 1  # (N, V, 3, S, S)
    angles = angle_between_cameras(torch.cat(source_cameras).cpu(), held_out["camera_params"][:, 0].cpu())
    rows = [
        torch.cat([degraded[i, :1], v]) for i in range(min(4, len(generated))) for v in (generated[i], pixel_values[i])
    ]
    make_image_grid(to_images(torch.cat(rows)), rows=len(rows), cols=len(rows[0])).save(folder / "validation.png")
    return {
        **values,
        "validation_psnr": psnr(generated.flatten(0, 1), pixel_values.flatten(0, 1)).mean().item(),
        "degraded_psnr": psnr(degraded[:, :1].expand_as(degraded).flatten(0, 1), pixel_values.flatten(0, 1))
        .mean()
        .item(),
        "validation_camera_angle": angles.median().item(),
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
    accelerator.init_trackers("novel_view", {**vars(args), "degradation": " ".join(args.degradation)})
    set_seed(args.seed)

    # 2. Models
    pipeline = NVBFacePipeline.from_pretrained(args.pretrained_model_name_or_path)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    image_encoder, unet, view_transformer = pipeline.image_encoder, pipeline.unet, pipeline.view_transformer
    is_new = view_transformer is None or args.view_transformer_config is not None
    if is_new:
        width = unet.config.cross_attention_dim
        view_transformer = new_model(ViewTransformer3D, args.view_transformer_config, in_channels=width)
        pipeline.register_modules(view_transformer=view_transformer)
    pipeline.set_progress_bar_config(disable=True)

    # 3. What trains: the view transformer, with its camera predictor and aggregator, alone or with the UNet
    for part in (image_encoder, unet, pipeline.vae):
        part.requires_grad_(False).to(accelerator.device, memory_format=torch.channels_last)
    trained = [NovelViewModel(view_transformer)] + ([unet] if args.train_unet else [])
    for part in trained:
        part.train().requires_grad_(True)
    if args.gradient_checkpointing:
        for checkpointed in (view_transformer, unet):
            checkpointed.enable_gradient_checkpointing()
    named_parameters = [named for part in trained for named in part.named_parameters()]
    trainable = [parameter for _, parameter in named_parameters]
    ema = EMAModel(trainable, decay=args.ema_decay, use_ema_warmup=True, power=0.75)

    # 4. Optimizer
    options = (args.learning_rate, args.adam_weight_decay, args.use_8bit_adam)
    optimizer = MuonAdamW(named_parameters, *options) if args.use_muon else adamw(trainable, *options)
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )

    # 5. Data
    transform = SampleTransform(args.resolution, args.degradation, seed=args.seed)
    dataset = MultiViewFaceDataset(args.data_dir, "train", transform, args.num_target_views, args.streaming)
    shown = shown_views(args, dataset.num_views)
    if not args.train_unet <= shown <= dataset.num_views:
        needed = ", and --train_unet needs one" if args.train_unet else ""
        raise ValueError(f"--num_diffusion_views {shown}: a sample has {dataset.num_views} views{needed}")
    if args.conditioning_dropout and not args.train_unet:
        raise ValueError("--conditioning_dropout is for a UNet that learns: it goes with --train_unet alone")
    if is_new and view_transformer.config.center_features:
        center(pipeline, held_out_batch(dataset, CENTERING_SAMPLES), args)
    if args.latents_cache:
        if args.streaming:
            raise ValueError("--latents_cache holds the latents of all pictures: it does not go with --streaming")
        with accelerator.main_process_first():
            dataset.use_latents(cache_latents(pipeline.vae, dataset.records, args.resolution, args.latents_cache))
    samples_per_step = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    readers = max(1, args.dataloader_num_workers) * accelerator.num_processes
    dataloader = DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        sampler=key_sampler(dataset, args.seed, step * samples_per_step, args.train_batch_size, readers),
        num_workers=args.dataloader_num_workers,
        drop_last=True,
    )
    *prepared, optimizer, dataloader, lr_scheduler = accelerator.prepare(*trained, optimizer, dataloader, lr_scheduler)
    model, unet = prepared if args.train_unet else (*prepared, unet)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    save_only_trainable(accelerator)
    held_out = held_out_batch(
        MultiViewFaceDataset(
            args.data_dir, "validation", replace(transform, flip=False), args.num_target_views, args.streaming
        ),
        args.num_validation_samples,
    )
    held_out = with_latents({name: value.to(accelerator.device) for name, value in held_out.items()}, pipeline.vae)

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
                batch = next(batches)
                if shown:
                    batch["pixel_values"] = batch["pixel_values"][:, -shown:]  # no others' latents are needed
                    with accelerator.autocast():
                        batch = with_latents(batch, pipeline.vae)
                with accelerator.accumulate(*prepared):
                    with accelerator.autocast():
                        loss, parts = compute_loss(model, unet, image_encoder, scheduler, batch, args)
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
                accelerator.log(validate(pipeline, held_out, output_dir, args), step=step)
                ema.restore(trainable)
            if step % args.checkpointing_steps == 0:
                save_checkpoint(accelerator, output_dir, step, args.checkpoints_total_limit)
                saved = step

    # 8. Save
    if step > saved:
        save_checkpoint(accelerator, output_dir, step, args.checkpoints_total_limit)
    if accelerator.is_main_process:
        ema.copy_to(trainable)
        accelerator.log(validate(pipeline, held_out, output_dir, args), step=step)
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
