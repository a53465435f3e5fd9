"""The facade: a model, a schedule, a solver and a grid become a sampler."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastscore import plan as plans
from fastscore.backend import REFERENCE, resolve
from fastscore.engine import selfcheck
from fastscore.engine.compile import compiled
from fastscore.engine.graph import MODES, Graphed, capture
from fastscore.engine.loop import Loop, Observer, Step
from fastscore.grid import Grid, Times, default_grid
from fastscore.model import ScoreModel
from fastscore.noise import LABEL_DRAW, NoiseKey, RecordedNoise
from fastscore.plan import Plan, Solver
from fastscore.schedule import Schedule, lam, t_of_lam
from fastscore.solvers import DPMpp2M

Labels = int | str | Sequence[int] | Tensor | None


class NonFiniteError(FloatingPointError):
    """A sample became NaN or Inf; the message names the sample and the row."""


class Sampler:
    """Draws samples of a score model. A pure function of (settings, seed, sample id).

    A sampler owns its buffers and does one run at a time; use one for each thread.

        x = Sampler(model, solver=DPMpp2M(), grid=karras(20)).run(ids=range(64), seed=0)

    Args:
        model: the score model. A network that is an nn.Module is moved to ``device`` and set to eval mode.
        schedule: the forward SDE to reverse; the model's own if left out. With another one, a grid
            without a start begins where the model's noise ends, if that is earlier.
        solver: see fastscore.solvers.
        grid: knots, see fastscore.grid; 20 steps if left out.
        batch: micro-batch. The network always runs at this size (the tail is padded with dummy
            samples that are dropped), so that a sample does not depend on how many are drawn.
        clip: bound on the x0 estimate of every row but Langevin's norm-dependent ones, or None.
        device: of the state and the network.
        dtype: of the state; torch.float32, or torch.float64 for parity runs.
        backend: "auto", "reference", "cpp" or "triton"; see fastscore.backend.
        compile: of the network: "off", "full" or "regional"; see fastscore.engine.compile.
        graph: CUDA graphs: "off", "step" (one a repeated group of rows), "loop" (one for all), or
            "auto", which times them on the first batch and keeps the fastest; off on the CPU.

    Raises:
        ValueError: a solver, grid and model that do not fit each other.
    """

    def __init__(
        self,
        model: ScoreModel,
        *,
        schedule: Schedule | None = None,
        solver: Solver | None = None,
        grid: Grid | Times | None = None,
        batch: int = 64,
        clip: float | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        compile: str = "off",
        graph: str = "auto",
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch = {batch} must be at least 1")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype = {dtype} must be torch.float32 or torch.float64")
        if graph not in ("auto", "off", *MODES):
            raise ValueError(f"graph = {graph!r} must be auto, off, {' or '.join(MODES)}")
        self.batch, self.dtype, self.device = batch, dtype, torch.device(device)
        if self.device.type != "cuda" and graph in MODES:
            raise ValueError(f"graph = {graph!r} needs a CUDA device, not {self.device}; use graph='auto'")
        self.graph = graph if self.device.type == "cuda" else "off"
        # The kernels are float32; only the reference also runs float64.
        self.ops = resolve("reference" if dtype == torch.float64 and backend == "auto" else backend, self.device)
        if self.ops is not REFERENCE:
            if dtype == torch.float64:
                raise ValueError(f"backend = {backend!r} keeps a float32 state; float64 needs backend='reference'")
            selfcheck.ensure(self.device, self.ops)

        self.schedule = schedule if schedule is not None else model.schedule
        self.solver = solver if solver is not None else DPMpp2M()
        wanted = grid if grid is not None else default_grid(self.schedule)
        self.grid = _within_model(wanted, self.schedule, model.schedule)
        unfolded = plans.make_plan(self.solver, self.schedule, self.grid(self.schedule))
        if clip is not None:
            unfolded = plans.clip(unfolded, clip)
        self.plan: Plan = plans.validate(plans.fold(unfolded, model.schedule, model.parametrization))
        d = math.prod(model.shape)
        if d < 32 and any(row.langevin and row.langevin.norm != "batch" for row in self.plan.rows):
            warnings.warn(
                f"Langevin with per-sample norms is biased in {d} dimensions (its step depends on |score|); "
                "use AnnealedLangevin",
                stacklevel=2,
            )
        if isinstance(model.net, nn.Module):
            model.net.to(self.device).eval()
        self._busy = False
        self.net_dtype = _network_dtype(model, dtype)
        self.model = replace(model, net=compiled(model.net, compile, self.device))

    @cached_property
    def _loop(self) -> Loop:
        return Loop(self.plan, self.model, self.batch, self.device, self.dtype, self.ops, self.net_dtype)

    @cached_property
    def _graphed(self) -> tuple[Graphed | None, dict[str, float]]:
        return (None, {}) if self.graph == "off" else capture(self._loop, self.graph)

    @property
    def way(self) -> str:
        """How batches run: "off" (the plain loop), or the captured "step" or "loop"; captures if it has not yet."""
        graphed = self._graphed[0]
        return "off" if graphed is None else graphed.mode

    def prepare(self, seed: int = 0) -> dict[str, float | str]:
        """Compile and capture now rather than on the first batch; return what it took, in seconds.

        Keys: ``first_s``, the first run of the plain loop with any compilation in it; ``capture_s``;
        ``graph``, the way that will run; and ``off_s``, ``step_s``, ``loop_s`` where they were timed.
        """
        key = NoiseKey.of(seed, range(self.batch), self.device)
        self._loop.load(key.seed, key.ids, self._labels(key, None))
        start = time.perf_counter()
        self._loop.run().sum().item()  # waits for the device
        first = time.perf_counter() - start
        graphed, seconds = self._graphed
        times = {f"{name}_s": value for name, value in seconds.items()}
        captured = graphed.capture_s if graphed else 0.0
        return {"first_s": first, "capture_s": captured, "graph": self.way, **times}

    def run(
        self,
        ids: Sequence[int],
        seed: int = 0,
        *,
        labels: Labels = None,
        noise: Tensor | None = None,
        callback: Callable[[Step], None] | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw the samples ``ids`` of ``seed``.

        Args:
            ids: sample ids, 0 .. 2^63-1, in any order; sample k is the same whatever else is drawn.
            seed: 0 .. 2^64-1.
            labels: of a class-conditional model: one label for all, one an id, "random" (uniform,
                a function of seed and id), or None for the null class.
            noise: recorded normals [plan.draws, n, *shape] in place of generated ones.
            callback: called with a Step after each row of each micro-batch.
            progress: show a progress bar.

        Returns:
            [n, *shape] in the state's dtype, in the order of ``ids``.

        Raises:
            ValueError: bad ids, seed, labels or noise.
            NonFiniteError: a sample became NaN or Inf.
        """
        parts = [x for _, x in self.stream(ids, seed, labels=labels, noise=noise, callback=callback, progress=progress)]
        if not parts:
            return torch.empty((0, *self.model.shape), dtype=self.dtype, device=self.device)
        return torch.cat(parts)

    def stream(
        self,
        ids: Sequence[int],
        seed: int = 0,
        *,
        labels: Labels = None,
        noise: Tensor | None = None,
        callback: Callable[[Step], None] | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (ids, samples) a micro-batch at a time; arguments as for ``run``."""
        key = NoiseKey.of(seed, ids, self.device)
        n = len(key.ids)
        cond = self._labels(key, labels)
        if noise is not None:
            want = (self.plan.draws, n, *self.model.shape)
            flat = (n, math.prod(self.model.shape))
            if not isinstance(noise, Tensor) or len(noise) < want[0] or noise.shape[1:] not in (want[1:], flat):
                raise ValueError(f"recorded noise has shape {tuple(noise.shape)}; this plan needs a tensor {want}")
            noise = noise.reshape(len(noise), n, -1).to(self.device)
        return self._stream(key, cond, noise, callback, progress)

    def _stream(
        self,
        key: NoiseKey,
        cond: Tensor | None,
        noise: Tensor | None,
        callback: Callable[[Step], None] | None,
        progress: bool,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(key.ids)
        with tqdm(total=len(self.plan.rows) * -(-n // self.batch), unit="row", disable=not progress) as bar:
            for start in range(0, n, self.batch):
                part = slice(start, min(start + self.batch, n))
                yield key.ids[part], self._micro_batch(key, cond, noise, part, callback, bar if progress else None)

    def label_of(self, ids: Sequence[int], seed: int, labels: Labels) -> Tensor | None:
        """Return the label that ``run`` gives each sample, int64 [n]; None if unconditional."""
        return self._labels(NoiseKey.of(seed, ids, self.device), labels)

    def _labels(self, key: NoiseKey, labels: Labels) -> Tensor | None:
        classes, n = self.model.classes, len(key.ids)
        if labels is None:
            return torch.full((n,), classes, device=self.device) if classes else None
        if not classes:
            raise ValueError("labels: this model is unconditional; leave labels (--class) out")
        if isinstance(labels, str):
            if labels != "random":
                raise ValueError(f"labels = {labels!r} must be a label, one label an id, 'random' or None")
            return key.integer(LABEL_DRAW, classes)
        try:
            values = torch.as_tensor(labels, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            values = torch.empty(0)
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f"labels = {str(labels)[:60]} must be integers")
        values = values.to(torch.int64)
        values = values.expand(n) if values.ndim == 0 else values
        if values.shape != (n,):
            raise ValueError(f"labels: {tuple(values.shape)} labels for {n} ids")
        if n and not (0 <= int(values.min()) and int(values.max()) <= classes):
            raise ValueError(
                f"labels {int(values.min())} .. {int(values.max())} must lie in 0 .. {classes - 1} ({classes}: none)"
            )
        return values

    def _micro_batch(
        self,
        key: NoiseKey,
        cond: Tensor | None,
        recorded: Tensor | None,
        part: slice,
        callback: Callable[[Step], None] | None,
        bar: tqdm | None,
    ) -> Tensor:
        if self._busy:
            raise RuntimeError("this Sampler is in the middle of a run; use another one inside a callback or a thread")
        self._busy = True
        try:
            return self._run(key.seed, key.ids[part], cond, recorded, part, callback, bar)
        finally:
            self._busy = False

    def _run(
        self,
        seed: Tensor,
        ids: Tensor,
        cond: Tensor | None,
        recorded: Tensor | None,
        part: slice,
        callback: Callable[[Step], None] | None,
        bar: tqdm | None,
    ) -> Tensor:
        count = len(ids)
        loop = self._loop
        loop.load(seed, ids, None if cond is None else cond[part])
        noise = None
        if recorded is not None:
            drawn = recorded[:, part]
            noise = RecordedNoise(torch.cat([drawn, drawn[:, -1:].expand(-1, self.batch - count, -1)], dim=1))

        def run(observer: Observer | None) -> Tensor:
            return loop.run(noise, observer, callback is not None)[:count]

        def observe(k: int, x0: Tensor | None) -> None:
            if bar is not None:
                bar.update()
            if callback is not None:
                row, shape = self.plan.rows[k], (count, *self.model.shape)
                estimate = None if x0 is None else x0[:count].reshape(shape)
                callback(Step(k, row.t, row.s, ids, loop.x[:count].clone().reshape(shape), estimate))

        graphed = self._graphed[0] if callback is None and noise is None else None
        if graphed is None:
            x = run(observe if callback or bar is not None else None)
        else:
            x = graphed.run()[:count]
            if bar is not None:
                bar.update(len(self.plan.rows))
        if not bool(torch.isfinite(x).all()):
            self._report(run, ids)
        return x

    def _report(self, run: Callable[[Observer], Tensor], ids: Tensor) -> None:
        """Run the micro-batch again, which gives the same values, to find the first bad row."""

        def check(k: int, x0: Tensor | None) -> None:
            bad = ~torch.isfinite(self._loop.x[: len(ids)]).all(dim=1)
            if bool(bad.any()):
                row = self.plan.rows[k]
                raise NonFiniteError(
                    f"{int(bad.sum())} of {len(ids)} samples are NaN or Inf, first id {int(ids[bad][0])} at row {k} "
                    f"(t = {row.t:.6g}, {self.dtype}); the network's output or the step is not finite there"
                )

        run(check)
        raise NonFiniteError("samples are NaN or Inf, and were finite when run again: the network is not deterministic")


def _within_model(grid: Grid | Times, schedule: Schedule, model: Schedule) -> Grid | Times:
    """Start a grid no noisier than the model's own schedule, unless told where to start."""
    if (
        model == schedule
        or not isinstance(grid, Grid)
        or grid.start is not None
        or grid.spacing in ("leading", "trailing", "linspace")
    ):
        return grid
    bottom = float(lam(model, model.T))
    if float(lam(schedule, schedule.T)) >= bottom:
        return grid
    return replace(grid, start=float(t_of_lam(schedule, bottom)[0]))


def _network_dtype(model: ScoreModel, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that the network reads: that of its parameters, or the state's if it has none."""
    parameters = model.net.parameters() if isinstance(model.net, nn.Module) else ()
    own = next((p.dtype for p in parameters if p.is_floating_point()), dtype)
    if own != dtype and (dtype == torch.float64 or own == torch.float64):
        raise ValueError(f"the network is in {own} and the state in {dtype}; convert it with net.to({dtype})")
    return own
