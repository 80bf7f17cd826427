"""Analytic subjects for tests: exact pictures of a coloured ball, and radiance fields written as formulas."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from minirodin.cameras import Cameras, Capture, capture_cameras
from minirodin.config import Config, preset
from minirodin.triplane import PLANE_AXES


def trace_ball(cameras: Cameras, radius=0.6, tint=(0.9, 0.4, 0.2), centre=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Pictures (V, H, W, 4) uint8 of a ball with smooth bands of colour, four rays a pixel for clean alpha."""
    height, width = cameras.height, cameras.width
    fine = cameras.resized(2 * width, 2 * height)
    images = []
    for view in range(len(cameras)):
        origins, directions = fine.rays(view)
        origins = origins - torch.tensor(centre)
        b = (origins * directions).sum(-1)
        discriminant = b.square() - origins.square().sum(-1) + radius**2
        hit = discriminant > 0
        point = origins + (-b - discriminant.clamp(min=0).sqrt())[:, None] * directions
        colour = torch.tensor(tint) * (0.7 + 0.3 * torch.sin(5 * point))
        rgba = torch.cat([colour * hit[:, None], hit[:, None].float()], dim=1)
        rgba = rgba.view(height, 2, width, 2, 4).mean((1, 3))
        rgba[..., :3] /= rgba[..., 3:].clamp(min=1e-6)
        images.append((rgba.clamp(0, 1) * 255).round().byte().numpy())
    return np.stack(images)


def ball_capture(name="ball", views=10, size=48, radius=0.6, seed=0, tint=(0.9, 0.4, 0.2)) -> Capture:
    """A ball seen by the project's own cameras."""
    cameras = capture_cameras(views, size, seed)
    return Capture(name, trace_ball(cameras, radius, tint), cameras, caption="a ball", attributes={"radius": radius})


def ball_config(resolution=32, grid=24, bins=48, samples=8, view_samples=24, channels=8, **fit) -> Config:
    """Settings at which a ball is fitted well in seconds; further names replace fields of its `fit`."""
    c = preset("smoke")
    sizes = {"resolutions": (resolution, resolution // 2), "rays": 256, "shared_steps": 120, "steps": 60}
    return replace(
        c,
        triplane=replace(c.triplane, resolution=resolution, base_resolution=resolution // 2, channels=channels),
        decoder=replace(c.decoder, hidden=16),
        render=replace(c.render, grid=grid, bins=bins, samples=samples, view_samples=view_samples),
        fit=replace(c.fit, **{**sizes, **fit}),
    )


def position_planes(resolution: int = 64) -> Tensor:
    """Planes (3, 3, R, R) whose summed look-up is the position itself, exact where no coordinate exceeds 1 − 1/R."""
    ramp = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    planes = torch.zeros(3, 3, resolution, resolution)
    for plane, (column, _) in enumerate(PLANE_AXES):
        planes[plane, column] = ramp[None, :]  # varies along columns
    return planes


class FieldDecoder:
    """Stands in for the decoder on `position_planes`: density (..., 3) → (...) and colour (..., 3) → (..., 3)."""

    def __init__(self, density, colour=None):
        self.density, self.colour = density, colour or (lambda p: torch.full_like(p, 0.5))

    def __call__(self, features: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return self.density(features), self.colour(features)


def soft_ball(centre=(0.0, 0.0, 0.0), radius=0.5, sharpness=40.0, density=60.0):
    """σ of a ball with a soft shell, as a function of position."""
    centre = torch.tensor(centre)
    return lambda p: density * torch.sigmoid(sharpness * (radius - (p - centre).norm(dim=-1)))
