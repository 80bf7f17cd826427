"""The results table of the README, made of the numbers in results/*.json and nothing else.

    python tools/results_table.py        # rewrites README.md between its two markers
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- results: python tools/results_table.py -->", "<!-- /results -->"

ONE, NOISE = "settings.one-size-plain.mean.", "settings.one-size-from-noise.mean."
RESCALED, ALONE = (f"settings.private-{name}.mean.64.psnr" for name in ("rescaled", "one-size"))
AWARE, RATE, SPEED = "variants.aware.", "share_of_matrix_rate", "samples_per_second"
ABLATION = (
    ("validation ε-loss", "training.{}.validation_loss", "{:.4f}"),
    ("Fréchet distance", "samples.{}-dpm++-50.frechet", "{:.1f}"),
    ("disagreement of the planes", "samples.{}-dpm++-50.disagreement", "{:.2f}"),
    ("density in free space", "samples.{}-dpm++-50.floating", "{:.2g}"),
)
# What is shown, the file, where in it, how, and what was aimed at. A row appears when its file exists.
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
    *(
        (f"base model, {name}: {measure}", "base_ablation.json", path.format(name), form, "")
        for measure, path, form in ABLATION
        for name in ("baseline", "rollout", "aware")
    ),
    ("making people, 32 views at 256²", "people.json", "people_per_second", "{:.1f} a second", "≥ 3"),
)


def results_table(folder: Path = ROOT / "results") -> str:
    """Markdown; one line for each row of `ROWS` whose file and number exist."""
    lines = ["| measure | value | aim | device | date, commit |", "| --- | --- | --- | --- | --- |"]
    for measure, file, path, form, aim in ROWS:
        if not (folder / file).is_file():
            continue
        results = json.loads((folder / file).read_text(encoding="utf-8"))
        value = results
        for key in path.split("."):
            if isinstance(value, list):  # the study's settings by name, others by their place
                value = {row.get("setting", str(i)): row for i, row in enumerate(value)}
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            source = f"[{results['date']}, {results['commit'][:9]}](results/{file})"
            lines.append(f"| {measure} | {form.format(value)} | {aim} | {results['device']} | {source} |")
    return "\n".join(lines) if len(lines) > 2 else "Nothing measured yet."


def rewrite(readme: str) -> str:
    """The README's text with a fresh table between the markers."""
    before, rest = readme.split(START)
    return f"{before}{START}\n{results_table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")
