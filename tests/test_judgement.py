"""What the judge of generated people counts, on answers that are known."""

from copy import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_conditional import CENTRES, Z, model, people, prior, trained  # noqa: F401
from toys import ball_capture

from minirodin import judgement
from minirodin.avatars.attributes import sample_attributes
from minirodin.classifier import HEADS, HIDDEN, WIDTHS, label_table
from minirodin.errors import DataError
from minirodin.judgement import EDITS, RELATED, agreement, judge_edits, judge_portraits, judge_texts, named, sculpted
from minirodin.latent_diffusion import LatentModel
from minirodin.pipeline import RodinPipeline
from minirodin.portraits import Portraits

COLUMN = {name: i for i, name in enumerate(HEADS)}


class Eyes:
    """An encoder that sees the mean colour of a picture, and of a text the number of its letters."""

    fingerprint = "E"

    def images(self, pictures):
        return F.normalize(pictures.mean((2, 3)) @ torch.eye(3, Z) + 0.01, dim=1)

    def texts(self, texts):
        return torch.stack([CENTRES[len(text) % 3] for text in texts])


@pytest.fixture(scope="module")
def pipe(model, prior):  # noqa: F811
    return RodinPipeline(model, Eyes(), LatentModel.load(prior, "cpu"))


@pytest.fixture(scope="module")
def portraits():
    pictures = [torch.from_numpy(ball_capture(f"{i}", 2, 32, tint=(0.1 * i, 0.5, 0.3)).images) for i in range(6)]
    return Portraits([f"{i}" for i in range(6)], torch.stack(pictures), [sample_attributes(i) for i in range(6)])


def test_agreement_counts_what_can_be_seen():
    wanted = torch.zeros(4, len(HEADS), dtype=torch.long)
    found = wanted.clone()
    found[:2, COLUMN["hat"]] = 1  # two of four wrong
    wanted[1:, COLUMN["glasses"]] = HIDDEN  # one is seen, and right
    wanted[:, COLUMN["fringe"]] = HIDDEN
    found[:, COLUMN["fringe"]] = 1
    result = agreement(found, wanted)
    assert result["attributes"]["hat"] == 0.5 and result["attributes"]["glasses"] == 1.0
    assert "fringe" not in result["attributes"]
    assert result["mean"] == pytest.approx((len(HEADS) - 2 + 0.5) / (len(HEADS) - 1))


def test_named_is_the_likeliest_class_of_each_head():
    answers = torch.randint(0, 2, (300, len(HEADS)), generator=torch.Generator().manual_seed(0))

    def predict(pictures):
        rows = answers[pictures[:, 0, 0, 0].long()]
        return {n: F.one_hot(rows[:, i], w).float() for i, (n, w) in enumerate(zip(HEADS, WIDTHS, strict=True))}

    pictures = torch.arange(300.0).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    assert torch.equal(named(SimpleNamespace(predict=predict), pictures), answers)


def test_person_and_noise_do_not_depend_on_the_batch(pipe, monkeypatch):
    z = F.normalize(torch.randn(5, Z, generator=torch.Generator().manual_seed(1)), dim=1)
    planes, pictures = sculpted(pipe, z, 1.5, 2, seed=40, show=False)
    assert planes.shape[0] == 5 and pictures.shape == (5, 3, judgement.PICTURE, judgement.PICTURE)
    monkeypatch.setattr(judgement, "BATCH", 2)
    torch.testing.assert_close(sculpted(pipe, z, 1.5, 2, seed=40, show=False)[0], planes, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pipe.sculpt(z[3], 43, 1.5, 2).planes, planes[3], rtol=1e-3, atol=1e-4)


def test_the_upsampler_takes_part_where_there_is_one(pipe, monkeypatch):
    class Half:
        encoder, given = "E", []

        def upsample(self, planes, seed, latents):
            self.given.append((seed, latents))
            return 0.5 * planes

    monkeypatch.setattr(judgement, "BATCH", 2)
    z, whole = F.normalize(torch.randn(3, Z, generator=torch.Generator().manual_seed(1)), dim=1), copy(pipe)
    whole.upsampler = Half()
    planes, pictures = sculpted(whole, z, 1.5, 2, seed=40, show=False)
    alone, others = sculpted(pipe, z, 1.5, 2, seed=40, show=False)
    torch.testing.assert_close(planes, 0.5 * alone)
    assert not torch.equal(pictures, others)
    (first, some), (second, rest) = whole.upsampler.given
    assert (first, second) == (40, 42) and torch.equal(torch.cat([some, rest]), z)
    whole.upsampler.encoder = ""
    sculpted(whole, z, 1.5, 1, show=False)
    assert whole.upsampler.given[-1] == (2, None)


def test_portraits_that_come_back_unchanged(pipe, portraits, monkeypatch):
    """If every avatar looked as its portrait does, everything is right, and nothing varies."""
    truth = label_table(portraits.attributes).clamp_min(0)
    real = judgement.plain(portraits.pictures[:, 0], judgement.PICTURE)
    monkeypatch.setattr(judgement, "sculpted", lambda *_, **__: (None, real))
    monkeypatch.setattr(judgement, "named", lambda *_: truth)
    result = judge_portraits(pipe, None, portraits, (0.0, 2.0), show=False)
    assert set(result["scales"]) == {"0", "2"} and result["people"] == 6
    row = result["scales"]["2"]
    assert row["agreement"]["mean"] == result["real"]["mean"] == row["recognised"] == 1.0 and row["variety"] == 0.0
    assert row["identity"] == pytest.approx([1.0] * 6) and max(row["strangers"]) < 1.0
    shuffled = real.roll(1, 0)  # everybody came out as somebody else
    monkeypatch.setattr(judgement, "sculpted", lambda *_, **__: (None, shuffled))
    row = judge_portraits(pipe, None, portraits, (1.0,), show=False)["scales"]["1"]
    assert row["recognised"] == 0.0 and max(row["identity"]) < 1.0


def test_texts_are_held_against_the_right_heads(pipe, monkeypatch):
    """People who are as the prompts' seeds say fulfil every claim; others do not."""
    count = 300
    truth = label_table([sample_attributes(1_500_000 + i) for i in range(count)])
    monkeypatch.setattr(judgement, "sculpted", lambda *_, **__: (None, None))
    monkeypatch.setattr(judgement, "named", lambda *_: truth)
    result = judge_texts(pipe, None, count, show=False)
    assert result["mean"] == 1.0, {k: v for k, v in result["attributes"].items() if v["rate"] < 1}
    assert len(result["attributes"]) > 12 and sum(v["claims"] for v in result["attributes"].values()) > count
    monkeypatch.setattr(judgement, "named", lambda *_: truth.roll(1, 0))
    assert judge_texts(pipe, None, count, show=False)["mean"] < 0.6
    monkeypatch.setattr(judgement, "claims", lambda _: {})
    with pytest.raises(DataError, match="claim nothing"):
        judge_texts(pipe, None, count, show=False)


def test_edits_count_what_was_asked_and_the_rest(pipe, portraits, monkeypatch):
    before = label_table(portraits.attributes)
    calls = iter([None, *EDITS])
    monkeypatch.setattr(judgement, "sculpted", lambda *_, **__: (None, None))

    def answers(*_):
        edit, found = next(calls), before.clamp_min(0).clone()
        if edit:
            found[:, COLUMN[edit[0]]] = HEADS[edit[0]].index(edit[1])
            for other in RELATED[edit[0]]:
                found[:, COLUMN[other]] = 0  # may change
        return found

    monkeypatch.setattr(judgement, "named", answers)
    result = judge_edits(pipe, None, portraits, show=False)
    assert result["mean"] == {"changed": 1.0, "kept": 1.0} and len(result["edits"]) > 6
    assert all(row["people"] for row in result["edits"].values())

    calls = iter([None, *[None] * len(EDITS)])  # nothing happens
    assert judge_edits(pipe, None, portraits, show=False)["mean"] == {"changed": 0.0, "kept": 1.0}


def test_edits_name_what_exists():
    for head, name, target, source in EDITS:
        assert name in HEADS[head] and head in RELATED and target and source
    assert all(other in HEADS for others in RELATED.values() for other in others)
