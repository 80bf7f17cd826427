"""Portraits: near-frontal pictures of many synthetic people, how they are varied to train on, and pictures of anybody.

What learns to see (the image–text encoder, the attribute classifier) shall see the person, not how the picture was
made: `jitter` changes everything about a picture but who is in it, and never mirrors it, since the side of a parting is
an attribute.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from minirodin.avatars.attributes import Attributes
from minirodin.cameras import MAX_PIXELS, Cameras, find_captures, load_capture, orbit_cameras
from minirodin.errors import DataError

AZIMUTH, ELEVATION, DISTANCE = (-30.0, 30.0), (-12.0, 18.0), (0.9, 1.1)  # degrees, degrees, of the usual radius
ZOOM, ANGLE, SHIFT = (0.82, 1.2), (-10.0, 10.0), (-0.13, 0.13)  # factor, degrees, of half a picture's side
GAIN, CONTRAST, TEMPERATURE = (0.8, 1.2), (0.8, 1.2), (-0.09, 0.09)  # factors; red grows as e^T, blue shrinks
BLURS = (96, 64, 48)  # pixels a side that a picture may be reduced to: a 64² plane shows as much, or less
NOISE = 0.04  # largest standard deviation
SMALLEST = 16  # pixels a side below which a picture shows nobody


def portrait_cameras(views: int, size: int, seed: int) -> Cameras:
    """Frame 0 is exactly frontal, as in `capture_cameras`; the others lie around it, drawn from the seed.

    Azimuth within ±30°, elevation −12 … 18°, distance ±10 %; all look at the origin.
    """
    rng = np.random.default_rng([seed, 0xFACE])
    ranges = np.array([AZIMUTH, ELEVATION, DISTANCE])
    azimuth, elevation, distance = rng.uniform(*ranges.T, (views - 1, 3)).T
    cameras = orbit_cameras(np.r_[0, azimuth], np.r_[0, elevation], size)
    cameras.camera_to_world[:, :3, 3] *= torch.from_numpy(np.r_[1, distance])[:, None]
    return cameras


@dataclass(frozen=True)
class Portraits:
    """Pictures of S people, V of each, and what each person looks like.

    Attributes:
        names: S folder names.
        pictures: (S, V, H, W, 4) uint8, RGBA with straight alpha; view 0 is frontal.
        attributes: S of them.
    """

    names: list[str]
    pictures: Tensor
    attributes: list[Attributes]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def load(cls, folder: str | Path) -> "Portraits":
        """Read what `make_people(..., portraits=True)` wrote.

        Raises:
            DataError: no people there, pictures of unequal number or size, or a person without attributes.
        """

        def read(path: Path) -> tuple[np.ndarray, Attributes]:
            capture = load_capture(path)
            try:
                return capture.images, Attributes.from_dict(capture.attributes)
            except DataError as error:
                raise DataError(f"{path}: {error}; `minirodin avatars --portraits` makes such people") from None

        folders = find_captures(folder)
        with ThreadPoolExecutor() as pool:
            images, attributes = zip(*pool.map(read, folders), strict=True)
        for path, image in zip(folders, images, strict=True):
            if image.shape != images[0].shape:
                (v, h, w), (v0, h0, w0) = image.shape[:3], images[0].shape[:3]
                raise DataError(
                    f"{path} has {v} pictures of {w}×{h}, but {folders[0].name} has {v0} of {w0}×{h0}: make them equal"
                )
        return cls([path.name for path in folders], torch.from_numpy(np.stack(images)), list(attributes))


def plain(pictures: Tensor, size: int) -> Tensor:
    """Pictures as they are, on white: (B, H, W, 4) uint8 → (B, 3, size, size) float32 in [0, 1], on their device."""
    rgba = _premultiplied(pictures)
    rgba = F.interpolate(rgba, (size, size), mode="bilinear", antialias=True)
    return (rgba[:, :3] + 1 - rgba[:, 3:]).clamp(0, 1)


def jitter(pictures: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """Pictures varied as photographs vary, a draw each: place, background, light, sharpness, noise; never mirrored.

    Args:
        pictures: (B, H, W, 4) uint8, RGBA with straight alpha.
        generator: on the device of the pictures; everything random comes from it.
        size: width and height of the result.

    Returns:
        (B, 3, size, size) float32 in [0, 1], on the same device.

    Raises:
        DataError: pictures of another shape or type.
    """
    rgba, count = _premultiplied(pictures), len(pictures)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        u = torch.rand(count, *shape, generator=generator, device=pictures.device)
        return low + (high - low) * u

    if rgba.shape[-1] > size:  # grid_sample alone would skip pixels
        rgba = F.interpolate(rgba, (size, size), mode="bilinear", antialias=True)
    zoom = draw(*map(math.log, ZOOM)).exp()
    rgba = place(rgba, zoom, draw(*ANGLE).deg2rad(), draw(*SHIFT, 2), size)

    # From one colour to another along any direction, or, for half of them, one colour only; pure white is not rare.
    grey, tint = draw(-0.3, 1.3, 2, 1, 1, 1), draw(0, 1, 1, 1, 1, 1)
    first, second = torch.lerp(grey, draw(0, 1, 2, 3, 1, 1), tint).clamp(0, 1).unbind(1)  # each (B, 3, 1, 1)
    second = torch.where(draw(0, 1, 1, 1, 1) < 0.5, first, second)
    axis = torch.linspace(-0.5, 0.5, size, device=pictures.device)
    along = draw(0, 2 * math.pi, 1, 1, 1)
    ramp = (0.5 + axis * along.cos() + axis[:, None] * along.sin()).clamp(0, 1)  # (B, 1, size, size)
    picture = rgba[:, :3] + (1 - rgba[:, 3:]) * torch.lerp(first, second, ramp)

    picture = (picture - 0.5) * draw(*CONTRAST, 1, 1, 1) + 0.5
    warm = draw(*TEMPERATURE, 1, 1, 1) * torch.tensor([1.0, 0.0, -1.0], device=pictures.device)[:, None, None]
    picture = (picture * draw(*GAIN, 1, 1, 1) * warm.exp()).clamp(0, 1)

    # Two thirds are blurred: mixed with one of their own reduced copies.
    which, strength = draw(0, len(BLURS)).long(), draw(-0.5, 1, 1, 1, 1).clamp_min(0).sqrt()
    for k, side in enumerate(BLURS):
        if len(of := ((which == k) & (strength.flatten() > 0)).nonzero()[:, 0]):
            picture[of] = torch.lerp(picture[of], _reduced(picture[of], min(size, side)), strength[of])

    noise = torch.randn(picture.shape, generator=generator, device=pictures.device)
    return (picture + draw(0, NOISE, 1, 1, 1) * noise).clamp(0, 1)


def place(pictures: Tensor, zoom: Tensor, angle: Tensor, shift: Tensor, size: int) -> Tensor:
    """Pictures (B, C, H, W) enlarged by `zoom` (B,), turned clockwise by `angle` (B,) radians about the centre, then
    moved by `shift` (B, 2) half sides right and down: (B, C, size, size), 0 where nothing was."""
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    back = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)  # where each pixel came from
    theta = torch.cat([back, -back @ shift[..., None]], dim=2)
    grid = F.affine_grid(theta, [*pictures.shape[:2], size, size], align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="zeros", align_corners=False)


def _reduced(pictures: Tensor, side: int) -> Tensor:
    """Pictures with no more detail than `side` pixels hold."""
    small = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
    return F.interpolate(small, pictures.shape[-2:], mode="bilinear", antialias=True)


def _premultiplied(pictures: Tensor) -> Tensor:
    """(B, H, W, 4) uint8 → (B, 4, H, W) in [0, 1], colour times alpha, which may be resampled without dark rims."""
    if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[-1] != 4:
        given = f"{str(pictures.dtype).removeprefix('torch.')} of shape {tuple(pictures.shape)}"
        raise DataError(f"pictures are {given}: give uint8 RGBA, (B, H, W, 4)")
    rgba = pictures.permute(0, 3, 1, 2).float() / 255
    return torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)


def read_portrait(source, size: int = 256) -> Tensor:
    """Any picture of somebody as the encoder wants it (E16).

    Args:
        source: file of any kind that Pillow reads, an open `PIL.Image`, or an array (H, W), (H, W, 3) or (H, W, 4)
            uint8. Alpha is laid over white, what EXIF says of its orientation is followed.
        size: width and height of the result; the picture is scaled into it and filled up with its border's colour.

    Returns:
        (3, size, size) float32 in [0, 1].

    Raises:
        DataError: no file, not a picture, or one that is too small or too large.
    """
    if size < SMALLEST:
        raise DataError(f"size is {size}: give at least {SMALLEST} pixels")
    rgb = _on_white(open_picture(source, SMALLEST, 2 * size))
    scale = size / max(rgb.size)
    rgb = rgb.resize([max(1, round(n * scale)) for n in rgb.size], Image.Resampling.BICUBIC)
    pixels = np.asarray(rgb)  # (h, w, 3)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    square = np.empty((size, size, 3), np.uint8)
    square[:] = np.median(border, axis=0).round()
    top, left = ((size - n) // 2 for n in pixels.shape[:2])
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return torch.from_numpy(square).permute(2, 0, 1).float() / 255


def open_picture(source, smallest: int = 1, enough: int = 0) -> Image.Image:
    """Any picture as 8-bit RGB or RGBA, turned as EXIF says.

    Args:
        source: as of `read_portrait`.
        smallest: pixels a side that it must have.
        enough: pixels a side beyond which a JPEG may be read at a fraction of its size; 0: none.

    Raises:
        DataError: no file, not a picture, or one that is too small or too large.
    """
    name = "the picture" if isinstance(source, (Image.Image, np.ndarray)) else str(source)
    try:
        if isinstance(source, np.ndarray):
            source = Image.fromarray(source)
        with source.copy() if isinstance(source, Image.Image) else Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{name} has {image.width}×{image.height} pixels, > {MAX_PIXELS // 10**6} M: scale it")
            if min(image.size) < smallest:
                raise DataError(f"{name} has {image.width}×{image.height} pixels: give at least {smallest} a side")
            if image.mode == "RGB" and enough:
                image.draft("RGB", (enough, enough))
            return _eight_bits(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{name} is too large a picture; at most {MAX_PIXELS // 10**6} M pixels: scale it") from None
    except FileNotFoundError:
        raise DataError(f"{name} does not exist: give a picture file") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, TypeError, AttributeError) as error:
        raise DataError(f"{name} is not a readable picture: {' '.join(str(error).split())[:200]}") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """8-bit RGB, or RGBA where there is transparency, of an image of any mode."""
    if image.mode.startswith("I"):  # 16 bits of grey, under several names
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":  # floats, in [0, 1] or up to 255
        values = np.nan_to_num(np.asarray(image))
        image = Image.fromarray((values * (255 if values.max() <= 1 else 1)).clip(0, 255).astype(np.uint8))
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
