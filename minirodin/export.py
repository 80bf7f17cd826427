"""An avatar as a mesh for other programs: marching cubes on its density, colours of its radiance field; GLB, OBJ, PLY.

What is written is closed, its faces turned outwards, without crumbs and without caves, in metres, y up, the face
along +z: as glTF wants it, and as viewers and 3D printing show it without a turn.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes
from torch import Tensor

from minirodin.avatar import Avatar
from minirodin.errors import RenderError
from minirodin.render import cell_centres, shade
from minirodin.triplane import sample_planes

METRES = 0.25  # a unit of the world: heads of 0.95 units from chin to crown are 24 cm tall
BRIGHTEST = 3  # directions of light that must reach a cell
SMOOTHING = 0.7  # standard deviation of the blur of the field, in grid cells: hides its steps, keeps noses
CRUMB = 0.01  # of the largest piece's volume: smaller pieces float about and are left out
SHELL, SHELL_SAMPLES = 0.06, 12  # a vertex takes the colour of this length of a ray, and so many samples on it
RESOLUTIONS = (16, 384)
KINDS = (".glb", ".obj", ".ply")


@dataclass(frozen=True)
class Surface:
    """A closed surface in the avatar's own world.

    Attributes:
        vertices: (V, 3) float32 in about [−1, 1]³, y up, the face along +z.
        faces: (F, 3) int64, counter-clockwise as seen from outside.
        colours: (V, 3) float32 in [0, 1], sRGB.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray


def export_mesh(avatar: Avatar, path: str | Path, resolution: int = 192) -> Path:
    """Write the avatar as .glb, .obj or .ply, by the ending of `path`; one unit becomes `METRES`.

    Raises:
        RenderError: another ending, a resolution that cannot be, or an avatar in which there is nothing.
    """
    path = Path(path)
    if path.suffix.lower() not in KINDS:
        raise RenderError(f"{path} ends in {path.suffix or 'nothing'!r}: a mesh is a {', '.join(KINDS)}")
    return write_mesh(extract_surface(avatar, resolution), path)


@torch.no_grad()
def extract_surface(avatar: Avatar, resolution: int = 192) -> Surface:
    """The surface of an avatar; see `hidden_grid` for where that is, and `outer_pieces` for what is left out.

    Args:
        resolution: cells of the grid an axis; a cell is 2 / resolution units wide.
    """
    low, high = RESOLUTIONS
    if not (isinstance(resolution, int) and low <= resolution <= high):
        raise RenderError(f"resolution is {resolution}: give a whole number of cells, {low} … {high}")
    # A layer of nothing all around closes the surface where the volume ends, below the chest.
    field = F.pad(blurred(hidden_grid(density_grid(avatar, resolution))), (1,) * 6).cpu().numpy()  # [z, y, x]
    if field.max() <= 0.5:
        raise RenderError("there is nothing in this avatar: no part of it is dense enough for a surface")
    corners, faces, _, _ = marching_cubes(field, 0.5, allow_degenerate=False)
    # From cells to the world; centres are half a cell inside the border, and the padding moved everything by one.
    vertices = (corners[:, ::-1] - 0.5) * (2 / resolution) - 1
    vertices, faces = outer_pieces(vertices, faces.astype(np.int64))
    normals = trimesh.Trimesh(vertices, faces, process=False).vertex_normals
    return Surface(vertices.astype(np.float32), faces, shell_colours(avatar, vertices, normals))


def density_grid(avatar: Avatar, resolution: int) -> Tensor:
    """σ at the centres of R³ cells, (R, R, R) indexed [z, y, x]; 0 where the occupancy grid knows of nothing.

    That leaves about a tenth of the cells to query.
    """
    planes, occupied = avatar.planes[None], avatar.occupancy().occupied[0]
    device, grid = planes.device, occupied.shape[-1]
    centres = cell_centres(resolution, device)
    cell = ((centres + 1) * (grid / 2)).long().clamp(0, grid - 1)
    queried = occupied[cell[:, 2], cell[:, 1], cell[:, 0]].nonzero()[:, 0]
    density = torch.zeros(resolution**3, device=device)
    for part in queried.split(1 << 18 if planes.is_cuda else 1 << 13):
        density[part] = avatar.decoder.density(sample_planes(planes, centres[None, part]))[0].float()
    return density.view(resolution, resolution, resolution)


def hidden_grid(density: Tensor) -> Tensor:
    """How much of the light from outside does not get to a cell, in [0, 1], of their σ (R, R, R): 0.5 is the surface.

    No threshold of σ would do. Skin leaps to hundreds within a cell, hair is a fog that holds light back little by
    little, and inside there is nothing: no picture says what is in a head, only that it is opaque. What pictures do
    show is how far one sees, and so the surface is where half of the light is left on the way in. Light comes from 17
    directions, to the neighbours of a cell, all but those below: the bust's underside is hardly ever seen and full of
    holes, which are closed like this. A cell is as bright as its third brightest direction, so that a crack does not
    light the inside.
    """
    cell = 2 / len(density)
    brightest = [torch.zeros_like(density) for _ in range(BRIGHTEST)]
    for towards in itertools.product((-1, 0, 1), repeat=3):  # of the light, along z, y, x
        if any(towards) and towards[1] <= 0:
            light = light_along(density * (cell * math.hypot(*towards)), towards)
            for known in brightest:  # the brightest first; what it was goes on to the next
                known[:], light = torch.maximum(known, light), torch.minimum(known, light)
    return 1 - brightest[-1]


def light_along(depth: Tensor, towards: tuple[int, int, int]) -> Tensor:
    """What is left of light that comes in from outside, layer by layer, in the middle of every cell; (D, H, W).

    Args:
        depth: optical depth of each cell along the way, (D, H, W).
        towards: steps −1, 0 or 1 along each axis, not all 0.
    """
    axis = next(i for i in range(3) if towards[i])
    half, light = torch.exp(-0.5 * depth), torch.empty_like(depth)  # half: of the way through a cell
    layers = range(depth.shape[axis])
    order = layers if towards[axis] > 0 else reversed(layers)
    shift = [step for i, step in enumerate(towards) if i != axis]
    before = torch.ones_like(half.select(axis, 0))
    for i in order:
        own = half.select(axis, i)
        light.select(axis, i).copy_(before * own)
        before = shifted(before * own.square(), shift)
    return light


def shifted(layer: Tensor, steps: Sequence[int]) -> Tensor:
    """A layer (H, W) moved by −1, 0 or 1 cells along its axes; full light comes in from the sides."""
    down, right = steps
    h, w = layer.shape
    return F.pad(layer[None, None], (1,) * 4, value=1.0)[0, 0, 1 - down : h + 1 - down, 1 - right : w + 1 - right]


def blurred(field: Tensor) -> Tensor:
    """The field (D, H, W) under a small Gaussian; outside its border it goes on."""
    steps = torch.arange(-2, 3, device=field.device)
    kernel = torch.exp(-0.5 * (steps / SMOOTHING) ** 2)
    kernel = kernel / kernel.sum()
    field = F.pad(field[None, None], (2,) * 6, mode="replicate")
    for axis in range(3):
        shape = [1] * 5
        shape[2 + axis] = 5
        field = F.conv3d(field, kernel.view(shape))
    return field[0, 0]


def outer_pieces(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of a closed surface that one would miss: large ones. Crumbs that float, and caves, are left out.

    A cave is a closed surface inside another, and its faces look inwards: its volume is negative.
    """
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges), bool), edges.T), shape=(len(vertices),) * 2)
    piece = connected_components(graph, directed=False)[1][faces[:, 0]]  # (F,)
    a, b, c = vertices[faces].transpose(1, 0, 2)
    volume = np.bincount(piece, (a * np.cross(b, c)).sum(1) / 6)
    faces = faces[volume[piece] >= CRUMB * volume.max()]
    used, faces = np.unique(faces, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


def shell_colours(avatar: Avatar, vertices: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """What a ray sees that meets the surface head on: (V, 3) float32 sRGB in [0, 1].

    A mesh has one colour a vertex, the field another for every direction; looking along the inward normal is the view
    that shows the place best, without the highlights and rims of a glancing one. And colour lies in the volume, not on
    a surface: it is put together along a short ray through the shell, as in every picture (E3).
    """
    device = avatar.planes.device
    inward = -torch.tensor(normals, dtype=torch.float32, device=device)
    origins = torch.tensor(vertices, dtype=torch.float32, device=device) - 0.25 * SHELL * inward
    steps = SHELL * (torch.arange(SHELL_SAMPLES, device=device) + 0.5) / SHELL_SAMPLES
    colours = []
    for o, d in zip(*(x.split(1 << 16 if device.type == "cuda" else 1 << 10) for x in (origins, inward)), strict=True):
        t, delta = steps.expand(1, len(o), -1), torch.full((1, len(o), 1), SHELL / SHELL_SAMPLES, device=device)
        seen = shade(avatar.planes[None], avatar.decoder, o[None], d[None], t, delta)
        colours.append((seen.rgb / seen.alpha.clamp_min(1e-6)[..., None])[0])
    return torch.cat(colours).float().clamp(0, 1).cpu().numpy()


def write_mesh(surface: Surface, path: str | Path) -> Path:
    """Write a surface as its ending says, in metres, with vertex colours.

    glTF defines vertex colours as linear light, which a viewer turns into sRGB for the screen: as they are they would
    come out pale. OBJ (whose vertex colours are a common extension) and PLY say nothing, and programs show the numbers
    that they read: these keep sRGB, in 8 bits.
    """
    path = Path(path)
    mesh = trimesh.Trimesh(surface.vertices * METRES, surface.faces, process=False)
    colours = np.pad(surface.colours, ((0, 0), (0, 1)), constant_values=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".glb":
        # 16 bits: 8 bits of linear light have three steps for all of dark hair. trimesh writes 8, but any attribute.
        linear = np.concatenate([to_linear(colours[:, :3]), colours[:, 3:]], axis=1)
        mesh.vertex_attributes["_COLOUR"] = (linear * 65535).round().astype(np.uint16)
        path.write_bytes(mesh.export(file_type="glb", include_normals=True, tree_postprocessor=_finish_gltf))
    else:
        mesh.visual.vertex_colors = (colours * 255).round().astype(np.uint8)
        mesh.export(path, **({"vertex_normal": True} if path.suffix.lower() == ".ply" else {"include_normals": True}))
    return path


def _finish_gltf(tree: dict) -> None:
    """The attribute becomes the vertex colour; and light is in the colours already, so nothing shall light them."""
    (primitive,) = tree["meshes"][0]["primitives"]
    attributes = primitive["attributes"]
    attributes["COLOR_0"] = attributes.pop("_COLOUR")
    tree["accessors"][attributes["COLOR_0"]]["normalized"] = True
    plain = {"metallicFactor": 0.0, "roughnessFactor": 1.0}  # for viewers that do not know the extension
    tree["materials"] = [{"pbrMetallicRoughness": plain, "extensions": {"KHR_materials_unlit": {}}}]
    tree["extensionsUsed"] = [*tree.get("extensionsUsed", []), "KHR_materials_unlit"]
    primitive["material"] = 0


def to_linear(colours: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] → linear light."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
