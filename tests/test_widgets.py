"""The studio without a browser: what each control changes, what it must not, what is kept, what is saved."""

import asyncio
import io
import sys
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config
from PIL import Image
from test_base import TINY
from torch import nn

from minirodin import studio, widgets
from minirodin.avatar import Avatar
from minirodin.base import BaseModel
from minirodin.errors import CheckpointError, ConfigError
from minirodin.pipeline import RodinPipeline
from minirodin.plane_space import PlaneSpace
from minirodin.shards import SharedDecoder
from minirodin.studio import EDITS, FittedPeople, Sculptor, StudioState, picture, preview_picture
from minirodin.widgets import avatar_studio, fitted_explorer

Z = 6
START = StudioState("somebody", "somebody else", size=48, steps=6)
SAMPLED = ("prompt", "seed", "guidance_scale", "steps", "mix", "beard", "age")
MOVES = {"prompt": "a third", "seed": 8, "guidance_scale": 3.0, "steps": 2, "mix": 0.5, "beard": 1.0, "age": -0.5}
MOVES |= {"azimuth": -60.0, "elevation": 40.0}


class Texts:
    """An encoder whose latent of a text is drawn from the text."""

    fingerprint = "E"

    def texts(self, texts):
        seeds = [sum(i * ord(c) for i, c in enumerate(text, 1)) for text in texts]
        return F.normalize(torch.stack([torch.randn(Z, generator=torch.Generator().manual_seed(s)) for s in seeds]))


class Prior:
    """Latents as their text says, moved a little by the seed."""

    encoder = "E"

    def sample(self, count, text, seed=0, steps=50, guidance_scale=1.0):
        noise = torch.randn(Z, generator=torch.Generator().manual_seed(seed))
        return F.normalize(text + 0.2 * noise, dim=1)


class Network(nn.Module):
    """x̂_0: a person, changed by the latent, and by the noise."""

    channels, resolution = 4, 8

    def __init__(self, person):
        super().__init__()
        self.person = person  # (3, 4, 8, 8)
        self.change = 0.1 * torch.randn(Z, *person.shape, generator=torch.Generator().manual_seed(0))

    def forward(self, x, log_snr, latent, keep):
        latent = latent * keep[:, None]
        return (self.person + torch.einsum("bz,z...->b...", latent, self.change) + 0.1 * x)[:, None]


@pytest.fixture
def pipe(fitted, monkeypatch):
    """A pipeline of formulas; `pipe.calls` counts what was sculpted."""
    shared = SharedDecoder.load(fitted / "decoder.safetensors")
    person = F.avg_pool2d(Avatar.load(fitted / "one").planes, 2)
    diffusion = replace(TINY.diffusion, prediction="x0", vlb_weight=0.0)
    settings = replace(tiny_config(), base=replace(TINY, unet=replace(TINY.unet, latent=Z), diffusion=diffusion))
    space = PlaneSpace(torch.zeros(3, 4, 8, 8), torch.eye(4))
    pipe = RodinPipeline(BaseModel(Network(person), shared, settings, space, "E"), Texts(), Prior())
    pipe.calls, sculpt = [], pipe.sculpt
    monkeypatch.setattr(pipe, "sculpt", lambda *a: (pipe.calls.append(a[1:]), sculpt(*a))[1])
    return pipe


@pytest.fixture
def panel(pipe, tmp_path):
    panel = avatar_studio(pipe, START)
    panel.folder.value = str(tmp_path / "saved")
    return panel


def opened(widget):
    return np.asarray(Image.open(io.BytesIO(widget.value)))


# -- the functions ------------------------------------------------------------------------------------------------


def test_the_studio_makes_what_the_pipeline_makes(pipe):
    made = Sculptor(pipe).avatar(replace(START, seed=5))
    assert torch.equal(made.planes, pipe("somebody", seed=5, num_inference_steps=6).planes)


def test_turning_the_camera_samples_nothing(pipe):
    sculptor = Sculptor(pipe)
    avatar = sculptor.avatar(START)
    planes = avatar.planes.clone()
    for change in ({"azimuth": -90.0}, {"elevation": 30.0}, {"size": 20}, {"resolution": 4}):
        moved = replace(START, **change)
        assert sculptor.avatar(moved) is avatar and torch.equal(sculptor.latent(moved), sculptor.latent(START))
        assert not torch.equal(picture(avatar, moved), picture(avatar, START))
    assert len(pipe.calls) == 1 and torch.equal(avatar.planes, planes)


def test_strength_zero_is_the_identity_and_costs_nothing(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "direction", lambda *_: pytest.fail("asked for a direction of strength 0"))
    sculptor = Sculptor(pipe)
    none = replace(START, edits=tuple((name, 0.0) for name in EDITS))
    assert torch.equal(sculptor.latent(none), sculptor.latent(START)) and sculptor.avatar(none) is sculptor.avatar(
        START
    )


def test_an_edit_is_that_of_the_pipeline_from_the_same_noise(pipe):
    sculptor = Sculptor(pipe)
    edited = sculptor.avatar(replace(START, edits=(("beard", 0.7),)))
    wanted = pipe.edit(sculptor.avatar(START), *EDITS["beard"], strength=0.7, num_inference_steps=6)
    torch.testing.assert_close(edited.planes, wanted.planes)
    assert edited.origin.seed == START.seed and not torch.equal(edited.planes, sculptor.avatar(START).planes)


def test_interpolation_ends_at_the_two_people_and_follows_the_arc(pipe):
    sculptor = Sculptor(pipe)
    a, b = (sculptor.avatar(replace(START, prompt=who)) for who in ("somebody", "somebody else"))
    assert sculptor.avatar(replace(START, mix=0.0)) is a and sculptor.avatar(replace(START, mix=1.0)) is b
    walk = pipe.interpolate(a, b, 5, num_inference_steps=6)
    for step, mix in zip(walk, (0, 0.25, 0.5, 0.75, 1), strict=True):
        torch.testing.assert_close(sculptor.latent(replace(START, mix=mix)), step.origin.latent, atol=1e-5, rtol=0)


def test_directions_and_people_are_asked_for_once(pipe, monkeypatch):
    asked, direction = [], pipe.direction
    monkeypatch.setattr(pipe, "direction", lambda *texts: (asked.append(texts), direction(*texts))[1])
    sculptor = Sculptor(pipe)
    for strength in (0.2, 0.5, 0.2, 0.9):
        sculptor.avatar(replace(START, edits=(("hat", strength),)))
    assert asked == [EDITS["hat"]] and len(pipe.calls) == 3
    assert sculptor.person.cache_info().misses == 1


def test_it_does_not_keep_everything(pipe):
    sculptor = Sculptor(pipe)
    for seed in range(40):
        sculptor.avatar(replace(START, seed=seed, steps=1))
    assert len(sculptor._made) == 32
    sculptor.avatar(replace(START, seed=39, steps=1))
    assert len(pipe.calls) == 40


@pytest.mark.parametrize("steps", [6, 2])
def test_a_preview_has_few_steps_and_is_not_upsampled_until_the_avatar_is_made(pipe, steps):
    sculptor, state = Sculptor(pipe), replace(START, steps=steps)
    rough = sculptor.preview(state)
    assert pipe.calls[-1][-2:] == (min(steps, studio.PREVIEW_STEPS), False)
    full = sculptor.avatar(state)
    assert pipe.calls[-1][-2:] == (steps, None) and sculptor.preview(state) is full is not rough


def test_a_preview_is_smaller_and_looks_alike(fitted):
    avatar, state = Avatar.load(fitted / "one"), replace(START, size=256)
    small, large = preview_picture(avatar, state), picture(avatar, state)
    assert small.shape == (studio.PREVIEW_SIZE, studio.PREVIEW_SIZE, 4) and large.shape == (256, 256, 4)
    shrunk = F.avg_pool2d(large.movedim(-1, 0), 2).movedim(0, -1)
    assert (small - shrunk)[..., 3].abs().mean() < 0.05
    assert studio.light(avatar) is studio.light(avatar)
    assert set(studio.preview_seconds(avatar, 3)) == {"first", "median"}


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"other": ""}, "other is empty"),
        ({"mix": 1.5}, "mix is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"azimuth": float("nan")}, "azimuth is nan"),
        ({"size": 0}, "size is 0"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"edits": (("beard", float("nan")),)}, "strength of beard is nan"),
        ({"edits": (("beard", 11.0),)}, "strength of beard is 11.0"),
        ({"edits": (("wings", 1.0),)}, "no edit 'wings'"),
    ],
)
def test_states_that_cannot_be(wrong, words):
    with pytest.raises(ConfigError, match=words):
        replace(START, **wrong)


def test_half_a_pipeline_is_refused(pipe):
    with pytest.raises(CheckpointError, match="encoder/ and latent/"):
        avatar_studio(RodinPipeline(pipe.base), START)


def test_without_ipywidgets_one_line(pipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ConfigError, match="pip install"):
        avatar_studio(pipe, START)


# -- the widgets --------------------------------------------------------------------------------------------------


def test_the_studio_shows_larger_pictures_where_there_is_a_refiner(pipe, monkeypatch):
    monkeypatch.setattr(widgets, "Panel", lambda source, controls, groups, start: start)
    assert avatar_studio(pipe).size == 256
    monkeypatch.setattr(pipe, "refiner", object())
    assert avatar_studio(pipe).size == 512 and avatar_studio(pipe, START) == START


@pytest.mark.parametrize("name", MOVES)
def test_a_control_moves_the_picture_and_back(panel, name):
    before, planes, old = panel.view.value, panel.planes.value, panel.controls[name].value
    panel.controls[name].value = MOVES[name]
    assert panel.view.value != before and (panel.planes.value != planes) == (name in SAMPLED)
    panel.controls[name].value = old
    assert panel.view.value == before and panel.planes.value == planes


def test_every_control_is_tested(panel):
    assert set(panel.controls) == {*MOVES, *EDITS, "other"}  # `other` below; edits are all alike


def test_who_one_walks_to_matters_on_the_way_only(panel):
    before = panel.view.value
    panel.controls["other"].value = "a fourth"
    assert panel.view.value == before
    panel.controls["mix"].value = 0.5
    before = panel.view.value
    panel.controls["other"].value = "a fifth"
    assert panel.view.value != before


def test_moving_the_camera_sculpts_nothing(panel, pipe):
    count = len(pipe.calls)
    for azimuth in (-100, 0, 45):
        panel.controls["azimuth"].value = azimuth
    assert len(pipe.calls) == count == 1


def test_only_what_needs_no_sampling_follows_the_hand(panel):
    following = {name for name, control in panel.controls.items() if getattr(control, "continuous_update", False)}
    assert following == {"azimuth", "elevation"}


def test_preview_while_moving_then_full_once(pipe, monkeypatch):
    monkeypatch.setattr(studio, "PREVIEW_SIZE", 16)
    monkeypatch.setattr(widgets, "SETTLE", 0.1)
    panel, sizes = avatar_studio(pipe, START), []
    panel.view.observe(lambda _: sizes.append(len(opened(panel.view))), "value")

    async def drag():
        for azimuth in (-20, -40, -60):
            panel.controls["azimuth"].value = azimuth
            await asyncio.sleep(0.01)
        assert sizes == [16, 16, 16] and "preview" in panel.message.value
        await asyncio.sleep(0.4)

    asyncio.run(drag())
    assert sizes == [16, 16, 16, 48] and "full picture" in panel.message.value
    expected = picture(panel.source.avatar(panel.state), replace(START, azimuth=-60.0))
    assert np.array_equal(opened(panel.view), studio.to_array(expected))


def test_mistakes_are_one_line_and_the_picture_stays(panel):
    before = panel.view.value
    for name, wrong in (("prompt", "  "), ("beard", float("nan"))):
        old, panel.controls[name].value = panel.controls[name].value, wrong
        assert name in panel.message.value and "d55e00" in panel.message.value and "\n" not in panel.message.value
        assert panel.view.value == before
        panel.controls[name].value = old
        assert "full picture" in panel.message.value and panel.view.value == before


def test_messages_are_text_and_no_markup(panel, monkeypatch):
    def fail(_):
        raise ConfigError("<script>alert(1)</script>")

    monkeypatch.setattr(panel.source, "avatar", fail)
    panel.draw()
    assert "<script" not in panel.message.value


def test_saving(panel, tmp_path, monkeypatch):
    monkeypatch.setattr(Avatar, "export", lambda self, path: path.write_bytes(b"glTF"), raising=False)
    turn = Avatar.turntable
    monkeypatch.setattr(Avatar, "turntable", lambda self, path, **k: turn(self, path, frames=4, **k))
    for kind in ("png", "mp4", "glb", "png"):
        panel.buttons[kind].click()
        assert "saved" in panel.message.value and f".{kind}" in panel.message.value
    folder = tmp_path / "saved"
    names = ["avatar-000.png", "avatar-001.mp4", "avatar-002.glb", "avatar-003.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    saved = np.asarray(Image.open(folder / names[0]))
    expected = picture(panel.source.avatar(panel.state), panel.state).numpy()
    assert saved.shape == (48, 48, 4) and np.abs(saved / 255 - expected).max() < 0.003
    assert imageio.imread(folder / names[1]).shape == (4, 48, 48, 3)


def test_a_folder_that_cannot_be_written(panel, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    panel.folder.value = str(tmp_path / "file" / "below")
    for kind in ("png", "mp4", "glb"):
        panel.buttons[kind].click()
        assert "d55e00" in panel.message.value and "file" in panel.message.value


def test_the_explorer_of_fitted_people(fitted):
    people = {name: Avatar.load(fitted / name) for name in ("one", "two")}
    panel = fitted_explorer(people, replace(START, prompt="one"))
    frames, planes = [panel.view.value], [panel.planes.value]
    for name, value in {"azimuth": -60, "elevation": 30, "resolution": 8, "prompt": "two"}.items():
        panel.controls[name].value = value
        frames.append(panel.view.value)
        planes.append(panel.planes.value)
    assert len(set(frames)) == 5 and planes[0] == planes[1] == planes[2] and len(set(planes)) == 3
    expected = picture(people["two"], panel.state)
    assert np.array_equal(opened(panel.view), studio.to_array(expected))
    with pytest.raises(ConfigError, match="nobody called 'three'"):
        FittedPeople(people).avatar(replace(START, prompt="three"))
