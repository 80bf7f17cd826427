"""The space that diffusion works in: planes less the mean person, on the scale of what can be seen.

Fitted planes hold much that no picture shows. Most channels hardly move a pixel and the room around a person moves
none, yet a loss on planes with a standard deviation of one a channel counts them all alike: the details of a face are
then a few thousandths of it (notebook 02). So channels are measured by what they do to pictures:

    x = W (y − ȳ),    WᵀW ∝ E[JᵀJ] + a floor,    J = ∂ picture / ∂ planes.

Where texels do not matter and changes are small, the distance of two planes x is then that of their pictures.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from minirodin.cameras import capture_cameras, pixel_rays
from minirodin.config import RenderConfig
from minirodin.decoder import TriplaneDecoder
from minirodin.render import occupancy_from_planes, render_rays

PEOPLE, VIEWS = 64, 4  # that the metric is an average over
FLOOR = 0.02  # of the mean channel's visibility, given to all: no direction may be lost


@dataclass(frozen=True)
class PlaneSpace:
    """Planes y (..., 3, C, R, R) on the decoder's scale as x = W (y − ȳ), of the same shape.

    Attributes:
        mean: ȳ, (3, C, R, R).
        weight: W, (C, C), invertible.

    Example:
        >>> space = PlaneSpace.of(planes, visible_metric(planes, decoder, config.render))
        >>> x = space.standardise(planes)
        >>> assert torch.allclose(space.unstandardise(x), planes, atol=1e-4)
    """

    mean: Tensor
    weight: Tensor

    @classmethod
    def of(cls, planes: Tensor, metric: Tensor | None) -> "PlaneSpace":
        """The space of these people.

        Args:
            planes: (S, 3, C, R, R) of any float type.
            metric: (C, C), from `visible_metric`; None: all channels count alike.

        Returns:
            One in which the channels' principal variances, each weighted by itself, average 1; on the planes' device.
        """
        c, mean = planes.shape[2], planes.mean(0, dtype=torch.float32)
        some = planes[:PEOPLE].float() - mean
        std = some.std((0, 1, 3, 4)).clamp_min(1e-4)  # a channel that nothing uses stays silent
        weight = torch.eye(c, device=planes.device)
        if metric is not None:
            seen = metric.to(std) * std[:, None] * std
            values, axes = torch.linalg.eigh(seen * (c / seen.trace()))
            weight = (axes * (values.clamp_min(0) + FLOOR).sqrt()) @ axes.T
        weight = weight / std
        covariance = torch.einsum("skchw,skdhw->cd", some, some) * (c / some.numel())
        variances = torch.linalg.eigvalsh(weight @ covariance @ weight.T)
        return cls(mean, weight * (variances.sum() / variances.square().sum()).sqrt())

    def standardise(self, planes: Tensor) -> Tensor:
        """y → x."""
        return _mix(self.weight, planes.float() - self.mean)

    def unstandardise(self, planes: Tensor) -> Tensor:
        """x → y."""
        return _mix(self.inverse, planes.float()) + self.mean

    @cached_property
    def inverse(self) -> Tensor:
        """W⁻¹, (C, C)."""
        return torch.linalg.inv(self.weight)

    def to(self, device: str | torch.device) -> "PlaneSpace":
        return PlaneSpace(self.mean.to(device), self.weight.to(device))


def _mix(weight: Tensor, planes: Tensor) -> Tensor:
    with torch.autocast(planes.device.type, enabled=False):  # in 16 bits the inverse would make grain of rounding
        return torch.einsum("dc,...chw->...dhw", weight, planes)


def visible_metric(planes: Tensor, decoder: TriplaneDecoder, render: RenderConfig, seed: int = 0) -> Tensor:
    """How pictures answer to channels: E[JᵀJ] summed over texels and pixels, averaged over people and cameras.

    Args:
        planes: (S, 3, C, R, R); the first `PEOPLE`, each looked at from `VIEWS` cameras of its own, R × R pixels.
        decoder: on any device; left as it is.
        seed: of the signs; the cameras are always the same.

    Returns:
        (C, C), symmetric, positive semi-definite, on the planes' device.
    """
    flat = (g.transpose(0, 1).flatten(1) for g in _answers(planes, decoder, render, seed))  # (C, 3·R²)
    return torch.stack([g @ g.T for g in flat]).mean(0).to(planes.device)


def visible_texels(
    planes: Tensor, decoder: TriplaneDecoder, render: RenderConfig, space: PlaneSpace, seed: int = 0
) -> Tensor:
    """How pictures answer to texels of `space`: the diagonal of E[JᵀJ], J = ∂ picture / ∂x, summed over channels.

    Args as for `visible_metric`.

    Returns:
        (3, R, R), of mean 1, on the planes' device. The room around people has none.
    """
    inverse = space.inverse.T  # ∂I/∂x = W⁻ᵀ ∂I/∂y
    answers = [_mix(inverse.to(g), g).square().sum(1) for g in _answers(planes, decoder, render, seed)]
    seen = torch.stack(answers).mean(0).to(planes.device)
    return seen / seen.mean()


def _answers(planes: Tensor, decoder: TriplaneDecoder, render: RenderConfig, seed: int) -> Iterator[Tensor]:
    """g = ∂(r·I)/∂planes, (3, C, R, R), of each picture I, for random signs r: E[g gᵀ] = JᵀJ (Hutchinson 1990)."""
    size, views = planes.shape[-1], min(PEOPLE, len(planes)) * VIEWS
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = copy.deepcopy(decoder).to(device).requires_grad_(False)
    cameras = capture_cameras(views, size, seed=0)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.arange(size * size, device=device)
    for i in range(views):
        y = planes[i // VIEWS, None].to(device, torch.float32).requires_grad_(True)
        occupancy = occupancy_from_planes(y.detach(), decoder, render.grid)
        matrix, intrinsics = (v[i].float().to(device) for v in (cameras.camera_to_world, cameras.intrinsics))
        rays = (r[None] for r in pixel_rays(matrix, intrinsics, pixels % size, pixels // size))
        with torch.enable_grad():
            seen = render_rays(y, decoder, *rays, occupancy, render.bins, render.samples)
            picture = seen.over(torch.ones(3, device=device))
            signs = torch.randint(0, 2, picture.shape, generator=generator).to(picture) * 2 - 1
            (g,) = torch.autograd.grad((signs * picture).sum(), y)
        yield g[0]
