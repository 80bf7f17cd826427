"""The commands of the refiner (E20)."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from minirodin.config import Config
from minirodin.errors import ConfigError, RenderError


def train_refiner(
    data: Path,
    config: Config,
    out: Path,
    validation: Path | None,
    captures: Path | None,
    upsampled: Path | None,
    start: Path | None,
) -> str:
    """`train refiner`, of which `cli_models.train` reads the flags."""
    from minirodin.refiner_training import train_refiner

    if captures is None:
        raise ConfigError("train refiner needs the photographs of the people in data, large ones: give --captures")
    train_refiner(data, config, out, captures, validation, upsampled=upsampled, start=start)
    return f"use it with: minirodin refine PICTURE_OR_AVATAR --model {out} --out large.png"


def refine(
    what: Positional[Path],
    model: Path,
    out: Path,
    scale: Literal[2, 4] = 4,
    azimuth: float = 0.0,
    elevation: float = 0.0,
    frames: int = 48,
    tile: int = 256,
) -> None:
    """Add the detail that volume rendering misses to a picture or an avatar's views: 256² become 1024² (E20).

    Args:
        what: a picture file of any kind and size, an avatar file, or FOLDER/NAME for a subject of a fitted folder.
        model: folder that `minirodin train refiner` wrote.
        out: picture to write; of an avatar also an .mp4 or .gif, for a turn around it.
        scale: how many times the side grows.
        azimuth: of an avatar's view, in degrees; 0 is the front.
        elevation: degrees above the horizon.
        frames: of a turn.
        tile: pixels a side of what is refined at a time: fewer need less memory.
    """
    from minirodin.refiner import Refiner
    from minirodin.refiner import refine as run

    if out.resolve() == what.resolve():
        raise ConfigError(f"{out} is what is to be refined: choose another name")
    refiner = Refiner.load(model)
    if what.suffix == ".safetensors" or (what.parent / "decoder.safetensors").is_file():
        from minirodin.avatar import Avatar

        avatar = Avatar.load(what).to(refiner.device)
        if out.suffix.lower() in (".mp4", ".gif"):
            size = refiner.config.view
            avatar.turntable(out, frames, size, elevation, True, lambda views: run(refiner, views, scale, tile))
        else:
            view = avatar.render(azimuth, elevation, refiner.config.view)
            save_picture(run(refiner, view[None], scale, tile)[0], out)
    else:
        import numpy as np
        import torch

        from minirodin.portraits import open_picture

        pixels = torch.from_numpy(np.array(open_picture(what).convert("RGBA")))
        save_picture(run(refiner, pixels[None], scale, tile)[0], out)
    print(out)


def save_picture(image, out: Path) -> None:
    """Write RGBA (H, W, 4), float or bytes, in the format that `out` ends in; on white where that has no alpha."""
    from PIL import Image

    from minirodin.plots import to_picture

    picture = to_picture(image)
    if picture.getextrema()[3][0] == 255:
        picture = picture.convert("RGB")
    elif out.suffix.lower() in (".jpg", ".jpeg", ".bmp"):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except ValueError:
        raise RenderError(f"{out}: not a picture format that is known: end the name with .png") from None
