"""Where E19 looks: patches of pictures, most often of the face, and the rays through their pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minirodin.cameras import Cameras, capture_cameras, pixel_rays
from minirodin.config import UpsamplerConfig
from minirodin.errors import ConfigError


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

    Highest where the patch's middle is the face's (`config.face`, seen by the camera), falling as a Gaussian of
    `config.face_radius`, but nowhere below `config.elsewhere` of that.
    """
    places = torch.arange(view - config.patch + 1, device=matrix.device) + config.patch / 2
    face = torch.tensor(config.face, device=matrix.device)
    local = torch.einsum("bji,bj->bi", matrix[:, :3, :3], face - matrix[:, :3, 3])  # it looks along −z
    depth = (-local[:, 2]).clamp_min(1e-3)
    fx, fy, cx, cy = intrinsics.unbind(-1)
    x, y = cx + fx * local[:, 0] / depth, cy - fy * local[:, 1] / depth
    radius = config.face_radius * fx / depth
    across, down = (torch.exp(-0.5 * ((places - v[:, None]) / radius[:, None]).square()) for v in (x, y))  # (B, n)
    weight = down[:, :, None] * across[:, None] + config.elsewhere
    return weight / weight.sum((1, 2), keepdim=True)


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

    Raises:
        ConfigError: a patch is larger than the pictures.
    """

    def __init__(self, cameras: Cameras | list[Cameras], config: UpsamplerConfig, pictures: Tensor | None = None):
        each = cameras if isinstance(cameras, list) else [cameras]
        self.size, self.pictures, self.config = each[0].width, pictures, config
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
        self.pictures = None if self.pictures is None else self.pictures.to(device)
        return self

    def draw(self, people: Tensor, generator: torch.Generator) -> tuple[Patches, Tensor | None]:
        """A patch of a view of each of `people` (B,), and what is on it, (B, P, P, 4) in [0, 1], where known."""
        view = torch.randint(self.matrix.shape[1], people.shape, generator=generator, device=people.device)
        of = people if len(self.matrix) > 1 else torch.zeros_like(people)
        patches = draw_patches(self.matrix[of, view], self.intrinsics[of, view], self.size, self.config, generator)
        if self.pictures is None:
            return patches, None
        x, y = patches.pixels()
        seen = self.pictures[people[:, None], view[:, None], y, x].float() / 255
        return patches, seen.unflatten(1, (patches.size, patches.size))
