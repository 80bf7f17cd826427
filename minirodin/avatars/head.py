"""The head: a linear model of head, neck and shoulders (`head.safetensors`), shaped by attributes and made smooth.

A head is `mean + Σ coefficient · offset` over a coarse mesh of 5000 vertices (gender × age × weight and ancestry
multilinearly, local changes and facial actions linearly), brought into the fixed world, its bottom laid on one smooth
curve, and subdivided twice (Catmull-Clark), which is one sparse matrix product. Left is the subject's left, x > 0.
"""

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from safetensors import safe_open
from scipy.sparse import csr_matrix, diags
from scipy.spatial import cKDTree

from minirodin.avatars.mesh import subdivide, triangulate, vertex_normals

ASSET = Path(__file__).with_name("head.safetensors")
YOUNG, OLD = 25.0, 80.0  # years that the corner shapes stand for
CROWN, CHIN_TO_CROWN, REST_SIZE = 0.62, 0.95, 0.85  # the average head in the fixed world; its size in `rest`
RADIUS = 0.985  # everything lies in this ball, which every view of the project's cameras holds

# Facial actions of each expression a person can wear.
EXPRESSIONS = {
    "neutral": {},
    "slight smile": {"mouthSmile": 0.35, "cheekSquint": 0.15, "mouthDimple": 0.1},
    "smile": {"mouthSmile": 0.75, "cheekSquint": 0.45, "eyeSquint": 0.2, "mouthDimple": 0.2},
    "open smile": {
        **{"mouthSmile": 0.8, "cheekSquint": 0.5, "eyeSquint": 0.2},
        **{"jawOpen": 0.16, "mouthUpperUp": 0.35, "mouthLowerDown": 0.15},
    },
    "frown": {"mouthFrown": 0.6, "browDown": 0.45, "mouthPress": 0.2},
    "stern": {"browDown": 0.7, "mouthPress": 0.35, "eyeSquint": 0.25},
    "surprised": {"browInnerUp": 0.8, "browOuterUp": 0.8, "eyeWide": 0.6, "jawOpen": 0.2},
    "sad": {"browInnerUp": 0.8, "mouthFrown": 0.55, "eyeSquint": 0.15},
    "squint": {"eyeSquint": 0.65, "cheekSquint": 0.4, "browDown": 0.2},
    "raised brows": {"browInnerUp": 0.55, "browOuterUp": 0.65, "eyeWide": 0.2},
    "pursed lips": {"mouthPucker": 0.4, "mouthShrugLower": 0.2},
}


@dataclass(frozen=True)
class Surface:
    """What sits on the vertices of a subdivided skin and does not depend on the person.

    Attributes:
        matrix: (V, V0) coarse to fine vertices.
        faces: (F, 3); casters: (K, 3) a quarter as many over the same vertices, good enough for shadows.
        rest: (V, 3) positions in the average head: the canonical coordinates for patterns and regions.
        masks: region name → (V,) in [0, 1].
    """

    matrix: csr_matrix
    faces: np.ndarray
    casters: np.ndarray
    rest: np.ndarray
    masks: dict[str, np.ndarray]


@dataclass(frozen=True)
class Eye:
    """An eyeball: its centre, radius and the unit direction it looks in (world)."""

    centre: np.ndarray
    radius: float
    gaze: np.ndarray


@dataclass(frozen=True)
class HeadShape:
    """One person's head in the fixed world.

    Attributes:
        vertices: (V, 3) skin, closed below by a cap; faces (F, 3), normals (V, 3).
        surface: rest positions and masks of the same vertices.
        eyes: left, right.
        parts: "upper_teeth", "lower_teeth", "tongue" → (vertices, triangles).
        landmarks: name → (3,) point, or (K, 3) for "left_upper_lid" and the like (from the nose outwards).
        coarse: (V0, 3) the vertices that `surface.matrix` subdivides.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    surface: Surface
    eyes: tuple[Eye, Eye]
    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    landmarks: dict[str, np.ndarray]
    coarse: np.ndarray

    @property
    def rest(self) -> np.ndarray:
        return self.surface.rest

    @property
    def masks(self) -> dict[str, np.ndarray]:
        return self.surface.masks

    @cached_property
    def tree(self) -> cKDTree:
        return cKDTree(self.vertices)

    def closest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signed distance (M,) of points (M, 3) to the skin, positive outside, and the nearest vertex (M,)."""
        _, index = self.tree.query(points)
        return ((points - self.vertices[index]) * self.normals[index]).sum(axis=1), index

    def on_skin(self, values: np.ndarray, face: np.ndarray, barycentric: np.ndarray) -> np.ndarray:
        """Per-vertex values (V, ...) at sampled points, (count, ...)."""
        return np.einsum("nk,nk...->n...", barycentric, values[self.faces[face]])


class HeadModel:
    """The asset in memory; `load_head()` gives the one instance."""

    def __init__(self, path: Path = ASSET):
        with safe_open(path, "np") as file:
            meta = json.loads(file.metadata()["head"])
            data = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        self.ranges = {name: slice(*bounds) for name, bounds in meta["ranges"].items()}
        self.joints, self.landmarks, self.scale = meta["joints"], meta["landmarks"], meta["scale"]
        self.loop = np.array(meta["loop"])
        self.mean = data["mean"].astype(np.float64)  # (N, 3) metres, y up, face along +z
        self.base = data["base"] * meta["base_step"]  # (12, N, 3): gender × age × weight
        self.ancestry = data["ancestry"] * meta["ancestry_step"]  # (12, N, 3): gender × age × ancestry
        stops = np.cumsum(data["local_count"])
        rows, values = np.split(data["local_rows"], stops[:-1]), np.split(data["local_values"], stops[:-1])
        self.offsets = {n: (r, v * step) for (n, step), r, v in zip(meta["local"], rows, values, strict=True)}
        self.local_names = sorted({name[:-1] for name in self.offsets if not name.startswith("face:")})
        self.bust_rows, self.bust_weights = data["bust_rows"], data["bust_weights"] / 32767
        self.parts = {n: triangulate(data["faces_" + n]) for n in ("upper_teeth", "lower_teeth", "tongue")}
        rest, self.count = data["rest"].astype(np.float64), self.ranges["cap"].stop

        corners = data["faces"][data["faces"][:, 3] >= 0, :4].astype(np.int64)  # quads are enough to know neighbours
        a, b = corners.ravel(), np.roll(corners, 1, axis=1).ravel()
        touch = csr_matrix((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])), shape=(self.count, self.count))
        self.neighbours = diags(1 / np.maximum(np.asarray(touch.sum(axis=1)).ravel(), 1)) @ touch  # mean of neighbours

        masks = dict(zip(meta["masks"], data["masks"] / 255.0, strict=True))
        polygons, matrix, self.surfaces = data["faces"].astype(np.int64), None, []
        for _ in range(2):
            before = polygons
            step, polygons = subdivide(polygons, self.count if matrix is None else matrix.shape[0])
            matrix = step if matrix is None else (step @ matrix).tocsr()
            fine = {name: np.clip(matrix @ mask, 0, 1) for name, mask in masks.items()}
            fine_rest = matrix @ rest[: self.count]
            faces, casters = triangulate(polygons), triangulate(before[:, :4])
            casters = np.where(casters < 0, casters[:, :1], casters)  # padded triangles: their second half is nothing
            self.surfaces.append(Surface(matrix, faces, casters, fine_rest, fine | regions(fine_rest, fine)))

    def shape(self, gender=0.5, age=30.0, weight=0.5, ancestry=(1 / 3, 1 / 3, 1 / 3), local=None, expression=None,
              gaze=(0.0, 0.0), detail: int = 2) -> HeadShape:  # fmt: skip
        """The head of one person.

        Args:
            gender: 0 female … 1 male.
            age: years, 20 … 90.
            weight: 0 … 1, 0.5 average.
            ancestry: weights (3,) of MakeHuman's African, Asian and European shapes; made to sum to one.
            local: name in `local_names` → −1 … 1.
            expression: facial action → 0 … 1 (see EXPRESSIONS).
            gaze: degrees the eyes turn to the subject's left, and up.
            detail: 2 (80 000 vertices) or 1 (20 000).
        """
        a = np.clip((age - YOUNG) / (OLD - YOUNG), -0.1, 1.15)
        w = 2 * np.clip(weight, 0, 1)
        by_weight = np.array([max(1 - w, 0), 1 - abs(w - 1), max(w - 1, 0)])
        by_ancestry = np.asarray(ancestry, dtype=np.float64) / np.sum(ancestry)
        corners = np.outer([1 - gender, gender], [1 - a, a]).ravel()
        points = self.mean + np.tensordot(np.outer(corners, by_weight).ravel(), self.base, 1)
        points = points + np.tensordot(np.outer(corners, by_ancestry).ravel(), self.ancestry, 1)
        # MakeHuman's weight leaves the head alone: its local changes fatten it.
        fat = {"head-fat": 0.9, "cheek-volume": 0.25, "neck-scale-horiz": 0.35, "neck-scale-depth": 0.3}
        changes = [(name, value * (w - 1)) for name, value in fat.items()] + [("neck-double", max(0, 1.1 * (w - 1.1)))]
        for name, value in [*changes, *(local or {}).items()]:
            self._add(points, name + ("+" if value > 0 else "-"), abs(value))

        chin, crown = points[self.landmarks["chin"]], points[self.landmarks["crown"]]
        ratio = np.sqrt(REST_SIZE / (self.scale * (crown[1] - chin[1])))  # keeps half of how heads differ in size
        scale = self.scale * CHIN_TO_CROWN / REST_SIZE * ratio
        joints = self.ranges["joints"].start
        middle = CROWN - CHIN_TO_CROWN / 2
        depth = points[joints + self.joints.index("head"), 2] - 0.02
        origin = np.array([0, (chin[1] + crown[1]) / 2 - middle / scale, depth])
        for name, value in (expression or {}).items():
            self._add(points, "face:" + name, value)
        points = self._settle((points - origin) * scale)

        surface = self.surfaces[detail - 1]
        vertices = surface.matrix @ points[: self.count]
        parts = {n: (points[self.ranges[n]], faces) for n, faces in self.parts.items()}
        marks = {n: vertices[i] for n, i in self.landmarks.items()}  # subdivision keeps the first vertices in place
        names = [name.replace("l-", "left_").replace("r-", "right_") for name in self.joints]
        marks |= dict(zip(names, points[self.ranges["joints"]], strict=True))
        marks |= {n: points[self.ranges[n]] for n in self.ranges if n.endswith("_lid")}
        eyes = tuple(_eye(points[self.ranges[side + "_eye"]], gaze) for side in ("left", "right"))
        normals = vertex_normals(vertices, surface.faces)
        return HeadShape(vertices, surface.faces, normals, surface, eyes, parts, marks, points[: self.count])

    def _add(self, points: np.ndarray, name: str, value: float):
        if name in self.offsets and value:
            rows, delta = self.offsets[name]
            points[rows] += value * delta

    def _settle(self, points: np.ndarray) -> np.ndarray:
        """Shoulders drawn in, and the bottom edge laid on the ball, its shift fading out towards the neck."""
        points = points.copy()
        points[:, 0] = drawn_in(points[:, 0])
        edge = points[self.loop]
        for _ in range(12):  # the notch under each arm fills up
            edge = edge + 0.5 * (0.5 * (np.roll(edge, 1, axis=0) + np.roll(edge, -1, axis=0)) - edge)
        edge[:, 1] = bottom(edge)
        points[self.bust_rows] += self.bust_weights @ (edge - points[self.loop])
        points[self.loop] = edge
        centre = edge.mean(axis=0)
        cap = np.concatenate([*[edge + (centre - edge) * t for t in (0.08, 0.5)], centre[None]])
        cap[:, 1] = np.maximum(bottom(cap), -0.955)
        points[self.ranges["cap"]] = cap
        return points


@cache
def load_head() -> HeadModel:
    """The head model, read once per process."""
    return HeadModel()


def bottom(points: np.ndarray) -> np.ndarray:
    """Height at which the bust ends under points (M, 3): the lower half of a ball a little smaller than RADIUS."""
    return -np.sqrt(np.maximum((RADIUS - 0.015) ** 2 - points[:, 0] ** 2 - points[:, 2] ** 2, 0))


def drawn_in(x: np.ndarray) -> np.ndarray:
    """Shoulders narrowed: |x| beyond 0.45 runs against 0.77."""
    return np.where(np.abs(x) > 0.45, np.sign(x) * (0.45 + 0.32 * np.tanh((np.abs(x) - 0.45) / 0.32)), x)


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between (reversed where low > high)."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# Height of the hairline and of the beard's upper edge in the average head, by angle from the front (radians).
HAIRLINE = (
    (0, 0.4, 0.75, 0.95, 1.1, 1.22, 1.34, 1.45, 1.75, 2.1, 2.6, 3.15),
    (0.485, 0.475, 0.44, 0.36, 0.26, 0.12, 0.13, 0.2, 0.16, 0.0, -0.07, -0.07),
)
BEARD = ((0, 0.2, 0.3, 0.5, 0.8, 1.1, 1.22, 1.3), (-0.09, -0.09, 0.0, 0.01, 0.03, 0.08, 0.15, 0.15))


def regions(rest: np.ndarray, masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Further masks, by where a vertex lies in the average head."""
    x, y, z = np.abs(rest[:, 0]), rest[:, 1], rest[:, 2]
    angle = np.arctan2(x, z - 0.05)  # 0 in front, π behind
    bare = (1 - smoothstep(0.1, 0.5, masks["ears"])) * (1 - smoothstep(0.02, 0.3, masks["inside_mouth"]))
    no_lips = bare * (1 - smoothstep(0.2, 0.6, masks["lips"]))
    scalp = bare * smoothstep(-0.015, 0.015, y - np.interp(angle, *HAIRLINE))
    below_cheek, above_neck = y - np.interp(angle, *BEARD), y - 0.45 * (0.38 - z).clip(0)
    jaw = smoothstep(0.015, -0.015, below_cheek) * smoothstep(-0.29, -0.23, above_neck)
    beard = no_lips * jaw * smoothstep(1.32, 1.22, angle)
    under_nose = smoothstep(-0.06, -0.03, y) * smoothstep(0.05, 0.02, y) * smoothstep(0.12, 0.10, x)
    moustache = no_lips * under_nose * (z > 0.4)
    torso = smoothstep(-0.30, -0.44, y)
    return {"scalp": scalp, "beard": beard, "moustache": moustache, "torso": torso, "bare": bare}


def _eye(points: np.ndarray, gaze: tuple[float, float]) -> Eye:
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = float(np.ptp(points[:, :2], axis=0).mean() / 2)
    centre[2] = points[:, 2].min() + radius
    yaw, pitch = np.deg2rad(gaze)
    return Eye(centre, radius, np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)]))
