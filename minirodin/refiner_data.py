"""What the refiner learns from: views rendered from fitted planes, photographs of four times their side, neighbours."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minirodin.avatar import Avatar
from minirodin.cameras import Cameras, find_captures, load_capture, pixel_rays
from minirodin.config import RefinerConfig
from minirodin.consistency import surface
from minirodin.errors import DataError
from minirodin.progress import progress
from minirodin.refiner import LARGE, premultiplied
from minirodin.shards import FittedPlanes
from minirodin.upsampler import gaussian_blur

ELSEWHERE = 0.02  # how often patches have nobody in their middle, in parts of how often they have


@dataclass(frozen=True)
class Photographs:
    """Views of S people, V of each, four times the side of what is refined; on the CPU, which has room for them.

    Attributes:
        names: of the people.
        cameras: V of each of them, on the pixels of the small views.
        pictures: (S, V, 4h, 4h, 4) uint8, RGBA with straight alpha.
        background: (S, 3), RGB behind people without alpha; NaN where it is free to choose.
    """

    names: list[str]
    cameras: list[Cameras]
    pictures: Tensor
    background: Tensor

    @classmethod
    def load(cls, captures: str | Path, names: list[str], view: int, held_out: bool = False) -> "Photographs":
        """Those of these people, in their order: all views or the held-out ones, reduced where they are larger.

        Raises:
            DataError: somebody is missing, pictures are too small or not square, or views are not as many for all.
        """
        folders, size = {folder.resolve().name: folder for folder in find_captures(captures)}, LARGE * view
        if missing := [name for name in names if name not in folders]:
            raise DataError(
                f"{captures} has no capture of {missing[0]} ({len(missing)} are missing): give those fitted"
            )

        def read(name: str) -> tuple[Cameras, np.ndarray, tuple]:
            capture = load_capture(folders[name])
            width, height = capture.cameras.width, capture.cameras.height
            if width != height or width < size:
                wanted = f"squares of {LARGE} × refiner.view or more (minirodin avatars --size {size})"
                raise DataError(f"{folders[name]} has pictures of {width}×{height}: give {wanted}")
            which = capture.held_out()[1] if held_out else list(range(len(capture.images)))
            if not which:
                raise DataError(f"{folders[name]} has {len(capture.images)} views and holds none out: give 5 or more")
            images = capture.images[which]
            if width > size:  # PIL weighs colours by their alpha
                images = np.stack([Image.fromarray(i).resize((size, size), Image.Resampling.BOX) for i in images])
            behind = (math.nan,) * 3 if capture.has_alpha else capture.background
            return capture.cameras[which].resized(view, view), images, behind

        pictures, cameras, background = None, [], []
        with ThreadPoolExecutor() as pool:
            for i, (seen_by, images, behind) in enumerate(pool.map(read, names)):
                if pictures is None:
                    pictures = torch.empty(len(names), *images.shape, dtype=torch.uint8)
                if len(images) != pictures.shape[1]:
                    count = f"{len(images)} views to use, {names[0]} has {pictures.shape[1]}"
                    raise DataError(f"{folders[names[i]]} has {count}: give as many of everybody")
                pictures[i] = torch.from_numpy(images)
                cameras.append(seen_by)
                background.append(behind)
        return cls(names, cameras, pictures, torch.tensor(background))


@dataclass(frozen=True)
class Batch:
    """B patches to refine and what is to come out, then K patches of views, and K of neighbours that show the same.

    Attributes:
        views: (B + 2K, 4, P, P), as `refiner.premultiplied` gives.
        truth: (B, 4, 4P, 4P), likewise.
        behind: (B, 3), RGB to look at them over.
        where: `depth_a`, `depth_b`, `camera_a`, `camera_b` of `consistency.warp`, for the K.
        skip: rows and columns to leave out before a perceptual network looks: patches begin at pixels of the view, and
            if its grid always met that of the refined pixels alike, it would be pleased by stripes.
    """

    views: Tensor
    truth: Tensor
    behind: Tensor
    where: tuple[Tensor, Tensor, Cameras, Cameras]
    skip: tuple[int, int]


class Pairs:
    """Photographs, and what volume rendering shows of the same views and of neighbours, kept as bytes on the device.

    Args:
        people: with the planes of those on the photographs.
        config: says at which sizes planes are rendered, and how far away the neighbours are.
        upsampled: the same people's planes as the upsampler makes them of small ones: what it invents is to be seen
            through.

    Attributes:
        pictures: (K, S, V, h, h, 4) uint8, RGBA with straight alpha, of the planes at each size, and upsampled.
        neighbours: (S, V, h, h, 4), of the first size.
        depth: (2, S, V, h, h) float16 of views and neighbours, as `consistency.surface` gives.
        matrix: (2, S, V, 4, 4) of both; `intrinsics`: (S, V, 4).
    """

    def __init__(
        self,
        people: FittedPlanes,
        photographs: Photographs,
        config: RefinerConfig,
        device: torch.device,
        show_progress: bool = True,
        upsampled: FittedPlanes | None = None,
    ):
        self.photographs, self.config, self.device, shared = photographs, config, device, people.decoder
        pictures, depth, neighbours, matrices = [], [], [], []
        somebody = list(zip(photographs.names, photographs.cameras, strict=True))
        for name, cameras in progress(somebody, desc="rendering", unit="person", enabled=show_progress):
            avatar = Avatar(people.planes(name), shared.decoder, shared.config).to(device)
            beside = turned(cameras, config.turn)
            views = [avatar.views(cameras, size, depth=True) for size in config.resolutions]  # K of (V, h, h, 5)
            if upsampled is not None:
                again = Avatar(upsampled.planes(name), shared.decoder, shared.config).to(device)
                views.append(again.views(cameras, depth=True))
            near = avatar.views(beside, config.resolutions[0], depth=True)
            pictures.append(torch.stack([to_bytes(v[..., :4]) for v in views]))
            neighbours.append(to_bytes(near[..., :4]))
            depth.append(torch.stack([surface(views[0]), surface(near)]).half())
            matrices.append(torch.stack([cameras.camera_to_world, beside.camera_to_world]).float())
        self.pictures, self.neighbours = torch.stack(pictures, dim=1), torch.stack(neighbours)
        self.depth, self.matrix = torch.stack(depth, dim=1), torch.stack(matrices, dim=1).to(device)
        self.intrinsics = torch.stack([c.intrinsics for c in photographs.cameras]).float().to(device)

    def draw(self, number: int, generator: torch.Generator) -> Batch:
        """`number` patches, spoiled, of planes of any of the kinds, and `config.pairs` pairs as they are."""
        c, size = self.config, self.config.patch
        shape, count = self.pictures.shape[:3], number + self.config.pairs
        kinds, people, views = (torch.randint(n, (count,), generator=generator, device=self.device) for n in shape)
        alpha = self.pictures[0, people, views, ..., 3]  # (B + K, h, h)
        corner = corners(alpha, size, generator)
        seen = cut(self.pictures, (kinds[:number], people[:number], views[:number]), corner[:number], size)
        seen = degrade(premultiplied(seen.float() / 255), c, generator)
        places = torch.stack([people[:number], views[:number], *(LARGE * corner[:number]).T], dim=1).tolist()
        n, large = LARGE * size, self.photographs.pictures
        truth = torch.stack([large[s, v, y : y + n, x : x + n] for s, v, x, y in places]).to(self.device)
        behind = self.photographs.background.to(self.device)[people[:number]]
        free = torch.rand(behind.shape, generator=generator, device=self.device)

        of, corner_a = (people[number:], views[number:]), corner[number:]
        corner_b = self._opposite(of, corner_a)
        pair = torch.cat([cut(self.pictures[0], of, corner_a, size), cut(self.neighbours, of, corner_b, size)])
        sides = list(enumerate((corner_a, corner_b)))
        depth = (cut(self.depth[i], of, corner, size).float() for i, corner in sides)
        cameras = (self._cameras(i, of, corner) for i, corner in sides)
        return Batch(
            views=torch.cat([seen, premultiplied(pair.float() / 255)]),
            truth=premultiplied(truth.float() / 255),
            behind=torch.where(behind.isnan(), free, behind),
            where=(*depth, *cameras),
            skip=tuple(torch.randint(2 * LARGE, (2,), generator=generator, device=self.device).tolist()),
        )

    def _opposite(self, of: tuple[Tensor, Tensor], corner: Tensor) -> Tensor:
        """First pixels (K, 2) of the patches of neighbours that show what these patches of views have in the middle."""
        half, limit = self.config.patch // 2, self.pictures.shape[3] - self.config.patch
        x, y = (corner + half).T
        origins, directions = pixel_rays(self.matrix[0][of], self.intrinsics[of], x, y)
        distance = self.depth[0][(*of, y, x)].float()
        distance = torch.where(distance.isnan(), origins.norm(dim=-1), distance)  # nobody there: as far as the middle
        matrix = self.matrix[1][of]
        local = torch.einsum(
            "kji,kj->ki", matrix[:, :3, :3], origins + distance[:, None] * directions - matrix[:, :3, 3]
        )
        fx, fy, cx, cy = self.intrinsics[of].unbind(-1)
        place = torch.stack([cx - fx * local[:, 0] / local[:, 2], cy + fy * local[:, 1] / local[:, 2]], dim=1)
        return (place.floor().long() - half).clamp(0, limit)

    def _cameras(self, side: int, of: tuple[Tensor, Tensor], corner: Tensor) -> Cameras:
        """Of these patches once they are refined."""
        shift = torch.cat([torch.zeros_like(corner), corner], dim=1)  # of the principal points
        n = LARGE * self.config.patch
        return Cameras(self.matrix[side][of], LARGE * (self.intrinsics[of] - shift), n, n)


def turned(cameras: Cameras, degrees: float) -> Cameras:
    """The cameras moved about the vertical axis, to either side by turns."""
    angle = math.radians(degrees) * (1 - 2 * (torch.arange(len(cameras), dtype=torch.float64) % 2))
    turn = torch.eye(4, dtype=torch.float64).repeat(len(cameras), 1, 1)
    turn[:, 0, 0] = turn[:, 2, 2] = angle.cos()
    turn[:, 0, 2], turn[:, 2, 0] = angle.sin(), -angle.sin()
    return Cameras(turn @ cameras.camera_to_world, cameras.intrinsics, cameras.width, cameras.height)


def corners(alpha: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Column and row (B, 2) of the first pixel of a patch of each picture, its middle most often on somebody.

    Args:
        alpha: (B, h, h) uint8.
    """
    n, half = alpha.shape[-1] - size + 1, size // 2
    weight = (alpha[:, half : half + n, half : half + n] > 0) + ELSEWHERE
    place = torch.multinomial(weight.flatten(1), 1, generator=generator)[:, 0]
    return torch.stack([place % n, place // n], dim=1)


def cut(maps: Tensor, which: tuple[Tensor, ...], corner: Tensor, size: int) -> Tensor:
    """Squares of B of many maps (..., h, w, *) with these first indices and first pixels (B, 2): (B, size, size, *)."""
    steps = torch.arange(size, device=corner.device)
    y, x = corner[:, 1, None, None] + steps[:, None], corner[:, 0, None, None] + steps
    return maps[(*(i[:, None, None] for i in which), y, x)]


def degrade(views: Tensor, config: RefinerConfig, generator: torch.Generator) -> Tensor:
    """Views (B, 4, P, P) as those of generated planes may be, a draw each: less sharp, noisier; colours times alpha."""

    def draw(bound: float) -> Tensor:
        return bound * torch.rand(len(views), generator=generator, device=views.device)

    views = gaussian_blur(views[:, None], draw(config.blur))[:, 0]
    rgb, alpha = views[:, :3], views[:, 3:]
    noise = draw(config.noise).view(-1, 1, 1, 1) * torch.randn(rgb.shape, generator=generator, device=views.device)
    return torch.cat([torch.minimum((rgb + alpha * noise).clamp_min(0), alpha), alpha], dim=1)


def to_bytes(pictures: Tensor) -> Tensor:
    return (pictures * 255).round().byte()
