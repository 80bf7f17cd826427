"""Where E19 looks: patches of pictures, most often of the face, and the rays through their pixels."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minirodin.cameras import Cameras, capture_cameras, find_captures, load_capture, pixel_rays
from minirodin.config import Config, UpsamplerConfig
from minirodin.errors import ConfigError, DataError


@dataclass(frozen=True)
class Patches:
    """Squares of B pictures, P × P pixels each.

    Attributes:
        matrix, intrinsics: (B, 4, 4) and (B, 4) of the pictures' cameras.
        corner: (B, 2) column and row of the first pixel.
        size: P.
    """

    matrix: Tensor
    intrinsics: Tensor
    corner: Tensor
    size: int

    def pixels(self) -> tuple[Tensor, Tensor]:
        """Columns and rows, row after row: (B, P²) each."""
        index = torch.arange(self.size**2, device=self.corner.device)
        return self.corner[:, :1] + index % self.size, self.corner[:, 1:] + index // self.size

    def rays(self) -> tuple[Tensor, Tensor]:
        """Origins and directions through all pixels, (B, P², 3) each."""
        x, y = self.pixels()
        shape = *x.shape, 4
        matrix = self.matrix[:, None].expand(*shape, 4)
        return pixel_rays(matrix, self.intrinsics[:, None].expand(shape), x, y)


def importance(matrix: Tensor, intrinsics: Tensor, view: int, config: UpsamplerConfig) -> Tensor:
    """How often a patch's first pixel shall fall where, (B, n, n) with n = view − patch + 1, each of sum 1.

    A Gaussian of `config.face_radius` about where the patch's middle is the face's (`config.face`, seen by the camera),
    plus `config.elsewhere` of its peak everywhere: the least is elsewhere / (1 + elsewhere) of the most.
    """
    places = torch.arange(view - config.patch + 1, device=matrix.device) + config.patch / 2
    face = torch.tensor(config.face, device=matrix.device)
    local = torch.einsum("bji,bj->bi", matrix[:, :3, :3], face - matrix[:, :3, 3])  # it looks along −z
    depth = (-local[:, 2]).clamp_min(1e-3)
    fx, fy, cx, cy = intrinsics.unbind(-1)
    x, y = cx + fx * local[:, 0] / depth, cy - fy * local[:, 1] / depth
    radius = config.face_radius * fx / depth
    across, down = (torch.exp(-0.5 * ((places - v[:, None]) / radius[:, None]).square()) for v in (x, y))  # (B, n)
    weight = down[:, :, None] * across[:, None] + max(config.elsewhere, 1e-9)  # a face out of sight leaves no Gaussian
    return weight / weight.sum((1, 2), keepdim=True)


def facing(matrix: Tensor, config: UpsamplerConfig) -> Tensor:
    """How often a picture shall be looked at, (…, V) for cameras (…, V, 4, 4), each row of sum 1.

    The cosine between where the camera is from the face and where the face is from the middle, 0 behind it, plus
    `config.elsewhere`. A face in the middle looks nowhere, and all pictures count alike.
    """
    face = torch.tensor(config.face, device=matrix.device)
    seen = torch.nn.functional.cosine_similarity(matrix[..., :3, 3] - face, face, dim=-1)
    weight = seen.clamp_min(0) + max(config.elsewhere, 1e-9)
    return weight / weight.sum(-1, keepdim=True)


def draw_patches(
    matrix: Tensor, intrinsics: Tensor, view: int, config: UpsamplerConfig, generator: torch.Generator
) -> Patches:
    """A patch of each picture, drawn by `importance`."""
    weight = importance(matrix, intrinsics, view, config)
    place = torch.multinomial(weight.flatten(1), 1, generator=generator)[:, 0]
    corner = torch.stack([place % weight.shape[2], place // weight.shape[2]], dim=1)
    return Patches(matrix, intrinsics, corner, config.patch)


class Views:
    """Cameras that look at people, and, for those who have been photographed, what they saw.

    Args:
        cameras: V of them for everybody, or one `Cameras` of V views for each of S people.
        pictures: (S, V, H, H, 4) uint8 RGBA; None: nobody has been.
        background: (S, 3), what is behind people on pictures; None: white.

    Raises:
        ConfigError: a patch is larger than the pictures.
    """

    def __init__(
        self,
        cameras: Cameras | list[Cameras],
        config: UpsamplerConfig,
        pictures: Tensor | None = None,
        background: Tensor | None = None,
    ):
        each = cameras if isinstance(cameras, list) else [cameras]
        self.size, self.pictures, self.config = each[0].width, pictures, config
        self.background = torch.ones(1, 3) if background is None else background
        if not 1 <= config.patch <= self.size:
            raise ConfigError(f"patches of {config.patch} pixels do not fit into views of {self.size}: give smaller")
        self.matrix = torch.stack([c.camera_to_world.float() for c in each])  # (S or 1, V, 4, 4)
        self.intrinsics = torch.stack([c.intrinsics.float() for c in each])

    @classmethod
    def around(cls, config: UpsamplerConfig, count: int = 256) -> "Views":
        """Cameras all around, as captures have them."""
        return cls(capture_cameras(count, config.view, seed=0), config)

    def to(self, device: torch.device) -> "Views":
        self.matrix, self.intrinsics = self.matrix.to(device), self.intrinsics.to(device)
        self.background = self.background.to(device)
        self.pictures = None if self.pictures is None else self.pictures.to(device)
        return self

    def behind(self, people: Tensor) -> Tensor:
        """The colours (B, 3) behind `people` (B,)."""
        return self.background[people % len(self.background)]  # one for all, or each their own

    def draw(self, people: Tensor, generator: torch.Generator) -> tuple[Patches, Tensor | None]:
        """A patch of a view of each of `people` (B,), and what is on it, (B, P, P, 4) in [0, 1], where known."""
        of = people if len(self.matrix) > 1 else torch.zeros_like(people)
        view = torch.multinomial(facing(self.matrix[of], self.config), 1, generator=generator)[:, 0]
        patches = draw_patches(self.matrix[of, view], self.intrinsics[of, view], self.size, self.config, generator)
        if self.pictures is None:
            return patches, None
        x, y = patches.pixels()
        seen = self.pictures[people[:, None], view[:, None], y, x].float() / 255
        return patches, seen.unflatten(1, (patches.size, patches.size))


def photographs(captures: str | Path, names: list[str], config: Config) -> Views:
    """The training views of these people, in their order, reduced to squares of `upsampler.view`.

    Raises:
        DataError: somebody is missing, pictures are not square or too small, or views are not as many for all.
    """
    folders = {folder.resolve().name: folder for folder in find_captures(captures)}
    if missing := [name for name in names if name not in folders]:
        raise DataError(f"{captures} has no capture of {missing[0]} ({len(missing)} are missing): give those fitted")
    size = config.upsampler.view

    def read(name: str) -> tuple[Cameras, Tensor, tuple]:
        capture = load_capture(folders[name])
        width, height, train = capture.cameras.width, capture.cameras.height, capture.held_out()[0]
        if width != height or width < size:
            wanted = f"squares of at least upsampler.view, {size}"
            raise DataError(f"{folders[name]} has pictures of {width}×{height}: give {wanted}")
        reduced = [Image.fromarray(image).resize((size, size), Image.Resampling.BOX) for image in capture.images[train]]
        behind = (1.0, 1.0, 1.0) if capture.has_alpha else capture.background
        pictures = torch.from_numpy(np.stack(reduced))  # PIL weighs colours by their alpha
        return capture.cameras[train].resized(size, size), pictures, behind

    with ThreadPoolExecutor() as pool:  # decoding PNG releases the interpreter
        cameras, pictures, behind = zip(*pool.map(read, names), strict=True)
    for name, one in zip(names, cameras, strict=True):
        if len(one) != len(cameras[0]):
            raise DataError(f"{folders[name]} has not as many views as {folders[names[0]]}")
    return Views(list(cameras), config.upsampler, torch.stack(pictures), torch.tensor(behind))
