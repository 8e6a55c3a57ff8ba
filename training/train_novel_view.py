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
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from nvb_diffusers import NVBFacePipeline, TimeAwareImageEncoder, ViewTransformer3D
from nvb_diffusers.camera import angle_between_cameras, camera_from_angles
from nvb_diffusers.data.datasets import MultiViewFaceDataset, held_out_batch, split_batch
from nvb_diffusers.data.images import psnr, to_grid
from nvb_diffusers.data.keys import DROPPED, GIVEN, draw_choices, draw_noise, draw_offsets, draw_timesteps
from nvb_diffusers.hub import publish
from nvb_diffusers.option_types import OneLineParser, filled_text, number, whole_number
from nvb_diffusers.training import options
from nvb_diffusers.training.backbone import new_model
from nvb_diffusers.training.latents import cache_latents, with_latents
from nvb_diffusers.training.losses import camera_loss, diffusion_loss, diffusion_target, feature_loss
from nvb_diffusers.training.run import Run, one_line_errors

# Share of samples whose volume is built with a given source camera: the true one, or "constant", the frontal one.
GIVEN_CAMERAS = {"predicted": 0.0, "mixed": 0.5, "ground_truth": 1.0, "constant": 1.0}
CENTERING_SAMPLES = 64

OWN_CAMERAS = [(-30, 0), (0, 0), (30, 0)]  # yaw and pitch of views of the user's own images


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pretrained_model_name_or_path", type=filled_text, required=True, help="the pipeline that step 1 made"
    )
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
        type=number(low=0, high=1),
        default=0.0,
        help="share that --train_unet paints without features, for guidance",
    )
    parser.add_argument("--feature_loss_weight", type=number(low=0), default=10.0, help="lambda_1; 0 for the ablation")
    parser.add_argument("--cosine_weight", type=number(low=0), default=2.0, help="lambda, inside the feature loss")
    parser.add_argument("--camera_loss_weight", type=number(low=0), default=0.05, help="lambda_2")
    parser.add_argument(
        "--camera_conditioning",
        choices=tuple(GIVEN_CAMERAS),
        default="predicted",
        help="the source camera that the volume is built with; constant, the frontal one, for the ablation",
    )
    parser.add_argument(
        "--num_diffusion_views",
        type=whole_number(0),
        help="views that the diffusion loss sees, 0 for none; default: all",
    )
    parser.add_argument("--num_target_views", type=whole_number(1), default=7)
    options.add_diffusion_arguments(parser)
    options.add_loading_arguments(parser)
    options.add_degradation_arguments(parser)
    options.add_run_arguments(parser, train_batch_size=2, max_train_steps=300_000, num_validation_samples=16)
    return options.parse_run_args(parser, argv)


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
        source = self.view_transformer.read_source(features, timesteps, source_cameras)
        feature_volume = self.view_transformer.build_volume(source)  # Eq. 3, 4
        return self.view_transformer.project(feature_volume, source, cameras), predicted_cameras  # Eq. 5, 6


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
        if args.train_unet:  # the same views from their own degraded images, as in step 1
            painted["restoration_loss"] = target_features
        latents = batch["latents"][:, -shown:].flatten(0, 1)  # (B*N, C, h, w)
        timesteps = timesteps.repeat_interleave(shown)
        shape = (shown, *latents.shape[1:])
        noise = draw_noise(keys, shape, args.seed)
        if args.noise_offset:
            noise = noise + args.noise_offset * draw_offsets(keys, shape, args.seed)
        noise = noise.flatten(0, 1)  # (B*N, C, h, w)
        noisy_latents = scheduler.add_noise(latents, noise, timesteps)
        target = diffusion_target(scheduler, latents, noise, timesteps)
        repeats = len(painted)
        conditioning = torch.cat([part[:, -shown:].flatten(0, 1) for part in painted.values()])  # (P*B*N, C, 8, 8)
        dropped = draw_choices(keys, args.conditioning_dropout, args.seed, DROPPED).repeat_interleave(shown)
        conditioning = conditioning.masked_fill(dropped.repeat(repeats)[:, None, None, None], 0)  # no photo
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
        pipeline.image_encoder(images, timestep.to(pipeline.device)).sample
        for images, timestep in zip(degraded, timesteps, strict=True)
    ]
    pipeline.view_transformer.mean_features.copy_(torch.cat(features).mean(dim=0))


def without_appearance(pipeline: NVBFacePipeline) -> NVBFacePipeline:
    """The paper's system of a pipeline, whose views are what this script trains, at the size that it trains at."""
    bare = NVBFacePipeline(**{**pipeline.components, "appearance": None})
    bare.set_progress_bar_config(disable=True)
    return bare


@torch.no_grad()
def validate(
    pipeline: NVBFacePipeline,
    held_out: dict[str, torch.Tensor],
    own: torch.Tensor | None,
    folder: Path,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Losses, camera error and PSNR over held-out samples, and a grid: input and views above, the true views below.

    Of the user's own images (N, 3, S, S) there is another one, of views from both sides.
    """
    pipeline = without_appearance(pipeline)
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
            return_dict=False,
        )
        views.append(output[0])
        source_cameras.append(output[1])
    generated = torch.cat(views).to(pixel_values) * 2 - 1  # (N, V, 3, S, S)
    angles = angle_between_cameras(torch.cat(source_cameras).cpu(), held_out["camera_params"][:, 0].cpu())
    rows = [
        torch.cat([degraded[i, :1], v]) for i in range(min(4, len(generated))) for v in (generated[i], pixel_values[i])
    ]
    to_grid(*rows).save(folder / "validation.png")
    if own is not None:
        turned = pipeline(
            list(own / 2 + 0.5),
            cameras=OWN_CAMERAS,
            num_inference_steps=args.num_inference_steps,
            latents=noise[:1].expand(len(own), -1, -1, -1, -1),
            output_type="pt",
        ).images  # (N, V, 3, S, S)
        to_grid(*(torch.cat([photo[None], v.to(own) * 2 - 1]) for photo, v in zip(own, turned, strict=True))).save(
            folder / "validation_own.png"
        )
    return {
        **values,
        "validation_psnr": psnr(generated.flatten(0, 1), pixel_values.flatten(0, 1)).mean().item(),
        "degraded_psnr": psnr(degraded[:, :1].expand_as(degraded).flatten(0, 1), pixel_values.flatten(0, 1))
        .mean()
        .item(),
        "validation_camera_angle": angles.median().item(),
    }


def check_options(args: argparse.Namespace, num_views: int) -> None:
    """Refuse options that do not go together, for samples of so many views."""
    shown = shown_views(args, num_views)
    if not args.train_unet <= shown <= num_views:
        needed = ", and --train_unet needs one" if args.train_unet else ""
        raise ValueError(f"--num_diffusion_views {shown}: a sample has {num_views} views{needed}")
    if args.conditioning_dropout and not args.train_unet:
        raise ValueError("--conditioning_dropout is for a UNet that learns: it goes with --train_unet alone")
    options.check_latents_cache(args)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with Run("novel_view", args) as run:
        # 1. Data
        dataset, validation = (
            MultiViewFaceDataset(
                args.data_dir, split, options.make_transform(args, split), args.num_target_views, args.streaming
            )
            for split in ("train", "validation")
        )
        check_options(args, dataset.num_views)
        own = options.read_validation_images(args)

        # 2. Models
        pipeline = NVBFacePipeline.from_pretrained(args.pretrained_model_name_or_path, **options.loading_options(args))
        pipeline.set_progress_bar_config(disable=True)
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        image_encoder, unet, view_transformer = pipeline.image_encoder, pipeline.unet, pipeline.view_transformer
        side = image_encoder.config.sample_size
        if args.resolution != side:
            raise ValueError(f"--resolution {args.resolution}: the encoder of this pipeline reads {side} px")
        is_new = view_transformer is None or args.view_transformer_config is not None
        if is_new:
            width = unet.config.cross_attention_dim
            view_transformer = new_model(ViewTransformer3D, args.view_transformer_config, in_channels=width)
            pipeline.register_modules(view_transformer=view_transformer)

        # 3. What trains: the view transformer, with its camera predictor and aggregator, alone or with the UNet
        for part in (image_encoder, unet, pipeline.vae):
            part.requires_grad_(False).to(run.accelerator.device, memory_format=torch.channels_last)
        trained = [NovelViewModel(view_transformer)] + ([unet] if args.train_unet else [])
        for part in trained:
            part.train().requires_grad_(True)
        if args.gradient_checkpointing:
            view_transformer.enable_gradient_checkpointing()
            unet.enable_gradient_checkpointing()

        # 4. Mean features and latents
        if is_new and view_transformer.config.num_source_layers:
            center(pipeline, held_out_batch(dataset, CENTERING_SAMPLES), args)
        if args.latents_cache:
            with run.accelerator.main_process_first():
                dataset.use_latents(cache_latents(pipeline.vae, dataset.records, args.resolution, args.latents_cache))
        held_out = with_latents(run.held_out(validation), pipeline.vae)

        # 5. Training
        model, *trained_unet = run.prepare(trained, dataset)
        run.halve_frozen(image_encoder, unet)
        painter = trained_unet[0] if args.train_unet else unet
        shown = shown_views(args, dataset.num_views)
        for batch in run:
            if shown:
                batch["pixel_values"] = batch["pixel_values"][:, -shown:]  # no others' latents are needed
                batch = with_latents(batch, pipeline.vae)
            run.step(*compute_loss(model, painter, image_encoder, scheduler, batch, args))
            if run.validates:
                run.log(validate(pipeline, held_out, own, run.output_dir, args))
        run.save(pipeline, publish)


if __name__ == "__main__":
    sys.exit(main())
