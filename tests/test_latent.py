"""The image–text encoder: its space, its words, its losses against slow loops, portraits of any kind, its files."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from toys import ball_capture

from minirodin import cli, latent
from minirodin.avatars.attributes import sample_attributes
from minirodin.avatars.captions import caption, captions
from minirodin.avatars.prompts import ASPECTS, contradicts, partial_caption
from minirodin.cameras import save_capture
from minirodin.config import Config, EncoderConfig, TrainConfig, preset
from minirodin.encoder_training import (
    IGNORE,
    WIDTHS,
    Lessons,
    _retrieval,
    aspect_loss,
    assess_encoder,
    build_tokenizer,
    claim_bits,
    class_bits,
    contrastive_loss,
    encoder_losses,
    prompt_loss,
    prompt_texts,
    targets,
    train_encoder,
    true_of,
)
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.latent import ImageTextEncoder, build_towers
from minirodin.latents import CAPTIONS, PARTIAL, Latents, encode_people
from minirodin.portraits import Portraits, plain, read_portrait
from minirodin.tokens import FIRST, START, UNKNOWN, CompactTokenizer, bpe

SIZES = {"size": 32, "patch": 16, "width": 32, "layers": 1, "text_width": 32, "text_layers": 1, "head_width": 16}
TEXTS = ["a woman with red hair", "a man with a full beard, smiling", "someone wearing a blue cap"]


def config(**train) -> Config:
    """A network of some ten thousand parameters on 32² pixels."""
    schedule = {"steps": 4, "batch": 4, "lr": 1e-2, "warmup": 2, "ema": 0.5, "log_every": 2, "preview_every": 2}
    schedule |= {"checkpoint_every": 2, "graph": False, **train}
    few = {"captions": 2, "partial_captions": 1, "tower": "", "attribute_weight": 0.5}
    encoder = EncoderConfig(**SIZES, dimensions=512, **few, train=TrainConfig(**schedule))
    return replace(preset("smoke"), encoder=encoder)


def toy(seeds) -> Portraits:
    """Two pictures each of people who are a square of their own colour."""
    pictures = torch.zeros(len(seeds), 2, 24, 24, 4, dtype=torch.uint8)
    for picture, seed in zip(pictures, seeds, strict=True):
        tint = torch.rand(3, generator=torch.Generator().manual_seed(seed)) * 255
        picture[:, 4:20, 4:20] = torch.tensor([*tint, 255]).byte()
    return Portraits([f"{s:06d}" for s in seeds], pictures, [sample_attributes(seed) for seed in seeds])


def write_toy(folder, seeds):
    for seed in seeds:
        capture = replace(ball_capture(f"{seed:06d}", 2, 24, tint=(0.1 * (seed % 9), 0.5, 0.3)), caption="somebody")
        save_capture(replace(capture, attributes=sample_attributes(seed).to_dict()), folder / f"{seed:06d}")
    return folder


@pytest.fixture(scope="module")
def encoder() -> ImageTextEncoder:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(48)
    return ImageTextEncoder(build_towers(config().encoder, tokenizer.size), tokenizer, config=config())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return train_encoder(toy(range(6)), config(), folder, toy(range(6, 9)), show_progress=False), folder


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the space ----


def test_images_and_texts_have_unit_norm_in_one_space(encoder):
    images, texts = encoder.images(random(3, 3, 50, 41)), encoder.texts(TEXTS)
    assert images.shape == texts.shape == (3, 512) and encoder.size == 512
    assert images.dtype == texts.dtype == torch.float32
    for z in (images, texts):
        assert torch.allclose(z.norm(dim=1), torch.ones(3), atol=1e-6)
    assert encoder.images(random(0, 3, 32, 32)).shape == (0, 512)


def test_a_residual_tower(tmp_path):
    settings = replace(config(), encoder=replace(config().encoder, tower="residual"))
    encoder = train_encoder(toy(range(6)), settings, tmp_path, show_progress=False)
    pictures = random(3, 3, 32, 32)
    assert torch.allclose(ImageTextEncoder.load(tmp_path, "cpu").images(pictures), encoder.images(pictures), atol=1e-6)
    assert torch.allclose(encoder.images(pictures), torch.cat([encoder.images(p[None]) for p in pictures]), atol=1e-6)
    with pytest.raises(ConfigError, match="nonsense"):
        build_towers(replace(settings.encoder, tower="nonsense"), 50)


def test_a_residual_tower_of_unusable_sizes_is_refused():
    for change, named in (({"channels": (8, 12)}, "encoder.channels"), ({"channels": (8,) * 6}, "encoder.size")):
        with pytest.raises(ConfigError, match=named):
            build_towers(replace(config().encoder, tower="residual", **change), 50)


def test_frozen_and_unchanged_by_use(encoder):
    before = {name: value.clone() for name, value in encoder.towers.state_dict().items()}
    pictures = random(2, 3, 32, 32).requires_grad_()
    z = encoder.images(pictures)
    assert not z.requires_grad and not encoder.texts(TEXTS).requires_grad
    assert not any(p.requires_grad for p in encoder.towers.parameters())
    assert not any(module.training for module in encoder.towers.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.towers.state_dict().items())


def test_training_on_latents_leaves_the_encoder_as_it_is(encoder):
    before = latent.fingerprint(encoder.towers)
    head = nn.Linear(512, 1)
    optimiser = torch.optim.SGD([*head.parameters(), *encoder.towers.parameters()], lr=1.0)
    head(encoder.images(random(4, 3, 32, 32))).sum().backward()
    optimiser.step()
    assert latent.fingerprint(encoder.towers) == before


def test_an_embedding_does_not_depend_on_its_batch(encoder):
    pictures = random(5, 3, 32, 32)
    together, alone = encoder.images(pictures), torch.cat([encoder.images(p[None]) for p in pictures])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(encoder.images(pictures, batch=2), together, atol=1e-6)
    words = torch.cat([encoder.texts([text]) for text in TEXTS])
    assert torch.allclose(encoder.texts(TEXTS), words, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-4)


def test_pictures_are_resized_and_filled_up(encoder):
    small = random(2, 3, 32, 32)
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)  # the same picture, 128²
    assert (encoder.images(large) * encoder.images(small)).sum(1).min() > 0.99
    wide = torch.cat([small[..., :1].expand(2, 3, 32, 16), small, small[..., -1:].expand(2, 3, 32, 16)], dim=3)
    square = encoder._fit(wide)
    assert square.shape == (2, 3, 32, 32)
    tall = wide.mT  # filled up to the left and right with its own outermost columns
    filled = torch.nn.functional.pad(tall, (16, 16, 0, 0), mode="replicate")
    assert torch.allclose(encoder.images(tall), encoder.images(filled), atol=1e-6)


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        (torch.zeros(1, 3, 8, 32), "8 pixels"),
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\)"),
        (torch.zeros(1, 4, 32, 32), "3, H, W"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 32, 32), torch.nan), "NaN"),
    ],
)
def test_pictures_that_cannot_be_used(encoder, pictures, words):
    with pytest.raises(DataError, match=words) as error:
        encoder.images(pictures)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("texts", ["a woman", [""], ["a man", " \n\t"], [None], [7]])
def test_texts_that_cannot_be_used(encoder, texts):
    with pytest.raises(DataError) as error:
        encoder.texts(texts)
    assert "\n" not in str(error.value)


# ---- words ----


def test_captions_and_prompts_have_no_unknown_word():
    tokenizer, people = build_tokenizer(48), [sample_attributes(seed) for seed in range(1000, 1200)]
    texts = [text for a in people for text in (*captions(a, 4), partial_caption(a, 0))]
    texts += [text for row in prompt_texts(3) for text in row]
    for text in texts:
        ids = tokenizer.encode(text)
        assert UNKNOWN not in ids and len(ids) <= 48, text
        assert ids[0] == START and ids[-1] == tokenizer.end and tokenizer.end not in ids[:-1]
    assert tokenizer.size < 256


def test_compact_tokens_are_a_bijection_on_known_ones():
    tokenizer = build_tokenizer(48)
    assert sorted(tokenizer.ids.values()) == list(range(FIRST, tokenizer.end))
    for text in TEXTS:
        ids = tokenizer.encode(text)[1:-1]
        assert [tokenizer.vocabulary[i - FIRST] for i in ids] == bpe(text)
        assert tokenizer.decode(ids).replace(" ,", ",") == text


def test_tokens_by_words_are_those_of_the_whole_text():
    whole = latent.import_open_clip().tokenizer.SimpleTokenizer()
    for text in [*TEXTS, "A T-shirt;  it's MIDDLE-AGED, é 東京 &amp; 3D"]:
        assert bpe(text) == whole.encode(text)


def test_long_texts_are_cut_with_a_warning(encoder):
    text = "a woman with red hair and blue eyes " * 12
    with pytest.warns(UserWarning, match="too long"):
        cut = encoder.texts([text])
    tokens, long, _ = encoder.tokenizer([TEXTS[0], text])
    assert long == [1] and tokens.shape == (2, 48)
    assert tokens[1].tolist() == [*encoder.tokenizer.encode(text)[:47], encoder.tokenizer.end]
    kept = encoder.tokenizer.decode(tokens[1])
    assert torch.allclose(cut, encoder.texts([kept]), atol=1e-6)


@pytest.mark.parametrize("text", ["東京の女性", "Привет", "!!!", "x" * 10_000])
def test_texts_of_which_nothing_is_known_warn(encoder, text):
    with pytest.warns(UserWarning, match="knows no word"):
        assert torch.allclose(encoder.texts([text]).norm(dim=1), torch.ones(1))


def test_what_is_known_does_not_warn(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.texts([*TEXTS, "eine woman mit brown hair", "Red hair", "東京 woman"])


# ---- losses ----


def unit(*shape, seed=0):
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(z, dim=-1)


def test_contrastive_loss_is_that_of_a_plain_loop():
    images, texts, scale = unit(6, 8), unit(6, 8, seed=1), torch.tensor(7.0, dtype=torch.float64)
    fits = random(6, 6) < 0.3
    total = 0.0
    for i in range(6):
        for rows, columns, fit in ((images, texts, fits), (texts, images, fits.T)):
            against = [j for j in range(6) if j == i or not fit[i, j]]
            powers = [float((scale * rows[i] @ columns[j]).exp()) for j in against]
            total -= np.log(powers[against.index(i)] / sum(powers)) / 12
    assert abs(float(contrastive_loss(images, texts, scale, fits)) - total) < 1e-12
    assert contrastive_loss(images, texts, scale, ~torch.zeros_like(fits)) == 0  # nothing is wrong of anybody


def test_prompt_loss_is_that_of_a_plain_loop():
    widths, wanted = (2, 3, 2), torch.tensor([[0, 2, IGNORE], [1, IGNORE, IGNORE], [0, 0, IGNORE]])
    images, prompts, scale = unit(3, 8), unit(7, 8, seed=1), 5.0
    starts, means = (0, 2, 5), []
    for aspect, (start, width) in enumerate(zip(starts, widths, strict=True)):
        losses = []
        for image, target in zip(images, wanted[:, aspect].tolist(), strict=True):
            if target != IGNORE:
                powers = [float((scale * image @ prompts[start + c]).exp()) for c in range(width)]
                losses.append(-np.log(powers[target] / sum(powers)))
        means.append(np.mean(losses) if losses else 0.0)
    assert abs(float(prompt_loss(images, prompts, scale, wanted, widths)) - np.mean(means)) < 1e-12


def test_what_cannot_be_seen_gives_no_gradient():
    images, prompts = unit(3, 8).requires_grad_(), unit(5, 8, seed=1).requires_grad_()
    wanted = torch.tensor([[0, IGNORE], [1, IGNORE], [IGNORE, IGNORE]])
    prompt_loss(images, prompts, 5.0, wanted, (2, 3)).backward()
    assert not images.grad[2].any() and not prompts.grad[2:].any()
    assert images.grad[:2].any() and prompts.grad[:2].any()
    assert prompt_loss(images, prompts, 5.0, torch.full((3, 2), IGNORE), (2, 3)) == 0


def test_targets_are_the_classes_that_can_be_seen():
    people = [sample_attributes(seed) for seed in range(60)]
    table = targets(people)
    assert table.shape == (60, len(ASPECTS)) and len(WIDTHS) == len(ASPECTS)
    for row, a in zip(table.tolist(), people, strict=True):
        for aspect, target in zip(ASPECTS, row, strict=True):
            name = aspect.of(a)
            if target == IGNORE:
                assert name is None or not aspect.visible(a) or not aspect.phrases[name]
            else:
                assert aspect.classes[target] == name and aspect.visible(a)
    hats = targets([replace(people[0], hair_style="short", hat=hat) for hat in ("none", "cap")])
    style = [aspect.name for aspect in ASPECTS].index("hair_style")
    assert (hats[:, style] == IGNORE).tolist() == [False, True]


def test_bits_say_what_words_say():
    people = [replace(sample_attributes(seed), hat="none", hair_style="long", glasses="none") for seed in range(40)]
    texts = [partial_caption(a, 0) for a in people] + [captions(a, 1)[0] for a in people]
    fits, true = (true_of(claim_bits(texts), class_bits(people, seen_only=seen)) for seen in (True, False))
    for i, a in enumerate(people):
        for j, text in enumerate(texts):
            wrong = contradicts(text, a)
            assert bool(true[i, j]) == (not wrong), (text, a)
            assert bool(fits[i, j]) == all(not x.visible(a) for x in ASPECTS if x.name in wrong), (text, a)
    assert fits.diagonal().all() and 0.02 < fits.float().mean() < 0.5
    hidden = class_bits([replace(people[0], hat="cap", hair_style="buzz")])  # who knows what is under the hat
    assert true_of(claim_bits(["a person with a mohawk"]), hidden).all()


def test_lessons_draw_what_belongs_together():
    portraits, settings = toy(range(5)), replace(config().encoder, unknown=0.0)
    lessons = Lessons(portraits, build_tokenizer(48), settings)
    batch = lessons.draw(16, torch.Generator().manual_seed(3))
    again = lessons.draw(16, torch.Generator().manual_seed(3))
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert batch["pictures"].shape == (16, 3, 32, 32) and batch["tokens"].shape == (16 + sum(WIDTHS), 48)
    decode = build_tokenizer(48).decode
    said = [decode(row) for row in batch["tokens"]]
    rows = targets(portraits.attributes)
    for text, target in zip(said[:16], batch["targets"], strict=True):
        (who,) = [a for a, row in zip(portraits.attributes, rows, strict=True) if torch.equal(row, target)]
        assert contradicts(text.replace(" - ", "-"), who) == []
    assert len(set(said[:16])) > 6
    names = [(x, name) for x in ASPECTS for name in x.classes if x.phrases[name]]
    for (aspect, name), text in zip(names, said[16:], strict=True):
        assert aspect.claim(text.replace(" - ", "-").replace("3 d", "3d")) == (name,), text
    strange = Lessons(portraits, build_tokenizer(48), replace(settings, unknown=0.3)).draw(64, torch.Generator())
    known = (strange["tokens"] >= FIRST) & (strange["tokens"] < build_tokenizer(48).end)
    lost = strange["tokens"] == UNKNOWN
    assert 0.25 < float(lost.sum() / (lost | known).sum()) < 0.35


def test_coloured_squares_are_learned():
    """Eight things, a colour in a place: soon each picture is closest to its own words, and the other way about."""
    colours = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.1, 0.2, 0.9), "white": (1, 1, 1)}
    things = [(c, side) for c in colours for side in ("left", "right")]
    texts = [f"a {colour} square on the {side}" for colour, side in things]
    tokenizer = CompactTokenizer.of_texts(texts, 12)
    torch.manual_seed(0)
    towers = build_towers(replace(config().encoder, context=12), tokenizer.size)
    tokens, generator = tokenizer(texts)[0], torch.Generator().manual_seed(0)

    def draw():
        pictures = 0.3 * torch.rand(8, 3, 32, 32, generator=generator)
        for picture, (colour, side) in zip(pictures, things, strict=True):
            y, x = torch.randint(0, 16, (1,), generator=generator), 2 if side == "left" else 16
            picture[:, y : y + 12, x : x + 12] = torch.tensor(colours[colour])[:, None, None]
        return pictures

    optimiser = torch.optim.Adam(towers.parameters(), lr=3e-3)
    for _ in range(120):
        batch = {"pictures": draw(), "tokens": tokens, "fits": torch.eye(8, dtype=torch.bool)}
        images, words, scale, _ = towers(batch["pictures"], batch["tokens"])
        loss = contrastive_loss(images, words, scale, batch["fits"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    encoder = ImageTextEncoder(towers, tokenizer)
    similarity = encoder.images(draw()) @ encoder.texts(texts).T
    own = similarity.diagonal()
    others = similarity.masked_fill(torch.eye(8, dtype=torch.bool), -1)
    assert (own > others.amax(0)).all() and (own > others.amax(1)).all(), similarity
    assert _retrieval(similarity, torch.eye(8, dtype=torch.bool))["recall@1"] == 1


def test_the_temperature_is_bounded():
    towers = build_towers(config().encoder, 20)
    with torch.no_grad():
        towers.clip.logit_scale.fill_(50.0)
    assert towers(torch.zeros(1, 3, 32, 32), torch.zeros(1, 48, dtype=torch.long))[2] == 100


def test_one_call_of_the_network_a_step(encoder):
    settings = replace(config().encoder, prompt_weight=2.0, attribute_weight=0.5)
    lessons, calls = Lessons(toy(range(4)), encoder.tokenizer, settings), []

    def spy(*inputs):
        calls.append([tuple(x.shape) for x in inputs])
        return encoder.towers(*inputs)

    for seed in range(2):
        batch = lessons.draw(4, torch.Generator().manual_seed(seed))
        values = encoder_losses(spy, batch, settings)
        images, texts, scale, named = encoder.towers(batch["pictures"], batch["tokens"])
        assert torch.equal(values["captions"], contrastive_loss(images, texts[:4], scale, batch["fits"]))
        assert torch.equal(values["prompts"], prompt_loss(images, texts[4:], scale, batch["targets"]))
        assert torch.equal(values["attributes"], aspect_loss(named, batch["targets"], smoothing=0.05))
    total = values["captions"] + 2 * values["prompts"] + 0.5 * values["attributes"]
    assert torch.allclose(values["loss"], total)
    with_none = encoder_losses(lambda *inputs: (images, texts, scale, None), batch, settings)
    assert torch.allclose(with_none["loss"], total - 0.5 * values["attributes"]) and "attributes" not in with_none
    assert calls == [[(4, 3, 32, 32), (4 + sum(WIDTHS), 48)]] * 2


def test_what_strays_from_its_beginning_is_told(encoder):
    """stay is 1 − cos to where the picture was, and pulls it back."""
    settings = replace(config().encoder, stay_weight=3.0)
    batch = Lessons(toy(range(4)), encoder.tokenizer, settings).draw(4, torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    other = build_towers(settings, encoder.tokenizer.size)
    values = encoder_losses(other, batch, settings, encoder)
    pairs = zip(other(batch["pictures"], batch["tokens"])[0], encoder.images(batch["pictures"]), strict=True)
    by_hand = torch.stack([1 - (a * b).sum() for a, b in pairs])
    torch.testing.assert_close(values["stay"], by_hand)
    without = encoder_losses(other, batch, replace(settings, stay_weight=0.0), encoder)
    torch.testing.assert_close(values["loss"], without["loss"] + 3 * by_hand.mean())
    assert "stay" not in without and by_hand.min() > 0.1
    at_home = encoder_losses(encoder.towers, batch, settings, encoder)
    assert at_home["stay"].abs().max() < 1e-5
    optimiser = torch.optim.Adam(other.parameters(), lr=1e-2)
    for _ in range(15):
        optimiser.zero_grad()
        encoder_losses(other, batch, settings, encoder)["stay"].mean().backward()
        optimiser.step()
    again = encoder_losses(other, batch, settings, encoder)["stay"]
    assert again.mean() < 0.5 * by_hand.mean() and not any(p.grad is not None for p in encoder.towers.parameters())


def test_heads_teach_pictures_what_no_text_tells_apart_yet():
    """While all prompts of an aspect are alike, pictures have no reason to differ: only the heads give them one."""
    images, wanted = nn.functional.normalize(random(6, 8), dim=1).requires_grad_(), torch.arange(6)[:, None] % 3
    alike, heads = nn.functional.normalize(torch.ones(3, 8), dim=1), nn.Linear(8, 3)
    (deaf,) = torch.autograd.grad(prompt_loss(images, alike, 20.0, wanted, (3,)), images)
    (taught,) = torch.autograd.grad(aspect_loss(heads(images), wanted, (3,)), images)
    assert deaf.abs().max() < 1e-6 < taught.abs().max()


def test_encoders_from_before_there_were_heads_load(tmp_path):
    before = replace(config().encoder, attribute_weight=0.0)
    encoder = train_encoder(toy(range(6)), replace(config(), encoder=before), tmp_path, show_progress=False)
    assert encoder.towers.heads is None and ImageTextEncoder.load(tmp_path, "cpu").towers.heads is None


def test_retrieval_worked_by_hand():
    similarity = torch.tensor([[3.0, 1, 2], [3, 2, 1], [1, 3, 2]])  # own place: first, second, second
    fits = torch.eye(3, dtype=torch.bool)
    fits[1, 0] = True
    found = _retrieval(similarity, fits)
    assert found["recall@1"] == pytest.approx(1 / 3) and found["true@1"] == pytest.approx(2 / 3)
    assert found["recall@5"] == found["true@5"] == 1


# ---- training and files ----


def test_training_leaves_an_encoder_equal_to_its_file(trained):
    encoder, folder = trained
    again = ImageTextEncoder.load(folder, "cpu")
    pictures = random(2, 3, 40, 40)
    assert torch.equal(encoder.images(pictures), again.images(pictures))
    assert torch.equal(encoder.texts(TEXTS), again.texts(TEXTS))
    assert encoder.fingerprint == again.fingerprint == latent.fingerprint(again.towers)
    assert not any(p.requires_grad for p in again.towers.parameters())
    header, *rows = (folder / "log.csv").read_text().splitlines()
    assert {"captions", "prompts", "scale", "recall_at_1", "zero_shot"} <= set(header.split(",")) and len(rows) == 2
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
    untrained = build_towers(config().encoder, encoder.tokenizer.size)
    assert latent.fingerprint(untrained) != encoder.fingerprint


def test_a_finished_run_is_kept_and_a_killed_one_goes_on(trained, tmp_path, monkeypatch):
    encoder, folder = trained
    before = load_file(folder / "model.safetensors")
    again = train_encoder(toy(range(6)), config(), folder, show_progress=False)
    after = load_file(folder / "model.safetensors")
    assert again.fingerprint == encoder.fingerprint and all(torch.equal(after[key], before[key]) for key in before)

    def killed(self, count, generator, draws=[0], draw=Lessons.draw):  # noqa: B006
        draws[0] += 1
        if draws[0] == 4:
            raise KeyboardInterrupt
        return draw(self, count, generator)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Lessons, "draw", killed)
        train_encoder(toy(range(6)), config(), tmp_path, toy(range(6, 9)), show_progress=False)
    resumed = train_encoder(toy(range(6)), config(), tmp_path, toy(range(6, 9)), show_progress=False)
    assert resumed.fingerprint == encoder.fingerprint
    with pytest.raises(CheckpointError, match="other data or settings"):
        train_encoder(toy(range(5)), config(), tmp_path, show_progress=False)


def test_training_begins_where_another_ended(trained, tmp_path):
    encoder, folder = trained
    still = config(steps=1, lr=0.0)
    same = train_encoder(toy(range(6)), still, tmp_path / "same", show_progress=False, start=folder)
    assert same.fingerprint == encoder.fingerprint and same.tokenizer.vocabulary == encoder.tokenizer.vocabulary
    tethered = config()
    tethered = replace(tethered, encoder=replace(tethered.encoder, stay_weight=1000.0))
    begun = [train_encoder(toy(range(6)), c, tmp_path / str(c.encoder.stay_weight), show_progress=False, start=folder)
             for c in (config(), tethered)]  # fmt: skip
    pictures = plain(toy(range(20, 26)).pictures[:, 0], 32)
    near = [float((other.images(pictures) * encoder.images(pictures)).sum(1).min()) for other in begun]
    assert near[0] < near[1] < 1, near
    with pytest.raises(CheckpointError, match="has shape"):
        other = replace(config(), encoder=replace(config().encoder, width=64))
        train_encoder(toy(range(6)), other, tmp_path / "other", show_progress=False, start=folder)
    with pytest.raises(ConfigError, match="stay_weight is -1"):
        wrong = replace(config(), encoder=replace(config().encoder, stay_weight=-1.0))
        train_encoder(toy(range(6)), wrong, tmp_path / "wrong", show_progress=False, start=folder)
    with pytest.raises(ConfigError, match="nothing to stay near: give --begin-from"):
        train_encoder(toy(range(6)), tethered, tmp_path / "wrong", show_progress=False)
    assert not (tmp_path / "other").exists() and not (tmp_path / "wrong").exists()


def test_assessment_adds_up(trained):
    encoder, _ = trained
    portraits = toy(range(20, 32))
    results = assess_encoder(encoder, portraits)
    assert results["people"] == 12
    for way in ("image_to_text", "text_to_image"):
        found = results[way]
        assert found["recall@1"] <= found["recall@5"] <= 1 and found["recall@1"] <= found["true@1"] <= found["true@5"]
    attributes = results["attributes"]
    assert attributes["gender"]["count"] == 24 and attributes["gender"]["most_frequent"] >= 0.5
    assert results["mean"] == pytest.approx(np.mean([r["accuracy"] for r in attributes.values()]))
    assert results["mean"] < 0.9  # it learned nothing in four steps
    table = targets(portraits.attributes)
    assert [x.name for x, t in zip(ASPECTS, table.T, strict=True) if (t != IGNORE).any()] == list(attributes)


def test_an_encoder_that_knows_everything_gets_full_marks():
    """Zero-shot scores and retrieval of an encoder that looks up who is in the picture."""
    portraits = toy(range(40, 56))
    portraits.pictures[:, :, :, :, :3] = torch.arange(16, dtype=torch.uint8)[:, None, None, None, None]
    portraits.pictures[..., 3] = 255
    table = targets(portraits.attributes)

    class Oracle:
        device = torch.device("cpu")
        towers = type("", (), {"size": 16})

        def images(self, pictures):
            who = (pictures[:, 0, 0, 0] * 255).round().long()
            said = torch.zeros(len(who), sum(WIDTHS))
            for row, wanted in zip(said, table[who], strict=True):
                for start, target in zip(np.cumsum([0, *WIDTHS]), wanted.tolist(), strict=False):
                    if target != IGNORE:
                        row[start + target] = 1
            return nn.functional.normalize(torch.cat([said, 9 * torch.eye(16)[who]], dim=1), dim=1)

        def texts(self, texts):
            own = {captions_of: i for i, captions_of in enumerate(self.captions)}
            z = torch.zeros(len(texts), sum(WIDTHS) + 16)
            for row, text in zip(z, texts, strict=True):
                place = sum(WIDTHS) + own[text] if text in own else self.prompts.get(text)
                row[place] = 1
            return z

    from minirodin.encoder_training import UNSEEN, caption

    oracle = Oracle()
    oracle.captions = [caption(a, UNSEEN) for a in portraits.attributes]
    oracle.prompts = {text: i for i, row in enumerate(prompt_texts()) for text in row}
    results = assess_encoder(oracle, portraits)
    assert results["image_to_text"]["recall@1"] == results["text_to_image"]["recall@1"] == 1
    assert all(r["accuracy"] == 1 for r in results["attributes"].values()), results["attributes"]


def test_files_that_cannot_be_used(trained, tmp_path):
    _, folder = trained
    tensors, whole = load_file(folder / "model.safetensors"), (folder / "model.safetensors").read_bytes()
    with latent_metadata(folder) as metadata:
        cases = {
            "cut short": lambda p: p.write_bytes(whole[: len(whole) // 2]),
            "is missing|expected|network|shape": lambda p: save_file(
                {k: v for k, v in tensors.items() if "proj" not in k}, p, metadata
            ),
            "vocabulary": lambda p: save_file(tensors, p, metadata | {"vocabulary": "[1, 2"}),
            "shape": lambda p: save_file(tensors, p, metadata | {"vocabulary": "[1, 2]"}),
            "configuration": lambda p: save_file(tensors, p, metadata | {"config": "{}}"}),
            "'decoder'": lambda p: save_file(tensors, p, metadata | {"kind": "decoder"}),
            "NaN": lambda p: save_file({k: v * torch.nan for k, v in tensors.items()}, p, metadata),
        }
        for words, spoil in cases.items():
            spoil(tmp_path / "model.safetensors")
            with pytest.raises(CheckpointError, match=words) as error:
                ImageTextEncoder.load(tmp_path, "cpu")
            assert "\n" not in str(error.value)


class latent_metadata:
    def __init__(self, folder):
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", "pt") as file:
            self.metadata = file.metadata()
        self.metadata.pop("sha256")  # as who means harm would

    def __enter__(self):
        return self.metadata

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("source", ["nowhere", "ViT-B-32", "ViT-B-32/nothing", "../ViT-B-32/openai"])
def test_sources_that_do_not_exist(source):
    with pytest.raises(CheckpointError, match="neither a folder") as error:
        ImageTextEncoder.load(source)
    assert source in str(error.value) and "\n" not in str(error.value)


def test_published_weights_that_cannot_be_had(monkeypatch):
    def create_model(name, weights):
        raise RuntimeError("Failed to\ndownload")

    monkeypatch.setattr(latent.import_open_clip(), "create_model", create_model)
    with pytest.raises(CheckpointError, match=r"ViT-B-32/openai.*cannot be downloaded.*minirodin train encoder"):
        ImageTextEncoder.load("ViT-B-32/openai")


def test_published_models_have_the_same_interface(monkeypatch):
    """A random model under a published name: its own tokenizer, size and colours."""
    open_clip = latent.import_open_clip()
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 64}
    text = {"context_length": 77, "vocab_size": 49_408, "width": 32, "heads": 2, "layers": 1}
    clip = open_clip.CLIP(512, vision, text)
    monkeypatch.setattr(open_clip, "create_model", lambda name, weights: clip)
    encoder = ImageTextEncoder.load("ViT-B-32/openai", "cpu")
    assert encoder.size == 512 and encoder.towers.size == 64
    assert torch.allclose(encoder.towers.mean.flatten(), torch.tensor(open_clip.OPENAI_DATASET_MEAN))
    tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    wanted = nn.functional.normalize(clip.encode_text(tokens), dim=1)
    assert torch.allclose(encoder.texts(TEXTS), wanted, atol=1e-6)
    with pytest.warns(UserWarning, match="too long"):
        encoder.texts(["red " * 90])
    with pytest.raises(CheckpointError, match="published"):
        encoder.save("anywhere")
    with pytest.raises(CheckpointError, match=r"published model: begin from a folder"):
        train_encoder(toy(range(4)), config(), "anywhere", show_progress=False, start="ViT-B-32/openai")


def test_sizes_that_do_not_divide():
    with pytest.raises(ConfigError, match="multiple of patch"):
        build_towers(replace(config().encoder, patch=24), 50)


# ---- portraits from outside ----

LEFT, RIGHT = (200, 40, 30), (30, 60, 220)


def halves(mode="RGB", size=(64, 64)):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = LEFT, RIGHT
    image = Image.fromarray(pixels)
    return image if mode == "RGB" else image.convert(mode)


def sides(picture):
    """Colours (0 … 255) left and right of the middle."""
    n = picture.shape[-1]
    return [tuple((picture[:, n // 2, x] * 255).round().int().tolist()) for x in (n // 4, 3 * n // 4)]


@pytest.mark.parametrize(
    ("mode", "name", "tolerance"),
    [
        ("RGB", "a.png", 0), ("P", "a.png", 30), ("P", "a.gif", 30), ("RGBA", "a.png", 0), ("CMYK", "a.tif", 3),
        ("CMYK", "a.jpg", 12), ("YCbCr", "a.jpg", 8), ("RGB", "a.bmp", 0), ("RGB", "a.webp", 40),
    ],
)  # fmt: skip
def test_portraits_of_every_mode(tmp_path, mode, name, tolerance):
    halves(mode).save(tmp_path / name)
    picture = read_portrait(tmp_path / name, size=32)
    assert picture.shape == (3, 32, 32) and picture.dtype == torch.float32
    assert picture.min() >= 0 and picture.max() <= 1
    for found, wanted in zip(sides(picture), (LEFT, RIGHT), strict=True):
        assert np.abs(np.subtract(found, wanted)).max() <= tolerance


def test_grey_portraits_of_8_16_and_float_bits(tmp_path):
    grey = np.tile(np.where(np.arange(64) < 32, 50, 200).astype(np.uint8), (64, 1))
    made = {
        "l.png": Image.fromarray(grey),
        "i16.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "i16.tif": Image.fromarray(grey.astype(np.uint16) * 257),
        "i.tif": Image.fromarray(grey.astype(np.int32) * 257),
        "unit.tif": Image.fromarray((grey / 255).astype(np.float32)),
        "f.tif": Image.fromarray(grey.astype(np.float32)),
    }
    for name, image in made.items():
        image.save(tmp_path / name)
        assert sides(read_portrait(tmp_path / name, 32)) == [(50,) * 3, (200,) * 3], name
    Image.fromarray(grey > 100).save(tmp_path / "1.png")
    assert sides(read_portrait(tmp_path / "1.png", 32)) == [(0,) * 3, (255,) * 3]


def test_alpha_is_laid_over_white(tmp_path):
    image = halves("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.where(np.arange(64) < 32, 128, 0).astype(np.uint8), (64, 1))))
    half = tuple(round(255 + (c - 255) * 128 / 255) for c in LEFT)
    for name in ("a.png", "b.tif"):
        image.save(tmp_path / name)
        left, right = sides(read_portrait(tmp_path / name, 32))
        assert np.abs(np.subtract(left, half)).max() <= 1 and right == (255, 255, 255)
    image.convert("LA").save(tmp_path / "la.png")
    assert sides(read_portrait(tmp_path / "la.png", 32))[1] == (255, 255, 255)
    palette = halves().quantize(4, dither=Image.Dither.NONE)
    palette.save(tmp_path / "p.png", transparency=int(np.asarray(palette)[0, -1]))
    left, right = sides(read_portrait(tmp_path / "p.png", 32))
    assert right == (255, 255, 255) and left != right


@pytest.mark.parametrize(("orientation", "turn"), [(3, Image.ROTATE_180), (6, Image.ROTATE_90), (8, Image.ROTATE_270)])
def test_exif_orientation_is_followed(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    halves().transpose(turn).save(tmp_path / "a.jpg", quality=95, exif=exif)
    for found, wanted in zip(sides(read_portrait(tmp_path / "a.jpg", 32)), (LEFT, RIGHT), strict=True):
        assert np.abs(np.subtract(found, wanted)).max() <= 8


def test_portraits_are_filled_up_with_their_border(tmp_path):
    pixels = np.full((40, 80, 3), (10, 120, 60), np.uint8)
    pixels[10:30, 20:60] = (250, 250, 0)
    picture = (read_portrait(Image.fromarray(pixels), 80) * 255).round().byte()
    assert picture.shape == (3, 80, 80)
    assert torch.equal(picture[:, 20:60], torch.from_numpy(pixels).permute(2, 0, 1))
    for stripe in (picture[:, :20], picture[:, 60:]):
        assert (stripe == torch.tensor([10, 120, 60])[:, None, None]).all()
    assert torch.equal(read_portrait(pixels, 80), picture.float() / 255)  # an array is as good
    assert read_portrait(halves(size=(30, 17)), 64).shape == (3, 64, 64)


def test_many_megapixels_are_scaled_down(tmp_path):
    halves(size=(4000, 3000)).save(tmp_path / "large.jpg")
    picture = read_portrait(tmp_path / "large.jpg", 64)
    assert picture.shape == (3, 64, 64) and np.abs(np.subtract(sides(picture)[0], LEFT)).max() <= 8


def test_what_is_not_a_portrait(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("not a picture")
    halves(size=(200, 200)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    halves(size=(12, 90)).save(tmp_path / "small.png")
    cases = {"text.png": "not a readable", "half.png": "not a readable", "empty.jpg": "not a readable"}
    cases |= {"small.png": "12×90", "missing.png": "does not exist", ".": "not a readable"}
    for name, words in cases.items():
        with pytest.raises(DataError, match=words) as error:
            read_portrait(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    for thing in (None, 7, np.zeros((40, 40, 7), np.uint8), np.zeros((40, 40, 3))):
        with pytest.raises(DataError):
            read_portrait(thing)
    with pytest.raises(DataError, match="size is 4"):
        read_portrait(tmp_path / "whole.png", size=4)
    monkeypatch.setattr("minirodin.portraits.MAX_PIXELS", 30_000)
    with pytest.raises(DataError, match="200×200 pixels"):
        read_portrait(tmp_path / "whole.png")


# ---- people to latents ----


def test_encode_people(encoder, tmp_path):
    people = write_toy(tmp_path / "people", range(5))
    for folder in people.iterdir():
        (folder / "001.png").unlink()  # only the portrait is looked at
    made = encode_people(encoder, people, tmp_path / "latents.safetensors", show_progress=False)
    latents = Latents.load(tmp_path / "latents.safetensors")
    assert latents.names == made.names == [f"{seed:06d}" for seed in range(5)] and len(latents) == 5
    assert latents.fingerprint == encoder.fingerprint and torch.equal(latents.latents, made.latents)
    assert latents.latents.shape == (5, 8, 512) and latents.latents.dtype == torch.float16
    portraits = [np.asarray(Image.open(people / name / "000.png")) for name in latents.names]
    plainly = encoder.images(plain(torch.from_numpy(np.stack(portraits)), 32))
    assert torch.allclose(latents.latents[:, 0].float(), plainly, atol=1e-3)
    assert torch.allclose(latents.latents.float().norm(dim=2), torch.ones(5, 8), atol=1e-3)
    apart = (latents.latents[:, 1:].float() - latents.latents[:, :1].float()).norm(dim=2)
    assert (apart > 1e-3).all() and len({tuple(row) for row in latents.latents[0].tolist()}) == 8
    again = encode_people(encoder, people, tmp_path / "again.safetensors", show_progress=False)
    assert torch.equal(again.latents, latents.latents)


def test_people_in_several_folders(encoder, tmp_path):
    parts = [write_toy(tmp_path / "a", range(2)), write_toy(tmp_path / "b", range(2, 5))]
    together = encode_people(encoder, parts, tmp_path / "l.safetensors", show_progress=False)
    assert together.names == [f"{seed:06d}" for seed in range(5)]
    alone = encode_people(encoder, parts[1], tmp_path / "l.safetensors", show_progress=False)
    torch.testing.assert_close(together.latents[2:, 0], alone.latents[:, 0], rtol=0, atol=2e-3)


def test_what_may_be_said_of_people_is_encoded_with_them(encoder, tmp_path):
    people = encode_people(encoder, write_toy(tmp_path / "people", range(3)), tmp_path / "l.safetensors", False)
    attributes = [sample_attributes(int(name)) for name in people.names]
    wanted = [[caption(a, 1), partial_caption(a, 2)] for a in attributes]
    for i, texts in enumerate(wanted):
        found = people.texts[i, [1, CAPTIONS + 2]].float()
        torch.testing.assert_close(found, encoder.texts(texts), rtol=0, atol=2e-3)
    again = Latents.load(tmp_path / "l.safetensors")
    assert torch.equal(again.texts, people.texts.half()) and again.texts.shape[1] == CAPTIONS + PARTIAL
    save_capture(ball_capture("stranger", 2, 48), tmp_path / "people" / "stranger")  # of whom nothing is known
    assert encode_people(encoder, tmp_path / "people", tmp_path / "l.safetensors", False).texts.shape[:2] == (4, 0)


def test_people_pictured_at_several_sizes(encoder, tmp_path):
    for name, size in (("a", 48), ("b", 80)):
        save_capture(ball_capture(name, 2, size), tmp_path / "people" / name)
    latents = encode_people(encoder, tmp_path / "people", tmp_path / "l.safetensors", show_progress=False).latents
    assert float(latents[0, 0].float() @ latents[1, 0].float()) > 0.98  # the same ball


def test_people_and_latents_that_cannot_be_used(encoder, tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        encode_people(encoder, tmp_path / "nobody", tmp_path / "l.safetensors")
    broken = save_capture(ball_capture("ball", 2, 24), tmp_path / "people" / "ball")
    for text in ("{}", '{"frames": []}', "[", '{"frames": [{}]}', '{"frames": [3]}'):
        (broken / "transforms.json").write_text(text)
        with pytest.raises(DataError) as error:
            encode_people(encoder, tmp_path / "people", tmp_path / "l.safetensors", show_progress=False)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "l.safetensors").exists()
    z, good = torch.zeros(2, 8, 4).half(), {"kind": "latents", "names": '["a", "b"]', "fingerprint": "f"}
    said = {"texts": torch.zeros(2, 3, 4).half()}
    whole = {"latents": z, **said}
    bad = [(whole, good | {"names": '["a"]'}), (whole, good | {"names": "["}), ({}, good), ({"latents": z}, good),
           (whole, {k: v for k, v in good.items() if k != "fingerprint"}), ({"latents": z[0], **said}, good),
           ({"latents": z * torch.nan, **said}, good), (whole, good | {"kind": "planes"}),
           ({"latents": z, "texts": said["texts"][..., :2].contiguous()}, good)]  # fmt: skip
    for tensors, metadata in bad:
        save_file(tensors, tmp_path / "bad.safetensors", metadata)
        with pytest.raises(CheckpointError) as error:
            Latents.load(tmp_path / "bad.safetensors")
        assert "\n" not in str(error.value)
    save_file(whole, tmp_path / "bad.safetensors", good)
    assert len(Latents.load(tmp_path / "bad.safetensors")) == 2


def test_commands(tmp_path, capsys):
    people, out = write_toy(tmp_path / "people", range(4)), tmp_path / "encoder"
    sizes = [f"--encoder.{key.replace('_', '-')}={value}" for key, value in SIZES.items()]
    steps = ["--encoder.train.steps=2", "--encoder.train.batch=2", "--encoder.captions=1"]
    argv = ["train", "encoder", "--data", str(people), "--out", str(out), "--preset", "smoke", *sizes, *steps]
    assert cli.main(argv) == 0
    assert "minirodin assess" in capsys.readouterr().out
    argv[argv.index(str(out))] = str(tmp_path / "further")
    assert cli.main([*argv, "--begin-from", str(out), "--encoder.stay-weight", "1"]) == 0
    assert "stay" in (tmp_path / "further/log.csv").read_text().splitlines()[0].split(",")
    assert cli.main(["encode", str(out), str(people), "--out", str(tmp_path / "latents.safetensors")]) == 0
    assert Latents.load(tmp_path / "latents.safetensors").fingerprint == ImageTextEncoder.load(out).fingerprint
    capsys.readouterr()
    assert cli.main(["assess", str(out), str(people), "--out", str(tmp_path / "numbers.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kind"] == "image-text encoder" and printed == json.loads((tmp_path / "numbers.json").read_text())
    assert cli.main(["encode", str(tmp_path / "nothing"), str(people), "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
