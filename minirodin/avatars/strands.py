"""Strands: roots on a surface, growth along a flow, clumps, curls and trimming.

Points of N strands with S + 1 points each are one array (N, S + 1, 3), root first.
"""

import numpy as np
from scipy.spatial import cKDTree

from minirodin.avatars.field import SkinField
from minirodin.avatars.mesh import dot, norm, normalize


def sample_roots(shape, density, count, rng) -> tuple[np.ndarray, np.ndarray]:
    """Points spread evenly over a HeadShape's skin by a density (V,): faces (count,), barycentric (count, 3)."""
    corner = shape.vertices[shape.faces]  # (F, 3, 3)
    area = norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]))
    mass = np.cumsum(area * density[shape.faces].mean(-1))
    # Systematic sampling: one draw a stratum leaves neither gaps nor knots.
    face = np.searchsorted(mass, (np.arange(count) + rng.random(count)) * (mass[-1] / count))
    mixed = rng.permutation(count)  # later steps take the first so many as a fair sample
    return np.minimum(face, len(mass) - 1)[mixed], rng.dirichlet([1, 1, 1], count)


def grow(field: SkinField, roots, direction, length, steps, flow, lift, stiffness=0.55, stick=0.08) -> np.ndarray:
    """Strands (N, steps + 1, 3) that follow a flow while they stay a given height above the skin.

    roots, direction: (N, 3), where and in which direction a strand leaves the skin; length: (N,) world units;
    flow(p, normal, t, arc) -> (N, 3), the wished direction; lift(arc) -> (N,), the height a strand settles at;
    stiffness: share of the previous direction that is kept; stick: reach of the pull towards the skin, world units.
    """
    p, points = roots, [roots]
    for k in range(steps):
        t = k / steps
        arc = length * t
        height, normal = field(p)
        wish = flow(p, normal, t, arc)
        target = lift(arc)
        near = np.exp(-np.clip(height - target, 0, None) / stick)[:, None]
        wish = wish - near * dot(wish, normal)[:, None] * normal
        step = length / steps
        wish = normalize(wish) + near * np.clip((target - height) / (2.5 * step + 1e-9), -0.5, 1)[:, None] * normal
        direction = normalize(stiffness * direction + (1 - stiffness) * wish)
        p = p + direction * step[:, None]
        height, normal = field(p)
        p = p + np.clip(0.25 * target + 0.002 - height, 0, None)[:, None] * normal
        points.append(p)
    return np.stack(points, 1)


def clump(points, count, strength, rng) -> tuple[np.ndarray, np.ndarray]:
    """Draw strands towards `count` of their number: new points and each strand's clump (N,).

    strength: share of the way to the centre strand at the tip; nothing at the root.
    """
    n, s = points.shape[:2]
    count = min(count, n)
    centre = np.sort(rng.permutation(n)[:count])
    # Root and middle both count, so that no clump bridges a parting.
    key = np.concatenate([points[:, 0], 0.5 * points[:, s // 2], 0.25 * points[:, -1]], -1)
    member = cKDTree(key[centre]).query(key)[1]
    pull = strength * np.linspace(0, 1, s)[:, None]
    return points + pull * (points[centre[member]] - points), member


def resample(points, end, steps=None, power=1.0) -> np.ndarray:
    """Strands cut at the share `end` (N,) in [0, 1] of their points, with `steps` segments (default as before).

    power: above 1 the new points crowd towards the root, where strands bend most.
    """
    s = points.shape[1] - 1
    x = np.asarray(end)[:, None] * s * np.linspace(0, 1, (steps or s) + 1) ** power
    i = np.minimum(x.astype(np.int64), s - 1)
    f = (x - i)[..., None]
    rows = np.arange(len(points))[:, None]
    return points[rows, i] * (1 - f) + points[rows, i + 1] * f


def cut(points, value) -> np.ndarray:
    """The share (N,) of each strand before `value` (N, S + 1) first falls below zero, by linear interpolation."""
    s = points.shape[1] - 1
    bad = value < 0
    k = np.where(bad.any(1), bad.argmax(1), s)
    k1 = np.maximum(k, 1)
    rows = np.arange(len(points))
    a, b = value[rows, k1 - 1], value[rows, k1]
    share = np.where(b < 0, (k1 - 1 + np.clip(a / np.maximum(a - b, 1e-12), 0, 1)) / s, 1.0)
    return np.where(bad[:, 0], 0.0, share)


def tangents(points) -> np.ndarray:
    return normalize(np.gradient(points, axis=1))


def curl(points, amplitude, wavelength, phase, normals) -> np.ndarray:
    """Wind strands into helices: amplitude (N, S + 1) and wavelength (N,) in world units, phase (N,) in radians."""
    along = tangents(points)
    arc = np.cumsum(norm(np.diff(points, axis=1, prepend=points[:, :1])), axis=1)
    side = normalize(np.cross(along, normals))
    out = normalize(np.cross(side, along))
    angle = phase[:, None] + 2 * np.pi * arc / wavelength[:, None]
    return points + amplitude[..., None] * (np.cos(angle)[..., None] * side + 0.85 * np.sin(angle)[..., None] * out)
