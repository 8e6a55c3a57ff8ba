"""The head of one identity: its mesh, its pose, how it lies in the world, and its landmarks.

Vertices are in dm in the identity's own space. The world's frame is that of `nvb_diffusers.camera`: a point p of the
head is at (p - center) * scale. Scale and center follow FFHQ's rule for aligned images, so that a frontal image is
cropped about as FFHQ crops a portrait.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..mesh.capsule import CapsuleMap
from ..mesh.template import Pool, Template
from ..person.attributes import Attributes
from .shape import shape_weights

IMAGE_SPAN = 2.7 / 4.2647  # world units that an image spans at the origin: radius over focal length
CROP_MARGIN = 1.06  # times the side of FFHQ's crop
EYE_DEPTH = 0.45  # dm from the point between the eyes back to the world's origin
PUPIL_DISTANCE = 0.14  # dm from an eye's center to its pupil


@dataclass(frozen=True, eq=False)
class Head:
    """One head.

    Attributes:
        template: what all heads share.
        vertices: (N, 3) dm.
        normals: (N, 3).
        eye_left, eye_right: (3,) centers of the eyeballs.
        gaze: (3,) unit direction in which both eyes look.
        scale: world units per dm.
        center: (3,) dm, the point at the world's origin.
    """

    template: Template
    vertices: np.ndarray
    normals: np.ndarray
    eye_left: np.ndarray
    eye_right: np.ndarray
    gaze: np.ndarray
    scale: float
    center: np.ndarray

    @property
    def rest(self) -> np.ndarray:
        """(N, 3) the vertices of the template: rest space."""
        return self.template.rest

    @property
    def part(self) -> np.ndarray:
        """(N,) number of the part, as in `basis`."""
        return self.template.part

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """(N,) 0..1 each: lips, eyelids, ears, inside-mouth, face."""
        return self.template.masks

    @property
    def triangles(self) -> np.ndarray:
        """(M, 3) of the skin."""
        return self.template.skin_triangles

    @property
    def roots(self) -> Pool:
        """Where scalp hair and beard may root."""
        return self.template.roots

    @property
    def brow_roots(self) -> Pool:
        """Where brows may root."""
        return self.template.brow_roots

    @property
    def lashes(self) -> list[tuple[np.ndarray, np.ndarray, bool]]:
        """The four rows of lashes: vertices of the roots, of the ends, is upper."""
        return self.template.lashes

    @property
    def eyes(self) -> np.ndarray:
        """(3,) dm: the point between the eyes."""
        return 0.5 * (self.eye_left + self.eye_right)

    @cached_property
    def skin_map(self) -> CapsuleMap:
        """The skin as a height over a capsule."""
        return CapsuleMap(self.vertices, self.triangles, self.eyes)

    @property
    def landmarks(self) -> np.ndarray:
        """(5, 3) dm: pupils, nose tip and mouth corners, the subject's right (left in the image) first."""
        pupils = np.stack([self.eye_right, self.eye_left]) + self.gaze * PUPIL_DISTANCE
        template = self.template
        return np.concatenate([pupils, self.vertices[[template.nose_tip, template.mouth_right, template.mouth_left]]])

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """World coordinates (..., 3) of points (..., 3) of the head."""
        return (points - self.center) * self.scale


def make_head(template: Template, attributes: Attributes, rng: np.random.Generator) -> Head:
    """Blend the shapes, turn the shoulders under the head and place the head in the world."""
    weights = shape_weights(template, attributes, rng)
    blended = template.basis.rest + (weights.astype(np.float32) @ template.shapes).reshape(-1, 3)
    vertices = (template.refine @ blended).astype(np.float32)
    eye_left, eye_right = _ball_center(vertices[template.left_eye]), _ball_center(vertices[template.right_eye])
    vertices = turn_shoulders(vertices, template.rest, attributes.neck_deg)

    between = 0.5 * (eye_left + eye_right)
    mouth = 0.5 * (vertices[template.mouth_left] + vertices[template.mouth_right])
    side = max(4.0 * np.linalg.norm(eye_left - eye_right), 3.6 * np.linalg.norm(between - mouth)) * CROP_MARGIN
    x, y = 0.5 * (between[0] + mouth[0]), between[1] + 0.3 * (mouth[1] - between[1])
    return Head(
        template=template,
        vertices=vertices,
        normals=template.normals(vertices),
        eye_left=eye_left,
        eye_right=eye_right,
        gaze=direction(*attributes.gaze_deg),
        scale=float(IMAGE_SPAN / side),
        center=np.array([x, y, between[2] - EYE_DEPTH]),
    )


def direction(yaw_deg: float, pitch_deg: float) -> np.ndarray:
    """Unit vector (3,) that leaves the face at these angles, positive to the subject's left and up."""
    yaw, pitch = np.radians([yaw_deg, pitch_deg])
    return np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])


def turn_shoulders(vertices: np.ndarray, rest: np.ndarray, neck_deg: tuple[float, float, float]) -> np.ndarray:
    """Turn the shoulders below a head that stays where it is, since the cameras are told relative to the face.

    Args:
        vertices: (N, 3) dm.
        rest: (N, 3) their places in rest space.
        neck_deg: yaw, pitch and roll of the shoulders, in degrees about y, x and z.
    """
    yaw, pitch, roll = np.radians(neck_deg)
    axis = np.array([pitch, yaw, roll])
    angle = np.linalg.norm(axis)
    if angle == 0:
        return vertices
    # The throat bends lower down than the nape, whose height is measured along a slope from the chin backwards.
    height = rest[:, 1] + 0.45 * rest[:, 2]
    share = np.clip((6.35 - height) / 0.85, 0, 1)
    turn = (angle * share * share * (3 - 2 * share)).astype(np.float32)[:, None]
    pivot = np.array([0.0, 6.1, -0.1], np.float32)
    axis = (axis / angle).astype(np.float32)
    arm = vertices - pivot
    along = (arm @ axis)[:, None] * axis
    return pivot + along + (arm - along) * np.cos(turn) + np.cross(axis, arm) * np.sin(turn)  # Rodrigues' formula


def _ball_center(vertices: np.ndarray) -> np.ndarray:
    """(3,) center of an eyeball (N, 3), whose cornea stands out in front."""
    return 0.5 * (vertices.min(axis=0) + vertices.max(axis=0)) - [0.0, 0.0, 0.008]
