"""One step of the denoising loop: what the UNet predicts, and what the scheduler takes."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel


def guided_prediction(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    guidance_scale: float = 1.0,
    view_batch_size: int | None = None,
) -> torch.Tensor:
    """The UNet's prediction for latents (N, C, h, w).

    Args:
        unet: predicts noise, velocity or sample.
        latents: (N, C, h, w), scaled for the UNet.
        timestep: of all of them.
        encoder_hidden_states: (N, L, C).
        guidance_scale: above 1, how far to move away from the prediction without a photo, whose features are zeros.
        view_batch_size: latents at a time; None for all at once.
    """
    size = view_batch_size or len(latents)
    predictions = []
    for part, states in zip(latents.split(size), encoder_hidden_states.split(size), strict=True):
        if guidance_scale <= 1:
            prediction = unet(part, timestep, states, return_dict=False)[0]
        else:
            both = torch.cat([torch.zeros_like(states), states])
            both = unet(part.repeat(2, 1, 1, 1), timestep, both, return_dict=False)[0]
            unconditional, conditional = both.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
        predictions.append(prediction)
    return torch.cat(predictions)


def call_back(
    callback: Callable[..., dict[str, Any] | None],
    pipeline: Any,
    step: int,
    timestep: torch.Tensor,
    tensors: dict[str, torch.Tensor],
    names: Sequence[str],
) -> dict[str, torch.Tensor]:
    """Those tensors that a callback, given the named ones, returns others for.

    Raises:
        ValueError: it returns something else.
    """
    returned = callback(pipeline, step, timestep, {name: tensors[name] for name in names})
    if not isinstance(returned, dict | None):
        raise ValueError(f"The callback returned a {type(returned).__name__}, but a dictionary or None is accepted.")
    changed = {name: value for name, value in (returned or {}).items() if value is not tensors.get(name)}
    for name, value in changed.items():
        shape = tuple(tensors[name].shape) if name in tensors else None
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
            raise ValueError(f"The callback returned other `{name}` than a tensor of shape {shape}.")
    return changed


def extra_step_kwargs(
    scheduler: SchedulerMixin, generator: torch.Generator | list[torch.Generator] | None, eta: float, num_views: int
) -> dict[str, Any]:
    """What this scheduler's step takes of `eta` and `generator`, of which it needs one for each view."""
    if isinstance(generator, list):
        generator = [of_image for of_image in generator for _ in range(num_views)]
    accepted = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in accepted}
