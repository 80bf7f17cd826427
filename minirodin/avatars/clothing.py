"""Clothes: a t-shirt, a shirt with a collar or a hoodie, cut from the smoothed torso and lifted off the skin."""

import numpy as np
from scipy.spatial import cKDTree

from minirodin.avatars.attributes import COLORS, Attributes, linear
from minirodin.avatars.head import HeadShape, bottom, load_head, smoothstep
from minirodin.avatars.mesh import CLOTH, GLOSSY, Mesh, make_mesh, vertex_normals
from minirodin.avatars.skin import waves

UP = np.array([0.0, 1.0, 0.0])


def cloth_color(name: str) -> np.ndarray:
    """Linear RGB (3,) of a named colour on cloth, which is less pure than its dye and never as bright as paper."""
    dye = linear(COLORS[name])
    grey = dye @ [0.21, 0.72, 0.07]
    return np.clip(0.80 * dye + 0.14 * grey, 0.012, 0.75)


def dress(shape: HeadShape, a: Attributes) -> tuple[list[Mesh], np.ndarray]:
    """The clothes of a person, and which skin vertices (V,) they hide entirely."""
    rng, rest = a.rng("clothing"), shape.rest
    shift = rng.normal(0, 0.1, 3)
    colour = cloth_color(a.clothing_color) * np.exp(0.25 * shift + 0.75 * shift.mean())  # lighter or darker, same hue
    depth = collar_line(rest, 0.06 * rng.random() if a.clothing == "t-shirt" else 0.0)  # how far below the neckline
    if a.clothing == "shirt":  # an open V in front
        open_front = rng.uniform(0.06, 0.16)
        front = smoothstep(0.0, 0.15, rest[:, 2])
        depth = depth - front * open_front * np.exp(-((rest[:, 0] / 0.075) ** 2))
    sheet, inner = _sheet(shape, depth, rng, thick=0.022 if a.clothing == "hoodie" else 0.012)

    shade = 1 + 0.03 * waves(rest, rng, 30)
    vertices, faces, (shade, pattern) = _clip(depth, shape.faces, sheet, inner, [shade, _pattern(rest, depth, a, rng)])
    cloth = make_mesh(vertices, faces, np.clip(colour * shade[:, None], 0, 0.9), CLOTH, tangents=pattern)
    meshes = [cloth]
    ring = _neck_ring(shape)
    if a.clothing == "shirt":
        meshes += _collar(ring, cloth, colour, rng) + _buttons(cloth, open_front, colour)
    elif a.clothing == "hoodie":
        meshes += _hood(ring, cloth, colour, rng)
    return meshes, depth > 0.06


def collar_line(rest: np.ndarray, lower: float = 0.0) -> np.ndarray:
    """Depth (V,) of points of the average head below a crew neckline: half an ellipse in front, shallow behind."""
    x, y, z = rest.T
    below = np.minimum(y + 0.30, 0)
    wide, deep = 0.25 + 0.4 * lower, 0.055 + (0.175 + lower) * smoothstep(-0.15, 0.12, z)
    h = np.hypot(x / wide, below / deep)
    slope = np.hypot(x / wide**2, below / deep**2) / np.maximum(h, 1e-6)
    return np.minimum((h - 1) / np.maximum(slope, 1.0), 3 * (-0.285 - y))


def _sheet(shape: HeadShape, depth: np.ndarray, rng, thick: float) -> tuple[np.ndarray, np.ndarray]:
    """Outer and inner positions (V, 3) of the cloth at every vertex of the skin."""
    model, points = load_head(), shape.coarse.copy()
    rest = shape.rest[: model.count]
    loose = smoothstep(-0.36, -0.5, rest[:, 1])[:, None]
    loose[model.loop] = 0
    loose[model.ranges["cap"]] = 0
    for _ in range(8):  # cloth spans hollows: collar bones, the cleft of the chest
        points = points + 0.6 * loose * (model.neighbours @ points - points)
    base = shape.surface.matrix @ points
    normals = vertex_normals(base, shape.faces)
    rest = shape.rest
    edge = shape.vertices[:, 1] - bottom(shape.vertices)
    low = smoothstep(0.05, 0.3, depth) * smoothstep(0.0, 0.1, edge)
    drape = waves(rest * [1.0, 0.35, 1.0], rng, 13, 6)  # folds that hang down
    slanted = rest @ np.array([[0.7, 0.7, 0], [-0.5, 0.5, 0.2], [0, 0, 0.6]])
    pull = waves(slanted, rng, 16, 5)  # folds from the shoulders
    folds = 0.012 * (1 - np.abs(drape)) + 0.007 * (1 - np.abs(pull))
    rib = smoothstep(0.045, 0.03, depth)
    bump = 0.007 * rib * np.clip(depth / 0.02, 0, 1)
    seam = np.exp(-((_seam(rest) / 0.012) ** 2))
    lift = thick + low * folds + bump - 0.004 * seam * low - 0.003 * np.exp(-(((depth - 0.042) / 0.006) ** 2))
    sheet = base + lift[:, None] * normals
    gap = ((sheet - shape.vertices) * shape.normals).sum(axis=1)
    sheet = sheet + np.clip(0.6 * thick - gap, 0, None)[:, None] * shape.normals
    return sheet, shape.vertices - 0.004 * shape.normals


def _seam(rest: np.ndarray) -> np.ndarray:
    """Distance (V,) outwards from the seam where the sleeve begins."""
    return np.abs(rest[:, 0]) - 0.53 - 0.10 * (rest[:, 1] + 0.6)


def _pattern(rest: np.ndarray, depth: np.ndarray, a: Attributes, rng) -> np.ndarray:
    """What the shader draws collar line, seams and pattern from: depth, distance from the seam, style (V, 3)."""
    light = np.mean(linear(COLORS[a.clothing_color])) < 0.3
    stripes = (1.0 if light else 2.0) + rng.uniform(0.1, 0.9)  # 1 light, 2 dark; the fraction is their width
    plain = 3.0 if a.clothing == "t-shirt" and rng.random() < 0.25 else 0.0  # 3: a dark collar
    style = {"plain": plain, "stripes": stripes, "checks": 4.0}[a.clothing_pattern]
    return np.stack([depth, _seam(rest), np.full(len(rest), style)], axis=1)


def _clip(depth, faces, sheet, inner, values):
    """The part of a surface with depth ≥ 0, cut exactly there, its edge turned in down to `inner`.

    Returns vertices, triangles and `values` carried along.
    """
    inside = depth[faces] >= 0
    count = inside.sum(axis=1)
    kept = faces[count == 3]
    pieces, edges = [kept], []
    for n in (1, 2):  # one corner inside leaves a triangle, two leave a quad
        cut = faces[count == n]
        flag = depth[cut] >= 0
        first = np.argmax(flag, axis=1) if n == 1 else (np.argmin(flag, axis=1) + 1) % 3
        p, q, r = (np.take_along_axis(cut, ((first + k) % 3)[:, None], 1)[:, 0] for k in range(3))
        edges.append((p, q, r, n))
    (p1, q1, r1, _), (p2, q2, r2, _) = edges
    pairs = np.concatenate([np.stack(e, 1) for e in ((p1, q1), (p1, r1), (q2, r2), (p2, r2))])  # inside, outside
    unique, index = np.unique(pairs, axis=0, return_inverse=True)
    index = index.ravel() + len(depth)
    a1, b1, a2, b2 = np.split(index, np.cumsum([len(p1), len(p1), len(p2)]))
    pieces += [np.stack([p1, a1, b1], 1), np.stack([p2, q2, a2], 1), np.stack([p2, a2, b2], 1)]
    border = np.concatenate([np.stack([b1, a1], 1), np.stack([b2, a2], 1)])  # directed against the surface
    t = (depth[unique[:, 0]] / (depth[unique[:, 0]] - depth[unique[:, 1]]))[:, None]

    def extend(v: np.ndarray) -> np.ndarray:
        v = v.reshape(len(depth), -1)
        return np.concatenate([v, v[unique[:, 0]] * (1 - t) + v[unique[:, 1]] * t])

    outer, under = extend(sheet), extend(inner)[len(depth) :]
    start, rim = len(outer), len(unique)
    lower = border - len(depth) + start
    b, c = border.T
    d, e = lower.T
    pieces += [np.stack([b, c, e], 1), np.stack([b, e, d], 1)]
    triangles, vertices = np.concatenate(pieces), np.concatenate([outer, under])
    values = [np.concatenate([extend(v), extend(v)[len(depth) :]]) for v in values]
    used = np.unique(triangles)
    remap = np.zeros(start + rim, dtype=np.int64)
    remap[used] = np.arange(len(used))
    values = [v[used] if v.shape[1] > 1 else v[used, 0] for v in values]
    return vertices[used], remap[triangles], values


def _neck_ring(shape: HeadShape, count: int = 96) -> np.ndarray:
    """Points (count, 3) around the neck on the neckline, from the front over the subject's left."""
    depth = collar_line(shape.rest)
    near = np.flatnonzero(np.abs(depth) < 0.012)
    points = shape.vertices[near] + depth[near, None] * UP
    centre = np.array([0.0, 0.0, points[:, 2].mean()])
    angle = np.arctan2(points[:, 0], points[:, 2] - centre[2]) % (2 * np.pi)
    grid = 2 * np.pi * np.arange(count) / count
    apart = np.angle(np.exp(1j * (grid[:, None] - angle[None])))
    weight = np.exp(-((apart / 0.07) ** 2))
    ring = weight @ points / weight.sum(axis=1, keepdims=True)
    waved = np.fft.rfft(ring, axis=0)
    waved[7:] = 0
    return np.fft.irfft(waved, count, axis=0)


def _frame(ring: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles (count,) from the front and outward horizontal directions (count, 3) along a neck ring."""
    out = ring - ring.mean(axis=0)
    out[:, 1] = 0
    return 2 * np.pi * np.arange(len(ring)) / len(ring), out / np.linalg.norm(out, axis=1, keepdims=True)


def loft(rows: np.ndarray, albedo, material: int = CLOTH, closed: bool = False) -> Mesh:
    """A surface through rows of points (R, S, 3); `closed` joins the last column to the first."""
    r, s, _ = rows.shape
    i, j = np.meshgrid(np.arange(r - 1), np.arange(s if closed else s - 1), indexing="ij")
    k = (j + 1) % s
    quads = np.stack([i * s + j, i * s + k, (i + 1) * s + k, (i + 1) * s + j], axis=-1).reshape(-1, 4)
    faces = np.concatenate([quads[:, [0, 2, 1]], quads[:, [0, 3, 2]]])
    return make_mesh(rows.reshape(-1, 3), faces, albedo, material)


def _above(points: np.ndarray, cloth: Mesh, clearance: float) -> np.ndarray:
    """Points (..., 3) lifted off the cloth to at least `clearance`."""
    flat = points.reshape(-1, 3)
    _, nearest = cKDTree(cloth.vertices).query(flat)
    height = ((flat - cloth.vertices[nearest]) * cloth.normals[nearest]).sum(axis=1)
    missing = np.clip(clearance - height, 0, None)[:, None]
    return (flat + missing * cloth.normals[nearest]).reshape(points.shape)


def _collar(ring: np.ndarray, cloth: Mesh, colour: np.ndarray, rng) -> list[Mesh]:
    """A folded shirt collar with two points, open in front."""
    turn = np.linspace(0.27, 2 * np.pi - 0.27, 120)
    angle, out = _frame(ring)
    wrap = np.r_[angle, 2 * np.pi]
    base = np.stack([np.interp(turn, wrap, np.r_[ring[:, k], ring[0, k]]) for k in range(3)], 1)
    out = np.stack([np.interp(turn, wrap, np.r_[out[:, k], out[0, k]]) for k in range(3)], 1)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    front = np.abs(np.angle(np.exp(1j * turn)))  # 0 in front, π behind
    tip = np.exp(-(((front - 0.33) / 0.28) ** 2))[:, None] * rng.uniform(0.8, 1.3)
    shut = smoothstep(0.25, 0.6, front)[:, None]  # stand and fall meet at the ends
    high = (0.055 + 0.02 * smoothstep(0.5, 2.5, front))[:, None]
    down = 0.035 + 0.10 * tip
    rows = np.stack([
        base + 0.010 * out - 0.03 * UP,
        base + 0.012 * out + 0.5 * high * UP,
        base + 0.016 * out + 0.95 * high * UP,
        base + 0.026 * out + 1.05 * high * UP,
        base + (0.024 + 0.014 * shut) * out + 0.85 * high * UP,
        base + (0.028 + 0.027 * shut) * out + 0.3 * high * UP,
        base + (0.04 + 0.035 * shut + 0.01 * tip) * out - 0.5 * down * UP,
        base + (0.06 + 0.025 * shut + 0.035 * tip) * out - down * UP,
    ])  # fmt: skip
    rows[4:] = _above(rows[4:], cloth, 0.014)
    tint = np.repeat(colour[None] * np.array([0.75, 0.9, 1, 1, 1.03, 1.02, 1.0, 0.86])[:, None], 120, 0)
    return [loft(rows, np.clip(tint, 0, 0.9))]


def _buttons(cloth: Mesh, open_front: float, colour: np.ndarray) -> list[Mesh]:
    """A placket's edge and a few buttons down the chest."""
    middle = np.flatnonzero((cloth.vertices[:, 2] > 0.2) & (cloth.vertices[:, 1] > -0.86))
    if not len(middle):
        return []
    across = np.abs(cloth.vertices[middle, 0])
    middle = middle[across <= max(0.03, across.min())]  # a coarse mesh may have nothing nearer
    order = middle[np.argsort(cloth.vertices[middle, 1])]
    y = np.arange(cloth.vertices[order[-1], 1] - 0.04, -0.83, -0.10)
    if not len(y):
        return []
    meshes = []
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    ivory = np.clip(0.25 + 0.7 * colour, 0, 0.8)
    for height in y:
        near = order[np.argmin(np.abs(cloth.vertices[order, 1] - height))]
        centre, normal = cloth.vertices[near] * [0, 1, 1], cloth.normals[near]
        side = np.cross(UP, normal)
        side /= np.linalg.norm(side)
        up = np.cross(normal, side)
        circle = np.cos(turn)[:, None] * side + np.sin(turn)[:, None] * up
        profile = ((0.0, 0.006), (0.011, 0.008), (0.0135, 0.006), (0.0135, 0.0))  # radius, height
        rows = np.stack([centre + r * circle + h * normal for r, h in profile])
        meshes.append(loft(rows, ivory, GLOSSY, closed=True))
    strip = np.linspace(y[0] + 0.04, -0.86, 24)
    for x in (-0.032, 0.034):  # the placket's two edges, as narrow raised seams
        line = np.array([[x, h, 0.6] for h in strip])
        _, nearest = cKDTree(cloth.vertices[:, :2] + 9.0 * (cloth.vertices[:, 2:] < 0)).query(line[:, :2])
        line[:, 2] = cloth.vertices[nearest, 2]
        line[:, 2] = np.convolve(np.pad(line[:, 2], 2, mode="edge"), np.ones(5) / 5, mode="valid") + 0.003
        profile = np.array([[0.004, 0, -0.004], [0, 0, 0.004], [-0.004, 0, -0.004]])
        rows = line + profile[:, None]
        meshes.append(loft(rows, np.clip(0.8 * colour, 0, 0.9)))
    return meshes


def _hood(ring: np.ndarray, cloth: Mesh, colour: np.ndarray, rng) -> list[Mesh]:
    """A hood that lies on the shoulders, and two strings."""
    angle, out = _frame(ring)
    back = 0.5 - 0.5 * np.cos(angle)  # 0 in front, 1 behind
    size = (0.035 + 0.035 * back + 0.05 * back**3)[:, None]
    centre = ring + out * (0.6 * size + 0.02) + UP * (0.03 + 0.02 * back - 0.02 * back**3)[:, None]
    around = np.linspace(0, 2 * np.pi, 25)[:, None, None]
    phase = rng.uniform(0, 6)
    puff = 1 + 0.10 * np.sin(5 * angle + phase + 1.5 * np.sin(around[..., 0]))[..., None] * np.sin(around)
    rows = centre + size * puff * (np.cos(around) * out * 1.15 - np.sin(around) * UP * 0.85)
    crease = np.repeat(np.clip(0.8 - 0.25 * np.cos(around[:, 0, 0]), 0, 1), len(ring))
    meshes = [loft(rows, colour * crease[:, None], closed=True)]
    white = np.clip(colour * 0.4 + 0.35, 0, 0.8)
    for side in (-1, 1):
        start = centre[(side * 9) % len(ring)] + 0.02 * out[(side * 9) % len(ring)] - 0.02 * UP
        drop = np.linspace(0, rng.uniform(0.12, 0.2), 20)
        path = start - drop[:, None] * UP + np.outer(0.02 * np.sin(drop * 12 + phase), [side, 0, 0])
        path = _above(path + np.array([0, 0, 0.05]), cloth, 0.012)
        path[:, 2] = np.convolve(np.pad(path[:, 2], 2, mode="edge"), np.ones(5) / 5, mode="valid")
        turn = np.linspace(0, 2 * np.pi, 8, endpoint=False)[None, :, None]
        radius = np.r_[np.full(17, 0.0085), 0.011, 0.011, 0.002][:, None, None]
        rows = path[:, None] + radius * (np.cos(turn) * [1.0, 0, 0] + np.sin(turn) * [0, 0, 1.0])
        meshes.append(loft(rows[::-1], white, closed=True))
    return meshes
