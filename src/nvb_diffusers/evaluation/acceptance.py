"""What is required of a pipeline before it is worth using, measured on the files of a comparison."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from nvb_diffusers.camera import angle_between_cameras, angles_from_camera
from nvb_diffusers.data.images import load_photo, to_pixel_values
from nvb_diffusers.evaluation.intervals import Interval
from nvb_diffusers.evaluation.metrics import resize_square
from nvb_diffusers.evaluation.networks import OwnPredictor
from nvb_diffusers.evaluation.results import RESTORATION, Requirement, Result, index_results
from nvb_diffusers.evaluation.test_sets import TestIdentity, TestSet, view_name

YAW_DEG, PITCH_DEG = 45.0, 15.0  # the range within which views have to obey
CAMERA_LIMITS_DEG = {"mild": 5.0, "severe": 8.0}  # of the input's camera, by degradation
OBEDIENCE_LIMIT_DEG, IDENTITY_SHARE, RESTORATION_GAIN_DB = 6.0, 0.9, 1.5


def measure_requirements(
    test_set: TestSet,
    predictions: Path,
    rows: Sequence[Result],
    leads: Mapping[tuple[str, str], Interval],
    predictor: OwnPredictor,
) -> tuple[Requirement, ...]:
    """Every requirement that the rows of a comparison allow to be measured.

    Args:
        test_set: on the main degradation.
        predictions: of the first row on it.
        rows: of the comparison; the first is the pipeline in question.
        leads: by the name of a row and the preset, how far the first row's PSNR is above it, paired by view. On the
            main degradation they are required.
        predictor: sees the cameras of images.
    """
    preset, results = test_set.settings.preset, index_results(rows)
    ours = results[rows[0].name]
    views, truths, cameras = _images(test_set, predictions)
    return (
        *_lead_requirements(leads, preset),
        *_camera_requirements(ours),
        *_obedience_requirements(predictor, views, truths, cameras),
        _identity_requirement(predictor, views, truths),
        *_restoration_requirements(ours.get(preset), results.get("input", {}).get(preset)),
    )


def _lead_requirements(leads: Mapping[tuple[str, str], Interval], main: str) -> list[Requirement]:
    requirements = []
    for (rival, preset), lead in leads.items():
        measure = f"PSNR of the views above `{rival}`, paired"
        if preset == main:
            required, met = "clearly: interval above 0", lead.low > 0
        else:
            measure, required, met = f"{measure}, at `{preset}`", "", True
        requirements.append(Requirement(measure, lead.mean, "dB", required, met, lead))
    return requirements


def _camera_requirements(ours: Mapping[str, Result]) -> list[Requirement]:
    requirements = []
    for preset, limit in CAMERA_LIMITS_DEG.items():
        seen = ours[preset].source_camera if preset in ours else None
        if seen is not None:
            measure = f"camera of the input, `{preset}`, median angle"
            requirements.append(Requirement(measure, seen.median, "deg", f"< {limit:g}", seen.median < limit))
    return requirements


def _obedience_requirements(
    predictor: OwnPredictor, views: torch.Tensor, truths: torch.Tensor, cameras: torch.Tensor
) -> list[Requirement]:
    measure = f"camera seen in a view against the asked one, within yaw {YAW_DEG:g} and pitch {PITCH_DEG:g}, median"
    angle = obedience(predictor.cameras, views, cameras)
    floor = obedience(predictor.cameras, truths, cameras)
    return [
        Requirement(measure, angle, "deg", f"< {OBEDIENCE_LIMIT_DEG:g}", angle < OBEDIENCE_LIMIT_DEG),
        Requirement("the same in the true views, for comparison", floor, "deg", "", True),
    ]


def _identity_requirement(predictor: OwnPredictor, views: torch.Tensor, truths: torch.Tensor) -> Requirement:
    share = identity_triplets(lambda images: encoder_embedding(predictor, images), views, truths)
    measure = "views nearer to their person's true views than to another's, by the encoder's features"
    return Requirement(measure, 100 * share, "%", f">= {100 * IDENTITY_SHARE:g}", share >= IDENTITY_SHARE)


def _restoration_requirements(ours: Result | None, untouched: Result | None) -> list[Requirement]:
    """What the restoration gains on the input; nothing where either was not run."""
    restored, given = (
        None if result is None else result.summary.tasks[RESTORATION]["PSNR"].mean for result in (ours, untouched)
    )
    if restored is None or given is None:
        return []
    gain = restored - given
    measure = "PSNR of the restoration above the input, enlarged as its degradation enlarges it"
    return [Requirement(measure, gain, "dB", f">= {RESTORATION_GAIN_DB:g}", gain >= RESTORATION_GAIN_DB)]


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
        embed: gives embeddings (M, E) of images (M, 3, S, S).
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
def encoder_embedding(predictor: OwnPredictor, images: torch.Tensor) -> torch.Tensor:
    """Features (N, C*8*8) of a pipeline's encoder at time step 0, centered: a measure of identity of our own.

    Views may be larger than what the encoder reads, as an appearance model's are.
    """
    encoder = predictor.pipeline.image_encoder
    parts = resize_square(images, encoder.config.sample_size).split(32)
    features = torch.cat([encoder(part, 0).sample for part in parts])
    return (features - features.mean(dim=0)).flatten(1)


def requirement_lines(requirements: Sequence[Requirement]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the requirements as a table."""
    lines = []
    for requirement in requirements:
        verdict = ("met" if requirement.met else "**missed**") if requirement.required else ""
        ends = requirement.interval
        interval = "" if ends is None else f" [{ends.low:.2f}, {ends.high:.2f}]"
        value = f"{requirement.value:.2f}{interval} {requirement.unit}"
        lines.append([requirement.measure, requirement.required, value, verdict])
    return ["measure", "required", "value", "verdict"], lines


def _images(test_set: TestSet, predictions: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predicted and true views (N, V, 3, S, S) in [-1, 1], and their cameras (N, V, 25)."""
    views, truths = (
        torch.stack([target_images(folder, identity) for identity in test_set.identities])
        for folder in (predictions, test_set.folder / "truths")
    )
    return views, truths, torch.stack([identity.cameras for identity in test_set.identities])


def target_images(folder: Path, identity: TestIdentity) -> torch.Tensor:
    """Images (V, 3, S, S) in [-1, 1] of an identity's target views, in a folder of predictions or of truths."""
    return to_pixel_values([load_photo(folder / view_name(identity.identity, t.view)) for t in identity.targets])
