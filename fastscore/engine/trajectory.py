"""Trajectories: the states of samples at every time that a solver reaches, as arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastscore.data.limits import fits_memory
from fastscore.engine.adaptive.adjoint import Trail
from fastscore.engine.adaptive.run import AdaptiveBatches
from fastscore.engine.loop import Step
from fastscore.engine.request import Request
from fastscore.ops.backend import Ops
from fastscore.output.images import write_npz
from fastscore.output.progress import Told
from fastscore.plan.rows import Plan, Solver
from fastscore.process.grid import Grid, Span, Times
from fastscore.process.schedule import Schedule, t_of_lam

FILE = "trajectory.npz"


class SamplerLike(Protocol):
    """The parts of a Sampler that a trajectory reads."""

    model: Any
    schedule: Schedule
    solver: Any
    grid: Grid | Times | Span
    ops: Ops

    @property
    def plan(self) -> Plan | None: ...
    @property
    def prepared(self) -> Any: ...
    @property
    def engine(self) -> Any: ...
    def request(self, ids: Any, seed: Any = 0, **fields: Any) -> Request: ...
    def stream(self, ids: Any, *, callback: Any = None, progress: Told = False) -> Iterator[tuple[Tensor, Tensor]]: ...
    def record(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Trajectory:
    """The states of n samples on their way from noise to data, on the host.

    Attributes:
        times: of a solver with a grid float64 [K + 1], noisiest first, in the schedule's unit; of an adaptive one
            [K + 1, n], each sample's own accepted steps, NaN after its last.
        states: x at these times, [K + 1, n, *shape]; NaN where ``times`` is. The last of each sample is the sample.
        x0: the estimate E[x_0 | x_t] by the first evaluation of each step, [K, n, *shape], NaN in a step without one;
            None of an adaptive solver.
    """

    times: Tensor
    states: Tensor
    x0: Tensor | None


class Traced:
    """A sampler that keeps the trajectory of what it draws: to stream it, and for ``draw`` to write it.

        traced = Traced(sampler)
        draw(traced, sampler.request(range(64)), "out", further=traced.write)

    Args:
        sampler: a Sampler. Its samples are the same to the bit; a captured graph is not used.
    """

    def __init__(self, sampler: SamplerLike) -> None:
        self.sampler = sampler
        self.trajectory: Trajectory | None = None

    @property
    def model(self) -> Any:
        return self.sampler.model

    @property
    def prepared(self) -> object:
        return self.sampler.prepared

    @property
    def ops(self) -> Ops:
        return self.sampler.ops

    def record(self) -> dict[str, Any]:
        """Return what the sampler's ``record`` returns."""
        return self.sampler.record()

    def stream(self, request: Request, *, progress: Told = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (ids, samples) as the sampler does; the trajectory is there after the last."""
        if isinstance(self.sampler.engine, AdaptiveBatches):
            yield from self._adaptive(self.sampler.engine, request, progress)
        else:
            yield from self._planned(request, progress)

    def write(self, folder: Path) -> None:
        """Write trajectory.npz: times, states and, where there are any, x0."""
        assert self.trajectory is not None
        arrays = {"times": self.trajectory.times, "states": self.trajectory.states, "x0": self.trajectory.x0}
        write_npz(folder / FILE, **{k: v.numpy() for k, v in arrays.items() if v is not None})

    def bytes(self, request: Request) -> int:
        """Return the most bytes of trajectory.npz; of an adaptive solver, whose steps nobody knows, of none."""
        plan, n = self.sampler.plan, len(request)
        states = 0 if plan is None else (2 * len(plan.rows) - 1) * n * math.prod(self.sampler.model.shape)
        return 4 * states + (1 << 16)

    def _planned(self, request: Request, progress: Told) -> Iterator[tuple[Tensor, Tensor]]:
        sampler, plan = self.sampler, self.sampler.plan
        assert plan is not None and not isinstance(sampler.grid, Span)
        fits_memory(self.bytes(request), f"the trajectory of {len(request)} samples", "draw fewer, or in fewer steps")
        solver: Solver = sampler.solver
        with np.errstate(divide="ignore", invalid="ignore"):  # as where the plan was made
            groups = solver.steps(sampler.schedule, sampler.grid(sampler.schedule))
        lengths = [len(group) for group in groups]
        ends = np.cumsum([0, *lengths]).tolist()  # row 0 makes the first state, so this is the last row of each step
        step_of = np.repeat(np.arange(len(lengths)), lengths).tolist()
        times = torch.tensor([plan.rows[k].s for k in ends], dtype=torch.float64)
        states: Tensor | None = None
        x0: Tensor | None = None
        first, last = 0, 0

        def keep(step: Step) -> None:
            nonlocal states, x0, first, last
            if states is None or x0 is None:
                size = (len(request), *step.x.shape[1:])
                states = torch.empty(len(ends), *size, dtype=step.x.dtype)
                x0 = torch.full((len(lengths), *size), math.nan, dtype=step.x.dtype)
            if step.row == 0:
                first, last = last, last + len(step.ids)
                states[0, first:last] = step.x.cpu()
                return
            number = step_of[step.row - 1]
            if step.x0 is not None and bool(x0[number, first:last].isnan().all()):
                x0[number, first:last] = step.x0.cpu()
            if step.row == ends[number + 1]:
                states[number + 1, first:last] = step.x.cpu()

        yield from sampler.stream(request, callback=keep, progress=progress)
        shape = sampler.model.shape
        states = torch.empty(len(ends), 0, *shape) if states is None else states
        self.trajectory = Trajectory(times, states, torch.empty(len(lengths), 0, *shape) if x0 is None else x0)

    def _adaptive(self, engine: AdaptiveBatches, request: Request, progress: Told) -> Iterator[tuple[Tensor, Tensor]]:
        sampler, n, transform = self.sampler, len(request), self.sampler.model.transform
        sampler.stream(request)  # refuses a request that does not fit; nothing runs
        trail, samples = Trail(states=True), torch.empty(n, *sampler.model.shape)
        engine.lanes.trail = trail
        try:
            for at, x in engine.stream(request, None, progress):
                samples = samples.to(x.dtype)
                samples[at.cpu()] = x.cpu()
                yield request.ids[at], x if transform is None else transform(x)
        finally:
            engine.lanes.trail = None
        path = _of_steps(engine, sampler.schedule, sampler.grid, trail, samples)
        self.trajectory = path if transform is None else replace(path, states=transform(path.states))


def _of_steps(
    engine: AdaptiveBatches, schedule: Schedule, span: Grid | Times | Span, trail: Trail, samples: Tensor
) -> Trajectory:
    """Return the trajectory of an adaptive run, in the schedule's times and units, from what its lanes recorded."""
    assert isinstance(span, Span)
    n, everyone = len(samples), torch.arange(len(samples))
    if not n:
        return Trajectory(torch.empty(1, 0, dtype=torch.float64), samples[None], None)
    start, end = span(schedule).tolist()
    clocks, states = trail.path(math.nan)
    taken = ~clocks.isnan()
    times = torch.full((n, clocks.shape[1] + 2), math.nan, dtype=torch.float64)
    times[:, 0] = start
    # The clock of the solver goes with lam; its ends are those of the span, exactly.
    low, high = sorted(engine.ends)
    inner = engine.method.lam(clocks[taken]).clamp(low, high).numpy()
    times[:, 1:-1][taken] = torch.from_numpy(t_of_lam(schedule, inner))
    times[:, 1:-1][clocks == engine.lanes.end] = end
    at = times[:, :-1].nan_to_num(end).numpy()
    length = torch.from_numpy(np.hypot(schedule.alpha(at), schedule.sigma(at))).to(states.dtype)
    states = torch.cat([engine.begin(0, n).cpu()[:, None], states], 1) * length[:, :, None]
    states = torch.cat([states, torch.full_like(states[:, :1], math.nan)], 1)
    last = taken.sum(1) + int(span.clean)  # the estimate of x_0 at the end is one state more, without a step
    if span.clean:
        times[everyone, last] = schedule.t_clean
    states[everyone, last] = samples.flatten(1)
    kept = int(last.max()) + 1
    times, states = times[:, :kept].T.contiguous(), states[:, :kept].transpose(0, 1)
    return Trajectory(times, states.reshape(kept, *samples.shape).contiguous(), None)


def trajectory(sampler: SamplerLike, ids: Sequence[int] | Tensor | Request, seed: Any = 0, **fields: Any) -> Trajectory:
    """Draw samples and return the states on their way; the last state of each is the sample of ``run``, to the bit.

        path = fs.trajectory(sampler, range(100), seed=0)
        path.times, path.states  # [K + 1], [K + 1, 100, *shape]

    Everything is held in memory: K + 1 states a sample, and K estimates.

    Args:
        sampler: a Sampler, with any solver.
        ids, seed, fields: as for ``Sampler.run``.

    Raises:
        ValueError: as for ``run``; or Picard sweeps, which have no order.
    """
    traced = Traced(sampler)
    for _ in traced.stream(ids if isinstance(ids, Request) else sampler.request(ids, seed, **fields)):
        pass
    assert traced.trajectory is not None
    return traced.trajectory
