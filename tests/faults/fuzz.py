"""Files that a stranger might give, spoilt in thousands of ways, through every loader.

    python tests/faults/fuzz.py [--count 10000] [--seed 0] [--only LOADER]

Whatever is in them: the library's own error or a result; nothing is unpickled or started, no file outside the folder is
opened, and neither memory nor time runs away. Prints what was found; exit code 1 if anything was.

What was thought of beforehand has its tests in `test_bad_input.py`, `test_pipeline.py` and `test_pretrained.py`.
"""

import argparse
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from conftest import tiny_config
from PIL import Image
from test_pretrained import Z, tiny_pipeline
from test_training import trainer
from toys import ball_capture

from minirodin.augmentation import read_augmentation
from minirodin.avatar import Avatar
from minirodin.avatars.attributes import sample_attributes
from minirodin.base_training import load_planes
from minirodin.cameras import load_capture, save_capture
from minirodin.errors import MinirodinError
from minirodin.fitting import fit_subjects
from minirodin.latents import Latents, _frontal
from minirodin.observations import Observations
from minirodin.pipeline import RodinPipeline
from minirodin.portraits import Portraits, open_picture, read_portrait
from minirodin.pretrained import kind_of, write_index
from minirodin.shards import FittedPlanes, SharedDecoder

SECONDS, MEMORY = 10, 3 * 2**30  # that one input may take
PICTURES = {"PNG": "RGBA", "JPEG": "RGB", "GIF": "P", "WEBP": "RGBA", "TIFF": "I;16", "BMP": "RGB", "PPM": "L"}
STARTS = "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class", "ctypes.dlopen"
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, 7, 2**31, 10**9, 10**30, 1e308, 5e-324, float("nan"), float("inf")),
    *("", "x", "\0", "..", "../secret.png", "../secret/secret.png", "/etc/passwd", "C:\\x", "é\u202e", "9" * 400),
    *([], {}, [[]], [1, "a", None], {"a": {}}, [0.0] * 16, [[1, 0, 0, 0]] * 4, list(range(300)), [2**20] * 4),
]


# -- good files, and what reads them ------------------------------------------------------------------------------


def good_files(home: Path) -> None:
    """A file or folder for every loader, and secrets beside them that nobody may read."""
    captures = home / "captures"
    for i, name in enumerate(("one", "two")):
        capture = ball_capture(name, views=5, size=16, seed=i)
        capture.attributes.clear()
        capture.attributes.update(sample_attributes(i).to_dict())
        save_capture(capture, captures / name)
    fit_subjects(captures, tiny_config(shared_steps=2), home / "fitted", device="cpu", show_progress=False)
    Avatar.load(home / "fitted" / "one").save(home / "avatar" / "a.safetensors")
    tiny_pipeline(home / "fitted").save_pretrained(home / "pipeline")
    z = torch.zeros(2, 8, Z)
    Latents(["one", "two"], z, "f", z[:, :3]).save(home / "latents" / "l.safetensors")
    (home / "augmentation").mkdir()
    magnitudes = {"smallest": 0.5, "blur": 1.0, "noise": 0.3}
    (home / "augmentation" / "augmentation.json").write_text(json.dumps({"augment": magnitudes}))
    half = trainer(home / "resume")
    half.advance()
    half.rows.append({"step": 1, "seconds": 0.1})
    half.save()
    half._release()
    (home / "resume" / "model.safetensors").unlink()
    for kind, mode in PICTURES.items():
        picture = Image.linear_gradient("L").resize((24, 20)).convert("I" if "I" in mode else "RGBA").convert(mode)
        folder = home / f"picture-{kind}"
        folder.mkdir()
        picture.save(folder / "p", kind)


def use_capture(folder: Path) -> None:
    capture = load_capture(folder)
    Observations([capture], 8, "cpu")


def use_avatar(folder: Path) -> None:
    Avatar.load(folder / "a.safetensors").render(20, 5, 8)


def use_fitted(folder: Path) -> None:
    fitted = FittedPlanes(folder)
    _ = fitted.skipped
    load_planes(folder, 8)
    SharedDecoder.load(folder / "decoder.safetensors")
    Avatar.load(folder / "one").render(20, 5, 8)


def use_pipeline(folder: Path, indexed: bool = True) -> None:
    if not indexed:  # a stranger's index fits the stranger's files
        write_index(folder)
    RodinPipeline.from_pretrained(folder, "cpu", torch.float32)


def use_portraits(folder: Path) -> None:
    Portraits.load(folder)
    _frontal(folder)


def use_picture(folder: Path) -> None:
    open_picture(folder / "p", enough=8)
    read_portrait(folder / "p", 16)


LOADERS = {  # name → (folder of good files, what reads them, how often)
    "capture": ("captures/one", use_capture, 5),
    "portraits": ("captures/one", use_portraits, 2),
    "avatar": ("avatar", use_avatar, 5),
    "fitted": ("fitted", use_fitted, 4),
    "pipeline": ("pipeline", lambda folder: use_pipeline(folder, indexed=False), 4),
    "index": ("pipeline", use_pipeline, 1),
    "latents": ("latents", lambda folder: Latents.load(folder / "l.safetensors"), 2),
    "augmentation": ("augmentation", lambda folder: read_augmentation(folder / "augmentation.json"), 1),
    "kind": ("avatar", lambda folder: kind_of(folder / "a.safetensors"), 1),
    "resume": ("resume", lambda folder: trainer(folder)._release(), 2),
    **{f"picture-{kind}": (f"picture-{kind}", use_picture, 1) for kind in PICTURES},
}


# -- how they are spoilt ------------------------------------------------------------------------------------------


def spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of bytes anywhere, most of them near the beginning, where formats keep their secrets."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = int(len(data) * rng.random() ** rng.choice((1, 4)))
        size = rng.choice((1, 1, 2, 4, 8, 64))
        change = rng.randrange(7)
        if change == 0:
            data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << rng.randrange(8)])
        elif change == 1:
            data[at : at + size] = rng.randbytes(size)
        elif change == 2:
            data[at : at + size] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
        elif change == 3:
            del data[at : at + size * rng.choice((1, 100))]
        elif change == 4:
            data[at:at] = data[at : at + size] * rng.choice((1, 1000))
        elif change == 5:
            del data[at:]
        else:
            data += rng.randbytes(size)
    return bytes(data)


def spoil_json(value, rng: random.Random):
    """The same with one node, or a key, replaced, dropped or doubled."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        change = rng.random()
        if change < 0.8:
            value[key] = spoil_json(value[key], rng)
        elif change < 0.9:
            value.pop(key)
        elif isinstance(value, list):
            value.insert(key, value[key])
        else:
            value[str(rng.choice(VALUES))[:50]] = value.pop(key)
        return value
    if isinstance(value, str) and value[:1] in "{[" and value[1:] and rng.random() < 0.9:
        return json.dumps(spoil_json(json.loads(value), rng))
    if isinstance(value, (int, float)) and rng.random() < 0.5:
        return rng.choice((-value, value + 1, value * 2, value * 1000, value / 3, value * 1e9, str(value), [value]))
    return rng.choice(VALUES)


def enlarged(config: dict, rng: random.Random) -> dict:
    """Settings of something that no machine holds, or builds in good time."""
    section = config[rng.choice(("triplane", "decoder", "render", "base", "upsampler", "refiner", "encoder", "latent"))]
    section = section.get("unet", section)
    name = rng.choice([key for key, value in section.items() if type(value) in (int, list)])
    times = rng.choice((100, 1000, 10**5))
    section[name] = [n * times for n in section[name]] if isinstance(section[name], list) else section[name] * times
    return config


def spoil_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else; mostly without hashes, as an enemy would leave them out."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if rng.random() < 0.8:
        header["__metadata__"].pop("sha256", None)
    part = rng.choice(("__metadata__", "__metadata__", *header))
    if part == "__metadata__" and "config" in header[part] and rng.random() < 0.8:
        config = json.loads(header[part]["config"])
        header[part]["config"] = json.dumps(enlarged(config, rng) if rng.random() < 0.4 else spoil_json(config, rng))
    elif isinstance(header.get(part), dict):
        header[part] = spoil_json(header[part], rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def spoil_weights(data: bytes, rng: random.Random) -> bytes:
    """A file of good form with other numbers, NaN and infinity among them, or tensors of other names."""
    from safetensors.torch import load, save

    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    metadata.pop("sha256", None)
    tensors = load(data)
    name = rng.choice(list(tensors))
    value = tensors[name]
    change = rng.randrange(6)
    if change == 0:
        tensors.pop(name)
    elif change == 1:
        tensors[rng.choice(("x", "planes", "..", name + ".scale", name[:-1] or "y"))] = value.clone()
    elif change == 2:
        tensors[name] = value.flatten()[: rng.randrange(3)].clone()
    elif change == 3:
        tensors[name] = value.to(rng.choice((torch.int8, torch.float64, torch.bool, torch.bfloat16, torch.int64)))
    elif change == 4:
        tensors[name] = value.float().fill_(rng.choice((float("nan"), float("inf"), 1e38, -1e30, 0.0)))
    else:
        tensors[name] = value[None]
    return save({k: v.contiguous() for k, v in tensors.items()}, metadata)


def spoil(folder: Path, rng: random.Random) -> str:
    """Change one file of a folder; returns which, and how."""
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    data = path.read_bytes()
    ways = [spoil_bytes]
    if path.suffix == ".safetensors":
        ways += [spoil_header, spoil_header, spoil_weights]
    if path.suffix == ".json":
        ways += [lambda data, rng: json.dumps(spoil_json(json.loads(data), rng)).encode()] * 4
    way = rng.choice(ways)
    path.write_bytes(way(data, rng))
    return f"{path.relative_to(folder)} by {way.__name__}"


# -- the watch ----------------------------------------------------------------------------------------------------

_watched: list = []  # [folder, findings] while an input is read


def _audit(event: str, args: tuple) -> None:
    if not _watched:
        return
    folder, found = _watched[-1]
    if event.startswith(STARTS):
        found.append(f"{event} {args[:1]}")
    elif event == "open" and isinstance(args[0], (str, bytes)):
        path = args[0] if isinstance(args[0], str) else args[0].decode(errors="replace")
        if Path(path).absolute().is_relative_to(folder) and ".." not in Path(path).parts:
            return
        writes = set(str(args[1])) & set("wax+") if isinstance(args[1], str) else (args[2] or 0) & 0o3
        if "secret" in path or path.startswith("/etc/pass") or (writes and not path.startswith("/dev/")):
            found.append(f"opened {path}")


class _TooLong(BaseException):
    """Nothing in the library can catch it."""


@contextmanager
def watched(folder: Path):
    """Within it what is opened and started is noted, and time and memory are short; yields the list of findings."""

    def stop(*_):
        raise _TooLong

    found: list[str] = []
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    alarm = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    signal.alarm(SECONDS)
    _watched.append((folder, found))
    try:
        yield found
    finally:
        _watched.pop()
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, alarm)


def run(count: int, seed: int, only: str = "", say=lambda line: None) -> dict:
    """Read so many spoilt inputs; returns how many were `read` and `refused`, and what was `found`."""
    if not getattr(run, "hooked", False):
        sys.addaudithook(_audit)  # for good: there is no way to take it back
        run.hooked = True
    read, refused, found, slowest = Counter(), Counter(), Counter(), (0.0, "")
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of strange pictures
        home = Path(scratch).resolve()
        good_files(home / "good")
        (home / "secret").mkdir()
        Image.new("RGBA", (16, 16)).save(home / "secret" / "secret.png")
        shutil.copy(home / "secret" / "secret.png", home / "secret.png")
        names = [name for name, (*_, weight) in LOADERS.items() for _ in range(weight) if only in name]
        for name, (source, use, _) in LOADERS.items():  # what is not spoilt is read
            with watched(home / "good" / source) as seen:
                use(home / "good" / source)
            assert not seen, f"{name}: {seen}"
        for i in range(count):
            rng = random.Random(f"{seed} {i}")
            name = rng.choice(names)
            source, use, _ = LOADERS[name]
            folder = home / "given" / Path(source).name
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(home / "good" / source, folder)
            how = spoil(folder, rng)
            others, started = _listing(home, folder), time.perf_counter()
            with watched(folder) as seen:
                try:
                    use(folder)
                    read[name] += 1
                except MinirodinError as error:
                    refused[name] += 1
                    if len(str(error)) > 2000:
                        seen.append(f"a message of {len(str(error))} characters")
                except _TooLong:
                    seen.append("took too long")
                except BaseException as error:
                    ours = [at for at in traceback.extract_tb(error.__traceback__) if "minirodin/" in at.filename]
                    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "an unknown place"
                    seen.append(f"{type(error).__name__} at {where}: {str(error)[:100]}")
            if _listing(home, folder) != others:
                seen.append("wrote outside its folder")
            slowest = max(slowest, (time.perf_counter() - started, f"{i}: {name}, {how}"))
            for what in seen:
                found[what] += 1
                if found[what] == 1:
                    say(f"{i}: {name}, {how}: {what}")
            if count >= 1000 and (i + 1) % 1000 == 0:
                say(f"{i + 1} inputs, {len(found)} findings")
    return {"read": dict(read), "refused": dict(refused), "found": dict(found), "slowest": slowest}


def _listing(home: Path, but: Path) -> list:
    return sorted((str(p), p.stat().st_size) for p in home.iterdir() if p not in (but, but.parent))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="loaders with this in their names")
    options = parser.parse_args()
    started = time.perf_counter()
    results = run(options.count, options.seed, options.only, lambda line: print(line, flush=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    read, refused = (sum(results[key].values()) for key in ("read", "refused"))
    print(f"{options.count} inputs in {time.perf_counter() - started:.0f} s, peak memory {peak:.2f} GiB")
    print(f"slowest {results['slowest'][0]:.2f} s ({results['slowest'][1]})")
    print(f"{refused} refused with one line, {read} read, {sum(results['found'].values())} faults")
    for name in LOADERS:
        if total := results["read"].get(name, 0) + results["refused"].get(name, 0):
            print(f"  {name}: {total}, refused {results['refused'].get(name, 0)}")
    for what, times in sorted(results["found"].items()):
        print(f"  {times} × {what}")
    return 1 if results["found"] else 0


if __name__ == "__main__":
    sys.exit(main())
