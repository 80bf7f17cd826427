"""`minirodin demo`: fit one person of `data_samples/` on whatever machine this is, and show them from all sides."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from minirodin.avatar import Avatar, to_rgb
from minirodin.cameras import find_captures, load_capture
from minirodin.config import Config, preset
from minirodin.errors import DataError
from minirodin.fitting import fit_subjects
from minirodin.metrics import psnr
from minirodin.plots import contact_sheet

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
PEOPLE = SAMPLES / "people"
DECODER = SAMPLES / "pretrained" / "small" / "decoder.safetensors"  # of stage one, preset `small`


def demo_config() -> Config:
    """Two minutes on two CPU cores, under `small`'s decoder: planes of 128² instead of 256², and few steps."""
    small = preset("small")
    return replace(
        small,
        name="demo",
        triplane=replace(small.triplane, resolution=128),
        render=replace(small.render, bins=96, samples=16, view_samples=32),
        fit=replace(
            small.fit,
            **{"steps": 850, "group": 1, "rays": 1536, "grid_every": 25, "checkpoint_every": 100},
            **{"resolutions": (128, 64), "resolution_weights": (0.6, 0.4)},
            # A third of the steps, and nothing is diffused afterwards: learn faster, smooth less.
            **{"detail_lr": 8e-3, "total_variation": 0.3, "plane_noise": 0.0},
        ),
    )


def run_demo(out: str | Path, data: str | Path = PEOPLE, config: Config | None = None) -> Path:
    """Fit the first capture of `data`; leave avatar.safetensors, contact_sheet.png and turntable.mp4 in `out`.

    An interrupted run goes on where it stopped; a finished one is only drawn again.
    """
    out, config = Path(out), config or demo_config()
    if not Path(data).is_dir():
        raise DataError(f"{data} does not exist: run the demo in a checkout of the project, or give --data FOLDER")
    capture = load_capture(find_captures(data)[0])
    train, held_out = capture.held_out()
    print(f"fitting {capture.name}: {len(train)} views of {capture.cameras.width}×{capture.cameras.height} pixels")
    if capture.caption:
        print(f'  "{capture.caption}"')

    start = time.perf_counter()
    fit_subjects([capture], config, out / "fitted", decoder=DECODER)
    avatar = Avatar.load(out / "fitted" / capture.name)
    files = [avatar.save(out / "avatar.safetensors"), out / "contact_sheet.png", out / "turntable.mp4"]
    print(f"fitted in {time.perf_counter() - start:.0f} s; drawing")

    views = [0, *held_out][:6]
    truth = torch.from_numpy(capture.images[views]).float() / 255  # (V, H, W, 4)
    drawn = {size: avatar.views(capture.cameras[views], size).cpu() for size in config.fit.resolutions}
    contact_sheet([*truth, *(image for images in drawn.values() for image in images)], len(views), files[1])
    avatar.turntable(files[2], frames=24, size=min(256, capture.cameras.width), show_progress=True)

    quality = psnr(to_rgb(drawn[config.fit.resolutions[0]][1:]), to_rgb(truth[1:])).mean()
    sizes = ", then ".join(f"planes at {size}²" for size in drawn)
    print(f"{float(quality):.1f} dB PSNR on views that were not fitted; the sheet shows photographs, {sizes}")
    print("\n".join(f"  {file}" for file in files))
    return out
