"""How fast networks are trained, by the project's own loop, and what `plan` makes of it."""

import json
from types import SimpleNamespace

import pytest
import torch

from minirodin import benchmark_training, cli, training
from minirodin.config import TrainConfig, preset
from minirodin.plan import make_plan

BENCHES = {"encoder": "bench_encoder", "latent": "bench_latent", "refiner-training": "bench_refiner_training_smoke"}


def test_a_rate_is_that_of_the_loop_without_its_first_steps(monkeypatch):
    network, pause, drawn, now = torch.nn.Linear(2, 1), 0.04, [], [0.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def losses(network, batch, generator):
        now[0] += pause if len(drawn) > 2 else 10 * pause  # the first steps, which warm up, are slow
        return {"loss": network(batch).square().mean()}

    def draw(number, generator):
        drawn.append(number)
        return torch.randn(number, 2)

    found = benchmark_training._rate(
        network, losses, lambda device: draw, TrainConfig(batch=6), 12, lambda device: None
    )
    assert drawn == [6] * 12 and found["batch"] == 6 and found["parameters"] == 3
    assert found["training_steps_per_second"] == pytest.approx(1 / pause, rel=1e-3)
    assert found["samples_per_second"] == pytest.approx(6 * found["training_steps_per_second"])


@pytest.mark.parametrize("what", BENCHES)
def test_plan_takes_what_was_measured(what, tmp_path, capsys):
    name = what.removesuffix("-training")
    file = tmp_path / f"{BENCHES[what]}.json"
    (tmp_path / "bench_other.json").write_text("{}")
    before = next(s for s in make_plan("smoke", results=tmp_path) if s.name == name)
    assert before.gpu_hours is None and f"({file.name})" in " ".join(before.notes)
    assert cli.main(["bench", what, "--preset", "smoke", "--out", str(file)]) == 0
    found = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert next(s for s in make_plan("smoke", results=tmp_path) if s.name == name).gpu_hours is None  # it is of a CPU
    file.write_text(json.dumps({**found, "device": "a GPU"}))
    after = next(s for s in make_plan("smoke", results=tmp_path) if s.name == name)
    train = getattr(preset("smoke"), name).train
    steps = next(s.what for s in make_plan("smoke", results=tmp_path) if s.name == name).split()[0]
    seconds = int(steps.replace(",", "")) * train.batch / found["samples_per_second"]
    assert after.gpu_hours == pytest.approx(seconds / 3600, rel=1e-3)
