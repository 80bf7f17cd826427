"""The training loop: what a killed run ends with, what a bad step leaves, averages, rates, files."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minirodin import training
from minirodin.config import TrainConfig
from minirodin.errors import CheckpointError, ConfigError, MinirodinError
from minirodin.shards import read_tensors
from minirodin.training import EMA, Trainer, learning_rate

CONFIG = TrainConfig(
    **{"steps": 12, "batch": 4, "lr": 0.05, "warmup": 3, "ema": 0.9},
    **{"log_every": 3, "preview_every": 6, "checkpoint_every": 4},
)
TRUTH = torch.tensor([[1.0, -2.0, 0.5]])


class Killed(BaseException):
    """Stands in for a kill: nothing in the code can catch it."""


class Toy(nn.Module):
    """A linear map with dropout: something random inside the network as well."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(3, 1), nn.Dropout(0.2)
        with torch.no_grad():
            self.layer.weight.fill_(0.1)
            self.layer.bias.fill_(0.0)

    def forward(self, x):
        return self.layer(self.dropout(x))


def losses(network, batch, generator):
    noise = 0.01 * torch.randn(len(batch), 1, generator=generator)
    error = (network(batch) - batch @ TRUTH.T - noise).square()
    return {"loss": error.mean(), "error": error.detach()[:, 0]}


def batches(number, generator):
    return torch.randn(number, 3, generator=generator)


def trainer(out, config=CONFIG, batches=batches, losses=losses, metadata=None, **more):
    return Trainer(Toy(), losses, batches, config, out, {"kind": "toy", **(metadata or {})}, **more)


def weights(out):
    return read_tensors(out / "model.safetensors", "toy")[0]


def rows(out):
    with open(out / "log.csv", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("killed_in_step", [1, 5, 8, 11])
def test_a_killed_run_ends_bit_equal_to_an_unbroken_one(tmp_path, killed_in_step, accumulate):
    config = replace(CONFIG, accumulate=accumulate)
    trainer(tmp_path / "whole", config).run(False)
    calls = iter(range(1000))

    def until_killed(number, generator):
        if next(calls) == killed_in_step * accumulate:
            raise Killed
        return batches(number, generator)

    with pytest.raises(Killed):
        trainer(tmp_path / "broken", config, until_killed).run(False)
    again = trainer(tmp_path / "broken", config)
    again.run(False)
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[key], broken[key]) for key in whole)
    assert rows(tmp_path / "whole")[-1] == rows(tmp_path / "broken")[-1]
    assert [r["step"] for r in rows(tmp_path / "broken")] == [r["step"] for r in rows(tmp_path / "whole")]
    assert not again.resume_file.exists()


def test_a_resumed_run_goes_on_where_the_checkpoint_was_written(tmp_path):
    seen = []

    def counted(number, generator):
        seen.append(1)
        if len(seen) == 7:
            raise Killed
        return batches(number, generator)

    with pytest.raises(Killed):
        trainer(tmp_path, batches=counted).run(False)
    seen[:] = [1] * 100
    trainer(tmp_path, batches=counted).run(False)
    assert len(seen) == 100 + 12 - 4  # the checkpoint was of step 4


def test_it_learns_and_leaves_what_it_promises(tmp_path, few_drawings, monkeypatch):
    def late(curves, path, **more):
        if curves["loss"][0][-1] > 294:
            few_drawings(curves, path, **more)

    monkeypatch.setattr(training, "save_curves", late)
    long = replace(CONFIG, steps=300, checkpoint_every=100)
    network = trainer(tmp_path, long, extra={"mean": torch.ones(2)}).run(False)
    torch.testing.assert_close(network.layer.weight.detach(), TRUTH, atol=0.5, rtol=0)  # dropout biases it
    assert float(rows(tmp_path)[-1]["loss"]) < 0.4 * float(rows(tmp_path)[0]["loss"])
    saved = weights(tmp_path)
    assert torch.equal(saved["network.layer.weight"], network.layer.weight)
    assert torch.equal(saved["mean"], torch.ones(2))
    assert (tmp_path / "loss.png").stat().st_size > 1000 and not network.training


def test_the_saved_weights_are_the_averaged_ones(tmp_path):
    run = trainer(tmp_path)
    path, original = [], run.advance

    def recorded():
        values = original()
        path.append(run.network.layer.bias.detach().clone())
        return values

    run.advance = recorded
    run.run(False)
    average = torch.zeros(1)
    for step, value in enumerate(path):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(weights(tmp_path)["network.layer.bias"], average)
    assert not torch.allclose(path[-1], average)


def test_ema_swaps_in_and_back():
    layer = nn.Linear(2, 2)
    ema = EMA(layer, 0.5)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    with ema.swapped_in():
        assert torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, before + 1) and torch.equal(ema.average[0], before)


def test_preview_sees_averaged_weights_in_eval_mode_and_reaches_the_log(tmp_path):
    seen = []

    def preview(step):
        seen.append((step, run.network.training, run.network.layer.bias.detach().clone()))
        return {"validation": 0.25 * step}

    run = trainer(tmp_path, preview=preview)
    run.run(False)
    assert [(step, training) for step, training, _ in seen] == [(6, False), (12, False)]
    assert torch.equal(seen[-1][2], weights(tmp_path)["network.layer.bias"])
    assert [r["validation"] for r in rows(tmp_path) if r["validation"]] == ["1.5", "3.0"]


def test_a_nan_stops_the_run_and_names_the_last_good_checkpoint(tmp_path):
    calls = iter(range(100))

    def poisoned(number, generator):
        return batches(number, generator) * (float("nan") if next(calls) == 7 else 1)

    with pytest.raises(MinirodinError, match=r"not finite near step (8|9).*resume\.safetensors"):
        trainer(tmp_path, batches=poisoned).run(False)
    kept, metadata = read_tensors(tmp_path / "resume.safetensors", "training in progress")
    assert metadata["step"] == "4" and all(t.isfinite().all() for t in kept.values())
    trainer(tmp_path).run(False)  # and good data goes on from there
    assert all(t.isfinite().all() for t in weights(tmp_path).values())


def test_however_replaying_ends_the_network_runs_as_ever_after_it(tmp_path):
    run = trainer(tmp_path)
    eager, run.device = run.network.forward, SimpleNamespace(type="cuda")
    run._record = lambda: setattr(run.network, "forward", None)
    with pytest.raises(MinirodinError), run._replayed():
        assert run.network.forward is None
        raise MinirodinError("the loss is not finite")
    assert run.network.forward == eager


def test_an_infinite_gradient_alone_stops_it_too(tmp_path):
    def steep(network, batch, generator):
        out = losses(network, batch, generator)
        total = network.layer.weight.sum()
        return {"loss": out["loss"].detach() + (total - total.detach()).sqrt()}

    with pytest.raises(MinirodinError, match="checkpoint: none"):
        trainer(tmp_path, replace(CONFIG, steps=1), losses=steep).run(False)  # a second step would have a NaN loss


def test_a_finished_run_is_not_trained_again(tmp_path):
    trainer(tmp_path).run(False)
    before = weights(tmp_path)

    def never(number, generator):
        raise AssertionError("trained again")

    network = trainer(tmp_path, batches=never).run(False)
    assert torch.equal(network.layer.weight, before["network.layer.weight"])


@pytest.mark.parametrize("finished", [True, False])
def test_the_checkpoint_of_another_run_is_refused(tmp_path, finished):
    if finished:
        trainer(tmp_path).run(False)
    else:
        with pytest.raises(Killed):
            trainer(tmp_path, batches=iter_kill(6)).run(False)
    with pytest.raises(CheckpointError, match="other data or settings"):
        trainer(tmp_path, metadata={"config": "another"}).run(False)


def iter_kill(at):
    calls = iter(range(100))

    def until(number, generator):
        if next(calls) == at:
            raise Killed
        return batches(number, generator)

    return until


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    with pytest.raises(Killed):
        trainer(tmp_path, batches=iter_kill(6)).run(False)
    path = tmp_path / "resume.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"resume\.safetensors is cut short"):
        trainer(tmp_path).run(False)


def test_learning_rate_warms_up_then_falls_to_a_twentieth():
    config = TrainConfig(steps=100, lr=1.0, warmup=10)
    assert [learning_rate(k, config) for k in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(55, config) == pytest.approx(0.05 + 0.95 / 2)
    assert learning_rate(100, config) == pytest.approx(0.05)
    assert learning_rate(100, replace(config, decay=False)) == 1.0


@pytest.mark.parametrize("change", [{"batch": 5, "accumulate": 2}, {"steps": 0}, {"batch": 0}])
def test_schedules_that_cannot_run_are_refused(tmp_path, change):
    with pytest.raises(ConfigError, match="steps of batch"):
        trainer(tmp_path, replace(CONFIG, **change))
    for every in ("log_every", "preview_every", "checkpoint_every"):
        with pytest.raises(ConfigError, match=every):
            trainer(tmp_path, replace(CONFIG, **{every: 0}))
