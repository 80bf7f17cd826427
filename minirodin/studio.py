"""What the avatar studio shows, as pure functions of one frozen `StudioState`: state → latent → avatar → picture.

What was made is kept under what it was made from, so that turning the camera never samples again, and a control that
returns to where it was brings back the same picture. The sliders are in `widgets.py`.
"""

import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minirodin.avatar import Avatar
from minirodin.errors import CheckpointError, ConfigError
from minirodin.pipeline import MAX_STRENGTH, PROMPT_GUIDANCE, RodinPipeline
from minirodin.plots import contact_sheet, planes_to_rgb, to_array
from minirodin.triplane import resize_planes

PREVIEW_SIZE, PREVIEW_RESOLUTION, PREVIEW_STEPS = 128, 64, 4  # pixels, texels, steps of sampling
PREVIEW_QUADRATURE = {"grid": 32, "bins": 64, "view_samples": 24}  # of `RenderConfig`
EDITS = {  # slider → (target, source) of `RodinPipeline.direction`
    "beard": ("a man with a beard", "a man with a clean-shaven face"),
    "glasses": ("a person with round glasses", "a person with no glasses"),
    "hat": ("a person wearing a knitted beanie", "a person wearing no hat"),
    "grey hair": ("a person with grey hair", "a person with black hair"),
    "long hair": ("a person with long hair", "a person with a short haircut"),
    "age": ("an old person", "a young person"),
}


@dataclass(frozen=True)
class StudioState:
    """All that a picture of the studio depends on.

    Attributes:
        prompt: whom to make; or, in `fitted_explorer`, the name of somebody.
        other: whom to go to, by `mix` in [0, 1].
        seed: of all noise.
        guidance_scale, steps: of the base model.
        edits: (slider of `EDITS`, strength) pairs, each strength within ±`MAX_STRENGTH`.
        azimuth, elevation: of the camera, degrees.
        size: of the picture, pixels.
        resolution: of the planes, texels; 0: their own.

    Raises:
        ConfigError: something is missing, not a number, or out of range.
    """

    prompt: str = "a bald woman with round glasses"
    other: str = "an old man with grey hair"
    mix: float = 0.0
    seed: int = 7
    guidance_scale: float = 1.5
    steps: int = 25
    edits: tuple[tuple[str, float], ...] = ()
    azimuth: float = 20.0
    elevation: float = 5.0
    size: int = 256
    resolution: int = 0

    def __post_init__(self):
        for name in ("prompt", "other"):
            if not getattr(self, name).strip():
                raise ConfigError(f"{name} is empty: say in a few words whom to make")
        ranges = {"mix": (0, 1), "guidance_scale": (-100, 100), "azimuth": (-360, 360), "elevation": (-89, 89)}
        ranges |= {"seed": (0, 2**31), "steps": (1, 1000), "size": (1, 4096), "resolution": (0, 1024)}
        values = {name: (getattr(self, name), *bounds) for name, bounds in ranges.items()}
        values |= {f"strength of {name}": (strength, -MAX_STRENGTH, MAX_STRENGTH) for name, strength in self.edits}
        for name, (value, low, high) in values.items():
            if not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(f"{name} is {value}: give a number from {low:g} to {high:g}")
        if unknown := [name for name, _ in self.edits if name not in EDITS]:
            raise ConfigError(f"there is no edit {unknown[0]!r}: choose from {', '.join(EDITS)}")


# -- state → latent → avatar → picture ----------------------------------------------------------------------------


class Sculptor:
    """Avatars of a pipeline, made when they are first asked for and then kept (the last of them)."""

    def __init__(self, pipe: RodinPipeline):
        if pipe.encoder is None or pipe.prior is None:
            raise CheckpointError("the studio needs a pipeline with base/, encoder/ and latent/")
        self.pipe = pipe
        self.person = lru_cache(64)(self.person)
        self.direction = lru_cache(64)(pipe.direction)
        self._made: dict[tuple, Avatar] = {}

    def person(self, prompt: str, seed: int) -> Tensor:
        """The latent (Z,) that the prior draws for a prompt, as `RodinPipeline.__call__` has it."""
        text = self.pipe.encoder.texts([prompt])
        return self.pipe.prior.sample(1, text, seed, guidance_scale=PROMPT_GUIDANCE)[0].float().cpu()

    def latent(self, state: StudioState) -> Tensor:
        """z (Z,): on the arc between the two people, then moved along the edits; what is at zero is not computed."""
        ends = [(state.prompt, 1 - state.mix), (state.other, state.mix)]
        z = arc(*((self.person(prompt, state.seed), share) for prompt, share in ends if share > 0))
        moves = [strength * self.direction(*EDITS[name]).to(z) for name, strength in state.edits if strength]
        return F.normalize(z + sum(moves), dim=0) if moves else z

    def avatar(self, state: StudioState) -> Avatar:
        """The avatar of a state. Only its latent, seed, guidance and steps matter."""
        return self._sculpt(state, state.steps)

    def preview(self, state: StudioState) -> Avatar:
        """The same where it has been made, and otherwise one of a few steps from the same noise, not upsampled."""
        if self._key(state, state.steps) in self._made:
            return self.avatar(state)
        return self._sculpt(state, min(state.steps, PREVIEW_STEPS), upsample=False)

    def _key(self, state: StudioState, steps: int, upsample: bool | None = None) -> tuple:
        return self.latent(state).numpy().tobytes(), state.seed, state.guidance_scale, steps, upsample

    def _sculpt(self, state: StudioState, steps: int, upsample: bool | None = None) -> Avatar:
        key = self._key(state, steps, upsample)
        if key not in self._made:
            made = self.pipe.sculpt(self.latent(state), state.seed, state.guidance_scale, steps, upsample)
            self._made = dict([*self._made.items()][-31:]) | {key: made}
        return self._made[key]


class FittedPeople:
    """The same two calls for avatars that are there already, by name: `prompt` says who, and nothing is sampled."""

    def __init__(self, people: Mapping[str, Avatar]):
        self.people = people

    def avatar(self, state: StudioState) -> Avatar:
        if state.prompt not in self.people:
            raise ConfigError(f"there is nobody called {state.prompt!r}: choose from {', '.join(self.people)}")
        return self.people[state.prompt]

    preview = avatar


def arc(*ends: tuple[Tensor, float]) -> Tensor:
    """One unit vector as it is, or the point of the arc between two that is `share` of the way from the other end."""
    if len(ends) == 1:
        return ends[0][0]
    angle = torch.arccos((ends[0][0] @ ends[1][0]).clamp(-1, 1)).clamp_min(1e-4)
    return F.normalize(sum(torch.sin(share * angle) * z for z, share in ends), dim=0)


def picture(avatar: Avatar, state: StudioState) -> Tensor:
    """The avatar from the state's camera, (size, size, 4) RGBA in [0, 1]."""
    return avatar.render(state.azimuth, state.elevation, state.size, state.resolution or None).cpu()


@lru_cache(32)
def light(avatar: Avatar) -> Avatar:
    """The same person for previews: planes of at most 64², and a coarse quadrature; one is kept for each avatar."""
    planes = resize_planes(avatar.planes, min(PREVIEW_RESOLUTION, avatar.planes.shape[-1]))
    settings = replace(avatar.config, render=replace(avatar.config.render, **PREVIEW_QUADRATURE))
    return Avatar(planes, avatar.decoder, settings, avatar.origin)


def preview_picture(avatar: Avatar, state: StudioState) -> Tensor:
    """A quick small `picture`."""
    resolution = min(state.resolution or PREVIEW_RESOLUTION, light(avatar).planes.shape[-1])
    return picture(light(avatar), replace(state, size=min(PREVIEW_SIZE, state.size), resolution=resolution))


def planes_picture(avatar: Avatar, state: StudioState, side: int = 126) -> Image.Image:
    """The three planes below each other as their principal components, of `side` pixels each, unsmoothed."""
    planes = resize_planes(avatar.planes, state.resolution or avatar.planes.shape[-1]).cpu()
    tiles = [Image.fromarray(to_array(plane)).resize((side, side), Image.NEAREST) for plane in planes_to_rgb(planes)]
    return contact_sheet(tiles, columns=1, gap=3)


def preview_seconds(avatar: Avatar, frames: int = 12) -> dict[str, float]:
    """What previews take on this machine: the `first` of an avatar, and the `median` while its camera turns."""
    light.cache_clear()
    seconds = []
    for azimuth in torch.linspace(-60, 60, frames + 1).tolist():
        began = time.perf_counter()
        png(preview_picture(avatar, StudioState(azimuth=azimuth)))
        seconds.append(time.perf_counter() - began)
    return {"first": seconds[0], "median": sorted(seconds[1:])[frames // 2]}


def png(image) -> bytes:
    """Any picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(to_array(image))).save(buffer, "png")
    return buffer.getvalue()
