"""Meshes of fields that are formulas: where their surface is, what encloses it, which way it looks; files read back."""

import json
import struct

import numpy as np
import pytest
import torch
import trimesh
from toys import FieldDecoder, ball_config, position_planes, soft_ball

from minirodin import export
from minirodin.avatar import Avatar
from minirodin.errors import RenderError
from minirodin.export import METRES, Surface, extract_surface, hidden_grid, light_along, outer_pieces, write_mesh

RADIUS, CELLS = 0.5, 64
CELL = 2 / CELLS
RED, BLUE = torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.8])
TOLD = torch.tensor([0.6, 0.2, 0.4])


def avatar_of(density, colour=None):
    return Avatar(position_planes(64), FieldDecoder(density, colour), ball_config(grid=32))


def halves(p):
    """Red on the +x side."""
    return torch.where(p[..., :1] > 0, RED, BLUE)


def balls(*given, density=400.0):
    """Hard balls (x, y, z, radius), side by side."""
    return lambda p: sum(soft_ball(b[:3], b[3], sharpness=1000.0, density=density)(p) for b in given)


def as_mesh(surface):
    return trimesh.Trimesh(surface.vertices, surface.faces, process=False)


@pytest.fixture(scope="module")
def ball():
    return extract_surface(avatar_of(balls((0, 0, 0, RADIUS)), halves), CELLS)


def test_a_ball_is_a_ball(ball):
    mesh, distance = as_mesh(ball), np.linalg.norm(ball.vertices, axis=1)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 2
    assert abs(distance.mean() - RADIUS) < 0.5 * CELL and abs(distance - RADIUS).max() < CELL
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.06)  # positive: faces look outwards
    assert ((mesh.vertex_normals * ball.vertices).sum(1) / distance).min() > 0.9
    assert ball.vertices.dtype == ball.colours.dtype == np.float32
    assert abs(ball.vertices.mean(0)).max() < 0.1 * CELL


def test_colours_are_on_the_right_side(ball):
    right, left = ball.vertices[:, 0] > CELL, ball.vertices[:, 0] < -CELL
    np.testing.assert_allclose(ball.colours[right], np.broadcast_to(RED, ball.colours[right].shape), atol=1e-3)
    np.testing.assert_allclose(ball.colours[left], np.broadcast_to(BLUE, ball.colours[left].shape), atol=1e-3)


def test_a_finer_grid_is_more_exact(ball):
    fine = extract_surface(avatar_of(balls((0, 0, 0, RADIUS))), 2 * CELLS)
    coarse_error, fine_error = (np.abs(np.linalg.norm(s.vertices, axis=1) - RADIUS).mean() for s in (ball, fine))
    assert fine_error < 0.8 * coarse_error and len(fine.faces) > 3 * len(ball.faces)


def test_axes_are_those_of_the_world():
    """Bumps of different sizes upwards, to the front and to one side."""
    body = balls((0, 0, 0, 0.4), (0, 0.6, 0, 0.25), (0, 0, 0.45, 0.15), (0.4, 0, 0, 0.1))
    low, high = as_mesh(extract_surface(avatar_of(body), CELLS)).bounds
    np.testing.assert_allclose(high, [0.5, 0.85, 0.6], atol=CELL)
    np.testing.assert_allclose(low, [-0.4, -0.4, -0.4], atol=CELL)


def test_colour_is_seen_along_the_inward_normal():
    class Mirror(FieldDecoder):
        def __call__(self, features, directions):
            return self.density(features), 0.5 - 0.5 * directions

    avatar = Avatar(position_planes(64), Mirror(balls((0, 0, 0, RADIUS))), ball_config(grid=32))
    surface = extract_surface(avatar, 32)
    outward = surface.vertices / np.linalg.norm(surface.vertices, axis=1, keepdims=True)
    np.testing.assert_allclose(surface.colours, 0.5 + 0.5 * outward, atol=0.1)


def test_colour_behind_the_skin_does_not_show():
    skin = lambda p: torch.where(p.norm(dim=-1, keepdim=True) > RADIUS - 0.05, RED, BLUE)  # noqa: E731
    surface = extract_surface(avatar_of(balls((0, 0, 0, RADIUS)), skin), CELLS)
    np.testing.assert_allclose(surface.colours, np.broadcast_to(RED, surface.colours.shape), atol=0.01)


# -- what is solid ------------------------------------------------------------------------------------------------


def hollow(p):
    """A ball of which only a skin is left, with a wide hole below and a crack at the front."""
    distance, x, y, z = p.norm(dim=-1), *p.unbind(-1)
    hole = (y < 0) & (x**2 + z**2 < 0.25**2)
    crack = (z > 0) & (x.abs() < 0.02) & (y.abs() < 0.02)
    return 400.0 * ((distance < RADIUS) & (distance > RADIUS - 0.12) & ~hole & ~crack)


def test_a_hollow_head_with_holes_is_filled():
    mesh = as_mesh(extract_surface(avatar_of(hollow), CELLS))
    assert mesh.is_watertight and mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.1)


def test_a_crack_does_not_light_the_inside():
    density = torch.zeros(20, 20, 20)
    density[4:16, 4:16, 4:16] = 400.0
    density[6:14, 6:14, 6:14] = 0.0
    density[14:, 9:12, 9:12] = 0.0  # at the front, three cells wide
    hidden = hidden_grid(density)
    assert hidden[10, 10, 10] > 0.9 and hidden[2, 10, 10] == 0 and hidden[18, 10, 10] == 0


def test_fog_ends_where_half_of_the_light_is_left():
    """A wide, thin block: the surface lies ln 2 / σ below its top, at a place that no threshold of σ tells."""
    density = torch.zeros(60, 60, 60)
    density[:, :40] = 8.0  # of y: from −1 up to 1/3
    column = hidden_grid(density)[30, :, 30]
    y = (torch.arange(60) + 0.5) / 30 - 1
    crossing = float(np.interp(-0.5, -column.flip(0).numpy()[::-1], y.numpy()))
    top = 1 / 3 - np.log(2) / 8
    # The third brightest of nine directions from above comes in at 45°.
    slanted = 1 / 3 - np.log(2) / 8 / np.sqrt(2)
    assert min(top, slanted) - 1 / 30 < crossing < max(top, slanted) + 1 / 30


@pytest.mark.parametrize("towards", [(0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 1), (0, 1, -1), (1, -1, 1)])
def test_light_along_a_direction(towards):
    """Against a walk from every cell back to the light."""
    depth = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0))
    light = light_along(depth, towards)
    for cell in np.ndindex(*depth.shape):
        total, at = 0.5 * depth[cell], np.array(cell) - towards
        while all(0 <= a < n for a, n in zip(at, depth.shape, strict=True)):
            total, at = total + depth[tuple(at)], at - towards
        assert light[cell].item() == pytest.approx(float(torch.exp(-total)), rel=1e-4)


def test_crumbs_are_left_out_and_what_is_large_is_kept():
    crumb, ear = (0.8, 0.8, 0.8, 0.09), (0.7, 0.0, 0.0, 0.18)
    surface = extract_surface(avatar_of(balls((0, 0, 0, 0.45), crumb, ear)), CELLS)
    assert as_mesh(surface).body_count == 2 and as_mesh(surface).is_watertight
    assert surface.vertices[:, 0].max() > 0.85 and surface.vertices[:, 1].max() < 0.5


def test_caves_are_left_out():
    outer = trimesh.creation.icosphere(2, 1.0)
    inner = trimesh.creation.icosphere(2, 0.5)
    both = np.concatenate([outer.vertices, inner.vertices])
    faces = np.concatenate([outer.faces, inner.faces[:, ::-1] + len(outer.vertices)])  # seen from inside
    vertices, kept = outer_pieces(both, faces)
    np.testing.assert_array_equal(vertices[kept], outer.vertices[outer.faces])
    assert len(vertices) == len(outer.vertices)


def test_what_reaches_the_border_is_closed():
    mesh = as_mesh(extract_surface(avatar_of(balls((0, -0.8, 0, 0.5))), CELLS))
    assert mesh.is_watertight and mesh.euler_number == 2
    assert abs(mesh.bounds[0, 1] + 1) < CELL


def test_a_fitted_person_of_the_box_is_one_closed_piece():
    from minirodin.demo import SAMPLES

    surface = extract_surface(Avatar.load(SAMPLES / "avatars" / "1000001.safetensors"), 96)
    mesh = as_mesh(surface)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.body_count == 1
    assert 0.4 < mesh.volume < 0.9  # solid: the skin alone has 0.13
    face = np.abs(surface.vertices - [0, 0.2, 0]).argmin(0)[0]
    assert np.isfinite(surface.colours).all() and 0 <= face < len(surface.vertices)
    nose = surface.vertices[surface.vertices[:, 2].argmax()]
    assert abs(nose[0]) < 0.15 and nose[1] < 0.4  # the face is at +z


# -- files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tetrahedron():
    corners = np.array([[0, 0, 0.8], [0.4, 0, 0], [-0.4, 0, 0], [0, 1, 0]], np.float32)
    faces = np.array([[0, 1, 3], [0, 3, 2], [0, 2, 1], [1, 2, 3]])
    return Surface(corners, faces, np.array([TOLD.tolist(), [1, 1, 1], [0, 0, 0], [0.02, 0.03, 0.04]], np.float32))


@pytest.mark.parametrize("kind", ["glb", "obj", "ply", "PLY"])
def test_files_read_back(tetrahedron, tmp_path, kind):
    path = write_mesh(tetrahedron, tmp_path / "new" / f"a.{kind}")
    mesh = trimesh.load(path, force="mesh", process=False)
    np.testing.assert_allclose(mesh.vertices, tetrahedron.vertices * METRES, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, tetrahedron.faces)
    assert mesh.is_watertight and mesh.volume == pytest.approx(METRES**3 * 0.8 / 2 / 3 * 0.8, rel=1e-4)
    if kind != "glb":  # sRGB as it is
        np.testing.assert_array_equal(mesh.visual.vertex_colors[0], [153, 51, 102, 255])


def glb_parts(path):
    """The JSON of a GLB, and its vertex colours as in the glTF 2.0 specification, by hand."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    tree = json.loads(data[20 : 20 + length])
    binary = data[20 + length + 8 :]
    accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    view = tree["bufferViews"][accessor["bufferView"]]
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    assert accessor["componentType"] == 5123 and accessor["normalized"] and accessor["type"] == "VEC4"
    values = np.frombuffer(binary, "<u2", accessor["count"] * 4, start).reshape(-1, 4)
    return tree, values / 65535


def test_glb_has_linear_colours_and_no_light(tetrahedron, tmp_path):
    tree, colours = glb_parts(write_mesh(tetrahedron, tmp_path / "a.glb"))
    # sRGB 0.6, 0.2, 0.4 by the standard's table; black and white stay.
    np.testing.assert_allclose(colours[0], [0.31855, 0.03310, 0.13287, 1], atol=2e-5)
    np.testing.assert_allclose(colours[1:3], [[1, 1, 1, 1], [0, 0, 0, 1]], atol=1e-9)
    np.testing.assert_allclose(colours[3, :3], np.array([0.02, 0.03, 0.04]) / 12.92, atol=1e-5)  # dark ones are apart
    (primitive,) = tree["meshes"][0]["primitives"]
    assert "KHR_materials_unlit" in tree["materials"][primitive["material"]]["extensions"]
    assert "KHR_materials_unlit" in tree["extensionsUsed"] and "NORMAL" in primitive["attributes"]


def test_avatar_export(tmp_path):
    path = avatar_of(balls((0, 0, 0, RADIUS)), halves).export(tmp_path / "ball.ply", resolution=32)
    mesh = trimesh.load(path, process=False)
    assert np.linalg.norm(mesh.vertices, axis=1).mean() == pytest.approx(RADIUS * METRES, abs=METRES / 32)


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    ball = avatar_of(balls((0, 0, 0, RADIUS)))
    with monkeypatch.context() as m:
        m.setattr(export, "density_grid", lambda *_: pytest.fail("the ending is to be looked at first"))
        for name in ("a.stl", "a", "a.glb.zip"):
            with pytest.raises(RenderError, match=r"\.glb, \.obj, \.ply"):
                ball.export(tmp_path / name)
    for resolution in (0, -3, 15, 385, 10**9, 64.0, float("nan"), "64", None):
        with pytest.raises(RenderError, match="resolution"):
            ball.export(tmp_path / "a.glb", resolution)
    with pytest.raises(RenderError, match="nothing in this avatar"):
        avatar_of(lambda p: torch.zeros(p.shape[:-1])).export(tmp_path / "a.glb", 32)
    assert not list(tmp_path.iterdir())
