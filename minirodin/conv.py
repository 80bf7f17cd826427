"""3D-aware convolution (E11): a 2D convolution that sees, beside its own plane, the lines its texels stand for.

A texel of one plane is a line of the volume, and that line projects to one row or column of each other plane. In this
project's order of the planes (`triplane`) the row axis of plane k is the column axis of plane k+1, so, for every k,

    down   = plane k+1 pooled over its rows:    one vector along k's rows,
    across = plane k−1 pooled over its columns: one vector along k's columns.

Planes travel in the batch dimension, (B·3, C, R, R): no seam for a kernel to leak across, nothing to split and join.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def pooled_neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean-pooled lines of the other two planes that meet each row and each column.

    Args:
        x: (B·3, C, R, R), planes uv, vw, wu of each sample.

    Returns:
        `down` (B·3, C, R) indexed by the rows of each plane, and `across` (B·3, C, R) by its columns.
    """
    rows, columns = (rearrange(x.mean(axis), "(b k) c r -> b k c r", k=3) for axis in (3, 2))
    return columns.roll(-1, dims=1).flatten(0, 1), rows.roll(1, dims=1).flatten(0, 1)  # of plane k+1, of plane k−1


def aware_conv_naive(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """E11 as the paper says it: pool, expand, concatenate, Conv2D(y_uv ⊕ y_v(·) ⊕ y_(·)u); the reference.

    Args:
        x: (B·3, C, R, R).
        weight: (D, 3C, 3, 3), for the plane itself, `down` and `across`.
        bias: (D,).

    Returns:
        (B·3, D, R, R).
    """
    down, across = pooled_neighbours(x)
    stacked = torch.cat([x, down[..., :, None].expand_as(x), across[..., None, :].expand_as(x)], dim=1)
    return F.conv2d(stacked, weight, bias, padding=1)  # (B·3, 3C, R, R) → (B·3, D, R, R)


def aware_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same function as `aware_conv_naive`, at about the cost of a plain convolution.

    A map that is constant along one axis needs no 2D convolution: its kernel, summed along that axis, is a 1D
    convolution of the vector, repeated. Only in the first and last column (row) one of the three taps meets the
    padding instead, and what it gave is taken off again.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))  # once, for the lines as well
    own, for_down, for_across = weight.chunk(3, dim=1)  # (D, C, 3, 3) each
    x, sums = TakeLines.apply(x)
    rows, columns = rearrange(sums / x.shape[-1], "two (b k) r c -> two b k r c", k=3).to(x.dtype)
    lines = torch.stack([columns.roll(-1, dims=1), rows.roll(1, dims=1)]).flatten(1, 2)  # (2, B·3, R, C): down, across
    rows, columns = _line_conv(lines, torch.stack([for_down, for_across.transpose(2, 3)]))
    if bias is not None:
        rows = rows + F.pad(bias.to(rows.dtype)[None], (0, 0, 0, 2))  # on the lines: one pass over the maps less
    return AddLines.apply(F.conv2d(x, own, padding=1), rows, columns)


def _line_conv(lines: Tensor, weight: Tensor) -> Tensor:
    """Convolve (2, N, R, C) by (2, D, C, 3, 3) summed over its last axis: (2, N, R, 3, D).

    The three results are for all texels of the line, and corrections of its first and its last one.
    """
    kernels = torch.stack([weight.sum(-1), -weight[..., 0], -weight[..., 2]])  # (3, 2, D, C, 3)
    kernels = rearrange(kernels, "part two d c tap -> two (tap c) (part d)").to(lines.dtype)
    padded = F.pad(lines, (0, 0, 1, 1))  # (2, N, R + 2, C)
    taps = torch.cat([padded[:, :, :-2], padded[:, :, 1:-1], padded[:, :, 2:]], dim=-1)  # (2, N, R, 3C)
    # A matrix product: quicker than `conv1d` on so little.
    return (taps.flatten(1, 2) @ kernels).view(*lines.shape[:3], 3, -1)


def line_sums(x: Tensor) -> Tensor:
    """Sums of the rows and of the columns of (N, C, R, R): (2, N, R, C), float32 or better on a GPU."""
    if x.is_cuda and x.dtype != torch.float64:
        from minirodin import line_kernels

        return line_kernels.line_sums(x)  # both in one reading of x
    return torch.stack([x.sum(3), x.sum(2)]).transpose(2, 3)


def with_lines(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, D, R, R) and what each row and each column adds to its texels.

    Args:
        rows: (N, R, 1 or 3, D), for all texels of the row and, of three, for its first besides, for its last.
        columns: (N, R, 1 or 3, D), the same for columns.
    """
    if x.is_cuda and x.dtype != torch.float64:
        from minirodin import line_kernels

        return line_kernels.with_lines(x, rows, columns)
    texels = x.permute(0, 2, 3, 1) + rows[:, :, 0, None]  # (N, R, R, D)
    texels += columns[:, None, :, 0]
    for part, place in ((1, 0), (2, -1))[: rows.shape[2] - 1]:
        texels[:, :, place] += rows[:, :, part]
        texels[:, place] += columns[:, :, part]
    return texels.permute(0, 3, 1, 2)


class TakeLines(torch.autograd.Function):
    """A map and its `line_sums`; going back, what came to both is added up in one pass."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view_as(x), line_sums(x)

    @staticmethod
    def backward(ctx, grad: Tensor, sums: Tensor) -> Tensor:
        rows, columns = sums[:, :, :, None].to(grad.dtype)
        return with_lines(grad, rows, columns)


class AddLines(torch.autograd.Function):
    """`with_lines` of three parts; going back, the `line_sums`."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return with_lines(x, rows, columns)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        texels = grad.permute(0, 2, 3, 1)  # (N, R, R, D)
        first = torch.stack([texels[:, :, 0], texels[:, 0]])  # (2, N, R, D): of each row, of each column
        last = torch.stack([texels[:, :, -1], texels[:, -1]])
        rows, columns = torch.stack([line_sums(grad).to(grad.dtype), first, last], dim=3)  # (N, R, 3, D) each
        return grad, rows, columns


class AwareConv2d(nn.Conv2d):
    """E11 with kernels shared by the three planes ("the same computation"); a 3×3 `nn.Conv2d` on three times C.

    Args:
        channels, out_channels: C and D.
        bias: whether a constant is added.

    Example:
        >>> conv = AwareConv2d(16, 32)
        >>> conv(torch.randn(2 * 3, 16, 64, 64)).shape  # two samples
        torch.Size([6, 32, 64, 64])
    """

    def __init__(self, channels: int, out_channels: int, bias: bool = True):
        super().__init__(3 * channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B·3, C, R, R) → (B·3, D, R, R), R ≥ 2."""
        return aware_conv(x, self.weight, self.bias)
