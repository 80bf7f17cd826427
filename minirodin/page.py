"""The files that an avatar is handed over as, and a page of them, with a picture that turns when it is dragged.

A page is one file that needs no network and no other script: pictures are part of it, as data.
"""

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from minirodin.avatar import Avatar
from minirodin.errors import RenderError
from minirodin.plots import contact_sheet, to_picture

SHEET = (0, 40, 90, 180, 270, 320)  # degrees, of the views on the contact sheet
FILES = {"mesh (GLB)": "avatar.glb", "turntable (MP4)": "turntable.mp4", "views (PNG)": "views.png"}
FRONT, FRONT_SIZE = "front.png", 1024  # of those whose pictures are refined
AVATAR_FILE = "avatar.safetensors"
WIDEST = 16383  # pixels of a WebP picture

# The slider says which frame is shown, and arrow keys move it, round and round; dragging the picture moves the slider.
# Handlers stand in attributes since notebooks run no scripts that come with an output. To drag a person to the right
# is to walk around it to the left: frames count the other way.
TURN = """\
<div style="width:{width};max-width:100%">
<div role="img" aria-label="{label}" style="aspect-ratio:1;cursor:grab;touch-action:pan-y;background:url({strip})\
 0 0/{count}00% 100%"
 onpointerdown="this.setPointerCapture(event.pointerId);this.from=+this.nextElementSibling.value;this.x=event.clientX"
 onpointermove="if(this.hasPointerCapture(event.pointerId)){{const s=this.nextElementSibling,n=+s.max+1,
  d=Math.round((event.clientX-this.x)/this.clientWidth*n);s.value=((this.from-d)%n+n)%n;s.oninput()}}"
 onpointerup="this.nextElementSibling.focus()"></div>
<input type="range" min="0" max="{last}" value="0" aria-label="turn the picture" style="width:100%;margin:0"
 oninput="this.previousElementSibling.style.backgroundPosition=this.value/this.max*100+'% 0'"
 onkeydown="const n=+this.max+1,d={{ArrowLeft:-1,ArrowRight:1}}[event.key];
  if(d){{event.preventDefault();this.value=(+this.value+d+n)%n;this.oninput()}}">
</div>"""

HEAD = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #222; --faint: #666; --paper: #fff; --line: #ddd; --link: #0072b2 }}
@media (prefers-color-scheme: dark) {{
 :root {{ --ink: #eee; --faint: #aaa; --paper: #1b1b1d; --line: #444; --link: #7cc4f0 }}
}}
body {{ margin: 2rem auto; padding: 0 1rem; max-width: 46rem; font: 1rem/1.5 system-ui, sans-serif;
 color: var(--ink); background: var(--paper) }}
main {{ display: flex; flex-wrap: wrap; gap: 2rem }}
section {{ flex: 1 1 14rem }}
h1 {{ font-size: 1.25rem; margin-top: 0; overflow-wrap: anywhere }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: .2rem 1rem; border-top: 1px solid var(--line);
 padding-top: .8rem }}
dt, figcaption {{ color: var(--faint) }}
dd {{ margin: 0; overflow-wrap: anywhere }}
a {{ color: var(--link) }}
figure {{ display: inline-block; margin: 1.5rem 1.5rem 0 0 }}
figure img {{ display: block; width: 14rem; max-width: 100% }}
</style>
"""

PERSON = """\
<main>
{turn}
<section>
<h1>{title}</h1>
<dl>
{facts}
</dl>
<ul>
{links}
</ul>
</section>
</main>
{figures}
"""


def write_files(
    avatar: Avatar, folder: str | Path, size: int = 256, count: int = 36
) -> tuple[Tensor, dict[str, str], dict[str, Tensor]]:
    """Avatar file, mesh, turntable, contact sheet and, refined, a large picture in a folder; every view is drawn once.

    Args:
        size: of the views, in pixels.
        count: how many they are.

    Returns:
        The views, as `turning` takes them, what the files are → their names, and a caption → the large picture, if
        there is a refiner. Nobody there: no mesh.
    """
    folder, views, files, pictures = Path(folder), [], FILES | {"avatar": AVATAR_FILE}, {}
    folder.mkdir(parents=True, exist_ok=True)
    avatar.save(folder / AVATAR_FILE)

    def keep(view: Tensor) -> Tensor:
        views.append(view.cpu())
        return view

    avatar.turntable(folder / "turntable.mp4", count, size, show_progress=True, finish=keep)
    contact_sheet([views[round(turn / 360 * count)][0] for turn in SHEET], len(SHEET) // 2, folder / "views.png")
    try:
        avatar.export(folder / FILES["mesh (GLB)"])
    except RenderError as error:  # show that, with the rest
        (folder / files.pop("mesh (GLB)")).unlink(missing_ok=True)  # of whoever was here before
        print(f"no mesh: {error}")
    if avatar.finish:
        name, front = f"front, {FRONT_SIZE}²", avatar.render(elevation=8, size=FRONT_SIZE).cpu()
        to_picture(front).save(folder / FRONT)
        files[f"{name} (PNG)"], pictures[name] = FRONT, front
    else:
        (folder / FRONT).unlink(missing_ok=True)
    return torch.cat(views), files, pictures


def turning(views: Tensor, label: str = "avatar", width: str = "20rem") -> str:
    """HTML of a picture that turns: drag it, move the slider, or use the arrow keys on that.

    Args:
        views: (V, H, H, 4) RGBA in [0, 1], straight alpha: a full turn, evenly, by `cameras.orbit_cameras`; V ≥ 2.
        label: what a screen reader says; any text.
        width: as CSS.

    Raises:
        RenderError: fewer than two views, or more pixels side by side than a WebP picture may have.
    """
    count, size = views.shape[0], views.shape[2]
    if count < 2 or count * size > WIDEST:
        raise RenderError(f"{count} views of {size} pixels do not make a strip: give 2 or more, {WIDEST} pixels in all")
    strip = picture_data(torch.cat(list(views), dim=1))
    return TURN.format(width=width, label=escape(label), strip=strip, count=count, last=count - 1)


def picture_data(image: Tensor) -> str:
    """RGBA (H, W, 4) in [0, 1] as the address of a WebP picture that it holds itself; transparent where it was."""
    buffer = io.BytesIO()
    to_picture(image).save(buffer, "webp", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def person(
    views: Tensor,
    title: str,
    facts: Mapping[str, object],
    files: Mapping[str, str],
    pictures: Mapping[str, Tensor] | None = None,
) -> str:
    """HTML of one avatar, for `write_page`.

    Args:
        views: as for `turning`; at 36 views of 256² a page has about a quarter of a megabyte.
        title: the description that it was made from.
        facts: name → value.
        files: name → name of a file, as seen from the page.
        pictures: caption → RGBA (H, W, 4) in [0, 1], side by side below.
    """
    rows = [f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()]
    links = [f'<li><a href="{escape(quote(file))}">{escape(name)}</a></li>' for name, file in files.items()]
    figures = [
        f'<figure><img src="{picture_data(image)}" alt=""><figcaption>{escape(name)}</figcaption></figure>'
        for name, image in (pictures or {}).items()
    ]
    turn = turning(views, title)
    parts = {"facts": "\n".join(rows), "links": "\n".join(links), "figures": "\n".join(figures)}
    return PERSON.format(title=escape(title), turn=turn, **parts)


def write_page(path: str | Path, title: str, *people: str) -> Path:
    """One HTML file that shows avatars, each as `person` made it, in the light and the dark."""
    Path(path).write_text("".join([HEAD.format(title=escape(title)), *people, "</html>\n"]), encoding="utf-8")
    return Path(path)
