"""The view transformer's layers: blocks that read a source view, and blocks that aggregate samples over depth."""

import torch
import torch.nn.functional as F
from torch import nn


class ModLN(nn.Module):
    """(B, L, C) -> same: layer norm modulated by camera and time step (Eq. 4), and at first not at all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(channels, 2 * channels))

    def forward(self, tokens: torch.Tensor, camera_embedding: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Normalize tokens (B, L, C) given the embeddings (B, C) of the source camera and of the time step."""
        gamma, beta = self.modulation(F.silu(camera_embedding))[:, None].chunk(2, dim=-1)  # (B, 1, C)
        return self.norm(tokens) * (1 + gamma) + beta + temb[:, None]


class Attention(nn.Module):
    """Multi-head attention of tokens (B, L, C) to themselves, or to a context (B, M, C)."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, tokens: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Attend from tokens (B, L, C) to the context (B, M, C)."""
        context = tokens if context is None else context
        projected = (self.to_q(tokens), self.to_k(context), self.to_v(context))
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            # Two to five times faster there than the fused kernel; everywhere else the fused one wins.
            weights = (query * query.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1)  # (B, heads, L, M)
            attended = weights @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(attended.transpose(1, 2).flatten(2))  # (B, L, C)


class FeedForward(nn.Sequential):
    """(..., C) -> same, through a hidden layer `ratio` times as wide."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__(nn.Linear(channels, ratio * channels), nn.GELU(), nn.Linear(ratio * channels, channels))


class SourceBlock(nn.Module):
    """Tokens (B, N, C) of a volume or a view -> same, having read the source: three updates, each behind a ModLN.

    They attend to the tokens of the source, then to one another, then comes a feed-forward.
    """

    def __init__(self, channels: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = ModLN(channels)
        self.cross_attention = Attention(channels, num_heads)
        self.norm2 = ModLN(channels)
        self.self_attention = Attention(channels, num_heads)
        self.norm3 = ModLN(channels)
        self.feed_forward = FeedForward(channels, mlp_ratio)

    def forward(
        self, tokens: torch.Tensor, source_tokens: torch.Tensor, camera_embedding: torch.Tensor, temb: torch.Tensor
    ) -> torch.Tensor:
        """Update tokens (B, N, C) from source_tokens (B, H*W, C) and the two embeddings (B, C)."""
        tokens = tokens + self.cross_attention(self.norm1(tokens, camera_embedding, temb), source_tokens)
        tokens = tokens + self.self_attention(self.norm2(tokens, camera_embedding, temb))
        return tokens + self.feed_forward(self.norm3(tokens, camera_embedding, temb))


class AggregatorBlock(nn.Module):
    """Frustum tokens (N, D, L, C) -> same: attention across depth, attention across the image, feed-forward."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.depth_attention = Attention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels)
        self.spatial_attention = Attention(channels, num_heads)
        self.norm3 = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, mlp_ratio)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Update tokens (N, D, L, C) of N views with L pixels at D depths."""
        num_views, depth, length, _ = tokens.shape
        rays = self.norm1(tokens).transpose(1, 2).flatten(0, 1)  # (N*L, D, C)
        tokens = tokens + self.depth_attention(rays).unflatten(0, (num_views, length)).transpose(1, 2)
        planes = self.norm2(tokens).flatten(0, 1)  # (N*D, L, C)
        tokens = tokens + self.spatial_attention(planes).unflatten(0, (num_views, depth))
        return tokens + self.feed_forward(self.norm3(tokens))


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The layer with all its weights at zero."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
