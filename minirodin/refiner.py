"""The convolutional refiner (E20): a rendered view → one of twice or four times its side, with detail it lacks.

x̂ = R(enlarge(x) + r(x)): clean interpolation, and a residual that a fully convolutional network adds to its colours.
Nothing is computed by position, so views may have any size; the silhouette stays that of the volume.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirodin.cameras import Cameras
from minirodin.config import Config, RefinerConfig, preset
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.precision import inference
from minirodin.shards import config_from, load_weights, read_tensors

KIND = "refiner"
SCALES = (2, 4)
LARGE = SCALES[-1]
EMPTY = 1e-4  # alpha below which there is no colour to be told
MAX_RESULT = 1 << 28  # pixels of one refined picture, 1 GB as bytes


class ResidualBlock(nn.Module):
    """x + conv(SiLU(conv(x))), C → C channels, 3×3."""

    def __init__(self, channels: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(x)))


class Refiner(nn.Module):
    """A trunk at the side of the view, then two stages that each double it; what they add starts as nothing.

    Colours are multiplied by their alpha on the way in and out. These can be interpolated without dark rims, and as the
    residual r is multiplied by alpha too, a refined view on any background b is up(c α) + (1 − up(α)) b + up(α) r:
    where there is nobody nothing is added, and at the silhouette as much as there is of the person. The network itself
    sees α (c − ½), the view on mid grey less that grey, which is 0 outside the person as it is outside the picture.

    Example:
        >>> refiner = Refiner.load("runs/refiner")
        >>> large = refine(refiner, avatar.render(size=256)[None], scale=4)  # (1, 1024, 1024, 4)
    """

    def __init__(self, config: RefinerConfig):
        super().__init__()
        check_shape(config)
        self.config = config
        self.dtype: torch.dtype | None = None  # to compute in; None: as `precision.fast_dtype`
        channels, blocks = config.channels, config.blocks
        self.head = nn.Conv2d(4, channels[0], 3, padding=1)
        self.trunk = nn.Sequential(*(ResidualBlock(channels[0]) for _ in range(blocks[0])))
        self.grow, self.stages, self.tails = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i in (1, 2):
            self.grow.append(nn.Conv2d(channels[i - 1], 4 * channels[i], 3, padding=1))
            with torch.no_grad():  # the four pixels that one becomes begin alike, or it takes long to lose their grid
                for p in self.grow[-1].parameters():
                    p.copy_(p[::4].repeat_interleave(4, dim=0))
            self.stages.append(nn.Sequential(*(ResidualBlock(channels[i]) for _ in range(blocks[i]))))
            self.tails.append(nn.Conv2d(channels[i], 3, 3, padding=1))
            nn.init.zeros_(self.tails[-1].weight)
            nn.init.zeros_(self.tails[-1].bias)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> "Refiner":
        """Read what `train_refiner` left in a folder; raises `CheckpointError` in one line."""
        path = Path(folder) / "model.safetensors"
        tensors, metadata = read_tensors(path, KIND)
        config: Config = config_from(metadata, path)
        weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        try:
            model = load_weights(cls(config.refiner), weights, path, "network")
        except ConfigError as error:
            raise CheckpointError(f"{path} carries no usable configuration ({error})") from None
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return model.to(device, memory_format=torch.channels_last)

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of its file, as `load` reads them."""
        config = replace(preset("small"), refiner=self.config)
        tensors = {f"network.{k}": v for k, v in self.state_dict().items()}
        return tensors, {"kind": KIND, "config": json.dumps(config.to_dict())}

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def reach(self) -> int:
        """Pixels of the view, each way, that what is seen at one depends on."""
        a, b, c = self.config.blocks
        own = 2 + 2 * a, 1.5 + 2 * b, 1 + 2 * c  # convolutions at 1, 2 and 4 times the side, and interpolations
        return int(own[0] + own[1] / 2 + own[2] / 4) + 3

    def forward(self, images: Tensor, scale: int = 4) -> list[Tensor]:
        """Views (B, 4, H, W) as `premultiplied` gives them → the same at twice and, for 4, at four times the side."""
        x = self.head(torch.cat([images[:, :3] - images[:, 3:] / 2, images[:, 3:]], dim=1))
        x, made, residual = self.trunk(x), [], None
        for i in range(SCALES.index(scale) + 1):
            x = self.stages[i](F.pixel_shuffle(self.grow[i](x), 2))
            added = self.tails[i](x).float()
            residual = added if residual is None else added + F.interpolate(residual, scale_factor=2.0, mode="bilinear")
            clean = enlarge(images, SCALES[i])
            made.append(torch.cat([clean[:, :3] + clean[:, 3:] * residual, clean[:, 3:]], dim=1))
        return made


def enlarge(images: Tensor, scale: int) -> Tensor:
    """Clean interpolation, bicubic, of views (B, 4, H, W) with colours multiplied by alpha, which stays in [0, 1].

    Beside a silhouette alpha overshoots, and colours times alpha with it: cut off together, they leave no bright rim.
    """
    large = F.interpolate(images.float(), scale_factor=float(scale), mode="bicubic", align_corners=False)
    overshot, alpha = large[:, 3:], large[:, 3:].clamp(0, 1)
    rgb = large[:, :3] * (alpha / overshot.clamp_min(EMPTY))
    return torch.cat([torch.minimum(rgb.clamp_min(0), alpha), alpha], dim=1)  # a colour is at most 1


def premultiplied(images: Tensor) -> Tensor:
    """Pictures (B, H, W, 4), RGBA with straight alpha → (B, 4, H, W) with colours multiplied by alpha."""
    rgba = images.permute(0, 3, 1, 2)
    return torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)


def straight(images: Tensor) -> Tensor:
    """What `premultiplied` did, undone, with colours in [0, 1]; 0 where there is nothing."""
    rgb, alpha = images[:, :3], images[:, 3:]
    rgb = torch.where(alpha > EMPTY, rgb / alpha.clamp_min(EMPTY), 0).clamp(0, 1)
    return torch.cat([rgb, alpha], dim=1).permute(0, 2, 3, 1)


@torch.no_grad()
def refine(model: Refiner | None, images: Tensor, scale: int = 4, tile: int = 256) -> Tensor:
    """Pictures with detail (E20), one after another and tile by tile, so that large ones need little memory.

    Tiles overlap by as much as the network can see, which makes them equal to the whole.

    Args:
        model: None: the clean interpolation alone, with which refined pictures are compared.
        images: (V, H, W, 4), float RGBA in [0, 1] with straight alpha, or the same as bytes.
        scale: 2 or 4.
        tile: pixels of a view, each way, that are refined at a time.

    Returns:
        (V, scale · H, scale · W, 4) of the same type, where `images` are.

    Raises:
        ConfigError: another scale, or no usable tile. DataError: pictures of another shape, or a result beyond 2²⁸
            pixels.
    """
    if scale not in SCALES or tile < 1:
        raise ConfigError(f"scale is {scale}, tile {tile}: give a scale of 2 or 4, and tiles of at least 1 pixel")
    if images.dim() != 4 or images.shape[-1] != 4 or not images.numel():
        raise DataError(f"pictures have shape {tuple(images.shape)}: give RGBA, (V, H, W, 4)")
    (v, h, w), reach = images.shape[:3], model.reach if model else 3
    if scale**2 * h * w > MAX_RESULT:
        raise DataError(
            f"{w}×{h} pixels, {scale} times enlarged, are more than {MAX_RESULT >> 20} M: reduce them first"
        )
    device, whole = model.device if model else images.device, images.dtype == torch.uint8
    out = torch.empty(v, scale * h, scale * w, 4, dtype=images.dtype, device=images.device)
    for picture, result in zip(images, out, strict=True):
        for top in range(0, h, tile):
            for left in range(0, w, tile):
                y, x = max(0, top - reach), max(0, left - reach)
                some = picture[y : top + tile + reach, x : left + tile + reach][None].to(device)
                some = premultiplied(some / 255 if whole else some.float())
                with inference(device, model.dtype if model else torch.float32):
                    made = model(some, scale)[-1] if model else enlarge(some, scale)
                rows, columns = (slice(scale * n, scale * (n + tile)) for n in (top - y, left - x))
                made = straight(made[..., rows, columns])[0]
                place = result[scale * top :, scale * left :][: made.shape[0], : made.shape[1]]
                place.copy_((made * 255).round() if whole else made)
    return out


def finishing(model: Refiner) -> Callable[[Callable[[Cameras], Tensor], Cameras], Tensor]:
    """For `Avatar.finish`: what is asked for larger than the views that the refiner learned from is drawn at a half or
    a quarter of the size, and refined; smaller pictures stay as they are drawn."""

    def finish(draw: Callable[[Cameras], Tensor], cameras: Cameras) -> Tensor:
        (w, h), view = (cameras.width, cameras.height), model.config.view
        if max(w, h) <= view:
            return draw(cameras)
        scale = next((s for s in SCALES if max(w, h) <= s * view), LARGE)
        small = Cameras(cameras.camera_to_world, cameras.intrinsics / scale, -(-w // scale), -(-h // scale))
        return refine(model, draw(small), scale)[:, :h, :w]

    return finish


def check_shape(config: RefinerConfig) -> None:
    """Raise `ConfigError` for a network that cannot be built."""
    for name, least in (("channels", 1), ("blocks", 0)):
        values = getattr(config, name)
        if len(values) != 3 or not all(isinstance(n, int) and least <= n <= 4096 for n in values):
            raise ConfigError(f"refiner.{name} is {values}: give three whole numbers, of at least {least}")
