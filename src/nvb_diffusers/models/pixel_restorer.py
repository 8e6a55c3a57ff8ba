"""The pixel restorer: a degraded picture becomes its expected clean one by convolution, without anything invented."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class PixelRestorerOutput(BaseOutput):
    """Output of `PixelRestorer`.

    Args:
        sample: (B, 3, S, S) restored pictures, about in [-1, 1].
    """

    sample: torch.Tensor


class ResidualBlock(nn.Module):
    """(B, C, H, W) -> same: two convolutions, as in EDSR (arXiv 1707.02921), without a norm that could move colors.

    Between them every channel is weighed by what the whole picture holds, as in RCAN (arXiv 1807.02758): how far to
    trust a pixel depends on how much noise and blur there is everywhere.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.channel_attention = nn.Linear(channels, channels)
        with torch.no_grad():
            self.conv2.weight.mul_(0.3)  # so that a new stack of them does not blow up
            self.channel_attention.weight.zero_()
            self.channel_attention.bias.zero_()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform hidden_states (B, C, H, W)."""
        inner = F.relu(self.conv1(hidden_states))
        weights = 2 * self.channel_attention(inner.mean(dim=(2, 3))).sigmoid()  # (B, C) in (0, 2), 1 when new
        return hidden_states + self.conv2(inner * weights[:, :, None, None])


class PixelRestorer(ModelMixin, ConfigMixin):
    """Degraded picture (B, 3, S, S) -> the clean picture to be expected (B, 3, S, S).

    Ours, beyond the paper. What the UNet paints has passed the encoder's 8x8 features and the autoencoder, and lost on
    the way some of what the photo does show; this network sees the photo's pixels, and cannot invent.
    `NVBFacePipeline.restore` weighs one against the other by its `fidelity`.

    Args:
        in_channels: channels of the picture.
        patch_size: side of the pixel blocks that are folded into channels; S must be divisible by it.
        hidden_size: width.
        num_layers: residual blocks.
    """

    @register_to_config
    def __init__(self, in_channels: int = 3, patch_size: int = 4, hidden_size: int = 64, num_layers: int = 6) -> None:
        super().__init__()
        folded = in_channels * patch_size**2
        self.conv_in = nn.Conv2d(folded, hidden_size, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(hidden_size) for _ in range(num_layers))
        self.conv_out = nn.Conv2d(hidden_size, folded, kernel_size=3, padding=1)
        with torch.no_grad():
            self.conv_out.weight.mul_(0.1)  # a new restorer changes little

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> PixelRestorerOutput | tuple[torch.Tensor]:
        """Restore pictures.

        Args:
            sample: (B, 3, S, S) in [-1, 1].
            return_dict: whether to return a `PixelRestorerOutput` rather than a tuple.

        Raises:
            ValueError: the pictures' sides are not divisible by `patch_size`.
        """
        patch_size = self.config.patch_size
        if sample.shape[2] % patch_size or sample.shape[3] % patch_size:
            raise ValueError(
                f"`sample` has shape {tuple(sample.shape)}, but its sides must be divisible by {patch_size}."
            )
        hidden_states = self.conv_in(F.pixel_unshuffle(sample, patch_size))
        for block in self.blocks:
            hidden_states = block(hidden_states)
        restored = sample + F.pixel_shuffle(self.conv_out(hidden_states), patch_size)
        return PixelRestorerOutput(sample=restored) if return_dict else (restored,)

    def restore(self, sample: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S) in [-1, 1], the mean with what mirrored ones become: a mirrored face is a face."""
        seen, mirrored = (self(images).sample for images in (sample, sample.flip(-1)))
        return ((seen + mirrored.flip(-1)) / 2).clamp(-1, 1)
