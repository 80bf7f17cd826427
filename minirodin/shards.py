"""Files: the shared decoder, shards of fitted planes, and the one way anything is written (whole or not at all)."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from minirodin.config import Config
from minirodin.decoder import TriplaneDecoder
from minirodin.errors import CheckpointError
from minirodin.limits import checked
from minirodin.locks import scratch_of

SCALE = ".scale"  # ends the name of the scales of an 8-bit tensor
HASHES = "sha256"  # the metadata's entry with a hash of each tensor; files of older versions have none
UNREADABLE = (SafetensorError, OSError, ValueError, TypeError, RuntimeError, KeyError)  # what a spoilt file raises


def atomic_save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write safetensors to a temporary name, then rename: `path` is the old file or the new one, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_of(path)
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    metadata = {**(metadata or {})}
    metadata[HASHES] = json.dumps(_hashes(tensors, metadata))
    try:
        with open(scratch, "wb") as file:
            file.write(to_bytes(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a file that `atomic_save` wrote with `metadata["kind"] == kind`.

    Raises:
        CheckpointError: the file is missing, cut short, not safetensors, of another kind, or not as it was written.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: expected a {kind} file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except UNREADABLE as error:
        raise CheckpointError(f"{path} is cut short or not a {kind} file ({error}): make it again") from None
    if metadata.get("kind") != kind:
        raise CheckpointError(f"{path} holds {metadata.get('kind', 'something else')!r}, expected a {kind} file")
    _check_hashes(tensors, metadata, path)
    metadata.pop(HASHES, None)
    try:
        return _restored(tensors), metadata
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} has scales that do not fit ({error}): make it again") from None


def _hashes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """Half a SHA-256 of each tensor with its name, type, shape and all metadata: whichever bit flips, one differs."""
    common, hashes = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()), {}
    for name, value in tensors.items():
        digest = common.copy()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
        hashes[name] = digest.hexdigest()[:32]
    return hashes


def _check_hashes(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Raise `CheckpointError` unless these tensors of a file, and its metadata, are as they were written."""
    if HASHES not in metadata:
        return
    try:
        wanted = dict(json.loads(metadata[HASHES]))
    except (ValueError, TypeError, RecursionError):
        wanted = {}
    found = _hashes(tensors, {key: value for key, value in metadata.items() if key != HASHES})
    if wrong := [name for name in found if found[name] != wanted.get(name)]:
        what = f"{wrong[0]} is not as it was written, its SHA-256 differs"
        raise CheckpointError(f"{path} is damaged ({what}): delete it and make it again")


def quantised(tensors: dict[str, Tensor], lead: int = 1) -> dict[str, Tensor]:
    """Numbers in 8 bits with a scale each of the `lead` first axes' places; `read_tensors` turns them back.

    That is an output channel of a network's weights, a quarter of float32, and with 2 a channel of planes.

    What is small, or has less than two dimensions, stays as it is. A value moves by at most a 254th of the largest of
    its channel.
    """
    out = {}
    for name, value in tensors.items():
        if value.dim() < 2 or value.numel() < 1024 or not value.is_floating_point():
            out[name] = value
            continue
        scale = value.float().flatten(lead).abs().amax(-1).clamp_min(1e-12) / 127
        out[name] = (value.float() / _spread(scale, value)).round().to(torch.int8)
        out[name + SCALE] = scale
    return out


def quantised_exactly(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `quantised` where that gives the very same numbers back, which it does for what was in 8 bits before: a scale
    is a 127th of a float, and such a one comes out again of 127 times itself (tried for all)."""
    out = {}
    for name, value in tensors.items():
        value = value.detach().cpu()
        packed = quantised({name: value})
        out |= packed if torch.equal(_restored(dict(packed))[name].float(), value.float()) else {name: value}
    return out


def _restored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    scales = {name: tensors.pop(name + SCALE) for name in list(tensors) if name + SCALE in tensors}
    for name, scale in scales.items():
        tensors[name] = tensors[name].float() * _spread(scale, tensors[name])
    return tensors


def _spread(scale: Tensor, value: Tensor) -> Tensor:
    return scale[(...,) + (None,) * (value.dim() - scale.dim())]


def config_from(metadata: dict[str, str], path: Path) -> Config:
    """The settings that a file carries, which are not beyond all measure; else `CheckpointError`."""
    try:
        return checked(Config.from_dict(json.loads(metadata["config"])), path.stat().st_size)
    except (KeyError, ValueError, TypeError, RecursionError, OverflowError, OSError) as error:
        raise CheckpointError(f"{path} carries no usable configuration ({str(error)[:300]})") from None


def build_decoder(config: Config, weights: dict[str, Tensor], path: Path) -> TriplaneDecoder:
    """A decoder with these weights; their names and shapes must be those of the config."""
    return load_weights(TriplaneDecoder(config.triplane.channels, config.decoder), weights, path, "decoder")


def load_weights(network: nn.Module, weights: dict[str, Tensor], path: Path, what: str) -> nn.Module:
    """The network with these weights, frozen; raises `CheckpointError` for other names or shapes, or NaN."""
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in weights.items()}
    if wanted != given:
        key = next(k for k in {**wanted, **given} if wanted.get(k) != given.get(k))
        raise CheckpointError(f"{path}: {what} weight {key} has shape {given.get(key)}, expected {wanted.get(key)}")
    if not all(value.isfinite().all() for value in weights.values()):
        raise CheckpointError(f"{path}: the {what}'s weights hold NaN or infinite values")
    network.load_state_dict({key: value.float() for key, value in weights.items()})
    return network.eval().requires_grad_(False)


def check_one_decoder(*folders: "FittedPlanes") -> None:
    """Raise `CheckpointError` unless all these planes were fitted to one decoder (E5a)."""
    if len(set().union(*(folder.decoders for folder in folders))) > 1:
        names = ", ".join(str(folder.folder) for folder in folders)
        raise CheckpointError(f"planes of different decoders do not compare: {names}; fit them with one --decoder")


def fingerprint(decoder: TriplaneDecoder) -> str:
    """SHA-256 of the weights: planes are only meaningful with the decoder that they were fitted to."""
    digest = hashlib.sha256()
    for key, value in sorted(decoder.state_dict().items()):
        digest.update(key.encode() + value.cpu().float().numpy().tobytes())
    return digest.hexdigest()


def checked_planes(planes: Tensor, config: Config, path: Path) -> Tensor:
    """The planes as float32 when they are finite and of shape (3, C, R, R)."""
    channels = config.triplane.channels
    if planes.dim() != 4 or planes.shape[:2] != (3, channels) or planes.shape[2] != planes.shape[3]:
        raise CheckpointError(f"{path}: planes have shape {tuple(planes.shape)}, expected (3, {channels}, R, R)")
    if not planes.isfinite().all():
        raise CheckpointError(f"{path}: planes hold NaN or infinite values")
    return planes.float()


class SharedDecoder:
    """What stage one leaves behind (E5a): the decoder, the common start and the planes' statistics.

    Attributes:
        decoder: frozen `TriplaneDecoder`.
        config: the settings it was learned with.
        mean_planes: (3, C, r, r) mean of the fitted planes at base resolution, where every further subject starts.
        mean, std: (C,) statistics of the planes at base resolution, the scale diffusion works in.
    """

    def __init__(self, decoder: TriplaneDecoder, config: Config, mean_planes: Tensor, mean: Tensor, std: Tensor):
        self.decoder = decoder.eval().requires_grad_(False)
        self.config, self.mean_planes, self.mean, self.std = config, mean_planes, mean, std

    def save(self, path: str | Path) -> None:
        tensors = {f"decoder.{k}": v for k, v in self.decoder.state_dict().items()}
        tensors |= {"mean_planes": self.mean_planes.half(), "mean": self.mean, "std": self.std}
        atomic_save(tensors, Path(path), {"kind": "decoder", "config": json.dumps(self.config.to_dict())})

    @classmethod
    def load(cls, path: str | Path) -> "SharedDecoder":
        """Read a `decoder.safetensors`; raises `CheckpointError` in one line."""
        tensors, metadata = read_tensors(Path(path), "decoder")
        config = config_from(metadata, Path(path))
        weights = {k.removeprefix("decoder."): v for k, v in tensors.items() if k.startswith("decoder.")}
        decoder = build_decoder(config, weights, Path(path))
        c, r = config.triplane.channels, config.triplane.base_resolution
        for key, shape in {"mean_planes": (3, c, r, r), "mean": (c,), "std": (c,)}.items():
            if key not in tensors or tuple(tensors[key].shape) != shape:
                raise CheckpointError(f"{path}: {key} is missing or not of shape {shape}")
        return cls(decoder, config, tensors["mean_planes"].float(), tensors["mean"], tensors["std"])


class FittedPlanes:
    """A folder of fitted subjects: `decoder.safetensors` and `planes-*.safetensors`, one float16 tensor a subject.

    Args:
        folder: as written by `fit_subjects`; may be empty.

    Raises:
        CheckpointError: a shard cannot be read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._shard_of: dict[str, Path] = {}
        self.decoders: set[str] = set()  # fingerprints of those the planes were fitted to
        for path in sorted(self.folder.glob("planes-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    self._shard_of |= dict.fromkeys(file.keys(), path)
                    self.decoders.add((file.metadata() or {}).get("decoder", ""))
            except UNREADABLE as error:
                raise CheckpointError(f"{path} is cut short or damaged ({error}): delete it and fit again") from None

    @property
    def has_decoder(self) -> bool:
        return (self.folder / "decoder.safetensors").is_file()

    @property
    def decoder(self) -> SharedDecoder:
        return SharedDecoder.load(self.folder / "decoder.safetensors")

    @property
    def names(self) -> list[str]:
        return list(self._shard_of)

    @property
    def shards(self) -> dict[Path, list[str]]:
        """The files, and whose planes are in each."""
        held: dict[Path, list[str]] = {}
        for name, path in self._shard_of.items():
            held.setdefault(path, []).append(name)
        return held

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    def __len__(self) -> int:
        return len(self._shard_of)

    def planes(self, name: str) -> Tensor:
        """The planes of one subject, (3, C, R, R) float32."""
        if name not in self._shard_of:
            some = ", ".join(self.names[:5]) or "none"
            raise CheckpointError(f"{self.folder} holds no subject {name!r}; it has {some} …")
        path = self._shard_of[name]
        try:
            with safe_open(path, "pt") as file:
                planes, metadata = file.get_tensor(name), file.metadata() or {}
        except UNREADABLE as error:
            raise CheckpointError(f"{path} is cut short or damaged ({error}): delete it and fit again") from None
        _check_hashes({name: planes}, metadata, path)
        return checked_planes(planes, config_from(metadata, path), path)

    def shard_of(self, first: str) -> Path:
        """Where subjects are written of whom this is the first."""
        return self.folder / f"planes-{first}.safetensors"

    @property
    def skipped(self) -> dict[str, dict]:
        """Subjects that could not be fitted, and what `skip` was told of them."""
        found = {}
        for path in sorted(self.folder.glob("skipped-*.json")):
            try:
                found[path.stem.removeprefix("skipped-")] = dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                raise CheckpointError(f"{path} is damaged ({error}): delete it") from None
        return found

    def skip(self, name: str, why: str, of: str) -> None:
        """Note that a subject could not be fitted, because of its `capture` or of its `planes`."""
        scratch = self.folder / f".skipped-{name}.tmp"
        scratch.write_text(json.dumps({"why": why, "of": of}), encoding="utf-8")
        os.replace(scratch, self.folder / f"skipped-{name}.json")

    def forget_skipped(self, names: Iterable[str]) -> None:
        for name in names:
            (self.folder / f"skipped-{name}.json").unlink(missing_ok=True)

    def write_shard(self, planes: dict[str, Tensor], shared: SharedDecoder) -> Path:
        """Add subjects as one shard, named after its first subject so that ranks never collide."""
        path = self.shard_of(next(iter(planes)))
        config = json.dumps(shared.config.to_dict())
        metadata = {"kind": "planes", "config": config, "decoder": fingerprint(shared.decoder)}
        atomic_save({name: p.half() for name, p in planes.items()}, path, metadata)
        self._shard_of |= dict.fromkeys(planes, path)
        self.forget_skipped(planes)
        return path


def begin_folder(out: str | Path, run: dict, shared: SharedDecoder) -> FittedPlanes:
    """A folder for the people that one run makes: those who are there already if it was begun before.

    Args:
        run: what tells it from other runs; kept in `made_by.json`.

    Raises:
        CheckpointError: people of another run are there, or another decoder; nothing is touched.
    """
    made, out = FittedPlanes(out), Path(out)
    record, text = out / "made_by.json", json.dumps(run, indent=1)
    if not record.is_file() or record.read_text(encoding="utf-8") != text:
        if len(made) or (made.has_decoder and fingerprint(made.decoder.decoder) != fingerprint(shared.decoder)):
            raise CheckpointError(f"{out} was left by other people, model or settings: choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        record.write_text(text, encoding="utf-8")
    shared.save(out / "decoder.safetensors")
    return made
