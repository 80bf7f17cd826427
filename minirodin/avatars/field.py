"""A person's own skin as hair, hats and glasses see it: signed distance on a grid, and the heights to lay out by."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from minirodin.avatars.mesh import dot, norm, normalize, vertex_normals


@dataclass(frozen=True)
class SkinField:
    """Distance (positive outside) and its gradient over the box [-1, 1]^3, smoothed by one cell."""

    grid: np.ndarray  # (R, R, R, 4) distance and gradient at the corners of R - 1 cells a side
    tree: cKDTree
    vertices: np.ndarray  # (V, 3)
    normals: np.ndarray  # (V, 3)

    def __call__(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Trilinear distance (...) and unit outward normal (..., 3) at points (..., 3)."""
        where = torch.from_numpy(np.flip(p, -1).reshape(1, 1, 1, -1, 3).copy())  # its last axis first
        grid = torch.from_numpy(self.grid).permute(3, 0, 1, 2)[None]
        out = F.grid_sample(grid, where, padding_mode="border", align_corners=True)  # (1, 4, 1, 1, N)
        out = out.reshape(4, -1).T.numpy().reshape(*p.shape[:-1], 4)
        return out[..., 0], normalize(out[..., 1:])

    def offset(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signed offset (...) along the normal of the nearest skin vertex, and that normal (..., 3).

        Only for points close to the skin; farther off, vertices on the skin's border may face anywhere.
        """
        _, nearest = self.tree.query(p)
        normal = self.normals[nearest]
        return dot(p - self.vertices[nearest], normal), normal

    def push_out(self, p: np.ndarray, clearance: float) -> np.ndarray:
        """Points (..., 3) moved along the skin's normal until they are `clearance` above the skin, exactly."""
        low = self(p)[0] < clearance + 0.02  # the grid is good to this much
        q = p[low]
        for _ in range(3):
            d, normal = self.offset(q)
            q = q + np.clip(clearance - d, 0, None)[..., None] * normal
        p = p.copy()
        p[low] = q
        return p


def skin_field(vertices: np.ndarray, normals: np.ndarray, resolution: int = 64) -> SkinField:
    """Build the field of a skin surface: vertices and outward unit normals (V, 3); the surface may be open."""
    tree = cKDTree(vertices)
    axis = np.linspace(-1, 1, resolution)
    cell = axis[1] - axis[0]
    corners = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)  # (R, R, R, 3)
    # Far from the skin any vertex of the nearest occupied corner will do; near it the nearest vertex is looked up.
    occupant = np.full((resolution,) * 3, -1)
    inside = np.abs(vertices).max(-1) < 1
    occupant[tuple(np.rint((vertices[inside] + 1) / cell).astype(int).T)] = np.flatnonzero(inside)
    index = distance_transform_edt(occupant < 0, return_distances=False, return_indices=True)
    nearest = occupant[tuple(index)]
    away = corners - vertices[nearest]
    near = norm(away) < 3.5 * cell
    nearest[near] = tree.query(corners[near])[1]
    away[near] = corners[near] - vertices[nearest[near]]
    height = dot(away, normals[nearest])
    distance = np.where(near, height, np.copysign(norm(away), height))
    d = gaussian_filter(distance, 0.8)
    gradient = np.stack(np.gradient(d, cell), -1)
    return SkinField(np.concatenate([d[..., None], gradient], -1), tree, vertices, normals)


@dataclass(frozen=True)
class Frame:
    """Heights (y) and the depth of the ears (z), world units, from one head's landmarks."""

    eye: float
    brow: float
    chin: float
    crown: float
    ear_top: float
    ear_z: float

    @property
    def size(self) -> float:
        """Chin to crown."""
        return self.crown - self.chin

    @property
    def unit(self) -> float:
        """World units to one unit of the average head that lengths are given for, 0.85 from chin to crown."""
        return self.size / 0.85

    def azimuth(self, p) -> np.ndarray:
        """Angle (...) in radians about the vertical axis through the ears, 0 at the nose, pi at the nape."""
        return np.arctan2(np.abs(p[..., 0]), p[..., 2] - self.ear_z)


def head_frame(shape) -> Frame:
    """The frame of a HeadShape."""
    mark, brow = shape.landmarks, shape.masks["brow"]
    ears = np.mean([mark[f"{side}_ear_{end}"] for side in ("left", "right") for end in ("top", "lobe")], axis=0)
    return Frame(
        eye=float(shape.eyes[0].centre[1] + shape.eyes[1].centre[1]) / 2,
        brow=float((shape.vertices[:, 1] * brow).sum() / brow.sum()),
        chin=float(mark["chin"][1]),
        crown=float(mark["crown"][1]),
        ear_top=float(mark["left_ear_top"][1]),
        ear_z=float(ears[2]),
    )


def _taut_ears(shape) -> tuple[np.ndarray, np.ndarray]:
    """Which of a HeadShape's vertices (V,) are ears, and where these lie once shrunk to taut patches (E, 3)."""
    ear = shape.masks["ears"] > 0.2
    a, b = np.concatenate([shape.faces[:, [0, 1]], shape.faces[:, [1, 2]], shape.faces[:, [2, 0]]]).T
    count = len(shape.vertices)
    beside = csr_matrix((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])), shape=(count, count))
    degree = np.asarray(beside.sum(axis=1)).ravel()
    rows = beside[ear]
    laplacian = (diags(degree[ear]) - rows[:, ear]).tocsc()
    return ear, splu(laplacian).solve(rows[:, ~ear] @ shape.vertices[~ear])  # every vertex amid its neighbours


def press_ears(shape, landmarks: dict[str, int], share: float = 0.75):
    """A HeadShape with ears laid to the head, as hair that falls over them does, so that none comes through it.

    landmarks: vertex of each landmark; those of the ears move along.
    """
    ear, taut = _taut_ears(shape)
    vertices = shape.vertices.copy()
    vertices[ear] += share * (taut - vertices[ear])
    marks = shape.landmarks | {name: vertices[i] for name, i in landmarks.items() if "_ear_" in name}
    return replace(shape, vertices=vertices, normals=vertex_normals(vertices, shape.faces), landmarks=marks)


def without_ears(shape) -> tuple[np.ndarray, np.ndarray]:
    """A HeadShape's outer skin with its ears shrunk to taut patches: vertices and normals (V, 3).

    Hair covers ears and hats press them down, but a hole in their place would leave the distance undefined.
    """
    skin = shape.masks["inside_mouth"] < 0.3
    ear, taut = _taut_ears(shape)
    vertices = shape.vertices.copy()
    vertices[ear] = taut
    normals = np.where(ear[:, None], vertex_normals(vertices, shape.faces), shape.normals)
    return vertices[skin], normals[skin]


def head_field(shape, clothing=()) -> SkinField:
    """The field of a HeadShape and the meshes it wears, with flat patches for ears."""
    vertices, normals = without_ears(shape)
    vertices = np.concatenate([vertices, *(m.vertices for m in clothing)])
    return skin_field(vertices, np.concatenate([normals, *(m.normals for m in clothing)]))
