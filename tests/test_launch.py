"""The launch files, run for real with stand-ins for the cluster: every command line is one that our parsers take."""

import functools
import os
import subprocess
from pathlib import Path

import pytest

from minirodin import cli

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
STUBS = {
    "minirodin": 'printf "%s\\0" minirodin "$@" >> "$CALLS"; printf "\\n" >> "$CALLS"',
    "torchrun": 'printf "%s\\0" torchrun "$@" >> "$CALLS"; printf "\\n" >> "$CALLS"',
    "srun": 'exec "$@"',
    "scontrol": "printf 'node1\\nnode2\\n'",
    "nvidia-smi": "printf 'GPU 0\\nGPU 1\\n'",
    "sbatch": 'printf "%s\\0" sbatch "$@" "WHAT=${WHAT:-}" "KIND=${KIND:-}" "PART=${PART:-}" >> "$CALLS"; '
    'printf "\\n" >> "$CALLS"; wc -l < "$CALLS"',
}
TASK = {
    **{"SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "16", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"},
    **{"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node[1-2]"},
}


def calls(path, script, *words, **variables):
    """The command lines that a launch file comes to."""
    stubs, calls = path / "bin", path / "calls"
    stubs.mkdir(exist_ok=True)
    calls.write_bytes(b"")
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (stubs / name).chmod(0o755)
    environment = {**os.environ, **variables, "CALLS": str(calls), "PATH": f"{stubs}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(LAUNCH / script), *words], env=environment, check=True, capture_output=True, timeout=60)
    return [line.decode().split("\0")[:-1] for line in calls.read_bytes().split(b"\n") if line]


def parsed(argv, monkeypatch):
    """What our own parser makes of a command line, up to running it: the command's name and its arguments."""
    from torch.distributed.run import get_args_parser

    if argv[0] == "torchrun":
        given = get_args_parser().parse_args(argv[1:])
        assert given.module and given.training_script == "minirodin"
        argv = ["minirodin", *given.training_script_args]
    ran = {}
    with monkeypatch.context() as patch:
        for name in ("avatars", "fit", "train", "encode", "reproduce", "plan"):
            command = getattr(cli, name)

            def note(*args, _name=name, **arguments):
                ran[_name] = arguments

            patch.setattr(cli, name, functools.wraps(command)(note))
        assert cli.main(argv[1:]) == 0, argv
    ((name, arguments),) = ran.items()
    return name, arguments


def test_one_node(tmp_path, monkeypatch):
    planned, run = calls(tmp_path, "one_node.sh", "out")
    assert parsed(planned, monkeypatch)[1]["gpus"] == 2
    assert run[run.index("--nproc-per-node") + 1] == "2"
    name, arguments = parsed(run, monkeypatch)
    assert name == "reproduce" and arguments["config"].name == "full" and arguments["out"] == Path("out")


def test_several_nodes(tmp_path, monkeypatch):
    where = {"NODES": "2", "NODE": "1", "HEAD": "node1"}
    (run,) = calls(tmp_path, "several_nodes.sh", "base", "planes", "out", "--base.train.accumulate", "2", **where)
    name, arguments = parsed(run, monkeypatch)
    assert name == "train" and arguments["what"] == "base" and arguments["config"].base.train.accumulate == 2
    assert run[run.index("--master-addr") + 1] == "node1"


@pytest.mark.parametrize("kind, first", [("people/train", 3000), ("portraits/train", 103_000)])
def test_tasks_make_people_of_their_own(tmp_path, monkeypatch, kind, first):
    begin = str(first - 3000)
    (run,) = calls(tmp_path, "slurm/people.sbatch", ROOT="root", KIND=kind, FIRST=begin, EACH="1000", **TASK)
    name, arguments = parsed(run, monkeypatch)
    assert name == "avatars" and arguments["seed"] == first and arguments["count"] == 1000
    assert arguments["out"] == Path("root") / kind and arguments["portraits"] == (kind != "people/train")


def test_the_decoder_is_learned_from_the_first_people(tmp_path, monkeypatch):
    for i in range(5):
        (tmp_path / "people" / "train" / f"{i:06d}").mkdir(parents=True)
    (tmp_path / "people" / "unseen").mkdir()
    (run,) = calls(tmp_path, "slurm/decoder.sbatch", ROOT=str(tmp_path), LEARNED="3", **TASK)
    name, arguments = parsed(run, monkeypatch)
    assert name == "fit" and arguments["decoder"] is None
    assert sorted(p.name for p in arguments["data"].iterdir()) == ["000000", "000001", "000002"]
    assert all(p.is_dir() for p in arguments["data"].iterdir())


@pytest.mark.parametrize("kind, resolution", [("base", 64), ("upsampler", 256)])
def test_tasks_fit_their_share(tmp_path, monkeypatch, kind, resolution):
    (run,) = calls(tmp_path, "slurm/fit.sbatch", ROOT="root", KIND=kind, PART="unseen", **TASK)
    name, arguments = parsed(run, monkeypatch)
    assert name == "fit" and arguments["config"].triplane.resolution == resolution
    assert max(arguments["config"].fit.resolutions) == resolution
    assert arguments["out"] == Path("root") / "planes" / kind / "unseen"
    text = (LAUNCH / "slurm" / "fit.sbatch").read_text()
    assert "--array=0-63\n" in text and "TASKS=64\n" in text  # as many shares as tasks


def test_latents_are_encoded_beside_planes(tmp_path, monkeypatch):
    runs = [parsed(run, monkeypatch) for run in calls(tmp_path, "slurm/encode.sbatch", ROOT="root", **TASK)]
    assert [name for name, _ in runs] == ["encode"] * 3
    assert runs[0][1]["out"] == Path("root/planes/base/train/latents.safetensors")


@pytest.mark.parametrize("what", ["encoder", "latent", "base", "upsampler"])
def test_networks_are_trained_on_all_nodes(tmp_path, monkeypatch, what):
    (run,) = calls(tmp_path, "slurm/train.sbatch", ROOT="root", WHAT=what, **TASK)
    assert run[run.index("--rdzv-endpoint") + 1] == "node1:29500"
    name, arguments = parsed(run, monkeypatch)
    assert name == "train" and arguments["what"] == what and arguments["config"].name == "full"
    assert arguments["config"].base.unet.latent == (512 if what == "base" else 0)


def test_jobs_wait_for_what_they_need(tmp_path):
    jobs = calls(tmp_path, "slurm/submit.sh", "root")
    needs, made = {}, {}
    for number, (_, *flags, what, kind, part) in enumerate(jobs, 1):
        assert (LAUNCH / "slurm" / Path(flags[-1]).name).is_file()
        after = [f.split(":")[1:] for f in flags if f.startswith("--dependency=afterok:")]
        needs[number] = {int(n) for n in after[0]} if after else set()
        assert all(n < number for n in needs[number])
        made[number] = (Path(flags[-1]).stem, what[5:], kind[5:], part[5:])
    places = {job: number for number, job in made.items()}
    assert len(places) == len(jobs) == 13
    waits = needs[places["encode", "", "", ""]]
    assert waits == {places["train", "encoder", "", ""]} | {places["fit", "", "base", p] for p in ("train", "unseen")}
    assert needs[places["train", "base", "", ""]] == {places["encode", "", "", ""]}
    assert len(needs[places["decoder", "", "", ""]]) == 2
