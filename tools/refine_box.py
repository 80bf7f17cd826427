"""Refiners on the eight people in the box, whom none has learned from (E20): their planes of 64² through the upsampler.

    python tools/refine_box.py data_samples/pretrained/small/refiner runs/refiner --out outputs/refine_box.json

Three photographs of 1024² each, drawn first, are what views of 256² are refined to; `clean`: enlarged only. Half a
minute a person on two CPU cores; a view of each beside its photograph lies next to the numbers.
"""

from pathlib import Path

import torch
import tyro
from tyro.conf import Positional

from minirodin.avatar import Avatar
from minirodin.avatars.dataset import make_people
from minirodin.cameras import load_capture
from minirodin.evaluation import provenance, write_json
from minirodin.metrics import image_metrics
from minirodin.perceptual import perceptual_distance
from minirodin.plots import contact_sheet
from minirodin.refiner import LARGE, Refiner, refine
from minirodin.refiner_evaluation import on_white
from minirodin.upsampler import Upsampler

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
FIRST, PEOPLE, PHOTOGRAPHS, SIZE = 1_000_000, 8, 3, 1024


def main(refiners: Positional[list[Path]], out: Path, large: Path = Path("outputs/refine_box"), people: int = PEOPLE):
    """Write `out`, a JSON with PSNR, SSIM and the perceptual distance by each, and a picture beside it."""
    make_people(large, people, PHOTOGRAPHS, SIZE, FIRST)
    upsampler = Upsampler.load(SAMPLES / "pretrained/small/upsampler")
    device, eyes = upsampler.device, perceptual_distance(str(upsampler.device))
    by = {"clean": None} | {str(folder): Refiner.load(folder, device) for folder in refiners}
    found, pictures = {name: [] for name in by}, []
    for i in range(people):
        name = str(FIRST + i)
        capture, avatar = load_capture(large / name), Avatar.load(SAMPLES / f"avatars/{name}.safetensors").to(device)
        truth = on_white(torch.from_numpy(capture.images).to(device).float() / 255)
        views = upsampler.avatar(upsampler.reduced(avatar)).views(capture.cameras.resized(SIZE // LARGE, SIZE // LARGE))
        for kind, refiner in by.items():
            refined = on_white(refine(refiner, views))
            found[kind].append({key: float(value.mean()) for key, value in image_metrics(refined, truth, eyes).items()})
            pictures.append(refined[0].permute(1, 2, 0))
        pictures.append(truth[0].permute(1, 2, 0))
    mean = {kind: {key: sum(one[key] for one in rows) / people for key in rows[0]} for kind, rows in found.items()}
    write_json({**provenance(), "people": people, "perceptual": eyes.name, "mean": mean}, out)
    contact_sheet(pictures, len(by) + 1, out.with_suffix(".png"))
    print(out)


if __name__ == "__main__":
    tyro.cli(main)
