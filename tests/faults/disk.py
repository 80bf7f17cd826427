"""A disk that is full before a run is done: the run ends with an error that says so, and with room it goes on.

    python tests/faults/disk.py [--seed 0] [--only fit]

Whatever `kill.py` kills is made in a file system of memory (as root; else with files that may not grow) which is full
after some of it, three times with more room each time, then with enough. No attempt may leave half a file, and the end
is, bit by bit, that of a run which always had room. Exit code 1 if not.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from kill import contents, finished, jobs, quick, start

SAID = "No space left", "File too large", "cannot be written"


def limited(make: Callable[[Path], object], size: int) -> Callable[[Path], object]:
    """The same where no file may grow beyond a size."""

    def called(out: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        make(out)

    return called


def attempt(make: Callable[[Path], object], disk: Path, size: int, log: Path) -> int:
    """Make `disk/out` with so many bytes; returns the exit code."""
    if os.geteuid() == 0:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
    else:
        make = limited(make, size)
    code = finished(start(make, disk / "out", log), 600)
    (disk / "out.moments").unlink(missing_ok=True)
    return code


def run(seed: int, only: str = "", say=print) -> list[str]:
    quick()
    wrong = []
    with tempfile.TemporaryDirectory() as scratch:
        home, root = Path(scratch), os.geteuid() == 0
        for name, (before, make) in jobs(home).items():
            if only not in name:
                continue
            for prepare in before:
                prepare()
            rng, folder = random.Random(f"{seed} {name}"), home / "runs" / name.replace(" ", "-")
            disk = folder / "disk"
            disk.mkdir(parents=True)
            if code := finished(start(make, folder / "whole", folder / "whole.log"), 600):
                raise SystemExit(f"{name}: ends with {code}: {(folder / 'whole.log').read_text()[-2000:]}")
            sizes = [path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file()]
            need, full, fault = sum(sizes) if root else max(sizes), 0, ""
            if root:
                subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
            try:
                for share in sorted(rng.random() for _ in range(3)):
                    log = folder / f"{share:.3f}.log"
                    code = attempt(make, disk, max(8192, int(share * need)), log)
                    last = log.read_text().strip().splitlines()[-1:] or [""]
                    full += code != 0
                    if code and not any(words in last[0] for words in SAID):
                        fault = fault or f"with {share:.0%} of the room: {last[0][:300]}"
                    if left := [p.name for p in disk.rglob("*.tmp")]:
                        fault = fault or f"with {share:.0%} of the room {left} are left"
                code = attempt(make, disk, 100 * need + 2**24, folder / "end.log")
                if code or contents(disk / "out") != contents(folder / "whole"):
                    fault = fault or f"in the end {code}, or other bits: {(folder / 'end.log').read_text()[-300:]}"
            finally:
                if root:
                    subprocess.run(["umount", str(disk)], check=True)
            say(f"{name}: {need} bytes, {full} of 3 times full: {fault or 'equal'}")
            if fault:
                wrong.append(f"{name}: {fault}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="what has this in its name")
    options = parser.parse_args()
    return 1 if run(options.seed, options.only, lambda line: print(line, flush=True)) else 0


if __name__ == "__main__":
    sys.exit(main())
