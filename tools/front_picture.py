"""The README's first picture: the portraits of `data_samples/`, two rows on white.

    python tools/front_picture.py --out results/front.jpg
"""

from pathlib import Path

import tyro
from PIL import Image

PORTRAITS = Path(__file__).resolve().parent.parent / "data_samples" / "portraits"


def main(out: Path = Path("results/front.jpg"), size: int = 256, columns: int = 6) -> None:
    """Paste the portraits side by side, each `size` pixels wide."""
    portraits = [Image.open(path).convert("RGBA") for path in sorted(PORTRAITS.glob("*.webp"))]
    sheet = Image.new("RGBA", (columns * size, len(portraits) // columns * size), "white")
    for i, portrait in enumerate(portraits):
        sheet.alpha_composite(portrait.resize((size, size), Image.LANCZOS), (i % columns * size, i // columns * size))
    sheet.convert("RGB").save(out, quality=90)
    print(out)


if __name__ == "__main__":
    tyro.cli(main)
