"""Make `data_samples/`: eight people of 24 views at 256², and twelve portraits of validation seeds at 512²."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from minirodin.avatars.dataset import make_people, portrait

ROOT = Path(__file__).parents[1] / "data_samples"
PEOPLE = (3, 101, 103, 109, 114, 127, 148, 154)  # train seeds, picked by eye for variety
PORTRAITS = range(1_000_000, 1_000_012)


def pack(folder: Path) -> Path:
    """The pictures of a capture as lossless WebP, which takes two thirds of PNG; what cannot be seen is black."""
    for path in folder.glob("*.png"):
        rgba = np.array(Image.open(path).convert("RGBA"))
        rgba[rgba[..., 3] == 0] = 0
        Image.fromarray(rgba).save(path.with_suffix(".webp"), lossless=True, quality=100, method=6, exact=True)
        path.unlink()
    meta = folder / "transforms.json"
    meta.write_text(meta.read_text(encoding="utf-8").replace('.png"', '.webp"'), encoding="utf-8")
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT)
    out = parser.parse_args().out
    for seed in PEOPLE:
        (folder,) = make_people(out / "people", count=1, views=24, size=256, seed=seed)
        print(pack(folder))
    (out / "portraits").mkdir(parents=True, exist_ok=True)
    for seed in PORTRAITS:
        path = out / "portraits" / f"{seed}.png"
        Image.fromarray(portrait(seed, 512)).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
