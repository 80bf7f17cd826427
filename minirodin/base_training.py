"""Training the base diffusion model on fitted planes at 64² (E6–E14)."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minirodin.base import KIND, BaseModel, build_unet
from minirodin.config import Config
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.patches import Views
from minirodin.perceptual import PerceptualDistance
from minirodin.picture_losses import PictureLosses, encoder_beside
from minirodin.plane_space import PlaneSpace, visible_metric, visible_texels
from minirodin.plots import contact_sheet
from minirodin.shards import FittedPlanes, check_one_decoder, fingerprint, load_weights
from minirodin.streaming import PlaneSource, load_planes
from minirodin.training import Trainer

PREVIEWS, PREVIEW_STEPS = 8, 25
FOCUSED = 0.05, 50.0  # times the mean texel's visibility, the least and the most: what is not seen must not drift
LEVELS = (6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0)  # λ at which errors are measured, whatever the schedule …
NOISIER = (-8.0, -10.0, -12.0)  # … and others in the log, where it is told by the latent alone who is meant
BELOW = 4.0  # how far under the λ where sampling ends ŷ_0 is still looked at: below that it is anybody


def load_latents(folder: str | Path, names: list[str], width: int) -> tuple[Tensor, str]:
    """What `minirodin encode` left beside planes, for these subjects: (S, K, Z) float32, and the encoder's fingerprint.

    Raises:
        DataError: there is none, or not for all of them.
    """
    from minirodin.latents import Latents

    path = Path(folder) / "latents.safetensors"
    if not path.exists():
        raise DataError(f"{path} is missing: make it with `minirodin encode ENCODER PEOPLE --out {path}`")
    latents = Latents.load(path)
    places = {name: i for i, name in enumerate(latents.names)}
    if missing := [name for name in names if name not in places]:
        raise DataError(f"{path} has no latent of {missing[0]} ({len(missing)} are missing): encode all people again")
    if latents.latents.shape[-1] != width:
        raise DataError(f"{path} has latents of {latents.latents.shape[-1]} numbers, unet.latent is {width}")
    return latents.latents[[places[name] for name in names]].float(), latents.fingerprint


def train_base(
    data: str | Path,
    config: Config,
    out: str | Path,
    validation: str | Path | None = None,
    show_progress: bool = True,
    start: str | Path | None = None,
) -> BaseModel:
    """Learn the distribution of fitted planes (E6–E12).

    Args:
        data: folder that `fit_subjects` wrote; with `base.unet.latent` also of `latents.safetensors`.
        config: `config.base` says which network, process and schedule.
        out: folder for `model.safetensors`, `decoder.safetensors`, `log.csv`, `loss.png` and `preview-STEP.png`. With
            `base.likeness_weight` the encoder lies beside it, as in a pipeline.
        validation: another such folder, under the same decoder, for the log: errors on people never seen, and on as
            many of `data`.
        start: folder of a base model of the same shape and decoder to begin from, instead of random weights. Its
            encoder may be another: it learns to follow the latents of `data`.

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
    e19 = config.upsampler
    config = replace(shared.config, name=config.name, base=config.base)  # the rest is as the planes were fitted
    if validation:
        check_one_decoder(FittedPlanes(data), FittedPlanes(validation))
    people = PlaneSource(data, t.base_resolution, config.base.train)
    names, known = people.names, people.known()  # (S, 3, C, r, r)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.base.train.seed)
        network = build_unet(config.base, config)
    width, encoder = config.base.unet.latent, ""
    latents = torch.zeros(len(people), 1, 0)  # of nobody
    if width:
        latents, encoder = load_latents(data, names, width)
    if start:
        begun = BaseModel.load(start, "cpu")
        if fingerprint(begun.shared.decoder) != fingerprint(shared.decoder):
            raise CheckpointError(f"{start} belongs to another decoder than {data}")
        load_weights(network, begun.network.state_dict(), Path(start), "network").requires_grad_(True)
        space = begun.space
    else:
        metric = visible_metric(known, shared.decoder, config.render) if config.base.visible else None
        space = PlaneSpace.of(known, metric)
    weight = torch.ones(())
    if config.base.focus:
        seen = visible_texels(known, shared.decoder, config.render, space).clamp(*FOCUSED) ** config.base.focus
        weight = (seen / seen.mean())[:, None]  # (3, 1, R, R)
    model, looks = BaseModel(network, shared, config, space, encoder), None
    if config.base.perceptual_weight or config.base.likeness_weight:
        c = config.base
        if not (all(v >= 0 for v in (c.perceptual_weight, c.likeness_weight, c.elsewhere)) and c.rendered >= 1):
            weights = f"{c.perceptual_weight} and {c.likeness_weight}, elsewhere {c.elsewhere}"
            raise ConfigError(
                f"base.perceptual_weight and likeness_weight are {weights}, base.rendered {c.rendered}: "
                "give 0 or more, and at least 1 to render"
            )
        eyes = PerceptualDistance(e19.perceptual or None) if c.perceptual_weight else None
        likeness = encoder_beside(out, encoder) if c.likeness_weight else None
        seen_by = shared.decoder, config.render, Views.around(replace(e19, elsewhere=c.elsewhere))
        looks = PictureLosses(*seen_by, eyes, c.perceptual_weight, likeness, c.likeness_weight)
    metadata = {
        "kind": KIND,
        "config": json.dumps(config.to_dict()),
        "decoder": fingerprint(shared.decoder),
        "subjects": f"{len(names)}: {names[0]} … {names[-1]}",
        "encoder": encoder,
        "start": fingerprint(network) if start else "",
    }
    measured = {}
    if validation:
        unseen, unseen_names = load_planes(validation, t.base_resolution)
        unseen_latents = load_latents(validation, unseen_names, width)[0][:, 0] if width else None
        measured["validation"] = unseen, unseen_latents
        measured["trained"] = people.first(len(unseen)), latents[: len(unseen), 0] if width else None

    def losses(network, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict:
        x0, z = model.space.standardise(batch[0]), batch[1]
        condition, made = (), []
        if width:
            keep = torch.rand(len(z), generator=generator, device=z.device) >= config.base.unet.drop_latent
            condition = z, keep

        def seen(x: Tensor, log_snr: Tensor, *condition: Tensor) -> Tensor:
            output = network(x, log_snr, *condition)
            made[:] = log_snr, model.diffusion.interpret(output.float(), x, log_snr).x0
            return output

        result = model.diffusion.losses(seen, x0, generator, *condition, weight=weight)
        if looks is None:
            return result
        log_snr, predicted = made
        clear = (log_snr > model.diffusion.stop - BELOW).nonzero()[:, 0]  # as samples end, not as they begin
        if not len(clear):
            return result
        which = clear[torch.randperm(len(clear), generator=generator, device=x0.device)[: config.base.rendered]]
        planes = model.space.unstandardise(predicted[which]).clamp(-config.fit.value_range, config.fit.value_range)
        truth, anybody = batch[0][which].float(), torch.zeros_like(which)
        return looks.added_to(result, planes, truth, anybody, generator, *(v[which] for v in condition))

    def batches(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        of, planes = people.draw(number, generator, *trainer.place)
        which = torch.randint(latents.shape[1], (number,), generator=generator, device=of.device)
        return planes, latents[of, which]

    trainer = Trainer(
        network, losses, batches, config.base.train, out, metadata, {"mean": space.mean, "weight": space.weight},
        _previews(model, out, latents[:PREVIEWS, 0] if width else None, measured),
    )  # fmt: skip
    model.to(trainer.device)
    looks = looks and looks.to(trainer.device)
    del known  # of those who are streamed only batches shall be in memory
    people, latents, weight = (v.to(trainer.device) for v in (people, latents, weight))
    if trainer.accelerator.is_main_process:
        shared.save(out / "decoder.safetensors")
    trainer.run(show_progress)
    network.requires_grad_(False)
    return model


def _previews(
    model: BaseModel, out: Path, latent: Tensor | None, measured: dict[str, tuple[Tensor, Tensor | None]]
) -> Callable[[int], dict[str, float]]:
    """What is looked at along the way: people from the same noise every time, and how well people are denoised."""

    def preview(step: int) -> dict[str, float]:
        count = PREVIEWS if latent is None else len(latent)
        people = model.sample(model.noise(count, seed=0), PREVIEW_STEPS, latent=latent)
        pictures = [model.avatar(p).render(azimuth, 5, size=96) for azimuth in (0, 60) for p in people]
        contact_sheet(pictures, count, out / f"preview-{step:06d}.png")
        numbers = {}
        for name, people in measured.items():
            errors = denoising_errors(model, *people, levels=LEVELS + NOISIER)
            numbers[name] = eps_loss(errors[: len(LEVELS)])
            numbers |= {f"{name}_x0_at_{level:g}": e for level, e in zip(LEVELS + NOISIER, errors, strict=True)}
        return numbers

    return preview


def denoising_errors(
    model: BaseModel,
    planes: Tensor,
    latents: Tensor | None = None,
    rounds: int = 2,
    batch: int = 64,
    levels: tuple[float, ...] = LEVELS,
) -> list[float]:
    """‖ŷ_0 − y_0‖² a value, standardised, at each of `levels` of λ: what differently trained models are compared by.

    The noise is the same every time, and the levels do not depend on the model's own schedule.

    Args:
        planes: (S, 3, C, r, r).
        latents: (S, Z) of the same people, for a model that was trained with latents; None: without.
    """
    device, errors = model.device, []
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for level in levels:
            total = 0.0
            for i in range(0, rounds * len(planes), batch):
                of = torch.arange(i, min(i + batch, rounds * len(planes))) % len(planes)
                x0 = model.space.standardise(planes[of.to(planes.device)].to(device))
                z = None if latents is None else latents[of.to(latents.device)]
                generator = torch.Generator(device).manual_seed(i)
                eps = torch.randn(x0.shape, device=device, generator=generator)
                log_snr = torch.full((len(x0),), level, device=device)
                denoise = model.diffusion.denoiser(model._conditioned(len(x0), z, 1.0, 0.0))
                predicted = denoise(model.diffusion.q_sample(x0, log_snr, eps), log_snr).x0
                total += float((predicted - x0).square().flatten(1).mean(1).sum())
            errors.append(total / (rounds * len(planes)))
    return errors


def eps_loss(errors: list[float]) -> float:
    """E7 with λ linear in t, the paper's loss, from `denoising_errors`: ‖ε̂ − ε‖² = e^λ ‖ŷ_0 − y_0‖², averaged."""
    return sum(math.exp(level) * error for level, error in zip(LEVELS, errors, strict=True)) / len(LEVELS)
