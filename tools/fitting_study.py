"""The trade between fidelity and diffusability: the same fit under several settings of the levers (E3–E5).

For each setting: learn a decoder on the training people, fit the validation people under it, evaluate on held-out views.

    minirodin avatars --count 128 --views 32 --seed 0 --out runs/study/train
    minirodin avatars --count 32 --views 32 --seed 1000000 --out runs/study/validation
    python tools/fitting_study.py runs/study/train runs/study/validation --out runs/study/fits

Several GPUs share the settings: start one process a GPU with --rank and --world-size. Each setting leaves OUT/NAME.json.
"""

from dataclasses import replace
from pathlib import Path

import torch
import tyro

from minirodin.config import Config, preset
from minirodin.evaluation import evaluate, write_json
from minirodin.fitting import fit_subjects


def settings(base: Config) -> dict[str, Config]:
    """Every setting by name; each differs from `chosen` in what its name says."""

    def fit(**changes) -> Config:
        return replace(base, fit=replace(base.fit, **changes))

    def channels(count: int) -> Config:
        return replace(base, triplane=replace(base.triplane, channels=count))

    tv, noise = base.fit.total_variation, base.fit.plane_noise
    return {
        "chosen": base,
        "one size only": fit(resolutions=(base.triplane.resolution,), resolution_weights=(1.0,)),
        "no plane noise": fit(plane_noise=0.0),
        "plane noise ×3": fit(plane_noise=3 * noise),
        "smoothness ÷10": fit(total_variation=tv / 10),
        "smoothness ×10": fit(total_variation=tv * 10),
        "8 channels": channels(8),
        "32 channels": channels(32),
    }


def main(
    train: tyro.conf.Positional[Path],
    validation: tyro.conf.Positional[Path],
    out: Path,
    preset_name: str = "small",
    shared_steps: int = 4000,
    steps: int = 2000,
    only: tuple[str, ...] = (),
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Run the settings of this rank.

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
    chosen = [(n, c) for n, c in settings(base).items() if not only or n in only]
    for name, config in chosen[rank::world_size]:
        folder = out / name.replace(" ", "_").replace("×", "x").replace("÷", "d")
        torch.cuda.empty_cache()
        fit_subjects(train, config, folder / "shared")
        fit_subjects(validation, config, folder / "fitted", decoder=folder / "shared" / "decoder.safetensors")
        result = evaluate(folder / "fitted", validation, resolutions=(256, 128, 64))
        result.pop("per_subject")
        write_json({"setting": name, **result}, folder.with_suffix(".json"))
        print(name, {k: round(v["psnr"], 2) for k, v in result["mean"].items()}, result["spectral_share"], flush=True)


if __name__ == "__main__":
    tyro.cli(main)
