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
# # 03 · Latent conditioning and guidance: telling the model whom to make
#
# Chapter 02 drew people out of noise, and nobody had a say in who came. This chapter adds one vector z that says it.
# It is read from a portrait by a frozen encoder, it enters every block of the network, and since texts are encoded into
# the same space, it can be written in English. What z says can be exaggerated (guidance), invented (a second diffusion
# model), and changed (edits).
#
# *Paper*: section "Latent Conditioned 3D Diffusion Model", part "Latent conditioning" (equations E13–E16 of the
# README's table). *Code*: `latent.py`, `encoder_training.py`, `unet.py`, `guidance.py`, `base_training.py`,
# `latent_diffusion.py`, `pipeline.py`.
#
# | preset | what is trained live, on eight people | time | memory |
# | --- | --- | --- | --- |
# | `smoke` | encoder, latent model, base model: 1.4 M weights, planes of 8² | 95 s on two cores (CPU 155 s) | 0.7 GB |
# | `small` | the same; 9.4 M weights, planes of 16² | 20 min on two cores; on a GPU not measured yet | 1.1 GB (CPU) |
# | `full` | the same; planes of 16² | not measured yet | not measured yet |
#
# Eight people are enough to see every mechanism work, and far too few to learn what people are like. What does not work
# for that reason is said where it happens; section 8 has the commands for the real sizes.
#
# 1 what the latent knows · 2 into every block · 3 withholding it · 4 guidance · 5 a model of latents ·
# 6 portraits, texts, edits · 7 explorer · 8 the real sizes

# %%
import io
import json
import os
import tempfile
import textwrap
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image
from torch import nn

from minirodin import Avatar, Capture, RodinPipeline, preset
from minirodin.plots import PALETTE, STYLE, photo, show_curves, show_images, to_array

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
# ## 1 What the latent knows (E13)
#
# Twelve portraits are in the box. Eight of these people also have planes there (chapter 01): they are this chapter's
# whole world. The other four are strangers. A person's attributes follow from the seed, and captions from the
# attributes (chapter 00); a capture of one view holds them together.

# %%
from minirodin.avatars.attributes import sample_attributes
from minirodin.avatars.captions import caption
from minirodin.cameras import orbit_cameras, save_capture
from minirodin.portraits import Portraits, jitter

size, camera = 128, orbit_cameras(0, 0, 128)
files = sorted(Path("../data_samples/portraits").glob("*.webp"))
for i, file in enumerate(files):
    person = sample_attributes(int(file.stem))
    picture = Image.open(file).convert("RGBa").resize((size, size)).convert("RGBA")  # weighted by alpha
    capture = Capture(file.stem, np.asarray(picture)[None], camera, caption(person, 0), person.to_dict())
    save_capture(capture, scratch / ("eight" if i < 8 else "strangers") / file.stem)
eight, strangers = (Portraits.load(scratch / name) for name in ("eight", "strangers"))

# %% [markdown]
# The encoder shall see the person and not the photograph. So a portrait is never shown to it twice the same: `jitter`
# moves, turns, tints and blurs it and changes the background, and never mirrors it, since a parting has a side.

# %%
generator = torch.Generator().manual_seed(seed)
varied = [jitter(eight.pictures[:, 0], generator, 96).movedim(1, -1) for _ in range(2)]
shown = [*eight.pictures[:, 0], *varied[0], *varied[1]]
photo(show_images(shown, columns=8, title="the eight, and two varied versions of each"))

# %% [markdown]
# The paper takes CLIP's image encoder, frozen. `ImageTextEncoder.load("ViT-B-32/laion2b_s34b_b79k")` is such a one
# where its weights can be downloaded. The project has its own too, which `train_encoder` learns from portraits and
# captions. Three terms: a portrait and its caption shall be closer than that portrait and another's caption (a text
# that happens to be true of both does not count); among short prompts of one attribute ("red hair", "black hair" …)
# the portrait shall be closest to the true one; and linear heads shall read the same attributes off its embedding.

# %%
from minirodin.encoder_training import assess_encoder, train_encoder

steps = min(3 * config.encoder.train.steps // 4, 600)
changes = {"steps": steps, "batch": 32, "lr": 1.5e-3, "log_every": max(1, steps // 15), "seed": seed}
schedule = replace(config.encoder.train, **changes, preview_every=steps, checkpoint_every=steps)
small = {"tower": "", "patch": 8, "layers": 2, "text_layers": 1}  # eight people need no deep one …
small |= {"prompt_weight": 1.0, "attribute_weight": 1.0}  # … nor the weights of thousands
seeing = replace(config.encoder, **small, train=schedule)
settings = replace(config, encoder=seeing)
encoder = train_encoder(eight, settings, scratch / "rodin/encoder", show_progress=False)
identity = encoder.fingerprint


# %%
def log_of(folder):
    """The columns of a training log by name."""
    return np.genfromtxt(scratch / folder / "log.csv", delimiter=",", names=True)


log = log_of("rodin/encoder")
print(f"{steps} steps, {log['seconds'][-1]:.0f} s; {encoder.size} numbers a latent, {encoder.tokenizer.size} tokens")
show_curves({name: (log["step"], log[name]) for name in ("captions", "prompts")}, "step", "loss", width=5)

# %% [markdown]
# ### Retrieval
#
# **Predict first.** Show it portraits varied as never before, and captions worded as never before. One number for each
# pair, the cosine of their latents. Where are the large ones? Which two people will be confused first?

# %%
generator = torch.Generator(device).manual_seed(seed + 1)
pictures = eight.pictures[:, 0].to(device)
fresh = torch.stack([jitter(pictures, generator, encoder.towers.size) for _ in range(8)])  # (draws, people, 3, s, s)
seen = encoder.images(fresh.flatten(0, 1)).unflatten(0, (8, 8)).cpu()
words = [caption(person, 1000) for person in eight.attributes]
said = encoder.texts(words).cpu()
grid = said @ seen[0].T  # (captions, portraits)

# %%
figure, (matrix, below) = plt.subplots(2, 1, figsize=(8.5, 5.2), height_ratios=(8, 1.2), sharex=True)
matrix.imshow(grid, cmap="Blues", vmin=-0.3, vmax=1, aspect="auto")
for (i, j), value in np.ndenumerate(grid.numpy()):
    matrix.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.55 else "black")
matrix.set_yticks(range(8), ["\n".join(textwrap.wrap(text, 62)) for text in words], fontsize=7)
for j, picture in enumerate(fresh[0].cpu()):
    small = OffsetImage(to_array(picture.movedim(0, -1)), zoom=45 / picture.shape[-1])
    below.add_artist(AnnotationBbox(small, (j, 0.5), frameon=False))
below.set(ylim=(0, 1), yticks=[], xticks=[])
for axis in (matrix, below):
    axis.grid(False)
    axis.spines[:].set_visible(False)
photo(figure)

# %% tags=["check"]
likeness = torch.einsum("td,pkd->tpk", said, seen.transpose(0, 1))  # caption, person, draw
found = (likeness.argmax(0) == torch.arange(8)[:, None]).float().mean()
heard = (likeness.mean(2).argmax(1) == torch.arange(8)).float().mean()
assert found > 0.6 and heard > 0.6, (found, heard)
print(f"of 64 fresh portraits {found:.0%} find the person's caption among eight; of 8 captions {heard:.0%} the person")

# %% [markdown]
# ### Attributes as directions
#
# If texts and pictures share a space, the difference of two texts is a **direction** for pictures. From "a woman" to "a
# man", say: δ = E("a man") − E("a woman"). Project the fresh portraits on it and put the people in that order. Green
# frames: those who are so.

# %%
directions = {
    "a man": ("a woman", lambda a: a.gender == "man"),
    "an old person": ("a young person", lambda a: a.age >= 62),
    "a person with white hair": ("a person with brown hair", lambda a: a.hair_color == "white"),
    "a person with a goatee": ("a person with no beard", lambda a: a.facial_hair == "goatee"),
}


def along(target, source):
    """Where the fresh portraits lie from one text to another, (draws, people)."""
    there, here = encoder.texts([target, source]).cpu()
    return seen @ F.normalize(there - here, dim=0)


places = {target: along(target, source) for target, (source, _) in directions.items()}
truth = {target: torch.tensor([rule(a) for a in eight.attributes]) for target, (_, rule) in directions.items()}

# %%
figure, axes = plt.subplots(4, 8, figsize=(8.5, 6.2))
for row, (target, place) in zip(axes, places.items(), strict=True):
    for axis, person in zip(row, place.mean(0).argsort().tolist(), strict=True):
        axis.imshow(to_array(eight.pictures[person, 0]))
        axis.set(xticks=[], yticks=[], xlabel=f"{place[:, person].mean():.2f}")
        axis.grid(False)
        axis.spines[:].set(visible=bool(truth[target][person]), color=PALETTE[2], linewidth=3)
    row[0].set_title(f"← {directions[target][0]}")
    row[-1].set_title(f"{target} →", loc="right")
photo(figure)


# %% tags=["check"]
def ranked(place, yes):
    """How often somebody who is so lies further along than somebody who is not; 0.5 is chance."""
    return float((place[:, yes].flatten()[:, None] > place[:, ~yes].flatten()).float().mean())


ranks = {target: ranked(place, truth[target]) for target, place in places.items()}
assert np.mean(list(ranks.values())) > 0.75, ranks
print("in the right order:", ", ".join(f"{target} {rank:.0%}" for target, rank in ranks.items()))

# %% [markdown]
# And of people whom it never saw? A prompt for each class, the nearest one wins:

# %%
for name, people in {"the eight": eight, "four strangers": strangers}.items():
    results = assess_encoder(encoder, people)
    print(f"{name}: {results['mean']:.0%} of attributes named, always the commonest {results['most_frequent']:.0%}")

# %% [markdown]
# **Nothing.** It has learned eight people by heart, and the words that tell them apart. That is all that eight people
# can teach. Learned from thousands (`minirodin train encoder`), a network has to find what red hair looks like
# on anybody. For what follows one thing matters, and it holds: each of the eight has a place of their own, near the
# texts about them.

# %% tags=["check"]
copies = torch.einsum("kpd,lpd->pkl", seen, seen)[:, ~torch.eye(8, dtype=bool)].mean()
others = torch.einsum("kpd,lqd->pqkl", seen, seen).mean((2, 3))[~torch.eye(8, dtype=bool)].mean()
assert copies > others + 0.4, (copies, others)
assert not encoder.towers.training and not any(p.requires_grad for p in encoder.towers.parameters()), "frozen"
assert torch.allclose(seen.norm(dim=-1), torch.ones(8, 8), atol=1e-4)
print(f"cosine of two pictures of one person {copies:.2f}, of two people {others:.2f}; all latents have length 1")

# %% [markdown]
# ### Learned from thousands
#
# What the same three terms, the second and third with ten times the weight, made of 5000 people is in the box: four
# portraits each, four minutes of a GPU (the README has the command). What sees is a convolutional network there: the
# transformer that was tried first hardly told round glasses from square ones. Nobody below was among the 5000.
# **Predict first**: what will it name best, what worst?

# %%
from minirodin.encoder_training import CLASSES, prompt_texts
from minirodin.latent import ImageTextEncoder
from minirodin.portraits import plain

trained = ImageTextEncoder.load("../data_samples/pretrained/small/encoder", device)
wide = [Image.open(f).convert("RGBA") for f in files]
seen_well = plain(torch.from_numpy(np.stack([np.asarray(picture) for picture in wide])), trained.towers.size)
found = trained.images(seen_well).cpu()
texts = torch.stack([trained.texts(wordings[:8]).mean(0) for wordings in prompt_texts()]).cpu()
scores = found @ F.normalize(texts, dim=1).T  # (portraits, classes)


def named(aspect):
    """The nearest class of one aspect for each portrait."""
    those = [i for i, (a, _) in enumerate(CLASSES) if a.name == aspect]
    return [CLASSES[those[i]][1] for i in scores[:, those].argmax(1)]


says = [named(aspect) for aspect in ("gender", "hair_color", "hair_style", "glasses", "hat", "clothing")]
titles = ["\n".join((", ".join(words[:3]), f"glasses {words[3]}, hat {words[4]}")) for words in zip(*says, strict=True)]
photo(show_images([picture.resize((160, 160)) for picture in wide], titles, columns=6, width=9.5))

# %%
measured = json.loads(Path("../results/encoder.json").read_text())["attributes"]
rates = sorted(((row["accuracy"], row["most_frequent"], name) for name, row in measured.items()), reverse=True)
figure, axis = plt.subplots(figsize=(8.5, 3.0))
right, common, names = zip(*rates, strict=True)
axis.bar(range(len(rates)), right, color=PALETTE[0], label="named right")
axis.plot(range(len(rates)), common, "_", ms=14, mew=2, color=PALETTE[1], label="always the commonest")
axis.set_xticks(range(len(rates)), [name.replace("_", " ") for name in names], rotation=60, ha="right")
axis.set(ylim=(0, 1), ylabel="share of views", title="512 people it never saw")
axis.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
photo(figure)

# %% tags=["check"]
truths = eight.attributes + strangers.attributes
hits = {aspect: [getattr(a, aspect) for a in truths] for aspect in ("hair_color", "hat", "gender")}
seen_hair = [a.hair_style != "bald" and a.hat == "none" for a in truths]
for aspect, wanted in hits.items():
    pairs = [(w, n) for w, n, ok in zip(wanted, named(aspect), seen_hair, strict=True) if ok or aspect != "hair_color"]
    share = np.mean([w == n for w, n in pairs])
    assert share > 0.75, (aspect, pairs)
    print(f"{aspect}: {share:.0%} of {len(pairs)}")
assert measured["glasses"]["accuracy"] > 0.95 > measured["hair_style"]["accuracy"] > 0.9

# %% [markdown]
# Hats, clothes, hair colours, beards and glasses it names as well as one could ask; hair styles nearly (93 %): from the
# front, tied-back hair looks like a buzz cut. Age, expression, the colour of eyes and make-up are harder; of earrings,
# freckles and wavy hair it knows next to nothing: always saying the commonest would do as well. The rest of this
# notebook goes on with the little encoder of the eight, whose planes it can train on in a minute.

# %% [markdown]
# ## 2 Into every block (AdaGN)
#
# How does one vector steer a network of images? Not as another channel: as **knobs**. Each residual block normalises
# its features to mean 0 and deviation 1, group by group of channels, and then lets an embedding e turn them up, down
# or aside, one scale and one shift for each channel, the same everywhere on the plane:
#
# $$\mathrm{AdaGN}(h, e) = \mathrm{GroupNorm}(h) \cdot (1 + s(e)) + b(e), \qquad
# e = e_\lambda + e_z + e_{\mathrm{plane}}.$$
#
# The noise level has entered this way since chapter 02; z is one more summand. By hand:

# %%
from minirodin.unet import LatentEmbedding, ResBlock


def by_hand(block, x, embedding):
    """What `ResBlock` computes; its second norm, the adaptive one, spelled out."""
    h = block.conv1(block.norm1(x))
    groups = rearrange(h, "n (g c) y x -> n g (c y x)", g=block.norm2.num_groups)
    groups = groups - groups.mean(2, keepdim=True)
    groups = groups / (groups.square().mean(2, keepdim=True) + block.norm2.eps).sqrt()
    h = groups.view_as(h) * block.norm2.weight[:, None, None] + block.norm2.bias[:, None, None]
    scale, shift = block.modulation(F.silu(embedding))[..., None, None].chunk(2, dim=1)  # (N, D, 1, 1)
    h = F.silu(h * (1 + scale) + shift)
    return block.skip(x) + block.conv2(h)


# %% tags=["check"]
block = ResBlock(8, 12, embedding=32, aware=True, dropout=0.0).double()
x, e, other = torch.randn(3, 8, 10, 10).double(), *torch.randn(2, 3, 32).double()
assert torch.equal(block(x, e), block(x, other)), "newborn: all knobs at zero"
for parameter in block.parameters():
    nn.init.normal_(parameter, std=0.2)
error = (block(x, e) - by_hand(block, x, e)).abs().max().item()
assert error < 1e-9 and (block(x, e) - block(x, other)).abs().max() > 0.1
print(f"by hand and by ResBlock: equal within {error:.0e}; and another embedding makes another image")

# %% [markdown]
# **Predict first.** A scale and a shift for a channel know nothing of *where*. How can the vector put a beanie on top
# of the head and not on the shoulders?
#
# It cannot, alone. Some channels must already light up on top of the head. The vector picks among them. The network
# finds out where it is from the borders of the planes, which is quickest at its lowest resolutions.
#
# ## 3 Withholding it (E14)
#
# In training, z is withheld one time in five, and a **null embedding** takes its place. So one network learns two
# things: people as z says, and people as they come. Section 4 needs both. The null belongs to one class, which also
# decides when it is used; a caller only says whom to tell.

# %% tags=["check"]
embed = LatentEmbedding(latent=encoder.size, embedding=32)
keep = torch.tensor([True, False, True, False])
z = seen[0, :4].requires_grad_()
e = embed(z, keep)
assert torch.equal(e[1], embed.null) and torch.equal(e[3], embed.null) and not torch.equal(e[0], e[2])
e.square().sum().backward()
assert z.grad[~keep].abs().max() == 0 < z.grad[keep].abs().min(1).values.max(), "a withheld latent leaves no trace"
print("who is not told gets the null embedding, whatever z is")

# %% [markdown]
# ### The eight, coarsely
#
# Now the base model. A minute is not enough for planes of 64². So the eight are kept very coarse here, and drawn as
# what they add to a fine mean person. Above: the mean, and the eight as fitted. Below: what coarse planes leave.

# %%
from minirodin.avatar import to_rgb
from minirodin.shards import FittedPlanes, SharedDecoder
from minirodin.triplane import resize_planes

coarse, fine = config.triplane.base_resolution // 4, 64
fitted = [Avatar.load(file) for file in sorted(Path("../data_samples/avatars").glob("*.safetensors"))]
fitted = torch.stack([resize_planes(person.planes, fine) for person in fitted]).to(device)
mean_person = fitted.mean(0)
known = resize_planes(fitted, coarse)  # (8, 3, C, r, r)

given = SharedDecoder.load("../data_samples/pretrained/small/decoder.safetensors")
triplane = replace(given.config.triplane, base_resolution=coarse)
render = replace(config.render, grid=3 * config.render.grid // 4)  # enough for people this smooth
look = replace(given.config, triplane=triplane, render=render)
shared = SharedDecoder(given.decoder.to(device), look, resize_planes(given.mean_planes, coarse), given.mean, given.std)


# %%
def drawn(planes, azimuth=20, pixels=96):
    """Coarse planes (3, C, r, r) as a picture: the fine mean person, and what they add to it."""
    added = planes.to(device) - known.mean(0)
    return to_rgb(
        Avatar(mean_person + resize_planes(added, fine), shared.decoder, look).render(azimuth, 5, pixels)
    ).cpu()


wanted = [drawn(planes) for planes in known]
as_fitted = [to_rgb(Avatar(planes, shared.decoder, look).render(20, 5, 96)).cpu() for planes in (mean_person, *fitted)]
titles = ["the mean", *[""] * 8, f"below: {coarse}²", *[""] * 8]
photo(show_images([*as_fitted, torch.ones_like(wanted[0]), *wanted], titles, columns=9))

# %% [markdown]
# Their latents: `encode_people` embeds each portrait plainly and seven times varied, so that the base model does not
# take the accidents of one photograph for the person.

# %%
from minirodin.latents import encode_people

data = scratch / "fitted"
latents = encode_people(encoder, scratch / "eight", data / "latents.safetensors", show_progress=False)
FittedPlanes(data).write_shard(dict(zip(latents.names, known, strict=True)), shared)
shared.save(data / "decoder.safetensors")
z = F.normalize(latents.latents[:, 0].float(), dim=1)  # of the plain portraits; the file has 16 bits
print(f"{len(latents)} people, {latents.latents.shape[1]} latents and {latents.texts.shape[1]} texts of each")

# %% [markdown]
# The network is the U-Net of chapter 02 with a `latent`. It predicts $y_0$, for noise from λ = 1 down: of people this
# coarse, less noise hides nothing. `train_base` finds the latents beside the planes, and draws one of a person's eight
# for every step. It works in a space of its own: planes less the mean person, channels measured by what they do to
# pictures (`plane_space.py`).

# %%
from minirodin.base_training import train_base

width = max(32, config.base.unet.channels[0])
shape = {"channels": (width, 2 * width, 2 * width), "attention": (coarse // 2, coarse // 4)}
process = {"prediction": "x0", "vlb_weight": 0.0, "log_snr_max": 1.0, "log_snr_min": -8.0}
process |= {"schedule": "linear", "shift": 0.0}  # details, which the base model's shift is for, are few here
steps = min(7 * config.base.train.steps, 1000)
changes = {"steps": steps, "batch": 8, "lr": 0.08 / width, "warmup": 20, "ema": 0.97, "seed": seed}
changes |= {"log_every": max(1, steps // 20), "preview_every": 2 * steps, "checkpoint_every": 2 * steps}
base = replace(
    config.base,
    unet=replace(config.base.unet, latent=encoder.size, **shape),
    diffusion=replace(config.base.diffusion, **process),
    train=replace(config.base.train, **changes),
)

# %%
settings = replace(config, triplane=triplane, base=base)
model = train_base(data, settings, scratch / "rodin/base", show_progress=False)
log = log_of("rodin/base")
count = sum(p.numel() for p in model.network.parameters())
print(f"{count / 1e6:.1f} M weights, {steps} steps on {device.type}: {log['seconds'][-1]:.0f} s")
show_curves({"squared error of y₀": (log["step"], log["simple"])}, "step", "squared error of y₀", width=5)

# %% [markdown]
# Did z matter? The same noise on the same eight people, and the network is told the truth, nothing, or a lie (the next
# person's latent). **Predict first**: where on the axis of noise do the three part?

# %%
targets = model.space.standardise(known)
size_of = float(targets.square().mean())  # how far the eight are from their mean


@torch.no_grad()
def error_at(level, latent, told):
    """Squared error of ŷ_0 on the eight at one noise level, mean over a few noises; 1 is the mean person's."""
    x0, who = targets.repeat(4, 1, 1, 1, 1), latent.to(device).repeat(4, 1)
    log_snr, keep = torch.full((len(x0),), float(level), device=device), torch.full((len(x0),), told, device=device)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)).to(device)
    x_t = model.diffusion.q_sample(x0, log_snr, noise)
    guess = model.diffusion.interpret(model.network(x_t, log_snr, who, keep), x_t, log_snr)
    return float((guess.x0 - x0).square().mean()) / size_of


levels = (-8, -6, -4, -3, -2, -1, 0, 1)
told = {"told the truth": (z, True), "told nothing": (z, False), "told a lie": (z.roll(1, 0), True)}
errors = {name: (levels, [error_at(level, *how) for level in levels]) for name, how in told.items()}
show_curves(errors, "λ (left: noise, right: data)", "squared error of ŷ₀", "1 is the error of the mean person", width=6)

# %% tags=["check"]
true, nothing, lie = (np.array(values) for _, values in errors.values())
assert true[0] < nothing[0] - 0.1 and nothing[0] < lie[0], (true[0], nothing[0], lie[0])
assert nothing[-1] - true[-1] < 0.8 * (nothing[0] - true[0]), "with little noise one sees who it is"
assert model.network.latent.null.abs().max() > 0, "the null embedding was learned"
print(f"pure noise: {true[0]:.2f} with z, {nothing[0]:.2f} without; little noise: {true[-1]:.2f} and {nothing[-1]:.2f}")

# %% [markdown]
# Where there is only noise, the network knows what z tells it and no more: untold, it can do no better than the mean
# person. Where the person shows through, there is less to tell. **So z matters most at the beginning of sampling.** A
# lie, though, is believed to the end: having learned one answer to each latent by heart, this network hardly looks.
# Thousands of people should make it look.
#
# And in which blocks does z speak? How much the knobs of each block move with the person, beside how much they move
# with the noise level:

# %%
blocks = [module for module in model.network.modules() if isinstance(module, ResBlock)]
knobs = [[] for _ in blocks]
hooks = []
for block, kept in zip(blocks, knobs, strict=True):
    hooks.append(block.modulation.register_forward_hook(lambda *call, kept=kept: kept.append(call[2].float())))
with torch.no_grad():
    for level in levels:
        log_snr = torch.full((8,), float(level), device=device)
        model.network(targets, log_snr, z.to(device), torch.ones(8, dtype=torch.bool, device=device))
for hook in hooks:
    hook.remove()
turned = [torch.stack(k).unflatten(1, (8, 3)) for k in knobs]  # (levels, people, planes, 2·D)
by_person = [float(k.std(1).mean()) for k in turned]
by_noise = [float(k.std(0).mean()) for k in turned]

# %%
figure, axis = plt.subplots(figsize=(7.5, 2.6))
place = np.arange(len(blocks))
axis.bar(place - 0.2, by_person, 0.4, label="over people")
axis.bar(place + 0.2, by_noise, 0.4, label="over noise levels")
axis.set(xlabel="residual block, from the first to the last", ylabel="deviation of the knobs", xticks=place)
axis.grid(axis="x", visible=False)
axis.legend()
plt.show()

# %% tags=["check"]
assert min(by_person) > 0 and sum(by_person) > sum(by_noise)
assert len(blocks) == len([m for m in model.network.modules() if hasattr(m, "modulation")])
assert all(b.modulation.in_features == model.network.latent.null.numel() for b in blocks)
print(f"z reaches all {len(blocks)} residual blocks, and turns the knobs further than the noise level does")

# %% [markdown]
# ### With and without
#
# Everything is random twice: z, and the noise $y_T$. Hold one and vary the other. `BaseModel.sample` takes both.


# %%
def apart(a, b):
    """Mean squares of what two batches of planes differ by, (…); 1 is how far the eight are from their mean."""
    difference = model.space.standardise(a.to(device)) - model.space.standardise(b.to(device))
    return difference.square().mean((-4, -3, -2, -1)).cpu() / size_of


def distance(made):
    """Of planes (B, 3, C, r, r) to each of the eight, (B, 8)."""
    return apart(made[:, None], known)


def sample(latent, noise, scale=1.0, steps=10):
    return model.sample(noise, steps, latent=latent, guidance_scale=scale, seed=seed)


noise = model.noise(8, seed)
one_noise, one_person = noise[2:3].expand_as(noise).contiguous(), z[5:6].expand_as(z)
made = {
    "one noise, eight latents": sample(z, one_noise),
    "one latent, eight noises": sample(one_person, noise),
    "no latent, the same eight noises": sample(None, noise),
}

# %%
figure = show_images([*wanted, *(drawn(d) for row in made.values() for d in row)], [""] * 32, columns=8)
for axis, name in zip(figure.axes[::8], ("whom the latents are of", *made), strict=True):
    axis.set_title(name, loc="left", fontsize=8)
photo(figure)

# %% tags=["check"]
nearest = {name: distance(row).argmin(1) for name, row in made.items()}
right = int((nearest["one noise, eight latents"] == torch.arange(8)).sum())
same = int((nearest["one latent, eight noises"] == 5).sum())
variety = {name: float(apart(row, row.mean(0)).mean()) for name, row in made.items()}
assert right >= 5 and same >= 5, (right, same)
assert variety["one latent, eight noises"] < 0.7 * variety["no latent, the same eight noises"], variety
print(f"nearest to whom the latent is of: {right} of eight latents; with one latent, {same} of eight noises")

# %% [markdown]
# The latent decides who, and the noise what is left open: next to nothing, when there is one person to a latent. Faces
# are the mean person's: planes this coarse have none. Without a latent people come out mixed up. That branch had one
# lesson in five, and a harder one: not one answer, but eight.
#
# ## 4 Guidance (E14)
#
# A network that half believes z makes people that are half right. Guidance exaggerates what z changed:
#
# $$\hat\varepsilon = \lambda\,\varepsilon_\theta(y, z) + (1 - \lambda)\,\varepsilon_\theta(y)
# = \varepsilon_\theta(y) + \lambda\,\big(\varepsilon_\theta(y, z) - \varepsilon_\theta(y)\big).$$
#
# λ = 0 ignores z, λ = 1 is the network as it was trained, λ > 1 goes further in the direction of z than the network
# would. (This λ is the paper's letter for the scale, not the log-SNR.) `guided` wraps a network and knows nothing of
# samplers. Both branches run in one batch.

# %% tags=["check"]
from minirodin.guidance import guided

x_t, log_snr = noise[:4], torch.full((4,), -3.0, device=device)
who, yes = z[:4].to(device), torch.ones(4, dtype=torch.bool, device=device)
with torch.no_grad():
    conditional, unconditional = (model.network(x_t, log_snr, who, keep) for keep in (yes, ~yes))
    by_scale = {scale: guided(model.network, who, scale)(x_t, log_snr) for scale in (0, 1, 2.0)}
assert torch.equal(by_scale[0], unconditional) and torch.equal(by_scale[1], conditional)
assert torch.allclose(by_scale[2.0], 2 * conditional - unconditional, atol=1e-2)
changed = (by_scale[2.0] - conditional).abs().amax((0, 1, 2, 4, 5))
assert (changed > 0).all(), "every channel is guided"
print(f"0: without z. 1: with z. 2: twice one less the other, in all {len(changed)} channels")

# %% [markdown]
# ### Where it is exact
#
# What does that do to the *distribution*? For a mixture of Gaussians in the plane the best denoiser is a formula, with
# z and without. Six modes, two for each of three "people". The one we ask for, blue, has one mode far from everybody
# and one in the crowd. And the network is made a little dull: it believes z only to 70 %.

# %%
from minirodin.config import DiffusionConfig
from minirodin.diffusion import Diffusion, alpha_sigma

modes = torch.tensor([[-1.5, 0.8], [0.1, 0.5], [0.9, -0.1], [1.5, 1.0], [-0.3, -0.7], [0.6, -1.5]])
owner, s = torch.tensor([0, 0, 1, 1, 2, 2]), 0.22
belief = torch.where(owner == 0, 0.7 / 2, 0.3 / 4)  # of a network that was told "0"


def exact(x, log_snr, weights, keep):
    """ε̂ of the mixture (B, 1, 2), modes weighted by `weights` (B, 6), or all alike where they are not kept."""
    alpha, sigma = alpha_sigma(log_snr, x)
    variance = (alpha * s) ** 2 + sigma**2
    weights = torch.where(keep[:, None], weights, torch.full_like(weights, 1 / 6))
    fit = weights.log() - (x[:, None] - alpha[..., None] * modes).square().sum(2) / (2 * variance)
    centre = fit.softmax(1) @ modes  # which mode is it?
    x0 = centre + alpha * s**2 / variance * (x - alpha * centre)
    return ((x - alpha * x0) / sigma)[:, None]


# %%
from minirodin.sampling import SAMPLERS

scales = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
toy = Diffusion(DiffusionConfig(prediction="eps", vlb_weight=0.0, log_snr_max=10.0))
start = torch.randn(2000, 2, generator=torch.Generator().manual_seed(seed))
asked = belief.expand(2000, -1)
clouds = {}
for scale in scales:
    denoise = toy.denoiser(guided(exact, asked, scale))
    clouds[scale] = SAMPLERS["dpm++"](denoise, start, toy.grid(50), None)

# %%
figure, axes = plt.subplots(1, 6, figsize=(9.5, 1.9), sharex=True, sharey=True)
for axis, (scale, cloud) in zip(axes, clouds.items(), strict=True):
    axis.scatter(*cloud[:400].T, s=1.5, color="black", alpha=0.4, lw=0)
    for mode, k in zip(modes.tolist(), owner.tolist(), strict=True):
        axis.add_patch(plt.Circle(mode, 2 * s, fc="none", ec=PALETTE[k], lw=1.5))
    axis.set(title=f"λ = {scale:g}", xticks=[], yticks=[], aspect="equal", xlim=(-2.4, 2.3), ylim=(-2.2, 1.8))
    axis.grid(False)
plt.show()


# %%
def toy_quality(cloud):
    """Share that is nearest to a mode of person 0; and how evenly these share the two modes: 1 alike, 0 one only."""
    which = (cloud[:, None] - modes).square().sum(2).argmin(1)
    inside = owner[which] == 0
    share = float((which[inside] == 0).float().mean())
    return float(inside.float().mean()), 2 * min(share, 1 - share)


measured = {scale: toy_quality(cloud) for scale, cloud in clouds.items()}
right, even = zip(*measured.values(), strict=True)
curves = {"is who was asked for": (scales, right), "variety: both of the person's modes": (scales, even)}
show_curves(curves, "guidance scale λ", "", "2000 samples, exact denoisers", width=6)

# %% tags=["check"]
assert abs(right[0] - 1 / 3) < 0.05 and abs(right[1] - 0.7) < 0.05, "λ = 0 is everybody alike, λ = 1 what is believed"
assert right[1] < right[2] < right[3] and right[5] > 0.99 and even[1] > 0.9 > 0.2 > even[5]
narrow = [float(cloud[cloud[:, 0] < -0.9].std(0).mean()) for cloud in clouds.values()]
assert narrow[5] < 0.85 * narrow[1], narrow
print(f"λ = 1: {right[1]:.0%} right, λ = 3: {right[4]:.0%}; variety {even[1]:.2f} and {even[4]:.2f}")

# %% [markdown]
# Guidance buys agreement with variety. It mends the dullness: at λ = 2 nearly all are blue. But it prefers what is
# blue *and nothing else*, so the mode in the crowd dies out first, and what is left shrinks. Large scales push
# past the data altogether, away from all the others. In faces that is glare: too much of everything that is unusual.
#
# ### The sweep
#
# The same on the network. **Predict first**: which scale will look best? And at 5, what goes wrong?

# %%
three = torch.tensor([0, 3, 6])
sweep = {scale: sample(z[three], model.noise(3, 20), scale) for scale in scales}
pictures_of = {scale: [drawn(d, azimuth=0) for d in row] for scale, row in sweep.items()}
shown, titles = [], []
for row, person in enumerate(three.tolist()):
    shown += [drawn(known[person], azimuth=0), *(pictures_of[scale][row] for scale in scales)]
    titles += ["wanted", *(f"λ = {scale:g}" for scale in scales)]
photo(show_images(shown, titles, columns=7))

# %%
many, crowd, own = z.repeat(2, 1), model.noise(16, 40), torch.arange(16) % 8
rows = {scale: sample(many, crowd, scale) for scale in scales}
off = [float(distance(row)[torch.arange(16), own].median()) for row in rows.values()]
variety = [float(apart(row[:8], row[8:]).median()) for row in rows.values()]
named = [float((distance(row).argmin(1) == own).float().mean()) for row in rows.values()]
heard = [encoder.images(torch.stack(row).movedim(-1, 1)).cpu() for row in pictures_of.values()]
agree = [float((row * said[three]).sum(1).mean()) for row in heard]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 2.9))
for values, label in ((off, "to the person (quality)"), (variety, "between two noises (variety)")):
    left.plot(scales, values, marker="o", ms=4, label=label)
for values, label in ((named, "share nearest to the person"), (agree, "cosine of picture and caption")):
    right.plot(scales, values, marker="o", ms=4, label=label)
left.set(title="distances", xlabel="guidance scale λ", ylim=(0, None))
right.set(title="agreement", xlabel="guidance scale λ", ylim=(-0.25, 1.05))
left.legend()
right.legend()
plt.show()

# %% tags=["check"]
best = int(np.argmin(off))
assert best > 0 and off[1] < off[0] and off[5] > 1.5 * off[best], off
assert named[0] < 0.5 < 0.7 < named[1] and agree[0] < max(agree), (named, agree)
assert variety[1] < variety[0], variety
print(f"nearest at λ = {scales[best]:g}: {off[best]:.2f}; without z {off[0]:.2f}; at λ = 5 {off[5]:.2f}")

# %% [markdown]
# From 0 to 1 the person comes, and variety goes. Beyond, **there is nothing left to mend**: this network has learned
# one answer to each latent, by heart, and believes it. So larger scales only overshoot, glare first, then pieces. How
# much is best for a network that knows thousands must be measured on that network. The paper publishes no scale;
# `RodinPipeline` takes 1.5 unless told.
#
# The cosine with the caption is the opinion of the encoder that conditioned the picture, and no evidence. Note how much
# glare it puts up with. `classifier.py` and `judgement.py` ask a network that had no part in it (section 8).

# %% [markdown]
# ## 5 A model of latents (E15)
#
# Everything so far needed a portrait. For somebody new, z must come from somewhere. **Predict first.** All latents have
# length 1. What does the network make of a random direction of length 1?
#
# The paper trains a second diffusion model, over z. Here it is a small residual MLP, `LatentModel`; given the embedding
# of a text it draws latents of those whom the text describes, with its own dropout and its own guidance. What shall it
# predict: v, as the preset says, or $y_0$?

# %%
from minirodin.latent_diffusion import train_latent


def train_prior(prediction, folder):
    """A model of the eight's latents, with and without a text."""
    steps = min(config.latent.train.steps, 600)
    changes = {"steps": steps, "batch": 64, "log_every": steps, "preview_every": steps, "checkpoint_every": steps}
    train = replace(config.latent.train, **changes, seed=seed)
    diffusion = replace(config.latent.diffusion, prediction=prediction)
    settings = replace(config, latent=replace(config.latent, train=train, diffusion=diffusion))
    return train_latent(data / "latents.safetensors", settings, folder, show_progress=False)


prior = train_prior("x0", scratch / "rodin/latent")
asking_v = train_prior("v", scratch / "asking-v")

# %%
everyone = latents.latents.float().flatten(0, 1)  # (64, Z)
random = F.normalize(torch.randn(256, encoder.size, generator=torch.Generator().manual_seed(seed)), dim=1)
sets = {
    "the eight's 64 latents": everyone,
    "model that predicts y₀": prior.sample(256, seed=1000).cpu(),
    "model that predicts v": asking_v.sample(256, seed=1000).cpu(),
    "random directions": random,
}


def spectrum(latents):
    """Variance along the principal axes, largest first."""
    return torch.linalg.svdvals(latents - latents.mean(0)).square() / len(latents)


curves = {name: (range(1, 41), spectrum(row)[:40].clamp_min(1e-5)) for name, row in sets.items()}
show_curves(curves, "principal axis", "variance", "where latents vary (cut off at 10⁻⁵)", log_y=True, width=6)

# %% [markdown]
# Latents of people live in a handful of the 512 directions; a random vector lives in all of them, and is nobody. What
# the model is asked for matters once more: v holds the noise of all 512 directions, and what the network cannot
# tell of it stays in the sample. $y_0$ lies where latents lie; what is small there, the difference of two photographs
# of one person, this model has not learned.

# %% tags=["check"]
variances = {name: spectrum(row) for name, row in sets.items()}
of_data, of_model, *_ = variances.values()
beyond = {name: float(row[40:].sum() / row.sum()) for name, row in variances.items()}
assert abs(float(of_model.sum() / of_data.sum()) - 1) < 0.3, "as varied as the data"
assert (of_model[:4] / of_data[:4]).log().abs().max() < 0.7, "along each of the largest axes"
means = [row.mean(0) for row in sets.values()]
assert F.cosine_similarity(means[1], means[0], dim=0) > 0.85 > 0.3 > F.cosine_similarity(means[3], means[0], dim=0)
assert beyond["model that predicts y₀"] < 0.03 < 0.1 < beyond["model that predicts v"], beyond
print("variance beyond 40 axes:", ", ".join(f"{name} {share:.0%}" for name, share in beyond.items()))

# %% [markdown]
# ### Copies?
#
# Is each sample one of the 64? `memorisation` divides the distance to the nearest training latent by the distance that
# training latents keep among themselves: 1 is new, 0 a copy.

# %%
from minirodin.generation_metrics import memorisation

new = sets["model that predicts y₀"]
ratio = memorisation(new, everyone)
whose = (new @ everyone.T).argmax(1).div(8, rounding_mode="floor").bincount(minlength=8)
print(f"memorisation: median {ratio.median():.2f}, smallest {ratio.min():.2f}; of 256, whose: {whose.tolist()}")

# %% tags=["check"]
assert ratio.median() > 0.4 and whose.min() >= 1, (ratio.median(), whose)
print("no copies of latents, and nobody is forgotten")

# %% [markdown]
# A sample is about as far from the nearest latent as another photograph of that person would be. **It stands for one of
# the eight, or between some of them, and for nobody new**: eight cannot teach more.
#
# Three folders are a pipeline now. Above: random directions, the answer to the question that began this section. Below:
# whom the pipeline makes when it is asked for anybody.

# %%
pipe = RodinPipeline.from_pretrained(scratch / "rodin", device)
fast = {"num_inference_steps": 10}
nobodies = [pipe(latent=direction, seed=i, **fast) for i, direction in enumerate(random[:8])]
anybodies = [pipe(seed=i, **fast) for i in range(8)]
photo(show_images([drawn(avatar.planes) for avatar in nobodies + anybodies], columns=8))


# %% tags=["check"]
def planes_of(avatars):
    return torch.stack([avatar.planes for avatar in avatars])


assert torch.allclose(pipe(seed=3, **fast).planes, anybodies[3].planes, atol=1e-3), "the same seed, the same avatar"
lost, found = ((sets[name] @ everyone.T).max(1).values for name in ("random directions", "model that predicts y₀"))
assert found.min() > lost.max() + 0.2, (found.min(), lost.max())
print(f"cosine to the nearest of the 64: random directions {lost.mean():.2f}, the model's {found.mean():.2f}")

# %% [markdown]
# The network draws something for a random direction too: mixtures of people it knows. It was never taught what is not a
# latent, and cannot refuse. What keeps it on known ground is the model of latents.

# %% [markdown]
# ## 6 Portraits, texts, edits (E16)
#
# ### Portrait → avatar
#
# `invert` reads any picture file; what it returns is z. The first four are known. The last four are the strangers, of
# whom neither encoder nor base model has heard. **Predict first**: what will become of them?

# %%
looked_at = [*files[:8:2], *files[8:]]
inverted = torch.stack([pipe.invert(file) for file in looked_at]).cpu()
avatars = [pipe.sculpt(latent, seed=7, **fast) for latent in inverted]
shown = [*(Image.open(file).resize((96, 96)) for file in looked_at), *(drawn(avatar.planes) for avatar in avatars)]
titles = [*["known"] * 4, *["a stranger"] * 4, *[""] * 8]
photo(show_images(shown, titles, columns=8))

# %% tags=["check"]
who = distance(planes_of(avatars)).argmin(1)
sure = (inverted @ everyone.T).max(1).values
assert int((who[:4] == torch.arange(0, 8, 2)).sum()) >= 3, who
assert sure[:4].min() > sure[4:].mean(), sure
print(f"cosine to the nearest known latent: known {sure[:4].mean():.2f}, strangers {sure[4:].mean():.2f}")

# %% [markdown]
# A stranger becomes whichever of the eight the encoder takes the portrait for, or somebody in between. How far the
# latent is from all that is known gives it away.
#
# ### Text → avatar
#
# A text is embedded into the same space, but not onto the same places: texts keep to themselves. Told the text, the
# model of latents draws a *picture's* latent that goes with it.

# %%
texts = {
    "a person wearing an orange beanie": 0,
    "a bald woman with round glasses": 1,
    "somebody in a green striped top, with shades": 2,
    "a man with long hair in a pink hoodie": 3,
    "an old man with grey hair, in purple": 5,
    "a woman with a white afro": 6,
}
asked = encoder.texts(list(texts))
drawn_for = prior.sample(len(texts), asked, seed=7, guidance_scale=2.0)
people = [pipe(text, seed=7, **fast) for text in texts]
titles = ["\n".join(textwrap.wrap(text, 20)) for text in texts]
photo(show_images([drawn(avatar.planes) for avatar in people], titles, columns=6))

# %% tags=["check"]
found = distance(planes_of(people)).argmin(1).tolist()
hits = sum(person == meant for person, meant in zip(found, texts.values(), strict=True))
gap, bridged = (float((row.cpu() @ everyone.T).max(1).values.mean()) for row in (asked, drawn_for))
assert hits >= 3 and bridged > gap, (found, gap, bridged)
print(f"{hits} of {len(texts)} are whom the text describes; cosine to pictures: texts {gap:.2f}, drawn {bridged:.2f}")

# %% [markdown]
# ### Edits
#
# z′ = z + s·δ, back to length 1, and **the noise stays the same**. Then only what the latent says can change. The
# paper's δ is the difference of two texts, as in section 1. But texts keep to themselves, and so do their differences:
# z′ would leave the places where pictures are. So `direction` turns both texts into latents of pictures, by the model
# of latents and from the same noise, and goes from one mean to the other.

# %%
edits = {
    5: ("a person with a white afro", "a person with short grey hair"),
    3: ("a person with a bald head", "a person with long hair"),
}
strengths = (0, 0.2, 0.4, 0.7, 1)
start = {person: pipe.sculpt(z[person], seed=7, **fast) for person in edits}
edited, elsewhere = {}, {}
for person, pair in edits.items():
    edited[person] = [pipe.edit(start[person], *pair, strength=s, **fast) for s in strengths]
    elsewhere[person] = pipe.edit(start[person], *pair, strength=strengths[1], seed=77, **fast)

# %%
shown, titles = [], []
for person, (target, _) in edits.items():
    shown += [drawn(avatar.planes) for avatar in (*edited[person], elsewhere[person])]
    titles += [f"to {target.removeprefix('a person with ')}:\ns = 0", *(f"s = {s:g}" for s in strengths[1:])]
    titles += [f"s = {strengths[1]},\nother noise"]
photo(show_images(shown, titles, columns=6))

# %% tags=["check"]
for person, (target, _) in edits.items():
    there, first = encoder.texts([target])[0].cpu(), edited[person][0]
    agree = [float(avatar.origin.latent @ there) for avatar in edited[person]]
    change = [float(apart(avatar.planes, first.planes)) for avatar in edited[person]]
    assert torch.allclose(first.planes, start[person].planes, atol=0.02), "s = 0 changes nothing"
    assert agree[0] < agree[1] < agree[2] and agree[-1] > agree[0] + 0.3 and change[1] < change[-1], (agree, change)
    print(f"{target}: cosine with it {agree[0]:.2f} → {agree[-1]:.2f}, change {change[1]:.2f} → {change[-1]:.2f}")

# %% [markdown]
# The right attribute arrives, and **the wrong ones with it**: clothes and face of those who had it. To learn that an
# afro and black clothes are two things, one must have seen them apart, on many people. How often the asked attribute
# changes, and how often the others stay, is what `minirodin judge` counts.
#
# ### In between
#
# `interpolate` walks the arc between two latents, with the noise of the first. **Predict first**: where is the man half
# way between two of the eight?

# %%
walk = pipe.interpolate(start[5], z[6], count=8, **fast)
photo(show_images([drawn(avatar.planes) for avatar in walk], columns=8))

# %% tags=["check"]
strides = apart(planes_of(walk)[1:], planes_of(walk)[:-1]).tolist()
whole = float(apart(walk[-1].planes, walk[0].planes))
assert torch.allclose(walk[0].planes, start[5].planes, atol=0.02) and min(strides) < 0.1 * whole < max(strides), (
    strides,
    whole,
)
print(f"the ends differ by {whole:.2f}, neighbours by {min(strides):.2f} to {max(strides):.2f}")

# %% [markdown]
# Nowhere: most of the way is one person or the other, with a leap between. Nobody has taught the network that there is
# anything between eight people. A smooth walk is a sign that a model knows many.

# %% [markdown]
# ## 7 Explorer
#
# From one person to another, by latent; guidance; and the noise that fills in the rest.

# %%
import ipywidgets as widgets

controls = {
    "from": widgets.IntSlider(6, min=1, max=8, continuous_update=False),
    "to": widgets.IntSlider(4, min=1, max=8, continuous_update=False),
    "mix": widgets.FloatSlider(0.0, min=0, max=1, step=0.1, continuous_update=False),
    "guidance": widgets.FloatSlider(1.5, min=0, max=5, step=0.5, continuous_update=False),
    "noise": widgets.IntSlider(7, min=0, max=99, continuous_update=False),
}
view = widgets.Image(format="png", width=192)


def update(change=None):
    a, b, mix, scale, noise_seed = (control.value for control in controls.values())
    latent = F.normalize(torch.lerp(z[a - 1], z[b - 1], mix), dim=0)
    avatar = pipe.sculpt(latent, noise_seed, scale, **fast)
    buffer = io.BytesIO()
    Image.fromarray(to_array(drawn(avatar.planes))).save(buffer, "png")
    view.value = buffer.getvalue()


# %% tags=["nbval-ignore-output"]
for name, control in controls.items():
    control.description = name
    control.observe(update, "value")
update()
widgets.HBox([widgets.VBox(list(controls.values())), view])

# %% tags=["check"]
moves = [("mix", 1.0), ("from", 3), ("mix", 0.0), ("guidance", 4.0), ("noise", 20)]
frames = [view.value]
for name, value in moves:
    controls[name].value = value  # what a hand on the slider does
    frames.append(view.value)
followed = [before != after for before, after in pairwise(frames)]
assert followed == [True, False, True, True, True], "at mix = 1 it does not matter where it came from"
print(f"{len(moves)} moves, the picture followed each that says something")

# %%
titles = ["from 6, mix: 0", *(f"{name}: {value:g}" for name, value in moves)]
photo(show_images([np.asarray(Image.open(io.BytesIO(png))) for png in frames], titles, width=7.5))

# %% [markdown]
# ## 8 The real sizes
#
# ```sh
# minirodin avatars --portraits --count 6000 --views 4 --size 96 --out runs/portraits
# minirodin train encoder --data runs/portraits --out runs/rodin/encoder
# minirodin encode runs/rodin/encoder runs/people --out runs/fitted/latents.safetensors
# minirodin train base --data runs/fitted --base.unet.latent 512 --out runs/rodin/base
# minirodin train latent --data runs/fitted/latents.safetensors --out runs/rodin/latent
# minirodin judge runs/rodin --classifier runs/classifier --portraits runs/unseen-portraits --out runs/judged.json
# ```
#
# `tools/measure_latent.sh` does all of it in stages. The judge is a classifier that had no part in making the people;
# beside each number stands what it makes of the real portraits.

# %%
judged = Path("../results/latent.json")
results = json.loads(judged.read_text()) if judged.exists() else {}
scales = results.get("portraits", {}).get("scales", {})
for scale, row in sorted(scales.items(), key=lambda item: float(item[0])):
    print(f"scale {scale}: attributes as asked {row['agreement']['mean']:.1%}, recognised {row['recognised']:.1%}")
print("measured by tools/measure_latent.sh" if results else "not measured yet: tools/measure_latent.sh")

# %% tags=["check"]
from minirodin.shards import fingerprint

assert fingerprint(encoder.towers) == identity == pipe.base.encoder == pipe.prior.encoder
print("the encoder is still the one of section 1; base model and model of latents belong to it")

# %% [markdown]
# ## What the paper does, what we do
#
# | the paper | here |
# | --- | --- |
# | CLIP's image encoder, frozen, 512 numbers | any open_clip model, or our own small one, 512 numbers |
# | z of the frontal view | the same, and of varied versions of it, all of length 1 |
# | AdaGN in every residual block | the same; the embeddings of z and of the noise level are added before |
# | z set to zero with probability 0.2 | the same rate; a learned null embedding instead of zero (exercise 2) |
# | λ ε(y, z) + (1 − λ) ε(y), no scale published | the same; 1.5 by default; `guidance_rescale` as an option |
# | a diffusion model over latents, not described | a residual MLP, told a text or not |
# | text through the shared space | the text's embedding conditions the model of latents, which draws z |
# | edits by a difference of texts | of what the model of latents makes of them, and back to length 1 |

# %% [markdown]
# ## Exercises
#
# ### Exercise 1 · guide what?
# The paper guides ε. This network predicts $y_0$, and `guided` guides that. Show that it makes no difference at any
# noise level, and why.

# %% tags=["solution"]
latent, yes = z[:2].to(device), torch.ones(2, dtype=torch.bool, device=device)
for level in (-6.0, -2.0, 1.0):
    x_t, log_snr = noise[:2], torch.full((2,), level, device=device)
    with torch.no_grad():
        outputs = [model.network(x_t, log_snr, latent, keep).float() for keep in (yes, ~yes)]
        outputs.append(guided(model.network, latent, 3.0)(x_t, log_snr))
    with_z, without, both = (model.diffusion.interpret(output, x_t, log_snr).eps for output in outputs)
    assert torch.allclose(both, 3 * with_z - 2 * without, atol=5e-2)
print("ε is linear in y₀ at a given y_t, and the two weights sum to 1, so that what depends on y_t alone stays")

# %% [markdown]
# ### Exercise 2 · is zero nobody?
# The paper sets z to zero. Here training never showed a zero vector that is *kept*. For whom does the network take it?
# Why, and must it be so?

# %% tags=["solution"]
x_t, log_snr = noise[:1], torch.full((1,), -6.0, device=device)
zero, yes = torch.zeros(1, encoder.size, device=device), torch.ones(1, dtype=torch.bool, device=device)
with torch.no_grad():
    as_zero, as_null = (model.network(x_t, log_snr, zero, keep) for keep in (yes, ~yes))
    as_somebody = model.network(x_t, log_snr, z[:1].to(device), yes)
differ = [float((as_null - other).square().mean()) for other in (as_zero, as_somebody)]
assert differ[0] < differ[1], differ
print(f"from null, zero differs by {differ[0]:.4f}, a person by {differ[1]:.2f}: for nobody, more or less.")
print("Null started at zero, and so, nearly, do the projection's biases. But no loss holds them together:")
print("whoever samples without z must use what training used, not something that looks as empty")

# %% [markdown]
# ### Exercise 3 · guide where it matters
# Section 3 says that z matters most at the beginning. Guide only there: write a network that is guided at 3 below a
# log-SNR of −3, and at 1 above. Is it nearer to the people than 3 throughout? What does it cost?


# %% tags=["solution"]
def guided_early(network, latent, scale, until):
    strong, plain = guided(network, latent, scale), guided(network, latent, 1.0)
    return lambda x, log_snr: (strong if float(log_snr[0]) < until else plain)(x, log_snr)


grid = model.diffusion.grid(10, device)
denoise = model.diffusion.denoiser(guided_early(model.network, z.to(device), 3.0, -3.0))
early = model.space.unstandardise(SAMPLERS["dpm++"](denoise, noise, grid))
results = {"early": early, "throughout": sample(z, noise, 3.0), "not at all": sample(z, noise, 1.0)}
results = {name: float(distance(row).diagonal().mean()) for name, row in results.items()}
branches = 10 + int((grid[:-1] < -3).sum())
assert branches < 20 and results["early"] < 1.2 * results["throughout"], results
print(f"{branches} branches instead of 20:", ", ".join(f"{name} {value:.2f}" for name, value in results.items()))

# %% [markdown]
# ### Exercise 4 · how strong is strong?
# `edit` brings z′ back to length 1. By what angle does it turn z for s = 0.5, 1, 2, 10? What is left of the person when
# s grows without end?

# %% tags=["solution"]
delta = pipe.direction("a person with a white afro", "a person with short grey hair").cpu()
for s in (0.5, 1, 2, 10):
    turned = F.normalize(z[5] + s * delta, dim=0)
    angle = torch.rad2deg(torch.arccos(turned @ z[5]))
    print(f"s = {s}: {angle:.0f}°, cosine with δ {F.cosine_similarity(turned, delta, dim=0):.2f}")
assert F.cosine_similarity(z[5] + 1e3 * delta, delta, dim=0) > 0.999
print("nothing: z′ becomes δ itself, the same for everybody")

# %% [markdown]
# Next: 04 · Tri-plane upsampling, which makes 256² of 64².
