"""How good fitted planes are: held-out views of every subject at several plane sizes, and the planes' diffusability."""

import datetime
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minirodin.cameras import Capture, find_captures, load_capture
from minirodin.errors import DataError
from minirodin.metrics import image_metrics, spectral_share, wiener_eps_loss
from minirodin.perceptual import perceptual_distance
from minirodin.pipeline import Avatar, to_rgb
from minirodin.progress import progress
from minirodin.shards import FittedPlanes
from minirodin.triplane import resize_planes

BASE = 64  # the size at which the base diffusion model sees planes


def evaluate(
    avatars: str | Path,
    data: str | Path,
    resolutions: tuple[int, ...] | None = None,
    limit: int | None = None,
    device: str | None = None,
    show_progress: bool = True,
) -> dict:
    """Render every fitted subject from its held-out cameras, compare with the photographs, and average.

    Args:
        avatars: folder that `fit_subjects` wrote.
        data: the captures that were fitted; their held-out views were never trained on (`Capture.held_out`).
        resolutions: plane sizes to render at (E5c), default those fitted; the images keep the size of the capture.
        limit: only the first so many subjects.

    Returns:
        JSON-able: `date`, `commit`, `device`, `subjects`, `views`, `image_size`, `perceptual` (the network's name),
        `mean` (size → metric → value), `spectral_share` and `wiener_eps_loss` of the planes at 64², and `per_subject`
        (name → size → metric → value).

    Raises:
        DataError: `data` and `avatars` have no subject in common.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    fitted = FittedPlanes(avatars)
    shared = fitted.decoder
    resolutions = resolutions or shared.config.fit.resolutions
    folders = [folder for folder in find_captures(data) if folder.resolve().name in fitted][:limit]
    if not folders:
        raise DataError(f"{avatars} and {data} have no subject in common: give the captures that were fitted")
    network = perceptual_distance(device)
    per_subject, planes, views = {}, [], 0
    for folder in progress(folders, desc="evaluating", unit="subject", enabled=show_progress):
        capture = load_capture(folder)
        avatar = Avatar(fitted.planes(capture.name), shared.decoder, shared.config).to(device)
        planes.append(resize_planes(avatar.planes.cpu(), BASE))
        per_subject[capture.name] = {str(r): _held_out_metrics(avatar, capture, r, network) for r in resolutions}
        views += len(capture.held_out()[1])
    names = next(iter(per_subject.values()))[str(resolutions[0])]
    mean = {
        str(r): {name: float(np.mean([m[str(r)][name] for m in per_subject.values()])) for name in names}
        for r in resolutions
    }
    everything = torch.stack(planes)
    return {
        **provenance(),
        "subjects": len(per_subject),
        "views": views,
        "image_size": capture.cameras.width,
        "perceptual": network.name,
        "mean": mean,
        "spectral_share": spectral_share(everything, BASE),
        "wiener_eps_loss": wiener_eps_loss(everything, BASE),
        "per_subject": per_subject,
    }


def _held_out_metrics(avatar: Avatar, capture: Capture, resolution: int, network) -> dict[str, float]:
    test = capture.held_out()[1]
    background = torch.tensor((1.0, 1.0, 1.0) if capture.has_alpha else capture.background, device=avatar.planes.device)
    truth = torch.from_numpy(capture.images[test]).to(avatar.planes.device).float() / 255  # (V, H, W, 4)
    views = avatar.views(capture.cameras[test], resolution)
    pair = (_channels_first(to_rgb(images, background)) for images in (views, truth))
    return {name: float(values.mean()) for name, values in image_metrics(*pair, network).items()}


def _channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).clamp(0, 1)


def provenance() -> dict[str, str]:
    """What every file in results/ says of itself: the day, the commit (+ when the tree was changed) and the device."""
    folder = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        commit = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        commit = os.environ.get("MINIRODIN_COMMIT", "unknown")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"date": datetime.date.today().isoformat(), "commit": commit, "device": device}


def write_json(values: dict, path: str | Path) -> Path:
    """Write results as JSON, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        scratch.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path
