"""Training the upsampler: the plane loss (E17) on spoiled conditions (E18), and the perceptual patch loss (E19)."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minirodin.avatar import Avatar
from minirodin.base_training import load_latents
from minirodin.config import Config, UpsamplerConfig
from minirodin.decoder import TriplaneDecoder
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.patches import Views, photographs
from minirodin.perceptual import PerceptualDistance
from minirodin.picture_losses import PictureLosses
from minirodin.plane_space import PEOPLE, PlaneSpace, visible_metric
from minirodin.plots import contact_sheet
from minirodin.shards import FittedPlanes, check_one_decoder, fingerprint
from minirodin.streaming import PlaneSource, load_planes
from minirodin.training import Trainer
from minirodin.triplane import resize_planes
from minirodin.upsampler import KIND, Upsampler, augment, build_network, conditioned, detail_space, told

PREVIEWS = 4


def train_upsampler(
    data: str | Path,
    config: Config,
    out: str | Path,
    validation: str | Path | None = None,
    captures: str | Path | None = None,
    show_progress: bool = True,
) -> Upsampler:
    """Learn the detail of fitted planes (E17–E19).

    Args:
        data: folder that `fit_subjects` wrote, with planes of the high resolution; with `upsampler.unet.latent` also of
            `latents.safetensors`.
        config: `config.upsampler` says which network, process and losses.
        out: folder for `model.safetensors`, `decoder.safetensors`, `log.csv`, `loss.png` and `preview-STEP.png`.
        validation: another such folder, under the same decoder, for the log and the previews.
        captures: the photographs of the people in `data`, to compare patches with; else with their fitted planes.

    Returns:
        The upsampler with averaged weights.

    Raises:
        DataError, CheckpointError, ConfigError: one line that names what does not fit.
    """
    out, c = Path(out), config.upsampler
    check_settings(c)
    shared = FittedPlanes(data).decoder
    t = shared.config.triplane
    if (given := config.triplane.channels) != t.channels:
        raise CheckpointError(f"{data} has planes of {t.channels} channels, preset {config.name!r} {given}")
    if t.resolution <= t.base_resolution:
        raise CheckpointError(f"{data} has planes of {t.resolution}², which nothing is left to add to: fit larger ones")
    if validation:
        check_one_decoder(FittedPlanes(data), FittedPlanes(validation))
    config = replace(shared.config, name=config.name, upsampler=c)  # the rest is as the planes were fitted
    source = PlaneSource(data, t.resolution, c.train)
    names = source.names
    views = Views.around(c) if captures is None else photographs(captures, names, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c.train.seed)
        network = build_network(config)
    width = c.unet.latent
    latents, encoder = load_latents(data, names, width) if width else (None, "")  # (S, K, Z)
    low, detail = spaces(source.first(PEOPLE), shared.decoder, config)
    if not (low.weight.isfinite().all() and detail.weight.isfinite().all()):
        raise DataError(f"people in {data} do not differ ({len(names)} there): fit at least 2")
    model = Upsampler(network, shared, config, low, detail, encoder)
    eyes = PerceptualDistance(c.perceptual or None) if c.perceptual_weight else None
    looks = PictureLosses(shared.decoder, config.render, views, eyes, c.perceptual_weight)
    metadata = {
        "kind": KIND,
        "config": json.dumps(config.to_dict()),
        "decoder": fingerprint(shared.decoder),
        "subjects": f"{len(names)}: {names[0]} … {names[-1]}",
        "perceptual": eyes.name if eyes else "",
        "photographs": str(captures is not None),
        "encoder": encoder,
    }
    extra = {"low_mean": low.mean, "low_weight": low.weight, "detail_weight": detail.weight}

    def losses(network, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        z, people, truth = None, batch[0], batch[1].float()
        if latents is not None:
            versions = torch.randint(latents.shape[1], people.shape, generator=generator, device=people.device)
            z = latents[people, versions]
        return upsampler_losses(model, network, truth, people, looks, generator, z)

    def batches(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return source.draw(number, generator, *trainer.place)

    preview = None
    if validation:
        unseen, unseen_names = load_planes(validation, t.resolution)
        unseen_latents = None
        if latents is not None:
            unseen_latents = load_latents(validation, unseen_names, width)[0][:, 0]
        preview = _previews(model, out, unseen, unseen_latents)
    trainer = Trainer(network, losses, batches, c.train, out, metadata, extra, preview)
    model.to(trainer.device)
    source, looks = source.to(trainer.device), looks.to(trainer.device)
    latents = None if latents is None else latents.to(trainer.device)
    if trainer.accelerator.is_main_process:
        shared.save(out / "decoder.safetensors")
    trainer.run(show_progress)
    network.requires_grad_(False)
    return model


def upsampler_losses(
    model: Upsampler,
    network: Callable[..., Tensor],
    truth: Tensor,
    people: Tensor,
    looks: PictureLosses | None,
    generator: torch.Generator,
    latents: Tensor | None = None,
) -> dict[str, Tensor]:
    """E17 + E19 for a batch of planes `truth` (B, 3, C, R, R) of `people` (B,), their conditions spoiled (E18).

    Args:
        network: that of the model, or what stands for it in training.
        looks: at pictures of `upsampler.rendered` of them, of any noise level; None: the plane loss alone.
        latents: z (B, Z), for a network with `unet.latent`; some are withheld (E14).

    Returns:
        `loss` (scalar, to minimise), `simple` (B,), and what `looks` adds of those who were rendered.
    """
    config, c = model.config, model.config.upsampler
    small = resize_planes(truth, config.triplane.base_resolution)
    spoiled, noise = augment(model.low.standardise(small), c.augment, generator)
    given, enlarged = model.enlarged(spoiled)
    made, condition = [], ()
    if latents is not None:
        keep = torch.rand(len(latents), generator=generator, device=latents.device) >= c.unet.drop_latent
        condition = latents, keep

    def seen(x: Tensor, log_snr: Tensor) -> Tensor:
        output = conditioned(network, given, told(noise), *condition)(x, log_snr)
        made.append(model.diffusion.interpret(output.float(), x, log_snr).x0)
        return output

    result = model.diffusion.losses(seen, model.detail.standardise(truth - enlarged), generator)
    result = {name: result[name] for name in ("loss", "simple")}
    if looks is None:
        return result
    limit = config.fit.value_range
    which = torch.randperm(len(people), generator=generator, device=people.device)[: c.rendered]
    predicted = (enlarged[which] + model.detail.unstandardise(made[-1][which])).clamp(-limit, limit)
    return looks.added_to(result, predicted, truth[which], people[which], generator, *(v[which] for v in condition))


def spaces(planes: Tensor, decoder: TriplaneDecoder, config: Config) -> tuple[PlaneSpace, PlaneSpace]:
    """Of planes at the low resolution, and of the detail that they lack; channels count as pictures show them."""
    some = planes[:PEOPLE].float()
    low = resize_planes(some, config.triplane.base_resolution)
    metric = visible_metric(low, decoder, config.render)
    added = some - resize_planes(low, some.shape[-1])
    return PlaneSpace.of(low, metric), detail_space(PlaneSpace.of(added, metric).weight)


def check_settings(config: UpsamplerConfig) -> None:
    """Raise `ConfigError` for what no other part looks at before it is too late."""
    augment = config.augment
    above = {name: getattr(config, name) for name in ("perceptual_weight", "elsewhere")}
    above |= {"augment.blur": augment.blur, "augment.noise": augment.noise}
    wrong = [(name, value, "0 or more") for name, value in above.items() if not 0 <= value < math.inf]
    if not 0 < augment.smallest <= 1:
        wrong.append(("augment.smallest", augment.smallest, "more than 0, at most 1"))
    if len(config.face) != 3 or not all(map(math.isfinite, config.face)):
        wrong.append(("face", config.face, "three numbers"))
    if not 0 < config.face_radius < math.inf:
        wrong.append(("face_radius", config.face_radius, "more than 0"))
    if config.perceptual_weight and config.rendered < 1:
        wrong.append(("rendered", config.rendered, "at least 1, or perceptual_weight 0"))
    wrong += [(name, value, "at least 1") for name in ("view", "steps") if (value := getattr(config, name)) < 1]
    for name, value, wanted in wrong[:1]:
        raise ConfigError(f"upsampler.{name} is {value}: give {wanted}")


def _previews(model: Upsampler, out: Path, unseen: Tensor, latents: Tensor | None) -> Callable[[int], dict[str, float]]:
    """What is looked at along the way: people enlarged, upsampled and true, and how far upsampled planes are off."""

    def preview(step: int) -> dict[str, float]:
        truth = unseen[: 4 * PREVIEWS].float().to(model.device)
        known = None if latents is None else latents[: len(truth)].to(model.device)
        low, made = resize_planes(truth, model.config.triplane.base_resolution), []
        for i in range(0, len(low), PREVIEWS):
            part = slice(i, i + PREVIEWS)
            made.append(model.upsample(low[part], seed=i, latents=None if known is None else known[part]))
        made = torch.cat(made)
        large = resize_planes(low, truth.shape[-1])
        rows = [group[:PREVIEWS] for group in (large, made, truth)]
        look = [Avatar(p, model.shared.decoder, model.config).render(20, 5, size=192) for row in rows for p in row]
        contact_sheet(look, len(rows[0]), out / f"preview-{step:06d}.png")
        errors = (model.detail.standardise(p - truth).square().mean() for p in (made, large))
        return dict(zip(("validation", "validation_enlarged"), map(float, errors), strict=True))

    return preview
