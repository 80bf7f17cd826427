"""The OpenGL renderer: points land on their pixels, alpha is coverage, no fringes, light, shadow, one clear error."""

import numpy as np
import pytest
import torch

from minirodin.avatars import renderer as avatar_renderer
from minirodin.avatars.head import Eye
from minirodin.avatars.mesh import CLOTH, GLOSSY, HAIR, LENS, concatenate, make_mesh, ribbons
from minirodin.avatars.renderer import Renderer
from minirodin.avatars.skin import eye_mesh
from minirodin.cameras import Cameras, look_at, orbit_cameras
from minirodin.errors import RenderError

SQUARE = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
QUAD = np.array([[0, 1, 2], [0, 2, 3]])


@pytest.fixture(scope="module")
def renderer():
    try:
        return Renderer()
    except RenderError as error:
        pytest.skip(str(error))


def square(centre=(0, 0, 0), half=0.5, albedo=0.5, material=CLOTH):
    return make_mesh(SQUARE * half + centre, QUAD, albedo, material)


def ball(centre, radius=0.03):
    eye = eye_mesh(Eye(np.asarray(centre, float), radius, np.array([0, 0, 1.0])), np.ones(3))
    directions = (eye.vertices - centre) / np.linalg.norm(eye.vertices - centre, axis=1, keepdims=True)
    return make_mesh(centre + radius * directions, eye.faces, 0.7, CLOTH)


def test_a_point_lands_on_its_pixel(renderer):
    points = np.array([[0.6, 0.3, -0.2], [-0.5, 0.7, 0.4], [0.1, -0.8, 0.1], [-0.7, -0.4, -0.5]])
    orbit = orbit_cameras([0, 75, 200], [0, 40, -20], 128)
    skew = torch.stack([look_at((1.5, 2.0, -2.5), (0.1, 0, 0), (0.3, 1, 0.1))])
    other = Cameras(skew, torch.tensor([[170.0, 210.0, 60.0, 50.0]], dtype=torch.float64), 144, 112)
    for cameras in (orbit, other):
        for point in points:
            images = renderer.render(ball(point), cameras)
            expected = cameras.project(torch.tensor(point)[None])[:, 0, :2].numpy()
            for image, (x, y) in zip(images, expected, strict=True):
                alpha = image[..., 3] / 255
                rows, columns = np.indices(alpha.shape)
                assert alpha.sum() > 3
                at = np.array([(alpha * (columns + 0.5)).sum(), (alpha * (rows + 0.5)).sum()]) / alpha.sum()
                np.testing.assert_allclose(at, [x, y], atol=0.06)


def test_nearer_things_hide_farther_ones(renderer):
    far, near = square((0, 0, -0.3), albedo=(0.8, 0.02, 0.02)), square((0, 0, 0.3), 0.2, (0.02, 0.02, 0.8))
    front, back = renderer.render(concatenate([near, far]), orbit_cameras([0, 180], 0, 64))
    assert front[32, 32, 2] > front[32, 32, 0] and back[32, 32, 0] > back[32, 32, 2]


def test_views_that_are_read_together_are_those_read_alone(renderer, monkeypatch):
    cameras, mesh = orbit_cameras(np.arange(7) * 50.0, 10, 40), concatenate([ball((0.3, 0.2, 0.1), 0.2), square()])
    alone = np.concatenate([renderer.render(mesh, cameras[[i]]) for i in range(len(cameras))])
    monkeypatch.setattr(avatar_renderer, "READ", 3)  # two full rounds and a shorter one
    np.testing.assert_array_equal(renderer.render(mesh, cameras), alone)
    assert len({image.tobytes() for image in alone}) == len(cameras)


def test_alpha_is_the_covered_share_of_a_pixel(renderer):
    image = renderer.render(square(half=0.5), orbit_cameras(0, 0, 96))[0]
    side = 2 * 0.5 * 96 / (2 * np.tan(0.3)) / 3.5
    assert abs((image[..., 3] / 255.0).sum() - side**2) < 0.01 * side**2
    # An edge at 3/8 of a pixel must give 3/8 to within a sample.
    shifted = square((0.375 / side, 0, 0), half=0.5)
    column = renderer.render(shifted, orbit_cameras(0, 0, 96))[0][48, :, 3] / 255.0
    assert abs(column.sum() - side) < 0.26


def test_edges_keep_their_colour(renderer):
    image = renderer.render(square(half=0.6, albedo=(0.6, 0.3, 0.1)), orbit_cameras(20, 10, 64))[0].astype(int)
    inner = image[image[..., 3] == 255][:, :3].mean(axis=0)
    soft = image[(image[..., 3] > 0) & (image[..., 3] < 255)]
    assert len(soft) > 40 and np.abs(soft[:, :3] - inner).max() < 12
    grown = np.zeros(image.shape[:2], bool)
    covered = image[..., 3] > 0
    for axis in (0, 1):
        for step in (-1, 1):
            grown |= np.roll(covered, step, axis)
    outside = image[grown & ~covered]
    assert len(outside) and np.abs(outside[:, :3] - inner).max() < 12, "resizing would leave a dark fringe"


def test_a_strand_looks_equally_wide_from_everywhere(renderer):
    points = np.linspace([0, -0.6, 0], [0, 0.6, 0], 9)[None]
    cameras = orbit_cameras([0, 30, 90, 145, 260], 0, 96)
    widths = (renderer.render(ribbons(points, 0.08, 0.3), cameras)[..., 3] / 255.0).sum(axis=(1, 2))
    expected = 1.2 * 0.16 * (96 / (2 * np.tan(0.3)) / 3.5) ** 2
    np.testing.assert_allclose(widths, expected, rtol=0.04)


def test_light_is_fixed_in_the_world(renderer):
    sheet = square((0, 0, 0), 0.5)
    views = renderer.render(sheet, orbit_cameras([-25, 25], 0, 64)).astype(int)
    assert np.abs(views[0, 32, 32] - views[1, 32, 32]).max() <= 3
    front, back = renderer.render(sheet, orbit_cameras([0, 180], 0, 64))[:, 32, 32, 1].astype(int)
    turned = make_mesh(sheet.vertices, sheet.faces[:, ::-1], 0.5, CLOTH)
    dark = renderer.render(turned, orbit_cameras(180, 0, 64))[0, 32, 32, 1].astype(int)
    assert front > dark + 40 and abs(front - back) < 10  # a sheet is lit as its normal says, from both sides


def test_bright_colours_keep_their_hue(renderer):
    albedo = np.array([0.75, 0.55, 0.08])
    pixel = renderer.render(square(albedo=albedo), orbit_cameras(0, 0, 64))[0, 32, 32, :3] / 255
    linear = ((pixel + 0.055) / 1.055) ** 2.4
    assert linear[0] > 0.8 and abs(linear[1] / linear[0] - albedo[1] / albedo[0]) < 0.06  # each clipped: 0.9 and more
    white = renderer.render(square(albedo=0.75), orbit_cameras(0, 0, 64))[0, 32, 32, :3].astype(int)
    assert white.min() > 235 and np.ptp(white) < 12


def test_things_cast_shadow(renderer):
    floor = make_mesh((SQUARE * 0.6)[:, [0, 2, 1]], QUAD[:, ::-1], 0.5, CLOTH)
    grid = make_mesh(*_grid(0.6, 24), 0.5, CLOTH)
    roof = make_mesh((SQUARE * 0.3)[:, [0, 2, 1]] + [0, 0.1, 0], QUAD[:, ::-1], 0.5, CLOTH)
    cameras = orbit_cameras(0, 12, 96)
    open_floor = renderer.render(grid, cameras)[0].astype(int)
    shaded = renderer.render(concatenate([grid, roof]), cameras)[0].astype(int)
    x, y, _ = cameras.project(torch.tensor([[0.0, 0.0, 0.1]])).numpy()[0, 0]
    at = int(y), int(x)
    assert floor.normals[0, 1] > 0.99 and shaded[at][1] < 0.75 * open_floor[at][1]


def test_lenses_are_see_through(renderer):
    sheet = square((0, 0, -0.1), 0.3, 0.7)
    images = {}
    for name, albedo in (("dark", 0.02), ("clear", 0.9)):
        lens = square((0, 0, 0.1), 0.5, albedo, LENS)
        images[name] = renderer.render(concatenate([lens, sheet]), orbit_cameras(0, 0, 64))[0].astype(int)
    plain = renderer.render(sheet, orbit_cameras(0, 0, 64))[0].astype(int)
    assert images["dark"][32, 32, 1] < 0.5 * plain[32, 32, 1] and images["clear"][32, 32, 1] > 0.85 * plain[32, 32, 1]
    assert images["dark"][32, 32, 3] == images["clear"][32, 32, 3] == 255, "a lens opens a hole in what is behind it"
    beside = images["clear"][32, 20, 3], images["dark"][32, 20, 3]
    assert 0 < beside[0] < beside[1] < 255


def test_light_hardly_reaches_into_hair(renderer):
    """A block of upright strands, cut open: its middle is darker than its outer face."""
    rng = np.random.default_rng(0)
    roots = rng.uniform(-0.3, 0.3, (2500, 2))
    heights = np.linspace(-0.3, 0.3, 5)
    points = np.stack([np.stack([roots[:, 0], np.full(len(roots), y), roots[:, 1]], 1) for y in heights], axis=1)
    block = ribbons(points, 0.008, 0.4)
    assert (block.material == HAIR).all()
    light = np.frombuffer(renderer.baked_light(block).read(), "f4").reshape(-1, 5)[:, :3].mean(axis=1)
    depth = 0.3 - np.abs(block.vertices[:, [0, 2]]).max(axis=1)
    level = np.abs(block.vertices[:, 1]) < 0.05
    assert light[level & (depth > 0.12)].mean() < 0.5 * light[level & (depth < 0.02)].mean()


def test_size_limits_and_missing_gl_are_one_line(renderer, monkeypatch):
    with pytest.raises(RenderError, match="at most") as error:
        renderer.render(square(material=GLOSSY), orbit_cameras(0, 0, 60_000))
    assert "\n" not in str(error.value)
    import moderngl

    def missing(**_):
        raise Exception("libEGL.so not found\nand more")

    monkeypatch.setattr(moderngl, "create_context", missing)
    with pytest.raises(RenderError, match=r"libEGL.so not found.*apt-get install") as error:
        Renderer()
    assert "\n" not in str(error.value)


def _grid(half: float, n: int):
    x, z = np.meshgrid(np.linspace(-half, half, n), np.linspace(-half, half, n), indexing="ij")
    i, j = np.meshgrid(np.arange(n - 1), np.arange(n - 1), indexing="ij")
    a = (i * n + j).ravel()
    faces = np.concatenate([np.stack([a, a + 1, a + n + 1], 1), np.stack([a, a + n + 1, a + n], 1)])
    return np.stack([x, np.zeros_like(x), z], -1).reshape(-1, 3), faces
