"""What things cost: rays and samples a second, seconds to a quality, memory; the fast path against the plain one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from minirodin import triplane
from minirodin.avatar import Avatar, to_rgb
from minirodin.benchmark_data import peak_host_memory
from minirodin.cameras import Capture, find_captures, load_capture, orbit_cameras
from minirodin.config import Config
from minirodin.decoder import TriplaneDecoder
from minirodin.fitting import Fitter
from minirodin.metrics import psnr
from minirodin.objective import fitting_loss
from minirodin.observations import Observations
from minirodin.progress import progress
from minirodin.render import render_views
from minirodin.shards import SharedDecoder

TARGETS = (25.0, 28.0, 30.0)  # dB
PROMPT = "a young woman with long red hair and round glasses"


@contextmanager
def plain_path() -> Iterator[None]:
    """Within it, look-ups run in plain PyTorch instead of the Triton kernels."""
    triplane.USE_KERNELS = False
    try:
        yield
    finally:
        triplane.USE_KERNELS = True


class _Clock:
    """Device seconds, not counting what happens while it is stopped."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, 0.0

    def start(self) -> None:
        self._wait()
        self._since = time.perf_counter()

    def stop(self) -> float:
        self._wait()
        self.seconds += time.perf_counter() - self._since
        return self.seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def bench_fit(
    data: Path, config: Config, decoder: Path | None = None, plain_steps: int = 30, show: bool = True
) -> dict:
    """Fit a group of subjects; report rates, seconds to 25, 28 and 30 dB of held-out PSNR, and peak memory.

    With a decoder this is stage two, what every subject after the first few hundred costs. Compilation is reported
    apart: it is paid once a process. The plain path (no Triton, no compilation) is timed on the same group in the same
    process, for `plain_steps` steps at the same stage of the fit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    captures = [load_capture(f) for f in find_captures(data)[: config.fit.group]]
    shared = SharedDecoder.load(decoder) if decoder else None
    clock = _Clock(device)
    clock.start()
    observations = Observations(captures, config.render.grid, device)
    setup = clock.stop()

    def make() -> Fitter:
        frozen = shared.decoder if shared else TriplaneDecoder(config.triplane.channels, config.decoder)
        start = shared.mean_planes if shared else None
        return Fitter([c.name for c in captures], observations, config, frozen.to(device), shared is None, start)

    fitter = make()
    clock.start()
    for _ in range(2):
        fitter.advance()
    compilation = clock.stop() - setup
    _reset_memory(device)
    fitter = replace_loss(make(), fitter.loss)
    clock = _Clock(device)
    reached, every = {}, max(1, fitter.total_steps // 20)
    with progress(total=fitter.total_steps, desc="bench fit", unit="step", enabled=show) as bar:
        while fitter.step < fitter.total_steps:
            clock.start()
            for _ in range(every):
                fitter.advance()
            seconds = clock.stop()
            bar.update(every)
            value = _held_out_psnr(fitter, captures, config)
            bar.set_postfix(psnr=f"{value:.2f}")
            reached |= {target: seconds for target in TARGETS if value >= target and target not in reached}
    fast = _rates(clock.seconds / fitter.step, len(captures), config) | {"peak_memory_gb": _peak_memory(device)}

    plain = replace_loss(make(), fitting_loss)
    plain.load_state(fitter.state())
    _reset_memory(device)
    with plain_path():
        plain.advance()
        clock = _Clock(device)
        clock.start()
        for _ in range(plain_steps):
            plain.advance()
        seconds = clock.stop() / plain_steps
    return {
        "subjects": len(captures),
        "image_size": captures[0].cameras.width,
        "steps": fitter.step,
        "setup_seconds_per_subject": setup / len(captures),
        "compilation_seconds": compilation,
        "seconds_per_subject": fast["seconds_per_step"] * fitter.step / len(captures),
        "held_out_psnr": value,
        "seconds_to_psnr": {f"{target:g}": reached.get(target) for target in TARGETS},
        "fast": fast,
        "plain": _rates(seconds, len(captures), config) | {"peak_memory_gb": _peak_memory(device)},
    }


def replace_loss(fitter: Fitter, loss) -> Fitter:
    """The same fitter with another (compiled or plain) form of the loss."""
    fitter.loss = loss
    return fitter


def _rates(seconds: float, subjects: int, config: Config) -> dict[str, float]:
    rays = subjects * config.fit.rays / seconds
    return {
        "seconds_per_step": seconds,
        "rays_per_second": rays,
        "samples_per_second": rays * config.render.samples,
    }


def _held_out_psnr(fitter: Fitter, captures: list[Capture], config: Config, subjects: int = 8) -> float:
    """Mean over a few subjects, one held-out view each (on white), rendered without the hull."""
    values = []
    decoder = fitter.decoder.requires_grad_(False)
    for name, planes in list(fitter.planes().items())[:subjects]:
        capture = next(c for c in captures if c.name == name)
        view = capture.held_out()[1][:1]
        picture = to_rgb(Avatar(planes, decoder, config).views(capture.cameras[view]))
        truth = to_rgb(torch.from_numpy(capture.images[view]).to(planes.device).float() / 255)
        values.append(float(psnr(picture, truth)))
    decoder.requires_grad_(fitter.decoder_optimiser is not None)
    return sum(values) / len(values)


def bench_render(avatar: Path, size: int = 256, views: int = 64) -> dict:
    """Views a second of one avatar around a full turn, fast and plain."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subject = Avatar.load(avatar).to(device)
    views = views if device.type == "cuda" else 4
    cameras = orbit_cameras([360 * i / views for i in range(views)], 10, size)
    settings = subject.config.render
    occupancy = subject.occupancy()
    results = {"size": size, "views": views, "samples_per_ray": settings.view_samples}

    def measure() -> dict[str, float]:
        render_views(subject.planes, subject.decoder, cameras[[0, 1]], occupancy, settings.bins, settings.view_samples)
        _reset_memory(device)
        clock = _Clock(device)
        clock.start()
        render_views(subject.planes, subject.decoder, cameras, occupancy, settings.bins, settings.view_samples)
        rate = views / clock.stop()
        return {"views_per_second": rate, "rays_per_second": rate * size**2, "peak_memory_gb": _peak_memory(device)}

    results["fast"] = measure()
    with plain_path():
        results["plain"] = measure()
    return results


def bench_pipeline(folder: Path, prompt: str = PROMPT, size: int = 1024, repeats: int = 3) -> dict:
    """From a text to a view of `size`² by the models in a folder: median seconds of each part, and peak memory.

    The first of `repeats` + 1 avatars, which warms up, counts on a GPU for memory alone; on a CPU there is one.
    """
    from minirodin.pipeline import RodinPipeline

    start = time.perf_counter()
    pipe = RodinPipeline.from_pretrained(folder)
    device, loading = pipe.base.device, time.perf_counter() - start
    _reset_memory(device)
    clocks = []
    for seed in range(repeats + 1 if device.type == "cuda" else 1):
        made, seen = _Clock(device), _Clock(device)
        made.start()
        avatar = pipe(prompt=prompt, seed=seed)
        made.stop()
        seen.start()
        avatar.render(size=size)
        seen.stop()
        clocks.append((made.seconds, seen.seconds))
    kept = sorted(clocks[1:] or clocks, key=sum)
    making, view = kept[len(kept) // 2]
    gpu = _peak_memory(device)
    return {
        "prompt": prompt,
        "size": size,
        "parts": ["base", *(name for name in ("encoder", "prior", "upsampler", "refiner") if getattr(pipe, name))],
        "seconds_to_load": loading,
        "seconds_an_avatar": making,
        "seconds_a_view": view,
        "seconds": making + view,
        "peak_memory_gb": gpu or peak_host_memory() / 2**10,
        "memory_of": "GPU" if gpu else "process",
    }


def _reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_memory(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
