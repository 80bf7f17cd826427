"""The base model from fitted planes to sampled people, its files, and what it refuses."""

import csv
import json
import math
import subprocess
import sys
from copy import copy
from dataclasses import replace

import pytest
import torch
from conftest import tiny_config
from safetensors import safe_open
from safetensors.torch import save_file

from minirodin import base, cli, evaluation
from minirodin.avatar import Avatar
from minirodin.base import BaseModel, sample_people
from minirodin.base_training import FOCUSED, LEVELS, denoising_errors, eps_loss, load_planes, train_base
from minirodin.config import BaseConfig, DiffusionConfig, TrainConfig, UNetConfig
from minirodin.diffusion import Diffusion, alpha_sigma
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.evaluation import compare
from minirodin.fitting import fit_subjects
from minirodin.plane_space import PlaneSpace, visible_metric, visible_texels
from minirodin.shards import FittedPlanes, SharedDecoder, fingerprint

TINY = BaseConfig(
    unet=UNetConfig(channels=(8, 16), blocks=1, attention=(4,), head_width=8, aware_levels=1),
    plain_channels=(10, 16),
    diffusion=DiffusionConfig(),
    train=TrainConfig(
        **{"steps": 6, "batch": 4, "lr": 3e-3, "warmup": 2, "ema": 0.9},
        **{"log_every": 2, "preview_every": 6, "checkpoint_every": 2},
    ),
)


def config(variant="aware", **train):
    base = replace(TINY, train=replace(TINY.train, **train))
    return replace(tiny_config(), base=base.of_variant(variant))


def variant_of(path, folder, change):
    """A copy of a model folder with other tensors or metadata."""
    folder.mkdir()
    (folder / "decoder.safetensors").write_bytes((path / "decoder.safetensors").read_bytes())
    with safe_open(path / "model.safetensors", "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    metadata.pop("sha256", None)  # as who means harm would
    change(tensors, metadata)
    save_file(tensors, folder / "model.safetensors", metadata)
    return folder


@pytest.fixture(scope="module")
def trained(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    train_base(fitted, config(), folder, validation=fitted, show_progress=False)
    return folder


@pytest.fixture(scope="module")
def model(trained):
    return BaseModel.load(trained, "cpu")


def test_training_leaves_model_log_curve_and_renders(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"model.safetensors", "decoder.safetensors", "log.csv", "loss.png", "preview-000006.png"} <= names
    with open(trained / "log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert float(rows[-1]["simple"]) > 0 and float(rows[-1]["validation"]) > 0
    assert rows[-1]["validation"] == rows[-1]["trained"]  # here they are the same people
    assert float(rows[-1]["validation_x0_at_4"]) < float(rows[-1]["validation_x0_at_-4"])


def test_a_loaded_model_samples_what_the_trained_one_does(fitted, model, tmp_path):
    again = train_base(fitted, config(), tmp_path, show_progress=False)
    noise = model.noise(2, seed=3)
    assert torch.equal(again.sample(noise, steps=3), model.sample(noise, steps=3))


def test_a_sample_depends_on_its_own_seed_alone(model):
    assert torch.equal(model.noise(3, seed=5)[1:], model.noise(2, seed=6))
    many, one = model.sample(model.noise(3, 5), steps=3), model.sample(model.noise(1, 6), steps=3)
    torch.testing.assert_close(many[1:2], one)


def test_samples_lie_in_the_range_of_fitted_planes(model):
    planes = model.sample(1000 * model.noise(2, seed=0), steps=2)
    limit = model.config.fit.value_range
    assert planes.abs().max() <= limit * (1 + 1e-5) and planes.abs().max() > 0.9 * limit  # and the noise did reach it


def test_ancestral_sampling_repeats_with_its_seed(model):
    noise = model.noise(1, seed=0)
    a, b, c = (model.sample(noise, 4, "ancestral", seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.allclose(a, c)


def test_what_ancestral_sampling_adds_is_not_what_it_began_with(model, monkeypatch):
    """Nor what others of the batch began with."""
    monkeypatch.setitem(base.SAMPLERS, "ancestral", lambda denoise, x, grid, generator, *_: draw(generator))

    def draw(generator):
        added.append(torch.randn(3 * math.prod(model.shape), generator=generator))
        return torch.zeros(3, *model.shape)

    for seed in (0, 7, -2, 2**64 - 3):
        added = []
        noise = model.noise(3, seed)
        model.sample(noise, 2, "ancestral", seed)
        assert torch.isin(noise, added[0]).float().mean() < 0.01, seed


def test_the_space_is_that_of_the_training_planes(fitted, model):
    planes, names = load_planes(fitted, model.config.triplane.base_resolution)
    assert names == FittedPlanes(fitted).names and planes.shape[1:] == model.shape
    space = PlaneSpace.of(planes, visible_metric(planes, model.shared.decoder, model.config.render))
    assert torch.equal(model.space.mean, space.mean) and torch.equal(model.space.weight, space.weight)
    alike = PlaneSpace.of(planes, None)
    assert not torch.allclose(alike.weight, space.weight, rtol=0.1)


@pytest.mark.parametrize("prediction, steps, batch", [("eps", 80, 4), ("v", 260, 16)])
def test_a_longer_training_learns(fitted, tmp_path, prediction, steps, batch):
    """By the loss of what is predicted: at much noise, v gives a fair ε̂ from the start."""
    planes, _ = load_planes(fitted, 8)
    settings = {"steps": steps, "batch": batch, "lr": 2e-2, "warmup": 20}
    settings |= dict.fromkeys(("log_every", "preview_every", "checkpoint_every"), steps)
    errors = []
    for name, given in (("short", config()), ("long", config(**settings))):
        given = replace(given, base=replace(given.base, diffusion=DiffusionConfig(prediction=prediction)))
        model = train_base(fitted, given, tmp_path / name, show_progress=False)
        x0 = model.space.standardise(planes).repeat(16, 1, 1, 1, 1)
        with torch.no_grad():
            losses = model.diffusion.losses(model.network, x0, torch.Generator().manual_seed(0))
        errors.append(float(losses["simple"].mean()))
    assert errors[1] < 0.6 * errors[0]


class Knows:
    """A network that predicts v for data that are all zero."""

    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, x_t, log_snr):
        _, sigma = alpha_sigma(log_snr, x_t)
        eps = x_t / sigma
        return torch.stack([alpha_sigma(log_snr, x_t)[0] * eps * self.factor, x_t], dim=1)


def test_errors_are_measured_at_the_levels_they_say(model):
    """Data at the mean, so x_0 = 0 and x_t = σε: a v̂ that is off by the factor f gives ŷ_0 = (1 − f) α σ ε."""
    planes = model.space.unstandardise(torch.zeros(5, *model.shape))
    told = copy(model)
    for factor in (1.0, 0.5):
        told.network = Knows(factor)
        errors = denoising_errors(told, planes, rounds=4, batch=3)
        expected = [((1 - factor) / (math.exp(lam / 2) + math.exp(-lam / 2))) ** 2 for lam in LEVELS]
        assert errors == pytest.approx(expected, rel=0.05, abs=1e-6)
    eps_errors = [(0.5 / (1 + math.exp(-lam))) ** 2 for lam in LEVELS]  # ε̂ = (1 − α²/2) ε
    assert eps_loss(errors) == pytest.approx(sum(eps_errors) / len(LEVELS), rel=0.05)


def test_errors_do_not_depend_on_the_batch_or_the_schedule(fitted, model):
    planes, _ = load_planes(fitted, model.config.triplane.base_resolution)
    other = copy(model)
    other.diffusion = Diffusion(DiffusionConfig(schedule="linear", log_snr_max=9.0))
    assert denoising_errors(model, planes) == denoising_errors(other, planes)


@pytest.mark.parametrize("variant", ["baseline", "rollout"])
def test_the_other_variants_train_and_sample(fitted, tmp_path, variant):
    model = train_base(fitted, config(variant), tmp_path, show_progress=False)
    assert model.network.config.variant == variant
    assert BaseModel.load(tmp_path, "cpu").sample(model.noise(1, 0), 2).shape == (1, *model.shape)


def test_sampled_people_are_a_fitted_folder_like_any_other(model, tmp_path):
    call = {"steps": 2, "batch": 2, "seed": 7, "views": (60.0,), "show_progress": False}
    people = sample_people(model, 5, tmp_path, **call)
    assert people.names == [f"sample-{i:06d}" for i in range(7, 12)]
    avatar = Avatar.load(tmp_path / "sample-000009")
    expected = model.sample(model.noise(2, 9), 2)[0]
    torch.testing.assert_close(avatar.planes, expected, atol=1e-3, rtol=1e-3)  # float16 on disk
    assert avatar.render(size=16).shape == (16, 16, 4) and (tmp_path / "sheet.png").stat().st_size > 500


def test_sampling_adds_people_and_never_writes_over_others(model, fitted, tmp_path):
    call = {"steps": 2, "batch": 2, "views": (0.0,), "show_progress": False}
    few = sample_people(model, 2, tmp_path, **call)
    before = {name: few.planes(name) for name in few.names}
    more = sample_people(model, 3, tmp_path, **call)
    assert more.names == [f"sample-{i:06d}" for i in range(3)]
    assert all(torch.equal(more.planes(name), planes) for name, planes in before.items())
    again = sample_people(model, 1, tmp_path, seed=20, **call)  # fewer, from another seed
    assert len(again) == len(FittedPlanes(tmp_path)) == 4
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for changes in ({"steps": 3}, {"sampler": "ddim"}):
        with pytest.raises(CheckpointError, match="choose another folder"):
            sample_people(model, 2, tmp_path, **{**call, **changes})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    with pytest.raises(CheckpointError, match="choose another folder"):
        sample_people(model, 2, fitted, **call)  # where a fit is


def test_comparison_knows_a_copy_from_new_people(fitted, tmp_path, monkeypatch):
    """Copies of training people are at distance 0 and remembered; noisier people are farther from the data."""
    monkeypatch.setattr(evaluation, "PICTURE", 32)
    monkeypatch.setattr(evaluation, "AZIMUTHS", (0.0, 90.0))
    shared = FittedPlanes(fitted).decoder
    one = FittedPlanes(fitted).planes("one")
    generator = torch.Generator().manual_seed(0)
    folders = {}
    for name, scale in (("train", 0.1), ("real", 0.1), ("noisy", 0.6)):
        folders[name] = FittedPlanes(tmp_path / name)
        (tmp_path / name).mkdir()
        shared.save(tmp_path / name / "decoder.safetensors")
        people = {f"{name}{i}": one + scale * torch.randn(one.shape, generator=generator) for i in range(6)}
        folders[name].write_shard(people, shared)
    of = [tmp_path / "train", tmp_path / "noisy"]
    compared = compare(of, tmp_path / "real", tmp_path / "train", "cpu", False)
    copies, noisy, real = compared["samples"]["train"], compared["samples"]["noisy"], compared["real"]
    assert copies["frechet"] == pytest.approx(0, abs=1e-6) and copies["memorisation"] == 0
    assert real["memorisation"] > 0.3
    assert noisy["frechet"] > 2 * real["frechet"] > 0
    assert noisy["memorisation"] > real["memorisation"]
    alone = compare(tmp_path / "noisy", tmp_path / "real", tmp_path / "train", "cpu", False)
    assert alone["samples"]["noisy"] == noisy
    with pytest.raises(DataError, match="at least 4"):
        compare(fitted, fitted, fitted, "cpu", False)


# -- refused ------------------------------------------------------------------------------------------------------


def drop(key):
    return lambda tensors, metadata: tensors.pop(key)


def other_channels(tensors, metadata):
    values = json.loads(metadata["config"])
    values["triplane"]["channels"] = 6
    metadata["config"] = json.dumps(values)


def other_shape(tensors, metadata):
    tensors["network.enter.weight"] = tensors["network.enter.weight"][:, :2].contiguous()


@pytest.mark.parametrize(
    "change, said",
    [
        (drop("mean"), r"statistics \(mean\)"),
        (drop("weight"), r"statistics \(weight\)"),
        (drop("network.enter.bias"), "enter.bias has shape None"),
        (lambda tensors, metadata: tensors["network.enter.bias"].fill_(float("nan")), "NaN or infinite"),
        (other_channels, r"enter.weight has shape \(8, 4, 3, 3\), expected \(8, 6, 3, 3\)"),
        (other_shape, r"enter.weight has shape \(8, 2, 3, 3\)"),
        (lambda tensors, metadata: metadata.update(decoder="0"), "not trained on planes of the decoder"),
        (lambda tensors, metadata: metadata.update(kind="avatar"), "holds 'avatar'"),
    ],
)
def test_model_files_that_do_not_fit_are_one_line(trained, tmp_path, change, said):
    with pytest.raises(CheckpointError, match=said):
        BaseModel.load(variant_of(trained, tmp_path / "changed", change))


def test_planes_of_another_decoder_are_refused(fitted, captures, tmp_path):
    other = fit_subjects(captures, tiny_config(shared_steps=2, seed=1), tmp_path, device="cpu", show_progress=False)
    with pytest.raises(CheckpointError, match="planes of different decoders"):
        train_base(fitted, config(), tmp_path / "out", validation=other.folder)
    with pytest.raises(CheckpointError, match="planes of different decoders"):
        compare(fitted, other.folder, fitted, "cpu", False)


def test_a_model_that_was_cut_short_is_one_line(trained, tmp_path):
    folder = variant_of(trained, tmp_path / "cut", lambda tensors, metadata: None)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        BaseModel.load(folder)


def test_mistakes_are_told(model, fitted, tmp_path):
    with pytest.raises(CheckpointError, match=r"noise has shape \(1, 3, 5, 8, 8\)"):
        model.sample(torch.zeros(1, 3, 5, 8, 8))
    with pytest.raises(ConfigError, match="unknown sampler 'euler'"):
        model.sample(model.noise(1, 0), sampler="euler")
    with pytest.raises(ConfigError, match="0 sampling steps"):
        model.sample(model.noise(1, 0), steps=0)
    with pytest.raises(CheckpointError, match=r"4 channels, preset 'tiny' 5"):
        wide = config()
        train_base(fitted, replace(wide, triplane=replace(wide.triplane, channels=5)), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"decoder\.safetensors does not exist"):
        train_base(empty, config(), tmp_path / "out")
    FittedPlanes(fitted).decoder.save(empty / "decoder.safetensors")
    with pytest.raises(DataError, match="no fitted planes"):
        train_base(empty, config(), tmp_path / "out")


@pytest.mark.parametrize(
    "words, said",
    [
        ("train base --data NOWHERE --out OUT", "NOWHERE/decoder.safetensors does not exist"),
        ("train base --data NOWHERE --out OUT --preset smal", "did you mean 'small'"),
        ("sample NOWHERE --out OUT", "NOWHERE/model.safetensors does not exist"),
        ("sample MODEL --out OUT --count 0", "count is 0"),
        ("sample MODEL --out OUT --steps 0", "0 sampling steps"),
        ("compare NOWHERE --real NOWHERE --train NOWHERE", "NOWHERE/decoder.safetensors does not exist"),
        ("bench fit", "bench fit needs captures"),
    ],
)
def test_the_command_line_says_it_in_one_line(trained, tmp_path, capsys, words, said):
    names = {"NOWHERE": tmp_path / "nowhere", "OUT": tmp_path / "out", "MODEL": trained}
    argv = [str(names.get(word, word)) for word in words.split()]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said.replace("NOWHERE", str(tmp_path / "nowhere")) in error


def test_an_unknown_variant_is_refused_by_the_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        cli.main(["train", "base", "--data", "x", "--out", str(tmp_path), "--variant", "stacked"])
    assert refused.value.code == 2 and "baseline" in capsys.readouterr().err


def test_decoder_beside_the_model_is_that_of_the_planes(trained, fitted):
    ours, theirs = SharedDecoder.load(trained / "decoder.safetensors"), FittedPlanes(fitted).decoder
    assert fingerprint(ours.decoder) == fingerprint(theirs.decoder)


@pytest.mark.slow
def test_a_process_killed_in_training_ends_with_the_same_weights(fitted, tmp_path):
    """The real thing: the command, SIGKILL as soon as a checkpoint lies there, and the command again."""
    flags = "--base.train.steps 60 --base.train.checkpoint-every 5 --base.train.preview-every 60 --base.train.batch 4"
    tiny = "--base.unet.channels 8 16 --base.unet.blocks 1 --base.unet.attention 4 --triplane.channels 4"
    command = [sys.executable, "-m", "minirodin", "train", "base", "--data", str(fitted), "--preset", "smoke"]
    command += [*flags.split(), *tiny.split(), "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    running = subprocess.Popen([*command, str(tmp_path / "broken")])
    while not (tmp_path / "broken" / "resume.safetensors").exists():
        assert running.poll() is None
    running.kill()
    running.wait()
    assert (tmp_path / "broken" / "resume.safetensors").exists()
    subprocess.run([*command, str(tmp_path / "broken")], check=True)
    whole, broken = (BaseModel.load(tmp_path / name, "cpu").network.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


def test_eight_bits_are_enough(trained, model, tmp_path, capsys):
    assert cli.main(["pack", str(trained), "--out", str(tmp_path / "small")]) == 0
    before, after = ((folder / "model.safetensors").stat().st_size for folder in (trained, tmp_path / "small"))
    assert after < 0.6 * before  # a tiny network is half names
    packed = BaseModel.load(tmp_path / "small", "cpu")
    for (name, ours), reference in zip(packed.network.named_parameters(), model.network.parameters(), strict=True):
        if reference.dim() < 2 or reference.numel() < 1024:
            assert torch.equal(ours, reference), name
        else:
            largest = reference.flatten(1).abs().amax(1).view(-1, *[1] * (reference.dim() - 1))
            assert ((ours - reference).abs() <= largest / 254 + 1e-7).all(), name
    noise = model.noise(2, seed=0)
    assert (packed.space.mean - model.space.mean).abs().max() < 1e-3 * model.space.mean.abs().max()
    ours, reference = (m.space.standardise(m.sample(noise, 4)) for m in (packed, model))
    assert (ours - reference).square().mean() < 1e-3 * reference.square().mean()
    assert cli.main(["pack", str(trained), "--out", str(trained)]) == 2


def test_focus_weighs_texels_by_what_they_do_to_pictures(fitted, tmp_path, monkeypatch):
    weights, losses = [], Diffusion.losses

    def spy(*given, weight, **others):
        weights.append(weight)
        return losses(*given, weight=weight, **others)

    monkeypatch.setattr(Diffusion, "losses", spy)
    for focus in (0.0, 0.5, 1.0):
        one = config(steps=1)
        one = replace(one, base=replace(one.base, focus=focus))
        model = train_base(fitted, one, tmp_path / str(focus), show_progress=False)
    alike, half, whole = weights
    planes, _ = load_planes(fitted, model.shape[-1])
    seen = visible_texels(planes, model.shared.decoder, model.config.render, model.space).clamp(*FOCUSED)
    assert alike == 1 and seen.std() > 0.2
    torch.testing.assert_close(whole, (seen / seen.mean())[:, None])
    torch.testing.assert_close(half, (seen.sqrt() / seen.sqrt().mean())[:, None])


def test_training_begins_where_another_ended(fitted, trained, model, tmp_path):
    untouched = train_base(fitted, config(steps=1, lr=0.0), tmp_path / "a", show_progress=False, start=trained)
    for ours, theirs in zip(untouched.network.parameters(), model.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    further = train_base(fitted, config(), tmp_path / "b", show_progress=False, start=trained)
    assert not torch.equal(further.network.enter.weight, model.network.enter.weight)
    with pytest.raises(CheckpointError, match="network"):
        train_base(fitted, config("baseline"), tmp_path / "c", show_progress=False, start=trained)
    with pytest.raises(CheckpointError, match="other data or settings"):  # a run from random weights is another run
        train_base(fitted, config(), tmp_path / "b", show_progress=False)
