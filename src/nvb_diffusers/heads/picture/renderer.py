"""Draws scenes through OpenGL without a window, on a GPU or in software (EGL)."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import moderngl
import numpy as np

from ..head.hair import Strands
from ..head.skin import face_places
from ..mesh.basis import LEFT_EYE, RIGHT_EYE, TEETH, TONGUE
from ..mesh.surfaces import Mesh
from ..mesh.template import Template
from ..person.clothes import PATTERNS, THICKNESS
from ..person.skin import SkinLook
from . import shaders
from .backdrop import SPAN_DEG
from .bake import TILE, StrandPoints, light_projections, light_strands, light_surface, strand_points, visibility
from .cameras import FOCAL, RADIUS
from .light import AROUND, KEYS
from .scene import Scene

DEPTH_SCALE = 10_000  # steps of the depth image in a world unit
NEAR, FAR = 3.5, 4.5  # dm of the world before and behind the origin that is drawn
LIGHTS = KEYS + AROUND
FINE = 512  # finer pixels from which every strand is drawn, with all its points
SHADOW_STRANDS = 400  # that a light's map is drawn with
TAPER = {"hair": 0.7, "brow": 0.3, "beard": 0.8, "lash": 0.6}  # share of its width that a strand loses to its end
HIDDEN = 0.15  # dm below the neckline, from which no skin shows
TOOTH = (0.78, 0.72, 0.62)

Held = TypeVar("Held", moderngl.Buffer, moderngl.Texture, moderngl.VertexArray)


@dataclass(frozen=True)
class Rendering:
    """What a camera sees: rgb (S, S, 3), coverage (S, S), both uint8, and depth (S, S) uint16, 0 behind everything."""

    rgb: np.ndarray
    mask: np.ndarray
    depth: np.ndarray


def open_context() -> moderngl.Context:
    """An OpenGL context without a window."""
    try:
        return moderngl.create_context(standalone=True, backend="egl")  # type: ignore[arg-type]  # annotated as if each setting were a dict
    except Exception as error:  # moderngl raises a plain Exception
        raise ValueError(
            f"no OpenGL through EGL ({error}): install a GPU driver with EGL, or for rendering in software "
            "libegl1 and libgl1-mesa-dri (apt-get install libegl1 libgl1-mesa-dri)"
        ) from None


class Renderer:
    """Holds what all images share; `load` takes one scene, `draw` one camera.

    Args:
        template: the mesh.
        size: width and height of the images in pixels.
        supersample: finer pixels along each side of a pixel.
    """

    def __init__(self, template: Template, size: int, supersample: float) -> None:
        self.template, self.size, self.finer_size = template, size, round(size * supersample)
        self.context = context = open_context()
        finer = (self.finer_size, self.finer_size)
        self.finer_color, self.finer_depth = context.texture(finer, 4), context.depth_texture(finer)
        self.finer_depth.compare_func = ""
        self.finer_depth.filter = (moderngl.NEAREST, moderngl.NEAREST)
        self.finer = context.framebuffer([self.finer_color], self.finer_depth)
        self.rgba = context.texture((size, size), 4)
        self.depth = context.texture((size, size), 1, dtype="u2")
        self.resolved = context.framebuffer([self.rgba, self.depth])
        self.shadow_depth = context.depth_texture((4 * TILE, (LIGHTS + 3) // 4 * TILE))
        self.shadows = context.framebuffer([], self.shadow_depth)
        self.noise = context.texture3d((32, 32, 32), 4, _noise(32).tobytes())
        self.noise.filter = (moderngl.LINEAR, moderngl.LINEAR)
        self._compile()
        self._allocate()
        self.held: list[moderngl.Buffer | moderngl.Texture | moderngl.VertexArray] = []  # of the loaded scene

    def _compile(self) -> None:
        def program(vertex: str, fragment: str) -> moderngl.Program:
            return self.context.program(vertex_shader=vertex, fragment_shader=fragment)

        fragments = {
            "cloth": shaders.CLOTH_FRAGMENT,
            "eyes": shaders.EYE_FRAGMENT,
            "teeth": shaders.TEETH_FRAGMENT,
            "tongue": shaders.TONGUE_FRAGMENT,
            "worn": shaders.WORN_FRAGMENT,
        }
        self.surfaces = {kind: program(shaders.SURFACE_VERTEX, fragment) for kind, fragment in fragments.items()}
        self.skins: dict[str, moderngl.Program] = {}  # by what the skin shows
        self.strand = program(shaders.STRAND_VERTEX, shaders.STRAND_FRAGMENT)
        self.shadow = program(shaders.SHADOW_VERTEX, shaders.SHADOW_FRAGMENT)
        self.resolve = program(shaders.SCREEN_VERTEX, shaders.RESOLVE_FRAGMENT)
        _set(self.surfaces["cloth"], inflate=THICKNESS)
        units = {"color": 0, "depth": 1, "backdrop": 2}
        _set(self.resolve, **units, span=np.radians(SPAN_DEG), finer=self.finer_size / self.size, tangent=0.5 / FOCAL)
        corners, index = _grid(8)
        content = [(self.context.buffer(corners), "2f", "corner")]
        self.screen = self.context.vertex_array(self.resolve, content, index_buffer=self.context.buffer(index))

    def _skin_program(self, look: SkinLook) -> moderngl.Program:
        """The program that draws no more than this skin shows; noise costs most of the time in software."""
        shown = {"FRECKLES": look.freckles, "SPOTS": look.spots + look.moles, "WRINKLES": look.wrinkles}
        defines = "".join(f"#define {name}\n" for name, strength in shown.items() if strength > 0)
        if defines not in self.skins:
            fragment = shaders.SKIN_FRAGMENT.replace("#version 330\n", f"#version 330\n{defines}", 1)
            self.skins[defines] = self.context.program(vertex_shader=shaders.SKIN_VERTEX, fragment_shader=fragment)
        return self.skins[defines]

    def _allocate(self) -> None:
        """Vertex buffers of the head, and what of it each program draws."""
        template = self.template
        widths = {"position": 3, "normal": 3, "rest": 3, "albedo": 3, "look": 3, "light": 4}
        self.buffers = {name: self.context.buffer(reserve=4 * width * template.count) for name, width in widths.items()}
        self.buffers["rest"].write(template.rest.astype("f4"))
        triangles = {
            "eyes": template.triangles_of(LEFT_EYE, RIGHT_EYE),
            "teeth": template.triangles_of(TEETH),
            "tongue": template.triangles_of(TONGUE),
        }
        self.parts = {kind: self._bind(self.surfaces[kind], self.buffers, index) for kind, index in triangles.items()}
        self.shadow_head = self._bind(self.shadow, self.buffers, template.shadow_triangles)

    def _bind(
        self, program: moderngl.Program, buffers: dict[str, moderngl.Buffer], index: np.ndarray | moderngl.Buffer
    ) -> moderngl.VertexArray:
        """Connect those buffers, one of floats for each name, that the program reads."""
        formats = {"look": "4f" if program is self.strand else "3f", "light": "4f"}
        content = [(buffer, formats.get(name, "3f"), name) for name, buffer in buffers.items() if name in program]
        if isinstance(index, np.ndarray):
            index = self.context.buffer(index.astype("i4"))
        return self.context.vertex_array(program, content, index_buffer=index)

    def load(self, scene: Scene) -> None:
        """Upload a scene and compute its light."""
        for thing in self.held:
            thing.release()
        self.held, self.scene = [], scene
        head, environment = scene.head, scene.environment
        vertices = (head.vertices - head.center).astype("f4")
        normals = head.normals.astype("f4")
        self.buffers["position"].write(vertices)
        self.buffers["normal"].write(normals)
        strands = [
            (strand, (strand.points - head.center).astype("f4")) for strand in map(self._thin_out, scene.strands)
        ]
        worn = [(mesh, (mesh.vertices - head.center).astype("f4")) for mesh in scene.meshes]
        chosen = [strand_points(strand, points) for strand, points in strands]

        projections = light_projections(environment.directions)
        maps = self._draw_shadows(projections, strands, worn)
        groups = [vertices + 0.035 * normals, *(points.points for points in chosen)]
        groups += [points + 0.035 * mesh.normals.astype("f4") for mesh, points in worn]
        seen = np.split(visibility(maps, projections, np.concatenate(groups)), np.cumsum([len(g) for g in groups])[:-1])
        light = light_surface(self.template, normals, seen[0], environment)
        self.buffers["light"].write(light)
        self._write_colors(scene, vertices)
        self._load_skin(scene, vertices)
        lit_strands, lit_worn = seen[1 : 1 + len(chosen)], seen[1 + len(chosen) :]
        self.strands = [
            self._load_strands(scene, strand, points, lit_points, lit)
            for (strand, points), lit_points, lit in zip(strands, chosen, lit_strands, strict=True)
        ]
        self.worn = [
            self._load_worn(scene, mesh, points, lit) for (mesh, points), lit in zip(worn, lit_worn, strict=True)
        ]
        height, width, _ = environment.backdrop.shape
        self.backdrop = self._hold(self.context.texture((width, height), 3, environment.backdrop))
        self.backdrop.repeat_x = self.backdrop.repeat_y = False
        self._set_uniforms(scene)

    def _thin_out(self, strands: Strands) -> Strands:
        """Where the images are small, half of the hair, wider, and short strands with fewer points."""
        points = strands.points
        if self.finer_size >= FINE or (strands.kind != "hair" and points.shape[1] <= 3):
            return strands
        if strands.kind == "hair":
            return replace(strands, points=np.ascontiguousarray(points[::2]), width_px=1.4 * strands.width_px)
        chosen = np.linspace(0, points.shape[1] - 1, 3).round().astype(int)
        return replace(strands, points=np.ascontiguousarray(points[:, chosen]))

    def _hold(self, thing: Held) -> Held:
        """Keep a thing until the next scene is loaded."""
        self.held.append(thing)
        return thing

    def _buffer(self, values: np.ndarray) -> moderngl.Buffer:
        return self._hold(self.context.buffer(np.ascontiguousarray(values)))

    def _draw_shadows(
        self, projections: np.ndarray, strands: list[tuple[Strands, np.ndarray]], worn: list[tuple[Mesh, np.ndarray]]
    ) -> np.ndarray:
        """(L, TILE, TILE) depth of what each light sees of skin, hair and what is worn."""
        context = self.context
        casters = [(self.shadow_head, moderngl.TRIANGLES, 1.0)]
        for mesh, points in worn:
            if mesh.alpha == 1:
                vertices = {"position": self._buffer(points)}
                casters.append((self._hold(self._bind(self.shadow, vertices, mesh.triangles)), moderngl.TRIANGLES, 1.0))
        for strand, points in strands:
            if strand.kind == "hair":
                every, step = max(1, len(points) // SHADOW_STRANDS), 2 if points.shape[1] > 6 else 1
                few = np.ascontiguousarray(points[::every, ::step])
                array = self._bind(self.shadow, {"position": self._buffer(few)}, _segments(*few.shape[:2]))
                casters.append((self._hold(array), moderngl.LINES, 1.5 + 0.3 * min(every, 8)))
        self.shadows.use()
        self.shadows.clear(depth=1.0)
        context.enable_only(moderngl.DEPTH_TEST)
        for light, projection in enumerate(projections):
            self.shadows.viewport = (light % 4 * TILE, light // 4 * TILE, TILE, TILE)
            _set(self.shadow, projection=projection.T)
            for array, mode, width in casters:
                context.line_width = width
                array.render(mode)
        rows = np.frombuffer(self.shadow_depth.read(), np.float32).reshape(-1, TILE, 4, TILE)
        return rows.transpose(0, 2, 1, 3).reshape(-1, TILE, TILE)[: len(projections)]

    def _write_colors(self, scene: Scene, vertices: np.ndarray) -> None:
        template, albedo = self.template, scene.albedo.copy()
        eyes = np.concatenate([template.left_eye, template.right_eye])
        albedo[eyes] = vertices[eyes]  # the eyes' shader works from the place on the ball
        albedo[template.part == TEETH] = TOOTH
        self.buffers["albedo"].write(albedo.astype("f4"))
        wrinkles = face_places(template)["wrinkles"] * scene.attributes.skin.wrinkles
        self.buffers["look"].write(np.stack([scene.shine, scene.cloth, wrinkles], axis=1).astype("f4"))

    def _load_skin(self, scene: Scene, vertices: np.ndarray) -> None:
        """The triangles that show of the skin, and those of the clothes."""
        triangles = self.template.skin_triangles
        lowest, highest = (extreme(scene.cloth[triangles], axis=1) for extreme in (np.min, np.max))
        self.surfaces["skin"] = self._skin_program(scene.attributes.skin)
        self.parts["cloth"] = self._hold(self._bind(self.surfaces["cloth"], self.buffers, triangles[highest > 0]))
        self.skin_triangles = triangles[lowest < HIDDEN]
        self.skin_index = self._hold(self.context.buffer(self.skin_triangles))
        self.parts["skin"] = self._hold(self._bind(self.surfaces["skin"], self.buffers, self.skin_index))
        a, b, c = np.moveaxis(vertices[self.skin_triangles], 1, 0)
        self.skin_corner, self.skin_normal = a, np.cross(b - a, c - a)

    def _load_strands(
        self, scene: Scene, strand: Strands, points: np.ndarray, chosen: StrandPoints, seen: np.ndarray
    ) -> tuple[moderngl.VertexArray, float, float, np.ndarray, np.ndarray]:
        """Lines of one group of strands, with width and colors."""
        lit = light_strands(chosen, points, seen, scene.environment)
        colors = scene.attributes.hair_colors
        root, tip, gray = {
            "hair": (colors.hair, colors.tip, colors.gray),
            "brow": (colors.brow, 1.1 * colors.brow, 0.4 * colors.gray),
            "beard": (colors.beard, 1.1 * colors.beard, colors.beard_gray),
            "lash": (0.3 * colors.brow, 0.3 * colors.brow, 0.0),
        }[strand.kind]
        rng = np.random.default_rng([scene.seed, scene.identity, len(points)])
        count, steps, _ = points.shape
        look = np.empty((count, steps, 4), np.float32)
        look[..., 0] = rng.random((count, 1))
        look[..., 1] = np.linspace(0, 1, steps)
        look[..., 2] = lit[..., 3]
        look[..., 3] = rng.random((count, 1)) < gray
        values = {"position": points, "tangent": chosen.tangents, "irradiance": lit[..., :3], "look": look}
        buffers = {name: self._buffer(value) for name, value in values.items()}
        array = self._hold(self._bind(self.strand, buffers, _segments(count, steps)))
        return array, strand.width_px * self.finer_size / 512, TAPER[strand.kind], root, tip

    def _load_worn(
        self, scene: Scene, mesh: Mesh, points: np.ndarray, seen: np.ndarray
    ) -> tuple[moderngl.VertexArray, Mesh]:
        """One thing worn: its triangles and the mesh it comes from."""
        environment = scene.environment
        cosine = np.clip((mesh.normals @ environment.directions.T + 0.1) / 1.1, 0, 1)
        total = environment.radiance.sum(axis=0)
        light = np.column_stack([(cosine * seen) @ environment.radiance + 0.02 * total, seen[:, :KEYS].mean(axis=1)])
        values = {"position": points, "normal": mesh.normals, "rest": points, "light": light}
        buffers = {name: self._buffer(value.astype("f4")) for name, value in values.items()}
        return self._hold(self._bind(self.surfaces["worn"], buffers, mesh.triangles)), mesh

    def _set_uniforms(self, scene: Scene) -> None:
        environment, attributes, head = scene.environment, scene.attributes, scene.head
        look, clothes = attributes.skin, attributes.clothes
        strongest = np.argsort(-environment.radiance[:KEYS].sum(axis=1))[:2]
        values = {
            "keys": environment.directions[strongest],
            "key_radiance": environment.radiance[strongest],
            "above": environment.above,
            "below": environment.below,
            "noise": 3,
            "seed": np.random.default_rng([scene.seed, scene.identity]).random(),
            "gloss": look.gloss,
            "freckles": look.freckles,
            "spots": look.spots,
            "moles": look.moles,
            "eye_left": head.eye_left - head.center,
            "eye_right": head.eye_right - head.center,
            "gaze": head.gaze,
            "iris": attributes.iris,
            "cloth": clothes.color,
            "second": clothes.second,
            "pattern": PATTERNS[clothes.pattern],
            "shine": 0.25 + 0.6 * look.gloss,
        }
        for program in (*self.surfaces.values(), self.strand):
            _set(program, **values)

    def draw(self, cam2world: np.ndarray) -> Rendering:
        """The loaded scene from a camera (4, 4) in OpenCV axes and world units."""
        context, scale = self.context, self.scene.head.scale
        pose = cam2world * [1, -1, -1, 1]  # OpenGL's camera has y up and looks along -z
        pose[:3, 3] /= scale
        near, far = RADIUS / scale - NEAR, RADIUS / scale + FAR
        lens = np.array(
            [
                [2 * FOCAL, 0, 0, 0],
                [0, 2 * FOCAL, 0, 0],
                [0, 0, (near + far) / (near - far), 2 * near * far / (near - far)],
                [0, 0, -1, 0],
            ]
        )
        projection = (lens @ np.linalg.inv(pose)).T
        for program in (*self.surfaces.values(), self.strand):
            _set(program, projection=projection, eye=pose[:3, 3])

        self.finer.use()
        self.finer.clear(0.0, 0.0, 0.0, 0.0, depth=1.0)
        context.enable_only(moderngl.DEPTH_TEST)
        self.noise.use(3)
        self._draw_strands()  # first: what they hide is then not shaded
        self._draw_surfaces(pose[:3, 3])

        self.resolved.use()
        context.enable_only(moderngl.NOTHING)
        for unit, texture in enumerate((self.finer_color, self.finer_depth, self.backdrop)):
            texture.use(unit)
        depth_range = np.array([near * far / (far - near) * scale * DEPTH_SCALE, far / (far - near)])
        _set(self.resolve, rotation=pose[:3, :3].T, range=depth_range)
        self.screen.render()
        size = self.size
        rgba = np.frombuffer(self.rgba.read(), np.uint8).reshape(size, size, 4)[::-1]
        depth = np.frombuffer(self.depth.read(alignment=1), np.uint16).reshape(size, size)[::-1]
        return Rendering(rgba[..., :3], rgba[..., 3], depth)

    def _draw_strands(self) -> None:
        for array, width, taper, root, tip in self.strands:
            self.context.line_width = max(width, 1.0)
            _set(self.strand, root_color=root, tip_color=tip, cover=min(width, 1.0), taper=taper)
            array.render(moderngl.LINES)

    def _draw_skin(self, eye: np.ndarray) -> None:
        """Half of the skin looks away: leaving it out here spares its vertices, too."""
        facing = np.einsum("ni,ni->n", eye.astype("f4") - self.skin_corner, self.skin_normal) > 0
        index = self.skin_triangles[facing]
        self.skin_index.write(index)
        self.parts["skin"].render(vertices=index.size)

    def _draw_surfaces(self, eye: np.ndarray) -> None:
        context, worn = self.context, self.surfaces["worn"]
        opaque, lenses = (
            [pair for pair in self.worn if (pair[1].alpha == 1) == is_opaque] for is_opaque in (True, False)
        )
        for array, mesh in opaque:
            _set(worn, color=mesh.color, gloss=mesh.gloss, alpha=1.0)
            array.render()
        context.enable(moderngl.CULL_FACE)
        for kind in ("cloth", "eyes"):
            self.parts[kind].render()
        self._draw_skin(eye)
        context.disable(moderngl.CULL_FACE)
        for kind in ("teeth", "tongue"):
            self.parts[kind].render()
        if lenses:
            context.enable(moderngl.BLEND)
            context.blend_func = moderngl.ONE, moderngl.ONE_MINUS_SRC_ALPHA
            self.finer.depth_mask = False
            for array, mesh in lenses:
                _set(worn, color=mesh.color, gloss=mesh.gloss, alpha=mesh.alpha)
                array.render()
            self.finer.depth_mask = True


def _set(program: moderngl.Program, **values: Any) -> None:
    """Set those uniforms that the program has."""
    for name, value in values.items():
        member = program.get(name, None)
        if isinstance(member, moderngl.Uniform):
            if isinstance(value, np.ndarray):
                member.write(value.astype("f4").tobytes())
            else:
                member.value = value


def _segments(count: int, steps: int) -> np.ndarray:
    """(count * (steps - 1), 2) indices of the line segments of strands (count, steps)."""
    start = (np.arange(count)[:, None] * steps + np.arange(steps - 1)).ravel()
    return np.stack([start, start + 1], axis=1)


def _grid(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners (.., 2) from -1 to 1 of a grid of squares, and its triangles."""
    steps = np.linspace(-1, 1, cells + 1, dtype=np.float32)
    corners = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    start = (np.arange(cells)[:, None] * (cells + 1) + np.arange(cells)).ravel()
    index = np.stack([start, start + 1, start + cells + 2, start, start + cells + 2, start + cells + 1], axis=1)
    return corners, index.astype(np.int32)


def _noise(cells: int) -> np.ndarray:
    """(cells, cells, cells, 4) uint8 noise that repeats."""
    return np.random.default_rng(1).integers(0, 256, (cells, cells, cells, 4), dtype=np.uint8)
