"""Glasses, hats and earrings, fitted to the person's own head."""

import numpy as np

from minirodin.avatars.attributes import COLORS, Attributes, linear
from minirodin.avatars.clothing import cloth_color
from minirodin.avatars.field import Frame, SkinField, head_frame
from minirodin.avatars.head import smoothstep
from minirodin.avatars.mesh import CLOTH, GLOSSY, LENS, Mesh, concatenate, make_mesh, normalize

X, Y, Z = np.eye(3)
HAT_CLEARANCE = 0.045  # of a hat above the skin, world units


def make_accessories(shape, field: SkinField, attributes: Attributes) -> list[Mesh]:
    """Glasses, hat and earrings that the attributes name. shape: a HeadShape; field: `head_field(shape)`."""
    a, meshes = attributes, []
    if a.glasses != "none":
        meshes += glasses(shape, field, a)
    if a.hat != "none":
        meshes.append((cap if a.hat == "cap" else beanie)(field, head_frame(shape), a))
    if a.earrings != "none":
        meshes.append(earrings(shape, a))
    return meshes


def tube(path, radius, closed: bool = False, sides: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of a round tube along a path (K, 3); radius: number or (K,)."""
    k = len(path)
    along = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    along = normalize(along)
    side = np.cross(along, np.where(np.abs(along[:, 1:2]) < 0.9, Y, X))
    side = normalize(side)
    up = np.cross(side, along)
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)[:, None]
    ring = np.cos(turn) * side[:, None] + np.sin(turn) * up[:, None]  # (K, sides, 3)
    vertices = (path[:, None] + np.broadcast_to(radius, k)[:, None, None] * ring).reshape(-1, 3)
    faces = grid_faces(k + closed, sides + 1)
    row, column = np.divmod(faces, sides + 1)
    faces = row % k * sides + column % sides
    if not closed:
        vertices = np.concatenate([vertices, path[[0, -1]]])
        i = np.arange(sides)
        start, end = np.full(sides, k * sides), np.full(sides, k * sides + 1)
        last = (k - 1) * sides
        caps = [np.stack([start, i, (i + 1) % sides], 1), np.stack([end, last + (i + 1) % sides, last + i], 1)]
        faces = np.concatenate([faces, *caps])
    return vertices, faces


def grid_faces(rows: int, columns: int) -> np.ndarray:
    """Triangles of a (rows, columns) grid of vertices."""
    a = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1, 1)
    return np.concatenate([a + np.array([0, columns, 1]), a + np.array([1, columns, columns + 1])])


def glasses_paths(shape, field: SkinField, a: Attributes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre lines of a pair of glasses: rims (2, K, 3), bridge (M, 3), temple arms (2, L, 3) from hinge to ear."""
    round_rim, turn = a.glasses == "round", np.linspace(0, 2 * np.pi, 56, endpoint=False)
    power = 2.0 if round_rim else 3.4  # superellipse
    unit = head_frame(shape).unit
    size = {"round": (0.074, 0.070), "square": (0.082, 0.058), "sun": (0.088, 0.068)}[a.glasses]
    wide, high = unit * np.array(size)
    cos, sin = np.cos(turn), np.sin(turn)
    outline = np.stack([np.sign(cos) * np.abs(cos) ** (2 / power), np.sign(sin) * np.abs(sin) ** (2 / power)], 1)
    eyes = np.array([eye.centre for eye in shape.eyes])
    apart, level = max(eyes[0, 0], wide + 0.030 * unit), eyes[:, 1].mean() - 0.008
    rims = []
    for sign in (1, -1):
        x = sign * (apart + wide * outline[:, 0])
        y = level + high * outline[:, 1] * np.where(outline[:, 1] < 0, 1 - 0.06 * sign * outline[:, 0], 1)
        rims.append(np.stack([x, y, -0.55 * x**2 + 0.06 * (y - level)], 1))  # wrapped about the face
    rims = np.array(rims)
    # The front moves forward until no rim touches skin or lashes.
    forward = np.linspace(0.40, 0.62, 45)
    free = [field(rims + z * Z)[0].min() > 0.012 for z in forward]
    lashes = max(shape.landmarks[f"{side}_upper_lid"][:, 2].max() for side in ("left", "right")) + 0.030
    front = max(forward[int(np.argmax(free))], lashes + 0.55 * apart**2)
    rims = rims + front * Z

    inner = np.array([apart - wide * 0.97, level + 0.25 * high, 0])
    u = np.linspace(-1, 1, 13)[:, None]
    bridge = np.concatenate([u * inner[0], level + 0.25 * high + 0.016 * unit * (1 - u**2), 0 * u], 1)
    bridge[:, 2] = front - 0.55 * bridge[:, 0] ** 2 + 0.010 * (1 - u[:, 0] ** 2)

    arms = []
    for sign, name in ((1, "left"), (-1, "right")):
        ear = shape.landmarks[f"{name}_ear_top"]
        hinge = np.array([sign * (apart + wide), level + 0.45 * high, 0])
        hinge[2] = front - 0.55 * hinge[0] ** 2
        seat = np.array([ear[0] - sign * 0.025, ear[1] - 0.006, ear[2] + 0.035])
        hook = seat - np.array([sign * 0.006, 0.055, 0.085])
        t = np.linspace(0, 1, 14)[:, None]
        straight = hinge + (seat - hinge) * t
        straight[:, 0] += sign * 0.012 * np.sin(np.pi * t[:, 0])
        u = np.linspace(0.2, 1, 5)[:, None]
        curve = seat + (hook - seat) * u + 0.012 * np.sin(np.pi * u) * Y
        arm = np.concatenate([straight, curve])
        depth, normal = field(arm)
        push = np.clip(0.010 - depth, 0, None) / np.maximum(np.abs(normal[:, 0]), 0.4)
        arm[:, 0] += sign * push * (np.arange(len(arm)) > 0)
        arms.append(arm)
    return rims, bridge, np.array(arms)


def glasses(shape, field: SkinField, a: Attributes) -> list[Mesh]:
    """A frame of thin tubes; dark lenses for sunglasses, none that could be seen otherwise."""
    rims, bridge, arms = glasses_paths(shape, field, a)
    thin = 0.0042 if a.frame_color in ("gold", "silver") else 0.0075
    color = linear(COLORS[a.frame_color])
    parts = [tube(rim, thin, closed=True) for rim in rims]
    parts += [tube(bridge, thin)] + [tube(arm, 0.9 * thin) for arm in arms]
    meshes = [make_mesh(v, f, color, GLOSSY) for v, f in parts]
    if a.glasses == "sun":
        tint = linear((0.10, 0.09, 0.09)) if a.frame_color != "brown" else linear((0.16, 0.10, 0.07))
        for rim in rims:
            shrink = np.linspace(1, 0, 6)[:, None, None]
            middle = rim.mean(0)
            disc = middle + shrink * (rim - middle) + 0.010 * (1 - shrink**2) * Z
            rings = np.concatenate([disc, disc[:, :1]], 1)  # closed round
            faces = grid_faces(6, rings.shape[1])
            faces = faces[:, ::-1] if rim[0, 0] > 0 else faces  # both rims start at their outer end, and run mirrored
            meshes.append(make_mesh(rings.reshape(-1, 3), faces, tint, LENS))
    return meshes


def hat_rim(frame: Frame, p) -> np.ndarray:
    """Height (...) of a hat's lower edge, a plane, at points (..., 3): over brows and ears, lower at the nape."""
    return frame.ear_top + 0.028 * frame.size + 0.27 * (p[..., 2] - frame.ear_z)


def dome(field: SkinField, frame: Frame, clearance: float, rows: int, columns: int = 144):
    """A hat's crown about the head: points (rows, columns + 1, 3) from rim to top, their azimuth and elevation.

    The first two rows tuck under the rim, so that no gap shows between hat and head.
    """
    heart = np.array([0, 0, frame.ear_z + 0.02])
    heart[1] = hat_rim(frame, heart)
    ahead = normalize(np.array([0, 0.27, 1.0]))
    up = np.cross(ahead, X)
    turn = np.linspace(0, 2 * np.pi, columns + 1)
    rise = np.concatenate([[0.02, 0.0], np.linspace(0, 0.5 * np.pi, rows - 2)])
    flat = np.sin(turn)[:, None] * X + np.cos(turn)[:, None] * ahead
    way = np.cos(rise)[:, None, None] * flat + np.sin(rise)[:, None, None] * up  # (rows, columns + 1, 3)
    ray = np.linspace(0.15, 0.65, 48)
    height = field(heart + ray[:, None, None, None] * way)[0]  # (48, rows, columns + 1)
    above = height > clearance
    first = np.maximum(above.argmax(0), 1)[None]
    h1, h0 = np.take_along_axis(height, first, 0)[0], np.take_along_axis(height, first - 1, 0)[0]
    reach = ray[first[0] - 1] + (ray[1] - ray[0]) * np.clip((clearance - h0) / np.maximum(h1 - h0, 1e-9), 0, 1)
    reach[:, -1] = reach[:, 0]
    reach[0] -= clearance - 0.002
    reach[1] -= 0.4 * clearance
    return heart + reach[..., None] * way, way, turn, rise


def beanie(field: SkinField, frame: Frame, a: Attributes) -> Mesh:
    """A knitted hat with ribs, a turned-up cuff and a little slack at the top."""
    points, way, turn, rise = dome(field, frame, HAT_CLEARANCE, 40)
    rib = np.cos(40 * turn) * smoothstep(1.5, 1.1, rise)[:, None]
    cuff = smoothstep(0.30, 0.27, rise) * smoothstep(-0.02, 0.05, rise)
    cuff[:2] = 0
    slack = 0.05 * np.sin(rise) ** 3 * (0.5 + a.rng("hat").random())
    points = points + (0.0035 * rib + (0.016 * cuff + slack)[:, None])[..., None] * way
    points[:2] = points[:2] - 0.004 * Y * np.array([0, 1])[:, None, None]
    shade = 1 + 0.14 * rib - 0.25 * (np.exp(-(((rise - 0.31) / 0.025) ** 2)))[:, None]
    albedo = cloth_color(a.hat_color) * shade[..., None]
    faces = grid_faces(*points.shape[:2])[:, ::-1]
    return make_mesh(points.reshape(-1, 3), faces, np.clip(albedo.reshape(-1, 3), 0, 1), CLOTH)


def cap(field: SkinField, frame: Frame, a: Attributes) -> Mesh:
    """A baseball cap: a crown of six panels, a button and a curved brim over the brows."""
    points, way, turn, rise = dome(field, frame, HAT_CLEARANCE, 36)
    tall = 0.022 * np.clip(np.cos(turn), 0, 1) * np.sin(2 * rise)[:, None]  # stiff front panels
    points = points + tall[..., None] * way
    seam = np.exp(-((np.sin(3 * turn) / 0.06) ** 2)) * smoothstep(0.02, 0.1, rise)[:, None]
    color = cloth_color(a.hat_color)
    albedo = color * (1 - 0.35 * seam - 0.2 * np.exp(-(((rise - 0.10) / 0.02) ** 2))[:, None])[..., None]
    crown = make_mesh(points.reshape(-1, 3), grid_faces(*points.shape[:2])[:, ::-1], albedo.reshape(-1, 3), CLOTH)

    across, outward = np.linspace(-1, 1, 41), np.linspace(-0.06, 1, 14)
    angle = np.deg2rad(62) * across
    index = np.interp(angle % (2 * np.pi), turn, np.arange(len(turn)))
    i = np.minimum(index.astype(int), len(turn) - 2)
    base = points[2, i] + (index - i)[:, None] * (points[2, i + 1] - points[2, i])  # (41, 3) along the rim
    length = 0.215 * np.sqrt(np.clip(1 - across**2, 0, 1)) ** 0.8
    brim = base[None] + (outward[:, None] * length)[..., None] * np.array([0, -0.20, 1.0])
    brim[..., 1] -= 0.55 * smoothstep(0, 1, np.clip(outward, 0, 1))[:, None] * brim[..., 0] ** 2
    thick = 0.005 * Y
    rows, columns = brim.shape[:2]
    sheet = grid_faces(rows, columns)
    both = np.concatenate([(brim + thick).reshape(-1, 3), (brim - thick).reshape(-1, 3)])
    edge = np.concatenate([np.arange(rows) * columns, (rows - 1) * columns + np.arange(columns),
                           (np.arange(rows) * columns + columns - 1)[::-1]])  # fmt: skip
    wall = np.stack([edge[:-1], edge[1:], edge[:-1] + rows * columns], 1)
    wall = np.concatenate([wall, np.stack([edge[1:], edge[1:] + rows * columns, edge[:-1] + rows * columns], 1)])
    faces = np.concatenate([sheet, sheet[:, ::-1] + rows * columns, wall])
    visor = make_mesh(both, faces, 0.92 * color, CLOTH)
    button = ball(points[-1, 0] - 0.004 * Y, 0.016, [1, 0.5, 1])
    return concatenate([crown, visor, make_mesh(*button, 0.8 * color, CLOTH)])


def ball(centre, radius: float, scale=(1, 1, 1), rings: int = 9, sectors: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of an ellipsoid."""
    polar, turn = np.linspace(0, np.pi, rings)[:, None], np.linspace(0, 2 * np.pi, sectors + 1)
    unit = np.stack(np.broadcast_arrays(np.sin(polar) * np.sin(turn), np.cos(polar), np.sin(polar) * np.cos(turn)), -1)
    return (centre + radius * unit * scale).reshape(-1, 3), grid_faces(rings, sectors + 1)


def earrings(shape, a: Attributes) -> Mesh:
    """Studs on the lobes, or hoops that hang from them."""
    color, size, meshes = linear(COLORS[a.earring_color]), a.rng("earrings").random(), []
    for name, sign in (("left", 1), ("right", -1)):
        lobe = shape.landmarks[f"{name}_ear_lobe"] + [sign * 0.004, 0.018, 0.004]
        if a.earrings == "studs":
            parts = ball(lobe + sign * 0.008 * X, 0.011 + 0.006 * size)
        else:
            turn, radius = np.linspace(0, 2 * np.pi, 40, endpoint=False)[:, None], 0.035 + 0.03 * size
            flat = normalize(np.array([-0.35 * sign, 0, 1.0]))
            ring = lobe - (radius - 0.004) * Y + radius * (np.sin(turn) * flat + np.cos(turn) * Y)
            parts = tube(ring, 0.0045, closed=True)
        meshes.append(make_mesh(*parts, color, GLOSSY))
    return concatenate(meshes)
