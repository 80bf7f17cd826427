"""Classifier-free guidance (E14): what the latent makes of the noise, exaggerated."""

from collections.abc import Callable

import torch
from torch import Tensor


def guided(
    network: Callable[..., Tensor], latent: Tensor, scale: float = 1.0, rescale: float = 0.0
) -> Callable[[Tensor, Tensor], Tensor]:
    """E14: out = λ·net(y, z) + (1 − λ)·net(y), as a network of (y_t, log-SNR) alone; both branches in one batch.

    ε, y_0 and v are linear in each other at a given y_t, so it does not matter which of them the network predicts, and
    all channels of it are guided. The variance (E8) is a place between two bounds: it never leaves them.

    Args:
        network: (y_t, log-SNR, z, keep) → (B, outputs, …), keep (B,) telling which samples have their z (`unet.UNet`).
        latent: z, (B, Z).
        scale: λ; 0 and 1 are the unconditional and the conditional network itself, at half the cost of the rest.
        rescale: φ in [0, 1], how far the prediction's deviation is brought back to the conditional one's, against the
            glare of large scales (Lin et al. 2023).

    Returns:
        (y_t, log-SNR) → (B, outputs, …).
    """

    def call(x: Tensor, log_snr: Tensor) -> Tensor:
        if scale in (0, 1):
            return network(x, log_snr, latent, torch.full((len(x),), bool(scale), device=x.device))
        keep = torch.arange(2 * len(x), device=x.device) < len(x)
        with_z, without = network(*(torch.cat([v, v]) for v in (x, log_snr, latent)), keep).float().chunk(2)
        out = torch.lerp(without, with_z, scale)
        if rescale:
            deviation, wanted = (v[:, 0].flatten(1).std(1) for v in (out, with_z))
            factor = 1 + rescale * (wanted / deviation - 1)
            out[:, 0] *= factor.view(-1, *[1] * (x.dim() - 1))
        out[:, 1:] = torch.lerp(without[:, 1:], with_z[:, 1:], min(max(scale, 0.0), 1.0))
        return out

    return call
