"""How much better views become with 1, 2 and 4 photos of a person, on held-out heads.

    nvb-heads --output_dir heads --identities 60 --views 5 --size 256 --seed 1 --split_sizes 0 1
    python -m benchmarks.several_photos heads

The last view of each identity is made from its first 1, 2 and 4 views, degraded; the leads over one photo are paired.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch

from nvb_diffusers import DEFAULT_CHECKPOINT, NVBFacePipeline
from nvb_diffusers.conditioning import Conditioning
from nvb_diffusers.data.datasets import MultiViewFaceDataset, SampleTransform
from nvb_diffusers.data.degradation import PRESETS
from nvb_diffusers.data.images import psnr
from nvb_diffusers.evaluation.intervals import bootstrap_interval
from nvb_diffusers.option_types import OneLineParser, filled_text, whole_number
from nvb_diffusers.person import join_photos

COUNTS = (1, 2, 4)  # photos; the view that is made is one more


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=filled_text, help="heads with five views each, in the split test")
    parser.add_argument("--checkpoint", type=filled_text, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--degradation", choices=sorted(PRESETS), default="medium")
    parser.add_argument("--num_identities", type=whole_number(1), default=60)
    return parser.parse_args(argv)


def of_first(conditioning: Conditioning, count: int) -> Conditioning:
    """The same of the first photos alone."""
    parts = {name: getattr(conditioning, name) for name in ("surface", "layers")}
    return replace(
        conditioning,
        encoder_hidden_states=conditioning.encoder_hidden_states[:, :count],
        source_cameras=conditioning.source_cameras[:count],
        **{name: part and type(part)(*(values[:count] for values in part)) for name, part in parts.items()},
    )


def measure(pipe: NVBFacePipeline, sample: dict[str, torch.Tensor]) -> list[tuple[float, list[float]]]:
    """PSNR and shares of evidence of a sample's last view, from ever more of its others."""
    photos, cameras = list(sample["degraded_pixel_values"][:-1] / 2 + 0.5), sample["camera_params"][-1:]
    conditioning = pipe.encode(photos, cameras=cameras)
    rows = []
    for count in COUNTS:
        out = pipe(
            conditioning=join_photos(of_first(conditioning, count), cameras),
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )
        shares = [0.0, 0.0, 1.0] if out.evidence is None else out.evidence.mean(dim=(0, 2, 3)).tolist()
        side = out.images.shape[-1]
        truth = torch.nn.functional.interpolate(sample["pixel_values"][-1:], (side, side), mode="area")
        rows.append((psnr(out.images.float().cpu() * 2 - 1, truth).item(), shares))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    args = parse_args(argv)
    pipe = NVBFacePipeline.from_pretrained(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    transform = SampleTransform(pipe.sample_size, [args.degradation], flip=False)
    heads = MultiViewFaceDataset(args.data_dir, "test", transform, num_target_views=max(COUNTS))
    identities = range(min(args.num_identities, len(heads)))
    measured = [measure(pipe, heads[index]) for index in identities]
    print("| photos | PSNR (dB) | lead over one | seen | mirrored | invented |\n|---|---|---|---|---|---|")
    for column, count in enumerate(COUNTS):
        values = [rows[column][0] for rows in measured]
        leads = [rows[column][0] - rows[0][0] for rows in measured]
        value, lead = (bootstrap_interval(part, identities) for part in (values, leads))
        shares = torch.tensor([rows[column][1] for rows in measured]).mean(dim=0).tolist()
        cells = [f"{part.mean:.2f} [{part.low:.2f}, {part.high:.2f}]" for part in (value, lead)]
        print(f"| {count} | {' | '.join(cells)} | {' | '.join(f'{share:.0%}' for share in shares)} |")


if __name__ == "__main__":
    main()
