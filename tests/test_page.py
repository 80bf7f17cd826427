"""The page of an avatar: complete in itself, harmless whatever it was asked for, its frames those of the turn."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from toys import FieldDecoder, ball_config, position_planes, soft_ball

from minirodin.avatar import Avatar
from minirodin.errors import RenderError
from minirodin.page import person, turning, write_page

NASTY = "<script>alert(1)</script> \" onload='x' & é {0}"


class Elements(HTMLParser):
    """Every tag with its attributes, and the text between."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def views():
    """Five plain frames that differ, transparent at the left."""
    views = torch.ones(5, 16, 16, 4)
    views[..., :3] = torch.linspace(0, 1, 5)[:, None, None, None]
    views[:, :, :4, 3] = 0
    return views


def picture(address):
    kind, data = re.search(r"data:(image/\w+);base64,([\w+/=]+)", address).groups()
    assert kind == "image/webp"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def test_the_strip_holds_the_frames_in_order(views):
    (outer, frame), (slider,) = (page := Elements(turning(views, "a man"))).of("div"), page.of("input")
    strip = picture(frame["style"])
    assert strip.shape == (16, 80, 4) and "500% 100%" in frame["style"] and slider["max"] == "4"
    for i in range(5):
        assert abs(strip[8, 16 * i + 10, :3].astype(int) - 255 * i / 4).max() < 6
        assert strip[8, 16 * i + 1, 3] == 0 and strip[8, 16 * i + 10, 3] == 255
    assert frame["aria-label"] == "a man" and frame["role"] == "img" and slider["aria-label"]
    assert "20rem" in outer["style"]


def test_a_page_needs_nothing_else(views, tmp_path):
    files = {"mesh": "avatar.glb", "film": "a film & more.mp4"}
    path = write_page(
        tmp_path / "index.html", "someone", person(views, "someone", {"seed": 7}, files, {"before": views[1]})
    )
    text = path.read_text(encoding="utf-8")
    page = Elements(text)
    assert [a["href"] for a in page.of("a")] == ["avatar.glb", "a%20film%20%26%20more.mp4"]
    sources = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(s.startswith("data:") or s in ("avatar.glb", "a%20film%20%26%20more.mp4") for s in sources)
    assert "http" not in text and not page.of("script") and not page.of("link")
    assert "prefers-color-scheme: dark" in text and {"someone", "seed", "7", "before"} <= set(page.text)
    assert abs(picture(page.of("img")[0]["src"])[8, 10, 0] - 64.0) < 6


def test_several_people_stand_one_below_the_other(views, tmp_path):
    people = [person(views.roll(i, 0), name, {}, {"mesh": f"{name}/avatar.glb"}) for i, name in enumerate("ab")]
    page = Elements(write_page(tmp_path / "index.html", "two", *people).read_text(encoding="utf-8"))
    assert [a["href"] for a in page.of("a")] == ["a/avatar.glb", "b/avatar.glb"] and len(page.of("title")) == 1
    first, second = (picture(div["style"]) for div in page.of("div") if "aria-label" in div)
    assert abs(first[8, 10 + 16] - second[8, 10 + 32].astype(int)).max() < 6


def test_text_is_harmless(views, tmp_path):
    path, plain = (
        write_page(tmp_path / f"{name}.html", x, person(views, x, {x: x}, {x: x}, {x: views[0]}))
        for name, x in (("a", NASTY), ("b", "x"))
    )
    nasty, harmless = (Elements(p.read_text(encoding="utf-8")) for p in (path, plain))
    assert [(t, a.keys()) for t, a in nasty.tags] == [(t, a.keys()) for t, a in harmless.tags]  # the same elements
    assert nasty.text.count(NASTY) == 6 and harmless.text.count("x") == 6  # shown as it was written
    assert nasty.of("div")[1]["aria-label"] == NASTY


@pytest.mark.parametrize("shape", [(1, 16, 16, 4), (0, 16, 16, 4), (64, 1, 256, 4)])
def test_strips_that_cannot_be(shape):
    with pytest.raises(RenderError, match="strip"):
        turning(torch.zeros(shape))


def test_an_avatar_shows_itself_in_a_notebook():
    avatar = Avatar(position_planes(32), FieldDecoder(soft_ball((0.45, 0, 0), 0.3)), ball_config(samples=16))
    page = Elements(avatar._repr_html_())
    strip = picture(page.of("div")[1]["style"])
    assert strip.shape == (128, 12 * 128, 4) and page.of("input")[0]["max"] == "11"
    for i in (0, 3, 6):  # a ball at +x: right of the middle, towards the camera, left
        seen = avatar.render(azimuth=30 * i, elevation=8, size=128)[..., 3].numpy()
        assert abs(strip[:, 128 * i : 128 * (i + 1), 3] / 255 - seen).mean() < 0.01
