"""Triangle meshes with what the renderer needs per vertex, and Catmull-Clark subdivision as one sparse matrix."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix, vstack

SKIN, EYE, HAIR, CLOTH, GLOSSY, LENS = range(6)  # materials


@dataclass(frozen=True)
class Mesh:
    """Triangles in the fixed world, counter-clockwise seen from outside.

    Attributes:
        vertices: (V, 3) float64.
        faces: (F, 3) int.
        normals: (V, 3) unit.
        albedo: (V, 3) linear RGB in [0, 1]; the iris colour on eyes.
        material: (V,) int: SKIN, EYE, HAIR, CLOTH, GLOSSY or LENS.
        tangents: (V, 3) direction of the strand for HAIR, direction in the eye's own frame (+z is the gaze) for EYE;
            wrinkles and light for SKIN, pattern for CLOTH, as their shaders say; else 0.
        width: (V,) signed half-width. The renderer moves a vertex by it sideways of the tangent, square to whoever
            looks, so that two vertices on a strand's axis become a thin cylinder; 0 on solid parts.
        casters: (K, 3) the triangles that cast shadow: fewer than `faces` where that looks the same.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    albedo: np.ndarray
    material: np.ndarray
    tangents: np.ndarray
    width: np.ndarray
    casters: np.ndarray


def make_mesh(vertices, faces, albedo, material: int, normals=None, tangents=None, width=None, casters=None) -> Mesh:
    """A mesh of one material; `albedo` broadcasts to (V, 3), normals are computed where not given."""
    vertices, faces = np.asarray(vertices, dtype=np.float64), np.asarray(faces)
    count = len(vertices)
    return Mesh(
        vertices,
        faces,
        vertex_normals(vertices, faces) if normals is None else normals,
        np.broadcast_to(np.asarray(albedo, dtype=np.float64), (count, 3)),
        np.full(count, material),
        np.zeros((count, 3)) if tangents is None else tangents,
        np.zeros(count) if width is None else width,
        faces if casters is None else casters,
    )


def ribbons(points: np.ndarray, radius, albedo, centre=(0.0, 0.2, 0.0), normals: np.ndarray | None = None) -> Mesh:
    """Strands as ribbons that always face the viewer.

    Args:
        points: (N, S, 3) axis of each strand from root to tip.
        radius: half-width, broadcast to (N, S).
        albedo: linear RGB, broadcast to (N, S, 3).
        centre: shading normals point away from here (made square to the strand) unless given.
        normals: (N, S, 3) shading normals, for example the scalp's at the roots.
    """
    n, s, _ = points.shape
    tangents = normalize(np.gradient(points, axis=1))
    normals = points - np.asarray(centre) if normals is None else normals
    normals = normalize(normals - dot(normals, tangents)[..., None] * tangents)
    radius = np.broadcast_to(np.asarray(radius, dtype=np.float64), (n, s))
    albedo = np.broadcast_to(np.asarray(albedo, dtype=np.float64), (n, s, 3))

    def twice(values: np.ndarray) -> np.ndarray:
        return np.repeat(values.reshape(n * s, -1), 2, axis=0)  # (2·N·S, C): left and right edge of each point

    first = 2 * (np.arange(n)[:, None] * s + np.arange(s - 1)).reshape(-1, 1)
    third = first[::3]  # a third of the pieces shade as softly as all
    faces = np.concatenate([first + np.array([0, 1, 2]), first + np.array([1, 3, 2])])
    width = twice(radius)[:, 0] * np.tile([-1.0, 1.0], n * s)
    casters = np.concatenate([third + np.array([0, 1, 2]), third + np.array([1, 3, 2])])
    return make_mesh(twice(points), faces, twice(albedo), HAIR, twice(normals), twice(tangents), width, casters)


def concatenate(meshes: list[Mesh]) -> Mesh:
    """One mesh of many."""
    start = np.cumsum([0] + [len(m.vertices) for m in meshes])
    joined = {name: np.concatenate([getattr(m, name) for m in meshes]) for name in Mesh.__dataclass_fields__}
    for name in ("faces", "casters"):
        joined[name] = np.concatenate([getattr(m, name) + s for m, s in zip(meshes, start, strict=False)])
    return Mesh(**joined)


def quantised(mesh: Mesh) -> Mesh:
    """The mesh with vertices rounded to 2⁻¹⁶, which hides the last bits in which machines differ."""
    return replace(mesh, vertices=np.rint(mesh.vertices * 2**16) / 2**16)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals of (V, 3) vertices and (F, 3) triangles."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    flat = faces.ravel()
    summed = np.stack([np.bincount(flat, np.repeat(face[:, k], 3), len(vertices)) for k in range(3)], axis=1)
    return summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-20)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Products (...) of vectors (..., 3); several times faster than a sum over a short last axis."""
    return np.einsum("...i,...i", a, b)


def norm(v: np.ndarray) -> np.ndarray:
    return np.sqrt(dot(v, v))


def normalize(v: np.ndarray) -> np.ndarray:
    return v / np.maximum(norm(v), 1e-12)[..., None]


def triangulate(quads: np.ndarray) -> np.ndarray:
    """(F, 4) quads → (2F, 3) triangles."""
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def subdivide(polygons: np.ndarray, count: int) -> tuple[csr_matrix, np.ndarray]:
    """One step of Catmull-Clark subdivision.

    Args:
        polygons: (F, K) vertex indices of faces with up to K corners, padded with -1.
        count: number of vertices V.

    Returns:
        The (V', V) matrix that maps old vertices to new ones (old vertices moved, then face points, then edge points),
        and the (F', 4) quads. Open borders stay where they are, as cubic splines.
    """
    used = polygons >= 0
    sides = used.sum(axis=1)
    corner_face, corner = np.nonzero(used)
    a = polygons[corner_face, corner]
    b = polygons[corner_face, (corner + 1) % sides[corner_face]]
    edges, edge_of = np.unique(np.sort(np.stack([a, b], axis=1), axis=1), axis=0, return_inverse=True)
    edge_of = edge_of.ravel()
    faces, n_edges = len(polygons), len(edges)

    face_points = csr_matrix((1 / sides[corner_face], (corner_face, a)), shape=(faces, count))
    ends = csr_matrix((np.full(2 * n_edges, 0.5), (np.repeat(np.arange(n_edges), 2), edges.ravel())), (n_edges, count))
    beside = csr_matrix((np.ones(len(a)), (edge_of, corner_face)), shape=(n_edges, faces))
    inner = np.asarray(beside.sum(axis=1)).ravel() == 2
    edge_points = _scale(0.5 * inner + 1.0 * ~inner) @ ends + _scale(0.25 * inner) @ beside @ face_points

    at_edge = csr_matrix((np.ones(2 * n_edges), (edges.ravel(), np.repeat(np.arange(n_edges), 2))), (count, n_edges))
    at_face = csr_matrix((np.ones(len(a)), (a, corner_face)), shape=(count, faces))
    degree = np.maximum(np.asarray(at_edge.sum(axis=1)).ravel(), 1)
    on_faces = np.maximum(np.asarray(at_face.sum(axis=1)).ravel(), 1)
    border = at_edge @ _scale(1.0 * ~inner)
    n_border = np.asarray(border.sum(axis=1)).ravel()
    smooth = (n_border == 0) & (degree > 1)
    eye = csr_matrix((np.ones(count), (np.arange(count), np.arange(count))), (count, count))
    moved = _scale(smooth / (on_faces * degree)) @ at_face @ face_points
    moved = moved + _scale(2.0 * smooth / degree**2) @ at_edge @ ends
    moved = moved + _scale(smooth * (1 - 3 / degree)) @ eye + _scale(0.5 * ~smooth) @ eye
    edge_border = _scale(np.where(n_border > 0, 0.5 / np.maximum(n_border, 1), 0) * ~smooth) @ border @ ends
    moved = moved + edge_border + _scale(0.5 * (~smooth & (n_border == 0))) @ eye

    previous = np.arange(len(a)) - 1 + np.where(corner == 0, sides[corner_face], 0)  # the corner before, in its face
    quads = np.stack([a, count + faces + edge_of, count + corner_face, count + faces + edge_of[previous]], axis=1)
    return vstack([moved, face_points, edge_points]).tocsr(), quads


def _scale(values: np.ndarray) -> csr_matrix:
    n = len(values)
    return csr_matrix((np.asarray(values, dtype=np.float64), (np.arange(n), np.arange(n))), shape=(n, n))
