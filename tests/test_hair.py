"""Hair and accessories on real heads: out of the skin, the face, the hat and the box; the same for the same seed."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.spatial import cKDTree

from minirodin.avatars.accessories import HAT_CLEARANCE, glasses_paths, hat_rim, make_accessories
from minirodin.avatars.attributes import CHOICES, Attributes, sample_attributes
from minirodin.avatars.clothing import dress
from minirodin.avatars.facial_hair import beard_density, grow_facial_hair
from minirodin.avatars.field import head_field, head_frame, press_ears, skin_field
from minirodin.avatars.hair import grow_hair, off_arms, under_hat
from minirodin.avatars.hairstyles import clear_face
from minirodin.avatars.head import load_head
from minirodin.avatars.mesh import HAIR, LENS, normalize
from minirodin.avatars.person import head_shape
from minirodin.avatars.strands import clump, curl, cut, grow, resample, sample_roots

STYLES = [style for style in CHOICES["hair_style"] if style != "bald"]


@cache
def head(seed: int):
    """A coarse head (20 000 vertices) and its field; the hair's code is the same on a fine one."""
    shape = head_shape(sample_attributes(seed), detail=1)
    return shape, head_field(shape)


def person(style: str, seed: int = 3, **changes) -> Attributes:
    return replace(sample_attributes(seed), hair_style=style, **{"hat": "none", "glasses": "none"} | changes)


def strands(a: Attributes) -> np.ndarray:
    """All points (P, 3) of the strands of a person's scalp hair."""
    shape, field = head(a.seed)
    return np.concatenate([m.vertices for m in grow_hair(shape, field, a) if (m.material == HAIR).all()])


def sphere_field(radius=0.5):
    i = np.arange(20_000) + 0.5
    y, turn = 1 - 2 * i / 20_000, np.pi * (1 + 5**0.5) * i
    n = np.stack([np.sqrt(1 - y**2) * np.cos(turn), y, np.sqrt(1 - y**2) * np.sin(turn)], 1)
    return skin_field(radius * n, n)


def test_field_of_a_sphere():
    field = sphere_field()
    p = np.random.default_rng(0).uniform(-0.9, 0.9, (2000, 3))
    r = np.linalg.norm(p, axis=1)
    d, normal = field(p)
    near = np.abs(r - 0.5) < 0.3
    assert np.abs(d - (r - 0.5))[near].max() < 0.03
    close = np.abs(r - 0.5) < 0.08
    assert np.abs(d - (r - 0.5))[close].max() < 0.006
    assert (normal * normalize(p)).sum(1)[close].min() > 0.98
    pushed = field.push_out(0.4 * normalize(p), 0.01)
    assert np.linalg.norm(pushed, axis=1).min() > 0.509


def test_cut_and_resample():
    line = np.zeros((2, 5, 3))
    line[..., 0] = np.linspace(0, 1, 5)
    share = cut(line, 0.6 - line[..., 0])  # crosses zero at x = 0.6
    assert np.allclose(share, 0.6)
    assert np.allclose(resample(line, share)[:, -1, 0], 0.6)
    assert np.allclose(resample(line, share, 3)[0, :, 0], [0, 0.2, 0.4, 0.6])
    assert np.array_equal(cut(line, line[..., 0] + 1), [1, 1]) and np.array_equal(cut(line, line[..., 0] - 1), [0, 0])


def test_clump_draws_tips_together_and_leaves_roots():
    rng = np.random.default_rng(0)
    points = rng.random((200, 1, 3)) + np.linspace(0, 1, 8)[:, None] * [0, 0, 1]
    drawn, member = clump(points, 10, 1.0, rng)
    assert np.array_equal(drawn[:, 0], points[:, 0]) and len(np.unique(member)) == 10
    assert all(np.ptp(drawn[member == k, -1], axis=0).max() < 1e-12 for k in range(10))


def test_curl_is_a_helix_of_the_asked_radius():
    line = np.zeros((1, 200, 3))
    line[..., 1] = np.linspace(0, 1, 200)
    wound = curl(line, np.full((1, 200), 0.1), np.array([0.25]), np.zeros(1), np.broadcast_to([0, 0, 1.0], line.shape))
    assert np.allclose(np.abs(wound[..., 0]).max(), 0.1, atol=1e-3)
    crossings = np.count_nonzero(np.diff(np.sign(wound[0, :, 0])))
    assert 7 <= crossings <= 9  # four turns in one unit


def test_growth_keeps_its_length_and_its_height():
    field, rng = sphere_field(), np.random.default_rng(0)
    roots = 0.5 * normalize(rng.standard_normal((50, 3)))
    down = lambda p, normal, t, arc: np.broadcast_to([0, -1.0, 0], p.shape)  # noqa: E731
    lift = lambda arc: np.full(50, 0.03)  # noqa: E731
    points = grow(field, roots, normalize(roots), np.full(50, 0.4), 20, down, lift)
    lengths = np.linalg.norm(np.diff(points, axis=1), axis=-1).sum(1)
    assert np.all((lengths > 0.39) & (lengths < 0.5))
    north = roots[:, 1] > 0.2  # these still lie on the sphere at their tips
    assert np.abs(np.linalg.norm(points[north, -1], axis=1) - 0.53).max() < 0.02


def test_roots_follow_the_density():
    shape, _ = head(3)
    density = (shape.rest[:, 1] > 0.4) * 1.0
    at = sample_roots(shape, density, 3000, np.random.default_rng(0))
    assert shape.on_skin(shape.rest, *at)[:, 1].min() > 0.35
    assert np.allclose(at[1].sum(1), 1) and len(np.unique(at[0])) > 800


@pytest.mark.parametrize("style", STYLES)
def test_strands_stay_out_of_head_face_and_box(style):
    a = person(style, fringe=style in ("bob", "pixie"))
    shape, field = head(a.seed)
    p = strands(a)
    assert len(p) > 20_000 and np.isfinite(p).all()
    assert np.abs(p).max() <= 0.97
    near = p[field(p)[0] < 0.02]
    ear = 0.5 * (shape.landmarks["left_ear_top"] + shape.landmarks["left_ear_lobe"])
    near = near[np.linalg.norm(np.abs(near) * [1, 0, 0] + near * [0, 1, 1] - ear, axis=1) > 0.12]  # fields have no ears
    assert field.offset(near)[0].min() > -0.002 and len(near) > 300
    # Nothing before the eyes: no strand within a cone of the sight of either eye, nor across nose and mouth.
    for eye in shape.eyes:
        before = (p[:, 2] > eye.centre[2]) & (np.linalg.norm(p[:, :2] - eye.centre[:2], axis=1) < 1.2 * eye.radius)
        assert not before.any()
    frame = head_frame(shape)
    ahead = (np.abs(p[:, 0]) < 0.12) & (p[:, 2] > frame.ear_z + 0.1)
    assert not (ahead & (p[:, 1] < frame.eye) & (p[:, 1] > frame.chin)).any()


def test_clear_face_frames_the_face_and_leaves_the_parting():
    frame = head_frame(head(3)[0])
    side = np.array([[1.0], [-1.0]])
    before = np.array([[[0.05, frame.eye, 0.5]], [[-0.02, frame.eye, 0.5]]])  # (2, 1, 3) in front of either eye
    moved = clear_face(before, frame, side, 1.1)
    assert np.all(frame.azimuth(moved) > 0.9) and np.array_equal(np.sign(moved[:, 0, 0]), side[:, 0])
    assert np.allclose(moved[..., 1], frame.eye)
    parted = np.array([[[-0.1, frame.crown, 0.3]], [[0.1, frame.crown, 0.3]]])  # on top, and across the middle
    assert np.array_equal(clear_face(parted, frame, side, 1.1), parted)
    a = person("bob", hair_length=1.0, hair_curl=0.2)
    mesh = grow_hair(*head(a.seed), a)[0]
    each = mesh.vertices.reshape(6000, -1, 3)  # a strand a row: locks hang beside the face, none is cut at the brows
    assert np.all(each[frame.azimuth(each[:, 0]) < 1.0, -1, 1] < frame.eye)


def test_bald_has_no_hair_and_long_is_longer_than_short():
    assert grow_hair(*head(3), person("bald")) == []
    long, shorter = (strands(person("long", hair_length=length))[:, 1].min() for length in (1.0, 0.0))
    assert long < shorter - 0.15


@pytest.mark.parametrize("style", ["short", "curly", "bob", "long", "ponytail"])
def test_no_strand_comes_through_a_hat(style):
    a = person(style, hat="beanie", hair_volume=1.0)
    shape, field = head(a.seed)
    frame, p = head_frame(shape), strands(a)
    covered = p[:, 1] > hat_rim(frame, p) + 0.01
    assert covered.any() and field(p[covered])[0].max() < HAT_CLEARANCE
    assert field(strands(person(style, hair_volume=1.0)))[0].max() > HAT_CLEARANCE + 0.01  # and without it some would


def test_hat_lies_over_the_head():
    shape, field = head(5)
    for kind in ("cap", "beanie"):
        hat = make_accessories(shape, field, person("bald", 5, hat=kind, earrings="none"))[0]
        shell = hat.vertices[hat.vertices[:, 1] > hat_rim(head_frame(shape), hat.vertices) + 0.03]
        assert field.offset(shell)[0].min() > 0.02
        assert np.abs(hat.vertices).max() <= 0.97
        outward = (hat.normals * normalize(hat.vertices - [0, 0.25, 0.05])).sum(1)
        assert np.mean(outward > 0) > 0.75  # faces are counter-clockwise from outside


@pytest.mark.parametrize("kind", ["round", "square", "sun"])
def test_glasses_sit_before_the_eyes_clear_of_the_skin(kind):
    for seed in (3, 8, 11):
        shape, field = head(seed)
        a = person("bald", seed, glasses=kind)
        rims, bridge, arms = glasses_paths(shape, field, a)
        for rim, eye in zip(rims, shape.eyes, strict=True):
            assert np.abs(rim.mean(0) - eye.centre)[:2].max() < 0.045 and rim[:, 2].min() > eye.centre[2]
        assert field.offset(rims.reshape(-1, 3))[0].min() > 0.003
        assert field.offset(arms[:, 1:13].reshape(-1, 3))[0].min() > 0  # behind the ear nobody sees
        assert bridge[len(bridge) // 2, 2] > shape.landmarks["nose_bridge"][2]
        ears = np.array([shape.landmarks["left_ear_top"], shape.landmarks["right_ear_top"]])
        assert np.linalg.norm(arms[:, 13] - ears, axis=1).max() < 0.06
        lenses = [m for m in make_accessories(shape, field, a) if (m.material == LENS).all()]
        assert len(lenses) == (2 if kind == "sun" else 0)
        assert all(m.normals[:, 2].mean() > 0.5 for m in lenses)


def test_hair_goes_round_the_arms_of_glasses():
    a = person("bob", glasses="round")
    shape, field = head(a.seed)
    arms = glasses_paths(shape, field, a)[2]
    p = np.random.default_rng(0).uniform(-0.03, 0.03, (500, 3)) + arms[0, 5]
    assert np.linalg.norm(off_arms(p, arms) - arms[0, 5], axis=1).min() > 0.015


def test_pressed_ears_lie_close_to_the_head_and_take_their_landmarks_along():
    shape, field = head(3)
    pressed, ear = press_ears(shape, load_head().landmarks), shape.masks["ears"] > 0.2
    assert field(pressed.vertices[ear])[0].max() < 0.4 * field(shape.vertices[ear])[0].max()
    assert np.array_equal(pressed.vertices[~ear], shape.vertices[~ear])
    for side in ("left", "right"):
        lobe = pressed.landmarks[f"{side}_ear_lobe"]
        assert np.abs(lobe[0]) < np.abs(shape.landmarks[f"{side}_ear_lobe"][0])
        assert np.linalg.norm(pressed.vertices[ear] - lobe, axis=1).min() == 0


def test_long_hair_leaves_no_gap_above_a_hood():
    a = person("long", clothing="hoodie", hair_length=1.0, hair_curl=0.2, fringe=False)
    shape, _ = head(a.seed)
    clothes = dress(shape, a)[0]
    frame, hood = head_frame(shape), clothes[1].vertices
    mesh = grow_hair(shape, head_field(shape, clothes), a)[0]
    each = mesh.vertices.reshape(6000, -1, 3)
    ends = each[frame.azimuth(each[:, 0]) > 1.2, -1]
    ends = ends[frame.azimuth(ends) > 2.6]  # at the nape
    gap = cKDTree(hood).query(ends)[0]
    assert len(ends) > 300 and np.mean(gap < 0.06) > 0.75  # most of a curtain: those within it may end higher
    assert ends[:, 1].min() > frame.chin - 0.3  # and none hangs out below


def test_under_hat_moves_only_what_is_under_it():
    shape, field = head(3)
    frame = head_frame(shape)
    p = np.array([[0, frame.crown + 0.2, 0.1], [0.5, frame.chin - 0.2, 0]])
    moved = under_hat(p, field, frame)
    assert field(moved)[0][0] < HAT_CLEARANCE and np.array_equal(moved[1], p[1])


@pytest.mark.parametrize("kind", ["moustache", "goatee", "full"])
def test_beards_grow_where_they_should(kind):
    a = person("short", 5, gender="man", facial_hair=kind, facial_hair_length=0.5)
    shape, field = head(a.seed)
    none = grow_facial_hair(shape, field, replace(a, facial_hair="none"))
    meshes = grow_facial_hair(shape, field, a)
    assert len(none) == 2 and len(meshes) == 4  # brows and lashes; then strands and their under-layer
    p = meshes[2].vertices
    assert p[:, 1].max() < shape.eyes[0].centre[1] and np.abs(p).max() < 0.97
    _, nearest = shape.closest(p)
    assert np.mean(shape.masks["lips"][nearest] > 0.5) < 0.01  # clear of the lips
    if kind == "moustache":
        assert p[:, 1].min() > shape.landmarks["chin"][1]
    long = grow_facial_hair(shape, field, replace(a, facial_hair_length=1.0))[2].vertices
    assert kind == "moustache" or long[:, 1].min() < p[:, 1].min() - 0.04
    assert beard_density(shape, a)[shape.rest[:, 1] > 0.2].max() == 0


def test_brows_lie_between_eyes_and_hairline():
    for seed in (3, 8):
        shape, field = head(seed)
        brows, lashes = grow_facial_hair(shape, field, person("bald", seed, facial_hair="none"))
        for p in (brows.vertices, lashes.vertices):
            assert np.isclose(np.mean(p[:, 0] > 0), 0.5, atol=0.05)
        eyes, y = np.array([eye.centre for eye in shape.eyes]), brows.vertices[:, 1]
        assert eyes[:, 1].mean() + 0.01 < y.min() and y.max() < eyes[:, 1].mean() + 0.2
        assert lashes.vertices[:, 2].min() > eyes[:, 2].min()


def test_earrings_hang_at_the_lobes():
    shape, field = head(3)
    for kind in ("studs", "hoops"):
        ring = make_accessories(shape, field, person("bald", earrings=kind))[0].vertices
        for side in ("left", "right"):
            assert np.linalg.norm(ring - shape.landmarks[f"{side}_ear_lobe"], axis=1).min() < 0.025


@pytest.mark.parametrize("style", ["curly", "bun", "afro"])
def test_same_seed_same_hair(style):
    a = person(style, glasses="square")
    shape, field = head(a.seed)
    for first, second in zip(grow_hair(shape, field, a), grow_hair(shape, head_field(shape), a), strict=True):
        assert all(np.array_equal(getattr(first, n), getattr(second, n)) for n in first.__dataclass_fields__)


def test_same_seed_same_face_and_other_seed_another():
    a = person("bald", glasses="sun", hat="cap", earrings="hoops", gender="man", facial_hair="full")
    shape, field = head(a.seed)
    build = lambda a: [*grow_facial_hair(shape, field, a), *make_accessories(shape, field, a)]  # noqa: E731
    for first, second in zip(build(a), build(a), strict=True):
        assert all(np.array_equal(getattr(first, n), getattr(second, n)) for n in first.__dataclass_fields__)
    assert not np.array_equal(build(a)[2].vertices, build(replace(a, seed=4))[2].vertices)
