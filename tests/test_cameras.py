"""Cameras, rays and captures: every convention against numbers worked out by hand."""

import json
import math
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from toys import ball_capture

from minirodin.cameras import (
    Cameras,
    Capture,
    capture_cameras,
    find_captures,
    load_capture,
    look_at,
    orbit_cameras,
    pixel_rays,
    save_capture,
)
from minirodin.errors import DataError

FRONT = look_at((0, 0, 3.5))


def odd_cameras(n=4) -> Cameras:
    """Cameras with nothing symmetric about them: no square pixels, no square image, no centred axis."""
    rng = np.random.default_rng(3)
    eyes, targets, ups = rng.normal(size=(3, n, 3)) * [[[2]], [[0.2]], [[1]]]
    poses = torch.stack([look_at(*three) for three in zip(eyes, targets, ups, strict=True)])
    intrinsics = torch.tensor([[30.0, 41.0, 9.5, 17.25]], dtype=torch.float64).repeat(n, 1)
    return Cameras(poses, intrinsics + torch.arange(n)[:, None], 23, 31)


def write_capture(folder, meta: dict, images: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(folder / name)
    (folder / "transforms.json").write_text(json.dumps(meta))


def grey(width=8, height=8, value=128, channels=3) -> np.ndarray:
    return np.full((height, width, channels), value, np.uint8)


def one_frame(**meta) -> dict:
    frame = {"file_path": "a.png", "transform_matrix": FRONT.tolist()}
    return {"camera_angle_x": 0.6, "frames": [frame], **meta}


def framed(**frame) -> dict:
    return one_frame(frames=[{"file_path": "a.png", "transform_matrix": FRONT.tolist(), **frame}])


# -- rays, projection, orbits -------------------------------------------------------------------------------------


def test_frontal_camera_by_hand():
    cameras = orbit_cameras(0, 0, size=100)
    f = 50 / math.tan(0.3)
    torch.testing.assert_close(cameras.camera_to_world[0, :3, 3], torch.tensor([0, 0, 3.5], dtype=torch.float64))
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    expected = [[50, 50, 3.5], [50 + f / 3.5, 50, 3.5], [50, 50 - f / 3.5, 3.5], [50, 50, 2.5]]  # +x right, +y up
    torch.testing.assert_close(cameras.project(points)[0], torch.tensor(expected, dtype=torch.float64))
    edge = torch.tensor([[3.5 * math.tan(0.3), 0, 0]], dtype=torch.float64)
    assert cameras.project(edge)[0, 0, 0].item() == pytest.approx(100)  # camera_angle_x is the whole horizontal angle


def test_pixel_centres_lie_at_half_integers():
    origins, directions = orbit_cameras(0, 0, size=2).rays(0)
    s = math.tan(0.3) / 2  # the centre of the top-left pixel lies half-way to the corner
    expected = torch.nn.functional.normalize(torch.tensor([[-s, s, -1], [s, s, -1], [-s, -s, -1], [s, -s, -1]]), dim=-1)
    torch.testing.assert_close(directions, expected)
    torch.testing.assert_close(origins, torch.tensor([0, 0, 3.5]).expand(4, 3))


def test_rays_project_back_onto_their_pixels():
    cameras = odd_cameras()
    for view in range(len(cameras)):
        origins, directions = cameras.rays(view)
        assert origins.shape == directions.shape == (31 * 23, 3)
        torch.testing.assert_close(directions.norm(dim=-1), torch.ones(31 * 23))
        x, y, depth = cameras.project(origins + 1.7 * directions)[view].unbind(-1)
        row, column = np.divmod(np.arange(31 * 23), 23)  # row by row
        np.testing.assert_allclose(x, column + 0.5, atol=1e-4)
        np.testing.assert_allclose(y, row + 0.5, atol=1e-4)
        forward = -cameras.camera_to_world[view, :3, 2].float()
        torch.testing.assert_close(depth.float(), 1.7 * directions @ forward, atol=1e-5, rtol=0)


def test_pixel_rays_with_a_camera_each():
    cameras = odd_cameras()
    x, y = torch.tensor([3, 0, 22, 7]), torch.tensor([5, 30, 0, 11])
    origins, directions = pixel_rays(cameras.camera_to_world, cameras.intrinsics, x, y)
    for view in range(4):
        o, d = cameras.rays(view)
        i = int(y[view] * 23 + x[view])
        torch.testing.assert_close((origins[view].float(), directions[view].float()), (o[i], d[i]))


def test_points_behind_have_negative_depth():
    assert orbit_cameras(0, 0, 8).project(torch.tensor([[0.0, 0, 9]]))[0, 0, 2] < 0


@pytest.mark.parametrize(
    "azimuth, elevation, eye, right, up",
    [
        (0, 0, (0, 0, 3.5), (1, 0, 0), (0, 1, 0)),
        (90, 0, (3.5, 0, 0), (0, 0, -1), (0, 1, 0)),
        (180, 0, (0, 0, -3.5), (-1, 0, 0), (0, 1, 0)),
        (0, 45, (0, 3.5 * 0.5**0.5, 3.5 * 0.5**0.5), (1, 0, 0), (0, 0.5**0.5, -(0.5**0.5))),
    ],
)
def test_orbit_convention(azimuth, elevation, eye, right, up):
    matrix = orbit_cameras(azimuth, elevation, 8).camera_to_world[0].numpy()
    np.testing.assert_allclose(matrix[:3, 3], eye, atol=1e-12)
    np.testing.assert_allclose(matrix[:3, 0], right, atol=1e-12)
    np.testing.assert_allclose(matrix[:3, 1], up, atol=1e-12)
    np.testing.assert_allclose(matrix[:3, 2], np.array(eye) / 3.5, atol=1e-12)  # looks along −z
    np.testing.assert_allclose(matrix[3], [0, 0, 0, 1])


def test_orbit_broadcasts_and_takes_radius_and_fov():
    cameras = orbit_cameras([0, 30, 60], 10, size=20, radius=2.0, fov=1.0)
    assert len(cameras) == 3 and cameras.width == cameras.height == 20
    np.testing.assert_allclose(cameras.camera_to_world[:, :3, 3].norm(dim=-1), 2.0)
    np.testing.assert_allclose(cameras.intrinsics, np.tile([10 / math.tan(0.5), 10 / math.tan(0.5), 10, 10], (3, 1)))


def test_capture_cameras_cover_the_band():
    cameras = capture_cameras(24, 64, seed=5)
    eyes = cameras.camera_to_world[:, :3, 3].numpy() / 3.5
    np.testing.assert_allclose(eyes[0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(eyes, axis=1), 1)
    elevation = np.degrees(np.arcsin(eyes[1:, 1]))
    assert -25 <= elevation.min() < -15 and 40 < elevation.max() <= 50
    band = np.random.default_rng(0).normal(size=(4000, 3))
    band /= np.linalg.norm(band, axis=1, keepdims=True)
    band = band[(band[:, 1] > math.sin(math.radians(-25))) & (band[:, 1] < math.sin(math.radians(50)))]
    nearest = np.degrees(np.arccos((band @ eyes.T).max(1).clip(-1, 1)))
    assert nearest.max() < 40  # 24 discs of equal area over this band would have a radius of 19°
    again, other = capture_cameras(24, 64, 5), capture_cameras(24, 64, 6)
    assert torch.equal(cameras.camera_to_world, again.camera_to_world)
    heights = [np.sort(c.camera_to_world[1:, 1, 3].numpy()) for c in (cameras, other)]
    assert np.abs(heights[0] - heights[1]).min() > 1e-3  # not the same rings for everybody


def test_resized_cameras_see_the_same():
    cameras = odd_cameras()
    points = torch.randn(50, 3, dtype=torch.float64)
    small = cameras.resized(46, 93)
    assert (small.width, small.height) == (46, 93)
    scale = torch.tensor([2, 3, 1], dtype=torch.float64)
    torch.testing.assert_close(small.project(points), cameras.project(points) * scale)


@pytest.mark.parametrize("index", [2, -2, np.int64(2), torch.tensor(2), slice(2, 3), [2], torch.tensor([2])])
def test_indexing_keeps_cameras(index):
    cameras = odd_cameras()
    one = cameras[index]
    assert len(one) == 1 and one.camera_to_world.shape == (1, 4, 4) and one.intrinsics.shape == (1, 4)
    assert torch.equal(one.camera_to_world[0], cameras.camera_to_world[2])
    assert torch.equal(one.intrinsics[0], cameras.intrinsics[2])


def test_held_out_views_are_a_fixed_eighth():
    capture = ball_capture(views=24, size=4)
    train, test = capture.held_out()
    assert test == [4, 12, 20] and sorted(train + test) == list(range(24)) and 0 in train


# -- captures on disk ---------------------------------------------------------------------------------------------


def test_round_trip_is_bit_equal(tmp_path):
    capture = ball_capture("someone", views=5, size=12)
    capture = replace(capture, caption="ein Ball — 球", attributes={"age": 3, "deep": {"list": [1, 2.5]}})
    save_capture(capture, tmp_path / "someone")
    loaded = load_capture(tmp_path / "someone")
    assert torch.equal(loaded.cameras.camera_to_world, capture.cameras.camera_to_world)
    assert torch.equal(loaded.cameras.intrinsics, capture.cameras.intrinsics)
    assert np.array_equal(loaded.images, capture.images)
    assert (loaded.name, loaded.caption, loaded.attributes) == ("someone", capture.caption, capture.attributes)
    assert loaded.has_alpha and (loaded.cameras.width, loaded.cameras.height) == (12, 12)


def test_round_trip_of_odd_cameras(tmp_path):
    cameras = odd_cameras()
    save_capture(Capture("odd", np.zeros((4, 31, 23, 4), np.uint8), cameras), tmp_path / "odd")
    loaded = load_capture(tmp_path / "odd").cameras
    assert torch.equal(loaded.camera_to_world, cameras.camera_to_world)
    assert torch.equal(loaded.intrinsics, cameras.intrinsics)  # each frame its own
    assert (loaded.width, loaded.height) == (23, 31)


def test_round_trip_without_alpha(tmp_path):
    capture = replace(ball_capture(views=2, size=8), has_alpha=False, background=(0.25, 0.5, 1.0))
    capture.images[..., 3] = 255
    save_capture(capture, tmp_path / "rgb")
    loaded = load_capture(tmp_path / "rgb")
    assert not loaded.has_alpha and loaded.background == (0.25, 0.5, 1.0)


def test_saving_again_replaces_whole(tmp_path):
    save_capture(ball_capture(views=5, size=8), tmp_path / "a")
    save_capture(ball_capture(views=2, size=8), tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["000.png", "001.png", "transforms.json"]


def test_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        save_capture(replace(ball_capture(views=2, size=8), attributes={"bad": object()}), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_intrinsics_from_the_angle(tmp_path):
    write_capture(tmp_path, one_frame(), {"a.png": grey(40, 20)})
    fx = 20 / math.tan(0.3)  # of the width, and square pixels
    np.testing.assert_allclose(load_capture(tmp_path).cameras.intrinsics[0], [fx, fx, 20, 10], rtol=1e-15)


def test_intrinsics_in_nerfstudio_style(tmp_path):
    meta = one_frame(fl_x=33.5, fl_y=30.25, cx=19.0, cy=11.5, w=40, h=20, camera_model="OPENCV", k1=0, k2=0.0)
    del meta["camera_angle_x"]
    write_capture(tmp_path, meta, {"a.png": grey(40, 20)})
    cameras = load_capture(tmp_path).cameras
    assert cameras.intrinsics.tolist() == [[33.5, 30.25, 19.0, 11.5]] and (cameras.width, cameras.height) == (40, 20)


def test_focal_length_goes_before_the_angle_and_fy_follows_fx(tmp_path):
    write_capture(tmp_path, one_frame(fl_x=33.5), {"a.png": grey(40, 20)})
    assert load_capture(tmp_path).cameras.intrinsics.tolist() == [[33.5, 33.5, 20, 10]]


def test_intrinsics_of_a_frame_go_before_those_of_all(tmp_path):
    meta = one_frame(fl_x=30.0, cx=5.0)
    meta["frames"] = [meta["frames"][0], {**meta["frames"][0], "fl_x": 50.0, "cy": 3.0}]
    write_capture(tmp_path, meta, {"a.png": grey()})
    assert load_capture(tmp_path).cameras.intrinsics.tolist() == [[30, 30, 5, 4], [50, 50, 5, 3]]


NAMES = [("r_0.png", "./r_0"), ("a.b.png", "a.b"), ("x.jpg", "x.jpg"), ("y.PNG", "y.PNG")]


@pytest.mark.parametrize("name, listed", NAMES)
def test_file_names_with_and_without_ending(tmp_path, name, listed):
    write_capture(tmp_path, framed(file_path=listed), {name: grey()})
    assert load_capture(tmp_path).images.shape == (1, 8, 8, 4)


def test_images_in_a_subfolder_and_matrices_of_three_rows(tmp_path):
    (tmp_path / "images").mkdir()
    frame = {"file_path": "images/a.png", "transform_matrix": FRONT[:3].tolist()}
    write_capture(tmp_path, one_frame(frames=[frame]), {"images/a.png": grey()})
    assert torch.equal(load_capture(tmp_path).cameras.camera_to_world[0], FRONT)


@pytest.mark.parametrize("up", ["y", "z"])
def test_scale_offset_and_up_keep_every_point_on_its_pixel(tmp_path, up):
    scale, offset = 0.02, np.array([0.1, -0.2, 0.05])
    rng = np.random.default_rng(0)
    theirs = Cameras(
        torch.stack([look_at(rng.normal(size=3) * 150, rng.normal(size=3) * 5, (0, 0, 1)) for _ in range(3)]),
        torch.tensor([[30.0, 30, 20, 10]], dtype=torch.float64).repeat(3, 1),
        40,
        20,
    )
    frames = [{"file_path": "a.png", "transform_matrix": m.tolist()} for m in theirs.camera_to_world]
    meta = {"fl_x": 30, "up": up, "scale": scale, "offset": offset.tolist(), "frames": frames}
    write_capture(tmp_path, meta, {"a.png": grey(40, 20)})
    ours = load_capture(tmp_path).cameras

    points = rng.normal(size=(20, 3)) * 20  # in their world and units
    x, y, z = points.T
    turned = points if up == "y" else np.stack([x, z, -y], 1)  # their up becomes our y, their x stays
    moved = torch.from_numpy(scale * turned + offset)
    before, after = theirs.project(torch.from_numpy(points)), ours.project(moved)
    torch.testing.assert_close(after[..., :2], before[..., :2], atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(after[..., 2], scale * before[..., 2])

    override = load_capture(tmp_path, scale=0.01, offset=(0, 0, 0)).cameras
    expected = 0.01 * (ours.camera_to_world[:, :3, 3] - torch.from_numpy(offset)) / scale
    torch.testing.assert_close(override.camera_to_world[:, :3, 3], expected)


# -- images -------------------------------------------------------------------------------------------------------


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG, (H, W, 3 or 4) uint16, which PIL reads but cannot write."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    crc = [struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    body = (struct.pack(">I", len(d)) + k + d + c for (k, d), c in zip(chunks, crc, strict=True))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


RGB = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
RGBA = np.random.default_rng(2).integers(0, 256, (6, 8, 4), dtype=np.uint8)
PALETTE = Image.fromarray(RGB // 64 * 64).convert("P", palette=Image.Palette.ADAPTIVE, colors=64)


def opaque(rgb: np.ndarray) -> np.ndarray:
    rgb = np.repeat(rgb[..., None], 3, -1) if rgb.ndim == 2 else rgb
    return np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, np.uint8)], -1)


@pytest.mark.parametrize(
    "image, expected, alpha",
    [
        (Image.fromarray(RGBA), RGBA, True),
        (Image.fromarray(RGB), opaque(RGB), False),
        (Image.fromarray(RGB[..., 0]), opaque(RGB[..., 0]), False),
        (Image.fromarray(RGBA[..., 2:]), np.concatenate([RGBA[..., 2:3]] * 3 + [RGBA[..., 3:]], -1), True),
        (PALETTE, opaque(np.array(PALETTE.convert("RGB"))), False),
        (Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), opaque(RGB[..., 0]), False),
        (png16(RGB.astype(np.uint16) * 257), opaque(RGB), False),
        (png16(RGBA.astype(np.uint16) * 257), RGBA, True),
    ],
    ids=["rgba", "rgb", "grey", "grey+alpha", "palette", "16-bit grey", "16-bit rgb", "16-bit rgba"],
)
def test_every_kind_of_image(tmp_path, image, expected, alpha):
    write_capture(tmp_path, one_frame(), {})
    if isinstance(image, bytes):
        (tmp_path / "a.png").write_bytes(image)
    else:
        image.save(tmp_path / "a.png")
    capture = load_capture(tmp_path)
    np.testing.assert_array_equal(capture.images[0], expected)
    assert capture.has_alpha is alpha and capture.images.dtype == np.uint8


def test_palette_with_transparency(tmp_path):
    PALETTE.save(tmp_path / "a.png", transparency=PALETTE.getpixel((0, 0)))
    write_capture(tmp_path, one_frame(), {})
    capture = load_capture(tmp_path)
    hidden = np.array(PALETTE) == PALETTE.getpixel((0, 0))
    np.testing.assert_array_equal(capture.images[0, ..., 3], np.where(hidden, 0, 255))
    assert capture.has_alpha


def test_background_of_images_without_alpha(tmp_path):
    write_capture(tmp_path, one_frame(background=[0, 0.5, 1]), {"a.png": grey()})
    assert load_capture(tmp_path).background == (0, 0.5, 1)


# -- what cannot be used ------------------------------------------------------------------------------------------


def rotation(**change) -> list:
    matrix = FRONT.clone()
    for key, value in change.items():
        matrix[int(key[1]), int(key[2])] = value
    return matrix.tolist()


BAD = {
    "no frames": ({"camera_angle_x": 0.6, "frames": []}, "frames"),
    "not an object": ([1, 2], "frames"),
    "no focal length": ({"frames": framed()["frames"]}, "focal"),
    "negative focal length": (one_frame(fl_x=-3), "focal"),
    "angle of 200 degrees": (one_frame(camera_angle_x=3.5), "focal"),
    "text for a number": (one_frame(fl_x="wide"), "numeric"),
    "huge number": (one_frame(fl_x=10**400), "fl_x"),
    "number too long to read": ('{"fl_x": ' + "1" * 5000 + "}", "JSON"),
    "NaN camera": (framed(transform_matrix=rotation(m00=math.nan)), "NaN"),
    "stretched camera": (framed(transform_matrix=rotation(m00=2.0)), "rigid"),
    "mirrored camera": (framed(transform_matrix=rotation(m00=-1.0)), "rigid"),
    "3x3 matrix": (framed(transform_matrix=np.eye(3).tolist()), "shape"),
    "ragged matrix": (framed(transform_matrix=[[1, 2], [3]]), "transform_matrix"),
    "no matrix": (one_frame(frames=[{"file_path": "a.png"}]), "transform_matrix"),
    "no path": (one_frame(frames=[{"transform_matrix": FRONT.tolist()}]), "file_path"),
    "path outside": (framed(file_path="../a.png"), "outside"),
    "absolute path": (framed(file_path="/etc/hostname"), "outside"),
    "NUL in a path": (framed(file_path="a\0b"), "frame 0"),
    "missing image": (framed(file_path="b.png"), "b.png"),
    "not an image": (framed(file_path="transforms.json"), "not a readable image"),
    "looks away": (framed(transform_matrix=look_at((0, 0, 3.5), (0, 0, 9)).tolist()), "does not see"),
    "far away": (framed(transform_matrix=look_at((0, 300, 900), (0, 300, 0)).tolist()), "does not see"),
    "lens distortion": (one_frame(k1=0.1), "distortion"),
    "lens distortion of a frame": (framed(p2=0.1), "distortion"),
    "other size": (one_frame(w=16, h=8), "16×8"),
    "scale of zero": (one_frame(scale=0), "scale"),
    "offset of two": (one_frame(offset=[0, 1]), "offset"),
    "text for a background": (one_frame(background="white"), "background"),
}


@pytest.mark.parametrize("meta, word", BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_one_line(tmp_path, meta, word):
    folder = tmp_path / "capture"
    write_capture(folder, {}, {"a.png": grey()})
    Image.fromarray(grey()).save(tmp_path / "a.png")  # what "../a.png" would reach
    (folder / "transforms.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))
    with pytest.raises(DataError) as error:
        load_capture(folder)
    assert word in str(error.value) and "\n" not in str(error.value) and "capture" in str(error.value)


def test_sizes_that_differ(tmp_path):
    frames = [{"file_path": f"{n}.png", "transform_matrix": FRONT.tolist()} for n in "ab"]
    write_capture(tmp_path, one_frame(frames=frames), {"a.png": grey(8, 8), "b.png": grey(9, 8)})
    with pytest.raises(DataError, match="differ in size"):
        load_capture(tmp_path)


def test_picture_cut_in_half(tmp_path):
    write_capture(tmp_path, one_frame(), {"a.png": RGB})
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a\.png is not a readable image"):
        load_capture(tmp_path)


def test_picture_of_a_hundred_megapixels(tmp_path):
    write_capture(tmp_path, one_frame(), {"a.png": Image.new("1", (10_000, 10_000))})
    with pytest.raises(DataError, match=r"a\.png"):
        load_capture(tmp_path)


def test_find_captures(tmp_path):
    with pytest.raises(DataError, match="nothing to load"):
        find_captures(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        find_captures(tmp_path / "none")
    for name in ("b", "a", ".hidden", "other"):
        (tmp_path / name).mkdir()
        if name != "other":
            (tmp_path / name / "transforms.json").write_text("{}")
    assert find_captures(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_captures(tmp_path / "a") == [tmp_path / "a"]
