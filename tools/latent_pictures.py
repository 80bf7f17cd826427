"""What latents make possible (E13–E16) as pictures: avatars of portraits and prompts, edits, the sweep of guidance.

    python tools/latent_pictures.py sheets PIPELINE PORTRAITS --out OUT
    python tools/latent_pictures.py figures --results results/latent.json --out OUT
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from tyro.conf import Positional

from minirodin.avatar import Avatar, to_rgb
from minirodin.judgement import EDITS
from minirodin.pipeline import RodinPipeline
from minirodin.plots import PALETTE, STYLE, contact_sheet, show_images
from minirodin.portraits import Portraits, plain

PROMPTS = (
    "a young woman with long red hair and round glasses",
    "an old man with a white beard",
    "a bald man with a goatee and sunglasses",
    "a woman with an afro wearing a yellow shirt",
    "a man wearing a blue baseball cap and a green hoodie",
    "an old woman with short grey hair and square glasses",
    "a smiling woman with pink hair and hoop earrings",
    "a man with a moustache in a striped t-shirt",
)
SHOWN = {  # of the edits that are judged
    ("hair_color", "red"): "red hair", ("hair_style", "bald"): "bald", ("facial_hair", "full"): "full beard",
    ("glasses", "sun"): "sunglasses", ("hat", "cap"): "baseball cap", ("age", "old"): "old",
}  # fmt: skip
SIZE = 160


def sheets(
    pipeline: Positional[Path], portraits: Positional[Path], out: Path, people: int = 8, steps: int = 50
) -> None:
    """Avatars of the first portraits, of `PROMPTS`, edits of some, and the way from one person to another."""
    out.mkdir(parents=True, exist_ok=True)
    pipe, known = RodinPipeline.from_pretrained(pipeline), Portraits.load(portraits)
    settings = {"num_inference_steps": steps}

    def looks(avatar: Avatar, *azimuths: float) -> list:
        return [to_rgb(avatar.render(azimuth, 5, SIZE)).cpu() for azimuth in azimuths]

    seen = plain(known.pictures[:people, 0], SIZE)
    latents = pipe.encoder.images(seen).cpu()
    made = [pipe(latent=z, seed=i, **settings) for i, z in enumerate(latents)]
    rows = [[p.permute(1, 2, 0).cpu(), *looks(a, 0, -35, 60, 180)] for p, a in zip(seen, made, strict=True)]
    contact_sheet([picture for row in rows for picture in row], 10, out / "latent_portraits.png")

    prompted = [looks(pipe(prompt, seed=i, **settings), 0, 40) for i, prompt in enumerate(PROMPTS)]
    pairs = [torch.cat(pair, dim=1) for pair in prompted]
    show_images(pairs, PROMPTS, columns=2, width=9).savefig(out / "latent_prompts.png")

    shown, titles = [], []
    edits = [(target, source, SHOWN[a, name]) for a, name, target, source in EDITS if (a, name) in SHOWN]
    for avatar in made[: min(4, people)]:
        shown += looks(avatar, 20)
        titles += ["avatar of a portrait"]
        for target, source, title in edits:
            shown += looks(pipe.edit(avatar, target, source, **settings), 20)
            titles += [title]
    show_images(shown, titles, columns=1 + len(edits), width=11).savefig(out / "latent_edits.png")

    ways = [pipe.interpolate(made[i], made[i + 1], 7, **settings) for i in range(0, min(4, people - 1), 2)]
    contact_sheet([looks(a, 20)[0] for way in ways for a in way], 7, out / "latent_interpolation.png")


def figures(out: Path, results: Path = Path("results/latent.json")) -> None:
    """The identity of avatars made of portraits against strangers', and what guidance buys and costs."""
    out.mkdir(parents=True, exist_ok=True)
    portraits = json.loads(results.read_text(encoding="utf-8"))["portraits"]
    scales = dict(sorted((float(scale), row) for scale, row in portraits["scales"].items()))
    chosen = min(scales, key=lambda scale: abs(scale - 1.5))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11, 2.8))
        for name, label, colour in (("identity", "its own avatar", 0), ("strangers", "another's", 1)):
            axes[0].hist(scales[chosen][name], np.linspace(-0.2, 1, 49), color=PALETTE[colour], alpha=0.7, label=label)
        axes[0].set(title=f"portraits at guidance {chosen:g}", xlabel="cosine between latents", ylabel="people")
        axes[0].legend()
        rates = {"attributes agree": [row["agreement"]["mean"] for row in scales.values()]}
        rates["recognised"] = [row["recognised"] for row in scales.values()]
        for i, (name, values) in enumerate(rates.items()):
            axes[1].plot(list(scales), values, marker="o", ms=4, color=PALETTE[i], label=name)
        axes[1].axhline(portraits["real"]["mean"], color=PALETTE[4], lw=1, label="of the portraits themselves")
        axes[1].set(title="what guidance buys", xlabel="guidance scale", ylabel="share", ylim=(0, 1))
        axes[1].legend()
        axes[2].plot(list(scales), [row["variety"] for row in scales.values()], marker="o", ms=4, color=PALETTE[0])
        axes[2].set(title="what it costs", xlabel="guidance scale", ylabel="distance of two avatars", ylim=(0, None))
        figure.savefig(out / "latent_guidance.png")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"sheets": sheets, "figures": figures})
