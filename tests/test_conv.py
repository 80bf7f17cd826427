"""3D-aware convolution (E11): the fast form against the slow one, and both against the paper's words in loops."""

import itertools

import pytest
import torch

from minirodin.conv import AwareConv2d, aware_conv, aware_conv_naive, pooled_neighbours
from minirodin.triplane import PLANE_AXES

UV, VW, WU = 0, 1, 2
BOTH = pytest.mark.parametrize("conv", [aware_conv, aware_conv_naive])


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def case(b=2, c=3, d=4, r=5, bias=True, dtype=torch.float64):
    """x (B·3, C, R, R), weight (D, 3C, 3, 3) and bias (D,) or None."""
    return (
        randn(b * 3, c, r, r, dtype=dtype),
        randn(d, 3 * c, 3, 3, seed=1, dtype=dtype) / (9 * c) ** 0.5,
        randn(d, seed=2, dtype=dtype) if bias else None,
    )


# -- the paper's words --------------------------------------------------------------------------------------------


def line_mean(planes, plane, axis, i):
    """Mean (C,) of the texels of (3, C, R, R) planes on `plane` whose coordinate on `axis` is i."""
    column_axis, row_axis = PLANE_AXES[plane]
    r = planes.shape[-1]
    texels = [
        planes[plane, :, row, column]
        for row, column in itertools.product(range(r), range(r))
        if {column_axis: column, row_axis: row}[axis] == i
    ]
    assert len(texels) == r
    return sum(texels) / r


def other_plane(plane, axis):
    """The plane that shares `axis` with this one: each axis is on two planes."""
    (other,) = [p for p in (UV, VW, WU) if p != plane and axis in PLANE_AXES[p]]
    return other


def slow_aware_conv(planes, weight, bias):
    """E11 in loops for one sample: (3, C, R, R) → (3, D, R, R)."""
    _, c, r, _ = planes.shape
    out = bias[None, :, None, None].repeat(3, 1, r, r)
    for plane, (column_axis, row_axis) in enumerate(PLANE_AXES):
        seen = torch.zeros(r, r, 3 * c, dtype=planes.dtype)  # y_uv ⊕ y_v(·) ⊕ y_(·)u at every texel
        for row, column in itertools.product(range(r), range(r)):
            by_row = line_mean(planes, other_plane(plane, row_axis), row_axis, row)
            by_column = line_mean(planes, other_plane(plane, column_axis), column_axis, column)
            seen[row, column] = torch.cat([planes[plane, :, row, column], by_row, by_column])
        for row, column, i, j in itertools.product(range(r), range(r), range(3), range(3)):
            y, x = row + i - 1, column + j - 1
            if 0 <= y < r and 0 <= x < r:
                out[plane, :, row, column] += weight[:, :, i, j] @ seen[y, x]
    return out


@BOTH
@pytest.mark.parametrize("r", [2, 4])
def test_convolution_against_the_papers_words_in_loops(conv, r):
    x, weight, bias = case(b=2, c=2, d=3, r=r)
    expected = torch.cat([slow_aware_conv(planes, weight, bias) for planes in x.unflatten(0, (-1, 3))])
    torch.testing.assert_close(conv(x, weight, bias), expected, rtol=0, atol=1e-12)


def test_pooled_lines_are_those_of_the_shared_axis():
    x = randn(3, 2, 4, 4)
    down, across = pooled_neighbours(x)
    for plane, (column_axis, row_axis) in enumerate(PLANE_AXES):
        for i in range(4):
            torch.testing.assert_close(down[plane, :, i], line_mean(x, other_plane(plane, row_axis), row_axis, i))
            by_column = line_mean(x, other_plane(plane, column_axis), column_axis, i)
            torch.testing.assert_close(across[plane, :, i], by_column)


# -- fast and slow ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [2, 3, 5, 8])
@pytest.mark.parametrize("c, d", [(1, 1), (3, 2), (4, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_fast_equals_naive_in_values_and_gradients(c, d, r, bias):
    inputs = [v.requires_grad_() for v in case(2, c, d, r, bias) if v is not None]
    fast, naive = aware_conv(*inputs), aware_conv_naive(*inputs)
    assert fast.shape == (6, d, r, r)
    torch.testing.assert_close(fast, naive, rtol=0, atol=1e-10)
    upstream = randn(*fast.shape, seed=3)
    gradients = (torch.autograd.grad((out * upstream).sum(), inputs) for out in (fast, naive))
    for ours, reference in zip(*gradients, strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)


def test_gradients_are_those_of_finite_differences():
    inputs = [v.requires_grad_() for v in case(b=1, c=1, d=2, r=3)]
    assert torch.autograd.gradcheck(aware_conv, inputs)


@pytest.mark.parametrize("r", [2, 8])
def test_memory_format_changes_no_value(r):
    x, weight, bias = case(c=8, d=8, r=r)
    last = aware_conv(x.contiguous(memory_format=torch.channels_last), weight, bias)
    torch.testing.assert_close(last, aware_conv_naive(x, weight, bias), rtol=0, atol=1e-10)


def test_single_precision():
    inputs = case(c=16, d=16, r=16)
    out = aware_conv(*(v.float() for v in inputs))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), aware_conv_naive(*inputs), rtol=1e-5, atol=1e-5)


def test_autocast_to_bfloat16():
    inputs = case(c=16, d=16, r=16)
    with torch.autocast("cpu", torch.bfloat16):
        out = aware_conv(*(v.float() for v in inputs))
    assert out.dtype == torch.bfloat16
    error = out.double() - aware_conv_naive(*inputs)
    assert error.abs().max() < 0.05 and error.square().mean().sqrt() < 0.01  # of values around 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_is_the_same(backend):
    torch.compiler.reset()
    inputs = [v.requires_grad_() for v in case(c=2, d=2, r=4)]
    compiled, plain = torch.compile(aware_conv, backend=backend, fullgraph=True)(*inputs), aware_conv(*inputs)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-12)
    gradients = (torch.autograd.grad(out.square().sum(), inputs) for out in (compiled, plain))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_module_is_a_convolution_of_three_times_the_channels():
    torch.manual_seed(0)
    conv, x = AwareConv2d(2, 5), randn(6, 2, 4, 4, dtype=torch.float32)
    assert {name: p.shape for name, p in conv.named_parameters()} == {"weight": (5, 6, 3, 3), "bias": (5,)}
    torch.testing.assert_close(conv(x), aware_conv_naive(x, conv.weight, conv.bias))


# -- what sees what -----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("row, column", [(2, 3), (0, 0), (5, 5), (0, 5), (4, 1)])
@pytest.mark.parametrize(
    "plane, other, coordinate, lies_along",
    [  # plane and other share one letter; it is a row or a column of each: (column, row) = uv, vw, wu
        (UV, VW, "row", "columns"),  # v
        (UV, WU, "column", "rows"),  # u
        (VW, WU, "row", "columns"),  # w
        (VW, UV, "column", "rows"),  # v
        (WU, UV, "row", "columns"),  # u
        (WU, VW, "column", "rows"),  # w
    ],
)
def test_a_texel_sees_the_lines_of_the_shared_coordinate(conv, plane, other, coordinate, lies_along, row, column):
    r = 6
    x = randn(6, 2, r, r).requires_grad_()
    weight = torch.rand(3, 6, 3, 3, dtype=torch.float64) + 0.1  # positive: nothing cancels
    conv(x, weight)[plane, :, row, column].sum().backward()
    near = (torch.arange(r) - {"row": row, "column": column}[coordinate]).abs() <= 1
    expected = near[None, :].expand(r, r) if lies_along == "columns" else near[:, None].expand(r, r)
    assert torch.equal(x.grad[other].abs().amax(0) > 0, expected)
    own = ((torch.arange(r) - row).abs() <= 1)[:, None] & ((torch.arange(r) - column).abs() <= 1)[None, :]
    assert torch.equal(x.grad[plane].abs().amax(0) > 0, own)
    assert (x.grad[3:] == 0).all()  # the other sample


@BOTH
@pytest.mark.parametrize("turn", [1, 2])
def test_permuting_the_axes_cyclically_permutes_the_output(conv, turn):
    x, weight, bias = case()
    turned = conv(x.unflatten(0, (2, 3)).roll(turn, 1).flatten(0, 1), weight, bias)
    expected = conv(x, weight, bias).unflatten(0, (2, 3)).roll(turn, 1).flatten(0, 1)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-12)


@BOTH
def test_samples_do_not_mix(conv):
    x, weight, bias = case(b=3)
    changed = x.clone()
    changed[3:6] = randn(3, 3, 5, 5, seed=9)
    before, after = conv(x, weight, bias), conv(changed, weight, bias)
    assert torch.equal(before[:3], after[:3]) and torch.equal(before[6:], after[6:])
    assert not torch.isclose(before[3:6], after[3:6]).any(-1).all()


@BOTH
@pytest.mark.parametrize("plane", [UV, VW, WU])
@pytest.mark.parametrize("border", [0, -1])
def test_borders_do_not_leak_into_other_planes(conv, plane, border):
    x, weight, bias = case(b=1)
    weight[:, 3:] = 0  # the plane itself only: what is left is a plain convolution
    changed = x.clone()
    changed[plane, :, :, border] += 10
    changed[plane, :, border, :] += 10
    change = (conv(changed, weight, bias) - conv(x, weight, bias)).abs().amax((1, 2, 3)) > 0
    assert change.tolist() == [p == plane for p in (UV, VW, WU)]
    torch.testing.assert_close(conv(x, weight, bias), torch.nn.functional.conv2d(x, weight[:, :3], bias, padding=1))
