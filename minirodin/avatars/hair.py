"""Scalp hair of one person: the hairline, the strands of a style, and what they must keep clear of."""

import numpy as np

from minirodin.avatars import hairstyles
from minirodin.avatars.accessories import HAT_CLEARANCE, glasses_paths, hat_rim
from minirodin.avatars.attributes import HAIR_COLORS, Attributes, linear
from minirodin.avatars.field import Frame, SkinField, head_frame
from minirodin.avatars.head import smoothstep
from minirodin.avatars.mesh import CLOTH, Mesh, make_mesh, norm, normalize, ribbons
from minirodin.avatars.strands import clump, curl, cut, resample, sample_roots

LIMIT = 0.955  # hair ends here, inside the box and the ball that every view holds
COUNTS = {"buzz": 9000, "curly": 3600, "bob": 6000, "long": 6000, "bun": 6000, "ponytail": 6000}  # else 7500
SHAPES = {"bob": hairstyles.falling, "long": hairstyles.falling, "curly": hairstyles.curls, "afro": hairstyles.afro}

# Hairline in the average head: degrees about the ears from the nose, height. Temples, sideburns, behind the ear, nape.
HAIRLINE = np.array([
    (0, 0.492), (24, 0.492), (40, 0.463), (54, 0.416), (63, 0.353), (69, 0.26), (73, 0.15), (85, 0.133), (90, 0.226),
    (104, 0.234), (116, 0.158), (130, 0.023), (150, -0.045), (180, -0.053),
])  # fmt: skip
REST_EARS = 0.09  # depth of the ears in the average head


def above_hairline(shape, a: Attributes) -> np.ndarray:
    """Height (V,) of a HeadShape's vertices above the person's hairline, world units; negative where no hair grows."""
    rng, p = a.rng("hairline"), shape.rest
    degrees = np.rad2deg(np.arctan2(np.abs(p[:, 0]), p[:, 2] - REST_EARS))
    line = np.interp(degrees, HAIRLINE[:, 0], HAIRLINE[:, 1])
    peak = 0.018 * rng.random() * np.exp(-((degrees / 9) ** 2))
    line = line + (0.010 * rng.standard_normal() - peak) * smoothstep(75, 40, degrees)
    recede = (0.045 if a.gender == "man" else 0.008) * rng.random() * smoothstep(25, 60, np.array(a.age))
    line = line + recede * np.exp(-(((degrees - 38) / 12) ** 2))
    above = p[:, 1] - line + hairstyles.strays(rng, 0.0008, 45)(p).sum(-1)
    return np.where((shape.masks["ears"] < 0.3) & (shape.masks["inside_mouth"] < 0.3), above, -1.0)


def grow_hair(shape, field: SkinField, attributes: Attributes) -> list[Mesh]:
    """Strands of the scalp's hair and the dark under-layer that hides the scalp; empty for a bald person.

    shape: a HeadShape; field: `head_field(shape)`, which hair is kept out of.
    """
    a, rng, frame = attributes, attributes.rng("hair"), head_frame(shape)
    if a.hair_style == "bald":
        return []
    above = above_hairline(shape, a)
    part, (x, _, z) = hairstyles.part_offset(a, frame), shape.vertices.T
    along_part = np.exp(-(((x - part) / 0.02) ** 2)) * (z > frame.ear_z - 0.1)  # dense there, so that it stays thin
    density = smoothstep(0, 0.015, above) * (1 + 2.5 * along_part)
    if a.hair_texture == "curly":
        density = density * (1 + 1.5 * np.exp(-((above / 0.04) ** 2)))  # few locks must cover the hairline too
    at = sample_roots(shape, density, COUNTS.get(a.hair_style, 7500), rng)
    normals = normalize(shape.on_skin(shape.normals, *at))
    roots = shape.on_skin(shape.vertices, *at) + 0.004 * normals  # above the under-layer from the start
    side = np.where(roots[:, :1] + 0.006 * rng.standard_normal((len(roots), 1)) > part, 1.0, -1.0)
    scalp = hairstyles.Scalp(roots, normals, shape.on_skin(above, *at), side, frame, field)
    if a.hair_style in ("bun", "ponytail"):
        bundles = hairstyles.tied(a, scalp, rng)
    else:
        bundles = [SHAPES.get(a.hair_style, hairstyles.cropped)(a, scalp, rng)]
    strands = [_strands(bundle, shape, field, frame, a, rng) for bundle in bundles]
    return [*strands, _underlay(shape, above, frame, field, a)]


def _strands(bundle: hairstyles.Bundle, shape, field, frame, a, rng) -> Mesh:
    """A bundle clumped, curled, cleared of skin, face, hat, glasses and the box's sides, and coloured."""
    points, member = clump(bundle.points, bundle.clumps, bundle.strength, rng)
    n, s = points.shape[:2]
    t = np.linspace(0, 1, s)
    normals = field(points)[1] if bundle.normals is None else bundle.normals
    if bundle.curl:
        phase = rng.uniform(0, 2 * np.pi, member.max() + 1)[member] + 0.2 * rng.standard_normal(n)
        wavelength = bundle.wavelength * np.exp(0.15 * rng.standard_normal(member.max() + 1))[member]
        points = curl(points, bundle.curl * np.tile(smoothstep(0, 0.35, t), (n, 1)), wavelength, phase, normals)
    if a.hat != "none":
        points = under_hat(points, field, frame)
    if a.glasses != "none":
        points = off_arms(points, glasses_paths(shape, field, a)[2])
    points = field.push_out(points, 0.003)
    points = resample(points, cut(points, _room(points, frame, bundle.fringe)))
    normals = field(points)[1] if bundle.normals is None else bundle.normals

    # One tint a lock rather than a strand: pictures show locks, and a radiance field can fit them.
    tint = np.exp(0.13 * rng.standard_normal(member.max() + 1))[member] * np.exp(0.06 * rng.standard_normal(n))
    albedo = linear(HAIR_COLORS[a.hair_color]) * (tint[:, None] * (0.72 + 0.38 * t))[..., None]
    return ribbons(points, 0.5 * bundle.width * (1 - 0.65 * t**3), np.clip(albedo, 0, 1), normals=normals)


def _room(p, frame: Frame, fringe) -> np.ndarray:
    """Positive (N, S) where hair may be: inside the box, and not before the eyes, nor the forehead unless a fringe."""
    azimuth, y = frame.azimuth(p), p[..., 1]
    hangs = np.zeros(len(p), bool) if fringe is None else fringe
    lowest = np.where(hangs, frame.brow + 0.035 * frame.size, frame.brow + 0.17 * frame.size)[:, None]
    lowest = lowest - 0.25 * frame.size * smoothstep(np.deg2rad(35), np.deg2rad(60), azimuth)
    face = np.where((azimuth < np.deg2rad(60)) & (y > frame.chin), y - lowest, 1.0)
    return np.minimum(face, LIMIT - np.maximum(np.abs(p).max(-1), norm(p) + 0.005))


def under_hat(p, field: SkinField, frame: Frame) -> np.ndarray:
    """Points (..., 3) pressed to the skin under the hat, and let out gradually below its rim."""
    for _ in range(3):
        height, normal = field(p)
        below = hat_rim(frame, p) - p[..., 1]
        room = HAT_CLEARANCE - 0.018 + 0.4 * np.clip(below - 0.02, 0, None) + smoothstep(0.08, 0.25, below)
        p = p - np.clip(height - room, 0, None)[..., None] * normal
    return p


def off_arms(p, arms: np.ndarray, clearance: float = 0.022) -> np.ndarray:
    """Points (..., 3) pushed away from the temple arms (2, L, 3) of a pair of glasses."""
    segments = [(arm[i], arm[j]) for arm in arms for i, j in ((0, 7), (7, 13), (13, -1))]
    for start, end in segments:
        along = end - start
        u = np.clip((p - start) @ along / (along @ along), 0, 1)
        away = p - (start + u[..., None] * along)
        distance = norm(away)[..., None]
        p = p + np.clip(clearance - distance, 0, None) * away / np.maximum(distance, 1e-9)
    return p


def _underlay(shape, above, frame, field, a) -> Mesh:
    """The scalp once more, dark as deep hair; it dips under the skin along the hairline, which so stays crisp."""
    cropped = a.hair_style in ("buzz", "mohawk")
    height = np.clip(0.4 * above - 0.004, -0.01, 0.002 if cropped else 0.004)
    direction = shape.normals
    if a.hair_style == "afro":
        inner = 0.72 * hairstyles.afro_height(a, shape.vertices, above, frame)
        height = np.where(above > 0, np.maximum(height, inner), height)
        direction = hairstyles.afro_lean(shape.vertices, shape.normals, frame)
    faces = shape.faces[(above > -0.03)[shape.faces].all(1)]
    used, index = np.unique(faces, return_inverse=True)
    vertices = (shape.vertices + height[:, None] * direction)[used]
    shade = 0.75 if cropped else 0.7
    return make_mesh(vertices, index.reshape(-1, 3), shade * linear(HAIR_COLORS[a.hair_color]), CLOTH)
