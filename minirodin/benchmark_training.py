"""How fast the networks beside the two diffusion models of planes are trained: encoder, latent model, refiner."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minirodin.avatars.prompts import all_kinds_of_people
from minirodin.cameras import orbit_cameras
from minirodin.config import Config, TrainConfig
from minirodin.decoder import TriplaneDecoder
from minirodin.encoder_training import Lessons, build_tokenizer, encoder_losses
from minirodin.latent import build_towers
from minirodin.latent_diffusion import LatentModel, LatentNetwork
from minirodin.latents import VERSIONS
from minirodin.perceptual import PerceptualDistance
from minirodin.portraits import Portraits
from minirodin.refiner import LARGE, Refiner
from minirodin.refiner_data import Pairs, Photographs
from minirodin.refiner_training import refiner_losses
from minirodin.shards import FittedPlanes, SharedDecoder
from minirodin.training import Trainer
from minirodin.triplane import plane_statistics, resize_planes

PEOPLE, VIEWS = 16, 4  # to draw batches from; how many there are costs memory, not time
PARTS = 4  # of the steps; the first, which compiles and warms up, does not count


def bench_encoder(config: Config, steps: int | None = None) -> dict:
    """Training steps of the image-text encoder (E13), on noise instead of portraits."""
    c = config.encoder
    pictures = torch.randint(256, (PEOPLE, VIEWS, c.size, c.size, 4), dtype=torch.uint8)
    names = [f"{i:06d}" for i in range(PEOPLE)]
    tokenizer = build_tokenizer(c.context)
    lessons = Lessons(Portraits(names, pictures, all_kinds_of_people(PEOPLE)), tokenizer, c)
    towers = build_towers(c, tokenizer.size)
    return _rate(
        towers, lambda network, batch, _: encoder_losses(network, batch, c), lambda _: lessons.draw, c.train, steps,
        lessons.to,
    )  # fmt: skip


def bench_latent(config: Config, steps: int | None = None) -> dict:
    """Training steps of the diffusion model over latents (E15), on noise."""
    c, size = config.latent, config.encoder.dimensions
    network = LatentNetwork(c, size)
    model = LatentModel(network, config, torch.zeros(size), torch.ones(size), "")
    held = {"z": torch.randn(PEOPLE, VERSIONS, size)}

    def losses(network: nn.Module, z: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        keep = torch.rand(len(z), generator=generator, device=z.device) >= c.drop_text
        return model.diffusion.losses(network, z, generator, z, keep)

    def draw(number: int, generator: torch.Generator) -> Tensor:
        z = held["z"]
        people, versions = (torch.randint(n, (number,), generator=generator, device=z.device) for n in z.shape[:2])
        return z[people, versions]

    def to(device: torch.device) -> None:
        model.to(device)
        held["z"] = held["z"].to(device)

    return _rate(network, losses, lambda _: draw, c.train, steps, to)


def bench_refiner_training(config: Config, steps: int | None = None) -> dict:
    """Training steps of the refiner (E20), on renders of random planes and on noise instead of photographs."""
    c, t = config.refiner, config.triplane
    decoder, some = TriplaneDecoder(t.channels, config.decoder), 2
    planes = 0.1 * torch.randn(some, 3, t.channels, t.resolution, t.resolution)
    small = resize_planes(planes, t.base_resolution)
    shared = SharedDecoder(decoder, config, small[0], *plane_statistics(small))
    names, cameras = [f"{i:06d}" for i in range(some)], orbit_cameras(torch.arange(VIEWS) * 20.0, 5, c.view)
    pictures = torch.randint(256, (some, VIEWS, LARGE * c.view, LARGE * c.view, 4), dtype=torch.uint8)
    photographs = Photographs(names, [cameras] * some, pictures, torch.ones(some, 3))
    network, eyes = Refiner(c), PerceptualDistance(c.perceptual or None)

    def drawer(device: torch.device) -> Callable:
        with tempfile.TemporaryDirectory() as folder:
            shared.save(Path(folder) / "decoder.safetensors")
            people = FittedPlanes(folder)
            people.write_shard(dict(zip(names, planes, strict=True)), shared)
            return Pairs(people, photographs, c, device, show_progress=False).draw

    found = _rate(
        network, lambda network, batch, _: refiner_losses(network, batch, c, eyes), drawer, c.train, steps, eyes.to
    )
    return {**found, "perceptual": eyes.name}


def _rate(
    network: nn.Module,
    losses: Callable,
    drawer: Callable[[torch.device], Callable],
    train: TrainConfig,
    steps: int | None,
    move: Callable[[torch.device], object],
) -> dict:
    """People a second of the project's own training loop, as it is used, in a folder that is thrown away.

    Args:
        drawer: makes what draws a batch, on a device.
        steps: in all; None: as many as take a moment.
        move: to the device, of what the losses hold.
    """
    gpu = torch.cuda.is_available()
    steps = steps or (400 if gpu else 2 * PARTS)
    batch = train.batch if gpu else min(train.batch, 16)
    never = {"preview_every": steps + 1, "checkpoint_every": steps + 1}
    train = replace(train, steps=steps, batch=batch, accumulate=1, log_every=steps // PARTS, **never)
    draw: list[Callable] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(network, losses, lambda n, g: draw[0](n, g), train, folder, {"kind": "bench"})
        move(trainer.device)
        draw.append(drawer(trainer.device))
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.run(show_progress=False)
    first, last = trainer.rows[0], trainer.rows[-1]
    rate = (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])
    return {
        "batch": batch,
        "parameters": sum(p.numel() for p in network.parameters()),
        "training_steps_per_second": rate,
        "samples_per_second": rate * batch,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
    }
