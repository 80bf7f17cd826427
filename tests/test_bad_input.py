"""Whatever a user's files or flags do wrong: one line on stderr, exit code 2, and nothing that existed changes."""

import errno
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image
from safetensors.torch import load_file, save_file

from minirodin import cli, shards


def edit(folder: Path, change) -> None:
    """Rewrite transforms.json through `change(meta)`."""
    path = folder / "transforms.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def pose(folder: Path, matrix) -> None:
    edit(folder, lambda meta: meta["frames"][1].update(transform_matrix=np.asarray(matrix).tolist()))


def image_path(folder: Path, name: str) -> None:
    edit(folder, lambda meta: meta["frames"][1].update(file_path=name))


def huge_png(path: Path) -> None:
    """A valid header of 10000×10000 pixels and hardly any data: opening is cheap, decoding would take 400 MB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 6, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))


def symlink_out(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes((folder / "001.png").read_bytes())
    (folder / "001.png").unlink()
    (folder / "001.png").symlink_to(folder.parent / "secret.png")


def turned(scale: float = 1.0) -> np.ndarray:
    """A camera at distance 3.5 that looks away from the subject, its axes `scale` long."""
    matrix = np.diag([-scale, scale, -scale, 1.0])
    matrix[2, 3] = 3.5
    return matrix


NAN = float("nan")
CAPTURES = {
    "no transforms.json": (lambda f: (f / "transforms.json").unlink(), "transforms.json"),
    "empty transforms.json": (lambda f: (f / "transforms.json").write_text(""), "JSON"),
    "half a transforms.json": (lambda f: (f / "transforms.json").write_text('{"frames": [{"file_'), "JSON"),
    "binary transforms.json": (lambda f: (f / "transforms.json").write_bytes(b"\xff\xfe\x00\x80"), "JSON"),
    "a list for transforms.json": (lambda f: (f / "transforms.json").write_text("[1, 2]"), "frames"),
    "deeply nested JSON": (lambda f: (f / "transforms.json").write_text("[" * 100_000), "JSON"),
    "no frames": (lambda f: edit(f, lambda m: m.update(frames=[])), "frames"),
    "frames of numbers": (lambda f: edit(f, lambda m: m.update(frames=[1, 2])), "frames"),
    "no focal length": (lambda f: edit(f, lambda m: [m.pop("fl_x"), m.pop("camera_angle_x")]), "focal"),
    "negative focal length": (lambda f: edit(f, lambda m: m.update(fl_x=-30.0)), "focal"),
    "focal length of words": (lambda f: edit(f, lambda m: m.update(fl_x="wide")), "fl_x"),
    "lens distortion": (lambda f: edit(f, lambda m: m.update(k1=0.1)), "distortion"),
    "wrong stated size": (lambda f: edit(f, lambda m: m.update(w=7)), "7"),
    "missing image": (lambda f: (f / "001.png").unlink(), "001.png"),
    "empty image": (lambda f: (f / "001.png").write_bytes(b""), "001.png"),
    "text for an image": (lambda f: (f / "001.png").write_text("not a picture"), "001.png"),
    "half an image": (lambda f: (f / "001.png").write_bytes((f / "001.png").read_bytes()[:150]), "001.png"),
    "image of 100 megapixels": (lambda f: huge_png(f / "001.png"), "10000"),
    "images differ in size": (lambda f: Image.new("RGBA", (30, 24)).save(f / "001.png"), "size"),
    "frame without file_path": (lambda f: edit(f, lambda m: m["frames"][1].pop("file_path")), "file_path"),
    "file_path climbs out": (lambda f: image_path(f, "../two/001.png"), "outside"),
    "absolute file_path": (lambda f: image_path(f, str(f.parent / "two" / "001.png")), "outside"),
    "file_path through a symlink": (symlink_out, "outside"),
    "file_path is the folder": (lambda f: image_path(f, "."), "frame 1"),
    "file_path with a null byte": (lambda f: image_path(f, "a\0b.png"), "frame 1"),
    "frame without a pose": (lambda f: edit(f, lambda m: m["frames"][1].pop("transform_matrix")), "transform_matrix"),
    "NaN in a pose": (lambda f: pose(f, np.full((4, 4), NAN)), "NaN"),
    "3×3 pose": (lambda f: pose(f, np.eye(3)), "shape"),
    "ragged pose": (lambda f: edit(f, lambda m: m["frames"][1].update(transform_matrix=[[1], [2, 3]])), "transform"),
    "pose that scales": (lambda f: pose(f, turned(2.0)), "rigid"),
    "pose that mirrors": (lambda f: pose(f, np.diag([1.0, 1.0, -1.0, 1.0])), "rigid"),
    "camera looks away": (lambda f: pose(f, turned()), "see"),
    "zero scale": (lambda f: edit(f, lambda m: m.update(scale=0)), "scale"),
    "masks without anyone": (lambda f: [Image.new("RGBA", (24, 24)).save(p) for p in f.glob("*.png")], "nothing"),
}


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(capsys, argv: list, *words: str) -> str:
    """The command ends with code 2 and one line on stderr that holds `words`."""
    capsys.readouterr()
    assert cli.main([str(word) for word in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 500, lines
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


def fit_tiny(data: Path, out: Path) -> list:
    """The command that fits with the settings of `conftest.tiny_config`."""
    flags = """--preset smoke --triplane.channels 4 --triplane.resolution 16 --triplane.base-resolution 8
               --decoder.hidden 16 --fit.steps 2 --fit.rays 32 --fit.resolutions 16 8"""
    return ["fit", data, "--out", out, *flags.split()]


@pytest.fixture
def copies(captures, fitted, tmp_path):
    """Copies that a test may spoil: the captures, and results that it must not touch."""
    shutil.copytree(captures, tmp_path / "captures")
    shutil.copytree(fitted, tmp_path / "fitted")
    return tmp_path


@pytest.mark.filterwarnings("error", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", CAPTURES)
def test_a_capture_that_cannot_be_used(case, copies, capsys):
    spoil, word = CAPTURES[case]
    folder = (copies / "captures" / "one").rename(copies / "captures" / "new")
    spoil(folder)
    before = digest(copies / "fitted")
    refused(capsys, fit_tiny(folder, copies / "fitted"), word)
    assert digest(copies / "fitted") == before


def test_a_huge_image_is_one_line_in_a_real_process(copies):
    """Pillow warns of such images on its own; the user should not see that."""
    huge_png(copies / "captures" / "two" / "001.png")
    argv = [sys.executable, "-m", "minirodin", *map(str, fit_tiny(copies / "captures", copies / "new"))]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "10000" in done.stderr, done.stderr


def test_one_bad_capture_among_good_ones_is_named(copies, capsys):
    (copies / "captures" / "two" / "005.png").write_bytes(b"")
    refused(capsys, ["fit", copies / "captures", "--preset", "smoke", "--out", copies / "new"], "two", "005.png")


def test_data_that_is_no_folder_of_captures(copies, capsys):
    (copies / "empty").mkdir()
    for data in ("nowhere", "empty", "captures/one/001.png"):
        refused(capsys, ["fit", copies / data, "--preset", "smoke", "--out", copies / "new"], data)
    refused(capsys, ["demo", "--data", copies / "nowhere", "--out", copies / "new"], "nowhere")
    refused(capsys, ["evaluate", copies / "fitted", copies / "empty"], "empty")


def test_captures_of_another_subject_cannot_be_evaluated(copies, capsys):
    (copies / "captures" / "one").rename(copies / "stranger")
    refused(capsys, ["evaluate", copies / "fitted", copies / "stranger"], "no subject in common")


def test_captures_that_hold_nothing_out_cannot_be_evaluated(copies, capsys):
    path = copies / "captures" / "one" / "transforms.json"
    capture = json.loads(path.read_text())
    path.write_text(json.dumps(capture | {"frames": capture["frames"][:4]}))
    refused(capsys, ["evaluate", copies / "fitted", copies / "captures" / "one"], "4 views and holds none out")


NEAREST = {"smal": "'small'", "fulll": "'full'", "smoky": "'smoke'", "xyz": "smoke, small, full"}


@pytest.mark.parametrize("name, near", NEAREST.items())
def test_unknown_preset_names_the_nearest(name, near, copies, capsys):
    refused(capsys, ["fit", copies / "captures", "--preset", name, "--out", copies / "new"], name, near)
    assert not (copies / "new").exists()


@pytest.mark.parametrize(
    "flags, word", [("--out x --fit.steps many", "many"), ("--out x --fit.stepz 3", "stepz"), ("", "--out")]
)
def test_flags_that_do_not_parse(flags, word, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "captures", *flags.split()])
    assert stop.value.code == 2 and word in capsys.readouterr().err


BIAS = "decoder.density_head.bias"
AVATARS = {
    "missing": (lambda path: path.unlink(), "does not exist"),
    "empty": (lambda path: path.write_bytes(b""), "cut short"),
    "cut in half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "cut short"),
    "last byte lost": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut short"),
    "header claims 2^60 bytes": (lambda path: path.write_bytes(struct.pack("<Q", 2**60) + bytes(64)), "cut short"),
    "a pickle": (lambda path: torch.save({"planes": torch.zeros(3)}, path), "not a"),
    "planes of another shape": (lambda path: resave(path, planes=torch.zeros(3, 5, 16, 16)), "shape"),
    "flat planes": (lambda path: resave(path, planes=torch.zeros(12)), "shape"),
    "planes of NaN": (lambda path: resave(path, planes=torch.full((3, 4, 16, 16), NAN)), "NaN"),
    "no planes": (lambda path: resave(path, planes=None), "planes"),
    "a decoder weight of another shape": (lambda path: resave(path, **{BIAS: torch.zeros(9)}), "shape"),
    "a decoder weight too few": (lambda path: resave(path, **{BIAS: None}), "density_head"),
    "not an avatar": (lambda path: save_file({"x": torch.zeros(2)}, path), "avatar"),
    "no configuration": (lambda path: resave(path, metadata={"kind": "avatar"}), "configuration"),
    "a configuration that is no JSON": (lambda path: resave(path, metadata={"config": "{"}), "configuration"),
    "a configuration with a strange field": (
        lambda path: resave(path, metadata={"config": json.dumps({**tiny_config().to_dict(), "colour": 3})}),
        "colour",
    ),
}


def resave(path: Path, metadata: dict | None = None, **changes) -> None:
    """Write the avatar file again with tensors or metadata changed; None leaves a tensor out."""
    tensors, old = shards.read_tensors(path, "avatar")
    tensors = {key: value for key, value in {**tensors, **changes}.items() if value is not None}
    save_file(tensors, path, metadata if metadata == {"kind": "avatar"} else {**old, **(metadata or {})})


@pytest.fixture
def avatar_file(fitted, tmp_path):
    from minirodin.avatar import Avatar

    return Avatar.load(fitted / "one").save(tmp_path / "avatar.safetensors")


@pytest.mark.parametrize("case", AVATARS)
def test_an_avatar_file_that_cannot_be_used(case, avatar_file, tmp_path, capsys):
    spoil, word = AVATARS[case]
    spoil(avatar_file)
    (tmp_path / "view.png").write_text("earlier")
    refused(capsys, ["render", avatar_file, "--out", tmp_path / "view.png"], "avatar.safetensors", word)
    assert (tmp_path / "view.png").read_text() == "earlier"


def test_pictures_that_cannot_be_drawn(avatar_file, tmp_path, capsys):
    for size in ("0", "-3", "100000"):
        refused(capsys, ["render", avatar_file, "--size", size, "--out", tmp_path / "v.png"], size)
    refused(capsys, ["render", avatar_file, "--size", "8", "--out", tmp_path / "v.unknown"], "v.unknown")
    refused(capsys, ["render", avatar_file, "--size", "8", "--azimuth", "nan", "--out", tmp_path / "v.png"], "azimuth")
    assert {p.name for p in tmp_path.iterdir()} == {"avatar.safetensors"}


def test_subject_that_was_not_fitted(fitted, tmp_path, capsys):
    refused(capsys, ["render", fitted / "three", "--out", tmp_path / "v.png"], "three", "one")


def test_decoder_and_shards_that_cannot_be_used(copies, capsys):
    fit = ["fit", copies / "captures", "--preset", "smoke", "--out", copies / "new"]
    decoder, shard = copies / "fitted" / "decoder.safetensors", next((copies / "fitted").glob("planes-*"))
    refused(capsys, [*fit, "--decoder", copies / "nowhere.safetensors"], "nowhere.safetensors")
    refused(capsys, [*fit, "--decoder", shard], shard.name)
    refused(capsys, [*fit, "--decoder", decoder], "channels")  # learned with 4 channels, smoke has 8
    shard.write_bytes(shard.read_bytes()[:100])
    refused(capsys, ["render", copies / "fitted" / "one", "--out", copies / "v.png"], shard.name)
    decoder.write_bytes(decoder.read_bytes()[:-100])
    refused(capsys, [*fit, "--decoder", decoder], "decoder.safetensors")


def test_full_disk_leaves_old_results_alone(copies, capsys, monkeypatch):
    """ENOSPC while bytes are written: the old file stays, no half file is left."""
    before = digest(copies / "fitted")
    (copies / "captures" / "two").rename(copies / "captures" / "three")  # something new to fit
    real_open = open

    class FullDisk:
        def __init__(self, *args, **kwargs):
            self.file = real_open(*args, **kwargs)

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(shards, "open", FullDisk, raising=False)
    refused(capsys, fit_tiny(copies / "captures", copies / "fitted"), "No space left")
    assert digest(copies / "fitted") == before


def test_folder_that_cannot_be_written(avatar_file, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    refused(capsys, ["render", avatar_file, "--size", "8", "--out", tmp_path / "file" / "v.png"], "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_no_opengl_on_the_machine(tmp_path, capsys, monkeypatch):
    moderngl = pytest.importorskip("moderngl")
    monkeypatch.setattr(pytest.importorskip("minirodin.avatars.dataset"), "_renderer", None)  # of an earlier test

    def no_context(*_, **__):
        raise Exception("libEGL.so.1 not loaded")

    for name in ("create_context", "create_standalone_context"):
        monkeypatch.setattr(moderngl, name, no_context)
    flags = ["--count", "1", "--views", "1", "--size", "32"]
    refused(capsys, ["avatars", *flags, "--out", tmp_path / "people"], "apt-get install")


@pytest.mark.parametrize("flags", [["--count", "0"], ["--views", "0"], ["--size", "0"], ["--seed", "-1"]])
def test_people_that_cannot_be_made(flags, tmp_path, capsys):
    pytest.importorskip("minirodin.avatars.dataset")
    refused(capsys, ["avatars", *flags, "--out", tmp_path / "people"], flags[0].strip("-"))
    assert not (tmp_path / "people").exists()


def test_out_of_memory_is_one_line(avatar_file, tmp_path, capsys, monkeypatch):
    from minirodin.avatar import Avatar

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Avatar, "render", exhausted)
    refused(capsys, ["render", avatar_file, "--out", tmp_path / "v.png"], "out of memory", "--fit.rays")


def test_a_fault_of_ours_is_not_hidden(avatar_file, tmp_path, monkeypatch):
    from minirodin.avatar import Avatar

    monkeypatch.setattr(Avatar, "render", lambda *_: load_file(1, 2, 3))
    with pytest.raises(TypeError):
        cli.main(["render", str(avatar_file), "--out", str(tmp_path / "v.png")])
