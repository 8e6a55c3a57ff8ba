"""The appearance model: the photo's own pixels, carried to each camera and fused with the generated view.

Ours, beyond the paper. What the UNet paints of a person has passed 64 feature tokens; what makes one recognize the
person is in the photo's pixels. This model reads a surface from the photo (its restored pixels, their depth and a
mask), projects it to the target cameras, and its mirror image too, and weighs what each source says of every pixel.
Relatives: SynSin (arXiv 1912.08804), Unsup3D (arXiv 1911.11130) for the mirror.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from ..camera import angle_between_cameras, average_cameras, pixel_centers
from ..camera_fit import fit_cameras
from ..safetensors_only import SafetensorsModel
from ..warp import carry, see_background, see_mirrored_surface, see_surface
from .entries import ModelWithEntries, entry
from .pixel_restorer import PixelRestorer

MEAN_DEPTH, DEPTH_SCALE = 2.55, 0.12  # world units: where a face is before a camera at distance 2.7
POSITION_SCALE = 0.15  # world units: how far the points of a head are from its middle, along each axis
FIT_STRIDE = 4  # every so many pixels, along both axes, say which camera took the photo
AGREEMENT_DEG, DISAGREEMENT_DEG = 5.0, 15.0  # between two estimates of a camera; of heads most are nearer
LOWEST = -0.22  # world units: the neck, below which shoulders may turn otherwise than the head
BACKDROP_MARGIN = 0.06  # share of the side, over which the photo's backdrop fades out where it ends within a view
# How far each candidate for a pixel is trusted at first, before the fuser has learned: plain pasting.
FEATHER, FEATHER_POWER = 7, 6  # side in pixels of what is looked at for an edge, and how fast trust falls toward it
MIRROR_TRUST, BACKGROUND_TRUST, VIEW_TRUST, PAINTED_TRUST, LEAST_TRUST = 0.3, 0.5, 0.03, 0.01, 1e-3


class PhotoSurface(NamedTuple):
    """What a photo shows, read once.

    Args:
        pixel_values: (B, 3, S, S) in [-1, 1], the restored photo.
        depth: (B, S, S), along the source camera's forward axis in world units.
        mask: (B, S, S) in [0, 1], where the person is.
        source_cameras: (B, 25), which took the photo.
    """

    pixel_values: torch.Tensor
    depth: torch.Tensor
    mask: torch.Tensor
    source_cameras: torch.Tensor


class PhotoLayers(NamedTuple):
    """A surface as V target cameras see it.

    Args:
        direct: (B, V, 5, S, S): the photo's pixels, their visibility, and their sharpness (one over the stretch).
        mirrored: (B, V, 5, S, S), the same of the mirror image.
        background: (B, V, 4, S, S), the photo's backdrop at infinity and where it is to be seen.
    """

    direct: torch.Tensor
    mirrored: torch.Tensor
    background: torch.Tensor


class FusedViews(NamedTuple):
    """Views of all sources.

    Args:
        pixel_values: (B, V, 3, S, S) in [-1, 1].
        evidence: (B, V, 3, S, S), how much of each pixel is seen in the photo, seen in its mirror image, and invented;
            they sum to 1.
        mask: (B, V, S, S) in [0, 1], where the person is.
    """

    pixel_values: torch.Tensor
    evidence: torch.Tensor
    mask: torch.Tensor


class AppearanceBlock(nn.Module):
    """(B, C, H, W) -> (B, C', H, W): two convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, norm_num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)
        _zeroed(self.conv2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform hidden_states (B, C, H, W)."""
        inner = self.conv1(F.silu(self.norm1(hidden_states)))
        return self.shortcut(hidden_states) + self.conv2(F.silu(self.norm2(inner)))


class PixelUNet(nn.Module):
    """(B, C, S, S) -> (B, C', S, S) on blocks of pixels folded into channels; zero when new."""

    def __init__(
        self, in_channels: int, out_channels: int, block_out_channels: tuple[int, ...], patch_size: int, groups: int
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        first, last = block_out_channels[0], block_out_channels[-1]
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, first, kernel_size=3, padding=1)
        self.down_blocks = nn.ModuleList(AppearanceBlock(c, c, groups) for c in block_out_channels[:-1])
        self.downsamplers = nn.ModuleList(
            nn.Conv2d(c, d, kernel_size=3, stride=2, padding=1) for c, d in pairwise(block_out_channels)
        )
        self.mid_block = nn.Sequential(AppearanceBlock(last, last, groups), AppearanceBlock(last, last, groups))
        reversed_channels = block_out_channels[::-1]
        self.upsamplers = nn.ModuleList(nn.Conv2d(c, d, kernel_size=1) for c, d in pairwise(reversed_channels))
        self.up_blocks = nn.ModuleList(AppearanceBlock(2 * c, c, groups) for c in reversed_channels[1:])
        self.conv_out = nn.Conv2d(first, out_channels * patch_size**2, kernel_size=3, padding=1)
        _zeroed(self.conv_out)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Transform a sample (B, C, S, S), with S divisible by the patch size and by all halvings."""
        hidden_states = self.conv_in(F.pixel_unshuffle(sample, self.patch_size))
        skips = []
        for block, downsampler in zip(self.down_blocks, self.downsamplers, strict=True):
            hidden_states = block(hidden_states)
            skips.append(hidden_states)
            hidden_states = downsampler(hidden_states)
        hidden_states = self.mid_block(hidden_states)
        for block, upsampler in zip(self.up_blocks, self.upsamplers, strict=True):
            hidden_states = F.interpolate(upsampler(hidden_states), scale_factor=2.0, mode="nearest")
            hidden_states = block(torch.cat([hidden_states, skips.pop()], dim=1))
        return F.pixel_shuffle(self.conv_out(F.silu(hidden_states)), self.patch_size)


class AppearanceModel(ModelWithEntries, SafetensorsModel, ConfigMixin):
    """A photo's own pixels, read (`read_photo`), carried to cameras (`project`) and fused with views (`fuse`).

    Args:
        sample_size: S, side of the photo and of the views in pixels; a multiple of `patch_size` and of all halvings.
        patch_size: side of the pixel blocks that are folded into channels.
        restorer_hidden_size, restorer_layers: width and residual blocks of the network that restores pixels.
        reader_channels: widths of the network that reads depth, mask and positions, from the finest level to the
            coarsest.
        fuser_channels: widths of the network that weighs the candidates for each pixel.
        norm_num_groups: groups of all norms.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        patch_size: int = 4,
        restorer_hidden_size: int = 64,
        restorer_layers: int = 6,
        reader_channels: tuple[int, ...] = (64, 96, 128, 160, 192),
        fuser_channels: tuple[int, ...] = (64, 96, 128, 160),
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__()
        self.restorer = PixelRestorer(3, patch_size, restorer_hidden_size, restorer_layers)
        self.reader = PixelUNet(3, 5, tuple(reader_channels), patch_size, norm_num_groups)
        self.fuser = PixelUNet(17, 9, tuple(fuser_channels), patch_size, norm_num_groups)

    @entry
    def read_photo(
        self, pixel_values: torch.Tensor, source_cameras: torch.Tensor, correct: bool = False
    ) -> PhotoSurface:
        """Read photos (B, 3, S, S) in [-1, 1] that cameras (B, 25) took.

        Args:
            pixel_values: the photos.
            source_cameras: of the photos, known or predicted.
            correct: whether they are predicted ones. They are then joined with those that fit the photo's pixels, of
                which each is read as a point of the head (`joined_cameras`).

        Raises:
            ValueError: S is not divisible by the patch size and all halvings.
        """
        self._check_sides(pixel_values)
        if source_cameras.shape != (len(pixel_values), 25):
            shape = tuple(source_cameras.shape)
            raise ValueError(f"`source_cameras` has shape {shape}, but must be ({len(pixel_values)}, 25).")
        source_cameras = source_cameras.float()
        read = self.reader(pixel_values.to(self.dtype)).float()  # (B, 5, S, S)
        depth = (MEAN_DEPTH + DEPTH_SCALE * read[:, 0]).clamp(min=0.5)
        mask = read[:, 1].sigmoid()
        if correct:
            fitted = cameras_of_positions(POSITION_SCALE * read[:, 2:], depth, mask, source_cameras)
            source_cameras = joined_cameras(source_cameras, fitted)
        return PhotoSurface(self.restore(pixel_values), depth, mask, source_cameras)

    @entry
    def restore(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The photos (B, 3, S, S) that are to be expected behind degraded ones, in [-1, 1]: nothing is invented."""
        self._check_sides(pixel_values)
        return self.restorer.restore(pixel_values.to(self.dtype)).float()

    def project(self, surface: PhotoSurface, target_cameras: torch.Tensor) -> PhotoLayers:
        """What target cameras (B, V, 25) see of a surface, once per camera whatever the number of steps."""
        geometry = (surface.depth, surface.mask, surface.source_cameras, target_cameras.float())
        size = surface.depth.shape[-1]
        pixels = surface.pixel_values.clamp(-1, 1)
        direct, mirrored = (
            torch.cat([carry(pixels, seen.uv), seen.visibility[:, :, None], 1 / seen.stretch[:, :, None]], dim=2)
            for seen in (see_surface(*geometry, size), see_mirrored_surface(*geometry, size))
        )
        uv = see_background(surface.source_cameras, target_cameras.float(), size)
        inside = ((uv > 0) & (uv < 1)).all(dim=-1).to(pixels)  # (B, V, S, S)
        kept = torch.stack([inside, inside, inside, _faded(inside)], dim=2)  # (B, V, 4, S, S)
        backdrop = torch.cat([pixels, 1 - surface.mask[:, None]], dim=1)  # (B, 4, S, S)
        return PhotoLayers(direct, mirrored, carry(backdrop, uv) * kept)

    @entry
    def fuse(self, layers: PhotoLayers, views: torch.Tensor, view_batch_size: int | None = None) -> FusedViews:
        """Weigh the layers against generated views.

        Args:
            layers: of `project`.
            views: (B, V, 3, s, s) in [-1, 1], of the layers' side or of a smaller one.
            view_batch_size: views at a time; None for all.
        """
        size = view_batch_size or views.shape[0] * views.shape[1]
        parts = (part.flatten(0, 1).split(size) for part in (*layers, views))
        fused = [self._fuse(*part) for part in zip(*parts, strict=True)]
        return FusedViews(*(torch.cat(part).unflatten(0, views.shape[:2]) for part in zip(*fused, strict=True)))

    def _fuse(
        self, direct: torch.Tensor, mirrored: torch.Tensor, background: torch.Tensor, views: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixels, evidence and mask of N views (N, 3, s, s) with their layers (N, C, S, S)."""
        views = F.interpolate(views.float(), direct.shape[-2:], mode="bicubic").clamp(-1, 1)
        given = torch.cat([direct, mirrored, background, views], dim=1)  # (N, 17, S, S)
        correction, painted, mask = self.fuser(given.to(self.dtype)).float().split([5, 3, 1], dim=1)
        seen, reflected = _feathered(direct[:, 3]), _feathered(mirrored[:, 3])  # (N, S, S)
        unseen = 1 - seen
        trust = [  # (N, S, S) each
            seen * direct[:, 4].square(),
            MIRROR_TRUST * unseen * reflected * mirrored[:, 4].square(),
            BACKGROUND_TRUST * background[:, 3],
            torch.full_like(unseen, VIEW_TRUST),
            torch.full_like(unseen, PAINTED_TRUST),
        ]
        weights = ((torch.stack(trust, dim=1) + LEAST_TRUST).log() + correction).softmax(dim=1)  # (N, 5, S, S)
        candidates = torch.stack([direct[:, :3], mirrored[:, :3], background[:, :3], views, views + painted], dim=1)
        fused = (weights[:, :, None] * candidates).sum(dim=1)  # (N, 3, S, S)
        evidence = torch.stack([weights[:, 0] + weights[:, 2], weights[:, 1], weights[:, 3] + weights[:, 4]], dim=1)
        return fused, evidence, mask[:, 0].sigmoid()

    def on_backdrop(
        self, fused: FusedViews, surface: PhotoSurface, background: str | tuple[float, float, float]
    ) -> torch.Tensor:
        """The views' persons before the photo's own backdrop, standing still, or before a color in [0, 1].

        Returns:
            (B, V, 3, S, S) in [-1, 1].
        """
        if isinstance(background, str):
            backdrop = own_backdrop(surface)[:, None]  # (B, 1, 3, S, S)
        else:
            backdrop = 2 * surface.pixel_values.new_tensor(background)[:, None, None] - 1  # (3, 1, 1)
        return torch.lerp(backdrop.expand_as(fused.pixel_values), fused.pixel_values, fused.mask[:, :, None])

    def _check_sides(self, pixel_values: torch.Tensor) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"`pixel_values` has shape {tuple(pixel_values.shape)}, but must be (B, 3, S, S).")
        levels = max(len(self.config.reader_channels), len(self.config.fuser_channels))
        divisor = self.config.patch_size * 2 ** (levels - 1)
        if pixel_values.shape[2] % divisor or pixel_values.shape[3] % divisor:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}, but its sides must be divisible by {divisor}."
            )

    def forward(
        self,
        pixel_values: torch.Tensor,
        source_cameras: torch.Tensor,
        target_cameras: torch.Tensor,
        views: torch.Tensor,
    ) -> FusedViews:
        """Read, project and fuse: photos (B, 3, S, S), cameras (B, 25) and (B, V, 25), views (B, V, 3, s, s)."""
        surface = self.read_photo(pixel_values, source_cameras)
        return self.fuse(self.project(surface, target_cameras), views)


def cameras_of_positions(
    positions: torch.Tensor, depth: torch.Tensor, mask: torch.Tensor, otherwise: torch.Tensor
) -> torch.Tensor:
    """Cameras (B, 25) of photos in which pixels show points of a head.

    Args:
        positions: (B, 3, S, S), the points in the world.
        depth: (B, S, S), about how far they are.
        mask: (B, S, S) in [0, 1], where the person is.
        otherwise: (B, 25), where nothing fits.
    """
    uv = pixel_centers(depth.shape[-2], depth.shape[-1], depth.device).expand(*depth.shape, 2)
    uvz = torch.cat([uv, depth[..., None]], dim=-1)  # (B, S, S, 3)
    picked = (part[:, ::FIT_STRIDE, ::FIT_STRIDE].flatten(1, 2) for part in (positions.movedim(1, -1), uvz, mask))
    points, uvz, weights = picked
    return fit_cameras(points, uvz, weights * (weights > 0.5) * (points[..., 1] > LOWEST), otherwise)


def joined_cameras(predicted: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
    """One estimate (B, 25) of two: by features, and by the points that pixels show.

    Where they agree their mean is better than either, as their errors are not the same. Where they do not, the photo is
    unlike those of training, and features tell its framing rather than its camera: the points are trusted alone.
    """
    turn = angle_between_cameras(predicted, fitted)
    of_points = 0.5 + 0.5 * ((turn - AGREEMENT_DEG) / (DISAGREEMENT_DEG - AGREEMENT_DEG)).clamp(0, 1)  # (B,)
    return average_cameras(torch.stack([predicted, fitted]), torch.stack([1 - of_points, of_points]))


def own_backdrop(surface: PhotoSurface) -> torch.Tensor:
    """The photos' backdrops (B, 3, S, S), filled in behind the persons from what is around them."""
    person = F.max_pool2d(surface.mask[:, None], kernel_size=9, stride=1, padding=4)  # hair reaches beyond its mask
    known = (person < 0.1).to(person)
    return _filled(surface.pixel_values * known, known)


def _feathered(visibility: torch.Tensor) -> torch.Tensor:
    """Visibility (N, S, S) that fades out over a few pixels inside of its edges, which are as jagged as pixels are."""
    near_edge = F.avg_pool2d(visibility[:, None], FEATHER, stride=1, padding=FEATHER // 2, count_include_pad=False)
    return visibility * near_edge[:, 0] ** FEATHER_POWER


def _faded(inside: torch.Tensor) -> torch.Tensor:
    """A mask (B, V, S, S) that fades out toward its edges within the picture, and not toward the picture's own."""
    reach = max(1, round(BACKDROP_MARGIN * inside.shape[-1]))
    around = inside
    for kernel, padding in (((1, 2 * reach + 1), (0, reach)), ((2 * reach + 1, 1), (reach, 0))):
        around = F.avg_pool2d(around, kernel, stride=1, padding=padding, count_include_pad=False)
    return inside * (2 * around - 1).clamp(min=0)


def _filled(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Values (B, C, S, S), zero where not `known` (B, 1, S, S), filled by ever coarser means (pull and push)."""
    if values.shape[-1] == 1:
        return values / known.clamp(min=1e-6)
    coarse = _filled(*(F.avg_pool2d(part, 2) for part in (values, known)))
    around = F.interpolate(coarse, values.shape[-2:], mode="bilinear", align_corners=False)
    return values + (1 - known).clamp(min=0) * around


def _zeroed(layer: nn.Conv2d) -> None:
    """Set all weights of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
