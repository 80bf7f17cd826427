"""Where E19 looks, and what it compares there: crops of pictures, how often which, photographs."""

import json
from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from toys import FieldDecoder, ball_capture, position_planes, soft_ball

from minirodin.avatar import to_rgb
from minirodin.cameras import capture_cameras, load_capture, orbit_cameras, save_capture
from minirodin.config import Config, RenderConfig, UpsamplerConfig
from minirodin.errors import ConfigError, DataError
from minirodin.patches import Patches, Views, draw_patches, facing, importance, photographs
from minirodin.perceptual import PerceptualDistance
from minirodin.picture_losses import perceptual_patch_loss, render_patches
from minirodin.render import Occupancy, occupancy_from_planes, render_rays, render_views
from minirodin.shards import FittedPlanes

CONFIG = UpsamplerConfig(view=24, patch=12)
RENDER = RenderConfig(grid=16, bins=48, samples=8, view_samples=48)
BALL = FieldDecoder(soft_ball(radius=0.4), lambda p: (0.5 + 0.5 * torch.sin(9 * p)).clamp(0, 1))


@pytest.fixture(scope="module")
def eyes():
    return PerceptualDistance("efficientnet-lite0")


@pytest.fixture(scope="module")
def people(fitted):
    """Planes of two people with something to see, (2, 3, 4, 16, 16), and their decoder."""
    known = FittedPlanes(fitted)
    planes = torch.stack([known.planes(name) for name in known.names])
    return planes + 0.4 * torch.randn(planes.shape, generator=torch.Generator().manual_seed(0)), known.decoder.decoder


def seen_by(cameras):
    return cameras.camera_to_world.float(), cameras.intrinsics.float()


def moved(x):
    """Planes on which `BALL` lies at (x, 0, 0)."""
    return position_planes(32)[None] - torch.tensor([x, 0, 0])[:, None, None] / 3


def test_a_patch_is_a_crop_of_the_picture(people):
    planes, decoder = people
    cameras = capture_cameras(3, 24, seed=4)[[1, 2]]
    occupancy = occupancy_from_planes(planes, decoder, RENDER.grid)

    def patch(x, y, size):
        corner = torch.tensor([[x, y], [y, x]])  # other for the other person
        return render_patches(planes, decoder, Patches(*seen_by(cameras), corner, size), occupancy, RENDER)

    full = patch(0, 0, 24)
    views = [render_views(p, decoder, cameras[i], occupancy[[i]], 48, 48)[0] for i, p in enumerate(planes)]
    over_white = to_rgb(torch.stack(views)).permute(0, 3, 1, 2)
    assert over_white.std((2, 3)).min() > 0.02 and (over_white[0] - over_white[1]).abs().mean() > 0.02
    torch.testing.assert_close(full, over_white, atol=2e-5, rtol=0)
    for x, y in ((0, 0), (12, 0), (3, 12), (12, 12)):
        crops = full[0, :, y : y + 12, x : x + 12], full[1, :, x : x + 12, y : y + 12]
        torch.testing.assert_close(patch(x, y, 12), torch.stack(crops), atol=1e-5, rtol=0)


def off_centre(azimuth, elevation, size):
    cameras = orbit_cameras(azimuth, elevation, size)
    return replace(cameras, intrinsics=cameras.intrinsics * torch.tensor([1, 1, 1.1, 0.95]))


@pytest.mark.parametrize("face", [CONFIG.face, (0.2, -0.3, 0.5), (9.0, 0.0, 0.0)])
def test_importance_is_that_of_the_slow_loop(face):
    config = replace(CONFIG, face=face, patch=7, elsewhere=0.2)
    cameras = off_centre([0, 50, 180, 275], [0, 30, -10, 45], 16)
    found = importance(*seen_by(cameras), 16, config)
    for view, (x, y, depth) in enumerate(cameras.project(torch.tensor([face]))[:, 0].tolist()):
        radius = config.face_radius * float(cameras.intrinsics[view, 0]) / depth
        away = [[((c + 3.5 - x) ** 2 + (r + 3.5 - y) ** 2) / radius**2 for c in range(10)] for r in range(10)]
        weight = torch.tensor([[exp(-d / 2) + 0.2 for d in row] for row in away])
        torch.testing.assert_close(found[view], weight / weight.sum(), atol=1e-6, rtol=1e-4)


def test_patches_fall_most_often_on_the_face_from_behind_too_and_elsewhere_as_well():
    cameras = off_centre(range(0, 360, 30), 20, 64)
    weight = importance(*seen_by(cameras), 64, replace(CONFIG, patch=20, face_radius=0.1))
    assert weight.shape == (12, 45, 45)
    torch.testing.assert_close(weight.sum((1, 2)), torch.ones(12))
    lowest, (highest, peak) = weight.flatten(1).amin(1), weight.flatten(1).max(1)
    middle = torch.stack([peak % 45, peak // 45], dim=1) + 10.0
    face = cameras.project(torch.tensor([CONFIG.face]))[:, 0, :2]
    assert (middle - face).abs().max() <= 0.5 + 1e-4
    assert (lowest / highest).tolist() == pytest.approx([0.15 / 1.15] * 12, rel=0.05)  # the floor, under the peak too


def test_pictures_are_looked_at_as_often_as_the_face_is_seen_on_them():
    """Four cameras around a face straight ahead: in front, at the sides (a little behind it) and behind."""
    views, number = Views(orbit_cameras([0, 90, 180, -90], 0, 24), replace(CONFIG, face=(0, 0, 0.4))), 4000
    patches, _ = views.draw(torch.zeros(number, dtype=torch.long), torch.Generator().manual_seed(0))
    drawn = (patches.matrix[:, None] == views.matrix).all((2, 3)).sum(0)
    assert chisquare(drawn, number * torch.tensor([1.15, 0.15, 0.15, 0.15]) / 1.6).pvalue > 0.01
    torch.testing.assert_close(facing(views.matrix, replace(CONFIG, face=(0, 0, 0))), torch.full((1, 4), 0.25))


def test_patches_are_drawn_as_often_as_importance_says():
    cameras, number = orbit_cameras([20, 140], 10, 24), 6000
    matrix, intrinsics = (v.repeat(number, *[1] * (v.dim() - 1)) for v in seen_by(cameras))  # by turns
    patches = draw_patches(matrix, intrinsics, 24, CONFIG, torch.Generator().manual_seed(0))
    assert torch.equal(patches.matrix, matrix) and patches.corner.aminmax() == (0, 12)
    drawn = torch.zeros(2, 13, 13)
    which = torch.arange(2 * number) % 2
    drawn.index_put_((which, patches.corner[:, 1], patches.corner[:, 0]), torch.tensor(1.0), accumulate=True)
    wanted = number * importance(*seen_by(cameras), 24, CONFIG)
    binned = ([m[i : i + 4, j : j + 4].sum() for i in (0, 4, 8, 12) for j in (0, 4, 8, 12)] for m in (*drawn, *wanted))
    one, two, wanted_one, wanted_two = binned
    assert min(chisquare(one, wanted_one).pvalue, chisquare(two, wanted_two).pvalue) > 0.01
    assert max(chisquare(one, wanted_two).pvalue, chisquare(two, wanted_one).pvalue) < 1e-6


def test_photographs_are_cropped_where_the_rays_are():
    """Every pixel of a picture says whose it is, of which view, row and column."""
    each = [capture_cameras(3, 24, seed=seed) for seed in range(4)]
    axes = torch.meshgrid(*(torch.arange(n) for n in (4, 3, 24, 24)), indexing="ij")
    of = torch.arange(40) % 4
    patches, seen = Views(each, CONFIG, torch.stack(axes, dim=-1).byte()).draw(of, torch.Generator().manual_seed(0))
    who, view, row, column = (seen * 255).round().long().unbind(-1)  # (40, 12, 12) each
    assert torch.equal(who, of[:, None, None].expand(40, 12, 12))
    assert set(view.flatten().tolist()) == {0, 1, 2} and (view == view[:, :1, :1]).all()
    x, y = patches.pixels()
    assert torch.equal(column.flatten(1), x) and torch.equal(row.flatten(1), y)
    origins, directions = patches.rays()
    for i, (s, v) in enumerate(zip(of.tolist(), view[:, 0, 0].tolist(), strict=True)):
        wanted = (rays.view(24, 24, 3)[row[i], column[i]].view(-1, 3) for rays in each[s].rays(v))
        torch.testing.assert_close((origins[i], directions[i]), tuple(wanted))


def test_photographs_are_the_training_views_of_these_people(captures):
    views = photographs(captures, ["two", "one"], Config(upsampler=CONFIG))
    for place, name in enumerate(("two", "one")):
        capture = load_capture(captures / name)
        train = capture.held_out()[0]
        assert torch.equal(views.pictures[place], torch.from_numpy(capture.images[train]))
        for found, wanted in zip((views.matrix, views.intrinsics), seen_by(capture.cameras[train]), strict=True):
            assert torch.equal(found[place], wanted)


def test_a_face_that_nobody_sees_leaves_all_places_alike():
    """Even where patches fall nowhere but on the face."""
    cameras = off_centre([0, 180], 0, 64)
    weight = importance(*seen_by(cameras), 64, replace(CONFIG, face=(30.0, 0.0, 0.0), face_radius=0.01, elsewhere=0.0))
    torch.testing.assert_close(weight, torch.full_like(weight, 1 / 53**2))


def test_larger_photographs_are_reduced_to_the_views_that_are_compared(tmp_path):
    """Three of its pixels are one there, colours count by their alpha, and rays meet at their middle."""
    capture = ball_capture("large", views=5, size=72)
    save_capture(capture, tmp_path / "large")
    views = photographs(tmp_path, ["large"], Config(upsampler=CONFIG))
    train = capture.held_out()[0]
    rgba = capture.images[train].astype(float).reshape(4, 24, 3, 24, 3, 4)
    alpha = rgba[..., 3:].mean((2, 4))
    colour = (rgba[..., :3] * rgba[..., 3:]).mean((2, 4)) / np.maximum(alpha, 1)
    found = views.pictures[0].numpy().astype(float)
    assert views.size == 24 and np.abs(found[..., 3:] - alpha).max() <= 1
    assert (np.abs(found[..., :3] - colour)[alpha[..., 0] > 64] <= 4).all()
    small, large = Patches(*seen_of(views), torch.zeros(4, 2, dtype=torch.long), 24).rays(), capture.cameras
    for view in range(4):
        middle = large.rays(train[view])[1].view(72, 72, 3)[1::3, 1::3].reshape(-1, 3)
        torch.testing.assert_close(small[1][view], middle)


def seen_of(views):
    return views.matrix[0], views.intrinsics[0]


def test_photographs_without_alpha_are_compared_over_their_own_background(eyes, tmp_path):
    """One person before green, one cut out: the true planes are at no distance, as they are before white."""
    green, planes = (0.1, 0.7, 0.2), torch.cat([moved(0.1), moved(-0.2)])
    for i, (p, name) in enumerate(zip(planes, ("before", "cut"), strict=True)):
        cameras = capture_cameras(5, 24, seed=i)
        rgba = render_views(p, BALL, cameras, None, 48, 48, RENDER.grid)
        capture = replace(ball_capture(name, views=5, size=24), cameras=cameras)
        if name == "before":
            rgb = torch.lerp(torch.tensor(green), rgba[..., :3], rgba[..., 3:])
            rgba = torch.cat([rgb, torch.ones_like(rgb[..., :1])], dim=-1)
            capture = replace(capture, has_alpha=False, background=green)
        save_capture(replace(capture, images=(rgba * 255).round().byte().numpy()), tmp_path / name)
    views = photographs(tmp_path, ["before", "cut"], Config(upsampler=CONFIG))
    behind = torch.tensor([(1, 1, 1), green, (1, 1, 1)])
    torch.testing.assert_close(views.behind(torch.tensor([1, 0, 1])), behind)
    of = torch.tensor([0, 1, 0])
    near, far = (loss_of(planes[of], planes[of], BALL, eyes, views, who).tolist() for who in (of, 1 - of))
    assert max(near) < 1e-3 * min(far) and min(far) > 0.1


def test_photographs_that_do_not_fit_are_one_line(captures, tmp_path):
    for name, views, size in (("one", 5, 24), ("few", 3, 24), ("wide", 5, 24), ("small", 5, 20)):
        save_capture(ball_capture(name, views, size), tmp_path / name)
    for path in (tmp_path / "wide").glob("*.png"):
        Image.open(path).crop((0, 0, 30, 24)).save(path)
    meta = json.loads((tmp_path / "wide" / "transforms.json").read_text())
    (tmp_path / "wide" / "transforms.json").write_text(json.dumps(meta | {"w": 30}))
    cases = {
        r"few has not as many views as .*one$": ["one", "few"],
        r"wide has pictures of 30×24: give squares of at least upsampler.view, 24$": ["one", "wide"],
        r"small has pictures of 20×20: give squares of at least upsampler.view, 24$": ["small", "one"],
    }
    for said, names in cases.items():
        with pytest.raises(DataError, match=said) as error:
            photographs(tmp_path, names, Config(upsampler=CONFIG))
        assert "\n" not in str(error.value)


def test_views_that_do_not_fit_are_one_line(captures):
    for patch in (25, 0):
        with pytest.raises(ConfigError, match=f"^patches of {patch} pixels do not fit into views of 24.*$"):
            Views.around(replace(CONFIG, patch=patch))
    with pytest.raises(DataError, match=r"^.*no capture of three \(2 are missing\).*$"):
        photographs(captures, ["one", "three", "four"], Config(upsampler=CONFIG))


def loss_of(planes, truth, decoder, eyes, views=None, of=None):
    of, views = torch.arange(len(planes)) if of is None else of, views or Views.around(CONFIG, 8)
    return perceptual_patch_loss(planes, truth, decoder, views, of, eyes, RENDER, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("azimuth", [20, 90])
def test_what_only_one_of_two_has_is_seen(eyes, azimuth):
    """A ball here in truth and there in what is predicted, beside or behind: as if all space were sampled, finely."""
    views, pictures = Views(orbit_cameras(azimuth, 0, 24), CONFIG), {}
    patches, _ = views.draw(torch.arange(1), torch.Generator().manual_seed(0))
    for x in (0.35, -0.35, 30.0):
        seen = render_rays(moved(x), BALL, *patches.rays(), Occupancy.full(1, 4, "cpu"), 64, 256).over(torch.ones(3))
        pictures[x] = seen.view(1, 12, 12, 3).permute(0, 3, 1, 2)
    assert (pictures[30.0] == 1).all()  # out of the box nothing is left
    for a, b in ((0.35, -0.35), (-0.35, 0.35), (30.0, 0.35), (0.35, 30.0)):
        found, wanted = loss_of(moved(a), moved(b), BALL, eyes, views), eyes(pictures[a], pictures[b])
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0)


def test_the_gradient_reaches_all_planes_and_nothing_else(people, eyes):
    planes, decoder = people
    assert loss_of(planes, planes, decoder, eyes).abs().max() < 1e-9
    predicted, truth = (p.clone().requires_grad_(True) for p in (planes, planes.flip(0)))
    loss = loss_of(predicted, truth, decoder, eyes)
    loss.sum().backward()
    assert loss.shape == (2,) and loss.min() > 0.01
    assert (predicted.grad.abs().amax((2, 3, 4)) > 1e-6).all() and predicted.grad.isfinite().all()
    assert truth.grad is None and not any(p.requires_grad for p in [*decoder.parameters(), *eyes.parameters()])
    step = 0.05 * predicted.grad / predicted.grad.norm()
    with torch.no_grad():
        less, more = (loss_of(predicted + s * step, truth, decoder, eyes).sum() for s in (-1, 1))
    assert float(more - less) == pytest.approx(2 * 0.05 * float(predicted.grad.norm()), rel=0.1)


def test_photographs_stand_for_the_truth(eyes):
    """Pictures rendered from the true planes: no distance from them, and a distance from those of another."""
    planes, cameras = torch.cat([moved(0.1), moved(-0.2)]), [capture_cameras(4, 24, seed=seed) for seed in range(2)]
    both = zip(planes, cameras, strict=True)
    pictures = torch.stack([render_views(p, BALL, c, None, 48, 48, RENDER.grid) for p, c in both])
    views = Views(cameras, CONFIG, (pictures * 255).round().byte())
    of = torch.tensor([1, 0, 1])
    near, far = (loss_of(planes[of], planes[of], BALL, eyes, views, who).tolist() for who in (of, 1 - of))
    assert max(near) < 1e-3 * min(far) and min(far) > 0.1
