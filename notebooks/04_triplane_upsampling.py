# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Tri-plane upsampling: what 64² planes lack
#
# The people of chapters 02 and 03 have soft faces, because planes of 64² have no room for more. Rodin does not make
# larger planes at once. It makes small ones, and a second diffusion model adds what is missing, up to 256². Three ideas
# make that work: the network says at once what the planes shall be, it learns on conditions that are as bad as those it
# will get, and it is judged by **pictures**, on patches that are cheap enough to render in every step.
#
# *Paper*: section "Diffusion Tri-plane Upsampler" (equations E17–E19 of the README's table). *Code*: `upsampler.py`,
# `patches.py`, `upsampler_training.py`, `augmentation.py`, `perceptual.py`.
#
# | preset | what is trained live, on seven people, from 32² to 64² | time | memory |
# | --- | --- | --- | --- |
# | `smoke` | 0.12 M weights, 220 steps in all | 120 s on two cores (CPU 175 s) | 0.9 GB |
# | `small` | 1.0 M weights | not measured | not measured |
# | `full` | 7.2 M weights | not measured | not measured |
#
# One person in the box has planes of 256²; all eight have planes of 64². So whatever needs the real size is shown on
# one person, and **the live training goes from 32² to 64²**: half the paper's factor, at a quarter of its size. Seven
# people can be learned by heart, the eighth is kept aside. What does not show at this scale is said where it happens.
#
# 1 what is missing · 2 detail, diffused · 3 a condition as bad as it will be · 4 where patches fall · 5 the eye of
# a network · 6 training · 7 how many steps · 8 the real sizes

# %%
import json
import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from minirodin import Avatar, preset
from minirodin.plots import PALETTE, STYLE, photo, planes_to_rgb, show_curves, show_images

# %% tags=["parameters"]
preset_name = os.environ.get("MINIRODIN_PRESET", "smoke")
seed = 0

# %%
config = preset(preset_name)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(seed)
plt.rcParams.update(STYLE)
scratch = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1 What is missing
#
# The person with planes of 256²; the same planes averaged down to 64², where a base model would have made them; and
# these, bilinearly enlarged. **Predict first**: which of the two smaller ones looks better? And where will you see that
# something is gone?

# %%
from minirodin.avatar import to_rgb
from minirodin.shards import SharedDecoder
from minirodin.triplane import resize_planes

coarse, fine = 32, 64  # what this chapter trains on: the box has eight people at 64²
given = SharedDecoder.load("../data_samples/pretrained/small/decoder.safetensors")
decoder = given.decoder.to(device)
people = [Avatar.load(file).planes.to(device) for file in sorted(Path("../data_samples/avatars").glob("*.safetensors"))]
large = people[0]  # (3, 16, 256, 256)
print([tuple(planes.shape[-2:]) for planes in people])

# %%
triplane = replace(given.config.triplane, resolution=fine, base_resolution=coarse)
quick = replace(given.config.render, grid=24, bins=80, view_samples=32)  # enough for small pictures
look = replace(given.config, triplane=triplane, render=quick)
closer = replace(look, render=replace(quick, grid=48, bins=128, view_samples=64))


def picture(planes, azimuth=20, pixels=96, settings=look):
    """Planes (3, C, R, R) on the decoder's scale as a picture on white, (pixels, pixels, 3)."""
    return to_rgb(Avatar(planes.to(device), decoder, settings).render(azimuth, 5, pixels)).cpu()


reduced = resize_planes(large, 64)
sizes = {"256²": large, "64²": reduced, "64², enlarged": resize_planes(reduced, 256)}
views = {name: picture(planes, 10, 256, closer) for name, planes in sizes.items()}
difference = (views["256²"] - views["64², enlarged"]).abs().mean(-1)  # (256, 256)

# %%
face = slice(82, 162), slice(78, 158)  # rows and columns of a face in a view of 256 pixels
shown = [*views.values(), 1 - (4 * difference).clamp(0, 1)]
cuts = [image[face] for image in shown]
titles = [*sizes, "difference to 256², ×4", *[""] * 4]
photo(show_images([*shown, *cuts], titles, columns=4))

# %% [markdown]
# Nothing is wrong with the middle one, and nothing comes of enlarging it: between texels the look-up interpolates
# anyway (E1). What is gone is what a person is recognised by: eyes, brows, the rim of the hat. The body hardly minds.

# %%
from minirodin.metrics import psnr
from minirodin.perceptual import perceptual_distance

eyes = perceptual_distance(device.type)


def batch(images):
    """Pictures (H, W, 3) as (N, 3, H, W)."""
    return torch.stack([torch.as_tensor(image) for image in images]).movedim(-1, 1).to(device)


truth, pair = batch([views["256²"]] * 2), batch([views["64²"], views["64², enlarged"]])
for part, rows, columns in (("whole", slice(None), slice(None)), ("face", *face)):
    decibel, distance = (measure(pair[..., rows, columns], truth[..., rows, columns]) for measure in (psnr, eyes))
    print(f"{part:6} 64²: {decibel[0]:.1f} dB, {eyes.name} {distance[0]:.3f};"
          f"  enlarged: {decibel[1]:.1f} dB, {distance[1]:.3f}")  # fmt: skip

# %% tags=["check"]
there = (views["256²"] < 0.99).any(-1)  # pixels of the person
eye_band = torch.zeros_like(there)
eye_band[88:112, 84:150] = True
ratio = float(difference[eye_band & there].mean() / difference[there].mean())
same = float(psnr(pair[:1], pair[1:]))
assert same > 40 and ratio > 1.5, (same, ratio)
print(f"enlarging changes nothing ({same:.0f} dB); the difference about the eyes is {ratio:.1f} times that elsewhere")

# %% [markdown]
# In the planes themselves it is frequencies. A plane of 64² ends at 32 waves across (dashed), and averaging has damped
# what lies shortly before. What the enlarged one has beyond are the kinks of interpolation. But how little of all the
# energy that is! A loss that counts energy hardly notices a face.


# %%
def spectrum(planes):
    """Energy of planes (3, C, R, R) at 1, 2, … R/2 − 1 waves across, of standardised channels."""
    size = planes.shape[-1]
    standard = (planes - large.mean((0, 2, 3))[:, None, None]) / large.std((0, 2, 3))[:, None, None]
    energy = torch.fft.fft2(standard, norm="ortho").abs().square().sum((0, 1))
    waves = torch.fft.fftfreq(size, 1 / size, device=planes.device)
    radius = (waves[:, None].square() + waves.square()).sqrt().round().long()
    return energy.new_zeros(size).index_add(0, radius.flatten(), energy.flatten())[1 : size // 2].cpu()


energies = {name: spectrum(planes) for name, planes in sizes.items()}
del energies["64²"]  # another grid
energies = {name: energy / energies["256²"].sum() for name, energy in energies.items()}
waves = range(1, 128)
curves = {name: (waves, energy) for name, energy in energies.items()}
figure = show_curves(curves, "waves across the plane", "share of the energy", log_y=True, width=5.5)
figure.axes[0].axvline(32, color=PALETTE[4], lw=1, ls="--")
figure.axes[0].set_xscale("log")
figure

# %% tags=["check"]
beyond = {name: float(energy[32:].sum()) for name, energy in energies.items()}
assert beyond["64², enlarged"] < 0.4 * beyond["256²"] and beyond["256²"] < 0.02, beyond
print("beyond 32 waves:", ", ".join(f"{name}: {share:.2%} of the energy" for name, share in beyond.items()))

# %% [markdown]
# The same one octave lower, which is what this chapter can train: the eight at 64², and at 32², enlarged.

# %%
fitted = torch.stack([resize_planes(planes, fine) for planes in people])  # (8, 3, 16, 64, 64)
small = resize_planes(fitted, coarse)
enlarged = resize_planes(small, fine)
wanted = [picture(planes) for planes in fitted]
without = [picture(planes) for planes in enlarged]
photo(show_images([*wanted, *without], ["64²", *[""] * 7, "32², enlarged", *[""] * 7], columns=8))

# %% [markdown]
# ## 2 Detail, diffused (E17)
#
# The paper's upsampler is a diffusion model $y_\theta(y_t^{HR}, y^{LR}, t)$ that is given the small planes and predicts
# the large ones **themselves**, $y_0^{HR}$, where the base model predicts noise. Ours does the same with the origin
# moved. It is given up(y^LR), the enlarged planes, and diffuses what they lack,
#
# $$d = W\,\big(y^{HR} - \mathrm{up}(y^{LR})\big), \qquad d_t = \alpha_t\, d + \sigma_t\, \varepsilon,$$
#
# measured by what it does to pictures: $W$ weighs channels by how much they move pixels (chapter 02, `plane_space.py`).

# %%
from minirodin.upsampler_training import spaces

seven, stranger = fitted[:-1], fitted[-1:]
low_space, detail_space = spaces(seven, decoder, look)  # of planes at 32², and of what 64² adds
detail = detail_space.standardise(seven - enlarged[:-1])
from_mean = low_space.standardise(small[:-1])
print(f"squares: small planes less their mean {from_mean.square().mean():.2f}, detail {detail.square().mean():.2f}")
print(f"on the decoder's scale: {seven.var(0).mean():.1e} and {(seven - enlarged[:-1]).square().mean():.1e}")

# %%
shown = []
for i in (2, 3):
    shown += [*planes_to_rgb(torch.stack([seven[i], enlarged[i]]).cpu(), seven.cpu())[:, 0]]
    shown += [planes_to_rgb(detail[i].cpu(), detail.cpu())[0]]
titles = ["plane uv at 64²", "32², enlarged", "detail, in its own space"] * 2
photo(show_images(shown, titles, columns=6))

# %% [markdown]
# Outlines, stripes and features of the face, and nothing else. **Predict first.** A U-Net begins with its last layer at
# zero (chapter 02). What does an upsampler return that has learned nothing?

# %%
from minirodin.upsampler import Upsampler, build_network

width = config.upsampler.unet.channels[0]
shape = replace(config.upsampler.unet, channels=(width, width), blocks=1, aware_levels=2, checkpointing=False)
process = {"schedule": "linear", "shift": 0.0, "log_snr_max": -1.0, "log_snr_min": -8.0}  # why: section 6
process["log_snr_stop"] = process["log_snr_max"]  # sampled to its end
lesson = replace(config.upsampler, unet=shape, diffusion=replace(config.upsampler.diffusion, **process))
lesson = replace(lesson, view=96, patch=42, rendered=1, perceptual_weight=0.1)  # patches: section 4


def newborn(upsampler):
    """An upsampler from 32² to 64² that has learned nothing yet."""
    torch.manual_seed(seed)
    settings = replace(look, upsampler=upsampler)
    return Upsampler(build_network(settings), given, settings, low_space, detail_space).to(device)


# %% tags=["check"]
model = newborn(lesson)
made = model.upsample(small[:2], steps=3)
assert torch.allclose(made, enlarged[:2], atol=1e-4) and torch.allclose(model.upsample(small[:2], 0), made, atol=1e-4)
assert torch.allclose(enlarged[:-1] + detail_space.unstandardise(detail), seven, atol=1e-5)
aware = [module for module in model.network.modules() if type(module).__name__ == "AwareConv2d"]
blocks = [module for module in model.network.modules() if type(module).__name__ == "ResBlock"]
assert len(aware) == len(blocks), "E17: a 3D-aware convolution in every residual block"
print(f"the enlarged planes; {len(aware)} of {len(blocks)} residual blocks are 3D-aware")

# %% [markdown]
# The enlarged planes, the best answer without knowledge. Diffusing $y_0$ in full, the same network would return the
# mean person to everybody, and would first have to learn to copy.
#
# ### Why $y_0$, when the base model does otherwise?
#
# Because somebody wants to **look** at the answer. The perceptual loss (section 5) renders $\hat y_0$ in every training
# step, at any noise level. From a predicted ε it would be $(y_t - \sigma\hat\varepsilon)/\alpha$. By how much does that
# magnify an error, at the strongest noise of the real upsampler?

# %% tags=["check"]
from minirodin.diffusion import Diffusion

real = preset("small")
upsampling, base = (Diffusion(part.diffusion) for part in (real.upsampler, real.base))
strongest = upsampling.log_snr(torch.ones(1))
factors = {}
for prediction in ("eps", "v", "x0"):
    asked = Diffusion(replace(real.upsampler.diffusion, prediction=prediction))
    factors[prediction] = float(asked.error_factors(strongest)[0])
assert real.upsampler.diffusion.prediction == "x0" and factors["x0"] == 1 and factors["eps"] > 1e4
errors = ", ".join(f"{name} {factor:.3g}" for name, factor in factors.items())
print(f"λ = {float(strongest):.0f}: a squared error of 1 in what is predicted is one in ŷ₀ of: {errors}")

# %% [markdown]
# ### Noise at 256²
#
# A noise level is a number a texel. **Predict first.** λ = 1 on planes of 64²; λ = 1 on planes of 256². Whom do you
# recognise more easily?
#
# Below, both rendered at 64²; for the right one the noisy 256² are averaged down, since that is what an eye, and a
# network, does with them.

# %%
from minirodin.triplane import plane_statistics, standardise, unstandardise

mean, std = plane_statistics(large[None])
level, generator = 1.0, torch.Generator().manual_seed(seed)
noisy, lone_noise = [], []
for planes in (reduced, large):
    noise = math.exp(-level / 2) * torch.randn(planes.shape, generator=generator).to(device)  # signal at full strength
    noisy.append(resize_planes(unstandardise(standardise(planes, mean, std) + noise, mean, std), 64))
    lone_noise.append(resize_planes(noise, 64))
names = ["no noise", "λ = 1 at 64²", "λ = 1 at 256², averaged"]
clean, at_64, at_256 = (picture(planes, 10, 160) for planes in (reduced, *noisy))
photo(show_images([clean, at_64, at_256], names, width=6))

# %% [markdown]
# Sixteen texels average where there was one: the noise is a quarter, λ is worth log 16 = 2.8 more. What the small
# planes know survives at 256² for much longer, and an upsampler **is given** that already. Its training time is better
# spent on noise that hides more: 2.8 more to be where the base model is, and in preset `small` four more, since its
# sampling ends at λ = −4. Why it does, section 8 tells.

# %%
t = torch.linspace(0, 1, 201)
curves = {"base model, 64²": base.log_snr(t), "upsampler, 256²": upsampling.log_snr(t)}
curves["upsampler, as 64² feel it"] = upsampling.log_snr(t) + math.log(16)
show_curves({name: (t, values) for name, values in curves.items()}, "t", "log-SNR λ", "", width=5.5)

# %% tags=["check"]
ratio = float(lone_noise[1].std() / lone_noise[0].std())
gained = float(psnr(batch([at_256]), batch([clean])) - psnr(batch([at_64]), batch([clean])))
middle = float((curves["base model, 64²"] - curves["upsampler, as 64² feel it"])[100])
assert abs(ratio - 0.25) < 0.01 and gained > 6 and 3 < middle < 5, (ratio, gained, middle)
print(f"noise ÷ {1 / ratio:.2f}, {gained:.0f} dB in the picture; half-way its λ is {middle:.1f} below the base model's")

# %% [markdown]
# ## 3 A condition as bad as it will be (E18)
#
# In training the condition is made from fitted planes: clean ones. In use it comes from the base model. These are eight
# people whom our base model made (`tools/measure_base.sh`), as they are at 64²:

# %%
sheet = np.asarray(Image.open("../results/base_aware.jpg"))
photo(show_images([sheet[258:512] / 255], width=9))

# %% [markdown]
# Soft faces, streaks, stains. A network that knows clean planes only has no reason not to take a streak for the edge of
# something, and to sharpen it. So conditions are **spoiled** in training, each person's by magnitudes of its own: fewer
# texels, then a blur, then noise. One by one, each at its largest (`AugmentConfig`):

# %%
from minirodin.config import AugmentConfig
from minirodin.upsampler import augment, gaussian_blur, told

most = AugmentConfig()  # what `small` has until `minirodin tune` says better
x = low_space.standardise(small[2:4])
generator = torch.Generator(device).manual_seed(seed)
fewer = resize_planes(resize_planes(x, round(most.smallest * coarse)), coarse)
blurred = gaussian_blur(x, torch.full((2,), most.blur, device=device))
grainy = x + most.noise * torch.randn(x.shape, generator=generator, device=device)
everything = gaussian_blur(fewer, torch.full((2,), most.blur, device=device)) + (grainy - x)

# %%
steps = {"as fitted": x, f"{most.smallest:.0%} of the texels a side": fewer, f"blurred, {most.blur:g} texel": blurred}
steps |= {f"noise of {most.noise:g}": grainy, "all three": everything}
shown = [low_space.unstandardise(planes)[i] for i in range(2) for planes in steps.values()]
shown = [picture(resize_planes(planes, fine)) for planes in shown]
photo(show_images(shown, [*steps, *[""] * 5], columns=5, width=7.5))

# %% tags=["check"]
spike = torch.zeros(2, 3, 1, 31, 31, device=device)
spike[..., 15, 15] = 1
rows = gaussian_blur(spike, torch.tensor([1.0, 2.0], device=device))[:, 0, 0].sum(2)  # (2, 31)
place = torch.arange(-15, 16, device=device).float()
spread = (rows * place.square()).sum(1).sqrt()
assert torch.allclose(rows.sum(1), torch.ones_like(spread))
assert torch.allclose(spread, spread.new_tensor([1, 2]), rtol=0.03)

crowd = x[:1, ..., :8, :8].expand(400, -1, -1, -1, -1)
spoiled, noise = augment(crowd, AugmentConfig(smallest=1.0, blur=0.0, noise=most.noise), generator)
added = (spoiled - crowd).flatten(1)
assert added.mean().abs() < 0.01 and (added.std(1) / noise - 1).abs().max() < 0.2, "each person's noise is as told"
assert abs(float(noise.mean()) / most.noise - 0.5) < 0.06 and noise.max() <= most.noise, "drawn evenly"
print(f"blurs of 1 and 2 texels spread a spike by {spread[0]:.2f} and {spread[1]:.2f} and lose nothing;")
print(f"noise is drawn evenly up to {most.noise:g}, and it is what the network is told")

# %% [markdown]
# The network is told how much noise there is, as a second noise level λ beside that of $d_t$; of the rest it is told
# nothing. So whoever uses it can add noise on purpose, say so, and have it overlook what is smaller than that
# (`upsample(…, noise=0.1)`).

# %% tags=["check"]
levels = torch.tensor([0.3, 0.1, 0.0])
assert torch.allclose(told(levels)[:2], -2 * levels[:2].log()) and float(told(levels)[2]) == 10
print("told of noise", ", ".join(f"{n:g} as λ = {level:.1f}" for n, level in zip(levels, told(levels), strict=True)))

# %% [markdown]
# ### A stand-in for the base model
#
# To measure anything one needs base-like planes **and** the truth about them. The base model in the box makes people
# whom nobody photographed. In its place stands one that is a formula: it knows of people how strong each frequency of
# each channel is, and no more. The best denoiser with that knowledge is Wiener's (`metrics.py`). It gets the eight half
# drowned in noise, and walks the rest of the way with the ancestral sampler of chapter 02: its own streaks and stains,
# on people whom one still knows.

# %%
from minirodin.diffusion import Denoised, alpha_sigma
from minirodin.sampling import SAMPLERS

power = torch.fft.fft2(from_mean, norm="ortho").abs().square().mean((0, 1))  # (16, 32, 32)


def wiener(x_t, log_snr):
    """ŷ₀ and ε̂ of one who knows the power spectrum."""
    alpha, sigma = alpha_sigma(log_snr, x_t)
    gain = alpha * power / (alpha.square() * power + sigma.square())
    x0 = torch.fft.ifft2(torch.fft.fft2(x_t) * gain).real
    return Denoised(x0, (x_t - alpha * x0) / sigma)


known = low_space.standardise(small)
generator = torch.Generator(device).manual_seed(seed)
noise = torch.randn(known.shape, generator=generator, device=device)
start = base.q_sample(known, torch.full((8,), 2.5, device=device), noise)
imitated = SAMPLERS["ancestral"](wiener, start, torch.linspace(2.5, 6, 11, device=device), generator)
base_like = low_space.unstandardise(imitated)
photo(show_images([picture(resize_planes(planes, fine), pixels=80) for planes in base_like], columns=8))

# %% [markdown]
# ### Where it is exact
#
# What spoiling buys is clearest where learning is exact. Take the simplest upsampler there is: every 2×2 of detail is a
# **linear function** of the 3×3 small texels around it. Least squares finds the best one for clean conditions, and the
# best one for conditions spoiled with a share of the magnitudes above. No noise level, no steps, half a second.
#
# **Predict first.** How does each do on clean planes, and on those of the stand-in?


# %%
def surroundings(x):
    """(B, 3, C, r, r) → what lies around each texel, (B·3·r², 9·C)."""
    return F.unfold(F.pad(x.flatten(0, 1), (1, 1, 1, 1), mode="replicate"), 3).transpose(1, 2).flatten(0, 1)


def least_squares(magnitudes, draws):
    """The best linear rule for the seven: (9·C, 4·C)."""
    generator, covariance, product = torch.Generator(device).manual_seed(seed), 0, 0
    for _ in range(draws):
        spoiled, _ = augment(known[:-1], magnitudes, generator)
        lacking = detail_space.standardise(seven - resize_planes(low_space.unstandardise(spoiled), fine))
        given_texels = surroundings(spoiled)
        covariance = covariance + given_texels.T @ given_texels
        product = product + given_texels.T @ F.unfold(lacking.flatten(0, 1), 2, stride=2).transpose(1, 2).flatten(0, 1)
    ridge = 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance), device=device)
    return torch.linalg.solve(covariance + ridge, product)


def by_rule(rule, x):
    """Planes at 64² on the decoder's scale, from standardised ones at 32²."""
    made = (surroundings(x) @ rule).unflatten(0, (3 * len(x), -1)).transpose(1, 2)
    made = F.fold(made, fine, 2, stride=2).unflatten(0, (len(x), 3))
    return resize_planes(low_space.unstandardise(x), fine) + detail_space.unstandardise(made)


# %%
def error(planes):
    """Squared error of the seven's planes, in the detail's space; 1 is what clean planes lack when enlarged."""
    return float(detail_space.standardise(planes[:7] - seven).square().mean() / detail.square().mean())


strengths = (0, 0.125, 0.25, 0.5, 0.75, 1)
rules = {}
for s in strengths:
    magnitudes = AugmentConfig(smallest=1 - (1 - most.smallest) * s, blur=most.blur * s, noise=most.noise * s)
    rules[s] = least_squares(magnitudes, 8)
inputs = {"clean": known[:-1], "base-like": imitated[:-1]}
errors = {name: [error(by_rule(rule, x)) for rule in rules.values()] for name, x in inputs.items()}
nothing = {name: error(resize_planes(low_space.unstandardise(x), fine)) for name, x in inputs.items()}

# %%
figure, axis = plt.subplots(figsize=(5.5, 3))
for (name, values), colour in zip(errors.items(), PALETTE, strict=False):
    axis.plot(strengths, values, marker="o", ms=4, color=colour, label=f"{name}, the linear rule")
    axis.axhline(nothing[name], color=colour, lw=1, ls="--", label=f"{name}, only enlarged")
axis.set(xlabel="spoiled in fitting with this share of the magnitudes", ylabel="squared error", ylim=(0, None))
axis.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
plt.show()

# %% tags=["check"]
clean, bad = errors["clean"], errors["base-like"]
assert clean[0] < 0.85 and all(np.diff(clean) > 0), "on clean planes every bit of spoiling costs"
assert bad[0] > 1.05 * nothing["base-like"] > 1.1 * min(bad[2:]), "fitted to clean planes, it does harm to others"
print(f"clean: {nothing['clean']:.2f} → {clean[0]:.2f}, spoiled by half {clean[3]:.2f};"
      f" base-like: {nothing['base-like']:.2f} → {bad[0]:.2f}, spoiled by half {bad[3]:.2f}")  # fmt: skip

# %% [markdown]
# The rule that is best on clean planes makes the base-like ones **worse than it got them**. It takes stains for
# structure. Spoiling cures that, and costs sharpness where nothing was wrong. How much is right depends on how bad the
# base model is: `minirodin tune` searches the magnitudes until pictures of spoiled planes are as far from good ones as
# the base model's are (Fréchet distance of features).

# %% [markdown]
# ## 4 Where patches fall (E19)
#
# A loss on pictures needs pictures. One of 256² costs 65 536 rays and, with gradients, memory for each of their
# samples. The paper renders patches of 112² instead, a fifth of the picture, and more often of the face. Here a map
# says how likely a patch begins where: a Gaussian around the face's place in that view, on a floor for everything
# else.

# %%
from minirodin.cameras import orbit_cameras
from minirodin.patches import draw_patches, importance

real_upsampler = real.upsampler  # views of 256, patches of 112
cameras = orbit_cameras([0, 60, 180], 5, real_upsampler.view)
matrix, intrinsics = cameras.camera_to_world.float(), cameras.intrinsics.float()
maps = importance(matrix, intrinsics, real_upsampler.view, real_upsampler)  # (3, 145, 145), of the first pixel
seen = F.conv2d(maps[:, None], torch.ones(1, 1, 112, 112), padding=111)[:, 0]  # (3, 256, 256): is a pixel on it?
generator = torch.Generator().manual_seed(seed)
drawn = [draw_patches(m.expand(6, 4, 4), i.expand(6, 4), 256, real_upsampler, generator).corner for m, i in
         zip(matrix, intrinsics, strict=True)]  # fmt: skip

# %%
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.6), width_ratios=(1, 1, 1, 1.15))
for axis, chance, corners, azimuth in zip(axes, seen, drawn, (0, 60, 180), strict=False):
    axis.imshow(picture(large, azimuth, 256, closer if azimuth == 0 else look))
    overlay = axis.imshow(chance, cmap="inferno", alpha=0.35, vmin=0, vmax=1)
    for x, y in corners.tolist():
        axis.add_patch(plt.Rectangle((x, y), 112, 112, fc="none", ec=PALETTE[0], lw=1))
    axis.set(xticks=[], yticks=[], title=f"from {azimuth}°")
    axis.grid(False)
figure.colorbar(overlay, ax=axes[2], label="chance to be on a patch")
across = seen[0, 113].tolist()
axes[3].plot(range(256), across)
axes[3].set(title="through the eyes, from 0°", xlabel="column", ylim=(0, 1))
photo(figure)

# %% [markdown]
# From the side the map follows the face to where it is, and from behind to where it would be. Most patches show the
# eyes, hardly any a corner of the picture. Do draws keep to the map? Count 6000 of them on a grid of 5×5:

# %% tags=["check"]
corners = torch.cat([draw_patches(matrix[:1].expand(500, 4, 4), intrinsics[:1].expand(500, 4), 256, real_upsampler,
                                  generator).corner for _ in range(12)])  # fmt: skip
cells = corners.div(29, rounding_mode="floor")  # 145 = 5 · 29
counts = (cells[:, 1] * 5 + cells[:, 0]).bincount(minlength=25).float()
expected = 6000 * F.avg_pool2d(maps[:1, None], 29, divisor_override=1).flatten()
chi, flat = (float(((counts - e).square() / e).sum()) for e in (expected, torch.full((25,), 240.0)))
assert chi < 24 + 5 * math.sqrt(48) < flat / 10, (chi, flat)  # 24 degrees of freedom
assert seen[0, 113, 128] > 0.65 and 0 < seen[0, 2, 2] < 0.01, (seen[0, 113, 128], seen[0, 2, 2])
print(f"χ² = {chi:.0f} for 24 degrees of freedom; were all places alike, {flat:.0f}")

# %% [markdown]
# A patch is a piece of the picture and nothing else. Rendered alone, it must be what the whole picture has there:

# %%
from minirodin.patches import Patches
from minirodin.picture_losses import PictureLosses, render_patches

person, front = Avatar(fitted[5], decoder, look), orbit_cameras(0, 5, 96)
whole = to_rgb(person.views(front)[0]).cpu()
pose = (front.camera_to_world.float().to(device), front.intrinsics.float().to(device))
patch = Patches(*pose, torch.tensor([[30, 22]], device=device), 42)
with torch.no_grad():
    alone = render_patches(fitted[5:6], decoder, patch, person.occupancy(), look.render)[0].movedim(0, -1).cpu()
cut = whole[22:64, 30:72]
photo(show_images([whole, cut, alone], ["96 × 96 rays", "cut out of it", "42 × 42 rays"], width=4.5))

# %% tags=["check"]
assert (cut - alone).abs().max() < (1e-4 if device.type == "cpu" else 2e-2)  # pictures are made in 16 bits on a GPU
print(f"equal; {42**2 / 96**2:.0%} of the rays, as 112² of 256² are {112**2 / 256**2:.0%}")

# %% [markdown]
# ## 5 The eye of a network
#
# $$L_{\mathrm{perc}} = \mathbb{E} \sum_l \big\| \Psi^l(\hat x) - \Psi^l(x) \big\|_2^2$$
#
# compares not pixels but what a network that recognises things makes of them, layer by layer (VGG in the paper). Why
# not pixels? **Predict first.** Move a portrait by one pixel. Or blur it a little. Which of the two does the mean
# square take for the worse? And you?

# %%
files = sorted(Path("../data_samples/portraits").glob("*.webp"))
portraits = [Image.open(file).convert("RGBa").resize((128, 128)).convert("RGBA") for file in files]
portraits = batch([to_rgb(torch.from_numpy(np.array(image)) / 255) for image in portraits])  # (12, 3, 128, 128)
moved = portraits.roll(1, -1)
soft = gaussian_blur(portraits[:, :, None], torch.full((len(portraits),), 1.2, device=device))[:, :, 0]

# %% tags=["nbval-ignore-output"]
square = {name: (x - portraits).square().mean((1, 2, 3)) for name, x in (("moved", moved), ("blurred", soft))}
seen_by = {name: eyes(x, portraits) for name, x in (("moved", moved), ("blurred", soft))}
some = slice(36, 92)
shown = [x[i, :, some, some].movedim(0, -1).cpu() for i in (1, 6) for x in (portraits, moved, soft)]
photo(show_images(shown, ["portrait", *square] * 2, columns=6))
for name in square:
    print(f"{name:8} mean square {square[name].mean():.4f}, {eyes.name} {seen_by[name].mean():.2f}")

# %% tags=["check"]
assert square["moved"].mean() > 1.5 * square["blurred"].mean(), "to the mean square, moving is far worse"
assert seen_by["blurred"].mean() > 2 * seen_by["moved"].mean(), "to the network, blur is"
worse = {name: float(values["blurred"].mean() / values["moved"].mean()) for name, values in
         (("mean square", square), (eyes.name, seen_by))}  # fmt: skip
print("blurred, times as bad as moved by a pixel:", ", ".join(f"{name} {ratio:.2f}" for name, ratio in worse.items()))

# %% [markdown]
# A loss that counts squares is glad of a blur whenever it is not sure where an edge is. That is why small planes look
# soft, and why an upsampler needs another judge. The judge has weights of its own; its name stands beside every number,
# since distances of two networks do not compare.
#
# It judges a picture, but what shall change are planes. **Predict first.** The patch shows an eye and half a nose.
# Where on the three planes does its gradient arrive?

# %%
from minirodin.render import occupancy_from_planes

asked = enlarged[5:6].clone().requires_grad_()
patch = Patches(*pose, torch.tensor([[40, 30]], device=device), 24)
occupied = occupancy_from_planes(fitted[5:6], decoder, look.render.grid)
with torch.no_grad():
    target = render_patches(fitted[5:6], decoder, patch, occupied, look.render)
result = render_patches(asked, decoder, patch, occupied, look.render)
eyes(result, target).sum().backward()
strength = asked.grad[0].square().sum(1).sqrt().cpu()  # (3, 64, 64)
pictures = [image[0].detach().movedim(0, -1).cpu() for image in (target, result)]
pictures += [1 - (strength / strength.max()).sqrt()[i] for i in range(3)]
names = ["photograph", "enlarged planes", "gradient on uv", "on vw", "on wu"]
photo(show_images(pictures, names, columns=5, width=8))

# %% tags=["check"]
whole_plane = torch.tensor([(g > 0.01 * g.max()).float().mean() for g in strength])
assert (strength.amax((1, 2)) > 0.02 * strength.max()).all(), "all three planes are told"
assert whole_plane.max() < 0.6, "and only where the rays of the patch pass"
print("share of each plane that is reached:", ", ".join(f"{share:.0%}" for share in whole_plane))

# %% [markdown]
# On uv, which lies like the picture, it is the patch itself. On the other two it is where the same rays meet the skin,
# seen from the side and from above. Nothing elsewhere: an upsampler is told of a face by patches of a face.
#
# ## 6 Training
#
# A step is: people, their small planes spoiled (E18), noise on their detail, one call of the network, the squared error
# of the detail (E17), and for some of them a patch rendered and looked at (E19). `upsampler_losses` is just that, and
# `train_upsampler` wraps it into the training loop of the whole project. Here the loop is ten lines. With seven people
# and two minutes, noise levels are all strong (λ < −1): the network has to get the detail from the small planes, which
# is what it is for, and not from what shines through the noise.

# %%
from minirodin.config import TrainConfig
from minirodin.patches import Views
from minirodin.perceptual import PerceptualDistance
from minirodin.training import EMA, learning_rate
from minirodin.upsampler_training import upsampler_losses

clean_conditions = AugmentConfig(smallest=1.0, blur=0.0, noise=0.0)


def learn(settings, steps, begin=None):
    """An upsampler of these settings, trained; from where another one has got."""
    model, schedule = newborn(settings), TrainConfig(steps=steps, lr=4e-3, warmup=10)
    network, generator = model.network.train(), torch.Generator(device).manual_seed(seed)
    if begin is not None:
        network.load_state_dict(begin.network.state_dict())
    seen_by, weight = (model.shared.decoder, model.config.render, Views.around(settings)), settings.perceptual_weight
    looks = PictureLosses(*seen_by, PerceptualDistance(), weight).to(device) if weight else None
    optimiser, average = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99)), EMA(network, 0.95)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = learning_rate(step, schedule)
        who = torch.randint(len(seven), (2,), generator=generator, device=device)
        upsampler_losses(model, network, seven[who], who, looks, generator)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update(step)
    with average.swapped_in():  # keep the averaged weights
        kept = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    network.eval()
    return model


# %%
planes_only = replace(lesson, augment=clean_conditions, perceptual_weight=0.0)
trunk = learn(planes_only, 100)
models = {"planes": learn(planes_only, 40, trunk)}
models["planes + pictures"] = learn(replace(planes_only, perceptual_weight=0.05), 40, trunk)
a_little = AugmentConfig(smallest=0.9, blur=0.25, noise=0.1)
models["planes, spoiled"] = learn(replace(planes_only, augment=a_little), 40, trunk)

# %% [markdown]
# The first 100 steps are shared; the last 40 differ: with the plane loss alone, with pictures too (E19), and with
# conditions spoiled a little (E18). **Predict first.** Who will have the smaller error of planes? Who will be nearer to
# the eye? On clean small planes, and on those of the stand-in?

# %%
goal = batch([picture(planes) for planes in seven])
inputs = {"clean": small, "base-like": base_like}
looks, table = {}, {}
for given_name, planes in inputs.items():
    made = {"enlarged": resize_planes(planes, fine)} | {n: m.upsample(planes, 2) for n, m in models.items()}
    for name, found in made.items():
        looks[given_name, name] = batch([picture(p) for p in found])
        image = looks[given_name, name][:7]
        table[given_name, name] = error(found), float(psnr(image, goal).mean()), float(eyes(image, goal).mean())
print(f"{'':32}{'planes':>9}{'PSNR':>9}{eyes.name:>22}")
for (given_name, name), (of_planes, decibel, distance) in table.items():
    print(f"{given_name:12}{name:20}{of_planes:9.2f}{decibel:9.2f}{distance:22.3f}")

# %%
cut = slice(24, 62)
rows = [*(looks["clean", name] for name in ("enlarged", *models)), batch(wanted)]
rows = [row[:, :, cut, 28:66].movedim(1, -1) for row in rows]
titles = [f"{name}" if i == 0 else "" for name in ("enlarged", *models, "fitted") for i in range(8)]
photo(show_images([image for row in rows for image in row.cpu()], titles, columns=8, width=8))

# %% tags=["check"]
clean = {name: table["clean", name] for name in ("enlarged", *models)}
assert clean["planes"][0] < 0.85 and clean["planes"][1] > clean["enlarged"][1] + 1, "detail that was not there"
assert clean["planes + pictures"][2] < clean["planes"][2] < clean["enlarged"][2], "pictures teach what the eye misses"
assert clean["planes"][0] < clean["planes + pictures"][0], "and cost squares"
gap = {name: 1 - clean[name][2] / clean["enlarged"][2] for name in models}
print("nearer to the eye than enlarged:", ", ".join(f"{name} {share:.0%}" for name, share in gap.items()))

# %% [markdown]
# The last column is the eighth person, who was in no lesson. With pictures the planes are a little further from the
# fitted ones and the renders a little nearer to the eye: they know which errors are seen. At real size that is what
# E19 is for; here it is a few per cent. And the stand-in's planes? Those whose lessons were clean make them a little
# better, those whose lessons were spoiled do not, and leave clean ones softer than they got them. That is not what
# section 3's rule did. 140 steps on seven people do not suffice to learn from spoiled conditions what clean ones tell
# at once; E18 needs people enough, and time. It is measured at real size (section 8).
#
# ## 7 How many steps
#
# The paper samples its base model in many steps, the upsampler in few. **Predict first.** One step, three, ten, thirty:
# who has the smallest error of planes, and whose detail is as strong as real detail?

# %%
counts, chosen = (1, 2, 3, 5, 10, 30), models["planes"]
by_steps = {n: chosen.upsample(small[:7], n) for n in counts}
errors_by = [error(planes) for planes in by_steps.values()]
energy_by = [
    float(detail_space.standardise(planes - enlarged[:7]).square().mean() / detail.square().mean())
    for planes in by_steps.values()
]
curves = {"squared error": (counts, errors_by), "energy of the detail": (counts, energy_by)}
figure = show_curves(curves, "steps", "share of the true detail's", width=5.5)
figure.axes[0].set_xscale("log")
figure

# %%
shown = [picture(planes[3])[cut, 28:66] for planes in (enlarged, *by_steps.values(), fitted)]
photo(show_images(shown, ["none", *[f"{n} steps" for n in counts], "fitted"], columns=8, width=8))

# %% tags=["check"]
assert errors_by[0] <= min(errors_by) + 0.02, "one step is the mean of all that it could be"
assert energy_by[0] < energy_by[-1], "more steps decide"
print("error:", *(f"{e:.2f}" for e in errors_by), " energy:", *(f"{e:.2f}" for e in energy_by), " steps:", *counts)

# %% [markdown]
# One step returns the mean of all detail that would fit: least error, least detail. Every further step decides
# something, and what is decided wrongly counts twice. A well-trained upsampler knows most from its condition, so that
# the curves are flat and ten steps (the default) are plenty; the base model, which has to decide on a whole person,
# needs more.
#
# ## 8 The real sizes
#
# | | the paper | `full` | `small` | here |
# | --- | --- | --- | --- | --- |
# | planes | 64² → 256² | 64² → 256² × 32 | 64² → 256² × 16 | 32² → 64² × 16 |
# | patches | 112² of 256² | 112² of 256² | 112² of 256² | 42² of 96² |
# | judge | VGG | LPIPS (VGG), or EfficientNet-Lite0 | the same | EfficientNet-Lite0, or LPIPS |
#
# ```sh
# minirodin fit runs/people --preset small --out runs/fitted              # planes of 256²: chapter 01
# minirodin sample runs/base --count 64 --out runs/samples                # the base model's people: chapter 02
# minirodin tune runs/samples --data runs/fitted --out runs/tuned         # how strongly to spoil (E18)
# minirodin train upsampler --data runs/fitted --captures runs/people --augmentation runs/tuned/augmentation.json \
#     --preset small --out runs/upsampler
# minirodin upsample runs/samples --model runs/upsampler --out runs/sharper
# ```
#
# All of that, and what comes of it, is `tools/measure_upsampler.sh`. One such upsampler is in the box: 512 people, nine
# minutes on two GPUs. What was measured on 64 strangers, and on the base model's people:

# %%
for file in sorted(Path("../results").glob("bench_upsampler*.json")):
    row = json.loads(file.read_text())
    print(f"{row['device']}: {row['seconds_an_avatar']:.1f} s for an avatar's planes of 256², {row['steps']} steps")
results = (Path(f"../results/upsampler_{name}.json") for name in ("clean", "generated"))
strangers, generated = (json.loads(file.read_text()) for file in results)
for name, row in strangers["mean"].items():
    print(f"{name:13}", ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
by = {name: row["frechet"] for name, row in {**generated["samples"], "real": generated["real"]}.items()}
print("Fréchet distance:", ", ".join(f"{name} {value:.1f}" for name, value in by.items()))

# %% [markdown]
# The person of section 1 is a stranger to it. And section 3's worry, planes as the base model makes them: the models of
# the box see a portrait (chapter 03), and what comes out goes through the upsampler. **Predict first.** Will the eyes
# come back?

# %%
from minirodin import RodinPipeline

pipe = RodinPipeline.from_pretrained("../data_samples/pretrained/small").to(device)
sharper = pipe.upsampler.upsample(reduced[None].to(device))[0]
sitter = pipe(image=Image.open(files[3]), seed=seed, num_inference_steps=15, upsample=False)
detailed = pipe.upsampler.avatar(sitter).planes

# %%
own = {"64², enlarged": sizes["64², enlarged"], "upsampled": sharper, "fitted, 256²": large}
theirs = {"the base model's": resize_planes(sitter.planes, 256), "upsampled": detailed}
shown = [picture(planes, 10, 256, closer) for planes in (*own.values(), *theirs.values())]
photo(show_images([*shown, *(image[face] for image in shown)], [*own, *theirs, *[""] * 5], columns=5, width=12.5))

# %% tags=["check"]
truth, made = batch([shown[2]] * 2), batch(shown[:2])
far, near = (float(value) for value in eyes(made, truth))
one, two = (batch([picture(p, 10, 256, closer)]) for p in (sharper, pipe.upsampler.upsample(reduced[None], 2)[0]))
same = float(psnr(one, two))
assert near < 0.85 * far and same > 36, (near, far, same)
mean = {name: row[strangers["perceptual"]] for name, row in strangers["mean"].items()}
closed = (mean["interpolated"] - mean["spoiled"]) / (mean["interpolated"] - mean["fitted"])
assert closed > 0.6 and by["spoiled"] < by["interpolated"]
weights = sum(p.numel() for p in pipe.upsampler.network.parameters())
assert 5e6 < weights < 8e6
print(f"the upsampler of `small` has {weights / 1e6:.1f} million weights")
print(f"{eyes.name}: {far:.3f} → {near:.3f}; of 64 strangers' gap {closed:.0%}; one step and two: {same:.0f} dB")

# %% [markdown]
# Wool, rims and strands come back, eyes hardly: small planes did not keep them. A network that has to guess them
# guesses the mean of all eyes, a blur; and where it is sure of a texture but not of its place, in curly hair, it draws
# a regular pattern. PSNR even falls by half a decibel: what is guessed is not always right.
#
# It is sampled **to λ = −4, in one step**, and that is no economy. Sampled to the end (λ = 6, ten steps), the networks
# that were trained first decided detail where nothing told them, ragged lips and brows, and were worse than
# interpolation by a decibel (`results/runs.md`). Where nearly all of $y_t$ is noise, only the condition speaks, section
# 7's first step is the whole answer, and one call and two look alike. A condition that leaves more open, or a longer
# training, may want more: `--upsampler.diffusion.log-snr-stop 6`, `minirodin upsample --steps 10`.

# %% [markdown]
# ## What the paper does, what we do
#
# | the paper | here |
# | --- | --- |
# | diffusion over the large planes, ŷ₀ predicted | over what the enlarged small ones lack, ŷ₀ predicted all the same |
# | small planes as a condition, resized and concatenated | the same, in the base model's space |
# | 3D-aware convolution in every residual block | the same |
# | random downsampling, blur, noise, tuned to the base model | the same, by `minirodin tune`; the noise is told |
# | VGG features of rendered patches of 112² | the same; EfficientNet-Lite0 where VGG's weights cannot be had |
# | patches by an importance map of the face | a Gaussian around the face's place, on a floor |
# | schedule not published; "stronger noise" helps larger planes (RodinHD) | cosine, shifted by −8; ends at λ = −4 |
#
# ## Exercises
#
# ### Exercise 1 · patches or small pictures?
#
# A view of 112² costs as much as a patch of 112². Why not render whole views, small? Measure the distance between
# planes of 256² and 64² (section 1's renders) both ways.

# %% tags=["check"]
pair = [batch([views[name]]) for name in ("256²", "64²")]
whole_views = [F.interpolate(image, (112, 112), mode="bilinear", antialias=True) for image in pair]
cut_out = [image[..., 60:172, 60:172] for image in pair]
shrunk, patched = (float(eyes(*pictures)) for pictures in (whole_views, cut_out))
assert patched > 1.5 * shrunk, (patched, shrunk)
print(f"{eyes.name}: whole view made small {shrunk:.3f}, patch of the face {patched:.3f}")

# %% [markdown]
# *Solution*: shrinking the picture removes just what the upsampler is there to add. The patch shows it at full size.
#
# ### Exercise 2 · other people's heads
#
# The map knows where heads are in this project's world. Captures of your own may lie elsewhere: `face=(0, 0, 0)` and
# `face_radius=1` is a prior on the middle. How much likelier is the likeliest place than the least likely, for both?

# %% tags=["check"]
anywhere = replace(real_upsampler, face=(0.0, 0.0, 0.0), face_radius=1.0)
contrast = []
for settings in (real_upsampler, anywhere):
    chance = importance(matrix[:1], intrinsics[:1], 256, settings)
    contrast.append(float(chance.max() / chance.min()))
assert contrast[1] < 0.6 * contrast[0], contrast
print("likeliest over least likely place:", ", ".join(f"{c:.1f}" for c in contrast))

# %% [markdown]
# *Solution*: above. For patches of the face (1 + elsewhere) / elsewhere is the most there can be.
#
# ### Exercise 3 · who decides?
#
# The condition leaves some of the detail open, and noise decides it. Upsample the same people from two seeds: how much
# do their planes differ, with one step and with thirty?

# %% tags=["check"]
differences = {}
for n in (1, 30):
    one, other = (chosen.upsample(small[:2], n, seed=number) for number in (1, 1001))
    differences[n] = float(detail_space.standardise(one - other).square().mean() / detail.square().mean())
assert 2 * differences[1] < differences[30], differences
print("of the detail's energy, two seeds differ by", ", ".join(f"{d:.1%} in {n} steps" for n, d in differences.items()))

# %% [markdown]
# *Solution*: one step averages over all that noise could have decided, thirty decide. Where two seeds agree, the
# condition has the say.
