"""Measures how diverse a rendered set is, and prints the table of docs/heads.md.

python -m nvb_diffusers.heads.datasheet --data_dir heads
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nvb_diffusers.data.records import read_records
from nvb_diffusers.files import read_json
from nvb_diffusers.option_types import OneLineParser, a_path

from .cli import finish
from .mesh.basis import default_cache, load_basis
from .mesh.template import Template
from .picture.cameras import look_at_origin
from .picture.renderer import Renderer
from .picture.scene import make_scene


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(prog="datasheet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=a_path, required=True, help="a set made by nvb-heads")
    return parser.parse_args(argv)


def spread(values: list[float] | np.ndarray, digits: int = 2) -> str:
    """Mean, standard deviation and the 5th and 95th of a hundred."""
    low, high = np.percentile(values, (5, 95))
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def shares(values: list[str]) -> str:
    """How many of a hundred have each value, the most frequent first."""
    return ", ".join(f"{value or 'none'} {100 * n / len(values):.0f} %" for value, n in Counter(values).most_common())


def proportions(landmarks: np.ndarray) -> tuple[float, float, float]:
    """Of one near-frontal face: eye to mouth, eye to nose and width of the mouth, over the distance of the eyes."""
    right, left, nose, mouth_right, mouth_left = landmarks
    between, mouth = (right + left) / 2, (mouth_right + mouth_left) / 2
    lengths = np.linalg.norm([between - mouth, between - nose, mouth_right - mouth_left], axis=1)
    to_mouth, to_nose, width = (lengths / np.linalg.norm(right - left)).tolist()
    return to_mouth, to_nose, width


def hair_areas(data_dir: Path, identities: list[int]) -> list[float]:
    """Share of a frontal image that scalp hair covers, of each identity: what changes when it is left out."""
    note = read_json(data_dir / "prepare.json")
    template = Template(load_basis(default_cache()))
    renderer = Renderer(template, 128, 1.0)
    areas = []
    for identity in identities:
        scene = make_scene(template, note["seed"], identity)
        renderer.load(scene)
        with_hair = renderer.draw(look_at_origin(0.0, 0.0)).rgb.astype(int)
        kinds = [strands.kind for strands in scene.strands]
        renderer.strands = [drawn for drawn, kind in zip(renderer.strands, kinds, strict=True) if kind != "hair"]
        without = renderer.draw(look_at_origin(0.0, 0.0)).rgb.astype(int)
        areas.append(float((np.abs(with_hair - without).sum(axis=-1) > 12).mean()))
    return areas


def measure(args: argparse.Namespace) -> None:
    """Print the table."""
    data_dir = args.data_dir
    records = read_records(data_dir)
    people = [record for record in records if record["view"] == 0]  # the view nearest to the front
    faces = np.array([proportions(np.array(person["landmarks"])) for person in people])
    rows = {"images, identities": f"{len(records)}, {len(people)}"}
    for column, name in enumerate(("eyes to mouth", "eyes to nose tip", "width of the mouth")):
        rows[f"{name} over eye distance"] = spread(faces[:, column])
    for name in ("melanin", "age", "female"):
        rows[f"{name} (0 to 1)"] = spread([person[name] for person in people])
    rows["hair area over image, from the front"] = spread(
        hair_areas(data_dir, [person["identity"] for person in people])
    )
    rows["gaze yaw, degrees"] = spread([person["gaze"][0] for person in people], 1)
    rows["neck yaw, degrees"] = spread([person["neck"][0] for person in people], 1)
    for name in ("expression", "hair", "beard", "clothes", "glasses", "hat", "earrings", "scarf", "light", "scene"):
        rows[name] = shares([person[name] for person in people])
    print("| what | measured |\n| --- | --- |")
    print("\n".join(f"| {name} | {value} |" for name, value in rows.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return finish("datasheet", measure, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
