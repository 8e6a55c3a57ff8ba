"""`nvb-face info`: how large a pipeline is and what it costs, counted without computing anything."""

import argparse
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nvb_diffusers import AppearanceModel, NVBFacePipeline, TimeAwareImageEncoder, ViewTransformer3D
from nvb_diffusers.camera import camera_from_angles
from nvb_diffusers.cli.options import Commands, add_checkpoint, add_command
from nvb_diffusers.loading import open_checkpoint
from nvb_diffusers.models.appearance import PhotoLayers
from nvb_diffusers.models.unet import SD21_UNET_CONFIG

# Of every Stable Diffusion 1 and 2: the defaults of AutoencoderKL are published, but for these.
SD_VAE_CONFIG: dict[str, object] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
COMPONENTS = ("image_encoder", "view_transformer", "unet", "vae", "appearance")


def add_commands(commands: Commands) -> None:
    """Add `info`."""
    info = add_command(commands, "info", run_info, "Parameters of each component, and GFLOP of each kind of pass.")
    which = info.add_mutually_exclusive_group()
    add_checkpoint(which)
    which.add_argument("--paper-size", action="store_true", help="the paper's sizes on Stable Diffusion 2.1's layout")


def run_info(args: argparse.Namespace) -> None:
    """`nvb-face info`."""
    if args.paper_size:
        pipe, name = paper_size_pipeline(), "paper size (random weights)"
    else:
        pipe, name = open_checkpoint(args.checkpoint), args.checkpoint
    size = pipe.sample_size
    print(pipeline_tables(pipe, f"{name}: images of {size}x{size}, {type(pipe.scheduler).__name__}"))


def paper_size_pipeline() -> NVBFacePipeline:
    """The paper's sizes around Stable Diffusion 2.1's layout in bfloat16, on the meta device: shapes without memory."""
    with torch.device("meta"):
        pipe = NVBFacePipeline(
            image_encoder=TimeAwareImageEncoder(),
            view_transformer=ViewTransformer3D(),
            unet=UNet2DConditionModel(**SD21_UNET_CONFIG),
            vae=AutoencoderKL(**SD_VAE_CONFIG),
            scheduler=DDIMScheduler(),
        )
    for model in (pipe.image_encoder, pipe.view_transformer, pipe.unet, pipe.vae):
        nn.Module.to(model, torch.bfloat16)  # ModelMixin's own `to` warns of modules kept in float32: none
    return pipe


def count_gflop(run: Callable[[], object]) -> float:
    """Billions of multiplications and additions in the matrix products, convolutions and attention of a call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 1e9


def passes_gflop(pipe: NVBFacePipeline) -> dict[str, float]:
    """GFLOP of each kind of pass for one image or one view, by its name; `pipe` is moved to the meta device."""
    pipe.to("meta")
    encoder, view_transformer, unet, vae, appearance = (getattr(pipe, name) for name in COMPONENTS)
    size, width, dtype = encoder.config.sample_size, encoder.config.out_channels, encoder.dtype
    length = encoder.config.feature_size**2
    latent_shape = (1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    with torch.device("meta"):
        image, timestep = torch.empty(1, 3, size, size, dtype=dtype), torch.empty(1)
        latents, states = torch.empty(latent_shape, dtype=dtype), torch.empty(1, length, width, dtype=dtype)
    gflop = {"encoder pass": count_gflop(lambda: encoder(image, timestep))}
    if view_transformer is not None:
        camera = camera_from_angles(0.0, 0.0).to("meta", dtype)[None]
        with torch.no_grad():
            features = encoder(image, timestep).sample
            source = view_transformer.read_source(features, timestep, camera)
            volume = view_transformer.build_volume(source)
        gflop["source"] = count_gflop(lambda: view_transformer.read_source(features, timestep, camera))
        gflop["volume"] = count_gflop(lambda: view_transformer.build_volume(source))
        gflop["view"] = count_gflop(lambda: view_transformer.project(volume, source, camera[None]))
    gflop["UNet step"] = count_gflop(lambda: unet(latents, timestep, states))
    gflop["decoding"] = count_gflop(lambda: vae.decode(latents))
    if appearance is not None:
        gflop |= _appearance_gflop(appearance)
    return gflop


def _appearance_gflop(appearance: AppearanceModel) -> dict[str, float]:
    """GFLOP of the passes of an appearance model, on the meta device; projecting is geometry, without such products."""
    size = appearance.config.sample_size
    with torch.device("meta"):
        photo, camera = torch.empty(1, 3, size, size), camera_from_angles(0.0, 0.0).to("meta")[None]
        layers = PhotoLayers(*(torch.empty(1, 1, channels, size, size) for channels in (5, 5, 4)))
    return {
        "photo restored": count_gflop(lambda: appearance.restore(photo)),
        "photo read": count_gflop(lambda: appearance.read_photo(photo, camera)),
        "fusion": count_gflop(lambda: appearance.fuse(layers, photo[None])),
    }


def pipeline_tables(pipe: NVBFacePipeline, title: str) -> str:
    """Tables of a pipeline's parameters by component and of its cost by pass; `pipe` is moved to the meta device."""
    lines = [title, "", f"{'component':<18}{'class':<26}{'dtype':<10}{'parameters':>14}{'MB':>9}"]
    total_count = total_bytes = 0
    for name in COMPONENTS:
        model = getattr(pipe, name)
        if model is not None:
            count, size = _sizes(model)
            total_count, total_bytes = total_count + count, total_bytes + size
            dtype = str(model.dtype).removeprefix("torch.")
            lines.append(f"{name:<18}{type(model).__name__:<26}{dtype:<10}{count:>14,}{size / 1e6:>9.1f}")
    lines.append(f"{'all':<54}{total_count:>14,}{total_bytes / 1e6:>9.1f}")
    lines += ["", f"{'pass':<18}{'GFLOP':>12}   runs"]
    runs = {
        "encoder pass": "once per photo and step",
        "source": "once per photo and step",
        "volume": "once per photo and step",
        "view": "once per view and step",
        "UNet step": "once per view and step, twice with guidance",
        "decoding": "once per view",
        "photo restored": "once per photo",
        "photo read": "once per photo, with its restoration",
        "fusion": "once per view",
    }
    lines += [f"{name:<18}{gflop:>12,.3f}   {runs[name]}" for name, gflop in passes_gflop(pipe).items()]
    return "\n".join(lines)


def _sizes(model: nn.Module) -> tuple[int, int]:
    """Number of parameters, and their bytes."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
