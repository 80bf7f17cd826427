"""Volume rendering (E3) with samples only where something is, and E4's distortion loss on the weights.

A ray's quadrature puts all of its K samples in the *occupied and visible* part of its length: a coarse density grid
says which cells hold anything, and where the ray is already opaque. Every ray has the same number of samples, so
shapes are static and nothing waits for the host.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minirodin.cameras import Cameras, pixel_rays
from minirodin.decoder import TriplaneDecoder
from minirodin.triplane import sample_planes


def ray_box(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave the box [−1, 1]³ (equal when they miss it); (..., 3) → (...), (...)."""
    inverse = 1 / torch.where(directions.abs() < 1e-9, 1e-9, directions)
    a, b = (-1 - origins) * inverse, (1 - origins) * inverse
    near, far = torch.minimum(a, b).amax(-1).clamp(min=0), torch.maximum(a, b).amin(-1)
    return near, torch.maximum(near, far)


@dataclass(frozen=True)
class Occupancy:
    """What may be where, on a grid of G³ cells a subject.

    Attributes:
        density: (B, G, G, G) lower estimate of σ in a cell, indexed [z, y, x]; makes rays end behind opaque matter.
        occupied: (B, G, G, G) bool, cells in which samples are worth their cost.
    """

    density: Tensor
    occupied: Tensor

    def __getitem__(self, index) -> "Occupancy":
        return Occupancy(self.density[index], self.occupied[index])

    @classmethod
    def full(cls, subjects: int, grid: int, device) -> "Occupancy":
        shape = (subjects, grid, grid, grid)
        return cls(torch.zeros(shape, device=device), torch.ones(shape, dtype=torch.bool, device=device))


def cell_centres(grid: int, device) -> Tensor:
    """(G³, 3) centres of the cells of a grid over the box, x fastest."""
    axis = (torch.arange(grid, device=device) + 0.5) / grid * 2 - 1
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], dim=-1).view(-1, 3)


@torch.no_grad()
def occupancy_from_planes(
    planes: Tensor, decoder: TriplaneDecoder, grid: int, within: Tensor | None = None, threshold: float = 2.0
) -> Occupancy:
    """Query the density at eight points of every cell; occupied where any exceeds a threshold, and one cell around.

    The threshold is `threshold`, or half the mean over the cells looked at while everything is thinner than that: a
    subject that has hardly begun keeps its cells.

    Args:
        planes: (B, 3, C, R, R).
        grid: cells an axis.
        within: (B, G, G, G) bool, the only cells to look at (the visual hull); all when None.
        threshold: σ under which a cell counts as empty (at 2 a cell of 1/32 absorbs 6 % of the light).
    """
    centres = cell_centres(grid, planes.device)
    quarter = 0.5 / grid
    signs = torch.tensor([-quarter, quarter], device=planes.device)
    corners = torch.cartesian_prod(signs, signs, signs)  # (8, 3)
    lowest = torch.zeros(len(planes), grid**3, device=planes.device)
    highest = torch.zeros_like(lowest)
    for b, subject in enumerate(planes):
        cells = torch.arange(grid**3, device=planes.device) if within is None else within[b].flatten().nonzero()[:, 0]
        for part in cells.split(1 << 17 if planes.is_cuda else 1 << 9):
            points = (centres[part, None] + corners).view(1, -1, 3)
            density = decoder.density(sample_planes(subject[None], points)).view(-1, 8)
            lowest[b, part], highest[b, part] = density.amin(1), density.amax(1)
    shape = (len(planes), 1, grid, grid, grid)
    looked_at = grid**3 if within is None else within.flatten(1).sum(1)
    limit = (0.5 * highest.sum(1) / looked_at).clamp(max=threshold)[:, None]
    wide = F.max_pool3d((highest >= limit).float().view(shape), 3, stride=1, padding=1)[:, 0] > 0
    # The eight points bound the density only inside them: a cell ends a ray only when its neighbours are as dense.
    least = -F.max_pool3d(-lowest.view(shape), 3, stride=1, padding=1)[:, 0]
    return Occupancy(least, wide if within is None else wide & within)


def ray_samples(
    origins: Tensor,
    directions: Tensor,
    occupancy: Occupancy,
    bins: int,
    samples: int,
    jitter: Tensor | float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Spread K samples evenly over the part of each ray that is occupied and can still be seen.

    Args:
        origins, directions: (B, N, 3), directions of unit length.
        occupancy: of the same B subjects.
        bins: grid look-ups a ray.
        samples: K.
        jitter: position within a stratum in [0, 1): (B, N, K) random numbers for training, 0.5 for pictures.

    Returns:
        Distances t (B, N, K), ascending, and the length δ (B, N, 1) that each sample stands for; δ = 0 on empty rays.
    """
    near, far = ray_box(origins, directions)  # (B, N)
    step = (far - near)[..., None] / bins  # (B, N, 1)
    centre = near[..., None] + step * (torch.arange(bins, device=near.device) + 0.5)  # (B, N, bins)
    points = origins[..., None, :] + directions[..., None, :] * centre[..., None]
    grid = occupancy.occupied.shape[-1]
    cell = ((points + 1) * (grid / 2)).long().clamp(0, grid - 1)  # (B, N, bins, 3)
    subject = torch.arange(len(origins), device=near.device)[:, None, None]
    flat = ((subject * grid + cell[..., 2]) * grid + cell[..., 1]) * grid + cell[..., 0]
    depth = (occupancy.density.flatten()[flat] * step).cumsum(-1)  # optical depth up to the end of each bin
    before = F.pad(depth[..., :-1], (1, 0))
    use = occupancy.occupied.flatten()[flat] & (before < 7.0)  # exp(−7) = 0.1 % of the light is left

    reached = use.float().cumsum(-1)  # occupied bins so far
    total = reached[..., -1:]
    stratum = (torch.arange(samples, device=near.device) + jitter) / samples
    u = stratum.expand(*total.shape[:-1], samples) * total  # (B, N, K) in occupied bins
    index = torch.searchsorted(reached, u.contiguous(), right=True).clamp(max=bins - 1)
    t = near[..., None] + step * (index + (u - reached.gather(-1, index) + 1))
    return t, step * total / samples


def composite(density: Tensor, delta: Tensor) -> Tensor:
    """E3: w_k = T_k (1 − exp(−σ_k δ_k)) with T_k = exp(−Σ_{j<k} σ_j δ_j).

    Args:
        density: σ (..., K) ≥ 0.
        delta: lengths δ (..., K) or (..., 1).

    Returns:
        Weights (..., K) ≥ 0 that sum to at most 1.
    """
    depth = density * delta
    before = F.pad(depth.cumsum(-1)[..., :-1], (1, 0))
    return torch.exp(-before) * -torch.expm1(-depth)


def distortion_loss(weights: Tensor, t: Tensor, delta: Tensor) -> Tensor:
    """E4 compactness, Mip-NeRF 360's Σ_ij w_i w_j |t_i − t_j| + ⅓ Σ_i w_i² δ_i, in O(K) by prefix sums.

    Args:
        weights, t: (..., K), t ascending along the ray.
        delta: (..., K) or (..., 1) lengths of the intervals.

    Returns:
        (...) one value a ray.
    """
    mass, moment = weights.cumsum(-1) - weights, (weights * t).cumsum(-1) - weights * t  # of all samples before
    return 2 * (weights * (t * mass - moment)).sum(-1) + (weights.square() * delta).sum(-1) / 3


@dataclass(frozen=True)
class Rendered:
    """What a ray sees: premultiplied `rgb` (..., 3), `alpha` and `depth` (...); per sample `weights`, `t`, `delta`."""

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    weights: Tensor
    t: Tensor
    delta: Tensor

    def over(self, background: Tensor) -> Tensor:
        """Colours over a background (broadcast against (..., 3)), in [0, 1]."""
        return self.rgb + (1 - self.alpha)[..., None] * background


def shade(
    planes: Tensor, decoder: TriplaneDecoder, origins: Tensor, directions: Tensor, t: Tensor, delta: Tensor
) -> Rendered:
    """E3: x̂ = R(c, σ) from given quadrature points; differentiable in the planes and the decoder.

    Args:
        planes: (B, 3, C, R, R).
        origins, directions: (B, N, 3).
        t, delta: (B, N, K) distances and (B, N, 1) lengths, from `ray_samples`.
    """
    points = origins[..., None, :] + directions[..., None, :] * t[..., None]  # (B, N, K, 3)
    features = sample_planes(planes, points.flatten(1, 2)).unflatten(1, t.shape[1:])  # (B, N, K, C)
    density, rgb = decoder(features, directions[..., None, :].expand_as(points))
    weights = composite(density, delta)
    return Rendered(
        rgb=(weights[..., None] * rgb).sum(-2),
        alpha=weights.sum(-1),
        depth=(weights * t).sum(-1),
        weights=weights,
        t=t,
        delta=delta,
    )


def render_rays(
    planes: Tensor,
    decoder: TriplaneDecoder,
    origins: Tensor,
    directions: Tensor,
    occupancy: Occupancy,
    bins: int = 128,
    samples: int = 64,
    jitter: Tensor | float = 0.5,
) -> Rendered:
    """`ray_samples`, then `shade`: N rays of each of B subjects, (B, N, 3)."""
    with torch.no_grad():
        t, delta = ray_samples(origins, directions, occupancy, bins, samples, jitter)
    return shade(planes, decoder, origins, directions, t, delta)


@torch.no_grad()
def render_views(
    planes: Tensor,
    decoder: TriplaneDecoder,
    cameras: Cameras,
    occupancy: Occupancy | None = None,
    bins: int = 128,
    samples: int = 64,
    grid: int = 64,
    chunk: int | None = None,
    depth: bool = False,
) -> Tensor:
    """Pictures of one subject.

    Args:
        planes: (3, C, R, R).
        cameras: V views.
        occupancy: of this subject (B = 1); made from the planes when not given.
        chunk: rays at a time; by default many on a GPU, and on a CPU so few that what they need stays in its caches.
        depth: add a fifth channel, how far from the camera the light of a pixel comes from; 0 where there is none.

    Returns:
        (V, H, W, 4) float32 in [0, 1], RGBA with straight alpha.
    """
    planes, device = planes[None], planes.device
    chunk = chunk or (1 << 16 if planes.is_cuda else 1 << 10)
    if occupancy is None:
        occupancy = occupancy_from_planes(planes, decoder, grid)
    pictures = torch.zeros(len(cameras), cameras.height * cameras.width, 5 if depth else 4, device=device)
    for picture, matrix, intrinsics in zip(pictures, cameras.camera_to_world, cameras.intrinsics, strict=True):
        pixels = torch.arange(cameras.height * cameras.width, device=device)
        for part in pixels.split(chunk):
            x, y = part % cameras.width, part // cameras.width
            rays = pixel_rays(matrix.float().to(device), intrinsics.float().to(device), x, y)
            t, delta = ray_samples(rays[0][None], rays[1][None], occupancy, bins, samples)
            hit = delta[0, :, 0].nonzero()[:, 0]  # most rays of a picture meet nothing
            o, d = (r[None, hit] for r in rays)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                out = shade(planes, decoder, o, d, t[:, hit], delta[:, hit])
            alpha = out.alpha.clamp(min=1e-6)[..., None]
            picture[part[hit], :4] = torch.cat([out.rgb / alpha, out.alpha[..., None]], dim=-1)[0].clamp(0, 1)
            if depth:
                picture[part[hit], 4] = (out.depth / alpha[..., 0])[0].float()
    return pictures.view(len(cameras), cameras.height, cameras.width, -1)
