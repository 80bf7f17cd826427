"""The README's first picture: avatars of texts, and of portraits, as the pipeline in the box makes them.

python tools/gallery_picture.py        # writes results/gallery.jpg
"""

from pathlib import Path

import torch
import tyro
from latent_pictures import PROMPTS

from minirodin.avatar import Avatar, to_rgb
from minirodin.pipeline import RodinPipeline
from minirodin.plots import show_images
from minirodin.portraits import read_portrait

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
PORTRAITS = ("1000003", "1000005", "1000007", "1000000")
SIZE = 512  # twice what is drawn: refined


def main(pipeline: Path = SAMPLES / "pretrained" / "small", out: Path = Path("results/gallery.jpg")) -> None:
    """Each text's avatar from the front and from a side; portraits beside theirs."""
    pipe = RodinPipeline.from_pretrained(pipeline)

    def look(avatar: Avatar, azimuth: float) -> torch.Tensor:
        return to_rgb(avatar.render(azimuth, 5, SIZE)).cpu()

    made = [pipe(prompt, seed=i) for i, prompt in enumerate(PROMPTS)]
    pairs = [torch.cat([look(avatar, 0), look(avatar, 40)], dim=1) for avatar in made]
    for name in PORTRAITS:
        file = SAMPLES / "portraits" / f"{name}.webp"
        portrait = read_portrait(file, SIZE).permute(1, 2, 0)  # (S, S, 3)
        pairs.append(torch.cat([portrait, look(pipe(image=file, seed=0), 20)], dim=1))
    titles = [*PROMPTS, *["a portrait, and the avatar of it"] * len(PORTRAITS)]
    show_images(pairs, titles, columns=4, width=16).savefig(out, pil_kwargs={"quality": 82})
    print(out)


if __name__ == "__main__":
    tyro.cli(main)
