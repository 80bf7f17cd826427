"""The base diffusion model (E6–E12): learned on fitted planes at 64², sampled to new people."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minirodin.config import BaseConfig, Config
from minirodin.diffusion import Diffusion
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.pipeline import Avatar, to_rgb
from minirodin.plots import contact_sheet
from minirodin.progress import progress
from minirodin.sampling import SAMPLERS, Callback, clamp
from minirodin.shards import (
    FittedPlanes,
    SharedDecoder,
    check_one_decoder,
    config_from,
    fingerprint,
    load_weights,
    read_tensors,
)
from minirodin.training import Trainer
from minirodin.triplane import plane_statistics, resize_planes, standardise, unstandardise
from minirodin.unet import UNet

KIND = "base model"
PREVIEWS, PREVIEW_STEPS = 8, 25


class BaseModel:
    """A network with what turns its numbers into people.

    Args:
        network: a `UNet`.
        shared: the decoder that the planes it learned from were fitted to.
        config: of the run.
        mean, std: (C,) of those planes; diffusion works on standardised ones.
    """

    def __init__(self, network: UNet, shared: SharedDecoder, config: Config, mean: Tensor, std: Tensor):
        self.network, self.shared, self.config = network, shared, config
        self.mean, self.std = mean, std
        self.diffusion = Diffusion(config.base.diffusion)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> "BaseModel":
        """Read what `train_base` left in a folder; raises `CheckpointError` in one line."""
        folder = Path(folder)
        path = folder / "model.safetensors"
        tensors, metadata = read_tensors(path, KIND)
        config = config_from(metadata, path)
        shared = SharedDecoder.load(folder / "decoder.safetensors")
        if metadata.get("decoder") != fingerprint(shared.decoder):
            raise CheckpointError(f"{path} was not trained on planes of the decoder beside it")
        if missing := [key for key in ("mean", "std") if key not in tensors]:
            raise CheckpointError(f"{path} lacks the planes' statistics ({missing[0]}): train it again")
        weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        network = load_weights(build_unet(config.base, config), weights, path, "network")
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(network, shared, config, tensors["mean"], tensors["std"]).to(device)

    def to(self, device: str | torch.device) -> "BaseModel":
        """Move to a device, in place."""
        self.network.to(device, memory_format=torch.channels_last)
        self.shared.decoder.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(3, C, R, R) of one sample."""
        return 3, self.network.channels, self.network.resolution, self.network.resolution

    def noise(self, count: int, seed: int) -> Tensor:
        """x_T of `count` samples, (count, 3, C, R, R), a stream each: sample i depends on seed + i alone."""
        streams = (torch.Generator().manual_seed(seed + i) for i in range(count))
        return torch.stack([torch.randn(self.shape, generator=g) for g in streams]).to(self.mean.device)

    def sample(
        self,
        noise: Tensor,
        steps: int = 25,
        sampler: str = "dpm++",
        seed: int = 0,
        callback: Callback | None = None,
    ) -> Tensor:
        """Planes of new people.

        Args:
            noise: (B, 3, C, R, R), from `noise`.
            steps: calls of the network.
            sampler: ancestral | ddim | dpm++.
            seed: of the noise that `ancestral` adds.
            callback: as in `sampling`; sees standardised planes.

        Returns:
            (B, 3, C, R, R) on the decoder's scale, inside the range that fitted planes have.

        Raises:
            ConfigError: an unknown sampler, or fewer than one step. CheckpointError: noise of another shape.
        """
        if sampler not in SAMPLERS:
            raise ConfigError(f"unknown sampler {sampler!r}: choose from {', '.join(SAMPLERS)}")
        if tuple(noise.shape[1:]) != self.shape:
            raise CheckpointError(f"noise has shape {tuple(noise.shape)}, the model wants (B, {str(self.shape)[1:]}")
        device = noise.device
        limit = self.config.fit.value_range
        limits = (torch.full((len(self.mean), 1, 1), value, device=device) for value in (-limit, limit))
        bounds = (standardise(value, self.mean, self.std) for value in limits)
        generator = torch.Generator(device).manual_seed(seed)
        grid = self.diffusion.grid(steps, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            denoise = self.diffusion.denoiser(self.network)
            x0 = SAMPLERS[sampler](denoise, noise, grid, generator, callback, clamp(*bounds))
        return unstandardise(x0.float(), self.mean, self.std)

    def avatar(self, planes: Tensor) -> Avatar:
        """An `Avatar` of planes (3, C, R, R) on the decoder's scale."""
        return Avatar(planes, self.shared.decoder, self.shared.config)


def build_unet(base: BaseConfig, config: Config) -> UNet:
    """The network of a base model, for the planes of a config."""
    return UNet(base.unet, config.triplane.channels, config.triplane.base_resolution, Diffusion(base.diffusion).outputs)


def load_planes(folder: str | Path, resolution: int) -> tuple[Tensor, list[str]]:
    """All planes of a fitted folder at one size: (S, 3, C, r, r) float16, and the subjects' names.

    Raises:
        DataError: there are none.
    """
    fitted = FittedPlanes(folder)
    if not len(fitted):
        raise DataError(f"{folder} holds no fitted planes: give the folder that `minirodin fit` wrote")
    return torch.stack([resize_planes(fitted.planes(name), resolution).half() for name in fitted.names]), fitted.names


def train_base(
    data: str | Path,
    config: Config,
    out: str | Path,
    validation: str | Path | None = None,
    show_progress: bool = True,
) -> BaseModel:
    """Learn the distribution of fitted planes (E6–E12).

    Args:
        data: folder that `fit_subjects` wrote.
        config: `config.base` says which network, process and schedule.
        out: folder for `model.safetensors`, `decoder.safetensors`, `log.csv`, `loss.png` and `preview-STEP.png`.
        validation: another such folder, under the same decoder, whose ε-loss is logged.

    Returns:
        The model with averaged weights.

    Raises:
        DataError, CheckpointError, ConfigError: one line that names what does not fit.
    """
    out = Path(out)
    shared = FittedPlanes(data).decoder
    t, given = shared.config.triplane, config.triplane
    if t.channels != given.channels:
        raise CheckpointError(f"{data} has planes of {t.channels} channels, preset {config.name!r} {given.channels}")
    config = replace(shared.config, name=config.name, base=config.base)  # the rest is as the planes were fitted
    if validation:
        check_one_decoder(FittedPlanes(data), FittedPlanes(validation))
    planes, names = load_planes(data, t.base_resolution)
    mean, std = plane_statistics(planes)
    std = std.clamp_min(1e-4)  # a channel that nothing uses stays silent
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.base.train.seed)
        network = build_unet(config.base, config)
    model = BaseModel(network, shared, config, mean, std)
    metadata = {
        "kind": KIND,
        "config": json.dumps(config.to_dict()),
        "decoder": fingerprint(shared.decoder),
        "subjects": f"{len(names)}: {names[0]} … {names[-1]}",
    }
    diffusion = model.diffusion

    def losses(network, batch: Tensor, generator: torch.Generator) -> dict:
        return diffusion.losses(network, standardise(batch.float(), model.mean, model.std), generator)

    def batches(number: int, generator: torch.Generator) -> Tensor:
        return planes[torch.randint(len(planes), (number,), generator=generator, device=planes.device)]

    trainer = Trainer(
        network, losses, batches, config.base.train, out, metadata, {"mean": mean, "std": std},
        _previews(model, out, load_planes(validation, t.base_resolution)[0] if validation else None),
    )  # fmt: skip
    model.to(trainer.device)
    planes = planes.to(trainer.device)
    if trainer.accelerator.is_main_process:
        shared.save(out / "decoder.safetensors")
    trainer.run(show_progress)
    network.requires_grad_(False)
    return model


def _previews(model: BaseModel, out: Path, validation: Tensor | None) -> Callable[[int], dict[str, float]]:
    """What is looked at along the way: people from the same noise every time, and the loss on held-out subjects."""

    def preview(step: int) -> dict[str, float]:
        people = model.sample(model.noise(PREVIEWS, seed=0), PREVIEW_STEPS)
        pictures = [model.avatar(p).render(azimuth, 5, size=96) for azimuth in (0, 60) for p in people]
        contact_sheet(pictures, PREVIEWS, out / f"preview-{step:06d}.png")
        return {} if validation is None else {"validation": validation_loss(model, validation)}

    return preview


def validation_loss(model: BaseModel, planes: Tensor, rounds: int = 8, batch: int = 64) -> float:
    """E7, the error of ε̂, on planes (S, 3, C, r, r) with the same noise and noise levels every time."""
    device, total, count = model.mean.device, 0.0, 0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for seed in range(rounds):
            for part in planes.split(batch):
                generator = torch.Generator(device).manual_seed(seed)
                x0 = standardise(part.to(device).float(), model.mean, model.std)
                eps = model.diffusion.losses(model.network, x0, generator)["eps"]
                total, count = total + float(eps.sum()), count + len(part)
    return total / count


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
) -> FittedPlanes:
    """Sample `count` people into a folder like that of a fit, so that every command that reads one reads it.

    Leaves `planes-*.safetensors`, `decoder.safetensors` and `sheet.png`, each person from every azimuth of `views`.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    people = FittedPlanes(out)
    model.shared.save(out / "decoder.safetensors")
    pictures = []
    starts = range(0, count, batch)
    for start in progress(starts, desc="sampling", unit="batch", enabled=show_progress):
        noise = model.noise(min(batch, count - start), seed + start)
        planes = model.sample(noise, steps, sampler, seed + start)
        people.write_shard({f"sample-{seed + start + i:06d}": p for i, p in enumerate(planes)}, model.shared)
        for p in planes[: max(0, 16 - start)]:
            avatar = model.avatar(p)
            pictures += [to_rgb(avatar.render(azimuth, 5)).cpu() for azimuth in views]
    contact_sheet(pictures, 4 * len(views), out / "sheet.png")
    return people
