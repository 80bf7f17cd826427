"""Analytic subjects for tests: exact pictures of a coloured ball, without OpenGL."""

import numpy as np
import torch

from minirodin.cameras import Capture, capture_cameras


def ball_capture(name="ball", views=10, size=48, radius=0.6, seed=0, tint=(0.9, 0.4, 0.2)) -> Capture:
    """A ball with smooth bands of colour, four rays a pixel for clean alpha."""
    cameras = capture_cameras(views, size, seed)
    fine = cameras.resized(2 * size, 2 * size)
    images = []
    for view in range(views):
        origins, directions = fine.rays(view)
        b = (origins * directions).sum(-1)
        discriminant = b.square() - origins.square().sum(-1) + radius**2
        hit = discriminant > 0
        point = origins + (-b - discriminant.clamp(min=0).sqrt())[:, None] * directions
        colour = torch.tensor(tint) * (0.7 + 0.3 * torch.sin(5 * point))
        rgba = torch.cat([colour * hit[:, None], hit[:, None].float()], dim=1).view(size, 2, size, 2, 4).mean((1, 3))
        rgba[..., :3] /= rgba[..., 3:].clamp(min=1e-6)
        images.append((rgba.clamp(0, 1) * 255).round().byte().numpy())
    return Capture(name, np.stack(images), cameras, caption="a ball", attributes={"radius": radius})
