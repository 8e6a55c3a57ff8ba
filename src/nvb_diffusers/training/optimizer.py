"""AdamW, in 32 or in 8 bits, and Muon for the matrices inside blocks."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch


class OptimizerSettings(NamedTuple):
    """What the options of a run say of its optimizer; betas and epsilon are AdamW's."""

    learning_rate: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    use_8bit: bool = False

    def of_adamw(self) -> dict[str, Any]:
        """The same under the names of AdamW's own arguments."""
        return {
            "lr": self.learning_rate,
            "weight_decay": self.weight_decay,
            "betas": self.betas,
            "eps": self.epsilon,
        }


def adamw(parameters: Iterable[torch.nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW over the parameters.

    Raises:
        ValueError: 8 bits are asked for, but bitsandbytes is not installed.
    """
    if not settings.use_8bit:
        return torch.optim.AdamW(parameters, **settings.of_adamw())
    try:
        import bitsandbytes
    except ImportError:
        raise ValueError("8-bit AdamW needs bitsandbytes: pip install bitsandbytes") from None
    return bitsandbytes.optim.AdamW8bit(parameters, **settings.of_adamw())


def use_settings(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR, settings: OptimizerSettings
) -> None:
    """Let an optimizer and its scheduler, which took up the state of a checkpoint, go on with these settings."""
    asked, rate = settings.of_adamw(), settings.learning_rate
    scheduler.base_lrs = [rate] * len(optimizer.param_groups)
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        known = {name: value for name, value in asked.items() if name in group}  # Muon has no betas
        group.update({**known, "initial_lr": rate, "lr": rate * factor})
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


class MuonAdamW(torch.optim.Optimizer):
    """Muon (arXiv 2502.16982) over the matrices of attention and feed-forward, AdamW over all else, as one optimizer.

    Muon makes the updates of a matrix orthogonal, at the RMS of AdamW's, so that one learning rate goes for both.
    Embeddings, projections in and out, biases and convolutions stay AdamW's.

    Args:
        named_parameters: with their names in the model; matrices of a list named `...blocks` are Muon's.
        settings: learning rate and weight decay of both, the rest of AdamW.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], settings: OptimizerSettings) -> None:
        groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for name, parameter in named_parameters:
            groups[parameter.ndim == 2 and "blocks." in name].append(parameter)
        rate, decay = settings.learning_rate, settings.weight_decay
        muon = torch.optim.Muon(groups[True], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        self.parts = [muon, adamw(groups[False], settings)]
        super().__init__([group for part in self.parts for group in part.param_groups], defaults={"lr": rate})
        self._share_groups()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()

    def _share_groups(self) -> None:
        """Let a learning rate scheduler see the very groups that the two optimizers read."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
