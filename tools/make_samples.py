"""Make `data_samples/`: eight people of 24 views at 256², and twelve portraits of validation seeds at 512²."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from minirodin.avatars.dataset import make_people, portrait

ROOT = Path(__file__).parents[1] / "data_samples"
PEOPLE = (3, 101, 103, 109, 114, 127, 148, 154)  # train seeds, picked by eye for variety
PORTRAITS = range(1_000_000, 1_000_012)


def save(rgba: np.ndarray, path: Path) -> None:
    """As WebP with lossless alpha, 44 dB from the picture in a fifth of PNG's bytes; what cannot be seen is black."""
    rgba = np.where(rgba[..., 3:] == 0, 0, rgba)
    Image.fromarray(rgba).save(path.with_suffix(".webp"), quality=90, method=6, exact=True)


def pack(folder: Path) -> Path:
    """The pictures of a capture so."""
    for path in folder.glob("*.png"):
        save(np.array(Image.open(path).convert("RGBA")), path)
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
        save(portrait(seed, 512), out / "portraits" / str(seed))
        print(seed)


if __name__ == "__main__":
    main()
