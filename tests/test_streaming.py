"""Planes that do not fit into memory: who is drawn when, what a killed run ends with, and how much memory it takes."""

import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import test_base
import test_upsampler
import torch
from conftest import tiny_config

from minirodin import base, streaming, upsampler
from minirodin.base_training import train_base
from minirodin.benchmark_data import bench_streaming
from minirodin.config import TrainConfig
from minirodin.errors import CheckpointError, ConfigError, DataError
from minirodin.shards import FittedPlanes, read_tensors
from minirodin.streaming import AHEAD, PlaneSource, load_planes
from minirodin.upsampler_training import train_upsampler

ONE = 3 * 4 * 8 * 8 * 2 / 2**30  # GiB of one person's planes at 8²
PEOPLE = 23


@pytest.fixture(scope="module")
def folder(fitted, tmp_path_factory):
    """23 people in shards of five, the last of three: noise that tells them apart, under the decoder of `fitted`."""
    shared, folder = FittedPlanes(fitted).decoder, tmp_path_factory.mktemp("people")
    shared.save(folder / "decoder.safetensors")
    out, generator = FittedPlanes(folder), torch.Generator().manual_seed(0)
    planes = {f"{i:03d}": torch.randn(3, 4, 16, 16, generator=generator).clamp(-1, 1) for i in range(PEOPLE)}
    for first in range(0, PEOPLE, 5):
        out.write_shard(dict(list(planes.items())[first : first + 5]), shared)
    return folder


def source(folder, people=10, batch=4, seed=0):
    """Streamed, in windows of `people`."""
    return PlaneSource(folder, 8, TrainConfig(batch=batch, seed=seed, cache=people * ONE * 1.01))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_epoch_has_everybody_once_among_all_processes(folder, ranks):
    people = source(folder)
    for epoch in range(4):
        drawn = [int(i) for rank in range(ranks) for i in people.order(epoch, rank, ranks)]
        assert len(drawn) == PEOPLE - PEOPLE % ranks == len(set(drawn))
        assert drawn != sorted(drawn)
    assert list(people.order(0)) != list(people.order(1))
    assert list(people.order(0)) == list(source(folder).order(0)) != list(source(folder, seed=1).order(0))


def test_whoever_is_left_out_changes(folder):
    people, left = source(folder), set()
    for epoch in (0, 1):
        left |= set(range(PEOPLE)) - {int(i) for rank in (0, 1) for i in people.order(epoch, rank, 2)}
    assert len(left) == 2


def test_a_window_spans_few_shards_and_is_shuffled(folder):
    orders = [source(folder, people=5, batch=1).order(epoch) for epoch in range(3)]
    for order in orders:
        for start in range(0, PEOPLE, 5):
            assert len({int(i) // 5 for i in order[start : start + 5]}) <= 2
        assert sum(b - a == 1 for a, b in pairwise(order)) < 12  # of 18 as they lie in shards


def test_batches_go_through_an_epoch_and_hold_the_planes_of_whom_they_name(folder, monkeypatch):
    truth, read, whole = load_planes(folder, 8)[0], [], FittedPlanes.planes
    people = source(folder, batch=3)
    monkeypatch.setattr(FittedPlanes, "planes", lambda self, name: read.append(name) or whole(self, name))
    drawn = []
    for turn in range(PEOPLE):  # three epochs
        of, planes = people.draw(3, seeded(), turn)
        assert planes.dtype == torch.float16 and torch.equal(planes, truth[of])
        drawn += of.tolist()
    for epoch in range(3):
        assert sorted(drawn[epoch * PEOPLE : (epoch + 1) * PEOPLE]) == list(range(PEOPLE))
    people._pool.shutdown()
    assert len(read) == 3 * PEOPLE + 3 * AHEAD  # nobody twice
    assert drawn[:PEOPLE] != drawn[PEOPLE : 2 * PEOPLE]


def test_a_stream_goes_on_where_another_was_without_reading_what_was_before(folder, monkeypatch):
    first, second = source(folder), source(folder)
    for turn in range(9):
        of, planes = first.draw(4, seeded(), turn, rank=1, ranks=2)
    first._pool.shutdown()
    read, whole = [], FittedPlanes.planes
    monkeypatch.setattr(FittedPlanes, "planes", lambda self, name: read.append(name) or whole(self, name))
    again, same = second.draw(4, seeded(), 8, rank=1, ranks=2)
    assert torch.equal(of, again) and torch.equal(planes, same)
    second._pool.shutdown()
    assert len(read) == 4 * (1 + AHEAD)
    once_more, _ = second.draw(4, seeded(), 8, rank=1, ranks=2)  # as a recorded graph's first batch is
    assert torch.equal(once_more, again) and len(read) == 4 * (1 + AHEAD)


def test_what_fits_is_kept_and_drawn_with_the_generator(folder, monkeypatch):
    people = source(folder, people=PEOPLE)
    monkeypatch.setattr(FittedPlanes, "planes", None)  # nothing is read any more
    of, planes = people.draw(6, seeded(3), turn=5)
    assert torch.equal(of, torch.randint(PEOPLE, (6,), generator=seeded(3)))
    assert torch.equal(planes, people.planes[of])
    assert people.known() is people.planes and torch.equal(people.first(4), people.planes[:4])


def test_statistics_of_streamed_people_are_of_as_many_as_the_cache_holds(folder, monkeypatch):
    people, truth = source(folder), load_planes(folder, 8)[0]
    assert people.planes is None and torch.equal(people.known(), truth)  # but not of a handful
    monkeypatch.setattr(streaming, "STATISTICS", (4, 4096))
    assert torch.equal(people.known(), truth[[i * PEOPLE // 10 for i in range(10)]])
    assert torch.equal(people.first(4), truth[:4])


def trained(what, folder, out, **train):
    if what == "base":
        c = test_base.config(cache=8 * ONE * 1.01, **train)
        c = replace(c, base=replace(c.base, unet=replace(c.base.unet, dropout=0.1)))  # random inside the network too
        return train_base(folder, c, out, show_progress=False)
    c = test_upsampler.config({"cache": 8 * 4 * ONE * 1.01, "steps": 4, "checkpoint_every": 2, **train})
    return train_upsampler(folder, c, out, show_progress=False)


@pytest.mark.parametrize("what, accumulate", [("base", 2), ("upsampler", 1)])
def test_a_streamed_training_killed_in_an_epoch_ends_bit_equal(folder, tmp_path, monkeypatch, what, accumulate):
    class Killed(BaseException):
        pass

    draw, turns = PlaneSource.draw, []

    def until_killed(self, number, generator, turn, *place):
        turns.append(turn)
        assert self.planes is None
        if len(turns) == 3 * accumulate + 1:
            raise Killed
        return draw(self, number, generator, turn, *place)

    trained(what, folder, tmp_path / "whole", accumulate=accumulate)
    with monkeypatch.context() as patch:
        patch.setattr(PlaneSource, "draw", until_killed)
        with pytest.raises(Killed):
            trained(what, folder, tmp_path / "broken", accumulate=accumulate)
    assert turns == list(range(3 * accumulate + 1))
    trained(what, folder, tmp_path / "broken", accumulate=accumulate)
    kind = {"base": base.KIND, "upsampler": upsampler.KIND}[what]
    a, b = (read_tensors(tmp_path / name / "model.safetensors", kind)[0] for name in ("whole", "broken"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_memory_stays_flat_with_ten_times_more_people_than_the_cache_holds():
    """The planes take 80 MiB; held, they are seen in the process's memory, streamed they are not."""
    c = tiny_config()
    c = replace(c, triplane=replace(c.triplane, channels=16, base_resolution=64, resolution=64))
    c = replace(c, base=replace(c.base, train=replace(c.base.train, batch=4)))
    found = bench_streaming(c, cache=8 / 2**10, epochs=1)
    (before, start, *_, end), held = found["peak_mb"], found["peak_mb_in_memory"]
    assert found["planes_mb"] > 75 and found["people_per_second"] > 0
    assert held[-1] - held[0] > 70
    assert end - start < 20 and end - before < 50


def test_what_is_wrong_is_said_in_a_line(folder, tmp_path):
    with pytest.raises(ConfigError, match="cache"):
        PlaneSource(folder, 8, TrainConfig(cache=0.0))
    with pytest.raises(DataError, match="no fitted planes"):
        PlaneSource(tmp_path, 8, TrainConfig())
    with pytest.raises(ConfigError, match="too few for 24 processes"):
        source(folder).draw(1, seeded(), 0, rank=0, ranks=24)


def test_a_shard_that_is_damaged_meanwhile_is_said_in_a_line(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    people = source(copy)
    for shard in people.fitted.shards:
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        people.draw(4, seeded(), 0)


def test_planes_are_loaded_as_many_as_asked_for(folder, monkeypatch):
    read, whole = [], FittedPlanes.planes
    monkeypatch.setattr(FittedPlanes, "planes", lambda self, name: read.append(name) or whole(self, name))
    planes, names = load_planes(folder, 8, 3)
    assert planes.shape == (3, 3, 4, 8, 8) and names == read == ["000", "001", "002"]
