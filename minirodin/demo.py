"""`minirodin demo`: what the models in the box make of a text and of a portrait; or one person of a capture, fitted."""

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
from minirodin.page import person, write_files, write_page
from minirodin.pipeline import RodinPipeline
from minirodin.plots import contact_sheet
from minirodin.portraits import read_portrait

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
BOX = SAMPLES / "pretrained" / "small"
DECODER = BOX / "decoder.safetensors"  # of stage one
PROMPT, SEED = "a young woman with long red hair and round glasses", 3
PORTRAIT = SAMPLES / "portraits" / "1000003.webp"  # of nobody that the models know


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


def show_box(out: str | Path, size: int = 192) -> Path:
    """Text → avatar and portrait → avatar: the files of both in `out`, and one page, index.html.

    Args:
        size: of the views, in pixels.
    """
    if not BOX.is_dir():
        raise DataError(f"{BOX} does not exist: run the demo in a checkout of the project, or give --data FOLDER")
    out, people, start = Path(out), [], time.perf_counter()
    pipe = RodinPipeline.from_pretrained(BOX)
    portrait = torch.cat([read_portrait(PORTRAIT, size), torch.ones(1, size, size)]).permute(1, 2, 0)  # (S, S, 4)
    for name, title, asked, pictures in (
        ("text", f"“{PROMPT}”", {"prompt": PROMPT}, {}),
        ("portrait", f"the person of {PORTRAIT.name}", {"image": PORTRAIT}, {"the portrait": portrait}),
    ):
        began = time.perf_counter()
        avatar = pipe(**asked, seed=SEED)
        seconds = time.perf_counter() - began
        print(f"{title}: made in {seconds:.0f} s; drawing")
        views, files, large = write_files(avatar, out / name, size, 24)
        facts = {"seed": SEED, "seconds": f"{seconds:.1f}"}
        files = {what: f"{name}/{file}" for what, file in files.items()}
        people.append(person(views, title, facts, files, pictures | large))
    page = write_page(out / "index.html", "minirodin", *people)
    print(f"{time.perf_counter() - start:.0f} s in all; open {page}")
    return page


def fit_one(out: str | Path, data: str | Path, config: Config | None = None) -> Path:
    """Fit the first capture of `data`; leave avatar.safetensors, contact_sheet.png and turntable.mp4 in `out`.

    An interrupted run goes on where it stopped; a finished one is only drawn again.
    """
    out, config = Path(out), config or demo_config()
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
