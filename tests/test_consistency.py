"""Warping by rendered depth, against scenes that can be computed by hand, and what neighbouring views disagree in."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toys import FieldDecoder, position_planes, soft_ball

from minirodin.cameras import orbit_cameras
from minirodin.consistency import disagreement, surface, view_consistency, warp
from minirodin.errors import DataError
from minirodin.render import render_views

SIZE = 96


def wall(cameras, z=0.0, half=9.0):
    """Distances (N, H, W) to a square of the plane z = const; NaN beside it. And its points (N, H, W, 3)."""
    depths, places = [], []
    for view in range(len(cameras)):
        origins, directions = cameras.rays(view)
        t = (z - origins[:, 2]) / directions[:, 2]
        points = origins + t[:, None] * directions
        t[(points[:, :2].abs() > half).any(1)] = torch.nan
        depths.append(t.view(cameras.height, cameras.width))
        places.append(points.view(cameras.height, cameras.width, 3))
    return torch.stack(depths), torch.stack(places)


def paint(points):
    """A smooth picture (N, 3, H, W) of where on the wall a pixel looks."""
    return 0.5 + 0.4 * torch.sin(3 * points + torch.tensor([0.0, 1.0, 2.0])).movedim(-1, 1)


def test_the_same_camera_moves_nothing():
    cameras = orbit_cameras([20, -70], [5, 30], SIZE)
    image, depth = torch.rand(2, 4, SIZE, SIZE), 3 + torch.rand(2, SIZE, SIZE)
    depth[0, 30:40, 50:60] = torch.nan
    moved, valid = warp(image, depth, depth, cameras, cameras)
    least = F.max_pool2d(F.pad(depth.isnan().float(), (1,) * 4, value=1), 3, 1) == 0  # rounding decides at the edges
    assert (valid | ~least).all() and not valid[depth.isnan()].any() and least.float().mean() > 0.9
    where = valid[:, None].expand_as(image)
    torch.testing.assert_close(moved[where], image[where], atol=1e-3, rtol=0)


@pytest.mark.parametrize("small", [SIZE, SIZE // 2])
def test_a_wall_is_moved_to_where_the_other_camera_sees_it(small):
    """Turned, lifted, of another size and focal length; depths of the views' size or half of it."""
    a, b = orbit_cameras([10, -25], [0, 20], SIZE), orbit_cameras([-15, 5], [10, -5], 80, fov=0.5)
    (_, points_a), (_, points_b) = wall(a), wall(b)
    depths = [wall(c.resized(small, small))[0] for c in (a, b)]
    moved, valid = warp(paint(points_b), *depths, a, b)
    for view in range(2):
        seen = b[view].project(points_a[view].view(-1, 3))[0, :, :2].view(SIZE, SIZE, 2)
        margin = 0.5 + torch.tensor([-0.1, 0.1])  # where rounding may decide
        least, most = (((seen > m) & (seen < 80 - m)).all(-1) for m in margin.flip(0))
        if small == SIZE:
            assert (valid[view] | ~least).all() and (most | ~valid[view]).all()
        assert 0.5 < valid[view].float().mean() < 1
    error = (moved - paint(points_a)).abs().amax(1)[valid]
    assert error.max() < 0.01
    assert (paint(points_b.new_zeros(2, SIZE, SIZE, 3)) - paint(points_a)).abs().mean() > 0.1


def test_what_is_hidden_in_the_other_view_is_not_valid():
    """A small board before the wall: its shadow on the wall, as camera b would cast it, is left out."""
    a, b = orbit_cameras(15, 0, SIZE), orbit_cameras(-15, 0, SIZE)
    depths, board = [], 0.3
    for camera in (a, b):
        front, back = wall(camera, 0.5, board)[0], wall(camera)[0]
        depths.append(torch.where(front.isnan(), back, front))
    _, valid = warp(torch.zeros(1, 1, SIZE, SIZE), *depths, a, b)
    on_wall = wall(a, 0.5, board)[0].isnan()
    points, eye = wall(a)[1], b.camera_to_world[0, :3, 3].float()
    crossing = eye + (points - eye) * ((0.5 - eye[2]) / (0.0 - eye[2]))
    off = crossing[..., :2].abs().amax(-1) - board  # how far from the board's edge the line of sight passes it
    hidden, free = on_wall & (off < -0.04), on_wall & (off > 0.04)
    assert hidden.sum() > 200 and not valid[hidden].any()
    x, y, _ = b.project(points.view(-1, 3))[0].view(SIZE, SIZE, 3).unbind(-1)
    seen = (x > 1) & (x < SIZE - 1) & (y > 1) & (y < SIZE - 1)
    edge = F.max_pool2d((~on_wall).float()[None], 5, 1, 2)[0] > 0  # depths of board and wall mix there
    assert (valid | ~(free & seen[None] & ~edge)).all()


def test_nothing_is_valid_behind_a_camera_or_where_no_surface_is():
    a = orbit_cameras(0, 0, SIZE)
    away = replace(a, camera_to_world=a.camera_to_world.clone())
    away.camera_to_world[:, :3, 3] *= -1  # as far behind the wall, and looking away from it
    depth, nothing = wall(a)[0], torch.full((1, SIZE, SIZE), torch.nan)
    image = torch.rand(1, 3, SIZE, SIZE)
    for where in ((depth, depth, a, away), (nothing, depth, a, a), (depth, nothing, a, a)):
        moved, valid = warp(image, *where)
        assert not valid.any() and moved.isfinite().all()


def test_the_gradient_reaches_both_pictures_and_is_finite():
    a, b = orbit_cameras(0, 0, SIZE), orbit_cameras(8, 0, SIZE)
    depths = [wall(c, half=0.7)[0] for c in (a, b)]
    images = [torch.rand(1, 3, SIZE, SIZE, requires_grad=True) for _ in range(2)]
    difference, valid = disagreement(*images, *depths, a, b)
    difference.sum().backward()
    assert valid.any() and not difference[~valid].any()
    for image in images:
        assert image.grad.isfinite().all() and (image.grad != 0).any(1).float().mean() > 0.2


def test_consistency_is_the_mean_difference_over_what_both_see():
    cameras = orbit_cameras([-10, 0, 10], 5, SIZE)
    depths, points = wall(cameras, half=0.8)
    steady = paint(points)
    assert view_consistency(steady, depths, cameras) < 0.005
    step = torch.tensor([0.0, 0.1, -0.2]).view(3, 1, 1, 1)  # neighbours differ by 0.1 and 0.3
    assert view_consistency(steady + step, depths, cameras) == pytest.approx(0.2, abs=0.01)
    beside = steady + depths.isnan()[:, None] * torch.rand(3, 1, 1, 1)  # what is behind counts for nothing
    assert view_consistency(beside, depths, cameras) < 0.01
    with pytest.raises(DataError, match=r"^neighbouring views show nothing in common: give .*$"):
        view_consistency(steady, torch.full_like(depths, torch.nan), cameras)
    with pytest.raises(DataError, match=r"^1 views have no neighbours: give at least 2$"):
        view_consistency(steady[:1], depths[:1], cameras[:1])


def test_views_with_depth_are_the_same_views_and_their_surface_is_the_balls():
    cameras, radius = orbit_cameras([0, 40], [0, 20], 48), 0.5
    scene = position_planes(), FieldDecoder(soft_ball(radius=radius, sharpness=200, density=200))
    plain, deep = (render_views(*scene, cameras, None, 96, 96, 32, depth=depth) for depth in (False, True))
    assert torch.equal(deep[..., :4], plain) and deep.shape[-1] == 5
    depths = surface(deep)
    for view in range(2):
        origins, directions = cameras.rays(view)
        b = (origins * directions).sum(-1)
        root = b.square() - origins.square().sum(-1) + radius**2
        inner = (root > 0.05).view(48, 48)
        true = (-b - root.clamp_min(0).sqrt()).view(48, 48)
        assert inner.sum() > 200 and (depths[view] - true).abs()[inner].max() < 0.02
        assert depths[view][(root < -0.05).view(48, 48)].isnan().all()
        assert deep[view].isfinite().all() and not deep[view, 0, 0, 4]


def test_the_depth_of_something_thin_is_where_it_is():
    """Not less for what shines through it; and it is no surface."""
    cameras, thin = orbit_cameras(0, 0, 24), FieldDecoder(soft_ball(radius=0.5, sharpness=200, density=0.8))
    deep = render_views(position_planes(), thin, cameras, None, 96, 96, 32, depth=True)
    middle = deep[0, 11:13, 11:13]
    assert middle[..., 3].min() > 0.4 and middle[..., 3].max() < 0.7
    assert (middle[..., 4] - 3.45).abs().max() < 0.05  # before the middle of 3.0 … 4.0, whose front weighs more
    assert surface(deep).isnan().all()
