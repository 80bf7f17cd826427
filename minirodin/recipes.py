"""What `minirodin reproduce` makes: how much, how long each network is trained, and where things lie."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from minirodin.config import PRESETS, Config

PORTRAIT_SEEDS = {"train": 100_000, "unseen": 1_700_000}  # of the first person
PEOPLE_SEEDS = {"train": 0, "unseen": 1_000_000}


@dataclass(frozen=True)
class Portraits:
    """Near-frontal pictures, which the encoder, the classifier and the latent model learn from."""

    train: int  # people
    unseen: int
    views: int
    size: int  # pixels


@dataclass(frozen=True)
class People:
    """People seen from all around, for whom planes are fitted. Those of equal pictures are made once."""

    train: int
    unseen: int
    views: int
    size: int  # pixels
    detail: int  # of the skin; 1 is enough for pictures of 128 pixels
    group: int  # fitted side by side


@dataclass(frozen=True)
class Plan:
    """The data of one reproduction, and what is measured of it."""

    portraits: Portraits
    base: People  # many, with planes of the base model's size
    upsampler: People  # with planes of full size; the first of them teach the decoder
    refiner: People  # with photographs of four times `refiner.view`
    decoder: int  # how many of the upsampler's people teach it
    base_rays: int  # a subject and step of fitting planes of the base model's size …
    base_steps: int  # … for each group …
    base_variation: float  # … less smooth than others, or faces lose their eyes
    samples: int  # people drawn from the base model
    judged: int  # portraits, and prompts
    scales: tuple[float, ...]  # of guidance, at which portraits are judged
    calls: int  # of the base network for a person
    picture: int  # pixels a side of the renders whose features are compared


@dataclass(frozen=True)
class Steps:
    """Of training."""

    encoder: int
    classifier: int
    base: int
    latent: int
    upsampler: int
    refiner: int


RECIPES = {  # and what the base model's loss has beside the preset's
    "smoke": (
        Plan(
            portraits=Portraits(8, 4, 2, 64),
            **{"base": People(6, 4, 10, 256, 1, 8), "upsampler": People(6, 4, 10, 256, 1, 8)},
            **{"refiner": People(3, 2, 10, 256, 1, 4), "decoder": 4},
            **{"base_rays": 256, "base_steps": 60, "base_variation": 0.1},
            **{"samples": 4, "judged": 2, "scales": (1.5,), "calls": 4, "picture": 64},
        ),
        Steps(encoder=40, classifier=40, base=40, latent=100, upsampler=8, refiner=20),
        {},
    ),
    "small": (  # about an hour on one GPU, by the rates that were measured of single stages (README)
        Plan(
            portraits=Portraits(3000, 256, 4, 144),
            **{"base": People(1024, 64, 24, 128, 1, 128), "upsampler": People(192, 32, 32, 256, 2, 64)},
            **{"refiner": People(48, 16, 24, 1024, 2, 16), "decoder": 192},
            **{"base_rays": 1024, "base_steps": 1000, "base_variation": 0.1},
            **{"samples": 64, "judged": 64, "scales": (1.5, 3.0), "calls": 25, "picture": 224},
        ),
        Steps(encoder=2000, classifier=1500, base=4000, latent=6000, upsampler=2500, refiner=2500),
        {"focus": 1.0, "perceptual_weight": 0.1, "likeness_weight": 0.3},  # what taught faces (README)
    ),
    "full": (
        Plan(
            portraits=Portraits(100_000, 2048, 8, 256),
            **{"base": People(100_000, 1024, 300, 256, 2, 64), "upsampler": People(20_000, 512, 300, 256, 2, 64)},
            **{"refiner": People(2000, 128, 100, 1024, 2, 8), "decoder": 1024},
            **{"base_rays": 2048, "base_steps": 2000, "base_variation": 0.1},
            **{"samples": 1024, "judged": 1024, "scales": (1.0, 1.5, 2.0, 3.0), "calls": 100, "picture": 224},
        ),
        Steps(encoder=60_000, classifier=20_000, base=500_000, latent=100_000, upsampler=300_000, refiner=100_000),
        {},
    ),
}


def recipe(name: str) -> dict[str, Config | Plan]:
    """What a preset comes to here (an unknown one: `small`): `config` and `plan`, the defaults of all flags."""
    config, (plan, steps, losses) = PRESETS.get(name, PRESETS["small"]), RECIPES.get(name, RECIPES["small"])
    for part, count in dataclasses.asdict(steps).items():
        network = getattr(config, part)
        often = min(network.train.checkpoint_every, 500)
        train = replace(network.train, steps=count, preview_every=count, checkpoint_every=often)
        config = replace(config, **{part: replace(network, train=train)})
    base = config.base  # conditioned (E13); what it adds beyond λ = 0 makes people less like their portraits (README)
    unet, diffusion = replace(base.unet, latent=config.encoder.dimensions), replace(base.diffusion, log_snr_stop=0.0)
    base = replace(base, unet=unet, diffusion=diffusion, **losses)
    return {"config": replace(config, base=base), "plan": plan}


@dataclass(frozen=True)
class Run:
    """One reproduction: its folder and settings, and which of `ranks` processes this is."""

    out: Path
    config: Config
    plan: Plan
    rank: int
    ranks: int
    device: str

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def fitted(self) -> dict[str, tuple[People, Config]]:
        """Whose planes are fitted, and how."""
        c, p = self.config, self.plan
        small = replace(c.triplane, resolution=c.triplane.base_resolution)
        one_size = {"resolutions": (small.resolution,), "resolution_weights": (1.0,)}
        quick = {"rays": p.base_rays, "steps": p.base_steps, "total_variation": p.base_variation}
        base = replace(c, triplane=small, fit=replace(c.fit, **one_size, **quick))
        kinds = {"base": (p.base, base), "upsampler": (p.upsampler, c), "refiner": (p.refiner, c)}
        return {k: (who, replace(how, fit=replace(how.fit, group=who.group))) for k, (who, how) in kinds.items()}

    def portraits(self, part: str) -> Path:
        return self.out / "data" / "portraits" / part

    def captures(self, who: People) -> Path:
        return self.out / "data" / "people" / f"{who.size}-{who.views}-{who.detail}"

    def people(self, who: People, part: str) -> list[Path]:
        first = PEOPLE_SEEDS[part]
        return [self.captures(who) / f"{seed:06d}" for seed in range(first, first + getattr(who, part))]

    def planes(self, kind: str, part: str) -> Path:
        return self.out / "data" / "planes" / kind / part

    def latents(self, part: str) -> Path:
        return self.portraits(part).with_suffix(".safetensors")

    def record(self, stage: Callable) -> Path:
        """What says that a stage is done, and what it measured."""
        return self.out / "results" / f"{stage.__name__}.json"

    def picture(self, name: str) -> Path:
        (self.out / "pictures").mkdir(exist_ok=True)
        return self.out / "pictures" / f"{name}.png"
