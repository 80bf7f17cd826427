"""The upsampler (E17, E18) from fitted planes to larger ones, its files, and what it refuses."""

import csv
import json
import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_config
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from minirodin import cli, upsampler, upsampler_training
from minirodin.augmentation import read_augmentation, tune_augmentation
from minirodin.avatar import Avatar, Origin, to_rgb
from minirodin.base_training import load_planes
from minirodin.cameras import orbit_cameras
from minirodin.config import AugmentConfig, DiffusionConfig, TrainConfig, UNetConfig, UpsamplerConfig
from minirodin.decoder import TriplaneDecoder
from minirodin.diffusion import alpha_sigma
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.latents import Latents
from minirodin.patches import Views
from minirodin.perceptual import PerceptualDistance
from minirodin.picture_losses import PictureLosses, likeness_loss
from minirodin.plane_space import PlaneSpace
from minirodin.shards import FittedPlanes, SharedDecoder
from minirodin.triplane import resize_planes
from minirodin.unet import ResBlock, UNet
from minirodin.upsampler import (
    CLEAREST,
    Upsampler,
    augment,
    build_network,
    detail_space,
    gaussian_blur,
    told,
    upsample_people,
)
from minirodin.upsampler_training import spaces, train_upsampler, upsampler_losses

TINY = UpsamplerConfig(
    unet=UNetConfig(channels=(8, 16), blocks=1, attention=(), aware_levels=2),
    **{"view": 24, "patch": 12, "rendered": 1, "perceptual": "efficientnet-lite0"},
    train=TrainConfig(
        **{"steps": 6, "batch": 2, "lr": 2e-3, "warmup": 2, "ema": 0.9},
        **{"log_every": 2, "preview_every": 6, "checkpoint_every": 2},
    ),
)
CLEAN = AugmentConfig(smallest=1.0, blur=0.0, noise=0.0)
WALKS = [("ddim", 1), ("ddim", 2), ("ddim", 10), ("dpm++", 1), ("dpm++", 2), ("dpm++", 10), ("ancestral", 4)]


def config(train=None, **changes):
    return replace(tiny_config(), upsampler=replace(TINY, train=replace(TINY.train, **(train or {})), **changes))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def randomised(network, scale=0.2):
    """The network answering to all that it is given."""
    for i, p in enumerate(network.parameters()):
        p.data = p.data + scale * randn(*p.shape, seed=i)
    return network


def untrained(fitted, **changes):
    shared, (planes, _) = FittedPlanes(fitted).decoder, load_planes(fitted, 16)
    c = replace(shared.config, upsampler=replace(TINY, **changes))
    torch.manual_seed(0)
    return Upsampler(build_network(c), shared, c, *spaces(planes, shared.decoder, c))


@pytest.fixture(scope="module")
def truth(fitted):
    return load_planes(fitted, 16)[0].float()


@pytest.fixture(scope="module")
def random(fitted):
    model = untrained(fitted)
    randomised(model.network)
    return model


class Knows:
    """A network that predicts given details, whatever it sees, and keeps what it was shown."""

    def __init__(self, detail, prediction="x0"):
        self.detail, self.prediction, self.calls = detail, prediction, []

    def __call__(self, x, levels):
        self.calls.append((x, levels))
        if self.prediction == "x0":
            return self.detail[:, None]
        alpha, sigma = alpha_sigma(levels[:, 0], x)
        eps = (x[:, :, : self.detail.shape[2]] - alpha * self.detail) / sigma
        return (alpha * eps - sigma * self.detail)[:, None]


@pytest.mark.parametrize("sampler, steps", WALKS)
def test_a_network_that_says_nothing_leaves_planes_enlarged(fitted, truth, sampler, steps):
    small = resize_planes(truth, 8)
    made = untrained(fitted).upsample(small, steps, sampler=sampler)
    torch.testing.assert_close(made, resize_planes(small, 16), atol=1e-5, rtol=0)
    assert (made - truth).abs().max() > 1e-2


def test_it_takes_as_many_steps_as_its_configuration_says(fitted, truth, tmp_path):
    small = resize_planes(truth, 8)
    for said, asked, expected in ((3, None, 3), (3, 2, 2), (3, 0, 0), (10, None, 10)):
        model = untrained(fitted, steps=said)
        model.network = Knows(torch.zeros_like(truth), "x0")
        model.upsample(small, asked)
        assert len(model.network.calls) == expected
    model = untrained(fitted, steps=3)
    out = upsample_people(model, fitted, tmp_path / "out", reduce=True, show_progress=False)
    assert upsample_people(model, fitted, tmp_path / "out", 3, reduce=True, show_progress=False).names == out.names
    with pytest.raises(CheckpointError):  # these are of another number of steps
        upsample_people(model, fitted, tmp_path / "out", 2, reduce=True, show_progress=False)


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("sampler, steps", WALKS)
def test_a_network_that_knows_gives_the_true_planes(fitted, truth, sampler, steps, prediction):
    model = untrained(fitted, diffusion=replace(TINY.diffusion, prediction=prediction))
    small = resize_planes(truth, 8)
    model.network = Knows(model.detail.standardise(truth - resize_planes(small, 16)), prediction)
    torch.testing.assert_close(model.upsample(small, steps, sampler=sampler), truth, atol=1e-4, rtol=0)
    given = resize_planes(model.low.standardise(small), 16)
    for (x, levels), log_snr in zip(model.network.calls, model.diffusion.grid(steps)[:-1], strict=True):
        torch.testing.assert_close(x[:, :, 4:], given)
        assert levels.tolist() == [[float(log_snr), CLEAREST]] * 2


def test_planes_stay_in_the_range_of_fitted_ones(fitted, truth):
    model = untrained(fitted)
    model.network = Knows(1000 * randn(*truth.shape))
    made = model.upsample(resize_planes(truth, 8), steps=2).abs()
    assert made.max() <= 1 + 1e-4 and (made > 0.99).float().mean() > 0.9


def test_a_persons_planes_depend_on_their_own_seed_alone(random, truth):
    small = resize_planes(truth, 8)[[0, 1, 0]]
    for noise in (0.0, 0.5):
        many = random.upsample(small, 3, seed=5, noise=noise)
        assert torch.equal(many, random.upsample(small, 3, seed=5, noise=noise))
        for i in range(3):
            torch.testing.assert_close(many[[i]], random.upsample(small[[i]], 3, 5 + i, noise=noise), atol=1e-4, rtol=0)
        assert (many - random.upsample(small, 3, seed=6, noise=noise)).abs().amax((1, 2, 3, 4)).min() > 1e-2


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_nothing_that_is_left_on_the_cpu_meets_the_gpu(monkeypatch):
    """Tensors that claim to lie on one, hold nothing, and refuse to meet others."""

    def network(x, levels, z, keep):
        return x.chunk(2, 2)[0] + (levels.sum(1) + z.sum(1) * keep).view(-1, 1, 1, 1, 1)

    mode, real = FakeTensorMode(), torch.Generator
    c = config(unet=replace(TINY.unet, latent=5))
    with mode:
        low = PlaneSpace(torch.zeros(3, 4, 8, 8, device="cuda"), torch.eye(4, device="cuda"))
        model = Upsampler(network, None, c, low, detail_space(low.weight))
        monkeypatch.setattr(torch, "Generator", lambda *_: real())  # there is none of a GPU here,
        monkeypatch.setattr(FakeTensor, "__bool__", lambda _: True)  # no value to look at,
        monkeypatch.setattr(upsampler, "resize_planes", lambda planes, _: planes.repeat(1, 1, 1, 2, 2))  # no kernel
        model.diffusion.denoiser = lambda network: network  # and no index
        walk = {"ddim": lambda denoise, x, grid, generator, callback, clip: clip(denoise(x, grid))}
        monkeypatch.setattr(upsampler, "SAMPLERS", walk)
        for z in (None, torch.zeros(2, 5)):
            made = model.upsample(torch.zeros(2, 3, 4, 8, 8), 1, noise=0.1, latents=z)
            assert made.device.type == "cuda" and made.shape == (2, 3, 4, 16, 16)


def test_what_ancestral_sampling_adds_is_not_what_it_began_with(random, truth, monkeypatch):
    """Whoever it is that has the noise, at the same place of the batch or at another."""
    seen = []

    def spy(denoise, x, grid, generator, callback, clip):
        seen.append((x, torch.randn(2 * x.numel(), generator=generator)))
        return x

    monkeypatch.setitem(upsampler.SAMPLERS, "ancestral", spy)
    small = resize_planes(truth, 8)
    for seed in (0, 5, -3, 2**64 - 2):
        random.upsample(small, 1, seed, "ancestral", noise=0.1)
        (start, added), _ = seen.pop(), seen.clear()
        given = torch.stack([randn(3, 4, 8, 8, seed=seed + i).flatten() for i in range(2)])
        for noise in (*start.flatten(1), *given):
            places = torch.isin(noise, added)
            assert places.float().mean() < 0.01, seed


def test_noise_on_the_condition_is_of_that_deviation_and_told_as_its_log_snr(fitted, truth):
    deviations = torch.tensor([0.01, 0.1, 0.3, 1.0, 3.0])
    torch.testing.assert_close(told(deviations).exp(), 1 / deviations.square())  # of unit variance
    assert told(torch.tensor([0.0, 1e-9, 1e-4])).tolist() == [CLEAREST] * 3
    assert (told(torch.linspace(0.007, 10, 500)).diff() < 0).all()
    model, small = untrained(fitted), resize_planes(truth, 8).repeat(40, 1, 1, 1, 1)
    model.network = Knows(torch.zeros(80, 3, 4, 16, 16))
    model.upsample(small, 1, noise=0.5)
    ((x, levels),) = model.network.calls
    assert levels[:, 1].tolist() == pytest.approx([-2 * np.log(0.5)] * 80)
    added = x[:, :, 4:] - resize_planes(model.low.standardise(small), 16)
    expected = resize_planes(0.5 * randn(80, 3, 4, 8, 8), 16)
    assert float(added.std() / expected.std()) == pytest.approx(1, rel=0.02) and added.mean().abs() < 0.01


@torch.no_grad()
def test_the_network_sees_both_levels_and_what_is_given(random):
    """One of them is changed, for one of two people."""
    x, levels, one = randn(2, 3, 8, 16, 16), torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([1.0, 0.0])
    base, found = random.network(x, levels), []
    for i in range(2):
        found.append(random.network(x, levels + 0.3 * one[:, None] * torch.eye(2)[i]))
        half = torch.arange(8) // 4 == i
        found.append(random.network(x + 0.1 * one.view(2, 1, 1, 1, 1) * half[:, None, None], levels))
    for i, changed in enumerate(found):
        torch.testing.assert_close(changed[1], base[1])
        assert all((changed - other)[0].abs().max() > 1e-3 for other in [base, *found[:i]])


def test_checkpointing_changes_memory_alone(monkeypatch):
    c = replace(TINY.unet, dropout=0.2, attention=(8,), head_width=8)
    calls, found, forward = [], [], ResBlock.forward
    monkeypatch.setattr(ResBlock, "forward", lambda self, *x: (calls.append(1), forward(self, *x))[1])
    torch.manual_seed(0)
    plain = randomised(UNet(c, 4, 16, outputs=1, given=4, levels=2))
    for checkpointing in (False, True):
        network, calls[:] = deepcopy(plain), []
        network.config = replace(c, checkpointing=checkpointing)
        torch.manual_seed(1)  # of the dropout
        out = network(randn(2, 3, 8, 16, 16), torch.tensor([[1.0, 2.0], [-1.0, 3.0]]))
        out.square().mean().backward()
        found.append((out, [p.grad for p in network.parameters()], len(calls)))
    assert found[1][2] == 2 * found[0][2] and found[0][0].std() > 0.1  # they were computed again
    torch.testing.assert_close(found[1][:2], found[0][:2])


def test_augmentation_repeats_with_its_generator_alone_and_may_do_nothing():
    low, state = randn(4, 3, 2, 8, 8), torch.get_rng_state()
    (a, noise), (again, _), (other, _) = (augment(low, AugmentConfig(), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, again) and not torch.allclose(a, other) and len(set(noise.tolist())) == 4
    same, noise = augment(low, CLEAN, seeded())
    assert torch.equal(same, low) and not noise.any() and torch.equal(torch.get_rng_state(), state)


def test_noise_has_each_persons_variance():
    low = randn(5, 3, 4, 48, 48)
    spoiled, noise = augment(low, replace(CLEAN, noise=0.7), seeded())
    torch.testing.assert_close((spoiled - low).var((1, 2, 3, 4)), noise.square(), rtol=0.05, atol=0)
    _, noise = augment(torch.zeros(1000, 3, 1, 2, 2), replace(CLEAN, noise=0.7), seeded())
    assert kstest(noise.numpy() / 0.7, "uniform").pvalue > 0.01


def test_a_point_becomes_a_gaussian():
    """Of the given deviation, by its moments; `augment` draws them evenly up to their bound."""
    deviation, point, places = torch.tensor([0.0, 0.8, 1.5, 3.0]), torch.zeros(4, 3, 2, 41, 41), torch.arange(41.0)
    point[..., 18, 21] = 1
    blurred = gaussian_blur(point, deviation)
    assert torch.equal(blurred[0], point[0])
    for axis, middle in ((-1, 18), (-2, 21)):
        along = blurred.sum(axis)
        torch.testing.assert_close(along.sum(-1), torch.ones(4, 3, 2))  # the mean is kept
        torch.testing.assert_close(along @ places, torch.full((4, 3, 2), float(middle)))
        second = along @ (places - middle).square()
        torch.testing.assert_close(second, deviation.square().view(4, 1, 1).expand(4, 3, 2), rtol=0.03, atol=1e-5)
    spoiled, noise = augment(point[:1].expand(200, 3, 2, 41, 41), replace(CLEAN, blur=4.0), seeded())
    drawn = (spoiled[:, 0, 0].sum(-1) @ (places - 18).square()).sqrt()
    assert kstest(drawn.numpy() / 4, "uniform").pvalue > 0.01 and not noise.any()


def test_blur_is_scipys_and_everybodys_own():
    planes, deviation = randn(4, 3, 2, 12, 12), torch.tensor([0.0, 0.6, 1.0, 2.0])
    blurred = gaussian_blur(planes, deviation)
    for i, d in enumerate(deviation.tolist()):
        wanted = gaussian_filter(planes[i].numpy(), (0, 0, d, d), mode="nearest", truncate=6)
        torch.testing.assert_close(blurred[i], torch.from_numpy(wanted), atol=0.02, rtol=0)
        torch.testing.assert_close(gaussian_blur(planes[[i]], deviation[[i]])[0], blurred[i], atol=1e-6, rtol=1e-5)
    flat = torch.full((4, 3, 2, 12, 12), 0.7)
    torch.testing.assert_close(gaussian_blur(flat, deviation), flat)


def test_fewer_texels_are_those_of_every_size_between_the_bounds():
    low = randn(40, 3, 1, 16, 16)
    spoiled, _ = augment(low, replace(CLEAN, smallest=0.5), seeded())
    ways = {n: resize_planes(resize_planes(low, n), 16) for n in range(2, 17)}
    fits = [{n for n, way in ways.items() if torch.allclose(way[i], spoiled[i], atol=1e-6)} for i in range(40)]
    assert all(len(sizes) == 1 for sizes in fits) and set().union(*fits) == set(range(8, 17))


@pytest.fixture(scope="module")
def trained(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("upsampler")
    return folder, train_upsampler(fitted, config(), folder, validation=fitted, show_progress=False)


def rows(folder):
    with open(folder / "log.csv", encoding="utf-8") as file:
        return [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(file)]


def file_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def test_the_losses_are_nil_for_a_network_that_knows(fitted, truth):
    """It is told of the noise that the condition was spoiled with, and adds what the spoiled one lacks."""
    model = untrained(fitted, augment=AugmentConfig(noise=0.5), rendered=2)
    spoiled, noise = augment(model.low.standardise(resize_planes(truth, 8)), model.config.upsampler.augment, seeded())
    detail = model.detail.standardise(truth - resize_planes(model.low.unstandardise(spoiled), 16))
    eyes, people = PerceptualDistance("efficientnet-lite0"), torch.arange(2)
    looks = PictureLosses(model.shared.decoder, model.config.render, Views.around(TINY, 4), eyes, 0.2)
    network = Knows(detail)
    losses = upsampler_losses(model, network, truth, people, looks, seeded())
    ((x, levels),) = network.calls
    torch.testing.assert_close(x[:, :, 4:], resize_planes(spoiled, 16))
    torch.testing.assert_close(levels[:, 1], -2 * noise.log())
    assert all(value.abs().max() < 1e-6 for value in losses.values())
    network.detail = (detail + 20 * randn(*detail.shape)).requires_grad_(True)
    losses = upsampler_losses(model, network, truth, people, looks, seeded())
    simple, perceptual = losses["simple"].detach(), losses["perceptual"].detach()
    assert simple.tolist() == pytest.approx([400] * 2, rel=0.1) and perceptual.shape == (2,) and perceptual.min() > 1e-3
    torch.testing.assert_close(losses["loss"].detach(), simple.mean() + 0.2 * perceptual.mean())
    (gradient,) = torch.autograd.grad(losses["perceptual"].sum(), network.detail)
    assert (gradient.abs().amax((2, 3, 4)) > 1e-7).all()
    alone = upsampler_losses(model, network, truth, people, None, seeded())
    assert set(alone) == {"loss", "simple"} and torch.equal(alone["loss"], alone["simple"].mean())


def test_training_leaves_model_log_curve_and_renders(trained, truth):
    folder, model = trained
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "decoder.safetensors", "log.csv", "loss.png", "preview-000006.png"} <= names
    log, small = rows(folder), resize_planes(truth, 8)
    assert [row["step"] for row in log] == [2, 4, 6] and all(row["perceptual"] > 0 < row["simple"] for row in log)
    for key, planes in (("validation", model.upsample(small)), ("validation_enlarged", resize_planes(small, 16))):
        assert log[-1][key] == pytest.approx(float(model.detail.standardise(planes - truth).square().mean()), rel=1e-4)
    assert torch.equal(Upsampler.load(folder, "cpu").upsample(small, 3, seed=1), model.upsample(small, 3, seed=1))


def test_everybody_in_a_preview_has_noise_of_their_own(fitted, truth, tmp_path, monkeypatch):
    """And the latent that is theirs."""
    seeds, z, given = [], randn(6, 5), []

    def spy(self, planes, seed, latents):
        seeds.extend(range(seed, seed + len(planes)))
        given.append(latents)
        return resize_planes(planes, 16)

    monkeypatch.setattr(Upsampler, "upsample", spy)
    model = untrained(fitted, unet=replace(TINY.unet, latent=5))
    upsampler_training._previews(model, tmp_path, truth.repeat(3, 1, 1, 1, 1), z)(1)
    assert len(set(seeds)) == len(seeds) == 6 and torch.equal(torch.cat(given), z)


def test_detail_is_learned(fitted, tmp_path):
    """Two people by heart: what was enlarged comes nearer to the truth than what is given."""
    long = {"steps": 150, "lr": 1e-2, "log_every": 150, "preview_every": 150, "checkpoint_every": 150}
    given = config(long, augment=CLEAN, perceptual_weight=0.0)
    train_upsampler(fitted, given, tmp_path, validation=fitted, show_progress=False)
    (log,) = rows(tmp_path)
    assert log["validation"] < 0.4 * log["validation_enlarged"] and "perceptual" not in log


def test_an_interrupted_training_ends_with_the_same_weights(trained, fitted, tmp_path, monkeypatch):
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return upsampler_losses(*args)

    monkeypatch.setattr(upsampler_training, "upsampler_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_upsampler(fitted, config(), tmp_path, validation=fitted, show_progress=False)
    train_upsampler(fitted, config(), tmp_path, validation=fitted, show_progress=False)
    assert len(calls) == 8  # the checkpoint was of step 4
    whole, broken = (file_of(folder)[0] for folder in (trained[0], tmp_path))
    assert whole.keys() == broken.keys() and all(torch.equal(whole[key], broken[key]) for key in whole)
    refused("other data or settings", train_upsampler, fitted, config(augment=CLEAN), tmp_path, show_progress=False)


def test_photographs_are_looked_at_in_training(trained, fitted, captures, tmp_path):
    train_upsampler(fitted, config({"steps": 2}), tmp_path, captures=captures, show_progress=False)
    assert [file_of(folder)[1]["photographs"] for folder in (tmp_path, trained[0])] == ["True", "False"]
    assert rows(tmp_path)[0]["perceptual"] > 1.5 * rows(trained[0])[0]["perceptual"]  # fitted so badly


def test_people_and_avatars_gain_texels_and_keep_their_names(random, fitted, tmp_path, truth):
    wanted = random.upsample(resize_planes(truth, 8), 3, 7, noise=0.1)
    for out, batch in ((tmp_path / "1", 1), (tmp_path / "2", 2)):  # the batch makes no difference
        made = upsample_people(random, fitted, out, 3, 7, 0.1, reduce=True, batch=batch, show_progress=False)
        assert made.names == FittedPlanes(fitted).names == FittedPlanes(out).names
        found = torch.stack([FittedPlanes(out).planes(name) for name in made.names])
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)  # float16 on disk
    small = random.reduced(Avatar.load(fitted / "one"))
    made = random.avatar(small, steps=3, seed=7, noise=0.1)
    torch.testing.assert_close(made.planes, wanted[0], atol=1e-4, rtol=0)
    assert small.planes.shape == (3, 4, 8, 8) and made.render(size=16).shape == (16, 16, 4)


def test_no_steps_enlarge_and_add_nothing(random, truth):
    low = resize_planes(truth[:2], random.config.triplane.base_resolution)
    made = random.upsample(low, 0)
    torch.testing.assert_close(made, resize_planes(low, random.config.triplane.resolution), atol=1e-5, rtol=0)


def test_a_folder_that_was_half_done_is_finished(random, fitted, tmp_path, monkeypatch):
    """And one that is done is left alone; nothing is done twice."""
    call = {"steps": 2, "seed": 3, "reduce": True, "batch": 1, "show_progress": False}
    whole = upsample_people(random, fitted, tmp_path / "whole", **call)
    calls, real = [], Upsampler.upsample

    def killed(self, *args, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args, **more)

    monkeypatch.setattr(Upsampler, "upsample", killed)
    with pytest.raises(KeyboardInterrupt):
        upsample_people(random, fitted, tmp_path / "half", **call)
    assert len(FittedPlanes(tmp_path / "half")) == 1
    made = upsample_people(random, fitted, tmp_path / "half", **call)
    assert len(calls) == 3 and made.names == whole.names == upsample_people(random, fitted, made.folder, **call).names
    assert len(calls) == 3 and all(torch.equal(made.planes(name), whole.planes(name)) for name in whole.names)
    assert json.loads((made.folder / "made_by.json").read_text())["seed"] == 3


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_people_that_are_there_already_are_never_written_over(random, fitted, truth, tmp_path):
    """Neither those that detail is to be added to, nor others, nor those of another run."""
    ours = shutil.copytree(fitted, tmp_path / "ours")
    theirs = folder_of(tmp_path / "theirs", truth[0], stranger(fitted))
    decoder = tmp_path / "decoder" / "decoder.safetensors"
    stranger(fitted).save(decoder)
    call = {"steps": 1, "reduce": True, "show_progress": False}
    done = upsample_people(random, fitted, tmp_path / "done", **call).folder
    for out in (ours, theirs, decoder.parent):
        before = contents(out)
        refused("left by other people, model or settings", upsample_people, random, ours, out, **call)
        assert contents(out) == before
    before, other = contents(done), deepcopy(random)
    other.network.enter.bias.data += 1
    for model, changes in ((random, {"steps": 2}), (random, {"seed": 1}), (random, {"noise": 0.1}), (other, {})):
        refused("left by other people", upsample_people, model, fitted, done, **{**call, **changes})
    folder_of(tmp_path / "others", truth[0] / 2, FittedPlanes(fitted).decoder)
    refused("left by other people", upsample_people, random, tmp_path / "others", done, **call)
    assert contents(done) == before


def refused(said, call, *args, kind=CheckpointError, **more):
    with pytest.raises(kind, match=said) as error:
        call(*args, **more)
    assert "\n" not in str(error.value)


def folder_of(folder, planes, shared):
    folder.mkdir()
    shared.save(folder / "decoder.safetensors")
    FittedPlanes(folder).write_shard({"a": planes}, shared)
    return folder


def stranger(fitted):
    """What planes of another decoder come with."""
    ours = FittedPlanes(fitted).decoder
    decoder = TriplaneDecoder(4, ours.config.decoder)
    return SharedDecoder(decoder, ours.config, ours.mean_planes, ours.mean, ours.std)


def test_planes_and_settings_that_do_not_fit_are_one_line(random, truth, fitted, tmp_path):
    small, other = resize_planes(truth, 8), stranger(fitted)
    for bad in (truth, small[0], small[:, :2], small[:, :, :3], small[..., :7]):
        refused(r"wants \(B, 3, 4, 8, 8\)", random.upsample, bad)
    for bad in (small[:0], small * torch.nan, torch.where(small == small.max(), torch.inf, small)):
        refused("nobody to add detail to, or planes hold NaN", random.upsample, bad)
    refused(r"latents have shape \(2, 6\), the upsampler wants none", random.upsample, small, latents=randn(2, 6))
    for noise in (float("nan"), -0.1, 11.0, float("inf")):
        refused("noise is", random.upsample, small, noise=noise, kind=ConfigError)
    refused("unknown sampler 'euler'", random.upsample, small, sampler="euler", kind=ConfigError)
    refused("-1 sampling steps", random.upsample, small, steps=-1, kind=ConfigError)
    refused("another decoder", random.avatar, Avatar(small[0], other.decoder, other.config))
    refused("wants", random.avatar, Avatar(truth[0], random.shared.decoder, other.config))
    refused("wants", upsample_people, random, fitted, tmp_path / "b", show_progress=False)
    upsample_people(random, fitted, tmp_path / "b", 1, reduce=True, show_progress=False)  # that is not in the way
    refused("another decoder", upsample_people, random, folder_of(tmp_path / "a", small[0], other), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    for nobody in (tmp_path / "empty", tmp_path / "nowhere"):
        refused(f"{nobody} holds no planes", upsample_people, random, nobody, tmp_path / "out", kind=DataError)
        for folders in ((nobody, fitted), (fitted, nobody)):
            said = f"0 (people )?in {nobody}.* at least 4"
            refused(said, tune_augmentation, *folders, tmp_path / "out", show_progress=False, kind=DataError)
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_it_in_one_line(trained, fitted, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    avatar = Avatar.load(fitted / "one").save(tmp_path / "one.safetensors")
    before = avatar.read_bytes()
    cases = {
        f"{tmp_path / 'empty'} holds no planes": (tmp_path / "empty", tmp_path / "out"),
        "nowhere does not exist": (tmp_path / "nowhere", tmp_path / "out"),
        "one.safetensors is what detail is to be added to": (avatar, avatar),
        "fitted0 is what detail is to be added to": (fitted, fitted / ".." / fitted.name),
        "left by other people": (fitted, folder_of(tmp_path / "theirs", torch.zeros(3, 4, 16, 16), stranger(fitted))),
    }
    for said, (people, out) in cases.items():
        argv = ["upsample", people, "--model", trained[0], "--out", out, "--reduce", "--steps", "1"]
        assert cli.main([str(word) for word in argv]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error, error
    assert avatar.read_bytes() == before and not (tmp_path / "out").exists()


def test_data_that_do_not_fit_are_one_line(fitted, captures, truth, tmp_path):
    def trains(said, data=fitted, given=None, **more):
        refused(said, train_upsampler, data, given or config(), tmp_path / "out", show_progress=False, **more)

    shared, wide = FittedPlanes(fitted).decoder, config()
    trains("different decoders", validation=folder_of(tmp_path / "a", truth[0], stranger(fitted)))
    shared.config = replace(shared.config, triplane=replace(shared.config.triplane, resolution=8))
    trains("planes of 8², which nothing", folder_of(tmp_path / "b", resize_planes(truth, 8)[0], shared))
    trains("4 channels, preset 'tiny' 5", given=replace(wide, triplane=replace(wide.triplane, channels=5)))
    trains("patches of 25 pixels", given=config(patch=25), kind=ConfigError)
    trains("pictures of 24×24", given=config(patch=25, view=64), kind=DataError, captures=captures)
    one = folder_of(tmp_path / "c", truth[0], FittedPlanes(fitted).decoder)
    trains(r"do not differ \(1 there\): fit at least 2", one, kind=DataError)
    trains("no capture of one", kind=DataError, captures=captures / "two")
    trains("unknown perceptual network 'eyes'", given=config(perceptual="eyes"))
    trains("cannot be halved 4 times", given=config(unet=replace(TINY.unet, channels=(8,) * 5)), kind=ConfigError)
    trains("unknown prediction", given=config(diffusion=DiffusionConfig(prediction="y")), kind=ConfigError)
    trains(r"decoder\.safetensors does not exist", tmp_path / "nowhere")


SETTINGS = {
    "elsewhere is -0.1": {"elsewhere": -0.1},
    "elsewhere is nan": {"elsewhere": np.nan},
    "perceptual_weight is -1": {"perceptual_weight": -1},
    "rendered is 0: give at least 1, or perceptual_weight 0": {"rendered": 0},
    r"face is \(0.0, 1.0\): give three numbers": {"face": (0.0, 1.0)},
    r"face is \(0.0, 1.0, nan\)": {"face": (0.0, 1.0, np.nan)},
    "face_radius is 0": {"face_radius": 0.0},
    "view is 0": {"view": 0},
    "steps is 0: give at least 1": {"steps": 0},
    "diffusion.steps is 0": {"diffusion": replace(TINY.diffusion, steps=0)},
    "0 steps of batch": {"train": replace(TINY.train, steps=0)},
    **{f"augment.noise is {v}": {"augment": AugmentConfig(noise=v)} for v in (-0.1, np.nan, np.inf)},
    **{f"augment.blur is {v}": {"augment": AugmentConfig(blur=v)} for v in (-1, np.nan, np.inf)},
    **{f"augment.smallest is {v}": {"augment": AugmentConfig(smallest=v)} for v in (0, -0.5, 1.01, np.nan)},
}


@pytest.mark.parametrize("said", SETTINGS)
def test_settings_that_mean_nothing_are_one_line(said, fitted, tmp_path):
    given = replace(tiny_config(), upsampler=replace(TINY, **SETTINGS[said]))
    refused(said, train_upsampler, fitted, given, tmp_path / "out", show_progress=False, kind=ConfigError)


def test_a_file_of_magnitudes_is_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "augmentation.json"
    path.write_text(json.dumps({"augment": {"smallest": 0.7, "blur": 1, "noise": 0.2}, "people": 4}))
    assert read_augmentation(path) == AugmentConfig(0.7, 1.0, 0.2)
    for bad in ("", "[1]", "{}", '{"augment": [1]}', '{"augment": {"noise": "much"}}', '{"augment": {"fog": 1.0}}'):
        path.write_text(bad)
        refused("is not what `minirodin tune` writes", read_augmentation, path)
    refused("is not what", read_augmentation, tmp_path / "nowhere.json")


def other_network(tensors, metadata):
    values = json.loads(metadata["config"])
    values["upsampler"]["unet"]["variant"] = "stacked"
    metadata["config"] = json.dumps(values)


def other_channels(tensors, metadata):
    values = json.loads(metadata["config"])
    values["triplane"]["channels"] = 6
    metadata["config"] = json.dumps(values)


CHANGES = {
    r"statistics \(low_mean\)": lambda tensors, metadata: tensors.pop("low_mean"),
    r"statistics \(low_weight\)": lambda tensors, metadata: tensors.pop("low_weight"),
    r"statistics \(detail_weight\)": lambda tensors, metadata: tensors.update(detail_weight=torch.ones(3, 3)),
    r"statistics \(low_mean\): train": other_channels,
    r"unusable statistics \(low_mean": lambda tensors, metadata: tensors["low_mean"][0, 0].fill_(torch.nan),
    r"unusable statistics \(low_weight": lambda tensors, metadata: tensors["low_weight"][1].fill_(0),
    r"unusable statistics \(detail_weight": lambda tensors, metadata: tensors["detail_weight"].fill_(1),
    "configuration .unknown variant 'stacked'": other_network,
    "enter.bias has shape None": lambda tensors, metadata: tensors.pop("network.enter.bias"),
    "NaN or infinite": lambda tensors, metadata: tensors["network.enter.bias"].fill_(torch.nan),
    "not trained on planes of the decoder": lambda tensors, metadata: metadata.update(decoder="0"),
    "holds 'base'": lambda tensors, metadata: metadata.update(kind="base"),
    "no usable configuration": lambda tensors, metadata: metadata.pop("config"),
}


def test_model_files_that_do_not_fit_are_one_line(trained, fitted, tmp_path):
    model, decoder = tmp_path / "model.safetensors", tmp_path / "decoder.safetensors"
    model.write_bytes(whole := (trained[0] / model.name).read_bytes())
    refused(r"decoder\.safetensors does not exist", Upsampler.load, tmp_path)
    stranger(fitted).save(decoder)
    refused("not trained on planes of the decoder beside it", Upsampler.load, tmp_path)
    decoder.write_bytes((trained[0] / decoder.name).read_bytes())
    assert Upsampler.load(tmp_path, "cpu").config == trained[1].config
    for said, change in CHANGES.items():
        tensors, metadata = file_of(trained[0])
        metadata.pop("sha256", None)  # as who means harm would
        change(tensors, metadata)
        save_file(tensors, model, metadata)
        refused(said, Upsampler.load, tmp_path)
    model.write_bytes(whole[:-100])
    refused("cut short", Upsampler.load, tmp_path)


# -- with latents -------------------------------------------------------------------------------------------------

Z = 6
KNOWING = replace(TINY.unet, latent=Z)


@pytest.fixture(scope="module")
def known(fitted, tmp_path_factory):
    """Fitted planes with latents beside them, three versions of each."""
    folder = shutil.copytree(fitted, tmp_path_factory.mktemp("known") / "fitted")
    Latents(FittedPlanes(folder).names, randn(2, 3, Z), "E").save(folder / "latents.safetensors")
    return folder


def test_the_latent_of_each_person_goes_with_its_planes_and_is_withheld_at_times(known, tmp_path, monkeypatch):
    planes, latents = load_planes(known, 16)[0].float(), Latents.load(known / "latents.safetensors").latents.float()
    of, seen, kept = {tuple(z.tolist()): planes[i] for i in range(2) for z in latents[i]}, set(), []
    long = {"steps": 30, "batch": 8, "log_every": 30, "preview_every": 30, "checkpoint_every": 30}

    def spying(model, network, truth, *more):
        def spied(x, levels, z, keep):
            for row, person in zip(z.tolist(), truth, strict=True):
                assert torch.equal(person, of[tuple(row)])
                seen.add(tuple(row))
            kept.extend(keep.tolist())
            return network(x, levels, z, keep)

        return upsampler_losses(model, spied, truth, *more)

    monkeypatch.setattr(upsampler_training, "upsampler_losses", spying)
    given = config(long, unet=KNOWING, perceptual_weight=0.0)
    train_upsampler(known, given, tmp_path, validation=known, show_progress=False)
    share = 1 - sum(kept) / len(kept)
    assert seen == set(of) and abs(share - 0.2) < 4 * (0.2 * 0.8 / len(kept)) ** 0.5, share


@pytest.fixture(scope="module")
def knowing(known, tmp_path_factory):
    folder = tmp_path_factory.mktemp("knowing")
    model = train_upsampler(known, config(unet=KNOWING), folder, validation=known, show_progress=False)
    loaded = Upsampler.load(folder, "cpu")
    small, z = resize_planes(load_planes(known, 16)[0].float(), 8), randn(2, Z)
    same, made = (m.upsample(small, 2, latents=z) for m in (loaded, model))
    assert loaded.encoder == "E" and torch.equal(same, made)
    randomised(loaded.network)
    return loaded


def test_detail_is_that_of_the_latent(knowing, known, truth, tmp_path):
    small, z = resize_planes(truth, 8), randn(2, Z)
    of, nobody = knowing.upsample(small, 3, latents=z), knowing.upsample(small, 3)
    others = [knowing.upsample(small, 3, latents=other) for other in (z.flip(0), torch.zeros(2, Z))]
    for a, b in ((of, nobody), (of, others[0]), (nobody, others[1])):  # nobody's latent is none, not zero
        assert (a - b).abs().amax((1, 2, 3, 4)).min() > 1e-3
    torch.testing.assert_close(of[1:], knowing.upsample(small[1:], 3, seed=1, latents=z[1:]), atol=1e-4, rtol=0)
    avatar = Avatar(small[0], knowing.shared.decoder, knowing.shared.config, Origin(z[0], 0, "E"))
    torch.testing.assert_close(knowing.avatar(avatar, 3).planes, of[0], atol=1e-4, rtol=0)
    avatar.origin = Origin(z[0], 0, "F")  # of another encoder it means nothing
    torch.testing.assert_close(knowing.avatar(avatar, 3).planes, nobody[0], atol=1e-4, rtol=0)
    call = {"steps": 3, "reduce": True, "show_progress": False}
    made = upsample_people(knowing, known, tmp_path / "out", **call, batch=1, latents=z)
    torch.testing.assert_close(torch.stack([made.planes(name) for name in made.names]), of, atol=1e-3, rtol=1e-3)
    refused("left by other people", upsample_people, knowing, known, tmp_path / "out", **call, latents=-z)
    refused(r"wants \(2, 6\)", knowing.upsample, small, latents=z[:1])


def test_latents_that_are_not_there_are_one_line(fitted, tmp_path):
    files = fitted, config(unet=KNOWING), tmp_path
    refused("latents.safetensors is missing", train_upsampler, *files, show_progress=False, kind=DataError)


# -- likeness -------------------------------------------------------------------------------------------------------


class Colours:
    """An encoder by formula: what colours a picture has in three parts of it, less grey."""

    fingerprint, source, size = "E", "formula", 12

    @property
    def towers(self):
        return self

    def to(self, device):
        return self

    def images(self, pictures):
        return torch.nn.functional.adaptive_avg_pool2d(pictures, (2, 1)).flatten(1) - 0.9


def test_likeness_is_nil_for_whom_the_latent_means_and_reaches_all_planes(fitted, truth):
    shared, encoder = FittedPlanes(fitted).decoder, Colours()
    camera, render = orbit_cameras(0, 0, 12), shared.config.render
    people = [Avatar(p, shared.decoder, shared.config) for p in truth]
    own = encoder.images(torch.cat([to_rgb(one.views(camera)).permute(0, 3, 1, 2) for one in people]))
    planes = truth.clone().requires_grad_(True)
    loss = likeness_loss(planes, own, shared.decoder, encoder, render)
    assert loss.shape == (2,) and loss.max() < 1e-5
    wrong = likeness_loss(planes, randn(2, Z), shared.decoder, encoder, render)
    assert wrong.min() > 1e-3
    (gradient,) = torch.autograd.grad(wrong.sum(), planes)
    assert (gradient.abs().amax((2, 3, 4)) > 0).all()


def test_who_was_nobody_may_look_like_anybody(fitted, truth):
    shared, people = FittedPlanes(fitted).decoder, torch.arange(2)
    looks = PictureLosses(shared.decoder, shared.config.render, None, encoder=Colours(), likeness_weight=2.0)
    keep, before = torch.tensor([True, False]), {"loss": torch.tensor(1.0)}
    found = looks.added_to(before, truth, truth, people, seeded(), randn(2, Z), keep)
    assert found["likeness"][0] > 1e-3 and found["likeness"][1] == 0
    assert float(found["loss"]) == pytest.approx(1 + float(found["likeness"][0]))


def test_those_who_are_looked_at_keep_their_own(knowing, truth):
    seen, z = [], randn(2, Z)

    class Looks:
        def added_to(self, result, planes, own, people, generator, latents, keep):
            seen.extend(zip(own, people.tolist(), latents, strict=True))
            return result

    for seed in range(8):  # one of the two each
        upsampler_losses(knowing, knowing.network, truth, torch.tensor([5, 7]), Looks(), seeded(seed), z)
    for own, person, latent in seen:
        i = [5, 7].index(person)
        assert torch.equal(own, truth[i]) and torch.equal(latent, z[i])
    assert {person for _, person, _ in seen} == {5, 7} and len(seen) == 8
