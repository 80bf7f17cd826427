"""The command line: quick to start, every command works end to end on tiny input, and exit codes mean something."""

import inspect
import json
import re
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from minirodin import cli, cli_models, cli_reproduce, demo, doctor
from minirodin.avatar import Avatar
from minirodin.page import write_files
from minirodin.shards import FittedPlanes


def python(code: str) -> tuple[str, float]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout, time.perf_counter() - start


def test_import_is_quick_and_leaves_torch_alone():
    out, seconds = python("import sys, minirodin, minirodin.cli; print('torch' in sys.modules)")
    assert out.strip() == "False" and seconds < 3
    out, _ = python("import minirodin; print(minirodin.Avatar.__name__, minirodin.preset('smoke').name)")
    assert out.split() == ["Avatar", "smoke"]


def test_every_exported_name_exists():
    import minirodin

    for name in minirodin.__all__:
        assert getattr(minirodin, name)
    with pytest.raises(AttributeError):
        _ = minirodin.no_such_thing


@pytest.mark.parametrize("command", ["", "avatars", "fit", "render", "demo", "evaluate", "bench", "doctor"])
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert f"usage: minirodin {command}".strip() in capsys.readouterr().out


def test_module_runs_like_the_command():
    command = [sys.executable, "-m", "minirodin", "render", "nowhere", "--out", "x.png"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


def test_fit_render_evaluate(captures, tmp_path, capsys):
    out = tmp_path / "fitted"
    settings = [f"--fit.{k}={v}" for k, v in {"shared-steps": 30, "rays": 128, "checkpoint-every": 10}.items()]
    settings += ["--render.grid", "8", "--triplane.resolution", "16", "--triplane.base-resolution", "8"]
    settings += ["--fit.resolutions", "16", "8"]
    assert cli.main(["fit", str(captures), "--preset", "smoke", "--out", str(out), *settings]) == 0
    avatar = Avatar.load(out / "one")
    assert avatar.planes.shape == (3, 8, 16, 16) and avatar.config.fit.shared_steps == 30  # smoke's channels, our size
    assert avatar.config.fit.grid_every == 20  # what was not named is smoke's, not small's

    picture = tmp_path / "pictures" / "view.png"
    assert cli.main(["render", str(out / "two"), "--azimuth", "30", "--size", "20", "--out", str(picture)]) == 0
    image = np.asarray(Image.open(picture))
    assert image.shape == (20, 20, 4) and image[..., 3].max() > 0

    capsys.readouterr()
    numbers = tmp_path / "numbers.json"
    assert cli.main(["evaluate", str(out), str(captures), "--out", str(numbers)]) == 0
    printed, written = json.loads(capsys.readouterr().out), json.loads(numbers.read_text())
    assert printed["mean"] == written["mean"] and set(written["per_subject"]) == {"one", "two"}
    by_hand = np.mean([subject["16"]["psnr"] for subject in written["per_subject"].values()])
    assert written["mean"]["16"]["psnr"] == pytest.approx(by_hand) and 5 < by_hand < 40
    assert printed["perceptual"] in printed["mean"]["8"] and printed["views"] == 2


def test_evaluation_sees_a_perfect_and_a_wrong_subject(captures, fitted, monkeypatch):
    """Held-out pictures themselves score +inf dB, those of the other subject do not."""
    import torch

    from minirodin import evaluation
    from minirodin.cameras import load_capture

    def cheat(name):
        capture = load_capture(captures / name)
        pictures = torch.from_numpy(capture.images[capture.held_out()[1]]).float() / 255
        monkeypatch.setattr(evaluation.Avatar, "views", lambda self, cameras, resolution: pictures)
        return evaluation.evaluate(fitted, captures, show_progress=False)["per_subject"]

    scores = cheat("one")
    assert scores["one"]["16"]["psnr"] == float("inf") and scores["one"]["16"]["ssim"] == pytest.approx(1)
    assert scores["two"]["16"]["psnr"] < 40


def test_demo_leaves_its_three_files(captures, tmp_path, capsys, monkeypatch):
    config = demo.demo_config()  # as it is, decoder of the box included, but for a few steps on a coarse grid
    quick = replace(config, render=replace(config.render, grid=16), fit=replace(config.fit, steps=4, rays=64))
    monkeypatch.setattr(demo, "demo_config", lambda: quick)
    assert cli.main(["demo", "--data", str(captures), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in ("avatar.safetensors", "contact_sheet.png", "turntable.mp4"):
        assert (tmp_path / name).stat().st_size > 500 and str(tmp_path / name) in printed
    assert "dB PSNR" in printed
    sheet = Image.open(tmp_path / "contact_sheet.png")
    assert sheet.size == (2 * 24 + 2, 3 * 24 + 4)  # the portrait and one held-out view; photographs, 128², 64²


def test_demo_shows_what_the_box_makes(fitted, tmp_path, capsys, monkeypatch):
    asked, avatar = [], Avatar.load(fitted / "one")
    pipe = lambda **given: asked.append(given) or avatar  # noqa: E731
    monkeypatch.setattr(demo.RodinPipeline, "from_pretrained", lambda folder: pipe)
    monkeypatch.setattr(demo, "write_files", lambda avatar, folder, size, count: write_files(avatar, folder, 16, 9))
    export = Avatar.export
    monkeypatch.setattr(Avatar, "export", lambda self, path: export(self, path, 24))
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    assert asked == [{"prompt": demo.PROMPT, "seed": demo.SEED}, {"image": demo.PORTRAIT, "seed": demo.SEED}]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 8 and all((tmp_path / link).stat().st_size > 200 for link in links)
    assert demo.PROMPT in page and page.count("<figure>") == 1
    assert str(tmp_path / "index.html") in capsys.readouterr().out


def test_demo_without_a_box_or_onto_a_file_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "BOX", tmp_path / "none")
    (tmp_path / "file").write_text("mine")
    for out, said in (("new", "none does not exist"), ("file", "is a file: give a folder")):
        assert cli.main(["demo", "--out", str(tmp_path / out)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_bench_prints_json(fitted, tmp_path, capsys):
    assert cli.main(["bench", "render", str(fitted / "one"), "--out", str(tmp_path / "b.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "b.json").read_text())
    assert printed["fast"]["views_per_second"] > 0 and {"date", "commit", "device"} <= set(printed)


def test_provenance_without_git(monkeypatch):
    from minirodin.evaluation import provenance

    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("MINIRODIN_COMMIT", "0123abc")
    assert provenance()["commit"] == "0123abc"


def test_doctor_reports_every_line_and_survives_a_broken_check(monkeypatch, capsys):
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10 and all(line[:5] in ("[ok] ", "[--] ") and ": " in line for line in lines)

    def broken():
        raise OSError("no such\ndevice")

    monkeypatch.setattr(doctor, "_memory", broken)
    assert (False, "broken", "OSError: no such device") in doctor.diagnose()


def test_doctor_names_the_packages_that_give_opengl(monkeypatch):
    monkeypatch.setattr(doctor, "GL_PROBE", "raise SystemExit(1)")
    (line,) = doctor._gl()
    assert line[0] is False and "apt-get install" in line[2] and "libegl1" in line[2]


def test_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "report", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on where it stopped\n"


def test_fit_as_torchrun_starts_it_where_there_is_no_gpu(fitted, captures, tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    flags = "--triplane.channels 4 --triplane.resolution 16 --triplane.base-resolution 8 --fit.rays 16 --fit.steps 2"
    sizes = "--fit.resolutions 16 --fit.resolution-weights 1.0"
    decoder = ["--decoder", str(fitted / "decoder.safetensors")]
    argv = ["fit", str(captures), "--preset", "smoke", "--out", str(tmp_path), *decoder, *flags.split(), *sizes.split()]
    assert cli.main(argv) == 0
    assert sorted(FittedPlanes(tmp_path).names) == ["one", "two"]


@pytest.mark.parametrize("command", [cli_models.train, cli_reproduce.reproduce])
def test_torchrun_takes_no_option_for_its_own(command):
    """It looks for prefixes of its own options in ours too: `--start` would be two of them, and an error."""
    from torch.distributed.run import get_args_parser

    for name in inspect.signature(command).parameters:
        given = ["-m", "minirodin", "verb", f"--{name.replace('_', '-')}", "value"]
        assert get_args_parser().parse_args(given).training_script_args == given[2:]
