"""Triton kernels for group norm on CUDA: adaptive, with the SiLU that follows, each map read as few times as can be.

The norm of one map is a multiply-add a channel: z = gain·x + offset, then SiLU. `unet.GroupNorm` says what it computes,
in plain PyTorch; a test compares. Maps are channels-last, (N, T texels, C).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # texels, and at most as many channels, that are in hand at once
SPLIT = 4  # tiles that a program adds up


@triton.jit
def _silu(z, ACT: tl.constexpr):
    return z * tl.sigmoid(z) if ACT else z


@triton.jit
def _silu_gradient(z, ACT: tl.constexpr):
    s = tl.sigmoid(z)
    return s * (1 + z * (1 - s)) if ACT else 1.0


@triton.jit
def _sums(x, dy, gain, offset, out, T, C, S, ACT: tl.constexpr, BACK: tl.constexpr, TILE: tl.constexpr,
          SPLIT: tl.constexpr, CB: tl.constexpr):  # fmt: skip
    """Of x and x², or, going back, of dz and dz·x: (N, S, 2, C)."""
    n, s = (tl.program_id(0) // S).to(tl.int64), tl.program_id(0) % S
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    a, b = tl.zeros((TILE, CB), tl.float32), tl.zeros((TILE, CB), tl.float32)
    for i in range(SPLIT):
        t = (s * SPLIT + i) * TILE + tl.arange(0, TILE)
        inside = (t < T)[:, None] & (c < C)[None, :]
        at = (n * T + t[:, None]) * C + c[None, :]
        value = tl.load(x + at, inside, 0.0).to(tl.float32)
        if BACK:
            g = tl.load(gain + n * C + c, c < C, 0.0)[None, :]
            o = tl.load(offset + n * C + c, c < C, 0.0)[None, :]
            dz = tl.load(dy + at, inside, 0.0).to(tl.float32) * _silu_gradient(value * g + o, ACT)
            a += dz
            b += dz * value
        else:
            a += value
            b += value * value
    row = out + (n * S + s) * 2 * C + c
    tl.store(row, tl.sum(a, 0), c < C)
    tl.store(row + C, tl.sum(b, 0), c < C)


@triton.jit
def _apply(x, dy, gain, offset, slope, constant, out, T, C, S, ACT: tl.constexpr, BACK: tl.constexpr,
           TILE: tl.constexpr, CB: tl.constexpr):  # fmt: skip
    """silu(gain·x + offset), or, going back, gain·dz + slope·x + constant."""
    n, s = (tl.program_id(0) // S).to(tl.int64), tl.program_id(0) % S
    t, c = s * TILE + tl.arange(0, TILE), tl.program_id(1) * CB + tl.arange(0, CB)
    inside = (t < T)[:, None] & (c < C)[None, :]
    at = (n * T + t[:, None]) * C + c[None, :]
    g = tl.load(gain + n * C + c, c < C, 0.0)[None, :]
    o = tl.load(offset + n * C + c, c < C, 0.0)[None, :]
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    z = value * g + o
    if BACK:
        dz = tl.load(dy + at, inside, 0.0).to(tl.float32) * _silu_gradient(z, ACT)
        k = tl.load(slope + n * C + c, c < C, 0.0)[None, :]
        z = g * dz + k * value + tl.load(constant + n * C + c, c < C, 0.0)[None, :]
    else:
        z = _silu(z, ACT)
    tl.store(out + at, z.to(out.dtype.element_ty), inside)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    n, c, h, w = x.shape
    return n, h * w, c, min(TILE, triton.next_power_of_2(c))


# Custom operators: torch.compile cannot see into Triton kernels inside an autograd function.
@torch.library.custom_op("minirodin::channel_sums", mutates_args=())
def channel_sums(x: Tensor, dy: Tensor | None, gain: Tensor | None, offset: Tensor | None, act: bool) -> Tensor:
    """(2, N, C) float32."""
    n, t, c, wide = _sizes(x)
    parts = triton.cdiv(t, TILE * SPLIT)
    out = torch.empty(n, parts, 2, c, device=x.device, dtype=torch.float32)
    back = dy is not None
    given = (dy, gain, offset) if back else (x, x, x)
    _sums[(n * parts, triton.cdiv(c, wide))](x, *given, out, t, c, parts, act, back, TILE, SPLIT, wide)
    return out.sum(1).transpose(0, 1).contiguous()


@torch.library.custom_op("minirodin::channel_apply", mutates_args=())
def channel_apply(
    x: Tensor, dy: Tensor | None, gain: Tensor, offset: Tensor, slope: Tensor | None, constant: Tensor | None, act: bool
) -> Tensor:
    n, t, c, wide = _sizes(x)
    parts, out, back = triton.cdiv(t, TILE), torch.empty_like(x), dy is not None
    given = (dy, gain, offset, slope, constant) if back else (x, gain, offset, x, x)
    _apply[(n * parts, triton.cdiv(c, wide))](x, *given, out, t, c, parts, act, back, TILE, wide)
    return out


@channel_sums.register_fake
def _(x, dy, gain, offset, act):
    return x.new_empty(2, *x.shape[:2], dtype=torch.float32)


@channel_apply.register_fake
def _(x, dy, gain, offset, slope, constant, act):
    return torch.empty_like(x)


class AdaptiveGroupNorm(torch.autograd.Function):
    """x (N, C, R, R), weight and bias (C,), scale and shift (N, C) → silu(norm(x)·(1 + scale) + shift), of x's type."""

    @staticmethod
    def forward(ctx, x, weight, bias, scale, shift, groups: int, eps: float, act: bool):
        x = x.contiguous(memory_format=torch.channels_last)
        members = x.shape[1] // groups
        mean, square = (channel_sums(x, None, None, None, act) / x[0, 0].numel()).unflatten(2, (groups, -1)).mean(3)
        rate = ((square - mean * mean).clamp_min(0) + eps).rsqrt()  # (N, G): one over the standard deviation
        mean, rate = (v.repeat_interleave(members, 1) for v in (mean, rate))  # (N, C)
        gain = rate * weight * (1 + scale)
        offset = bias * (1 + scale) + shift - mean * gain
        ctx.save_for_backward(x, weight, bias, scale, mean, rate, gain, offset)
        ctx.groups, ctx.act = groups, act
        return channel_apply(x, None, gain, offset, None, None, act)

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, scale, mean, rate, gain, offset = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        d_shift, moment = channel_sums(x, dy, gain, offset, ctx.act)  # Σ dz, Σ dz·x
        d_gamma = rate * (moment - mean * d_shift)  # of the whole factor of the normalised x
        # The normalised x has mean 0 and size 1 in its group whatever x is: those two directions of dx fall away.
        members, count = x.shape[1] // ctx.groups, x[0, 0].numel() * (x.shape[1] // ctx.groups)
        gamma = weight * (1 + scale)
        along = torch.stack([gamma * d_shift, gamma * d_gamma]).unflatten(2, (ctx.groups, -1)).sum(3) / count
        flat, size = along.repeat_interleave(members, 2)
        slope = -rate * rate * size
        dx = channel_apply(x, dy, gain, offset, slope, -rate * flat - slope * mean, ctx.act)
        d_weight, d_bias = ((1 + scale) * d_gamma).sum(0), ((1 + scale) * d_shift).sum(0)
        return dx, d_weight, d_bias, weight * d_gamma + bias * d_shift, d_shift, None, None, None
