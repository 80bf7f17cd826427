"""Triton kernels for the tri-plane look-up on CUDA; `triplane.sample_planes` is the reference they are tested against.

Channels lie together in memory, so that one texel is one coalesced read. The backward pass adds the gradients of the
twelve texels a point touches with atomics, in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128


@triton.jit
def _corner(x, size):
    """Left texel, right texel and weight of the right one for a coordinate in [−1, 1], border continued."""
    g = tl.minimum(tl.maximum(((x + 1.0) * size - 1.0) * 0.5, 0.0), size - 1.0)
    left = tl.minimum(tl.floor(g), tl.maximum(size - 2.0, 0.0))
    return left.to(tl.int64), tl.minimum(left + 1.0, size - 1.0).to(tl.int64), g - left


@triton.jit
def _forward(planes, points, out, total, per_subject, R, C: tl.constexpr, BLOCK: tl.constexpr):
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = m < total
    c = tl.arange(0, C)[None, :]
    subject = m // per_subject
    features = tl.zeros((BLOCK, C), tl.float32)
    for k in tl.static_range(3):
        column = tl.load(points + m * 3 + k, inside, 0.0)
        row = tl.load(points + m * 3 + (k + 1) % 3, inside, 0.0)
        x0, x1, fx = _corner(column, R)
        y0, y1, fy = _corner(row, R)
        base = (subject * 3 + k) * R
        for i in tl.static_range(4):
            x, wx = (x1, fx) if i % 2 else (x0, 1.0 - fx)
            y, wy = (y1, fy) if i // 2 else (y0, 1.0 - fy)
            texel = tl.load(planes + ((base + y) * R + x)[:, None] * C + c, inside[:, None], 0.0)
            features += texel.to(tl.float32) * (wx * wy)[:, None]
    tl.store(out + m[:, None] * C + c, features.to(out.dtype.element_ty), inside[:, None])


@triton.jit
def _backward(grad_planes, points, grad_out, total, per_subject, R, C: tl.constexpr, BLOCK: tl.constexpr):
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = m < total
    c = tl.arange(0, C)[None, :]
    subject = m // per_subject
    grad = tl.load(grad_out + m[:, None] * C + c, inside[:, None], 0.0).to(tl.float32)
    for k in tl.static_range(3):
        column = tl.load(points + m * 3 + k, inside, 0.0)
        row = tl.load(points + m * 3 + (k + 1) % 3, inside, 0.0)
        x0, x1, fx = _corner(column, R)
        y0, y1, fy = _corner(row, R)
        base = (subject * 3 + k) * R
        for i in tl.static_range(4):
            x, wx = (x1, fx) if i % 2 else (x0, 1.0 - fx)
            y, wy = (y1, fy) if i // 2 else (y0, 1.0 - fy)
            target = grad_planes + ((base + y) * R + x)[:, None] * C + c
            tl.atomic_add(target, grad * (wx * wy)[:, None], inside[:, None], sem="relaxed")


# Custom operators keep the kernels opaque to torch.compile, which then fuses everything around them.
@torch.library.custom_op("minirodin::gather_texels", mutates_args=())
def gather_texels(texels: Tensor, points: Tensor, dtype: torch.dtype) -> Tensor:
    b, _, r, _, c = texels.shape
    m = points.shape[1]
    out = torch.empty(b, m, c, device=texels.device, dtype=dtype)
    _forward[(triton.cdiv(b * m, BLOCK),)](texels, points, out, b * m, m, r, c, BLOCK)
    return out


@torch.library.custom_op("minirodin::scatter_texels", mutates_args=())
def scatter_texels(grad_out: Tensor, points: Tensor, resolution: int) -> Tensor:
    b, m, c = grad_out.shape
    grad = torch.zeros(b, 3, resolution, resolution, c, device=grad_out.device, dtype=torch.float32)
    _backward[(triton.cdiv(b * m, BLOCK),)](grad, points, grad_out, b * m, m, resolution, c, BLOCK)
    return grad


@gather_texels.register_fake
def _(texels, points, dtype):
    return texels.new_empty(points.shape[0], points.shape[1], texels.shape[-1], dtype=dtype)


@scatter_texels.register_fake
def _(grad_out, points, resolution):
    b, _, c = grad_out.shape
    return grad_out.new_empty(b, 3, resolution, resolution, c, dtype=torch.float32)


def _save_points(ctx, inputs, output):
    texels, points, _ = inputs
    ctx.save_for_backward(points)
    ctx.resolution, ctx.dtype = texels.shape[2], texels.dtype


def _gather_backward(ctx, grad_out):
    (points,) = ctx.saved_tensors
    return scatter_texels(grad_out.contiguous(), points, ctx.resolution).to(ctx.dtype), None, None


gather_texels.register_autograd(_gather_backward, setup_context=_save_points)


def sample_planes_cuda(planes: Tensor, points: Tensor) -> Tensor:
    """`triplane.sample_planes` on CUDA; C must be a power of two. Planes (B, 3, C, R, R), points (B, M, 3)."""
    texels = planes.permute(0, 1, 3, 4, 2).contiguous()  # (B, 3, R, R, C), free when channels-last
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else planes.dtype
    return gather_texels(texels, points.float().contiguous(), dtype)
