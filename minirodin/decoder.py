"""The shared decoder (E2): a light MLP from queried features to density and view-dependent colour."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirodin.config import DecoderConfig


def fourier_features(x: Tensor, frequencies: int) -> Tensor:
    """ξ: sin(2^i π x / 2), cos(2^i π x / 2) for i < frequencies; (..., D) → (..., 2·frequencies·D)."""
    scales = math.pi / 2 * 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype)
    angles = (x[..., None, :] * scales[:, None]).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TriplaneDecoder(nn.Module):
    """E2: c(p, d), σ(p) = G_θ(y_p, ξ(y_p), d).

    The Fourier embedding is taken of the **features**, not of the coordinates: the decoder does not know where it is,
    so all shape lives in the planes. Only colour sees the direction.

    Args:
        channels: C of the planes.
        config: sizes.
    """

    def __init__(self, channels: int, config: DecoderConfig = DecoderConfig()):  # noqa: B008 (frozen)
        super().__init__()
        self.channels, self.config = channels, config
        width = channels * (1 + 2 * config.feature_frequencies)
        self.trunk = nn.Sequential(
            *[nn.Linear(width, config.hidden), nn.ReLU()],
            *[nn.Linear(config.hidden, config.hidden), nn.ReLU()],
        )
        self.density_head = nn.Linear(config.hidden, 1)
        directions = 3 * (1 + 2 * config.direction_frequencies)
        self.colour_head = nn.Sequential(
            *[nn.Linear(config.hidden + directions, config.hidden), nn.ReLU()],
            nn.Linear(config.hidden, 3),
        )
        nn.init.constant_(self.density_head.bias, -2.0)  # start almost transparent: rays see the whole volume

    def _trunk(self, features: Tensor) -> Tensor:
        return self.trunk(torch.cat([features, fourier_features(features, self.config.feature_frequencies)], dim=-1))

    def _density(self, hidden: Tensor) -> Tensor:
        return self.config.density_scale * F.softplus(self.density_head(hidden)[..., 0].float())

    def density(self, features: Tensor) -> Tensor:
        """σ ≥ 0, per unit of world length: (..., C) → (...) float32."""
        return self._density(self._trunk(features))

    def forward(self, features: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Density and colour.

        Args:
            features: (..., C) summed look-ups y_p.
            directions: (..., 3) unit view directions d.

        Returns:
            σ (...) ≥ 0 and RGB (..., 3) in [0, 1], float32.
        """
        hidden = self._trunk(features)
        d = torch.cat([directions, fourier_features(directions, self.config.direction_frequencies)], dim=-1)
        rgb = torch.sigmoid(self.colour_head(torch.cat([hidden, d.to(hidden.dtype)], dim=-1)).float())
        return self._density(hidden), rgb
