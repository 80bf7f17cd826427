"""One of two processes of a training dies: the other ends, soon and with one line, and a restart goes on.

    python tests/faults/ranks.py [--kills 8] [--seed 0] [--torchrun]

Two processes on one CPU, with gloo. The first and the second are killed (kill -9) in turn, at random moments; then the
training is started again. In the end the weights are, bit by bit, those of two processes that nobody killed; exit code
1 if not. With --torchrun the processes are its children, as they mostly are, and it ends the other one.

A process that hangs is given up by torch.distributed after 30 minutes (ten on GPUs), and ends with the same line.
"""

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from kill import contents, finished, start
from test_training import CONFIG, batches, trainer

from minirodin import training

PATIENCE = 60.0  # seconds that the other one may take to notice
PACE = 0.004  # seconds that a batch takes


def learn(out: Path, rank: int, port: int, steps: int) -> None:
    """One of the two processes, as the command line would be: a mistake is one line and exit code 2."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()})
    work(out, steps)


def work(out: Path, steps: int = 500) -> None:
    torch.set_num_threads(1)
    training.save_curves = lambda curves, path, **more: None

    def slow(number, generator):
        time.sleep(PACE)
        return batches(number, generator)

    try:
        trainer(out, replace(CONFIG, steps=steps, checkpoint_every=10, log_every=10, preview_every=steps), slow).run(
            False
        )
    except training.MinirodinError as error:
        print("error:", " ".join(str(error).split()), flush=True)
        os._exit(2)
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def both(out: Path, logs: Path, steps: int) -> list[int]:
    port = free_port()
    return [start(lambda o, rank=rank: learn(o, rank, port, steps), out, logs / f"{rank}.log") for rank in (0, 1)]


def changed(path: Path) -> None:
    """Wait until a file is written anew, or a minute."""
    before, until = path.stat().st_mtime_ns if path.exists() else 0, time.monotonic() + 60
    while (path.stat().st_mtime_ns if path.exists() else 0) == before and time.monotonic() < until:
        time.sleep(0.02)


def run(kills: int, seed: int, say=print) -> list[str]:
    rng, wrong, slowest, steps = random.Random(seed), [], 0.0, 60 * kills + 40
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        started = time.monotonic()
        codes = [finished(process, 120) for process in both(home / "whole", home, steps)]
        whole = time.monotonic() - started
        if codes != [0, 0]:
            raise SystemExit("the unbroken run fails: " + "\n".join(p.read_text() for p in home.glob("*.log")))
        say(f"unbroken: {whole:.1f} s")
        hit = 0
        for i in range(kills):
            logs = home / f"logs-{i}"
            logs.mkdir()
            processes = both(home / "broken", logs, steps)
            victim, other = processes[i % 2], processes[1 - i % 2]
            if i or kills == 1:  # at work; else while they look for each other
                changed(home / "broken" / "resume.safetensors")
            if finished(victim, rng.uniform(0, 0.3)) is not None:
                finished(other, PATIENCE)
                continue
            os.kill(victim, 9)
            finished(victim, 10)
            died = time.monotonic()
            code = finished(other, PATIENCE)
            seconds = time.monotonic() - died
            if code is None:
                os.kill(other, 9)
                finished(other, 10)
                wrong.append(f"kill {i}: the other one was still there after {PATIENCE:.0f} s")
                continue
            said = (logs / f"{1 - i % 2}.log").read_text()
            lines = [line for line in said.splitlines() if line.startswith("error: ")]
            hit, slowest = hit + 1, max(slowest, seconds)
            if code != 2 or len(lines) != 1 or "start the same command again" not in lines[0] or "Traceback" in said:
                wrong.append(f"kill {i}: the other one ended with {code} and said {said[-600:]!r}")
            elif hit == 1:
                say(lines[0])
        codes = [finished(process, 120) for process in both(home / "broken", home, steps)]
        if codes != [0, 0] or contents(home / "broken") != contents(home / "whole"):
            wrong.append(f"the restart ended with {codes}, or other weights: {(home / '0.log').read_text()[-600:]}")
    say(f"{hit} of {kills} kills hit, the other process ended within {slowest:.1f} s, {len(wrong)} faults")
    return wrong


def run_torchrun(say=print) -> list[str]:
    """The same once under torchrun, which sees that a process has died and ends the other."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
        command += [str(free_port()), __file__, "--work", str(out)]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while not (out / "resume.safetensors").exists() and first.poll() is None:
            time.sleep(0.05)
        ranks = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(ranks[-1]), 9)
        started = time.monotonic()
        said = first.communicate(timeout=120)[0]
        seconds = time.monotonic() - started
        again = subprocess.run(command, capture_output=True, text=True)
        ok = first.returncode != 0 and again.returncode == 0 and (out / "model.safetensors").exists()
        say(f"torchrun ended after {seconds:.1f} s with {first.returncode}; restarted: {again.returncode}")
        return [] if ok else [f"{said[-1500:]} {again.stderr[-1500:]}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--torchrun", action="store_true")
    parser.add_argument("--work", type=Path, help="be one of the processes of torchrun")
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return 0
    wrong = run_torchrun() if options.torchrun else run(options.kills, options.seed)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
