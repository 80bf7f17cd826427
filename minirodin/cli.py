"""The command line: one function a command, its flags read by tyro; a user's mistake is one line and exit code 2.

Heavy modules are imported inside the functions, so that `minirodin --help` answers at once.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from minirodin.errors import DataError, MinirodinError


def avatars(out: Path, count: int = 8, views: int = 24, size: int = 256, seed: int = 0) -> None:
    """Make synthetic people: a folder a subject with RGBA views, cameras and a caption. Existing ones are kept.

    Args:
        out: folder of the subjects; created when missing.
        count: number of subjects.
        views: images of each subject; frame 0 is the frontal portrait.
        size: width and height of an image in pixels.
        seed: of the first subject, the others count up (below 1000000: training; then validation up to 2000000).
    """
    from minirodin.avatars.dataset import make_people

    folders = make_people(count=count, views=views, size=size, seed=seed, out=out)
    print(f"{len(folders)} subjects in {out}")


def fit(data: Positional[Path], out: Path, preset: str = "small", decoder: Path | None = None) -> None:
    """Fit tri-planes to captures: learn a shared decoder first, or fit under a given one. Done subjects are kept.

    Args:
        data: a capture (images + transforms.json) or a folder of captures.
        out: folder of the results; the same command resumes an interrupted fit.
        preset: smoke, small or full.
        decoder: a fitted decoder (or avatar) whose domain the new planes must share; it is not changed.
    """
    from minirodin.config import preset as load_preset
    from minirodin.fitting import fit_subjects

    fit_subjects(data, load_preset(preset), out, decoder=decoder)
    print(f"avatars in {out}")


def render(avatar: Positional[Path], out: Path, azimuth: float = 0.0, elevation: float = 0.0, size: int = 256) -> None:
    """Draw one view of a fitted avatar as an RGBA PNG.

    Args:
        avatar: avatar file (.safetensors).
        out: picture to write.
        azimuth: degrees; 0 is the front, positive moves the camera towards the subject's left ear (+x).
        elevation: degrees above the horizon.
        size: width and height in pixels.
    """
    from minirodin.pipeline import Avatar

    Avatar.load(avatar).render(azimuth, elevation, size).save(out)
    print(out)


COMMANDS = {"avatars": avatars, "fit": fit, "render": render}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for a mistake in the input, 130 when interrupted."""
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="minirodin", description=__doc__.splitlines()[0], args=argv)
        return 0
    except MinirodinError as error:
        return _fail(error)
    except BrokenPipeError:  # `minirodin … | head`: the reader has gone, there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}; nothing finished before is lost")
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume where it stopped", file=sys.stderr)
        return 130


def _fail(message) -> int:
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    return 2
