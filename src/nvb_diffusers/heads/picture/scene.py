"""Everything of one identity that is rendered, before any light falls on it."""

from dataclasses import dataclass

import numpy as np

from ..head.accessories import build, tuck_hair
from ..head.hair import Strands, grow_all
from ..head.head import Head, make_head
from ..head.skin import skin_colors
from ..mesh.surfaces import Mesh
from ..mesh.template import Template
from ..person.attributes import Attributes, draw_attributes
from ..person.chance import stream
from ..person.clothes import cloth_value
from .cameras import project
from .light import Environment, draw_environment


@dataclass(frozen=True, eq=False)
class Scene:
    """One identity.

    Attributes:
        albedo: (N, 3) linear RGB of the head's vertices; of use on the skin only.
        shine: (N,) 0 to 1.
        cloth: (N,) dm below the neckline, negative on bare skin.
        strands: hair, brows, beard and lashes.
        meshes: what is worn, lenses last.
    """

    seed: int
    identity: int
    attributes: Attributes
    head: Head
    albedo: np.ndarray
    shine: np.ndarray
    cloth: np.ndarray
    strands: list[Strands]
    meshes: list[Mesh]
    environment: Environment

    def landmarks(self, cam2world: np.ndarray, size: int) -> list[list[float]]:
        """The five landmarks in pixels of an image of `size` px, hidden ones included."""
        return (project(self.head.to_world(self.head.landmarks), cam2world) * size).round(2).tolist()


def make_scene(template: Template, seed: int, identity: int) -> Scene:
    """Draw and build one identity."""
    attributes = draw_attributes(seed, identity)
    head = make_head(template, attributes, stream(seed, identity, "shape"))
    albedo, shine = skin_colors(
        template, attributes.skin, attributes.hairstyle, attributes.hair_colors, stream(seed, identity, "mottling")
    )
    strands = grow_all(head, attributes, stream(seed, identity, "strands"))
    return Scene(
        seed=seed,
        identity=identity,
        attributes=attributes,
        head=head,
        albedo=albedo,
        shine=shine,
        cloth=np.where(template.skin, cloth_value(attributes.clothes, template.rest), -1.0).astype(np.float32),
        strands=tuck_hair(attributes.accessories, head, strands),
        meshes=build(attributes.accessories, head),
        environment=draw_environment(stream(seed, identity, "light"), attributes.skin.melanin),
    )
