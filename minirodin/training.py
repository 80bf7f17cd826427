"""One training loop for every network of the project, on accelerate: one CPU, one GPU, or many under torchrun.

Everything random in step k depends on (seed, k, process) alone, and a checkpoint holds the weights, their average, the
optimiser and k: a run that was killed and started again ends with the same weights as one that was not.
"""

import csv
import json
import math
import os
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import DistError

from minirodin.config import TrainConfig
from minirodin.errors import CheckpointError, ConfigError, MinirodinError
from minirodin.locks import FolderLock
from minirodin.plots import save_curves
from minirodin.progress import progress
from minirodin.shards import atomic_save, read_tensors


class EMA:
    """Exponential moving average of a network's parameters, with decay min(`decay`, (1 + k)/(10 + k)) in step k."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.parameters = list(network.parameters())
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def swapped_in(self):
        """Within it the network has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for p, average in zip(self.parameters, self.average, strict=True):
            kept = p.detach().clone()
            p.copy_(average)
            average.copy_(kept)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up over `warmup` steps, then constant or, with `decay`, half a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    if not config.decay:
        return config.lr * warm
    through = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, through))))


class Trainer:
    """A network, what it learns from, and where its files go.

    Args:
        network: trained in place; ends with the averaged weights.
        losses: (network, batch, generator) → dict with the scalar `loss` and anything else worth a column of the log.
        batches: (number, generator) → a batch on the device; called anew for every step.
        config: the schedule.
        out: folder of `model.safetensors` (averaged weights), `log.csv`, `loss.png`; meanwhile `resume.safetensors`.
        metadata: of the model file; must tell what the run is, since a checkpoint of another run is refused.
        extra: tensors that belong beside the weights.
        preview: (step) → dict of numbers for the log, called with the averaged weights in the network and free to draw.
        passing: the part of the network that only learning needs, by name: kept for resuming, not in the model file.

    Raises:
        ConfigError: a schedule that cannot run. CheckpointError: `out` holds another run's checkpoint. MinirodinError:
            another process trains into `out`.
    """

    def __init__(
        self,
        network: nn.Module,
        losses: Callable[[nn.Module, Tensor, torch.Generator], dict],
        batches: Callable[[int, torch.Generator], Tensor],
        config: TrainConfig,
        out: str | Path,
        metadata: dict[str, str],
        extra: dict[str, Tensor] | None = None,
        preview: Callable[[int], dict[str, float]] | None = None,
        passing: str = "",
    ):
        self.config, self.out, self.metadata, self.extra = config, Path(out), metadata, extra or {}
        self.losses, self.batches, self.preview, self.passing = losses, batches, preview, passing
        self.step, self.at, self.rows, self.seconds = 0, 0, [], 0.0
        with self._others_alive():
            gpu = torch.cuda.is_available()
            together = not gpu and "RANK" in os.environ  # processes on CPUs find each other only when that is said
            self.accelerator = Accelerator(cpu=together, mixed_precision="bf16" if gpu else "no")
        self.device, ranks = self.accelerator.device, self.accelerator.num_processes
        if config.steps < 1 or config.batch < 1 or config.batch % (ranks * config.accumulate):
            parts = f"{ranks} processes × {config.accumulate} parts"
            raise ConfigError(f"{config.steps} steps of batch {config.batch} do not divide into {parts}")
        if min(config.log_every, config.preview_every, config.checkpoint_every) < 1:
            raise ConfigError("train.log_every, preview_every and checkpoint_every count steps: give 1 or more")
        self.part = config.batch // (ranks * config.accumulate)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.ema = EMA(self.network, config.ema)
        optimiser = torch.optim.AdamW(
            self.network.parameters(), config.lr, (0.9, 0.99), weight_decay=config.weight_decay,
            fused=self.device.type == "cuda",
        )  # fmt: skip
        graphed = config.graph and self.device.type == "cuda"  # hooks of DistributedDataParallel cannot be recorded
        with self._others_alive():
            self.wrapped = self.accelerator.prepare_model(self.network, evaluation_mode=graphed)
        self.optimiser = self.accelerator.prepare(optimiser)
        self.shared = ranks > 1 and graphed
        self.lock = FolderLock(self.out) if self.accelerator.is_main_process else None
        try:
            self._resume()  # before the caller writes anything into a folder that may be another run's
        except BaseException:
            self._release()
            raise

    @property
    def resume_file(self) -> Path:
        return self.out / "resume.safetensors"

    @property
    def model_file(self) -> Path:
        return self.out / "model.safetensors"

    @property
    def place(self) -> tuple[int, int, int]:
        """Which batch is drawn: how many this process has drawn before in all, which process it is, of how many."""
        turn = self.step * self.config.accumulate + self.at
        return turn, self.accelerator.process_index, self.accelerator.num_processes

    def advance(self) -> dict[str, Tensor]:
        """One step of the optimiser; returns means over the batch, on the device."""
        lr = learning_rate(self.step, self.config)
        for settings in self.optimiser.param_groups:
            settings["lr"] = lr
        self.network.train()
        seen: dict[str, Tensor] = {}
        for part in range(self.config.accumulate):
            self.at = part
            seed = (self.config.seed, self.step, part, self.accelerator.process_index)
            seed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
            torch.manual_seed(seed)  # dropout
            generator = torch.Generator(self.device).manual_seed(seed)
            batch = self.batches(self.part, generator)
            last = part == self.config.accumulate - 1
            with self.accelerator.no_sync(self.wrapped) if not last else nullcontext():
                out = self.losses(self.wrapped, batch, generator)
                self.accelerator.backward(out["loss"] / self.config.accumulate)
            for name, value in out.items():
                seen[name] = seen.get(name, 0) + value.detach().float().mean() / self.config.accumulate
        if self.shared:
            self._average_gradients()
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.clip)
        seen["grad_norm"] = torch.as_tensor(norm)
        self.optimiser.step()
        self._zero_gradients()
        self.ema.update(self.step)
        self.step, self.at = self.step + 1, 0
        return seen

    def run(self, show_progress: bool = True) -> nn.Module:
        """Train to the end, from where an earlier run of the same settings left off; returns the averaged network.

        Raises:
            MinirodinError: the loss or its gradient is not finite; names the last good checkpoint. Or another process
                of the same training is gone.
        """
        try:
            with self._others_alive():
                self._all_steps(show_progress)
        finally:
            self._release()
        self.ema._swap()
        return self.network.eval()

    @contextmanager
    def _others_alive(self):
        """Within it one line tells of it where another process of the same training is gone."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, DistError) and "gloo" not in str(error):
                raise
            why = " ".join(str(error).split()).partition("] ")[2] or str(error)  # without where in gloo's source
            line = f"another process of this training has ended, near step {self.step} ({why.split('. ')[0][:160]})"
            raise MinirodinError(f"{line}: start the same command again, it goes on from there") from None

    def _release(self) -> None:
        if self.lock:
            self.lock.release()

    def _all_steps(self, show_progress: bool) -> None:
        c, main = self.config, self.accelerator.is_main_process
        bar = progress(total=c.steps, desc="training", unit="step", enabled=show_progress and main)
        with self._replayed(), bar:
            started, fine, seen = time.perf_counter() - self.seconds, None, {}
            bar.update(self.step)
            while self.step < c.steps:
                values = self.advance()
                finite = torch.isfinite(values["loss"]) & torch.isfinite(values["grad_norm"])
                fine = finite if fine is None else fine & finite
                for name, value in values.items():
                    seen.setdefault(name, []).append(value)
                bar.update(1)
                done = self.step == c.steps
                every = (c.log_every, c.preview_every, c.checkpoint_every)
                log, look, keep = (done or self.step % n == 0 for n in every)
                if not (log or look or keep):
                    continue
                if not bool(fine):
                    good = self.resume_file if self.resume_file.exists() else "none"
                    raise MinirodinError(
                        f"the loss is not finite near step {self.step}: lower train.lr (last good checkpoint: {good})"
                    )
                means = {name: float(torch.stack(v).mean()) for name, v in seen.items()}
                seen, self.seconds = {}, time.perf_counter() - started
                row = {"step": self.step, "seconds": round(self.seconds, 2), **means}
                bar.set_postfix(loss=f"{means['loss']:.4f}")
                if self.preview and look and main:
                    self.network.eval()
                    with self.ema.swapped_in(), torch.no_grad():
                        row |= self.preview(self.step)
                self.rows.append(row)
                if main:
                    self._log(draw=look or keep or done)
                    if keep:
                        self.save(done)
                self.accelerator.wait_for_everyone()

    @contextmanager
    def _replayed(self):
        """Within it, on a GPU, the network's kernels are replayed in training; however it ends, no longer after it."""
        eager = self.network.forward
        try:
            if self.config.graph and self.device.type == "cuda" and self.step < self.config.steps:
                self._record()
            yield
        finally:
            self.network.forward = eager

    def _record(self) -> None:
        """Have the network's forward and backward replayed in training; in evaluation it runs as ever."""
        calls = []

        def spy(*inputs: Tensor) -> Tensor:
            calls.append(inputs)
            return self.network(*inputs)

        generator = torch.Generator(self.device).manual_seed(0)
        with torch.no_grad():
            self.losses(spy, self.batches(self.part, generator), generator)
        self.network.train()
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
        torch.cuda.make_graphed_callables(self.network, calls[0], allow_unused_input=True)
        self._zero_gradients()

    def _average_gradients(self) -> None:
        """Over all processes, in one message."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _zero_gradients(self) -> None:
        if self.config.accumulate == 1:
            return self.optimiser.zero_grad(set_to_none=True)
        for p in self.network.parameters():  # a graph's own gradients change at its next replay: add to a copy
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()

    def save(self, done: bool = False) -> None:
        """Write the model file, and, unless the run is done, all that a resumed one needs."""
        tensors, names = {}, [name for name, _ in self.network.named_parameters()]
        for i, (name, p) in enumerate(self.network.named_parameters()):
            tensors[f"network.{name}"], tensors[f"ema.{name}"] = p, self.ema.average[i]
            for key, value in self.optimiser.state[p].items():
                tensors[f"{key}.{name}"] = value
        history = {"step": str(self.step), "rows": json.dumps(self.rows)}
        if not done:
            atomic_save(tensors, self.resume_file, {**self.metadata, "kind": "training in progress", **history})
        averages = zip(names, self.ema.average, strict=True)
        weights = {f"network.{name}": average for name, average in averages if name.partition(".")[0] != self.passing}
        metadata = {**self.metadata, "step": str(self.step)}
        atomic_save({**weights, **self.extra}, self.model_file, metadata)
        if done:
            self.resume_file.unlink(missing_ok=True)

    def _resume(self) -> None:
        if self.resume_file.exists():
            tensors, metadata = self._read(self.resume_file, "training in progress")
        elif self.model_file.exists():
            tensors, metadata = self._read(self.model_file, self.metadata["kind"])
            if metadata.get("step") != str(self.config.steps):
                return
            with torch.no_grad():
                for (name, p), average in zip(self.network.named_parameters(), self.ema.average, strict=True):
                    if name.partition(".")[0] != self.passing:
                        average.copy_(p.copy_(tensors[f"network.{name}"]))
            self.step = self.config.steps  # nothing is left to do
            return
        else:
            return
        try:
            with torch.no_grad():
                for i, (name, p) in enumerate(self.network.named_parameters()):
                    p.copy_(tensors[f"network.{name}"])
                    self.ema.average[i].copy_(tensors[f"ema.{name}"])
                    state = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                    moments = {k: torch.empty_like(p).copy_(v) for k, v in state.items() if k != "step"}
                    on = self.device if self.device.type == "cuda" else "cpu"
                    self.optimiser.state[p] = {"step": state["step"].to(on), **moments}
            self.step, self.rows = int(metadata["step"]), json.loads(metadata["rows"])
            self.seconds = float(self.rows[-1]["seconds"])
        except (KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.resume_file} does not fit this network ({error}): delete it") from None

    def _read(self, path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors, metadata = read_tensors(path, kind)
        if any(metadata.get(key) != value for key, value in self.metadata.items() if key != "kind"):
            raise CheckpointError(f"{path} was left by other data or settings: delete it or choose another folder")
        return tensors, metadata

    def _log(self, draw: bool) -> None:
        """`log.csv` and, which takes longest, `loss.png`; and TensorBoard's events where it is installed."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with open(self.out / "log.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        if draw:
            shown = [k for k in ("simple", "eps", "trained", "validation") if k in columns] or ["loss"]
            curves = {k: ([r["step"] for r in self.rows if k in r], [r[k] for r in self.rows if k in r]) for k in shown}
            save_curves(curves, self.out / "loss.png", xlabel="step", ylabel="loss", log_y=True)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = getattr(self, "_board", None) or SummaryWriter(str(self.out))
        for key, value in self.rows[-1].items():
            self._board.add_scalar(key, value, self.step)
