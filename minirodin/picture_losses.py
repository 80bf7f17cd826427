"""What pictures of predicted planes are asked in training: E19, and whether they look like whom a latent means."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minirodin.cameras import orbit_cameras
from minirodin.config import RenderConfig
from minirodin.decoder import TriplaneDecoder
from minirodin.errors import CheckpointError, ConfigError
from minirodin.latent import ImageTextEncoder
from minirodin.patches import Patches, Views
from minirodin.perceptual import PerceptualDistance
from minirodin.render import Occupancy, occupancy_from_planes, render_rays


def render_patches(
    planes: Tensor,
    decoder: TriplaneDecoder,
    patches: Patches,
    occupancy: Occupancy,
    render: RenderConfig,
    background: Tensor | None = None,
) -> Tensor:
    """What is seen on patches: planes (B, 3, C, R, R) → (B, 3, P, P), differentiable in the planes.

    Args:
        background: (B, 3); None: white.
    """
    behind = torch.ones(len(planes), 3, device=planes.device) if background is None else background
    out = render_rays(planes, decoder, *patches.rays(), occupancy, render.bins, render.view_samples)
    seen = out.over(behind[:, None]).clamp(0, 1)
    return seen.unflatten(1, (patches.size, patches.size)).permute(0, 3, 1, 2)


def perceptual_patch_loss(
    planes: Tensor,
    truth: Tensor,
    decoder: TriplaneDecoder,
    views: Views,
    people: Tensor,
    network: PerceptualDistance,
    render: RenderConfig,
    generator: torch.Generator,
) -> Tensor:
    """E19: Σ_l ‖Ψ^l(x̂) − Ψ^l(x)‖² of one patch of each person, (B,).

    x̂ is rendered from the predicted planes through the frozen decoder, x is the photograph where there is one, else
    rendered from the true planes. Both are sampled wherever either has matter, so that what one lacks is seen.

    Args:
        planes, truth: (B, 3, C, R, R) on the decoder's scale.
        views: pictures and cameras; `people` (B,) are these people's places in them.
    """
    patches, photograph = views.draw(people, generator)
    behind = views.behind(people)
    with torch.no_grad():
        a, b = (occupancy_from_planes(p, decoder, render.grid) for p in (planes.detach(), truth))
        occupancy = Occupancy(torch.minimum(a.density, b.density), a.occupied | b.occupied)
        if photograph is None:
            seen = render_patches(truth, decoder, patches, occupancy, render, behind)
        else:
            seen = torch.lerp(behind[:, None, None], photograph[..., :3], photograph[..., 3:]).permute(0, 3, 1, 2)
    return network(render_patches(planes, decoder, patches, occupancy, render, behind), seen)


def likeness_loss(
    planes: Tensor, latents: Tensor, decoder: TriplaneDecoder, encoder: ImageTextEncoder, render: RenderConfig
) -> Tensor:
    """1 − cos(E(x̂), z): how little frontal pictures of planes (B, 3, C, R, R) look like whom z (B, Z) means, (B,)."""
    camera, size = orbit_cameras(0, 0, encoder.towers.size), encoder.towers.size
    matrix, intrinsics = (v.float().to(planes.device) for v in (camera.camera_to_world, camera.intrinsics))
    corner = torch.zeros(len(planes), 2, dtype=torch.long, device=planes.device)
    whole = Patches(matrix.expand(len(planes), 4, 4), intrinsics.expand(len(planes), 4), corner, size)
    occupancy = occupancy_from_planes(planes.detach(), decoder, render.grid)
    seen = encoder.towers.images(render_patches(planes, decoder, whole, occupancy, render))
    return 1 - F.cosine_similarity(seen, latents)


def encoder_beside(folder: str | Path, wanted: str) -> ImageTextEncoder:
    """The encoder that lies beside a base model's folder, as in a pipeline.

    Raises:
        ConfigError: there are no latents that somebody could be like. CheckpointError: none, or not that of `wanted`.
    """
    if not wanted:
        raise ConfigError("likeness_weight is about latents: give unet.latent")
    encoder = ImageTextEncoder.load(Path(folder).parent / "encoder", "cpu")
    if encoder.fingerprint != wanted:
        raise CheckpointError(f"{encoder.source} is another encoder than that of the latents beside the planes")
    return encoder


@dataclass
class PictureLosses:
    """Both, weighed, for people whose planes are predicted.

    Attributes:
        decoder: frozen.
        views: where E19 looks.
        eyes: what it looks with; None: it does not.
        encoder: whose latents people have, for `likeness_loss`; None: likeness does not count.
    """

    decoder: TriplaneDecoder
    render: RenderConfig
    views: Views
    eyes: PerceptualDistance | None = None
    perceptual_weight: float = 0.0
    encoder: ImageTextEncoder | None = None
    likeness_weight: float = 0.0

    def to(self, device: torch.device) -> "PictureLosses":
        self.views, self.eyes = self.views.to(device), self.eyes and self.eyes.to(device)
        self.encoder = self.encoder and self.encoder.to(device)
        return self

    def added_to(
        self,
        result: dict[str, Tensor],
        planes: Tensor,
        truth: Tensor,
        people: Tensor,
        generator: torch.Generator,
        latents: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`result` with them in its `loss`, and with `perceptual` and `likeness` (B,), as far as they are looked at.

        Args:
            planes, truth: (B, 3, C, R, R) predicted and true, on the decoder's scale.
            people: (B,) places in the views.
            latents, keep: z (B, Z), and whether the network knew it (B,): who was nobody may look like anybody.
        """
        found = {}
        if self.eyes is not None:
            seen_by = self.decoder, self.views, people, self.eyes, self.render, generator
            found["perceptual"] = perceptual_patch_loss(planes, truth, *seen_by)
        if self.encoder is not None:
            found["likeness"] = keep * likeness_loss(planes, latents, self.decoder, self.encoder, self.render)
        weights = {"perceptual": self.perceptual_weight, "likeness": self.likeness_weight}
        return {**result, **found, "loss": result["loss"] + sum(weights[k] * v.mean() for k, v in found.items())}
