"""Glasses, hats and earrings, fitted to the person's own head."""

import numpy as np

from minirodin.avatars.attributes import COLORS, Attributes, linear
from minirodin.avatars.field import Frame, SkinField, head_frame, normalize
from minirodin.avatars.head import smoothstep
from minirodin.avatars.mesh import CLOTH, GLOSSY, LENS, Mesh, make_mesh

HAT_CLEARANCE = 0.045  # of a hat above the skin, world units


def hat_rim(frame: Frame, p) -> np.ndarray:
    """Height (...) of a hat's lower edge at points (..., 3): above the brows and the ears, down to the nape."""
    slope = (p[..., 2] - frame.ear_z) / frame.size
    return frame.ear_top + 0.03 * frame.size + (0.22 * slope) * frame.size


def glasses_arms(shape, frame: Frame) -> np.ndarray:
    """The segments (2, 2, 3) of both temple arms, hinge to ear."""
    arms = []
    for name, eye in zip(("left", "right"), shape.eyes, strict=True):
        sign = 1 if name == "left" else -1
        ear = shape.landmarks[f"{name}_ear_top"]
        hinge = np.array([eye.centre[0] + sign * 0.115, eye.centre[1] + 0.02, eye.centre[2] + 0.04])
        arms.append((hinge, ear + [sign * -0.005, -0.01, 0.02]))
    return np.array(arms)


def make_accessories(shape, field: SkinField, attributes: Attributes) -> list[Mesh]:
    """Glasses, hat and earrings that the attributes name. shape: a HeadShape; field: `head_field(shape)`."""
    return []
