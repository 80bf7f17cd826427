"""The trade of fitting_study.json as a picture: fidelity of planes at two sizes against how easily they are diffused.

    python tools/study_picture.py --out results/fitting_study.png
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import tyro

from minirodin.plots import PALETTE, STYLE

RESULTS = Path(__file__).resolve().parent.parent / "results"


def main(out: Path = RESULTS / "fitting_study.png", results: Path = RESULTS / "fitting_study.json") -> None:
    """One point a setting and plane size, the two sizes of a setting joined by a line."""
    rows = json.loads(results.read_text(encoding="utf-8"))["settings"]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 4))
        for row in rows:
            x, (high, low) = row["wiener_eps_loss"], (row["mean"][size]["psnr"] for size in ("256", "64"))
            axis.plot([x, x], [low, high], color="#cccccc", zorder=1)
            axis.scatter(x, high, color=PALETTE[0], zorder=2)
            axis.scatter(x, low, color=PALETTE[1], zorder=2)
            right = x < 0.36
            axis.annotate(
                row["setting"], (x, low), (5 if right else -5, -11), textcoords="offset points",
                fontsize=8, ha="left" if right else "right",
            )  # fmt: skip
        axis.scatter([], [], color=PALETTE[0], label="planes at 256²")
        axis.scatter([], [], color=PALETTE[1], label="the same at 64²")
        axis.set(xlabel="ε-loss of the linear denoiser (lower: easier to diffuse)", ylabel="held-out PSNR (dB)")
        axis.margins(x=0.08, y=0.12)
        axis.legend(loc="lower left")
        figure.savefig(out)
    print(out)


if __name__ == "__main__":
    tyro.cli(main)
