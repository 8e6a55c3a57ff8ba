"""The bars that a pipeline has to clear before it is worth using, read off the files of a comparison."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from nvb_diffusers.camera import angle_between_cameras, angles_from_camera
from nvb_diffusers.data.images import load_photo, to_pixel_values
from nvb_diffusers.evaluation.intervals import Interval
from nvb_diffusers.evaluation.networks import OwnPredictor
from nvb_diffusers.evaluation.test_sets import TestIdentity, TestSet, view_name

YAW_DEG, PITCH_DEG = 45.0, 15.0  # the range within which views have to obey
CAMERA_BARS_DEG = {"mild": 5.0, "severe": 8.0}
OBEDIENCE_BAR_DEG, IDENTITY_BAR, RESTORATION_BAR_DB = 6.0, 0.9, 1.5


@dataclass(frozen=True)
class Bar:
    """One measure and what it should be."""

    measure: str
    value: float
    unit: str
    bar: str
    met: bool
    low: float | None = None
    high: float | None = None


def measure_bars(
    test_set: TestSet,
    predictions: Path,
    rows: dict[str, dict[str, dict[str, Any]]],
    leads: dict[tuple[str, str], Interval],
    predictor: OwnPredictor,
) -> list[dict[str, Any]]:
    """Every bar that the rows of a comparison allow to be measured.

    Args:
        test_set: on the main degradation.
        predictions: of the first row on it.
        rows: summaries by the name of the row and the preset; the first row is the pipeline in question.
        leads: by the name of a row and the preset, how far the first row's PSNR is above it, paired by view. On the
            main degradation they are held against the bar.
        predictor: sees the cameras of pictures.
    """
    preset = test_set.settings["preset"]
    ours, *_ = rows.values()
    bars = []
    for (other, degradation), (lead, low, high) in leads.items():
        measure = f"PSNR of the views above `{other}`, paired"
        if degradation == preset:
            bars.append(Bar(measure, lead, "dB", "clearly: interval above 0", low > 0, low, high))
        else:
            bars.append(Bar(f"{measure}, at `{degradation}`", lead, "dB", "", True, low, high))
    for degradation, limit in CAMERA_BARS_DEG.items():
        if degradation in ours:
            angle = ours[degradation]["source_camera"]["median angle (deg)"]
            measure = f"camera of the input, `{degradation}`, median angle"
            bars.append(Bar(measure, angle, "deg", f"< {limit:g}", angle < limit))
    views, truths, cameras = _pictures(test_set, predictions)
    angle = obedience(predictor.cameras, views, cameras)
    measure = f"camera seen in a view against the asked one, within yaw {YAW_DEG:g} and pitch {PITCH_DEG:g}, median"
    bars.append(Bar(measure, angle, "deg", f"< {OBEDIENCE_BAR_DEG:g}", angle < OBEDIENCE_BAR_DEG))
    angle = obedience(predictor.cameras, truths, cameras)
    bars.append(Bar("the same in the true views, for comparison", angle, "deg", "", True))
    share = identity_triplets(lambda pictures: encoder_embedding(predictor, pictures), views, truths)
    measure = "views nearer to their person's true views than to another's, by the encoder's features"
    bars.append(Bar(measure, 100 * share, "%", f">= {100 * IDENTITY_BAR:g}", share >= IDENTITY_BAR))
    if preset in rows.get("input", {}):
        gain = ours[preset]["restoration"]["PSNR"]["mean"] - rows["input"][preset]["restoration"]["PSNR"]["mean"]
        measure = "PSNR of the restoration above the input, enlarged as its degradation enlarges it"
        bars.append(Bar(measure, gain, "dB", f">= {RESTORATION_BAR_DB:g}", gain >= RESTORATION_BAR_DB))
    return [asdict(bar) for bar in bars]


def obedience(predict: Callable[[torch.Tensor], torch.Tensor], views: torch.Tensor, cameras: torch.Tensor) -> float:
    """Median angle in degrees between the cameras seen in views (N, V, 3, S, S) and those asked for (N, V, 25)."""
    asked = cameras.flatten(0, 1)
    yaw, pitch, _ = angles_from_camera(asked).unbind(-1)
    within = (yaw.abs() <= YAW_DEG) & (pitch.abs() <= PITCH_DEG)
    seen = torch.cat([predict(part) for part in views.flatten(0, 1)[within].split(32)])
    return angle_between_cameras(seen, asked[within]).median().item()


def identity_triplets(
    embed: Callable[[torch.Tensor], torch.Tensor], views: torch.Tensor, truths: torch.Tensor
) -> float:
    """Share of triplets in which a generated view is nearer to its person's true views than to another person's.

    Args:
        embed: gives embeddings (M, E) of pictures (M, 3, S, S).
        views: generated (N, V, 3, S, S).
        truths: (N, V, 3, S, S), at the same cameras.
    """
    generated = F.normalize(embed(views.flatten(0, 1)), dim=-1).unflatten(0, views.shape[:2])  # (N, V, E)
    true = F.normalize(embed(truths.flatten(0, 1)), dim=-1).unflatten(0, truths.shape[:2])
    similarity = torch.einsum("nve,mwe->nvmw", generated, true).amax(dim=-1)  # nearest view of each person (N, V, N)
    own = similarity.diagonal(dim1=0, dim2=2).mT[..., None]  # (N, V, 1)
    others = ~torch.eye(len(views), dtype=torch.bool)[:, None].expand_as(similarity)
    return (own > similarity)[others].float().mean().item()


@torch.no_grad()
def encoder_embedding(predictor: OwnPredictor, pictures: torch.Tensor) -> torch.Tensor:
    """Features (N, C*8*8) of a pipeline's encoder at time step 0, centered: a measure of identity of our own."""
    encoder = predictor.pipeline.image_encoder
    features = torch.cat([encoder(part, 0).sample for part in pictures.split(32)])
    return (features - features.mean(dim=0)).flatten(1)


def bars_lines(bars: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the bars as a table."""
    lines = []
    for bar in bars:
        verdict = ("met" if bar["met"] else "**missed**") if bar["bar"] else ""
        interval = "" if bar["low"] is None else f" [{bar['low']:.2f}, {bar['high']:.2f}]"
        lines.append([bar["measure"], bar["bar"], f"{bar['value']:.2f}{interval} {bar['unit']}", verdict])
    return ["measure", "bar", "value", "verdict"], lines


def _pictures(test_set: TestSet, predictions: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predicted and true views (N, V, 3, S, S) in [-1, 1], and their cameras (N, V, 25)."""
    views, truths = (
        torch.stack([target_pictures(folder, identity) for identity in test_set.identities])
        for folder in (predictions, test_set.folder / "truths")
    )
    return views, truths, torch.stack([identity.cameras for identity in test_set.identities])


def target_pictures(folder: Path, identity: TestIdentity) -> torch.Tensor:
    """Pictures (V, 3, S, S) in [-1, 1] of an identity's target views, in a folder of predictions or of truths."""
    return to_pixel_values([load_photo(folder / view_name(identity.identity, t.view)) for t in identity.targets])
