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


def line_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the columns and over the rows: (N, C, H, W) → one value a row (N, C, H), one a column (N, C, W)."""
    if x.is_cuda and x.dtype != torch.float64:
        from minirodin import line_kernels

        rows, columns = line_kernels.line_sums(x)  # (N, H, C), (N, W, C), both in one reading of x
        return rows.transpose(1, 2), columns.transpose(1, 2)
    return x.sum(-1), x.sum(-2)


def pooled_neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean-pooled lines of the other two planes that meet each row and each column.

    Args:
        x: (B·3, C, R, R), planes uv, vw, wu of each sample.

    Returns:
        `down` (B·3, C, R) indexed by the rows of each plane, and `across` (B·3, C, R) by its columns.
    """
    rows, columns = (rearrange(sums / x.shape[-1], "(b k) c r -> b k c r", k=3) for sums in line_sums(x))
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
    padding instead, so three sums are kept: without the first tap, with all, without the last.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))  # once, for the lines as well
    own, for_down, for_across = weight.chunk(3, dim=1)  # (D, C, 3, 3) each
    down, across = (line.to(x.dtype) for line in pooled_neighbours(x))
    rows, columns = _line_conv(down, for_down), _line_conv(across, for_across.transpose(2, 3))  # (B·3, 3, D, R)
    return add_lines(F.conv2d(x, own, bias, padding=1), rows, columns)


def _line_conv(line: Tensor, weight: Tensor) -> Tensor:
    """Convolve (N, C, R) by (D, C, 3, 3) summed over its last axis: as it is at the first, an inner, the last place."""
    kernels = torch.stack([weight[..., 1:].sum(-1), weight.sum(-1), weight[..., :-1].sum(-1)])  # (3, D, C, 3)
    taps = F.pad(line, (1, 1)).unfold(2, 3, 1)  # (N, C, R, 3)
    # A matrix product: quicker than `conv1d` on so little.
    return torch.einsum("ncrt,pdct->npdr", taps, kernels)


def add_lines(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Add to each texel what its row and its column contribute.

    Args:
        x: (N, D, H, W).
        rows: (N, 3, D, H), for texels of the first, an inner, the last column.
        columns: (N, 3, D, W), for texels of the first, an inner, the last row.
    """
    if x.is_cuda and x.dtype != torch.float64:
        from minirodin import line_kernels

        return line_kernels.add_lines(x, rows.transpose(2, 3), columns.transpose(2, 3))
    return _spread(_spread(x, rows, 3), columns, 2)


def _spread(x: Tensor, lines: Tensor, dim: int) -> Tensor:
    """Add lines (N, 3, D, R) to maps: one to the first place of `dim`, one to all inner places, one to the last."""
    first, inner, last = (line.unsqueeze(dim) for line in lines.unbind(1))
    size = x.shape[dim]
    parts = x.narrow(dim, 0, 1) + first, x.narrow(dim, 1, size - 2) + inner, x.narrow(dim, size - 1, 1) + last
    return torch.cat(parts, dim)


class AwareConv2d(nn.Conv2d):
    """E11 with kernels shared by the three planes ("the same computation"); a 3×3 `nn.Conv2d` on three times C.

    Args:
        channels, out_channels: C and D.

    Example:
        >>> conv = AwareConv2d(16, 32)
        >>> conv(torch.randn(2 * 3, 16, 64, 64)).shape  # two samples
        torch.Size([6, 32, 64, 64])
    """

    def __init__(self, channels: int, out_channels: int):
        super().__init__(3 * channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B·3, C, R, R) → (B·3, D, R, R), R ≥ 2."""
        return aware_conv(x, self.weight, self.bias)
