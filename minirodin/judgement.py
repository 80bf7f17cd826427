"""Do generated people look as they were asked to (E13–E16)? Judged by a network that had no part in making them.

Portraits, texts and edits go through a `RodinPipeline`; what comes out is drawn from the front and shown to the
`AttributeClassifier`. Beside each number stands what the same judge says of the real portraits: it errs too.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from minirodin.avatar import to_rgb
from minirodin.avatars.attributes import sample_attributes
from minirodin.avatars.prompts import claims, partial_caption
from minirodin.cameras import orbit_cameras
from minirodin.classifier import HEADS, HIDDEN, AttributeClassifier, label_table
from minirodin.errors import DataError
from minirodin.pipeline import PROMPT_GUIDANCE, RodinPipeline
from minirodin.portraits import Portraits, plain
from minirodin.progress import progress

BATCH, PICTURE = 32, 144  # people at a time; pixels
FIRST_PROMPT = 5_000_000  # seed of paraphrases that nothing was trained on
HEAD_OF = {"skin": "skin_tone"}  # aspects of texts that the classifier knows by another name
CLASS_OF = {("skin", "light"): "fair", ("skin", "deep brown"): "dark"}
# What is asked of people who have it not: attribute, class, the edit's target and source texts.
EDITS = (
    ("hair_color", "red", "a person with red hair", "a person with hair"),
    ("hair_color", "black", "a person with black hair", "a person with hair"),
    ("hair_style", "long", "a person with long hair", "a person with short hair"),
    ("hair_style", "bald", "a bald person", "a person with short hair"),
    ("facial_hair", "full", "a person with a full beard", "a person with no beard"),
    ("glasses", "round", "a person wearing round glasses", "a person with no glasses"),
    ("glasses", "sun", "a person wearing sunglasses", "a person with no glasses"),
    ("hat", "cap", "a person wearing a baseball cap", "a person with no hat"),
    ("clothing_color", "red", "a person wearing red clothes", "a person wearing clothes"),
    ("age", "old", "an old person", "a young person"),
)


def sculpted(
    pipe: RodinPipeline, latents: Tensor, scale: float, steps: int, seed: int = 0, show: bool = True
) -> tuple[Tensor, Tensor]:
    """Avatars of latents (N, Z), person i with the noise of seed + i: planes (N, 3, C, R, R), pictures (N, 3, S, S).

    Through the upsampler where the pipeline has one: what is judged is what a user gets, but for the refiner.
    """
    planes, pictures = [], []
    camera = orbit_cameras(0, 0, PICTURE)
    for start in progress(range(0, len(latents), BATCH), desc="sculpting", unit="batch", enabled=show):
        z = latents[start : start + BATCH].to(pipe.base.device)
        noise = pipe.base.noise(len(z), seed + start)
        made = pipe.base.sample(noise, steps, latent=z, guidance_scale=scale)
        if pipe.upsampler:
            made = pipe.upsampler.upsample(made, seed=seed + start, latents=z if pipe.upsampler.encoder else None)
        planes.append(made.cpu())
        pictures += [to_rgb(pipe.base.avatar(p).views(camera))[0].permute(2, 0, 1).clamp(0, 1) for p in made]
    return torch.cat(planes), torch.stack(pictures)


def named(classifier: AttributeClassifier, pictures: Tensor) -> Tensor:
    """The likeliest class of every head: (N, 3, S, S) → (N, heads) int64."""
    parts = [torch.stack([p.argmax(1) for p in classifier.predict(part).values()], 1) for part in pictures.split(256)]
    return torch.cat(parts).cpu()


def agreement(found: Tensor, wanted: Tensor) -> dict:
    """How often `found` (N, heads) is `wanted`, where that can be seen: `mean` over attributes, and `attributes`."""
    rates = {}
    for name, answer, target in zip(HEADS, found.unbind(1), wanted.unbind(1), strict=True):
        seen = target != HIDDEN
        if seen.any():
            rates[name] = float((answer == target)[seen].float().mean())
    return {"mean": sum(rates.values()) / len(rates), "attributes": rates}


def judge_portraits(
    pipe: RodinPipeline,
    classifier: AttributeClassifier,
    portraits: Portraits,
    scales: Iterable[float] = (1.5,),
    steps: int = 25,
    show: bool = True,
) -> dict:
    """Portrait → avatar, for people that nothing was trained on; at several guidance scales.

    Returns:
        `people`; `real`, the agreement of the classifier's answers for the real portraits with the truth; and by scale
        the same for the avatars (`agreement`), the `identity` cosines between the latents of each portrait and of its
        avatar's frontal picture, those of `strangers` (each portrait and the next one's avatar), the share of people
        who are `recognised` (nearer to their own avatar than to any other), and `variety`, the mean distance between
        latents of two avatars of one portrait and different noise.
    """
    encoder, wanted = pipe.encoder, label_table(portraits.attributes)
    real = plain(portraits.pictures[:, 0], PICTURE)
    latents = encoder.images(real)
    results: dict = {"people": len(portraits), "steps": steps, "real": agreement(named(classifier, real), wanted)}
    results["scales"] = {}
    for scale in scales:
        (_, pictures), (_, others) = (sculpted(pipe, latents, scale, steps, seed, show) for seed in (0, 10**6))
        seen = encoder.images(pictures)
        likeness = latents @ seen.T
        own = likeness.diagonal()
        results["scales"][f"{scale:g}"] = {
            "agreement": agreement(named(classifier, pictures), wanted),
            "identity": own.tolist(),
            "strangers": likeness.roll(1, 1).diagonal().tolist(),
            "recognised": float((likeness.argmax(1).cpu() == torch.arange(len(own))).float().mean()),
            "variety": float((seen - encoder.images(others)).norm(dim=1).mean()),
        }
    return results


def judge_texts(
    pipe: RodinPipeline,
    classifier: AttributeClassifier,
    count: int = 200,
    scale: float = 1.5,
    steps: int = 25,
    seed: int = 1_500_000,
    show: bool = True,
) -> dict:
    """Text → avatar, for prompts that tell one to three things of people whom nothing was trained on.

    Returns:
        `prompts` (the first few), `mean` over what they claim and the classifier judges, and by `attributes`.
    """
    texts = [partial_caption(sample_attributes(seed + i), FIRST_PROMPT + i) for i in range(count)]
    latents = pipe.prior.sample(count, pipe.encoder.texts(texts), guidance_scale=PROMPT_GUIDANCE)
    found = named(classifier, sculpted(pipe, latents, scale, steps, show=show)[1])
    hits: dict[str, list[bool]] = {}
    for text, answers in zip(texts, found.tolist(), strict=True):
        for aspect, classes in claims(text).items():
            head = HEAD_OF.get(aspect, aspect)
            allowed = {CLASS_OF.get((aspect, name), name) for name in classes}
            if head in HEADS and allowed <= set(HEADS[head]):
                hits.setdefault(head, []).append(HEADS[head][answers[list(HEADS).index(head)]] in allowed)
    claimed = [hit for row in hits.values() for hit in row]
    if not claimed:
        raise DataError(f"{count} prompts claim nothing that the classifier judges: give more")
    rates = {head: {"rate": sum(row) / len(row), "claims": len(row)} for head, row in sorted(hits.items())}
    return {"count": count, "prompts": texts[:8], "mean": sum(claimed) / len(claimed), "attributes": rates}


def judge_edits(
    pipe: RodinPipeline,
    classifier: AttributeClassifier,
    portraits: Portraits,
    strength: float = 1.0,
    scale: float = 1.5,
    steps: int = 25,
    show: bool = True,
) -> dict:
    """Text-guided edits of inverted portraits: does what was asked change, does the rest stay?

    Both are told by the classifier's answers for each avatar before and after. Of the rest, what an edit hides or
    brings to light (the hair style of somebody bald) does not count: see `RELATED`.

    Returns:
        `mean` of `changed` and `kept` over the edits, and both for each.
    """
    latents = pipe.encoder.images(plain(portraits.pictures[:, 0], PICTURE))
    before = named(classifier, sculpted(pipe, latents, scale, steps, show=show)[1])
    heads, wanted, results = list(HEADS), label_table(portraits.attributes), {}
    for head, name, target, source in EDITS:
        column, goal = heads.index(head), HEADS[head].index(name)
        lacking = (before[:, column] != goal) & (wanted[:, column] != HIDDEN)
        if not lacking.any():
            continue
        edited = F.normalize(latents + strength * pipe.direction(target, source).to(latents), dim=1)
        after = named(classifier, sculpted(pipe, edited, scale, steps, show=show)[1])
        others = [i for i, other in enumerate(heads) if other not in {head, *RELATED.get(head, ())}]
        same = (after == before)[:, others] & (wanted[:, others] != HIDDEN)
        counted = (wanted[:, others] != HIDDEN)[lacking].sum()
        results[f"{head}: {name}"] = {
            "changed": float((after[lacking, column] == goal).float().mean()),
            "kept": float(same[lacking].sum() / counted),
            "people": int(lacking.sum()),
        }
    means = {key: sum(row[key] for row in results.values()) / len(results) for key in ("changed", "kept")}
    return {"strength": strength, "mean": means, "edits": results}


RELATED = {
    "hair_style": ("hair_color", "fringe", "earrings"),
    "hair_color": (),
    "facial_hair": ("beard_length", "lip_color", "gender"),
    "glasses": ("frame_color",),
    "hat": ("hat_color", "hair_style", "hair_color", "fringe"),
    "clothing_color": (),
    "age": ("hair_color",),
}
