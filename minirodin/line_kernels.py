"""Triton kernels for the lines of the 3D-aware convolution on CUDA: sums along both axes at once, and adding lines.

`conv.line_sums` and `conv.with_lines` say what they compute, in plain PyTorch; tests compare. Maps are channels-last,
so that a program reads whole texels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # that a program of `_line_sums` adds up


@triton.jit
def _line_sums(x, rows, columns, R, C, S, WB: tl.constexpr, CB: tl.constexpr, ROWS: tl.constexpr):
    n, s = (tl.program_id(0) // S).to(tl.int64), tl.program_id(0) % S
    w, c = tl.arange(0, WB), tl.program_id(1) * CB + tl.arange(0, CB)
    inside = (w < R)[:, None] & (c < C)[None, :]
    total = tl.zeros((WB, CB), tl.float32)
    for h in range(s * ROWS, tl.minimum(s * ROWS + ROWS, R)):
        tile = tl.load(x + ((n * R + h) * R + w[:, None]) * C + c[None, :], inside, 0.0).to(tl.float32)
        tl.store(rows + (n * R + h) * C + c, tl.sum(tile, 0), c < C)
        total += tile
    tl.store(columns + ((n * S + s) * R + w[:, None]) * C + c[None, :], total, inside)


@triton.jit
def _with_lines(x, rows, columns, out, R, C, P: tl.constexpr, WB: tl.constexpr, CB: tl.constexpr):
    n, h = (tl.program_id(0) // R).to(tl.int64), tl.program_id(0) % R
    w, c = tl.arange(0, WB), tl.program_id(1) * CB + tl.arange(0, CB)
    inside = (w < R)[:, None] & (c < C)[None, :]
    texels = ((n * R + h) * R + w[:, None]) * C + c[None, :]
    row = rows + (n * R + h) * P * C + c[None, :]
    column = columns + (n * R + w[:, None]) * P * C + c[None, :]
    value = tl.load(x + texels, inside, 0.0).to(tl.float32) + tl.load(column, inside, 0.0).to(tl.float32)
    value += tl.load(row, (c < C)[None, :], 0.0).to(tl.float32)
    if P == 3:
        value += tl.load(row + C, inside & (w == 0)[:, None], 0.0).to(tl.float32)
        value += tl.load(row + 2 * C, inside & (w == R - 1)[:, None], 0.0).to(tl.float32)
        if h == 0:
            value += tl.load(column + C, inside, 0.0).to(tl.float32)
        if h == R - 1:
            value += tl.load(column + 2 * C, inside, 0.0).to(tl.float32)
    tl.store(out + texels, value.to(out.dtype.element_ty), inside)


def _blocks(r: int, c: int, values: int) -> tuple[int, int]:
    """A row of texels, and as many channels as make about `values` numbers a program."""
    wide = triton.next_power_of_2(r)
    return wide, max(16, min(triton.next_power_of_2(c), 128, values // wide))


# Custom operators: torch.compile cannot see into Triton kernels inside an autograd function.
@torch.library.custom_op("minirodin::line_sums", mutates_args=())
def line_sums(x: Tensor) -> Tensor:
    n, c, r, _ = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    parts, (wb, cb) = triton.cdiv(r, ROWS), _blocks(r, c, 16384)
    sums = torch.empty(2, n, r, c, device=x.device, dtype=torch.float32)
    columns = torch.empty(n, parts, r, c, device=x.device, dtype=torch.float32)
    _line_sums[(n * parts, triton.cdiv(c, cb))](x, sums, columns, r, c, parts, wb, cb, ROWS)
    torch.sum(columns, 1, out=sums[1])
    return sums


@torch.library.custom_op("minirodin::with_lines", mutates_args=())
def with_lines(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    n, c, r, _ = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    wb, cb = _blocks(r, c, 4096)
    out = torch.empty_like(x)
    lines = rows.contiguous(), columns.contiguous()
    _with_lines[(n * r, triton.cdiv(c, cb))](x, *lines, out, r, c, rows.shape[2], wb, cb)
    return out


@line_sums.register_fake
def _(x):
    n, c, r, _ = x.shape
    return x.new_empty(2, n, r, c, dtype=torch.float32)


@with_lines.register_fake
def _(x, rows, columns):
    return torch.empty_like(x, memory_format=torch.channels_last)
