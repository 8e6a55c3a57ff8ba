"""Renders identities into the project's data format; this is what each worker process runs.

    images/<identity>/<view>.webp   depth/<identity>/<view>.png   masks/<identity>/<view>.png   records/<identity>.json

Depth is 16 bit: z along the camera's forward axis in 1/10000 world units, 0 behind everything. A mask holds how much of
each pixel is the person. The records of an identity are written last and by renaming, so an identity that has them is
whole, and one that a stop has cut short is made again.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from nvb_diffusers.files import write_whole

from .mesh.basis import load_basis
from .mesh.template import Template
from .person.chance import stream
from .picture.cameras import draw_cameras, label, orbit
from .picture.renderer import Renderer, Rendering
from .picture.scene import Scene, make_scene

WEBP: dict[str, Any] = {"quality": 82, "method": 1}  # twice the speed of the usual method for 4 % more bytes
PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]


@dataclass(frozen=True)
class Settings:
    """What decides the images of an identity."""

    seed: int
    size: int
    views: int
    cameras: str
    level: int
    supersample: float

    def note(self) -> dict[str, Any]:
        """The settings as the data set notes them."""
        return {"made by": "nvb-heads", **asdict(self)}


def record_path(output_dir: Path, identity: int) -> Path:
    """The file that says that an identity is whole."""
    return output_dir / "records" / f"{identity:06d}.json"


def render_identity(settings: Settings, output_dir: Path, basis: Path, identity: int) -> int:
    """Write the images and the records of an identity and return how many there are."""
    renderer = _renderer(settings, basis)
    scene = make_scene(renderer.template, settings.seed, identity)
    renderer.load(scene)
    records = []
    for view, cam2world in enumerate(_cameras(settings, identity)):
        name = f"{identity:06d}/{view:02d}"
        _write_images(output_dir, name, renderer.draw(cam2world))
        records.append(_record(settings, scene, name, view, cam2world))
    write_whole(record_path(output_dir, identity), json.dumps(records))
    return len(records)


def read_identities(output_dir: Path) -> list[dict[str, Any]]:
    """The records of all whole identities, in order."""
    paths = sorted((output_dir / "records").glob("*.json"))
    return [record for path in paths for record in json.loads(path.read_bytes())]


@cache
def _renderer(settings: Settings, basis: Path) -> Renderer:
    """This process's renderer, made with its first identity."""
    cv2.setNumThreads(1)
    return Renderer(Template(load_basis(basis), settings.level), settings.size, settings.supersample)


def _cameras(settings: Settings, identity: int) -> list[np.ndarray]:
    if settings.cameras == "orbit":
        return orbit(settings.views)
    return draw_cameras(stream(settings.seed, identity, "cameras"), settings.views)


def _write_images(output_dir: Path, name: str, rendering: Rendering) -> None:
    image, depth, mask = (
        output_dir / file for file in (f"images/{name}.webp", f"depth/{name}.png", f"masks/{name}.png")
    )
    for path in (image, depth, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rendering.rgb).save(image, **WEBP)
    depth.write_bytes(cv2.imencode(".png", rendering.depth, PNG_OPTIONS)[1].tobytes())
    mask.write_bytes(cv2.imencode(".png", rendering.mask, PNG_OPTIONS)[1].tobytes())


def _record(settings: Settings, scene: Scene, name: str, view: int, cam2world: np.ndarray) -> dict[str, Any]:
    """The metadata of an image, without its split."""
    return {
        "file_name": f"{name}.webp",
        "identity": scene.identity,
        "view": view,
        "camera": label(cam2world),
        "landmarks": scene.landmarks(cam2world, settings.size),
        **scene.attributes.describe(),
        "light": scene.environment.style,
        "scene": scene.environment.scene,
    }
