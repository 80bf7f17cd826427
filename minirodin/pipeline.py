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
from minirodin.precision import checked
from minirodin.pretrained import CARD, checked_parts, locate, save_parts
from minirodin.refiner import Refiner, finishing
from minirodin.shards import fingerprint
from minirodin.upsampler import Upsampler

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
        upsampler: adds detail to the planes (E17).
        refiner: adds detail to pictures that are larger than the views it learned from (E20).

    Attributes:
        card: text of the model card; "" where there is none.

    Raises:
        CheckpointError: parts that were trained with different encoders or on planes of different decoders.

    Example:
        >>> pipe = RodinPipeline.from_pretrained("data_samples/pretrained/small")
        >>> avatar = pipe("a young woman with long red hair and round glasses", seed=3)
        >>> older = pipe.edit(avatar, "an old woman", source="a young woman")
        >>> pipe.to("cuda").save_pretrained("mine")
    """

    def __init__(
        self,
        base: BaseModel,
        encoder: ImageTextEncoder | None = None,
        prior: LatentModel | None = None,
        upsampler: Upsampler | None = None,
        refiner: Refiner | None = None,
    ):
        wanted = base.encoder
        known = {"encoder": encoder and encoder.fingerprint, "latent model": prior and prior.encoder}
        known["upsampler"] = (upsampler and upsampler.encoder) or None  # one that learned without latents fits any
        for name, part in known.items():
            if part is not None and part != wanted:
                raise CheckpointError(f"the {name} belongs to latents {part}, the base model to {wanted or 'none'}")
        if upsampler and fingerprint(upsampler.shared.decoder) != fingerprint(base.shared.decoder):
            raise CheckpointError("the upsampler belongs to another decoder than the base model: planes do not compare")
        self.base, self.encoder, self.prior, self.upsampler, self.refiner = base, encoder, prior, upsampler, refiner
        self.card = ""

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "RodinPipeline":
        """Read what a folder holds of base/, encoder/, latent/, upsampler/ and refiner/.

        Args:
            source: folder that `save_pretrained` or training runs left, or a name on the Hugging Face hub.
            device: by default the GPU if there is one.
            dtype: as for `to`.

        Raises:
            CheckpointError: no base model, or a file that is damaged or not the one that `model_index.json` lists.
        """
        folder = locate(source)
        kinds = {"base": BaseModel, "encoder": ImageTextEncoder, "latent": LatentModel}
        kinds |= {"upsampler": Upsampler, "refiner": Refiner}
        parts = {name: kinds[name].load(folder / name, device) for name in checked_parts(folder)}
        pipe = cls(prior=parts.pop("latent", None), **parts).to(dtype=dtype)
        if (folder / CARD).is_file():
            pipe.card = (folder / CARD).read_text(encoding="utf-8")
        return pipe

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the parts, `model_index.json` and the model card, as `from_pretrained` reads them; exact, and atomic.

        Raises:
            CheckpointError: the folder holds parts that this pipeline has not, or the encoder is a published model.
        """
        parts = {"base": self.base, "encoder": self.encoder, "latent": self.prior}
        parts |= {"upsampler": self.upsampler, "refiner": self.refiner}
        save_parts({name: part for name, part in parts.items() if part is not None}, folder, self.card)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "RodinPipeline":
        """Move to a device, in place, and say in which numbers the networks that make planes and pictures compute.

        Args:
            dtype: torch.bfloat16 or torch.float32; None leaves it, at first what is fast: bfloat16 on a GPU and on
                a CPU with AMX, else float32. Weights stay float32, as do the small networks of latents.

        Raises:
            ConfigError: another type.
        """
        for part in (self.base, self.upsampler):
            if part:
                part.to(device, dtype)
        if device:
            for part in (self.encoder, self.prior, self.refiner):
                if part:
                    part.to(device)
        if self.refiner:
            self.refiner.dtype = checked(dtype) or self.refiner.dtype
        return self

    def __call__(
        self,
        prompt: str | None = None,
        image=None,
        latent: Tensor | None = None,
        seed: int = 0,
        guidance_scale: float = 1.5,
        num_inference_steps: int = 25,
        upsample: bool | None = None,
        refine: bool | None = None,
    ) -> Avatar:
        """One avatar: described by `prompt`, seen in `image`, of a `latent` (Z,), or, with none of them, anybody.

        Args:
            image: as for `portraits.read_portrait`.
            seed: of all noise; the same seed and latent make the same avatar.
            guidance_scale: E14, of the base model towards the latent, and of the prior towards the prompt.
            num_inference_steps: calls of the base network.
            upsample: its planes go through the upsampler (E17); None: if there is one.
            refine: its pictures go through the refiner, where they are larger than what that learned from (E20); None:
                if there is one. A saved avatar loses this.

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
        return self.sculpt(latent, seed, guidance_scale, num_inference_steps, upsample, refine)

    def sculpt(
        self,
        latent: Tensor | None,
        seed: int = 0,
        guidance_scale: float = 1.5,
        num_inference_steps: int = 25,
        upsample: bool | None = None,
        refine: bool | None = None,
    ) -> Avatar:
        """The avatar of a latent (Z,) and a seed; the rest as for a call."""
        for name, asked in (("upsampler", upsample), ("refiner", refine)):
            if asked:
                self._part(name)  # before minutes are spent
        z = None if latent is None else latent[None].to(self.base.device)
        planes = self.base.sample(
            self.base.noise(1, seed), num_inference_steps, seed=seed, latent=z, guidance_scale=guidance_scale
        )
        avatar = self.base.avatar(planes[0])
        if latent is not None:
            avatar.origin = Origin(latent.float().cpu(), seed, self.base.encoder)
        if self.upsampler and upsample is not False:
            avatar = self.upsampler.avatar(avatar, seed=seed)
        if self.refiner and refine is not False:
            avatar.finish = finishing(self.refiner)
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
        upsample: bool | None = None,
        refine: bool | None = None,
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
        seed = noise if seed is None else seed
        return self.sculpt(edited, seed, guidance_scale, num_inference_steps, upsample, refine)

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
        num_inference_steps: int = 25, **settings,
    ) -> list[Avatar]:  # fmt: skip
        """Avatars along the arc between two latents, with the noise of the first; `settings`: upsample, refine."""
        (start, seed), (end, _) = self._origin(a), self._origin(b)
        angle = torch.arccos((start @ end).clamp(-1, 1)).clamp_min(1e-4)
        arc = [(torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)
               for t in torch.linspace(0, 1, count)]  # fmt: skip
        how = guidance_scale, num_inference_steps
        return [self.sculpt(F.normalize(z, dim=0), seed, *how, **settings) for z in arc]

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
            without = "it can only sculpt latents that are given" if name in ("encoder", "prior") else "leave it out"
            raise CheckpointError(f"this pipeline has no {name}: {without}")
        return part
