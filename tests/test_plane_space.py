"""The space that diffusion works in: its metric against whole Jacobians and pictures, and the way there and back."""

import pytest
import torch

from minirodin import plane_space
from minirodin.cameras import capture_cameras, pixel_rays
from minirodin.config import DecoderConfig, RenderConfig
from minirodin.decoder import TriplaneDecoder
from minirodin.plane_space import PlaneSpace, visible_metric, visible_texels
from minirodin.render import occupancy_from_planes, render_rays

C, R = 3, 8
RENDER = RenderConfig(grid=8, bins=16, samples=8)


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    decoder = TriplaneDecoder(C, DecoderConfig(hidden=16, feature_frequencies=1, density_scale=4.0))
    with torch.no_grad():
        decoder.trunk[0].weight[:, 2::C] = 0  # it does not look at the last channel
    return decoder.requires_grad_(False)


@pytest.fixture(scope="module")
def planes():
    sizes = torch.tensor([1.0, 3.0, 2.0]).view(C, 1, 1)
    return sizes * torch.randn(2, 3, C, R, R, generator=torch.Generator().manual_seed(1))


def picture(planes, decoder, view, cameras):
    """(R², 3), on white, as `visible_metric` looks at people."""
    pixels = torch.arange(R * R)
    matrix, intrinsics = cameras.camera_to_world[view].float(), cameras.intrinsics[view].float()
    rays = (r[None] for r in pixel_rays(matrix, intrinsics, pixels % R, pixels // R))
    occupancy = occupancy_from_planes(planes[None].detach(), decoder, RENDER.grid)
    return render_rays(planes[None], decoder, *rays, occupancy, RENDER.bins, RENDER.samples).over(torch.ones(3))[0]


def test_metric_is_the_whole_jacobians(decoder, planes, monkeypatch):
    """Against JᵀJ of every pixel by every texel, from the same cameras; the random signs average out."""
    views = 2
    monkeypatch.setattr(plane_space, "VIEWS", views)
    cameras = capture_cameras(views * len(planes), R, seed=0)
    exact = torch.zeros(C, C)
    for i in range(len(cameras)):
        y = planes[i // views]
        jacobian = torch.autograd.functional.jacobian(lambda y, i=i: picture(y, decoder, i, cameras).flatten(), y)
        j = jacobian.transpose(1, 2).flatten(2)  # (3·R², C, 3·R²)
        exact += torch.einsum("nct,ndt->cd", j, j) / len(cameras)
    found = torch.stack([visible_metric(planes, decoder, RENDER, seed) for seed in range(60)])
    assert exact.trace() > 1e-3 and not torch.equal(found[0], found[1])
    error = found.mean(0) - exact
    assert error.abs().max() < 4 * found.std(0).max() / 60**0.5
    assert error.abs().max() < 0.1 * exact.abs().max()


def test_texels_count_by_the_whole_jacobian(decoder, planes, monkeypatch):
    """Against the diagonal of JᵀJ in x, of every pixel by every texel; and one that no ray meets counts nothing."""
    views = 2
    monkeypatch.setattr(plane_space, "VIEWS", views)
    cameras = capture_cameras(views * len(planes), R, seed=0)
    space = PlaneSpace.of(planes, visible_metric(planes, decoder, RENDER))
    exact = torch.zeros(3, R, R)
    for i in range(len(cameras)):
        x = space.standardise(planes[i // views])
        seen = torch.autograd.functional.jacobian(
            lambda x, i=i: picture(space.unstandardise(x), decoder, i, cameras).flatten(), x
        )  # (3·R², 3, C, R, R)
        exact += seen.square().sum((0, 2))
    exact /= exact.mean()
    found = torch.stack([visible_texels(planes, decoder, RENDER, space, seed) for seed in range(60)]).mean(0)
    assert found.mean() == pytest.approx(1, rel=1e-4) and (found[exact == 0] == 0).all()
    assert (found - exact).norm() < 0.1 * exact.norm() < 0.1 * 10 * (found - 1).norm()


def test_a_channel_that_nobody_sees_counts_least(decoder, planes):
    metric = visible_metric(planes, decoder, RENDER)
    assert metric[:, 2].abs().max() == 0 and metric[0, 0] > 0 and metric[1, 1] > 0
    torch.testing.assert_close(metric, metric.T)
    space = PlaneSpace.of(planes, visible_metric(planes, decoder, RENDER))
    seen = (space.weight * planes.std((0, 1, 3, 4))).square().sum(0)
    assert seen[2] < 0.1 * seen[:2].max()


def test_distances_are_those_of_pictures(decoder, planes):
    """Small changes of one length in x move pictures alike whatever the channel; of one length in y they do not."""
    people = planes[:1].repeat(2, 1, 1, 1, 1) * torch.tensor([0.9, 1.1]).view(2, 1, 1, 1, 1)
    space = PlaneSpace.of(people, visible_metric(people, decoder, RENDER))
    cameras = capture_cameras(6, R, seed=0)
    before = torch.stack([picture(planes[0], decoder, i, cameras) for i in range(6)])

    def moved(step):
        return sum((picture(planes[0] + step, decoder, i, cameras) - before[i]).square().sum() for i in range(6)) ** 0.5

    generator = torch.Generator().manual_seed(0)
    by_x, by_y = [], []
    for c in range(2):  # those that are seen
        step = torch.zeros(3, C, R, R)
        step[:, c] = 1e-3 * torch.randn(3, R, R, generator=generator)
        length = (space.standardise(planes[0] + step) - space.standardise(planes[0])).norm()
        by_x.append(moved(step) / length)
        by_y.append(moved(step) / (step[:, c] / planes[0][:, c].std()).norm())
    assert max(by_x) / min(by_x) < 1.5 < max(by_y) / min(by_y)


@pytest.mark.parametrize("visible", [True, False])
def test_there_and_back(decoder, planes, visible):
    space = PlaneSpace.of(planes.half(), visible_metric(planes, decoder, RENDER) if visible else None)
    x = space.standardise(planes)
    torch.testing.assert_close(space.unstandardise(x), planes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(space.standardise(planes[0]), x[0])  # one subject, (3, C, R, R)
    torch.testing.assert_close(x.mean(0), torch.zeros(3, C, R, R), atol=1e-2, rtol=0)
    variances = torch.linalg.eigvalsh(torch.einsum("skchw,skdhw->cd", x, x) * (C / x.numel()))
    assert variances.square().sum() / variances.sum() == pytest.approx(1, rel=1e-2)


def test_autocast_leaves_it_exact(decoder, planes):
    """Samplers go there and back in every step, under autocast."""
    space = PlaneSpace.of(planes, visible_metric(planes, decoder, RENDER))
    with torch.autocast("cpu", torch.bfloat16):
        back = space.unstandardise(space.standardise(planes))
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, planes, atol=1e-4, rtol=1e-4)


def test_a_silent_channel_stays_silent(decoder, planes):
    planes = planes.clone()
    planes[:, :, 1] = 0.25
    space = PlaneSpace.of(planes, visible_metric(planes, decoder, RENDER))
    assert space.weight.isfinite().all() and space.standardise(planes)[:, :, 1].isfinite().all()
    torch.testing.assert_close(space.unstandardise(space.standardise(planes)), planes, atol=1e-3, rtol=1e-3)
