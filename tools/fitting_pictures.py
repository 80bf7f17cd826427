"""Pictures and small files of a fit: truth beside renders at every plane size, and avatars at the base resolution.

    python tools/fitting_pictures.py runs/fitted runs/validation --out results
"""

from pathlib import Path

import torch
import tyro

from minirodin.cameras import find_captures, load_capture
from minirodin.pipeline import Avatar
from minirodin.plots import contact_sheet
from minirodin.shards import FittedPlanes
from minirodin.triplane import resize_planes


def main(
    avatars: tyro.conf.Positional[Path], data: tyro.conf.Positional[Path], out: Path, subjects: int = 8, whole: int = 1
) -> None:
    """Draw the first `subjects` and save them as avatar files, the first `whole` of them with all their resolution."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fitted = FittedPlanes(avatars)
    folders = [f for f in find_captures(data) if f.name in fitted][:subjects]
    sheet = []
    for i, folder in enumerate(folders):
        capture = load_capture(folder)
        avatar = Avatar.load(avatars / folder.name)
        config = avatar.config
        small = resize_planes(avatar.planes, config.triplane.base_resolution)
        Avatar(avatar.planes if i < whole else small, avatar.decoder, config).save(out / f"{folder.name}.safetensors")
        avatar = avatar.to(device)
        for view in (0, capture.held_out()[1][i % len(capture.held_out()[1])]):
            truth = torch.from_numpy(capture.images[view]).float() / 255
            sheet += [truth, *(avatar.views(capture.cameras[[view]], r)[0].cpu() for r in config.fit.resolutions)]
    contact_sheet(sheet, 2 * (1 + len(config.fit.resolutions)), out / "fitting.png")


if __name__ == "__main__":
    tyro.cli(main)
