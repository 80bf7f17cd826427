"""Learn the project's own image–text encoder (E13), and measure one: retrieval, and attributes named without training.

Three terms. Captions: pictures and texts of the same person shall be closest (CLIP's symmetric InfoNCE), where texts
that happen to be true of somebody else in the batch do not count against it. Prompts: among short texts for all classes
of an attribute ("a person with red hair", "a person with black hair" …) a picture shall be closest to the right one.
Attributes: linear heads shall read the same classes off the picture's embedding. A smile moves few pixels, and as long
as no picture's embedding tells of it, texts have no reason to tell smiles apart, and pictures none to follow; the heads
do not wait for the texts.
"""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minirodin.avatars.attributes import Attributes, stream
from minirodin.avatars.captions import caption
from minirodin.avatars.prompts import ASPECTS, CLASSES, all_kinds_of_people, claims, partial_caption, prompt
from minirodin.config import Config, EncoderConfig
from minirodin.errors import CheckpointError, ConfigError
from minirodin.latent import KIND, ImageTextEncoder, build_towers, fingerprint
from minirodin.portraits import Portraits, jitter, plain
from minirodin.progress import progress
from minirodin.shards import load_weights
from minirodin.tokens import FIRST, UNKNOWN, CompactTokenizer
from minirodin.training import Trainer

IGNORE = -100  # target of an attribute that a picture does not show
PROMPTS = 24  # paraphrases of each prompt
UNSEEN = 10_000  # seed of captions that training does not use
SMOOTHING = 0.05  # of the attributes' targets: a little of every label is wrong
# How many of `CLASSES` each aspect has.
WIDTHS = [sum(aspect is other for other, _ in CLASSES) for aspect in ASPECTS]


def prompt_texts(count: int = PROMPTS) -> list[list[str]]:
    """`count` paraphrases for each of `CLASSES`."""
    return [[prompt(a, name, stream(i, a.name + name)) for i in range(count)] for a, name in CLASSES]


@functools.lru_cache(maxsize=2)
def build_tokenizer(context: int) -> CompactTokenizer:
    """A tokenizer that knows every word of the captions and prompts: about 190 tokens."""
    people = all_kinds_of_people(200)
    texts = [text for row in prompt_texts() for text in row]
    for make in (caption, partial_caption):
        texts += [make(person, seed) for person in people for seed in range(6)]
    return CompactTokenizer.of_texts(texts, context)


def targets(people: list[Attributes]) -> Tensor:
    """The class of each aspect that a picture of each person shows, (S, A) int64; `IGNORE` where it shows none."""
    return torch.tensor([[_target(aspect, person) for aspect in ASPECTS] for person in people])


def _target(aspect, person: Attributes) -> int:
    name = aspect.of(person)
    shown = name is not None and aspect.phrases[name] and aspect.visible(person)
    return aspect.classes.index(name) if shown else IGNORE


def class_bits(people: list[Attributes], seen_only: bool = True) -> Tensor:
    """A bit for each person's class of each aspect, (S, A) int32: 0 if of none.

    With `seen_only` all bits where a picture does not show it, so that nothing said of it is false of the picture.
    """

    def bits(aspect, person: Attributes) -> int:
        if seen_only and not aspect.visible(person):
            return -1
        name = aspect.of(person)
        return 0 if name is None else 1 << aspect.classes.index(name)

    return torch.tensor([[bits(x, person) for x in ASPECTS] for person in people], dtype=torch.int32)


def claim_bits(texts: list[str]) -> Tensor:
    """A bit for each class of each aspect that a text leaves open, (T, A) int32; all bits where it says nothing."""

    def bits(aspect, said: dict) -> int:
        return sum(1 << aspect.classes.index(name) for name in said[aspect.name]) if aspect.name in said else -1

    return torch.tensor([[bits(x, said) for x in ASPECTS] for said in map(claims, texts)], dtype=torch.int32)


def true_of(claimed: Tensor, people: Tensor) -> Tensor:
    """Whether text j may be true of person i: (T, A) claims, (S, A) classes, as bits → (S, T) bool."""
    silent = claimed == -1
    return torch.cat([(silent | (claimed & part[:, None] != 0)).all(2) for part in people.split(1024)])


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, fits: Tensor) -> Tensor:
    """Symmetric InfoNCE of B pairs, in which a text that fits another image is no negative for it.

    Args:
        images, texts: (B, D) of unit norm.
        scale: 1/τ.
        fits: (B, B) bool, text j is true of image i.
    """
    own = torch.eye(len(images), dtype=torch.bool, device=images.device)
    logits = (scale * images @ texts.T).masked_fill(fits & ~own, -torch.inf)
    target = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def prompt_loss(images: Tensor, prompts: Tensor, scale: Tensor, wanted: Tensor, widths=tuple(WIDTHS)) -> Tensor:
    """Cross-entropy of images among the prompts of an aspect, averaged over the images that show it, then over aspects.

    Args:
        images: (B, D); prompts: (sum of widths, D), aspect after aspect; both of unit norm.
        scale: 1/τ.
        wanted: (B, A) class within each aspect, or `IGNORE`.
        widths: number of classes of each aspect.
    """
    return aspect_loss(scale * images @ prompts.T, wanted, widths)


def aspect_loss(logits: Tensor, wanted: Tensor, widths=tuple(WIDTHS), smoothing: float = 0.0) -> Tensor:
    """Cross-entropy within each aspect, averaged over the pictures that show it, then over aspects.

    Args:
        logits: (B, sum of widths), aspect after aspect.
        wanted: (B, A) class within each aspect, or `IGNORE`.
        smoothing: share of the target that is spread over all classes.
    """
    losses, settings = [], {"ignore_index": IGNORE, "reduction": "sum", "label_smoothing": smoothing}
    for part, target in zip(logits.split(widths, dim=1), wanted.unbind(1), strict=True):
        losses.append(F.cross_entropy(part, target, **settings) / (target != IGNORE).sum().clamp_min(1))
    return torch.stack(losses).mean()


class Lessons:
    """What training draws from: pictures, all paraphrases as tokens, what they claim, and what the pictures show.

    Args:
        portraits: of S people.
        tokenizer: that of the encoder.
        config: how many texts a person gets.
    """

    def __init__(self, portraits: Portraits, tokenizer: CompactTokenizer, config: EncoderConfig, show_progress=False):
        tokens, claimed = [], []
        for person in progress(portraits.attributes, desc="captions", unit="person", enabled=show_progress):
            texts = [caption(person, seed) for seed in range(config.captions)]
            texts += [partial_caption(person, seed) for seed in range(config.partial_captions)]
            tokens.append(tokenizer(texts)[0].short())
            claimed.append(claim_bits(texts))
        self.pictures = portraits.pictures  # (S, V, H, W, 4) uint8
        self.tokens, self.claims = torch.stack(tokens), torch.stack(claimed)  # (S, K, L) int16, (S, K, A) int32
        self.targets, self.bits = targets(portraits.attributes), class_bits(portraits.attributes)  # (S, A)
        self.prompts = torch.stack([tokenizer(row)[0] for row in prompt_texts()])  # (classes, P, L)
        self.config, self.end = config, tokenizer.end

    def to(self, device: torch.device) -> "Lessons":
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`count` people, one picture and one text of each, and one wording of every prompt."""

        def pick(high: int, number: int = count) -> Tensor:
            return torch.randint(high, (number,), generator=generator, device=self.tokens.device)

        who, which = pick(len(self.tokens)), pick(self.tokens.shape[1])
        pictures = self.pictures[who, pick(self.pictures.shape[1])]
        rows = torch.arange(len(self.prompts), device=who.device)
        wordings = self.prompts[rows, pick(self.prompts.shape[1], len(rows))]
        tokens = torch.cat([self.tokens[who, which].long(), wordings])
        known = (tokens >= FIRST) & (tokens < self.end)
        lost = torch.rand(tokens.shape, generator=generator, device=tokens.device) < self.config.unknown
        return {
            "pictures": jitter(pictures, generator, self.config.size),
            "tokens": torch.where(known & lost, UNKNOWN, tokens),
            "fits": true_of(self.claims[who, which], self.bits[who]),
            "targets": self.targets[who],
        }


def encoder_losses(
    network, batch: dict[str, Tensor], config: EncoderConfig, begun: ImageTextEncoder | None = None
) -> dict[str, Tensor]:
    """All terms for a batch of `Lessons.draw`, in one call of the network; `stay`, how far pictures are from where
    `begun` has them, if that counts."""
    images, texts, scale, named = network(batch["pictures"], batch["tokens"])
    texts, prompts = texts[: len(images)], texts[len(images) :]
    terms = {
        "captions": contrastive_loss(images, texts, scale, batch["fits"]),
        "prompts": prompt_loss(images, prompts, scale, batch["targets"]),
    }
    loss = terms["captions"] + config.prompt_weight * terms["prompts"]
    if named is not None:
        terms["attributes"] = aspect_loss(named, batch["targets"], smoothing=SMOOTHING)
        loss = loss + config.attribute_weight * terms["attributes"]
    if begun and config.stay_weight:
        terms["stay"] = 1 - (images * begun.images(batch["pictures"])).sum(1)
        loss = loss + config.stay_weight * terms["stay"].mean()
    return {"loss": loss, **terms, "scale": scale}


def train_encoder(
    data: str | Path | Portraits,
    config: Config,
    out: str | Path,
    validation: str | Path | Portraits | None = None,
    show_progress: bool = True,
    start: str | Path | None = None,
) -> ImageTextEncoder:
    """Learn an image–text space from portraits of synthetic people and their captions.

    Args:
        data: what `minirodin avatars --portraits` made.
        config: `config.encoder` says which network and schedule.
        out: folder for `model.safetensors` (16 bits), `log.csv` and `loss.png`.
        validation: other people, whose retrieval and zero-shot accuracy are logged.
        start: folder of an encoder of the same shape to begin from, instead of random weights. With
            `encoder.stay_weight` pictures stay about where it has them, so that what learned from its latents has
            less to learn anew.

    Returns:
        The encoder with averaged weights, frozen, exactly as it was written.

    Raises:
        DataError, ConfigError, CheckpointError: one line that names what does not fit.
    """
    settings = config.encoder
    portraits = data if isinstance(data, Portraits) else Portraits.load(data)
    held_out = Portraits.load(validation) if isinstance(validation, (str, Path)) else validation
    if not 0 <= settings.stay_weight < math.inf:
        raise ConfigError(f"encoder.stay_weight is {settings.stay_weight}: give 0 or more")
    if settings.stay_weight and not start:
        raise ConfigError(f"encoder.stay_weight is {settings.stay_weight}, and nothing to stay near: give --begin-from")
    begun = ImageTextEncoder.load(start, "cpu") if start else None
    if begun and begun.config is None:
        raise CheckpointError(f"{start} is a published model: begin from a folder of `minirodin train encoder`")
    tokenizer = begun.tokenizer if begun else build_tokenizer(settings.context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.train.seed)
        towers = build_towers(settings, tokenizer.size)
    if begun:
        load_weights(towers, begun.towers.state_dict(), Path(start), "encoder").requires_grad_(True)
    names = portraits.names
    metadata = {
        "kind": KIND,
        "config": json.dumps(config.to_dict()),
        "vocabulary": json.dumps(tokenizer.vocabulary),
        "subjects": f"{len(names)}: {names[0]} … {names[-1]}",
        "start": begun.fingerprint if begun else "",
    }
    lessons = Lessons(portraits, tokenizer, settings, show_progress)
    trainer = Trainer(
        towers,
        lambda network, batch, generator: encoder_losses(network, batch, settings, begun),
        lambda count, generator: lessons.draw(count, generator),
        settings.train, out, metadata,
        preview=_previews(towers, tokenizer, held_out) if held_out else None,
    )  # fmt: skip
    lessons.to(trainer.device)
    begun = begun and begun.to(trainer.device)
    trainer.run(show_progress)
    with torch.no_grad():
        for p in towers.parameters():
            p.copy_(p.half())  # so that the encoder in memory is the one in the file
    encoder = ImageTextEncoder(towers, tokenizer, fingerprint(towers), str(out), config)
    if trainer.accelerator.is_main_process:
        encoder.save(out, {**metadata, "step": str(trainer.step)})
    return encoder


def _previews(towers, tokenizer: CompactTokenizer, portraits: Portraits) -> Callable[[int], dict[str, float]]:
    def preview(step: int) -> dict[str, float]:
        frozen = [p.requires_grad for p in towers.parameters()]
        results = assess_encoder(ImageTextEncoder(towers, tokenizer, "in training"), portraits)
        for p, before in zip(towers.parameters(), frozen, strict=True):
            p.requires_grad_(before)
        found = results["image_to_text"]
        return {"recall_at_1": found["recall@1"], "true_at_1": found["true@1"], "zero_shot": results["mean"]}

    return preview


def assess_encoder(encoder: ImageTextEncoder, portraits: Portraits, batch: int = 512) -> dict:
    """What an encoder knows of people.

    Retrieval is among the N plain frontal pictures and one caption of each. A caption leaves much open, and may be as
    true of others: `recall@k` counts the very person's, `true@k` also any caption that does not contradict the person.
    Zero-shot accuracy is over all plain views that show the attribute, the text of a class being the mean of its
    prompts.

    Returns:
        `people`, `captions_true_of_others` (share of wrong pairs), `image_to_text` and `text_to_image` (recall@1, @5,
        true@1, @5), `mean` and `most_frequent` (over attributes), and `attributes`: for each its `accuracy`,
        `most_frequent` (the share of that class) and `count`.
    """
    pictures, size = portraits.pictures, encoder.towers.size
    count, views = pictures.shape[:2]
    parts = pictures.flatten(0, 1).split(batch)
    images = torch.cat([encoder.images(plain(part.to(encoder.device), size)) for part in parts]).cpu()
    texts = [caption(person, UNSEEN) for person in portraits.attributes]
    fits = true_of(claim_bits(texts), class_bits(portraits.attributes, seen_only=False))
    similarity = images[::views] @ encoder.texts(texts).cpu().T  # (people, captions)
    others = fits.sum() - fits.diagonal().sum()
    results = {
        "people": count,
        "captions_true_of_others": float(others) / max(1, count * (count - 1)),
        "image_to_text": _retrieval(similarity, fits),
        "text_to_image": _retrieval(similarity.T, fits.T),
    }
    wordings = torch.stack([encoder.texts(row) for row in prompt_texts()]).cpu()  # (classes, P, D)
    logits = images @ F.normalize(wordings.mean(1), dim=1).T
    wanted = targets(portraits.attributes).repeat_interleave(views, dim=0)
    attributes = {}
    for aspect, scores, target in zip(ASPECTS, logits.split(WIDTHS, dim=1), wanted.unbind(1), strict=True):
        seen = target != IGNORE
        if shown := int(seen.sum()):
            right, common = (scores.argmax(1) == target)[seen].sum(), target[seen].bincount().max()
            attributes[aspect.name] = {"accuracy": int(right) / shown, "most_frequent": int(common) / shown}
            attributes[aspect.name]["count"] = shown
    means = {k: sum(r[k] for r in attributes.values()) / len(attributes) for k in ("accuracy", "most_frequent")}
    return {**results, "mean": means["accuracy"], "most_frequent": means["most_frequent"], "attributes": attributes}


def _retrieval(similarity: Tensor, fits: Tensor) -> dict[str, float]:
    """Of rows that look for their own column: (N, N) similarities, (N, N) bool → shares that are found."""
    results = {}
    for k in (1, 5):
        best = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
        results[f"recall@{k}"] = float((best == torch.arange(len(best))[:, None]).any(1).float().mean())
        results[f"true@{k}"] = float(fits.gather(1, best).any(1).float().mean())
    return results
