"""Training the upsampler: the plane loss (E17) on spoiled conditions (E18), and the perceptual patch loss (E19)."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minirodin.avatar import Avatar
from minirodin.base_training import load_planes
from minirodin.cameras import find_captures, load_capture
from minirodin.config import Config, RenderConfig
from minirodin.decoder import TriplaneDecoder
from minirodin.errors import CheckpointError, DataError
from minirodin.patches import Patches, Views
from minirodin.perceptual import PerceptualDistance
from minirodin.plane_space import PEOPLE, PlaneSpace, visible_metric
from minirodin.plots import contact_sheet
from minirodin.render import Occupancy, occupancy_from_planes, render_rays
from minirodin.shards import FittedPlanes, check_one_decoder, fingerprint
from minirodin.training import Trainer
from minirodin.triplane import resize_planes
from minirodin.upsampler import KIND, Upsampler, augment, build_network, conditioned, detail_space, told

PREVIEWS = 4


def render_patches(
    planes: Tensor, decoder: TriplaneDecoder, patches: Patches, occupancy: Occupancy, render: RenderConfig
) -> Tensor:
    """What is seen on patches, over white: planes (B, 3, C, R, R) → (B, 3, P, P), differentiable in the planes."""
    out = render_rays(planes, decoder, *patches.rays(), occupancy, render.bins, render.view_samples)
    seen = out.over(torch.ones(3, device=planes.device)).clamp(0, 1)
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
    with torch.no_grad():
        a, b = (occupancy_from_planes(p, decoder, render.grid) for p in (planes.detach(), truth))
        occupancy = Occupancy(torch.minimum(a.density, b.density), a.occupied | b.occupied)
        if photograph is None:
            seen = render_patches(truth, decoder, patches, occupancy, render)
        else:
            seen = (photograph[..., :3] * photograph[..., 3:] + 1 - photograph[..., 3:]).permute(0, 3, 1, 2)
    return network(render_patches(planes, decoder, patches, occupancy, render), seen)


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
        data: folder that `fit_subjects` wrote, with planes of the high resolution.
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
    shared = FittedPlanes(data).decoder
    t = shared.config.triplane
    if (given := config.triplane.channels) != t.channels:
        raise CheckpointError(f"{data} has planes of {t.channels} channels, preset {config.name!r} {given}")
    if t.resolution <= t.base_resolution:
        raise CheckpointError(f"{data} has planes of {t.resolution}², which nothing is left to add to: fit larger ones")
    if validation:
        check_one_decoder(FittedPlanes(data), FittedPlanes(validation))
    config = replace(shared.config, name=config.name, upsampler=c)  # the rest is as the planes were fitted
    planes, names = load_planes(data, t.resolution)
    views = Views.around(c) if captures is None else photographs(captures, names, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c.train.seed)
        network = build_network(config)
    low, detail = spaces(planes, shared.decoder, config)
    model = Upsampler(network, shared, config, low, detail)
    eyes = PerceptualDistance(c.perceptual or None) if c.perceptual_weight else None
    metadata = {
        "kind": KIND,
        "config": json.dumps(config.to_dict()),
        "decoder": fingerprint(shared.decoder),
        "subjects": f"{len(names)}: {names[0]} … {names[-1]}",
        "perceptual": eyes.name if eyes else "",
        "photographs": str(captures is not None),
    }
    extra = {"low_mean": low.mean, "low_weight": low.weight, "detail_weight": detail.weight}

    def losses(network, people: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return upsampler_losses(model, network, planes[people].float(), people, views, eyes, generator)

    def batches(number: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(planes), (number,), generator=generator, device=planes.device)

    unseen = load_planes(validation, t.resolution)[0] if validation else None
    trainer = Trainer(network, losses, batches, c.train, out, metadata, extra, _previews(model, out, unseen))
    model.to(trainer.device)
    planes, views = planes.to(trainer.device), views.to(trainer.device)
    eyes = eyes and eyes.to(trainer.device)
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
    views: Views,
    eyes: PerceptualDistance | None,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """E17 + E19 for a batch of planes `truth` (B, 3, C, R, R) of `people` (B,), their conditions spoiled (E18).

    Args:
        network: that of the model, or what stands for it in training.
        views: where E19 looks.
        eyes: what it looks with; None: the plane loss alone.

    Returns:
        `loss` (scalar, to minimise), `simple` (B,), and `perceptual` of those who were rendered.
    """
    config, c = model.config, model.config.upsampler
    spoiled, noise = augment(low_of(model, truth), c.augment, generator)
    given, enlarged = model.enlarged(spoiled)
    made = []

    def seen(x: Tensor, log_snr: Tensor) -> Tensor:
        output = conditioned(network, given, told(noise))(x, log_snr)
        made.append(model.diffusion.interpret(output.float(), x, log_snr).x0)
        return output

    result = model.diffusion.losses(seen, model.detail.standardise(truth - enlarged), generator)
    result = {name: result[name] for name in ("loss", "simple")}
    if eyes is None:
        return result
    limit = config.fit.value_range
    which = torch.randperm(len(people), generator=generator, device=people.device)[: c.rendered]  # of any noise level
    predicted = (enlarged[which] + model.detail.unstandardise(made[-1][which])).clamp(-limit, limit)
    seen_by = views, people[which], eyes, config.render, generator
    looked = perceptual_patch_loss(predicted, truth[which], model.shared.decoder, *seen_by)
    return {**result, "loss": result["loss"] + c.perceptual_weight * looked.mean(), "perceptual": looked}


def low_of(model: Upsampler, planes: Tensor) -> Tensor:
    """What the base model would have to make of planes (B, 3, C, R, R): (B, 3, C, r, r), standardised."""
    return model.low.standardise(resize_planes(planes, model.config.triplane.base_resolution))


def spaces(planes: Tensor, decoder: TriplaneDecoder, config: Config) -> tuple[PlaneSpace, PlaneSpace]:
    """Of planes at the low resolution, and of what the high one adds; channels count as pictures show them."""
    some = planes[:PEOPLE].float()
    small = resize_planes(some, config.triplane.base_resolution)
    metric = visible_metric(small, decoder, config.render)
    added = some - resize_planes(small, some.shape[-1])
    return PlaneSpace.of(small, metric), detail_space(PlaneSpace.of(added, metric).weight)


def photographs(captures: str | Path, names: list[str], config: Config) -> Views:
    """The training views of these people, in their order; raises `DataError` where one is missing."""
    folders = {folder.resolve().name: folder for folder in find_captures(captures)}
    if missing := [name for name in names if name not in folders]:
        raise DataError(f"{captures} has no capture of {missing[0]} ({len(missing)} are missing): give those fitted")
    loaded = [load_capture(folders[name]) for name in names]
    train = loaded[0].held_out()[0]
    pictures = torch.from_numpy(np.stack([capture.images[train] for capture in loaded]))
    return Views([capture.cameras[train] for capture in loaded], config.upsampler, pictures)


def _previews(model: Upsampler, out: Path, unseen: Tensor | None) -> Callable[[int], dict[str, float]] | None:
    """What is looked at along the way: people enlarged, upsampled and true, and how far upsampled planes are off."""
    if unseen is None:
        return None

    def preview(step: int) -> dict[str, float]:
        truth = unseen[: 4 * PREVIEWS].float().to(model.device)
        small = resize_planes(truth, model.config.triplane.base_resolution)
        made = torch.cat([model.upsample(part, seed=i) for i, part in enumerate(small.split(PREVIEWS))])
        large = resize_planes(small, truth.shape[-1])
        rows = [group[:PREVIEWS] for group in (large, made, truth)]
        look = [Avatar(p, model.shared.decoder, model.config).render(20, 5, size=192) for row in rows for p in row]
        contact_sheet(look, len(rows[0]), out / f"preview-{step:06d}.png")
        errors = (model.detail.standardise(p - truth).square().mean() for p in (made, large))
        return dict(zip(("validation", "validation_enlarged"), map(float, errors), strict=True))

    return preview
