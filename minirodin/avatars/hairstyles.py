"""The shapes of hair: how strands of each style leave the scalp, flow over the person's own head and end."""

from dataclasses import dataclass, replace

import numpy as np

from minirodin.avatars.attributes import Attributes
from minirodin.avatars.field import Frame, SkinField
from minirodin.avatars.head import smoothstep
from minirodin.avatars.mesh import dot, norm, normalize
from minirodin.avatars.strands import curl, cut, grow, resample

X, Y, Z = np.eye(3)


@dataclass(frozen=True)
class Scalp:
    """Where the strands of one person start.

    Attributes:
        roots: (N, 3); normals (N, 3) of the skin there.
        above: (N,) height above the hairline, world units.
        side: (N, 1) +1 for strands that fall to the person's left of the parting, -1 to the right.
    """

    roots: np.ndarray
    normals: np.ndarray
    above: np.ndarray
    side: np.ndarray
    frame: Frame
    field: SkinField

    def first(self, n: int) -> "Scalp":
        """A fair sample of n of the roots."""
        return replace(self, roots=self.roots[:n], normals=self.normals[:n], above=self.above[:n], side=self.side[:n])


@dataclass(frozen=True)
class Bundle:
    """Strands before they are clumped, curled and cleared.

    Attributes:
        points: (N, S + 1, 3), root first.
        clumps: number of locks; strength in [0, 1] of their pull at the tips.
        width: of a strand, world units.
        curl: amplitude of the winding, world units; wavelength likewise.
        normals: (N, S + 1, 3) shading normals, from the skin field where None.
        fringe: (N,) strands that may hang over the forehead.
    """

    points: np.ndarray
    clumps: int
    strength: float
    width: float
    curl: float = 0.0
    wavelength: float = 0.2
    normals: np.ndarray | None = None
    fringe: np.ndarray | None = None


def strays(rng, scale: float, frequency: float):
    """A smooth random vector field p (..., 3) -> (..., 3): neighbouring strands stray together."""
    k, phase = rng.normal(0, frequency, (4, 3, 3)), rng.uniform(0, 2 * np.pi, (4, 3))
    return lambda p: scale * sum(np.sin(p @ k[i] + phase[i]) for i in range(4))


def part_offset(a: Attributes, frame: Frame) -> float:
    """Where the parting lies, x in world units."""
    return {"left": 0.11, "middle": 0.006, "right": -0.11}[a.hair_part] * frame.size


def from_parting(p, a: Attributes, scalp: Scalp) -> np.ndarray:
    """Unit direction (N, 3) away from the parting; behind the crown it fans out so that no gap opens there."""
    behind = np.clip(p[:, 2:] - (scalp.frame.ear_z - 0.10), None, 0)
    reach = np.where(behind < 0, p[:, :1] - part_offset(a, scalp.frame), 0.3 * scalp.side)
    return normalize(np.concatenate([reach, np.zeros_like(reach), 1.2 * behind], 1))


def cropped(a: Attributes, scalp: Scalp, rng) -> Bundle:
    """Buzz cut to mohawk: hair leaves a whorl at the crown, or a parting, and lies close to the skull."""
    roots, frame = scalp.roots, scalp.frame
    n, style = len(roots), a.hair_style
    low, high = {  # length at the sides and on top, of the shortest and the longest hair of the style
        "buzz": ((0.018, 0.020), (0.028, 0.034)),
        "short": ((0.05, 0.13), (0.08, 0.22)),
        "side part": ((0.05, 0.26), (0.09, 0.36)),
        "slicked back": ((0.08, 0.34), (0.13, 0.46)),
        "pixie": ((0.12, 0.20), (0.18, 0.30)),
        "mohawk": ((0.016, 0.20), (0.024, 0.34)),
    }[style]
    sides, crown = np.array(low) + a.hair_length * (np.array(high) - np.array(low))
    top = smoothstep(frame.ear_top + 0.05, frame.ear_top + 0.28, roots[:, 1])  # 0 at the sides and the nape
    if style == "mohawk":
        top = smoothstep(0.13, 0.08, np.abs(roots[:, 0])) * smoothstep(frame.ear_top, frame.ear_top + 0.12, roots[:, 1])
    length = (sides + (crown - sides) * top) * frame.unit * rng.uniform(0.85, 1.1, n)
    length = length * (0.6 + 0.4 * smoothstep(0, 0.06, scalp.above))  # the hairline's own hair is short
    whorl = np.array([-0.03 if a.hair_part == "right" else 0.03, frame.crown, frame.ear_z - 0.16])
    sweep = {"left": -X, "middle": 0 * X, "right": X}[a.hair_part]
    stray = strays(rng, 0.10, 9)

    def flow(p, normal, t, arc):
        away = p - whorl
        reach = norm(away)[..., None]
        away = away / reach
        sideways, back = np.abs(normal[:, :1]), np.clip(-normal[:, 2:], 0, 1)
        if style == "slicked back":
            wish = -Z - Y * (0.35 * sideways + 1.2 * back) + 0.25 * X * normal[:, :1]
        elif style == "side part":
            wish = 0.9 * from_parting(p, a, scalp) - Y * smoothstep(0.5, 0.9, sideways + back) - 0.4 * Z
        elif style == "mohawk":
            wish = np.where(top[:, None] > 0.2, 0.6 * Y + 0.8 * normal - 0.3 * t * Z, away - 0.4 * Y)
        else:
            swirl = 0.6 * np.cross(normal, away) * np.exp(-reach / 0.12)
            wish = away + swirl - Y * (0.5 * sideways + 0.5 * back) + (0.4 * top)[:, None] * sweep
            ahead = smoothstep(0.45, 0.8, normal[:, 2:])
            if not a.fringe:  # turned aside before it covers the forehead
                wish = wish + ahead * (0.9 * from_parting(p, a, scalp) - 0.9 * Z + 0.5 * Y)
        return wish + stray(p)

    body = 0.010 + (0.015 + 0.040 * a.hair_volume) * top * (style != "buzz")
    body = body + 2 * top * (style == "mohawk")
    settle = lambda arc: 0.003 + body * np.minimum(1, arc / (1.3 * body))  # noqa: E731
    upright = {"slicked back": 0.3, "mohawk": 1.5, "buzz": 0.35}.get(style, 0.55)
    start = normalize(upright * scalp.normals + normalize(flow(roots, scalp.normals, 0, 0)))
    if style not in ("slicked back", "side part"):  # at the whorl hair stands in all directions, and so hides the scalp
        core = np.exp(-((norm(roots - whorl) / 0.10) ** 2))[:, None]
        start = normalize(start + core * (1.6 * rng.standard_normal((n, 3)) * [1, 0, 1] + 0.4 * scalp.normals))
        length = length * (1 - (0.15 if style == "mohawk" else 0.5) * core[:, 0])  # long ones would be antennae
    points = grow(scalp.field, roots, start, length, 3 if style == "buzz" else 10, flow, settle, stiffness=0.6)
    fringe = np.full(n, a.fringe or style == "short")
    if style == "buzz":
        return Bundle(points, clumps=500, strength=0.0, width=0.005, fringe=fringe)
    waves = 0.008 * a.hair_curl
    return Bundle(points, clumps=520, strength=0.42, width=0.0068, curl=waves, wavelength=0.09, fringe=fringe)


def falling(a: Attributes, scalp: Scalp, rng) -> Bundle:
    """Bob and long hair: away from the parting, over the sides of the head, then down, clear of the face."""
    curly = a.hair_texture == "curly"
    scalp = scalp.first(360) if curly else scalp
    roots, frame, side, n = scalp.roots, scalp.frame, scalp.side, len(scalp.roots)
    azimuth = np.rad2deg(frame.azimuth(roots))
    ends = frame.chin + (0.07 - 0.16 * a.hair_length if a.hair_style == "bob" else -0.13 - 0.26 * a.hair_length)
    length = np.clip(roots[:, 1] - ends, 0.05, None) * 1.15 + 0.22
    fringe = a.fringe & (azimuth < 42) & (scalp.above < 0.13)
    length[fringe] = 0.45
    in_front = np.where(azimuth < 88, 0.8, -0.3)[:, None]  # of the shoulder
    stray = strays(rng, 0.06, 6)

    def flow(p, normal, t, arc):
        steep = 1.1 * (np.abs(normal[:, :1]) + np.clip(-normal[:, 2:], 0, 1))
        y = p[:, 1:2]
        down = np.maximum(smoothstep(0.35, 0.95, steep), smoothstep(frame.ear_top + 0.12, frame.ear_top - 0.05, y))
        # On the shoulders hair slides to the front or to the back, until they fall off.
        fall = Y * (1 - smoothstep(0.25, 0.6, normal[:, 1:2]) * smoothstep(frame.chin, frame.chin - 0.1, y))
        wish = (1 - down) * (from_parting(p, a, scalp) - 0.45 * Z) - down * (fall + 0.18 * Z)
        low = smoothstep(frame.chin + 0.10, frame.chin - 0.15, y)  # before or behind the shoulder, never astride
        wish = wish + low * (in_front * Z - np.where(in_front > 0, 0.35, 0.08) * np.sign(p[:, :1]) * X)
        ahead = smoothstep(0.2, 0.7, normal[:, 2:])
        wish = np.where(fringe[:, None], (1 - ahead) * Z - ahead * Y + 0.15 * side * X, wish)
        return wish + stray(p)

    ear = np.array([0.27, frame.ear_top - 0.08, frame.ear_z])
    body = np.where(fringe, 0.016, 0.03 + 0.05 * a.hair_volume) * rng.uniform(0.5, 1.1, n)
    settle = lambda arc: 0.012 + body * (1 - np.exp(-arc / 0.09))  # noqa: E731
    start = normalize(0.45 * scalp.normals + normalize(flow(roots, scalp.normals, 0, 0)))
    points = grow(scalp.field, roots, start, length, 32, flow, settle, stiffness=0.6)
    over_ear = np.exp(-((norm(np.abs(points) * [1, 1, 1] - ear) / 0.13) ** 2))
    points = points + 0.05 * (over_ear * np.linspace(0, 1, 33))[..., None] * (side * X)[:, None]
    points[~fringe] = clear_face(points[~fringe], frame, side[~fringe], 1.12)
    ragged = 0.03 * rng.standard_normal((n, 1))
    low = np.where(fringe[:, None], frame.brow + 0.05 * frame.size, ends)
    room = points[..., 1] - low - ragged * np.where(fringe[:, None], 0.3, 1)
    beside = (0.34 + 0.05 * a.hair_volume) * frame.unit - np.abs(points[..., 0])  # no ends stick out over a shoulder
    room = np.minimum(room, np.where(points[..., 1] < frame.chin, beside, 1))
    if a.clothing == "hoodie":  # at the back hair ends in the hood
        room = np.where(azimuth[:, None] < 60, room, np.minimum(room, above_hood(points, scalp)))
    points = resample(points, cut(points, room), 32 if curly else 16, power=1.35 - 0.2 * curly)
    if a.clothing == "hoodie":
        behind = azimuth >= 60
        points[behind] = into_hood(points[behind], scalp)
    if curly:
        points = ringlets(points, (0.018 + 0.010 * a.hair_volume) * frame.unit, 0.15, 11, scalp.field, rng)
        return Bundle(points, clumps=360, strength=0.0, width=0.0095, fringe=np.repeat(fringe, 11))
    waves = 0.022 * float(smoothstep(0.25, 0.67, np.array(a.hair_curl)))
    return Bundle(points, clumps=280, strength=0.62, width=0.0085, curl=waves, wavelength=0.22, fringe=fringe)


def curls(a: Attributes, scalp: Scalp, rng) -> Bundle:
    """A mop of ringlets: locks leave the scalp upright, then hang from it, each a bundle about one helix."""
    locks, each, steps = 350, 11, 34
    scalp = scalp.first(locks)
    frame, roots, side = scalp.frame, scalp.roots, scalp.side
    fringe = a.fringe & (frame.azimuth(roots) < 0.75) & (scalp.above < 0.14)
    nape = 0.5 + 0.5 * smoothstep(frame.chin + 0.2, frame.ear_top + 0.1, roots[:, 1])
    length = (0.26 + 0.20 * a.hair_length) * frame.unit * nape * rng.uniform(0.75, 1.15, locks)
    stray = strays(rng, 0.16, 9)
    body = (0.03 + 0.06 * a.hair_volume) * rng.uniform(0.2, 1.1, locks)

    def flow(p, normal, t, arc):
        down = smoothstep(0.3, 0.9, np.abs(normal[:, :1]) + np.clip(-normal[:, 2:], 0, 1))
        wish = (1 - down) * (from_parting(p, a, scalp) - 0.3 * Z) - down * Y
        ahead = smoothstep(0.2, 0.7, normal[:, 2:])
        return np.where(fringe[:, None], (1 - ahead) * Z - ahead * Y + 0.3 * side * X, wish) + stray(p)

    settle = lambda arc: 0.01 + body * (1 - np.exp(-arc / 0.05))  # noqa: E731
    start = normalize(scalp.normals + 0.5 * normalize(flow(roots, scalp.normals, 0, 0)))
    axis = grow(scalp.field, roots, start, length, steps, flow, settle, stiffness=0.65)
    axis[~fringe] = clear_face(axis[~fringe], frame, side[~fringe], 1.0)
    if a.clothing == "hoodie":
        axis = into_hood(resample(axis, cut(axis, above_hood(axis, scalp))), scalp)
    radius = (0.017 + 0.010 * a.hair_volume) * frame.unit
    points = ringlets(axis, radius, 0.09 * frame.unit, each, scalp.field, rng)
    return Bundle(points, clumps=locks, strength=0.0, width=0.0095, fringe=np.repeat(fringe, each))


def above_hood(p, scalp: Scalp) -> np.ndarray:
    """Positive (N, S) until a strand comes to lie over a hood, or goes into it."""
    y, chin = p[..., 1], scalp.frame.chin
    landed = np.where(y < chin + 0.14, 0.42 - scalp.field(p)[1][..., 1], 1)
    return np.minimum(landed, y - (chin - 0.05))


def into_hood(p, scalp: Scalp) -> np.ndarray:
    """Strands (N, S, 3) that `above_hood` has cut, drawn down to the hood below their ends: no gap bares the neck."""
    height, normal = scalp.field(p[:, -1])
    over = (p[:, -1, 1] < scalp.frame.chin + 0.15) & (normal[:, 1] > 0.3)
    drop = np.where(over, np.clip(height / np.maximum(normal[:, 1], 0.3), 0, 0.16) + 0.02, 0)
    return p - (drop[:, None] * smoothstep(0.4, 1, np.linspace(0, 1, p.shape[1])))[..., None] * Y


def ringlets(axis, radius: float, wavelength: float, each: int, field: SkinField, rng) -> np.ndarray:
    """`each` strands about every axis (N, S + 1, 3), all wound to one helix: (N * each, S + 1, 3)."""
    n, s = axis.shape[:2]
    swell = radius * rng.uniform(0.8, 1.2, (n, 1)) * smoothstep(0, 0.25, np.linspace(0, 1, s))
    helix = curl(axis, swell, wavelength * rng.uniform(0.8, 1.2, n), rng.uniform(0, 2 * np.pi, n), field(axis)[1])
    spread = 0.35 * radius * np.concatenate([[2.2], np.linspace(1, 0.6, s - 1)])[:, None]
    points = helix[:, None] + spread * rng.standard_normal((n, each, 1, 3))
    return resample(points.reshape(n * each, s, 3), rng.uniform(0.88, 1, n * each))


def clear_face(p, frame: Frame, side, reach: float) -> np.ndarray:
    """Points (N, S, 3) turned about the vertical axis until they frame the face, `reach` radians off its middle."""
    y, ahead = p[..., 1], p[..., 2] - frame.ear_z
    angle = np.where(ahead > 0, np.arctan2(side * p[..., 0], ahead), np.pi)
    share = smoothstep(frame.eye + 0.36 * frame.size, frame.brow, y)  # not yet at the hairline, wholly at the brows
    least = reach * share * (0.45 + 0.55 * smoothstep(frame.chin - 0.3, frame.chin, y))
    turned = angle + share * (least + 0.12 * np.clip(angle - least, -1, 0) - angle)
    radius = np.hypot(p[..., 0], ahead)
    x = np.where(angle < least, side * radius * np.sin(turned), p[..., 0])
    z = np.where(angle < least, frame.ear_z + radius * np.cos(turned), p[..., 2])
    return np.stack([x, y, z], -1)


def tied(a: Attributes, scalp: Scalp, rng) -> list[Bundle]:
    """Bun and ponytail: hair combed back over the skull to one knot, then wound into a ball or hanging as a tail."""
    roots, frame, field = scalp.roots, scalp.frame, scalp.field
    heart = np.array([0.0, frame.ear_top + 0.06, frame.ear_z - 0.03])
    high = 0.34 if a.hair_style == "bun" and a.hair_part == "middle" else 0.10 + 0.08 * a.hair_volume
    high = high if a.hat == "none" else -0.20  # the knot stays below a hat's rim
    aim = normalize(np.array([0.0, high, -0.40]))
    ray = np.linspace(0.1, 0.7, 90)
    knot = heart + aim * np.interp(0.03, field(heart + aim * ray[:, None])[0], ray)

    # Great arcs about the skull's heart from root to knot, laid on the skin.
    t = np.linspace(0, 1, 13)[None, :, None]
    start = normalize(roots - heart)
    angle = np.arccos(np.clip(start @ aim, -1, 1))[:, None, None]
    arc = (np.sin((1 - t) * angle) * start[:, None] + np.sin(t * angle) * aim) / np.maximum(np.sin(angle), 1e-6)
    radius = norm(roots - heart)[:, None, None] * (1 - t) + np.linalg.norm(knot - heart) * t
    points = heart + radius * arc
    u = t[..., 0]
    height = (0.010 + 0.03 * a.hair_volume) * np.sin(np.pi * np.minimum(1.1 * u, 1)) ** 0.7
    height = 0.004 + height * rng.uniform(0.4, 1.0, (len(roots), 1)) + 0.02 * u**4
    for _ in range(4):
        d, normal = field(points)
        points = points + ((height - d) * smoothstep(0, 0.05, u) * smoothstep(1, 0.85, u))[..., None] * normal
    combed = Bundle(points, clumps=240, strength=0.4, width=0.008, curl=0.006 * a.hair_curl, wavelength=0.16)
    return [combed, bun(a, knot, aim, rng) if a.hair_style == "bun" else tail(a, knot, aim, frame, rng)]


def bun(a: Attributes, knot, aim, rng) -> Bundle:
    """Strands wound about the knot into a ball."""
    n, s = 900, 16
    size = 0.085 + 0.05 * a.hair_length
    turn = rng.uniform(0, 2 * np.pi, (n, 1)) + np.linspace(0, 2.2, s)
    latitude = 1.3 * rng.uniform(-1, 1, (n, 1)) + 0.35 * np.sin(np.linspace(0, 3, s) + rng.uniform(0, 6, (n, 1)))
    u = normalize(np.cross(aim, X))
    ring = np.cos(turn)[..., None] * u + np.sin(turn)[..., None] * np.cross(aim, u)
    normal = np.cos(latitude)[..., None] * ring + 0.8 * np.sin(latitude)[..., None] * aim
    points = knot + 0.6 * size * aim + (size * rng.uniform(0.8, 1.0, (n, 1)))[..., None] * normal
    return Bundle(points, clumps=60, strength=0.3, width=0.009, normals=normalize(normal))


def tail(a: Attributes, knot, aim, frame: Frame, rng) -> Bundle:
    """A bundle that leaves the knot, falls behind the neck and tapers to its tip."""
    n, s = 1800, 15
    t = np.linspace(0, 1, s)[:, None]
    out = normalize(aim * [1, 0.2, 1])
    drop = frame.size * (0.75 + 0.35 * a.hair_length)
    spine = knot + 0.20 * out * np.sin(np.minimum(2.6 * t, 1.9)) - drop * Y * t**1.3 - 0.05 * out * t
    girth = 0.028 + 0.085 * np.sin(np.pi * np.minimum(0.95 * t[:, 0] + 0.02, 1)) ** 0.7 * (0.75 + 0.5 * a.hair_volume)
    angle, r = rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.random(n))
    up = normalize(np.cross(X, np.gradient(spine, axis=0)))
    around = np.cos(angle)[:, None, None] * X + np.sin(angle)[:, None, None] * up
    points = spine + (r[:, None] * girth)[..., None] * around
    points = points + strays(rng, 0.02, 4)(points) * t
    points = resample(points, rng.uniform(0.8, 1, n))
    waves = 0.03 * float(smoothstep(0.25, 1, np.array(a.hair_curl)))
    normals = normalize(around + 0.2 * out)
    return Bundle(points, 90, 0.5, 0.009, curl=waves, wavelength=0.3 - 0.15 * a.hair_curl, normals=normals)


def afro_height(a: Attributes, scalp_points, above, frame: Frame) -> np.ndarray:
    """How far (...) an afro stands out over points of the scalp: less above the nape, nothing at the hairline."""
    high = smoothstep(frame.eye - 0.2, frame.eye + 0.25, scalp_points[..., 1])
    return (0.09 + 0.22 * a.hair_length) * (0.6 + 0.4 * high) * smoothstep(-0.01, 0.11, above) ** 0.6


def afro_lean(points, normals, frame: Frame) -> np.ndarray:
    """The direction (..., 3) an afro grows in: out of the skull, and up and back at the forehead."""
    out = normalize(points - np.array([0, frame.ear_top + 0.08 * frame.size, frame.ear_z]))
    ahead = smoothstep(0.2, 0.8, out[..., 2:])
    return normalize(0.7 * out + 0.3 * normals + ahead * np.array([0, 0.25, -0.25]))


def afro(a: Attributes, scalp: Scalp, rng) -> Bundle:
    """A rounded cloud: small coils in its outer third, over an under-layer that fills the rest."""
    n, s = len(scalp.roots), 11
    height = afro_height(a, scalp.roots, scalp.above, scalp.frame) * (1 + strays(rng, 0.03, 10)(scalp.roots).mean(-1))
    out = afro_lean(scalp.roots, scalp.normals, scalp.frame)
    depth = 0.72 + 0.28 * np.sqrt(rng.random(n))
    size = np.minimum(0.018 + 0.012 * rng.random(n), 0.3 * height)[:, None, None]
    first, second = normalize(rng.standard_normal((2, n, 3)))
    second = normalize(second - dot(second, first)[..., None] * first)
    turn = np.linspace(0, 2.6 * np.pi, s)[None, :, None] + rng.uniform(0, 6, (n, 1, 1))
    coil = np.cos(turn) * first[:, None] + np.sin(turn) * second[:, None]
    middle = scalp.roots + (depth * height)[:, None] * out
    drift = np.linspace(-0.5, 0.5, s)[None, :, None] * out[:, None]
    normals = normalize(out[:, None] + 0.5 * coil)
    return Bundle(middle[:, None] + size * (coil + 1.5 * drift), clumps=700, strength=0.0, width=0.008, normals=normals)
