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
# # 02 · Baseline and 3D-aware convolution: generating three planes that belong together
#
# Chapter 01 turned people into three square images of features. Image diffusion is a solved craft, so why not stack
# the three like red, green and blue and train an ordinary U-Net? Because pixels that lie on top of each other in that
# stack are **not the same place in space**. This chapter shows what goes wrong, derives the convolution that Rodin puts
# in its place, and builds the base diffusion model around it.
#
# *Paper*: section "Latent Conditioned 3D Diffusion Model", its Fig. 4 (equations E6–E12 of the README's table). *Code*:
# `conv.py`, `unet.py`, `diffusion.py`, `sampling.py`, `training.py`, `base.py`.
#
# | preset | what is trained live | time | memory |
# | --- | --- | --- | --- |
# | `smoke` | three U-Nets of 0.5 M weights on planes of 32² | 50 s on two cores (77 s of CPU time) | 0.8 GB |
# | `small` | three of 25 M on 64² planes | not measured | not measured |
# | `full` | three of 300 M on 64² planes | not measured | not measured |
#
# 1 a line in three planes · 2 what a texel sees · 3 naive and fast · 4 noise · 5 learned variance · 6 three networks ·
# 7 sampling · 8 explorer

# %%
import io
import json
import math
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from einops import reduce
from PIL import Image
from torch import nn

from minirodin import Avatar, preset
from minirodin.plots import PALETTE, STYLE, photo, show_curves, show_images, to_array

# %% tags=["parameters"]
preset_name = os.environ.get("MINIRODIN_PRESET", "smoke")
seed = 0

# %%
config = preset(preset_name)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(seed)
plt.rcParams.update(STYLE)

# %% [markdown]
# ## 1 A stick in a box
#
# Take the simplest thing that is not aligned with any axis: a thin stick, tilted. Its three planes are its shadows, the
# means of the volume along w, u and v.

# %%
from minirodin.triplane import PLANE_AXES, PLANE_NAMES, rollout

R = 33
u = torch.linspace(-1, 1, R)
points = torch.stack(torch.meshgrid(u, u, u, indexing="ij"), -1)  # (R, R, R, 3)
middle, towards = torch.tensor([-0.1, 0.25, -0.1]), F.normalize(torch.tensor([0.8, 0.6, -0.45]), dim=0)
along = (points - middle) @ towards
across = (points - middle - along[..., None] * towards).norm(dim=-1)
volume = torch.exp(-((across / 0.09) ** 2)) * (along.abs() < 0.75)

shadows = [reduce(volume, f"u v w -> {rows} {columns}", "mean") for columns, rows in PLANE_NAMES]
stick = torch.stack(shadows)  # (3, R, R)


# %%
def box(axis, title=""):
    """An empty cube; matplotlib's third axis points up, so draw (u, w, v)."""
    axis.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1), xticks=[], yticks=[], zticks=[])
    axis.set(xlabel="u", ylabel="w", zlabel="v", title=title, box_aspect=(1, 1, 1))
    axis.xaxis.labelpad = axis.yaxis.labelpad = axis.zaxis.labelpad = -12


def segment(axis, start, end, **style):
    (a, b, c), (d, e, f) = start, end
    axis.plot([a, d], [c, f], [b, e], **style)


# %%
figure = plt.figure(figsize=(9.5, 2.6))
cube = figure.add_subplot(1, 4, 1, projection="3d")
box(cube, "the stick and its shadows")
ends = [(middle + s * 0.75 * towards).tolist() for s in (-1, 1)]
segment(cube, *ends, color="black", lw=3)
for (wall, at), colour in zip(((2, 1), (0, -1), (1, -1)), PALETTE, strict=False):  # uv at the back, vw left, wu below
    flat = [[at if k == wall else value for k, value in enumerate(end)] for end in ends]
    segment(cube, *flat, color=colour, lw=3)
    corners = [np.full((2, 2), at) if k == wall else None for k in range(3)]
    first, second = (k for k in range(3) if k != wall)
    corners[first], corners[second] = np.meshgrid([-1, 1], [-1, 1])
    cube.plot_surface(corners[0], corners[2], corners[1], color=colour, alpha=0.15)
for k, plane in enumerate(stick):
    axis = figure.add_subplot(1, 4, k + 2)
    axis.imshow(plane, origin="lower", extent=(-1, 1, -1, 1), cmap="Greys")
    axis.set(xlabel=PLANE_NAMES[k][0], ylabel=PLANE_NAMES[k][1], xticks=[], yticks=[])
    axis.set_title(PLANE_NAMES[k], color=PALETTE[k], fontweight="bold")
    axis.grid(False)
plt.show()

# %% [markdown]
# ### Stacked in channels (E12, the baseline)
#
# Put the three pictures on top of each other, as an image network takes them. **Predict first.** Take one pixel of that
# stack. The values in its three channels describe three places of the volume: do they have anything in common?
#
# A texel of a plane stands for a whole *line* of the volume: uv fixes u and v, and w is free.


# %%
def line_of(plane, column, row):
    """The line of the volume that a texel stands for: axis → index; the axis that is not named is free."""
    first, second = PLANE_AXES[plane]
    return {first: column, second: row}


def ends_of(line):
    """Its two ends in the box."""
    return [[u[line[axis]].item() if axis in line else end for axis in range(3)] for end in (-1, 1)]


column, row = 21, 13
figure = plt.figure(figsize=(8.5, 3.4))
left = figure.add_subplot(1, 2, 1)
left.imshow((stick / stick.amax((1, 2), keepdim=True)).movedim(0, -1), origin="lower")
left.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, ec="white", fc="none", lw=2))
left.annotate(f"pixel ({column}, {row})", (column, row), (-50, -38), color="white", textcoords="offset points")
left.set(title="uv, vw, wu as red, green, blue", xlabel="u? v? w?", ylabel="v? w? u?", xticks=[], yticks=[])
left.grid(False)
cube = figure.add_subplot(1, 2, 2, projection="3d")
box(cube, "the three lines that this pixel stands for")
cube.view_init(elev=18, azim=-35)
segment(cube, *ends, color="black", lw=3, label="the stick")
for k in range(3):
    style = {"color": PALETTE[k], "lw": 2, "marker": "o", "ms": 4, "label": f"its {PLANE_NAMES[k]} channel"}
    segment(cube, *ends_of(line_of(k, column, row)), **style)
cube.legend(loc="upper left", bbox_to_anchor=(1.05, 0.8))
plt.show()

# %% [markdown]
# Three lines that do not even meet. One runs through the stick, so the pixel is green; the other two run through air
# elsewhere. A convolution on the stack adds them up as if they were three colours of one spot. How often are they?


# %% tags=["check"]
def meet(a, b):
    """Two axis-aligned lines meet when they agree on every axis that both fix."""
    return all(a[axis] == b[axis] for axis in a.keys() & b.keys())


assert stick[1, row, column] > 0.5 * stick[1].max() and stick[[0, 2], row, column].max() < 0.1 * stick.max()
pixels = [(i, j) for i in range(R) for j in range(R)]
together = [(i, j) for i, j in pixels if any(meet(line_of(k, i, j), line_of((k + 1) % 3, i, j)) for k in range(3))]
assert together == [(i, i) for i in range(R)]
print(f"the lines of a pixel meet on the diagonal only: {len(together)} of {len(pixels)} pixels")

# %% [markdown]
# ### Side by side (E10, the roll-out)
#
# Laid out next to each other, in the paper's order uv, wu, vw, nothing false is claimed any more, but the planes no
# longer know of each other. Which texels of the other two planes *should* a texel of uv know? Its line (u, v, free w)
# casts shadows too: on wu all that has its u, on vw all that has its v. **A row of one, a column of the other.**

# %%
column, row = 12, 18  # a texel of uv on the stick
figure, axis = plt.subplots(figsize=(9, 3.2))
axis.imshow(rollout(stick[None, :, None])[0, 0], origin="lower", cmap="Greys")
box_at = {"ec": "none", "alpha": 0.45}
axis.add_patch(plt.Rectangle((column - 1, row - 1), 2, 2, fc=PALETTE[3], ec="none"))
axis.add_patch(plt.Rectangle((R - 0.5, column - 0.5), R, 1, fc=PALETTE[2], **box_at))
axis.add_patch(plt.Rectangle((2 * R + row - 0.5, -0.5), 1, R, fc=PALETTE[1], **box_at))
axis.text(column - 7, row + 2.5, "(u, v)", color=PALETTE[3])
axis.text(R + 1, column - 3, "row u of wu", color=PALETTE[2])
axis.text(2 * R + row + 1.5, 1, "column v of vw", color=PALETTE[1])
axis.vlines([R - 0.5, 2 * R - 0.5], -0.5, R - 0.5, color="black", lw=1)
labels = ["uv: columns u, rows v", "wu: columns w, rows u", "vw: columns v, rows w"]
axis.set(xticks=[R / 2, 1.5 * R, 2.5 * R], xticklabels=labels, yticks=[])
axis.set(title="rolled out: one texel of uv, and what else is written about its line")
axis.grid(False)
plt.show()

# %% [markdown]
# ### What the others know, in two vectors
#
# Attending to every texel of that row and that column would be dear; the paper pools them. wu, averaged over w, is a
# vector over u; vw, averaged over w, a vector over v. For the shadows of one volume both must agree with uv's own
# averages, since either way it is the whole volume that is averaged. That agreement is what a generator has to keep.

# %%
from minirodin.conv import pooled_neighbours

down, across = pooled_neighbours(stick[:, None])  # one sample of one channel: (3, 1, R) each
own_rows, own_columns = stick.mean(2), stick.mean(1)  # of each plane, (3, R)
moved = stick.clone()
moved[2] = moved[2].roll(5, 0)  # somebody moves the stick along u, on wu only
_, moved_across = pooled_neighbours(moved[:, None])

# %%
figure, axes = plt.subplots(2, 2, figsize=(6.4, 4.6), width_ratios=(1, 0.8), height_ratios=(0.65, 1))
(top, empty), (image, side) = axes
image.imshow(stick[0], origin="lower", cmap="Greys", aspect="auto")
image.set(xlabel="u", ylabel="v", title="uv", xticks=[], yticks=[])
image.grid(False)
place = range(R)
top.plot(place, own_columns[0], label="uv's own mean", color="#bbbbbb", lw=5)
top.plot(place, across[0, 0], label="wu, pooled over w", color=PALETTE[2])
side.plot(own_rows[0], place, color="#bbbbbb", lw=5)
side.plot(down[0, 0], place, label="vw, pooled over w", color=PALETTE[1])
top.plot(place, moved_across[0, 0], color=PALETTE[3], ls="--", label="wu pooled, the stick moved there")
top.set(xticks=[], yticks=[], xlim=(-0.5, R - 0.5), title="along u")
side.set(xticks=[], yticks=[], ylim=(-0.5, R - 0.5), title="along v")
empty.set_axis_off()
empty.legend(handles=[*top.lines, side.lines[1]], loc="center left")
plt.show()

# %% tags=["check"]
assert torch.allclose(down[:, 0], own_rows, atol=1e-6) and torch.allclose(across[:, 0], own_columns, atol=1e-6)
assert (moved_across[0, 0] - own_columns[0]).abs().max() > 0.3 * own_columns[0].max()
print("shadows of one volume agree on all six links; a plane that was tampered with gives itself away")

# %% [markdown]
# ## 2 What a texel sees (E11)
#
# Those two vectors, repeated over the plane and concatenated with it, go into an ordinary convolution:
#
# $$\mathrm{Conv2D}\big(y_{uv} \oplus y_{(\cdot)u} \oplus y_{v(\cdot)}\big), \quad
# \text{and likewise for } y_{vw} \text{ and } y_{wu}.$$
#
# In this project's order of the planes the row axis of plane k is the column axis of plane k+1, so one rule serves all
# three: `down` comes from plane k+1, `across` from plane k−1. Three operators on the same planes:

# %%
from minirodin.conv import AwareConv2d, aware_conv, aware_conv_naive

channels, size = 2, 12
plain = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1)
single = nn.Conv2d(channels, channels, 3, padding=1)
aware = AwareConv2d(channels, channels)
operators = {  # (1, 3, C, R, R) → the same
    "channels (E12)": lambda x: plain(x.flatten(1, 2)).view_as(x),
    "roll-out (E10)": lambda x: single(x.flatten(0, 1)).view_as(x),
    "3D-aware (E11)": lambda x: aware(x.flatten(0, 1)).view_as(x),
}


# %% [markdown]
# What does one output texel depend on? Its gradient with respect to the input says it without a word about the code.
#
# **Predict first.** Draw, for each of the three, what a texel of uv sees of uv, vw and wu.


# %%
def sees(operator, plane, column, row):
    """Sensitivity of one output texel to all input texels, (3, R, R)."""
    x = torch.randn(1, 3, channels, size, size, requires_grad=True)
    operator(x)[0, plane, :, row, column].sum().backward()
    return x.grad[0].abs().sum(1)


column, row = 8, 3
maps = {name: sees(operator, 0, column, row) for name, operator in operators.items()}

# %%
figure, axes = plt.subplots(3, 3, figsize=(6.4, 6.4))
for (name, seen), line in zip(maps.items(), axes, strict=True):
    for k, axis in enumerate(line):
        axis.imshow(seen[k] > 0, origin="lower", cmap="Blues", vmin=0, vmax=1.4)
        related = [None, (row - 0.5, -0.5, 1, size), (-0.5, column - 0.5, size, 1)][k]  # column v of vw, row u of wu
        if related:
            axis.add_patch(plt.Rectangle(related[:2], *related[2:], fc="none", ec=PALETTE[1], lw=2))
        else:
            axis.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fc=PALETTE[3]))
        axis.set(xticks=[], yticks=[], xlabel=PLANE_NAMES[k][0], ylabel=PLANE_NAMES[k][1])
        axis.grid(False)
    line[0].set_title(f"{name}: uv", fontweight="bold")
    line[1].set_title("vw")
    line[2].set_title("wu")
figure.suptitle("what the red texel of uv sees (blue); orange: where its line is, on the other planes", fontsize=10)
plt.show()

# %% [markdown]
# *Channels*: a spot on the other planes, at the place of the same number, off the orange line (here it happens to touch
# neither). *Roll-out*: nothing at all. *3D-aware*: the texel's own surroundings, and the orange lines with a neighbour
# on either side. Not for this plane and this texel only:

# %% tags=["check"]
index = torch.arange(size)
for plane, (i, j) in [(plane, place) for plane in range(3) for place in ((8, 3), (0, 0), (5, 11))]:
    seen = sees(operators["3D-aware (E11)"], plane, i, j) > 0
    line = line_of(plane, i, j)
    for other in range(3):
        first, second = PLANE_AXES[other]
        near_column = (index - line.get(first, index)).abs() <= 1  # an axis that the line leaves free: all of it
        near_row = (index - line.get(second, index)).abs() <= 1
        assert torch.equal(seen[other], near_row[:, None] & near_column[None, :]), (plane, i, j, other)
print("all six links: the shared coordinate ± 1, and nothing else")

# %% tags=["check"]
stack = sees(operators["channels (E12)"], 0, 8, 3) > 0
alone = sees(operators["roll-out (E10)"], 0, 8, 3) > 0
assert torch.equal(stack[1], stack[0]) and torch.equal(stack[2], stack[0]), "the same spot everywhere"
assert not stack[1][:, 3].any() or not stack[2][8].any()
assert alone[0].any() and not alone[1:].any()
print("baseline: the same 3×3 spot on all planes. Roll-out: its own plane only")


# %% [markdown]
# Two 3D-aware layers in a row see the whole of both other planes: a texel's line runs through every place of vw and wu
# that shares a coordinate with it, and those have seen the rest. Plain convolutions creep one texel a layer, and the
# roll-out never crosses over. (In the U-Net, attention at the low resolutions crosses over for all three.)


# %%
def repeated(operator, times):
    def run(x):
        for _ in range(times):
            x = operator(x)
        return x

    return run


share = {}
for name, operator in operators.items():
    share[name] = [float((sees(repeated(operator, n), 0, 8, 3)[1:] > 0).float().mean()) for n in (1, 2, 3, 4)]
curves = {name: ((1, 2, 3, 4), [100 * value for value in values]) for name, values in share.items()}
figure = show_curves(curves, "layers", "% of the other two planes", "what reaches one texel", width=5.5)
figure.axes[0].set_xticks([1, 2, 3, 4])
figure

# %% tags=["check"]
assert share["3D-aware (E11)"][1] == 1 and max(share["channels (E12)"]) < 0.6 and max(share["roll-out (E10)"]) == 0

# %% [markdown]
# ## 3 Naive = fast
#
# Pool, expand, concatenate, convolve: written so, three times as many channels go through a 3×3 convolution, and most
# of the work is done on maps in which every column (or row) is the same. By hand, on one such map:

# %%
line = torch.randn(1, 1, 8, dtype=torch.float64)
flat = line[..., None].expand(1, 1, 8, 8)  # constant along each row
kernel = torch.randn(1, 1, 3, 3, dtype=torch.float64)
by_2d = F.conv2d(flat, kernel, padding=1)
by_1d = F.conv1d(line, kernel.sum(-1), padding=1)  # the kernel, summed along the constant axis
difference = by_2d - by_1d[..., None]

# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2.4))
titles = ("a constant axis", "2D convolution", "1D, repeated", "difference")
for axis, picture, title in zip(axes, (flat, by_2d, by_1d[..., None].expand_as(flat), difference), titles, strict=True):
    axis.imshow(picture[0, 0], cmap="RdBu", vmin=-4, vmax=4)
    axis.set(title=title, xticks=[], yticks=[])
    axis.grid(False)
plt.show()

# %% [markdown]
# A 2D kernel on a map that does not change along an axis *is* a 1D kernel. **Predict first**: why do the first and the
# last column differ, and what would make them right?
#
# There, one of the three taps meets the zero padding. So keep three sums: without the first tap, with all, without the
# last. That is all of `aware_conv`.

# %% tags=["check"]
first, last = (F.conv1d(line, kernel[..., taps].sum(-1), padding=1) for taps in (slice(1, 3), slice(0, 2)))
by_lines = torch.cat([first[..., None], by_1d[..., None].expand(1, 1, 8, 6), last[..., None]], -1)
assert difference[..., 1:-1].abs().max() < 1e-12 < 1e-3 < difference.abs().max()
assert torch.allclose(by_lines, by_2d, atol=1e-12)

x = torch.randn(2 * 3, 5, 16, 16, dtype=torch.float64)  # two samples, planes in the batch dimension
weight, bias = torch.randn(7, 3 * 5, 3, 3, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
error = (aware_conv(x, weight, bias) - aware_conv_naive(x, weight, bias)).abs().max()
assert error < 1e-10
print(f"aware_conv and aware_conv_naive differ by {float(error):.0e} at most")

# %% [markdown]
# What it saves, counted and timed on this machine. The count of multiplications is the truth about the method; the time
# is the truth about one library on one processor, and smaller maps or a busy machine change it.

# %%
width, resolution = config.base.unet.channels[0], config.triplane.base_resolution
x = torch.randn(3, width, resolution, resolution, device=device).to(memory_format=torch.channels_last)
weight = torch.randn(width, 3 * width, 3, 3, device=device)
forms = {
    "plain 3×3": lambda: F.conv2d(x, weight[:, :width], padding=1),
    "aware, naive": lambda: aware_conv_naive(x, weight),
    "aware, fast": lambda: aware_conv(x, weight),
}


def milliseconds(run, repeats=15):
    """The fastest of several calls: other work on the machine only ever adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run().sum().item()  # .item() waits for the device
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


# %%
from torch.utils.flop_counter import FlopCounterMode


def multiplications(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2  # a multiplication and an addition each


with torch.no_grad():
    cost = {name: (multiplications(run) / 1e6, milliseconds(run)) for name, run in forms.items()}
figure, axes = plt.subplots(1, 2, figsize=(8, 2), sharey=True)
for axis, values, title in zip(axes, zip(*cost.values(), strict=True), ("million multiplications", "ms"), strict=True):
    bars = axis.barh(list(cost), values, color=[PALETTE[4], PALETTE[1], PALETTE[0]])
    axis.set(title=title)
    axis.bar_label(bars, [f"{value:.3g}" for value in values], fontsize=8, padding=2)
    axis.margins(x=0.15)
axes[0].invert_yaxis()
figure.suptitle(f"three planes of {width} × {resolution}², forward, on {device.type}", fontsize=9, x=0.01, ha="left")
plt.show()

# %% tags=["check"]
plain_count, naive_count, fast_count = (count for count, _ in cost.values())
assert abs(naive_count / plain_count - 3) < 1e-9 and fast_count < 1.25 * plain_count
print(f"multiplications: naive 3 × plain; fast {fast_count / plain_count:.2f} × plain, and exact")

# %% [markdown]
# Pooling and adding cost no multiplications but read and write memory, and on maps this small that takes as long as
# convolving: in time the fast form is not as near to the plain one as it is by count. More channels bring it nearer;
# `minirodin bench conv` measures forward and backward, at full size on a GPU.

# %% [markdown]
# ## 4 Noise (E6, E7)
#
# The operator is built; now the process it serves. A person's planes are drowned in noise step by step,
#
# $$y_t = \alpha_t\, y_0 + \sigma_t\, \varepsilon, \qquad \lambda_t = \log \frac{\alpha_t^2}{\sigma_t^2}, \qquad
# \alpha_t^2 + \sigma_t^2 = 1,$$
#
# and a network learns to undo each step. Only the **log-SNR λ** matters; the paper lets it fall linearly in t.
#
# Eight fitted people are in the box (chapter 01), all in the language of one decoder. At base resolution, standardised:

# %%
from minirodin.diffusion import Denoised, Diffusion, alpha_sigma, posterior
from minirodin.triplane import plane_statistics, resize_planes, standardise, unstandardise

people = [Avatar.load(file) for file in sorted(Path("../data_samples/avatars").glob("*.safetensors"))]
decoder = people[0].decoder.to(device)
resolution = config.triplane.base_resolution
fitted = torch.stack([resize_planes(person.planes.float(), resolution) for person in people]).to(device)
mean, std = plane_statistics(fitted)
data = standardise(fitted, mean, std)  # (8, 3, C, R, R)
print(f"{len(people)} people, planes {tuple(data.shape[1:])}, mean {data.mean():.2f}, deviation {data.std():.2f}")

# %%
look = replace(people[0].config, render=config.render)
pixels = min(128, 3 * resolution)


def picture(planes, azimuth=25):
    """Standardised planes (3, C, R, R) as a picture of the person."""
    return Avatar(unstandardise(planes, mean, std), decoder, look).render(azimuth, 5, pixels).cpu()


photo(show_images([picture(planes) for planes in data], columns=8))

# %% [markdown]
# **Predict first.** λ = 0 is as much noise as signal. At which λ do you lose sight of the person: at 5, at 0, at −5?

# %%
diffusion = Diffusion(config.base.diffusion)
eps = torch.randn(data.shape, generator=torch.Generator().manual_seed(seed)).to(device)
levels = (10, 4, 2, 0, -2, -4, -10)
drowned = [diffusion.q_sample(data[5:6], torch.full((1,), float(level), device=device), eps[:1])[0] for level in levels]

# %%
from minirodin.plots import planes_to_rgb

colours = planes_to_rgb(torch.stack(drowned).cpu(), data.cpu())[:, 0]  # uv, in the colours of the clean planes
titles = [f"λ = {level}" for level in levels]
shown = [*(picture(planes) for planes in drowned), *colours]
photo(show_images(shown, titles, columns=len(levels), title="a person in more and more noise: rendered; plane uv"), 75)

# %% tags=["check"]
for level, planes in zip(levels, drowned, strict=True):
    alpha, sigma = alpha_sigma(torch.tensor(float(level)))
    share = float((planes * data[5]).mean() / data[5].square().mean())  # how much of the person is in there
    assert abs(float(alpha**2 + sigma**2) - 1) < 1e-6 and abs(share - float(alpha)) < 0.05, (level, share, alpha)
print("what is left of the person is α; the variance stays about 1")

# %% [markdown]
# The picture is gone long before the plane is: a decoder magnifies noise (chapter 01), and no diffusion model ever
# looks at renders. In the plane, texels agree with their neighbours, and averaging finds the person again.
#
# At the other end: when is so little noise left that nobody could see it? Levels beyond that one need no training.

# %%
from minirodin.metrics import psnr
from minirodin.pipeline import to_rgb


def seen(level):
    """What noise of this level changes in a picture, in dB."""
    noisy = data[5] + math.exp(-level / 2) * eps[5]  # scaled back: the person at full strength
    return float(psnr(to_rgb(picture(noisy))[None], to_rgb(picture(data[5]))[None]))


change = {level: seen(level) for level in range(-2, 11, 2)}
curves = {"render": (list(change), list(change.values()))}
show_curves(curves, "λ", "PSNR in dB", "a picture, with and without the noise")

# %% tags=["check"]
assert change[6] > 40 and change[10] > change[6] + 10, change
print(f"λ = 6 changes the picture by {change[6]:.0f} dB, far less than fitting does: no use in going much beyond")

# %% [markdown]
# And how much noise is enough? Sampling begins with pure noise, so where training ends, noise must be as good as pure.
# **Predict first.** At λ = −8, 0.03 % of the variance is the person's. Does such a plane still tell which of our eight
# it is? Compare it with each, texel by texel, and take the nearest.

# %%
people, generator = data.flatten(1), torch.Generator().manual_seed(seed)


def told_apart(level, draws=16):
    """How often the person behind noise of this level is the nearest of the eight."""
    alpha, sigma = (float(v) for v in alpha_sigma(torch.tensor(float(level))))
    found = []
    for _ in range(draws):
        noisy = alpha * people + sigma * torch.randn(people.shape, generator=generator).to(device)
        nearest = (2 * noisy @ people.T - alpha * people.square().sum(1)).argmax(1).cpu()
        found.append((nearest == torch.arange(len(people))).float().mean())
    return float(torch.stack(found).mean())


told = {level: told_apart(level) for level in range(-18, 1, 2)}
chance = 1 / len(people)
curves = {"nearest of the eight": (list(told), list(told.values())), "chance": (list(told), [chance] * len(told))}
show_curves(curves, "λ", "share found", "who is behind the noise?", width=6)

# %% tags=["check"]
assert told[-4] > 0.95 and told[-6] > 2 * chance and told[-18] < 0.3, told
print(f"found at λ = −8: {told[-8]:.0%}, at −10: {told[-10]:.0%}, at −14: {told[-14]:.0%}; by chance {chance:.0%}")

# %% [markdown]
# A person is many thousand texels that agree, and averaging them beats the noise. A network that is trained down to
# λ = −8 only can read off its first $y_t$ who is meant; sampling hands it noise with nobody in it. So λ runs to −14
# now, and on planes of 256² it would have to run further still. What that is worth is not measured yet: our first
# model with latents (chapter 03), trained down to −8, followed them badly, but not for this reason alone
# (`results/runs.md`).

# %% [markdown]
# ### Schedules
#
# A schedule says how fast λ falls, which is how training time is shared among noise levels.

# %%
t = torch.linspace(0, 1, 201)
schedules = {
    "linear (E6)": replace(config.base.diffusion, schedule="linear", shift=0.0),
    "cosine": replace(config.base.diffusion, schedule="cosine", shift=0.0),
    "cosine, shift −1 (base model)": config.base.diffusion,
    "cosine, shift +2": replace(config.base.diffusion, schedule="cosine", shift=2.0),
}
figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.6))
for name, settings in schedules.items():
    log_snr = Diffusion(settings).log_snr(t)
    axes[0].plot(t, log_snr, label=name)
    axes[1].plot(t, alpha_sigma(log_snr)[0])
axes[0].set(title="log-SNR λ", xlabel="t")
axes[1].set(title="α: what is left of the signal", xlabel="t")
axes[0].legend()
plt.show()

# %% tags=["check"]
linear, cosine, base, late = (Diffusion(settings).log_snr(t) for settings in schedules.values())
assert linear.diff().std() < 1e-4 * linear.diff().abs().mean() and (cosine.diff() < 0).all()
assert all(torch.allclose(other[[0, -1]], linear[[0, -1]], atol=1e-3) for other in (cosine, base, late)), "same ends"
shares = {name: float((Diffusion(c).log_snr(t) < -4).float().mean()) for name, c in schedules.items()}
assert (base[1:-1] < cosine[1:-1]).all() and (late[1:-1] > cosine[1:-1]).all(), "a shift moves the middle"
print("of t below λ = −4:", ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
for settings in schedules.values():
    alpha, sigma = alpha_sigma(Diffusion(settings).log_snr(t))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(()), atol=1e-6)

# %% [markdown]
# **Why shift?** Larger planes carry the same person in more texels, so the *same* λ destroys less. Below: λ = −1 on the
# planes; and λ = −1 on planes with four times the resolution, averaged down afterwards.

# %%
level = torch.full((1,), -1.0, device=device)
large = resize_planes(data[5:6], 4 * resolution)
noise = torch.randn(large.shape, generator=torch.Generator().manual_seed(seed)).to(device)
at_size = diffusion.q_sample(data[5:6], level, eps[:1])
at_four = resize_planes(diffusion.q_sample(large, level, noise), resolution)
pair = planes_to_rgb(torch.cat([data[5:6], at_size, at_four]).cpu(), data.cpu())[:, 0]
titles = ["no noise", f"λ = −1 at {resolution}²", f"λ = −1 at {4 * resolution}², averaged"]
photo(show_images(list(pair), titles, width=5))

# %% tags=["check"]
averaged = resize_planes(noise, resolution)
assert abs(float(averaged.std()) - 0.25) < 0.01
print(f"averaging 16 texels leaves 1/4 of the noise: λ is worth {math.log(16):.1f} more at four times the resolution")

# %% [markdown]
# Schedules copied from 32² or 64² images are therefore too kind to large planes. RodinHD reports for 512² planes that a
# stronger schedule alone took its FID from 35.84 to 27.74, the largest single gain of its ablation.
#
# And ours at 64²? The same network, about 75 seconds of an H200 on 1536 people, three ways to spend them
# (`tools/measure_base.sh`, study; λ from 6 to −10 then, and a shift moved the ends too). **Predict first**: who gains
# from a shift of +2, and who pays?

# %%
from minirodin.base_training import LEVELS

study = json.loads(Path("../results/base_study.json").read_text())["training"]


def missed(run, of="validation"):
    """Squared error of ŷ₀ at `LEVELS` of λ: of people not learned from, or of those learned from (`trained`)."""
    return np.array([run[f"{of}_x0_at_{level:g}"] for level in LEVELS])


plain = missed(study["lr-1e-3_shift-0"])
runs = {"shift 0": "lr-1e-3_shift-0", "shift +2": "lr-1e-3_shift-2"}
runs |= {"half the batch, more steps": "lr-1e-3_batch-32_steps-2000_shift-0"}
curves = {name: (LEVELS, missed(study[run]) / plain) for name, run in runs.items()}
show_curves(curves, "λ (left: noise, right: data)", "error ÷ that of shift 0", "errors of ŷ₀", width=6)

# %% tags=["check"]
gain = dict(zip(LEVELS, missed(study["lr-1e-3_shift-2"]) / plain, strict=True))
assert gain[4] < 0.95 and gain[-4] > 1.05
print(f"shift +2: {1 - gain[4]:.0%} less error at λ = 4, where details are, {gain[-4] - 1:.0%} more at λ = −4")

# %% [markdown]
# Less noise at every t, the opposite of RodinHD's. After minutes of training details are what is lacking, these are
# decided at large λ, and so we took the bargain for the ablation of section 6. It was a bad one for what follows: who a
# sample is, and whether it is whom the latent means, is decided at small λ, where such a schedule hardly ever looks.
# `BaseConfig` has its middle at −1 now.
#
# ### What the network predicts
#
# $L_{\mathrm{simple}}$ (E7) asks for the noise, $\mathbb{E}\,\|\hat\varepsilon_\theta(y_t, t) - \varepsilon\|^2$. One
# may also ask for $y_0$ (the upsampler of chapter 04 does) or for $v = \alpha\varepsilon - \sigma y_0$. Knowing $y_t$,
# any one of the three gives the others:

# %% tags=["check"]
level = torch.tensor([6.0, 2.0, 0.0, -2.0, -6.0], device=device)
x0, noise = data[:5], eps[:5]
x_t = diffusion.q_sample(x0, level, noise)
targets = {p: Diffusion(replace(config.base.diffusion, prediction=p, vlb_weight=0.0)) for p in ("eps", "x0", "v")}
for name, process in targets.items():
    back = process.interpret(process.target(x0, noise, level)[:, None], x_t, level)
    assert torch.allclose(back.x0, x0, atol=1e-3) and torch.allclose(back.eps, noise, atol=1e-3), name
print("ε, x0 and v: there and back again")

# %% [markdown]
# They are not equal when the network is a little wrong, which it always is. **Predict first.** The network errs by 0.1
# in what it predicts. How wrong is $\hat y_0$ for each target when there is much noise (λ = −10)? When there is little?

# %%
level = torch.linspace(-10, 10, 41, device=device)
one, wrong = torch.zeros(41, 1, device=device), torch.full((41, 1), 0.1, device=device)  # y_0 = 0, ε = 0
errors = {}
for name, process in targets.items():
    guess = process.interpret((process.target(one, one, level) + wrong)[:, None], one, level)
    errors[name] = (level.cpu(), guess.x0[:, 0].abs().cpu())
show_curves(errors, "λ (left: noise, right: data)", "error of the data", "an error of 0.1 in the target", log_y=True)

# %% tags=["check"]
at_noise, at_data = ({name: float(error[i]) for name, (_, error) in errors.items()} for i in (0, -1))
assert at_noise["eps"] > 10 > 0.11 > at_noise["v"] and abs(at_data["x0"] - 0.1) < 1e-6 and at_data["eps"] < 1e-3
print(f"at λ = −10 an ε off by 0.1 is a person off by {at_noise['eps']:.0f}; at λ = 10, by {at_data['eps']:.4f}")

# %% [markdown]
# ε is the right question near the data, where details are decided, and a cruel one near noise: only a network trained
# for very long is exact enough there. So the base model asks for v by default, another question than the paper's (the
# error of $\hat\varepsilon$ follows from it and is logged), and **section 6**, which has a minute, **asks for $y_0$**.
#
# ## 5 Learned variance (E8)
#
# One step back, from $y_t$ to a less noisy $y_s$, has a Gaussian answer if $y_0$ is known. If it is not, the step must
# be wider. Two extremes have a closed form:
#
# - **lower**: the data is one known point; everything uncertain is the noise.
# - **upper**: the data is white noise itself; nothing is known beforehand.
#
# Improved DDPM lets the network place log σ² between them by a fraction $f \in [0, 1]$ for each value.


# %%
def bounds(steps):
    """λ from which each of N steps goes, and its lower and upper log-variance, (N,)."""
    log_snr = diffusion.grid(steps).double()
    step = posterior(torch.zeros(steps, 1).double(), torch.zeros(steps, 1).double(), log_snr[:-1], log_snr[1:])
    return log_snr[:-1], step.lower[:, 0], step.upper[:, 0]


figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 2.7))
level, lower, upper = bounds(10)
left.fill_between(level, lower, upper, color=PALETTE[0], alpha=0.2, lw=0)
left.plot(level, upper, label="upper: nothing known", color=PALETTE[0])
left.plot(level, lower, label="lower: data known", color=PALETTE[1])
left.set(title="10 steps", xlabel="λ", ylabel="log-variance of a step")
left.legend()
for steps in (10, 25, 100, diffusion.config.steps):
    level, lower, upper = bounds(steps)
    right.plot(level, (upper - lower).exp(), label=f"{steps} steps")
right.set(title="upper variance ÷ lower", xlabel="λ", ylim=(0.8, None))
right.legend()
plt.show()

# %% [markdown]
# With many steps the bounds nearly touch and it hardly matters. With few they part, and a wrong width costs quality:
# "fewer time steps" is what the paper wants E8 for. Where in between is right? If the data is Gaussian with deviation
# s, the answer is exact: the width of the posterior, plus what is uncertain about $y_0$.


# %%
def best_fraction(s, steps=25):
    """f that makes a step exact for data N(0, s²), from each of N levels, and those λ."""
    log_snr = diffusion.grid(steps).double()
    at_t, at_s = log_snr[:-1], log_snr[1:]
    (alpha, sigma), (alpha_s, _), r = alpha_sigma(at_t), alpha_sigma(at_s), torch.exp(at_t - at_s)
    level, lower, upper = bounds(steps)
    unsure = s**2 * sigma**2 / (alpha**2 * s**2 + sigma**2)  # Var[y_0 | y_t]
    variance = lower.exp() + ((1 - r) * alpha_s) ** 2 * unsure
    return level, (variance.log() - lower) / (upper - lower)


curves = {f"s = {s}": best_fraction(s) for s in (0.01, 0.1, 0.3, 1.0)}
show_curves(curves, "λ", "best f", "data of deviation s, 25 steps: where to go between the bounds", width=6)

# %% tags=["check"]
assert (best_fraction(1.0)[1] - 1).abs().max() < 1e-6, "white noise: the upper bound"
assert best_fraction(1e-6)[1].abs().max() < 1e-6, "one point: the lower bound"
now, before = torch.zeros(2, device=device), torch.full((2,), 0.02, device=device)

error = torch.zeros_like(data[:2])
vlb = [diffusion.vlb(torch.full_like(error, f), error, now, before) for f in (0.0, 0.5)]
assert vlb[0].abs().max() < 1e-4 < vlb[1].min()
print("with the true y_0 the lower bound costs nothing, and any wider step does")

# %% [markdown]
# The bound's gradient trains f only; the mean is left to L_simple (`diffusion.losses` cuts it off), since through the
# bound it is much noisier.

# %% [markdown]
# ## 6 Three networks
#
# One U-Net, three readings of the planes (`UNetConfig.variant`), everything else equal: residual blocks with adaptive
# normalisation by λ, attention at the low resolutions, skip connections. `aware` has the convolution of section 2 in
# its residual blocks at the high resolutions. It has more weights a channel, so a fair comparison gives the other two
# more channels (`BaseConfig.plain_channels`):

# %%
from minirodin.config import PRESETS
from minirodin.unet import VARIANTS, UNet


def parameters(network):
    return sum(weight.numel() for weight in network.parameters())


def build(settings, variant):
    """The network of a variant; as data in the box has them, 16 channels."""
    base = settings.base.of_variant(variant)
    return UNet(base.unet, data.shape[2], settings.triplane.base_resolution)


with torch.device("meta"):  # shapes only: `full` is large
    counts = {name: [parameters(build(settings, v)) for v in VARIANTS] for name, settings in PRESETS.items()}
for name, row in counts.items():
    print(f"{name:6}" + "".join(f"{v:>10} {count / 1e6:7.2f} M" for v, count in zip(VARIANTS, row, strict=True)))

# %% tags=["check"]
for name, row in counts.items():
    assert all(abs(count / row[-1] - 1) < 0.03 for count in row), (name, row)
print("in every preset within 3 % of the 3D-aware network")

# %% [markdown]
# Equal weights are not equal work: the roll-out and the 3D-aware network run their kernels over three planes, the
# baseline over one image. That is part of the bargain, and it is why the speed of section 3 matters.
#
# ### A minute of training
#
# **Predict first.** Which of the three will learn seven people fastest?
#
# Seven people, the eighth kept aside; one network each, the same steps, the same noise. Some things are made easier
# here than in `minirodin.base`, or a minute would show nothing: the networks predict $y_0$ (section 4), and the bound
# (E8) weighs less.
#
# ### What counts
#
# One thing is done as `minirodin.base` does it. Standardised, sixteen channels count alike, and so does every texel. Do
# pictures agree? **Predict first.** Move one channel after the other by the same small part of its deviation: how
# unequally do the pictures change?

# %%
from minirodin.plane_space import PlaneSpace, visible_metric

metric = visible_metric(fitted[:-1], decoder, look.render)  # E[JᵀJ], J = ∂ picture / ∂ planes
visibility = metric.diagonal().sqrt().cpu() * std.cpu()
figure, axis = plt.subplots(figsize=(6, 2.4))
axis.bar(range(len(visibility)), visibility / visibility.max(), color=PALETTE[0])
axis.set(xlabel="channel", ylabel="change of pictures", title="moved by the same part of its deviation")
plt.show()

# %% tags=["check"]
person, loudest, quietest = fitted[0], int(visibility.argmax()), int(visibility.argmin())


def change(channel):
    """Of three pictures, when a channel is moved at random by a hundredth of its deviation."""
    moved = person.clone()
    texels = torch.randn(3, resolution, resolution, generator=torch.Generator().manual_seed(2)).to(device)
    moved[:, channel] += 0.01 * std[channel] * texels
    views = [[Avatar(p, decoder, look).render(azimuth, 5, pixels) for azimuth in (0, 90, 200)] for p in (person, moved)]
    return float((torch.stack(views[1]) - torch.stack(views[0])).square().mean().sqrt())


assert change(loudest) > 3 * change(quietest)
print(f"channel {loudest} moves pictures {change(loudest) / change(quietest):.0f} times as much as channel {quietest}")

# %% [markdown]
# A loss that counts all alike is mostly about what nobody sees. So planes are diffused less the mean person, on a scale
# on which a step of one length changes a picture equally in every direction, as far as pictures are linear
# (`plane_space.py`). How much of all variance is in the details of a face, before and after?

# %%
space = PlaneSpace.of(fitted[:-1], metric)
lesson = space.standardise(fitted)
face = slice(resolution * 30 // 64, resolution * 40 // 64), slice(resolution * 22 // 64, resolution * 42 // 64)


def face_share(planes):
    """Of the variance: what a quarter of the resolution loses, on uv, from the mouth to the brows."""
    fine = planes - resize_planes(resize_planes(planes, resolution // 4), resolution)
    return float(fine[:, 0, :, face[0], face[1]].square().sum() / planes.square().sum())


shares = {"all alike": face_share(data), "as pictures see it": face_share(lesson)}
print(", ".join(f"{name}: {share:.2%}" for name, share in shares.items()))

# %% tags=["check"]
assert shares["as pictures see it"] > 1.3 * shares["all alike"]
assert torch.allclose(space.unstandardise(lesson), fitted, atol=1e-4)

# %%
crowd, stranger = lesson[:-1], lesson[-1]
steps = min(config.base.train.steps, 600)
changes = {"steps": steps, "batch": 4, "lr": 1e-3, "warmup": 10, "ema": 0.95}
changes |= {"log_every": max(1, steps // 20), "preview_every": steps, "checkpoint_every": steps, "seed": seed}
schedule = replace(config.base.train, **changes)
process = Diffusion(replace(config.base.diffusion, prediction="x0", vlb_weight=1e-5))

# %% [markdown]
# `Trainer` is the one loop of the project: it takes a network, a function that gives the losses of a batch, and one
# that draws batches; it logs, averages the weights (EMA), and would resume if it were killed. Same `seed`, same people
# and same noise for all three.

# %%
from minirodin.training import Trainer

scratch = Path(tempfile.mkdtemp())


def batches(number, generator):
    return crowd[torch.randint(len(crowd), (number,), generator=generator, device=device)]


def train(variant):
    """A trained network and its log."""
    torch.manual_seed(seed)
    trainer = Trainer(build(config, variant), process.losses, batches, schedule, scratch / variant, {"kind": variant})
    network = trainer.run(show_progress=False)
    return network.requires_grad_(False), trainer.rows


networks, logs = {}, {}
for variant in VARIANTS:
    networks[variant], logs[variant] = train(variant)

# %%
curves = {v: ([row["step"] for row in rows], [row["simple"] for row in rows]) for v, rows in logs.items()}
seconds = {variant: rows[-1]["seconds"] for variant, rows in logs.items()}
print(f"{steps} steps on {device.type}:", ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
show_curves(curves, "step", "squared error of y₀", "three networks on seven people", width=6)

# %% tags=["check"]
final = {variant: np.mean([row["simple"] for row in rows[-4:]]) for variant, rows in logs.items()}
assert all(final[variant] < 0.85 * rows[0]["simple"] for variant, rows in logs.items()), final
print("all three learn:", ", ".join(f"{variant} {value:.2f}" for variant, value in final.items()))

# %% [markdown]
# The curves bump together: the same people, the same noise. **What this figure does not say**: which network is better.
# Seven people can be memorised, and memorising needs no idea of space. Whichever curve is lowest after a minute belongs
# to the network that is quickest to learn by heart. Against a stranger all three are helpless; by noise level, on the
# seven and on the eighth:


# %%
@torch.no_grad()
def error_at(network, level, x0):
    """Squared error of ŷ_0 on (B, …) at one noise level, the same noise every time."""
    log_snr = torch.full((len(x0),), float(level), device=device)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)).to(device)
    guess = process.denoiser(network)(process.q_sample(x0, log_snr, noise), log_snr)
    return float((guess.x0 - x0).square().mean())


levels = (-8, -6, -4, -2, 0, 2, 4)
figure, axis = plt.subplots(figsize=(6.5, 3.2))
known, unknown = {}, {}
for variant, colour in zip(VARIANTS, PALETTE, strict=False):
    known[variant] = [error_at(networks[variant], level, crowd) for level in levels]
    unknown[variant] = [error_at(networks[variant], level, stranger[None]) for level in levels]
    axis.plot(levels, known[variant], color=colour, marker="o", ms=4, label=f"{variant}, the seven")
    axis.plot(levels, unknown[variant], color=colour, ls="--", label="the eighth")
nobody = float(crowd.square().mean())
axis.axhline(nobody, color=PALETTE[4], lw=1)
axis.text(4, 1.02 * nobody, "always the mean person", ha="right", va="bottom", fontsize=8, color=PALETTE[4])
axis.set(xlabel="λ (left: noise, right: data)", ylabel="squared error of ŷ₀", ylim=(0, None))
axis.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
plt.show()

# %% tags=["check"]
for variant in VARIANTS:
    assert known[variant][-1] < 0.8 * known[variant][1], "little noise is easier than much"
    assert np.mean(unknown[variant]) > np.mean(known[variant]), "a stranger is harder"

# %% [markdown]
# ### The comparison that counts
#
# needs people enough that nothing can be learned by heart: the same three networks, equal in weights and steps, trained
# on a thousand and more, judged on generated people. That took six to ten minutes of an H200 for each network
# (`tools/measure_base.sh`: 1536 people, 9000 steps of 64). **Predict first**: by how much does the stacked baseline
# lose, and do the other two differ at all?

# %%
ablation = json.loads(Path("../results/base_ablation.json").read_text())
rows = {variant: ablation["samples"][f"{variant}-dpm++-50"] for variant in VARIANTS} | {"real": ablation["real"]}
measures = ("frechet", "precision", "coverage", "disagreement", "floating")
print(f"{ablation['people']} people of each".ljust(20) + "".join(f"{measure:>14}" for measure in measures))
for name, row in rows.items():
    print(f"{name:20}" + "".join(f"{row[measure]:14.3g}" for measure in measures))
sheet = plt.imread("../results/base_variants.jpg") / 255
photo(show_images([sheet], ["baseline, rollout, aware, the same four noises; below, fitted people"], width=8))

# %%
curves = {variant: (LEVELS, missed(ablation["training"][variant])) for variant in VARIANTS}
curves["aware, people it knows"] = LEVELS, missed(ablation["training"]["aware"], "trained")
show_curves(curves, "λ (left: noise, right: data)", "squared error of ŷ₀", "strangers", log_y=True, width=6)

# %% tags=["check"]
errors = {variant: missed(ablation["training"][variant]) for variant in VARIANTS}
assert (errors["baseline"] > 1.2 * errors["aware"]).all(), "stacked planes are denoised worse at every level"
assert rows["baseline"]["frechet"] > 1.5 * max(rows["rollout"]["frechet"], rows["aware"]["frechet"])
assert rows["baseline"]["disagreement"] > rows["rollout"]["disagreement"] > rows["aware"]["disagreement"] > 1
apart = dict(zip(LEVELS, errors["rollout"] / errors["aware"] - 1, strict=True))
print("the roll-out's error beyond aware's:", ", ".join(f"{a:+.1%} at λ = {level:g}" for level, a in apart.items()))

# %% [markdown]
# The **baseline** is out: faces of streaks, clothes without a colour, planes that contradict each other. Between
# **rollout** and **aware** it is closer than in the paper. Planes of `aware` agree better, and it denoises a little
# better where shape and colour are decided; the Fréchet distances are a tie (one run each). And all are far from done:
# errors on strangers and on people they know are nearly one curve. Nothing is learned by heart yet; longer training
# would help.
#
# Why a tie? Two suspects. Attention at 16² and 8² sees all three planes in both, so that neither is cut off. And at
# equal weights the roll-out is wider: what the 3D-aware network spends on the other planes, it spends on channels. Four
# short runs question them (`STUDIES="apart rollout_apart rollout narrow" tools/measure_base.sh`, 1200 steps, 64
# people): both networks without attention, and a roll-out that is only as wide as the 3D-aware network. **Predict
# first**: who is guilty?

# %%
study = json.loads(Path("../results/base_study.json").read_text())["samples"]
questioned = json.loads(Path("../results/base_reasons.json").read_text())["samples"]
short = {"aware": study["lr-1e-3_shift-2"], "aware, no attention": questioned["apart"]}
short |= {"rollout": questioned["rollout"], "rollout, no attention": questioned["rollout_apart"]}
short |= {"rollout, no wider than aware": questioned["narrow"]}
print("after 1200 steps".ljust(30) + "".join(f"{measure:>14}" for measure in ("frechet", "disagreement")))
for name, row in short.items():
    print(f"{name:30}" + "".join(f"{row[measure]:14.3g}" for measure in ("frechet", "disagreement")))

# %% tags=["check"]
frechet = {name: row["frechet"] for name, row in short.items()}
contradicted = {name: row["disagreement"] for name, row in short.items()}
assert abs(frechet["rollout, no attention"] - frechet["rollout"]) < 5
assert frechet["aware, no attention"] < frechet["aware"] + 5, "attention is innocent"
hidden = frechet["rollout, no wider than aware"] - frechet["rollout"]
assert hidden > frechet["rollout"] - frechet["aware"] > 0, "width hides most of what seeing the other planes brings"
early = contradicted["rollout"] / contradicted["aware"]
late = rows["rollout"]["disagreement"] / rows["aware"]["disagreement"]
assert early > 1.5 * late, "training closes the gap"
print(f"the roll-out's planes contradict each other {early:.1f} times as much after 1200 steps, {late:.1f} after 9000")

# %% [markdown]
# Attention is innocent: without it `aware` is no worse, and the roll-out by less than a point. Width is guilty: a
# roll-out that is only as wide as `aware` is far behind it, and most of that gap is what equal weights hide. So is
# time: early on the roll-out's planes contradict each other almost three times as much, and with training it catches
# up. The 3D-aware convolution makes more of few channels and of few steps; at equal weights and after 9000 steps, what
# is left of that are planes that agree better. One run each, and `aware` on another day than the rest, on the same
# people fitted anew (real people were at 30.7 then, and at 30.6 now).

# %% [markdown]
# How are people who do not exist judged? By distances between sets of renders (`generation_metrics.py`: Fréchet
# distance, precision and recall, memorisation), and by one number about the planes themselves, after section 1: **do
# the planes agree on the lines they share?** `PlaneDisagreement` is about 1 for real people whom it has not seen, less
# for those it was made from, more for planes that contradict each other. To see it at work, break people on purpose:
# every uv from one person, the other two planes from the next. The render on the right looks like somebody; the number
# knows better.

# %%
from minirodin.generation_metrics import PlaneDisagreement

mixed = data.clone()
mixed[:, 0] = data.roll(1, 0)[:, 0]
judge = PlaneDisagreement().fit(data.cpu())
disagreement = {"as fitted": judge(data.cpu()), "planes mixed": judge(mixed.cpu())}
shown = [picture(planes) for planes in (data[5], data[4], mixed[5])]
titles = ["vw and wu from here …", "… and uv from here", f"disagreement {disagreement['planes mixed']:.1f}"]
photo(show_images(shown, titles, width=5))

# %% tags=["check"]
assert disagreement["planes mixed"] > 2 * disagreement["as fitted"], disagreement
print(", ".join(f"{name}: {value:.2f}" for name, value in disagreement.items()), "(eight people: a rough guide)")

# %% [markdown]
# ## 7 Sampling (E9)
#
# ### One step by hand
#
# From $y_t$ and a guess of $y_0$, where was it a moment before? Bayes: what $y_0$ says of $y_s$, times what $y_t$ says.
# Both are Gaussian; for one number, multiplied on a grid:

# %%
lam_t, lam_s = torch.tensor(-1.0), torch.tensor(0.5)
(alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(lam_t), alpha_sigma(lam_s)
y_t, y_0 = 0.9, -0.6
y_s = torch.linspace(-3, 3, 6001)
from_data = torch.exp(-((y_s - alpha_s * y_0) ** 2) / (2 * sigma_s**2))
step = alpha_t / alpha_s
from_noise = torch.exp(-((y_t - step * y_s) ** 2) / (2 * (sigma_t**2 - (step * sigma_s) ** 2)))
both = from_data * from_noise
curves = {"what ŷ₀ says": from_data, "what y_t says": from_noise, "both": both}
show_curves({n: (y_s, c / c.sum() * 1e3) for n, c in curves.items()}, "y_s", "density", "one step back", width=5.5)

# %% tags=["check"]
center = float((y_s * both).sum() / both.sum())
variance = float(((y_s - center) ** 2 * both).sum() / both.sum())
formula = posterior(torch.tensor([y_t]), torch.tensor([y_0]), lam_t, lam_s)
assert abs(center - float(formula.mean)) < 1e-4 and abs(math.log(variance) - float(formula.lower)) < 1e-3
print(f"mean {center:.4f} and variance {variance:.4f} by hand; {float(formula.mean):.4f} and "
      f"{float(formula.lower.exp()):.4f} by `posterior`")  # fmt: skip

# %% [markdown]
# ### From noise to a person
#
# The **ancestral** sampler repeats that: denoise, step back, add fresh noise. A sampler takes a denoiser, noise, a grid
# of λ and a callback, and knows nothing of networks or planes. What the network takes the person for, along the way (as
# noise is added to the mean person here, a head is always there; whose it is is not):

# %%
from minirodin.sampling import SAMPLERS, ancestral

bound = look.fit.value_range  # of fitted planes
streams = [torch.Generator().manual_seed(i) for i in range(4)]
start = torch.stack([torch.randn(lesson.shape[1:], generator=stream) for stream in streams]).to(device)


def clip(x0):
    """To where fitted planes are."""
    return space.standardise(space.unstandardise(x0).clamp(-bound, bound))


def sample(network, x, steps=16, sampler=ancestral, callback=None):
    generator = torch.Generator(device).manual_seed(seed)
    return sampler(process.denoiser(network), x, process.grid(steps, device), generator, callback, clip)


def portrait(z, azimuth=25):
    """`picture` of what the networks of this chapter make."""
    return Avatar(space.unstandardise(z), decoder, look).render(azimuth, 5, pixels).cpu()


# %%
track = []
sample(networks["aware"], start[:1], callback=lambda step, x, x0: track.append((x[0], x0[0])))
kept = [0, 3, 6, 8, 10, 12, 15]
noisy = standardise(space.unstandardise(torch.stack([track[i][0] for i in kept])), mean, std)
shown = [*planes_to_rgb(noisy.cpu(), data.cpu())[:, 0], *(portrait(track[i][1]) for i in kept)]
titles = [f"step {i + 1}" for i in kept]
photo(show_images(shown, titles, columns=len(kept), title="above: y_t, uv; below: the network's ŷ₀, rendered"), 70)

# %% tags=["check"]
moved = [float((track[i + 1][1] - track[i][1]).square().mean()) for i in range(len(track) - 1)]
assert len(track) == 16 and all(torch.isfinite(x0).all() for _, x0 in track)
print(f"the guess changes by {moved[0]:.3f} in the first step, by {moved[-1]:.3f} in the last")

# %% [markdown]
# The same four noises through the three networks. Ghosts, all of them: a minute is a minute. Beware of preferring the
# tidiest row, too. A network that has learned nothing returns the mean person, who looks tidy.

# %%
made = {variant: sample(networks[variant], start) for variant in VARIANTS}
shown = [portrait(z) for variant in VARIANTS for z in made[variant]]
titles = [variant for variant in VARIANTS for _ in start]
photo(show_images(shown, titles, columns=len(start), width=5.5))

# %% [markdown]
# ### Samplers and the number of steps
#
# Ancestral draws noise in every step. **DDIM** follows the deterministic path with the same marginals; **DPM-Solver++**
# follows it to second order. How exact they are is best seen where the truth is known: for data N(0, 0.3²) the best
# denoiser is a formula, and a sampler should return numbers of deviation 0.3.

# %%
s = 0.3


def gaussian(steps, learned):
    """The best denoiser of N(0, s²), with the best fraction of section 5 or without."""
    fraction = dict(zip(diffusion.grid(steps).tolist(), best_fraction(s, steps)[1].tolist(), strict=False))

    def denoise(x, log_snr):
        alpha, sigma = alpha_sigma(log_snr, x)
        x0 = alpha * s**2 / (alpha**2 * s**2 + sigma**2) * x
        width = torch.full_like(x, fraction[log_snr[0].item()]) if learned else None
        return Denoised(x0, (x - alpha * x0) / sigma, width)

    return denoise


# %%
numbers = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(seed))
counts = (4, 6, 8, 10, 16, 25, 50)
contest = {
    "ancestral, lower bound": (ancestral, False),
    "ancestral, learned variance": (ancestral, True),
    "ddim": (SAMPLERS["ddim"], False),
    "dpm++": (SAMPLERS["dpm++"], False),
}
deviations = {}
for name, (sampler, learned) in contest.items():
    generator = torch.Generator().manual_seed(seed)
    results = [sampler(gaussian(n, learned), numbers, diffusion.grid(n), generator) for n in counts]
    deviations[name] = (counts, [float(result.std()) for result in results])
show_curves(deviations | {"truth": (counts, [s] * len(counts))}, "steps", "deviation of what comes out", width=6)

# %% tags=["check"]
off = {name: [abs(value - s) for value in values] for name, (_, values) in deviations.items()}
ten = counts.index(10)
assert off["ancestral, lower bound"][ten] > off["ddim"][ten] > off["dpm++"][ten], off
assert off["ancestral, learned variance"][ten] < 0.5 * off["ancestral, lower bound"][ten], off
assert all(values[-1] < values[0] for values in off.values())
print("off at 10 steps:", ", ".join(f"{name} {values[ten]:.3f}" for name, values in off.items()))

# %% [markdown]
# Too little width at every step and everybody comes out too average: that is what E8 mends. And the order of a solver
# buys what the paper leaves as future work, speed. With a real network (the ablation's `aware`, 128 people each):

# %%
samplers = {"ancestral": (50, 250), "ddim": (20, 50), "dpm++": (10, 20, 50)}
curves = {"real people": ((10, 250), [ablation["real"]["frechet"]] * 2)}
for name, counts in samplers.items():
    curves[name] = counts, [ablation["samples"][f"aware-{name}-{n}"]["frechet"] for n in counts]
show_curves(curves, "calls of the network", "Fréchet distance", "quality against steps", width=6)

# %% tags=["check"]
assert all(curves[name][1][-1] < curves[name][1][0] for name in samplers), "more steps are better for all"
best = min(ablation["samples"], key=lambda name: ablation["samples"][name]["frechet"])
print(f"best: {best}. Fresh noise lets later steps mend what earlier ones got wrong; a deterministic walk cannot")

# %% [markdown]
# The exactness of a solver is not everything: all of them follow the same imperfect network. The network of this
# chapter, from one and the same noise:

# %%
few = (2, 4, 8, 16)
contest = [(name, n) for name in SAMPLERS for n in few]
made = {(name, n): sample(networks["aware"], start[:1], n, SAMPLERS[name])[0] for name, n in contest}
titles = [f"{name}, {n} steps" for name, n in made]
photo(show_images([portrait(z) for z in made.values()], titles, columns=len(few), width=6))

# %% tags=["check"]
again = sample(networks["aware"], start[:1], 8, SAMPLERS["ddim"])[0]
assert torch.allclose(again, made["ddim", 8], atol=1e-2), "deterministic: the same noise, the same person"
apart = {name: float((made[name, 16] - made["dpm++", 16]).square().mean()) for name in ("ddim", "ancestral")}
assert apart["ddim"] < apart["ancestral"], apart
print("DDIM and DPM-Solver++ walk to the same person, ancestral to another: its fresh noise decides along the way")

# %% [markdown]
# ## 8 Explorer
#
# How much noise before the network stops seeing the person, and what does it see instead? Left: the noisy planes,
# rendered; right: the network's $\hat y_0$. Person 8 is the stranger.

# %%
import ipywidgets as widgets

controls = {
    "λ": widgets.IntSlider(0, min=-10, max=10, continuous_update=False),
    "person": widgets.IntSlider(6, min=1, max=len(lesson), continuous_update=False),
    "network": widgets.Dropdown(options=VARIANTS, value="aware"),
}
views = [widgets.Image(format="png", width=192) for _ in range(2)]
noise = start[0]  # the same whatever the sliders say


@torch.no_grad()
def update(change=None):
    log_snr = torch.full((1,), float(controls["λ"].value), device=device)
    x_t = process.q_sample(lesson[controls["person"].value - 1][None], log_snr, noise[None])
    guess = process.denoiser(networks[controls["network"].value])(x_t, log_snr).x0
    for view, z in zip(views, (x_t[0], guess[0]), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(to_array(portrait(z))).save(buffer, "png")
        view.value = buffer.getvalue()


# %% tags=["nbval-ignore-output"]
for name, control in controls.items():
    control.description = name
    control.observe(update, "value")
update()
widgets.HBox([widgets.VBox(list(controls.values())), *views])

# %% tags=["check"]
moves = [("λ", -2), ("person", len(lesson)), ("network", "baseline"), ("λ", -8)]
frames = [tuple(view.value for view in views)]
for name, value in moves:
    controls[name].value = value  # what a hand on the slider does
    frames.append(tuple(view.value for view in views))
assert len({guess for _, guess in frames}) == len(frames), "a control moved and the picture did not"
print(f"{len(moves)} moves, the picture followed each")

# %%
titles = ["λ: 0, person: 6", *(f"{name}: {value}" for name, value in moves)]
pictures = [np.asarray(Image.open(io.BytesIO(png))) for side in zip(*frames, strict=True) for png in side]
photo(show_images(pictures, titles, columns=len(frames), width=7.5, title="above: noisy; below: what the network sees"))

# %% [markdown]
# ## What the paper does, what we do
#
# | the paper | here |
# | --- | --- |
# | roll-out: planes side by side, uv, wu, vw | planes in the batch dimension: the same without seams (exercise 5) |
# | 3D-aware convolution: pool, expand, concatenate | the same function, exact, at about the cost of a plain one |
# | "the same computation" for the other planes | kernels shared by the three, with a learned embedding of the plane |
# | pooling not named more closely | mean |
# | baseline: planes concatenated in channels | the same, with as many parameters as the others |
# | λ linear in t, ends not given | cosine with its middle at −1, 6 to −14 (section 4); schedule linear, shift 0: E6 |
# | L_simple on ε, plus L_VLB | the same; in this notebook alone, $y_0$ around a mean person |
# | ancestral sampling | the same, and DDIM and DPM-Solver++ |
# | conditioned on a latent | chapter 03 |

# %% [markdown]
# ## Exercises
#
# ### Exercise 1 · the wrong axes
# Published code has paired wrong rows and columns. Write `wrongly_pooled`, which pools plane k+1 and k−1 over the
# *other* axis. Cyclic permutation of the planes does not expose it: the mistake is cyclic too. Moving the volume along
# v does: uv shifts its rows, vw its columns, wu stays. Show it away from the borders.


# %% tags=["solution"]
def wrongly_pooled(x):
    planes = x.unflatten(0, (-1, 3))
    return planes.mean(-1).roll(-1, 1).flatten(0, 1), planes.mean(-2).roll(1, 1).flatten(0, 1)


def conv_with(pool, x, weight):
    down, across = pool(x)
    stacked = torch.cat([x, down[..., :, None].expand_as(x), across[..., None, :].expand_as(x)], 1)
    return F.conv2d(stacked, weight)  # no padding: the inner texels only


def move_along_v(x, by):
    uv, vw, wu = x.unflatten(0, (-1, 3)).unbind(1)
    return torch.stack([uv.roll(by, -2), vw.roll(by, -1), wu], 1).flatten(0, 1)


# %% tags=["solution"]
x, weight = torch.randn(3, 2, 16, 16).double(), torch.randn(4, 6, 3, 3).double()
for name, pool in {"right": pooled_neighbours, "wrong": wrongly_pooled}.items():
    then_moved = move_along_v(conv_with(pool, x, weight), 1)[..., 1:, 1:]
    first_moved = conv_with(pool, move_along_v(x, 1), weight)[..., 1:, 1:]
    turned = conv_with(pool, x.roll(1, 0), weight) - conv_with(pool, x, weight).roll(1, 0)
    shift_error, turn_error = (float(e.abs().max()) for e in (then_moved - first_moved, turned))
    print(f"{name}: moving the volume {shift_error:.0e}, permuting the axes {turn_error:.0e}")
    assert turn_error < 1e-12 and (shift_error < 1e-12) == (name == "right")

# %% [markdown]
# ### Exercise 2 · max instead of mean
# Pool by the maximum. Is the operator still computable by 1D convolutions? Do the shadows of section 1 still agree? How
# many texels of a pooled line does the gradient reach?

# %% tags=["solution"]
by_max = stick.amax(2), stick.roll(-1, 0).amax(1)  # uv's own rows, and what the next plane says of them
assert (by_max[0] - by_max[1]).abs().max() > 0.1 * by_max[0].max()
x = torch.randn(1, 1, 12, 12, requires_grad=True)
x.amax(-2).sum().backward()
reached = int((x.grad != 0).sum())
assert reached == 12
print(f"yes, it still is a vector; they no longer agree; and {reached} of 144 texels learn, one a line")

# %% [markdown]
# ### Exercise 3 · shift the schedule
# Call a noise level *decisive* for people at 64² when λ is between −8 and 0. Which share of t does the linear schedule
# spend there? Which shift gives planes of 256² the same decisions at the same t?

# %% tags=["solution"]
t = torch.linspace(0, 1, 10_001)
log_snr = Diffusion(schedules["linear (E6)"]).log_snr(t)
share = float(((log_snr > -8) & (log_snr < 0)).float().mean())
assert abs(share - 8 / 20) < 1e-3  # λ is linear: 8 of 20 units
shift = -math.log((256 / 64) ** 2)
print(f"{share:.0%} of t; a shift of {shift:.2f}, since 16 texels average where there was one")

# %% [markdown]
# ### Exercise 4 · count multiplications
# For C channels in and out and planes of R², write down the multiplications of a plain 3×3 convolution, of the naive
# and of the fast form, for the three planes. Check against the counter. From which R does the fast form cost less than
# 5 % more than a plain one?

# %% tags=["solution"]
C, R = width, resolution
by_formula = {"plain 3×3": 3 * 9 * C * C * R * R, "aware, naive": 3 * 27 * C * C * R * R}
by_formula["aware, fast"] = by_formula["plain 3×3"] + 3 * 2 * (3 * 3 * C * C * R)  # two lines, three sums, three taps
for name, (counted, _) in cost.items():
    assert abs(counted * 1e6 - by_formula[name]) < 1, (name, counted, by_formula[name])
print("9C²R² + 18C²R a plane: 2/R more than plain, under 5 % from R = 41")

# %% [markdown]
# ### Exercise 5 · seams
# Convolve the literal roll-out (1, C, R, 3R) instead of a batch of three planes. Which output texels of uv depend on
# another plane, and what have these texels in common in space? How far does the leak reach after n layers?

# %% tags=["solution"]
x = torch.randn(1, 3, channels, size, size, requires_grad=True)
image = rollout(x)  # uv, wu, vw
for _ in range(3):
    image = single(image)
image[0, :, :, size - 3].sum().backward()  # the third column of uv from its right edge
leaked = x.grad[0].abs().sum((1, 2)) > 0  # (3, R): columns of each plane
assert leaked[2].nonzero().flatten().tolist() == [0] and not leaked[1].any()
print("n columns after n layers: the end of u meets the beginning of w, which are nowhere near each other")

# %% [markdown]
# Next: 03 · Latent conditioning and guidance, which tells the model *whom* to make.
