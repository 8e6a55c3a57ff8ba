"""The adversary of the appearance model's views: a network that tells patches of them from true ones (ours)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

PATCH = 2  # side of the pixel blocks that are folded into channels


class UnitConv2d(nn.Conv2d):
    """Convolution whose weight, as a matrix, has the spectral norm 1 (arXiv 1802.05957).

    The norm is exact rather than a running estimate, so that all its state is the weight.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform hidden_states (B, C, H, W)."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            matrix = self.weight.float().flatten(1)
            norm = torch.linalg.eigvalsh(matrix @ matrix.mT)[-1].sqrt()
        return self._conv_forward(hidden_states, self.weight / norm, self.bias)


class PatchDiscriminator(nn.Module):
    """Images (N, 3, S, S) in [-1, 1] -> how true each of their patches looks (N, 1, S/16, S/16).

    Args:
        channels: from the finest level to the coarsest.
    """

    def __init__(self, channels: tuple[int, ...] = (48, 96, 160, 192)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3 * PATCH**2, channels[0], kernel_size=3, padding=1), nn.LeakyReLU(0.2)]
        for width, wider in pairwise(channels):
            layers += [UnitConv2d(width, wider, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, kernel_size=3, padding=1))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Judge pixel_values (N, 3, S, S)."""
        return self.layers(F.pixel_unshuffle(pixel_values, PATCH))

    def losses(self, made: torch.Tensor, true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The hinge losses of who makes images and of who judges them, scalars, to be lowered in one step.

        The first one's gradient does not reach the judge, nor the second one's the images.
        """
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        fooling = -functional_call(self, frozen, (made,)).float().mean()
        judged_made, judged_true = self(torch.cat([made.detach(), true.to(made)])).float().chunk(2)
        return fooling, F.relu(1 + judged_made).mean() + F.relu(1 - judged_true).mean()
