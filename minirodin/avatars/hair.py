"""Scalp hair: where it grows, how each style flows over the person's own head, and what it must keep clear of."""

from dataclasses import dataclass

import numpy as np

from minirodin.avatars.attributes import HAIR_COLORS, Attributes, linear
from minirodin.avatars.field import SkinField, normalize, skin_field
from minirodin.avatars.mesh import HAIR, SKIN, Mesh, make_mesh, ribbons
from minirodin.avatars.strands import clump, curl, cut, grow, resample, sample_roots

X, Y, Z = np.eye(3)
LIMIT = 0.955  # hair ends here, inside the box


@dataclass(frozen=True)
class Frame:
    """The heights and depths that hair, hats and glasses are laid out by, world units, from one head's landmarks."""

    eye: float
    brow: float
    chin: float
    crown: float
    ear_top: float
    ear_z: float

    @property
    def size(self) -> float:
        return self.crown - self.chin

    def azimuth(self, p) -> np.ndarray:
        """Angle (...) in radians about the vertical axis through the ears, 0 at the nose, pi at the nape."""
        return np.arctan2(np.abs(p[..., 0]), p[..., 2] - self.ear_z)


def head_frame(shape) -> Frame:
    """The frame of a HeadShape."""
    mark, brow = shape.landmarks, shape.masks["brow"]
    ear = 0.25 * sum(mark[f"{side}_ear_{end}"] for side in ("left", "right") for end in ("top", "lobe"))
    return Frame(
        eye=float(shape.eyes[0].centre[1] + shape.eyes[1].centre[1]) / 2,
        brow=float((shape.vertices[:, 1] * brow).sum() / brow.sum()),
        chin=float(mark["chin"][1]),
        crown=float(mark["crown"][1]),
        ear_top=float(mark["left_ear_top"][1]),
        ear_z=float(ear[2]),
    )


def head_field(shape) -> SkinField:
    """The field of a HeadShape's outer skin without its ears, which hair may cover and hats may press down."""
    keep = (shape.masks["ears"] < 0.3) & (shape.masks["inside_mouth"] < 0.3)
    return skin_field(shape.vertices[keep], shape.normals[keep])


def smooth(x, low, high) -> np.ndarray:
    """Smoothstep of x from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# Hairline: azimuth in degrees against height above the eyes in head sizes; temples, sideburns, behind the ear, nape.
_HAIRLINE = np.array([
    (0, 0.335), (24, 0.335), (40, 0.30), (54, 0.245), (63, 0.17), (69, 0.06), (73, -0.07), (85, -0.09), (90, 0.02),
    (104, 0.03), (116, -0.06), (130, -0.22), (150, -0.30), (180, -0.31),
])  # fmt: skip


def above_hairline(p, frame: Frame, attributes: Attributes) -> np.ndarray:
    """Height (...) of points above the person's hairline, world units; negative on the face and the neck."""
    a, rng = attributes, attributes.rng("hairline")
    degrees = np.rad2deg(frame.azimuth(p))
    front, peak, temple = rng.normal(0, 0.012), 0.02 * rng.random(), rng.random()
    recede = (0.05 if a.gender == "man" else 0.01) * temple * smooth(a.age, 25, 60)
    line = np.interp(degrees, _HAIRLINE[:, 0], _HAIRLINE[:, 1])
    line = line + (front - peak * np.exp(-((degrees / 9) ** 2))) * smooth(degrees, 75, 40)
    line = line + recede * np.exp(-(((degrees - 38) / 12) ** 2))
    wave = 0.006 * np.sin(p @ rng.normal(0, 40, (3, 3)) + rng.uniform(0, 6, 3)).sum(-1)
    return p[..., 1] - (frame.eye + line * frame.size) + wave * frame.size


def clear_face(p, frame: Frame, side, reach) -> np.ndarray:
    """Points turned about the vertical axis until they frame the face: `reach` radians, `side` +-1 (N, 1)."""
    y, ahead = p[..., 1], p[..., 2] - frame.ear_z
    angle = np.where(ahead > 0, np.arctan2(side * p[..., 0], ahead), np.pi)
    least = reach * smooth(y, frame.eye + 0.36 * frame.size, frame.brow)
    least = least * (0.45 + 0.55 * smooth(y, frame.chin - 0.3, frame.chin))
    turned = np.where(angle < least, least + 0.12 * np.clip(angle - least, -1, 0), angle)
    radius = np.hypot(p[..., 0], ahead)
    x = np.where(angle < least, side * radius * np.sin(turned), p[..., 0])
    z = np.where(angle < least, frame.ear_z + radius * np.cos(turned), p[..., 2])
    return np.stack([x, y, z], -1)


def _noise(rng, scale, frequency):
    """A smooth random vector field p (..., 3) -> (..., 3): neighbouring strands stray together."""
    k, phase = rng.normal(0, frequency, (4, 3, 3)), rng.uniform(0, 2 * np.pi, (4, 3))
    return lambda p: scale * sum(np.sin(p @ k[i] + phase[i]) for i in range(4))


def _crop(a, frame, field, roots, side, rng):
    """Short styles: hair leaves a whorl at the crown, or a parting, and lies close."""
    n = len(roots)
    top = smooth(roots[:, 1], frame.ear_top + 0.05, frame.ear_top + 0.28)  # 1 on top, 0 at the sides and the nape
    whorl = np.array([0.03 * (1 if a.hair_part == "left" else -1), frame.crown, frame.ear_z - 0.16])
    lengths = {  # (sides, top) for the shortest and the longest hair of the style
        "buzz": ((0.018, 0.02), (0.03, 0.035)),
        "short": ((0.05, 0.12), (0.08, 0.22)),
        "side part": ((0.05, 0.24), (0.09, 0.34)),
        "slicked back": ((0.07, 0.30), (0.12, 0.42)),
        "pixie": ((0.12, 0.22), (0.18, 0.32)),
        "mohawk": ((0.02, 0.20), (0.03, 0.34)),
        "curly": ((0.16, 0.30), (0.34, 0.55)),
    }[a.hair_style]
    low, high = np.array(lengths)
    sides, crown = low + a.hair_length * (high - low)
    strip = smooth(np.abs(roots[:, 0]), 0.12, 0.07) * smooth(roots[:, 1], frame.ear_top, frame.ear_top + 0.12)
    amount = strip if a.hair_style == "mohawk" else top
    length = (sides + (crown - sides) * amount) * rng.uniform(0.85, 1.1, n)
    stray = _noise(rng, 0.10, 9)
    sweep = -side if a.hair_part == "middle" else np.full((n, 1), -1.0 if a.hair_part == "left" else 1.0)

    def flow(p, normal, t, arc):
        flat = normalize(p - whorl)
        reach = np.linalg.norm(p - whorl, axis=-1, keepdims=True)
        swirl = np.cross(normal, flat) * np.exp(-reach / 0.15)
        sideways, back = np.abs(normal[:, :1]), np.clip(-normal[:, 2:], 0, 1)
        if a.hair_style == "slicked back":
            wish = -Z - Y * (0.35 * sideways + 1.2 * back) + 0.25 * X * normal[:, :1]
        elif a.hair_style == "side part":
            wish = _sideways(p, side, frame, a) * 0.9 - Y * smooth(sideways + back, 0.5, 0.9) - 0.35 * Z
        elif a.hair_style == "mohawk":
            wish = np.where(strip[:, None] > 0.3, Y * 0.6 + normal * 0.8 - 0.25 * Z * t, flat - 0.4 * Y)
        else:
            wish = flat + 0.7 * swirl - Y * (0.5 * sideways + 0.5 * back) + 0.35 * sweep * X * top[:, None]
        return wish + stray(p)

    lift = 0.012 + (0.02 + 0.05 * a.hair_volume) * amount * (a.hair_style not in ("buzz",))
    if a.hair_style == "mohawk":
        lift = lift + 2 * strip
    settle = lambda arc: 0.004 + lift * np.minimum(1, arc / (2.5 * lift))  # noqa: E731
    _, normal = field(roots)
    upright = {"slicked back": 0.3, "mohawk": 1.5, "buzz": 0.35}.get(a.hair_style, 0.55)
    start = normalize(upright * normal + normalize(flow(roots, normal, 0, 0)))
    steps = 3 if a.hair_style == "buzz" else 10
    return grow(field, roots, start, length, steps, flow, settle, stiffness=0.6)


def _sideways(p, side, frame, a):
    """Unit direction (N, 3) away from the parting; behind the crown it fans out so that no gap opens there."""
    part = {"left": 0.3, "middle": 0.02, "right": -0.3}[a.hair_part] * frame.size * 0.4
    behind = np.clip(p[:, 2:] - (frame.ear_z - 0.10), None, 0)
    reach = np.where(behind < 0, p[:, :1] - part, side * 0.3)
    fan = np.concatenate([reach, np.zeros_like(reach), 1.2 * behind], 1)
    return normalize(fan)


def _fall(a, frame, field, roots, side, rng):
    """Bob and long hair: away from the parting, over the sides of the head, then down, clear of the face."""
    n = len(roots)
    degrees = np.rad2deg(frame.azimuth(roots))
    stray = _noise(rng, 0.06, 6)
    ends = frame.chin + (0.06 - 0.16 * a.hair_length if a.hair_style == "bob" else -0.22 - 0.42 * a.hair_length)
    length = np.clip(roots[:, 1] - ends, 0.05, None) * 1.15 + 0.22
    fringe = a.fringe & (degrees < 42) & (above_hairline(roots, frame, a) < 0.13)
    in_front = (degrees < 80)[:, None]

    def flow(p, normal, t, arc):
        down = smooth(np.abs(normal[:, :1]) * 1.1 + np.clip(-normal[:, 2:], 0, 1) * 1.1, 0.35, 0.95)
        down = np.maximum(down, smooth(p[:, 1:2], frame.ear_top + 0.12, frame.ear_top - 0.05))
        wish = (1 - down) * (_sideways(p, side, frame, a) - 0.45 * Z) - down * (Y + 0.18 * Z)
        low = smooth(p[:, 1:2], frame.chin - 0.02, frame.chin - 0.25)
        wish = wish + low * Z * np.where(in_front, 0.5, -0.35)
        ahead = smooth(normal[:, 2:], 0.2, 0.7)
        wish = np.where(fringe[:, None], Z * (1 - ahead) - Y * ahead + 0.1 * side * X, wish)
        return wish + stray(p)

    body = (0.03 + 0.05 * a.hair_volume) * rng.uniform(0.5, 1.1, n)
    settle = lambda arc: 0.012 + body * (1 - np.exp(-arc / 0.14))  # noqa: E731
    _, normal = field(roots)
    start = normalize(0.45 * normal + normalize(flow(roots, normal, 0, 0)))

    points = grow(field, roots, start, length, 26, flow, settle, stiffness=0.6)
    points[~fringe] = clear_face(points[~fringe], frame, side[~fringe], 1.12)
    brow_cut = np.where(fringe[:, None], points[..., 1] - (frame.brow + 0.05 * frame.size), 1.0)
    ragged = 0.03 * rng.standard_normal(n)[:, None]
    return resample(points, cut(points, np.minimum(points[..., 1] - ends - ragged, brow_cut)), 14)


def _tied(a, frame, field, roots, side, rng):
    """Hair combed back over the skull to one knot, then wound to a bun or hanging as a tail."""
    n = len(roots)
    high = 0.30 if a.hair_style == "bun" and a.hair_part == "middle" else 0.14
    centre = np.array([0.0, frame.ear_top + 0.06, frame.ear_z - 0.03])
    aim = normalize(np.array([0.0, high, -0.45]) * frame.size)
    reach, _ = field(centre + aim * np.linspace(0.1, 0.6, 60)[:, None])
    knot = centre + aim * np.interp(0.035, reach, np.linspace(0.1, 0.6, 60))

    # Great arcs about the skull's centre from root to knot, laid on the skin at a height that grows towards the knot.
    t = np.linspace(0, 1, 13)[None, :, None]
    a0, a1 = normalize(roots - centre), aim[None]
    angle = np.arccos(np.clip((a0 * a1).sum(-1), -1, 1))[:, None, None]
    arc = (np.sin((1 - t) * angle) * a0[:, None] + np.sin(t * angle) * a1[:, None]) / np.maximum(np.sin(angle), 1e-6)
    radius = np.linalg.norm(roots - centre, axis=-1)[:, None, None] * (1 - t) + np.linalg.norm(knot - centre) * t
    points = centre + arc * radius
    height = 0.006 + (0.012 + 0.03 * a.hair_volume) * np.sin(np.pi * np.clip(t[..., 0] * 1.1, 0, 1)) ** 0.7
    height = height * rng.uniform(0.5, 1.0, (n, 1)) + 0.02 * t[..., 0] ** 4
    for _ in range(4):
        d, normal = field(points)
        points[:, 1:] += ((height - d)[..., None] * normal)[:, 1:] * smooth(1 - t[:, 1:], 0, 0.15)
    return points, knot, aim


def _bun(knot, aim, rng, size):
    """Strands wound about the axis `aim` into a ball: (N, S, 3) and their normals."""
    n, s = 700, 16
    turn = rng.uniform(0, 2 * np.pi, (n, 1)) + np.linspace(0, 2.2, s)
    lat = rng.uniform(-1, 1, (n, 1)) * 1.25 + 0.35 * np.sin(np.linspace(0, 3, s) + rng.uniform(0, 6, (n, 1)))
    shell = size * rng.uniform(0.82, 1.0, (n, 1))
    u = normalize(np.cross(aim, X))
    w = np.cross(aim, u)
    ring = np.cos(turn)[..., None] * u + np.sin(turn)[..., None] * w
    normal = np.cos(lat)[..., None] * ring + 0.75 * np.sin(lat)[..., None] * aim
    return knot + 0.55 * size * aim + shell[..., None] * normal, normalize(normal)


def _tail(a, knot, aim, field, frame, rng):
    """A ponytail: a bundle that leaves the knot, falls behind the neck and tapers to its tip."""
    n, s = 1500, 14
    drop = frame.size * (0.55 + 0.4 * a.hair_length)
    t = np.linspace(0, 1, s)[:, None]
    out = normalize(aim * [1, 0.2, 1])
    spine = knot + out * 0.16 * np.sin(np.minimum(t * 2.4, 1.5)) - Y * drop * t**1.35 - out * 0.05 * t
    angle, r = rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.random(n))
    girth = (0.035 + 0.055 * np.sin(np.pi * np.minimum(t[:, 0] * 1.25 + 0.1, 1)) ** 0.8) * (0.8 + 0.5 * a.hair_volume)
    along = normalize(np.gradient(spine, axis=0))
    up = normalize(np.cross(X, along))
    offset = np.cos(angle)[:, None, None] * X + np.sin(angle)[:, None, None] * up
    points = spine + (r[:, None] * girth)[..., None] * offset
    sway = _noise(rng, 0.02, 4)
    points = points + sway(points) * t
    points = resample(points, rng.uniform(0.86, 1, n))
    return points, np.broadcast_to(offset + 0.2 * out, points.shape)


def _afro(a, frame, field, roots, side, rng):
    """A rounded cloud: strands run straight out of the skull and wind tightly."""
    n = len(roots)
    heart = np.array([0, frame.ear_top + 0.10 * frame.size, frame.ear_z])
    out = normalize(roots - heart)
    length = (0.10 + 0.24 * a.hair_length) * (0.75 + 0.35 * smooth(out[:, 1], -0.5, 0.6)) * rng.uniform(0.8, 1.05, n)
    bump = _noise(rng, 0.10, 14)(roots).mean(-1)
    length = length * (1 + bump) * smooth(above_hairline(roots, frame, a), -0.02, 0.10)
    _, normal = field(roots)
    lean = normalize(0.75 * out + 0.35 * normal + np.array([0, 0.15, -0.22]) * smooth(out[:, 2:], 0.2, 0.8))
    return roots[:, None] + lean[:, None] * (length[:, None] * np.linspace(0, 1, 9))[..., None]


def grow_hair(shape, field: SkinField, attributes: Attributes) -> list[Mesh]:
    """Scalp hair of one person, empty for a bald one.

    shape: a HeadShape; field: `head_field(shape)`. Returns the strands and the dark under-layer that hides the scalp.
    """
    a, rng = attributes, attributes.rng("hair")
    if a.hair_style == "bald":
        return []
    frame = head_frame(shape)
    above = above_hairline(shape.vertices, frame, a) * (shape.masks["ears"] < 0.3) - (shape.masks["ears"] >= 0.3)
    count, clumps, strength, width = {
        "buzz": (9000, 9000, 0.0, 0.0040),
        "short": (6500, 420, 0.65, 0.0070),
        "side part": (6500, 380, 0.55, 0.0070),
        "slicked back": (6500, 330, 0.60, 0.0070),
        "pixie": (6500, 380, 0.65, 0.0070),
        "mohawk": (6500, 420, 0.60, 0.0065),
        "curly": (6000, 420, 0.85, 0.0075),
        "bob": (6500, 300, 0.60, 0.0080),
        "long": (6500, 300, 0.65, 0.0080),
        "bun": (6000, 260, 0.45, 0.0075),
        "ponytail": (6000, 260, 0.45, 0.0075),
        "afro": (7500, 1100, 0.75, 0.0075),
    }[a.hair_style]
    roots = sample_roots(shape.vertices, shape.faces, smooth(above, 0, 0.02), count, rng)
    part = {"left": 0.1, "middle": 0.007, "right": -0.1}[a.hair_part] * frame.size
    side = np.where(roots[:, :1] > part, 1.0, -1.0)  # (N, 1)
    extra = []
    if a.hair_style in ("bob", "long"):
        points = _fall(a, frame, field, roots, side, rng)
    elif a.hair_style in ("bun", "ponytail"):
        points, knot, aim = _tied(a, frame, field, roots, side, rng)
        extra = [_bun(knot, aim, rng, 0.10 + 0.05 * a.hair_length)] if a.hair_style == "bun" else [
            _tail(a, knot, aim, field, frame, rng)]  # fmt: skip
    elif a.hair_style == "afro":
        points = _afro(a, frame, field, roots, side, rng)
    else:
        points = _crop(a, frame, field, roots, side, rng)
    points, member = clump(points, clumps, strength, rng)
    points = field.push_out(points, 0.002)
    meshes = [_draw(points, field(points)[1], member, width, a, rng)]
    for points, normals in extra:
        points, member = clump(points, 60, 0.3, rng)
        meshes.append(_draw(points, normals, member, width, a, rng))
    return [*meshes, _underlay(shape, above, a)]


def _draw(points, normals, member, width, a, rng) -> Mesh:
    """Ribbons whose tint varies by clump and from root to tip."""
    n, s = points.shape[:2]
    t = np.linspace(0, 1, s)
    tint = np.exp(0.14 * rng.standard_normal(member.max() + 1))[member] * np.exp(0.05 * rng.standard_normal(n))
    shade = 0.75 + 0.35 * t
    radius = 0.5 * width * (1 - 0.65 * t**3) * np.ones((n, 1))
    albedo = np.clip(linear(HAIR_COLORS[a.hair_color]) * (tint[:, None] * shade)[..., None], 0, 1)
    return ribbons(points, radius, albedo, normals=normals)


def _underlay(shape, above, a) -> Mesh:
    """The scalp once more, dark as deep hair; it dips under the skin along the hairline, which so stays crisp."""
    height = np.clip(0.4 * above - 0.004, -0.01, 0.008)
    faces = shape.faces[(above > -0.03)[shape.faces].all(1)]
    used, index = np.unique(faces, return_inverse=True)
    vertices = (shape.vertices + height[:, None] * shape.normals)[used]
    return make_mesh(vertices, index.reshape(-1, 3), 0.5 * linear(HAIR_COLORS[a.hair_color]), SKIN, shape.normals[used])
