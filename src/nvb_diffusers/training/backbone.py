"""The backbone a run starts from: a published Stable Diffusion, or parts of one's own."""

from typing import Any, TypeVar

from diffusers import AutoModel, DDPMScheduler, ModelMixin, UNet2DConditionModel

from nvb_diffusers.files import read_json
from nvb_diffusers.models.unet import BASE_KEY, base_model

Model = TypeVar("Model", bound=ModelMixin)

# Stable Diffusion's noise schedule, for backbones that bring none.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def new_model(model_class: type[Model], config_file: str | None, **defaults: Any) -> Model:
    """A model of random weights with the arguments in a JSON file, for instance the `config.json` of a saved model.

    Args:
        model_class: which one.
        config_file: None for the class's own defaults.
        defaults: arguments that the file may replace.

    Raises:
        ValueError: the file is no JSON, or holds an argument that the model does not have.
    """
    config = read_json(config_file) if config_file is not None else {}
    if not isinstance(config, dict):
        raise ValueError(f"{config_file} holds no JSON object with the arguments of {model_class.__name__}")
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        return model_class(**{**defaults, **arguments})
    except TypeError as error:
        raise ValueError(f"{config_file}: {error}") from None


def load_unet(base: str | None, config_file: str | None, **loading: str) -> UNet2DConditionModel:
    """The UNet of a base model, or a new one of the shape in a JSON file.

    Args:
        base: a folder or Hub id with a `unet/`.
        config_file: of a new one.
        loading: revision, variant and cache_dir of the base.
    """
    if config_file is not None:
        return new_model(UNet2DConditionModel, config_file)
    if base is None:
        raise ValueError("no UNet: give --pretrained_model_name_or_path, or --unet_config for a new one")
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", use_safetensors=True, **loading)
    unet.register_to_config(**{BASE_KEY: base_model(unet) or base})  # what is made from it is bound by its license
    return unet


def load_vae(path: str | None, base: str | None, **loading: str) -> ModelMixin:
    """An autoencoder of its own, or that of a base model, in eval mode; its class is read from its config.

    Args:
        path: a folder or Hub id of its own.
        base: one with a `vae/`.
        loading: revision, variant and cache_dir of the base.
    """
    if path is not None:
        return AutoModel.from_pretrained(path, use_safetensors=True)
    if base is None:
        raise ValueError("no autoencoder: give --pretrained_model_name_or_path or --vae_name_or_path")
    return AutoModel.from_pretrained(base, subfolder="vae", use_safetensors=True, **loading)


def load_scheduler(
    base: str | None, prediction_type: str | None, zero_terminal_snr: bool, **loading: str
) -> DDPMScheduler:
    """The noise schedule of a base model, or Stable Diffusion's.

    Args:
        base: a folder or Hub id with a `scheduler/`; None for Stable Diffusion's schedule.
        prediction_type: replaces the base's.
        zero_terminal_snr: rescale the betas so that the last time step is pure noise (arXiv 2305.08891).
        loading: revision and cache_dir of the base; a variant is of weights alone.
    """
    where = {name: value for name, value in loading.items() if name != "variant"}
    config = DDPMScheduler.load_config(base, subfolder="scheduler", **where) if base is not None else SCHEDULE
    changes: dict[str, Any] = {} if prediction_type is None else {"prediction_type": prediction_type}
    if zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return DDPMScheduler.from_config({**config, **changes})
