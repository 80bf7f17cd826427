"""Portraits: where the cameras stand, what is read back, and what `jitter` may change and what not."""

import json
import math

import numpy as np
import pytest
import torch

from minirodin.avatars import dataset
from minirodin.avatars.attributes import sample_attributes
from minirodin.cameras import RADIUS, Capture, capture_cameras, save_capture
from minirodin.errors import ConfigError, DataError
from minirodin.portraits import Portraits, jitter, place, plain, portrait_cameras


def write_people(folder, seeds, views=2, size=24):
    """A folder of portraits without OpenGL: each pixel's red tells the seed, its green the view."""
    for seed in seeds:
        images = np.zeros((views, size, size, 4), np.uint8)
        images[..., 0], images[..., 1] = seed, np.arange(views)[:, None, None]
        images[:, 6:18, 6:18, 3] = 255
        cameras, attributes = portrait_cameras(views, size, seed), sample_attributes(seed).to_dict()
        save_capture(Capture(f"{seed:06d}", images, cameras, "somebody", attributes), folder / f"{seed:06d}")
    return folder


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def square(row, column, size=64, side=8):
    """One picture, (1, size, size, 4) uint8, of an opaque red square with its centre there."""
    picture = torch.zeros(1, size, size, 4, dtype=torch.uint8)
    rows, columns = (slice(c - side // 2, c + side // 2) for c in (row, column))
    picture[:, rows, columns] = torch.tensor([255, 0, 0, 255], dtype=torch.uint8)
    return picture


def centre(weights):
    """Mean position (row, column) of weights (H, W)."""
    rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in weights.shape), indexing="ij")
    return torch.stack([(rows * weights).sum(), (columns * weights).sum()]) / weights.sum()


def test_cameras_are_frontal_first_and_near_the_front_after():
    cameras = portrait_cameras(200, 96, seed=5)
    assert torch.equal(cameras.camera_to_world[0], capture_cameras(3, 96, seed=8).camera_to_world[0])
    x, y, z = cameras.camera_to_world[1:, :3, 3].T
    distance = (x**2 + y**2 + z**2).sqrt()
    azimuth, elevation = torch.atan2(x, z).rad2deg(), torch.asin(y / distance).rad2deg()
    for values, low, high in ((azimuth, -30, 30), (elevation, -12, 18), (distance / RADIUS, 0.9, 1.1)):
        assert values.min() >= low - 1e-9 and values.max() <= high + 1e-9
        assert values.max() - values.min() > 0.9 * (high - low)
    middle = cameras.project(torch.zeros(1, 3, dtype=torch.float64))[:, 0, :2]
    assert torch.allclose(middle, torch.full_like(middle, 48.0))  # all look at the person
    again, other = (portrait_cameras(200, 96, seed).camera_to_world for seed in (5, 6))
    assert torch.equal(cameras.camera_to_world, again) and not torch.allclose(again[1:], other[1:])
    assert len(portrait_cameras(1, 96, seed=0)) == 1


def test_people_are_made_with_these_cameras_and_kept(tmp_path, monkeypatch):
    drawn = []

    def render_person(attributes, cameras, name="person", detail=2):
        drawn.append((attributes.seed, detail))
        images = np.full((len(cameras), cameras.height, cameras.width, 4), 200, np.uint8)
        return Capture(name, images, cameras, "somebody", attributes.to_dict())

    monkeypatch.setattr(dataset, "render_person", render_person)
    settings = {"count": 2, "views": 3, "size": 16, "workers": 1, "show_progress": False}
    first, _ = dataset.make_people(tmp_path, portraits=True, **settings)
    assert drawn == [(0, 1), (1, 1)]
    frames = json.loads((first / "transforms.json").read_text())["frames"]
    wanted = portrait_cameras(3, 16, seed=0).camera_to_world.tolist()
    assert [frame["transform_matrix"] for frame in frames] == wanted
    assert Portraits.load(tmp_path).attributes == [sample_attributes(0), sample_attributes(1)]
    dataset.make_people(tmp_path, portraits=True, **settings)
    assert len(drawn) == 2
    with pytest.raises(ConfigError, match="other cameras"):
        dataset.make_people(tmp_path, **settings)


def test_load_gives_what_was_written(tmp_path):
    portraits = Portraits.load(write_people(tmp_path, range(12, 2, -1), views=3))
    assert len(portraits) == 10 and portraits.names == [f"{seed:06d}" for seed in range(3, 13)]
    assert portraits.attributes == [sample_attributes(seed) for seed in range(3, 13)]
    assert portraits.pictures.shape == (10, 3, 24, 24, 4) and portraits.pictures.dtype == torch.uint8
    assert torch.equal(portraits.pictures[:, 0, 9, 9, 0], torch.arange(3, 13, dtype=torch.uint8))
    assert torch.equal(portraits.pictures[4, :, 9, 9, 1], torch.arange(3, dtype=torch.uint8))
    assert portraits.pictures[..., 0, 0, 3].max() == 0 and portraits.pictures[..., 9, 9, 3].min() == 255


def strip(folder, **change):
    path = folder / "transforms.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: None, "no transforms.json"),
        (lambda f: f.rmdir(), "not a folder"),
        (lambda f: write_people(write_people(f, [1], views=2), [2], views=3), "000002 has 3 pictures of 24×24, but"),
        (lambda f: write_people(write_people(f, [1], size=24), [2], size=32), "000002 has 2 pictures of 32×32, but"),
        (lambda f: strip(write_people(f, [1, 2]) / "000002", attributes={}), "000002: attributes: got a dict"),
        (lambda f: strip(write_people(f, [1]) / "000001", attributes={"seed": 1, "hat": "crown"}), "hat is 'crown'"),
        (lambda f: (write_people(f, [1]) / "000001" / "001.png").write_bytes(b"x"), "001.png is not a readable image"),
    ],
    ids=["nobody", "nowhere", "views", "sizes", "no attributes", "bad attribute", "bad picture"],
)
def test_bad_folders_are_one_line(tmp_path, spoil, words):
    folder = tmp_path / "people"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(DataError) as error:
        Portraits.load(folder)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_jitter_comes_from_the_generator_alone():
    pictures = torch.randint(0, 256, (6, 40, 40, 4), generator=generator(), dtype=torch.uint8)
    torch.manual_seed(1)
    one = jitter(pictures, generator(7), 32)
    torch.manual_seed(2)
    assert torch.equal(one, jitter(pictures, generator(7), 32))
    assert one.shape == (6, 3, 32, 32) and one.dtype == torch.float32
    assert one.min() >= 0 and one.max() <= 1 and one.std() > 0.05
    assert (one - jitter(pictures, generator(8), 32)).abs().mean() > 0.05
    same = jitter(pictures[:1].expand(6, -1, -1, -1), generator(7), 32)
    assert ((same[:1] - same[1:]).abs().mean((1, 2, 3)) > 0.02).all()  # a draw for each picture


def test_hidden_colours_stay_hidden_and_a_background_comes():
    """Under alpha 0 lies anything; it must not show, and no two pictures have the same behind them."""
    pictures = torch.zeros(40, 24, 24, 4, dtype=torch.uint8)
    loud = pictures.clone()
    loud[..., 1] = 255
    empty = jitter(pictures, generator(3), 24)
    assert torch.equal(empty, jitter(loud, generator(3), 24))
    middles = empty.mean((2, 3))
    assert torch.cdist(middles, middles).fill_diagonal_(1).min() > 0.005 and middles.std(0).min() > 0.15
    bands = empty.unflatten(2, (4, 6)).unflatten(4, (4, 6)).mean((3, 5)).flatten(2)
    spread = (bands.amax(2) - bands.amin(2)).amax(1)  # noise is averaged out: what is left is the gradient
    assert 10 < (spread > 0.08).sum() < 32
    assert torch.equal(plain(loud, 24), torch.ones(40, 3, 24, 24))


def test_a_shifted_figure_lands_shifted():
    """With one generator all else is the same: what differs from the empty picture is the figure."""
    pictures = torch.cat([torch.zeros_like(square(32, 32)), square(32, 32), square(32, 44), square(24, 32)])
    for seed in range(12):
        empty, middle, right, up = (jitter(p[None], generator(seed), 64)[0] for p in pictures)
        at = [centre((figure - empty).abs().sum(0)) for figure in (middle, right, up)]
        rights, ups = at[1] - at[0], at[2] - at[0]
        assert 0.8 * 12 < rights.norm() < 1.22 * 12 and 0.8 * 8 < ups.norm() < 1.22 * 8
        assert rights[1] > 0.95 * rights.norm() and ups[0] < -0.95 * ups.norm()  # neither mirrored nor turned far
        assert (at[0] - 32).abs().max() < 0.14 * 32 + 1


def test_place_zooms_turns_and_moves_by_the_numbers_given():
    """The position of a spot, by hand: zoomed and turned clockwise about the centre, then moved."""
    picture = square(20, 44)[..., 3].float()[None] / 255  # 12 right of the centre and 12 above it
    zoom, angle, shift = torch.tensor([1.25]), torch.tensor([math.radians(30)]), torch.tensor([[0.1, -0.05]])
    x, y = 12 * 1.25, -12 * 1.25
    x, y = (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle))
    placed = place(picture, zoom, angle, shift, 64)
    wanted = torch.tensor([32 + y - 0.05 * 32, 32 + x + 0.1 * 32])
    assert torch.allclose(centre(placed[0, 0]), wanted, atol=0.1)
    assert placed.sum() == pytest.approx(64 * 1.25**2, rel=0.02)
    moved = place(torch.ones(1, 1, 8, 8), torch.ones(1), torch.zeros(1), torch.tensor([[0.5, 0.0]]), 8)
    assert torch.allclose(moved[0, 0], (torch.arange(8) >= 2).float().expand(8, 8), atol=1e-5)  # nothing comes in
    half = place(picture, torch.ones(1), torch.zeros(1), torch.zeros(1, 2), 32)
    assert torch.allclose(centre(half[0, 0]), torch.tensor([10.0, 22.0]), atol=0.1)
    assert torch.allclose(place(picture, torch.ones(1), torch.zeros(1), torch.zeros(1, 2), 64), picture, atol=1e-4)


def test_some_pictures_stay_sharp_and_some_are_blurred():
    stripes = torch.zeros(40, 96, 96, 4, dtype=torch.uint8)
    stripes[..., 3] = 255
    stripes[:, :, ::4, :3] = stripes[:, :, 1::4, :3] = 255
    contrast = jitter(stripes, generator(), 96)[:, :, 40:56, 40:56].std((1, 2, 3))
    assert contrast.max() > 0.35 and contrast.min() < 0.2


def test_plain_is_the_picture_on_white():
    picture = square(8, 8, size=16)
    result = plain(picture, 16)
    assert torch.equal(result[0, :, 8, 8], torch.tensor([1.0, 0, 0])) and result[0, :, 2, 2].eq(1).all()
    picture[..., 3] //= 2  # 127
    assert torch.allclose(plain(picture, 16)[0, :, 8, 8], torch.tensor([1.0, 128 / 255, 128 / 255]))
    small = plain(square(8, 8, size=16, side=8), 8)
    assert small.shape == (1, 3, 8, 8) and torch.equal(small[0, :, 4, 4], torch.tensor([1.0, 0, 0]))


@pytest.mark.parametrize("bad", [torch.zeros(2, 8, 8, 4), torch.zeros(2, 4, 8, 8, dtype=torch.uint8)])
def test_other_pictures_are_refused(bad):
    for use in (lambda: plain(bad, 8), lambda: jitter(bad, generator(), 8)):
        with pytest.raises(DataError, match="uint8 RGBA") as error:
            use()
        assert "\n" not in str(error.value)
