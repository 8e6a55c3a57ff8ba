"""The pixel restorer: a degraded image becomes its expected clean one by convolution, without anything invented."""

import torch
import torch.nn.functional as F
from torch import nn


class ResidualBlock(nn.Module):
    """(B, C, H, W) -> same: two convolutions, as in EDSR (arXiv 1707.02921), without a norm that could move colors.

    Between them every channel is weighed by what the whole image holds, as in RCAN (arXiv 1807.02758): how far to
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


class PixelRestorer(nn.Module):
    """Degraded image (B, 3, S, S) -> the clean image to be expected (B, 3, S, S).

    Ours, beyond the paper. What the UNet paints has passed the encoder's 8x8 features and the autoencoder, and lost on
    the way some of what the photo does show; this network sees the photo's pixels, and cannot invent.
    `NVBFacePipeline.restore` weighs one against the other by its `fidelity`.

    Args:
        in_channels: channels of the image.
        patch_size: side of the pixel blocks that are folded into channels; S must be divisible by it.
        hidden_size: width.
        num_layers: residual blocks.
    """

    def __init__(self, in_channels: int, patch_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        folded = in_channels * patch_size**2
        self.conv_in = nn.Conv2d(folded, hidden_size, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(hidden_size) for _ in range(num_layers))
        self.conv_out = nn.Conv2d(hidden_size, folded, kernel_size=3, padding=1)
        with torch.no_grad():
            self.conv_out.weight.mul_(0.1)  # a new restorer changes little

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Restore images (B, 3, S, S), about in [-1, 1]."""
        hidden_states = self.conv_in(F.pixel_unshuffle(sample, self.patch_size))
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return sample + F.pixel_shuffle(self.conv_out(hidden_states), self.patch_size)

    def restore(self, sample: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S) in [-1, 1], the mean with what mirrored ones become: a mirrored face is a face."""
        seen, mirrored = (self(images) for images in (sample, sample.flip(-1)))
        return ((seen + mirrored.flip(-1)) / 2).clamp(-1, 1)
