"""The base diffusion model (E6–E14): planes at 64² of new people, of anybody or for a latent."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from minirodin.avatar import Avatar, to_rgb
from minirodin.config import BaseConfig, Config
from minirodin.diffusion import Diffusion
from minirodin.errors import CheckpointError, ConfigError
from minirodin.guidance import guided
from minirodin.plane_space import PlaneSpace
from minirodin.plots import contact_sheet
from minirodin.precision import checked, inference
from minirodin.progress import progress
from minirodin.sampling import SAMPLERS, Callback
from minirodin.shards import (
    FittedPlanes,
    SharedDecoder,
    begin_folder,
    config_from,
    fingerprint,
    load_weights,
    read_tensors,
)
from minirodin.unet import UNet

KIND = "base model"


class BaseModel:
    """A network with what turns its numbers into people.

    Args:
        network: a `UNet`.
        shared: the decoder that the planes it learned from were fitted to.
        config: of the run.
        space: in which it works, of those planes.
        encoder: fingerprint of the encoder whose latents condition it; None when nothing does.
    """

    def __init__(self, network: UNet, shared: SharedDecoder, config: Config, space: PlaneSpace, encoder: str = ""):
        self.network, self.shared, self.config = network, shared, config
        self.space, self.encoder = space, encoder
        self.diffusion = Diffusion(config.base.diffusion)
        self.dtype: torch.dtype | None = None  # to compute in; None: as `precision.fast_dtype`

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> "BaseModel":
        """Read what `train_base` left in a folder; raises `CheckpointError` in one line."""
        folder = Path(folder)
        path = folder / "model.safetensors"
        tensors, metadata = read_tensors(path, KIND)
        config = config_from(metadata, path)
        own = folder / "decoder.safetensors"  # or that of the pipeline
        shared = SharedDecoder.load(own if own.is_file() else folder.parent / own.name)
        if metadata.get("decoder") != fingerprint(shared.decoder):
            raise CheckpointError(f"{path} was not trained on planes of the decoder beside it")
        weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        network = load_weights(build_unet(config.base, config), weights, path, "network")
        c, r = config.triplane.channels, config.triplane.base_resolution
        for key, shape in {"mean": (3, c, r, r), "weight": (c, c)}.items():
            if tuple(tensors.get(key, torch.empty(0)).shape) != shape:
                raise CheckpointError(f"{path} lacks the planes' statistics ({key}): train it again")
        space = PlaneSpace(tensors["mean"].float(), tensors["weight"].float())
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(network, shared, config, space, metadata.get("encoder", "")).to(device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of its file, as `load` reads them."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        metadata = {"kind": KIND, "config": json.dumps(self.config.to_dict()), "encoder": self.encoder}
        metadata["decoder"] = fingerprint(self.shared.decoder)
        return tensors | {"mean": self.space.mean, "weight": self.space.weight}, metadata

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "BaseModel":
        """Move to a device, and from now on compute in `dtype`, in place; None leaves either. Weights stay float32."""
        device, self.dtype = device or self.device, checked(dtype) or self.dtype
        self.network.to(device, memory_format=torch.channels_last)
        self.shared.decoder.to(device)
        self.space = self.space.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.space.mean.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(3, C, R, R) of one sample."""
        return 3, self.network.channels, self.network.resolution, self.network.resolution

    def noise(self, count: int, seed: int) -> Tensor:
        """x_T of `count` samples, (count, 3, C, R, R), a stream each: sample i depends on seed + i alone."""
        streams = (torch.Generator().manual_seed(seed + i) for i in range(count))
        return torch.stack([torch.randn(self.shape, generator=g) for g in streams]).to(self.device)

    def sample(
        self,
        noise: Tensor,
        steps: int = 25,
        sampler: str = "dpm++",
        seed: int = 0,
        callback: Callback | None = None,
        latent: Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
    ) -> Tensor:
        """Planes of new people.

        Args:
            noise: (B, 3, C, R, R), from `noise`.
            steps: calls of the network.
            sampler: ancestral | ddim | dpm++.
            seed: of the noise that `ancestral` adds, to all of them from one stream.
            callback: as in `sampling`; sees standardised planes.
            latent: z (B, Z) of those to sample, for a model that was trained with latents; None: of nobody.
            guidance_scale, guidance_rescale: E14, as in `guidance.guided`.

        Returns:
            (B, 3, C, R, R) on the decoder's scale, inside the range that fitted planes have.

        Raises:
            ConfigError: an unknown sampler, fewer than one step, no usable scale. CheckpointError: noise or latents of
                another shape.
        """
        if sampler not in SAMPLERS:
            raise ConfigError(f"unknown sampler {sampler!r}: choose from {', '.join(SAMPLERS)}")
        if tuple(noise.shape[1:]) != self.shape:
            raise CheckpointError(f"noise has shape {tuple(noise.shape)}, the model wants (B, {str(self.shape)[1:]}")
        device = noise.device
        network = self._conditioned(len(noise), latent, guidance_scale, guidance_rescale)
        limit = self.config.fit.value_range

        def clip(x0: Tensor) -> Tensor:
            return self.space.standardise(self.space.unstandardise(x0).clamp(-limit, limit))

        generator = torch.Generator(device).manual_seed(seed ^ 0xFFFFFFFF)  # not a stream of `noise`
        grid = self.diffusion.grid(steps, device)
        with inference(device, self.dtype):
            denoise = self.diffusion.denoiser(network)
            x0 = SAMPLERS[sampler](denoise, noise, grid, generator, callback, clip)
        return self.space.unstandardise(x0)

    def _conditioned(self, count: int, latent: Tensor | None, scale: float, rescale: float) -> Callable:
        """The network as samplers and losses want it, of (x_t, λ) alone."""
        width = self.config.base.unet.latent
        if latent is not None and tuple(latent.shape) != (count, width):
            wanted = f"({count}, {width})" if width else "none"
            raise CheckpointError(f"latents have shape {tuple(latent.shape)}, the model wants {wanted}")
        if not (math.isfinite(scale) and abs(scale) <= 100 and 0 <= rescale <= 1):
            raise ConfigError(f"guidance scale {scale} and rescale {rescale}: give at most ±100, and 0 to 1")
        if not width:
            return self.network
        if latent is None:
            latent, scale = torch.zeros(count, width), 0.0
        return guided(self.network, latent.float().to(self.device), scale, rescale)

    def avatar(self, planes: Tensor) -> Avatar:
        """An `Avatar` of planes (3, C, R, R) on the decoder's scale."""
        return Avatar(planes.to(self.device), self.shared.decoder, self.shared.config)


def build_unet(base: BaseConfig, config: Config) -> UNet:
    """The network of a base model, for the planes of a config."""
    return UNet(base.unet, config.triplane.channels, config.triplane.base_resolution, Diffusion(base.diffusion).outputs)


def sample_people(
    model: BaseModel,
    count: int,
    out: str | Path,
    steps: int = 25,
    sampler: str = "dpm++",
    seed: int = 0,
    batch: int = 32,
    views: tuple[float, ...] = (0.0, 60.0),
    show_progress: bool = True,
    latents: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> FittedPlanes:
    """Sample `count` people into a folder like that of a fit, so that every command that reads one reads it.

    Leaves `planes-*.safetensors`, `decoder.safetensors` and `sheet.png`, each person from every azimuth of `views`. The
    same call, also with a larger `count` or another seed, adds those who are not there yet. With latents (count, Z)
    person i is sampled for latent i (E13), guided (E14).

    Raises:
        CheckpointError: `out` holds people of another model or of other settings.
    """
    settings = {"steps": steps, "sampler": sampler}
    if latents is not None:
        digest = hashlib.sha256(latents.float().cpu().numpy().tobytes()).hexdigest()
        settings |= {"latents": digest, "guidance_scale": guidance_scale, "seed": seed}
    people = begin_folder(out, {"model": fingerprint(model.network), **settings}, model.shared)
    names = [f"sample-{seed + i:06d}" for i in range(count)]
    done = next((i for i, name in enumerate(names) if name not in people), count)
    for start in progress(range(done, count, batch), desc="sampling", unit="batch", enabled=show_progress):
        noise = model.noise(min(batch, count - start), seed + start)
        z = None if latents is None else latents[start : start + len(noise)]
        planes = model.sample(noise, steps, sampler, seed + start, latent=z, guidance_scale=guidance_scale)
        people.write_shard(dict(zip(names[start:], planes, strict=False)), model.shared)
    first = [model.avatar(people.planes(name)) for name in names[:16]]
    pictures = [to_rgb(avatar.render(azimuth, 5)).cpu() for avatar in first for azimuth in views]
    contact_sheet(pictures, 4 * len(views), people.folder / "sheet.png")
    return people
