"""What the images say: the hull of the masks, the rays drawn from them, and the views that are never looked at."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import ball_capture, trace_ball

from minirodin.cameras import Cameras, capture_cameras, look_at
from minirodin.errors import DataError
from minirodin.observations import Observations
from minirodin.render import cell_centres

GRID = 24


@pytest.fixture(scope="module")
def captures():
    """Two balls of different size and colour seen from different sides."""
    return [ball_capture("a", 10, 32, radius=0.6), ball_capture("b", 10, 32, radius=0.35, seed=1, tint=(0.2, 0.5, 0.9))]


@pytest.fixture(scope="module")
def observations(captures):
    return Observations(captures, GRID, "cpu")


def draw(observations, subjects=(0, 1), rays=2000, seed=0):
    return observations.sample_rays(torch.tensor(subjects), rays, torch.Generator().manual_seed(seed))


def source_of(batch, subject: int, cameras: Cameras):
    """View, column and row of every ray of a subject by geometry alone, and its distance from the pixel's centre."""
    origins, directions = batch.origins[subject].double(), batch.directions[subject].double()
    view = torch.cdist(origins, cameras.camera_to_world[:, :3, 3]).argmin(1)
    place = cameras.project(origins + 2 * directions)[view, torch.arange(len(view)), :2]
    pixel = place.floor().long()
    return view, pixel[:, 0], pixel[:, 1], (place - pixel - 0.5).abs().max()


def test_hull_holds_the_ball_and_little_else(observations):
    distance = cell_centres(GRID, "cpu").norm(dim=-1).view(GRID, GRID, GRID)
    for hull, radius in zip(observations.hull, (0.6, 0.35), strict=True):
        assert hull[distance < radius].all()
        assert hull.sum() < 2.2 * (distance < radius + 1 / GRID).sum()
        assert not hull[(distance > radius + 0.45) & (distance < 1)].any()  # further out, some camera may not see it


def test_hull_is_indexed_z_y_x():
    cameras, centre = capture_cameras(10, 32, 0), (0.3, 0.25, -0.4)
    capture = replace(ball_capture(views=10, size=32), images=trace_ball(cameras, radius=0.3, centre=centre))
    hull = Observations([capture], GRID, "cpu").hull[0]
    inner = (cell_centres(GRID, "cpu").abs() < 0.8).all(1)  # further out, some camera may not see it
    found = cell_centres(GRID, "cpu")[hull.flatten() & inner].mean(0)
    torch.testing.assert_close(found, torch.tensor(centre), rtol=0, atol=0.08)


def test_hull_keeps_what_a_camera_cannot_see():
    """One camera close by sees a part of the box only: what lies outside its picture is not ruled out."""
    cameras = capture_cameras(4, 32, 0)
    poses, intrinsics = cameras.camera_to_world.clone(), cameras.intrinsics.clone()
    poses[1] = look_at((0.9, 0, 3.5), (0.9, 0, 0))
    intrinsics[1, :2] *= 6
    cameras = replace(cameras, camera_to_world=poses, intrinsics=intrinsics)
    capture = replace(ball_capture(views=4, size=32), cameras=cameras, images=trace_ball(cameras))
    hull = Observations([capture], GRID, "cpu").hull[0]
    distance = cell_centres(GRID, "cpu").norm(dim=-1).view(GRID, GRID, GRID)
    assert hull[distance < 0.6].all()


def test_rays_have_the_colour_of_their_pixel(captures, observations):
    batch = draw(observations)
    assert batch.origins.shape == batch.directions.shape == (2, 2000, 3) and batch.rgba.shape == (2, 2000, 4)
    torch.testing.assert_close(batch.directions.norm(dim=-1), torch.ones(2, 2000))
    for subject, capture in enumerate(captures):
        view, column, row, off = source_of(batch, subject, capture.cameras)
        assert off < 1e-3
        expected = torch.from_numpy(capture.images)[view, row, column].float() / 255
        assert torch.equal(batch.rgba[subject], expected)


def test_held_out_views_are_never_drawn(captures, observations):
    train, test = captures[0].held_out()
    assert test
    for subject, capture in enumerate(captures):
        view = source_of(draw(observations), subject, capture.cameras)[0]
        assert set(view.tolist()) == set(train)


def test_every_pixel_of_the_subject_is_drawn_and_its_rim_but_not_what_is_far(captures, observations):
    batch = draw(observations, rays=60_000)
    for subject, capture in enumerate(captures):
        view, column, row, _ = source_of(batch, subject, capture.cameras)
        drawn = np.zeros(capture.images.shape[:3], bool)
        drawn[view, row, column] = True
        train = capture.held_out()[0]
        mask = capture.images[train][..., 3] > 0
        assert drawn[train][mask].all()  # everything of the subject
        assert (drawn[train] & ~mask).sum() > 20 * len(train)  # background beside it: its outline is learned
        assert drawn.sum() < (0.9 if subject == 0 else 0.6) * mask.size


def test_rays_are_uniform_over_the_pixels_near_the_subject(captures, observations):
    batch = draw(observations, rays=40_000)
    view, column, row, _ = source_of(batch, 0, captures[0].cameras)
    count = torch.bincount((view * 32 + row) * 32 + column).double()
    count = count[count > 0]
    assert 0.8 < count.var() / count.mean() < 1.2  # as Poisson


def test_rays_follow_the_generator(observations):
    a, b, c = draw(observations, seed=1), draw(observations, seed=1), draw(observations, seed=2)
    assert torch.equal(a.rgba, b.rgba) and torch.equal(a.directions, b.directions)
    assert not torch.equal(a.directions, c.directions)


def test_subjects_are_told_apart(captures, observations):
    both, swapped = draw(observations, (0, 1)), draw(observations, (1, 0))
    assert source_of(both, 1, captures[1].cameras)[3] < 1e-3 < source_of(both, 1, captures[0].cameras)[3]
    assert source_of(swapped, 0, captures[1].cameras)[3] < 1e-3
    torch.testing.assert_close(observations.hull_occupancy(torch.tensor([1])).occupied[0], observations.hull[1])


def test_background_of_rgb_images_is_known_and_of_rgba_free(captures):
    rgb = replace(captures[1], has_alpha=False, background=(0.25, 0.5, 1.0))
    background = Observations([captures[0], rgb], 8, "cpu").background
    assert background[0].isnan().all() and background[1].tolist() == [0.25, 0.5, 1.0]


def test_images_without_alpha_leave_the_whole_box_open(captures):
    images = captures[0].images.copy()
    images[..., 3] = 255
    observations = Observations([replace(captures[0], images=images, has_alpha=False)], 8, "cpu")
    assert observations.hull.all()
    view, column, row, _ = source_of(draw(observations, (0,), 40_000), 0, captures[0].cameras)
    assert len(set(zip(view.tolist(), row.tolist(), column.tolist(), strict=True))) > 0.95 * 9 * 32 * 32


def test_pixels_that_are_not_square(captures):
    """Twice as many rows as columns over the same view: the hull must not shrink along one axis."""
    cameras = capture_cameras(10, 32, 0).resized(20, 40)
    capture = replace(captures[0], cameras=cameras, images=trace_ball(cameras))
    observations = Observations([capture], GRID, "cpu")
    distance = cell_centres(GRID, "cpu").norm(dim=-1).view(GRID, GRID, GRID)
    assert observations.hull[0][distance < 0.6].all()
    batch = draw(observations, (0,))
    view, column, row, off = source_of(batch, 0, cameras)
    assert off < 1e-3 and row.min() < 10 and row.max() >= 30
    assert torch.equal(batch.rgba[0], torch.from_numpy(capture.images)[view, row, column].float() / 255)


def test_what_cannot_be_fitted_together(captures):
    with pytest.raises(DataError, match="differ in views or size"):
        Observations([captures[0], ball_capture("c", views=9, size=32)], 8, "cpu")
    with pytest.raises(DataError, match="nothing inside the box"):
        Observations([replace(captures[0], images=np.zeros_like(captures[0].images))], 8, "cpu")


def test_camera_at_the_origin(captures):
    poses = captures[0].cameras.camera_to_world.clone()
    poses[1, :3, 3] = 0
    cameras = replace(captures[0].cameras, camera_to_world=poses)
    assert Observations([replace(captures[0], cameras=cameras)], 8, "cpu").hull.any()
