"""What a reproduction measured: tables in report.json, and with its pictures one page, report.html."""

import dataclasses
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minirodin.config import Config
from minirodin.evaluation import provenance, write_json
from minirodin.page import HEAD, picture_data, turning
from minirodin.recipes import Plan, Steps

BODY = """\
<style>
body {{ max-width: 60rem }}
h2 {{ font-size: 1.1rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem }}
table {{ border-collapse: collapse }}
td, th {{ padding: .1rem 1.5rem .1rem 0; text-align: left; font-weight: normal; vertical-align: top }}
td:last-child, th {{ color: var(--faint) }}
figure {{ vertical-align: top; max-width: 100% }}
figure img {{ width: auto }}
figcaption {{ max-width: 30rem }}
</style>
<main>
{turn}
<section>
<h1>{title}</h1>
<dl>
{facts}
</dl>
</section>
</main>
{sections}
</html>
"""
SECTION = """\
<h2>{title}</h2>
<table>
<tr><th>measure</th><th>value</th><th>beside it</th></tr>
{rows}
</table>
{figures}"""
FIGURE = '<figure><img src="{}" alt=""><figcaption>{}</figcaption></figure>'
Row = tuple[str, str, str]  # measure, value, what stands beside it


def write_report(out: Path, config: Config, plan: Plan, results: Mapping[str, dict]) -> Path:
    """`out/report.json`, and `out/report.html`, which needs no network and no other file.

    Args:
        out: folder of a reproduction, with all its pictures.
        results: what each stage left, by its name.

    Returns:
        The page.
    """
    steps = {field.name: getattr(config, field.name).train.steps for field in dataclasses.fields(Steps)}
    seconds = {name: found["seconds"] for name, found in results.items()}
    tables = rows_of(results)
    settings = {"preset": config.name, "plan": dataclasses.asdict(plan), "steps": steps}
    found = {"seconds": seconds, "tables": tables, "results": results}
    write_json({**provenance(), **settings, **found}, out / "report.json")

    first = results["portraits"]
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    facts = {
        "people": f"{results['people']['people']}, and {first['people']} portrayed from the front only",
        "steps": ", ".join(f"{name} {count}" for name, count in steps.items()),
        "time": f"{sum(seconds.values()) / 60:.1f} min: {spent}",
        "begun, commit": f"{first['date']}, {first['commit']}",
        "device": first["device"],
    }
    pictures, parts = pictures_of(out, steps, results["gallery"]), []
    for title, rows in tables.items():
        cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
        lines = "\n".join(f"<tr>{row}</tr>" for row in cells)
        shown = ((picture_data(rgba(out / path)), escape(text)) for path, text in pictures[title].items())
        figures = "\n".join(FIGURE.format(*figure) for figure in shown)
        parts.append(SECTION.format(title=title, rows=lines, figures=figures))
    strip = rgba(out / "pictures" / "turn.png")  # (H, V·H, 4)
    page = {
        "title": f"Rodin, reproduced: {config.name}",
        "turn": turning(torch.stack(strip.split(len(strip), dim=1)), results["gallery"]["prompts"][0]),
        "facts": "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()),
        "sections": "\n".join(parts),
    }
    (out / "report.html").write_text((HEAD + BODY).format(**page), encoding="utf-8")
    return out / "report.html"


FITTED, SEEING, GENERATED = "Fitted planes", "What sees: the encoder, the judge", "Generated people"
ASKED, UPSAMPLER, REFINER = "Portraits, texts, edits", "The upsampler", "The refiner"


def rows_of(results: Mapping[str, dict]) -> dict[str, list[Row]]:
    """The numbers worth reading, by the page's sections."""
    fitting, drawn, judged = results["fitting"], results["generation"], results["judgement"]
    upsampling, refinement, eyes = results["upsampling"], results["refinement"], fitting["perceptual"]
    views = f"{fitting['views']} of {fitting['subjects']} people"
    rows: dict[str, list[Row]] = {FITTED: [("views", views, "not fitted, of people that nothing learned from")]}
    for size, mean in fitting["mean"].items():
        rows[FITTED].append((f"PSNR, planes at {size}²", f"{mean['psnr']:.2f} dB", f"SSIM {mean['ssim']:.3f}"))
        rows[FITTED].append((f"{eyes} distance at {size}²", f"{mean[eyes]:.3f}", ""))
    rows[FITTED].append(("ε-loss of the linear denoiser", f"{fitting['wiener_eps_loss']:.3f}", "white noise: 0.5"))

    rows[SEEING] = []
    for name in ("encoder", "classifier"):
        blind = f"{results[name]['most_frequent']:.1%} by always naming the most frequent"
        rows[SEEING].append((f"attributes that the {name} names", f"{results[name]['mean']:.1%}", blind))
    found, among = results["encoder"]["image_to_text"], results["encoder"]["people"]
    true = f"one that is true: {found['true@1']:.1%}"
    rows[SEEING].append((f"pictures that find their caption among {among}", f"{found['recall@1']:.1%}", true))

    (made,), real = drawn["samples"].values(), drawn["real"]
    rows[GENERATED] = [("people", str(drawn["people"]), f"fitted: as many; learned from: {drawn['training_people']}")]
    for key in ("frechet", "precision", "recall", "coverage", "memorisation", "floating", "disagreement"):
        name = f"Fréchet distance, {drawn['network']}" if key == "frechet" else key
        rows[GENERATED].append((name, f"{made[key]:.3g}", f"fitted: {real[key]:.3g}"))

    portraits, texts, edits = judged["portraits"], judged["texts"], judged["edits"]["mean"]
    itself = f"portraits themselves: {portraits['real']['mean']:.1%}"
    rows[ASKED] = []
    for scale, row in portraits["scales"].items():
        at, same = f"guidance {scale}", row["agreement"]["mean"]
        rows[ASKED].append((f"attributes of portraits that avatars have, {at}", f"{same:.1%}", itself))
        rows[ASKED].append((f"portraits recognised, {at}", f"{row['recognised']:.1%}", f"of {portraits['people']}"))
    rows[ASKED].append(("claims of prompts that come true", f"{texts['mean']:.1%}", f"{texts['count']} prompts"))
    kept = f"the rest kept: {edits['kept']:.1%}"
    rows[ASKED].append(("edits that change what they name", f"{edits['changed']:.1%}", kept))

    finer, large = upsampling["held_out"], upsampling["generated"]
    rows[UPSAMPLER] = [_compared(key, "upsampled", finer) for key in ("psnr", "ssim", eyes)]
    distances = {**large["samples"], "fitted": large["real"]}
    rows[UPSAMPLER].append(_compared("frechet", "upsampled", distances, ", generated people"))

    rows[REFINER] = [_compared(key, "refined", refinement["mean"]) for key in refinement["mean"]["refined"]]
    steady = {name: {"disagreement": value} for name, value in refinement["consistency"].items()}
    rows[REFINER].append(_compared("disagreement", "refined", steady, " of neighbouring views"))
    for whose, kinds in refinement["frechet"].items():
        rows[REFINER].append(_compared("parts", "refined", kinds, f" of pictures, Fréchet, {whose}"))
    return rows


def _compared(key: str, name: str, values: Mapping[str, Mapping[str, float]], where: str = "") -> Row:
    """One number of `name`, beside the same of the others."""
    others = ", ".join(f"{other}: {found[key]:.4g}" for other, found in values.items() if other != name)
    return key + where, f"{values[name][key]:.4g}", others


def pictures_of(out: Path, steps: Mapping[str, int], gallery: Mapping) -> dict[str, dict[str, str]]:
    """File, in the folder of the run, and what it shows, by the page's sections."""

    def last(part: str) -> str:
        return f"{part}/preview-{steps[part]:06d}.png"

    texts, (target, source) = "; ".join(gallery["prompts"]), gallery["edit"]
    return {
        FITTED: {
            "pictures/fitting.png": "Two people a row: a view that was not fitted, planes at full size, and small."
        },
        SEEING: {"encoder/loss.png": "Training the encoder.", "classifier/loss.png": "Training the judge."},
        GENERATED: {
            "samples/sheet.png": "Anybody, each from two sides.",
            "base/loss.png": "Training the base model.",
            "latent/loss.png": "Training the latent model.",
        },
        ASKED: {
            "pictures/portraits.png": "Portraits of people never seen; their avatars; the same from the side.",
            "pictures/texts.png": f"From the front and the side: {texts}.",
            "pictures/edits.png": f"The same, and as “{target}” instead of “{source}”.",
        },
        UPSAMPLER: {
            "augmentation/augmentation.png": "Fitted planes, spoiled ones, and those of the base model (E18).",
            last("upsampler"): "Small planes enlarged, upsampled, and as they were fitted.",
            "upsampler/loss.png": "Training the upsampler.",
        },
        REFINER: {
            last("refiner"): "Renders enlarged, refined, and photographs.",
            "refiner/loss.png": "Training the refiner.",
        },
    }


def rgba(path: Path) -> Tensor:
    """A picture file as (H, W, 4) in [0, 1]."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGBA"))).float() / 255
