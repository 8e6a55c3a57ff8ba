"""What the processes of a run have to agree on."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator


def any_process(accelerator: Accelerator, condition: bool) -> bool:
    """Whether the condition holds in at least one process; every process asks, and all get the same answer."""
    if accelerator.num_processes == 1:
        return condition
    count = accelerator.reduce(torch.tensor(float(condition), device=accelerator.device), "sum")
    return count.item() > 0


def mean_parts(accelerator: Accelerator, parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Mean of each part of a loss over micro-batches and processes, as one process with the whole batch has it."""
    means = {name: torch.stack([part[name].detach().float() for part in parts]).mean() for name in parts[0]}
    return {name: value.item() for name, value in accelerator.reduce(means, "mean").items()}
