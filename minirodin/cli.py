"""The command line: one function a command, its flags read by tyro; a user's mistake is one line and exit code 2.

Heavy modules are imported inside the functions, so that `minirodin --help` answers at once.
"""

import functools
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from minirodin.cli_avatars import edit, export, generate
from minirodin.cli_models import assess, compare, encode, judge, pack, sample, train, tune, upsample
from minirodin.cli_plan import plan
from minirodin.cli_refiner import refine
from minirodin.cli_reproduce import reproduce
from minirodin.config import PRESETS, Config
from minirodin.config import preset as load_preset
from minirodin.errors import ConfigError, MinirodinError, RenderError
from minirodin.recipes import recipe


def avatars(
    out: Path,
    count: int = 8,
    views: int = 24,
    size: int = 256,
    seed: int = 0,
    portraits: bool = False,
    workers: int | None = None,
    detail: Literal[1, 2] = 2,
) -> None:
    """Make synthetic people: a folder a subject with RGBA views, cameras and a caption. Existing ones are kept.

    Args:
        out: folder of the subjects; created when missing.
        count: number of subjects.
        views: images of each subject; frame 0 is the frontal portrait.
        size: width and height of an image in pixels.
        seed: of the first subject, the others count up (below 1000000 for training, then validation up to 2000000).
        portraits: views from near the front only, quicker to make: for `train classifier`.
        workers: processes; by default one a core.
        detail: 1 for a coarser skin, which is quicker to make, and enough for pictures of 128 pixels.
    """
    from minirodin.avatars.dataset import make_people

    make_people(out, count, views, size, seed, workers, detail, portraits=portraits)
    print(f"{count} subjects in {out}")


def fit(
    data: Positional[Path],
    out: Path,
    config: Annotated[Config, tyro.conf.arg(name="")],
    preset: str = "small",
    decoder: Path | None = None,
) -> None:
    """Fit tri-planes to captures: learn a shared decoder with them, or fit under a given one. Finished ones are kept.

    Args:
        data: a capture (images + transforms.json) or a folder of captures.
        out: folder of decoder.safetensors and planes-*.safetensors; the same command resumes an interrupted fit.
        config: any setting of the preset.
        preset: smoke, small or full: the settings below start from it.
        decoder: decoder.safetensors of an earlier fit, whose domain the new planes must share; it is not changed.
    """
    load_preset(preset)  # a misspelt one is told here, with the nearest name
    import torch

    from minirodin.fitting import fit_subjects

    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    fitted = fit_subjects(data, config, out, decoder=decoder, device=device, rank=rank, world_size=world_size)
    if len(fitted):  # a process that had no group to fit may be the first to end
        example = f"minirodin render {out / fitted.names[0]} --out view.png"
        print(f"{len(fitted)} subjects in {out}; see one with: {example}")


def render(avatar: Positional[Path], out: Path, azimuth: float = 0.0, elevation: float = 0.0, size: int = 256) -> None:
    """Draw one view of an avatar as an RGBA PNG.

    Args:
        avatar: avatar file, or FOLDER/NAME for a subject of a fitted folder.
        out: picture to write.
        azimuth: degrees; 0 is the front, positive moves the camera towards +x, the right of a frontal view.
        elevation: degrees above the horizon.
        size: width and height in pixels.
    """
    from minirodin.avatar import Avatar
    from minirodin.plots import to_picture

    _save_picture(to_picture(Avatar.load(avatar).render(azimuth, elevation, size)), out)
    print(out)


def demo(out: Path = Path("outputs/demo"), data: Path | None = None) -> None:
    """Make an avatar of a text and one of a portrait with the models in the box: meshes, turntables and a page.

    Args:
        out: folder of the files; open its index.html.
        data: a capture or folder of captures, such as data_samples/people: its first person is fitted instead, in a few
            minutes, and a turntable, a contact sheet and the avatar file are left.
    """
    from minirodin.demo import fit_one, show_box

    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give a folder")
    if data:
        fit_one(out, data)
    else:
        show_box(out)


def evaluate(
    avatars: Positional[Path],
    data: Positional[Path],
    out: Path | None = None,
    limit: int | None = None,
) -> None:
    """Compare fitted subjects with their held-out views at every plane size: PSNR, SSIM, perceptual distance; JSON.

    Args:
        avatars: folder that `minirodin fit` wrote.
        data: the captures it was given.
        out: file for the numbers of every subject; the means are always printed.
        limit: only the first so many subjects.
    """
    from minirodin.evaluation import evaluate as run
    from minirodin.evaluation import write_json

    results = run(avatars, data, limit=limit)
    if out:
        write_json(results, out)
    print(json.dumps({key: value for key, value in results.items() if key != "per_subject"}, indent=1))


Benchmark = Literal[
    "fit", "render", "conv", "unet", "upsampler", "refiner", "encoder", "latent", "refiner-training", "pipeline",
    "streaming", "pictures",
]  # fmt: skip


def bench(
    what: Positional[Benchmark],
    subject: Positional[Path | None] = None,
    preset: str = "small",
    decoder: Path | None = None,
    out: Path | None = None,
) -> None:
    """Measure this machine: rays and decoded samples a second, time to quality, peak memory, fast path and plain; JSON.

    Args:
        what: fit; render; conv, the 3D-aware convolution; unet, training steps of the base model's variants; upsampler,
            training steps, and planes at 10 steps; refiner, one view and several; encoder, latent and
            refiner-training, training steps; pipeline, a text to a view of 1024²; streaming, people a second and
            memory where ten times more planes are drawn than are kept; pictures, what they take on a disk.
        subject: captures to fit, an avatar to render, or the folder of a pipeline; the others need nothing.
        preset: smoke, small or full; for all but render, pipeline, conv and pictures.
        decoder: fit under this decoder (stage two) instead of learning one.
        out: file for the numbers; they are always printed.
    """
    config = load_preset(preset)
    from minirodin.benchmark import bench_fit, bench_pipeline, bench_render
    from minirodin.benchmark_data import bench_pictures, bench_streaming
    from minirodin.benchmark_training import bench_encoder, bench_latent, bench_refiner_training
    from minirodin.benchmark_unet import bench_conv, bench_unet, bench_upsampler
    from minirodin.evaluation import provenance, write_json
    from minirodin.refiner_evaluation import bench_refiner

    needed = {"fit": "captures", "render": "an avatar", "pipeline": "a folder of models"}
    if what in needed and subject is None:
        raise ConfigError(f"bench {what} needs {needed[what]}: name it")
    runs = {
        "fit": lambda: bench_fit(subject, config, decoder),
        "render": lambda: bench_render(subject),
        "pipeline": lambda: bench_pipeline(subject),
        "conv": bench_conv,
        "unet": lambda: bench_unet(config),
        "upsampler": lambda: bench_upsampler(config),
        "refiner": lambda: bench_refiner(config),
        "encoder": lambda: bench_encoder(config),
        "latent": lambda: bench_latent(config),
        "refiner-training": lambda: bench_refiner_training(config),
        "streaming": lambda: bench_streaming(config),
        "pictures": bench_pictures,
    }
    results = runs[what]()
    results = {**provenance(), **results}
    if out:
        write_json(results, out)
    print(json.dumps(results, indent=1))


def doctor() -> None:
    """Say what this machine has and what to do about what is missing."""
    from minirodin.doctor import report

    print(report())


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for a mistake in the input, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    # Before torch loads: threads that spin as long as they do by default slow a fit down manyfold on a busy machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    models = (train, encode, assess, pack, sample, tune, upsample, refine, judge, compare)
    functions = (avatars, fit, render, export, generate, edit, demo, evaluate, *models, plan, reproduce, bench, doctor)
    commands = {f.__name__: f for f in functions}
    for command in (fit, train):
        commands[command.__name__] = functools.partial(command, config=PRESETS.get(_preset_in(argv), PRESETS["small"]))
    commands["reproduce"] = functools.partial(reproduce, **recipe(_preset_in(argv)))
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="minirodin", description=PITCH, args=argv)
        return 0
    except MinirodinError as error:
        return _fail(error)
    except BrokenPipeError:  # `minirodin … | head`: the reader has gone, there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # disk full, permission denied
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where} (results written before are kept)")
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            return _fail("out of memory: choose a smaller preset, or lower --fit.group, --fit.rays or --size")
        raise
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130


PITCH = "Rodin in plain PyTorch: sculpt 3D avatars with tri-plane diffusion. `minirodin doctor` looks at this machine."


def _preset_in(argv: list[str]) -> str:
    """The value of --preset, needed before parsing: it decides the defaults of every other setting of `fit`."""
    for i, word in enumerate(argv):
        if word == "--preset":
            return "".join(argv[i + 1 : i + 2])
        if word.startswith("--preset="):
            return word.removeprefix("--preset=")
    return "small"


def _save_picture(image, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        image.save(out)
    except ValueError:
        raise RenderError(f"{out}: not a picture format that is known: end the name with .png") from None


def _fail(message) -> int:
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    return 2
