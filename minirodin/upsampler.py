"""The tri-plane upsampler (E17, E18): planes of 64² → 256², by diffusion of the detail that the small ones lack.

E17 is y_θ(y_t^HR, y^LR, t) → y_0^HR. What is diffused here is the detail d = W (y^HR − up(y^LR)), the same process seen
from up(y^LR), which the network is given anyway: noise is then spent on what is unknown, and a network that says
nothing leaves the planes as they were, enlarged.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minirodin.avatar import Avatar
from minirodin.config import AugmentConfig, Config
from minirodin.diffusion import Diffusion
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.plane_space import PlaneSpace
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
from minirodin.triplane import resize_planes
from minirodin.unet import UNet

KIND = "upsampler"
CLEAREST = 10.0  # λ that the network is told of a condition without noise


def augment(low: Tensor, config: AugmentConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """E18: planes as the base model might have made them. Fewer texels, then a blur, then noise; a draw each person.

    Args:
        low: (B, 3, C, r, r), standardised.
        generator: on their device.

    Returns:
        Planes of the same shape, and the standard deviation of their noise, (B,).
    """

    def draw(bound: float) -> Tensor:
        return bound * torch.rand(len(low), generator=generator, device=low.device)

    size = low.shape[-1]
    sides = 1 - draw(1 - config.smallest)  # of each person's planes, as a part of their own
    fewer = torch.stack(
        [resize_planes(resize_planes(p[None], max(2, round(size * part))), size)[0] for p, part in
         zip(low, sides.tolist(), strict=True)]
    )  # fmt: skip
    blurred = gaussian_blur(fewer, draw(config.blur))
    noise = draw(config.noise)
    return blurred + noise.view(-1, 1, 1, 1, 1) * torch.randn(low.shape, generator=generator, device=low.device), noise


def gaussian_blur(planes: Tensor, deviation: Tensor) -> Tensor:
    """Each person's planes (B, 3, C, R, R) blurred by a Gaussian of `deviation` (B,) texels; 0 leaves them alone."""
    b, own = len(planes), (3 * deviation).ceil()  # texels that each kernel reaches, whatever the others do
    reach = int(own.max())
    steps = torch.arange(-reach, reach + 1, device=planes.device)
    kernel = torch.exp(-0.5 * (steps / deviation.clamp_min(1e-3)[:, None]).square())  # (B, K)
    kernel = kernel * (steps.abs() <= own[:, None])
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(planes.dtype)
    maps = rearrange(planes, "b k c h w -> (k c) b h w")  # (3C, B, R, R): a person is a channel
    maps = F.pad(maps, (reach,) * 4, mode="replicate")
    maps = F.conv2d(maps, kernel[:, None, :, None], groups=b)
    return rearrange(F.conv2d(maps, kernel[:, None, None], groups=b), "(k c) b h w -> b k c h w", k=planes.shape[1])


def told(noise: Tensor) -> Tensor:
    """The λ of a condition with noise of these deviations: (B,) → (B,)."""
    return (-2 * noise.clamp_min(1e-6).log()).clamp(max=CLEAREST)


class Upsampler:
    """A network with what turns its numbers into planes.

    Args:
        network: of `build_network`.
        shared: the decoder that all planes belong to.
        config: of the run.
        low: space of the planes it is given.
        detail: space of the difference that it makes; its mean is 0.
        encoder: fingerprint of the encoder whose latents condition it; "" when nothing does.

    Example:
        >>> upsampler = Upsampler.load("runs/upsampler")
        >>> sharper = upsampler.avatar(Avatar.load("avatar.safetensors"))
    """

    def __init__(
        self,
        network: UNet,
        shared: SharedDecoder,
        config: Config,
        low: PlaneSpace,
        detail: PlaneSpace,
        encoder: str = "",
    ):
        self.network, self.shared, self.config, self.low, self.detail = network, shared, config, low, detail
        self.encoder = encoder
        self.diffusion = Diffusion(config.upsampler.diffusion)
        self.dtype: torch.dtype | None = None  # to compute in; None: as `precision.fast_dtype`

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> "Upsampler":
        """Read what `train_upsampler` left in a folder; raises `CheckpointError` in one line."""
        path = Path(folder) / "model.safetensors"
        tensors, metadata = read_tensors(path, KIND)
        config = config_from(metadata, path)
        own = path.with_name("decoder.safetensors")  # or that of the pipeline
        shared = SharedDecoder.load(own if own.is_file() else path.parent.parent / own.name)
        if metadata.get("decoder") != fingerprint(shared.decoder):
            raise CheckpointError(f"{path} was not trained on planes of the decoder beside it")
        c, r = config.triplane.channels, config.triplane.base_resolution
        for key, shape in {"low_mean": (3, c, r, r), "low_weight": (c, c), "detail_weight": (c, c)}.items():
            if tuple(tensors.get(key, torch.empty(0)).shape) != shape:
                raise CheckpointError(f"{path} lacks the planes' statistics ({key}): train it again")
            usable = bool(tensors[key].isfinite().all())
            if not usable or (shape == (c, c) and torch.linalg.matrix_rank(tensors[key].float()) < c):
                raise CheckpointError(f"{path} has unusable statistics ({key}, NaN or singular): train it again")
        low = PlaneSpace(tensors["low_mean"].float(), tensors["low_weight"].float())
        network = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        try:
            network = load_weights(build_network(config), network, path, "network")
        except ConfigError as error:
            raise CheckpointError(f"{path} carries no usable configuration ({error})") from None
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        detail = detail_space(tensors["detail_weight"].float())
        return cls(network, shared, config, low, detail, metadata.get("encoder", "")).to(device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of its file, as `load` reads them."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {"low_mean": self.low.mean, "low_weight": self.low.weight, "detail_weight": self.detail.weight}
        metadata = {"kind": KIND, "config": json.dumps(self.config.to_dict()), "encoder": self.encoder}
        return tensors, metadata | {"decoder": fingerprint(self.shared.decoder)}

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "Upsampler":
        """Move to a device, and from now on compute in `dtype`, in place; None leaves either. Weights stay float32."""
        device, self.dtype = device or self.device, checked(dtype) or self.dtype
        self.network.to(device, memory_format=torch.channels_last)
        self.shared.decoder.to(device)
        self.low, self.detail = self.low.to(device), self.detail.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.low.mean.device

    def enlarged(self, low: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised planes (B, 3, C, r, r) at the high resolution: as they are, and on the decoder's scale."""
        size = self.config.triplane.resolution
        return resize_planes(low, size), resize_planes(self.low.unstandardise(low), size)

    def upsample(
        self,
        planes: Tensor,
        steps: int | None = None,
        seed: int = 0,
        sampler: str = "ddim",
        noise: float = 0.0,
        callback: Callback | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Planes with detail (E17).

        Args:
            planes: (B, 3, C, r, r) on the decoder's scale, fitted ones or the base model's.
            steps: calls of the network; 0: planes enlarged, without detail; None: as `upsampler.steps` of its config.
            seed: of the noise; person i of a batch has that of seed + i, but what `ancestral` adds is the batch's.
            sampler: ancestral | ddim | dpm++.
            noise: standard deviation of noise to spoil the condition with, as in training (E18); the network is told.
            callback: as in `sampling`; sees the detail.
            latents: z (B, Z) of these people, for a model that was trained with latents; None: of nobody.

        Returns:
            (B, 3, C, R, R) on the decoder's scale, inside the range that fitted planes have.

        Raises:
            CheckpointError: no planes, NaN in them, or planes or latents of another shape. ConfigError: an unknown
                sampler, a negative number of steps, or no usable noise.
        """
        t, limit = self.config.triplane, self.config.fit.value_range
        steps = self.config.upsampler.steps if steps is None else steps
        wanted = (3, t.channels, t.base_resolution, t.base_resolution)
        if tuple(planes.shape[1:]) != wanted:
            raise CheckpointError(f"planes have shape {tuple(planes.shape)}, the upsampler wants (B, {str(wanted)[1:]}")
        if not len(planes) or not planes.isfinite().all():
            raise CheckpointError("there is nobody to add detail to, or planes hold NaN or infinite values")
        width = self.config.upsampler.unet.latent
        if latents is not None and tuple(latents.shape) != (len(planes), width):
            known = f"({len(planes)}, {width})" if width else "none"
            raise CheckpointError(f"latents have shape {tuple(latents.shape)}, the upsampler wants {known}")
        if sampler not in SAMPLERS:
            raise ConfigError(f"unknown sampler {sampler!r}: choose from {', '.join(SAMPLERS)}")
        if not 0 <= noise <= 10:
            raise ConfigError(f"noise is {noise}: give a standard deviation from 0 to 10")
        streams = [torch.Generator().manual_seed(seed + i) for i in range(len(planes))]
        low = self.low.standardise(planes.to(self.device))
        low = low + noise * torch.stack([torch.randn(wanted, generator=g) for g in streams]).to(self.device)
        shape = (3, t.channels, t.resolution, t.resolution)
        start = torch.stack([torch.randn(shape, generator=g) for g in streams]).to(self.device)
        given, enlarged = self.enlarged(low)
        level = told(torch.full((len(planes),), noise, device=self.device))
        if not steps:
            return enlarged
        condition = ()
        if width:
            z = torch.zeros(len(planes), width) if latents is None else latents.float()
            condition = z.to(self.device), torch.full((len(z),), latents is not None, device=self.device)

        def clip(detail: Tensor) -> Tensor:
            inside = (enlarged + self.detail.unstandardise(detail)).clamp(-limit, limit)
            return self.detail.standardise(inside - enlarged)

        with inference(self.device, self.dtype), torch.no_grad():
            denoise = self.diffusion.denoiser(conditioned(self.network, given, level, *condition))
            generator = torch.Generator(self.device).manual_seed(seed ^ 0xFFFFFFFF)  # not one of `streams`
            grid = self.diffusion.grid(steps, self.device)
            detail = SAMPLERS[sampler](denoise, start, grid, generator, callback, clip)
        return enlarged + self.detail.unstandardise(detail)

    def reduced(self, avatar: Avatar) -> Avatar:
        """An avatar of larger planes at the size that the upsampler takes."""
        size = self.config.triplane.base_resolution
        return Avatar(resize_planes(avatar.planes, size), avatar.decoder, avatar.config, avatar.origin)

    def avatar(self, avatar: Avatar, steps: int | None = None, seed: int = 0, noise: float = 0.0) -> Avatar:
        """The same person with detail, that of their latent where the upsampler learned with that latent's encoder.

        Raises:
            CheckpointError: one of another decoder or size.
        """
        if fingerprint(avatar.decoder) != fingerprint(self.shared.decoder):
            raise CheckpointError("the avatar belongs to another decoder than the upsampler: planes do not compare")
        origin = avatar.origin
        z = origin.latent[None] if origin and self.encoder and origin.encoder == self.encoder else None
        planes = self.upsample(avatar.planes[None].to(self.device), steps, seed, noise=noise, latents=z)[0]
        return Avatar(planes, self.shared.decoder, self.shared.config, origin)


def upsample_people(
    model: Upsampler,
    people: str | Path,
    out: str | Path,
    steps: int | None = None,
    seed: int = 0,
    noise: float = 0.0,
    reduce: bool = False,
    batch: int = 8,
    show_progress: bool = True,
    latents: Tensor | None = None,
) -> FittedPlanes:
    """Everybody in a folder of planes, with detail, in another such folder; the same call goes on where it stopped.

    Args:
        reduce: planes are larger, and first made as small as the upsampler wants them.
        latents: (S, Z) of everybody, in the order of the folder's names, as for `Upsampler.upsample`.

    Raises:
        DataError: nobody is there. CheckpointError: planes of another decoder, or of another size, or others in `out`.
    """
    known = FittedPlanes(people)
    names = known.names
    if not names:
        raise DataError(f"{people} holds no planes: give a folder that `minirodin sample` or `minirodin fit` wrote")
    if known.decoders != {fingerprint(model.shared.decoder)}:
        raise CheckpointError(f"{people} belongs to another decoder than the upsampler: planes do not compare")
    digest = hashlib.sha256(b"" if latents is None else latents.float().cpu().numpy().tobytes())
    for path in sorted(known.folder.glob("planes-*.safetensors")):
        digest.update(path.read_bytes())
    steps = model.config.upsampler.steps if steps is None else steps
    settings = {"steps": steps, "seed": seed, "noise": noise, "reduce": reduce}
    run = {"model": fingerprint(model.network), "people": digest.hexdigest(), **settings}
    made = begin_folder(out, run, model.shared)
    done = next((i for i, name in enumerate(names) if name not in made), len(names))
    for start in progress(range(done, len(names), batch), desc="upsampling", unit="batch", enabled=show_progress):
        some = names[start : start + batch]
        planes = torch.stack([known.planes(name) for name in some])
        if reduce:
            planes = resize_planes(planes, model.config.triplane.base_resolution)
        z = None if latents is None else latents[start : start + len(some)]
        planes = model.upsample(planes, steps, seed + start, noise=noise, latents=z)
        made.write_shard(dict(zip(some, planes, strict=True)), model.shared)
    return made


def build_network(config: Config) -> UNet:
    """The network of an upsampler: noisy detail and the enlarged planes in, and both noise levels; detail out."""
    t, c = config.triplane, config.upsampler
    return UNet(c.unet, t.channels, t.resolution, Diffusion(c.diffusion).outputs, given=t.channels, levels=2)


def conditioned(
    network: Callable[..., Tensor], given: Tensor, level: Tensor, *condition: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network as samplers and losses want it, of (d_t, λ) alone; `condition` is its z and keep, if it has any."""
    return lambda x, log_snr: network(torch.cat([x, given], dim=2), torch.stack([log_snr, level], dim=1), *condition)


def detail_space(weight: Tensor) -> PlaneSpace:
    """Of differences, whose mean is 0."""
    return PlaneSpace(torch.zeros(3, len(weight), 1, 1, device=weight.device), weight)
