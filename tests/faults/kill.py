"""kill -9 at random moments, again and again: the run that is then let be ends with the bits of one that nobody killed.

    python tests/faults/kill.py [--kills 20] [--seed 0] [--only fit]

People, shared decoder, planes, every network, and samples are made at the smallest size. Each is killed `kills` times,
one half at random times, the other in the middle of saving: before or after a file is synchronised or renamed. After
every kill it is started again, and when it is done, it begins in another folder. No file may be missing, doubled or
left over, and on a CPU every bit of them is that of an unbroken run, but for the seconds in the logs. Exit code 1 if
not.

Interruptions at chosen places have their tests in `test_fitting.py`, `test_training.py`, `test_dataset.py` and
`test_reproduce.py`.
"""

import argparse
import csv
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch._dynamo  # which every optimiser would import at its first step, in every process
import torch.nn.functional as F
from conftest import tiny_config
from test_base import TINY as BASE
from test_refiner import TINY as REFINER
from test_upsampler import TINY as UPSAMPLER
from toys import ball_capture

from minirodin import base, base_training, training
from minirodin.avatars.attributes import sample_attributes
from minirodin.avatars.dataset import make_people
from minirodin.base import BaseModel, sample_people
from minirodin.base_training import train_base
from minirodin.cameras import save_capture
from minirodin.classifier import train_classifier
from minirodin.config import ClassifierConfig, EncoderConfig, LatentConfig, TrainConfig
from minirodin.encoder_training import train_encoder
from minirodin.fitting import fit_subjects
from minirodin.latent import import_open_clip
from minirodin.latent_diffusion import train_latent
from minirodin.latents import Latents
from minirodin.refiner_training import train_refiner
from minirodin.upsampler import Upsampler, upsample_people
from minirodin.upsampler_training import train_upsampler

SCHEDULE = {"log_every": 3, "preview_every": 12, "checkpoint_every": 2, "warmup": 2, "ema": 0.9, "graph": False}


def config(**fit):
    """Every network at its smallest, a dozen steps each."""

    def train(steps, batch):
        return TrainConfig(steps=steps, batch=batch, lr=1e-3, **SCHEDULE)

    small = {"width": 32, "layers": 1, "text_width": 32, "text_layers": 1, "head_width": 16, "dimensions": 16}
    return replace(
        tiny_config(group=1, **{"shared_steps": 60, "steps": 40, "rays": 64, "checkpoint_every": 7, **fit}),
        base=replace(BASE, train=train(24, 4)),
        upsampler=replace(UPSAMPLER, train=train(8, 2)),
        refiner=replace(REFINER, train=train(8, 2)),
        classifier=ClassifierConfig(size=16, channels=(8, 16), train=train(40, 4)),
        encoder=EncoderConfig(tower="", size=16, patch=8, **small, train=train(24, 4)),
        latent=LatentConfig(width=32, blocks=1, train=train(60, 8)),
    )


def jobs(home: Path) -> dict[str, tuple[tuple, Callable[[Path], object]]]:
    """What is to be killed: name → what must be there before, and what makes a folder."""
    c, quiet = config(), {"show_progress": False}

    @cache
    def captures(size: int = 24) -> Path:
        for seed in range(4):
            capture = ball_capture(f"{seed:06d}", views=6, size=size, seed=seed)
            capture.attributes.clear()
            capture.attributes.update(sample_attributes(seed).to_dict())
            save_capture(capture, home / f"captures-{size}" / capture.name)
        return home / f"captures-{size}"

    @cache
    def large() -> Path:
        return captures(96)

    @cache
    def fitted() -> Path:
        return fit_subjects(captures(), config(shared_steps=8), home / "fitted", device="cpu", **quiet).folder

    @cache
    def latents() -> Path:
        z = F.normalize(torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
        Latents([f"{seed:06d}" for seed in range(4)], z, "encoder", z[:, :4]).save(home / "latents.safetensors")
        return home / "latents.safetensors"

    @cache
    def base_model() -> BaseModel:
        return train_base(fitted(), c, home / "base", **quiet)

    @cache
    def upsampler() -> Upsampler:
        return train_upsampler(fitted(), c, home / "upsampler", **quiet)

    @cache
    def samples() -> Path:
        return sample_people(base_model(), 6, home / "samples", 2, **quiet).folder

    def fit(out: Path, decoder: Path | None) -> None:
        fit_subjects(captures(), c, out, decoder, device="cpu", **quiet)

    people = {"count": 3, "views": 3, "size": 24, "detail": 1, **quiet}
    return {
        "people": ((), lambda out: make_people(out, workers=1, **people)),
        "people, two processes": ((), lambda out: make_people(out, workers=2, **people)),
        "fit, shared decoder": ((captures,), lambda out: fit(out, None)),
        "fit": ((fitted,), lambda out: fit(out, fitted() / "decoder.safetensors")),
        "train encoder": ((captures,), lambda out: train_encoder(captures(), c, out, captures(), **quiet)),
        "train classifier": ((captures,), lambda out: train_classifier(captures(), c, out, captures(), **quiet)),
        "train latent": ((latents,), lambda out: train_latent(latents(), c, out, **quiet)),
        "train base": ((fitted,), lambda out: train_base(fitted(), c, out, fitted(), **quiet)),
        "train upsampler": ((fitted,), lambda out: train_upsampler(fitted(), c, out, **quiet)),
        "train refiner": ((fitted, large), lambda out: train_refiner(fitted(), c, out, large(), **quiet)),
        "sample": ((base_model,), lambda out: sample_people(base_model(), 6, out, 4, batch=1, **quiet)),
        "upsample": (
            (upsampler, samples),
            lambda out: upsample_people(upsampler(), samples(), out, 2, batch=1, **quiet),
        ),
    }


def start(make: Callable[[Path], object], out: Path, log: Path, save: int | None = None) -> int:
    """Make a folder in a process of its own, which dies at a moment of saving if one is given; returns its number."""
    process = os.fork()  # all is imported here already: what is killed is at work
    if process:
        return process
    code = 1
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        torch.set_num_threads(1)  # renews the pool that a fork spoils, before several threads do so at once
        moments = watch_saving(save)
        make(out)
        out.with_name(out.name + ".moments").write_text(str(len(moments)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def watch_saving(deadly: int | None) -> list[str]:
    """Note every moment before and after a file is synchronised or renamed, and die at one of them."""
    moments: list[str] = []

    def passed(name: str) -> None:
        moments.append(name)
        if len(moments) - 1 == deadly:
            os.killpg(0, signal.SIGKILL)

    def around(name: str):
        original = getattr(os, name)

        def called(*arguments, **options):
            passed(f"before {name}")
            result = original(*arguments, **options)
            passed(f"after {name}")
            return result

        setattr(os, name, called)

    around("fsync"), around("replace")
    return moments


def finished(process: int, within: float) -> int | None:
    """The exit code of a process, or None if it is still at work then."""
    until = time.monotonic() + within
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.005)


def contents(folder: Path) -> dict[str, object]:
    """Every file below a folder: tensors' bytes and header, logs without their seconds, others as they are."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        value: object = path.read_bytes()
        if path.suffix == ".safetensors":
            size = int.from_bytes(value[:8], "little")
            value = json.loads(value[8 : 8 + size]), value[8 + size :]
        elif path.name == "log.csv":
            value = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(path.open())]
        elif path.suffix == ".lock" or path.name.startswith("events.out"):  # says nothing; of TensorBoard, one a start
            continue
        found[str(path.relative_to(folder))] = value
    return found


def differences(expected: Path, found: Path) -> str:
    """What tells two folders apart, or nothing."""
    one, two = contents(expected), contents(found)
    if one.keys() != two.keys():
        return f"files differ: {sorted(one.keys() ^ two.keys())}"
    return ", ".join(f"{file} has other bits" for file in one if one[file] != two[file])


def broken(make: Callable, whole: Path, kills: int, seconds: float, moments: int, rng: random.Random) -> tuple:
    """Make a folder under so many kills, and another one whenever it is done in spite of them.

    Returns:
        How many hit, how many folders were made, and what went wrong.
    """
    hit, made, attempts = 0, 0, 0
    while attempts < 6 * kills + 1:
        out, last = whole.with_name(f"broken-{made}"), hit == kills
        log = out.with_name(f"{out.name}.log")
        save = rng.randrange(moments) if attempts % 2 and moments and not last else None
        process = start(make, out, log, save)
        code = finished(process, 600 if last or save is not None else rng.random() * seconds)
        if code is None:
            os.killpg(process, signal.SIGKILL)
            code = finished(process, 60)
        if code not in (0, -signal.SIGKILL):
            return hit, made, f"ended with {code}: {log.read_text()[-400:]}"
        hit, attempts = hit + (code == -signal.SIGKILL), attempts + 1
        if code == 0:
            made += 1
            if fault := differences(whole, out):
                return hit, made, fault
            if last:
                break
    return hit, made, ""


def quick() -> None:
    """Leave out what takes longer than to learn: pictures, and an import in every process."""
    torch.set_num_threads(1)
    import_open_clip()
    base_training.PREVIEWS = 2
    training.save_curves = lambda curves, path, **more: None
    base.contact_sheet = lambda pictures, columns, path: None


def run(kills: int, seed: int, only: str = "", say=print) -> list[str]:
    """Returns a line for each thing whose broken run did not end like the unbroken one."""
    quick()
    wrong, total = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        for name, (before, make) in jobs(home).items():
            if only not in name:
                continue
            for prepare in before:
                prepare()
            rng, folder = random.Random(f"{seed} {name}"), home / "runs" / name.replace(" ", "-")
            folder.mkdir(parents=True)
            started = time.perf_counter()
            code = finished(start(make, folder / "whole", folder / "whole.log"), 600)
            seconds = time.perf_counter() - started
            if code:
                raise SystemExit(f"{name}: the unbroken run fails: {(folder / 'whole.log').read_text()[-2000:]}")
            moments = int((folder / "whole.moments").read_text())
            hit, made, fault = broken(make, folder / "whole", kills, seconds, moments, rng)
            total += hit
            say(f"{name}: {seconds:.1f} s, {moments} moments of saving, {hit} kills, {made} made: {fault or 'equal'}")
            if fault:
                wrong.append(f"{name}: {fault}")
    say(f"{total} kills, {len(wrong)} faults")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="what has this in its name")
    options = parser.parse_args()
    return 1 if run(options.kills, options.seed, options.only, lambda line: print(line, flush=True)) else 0


if __name__ == "__main__":
    sys.exit(main())
