"""Making people: whole folders or none, resumable, reproducible, and one line for every way it can go wrong."""

import errno
import hashlib
import json

import numpy as np
import pytest

from minirodin.avatars import dataset
from minirodin.avatars.attributes import sample_attributes
from minirodin.avatars.head import RADIUS
from minirodin.avatars.person import build_person, within_ball
from minirodin.avatars.renderer import Renderer
from minirodin.cameras import load_capture
from minirodin.errors import ConfigError, DataError, RenderError

SMALL = {"views": 3, "size": 24, "detail": 1, "workers": 1, "show_progress": False}


@pytest.fixture(scope="module", autouse=True)
def needs_gl():
    try:
        Renderer()
    except RenderError as error:
        pytest.skip(str(error))


@pytest.fixture
def quick(monkeypatch):
    """Grey pictures instead of people, and a list of the seeds that were drawn."""
    drawn = []

    def render_person(attributes, cameras, name="person", detail=2):
        drawn.append(attributes.seed)
        images = np.full((len(cameras), cameras.height, cameras.width, 4), attributes.seed % 255, np.uint8)
        return dataset.Capture(name, images, cameras, "somebody", attributes.to_dict())

    monkeypatch.setattr(dataset, "render_person", render_person)
    return drawn


def test_the_same_seed_gives_the_same_bits():
    one, two = build_person(12, detail=1), build_person(12, detail=1)
    for name in ("vertices", "faces", "albedo", "material", "width"):
        assert np.array_equal(getattr(one.mesh, name), getattr(two.mesh, name)), name
    assert (one.mesh.vertices * 2**16 % 1 == 0).all() and one.attributes == sample_attributes(12)
    other = build_person(13, detail=1).mesh.vertices
    assert other.shape != one.mesh.vertices.shape or not np.array_equal(other, one.mesh.vertices)


@pytest.mark.parametrize("seed", [3, 41, 100_054, 1_000_005])  # at 100 054 no vertex of the shirt is near its middle
def test_a_person_is_whole_and_within_the_ball(seed):
    mesh = build_person(seed, detail=1).mesh
    assert np.isfinite(mesh.vertices).all() and np.abs(mesh.vertices).max() <= 0.99
    assert (np.linalg.norm(mesh.vertices, axis=1) + np.abs(mesh.width)).max() < RADIUS + 0.03
    assert mesh.faces.min() >= 0 and mesh.faces.max() < len(mesh.vertices)
    length = np.linalg.norm(mesh.normals[np.unique(mesh.faces)], axis=1)
    assert (np.abs(length - 1) < 0.02).mean() > 0.999  # none at the centre of a button, say
    assert mesh.albedo.min() >= 0 and mesh.albedo.max() <= 4
    for name in mesh.__dataclass_fields__:
        assert name in ("faces", "casters") or len(getattr(mesh, name)) == len(mesh.vertices)


def test_drawing_in_keeps_order_and_the_inside():
    line = np.linspace(0, 3, 200)[:, None] * [0.6, 0.0, 0.8]
    distance = np.linalg.norm(within_ball(line), axis=1)
    assert (np.diff(distance) > -1e-12).all() and distance.max() < 1 + 1e-12
    np.testing.assert_array_equal(within_ball(line[line[:, 2] < 0.7]), line[line[:, 2] < 0.7])


def test_a_subject_is_a_capture(tmp_path):
    (folder,) = dataset.make_people(tmp_path, count=1, seed=1_000_000, **SMALL)
    capture = load_capture(folder)
    assert folder.name == capture.name == "1000000" and capture.images.shape == (3, 24, 24, 4)
    assert capture.attributes == json.loads(json.dumps(sample_attributes(1_000_000).to_dict()))
    assert len(capture.caption.split()) > 3 and capture.has_alpha
    np.testing.assert_allclose(capture.cameras.camera_to_world[0, :3, 3], [0, 0, 3.5], atol=1e-9)
    alpha = capture.images[..., 3]
    assert (alpha[:, 0, 0] == 0).all() and (alpha[:, 12, 12] == 255).all()
    colours = capture.images[0][alpha[0] == 255][:, :3]
    assert colours.std() > 10 and 30 < colours.mean() < 230


def test_an_interrupted_run_goes_on(tmp_path, quick, monkeypatch):
    save = dataset.save_capture

    def killed(capture, folder):
        if folder.name == "000002":
            (folder.parent / ".000002.left").mkdir()
            raise KeyboardInterrupt
        return save(capture, folder)

    monkeypatch.setattr(dataset, "save_capture", killed)
    with pytest.raises(KeyboardInterrupt):
        dataset.make_people(tmp_path, count=4, **SMALL)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".") == ["000000", "000001"]
    before = _digest(tmp_path / "000001")
    monkeypatch.setattr(dataset, "save_capture", save)
    quick.clear()
    folders = dataset.make_people(tmp_path, count=4, **SMALL)
    assert quick == [2, 3] and [f.name for f in folders] == ["000000", "000001", "000002", "000003"]
    assert _digest(tmp_path / "000001") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [f.name for f in folders], "leftovers"


@pytest.mark.slow
def test_processes_make_the_same_people(tmp_path):
    settings = SMALL | {"count": 3, "seed": 5}
    one = dataset.make_people(tmp_path / "one", **settings)
    two = dataset.make_people(tmp_path / "two", **settings | {"workers": 2})
    assert [_digest(f) for f in one] == [_digest(f) for f in two]


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"views": 0},
        {"size": 4},
        {"seed": -1},
        {"seed": 1_999_999, "count": 2},
        {"seed": 2_000_000},
        {"workers": 0},
    ],
)
def test_numbers_out_of_range(tmp_path, quick, change):
    with pytest.raises(ConfigError):
        dataset.make_people(tmp_path, **SMALL | {"count": 1} | change)
    assert not list(tmp_path.iterdir())


def test_other_views_or_foreign_folders_are_not_touched(tmp_path, quick):
    (folder,) = dataset.make_people(tmp_path, count=1, **SMALL)
    with pytest.raises(ConfigError, match="3 views of 24 pixels, not 4 of 24"):
        dataset.make_people(tmp_path, count=1, **SMALL | {"views": 4})
    (folder / "transforms.json").write_text("{}")
    with pytest.raises(DataError, match="not a capture of this program"):
        dataset.make_people(tmp_path, count=1, **SMALL)


def test_a_full_disk_and_a_bad_place_are_one_line(tmp_path, quick, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        dataset.make_people(tmp_path / "file" / "people", count=1, **SMALL)
    monkeypatch.setattr(dataset, "save_capture", full)
    with pytest.raises(DataError, match="No space left on device") as error:
        dataset.make_people(tmp_path / "people", count=2, **SMALL)
    assert "\n" not in str(error.value) and not list((tmp_path / "people").iterdir())


def _digest(folder) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
