"""Make people: many subjects in parallel, each a capture folder that appears whole or not at all."""

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

from minirodin.avatars.attributes import Attributes, sample_attributes
from minirodin.avatars.captions import caption
from minirodin.cameras import Cameras, Capture, capture_cameras, orbit_cameras, save_capture
from minirodin.errors import ConfigError, DataError
from minirodin.locks import FolderLock
from minirodin.portraits import portrait_cameras
from minirodin.progress import progress

LAST_SEED = 2_000_000  # seeds below 1 000 000 are for training, the rest below this for validation
_renderer = None


def make_people(
    out: str | Path,
    count: int,
    views: int = 24,
    size: int = 256,
    seed: int = 0,
    workers: int | None = None,
    detail: int = 2,
    show_progress: bool = True,
    portraits: bool = False,
) -> list[Path]:
    """Render the subjects `seed` … `seed + count - 1` into folders `out/000017`, named by their seed.

    Folders that are already there are kept, so the same call resumes an interrupted run.

    Args:
        out: created when missing.
        views: images a subject, frame 0 frontal; size: pixels a side.
        workers: processes; by default one a core. Scripts that call this need `if __name__ == "__main__":`.
        detail: 1 for a coarser and quicker skin mesh, 2 for the full one.
        portraits: views from near the front only, `detail` 1: to learn from pictures, not to fit.

    Returns:
        The folders, in the order of the seeds.

    Raises:
        ConfigError: numbers out of range, or folders there that hold other views, sizes or cameras.
        DataError: `out` cannot be written to, or the disk is full. RenderError: no OpenGL.
    """
    _check(count, views, size, seed, workers)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out} cannot be made ({error.strerror}): choose another folder") from None
    if not os.access(out, os.W_OK):
        raise DataError(f"{out} is not writable: choose another folder")
    folders = [out / f"{s:06d}" for s in range(seed, seed + count)]
    detail = 1 if portraits else detail
    tasks = [(s, views, size, detail, f, portraits) for s, f in enumerate(folders, seed)]
    todo = [task for task in tasks if not _is_done(task[4], _cameras(views, size, task[0], portraits))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, len(todo))
    bar = progress(total=count, desc="people", unit="person", enabled=show_progress)
    bar.update(count - len(todo))
    if workers <= 1:
        for task in todo:
            make_person(*task)
            bar.update()
    else:
        _in_parallel(todo, workers, max(1, cores // workers), bar)
    bar.close()
    return folders


def make_person(seed: int, views: int, size: int, detail: int, folder: Path, portraits: bool = False) -> Path:
    """Build and render one subject and write its capture folder."""
    try:
        with FolderLock(folder.parent, folder.name):  # others may make other people there
            cameras = _cameras(views, size, seed, portraits)
            capture = render_person(sample_attributes(seed), cameras, folder.name, detail)
            for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a run that was killed while it wrote
                shutil.rmtree(leftover, ignore_errors=True)
            return save_capture(capture, folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}): make room or choose another folder") from None


def render_person(attributes: Attributes, cameras: Cameras, name: str = "person", detail: int = 2) -> Capture:
    """One person seen by these cameras."""
    from minirodin.avatars.person import build_person
    from minirodin.avatars.renderer import Renderer

    global _renderer  # one OpenGL context a process
    _renderer = _renderer or Renderer()
    images = _renderer.render(build_person(attributes, detail).mesh, cameras)
    return Capture(name, images, cameras, caption(attributes, attributes.seed), attributes.to_dict())


def portrait(seed: int, size: int = 512):
    """The front view of a subject, (size, size, 4) uint8."""
    return render_person(sample_attributes(seed), orbit_cameras(0, 0, size)).images[0]


def _in_parallel(todo: list, workers: int, threads: int, bar) -> None:
    # Each process gets its share of the cores, also in Mesa's software renderer; libraries read this as they load.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    # A forked process cannot use its parent's OpenGL or thread pools: fork them from one that only has the modules.
    start = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if start.get_start_method() == "forkserver":
        start.set_forkserver_preload(["minirodin.avatars.person", "minirodin.avatars.renderer", __name__])
    pool = ProcessPoolExecutor(workers, start)
    try:
        for future in as_completed([pool.submit(make_person, *task) for task in todo]):
            future.result()
            bar.update()
    except BrokenProcessPool:
        raise DataError(
            'a process died: a script that makes people needs `if __name__ == "__main__":`; if it has that, memory '
            "may be short: run again with fewer workers (finished people stay)"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _cameras(views: int, size: int, seed: int, portraits: bool) -> Cameras:
    return (portrait_cameras if portraits else capture_cameras)(views, size, seed)


def _is_done(folder: Path, cameras: Cameras) -> bool:
    path = folder / "transforms.json"
    if not path.is_file():
        return False
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        found, last = (len(meta["frames"]), meta["w"]), meta["frames"][-1]["transform_matrix"]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise DataError(f"{path} is not a capture of this program: move it away or choose another folder") from None
    wanted = len(cameras), cameras.width
    if found != wanted:
        raise ConfigError(
            f"{folder} has {found[0]} views of {found[1]} pixels, not {wanted[0]} of {wanted[1]}: choose another folder"
        )
    if last != cameras.camera_to_world[-1].tolist():
        raise ConfigError(f"{folder} is seen by other cameras (portraits, or all around): choose another folder")
    return True


def _check(count: int, views: int, size: int, seed: int, workers: int | None) -> None:
    limits = (("count", count, 1, LAST_SEED), ("views", views, 1, 10_000), ("size", size, 8, 8192))
    for name, value, low, high in (*limits, ("workers", 1 if workers is None else workers, 1, 1024)):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value}: give {low} to {high}")
    if seed < 0 or seed + count > LAST_SEED:
        raise ConfigError(f"seeds {seed} to {seed + count - 1} were asked for: they must lie in 0 to {LAST_SEED - 1}")
