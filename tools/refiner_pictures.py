"""What the refiner adds (E20) as pictures: cuts of fitted and of generated people, and a turn before and after.

python tools/refiner_pictures.py --model MODEL --people FITTED --captures CAPTURES --out OUT [--generated PEOPLE]
"""

from pathlib import Path

import torch
import tyro

from minirodin.avatar import Avatar, to_rgb
from minirodin.cameras import orbit_cameras
from minirodin.plots import contact_sheet, show_images
from minirodin.refiner import LARGE, Refiner, refine
from minirodin.refiner_data import Photographs
from minirodin.shards import FittedPlanes

CUTS = {"hair": (0.5, 0.22), "eyes": (0.5, 0.45), "beard": (0.5, 0.62)}  # middles across and down, in parts of a view
SIDE = 0.25  # of a cut, likewise


def main(model: Path, people: Path, captures: Path, out: Path, generated: Path | None = None, count: int = 6) -> None:
    """Sheets of cuts of the first people's fronts, and strips of a turn, enlarged above and refined below."""
    out.mkdir(parents=True, exist_ok=True)
    refiner = Refiner.load(model)
    view, names = refiner.config.view, FittedPlanes(people).names[:count]
    photographs = Photographs.load(captures, names, view)
    titles = ["enlarged", "refined", "rendered", "photograph"]

    def cut(picture: torch.Tensor, where: tuple[float, float]) -> torch.Tensor:
        n = picture.shape[0]
        left, top = (round(n * (middle - SIDE / 2)) for middle in where)
        return picture[top : top + round(n * SIDE), left : left + round(n * SIDE)].cpu()

    def ways(avatar: Avatar, cameras) -> list[torch.Tensor]:
        """One view, enlarged, refined, and rendered at full size."""
        small = avatar.views(cameras)
        large = avatar.views(cameras.resized(LARGE * view, LARGE * view))
        return [to_rgb(images[0]) for images in (refine(None, small), refine(refiner, small), large)]

    rows = []
    for i, name in enumerate(names):
        avatar = Avatar.load(people / name).to(refiner.device)
        whole = [*ways(avatar, photographs.cameras[i][0]), to_rgb(photographs.pictures[i, 0].float() / 255)]
        rows += [[cut(picture, where) for picture in whole] for where in CUTS.values()]
    sheet = show_images([p for row in rows for p in row], titles * len(rows), columns=len(titles), width=13)
    sheet.savefig(out / "refiner_cuts.png")

    front = orbit_cameras(0, 5, view)
    if generated:
        rows = []
        for name in FittedPlanes(generated).names[:count]:
            whole = ways(Avatar.load(generated / name).to(refiner.device), front)
            rows += [[cut(picture, where) for picture in whole] for where in CUTS.values()]
        sheet = show_images([p for row in rows for p in row], titles[:3] * len(rows), columns=3, width=10)
        sheet.savefig(out / "refiner_generated.png")

    avatar, strips = Avatar.load(people / names[0]).to(refiner.device), ([], [])
    for azimuth in range(-20, 21, 5):
        small = avatar.views(orbit_cameras(azimuth, 8, view))
        for strip, network in zip(strips, (None, refiner), strict=True):
            strip.append(cut(to_rgb(refine(network, small)[0]), CUTS["eyes"]))
    contact_sheet([picture for strip in strips for picture in strip], len(strips[0]), out / "refiner_turn.png")
    for name, network in (("before", None), ("after", refiner)):
        turn = out / f"refiner_turn-{name}.mp4"
        avatar.turntable(turn, size=view, finish=lambda views, network=network: refine(network, views))


if __name__ == "__main__":
    tyro.cli(main)
