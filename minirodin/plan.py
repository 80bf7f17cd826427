"""What a reproduction would take on given GPUs: disk, memory and time of each stage, from rates that were measured.

A rate is a number in a file of `results/`, which is named beside it. What was measured of smaller networks is scaled by
what can be counted, and says so: decoded samples and rays' pixels, and FLOPs. What nobody has measured is missing here
too. Where only some of the memory is known, it is a lower bound.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from minirodin.base import build_unet
from minirodin.benchmark_unet import forward_flops
from minirodin.config import Config, TrainConfig, preset
from minirodin.decoder import TriplaneDecoder
from minirodin.errors import ConfigError, DataError
from minirodin.latent_diffusion import LatentNetwork
from minirodin.latents import VERSIONS
from minirodin.recipes import People, Run, recipe
from minirodin.refiner import LARGE, Refiner
from minirodin.unet import UNet
from minirodin.upsampler import build_network

GIB = 2**30
IN_BOX = Path(__file__).resolve().parent.parent / "results"
STEPPED = 20  # bytes a parameter in training: weights, gradient, two moments, average, in float32
KEPT = 20  # on the disk: weights, two moments and average to resume from, and the averaged weights alone


@dataclass
class Stage:
    """One stage, and what it takes; None: not known.

    Attributes:
        disk: GiB that it leaves. host: GiB of memory a process. gpu: GiB of a GPU; with `at_least` not all of it.
        gpu_hours: in all; hours: on the clock.
        sources: files of `results/` that numbers come from. notes: how they were scaled, and what is missing.
        too_much: what would not fit.
    """

    name: str
    what: str
    disk: float = 0.0
    host: float = 0.0
    gpu: float | None = None
    at_least: bool = True
    gpu_hours: float | None = None
    hours: float | None = None
    sources: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    too_much: list[str] = field(default_factory=list)

    def takes(self, seconds: float, gpus: int) -> None:
        """So much time of one GPU, shared by `gpus`."""
        self.gpu_hours, self.hours = seconds / 3600, seconds / 3600 / gpus


class Rates:
    """The files of `results/` that say how fast things are.

    Args:
        folder: None: that of the repository this code lies in, or of the folder that is worked in.

    Raises:
        DataError: there is none.
    """

    def __init__(self, folder: str | Path | None = None):
        places = [Path(folder)] if folder else [IN_BOX, Path("results")]
        found = [place for place in places if list(place.glob("bench_*.json"))]
        if not found:
            raise DataError(
                f"no measured rates (bench_*.json) in {' or '.join(map(str, places))}: "
                "name the folder `results` of a checkout of minirodin with --results"
            )
        self.folder = found[0]

    def read(self, stage: Stage, *names: str) -> dict | None:
        """The first of these that is there and was measured on a GPU; None and a note where there is none."""
        of_cpu = []
        for name in names:
            path = self.folder / f"{name}.json"
            if path.is_file():
                values = json.loads(path.read_text(encoding="utf-8"))
                if not values["device"].startswith("CPU"):
                    stage.sources.append(f"{path.name} ({values['device']}, {values['date']})")
                    return values
                of_cpu.append(path.name)
        instead = f", {' and '.join(of_cpu)} is of a CPU" if of_cpu else ""
        stage.notes.append(f"time is missing: no rate was measured ({names[0]}.json){instead}")
        return None


def make_plan(
    name: str,
    gpus: int = 1,
    gpu_memory: float = 80.0,
    host_memory: float = 128.0,
    results: str | Path | None = None,
) -> list[Stage]:
    """What `minirodin reproduce --preset NAME` takes, stage by stage.

    Args:
        gpus: as many processes share every stage but the shared decoder's.
        gpu_memory, host_memory: GiB that one GPU has, and one process may take of the machine's.
        results: folder of measured rates; None: as `Rates` finds it.

    Raises:
        ConfigError, DataError: one line.
    """
    preset(name)  # a misspelt one is told here
    if gpus < 1:
        raise ConfigError(f"gpus is {gpus}: give at least 1")
    made, rates = recipe(name), Rates(results)
    run = Run(Path("runs"), made["config"], made["plan"], 0, gpus, "cuda")
    stages: list[Callable[[Run, Rates], Stage]] = [people, decoder, planes, encoder, base, latent, upsampler, refiner]
    done = [stage(run, rates) for stage in stages]
    for stage in done:
        least = "at least " if stage.at_least else ""
        if stage.gpu and stage.gpu > gpu_memory:
            stage.too_much.append(f"{least}{stage.gpu:,.0f} GiB on a GPU of {gpu_memory:g} GiB")
        if stage.host > host_memory:
            stage.too_much.append(f"{stage.host:,.0f} GiB of memory in a process that may take {host_memory:g}")
    return done


def people(run: Run, rates: Rates) -> Stage:
    """Portraits, and people seen from all around."""
    p, stage = run.plan.portraits, Stage("people", "")
    kinds = {("portraits", p.size, p.views): p.train + p.unseen}
    for who, _ in run.fitted.values():
        key = "all around", who.size, who.views  # those of equal pictures are made once
        kinds[key] = max(kinds.get(key, 0), who.train + who.unseen)
    stage.what = "; ".join(f"{n:,} × {views} views of {size}²" for (_, size, views), n in kinds.items())
    size_file = rates.folder / "bench_pictures.json"
    if size_file.is_file():
        known = {int(k): v for k, v in json.loads(size_file.read_text())["bytes_a_view"].items()}
        stage.disk = sum(n * views * _bytes_a_view(known, size) for (_, size, views), n in kinds.items()) / GIB
        stage.sources.append(size_file.name)
        if other := sorted({size for _, size, _ in kinds if size not in known}):
            stage.notes.append(f"bytes of pictures of {other}² from the nearest size, by pixels")
    else:
        stage.notes.append("disk is missing: bench_pictures.json is not there")
    if rate := rates.read(stage, "people"):
        d = preset("small").data  # that of the measurement (tools/measure_fitting.sh)
        views, size = rate.get("views", d.views), rate.get("size", d.size)
        longer = {key: max(1, key[2] / views) * max(1, (key[1] / size) ** 2) for key in kinds}
        stage.takes(sum(n * longer[key] for key, n in kinds.items()) / rate["people_per_second"], run.ranks)
        stage.notes.append(
            f"time is at most this: measured with {views} views of {size}² on {rate['cores']} cores and a GPU, more "
            "views and pixels in proportion, though a part is paid once a person"
        )
    return stage


def _bytes_a_view(known: dict[int, float], size: int) -> float:
    near = min(known, key=lambda k: abs(k - size))
    return known[near] * (size / near) ** 2


def decoder(run: Run, rates: Rates) -> Stage:
    """E1–E5, stage one: the shared decoder, in one process."""
    who, config = run.fitted["upsampler"]
    stage = Stage(
        "decoder", f"{run.plan.decoder:,} people, {config.fit.shared_steps:,} steps of {who.group}, on one GPU"
    )
    groups = -(-run.plan.decoder // who.group)
    stage.gpu = groups * _fitted_bytes(who, config) / GIB
    stage.host = _pixels(run.plan.decoder, who, 1.0) / GIB
    if rate := rates.read(stage, "bench_fit"):
        stage.takes(config.fit.shared_steps * _seconds_a_step(who, config, rate, stage), 1)
        stage.hours = stage.gpu_hours
    return stage


def planes(run: Run, rates: Rates) -> Stage:
    """E5, stage two: planes of everybody."""
    stage, seconds, largest = Stage("fitting", ""), 0.0, 0.0
    rate, parts = rates.read(stage, "bench_fit"), []
    for kind, (who, config) in run.fitted.items():
        count, t = who.train + who.unseen, config.triplane
        parts.append(f"{kind} {count:,} at {t.resolution}²")
        stage.disk += count * 2 * 3 * t.channels * t.resolution**2 / GIB
        largest = max(largest, _fitted_bytes(who, config))
        stage.host = max(stage.host, _pixels(who.group, who, 1.0) / GIB)
        if rate:
            groups = sum(-(-n // who.group) for n in (who.train, who.unseen))
            seconds += groups * config.fit.steps * _seconds_a_step(who, config, rate, stage)
    stage.what, stage.gpu = ", ".join(parts), largest / GIB
    if rate:
        stage.takes(seconds, run.ranks)
        peak, small = rate["fast"]["peak_memory_gb"], preset("small")
        stage.notes.append(
            f"memory is of planes, their optimiser and pixels alone; {peak:.1f} GiB were measured of "
            f"{rate['subjects']} subjects × {small.fit.rays} rays × {small.render.samples} samples"
        )
    return stage


def _seconds_a_step(who: People, config: Config, rate: dict, stage: Stage) -> float:
    """Of a group: as many decoded samples a second as measured, less as the decoder has more FLOPs."""
    small, samples = preset("small"), who.group * config.fit.rays * config.render.samples
    heavier = _decoder_flops(config.triplane.channels, config) / _decoder_flops(small.triplane.channels, small)
    if heavier != 1:
        note = f"decoded samples a second of `small`, less as a decoded sample has {heavier:.1f} times the FLOPs"
        stage.notes += [note] if note not in stage.notes else []
    return samples * heavier / rate["fast"]["samples_per_second"]


def _decoder_flops(channels: int, config: Config) -> float:
    import torch

    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        TriplaneDecoder(channels, config.decoder)(torch.empty(64, channels), torch.empty(64, 3))
    return counter.get_total_flops() / 64


def _fitted_bytes(who: People, config: Config) -> float:
    """Of a group on the GPU: coarse and detail planes with gradient and two moments in float32, pixels of its views."""
    t = config.triplane
    texels = t.resolution**2 + t.base_resolution**2
    return who.group * 4 * 4 * 3 * t.channels * texels + _pixels(who.group, who)


def _pixels(count: int, who: People, share: float = 7 / 8) -> float:
    """Bytes of RGBA views in memory; every eighth is held out (`Capture.held_out`)."""
    return count * int(who.views * share) * 4 * who.size**2


def encoder(run: Run, rates: Rates) -> Stage:
    """E13; its portraits are on the device."""
    p, train = run.plan.portraits, run.config.encoder.train
    stage = Stage("encoder", f"{train.steps:,} steps of {train.batch}")
    stage.host = stage.gpu = p.train * p.views * 4 * p.size**2 / GIB
    stage.notes.append("memory is of the portraits alone, which all lie on every GPU")
    _train(stage, run, train, rates.read(stage, "bench_encoder"))
    return stage


def base(run: Run, rates: Rates) -> Stage:
    """E6–E14."""
    c, who = run.config, run.plan.base
    stage = Stage("base", f"{c.base.train.steps:,} steps of {c.base.train.batch}")
    network = _imagined(lambda: build_unet(c.base, c))
    rate = rates.read(stage, f"bench_unet_{c.name}", "bench_unet_small")
    if rate:
        row = rate["variants"][c.base.unet.variant]
        heavier = _training_flops(network) / 3e9 / row["forward_gflop"]
        if abs(heavier - 1) > 0.01:
            stage.notes.append(f"people a second of another network, which has {1 / heavier:.2f} times the FLOPs")
        found = {"samples_per_second": row["samples_per_second"] / heavier}
        if abs(heavier - 1) <= 0.01:
            found["activations"] = (row["peak_memory_gb"] * GIB - (STEPPED - 4) * row["parameters"]) / rate["batch"]
        rate = found
    _train(stage, run, c.base.train, rate, network)
    t = c.triplane
    _hold(stage, c.base.train, who.train * 2 * 3 * t.channels * t.base_resolution**2)
    latents = who.train * VERSIONS * c.base.unet.latent * 4 / GIB
    stage.host, stage.gpu = stage.host + latents, stage.gpu + latents
    return stage


def latent(run: Run, rates: Rates) -> Stage:
    """E15."""
    c, p = run.config, run.plan.portraits
    stage = Stage("latent", f"{c.latent.train.steps:,} steps of {c.latent.train.batch}")
    network = _imagined(lambda: LatentNetwork(c.latent, c.encoder.dimensions))
    _train(stage, run, c.latent.train, rates.read(stage, "bench_latent"), network)
    stage.disk += p.train * VERSIONS * c.encoder.dimensions * 2 / GIB
    stage.gpu += p.train * VERSIONS * c.encoder.dimensions * 4 / GIB
    return stage


def upsampler(run: Run, rates: Rates) -> Stage:
    """E17–E19; the photographs that patches are compared with are on the device."""
    c, who, t = run.config, run.plan.upsampler, run.config.triplane
    stage = Stage("upsampler", f"{c.upsampler.train.steps:,} steps of {c.upsampler.train.batch}")
    network = _imagined(lambda: build_network(c))
    small = preset("small")
    rate = rates.read(
        stage, f"bench_upsampler_{c.name}", "bench_upsampler_small", "bench_upsampler", "bench_upsampler_cpu"
    )
    if rate:
        found = {"samples_per_second": rate["training_steps_per_second"] * rate["batch"]}
        parameters = sum(p.numel() for p in network.parameters())
        if rate["parameters"] == parameters:
            found["activations"] = (rate["peak_memory_gb"] * GIB - (STEPPED - 4) * parameters) / rate["batch"]
        else:
            heavier = _training_flops(network) / _training_flops(_imagined(lambda: build_network(small)))
            found["samples_per_second"] /= heavier
            stage.notes.append(f"people a second of `small`, less as the network has {heavier:.1f} times the FLOPs")
        rate = found
    _train(stage, run, c.upsampler.train, rate, network)
    _hold(stage, c.upsampler.train, who.train * 2 * 3 * t.channels * t.resolution**2)
    photographs = _pixels(who.train, replace(who, size=c.upsampler.view)) / GIB
    stage.gpu, stage.host = stage.gpu + photographs, stage.host + photographs
    if photographs > 1:
        stage.notes.append(f"{photographs:,.0f} GiB are photographs; without --captures patches are compared with fits")
    return stage


def refiner(run: Run, rates: Rates) -> Stage:
    """E20; photographs are in memory, what is rendered of them on the device."""
    c, who = run.config.refiner, run.plan.refiner
    stage = Stage("refiner", f"{c.train.steps:,} steps of {c.train.batch}")
    rate = rates.read(stage, f"bench_refiner_training_{run.config.name}")
    _train(stage, run, c.train, rate, _imagined(lambda: Refiner(c)))
    views = who.train * who.views
    stage.host += views * 4 * (LARGE * c.view) ** 2 / GIB
    rendered = views * c.view**2 * (4 * len(c.resolutions) + 4 + 4 + 2 * 2) / GIB  # also upsampled; neighbours; depths
    stage.gpu += rendered
    stage.notes.append(f"memory: photographs in every process, {rendered:,.0f} GiB of renders on every GPU")
    return stage


def _train(stage: Stage, run: Run, train: TrainConfig, rate: dict | None, network: nn.Module | None = None) -> None:
    """Time at a rate (`samples_per_second`; `activations`: bytes each), weights in memory and on the disk."""
    share, over = divmod(train.batch, run.ranks * train.accumulate)
    if over:
        stage.too_much.append(f"a batch of {train.batch} does not divide among {run.ranks} GPUs")
    if rate:
        stage.takes(train.steps * train.batch / rate["samples_per_second"], run.ranks)
        if run.ranks > 1:
            stage.notes.append("as if GPUs never waited for each other")
    if network is not None:
        parameters = sum(p.numel() for p in network.parameters())
        stage.disk += KEPT * parameters / GIB
        stage.gpu = (stage.gpu or 0) + STEPPED * parameters / GIB
        if rate and "activations" in rate:
            stage.at_least = False
            stage.gpu += share * rate["activations"] / GIB
        else:
            stage.notes.append("memory is without activations, which were not measured")


def _hold(stage: Stage, train: TrainConfig, planes: float) -> None:
    """Planes, which are kept on the device if they are within the cache."""
    if planes <= train.cache * GIB:
        stage.gpu += planes / GIB
        stage.host += planes / GIB
    else:
        stage.notes.append(f"{planes / GIB:,.0f} GiB of planes are streamed")


def _training_flops(network: UNet) -> float:
    """Of a sample: forward once and backward twice that, and forward again where activations are not kept."""
    return forward_flops(network) * (4 if network.config.checkpointing else 3)


def _imagined(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with shapes and no numbers."""
    with FakeTensorMode():
        return build()


def as_json(stages: list[Stage]) -> dict:
    """Stages by name, and their sum as far as it is known."""
    known = [s for s in stages if s.gpu_hours is not None]
    return {
        "stages": {s.name: {k: v for k, v in asdict(s).items() if k != "name"} for s in stages},
        "disk": sum(s.disk for s in stages),
        "gpu_hours": sum(s.gpu_hours for s in known),
        "hours": sum(s.hours for s in known),
        "missing": [s.name for s in stages if s.gpu_hours is None],
        "does_not_fit": [s.name for s in stages if s.too_much],
    }
