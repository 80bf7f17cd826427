"""Measures of generated sets against closed forms, scipy, analytic densities, and planes whose consistency is known."""

import math

import pytest
import scipy.linalg
import torch
from toys import FieldDecoder, position_planes, soft_ball

from minirodin.generation_metrics import (
    CHUNK,
    PlaneDisagreement,
    frechet_distance,
    free_space_density,
    memorisation,
    nearest_neighbours,
    precision_recall,
)


def normal(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frechet_by_matrix_root(a, b) -> float:
    cov_a, cov_b = torch.cov(a.double().T).numpy(), torch.cov(b.double().T).numpy()
    means = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    return means + (cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real).trace()


def volume_planes(subjects: int, channels: int = 4, size: int = 16, rank: int = 3, seed: int = 0) -> torch.Tensor:
    """Planes (B, 3, C, R, R) that agree exactly: three projections of one random low-rank volume a channel."""
    shape = (subjects, channels, rank, size)
    u, v, w = (normal(*shape, seed=3 * seed + axis) + 0.5 for axis in range(3))
    planes = [  # columns are the first letter: the sum over the third axis leaves [row, column]
        torch.einsum("bcru,bcrv,bcr->bcvu", u, v, w.mean(-1)),
        torch.einsum("bcrv,bcrw,bcr->bcwv", v, w, u.mean(-1)),
        torch.einsum("bcrw,bcru,bcr->bcuw", w, u, v.mean(-1)),
    ]
    return torch.stack(planes, dim=1)


def mixed(planes: torch.Tensor) -> torch.Tensor:
    """Each plane of another subject."""
    return torch.stack([planes[:, 0], planes.roll(1, 0)[:, 1], planes.roll(2, 0)[:, 2]], dim=1)


def test_frechet_distance_is_that_of_the_matrix_root():
    a, b = normal(300, 8) @ normal(8, 8, seed=1), 0.5 * normal(200, 8, seed=2) @ normal(8, 8, seed=3) + 1
    assert frechet_distance(a, b) == pytest.approx(frechet_by_matrix_root(a, b), rel=1e-6)


def test_frechet_distance_of_gaussians_whose_axes_align():
    """‖Δμ‖² + Σ_i (s_i − t_i)² for standard deviations s, t along the same axes, exact with whitened samples."""
    white = normal(1000, 3).double()
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).T
    s, t = torch.tensor([1.0, 2, 3]).double(), torch.tensor([2.0, 2, 0.5]).double()
    shift = torch.tensor([0.0, 3, 4]).double()
    assert frechet_distance(white * s, white * t + shift) == pytest.approx(25 + 1 + 0 + 2.5**2, rel=1e-9)


def test_frechet_distance_with_fewer_samples_than_features():
    """A rotation into more dimensions changes nothing, and neither does the order; equal sets are at 0."""
    a, b = normal(40, 6), 2 * normal(30, 6, seed=1) + 1
    rotation = torch.linalg.qr(normal(200, 6, seed=2).double()).Q.T  # (6, 200)
    wide_a, wide_b = a.double() @ rotation, b.double() @ rotation
    assert frechet_distance(wide_a, wide_b) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(wide_b.flip(0), wide_a) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(wide_a, wide_a.flip(0)) == pytest.approx(0, abs=1e-9)


def test_precision_recall_of_equal_and_of_distant_sets():
    a = normal(50, 4)
    assert precision_recall(a, a) == {"precision": 1, "recall": 1, "coverage": 1}
    assert precision_recall(a, a + 100) == {"precision": 0, "recall": 0, "coverage": 0}
    with pytest.raises(ValueError, match="more than 3"):
        precision_recall(a, a[:3])


def test_precision_recall_of_a_worked_example():
    real = torch.tensor([[0.0], [1], [3], [7]])  # nearest others at 1, 1, 2, 4
    fake = torch.tensor([[0.5], [0.625], [6], [9]])  # at ⅛, ⅛, 3, 3
    assert precision_recall(real, fake, k=1) == {"precision": 1, "recall": 0.5, "coverage": 0.75}  # 3, 7; all but 3


def test_precision_and_recall_tell_quality_from_variety():
    """Reals in two far clusters: fakes of one of them are precise but recall half; one with outliers the reverse."""
    clusters = torch.cat([normal(200, 3), normal(100, 3, seed=1) + 50])
    one = precision_recall(clusters, 0.8 * normal(200, 3, seed=2))
    assert one["precision"] > 0.95 and 0.5 < one["recall"] < 0.7 and 0.5 < one["coverage"] < 0.7
    half = precision_recall(clusters, torch.cat([clusters, normal(300, 3, seed=3) - 50]))
    assert half == {"precision": 0.5, "recall": 1, "coverage": 1}


def test_coverage_of_sets_drawn_alike():
    """Naeem et al.: 1 − Π_j (N − j) / (N + M − j) for j = 1 … k, for any distribution. More than a block of each."""
    n, m = CHUNK + 244, CHUNK + 144
    for k in (1, 3):
        expected = 1 - math.prod((n - j) / (n + m - j) for j in range(1, k + 1))
        shares = precision_recall(normal(n, 5), normal(m, 5, seed=1), k)
        assert shares["coverage"] == pytest.approx(expected, abs=0.05)


def test_nearest_neighbours_are_those_of_brute_force():
    fake, real = normal(CHUNK + 40, 2, 3), normal(CHUNK + 60, 2, 3, seed=1)
    distances, indices = nearest_neighbours(fake, real)
    every = (fake[:, None] - real[None]).double().square().sum((2, 3)).sqrt()
    assert torch.equal(indices, every.argmin(1)) and torch.allclose(distances, every.amin(1), atol=1e-6)


def test_memorisation_shows_copies():
    train = normal(CHUNK + 100, 3, 8)
    assert memorisation(train[250:270] + 1e-4, train).max() < 0.01  # across the seam of two blocks
    fresh = memorisation(normal(100, 3, 8, seed=1), train)
    assert fresh.shape == (100,) and 0.9 < fresh.median() < 1.1 and fresh.min() > 0.4
    line = torch.tensor([[0.0], [1], [3], [7]])  # nearest others at 1, 1, 2, 4
    assert memorisation(torch.tensor([[9.0], [3.5]]), line).tolist() == [2.0, 0.5]


def test_one_ball_does_not_float_and_two_do():
    planes = position_planes()[None]
    large, small = soft_ball((-0.3, 0, 0), 0.4, sharpness=400), soft_ball((0.5, 0.2, 0.1), 0.2, sharpness=400)
    one = free_space_density(planes, FieldDecoder(large))
    two = free_space_density(planes, FieldDecoder(lambda p: large(p) + small(p)))
    assert one["floating"].tolist() == [0] and two["wall"].item() < 1e-6
    assert two["floating"].item() == pytest.approx(0.2**3 / (0.4**3 + 0.2**3), rel=0.03)  # opacities alike: volumes
    nothing = free_space_density(planes, FieldDecoder(lambda p: 0 * p[..., 0]))
    assert nothing["floating"].tolist() == [0] and nothing["wall"].tolist() == [0]


def test_the_body_is_the_heaviest_part_and_thin_bridges_connect():
    """A faint ball as wide as the other weighs less; joined to it by a diagonal of single cells nothing floats."""
    planes = position_planes()[None]
    dense, faint = soft_ball((-0.5, 0, 0), 0.3, 400.0, density=100), soft_ball((0.5, 0, 0), 0.35, 400.0, density=10)
    apart = free_space_density(planes, FieldDecoder(lambda p: dense(p) + faint(p)))["floating"].item()
    masses = [0.3**3 * (1 - math.exp(-100 / 32)), 0.35**3 * (1 - math.exp(-10 / 32))]
    assert apart == pytest.approx(masses[1] / sum(masses), rel=0.03)

    def bridge(p):  # cells that touch at corners: i = j = k
        cell = ((p + 1) * 32).long()
        return 100.0 * ((cell == cell[..., :1]).all(-1) & (p[..., 0].abs() < 0.55))

    ends = [soft_ball((s, s, s), 0.2) for s in (-0.5, 0.5)]
    assert free_space_density(planes, FieldDecoder(lambda p: ends[0](p) + ends[1](p)))["floating"].item() > 0.4
    joined = FieldDecoder(lambda p: ends[0](p) + ends[1](p) + bridge(p))
    assert free_space_density(planes, joined)["floating"].tolist() == [0]


def test_haze_near_the_walls_but_not_the_floor():
    """Uniform haze of σ shows as 1 − exp(−σ · 2/G); what stands on the floor does not count; subjects keep apart."""
    haze = free_space_density(position_planes()[None], FieldDecoder(lambda p: 0.5 + 0 * p[..., 0]), grid=32)
    assert haze["wall"].item() == pytest.approx(1 - math.exp(-0.5 * 2 / 32)) and haze["floating"].tolist() == [0]
    bust = FieldDecoder(lambda p: 50.0 * ((p[..., 1] < -0.5) & (p[..., ::2].abs().amax(-1) < 0.6)))
    upright = position_planes()
    swapped = upright[:, [0, 2, 1]]  # the decoder takes z for y: the bust stands on a wall
    both = free_space_density(torch.stack([upright, swapped]), bust)
    assert both["wall"][0] == 0 and both["wall"][1] > 0.05


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_disagreement_is_relative_to_the_reference(noise):
    """Planes that agree but for noise score 1 as held-out subjects, and n² with n times the noise."""

    def subjects(count, seed, level):
        planes = volume_planes(count, seed=seed)
        return planes + level * planes.std() * normal(*planes.shape, seed=seed + 100)

    measure = PlaneDisagreement().fit(subjects(64, 1, noise))
    assert measure(subjects(200, 2, noise)) == pytest.approx(1, abs=0.1)
    assert measure(subjects(200, 3, 2 * noise)) == pytest.approx(4, rel=0.1)
    assert measure(mixed(subjects(200, 2, noise))) == pytest.approx(2 / measure.reference.item(), rel=0.1)


def test_disagreement_learns_how_channels_of_two_planes_correspond():
    """Each plane in its own mixture of the channels: nothing agrees as it is, everything does after a linear map."""
    mixture = torch.stack([normal(4, 4, seed=50 + k) for k in range(3)])

    def subjects(count, seed):
        planes = torch.einsum("kcd,bkdij->bkcij", mixture, volume_planes(count, size=8, seed=seed))
        return planes + 0.02 * normal(*planes.shape, seed=seed + 100)

    measure = PlaneDisagreement().fit(subjects(256, 1))
    assert measure.reference < 0.05
    fresh = subjects(100, 2)
    assert measure(fresh) == pytest.approx(1, abs=0.15)
    assert measure(mixed(fresh)) > 10


def test_disagreement_neither_minds_scale_nor_unused_channels():
    planes = volume_planes(40, seed=1) + 0.05 * normal(40, 3, 4, 16, 16)
    train, test = planes[:30], planes[30:]
    expected = PlaneDisagreement().fit(train)(test)
    mean = train.mean(0)
    exaggerated = PlaneDisagreement().fit(train)(mean + 2 * (test - mean))
    assert exaggerated == pytest.approx(expected, rel=0.01)
    scale = torch.tensor([1.0, 10, 0.1, 5])[:, None, None]
    assert PlaneDisagreement().fit(train * scale + 3)(test * scale + 3) == pytest.approx(expected, rel=1e-3)
    silent = [torch.cat([part, torch.zeros_like(part)], dim=2) for part in (train, test)]
    assert PlaneDisagreement().fit(silent[0])(silent[1]) == pytest.approx(expected, rel=1e-3)


def test_disagreement_of_few_subjects_stays_put():
    """Far fewer subjects than numbers in a profile (C·R = 1024): no map is learned, held-out subjects are near 1."""
    planes = volume_planes(44, channels=16, size=64) + 0.1 * normal(44, 3, 16, 64, 64)
    for count in (4, 32):
        measure = PlaneDisagreement().fit(planes[:count])
        assert 0.5 < measure(planes[32:]) < 2 and measure(mixed(planes[32:])) > 3 * measure(planes[32:])
    with pytest.raises(ValueError, match="3 or more"):
        PlaneDisagreement().fit(planes[:2])
