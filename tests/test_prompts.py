"""What texts claim and what pictures show: the words of every prompt and caption, held against the attributes."""

import dataclasses

import numpy as np
import pytest

from minirodin.avatars.attributes import CHOICES, Attributes, sample_attributes
from minirodin.avatars.captions import captions
from minirodin.avatars.prompts import ASPECTS, all_kinds_of_people, claims, contradicts, partial_caption, prompt

PEOPLE = [sample_attributes(seed) for seed in range(120)] + all_kinds_of_people(120)
BY_NAME = {aspect.name: aspect for aspect in ASPECTS}


def test_a_prompt_claims_its_class_and_no_more_than_that_implies():
    rng, implied = np.random.default_rng(0), {"hat_color": "hat", "frame_color": "glasses", "earring_color": "earrings",
                                              "beard_length": "facial_hair", "hair_style": "hair_texture"}  # fmt: skip
    for aspect in ASPECTS:
        for name in (name for name in aspect.classes if aspect.phrases[name]):
            for _ in range(8):
                text = prompt(aspect, name, rng)
                said = claims(text)
                assert said.pop(aspect.name) == (name,), text
                assert set(said) <= {implied.get(aspect.name)}, text


def test_captions_are_true_of_their_person():
    for a in PEOPLE:
        for text in [*captions(a, 5), *(partial_caption(a, seed) for seed in range(5))]:
            assert contradicts(text, a) == [], (text, a)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A young woman with long red hair", {"gender": {"woman"}, "age": {"young"}, "hair_style": {"long"},
                                              "hair_color": {"red"}}),
        ("he has a long ginger beard, glasses", {"gender": {"man"}, "facial_hair": {"full"}, "beard_length": {"long"},
                                                 "hair_color": {"red"}, "glasses": {"round", "square"}}),
        ("old guy, short wavy dark brown hair and bangs, dark skin",
         {"age": {"old"}, "gender": {"man"}, "hair_style": {"short"}, "hair_texture": {"wavy"}, "fringe": {"fringe"},
          "hair_color": {"dark brown"}, "skin": {"brown", "deep brown"}}),
        ("smiling slightly, looking straight ahead", {"expression": {"slight smile"}}),
        ("a calm person in a teal plaid hooded sweatshirt and a pink knitted beanie",
         {"expression": {"neutral"}, "clothing": {"hoodie"}, "clothing_color": {"teal"}, "clothing_pattern": {"checks"},
          "hat": {"beanie"}, "hat_color": {"pink"}}),
        ("no glasses, no hat, no beard, no makeup",
         {"glasses": {"none"}, "hat": {"none"}, "facial_hair": {"none"}, "makeup": {"none"}}),
        ("dark sunglasses, gold earrings, a mustache",
         {"glasses": {"sun"}, "earring_color": {"gold"}, "earrings": {"studs", "hoops"}, "facial_hair": {"moustache"}}),
        ("a castle by the sea", {}),
    ],
)  # fmt: skip
def test_claims_worked_by_hand(text, said):
    assert {name: set(classes) for name, classes in claims(text).items()} == said


def test_a_changed_attribute_is_noticed_where_the_text_mentions_it():
    """Full captions of one person against the same person with one attribute changed: false if it was mentioned."""
    changed = 0
    for a in PEOPLE:
        for name in ("gender", "facial_hair", "glasses", "hat", "clothing", "clothing_color", "eye_color"):
            other = next(c for c in CHOICES[name][::-1] if c != getattr(a, name))
            b = dataclasses.replace(a, **{name: other})
            for text in captions(a, 3):
                said = claims(text).get(name)
                assert (name in contradicts(text, b)) == (said is not None and other not in said), (text, name)
                changed += said is not None
    assert changed > 1500


def test_what_cannot_be_seen():
    def shown(**values):
        a = Attributes(seed=0, **values)
        return {aspect.name for aspect in ASPECTS if aspect.visible(a) and aspect.of(a)}

    assert not {"hair_style", "hair_color", "fringe", "brows"} & shown(hair_style="short", hat="cap")
    assert {"hair_style", "hair_color", "hat_color"} <= shown(hair_style="long", hat="cap")
    assert {"hair_style", "hair_color"} & shown(hair_style="bald") == {"hair_style"}
    assert "hair_color" in shown(hair_style="bald", facial_hair="full")
    assert not {"frame_color", "eye_color"} & shown(glasses="sun") and "frame_color" in shown(glasses="round")
    assert not {"hat_color", "earring_color", "beard_length", "frame_color"} & shown()
    assert "earrings" not in shown(hair_style="bob", earrings="hoops") and "earrings" in shown(hair_style="bun")


def test_partial_captions_tell_a_little_that_can_be_seen():
    for a in PEOPLE[:60]:
        for seed in range(4):
            said = claims(partial_caption(a, seed))
            assert 1 <= len(said) <= 6
            hidden = {x.name for x in ASPECTS if not x.visible(a)} - {"facial_hair", "glasses", "hat", "hair_texture"}
            assert not hidden & set(said), (partial_caption(a, seed), hidden)
    assert partial_caption(PEOPLE[0], 3) == partial_caption(PEOPLE[0], 3)
    assert len({partial_caption(PEOPLE[0], seed) for seed in range(30)}) > 20
