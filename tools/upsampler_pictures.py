"""What the upsampler adds (E17–E19) as pictures: to fitted people taken down to 64², and to those of the base model.

python tools/upsampler_pictures.py --runs RUNS --captures CAPTURES --variants plain perceptual spoiled --out OUT
"""

from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from minirodin.avatar import Avatar, to_rgb
from minirodin.cameras import load_capture
from minirodin.plots import contact_sheet, show_images
from minirodin.shards import FittedPlanes

SIZE, CROP = 384, 128  # pixels of a view, and of what is cut out of it
EYES, HAIR = (128, 118), (128, 40)  # first column and row of the cuts


def main(runs: Path, captures: Path, variants: tuple[str, ...], out: Path, people: int = 8) -> None:
    """Sheets of the first people: whole, cut out, and turned; and of generated people, before and after."""
    out.mkdir(parents=True, exist_ok=True)
    fitted, sides = runs / "fitted" / "validation", ("interpolated", *variants)
    names = FittedPlanes(fitted).names[:people]

    def look(folder: Path, name: str, azimuth: float = 0.0) -> torch.Tensor:
        return to_rgb(Avatar.load(folder / name).render(azimuth, 5, SIZE)).cpu()

    def photograph(name: str) -> torch.Tensor:
        picture = Image.fromarray(load_capture(captures / name).images[0])
        rgba = torch.from_numpy(np.asarray(picture.resize((SIZE, SIZE), Image.LANCZOS)).copy()).float() / 255
        return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]

    def cut(picture: torch.Tensor, corner: tuple[int, int]) -> torch.Tensor:
        return picture[corner[1] : corner[1] + CROP, corner[0] : corner[0] + CROP]

    def row(name: str) -> list[torch.Tensor]:
        made = [look(runs / "clean" / side, name) for side in sides]
        return [*made, look(fitted, name), photograph(name)]

    titles = [*sides, "fitted at 256²", "photograph"]
    rows = [row(name) for name in names]
    show_images([p for r in rows for p in r], titles * len(rows), columns=len(titles), width=13).savefig(
        out / "upsampler_clean.png"
    )
    cuts = [cut(p, corner) for r in rows for corner in (EYES, HAIR) for p in r]
    show_images(cuts, titles * (2 * len(rows)), columns=len(titles), width=13).savefig(out / "upsampler_cuts.png")

    generated = FittedPlanes(runs / "generated" / "interpolated").names[:people]
    made = [
        look(runs / "generated" / side, name, azimuth)
        for name in generated
        for side in sides
        for azimuth in (0.0, 50.0)
    ]
    contact_sheet(made, 2 * len(sides), out / "upsampler_generated.png")
    turned = [look(runs / "clean" / variants[-1], names[0], azimuth) for azimuth in range(-60, 61, 20)]
    contact_sheet(turned, len(turned), out / "upsampler_turned.png")


if __name__ == "__main__":
    tyro.cli(main)
