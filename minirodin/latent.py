"""The latent that orchestrates the planes (E13): one space for images and texts, its encoder frozen.

z = E(portrait) conditions the base model, and since texts live in the same space, so do prompts and edits (E16). Two
sources behind one interface, both open_clip models: the project's own small one, trained on the synthetic people by
`minirodin train encoder` (encoder_training.py), or any with published weights.
"""

import functools
import json
import logging
import socket
import urllib.parse
import urllib.request
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirodin.avatars.prompts import CLASSES
from minirodin.classifier import ResidualNetwork
from minirodin.config import Config, EncoderConfig
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.portraits import SMALLEST
from minirodin.shards import atomic_save, config_from, fingerprint, load_weights, read_tensors
from minirodin.tokens import CompactTokenizer, PublishedTokenizer, import_open_clip, shortened

KIND = "image-text encoder"
TOWERS = ("", "residual")  # open_clip's ViT, or the shape of the classifier's network; never its weights


class Towers(nn.Module):
    """An open_clip model as one function, so that a training step calls it once.

    Args:
        clip: an `open_clip` model with `encode_image` and `encode_text`.
        size: width and height of the pictures that it sees.
        mean, std: RGB of the images that it was trained on, in [0, 1].
        heads: what reads attributes off a picture's embedding while it learns, of D numbers; None: nothing does.
    """

    def __init__(
        self, clip: nn.Module, size: int, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), heads: nn.Linear | None = None
    ):
        super().__init__()
        self.clip, self.size, self.heads = clip, size, heads
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def images(self, pictures: Tensor) -> Tensor:
        """(B, 3, size, size) in [0, 1] → (B, D) of unit norm."""
        return F.normalize(self.clip.encode_image((pictures - self.mean) / self.std).float(), dim=1)

    def texts(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 → (B, D) of unit norm."""
        return F.normalize(self.clip.encode_text(tokens).float(), dim=1)

    def forward(self, pictures: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Embeddings of pictures and of texts (their numbers may differ), the scale 1/τ ≤ 100 of their products, and
        what `heads` make of the pictures' (entries of unit size), where there are any."""
        images, scale = self.images(pictures), self.clip.logit_scale.float().exp().clamp(max=100.0)
        named = self.heads(images.shape[1] ** 0.5 * images).float() if self.heads else None
        return images, self.texts(tokens), scale, named


def build_towers(config: EncoderConfig, vocabulary_size: int) -> Towers:
    """The project's own model, with random weights from torch's generator.

    Raises:
        ConfigError: sizes that do not divide, or an unknown tower.
    """
    c = config
    if c.tower not in TOWERS:
        raise ConfigError(f"encoder.tower is {c.tower!r}: choose from {', '.join(map(repr, TOWERS))}")
    if c.size % c.patch or c.width % c.head_width or c.text_width % c.head_width:
        raise ConfigError(
            f"encoder: size {c.size} must be a multiple of patch {c.patch}, "
            f"and widths {c.width} and {c.text_width} of head_width {c.head_width}"
        )
    vision = {"layers": c.layers, "width": c.width, "head_width": c.head_width, "patch_size": c.patch}
    text = {"context_length": c.context, "vocab_size": vocabulary_size, "width": c.text_width, "layers": c.text_layers}
    text["heads"] = c.text_width // c.head_width
    clip = import_open_clip().CLIP(c.dimensions, {**vision, "image_size": c.size}, text)
    if c.tower:
        clip.visual = ResidualNetwork(c.channels, c.size, c.dimensions, "encoder")
    return Towers(clip, c.size, heads=nn.Linear(c.dimensions, len(CLASSES)) if c.attribute_weight else None)


class ImageTextEncoder:
    """Images and texts → vectors of unit norm in one space; frozen.

    Attributes:
        source: folder or open_clip name that it was loaded from.
        fingerprint: of the space: what was trained on latents of one encoder does not fit those of another.
        size: dimensions of the space, 512 in the project's own and in ViT-B-32.
    """

    def __init__(self, towers: Towers, tokenizer, identity: str = "", source: str = "", config: Config | None = None):
        self.towers = towers.eval().requires_grad_(False)
        self.tokenizer, self.source, self.config = tokenizer, source, config
        self.fingerprint = identity or fingerprint(towers)

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device | None = None) -> "ImageTextEncoder":
        """Read an encoder.

        Args:
            source: folder that `minirodin train encoder` wrote, or MODEL/WEIGHTS of open_clip, such as
                "ViT-B-32/laion2b_s34b_b79k", whose weights open_clip downloads at first use.
            device: by default the GPU if there is one.

        Raises:
            CheckpointError: one line that says what is wrong with the file, the name or the download.
        """
        path = Path(source) / "model.safetensors"
        encoder = cls._own(path) if path.is_file() else cls._published(str(source))
        return encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @classmethod
    def _own(cls, path: Path) -> "ImageTextEncoder":
        tensors, metadata = read_tensors(path, KIND)
        config = config_from(metadata, path)
        try:
            vocabulary = json.loads(metadata["vocabulary"])
            tokenizer = CompactTokenizer([int(token) for token in vocabulary], config.encoder.context)
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} carries no usable vocabulary ({error})") from None
        weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        towers = load_weights(build_towers(config.encoder, tokenizer.size), weights, path, "encoder")
        return cls(towers, tokenizer, metadata.get("fingerprint", ""), str(path.parent), config)

    @classmethod
    def _published(cls, source: str) -> "ImageTextEncoder":
        open_clip = import_open_clip()
        name, _, weights = source.partition("/")
        if (name, weights) not in open_clip.list_pretrained():
            raise CheckpointError(
                f"{source} is neither a folder of `minirodin train encoder` (no model.safetensors there) nor an "
                "open_clip model such as ViT-B-32/laion2b_s34b_b79k"
            )
        try:
            with offline_if_unreachable():
                clip = open_clip.create_model(name, weights)
        except Exception as error:  # of the hub, the network or the disk, by many names
            why = " ".join(str(error).split())[:120]
            raise CheckpointError(
                f"the weights of {source} are not here and cannot be downloaded ({why}): connect to "
                "huggingface.co once, copy ~/.cache/huggingface here, or use a folder of `minirodin train encoder`"
            ) from None
        size = clip.visual.image_size
        size = size if isinstance(size, int) else size[0]
        mean, std = getattr(clip.visual, "image_mean", None), getattr(clip.visual, "image_std", None)
        towers = Towers(clip, size, mean or open_clip.OPENAI_DATASET_MEAN, std or open_clip.OPENAI_DATASET_STD)
        return cls(towers, PublishedTokenizer(open_clip.get_tokenizer(name)), source=source)

    def save(self, folder: str | Path, metadata: dict[str, str] | None = None) -> None:
        """Write the project's own encoder as `folder/model.safetensors`, in 16 bits. `metadata`: further entries."""
        weights, own = self.state()
        weights = {k: v.half() for k, v in weights.items()}
        atomic_save(weights, Path(folder) / "model.safetensors", {**(metadata or {}), **own})

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of its file, as `load` reads them; raises `CheckpointError` for a published model."""
        if self.config is None:
            raise CheckpointError(f"{self.source} is a published model: name it instead of saving it")
        own = {"kind": KIND, "config": json.dumps(self.config.to_dict()), "fingerprint": self.fingerprint}
        own["vocabulary"] = json.dumps(self.tokenizer.vocabulary)
        return {f"network.{k}": v for k, v in self.towers.state_dict().items()}, own

    def to(self, device: str | torch.device) -> "ImageTextEncoder":
        """Move to a device, in place."""
        self.towers.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.towers.mean.device

    @functools.cached_property
    def size(self) -> int:
        return self.texts(["a person"]).shape[1]

    @torch.no_grad()
    def images(self, pictures: Tensor, batch: int = 256) -> Tensor:
        """Embed pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1], of any size from 16 pixels; what is not square is filled up at its edges.

        Returns:
            (B, size) float32 of unit norm, on the encoder's device.

        Raises:
            DataError: another shape or type, fewer pixels, or NaN.
        """
        if pictures.dim() != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
            given = f"{str(pictures.dtype).removeprefix('torch.')} of shape {tuple(pictures.shape)}"
            raise DataError(f"pictures are {given}: give floats in [0, 1], (B, 3, H, W)")
        if min(pictures.shape[2:]) < SMALLEST:
            raise DataError(f"pictures have {pictures.shape[3]}×{pictures.shape[2]} pixels: give at least {SMALLEST}")
        if not pictures.isfinite().all():
            raise DataError("pictures hold NaN or infinite values: give numbers in [0, 1]")
        if not len(pictures):
            return torch.zeros(0, self.size, device=self.device)
        parts = pictures.split(batch)
        return torch.cat([self.towers.images(self._fit(part.to(self.device).float())) for part in parts])

    def _fit(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[2:]
        if height != width:
            across, down = max(0, height - width), max(0, width - height)
            sides = (across // 2, across - across // 2, down // 2, down - down // 2)
            pictures = F.pad(pictures, sides, mode="replicate")
        size = self.towers.size
        if pictures.shape[-1] != size:
            pictures = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True)
        return pictures.clamp(0, 1)

    @torch.no_grad()
    def texts(self, texts: list[str], batch: int = 512) -> Tensor:
        """Embed texts: (B, size) float32 of unit norm, on the encoder's device.

        Warns of a text that is too long, whose end is left out, and of one of which no word is known.

        Raises:
            DataError: not texts, or one that is empty.
        """
        if isinstance(texts, str):
            raise DataError("one text was given where a list of texts is wanted: put it in brackets")
        if not len(texts):
            return torch.zeros(0, self.size, device=self.device)
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                shown = "is empty" if isinstance(text, str) else f"is {type(text).__name__}"
                raise DataError(f"a text {shown}: describe a person, as in 'a woman with red hair'")
        tokens, long, strange = self.tokenizer([shortened(text) for text in texts])
        for which, what in ((long, f"too long, and cut after {self.tokenizer.context - 2} tokens"),
                            (strange, "one of which this encoder knows no word")):  # fmt: skip
            if which:
                warnings.warn(f"the text {texts[which[0]][:60]!r} is {what}", stacklevel=2)
        return torch.cat([self.towers.texts(part.to(self.device)) for part in tokens.split(batch)])


class offline_if_unreachable:
    """Within it the hub answers from its cache at once where its host is unknown, and nothing is logged.

    Else it tries for most of a minute, with a warning each time.
    """

    def __enter__(self):
        from huggingface_hub import constants

        self.constants, self.before = constants, (constants.HF_HUB_OFFLINE, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)
        try:
            if not urllib.request.getproxies():
                socket.getaddrinfo(urllib.parse.urlparse(constants.ENDPOINT).hostname, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True

    def __exit__(self, *_):
        self.constants.HF_HUB_OFFLINE, disabled = self.before
        logging.disable(disabled)
