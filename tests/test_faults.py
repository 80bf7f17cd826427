"""What befalls files and processes: short forms of the scripts in `tests/faults`, and what needs no script.

A full disk while planes are written, files that are cut short, settings that only a newer version knows:
`test_bad_input.py`, `test_pipeline.py`; NaN in planes and losses: `test_fitting.py`, `test_training.py`.
"""

import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file, save_file
from test_training import CONFIG, Killed, iter_kill, trainer, weights
from toys import ball_capture

from minirodin import fitting, locks, shards
from minirodin.avatars import dataset
from minirodin.cameras import load_capture
from minirodin.config import PRESETS
from minirodin.errors import CheckpointError, ConfigError, DataError, MinirodinError
from minirodin.fitting import Fitter, fit_subjects
from minirodin.limits import checked
from minirodin.locks import FolderLock
from minirodin.shards import FittedPlanes, atomic_save, read_tensors

FAULTS = Path(__file__).parent / "faults"


def script(name: str, *options: str) -> str:
    """What a script prints, in a process of its own; it must end well."""
    command = [sys.executable, str(FAULTS / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- kills --------------------------------------------------------------------------------------------------------


def test_killed_again_and_again():
    said = script("kill.py", "--kills", "3", "--only", "classifier")
    assert "3 kills, " in said and "made: equal" in said and "0 faults" in said


def test_one_of_two_processes_dies():
    said = script("ranks.py", "--kills", "1")
    assert "another process of this training has ended" in said and "1 of 1 kills hit" in said


# -- what strangers give ------------------------------------------------------------------------------------------


def test_a_few_hundred_spoilt_files():
    """If this fails: python tests/faults/fuzz.py --seed 3 tells which inputs."""
    said, fuzz = [], runpy.run_path(str(FAULTS / "fuzz.py"), run_name="fuzz")
    results = fuzz["run"](200, seed=3, say=said.append)
    assert results["found"] == {}, said
    assert sum(results["refused"].values()) > 100 and sum(results["read"].values()) > 20


HUGE = {
    "decoder.hidden": lambda c: replace(c, decoder=replace(c.decoder, hidden=10**6)),
    "decoder is a network": lambda c: replace(c, decoder=replace(c.decoder, hidden=8000)),
    "base.unet is a network": lambda c: replace(
        c, base=replace(c.base, unet=replace(c.base.unet, channels=(8000, 8000)))
    ),
    "render.grid": lambda c: replace(c, render=replace(c.render, grid=10**5)),
    "fit.resolutions": lambda c: replace(c, fit=replace(c.fit, resolutions=(64,) * 10**4)),
    "refiner.channels holds 'a'": lambda c: replace(c, refiner=replace(c.refiner, channels=("a", 2, 3))),
    "latent.width is 0": lambda c: replace(c, latent=replace(c.latent, width=0)),
}


@pytest.mark.parametrize("said", HUGE)
def test_settings_beyond_all_measure(said):
    with pytest.raises(ConfigError, match=said):
        checked(HUGE[said](tiny_config()))


def test_settings_of_a_network_that_is_really_there():
    large = replace(tiny_config(), decoder=replace(tiny_config().decoder, hidden=6000))
    assert checked(large, 80_000_000) is large
    for name in PRESETS:
        assert checked(PRESETS[name]) is PRESETS[name]


# -- files that change by themselves ------------------------------------------------------------------------------


def test_whichever_bit_flips_it_is_found_or_harmless(fitted, tmp_path):
    for path in fitted.glob("*.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = next(tmp_path.glob("planes-*"))
    whole, found = shard.read_bytes(), 0
    good = {name: FittedPlanes(fitted).planes(name) for name in load_file(shard)}
    rng = random.Random(0)
    for _ in range(150):
        spoilt = bytearray(whole)
        spoilt[rng.randrange(len(whole) if rng.random() < 0.5 else 4000)] ^= 1 << rng.randrange(8)
        shard.write_bytes(spoilt)
        try:
            planes = {name: FittedPlanes(tmp_path).planes(name) for name in good}
        except CheckpointError as error:
            assert str(shard.name) in str(error) or "different" in str(error) or "holds no subject" in str(error)
            found += 1
        else:
            assert all(torch.equal(planes[name], good[name]) for name in good)
    assert found > 140
    spoilt = bytearray(whole)
    spoilt[-3] ^= 4  # one number of the last planes is another, and finite
    shard.write_bytes(spoilt)
    with pytest.raises(CheckpointError, match=r"damaged .* SHA-256 differs"):
        [FittedPlanes(tmp_path).planes(name) for name in good]


def test_checkpoints_have_hashes_and_older_files_are_read_without(tmp_path):
    path = tmp_path / "a.safetensors"
    values = {"a": torch.randn(3, 4), "b": torch.tensor(7), "c": torch.zeros(0, 2), "d": torch.ones(5).bfloat16()}
    atomic_save(values, path, {"kind": "x", "told": "1"})
    tensors, metadata = read_tensors(path, "x")
    assert metadata == {"kind": "x", "told": "1"} and all(torch.equal(tensors[k], v) for k, v in values.items())
    data = path.read_bytes()
    for old, new in ((b'"told":"1"', b'"told":"3"'), (values["a"].numpy().tobytes()[:4], b"\0\0\0\0")):
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
        with pytest.raises(CheckpointError, match="damaged"):
            read_tensors(path, "x")
    save_file(values, path, {"kind": "x"})
    assert read_tensors(path, "x")[0].keys() == values.keys()


def test_what_killed_processes_began_is_removed(tmp_path):
    path = tmp_path / "a.safetensors"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {who: locks.scratch_of(path).name.replace(str(os.getpid()), who) for who in (str(gone.pid), "1", "x")}
    for name in names.values():
        (tmp_path / name).touch()
    atomic_save({"a": torch.zeros(2)}, path, {"kind": "x"})
    assert {p.name for p in tmp_path.iterdir()} == {path.name, names["1"], names["x"]}


# -- two at once --------------------------------------------------------------------------------------------------


@contextmanager
def another(folder: Path, name: str = "run"):
    """Another process that holds the lock of a folder, and is killed in the end."""
    program = (
        "import sys, time; from minirodin.locks import FolderLock as L; l = L(*sys.argv[1:]); print(1, flush=True)"
    )
    command = [sys.executable, "-c", f"{program}; time.sleep(60)", str(folder), name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_two_trainings_into_one_folder(tmp_path):
    (tmp_path / "decoder.safetensors").write_text("of the other one")
    with (
        another(tmp_path) as number,
        pytest.raises(MinirodinError, match=f"{tmp_path} .*process {number} on ") as error,
    ):
        trainer(tmp_path)
    assert "\n" not in str(error.value) and (tmp_path / ".run.lock").exists()
    trainer(tmp_path).run(False)  # the lock does not outlive its owner
    assert not (tmp_path / ".run.lock").exists()
    with pytest.raises(CheckpointError), FolderLock(tmp_path / "x"):
        trainer(tmp_path, metadata={"config": "another"})
    trainer(tmp_path).run(False)  # nor a refusal


def test_a_lock_is_handed_on(tmp_path):
    with FolderLock(tmp_path) as first:
        with pytest.raises(MinirodinError, match="being written"):
            FolderLock(tmp_path)
        FolderLock(tmp_path, "other").release()
        with open(first.path, "a+"):  # by one who comes too late, and must not think that he has the next one's
            first.release()
            with FolderLock(tmp_path), pytest.raises(MinirodinError, match=f"process {os.getpid()}"):
                FolderLock(tmp_path)
    with another(tmp_path) as number:
        os.kill(number, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(MinirodinError):
            FolderLock(tmp_path, wait=0.3)
        assert time.monotonic() - started >= 0.3
    FolderLock(tmp_path, wait=5).release()
    assert list(tmp_path.iterdir()) == []


def test_fits_into_one_folder_share_no_subject(captures, fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "PATIENCE", 0.2)
    decoder, config = fitted / "decoder.safetensors", tiny_config(group=1, steps=2)
    one, two = (load_capture(captures / name) for name in ("one", "two"))
    rest = {"config": config, "out": tmp_path, "device": "cpu", "show_progress": False}
    with another(tmp_path, "planes-one"):
        assert fit_subjects([two], decoder=decoder, **rest).names == ["two"]
        with pytest.raises(MinirodinError, match="being written by process"):
            fit_subjects([one], decoder=decoder, **rest)
    new = {**rest, "out": tmp_path / "new"}
    with another(new["out"], "decoder"), pytest.raises(MinirodinError, match="being written by process"):
        fit_subjects([one], decoder=decoder, **new)  # it is not known yet which decoder will be there
    (new["out"] / ".decoder.lock").unlink()
    new["out"].rmdir()
    assert sorted(fit_subjects([one], decoder=decoder, **rest).names) == ["one", "two"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("decoder.safetensors", "planes-one.safetensors", "planes-two.safetensors")
    ]


def test_nobody_is_made_twice_at_once(tmp_path, monkeypatch):
    made = []

    def render_person(attributes, cameras, name="person", detail=2):
        made.append(name)
        images = torch.zeros(len(cameras), cameras.height, cameras.width, 4, dtype=torch.uint8).numpy()
        return dataset.Capture(name, images, cameras, "somebody", attributes.to_dict())

    monkeypatch.setattr(dataset, "render_person", render_person)
    settings = {"views": 2, "size": 16, "workers": 1, "show_progress": False}
    with another(tmp_path, "000001"):
        dataset.make_people(tmp_path, 1, **settings)
        with pytest.raises(MinirodinError, match="being written by process"):
            dataset.make_people(tmp_path, 2, **settings)
    dataset.make_people(tmp_path, 2, **settings)
    assert made == ["000000", "000001"] and sorted(p.name for p in tmp_path.iterdir()) == made


# -- disks and clocks ---------------------------------------------------------------------------------------------


def test_a_full_disk_stops_a_training_that_can_go_on(tmp_path):
    """No file may grow beyond a limit, as on a full disk, from the second checkpoint on."""
    trainer(tmp_path / "whole").run(False)
    limit, calls = resource.getrlimit(resource.RLIMIT_FSIZE), iter(range(100))

    def batches(number, generator):
        if next(calls) == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        return torch.randn(number, 3, generator=generator)

    try:
        with pytest.raises(OSError, match="too large"):
            trainer(tmp_path / "full", batches=batches).run(False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    files = {path.name for path in (tmp_path / "full").iterdir()}
    assert files <= {"log.csv", "loss.png", "model.safetensors", "resume.safetensors"}
    assert read_tensors(tmp_path / "full" / "resume.safetensors", "training in progress")[1]["step"] == "4"
    trainer(tmp_path / "full").run(False)
    whole, full = weights(tmp_path / "whole"), weights(tmp_path / "full")
    assert all(torch.equal(whole[key], full[key]) for key in whole)


def test_a_folder_that_may_only_be_read():
    folder = Path(tempfile.mkdtemp())
    owner = os.geteuid()
    try:
        folder.chmod(0o555)
        if owner == 0:
            os.seteuid(65534)  # whom root's rights do not help
        FolderLock(folder).release()  # nothing is written, so nothing needs to be kept from others
        for attempt in (lambda: trainer(folder).run(False), lambda: atomic_save({}, folder / "a")):
            with pytest.raises(PermissionError):
                attempt()
    finally:
        os.seteuid(owner)
        folder.chmod(0o755)
        assert list(folder.iterdir()) == []
        folder.rmdir()


def test_a_clock_that_jumps(tmp_path, monkeypatch):
    trainer(tmp_path / "whole").run(False)
    days = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 86400 * next(days) if next(days) % 3 else 4e9)
    with pytest.raises(Killed):
        trainer(tmp_path / "broken", batches=iter_kill(6)).run(False)
    for name, date in (("resume.safetensors", 0), ("model.safetensors", 4e9)):
        os.utime(tmp_path / "broken" / name, (date, date))
    trainer(tmp_path / "broken").run(False)
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


# -- subjects that will not fit -----------------------------------------------------------------------------------


@pytest.fixture
def three(fitted):
    people = [ball_capture(f"s{i}", views=12, size=24, seed=i) for i in range(3)]
    return people, fitted / "decoder.safetensors", tiny_config(group=3, steps=8, checkpoint_every=3)


def fit(three, out, **rest):
    people, decoder, config = three
    return fit_subjects(rest.pop("people", people), config, out, decoder, "cpu", show_progress=False, **rest)


@pytest.mark.parametrize("bad", [0, 1])
def test_one_whose_planes_become_nan_is_skipped(three, bad, tmp_path, monkeypatch, capsys):
    whole = fit(three, tmp_path / "whole", people=[p for i, p in enumerate(three[0]) if i != bad])
    advance, poison = Fitter.advance, [f"s{bad}"]

    def poisoned(self):
        for name in poison:
            if self.step == 4 and name in self.groups[0].names:
                with torch.no_grad():
                    self.groups[0].planes.coarse[self.groups[0].names.index(name)] = torch.nan
        return advance(self)

    monkeypatch.setattr(Fitter, "advance", poisoned)
    made = fit(three, tmp_path / "made")
    assert sorted(made.names) == sorted(whole.names) and list(made.skipped) == [f"s{bad}"]
    assert all(torch.equal(made.planes(name), whole.planes(name)) for name in whole.names)
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"s{bad} cannot be fitted and is skipped: the loss is nan") and "\n" not in line
    monkeypatch.setattr(Fitter, "__init__", None)
    assert list(fit(three, tmp_path / "made").skipped) == [f"s{bad}"]  # nor tried again
    monkeypatch.undo()
    (made.folder / f"skipped-s{bad}.json").unlink()
    assert len(fit(three, tmp_path / "made")) == 3 and not FittedPlanes(made.folder).skipped


def test_the_state_of_stage_one_is_not_left(three, tmp_path):
    """Where it was killed between the decoder, which it writes last, and this."""
    fit(three, tmp_path)
    (tmp_path / fitting.SHARED).touch()
    fit(three, tmp_path)
    assert not (tmp_path / fitting.SHARED).exists()


def test_nobody_can_be_fitted(three, tmp_path, monkeypatch):
    fitting_loss = fitting.fitting_loss
    monkeypatch.setattr(fitting, "fitting_loss", lambda *given: [part * torch.nan for part in fitting_loss(*given)])
    with pytest.raises(MinirodinError, match="the loss is nan"):
        fit(three, tmp_path)
    assert not list(tmp_path.glob("skipped*")) and not list(tmp_path.glob("planes*"))


def test_one_who_is_not_to_be_seen_is_skipped_until_he_is(three, tmp_path, capsys):
    good = three[0][1]
    empty = replace(good, images=good.images * 0)
    made = fit(three, tmp_path, people=[three[0][0], empty, three[0][2]])
    assert sorted(made.names) == ["s0", "s2"] and made.skipped["s1"]["of"] == "capture"
    assert {p.name[:8] for p in tmp_path.iterdir()} == {"decoder.", "planes-s", "skipped-"}
    assert "s1 cannot be fitted and is skipped: a capture shows nothing" in capsys.readouterr().err
    made = fit(three, tmp_path)
    assert sorted(made.names) == ["s0", "s1", "s2"] and not made.skipped
    with pytest.raises(DataError, match="differ in views or size"):  # not one subject's fault
        fit(three, tmp_path / "b", people=[good, ball_capture("other", views=12, size=16)])


def test_a_note_of_a_skipped_one_that_is_damaged(tmp_path):
    FittedPlanes(tmp_path).skip("a", "why", of="planes")
    assert FittedPlanes(tmp_path).skipped == {"a": {"why": "why", "of": "planes"}}
    (tmp_path / "skipped-a.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"skipped-a\.json is damaged"):
        _ = FittedPlanes(tmp_path).skipped


assert CONFIG.checkpoint_every == 4 and shards.HASHES == "sha256"  # what the tests above take for granted
