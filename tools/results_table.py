"""The result tables of the README, made of the numbers in results/*.json and nothing else.

python tools/results_table.py        # rewrites README.md between its markers
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- {}: python tools/results_table.py -->", "<!-- /{} -->"

ONE, NOISE = "settings.one-size-plain.mean.", "settings.one-size-from-noise.mean."
RESCALED, ALONE = (f"settings.private-{name}.mean.64.psnr" for name in ("rescaled", "one-size"))
AWARE, RATE, SPEED = "variants.aware.", "share_of_matrix_rate", "samples_per_second"
VARIANTS = ("baseline", "rollout", "aware")
ERRORS = tuple(f"training.{v}.validation_x0_at_0" for v in VARIANTS)
LOSSES = tuple(f"training.{v}.validation" for v in VARIANTS)


def of_samples(measure: str) -> tuple[str, ...]:
    """Where the numbers of the three variants, and of real people, are."""
    return (*(f"samples.{v}-dpm++-50.{measure}" for v in VARIANTS), f"real.{measure}")


SAMPLERS = ("ancestral-250", "ancestral-50", "ddim-50", "ddim-20", "dpm++-50", "dpm++-20", "dpm++-10")
ASKED = ("hair_color", "hair_style", "glasses", "hat", "facial_hair")
FOUND = ("image_to_text.recall@1", "image_to_text.true@1")
NAMED = tuple(f"attributes.{name}.accuracy" for name in ASKED)
BY_SAMPLER = tuple(f"samples.aware-{name}.frechet" for name in SAMPLERS)
GUIDED = "portraits.scales[1.5]."
OTHERWISE = ("portraits.scales.1.agreement.mean", "portraits.scales.0.agreement.mean")
LARGE, MADE = "upsampler_clean.json", "upsampler_generated.json"
ENLARGED = ("interpolated", "spoiled", "fitted")
NEARER, DECIBELS = (tuple(f"mean.{name}.{of}" for name in ENLARGED) for of in ("efficientnet-lite0", "psnr"))
REFINED = ("bicubic", "refined", "rendered")
FINER, SHARPER, STEADY = (
    tuple("variants.box." + what.format(name) for name in REFINED)
    for what in ("mean.{}.efficientnet-lite0", "frechet.generated.{}.parts", "consistency.{}")
)
DETAILED = ("samples.interpolated.frechet", "samples.spoiled.frechet", "real.frechet")
LED = tuple(f"samples.{name}." for name in ("portraits-1", "without"))
# What is shown, the file, where in it (once or more), how, and what was aimed at. A row appears when its file exists.
ROWS = (
    ("held-out PSNR, planes at 256²", "fitting.json", "mean.256.psnr", "{:.2f} dB", "≥ 28 dB"),
    ("the same planes at 128²", "fitting.json", "mean.128.psnr", "{:.2f} dB", ""),
    ("the same planes at 64²", "fitting.json", "mean.64.psnr", "{:.2f} dB", "within 1.5 dB"),
    ("SSIM at 256²", "fitting.json", "mean.256.ssim", "{:.3f}", "reported"),
    ("EfficientNet-Lite0 distance at 256²", "fitting.json", "mean.256.efficientnet-lite0", "{:.3f}", "reported"),
    ("LPIPS (VGG) at 256²", "fitting.json", "mean.256.lpips-vgg", "{:.3f}", "reported"),
    ("spectral share above half Nyquist", "fitting.json", "spectral_share", "{:.4f}", "reported"),
    ("ε-loss of the linear (Wiener) denoiser", "fitting.json", "wiener_eps_loss", "{:.4f}", "reported"),
    ("random rescaling (study), drawn at 64²", "fitting_study.json", "settings.chosen.mean.64.psnr", "{:.2f} dB", ""),
    ("the same, hardly smoothed", "fitting_study.json", "settings.smoothness-d100.mean.64.psnr", "{:.2f} dB", ""),
    ("fitted at 256² alone (study), drawn at 64²", "fitting_study.json", ONE + "64.psnr", "{:.2f} dB", "≥ 6 dB lower"),
    ("that, begun from noise", "fitting_study.json", NOISE + "64.psnr", "{:.2f} dB", "≥ 6 dB lower"),
    ("fitted at 256² alone (study), drawn at 256²", "fitting_study.json", ONE + "256.psnr", "{:.2f} dB", ""),
    ("a decoder a person: random rescaling, drawn at 64²", "fitting_private.json", RESCALED, "{:.2f} dB", ""),
    ("a decoder a person: fitted at 256² alone", "fitting_private.json", ALONE, "{:.2f} dB", "≥ 6 dB lower"),
    ("fitting, amortised", "bench_fit.json", "seconds_per_subject", "{:.2f} s a subject", "≤ 3 s"),
    ("fitting, peak memory", "bench_fit.json", "fast.peak_memory_gb", "{:.1f} GiB", "≤ 16"),
    ("fitting, rays", "bench_fit.json", "fast.rays_per_second", "{:.3g} a second", ""),
    ("fitting, decoded samples", "bench_fit.json", "fast.samples_per_second", "{:.3g} a second", ""),
    ("fitting, rays, plain PyTorch", "bench_fit.json", "plain.rays_per_second", "{:.3g} a second", ""),
    ("rendering at 256²", "bench_render.json", "fast.views_per_second", "{:.0f} views a second", "≥ 100"),
    ("3D-aware convolution, 192 × 64², over plain", "bench_conv.json", "shapes.0.over_plain", "{:.2f} ×", "≤ 1.5"),
    ("the paper's form of it, over ours", "bench_conv.json", "shapes.0.naive_over_aware", "{:.2f} ×", "≥ 3"),
    ("3D-aware convolution, 64 × 256², over plain", "bench_conv.json", "shapes.1.over_plain", "{:.2f} ×", "≤ 1.5"),
    ("the paper's form of it, over ours", "bench_conv.json", "shapes.1.naive_over_aware", "{:.2f} ×", "≥ 3"),
    ("training the U-Net of `full`, share of the matrix rate", "bench_unet_full.json", AWARE + RATE, "{:.2f}", "≥ 0.4"),
    ("training the U-Net of `small`", "bench_unet_small.json", AWARE + SPEED, "{:.0f} people a second", ""),
    ("the same with the paper's form", "bench_unet_small.json", "variants.aware-naive." + SPEED, "{:.0f} a second", ""),
    ("ablation, stacked / rolled out / 3D-aware: ε-loss", "base_ablation.json", LOSSES, "{:.4f} / {:.4f} / {:.4f}", ""),
    ("error of ŷ₀ at λ = 0", "base_ablation.json", ERRORS, "{:.4f} / {:.4f} / {:.4f}", ""),
    (
        "Fréchet distance (real people)",
        "base_ablation.json",
        of_samples("frechet"),
        "{:.1f} / {:.1f} / {:.1f} ({:.1f})",
        "",
    ),
    (
        "disagreement of planes (real)",
        "base_ablation.json",
        of_samples("disagreement"),
        "{:.2f} / {:.2f} / {:.2f} ({:.2f})",
        "",
    ),
    (
        "density that floats (real)",
        "base_ablation.json",
        of_samples("floating"),
        "{:.0e} / {:.0e} / {:.0e} ({:.0e})",
        "",
    ),
    ("3D-aware, ancestral, 250 / 50 steps: Fréchet", "base_ablation.json", BY_SAMPLER[:2], "{:.1f} / {:.1f}", ""),
    ("DDIM, 50 / 20 steps", "base_ablation.json", BY_SAMPLER[2:4], "{:.1f} / {:.1f}", ""),
    ("DPM-Solver++, 50 / 20 / 10 steps", "base_ablation.json", BY_SAMPLER[4:], "{:.1f} / {:.1f} / {:.1f}", ""),
    (
        "encoder, zero-shot: colour, style of hair / glasses / hat / beard",
        "encoder.json",
        NAMED,
        "{:.1%}, {:.1%} / {:.1%} / {:.1%} / {:.1%}",
        "≥ 95 %",
    ),
    ("encoder, zero-shot, mean of 24 attributes", "encoder.json", "mean", "{:.1%}", "reported"),
    ("a picture's caption among 512: its own, a true one", "encoder.json", FOUND, "{:.1%}, {:.1%}", "reported"),
    ("attribute classifier, mean of 18 attributes", "classifier.json", "mean", "{:.1%}", "reported"),
    ("avatars of 64 unseen portraits: attributes agree", "latent.json", GUIDED + "agreement.mean", "{:.1%}", "≥ 85 %"),
    ("the same of the portraits themselves", "latent.json", "portraits.real.mean", "{:.1%}", ""),
    ("without guidance, and of nobody", "latent.json", OTHERWISE, "{:.1%}, {:.1%}", ""),
    ("recognised among the 64 by the encoder", "latent.json", GUIDED + "recognised", "{:.1%}", "reported"),
    ("avatars of 200 prompts: what they claim", "latent.json", "texts.mean", "{:.1%}", "≥ 80 %"),
    ("edits: changed as asked", "latent.json", "edits.mean.changed", "{:.1%}", "≥ 80 %"),
    ("edits: all else kept", "latent.json", "edits.mean.kept", "{:.1%}", "≥ 85 %"),
    (
        "latents of unseen portraits / nobody's (real): Fréchet",
        "latent_contrast.json",
        (*(name + "frechet" for name in LED), "real.frechet"),
        "{:.1f} / {:.1f} ({:.1f})",
        "better",
    ),
    (
        "the same, recall",
        "latent_contrast.json",
        (*(name + "recall" for name in LED), "real.recall"),
        "{:.2f} / {:.2f} ({:.2f})",
        "",
    ),
    ("64², enlarged / upsampled / 256²: EfficientNet-Lite0", LARGE, NEARER, "{:.3f} / {:.3f} / {:.3f}", "≤ 0.644"),
    ("the same, PSNR", LARGE, DECIBELS, "{:.2f} / {:.2f} / {:.2f} dB", ""),
    ("base model's, before / after (real): Fréchet", MADE, DETAILED, "{:.1f} / {:.1f} ({:.1f})", "better"),
    ("upsampling to 256², 10 steps", "bench_upsampler.json", "seconds_an_avatar", "{:.2f} s", ""),
    ("upsampling to 256², 10 steps", "bench_upsampler_cpu.json", "seconds_an_avatar", "{:.0f} s", "≤ 40"),
    ("a text to a view of 1024²", "bench_pipeline.json", "seconds", "{:.1f} s", "≤ 2"),
    ("a text to a view of 1024²", "bench_pipeline_cpu.json", "seconds", "{:.0f} s", "≤ 90"),
    (
        "1024², enlarged / refined / rendered: EfficientNet-Lite0",
        "refiner.json",
        FINER,
        "{:.3f} / {:.3f} / {:.3f}",
        "≤ 0.838",
    ),
    ("base model's at 1024², parts: Fréchet", "refiner.json", SHARPER, "{:.1f} / {:.1f} / {:.1f}", "better"),
    ("fitted, neighbours of 5° apart differ by", "refiner.json", STEADY, "{:.4f} / {:.4f} / {:.4f}", ""),
    ("refining, 256² to 1024²", "bench_refiner.json", "images_per_second", "{:.0f} a second", "≥ 30"),
    ("refining, 256² to 1024²", "bench_refiner_cpu.json", "seconds_an_image", "{:.1f} s", "≤ 15"),
    ("making people, 32 views at 256²", "people.json", "people_per_second", "{:.1f} a second", "≥ 3"),
)

ABLATED, ENCODED, REFINER, EYES = "base_ablation.json", "latent_contrast.json", "refiner.json", "EfficientNet-Lite0"
# What a part is worth: its name, the measure and which way is better, the file, where its values without and with are.
PARTS = (
    ("random rescaling (E5c)", "PSNR of planes at 64² ↑", "fitting_private.json", (ALONE, RESCALED), "{:.2f} dB"),
    ("planes rolled out, not stacked (E10)", "Fréchet ↓", ABLATED, of_samples("frechet")[:2], "{:.1f}"),
    ("3D-aware, not rolled out (E11)", "Fréchet ↓", ABLATED, of_samples("frechet")[1:3], "{:.1f}"),
    ("the same", "disagreement of planes ↓", ABLATED, of_samples("disagreement")[1:3], "{:.2f}"),
    ("latents (E13)", "Fréchet ↓", ENCODED, tuple(name + "frechet" for name in LED[::-1]), "{:.1f}"),
    ("the same", "recall ↑", ENCODED, tuple(name + "recall" for name in LED[::-1]), "{:.2f}"),
    (
        "guidance of 1.5 (E14)",
        "attributes of portraits ↑",
        "latent.json",
        (OTHERWISE[0], GUIDED + "agreement.mean"),
        "{:.1%}",
    ),
    ("upsampler (E17–E19), clean planes", EYES + " at 256² ↓", LARGE, NEARER[:2], "{:.3f}"),
    ("the same, the base model's", "Fréchet at 256² ↓", MADE, DETAILED[:2], "{:.1f}"),
    ("refiner (E20), fitted planes", EYES + " at 1024² ↓", REFINER, FINER[:2], "{:.3f}"),
    ("the same, the base model's", "Fréchet of parts at 1024² ↓", REFINER, SHARPER[:2], "{:.1f}"),
    ("the same, not rendered at full size", "Fréchet of parts at 1024² ↓", REFINER, SHARPER[:0:-1], "{:.1f}"),
)


def parts_table(folder: Path = ROOT / "results") -> str:
    """Markdown; one line for each of `PARTS`."""
    lines = ["| part | measure | without | with | |", "| --- | --- | --- | --- | --- |"]
    for part, measure, file, path, form in PARTS:
        results = json.loads((folder / file).read_text(encoding="utf-8"))
        values = " | ".join(form.format(_at(results, one)) for one in path)
        lines.append(f"| {part} | {measure} | {values} | [{file.removesuffix('.json')}](results/{file}) |")
    return "\n".join(lines)


def results_table(folder: Path = ROOT / "results") -> str:
    """Markdown; one line for each row of `ROWS` whose file and number exist."""
    lines = ["| measure | value | aim | device | date, commit |", "| --- | --- | --- | --- | --- |"]
    for measure, file, path, form, aim in ROWS:
        if not (folder / file).is_file():
            continue
        results = json.loads((folder / file).read_text(encoding="utf-8"))
        values = [_at(results, one) for one in ((path,) if isinstance(path, str) else path)]
        if None not in values:
            source = f"[{results['date']}, {results['commit'][:9]}](results/{file})"
            lines.append(f"| {measure} | {form.format(*values)} | {aim} | {results['device']} | {source} |")
    return "\n".join(lines) if len(lines) > 2 else "Nothing measured yet."


def _at(value, path: str) -> float | None:
    """The number at a.b[1.5].c of nested dictionaries and lists."""
    for key in re.findall(r"(?<=\[)[^\]]+|[^.[\]]+", path):
        if isinstance(value, list):  # the study's settings by name, others by their place
            value = {row.get("setting", str(i)): row for i, row in enumerate(value)}
        value = value.get(key) if isinstance(value, dict) else None
    return value


def rewrite(readme: str) -> str:
    """The README's text with fresh tables between the markers."""
    for name, table in (("results", results_table()), ("parts", parts_table())):
        start, end = START.format(name), END.format(name)
        before, rest = readme.split(start)
        readme = f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")
