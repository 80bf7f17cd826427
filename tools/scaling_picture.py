"""What tools/measure_scaling.sh left, as numbers and as a picture: rates on so many GPUs, and whether they learn alike.

python tools/scaling_picture.py --runs RUNS --counts 1 2 4 --out OUT
"""

import csv
import json
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import tyro

from minirodin import base, upsampler
from minirodin.evaluation import provenance, write_json
from minirodin.plots import PALETTE, STYLE
from minirodin.shards import FittedPlanes, read_tensors

KINDS = {"base": base.KIND, "upsampler": upsampler.KIND}


def training(runs: Path, kind: str, counts: tuple[int, ...]) -> dict:
    """Samples a second, and the loss over the last half with the spread of its rows, for each number of GPUs."""
    found = {}
    for n in counts:
        folder = runs / f"{kind}-{n}"
        rows = [
            {k: float(v) for k, v in row.items() if v}
            for row in csv.DictReader((folder / "log.csv").read_text().splitlines())
        ]
        config = json.loads(read_tensors(folder / "model.safetensors", KINDS[kind])[1]["config"])
        batch, known = config[kind]["train"]["batch"], rows[len(rows) // 4 :]  # what is compiled comes first
        rate = (known[-1]["step"] - known[0]["step"]) / (known[-1]["seconds"] - known[0]["seconds"])
        late = [row["loss"] for row in rows[len(rows) // 2 :]]
        found[str(n)] = {"batch": batch, "samples_per_second": rate * batch, "loss": mean(late), "spread": stdev(late)}
        found[str(n)]["losses"] = [[row["step"], row["loss"]] for row in rows]
    return found


def main(runs: Path, out: Path, counts: tuple[int, ...] = (1, 2, 4)) -> None:
    """Write scaling.json and scaling.png: rates, efficiency against the first of `counts`, and loss curves."""
    fitted = {n: runs / f"fitted-{n}" for n in counts}
    fit = {}
    for n, folder in fitted.items():
        seconds = int((folder / "milliseconds").read_text()) / 1000
        fit[str(n)] = {"samples_per_second": len(FittedPlanes(folder)) / seconds, "seconds": seconds}
    trained = (kind for kind in KINDS if (runs / f"{kind}-{counts[0]}").is_dir())
    stages = {"fit": fit} | {kind: training(runs, kind, counts) for kind in trained}
    for rows in stages.values():
        first = rows[str(counts[0])]["samples_per_second"] / counts[0]
        for n in counts:
            rows[str(n)]["efficiency"] = rows[str(n)]["samples_per_second"] / n / first
    out.mkdir(parents=True, exist_ok=True)
    write_json({**provenance(), "gpus": list(counts), "stages": stages}, out / "scaling.json")

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(stages), figsize=(3.7 * len(stages), 3.4), constrained_layout=True)
        for colour, (name, rows) in zip(PALETTE, stages.items(), strict=False):
            speed = [rows[str(n)]["efficiency"] * n / counts[0] for n in counts]
            axes[0].plot(counts, speed, color=colour, marker="o", label=name)
        axes[0].plot(counts, [n / counts[0] for n in counts], color="#cccccc", zorder=0, label="as many times as GPUs")
        axes[0].set(xlabel="GPUs", ylabel="times as fast as on the fewest", xticks=counts)
        axes[0].legend()
        for axis, kind in zip(axes[1:], (k for k in KINDS if k in stages), strict=False):
            for colour, n in zip(PALETTE, counts, strict=False):
                axis.plot(*zip(*stages[kind][str(n)]["losses"], strict=True), color=colour, label=str(n))
            axis.set(xlabel="steps", ylabel="loss", title=f"{kind}, one global batch")
            axis.legend(title="GPUs")
        figure.savefig(out / "scaling.png")


if __name__ == "__main__":
    tyro.cli(main)
