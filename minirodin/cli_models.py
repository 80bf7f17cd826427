"""The commands that train networks, and that look at what they make."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from minirodin.cli_refiner import train_refiner
from minirodin.config import Config
from minirodin.config import preset as load_preset
from minirodin.errors import CheckpointError, ConfigError


def train(
    what: Positional[Literal["base", "upsampler", "refiner", "classifier", "encoder", "latent"]],
    data: Path,
    out: Path,
    config: Annotated[Config, tyro.conf.arg(name="")],
    preset: str = "small",
    variant: Literal["baseline", "rollout", "aware"] | None = None,
    validation: Path | None = None,
    begin_from: Path | None = None,
    captures: Path | None = None,
    augmentation: Path | None = None,
    upsampled: Path | None = None,
) -> None:
    """Train a network; the same command resumes. Also under accelerate launch and torchrun.

    Args:
        what: base, the diffusion model on 64² planes; upsampler, the one from those to 256²; refiner, the network from
            views of 256² to 1024²; encoder, the space of images and texts; latent, the diffusion model on its latents;
            classifier, the judge of attributes in pictures.
        data: for base, upsampler and refiner the folder that `minirodin fit` wrote, for latent the file of
            `minirodin encode`, for the others the folder of `minirodin avatars --portraits`.
        out: folder of the model, its log, loss curve and previews.
        config: any setting of the preset.
        preset: smoke, small or full: the settings below start from it.
        variant: of base: planes stacked in channels, rolled out, or, as by default, that with 3D-aware convolutions.
        validation: another folder like `data` (for base and refiner: of the same decoder), whose loss is logged.
        begin_from: of base, refiner and encoder: the folder of another one to begin from, instead of random weights.
        captures: of upsampler: the photographs of the people in data, to compare with; else their fitted planes. Of
            refiner: those of everybody, of four times the side of its views.
        augmentation: of upsampler: the file that `minirodin tune` wrote, for --upsampler.augment.
        upsampled: of refiner: what `minirodin upsample data --reduce` wrote, to be learned from too.
    """
    runs = {
        "base": lambda: _train_base(data, config, out, validation, variant or "aware", begin_from),
        "upsampler": lambda: _train_upsampler(data, config, out, validation, captures, augmentation),
        "refiner": lambda: train_refiner(data, config, out, validation, captures, upsampled, begin_from),
        "classifier": lambda: _train_classifier(data, config, out, validation),
        "encoder": lambda: _train_encoder(data, config, out, validation, begin_from),
        "latent": lambda: _train_latent(data, config, out, validation),
    }
    options = {"variant": (variant, ["base"]), "begin_from": (begin_from, ["base", "refiner", "encoder"])}
    options |= {"captures": (captures, ["upsampler", "refiner"]), "augmentation": (augmentation, ["upsampler"])}
    options |= {"upsampled": (upsampled, ["refiner"])}
    _check_flags(what, list(runs), config, load_preset(preset), options)
    advice = runs[what]()
    if os.environ.get("RANK", "0") == "0":
        print(f"{out}; {advice}")


def _train_base(
    data: Path, config: Config, out: Path, validation: Path | None, variant: str, start: Path | None
) -> str:
    from minirodin.base_training import train_base

    train_base(data, dataclasses.replace(config, base=config.base.of_variant(variant)), out, validation, start=start)
    return f"sample it with: minirodin sample {out} --out {out / 'samples'}"


def _train_upsampler(
    data: Path,
    config: Config,
    out: Path,
    validation: Path | None,
    captures: Path | None,
    augmentation: Path | None,
) -> str:
    from minirodin.augmentation import read_augmentation
    from minirodin.upsampler_training import train_upsampler

    if augmentation:
        found = dataclasses.replace(config.upsampler, augment=read_augmentation(augmentation))
        config = dataclasses.replace(config, upsampler=found)
    train_upsampler(data, config, out, validation, captures)
    return f"use it with: minirodin upsample AVATAR --model {out} --out sharper.safetensors"


def _train_classifier(data: Path, config: Config, out: Path, validation: Path | None) -> str:
    from minirodin.classifier import train_classifier

    train_classifier(data, config, out, validation)
    return f"measure it with: minirodin assess {out} {validation or 'PORTRAITS'}"


def _train_encoder(data: Path, config: Config, out: Path, validation: Path | None, start: Path | None) -> str:
    from minirodin.encoder_training import train_encoder

    train_encoder(data, config, out, validation, start=start)
    return f"measure it with: minirodin assess {out} {validation or 'PORTRAITS'}"


def _train_latent(data: Path, config: Config, out: Path, validation: Path | None) -> str:
    from minirodin.latent_diffusion import train_latent

    train_latent(data, config, out, validation)
    return "it samples latents for prompts, in a pipeline beside base and encoder"


def encode(encoder: Positional[str], people: Positional[list[Path]], out: Path) -> None:
    """Write the latents of people: of each one's frontal portrait as it is, and jittered.

    Args:
        encoder: folder that `minirodin train encoder` wrote, or an open_clip model as MODEL/WEIGHTS.
        people: folder, or folders, that `minirodin avatars` wrote.
        out: file to write; `minirodin train base` looks for latents.safetensors beside the planes.
    """
    from minirodin.latent import ImageTextEncoder
    from minirodin.latents import encode_people

    latents = encode_people(ImageTextEncoder.load(encoder), people, out)
    print(f"{out}: {len(latents)} people")


def assess(model: Positional[Path], portraits: Positional[Path], out: Path | None = None) -> None:
    """Measure a model that looks at pictures, on portraits that it did not learn from; JSON.

    Args:
        model: folder that `minirodin train classifier` or `minirodin train encoder` wrote.
        portraits: folder that `minirodin avatars --portraits` wrote.
        out: file for the numbers; they are always printed.
    """
    from minirodin.evaluation import provenance, write_json
    from minirodin.pretrained import kind_of

    runs = {"attribute classifier": _assess_classifier, "image-text encoder": _assess_encoder}
    kind = kind_of(model / "model.safetensors")
    if kind not in runs:
        raise ConfigError(f"{model} holds a {kind}, which assess does not measure: give a {' or '.join(runs)}")
    results = {**provenance(), "kind": kind, **runs[kind](model, portraits)}
    if out:
        write_json(results, out)
    print(json.dumps(results, indent=1))


def _assess_classifier(model: Path, portraits: Path) -> dict:
    from minirodin.classifier import AttributeClassifier, accuracy
    from minirodin.portraits import Portraits

    return accuracy(AttributeClassifier.load(model), Portraits.load(portraits))


def _assess_encoder(model: Path, portraits: Path) -> dict:
    from minirodin.encoder_training import assess_encoder
    from minirodin.latent import ImageTextEncoder
    from minirodin.portraits import Portraits

    return assess_encoder(ImageTextEncoder.load(model), Portraits.load(portraits))


def pack(model: Positional[Path], out: Path | None = None) -> None:
    """Copy a trained model, or an avatar, with its weights or planes in 8 bits; or write a pipeline's index.

    Args:
        model: folder that `minirodin train` wrote, or an avatar file; without --out the folder of a pipeline (base,
            encoder, latent …), whose model_index.json is written anew for the files that are there.
        out: folder, or file, of the copy, which every command takes as it takes the original. In a folder that has a
            model_index.json it takes the place of a component, and the index follows.
    """
    from minirodin.pretrained import INDEX, pack_model, write_index
    from minirodin.shards import atomic_save, quantised, read_tensors

    if out is None:
        if model.is_file():
            raise ConfigError(f"{model} is a file: say with --out what its copy is to be called")
        for name, entry in write_index(model).items():
            print(f"{entry['sha256'][:16]}  {entry['size'] / 2**20:6.1f} MiB  {name}: {entry['kind']}")
        print(model / INDEX)
        return
    if out.resolve() == model.resolve():
        raise ConfigError(f"{out} is the model itself: choose another {'file' if model.is_file() else 'folder'}")
    if model.is_file():
        tensors, metadata = read_tensors(model, "avatar")
        planes = quantised({"planes": tensors.pop("planes")}, lead=2)
        atomic_save(planes | tensors, out, metadata)
        print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB, before {model.stat().st_size / 2**20:.1f}")
        return
    before, after = pack_model(model, out)
    print(f"{out}: {after / 2**20:.1f} MiB, before {before / 2**20:.1f}")


def sample(
    model: Positional[Path],
    out: Path,
    count: int = 16,
    steps: int = 25,
    sampler: Literal["ancestral", "ddim", "dpm++"] = "dpm++",
    seed: int = 0,
    latents: Path | None = None,
    prior: Path | None = None,
    guidance_scale: float = 1.5,
) -> None:
    """Sample new people from a trained model: planes as `minirodin fit` writes them, and a sheet of pictures.

    Args:
        model: folder that `minirodin train base` wrote.
        out: folder of the people; see one with `minirodin render OUT/sample-000000`.
        count: people.
        steps: calls of the network for each.
        sampler: ancestral (stochastic), ddim or dpm++ (deterministic).
        seed: of the first person, the others count up.
        latents: file that `minirodin encode` wrote: the people are those whose portraits it knows, as many as it has.
        prior: folder that `minirodin train latent` wrote: the people are those of latents that it draws.
        guidance_scale: with latents, how much they count.
    """
    from minirodin.base import BaseModel, sample_people

    if count < 1:
        raise ConfigError(f"count is {count}: give at least 1")
    if latents and prior:
        raise ConfigError("latents come from a file or from a prior: give one")
    base, z = BaseModel.load(model), None
    if latents:
        from minirodin.latents import Latents

        known = Latents.load(latents)
        if known.fingerprint != base.encoder:
            raise CheckpointError(f"{latents} is of another encoder than {model}: encode the people again")
        z = known.latents[:count, 0].float()
        count = len(z)
    if prior:
        from minirodin.latent_diffusion import LatentModel

        drawing = LatentModel.load(prior)
        if drawing.encoder != base.encoder:
            raise CheckpointError(f"{prior} is of another encoder than {model}: train it on that one's latents")
        z = drawing.sample(count, seed=seed)
    sample_people(base, count, out, steps, sampler, seed, latents=z, guidance_scale=guidance_scale)
    print(out / "sheet.png")


def upsample(
    people: Positional[Path],
    model: Path,
    out: Path,
    steps: int | None = None,
    seed: int = 0,
    noise: float = 0.0,
    reduce: bool = False,
    latents: Path | None = None,
) -> None:
    """Add detail to an avatar, or to everybody in a folder: planes of 64² become 256² (E17).

    Args:
        people: an avatar file, FOLDER/NAME, or a folder that `minirodin sample` or `minirodin fit` wrote.
        model: folder that `minirodin train upsampler` wrote.
        out: avatar file, or folder, to write; the same command goes on with a folder where it stopped.
        steps: calls of the network for each; by default what the model's configuration says.
        seed: of the first person, the others count up.
        noise: standard deviation of noise that the planes get first, as in training: hides what is wrong with them.
        reduce: take planes of any larger size, reduced to what the upsampler learned from: to measure it on fits.
        latents: of a folder, the file that `minirodin encode` wrote: whose detail person after person gets, where the
            upsampler knows latents.
    """
    from minirodin.avatar import Avatar
    from minirodin.upsampler import Upsampler, upsample_people

    if out.resolve() == people.resolve():
        raise ConfigError(f"{out} is what detail is to be added to: choose another name")
    if people.is_dir():
        upsampler, z = Upsampler.load(model), None
        if latents:
            from minirodin.latents import Latents

            known = Latents.load(latents)
            if known.fingerprint != upsampler.encoder:
                raise CheckpointError(f"{latents} is of another encoder than {model}: encode the people again")
            z = known.latents[:, 0].float()
        upsample_people(upsampler, people, out, steps, seed, noise, reduce, latents=z)
        print(out)
        return
    if latents:
        raise ConfigError("an avatar knows its latent itself: leave --latents out")
    avatar, upsampler = Avatar.load(people), Upsampler.load(model)
    if reduce:
        avatar = upsampler.reduced(avatar)
    made = upsampler.avatar(avatar, steps, seed, noise)
    print(f"{made.save(out)}; see it with: minirodin render {out} --out view.png")


def tune(samples: Positional[Path], data: Path, out: Path, limit: int = 64) -> None:
    """Find the magnitudes of condition augmentation (E18): so that spoiled planes look like the base model's; JSON.

    Args:
        samples: people that the base model made (`minirodin sample`).
        data: folder that `minirodin fit` wrote, of the people to spoil.
        out: folder for augmentation.json, which `minirodin train upsampler --augmentation` takes, and a picture.
        limit: people of each.
    """
    from minirodin.augmentation import tune_augmentation

    print(json.dumps(tune_augmentation(samples, data, out, limit), indent=1))


def judge(
    pipeline: Positional[Path],
    classifier: Path,
    portraits: Path,
    out: Path | None = None,
    scales: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0),
    limit: int = 128,
    prompts: int = 200,
    steps: int = 25,
    parts: tuple[Literal["portraits", "texts", "edits"], ...] = ("portraits", "texts", "edits"),
) -> None:
    """Do generated people look as portraits, prompts and edits asked? A classifier that had no part in it tells; JSON.

    Args:
        pipeline: folder with base, encoder and latent.
        classifier: folder that `minirodin train classifier` wrote.
        portraits: folder of `minirodin avatars --portraits`, of people that nothing was trained on.
        out: file for the numbers; their means are always printed.
        scales: guidance scales for the portraits.
        limit: people.
        prompts: how many.
        steps: calls of the base network for each avatar.
        parts: what is judged.
    """
    from minirodin.classifier import AttributeClassifier
    from minirodin.evaluation import provenance, write_json
    from minirodin.judgement import judge_edits, judge_portraits, judge_texts
    from minirodin.pipeline import RodinPipeline
    from minirodin.portraits import Portraits

    pipe, judging = RodinPipeline.from_pretrained(pipeline), AttributeClassifier.load(classifier)
    people = Portraits.load(portraits)
    people = Portraits(people.names[:limit], people.pictures[:limit], people.attributes[:limit])
    runs = {
        "portraits": lambda: judge_portraits(pipe, judging, people, scales, steps),
        "texts": lambda: judge_texts(pipe, judging, prompts, steps=steps),
        "edits": lambda: judge_edits(pipe, judging, people, steps=steps),
    }
    results = {**provenance(), **{part: runs[part]() for part in runs if part in parts}}
    if out:
        write_json(results, out)
    rows = {}
    if "portraits" in parts:
        scored = results["portraits"]["scales"].items()
        rows |= {f"portraits, scale {scale}": row["agreement"]["mean"] for scale, row in scored}
        rows["real portraits"] = results["portraits"]["real"]["mean"]
    if "texts" in parts:
        rows["texts"] = results["texts"]["mean"]
    print(json.dumps(rows | results.get("edits", {"mean": {}})["mean"], indent=1))


def compare(
    samples: Positional[list[Path]],
    real: Path,
    train: Path,
    out: Path | None = None,
) -> None:
    """Compare generated people with fitted ones: Fréchet distance, precision, recall, copies, what floats; JSON.

    Args:
        samples: folders that `minirodin sample` wrote.
        real: folder of fitted people that the model did not learn from.
        train: folder of those that it learned from.
        out: file for the numbers; they are always printed.
    """
    from minirodin.evaluation import compare as run
    from minirodin.evaluation import write_json

    results = run(samples, real, train)
    if out:
        write_json(results, out)
    print(json.dumps(results, indent=1))


def _check_flags(what: str, kinds: list[str], config: Config, untouched: Config, options: dict) -> None:
    """Refuse flags of `train` that `what` would not look at: options tell whose they are.

    A section of the settings that is named after a kind is that kind's own, all others are base's.
    """
    given = {f"--{name.replace('_', '-')}": whose for name, (value, whose) in options.items() if value is not None}
    for field in dataclasses.fields(Config):
        if getattr(config, field.name) != getattr(untouched, field.name):
            given[f"--{field.name}.…"] = [field.name if field.name in kinds else "base"]
    for flag, whose in given.items():
        if what not in whose:
            kinds = ", ".join(f"`train {kind}`" for kind in whose)
            raise ConfigError(f"{flag} means nothing to `train {what}`, it is for {kinds}: leave it out")
