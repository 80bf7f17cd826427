"""Do neighbouring views agree? A 2D network refines each view by itself, so what it adds may flicker as a head turns.

A pixel of one view is carried to the surface by the rendered depth, and from there into the other view.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minirodin.cameras import Cameras, pixel_rays
from minirodin.errors import DataError

TOLERANCE = 0.03  # by which distances of one place may differ, in the box's units; half a texel of 64² planes
OPAQUE = 0.9  # alpha from which a pixel's depth is that of a surface


def surface(views: Tensor) -> Tensor:
    """Distances (V, H, W) of what is seen in views with depth (V, H, W, 5), as `render_views` gives; else NaN."""
    return views[..., 4].masked_fill(views[..., 3] < OPAQUE, torch.nan)


def warp(
    image_b: Tensor,
    depth_a: Tensor,
    depth_b: Tensor,
    camera_a: Cameras,
    camera_b: Cameras,
    tolerance: float = TOLERANCE,
) -> tuple[Tensor, Tensor]:
    """What N cameras b saw, moved to where N cameras a see it; differentiable in the pictures.

    Args:
        image_b: (N, C, H, W), any channels, of the size of `camera_b`.
        depth_a, depth_b: (N, h, w) distances along the rays, of any size; NaN where there is no surface.
        camera_a, camera_b: N each.

    Returns:
        (N, C, H, W) of the size of `camera_a`, and (N, H, W) bool: where that is the same place of the surface, inside
        picture b and not hidden there behind something else.
    """
    h, w = camera_a.height, camera_a.width
    (matrix_a, inner_a), (matrix_b, inner_b) = (
        (c.camera_to_world.to(image_b)[:, None, None], c.intrinsics.to(image_b)[:, None, None])
        for c in (camera_a, camera_b)
    )
    depth = F.interpolate(depth_a[:, None], (h, w), mode="bilinear", align_corners=False)[:, 0]
    y, x = torch.meshgrid(*(torch.arange(n, device=image_b.device) for n in (h, w)), indexing="ij")
    origins, directions = pixel_rays(matrix_a, inner_a, x, y)
    points = origins + depth[..., None] * directions  # (N, h, w, 3)
    local = torch.einsum(
        "nhwj,nhwji->nhwi", points - matrix_b[..., :3, 3], matrix_b[..., :3, :3].expand(*points.shape, 3)
    )
    fx, fy, cx, cy = inner_b.unbind(-1)
    ahead = -local[..., 2]  # a camera looks along −z
    across, down = cx + fx * local[..., 0] / ahead, cy - fy * local[..., 1] / ahead
    size = torch.tensor([camera_b.width, camera_b.height], device=image_b.device)
    place = 2 * torch.stack([across, down], dim=-1) / size - 1
    inside = (ahead > 0) & (place.abs() <= 1 - 1 / size).all(-1)  # up to the centres of the outer pixels; not NaN
    place = torch.where(inside[..., None], place, 0)
    moved = F.grid_sample(image_b, place, align_corners=False)
    seen = F.grid_sample(depth_b[:, None], place, padding_mode="border", align_corners=False)[:, 0]
    return moved, inside & ((local.norm(dim=-1) - seen).abs() < tolerance)


def disagreement(image_a: Tensor, image_b: Tensor, *where) -> tuple[Tensor, Tensor]:
    """|a − b'| of pictures (N, C, H, W), b' = `warp(image_b, *where)`: (N, H, W), the channels' mean, or 0."""
    moved, valid = warp(image_b, *where)
    return (image_a - moved).abs().mean(1).masked_fill(~valid, 0), valid


def view_consistency(images: Tensor, depths: Tensor, cameras: Cameras) -> float:
    """Mean absolute difference of each view and the next, warped onto it, over the pixels that both see.

    What is blurred differs less, so compare views of one sharpness, or the same ones before they were refined.

    Args:
        images: (V, C, H, W) in [0, 1], in the order of a turn.
        depths: (V, h, w) as `surface` gives.
        cameras: V of them, of the images' size.

    Raises:
        DataError: neighbours have nothing in common.
    """
    if len(images) < 2:
        raise DataError(f"{len(images)} views have no neighbours: give at least 2")
    total, count = 0.0, 0
    for i in range(len(images) - 1):
        where = depths[[i]], depths[[i + 1]], cameras[i], cameras[i + 1]
        difference, valid = disagreement(images[[i]], images[[i + 1]], *where)
        total, count = total + float(difference.sum()), count + int(valid.sum())
    if not count:
        raise DataError("neighbouring views show nothing in common: give views that lie closer")
    return total / count
