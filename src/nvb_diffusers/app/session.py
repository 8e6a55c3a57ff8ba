"""What the page does, without the page: one user's photo, held in memory, and what is made of it.

The pipeline is shared by all users and called by one at a time. Pictures come unmarked; the page marks them.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.camera import angles_from_camera, camera_from_angles, orbit_cameras
from nvb_diffusers.data.contact_sheet import contact_sheet
from nvb_diffusers.data.degradation import apply, draw_degradation
from nvb_diffusers.data.images import load_photo, to_images
from nvb_diffusers.face_crop import MAX_PHOTO_PIXELS, Face, crop_face, detect_faces
from nvb_diffusers.pipeline_inputs import Background
from nvb_diffusers.reading import Reading, look, read_once

AS_IT_IS = "as it is"
BACKDROPS = ("turns with the camera", "the photo's own", "a color")
ORBIT_CAMERAS, ORBIT_YAWS = 24, (-40.0, 40.0)
FRAMES_AT_ONCE = 4  # of an orbit, between two looks at whether it was canceled
BOX = "#ff9500"


class Direction(NamedTuple):
    """Where a camera stands, in degrees."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


class Options(NamedTuple):
    """What the page's controls say, beside the camera."""

    backdrop: str = BACKDROPS[0]
    color: str = "#ffffff"
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0

    @property
    def background(self) -> Background:
        """As the pipeline's call takes it."""
        if self.backdrop == BACKDROPS[2]:
            red, green, blue = ImageColor.getrgb(self.color)[:3]
            return red / 255, green / 255, blue / 255
        return "photo" if self.backdrop == BACKDROPS[1] else "turn"


@dataclass(frozen=True)
class Session:
    """One user's photo and what was read of it.

    Args:
        photo: upright, as it was given.
        faces: found in it, the largest first.
        chosen: which one is meant.
        face: the crop that is read, ruined or not.
        readings: of the crop, by the number of steps; filled as they are asked for.
    """

    photo: Image.Image
    faces: list[Face]
    chosen: int
    face: Image.Image
    readings: dict[int | None, Reading] = field(default_factory=dict)


class Studio:
    """The pipeline, which all users share.

    Args:
        pipe: with a view transformer.
    """

    def __init__(self, pipe: NVBFacePipeline) -> None:
        self.pipe, self._lock = pipe, threading.Lock()
        pipe.set_progress_bar_config(disable=True)

    def open(self, path: str | Path, preset: str = AS_IT_IS) -> Session:
        """A photo with at least one face, of which the largest is chosen.

        Raises:
            ValueError: it cannot be read, or shows no face.
        """
        try:
            photo = load_photo(path, MAX_PHOTO_PIXELS)
        except ValueError as error:  # of which users know the file's name, not where the server keeps it
            raise ValueError(str(error).replace(str(path), Path(path).name)) from error
        with self._lock:  # of the detector
            faces = detect_faces(photo)
        if not faces:
            raise ValueError(f"no face found in a photo of {photo.width}x{photo.height} pixels: try another one")
        return self.choose(Session(photo, faces, 0, photo), 0, preset)

    def choose(self, session: Session, chosen: int, preset: str) -> Session:
        """The same photo with another face meant, or ruined by a preset of degradations."""
        face = crop_face(session.photo, self.pipe.sample_size, face=session.faces[chosen]).image
        if preset != AS_IT_IS:
            face = Image.fromarray(apply(np.asarray(face), draw_degradation(np.random.default_rng(0), preset)))
        return replace(session, chosen=chosen, face=face, readings={})

    def face_at(self, session: Session, x: float, y: float) -> int:
        """Which face of the photo is nearest to a place in it, in pixels."""
        middles = np.array([(face.box[:2] + face.box[2:]) / 2 for face in session.faces])
        return int(np.linalg.norm(middles - (x, y), axis=1).argmin())

    def view(self, session: Session, direction: Direction, options: Options) -> Image.Image:
        """The view from one direction."""
        return self._paint(session, camera_from_angles(*direction)[None], options)[0][0]

    def evidence(self, session: Session, direction: Direction, options: Options) -> Image.Image:
        """The same in gray: red where the photo shows it, green where its mirror image does, blue where it is invented.

        Raises:
            ValueError: the pipeline has no appearance model, so that all is invented.
        """
        (image,), evidence = self._paint(session, camera_from_angles(*direction)[None], options)
        if evidence is None:
            raise ValueError("this checkpoint does not carry the photo's own pixels: all is invented")
        gray = torch.from_numpy(np.array(image.convert("L"))).float() / 255  # (S, S)
        return to_images((gray + evidence.cpu() - 1)[None])[0]

    def sheet(self, session: Session, pitch: float, options: Options) -> Image.Image:
        """Seven views from one side to the other, and the photo's crop."""
        cameras = orbit_cameras(7, (-45, 45), pitch)
        images, _ = self._paint(session, cameras, options)
        labels = ["photo", *(f"yaw {round(yaw):+d}" for yaw in angles_from_camera(cameras)[:, 0].tolist())]
        return contact_sheet([session.face.resize(images[0].size), *images], labels)

    def orbit(self, session: Session, pitch: float, options: Options) -> Iterator[list[Image.Image]]:
        """The frames of a camera that swings to one side and back, ever more of them, at last all."""
        cameras, frames = orbit_cameras(ORBIT_CAMERAS, ORBIT_YAWS, pitch), list[Image.Image]()
        for part in cameras.split(FRAMES_AT_ONCE):
            frames += self._paint(session, part, options)[0]
            yield frames
        yield [*frames, *frames[-2:0:-1]]

    def restore(self, session: Session, options: Options) -> tuple[Image.Image, Image.Image]:
        """The crop and the same restored, of one size."""
        with self._lock:
            out = self.pipe.restore(
                session.face,
                num_inference_steps=options.num_inference_steps,
                generator=torch.Generator().manual_seed(options.seed),
            )
        restored = out.images[0]
        return session.face.resize(restored.size, Image.Resampling.BICUBIC), restored

    def source(self, session: Session, options: Options) -> Direction:
        """From where the photo was taken, as predicted."""
        with self._lock:
            cameras = self._read(session, options).source_cameras
        return Direction(*angles_from_camera(cameras[0].float().cpu()).tolist())

    def _read(self, session: Session, options: Options) -> Reading:
        steps = options.num_inference_steps
        if steps not in session.readings:
            session.readings[steps] = read_once(self.pipe, session.face, steps)
        return session.readings[steps]

    def _paint(
        self, session: Session, cameras: torch.Tensor, options: Options
    ) -> tuple[list[Image.Image], torch.Tensor | None]:
        """Unmarked views at cameras (V, 25), and the evidence of the first (3, S, S) where there is any."""
        with self._lock:
            out = self.pipe(
                conditioning=look(self.pipe, self._read(session, options), cameras),
                guidance_scale=options.guidance_scale,
                generator=torch.Generator().manual_seed(options.seed),
                background=options.background if self.pipe.appearance is not None else "turn",
            )
        return out.images, None if out.evidence is None else out.evidence[0]


def with_boxes(session: Session) -> Image.Image:
    """The photo with a box around each face, the chosen one's thick."""
    picture = session.photo.copy()
    draw, width = ImageDraw.Draw(picture), max(2, max(picture.size) // 200)
    for number, face in enumerate(session.faces):
        draw.rectangle(face.box.tolist(), outline=BOX, width=width * (3 if number == session.chosen else 1))
    return picture
