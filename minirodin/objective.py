"""What a fit minimises (E3 + E4), and in which variables: planes as a coarse grid plus detail."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirodin.config import Config
from minirodin.decoder import TriplaneDecoder
from minirodin.observations import RayBatch
from minirodin.render import Occupancy, distortion_loss, render_rays
from minirodin.triplane import resize_planes, sample_planes, total_variation


class PlaneGroup(nn.Module):
    """The planes of B subjects while they are fitted: a coarse grid plus detail, one common start.

    Both are parameters of the same planes, up(coarse) + detail. The split is a preconditioner: a coarse texel gathers
    the gradient of many fine ones, so that shape settles first, and texels that no ray meets stay smooth.
    """

    def __init__(self, subjects: int, config: Config, start: Tensor | None = None):
        super().__init__()
        t = config.triplane
        coarse = torch.zeros(subjects, 3, t.channels, t.base_resolution, t.base_resolution)
        if start is not None:
            coarse += resize_planes(start, t.base_resolution)
        detail = torch.zeros(subjects, 3, t.channels, t.resolution, t.resolution)
        if config.fit.start_noise:
            generator = torch.Generator().manual_seed(config.fit.seed)
            detail += config.fit.start_noise * torch.randn(detail.shape, generator=generator)
        self.coarse = nn.Parameter(_channels_last(coarse))
        self.detail = nn.Parameter(_channels_last(detail))
        self.value_range = config.fit.value_range

    def forward(self, resolution: int | None = None) -> Tensor:
        """The planes (B, 3, C, r, r) at one of the fitted sizes (default the largest), inside the value range."""
        planes = resize_planes(self.coarse, self.detail.shape[-1]) + self.detail
        planes = planes.clamp(-self.value_range, self.value_range)
        return planes if resolution is None else resize_planes(planes, resolution)


def _channels_last(planes: Tensor) -> Tensor:
    return planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def fitting_loss(
    planes: Tensor,
    decoder: TriplaneDecoder,
    batch: RayBatch,
    background: Tensor,
    occupancy: Occupancy,
    hull: Tensor,
    points: Tensor,
    jitter: Tensor,
    config: Config,
) -> tuple[Tensor, Tensor]:
    """E3 + E4 for one step.

    Args:
        planes: (B, 3, C, R, R), already at the step's resolution and with its noise (E5b, E5c).
        batch: N rays a subject.
        background: (B, N, 3) colour behind both the picture and the rendering.
        occupancy: where to put samples.
        hull: (B, G, G, G) bool, cells that may be occupied.
        points: (B, P, 3) anywhere in the box, at which density is discouraged.
        jitter: (B, N, K) in [0, 1).

    Returns:
        The loss to minimise, and the mean squared error alone.
    """
    fit = config.fit
    bins, samples = config.render.bins, config.render.samples
    out = render_rays(planes, decoder, batch.origins, batch.directions, occupancy, bins, samples, jitter)
    rgb, alpha = batch.rgba[..., :3], batch.rgba[..., 3:]
    mse = F.mse_loss(out.over(background), rgb * alpha + background * (1 - alpha))

    # log(1 + σ) keeps a gradient where the density is far too high, unlike the opacity itself.
    excess = torch.log1p(decoder.density(sample_planes(planes, points)))
    empty = ~_lookup(hull, points)
    sparsity = torch.where(empty, fit.free_space, fit.sparsity) * excess
    loss = (
        mse
        + sparsity.mean()
        + fit.distortion * distortion_loss(out.weights, out.t, out.delta).mean()
        + fit.total_variation * total_variation(planes)
        + fit.magnitude * planes.square().mean()
    )
    return loss, mse


def _lookup(grid: Tensor, points: Tensor) -> Tensor:
    size = grid.shape[-1]
    x, y, z = ((points + 1) * (size / 2)).long().clamp(0, size - 1).unbind(-1)
    return grid[torch.arange(len(grid), device=grid.device)[:, None], z, y, x]
