"""Samplers (E9): pure functions from noise to data that know a denoiser, a grid of noise levels, and nothing else.

All take the same arguments:

    denoise:    (x_t, λ of shape (B,)) → `Denoised`; of a network, guided or not, or a formula.
    x:          (B, …) noise, x_T.
    log_snrs:   (N + 1,) increasing λ, from `Diffusion.grid(N)`; N calls of the denoiser.
    callback:   called as callback(step, x_t, x0) before each step with what the denoiser made of x_t.
    clip:       x_0 → x_0 in its known range, applied to every prediction (`clamp`, `dynamic_threshold`), or None.

and return the last prediction of x_0: after the last call nothing is gained by adding noise back.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minirodin.diffusion import Denoised, alpha_sigma, posterior

Denoiser = Callable[[Tensor, Tensor], Denoised]
Callback = Callable[[int, Tensor, Tensor], None]
Clip = Callable[[Tensor], Tensor]


@torch.no_grad()
def ancestral(
    denoise: Denoiser,
    x: Tensor,
    log_snrs: Tensor,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    clip: Clip | None = None,
) -> Tensor:
    """E9: x_s ~ N(mean of q(x_s | x_t, x̂_0), σ²), with the learned variance (E8) where there is one, else the lower.

    Args:
        generator: on the device of x, draws the noise of each step.
    """
    for i in range(len(log_snrs) - 1):
        out = _denoise(denoise, x, log_snrs[i], clip)
        _report(callback, i, x, out.x0)
        if i == len(log_snrs) - 2:
            return out.x0
        step = posterior(x, out.x0, log_snrs[i], log_snrs[i + 1])
        log_variance = step.lower
        if out.fraction is not None:
            log_variance = out.fraction * step.upper + (1 - out.fraction) * step.lower
        noise = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
        x = step.mean + torch.exp(0.5 * log_variance) * noise
    return x


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    x: Tensor,
    log_snrs: Tensor,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    clip: Clip | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021), deterministic: x_s = α_s x̂_0 + σ_s ε̂. `generator` is not used."""
    for i in range(len(log_snrs) - 1):
        out = _denoise(denoise, x, log_snrs[i], clip)
        _report(callback, i, x, out.x0)
        if i == len(log_snrs) - 2:
            return out.x0
        alpha, sigma = alpha_sigma(log_snrs[i + 1])
        x = alpha * out.x0 + sigma * out.eps
    return x


@torch.no_grad()
def dpm_solver_pp(
    denoise: Denoiser,
    x: Tensor,
    log_snrs: Tensor,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    clip: Clip | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022), deterministic, second order in λ. `generator` is not used.

    In h = (λ_s − λ_t)/2 the exact solution is x_s = (σ_s/σ_t) x_t + α_s (1 − e^{−h}) · (mean of x̂_0 along the step);
    two predictions extrapolate that mean to the middle of the step.
    """
    last = None
    for i in range(len(log_snrs) - 1):
        out = _denoise(denoise, x, log_snrs[i], clip)
        _report(callback, i, x, out.x0)
        if i == len(log_snrs) - 2:
            return out.x0
        h = (log_snrs[i + 1] - log_snrs[i]) / 2
        x0 = out.x0
        if last is not None:
            x0 = x0 + (x0 - last) * h / (log_snrs[i] - log_snrs[i - 1])  # = (D_i − D_{i−1}) / 2r, r = h_{i−1}/h
        (_, sigma_t), (alpha_s, sigma_s) = alpha_sigma(log_snrs[i]), alpha_sigma(log_snrs[i + 1])
        x = (sigma_s / sigma_t) * x - alpha_s * torch.expm1(-h) * x0
        last = out.x0
    return x


SAMPLERS = {"ancestral": ancestral, "ddim": ddim, "dpm++": dpm_solver_pp}


def clamp(low: Tensor | float, high: Tensor | float) -> Clip:
    """Clip x_0 to fixed bounds (numbers, or tensors that broadcast): fitted planes have a known range."""
    return lambda x0: torch.maximum(torch.minimum(x0, torch.as_tensor(high).to(x0)), torch.as_tensor(low).to(x0))


def dynamic_threshold(quantile: float = 0.995, bound: float = 1.0) -> Clip:
    """Imagen's dynamic thresholding: when a sample's |x_0| exceeds `bound` at this quantile, clip there and rescale.

    The result lies in ±bound; what was inside stays as it is.
    """

    def clip(x0: Tensor) -> Tensor:
        size = x0.abs().flatten(1).float()
        k = max(1, round(quantile * size.shape[1]))
        limit = size.kthvalue(k, dim=1).values.clamp(min=bound).view(-1, *[1] * (x0.dim() - 1)).to(x0)
        return torch.minimum(torch.maximum(x0, -limit), limit) * (bound / limit)

    return clip


def _denoise(denoise: Denoiser, x: Tensor, log_snr: Tensor, clip: Clip | None) -> Denoised:
    out = denoise(x, log_snr.expand(len(x)))
    if clip is None:
        return out
    x0 = clip(out.x0)
    alpha, sigma = alpha_sigma(log_snr)
    return Denoised(x0, (x - alpha * x0) / sigma, out.fraction)  # the noise that goes with what was clipped


def _report(callback: Callback | None, step: int, x: Tensor, x0: Tensor) -> None:
    if callback is not None:
        callback(step, x, x0)
