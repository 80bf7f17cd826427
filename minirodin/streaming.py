"""Planes as trainers draw them: from memory where all of them fit, else from their shards, each person once an epoch.

Who is drawn is a function of (seed, batch, process) alone, so that a killed run goes on in the middle of an epoch at no
cost and ends as one that was not. Loaders with shuffle buffers (webdataset) or running iterators (torch's DataLoader)
would have to be wound forward to get there. Safetensors are memory-mapped, so anybody can be read out of any shard
without the others; what is left to do is to put people in an order (`PlaneSource.order`), and to read ahead.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minirodin.config import TrainConfig
from minirodin.errors import ConfigError, DataError
from minirodin.shards import FittedPlanes
from minirodin.triplane import resize_planes

AHEAD = 2  # batches that are read while the network works, each by a thread; copies let go of the interpreter
STATISTICS = 64, 4096  # people that speak for all where not all are in memory, at least and at most


def load_planes(folder: str | Path, resolution: int, count: int | None = None) -> tuple[Tensor, list[str]]:
    """Planes of a fitted folder at one size: (S, 3, C, r, r) float16, and the subjects' names.

    Args:
        count: of the first so many; None: of all.

    Raises:
        DataError: there are none.
    """
    fitted = _people(folder)
    names = fitted.names[:count]
    return _read(fitted, names, resolution), names


class PlaneSource:
    """The people of a fitted folder, for one training: one tensor if that is within `train.cache`, else streamed.

    In memory people are drawn evenly, with replacement. Streamed, an epoch has everybody once: shards come in random
    order, each process takes its equal part of the row, and people are shuffled in windows of as many as the cache
    would hold, so that what is read together lies together. Beyond batches read ahead nothing is kept.

    Args:
        folder: as `fit_subjects` wrote it.
        resolution: r, that planes are drawn at.
        train: its `cache`, `batch` and `seed` count.

    Attributes:
        names: of the S people.
        planes: (S, 3, C, r, r) float16, or None where they are streamed.

    Example:
        >>> people = PlaneSource("fitted/train", 64, config.base.train)
        >>> of, planes = people.draw(16, torch.Generator().manual_seed(0), turn=0)  # (16,), (16, 3, C, 64, 64)
    """

    def __init__(self, folder: str | Path, resolution: int, train: TrainConfig):
        if not train.cache > 0:
            raise ConfigError(f"train.cache is {train.cache}: give the GiB that planes may take, more than 0")
        self.fitted, self.resolution, self.seed = _people(folder), resolution, train.seed
        self.names = self.fitted.names
        one = _read(self.fitted, self.names[:1], resolution)  # (1, 3, C, r, r)
        self.room = int(train.cache * 2**30 / (one.numel() * one.element_size()))  # people
        self.window = max(self.room, train.batch)
        self.planes = _read(self.fitted, self.names, resolution) if len(self) <= self.room else None
        self._orders: dict[tuple[int, int, int], np.ndarray] = {}
        self._ahead: dict[int, tuple[np.ndarray, Future]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: str | torch.device) -> "PlaneSource":
        """What is in memory moves to the device; what is streamed goes to that of the generator it is drawn with."""
        self.planes = None if self.planes is None else self.planes.to(device)
        return self

    def first(self, count: int) -> Tensor:
        """Planes of the first people, (count, 3, C, r, r) float16."""
        if self.planes is not None:
            return self.planes[:count]
        return _read(self.fitted, self.names[:count], self.resolution)

    def known(self) -> Tensor:
        """Planes of everybody, or, streamed, of about as many as the cache holds, evenly spread; for statistics."""
        if self.planes is not None:
            return self.planes
        least, most = STATISTICS
        count = min(len(self), max(least, min(self.room, most)))
        return _read(self.fitted, [self.names[i * len(self) // count] for i in range(count)], self.resolution)

    def draw(
        self, number: int, generator: torch.Generator, turn: int, rank: int = 0, ranks: int = 1
    ) -> tuple[Tensor, Tensor]:
        """A batch: places in `names` (B,) int64, and planes (B, 3, C, r, r) float16, on the generator's device.

        Args:
            number: B, the same in every turn.
            turn: how many batches this process has drawn before, of a run that was never broken.
            rank, ranks: which process this is, and of how many.
        """
        if self.planes is not None:
            of = torch.randint(len(self), (number,), generator=generator, device=self.planes.device)
            return of, self.planes[of]
        self._pool = self._pool or ThreadPoolExecutor(AHEAD)
        wanted = range(turn, turn + AHEAD + 1)
        self._ahead = {t: self._ahead[t] if t in self._ahead else self._begin(number, t, rank, ranks) for t in wanted}
        places, reading = self._ahead[turn]
        return torch.from_numpy(places).to(generator.device), reading.result().to(generator.device)

    def _begin(self, number: int, turn: int, rank: int, ranks: int) -> tuple[np.ndarray, Future]:
        each = len(self) // ranks  # people of this process in an epoch
        if not each:
            raise ConfigError(f"{len(self)} people are too few for {ranks} processes: raise train.cache to share them")
        at = np.arange(turn * number, (turn + 1) * number)
        places = np.array([self._order(epoch, rank, ranks)[i] for epoch, i in zip(at // each, at % each, strict=True)])
        return places, self._pool.submit(_read, self.fitted, [self.names[i] for i in places], self.resolution)

    def _order(self, epoch: int, rank: int, ranks: int) -> np.ndarray:
        key = int(epoch), rank, ranks
        if key not in self._orders:
            last = {k: order for k, order in self._orders.items() if k[0] == key[0] - 1}
            self._orders = {**last, key: self.order(*key)}
        return self._orders[key]

    def order(self, epoch: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """Places in `names` of the people whom a process draws in an epoch, in that order, (S // ranks,) int64.

        What does not divide among the processes, at most ranks − 1 people, is left out, others in every epoch.
        """
        place = {name: i for i, name in enumerate(self.names)}
        shards = [[place[name] for name in names] for names in self.fitted.shards.values()]
        shuffled = np.random.default_rng([self.seed, epoch, 0]).permutation(len(shards))  # of all processes alike
        row, each = np.concatenate([shards[i] for i in shuffled]), len(self) // ranks
        mine = row[rank * each : (rank + 1) * each]
        own = np.random.default_rng([self.seed, epoch, 1 + rank])
        windows = [mine[i : i + self.window] for i in range(0, each, self.window)]
        return np.concatenate([own.permutation(window) for window in windows])


def _people(folder: str | Path) -> FittedPlanes:
    fitted = FittedPlanes(folder)
    if not len(fitted):
        raise DataError(f"{folder} holds no fitted planes: give the folder that `minirodin fit` wrote")
    return fitted


def _read(fitted: FittedPlanes, names: list[str], resolution: int) -> Tensor:
    """(N, 3, C, r, r) float16."""
    out = None
    for i, name in enumerate(names):
        planes = resize_planes(fitted.planes(name), resolution)  # (3, C, r, r)
        if out is None:
            out = torch.empty(len(names), *planes.shape, dtype=torch.float16)
        out[i] = planes
    return out
