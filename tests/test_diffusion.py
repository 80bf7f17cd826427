"""The diffusion process (E6–E8): schedules, posteriors and bounds against the textbook's discrete formulas."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from minirodin.config import DiffusionConfig
from minirodin.diffusion import Diffusion, alpha_sigma, posterior
from minirodin.errors import ConfigError

TIMES = torch.linspace(0, 1, 101, dtype=torch.float64)
PREDICTIONS = pytest.mark.parametrize("prediction", ["eps", "x0", "v"])


def process(**changes) -> Diffusion:
    return Diffusion(DiffusionConfig(**{"log_snr_max": 10.0, **changes}))


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def each(value, like):
    return value.view(-1, *[1] * (like.dim() - 1))


# -- schedules ----------------------------------------------------------------------------------------------------


def test_linear_schedule_is_a_straight_line_in_log_snr():
    t = torch.linspace(0, 1, 1001)
    log_snr = process(log_snr_max=9.0, log_snr_min=-7.0).log_snr(t)
    torch.testing.assert_close(log_snr, 9 - 16 * t, rtol=0, atol=1e-6)
    assert (log_snr[0], log_snr[-1]) == (9, -7)


def test_cosine_schedule_is_the_cosine_between_wide_bounds():
    diffusion = process(schedule="cosine", log_snr_max=40.0, log_snr_min=-40.0)
    alpha, sigma = alpha_sigma(diffusion.log_snr(TIMES))
    torch.testing.assert_close(alpha, torch.cos(math.pi / 2 * TIMES), rtol=0, atol=1e-8)
    torch.testing.assert_close(sigma, torch.sin(math.pi / 2 * TIMES), rtol=0, atol=1e-8)


def test_cosine_schedule_keeps_to_its_bounds():
    """t′ runs over the part of [0, 1] in which the cosine's λ lies between the bounds, and at an even pace."""
    log_snr = process(schedule="cosine", log_snr_max=6.0, log_snr_min=-4.0).log_snr(TIMES)
    torch.testing.assert_close(log_snr[[0, -1]], torch.tensor([6.0, -4.0]).double(), rtol=0, atol=1e-9)
    cut = 2 / math.pi * torch.acos(log_snr.sigmoid().sqrt())
    torch.testing.assert_close(cut.diff(), cut.diff().mean().expand(100), rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_log_snr_decreases(schedule):
    assert (process(schedule=schedule).log_snr(torch.linspace(0, 1, 1001)).diff() < 0).all()


def test_shift_moves_the_middle_and_not_the_ends():
    bounds = {"schedule": "cosine", "log_snr_max": 6.0, "log_snr_min": -14.0}
    shifted, wide = process(shift=-1.75, **bounds), process(schedule="cosine", log_snr_max=7.75, log_snr_min=-12.25)
    torch.testing.assert_close(shifted.log_snr(TIMES)[[0, -1]], torch.tensor([6.0, -14.0]).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(shifted.log_snr(TIMES), wide.log_snr(TIMES) - 1.75, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_grid_walks_from_noise_to_data_in_even_steps_of_log_snr(schedule, steps):
    grid = process(schedule=schedule).grid(steps)
    assert grid.dtype == torch.float32 and grid.shape == (steps + 1,)
    torch.testing.assert_close(grid, -10 + 20 * torch.arange(steps + 1) / steps, rtol=0, atol=1e-5)


def test_a_grid_may_stop_early_and_never_late():
    assert process(log_snr_stop=0.0).grid(4).tolist() == [-10.0, -7.5, -5.0, -2.5, 0.0]
    assert torch.equal(process(log_snr_stop=50.0).grid(4), process().grid(4))


@pytest.mark.parametrize("steps", [0, -3])
def test_a_grid_without_steps_is_refused(steps):
    with pytest.raises(ConfigError, match=f"{steps} sampling steps"):
        process().grid(steps)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"schedule": "linaer"}, "unknown schedule 'linaer'.*linear or cosine"),
        ({"prediction": "epsilon"}, "unknown prediction 'epsilon'.*eps, x0 or v"),
        ({"log_snr_max": -10.0}, "log_snr_max -10.0 must exceed log_snr_min -10.0"),
        ({"log_snr_max": -11.0}, "log_snr_max -11.0 must exceed"),
        ({"log_snr_stop": -10.0}, "log_snr_stop -10.0 must exceed log_snr_min"),
        ({"steps": 0}, "steps"),
        ({"shift": 1.0}, "shift 1.0 is of the cosine schedule"),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        process(**changes)
    assert "\n" not in str(error.value)


# -- forward ------------------------------------------------------------------------------------------------------


def test_alpha_and_sigma_belong_to_the_log_snr():
    log_snr = torch.linspace(-12, 12, 49, dtype=torch.float64)
    alpha, sigma = alpha_sigma(log_snr)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close(torch.log(alpha**2 / sigma**2), log_snr)
    shaped = alpha_sigma(log_snr, torch.zeros(49, 3, 2, 2))
    assert shaped[0].shape == shaped[1].shape == (49, 1, 1, 1) and torch.equal(shaped[0].flatten(), alpha)


def test_noise_does_not_vanish_in_single_precision():
    alpha, sigma = alpha_sigma(torch.tensor([-30.0, 30.0]))
    torch.testing.assert_close(torch.stack([alpha[0], sigma[1]]), torch.full((2,), math.exp(-15)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("log_snr", [-4.0, 0.0, 3.0])
def test_moments_of_noisy_data(log_snr):
    n, x0 = 40_000, torch.tensor([-2.0, 0.5])
    x_t = process().q_sample(x0.expand(n, 2), torch.full((n,), log_snr), randn(n, 2, dtype=torch.float32))
    alpha, sigma = (1 / (1 + math.exp(-log_snr))) ** 0.5, (1 / (1 + math.exp(log_snr))) ** 0.5
    torch.testing.assert_close(x_t.mean(0), alpha * x0, rtol=0, atol=5 * sigma / n**0.5)
    torch.testing.assert_close(x_t.std(0), torch.full((2,), sigma), rtol=5 / (2 * n) ** 0.5, atol=0)


def test_every_sample_has_its_own_noise_level():
    log_snr, x0, eps = torch.tensor([-3.0, 0.0, 5.0]).double(), randn(3, 2, 4), randn(3, 2, 4, seed=1)
    together = process().q_sample(x0, log_snr, eps)
    for i in range(3):
        torch.testing.assert_close(together[i], process().q_sample(x0[i, None], log_snr[i, None], eps[i, None])[0])


# -- predictions --------------------------------------------------------------------------------------------------


def test_what_each_prediction_is():
    x0, eps, log_snr = randn(2, 3), randn(2, 3, seed=1), torch.tensor([-1.0, 2.0]).double()
    alpha, sigma = (each(v.sqrt(), x0) for v in (log_snr.sigmoid(), 1 - log_snr.sigmoid()))
    expected = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}
    for prediction, value in expected.items():
        torch.testing.assert_close(process(prediction=prediction).target(x0, eps, log_snr), value)


@PREDICTIONS
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_perfect_prediction_is_interpreted_as_data_and_noise(prediction, outputs):
    diffusion = process(prediction=prediction, vlb_weight=1e-3 * (outputs - 1))
    assert diffusion.outputs == outputs
    log_snr = torch.linspace(-10, 10, 7, dtype=torch.float64)
    x0, eps, second = randn(7, 3, 2, 4), randn(7, 3, 2, 4, seed=1), randn(7, 3, 2, 4, seed=2)
    output = torch.stack([diffusion.target(x0, eps, log_snr), second][:outputs], dim=1)
    denoised = diffusion.interpret(output, diffusion.q_sample(x0, log_snr, eps), log_snr)
    torch.testing.assert_close(denoised.x0, x0, rtol=0, atol=1e-5)
    torch.testing.assert_close(denoised.eps, eps, rtol=0, atol=1e-5)
    assert denoised.fraction is None if outputs == 1 else torch.equal(denoised.fraction, ((second + 1) / 2).clamp(0, 1))


@PREDICTIONS
def test_data_and_noise_of_any_prediction_make_up_the_input(prediction):
    diffusion = process(prediction=prediction)
    log_snr, x_t = torch.tensor([-6.0, 0.5, 6.0]).double(), randn(3, 4)
    alpha, sigma = alpha_sigma(log_snr, x_t)
    denoised = diffusion.interpret(randn(3, 2, 4, seed=1), x_t, log_snr)
    torch.testing.assert_close(alpha * denoised.x0 + sigma * denoised.eps, x_t)


def test_denoiser_interprets_the_network_in_single_precision():
    diffusion, x_t, log_snr = process(prediction="v"), randn(2, 5, dtype=torch.float32), torch.tensor([-1.0, 1.0])
    network = lambda x, level: torch.stack([x * level[:, None], x], 1).bfloat16()  # noqa: E731
    denoised = diffusion.denoiser(network)(x_t, log_snr)
    expected = diffusion.interpret(network(x_t, log_snr).float(), x_t, log_snr)
    for ours, reference in zip(vars(denoised).values(), vars(expected).values(), strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, reference)


# -- posterior ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_posterior_is_that_of_discrete_ddpm(schedule):
    """Ho et al. 2020, (6) and (7), from ᾱ of 12 steps; log-variances are of β̃ and β."""
    steps, diffusion = 12, process(schedule=schedule)
    bar = [float(diffusion.log_snr(torch.tensor(i / steps).double()).sigmoid()) for i in range(steps + 1)]
    x_t, x0 = randn(1, 5), randn(1, 5, seed=1)
    for i in range(1, steps + 1):
        beta = 1 - bar[i] / bar[i - 1]
        of_x0 = bar[i - 1] ** 0.5 * beta / (1 - bar[i])
        of_x_t = (1 - beta) ** 0.5 * (1 - bar[i - 1]) / (1 - bar[i])
        t, s = (torch.tensor([j / steps]).double() for j in (i, i - 1))
        q = posterior(x_t, x0, diffusion.log_snr(t), diffusion.log_snr(s))
        torch.testing.assert_close(q.mean, of_x0 * x0 + of_x_t * x_t, rtol=0, atol=1e-9)
        assert q.lower.item() == pytest.approx(math.log((1 - bar[i - 1]) / (1 - bar[i]) * beta), abs=1e-8)
        assert q.upper.item() == pytest.approx(math.log(beta), abs=1e-8)


def test_posterior_is_the_conditional_of_the_joint():
    """q(x_s | x_t, x_0) by the rule for Gaussians, from Var x_s, Var x_t and Cov = (α_t/α_s) σ_s²."""
    t, s = torch.tensor([-1.0]).double(), torch.tensor([0.7]).double()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
    x_t, x0 = randn(1, 4), randn(1, 4, seed=1)
    covariance = alpha_t / alpha_s * sigma_s**2
    q = posterior(x_t, x0, t, s)
    torch.testing.assert_close(q.mean, alpha_s * x0 + covariance / sigma_t**2 * (x_t - alpha_t * x0))
    torch.testing.assert_close(q.lower.exp().squeeze(), (sigma_s**2 - covariance**2 / sigma_t**2).squeeze())


def test_posterior_of_each_sample_and_of_scalars():
    x_t, x0 = randn(3, 2, 2), randn(3, 2, 2, seed=1)
    t, s = torch.tensor([-2.0, 0.0, 3.0]).double(), torch.tensor([-1.0, 0.1, 9.0]).double()
    together = posterior(x_t, x0, t, s)
    for i in range(3):
        alone = posterior(x_t[i, None], x0[i, None], t[i], s[i])  # scalars
        torch.testing.assert_close(together.mean[i], alone.mean[0])
        torch.testing.assert_close((together.lower[i], together.upper[i]), (alone.lower[0], alone.upper[0]))


def test_bounds_are_finite_and_in_order_for_the_finest_steps():
    log_snr = process().grid(1000)
    q = posterior(torch.zeros(1000, 1), torch.zeros(1000, 1), log_snr[:-1], log_snr[1:])
    assert q.lower.isfinite().all() and q.upper.isfinite().all() and (q.lower < q.upper).all()


# -- the bound ----------------------------------------------------------------------------------------------------

LEVEL_T, LEVEL_S = torch.tensor([-3.0, 0.0, 6.0]).double(), torch.tensor([-2.9, 1.0, 6.02]).double()


def bound_case():
    x0, x_t, guess = (randn(3, 2, 4, seed=seed) for seed in range(3))
    return x0, x_t, guess, torch.rand(3, 2, 4, dtype=torch.float64, generator=generator(3))


def test_bound_is_the_divergence_of_two_gaussians():
    x0, x_t, guess, fraction = bound_case()
    true, model = (posterior(x_t, x, LEVEL_T, LEVEL_S) for x in (x0, guess))
    log_variance = true.lower + fraction * (true.upper - true.lower)
    kl = kl_divergence(Normal(true.mean, (true.lower / 2).exp()), Normal(model.mean, (log_variance / 2).exp()))
    got = process(steps=37).vlb(fraction, (x0 - guess).square(), LEVEL_T, LEVEL_S)
    torch.testing.assert_close(got, 37 * kl.mean((1, 2)), rtol=1e-9, atol=1e-9)


def test_bound_is_zero_for_a_perfect_prediction_of_the_lower_variance():
    x0, _, _, fraction = bound_case()
    perfect = process().vlb(torch.zeros_like(x0), torch.zeros_like(x0), LEVEL_T, LEVEL_S)
    torch.testing.assert_close(perfect, torch.zeros(3).double(), rtol=0, atol=1e-12)
    assert (process().vlb(fraction, torch.zeros_like(x0), LEVEL_T, LEVEL_S) > 1e-3).all()


@pytest.mark.parametrize("fraction, ratio", [(0.0, 0.0), (1.0, 1.0), (0.25, 0.25)])
def test_fraction_places_the_variance_between_its_bounds(fraction, ratio):
    """With a perfect mean the bound is ½(d + e^{−d} − 1) of the log-variance's distance d from the lower one."""
    x0, x_t, _, _ = bound_case()
    q = posterior(x_t, x0, LEVEL_T, LEVEL_S)
    d = ratio * (q.upper - q.lower).flatten()
    got = process(steps=1).vlb(torch.full_like(x0, fraction), torch.zeros_like(x0), LEVEL_T, LEVEL_S)
    torch.testing.assert_close(got, 0.5 * (d + torch.exp(-d) - 1), rtol=1e-9, atol=1e-12)


def test_outputs_between_minus_one_and_one_stay_between_the_bounds():
    diffusion, x_t = process(), randn(5, 4)
    second = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None].expand(5, 4)
    fraction = diffusion.interpret(torch.stack([x_t, second], 1), x_t, torch.zeros(5).double()).fraction
    assert fraction[:, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]


@PREDICTIONS
def test_errors_of_the_prediction_are_those_of_data_and_noise(prediction):
    diffusion, log_snr = process(prediction=prediction), torch.tensor([-7.0, -1.0, 0.0, 5.0]).double()
    x0, eps, output = randn(4, 6), randn(4, 6, seed=1), randn(4, 2, 6, seed=2)
    guess = diffusion.interpret(output, diffusion.q_sample(x0, log_snr, eps), log_snr)
    error = (output[:, 0] - diffusion.target(x0, eps, log_snr)).square()
    of_x0, of_eps = (factor[:, None] * error for factor in diffusion.error_factors(log_snr))
    torch.testing.assert_close(of_x0, (guess.x0 - x0).square())
    torch.testing.assert_close(of_eps, (guess.eps - eps).square())


# -- losses -------------------------------------------------------------------------------------------------------


class Recorder:
    """A network whose output is given by a formula of (x_t, λ), or a leaf, that remembers what it was asked."""

    def __init__(self, formula):
        self.formula = formula

    def __call__(self, x_t, log_snr):
        self.x_t, self.log_snr = x_t, log_snr
        self.output = self.formula(x_t, log_snr)
        return self.output


def zero(x_t, log_snr):
    return torch.stack([torch.zeros_like(x_t)] * 2, dim=1)


@pytest.mark.parametrize("prediction, expected", [("eps", 1.0), ("x0", 4.0)])
def test_simple_loss_of_a_network_that_says_zero_is_the_targets_variance(prediction, expected):
    x0 = 2 * randn(512, 64, dtype=torch.float32)
    losses = process(prediction=prediction).losses(zero, x0, generator())
    assert losses["simple"].shape == losses["vlb"].shape == (512,) and losses["loss"].shape == ()
    assert losses["simple"].mean().item() == pytest.approx(expected, rel=0.03)
    if prediction == "eps":
        assert torch.equal(losses["eps"], losses["simple"])


def test_weights_say_which_values_count():
    """A network that errs in one value alone pays as much as that weighs; the bound (E8) is not weighed."""
    x0 = randn(6, 3, seed=2, dtype=torch.float32)

    def errs(x_t, log_snr):
        right = process(prediction="x0").target(x0, x_t, log_snr)
        return torch.stack([right + torch.tensor([0.0, 2.0, 0.0]), torch.zeros_like(x_t)], dim=1)

    losses = [process(prediction="x0").losses(errs, x0, generator(), weight=torch.tensor(w)) for w in
              ([1.0, 1.0, 1.0], [0.5, 2.0, 0.5], [1.5, 0.0, 1.5])]  # fmt: skip
    torch.testing.assert_close(losses[0]["simple"], torch.full((6,), 4 / 3))
    torch.testing.assert_close(losses[1]["simple"], torch.full((6,), 8 / 3))
    assert losses[2]["simple"].abs().max() < 1e-6
    assert all(torch.equal(one["vlb"], losses[0]["vlb"]) for one in losses)



@PREDICTIONS
def test_losses_of_a_perfect_network_are_zero(prediction):
    diffusion, x0 = process(prediction=prediction, log_snr_min=-6.0, log_snr_max=6.0), randn(64, 4, dtype=torch.float32)

    def perfect(x_t, log_snr):
        alpha, sigma = alpha_sigma(log_snr, x_t)
        target = diffusion.target(x0, (x_t - alpha * x0) / sigma, log_snr)
        return torch.stack([target, -torch.ones_like(target)], dim=1)  # fraction 0

    losses = diffusion.losses(perfect, x0, generator())
    assert losses["simple"].max() < 1e-6 and losses["eps"].max() < 1e-4
    assert losses["vlb"].abs().max() < 0.01 and losses["loss"] < 1e-4


def test_times_cover_all_levels_one_in_each_part():
    network, b, steps = Recorder(zero), 16, 10
    for seed in range(20):
        process(steps=steps).losses(network, torch.zeros(b, 3), generator(seed))
        t = (10 - network.log_snr) / 20
        place = (t - 1 / steps) / (1 - 1 / steps) * b
        assert ((place - torch.arange(b) > -1e-4) & (place - torch.arange(b) < 1 + 1e-4)).all()
        assert place.frac().std() > 0.1


def test_the_network_sees_data_at_the_level_it_is_told():
    network = Recorder(zero)
    process().losses(network, torch.full((32, 4), 1e6), generator())
    torch.testing.assert_close(network.x_t / 1e6, alpha_sigma(network.log_snr, network.x_t)[0].expand(32, 4))


def test_losses_are_drawn_from_the_generator():
    x0 = randn(8, 5, dtype=torch.float32)
    first, again, other = (process().losses(zero, x0, generator(seed))["simple"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.isclose(first, other).any()


def test_the_bound_is_weighted_and_trains_the_variance_alone():
    network = Recorder(lambda x_t, log_snr: randn(4, 2, 3, dtype=torch.float32).requires_grad_())
    losses = process(vlb_weight=0.125).losses(network, randn(4, 3, seed=1, dtype=torch.float32), generator())
    torch.testing.assert_close(losses["loss"], losses["simple"].mean() + 0.125 * losses["vlb"].mean())

    def gradient(loss):
        return torch.autograd.grad(loss, network.output, retain_graph=True)[0]

    of_bound, of_simple, of_loss = map(gradient, (losses["vlb"].mean(), losses["simple"].mean(), losses["loss"]))
    assert (of_bound[:, 0] == 0).all() and (of_bound[:, 1] != 0).all()
    assert (of_simple[:, 0] != 0).all() and (of_simple[:, 1] == 0).all()
    torch.testing.assert_close(of_loss, of_simple + 0.125 * of_bound)


def test_without_a_bound_one_number_is_predicted():
    losses = process(vlb_weight=0.0).losses(lambda x, _: torch.zeros_like(x)[:, None], torch.zeros(4, 3), generator())
    assert (losses["vlb"] == 0).all() and torch.equal(losses["loss"], losses["simple"].mean())


def test_bound_of_zero_noise_is_known_in_closed_form():
    """ε̂ = 0 and the lower variance: each of T even steps of λ costs ½(e^{Δλ} − 1) nats a value."""

    def network(x_t, log_snr):
        return torch.stack([torch.zeros_like(x_t), -torch.ones_like(x_t)], dim=1)

    for steps in (20, 100):
        x0 = randn(512, 64, dtype=torch.float32)
        losses = process(steps=steps, prediction="eps").losses(network, x0, generator())
        assert losses["vlb"].mean().item() == pytest.approx(steps / 2 * math.expm1(20 / steps), rel=0.03)


@pytest.mark.parametrize("schedule, steps", [("linear", 40), ("cosine", 300)])  # the cosine's ends need fine steps
def test_bound_of_the_losses_estimates_the_sum_over_steps(schedule, steps):
    """Against Σ KL at t = 1/T, 2/T, …, 1, each by torch.distributions, with a mean and a variance that are wrong."""
    x0, diffusion = randn(1000, 8), process(schedule=schedule, steps=steps, log_snr_min=-6.0, log_snr_max=6.0)

    def network(x_t, log_snr):
        sigma = alpha_sigma(log_snr, x_t)[1]
        return torch.stack([0.5 * sigma * x_t, torch.full_like(x_t, -0.5)], dim=1)

    total = 0.0
    for i in range(1, steps + 1):
        t, s = (diffusion.log_snr(torch.full((1000,), j / steps).double()) for j in (i, i - 1))
        x_t = diffusion.q_sample(x0, t, randn(1000, 8, seed=i))
        guess = diffusion.interpret(network(x_t, t), x_t, t)
        true, model = posterior(x_t, x0, t, s), posterior(x_t, guess.x0, t, s)
        scale = (0.5 * (0.25 * true.upper + 0.75 * true.lower)).exp()
        total += kl_divergence(Normal(true.mean, (true.lower / 2).exp()), Normal(model.mean, scale)).mean().item()
    draws = [diffusion.losses(network, x0.float(), generator(seed))["vlb"].mean().item() for seed in range(8)]
    assert sum(draws) / len(draws) == pytest.approx(total, rel=0.03)


def test_a_variance_never_leaves_its_bounds():
    """Whatever a network says: a barely trained one says anything."""
    diffusion = Diffusion(DiffusionConfig())
    output = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).view(5, 1, 1).repeat(1, 2, 3)
    fraction = diffusion.interpret(output, torch.zeros(5, 3), torch.zeros(5)).fraction
    assert torch.equal(fraction[:, 0], torch.tensor([0, 0, 0.5, 1, 1]))
