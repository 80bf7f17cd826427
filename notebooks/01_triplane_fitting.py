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
# # 01 · Tri-plane fitting: from pictures to three planes
#
# A diffusion model makes images. A person in 3D is a volume, and a grid of voxels is too large for one. Rodin's answer
# is to store a person as **three square images of features**. This chapter builds that representation from its
# equations, fits it to the people of chapter 00, and makes it fit for generation: planes that all speak to *one*
# decoder, bear some noise, and render at *several* sizes.
#
# *Paper*: section "Robust 3D Representation Fitting" (equations E1–E5 of the README's table, Fig. 3). *Code*:
# `triplane.py`, `decoder.py`, `render.py`, `observations.py`, `fitting.py`.
#
# | preset | what is fitted live | time | memory |
# | --- | --- | --- | --- |
# | `smoke` | 4 people + 1, planes of 64² × 8 channels | 110 s of CPU time, shared by two cores | 0.9 GB |
# | `small` | 7 people + 1, planes of 256² × 16 channels | about ten minutes on one GPU (an estimate) | under 16 GB |
# | `full` | 7 people + 1, planes of 256² × 32 channels | hours on one GPU (an estimate) | not measured |
#
# 1 query · 2 decoder · 3 rendering · 4 fitting · 5 regularisers · 6 one domain for all · 7 what planes look like

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
from torch import nn

from minirodin import Avatar, fit_subjects, load_capture, preset
from minirodin.plots import PALETTE, STYLE, photo, show_curves, show_images

# %% tags=["parameters"]
preset_name = os.environ.get("MINIRODIN_PRESET", "smoke")
seed = 0

# %%
config = preset(preset_name)
config = replace(config, fit=replace(config.fit, seed=seed))
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(seed)
plt.rcParams.update(STYLE)

# %% [markdown]
# ## 1 The query (E1)
#
# A point casts a shadow on each of three planes. What is written there is looked up bilinearly, and **summed**:
#
# $$y_p = y_{uv}(p_{uv}) + y_{vw}(p_{vw}) + y_{wu}(p_{wu}), \qquad (u, v, w) = (x, y, z).$$
#
# Planes are tensors `(B, 3, C, R, R)` in the order uv, vw, wu; columns are the first letter, rows the second. Texel
# values sit at texel centres.

# %%
from minirodin.triplane import PLANE_NAMES, project, sample_planes

planes = torch.randn(1, 3, 4, 8, 8)
point = torch.tensor([0.50, -0.20, 0.30])
shadows = project(point)  # (3, 2): column and row on each plane
print("\n".join(f"{name}: column {c:5.2f}, row {r:5.2f}" for name, (c, r) in zip(PLANE_NAMES, shadows, strict=True)))

# %%
figure = plt.figure(figsize=(9, 2.6))
cube = figure.add_subplot(1, 4, 1, projection="3d", box_aspect=(1, 1, 1))
a, b = np.meshgrid([-1, 1], [-1, 1])
flat = -np.ones_like(a)
# matplotlib's third axis points up: draw (x, z, y).
for surface, colour in zip([(a, -flat, b), (flat, a, b), (a, b, flat)], PALETTE, strict=False):
    cube.plot_surface(*surface, color=colour, alpha=0.25)
x, y, z = point.tolist()
for foot, colour in zip([(x, 1, y), (-1, z, y), (x, z, -1)], PALETTE, strict=False):
    cube.plot(*zip((x, z, y), foot, strict=True), color=colour, ls=":")
    cube.scatter(*foot, color=colour, s=25)
cube.scatter(x, z, y, color="black", s=30)
cube.set(xlabel="x", ylabel="z", zlabel="y", xticks=[], yticks=[], zticks=[])
for i in range(3):
    axis = figure.add_subplot(1, 4, i + 2)
    axis.imshow(planes[0, i, 0], origin="lower", extent=(-1, 1, -1, 1), cmap="Greys", alpha=0.6)
    axis.scatter(*shadows[i], color=PALETTE[i], s=60, edgecolor="white", zorder=3)
    axis.set(title=PLANE_NAMES[i], xlabel="xyz"[i], ylabel="xyz"[(i + 1) % 3], xticks=[-1, 1], yticks=[-1, 1])
    axis.grid(False)


# %% [markdown]
# By hand: four texels around the shadow, weighted by how near they are.


# %%
def look_up(plane, column, row):
    """Bilinear look-up inside a plane (C, R, R); column and row in [−1, 1]."""
    size = plane.shape[-1]
    x, y = (column + 1) * size / 2 - 0.5, (row + 1) * size / 2 - 0.5  # in texels, 0 = centre of the first
    i, j = int(x), int(y)
    a, b = x - i, y - j
    below = (1 - a) * plane[:, j, i] + a * plane[:, j, i + 1]
    above = (1 - a) * plane[:, j + 1, i] + a * plane[:, j + 1, i + 1]
    return (1 - b) * below + b * above


x, y, z = point
uv, vw, wu = planes[0]
by_hand = look_up(uv, x, y) + look_up(vw, y, z) + look_up(wu, z, x)
by_hand

# %% tags=["check"]
by_library = sample_planes(planes, point.view(1, 1, 3))[0, 0]
assert torch.allclose(by_hand, by_library, atol=1e-5)
assert by_hand.abs().max() > 0.1
print(f"by hand and by sample_planes: equal within {float((by_hand - by_library).abs().max()):.0e}")

# %% [markdown]
# **Predict first.** Move the point along y and hold x and z. Which planes' look-ups change, and which does not?

# %%
path = point.repeat(200, 1)
path[:, 1] = torch.linspace(-1, 1, 200)


def alone(plane):
    """What one plane adds along the path, (200, C)."""
    only = torch.zeros_like(planes)
    only[:, plane] = planes[:, plane]
    return sample_planes(only, path[None])[0]


parts = [alone(k) for k in range(3)]
curves = {name: (path[:, 1].numpy(), part[:, 0]) for name, part in zip(PLANE_NAMES, parts, strict=True)}
show_curves(curves, "y", "first channel of the look-up", "moving along y at fixed x and z", width=6)

# %% tags=["check"]
spread = [float(part.std(0).mean()) for part in parts]
assert spread[2] < 1e-6 < 0.1 < min(spread[:2]), spread
assert torch.allclose(sum(parts), sample_planes(planes, path[None])[0], atol=1e-5)
print("wu does not know y: it is the plane of z and x. uv and vw both do")

# %% [markdown]
# ### Why all three planes
#
# A function of y and z that is no sum f(y) + g(z) can only live on vw. With a *linear* decoder (here: the feature is
# the value) that is plain to see. An MLP behind it can hide a missing or doubled plane, which is how one well-known
# implementation came to have XY, XZ and ZX, and no YZ.


# %%
def learn(target, used, steps=250):
    """Planes (1, 3, 1, 32, 32), only those in `used`, whose summed look-up imitates `target(points)`."""
    planes = torch.zeros(1, 3, 1, 32, 32, requires_grad=True)
    mask = torch.tensor([name in used for name in PLANE_NAMES]).view(3, 1, 1, 1)
    optimiser = torch.optim.Adam([planes], lr=0.05)
    for _ in range(steps):
        points = torch.rand(1, 4096, 3) * 2 - 1
        loss = (sample_planes(planes * mask, points)[0, :, 0] - target(points[0])).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return (planes * mask).detach()


# %%
def product(p):
    return torch.sin(2 * math.pi * p[:, 1] * p[:, 2])


axis = torch.linspace(-1, 1, 65)
slice_ = torch.stack(torch.meshgrid(torch.zeros(1), axis, axis, indexing="ij"), -1).view(1, -1, 3)  # x = 0
truth = product(slice_[0]).view(65, 65)
learned = {used: learn(product, used) for used in (("uv", "vw", "wu"), ("uv", "wu"))}
pictures = [truth, *(sample_planes(p, slice_)[0, :, 0].view(65, 65) for p in learned.values())]

# %%
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.7))
for axis, picture, title in zip(axes, pictures, ("sin(2πyz)", "three planes", "without vw"), strict=True):
    axis.imshow(picture.T, origin="lower", extent=(-1, 1, -1, 1), cmap="RdBu", vmin=-1, vmax=1)
    axis.set(title=title, xlabel="y", ylabel="z", xticks=[-1, 1], yticks=[-1, 1])
    axis.grid(False)

# %% tags=["check"]
explained = [1 - float((picture - truth).var() / truth.var()) for picture in pictures[1:]]
assert explained[0] > 0.95 and abs(explained[1]) < 0.1, explained
print(f"variance explained: {explained[0]:.1%} with three planes, {explained[1]:.1%} without vw")

# %% [markdown]
# ## 2 The decoder (E2)
#
# A light MLP turns the feature into matter: $c(p, d),\ \sigma(p) = G_\theta(y_p,\ \xi(y_p),\ d)$. Density
# σ ≥ 0 depends on the feature alone; colour also sees the direction $d$. The Fourier embedding ξ is applied to the
# **features, not to the coordinates**: the decoder does not know where it is, so all shape must live in the planes.

# %%
from minirodin.decoder import TriplaneDecoder, fourier_features

decoder = TriplaneDecoder(config.triplane.channels, config.decoder)
print(f"{sum(p.numel() for p in decoder.parameters()):,} weights for any number of people;", end=" ")
print(f"{3 * config.triplane.channels * config.triplane.resolution**2:,} numbers in the planes of each")

# %% [markdown]
# Why embed features? A plane is smooth, but surfaces and hairlines are sharp. ξ lets a small change of a feature make a
# sharp change of the output. Below, one feature runs from −1 to 1, and a tiny MLP must cut it into stripes.


# %%
def stripes(frequencies, steps=400):
    """What an MLP of 16 units learns from one feature and its embedding, (400,)."""
    torch.manual_seed(seed)
    x = torch.linspace(-1, 1, 400)[:, None]
    seen = torch.cat([x, fourier_features(x, frequencies)], 1)
    mlp = nn.Sequential(nn.Linear(seen.shape[1], 16), nn.ReLU(), nn.Linear(16, 1))
    optimiser = torch.optim.Adam(mlp.parameters(), 1e-2)
    for _ in range(steps):
        loss = (mlp(seen) - torch.sin(3 * math.pi * x).sign()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return mlp(seen).detach()[:, 0], loss.item()


feature = torch.linspace(-1, 1, 400)
without, with_2, with_4 = (stripes(n) for n in (0, 2, 4))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6))
left.plot(feature, fourier_features(feature[:, None], 2))
left.set(title="ξ of one feature, two octaves", xlabel="feature")
right.plot(feature, torch.sin(3 * math.pi * feature).sign(), color="#bbbbbb", label="wanted")
for (curve, loss), label in zip((without, with_2, with_4), ("without ξ", "2 octaves", "4 octaves"), strict=True):
    right.plot(feature, curve, label=f"{label}: error {loss:.2f}")
right.set(title="stripes from one feature", xlabel="feature")
right.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% tags=["check"]
assert without[1] > with_2[1] > with_4[1] and without[1] > 1.5 * with_2[1], (without[1], with_2[1], with_4[1])
print(f"{config.decoder.feature_frequencies} octaves is what the preset uses: more would make planes hard to imitate,")
print("since every error of a generated plane passes through the same magnifying glass")

# %% [markdown]
# **Predict first.** Walk around a point and look at it. What of σ, red, green and blue may change?

# %%
angle = torch.linspace(0, 2 * math.pi, 181)
around = torch.stack([angle.sin(), torch.zeros(181), angle.cos()], 1)
with torch.no_grad():
    sigma, rgb = decoder(torch.randn(config.triplane.channels).expand(181, -1), around)
degrees = angle.rad2deg().numpy()
lines = {name: (degrees, rgb[:, i]) for i, name in enumerate(("red", "green", "blue"))}
show_curves(lines | {"σ ÷ σ at the start": (degrees, sigma / sigma[0])}, "degrees around the point", "", width=6)

# %% tags=["check"]
assert sigma.std() < 1e-5 * sigma.mean() and rgb.std(0).min() > 1e-4, (sigma.std(), rgb.std(0))
assert (sigma >= 0).all() and rgb.min() >= 0 and rgb.max() <= 1
fog = torch.randn(1, 3, config.triplane.channels, 1, 1).expand(-1, -1, -1, 8, 8)  # the same feature everywhere
with torch.no_grad():
    everywhere = decoder.density(sample_planes(fog, torch.rand(1, 500, 3) * 2 - 1))
assert everywhere.std() < 1e-4 * everywhere.mean()
print("geometry is the same from everywhere; and equal features give equal matter, wherever they are")

# %% [markdown]
# ## 3 One ray by hand (E3)
#
# Along a ray, a slice of length δ and density σ absorbs $1 - e^{-\sigma\delta}$ of the light that reaches it, and what
# is absorbed shows that slice's colour. Its weight is light left × share absorbed. Here is a ray through a spectacle
# lens (thin, light) onto skin (dense).

# %%
t = torch.linspace(0, 2, 201)[:-1]
delta = 0.01
sigma = torch.zeros(200)
sigma[(t > 0.6) & (t < 0.7)] = 4.0  # lens
sigma[t > 1.2] = 12.0  # skin

light, weights, left_over = 1.0, [], []
for s in sigma.tolist():
    left_over.append(light)
    absorbed = 1 - math.exp(-s * delta)
    weights.append(light * absorbed)
    light = light * (1 - absorbed)

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.3))
labels = ("density σ", "transmittance T: light left", "weights w: what the pixel shows")
for axis, values, name, colour in zip(axes, (sigma, left_over, weights), labels, PALETTE, strict=False):
    axis.fill_between(t, values, color=colour, alpha=0.25, lw=0)
    axis.plot(t, values, color=colour)
    axis.set(title=name, xlabel="distance along the ray", ylim=(0, None))

# %% tags=["check"]
from minirodin.render import composite, distortion_loss

by_library = composite(sigma, torch.tensor([delta]))
assert torch.allclose(by_library, torch.tensor(weights), atol=1e-6)
assert abs(sum(weights) + light - 1) < 1e-6  # light is either absorbed or passes
lens = float(by_library[t < 1].sum())
assert abs(lens - (1 - math.exp(-4.0 * int(((t > 0.6) & (t < 0.7)).sum()) * delta))) < 1e-6
print(f"the lens keeps {lens:.1%} for itself: 1 − exp(−σ·thickness), whatever the number of slices")

# %% [markdown]
# **Predict first.** Twice as many slices, the field unchanged: what happens to the weights, what to the pixel?

# %%
fine = composite(sigma.repeat_interleave(2), torch.tensor([delta / 2]))
print(f"highest weight {max(weights):.4f} → {fine.max():.4f}; opacity {sum(weights):.6f} → {fine.sum():.6f}")

# %% [markdown]
# ### Samples where something is
#
# Most of a ray is empty. A coarse grid of *occupied* cells tells where matter can be, and where the ray has become
# opaque; all samples are spent in between. Seen from above: a soft ball, rays from a camera, 12 samples each.

# %%
from minirodin.render import Occupancy, cell_centres, ray_samples


def ball(points):
    return 40 * torch.sigmoid(60 * (0.4 - points.norm(dim=-1)))


distance = cell_centres(32, "cpu").norm(dim=-1).view(1, 32, 32, 32)
guide = Occupancy(density=40.0 * (distance < 0.35), occupied=distance < 0.5)
uniform = Occupancy.full(1, 32, "cpu")
origins = torch.tensor([0, 0, 3.5]).expand(1, 25, 3)
targets = torch.stack([torch.linspace(-0.38, 0.38, 25), torch.zeros(25), torch.zeros(25)], 1)
directions = F.normalize(targets - origins, dim=-1)


# %%
def depth(occupancy, samples):
    """Where each ray sees the surface, and the points that were looked at."""
    t, delta = ray_samples(origins, directions, occupancy, 128, samples)
    points = origins[..., None, :] + directions[..., None, :] * t[..., None]  # (1, 25, K, 3)
    weights = composite(ball(points), delta)
    return (weights * t).sum(-1)[0] / weights.sum(-1)[0], points[0]


exact, _ = depth(uniform, 4000)
figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
misses = []
for axis, occupancy, name in zip(axes, (uniform, guide), ("uniform", "guided"), strict=True):
    seen, points = depth(occupancy, 12)
    misses.append(float((seen - exact).abs().mean()))
    axis.add_patch(plt.Circle((0, 0), 0.4, color="#dddddd"))
    axis.scatter(points[..., 0], points[..., 2], s=4, color=PALETTE[0])
    axis.set(title=f"{name}: depth off by {misses[-1]:.3f}", xlabel="x", xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
axes[0].set(ylabel="z (camera above)")
plt.show()

# %% tags=["check"]
assert misses[1] < 0.3 * misses[0] and misses[1] < 0.01, misses
print(f"12 guided samples find the surface {misses[0] / misses[1]:.0f} times as well as 12 uniform ones")

# %% [markdown]
# ## 4 Fitting people
#
# Stage one (E5a): **one decoder and the planes of several people, learned together** from random rays, by the squared
# error of colours over random backgrounds. `Observations` holds pixels and visual hulls on the device.

# %%
from minirodin.cameras import find_captures
from minirodin.observations import Observations

people = [load_capture(folder) for folder in find_captures("../data_samples/people")]
*crowd, stranger, newcomer = [*people[:5], people[6], people[5], people[7]]
crowd = crowd[: config.data.subjects]
names = [person.name for person in crowd]
observations = Observations(crowd, config.render.grid, device)
print(f"{len(crowd)} people; their hulls fill {observations.hull.float().mean():.0%} of the box")

# %% [markdown]
# The whole of stage one. `advance` draws rays and a plane size, renders, adds the regularisers of section 5, and
# steps planes and decoder. Planes start from zeros; nothing random is left where no ray looks.

# %%
from minirodin.fitting import Fitter
from minirodin.progress import progress

decoder = TriplaneDecoder(config.triplane.channels, config.decoder).to(device)
fitter = Fitter(names, observations, config, decoder, learn_decoder=True)
errors = [fitter.advance() for _ in progress(range(fitter.total_steps), desc="stage one", unit="step")]

# %%
curve = -10 * torch.stack(errors).log10().cpu()
window = max(1, len(curve) // 40)
smooth = F.avg_pool1d(curve[None], window)[0]
steps = (np.arange(len(smooth)) + 0.5) * window
show_curves({"": (steps, smooth)}, "step", "PSNR of random rays (dB)", "stage one", width=6)

# %% [markdown]
# What counts more than this curve is how well views are predicted **that were not fitted**. `SharedDecoder` keeps what
# stage two needs: the frozen decoder, the mean of the planes (where everybody starts), and their statistics.

# %%
from minirodin.shards import SharedDecoder
from minirodin.triplane import plane_statistics, resize_planes

planes = fitter.planes()  # name → (3, C, R, R)
base = torch.stack([resize_planes(p, config.triplane.base_resolution).cpu() for p in planes.values()])
shared = SharedDecoder(decoder.cpu(), config, base.mean(0), *plane_statistics(base))
avatars = [Avatar(planes[name].cpu(), shared.decoder, config) for name in names]

# %%
from minirodin.metrics import psnr
from minirodin.pipeline import to_rgb

pixels = min(256, 2 * config.triplane.resolution)  # of pictures in this chapter


def photographs(person, views):
    """The true pictures over white at `pixels`², (V, H, W, 3)."""
    rgb = to_rgb(torch.from_numpy(person.images[views]).float() / 255)
    return F.adaptive_avg_pool2d(rgb.movedim(-1, 1), pixels).movedim(1, -1)


def pictures_of(avatar, person, views, resolution=None):
    """Renders from the same cameras over white; `resolution` of the planes (E5c)."""
    return to_rgb(avatar.to(device).views(person.cameras[views].resized(pixels, pixels), resolution).cpu())


def quality(avatar, person, resolution=None):
    """PSNR in dB over the held-out views."""
    views = person.held_out()[1]
    return float(psnr(pictures_of(avatar, person, views, resolution), photographs(person, views)).mean())


# %%
rows = []
for avatar, person in zip(avatars, crowd, strict=True):
    views = [0, person.held_out()[1][1]]
    true, drawn = photographs(person, views), pictures_of(avatar, person, views)
    rows += [true[0], drawn[0], true[1], drawn[1]]
titles = ["front, fitted", "render", "held out", "render"] * len(crowd)
photo(show_images(rows, titles, columns=8))

# %% tags=["check"]
scores = [quality(avatar, person) for avatar, person in zip(avatars, crowd, strict=True)]
guess = np.mean([float(psnr(torch.ones(1, pixels, pixels, 3), photographs(p, [4])).mean()) for p in crowd])
assert smooth[-1] > smooth[0] + 6 and np.mean(scores) > 23 and min(scores) > guess + 8, (scores, guess)
print("held-out PSNR:", ", ".join(f"{s:.1f}" for s in scores), f"dB; an all-white picture has {guess:.1f}")

# %% [markdown]
# ### Stage two: a further person, the decoder frozen
#
# From now on the decoder is a fixed language, and any number of people can be fitted independently, on any number of
# machines. `fit_subjects` is all of this in one call, with checkpoints.

# %%
from minirodin.shards import fingerprint

scratch = Path(tempfile.mkdtemp())
before = fingerprint(shared.decoder)


def fit(person, name, settings=config, decoder=None):
    """Fit one person into a scratch folder and return the avatar; learns a private decoder when none is given."""
    fit_subjects([person], settings, scratch / name, decoder, device, show_progress=False)
    return Avatar.load(scratch / name / person.name)


visitor = fit(stranger, "visitor", decoder=shared)
views = [0, *stranger.held_out()[1]]
both = [*photographs(stranger, views), *pictures_of(visitor, stranger, views)]
titles = ["front", *["held out"] * (len(views) - 1)]
photo(show_images(both, titles, columns=len(views), width=7.5, title=f"{stranger.name}: photographs, then renders"))

# %% tags=["check"]
score = quality(visitor, stranger)
assert fingerprint(shared.decoder) == fingerprint(visitor.decoder) == before and score > 20, score
print(f"{score:.1f} dB with a decoder that never saw this person, after {config.fit.steps} steps")

# %% [markdown]
# The shape is there, the colours are not: **a frozen decoder can only say what it learned to say**, and a crowd this
# small had no words for such a shirt. In the box is a decoder that was learned from 256 people. The same person, as
# many steps, under that one (not everybody gains in so few steps: try `people[6]`, whose blacks take longer):

# %%
pretrained = SharedDecoder.load("../data_samples/pretrained/small/decoder.safetensors")
channels = replace(config.triplane, channels=pretrained.config.triplane.channels)
fluent = fit(stranger, "fluent", replace(config, triplane=channels, decoder=pretrained.config.decoder), pretrained)
trio = [photographs(stranger, [0]), pictures_of(visitor, stranger, [0]), pictures_of(fluent, stranger, [0])]
titles = ["photograph", f"decoder of {len(crowd)} people", "decoder of 256 people"]
photo(show_images([picture[0] for picture in trio], titles, width=6))

# %% tags=["check"]
learned_from_many = quality(fluent, stranger)
assert learned_from_many > score + 1, (learned_from_many, score)
print(f"{score:.1f} dB with the decoder of {len(crowd)}, {learned_from_many:.1f} dB with that of 256")

# %% [markdown]
# The samples of section 3, now on a person: the same planes, the same number of samples a ray, placed blindly or where
# something is.

# %%
from minirodin.render import render_views

front = newcomer.cameras[0].resized(pixels, pixels)
few = config.render.samples
blind = Occupancy.full(1, config.render.grid, "cpu")
guided = fluent.occupancy()
many = render_views(fluent.planes, fluent.decoder, front, guided, 256, 128)
drawn = [render_views(fluent.planes, fluent.decoder, front, o, config.render.bins, few) for o in (blind, guided)]
loss = [float(psnr(to_rgb(d), to_rgb(many))) for d in drawn]
titles = [f"{few} blind: {loss[0]:.1f} dB", f"{few} guided: {loss[1]:.1f} dB", "128 guided"]
photo(show_images([*drawn[0], *drawn[1], *many], titles, width=6, title="the same planes, rendered with few samples"))

# %% tags=["check"]
assert loss[1] > loss[0] + 6, loss

# %% [markdown]
# ## 5 Regularisers (E4)
#
# Squared error says nothing about what no ray sees, and little about *how* a picture comes about. Each term below
# takes one freedom away. To see what it does, one person is fitted with a private decoder and **one term changed at a
# time**.

# %%
terms = {
    "all on": {},
    "no smoothness": {"total_variation": 0.0},
    "free space left alone": {"free_space": 0.0, "sparsity": 0.0},
    "distortion ×100": {"distortion": 100 * config.fit.distortion},
}


def changed(**values):
    """The settings with some of `fit` changed; one person needs no more than twice the steps of stage two."""
    return replace(config, fit=replace(config.fit, **{"shared_steps": 2 * config.fit.steps, **values}))


variants = {name: fit(newcomer, name, changed(**values)) for name, values in terms.items()}
scores = {name: quality(avatar, newcomer) for name, avatar in variants.items()}
print("\n".join(f"{name:22} {score:5.2f} dB" for name, score in scores.items()))

# %% [markdown]
# Held-out PSNR tells little of it, and it is not what these terms are for: a diffusion model must *imitate* the planes,
# and the next figures show what it would have to imitate.
#
# **Smoothness** (total variation of the planes): the same picture from calmer planes.

# %%
from minirodin.plots import planes_to_rgb
from minirodin.triplane import total_variation

rough, calm = variants["no smoothness"], variants["all on"]
pca = [p for avatar in (rough, calm) for p in planes_to_rgb(avatar.planes)]
titles = [f"{name}, {which}" for which in ("no smoothness", "all on") for name in PLANE_NAMES]
photo(show_images(pca, titles, title="principal components of the features"))

# %% tags=["check"]
tv = [float(total_variation(avatar.planes)) for avatar in (rough, calm)]
cost = scores["no smoothness"] - scores["all on"]
assert tv[0] > 2 * tv[1] and cost < 1, (tv, cost)
print(f"total variation {tv[0] / tv[1]:.1f} times lower, for {cost:.2f} dB")

# %% [markdown]
# **Free space.** Rays are drawn and samples placed inside the hull, so what lies outside is nobody's business, unless
# random points there are told to be empty. A generated plane has no hull to hide behind. Density in a horizontal cut
# at eye height, on a logarithmic scale:

# %%
grid = 96
axis = (torch.arange(grid) + 0.5) / grid * 2 - 1
cut = torch.stack(torch.meshgrid(torch.tensor([0.25]), axis, axis, indexing="ij"), -1)[..., [2, 0, 1]]  # x, y, z


@torch.no_grad()
def density(avatar, points):
    return avatar.decoder.density(sample_planes(avatar.planes[None], points.view(1, -1, 3)))[0]


figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.1))
for axis, name in zip(axes, ("free space left alone", "all on"), strict=True):
    image = axis.imshow(
        density(variants[name], cut).view(grid, grid).clamp(min=1e-5).log10(),
        **{"origin": "lower", "extent": (-1, 1, -1, 1), "vmin": -5, "vmax": 2, "cmap": "magma"},
    )
    axis.set(title=name, xlabel="x", ylabel="z (front is up)")
    axis.grid(False)
figure.colorbar(image, ax=axes, label="log₁₀ σ")
plt.show()

# %% tags=["check"]
hull = Observations([newcomer], config.render.grid, "cpu").hull[0].flatten()
outside = cell_centres(config.render.grid, "cpu")[~hull]
haze = [float(density(variants[name], outside).mean()) for name in ("free space left alone", "all on")]
assert haze[0] > 10 * haze[1] and haze[1] < 1e-2, haze
print(f"mean density outside the hull: {haze[0]:.4f} left alone, {haze[1]:.4f} supervised")

# %% [markdown]
# **Distortion** (Mip-NeRF 360): $\sum_{ij} w_i w_j |t_i - t_j| + \frac13 \sum_i w_i^2 \delta_i$ is small when the
# weights of a ray stand close together: one surface instead of a cloud. First the double sum against the library's
# linear-time form, on the ray of section 3, whose lens makes it expensive:

# %%
w = torch.tensor(weights)
double_sum = (w[:, None] * w[None] * (t[:, None] - t[None]).abs()).sum() + (w**2 * delta).sum() / 3
with_lens = float(distortion_loss(w, t, torch.tensor([delta])))
bare = composite(torch.where(t < 1, 0.0, sigma), torch.tensor([delta]))
without_lens = float(distortion_loss(bare, t, torch.tensor([delta])))
print(f"double sum {double_sum:.5f}, library {with_lens:.5f}; without the lens {without_lens:.5f}")

# %%
from minirodin.render import render_rays

frontal = newcomer.cameras[0].resized(48, 48)
rays = [r[None] for r in frontal.rays(0)]
clouds = {}
for name in ("all on", "distortion ×100"):
    avatar = variants[name]
    with torch.no_grad():
        clouds[name] = render_rays(avatar.planes[None], avatar.decoder, *rays, avatar.occupancy(), 256, 128)

figure, axis = plt.subplots(figsize=(6, 2.6))
cheek = 24 * 48 + 24  # a ray in the middle of the picture
for (name, ray), colour in zip(clouds.items(), PALETTE, strict=False):
    axis.plot(ray.t[0, cheek], ray.weights[0, cheek] / ray.delta[0, cheek], label=name, color=colour)
axis.set(xlabel="distance along the ray", ylabel="weight a length", title="one ray onto the face")
axis.legend()
plt.show()


# %% tags=["check"]
def thickness(ray):
    """Mean over opaque rays of the standard deviation of depth under the weights."""
    w = ray.weights / ray.alpha.clamp(min=1e-6)[..., None]
    mean = (w * ray.t).sum(-1, keepdim=True)
    return float((w * (ray.t - mean) ** 2).sum(-1).sqrt()[ray.alpha > 0.95].mean())


thick, thin = (thickness(ray) for ray in clouds.values())
assert torch.isclose(double_sum, torch.tensor(with_lens), rtol=1e-4) and with_lens > without_lens
assert thin < 0.7 * thick, (thick, thin)
print(f"surfaces are {thick:.3f} thick at the preset's weight, {thin:.3f} at ×100 (the box is 2 wide)")

# %% [markdown]
# At its usual weight the term is gentle. Whether more is better depends on the person: skin and caps are surfaces, hair
# *is* a cloud. (Try `people[2]`, who has long hair.)

# %% [markdown]
# ## 6 One domain for all (E5)
#
# Fitting well is not enough. Generated planes are **not quite right**, come in **two sizes** (64² from the base model,
# 256² after the upsampler), and were never fitted together with any decoder. So the paper asks three things of it: one
# language for everybody, tolerance of noise, and of size.
#
# ### Several sizes
#
# **Predict first.** Fit planes at one size only, shrink them by four, render. What do you expect: a blurred person, or
# something worse?

# %%
largest = config.triplane.resolution
sizes = (largest, largest // 2, largest // 4)
tri = replace(config.triplane, base_resolution=sizes[-1])
robust = replace(changed(resolutions=sizes, resolution_weights=(0.4, 0.2, 0.4)), triplane=tri)
single = changed(
    **{"resolutions": sizes[:1], "resolution_weights": (1.0,)},
    **{"coarse_lr": 0.0, "coarse_fraction": 0.0, "total_variation": config.fit.total_variation / 100},
)
rescaled = {"one size": fit(newcomer, "single", single), "random sizes": fit(newcomer, "robust", robust)}

# %%
shown, titles = [photographs(newcomer, [0])[0]], ["photograph"]
for name, avatar in rescaled.items():
    shown += [pictures_of(avatar, newcomer, [0], size)[0] for size in (sizes[0], sizes[-1])]
    titles += [f"{name}: {size}²" for size in (sizes[0], sizes[-1])]
photo(show_images(shown, titles, columns=5, title=f"fitted at {sizes[0]}², rendered at {sizes[0]}² and {sizes[-1]}²"))

# %% tags=["check"]
table = {name: [quality(avatar, newcomer, size) for size in sizes] for name, avatar in rescaled.items()}
for name, row in table.items():
    print(f"{name:14}" + "".join(f"{size:6}²: {value:5.2f} dB" for size, value in zip(sizes, row, strict=True)))
drop = {name: row[0] - row[-1] for name, row in table.items()}
assert drop["one size"] > drop["random sizes"] + 1.5, drop
assert table["random sizes"][-1] > table["one size"][-1] + 2, table

# %% [markdown]
# Worse than the small size alone explains: random sizes do better with just as few texels. A texel of the shrunken
# plane is the mean of sixteen, the decoder is not linear, and what it makes of a mean is not the mean of what it made.
# The single-size fit here also goes without our coarse-plus-detail planes and nearly without smoothness, as a plain fit
# would: both soften the fall, which is still milder than in the paper's Fig. 3.
#
# ### Noise
#
# The decoder sees perturbed planes while it learns (standard deviation `plane_noise`). How gently does the picture go
# when planes are disturbed afterwards? The preset's noise against ten times as much:

# %%
noises = (0.0, 0.1, 0.2)
trained = {
    f"{config.fit.plane_noise} (preset)": variants["all on"],
    f"{10 * config.fit.plane_noise}": fit(newcomer, "more noise", changed(plane_noise=10 * config.fit.plane_noise)),
}
mine = variants["all on"]
direction = torch.randn(mine.planes.shape, generator=torch.Generator().manual_seed(seed))


def disturbed(avatar, noise):
    return Avatar(avatar.planes + noise * direction, avatar.decoder, avatar.config)


# %%
fall = {name: [quality(disturbed(a, s), newcomer) for s in noises] for name, a in trained.items()}
curves = {f"fitted with noise {name}": (noises, values) for name, values in fall.items()}
show_curves(curves, "noise on the planes afterwards", "held-out PSNR (dB)", "robustness against wrong planes", width=6)

# %%
shown = [pictures_of(disturbed(a, noises[-1]), newcomer, [0])[0] for a in trained.values()]
titles = [f"fitted with noise {name}" for name in trained]
photo(show_images(shown, titles, width=5, title=f"planes disturbed by {noises[-1]}"))

# %% tags=["check"]
lost = [values[0] - values[-1] for values in fall.values()]
assert lost[1] < 0.7 * lost[0], fall
print(f"lost to noise of {noises[-1]}: {lost[0]:.1f} dB, but {lost[1]:.1f} dB when the decoder was used to it")

# %% [markdown]
# ### Shared or private decoder
#
# Two people, each fitted with a decoder of their own. Then one is rendered with the other's.
#
# **Predict first.** Will the swapped person be a little off, or not a person at all?

# %%
other = fit(crowd[0], "other", changed(seed=seed + 1))  # another initialisation, as on another machine
swapped = Avatar(mine.planes, other.decoder, config)
guest = fit(newcomer, "guest", decoder=shared)
trio = {"own private decoder": mine, "the other's private decoder": swapped, "shared decoder": guest}
shown = [pictures_of(avatar, newcomer, [0])[0] for avatar in trio.values()]
photo(show_images(shown, list(trio), width=7.5))

# %% tags=["check"]
own, foreign, common = scores["all on"], quality(swapped, newcomer), quality(guest, newcomer)
assert own - foreign > 8 and common - foreign > 8, (own, foreign, common)
print(f"own {own:.1f} dB, swapped {foreign:.1f} dB, shared {common:.1f} dB")

# %% [markdown]
# With private decoders every person is written in a language of their own, and a diffusion model would have to learn as
# many languages as people. The shared decoder makes the planes of different people comparable, which is what generation
# needs. What it costs here is the price of so small a crowd (section 4).

# %% [markdown]
# ### At full size
#
# All of this at preset `small` on one GPU: the decoder from 256 people, then 64 validation people that it never saw.
# Photograph, planes at 256², 128² and 64², from the front and from a view that was not fitted:

# %%
sheet = Image.open("../results/fitting.jpg")
sheet = sheet.crop((0, 0, sheet.width, sheet.height * 4 // 8)).resize((1000, 500), Image.LANCZOS)
photo(show_images([np.asarray(sheet)], width=10))

# %%
measured = json.loads(Path("../results/fitting.json").read_text())
for size, values in measured["mean"].items():
    print(f"planes at {size:>3}²: {values['psnr']:.2f} dB, SSIM {values['ssim']:.3f}")
print(f"{measured['subjects']} people, {measured['views']} held-out views, {measured['device']}, {measured['date']}")

# %% [markdown]
# Eight of them are in the box, seven with planes of 64²: under half a megabyte for planes, decoder and settings. A
# view from anywhere is one call.

# %%
box = [Avatar.load(file) for file in sorted(Path("../data_samples/avatars").glob("*.safetensors"))]
someone = box[6].to(device)
views = [someone.render(azimuth, elevation=10, size=160).cpu() for azimuth in (-70, -35, 0, 35)]
photo(show_images(views, width=7))

# %% tags=["check"]
sizes_measured = [measured["mean"][size]["psnr"] for size in ("256", "64")]
assert sizes_measured[0] >= 28 and sizes_measured[0] - sizes_measured[1] < 1.5, sizes_measured
assert {fingerprint(avatar.decoder) for avatar in box} == {fingerprint(pretrained.decoder)}
print(f"{len(box)} avatars, one decoder; {sizes_measured[0] - sizes_measured[1]:.1f} dB between 256² and 64²")

# %% [markdown]
# ## 7 What planes look like
#
# Principal components of the features, one basis for everybody: the same colour is the same matter. uv is the person
# from the front; vw from the side, lying down (columns are y); wu along y. First the people fitted here, then four of
# the box.

# %%
everybody = torch.stack([avatar.planes.cpu() for avatar in (*avatars, guest)])
colours = planes_to_rgb(everybody)  # (S, 3, R, R, 3)
photo(show_images(colours[:, 0], [*names, newcomer.name], columns=len(colours), width=7, title="fitted here: uv"))

# %%
boxed = torch.stack([resize_planes(avatar.planes.cpu(), 64) for avatar in box])
colours = planes_to_rgb(boxed)[:4]
titles = [name for _ in colours for name in PLANE_NAMES]
photo(show_images(colours.flatten(0, 1), titles, columns=6, title="in the box, at 64²"))

# %% [markdown]
# Channels have different means and spreads. Diffusion wants zero mean and unit variance in every one, so the statistics
# travel with the shared decoder. And the value range is kept: texels are clamped to ±1 after each step.

# %%
from minirodin.triplane import standardise, unstandardise

channels = np.arange(config.triplane.channels)
figure, axis = plt.subplots(figsize=(6, 2.2))
axis.bar(channels, shared.mean, yerr=shared.std, color=PALETTE[0], error_kw={"ecolor": PALETTE[4], "capsize": 3})
axis.set(xlabel="channel", title="mean and standard deviation of every channel")
plt.show()

# %% tags=["check"]
scaled = standardise(base, shared.mean, shared.std)
assert scaled.mean((0, 1, 3, 4)).abs().max() < 1e-3 and (scaled.std((0, 1, 3, 4)) - 1).abs().max() < 1e-3
assert torch.allclose(unstandardise(scaled, shared.mean, shared.std), base, atol=1e-5)
assert everybody.abs().max() <= config.fit.value_range + 1e-3
print(f"values within ±{everybody.abs().max():.2f}; standardised and back without loss")

# %% [markdown]
# ### How easily can they be diffused?
#
# Two numbers, both from the power spectrum: the **share of energy above half the Nyquist frequency** (0.8 for white
# noise), and the **ε-loss of the best linear denoiser** (0.5 for white noise, 0 for constant planes), in closed form in
# `metrics.wiener_eps_loss`. Smooth planes put their energy where noise has little.

# %%
from minirodin.metrics import power_spectrum, spectral_share, wiener_eps_loss

size = 64  # where the base model works
frequency = torch.fft.fftfreq(size)
ring = ((frequency[:, None] ** 2 + frequency[None] ** 2).sqrt() * size).round().long().flatten()
candidates = {name: variants[name].planes[None] for name in ("no smoothness", "all on")}
candidates["white noise"] = torch.randn(1, 3, config.triplane.channels, size, size)
curves = {}
for name, p in candidates.items():
    spectrum = power_spectrum(p).mean(0).flatten()
    radial = torch.zeros(size).index_add_(0, ring, spectrum) / torch.bincount(ring, minlength=size).clamp(min=1)
    curves[f"{name}: ε-loss {wiener_eps_loss(p):.2f}"] = (np.arange(1, size // 2), radial[1 : size // 2])
show_curves(curves, "frequency (cycles a plane)", "energy", "spectrum of the planes", log_y=True, width=6)

# %% tags=["check"]
share = [spectral_share(p) for p in candidates.values()]
eps = [wiener_eps_loss(p) for p in candidates.values()]
assert share[1] < share[0] < share[2] and eps[1] < eps[0] < eps[2], (share, eps)
assert abs(eps[2] - 0.5) < 0.02 and abs(share[2] - 0.8) < 0.02
print("share above half Nyquist:", ", ".join(f"{n} {value:.3f}" for n, value in zip(candidates, share, strict=True)))

# %% [markdown]
# **Fidelity against diffusability.** Left: every fit of this chapter. Right: the same question at full size
# (`tools/fitting_study.py`; every setting learns its own decoder and then fits validation people). Up is sharper, left
# is easier for the diffusion model.

# %%
live = {name: (wiener_eps_loss(variants[name].planes[None]), value) for name, value in scores.items()}
live |= {name: (wiener_eps_loss(a.planes[None]), table[name][0]) for name, a in rescaled.items()}
name, noisy = list(trained.items())[-1]
live["noise ×10"] = (wiener_eps_loss(noisy.planes[None]), fall[name][0])
study = json.loads(Path("../results/fitting_study.json").read_text())
settings = {entry["setting"]: entry for entry in study["settings"]}
mean = {name: {int(size): m["psnr"] for size, m in entry["mean"].items()} for name, entry in settings.items()}
full = {name: (entry["wiener_eps_loss"], mean[name][256]) for name, entry in settings.items()}

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
for axis, points, chosen in zip(axes, (live, full), ("all on", "chosen"), strict=True):
    for name, (x, y) in points.items():
        axis.scatter(x, y, color=PALETTE[3 if name == chosen else 0], zorder=3)
        left = name == "one-size-plain"  # beside another point
        place = {"xytext": (-5 if left else 5, 4), "ha": "right" if left else "left"}
        axis.annotate(name, (x, y), textcoords="offset points", fontsize=7, **place)
    axis.set(xlabel="ε-loss of the planes", ylabel="held-out PSNR (dB)")
    axis.margins(x=0.25, y=0.1)
axes[0].set(title=f"this run: preset {config.name}, one person")
axes[1].set(title=f"preset small, {study['settings'][0]['subjects']} people, {study['device']}")
plt.show()

# %%
for name, values in mean.items():
    print(f"{name:16}" + "".join(f"{size:5}²: {value:5.2f} dB" for size, value in values.items()))

# %% tags=["check"]
assert full["smoothness-d100"][0] > full["chosen"][0] + 0.05 and full["smoothness-d100"][1] < full["chosen"][1] + 1
fall = {name: mean[name][256] - mean[name][64] for name in ("chosen", "one-size-plain")}
assert fall["chosen"] < 1.5 and fall["one-size-plain"] > 3, fall
print("lost from 256² to 64²:", ", ".join(f"{name} {value:.1f} dB" for name, value in fall.items()))

# %% [markdown]
# Smoothness buys most of the diffusability for a fraction of a decibel: that is why it is the strongest term of the
# preset. A plain fit at one size loses everywhere, most of all at 64².

# %% [markdown]
# ## What the paper does, what we do
#
# | the paper | here |
# | --- | --- |
# | three planes 256² × 32, look-ups summed | the same in `full`; 16 channels in `small` |
# | planes listed uv, wu, vw | uv, vw, wu: one cyclic rule; shown in the paper's order when rolled out (chapter 02) |
# | light MLP, ξ on features | the same, two octaves |
# | sparsity, smoothness, compactness; weights not known to us | weights in `FitConfig`, measured in `results/` |
# | shared decoder, then frozen | the same; in between everybody's start becomes the mean planes |
# | random rescaling | the same: a size is drawn each step |
# | robust to "slight perturbation" | Gaussian noise on the planes |
# | not stated | coarse plus detail planes, hull-guided samples, free space supervised, values clamped |

# %% [markdown]
# ## Exercises
#
# ### Exercise 1 · why not voxels?
# How many numbers does a voxel grid of the same resolution and channels hold, compared with the tri-plane? What is the
# ratio at 256²?

# %% tags=["solution"]
tri_plane, voxels = (3 * 256**2 * 32, 256**3 * 32)
print(f"{tri_plane / 1e6:.1f} M against {voxels / 1e6:.0f} M: {voxels / tri_plane:.0f} times as many (R / 3)")
assert abs(voxels / tri_plane - 256 / 3) < 1e-9

# %% [markdown]
# ### Exercise 2 · how dense is skin?
# Which density makes a single texel of a 256² plane (2/256 of the box) absorb 99 % of the light? Compare with
# `config.decoder.density_scale`: what must the MLP output before its softplus?

# %% tags=["solution"]
length = 2 / 256
needed = -math.log(1 - 0.99) / length
assert abs(float(composite(torch.tensor([needed]), torch.tensor([length]))[0]) - 0.99) < 1e-5
scale = config.decoder.density_scale
print(f"σ = {needed:.0f} = {scale:.0f} × {needed / scale:.1f}: without the scale, a hard number to reach for an MLP")

# %% [markdown]
# ### Exercise 3 · multiply instead of adding
# Other work multiplies the look-ups. On a table of f(y, z), without vw, the best sum is row means plus column means;
# the best product is the first term of a singular value decomposition. Which of `sin(πy)·cos(πz)`, `y + z` and
# `sin(2πyz)` can each do?

# %% tags=["solution"]
u = np.linspace(-1, 1, 65)
y, z = np.meshgrid(u, u, indexing="ij")
tables = {"sin·cos": np.sin(np.pi * y) * np.cos(np.pi * z), "y + z": y + z, "sin(2πyz)": np.sin(2 * np.pi * y * z)}
errors = {}
for name, f in tables.items():
    best_sum = f.mean(1, keepdims=True) + f.mean(0, keepdims=True) - f.mean()
    left, values, right = np.linalg.svd(f)
    best_product = values[0] * np.outer(left[:, 0], right[0])
    errors[name] = [float(((f - g) ** 2).mean() / (f**2).mean()) for g in (best_sum, best_product)]
    print(f"{name:10} unexplained by a sum {errors[name][0]:.2f}, by a product {errors[name][1]:.2f}")
assert errors["sin·cos"][1] < 1e-9 < 0.3 < errors["sin·cos"][0] and errors["y + z"][0] < 1e-9 < 0.3 < errors["y + z"][1]
assert min(errors["sin(2πyz)"]) > 0.1  # either way it needs vw

# %% [markdown]
# ### Exercise 4 · small and large again
# Shrink the planes of `rescaled["random sizes"]` by two and enlarge them again, bilinearly. Do they render as the large
# ones, as the shrunken ones, or worse than both? What does this say about the upsampler of chapter 04?

# %% tags=["solution"]
avatar = rescaled["random sizes"]
half = resize_planes(avatar.planes.cpu(), sizes[1])
again = quality(Avatar(resize_planes(half, sizes[0]), avatar.decoder, avatar.config), newcomer)
print(f"large {table['random sizes'][0]:.2f}, half {table['random sizes'][1]:.2f}, half enlarged {again:.2f} dB")
assert abs(again - table["random sizes"][1]) < 1
print("as the shrunken ones: enlarging adds no detail, and breaks nothing. The upsampler must invent it")

# %% [markdown]
# Next: 02 · Baseline and 3D-aware convolution, which learns to generate such planes.
