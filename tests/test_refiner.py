"""The refiner (E20): clean interpolation to begin with, what it learns from, its files, and what it refuses."""

import csv
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from toys import FieldDecoder, ball_capture, position_planes, soft_ball

from minirodin import cli
from minirodin.avatar import Avatar
from minirodin.cameras import capture_cameras, save_capture
from minirodin.config import Config, RefinerConfig, TrainConfig
from minirodin.consistency import disagreement
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.metrics import psnr
from minirodin.perceptual import PerceptualDistance
from minirodin.refiner import Refiner, enlarge, premultiplied, refine, straight
from minirodin.refiner_data import Pairs, Photographs, turned
from minirodin.refiner_evaluation import evaluate_refiner
from minirodin.refiner_training import refiner_losses, train_refiner
from minirodin.render import render_views
from minirodin.shards import FittedPlanes, begin_folder

TINY = RefinerConfig(
    **{"channels": (16, 8, 6), "blocks": (2, 1, 1), "view": 24, "patch": 12, "resolutions": (16, 8), "pairs": 1},
    perceptual="efficientnet-lite0",
    train=TrainConfig(
        **{"steps": 6, "batch": 2, "lr": 2e-3, "warmup": 2, "ema": 0.9},
        **{"log_every": 2, "preview_every": 6, "checkpoint_every": 2},
    ),
)
HUGE = (8000, 8000, 4)


def config(train=None, **changes):
    return replace(tiny_config(), refiner=replace(TINY, train=replace(TINY.train, **(train or {})), **changes))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(*shape, seed=0):
    """RGBA with straight alpha: opaque, transparent and between."""
    rgba = torch.rand(*shape, 4, generator=seeded(seed))
    rgba[..., 3] = (3 * rgba[..., 3] - 1).clamp(0, 1)
    return rgba


def answering(config=TINY, scale=0.3):
    """A refiner that adds something to everything."""
    torch.manual_seed(0)
    model = Refiner(config).eval()
    for i, p in enumerate(model.parameters()):
        p.data += scale * torch.randn(p.shape, generator=seeded(i)) / max(1, p[0].numel()) ** 0.5
    return model


def laid_over(images, grey=0.5):
    return images[..., :3] * images[..., 3:] + grey * (1 - images[..., 3:])


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("shape", [(9, 9), (1, 1), (7, 13), (24, 5)])
def test_it_begins_as_clean_interpolation(scale, shape):
    images = pictures(2, *shape)
    made = refine(Refiner(TINY), images, scale)
    assert made.shape == (2, scale * shape[0], scale * shape[1], 4) and made.dtype == torch.float32
    assert torch.equal(made, refine(None, images, scale))
    opaque = images.clone()
    opaque[..., 3] = 1
    for given, channels in ((images, slice(3, 4)), (opaque, slice(4))):
        wanted = F.interpolate(given.permute(0, 3, 1, 2), scale_factor=scale, mode="bicubic").permute(0, 2, 3, 1)
        found = refine(None, given, scale)[..., channels]
        torch.testing.assert_close(found, wanted[..., channels].clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [2, 4])
def test_what_it_adds_leaves_alpha_alone_and_nobody_stays_nobody(scale):
    images, model = pictures(2, 11, 14), answering()
    images[:, :6, :6, 3] = 0
    made, clean = refine(model, images, scale), refine(None, images, scale)
    assert torch.equal(made[..., 3], clean[..., 3])
    assert (made - clean).abs()[clean[..., 3] > 0.5].mean() > 0.02
    with torch.no_grad():
        added = model(premultiplied(images), scale)[-1] - enlarge(premultiplied(images), scale)
    most = added[:, :3].abs() / clean[..., 3].clamp_min(1e-6)[:, None]  # as a difference of straight colours
    assert not added.movedim(1, -1)[clean[..., 3] == 0].any() and most.max() < 4 * most.mean() > 0.05
    assert made.min() >= 0 and made.max() <= 1


def test_the_grid_of_pixels_is_not_seen_in_what_it_adds_at_first():
    """One colour everywhere, refined by something that has hardly learned, is one colour away from the borders."""
    torch.manual_seed(0)
    model = Refiner(TINY)
    for tail in model.tails:
        torch.nn.init.normal_(tail.weight, std=0.1)
    images = torch.full((1, 40, 40, 4), 0.5)
    images[..., 3] = 1
    inner = refine(model, images)[0, 4 * model.reach : -4 * model.reach, 4 * model.reach : -4 * model.reach, :3]
    assert inner.numel() > 1000 and (inner - 0.5).abs().min() > 1e-3 and inner.flatten(0, 1).std(0).max() < 1e-5


def test_no_dark_rims_and_no_bright_ones():
    """One colour, whatever its alpha and whatever is behind it where nothing is, keeps that colour."""
    images = pictures(1, 12, 12)
    images[..., :3] = torch.where(images[..., 3:] > 0, torch.tensor([0.9, 0.5, 0.3]), 0)
    made = refine(None, images)
    seen = made[made[..., 3] > 1e-3]
    assert len(seen) > 500 and (seen[:, :3] - torch.tensor([0.9, 0.5, 0.3])).abs().max() < 1e-4


def test_what_moves_in_a_picture_moves_in_its_refinement():
    """Away from the borders, at every scale, by any step."""
    model, images = answering(), pictures(1, 60, 60)
    edge = model.reach
    for scale in (2, 4):
        whole = refine(model, images, scale)
        for down, right in ((1, 0), (0, 3), (2, 5)):
            part = refine(model, images[:, down : down + 50, right : right + 50], scale)
            inner = slice(scale * edge, scale * (50 - edge))
            moved = whole[:, scale * down :, scale * right :][:, inner, inner]
            assert moved.numel() and moved.std() > 0.1
            torch.testing.assert_close(part[:, inner, inner], moved, atol=1e-4, rtol=0)


def test_a_pixel_reaches_as_far_as_is_said():
    """By the gradient: never farther than `reach`, and not by more than a few pixels less."""
    for channels in (TINY, replace(TINY, blocks=(3, 0, 2)), replace(TINY, blocks=(0, 0, 0))):
        model = answering(channels).double()
        half = 2 * model.reach
        x = torch.rand(1, 4, 1, 2 * half + 1, dtype=torch.double).expand(-1, -1, 5, -1).clone().requires_grad_(True)
        made = model(x)[-1][0, :3, 10, 4 * half : 4 * half + 4]
        (grad,) = torch.autograd.grad(made.sum(), x)
        seen = (grad.abs().amax((0, 1, 2)) > 0).nonzero()[:, 0] - half
        farthest = int(seen.abs().max())
        assert model.reach - 3 <= farthest <= model.reach, (farthest, model.reach)


@pytest.mark.parametrize("tile", [1, 7, 16, 40])
def test_tiles_give_the_whole(tile):
    model, images = answering(), pictures(1, 33, 41 if tile > 1 else 3)
    for scale in (2, 4):
        for network in (None, model):
            whole, tiled = (refine(network, images, scale, t) for t in (64, tile))
            torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)
    assert (whole - refine(None, images)).abs().max() > 0.1


def test_bytes_are_refined_as_bytes():
    images, model = (255 * pictures(2, 20, 12)).round().byte(), answering()
    made = refine(model, images)
    assert made.dtype == torch.uint8
    wanted = (255 * refine(model, images / 255)).round()
    assert torch.equal(made.float(), wanted)


def test_memory_is_that_of_a_tile():
    """However large the picture: what goes into the network is a tile and its borders."""
    seen, model = [], answering()
    forward = model.forward
    model.forward = lambda x, scale: (seen.append(x.shape), forward(x, scale))[1]
    refine(model, pictures(1, 90, 70), 2, tile=16)
    side = 16 + 2 * model.reach
    assert len(seen) == 6 * 5 and max(h for *_, h, w in seen) <= side >= max(w for *_, w in seen)


@pytest.mark.parametrize(
    "said, error, values",
    [
        ("scale is 3, tile 256: give a scale of 2 or 4", ConfigError, (pictures(1, 8, 8), 3)),
        ("scale is 4, tile 0: give", ConfigError, (pictures(1, 8, 8), 4, 0)),
        (r"shape \(8, 8, 4\): give RGBA", DataError, (pictures(8, 8),)),
        (r"shape \(1, 8, 8, 3\): give RGBA", DataError, (pictures(1, 8, 8)[..., :3],)),
        (r"shape \(0, 8, 8, 4\): give RGBA", DataError, (pictures(0, 8, 8),)),
        (
            "8000×8000 pixels, 4 times enlarged, are more than 256 M",
            DataError,
            (torch.zeros(1).expand(1, *HUGE),),
        ),
    ],
)
def test_pictures_that_cannot_be_refined_are_one_line(said, error, values):
    refused(said, refine, None, *values, kind=error)


def refused(said, call, *values, kind=CheckpointError, **named):
    with pytest.raises(kind, match=said) as error:
        call(*values, **named)
    assert "\n" not in str(error.value)


# -- what it learns from ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eyes():
    return PerceptualDistance("efficientnet-lite0")


BALL = FieldDecoder(soft_ball(radius=0.7, sharpness=150, density=150), lambda p: 0.5 + 0.4 * torch.sin(6 * p))


def balls(pairs=2, seed=0, upsampled=None, **changes):
    """Views of an analytic ball; what is said to be photographs of it is noise."""
    c = replace(TINY, **{"pairs": pairs, "resolutions": (64,), "turn": 10.0, "blur": 0.0, "noise": 0.0, **changes})
    settings = replace(tiny_config().render, grid=32, bins=64, view_samples=48)
    shared = SimpleNamespace(decoder=BALL, config=replace(tiny_config(), render=settings))
    people = SimpleNamespace(planes=lambda name: position_planes(), decoder=shared)
    cameras = [capture_cameras(3, 24, seed=i) for i in range(seed, seed + 2)]
    truth = torch.randint(256, (2, 3, 96, 96, 4), dtype=torch.uint8, generator=seeded())
    background = torch.tensor([(torch.nan,) * 3, (0.1, 0.7, 0.2)])
    photographs = Photographs(["a", "b"], cameras, truth, background)
    return Pairs(people, photographs, c, torch.device("cpu"), False, upsampled)


def test_patches_lie_where_the_photographs_lie():
    """With views that are the photographs, made smaller, so are the patches; both in colours times alpha."""
    pairs = balls()
    truth = premultiplied(pairs.photographs.pictures.flatten(0, 1).float())
    truth[:, :3] /= 255
    small = F.avg_pool2d(truth, 4)
    small[:, :3] *= 255 / small[:, 3:]
    pairs.pictures = small.permute(0, 2, 3, 1).unflatten(0, (2, 3))[None].round().byte()
    batch = pairs.draw(32, seeded())
    assert batch.views.shape == (36, 4, 12, 12) and batch.truth.shape == (32, 4, 48, 48)
    assert (F.avg_pool2d(batch.truth, 4) - batch.views[:32]).abs().max() < 2 / 255
    again, other = pairs.draw(32, seeded()), pairs.draw(32, seeded(1))
    assert torch.equal(batch.views, again.views) and not torch.allclose(batch.views, other.views)
    green = (batch.behind == torch.tensor([0.1, 0.7, 0.2])).all(1)
    assert 6 < green.sum() < 26 and batch.behind[~green].unique(dim=0).shape[0] == 32 - green.sum()


def test_upsampled_people_are_drawn_as_often_as_each_size():
    """Kinds in the order of the sizes, upsampled last; neighbours that shall agree are of the fitted ones alone."""
    red = SimpleNamespace(planes=lambda name: 0 * position_planes())
    fitted, pairs = balls(resolutions=(64, 32)), balls(resolutions=(64, 32), upsampled=red)
    assert torch.equal(pairs.pictures[:2], fitted.pictures) and len(pairs.pictures) == 3
    assert torch.equal(pairs.neighbours, fitted.neighbours)
    assert torch.allclose(pairs.depth, fitted.depth, 0, 0, equal_nan=True)
    flat = pairs.pictures[2][..., :3][pairs.pictures[2][..., 3] == 255].float()
    assert flat.std(0).max() < 1 < pairs.pictures[0][..., :3][pairs.pictures[0][..., 3] == 255].float().std(0).min()
    pairs.pictures[0, ..., :3], pairs.pictures[1, ..., :3], pairs.pictures[2, ..., :3] = 50, 100, 200
    batch = pairs.draw(600, seeded())
    inside = (batch.views[:, :3] / batch.views[:, 3:])[:, 0, 6, 6]
    counts = [int(((255 * inside[:600]).round() == value).sum()) for value in (50, 100, 200)]
    assert sum(counts) > 550 and min(counts) > 150, counts
    assert not {100.0, 200.0} & set((255 * inside[600:]).round().tolist())


def test_pairs_of_patches_show_the_same_places():
    """Warped onto each other they agree, unlike pairs interchanged, and share more than patches at the same pixels."""
    pairs, shares = balls(pairs=64, turn=30.0), []
    for opposite in (lambda of, corner: corner, pairs._opposite):
        pairs._opposite = opposite
        batch = pairs.draw(1, seeded())
        a, b = enlarge(batch.views[1:], 4)[:, :3].chunk(2)
        difference, valid = disagreement(a, b, *batch.where)
        shares.append(float(valid.float().mean()))
    wrong, _ = disagreement(a, b.roll(1, 0), *batch.where)
    assert 0.45 < shares[1] > 1.2 * shares[0]
    assert difference.sum() / valid.sum() < 0.02 < 0.1 < wrong.sum() / valid.sum()


def test_neighbours_stand_beside():
    cameras = capture_cameras(6, 24, seed=0)
    beside = turned(cameras, 10.0)
    eyes_a, eyes_b = (c.camera_to_world[:, :3, 3] for c in (cameras, beside))
    torch.testing.assert_close(eyes_b.norm(dim=1), eyes_a.norm(dim=1))
    torch.testing.assert_close(eyes_b[:, 1], eyes_a[:, 1])
    azimuth = [torch.atan2(e[:, 0], e[:, 2]).rad2deg() for e in (eyes_a, eyes_b)]
    step = (azimuth[1] - azimuth[0] + 180) % 360 - 180
    torch.testing.assert_close(step, torch.tensor([10.0, -10.0] * 3, dtype=torch.double))
    middle = beside.project(torch.zeros(1, 3, dtype=torch.double))[:, 0, :2]
    torch.testing.assert_close(middle, torch.full_like(middle, 12.0))


def test_views_are_spoiled_and_photographs_and_pairs_are_not():
    plain, spoiled = (balls(**c).draw(64, seeded()) for c in ({}, {"blur": 1.5, "noise": 0.1}))
    change = (spoiled.views - plain.views).abs().amax((1, 2, 3))
    assert torch.equal(spoiled.truth, plain.truth) and (change[:64] > 0.01).float().mean() > 0.8
    assert not change[64:].any() and change[:64].max() < 0.8
    rgb, alpha = spoiled.views[:, :3], spoiled.views[:, 3:]
    assert rgb.min() >= 0 and (rgb <= alpha + 1e-6).all()


def right(batch):
    """What is to come out, of both sizes: true colours with the silhouette of the view, else those interpolated."""
    out, count = [], len(batch.truth)
    for scale, truth in ((2, F.avg_pool2d(batch.truth, 2)), (4, batch.truth)):
        clean = enlarge(batch.views, scale)
        alpha, known = clean[:count, 3:], truth[:, 3:]
        colours = torch.where(known > 0, truth[:, :3] / known, 0)  # straight
        clean[:count, :3] = torch.lerp(clean[:count, :3], alpha * colours, known)
        out.append(clean)
    return out


def test_the_losses_are_nil_for_what_is_right_and_see_what_is_wrong(eyes):
    """Where the silhouette is another than the true one, too."""
    batch, calls, wrong = balls().draw(3, seeded()), [], torch.zeros(7, 4, 48, 48)

    def knows(views):
        calls.append(views.shape)
        half, whole = right(batch)
        return [half, whole + wrong]

    found = refiner_losses(knows, batch, TINY, eyes)
    assert calls == [(7, 4, 12, 12)]  # one call of one tensor, so that it can be replayed as a CUDA graph
    assert float(found["l1"].max()) < 1e-6 and float(found["perceptual"].max()) < 1e-6
    assert float(found["loss"]) == pytest.approx(TINY.consistency_weight * float(found["consistency"]), abs=1e-6)
    wrong[1, :3] = 0.1  # of one size
    seen = refiner_losses(knows, batch, TINY, eyes)
    assert seen["l1"].tolist() == pytest.approx([0, 0.05, 0], abs=1e-6) and seen["perceptual"][1] > 1e-3
    wrong[1], wrong[5:, :3] = 0, 0.2  # one side of the pairs
    apart = refiner_losses(knows, batch, TINY, eyes)
    assert float(apart["consistency"]) > float(found["consistency"]) + 0.1 and not apart["l1"].max() > 1e-6
    less = replace(TINY, pairs=0, perceptual_weight=0.0)
    assert refiner_losses(knows, batch, less, None).keys() == {"loss", "l1"}


def test_the_grid_of_what_looks_meets_that_of_pixels_differently():
    pairs, generator = balls(pairs=0), seeded()
    skips = {pairs.draw(1, generator).skip for _ in range(100)}
    assert len(skips) > 40 and {n for skip in skips for n in skip} == set(range(8))
    shapes = []

    def looks(seen, true):
        shapes.append(seen.shape[-2:])
        return (seen - true).abs().mean((1, 2, 3))

    batch = replace(pairs.draw(1, generator), skip=(3, 6))
    refiner_losses(lambda views: right(batch), batch, replace(TINY, pairs=0), looks)
    assert shapes == [(24 - 3, 24 - 6), (48 - 3, 48 - 6)]


# -- training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(fitted, large, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refiner")
    return folder, train_refiner(fitted, config(), folder, large, validation=fitted, show_progress=False)


def test_training_leaves_model_log_and_renders(trained):
    folder, model = trained
    loaded, images = Refiner.load(folder, "cpu"), pictures(1, 10, 9)
    assert torch.equal(refine(loaded, images), refine(model, images)) and loaded.config == TINY
    assert not any(p.requires_grad for p in loaded.parameters())
    rows = list(csv.DictReader((folder / "log.csv").open()))
    wanted = {"step", "loss", "l1", "perceptual", "consistency", "refined_psnr", "bicubic_efficientnet-lite0"}
    assert [row["step"] for row in rows] == ["2", "4", "6"] and wanted <= set(rows[-1])
    assert Image.open(folder / "preview-000006.png").width > 90 and not (folder / "resume.safetensors").exists()


def test_what_views_lack_is_learned():
    """Here, besides detail, contrast: views by other cameras gain much of it."""
    sharp, pairs = FieldDecoder(BALL.density, lambda p: 0.5 + 0.4 * torch.tanh(8 * torch.sin(12 * p))), []
    for seed in (0, 7):
        pairs.append(balls(pairs=0, seed=seed, patch=16))
        cameras = [c.resized(96, 96) for c in pairs[-1].photographs.cameras]
        seen = torch.stack([render_views(position_planes(), sharp, c, None, 64, 32, 32) for c in cameras])
        pairs[-1].photographs.pictures[:] = (255 * seen).round()
        small = straight(F.avg_pool2d(premultiplied(seen.flatten(0, 1)), 4))
        small[..., :3] = 0.5 * small[..., :3] + 0.25
        pairs[-1].pictures = (255 * small).round().byte().unflatten(0, (2, 3))[None]
    c = replace(TINY, pairs=0, perceptual_weight=0.0)
    torch.manual_seed(0)
    model, losses, generator = Refiner(c), [], seeded()
    optimiser = torch.optim.Adam(model.parameters(), 6e-3)
    for _ in range(50):
        found = refiner_losses(model, pairs[0].draw(6, generator), c, None)
        optimiser.zero_grad()
        found["loss"].backward()
        optimiser.step()
        losses.append(found["loss"].item())
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])
    images, truth = (p.flatten(0, -4) / 255 for p in (pairs[1].pictures[0], pairs[1].photographs.pictures))
    inside = (truth[..., 3] == 1) & (refine(None, images)[..., 3] == 1)  # the silhouette stays as it was
    errors = [float((refine(m, images)[inside] - truth[inside]).square().mean()) for m in (model, None)]
    assert errors[0] < 0.6 * errors[1], errors


def test_everything_is_measured(trained, fitted, large):
    found = evaluate_refiner(trained[1], fitted, large, generated=fitted, show_progress=False)
    assert (found["subjects"], found["generated"], found["views"], found["image_size"]) == (2, 2, 1, 96)
    kinds = ["bicubic", "refined", "rendered"]
    assert list(found["mean"]) == list(found["consistency"]) == list(found["frechet"]["fitted"]) == kinds
    assert found["frechet"]["fitted"] == found["frechet"]["generated"]  # they are the same people here
    distances = [found["frechet"]["fitted"][kind]["parts"] for kind in kinds]
    assert min(distances) > 1 and len(set(distances)) == 3
    refined, bicubic = (found["mean"][kind] for kind in ("refined", "bicubic"))
    assert all(refined[key] != bicubic[key] for key in ("psnr", "ssim", "efficientnet-lite0"))
    views = Photographs.load(large, ["one", "two"], 24, held_out=True)
    by_hand = []
    for name, cameras, truth in zip(views.names, views.cameras, views.pictures, strict=True):
        made = refine(None, Avatar.load(fitted / name).views(cameras))
        by_hand.append(psnr(*(laid_over(x, 1.0).clamp(0, 1) for x in (made, truth / 255))))
    assert bicubic["psnr"] == pytest.approx(float(torch.cat(by_hand).mean()), abs=1e-3)
    json.dumps(found)
    refused("holds nobody", evaluate_refiner, trained[1], large, large, kind=DataError)


def test_training_begins_where_another_ended(trained, fitted, large, tmp_path):
    still = config(train={"steps": 1, "lr": 0.0})
    begun = partial(train_refiner, fitted, captures=large, show_progress=False, start=trained[0])
    same = begun(still, tmp_path / "same").state_dict()
    assert all(torch.equal(value, same[key]) for key, value in trained[1].state_dict().items())
    further = begun(config(), tmp_path / "on").state_dict()
    assert not all(torch.equal(value, further[key]) for key, value in same.items())
    refused("has shape", partial(begun, config(channels=(8, 6, 6)), tmp_path / "other"), kind=CheckpointError)
    on = partial(train_refiner, fitted, config(), tmp_path / "on", large, show_progress=False)
    refused("other data or settings", on, kind=CheckpointError)  # a run from random weights is another run


def test_upsampled_people_are_learned_from_too(trained, fitted, large, tmp_path):
    """Another network comes out; whose planes are missing is said."""
    train_refiner(fitted, config(), tmp_path, large, show_progress=False, upsampled=fitted)
    (a, one), (b, two) = file_of(trained[0]), file_of(tmp_path)
    assert not all(torch.equal(a[key], b[key]) for key in a) and (one["upsampled"], two["upsampled"]) == ("", "too")
    some = FittedPlanes(fitted)
    begin_folder(tmp_path / "some", {}, some.decoder).write_shard({"one": some.planes("one")}, some.decoder)
    told = partial(train_refiner, fitted, config(), tmp_path / "out", large, show_progress=False)
    refused(r"no planes of two \(1 are missing\)", partial(told, upsampled=tmp_path / "some"), kind=DataError)
    refused(r"no planes of one \(2 are missing\)", partial(told, upsampled=tmp_path / "nowhere"), kind=DataError)
    assert not (tmp_path / "out").exists()


def cut_and_resumed(data, wanted, out, photographs, monkeypatch):
    """Trained to the end, but interrupted in the last step and started again."""
    from minirodin.training import Trainer

    advance = Trainer.advance

    def killed(self):
        if self.step == 5:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        train_refiner(data, wanted, out, photographs, show_progress=False)
    assert (out / "resume.safetensors").exists()
    monkeypatch.setattr(Trainer, "advance", advance)
    train_refiner(data, wanted, out, photographs, show_progress=False)


def test_an_interrupted_training_ends_with_the_same_weights(trained, fitted, large, tmp_path, monkeypatch):
    cut_and_resumed(fitted, config(), tmp_path, large, monkeypatch)
    (a, _), (b, _) = file_of(trained[0]), file_of(tmp_path)
    assert all(torch.equal(a[key], b[key]) for key in a) and a.keys() == b.keys()
    refused("left by other data or settings", train_refiner, fitted, config(turn=5.0), tmp_path, large)


def file_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def test_data_that_do_not_fit_are_one_line(fitted, captures, large, tmp_path):
    def learn(data=fitted, photographs=large, **changes):
        train_refiner(data, config(**changes), tmp_path / "out", photographs, show_progress=False)

    refused("one has pictures of 24×24: give squares .*--size 96", learn, photographs=captures, kind=DataError)
    refused("holds no fitted planes", learn, tmp_path, kind=DataError)
    refused("is not a folder", learn, photographs=tmp_path / "nowhere", kind=DataError)
    save_capture(ball_capture("one", views=12, size=96), tmp_path / "some" / "one")
    refused(r"no capture of two \(1 are missing\)", learn, photographs=tmp_path / "some", kind=DataError)
    save_capture(ball_capture("two", views=5, size=96), tmp_path / "some" / "two")
    refused("two has 5 views to use, one has 12", learn, photographs=tmp_path / "some", kind=DataError)
    refused("2 views and holds none out", Photographs.load, few(tmp_path), ["few"], 24, held_out=True, kind=DataError)
    assert not (tmp_path / "out").exists()


def few(tmp_path):
    save_capture(ball_capture("few", views=2, size=96), tmp_path / "few" / "few")
    return tmp_path / "few"


def test_larger_photographs_are_reduced(large, tmp_path):
    photographs = Photographs.load(large, ["two", "one"], 12)
    assert photographs.pictures.shape == (2, 12, 48, 48, 4) and photographs.cameras[0].width == 12
    whole = Photographs.load(large, ["two", "one"], 24)
    alpha = F.avg_pool2d(whole.pictures[..., 3].float(), 2)
    assert (alpha - photographs.pictures[..., 3].float()).abs().max() <= 1


SETTINGS = {
    "channels is (16, 8): give three": {"channels": (16, 8)},
    "blocks is (1, -1, 1): give three": {"blocks": (1, -1, 1)},
    "patch is 25: give 1 … refiner.view, 24": {"patch": 25},
    "resolutions is (): give sizes": {"resolutions": ()},
    "turn is 0.0: give more than 0": {"turn": 0.0},
    "blur is -1.0: give 0 or more": {"blur": -1.0},
    "consistency_weight is nan: give 0 or more": {"consistency_weight": float("nan")},
}


@pytest.mark.parametrize("said", SETTINGS)
def test_settings_that_mean_nothing_are_one_line(said, fitted, large, tmp_path):
    with pytest.raises(ConfigError) as error:
        train_refiner(fitted, config(**SETTINGS[said]), tmp_path, large, show_progress=False)
    assert str(error.value).startswith(f"refiner.{said}") and "\n" not in str(error.value)


def other_network(tensors, metadata):
    values = json.loads(metadata["config"])
    values["refiner"]["channels"] = [16, 8]
    metadata["config"] = json.dumps(values)


CHANGES = {
    r"configuration .refiner.channels": other_network,
    "head.bias has shape None": lambda tensors, metadata: tensors.pop("network.head.bias"),
    "NaN or infinite": lambda tensors, metadata: tensors["network.head.bias"].fill_(torch.nan),
    "holds 'base'": lambda tensors, metadata: metadata.update(kind="base"),
    "no usable configuration": lambda tensors, metadata: metadata.pop("config"),
}


def test_model_files_that_do_not_fit_are_one_line(trained, tmp_path):
    model = tmp_path / "model.safetensors"
    refused("does not exist", Refiner.load, tmp_path)
    for said, change in CHANGES.items():
        tensors, metadata = file_of(trained[0])
        metadata.pop("sha256", None)  # as who means harm would
        change(tensors, metadata)
        save_file(tensors, model, metadata)
        refused(said, Refiner.load, tmp_path)
    model.write_bytes((trained[0] / model.name).read_bytes()[:-100])
    refused("cut short", Refiner.load, tmp_path)


# -- the command line -------------------------------------------------------------------------------------------


def kinds_of_pictures(folder):
    """name → (file, size that it is seen in)."""
    rgb = Image.fromarray((np.random.default_rng(0).random((10, 14, 3)) * 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    deep = Image.fromarray((np.arange(140).reshape(10, 14) * 400).astype(np.uint16))
    clear = rgb.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((14, 10)))
    palette = rgb.quantize(8)
    made = {
        "grey.png": (rgb.convert("L"), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "deep.png": (deep, {}),
        "clear.png": (clear, {}),
        "palette.gif": (palette, {"transparency": 0}),
        "turned.jpg": (rgb, {"exif": exif}),
        "tiny.png": (rgb.resize((1, 1)), {}),
        "thin.webp": (rgb.resize((2, 40)), {}),
    }
    for name, (image, settings) in made.items():
        image.save(folder / name, **settings)
    sizes = {"turned.jpg": (10, 14), "tiny.png": (1, 1), "thin.webp": (2, 40)}
    return {name: sizes.get(name, (14, 10)) for name in made}


def test_pictures_of_every_kind_are_refined(trained, tmp_path):
    for name, (width, height) in kinds_of_pictures(tmp_path).items():
        out = tmp_path / "made" / f"{name}.png"
        command = ["refine", str(tmp_path / name), "--model", str(trained[0]), "--out", str(out), "--tile", "8"]
        assert cli.main([*command, "--scale", "2"]) == 0, name
        image = Image.open(out)
        assert image.size == (2 * width, 2 * height), name
        assert (image.mode == "RGBA") == (name in ("clear.png", "palette.gif")), name
    assert (
        cli.main(["refine", str(tmp_path / "clear.png"), "--model", str(trained[0]), "--out", str(tmp_path / "a.jpg")])
        == 0
    )
    assert Image.open(tmp_path / "a.jpg").size == (56, 40)


def test_avatars_are_refined_as_pictures_and_turns(trained, fitted, tmp_path):
    command = ["refine", str(fitted / "one"), "--model", str(trained[0]), "--out"]
    assert cli.main([*command, str(tmp_path / "one.png"), "--azimuth", "30"]) == 0
    assert Image.open(tmp_path / "one.png").size == (96, 96)
    assert cli.main([*command, str(tmp_path / "one.gif"), "--frames", "3", "--scale", "2"]) == 0
    turn = Image.open(tmp_path / "one.gif")
    assert turn.size == (48, 48) and turn.n_frames == 3


def test_the_command_line_says_it_in_one_line(trained, fitted, large, tmp_path, capsys):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    Image.new("L", (9000, 9000)).save(tmp_path / "huge.png")
    Image.new("L", (8, 8)).save(tmp_path / "fine.png")
    model, out = ["--model", str(trained[0])], ["--out", str(tmp_path / "out.png")]
    said = {
        "not a readable picture": ["refine", "text.png", *model, *out],
        "does not exist: give a picture": ["refine", "nobody.png", *model, *out],
        "cut short or not a avatar": ["refine", "cut.safetensors", *model, *out],
        "9000×9000 pixels": ["refine", "huge.png", *model, *out],
        "expected a refiner file": ["refine", "fine.png", "--model", str(fitted), *out],
        "choose another name": ["refine", "fine.png", *model, "--out", str(tmp_path / "fine.png")],
        "not a picture format": ["refine", "fine.png", *model, "--out", str(tmp_path / "out.pix")],
        "give --captures": ["train", "refiner", "--data", str(fitted), *out],
        "--augmentation means nothing": ["train", "refiner", "--data", str(fitted), *out, "--augmentation", "a.json"],
        "--upsampled means nothing": ["train", "upsampler", "--data", str(fitted), *out, "--upsampled", "some"],
        "--refiner.… means nothing": ["train", "base", "--data", str(fitted), *out, "--refiner.view", "8"],
        "holds no subject": ["refine", str(fitted / "three"), *model, *out],
    }
    for line, command in said.items():
        command = [str(tmp_path / word) if word.split(".")[-1] in ("png", "safetensors") else word for word in command]
        assert cli.main(command) == 2, line
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1, (line, error)
    assert not (tmp_path / "out.png").exists()


def test_train_and_bench_from_the_command_line(fitted, large, tmp_path, capsys):
    flags = {"channels": "8 6 4", "blocks": "1 1 1", "view": "24", "patch": "12", "resolutions": "16", "pairs": "1"}
    flags |= {"train.steps": "2", "train.batch": "2", "perceptual": "efficientnet-lite0"}
    settings = [word for name, value in flags.items() for word in (f"--refiner.{name}", *value.split())]
    command = ["train", "refiner", "--data", str(fitted), "--captures", str(large), "--out", str(tmp_path / "model")]
    assert cli.main([*command, "--upsampled", str(fitted), "--preset", "smoke", *settings]) == 0
    assert Refiner.load(tmp_path / "model", "cpu").config.channels == (8, 6, 4)
    assert file_of(tmp_path / "model")[1]["upsampled"] == "too"
    further = [*command[:-1], str(tmp_path / "further"), "--begin-from", str(tmp_path / "model"), "--preset", "smoke"]
    assert cli.main([*further, *settings]) == 0 and file_of(tmp_path / "further")[1]["start"]
    assert cli.main(["bench", "refiner", "--preset", "smoke", "--out", str(tmp_path / "bench.json")]) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["images_per_second"] > 0 and found["parameters"] < 1e5


def test_presets_keep_to_their_budget():
    from minirodin.config import preset

    parameters = {
        name: sum(p.numel() for p in Refiner(preset(name).refiner).parameters()) for name in ("smoke", "small")
    }
    assert parameters["smoke"] < 1e5 and 1e6 < parameters["small"] <= 3e6


def test_older_configurations_have_a_refiner_all_the_same():
    values = tiny_config().to_dict()
    del values["refiner"]
    assert Config.from_dict(values).refiner == RefinerConfig()
    assert Config.from_dict(json.loads(json.dumps(config().to_dict()))) == config()
