"""A pipeline's folder: in and out bit-equally, its index, and what is refused; in what numbers its networks compute."""

import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import tiny_config
from safetensors import safe_open
from test_base import TINY as BASE
from test_refiner import TINY as REFINER
from test_upsampler import TINY as UPSAMPLER
from test_upsampler import randomised

from minirodin import cli, precision, pretrained
from minirodin.base import BaseModel, build_unet
from minirodin.config import preset
from minirodin.errors import CheckpointError, ConfigError
from minirodin.latent import ImageTextEncoder, build_towers
from minirodin.latent_diffusion import LatentModel, LatentNetwork
from minirodin.pipeline import RodinPipeline
from minirodin.plane_space import PlaneSpace
from minirodin.refiner import Refiner
from minirodin.shards import FittedPlanes, atomic_save, quantised, quantised_exactly, read_tensors
from minirodin.tokens import CompactTokenizer
from minirodin.upsampler import Upsampler, build_network, detail_space

BOX = Path(__file__).resolve().parent.parent / "data_samples" / "pretrained" / "small"
Z = 32
FILES = {  # of the pipeline below, by component
    "base": "base/model.safetensors",
    "base/decoder": "base/decoder.safetensors",
    "encoder": "encoder/model.safetensors",
    "latent": "latent/model.safetensors",
    "refiner": "refiner/model.safetensors",
    "upsampler": "upsampler/model.safetensors",
    "upsampler/decoder": "upsampler/decoder.safetensors",
}


def tiny_pipeline(fitted) -> RodinPipeline:
    """All five parts, untrained, for the people of `fitted`; they answer to what they are given, in float32."""
    shared, smoke = FittedPlanes(fitted).decoder, preset("smoke")
    torch.manual_seed(0)
    encoder = replace(smoke.encoder, dimensions=Z, layers=1, text_layers=1, attribute_weight=0.0)
    config = replace(tiny_config(), encoder=encoder, upsampler=UPSAMPLER, refiner=REFINER)
    config = replace(config, base=replace(BASE, unet=replace(BASE.unet, latent=Z)))
    c, r = config.triplane.channels, config.triplane.base_resolution
    tokenizer = CompactTokenizer.of_texts(["a bald man with a red beard"], encoder.context)
    encoder = ImageTextEncoder(build_towers(encoder, tokenizer.size), tokenizer, config=config)
    space = PlaneSpace(0.1 * torch.randn(3, c, r, r), torch.eye(c) + 0.1 * torch.randn(c, c))
    parts = (
        BaseModel(build_unet(config.base, config), shared, config, space, encoder.fingerprint),
        LatentModel(LatentNetwork(config.latent, Z), config, torch.zeros(Z), torch.ones(Z), encoder.fingerprint),
        Upsampler(build_network(config), shared, config, space, detail_space(space.weight.clone())),
    )
    for part in parts:
        randomised(part.network).eval().requires_grad_(False)
    refiner = randomised(Refiner(config.refiner)).eval().requires_grad_(False)
    return RodinPipeline(parts[0], encoder, *parts[1:], refiner).to("cpu", torch.float32)


@pytest.fixture(scope="module")
def pipe(fitted):
    pipe = tiny_pipeline(fitted)
    pipe.card = "# Nobody in particular\n"
    return pipe


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "own"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def loaded(folder) -> RodinPipeline:
    return RodinPipeline.from_pretrained(folder, "cpu", torch.float32)


def refused(folder, *words):
    with pytest.raises(CheckpointError) as error:
        RodinPipeline.from_pretrained(folder, "cpu")
    message = str(error.value)
    assert "\n" not in message and all(str(word) in message for word in words), message


def same(a: RodinPipeline, b: RodinPipeline) -> bool:
    one, two = (pipe("a bald man", seed=3, num_inference_steps=2) for pipe in (a, b))
    assert one.planes.shape[-1] == 16 and one.planes.std() > 0  # upsampled
    pictures = [avatar.render(size=40) for avatar in (one, two)]  # refined
    return (
        torch.equal(one.planes, two.planes)
        and torch.equal(one.origin.latent, two.origin.latent)
        and torch.equal(*pictures)
    )


# -- in and out ---------------------------------------------------------------------------------------------------


def test_a_round_trip_makes_the_same_avatars(pipe, saved):
    assert same(pipe, loaded(saved))
    names = sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())
    assert names == sorted([*FILES.values(), "README.md", "model_index.json"])
    assert [p.name for p in saved.parent.iterdir()] == ["own"]  # nothing else is left
    assert loaded(saved).card == pipe.card


def test_parts_that_there_are_not_are_not_written(pipe, tmp_path):
    RodinPipeline(pipe.base, pipe.encoder).save_pretrained(tmp_path / "a")
    part = loaded(tmp_path / "a")
    assert part.prior is part.upsampler is part.refiner is None and not (tmp_path / "a" / "README.md").exists()
    assert set(pretrained.read_index(tmp_path / "a")) == {"base", "base/decoder", "encoder"}


def test_what_was_in_8_bits_stays_so_and_is_exact(saved, copy, tmp_path):
    for name in ("base", "encoder", "latent", "upsampler", "refiner"):
        pretrained.pack_model(saved / name, copy / name)
    loaded(copy).save_pretrained(tmp_path / "again")
    assert same(loaded(copy), loaded(tmp_path / "again")) and not same(loaded(copy), loaded(saved))
    for name in ("base", "latent", "upsampler"):
        before, after = (pretrained.sha256(f / name / "model.safetensors") for f in (saved, copy))
        assert before != after
        with safe_open(tmp_path / "again" / name / "model.safetensors", "pt") as file:
            kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        assert "I8" in kinds
        sizes = [(folder / name / "model.safetensors").stat().st_size for folder in (copy, tmp_path / "again", saved)]
        assert sizes[1] - sizes[0] < 4096 + sum(t.numel() for t in loaded(copy).base.state()[0].values()) // 4
        assert sizes[1] < sizes[2]


@pytest.mark.parametrize("seed", range(4))
def test_scales_are_found_again_for_any_numbers(tmp_path, seed):
    rows = torch.randn(400, 64, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-9, 9, 400)[:, None]
    rows[7] = 0
    path = tmp_path / "a.safetensors"
    atomic_save(quantised({"w": rows}), path, {"kind": "x"})
    known = read_tensors(path, "x")[0]["w"]
    packed, other = quantised_exactly({"w": known}), quantised_exactly({"w": rows})
    assert packed["w"].dtype == torch.int8
    atomic_save(packed, path, {"kind": "x"})
    assert torch.equal(read_tensors(path, "x")[0]["w"], known)
    assert other.keys() == {"w"} and torch.equal(other["w"], rows)  # never in 8 bits: as they are


def test_a_card_that_is_there_is_kept(pipe, copy):
    (copy / "README.md").write_text("# Mine\n")
    pipe.save_pretrained(copy)
    assert (copy / "README.md").read_text() == "# Mine\n" and same(pipe, loaded(copy))


def test_a_folder_without_an_index_is_read_as_it_is(copy, pipe):
    (copy / "model_index.json").unlink()
    assert same(pipe, loaded(copy))
    shutil.rmtree(copy / "base")
    refused(copy, "no folder 'base'")


def test_one_decoder_may_serve_all(copy, pipe):
    (copy / "model_index.json").unlink()
    (copy / "base" / "decoder.safetensors").unlink()
    (copy / "upsampler" / "decoder.safetensors").rename(copy / "decoder.safetensors")
    pretrained.write_index(copy)
    assert same(pipe, loaded(copy)) and "decoder" in pretrained.read_index(copy)


def test_parts_that_do_not_belong_together(pipe, fitted):
    other = tiny_pipeline(fitted)
    other.upsampler.encoder = "F"
    with pytest.raises(CheckpointError, match="the upsampler belongs to latents F"):
        RodinPipeline(pipe.base, upsampler=other.upsampler)
    other.upsampler.encoder = ""
    weight = next(other.upsampler.shared.decoder.parameters())
    weight.data = weight + 1
    with pytest.raises(CheckpointError, match="another decoder"):
        RodinPipeline(pipe.base, upsampler=other.upsampler)


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_bit_that_flipped(copy, name):
    path = copy / FILES[name]
    data = bytearray(path.read_bytes())
    data[-9] ^= 1  # of a number: the file itself is whole
    path.write_bytes(data)
    refused(copy, path, "SHA-256")
    (copy / "model_index.json").unlink()
    refused(copy, path, "is damaged", "SHA-256")  # the file has hashes itself


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_longer_or_not_listed(copy, name):
    path = copy / FILES[name]
    whole = path.read_bytes()
    path.write_bytes(whole + b" ")
    refused(copy, path)
    path.unlink()
    refused(copy, path, "missing")
    path.write_bytes(whole)
    index = json.loads((copy / "model_index.json").read_text())
    del index[name]
    (copy / "model_index.json").write_text(json.dumps(index))
    refused(copy, "base" if name == "base" else path)


def test_others_may_lie_there(copy):
    (copy / "classifier").mkdir()
    (copy / "classifier" / "model.safetensors").write_bytes(b"not read")
    assert RodinPipeline.from_pretrained(copy, "cpu")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "base/../../secret", "base/./x", "..\\x", "C:x", "a//b", ""]
)
def test_an_index_that_leads_outside(copy, name):
    (copy.parent / "secret").write_bytes(b"secret")
    index = json.loads((copy / "model_index.json").read_text())
    index["base"]["file"] = name
    (copy / "model_index.json").write_text(json.dumps(index))
    refused(copy, "model_index.json", "outside")


INDICES = {
    "nothing": "",
    "half": '{"_class_name": "RodinPi',
    "a list": "[]",
    "no class": "{}",
    "another class": '{"_class_name": "StableDiffusionPipeline"}',
    "diffusers' entries": '{"_class_name": "RodinPipeline", "base": ["minirodin", "BaseModel"]}',
    "no size": '{"_class_name": "RodinPipeline", "base": {"kind": "a", "file": "b", "sha256": "c"}}',
    "words": '{"_class_name": "RodinPipeline", "base": {"kind": "a", "file": "b", "size": "1", "sha256": "c"}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", INDICES.values(), ids=INDICES)
def test_an_index_that_is_none(copy, text):
    (copy / "model_index.json").write_text(text)
    refused(copy, copy / "model_index.json", "minirodin pack")


def test_binary_for_an_index(copy):
    (copy / "model_index.json").write_bytes(b"\xff\xfe\x00")
    refused(copy, "model_index.json")


def test_saving_over_another_pipeline(pipe, copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="holds latent, upsampler, refiner of another"):
        RodinPipeline(pipe.base, pipe.encoder).save_pretrained(copy)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


@pytest.mark.parametrize("moment, after", [("os.fsync", 0), ("os.fsync", 3), ("os.replace", 2)])
def test_a_failed_save_keeps_the_old_files(copy, fitted, monkeypatch, moment, after):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    other, calls, real = tiny_pipeline(fitted), [], getattr(os, moment.removeprefix("os."))
    other.base.space.mean.add_(1)

    def full(*given):
        calls.append(given)
        if len(calls) > after:
            raise OSError(28, "No space left on device")
        return real(*given)

    monkeypatch.setattr(moment, full)
    with pytest.raises(OSError, match="No space"):
        other.save_pretrained(copy)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_save_that_was_cut_in_the_middle_is_noticed(copy, fitted, monkeypatch):
    """All is written before any file is moved to its place; the index is the last."""
    other = tiny_pipeline(fitted)
    other.base.space.mean.add_(1)
    monkeypatch.setattr(pretrained, "write_index", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        other.save_pretrained(copy)
    refused(copy, "SHA-256")


def test_a_published_encoder_is_not_saved(pipe, tmp_path):
    encoder = ImageTextEncoder(pipe.encoder.towers, pipe.encoder.tokenizer, pipe.encoder.fingerprint, "ViT-B-32/x")
    with pytest.raises(CheckpointError, match="published"):
        RodinPipeline(pipe.base, encoder).save_pretrained(tmp_path / "a")
    assert not list(tmp_path.iterdir())


# -- the command --------------------------------------------------------------------------------------------------


def test_pack_writes_the_index_and_keeps_it_true(copy, saved, tmp_path, capsys):
    (copy / "model_index.json").unlink()
    assert cli.main(["pack", str(copy)]) == 0
    assert (copy / "model_index.json").read_bytes() == (saved / "model_index.json").read_bytes()
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in FILES)
    assert cli.main(["pack", str(saved / "base"), "--out", str(copy / "base")]) == 0
    index = pretrained.read_index(copy)
    assert index["base"]["sha256"] != pretrained.read_index(saved)["base"]["sha256"]
    assert RodinPipeline.from_pretrained(copy, "cpu").base.encoder
    capsys.readouterr()
    for argv in (["pack", str(copy / "base")], ["pack", str(tmp_path / "none")], ["pack", str(copy / FILES["base"])]):
        assert cli.main(argv) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1


# -- the hub ------------------------------------------------------------------------------------------------------


def test_a_name_of_the_hub(saved, monkeypatch, pipe):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert same(pipe, loaded("someone/rodin-small"))
    assert asked == [("someone/rodin-small", ["model_index.json", "README.md", "*.safetensors"])]


def test_links_as_the_hub_has_them(copy, pipe):
    blobs = copy.parent / "blobs"
    blobs.mkdir()
    for path in [p for p in copy.rglob("*") if p.is_file()]:
        blob = path.rename(blobs / pretrained.sha256(path))
        path.symlink_to(blob)
    assert same(pipe, loaded(copy))


@pytest.mark.parametrize("name", ["nobody/nothing", Path("runs/rodinn")])
def test_a_name_without_a_network(monkeypatch, tmp_path, name):
    def unknown(*_):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused(name, name, "not a folder", "huggingface.co")


@pytest.mark.parametrize("name", ["../own", "a/b/c", "/none/there", "rodin", "a b/c", "a/../b"])
def test_what_is_neither_a_folder_nor_a_name(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    refused(name, "not a folder")


def test_a_file_for_a_folder(copy):
    refused(copy / "README.md", "not a folder")


# -- the numbers of networks --------------------------------------------------------------------------------------


class Watched(torch.nn.Module):
    """A network that notes in what its convolutions would compute."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, set()

    def forward(self, *given):
        on = torch.is_autocast_enabled("cpu")
        self.seen.add(torch.get_autocast_dtype("cpu") if on else torch.float32)
        return self.network(*given)


@pytest.fixture
def watched(fitted, monkeypatch):
    """A pipeline without a word about numbers, and what its three networks compute in."""
    pipe = tiny_pipeline(fitted)
    for part in (pipe.base, pipe.upsampler, pipe.refiner):
        part.dtype = None
    networks = [Watched(pipe.base.network), Watched(pipe.upsampler.network), Watched(pipe.refiner.trunk)]
    pipe.base._conditioned = lambda *_: (
        lambda x, log_snr: networks[0](x, log_snr, torch.zeros(len(x), Z), torch.zeros(len(x)).bool())
    )
    pipe.upsampler.network, pipe.refiner.trunk = networks[1:]
    precision.fast_dtype.cache_clear()
    yield pipe, lambda: [network.seen for network in networks]
    precision.fast_dtype.cache_clear()


@pytest.mark.parametrize("tiles", [True, False])
def test_bfloat16_where_the_cpu_is_fast_with_it(watched, monkeypatch, tiles):
    pipe, seen = watched
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    pipe(latent=torch.ones(Z), num_inference_steps=1).render(size=30)
    assert seen() == [{torch.bfloat16 if tiles else torch.float32}] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_were_asked_for(watched, monkeypatch, dtype):
    pipe, seen = watched
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: dtype == torch.float32, raising=False)
    assert pipe.to(dtype=dtype).to("cpu") is pipe
    avatar = pipe(latent=torch.ones(Z), num_inference_steps=1)
    avatar.render(size=30)
    assert seen() == [{dtype}] * 3 and avatar.planes.dtype == torch.float32
    assert next(pipe.base.network.parameters()).dtype == torch.float32


def test_both_numbers_make_the_same_person(pipe, fitted):
    fast = tiny_pipeline(fitted).to(dtype=torch.bfloat16)
    z = torch.nn.functional.normalize(torch.arange(float(Z)), dim=0)
    one, two = (p(latent=z, num_inference_steps=4).planes for p in (pipe, fast))
    assert 0 < (one - two).square().mean().sqrt() < 0.2 * one.std()  # of networks of noise


def test_other_numbers_are_refused(pipe):
    with pytest.raises(ConfigError, match="float16"):
        pipe.to(dtype=torch.float16)
    with pytest.raises(ConfigError, match="int"):
        RodinPipeline(pipe.base).to("cpu", torch.int8)


def test_what_the_machine_is_asked(monkeypatch):
    precision.fast_dtype.cache_clear()
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)  # as in another PyTorch
    assert precision.fast_dtype("cpu") == torch.float32 and precision.fast_dtype("cuda") == torch.bfloat16
    assert precision.fast_dtype("mps") == torch.float32
    precision.fast_dtype.cache_clear()


# -- the box ------------------------------------------------------------------------------------------------------


def test_the_index_of_the_box_is_that_of_its_files():
    """If this fails: minirodin pack data_samples/pretrained/small"""
    index = pretrained.read_index(BOX)
    assert {entry["file"] for entry in index.values()} == {str(p.relative_to(BOX)) for p in pretrained.weights_of(BOX)}
    for name, entry in index.items():
        path = BOX / entry["file"]
        assert entry["size"] == path.stat().st_size and entry["sha256"] == pretrained.sha256(path), name
        assert entry["kind"] == pretrained.kind_of(path)
    assert {"base", "encoder", "latent", "decoder"} <= set(index)


def test_everything_in_the_box_is_told_of_in_its_card():
    card = (BOX / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}" in card for name in pretrained.read_index(BOX))
    targets = [part.split(")")[0] for part in card.split("](")[1:]]
    assert targets and [t for t in targets if "://" not in t and not (BOX / t).exists()] == []
