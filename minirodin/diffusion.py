"""The diffusion process: noise schedules, what the network predicts, and the losses (E6–E8).

Time is continuous: t ∈ [0, 1], 0 the data, 1 noise. A noise level is always given as its log-SNR λ = log(α²/σ²) with
α² + σ² = 1, so that α² = sigmoid(λ) and σ² = sigmoid(−λ). A schedule λ(t) says how training is shared among noise
levels; T steps enter in two places only, the bound of E8 and the samplers. Data is standardised (`plane_space`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minirodin.config import DiffusionConfig
from minirodin.errors import ConfigError


def alpha_sigma(log_snr: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """E6: α = √sigmoid(λ) and σ = √sigmoid(−λ); with `like`, shaped (B, 1, …) to multiply it."""
    if like is not None:
        log_snr = log_snr.view(-1, *[1] * (like.dim() - 1))
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


@dataclass(frozen=True)
class Denoised:
    """What a denoiser says of x_t: the data `x0`, the noise `eps`, and `fraction` (E8), all of the shape of x_t.

    `fraction` in [0, 1] places the log-variance of a step between its lower and upper bound; None when not learned.
    """

    x0: Tensor
    eps: Tensor
    fraction: Tensor | None = None


@dataclass(frozen=True)
class Gaussian:
    """A posterior q(x_s | x_t, x_0): `mean`, and the log-variances between which E8 interpolates."""

    mean: Tensor
    lower: Tensor
    upper: Tensor


def posterior(x_t: Tensor, x0: Tensor, log_snr_t: Tensor, log_snr_s: Tensor) -> Gaussian:
    """q(x_s | x_t, x_0) for a less noisy s < t; with r = exp(λ_t − λ_s) < 1,

        mean = r (α_s/α_t) x_t + (1 − r) α_s x_0,    lower = log((1 − r) σ_s²),    upper = log((1 − r) σ_t²).

    `lower` is the exact posterior (β̃ of DDPM), `upper` the variance of the forward step (β).

    Args:
        x_t, x0: (B, …).
        log_snr_t, log_snr_s: (B,) or scalars.
    """
    shape = [-1, *[1] * (x_t.dim() - 1)]
    t, s = log_snr_t.view(shape), log_snr_s.view(shape)
    (alpha_t, _), (alpha_s, _) = alpha_sigma(t), alpha_sigma(s)
    r = torch.exp(t - s)
    mean = r * (alpha_s / alpha_t) * x_t + (1 - r) * alpha_s * x0
    log_step = torch.log(-torch.expm1(t - s))
    return Gaussian(mean, log_step + F.logsigmoid(-s), log_step + F.logsigmoid(-t))


class Diffusion:
    """The process of a `DiffusionConfig`.

    Raises:
        ConfigError: an unknown schedule or prediction, a linear one shifted, λ_max ≤ λ_min,
            λ_stop ≤ λ_min, or no steps.
    """

    def __init__(self, config: DiffusionConfig):
        if config.schedule not in ("linear", "cosine"):
            raise ConfigError(f"unknown schedule {config.schedule!r}: choose linear or cosine")
        if config.prediction not in ("eps", "x0", "v"):
            raise ConfigError(f"unknown prediction {config.prediction!r}: choose eps, x0 or v")
        if config.schedule == "linear" and config.shift:
            raise ConfigError(f"shift {config.shift} is of the cosine schedule: give log_snr_min instead")
        if config.log_snr_max <= config.log_snr_min:
            raise ConfigError(f"log_snr_max {config.log_snr_max} must exceed log_snr_min {config.log_snr_min}")
        if config.log_snr_stop <= config.log_snr_min:
            raise ConfigError(f"log_snr_stop {config.log_snr_stop} must exceed log_snr_min {config.log_snr_min}")
        if config.steps < 1:
            raise ConfigError(f"diffusion.steps is {config.steps}: give at least 1")
        self.config = config

    @property
    def outputs(self) -> int:
        """Numbers that a network predicts for each value."""
        return 2 if self.config.vlb_weight > 0 else 1

    @property
    def stop(self) -> float:
        """λ at which sampling ends."""
        return min(self.config.log_snr_stop, self.config.log_snr_max)

    def log_snr(self, t: Tensor) -> Tensor:
        """λ(t), decreasing, for t in [0, 1].

        E6: λ = λ_max + (λ_min − λ_max) t. `cosine` (Nichol & Dhariwal 2021): α = cos(πt′/2), so λ = −2 log tan(πt′/2),
        plus `shift`, with t′ cut to the range in which λ lies between the same bounds.
        """
        c = self.config
        if c.schedule == "linear":
            return c.log_snr_max + (c.log_snr_min - c.log_snr_max) * t
        low, high = (math.atan(math.exp(0.5 * (c.shift - bound))) for bound in (c.log_snr_max, c.log_snr_min))
        return c.shift - 2 * torch.log(torch.tan(low + (high - low) * t))

    def grid(self, steps: int, device: torch.device | str = "cpu") -> Tensor:
        """λ from λ_min to λ_stop in N even steps, what a sampler walks through whatever the schedule: (N + 1,).

        A schedule is about training: where it spends little, a step of its own t would leap over much noise at once.
        λ_stop is λ_max unless set lower. Ended earlier, a sampler returns the mean of all details that would do: softer
        than any of them, but without those that a network draws badly.
        """
        if steps < 1:
            raise ConfigError(f"{steps} sampling steps were asked for: give at least 1")
        return torch.linspace(self.config.log_snr_min, self.stop, steps + 1, device=device)

    def q_sample(self, x0: Tensor, log_snr: Tensor, eps: Tensor) -> Tensor:
        """E6: y_t = α_t y_0 + σ_t ε."""
        alpha, sigma = alpha_sigma(log_snr, x0)
        return alpha * x0 + sigma * eps

    def target(self, x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        """What the network is to predict: ε, x_0, or v = α ε − σ x_0 (Salimans & Ho 2022)."""
        alpha, sigma = alpha_sigma(log_snr, x0)
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[self.config.prediction]

    def interpret(self, output: Tensor, x_t: Tensor, log_snr: Tensor) -> Denoised:
        """The network's output as x_0 and ε; the inverse of `target` together with `q_sample`.

        Args:
            output: (B, outputs, …), as `unet.UNet` returns it.
            x_t: (B, …).
            log_snr: (B,).
        """
        alpha, sigma = alpha_sigma(log_snr, x_t)
        predicted = output[:, 0]
        if self.config.prediction == "eps":
            x0, eps = (x_t - sigma * predicted) / alpha, predicted
        elif self.config.prediction == "x0":
            x0, eps = predicted, (x_t - alpha * predicted) / sigma
        else:
            x0, eps = alpha * x_t - sigma * predicted, sigma * x_t + alpha * predicted
        fraction = ((output[:, 1] + 1) / 2).clamp(0, 1) if self.outputs == 2 else None  # never beyond the bounds
        return Denoised(x0, eps, fraction)

    def denoiser(self, network: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Denoised]:
        """What samplers walk with: (x_t, λ of shape (B,)) → `Denoised`, float32."""
        return lambda x_t, log_snr: self.interpret(network(x_t, log_snr).float(), x_t, log_snr)

    def losses(
        self,
        network: Callable[..., Tensor],
        x0: Tensor,
        generator: torch.Generator,
        *condition: Tensor,
        weight: Tensor | float = 1.0,
    ) -> dict:
        """E7 + E8 for one batch.

        t is drawn evenly, one in each of B equal parts of [1/T, 1], so that a batch sees all noise levels.

        Args:
            network: (x_t, λ, *condition) → (B, outputs, …).
            x0: (B, …) standardised data.
            generator: on the device of x0; draws t and ε.
            condition: whatever else the network is to see.
            weight: of each value's squared error, of mean 1; broadcasts to x0. The best answer stays what it is.

        Returns:
            `loss` (scalar, to minimise), `simple` (of what is predicted), `vlb`, and `eps`, the error of ε̂ (E7)
            whatever is predicted, each (B,); `simple` and `eps` weighed.
        """
        b, steps = len(x0), self.config.steps
        u = torch.rand(b, device=x0.device, generator=generator)
        t = 1 / steps + (1 - 1 / steps) * (torch.arange(b, device=x0.device) + u) / b
        log_snr = self.log_snr(t)
        eps = torch.randn(x0.shape, device=x0.device, generator=generator)
        output = network(self.q_sample(x0, log_snr, eps), log_snr, *condition).float()
        error = (output[:, 0] - self.target(x0, eps, log_snr)).square()
        simple = (weight * error).flatten(1).mean(1)
        loss, vlb = simple.mean(), torch.zeros_like(simple)
        x0_error, eps_error = self.error_factors(log_snr)
        if self.outputs == 2:
            # E8: the bound trains the variance alone; the mean's own gradient through it is too noisy.
            error = error.detach() * x0_error.view(-1, *[1] * (x0.dim() - 1))
            vlb = self.vlb((output[:, 1] + 1) / 2, error, log_snr, self.log_snr(t - 1 / steps))
            loss = loss + self.config.vlb_weight * vlb.mean()
        return {"loss": loss, "simple": simple, "vlb": vlb, "eps": eps_error * simple}

    def error_factors(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """What a squared error of the prediction becomes in ŷ_0 and in ε̂, each (B,): see `interpret`."""
        alpha2, sigma2, one = log_snr.sigmoid(), (-log_snr).sigmoid(), torch.ones_like(log_snr)
        factors = {"eps": ((-log_snr).exp(), one), "x0": (one, log_snr.exp()), "v": (sigma2, alpha2)}
        return factors[self.config.prediction]

    def vlb(self, fraction: Tensor, error: Tensor, log_snr_t: Tensor, log_snr_s: Tensor) -> Tensor:
        """E8: T · KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)), s = t − 1/T, in nats a value: (B,).

        p has the mean of the posterior at the predicted x_0 and log σ² = f·upper + (1 − f)·lower, with f learned. With
        w = f·(upper − lower), and from `posterior` the means' squared distance over the lower variance, it is

            KL = ½ (w − 1 + e^{−w} (1 + (e^{λ_s} − e^{λ_t}) (x_0 − x̂_0)²)).

        With t drawn evenly this estimates the bound's sum over T steps, up to terms that the network has no part in.

        Args:
            fraction: f, (B, …).
            error: (x_0 − x̂_0)², (B, …).
            log_snr_t, log_snr_s: (B,).
        """
        t, s = (level.view(-1, *[1] * (error.dim() - 1)) for level in (log_snr_t, log_snr_s))
        w = fraction * (F.logsigmoid(-t) - F.logsigmoid(-s))
        kl = 0.5 * (w - 1 + torch.exp(-w) * (1 + (s.exp() - t.exp()) * error))
        return self.config.steps * kl.flatten(1).mean(1)
