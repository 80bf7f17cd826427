"""The avatar studio: sliders on a `RodinPipeline`, and an explorer of people who are fitted already.

The widgets only fill in a `StudioState`; what is shown, `studio.py` makes. While a control moves, each event draws a
small preview; when nothing has moved for `SETTLE` seconds, the full picture follows, by a timer of the kernel's own
event loop: there are no threads.
"""

import asyncio
import html
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

from minirodin.avatar import Avatar
from minirodin.errors import ConfigError, MinirodinError
from minirodin.pipeline import RodinPipeline
from minirodin.plots import to_picture
from minirodin.studio import (
    EDITS,
    FittedPeople,
    Sculptor,
    StudioState,
    picture,
    planes_picture,
    png,
    preview_picture,
)

SETTLE = 0.35  # seconds without an event after which a hand has let go
CAMERA = ("azimuth", "elevation", "resolution")  # what can change without another avatar


def avatar_studio(pipe: RodinPipeline, start: StudioState | None = None, edits: tuple[str, ...] = tuple(EDITS)):
    """The studio as a `Panel`; put it at the end of a cell.

    Args:
        start: where the controls stand at first, and the size of the full picture; by default 256² or, refined, 512².
        edits: which of `EDITS` get a slider.
    """
    w, start = _ipywidgets(), start or StudioState(size=512 if pipe.refiner else 256)
    strengths = dict(start.edits)
    controls = {
        "prompt": w.Text(start.prompt),
        "seed": w.BoundedIntText(start.seed, min=0, max=2**31 - 1),
        "guidance_scale": w.FloatSlider(start.guidance_scale, min=0, max=5, step=0.25),
        "steps": w.IntSlider(start.steps, min=1, max=50),
        **{name: w.FloatSlider(strengths.get(name, 0), min=-1.5, max=1.5, step=0.1) for name in edits},
        "other": w.Text(start.other),
        "mix": w.FloatSlider(start.mix, min=0, max=1, step=0.05),
        **_camera(w, start),
    }
    groups = {"Who": 4, "What to change": len(edits), "On the way to": 2, "Seen from": 2}
    return Panel(Sculptor(pipe), controls, groups, start)


def fitted_explorer(people: Mapping[str, Avatar], start: StudioState | None = None):
    """A `Panel` on fitted avatars, by name: who, from where, and at which plane size. It needs no weights."""
    w, first = _ipywidgets(), next(iter(people))
    start = start or StudioState(prompt=first)
    largest = people[first].planes.shape[-1]
    sizes = [("own", 0), *((f"{r}²", r) for r in (128, 64, 32, 16, 8) if r < largest)]
    controls = {
        "prompt": w.Dropdown(options=list(people), value=start.prompt, description="person"),
        **_camera(w, start),
        "resolution": w.SelectionSlider(options=sizes, value=start.resolution),
    }
    return Panel(FittedPeople(people), controls, {"Who": 1, "Seen from": 2, "Planes of": 1}, start)


class Panel:
    """Controls that fill in a `StudioState`, the picture, the planes, buttons to save, and one line of messages.

    Args:
        source: `Sculptor` or `FittedPeople`.
        controls: widgets by field of the state, or by name of an edit, in order.
        groups: heading → how many of the controls follow under it.
        start: the rest of the state.
    """

    def __init__(self, source, controls: dict, groups: dict[str, int], start: StudioState):
        w = _ipywidgets()
        self.source, self.controls, self.start = source, controls, start
        self.folder = w.Text("outputs/studio", continuous_update=False)
        self.view = w.Image(format="png", width=400, height=400)
        self.planes = w.Image(format="png", width=126)
        self.message = w.HTML()
        self.buttons = {kind: w.Button(description=f"Save {kind.upper()}") for kind in ("png", "mp4", "glb")}
        self._timer = None
        left, rest = [], list(controls.items())
        for heading, count in groups.items():
            left.append(w.HTML(f"<b>{heading}</b>"))
            for name, control in rest[:count]:
                control.description = control.description or name.replace("_", " ")
                control.layout.width, control.style.description_width = "340px", "95px"
                if hasattr(control, "continuous_update"):  # only what needs no sampling follows the hand
                    control.continuous_update = name in CAMERA
                control.observe(self._moved, "value")
                left.append(control)
            rest = rest[count:]
        for kind, button in self.buttons.items():
            button.layout.width = "90px"
            button.on_click(lambda _, kind=kind: self.save(kind))
        saving = w.HBox([*self.buttons.values(), w.Label("in"), self.folder])
        shown = w.VBox([w.HBox([self.view, self.planes]), self.message, saving])
        self.root = w.HBox([w.VBox(left), shown], layout={"grid_gap": "24px", "padding": "8px"})
        self.draw()

    @property
    def state(self) -> StudioState:
        """What the controls say; raises `ConfigError` where that is nothing to draw."""
        values = {name: control.value for name, control in self.controls.items()}
        own = {field.name: values[field.name] for field in fields(StudioState) if field.name in values}
        return replace(self.start, **own, edits=tuple((name, values[name]) for name in EDITS if name in values))

    def draw(self, preview: bool = False) -> None:
        """Show what the controls say, quickly or fully; a user's mistake becomes the message, and the picture stays."""
        self._cancel()
        self._attempt(lambda: self._show(self.state, preview))

    def save(self, kind: str) -> None:
        """Write the full picture (png), a turntable (mp4) or a mesh (glb) into the folder of the text box."""
        self._attempt(lambda: self._save(self.state, kind))

    def _show(self, state: StudioState, preview: bool) -> str:
        make, render = (self.source.preview, preview_picture) if preview else (self.source.avatar, picture)
        began, avatar = time.perf_counter(), make(state)
        self.view.value = png(render(avatar, state))
        self.planes.value = png(planes_picture(avatar, state))
        return f"{'preview' if preview else 'full picture'}, {time.perf_counter() - began:.2f} s"

    def _save(self, state: StudioState, kind: str) -> str:
        folder, avatar = Path(self.folder.value), self.source.avatar(state)
        folder.mkdir(parents=True, exist_ok=True)
        taken = {path.stem for path in folder.glob("avatar-*")}
        name = next(f"avatar-{i:03d}" for i in range(10**6) if f"avatar-{i:03d}" not in taken)
        path = folder / f"{name}.{kind}"
        if kind == "png":
            to_picture(picture(avatar, state)).save(path)
        elif kind == "mp4":
            avatar.turntable(path, size=state.size, elevation=state.elevation)
        else:
            avatar.export(path)
        return f"saved {path}"

    def _moved(self, _) -> None:
        self.draw(preview=True)
        try:
            self._timer = asyncio.get_running_loop().call_later(SETTLE, self.draw)
        except RuntimeError:  # no kernel, so no hand that could still be moving
            self.draw()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _attempt(self, action: Callable[[], str]) -> None:
        self.message.value = "working …"
        try:
            self.message.value = action()
        except (MinirodinError, OSError) as error:
            self.message.value = f'<span style="color:#d55e00">{html.escape(str(error))}</span>'

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.root)


def _camera(w, start: StudioState) -> dict:
    return {
        "azimuth": w.FloatSlider(start.azimuth, min=-180, max=180, step=5),
        "elevation": w.FloatSlider(start.elevation, min=-40, max=60, step=5),
    }


def _ipywidgets():
    try:
        import ipywidgets
    except ImportError:
        raise ConfigError("the studio needs ipywidgets: pip install 'minirodin[notebooks]'") from None
    return ipywidgets
