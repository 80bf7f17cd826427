"""Triton kernels for the lines of the 3D-aware convolution on CUDA: sums along both axes at once, and the way back.

`conv.line_sums` and `conv.add_lines` say what they compute, in plain PyTorch; tests compare. Maps are channels-last, so
that a program reads whole texels.
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


# Custom operators keep the kernels opaque to torch.compile, which then fuses everything around them.
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


@torch.library.custom_op("minirodin::add_lines", mutates_args=())
def add_lines(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    n, c, r, _ = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    wb, cb = _blocks(r, c, 4096)
    out = torch.empty_like(x)
    _add_lines[(n * r, triton.cdiv(c, cb))](x, rows.contiguous(), columns.contiguous(), out, r, c, wb, cb)
    return out


@line_sums.register_fake
def _(x):
    n, c, r, _ = x.shape
    return x.new_empty(2, n, r, c, dtype=torch.float32)


@add_lines.register_fake
def _(x, rows, columns):
    return torch.empty_like(x, memory_format=torch.channels_last)


def _save_dtype(ctx, inputs, output):
    ctx.dtype = inputs[-1].dtype


def _line_sums_backward(ctx, grad):
    rows, columns = grad  # (N, R, C) each
    return (rows[:, :, None] + columns[:, None]).to(ctx.dtype).permute(0, 3, 1, 2)  # channels-last (N, C, R, R)


def _add_lines_backward(ctx, grad):
    texels = grad.permute(0, 2, 3, 1)  # (N, R, R, D)
    first = torch.stack([texels[:, :, 0], texels[:, 0]])  # (2, N, R, D): of each row, of each column
    last = torch.stack([texels[:, :, -1], texels[:, -1]])
    rows, columns = torch.stack([first, line_sums(grad) - first - last, last], dim=3).to(ctx.dtype)  # (N, R, 3, D) each
    return grad, rows, columns


line_sums.register_autograd(_line_sums_backward, setup_context=_save_dtype)
add_lines.register_autograd(_add_lines_backward, setup_context=_save_dtype)
