"""Shared by the tests: quiet, few threads, and one tiny fitted subject that costs a second or two a session."""

import os
from dataclasses import replace

os.environ.setdefault("MINIRODIN_PROGRESS", "0")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # threads that spin for long starve each other

import pytest
import torch
from toys import ball_capture

from minirodin.cameras import save_capture
from minirodin.config import Config, preset
from minirodin.fitting import fit_subjects

torch.set_num_threads(1)  # for tensors this small a second one burns time and gains nothing


def tiny_config(**fit) -> Config:
    """`smoke`, smaller still: a few dozen steps of 16² planes."""
    smoke = preset("smoke")
    settings = {"shared_steps": 30, "steps": 10, "rays": 128, "resolutions": (16, 8), "checkpoint_every": 10, **fit}
    return replace(
        smoke,
        name="tiny",
        triplane=replace(smoke.triplane, resolution=16, base_resolution=8, channels=4),
        decoder=replace(smoke.decoder, hidden=16),
        render=replace(smoke.render, grid=8, bins=24, samples=8, view_samples=12),
        fit=replace(smoke.fit, **settings),
    )


@pytest.fixture(scope="session")
def captures(tmp_path_factory):
    """A folder of two captures, `one` and `two`: 12 views of 24² pixels; not to be changed."""
    folder = tmp_path_factory.mktemp("captures")
    for seed, name in enumerate(("one", "two")):
        save_capture(ball_capture(name, views=12, size=24, seed=seed), folder / name)
    return folder


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """The people of `captures` by the same cameras, of four times the side; not to be changed."""
    folder = tmp_path_factory.mktemp("large")
    for seed, name in enumerate(("one", "two")):
        save_capture(ball_capture(name, views=12, size=96, seed=seed), folder / name)
    return folder


@pytest.fixture(scope="session")
def fitted(captures, tmp_path_factory):
    """The folder that `fit_subjects` made of `captures`; not to be changed."""
    folder = tmp_path_factory.mktemp("fitted")
    fit_subjects(captures, tiny_config(), folder, device="cpu", show_progress=False)
    return folder


@pytest.fixture(scope="session", autouse=True)
def few_drawings():
    """A training of six steps takes longer to draw than to learn: one loss curve a file, two people a preview."""
    from minirodin import base_training, training

    draw = training.save_curves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_curves", lambda curves, path, **more: path.exists() or draw(curves, path, **more))
        patch.setattr(base_training, "PREVIEWS", 2)
        yield draw


@pytest.fixture(scope="module")
def two_threads():
    """For networks of real size."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
