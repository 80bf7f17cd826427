"""An `Avatar` is planes + decoder + config, in one file, that can be rendered from anywhere."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from torch import Tensor

from minirodin.cameras import Cameras, orbit_cameras
from minirodin.config import Config
from minirodin.decoder import TriplaneDecoder
from minirodin.errors import RenderError
from minirodin.progress import progress
from minirodin.render import Occupancy, occupancy_from_planes, render_views
from minirodin.shards import FittedPlanes, atomic_save, build_decoder, checked_planes, config_from, read_tensors
from minirodin.triplane import resize_planes


@dataclass(frozen=True)
class Origin:
    """What a generated avatar was made from: its latent (Z,), the seed of its noise, and the latent's encoder."""

    latent: Tensor
    seed: int
    encoder: str


class Avatar:
    """A person as a radiance field.

    Args:
        planes: (3, C, R, R), on the decoder's scale.
        decoder: the shared decoder that the planes were fitted to or generated for.
        config: of that decoder.
        origin: of one that `RodinPipeline` made, so that it can be edited.
        finish: draws its pictures in place of the renderer, which it is given, as `refiner.finishing` does. It is not
            part of the file: an avatar that is loaded has none, and can be given one.

    Example:
        >>> avatar = Avatar.load("fitted/000017")        # a subject of a fitted folder, or an avatar file
        >>> image = avatar.render(azimuth=30, size=256)  # (256, 256, 4), RGBA in [0, 1]
        >>> avatar.turntable("turntable.mp4")
    """

    def __init__(
        self,
        planes: Tensor,
        decoder: TriplaneDecoder,
        config: Config,
        origin: Origin | None = None,
        finish: Callable[[Callable[[Cameras], Tensor], Cameras], Tensor] | None = None,
    ):
        self.planes, self.decoder, self.config, self.origin, self.finish = planes, decoder, config, origin, finish
        self._occupancy: dict[int, Occupancy] = {}

    @classmethod
    def load(cls, path: str | Path) -> "Avatar":
        """Read an avatar file, or `FOLDER/NAME` for a subject of a fitted folder; raises `CheckpointError`."""
        path = Path(path)
        if not path.exists() and (path.parent / "decoder.safetensors").is_file():
            fitted = FittedPlanes(path.parent)
            shared = fitted.decoder
            return cls(fitted.planes(path.name), shared.decoder, shared.config)
        tensors, metadata = read_tensors(path, "avatar")
        config = config_from(metadata, path)
        planes = checked_planes(tensors.pop("planes", torch.empty(0)), config, path)
        origin = None
        if "latent" in tensors:
            origin = Origin(tensors.pop("latent"), int(metadata.get("seed", 0)), metadata.get("encoder", ""))
        weights = {key.removeprefix("decoder."): value for key, value in tensors.items()}
        return cls(planes, build_decoder(config, weights, path), config, origin)

    def save(self, path: str | Path) -> Path:
        """Write planes (float16), decoder, config and origin into one safetensors file, atomically."""
        tensors = {"planes": self.planes.half()} | {f"decoder.{k}": v for k, v in self.decoder.state_dict().items()}
        metadata = {"kind": "avatar", "config": json.dumps(self.config.to_dict())}
        if self.origin is not None:
            tensors["latent"] = self.origin.latent
            metadata |= {"seed": str(self.origin.seed), "encoder": self.origin.encoder}
        atomic_save(tensors, Path(path), metadata)
        return Path(path)

    def to(self, device: str | torch.device) -> "Avatar":
        """The same avatar on another device; itself where it is there already."""
        if self.planes.device == torch.empty(0, device=device).device:
            return self
        decoder = copy.deepcopy(self.decoder).to(device)
        return Avatar(self.planes.to(device), decoder, self.config, self.origin, self.finish)

    def views(self, cameras: Cameras, resolution: int | None = None, depth: bool = False) -> Tensor:
        """Pictures from any cameras: (V, H, W, 4) float32 RGBA in [0, 1], straight alpha.

        Args:
            resolution: render the planes at this size instead of their own (E5c).
            depth: with a fifth channel, as in `render_views`; never finished.
        """
        resolution = resolution or self.planes.shape[-1]
        planes, settings = resize_planes(self.planes, resolution), self.config.render
        quadrature = self.occupancy(resolution), settings.bins, settings.view_samples

        def draw(cameras: Cameras) -> Tensor:
            return render_views(planes, self.decoder, cameras, *quadrature, depth=depth)

        return self.finish(draw, cameras) if self.finish and not depth else draw(cameras)

    def occupancy(self, resolution: int | None = None) -> Occupancy:
        """Where the avatar is, at a plane size; computed once."""
        resolution = resolution or self.planes.shape[-1]
        if resolution not in self._occupancy:
            planes = resize_planes(self.planes, resolution)
            self._occupancy[resolution] = occupancy_from_planes(planes[None], self.decoder, self.config.render.grid)
        return self._occupancy[resolution]

    def render(
        self, azimuth: float = 0, elevation: float = 0, size: int = 256, resolution: int | None = None
    ) -> Tensor:
        """One picture, (size, size, 4) float32 RGBA in [0, 1]; angles in degrees as in `cameras.orbit_cameras`."""
        if not 1 <= size <= 4096:
            raise RenderError(f"size is {size} pixels: choose 1 … 4096")
        if not (np.isfinite(azimuth) and abs(elevation) < 90):
            raise RenderError(f"azimuth {azimuth}, elevation {elevation}: give degrees, elevation within ±89")
        return self.views(orbit_cameras(azimuth, elevation, size), resolution)[0]

    def turntable(
        self,
        path: str | Path,
        frames: int = 48,
        size: int = 256,
        elevation: float = 8,
        show_progress: bool = False,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Path:
        """A full turn as MP4 or GIF (by the file's ending), on white; raises `RenderError` for another ending.

        `finish` may change each view (1, H, W, 4), as `refiner.refine` does.
        """
        kind = Path(path).suffix.lower()
        if kind not in (".mp4", ".gif"):
            raise RenderError(f"{path} ends in {kind or 'nothing'!r}: a turntable is an .mp4 or a .gif")
        cameras = orbit_cameras(np.arange(frames) * 360 / frames, elevation, size)
        turn = progress(range(frames), desc="turntable", unit="frame", enabled=show_progress)
        views = (self.views(cameras[[i]]) for i in turn)
        views = (finish(view) if finish else view for view in views)
        rgb = torch.cat([(to_rgb(view) * 255).round().byte().cpu() for view in views]).numpy()
        settings = {"fps": 24, "macro_block_size": 2} if kind == ".mp4" else {"duration": 1000 / 24, "loop": 0}
        imageio.imwrite(path, rgb, **settings)
        return Path(path)

    def export(self, path: str | Path, resolution: int = 192) -> Path:
        """A closed mesh with vertex colours as .glb, .obj or .ply; as `export.export_mesh`, which has the errors."""
        from minirodin.export import export_mesh

        return export_mesh(self, path, resolution)

    def _repr_html_(self) -> str:
        """In a notebook: a small picture to be turned with the mouse or the arrow keys."""
        from minirodin.page import turning

        return turning(self.views(orbit_cameras(np.arange(12) * 30, 8, 128)), width="160px")


def to_rgb(images: Tensor, background: float = 1.0) -> Tensor:
    """RGBA pictures over a plain background: (..., 4) → (..., 3)."""
    return images[..., :3] * images[..., 3:] + background * (1 - images[..., 3:])
