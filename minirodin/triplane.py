"""Tri-planes (E1): three axis-aligned feature planes stand in for a volume.

Planes are tensors (B, 3, C, R, R) in the order uv, vw, wu with (u, v, w) = (x, y, z). **Columns are the first letter,
rows the second**, so the row axis of plane k is the column axis of plane k+1 (mod 3): a cyclic permutation of the axes
permutes the planes and changes nothing else. Texel i of R covers [−1 + 2i/R, −1 + 2(i+1)/R]; its value sits at the
centre, as in `grid_sample(align_corners=False)`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# (column axis, row axis) of each plane.
PLANE_AXES = ((0, 1), (1, 2), (2, 0))
PLANE_NAMES = ("uv", "vw", "wu")
USE_KERNELS = True  # Triton on CUDA; the benchmark turns it off to measure the plain path


def project(points: Tensor) -> Tensor:
    """Drop one coordinate a plane: points (..., 3) → (column, row) on each plane, (3, ..., 2) in [−1, 1]."""
    return torch.stack([points[..., axes] for axes in PLANE_AXES])


def sample_planes(planes: Tensor, points: Tensor) -> Tensor:
    """E1: y_p = y_uv(p_uv) + y_vw(p_vw) + y_wu(p_wu), each look-up bilinear.

    Args:
        planes: (B, 3, C, R, R).
        points: (B, M, 3) in [−1, 1]; outside, the border value is continued.

    Returns:
        (B, M, C) features in the planes' dtype (in autocast's, on CUDA).
    """
    if USE_KERNELS and planes.is_cuda and planes.shape[2].bit_count() == 1:  # the kernel wants a power of two
        from minirodin.kernels import sample_planes_cuda

        return sample_planes_cuda(planes, points)
    return sample_planes_reference(planes, points)


def sample_planes_reference(planes: Tensor, points: Tensor) -> Tensor:
    """`sample_planes` in plain PyTorch, on any device."""
    b = len(planes)
    grid = rearrange(project(points), "k b m uv -> (b k) 1 m uv").to(planes.dtype)  # (B·3, 1, M, 2)
    maps = rearrange(planes, "b k c h w -> (b k) c h w")  # (B·3, C, R, R)
    looked_up = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)  # (B·3, C, 1, M)
    return rearrange(looked_up, "(b k) c 1 m -> b k m c", b=b).sum(1)  # (B, M, C)


def resize_planes(planes: Tensor, resolution: int) -> Tensor:
    """E5c: the same planes on another grid, area-averaged downwards and bilinear upwards; (..., R, R) → (..., r, r)."""
    size = planes.shape[-1]
    if resolution == size:
        return planes
    maps = planes.flatten(0, -4) if planes.dim() > 3 else planes[None]
    if resolution < size:
        maps = F.adaptive_avg_pool2d(maps, resolution)
    else:
        maps = F.interpolate(maps, (resolution, resolution), mode="bilinear", align_corners=False)
    return maps.view(*planes.shape[:-2], resolution, resolution)


def rollout(planes: Tensor) -> Tensor:
    """E10: ỹ = hstack(y_uv, y_wu, y_vw), the paper's order: (B, 3, C, R, R) → (B, C, R, 3R)."""
    return rearrange(planes[:, [0, 2, 1]], "b k c h w -> b c h (k w)")


def unroll(image: Tensor) -> Tensor:
    """The inverse of `rollout`: (B, C, R, 3R) → (B, 3, C, R, R)."""
    return rearrange(image, "b c h (k w) -> b k c h w", k=3)[:, [0, 2, 1]]


def total_variation(planes: Tensor) -> Tensor:
    """E4 smoothness: mean squared difference of neighbouring texels along columns and rows; a scalar."""
    return planes.diff(dim=-1).square().mean() + planes.diff(dim=-2).square().mean()


def plane_statistics(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel over subjects, planes and texels: (B, 3, C, R, R) → (C,), (C,)."""
    values = planes.float()
    return values.mean((0, 1, 3, 4)), values.std((0, 1, 3, 4))


def standardise(planes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Zero mean and unit variance a channel, the scale diffusion works in; inverse of `unstandardise`."""
    return (planes - mean[:, None, None]) / std[:, None, None]


def unstandardise(planes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Back to the decoder's scale."""
    return planes * std[:, None, None] + mean[:, None, None]
