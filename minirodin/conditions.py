"""What the upsampler is given in training, before it is spoiled (E18): planes made small, or recalled by a base model.

E18 spoils clean planes until they look like the base model's. But a base model can be asked: noised planes of a known
person, taken to λ and denoised in one call, are as soft as a sample that ends there, and the truth stands beside them.
"""

from pathlib import Path

import torch
from torch import Tensor

from minirodin.base import BaseModel
from minirodin.errors import CheckpointError
from minirodin.shards import SharedDecoder, fingerprint
from minirodin.triplane import resize_planes

BELOW = 4.0  # how far under λ_stop people are recalled from, at most: a sample holds less of anybody than noised planes


class Conditions:
    """Planes of the high resolution → what stands for a sample of the same person, at the low one.

    Args:
        shared: the decoder of the planes.
        base: folder of a base model under the same decoder; None: planes are made small, and that is all.

    Raises:
        CheckpointError: one of another decoder.
    """

    def __init__(self, shared: SharedDecoder, base: str | Path | None = None):
        self.size = shared.config.triplane.base_resolution
        self.base = BaseModel.load(base, "cpu") if base else None
        if self.base and fingerprint(self.base.shared.decoder) != fingerprint(shared.decoder):
            raise CheckpointError(f"{base} belongs to another decoder than the planes")

    @property
    def latent(self) -> int:
        """Numbers of a latent that it needs; 0: none."""
        return self.base.config.base.unet.latent if self.base else 0

    def to(self, device: torch.device) -> "Conditions":
        if self.base:
            self.base.to(device)
        return self

    def __call__(self, planes: Tensor, latents: Tensor | None, generator: torch.Generator) -> Tensor:
        """(B, 3, C, R, R) and z (B, Z), on the decoder's scale → (B, 3, C, r, r)."""
        small = resize_planes(planes, self.size)
        if not self.base:
            return small
        log_snr = self.base.diffusion.stop - BELOW * torch.rand(len(small), generator=generator, device=small.device)
        return self.base.recalled(small, log_snr, generator, latents if self.latent else None)
