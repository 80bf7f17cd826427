"""A pipeline's folder, laid out as diffusers does, and its index: which files belong there, and that they are the ones.

    model_index.json          {"_class_name": "RodinPipeline", "_minirodin_version": "0.1.0",
                               "base": {"kind": "base model", "file": "base/model.safetensors", "size": …, "sha256": …},
                               "decoder": …, "encoder": …, "latent": …, "upsampler": …, "refiner": …}
    README.md                 the model card
    decoder.safetensors       of all components that have none of their own
    base/model.safetensors    one folder a component, as training leaves it

A folder without an index, such as the one that training runs share, is read as it is.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from minirodin import __version__
from minirodin.errors import CheckpointError, ConfigError
from minirodin.latent import offline_if_unreachable
from minirodin.shards import atomic_save, quantised, quantised_exactly, read_tensors

INDEX, CARD, MODEL, DECODER = "model_index.json", "README.md", "model.safetensors", "decoder.safetensors"
PARTS = ("base", "encoder", "latent", "upsampler", "refiner")  # of a pipeline; more may lie there, as a classifier


def locate(source: str | Path) -> Path:
    """The folder itself, or that to which a model of this name was downloaded from the Hugging Face hub.

    Raises:
        CheckpointError: neither, or a download that is not possible.
    """
    folder, name = Path(source), Path(source).as_posix()
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise CheckpointError(
            f"{source} is not a folder: give one with base/, encoder/ and latent/, or a name on huggingface.co such as "
            "user/model"
        )
    from huggingface_hub import snapshot_download

    try:
        with offline_if_unreachable():
            return Path(snapshot_download(name, allow_patterns=[INDEX, CARD, "*.safetensors"]))
    except Exception as error:  # of the hub, the network or the disk, by many names
        why = re.split(r"[.:]\s", " ".join(str(error).split()))[0][:160]
        raise CheckpointError(
            f"{source} is not a folder, and as a name on huggingface.co it cannot be had ({why}): check the spelling, "
            "or connect to huggingface.co once"
        ) from None


def checked_parts(folder: Path) -> list[str]:
    """Those of `PARTS` that a folder holds; with an index only if each of their files is what that says.

    Raises:
        CheckpointError: the index cannot be read or leads outside the folder, a file is missing, differs or is not
            listed, or there is no base model.
    """
    index = read_index(folder)
    parts = [part for part in PARTS if (part in index if index else (folder / part).is_dir())]
    if "base" not in parts:
        raise CheckpointError(f"{folder} has no folder 'base': give one with base/, encoder/ and latent/")
    if not index:
        return parts
    again = f"fetch it again or, if it is meant to be another: minirodin pack {folder}"
    for name, entry in index.items():
        if name.split("/")[0] not in (*PARTS, "decoder"):
            continue
        path = folder / entry["file"]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, but {INDEX} lists it: {again}")
        if path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
            raise CheckpointError(f"{path} is not the file that {INDEX} lists (its SHA-256 differs): {again}")
    listed = {entry["file"] for entry in index.values()}
    for path in weights_of(folder):
        name = path.relative_to(folder).as_posix()
        if name not in listed and name.split("/")[0] in (*PARTS, DECODER):
            raise CheckpointError(f"{path} is not listed in {INDEX}: remove it, or list it: minirodin pack {folder}")
    return parts


def read_index(folder: Path) -> dict[str, dict]:
    """Component → `kind`, `file`, `size` and `sha256`; empty where there is no index. Raises `CheckpointError`."""
    path, wanted = folder / INDEX, {"kind": str, "file": str, "size": int, "sha256": str}
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["_class_name"] != "RodinPipeline":
            raise ValueError(f"of a {index['_class_name']}")
        entries = {name: entry for name, entry in index.items() if not name.startswith("_")}
        for name, entry in entries.items():
            if {key: type(value) for key, value in entry.items()} != wanted:
                raise ValueError(f"{name!r} has not {', '.join(wanted)}")
            # Names, not where links lead: the hub's own cache is made of links to elsewhere.
            if not re.fullmatch(r"(?:\w[\w.-]*/)*\w[\w.-]*", entry["file"]):
                raise ValueError(f"{entry['file']!r} leads outside the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a pipeline's index ({error}): minirodin pack {folder}") from None
    return entries


def write_index(folder: Path) -> dict[str, dict]:
    """Write the index of the weights that lie in a folder, whole or not at all; returns it as `read_index` does."""
    index = {}
    for path in weights_of(folder):
        name = path.relative_to(folder).as_posix()
        component = name.removesuffix(f"/{MODEL}").removesuffix(".safetensors")
        index[component] = {
            "kind": kind_of(path), "file": name, "size": path.stat().st_size, "sha256": sha256(path)
        }  # fmt: skip
    if "base" not in index:
        raise ConfigError(f"{folder} is not the folder of a pipeline: there is no base/{MODEL}")
    text = json.dumps({"_class_name": "RodinPipeline", "_minirodin_version": __version__, **index}, indent=1) + "\n"
    _write_text(folder / INDEX, text)
    return index


def save_parts(parts: dict, folder: str | Path, card: str) -> None:
    """Write components, {name: one with `state`}, their index and the card; the whole folder, or nothing of it.

    Numbers that were read from 8 bits are written in 8 bits again, others as they are, so that nothing is lost. The
    folder keeps a card that it has.

    Raises:
        CheckpointError: the folder holds components that are not among these, or one cannot be saved.
    """
    folder = Path(folder)
    if other := [name for name in PARTS if (folder / name / MODEL).is_file() and name not in parts]:
        raise CheckpointError(f"{folder} holds {', '.join(other)} of another pipeline: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        for name, part in parts.items():
            tensors, metadata = part.state()
            atomic_save(quantised_exactly(tensors), Path(scratch) / name / MODEL, metadata)
            if hasattr(part, "shared"):
                part.shared.save(Path(scratch) / name / DECODER)
        for path in weights_of(Path(scratch)):  # all is written: what may still fail is harmless, and told by the index
            target = folder / path.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    if card and not (folder / CARD).is_file():
        _write_text(folder / CARD, card)
    write_index(folder)


def pack_model(model: Path, out: Path) -> tuple[int, int]:
    """Copy a component's folder with its weights in 8 bits; bytes of the weights before and after.

    Where `out` lies in a folder with an index, that is brought up to date.
    """
    path, packed = model / MODEL, out / MODEL
    tensors, metadata = read_tensors(path, kind_of(path))
    weights = {name: tensors.pop(name) for name in list(tensors) if name.startswith("network.")}
    statistics = {name: value.half() for name, value in tensors.items()}
    atomic_save(quantised(weights) | statistics, packed, metadata)
    if (model / DECODER).is_file():
        shutil.copyfile(model / DECODER, out / DECODER)
    if (out.parent / INDEX).is_file():
        write_index(out.parent)
    return path.stat().st_size, packed.stat().st_size


def weights_of(folder: Path) -> list[Path]:
    """The weight files of a pipeline's folder, its own decoder first."""
    names = (MODEL, DECODER)
    return [*folder.glob(DECODER), *sorted(path for name in names for path in folder.glob(f"*/{name}"))]


def kind_of(path: Path) -> str:
    """What a model file says it is; raises `CheckpointError` in one line."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give the folder that `minirodin train` wrote")
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("kind", "file of no known kind")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error}): make it again") from None


def sha256(path: Path) -> str:
    """Of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _write_text(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
