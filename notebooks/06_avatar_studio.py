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
# # 06 · Avatar studio: everything under sliders
#
# A text goes in, a person comes out, and then one wants to turn the head, try a beard, or walk to somebody else. This
# chapter puts the pipeline of chapter 03 under controls. Its one idea: **what is seen is a function of a small state**,
# and each control may make anew only what depends on it. Then a camera can turn without sampling, and an edit can keep
# its noise.
#
# *Paper*: "Latent Conditioned 3D Diffusion Model", text-based creation and manipulation (E13–E16), which it shows as
# pictures. *Code*: `studio.py` (state → latent → avatar → picture), `widgets.py` (the controls), `pipeline.py`.
#
# | preset | what runs live | time | memory |
# | --- | --- | --- | --- |
# | `smoke` | a stand-in for the models (section 1), the studio, an explorer | 60 s on two cores | not measured |
# | `small`, `full` | the same: nothing here depends on the preset | as `smoke` | as `smoke` |
#
# 1 a pipeline in the box · 2 one state, three functions · 3 fast enough for a hand · 4 the studio · 5 sheets of it ·
# 6 explorer of fitted people · 7 files

# %%
import os
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from minirodin import Avatar, RodinPipeline, preset
from minirodin.plots import photo, show_images

# %% tags=["parameters"]
preset_name = os.environ.get("MINIRODIN_PRESET", "smoke")
seed = 7

# %%
config = preset(preset_name)
scratch = Path(tempfile.mkdtemp())
box = Path("../data_samples")

# %% [markdown]
# ## 1 A pipeline in the box
#
# A pipeline is an encoder, a model of latents, and a base model. The encoder in the box is trained: it reads any text.
# The other two are there as well, and with them this section is one line,
#
# ```python
# pipe = RodinPipeline.from_pretrained(box / "pretrained/small")
# ```
#
# but an avatar then takes ten seconds on two CPU cores, and this chapter makes a hundred. So two formulas stand in for
# the two networks here, in the very same `RodinPipeline`, sampler and guidance included. They know the fitted people of
# the box and nobody else. With the line above in place of this section the studio works too, its checks on who is near
# whom do not.

# %%
from minirodin.latent import ImageTextEncoder
from minirodin.portraits import read_portrait
from minirodin.shards import SharedDecoder
from minirodin.triplane import resize_planes

people = {file.stem: Avatar.load(file) for file in sorted((box / "avatars").glob("*.safetensors"))}
encoder = ImageTextEncoder.load(box / "pretrained/small/encoder", "cpu")
shared = SharedDecoder.load(box / "pretrained/small/decoder.safetensors")
known = torch.stack([resize_planes(person.planes, 64) for person in people.values()])  # (S, 3, C, 64, 64)
portraits = [read_portrait(box / "portraits" / f"{name}.webp") for name in people]
z = encoder.images(torch.stack(portraits))  # (S, 512)
print(f"{len(people)} people, planes {tuple(known.shape[1:])}, latents of {z.shape[1]} numbers")

# %% [markdown]
# **The base model's stand-in.** Say that people of latent z are normally distributed: around a mixture of the known
# ones, weighted by how much their latents look like z, and varied along the axes in which these people differ,
#
# $$y \mid z \sim \mathcal N\big(m(z),\, \textstyle\sum_k \lambda_k u_k u_k^\top\big), \qquad
# m(z) = \sum_i \mathrm{softmax}_i(12\, z \cdot z_i)\, y_i.$$
#
# Then the best denoiser is a formula, the Wiener filter of chapter 02: trust the noisy planes along $u_k$ as far as the
# signal exceeds the noise there, and take the mean for the rest. Without z the weights are all alike.

# %%
from minirodin.diffusion import alpha_sigma


class Mixture(nn.Module):
    """Called as the U-Net is: (x, λ, z, keep) → ŷ_0 as (B, 1, 3, C, R, R)."""

    def __init__(self, known, z, spread=0.2):
        super().__init__()
        self.channels, self.resolution = known.shape[2], known.shape[-1]
        self.known, self.z = known.flatten(1), z
        _, size, axes = torch.linalg.svd(self.known - self.known.mean(0), full_matrices=False)
        self.axes, self.variance = axes[:-1], spread**2 * size[:-1].square() / len(known)

    def forward(self, x, log_snr, latent, keep):
        weights = (12 * latent @ self.z.T).softmax(1) * keep[:, None] + ~keep[:, None] / len(self.z)
        mean = weights @ self.known  # (B, 3·C·R·R)
        alpha, sigma = (v.flatten(1) for v in alpha_sigma(log_snr, x))
        seen = (x.flatten(1) - alpha * mean) @ self.axes.T  # (B, K)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return (mean + (gain * seen) @ self.axes).view_as(x)[:, None]


# %% [markdown]
# **The model of latents' stand-in.** Texts lie beside the pictures of their space, by much the same step for everybody
# (chapter 03, section 6). So move a text by the mean step from captions to portraits. It says the same for every seed,
# where the real model would draw.

# %%
from minirodin.avatars.attributes import sample_attributes
from minirodin.avatars.captions import caption

captions = encoder.texts([caption(sample_attributes(int(name)), 0) for name in people])
step = z.mean(0) - captions.mean(0)


class Step:
    """Called as `LatentModel.sample` is."""

    encoder = encoder.fingerprint

    def sample(self, count, text=None, seed=0, steps=50, guidance_scale=1.0):
        return F.normalize(text + step, dim=1)


# %%
from minirodin.base import BaseModel
from minirodin.plane_space import PlaneSpace

look = shared.config
unet = replace(look.base.unet, latent=z.shape[1])
process = replace(look.base.diffusion, prediction="x0", vlb_weight=0.0)
settings = replace(look, base=replace(look.base, unet=unet, diffusion=process))
space = PlaneSpace(torch.zeros_like(known[0]), torch.eye(known.shape[2]))  # planes as they are
base = BaseModel(Mixture(known, z), shared, settings, space, encoder.fingerprint)
pipe = RodinPipeline(base, encoder, Step())

# %% [markdown]
# **Predict first.** Four texts, three seeds each. What will the seed change, and what not? Whom will the last text
# become, of which there is nobody among the known?

# %%
from minirodin.studio import EDITS, FittedPeople, Sculptor, StudioState, picture, preview_picture

sculptor = Sculptor(pipe)
start = StudioState(seed=seed, size=160)
texts = ["a bald woman with round glasses", "a man with long hair in a pink hoodie", "an old man with grey hair"]
texts += ["a young man with red hair"]
states = [replace(start, prompt=text, seed=seed + i) for text in texts for i in range(3)]


def quick(state):
    """What the state shows, as a preview: enough for a sheet."""
    return preview_picture(sculptor.avatar(state), state)


titles = [state.prompt if i % 3 == 1 else "" for i, state in enumerate(states)]
photo(show_images([quick(state) for state in states], titles, columns=6))

# %% tags=["check"]
made = torch.stack([sculptor.avatar(state).planes for state in states])
nearest = torch.cdist(made.flatten(1), known.flatten(1)).argmin(1).tolist()
assert all(len(set(nearest[i : i + 3])) == 1 for i in range(0, 9, 3)), "the text decides who, the seed does not"
assert len({nearest[0], nearest[3], nearest[6]}) == 3, nearest
assert all(not torch.equal(made[i], made[i + 1]) for i in (0, 3, 6)), "and yet no seed repeats another"
print("nearest of the known:", [list(people)[i] for i in nearest[::3]])

# %% [markdown]
# The seed changes little: so few people leave little open. Red hair nobody has, and the stand-in cannot make any. It
# mixes those whom the encoder finds least unlike.
#
# ## 2 One state, three functions
#
# All that a picture depends on is one frozen object:

# %%
for name, value in vars(start).items():
    print(f"{name:15} {value!r}")

# %% [markdown]
# It goes three ways in a row, and each step looks at a part of it:
#
# | function | looks at | costs, trained networks on a CPU |
# | --- | --- | --- |
# | `Sculptor.latent` | prompt, other, mix, edits, seed | seconds once a text, then nothing |
# | `Sculptor.avatar` | the latent, seed, guidance, steps | the sampling: half a minute or more |
# | `picture` | the avatar, camera, size, plane size | a second |
#
# **Predict first.** Somebody changes `other`, the person to walk to, while `mix` is 0. Who must work?

# %% tags=["check"]
avatar = sculptor.avatar(start)
turned = replace(start, azimuth=-50, size=96, resolution=32)
assert sculptor.avatar(turned) is avatar, "the camera samples nothing: it is the same object"
assert sculptor.avatar(replace(start, other="a woman with a white afro")) is avatar, "nobody, while mix is 0"
assert sculptor.avatar(replace(start, edits=(("beard", 0.0),))) is avatar, "strength 0 is no edit"
older = sculptor.avatar(replace(start, edits=(("age", 0.7),)))
assert older is not avatar and older.origin.seed == avatar.origin.seed, "an edit is sculpted, from the same noise"
assert sculptor.avatar(start) is avatar, "and back"
print("only what changed is made again")

# %% [markdown]
# What is kept is kept under the **numbers of the latent**, not under the controls that led there. So two ways to the
# same latent find the same person.
#
# The ends of the walk are the two people, exactly:

# %% tags=["check"]
first, last = sculptor.latent(start), sculptor.latent(replace(start, mix=1.0))
assert torch.equal(first, sculptor.person(start.prompt, seed)) and torch.equal(last, sculptor.person(start.other, seed))
half = sculptor.latent(replace(start, mix=0.5))
assert abs(float(half.norm()) - 1) < 1e-5 and abs(float(half @ first - half @ last)) < 1e-5
direct = pipe(start.prompt, seed=seed, guidance_scale=start.guidance_scale, num_inference_steps=start.steps)
assert torch.equal(direct.planes, avatar.planes), "the studio makes what the pipeline makes"
print("the ends are the two people; half way is as far from one as from the other")

# %% [markdown]
# ## 3 Fast enough for a hand
#
# A hand on a slider wants an answer in a tenth of a second or two. A full picture takes longer. So while the hand
# moves, a **preview** is drawn: 128 pixels, planes of 64², fewer samples a ray. When nothing has moved for a third of a
# second, the full picture follows. Sliders that need sampling answer when they are let go: first with few steps.

# %%
from minirodin.studio import preview_seconds

views = [preview_picture(avatar, start), picture(avatar, start)]
show_images(views, ["preview", "full"], columns=2, width=5)

# %% tags=["check"]
taken = preview_seconds(avatar)
began = time.perf_counter()
picture(avatar, start)
full = time.perf_counter() - began
assert taken["median"] < 0.5, taken
print("a frame while turning under half a second; the full picture takes longer:", full > taken["median"])

# %% [markdown]
# ## 4 The studio
#
# It needs a running kernel (`make lab`). The planes beside the picture are what the model made; their colours are the
# first three principal components of the features.

# %% tags=["nbval-ignore-output"]
from minirodin.widgets import avatar_studio, fitted_explorer

studio = avatar_studio(pipe, start)
studio

# %% [markdown]
# For those who read this without a kernel: the studio with each control moved once, one after the other.

# %% tags=["check"]
moves = [("azimuth", -30), ("beard", 0.8), ("glasses", 0.6), ("mix", 0.5), ("seed", 11), ("guidance_scale", 0.5)]
moves += [("mix", 0.0), ("beard", 0.0), ("prompt", "a woman with a white afro"), ("age", 0.4), ("elevation", 25)]
frames, planes = [studio.view.value], [studio.planes.value]
for name, value in moves:
    studio.controls[name].value = value  # what a hand on the slider does
    frames.append(studio.view.value)
    planes.append(studio.planes.value)
assert len(set(frames)) == len(frames), "a control moved and the picture did not"
still = [a == b for a, b in pairwise(planes)]
assert [name for (name, _), same in zip(moves, still, strict=True) if same] == ["azimuth", "elevation"], still
print(f"{len(moves)} moves: the picture followed each, the planes all but the camera's")

# %%
import io

titles = ["as it starts", *(f"{name.replace('_', ' ')}: {value}" for name, value in moves)]
titles = [title if len(title) < 24 else title[:22] + " …" for title in titles]
shown = [Image.open(io.BytesIO(frame)) for frame in frames]
photo(show_images(shown, titles, columns=6))

# %% [markdown]
# What the studio is asked wrongly, it answers with a line, and keeps the last picture:

# %% tags=["check"]
before = studio.view.value
studio.controls["prompt"].value = "  "
assert "prompt is empty" in studio.message.value and studio.view.value == before
studio.controls["prompt"].value = "a woman with a white afro"
studio.draw()  # what happens by itself when the hand rests
assert "full picture" in studio.message.value and Image.open(io.BytesIO(studio.view.value)).size == (160, 160)
print("a mistake is one line; the next picture is there again")

# %% [markdown]
# ## 5 Sheets
#
# ### Edits
#
# Down: three people. Across: one slider each, at 0.8. **Predict first**: which of these can the stand-in do on its own
# account, and which bring a stranger's clothes along?

# %%
shown, titles = [], []
for text in texts[:3]:
    for name in (None, *EDITS):
        edits = ((name, 0.8),) if name else ()
        shown.append(quick(replace(start, prompt=text, edits=edits)))
        titles.append((name or "as asked for") if text == texts[0] else "")
photo(show_images(shown, titles, columns=7))

# %% [markdown]
# The direction is right: towards the person who has the attribute, and towards that person altogether, clothes and all.
# A mixture of eight cannot part an attribute from its owner. That takes a network that has seen thousands; how far ours
# gets is what `minirodin judge` counts.
#
# ### A walk

# %%
mixes = [i / 6 for i in range(7)]
walk = [replace(start, mix=mix) for mix in mixes]
photo(show_images([quick(state) for state in walk], [f"mix {mix:.2f}" for mix in mixes], columns=7))

# %% tags=["check"]
ways = torch.stack([sculptor.avatar(state).planes for state in walk])
strides = (ways[1:] - ways[:-1]).flatten(1).norm(dim=1)
assert strides.max() < 0.8 * (ways[-1] - ways[0]).norm(), strides
assert (ways - ways[0]).flatten(1).norm(dim=1).diff().gt(0).all(), "each further from the first than the one before"
print("strides, in parts of the way:", [round(float(s / (ways[-1] - ways[0]).norm()), 2) for s in strides])

# %% [markdown]
# ### Guidance
#
# From nobody in particular to too much of somebody:

# %%
scales = (0, 0.5, 1, 1.5, 2, 3, 5)
photo(show_images([quick(replace(start, guidance_scale=s)) for s in scales], [f"λ = {s:g}" for s in scales], columns=7))

# %% [markdown]
# ## 6 Explorer of fitted people
#
# The same panel without any generation: who, from where, and at which plane size. It works for every folder that
# `minirodin fit` leaves (`Avatar.load`).

# %% tags=["nbval-ignore-output"]
names = list(people)
explorer = fitted_explorer(people, StudioState(prompt=names[1], size=160))
explorer

# %%
source, sizes = FittedPeople(people), (64, 32, 16, 8)
shown = [picture(source.avatar(s), s) for s in (StudioState(names[1], size=160, resolution=r) for r in sizes)]
turn = [StudioState(names[i], azimuth=a, size=160) for i, a in ((2, -60), (3, -25), (5, 30), (6, 75))]
shown += [preview_picture(source.avatar(s), s) for s in turn]
titles = [*(f"planes of {r}²" for r in sizes), *(f"{s.prompt}, {s.azimuth:g}°" for s in turn)]
photo(show_images(shown, titles, columns=4, width=8))

# %% tags=["check"]
frames = [explorer.view.value]
for name, value in {"azimuth": -60, "elevation": 30, "resolution": 16, "prompt": names[3]}.items():
    explorer.controls[name].value = value
    frames.append(explorer.view.value)
assert len(set(frames)) == 5, "a control moved and the picture did not"
print("4 moves, the picture followed each")

# %% [markdown]
# ## 7 Files
#
# The buttons write the full picture, a turntable, or a mesh into the folder of the text box, under the next free name.

# %% tags=["check"]
studio.folder.value = str(scratch)
studio.buttons["png"].click()
files = sorted(scratch.glob("avatar-*"))
assert [file.name for file in files] == ["avatar-000.png"] and Image.open(files[0]).mode == "RGBA"
print("saved", files[0].name, Image.open(files[0]).size)

# %% [markdown]
# In the folder of the studio, `avatar.export("person.glb")` and `avatar.turntable("turn.mp4")` are the same by hand.
#
# ## What the paper does, what we do
#
# | the paper | here |
# | --- | --- |
# | texts through CLIP, portraits through inversion | the project's own encoder |
# | edits z + λδ, shown at chosen strengths | the same under a slider, back to length 1, with the noise kept |
# | interpolation of latents | the same, on the arc |
# | a diffusion model trained on 100 000 people | here a formula that knows eight; in the box, models of 10 240 |
#
# ## Exercises
#
# ### Exercise 1 · two edits
# Does it matter in which order two sliders are moved? And is 0.4 + 0.4 of an edit the same as 0.8?

# %% tags=["solution"]
both = replace(start, edits=(("beard", 0.5), ("age", 0.5)))
other_way = replace(start, edits=both.edits[::-1])
assert torch.allclose(sculptor.latent(both), sculptor.latent(other_way), atol=1e-6)
delta, z0 = sculptor.direction(*EDITS["age"]), sculptor.latent(start)
twice = F.normalize(F.normalize(z0 + 0.4 * delta, dim=0) + 0.4 * delta, dim=0)
assert 0.9 < float(twice @ sculptor.latent(replace(start, edits=(("age", 0.8),)))) < 1 - 1e-5
print("no order: all δ are added before the length is mended. Twice 0.4 is not 0.8: the length is mended twice")

# %% [markdown]
# ### Exercise 2 · how many steps?
# The stand-in's denoiser is exact. How many steps does it need until nothing moves any more? Would you expect the same
# of a network?

# %% tags=["solution"]
best = sculptor.avatar(replace(start, steps=100)).planes
for steps in (1, 2, 4, 8, 25):
    error = (sculptor.avatar(replace(start, steps=steps)).planes - best).norm() / best.norm()
    print(f"{steps:3} steps: off by {error:.2%}")
assert error < 0.01
print("few: a Gaussian's path is nearly straight. A network's people are many, and the path turns towards one of them")
