"""The attribute classifier: what counts as hidden, that it learns, its files, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_portraits import write_people

from minirodin import cli
from minirodin.avatars.attributes import CHOICES, COLORS, Attributes, sample_attributes
from minirodin.classifier import (
    HEADS,
    WIDTHS,
    AttributeClassifier,
    ClassifierNetwork,
    accuracy,
    classifier_losses,
    hidden,
    label_table,
    labels,
    train_classifier,
)
from minirodin.config import ClassifierConfig, Config, TrainConfig, preset
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.portraits import Portraits


def config(**train) -> Config:
    """A network of a few thousand parameters on 16² pixels."""
    settings = {"steps": 6, "batch": 4, "lr": 1e-2, "warmup": 5, "ema": 0.9, "preview_every": 3, "checkpoint_every": 3}
    classifier = ClassifierConfig(size=16, channels=(8, 16), train=TrainConfig(**settings | {"log_every": 3} | train))
    return replace(preset("smoke"), classifier=classifier)


def toy(seeds) -> Portraits:
    """Two pictures each of people who are a square in the colour of the hat that they all wear."""
    colours = ("red", "green", "blue", "yellow")
    people = [replace(sample_attributes(seed), hat="cap", hat_color=colours[seed % 4]) for seed in seeds]
    pictures = torch.zeros(len(people), 2, 24, 24, 4, dtype=torch.uint8)
    for picture, a in zip(pictures, people, strict=True):
        picture[:, 5:19, 5:19] = (torch.tensor([*COLORS[a.hat_color], 1.0]) * 255).round().byte()
    return Portraits([f"{s:06d}" for s in seeds], pictures, people)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    classifier = train_classifier(toy(range(8)), config(), folder, toy(range(8, 12)), show_progress=False)
    return classifier, folder


def pictures(count=3, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


EVERYTHING = Attributes(
    seed=0, age=50, skin_tone=0.6, hair_style="short", fringe=True, facial_hair="full", facial_hair_length=0.9,
    glasses="round", frame_color="gold", hat="none", hat_color="pink", earrings="hoops",
)  # fmt: skip


def test_labels_index_the_classes():
    found = labels(EVERYTHING)
    assert list(found) == list(HEADS) and hidden(EVERYTHING) == {"hat_color"}
    named = {name: HEADS[name][i] for name, i in found.items() if i >= 0}
    direct = {name: getattr(EVERYTHING, name) for name in named if name in CHOICES}
    assert len(direct) == len(named) - 4 and {name: named[name] for name in direct} == direct
    binned = {"age": "middle-aged", "skin_tone": "brown", "beard_length": "long", "fringe": "yes"}
    assert {name: named[name] for name in binned} == binned
    ages = [HEADS["age"][labels(replace(EVERYTHING, age=age))["age"]] for age in (18, 31.9, 32, 44, 45, 61, 62, 85)]
    assert ages == ["young"] * 2 + ["adult"] * 2 + ["middle-aged"] * 2 + ["old"] * 2


@pytest.mark.parametrize(
    ("change", "unseen"),
    [
        ({"hat": "cap"}, {"hair_style", "fringe"}),  # the beard tells the colour of the hair …
        ({"hat": "cap", "facial_hair": "stubble"}, {"hair_style", "hair_color", "fringe", "beard_length"}),
        ({"hat": "cap", "hair_color": "pink"}, {"hair_style", "hair_color", "fringe"}),  # … unless that is dyed
        ({"hat": "beanie", "hair_style": "long"}, {"fringe", "earrings"}),
        ({"hair_style": "bald", "fringe": False}, {"fringe", "hat_color"}),
        ({"hair_style": "bald", "facial_hair": "none"}, {"hair_color", "fringe", "beard_length", "hat_color"}),
        ({"hair_style": "bob"}, {"earrings", "hat_color"}),
        ({"hair_style": "curly"}, {"earrings", "hat_color"}),
        ({"hair_style": "afro", "fringe": False}, {"fringe", "hat_color"}),
        ({"facial_hair": "none"}, {"beard_length", "hat_color"}),
        ({"facial_hair": "goatee"}, {"beard_length", "hat_color"}),
        ({"glasses": "none"}, {"frame_color", "hat_color"}),
        ({"glasses": "sun"}, {"frame_color", "hat_color"}),
        ({"glasses": "square"}, {"hat_color"}),
    ],
)
def test_labels_are_masked_exactly_where_nothing_shows(change, unseen):
    assert {name for name, label in labels(replace(EVERYTHING, **change)).items() if label == -1} == unseen


def test_every_class_has_a_name_and_comes_up():
    table = label_table([sample_attributes(seed) for seed in range(800)])
    for (name, classes), column in zip(HEADS.items(), table.unbind(1), strict=True):
        assert column.unique().tolist()[-len(classes) :] == list(range(len(classes))), name
        assert (column >= 0).float().mean() > 0.1, name


def test_the_loss_is_the_mean_over_what_is_seen():
    logits = torch.randn(3, sum(WIDTHS), generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = torch.full((3, len(HEADS)), -1)
    wanted[0, 0], wanted[2, 3] = 1, 4
    found = classifier_losses(logits, wanted)
    at = sum(WIDTHS[:3])
    by_hand = [-logits[0, :2].log_softmax(0)[1], -logits[2, at : at + WIDTHS[3]].log_softmax(0)[4]]
    assert torch.allclose(found["loss"], sum(by_hand) / 2)
    found["loss"].backward()
    assert (logits.grad != 0).nonzero().tolist() == [[0, 0], [0, 1], *([2, at + i] for i in range(WIDTHS[3]))]
    perfect = torch.zeros(3, sum(WIDTHS))
    perfect[0, 1] = perfect[2, at + 4] = 20.0
    assert classifier_losses(perfect, wanted)["accuracy"] == 1
    assert classifier_losses(perfect, wanted, smoothing=0.2)["loss"] > 1 > classifier_losses(perfect, wanted)["loss"]
    assert classifier_losses(perfect, torch.full_like(wanted, -1))["loss"] == 0  # nothing to see, no division by zero


def test_it_learns_the_colour_of_a_hat(tmp_path):
    classifier = train_classifier(
        toy(range(32)), config(steps=160, batch=32, log_every=160, preview_every=160, checkpoint_every=160), tmp_path,
        show_progress=False,
    )  # fmt: skip
    found = accuracy(classifier, toy(range(100, 116)))
    colour = found["attributes"]["hat_color"]
    assert colour["accuracy"] > 0.9 and colour["most_frequent"] == 0.25 and colour["count"] == 32
    assert found["people"] == 16 and found["pictures"] == 32
    assert found["attributes"]["hat"]["most_frequent"] == 1  # all wear a cap
    shown = found["attributes"].values()
    assert found["mean"] == pytest.approx(sum(a["accuracy"] for a in shown) / len(shown))


def test_accuracy_counts_only_what_is_seen(monkeypatch, trained):
    """A judge who says class 0 of everything is right as often as class 0 comes up among what is seen."""
    classifier, _ = trained
    people = toy(range(12))
    people = replace(people, attributes=[replace(sample_attributes(s), glasses="none") for s in range(12)])
    answer = {name: torch.eye(len(classes))[:1].expand(5, -1) for name, classes in HEADS.items()}
    monkeypatch.setattr(classifier, "predict", lambda x: {k: v[:1].expand(len(x), -1) for k, v in answer.items()})
    found = accuracy(classifier, people, batch=5)["attributes"]
    assert set(HEADS) - set(found) == {"frame_color"}  # of nobody seen
    for name, value in found.items():
        seen = [labels(a)[name] for a in people.attributes if labels(a)[name] >= 0]
        assert value["count"] == 2 * len(seen) and value["accuracy"] == pytest.approx(seen.count(0) / len(seen))
        assert value["most_frequent"] == pytest.approx(max(seen.count(i) for i in seen) / len(seen))


def test_a_loaded_classifier_predicts_the_same_bits(trained):
    classifier, folder = trained
    one, two = classifier.predict(pictures()), AttributeClassifier.load(folder, "cpu").predict(pictures())
    assert list(one) == list(HEADS) and all(torch.equal(one[name], two[name]) for name in HEADS)
    for name, classes in HEADS.items():
        assert one[name].shape == (3, len(classes)) and one[name].min() >= 0
        assert torch.allclose(one[name].sum(1), torch.ones(3))
    flat = pictures()[:, :, :1, :1]
    small, large = (classifier.predict(flat.expand(-1, -1, size, size))["hat"] for size in (16, 40))
    assert torch.allclose(small, large, atol=1e-5) and (small[0] - small[1]).abs().max() > 1e-4


def test_training_resumes_to_the_same_weights_and_logs_validation(trained, tmp_path, monkeypatch):
    from minirodin.training import Trainer

    advance = Trainer.advance

    def killed(self):
        if self.step == 4:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(toy(range(8)), config(), tmp_path, toy(range(8, 12)), show_progress=False)
    monkeypatch.setattr(Trainer, "advance", advance)
    train_classifier(toy(range(8)), config(), tmp_path, toy(range(8, 12)), show_progress=False)
    one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path, trained[1]))
    assert all(torch.equal(one[name], two[name]) for name in two)
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert "validation_accuracy" in header and "accuracy" in header and len(rows) == 2
    with pytest.raises(CheckpointError, match="other data or settings"):
        train_classifier(toy(range(1, 9)), config(), tmp_path, show_progress=False)


@pytest.mark.parametrize(("size", "given"), [("small", (1e6, 3e6)), ("smoke", (1e5, 1e6))])
def test_size_of_the_presets(size, given):
    count = sum(p.numel() for p in ClassifierNetwork(preset(size).classifier).parameters())
    assert given[0] < count < given[1]
    assert preset(size).classifier.size == {"small": 144, "smoke": 64}[size]


def test_bad_input_is_one_line(trained, tmp_path):
    classifier, folder = trained
    for bad in (pictures()[0], pictures().byte(), pictures().permute(0, 2, 3, 1)):
        with pytest.raises(DataError, match="give floats in"):
            classifier.predict(bad)
    for change in ({"channels": ()}, {"channels": (8, 12)}, {"size": 18}, {"size": 0}):
        with pytest.raises(ConfigError, match="multiple"):
            ClassifierNetwork(replace(config().classifier, **change))
    with pytest.raises(CheckpointError, match="does not exist"):
        AttributeClassifier.load(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    for metadata, words in (
        ({"kind": "base model"}, "expected a attribute classifier|base model"),
        ({"kind": "attribute classifier"}, "no usable configuration"),
        ({"kind": "attribute classifier", "config": json.dumps(config().to_dict()), "heads": "{}"}, "other attributes"),
    ):
        save_file(tensors, tmp_path / "model.safetensors", metadata)
        with pytest.raises(CheckpointError, match=words):
            AttributeClassifier.load(tmp_path)


SHORT = ["--classifier.train.steps=2", "--classifier.train.batch=2", "--classifier.size=16", "--classifier.channels"]


def test_train_and_assess_on_the_command_line(tmp_path, capsys):
    people, other = write_people(tmp_path / "people", range(3)), write_people(tmp_path / "other", range(3, 5))
    out, numbers = tmp_path / "out", tmp_path / "numbers.json"
    command = ["train", "classifier", "--preset", "smoke", "--data", str(people), "--out", str(out), *SHORT, "8", "16"]
    assert cli.main([*command, "--validation", str(other)]) == 0
    assert f"minirodin assess {out} {other}" in capsys.readouterr().out
    assert cli.main(["assess", str(out), str(other), "--out", str(numbers)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(numbers.read_text())
    assert printed["kind"] == "attribute classifier" and printed["people"] == 2 and printed["pictures"] == 4
    assert {"date", "commit", "device"} <= set(printed) and 0 <= printed["mean"] <= 1
    assert AttributeClassifier.load(out, "cpu").config.classifier.channels == (8, 16)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "classifier", "--data", "x", "--out", "y", "--variant", "aware"], "--variant means nothing to"),
        (
            ["train", "classifier", "--data", "x", "--out", "y", "--begin-from", "z"],
            "`train classifier`, it is for `train base`, `train refiner`, `train encoder`:",
        ),
        (["train", "classifier", "--data", "x", "--out", "y", "--base.train.steps", "3"], "--base.… means nothing to"),
        (["train", "classifier", "--data", "x", "--out", "y", "--fit.rays", "3"], "--fit.… means nothing to"),
        (["train", "base", "--data", "x", "--out", "y", "--classifier.size", "32"], "it is for `train classifier`"),
        (["train", "classifier", "--data", "x", "--out", "y"], "x is not a folder"),
        (["assess", "x", "y"], "does not exist"),
    ],
)
def test_flags_that_do_not_apply_are_refused(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_assess_names_what_it_cannot_measure(tmp_path, capsys):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", {"kind": "base model"})
    assert cli.main(["assess", str(tmp_path), "people"]) == 2
    assert "holds a base model, which assess does not measure" in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes(b"half")
    assert cli.main(["assess", str(tmp_path), "people"]) == 2
    assert "cut short or damaged" in capsys.readouterr().err
