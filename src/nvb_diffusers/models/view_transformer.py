"""The view transformer: features of one view become a feature volume, and that the features of any view (Eq. 3-6)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import nn

from ..camera import frustum_points, project_points, sample_volume, voxel_centers
from ..safetensors_only import SafetensorsModel
from .attention_blocks import AggregatorBlock, SourceBlock, zeroed
from .camera_predictor import CameraPredictor
from .entries import ModelWithEntries, entry


@dataclass
class ViewTransformer3DOutput(BaseOutput):
    """Output of `ViewTransformer3D`.

    Args:
        features: (B, V, C, 8, 8) of the target views.
        source_cameras: (B, 25) that the volume was built with: those given, or else the predicted ones, in float32.
    """

    features: torch.Tensor
    source_cameras: torch.Tensor


@dataclass(frozen=True)
class SourceTokens:
    """A source view as `ViewTransformer3D.read_source` reads it once, for the volume and for every projection.

    Args:
        features: (B, H*W, C) of the encoder, centered and normalized.
        tokens: (B, H*W, C') made of them, which know nothing of their places yet.
        cameras: (B, 25), those given, or else predicted from the features, in float32.
        camera_embedding: (B, C') of the cameras.
        temb: (B, C') of the time step.
    """

    features: torch.Tensor
    tokens: torch.Tensor
    cameras: torch.Tensor
    camera_embedding: torch.Tensor
    temb: torch.Tensor


class ViewTransformer3D(ModelWithEntries, SafetensorsModel, ConfigMixin):
    """Features of a source view (B, C, 8, 8) -> features of target views (B, V, C, 8, 8), by way of a volume.

    Learned volume queries attend to the source features, modulated by the source camera and the time step (Eq. 3, 4);
    the volume they become is sampled along the rays of every target view (Eq. 5) and aggregated over depth (Eq. 6).

    The default cube, near and far are measured for cameras at distance 2.7 with focal length 4.2647, whose view is
    0.633 wide at the origin, which a head fills. A half-extent of 0.32 makes the cube as wide as the view: the frontal
    frustum holds 100 % of the 8x8x8 voxel centers (41 % of a cube of +-0.5), a frustum within yaw +-45 degrees 93 % on
    average and 89 % at least, one at yaw 60 and pitch 20 still 85 %. Ears, the back of the head and hair out to 0.32
    have voxels of their own, and every ray crosses the cube, so that the far background, which no such volume can hold,
    has voxels at its rim to speak through. Near and far are 2.7 -+ 0.45, the reach of the cube's edges in a turn by 45
    degrees (0.32 x sqrt 2); 12 depths are then 0.075 apart, just finer than the voxels (0.08), and two thirds of the
    samples lie in the cube. SyncDreamer's sqrt 3 would leave half of them outside and show hardly a voxel more.

    Ours, beyond the paper: learned position embeddings of the source tokens and of the frustum samples (samples outside
    the cube are all zero, only their place tells them apart), all learned embeddings starting as smooth random features
    of their position, `aggregator_hidden_size`, `num_source_layers`, `mean_features`, and all layer counts.

    `mean_features` (C, 8, 8) is what all faces share: it is taken off the features on their way in and added to them on
    their way out. It is 80 % of the energy of a small encoder's features, and else has to be learned before anything of
    a person is. At zero, as in a new model, this is the paper; training measures it.

    Args:
        in_channels: channels of the features, in and out.
        hidden_size: width of the volume tokens.
        num_layers: blocks that build the volume.
        num_heads: attention heads in them; the aggregator keeps the width of a head.
        volume_size: voxels along each side of the cube, or along (Z, Y, X).
        depth: samples along each ray.
        num_aggregator_layers: blocks that aggregate the samples.
        half_extent: half the side of the cube in world units.
        near, far: range of the samples along the camera's forward axis, in world units.
        feature_size: side of the feature maps.
        aggregator_hidden_size: width of the volume's channels and of the aggregator; None for `hidden_size`. Views cost
            far more than the volume, so a small model gains most by making this narrow.
        mlp_ratio: hidden width of every feed-forward, as a multiple of its own.
        time_embed_channels: width of the sinusoidal time embedding.
        num_source_layers: 0 for the paper, where all that the views know of the source has passed the volume. Above it
            the source also reaches them directly, where small models lose most, in three ways. Each voxel begins with
            the source features that its center projects to in the source camera, zero outside the image, so that only
            depth and what is hidden is left to be learned. Each frustum sample also reads the source features that its
            point projects to there, as in pixelNeRF (arXiv 2012.02190). And in that many blocks, after the aggregator,
            the tokens of a view attend to the source and to one another at full width: 64 tokens a view are cheap
            beside the 512 of the volume. The last two add nothing before they are trained.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["SourceBlock", "AggregatorBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["SourceBlock", "AggregatorBlock"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1024,
        hidden_size: int = 1024,
        num_layers: int = 12,
        num_heads: int = 16,
        volume_size: int | tuple[int, int, int] = 8,
        depth: int = 12,
        num_aggregator_layers: int = 2,
        half_extent: float = 0.32,
        near: float = 2.25,
        far: float = 3.15,
        feature_size: int = 8,
        aggregator_hidden_size: int | None = None,
        mlp_ratio: int = 4,
        time_embed_channels: int = 320,
        num_source_layers: int = 0,
    ) -> None:
        super().__init__()
        aggregator_size = aggregator_hidden_size or hidden_size
        head_size = hidden_size // num_heads
        if hidden_size % num_heads or aggregator_size % head_size:
            raise ValueError(
                f"`num_heads` {num_heads} does not divide `hidden_size` {hidden_size} into heads that fit "
                f"`aggregator_hidden_size` {aggregator_size} too."
            )
        if not 0 < near < far:
            raise ValueError(f"`near` {near} and `far` {far} must be positive, and `near` the smaller.")
        self.gradient_checkpointing = False
        self.volume_shape = (volume_size,) * 3 if isinstance(volume_size, int) else tuple(volume_size)
        pixels = (feature_size, feature_size)
        self.mean_features: torch.Tensor
        self.register_buffer("mean_features", torch.zeros(in_channels, *pixels))

        # 1. Conditions: the source camera and the time step
        self.camera_predictor = CameraPredictor(in_channels, hidden_size // 2, feature_size)
        self.camera_embedding = nn.Sequential(
            nn.Linear(25, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        self.time_proj = Timesteps(time_embed_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(time_embed_channels, hidden_size)
        zeroed(self.time_embedding.linear_2)

        # 2. From source features to the volume
        self.norm_in = nn.LayerNorm(in_channels)
        self.proj_in = nn.Linear(in_channels, hidden_size)
        self.source_embedding = nn.Parameter(_position_features((1, *pixels), hidden_size))  # (H*W, C)
        self.volume_queries = nn.Parameter(_position_features(self.volume_shape, hidden_size))  # (Z*Y*X, C)
        self.volume_blocks = nn.ModuleList(SourceBlock(hidden_size, num_heads, mlp_ratio) for _ in range(num_layers))
        self.norm_volume = nn.LayerNorm(hidden_size)
        self.proj_volume = nn.Linear(hidden_size, aggregator_size)

        # 3. From the volume to target features
        self.frustum_embedding = nn.Parameter(_position_features((depth, *pixels), aggregator_size))  # (D*H*W, C)
        self.aggregator_blocks = nn.ModuleList(
            AggregatorBlock(aggregator_size, aggregator_size // head_size, mlp_ratio)
            for _ in range(num_aggregator_layers)
        )
        self.norm_out = nn.LayerNorm(aggregator_size)
        self.proj_out = nn.Linear(aggregator_size, in_channels)

        # 4. From the source past the volume, which adds nothing at first
        if num_source_layers:
            self.proj_samples = zeroed(nn.Linear(in_channels, aggregator_size))
            self.target_camera_embedding = nn.Sequential(
                nn.Linear(25, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
            )
            self.proj_view_in = nn.Linear(aggregator_size, hidden_size)
            self.view_embedding = nn.Parameter(_position_features((1, *pixels), hidden_size))  # (H*W, C)
            self.view_blocks = nn.ModuleList(
                SourceBlock(hidden_size, num_heads, mlp_ratio) for _ in range(num_source_layers)
            )
            self.norm_view = nn.LayerNorm(hidden_size)
            self.proj_view_out = zeroed(nn.Linear(hidden_size, in_channels))

    def forward(
        self,
        features: torch.Tensor,
        timestep: torch.Tensor | float,
        target_cameras: torch.Tensor,
        source_cameras: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> ViewTransformer3DOutput | tuple[torch.Tensor, torch.Tensor]:
        """Turn the features of a source view into those of target views.

        Args:
            features: (B, C, 8, 8) of the source view, from the image encoder at the same time step.
            timestep: (B,), or one for all.
            target_cameras: (B, V, 25).
            source_cameras: (B, 25); predicted from the features where None.
            return_dict: whether to return a `ViewTransformer3DOutput` rather than a tuple.
        """
        source = self.read_source(features, timestep, source_cameras)
        target_features = self.project(self.build_volume(source), source, target_cameras)
        if not return_dict:
            return target_features, source.cameras
        return ViewTransformer3DOutput(features=target_features, source_cameras=source.cameras)

    @entry
    def predict_camera(self, features: torch.Tensor) -> torch.Tensor:
        """Camera (B, 25), in float32, that saw the features (B, C, 8, 8) (Eq. 3)."""
        return self.camera_predictor(self._centered(features))

    @entry
    def read_source(
        self, features: torch.Tensor, timestep: torch.Tensor | float, source_cameras: torch.Tensor | None = None
    ) -> SourceTokens:
        """Read features (B, C, 8, 8) seen by source_cameras (B, 25), which are predicted from them where None.

        Raises:
            ValueError: an argument's shape is another.
        """
        features = self._centered(features)
        batch_size = features.shape[0]
        if source_cameras is None:
            source_cameras = self.camera_predictor(features)
        if source_cameras.shape != (batch_size, 25):
            raise ValueError(
                f"`source_cameras` has shape {tuple(source_cameras.shape)}, but must be ({batch_size}, 25)."
            )
        timestep = torch.as_tensor(timestep, device=features.device).reshape(-1)
        if timestep.shape[0] not in (1, batch_size):
            raise ValueError(f"`timestep` has {timestep.shape[0]} values, but 1 or {batch_size} are accepted.")
        normalized = self.norm_in(features.flatten(2).mT)  # (B, H*W, C)
        return SourceTokens(
            features=normalized,
            tokens=self.proj_in(normalized),
            cameras=source_cameras,
            camera_embedding=self.camera_embedding(source_cameras.to(features.dtype)),
            temb=self.time_embedding(self.time_proj(timestep.expand(batch_size)).to(features.dtype)),
        )

    @entry
    def build_volume(self, source: SourceTokens) -> torch.Tensor:
        """Feature volume (B, C, Z, Y, X) of a source (Eq. 3, 4), once for all its views."""
        batch_size = len(source.tokens)
        tokens = self.volume_queries.repeat(batch_size, 1, 1)  # (B, Z*Y*X, C)
        if self.config.num_source_layers:
            centers = voxel_centers(self.volume_shape, self.config.half_extent).flatten(0, 2)  # (Z*Y*X, 3)
            tokens = tokens + self._lift(source.tokens, source.cameras, centers.expand(batch_size, -1, -1))
        source_tokens = source.tokens + self.source_embedding
        tokens = self._run(self.volume_blocks, tokens, source_tokens, source.camera_embedding, source.temb)
        return self.proj_volume(self.norm_volume(tokens)).mT.unflatten(2, self.volume_shape)  # (B, C, Z, Y, X)

    @entry
    def project(self, feature_volume: torch.Tensor, source: SourceTokens, target_cameras: torch.Tensor) -> torch.Tensor:
        """Features (B, V, C, 8, 8) of target_cameras (B, V, 25), from a source and its volume (Eq. 5, 6).

        Raises:
            ValueError: the cameras' shape is another.
        """
        batch_size, size = feature_volume.shape[0], self.config.feature_size
        if target_cameras.ndim != 3 or target_cameras.shape[::2] != (batch_size, 25):
            raise ValueError(
                f"`target_cameras` has shape {tuple(target_cameras.shape)}, but must be ({batch_size}, V, 25)."
            )
        points = frustum_points(target_cameras, size, size, self.config.depth, self.config.near, self.config.far)
        frustum_features = sample_volume(feature_volume, points, self.config.half_extent)  # (B, C, V, D, H, W)
        tokens = frustum_features.permute(0, 2, 3, 4, 5, 1).flatten(0, 1).flatten(2, 3)  # (B*V, D, H*W, C)
        tokens = tokens + self.frustum_embedding.unflatten(0, tokens.shape[1:3])
        if self.config.num_source_layers:
            source_samples = self.proj_samples(source.features)  # (B, H*W, C)
            lifted = self._lift(source_samples, source.cameras, points.flatten(1, 4))  # (B, V*D*H*W, C)
            tokens = tokens + lifted.reshape(tokens.shape)
        tokens = self._run(self.aggregator_blocks, tokens)
        tokens = self.norm_out(tokens.mean(dim=1))  # (B*V, H*W, C)
        views = self.proj_out(tokens)  # (B*V, H*W, C)
        if self.config.num_source_layers:
            views = views + self._attend_to_source(tokens, source, target_cameras)
        views = views.mT.unflatten(2, (size, size)).unflatten(0, target_cameras.shape[:2])  # (B, V, C, 8, 8)
        return views + self.mean_features

    def _attend_to_source(
        self, tokens: torch.Tensor, source: SourceTokens, target_cameras: torch.Tensor
    ) -> torch.Tensor:
        """What the tokens (B*V, H*W, C) of target_cameras (B, V, 25) miss of the source: (B*V, H*W, C')."""
        source_tokens, camera_embedding, temb = (
            x.repeat_interleave(target_cameras.shape[1], dim=0)
            for x in (source.tokens + self.source_embedding, source.camera_embedding, source.temb)
        )
        target_embedding = self.target_camera_embedding(target_cameras.flatten(0, 1).to(source.tokens.dtype))
        tokens = self.proj_view_in(tokens) + self.view_embedding
        tokens = self._run(self.view_blocks, tokens, source_tokens, camera_embedding + target_embedding, temb)
        return self.proj_view_out(self.norm_view(tokens))

    def _run(self, blocks: nn.ModuleList, tokens: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        """Tokens after all blocks, with gradient checkpointing where it is on."""
        for block in blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, *conditions)
            else:
                tokens = block(tokens, *conditions)
        return tokens

    def _lift(self, source_tokens: torch.Tensor, source_cameras: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Source tokens (B, H*W, C) where source_cameras (B, 25) see the points (B, N, 3): (B, N, C).

        The camera learns from its own loss and from the modulation, not from moving the image.
        """
        size = self.config.feature_size
        cameras = source_cameras.detach().float()
        uvz = project_points(points.to(cameras), cameras)  # (B, N, 3)
        grid = 2 * uvz[..., None, :2] - 1  # (B, N, 1, 2), in float32: half precision would move the image
        feature_map = source_tokens.mT.unflatten(2, (size, size)).to(grid.dtype)
        return F.grid_sample(feature_map, grid, align_corners=False)[..., 0].mT.to(source_tokens.dtype)

    def _centered(self, features: torch.Tensor) -> torch.Tensor:
        """Source features (B, C, 8, 8) without what all faces share."""
        expected = (self.config.in_channels, self.config.feature_size, self.config.feature_size)
        if features.shape[1:] != expected:
            raise ValueError(
                f"`features` has shape {tuple(features.shape)}, but this view transformer takes {('B', *expected)}."
            )
        return features - self.mean_features


def _position_features(shape: tuple[int, ...], channels: int) -> torch.Tensor:
    """Smooth random features (N, C) of the cells of a grid (Z, Y, X): cosines of random frequencies, of RMS 0.5.

    Neighbors start alike and distant cells unlike, which is what a learned embedding of positions would have to find.
    """
    positions = voxel_centers(shape, half_extent=1.0).flatten(0, 2)  # (N, 3)
    phases = positions @ (3 * torch.randn(3, channels, dtype=positions.dtype)) + 2 * torch.pi * torch.rand(
        channels, dtype=positions.dtype
    )
    return (phases.cos() / 2**0.5).to(torch.get_default_dtype())  # in which diffusers makes a model of another dtype
