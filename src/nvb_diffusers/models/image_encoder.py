"""The time-aware image encoder: a degraded image and a time step become the features for the UNet (Eq. 1)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import nn

from ..safetensors_only import SafetensorsModel


@dataclass
class TimeAwareImageEncoderOutput(BaseOutput):
    """Output of `TimeAwareImageEncoder`.

    Args:
        sample: (B, C, 8, 8) features F of the image at the time step.
    """

    sample: torch.Tensor


class EncoderResBlock(nn.Module):
    """(B, C, H, W) -> (B, C', H, W): two convolutions around a shortcut, the time step added between them."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, norm_num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Transform hidden_states (B, C, H, W) given the time embedding (B, T)."""
        residual = self.shortcut(hidden_states)
        hidden_states = self.conv1(F.silu(self.norm1(hidden_states)))
        hidden_states = hidden_states + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        return residual + self.conv2(F.silu(self.norm2(hidden_states)))


class EncoderAttention(nn.Module):
    """(B, C, H, W) -> same: self-attention over all positions of the feature map."""

    def __init__(self, channels: int, num_heads: int, norm_num_groups: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform hidden_states (B, C, H, W)."""
        tokens = self.norm(hidden_states).flatten(2).mT  # (B, H*W, C)
        qkv = self.to_qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # (B, H*W, 3, heads, C/heads)
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))  # (B, heads, H*W, C/heads)
        tokens = self.to_out(attended.transpose(1, 2).flatten(2))  # (B, H*W, C)
        return hidden_states + tokens.mT.unflatten(2, hidden_states.shape[2:])


class EncoderLayer(nn.Module):
    """A `EncoderResBlock`, followed by an `EncoderAttention` where num_heads is not 0."""

    def __init__(
        self, in_channels: int, out_channels: int, time_channels: int, norm_num_groups: int, num_heads: int
    ) -> None:
        super().__init__()
        self.resnet = EncoderResBlock(in_channels, out_channels, time_channels, norm_num_groups)
        self.attention = EncoderAttention(out_channels, num_heads, norm_num_groups) if num_heads else nn.Identity()

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Transform hidden_states (B, C, H, W) given the time embedding (B, T)."""
        return self.attention(self.resnet(hidden_states, temb))


class EncoderLevel(nn.ModuleList):
    """(B, C, H, W) -> (B, C', H, W): layers one after the other."""

    def __init__(self, layers: Iterable[EncoderLayer]) -> None:
        super().__init__(layers)
        self.gradient_checkpointing = False  # `enable_gradient_checkpointing` sets both
        self._gradient_checkpointing_func: Callable[..., torch.Tensor] | None = None

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Transform hidden_states (B, C, H, W) at the time embedding temb (B, T)."""
        for layer in self:
            if torch.is_grad_enabled() and self._gradient_checkpointing_func and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(layer, hidden_states, temb)
            else:
                hidden_states = layer(hidden_states, temb)
        return hidden_states


class TimeAwareImageEncoder(SafetensorsModel, ConfigMixin):
    """Image (B, 3, S, S) and time step (B,) -> features (B, C, 8, 8).

    The layout is that of the VQGAN encoder with the sizes of CodeFormer and one more level, which brings 512 pixels to
    8x8x1024; the time step enters every ResBlock (appendix A). With the default configuration it has 115.8M parameters.

    Args:
        sample_size: side of the image in pixels; divided by `patch_size`, and by 2 at every level but the last, it
            must give `feature_size`.
        in_channels: channels of the image.
        block_out_channels: width of each level.
        layers_per_block: ResBlocks of each level.
        out_channels: width of the features; the UNet's `cross_attention_dim` must equal it.
        patch_size: side of the pixel blocks that the stem folds into channels, 1 for none. Ours: a small model saves
            most of its cost this way.
        attention_resolutions: sides of the feature maps, after the stem, on which each ResBlock is followed by
            self-attention. The middle block always has it.
        attention_head_dim: width of an attention head; None for one head, as in VQGAN.
        norm_num_groups: groups of every GroupNorm; it must divide every width.
        time_embed_channels: width of the sinusoidal time embedding; what the ResBlocks get is 4 times as wide.
        feature_size: side of the feature map (paper: 8).
        use_place_embedding: whether a learned (C, 8, 8) embedding is added to the features. Ours: a small model that
            starts without priors learns sooner which key belongs to which place.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["EncoderLayer"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 512,
        in_channels: int = 3,
        block_out_channels: tuple[int, ...] = (64, 128, 128, 256, 256, 512, 1024),
        layers_per_block: int = 2,
        out_channels: int = 1024,
        patch_size: int = 1,
        attention_resolutions: tuple[int, ...] = (16,),
        attention_head_dim: int | None = None,
        norm_num_groups: int = 32,
        time_embed_channels: int = 320,
        feature_size: int = 8,
        use_place_embedding: bool = False,
    ) -> None:
        super().__init__()
        _check_config(sample_size, feature_size, patch_size, block_out_channels, norm_num_groups, attention_head_dim)
        time_channels = 4 * time_embed_channels

        def layer(in_width: int, width: int, attend: bool) -> EncoderLayer:
            num_heads = width // (attention_head_dim or width) if attend else 0
            return EncoderLayer(in_width, width, time_channels, norm_num_groups, num_heads)

        # 1. Time embedding, as in Stable Diffusion's UNet, with its own weights
        self.time_proj = Timesteps(time_embed_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(time_embed_channels, time_channels)

        # 2. Levels, each half the side of the one before
        width = block_out_channels[0]
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, width, kernel_size=3, padding=1)
        self.down_blocks = nn.ModuleList()
        self.downsamplers = nn.ModuleList()
        for level, level_width in enumerate(block_out_channels):
            attend = sample_size // patch_size // 2**level in attention_resolutions
            if level > 0:
                self.downsamplers.append(nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1))
            widths = [width] + [level_width] * layers_per_block
            self.down_blocks.append(EncoderLevel(layer(a, b, attend) for a, b in pairwise(widths)))
            width = level_width

        # 3. Middle and output
        self.mid_block = EncoderLevel([layer(width, width, attend=True), layer(width, width, attend=False)])
        self.norm_out = nn.GroupNorm(norm_num_groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, out_channels, kernel_size=3, padding=1)

        # 4. A learned feature map, which starts as large as the features of a new encoder, so that attention can tell
        # places apart at once
        shape = (1, out_channels, feature_size, feature_size)
        self.place_embedding = nn.Parameter(0.3 * torch.randn(shape)) if use_place_embedding else None

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, return_dict: bool = True
    ) -> TimeAwareImageEncoderOutput | tuple[torch.Tensor]:
        """Encode images.

        Args:
            sample: (B, 3, S, S) in [-1, 1].
            timestep: (B,), or one for all images.
            return_dict: whether to return a `TimeAwareImageEncoderOutput` rather than a tuple.
        """
        batch_size, side = sample.shape[0], self.config.sample_size
        if sample.ndim != 4 or sample.shape[1:] != (self.config.in_channels, side, side):
            raise ValueError(
                f"`sample` has shape {tuple(sample.shape)}, but this encoder takes "
                f"(B, {self.config.in_channels}, {side}, {side}): resize the images."
            )
        timestep = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        if timestep.shape[0] not in (1, batch_size):
            raise ValueError(f"`timestep` has {timestep.shape[0]} values, but 1 or {batch_size} are accepted.")

        temb = self.time_embedding(self.time_proj(timestep.expand(batch_size)).to(sample.dtype))  # (B, T)
        hidden_states = self.conv_in(F.pixel_unshuffle(sample, self.config.patch_size))
        for level, layers in enumerate(self.down_blocks):
            if level > 0:
                hidden_states = self.downsamplers[level - 1](hidden_states)
            hidden_states = layers(hidden_states, temb)
        hidden_states = self.mid_block(hidden_states, temb)  # (B, width, 8, 8)
        features = self.conv_out(F.silu(self.norm_out(hidden_states)))  # (B, C, 8, 8)
        if self.place_embedding is not None:
            features = features + self.place_embedding
        return TimeAwareImageEncoderOutput(sample=features) if return_dict else (features,)


def _check_config(
    sample_size: int,
    feature_size: int,
    patch_size: int,
    block_out_channels: tuple[int, ...],
    norm_num_groups: int,
    attention_head_dim: int | None,
) -> None:
    """Raise a ValueError for sizes that do not lead to each other, and for widths that cannot be divided as asked."""
    expected = feature_size * patch_size * 2 ** (len(block_out_channels) - 1)
    if sample_size != expected:
        raise ValueError(
            f"`sample_size` {sample_size} with `patch_size` {patch_size} and {len(block_out_channels)} levels does not "
            f"give a {feature_size}x{feature_size} map: `sample_size` must be {expected}."
        )
    for name, divisor in (("norm_num_groups", norm_num_groups), ("attention_head_dim", attention_head_dim or 1)):
        if any(width % divisor for width in block_out_channels):
            raise ValueError(
                f"`{name}` {divisor} does not divide every width of `block_out_channels` {block_out_channels}."
            )
