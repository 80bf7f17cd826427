"""Samplers (E9) against the exact solution for Gaussian data, and step by step against diffusers' schedulers."""

import itertools
import math

import pytest
import torch

from minirodin.config import DiffusionConfig
from minirodin.diffusion import Denoised, Diffusion, alpha_sigma, posterior
from minirodin.sampling import SAMPLERS, ancestral, clamp, ddim, dpm_solver_pp, dynamic_threshold

EVERY = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
DETERMINISTIC = pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp])
MEAN, STD = 0.7, 0.4  # of the Gaussian data


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def grid(steps, **changes):
    return Diffusion(DiffusionConfig(**changes)).grid(steps)


def oracle(x0, fraction=None):
    """A denoiser that knows the data."""

    def denoise(x, log_snr):
        alpha, sigma = alpha_sigma(log_snr, x)
        return Denoised(x0, (x - alpha * x0) / sigma, None if fraction is None else torch.full_like(x, fraction))

    return denoise


def gaussian(x, log_snr):
    """The exact denoiser E[x_0 | x_t] of data ~ N(MEAN, STD²)."""
    alpha, sigma = alpha_sigma(log_snr, x)
    x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
    return Denoised(x0, (x - alpha * x0) / sigma)


def flow(x, from_level, to_level):
    """The probability-flow ODE of that data, solved: (x − α m) / √(α² s² + σ²) stays what it is."""
    (a, b), (c, d) = alpha_sigma(from_level), alpha_sigma(to_level)
    return c * MEAN + (c**2 * STD**2 + d**2).sqrt() * (x - a * MEAN) / (a**2 * STD**2 + b**2).sqrt()


def walk(sampler, denoise, x, levels, **options):
    """The result and every (step, x_t, x_0) that the callback was given."""
    seen = []
    result = sampler(denoise, x, levels, callback=lambda *args: seen.append(args), **options)
    return result, seen


# -- exact answers ------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("fraction", [None, 0.3])
def test_one_that_knows_the_data_finds_it(sampler, steps, fraction):
    x0, x = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    torch.testing.assert_close(sampler(oracle(x0, fraction), x, grid(steps), generator()), x0, rtol=0, atol=1e-9)


@DETERMINISTIC
def test_known_data_is_approached_along_the_flow(sampler):
    """With constant x̂_0 every step is exact: x_s = α_s x_0 + σ_s ε with the ε that x_T began with."""
    x0, x, levels = randn(2, 5), randn(2, 5, seed=1), grid(6).double()
    alpha, sigma = alpha_sigma(levels)
    eps = (x - alpha[0] * x0) / sigma[0]
    for step, x_t, _ in walk(sampler, oracle(x0), x, levels)[1]:
        torch.testing.assert_close(x_t, alpha[step] * x0 + sigma[step] * eps, rtol=0, atol=1e-9)


def flow_error(sampler, steps):
    """Worst error at λ = 4 after even steps from λ = −6; a level more, since the last is not walked to."""
    levels = torch.cat([torch.linspace(-6, 4, steps + 1, dtype=torch.float64), torch.tensor([5.0])])
    x = randn(1, 50)
    arrived = walk(sampler, gaussian, x, levels)[1][-1][1]
    return (arrived - flow(x, levels[0], levels[-2])).abs().max().item()


@pytest.mark.parametrize("sampler, ratio", [(ddim, 2), (dpm_solver_pp, 4)])
def test_order_of_convergence_to_the_flow(sampler, ratio):
    errors = [flow_error(sampler, steps) for steps in (40, 80, 160, 320)]
    for coarse, fine in itertools.pairwise(errors[1:]):
        assert coarse / fine == pytest.approx(ratio, rel=0.1)
    assert errors[-1] < {2: 0.01, 4: 1e-4}[ratio]


@DETERMINISTIC
def test_gaussian_data_end_where_the_flow_ends(sampler):
    x, levels = randn(1, 50), grid(400).double()
    expected = gaussian(flow(x, levels[0], levels[-2]), levels[-2, None]).x0
    tolerance = 0.015 if sampler is ddim else 1e-3
    torch.testing.assert_close(sampler(gaussian, x, levels), expected, rtol=0, atol=tolerance)


def test_ancestral_sampling_has_the_datas_mean_and_variance():
    n = 20_000
    out = ancestral(gaussian, randn(n, 1, dtype=torch.float32), grid(250), generator())
    # Within four standard errors, and what 250 steps leave.
    assert out.mean().item() == pytest.approx(MEAN, abs=4 * STD / n**0.5 + 0.005)
    assert out.std().item() == pytest.approx(STD, rel=4 / (2 * n) ** 0.5 + 0.02)


@pytest.mark.parametrize("fraction", [None, 0.0, 0.4, 1.0])
def test_ancestral_noise_is_of_the_learned_variance(fraction):
    levels = torch.tensor([-2.0, 0.5, 3.0])
    x0, x = torch.zeros(1, 40_000), torch.full((1, 40_000), 1.5)
    x_1 = walk(ancestral, oracle(x0, fraction), x, levels, generator=generator())[1][1][1]
    q = posterior(x, x0, levels[0], levels[1])
    std = math.exp(0.5 * (q.lower + (fraction or 0) * (q.upper - q.lower)))
    assert x_1.mean().item() == pytest.approx(q.mean.mean().item(), abs=5 * std / 200)
    assert x_1.std().item() == pytest.approx(std, rel=0.02)


# -- generators and callbacks -------------------------------------------------------------------------------------


def test_ancestral_draws_from_its_generator_alone():
    x, levels = randn(2, 3), grid(5)
    first = ancestral(gaussian, x, levels, generator(0))
    torch.manual_seed(123)
    assert torch.equal(ancestral(gaussian, x, levels, generator(0)), first)
    assert not torch.isclose(ancestral(gaussian, x, levels, generator(1)), first).any()


@DETERMINISTIC
def test_deterministic_samplers_draw_nothing(sampler):
    source, x = generator(), randn(2, 3)
    before = source.get_state()
    torch.testing.assert_close(sampler(gaussian, x, grid(5), source), sampler(gaussian, x, grid(5)), rtol=0, atol=0)
    assert torch.equal(source.get_state(), before)


@EVERY
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_callback_gets_every_step_before_it_is_taken(sampler, steps):
    asked = []

    def denoise(x, log_snr):
        asked.append((x.clone(), log_snr))
        return gaussian(x, log_snr)

    x, levels = randn(2, 3), grid(steps).double()
    result, seen = walk(sampler, denoise, x, levels, generator=generator())
    assert [step for step, _, _ in seen] == list(range(steps)) and len(asked) == steps
    for (step, x_t, x0), (x_asked, log_snr) in zip(seen, asked, strict=True):
        assert torch.equal(x_t, x_asked) and torch.equal(log_snr, levels[step].expand(2))
        torch.testing.assert_close(x0, gaussian(x_t, log_snr).x0)
    assert torch.equal(seen[0][1], x) and torch.equal(seen[-1][2], result)


@EVERY
def test_sampling_keeps_no_graph_and_leaves_its_input(sampler):
    x = randn(2, 3)
    kept, weight = x.clone(), torch.ones(1, requires_grad=True)
    out = sampler(lambda x, level: oracle(weight * torch.ones_like(x))(x, level), x, grid(3), generator())
    assert not out.requires_grad and torch.equal(x, kept)


# -- clipping -----------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("steps", [1, 4])
def test_clip_is_applied_to_every_prediction(sampler, steps):
    x0, x = randn(2, 50) * 5, randn(2, 50, seed=1)
    result, seen = walk(sampler, oracle(x0), x, grid(steps), generator=generator(), clip=clamp(-1, 1))
    assert len(seen) == steps
    for _, _, predicted in seen:
        torch.testing.assert_close(predicted, x0.clamp(-1, 1), rtol=0, atol=0)
    torch.testing.assert_close(result, x0.clamp(-1, 1), rtol=0, atol=0)


@DETERMINISTIC
def test_a_step_goes_on_from_what_was_clipped(sampler):
    """Clipped to 0, whatever is predicted, x_t is noise alone, and the same noise at every level."""
    x, levels = randn(2, 5), grid(6).double()
    sigma = alpha_sigma(levels)[1]
    for step, x_t, _ in walk(sampler, gaussian, x, levels, clip=clamp(0, 0))[1]:
        torch.testing.assert_close(x_t, sigma[step] / sigma[0] * x)


def test_ancestral_goes_on_from_what_was_clipped():
    x, levels = torch.full((1, 40_000), 1.5), torch.tensor([-2.0, 0.5, 3.0])
    x_1 = walk(ancestral, oracle(9 * x), x, levels, generator=generator(), clip=clamp(-1, 1))[1][1][1]
    q = posterior(x, torch.ones_like(x), levels[0], levels[1])
    assert x_1.mean().item() == pytest.approx(q.mean.mean().item(), abs=0.02)


@EVERY
def test_a_clip_that_does_nothing_changes_nothing(sampler):
    x, levels = randn(2, 5), grid(6).double()
    free, clipped = (sampler(gaussian, x, levels, generator(), clip=clip) for clip in (None, clamp(-1e9, 1e9)))
    torch.testing.assert_close(clipped, free, rtol=0, atol=1e-9)


def test_clamp_by_numbers_and_by_channels():
    x0 = torch.tensor([[-3.0, 0.25], [3.0, -3.0]])
    assert clamp(-1, 2)(x0).tolist() == [[-1, 0.25], [2, -1]]
    low, high = torch.tensor([-1.0, -2.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    clipped = clamp(low, high)(x0)
    assert clipped.dtype == torch.float32 and clipped.tolist() == [[-1, 0], [1, -2]]


def test_dynamic_threshold_leaves_what_is_within_the_bound():
    x0 = torch.rand(3, 2, 50, generator=generator()) * 4 - 2
    assert torch.equal(dynamic_threshold(0.9, bound=2.0)(x0), x0)
    few = x0.clone()
    few[:, 0, :3] = 40.0  # 3 of 100, fewer than the quantile leaves out: an ordinary clip
    assert torch.equal(dynamic_threshold(0.9, bound=2.0)(few), few.clamp(-2, 2))


def test_dynamic_threshold_rescales_each_sample_by_its_own_quantile():
    ramp = torch.arange(1, 101.0) * torch.tensor([1.0, -1.0]).repeat(50)  # |x_0| = 1 … 100
    x0 = torch.stack([0.02 * ramp, 0.1 * ramp, ramp]).view(3, 4, 25)
    for quantile, largest in ((0.9, 90), (1.0, 100), (0.5, 50)):
        out = dynamic_threshold(quantile, bound=2.0)(x0).flatten(1)
        assert out.abs().max() <= 2 * (1 + 1e-6)
        torch.testing.assert_close(out[0], 0.02 * ramp)
        for row, scale in ((1, 0.1), (2, 1.0)):
            limit = scale * largest
            torch.testing.assert_close(out[row], (scale * ramp).clamp(-limit, limit) * 2 / limit)


@EVERY
def test_dynamic_threshold_bounds_every_prediction(sampler):
    clip = dynamic_threshold(0.8, bound=0.5)
    _, seen = walk(sampler, oracle(randn(2, 3, 50) * 5), randn(2, 3, 50), grid(4), generator=generator(), clip=clip)
    for _, _, x0 in seen:
        assert x0.abs().max() == pytest.approx(0.5, rel=1e-6)


# -- diffusers ----------------------------------------------------------------------------------------------------

PARITY = pytest.mark.parametrize("schedule", ["linear", "cosine"])
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
CALM = {"log_snr_min": -8.0, "log_snr_max": 8.0}  # diffusers multiplies ᾱ up from β in single precision


def network(x, log_snr):
    """Stands in for a trained one: (B, C, R) → (B, 2, C, R)."""
    level = log_snr.view(-1, 1, 1)
    return torch.stack([0.9 * torch.tanh(x + 0.1 * level), torch.sin(3 * x)], dim=1)


def their_scheduler(name, levels, prediction, **settings):
    """A scheduler of diffusers that walks the same noise levels: its step N−1 is our first, its 0 our last."""
    scheduler = getattr(pytest.importorskip("diffusers"), name)
    bar = levels[:-1].double().sigmoid().flip(0)  # ᾱ of increasing noise; our last level is never walked to
    betas = 1 - bar / torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    scheduler = scheduler(len(bar), trained_betas=betas.numpy(), prediction_type=PREDICTIONS[prediction], **settings)
    every = {"timesteps": list(range(len(bar)))[::-1]}
    scheduler.set_timesteps(**({"num_inference_steps": len(bar)} if name == "DDIMScheduler" else every))
    assert scheduler.timesteps.tolist() == every["timesteps"]
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), bar, rtol=1e-4, atol=1e-7)
    return scheduler


def their_walk(scheduler, x, levels, both=False, **options):
    """Every x_t and at last x_0; `both` hands over the learned variance too, as channels."""
    seen = [x]
    for i, t in enumerate(scheduler.timesteps):
        output = network(x, levels[i].expand(len(x)))
        x = scheduler.step(output.flatten(1, 2) if both else output[:, 0], t, x, **options).prev_sample
        seen.append(x)
    return seen


def assert_same_walk(sampler, levels, diffusion, theirs, **options):
    result, seen = walk(sampler, diffusion.denoiser(network), theirs[0], levels, **options)
    ours = [x_t for _, x_t, _ in seen] + [result]
    assert len(ours) == len(theirs) and (theirs[-1] - theirs[0]).abs().max() > 0.1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@PARITY
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "sampler, name, settings",
    [
        (ddim, "DDIMScheduler", {"clip_sample": False}),
        (dpm_solver_pp, "DPMSolverMultistepScheduler", {"solver_order": 2, "lower_order_final": True}),
    ],
    ids=["ddim", "dpm++"],
)
def test_the_walk_is_that_of_diffusers(sampler, name, settings, prediction, schedule):
    diffusion = Diffusion(DiffusionConfig(prediction=prediction, schedule=schedule, **CALM))
    levels, x = diffusion.grid(25), randn(2, 3, 8, dtype=torch.float32)
    theirs = their_walk(their_scheduler(name, levels, prediction, **settings), x, levels)
    assert_same_walk(sampler, levels, diffusion, theirs)


@PARITY
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_the_ancestral_walk_is_that_of_diffusers(variance, prediction, schedule):
    learned = variance == "learned_range"
    config = DiffusionConfig(prediction=prediction, schedule=schedule, vlb_weight=float(learned), **CALM)
    diffusion, x = Diffusion(config), randn(2, 3, 8, dtype=torch.float32)
    levels = diffusion.grid(25)
    scheduler = their_scheduler("DDPMScheduler", levels, prediction, variance_type=variance, clip_sample=False)
    theirs = their_walk(scheduler, x, levels, both=learned, generator=generator())
    assert_same_walk(ancestral, levels, diffusion, theirs, generator=generator())
