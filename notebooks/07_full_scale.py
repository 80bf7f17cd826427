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
# # 07 · Full scale: what grows, what fits, what a killed run loses
#
# The other chapters ran on a laptop. `full` is planes of 256² × 32, a network of 192 channels, 100 000 people. The one
# idea of this chapter: **know the exponents before you rent the machines**. Which cost grows with what, which number of
# the small run says what the large one takes, and which says nothing.
#
# *Paper*: the sizes of its method section (64² → 256² → 1024²), which states no cost. *Code*: `plan.py` (costs from
# measured rates), `streaming.py` (planes that do not fit into memory), `training.py` (resuming), `launch/` (clusters).
#
# | preset | what runs live | time | memory |
# | --- | --- | --- | --- |
# | `smoke` | layers measured here, a plan, a training killed and resumed | 30 s on one core | not measured |
# | `small`, `full` | the same: nothing large is trained here | as `smoke` | as `smoke` |
#
# 1 exponents, counted · 2 exponents, measured · 3 what training keeps · 4 from small to full · 5 the plan ·
# 6 more people than memory · 7 killed and resumed · 8 launching

# %%
import json
import math
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from minirodin import preset
from minirodin.plots import show_curves

# %% tags=["parameters"]
preset_name = os.environ.get("MINIRODIN_PRESET", "smoke")
seed = 0

# %%
config = preset(preset_name)
full, small = preset("full"), preset("small")
scratch = Path(tempfile.mkdtemp())
results = {path.stem: json.loads(path.read_text()) for path in Path("../results").glob("*.json")}

# %% [markdown]
# ## 1 Exponents, counted
#
# Planes of side R with C channels are 3·C·R² numbers, a grid of voxels C·R³.
#
# **Predict first.** From 64² to 256², R grows by four. By how much do grow: the planes on the disk, a 3D-aware
# convolution, attention among all texels of three planes?

# %%
from minirodin.conv import AwareConv2d
from minirodin.unet import PlaneAttention

C = 16
layers = {"3D-aware convolution": AwareConv2d(C, C), "attention": PlaneAttention(C, 3, C)}
sides = [8, 16, 32, 64]


def flops(layer, side):
    """Multiplications and additions for one person."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        layer(torch.randn(3, C, side, side))
    return counter.get_total_flops()


# %%
from torch.nn.attention import SDPBackend, sdpa_kernel

counted = {name: [flops(layer, side) for side in sides] for name, layer in layers.items()}
numbers = {"planes (numbers)": [3 * C * r**2 for r in sides], "voxels (numbers)": [C * r**3 for r in sides]}
curves = {name: ([math.log2(r) for r in sides], values) for name, values in {**counted, **numbers}.items()}
show_curves(curves, xlabel="log2 of the side R", ylabel="FLOPs, or numbers", log_y=True, width=6)

# %% tags=["check"]
exponent = {name: math.log2(values[-1] / values[-2]) for name, values in {**counted, **numbers}.items()}
assert abs(exponent["3D-aware convolution"] - 2) < 0.05, "as a picture's: the pooled lines cost next to nothing"
assert abs(exponent["attention"] - 4) < 0.1, "every texel looks at every texel"
assert exponent["planes (numbers)"] == 2 and exponent["voxels (numbers)"] == 3
print({name: round(value, 2) for name, value in exponent.items()}, "· times four:", [4**e for e in (2, 4, 2)])

# %% [markdown]
# So planes and convolution grow 16-fold, attention 256-fold. That is why the networks here attend at 32² and below, and
# why the upsampler has no attention at all: at 256² its three planes would be 196 608 tokens.
#
# ## 2 Exponents, measured
#
# A count is not a time. On this machine, the median of five calls:

# %%
torch.set_num_threads(1)


def seconds(layer, side, repeats=5):
    x, times = torch.randn(3, C, side, side), []
    with torch.no_grad():
        for _ in range(repeats + 1):
            began = time.perf_counter()
            layer(x)
            times.append(time.perf_counter() - began)
    return sorted(times[1:])[repeats // 2]


# %%
taken = {name: [seconds(layer, side) for side in sides] for name, layer in layers.items()}
curves = {name: ([math.log2(r) for r in sides], [1e3 * t for t in values]) for name, values in taken.items()}
show_curves(curves, xlabel="log2 of the side R", ylabel="milliseconds", log_y=True, width=6)

# %% tags=["check"]
grown = {name: values[-1] / values[1] for name, values in taken.items()}  # from 16² to 64²
assert grown["attention"] > 2 * grown["3D-aware convolution"]
assert grown["3D-aware convolution"] < 16, "less than its FLOPs grow"
print("from 16² to 64², times:", {name: round(value) for name, value in grown.items()}, "counted: 16 and 256")

# %% [markdown]
# Small maps cost more than their FLOPs say: calls, which do not grow, are much of their time. So what was measured at a
# small size tells too much when it is extrapolated by FLOPs. Keep that in mind for section 4.
#
# ## 3 What training keeps
#
# Memory of a training step has two parts: what goes with the parameters (weights, gradient, two moments, average: 20
# bytes each in float32), and the activations that the backward pass needs, which go with batch and R².
#
# **Predict first.** Batch 1, 2, 4: how many bytes are kept? And how many if activations are computed again
# (`checkpointing`)?

# %%
from minirodin.unet import UNet

shape = preset("smoke").base.unet


def kept(network, batch, side=32):
    """Bytes that autograd keeps for the backward pass, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = 0 if storage.data_ptr() in own else storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = network(torch.randn(batch, 3, 8, side, side), torch.zeros(batch))  # kept alive until counted
    return sum(sizes.values()) + 0 * made.numel()


# %%
network, again = (UNet(replace(shape, checkpointing=flag), 8, 32) for flag in (False, True))
batches = [1, 2, 4]
both = {"kept": network, "computed again": again}
memory = {name: [kept(net, b) / 2**20 for b in batches] for name, net in both.items()}
show_curves({name: (batches, values) for name, values in memory.items()}, xlabel="batch", ylabel="MiB", width=5)

# %% tags=["check"]
a, b, c = memory["kept"]
assert abs((c - b) / (b - a) - 2) < 0.1, "a straight line"
assert all(less < 0.5 * more for less, more in zip(memory["computed again"], memory["kept"], strict=True))
print(f"{a:.0f}, {b:.0f}, {c:.0f} MiB; computed again: {memory['computed again'][-1]:.0f} MiB, for a forward pass more")

# %% [markdown]
# Here is how to choose, then. Parameters too large for a GPU would have to be sharded, which no network here needs.
# Activations too large: first `accumulate` (the batch in parts, the same gradient: exercise 3), then `checkpointing`.
# Both take time, and neither changes what is minimised.
#
# ## 4 From small to full
#
# The base model was measured at both sizes, one training step on one H200 (`minirodin bench unet`).
#
# **Predict first.** `full` has 14 times the FLOPs a person of `small`. If you knew the small rate only, what would you
# predict? Is the truth better or worse?

# %%
rows = {name: results[f"bench_unet_{name}"]["variants"]["aware"] for name in ("small", "full")}
for name, row in rows.items():
    share = row["share_of_matrix_rate"]
    print(f"{name:5} {row['forward_gflop']:6.1f} GFLOP forward, {row['samples_per_second']:6.0f} a second, {share:.0%}")

# %% tags=["check"]
heavier = rows["full"]["forward_gflop"] / rows["small"]["forward_gflop"]
predicted = rows["small"]["samples_per_second"] / heavier
truth = rows["full"]["samples_per_second"]
assert 13.5 < heavier < 14.5 and 1.8 < truth / predicted < 2.1
assert [round(100 * row["share_of_matrix_rate"]) for row in rows.values()] == [26, 46]
print(f"by FLOPs alone {predicted:.0f} a second; measured {truth:.0f}, {truth / predicted:.1f} times as many")

# %% [markdown]
# Better: a wide network keeps the chip busier (46 % of its matrix rate against 26 %). A rate scaled by FLOPs from a
# smaller network is a cautious one; here it erred by a factor of two.
#
# The counter needs no chip, and no memory either: shapes are enough. So the network of any preset can be weighed here.

# %%
from torch._subclasses.fake_tensor import FakeTensorMode

from minirodin.base import build_unet
from minirodin.benchmark_unet import forward_flops
from minirodin.upsampler import build_network

for settings in (config, small, full):
    with FakeTensorMode():
        both = {"base": build_unet(settings.base, settings), "upsampler": build_network(settings)}
    gflop = {name: forward_flops(net) / 1e9 for name, net in both.items()}
    size = {name: sum(p.numel() for p in net.parameters()) / 1e6 for name, net in both.items()}
    print(f"{settings.name:6}", *(f"{name} {gflop[name]:7.1f} GFLOP, {size[name]:5.1f} M " for name in both))

# %% tags=["check"]
assert abs(gflop["base"] / rows["full"]["forward_gflop"] - 1) < 1e-6, "as the benchmark counted"
assert gflop["upsampler"] > 2 * gflop["base"] and size["upsampler"] < 0.4 * size["base"], "R² counts"
print("the upsampler has a third of the parameters, and more than twice the FLOPs")

# %% [markdown]
# ## 5 The plan
#
# `minirodin plan` puts that together for every stage. Each number names the file that it comes from; what was not
# measured is missing, not guessed.

# %%
from minirodin.cli_plan import table
from minirodin.plan import as_json, make_plan

stages = make_plan("full", gpus=8, results="../results")
found = as_json(stages)
print(table(stages, found).split("\n\n")[0])

# %% tags=["check"]
by_name = {stage.name: stage for stage in stages}
steps = 500_000 * 256 / truth / 3600
assert abs(by_name["base"].gpu_hours / steps - 1) < 0.01, "people a second, times people: no more than that"
assert all(stage.gpu_hours or "missing" in " ".join(stage.notes) for stage in stages)
assert by_name["base"].gpu < 80, "the base model fits"
print(f"base: {steps:.0f} GPU hours. Not measured:", ", ".join(found["missing"]))

# %% [markdown]
# **Predict first.** Which stages of this plan would not fit on GPUs of 80 GiB and 128 GiB of memory a process? What do
# they have in common?

# %%
for stage in stages:
    for line in stage.too_much:
        print(f"{stage.name:10}", line)

# %% tags=["check"]
assert "base" not in found["does_not_fit"]
assert {"upsampler", "refiner"} <= set(found["does_not_fit"])
photographs = 20_000 * (300 - 300 // 8 - 1) * 4 * 256**2 / 2**30  # every eighth view is held out
assert abs(by_name["upsampler"].host / photographs - 1) < 0.02, "and it is not the network"
print(f"{photographs:,.0f} GiB of photographs; the networks' weights and moments: a few GiB each")

# %% [markdown]
# They hold everybody's pictures at once (and the decoder everybody's planes with their moments): 300 views of 20 000
# people are more than a terabyte. Fewer views or people do it, or for the upsampler no `--captures`: patches are then
# compared with fitted planes.
#
# ## 6 More people than memory
#
# Planes of 100 000 people at 64² are 73 GiB. More than `train.cache` are not loaded but **streamed**: an epoch visits
# everybody once, in an order that is a function of seed, epoch and process alone.

# %%
from minirodin.shards import FittedPlanes, SharedDecoder
from minirodin.streaming import PlaneSource

shared = SharedDecoder.load("../data_samples/pretrained/small/decoder.safetensors")
generator = torch.Generator().manual_seed(seed)
folder = FittedPlanes(scratch / "planes")
for first in range(0, 24, 6):  # four shards of six
    names = [f"{i:02d}" for i in range(first, first + 6)]
    folder.write_shard({name: torch.randn(3, C, 16, 16, generator=generator).clamp(-1, 1) for name in names}, shared)

# %%
one = 3 * C * 16 * 16 * 2 / 2**30  # GiB
schedule = replace(preset("smoke").base.train, steps=12, batch=4, checkpoint_every=3, cache=8 * one, graph=False)
people = PlaneSource(scratch / "planes", 16, schedule)
for epoch in range(2):
    for rank in range(2):
        print(f"epoch {epoch}, process {rank}:", *(f"{i:2}" for i in people.order(epoch, rank, ranks=2)))

# %% tags=["check"]
orders = [[int(i) for rank in (0, 1) for i in people.order(epoch, rank, 2)] for epoch in (0, 1)]
assert people.planes is None, "too many for the cache"
assert all(sorted(order) == list(range(24)) for order in orders), "everybody, once"
assert orders[0] != orders[1]
window = {i // 6 for i in orders[0][:8]}
assert len(window) <= 3, "a window of eight lies in few shards: what is read together lies together"
print("shards in the first window:", window)

# %% [markdown]
# **Predict first.** While ten times more planes pass by than the cache takes, what does the process's memory do?

# %%
streaming = results["bench_streaming"]
tenths = list(range(len(streaming["peak_mb"])))
labels = {"streamed": "peak_mb", "held in memory": "peak_mb_in_memory"}
curves = {label: (tenths, streaming[key]) for label, key in labels.items()}
show_curves(curves, xlabel="tenths of two epochs", ylabel="peak memory, MiB", width=6)

# %% tags=["check"]
assert streaming["planes_mb"] > 9.9 * streaming["cache_mb"]
assert streaming["peak_mb"][-1] < 1.05 * streaming["peak_mb"][1], "flat from the first tenth to the last"
assert streaming["peak_mb_in_memory"][-1] - streaming["peak_mb_in_memory"][0] > streaming["planes_mb"]
rate = streaming["people_per_second"]
print(f"{rate:.0f} people a second were read ({streaming['device']}); an H200 learns from {truth:.0f}")

# %% [markdown]
# ## 7 Killed and resumed
#
# Machines die, and allocations end. All randomness of step k follows from (seed, k, process), so a run that goes on
# from its last checkpoint must end with the very same weights.
#
# **Predict first.** A training of 12 steps with a checkpoint every third is killed in step 8. How many steps does the
# second run do? How many people does it read before its first one?

# %%
from minirodin.diffusion import Diffusion
from minirodin.training import Trainer

diffusion = Diffusion(preset("smoke").base.diffusion)


def losses(network, planes, generator):
    return diffusion.losses(network, planes, generator)


def train(out, killed_in=None):
    """A base model in miniature; returns its weights, and the turns in which it drew."""
    source, turns = PlaneSource(scratch / "planes", 16, schedule), []

    def batches(number, generator):
        turns.append(trainer.place[0])
        if turns[-1] == killed_in:
            raise KeyboardInterrupt
        return source.draw(number, generator, *trainer.place)[1].float()

    torch.manual_seed(seed)
    network = UNet(replace(shape, dropout=0.1), C, 16, diffusion.outputs)
    trainer = Trainer(network, losses, batches, schedule, scratch / out, {"kind": "lesson"})
    try:
        trainer.run(show_progress=False)
    except KeyboardInterrupt:
        print("killed in step", trainer.step)
    return torch.cat([p.detach().flatten().cpu() for p in network.parameters()]), turns


# %%
unbroken, _ = train("unbroken")
_, before = train("broken", killed_in=8)
resumed, after = train("broken")
print("drawn before:", before, "and after:", after)

# %% tags=["check"]
assert before == list(range(9)) and after == list(range(6, 12)), "steps 6 and 7 are done again"
difference = float((resumed - unbroken).abs().max())
assert difference <= (1e-3 if torch.cuda.is_available() else 0), difference
print("largest difference of any weight:", difference)

# %% [markdown]
# Nobody is read before that: the order is computed, not replayed. A shuffle buffer would have had to be filled again.
#
# ## 8 Launching
#
# | where | how | what shares the work |
# | --- | --- | --- |
# | one machine | `launch/one_node.sh OUT` | torchrun, or `accelerate launch` |
# | several | `launch/several_nodes.sh WHAT DATA OUT` on each | torchrun |
# | SLURM | `launch/slurm/submit.sh ROOT` | arrays make and fit people, then torchrun |
#
# Making and fitting people needs no talk between machines. A task gets its share from its number, and leaves whole
# files:

# %%
print(Path("../launch/slurm/people.sbatch").read_text())

# %% tags=["check"]
text = Path("../launch/slurm/fit.sbatch").read_text()
tasks = int(text.split("--array=0-")[1].split()[0]) + 1
assert f"TASKS={tasks}" in text, "shares follow from a constant: single tasks can be submitted again"
groups = list(range(-(-100_000 // 64)))
shares = [groups[rank::tasks] for rank in range(tasks)]
assert sorted(g for share in shares for g in share) == groups, "no group is lost, none is fitted twice"
print(f"{len(groups)} groups of 64 among {tasks} tasks, {min(map(len, shares))} or {max(map(len, shares))} each")

# %% [markdown]
# ## What the small run already tells
#
# | it tells | it does not |
# | --- | --- |
# | that every stage runs, resumes and writes what the next one reads | whether disks keep up with 64 tasks |
# | FLOPs and bytes of the large run, exactly | its rate: by FLOPs too low, a factor of two here |
# | which of two settings is better at equal data | how many people it takes to learn nobody by heart |
#
# ## What the paper does, what we do
#
# | the paper | here |
# | --- | --- |
# | its method section states sizes and no cost | costs of each stage, from rates anyone can measure again |
# | … and no settings of training | our choice, or the nearest published ones: `config.py` says so of each |
# | a model trained at full size | `full` was measured in parts, and never trained |
#
# ## Exercises
#
# ### Exercise 1 · where attention becomes dear
# At which side would a layer of attention cost more than a 3D-aware convolution of 16 channels? Find it by counting.

# %% tags=["solution"]
crossing = next(r for r in range(2, 64) if flops(layers["attention"], r) > flops(layers["3D-aware convolution"], r))
n = 3 * crossing**2
assert 4 * n * n * C + 8 * n * C * C > 2 * 9 * n * C * C, "attention: scores and values, then four maps of C to C"
print(f"from {crossing}²; wider layers later: scores grow with C, a convolution with C²")

# %% [markdown]
# ### Exercise 2 · sixteen GPUs
# What becomes of the base model's share of memory with 16 GPUs instead of 8, and what of its time? When does it stop?

# %% tags=["solution"]
few, many = ({s.name: s for s in make_plan("full", gpus=n, results="../results")}["base"] for n in (8, 16))
assert many.hours == few.hours / 2 and few.gpu / 2 < many.gpu < few.gpu
weights = 20 * rows["full"]["parameters"] / 2**30
print(f"{few.gpu:.1f} → {many.gpu:.1f} GiB: activations are halved, {weights:.1f} GiB of weights stay. "
      "At 256 GPUs each has one person, and waits for the others")  # fmt: skip

# %% [markdown]
# ### Exercise 3 · accumulate
# Show that a batch in two parts has the gradient of the whole, for a loss that is a mean over the batch.

# %% tags=["solution"]
x, level = torch.randn(4, 3, 8, 32, 32), torch.zeros(4)
with torch.no_grad():
    network.exit[-1].weight.normal_(std=0.1)  # it starts at zero, where nothing learns


def gradient(parts):
    network.zero_grad()
    for part, l in zip(x.chunk(parts), level.chunk(parts), strict=True):
        (network(part, l).square().mean() / parts).backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


whole, halves = gradient(1), gradient(2)
assert (whole - halves).abs().max() < 1e-4 * whole.abs().max()
print("equal but for rounding: no layer here looks at other people of the batch")
