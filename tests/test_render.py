"""Volume rendering (E3), the placing of samples, and the distortion loss (E4), against formulas and slow loops."""

import math
from dataclasses import replace

import pytest
import torch
from toys import FieldDecoder, position_planes, soft_ball

from minirodin.cameras import orbit_cameras
from minirodin.render import (
    Occupancy,
    cell_centres,
    composite,
    distortion_loss,
    occupancy_from_planes,
    ray_box,
    ray_samples,
    render_rays,
    render_views,
    shade,
)

PLANES = position_planes(64)[None]


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def rays(n=300, seed=0, b=1):
    """Rays from outside towards the box, some of which miss it; (B, N, 3) each."""
    normal = torch.randn(3, b, n, 3, generator=torch.Generator().manual_seed(seed))
    origins = torch.nn.functional.normalize(normal[0], dim=-1) * 3
    return origins, torch.nn.functional.normalize(normal[1] * 0.9 - origins, dim=-1)


def random_occupancy(b=1, grid=6, seed=0, share=0.3, density=0.0) -> Occupancy:
    occupied = rand(b, grid, grid, grid, seed=seed) < share
    return Occupancy(torch.where(occupied, density, 0.0) * rand(b, grid, grid, grid, seed=seed + 1), occupied)


def ray(origin, direction):
    direction = torch.tensor(direction, dtype=torch.float32)
    return torch.tensor(origin, dtype=torch.float32), direction / direction.norm()


# -- the box ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin, direction, near, far",
    [
        ((0, 0, 3), (0, 0, -1), 2, 4),
        ((0.5, -0.5, -4), (0, 0, 1), 3, 5),  # parallel to four faces
        ((0, 0, 0), (0, 1, 0), 0, 1),  # from inside
        ((0, 0, 0.5), (0, 0, 1), 0, 0.5),
        ((0, 0, 0), (1, 1, 1), 0, 3**0.5),  # through a corner
        ((2, 2, 0), (-1, -1, 0), 2**0.5, 18**0.5),
        ((-3, 0.5, 0), (2, 0.5, 0), 4.25**0.5, 4.25**0.5),  # leaves by the top at the moment it enters the side
    ],
)
def test_box_by_hand(origin, direction, near, far):
    result = ray_box(*ray(origin, direction))
    torch.testing.assert_close(result, (torch.tensor(float(near)), torch.tensor(float(far))))


MISSES = [
    ((0, 0, 3), (0, 0, 1)),
    ((0, 2, 3), (0, 0, -1)),
    ((1.5, 0, 0), (0, 1, 0)),
    ((3, 3, 0), (-1, 1, 0)),
    ((9, 9, 9), (1, 0, 0)),
]


@pytest.mark.parametrize("origin, direction", MISSES)
def test_box_missed_is_of_no_length(origin, direction):
    near, far = ray_box(*ray(origin, direction))
    assert near == far >= 0


def test_box_against_marching():
    origins, directions = (r[0] for r in rays(200))
    near, far = ray_box(origins, directions)
    t = torch.linspace(0, 6, 6001)
    inside = ((origins[:, None] + directions[:, None] * t[:, None]).abs() <= 1).all(-1)
    torch.testing.assert_close(far - near, inside.sum(1) * 0.001, atol=2e-3, rtol=0)
    hit = inside.any(1)
    assert 50 < hit.sum() < 200
    torch.testing.assert_close(near[hit], t[inside[hit].float().argmax(1)], atol=2e-3, rtol=0)


# -- weights ------------------------------------------------------------------------------------------------------


def slow_composite(density, delta):
    weights, light = [], 1.0
    for s, d in zip(density, delta, strict=True):
        weights.append(light * (1 - math.exp(-s * d)))
        light *= math.exp(-s * d)
    return weights


def test_composite_against_a_loop():
    density, delta = rand(20, 9, dtype=torch.float64) * 30, rand(20, 9, seed=1, dtype=torch.float64) * 0.2
    for width in (delta, delta[:, :1]):  # one length a sample, one for all
        rows = zip(density.tolist(), width.expand(20, 9).tolist(), strict=True)
        expected = torch.tensor([slow_composite(s, d) for s, d in rows], dtype=torch.float64)
        torch.testing.assert_close(composite(density, width), expected, rtol=1e-12, atol=0)


def test_weights_sum_to_what_is_absorbed_and_never_above_one():
    density, delta = 10 ** (rand(2000, 24) * 8 - 4), 10 ** (rand(2000, 24, seed=1) * 4 - 4)
    weights = composite(density, delta)
    assert (weights >= 0).all() and (weights.sum(-1) <= 1 + 1e-6).all()
    torch.testing.assert_close(weights.sum(-1), -torch.expm1(-(density * delta).sum(-1)), rtol=1e-5, atol=1e-6)


def test_thin_matter_keeps_its_precision():
    weight = composite(torch.tensor([1e-9]), torch.tensor([1e-3]))
    torch.testing.assert_close(weight, torch.tensor([1e-12]), rtol=1e-5, atol=0)


def test_distortion_against_its_double_sum():
    k = 11
    weights = rand(7, k, dtype=torch.float64) / k
    t = rand(7, k, seed=1, dtype=torch.float64).sort(-1).values * 4
    delta = rand(7, k, seed=2, dtype=torch.float64)
    pairs = sum(weights[:, i] * weights[:, j] * (t[:, i] - t[:, j]).abs() for i in range(k) for j in range(k))
    for width in (delta, delta[:, :1]):
        expected = pairs + (weights.square() * width).sum(-1) / 3
        torch.testing.assert_close(distortion_loss(weights, t, width), expected, rtol=1e-12, atol=1e-14)


def test_distortion_prefers_compact_matter():
    t = torch.linspace(0, 1, 10)
    one, two = torch.zeros(10), torch.zeros(10)
    one[4] = 1.0
    two[[0, 9]] = 0.5
    delta = torch.full((1,), 0.1)
    assert distortion_loss(one, t, delta).item() == pytest.approx(0.1 / 3)
    assert distortion_loss(two, t, delta).item() == pytest.approx(2 * 0.25 * 1 + 0.5 * 0.1 / 3)


# -- where the samples go -----------------------------------------------------------------------------------------


def slow_used_bins(origin, direction, near, far, occupancy, bins):
    """Bins of one ray whose centre lies in an occupied cell that light still reaches."""
    grid, step, depth, used = occupancy.occupied.shape[-1], (far - near) / bins, 0.0, []
    for i in range(bins):
        x, y, z = (origin + direction * (near + step * (i + 0.5))).tolist()
        cell = tuple(min(max(int((v + 1) / 2 * grid), 0), grid - 1) for v in (z, y, x))
        if occupancy.occupied[0][cell] and depth < 7:
            used.append(i)
        depth += float(occupancy.density[0][cell]) * step
    return used


@pytest.mark.parametrize("density", [0.0, 25.0])
def test_samples_split_the_occupied_and_visible_length_evenly(density):
    bins, k, occupancy = 40, 13, random_occupancy(density=density)
    origins, directions = rays(150)
    jitter = rand(1, 150, k, seed=5)
    t, delta = ray_samples(origins, directions, occupancy, bins, k, jitter)
    clear = replace(occupancy, density=0 * occupancy.density)
    shortened = 0
    for n, (near, far) in enumerate(zip(*(v[0].tolist() for v in ray_box(origins, directions)), strict=True)):
        start, step = near, (far - near) / bins
        one = (origins[0, n], directions[0, n], near, far)
        used = slow_used_bins(*one, occupancy, bins)
        shortened += len(used) < len(slow_used_bins(*one, clear, bins))
        assert delta[0, n, 0].item() * k == pytest.approx(len(used) * step, rel=1e-4, abs=1e-6)
        if not used or step == 0:
            assert delta[0, n, 0] == 0
            continue
        # Sample i stands at (i + jitter) / K of the used length: bin number and fraction follow.
        place = (torch.arange(k) + jitter[0, n]) / k * len(used)
        expected = [start + step * (used[min(int(p), len(used) - 1)] + p % 1) for p in place.tolist()]
        torch.testing.assert_close(t[0, n], torch.tensor(expected), rtol=0, atol=1e-4)
        assert (t[0, n].diff() >= -1e-6).all()
    assert shortened == 0 if density == 0 else shortened > 20


def test_samples_lie_in_occupied_cells():
    grid, bins = 4, 256
    occupancy = random_occupancy(grid=grid, share=0.4)
    origins, directions = rays(400)
    t, delta = ray_samples(origins, directions, occupancy, bins, 16, rand(1, 400, 16, seed=9))
    points = origins[..., None, :] + directions[..., None, :] * t[..., None]
    points = points[0][delta[0, :, 0] > 0]
    lows = cell_centres(grid, "cpu")[occupancy.occupied[0].flatten()] - 1 / grid
    outside = torch.maximum(lows - points[..., None, :], points[..., None, :] - lows - 2 / grid).amax(-1).amin(-1)
    assert (outside < 3.5 / bins / 2 + 1e-5).all()  # to within half a bin
    assert (outside < 1e-5).float().mean() > 0.95


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_occupied_cell_by_hand(axis):
    """Cells are indexed [z, y, x]: a ray along an axis through the one cell gets all samples between its faces."""
    place = [1, 2, 3]  # x, y, z index of the cell among four: it starts at −0.5, 0, 0.5
    occupied = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    occupied[0, place[2], place[1], place[0]] = True
    origin, direction = torch.tensor([[[-0.25, 0.25, 0.75]]]), torch.eye(3)[axis].view(1, 1, 3)
    origin[..., axis] = -3
    t, delta = ray_samples(origin, direction, Occupancy(torch.zeros(1, 4, 4, 4), occupied), 64, 5)
    start = 2 + place[axis] * 0.5
    torch.testing.assert_close(t[0, 0], start + 0.5 * torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    torch.testing.assert_close(delta[0, 0, 0], torch.tensor(0.1))
    t, _ = ray_samples(origin, direction, Occupancy(torch.zeros(1, 4, 4, 4), occupied), 64, 5, jitter=0.0)
    torch.testing.assert_close(t[0, 0], start + 0.5 * torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8]))


def test_full_box_is_plain_uniform_quadrature():
    origins, directions = rays(b=2)
    t, delta = ray_samples(origins, directions, Occupancy.full(2, 5, "cpu"), 50, 10)
    near, far = ray_box(origins, directions)
    expected = near[..., None] + (far - near)[..., None] * (torch.arange(10) + 0.5) / 10
    torch.testing.assert_close(t, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(delta[..., 0] * 10, far - near, rtol=1e-5, atol=1e-6)


def test_what_lies_behind_opaque_matter_gets_no_samples():
    occupied = torch.ones(1, 8, 8, 8, dtype=torch.bool)
    density = torch.zeros(1, 8, 8, 8)
    density[0, 4] = 1000.0  # a wall at 0 < z < 0.25
    origin, direction = torch.tensor([[[0.1, 0.1, 3.0]]]), torch.tensor([[[0.0, 0.0, -1.0]]])
    t, _ = ray_samples(origin, direction, Occupancy(density, occupied), 64, 32)
    z = 3 - t[0, 0]
    assert z.min() > 0.25 - 2 / 64 - 1e-5 and z.max() > 0.9
    t, _ = ray_samples(origin * torch.tensor([1, 1, -1]), -direction, Occupancy(density, occupied), 64, 32)
    z = -3 + t[0, 0]
    assert z.max() < 2 / 64 + 1e-5 and z.min() < -0.9


def test_subjects_have_their_own_occupancy():
    occupied = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    occupied[0, 0], occupied[1, 3] = True, True  # low z, high z
    origins, directions = (v.expand(2, 1, 3) for v in ray((0.1, 0.1, 3), (0, 0, -1)))
    t, _ = ray_samples(origins, directions, Occupancy(torch.zeros(2, 4, 4, 4), occupied), 32, 4)
    z = 3 - t[:, 0]
    assert (z[0] < -0.5).all() and (z[1] > 0.5).all()


def test_jitter_moves_samples_within_their_stratum_without_bias():
    origins, directions = rays(1, seed=3)
    origins, directions = origins.expand(1, 4000, 3), directions.expand(1, 4000, 3)
    middle, delta = ray_samples(origins, directions, Occupancy.full(1, 4, "cpu"), 32, 6)
    t, _ = ray_samples(origins, directions, Occupancy.full(1, 4, "cpu"), 32, 6, rand(1, 4000, 6))
    assert ((t - middle).abs() <= delta / 2 + 1e-5).all()
    torch.testing.assert_close(t.mean(1), middle[:, 0], rtol=0, atol=0.02 * float(delta.max()))


def test_cell_centres():
    centres = cell_centres(2, "cpu")
    assert centres.tolist()[:3] == [[-0.5, -0.5, -0.5], [0.5, -0.5, -0.5], [-0.5, 0.5, -0.5]]  # x fastest, then y


# -- occupancy ----------------------------------------------------------------------------------------------------


def test_occupancy_of_a_ball():
    grid, centre, radius = 16, (0.2, -0.15, 0.1), 0.6
    occupancy = occupancy_from_planes(PLANES, FieldDecoder(soft_ball(centre, radius, sharpness=200)), grid)
    distance = (cell_centres(grid, "cpu") - torch.tensor(centre)).norm(dim=-1).view(grid, grid, grid)
    occupied = occupancy.occupied[0]
    assert occupied[distance < radius + 0.05].all()
    assert not occupied[distance > radius + 3.5 * 2 / grid].any()  # one cell around, counted along diagonals
    inner = distance < radius - 3 * 3**0.5 / grid  # the cell and its neighbours
    assert inner.any() and (occupancy.density[0][inner] > 55).all()
    assert (occupancy.density[0][distance > radius - 3**0.5 / grid] < 31).all()  # it bounds σ in the whole cell


def test_a_cell_is_as_thin_as_its_thinnest_part():
    """Matter in the right half of every cell ends no ray, and makes every cell worth its samples."""
    stripes = FieldDecoder(lambda p: 60.0 * ((p[..., 0] + 1) * 4 % 1 > 0.5))
    occupancy = occupancy_from_planes(PLANES, stripes, 8)
    assert (occupancy.density == 0).all() and occupancy.occupied.all()


def test_occupancy_within_a_hull():
    within = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    within[0, :, :, :4] = True  # x < 0
    occupancy = occupancy_from_planes(PLANES, FieldDecoder(soft_ball(radius=0.6)), 8, within=within)
    free = occupancy_from_planes(PLANES, FieldDecoder(soft_ball(radius=0.6)), 8)
    assert torch.equal(occupancy.occupied[..., :3], free.occupied[..., :3])
    assert not occupancy.occupied[..., 4:].any() and not occupancy.density[..., 4:].any()


def test_a_thin_subject_keeps_its_cells():
    """Before anything is dense, what there is must be kept: a ray without samples has no gradient ever again."""
    constant = FieldDecoder(lambda p: torch.full(p.shape[:-1], 0.4))
    assert occupancy_from_planes(PLANES, constant, 16).occupied.all()
    haze = FieldDecoder(soft_ball(radius=0.6, density=0.5))
    occupied = occupancy_from_planes(PLANES, haze, 16).occupied[0]
    distance = cell_centres(16, "cpu").norm(dim=-1).view(16, 16, 16)
    assert occupied[distance < 0.6].all()
    within = (distance < 0.3)[None]
    assert torch.equal(occupancy_from_planes(PLANES, haze, 16, within=within).occupied, within)
    # Also beside a dense subject in the same batch.
    planes = torch.cat([PLANES, PLANES + 10])
    both = FieldDecoder(lambda p: torch.where(p[..., 0] > 5, 0.5, 60.0) * (((p + 5) % 10 - 5).norm(dim=-1) < 0.6))
    assert occupancy_from_planes(planes, both, 16).occupied.flatten(1).any(1).all()


# -- rendering ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.01, 0.7, 3.0, 20.0])
@pytest.mark.parametrize("samples, jitter", [(1, 0.5), (7, 0.5), (16, "random")])
def test_slab_of_constant_density_is_exact(sigma, samples, jitter):
    """Mission E3: alpha = 1 − exp(−σ d) whatever the number and place of the samples."""
    origins, directions = rays(200)
    near, far = ray_box(origins, directions)
    jitter = rand(1, 200, samples) if jitter == "random" else jitter
    colour = torch.tensor([0.2, 0.5, 0.9])
    slab = FieldDecoder(lambda p: torch.full(p.shape[:-1], sigma), lambda p: colour.expand_as(p))
    out = render_rays(PLANES, slab, origins, directions, Occupancy.full(1, 4, "cpu"), 32, samples, jitter)
    alpha = -torch.expm1(-sigma * (far - near))
    torch.testing.assert_close(out.alpha, alpha, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.rgb, alpha[..., None] * colour, rtol=1e-4, atol=1e-6)


def test_half_a_slab_through_the_occupancy():
    """Matter only where z < 0, known to the grid: the empty half costs no samples and the result stays exact."""
    half = FieldDecoder(lambda p: torch.where(p[..., 2] < 0, 2.0, 0.0))
    occupied = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    occupied[0, :4] = True
    origin, direction = torch.tensor([[[0.1, 0.2, 3.0]]]), torch.tensor([[[0.0, 0.0, -1.0]]])
    out = render_rays(PLANES, half, origin, direction, Occupancy(torch.zeros(1, 8, 8, 8), occupied), 32, 4)
    assert out.alpha.item() == pytest.approx(1 - math.exp(-2.0), rel=1e-5)
    assert (out.t >= 3).all()


def test_rays_without_matter_are_nothing():
    origins, directions = rays(50)
    empty = Occupancy(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.bool))
    out = render_rays(PLANES, FieldDecoder(soft_ball()), origins, directions, empty, 16, 4)
    for value in (out.alpha, out.rgb, out.depth, out.weights, out.delta):
        assert (value == 0).all()
    torch.testing.assert_close(out.over(torch.tensor([1.0, 0, 0.5])), torch.tensor([1.0, 0, 0.5]).expand(1, 50, 3))
    away = render_rays(PLANES, FieldDecoder(soft_ball()), origins * 3, -directions, Occupancy.full(1, 4, "cpu"), 16, 4)
    assert (away.alpha == 0).all() and away.rgb.isfinite().all() and away.depth.isfinite().all()


def test_over_a_background():
    thin = FieldDecoder(lambda p: torch.full(p.shape[:-1], 0.5), lambda p: torch.ones_like(p))
    origin, direction = torch.tensor([[[0.0, 0.0, 3.0]]]), torch.tensor([[[0.0, 0.0, -1.0]]])
    out = render_rays(PLANES, thin, origin, direction, Occupancy.full(1, 4, "cpu"), 16, 8)
    alpha = 1 - math.exp(-1)
    expected = torch.tensor([alpha + (1 - alpha) * v for v in (0.0, 0.5, 1.0)])
    torch.testing.assert_close(out.over(torch.tensor([0.0, 0.5, 1.0]))[0, 0], expected)


def dense_quadrature(decoder, origins, directions, samples=500):
    """Plain quadrature over the whole box in float64: no occupancy, no jitter, one loop over depth."""
    near, far = ray_box(origins.double(), directions.double())
    step = (far - near) / samples
    light, rgb, depth = torch.ones_like(near), torch.zeros(*near.shape, 3, dtype=torch.float64), torch.zeros_like(near)
    for i in range(samples):
        t = near + step * (i + 0.5)
        p = origins + directions * t[..., None]
        density, colour = decoder(p, directions)
        weight = light * (1 - torch.exp(-density * step))
        rgb, depth, light = rgb + weight[..., None] * colour, depth + weight * t, light - weight
    return rgb, 1 - light, depth


def two_balls():
    a, b = soft_ball((0.35, 0.0, 0.1), 0.35, density=40.0), soft_ball((-0.3, 0.3, -0.3), 0.3, density=5.0)
    return FieldDecoder(lambda p: a(p) + b(p), lambda p: 0.5 + 0.5 * torch.sin(4 * p))


def test_guided_rendering_equals_dense_quadrature():
    decoder, cameras = two_balls(), orbit_cameras(25, 10, 32)
    picture = render_views(PLANES[0], decoder, cameras, bins=128, samples=64, grid=32)[0].view(-1, 4)
    rgb, alpha, _ = dense_quadrature(decoder, *cameras.rays(0))
    for ours, truth in ((picture[:, 3], alpha), (picture[:, :3] * picture[:, 3:], rgb)):
        assert (ours - truth).abs().max() < 0.04 and (ours - truth).abs().mean() < 0.002  # thin rims are given up
    assert alpha.max() > 0.99 and alpha.min() < 0.01
    # With few samples over the whole box it is not that close.
    o, d = (r[None] for r in cameras.rays(0))
    occupancy = occupancy_from_planes(PLANES, decoder, 32)
    few = (render_rays(PLANES, decoder, o, d, where, 128, 8) for where in (occupancy, Occupancy.full(1, 32, "cpu")))
    guided, plain = ((out.rgb[0] - rgb).square().mean() for out in few)
    assert guided < 0.2 * plain


def test_depth_is_that_of_the_surface():
    radius = 0.5
    ball = FieldDecoder(soft_ball(radius=radius, sharpness=400, density=800.0))
    cameras = orbit_cameras(0, 0, 33)
    origins, directions = (r[None] for r in cameras.rays(0))
    occupancy = occupancy_from_planes(PLANES, ball, 32)
    out = render_rays(PLANES, ball, origins, directions, occupancy, 256, 128)
    b = (origins * directions).sum(-1)
    inside = b.square() - 3.5**2 + radius**2
    surface = -b - inside.clamp(min=0).sqrt()
    clear = inside > 0.08  # away from the rim
    assert (out.alpha[clear] > 0.98).all()
    torch.testing.assert_close((out.depth / out.alpha)[clear], surface[clear], rtol=0, atol=0.01)
    assert (out.depth[inside < -0.1] < 1e-6).all()


def blobs():
    """Red at +x, green at +y, blue at +z: shows which way a picture lies."""
    centres = 0.6 * torch.eye(3)
    near = lambda p: torch.stack([(p - c).norm(dim=-1) for c in centres.to(p)], -1)  # noqa: E731
    density = lambda p: 60 * torch.sigmoid(60 * (0.15 - near(p).amin(-1)))  # noqa: E731
    return FieldDecoder(density, lambda p: (near(p) == near(p).amin(-1, keepdim=True)).to(p))


def place_of(picture, channel, size=64):
    """Mean (x right, y up) of a colour in a picture, in −1 … 1, or None when it cannot be seen."""
    mass = picture[..., channel] * picture[..., 3]
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    if mass.sum() < 1:
        return None
    return [round(float(v), 1) for v in ((mass.sum(0) @ axis) / mass.sum(), -(mass.sum(1) @ axis) / mass.sum())]


@pytest.mark.parametrize(
    "azimuth, elevation, red, green, blue",
    [
        (0, 0, [0.6, 0], [0, 0.6], [0, 0]),
        (90, 0, [0, 0], [0, 0.6], [-0.6, 0]),  # camera on +x: the front looks to the left
        (180, 0, [-0.6, 0], [0, 0.6], [0, 0]),
        (-90, 0, [0, 0], [0, 0.6], [0.6, 0]),
        (0, 60, [0.6, 0], [0, 0.3], [0, -0.6]),  # from above the front is below
    ],
)
def test_pictures_lie_the_right_way(azimuth, elevation, red, green, blue):
    picture = render_views(PLANES[0], blobs(), orbit_cameras(azimuth, elevation, 64), samples=48, grid=32)[0]
    for channel, expected in enumerate((red, green, blue)):
        assert place_of(picture, channel) == pytest.approx(expected, abs=0.11), ("red", "green", "blue")[channel]


def test_pictures_have_straight_alpha_and_the_cameras_shape():
    colour = torch.tensor([0.2, 0.5, 0.9])
    haze = FieldDecoder(lambda p: torch.full(p.shape[:-1], 0.4), lambda p: colour.expand_as(p))
    cameras = replace(orbit_cameras([0, 40], 0, 12), width=20)
    pictures = render_views(PLANES[0], haze, cameras, grid=16)
    assert pictures.shape == (2, 12, 20, 4) and pictures.dtype == torch.float32
    seen = pictures[..., 3] > 0.01
    assert (pictures[..., 3] < 0.8).all() and seen.any()
    torch.testing.assert_close(pictures[seen][:, :3], colour.expand(int(seen.sum()), 3))


def test_nothing_to_see():
    empty = FieldDecoder(lambda p: torch.zeros(p.shape[:-1]))
    assert (render_views(PLANES[0], empty, orbit_cameras(0, 0, 8), grid=8) == 0).all()
    occupied = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    nothing = Occupancy(torch.zeros(1, 8, 8, 8), occupied)
    assert (render_views(PLANES[0], two_balls(), orbit_cameras(0, 0, 8), nothing) == 0).all()


def test_chunks_change_nothing():
    cameras = orbit_cameras(10, 5, 20)
    whole = render_views(PLANES[0], two_balls(), cameras, grid=16)
    parts = render_views(PLANES[0], two_balls(), cameras, grid=16, chunk=37)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_gradients_reach_planes_and_decoder_only_through_shading():
    planes = PLANES.clone().requires_grad_()
    scale = torch.tensor(3.0, requires_grad=True)
    decoder = FieldDecoder(lambda p: scale * torch.sigmoid(p[..., 0]), lambda p: torch.sigmoid(p))
    origins, directions = rays(20)
    t, delta = ray_samples(origins, directions, Occupancy.full(1, 4, "cpu"), 16, 4)
    shade(planes, decoder, origins, directions, t, delta).rgb.sum().backward()
    assert planes.grad.abs().sum() > 0 and scale.grad.abs() > 0 and not t.requires_grad


def test_views_direction_reaches_the_colour():
    class Lit(FieldDecoder):
        def __call__(self, features, directions):
            return self.density(features), 0.5 + 0.5 * directions

    decoder = Lit(lambda p: torch.full(p.shape[:-1], 50.0))
    cameras = orbit_cameras([0, 90, 180], 0, 3)  # the middle ray of each looks at the centre
    pictures = render_views(PLANES[0], decoder, cameras, grid=4)
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.5, 1.0]])
    torch.testing.assert_close(pictures[:, 1, 1, :3], expected, rtol=0, atol=1e-4)
