"""How good fitted planes are on held-out views, how easily they are diffused, and how good generated people are."""

import datetime
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minirodin.avatar import Avatar, to_rgb
from minirodin.cameras import Capture, find_captures, load_capture, orbit_cameras
from minirodin.errors import DataError
from minirodin.generation_metrics import (
    PlaneDisagreement,
    frechet_distance,
    free_space_density,
    memorisation,
    precision_recall,
)
from minirodin.metrics import image_metrics, spectral_share, wiener_eps_loss
from minirodin.perceptual import FeatureNetwork, feature_network, perceptual_distance
from minirodin.progress import progress
from minirodin.shards import FittedPlanes, check_one_decoder
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
        if not capture.held_out()[1]:
            raise DataError(f"{folder} has {len(capture.images)} views and holds none out: give captures of 5 or more")
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


AZIMUTHS, ELEVATION, PICTURE = (0.0, 40.0, 180.0, 290.0), 8.0, 224  # how every member of a set is looked at


def compare(
    samples: str | Path | list[str | Path],
    real: str | Path,
    train: str | Path,
    device: str | None = None,
    show_progress: bool = True,
    picture: int = PICTURE,
) -> dict:
    """How good sets of generated people are, each number beside that of real people they were not made from.

    Everybody is rendered from the same four views at the plane size of the samples. Distances are between features of
    these renders, so that nothing is asked of the decoder that fitted planes do not show.

    Args:
        samples: folder, or folders, of generated planes (`base.sample_people`).
        real: folder of fitted people that the model did not see.
        train: folder of those that it learned from.
        picture: pixels a side of the renders; the network sees them at its own size.

    Returns:
        JSON-able: `network`, and for `real` and each of `samples` (by the folder's name) the Fréchet distance to the
        training set (at equal numbers of people), precision, recall and coverage of it, `memorisation` (median and
        least), `floating`, `wall` (`generation_metrics.free_space_density`) and `disagreement` of the planes.

    Raises:
        DataError: a set is too small to be measured.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    samples = [FittedPlanes(folder) for folder in (samples if isinstance(samples, list) else [samples])]
    real, train = FittedPlanes(real), FittedPlanes(train)
    shared = train.decoder
    check_one_decoder(*samples, real, train)
    count = min(len(people) for people in (*samples, real))
    if count < 4 or len(train) < count:
        given = ", ".join(f"{len(people)} in {people.folder}" for people in (*samples, real, train))
        raise DataError(f"people to compare: {given}; give at least 4 of each, and no fewer to train than to compare")
    resolution = samples[0].planes(samples[0].names[0]).shape[-1]
    network = feature_network(device)

    def look(people: FittedPlanes, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Planes (N, 3, C, R, R) and features (N, V, D)."""
        planes = torch.stack([resize_planes(people.planes(name), resolution) for name in people.names[:count]])
        seen = progress(planes, desc=f"looking at {people.folder.name}", unit="person", enabled=show_progress)
        avatars = (Avatar(p, shared.decoder, shared.config).to(device) for p in seen)
        return planes, torch.stack([_views(avatar, network, picture) for avatar in avatars])

    train_planes, train_features = look(train)
    agreement = PlaneDisagreement().fit(train_planes)

    def measure(people: FittedPlanes) -> dict[str, float]:
        planes, features = look(people, count)
        copied = memorisation(features.flatten(1), train_features.flatten(1))
        space = free_space_density(planes.to(device), shared.decoder.to(device))
        return {
            "frechet": frechet_distance(train_features[:count].flatten(0, 1), features.flatten(0, 1)),
            **precision_recall(train_features[:count].flatten(1), features.flatten(1)),
            "memorisation": float(copied.median()),
            "least_memorisation": float(copied.min()),
            **{key: float(value.mean()) for key, value in space.items()},
            "disagreement": agreement(planes),
        }

    sizes = {"people": count, "training_people": len(train_planes)}
    measured = {people.folder.resolve().name: measure(people) for people in samples}
    return {**provenance(), "network": network.name, **sizes, "real": measure(real), "samples": measured}


def _views(avatar: Avatar, network: FeatureNetwork, picture: int = PICTURE) -> Tensor:
    """Features (V, D) of one person's views, on white."""
    views = avatar.views(orbit_cameras(AZIMUTHS, ELEVATION, picture))
    return network(_channels_first(to_rgb(views))).cpu()


def _channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).clamp(0, 1)


def provenance() -> dict[str, str]:
    """What every file in results/ says of itself: the day, the commit (+ when the tree was changed) and the device."""
    commit = os.environ.get("MINIRODIN_COMMIT")  # where the code was copied to without its history
    if not commit:
        command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
        folder = Path(__file__).resolve().parent
        try:
            commit = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
            commit = "unknown"
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
