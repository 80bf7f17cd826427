"""Tri-planes (E1, E5c, E10): which plane sees which axis, look-ups against a loop, resizing, roll-out."""

import itertools
import math

import numpy as np
import pytest
import torch

from minirodin.triplane import (
    plane_statistics,
    resize_planes,
    rollout,
    sample_planes,
    sample_planes_reference,
    standardise,
    total_variation,
    unroll,
    unstandardise,
)

UV, VW, WU = 0, 1, 2
X, Y, Z = 0, 1, 2
NAMES = {UV: (X, Y), VW: (Y, Z), WU: (Z, X)}  # (column, row): first letter, second letter; written out again on purpose


def random_planes(b=2, c=3, r=6, seed=0, dtype=torch.float64):
    return torch.randn(b, 3, c, r, r, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_points(b=2, m=200, scale=1.0, seed=1):
    return (torch.rand(b, m, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * scale


def naive_look_up(plane: np.ndarray, column: float, row: float) -> np.ndarray:
    """Bilinear look-up on one plane (C, R, R): texel i has its value at −1 + (2i + 1)/R, borders are continued."""
    r = plane.shape[-1]
    gx = min(max((column + 1) * r / 2 - 0.5, 0), r - 1)
    gy = min(max((row + 1) * r / 2 - 0.5, 0), r - 1)
    total = 0
    for i in (math.floor(gx), math.floor(gx) + 1):
        for j in (math.floor(gy), math.floor(gy) + 1):
            weight = max(0, 1 - abs(gx - i)) * max(0, 1 - abs(gy - j))
            if weight:
                total = total + weight * plane[:, j, i]
    return total


def naive_sample(planes, points) -> torch.Tensor:
    out = np.zeros((*points.shape[:2], planes.shape[2]))
    for b, m in itertools.product(range(points.shape[0]), range(points.shape[1])):
        for plane, (column, row) in NAMES.items():
            out[b, m] += naive_look_up(planes[b, plane].numpy(), float(points[b, m, column]), float(points[b, m, row]))
    return torch.from_numpy(out)


# -- look-ups -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis, blind", [(Y, WU), (Z, UV), (X, VW)])
def test_moving_along_an_axis_changes_two_planes_and_not_the_third(axis, blind):
    planes = random_planes(b=1)
    points = random_points(b=1) * 0.8
    moved = points.clone()
    moved[..., axis] += 0.15
    for plane in (UV, VW, WU):
        alone = torch.zeros_like(planes)
        alone[:, plane] = planes[:, plane]
        change = (sample_planes(alone, moved) - sample_planes(alone, points)).abs().amax(-1)
        assert (change == 0).all() if plane == blind else (change > 1e-3).all()


@pytest.mark.parametrize("points", ["random", "outside", "centres", "edges"])
def test_look_ups_against_a_loop(points):
    r = 6
    planes = random_planes(r=r)
    centres = (torch.arange(r, dtype=torch.float64) + 0.5) / r * 2 - 1
    edges = torch.linspace(-1, 1, r + 1, dtype=torch.float64)
    points = {
        "random": random_points(),
        "outside": random_points(scale=3.0),
        "centres": torch.cartesian_prod(centres, centres, centres).expand(2, -1, 3),
        "edges": torch.cartesian_prod(edges, edges, edges).expand(2, -1, 3),
    }[points]
    torch.testing.assert_close(sample_planes(planes, points), naive_sample(planes, points), rtol=0, atol=1e-12)


def test_texel_centres_are_the_texels_themselves():
    planes = torch.zeros(1, 3, 1, 4, 4)
    planes[0, VW, 0, 3, 1] = 7.0  # row 3 is z = 0.75, column 1 is y = −0.25
    points = torch.tensor([[[0.3, -0.25, 0.75], [0.9, -0.25, 0.75], [0.3, 0.75, -0.25], [0.3, -0.5, 0.75]]])
    torch.testing.assert_close(sample_planes(planes, points)[0, :, 0], torch.tensor([7.0, 7.0, 0.0, 3.5]))


def test_features_are_summed_not_averaged_or_multiplied():
    planes = torch.zeros(1, 3, 2, 4, 4) + torch.tensor([[1.0, 10], [2, 20], [4, 40]])[None, :, :, None, None]
    torch.testing.assert_close(sample_planes(planes, torch.zeros(1, 1, 3))[0, 0], torch.tensor([7.0, 70.0]))


def test_subjects_do_not_mix():
    planes, points = random_planes(b=3), random_points(b=3)
    together = sample_planes(planes, points)
    for b in range(3):
        torch.testing.assert_close(together[b], sample_planes(planes[b : b + 1], points[b : b + 1])[0])


@pytest.mark.parametrize("turn", [1, 2])
def test_cyclic_permutation_of_axes_permutes_planes(turn):
    planes, points = random_planes(), random_points()
    # The axis that was called x is now called y (turn 1): plane uv becomes vw, and nothing is transposed.
    turned = sample_planes(planes.roll(turn, dims=1), points.roll(turn, dims=-1))
    torch.testing.assert_close(turned, sample_planes(planes, points), rtol=0, atol=1e-12)


def test_gradient_reaches_only_the_texels_a_point_touches():
    planes = torch.zeros(1, 3, 2, 4, 4, requires_grad=True)
    # x = −0.25 and z = 0.75 are centres of texels 1 and 3; y = 0 lies midway between texels 1 and 2.
    sample_planes(planes, torch.tensor([[[-0.25, 0.0, 0.75]]])).sum().backward()
    expected = torch.zeros(3, 4, 4)
    expected[UV, 1:3, 1] = 0.5  # column x, row y
    expected[VW, 3, 1:3] = 0.5  # column y, row z
    expected[WU, 1, 3] = 1.0  # column z, row x
    torch.testing.assert_close(planes.grad[0], expected[:, None].expand(3, 2, 4, 4))


def test_gradients_are_those_of_finite_differences():
    planes = random_planes(b=1, c=2, r=3).requires_grad_()
    points = random_points(b=1, m=7, scale=1.2)
    assert torch.autograd.gradcheck(lambda p: sample_planes(p, points), (planes,))


def test_reference_is_what_runs_on_the_cpu():
    planes, points = random_planes(), random_points()
    assert torch.equal(sample_planes(planes, points), sample_planes_reference(planes, points))


# -- the pairing test: a linear decoder cannot hide a missing or doubled plane ------------------------------------


def linear_fit_error(a: int, b: int, planes_used: tuple[int, ...]) -> float:
    """Relative residual of the best planes (least squares) for f = sin(3a)·cos(2b) + a·b, of axes a and b."""
    r, points = 8, random_points(b=1, m=1500) * 0.875
    basis = torch.eye(3 * r * r, dtype=torch.float64).view(-1, 3, 1, r, r)
    basis = basis[[i for i in range(len(basis)) if basis[i].flatten().argmax() // (r * r) in planes_used]]
    design = sample_planes(basis, points.expand(len(basis), -1, -1))[..., 0].T  # (M, texels)
    p, q = points[0, :, a], points[0, :, b]
    target = torch.sin(3 * p) * torch.cos(2 * q) + p * q
    solution = torch.linalg.lstsq(design, target[:, None], driver="gelsd").solution
    return float((design @ solution - target[:, None]).norm() / target.norm())


@pytest.mark.parametrize("a, b, plane", [(X, Y, UV), (Y, Z, VW), (Z, X, WU)])
def test_linear_decoder_fits_what_does_not_separate(a, b, plane):
    assert linear_fit_error(a, b, (UV, VW, WU)) < 0.04
    assert linear_fit_error(b, a, (UV, VW, WU)) < 0.04
    others = tuple(p for p in (UV, VW, WU) if p != plane)
    assert linear_fit_error(a, b, others) > 0.5  # the two other planes give only f(a) + g(b)


# -- roll-out -----------------------------------------------------------------------------------------------------


def test_rollout_order_and_return():
    planes = random_planes(c=2, r=5)
    image = rollout(planes)
    assert image.shape == (2, 2, 5, 15)
    for position, plane in enumerate((UV, WU, VW)):  # the paper's order
        assert torch.equal(image[..., 5 * position : 5 * position + 5], planes[:, plane])
    assert torch.equal(unroll(image), planes)


# -- resizing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 5, 8, 16, 24, 32])
def test_resizing_keeps_constants_and_its_own_size(size):
    planes = torch.full((2, 3, 4, 16, 16), 1.25)
    torch.testing.assert_close(resize_planes(planes, size), torch.full((2, 3, 4, size, size), 1.25))
    assert resize_planes(planes, 16) is planes


@pytest.mark.parametrize("size", [4, 8, 32, 64])
@pytest.mark.parametrize("axis", ["column", "row"])
def test_resizing_keeps_ramps(size, axis):
    def ramp(r):
        line = (torch.arange(r, dtype=torch.float64) + 0.5) / r * 2 - 1
        return line.expand(1, 3, 1, r, r) if axis == "column" else line[:, None].expand(1, 3, 1, r, r)

    inner = ramp(size).abs() < 1 - 1 / 16  # upwards, half a coarse texel at the border is flat
    torch.testing.assert_close(resize_planes(ramp(16), size)[inner], ramp(size)[inner], rtol=0, atol=1e-12)


def test_down_is_the_mean_of_areas():
    planes = random_planes(r=12)
    expected = planes.reshape(2, 3, 3, 4, 3, 4, 3).mean((4, 6))
    torch.testing.assert_close(resize_planes(planes, 4), expected)
    torch.testing.assert_close(resize_planes(planes, 6).mean((-1, -2)), planes.mean((-1, -2)))


def test_down_of_up_is_nearly_the_same_for_smooth_planes():
    x = (torch.arange(32) + 0.5) / 32 * 2 - 1
    smooth = (torch.sin(3 * x)[None, :] * torch.cos(2 * x)[:, None]).expand(1, 3, 2, 32, 32)
    back = resize_planes(resize_planes(smooth, 64), 32)
    assert (back - smooth).abs().max() < 0.03 and (back - smooth).square().mean().sqrt() < 0.008
    # The look-ups agree as well, so that a decoder sees the same volume at another size.
    points = random_points(b=1, m=500, scale=0.9).float()
    finer = sample_planes(resize_planes(smooth, 64), points)
    torch.testing.assert_close(finer, sample_planes(smooth, points), rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (5, 2, 3, 4)])
@pytest.mark.parametrize("size", [4, 16])
def test_resizing_any_leading_shape(shape, size):
    planes = torch.randn(*shape, 8, 8)
    resized = resize_planes(planes, size)
    assert resized.shape == (*shape, size, size)
    alone = resize_planes(planes.reshape(-1, 1, 8, 8), size)
    torch.testing.assert_close(resized.reshape(-1, 1, size, size), alone)


def test_resizing_channels_last_planes():
    planes = torch.randn(2, 3, 8, 8, 4).permute(0, 1, 4, 2, 3)
    for size in (4, 16):
        torch.testing.assert_close(resize_planes(planes, size), resize_planes(planes.contiguous(), size))


# -- total variation, statistics ----------------------------------------------------------------------------------


def test_total_variation_against_loops():
    planes = random_planes(r=4)
    columns = [(planes[..., j, i + 1] - planes[..., j, i]) ** 2 for j in range(4) for i in range(3)]
    rows = [(planes[..., j + 1, i] - planes[..., j, i]) ** 2 for j in range(3) for i in range(4)]
    expected = torch.stack(columns).mean() + torch.stack(rows).mean()
    torch.testing.assert_close(total_variation(planes), expected)
    assert total_variation(torch.ones(1, 3, 2, 4, 4)) == 0


def test_statistics_are_of_channels():
    planes = random_planes(b=3, c=4) * torch.tensor([1.0, 2, 3, 4])[:, None, None] + torch.arange(4)[:, None, None]
    mean, std = plane_statistics(planes)
    for c in range(4):
        values = planes[:, :, c].flatten().float()
        torch.testing.assert_close((mean[c], std[c]), (values.mean(), values.std()))


def test_standardise_and_back():
    planes = random_planes(b=3, c=4, dtype=torch.float32) * 5 + 2
    statistics = plane_statistics(planes)
    scaled = standardise(planes, *statistics)
    mean, std = plane_statistics(scaled)
    torch.testing.assert_close((mean, std), (torch.zeros(4), torch.ones(4)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(unstandardise(scaled, *statistics), planes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(standardise(planes[0], *statistics), scaled[0])  # one subject, (3, C, R, R)
