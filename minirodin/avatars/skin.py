"""Colours of a head: skin, lips, cheeks, freckles and make-up per vertex; the eyeballs and the mouth's inside."""

import numpy as np
from scipy.spatial import cKDTree

from minirodin.avatars.attributes import HAIR_COLORS, Attributes, linear
from minirodin.avatars.head import Eye, HeadShape, smoothstep
from minirodin.avatars.mesh import EYE, SKIN, Mesh, make_mesh

LIGHTEST, DARKEST = np.array([0.80, 0.52, 0.395]), np.array([0.088, 0.038, 0.020])  # linear RGB at melanin 0 and 1
IRIS = {
    "brown": (0.36, 0.20, 0.10), "dark brown": (0.17, 0.095, 0.06), "hazel": (0.44, 0.33, 0.15),
    "green": (0.33, 0.44, 0.26), "blue": (0.32, 0.50, 0.70), "grey": (0.45, 0.50, 0.54),
}  # fmt: skip
EYE_SHADOW = (0.30, 0.16, 0.13), (0.12, 0.10, 0.12), (0.35, 0.15, 0.22), (0.12, 0.18, 0.22)
LIPS = {"pink": (0.80, 0.33, 0.42), "red": (0.68, 0.06, 0.10), "plum": (0.40, 0.09, 0.20)}


def waves(points: np.ndarray, rng, frequency: float, count: int = 10) -> np.ndarray:
    """Smooth noise (V,) of about unit variance: random plane waves of roughly one wavelength, 2π / `frequency`."""
    k = rng.standard_normal((count, 3)).astype(points.dtype)
    k *= frequency * rng.uniform(0.6, 1.5, (count, 1)) / np.linalg.norm(k, axis=1, keepdims=True)
    phase = rng.uniform(0, 2 * np.pi, count).astype(points.dtype)
    return np.cos(points @ k.T + phase).sum(axis=1) * (2 / count) ** 0.5


def skin_albedo(shape: HeadShape, a: Attributes) -> np.ndarray:
    """Linear RGB (V, 3) of the skin's vertices."""
    rng, rest, masks = a.rng("skin"), shape.rest.astype(np.float32), shape.masks
    x, pale = np.abs(rest[:, 0]), 1 - a.skin_tone
    mirrored = np.stack([x, rest[:, 1], rest[:, 2]], axis=1)

    def spot(centre, radius) -> np.ndarray:
        return np.exp(-(((mirrored - centre) / radius) ** 2).sum(axis=1))

    warm, olive, depth = rng.standard_normal(3)
    undertone = warm * np.array([0.015, -0.01, -0.07]) + olive * np.array([-0.03, 0.01, -0.02]) + 0.02 * depth
    medium = 4 * a.skin_tone * pale * np.array([0.05, -0.01, -0.10])  # melanin tints the most where it is neither end
    tone = LIGHTEST**pale * DARKEST**a.skin_tone * np.exp(undertone + medium)
    old = np.clip((a.age - 40) / 40, 0, 1)
    blotches = waves(rest, rng, 22) * 0.6 + waves(rest, rng, 60) * 0.4
    fine = waves(rest, rng, 260, 14)
    albedo = tone * (1 + (0.025 + 0.02 * old) * blotches + 0.015 * fine)[:, None]

    flush = spot((0.15, 0.07, 0.36), (0.09, 0.08, 0.14)) * 0.8 + spot((0, 0.06, 0.54), (0.06, 0.06, 0.09)) * 0.8
    flush += 0.9 * masks["ears"] + 0.4 * spot((0, -0.19, 0.42), (0.08, 0.05, 0.1))
    flush += 0.25 * spot((0.11, 0.22, 0.42), 0.07)
    flush = flush * (1 + 0.25 * blotches) * rng.uniform(0.6, 1.3) * (0.35 + 0.65 * pale)
    albedo = albedo * np.exp(flush[:, None] * [0.02, -0.20, -0.17])
    tired = spot((0.095, 0.155, 0.44), (0.055, 0.022, 0.08)) * rng.uniform(0.3, 0.8) * (0.7 + 0.6 * old)
    albedo = albedo * np.exp(-tired[:, None] * [0.16, 0.25, 0.17])
    if a.gender == "man":
        shadow = np.maximum(masks["beard"], masks["moustache"]) * rng.uniform(0.05, 0.3) * (0.4 + 0.6 * pale)
        albedo = albedo * (1 - shadow[:, None] * [0.75, 0.6, 0.42])
    if a.freckles > 0:
        albedo = _freckles(albedo, rest, masks, a.freckles, rng)
    if old > 0:
        albedo = _freckles(albedo, rest, masks, 0.12 * old, rng, size=0.010, strength=0.35)
    if a.facial_hair == "stubble":
        grain = np.clip(0.6 + 0.35 * waves(rest, rng, 300, 14), 0, 1)
        shade = np.maximum(masks["beard"], masks["moustache"]) * grain * (0.45 + 0.25 * a.facial_hair_length)
        albedo = albedo + shade[:, None] * (0.6 * linear(HAIR_COLORS[a.hair_color]) + 0.1 * tone - albedo)

    lips = smoothstep(0.25, 0.75, masks["lips"])
    natural = tone * (np.array([0.78, 0.44, 0.47]) * pale + np.array([0.95, 0.66, 0.72]) * (1 - pale))
    natural = natural * np.exp(rng.normal(0, [0.05, 0.08, 0.08]))
    painted = natural if a.lip_color == "natural" else linear(LIPS[a.lip_color]) * (0.55 + 0.45 * pale)
    mix = {"none": 0.0, "light": 0.55, "strong": 0.85}[a.makeup]
    lip = natural + mix * (painted - natural)
    lip = lip * (1 + 0.04 * waves(rest * [3, 0.3, 1], rng, 90))[:, None]
    albedo = albedo + 0.9 * lips[:, None] * (lip - albedo)

    rim = smoothstep(0.3, 0.9, masks["eyelids"])
    albedo = albedo + 0.6 * rim[:, None] * (tone * [0.92, 0.62, 0.58] - albedo)
    if a.makeup != "none":
        strength = {"light": 0.35, "strong": 0.8}[a.makeup]
        shade = np.array(EYE_SHADOW[rng.integers(len(EYE_SHADOW))])
        lid = spot((0.115, 0.245, 0.41), (0.06, 0.022, 0.06))
        albedo = albedo + (strength * 0.8 * lid)[:, None] * (shade * (0.4 + 0.6 * pale) - albedo)
        blush = strength * 0.35 * spot((0.17, 0.08, 0.34), (0.07, 0.05, 0.12))
        albedo = albedo * np.exp(blush[:, None] * [0.05, -0.45, -0.3])
    inside = smoothstep(0.3, 0.9, masks["inside_mouth"]) * (1 - lips)
    albedo = albedo + inside[:, None] * (np.array([0.16, 0.035, 0.03]) - albedo)
    return np.clip(albedo, 0.003, 0.9)


def wrinkles(shape: HeadShape, a: Attributes) -> np.ndarray:
    """Lines of the brow and around the eyes, (V, 3): a coordinate whose integers are lines, 0, and their depth."""
    rng, rest = a.rng("wrinkles"), shape.rest
    x, y, front = np.abs(rest[:, 0]), rest[:, 1], rest[:, 2] > 0.2
    bent = 0.007 * np.sin(13 * rest[:, 0] + rng.uniform(0, 6)) + 0.03 * x**2 / 0.15
    brow = smoothstep(0.30, 0.34, y) * smoothstep(0.46, 0.41, y) * smoothstep(0.20, 0.10, x) * front
    right, up = x - 0.165, y - 0.205
    away, angle = np.hypot(right, up), np.arctan2(up, right)
    feet = smoothstep(0.012, 0.03, away) * smoothstep(0.085, 0.05, away) * smoothstep(0.9, 0.5, np.abs(angle)) * front
    grown = np.interp(a.age, [40, 60, 82], [0, 0.3, 1])  # none in the young, faint in the middle of life
    depth = grown * rng.uniform(0.5, 1.0) * np.maximum(brow, feet)
    line = np.where(feet > brow, angle / 0.36 + rng.uniform(), (y + bent) / rng.uniform(0.030, 0.040))
    return np.stack([line, np.zeros_like(line), depth], axis=1)


def _freckles(albedo, rest, masks, amount, rng, size=0.0052, strength=1.0) -> np.ndarray:
    """Darker spots over nose and cheeks, fewer elsewhere on the face."""
    face = np.flatnonzero((masks["face"] > 0.3) & (masks["lips"] < 0.2))
    likely = np.exp(-(((rest[face] - [0, 0.1, 0.45]) / [0.17, 0.10, 0.2]) ** 2).sum(axis=1)) + 0.05
    count = 1 + int(500 * amount)
    spots = rest[rng.choice(face, count, p=likely / likely.sum())] + rng.normal(0, 0.004, (count, 3))
    radius, depth = size * rng.uniform(0.6, 1.5, count), rng.uniform(0.2, 0.8, count) * strength
    distance, nearest = cKDTree(spots).query(rest[face])
    dark = depth[nearest] * np.exp(-((distance / radius[nearest]) ** 2))
    albedo = albedo.copy()
    albedo[face] *= np.exp(-dark[:, None] * [0.45, 0.75, 0.95])
    return albedo


def eye_mesh(eye: Eye, colour: np.ndarray, rings: int = 20, sectors: int = 40) -> Mesh:
    """An eyeball with a bulging cornea; the shader draws iris and pupil from the tangents."""
    # Rings lie close where the iris is.
    polar = np.pi * np.linspace(0, 1, rings) ** 1.6
    turn = 2 * np.pi * np.arange(sectors) / sectors
    polar, turn = np.meshgrid(polar, turn, indexing="ij")
    local = np.stack([np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], axis=-1)
    local = local.reshape(-1, 3)  # (rings · sectors, 3) in the eye's own frame, +z along the gaze
    side = np.cross([0, 1, 0], eye.gaze)
    side /= np.linalg.norm(side)
    frame = np.stack([side, np.cross(eye.gaze, side), eye.gaze])
    bulge = 1 + 0.045 * smoothstep(0.62, 0.30, np.where(local[:, 2] > 0, np.linalg.norm(local[:, :2], axis=1), 9.0))
    i, j = np.meshgrid(np.arange(rings - 1), np.arange(sectors), indexing="ij")
    a, b = i * sectors + j, i * sectors + (j + 1) % sectors
    quads = np.stack([a, a + sectors, b + sectors, b], axis=-1).reshape(-1, 4)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    vertices = eye.centre + eye.radius * (local * bulge[:, None]) @ frame
    normals = local @ frame
    return make_mesh(vertices, faces, colour, EYE, normals=normals, tangents=local)


def face_meshes(shape: HeadShape, a: Attributes) -> list[Mesh]:
    """Eyeballs, teeth and tongue."""
    tint = linear(IRIS[a.eye_color]) * np.exp(a.rng("iris").normal(0, 0.12, 3))
    meshes = [eye_mesh(eye, np.clip(tint, 0, 1)) for eye in shape.eyes]
    ivory, red = linear((0.90, 0.87, 0.81)), np.array([0.35, 0.10, 0.10])
    shut = a.expression in ("neutral", "slight smile", "frown")
    front = max(vertices[:, 2].max() for vertices, _ in shape.parts.values())
    for name, (vertices, faces) in shape.parts.items():
        near = smoothstep(front - 0.17, front - 0.04, vertices[:, 2])[:, None]
        if name == "tongue" or shut:  # else a white line would shine between the lips
            meshes.append(make_mesh(vertices, faces, red, SKIN))
            continue
        # The lips' shadow would leave teeth black: their light is gathered before the mouth, less so far back.
        lit, forward = near * [0, 0.10, 0], np.array([0, 0, 0.006])
        meshes.append(make_mesh(vertices + forward, faces, ivory * (0.35 + 0.6 * near), SKIN, tangents=lit))
    return meshes
