"""The weights in the box, all together: a text in, a person out who looks as it says."""

from pathlib import Path

import pytest
import torch

from minirodin import RodinPipeline
from minirodin.avatar import to_rgb
from minirodin.classifier import HEADS, AttributeClassifier
from minirodin.judgement import named

pytestmark = pytest.mark.usefixtures("two_threads")
BOX = Path(__file__).resolve().parent.parent / "data_samples" / "pretrained" / "small"


@pytest.fixture(scope="module")
def pipe():
    return RodinPipeline.from_pretrained(BOX, "cpu")


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("a man wearing a blue baseball cap and a green hoodie", {"hat": "cap", "clothing_color": "green"}),
        ("a bald person with a full beard", {"hair_style": "bald", "facial_hair": "full"}),
    ],
)
def test_a_text_is_what_comes_out(pipe, prompt, expected):
    avatar = pipe(prompt, seed=1, num_inference_steps=8)
    picture = to_rgb(avatar.render(size=144)).permute(2, 0, 1)[None]
    answers = named(AttributeClassifier.load(BOX / "classifier", "cpu"), picture)[0].tolist()
    seen = dict(zip(HEADS, answers, strict=True))
    assert {name: HEADS[name][seen[name]] for name in expected} == expected


def test_the_same_seed_is_the_same_person(pipe):
    a, b = (pipe(seed=3, num_inference_steps=1) for _ in range(2))
    assert torch.equal(a.planes, b.planes)
    other = pipe(seed=4, num_inference_steps=1)
    assert not torch.equal(a.origin.latent, other.origin.latent)  # somebody else …
    again = pipe(latent=a.origin.latent, seed=4, num_inference_steps=1)
    assert not torch.equal(again.planes, a.planes)  # … and the same person from other noise
