"""Weights that are read from safetensors and never from a pickle, which would run the code it holds."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import list_repo_files


class SafetensorsModel(ModelMixin):
    """Base of our models: saved as safetensors, and loaded from nothing else."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load from a folder or a Hub id; see `ModelMixin.from_pretrained`. Only safetensors are read.

        Raises:
            ValueError: the weights are a pickle, damaged, or of another variant.
        """
        refuse_pickle(kwargs)
        source = str(pretrained_model_name_or_path)
        with explained_weights(source):
            return super().from_pretrained(source, use_safetensors=True, **kwargs)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save weights and configuration; see `ModelMixin.save_pretrained`.

        Raises:
            ValueError: a pickle was asked for, which could not be loaded again.
        """
        refuse_pickle_saving(kwargs)
        super().save_pretrained(save_directory, *args, **kwargs)


def refuse_pickle(kwargs: dict[str, Any], weights_file: str | Path | None = None) -> None:
    """Take `use_safetensors` out of `kwargs`; raise a ValueError where it is False or the file is of another kind."""
    if kwargs.pop("use_safetensors", True) is False:
        raise ValueError("`use_safetensors=False` was given, but only safetensors weights are loaded, never a pickle.")
    if weights_file is not None and Path(weights_file).suffix != ".safetensors":
        raise ValueError(f"{weights_file} is no .safetensors file, and a pickle is refused: convert it first.")


def refuse_pickle_saving(kwargs: dict[str, Any]) -> None:
    """Raise a ValueError where `safe_serialization=False` asks for a pickle."""
    if kwargs.get("safe_serialization", True) is False:
        raise ValueError("`safe_serialization=False` was given, but a pickle could not be loaded again: leave it out.")


@contextmanager
def explained_weights(source: str) -> Iterator[None]:
    """Say in one line what ails the weights of a folder or a Hub id that diffusers could not load.

    Raises:
        ValueError: they are a pickle, damaged, or of another variant.
    """
    try:
        yield
    except OSError as error:  # told apart by diffusers' words, which last as long as setup.py's bound on its version
        if "Unable to load weights" in str(error):
            raise ValueError(f"Damaged weights, which must be fetched or saved again: {error}") from error
        if "safetensors" not in str(error):
            raise
        variants = _variants(source)
        if variants:
            names = " or ".join(f"variant={name!r}" for name in variants)
            raise ValueError(f"{source} holds its weights as a variant alone: give {names}.") from error
        raise ValueError(f"{source} lacks safetensors weights, and a pickle is refused: convert it first.") from error


def _variants(source: str) -> list[str]:
    """The variants of weights in a folder or a repository of the Hub, such as fp16; none where it cannot be asked."""
    names: list[str] = []
    if Path(source).is_dir():
        names = [path.name for path in Path(source).rglob("*.safetensors")]
    else:
        with suppress(OSError, ValueError):
            names = [Path(name).name for name in list_repo_files(source)]
    found = (re.fullmatch(r"[^.]+\.([^.]+?)(-\d+-of-\d+)?\.safetensors", name) for name in names)
    return sorted({match.group(1) for match in found if match})
