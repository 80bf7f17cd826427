"""What a reproduction would take: every number from a measured rate, or said to be missing."""

import json
import shutil

import pytest

from minirodin import cli, plan
from minirodin.config import preset
from minirodin.errors import ConfigError, DataError
from minirodin.plan import GIB, IN_BOX, as_json, make_plan
from minirodin.recipes import RECIPES

ON_A_GPU = {"date": "2026-01-01", "device": "a GPU"}
FULL = RECIPES["full"][0]


def folder(path, **files):
    """A folder of results like these."""
    path.mkdir(exist_ok=True)
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(ON_A_GPU | values))
    return path


def stages(*given, **named):
    return {stage.name: stage for stage in make_plan(*given, **named)}


@pytest.fixture(scope="module")
def full():
    return stages("full", 4)


def measured(name):
    return json.loads((IN_BOX / f"{name}.json").read_text())


def test_the_base_model_takes_what_was_measured_of_it(full):
    row = measured("bench_unet_full")["variants"]["aware"]
    steps = RECIPES["full"][1].base
    assert full["base"].gpu_hours == pytest.approx(steps * 256 / row["samples_per_second"] / 3600, rel=1e-3)
    assert full["base"].hours == pytest.approx(full["base"].gpu_hours / 4)
    assert "bench_unet_full.json (NVIDIA H200" in full["base"].sources[0]
    average, latents = 4 * row["parameters"] / GIB, 100_000 * 8 * 512 * 4 / GIB
    assert full["base"].gpu == pytest.approx(
        row["peak_memory_gb"] + average + latents, rel=1e-3
    )  # 64 a GPU, as measured
    assert not full["base"].at_least and any("73 GiB of planes are streamed" in n for n in full["base"].notes)


def test_a_stage_without_a_rate_says_so_and_is_not_guessed(full, tmp_path):
    assert as_json(list(full.values()))["missing"] == []
    for file in IN_BOX.glob("*.json"):
        if file.stem not in ("bench_encoder", "bench_refiner_training_full"):
            shutil.copy(file, tmp_path)
    some = stages("full", 4, results=tmp_path)
    found = as_json(list(some.values()))
    assert found["missing"] == ["encoder", "refiner"]
    for name in found["missing"]:
        assert some[name].gpu_hours is None and "missing" in " ".join(some[name].notes)
    known = [s.gpu_hours for s in full.values() if s.name not in found["missing"]]
    assert found["gpu_hours"] == pytest.approx(sum(known)) and len(known) == 6


def test_every_time_names_its_file(full):
    for stage in full.values():
        assert (stage.gpu_hours is None) or any((IN_BOX / s.split()[0]).is_file() for s in stage.sources)


def test_planes_on_the_disk_are_counted_exactly(full):
    values = (FULL.base.train + FULL.base.unseen) * 64**2
    values += sum(who.train + who.unseen for who in (FULL.upsampler, FULL.refiner)) * 256**2
    assert full["fitting"].disk == pytest.approx(values * 3 * 32 * 2 / GIB)


def test_renders_that_the_refiner_keeps_are_counted(full):
    """Of every view: four bytes a pixel at each size, upsampled, and of a neighbour; depths of two bytes of both."""
    views, sizes = FULL.refiner.train * FULL.refiner.views, len(preset("full").refiner.resolutions)
    kept = views * 256**2 * (4 * (sizes + 2) + 4) / GIB
    assert any(f" {kept:,.0f} GiB of renders" in note for note in full["refiner"].notes) and full["refiner"].gpu >= kept


def test_what_would_not_fit_is_said(full):
    assert any("at least" in line and "GPU of 80" in line for line in full["refiner"].too_much)
    roomy = stages("full", 4, gpu_memory=1e4, host_memory=1e4)
    assert not any(stage.too_much for stage in roomy.values())
    assert "does not divide among 3 GPUs" in stages("smoke", 3)["base"].too_much[0]


def test_fitting_counts_groups_steps_and_samples(tmp_path):
    p, c = RECIPES["small"][0], preset("small")
    rate = {"samples_per_second": 1e8, "peak_memory_gb": 1.0}
    found = stages("small", results=folder(tmp_path, bench_fit={"fast": rate, "subjects": 64}))["fitting"]
    samples = 0
    for who, rays, steps in (
        (p.base, p.base_rays, p.base_steps),
        (p.upsampler, c.fit.rays, c.fit.steps),
        (p.refiner, c.fit.rays, c.fit.steps),
    ):
        groups = -(-who.train // who.group) + -(-who.unseen // who.group)
        samples += groups * who.group * steps * rays * c.render.samples
    assert found.gpu_hours == pytest.approx(samples / 1e8 / 3600)
    assert not any("FLOPs" in note for note in found.notes)  # it is the network that was measured


def test_rates_of_small_are_scaled_by_flops_and_those_of_a_cpu_are_not_used(tmp_path, full):
    unet = measured("bench_unet_small")
    cpu = {"device": "CPU, 2 threads", "training_steps_per_second": 1.0, "batch": 2, "parameters": 1}
    found = stages("full", results=folder(tmp_path, bench_unet_small=unet, bench_upsampler_cpu=cpu))
    row = unet["variants"]["aware"]
    heavier = measured("bench_unet_full")["variants"]["aware"]["forward_gflop"] / row["forward_gflop"]
    assert found["base"].gpu_hours * 3600 == pytest.approx(
        500_000 * 256 * heavier / row["samples_per_second"], rel=1e-3
    )
    assert any("0.07 times the FLOPs" in note for note in found["base"].notes) and found["base"].at_least
    assert found["upsampler"].gpu_hours is None and "of a CPU" in " ".join(found["upsampler"].notes)
    assert found["people"].gpu_hours is None and found["fitting"].gpu_hours is None


def test_an_upsampler_measured_at_full_size_is_taken_as_it_is(tmp_path, full):
    network = plan._imagined(lambda: plan.build_network(preset("full")))
    parameters = sum(p.numel() for p in network.parameters())
    values = {"training_steps_per_second": 0.5, "batch": 8, "parameters": parameters, "peak_memory_gb": 40.0}
    found = stages("full", results=folder(tmp_path, bench_upsampler_full=values))["upsampler"]
    assert found.gpu_hours * 3600 == pytest.approx(300_000 * 64 / 4)
    small = values | {"parameters": 1, "batch": 16}  # of a network that keeps its activations: a third more again
    scaled = stages("full", results=folder(tmp_path / "small", bench_upsampler_small=small))["upsampler"]
    assert scaled.gpu_hours * 3600 == pytest.approx(300_000 * 64 / 8 * 4 / 3 * 1699.159 / 169.1535, rel=1e-4)
    assert scaled.at_least
    assert found.gpu > full["upsampler"].gpu + 64 / 8 * 30 and not found.at_least


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    assert cli.main(["plan", "--preset", "smoke", "--gpus", "2", "--out", str(tmp_path / "plan.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert list(found["stages"]) == [line.split()[0] for line in printed.splitlines()[1:9]]
    assert "missing" in printed and found["gpus"] == 2


def test_what_is_wrong_is_said_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "IN_BOX", tmp_path / "elsewhere" / "results")  # as where it is installed from a wheel
    assert cli.main(["plan"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--results" in said
    with pytest.raises(DataError, match="bench_"):
        make_plan("small", results=tmp_path)
    with pytest.raises(ConfigError, match="at least 1"):
        make_plan("small", 0)
    with pytest.raises(ConfigError, match="did you mean 'full'"):
        make_plan("ful")
    folder(tmp_path / "results", bench_fit={"fast": {"samples_per_second": 1e8, "peak_memory_gb": 1.0}, "subjects": 1})
    assert cli.main(["plan", "--preset", "smoke"]) == 0  # of the folder that is worked in
