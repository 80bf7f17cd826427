"""What the images say about subjects, on the device: coloured rays to learn from, and the visual hull of the masks."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minirodin.cameras import Capture, pixel_rays
from minirodin.errors import DataError
from minirodin.render import Occupancy, cell_centres


@dataclass(frozen=True)
class RayBatch:
    """N rays of each of B subjects: `origins`, `directions` (B, N, 3) and the pixels' `rgba` (B, N, 4) in [0, 1]."""

    origins: Tensor
    directions: Tensor
    rgba: Tensor


class Observations:
    """The training views of S subjects with V views of one size.

    Pixels are kept as bytes on the device. Rays are drawn near the subject only: what lies far outside the mask is
    known to be empty, and free space is supervised by points instead (`FitConfig.free_space`).

    Args:
        captures: of equal view count and image size.
        grid: cells an axis of the visual hull.
        device: where everything lives.

    Attributes:
        hull: (S, G, G, G) bool, cells that no mask rules out, indexed [z, y, x].
        background: (S, 3), RGB behind images that came without alpha; NaN where the background is free to choose.
    """

    def __init__(self, captures: list[Capture], grid: int, device: torch.device | str):
        shapes = {c.images.shape for c in captures}
        if len(shapes) > 1:
            a, b = sorted(shapes)[:2]
            raise DataError(f"captures fitted together differ in views or size: {a[:3]} and {b[:3]} (V, H, W)")
        train = captures[0].held_out()[0]
        self.pixels = torch.from_numpy(np.stack([c.images[train] for c in captures])).to(device)  # (S, V, H, W, 4)
        self.height, self.width = self.pixels.shape[2:4]
        self.camera_to_world = torch.stack([c.cameras.camera_to_world[train] for c in captures]).float().to(device)
        self.intrinsics = torch.stack([c.cameras.intrinsics[train] for c in captures]).float().to(device)
        fixed = [c.background if not c.has_alpha else (torch.nan,) * 3 for c in captures]
        self.background = torch.tensor(fixed, device=device)
        hulls, near = zip(*(self._hull_and_pixels(s, grid) for s in range(len(captures))), strict=True)
        self.hull = torch.stack(hulls)
        self._near = torch.cat(near)  # flat (view, row, column) indices of pixels worth a ray, subject after subject
        self._count = torch.tensor([len(n) for n in near], device=device)
        self._start = self._count.cumsum(0) - self._count

    def __len__(self) -> int:
        return len(self.pixels)

    def _hull_and_pixels(self, subject: int, grid: int) -> tuple[Tensor, Tensor]:
        """Carve the box by the masks, each widened by the size of a cell; also the pixels inside the widened masks."""
        mask = self.pixels[subject, ..., 3] > 0  # (V, H, W)
        centres = cell_centres(grid, mask.device)
        occupied = torch.ones(len(centres), dtype=torch.bool, device=mask.device)
        wide = torch.empty_like(mask)
        cameras = zip(self.camera_to_world[subject], self.intrinsics[subject], strict=True)
        for v, (matrix, intrinsics) in enumerate(cameras):
            local = (centres - matrix[:3, 3]) @ matrix[:3, :3]
            depth = -local[:, 2]
            x = intrinsics[2] + intrinsics[0] * local[:, 0] / depth
            y = intrinsics[3] - intrinsics[1] * local[:, 1] / depth
            # Half a cell's diagonal in pixels at the middle of the box, and one pixel for the mask's own edge.
            distance = matrix[:3, 3].norm().clamp(min=0.5)
            radius = 1 + int(min(1.8 / grid * float(intrinsics[0] / distance), max(self.height, self.width)))
            wide[v] = F.max_pool2d(mask[v][None].float(), 2 * radius + 1, 1, radius)[0] > 0
            inside = (depth > 0) & (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
            column, row = x.long().clamp(0, self.width - 1), y.long().clamp(0, self.height - 1)
            occupied &= ~inside | wide[v, row, column]
        near = wide.flatten().nonzero()[:, 0]
        if len(near) == 0 or not occupied.any():
            raise DataError("a capture shows nothing inside the box: its masks are empty or its cameras do not agree")
        return occupied.view(grid, grid, grid), near

    def hull_occupancy(self, subjects: slice | Tensor) -> Occupancy:
        """The hull as an occupancy without any matter yet."""
        hull = self.hull[subjects]
        return Occupancy(torch.zeros(hull.shape, device=hull.device), hull)

    def sample_rays(self, subjects: Tensor, rays: int, generator: torch.Generator) -> RayBatch:
        """Random pixels of random training views, uniform over those near the subject; subjects (B,) → (B, rays)."""
        draw = torch.rand(len(subjects), rays, device=self.pixels.device, generator=generator, dtype=torch.float64)
        pick = (draw * self._count[subjects, None]).long() + self._start[subjects, None]
        flat = self._near[pick]  # (B, N)
        x = flat % self.width
        y = flat // self.width % self.height
        view = flat // (self.width * self.height)
        s = subjects[:, None]
        origins, directions = pixel_rays(self.camera_to_world[s, view], self.intrinsics[s, view], x, y)
        return RayBatch(origins, directions, self.pixels[s, view, y, x].float() / 255)
