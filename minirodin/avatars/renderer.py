"""Draw people with OpenGL, off-screen: soft light baked per vertex, supersampled RGBA views.

The light is fixed in the world and the same for every view: a large soft key from the front, above and to the side, a
sky and a faint rim. Each of its directions renders a small depth map; a vertex shader then gathers, for every vertex,
the light of the directions that reach it. Only highlights depend on the view.
"""

import math

import numpy as np

from minirodin.avatars import shaders
from minirodin.avatars.mesh import CLOTH, EYE, GLOSSY, HAIR, LENS, SKIN, Mesh
from minirodin.cameras import Cameras
from minirodin.errors import RenderError

KEY = np.array([0.46, 0.58, 0.67]) / np.linalg.norm([0.46, 0.58, 0.67])
TILES, TILE = 7, 320  # depth maps: a grid of 7 × 7, each 320² pixels
SKY, SOFT = 32, 16  # directions of the sky and of the key light
READ = 32  # views that are read together
REACH = 1.42  # half the side of what a depth map sees
LAYOUT = "3f 3f 3f 1f 3f 1f"
ORDER = (HAIR, CLOTH, GLOSSY, SKIN, EYE, LENS)  # what hides most first, what is see-through last
FIELDS = ("position", "normal", "albedo", "material", "tangent", "width")


def _light() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions (L, 3), their radiance times solid angle over π (L, 3), and their share of the key light (L,)."""
    golden = math.pi * (1 + 5**0.5)
    i = np.arange(SKY) + 0.5
    y, turn = 1 - 2 * i / SKY, golden * i
    ring = np.sqrt(1 - y**2)
    sky = np.stack([ring * np.sin(turn), y, ring * np.cos(turn)], axis=1)
    up = np.clip(sky[:, 1:2] * 0.5 + 0.5, 0, 1)
    radiance = (1 - up) * [0.36, 0.32, 0.29] + up * [0.70, 0.72, 0.75]
    rim = np.array([-0.75, 0.35, -0.55])
    radiance = radiance + 0.45 * np.maximum(sky @ rim, 0)[:, None] ** 3 + 0.30 * np.maximum(sky[:, 2:], 0)
    radiance *= 4 / SKY  # a white wall under a sky of 1 reflects 1
    i = np.arange(SOFT) + 0.5
    cosine, turn = 1 - i / SOFT * (1 - math.cos(0.42)), golden * i
    side = np.cross(KEY, [0, 1, 0]) / np.linalg.norm(np.cross(KEY, [0, 1, 0]))
    sine = np.sqrt(1 - cosine**2)[:, None]
    key = cosine[:, None] * KEY + sine * (np.cos(turn)[:, None] * side + np.sin(turn)[:, None] * np.cross(side, KEY))
    power = np.tile(np.array([0.95, 0.87, 0.77]) / SOFT, (SOFT, 1))
    share = np.r_[np.zeros(SKY), np.full(SOFT, 1 / SOFT)]
    return np.concatenate([sky, key]), np.concatenate([radiance, power]), share


class Renderer:
    """An off-screen OpenGL context; make one a process and reuse it.

    Raises:
        RenderError: no OpenGL 3.3 could be had.
    """

    def __init__(self):
        try:
            import moderngl

            self.gl = moderngl.create_context(standalone=True, backend="egl", require=330)
        except Exception as error:  # moderngl raises plain exceptions of many kinds when a driver is missing
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise RenderError(
                f"no OpenGL through EGL ({reason}): install a driver, for example Mesa's "
                "(Debian, Ubuntu: apt-get install libegl1 libgl1-mesa-dri libgles2)"
            ) from None
        self.moderngl, gl = moderngl, self.gl
        directions, radiance, share = _light()
        self.projections = np.stack([_light_projection(d) for d in directions])
        self.directions = directions
        self.depth_program = gl.program(shaders.DEPTH_VERTEX, shaders.DEPTH_FRAGMENT)
        self.bake_program = gl.program(shaders.BAKE_VERTEX % {"count": len(directions)}, varyings=["light", "seen"])
        self.programs = [gl.program(shaders.VERTEX, fragment) for fragment in shaders.FRAGMENTS]
        self.average = gl.program(shaders.SCREEN_VERTEX, shaders.AVERAGE_FRAGMENT)
        self.straight = gl.program(shaders.SCREEN_VERTEX, shaders.STRAIGHT_FRAGMENT)
        self.screens = {program: gl.vertex_array(program, []) for program in (self.average, self.straight)}
        self.bake_program["projections"].write(self.projections.transpose(0, 2, 1).astype("f4").tobytes())
        self.bake_program["directions"].write(directions.astype("f4").tobytes())
        self.bake_program["radiance"].write(radiance.astype("f4").tobytes())
        self.bake_program["key"].write(share.astype("f4").tobytes())
        self.bake_program["tiles"].value, self.bake_program["texel"].value = TILES, 1 / TILE
        for program in self.programs:
            if "key_direction" in program:  # drivers drop what a material does not use
                program["key_direction"].value = tuple(KEY)
        self.depths = gl.depth_texture((TILES * TILE, TILES * TILE))
        self.depths.compare_func, self.depths.filter = "<=", (moderngl.LINEAR, moderngl.LINEAR)
        self.depth_target = gl.framebuffer(depth_attachment=self.depths)
        self.targets = {}

    def render(self, mesh: Mesh, cameras: Cameras) -> np.ndarray:
        """All views of a mesh: (N, H, W, 4) uint8 sRGB with straight alpha."""
        gl, vertices = self.gl, self._vertices(mesh)
        light, parts = self.baked_light(mesh, vertices), []
        content = [(vertices, LAYOUT, *FIELDS), (light, "3f 2f", "light", "seen")]
        kind = mesh.material[mesh.faces[:, 0]]
        for material in ORDER:
            if (kind == material).any():
                indices = gl.buffer(mesh.faces[kind == material].astype("i4").tobytes())
                drawn = gl.vertex_array(self.programs[material], content, indices, skip_errors=True)
                parts.append((material, drawn, indices))
        # Read many at once: processes that share a GPU wait for each other at every read.
        count, size = len(cameras), cameras.height * cameras.width * 4
        pixels = gl.buffer(reserve=min(READ, count) * size)
        images = []
        for first in range(0, count, READ):
            views = range(first, min(first + READ, count))
            for i in views:
                self._view(parts, cameras, i).read_into(pixels, components=4, write_offset=(i - first) * size)
            images.append(np.frombuffer(pixels.read(len(views) * size), np.uint8))
        pixels.release()
        for _, drawn, indices in parts:
            drawn.release()
            indices.release()
        light.release()
        vertices.release()
        return np.concatenate(images).reshape(count, cameras.height, cameras.width, 4)

    def _vertices(self, mesh: Mesh):
        columns = [mesh.vertices, mesh.normals, mesh.albedo, mesh.material[:, None], mesh.tangents, mesh.width[:, None]]
        return self.gl.buffer(np.concatenate(columns, axis=1).astype("f4").tobytes())

    def baked_light(self, mesh: Mesh, vertices=None):
        """A buffer with five float32 a vertex: irradiance (RGB), and how much of the key and of the sky is seen."""
        gl, moderngl = self.gl, self.moderngl
        vertices = vertices or self._vertices(mesh)
        casters = mesh.casters[mesh.material[mesh.casters[:, 0]] != LENS]
        indices = gl.buffer(casters.astype("i4").tobytes())
        caster = gl.vertex_array(self.depth_program, [(vertices, LAYOUT, *FIELDS)], indices, skip_errors=True)
        self.depth_target.use()
        gl.enable_only(moderngl.DEPTH_TEST)
        self.depth_target.clear(depth=1.0)
        for i, (direction, projection) in enumerate(zip(self.directions, self.projections, strict=True)):
            self.depth_target.viewport = (i % TILES * TILE, i // TILES * TILE, TILE, TILE)
            self.depth_program["projection"].write(projection.T.astype("f4").tobytes())
            self.depth_program["light"].value = tuple(direction)
            caster.render()
        light = gl.buffer(reserve=len(mesh.vertices) * 20)
        baker = gl.vertex_array(self.bake_program, [(vertices, LAYOUT, *FIELDS)], skip_errors=True)
        self.depths.use(0)
        self.bake_program["depths"].value = 0
        baker.transform(light, mode=moderngl.POINTS, vertices=len(mesh.vertices))
        for resource in (caster, baker, indices):
            resource.release()
        return light

    def _view(self, parts: list, cameras: Cameras, view: int):
        """Draw one view; the framebuffer that holds it."""
        gl, moderngl = self.gl, self.moderngl
        samples, sampled, mean, averaged, final, _ = self._target(cameras.width, cameras.height)
        projection, eye = camera_projection(cameras, view)
        sampled.use()
        sampled.clear(0, 0, 0, 0, depth=1.0)
        gl.enable_only(moderngl.DEPTH_TEST)
        gl.blend_func = moderngl.SRC_ALPHA, moderngl.ONE_MINUS_SRC_ALPHA, moderngl.ONE, moderngl.ONE_MINUS_SRC_ALPHA
        for material, drawn, _ in parts:
            program = self.programs[material]
            if material == LENS:  # the only one with alpha below 1: what is drawn becomes premultiplied
                gl.enable(moderngl.BLEND)
            program["projection"].write(projection.T.astype("f4").tobytes())
            program["eye"].value = tuple(eye)
            drawn.render()
        gl.enable_only(moderngl.NOTHING)
        for program, source, name, target in (
            (self.average, samples, "samples", averaged),
            (self.straight, mean, "premultiplied", final),
        ):
            target.use()
            source.use(0)
            program[name].value = 0
            self.screens[program].render(vertices=3)
        return final

    def _target(self, width: int, height: int):
        """Framebuffers for an image size: samples, their mean, the final pixels."""
        if (width, height) not in self.targets:
            gl = self.gl
            factor = max(2, min(4, 2048 // max(width, height)))
            size = (width * factor, height * factor)
            limit = gl.info["GL_MAX_TEXTURE_SIZE"]
            if max(size) > limit:
                raise RenderError(f"{width}×{height} pixels: this driver draws at most {limit // factor} a side")
            samples, mean = gl.texture(size, 4), gl.texture((width, height), 4, dtype="f4")
            sampled = gl.framebuffer([samples], gl.depth_renderbuffer(size))
            averaged, final = gl.framebuffer([mean]), gl.framebuffer([gl.texture((width, height), 4)])
            self.targets[width, height] = samples, sampled, mean, averaged, final, factor
        target = self.targets[width, height]
        self.average["factor"].value = target[-1]
        self.straight["size"].value = max(width, height)
        return target


def camera_projection(cameras: Cameras, view: int) -> tuple[np.ndarray, np.ndarray]:
    """The world-to-clip matrix (4, 4) of a view, first image row at the bottom of GL's window, and its eye (3,)."""
    pose = cameras.camera_to_world[view].numpy()
    fx, fy, cx, cy = cameras.intrinsics[view].tolist()
    w, h = cameras.width, cameras.height
    distance = np.linalg.norm(pose[:3, 3])
    near, far = max(distance - 1.8, 0.05), distance + 1.8
    depth = (far + near) / (far - near), 2 * far * near / (far - near)
    across, down = (2 * fx / w, 0, 1 - 2 * cx / w, 0), (0, -2 * fy / h, 1 - 2 * cy / h, 0)
    clip = np.array([across, down, (0, 0, -depth[0], -depth[1]), (0, 0, -1, 0)])
    return clip @ np.linalg.inv(pose), pose[:3, 3]


def _light_projection(direction: np.ndarray) -> np.ndarray:
    """Orthographic world-to-clip matrix (4, 4) of a light that shines from `direction`."""
    side = np.cross([0.0, 1.0, 0.0] if abs(direction[1]) < 0.99 else [1.0, 0.0, 0.0], direction)
    side /= np.linalg.norm(side)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([side, np.cross(direction, side), -direction]) / REACH
    return matrix
