"""A pipeline that is read from safetensors alone, takes LoRAs for its UNet, and is saved whole."""

from pathlib import Path
from typing import Any, ClassVar, Self

from diffusers import DiffusionPipeline
from diffusers.loaders import StableDiffusionLoraLoaderMixin


class SafetensorsPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """A pipeline with a UNet and without a text encoder."""

    _lora_loadable_modules: ClassVar[list[str]] = ["unet"]
    text_encoder = None  # diffusers' LoRA loader asks for one, and to fill it

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load from a folder or a Hub id; see `DiffusionPipeline.from_pretrained`. Only safetensors are read.

        Raises:
            ValueError: the weights are a pickle, or damaged.
        """
        refuse_pickle(kwargs)
        try:
            return super().from_pretrained(str(pretrained_model_name_or_path), use_safetensors=True, **kwargs)
        except (
            OSError
        ) as error:  # told apart by diffusers' words, which last as long as setup.py's bound on its version
            if "Unable to load weights" in str(error):
                raise ValueError(f"Damaged weights, which must be fetched or saved again: {error}") from error
            if "safetensors" in str(error):
                raise ValueError(
                    f"{pretrained_model_name_or_path} lacks safetensors weights, and a pickle is refused: convert it "
                    "first."
                ) from error
            raise

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save all components; see `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: the UNet carries a live LoRA adapter, whose wrapped layers would make a corrupt checkpoint.
        """
        if any(name.endswith("base_layer") for name, _ in self.unet.named_modules()):
            raise ValueError(
                "The UNet carries a live LoRA adapter, which a saved pipeline cannot hold: fuse it first, our own with "
                "`nvb_diffusers.models.unet.fuse_adapter`, another with `pipe.fuse_lora(components=['unet'])` and "
                "`pipe.unload_lora_weights()`."
            )
        super().save_pretrained(save_directory, **kwargs)

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any) -> None:
        """Load a further LoRA into the UNet; see `StableDiffusionLoraLoaderMixin.load_lora_weights`.

        Raises:
            ValueError: the weights are a pickle.
        """
        source = pretrained_model_name_or_path_or_dict
        is_file = isinstance(source, str | Path) and Path(source).is_file()
        refuse_pickle(kwargs, source if is_file else kwargs.get("weight_name"))
        super().load_lora_weights(source, use_safetensors=True, **kwargs)

    @classmethod
    def load_lora_into_text_encoder(cls, *args: Any, **kwargs: Any) -> None:
        """Nothing: there is no text encoder."""


def refuse_pickle(kwargs: dict[str, Any], weights_file: str | Path | None = None) -> None:
    """Take `use_safetensors` out of `kwargs`; raise a ValueError where it is False or the file is of another kind."""
    if kwargs.pop("use_safetensors", True) is False:
        raise ValueError("`use_safetensors=False` was given, but only safetensors weights are loaded, never a pickle.")
    if weights_file is not None and Path(weights_file).suffix != ".safetensors":
        raise ValueError(f"{weights_file} is no .safetensors file, and a pickle is refused: convert it first.")
