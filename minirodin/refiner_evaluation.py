"""What refinement brings (E20) beside clean interpolation and rendering at full size, how steady it is, its cost."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minirodin.avatar import Avatar, to_rgb
from minirodin.benchmark_unet import seconds
from minirodin.cameras import Cameras, orbit_cameras
from minirodin.config import Config
from minirodin.consistency import surface, view_consistency
from minirodin.errors import DataError
from minirodin.evaluation import provenance
from minirodin.generation_metrics import frechet_distance
from minirodin.metrics import image_metrics
from minirodin.perceptual import FeatureNetwork, feature_network, perceptual_distance
from minirodin.progress import progress
from minirodin.refiner import LARGE, Refiner, refine
from minirodin.refiner_data import Photographs
from minirodin.shards import FittedPlanes

FRAMES, STEP, ELEVATION = 8, 5.0, 8.0  # of the turn on which neighbours are compared; degrees


def evaluate_refiner(
    model: Refiner,
    people: str | Path,
    captures: str | Path,
    generated: str | Path | None = None,
    limit: int | None = None,
    show_progress: bool = True,
) -> dict:
    """Views of people that the refiner did not learn from, at four times the side, on white.

    Everything is measured of `bicubic`, `refined`, and `rendered`: the planes rendered at full size.

    Args:
        people: folder that `fit_subjects` wrote.
        captures: their photographs, of four times `refiner.view` or more; those held out are compared.
        generated: folder of generated people, to be seen by the same cameras; as many as there are in both.
        limit: only the first so many people.

    Returns:
        JSON-able: `perceptual`, `features` (names of networks), `mean` (PSNR, SSIM, perceptual distance), `consistency`
        (`view_consistency` of a turn by STEP degrees a frame), and Fréchet distances `frechet` of the views of
        `fitted` and `generated` people to the photographs: of `whole` pictures, and of `parts`, squares of the size
        that the network takes, which alone show it any detail.

    Raises:
        DataError: nobody is there, or photographs do not fit.
    """
    device, view, fitted = model.device, model.config.view, FittedPlanes(people)
    names = fitted.names[:limit]
    if not names:
        raise DataError(f"{people} holds nobody: give the folder that `minirodin fit` wrote")
    photographs = Photographs.load(captures, names, view, held_out=True)
    eyes, features = perceptual_distance(str(device)), feature_network(str(device))
    turn = orbit_cameras((np.arange(FRAMES) - (FRAMES - 1) / 2) * STEP, ELEVATION, view)
    measured, steady, real, seen = [], [], [], {}

    for i, name in enumerate(progress(names, desc="refining", unit="person", enabled=show_progress)):
        avatar = _avatar(fitted, name, device)
        truth = on_white(photographs.pictures[i].to(device).float() / 255)
        real.append(_features(truth, features))
        depths, large = surface(avatar.views(turn, depth=True)), turn.resized(LARGE * view, LARGE * view)
        measured.append({})
        for kind, images in _kinds(model, avatar, photographs.cameras[i]):
            measured[-1][kind] = {k: float(v.mean()) for k, v in image_metrics(images, truth, eyes).items()}
            seen.setdefault(("fitted", kind), []).append(_features(images, features))
        steady.append({kind: view_consistency(images, depths, large) for kind, images in _kinds(model, avatar, turn)})
    if generated:
        others = FittedPlanes(generated)
        pairs = list(zip(others.names, photographs.cameras, strict=False))
        for name, cameras in progress(pairs, desc="refining generated", unit="person", enabled=show_progress):
            for kind, images in _kinds(model, _avatar(others, name, device), cameras):
                seen.setdefault(("generated", kind), []).append(_features(images, features))

    frechet: dict = {}
    for (group, kind), found in seen.items():
        for part in found[0]:
            pair = (torch.cat([f[part] for f in some]) for some in (real[: len(found)], found))
            frechet.setdefault(group, {}).setdefault(kind, {})[part] = frechet_distance(*pair)
    kinds, keys = list(steady[0]), list(measured[0]["refined"])
    return {
        **provenance(),
        "subjects": len(names),
        "generated": len(seen.get(("generated", "refined"), [])),
        "views": photographs.pictures.shape[1],
        "image_size": LARGE * view,
        "perceptual": eyes.name,
        "features": features.name,
        "mean": {kind: {key: float(np.mean([m[kind][key] for m in measured])) for key in keys} for kind in kinds},
        "consistency": {kind: float(np.mean([s[kind] for s in steady])) for kind in kinds},
        "frechet": frechet,
    }


def _avatar(people: FittedPlanes, name: str, device: torch.device) -> Avatar:
    shared = people.decoder
    return Avatar(people.planes(name), shared.decoder, shared.config).to(device)


def _kinds(model: Refiner, avatar: Avatar, cameras: Cameras) -> Iterator[tuple[str, Tensor]]:
    """What is compared: views (V, 3, H, W) by each way of coming to full size."""
    small = avatar.views(cameras)
    yield "bicubic", on_white(refine(None, small))
    yield "refined", on_white(refine(model, small))
    yield "rendered", on_white(avatar.views(cameras.resized(LARGE * cameras.width, LARGE * cameras.height)))


def on_white(images: Tensor) -> Tensor:
    """RGBA views (V, H, W, 4) with straight alpha → (V, 3, H, W) on white."""
    return to_rgb(images).permute(0, 3, 1, 2).clamp(0, 1)


def _features(images: Tensor, network: FeatureNetwork) -> dict[str, Tensor]:
    """Of pictures (V, 3, H, W), whole, and cut into as many squares as fit around the middle."""
    side = images.shape[-1]
    size = min(network.size, side)
    edge = (side - side // size * size) // 2
    parts = images[..., edge : side - edge, edge : side - edge].unfold(2, size, size).unfold(3, size, size)
    parts = parts.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # (V · n², 3, size, size)
    return {"whole": network(images).cpu(), "parts": network(parts).cpu()}


def bench_refiner(config: Config, repeats: int = 5, together: int = 8) -> dict:
    """Refinement by four of one view, as an avatar is looked at, and of several one after another; random weights.

    On a GPU in bfloat16, else in float32.
    """
    gpu = torch.cuda.is_available()
    model = Refiner(config.refiner).to("cuda" if gpu else "cpu", memory_format=torch.channels_last).eval()
    view, views = config.refiner.view, together if gpu else 1
    images = torch.rand(views, view, view, 4, device=model.device)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    one = seconds(lambda: refine(model, images[:1]), repeats, together=1)
    many = seconds(lambda: refine(model, images), repeats, together=1)
    return {
        "view": view,
        "scale": LARGE,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_an_image": one,
        "images_per_second": views / many,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
    }
