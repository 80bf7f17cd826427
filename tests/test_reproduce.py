"""One command for everything: it goes on where it was cut, refuses what is not its own, reports what it measured."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image
from safetensors import safe_open
from toys import ball_capture

from minirodin import cli, report, reproduce
from minirodin.cameras import save_capture
from minirodin.errors import CheckpointError
from minirodin.recipes import PEOPLE_SEEDS, RECIPES, People, Run, recipe
from minirodin.shards import FittedPlanes


def toy_run(out) -> Run:
    """Two people and two unseen, of whose pictures `reproduce` is not the maker; planes of 16² in seconds."""
    tiny, plan = tiny_config(), recipe("smoke")["plan"]
    who = People(train=2, unseen=2, views=12, size=24, detail=1, group=1)
    few = {"base_rays": 64, "base_steps": 3, "decoder": 1}
    config = replace(tiny, name="smoke", fit=replace(tiny.fit, shared_steps=9, steps=3))
    return Run(out, config, replace(plan, base=who, upsampler=who, refiner=who, **few), 0, 1, "cpu")


@pytest.fixture
def stages(monkeypatch):
    """Stand-ins that note their calls, and stop at the one in `stop`; the report only says that it was written."""
    seen, stop = [], []

    def stage(name):
        def run(_):
            seen.append(name)
            if name in stop:
                raise KeyboardInterrupt
            return {"value": name}

        run.__name__ = name
        return run

    monkeypatch.setattr(reproduce, "STAGES", tuple(map(stage, "abcd")))
    monkeypatch.setattr(reproduce, "TOGETHER", reproduce.STAGES[1:2])
    monkeypatch.setattr(reproduce, "write_report", lambda out, config, plan, results: seen.append(sorted(results)))
    return seen, stop


def run_again(out, **changed) -> list[str]:
    """What is said while the toy's settings are reproduced into `out`."""
    said, toy = [], toy_run(out)
    reproduce.reproduce(changed.get("config", toy.config), changed.get("plan", toy.plan), out, said.append)
    return said


@pytest.mark.parametrize("cut", "abcd")
def test_goes_on_with_the_stage_that_was_cut(cut, stages, tmp_path):
    seen, stop = stages
    stop.append(cut)
    with pytest.raises(KeyboardInterrupt):
        run_again(tmp_path)
    done = "abcd"[: "abcd".index(cut)]
    assert "".join(seen) == done + cut and not (tmp_path / "results" / f"{cut}.json").exists()
    stop.clear(), seen.clear()
    said = run_again(tmp_path)
    assert seen == [*"abcd"[len(done) :], list("abcd")]  # the rest, and the report
    assert [line.endswith("done before") for line in said] == [name in done for name in "abcd"]
    record = json.loads((tmp_path / "results" / f"{cut}.json").read_text())
    assert record["value"] == cut and record["seconds"] >= 0 and record["commit"]
    seen.clear()
    run_again(tmp_path)
    assert seen == [list("abcd")]


def test_another_run_is_refused_and_nothing_touched(stages, tmp_path):
    toy, out = toy_run(tmp_path), tmp_path / "out"
    run_again(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    stages[0].clear()
    changed = {
        "config.base.train.steps": {"config": replace(toy.config, base=replace(toy.config.base, train=replace(
            toy.config.base.train, steps=7)))},
        "plan.samples": {"plan": replace(toy.plan, samples=9)},
        "plan.upsampler.train": {"plan": replace(toy.plan, upsampler=replace(toy.plan.upsampler, train=5))},
        "config.name": {"config": replace(toy.config, name="small")},
    }  # fmt: skip
    for name, settings in changed.items():
        with pytest.raises(CheckpointError, match=f"begun with {name} .*another folder"):
            run_again(out, **settings)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="choose an empty folder"):
        run_again(other)
    with pytest.raises(CheckpointError, match="choose an empty folder"):
        run_again(other / "notes.txt")
    assert stages[0] == [] and [path.name for path in other.iterdir()] == ["notes.txt"]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        run_again(out)


def test_a_run_cut_before_anything_was_written_is_no_other_run(stages, tmp_path):
    (tmp_path / ".run.json.tmp").write_text("{")
    run_again(tmp_path)
    assert stages[0][:-1] == list("abcd")


def test_command_takes_flags_and_refuses_in_one_line(stages, tmp_path, capsys):
    command = ["reproduce", "--preset", "smoke", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--plan.samples", "6", "--base.train.steps", "3"]) == 0
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert told["plan"]["samples"] == 6 and told["config"]["base"]["train"]["steps"] == 3
    assert told["config"]["name"] == "smoke" and told["config"]["base"]["unet"]["latent"] == 512
    assert told["config"]["latent"]["train"]["steps"] == RECIPES["smoke"][1].latent
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'out' / 'report.html'}\n")
    fresh = ["reproduce", "--out", str(tmp_path / "fresh"), "--preset"]
    for wrong, why in {
        (*command,): "begun with config.base.train.steps 3, not 40",
        (*command[:2], "small", *command[3:]): "begun with config.name smoke, not small",
        (*fresh, "smok"): "did you mean 'smoke'",
        (*fresh, "smoke", "--fit.group", "3"): "--fit.group means nothing",
        (*fresh, "smoke", "--data.views", "3"): "--data means nothing",
    }.items():
        assert cli.main(list(wrong)) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and printed.out == ""
        assert why in printed.err
    assert not (tmp_path / "fresh").exists()


def test_what_one_process_does_alone_the_others_wait_for(stages, tmp_path, monkeypatch):
    seen, both = [], threading.Barrier(2)

    def alone(run):
        seen.append((run.rank, "alone"))
        time.sleep(0.5)
        return {}

    def together(run):
        seen.append((run.rank, "together", run.record(alone).is_file()))
        both.wait(20)
        return {}

    def last(run):
        seen.append((run.rank, "last"))
        time.sleep(0.5)
        return {}

    def other():
        run_again(tmp_path)
        seen.append((1, "end", (tmp_path / "results" / "last.json").is_file()))

    monkeypatch.setattr(reproduce, "STAGES", (alone, together, last))
    monkeypatch.setattr(reproduce, "TOGETHER", (together,))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    process = threading.Thread(target=other, daemon=True)
    process.start()
    time.sleep(0.3)
    assert seen == [] and not list(tmp_path.iterdir())  # it waits for the first one to begin
    monkeypatch.setenv("RANK", "0")
    run_again(tmp_path)
    process.join(20)
    wanted = [(0, "alone"), (0, "last"), (0, "together", True), (1, "end", True), (1, "together", True)]
    assert sorted(seen) == wanted and stages[0] == [["alone", "last", "together"]]  # one of them wrote the report


def test_a_stage_left_half_done_is_done_again(tmp_path):
    """Planes of three kinds, really fitted; one shard is missing, as where a run was killed before it was written."""
    run = toy_run(tmp_path)
    for part, first in PEOPLE_SEEDS.items():
        for seed in range(first, first + 2):
            capture = ball_capture(f"{seed:06d}", views=12, size=24, seed=seed)
            save_capture(capture, run.captures(run.plan.base) / capture.name)
        assert len(run.people(run.plan.base, part)) == 2
    assert reproduce.decoder(run) == {"people": 1}
    assert reproduce.planes(run) == {f"{k}, {p}": 2 for k in ("base", "upsampler", "refiner") for p in PEOPLE_SEEDS}
    fitted = FittedPlanes(run.planes("base", "unseen"))
    assert fitted.names == ["1000000", "1000001"]
    assert fitted.planes("1000000").shape == (3, 4, 8, 8)  # those of the base model are small
    assert FittedPlanes(run.planes("refiner", "train")).planes("000000").shape == (3, 4, 16, 16)
    kept, lost = (fitted.folder / f"planes-100000{i}.safetensors" for i in (0, 1))
    before, stamp = fitted.planes("1000001"), kept.stat().st_mtime_ns
    lost.unlink()
    reproduce.planes(run)
    assert fitted.planes("1000001").equal(before) and kept.stat().st_mtime_ns == stamp


def test_every_preset_has_data_that_its_stages_can_use():
    for name in RECIPES:
        config, plan = recipe(name).values()
        for who in (plan.base, plan.upsampler, plan.refiner):
            assert who.views >= 5  # else none is held out
        assert plan.upsampler.size >= config.upsampler.view and plan.refiner.size >= 4 * config.refiner.view
        assert 4 <= min(plan.samples, plan.base.unseen) <= plan.base.train
        assert 4 <= min(plan.samples, plan.upsampler.unseen) <= plan.upsampler.train
        assert plan.decoder <= plan.upsampler.train and plan.judged <= plan.portraits.unseen
        assert config.base.unet.latent == config.encoder.dimensions
        for part, steps in vars(RECIPES[name][1]).items():
            train = getattr(config, part).train
            assert train.steps == train.preview_every == steps  # the last preview is in the report


RESULTS = {
    "people": {"people": 31},
    "portraits": {"people": 47, "date": "2026-01-02", "commit": "0123abc", "device": "an abacus"},
    "fitting": {"subjects": 4, "views": 8, "perceptual": "eye", "wiener_eps_loss": 0.234,
                "mean": {"64": {"psnr": 21.25, "ssim": 0.812, "eye": 0.567}}},
    "encoder": {"mean": 0.611, "most_frequent": 0.409, "people": 6,
                "image_to_text": {"recall@1": 0.167, "true@1": 0.5}},
    "classifier": {"mean": 0.622, "most_frequent": 0.418},
    "gallery": {"prompts": ["a <b> person"], "edit": ["old & wise", "young"]},
    "judgement": {
        "portraits": {"people": 4, "real": {"mean": 0.933},
                      "scales": {"1.5": {"agreement": {"mean": 0.455}, "recognised": 0.25}}},
        "texts": {"mean": 0.344, "count": 5}, "edits": {"mean": {"changed": 0.122, "kept": 0.788}},
    },
    "refinement": {
        "mean": {kind: {"psnr": value} for kind, value in (("bicubic", 20.5), ("refined", 21.5), ("rendered", 22.5))},
        "consistency": {"bicubic": 0.0101, "refined": 0.0202, "rendered": 0.0303},
        "frechet": {"fitted": {"bicubic": {"parts": 71.5}, "refined": {"parts": 61.5}, "rendered": {"parts": 51.5}}},
    },
}  # fmt: skip
ROW = {"precision": 0.51, "recall": 0.52, "coverage": 0.53, "memorisation": 1.13, "floating": 0.001}


def row(frechet: float, disagreement: float) -> dict:
    return {**ROW, "frechet": frechet, "disagreement": disagreement}


RESULTS["generation"] = {
    **{"people": 4, "training_people": 8, "network": "seer"},
    **{"real": row(31.25, 1.02), "samples": {"samples": row(92.75, 3.45)}},
}
PSNR = {"fitted": 29.5, "enlarged": 23.5, "upsampled": 25.5}
RESULTS["upsampling"] = {
    "held_out": {name: {"psnr": value, "ssim": 0.7, "eye": 0.8} for name, value in PSNR.items()},
    "generated": {"real": row(11.5, 1.0), "samples": {"enlarged": row(44.5, 1.0), "upsampled": row(33.5, 1.0)}},
}  # fmt: skip


def made(out, results=RESULTS) -> tuple[str, dict]:
    """The page without its pictures, and the JSON."""
    config, plan = recipe("smoke").values()
    results = {name: {**values, "seconds": 12.0} for name, values in results.items()}
    steps = {part: getattr(config, part).train.steps for part in vars(RECIPES["smoke"][1])}
    sheets = report.pictures_of(out, steps, results["gallery"]).values()
    for path in ["pictures/turn.png", *(path for sheet in sheets for path in sheet)]:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 96, 4), 200, np.uint8)).save(out / path)
    page = report.write_report(out, config, plan, results).read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)', page)
    assert len(sources) == 1 + sum(map(len, report.pictures_of(out, steps, results["gallery"]).values()))
    assert all((a or b).startswith("data:image/webp;base64,") for a, b in sources)  # nothing is fetched
    assert "http" not in page and "<script" not in page
    return re.sub(r"data:image[^\")]*", "", page), json.loads((out / "report.json").read_text())


def test_report_says_what_was_measured(tmp_path):
    page, values = made(tmp_path)
    told = ("21.25 dB", "0.567", "0.812", "0.234", "61.1%", "62.2%", "92.8", "31.2", "3.45", "1.02", "45.5%", "93.3%",
            "34.4%", "12.2%", "78.8%", "25.5", "23.5", "29.5", "33.5", "44.5", "21.5", "20.5", "22.5", "0.0202", "61.5",
            "0123abc", "an abacus", "2.0 min", "a &lt;b&gt; person.", 'aria-label="a &lt;b&gt; person"',
            "old &amp; wise", "base 40")  # fmt: skip
    missing = [text for text in told if text not in page]
    assert missing == []
    cells = [cell for rows in values["tables"].values() for row in rows for cell in row]
    assert "92.8" in cells and values["results"]["generation"]["samples"]["samples"]["frechet"] == 92.75
    assert values["preset"] == "smoke" and values["steps"]["base"] == 40 and values["seconds"]["fitting"] == 12.0
    other = {**RESULTS, "classifier": {"mean": 0.987, "most_frequent": 0.418}}
    page, values = made(tmp_path, other)
    assert "98.7%" in page and "62.2%" not in page and values["results"]["classifier"]["mean"] == 0.987


def test_smoke_from_beginning_to_end(tmp_path):
    """Killed once on the way; ten minutes of two cores at most; the box that it leaves is used."""
    out, before = tmp_path / "out", resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "minirodin", "reproduce", "--preset", "smoke", "--out", str(out)]
    first = subprocess.Popen(command, start_new_session=True)
    while not (out / "base" / "resume.safetensors").exists():
        assert first.poll() is None
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert (out / "results" / "latents.json").exists() and not (out / "results" / "base.json").exists()
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "\nlatents: done before\nbase …\n" in said and said.endswith(f"{out / 'report.html'}\n")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime < 20 * 60

    pipe = reproduce.RodinPipeline.from_pretrained(out)
    small = pipe("a woman with red hair", num_inference_steps=2, upsample=False, refine=False)
    assert small.planes.shape == (3, 8, 32, 32)
    avatar = pipe("a woman with red hair", num_inference_steps=2)
    assert avatar.planes.shape == (3, 8, 64, 64) and avatar.render(size=256).shape == (256, 256, 4)
    values = json.loads((out / "report.json").read_text())
    assert set(values["seconds"]) == {stage.__name__ for stage in reproduce.STAGES}
    frechet = values["results"]["generation"]
    assert frechet["samples"]["samples"]["frechet"] > frechet["real"]["frechet"] > 0
    assert values["results"]["pairs"]["people"] == 3
    with safe_open(out / "refiner" / "model.safetensors", "pt") as file:
        assert file.metadata()["upsampled"] == "too"
    assert (out / "report.html").stat().st_size > 50_000
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert again.count("done before") == len(reproduce.STAGES)
