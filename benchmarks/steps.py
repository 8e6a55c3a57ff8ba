"""The two steps of training as their scripts set them up, on random weights, and batches in their data sets' shapes."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nvb_diffusers import TimeAwareImageEncoder, ViewTransformer3D
from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.models.unet import add_adapter, convert_unet
from nvb_diffusers.training.backbone import load_scheduler
from nvb_diffusers.training.run import Batch
from training import train_novel_view, train_restoration

STEPS = ("restoration", "novel_view")
REQUIRED = ["--data_dir", "-", "--output_dir", "-", "--pretrained_model_name_or_path", "-", "--report_to", "none"]

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


@dataclass
class Step:
    """What one script trains with.

    Args:
        args: the script's options, by default.
        image_encoder, unet: of the pipeline, trained or not.
        trained: the modules that train, as `Run.prepare` gets them.
        compute_loss: the script's, of the trained modules as `Run.prepare` returns them, and a batch.
    """

    args: argparse.Namespace
    image_encoder: TimeAwareImageEncoder
    unet: UNet2DConditionModel
    trained: list[torch.nn.Module]
    compute_loss: Callable[[Sequence[torch.nn.Module], Batch], Loss]


def make_step(name: str, configs: Sequence[dict[str, Any]], unet_training: str) -> Step:
    """One of `STEPS`, of the configurations of UNet, encoder and view transformer."""
    unet_config, encoder_config, view_transformer_config = configs
    image_encoder = TimeAwareImageEncoder(**encoder_config)
    unet = convert_unet(UNet2DConditionModel(**unet_config), image_encoder.config.out_channels)
    scheduler = load_scheduler(None, None, zero_terminal_snr=False)
    if name == "novel_view":
        args = train_novel_view.parse_args(REQUIRED)
        for frozen in (image_encoder, unet):
            frozen.requires_grad_(False)
        width = image_encoder.config.out_channels
        view_transformer = ViewTransformer3D(**{"in_channels": width, **view_transformer_config})
        trained: list[torch.nn.Module] = [train_novel_view.NovelViewModel(view_transformer)]

        def compute_loss(models: Sequence[torch.nn.Module], batch: Batch) -> Loss:
            return train_novel_view.compute_loss(models[0], unet, image_encoder, scheduler, batch, args)
    else:
        args = train_restoration.parse_args(REQUIRED)
        if unet_training == "lora":
            add_adapter(unet)
        trained = [image_encoder, unet, train_restoration.make_latent_head(image_encoder, unet)]

        def compute_loss(models: Sequence[torch.nn.Module], batch: Batch) -> Loss:
            return train_restoration.compute_loss(models, scheduler, batch, args)

    for module in trained:
        module.train()
    return Step(args, image_encoder, unet, trained, compute_loss)


def make_batch(step: Step, batch_size: int, num_views: int) -> Batch:
    """Random images, latents and keys (B, ...), of `num_views` each for step 2, whose batches have a view axis."""
    shows_views = step.unet not in step.trained
    shape = (batch_size, num_views) if shows_views else (batch_size,)
    side, resolution = step.unet.config.sample_size, step.image_encoder.config.sample_size
    batch = {
        "degraded_pixel_values": torch.rand(*shape, 3, resolution, resolution) * 2 - 1,
        "latents": torch.randn(*shape, step.unet.config.in_channels, side, side),
    }
    if shows_views:
        batch["camera_params"] = orbit_cameras(num_views, (-45, 45)).repeat(batch_size, 1, 1)
    return batch


def unet_pass(step: Step, latents: torch.Tensor) -> None:
    """Forward and backward of the UNet alone on latents (..., C, h, w); a frozen one only passes gradients on."""
    latents = latents.flatten(0, -4)  # (N, C, h, w)
    length = step.image_encoder.config.feature_size**2
    shape = (len(latents), length, step.unet.config.cross_attention_dim)
    encoder_hidden_states = torch.zeros(shape, device=latents.device, requires_grad=True)
    timesteps = torch.zeros(len(latents), device=latents.device, dtype=torch.long)
    step.unet(latents, timesteps, encoder_hidden_states).sample.float().square().mean().backward()


def make_empty_step(name: str, configs: Sequence[dict[str, Any]], unet_training: str) -> Step:
    """The same without contents, which takes no memory; to be called and used within a `FakeTensorMode`."""
    with torch.device("meta"):
        step = make_step(name, configs, unet_training)
    for model in networks(step):
        without_contents(model)
    return step


def networks(step: Step) -> list[torch.nn.Module]:
    """All of a step, each once."""
    return list({id(model): model for model in (step.image_encoder, step.unet, *step.trained)}.values())


def without_contents(model: torch.nn.Module) -> None:
    """Move a model from the meta device to the CPU, within a `FakeTensorMode`, where its tensors still take no memory.

    Parameters that train get their gradients. Norms get float32 inputs, as a GPU's autocast gives them, a CPU's not.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.nn.Parameter(torch.empty(parameter.shape), requires_grad=parameter.requires_grad)
            setattr(module, name, empty)
            empty.grad = torch.empty(parameter.shape) if empty.requires_grad else None
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))


def count_flops(name: str, configs: Sequence[dict[str, Any]], unet_training: str, num_views: int) -> tuple[int, int]:
    """Floating point operations a sample, forward and backward: of the UNet alone, and of the whole step."""
    keys = torch.arange(1)  # with contents, as it seeds what the script draws
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = make_empty_step(name, configs, unet_training)
        batch = make_batch(step, 1, num_views)
        with FlopCounterMode(display=False) as unet_counter:
            unet_pass(step, batch["latents"])
        with FlopCounterMode(display=False) as counter:
            step.compute_loss(step.trained, {**batch, "key": keys})[0].backward()
    return unet_counter.get_total_flops(), counter.get_total_flops()
