"""`generate`, `edit` and `export` from beginning to end with tiny untrained models; what they refuse."""

from dataclasses import replace
from functools import partial

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from minirodin import cli
from minirodin import page as pages
from minirodin.avatar import Avatar, Origin
from minirodin.errors import CheckpointError
from minirodin.pipeline import RodinPipeline

LEFT = ["avatar.glb", "avatar.safetensors", "index.html", "turntable.mp4", "views.png"]


class Pipe:
    """Notes what it is asked; the fitted person `one` is its only answer, `two` the edited one."""

    def __init__(self, fitted):
        self.fitted, self.asked = fitted, []
        self.base = type("Base", (), {"device": torch.device("cpu")})

    def __call__(self, *given, **settings):
        self.asked.append((given, settings))
        return self.person("one", settings["seed"])

    def edit(self, subject, *given, **settings):
        self.asked.append((subject.origin, given, settings))
        return self.person("two", subject.origin.seed)

    def person(self, name, seed):
        avatar = Avatar.load(self.fitted / name)
        return Avatar(avatar.planes, avatar.decoder, avatar.config, Origin(torch.ones(4), seed, "E"))


@pytest.fixture
def pipe(fitted, monkeypatch):
    pipe = Pipe(fitted)
    monkeypatch.setattr(RodinPipeline, "from_pretrained", lambda folder: pipe)
    monkeypatch.setattr(pages, "write_files", partial(pages.write_files, count=8))
    monkeypatch.setattr(pages, "SHEET", (0, 90, 180, 270))
    export = Avatar.export
    monkeypatch.setattr(Avatar, "export", lambda self, path, resolution=32: export(self, path, resolution))
    return pipe


def fails(capsys, *argv) -> str:
    """The line that a command ends with."""
    assert cli.main([str(a) for a in argv]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and printed.out == ""
    return printed.err


def test_generate_then_edit(pipe, fitted, tmp_path, capsys):
    made, changed = tmp_path / "made", tmp_path / "changed"
    flags = ["--seed", "7", "--guidance-scale", "2.5", "--steps", "3", "--size", "32"]
    assert cli.main(["generate", "a <b>bald</b> man", "--out", str(made), *flags]) == 0
    words = {"seed": 7, "guidance_scale": 2.5, "num_inference_steps": 3}
    assert pipe.asked == [(("a <b>bald</b> man", None), words)]
    printed = capsys.readouterr().out
    assert sorted(p.name for p in made.iterdir()) == LEFT and all(str(made / name) in printed for name in LEFT)

    avatar = Avatar.load(made / "avatar.safetensors")
    assert torch.equal(avatar.planes, Avatar.load(fitted / "one").planes) and avatar.origin.seed == 7
    film = imageio.imread(made / "turntable.mp4")
    assert film.shape == (8, 32, 32, 3)
    sheet = np.asarray(Image.open(made / "views.png"), float)
    assert sheet.shape == (66, 66, 3)
    half = avatar.render(180, 8, size=32)  # the third of the sheet
    expected = (half[..., :3] * half[..., 3:] + 1 - half[..., 3:]).numpy() * 255
    assert abs(sheet[34:, :32] - expected).max() < 1
    assert trimesh.load(made / "avatar.glb", force="mesh", process=False).is_watertight
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;bald&lt;/b&gt; man" in page and "<b>" not in page
    assert all(f'href="{name}"' in page for name in LEFT if name != "index.html") and "<figure>" not in page

    argv = ["edit", made / "avatar.safetensors", "with a beard", "--out", changed, "--source", "shaved"]
    assert cli.main([str(a) for a in argv] + ["--strength", "0.5", "--size", "32"]) == 0
    origin, given, _ = pipe.asked[1]
    assert given == ("with a beard", "shaved", 0.5) and origin.seed == 7
    assert torch.equal(Avatar.load(changed / "avatar.safetensors").planes, Avatar.load(fitted / "two").planes)
    page = (changed / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 2 and page.index("before</fig") < page.index("after</fig") and "shaved" in page
    assert sorted(p.name for p in changed.iterdir()) == LEFT


def test_refined_avatars_leave_a_large_picture(pipe, tmp_path, capsys, monkeypatch):
    """Finished as nothing else is that is smaller; on the page, below the others."""
    monkeypatch.setattr(pages, "FRONT_SIZE", 40)
    person = pipe.person

    def finished(*given):
        avatar = person(*given)
        avatar.finish = lambda draw, cameras: draw(cameras) * (0.5 if cameras.width == 40 else 1)
        return avatar

    with monkeypatch.context() as patch:
        patch.setattr(pipe, "person", finished)
        _leave_a_large_picture(tmp_path, capsys)
    assert cli.main(["generate", "--out", str(tmp_path / "a"), "--size", "16"]) == 0
    assert not (tmp_path / "a" / "front.png").exists()  # it was not of whoever is there now


def _leave_a_large_picture(tmp_path, capsys):
    for command in (["generate"], ["edit", tmp_path / "a" / "avatar.safetensors", "with a beard"]):
        out = tmp_path / command[0][:1].replace("g", "a")
        assert cli.main([str(a) for a in command] + ["--out", str(out), "--size", "16"]) == 0
        assert str(out / "front.png") in capsys.readouterr().out
        front = np.asarray(Image.open(out / "front.png")) / 255
        avatar = Avatar.load(out / "avatar.safetensors")
        assert abs(front - 0.5 * avatar.render(0, 8, 40).numpy()).max() < 1 / 255
        page = (out / "index.html").read_text(encoding="utf-8")
        assert 'href="front.png"' in page and page.rindex("front, 40²</figcaption>") == page.rindex("<figcaption>") + 12


def test_portraits_and_anybody(pipe, tmp_path):
    portrait = tmp_path / "someone.png"
    assert cli.main(["generate", "--image", str(portrait), "--out", str(tmp_path / "a"), "--size", "16"]) == 0
    assert cli.main(["generate", "--out", str(tmp_path / "b"), "--size", "16"]) == 0
    assert [given for given, _ in pipe.asked] == [(None, portrait), (None, None)]
    assert "someone.png" in (tmp_path / "a" / "index.html").read_text(encoding="utf-8")


def test_nobody_has_no_mesh_but_a_page(tmp_path, capsys, fitted, pipe, monkeypatch):
    one = Avatar.load(fitted / "one")
    with torch.no_grad():
        one.decoder.density_head.weight.zero_()
        one.decoder.density_head.bias.fill_(-30)
    monkeypatch.setattr(pipe, "person", lambda *_: Avatar(one.planes, one.decoder, replace(one.config)))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "avatar.glb").touch()  # somebody else's
    assert cli.main(["generate", "--out", str(tmp_path / "a"), "--size", "16"]) == 0
    assert "no mesh: there is nothing" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == LEFT[1:]
    assert "avatar.glb" not in (tmp_path / "a" / "index.html").read_text(encoding="utf-8")


def test_what_generate_and_edit_refuse(pipe, fitted, tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file" in fails(capsys, "generate", "--out", file)
    assert "size" in fails(capsys, "generate", "--out", tmp_path / "a", "--size", "15")
    assert "size" in fails(capsys, "generate", "--out", tmp_path / "a", "--size", "2000")
    assert "one of them" in fails(capsys, "generate", "x", "--image", "y.png", "--out", tmp_path / "a")
    avatar = Avatar.load(fitted / "one").save(tmp_path / "own" / "avatar.safetensors")
    before = avatar.read_bytes()
    assert "another folder" in fails(capsys, "edit", avatar, "old", "--out", tmp_path / "own")
    assert "does not exist" in fails(capsys, "edit", tmp_path / "none.safetensors", "old", "--out", tmp_path / "a")
    assert avatar.read_bytes() == before and file.read_text() == "mine" and not (tmp_path / "a").exists()


def test_models_that_are_not_there(tmp_path, capsys):
    line = fails(capsys, "generate", "a man", "--pipeline", tmp_path, "--out", tmp_path / "a")
    assert "no folder 'base'" in line and not (tmp_path / "a").exists()
    with pytest.raises(CheckpointError):
        RodinPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["glb", "obj", "ply"])
def test_export(fitted, tmp_path, capsys, kind):
    out = tmp_path / "new" / f"one.{kind}"
    assert cli.main(["export", str(fitted / "one"), "--out", str(out), "--resolution", "24"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert trimesh.load(out, force="mesh", process=False).is_watertight


def test_what_export_refuses(fitted, tmp_path, capsys):
    assert ".glb, .obj, .ply" in fails(capsys, "export", fitted / "one", "--out", tmp_path / "one.stl")
    assert "resolution" in fails(capsys, "export", fitted / "one", "--out", tmp_path / "a.glb", "--resolution", "5")
    assert "does not exist" in fails(capsys, "export", tmp_path / "no.safetensors", "--out", tmp_path / "a.glb")
    assert not list(tmp_path.iterdir())
