"""Training the refiner (E20): L1, perceptual and, if asked for, adversarial loss of patches, and agreement of
neighbouring views."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minirodin.adversary import Critic, adversarial_losses
from minirodin.avatar import Avatar, to_rgb
from minirodin.config import Config, RefinerConfig
from minirodin.consistency import disagreement
from minirodin.errors import ConfigError, DataError
from minirodin.metrics import image_metrics
from minirodin.perceptual import PerceptualDistance
from minirodin.plots import contact_sheet
from minirodin.refiner import KIND, SCALES, Refiner, check_shape, enlarge, refine
from minirodin.refiner_data import Batch, Pairs, Photographs
from minirodin.shards import FittedPlanes, check_one_decoder, fingerprint, load_weights
from minirodin.training import Trainer

PREVIEWS = 4


def train_refiner(
    data: str | Path,
    config: Config,
    out: str | Path,
    captures: str | Path,
    validation: str | Path | None = None,
    show_progress: bool = True,
    upsampled: str | Path | None = None,
    start: str | Path | None = None,
) -> Refiner:
    """Learn from renders of fitted planes and photographs of the same views (E20).

    Args:
        data: folder that `fit_subjects` wrote.
        config: `config.refiner` says which network and losses.
        out: folder for `model.safetensors`, `log.csv`, `loss.png` and `preview-STEP.png`.
        captures: the people in `data` (and in `validation`), photographed at four times `refiner.view` or more.
        validation: another such folder, under the same decoder, for the log and the previews.
        upsampled: what `upsample_people` made of `data`, reduced: renders of it are learned from too.
        start: folder of a refiner of the same shape to begin from, instead of random weights.

    Returns:
        The refiner with averaged weights.

    Raises:
        DataError, CheckpointError, ConfigError: one line that names what does not fit.
    """
    out, c, people = Path(out), config.refiner, FittedPlanes(data)
    check_settings(c)
    if not len(people):
        raise DataError(f"{data} holds no fitted planes: give the folder that `minirodin fit` wrote")
    shared, again = people.decoder, FittedPlanes(upsampled) if upsampled else None
    if again is not None:
        check_one_decoder(people, again)
        if missing := sorted(set(people.names) - set(again.names)):
            raise DataError(f"{upsampled} has no planes of {missing[0]} ({len(missing)} are missing): upsample {data}")
    config = replace(shared.config, name=config.name, refiner=c)  # the rest is as the planes were fitted
    photographs = Photographs.load(captures, people.names, c.view)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c.train.seed)
        network = Refiner(c)
        if start:
            begun = Refiner.load(start, "cpu").state_dict()
            load_weights(network, begun, Path(start), "refiner").requires_grad_(True)
        beginning = fingerprint(network) if start else ""
        if c.adversarial_weight:
            network.critic = Critic()  # learns in the same steps, and is gone after them
    eyes = PerceptualDistance(c.perceptual or None)
    metadata = {
        "kind": KIND,
        "config": json.dumps(config.to_dict()),
        "decoder": fingerprint(shared.decoder),
        "subjects": f"{len(people)}: {people.names[0]} … {people.names[-1]}",
        "views": str(photographs.pictures.shape[1]),
        "upsampled": "too" if upsampled else "",
        "perceptual": eyes.name,
        "start": beginning,
    }

    def losses(
        network: Callable[[Tensor], list[Tensor]], batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return refiner_losses(network, batch, c, eyes, critic)

    def batches(number: int, generator: torch.Generator) -> Batch:
        return pairs.draw(number, generator)

    preview = None
    if validation:
        unseen = FittedPlanes(validation)
        check_one_decoder(people, unseen)
        looked_at = Photographs.load(captures, unseen.names[:PREVIEWS], c.view, held_out=True)
        preview = _previews(network, out, unseen, looked_at, eyes)
    trainer = Trainer(network, losses, batches, c.train, out, metadata, preview=preview, passing="critic")
    eyes, critic = eyes.to(trainer.device), getattr(network, "critic", None)
    main = show_progress and trainer.accelerator.is_main_process
    pairs = Pairs(people, photographs, c, trainer.device, main, again)
    trainer.run(show_progress)
    if critic:
        del network.critic
    return network.requires_grad_(False)


def refiner_losses(
    network: Callable[[Tensor], list[Tensor]],
    batch: Batch,
    config: RefinerConfig,
    eyes: PerceptualDistance,
    critic: Critic | None = None,
) -> dict[str, Tensor]:
    """What is wrong with refined patches of both sizes over some background, and between refined neighbours.

    Returns:
        `loss` (scalar, to minimise), `l1` and, if it counts, `perceptual` (B,), means over both sizes; with pairs
        `consistency`, with a critic, which is asked of the larger size, `fooling` and `telling` (scalars).
    """
    made, number = network(batch.views), len(batch.truth)
    truth = F.avg_pool2d(batch.truth, 2), batch.truth
    clean = (enlarge(batch.views[:number], scale) for scale in SCALES)
    each = zip(made, truth, clean, strict=True)
    sides = [_sides(x[:number], true, start, batch.behind) for x, true, start in each]
    l1 = torch.stack([(seen - true).abs().mean((1, 2, 3)) for seen, true in sides]).mean(0)
    result = {"loss": l1.mean(), "l1": l1}
    if config.perceptual_weight:
        y, x = batch.skip
        looked = [eyes(seen[..., y:, x:], true[..., y:, x:]) for seen, true in sides]
        result["perceptual"] = torch.stack(looked).mean(0)
        result["loss"] = result["loss"] + config.perceptual_weight * result["perceptual"].mean()
    if critic:
        result["fooling"], result["telling"] = adversarial_losses(critic, *sides[-1])
        result["loss"] = result["loss"] + config.adversarial_weight * result["fooling"] + result["telling"]
    if config.pairs:
        a, b = made[-1][number:, :3].chunk(2)
        difference, valid = disagreement(a, b, *batch.where)
        result["consistency"] = difference.sum() / valid.sum().clamp_min(1)
        result["loss"] = result["loss"] + config.consistency_weight * result["consistency"]
    return result


def _sides(made: Tensor, truth: Tensor, clean: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
    """What is made and what is true, premultiplied (B, 4, H, W), over colours (B, 3), for their colours to be compared.

    The silhouette is not the refiner's to change, so the true colours get that of the view, and where there are none,
    since nobody is there in truth, the `clean` ones stand for them. Otherwise colours learn to make up for what is
    wrong with the silhouette, and it gets fringes.
    """
    alpha = clean[:, 3:]
    known = alpha * truth[:, :3] + (1 - truth[:, 3:]) * clean[:, :3]
    beyond = (1 - alpha) * behind[..., None, None]
    return made[:, :3] + beyond, known + beyond


def check_settings(config: RefinerConfig) -> None:
    """Raise `ConfigError` for what no other part looks at before it is too late."""
    check_shape(config)
    names = ("blur", "noise", "perceptual_weight", "adversarial_weight", "consistency_weight", "pairs")
    values = {name: getattr(config, name) for name in names}
    wrong = [(name, value, "0 or more") for name, value in values.items() if not 0 <= value < math.inf]
    if not 1 <= config.patch <= config.view:
        wrong.append(("patch", config.patch, f"1 … refiner.view, {config.view}"))
    if not config.resolutions or not all(isinstance(n, int) and n > 0 for n in config.resolutions):
        wrong.append(("resolutions", config.resolutions, "sizes of planes"))
    if not 0 < config.turn <= 45:
        wrong.append(("turn", config.turn, "more than 0, at most 45 degrees"))
    for name, value, wanted in wrong[:1]:
        raise ConfigError(f"refiner.{name} is {value}: give {wanted}")


def _previews(
    model: Refiner,
    out: Path,
    people: FittedPlanes,
    photographs: Photographs,
    eyes: PerceptualDistance,
) -> Callable[[int], dict[str, float]]:
    """What is looked at along the way: a held-out view of each person enlarged, refined and true, and what differs."""
    shared, small = people.decoder, []
    truth = photographs.pictures[:, 0]

    def preview(step: int) -> dict[str, float]:
        if not small:  # rendered once
            for name, cameras in zip(photographs.names, photographs.cameras, strict=True):
                avatar = Avatar(people.planes(name), shared.decoder, shared.config).to(model.device)
                small.append(avatar.views(cameras[0]))
        views, rows, values = torch.cat(small), [], {}
        for name, refiner in (("bicubic", None), ("refined", model)):
            rows.append(to_rgb(refine(refiner, views)))
            pair = (x.permute(0, 3, 1, 2) for x in (rows[-1], to_rgb(truth.to(views) / 255)))
            found = image_metrics(*pair, eyes).items()
            values |= {f"{name}_{key}": float(value.mean()) for key, value in found}
        rows.append(to_rgb(truth.float() / 255))
        n = truth.shape[1]
        middle = slice(n // 4, 3 * n // 4)  # the head, most often
        pictures = [picture[middle, middle] for row in rows for picture in row]
        contact_sheet(pictures, len(truth), out / f"preview-{step:06d}.png")
        return values

    return preview
