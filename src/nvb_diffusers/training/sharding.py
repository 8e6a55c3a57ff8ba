"""Training models of which no process holds the whole: PyTorch's FSDP2, where accelerate's configuration asks for it.

A script's own models stay whole, where they are, and do not train. Copies of them do, with parameters, gradients and
the optimizer's state split over the processes by rows. The averaged weights come back into the whole models where they
are looked at or saved.

What a checkpoint then holds is one file of rows a process wrote, in safetensors: `torch.distributed.checkpoint` would
read a pickle. Any number of processes reads the rows that it needs, sharded or not.
"""

import argparse
import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, str_to_bool
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from nvb_diffusers.files import one_line, read_json, write_json

DESCRIPTION = "sharded.json"


def is_asked() -> bool:
    """Whether the run was launched with `accelerate launch --use_fsdp`, and there is more than one process."""
    asked = str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")) == 1
    return asked and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def check_launch(accelerator: Accelerator) -> None:
    """Raise a ValueError where a run is launched with another way to shard than FSDP2 on the device."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError("DeepSpeed: the models are sharded by FSDP2, launch with --use_fsdp --fsdp_version 2")
    if not is_asked():
        return
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(f"--fsdp_version {plugin.fsdp_version}: the models are sharded by FSDP2, give 2")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError("--fsdp_offload_params true: the rows of a process stay on its device, give false")


def check_options(args: argparse.Namespace) -> None:
    """Raise a ValueError for options of a run that do not go with sharded models."""
    for option in ("use_muon", "use_8bit_adam"):  # whole matrices, and blocks of a whole tensor
        if getattr(args, option):
            raise ValueError(f"--{option}: with FSDP the weights are split by rows, which AdamW alone can train")


class Sharded:
    """Sharded copies of models, and the way back.

    Args:
        models: whole, the same in every process.
        device: of this process.

    Attributes:
        models: the copies, to be called in training.
    """

    def __init__(self, models: Sequence[torch.nn.Module], device: torch.device) -> None:
        self._whole, self._device = list(models), device
        self._places = [next(model.parameters()).device for model in models]
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        self.models = [shard(model, mesh, device) for model in copy.deepcopy(self._whole)]

    def fill_whole(self, averages: Sequence[torch.Tensor]) -> None:
        """Put averaged weights into the whole models and these on the device; every process has to call it.

        Args:
            averages: sharded, of what trains, in the models' order.
        """
        trainable = [value for model in self._whole for value in model.parameters() if value.requires_grad]
        for parameter, average in zip(trainable, averages, strict=True):
            parameter.data.copy_(whole(average))
        for model in self._whole:
            model.to(self._device)

    def put_whole_aside(self) -> None:
        """Take the whole models back to where they were; a script may need parts of them in its steps."""
        for model, place in zip(self._whole, self._places, strict=True):
            model.to(place)


def shard(model: torch.nn.Module, mesh: DeviceMesh, device: torch.device) -> torch.nn.Module:
    """Split a model's parameters over all processes by rows, in place; each member of its lists of blocks is a unit.

    What the first process has is what all get.
    A unit's parameters are whole only while it computes, in their own precision; autocast makes of them what it makes
    without sharding.
    """
    reshard = FullyShardedDataParallelPlugin().reshard_after_forward  # of accelerate's configuration
    for tensor in (*model.to(device).parameters(), *model.buffers()):
        tensor.data = tensor.data.contiguous()  # FSDP2 takes no channels_last
        torch.distributed.broadcast(tensor.data, 0)
    for unit in units(model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh)
    return model


def units(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The members of a model's lists of modules that hold parameters; inside of one there is no other."""
    for child in model.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from (member for member in child if any(True for _ in member.parameters()))
        else:
            yield from units(child)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be sharded as a plain one; every process has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# Checkpoints


def save_state(
    folder: Path, trainable: Sequence[torch.Tensor], averages: EMAModel, optimizer: torch.optim.Optimizer
) -> None:
    """Write this process's rows of weights, averages and the optimizer's state."""
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    state = {name: value.contiguous() for name, value in _named_rows(trainable, averages, optimizer)}
    save_file(state, folder / _file_name(rank, processes))
    if rank == 0:
        average = {name: value for name, value in averages.state_dict().items() if name != "shadow_params"}
        write_json(folder / DESCRIPTION, {"processes": processes, "averages": average})


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint was written by `save_state`."""
    return (folder / DESCRIPTION).is_file()


def load_state(
    folder: Path, trainable: Sequence[torch.Tensor], averages: EMAModel, optimizer: torch.optim.Optimizer
) -> None:
    """Take up the state of `save_state`, by whichever number of processes it was written; nothing is executed.

    Raises:
        ValueError: the checkpoint is of other parameters, or a file of it is missing or damaged.
    """
    try:
        description = read_json(folder / DESCRIPTION)
        processes, average = description["processes"], description["averages"]
        rows = SavedRows([folder / _file_name(rank, processes) for rank in range(processes)])
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"cannot resume from {folder}: {one_line(error)}") from error
    with torch.no_grad():
        if rows.count("weights") != len(trainable):
            raise ValueError(f"{folder} holds {rows.count('weights')} trained parameters, but {len(trainable)} train")
        averages.load_state_dict({**average, "shadow_params": averages.shadow_params})
        for number, parameter in enumerate(trainable):
            rows.fill(f"weights.{number}", parameter)
            rows.fill(f"averages.{number}", averages.shadow_params[number])
            optimizer.state[parameter] = rows.optimizer_state(number, parameter)


class SavedRows:
    """Tensors whose rows lie in several files, one after the other.

    Args:
        files: in the order of the rows.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._folder = files[0].parent
        self._files = [safe_open(path, "pt") for path in files]
        self._names = list(self._files[0].keys())

    def count(self, kind: str) -> int:
        """How many tensors there are of `weights` or `averages`."""
        return sum(name.startswith(f"{kind}.") for name in self._names)

    def fill(self, name: str, target: torch.Tensor) -> None:
        """Write a tensor, or the rows of it that this process has, into another one.

        Raises:
            ValueError: the tensor has another shape.
        """
        slices = [file.get_slice(name) for file in self._files]
        shapes = [tuple(piece.get_shape()) for piece in slices]
        shape = (sum(each[0] for each in shapes), *shapes[0][1:]) if target.ndim else ()
        if shape != tuple(target.shape):
            raise ValueError(f"{self._folder} was saved with other trainable parameters: use the same training options")
        if not target.ndim:
            target.copy_(self._files[0].get_tensor(name))
            return
        local = _local(target)
        first, at = first_row(target), 0
        for piece, (rows, *_) in zip(slices, shapes, strict=True):
            begin, end = max(first, at), min(first + len(local), at + rows)
            if begin < end:
                local[begin - first : end - first].copy_(piece[begin - at : end - at])
            at += rows

    def optimizer_state(self, number: int, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """AdamW's state of a parameter, shaped and sharded as the parameter is; a count of steps is whole."""
        prefix, state = f"optimizer.{number}.", {}
        for name in self._names:
            if name.startswith(prefix):
                kind = name.removeprefix(prefix)
                state[kind] = torch.zeros(()) if kind == "step" else torch.zeros_like(parameter)
                self.fill(name, state[kind])
        return state


def first_row(tensor: torch.Tensor) -> int:
    """The number of the first row of a tensor that this process has: FSDP2 deals out rows as `torch.chunk` does."""
    if not isinstance(tensor, DTensor):
        return 0
    share = -(-len(tensor) // tensor.device_mesh.size())
    return min(len(tensor), share * tensor.device_mesh.get_local_rank())


def _named_rows(
    trainable: Sequence[torch.Tensor], averages: EMAModel, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.Tensor]]:
    for number, (parameter, average) in enumerate(zip(trainable, averages.shadow_params, strict=True)):
        yield f"weights.{number}", _local(parameter.detach())
        yield f"averages.{number}", _local(average)
        for name, value in optimizer.state[parameter].items():
            yield f"optimizer.{number}.{name}", _local(value)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a tensor that this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _file_name(rank: int, processes: int) -> str:
    return f"sharded-{rank + 1:05d}-of-{processes:05d}.safetensors"
