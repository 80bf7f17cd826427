"""E13–E16 through the files: a base model with latents, the model over latents, and the pipeline of both."""

import csv
import shutil
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config
from safetensors import safe_open
from safetensors.torch import save_file
from test_base import TINY

from minirodin import base_training, cli
from minirodin.avatar import Avatar
from minirodin.base import BaseModel, sample_people
from minirodin.base_training import load_planes, train_base
from minirodin.config import LatentConfig, TrainConfig
from minirodin.diffusion import Diffusion
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.latent import ImageTextEncoder
from minirodin.latent_diffusion import LatentModel, train_latent
from minirodin.latents import Latents
from minirodin.picture_losses import PictureLosses
from minirodin.pipeline import RodinPipeline
from minirodin.plane_space import PlaneSpace, visible_metric
from minirodin.shards import FittedPlanes

NAN = float("nan")
Z = 6


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def latents_of(names, encoder="E", versions=3, width=Z):
    return Latents(names, unit(len(names), versions, width), encoder, unit(len(names), 2, width, seed=1))


def config(**train):
    base = replace(TINY, unet=replace(TINY.unet, latent=Z), train=replace(TINY.train, **train))
    return replace(tiny_config(), base=base)


@pytest.fixture(scope="module")
def people(fitted, tmp_path_factory):
    """Fitted planes with latents beside them."""
    folder = shutil.copytree(fitted, tmp_path_factory.mktemp("people") / "fitted")
    latents_of(FittedPlanes(folder).names).save(folder / "latents.safetensors")
    return folder


@pytest.fixture(scope="module")
def trained(people, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    train_base(people, config(), folder, validation=people, show_progress=False)
    return folder


@pytest.fixture(scope="module")
def model(trained):
    return BaseModel.load(trained, "cpu")


def test_a_latent_and_a_seed_make_one_avatar(model):
    noise, z = model.noise(2, seed=3), unit(2, Z, seed=4)
    first, again = (model.sample(noise, 3, latent=z) for _ in range(2))
    assert torch.equal(first, again) and model.encoder == "E"
    assert not torch.equal(first, model.sample(noise, 3, latent=z.flip(0)))
    assert not torch.equal(first, model.sample(noise, 3))  # of nobody
    assert torch.equal(model.sample(noise, 3), model.sample(noise, 3, latent=z, guidance_scale=0.0))


def test_the_latent_of_each_person_goes_with_its_planes(people, tmp_path, monkeypatch):
    planes, names = load_planes(people, config().triplane.base_resolution)
    space = PlaneSpace.of(planes, visible_metric(planes, FittedPlanes(people).decoder.decoder, config().render))
    planes = dict(zip(names, space.standardise(planes), strict=True))
    latents = Latents.load(people / "latents.safetensors")
    rows = zip(latents.names, latents.latents.float(), strict=True)
    known = {tuple(z.tolist()): name for name, row in rows for z in row}
    seen, kept = set(), []
    losses = Diffusion.losses

    def spy(self, network, x0, generator, *condition, weight):
        if condition:
            kept.extend(condition[1].tolist())
            for x, z in zip(x0, condition[0], strict=True):
                torch.testing.assert_close(x, planes[known[tuple(z.tolist())]])
                seen.add(tuple(z.tolist()))
        return losses(self, network, x0, generator, *condition, weight=weight)

    monkeypatch.setattr(Diffusion, "losses", spy)
    train_base(people, config(steps=40, batch=16, preview_every=40, checkpoint_every=40), tmp_path, show_progress=False)
    assert seen == set(known)  # every version of everybody
    share = 1 - sum(kept) / len(kept)
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / len(kept)) ** 0.5, share  # E14


def test_training_goes_on_under_another_encoder(people, trained, model, tmp_path):
    others, known = shutil.copytree(people, tmp_path / "others"), Latents.load(people / "latents.safetensors")
    Latents(known.names, known.latents.flip(0), "F").save(others / "latents.safetensors")
    settings = config(steps=1, lr=0.0)
    further = train_base(others, settings, tmp_path / "further", show_progress=False, start=trained)
    assert further.encoder == BaseModel.load(tmp_path / "further", "cpu").encoder == "F"
    assert all(map(torch.equal, further.network.parameters(), model.network.parameters()))


class Colours:
    """An encoder by formula: what colours a picture has in its two halves, less a light grey."""

    fingerprint, source, size = "E", "formula", 12
    towers = property(lambda self: self)

    def to(self, device):
        return self

    def images(self, pictures):
        return F.adaptive_avg_pool2d(pictures, (2, 1)).flatten(1) - 0.9


def test_pictures_are_of_those_who_are_clear_and_compared_with_their_own(people, tmp_path, monkeypatch):
    """With hardly any noise what is predicted is the truth, whatever the network; with much nobody is looked at."""
    planes, latents = load_planes(people, 8)[0].float(), Latents.load(people / "latents.safetensors").latents.float()
    looked, added_to = [], PictureLosses.added_to

    def spy(self, result, made, truth, who, generator, z, keep):
        assert self.views.config.elsewhere == 0.4 and self.views.config.patch == 12
        looked.append((made, truth, z, keep))
        return added_to(self, result, made, truth, who, generator, z, keep)

    monkeypatch.setattr(PictureLosses, "added_to", spy)
    monkeypatch.setattr(ImageTextEncoder, "load", lambda *_: Colours())
    c = config(steps=4, batch=4)
    pictured = replace(c.base, perceptual_weight=0.2, likeness_weight=0.3, rendered=3, elsewhere=0.4)
    e19 = replace(c.upsampler, view=24, patch=12)

    def train(out, low, high):
        process = replace(c.base.diffusion, log_snr_min=low, log_snr_max=high)
        given = replace(c, base=replace(pictured, diffusion=process), upsampler=e19)
        train_base(people, given, tmp_path / out, show_progress=False)
        return list(csv.DictReader((tmp_path / out / "log.csv").read_text().splitlines()))

    rows = train("clear", 11.0, 14.0)
    for made, truth, z, keep in looked:
        assert len(made) == len(truth) == len(z) == len(keep) == 3
        torch.testing.assert_close(made, truth, atol=0.02, rtol=0)
        for one, own in zip(truth, z, strict=True):
            (person,) = (i for i in range(len(planes)) if torch.equal(one, planes[i]))
            assert any(torch.equal(own, version) for version in latents[person])
    for row in ({k: float(v) for k, v in row.items() if v} for row in rows):
        parts = row["simple"] + c.base.diffusion.vlb_weight * row["vlb"]
        assert row["loss"] == pytest.approx(parts + 0.2 * row["perceptual"] + 0.3 * row["likeness"], rel=1e-4)
        assert 0 <= row["perceptual"] < 0.05
    assert len(looked) == 4
    monkeypatch.setattr(base_training, "BELOW", -0.1)  # all are noisier than that
    assert "likeness" not in train("noisy", 11.0, 14.0)[0] and len(looked) == 4


@pytest.mark.parametrize(
    "wrong", [{"rendered": 0}, {"likeness_weight": -1.0}, {"perceptual_weight": NAN}, {"elsewhere": NAN}]
)
def test_pictures_that_cannot_be_asked_for_are_one_line(people, tmp_path, wrong):
    given = config()
    given = replace(given, base=replace(given.base, **{"perceptual_weight": 0.1, **wrong}))
    with pytest.raises(ConfigError, match=r"^base\.perceptual_weight and likeness_weight are .*$"):
        train_base(people, given, tmp_path, show_progress=False)
    with pytest.raises(ConfigError, match="is about latents"):  # of nobody nobody can be like
        nobody = replace(TINY, likeness_weight=0.1)
        train_base(people, replace(given, base=nobody), tmp_path, show_progress=False)


def test_likeness_wants_the_encoder_of_the_latents_beside_it(people, tmp_path, monkeypatch):
    given = config()
    given = replace(given, base=replace(given.base, likeness_weight=0.1))
    with pytest.raises(CheckpointError, match="neither a folder"):
        train_base(people, given, tmp_path / "a", show_progress=False)
    other = SimpleNamespace(fingerprint="of another", source="somebody's")
    monkeypatch.setattr(ImageTextEncoder, "load", lambda *_: other)
    with pytest.raises(CheckpointError, match=r"^somebody's is another encoder than that of the latents"):
        train_base(people, given, tmp_path / "b", show_progress=False)


def test_planes_without_latents_are_refused(fitted, people, tmp_path):
    with pytest.raises(DataError, match="minirodin encode"):
        train_base(fitted, config(), tmp_path / "a", show_progress=False)
    folder = shutil.copytree(people, tmp_path / "part")
    names = FittedPlanes(folder).names
    latents_of(names[1:]).save(folder / "latents.safetensors")
    with pytest.raises(DataError, match=f"no latent of {names[0]}"):
        train_base(folder, config(), tmp_path / "b", show_progress=False)
    latents_of(names, width=4).save(folder / "latents.safetensors")
    with pytest.raises(DataError, match=r"latents of 4 numbers, unet.latent is 6"):
        train_base(folder, config(), tmp_path / "c", show_progress=False)


def test_bad_conditions_are_refused(model, people, tmp_path):
    noise = model.noise(2, seed=0)
    for z in (unit(3, Z), unit(2, Z + 1)):
        with pytest.raises(CheckpointError, match="latents have shape"):
            model.sample(noise, 2, latent=z)
    for scale, rescale in ((float("nan"), 0.0), (1e9, 0.0), (2.0, 1.5)):
        with pytest.raises(ConfigError, match="guidance scale"):
            model.sample(noise, 2, latent=unit(2, Z), guidance_scale=scale, guidance_rescale=rescale)
    train_base(people, replace(tiny_config(), base=TINY), tmp_path, show_progress=False)
    with pytest.raises(CheckpointError, match="wants none"):
        BaseModel.load(tmp_path, "cpu").sample(noise, 2, latent=unit(2, Z))


def test_people_are_sampled_for_their_latents(model, tmp_path, monkeypatch):
    z, given, sample = unit(3, Z, seed=9), [], BaseModel.sample

    def spy(self, noise, *settings, latent, guidance_scale):
        given.append((noise, latent, guidance_scale))
        return sample(self, noise, *settings, latent=latent, guidance_scale=guidance_scale)

    monkeypatch.setattr(BaseModel, "sample", spy)
    call = {"steps": 2, "batch": 2, "views": (0.0,), "show_progress": False}
    people = sample_people(model, 3, tmp_path, **call, latents=z, guidance_scale=1.5)
    noises, latents, scales = zip(*given, strict=True)
    assert torch.equal(torch.cat(latents), z) and scales == (1.5, 1.5)
    torch.testing.assert_close(torch.cat(noises), model.noise(3, seed=0))
    alone = sample(model, model.noise(1, seed=2), 2, latent=z[2:], guidance_scale=1.5)[0]
    torch.testing.assert_close(people.planes("sample-000002"), alone, rtol=1e-2, atol=2e-3)


# -- the model over latents ---------------------------------------------------------------------------------------

SMALL = LatentConfig(
    width=64,
    blocks=2,
    train=TrainConfig(**{"steps": 700, "batch": 256, "lr": 3e-3, "warmup": 20, "ema": 0.97, "log_every": 100}),
)
CENTRES = F.normalize(torch.tensor([[3.0, 0, 0, 1, 0, 0], [0, 3.0, 0, 1, 0, 0], [0, 0, 3.0, 1, 0, 0]]), dim=1)


def crowd(count, seed):
    """People of three kinds, each near its centre; a text names the kind."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(count) % 3
    z = F.normalize(CENTRES[kind][:, None] + 0.1 * torch.randn(count, 2, Z, generator=generator), dim=-1)
    return Latents([f"{i:04d}" for i in range(count)], z, "E", CENTRES[kind][:, None])


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    crowd(300, seed=0).save(folder / "latents.safetensors")
    crowd(99, seed=1).save(folder / "validation.safetensors")
    settings = replace(tiny_config(), latent=SMALL)
    files = folder / "latents.safetensors", settings, folder / "model", folder / "validation.safetensors"
    train_latent(*files, show_progress=False)
    return folder / "model"


def test_sampled_latents_are_distributed_as_the_data_and_are_no_copies(prior):
    z, data = LatentModel.load(prior, "cpu").sample(300), crowd(300, seed=0).latents[:, 0]
    torch.testing.assert_close(z.norm(dim=1), torch.ones(300))
    kinds = (z @ CENTRES.T).argmax(1).bincount(minlength=3) / 300
    assert (kinds - 1 / 3).abs().max() < 0.1
    assert (z.mean(0) - data.mean(0)).abs().max() < 0.08
    assert (z.T.cov() - data.T.cov()).abs().max() < 0.05
    nearest, usual = (torch.cdist(a, data).min(1).values.median() for a in (z, crowd(300, seed=2).latents[:, 0]))
    assert 0.6 * usual < nearest < 1.6 * usual  # as far from the training set as other people are


def test_a_text_chooses_the_kind(prior):
    model, wanted = LatentModel.load(prior, "cpu"), torch.arange(60) % 3
    z = model.sample(60, CENTRES[wanted], guidance_scale=1.5)
    assert ((z @ CENTRES.T).argmax(1) == wanted).float().mean() > 0.95


def test_a_sample_depends_on_its_own_seed_alone(prior):
    model = LatentModel.load(prior, "cpu")
    torch.testing.assert_close(model.sample(4, seed=10)[2:], model.sample(2, seed=12), rtol=1e-4, atol=1e-5)


def test_what_the_latent_model_refuses(prior, tmp_path):
    with pytest.raises(CheckpointError, match=r"the model wants \(2, 6\)"):
        LatentModel.load(prior, "cpu").sample(2, torch.zeros(1, Z))
    crowd(6, seed=0).save(tmp_path / "a.safetensors")
    other = crowd(6, seed=0)
    other.fingerprint = "F"
    other.save(tmp_path / "b.safetensors")
    settings = replace(tiny_config(), latent=SMALL)
    with pytest.raises(CheckpointError, match="another encoder"):
        train_latent(tmp_path / "a.safetensors", settings, tmp_path / "m", tmp_path / "b.safetensors")
    learned = replace(SMALL, diffusion=replace(SMALL.diffusion, vlb_weight=1e-3))
    with pytest.raises(ConfigError, match="vlb_weight"):
        train_latent(tmp_path / "a.safetensors", replace(settings, latent=learned), tmp_path / "m")


def test_people_are_sampled_for_latents_that_a_prior_draws(model, trained, prior, tmp_path, capsys):
    argv = ["sample", str(trained), "--count", "3", "--steps", "2", "--seed", "5", "--prior", str(prior)]
    assert cli.main([*argv, "--out", str(tmp_path / "a")]) == 0
    z = LatentModel.load(prior, "cpu").sample(3, seed=5)
    expected = model.sample(model.noise(3, seed=5), 2, seed=5, latent=z, guidance_scale=1.5)
    people = FittedPlanes(tmp_path / "a")
    for i, planes in enumerate(expected):
        torch.testing.assert_close(people.planes(f"sample-{5 + i:06d}"), planes, rtol=1e-2, atol=2e-3)
    both = [*argv, "--latents", "x.safetensors", "--out", str(tmp_path / "b")]
    assert cli.main(both) == 2 and "from a file or from a prior" in capsys.readouterr().err
    foreign = shutil.copytree(prior, tmp_path / "foreign")
    with safe_open(foreign / "model.safetensors", "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    metadata.pop("sha256")
    save_file(tensors, foreign / "model.safetensors", metadata | {"encoder": "F"})
    argv[-1] = str(foreign)
    assert cli.main([*argv, "--out", str(tmp_path / "c")]) == 2 and "another encoder" in capsys.readouterr().err


# -- the pipeline -------------------------------------------------------------------------------------------------


class Words:
    """An encoder of three words and of pictures of one colour."""

    fingerprint = "E"

    def texts(self, texts):
        return torch.stack([F.normalize(sum((CENTRES[i] for i, w in enumerate("abc") if w in t.split()),
                                            torch.full((Z,), 0.01)), dim=0) for t in texts])  # fmt: skip

    def images(self, pictures):
        return CENTRES[pictures.mean((2, 3)).argmax(1)]


@pytest.fixture(scope="module")
def pipe(model, prior):
    return RodinPipeline(model, Words(), LatentModel.load(prior, "cpu"))


def test_prompt_portrait_latent_or_nothing(pipe):
    import numpy as np

    green = np.zeros((32, 32, 3), np.uint8)
    green[..., 1] = 200
    made = pipe("b", num_inference_steps=2), pipe(image=green, num_inference_steps=2), pipe(num_inference_steps=2)
    assert (made[0].origin.latent @ CENTRES.T).argmax() == 1 and torch.equal(made[1].origin.latent, CENTRES[1])
    again = pipe(latent=made[2].origin.latent, seed=made[2].origin.seed, num_inference_steps=2)
    assert torch.equal(again.planes, made[2].planes)
    with pytest.raises(ConfigError, match="one of"):
        pipe("b", image=green)


def test_edits_move_the_latent_and_keep_the_noise(pipe, tmp_path):
    subject = pipe("a", seed=5, num_inference_steps=2)
    same = pipe.edit(subject, "b", "a", strength=0.0, num_inference_steps=2)
    torch.testing.assert_close(same.planes, subject.planes, rtol=1e-4, atol=1e-5)
    edited = pipe.edit(subject, "b", "a", strength=1.0, num_inference_steps=2)
    assert (edited.origin.latent @ CENTRES.T).argmax() == 1 and edited.origin.seed == 5
    kept = Avatar.load(subject.save(tmp_path / "a.safetensors"))
    assert torch.equal(kept.origin.latent, subject.origin.latent) and kept.origin.seed == 5
    torch.testing.assert_close(pipe.edit(kept, "b", "a", num_inference_steps=2).planes, edited.planes)


def test_an_edit_goes_where_the_latent_model_sees_both_texts(pipe):
    """From mean to mean of what it makes of them from the same noise: nothing for the same text, else towards it."""
    assert pipe.direction("b", "b").abs().max() == 0
    texts = pipe.encoder.texts(["b", "a"])
    there, here = (pipe.prior.sample(48, t.expand(48, -1), steps=20, guidance_scale=2.0).mean(0) for t in texts)
    torch.testing.assert_close(pipe.direction("b", "a"), 1.5 * (there - here), rtol=1e-4, atol=1e-5)
    plain = RodinPipeline(pipe.base, pipe.encoder)
    torch.testing.assert_close(plain.direction("b", "a"), texts[0] - texts[1])
    assert F.cosine_similarity(pipe.direction("b", "a"), CENTRES[1] - CENTRES[0], dim=0) > 0.8


def test_interpolation_begins_and_ends_with_the_two(pipe):
    a, b = pipe("a", seed=1, num_inference_steps=2), pipe("b", seed=2, num_inference_steps=2)
    arc = [avatar.origin.latent for avatar in pipe.interpolate(a, b, 5, num_inference_steps=2)]
    torch.testing.assert_close(arc[0], a.origin.latent)
    torch.testing.assert_close(arc[-1], b.origin.latent)
    steps = torch.stack([torch.arccos((p @ q).clamp(-1, 1)) for p, q in pairwise(arc)])
    assert (steps - steps.mean()).abs().max() < 1e-2 * steps.mean()


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 1e6])
def test_what_edits_refuse(pipe, strength):
    with pytest.raises(ConfigError, match="strength"):
        pipe.edit(CENTRES[0], "b", strength=strength)


def test_parts_of_different_encoders_do_not_mix(model, prior, pipe):
    stranger = Words()
    stranger.fingerprint = "F"
    with pytest.raises(CheckpointError, match="encoder"):
        RodinPipeline(model, stranger)
    avatar = pipe("a", num_inference_steps=2)
    object.__setattr__(avatar.origin, "encoder", "F")
    with pytest.raises(CheckpointError, match="another encoder"):
        pipe.edit(avatar, "b")
    with pytest.raises(CheckpointError, match="has no latent"):
        pipe.edit(Avatar(avatar.planes, avatar.decoder, avatar.config), "b")
    with pytest.raises(CheckpointError, match="has no encoder"):
        RodinPipeline(model)("a")
