"""AdamW, in 32 or in 8 bits."""

from collections.abc import Iterable

import torch


def adamw(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float, use_8bit: bool
) -> torch.optim.Optimizer:
    """AdamW over the parameters.

    Raises:
        ValueError: 8 bits are asked for, but bitsandbytes is not installed.
    """
    if not use_8bit:
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    try:
        import bitsandbytes
    except ImportError:
        raise ValueError("8-bit AdamW needs bitsandbytes: pip install bitsandbytes") from None
    return bitsandbytes.optim.AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)
