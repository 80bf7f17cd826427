"""The attribute classifier: an independent judge of who is in a picture, trained on labelled portraits.

Whether a generated avatar wears the red cap it was asked for is decided by this network, which has seen no caption and
shares neither weights nor training with the image–text encoder that generation is guided by.
"""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirodin.avatars.attributes import CHOICES, FRINGED, LONG, TIED, Attributes
from minirodin.config import ClassifierConfig, Config
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.portraits import Portraits, jitter, plain
from minirodin.shards import config_from, load_weights, read_tensors
from minirodin.training import Trainer

KIND = "attribute classifier"
HIDDEN = -1  # the label of what a picture cannot show

# Ends of all bins but the last, where the captions change their words.
BINS = {"age": (32, 45, 62), "skin_tone": (0.25, 0.5, 0.75), "beard_length": (1 / 3, 2 / 3)}

# What a portrait of 144 pixels, or a coarser one, shows; not the colours of eyes and earrings, freckles or make-up.
HEADS: dict[str, tuple[str, ...]] = {
    "gender": CHOICES["gender"],
    "age": ("young", "adult", "middle-aged", "old"),
    "skin_tone": ("fair", "medium", "brown", "dark"),
    "expression": CHOICES["expression"],
    "hair_style": (*(s for s in CHOICES["hair_style"] if s not in TIED), "tied back"),
    "hair_color": CHOICES["hair_color"],
    "fringe": ("no", "yes"),
    "facial_hair": CHOICES["facial_hair"],
    "beard_length": ("short", "medium", "long"),
    "lip_color": CHOICES["lip_color"],
    "glasses": CHOICES["glasses"],
    "frame_color": CHOICES["frame_color"],
    "hat": CHOICES["hat"],
    "hat_color": CHOICES["hat_color"],
    "earrings": CHOICES["earrings"],
    "clothing": CHOICES["clothing"],
    "clothing_pattern": CHOICES["clothing_pattern"],
    "clothing_color": CHOICES["clothing_color"],
}
WIDTHS = [len(classes) for classes in HEADS.values()]


def hidden(a: Attributes) -> set[str]:
    """The heads whose attribute cannot be seen in a portrait of this person."""
    unseen = {
        "hair_style": not a.hair_shows,
        "hair_color": not a.hair_color_shows,
        "fringe": a.hat != "none" or a.hair_style not in FRINGED,
        "beard_length": a.facial_hair != "full",
        "frame_color": a.glasses not in ("round", "square"),  # of sunglasses one sees the lenses
        "hat_color": a.hat == "none",
        "earrings": a.hair_style in LONG,
    }
    return {name for name, is_hidden in unseen.items() if is_hidden}


def labels(attributes: Attributes) -> dict[str, int]:
    """The class of every head, an index into `HEADS[name]`, −1 where it cannot be seen."""
    a, unseen = attributes, hidden(attributes)
    numbers = {"age": a.age, "skin_tone": a.skin_tone, "beard_length": a.facial_hair_length}

    def label(name: str) -> int:
        if name in unseen:
            return HIDDEN
        if name in numbers:
            return sum(numbers[name] >= end for end in BINS[name])
        if name == "fringe":
            return int(a.fringe)
        return HEADS[name].index(a.style_in_front if name == "hair_style" else getattr(a, name))

    return {name: label(name) for name in HEADS}


def label_table(attributes: list[Attributes]) -> Tensor:
    """`labels` of S people as one tensor (S, heads) int64, columns in the order of `HEADS`."""
    return torch.tensor([list(labels(a).values()) for a in attributes])


class Block(nn.Module):
    """Twice norm, SiLU, 3×3 convolution, plus the input; the first convolution may halve the picture (`stride` 2)."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, out_channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(channels, out_channels, 1, bias=False) if stride > 1 else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.skip(F.avg_pool2d(x, self.stride) if self.stride > 1 else x)


class ResidualNetwork(nn.Module):
    """Pictures (B, 3, size, size) of unit variance or so → (B, outputs), linear in the features' mean and maximum.

    Args:
        channels: at 1/2, 1/4 … of the size.
        size: pixels a side.
        outputs: numbers for each picture.
        where: of the config these are from, for errors.

    Raises:
        ConfigError: channels that are no multiples of 8, or a size that cannot be halved as often.
    """

    def __init__(self, channels: tuple[int, ...], size: int, outputs: int, where: str):
        super().__init__()
        multiple = 2 ** len(channels)
        if not channels or any(width < 8 or width % 8 for width in channels):
            raise ConfigError(f"{where}.channels are {channels}: give multiples of 8")
        if size < multiple or size % multiple:
            raise ConfigError(f"{where}.size is {size}: give a multiple of {multiple}, halved at every level")
        self.stem = nn.Conv2d(3, channels[0], 5, stride=2, padding=2, bias=False)
        deeper = (Block(a, b, stride=2) for a, b in pairwise(channels))
        self.blocks = nn.Sequential(Block(channels[0], channels[0]), *deeper)
        self.norm = nn.GroupNorm(8, channels[-1])
        self.heads = nn.Linear(2 * channels[-1], outputs)

    def forward(self, pictures: Tensor) -> Tensor:
        h = F.silu(self.norm(self.blocks(self.stem(pictures))))
        return self.heads(torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1))  # the maximum: small things, as earrings


class ClassifierNetwork(ResidualNetwork):
    """A linear head an attribute; (B, 3, size, size) in [0, 1] → all logits side by side, (B, sum of WIDTHS)."""

    def __init__(self, config: ClassifierConfig):
        super().__init__(config.channels, config.size, sum(WIDTHS), "classifier")

    def forward(self, pictures: Tensor) -> Tensor:
        return super().forward(4 * pictures - 2)


def classifier_losses(logits: Tensor, wanted: Tensor, smoothing: float = 0.0) -> dict[str, Tensor]:
    """Cross-entropy and accuracy, both means over all labels that can be seen.

    Args:
        logits: (B, sum of WIDTHS).
        wanted: (B, heads) int64 as `label_table` gives them; −1 does not count.
        smoothing: share of the target that is spread over all classes.
    """
    seen = (wanted != HIDDEN).sum().clamp_min(1)
    parts = list(zip(logits.float().split(WIDTHS, dim=1), wanted.unbind(1), strict=True))
    settings = {"ignore_index": HIDDEN, "reduction": "sum", "label_smoothing": smoothing}
    loss = sum(F.cross_entropy(part, target, **settings) for part, target in parts)
    right = sum((part.argmax(1) == target).sum() for part, target in parts)
    return {"loss": loss / seen, "accuracy": right / seen}


class AttributeClassifier:
    """A trained network with its settings.

    Args:
        network: a `ClassifierNetwork`.
        config: of the run.
    """

    def __init__(self, network: ClassifierNetwork, config: Config):
        self.network, self.config = network, config

    @property
    def size(self) -> int:
        """Width and height of the pictures that the network sees."""
        return self.config.classifier.size

    @property
    def device(self) -> torch.device:
        return self.network.heads.weight.device

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> "AttributeClassifier":
        """Read what `train_classifier` left in a folder; raises `CheckpointError` in one line."""
        path = Path(folder) / "model.safetensors"
        tensors, metadata = read_tensors(path, KIND)
        config = config_from(metadata, path)
        if metadata.get("heads") != _heads_text():
            raise CheckpointError(f"{path} judges other attributes than this version of minirodin: train it again")
        weights = {k.removeprefix("network."): v for k, v in tensors.items()}
        network = load_weights(ClassifierNetwork(config.classifier), weights, path, "network")
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(network.to(device, memory_format=torch.channels_last), config)

    @torch.no_grad()
    def predict(self, pictures: Tensor) -> dict[str, Tensor]:
        """What is in pictures: (B, 3, H, W) float in [0, 1] → for every head (B, classes) probabilities.

        Pictures of another size than the network's are resized; people on white, as `plain` shows them, suit it best.

        Raises:
            DataError: pictures of another shape or type.
        """
        if not pictures.is_floating_point() or pictures.dim() != 4 or pictures.shape[1] != 3:
            given = f"{str(pictures.dtype).removeprefix('torch.')} of shape {tuple(pictures.shape)}"
            raise DataError(f"pictures are {given}: give floats in [0, 1], (B, 3, H, W)")
        pictures = pictures.to(self.device).float()
        if pictures.shape[2:] != (self.size, self.size):
            pictures = F.interpolate(pictures, (self.size, self.size), mode="bilinear", antialias=True)
        logits = self.network(pictures.contiguous(memory_format=torch.channels_last)).float()
        return {name: part.softmax(1) for name, part in zip(HEADS, logits.split(WIDTHS, dim=1), strict=True)}


def train_classifier(
    data: str | Path | Portraits,
    config: Config,
    out: str | Path,
    validation: str | Path | Portraits | None = None,
    show_progress: bool = True,
) -> AttributeClassifier:
    """Learn to name the attributes of people in portraits.

    Args:
        data: folder that `make_people(..., portraits=True)` wrote, or what `Portraits.load` read of it.
        config: `config.classifier` says which network and schedule.
        out: folder for `model.safetensors`, `log.csv` and `loss.png`; the same call resumes an interrupted run.
        validation: other such people, whose loss and accuracy on `plain` pictures are logged.

    Returns:
        The classifier with averaged weights.

    Raises:
        DataError, CheckpointError, ConfigError: one line that names what does not fit.
    """
    portraits, validation = _portraits(data), validation and _portraits(validation)
    settings = config.classifier
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.train.seed)
        network = ClassifierNetwork(settings)
    classifier = AttributeClassifier(network, config)
    views, height, width = portraits.pictures.shape[1:4]
    metadata = {
        "kind": KIND,
        "config": json.dumps(config.to_dict()),
        "heads": _heads_text(),
        "people": f"{len(portraits)}: {portraits.names[0]} … {portraits.names[-1]}, {views} of {width}×{height}",
    }

    def losses(network, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict:
        pictures, wanted = batch
        pictures = jitter(pictures, generator, settings.size).contiguous(memory_format=torch.channels_last)
        return classifier_losses(network(pictures), wanted, settings.label_smoothing)

    def batches(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = torch.randint(len(pictures), (number,), generator=generator, device=pictures.device)
        return pictures[at], table[at // views]

    trainer = Trainer(
        network, losses, batches, settings.train, out, metadata, preview=_previews(classifier, validation)
    )
    pictures = portraits.pictures.flatten(0, 1).to(trainer.device)
    table = label_table(portraits.attributes).to(trainer.device)
    trainer.run(show_progress)
    network.requires_grad_(False)
    return classifier


def accuracy(classifier: AttributeClassifier, portraits: Portraits, batch: int = 512) -> dict:
    """How often the likeliest class is the right one, on `plain` pictures, of what can be seen in them.

    Returns:
        `mean` over the attributes, `most_frequent` (the mean for one who always names the most frequent class),
        `people`, `pictures`, and `attributes`: for each that is seen, its `accuracy`, `most_frequent` and `count`.
    """
    pictures = portraits.pictures.flatten(0, 1)
    views = len(pictures) // len(portraits)
    wanted = label_table(portraits.attributes).repeat_interleave(views, dim=0)
    parts = pictures.split(batch)
    answers = [classifier.predict(plain(part.to(classifier.device), classifier.size)) for part in parts]
    results = {}
    for name, target in zip(HEADS, wanted.unbind(1), strict=True):
        named = torch.cat([answer[name].argmax(1) for answer in answers]).cpu()
        seen = target != HIDDEN
        if count := int(seen.sum()):
            right, common = (named == target)[seen].sum(), target[seen].bincount().max()
            results[name] = {"accuracy": int(right) / count, "most_frequent": int(common) / count, "count": count}
    means = {k: sum(r[k] for r in results.values()) / len(results) for k in ("accuracy", "most_frequent")}
    counts = {"people": len(portraits), "pictures": len(pictures)}
    return {"mean": means["accuracy"], "most_frequent": means["most_frequent"], **counts, "attributes": results}


def _previews(classifier: AttributeClassifier, validation: Portraits | None) -> Callable[[int], dict] | None:
    """Loss and accuracy on other people, for the log."""
    if validation is None:
        return None
    wanted = label_table(validation.attributes).repeat_interleave(validation.pictures.shape[1], dim=0)

    def preview(step: int) -> dict[str, float]:
        parts = validation.pictures.flatten(0, 1).split(512)
        pictures = (plain(part.to(classifier.device), classifier.size) for part in parts)
        logits = torch.cat([classifier.network(part).float().cpu() for part in pictures])
        values = classifier_losses(logits, wanted)
        return {"validation": float(values["loss"]), "validation_accuracy": float(values["accuracy"])}

    return preview


def _portraits(data: str | Path | Portraits) -> Portraits:
    return data if isinstance(data, Portraits) else Portraits.load(data)


def _heads_text() -> str:
    return json.dumps(HEADS)
