"""Fitting (E3–E5): quality on a ball, what each weight does, stages, bit-equal resuming, ranks, foreign captures."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import ball_capture, ball_config, trace_ball

from minirodin import fitting
from minirodin.cameras import Cameras, load_capture, look_at, save_capture
from minirodin.errors import CheckpointError, ConfigError, DataError, MinirodinError
from minirodin.fitting import Fitter, fit_subjects
from minirodin.objective import PlaneGroup, fitting_loss
from minirodin.observations import Observations
from minirodin.pipeline import Avatar, to_rgb
from minirodin.render import cell_centres, render_rays
from minirodin.shards import FittedPlanes, SharedDecoder
from minirodin.triplane import plane_statistics, resize_planes, sample_planes

TINTS = ((0.9, 0.4, 0.2), (0.2, 0.8, 0.3), (0.3, 0.3, 0.9), (0.8, 0.8, 0.2))


def balls(n=2, size=32, views=10):
    return [ball_capture(f"s{i}", views, size, 0.6 - 0.08 * i, seed=i, tint=TINTS[i]) for i in range(n)]


def fit(captures, config, out, **options) -> FittedPlanes:
    return fit_subjects(captures, config, out, device="cpu", show_progress=False, **options)


def held_out_psnr(fitted, capture, resolution=None) -> float:
    avatar = Avatar(fitted.planes(capture.name), fitted.decoder.decoder, fitted.decoder.config)
    test = capture.held_out()[1]
    background = torch.tensor(capture.background)
    ours = to_rgb(avatar.views(capture.cameras[test], resolution), background)
    truth = to_rgb(torch.from_numpy(capture.images[test]).float() / 255, background)
    return float(-10 * (ours - truth).square().mean().log10())


def short(**changes):
    """Twenty-four steps of 16² planes; two subjects are two groups."""
    settings = {"shared_steps": 24, "steps": 12, "rays": 64, "group": 1, "grid_every": 3, "checkpoint_every": 5}
    return ball_config(16, grid=8, bins=16, samples=4, channels=4, **{**settings, **changes})


def contents(folder: Path) -> dict:
    """Every bit of the files in a folder; safetensors are parsed, since the order of their metadata is not fixed."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name, data in files.items():
        if name.endswith(".safetensors"):
            size = int.from_bytes(data[:8], "little")
            files[name] = (json.loads(data[8 : 8 + size]), data[8 + size :])
    return files


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Stage one on two balls that take turns."""
    return fit(balls(), ball_config(group=1, shared_steps=280), tmp_path_factory.mktemp("learned"))


@pytest.fixture(scope="module")
def short_decoder(tmp_path_factory):
    return fit(balls(1), short(), tmp_path_factory.mktemp("decoder")).folder / "decoder.safetensors"


# -- quality ------------------------------------------------------------------------------------------------------


def test_every_subject_of_stage_one_is_learned(learned):
    """Replay: the first subject is as good as the last, at both sizes, on views that were never trained on."""
    for capture in balls():
        assert held_out_psnr(learned, capture) > 22
        assert held_out_psnr(learned, capture, resolution=16) > 21.5


def test_subjects_are_not_exchanged(learned):
    """A ball under another's name would be of another size and colour: below 17 dB."""
    a, b = balls()
    assert held_out_psnr(learned, replace(a, name="s1")) < 17 and held_out_psnr(learned, replace(b, name="s0")) < 17


def test_stage_two_fits_a_new_subject_under_the_frozen_decoder(learned, tmp_path):
    before = contents(learned.folder)
    decoder = learned.folder / "decoder.safetensors"
    capture = ball_capture("new", 10, 32, 0.5, seed=9, tint=(0.7, 0.5, 0.2))
    fitted = fit([capture], ball_config(steps=120), tmp_path / "two", decoder=decoder)
    assert held_out_psnr(fitted, capture) > 20
    assert contents(learned.folder) == before
    shared = learned.decoder
    fit([capture], ball_config(steps=2), tmp_path / "three", decoder=shared)
    assert all(p.grad is None and not p.requires_grad for p in shared.decoder.parameters())
    for key, value in learned.decoder.decoder.state_dict().items():
        assert torch.equal(fitted.decoder.decoder.state_dict()[key], value), key


def test_free_space_is_empty(learned):
    """Points that the masks rule out have next to no density, though no ray ever visits them."""
    captures, centres = balls(), cell_centres(24, "cpu")
    hull = Observations(captures, 24, "cpu").hull.flatten(1)
    for i, capture in enumerate(captures):
        density = learned.decoder.decoder.density(sample_planes(learned.planes(capture.name)[None], centres[None]))[0]
        assert density[~hull[i]].mean() < 0.05 < 1 < density[hull[i]].mean()


def test_planes_stay_in_range_and_start_alike(learned):
    for name in learned.names:
        assert learned.planes(name).abs().max() <= ball_config().fit.value_range
    narrow = short(value_range=0.05, coarse_lr=0.1)
    group = PlaneGroup(2, narrow, start=torch.full((3, 4, 8, 8), 0.03))
    torch.testing.assert_close(group(), torch.full((2, 3, 4, 16, 16), 0.03))
    with torch.no_grad():
        group.detail += torch.linspace(-1, 1, 16)
    assert group().abs().max().item() == pytest.approx(0.05) and group(8).shape == (2, 3, 4, 8, 8)
    assert (PlaneGroup(2, narrow)() == 0).all()


def test_statistics_of_the_domain(learned):
    shared = learned.decoder
    base = torch.stack([resize_planes(learned.planes(n), 16) for n in learned.names])
    torch.testing.assert_close(shared.mean_planes, base.mean(0), rtol=0, atol=2e-3)  # half precision on disk
    mean, std = plane_statistics(base)
    torch.testing.assert_close((shared.mean, shared.std), (mean, std), rtol=0, atol=1e-3)
    assert (shared.std > 0.01).all()


@pytest.mark.slow
def test_random_rescaling_keeps_small_planes_good(tmp_path):
    """Mission E5c: fitted at one size only, planes fall off at another."""
    psnr = {}
    for sizes in ((32, 8), (32,)):
        weights = (0.5, 0.5)[: len(sizes)]
        rough = {"detail_lr": 2e-2, "total_variation": 0.0, "magnitude": 0.0}
        config = ball_config(shared_steps=200, resolutions=sizes, resolution_weights=weights, **rough)
        fitted = fit(balls(), config, tmp_path / str(len(sizes)))
        psnr[sizes] = [np.mean([held_out_psnr(fitted, c, resolution=r) for c in balls()]) for r in (32, 8)]
    (large, small), (large_alone, small_alone) = psnr.values()
    assert large - small < 2 and large_alone - small_alone > 3.5 and small > small_alone + 3


# -- the loss, term by term ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_step():
    """Everything a step needs but the weights, with planes that are somewhere in the middle of learning."""
    torch.manual_seed(0)
    captures, config = balls(), short()
    observations = Observations(captures, 8, "cpu")
    generator = torch.Generator().manual_seed(0)
    batch = observations.sample_rays(torch.arange(2), 64, generator)
    decoder = fitting.TriplaneDecoder(4, config.decoder)
    torch.nn.init.constant_(decoder.density_head.bias, 0.0)
    planes = 0.5 * torch.randn(2, 3, 4, 16, 16, generator=generator)
    background = torch.rand(2, 64, 3, generator=generator)
    points = torch.rand(2, 50, 3, generator=generator) * 2 - 1
    jitter = torch.rand(2, 64, 4, generator=generator)
    occupancy = observations.hull_occupancy(torch.arange(2))
    return planes, decoder, batch, background, occupancy, observations.hull, points, jitter


WEIGHTS = ("total_variation", "magnitude", "sparsity", "free_space", "distortion")


def loss_with(one_step, **weights):
    return fitting_loss(*one_step, short(**{**dict.fromkeys(WEIGHTS, 0.0), **weights}))


def test_loss_without_weights_is_the_squared_error_over_the_background(one_step):
    planes, decoder, batch, background, occupancy, _, _, jitter = one_step
    loss, mse = loss_with(one_step)
    out = render_rays(planes, decoder, batch.origins, batch.directions, occupancy, 16, 4, jitter)
    ours = out.rgb + (1 - out.alpha[..., None]) * background
    theirs = batch.rgba[..., :3] * batch.rgba[..., 3:] + (1 - batch.rgba[..., 3:]) * background
    torch.testing.assert_close(mse, (ours - theirs).square().mean())
    torch.testing.assert_close(loss, mse)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_each_weight_adds_its_own_term(one_step, weight):
    planes, decoder, batch, _, occupancy, hull, points, jitter = one_step
    out = render_rays(planes, decoder, batch.origins, batch.directions, occupancy, 16, 4, jitter)
    w, t = out.weights, out.t
    pairs = (w[..., :, None] * w[..., None, :] * (t[..., :, None] - t[..., None, :]).abs()).sum((-1, -2))
    density = decoder.density(sample_planes(planes, points))
    x, y, z = ((points + 1) * 4).long().unbind(-1)
    inside = torch.stack([hull[b][z[b], y[b], x[b]] for b in range(2)])
    assert inside.any() and not inside.all()
    term = {
        "total_variation": planes.diff(dim=-1).square().mean() + planes.diff(dim=-2).square().mean(),
        "magnitude": planes.square().mean(),
        "sparsity": (torch.log1p(density) * inside).mean(),
        "free_space": (torch.log1p(density) * ~inside).mean(),
        "distortion": (pairs + (w.square() * out.delta).sum(-1) / 3).mean(),
    }[weight]
    assert term > 1e-4
    loss, mse = loss_with(one_step, **{weight: 3.0})
    torch.testing.assert_close(loss - mse, 3 * term, rtol=1e-4, atol=1e-6)


def test_loss_reaches_planes_and_decoder(one_step):
    planes = one_step[0].clone().requires_grad_()
    loss_with((planes, *one_step[1:]))[0].backward()
    assert planes.grad.abs().amax((1, 2, 3, 4)).min() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one_step[1].parameters())
    one_step[1].zero_grad(set_to_none=True)


# -- what a step is made of ---------------------------------------------------------------------------------------


def spy_on(monkeypatch, config, captures, tmp_path, **options) -> list[dict]:
    """Fit to nothing, and record what every step handed to the loss."""
    steps = []

    def recorded(planes, decoder, batch, background, *rest):
        steps.append({"planes": planes.detach().clone(), "background": background, "origins": batch.origins})
        loss = 0 * (planes.sum() + sum(p.sum() for p in decoder.parameters()))
        return loss, loss.detach()

    monkeypatch.setattr(fitting, "fitting_loss", recorded)
    fit(captures, config, tmp_path / "spied", **options)
    return steps


def test_sizes_are_drawn_at_random_after_a_coarse_start(monkeypatch, tmp_path):
    weights = {"resolutions": (16, 8, 4), "resolution_weights": (0.5, 0.2, 0.3)}
    config = short(shared_steps=400, rays=4, coarse_fraction=0.25, **weights)
    sizes = [s["planes"].shape[-1] for s in spy_on(monkeypatch, config, balls(1, 8), tmp_path)]
    assert len(sizes) == 400 and set(sizes[:100]) == {4}
    share = {size: sizes[100:].count(size) / 300 for size in (16, 8, 4)}
    assert share == pytest.approx({16: 0.5, 8: 0.2, 4: 0.3}, abs=0.08)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_noise_is_added_to_the_planes(monkeypatch, tmp_path, noise):
    config = short(plane_noise=noise, resolutions=(16,), resolution_weights=(1.0,), shared_steps=2)
    first = spy_on(monkeypatch, config, balls(1, 16), tmp_path)[0]["planes"]  # planes start at zero
    assert first.std() == pytest.approx(noise, rel=0.1) and abs(first.mean()) <= 0.05 * noise


def test_groups_take_turns(monkeypatch, tmp_path):
    captures = balls(3, 16)
    steps = spy_on(monkeypatch, short(shared_steps=9), captures, tmp_path)
    eyes = [torch.cdist(s["origins"][0].double(), c.cameras.camera_to_world[:, :3, 3]).amin(1).max() < 1e-5
            for s in steps for c in captures]  # fmt: skip
    assert torch.tensor(eyes).view(3, 3, 3).float().equal(torch.eye(3).expand(3, 3, 3))


def test_every_group_has_its_grid_refreshed(monkeypatch, tmp_path):
    refreshed, refresh = [], Fitter._refresh
    counted = lambda self, group: refreshed.append(group.names[0]) or refresh(self, group)  # noqa: E731
    monkeypatch.setattr(Fitter, "_refresh", counted)
    fit(balls(2, 16), short(grid_every=4), tmp_path)  # twelve turns a group, the first ones at the coarse size
    assert refreshed == ["s0", "s1"] * 2


def test_background_is_random_behind_alpha_and_fixed_without(monkeypatch, tmp_path):
    a, b = balls(2, 16)
    b = replace(b, has_alpha=False, background=(0.25, 0.5, 1.0))
    steps = spy_on(monkeypatch, short(shared_steps=4, group=2, rays=500), [a, b], tmp_path)
    for step in steps:
        assert step["background"][0].mean((0,)).tolist() == pytest.approx([0.5] * 3, abs=0.1)
        assert step["background"][0].std() == pytest.approx(12**-0.5, rel=0.1)
        assert torch.equal(step["background"][1], torch.tensor([0.25, 0.5, 1.0]).expand(500, 3))
    assert not torch.equal(steps[0]["background"][0], steps[1]["background"][0])


# -- repeatable, resumable ----------------------------------------------------------------------------------------


def test_same_seed_same_bytes_whatever_the_global_generator(tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = fit(balls(2, 16), short(), tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    b = fit(balls(2, 16), short(), tmp_path / "b")
    assert contents(a.folder) == contents(b.folder)
    c = fit(balls(2, 16), short(seed=5), tmp_path / "c")
    assert not torch.equal(a.planes("s0"), c.planes("s0"))


class Killed(BaseException):
    """Nothing may catch it."""


def killed_after(monkeypatch, steps: int, run) -> None:
    """Run until so many steps were made in all, then stop dead; do nothing when the run is shorter."""
    advance, left = Fitter.advance, [steps]

    def counted(self):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Fitter, "advance", counted)
        with pytest.raises(Killed):
            run()


@pytest.mark.parametrize("moments", [(0,), (3,), (5,), (7, 4), (14, 1, 8), (23,)])
def test_stage_one_resumes_bit_equally(monkeypatch, tmp_path, moments):
    whole = fit(balls(2, 16), short(), tmp_path / "whole")
    run = lambda: fit(balls(2, 16), short(), tmp_path / "broken")  # noqa: E731
    for moment in moments:
        killed_after(monkeypatch, moment, run)
    run()
    assert contents(tmp_path / "broken") == contents(whole.folder)


@pytest.mark.parametrize("moments", [(1,), (7,), (12,), (19,), (26, 3)])
def test_stage_two_resumes_bit_equally(monkeypatch, tmp_path, short_decoder, moments):
    whole = fit(balls(3, 16), short(), tmp_path / "whole", decoder=short_decoder)
    run = lambda: fit(balls(3, 16), short(), tmp_path / "broken", decoder=short_decoder)  # noqa: E731
    for moment in moments:
        killed_after(monkeypatch, moment, run)
    run()
    assert contents(tmp_path / "broken") == contents(whole.folder)


@pytest.mark.parametrize("writes", range(8))
def test_killed_at_any_write_of_stage_one(monkeypatch, tmp_path, writes):
    """Checkpoints, shards, decoder: whichever file was written last, the same command ends with the same bytes."""
    whole = fit(balls(2, 16), short(), tmp_path / "whole")
    save, left = fitting.atomic_save, [writes]

    def counted(*arguments):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "atomic_save", counted)
        patch.setattr("minirodin.shards.atomic_save", counted)
        if writes < 7:  # four checkpoints, two shards, one decoder
            with pytest.raises(Killed):
                fit(balls(2, 16), short(), tmp_path / "broken")
    fit(balls(2, 16), short(), tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(whole.folder)


@pytest.mark.slow
def test_a_real_kill_is_resumed_bit_equally(tmp_path):
    for capture in balls(2, 16):
        save_capture(capture, tmp_path / "data" / capture.name)
    program = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(2)
from test_fitting import fit, short
fit({data!r}, short(shared_steps=500, checkpoint_every=10), sys.argv[1])
""".format(tests=str(Path(__file__).parent), data=str(tmp_path / "data"))
    command = [sys.executable, "-c", program]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    kills = 0
    for delay in (0.1, 0.4, 0.7):
        process = subprocess.Popen([*command, str(tmp_path / "broken")])
        while not list(tmp_path.glob("broken/.resume*")) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(delay)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    subprocess.run([*command, str(tmp_path / "broken")], check=True)
    broken = {name: data for name, data in contents(tmp_path / "broken").items() if not name.endswith(".tmp")}
    assert broken == contents(tmp_path / "whole")


def test_nothing_is_left_behind(tmp_path):
    fit(balls(2, 16), short(), tmp_path)
    assert sorted(contents(tmp_path)) == ["decoder.safetensors", "planes-s0.safetensors", "planes-s1.safetensors"]


def test_done_subjects_are_skipped_and_their_bytes_kept(monkeypatch, tmp_path):
    fit(balls(2, 16), short(), tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    killed_after(monkeypatch, 3, lambda: fit(balls(3, 16), short(), tmp_path))  # the third one is new
    fitted = fit(balls(3, 16), short(), tmp_path)
    assert sorted(fitted.names) == ["s0", "s1", "s2"]
    for path, (data, changed) in before.items():
        assert path.read_bytes() == data and path.stat().st_mtime_ns == changed
    monkeypatch.setattr(Fitter, "__init__", None)  # nothing to do: not even a fitter is made
    assert sorted(fit(balls(3, 16), short(), tmp_path).names) == ["s0", "s1", "s2"]


# -- ranks --------------------------------------------------------------------------------------------------------


def test_ranks_cover_every_subject_once_and_change_nothing(monkeypatch, tmp_path, short_decoder):
    captures, made = [replace(c, name=f"{c.name}{i}") for i in range(2) for c in balls(4, 16)][:7], []
    config = short(group=2, steps=4)
    alone = fit(captures, config, tmp_path / "alone", decoder=short_decoder)
    init = Fitter.__init__
    monkeypatch.setattr(Fitter, "__init__", lambda self, names, *rest: made.extend(names) or init(self, names, *rest))
    for rank in (2, 0, 1):
        fitted = fit(captures, config, tmp_path / "ranks", decoder=short_decoder, rank=rank, world_size=3)
    assert sorted(made) == sorted(c.name for c in captures)
    assert sorted(fitted.names) == sorted(made)
    assert contents(tmp_path / "ranks") == contents(alone.folder)


def test_killed_ranks_go_on_where_they_were(monkeypatch, tmp_path, short_decoder):
    """Rank 0 finishes its first group and dies in its second; a restart must not deal the groups out anew."""
    captures, config = balls(4, 16), short(steps=12)
    whole = fit(captures, config, tmp_path / "whole", decoder=short_decoder)
    share = {"decoder": short_decoder, "world_size": 2}
    ranks = [lambda r=r: fit(captures, config, tmp_path / "broken", rank=r, **share) for r in (0, 1)]
    killed_after(monkeypatch, 18, ranks[0])
    killed_after(monkeypatch, 7, ranks[1])
    steps, advance = [0], Fitter.advance

    def counted(self):
        steps[0] += 1
        return advance(self)

    monkeypatch.setattr(Fitter, "advance", counted)
    for run in ranks:
        run()
    assert contents(tmp_path / "broken") == contents(whole.folder)
    assert steps[0] == (12 - 5) + (12 - 5) + 12  # from the checkpoints at step 5, not from the start


def test_stage_one_is_for_one_process(tmp_path):
    with pytest.raises(ConfigError, match="one process"):
        fit(balls(2, 16), short(), tmp_path, rank=1, world_size=2)


# -- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("broken_step", [2, 7, 23])
def test_nan_stops_with_one_line_and_no_bad_checkpoint(monkeypatch, tmp_path, short_decoder, stage, broken_step):
    calls = [0]

    def sometimes_nan(*arguments):
        loss, mse = fitting_loss(*arguments)
        calls[0] += 1
        return (loss * torch.nan, mse * torch.nan) if calls[0] > broken_step else (loss, mse)

    monkeypatch.setattr(fitting, "fitting_loss", sometimes_nan)
    decoder = short_decoder if stage == 2 else None
    with pytest.raises(MinirodinError) as error:
        fit(balls(1, 16), short(steps=24), tmp_path, decoder=decoder)
    assert "nan" in str(error.value) and "step" in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.glob("planes-*"))
    monkeypatch.undo()
    fitted = fit(balls(1, 16), short(steps=24), tmp_path, decoder=decoder)  # the same command goes on
    assert fitted.planes("s0").isfinite().all()
    whole = fit(balls(1, 16), short(steps=24), tmp_path / "whole", decoder=decoder)
    assert contents(tmp_path) == contents(whole.folder)


def test_half_a_stage_one_is_not_taken_for_stage_two(monkeypatch, tmp_path, short_decoder):
    killed_after(monkeypatch, 12, lambda: fit(balls(2, 16), short(), tmp_path))
    fitted = fit(balls(2, 16), short(), tmp_path, decoder=short_decoder)
    shared = SharedDecoder.load(short_decoder)
    for key, value in shared.decoder.state_dict().items():
        assert torch.equal(fitted.decoder.decoder.state_dict()[key], value)
    clean = fit(balls(2, 16), short(), tmp_path / "clean", decoder=short_decoder)
    for name in clean.names:
        assert torch.equal(fitted.planes(name), clean.planes(name))


def test_shards_of_a_decoder_that_was_never_written(monkeypatch, tmp_path, short_decoder):
    """Stage one dies between its shards and its decoder: they are not planes of another decoder."""
    with monkeypatch.context() as patch:
        patch.setattr(SharedDecoder, "save", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            fit(balls(2, 16), short(), tmp_path / "a")
    clean = fit(balls(2, 16), short(), tmp_path / "clean", decoder=short_decoder)
    try:
        fitted = fit(balls(2, 16), short(), tmp_path / "a", decoder=short_decoder)
    except CheckpointError:
        return
    assert torch.equal(fitted.planes("s0"), clean.planes("s0"))


def refused(word, captures, config, out, **options):
    with pytest.raises(MinirodinError) as error:
        fit(captures, config, out, **options)
    assert word in str(error.value) and "\n" not in str(error.value)
    return error.type


def test_decoders_are_not_mixed(tmp_path, learned, short_decoder):
    fit(balls(1, 16), short(steps=2), tmp_path / "a", decoder=short_decoder)
    before = contents(tmp_path / "a")
    other = fit(balls(1, 16), short(seed=3), tmp_path / "b").folder / "decoder.safetensors"
    assert refused("another decoder", balls(2, 16), short(), tmp_path / "a", decoder=other) is CheckpointError
    wide = learned.folder / "decoder.safetensors"
    assert refused("channels", balls(1, 16), short(), tmp_path / "c", decoder=wide) is CheckpointError
    assert contents(tmp_path / "a") == before


def test_leftovers_of_other_settings_are_named(monkeypatch, tmp_path):
    killed_after(monkeypatch, 12, lambda: fit(balls(2, 16), short(), tmp_path))
    (resume,) = tmp_path.glob(".resume*")
    kept = resume.read_bytes()
    assert refused(resume.name, balls(2, 16), short(rays=65), tmp_path) is CheckpointError
    assert refused(resume.name, balls(3, 16), short(), tmp_path) is CheckpointError
    assert resume.read_bytes() == kept
    resume.write_bytes(kept[: len(kept) // 2])
    assert refused(resume.name, balls(2, 16), short(), tmp_path) is CheckpointError


def test_bad_input_before_any_work(tmp_path, short_decoder):
    a = balls(1, 16)[0]
    assert refused("same name", [a, a], short(), tmp_path / "a") is DataError
    assert refused("differ in views or size", [a, *balls(2, 24)[1:]], short(group=2), tmp_path / "b") is DataError
    half = tmp_path / "decoder.safetensors"
    half.write_bytes(short_decoder.read_bytes()[:-100])
    assert refused("decoder.safetensors", [a], short(), tmp_path / "c", decoder=half) is CheckpointError
    missing = tmp_path / "none.safetensors"
    assert refused("none.safetensors", [a], short(), tmp_path / "d", decoder=missing) is CheckpointError


# -- somebody else's capture --------------------------------------------------------------------------------------


def write_foreign(folder: Path, scale=0.015, offset=(0.1, -0.05, 0.0)) -> None:
    """A z-up world in centimetres, 48×36 RGB on white, nerfstudio's names, an odd principal point."""
    views, width, height = 24, 48, 36
    rng = np.random.default_rng(0)
    azimuth, elevation = np.arange(views) * 2.4, rng.uniform(-0.4, 0.7, views)
    around = np.stack([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)], 1)
    x, y, z = (-np.array(offset)) / scale  # where the middle of our box is in a y-up world of their units …
    middle = np.array([x, -z, y])  # … and in theirs
    theirs = torch.stack([look_at(middle + 230 * d, middle, (0, 0, 1)) for d in around])
    ours = theirs.clone()
    turn = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    ours[:, :3] = turn @ theirs[:, :3]
    ours[:, :3, 3] = scale * ours[:, :3, 3] + torch.tensor(offset, dtype=torch.float64)
    intrinsics = torch.tensor([[52.0, 52.0, 25.0, 17.0]], dtype=torch.float64).repeat(views, 1)
    images = trace_ball(Cameras(ours, intrinsics, width, height), radius=0.6)
    frames = []
    (folder / "images").mkdir(parents=True)
    for i, image in enumerate(images):
        rgba = image.astype(float) / 255
        rgb = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
        Image.fromarray((rgb * 255).round().astype(np.uint8)).save(folder / f"images/frame_{i:05d}.png")
        frames.append({"file_path": f"./images/frame_{i:05d}.png", "transform_matrix": theirs[i].tolist()})
    meta = {"w": width, "h": height, "fl_x": 52.0, "fl_y": 52.0, "cx": 25.0, "cy": 17.0, "k1": 0.0, "k2": 0.0}
    meta |= {"camera_model": "OPENCV", "up": "z", "scale": scale, "offset": list(offset), "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))


def test_a_foreign_capture_is_fitted(tmp_path):
    write_foreign(tmp_path / "scan")
    capture = load_capture(tmp_path / "scan")
    assert capture.images.shape == (24, 36, 48, 4) and not capture.has_alpha
    fitted = fit(tmp_path / "scan", ball_config(shared_steps=250, samples=12), tmp_path / "fitted")
    assert fitted.names == ["scan"]
    white = -10 * np.log10(np.mean((capture.images[capture.held_out()[1]][..., :3] / 255 - 1.0) ** 2))
    assert white < 12 and held_out_psnr(fitted, capture) > 22
