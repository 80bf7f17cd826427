"""The refiner's adversary: whom each loss moves, what the critic learns, its penalty, training that is cut with it."""

import csv

import pytest
import torch
import torch.nn.functional as F
from test_refiner import TINY, balls, config, cut_and_resumed, file_of, right, seeded
from torch import nn

from minirodin.adversary import Critic, adversarial_losses
from minirodin.errors import ConfigError
from minirodin.refiner import Refiner
from minirodin.refiner_training import refiner_losses, train_refiner


class Slope(nn.Module):
    """D(x) = a · Σ x over the picture: whose gradient in x is a everywhere."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x):
        return self.a * x.sum((1, 2, 3))[:, None, None, None]


def test_losses_of_a_linear_critic_are_as_by_hand():
    made, true = torch.full((2, 3, 2, 2), 0.25), torch.full((2, 3, 2, 2), 0.5)
    fooling, telling = adversarial_losses(Slope(0.1), made, true)
    a, b = (0.1 * 12 * torch.tensor(value) for value in (0.25, 0.5))
    assert float(fooling) == pytest.approx(float(F.softplus(-a)))
    penalty = 12 * 0.1**2  # of one place
    assert telling.item() == pytest.approx(float(F.softplus(-b) + F.softplus(a) + penalty / 2))


def test_each_loss_moves_its_own_player_alone():
    torch.manual_seed(0)
    critic, made, true = Critic(4), torch.rand(2, 3, 16, 16, requires_grad=True), torch.rand(2, 3, 16, 16)
    for which in (0, 1):
        critic.zero_grad()
        made.grad = None
        adversarial_losses(critic, made, true)[which].backward()
        moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in critic.parameters()]
        assert not any(moved) and made.grad.abs().min() > 0 if which == 0 else all(moved) and made.grad is None
    assert true.grad is None and not true.requires_grad


def test_what_fools_looks_truer():
    """A step of the picture along its loss raises the critic's opinion of it."""
    torch.manual_seed(0)
    critic, made = Critic(4), torch.rand(2, 3, 16, 16, requires_grad=True)
    adversarial_losses(critic, made, torch.rand(2, 3, 16, 16))[0].backward()
    with torch.no_grad():
        assert critic(made - 10 * made.grad).mean() > critic(made).mean()


def test_a_critic_learns_to_tell_sharp_from_soft():
    torch.manual_seed(0)
    critic = Critic(8)
    optimiser = torch.optim.Adam(critic.parameters(), 3e-3)

    def draw(seed):
        sharp = torch.rand(8, 3, 32, 32, generator=seeded(seed)).round()
        return F.avg_pool2d(F.pad(sharp, (1, 1, 1, 1), "reflect"), 3, 1), sharp

    for step in range(80):
        optimiser.zero_grad()
        adversarial_losses(critic, *draw(step))[1].backward()
        optimiser.step()
    soft, sharp = (critic(x).detach() for x in draw(1000))
    assert sharp.min() > soft.max() and float(sharp.mean() - soft.mean()) > 1, (sharp.mean(), soft.mean())


def test_it_is_asked_of_the_larger_size_and_off_by_default():
    batch, asked = balls(pairs=1).draw(2, seeded()), []
    eyes, critic = (lambda seen, true: (seen - true).abs().mean((1, 2, 3))), Critic(4)
    critic.register_forward_pre_hook(lambda module, inputs: asked.append(tuple(inputs[0].shape)))

    def answer(views):
        return [x.requires_grad_() for x in right(batch)]

    plain = refiner_losses(answer, batch, TINY, eyes)
    assert "fooling" not in plain and TINY.adversarial_weight == 0
    found = refiner_losses(answer, batch, config(adversarial_weight=0.5).refiner, eyes, critic)
    assert set(asked) == {(2, 3, 48, 48)} and len(asked) == 3
    more = 0.5 * found["fooling"] + found["telling"]
    assert found["loss"].item() == pytest.approx((plain["loss"] + more).item(), rel=1e-5)


def test_training_with_it_is_the_same_when_cut_and_leaves_a_refiner(fitted, large, tmp_path, monkeypatch):
    wanted = config(adversarial_weight=0.1)
    whole = train_refiner(fitted, wanted, tmp_path / "whole", large, show_progress=False)
    rows = list(csv.DictReader((tmp_path / "whole" / "log.csv").open()))
    assert {"fooling", "telling"} <= set(rows[-1]) and not hasattr(whole, "critic")
    loaded = Refiner.load(tmp_path / "whole", "cpu")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), whole.parameters(), strict=True))
    cut_and_resumed(fitted, wanted, tmp_path / "cut", large, monkeypatch)
    (a, _), (b, _) = (file_of(tmp_path / name) for name in ("whole", "cut"))
    again = train_refiner(fitted, wanted, tmp_path / "whole", large, show_progress=False)  # nothing is left to do
    assert all(torch.equal(x, y) for x, y in zip(again.parameters(), whole.parameters(), strict=True))
    assert not any("critic" in key for key in a)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_weight_that_means_nothing_is_one_line(fitted, large, tmp_path):
    with pytest.raises(ConfigError, match=r"refiner\.adversarial_weight is -1: give 0 or more"):
        train_refiner(fitted, config(adversarial_weight=-1), tmp_path, large, show_progress=False)
