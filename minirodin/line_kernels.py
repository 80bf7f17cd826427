"""The Triton kernel for the lines of the 3D-aware convolution on CUDA: sums along both axes in one reading.

`conv.line_sums` says what it computes, in plain PyTorch; a test compares. Maps are channels-last, so that a program
reads whole texels.
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


# A custom operator keeps the kernel opaque to torch.compile, which then fuses everything around it.
@torch.library.custom_op("minirodin::line_sums", mutates_args=())
def line_sums(x: Tensor) -> Tensor:
    n, c, r, _ = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    parts, wide = triton.cdiv(r, ROWS), triton.next_power_of_2(r)
    channels = max(16, min(triton.next_power_of_2(c), 128, 16384 // wide))  # so many numbers at a time
    sums = torch.empty(2, n, r, c, device=x.device, dtype=torch.float32)
    columns = torch.empty(n, parts, r, c, device=x.device, dtype=torch.float32)
    _line_sums[(n * parts, triton.cdiv(c, channels))](x, sums, columns, r, c, parts, wide, channels, ROWS)
    torch.sum(columns, 1, out=sums[1])
    return sums


@line_sums.register_fake
def _(x):
    n, c, r, _ = x.shape
    return x.new_empty(2, n, r, c, dtype=torch.float32)


def _save_dtype(ctx, inputs, output):
    ctx.dtype = inputs[0].dtype


def _backward(ctx, grad):
    rows, columns = grad  # (N, R, C) each
    return (rows[:, :, None] + columns[:, None]).to(ctx.dtype).permute(0, 3, 1, 2)  # channels-last (N, C, R, R)


line_sums.register_autograd(_backward, setup_context=_save_dtype)
