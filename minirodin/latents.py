"""The latents of many people in one file, with what may be said of them: what conditions, and what E15 learns from."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minirodin.avatars.attributes import Attributes
from minirodin.avatars.captions import caption
from minirodin.avatars.prompts import partial_caption
from minirodin.cameras import _read_image, find_captures
from minirodin.errors import CheckpointError, DataError
from minirodin.latent import ImageTextEncoder
from minirodin.portraits import jitter, plain
from minirodin.progress import progress
from minirodin.shards import atomic_save, read_tensors

CAPTIONS, PARTIAL = 4, 12  # texts of each person that tell much, and that tell one to three things
VERSIONS = 8  # latents of each person: of the plain portrait, and of so many less one jittered ones


class Latents:
    """The latents of many people, several versions of each.

    Attributes:
        names: of S people.
        latents: (S, 8, D) float16: of the plain frontal portrait on white, and of 7 jittered ones.
        fingerprint: of the encoder that made them.
        texts: (S, P, D) float16, embeddings of what may be said of each (E15); P is 0 where nothing is known of them.
    """

    def __init__(self, names: list[str], latents: Tensor, fingerprint: str, texts: Tensor | None = None):
        self.names, self.latents, self.fingerprint = names, latents, fingerprint
        self.texts = latents[:, :0] if texts is None else texts

    def __len__(self) -> int:
        return len(self.names)

    def save(self, path: str | Path) -> None:
        names = json.dumps(self.names)
        metadata = {"kind": "latents", "names": names, "fingerprint": self.fingerprint}
        atomic_save({"latents": self.latents.half(), "texts": self.texts.half()}, Path(path), metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Latents":
        """Read what `encode_people` wrote; raises `CheckpointError` in one line."""
        tensors, metadata = read_tensors(Path(path), "latents")
        latents, texts = tensors.get("latents"), tensors.get("texts")
        try:
            names = json.loads(metadata["names"])
            fits = all(t.dim() == 3 and len(names) == len(t) and bool(t.isfinite().all()) for t in (latents, texts))
            fits = fits and latents.shape[2] == texts.shape[2]
        except (KeyError, ValueError, TypeError, AttributeError):
            fits = False
        if not fits or "fingerprint" not in metadata:
            raise CheckpointError(f"{path} does not hold latents and their names: encode the people again")
        return cls(names, latents, metadata["fingerprint"], texts)


def encode_people(
    encoder: ImageTextEncoder,
    data: str | Path | list[Path],
    out: str | Path,
    show_progress: bool = True,
    batch: int = 32,
) -> Latents:
    """The latents of everybody in a folder of captures, from frame 0 of each, and of what may be said of them.

    Args:
        data: a capture, or a folder or folders of captures, as `minirodin avatars` makes them.
        out: file of the `Latents`; texts are in it where every capture has attributes.
        batch: people at a time.

    Raises:
        DataError: no captures there, or an image that cannot be read.
    """
    data, size = data if isinstance(data, list) else [data], encoder.towers.size
    folders = [folder for part in data for folder in find_captures(part)]
    generator = torch.Generator(encoder.device).manual_seed(0)
    latents, known = [], []
    starts = range(0, len(folders), batch)
    for start in progress(starts, desc="encoding", unit="batch", enabled=show_progress):
        pictures, attributes = zip(*map(_frontal, folders[start : start + batch]), strict=True)
        if len({picture.size for picture in pictures}) > 1:  # PIL weighs colour by alpha here
            pictures = [p.convert("RGBa").resize((2 * size, 2 * size)).convert("RGBA") for p in pictures]
        pictures = torch.from_numpy(np.stack(pictures)).to(encoder.device)
        versions = [plain(pictures, size)] + [jitter(pictures, generator, size) for _ in range(VERSIONS - 1)]
        latents += [torch.stack([encoder.images(version) for version in versions], dim=1).half().cpu()]
        known += attributes
    texts = torch.zeros(len(folders), 0, encoder.size)
    if all(known):
        said = [caption(person, i) for person in known for i in range(CAPTIONS)]
        part = [partial_caption(person, i) for person in known for i in range(PARTIAL)]
        texts = [encoder.texts(rows).unflatten(0, (len(known), -1)) for rows in (said, part)]
        texts = torch.cat(texts, dim=1).cpu()
    names = [folder.resolve().name for folder in folders]
    people = Latents(names, torch.cat(latents), encoder.fingerprint, texts)
    people.save(out)
    return people


def _frontal(folder: Path) -> tuple[Image.Image, Attributes | None]:
    """Frame 0 of a capture, no other is read, as RGBA, and what a synthetic person looks like."""
    try:
        meta = json.loads((folder / "transforms.json").read_text(encoding="utf-8"))
        picture = Image.fromarray(_read_image(folder, dict(meta["frames"][0]), 0)[0])
        try:
            return picture, Attributes.from_dict(meta.get("attributes"))
        except DataError:
            return picture, None
    except DataError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise DataError(f"{folder / 'transforms.json'} names no first frame ({error}): not a capture") from None
