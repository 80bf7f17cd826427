"""The whole reproduction in one call: people, their planes, every network, what came of it, and a report.

`STAGES` are taken one after another. A stage is done when `results/STAGE.json`, written last, says what it measured: so
the same call goes on where one before it ended, however that was, and inside a stage where its functions can.

Under torchrun or accelerate the processes share fitting and training. What the first does alone the others wait for by
looking for that file, since a barrier gives up after ten minutes.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minirodin.augmentation import read_augmentation, tune_augmentation
from minirodin.avatar import Avatar, to_rgb
from minirodin.avatars.dataset import make_people
from minirodin.base import BaseModel, sample_people
from minirodin.base_training import train_base
from minirodin.cameras import load_capture, orbit_cameras
from minirodin.classifier import AttributeClassifier, accuracy, train_classifier
from minirodin.config import Config
from minirodin.encoder_training import assess_encoder, train_encoder
from minirodin.errors import CheckpointError
from minirodin.evaluation import compare, evaluate, provenance, write_json
from minirodin.fitting import fit_subjects
from minirodin.judgement import judge_edits, judge_portraits, judge_texts
from minirodin.latent import ImageTextEncoder
from minirodin.latent_diffusion import LatentModel, train_latent
from minirodin.latents import encode_people
from minirodin.locks import FolderLock
from minirodin.pipeline import RodinPipeline
from minirodin.plots import contact_sheet, to_picture
from minirodin.portraits import Portraits, plain
from minirodin.recipes import PEOPLE_SEEDS, PORTRAIT_SEEDS, Plan, Run
from minirodin.refiner import Refiner
from minirodin.refiner_evaluation import evaluate_refiner
from minirodin.refiner_training import train_refiner
from minirodin.report import write_report
from minirodin.shards import FittedPlanes
from minirodin.upsampler import Upsampler, upsample_people
from minirodin.upsampler_training import train_upsampler

PROMPTS = (
    "a young woman with long red hair and round glasses",
    "an old man with a white beard",
    "a man wearing a blue baseball cap and a green hoodie",
    "a woman with an afro wearing a yellow shirt",
)
EDIT = "an old person", "a young person"  # target, source
SHOWN, PICTURE, TURN = 4, 160, 12  # people on a picture; pixels of each; views of the one who turns


def portraits(run: Run) -> dict:
    p = run.plan.portraits
    for part, seed in PORTRAIT_SEEDS.items():
        make_people(run.portraits(part), getattr(p, part), p.views, p.size, seed, portraits=True)
    return {"people": p.train + p.unseen}


def encoder(run: Run) -> dict:  # E13
    made = train_encoder(run.portraits("train"), run.config, run.out / "encoder", run.portraits("unseen"), run.main)
    return assess_encoder(made, Portraits.load(run.portraits("unseen"))) if run.main else {}


def classifier(run: Run) -> dict:
    out = run.out / "classifier"
    made = train_classifier(run.portraits("train"), run.config, out, run.portraits("unseen"), run.main)
    return accuracy(made, Portraits.load(run.portraits("unseen"))) if run.main else {}


def people(run: Run) -> dict:
    made = set()
    for who, _ in run.fitted.values():
        for part, seed in PEOPLE_SEEDS.items():
            folder, count = run.captures(who), getattr(who, part)
            made |= {*make_people(folder, count, who.views, who.size, seed, detail=who.detail)}
    return {"people": len(made)}


def decoder(run: Run) -> dict:  # E1-E5, stage one
    who, config = run.fitted["upsampler"]
    some = run.people(who, "train")[: run.plan.decoder]
    return {"people": len(fit_subjects(some, config, run.out / "data" / "decoder", device=run.device))}


def planes(run: Run) -> dict:  # E5, stage two: each process its share of the groups
    shared, counts = run.out / "data" / "decoder" / "decoder.safetensors", {}
    for kind, (who, config) in run.fitted.items():
        for part in PEOPLE_SEEDS:
            folders, out = run.people(who, part), run.planes(kind, part)
            fit_subjects(folders, config, out, shared, run.device, run.rank, run.ranks, run.main)
            if run.main:
                while len(fitted := FittedPlanes(out)) + len(fitted.skipped) < len(folders):
                    time.sleep(0.2)  # for other processes
                counts[f"{kind}, {part}"] = len(fitted)
    return counts


def latents(run: Run) -> dict:
    known = ImageTextEncoder.load(run.out / "encoder", run.device)
    for part in PEOPLE_SEEDS:
        encode_people(known, run.people(run.plan.base, part), run.planes("base", part) / "latents.safetensors")
        encode_people(known, run.portraits(part), run.latents(part))
    return {}


def latent(run: Run) -> dict:  # E15
    train_latent(run.latents("train"), run.config, run.out / "latent", run.latents("unseen"), run.main)
    return {}


def base(run: Run) -> dict:  # E6-E14
    train_base(run.planes("base", "train"), run.config, run.out / "base", run.planes("base", "unseen"), run.main)
    return {}


def samples(run: Run) -> dict:
    count, model = run.plan.samples, BaseModel.load(run.out / "base", run.device)
    z = LatentModel.load(run.out / "latent", run.device).sample(count)
    sample_people(model, count, run.out / "samples", run.plan.calls, latents=z, guidance_scale=1.5)
    return {"people": count}


def augmentation(run: Run) -> dict:  # E18
    folders = run.out / "samples", run.planes("upsampler", "unseen"), run.out / "augmentation"
    return tune_augmentation(*folders, picture=run.plan.picture)


def upsampler(run: Run) -> dict:  # E17-E19
    found = read_augmentation(run.out / "augmentation" / "augmentation.json")
    config = replace(run.config, upsampler=replace(run.config.upsampler, augment=found))
    data, unseen = run.planes("upsampler", "train"), run.planes("upsampler", "unseen")
    train_upsampler(data, config, run.out / "upsampler", unseen, run.captures(run.plan.upsampler), run.main)
    return {}


def pairs(run: Run) -> dict:
    """What the refiner is to see through: its people, reduced and upsampled."""
    model, out = Upsampler.load(run.out / "upsampler", run.device), run.out / "data" / "upsampled" / "pairs"
    return {"people": len(upsample_people(model, run.planes("refiner", "train"), out, reduce=True))}


def refiner(run: Run) -> dict:  # E20
    data, unseen = run.planes("refiner", "train"), run.planes("refiner", "unseen")
    upsampled, photographs = run.out / "data" / "upsampled" / "pairs", run.captures(run.plan.refiner)
    train_refiner(data, run.config, run.out / "refiner", photographs, unseen, run.main, upsampled)
    return {}


def fitting(run: Run) -> dict:
    fitted = FittedPlanes(run.planes("upsampler", "unseen"))
    photographs, t, rows = run.captures(run.plan.upsampler), run.config.triplane, []
    for name in fitted.names[:SHOWN]:
        seen, avatar = load_capture(photographs / name), Avatar.load(fitted.folder / name).to(run.device)
        camera = seen.cameras[seen.held_out()[1][:1]].resized(PICTURE, PICTURE)
        truth = plain(torch.from_numpy(seen.images[seen.held_out()[1][:1]]), PICTURE)[0].permute(1, 2, 0)
        sizes = (t.resolution, t.base_resolution)
        rows += [truth, *(to_rgb(avatar.views(camera, size)[0]).cpu() for size in sizes)]
    contact_sheet(rows, 6, run.picture("fitting"))
    return evaluate(fitted.folder, photographs)


def generation(run: Run) -> dict:
    folders = run.out / "samples", run.planes("base", "unseen"), run.planes("base", "train")
    return compare(*folders, picture=run.plan.picture)


def judgement(run: Run) -> dict:  # E16
    pipe, p = RodinPipeline.from_pretrained(run.out), run.plan
    judge, known = AttributeClassifier.load(run.out / "classifier"), Portraits.load(run.portraits("unseen"))
    some = Portraits(known.names[: p.judged], known.pictures[: p.judged], known.attributes[: p.judged])
    return {
        "portraits": judge_portraits(pipe, judge, some, p.scales, p.calls),
        "texts": judge_texts(pipe, judge, p.judged, steps=p.calls),
        "edits": judge_edits(pipe, judge, some, steps=p.calls),
    }


def upsampling(run: Run) -> dict:
    """Detail on fitted people who were taken down to the base model's size, and on generated ones."""
    model, fitted = Upsampler.load(run.out / "upsampler", run.device), run.planes("upsampler", "unseen")
    photographs, out = run.captures(run.plan.upsampler), run.out / "data" / "upsampled"
    size = run.config.triplane.resolution
    measured, made = {"fitted": evaluate(fitted, photographs, (size,))}, []
    for name, steps in (("enlarged", 0), ("upsampled", None)):
        upsample_people(model, fitted, out / "fitted" / name, steps, reduce=True)
        measured[name] = evaluate(out / "fitted" / name, photographs, (size,))
        upsample_people(model, run.out / "samples", out / "generated" / name, steps)
        made.append(out / "generated" / name)
    held_out = {name: found["mean"][str(size)] for name, found in measured.items()}
    compared = compare(made, fitted, run.planes("upsampler", "train"), picture=run.plan.picture)
    return {"held_out": held_out, "generated": compared}


def refinement(run: Run) -> dict:
    model, generated = Refiner.load(run.out / "refiner"), run.out / "data" / "upsampled" / "generated" / "upsampled"
    return evaluate_refiner(model, run.planes("refiner", "unseen"), run.captures(run.plan.refiner), generated)


def gallery(run: Run) -> dict:
    """Portraits and their avatars, avatars of texts, one edited, and one who turns."""
    pipe, settings = RodinPipeline.from_pretrained(run.out), {"num_inference_steps": run.plan.calls}

    def look(avatar: Avatar, azimuth: float = 0.0) -> Tensor:
        return to_rgb(avatar.render(azimuth, 5, PICTURE)).cpu()

    seen = plain(Portraits.load(run.portraits("unseen")).pictures[:SHOWN, 0], PICTURE)
    inverted = [pipe(latent=z, **settings) for z in pipe.encoder.images(seen).cpu()]
    shown = [*seen.permute(0, 2, 3, 1), *map(look, inverted), *(look(avatar, 40) for avatar in inverted)]
    contact_sheet(shown, len(inverted), run.picture("portraits"))
    said = [pipe(text, seed=i, **settings) for i, text in enumerate(PROMPTS)]
    contact_sheet([look(avatar, azimuth) for azimuth in (0, 40) for avatar in said], len(said), run.picture("texts"))
    changed = [pipe.edit(avatar, *EDIT, **settings) for avatar in said]
    contact_sheet(list(map(look, said + changed)), len(said), run.picture("edits"))
    turn = said[0].views(orbit_cameras(np.arange(TURN) * 360 / TURN, 8, PICTURE))
    strip = torch.cat(list(turn), dim=1)  # (H, V·H, 4)
    to_picture(strip).save(run.picture("turn"))
    return {"prompts": PROMPTS, "edit": EDIT}


STAGES = (
    *(portraits, encoder, classifier, people, decoder, planes, latents, base, latent, samples, augmentation),
    *(upsampler, pairs, refiner, fitting, generation, judgement, upsampling, refinement, gallery),
)
TOGETHER = (encoder, classifier, planes, base, latent, upsampler, refiner)  # all processes; the others the first alone


def reproduce(config: Config, plan: Plan, out: str | Path, say: Callable[[str], None] = print) -> Path:
    """All stages that are not done yet, then the report.

    Args:
        config, plan: as `recipes.recipe` gives them, or changed.
        out: folder; `RodinPipeline.from_pretrained` reads it in the end.
        say: told when a stage begins or is done already.

    Returns:
        `out/report.html`.

    Raises:
        CheckpointError: `out` was begun with other settings, or holds other files; nothing is touched. MinirodinError:
            another process is at it. And what a stage raises.
    """
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    run = Run(Path(out), config, plan, rank, ranks, device)
    begin(run)
    with FolderLock(run.out) if run.main else nullcontext():
        for stage in STAGES:
            record = run.record(stage)
            if run.main:
                say(f"{stage.__name__}: done before" if record.is_file() else f"{stage.__name__} …")
            if record.is_file():
                continue
            started = time.perf_counter()
            values = stage(run) if run.main or stage in TOGETHER else {}
            if run.main:
                write_json({**provenance(), **values, "seconds": round(time.perf_counter() - started, 1)}, record)
            wait_for(record.is_file)
        if run.main:
            results = {stage.__name__: json.loads(run.record(stage).read_text(encoding="utf-8")) for stage in STAGES}
            write_report(run.out, config, plan, results)
    return run.out / "report.html"


def begin(run: Run) -> None:
    """Make the folder, or raise `CheckpointError` where another run has left its own."""
    record, out = run.out / "run.json", run.out
    told = json.loads(json.dumps({"config": run.config.to_dict(), "plan": dataclasses.asdict(run.plan)}))
    if run.main and not record.is_file():
        if out.exists() and not (out.is_dir() and all(path.name.startswith(".") for path in out.iterdir())):
            raise CheckpointError(f"{out} holds what no reproduction left: choose an empty folder")
        write_json(told, record)
    wait_for(record.is_file)
    try:
        before = dict(flat(json.loads(record.read_text(encoding="utf-8"))))
    except ValueError:
        raise CheckpointError(f"{record} is damaged: choose another folder") from None
    for name, value in flat(told):
        if before.get(name) != value:
            other = f"{name} {before.get(name)}, not {value}"
            raise CheckpointError(f"{out} was begun with {other}: give the same settings, or another folder")


def flat(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """All entries of nested dicts, with dotted names."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def wait_for(ready: Callable[[], bool]) -> None:
    while not ready():
        time.sleep(0.2)
