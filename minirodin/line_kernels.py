"""Triton kernels for the lines of the 3D-aware convolution on CUDA: sums along both axes at once, and the way back.

`conv.line_sums` and `conv.add_lines` say what they compute, in plain PyTorch; tests compare. Maps are channels-last, so
that a program reads whole texels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192  # values that a program holds at once
ROWS = 16  # rows that a program adds up


@triton.jit
def _line_sums(x, rows, columns, H, W, C, S, HB: tl.constexpr, WB: tl.constexpr, CB: tl.constexpr, ROWS: tl.constexpr):
    n, s = (tl.program_id(0) // S).to(tl.int64), tl.program_id(0) % S
    w, c = tl.arange(0, WB), tl.program_id(1) * CB + tl.arange(0, CB)
    inside = (w < W)[:, None] & (c < C)[None, :]
    total = tl.zeros((WB, CB), tl.float32)
    for start in range(0, ROWS, HB):
        h = s * ROWS + start + tl.arange(0, HB)
        texels = ((n * H + h[:, None, None]) * W + w[None, :, None]) * C + c[None, None, :]
        tile = tl.load(x + texels, (h < H)[:, None, None] & inside[None], 0.0).to(tl.float32)  # (HB, WB, CB)
        tl.store(rows + (n * H + h[:, None]) * C + c[None, :], tl.sum(tile, 1), (h < H)[:, None] & (c < C)[None, :])
        total += tl.sum(tile, 0)
    tl.store(columns + ((n * S + s) * W + w[:, None]) * C + c[None, :], total, inside)


@triton.jit
def _add_lines(x, rows, columns, out, H, W, C, WB: tl.constexpr, CB: tl.constexpr):
    n, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    w, c = tl.arange(0, WB), tl.program_id(1) * CB + tl.arange(0, CB)
    inside = (w < W)[:, None] & (c < C)[None, :]
    at_column = tl.where(w == 0, 0, tl.where(w == W - 1, 2, 1))  # which of the three sums
    at_row = tl.where(h == 0, 0, tl.where(h == H - 1, 2, 1))
    texels = ((n * H + h) * W + w[:, None]) * C + c[None, :]
    row = tl.load(rows + ((n * 3 + at_column[:, None]) * H + h) * C + c[None, :], inside, 0.0).to(tl.float32)
    column = tl.load(columns + ((n * 3 + at_row) * W + w[:, None]) * C + c[None, :], inside, 0.0).to(tl.float32)
    value = tl.load(x + texels, inside, 0.0).to(tl.float32) + row + column
    tl.store(out + texels, value.to(out.dtype.element_ty), inside)


def _blocks(w: int, c: int) -> tuple[int, int]:
    wide = triton.next_power_of_2(w)
    return wide, max(16, min(triton.next_power_of_2(c), 64, TILE // wide))


# Custom operators keep the kernels opaque to torch.compile, which then fuses everything around them.
@torch.library.custom_op("minirodin::line_sums", mutates_args=())
def line_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    parts, (wb, cb) = triton.cdiv(h, ROWS), _blocks(w, c)
    hb = max(1, min(ROWS, TILE // (wb * cb)))
    rows = torch.empty(n, h, c, device=x.device, dtype=torch.float32)
    columns = torch.empty(n, parts, w, c, device=x.device, dtype=torch.float32)
    _line_sums[(n * parts, triton.cdiv(c, cb))](x, rows, columns, h, w, c, parts, hb, wb, cb, ROWS)
    return rows, columns.sum(1)


@torch.library.custom_op("minirodin::add_lines", mutates_args=())
def add_lines(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    wb, cb = _blocks(w, c)
    out = torch.empty_like(x)
    _add_lines[(n * h, triton.cdiv(c, cb))](x, rows.contiguous(), columns.contiguous(), out, h, w, c, wb, cb)
    return out


@line_sums.register_fake
def _(x):
    n, c, h, w = x.shape
    return x.new_empty(n, h, c, dtype=torch.float32), x.new_empty(n, w, c, dtype=torch.float32)


@add_lines.register_fake
def _(x, rows, columns):
    return torch.empty_like(x, memory_format=torch.channels_last)


def _save_dtype(ctx, inputs, output):
    ctx.dtype = inputs[0].dtype if len(inputs) == 1 else inputs[1].dtype


def _line_sums_backward(ctx, grad_rows, grad_columns):
    return (grad_rows.transpose(1, 2)[..., None] + grad_columns.transpose(1, 2)[..., None, :]).to(ctx.dtype)


def _add_lines_backward(ctx, grad):
    rows, columns = line_sums(grad)  # (N, H, C), (N, W, C)
    left, right, top, bottom = grad[..., 0], grad[..., -1], grad[:, :, 0], grad[:, :, -1]
    parted = []
    for total, first, last in ((rows, left, right), (columns, top, bottom)):
        first, last = first.transpose(1, 2), last.transpose(1, 2)
        parted.append(torch.stack([first, total - first - last, last], dim=1).to(ctx.dtype))  # (N, 3, R, C)
    return grad, *parted


line_sums.register_autograd(_line_sums_backward, setup_context=_save_dtype)
add_lines.register_autograd(_add_lines_backward, setup_context=_save_dtype)
