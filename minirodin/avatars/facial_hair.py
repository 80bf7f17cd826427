"""Brows, lashes, moustache and beard, as strands on the person's own face."""

import numpy as np

from minirodin.avatars.attributes import DYES, HAIR_COLORS, Attributes, linear
from minirodin.avatars.field import SkinField, head_frame
from minirodin.avatars.hairstyles import strays
from minirodin.avatars.head import smoothstep
from minirodin.avatars.mesh import SKIN, Mesh, dot, make_mesh, normalize, ribbons
from minirodin.avatars.strands import clump, cut, grow, resample, sample_roots

X, Y, Z = np.eye(3)

# The middle of a brow in the average head, from the nose outwards (x, y), and the angle its hairs grow at (degrees).
BROW = np.array([(0.040, 0.258), (0.075, 0.273), (0.115, 0.283), (0.150, 0.284), (0.182, 0.270), (0.206, 0.250)])
BROW_ANGLE = np.array([68, 38, 18, 2, -22, -34])


def grow_facial_hair(shape, field: SkinField, attributes: Attributes) -> list[Mesh]:
    """Brows, lashes and the beard or moustache that the attributes name (stubble is a tint of the skin).

    shape: a HeadShape; field: `head_field(shape)`, which the strands are kept out of.
    """
    a, rng = attributes, attributes.rng("facial hair")
    meshes = [brows(shape, a, rng), lashes(shape, a)]
    if a.facial_hair in ("moustache", "goatee", "full"):
        meshes += beard(shape, field, a, rng)
    return meshes


def brow_color(a: Attributes) -> np.ndarray:
    """Linear RGB (3,): brows follow the hair, but fair and dyed hair goes with darker ones."""
    hair, brown = linear(HAIR_COLORS[a.hair_color]), linear(HAIR_COLORS["dark brown"])
    share = {"black": 0.6, "blond": 0.45, "red": 0.6, "grey": 0.5, "white": 0.55} | dict.fromkeys(DYES, 0.0)
    return 0.8 * hair if a.hair_color not in share else share[a.hair_color] * (hair - brown) + brown


def brows(shape, a: Attributes, rng) -> Mesh:
    """Short strands along an arch that rises, turns outwards and tapers."""
    x, y = np.abs(shape.rest[:, 0]), shape.rest[:, 1]
    arch = (0.5 if a.gender == "man" else 1.2) * (0.8 + 0.4 * rng.random())
    line = BROW[:, 1].min() + 0.012 + (BROW[:, 1] - BROW[:, 1].min() - 0.012) * (0.55 + 0.45 * arch)
    thick = (0.0042 + 0.0075 * a.brow_thickness) * np.interp(x, BROW[:, 0], [0.85, 1, 1, 0.85, 0.6, 0.25])
    across = (y - np.interp(x, BROW[:, 0], line)) / thick
    ends = smoothstep(BROW[0, 0] - 0.008, BROW[0, 0] + 0.01, x) * smoothstep(BROW[-1, 0] + 0.006, BROW[-1, 0] - 0.02, x)
    density = np.exp(-(across**2)) * (np.abs(across) < 1.6) * ends * (shape.rest[:, 2] > 0.2)
    count = 420 + round(430 * a.brow_thickness)
    at = sample_roots(shape, density, count, rng)
    roots, rest = shape.on_skin(shape.vertices, *at), shape.on_skin(shape.rest, *at)
    normals = normalize(shape.on_skin(shape.normals, *at))
    angle = np.deg2rad(np.interp(np.abs(rest[:, 0]), BROW[:, 0], BROW_ANGLE) - 420 * (rest[:, 1] - np.interp(
        np.abs(rest[:, 0]), BROW[:, 0], line)) + 5 * rng.standard_normal(count))  # fmt: skip
    outward = np.sign(roots[:, :1]) * X
    way = np.cos(angle)[:, None] * outward + np.sin(angle)[:, None] * Y
    way = normalize(way - dot(way, normals)[..., None] * normals)
    length = (0.019 + 0.009 * a.brow_thickness) * rng.uniform(0.7, 1.1, count)
    t = np.linspace(0, 1, 5)[None, :, None]
    bend = t * length[:, None, None]
    points = roots[:, None] + bend * way[:, None] + (0.008 * np.sin(np.pi * t) + 0.002) * normals[:, None] * 0.6
    points = points - 0.25 * bend * t * Y * np.sign(angle)[:, None, None]
    tint = np.exp(0.10 * rng.standard_normal((count, 1, 1)))
    radius = 0.0021 * (1 - 0.6 * t[..., 0] ** 2)
    normals = np.broadcast_to(normals[:, None], points.shape)
    return ribbons(points, radius, np.clip(brow_color(a) * tint, 0, 1), normals=normals)


def lashes(shape, a: Attributes) -> Mesh:
    """A dense row of dark hairs on the upper lid's edge, curved up and outwards; made-up ones are longer.

    None on the lower lid: at the size of a portrait they are dots on the cheek.
    """
    unit = head_frame(shape).unit
    long = {"none": 0.008, "light": 0.012, "strong": 0.017}[a.makeup] + (0.002 if a.gender == "woman" else 0)
    strands, count = [], 64
    for name, eye in zip(("left", "right"), shape.eyes, strict=True):
        line = shape.landmarks[f"{name}_upper_lid"]
        at = np.linspace(0.04, 0.98, count) * (len(line) - 1)
        i = np.minimum(at.astype(int), len(line) - 2)
        roots = line[i] + (at - i)[:, None] * (line[i + 1] - line[i])
        out = normalize(roots - eye.centre)
        fan = np.linspace(-0.35, 0.9, count)[:, None] * np.sign(eye.centre[0]) * X
        size = long * unit * (0.45 + 0.55 * np.linspace(0, 1, count) ** 0.7)[:, None, None]  # longest outside
        t = np.linspace(0, 1, 5)[None, :, None]
        lift = 0.1 * t + 0.7 * t**2
        strands.append(roots[:, None] + size * (0.9 * t * (out + 0.6 * fan)[:, None] + 0.75 * lift * Y))
    points = np.concatenate(strands)
    fair = a.makeup == "none" and a.hair_color in ("blond", "red", "white")
    color = np.array([0.03, 0.018, 0.012]) if fair else np.array([0.008, 0.006, 0.006])
    return ribbons(points, 0.0016 * np.linspace(1, 0.3, 5), color, normals=np.broadcast_to(Z, points.shape))


def beard_density(shape, a: Attributes) -> np.ndarray:
    """Where the person's beard grows, (V,) in [0, 1]."""
    x, y = np.abs(shape.rest[:, 0]), shape.rest[:, 1]
    moustache, full = shape.masks["moustache"], shape.masks["beard"]
    if a.facial_hair == "moustache":
        return moustache
    if a.facial_hair == "goatee":  # chin and the corners of the mouth
        return np.maximum(moustache, full * smoothstep(0.125, 0.10, x) * smoothstep(0.0, -0.03, y))
    return np.maximum(moustache, full)


def beard(shape, field: SkinField, a: Attributes, rng) -> list[Mesh]:
    """Strands that grow down from cheeks, jaw and chin, and outwards from under the nose, clear of the lips."""
    density = beard_density(shape, a)
    count = {"moustache": 900, "goatee": 2200, "full": 5200}[a.facial_hair]
    at = sample_roots(shape, density, count, rng)
    roots, rest = shape.on_skin(shape.vertices, *at), shape.on_skin(shape.rest, *at)
    normals = normalize(shape.on_skin(shape.normals, *at))
    lip = (rest[:, 1] > -0.055) & (np.abs(rest[:, 0]) < 0.11) & (rest[:, 2] > 0.4)  # of the moustache
    grown, frame = a.facial_hair_length, head_frame(shape)
    chin = np.exp(-((rest[:, 0] / 0.17) ** 2)) * smoothstep(-0.03, -0.11, rest[:, 1])
    end = frame.chin + 0.02 - (0.02 + 0.15 * grown**1.5) * np.exp(-((rest[:, 0] / 0.15) ** 4))  # a rounded lower edge
    length = (0.025 + 0.055 * grown) * (0.55 + 0.45 * shape.on_skin(density, *at))
    length = length + chin * (np.clip(roots[:, 1] - end, length, None) - length)
    length = np.where(lip, 0.030 + 0.035 * grown, length) * frame.unit * rng.uniform(0.85, 1.05, count)
    outward = np.sign(roots[:, :1]) * X
    stray = strays(rng, 0.07, 14)

    def flow(p, normal, t, arc):
        wish = -Y + 0.12 * Z - 0.12 * outward * chin[:, None]
        whisker = (1.0 * outward * smoothstep(0.0, 0.04, np.abs(p[:, :1])) - (0.35 + 0.6 * t) * Y) + 0.1 * Z
        return np.where(lip[:, None], whisker, wish) + stray(p)

    body = np.where(lip, 0.008, 0.008 + (0.016 + 0.03 * grown) * (0.35 + 0.65 * chin))
    settle = lambda arc: 0.003 + body * np.minimum(1, arc / (1.5 * body))  # noqa: E731
    start = normalize(0.6 * normals + normalize(flow(roots, normals, 0, 0)))
    points = grow(field, roots, start, length, 8, flow, settle, stiffness=0.5, stick=0.05)
    points, member = clump(points, count // 10, 0.35, rng)
    points[:, 1:] = field.push_out(points[:, 1:], 0.002)
    _, nearest = shape.closest(points.reshape(-1, 3))
    on_lips = shape.masks["lips"][nearest].reshape(points.shape[:2])
    points = resample(points, cut(points, 0.25 - on_lips))

    t = np.linspace(0, 1, points.shape[1])
    color = brow_color(a) if a.hair_color in DYES else 0.85 * linear(HAIR_COLORS[a.hair_color])
    tint = np.exp(0.12 * rng.standard_normal(member.max() + 1))[member] * np.exp(0.06 * rng.standard_normal(count))
    albedo = np.clip(color * (tint[:, None] * (0.75 + 0.35 * t))[..., None], 0, 1)
    strands = ribbons(points, 0.0035 * (1 - 0.6 * t**3), albedo, normals=field(points)[1])

    height = 0.008 * density - 0.005  # dips under the skin where the beard thins out
    used, index = np.unique(shape.faces[(density > 0.2)[shape.faces].all(1)], return_inverse=True)
    under = (shape.vertices + height[:, None] * shape.normals)[used]
    return [strands, make_mesh(under, index.reshape(-1, 3), 0.6 * color, SKIN, shape.normals[used])]
