"""How strongly to spoil the upsampler's condition (E18): until its renders look like those of the base model's planes.

The distance is Fréchet's, between features of pictures of spoiled planes and of planes that the base model made. The
magnitudes are searched one after the other, twice around, each over a few values, from no augmentation at all.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from minirodin.avatar import Avatar, to_rgb
from minirodin.config import AugmentConfig, Config
from minirodin.errors import CheckpointError, DataError
from minirodin.evaluation import AZIMUTHS, PICTURE, _views, provenance, write_json
from minirodin.generation_metrics import frechet_distance
from minirodin.limits import checked
from minirodin.perceptual import feature_network
from minirodin.plane_space import PlaneSpace, visible_metric
from minirodin.plots import contact_sheet
from minirodin.progress import progress
from minirodin.shards import FittedPlanes, check_one_decoder
from minirodin.streaming import load_planes
from minirodin.upsampler import augment

VALUES = {
    "noise": (0.0, 0.05, 0.1, 0.2, 0.4, 0.8),
    "blur": (0.0, 0.5, 1.0, 1.5, 2.0),
    "smallest": (1.0, 0.75, 0.5, 0.35),
}
SHOWN = 8


def tune_augmentation(
    samples: str | Path,
    data: str | Path,
    out: str | Path,
    limit: int = 64,
    show_progress: bool = True,
    picture: int = PICTURE,
) -> dict:
    """Search the magnitudes of `augment`, and draw what they do.

    Args:
        samples: folder of people that the base model made.
        data: folder of fitted people, whose planes are spoiled.
        out: folder for `augmentation.json` and `augmentation.png`: fitted, spoiled, and the base model's people.
        limit: people of each, as many of one as of the other.
        picture: pixels a side of the renders; the network sees them at its own size.

    Returns:
        JSON-able: `augment` (the magnitudes), `network`, `people`, `untouched` (the distance without augmentation),
        `frechet` (with it) and `tried`, every distance that was measured.

    Raises:
        DataError: fewer than 4 people on a side. CheckpointError: of different decoders.
    """
    made, fitted = FittedPlanes(samples), FittedPlanes(data)
    check_one_decoder(made, fitted)
    if (count := min(limit, len(made), len(fitted))) < 4:
        people = f"{len(made)} people in {samples}, {len(fitted)} in {data}, limit {limit}"
        raise DataError(f"{people}: give at least 4 of each")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shared = fitted.decoder
    size = shared.config.triplane.base_resolution
    low, wanted = (load_planes(folder, size, count)[0].float() for folder in (data, samples))
    space = PlaneSpace.of(low, visible_metric(low, shared.decoder, shared.config.render))
    network = feature_network(device)

    def avatars(planes: Tensor) -> list[Avatar]:
        return [Avatar(p, shared.decoder, shared.config).to(device) for p in planes]

    def look(planes: Tensor) -> Tensor:
        return torch.cat([_views(avatar, network, picture) for avatar in avatars(planes)])  # (N·V, D)

    def spoiled(magnitudes: AugmentConfig) -> Tensor:
        generator = torch.Generator().manual_seed(0)  # the same draws for all
        return space.unstandardise(augment(space.standardise(low), magnitudes, generator)[0])

    aim, tried = look(wanted), {}

    def distance(magnitudes: AugmentConfig) -> float:
        if magnitudes not in tried:
            tried[magnitudes] = frechet_distance(aim, look(spoiled(magnitudes)))
        return tried[magnitudes]

    best = AugmentConfig(smallest=1.0, blur=0.0, noise=0.0)
    untouched = distance(best)
    for name in progress([*VALUES] * 2, desc="tuning", unit="magnitude", enabled=show_progress):
        best = min((replace(best, **{name: value}) for value in VALUES[name]), key=distance)
    rows = [planes[:SHOWN] for planes in (low, spoiled(best), wanted)]
    pictures = [to_rgb(avatar.render(AZIMUTHS[0], 5)).cpu() for row in rows for avatar in avatars(row)]
    contact_sheet(pictures, min(SHOWN, count), out / "augmentation.png")
    results = {
        **provenance(),
        "augment": asdict(best),
        "network": network.name,
        "people": count,
        "untouched": untouched,
        "frechet": tried[best],
        "tried": [{**asdict(magnitudes), "frechet": value} for magnitudes, value in tried.items()],
    }
    write_json(results, out / "augmentation.json")
    return results


def read_augmentation(path: str | Path) -> AugmentConfig:
    """The magnitudes that `tune_augmentation` wrote; raises `CheckpointError` for another file."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))["augment"]
        return checked(Config.from_dict({"upsampler": {"augment": found}})).upsampler.augment
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        what = f"is not what `minirodin tune` writes ({str(error)[:200]})"
        raise CheckpointError(f"{path} {what}: make it again") from None
