"""Weights that are read from safetensors and never from a pickle, which would run the code it holds.

What comes from outside is looked at before it is used: configurations that no model can have, and weights that would
give black images, are told in one line.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import list_repo_files

# What diffusers and torch raise where a configuration or an index holds what nobody expected.
UNEXPECTED = (TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError, RuntimeError, AssertionError)


class SafetensorsModel(ModelMixin):
    """Base of our models: saved as safetensors, loaded from nothing else, and made of sizes that can be."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have the arguments of a model checked before it is made of them."""
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _with_checked_arguments(cls.__init__)  # type: ignore[method-assign]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load from a folder or a Hub id; see `ModelMixin.from_pretrained`. Only safetensors are read.

        Raises:
            ValueError: the weights are a pickle, damaged, not all there, no numbers, or of another variant.
        """
        refuse_pickle(kwargs)
        source, gives_info = str(pretrained_model_name_or_path), kwargs.pop("output_loading_info", False)
        check_weights_files(Path(source, kwargs.get("subfolder") or ""))
        with explained_weights(source):
            model, info = super().from_pretrained(source, use_safetensors=True, output_loading_info=True, **kwargs)
        for name in info["missing_keys"]:
            raise ValueError(f"{source}: {cls.__name__} lacks the tensor {name}: fetch or save it again.")
        check_weights(model, f"{source}: {cls.__name__}")
        return (model, info) if gives_info else model  # type: ignore[return-value]  # as diffusers does

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save weights and configuration; see `ModelMixin.save_pretrained`.

        Raises:
            ValueError: a pickle was asked for, which could not be loaded again.
        """
        refuse_pickle_saving(kwargs)
        super().save_pretrained(save_directory, *args, **kwargs)


def refuse_pickle(kwargs: dict[str, Any], weights_file: str | Path | None = None) -> None:
    """Take `use_safetensors` out of `kwargs`; raise a ValueError where it is False or the file is of another kind."""
    for name in ("dtype", "torch_dtype"):
        if isinstance(kwargs.get(name), str):  # diffusers would load float32
            raise ValueError(
                f"`{name}` is {kwargs[name]!r}, but a torch.dtype, or one for each component, is accepted."
            )
    if kwargs.pop("use_safetensors", True) is False:
        raise ValueError("`use_safetensors=False` was given, but only safetensors weights are loaded, never a pickle.")
    if weights_file is not None and Path(weights_file).suffix != ".safetensors":
        raise ValueError(f"{weights_file} is no .safetensors file, and a pickle is refused: convert it first.")


def refuse_pickle_saving(kwargs: dict[str, Any]) -> None:
    """Raise a ValueError where `safe_serialization=False` asks for a pickle."""
    if kwargs.get("safe_serialization", True) is False:
        raise ValueError("`safe_serialization=False` was given, but a pickle could not be loaded again: leave it out.")


def check_weights_files(folder: Path) -> None:
    """Raise a ValueError where weights in a folder are whole numbers, which diffusers would round into place.

    Quantized ones are, and say so in their configuration. What is no folder, such as a Hub id, is not looked at.
    """
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        config = path.with_name("config.json")
        if config.is_file() and b'"quantization_config"' in config.read_bytes():
            continue
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            kinds = {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, TypeError, KeyError, OverflowError, MemoryError, AttributeError):
            continue  # damaged, which loading says
        for name, kind in kinds.items():
            if not kind.startswith(("F", "BF")):
                raise ValueError(f"{path}: {name} is of {kind}, expected floating-point weights.")


def check_weights(model: torch.nn.Module, name: str) -> None:
    """Raise a ValueError where a model lacks a tensor, or one holds NaN or infinite numbers; it is named."""
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise ValueError(f"{name} lacks the tensor {key}: fetch or save it again.")
        # A sum is fast and shows both; in half precision it may overflow by itself.
        if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
            raise ValueError(f"{name}: {key} holds numbers that are not finite: fetch or save it again.")


def _with_checked_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that refuses arguments of another kind than their defaults."""
    signature = inspect.signature(init)

    @wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in signature.bind(self, *args, **kwargs).arguments.items():
            _check_argument(name, value, signature.parameters[name].default)
        init(self, *args, **kwargs)

    return checked


def _check_argument(name: str, value: Any, default: Any) -> None:
    """Raise a ValueError for what is no size where the default is one, or several; there may be no layers, or 0."""
    kind, values = default, value if isinstance(value, list | tuple) else [value]
    if isinstance(default, tuple):
        kind = default[0]
        if not isinstance(value, list | tuple):
            raise ValueError(f"`{name}` is {value!r}, expected a list of whole numbers.")
    least = 0 if kind == 0 or "layers" in name else 1
    if type(kind) is int and not all(type(size) is int and size >= least for size in values):
        raise ValueError(f"`{name}` is {value!r}, expected a whole number of at least {least}.")
    if type(kind) is float and not (type(value) in (int, float) and math.isfinite(value)):
        raise ValueError(f"`{name}` is {value!r}, expected a number.")


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
    except (ValueError, *UNEXPECTED) as error:
        words = " ".join(str(error).split())
        if isinstance(error, ValueError) and source in words:
            raise
        raise ValueError(f"{source} cannot be loaded: {words}") from error


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
