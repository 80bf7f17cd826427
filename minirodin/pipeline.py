"""What a user imports: `RodinPipeline`, everything together, and the `Avatar` that it makes."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minirodin.avatar import Avatar, Origin, to_rgb
from minirodin.base import BaseModel
from minirodin.errors import CheckpointError, ConfigError
from minirodin.latent import ImageTextEncoder
from minirodin.latent_diffusion import LatentModel
from minirodin.portraits import read_portrait

__all__ = ["Avatar", "RodinPipeline", "to_rgb"]
PROMPT_GUIDANCE = 2.0  # of the latent model towards a text
MAX_STRENGTH = 10.0  # of an edit
DRAWS, DRAW_STEPS = 48, 20  # latents that each text of an edit is turned into, and steps for them
REACH = 1.5  # times that difference is an edit of strength 1: what people of a text share is less than what tells it


class RodinPipeline:
    """Text, portrait or nothing in, an avatar out; edits and interpolations of latents (E13–E16).

    Args:
        base: the base diffusion model.
        encoder: of images and texts; needed for portraits, prompts and edits.
        prior: the diffusion model over latents; needed for prompts, and for anybody.

    Raises:
        CheckpointError: parts that were trained with different encoders.

    Example:
        >>> pipe = RodinPipeline.from_pretrained("runs/rodin")
        >>> avatar = pipe("a young woman with long red hair and round glasses", seed=3)
        >>> older = pipe.edit(avatar, "an old woman", source="a young woman")
    """

    def __init__(
        self, base: BaseModel, encoder: ImageTextEncoder | None = None, prior: LatentModel | None = None
    ):
        wanted = base.encoder
        for name, part in (("encoder", encoder and encoder.fingerprint), ("latent model", prior and prior.encoder)):
            if part is not None and part != wanted:
                raise CheckpointError(f"the {name} belongs to latents {part}, the base model to {wanted or 'none'}")
        self.base, self.encoder, self.prior = base, encoder, prior

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> "RodinPipeline":
        """Read `folder/base` and, where they are, `folder/encoder` and `folder/latent`; raises `CheckpointError`."""
        folder = Path(folder)
        if not (folder / "base").is_dir():
            raise CheckpointError(f"{folder} has no folder 'base': give one with base/, encoder/ and latent/")
        encoder = ImageTextEncoder.load(folder / "encoder", device) if (folder / "encoder").is_dir() else None
        prior = LatentModel.load(folder / "latent", device) if (folder / "latent").is_dir() else None
        return cls(BaseModel.load(folder / "base", device), encoder, prior)

    def __call__(
        self,
        prompt: str | None = None,
        image=None,
        latent: Tensor | None = None,
        seed: int = 0,
        guidance_scale: float = 1.5,
        num_inference_steps: int = 25,
    ) -> Avatar:
        """One avatar: described by `prompt`, seen in `image`, of a `latent` (Z,), or, with none of them, anybody.

        Args:
            image: as for `portraits.read_portrait`.
            seed: of all noise; the same seed and latent make the same avatar.
            guidance_scale: E14, of the base model towards the latent, and of the prior towards the prompt.
            num_inference_steps: calls of the base network.

        Raises:
            ConfigError: more than one description. DataError: an unusable one. CheckpointError: a part is missing.
        """
        if sum(given is not None for given in (prompt, image, latent)) > 1:
            raise ConfigError("give one of prompt, image and latent")
        if prompt is not None:
            text = self._part("encoder").texts([prompt])
            latent = self._part("prior").sample(1, text, seed, guidance_scale=PROMPT_GUIDANCE)[0]
        elif image is not None:
            latent = self.invert(image)
        elif latent is None and self.base.encoder:
            latent = self._part("prior").sample(1, seed=seed)[0]
        return self.sculpt(latent, seed, guidance_scale, num_inference_steps)

    def sculpt(
        self, latent: Tensor | None, seed: int = 0, guidance_scale: float = 1.5, num_inference_steps: int = 25
    ) -> Avatar:
        """The avatar of a latent (Z,) and a seed."""
        z = None if latent is None else latent[None].to(self.base.device)
        planes = self.base.sample(
            self.base.noise(1, seed), num_inference_steps, seed=seed, latent=z, guidance_scale=guidance_scale
        )
        avatar = self.base.avatar(planes[0])
        if latent is not None:
            avatar.origin = Origin(latent.float().cpu(), seed, self.base.encoder)
        return avatar

    def invert(self, image) -> Tensor:
        """E16: the latent (Z,) of a portrait; `image` as for `portraits.read_portrait`."""
        return self._part("encoder").images(read_portrait(image)[None])[0]

    def edit(
        self,
        subject: Avatar | Tensor,
        target: str,
        source: str | None = None,
        strength: float = 1.0,
        seed: int | None = None,
        guidance_scale: float = 1.5,
        num_inference_steps: int = 25,
    ) -> Avatar:
        """E16: the same person as `target` says, z′ = z + s·δ, with δ of `direction`.

        The noise stays that of the subject, so that what is not asked for changes little.

        Args:
            subject: an avatar of this pipeline, or a latent (Z,).
            source: what is to be replaced, in the same words as `target` where they agree; by default "a person".
            strength: s; 0 leaves the latent as it is, negative goes the other way.

        Raises:
            ConfigError: no usable strength. CheckpointError: an avatar of another encoder, or without a latent.
        """
        if not math.isfinite(strength) or abs(strength) > MAX_STRENGTH:
            raise ConfigError(f"strength is {strength}: give a number within ±{MAX_STRENGTH}")
        latent, noise = self._origin(subject)
        edited = F.normalize(latent + strength * self.direction(target, source).to(latent), dim=0)
        return self.sculpt(edited, noise if seed is None else seed, guidance_scale, num_inference_steps)

    def direction(self, target: str, source: str | None = None) -> Tensor:
        """E16: δ (Z,), the way from latents of people as `source` says to those as `target` says.

        The paper subtracts embeddings of texts. But texts lie beside the pictures of their space, and so does what
        leads from one text to another: latents leave the ground that the base model knows. So both texts are turned
        into latents of pictures first, by the latent model, from the same noise; δ leads from mean to mean. Without a
        latent model it is the difference of the texts.
        """
        texts = self._part("encoder").texts([target, source or "a person"])
        if self.prior is None:
            return texts[0] - texts[1]
        there, here = (
            self.prior.sample(DRAWS, text.expand(DRAWS, -1), steps=DRAW_STEPS, guidance_scale=PROMPT_GUIDANCE)
            for text in texts
        )
        return REACH * (there - here).mean(0)

    def interpolate(
        self, a: Avatar | Tensor, b: Avatar | Tensor, count: int = 5, guidance_scale: float = 1.5,
        num_inference_steps: int = 25,
    ) -> list[Avatar]:  # fmt: skip
        """Avatars along the arc between two latents, with the noise of the first."""
        (start, seed), (end, _) = self._origin(a), self._origin(b)
        angle = torch.arccos((start @ end).clamp(-1, 1)).clamp_min(1e-4)
        arc = [(torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)
               for t in torch.linspace(0, 1, count)]  # fmt: skip
        return [self.sculpt(F.normalize(z, dim=0), seed, guidance_scale, num_inference_steps) for z in arc]

    def _origin(self, subject: Avatar | Tensor) -> tuple[Tensor, int]:
        if isinstance(subject, Tensor):
            return F.normalize(subject.float().cpu(), dim=0), 0
        if subject.origin is None:
            raise CheckpointError("this avatar has no latent: invert a portrait of it, and edit that")
        if subject.origin.encoder != self.base.encoder:
            raise CheckpointError("this avatar's latent is of another encoder: invert a portrait of it, and edit that")
        return subject.origin.latent, subject.origin.seed

    def _part(self, name: str):
        part = getattr(self, name)
        if part is None:
            raise CheckpointError(f"this pipeline has no {name}: it can only sculpt latents that are given")
        return part
