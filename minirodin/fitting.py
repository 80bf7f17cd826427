"""Robust tri-plane fitting (E3–E5): a decoder shared by all subjects, then planes for any number of further ones.

Stage one optimises the decoder together with the planes of all its subjects: groups of subjects take turns at every
step, so that the decoder never forgets the first ones. Stage two freezes it and fits group after group.
"""

import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minirodin.cameras import Capture, find_captures, load_capture
from minirodin.config import Config
from minirodin.decoder import TriplaneDecoder
from minirodin.errors import CheckpointError, ConfigError, DataError, MinirodinError
from minirodin.locks import FolderLock
from minirodin.objective import PlaneGroup, fitting_loss
from minirodin.observations import Observations
from minirodin.progress import progress
from minirodin.render import Occupancy, occupancy_from_planes
from minirodin.shards import FittedPlanes, SharedDecoder, atomic_save, fingerprint, read_tensors
from minirodin.triplane import plane_statistics, resize_planes

SHARED = ".resume-shared.safetensors"  # the state of stage one
PATIENCE = 30.0  # seconds that a fit waits for others that begin in the same folder


@dataclass
class _Group:
    """Subjects that are stepped together: their names, planes, optimiser and occupancy."""

    names: list[str]
    subjects: Tensor
    planes: PlaneGroup
    optimiser: torch.optim.Optimizer
    occupancy: Occupancy


class Fitter:
    """One optimisation: groups of planes that take turns, and a decoder that learns along or stays as it is.

    Args:
        names: of the subjects in `observations`.
        observations: their views.
        config: settings; `fit.shared_steps` or `fit.steps` per group apply.
        decoder: on the device; learned when `learn_decoder`.
        start: (3, C, r, r) planes that every subject starts from; zeros when None.
    """

    def __init__(
        self,
        names: list[str],
        observations: Observations,
        config: Config,
        decoder: TriplaneDecoder,
        learn_decoder: bool,
        start: Tensor | None = None,
    ):
        fit, device = config.fit, observations.pixels.device
        self.config, self.observations, self.decoder = config, observations, decoder
        self.total_steps = fit.shared_steps if learn_decoder else fit.steps
        self.step = 0
        self.generator = torch.Generator(device).manual_seed(fit.seed)
        self.host_generator = torch.Generator().manual_seed(fit.seed)
        fused = device.type == "cuda"
        self.groups = []
        for ids in torch.arange(len(names), device=device).split(fit.group):
            planes = PlaneGroup(len(ids), config, start).to(device)
            lrs = [{"params": [planes.coarse], "lr": fit.coarse_lr}, {"params": [planes.detail], "lr": fit.detail_lr}]
            optimiser = torch.optim.Adam(lrs, betas=(0.9, 0.99), eps=1e-10, fused=fused)
            members = [names[i] for i in ids.tolist()]
            self.groups.append(_Group(members, ids, planes, optimiser, observations.hull_occupancy(ids)))
        decoder.requires_grad_(learn_decoder)
        self.optimisers = [g.optimiser for g in self.groups]
        self.decoder_optimiser = None
        if learn_decoder:
            self.decoder_optimiser = torch.optim.Adam(decoder.parameters(), fit.decoder_lr, (0.9, 0.99), fused=fused)
            self.optimisers.append(self.decoder_optimiser)
        self.base_lrs = [[p["lr"] for p in o.param_groups] for o in self.optimisers]
        self.loss = torch.compile(fitting_loss) if fused else fitting_loss

    def _resolution(self) -> int:
        """E5c: coarse only at first, then a size drawn at random."""
        fit = self.config.fit
        draw = torch.multinomial(torch.tensor(fit.resolution_weights), 1, generator=self.host_generator)
        if self.step < fit.coarse_fraction * self.total_steps:
            return min(fit.resolutions)
        return fit.resolutions[int(draw)]

    def advance(self) -> Tensor:
        """One step of the group whose turn it is; returns its mean squared error (a scalar on the device)."""
        fit, render = self.config.fit, self.config.render
        turn = self.step // len(self.groups)
        group = self.groups[self.step % len(self.groups)]
        device = self.observations.pixels.device
        if turn % fit.grid_every == 0 and self.step >= fit.coarse_fraction * self.total_steps:
            self._refresh(group)

        scale = max(0.05, 0.5 * (1 + math.cos(math.pi * self.step / self.total_steps)))
        for optimiser, lrs in zip(self.optimisers, self.base_lrs, strict=True):
            for settings, lr in zip(optimiser.param_groups, lrs, strict=True):
                settings["lr"] = lr * scale

        b, n = len(group.names), fit.rays
        batch = self.observations.sample_rays(group.subjects, n, self.generator)
        random = torch.rand(b, n, 3, device=device, generator=self.generator)
        fixed = self.observations.background[group.subjects, None]
        background = torch.where(fixed.isnan(), random, fixed)
        points = torch.rand(b, n, 3, device=device, generator=self.generator) * 2 - 1
        jitter = torch.rand(b, n, render.samples, device=device, generator=self.generator)
        hull = self.observations.hull[group.subjects]

        planes = group.planes(self._resolution())
        noise = torch.randn(planes.shape, device=device, generator=self.generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            noisy = planes + fit.plane_noise * noise
            where = (group.occupancy, hull, points, jitter)
            loss, mse = self.loss(noisy, self.decoder, batch, background, *where, self.config)
        stepped = [o for o in (group.optimiser, self.decoder_optimiser) if o is not None]
        for optimiser in stepped:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in stepped:
            optimiser.step()
        self.step += 1
        return mse.detach()

    def _refresh(self, group: _Group) -> None:
        """Keep only the cells of the hull in which the planes have put something."""
        with torch.no_grad():
            hull = self.observations.hull[group.subjects]
            group.occupancy = occupancy_from_planes(group.planes(), self.decoder, hull.shape[-1], within=hull)

    @torch.no_grad()
    def planes(self) -> dict[str, Tensor]:
        """The fitted planes, (3, C, R, R) a subject."""
        return {name: p for g in self.groups for name, p in zip(g.names, g.planes(), strict=True)}

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs to go on bit-equally, as flat tensors."""
        state = {"step": torch.tensor(self.step), "generator": self.generator.get_state()}
        state["host_generator"] = self.host_generator.get_state()
        for i, group in enumerate(self.groups):
            for key in ("density", "occupied"):
                state[f"occupancy.{i}.{key}"] = getattr(group.occupancy, key)
            for key, value in group.planes.state_dict().items():
                state[f"planes.{i}.{key}"] = value
        if self.decoder_optimiser is not None:
            state |= {f"decoder.{key}": value for key, value in self.decoder.state_dict().items()}
        for i, optimiser in enumerate(self.optimisers):
            for p, values in optimiser.state_dict()["state"].items():
                for key, value in values.items():
                    state[f"optimiser.{i}.{p}.{key}"] = value
        return {key: value.detach().contiguous() for key, value in state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state()`."""
        device = self.observations.pixels.device
        self.step = int(state["step"])
        self.generator.set_state(state["generator"].cpu())
        self.host_generator.set_state(state["host_generator"].cpu())
        with torch.no_grad():
            for i, group in enumerate(self.groups):
                for key, parameter in group.planes.named_parameters():
                    parameter.copy_(state[f"planes.{i}.{key}"])
                group.occupancy = Occupancy(*(state[f"occupancy.{i}.{k}"].to(device) for k in ("density", "occupied")))
        if self.decoder_optimiser is not None:
            self.decoder.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith("decoder.")})
        for i, optimiser in enumerate(self.optimisers):
            values, prefix = optimiser.state_dict(), f"optimiser.{i}."
            values["state"] = {}
            for key, value in state.items():
                if key.startswith(prefix):
                    parameter, name = key.removeprefix(prefix).split(".")
                    values["state"].setdefault(int(parameter), {})[name] = value
            optimiser.load_state_dict(values)
            for parameter, moments in optimiser.state.items():  # fused Adam wants them laid out as the parameter is
                for key in ("exp_avg", "exp_avg_sq"):
                    moments[key] = torch.empty_like(parameter).copy_(moments[key])

    def run(self, checkpoint: Path, show: bool = True) -> None:
        """All steps, from where `checkpoint` left off; it is rewritten every `fit.checkpoint_every` steps.

        Raises:
            MinirodinError: the loss is not finite; the last good checkpoint is named.
            CheckpointError: the checkpoint is damaged, or belongs to other subjects or settings.
        """
        every = self.config.fit.checkpoint_every
        frozen = None if self.decoder_optimiser is not None else fingerprint(self.decoder)
        run = json.dumps([[g.names for g in self.groups], self.config.to_dict(), frozen])
        if checkpoint.exists():
            state, metadata = read_tensors(checkpoint, "fit in progress")
            if metadata.get("run") != run:
                what = "was left by other subjects or settings"
                raise CheckpointError(f"{checkpoint} {what}: delete it or choose another folder")
            try:
                self.load_state(state)
            except (KeyError, ValueError, RuntimeError) as error:
                raise CheckpointError(f"{checkpoint} does not fit these subjects ({error}): delete it") from None
        with progress(total=self.total_steps, desc="fitting", unit="step", enabled=show) as bar:
            bar.update(self.step)
            while self.step < self.total_steps:
                mse = self.advance()
                bar.update(1)
                due = self.step % every == 0 and self.step < self.total_steps
                if due or self.step % 50 == 0 or self.step == self.total_steps:
                    if not math.isfinite(value := float(mse)):
                        kept = f"{checkpoint} holds the last good state" if checkpoint.exists() else "nothing was saved"
                        raise MinirodinError(f"the loss is {value} at step {self.step} ({kept}): lower the rates")
                    bar.set_postfix(psnr=f"{-10 * math.log10(max(value, 1e-10)):.2f}")
                if due:
                    atomic_save(self.state(), checkpoint, {"kind": "fit in progress", "run": run})


def fit_subjects(
    data: str | Path | list[Capture],
    config: Config,
    out: str | Path,
    decoder: str | Path | SharedDecoder | None = None,
    device: str | torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
    show_progress: bool = True,
) -> FittedPlanes:
    """Fit tri-planes to every capture of `data` and write them to `out` as safetensors shards.

    Without a decoder this is stage one: the decoder is learned jointly with the planes of all subjects and written
    beside them. With one it is stage two: the decoder is frozen and groups of `config.fit.group` subjects are fitted,
    those of this rank only. Subjects that are already in `out` are left out, and a run that was killed goes on.

    A subject that stage two cannot fit is reported and skipped: `skipped-NAME.json` says why. The same call tries those
    again whose captures could not be used. Several processes may fit into one folder, but not the same subjects.

    Args:
        data: a capture folder, a folder of captures, or captures.
        config: see `config.preset`.
        out: folder for `decoder.safetensors` and `planes-*.safetensors`.
        decoder: file or bundle from stage one.
        device: default CUDA when there is one.
        rank, world_size: this process's share of the groups.

    Returns:
        The fitted subjects in `out`.

    Raises:
        DataError, CheckpointError: one line that names the file at fault. MinirodinError: nobody could be fitted, or
            another process fits these subjects.
    """
    out = Path(out)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    captures = data if isinstance(data, list) else find_captures(data)
    by_name = {c.name if isinstance(c, Capture) else c.resolve().name: c for c in captures}
    if len(by_name) < len(captures):
        raise DataError("two captures have the same name: subjects are told apart by their folder's name")
    names = list(by_name)
    # Until there is a decoder only one process looks for it: for a moment, or as long as one is learned.
    begun = (out / "decoder.safetensors").is_file()
    with nullcontext() if begun else FolderLock(out, "decoder", PATIENCE):
        done = FittedPlanes(out)
        if decoder is None and done.has_decoder:
            decoder = done.decoder
        shared = SharedDecoder.load(decoder) if isinstance(decoder, (str, Path)) else decoder
        if shared is None:
            if world_size > 1:
                raise ConfigError("the shared decoder is learned in one process: fit with --decoder on several")
            return _learn_decoder(names, by_name, config, done, device, show_progress)
        _check_same_domain(shared, config, done)
        if not done.has_decoder:
            shared.save(out / "decoder.safetensors")
    (out / SHARED).unlink(missing_ok=True)  # where a run was killed with nothing left to do but this
    # The partition depends on the data alone, so that ranks and restarts agree on it.
    groups = [names[i : i + config.fit.group] for i in range(0, len(names), config.fit.group)]
    failed, known = None, [name for name, fault in done.skipped.items() if fault.get("of") == "planes"]
    for group in groups[rank::world_size]:
        todo = [name for name in group if name not in done and name not in known]
        if todo and not (shard := done.shard_of(todo[0])).exists():
            with FolderLock(out, shard.stem):
                failed = _fit_group(todo, by_name, config, done, device, shared, show_progress) or failed
    done = FittedPlanes(out)
    if failed and not any(name in done for name in names):
        done.forget_skipped(names)
        raise failed
    return done


def _learn_decoder(
    names: list[str], captures: dict, config: Config, done: FittedPlanes, device: torch.device, show_progress: bool
) -> FittedPlanes:
    """Stage one, into an empty folder."""
    resume = done.folder / SHARED
    fitter = _make_fitter(names, captures, config, device, None)
    fitter.run(resume, show_progress)
    planes = fitter.planes()
    base = torch.stack([resize_planes(p, config.triplane.base_resolution) for p in planes.values()]).cpu()
    shared = SharedDecoder(fitter.decoder.cpu(), config, base.mean(0), *plane_statistics(base))
    for group in fitter.groups:
        done.write_shard({name: planes[name] for name in group.names}, shared)
    shared.save(done.folder / "decoder.safetensors")
    resume.unlink(missing_ok=True)
    return done


def _fit_group(
    names: list[str], captures: dict, config: Config, done: FittedPlanes, device, shared: SharedDecoder, show: bool
) -> MinirodinError | None:
    """One group of stage two. Who cannot be fitted is reported and left out, and the others begin anew.

    Returns:
        What was wrong with somebody, if anything.
    """
    failed = None
    while names:
        # Without those who are left out the group is another, and so is its file.
        resume, fitter = done.folder / f".resume-{names[0]}-{len(names)}.safetensors", None
        try:
            fitter = _make_fitter(names, captures, config, device, shared)
            fitter.run(resume, show)
            done.write_shard(fitter.planes(), shared)
            resume.unlink(missing_ok=True)
            break
        except MinirodinError as error:
            bad = _without_planes(fitter, error) if fitter else _without_views(names, captures, config)
            if not bad or len(captures) == 1:
                raise
            failed = error
            if fitter:
                resume.unlink(missing_ok=True)
            for name, why in bad.items():
                done.skip(name, why, of="planes" if fitter else "capture")
                print(f"{name} cannot be fitted and is skipped: {why}", file=sys.stderr)
            names = [name for name in names if name not in bad]
    return failed


def _without_planes(fitter: Fitter, error: MinirodinError) -> dict[str, str]:
    """Whose planes have become NaN, which in a group is nobody else's fault, and what the error was."""
    return {name: str(error) for name, planes in fitter.planes().items() if not planes.isfinite().all()}


def _without_views(names: list[str], captures: dict, config: Config) -> dict[str, str]:
    """Whose captures cannot be read, or show nothing, and why."""
    bad = {}
    for name in names:
        try:
            given = captures[name]
            seen = given if isinstance(given, Capture) else load_capture(given)
            Observations([seen], config.render.grid, "cpu")
        except DataError as error:
            bad[name] = str(error)
    return bad


def _check_same_domain(shared: SharedDecoder, config: Config, done: FittedPlanes) -> None:
    """Planes mean something only to the decoder they were fitted to (E5a)."""
    wanted, given = shared.config.triplane.channels, config.triplane.channels
    if wanted != given:
        other = f"preset {config.name!r} has {given}: use {shared.config.name!r}"
        raise CheckpointError(f"the decoder reads {wanted} channels, {other}")
    others = done.decoders | ({fingerprint(done.decoder.decoder)} if done.has_decoder else set())
    if others - {fingerprint(shared.decoder)}:
        raise CheckpointError(f"{done.folder} holds planes of another decoder: choose another folder")


def _make_fitter(names: list[str], captures: dict, config: Config, device, shared: SharedDecoder | None) -> Fitter:
    with ThreadPoolExecutor() as pool:  # decoding PNG releases the interpreter
        given = (captures[name] for name in names)
        loaded = list(pool.map(lambda c: c if isinstance(c, Capture) else load_capture(c), given))
    observations = Observations(loaded, config.render.grid, device)
    if shared is not None:
        return Fitter(names, observations, config, shared.decoder.to(device), False, shared.mean_planes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.fit.seed)
        decoder = TriplaneDecoder(config.triplane.channels, config.decoder)
    return Fitter(names, observations, config, decoder.to(device), True)
