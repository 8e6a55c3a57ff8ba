"""A run whose loss is lost ends, before it writes over what was good."""

from collections.abc import Iterable
from pathlib import Path

import torch

from nvb_diffusers.training.checkpoints import list_checkpoints
from nvb_diffusers.training.sharding import whole

PATIENCE = 20  # steps: fp16 looks for its scale with about half as many


class Health:
    """Whether a run still learns: counts steps in a row whose gradients are not finite, and looks at the weights.

    Args:
        output_dir: the run's folder, whose newest checkpoint is the one to go back to.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir, self.failures = output_dir, 0

    @property
    def is_good(self) -> bool:
        """Whether the last step was one to go on from."""
        return self.failures == 0

    def note(self, norm: torch.Tensor, step: int) -> bool:
        """Whether the norm of a step's gradients, the same in every process, is finite.

        Raises:
            ValueError: it was not for `PATIENCE` steps in a row.
        """
        finite = bool(norm.isfinite())
        self.failures = 0 if finite else self.failures + 1
        if self.failures >= PATIENCE:
            raise self.lost(step)
        return finite

    def check(self, trained: Iterable[torch.nn.Parameter], step: int) -> None:
        """Raise a ValueError where a weight is not finite: from there nothing comes back."""
        finite = torch.stack([whole(parameter.detach().isfinite().all()) for parameter in trained]).all()
        if not finite:
            raise self.lost(step)

    def lost(self, step: int) -> ValueError:
        """The error that ends the run."""
        healthy = list_checkpoints(self.output_dir)
        back = f"go back to {healthy[-1]}" if healthy else "begin again"
        return ValueError(
            f"the loss is not finite at step {step}, after {self.failures} such steps in a row: {back}, with a lower "
            "--learning_rate or --max_grad_norm"
        )
