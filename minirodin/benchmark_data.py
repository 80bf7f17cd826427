"""What data cost: bytes of pictures, and memory and people a second where more planes are drawn than are kept."""

import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from minirodin.avatars.dataset import make_person
from minirodin.config import Config
from minirodin.decoder import TriplaneDecoder
from minirodin.shards import FittedPlanes, SharedDecoder
from minirodin.streaming import PlaneSource

TIMES = 10  # how much larger than the cache the data set is
SHARD = 64  # people in a file, as `fit` writes them on a GPU

SIZES = (64, 128, 256, 1024)  # pixels a side of the pictures that presets make


def bench_pictures(people: int = 8, views: int = 8, sizes: tuple[int, ...] = SIZES) -> dict:
    """Bytes that a view takes on a disk, of people seen from all around, by the pixels of its side."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            folders = [make_person(seed, views, size, 2, Path(scratch) / f"{size}-{seed}") for seed in range(people)]
            files = [file for folder in folders for file in folder.glob("*.png")]
            found[str(size)] = sum(file.stat().st_size for file in files) / len(files)
    return {"people": people, "views": views, "bytes_a_view": found}


def bench_streaming(config: Config, cache: float = 0.125, epochs: int = 2, folder: str | Path | None = None) -> dict:
    """Stream planes of the base model's size that take ten times the cache; a process of its own counts its memory.

    Planes are random: reading them costs the same. Another process holds all of them, to compare with.

    Args:
        cache: GiB, as `train.cache`.
        folder: where the planes are written, and left; None: a temporary one.

    Returns:
        JSON-able: `peak_mb`, the process's peak of resident memory before the first batch and after each tenth of the
        way, and `peak_mb_in_memory` likewise.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(folder or scratch)
        people = _write_people(folder, config, cache)
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
            streamed = pool.submit(_stream, folder, config, cache, epochs).result()
            held = pool.submit(_stream, folder, config, 2 * TIMES * cache, epochs).result()
        t = config.triplane
        return {
            **{"people": people, "channels": t.channels, "resolution": t.base_resolution},
            **{"batch": config.base.train.batch, "epochs": epochs, "cache_mb": cache * 2**10},
            "planes_mb": sum(path.stat().st_size for path in folder.glob("planes-*")) / 2**20,
            "peak_mb": streamed[0],
            "peak_mb_in_memory": held[0],
            "people_per_second": streamed[1],
        }


def _write_people(folder: Path, config: Config, cache: float) -> int:
    t = config.triplane
    shape = 3, t.channels, t.base_resolution, t.base_resolution
    people = round(TIMES * cache * 2**30 / (2 * torch.Size(shape).numel()))
    statistics = torch.zeros(shape), torch.zeros(t.channels), torch.ones(t.channels)
    shared = SharedDecoder(TriplaneDecoder(t.channels, config.decoder), config, *statistics)
    out = FittedPlanes(folder)
    for first in range(0, people, SHARD):
        names = [f"{i:06d}" for i in range(first, min(first + SHARD, people))]
        out.write_shard({name: torch.randn(shape).clamp(-1, 1) for name in names}, shared)
    return people


def _stream(folder: Path, config: Config, cache: float, epochs: int) -> tuple[list[float], float]:
    """Peaks of memory, in MiB, and people a second; run in a process that has done nothing before."""
    torch.set_num_threads(1)
    train = replace(config.base.train, cache=cache)
    peaks, generator = [peak_host_memory()], torch.Generator().manual_seed(0)
    people = PlaneSource(folder, config.triplane.base_resolution, train)
    batches = epochs * len(people) // train.batch
    start = time.perf_counter()
    for turn in range(batches):
        people.draw(train.batch, generator, turn)
        if 10 * (turn + 1) // batches > 10 * turn // batches:
            peaks.append(peak_host_memory())
    return peaks, batches * train.batch / (time.perf_counter() - start)


def peak_host_memory() -> float:
    """The most that this process has ever held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage tells of the process that started this one as well
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
