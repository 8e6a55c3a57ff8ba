"""A pipeline that is read from safetensors alone, takes LoRAs for its UNet, and is saved whole."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import logging

from .safetensors_only import (
    check_weights,
    check_weights_files,
    explained_weights,
    refuse_pickle,
    refuse_pickle_saving,
)

logger = logging.get_logger(__name__)


class SafetensorsPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """A pipeline with a UNet and without a text encoder."""

    _lora_loadable_modules: ClassVar[list[str]] = ["unet"]
    text_encoder = None  # diffusers' LoRA loader asks for one, and to fill it

    @property
    def components(self) -> dict[str, Any]:
        """What makes the same pipeline again: its components, and the defaults of its calls where it has any."""
        defaults = {name: self.config.get(name) for name in sorted(self._get_signature_keys(self)[1])}
        return {**super().components, **{name: value for name, value in defaults.items() if value is not None}}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load from a folder or a Hub id; see `DiffusionPipeline.from_pretrained`. Only safetensors are read.

        Raises:
            ValueError: the weights are a pickle, damaged, not all there, no numbers, or of another variant, or the
                folder is no pipeline's.
        """
        refuse_pickle(kwargs)
        source = str(pretrained_model_name_or_path)
        if Path(source).is_dir():
            _refuse_other_folder(Path(source))
            for folder in sorted(Path(source).iterdir()):
                check_weights_files(folder)
        with explained_weights(source):
            pipeline = super().from_pretrained(source, use_safetensors=True, **kwargs)
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module) and name not in kwargs:
                check_weights(part, f"{source}: {name}")
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Make a pipeline of another one's components; see `DiffusionPipeline.from_pipe`.

        diffusers takes over a component only where its class is the very one of the annotation, and ours allow others.
        """
        expected = set().union(*cls._get_signature_keys(cls))
        given = {name: part for name, part in pipeline.components.items() if name in expected}
        return super().from_pipe(pipeline, **{**given, **kwargs})

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save all components; see `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: the UNet carries a live LoRA adapter, whose wrapped layers would make a corrupt checkpoint; or
                a pickle was asked for.
        """
        refuse_pickle_saving(kwargs)
        if any(name.endswith("base_layer") for name, _ in self.unet.named_modules()):
            raise ValueError(
                "The UNet carries a live LoRA adapter, which a saved pipeline cannot hold: fuse it first, our own with "
                "`nvb_diffusers.models.unet.fuse_adapter`, another with `pipe.fuse_lora()` and "
                "`pipe.unload_lora_weights()`."
            )
        super().save_pretrained(save_directory, *args, **kwargs)
        came = {name: part for name, part in {"": self, **self.components}.items() if _is_remote_code(part)}
        add_sources(came, Path(save_directory), _source_here)

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any) -> None:
        """Load a further LoRA into the UNet; see `StableDiffusionLoraLoaderMixin.load_lora_weights`.

        Raises:
            ValueError: the weights are a pickle, or none of them fits the UNet.
        """
        source = pretrained_model_name_or_path_or_dict
        is_file = isinstance(source, str | Path) and Path(source).is_file()
        refuse_pickle(kwargs, source if is_file else kwargs.get("weight_name"))
        before = set(getattr(self.unet, "peft_config", {}))
        try:
            super().load_lora_weights(source, use_safetensors=True, **kwargs)
        except RuntimeError as error:
            if not before:
                self.unload_lora_weights()  # what diffusers leaves wrapped
            raise ValueError(f"The LoRA does not fit the UNet: {' '.join(str(error).split())}") from error
        if set(getattr(self.unet, "peft_config", {})) == before and not kwargs.get("hotswap"):
            name = "the given weights" if isinstance(source, dict) else source
            raise ValueError(
                f"No key of {name} begins with `unet.`, so nothing was loaded. What training leaves in `adapter` is in "
                "the run's pipeline already; `nvb_diffusers.models.unet.load_adapter` puts it on a UNet."
            )

    def fuse_lora(self, components: Sequence[str] = ("unet",), *args: Any, **kwargs: Any) -> None:
        """Put the loaded LoRAs into the UNet's weights; see `StableDiffusionLoraLoaderMixin.fuse_lora`."""
        super().fuse_lora(list(components), *args, **kwargs)

    def unfuse_lora(self, components: Sequence[str] = ("unet",), **kwargs: Any) -> None:
        """Take them out of the weights again; see `StableDiffusionLoraLoaderMixin.unfuse_lora`."""
        super().unfuse_lora(list(components), **kwargs)

    @classmethod
    def load_lora_into_text_encoder(cls, state_dict: dict[str, torch.Tensor], *_: Any, **__: Any) -> None:
        """Say that what a LoRA holds for a text encoder is left out: there is none."""
        if any(name.startswith("text_encoder") for name in state_dict):
            logger.warning("The LoRA's part for a text encoder is left out: this pipeline has none.")


def add_sources(parts: dict[str, object], folder: Path, source_of: Callable[[str], str]) -> None:
    """Give a saved pipeline the source of some of its classes, beside the weights of each, and an index that names it.

    Args:
        parts: the components by name, and "" for the pipeline.
        folder: where they are saved.
        source_of: the source for the name of a module.
    """
    if not parts:
        return
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    for name, part in parts.items():
        module, stem = type(part).__module__, type(part).__module__.rpartition(".")[2]
        (folder / name / f"{stem}.py").write_text(source_of(module), encoding="utf-8")
        index[name or "_class_name"] = [stem, type(part).__name__]
    index_file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _source_here(module: str) -> str:
    return Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")


def _is_remote_code(part: object) -> bool:
    """Whether a class came as code beside its weights; it is known here alone, so it must go where they go."""
    return type(part).__module__.startswith("diffusers_modules.")


def _check_object(path: Path) -> None:
    """Raise a ValueError where a configuration is no JSON object that names a class, as all of diffusers' are."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or "_class_name" not in content:
        raise ValueError(f"{path} holds no object with a _class_name")


def _refuse_other_folder(folder: Path) -> None:
    """Raise a ValueError where a folder is no pipeline's; it names the pipeline that is probably meant."""
    index = folder / "model_index.json"
    if index.is_file():
        for path in (index, *sorted(folder.glob("*/*config.json"))):
            _check_object(path)
        return
    is_checkpoint = re.fullmatch(r"checkpoint-\d+", folder.absolute().name) is not None
    run = folder.absolute().parent if is_checkpoint else folder
    is_run = is_checkpoint or any(folder.glob("checkpoint-*")) or (folder / "curve.jsonl").is_file()
    kind = "a checkpoint to resume training from" if is_checkpoint else "the folder of a training run"
    for pipeline in (run / "pipeline", folder.absolute().parent):
        if (pipeline / "model_index.json").is_file():
            what = f"{kind if is_run else 'a folder without model_index.json'}, and no pipeline"
            raise ValueError(f"{folder} is {what}: give {pipeline}")
    if is_run:
        raise ValueError(f"{folder} is {kind}, and no pipeline: the run writes one at its end, {run / 'pipeline'}")
    raise ValueError(f"{folder} holds no pipeline: it has no model_index.json")
