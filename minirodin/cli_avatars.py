"""The commands that make people and take them elsewhere: `generate`, `edit` and `export`."""

import time
from pathlib import Path

from tyro.conf import Positional

from minirodin.errors import ConfigError, RenderError


def generate(
    prompt: Positional[str | None] = None,
    *,
    out: Path,
    image: Path | None = None,
    pipeline: Path = Path("data_samples/pretrained/small"),
    seed: int = 0,
    guidance_scale: float = 1.5,
    steps: int = 25,
    size: int = 256,
) -> None:
    """Make an avatar of a text, of a portrait, or of nothing: its file, a mesh, a turntable, pictures and a page.

    Args:
        prompt: what the person looks like, in English; without it, and without a portrait, anybody.
        out: folder of the files; open its index.html.
        image: a portrait.
        pipeline: folder with base, encoder and latent, or the name of one on the Hugging Face hub.
        seed: of all noise; the same seed and description make the same avatar.
        guidance_scale: how much the description counts.
        steps: calls of the base network.
        size: of the pictures, in pixels.
    """
    _check(out, size)
    if prompt is not None and image is not None:
        raise ConfigError("a text or a portrait describes the person: give one of them")
    from minirodin.pipeline import RodinPipeline

    pipe = RodinPipeline.from_pretrained(pipeline)
    start = time.perf_counter()
    avatar = pipe(prompt, image, seed=seed, guidance_scale=guidance_scale, num_inference_steps=steps)
    seconds = time.perf_counter() - start
    title = prompt or (f"the person of {image.name}" if image else "anybody")
    facts = {"seed": seed, "guidance scale": guidance_scale, "steps": steps, "seconds": f"{seconds:.1f}"}
    print(f"made in {seconds:.0f} s; drawing")
    _leave(avatar, out, title, facts, size)


def edit(
    avatar: Positional[Path],
    target: Positional[str],
    *,
    out: Path,
    source: str | None = None,
    strength: float = 1.0,
    pipeline: Path = Path("data_samples/pretrained/small"),
    guidance_scale: float = 1.5,
    steps: int = 25,
    size: int = 256,
) -> None:
    """Change an avatar by a text (E16): the files of `generate`, and both side by side.

    Args:
        avatar: avatar file that `minirodin generate` left.
        target: what shall be, such as "with a full beard".
        out: folder of the files; open its index.html.
        source: what is to be replaced, in the same words as the target where they agree; by default "a person".
        strength: of the change; negative goes the other way.
        pipeline: folder with base, encoder and latent, or the name of one on the Hugging Face hub.
        guidance_scale: how much the description counts.
        steps: calls of the base network.
        size: of the pictures, in pixels.
    """
    _check(out, size)
    from minirodin.page import AVATAR_FILE

    if (out / AVATAR_FILE).resolve() == avatar.resolve():
        raise ConfigError(f"{avatar} is what is to be changed, and lies in {out}: choose another folder")
    from minirodin.cameras import orbit_cameras
    from minirodin.pipeline import Avatar, RodinPipeline

    before = Avatar.load(avatar)
    pipe = RodinPipeline.from_pretrained(pipeline)
    before = before.to(pipe.base.device)
    start = time.perf_counter()
    words = {"guidance_scale": guidance_scale, "num_inference_steps": steps}
    after = pipe.edit(before, target, source, strength, **words)
    seconds = time.perf_counter() - start
    facts = {"from": source or "a person", "strength": strength, "seed": after.origin.seed}
    facts |= {"guidance scale": guidance_scale, "steps": steps, "seconds": f"{seconds:.1f}"}
    print(f"made in {seconds:.0f} s; drawing")
    front = orbit_cameras(0, 8, size)
    pictures = {"before": before.views(front)[0], "after": after.views(front)[0]}
    _leave(after, out, target, facts, size, pictures)


def export(avatar: Positional[Path], *, out: Path, resolution: int = 192) -> None:
    """Write an avatar as a closed mesh with vertex colours, in metres, for Blender, game engines and 3D printers.

    Args:
        avatar: avatar file, or FOLDER/NAME for a subject of a fitted folder.
        out: a name that ends in .glb, .obj or .ply.
        resolution: cells an axis, 16 to 384: more show finer detail and make larger files.
    """
    from minirodin.avatar import Avatar

    print(Avatar.load(avatar).export(out, resolution))


def _check(out: Path, size: int) -> None:
    """What would be told only after minutes otherwise."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give a folder")
    if not 16 <= size <= 455:
        raise RenderError(f"size is {size} pixels: choose 16 … 455")


def _leave(avatar, out: Path, title: str, facts: dict, size: int, pictures: dict | None = None) -> None:
    """All files of an avatar, and a page of them."""
    from minirodin.page import person, write_files, write_page

    views, files, large = write_files(avatar, out, size)
    page = write_page(out / "index.html", title, person(views, title, facts, files, (pictures or {}) | large))
    print("\n".join(f"  {out / name}" for name in [*files.values(), page.name]))
