"""What a user imports: an `Avatar` in and out of its file, its pictures, its turntable; and what is not an avatar."""

from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_pretrained import Z, tiny_pipeline
from toys import FieldDecoder, ball_config, position_planes, soft_ball

from minirodin import Avatar as exported
from minirodin import cli
from minirodin.cameras import orbit_cameras
from minirodin.errors import CheckpointError, MinirodinError, RenderError
from minirodin.pipeline import Avatar, RodinPipeline, to_rgb
from minirodin.refiner import Refiner, finishing, refine
from minirodin.shards import FittedPlanes, SharedDecoder


def parts(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="module")
def avatar(fitted):
    return Avatar.load(fitted / "one")


@pytest.fixture
def path(avatar, tmp_path):
    return avatar.save(tmp_path / "folder" / "someone.safetensors")


@pytest.fixture
def blob():
    """An avatar that is a formula: a ball on the +x side, red above and blue below its middle."""
    colour = lambda p: torch.where(p[..., 1:2] > 0, torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1]))  # noqa: E731
    decoder = FieldDecoder(soft_ball((0.45, 0.0, 0.0), 0.3), colour)
    return Avatar(position_planes(32), decoder, ball_config(samples=16))


# -- files --------------------------------------------------------------------------------------------------------


def test_one_file_renders_bit_equally(avatar, path):
    loaded = Avatar.load(path)
    assert torch.equal(loaded.planes, avatar.planes) and loaded.config == avatar.config
    for angle in (0, 130):
        assert torch.equal(loaded.render(angle, 20, size=32), avatar.render(angle, 20, size=32))
    assert torch.equal(Avatar.load(path).render(size=24), Avatar.load(str(path)).render(size=24))
    assert loaded.render(size=32)[..., 3].max() > 0.5  # it is not merely nothing


def test_saving_again_is_the_same_file(path, tmp_path):
    again = Avatar.load(path).save(tmp_path / "again.safetensors")
    (a, a_meta), (b, b_meta) = parts(path), parts(again)
    assert a_meta == b_meta and a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)
    assert sorted(p.name for p in path.parent.iterdir()) == ["someone.safetensors"]


def test_planes_of_full_precision_change_little_in_the_file(avatar, tmp_path):
    rough = Avatar(avatar.planes + 1e-4 * torch.randn(avatar.planes.shape), avatar.decoder, avatar.config)
    loaded = Avatar.load(rough.save(tmp_path / "a.safetensors"))
    assert torch.equal(loaded.planes, rough.planes.half().float())
    assert (loaded.render(size=24) - rough.render(size=24)).abs().mean() < 2e-3


def test_packed_planes_look_the_same(avatar, tmp_path, capsys):
    path, packed = avatar.save(tmp_path / "someone.safetensors"), tmp_path / "packed.safetensors"
    assert cli.main(["pack", str(path), "--out", str(packed)]) == 0
    planes, ours = Avatar.load(path).planes, Avatar.load(packed).planes
    assert packed.stat().st_size < path.stat().st_size and not torch.equal(planes, ours)
    assert ((ours - planes).abs() <= planes.abs().amax((2, 3), keepdim=True) / 254 + 1e-7).all()
    assert cli.main(["pack", str(path), "--out", str(path)]) == 2 and "another file" in capsys.readouterr().err


def test_a_subject_of_a_fitted_folder(fitted, avatar):
    planes = FittedPlanes(fitted)
    assert torch.equal(avatar.planes, planes.planes("one"))
    assert not torch.equal(Avatar.load(f"{fitted}/two").planes, avatar.planes)
    for key, value in SharedDecoder.load(fitted / "decoder.safetensors").decoder.state_dict().items():
        assert torch.equal(avatar.decoder.state_dict()[key], value)


def test_the_original_stays_where_it_is(avatar):
    other = avatar.to("meta")
    assert other.planes.is_meta and next(other.decoder.parameters()).is_meta
    assert not avatar.planes.is_meta and not next(avatar.decoder.parameters()).is_meta


def test_exported():
    assert exported is Avatar


# -- pictures -----------------------------------------------------------------------------------------------------


def test_render_is_the_orbit_camera(blob):
    front, side = blob.render(size=48), blob.render(azimuth=-90, size=48)
    assert front.shape == (48, 48, 4) and front.dtype == torch.float32
    columns = front[..., 3].sum(0)
    assert columns[24:].sum() > 50 * columns[:24].sum()  # at +x: right of the middle
    assert (side[..., 3].sum(0)[18:30].sum() / side[..., 3].sum()).item() > 0.6  # from the side: in the middle
    rows = front[..., :3] * front[..., 3:]
    assert rows[:24, :, 0].sum() > 20 * rows[24:, :, 0].sum() and rows[24:, :, 2].sum() > 20 * rows[:24, :, 2].sum()
    assert torch.equal(blob.views(orbit_cameras(-90, 0, 48))[0], side)
    from_above = blob.render(elevation=80, size=48)
    assert (from_above[..., 0] * from_above[..., 3]).sum() > 5 * (from_above[..., 2] * from_above[..., 3]).sum()


def test_several_views_at_once(blob):
    views = blob.views(orbit_cameras([0, 50], [0, 30], 16))
    assert views.shape == (2, 16, 16, 4)
    torch.testing.assert_close(views[1], blob.render(50, 30, size=16))


def test_other_plane_sizes(avatar):
    large, small = avatar.render(size=32), avatar.render(size=32, resolution=8)
    assert small.shape == large.shape and not torch.equal(small, large)
    assert (small - large).abs().mean() < 0.1
    assert torch.equal(avatar.render(size=32), large)  # nothing remembered from the other size


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 5000}, {"azimuth": float("nan")}, {"elevation": 90}])
def test_views_that_cannot_be_drawn(blob, wrong):
    with pytest.raises(RenderError):
        blob.render(**wrong)


def test_to_rgb():
    rgba = torch.tensor([0.2, 0.4, 1.0, 0.25])
    torch.testing.assert_close(to_rgb(rgba), torch.tensor([0.8, 0.85, 1.0]))
    torch.testing.assert_close(to_rgb(rgba, 0.0), torch.tensor([0.05, 0.1, 0.25]))
    torch.testing.assert_close(to_rgb(rgba, torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.05, 0.475, 1.0]))


# -- turntable ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending, tolerance", [("mp4", 0.15), ("gif", 0.08)])
def test_turntable_is_a_full_turn(blob, tmp_path, ending, tolerance):
    path = blob.turntable(tmp_path / f"turn.{ending}", frames=8, size=64, elevation=0)
    assert path == tmp_path / f"turn.{ending}" and path.is_file()
    frames = imageio.imread(path)[..., :3].astype(float) / 255
    assert frames.shape == (8, 64, 64, 3)
    assert frames[:, :6, :6].min() > 0.95  # on white
    for i, azimuth in enumerate(np.arange(8) * 45):
        expected = to_rgb(blob.render(azimuth, size=64)).numpy()
        assert np.sqrt(((frames[i] - expected) ** 2).mean()) < tolerance, azimuth
    # A turn that begins and ends at the same place has no frame twice.
    assert all(np.abs(frames[i] - frames[i - 1]).max() > 0.3 for i in range(8))


@pytest.mark.parametrize("size", [33, 50])
def test_turntable_of_any_size_plays(blob, tmp_path, size):
    """H.264 wants even sides; the size asked for is kept as nearly as that allows."""
    frames = imageio.imread(blob.turntable(tmp_path / "turn.mp4", frames=2, size=size))
    assert len(frames) == 2 and abs(frames.shape[1] - size) <= 1 and abs(frames.shape[2] - size) <= 1


# -- files that are not avatars -----------------------------------------------------------------------------------


def refused(path, *words):
    with pytest.raises(CheckpointError) as error:
        Avatar.load(path)
    message = str(error.value)
    assert "\n" not in message and path.name in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.99])
def test_cut_short(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path)


def test_longer_than_it_says(path):
    path.write_bytes(path.read_bytes() + b"more")
    refused(path)


def test_not_there_and_not_safetensors(tmp_path, fitted):
    refused(tmp_path / "none.safetensors", "does not exist")
    (tmp_path / "text.safetensors").write_text("an avatar, honestly")
    refused(tmp_path / "text.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    refused(tmp_path / "folder.safetensors")
    refused(fitted / "decoder.safetensors", "decoder", "expected a avatar")
    with pytest.raises(CheckpointError, match="nobody"):
        Avatar.load(fitted / "nobody")


def tampered(path, change):
    tensors, metadata = parts(path)
    metadata.pop("sha256", None)  # as who means harm would
    change(tensors, metadata)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda t, m: t.update(planes=t["planes"][:2]), "shape"),
        (lambda t, m: t.update(planes=t["planes"][:, :3]), "shape"),
        (lambda t, m: t.update(planes=t["planes"][..., :8]), "shape"),
        (lambda t, m: t.update(planes=t["planes"][0]), "shape"),
        (lambda t, m: t.pop("planes"), "planes"),
        (lambda t, m: t["planes"].view(-1).__setitem__(7, torch.nan), "NaN"),
        (lambda t, m: t["planes"].view(-1).__setitem__(7, torch.inf), "infinite"),
        (lambda t, m: t["decoder.trunk.0.bias"].__setitem__(0, torch.nan), "NaN"),
        (lambda t, m: t.update({"decoder.trunk.0.bias": t["decoder.trunk.0.bias"][:-1]}), "trunk.0.bias"),
        (lambda t, m: t.pop("decoder.density_head.weight"), "density_head.weight"),
        (lambda t, m: t.update({"decoder.extra": torch.zeros(1)}), "extra"),
        (lambda t, m: m.update(kind="decoder"), "decoder"),
        (lambda t, m: m.pop("config"), "config"),
        (lambda t, m: m.update(config="{"), "config"),
        (lambda t, m: m.update(config="[]"), "config"),
        (lambda t, m: m.update(config=m["config"].replace('"channels": 4', '"channels": "4"')), "channels"),
        (lambda t, m: m.update(config=m["config"].replace('"channels": 4', '"chanels": 4')), "chan"),
        (lambda t, m: m.update(config=m["config"].replace('"triplane": {', '"triplane": {"x": 1, ')), "x"),
    ],
)
def test_tampered_with(path, change, word):
    tampered(path, change)
    refused(path, word)


def test_a_fitted_folder_tampered_with(fitted, tmp_path):
    for file in fitted.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = next(p for p in tmp_path.glob("planes-*") if "one" in parts(p)[0])
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=shard.name):
        Avatar.load(tmp_path / "one")
    shard.write_bytes(whole)
    tampered(shard, lambda t, m: t["one"].view(-1).__setitem__(0, torch.nan))
    with pytest.raises(CheckpointError, match="NaN"):
        Avatar.load(tmp_path / "one")


@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
def test_a_failed_save_keeps_the_old_file(avatar, path, monkeypatch, moment):
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(moment, full)
    with pytest.raises(OSError, match="No space"):
        replace_planes(avatar).save(path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def replace_planes(avatar):
    return Avatar(avatar.planes + 1, avatar.decoder, replace(avatar.config, name="other"))


def test_turntable_with_an_ending_nobody_knows(blob, tmp_path):
    with pytest.raises(MinirodinError):
        blob.turntable(tmp_path / "turn.xyz", frames=2, size=16)


# -- the upsampler and the refiner in the pipeline ----------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(fitted):
    """All parts, untrained; planes of 8² and 16², a refiner for views of 24²."""
    return tiny_pipeline(fitted)


def person(pipe, **settings):
    return pipe(latent=torch.eye(Z)[3], seed=4, num_inference_steps=2, **settings)


def test_planes_are_upsampled_by_default_and_on_request(pipe):
    small, large = person(pipe, upsample=False), person(pipe)
    base = pipe.base.sample(pipe.base.noise(1, 4), 2, seed=4, latent=torch.eye(Z)[3:4], guidance_scale=1.5)[0]
    assert torch.equal(small.planes, base) and large.planes.shape == (3, 4, 16, 16)
    assert torch.equal(large.planes, pipe.upsampler.upsample(base[None], seed=4)[0])
    assert torch.equal(person(pipe, upsample=True).planes, large.planes)
    assert torch.equal(large.origin.latent, small.origin.latent) and large.origin.seed == 4
    without = RodinPipeline(pipe.base, pipe.encoder, pipe.prior)
    assert torch.equal(person(without).planes, base) and person(without).finish is None


@pytest.mark.parametrize("name, settings", [("upsampler", {"upsample": True}), ("refiner", {"refine": True})])
def test_parts_that_are_asked_for_and_missing(pipe, monkeypatch, name, settings):
    without = RodinPipeline(pipe.base, pipe.encoder, pipe.prior)
    subject = person(without)
    monkeypatch.setattr(without.base, "sample", lambda *_, **__: 1 / 0)  # told before anything is computed
    for call in (lambda: person(without, **settings), lambda: without.edit(subject, "a bald man", **settings),
                 lambda: without.interpolate(subject, subject, 2, **settings)):  # fmt: skip
        with pytest.raises(CheckpointError, match=f"has no {name}"):
            call()


def test_edits_and_walks_go_through_both(pipe):
    subject = person(pipe)
    for made in (pipe.edit(subject, "a bald man", num_inference_steps=2),
                 *pipe.interpolate(subject, subject, 2, num_inference_steps=2)):  # fmt: skip
        assert made.planes.shape[-1] == 16 and made.finish
    settings = {"num_inference_steps": 2, "upsample": False, "refine": False}
    for made in (pipe.edit(subject, "a bald man", **settings), *pipe.interpolate(subject, subject, 2, **settings)):
        assert made.planes.shape[-1] == 8 and made.finish is None


def test_pictures_larger_than_the_refiner_learned_from_are_refined(pipe):
    refined, plain = person(pipe), person(pipe, refine=False)
    assert plain.finish is None and torch.equal(refined.planes, plain.planes)
    for size, scale in ((48, 2), (96, 4), (144, 4)):
        view = plain.render(30, 10, size // scale)[None]
        made = refined.render(30, 10, size)
        assert torch.equal(made, refine(pipe.refiner, view, scale)[0])
        assert not torch.allclose(made, refine(None, view, scale)[0], atol=1e-3)
    assert torch.equal(refined.render(30, 10, 24), plain.render(30, 10, 24))  # as large as those
    cameras = orbit_cameras(0, 0, 60)
    assert torch.equal(refined.views(cameras, depth=True), plain.views(cameras, depth=True))
    assert refined.to("meta").finish is refined.finish


@pytest.mark.parametrize("width, height", [(49, 50), (31, 90), (25, 24)])
def test_refined_pictures_of_any_size_lie_where_they_should(pipe, width, height, blob):
    """A refiner that adds nothing: what comes out is the view itself, to within interpolation."""
    silent = Refiner(pipe.refiner.config).eval()
    cameras = replace(orbit_cameras(20, 5, 50), width=width, height=height)
    plain = blob.views(cameras)
    blob.finish = finishing(silent)
    made = blob.views(cameras)
    assert made.shape == plain.shape == (1, height, width, 4) and not torch.equal(made, plain)
    y, x = (torch.arange(n, dtype=torch.float32) for n in (height, width))
    for rows in ("hwc,h->c", y), ("hwc,w->c", x):
        a, b = (torch.einsum(rows[0], v[0, ..., 3:], rows[1]) / v[0, ..., 3].sum() for v in (plain, made))
        assert abs(a - b) < 0.4, (a, b)  # pixels between the centres; one of the small view has up to 4


def test_a_turntable_is_refined_and_a_saved_avatar_is_not(pipe, tmp_path):
    avatar, sizes = person(pipe), []
    finish = avatar.finish
    avatar.finish = lambda draw, cameras: sizes.append(cameras.width) or finish(draw, cameras)
    film = imageio.imread(avatar.turntable(tmp_path / "turn.gif", frames=2, size=60))
    assert film.shape[:3] == (2, 60, 60) and sizes == [60, 60]
    kept = Avatar.load(avatar.save(tmp_path / "a.safetensors"))
    assert kept.finish is None and torch.equal(kept.planes, avatar.planes.half().float())


def test_bench_times_a_text_to_its_view(pipe, tmp_path, capsys):
    from minirodin.benchmark import bench_pipeline

    pipe.save_pretrained(tmp_path)
    found = bench_pipeline(tmp_path, "a bald man", size=20)
    assert found["parts"] == ["base", "encoder", "prior", "upsampler", "refiner"] and found["size"] == 20
    assert min(found["seconds_to_load"], found["seconds_an_avatar"], found["seconds_a_view"]) > 0
    assert found["seconds"] == found["seconds_an_avatar"] + found["seconds_a_view"]
    assert found["memory_of"] == "process" and 0.1 < found["peak_memory_gb"] < 20
    assert cli.main(["bench", "pipeline"]) == 2
    assert "bench pipeline needs a folder of models" in capsys.readouterr().err
