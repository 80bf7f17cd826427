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
# # 00 · Avatars: the data, the cameras, what a subject is
#
# Rodin learns a distribution of people in 3D. It never sees a 3D model: of every person it gets **pictures from known
# cameras**, and nothing else. This chapter makes such people, looks at what is stored of them, and pins down the
# conventions that every later chapter relies on. No network is trained here.
#
# *Paper*: the opening of the method section (multi-view renders of synthetic people, made with Blender) and the data
# paragraph of the experiments. *Code*: `minirodin/avatars/`, `minirodin/cameras.py`, `minirodin/observations.py`.
#
# | preset | what is rendered live | CPU time, OpenGL on the CPU too | memory |
# | --- | --- | --- | --- |
# | `smoke` | one person, 12 views of 64² | 90 s, shared by two cores | 1.2 GB |
# | `small` | one person, 32 views of 256² | 100 s | 1.5 GB |
# | `full` | one person, 300 views of 1024² | 7 minutes (from six views) | 8 GB (estimated) |
#
# 1 subject · 2 attributes and captions · 3 geometry and light · 4 cameras · 5 alpha · 6 files, your own capture · 7
# visual hull · 8 seeds. Live pictures need OpenGL (a GPU's driver, or Mesa on a CPU): `minirodin doctor` tells.

# %%
import dataclasses
import io
import json
import os
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.measure import marching_cubes

from minirodin import Capture, DataError, load_capture, preset
from minirodin.plots import PALETTE, STYLE, photo, show_images

# %% tags=["parameters"]
preset_name = os.environ.get("MINIRODIN_PRESET", "smoke")
seed = 165  # of the person who is made live

# %%
# %matplotlib inline
config = preset(preset_name)
plt.rcParams.update(STYLE)

# %% [markdown]
# ## 1 What a subject is
#
# A folder of pictures and a `transforms.json`. `load_capture` reads it into a `Capture`: RGBA images, one camera each,
# and for our own people also a caption and the attributes they were made from. Eight come with the repository.

# %%
from minirodin.cameras import find_captures

people = [load_capture(folder) for folder in find_captures("../data_samples/people")]
photo(show_images([p.images[0] for p in people], [f"seed {int(p.name)}" for p in people], columns=4))

# %% [markdown]
# The same subject from everywhere. Frame 0 is always the frontal portrait: later it is what the image encoder sees
# (E13). Every eighth of the other frames is never fitted, only used to measure (titles in brackets).

# %%
subject = people[0]
train, held_out = subject.held_out()
titles = [f"[{v}]" if v in held_out else str(v) for v in range(len(subject.images))]
photo(show_images(subject.images, titles, columns=12, title=subject.caption))

# %% tags=["check"]
for person in people:
    assert person.images.dtype == np.uint8 and person.images.shape == (24, 256, 256, 4), person.images.shape
    assert len(person.cameras) == 24 and person.has_alpha and person.caption
    train, held_out = person.held_out()
    assert 0 in train and not set(train) & set(held_out) and len(train) + len(held_out) == 24
print(f"{len(people)} subjects of 24 views, {len(held_out)} of them held out")

# %% [markdown]
# ### Why synthetic people
#
# Fitting a radiance field wants many views of **one** moment of one person: a ring of synchronised cameras, an owner
# who lets you publish the pictures, and that thousands of times. No such data set is public. The paper rendered
# a large set of synthetic people, and did not release it. A generator that everybody can run gives the same
# kind of data, with exact cameras, exact alpha, no one's privacy at stake, and labels that are true by construction.
# The price: what is learned looks like the generator's people, not like you.

# %%
from minirodin.config import PRESETS

print(f"{'preset':8}{'subjects':>10}{'views':>7}{'size':>6}{'pictures':>12}{'pixels':>9}")
for name, c in PRESETS.items():
    pictures = c.data.subjects * c.data.views
    print(f"{name:8}{c.data.subjects:10,}{c.data.views:7}{c.data.size:6}{pictures:12,}{pictures * c.data.size**2:9.0e}")

# %% [markdown]
# ## 2 Attributes: a person in one line of JSON
#
# `sample_attributes(seed)` draws everything there is to know about a person, with plausible correlations (age greys
# the hair, only men grow beards here) and no class rare. Each attribute has **its own random stream**, named by the
# attribute and the seed, so that adding an attribute tomorrow changes nobody of today.

# %%
from minirodin.avatars.attributes import CHOICES, Attributes, sample_attributes

who = sample_attributes(seed)
print(", ".join(f"{name}={value}" for name, value in who.to_dict().items()))

# %% [markdown]
# ### Captions
#
# Chapter 03 needs words. `caption(attributes, i)` writes the i-th English description: it chooses a template, synonyms
# and an order, leaves things out, and says nothing false.
#
# **Predict first.** Of 200 captions of one person, how many are different? And how long must a caption be to name
# everything?

# %%
from minirodin.avatars.captions import caption, captions

for person in people[:3]:
    print(f"seed {int(person.name)}")
    print("".join(f"   {text}\n" for text in captions(Attributes.from_dict(person.attributes), 5)))

# %%
many = captions(who, 200)
words = [len(text.split()) for text in many]
print(f"{len(set(many))} of 200 are different; {min(words)} to {max(words)} words, {np.mean(words):.0f} on average")

# %% [markdown]
# Nearly all differ, and none names everything: a model trained on these must cope with short prompts. That none is
# *false* can be checked by looking for words that only some people may have in their captions.

# %% tags=["check"]
PROOFS = {  # a word → who alone may have it
    r"\b(woman|lady|she)\b": lambda a: a.gender == "woman",
    r"\b(man|guy|he)\b": lambda a: a.gender == "man",
    r"\b(sunglasses|shades)\b": lambda a: a.glasses == "sun",
    r"(?<!no )\bglasses\b": lambda a: a.glasses in ("round", "square"),
    r"(?<!no )\bbeard\b": lambda a: a.facial_hair == "full",
    r"\bafro\b": lambda a: a.hair_style == "afro",
    r"\b(beanie|cap)\b": lambda a: a.hat != "none",
}
used = Counter()
for a in map(sample_attributes, range(300)):
    for text in captions(a, 5):
        for word in (word for word in PROOFS if re.search(word, text.lower())):
            used[word] += 1
            assert PROOFS[word](a), (a.seed, text)
assert len(used) == len(PROOFS) and len(set(many)) > 150
print(f"1500 captions, {sum(used.values())} claims tested, none false")

# %% [markdown]
# ### The population
#
# 2000 seeds take a second. Blue bars are women, orange ones men.

# %%
crowd = [sample_attributes(s) for s in range(2000)]


def bars(axis, name):
    counts = {g: Counter(getattr(a, name) for a in crowd if a.gender == g) for g in CHOICES["gender"]}
    left = np.zeros(len(CHOICES[name]))
    for gender, color in zip(counts, PALETTE, strict=False):
        share = np.array([counts[gender][value] for value in CHOICES[name]]) / len(crowd)
        axis.barh(CHOICES[name], share, left=left, color=color, height=0.75)
        left += share
    axis.set(title=name.replace("_", " "), xlim=(0, None))
    axis.invert_yaxis()
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.grid(axis="y", visible=False)


# %%
names = ("hair_style", "hair_color", "clothing_color", "expression", "facial_hair", "eye_color", "glasses", "hat")
with plt.rc_context(STYLE | {"ytick.labelsize": 7, "xtick.labelsize": 7}):
    figure, axes = plt.subplots(2, 4, figsize=(10, 5.2), height_ratios=(13, 7))
    for axis, name in zip(axes.flat, names, strict=True):
        bars(axis, name)
    plt.show()

# %%
ages, tones = np.array([a.age for a in crowd]), np.array([a.skin_tone for a in crowd])
grey = np.array([a.hair_color in ("grey", "white") for a in crowd])
edges = np.arange(18, 84, 6)
share = [grey[(ages >= low) & (ages < low + 6)].mean() for low in edges[:-1]]
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.4))
left.hist(ages, edges, color=PALETTE[0], rwidth=0.9)
left.set(title="age", xlabel="years", ylabel="people")
middle.hist(tones, 20, color=PALETTE[3], rwidth=0.9)
middle.set(title="skin tone", xlabel="melanin, 0 = lightest")
right.plot(edges[:-1] + 3, share, marker="o", color=PALETTE[4])
right.set(title="grey or white hair", xlabel="years", ylim=(0, 1))
right.yaxis.set_major_formatter("{x:.0%}")
plt.show()

# %% tags=["check"]
rarest = {name: min(Counter(getattr(a, name) for a in crowd).items(), key=lambda item: item[1]) for name in names}
assert all(len(Counter(getattr(a, name) for a in crowd)) == len(CHOICES[name]) for name in names)
assert min(count for value, count in rarest.values() if value not in CHOICES["hair_color"][-4:]) > 0.02 * len(crowd)
assert all(a.facial_hair == "none" for a in crowd if a.gender == "woman")
assert 0.45 < np.mean([a.gender == "woman" for a in crowd]) < 0.55 and share[0] < 0.1 < 0.7 < share[-1]
print("rarest of each:", ", ".join(f"{value} {count / len(crowd):.1%}" for value, count in rarest.values()))

# %% [markdown]
# Every value occurs in more than 2 % of the people but for dyed hair, which is rare on purpose: enough to learn, and a
# test of whether a model keeps the tail.

# %% [markdown]
# ## 3 From attributes to geometry
#
# **The head** is a linear model: $v = \bar v + \sum_k a_k\, \Delta_k$, a mean plus coefficients times offsets, over
# 5000 vertices, subdivided twice into a smooth surface. The offsets were distilled from MakeHuman's CC0 data.
# Gender, age, weight and ancestry are mixed between corner shapes, about a hundred local changes and the facial
# actions of an expression are added.

# %%
from minirodin.avatars.head import EXPRESSIONS, load_head
from minirodin.avatars.mesh import CLOTH, SKIN, Mesh, concatenate, make_mesh
from minirodin.avatars.renderer import Renderer
from minirodin.avatars.skin import face_meshes
from minirodin.cameras import orbit_cameras

renderer, head = Renderer(), load_head()


CLAY = 0.30, 0.26, 0.23
close = orbit_cameras(20, 5, 140, fov=0.32)
close.intrinsics[:, 3] += 0.15 * close.intrinsics[:, 1] / 3.5  # the head lies 0.15 above the world's centre


def clay(**sliders):
    """The bare head of these sliders, seen from a little to the side."""
    shape = head.shape(**sliders, detail=1)
    skin = make_mesh(shape.vertices, shape.faces, CLAY, SKIN, normals=shape.normals)
    return renderer.render(concatenate([skin, *face_meshes(shape, Attributes(seed=0))]), close)[0]



# %%
steps = (0, 0.25, 0.5, 0.75, 1)
LOCAL = "nose-scale-vert", "chin-width", "ear-wing"
rows = {
    "gender": [clay(gender=t) for t in steps],
    "age": [clay(age=t) for t in (20, 35, 50, 65, 85)],
    "weight": [clay(weight=t) for t in steps],
    "ancestry": [clay(ancestry=t) for t in ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1))],
    "nose, chin, ears": [clay(local=dict.fromkeys(LOCAL, t)) for t in (-1, -0.5, 0, 0.5, 1)],
    "expression": [clay(expression=EXPRESSIONS[e]) for e in CHOICES["expression"][1:]],
}
figure = show_images([image for row in rows.values() for image in row], columns=5, width=7)
for axis, name in zip(figure.axes[::5], rows, strict=True):
    axis.text(-0.06, 0.5, name, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=9)
photo(figure)

# %% [markdown]
# Linear means: half the coefficient, half the way. This holds for the subdivided surface too, since subdivision is one
# matrix.

# %% tags=["check"]
closed, half, wide = (head.shape(expression={"jawOpen": t}, detail=1).vertices for t in (0, 0.5, 1))
travel = np.linalg.norm(wide - closed, axis=1).max()
error = np.abs(half - (closed + wide) / 2).max()
assert travel > 0.02 and error < 1e-9 * travel
print(f"the jaw travels {travel:.3f}, half-way lies within {error:.0e} of the middle")

# %% [markdown]
# **The rest** grows on that head: clothes hang on the shoulders, thousands of hair strands start on the scalp and are
# combed, clumped and curled, glasses rest on the nose and on the ears, and hair keeps out of their way.

# %%
from minirodin.avatars.accessories import make_accessories
from minirodin.avatars.clothing import dress
from minirodin.avatars.facial_hair import grow_facial_hair
from minirodin.avatars.field import head_field
from minirodin.avatars.hair import grow_hair
from minirodin.avatars.person import build_person, head_shape
from minirodin.avatars.skin import skin_albedo

spectacled = dataclasses.replace(who, glasses="round")
shape = head_shape(spectacled)
clothes, _ = dress(shape, spectacled)
field = head_field(shape, clothes)  # distance to the skin, for whatever must stay outside
skin = make_mesh(shape.vertices, shape.faces, skin_albedo(shape, spectacled), SKIN, normals=shape.normals)
parts = {
    "head": [skin, *face_meshes(shape, spectacled), *grow_facial_hair(shape, field, spectacled)],
    "clothes": clothes,
    "accessories": make_accessories(shape, field, spectacled),
    "hair": grow_hair(shape, field, spectacled),
}

# %%
pictures, meshes = [], []
for added in parts.values():
    meshes = [*meshes, *added]
    pictures.append(renderer.render(concatenate(meshes), orbit_cameras(-25, 5, 288))[0])
sizes = [sum(len(mesh.faces) for mesh in added) for added in parts.values()]
photo(show_images(pictures, [f"+ {name}: {size:,} triangles" for name, size in zip(parts, sizes, strict=True)]))

# %% [markdown]
# `build_person` does the same in one call. The same seed must give the same person on every machine, or nobody could
# compare results: vertices are rounded to multiples of 2⁻¹⁶, which hides the last bits in which processors differ. And
# all of it must lie in the ball of radius 1, which is what every view can see.

# %% tags=["check"]
person = build_person(seed)
mesh = person.mesh
assert np.array_equal(mesh.vertices, build_person(sample_attributes(seed)).mesh.vertices)
assert np.array_equal(mesh.vertices * 2**16, np.rint(mesh.vertices * 2**16))
assert np.linalg.norm(mesh.vertices, axis=1).max() < 1
print(f"{len(mesh.vertices):,} vertices, {len(mesh.faces):,} triangles, bit-equal when built twice")

# %% [markdown]
# **Predict first.** Attributes can be edited: `dataclasses.replace(who, glasses="round")`. Which pixels change when
# only the glasses do?

# %%
edits = {
    "round glasses": {"glasses": "round"},
    "afro": {"hair_style": "afro", "hair_curl": 0.9},
    "beanie, frowning": {"hat": "beanie", "expression": "frown"},
}
views = orbit_cameras([0, 60, -35], [0, 10, 35], 256)
drawn = renderer.render(mesh, views)
edited = [build_person(dataclasses.replace(who, **edit)).mesh for edit in edits.values()]
edited = [renderer.render(edited_mesh, views[0])[0] for edited_mesh in edited]
difference = np.abs(edited[0].astype(float) - drawn[0])[..., :3].max(-1) / 255
photo(show_images([drawn[0], *edited, 1 - 2 * difference.clip(0, 0.5)], ["as drawn", *edits, "changed by the glasses"]))

# %% [markdown]
# The frames, of course; their shadow on the cheeks; and strands of hair at the temples, which make room for the arms.
# Nothing else: the hair's random stream does not know about the glasses'.

# %% tags=["check"]
changed = difference > 0.05
eyes = views[0].project(torch.from_numpy(np.stack([eye.centre for eye in shape.eyes])))[0, :, 1].numpy()  # their rows
near = np.abs(np.nonzero(changed)[0] - eyes.mean()) < 32  # an eighth of the picture
assert 0.005 < changed.mean() < 0.1 and near.mean() > 0.9
print(f"{changed.mean():.1%} of the pixels change, {near.mean():.0%} of them at the height of the eyes")

# %% [markdown]
# ### Light
#
# A mesh stores **albedo** per vertex: the share of light that it reflects, in linear RGB. The renderer measures how
# much light arrives: from each of 48 directions (32 of a dim sky, 16 of a large soft key light) it draws a depth
# map and asks for every vertex whether that direction is blocked. That is done once a person, and the sum is
# **baked** into the vertices: light stays fixed to the world, and a view only adds highlights.
#
# To see albedo alone, here is a renderer in five lines: project every vertex and let the nearest win.

# %%
def splat(mesh: Mesh, values, cameras, view=0):
    """Values (V, C) of the vertex nearest to the camera in each pixel, 1 where there is none."""
    x, y, depth = cameras.project(torch.from_numpy(mesh.vertices))[view].T.numpy()
    order = np.argsort(-depth)  # far to near: what is written last stays
    picture = np.ones((cameras.height, cameras.width, values.shape[1]))
    picture[y[order].astype(int), x[order].astype(int)] = values[order]
    return picture


def srgb(linear):
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


# %%
small = orbit_cameras([0, 25], [0, 5], 100)
lit = renderer.render(mesh, small)
colors = np.array([plt.matplotlib.colors.to_rgb(c) for c in ("#e8b796", "#ffffff", *PALETTE[:4])])
layers = [splat(mesh, srgb(mesh.albedo), small), splat(mesh, colors[mesh.material], small)]
layers.append(splat(mesh, mesh.normals / 2 + 0.5, small))
photo(show_images([*layers, lit[0]], ["albedo", "material", "normals", "lit, by OpenGL"]))

# %% [markdown]
# Two renderers that share nothing but the camera agree on the silhouette, so the conventions agree. And cloth, which is
# matte, keeps its colour when the camera moves: the same vertex has the same colour in two views.

# %% tags=["check"]
ours, theirs = splat(mesh, 0 * mesh.albedo, small)[..., 0] == 0, lit[0, ..., 3] > 127
overlap = (ours & theirs).sum() / (ours | theirs).sum()
assert overlap > 0.97, overlap

where = small.project(torch.from_numpy(mesh.vertices)).numpy()  # (2 views, V, 3)
seen = mesh.material == CLOTH
for v in (0, 1):
    column, row = where[v, :, 0].astype(int), where[v, :, 1].astype(int)
    nearest = splat(mesh, where[v, :, 2:], small, v)[row, column, 0]
    seen &= (where[v, :, 2] < nearest + 0.01) & (lit[v, row, column, 3] == 255)
first, second = (lit[v][tuple(where[v, seen, 1::-1].astype(int).T)][:, :3].astype(float) for v in (0, 1))
same = np.median(np.abs(first - second))
assert seen.sum() > 300 and same < 5
print(f"silhouettes overlap by {overlap:.1%}; {seen.sum()} points of cloth differ by {same:.0f}/255 between two views")

# %% [markdown]
# ## 4 Cameras
#
# One convention everywhere (OpenGL, NeRF, Blender): the world is right-handed with **y up**, the face looks along
# **+z**, the subject lies in the box [−1, 1]³. A camera's axes are x right, y up, and it looks along its own **−z**.
# `camera_to_world` (4×4) holds these axes as columns, and the position. Pixel (0, 0) is at the top left, and pixel
# *centres* lie at half-integers. A point $p$ lands at
#
# $$ q = R^\top (p - o), \qquad x = c_x + f_x \frac{q_x}{-q_z}, \qquad y = c_y - f_y \frac{q_y}{-q_z}. $$

# %%
ON_SKIN = ["nose_tip", "nose_bridge", "chin", "crown", "occiput", "upper_lip", "lower_lip"]
ON_SKIN += [f"{side}_{p}" for side in ("left", "right") for p in ("mouth_corner", "temple", "ear_top", "ear_lobe")]
marks = {name: p for name, p in shape.landmarks.items() if p.ndim == 1 and name in ON_SKIN}
xyd = views.project(torch.from_numpy(np.stack(list(marks.values())))).numpy()  # (3, M, 3)
figure = show_images(drawn, ["azimuth 0°, elevation 0°", "60°, 10°", "−35°, 35°"])
for axis, (x, y, _) in zip(figure.axes, xyd.transpose(0, 2, 1), strict=True):
    axis.scatter(x - 0.5, y - 0.5, s=16, c=PALETTE[1], edgecolors="black", linewidths=0.6)  # imshow: centres are whole
photo(figure)

# %% [markdown]
# Landmarks sit on nose, chin, temples and ears from every side (those behind the head show through: a projection
# knows no occlusion). Does OpenGL agree to the pixel? Put a tiny octahedron at each landmark, render it alone, and
# compare the centre of its pixels with the formula.

# %% tags=["check"]
corners = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
faces = np.array([[x, y, z] if (x + y + z) % 2 else [y, x, z] for x in (0, 1) for y in (2, 3) for z in (4, 5)])
column, row = np.meshgrid(np.arange(256) + 0.5, np.arange(256) + 0.5)
errors = []
for mark, expected in zip(marks.values(), xyd.transpose(1, 0, 2), strict=True):
    alpha = renderer.render(make_mesh(mark + 0.03 * corners, faces, (1, 0, 0), SKIN), views)[..., 3] / 255
    weight = alpha.sum((1, 2))
    centre = np.stack([(alpha * column).sum((1, 2)), (alpha * row).sum((1, 2))], axis=1) / weight[:, None]
    errors.append(np.linalg.norm(centre - expected[:, :2], axis=1))
assert np.max(errors) < 0.25, np.max(errors)
print(f"{len(marks)} landmarks in 3 views land within {np.max(errors):.2f} pixels of where OpenGL draws them")

# %% [markdown]
# ### Rays
#
# Volume rendering goes the other way: from a pixel, a ray into the world. `cameras.rays(view)` gives an origin and a
# unit direction for each pixel, row by row.

# %%
coarse = orbit_cameras([0, 60], 0, 8)
figure, axis = plt.subplots(figsize=(6.4, 4.2))
axis.add_patch(plt.Rectangle((-1, -1), 2, 2, fill=False, color="#444444", lw=1.2))
axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="#aaaaaa", ls="--"))
around_eyes = np.abs(shape.vertices[:, 1] - shape.eyes[0].centre[1]) < 0.01
axis.scatter(shape.vertices[around_eyes, 2], shape.vertices[around_eyes, 0], s=2, color=PALETTE[4])
for view, color in enumerate(PALETTE[:2]):
    origins, directions = (t.reshape(8, 8, 3)[4].numpy() for t in coarse.rays(view))  # the row below the middle
    ends = origins + 4.9 * directions
    axis.plot(*np.stack([origins, ends])[..., [2, 0]].transpose(2, 0, 1), color=color, lw=0.8)
    axis.scatter(*origins[0, [2, 0]], color=color, s=60, zorder=3, label=f"azimuth {60 * view}°")
axis.set(aspect="equal", xlabel="z (the face looks this way)", ylabel="x", title="from above: 8 pixels of two cameras")
axis.legend()
axis.invert_yaxis()
plt.show()

# %% tags=["check"]
nose = torch.from_numpy(shape.landmarks["nose_tip"]).float()
for view in range(3):
    x, y = xyd[view, list(marks).index("nose_tip"), :2].astype(int)
    origins, directions = views.rays(view)
    origin, direction = origins[y * 256 + x], directions[y * 256 + x]
    miss = torch.linalg.cross(nose - origin, direction).norm()
    pixel = (nose - origin).norm() / views.intrinsics[view, 0]  # a pixel's width at that distance
    assert miss < 0.75 * pixel and abs(direction.norm() - 1) < 1e-6
print(f"the ray of the nose's pixel passes it at {miss / pixel:.2f} pixels")

# %% [markdown]
# ### Coverage
#
# Where are the cameras? Frame 0 is frontal, the others cover a band from −25° to 50° of elevation. They follow a
# low-discrepancy (R2) sequence rather than dice: equal area gets equally many, without clusters or holes, and every
# subject's sequence is turned by another angle.

# %%
def angles(cameras):
    """Azimuth and elevation of the cameras in degrees, each (N,)."""
    x, y, z = cameras.camera_to_world[:, :3, 3].T.numpy()
    return np.degrees(np.arctan2(x, z)), np.degrees(np.arcsin(y / np.sqrt(x * x + y * y + z * z)))


figure, axis = plt.subplots(figsize=(9, 2.6))
axis.scatter(*np.concatenate([angles(p.cameras) for p in people], 1), s=10, color="#cccccc", label="all subjects")
for views_of, marker, color in zip(subject.held_out(), "os", PALETTE, strict=False):
    label = "one subject, " + ("fitted" if marker == "o" else "held out")
    axis.scatter(*angles(subject.cameras[views_of]), s=32, marker=marker, color=color, label=label)
axis.set(xlabel="azimuth in degrees, 0 = front", ylabel="elevation", xlim=(-185, 185), xticks=range(-180, 181, 45))
axis.legend(ncols=3, loc="upper right", bbox_to_anchor=(1, 1.22))
plt.show()

# %% tags=["check"]
rng = np.random.default_rng(0)
low, high = np.sin(np.radians([-25, 50]))


def dice(count):
    """Random directions of the band, uniform by area: (count, 3)."""
    y, turn = rng.uniform(low, high, count), rng.uniform(0, 2 * np.pi, count)
    ring = np.sqrt(1 - y * y)
    return np.stack([ring * np.sin(turn), y, ring * np.cos(turn)], axis=1)


def largest_hole(eyes, band):
    """Degrees from the loneliest direction of the band to its nearest camera."""
    return np.degrees(np.arccos((band @ eyes.T).max(1).clip(-1, 1)).max())


band = dice(4000)
eyes = [(p.cameras.camera_to_world[:, :3, 3] / 3.5).numpy() for p in people]
assert all(np.allclose(np.linalg.norm(e, axis=1), 1) and np.allclose(e[0], [0, 0, 1]) for e in eyes)
ours = np.mean([largest_hole(e, band) for e in eyes])
theirs = np.mean([largest_hole(dice(24), band) for _ in range(50)])
assert ours < 0.8 * theirs, (ours, theirs)
print(f"largest hole: {ours:.0f}° here, {theirs:.0f}° with 24 random cameras")

# %% [markdown]
# ## 5 Alpha
#
# Pictures are RGBA with **straight** alpha: RGB is the colour of the person alone, alpha the share of the pixel
# that the person covers. Any background $b$ can be put behind: $x = \alpha\, c + (1 - \alpha)\, b$. Fitting draws a
# new random $b$ at every step, so that empty space cannot be explained by painting a white wall.

# %%
def over(image, background):
    """Composite (..., 4) uint8 straight-alpha pixels over an RGB background in [0, 1]."""
    alpha = image[..., 3:] / 255
    return alpha * (image[..., :3] / 255) + (1 - alpha) * np.asarray(background)


portrait = people[1].images[0]
colours = np.random.default_rng(seed).random((3, 3))
x = np.flatnonzero(portrait[100, :, 3])[0]  # where row 100 enters the person
shown = [portrait[..., 3], *(over(portrait, colour) for colour in colours), portrait[88:112, x - 12 : x + 12]]
photo(show_images(shown, ["alpha", *["over a random colour"] * 3, "the edge, enlarged"], 5))

# %% [markdown]
# The rule for resizing: averages belong to **premultiplied** colours $\alpha c$. Averaging $c$ and $\alpha$ apart
# lets the colour of pixels that show nothing leak into the silhouette.

# %% tags=["check"]
def halve(pixels):
    """The mean of each 2×2 block of (H, W, C)."""
    return pixels.reshape(pixels.shape[0] // 2, 2, pixels.shape[1] // 2, 2, -1).mean((1, 3))


c, alpha = portrait[..., :3] / 255, portrait[..., 3:] / 255
truth = halve(over(portrait, colours[0]))
right = halve(alpha * c) + (1 - halve(alpha)) * colours[0]
wrong = halve(alpha) * halve(c) + (1 - halve(alpha)) * colours[0]
assert np.abs(right - truth).max() < 1e-12 < 0.01 < np.abs(wrong - truth).max()
assert 0.2 < (alpha == 1).mean() < 0.8 and 0.001 < ((alpha > 0) & (alpha < 1)).mean() < 0.1
print(f"error: premultiplied {np.abs(right - truth).max():.0e}, straight {np.abs(wrong - truth).max():.2f}")

# %% [markdown]
# ## 6 One live subject, and `transforms.json`
#
# A person, cameras and a renderer make a capture. This one has the views and the size of your preset.

# %%
from minirodin.cameras import capture_cameras, save_capture

start = time.perf_counter()
cameras = capture_cameras(config.data.views, config.data.size, seed)
capture = Capture(f"{seed:06d}", renderer.render(mesh, cameras), cameras, caption(who, seed), who.to_dict())
seconds = time.perf_counter() - start
photo(show_images(capture.images[:12], columns=12))

# %%
years = 30e6 * seconds / len(cameras) / 3600 / 24 / 365
print(f"{len(cameras)} views of {cameras.width}² in {seconds:.1f} s; 30 million would take {years:.2g} years")

# %% [markdown]
# `minirodin avatars --count 512 --views 32 --seed 0 --out runs/people` does this for many, in parallel, and goes on
# where it was stopped. On disk it is a folder of PNGs and one JSON file:

# %%
folder = Path(tempfile.mkdtemp())
meta = json.loads((save_capture(capture, folder / capture.name) / "transforms.json").read_text())
print(*(f"{key:15} {str(value)[:88]}" for key, value in meta.items() if key != "frames"), sep="\n")
print(f"frames          {len(meta['frames'])}, the first: {meta['frames'][0]['file_path']}")
print(*(f"{'':15} {np.round(row, 3)}" for row in meta["frames"][0]["transform_matrix"]), sep="\n")

# %% [markdown]
# | line | meaning |
# | --- | --- |
# | `camera_angle_x` | horizontal field of view in radians; Blender's exporters write only this |
# | `fl_x`, `fl_y`, `cx`, `cy` | focal lengths and principal point in pixels; nerfstudio writes these, and they win |
# | `w`, `h` | picture size; an error if the files differ |
# | `caption`, `attributes` | ours alone, optional |
# | `file_path` | relative to the folder, never outside of it |
# | `transform_matrix` | camera to world: its columns are right, up, back and the position |

# %% tags=["check"]
back = load_capture(folder / capture.name)
assert np.array_equal(back.images, capture.images) and back.caption == capture.caption
assert torch.equal(back.cameras.camera_to_world, cameras.camera_to_world)
assert torch.allclose(back.cameras.intrinsics, cameras.intrinsics, rtol=1e-12)
assert Attributes.from_dict(back.attributes) == who
assert abs(meta["fl_x"] - meta["w"] / 2 / np.tan(meta["camera_angle_x"] / 2)) < 1e-6
print("saved and loaded: the same pixels, cameras, caption and attributes")

# %% [markdown]
# ### Your own capture
#
# Foreign captures come in centimetres, off-centre, z up, without alpha. `"scale"`, `"offset"` and `"up"` bring them
# into the box (position ↦ scale · turned position + offset), `"background"` says what is behind. Here one of our
# people is disguised as such a capture (world in centimetres, z up, the head 170 above the floor), written by hand,
# and read back.

# %%
original = people[2]
foreign = folder / "foreign"
foreign.mkdir()
frames = []
for i, (image, pose) in enumerate(zip(original.images, original.cameras.camera_to_world.numpy(), strict=True)):
    Image.fromarray((255 * over(image, (1, 1, 1))).round().astype(np.uint8)).save(foreign / f"shot_{i}.png")
    turn = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # y up → z up
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ pose[:3, :3]
    matrix[:3, 3] = 20 * turn @ pose[:3, 3] + [0, 0, 170]
    frames.append({"file_path": f"shot_{i}.png", "transform_matrix": matrix.tolist()})
text = json.dumps({"camera_angle_x": 0.6, "up": "z", "frames": frames})
(foreign / "transforms.json").write_text(text)
print(text[:190], "…")

# %%
try:
    load_capture(foreign)
except DataError as error:
    print(str(error).replace(str(folder), "…"))
loaded = load_capture(foreign, scale=1 / 20, offset=(0, -170 / 20, 0))  # or in the file: "scale": 0.05, …

# %% tags=["check"]
assert torch.allclose(loaded.cameras.camera_to_world, original.cameras.camera_to_world, atol=1e-9)
assert torch.allclose(loaded.cameras.intrinsics, original.cameras.intrinsics)
assert not loaded.has_alpha and (loaded.images[..., 3] == 255).all()
print("without a scale: refused. With it: the same cameras to 1e-9, pictures without alpha over", loaded.background)

# %% [markdown]
# ## 7 What masks already know: the visual hull
#
# Before anything is learned: a point whose pixel is empty in *any* view is certainly empty. What survives all views is
# the **visual hull**. `Observations` carves it out of a grid, and fitting spends its samples inside and pushes the
# density outside to zero.
#
# **Predict first.** How many views does it take until you recognise the person? What will never be carved, however
# many?

# %%
from minirodin.observations import Observations


def hull(capture, views, grid=96):
    """What the masks of the first `views` frames leave: (G, G, G) bool, indexed [z, y, x]."""
    some = dataclasses.replace(capture, images=capture.images[:views], cameras=capture.cameras[:views])
    return Observations([some], grid, "cpu").hull[0].numpy()


def sculpture(cells):
    """The surface of a hull in clay."""
    smooth = gaussian_filter(np.pad(cells, 3).astype(np.float32), 1.2)
    vertices, faces, normals, _ = marching_cubes(smooth, 0.5)
    vertices = (vertices[:, ::-1] - 3 + 0.5) * 2 / len(cells) - 1  # cell index → world
    return make_mesh(vertices, faces, CLAY, SKIN, normals=normals[:, ::-1])


# %%
counts = (1, 3, 8, 24)
hulls = [hull(subject, n) for n in counts]
shares = [cells.mean() for cells in hulls]
pictures = [renderer.render(sculpture(cells), orbit_cameras(35, 10, 200))[0] for cells in hulls]
titles = [f"{n} view{'s' * (n > 1)}: {share:.0%} of the box" for n, share in zip(counts, shares, strict=True)]
look = renderer.render(build_person(Attributes.from_dict(subject.attributes), 1).mesh, orbit_cameras(35, 10, 200))[0]
photo(show_images([*pictures, look], [*titles, "the person"]))

# %% [markdown]
# One view carves a cone, and nothing that it does not see: pillars stay at the edges of the box. Eight views are
# nearly a bust. But eye sockets, the hollow beside the nose and the space
# under the chin stay filled: no silhouette ever shows them, only colour does. That is the work of chapter 01.

# %% tags=["check"]
assert np.all(np.diff(shares) < 0) and shares[-1] < 0.25
cells = hull(capture, len(capture.images), 64)
z, y, x = ((mesh.vertices.T[::-1] + 1) / 2 * 64).astype(int)
inside = cells[z, y, x].mean()
assert inside == 1 and cells.mean() < 0.3
print(f"all {len(mesh.vertices):,} vertices of the live person lie in its hull, which is {cells.mean():.0%} of the box")

# %% [markdown]
# ## 8 Seeds: train, validate, never touch
#
# | seeds | for |
# | --- | --- |
# | 0 … 999 999 | training: decoder, planes, diffusion models, encoder |
# | 1 000 000 … 1 999 999 | validation: every number that we report |
# | from 2 000 000 | nothing, ever; `make_people` refuses them |
#
# A test set that is looked at while choosing between models is a validation set. The last range stays for somebody who
# wants to judge this work from outside. Here are twelve people for validation:

# %%
portraits = sorted(Path("../data_samples/portraits").glob("*.webp"))
photo(show_images([np.asarray(Image.open(path)) for path in portraits], columns=6))

# %% [markdown]
# They differ from training people in nothing but the seed:

# %%
validation = [sample_attributes(1_000_000 + s) for s in range(2000)]
styles = [Counter(a.hair_style for a in group) for group in (crowd, validation)]
place = np.arange(len(CHOICES["hair_style"]))
figure, axis = plt.subplots(figsize=(9, 2.2))
for i, (label, counts) in enumerate(zip(("training", "validation"), styles, strict=True)):
    heights = [counts[style] / 2000 for style in CHOICES["hair_style"]]
    axis.bar(place + 0.4 * i - 0.2, heights, 0.36, color=PALETTE[2 * i], label=label)
axis.set_xticks(place, CHOICES["hair_style"], rotation=20)
axis.yaxis.set_major_formatter("{x:.0%}")
axis.legend()
plt.show()

# %% tags=["check"]
from minirodin import ConfigError
from minirodin.avatars.dataset import make_people

gap = max(abs(styles[0][s] - styles[1][s]) / 2000 for s in CHOICES["hair_style"])
assert gap < 0.03, gap  # three standard deviations of a share of 10 %
assert all(int(p.name) < 1_000_000 for p in people)
assert len(portraits) == 12 and all(1_000_000 <= int(path.stem) < 2_000_000 for path in portraits)
try:
    make_people(folder / "no", count=2, seed=1_999_999)
except ConfigError as error:
    print(error)
else:
    raise AssertionError("seed 2 000 000 was rendered")

# %% [markdown]
# ## What the paper does, what we do
#
# | the paper | here |
# | --- | --- |
# | people rendered with Blender, not public | a parametric head (CC0), strand hair, clothes, accessories |
# | an in-house set, not released (RodinHD: 46 000 × 300 views) | any number; the decoder in the box: 256 × 32 |
# | path tracing | OpenGL with light baked per vertex: a picture in milliseconds on a GPU |
# | — | captions with paraphrases, true by construction |
# | backgrounds not stated | straight alpha, random backgrounds |
# | front view → latent code | frame 0 is frontal by convention |

# %% [markdown]
# ## Exercises

# %% [markdown] tags=["exercise"]
# ### Exercise 1 · by hand
# Take the frontal camera's entry from `meta` (plain JSON) and compute with NumPy alone where the nose tip lands.
# Where does it land if you forget that the camera looks along −z?

# %% tags=["solution"]
pose = np.array(meta["frames"][0]["transform_matrix"])
q = pose[:3, :3].T @ (shape.landmarks["nose_tip"] - pose[:3, 3])
by_hand = meta["cx"] + meta["fl_x"] * q[0] / -q[2], meta["cy"] - meta["fl_y"] * q[1] / -q[2]
forgot = meta["cx"] + meta["fl_x"] * q[0] / q[2], meta["cy"] - meta["fl_y"] * q[1] / q[2]
assert np.allclose(by_hand, cameras.project(torch.from_numpy(shape.landmarks["nose_tip"])[None])[0, 0, :2])
assert np.allclose(np.add(by_hand, forgot), [2 * meta["cx"], 2 * meta["cy"]])
print(f"at {np.round(by_hand, 2)}; turned by 180° about the principal point, at {np.round(forgot, 2)}")

# %% [markdown] tags=["exercise"]
# ### Exercise 2 · what shapes a head?
# Which attributes move the vertices of the bare head, and which do not? Guess, then find out by changing one at a time
# (`head_shape(dataclasses.replace(who, …)).coarse`).

# %% tags=["solution"]
base, other = who.to_dict(), sample_attributes(seed + 1).to_dict()
other |= {name: next(v for v in values if v != base[name]) for name, values in CHOICES.items()}
other |= {name: not value if isinstance(value, bool) else value for name, value in base.items() if name == "fringe"}
rest = head_shape(who).coarse
moved = {n for n in base if np.abs(head_shape(Attributes.from_dict(base | {n: other[n]})).coarse - rest).max() > 1e-9}
print("move the head:", ", ".join(n for n in base if n in moved))
assert moved == {"seed", "gender", "age", "ancestry", "weight", "muscle", "expression"}

# %% [markdown] tags=["exercise"]
# ### Exercise 3 · attributes depend on each other
# "An old man (over 65) with a white full beard": multiply the shares of the single attributes in `crowd`, and
# compare with the share of all together. Which number tells a generator that has learned the distribution from one
# that mixes attributes freely?

# %% tags=["solution"]
wishes = [lambda a: a.age > 65, lambda a: a.gender == "man", lambda a: a.hair_color == "white"]
wishes += [lambda a: a.facial_hair == "full"]
product = np.prod([np.mean([wish(a) for a in crowd]) for wish in wishes])
found = [a.seed for a in crowd if all(wish(a) for wish in wishes)]
together = len(found) / len(crowd)
assert together > 3 * product
print(f"product {product:.2%}, together {together:.2%}; seeds {found[:4]}. A free mixer gets the product.")

# %% [markdown]
# ## Explorer (optional)
#
# Move a slider, get a person. It needs a running kernel; below, for those who read this without one, each control is
# moved once, and the changes add up.

# %% tags=["nbval-ignore-output"]
import ipywidgets as widgets

controls = {
    "age": widgets.FloatSlider(who.age, min=18, max=85, continuous_update=False),
    "skin_tone": widgets.FloatSlider(who.skin_tone, min=0, max=1, step=0.05, continuous_update=False),
    **{n: widgets.Dropdown(options=CHOICES[n], value=getattr(who, n)) for n in ("hair_style", "glasses", "expression")},
}
view = widgets.Image(format="png", width=256)


def update(change=None):
    choice = dataclasses.replace(who, **{name: control.value for name, control in controls.items()})
    pixels = renderer.render(build_person(choice, detail=1).mesh, orbit_cameras(-20, 5, 256))[0]
    buffer = io.BytesIO()
    Image.fromarray((255 * over(pixels, (1, 1, 1))).astype(np.uint8)).save(buffer, "png")
    view.value = buffer.getvalue()


for name, control in controls.items():
    control.description = name.replace("_", " ")
    control.observe(update, "value")
update()
widgets.HBox([widgets.VBox(list(controls.values())), view])

# %% tags=["check"]
moves = {"hair_style": "mohawk", "glasses": "sun", "expression": "surprised", "age": 80, "skin_tone": 0.9}
frames = [view.value]
for name, value in moves.items():
    controls[name].value = value  # what a hand on the slider does
    frames.append(view.value)
assert len(set(frames)) == 1 + len(controls), "a slider moved and the picture did not"
print(f"{len(moves)} controls moved, the picture followed each")

# %%
titles = ["as drawn", *(f"{name.replace('_', ' ')}: {value}" for name, value in moves.items())]
photo(show_images([np.asarray(Image.open(io.BytesIO(frame))) for frame in frames], titles, columns=6))

# %% [markdown]
# Next: [01 · Tri-plane fitting](01_triplane_fitting.ipynb) turns such captures into three planes of features.
