"""The head model: subdivision against known values, a closed skin, plausible anatomy, the same bits at every call."""

import numpy as np
import pytest

from minirodin.avatars.attributes import Attributes
from minirodin.avatars.head import EXPRESSIONS, RADIUS, bottom, load_head
from minirodin.avatars.mesh import concatenate, make_mesh, quantised, ribbons, subdivide, triangulate, vertex_normals
from minirodin.avatars.person import head_shape
from minirodin.avatars.skin import eye_mesh, face_meshes, wrinkles

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
SIDES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])


@pytest.fixture(scope="module")
def head():
    return load_head().shape(detail=1)


def test_subdivided_cube_is_catmull_and_clarks():
    matrix, quads = subdivide(SIDES, 8)
    points = matrix @ CUBE
    assert matrix.shape == (26, 8) and quads.shape == (24, 4)
    np.testing.assert_allclose(points[:8], CUBE * 5 / 9)  # corners: (F + 2 R + (n - 3) P) / n with n = 3
    np.testing.assert_allclose(np.abs(points[8:14]).max(axis=1), 1)  # face points
    np.testing.assert_allclose(np.sort(np.abs(points[14:]), axis=1), np.tile([0, 0.75, 0.75], (12, 1)))  # edge points
    assert _volume(points, triangulate(quads)) > 0


def test_subdivision_keeps_an_open_border_in_place_and_handles_triangles():
    square = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0.5, 1]])
    fan = np.array([[0, 1, 4, -1], [1, 2, 4, -1], [2, 3, 4, -1], [3, 0, 4, -1]])
    matrix, quads = subdivide(fan, 5)
    points = matrix @ square
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_allclose(points[0], [0.125, 0.125, 0])  # (P + (M1 + M2) / 2) / 2 along the border
    assert len(quads) == 12 and points[4, 2] < 1


def test_skin_is_closed_and_faces_outwards():
    for detail in (1, 2):
        shape = load_head().shape(detail=detail)
        edges = np.concatenate([shape.faces[:, [i, (i + 1) % 3]] for i in range(3)])
        directed = edges[:, 0] * len(shape.vertices) + edges[:, 1]
        assert len(np.unique(directed)) == len(directed), "an edge is used twice in the same direction"
        reverse = edges[:, 1] * len(shape.vertices) + edges[:, 0]
        assert np.array_equal(np.sort(reverse), np.sort(directed)), "the skin has a hole"
        assert 0.3 < _volume(shape.vertices, shape.faces) < 2


@pytest.mark.parametrize("gender", [0.0, 1.0])
@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("age", [18, 85])
def test_everybody_fits_the_ball_and_ends_on_it(gender, weight, age):
    model = load_head()
    shape = model.shape(gender, age, weight, (1, 0, 0) if age > 50 else (0, 0, 1), detail=1)
    assert np.linalg.norm(shape.vertices, axis=1).max() < RADIUS
    assert np.abs(shape.vertices[:, 0]).max() < 0.74 and shape.vertices[:, 1].max() < 0.8
    edge = shape.coarse[model.loop]
    np.testing.assert_allclose(edge[:, 1], bottom(edge), atol=1e-12)
    side = np.roll(edge, -1, axis=0) - edge
    heading = np.unwrap(np.arctan2(side[:, 2], side[:, 0]))
    turned = np.abs(np.diff(np.r_[heading, heading[0] + np.sign(heading[-1] - heading[0]) * 2 * np.pi])).sum()
    assert turned < 2 * np.pi + 0.6, "seen from below, the edge is ragged or has notches"
    chin, crown = shape.landmarks["chin"][1], shape.landmarks["crown"][1]
    assert 0.8 < crown - chin < 1.1


def test_left_and_right_mirror_each_other(head):
    mirrored = head.vertices * [-1, 1, 1]
    distance, _ = head.tree.query(mirrored)
    assert np.quantile(distance, 0.99) < 0.006


def test_landmarks_and_masks_lie_where_they_should(head):
    mark, mask = head.landmarks, head.masks
    order = ["crown", "nose_bridge", "nose_tip", "upper_lip", "lower_lip", "chin"]
    heights = [mark[name][1] for name in order]
    assert heights == sorted(heights, reverse=True)
    for name in ("ear_top", "mouth_corner", "temple", "eye", "shoulder"):
        assert mark["left_" + name][0] > 0 > mark["right_" + name][0]
    for name, values in mask.items():
        assert values.shape == (len(head.vertices),) and values.min() >= 0 and values.max() <= 1, name
        assert values.max() > 0.9, name
    lips = head.vertices[(mask["lips"] > 0.5) & (mask["inside_mouth"] < 0.1)]
    assert mark["chin"][1] < lips[:, 1].min() and lips[:, 1].max() < mark["nose_tip"][1]
    eye_level = head.eyes[0].centre[1]
    scalp = head.vertices[mask["scalp"] > 0.5]
    assert (scalp[scalp[:, 2] > 0.3][:, 1] > eye_level + 0.1).all(), "hair on the brow"
    assert head.vertices[mask["beard"] > 0.5][:, 1].max() < eye_level
    for other in ("lips", "scalp", "ears"):
        assert (mask["beard"] * mask[other]).max() < 0.5


def test_eyes_sit_behind_their_lids(head):
    for eye, side in zip(head.eyes, ("left", "right"), strict=True):
        for lid in ("upper", "lower"):
            line = head.landmarks[f"{side}_{lid}_lid"]
            distance = np.linalg.norm(line - eye.centre, axis=1) / eye.radius
            assert distance.min() > 0.95 and np.median(distance) < 1.25
        ball = eye_mesh(eye, np.ones(3))
        aside = (ball.vertices - eye.centre) @ eye.gaze < 0.27 * eye.radius  # 75° and more from where it looks
        depth, _ = head.closest(ball.vertices[aside])
        assert (depth < 0.01).mean() > 0.97, "the eyeball shows beside the lids"


def test_neutral_eyes_are_open_and_teeth_lie_behind_closed_lips():
    for seed in range(8):
        person = Attributes(seed, expression="neutral")
        shape = head_shape(person, detail=1)
        upper, lower = shape.landmarks["left_upper_lid"], shape.landmarks["left_lower_lid"]
        opening = (upper[:, 1].max() - lower[:, 1].min()) / np.ptp(np.r_[upper, lower][:, 0])
        assert 0.28 < opening < 0.6, "half closed"
        assert all(mesh.albedo.max() < 0.5 for mesh in face_meshes(shape, person)[2:]), "teeth shine through"
    assert face_meshes(shape, Attributes(seed, expression="open smile"))[2].albedo.max() > 0.5


def test_wrinkles_come_with_age(head):
    def deepest(age: float) -> float:
        return max(wrinkles(head, Attributes(seed, age=age))[:, 2].max() for seed in range(20))

    assert deepest(18) == deepest(40) == 0
    assert 0 < deepest(50) < deepest(60) < 0.35 < 0.8 < deepest(80)


def test_expressions_and_macros_do_what_they_say():
    model = load_head()
    plain = model.shape(detail=1)

    def moved(mark: str, **change) -> np.ndarray:
        return model.shape(detail=1, **change).landmarks[mark] - plain.landmarks[mark]

    smile = moved("left_mouth_corner", expression=EXPRESSIONS["smile"])
    assert smile[0] > 0.005 and smile[1] > 0.005
    assert moved("left_mouth_corner", expression=EXPRESSIONS["frown"])[1] < -0.003
    assert moved("chin", expression={"jawOpen": 1})[1] < -0.03
    assert moved("nose_tip", local={"nose-scale-depth": 1})[2] > 0.005
    assert moved("nose_tip", local={"nose-scale-depth": -1})[2] < -0.005
    jaw = np.abs(plain.rest[:, 1] + 0.12) < 0.04
    wide = [np.ptp(model.shape(weight=w, detail=1).vertices[jaw][:, 0]) for w in (0, 0.5, 1)]
    assert wide[0] < wide[1] < wide[2]
    for actions in EXPRESSIONS.values():
        assert all("face:" + name in model.offsets for name in actions)
    left = model.shape(gaze=(20, 0), detail=1).eyes[0].gaze
    assert left[0] > 0.3 and abs(np.linalg.norm(left) - 1) < 1e-12


def test_distance_to_the_skin(head):
    rng = np.random.default_rng(0)
    face, weight = rng.integers(0, len(head.faces), 500), rng.dirichlet([1, 1, 1], 500)
    points, normals = head.on_skin(head.vertices, face, weight), head.on_skin(head.normals, face, weight)
    assert np.abs(head.closest(points)[0]).max() < 0.02
    flat = head.on_skin(head.masks["scalp"], face, weight) > 0.5
    for height in (-0.03, 0.03):
        error = np.abs(head.closest(points[flat] + height * normals[flat])[0] - height)
        assert np.quantile(error, 0.9) < 0.004


def test_the_same_attributes_give_the_same_bits():
    one, two = (
        load_head().shape(0.3, 44.0, 0.7, local={"nose-hump": 0.4}, expression={"mouthSmile": 0.5}, detail=1)
        for _ in range(2)
    )
    assert np.array_equal(one.vertices, two.vertices) and np.array_equal(one.normals, two.normals)


def test_meshes_join_and_ribbons_have_two_sides():
    points = np.zeros((3, 4, 3)) + np.linspace(0, 1, 4)[None, :, None] * [0, 1.0, 0]
    strands = ribbons(points, 0.01, (0.5, 0.4, 0.3))
    assert len(strands.vertices) == 24 and len(strands.faces) == 18
    np.testing.assert_allclose(strands.tangents, np.tile([0, 1.0, 0], (24, 1)))
    assert sorted(set(strands.width)) == [-0.01, 0.01]
    cube = make_mesh(CUBE, triangulate(SIDES), 0.5, 0)
    both = quantised(concatenate([cube, strands]))
    assert both.faces.max() == 31 and (both.vertices * 2**16 % 1 == 0).all()
    np.testing.assert_allclose(vertex_normals(CUBE, triangulate(SIDES)), CUBE / 3**0.5, atol=0.35)


def _volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)
