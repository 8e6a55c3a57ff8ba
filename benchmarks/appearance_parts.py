"""What each part of the appearance model is worth, on held-out heads: ablations with the same weights.

    nvb-heads --output_dir heads --identities 60 --views 5 --size 256 --seed 1 --split_sizes 0 1
    python -m benchmarks.appearance_parts heads

Every identity's first view, degraded, is turned to its others. PSNR is of the whole view, of the head, and of the
head's pixels that the photo saw (evidence over one half in the full model); sharpness is the energy of the head's
gradients over the truth's. A second table has the full model's error by kind of evidence, a third heads with and
without glasses and hats. Intervals are over identities, and leads over the view of the UNet alone are paired.
"""

import argparse
import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from nvb_diffusers import DEFAULT_CHECKPOINT, AppearanceModel, NVBFacePipeline
from nvb_diffusers.data.datasets import SampleTransform
from nvb_diffusers.data.degradation import PRESETS
from nvb_diffusers.data.images import psnr
from nvb_diffusers.data.records import read_records
from nvb_diffusers.data.surfaces import SurfaceDataset
from nvb_diffusers.evaluation.intervals import bootstrap_interval
from nvb_diffusers.models.appearance import PhotoLayers
from nvb_diffusers.option_types import OneLineParser, filled_text, whole_number

ALONE = "the UNet's view alone"
KINDS = ("seen", "mirrored", "invented")
WORN = ("glasses", "hat")  # columns of the records of nvb-heads
Row = dict[str, list[float]]
Way = Callable[[PhotoLayers, torch.Tensor], torch.Tensor]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=filled_text, help="heads with depth and masks, several views each, split test")
    parser.add_argument("--checkpoint", type=filled_text, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--degradation", choices=sorted(PRESETS), default="medium")
    parser.add_argument("--num_target_views", type=whole_number(1), default=4)
    parser.add_argument("--num_identities", type=whole_number(1), default=60)
    return parser.parse_args(argv)


def pasting(appearance: AppearanceModel) -> AppearanceModel:
    """The same with a fuser that has learned nothing: it pastes what is trusted most."""
    plain = copy.deepcopy(appearance)
    for parameter in plain.fuser.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    return plain


def ways(appearance: AppearanceModel) -> dict[str, Way]:
    """Views (V, 3, S, S) of layers and of the UNet's views (1, V, 3, s, s), by what is left out."""
    plain = pasting(appearance)

    def without(layers: PhotoLayers, name: str) -> PhotoLayers:
        return layers._replace(**{name: torch.zeros_like(getattr(layers, name))})

    return {
        "ours": lambda layers, views: appearance.fuse(layers, views).pixel_values[0],
        "without the mirror image": lambda layers, views: appearance.fuse(
            without(layers, "mirrored"), views
        ).pixel_values[0],
        "without the photo's backdrop": lambda layers, views: appearance.fuse(
            without(layers, "background"), views
        ).pixel_values[0],
        "without the UNet's view (gray)": lambda layers, views: appearance.fuse(
            layers, torch.zeros_like(views)
        ).pixel_values[0],
        "plain pasting, no fuser": lambda layers, views: plain.fuse(layers, views).pixel_values[0],
    }


def masked_psnr(images: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> float:
    """PSNR in dB of images (V, 3, S, S) in [-1, 1] where a mask (V, S, S) is; NaN where it is nowhere."""
    error = (images.clamp(-1, 1) - truth).square().mean(dim=1)  # (V, S, S)
    return 10 * torch.log10(4 * mask.sum() / (error * mask).sum()).item()


def sharpness(images: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> float:
    """Energy of the gradients of images (V, 3, S, S) over the truth's, where a mask (V, S, S) is."""

    def energy(pixels: torch.Tensor) -> torch.Tensor:
        across, down = (pixels.diff(dim=dim).abs().mean(dim=1) for dim in (-1, -2))
        return (across * mask[..., 1:]).sum() + (down * mask[..., 1:, :]).sum()

    return (energy(images) / energy(truth)).item()


@torch.no_grad()
def measure(
    pipe: NVBFacePipeline, sample: dict[str, torch.Tensor], all_ways: dict[str, Way], rows: dict[str, Row], kinds: Row
) -> None:
    """Add an identity to the rows of all ways, and to the error of each kind of evidence."""
    appearance, cameras = pipe.appearance, sample["camera_params"][1:]
    conditioning = pipe.encode(sample["degraded_pixel_values"][0] / 2 + 0.5, cameras=cameras)
    generator = torch.Generator().manual_seed(0)
    latents = pipe(conditioning=conditioning, generator=generator, output_type="latent").images
    views = pipe.decode_latents(latents.flatten(0, -4))[None].float()  # (1, V, 3, s, s)
    truth, head = sample["pixel_values"][1:], (sample["mask"][1:] > 0.5).float()
    assert conditioning.layers is not None  # the pipeline has an appearance model
    layers = PhotoLayers(*conditioning.layers)
    evidence = appearance.fuse(layers, views).evidence[0]  # (V, 3, S, S)
    made = {name: way(layers, views) for name, way in all_ways.items()}
    made[ALONE] = F.interpolate(views[0], truth.shape[-2:], mode="bicubic").clamp(-1, 1)
    for name, images in made.items():
        rows[name]["whole"].append(psnr(images, truth).mean().item())
        rows[name]["head"].append(masked_psnr(images, truth, head))
        rows[name]["seen"].append(masked_psnr(images, truth, head * (evidence[:, 0] > 0.5)))
        rows[name]["sharpness"].append(sharpness(images, truth, head))
    for number, kind in enumerate(KINDS):
        kinds[kind].append(masked_psnr(made["ours"], truth, head * (evidence[:, number] > 0.5)))


def shown(values: Sequence[float]) -> str:
    """A mean with its interval, over the identities that have a value."""
    finite = [value for value in values if value == value]
    if not finite:
        return ""
    interval = bootstrap_interval(finite, range(len(finite)))
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def main(argv: Sequence[str] | None = None) -> None:
    """Print three tables."""
    args = parse_args(argv)
    pipe = NVBFacePipeline.from_pretrained(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    transform = SampleTransform(pipe.sample_size, [args.degradation], flip=False)
    heads = SurfaceDataset(args.data_dir, "test", transform, num_target_views=args.num_target_views)
    identities = range(min(args.num_identities, len(heads)))
    all_ways = ways(pipe.appearance)
    rows: dict[str, Row] = {name: {"whole": [], "head": [], "seen": [], "sharpness": []} for name in (*all_ways, ALONE)}
    kinds: Row = {kind: [] for kind in KINDS}
    for index in identities:
        measure(pipe, heads[index], all_ways, rows, kinds)

    print("| views | PSNR (dB) | of the head | of what was seen | lead there over the UNet's | sharpness |")
    print("|---" * 6 + "|")
    for name, row in rows.items():
        leads = [value - other for value, other in zip(row["seen"], rows[ALONE]["seen"], strict=True)]
        cells = [shown(row["whole"]), shown(row["head"]), shown(row["seen"]), shown(leads), shown(row["sharpness"])]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| evidence | PSNR of the head (dB) | identities |\n|---|---|---|")
    for kind, values in kinds.items():
        print(f"| {kind} | {shown(values)} | {sum(value == value for value in values)} |")
    print("\n| wearing | identities | PSNR of the head (dB) | of the UNet's view alone |\n|---|---|---|---|")
    worn = {str(record["identity"]): record for record in read_records(args.data_dir) if record["split"] == "test"}
    names = list(worn)[: len(identities)]  # in the data set's own order
    for what in WORN:
        for has in (True, False):
            places = [place for place, name in enumerate(names) if _wears(worn[name], what) == has]
            cells = [shown([rows[way]["head"][place] for place in places]) for way in ("ours", ALONE)]
            print(f"| {'' if has else 'no '}{what} | {len(places)} | {' | '.join(cells)} |")


def _wears(record: dict[str, object], what: str) -> bool:
    return record.get(what) not in (None, False, "none", "", 0)


if __name__ == "__main__":
    main()
