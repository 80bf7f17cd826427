"""A whole person: head, colours, hair, clothes and accessories put together, as one mesh with words to go with it."""

from dataclasses import dataclass, replace

import numpy as np

from minirodin.avatars.accessories import make_accessories
from minirodin.avatars.attributes import Attributes, sample_attributes
from minirodin.avatars.clothing import dress
from minirodin.avatars.facial_hair import grow_facial_hair
from minirodin.avatars.field import head_field, press_ears
from minirodin.avatars.hair import grow_hair
from minirodin.avatars.head import EXPRESSIONS, HeadModel, HeadShape, load_head
from minirodin.avatars.mesh import SKIN, Mesh, concatenate, make_mesh, quantised
from minirodin.avatars.skin import face_meshes, skin_albedo, wrinkles


@dataclass(frozen=True)
class Person:
    """One synthetic person: everything visible as one mesh, and the attributes it was made from."""

    mesh: Mesh
    attributes: Attributes


# Local changes that move the whole head, turn it into a caricature or do not go with the rest.
_STIFF = ("head-trans", "neck-", "head-", "ear-shape", "eye-scale", "measure")
_SPREAD = {"nose": 0.17, "mouth": 0.15, "chin": 0.18, "cheek": 0.2, "ear": 0.2, "eye": 0.13, "forehead": 0.2}


def head_shape(a: Attributes, model: HeadModel | None = None, detail: int = 2) -> HeadShape:
    """The head of these attributes in the fixed world."""
    model = model or load_head()
    names = [name for name in model.local_names if not name.startswith(_STIFF)]
    draws = a.local_shape(len(names))
    local = {n: float(_SPREAD.get(n.split("-")[0], 0.12) * d) for n, d in zip(names, draws, strict=True)}
    rng = a.rng("head")
    wide, deep, high = rng.normal(0, [0.2, 0.2, 0.15])
    local |= {"head-scale-horiz": wide, "head-scale-depth": deep, "head-scale-vert": high}
    local["neck-scale-horiz"] = local["neck-scale-depth"] = 0.8 * (a.muscle - 0.5) + rng.normal(0, 0.1)
    expression = {k: v * rng.uniform(0.75, 1.1) for k, v in EXPRESSIONS[a.expression].items()}
    # The model's lids are narrow and half shut; in a picture of the whole bust such eyes are a dark slit.
    local["eye-scale"], expression["eyeWide"] = 0.9, 0.28 + expression.get("eyeWide", 0)
    gender = rng.uniform(0, 0.2) if a.gender == "woman" else rng.uniform(0.8, 1)
    gaze = rng.normal(0, 3), rng.normal(0, 2)
    return model.shape(gender, a.age, a.weight, a.ancestry, local, expression, gaze, detail)


def build_person(who: Attributes | int, detail: int = 2) -> Person:
    """Build one person from attributes, or from the seed that attributes are drawn from; the same at every call."""
    a = sample_attributes(who) if isinstance(who, (int, np.integer)) else who
    shape = head_shape(a, detail=detail)
    if a.hair_style in ("bob", "long"):
        shape = press_ears(shape, load_head().landmarks)
    clothes, hidden = dress(shape, a)
    bare, casters = (f[~hidden[f].all(axis=1)] for f in (shape.faces, shape.surface.casters))
    colour, lines = skin_albedo(shape, a), wrinkles(shape, a)
    skin = make_mesh(shape.vertices, bare, colour, SKIN, normals=shape.normals, tangents=lines, casters=casters)
    field = head_field(shape, clothes)
    meshes = [skin, *face_meshes(shape, a), *clothes, *grow_hair(shape, field, a), *grow_facial_hair(shape, field, a)]
    mesh = concatenate([*meshes, *make_accessories(shape, field, a)])
    return Person(quantised(replace(mesh, vertices=within_ball(mesh.vertices))), a)


def within_ball(points: np.ndarray) -> np.ndarray:
    """Points (V, 3) with those beyond 0.95 of the origin drawn in under 1: what every view can see."""
    distance = np.linalg.norm(points, axis=1, keepdims=True)
    inside = 0.95 + 0.05 * np.tanh((distance - 0.95) / 0.05)
    return points * np.where(distance > 0.95, inside / np.maximum(distance, 1e-9), 1)
