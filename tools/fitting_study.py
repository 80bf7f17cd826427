"""The trade between fidelity and diffusability: the same fit under several settings of the levers (E3–E5).

For each setting: learn a decoder on training people, fit validation people under it, evaluate on held-out views.

    minirodin avatars --count 32 --views 32 --seed 0 --out runs/study/train
    minirodin avatars --count 16 --views 32 --seed 1000000 --out runs/study/validation
    python tools/fitting_study.py runs/study/train runs/study/validation --out runs/study/fits

Each setting leaves OUT/NAME.json; `--only` picks settings.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

from minirodin.cameras import find_captures
from minirodin.config import Config, preset
from minirodin.evaluation import evaluate, provenance, write_json
from minirodin.fitting import fit_subjects


def settings(base: Config) -> dict[str, Config]:
    """Every setting by name; each differs from `chosen` in what its name says. `private-…`: a decoder a person."""

    def fit(**changes) -> Config:
        return replace(base, fit=replace(base.fit, **changes))

    def channels(count: int) -> Config:
        return replace(base, triplane=replace(base.triplane, channels=count))

    smooth, noise = base.fit.total_variation, base.fit.plane_noise
    plain = {"coarse_lr": 0.0, "coarse_fraction": 0.0, "total_variation": smooth / 100}
    one_size = {"resolutions": (base.triplane.resolution,), "resolution_weights": (1.0,)}
    return {
        "chosen": base,
        "one-size": fit(**one_size),
        # What the paper warns of: no rescaling, and nothing of ours that makes planes smooth by construction either.
        "one-size-plain": fit(**one_size, **plain),
        # And as tri-planes are usually begun: from noise.
        "one-size-from-noise": fit(**one_size, **plain, start_noise=0.1),
        "smoothness-x4": fit(total_variation=smooth * 4),
        "smoothness-d10": fit(total_variation=smooth / 10),
        "smoothness-d100": fit(total_variation=smooth / 100),
        "channels-8": channels(8),
        "channels-32": channels(32),
        "noise-none": fit(plane_noise=0.0),
        "noise-x3": fit(plane_noise=3 * noise),
        "density-d2": replace(base, decoder=replace(base.decoder, density_scale=base.decoder.density_scale / 2)),
        # Each person with a decoder of their own, which nobody else's planes keep from becoming as sharp as it likes.
        "private-rescaled": fit(total_variation=smooth / 100),
        "private-one-size": fit(**one_size, **plain),
    }


def fit_shared(train: Path, validation: Path, config: Config, sizes: tuple[int, ...], out: Path) -> dict:
    """A decoder of the training people, and validation people under it."""
    fit_subjects(train, config, out / "shared")
    fit_subjects(validation, config, out / "fitted", decoder=out / "shared" / "decoder.safetensors")
    return evaluate(out / "fitted", validation, resolutions=sizes)


def fit_private(validation: Path, config: Config, sizes: tuple[int, ...], out: Path, people: int = 4) -> dict:
    """The first validation people, each with a decoder of its own; PSNR is averaged over them."""
    results = []
    for folder in find_captures(validation)[:people]:
        fitted = fit_subjects(folder, config, out / folder.name).folder
        results.append(evaluate(fitted, folder, resolutions=sizes))
    psnr = {str(r): {"psnr": float(np.mean([x["mean"][str(r)]["psnr"] for x in results]))} for r in sizes}
    return {"subjects": len(results), "views": sum(x["views"] for x in results), "mean": psnr}


def main(
    train: tyro.conf.Positional[Path],
    validation: tyro.conf.Positional[Path],
    out: Path,
    preset_name: str = "small",
    shared_steps: int = 2000,
    steps: int = 1500,
    only: tuple[str, ...] = (),
) -> None:
    """Run the settings.

    Args:
        train: folder of captures for the decoder.
        validation: folder of captures that are fitted under it and evaluated.
        out: folder of the results.
        preset_name: the preset that the settings vary.
        shared_steps, steps: of stage one and two (shorter than the preset's: the study compares).
        only: these settings alone.
    """
    base = preset(preset_name)
    base = replace(base, fit=replace(base.fit, shared_steps=shared_steps, steps=steps))
    for name, config in settings(base).items():
        if only and name not in only:
            continue
        if name.startswith("private"):
            result = fit_private(validation, config, base.fit.resolutions, out / name)
        else:
            result = fit_shared(train, validation, config, base.fit.resolutions, out / name)
        result.pop("per_subject", None)
        budget = {"shared_steps": shared_steps, "steps": steps}
        write_json({**provenance(), "setting": name, **budget, **result}, out / f"{name}.json")
        print(name, {size: round(m["psnr"], 2) for size, m in result["mean"].items()}, flush=True)


if __name__ == "__main__":
    tyro.cli(main)
