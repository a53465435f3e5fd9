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
from torch.nn.utils.rnn import pad_sequence

from fastscore.data.limits import fits_memory
from fastscore.engine.adaptive.adjoint import Trail
from fastscore.engine.adaptive.run import AdaptiveBatches
from fastscore.engine.kept import Kept, Steps
from fastscore.engine.loop import Step
from fastscore.engine.request import Request
from fastscore.ops.backend import Ops
from fastscore.output.images import write_npz
from fastscore.output.progress import Told
from fastscore.plan.rows import Plan, Row
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

    With K steps there are K + 1 states, or the chosen ones of them.

    Attributes:
        times: of a solver with a grid float64 [K + 1], noisiest first, in the schedule's unit; of an adaptive one
            [K + 1, n], each sample's own accepted steps, NaN after its last.
        states: x at these times, [K + 1, n, *shape]; NaN where ``times`` is. The last of each sample is the sample.
        x0: the estimate E[x_0 | x_t] by the first evaluation of the step that leaves each of these states, [K, n,
            *shape] as no step leaves the last one, NaN in a step without one; None of an adaptive solver.
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
        steps: which states to keep, see ``trajectory``.
    """

    def __init__(self, sampler: SamplerLike, steps: Steps = None) -> None:
        self.sampler, self.kept = sampler, Kept.of(steps)
        self._groups: list[list[Row]] = []
        if sampler.plan is not None:
            assert not isinstance(sampler.grid, Span)
            with np.errstate(divide="ignore", invalid="ignore"):  # as where the plan was made
                self._groups = sampler.solver.steps(sampler.schedule, sampler.grid(sampler.schedule))
            self.kept.within(len(self._groups) + 1)
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
        last = len(self._groups)
        rows = self.kept.within(last + 1) if self.sampler.plan is not None else []
        count = len(rows) + sum(k < last for k in rows)  # states, and the estimates at those that a step leaves
        return 4 * count * len(request) * math.prod(self.sampler.model.shape) + 8 * len(rows) + (1 << 16)

    def _planned(self, request: Request, progress: Told) -> Iterator[tuple[Tensor, Tensor]]:
        sampler, plan = self.sampler, self.sampler.plan
        assert plan is not None
        fits_memory(
            self.bytes(request), f"the trajectory of {len(request)} samples", "keep fewer steps of it, or draw fewer"
        )
        lengths = [len(group) for group in self._groups]
        ends = np.cumsum([0, *lengths]).tolist()  # row 0 makes the first state, so this is the last row of each step
        step_of = np.repeat(np.arange(len(lengths)), lengths).tolist()
        numbers = self.kept.within(len(ends))
        place = {number: k for k, number in enumerate(numbers)}
        left = sum(number < len(lengths) for number in numbers)
        times = torch.tensor([plan.rows[ends[k]].s for k in numbers], dtype=torch.float64)
        states = torch.empty(len(numbers), 0, *sampler.model.shape)
        x0 = torch.empty(left, 0, *sampler.model.shape)
        estimated: set[int] = set()
        first, last = 0, 0

        def keep(step: Step) -> None:
            nonlocal states, x0, first, last
            if not states.shape[1]:
                size = (len(request), *step.x.shape[1:])
                states = torch.empty(len(numbers), *size, dtype=step.x.dtype)
                x0 = torch.full((left, *size), math.nan, dtype=step.x.dtype)
            if step.row == 0:
                estimated.clear()
                first, last, reached = last, last + len(step.ids), 0
            else:
                number = step_of[step.row - 1]
                if step.x0 is not None and number not in estimated:
                    estimated.add(number)
                    if number in place:
                        x0[place[number], first:last] = step.x0.cpu()
                reached = number + 1 if step.row == ends[number + 1] else -1
            if reached in place:
                states[place[reached], first:last] = step.x.cpu()

        yield from sampler.stream(request, callback=keep, progress=progress)
        self.trajectory = Trajectory(times, states, x0)

    def _adaptive(self, engine: AdaptiveBatches, request: Request, progress: Told) -> Iterator[tuple[Tensor, Tensor]]:
        sampler, n, transform = self.sampler, len(request), self.sampler.model.transform
        sampler.stream(request)  # refuses a request that does not fit; nothing runs
        trail, samples = Trail(states=True, keep=self.kept), torch.empty(n, *sampler.model.shape)
        engine.lanes.trail = trail
        try:
            for at, x in engine.stream(request, None, progress):
                samples = samples.to(x.dtype)
                samples[at.cpu()] = x.cpu()
                yield request.ids[at], x if transform is None else transform(x)
        finally:
            engine.lanes.trail = None
        path = _of_steps(engine, sampler.schedule, sampler.grid, trail, samples, self.kept)
        self.trajectory = path if transform is None else replace(path, states=transform(path.states))


def _of_steps(
    engine: AdaptiveBatches, schedule: Schedule, span: Grid | Times | Span, trail: Trail, samples: Tensor, kept: Kept
) -> Trajectory:
    """Return the trajectory of an adaptive run, in the schedule's times and units, from what its lanes recorded."""
    assert isinstance(span, Span)
    n = len(samples)
    if not n:
        return Trajectory(
            torch.empty(len(kept.rows(1)), 0, dtype=torch.float64), samples[None][: len(kept.rows(1))], None
        )
    start, end = span(schedule).tolist()
    found, ends = trail.records(), trail.counts + int(span.clean)  # the estimate of x_0 at the end is one state more
    # The clock of the solver goes with lam; its ends are those of the span, exactly.
    at = torch.from_numpy(t_of_lam(schedule, engine.method.lam(found.clock).clamp(*sorted(engine.ends)).numpy()))
    at[found.clock == engine.lanes.end] = end
    lengths, which = (ends + 1).unique(return_inverse=True)
    chosen = [torch.tensor(kept.rows(int(length)), dtype=torch.int64) for length in lengths]
    number = pad_sequence(chosen, padding_value=-1)[:, which].contiguous()  # [S, n], -1 where there is none
    stride = int(trail.counts.max()) + 1
    sought = torch.arange(n) * stride + number
    keys = found.position * stride + found.number
    record = torch.searchsorted(keys, sought).clamp_max(max(0, len(keys) - 1))
    among = (number > 0) & (number <= trail.counts)
    times = torch.full(number.shape, math.nan, dtype=torch.float64)
    states = torch.full((*number.shape, samples[0].numel()), math.nan, dtype=samples.dtype)
    times[among], times[number == 0] = at[record[among]], start
    states[among] = found.state[record[among]].to(samples.dtype)
    if bool((number == 0).any()):
        states = torch.where((number == 0)[..., None], engine.begin(0, n).cpu().to(samples.dtype), states)
    real = times.nan_to_num(end).numpy()
    states *= torch.from_numpy(np.hypot(schedule.alpha(real), schedule.sigma(real))).to(states.dtype)[..., None]
    final = number == ends
    if span.clean:
        times[final] = schedule.t_clean
    states = torch.where(final[..., None], samples.flatten(1), states)
    return Trajectory(times, states.reshape(*number.shape, *samples.shape[1:]).contiguous(), None)


def trajectory(
    sampler: SamplerLike,
    ids: Sequence[int] | Tensor | Request,
    seed: Any = 0,
    *,
    steps: Steps = None,
    progress: Told = False,
    **fields: Any,
) -> Trajectory:
    """Draw samples and return the states on their way; the last state of each is the sample of ``run``, to the bit.

        path = sampler.trajectory(range(100), seed=0)
        path.times, path.states  # [K + 1], [K + 1, 100, *shape]
        ends = sampler.trajectory(range(100), seed=0, steps=[0, 5, -1])  # holds three states a sample and no more

    What is kept is held in memory: with all of them K + 1 states a sample, and K estimates of x_0.

    Args:
        sampler: a Sampler, with any solver. This is its method, too.
        ids, seed, progress, fields: as for ``Sampler.run``.
        steps: which states to keep: numbers from 0, the prior's, to K, or from the end, -1 being the sample; a slice,
            as ``slice(None, None, 10)``; all if None. They come in rising order, each once. Of an adaptive solver a
            number counts each sample's own accepted steps; those from the end come last; NaN where there is none.

    Raises:
        ValueError: as for ``run``; Picard sweeps, which have no order; steps that there are not.
    """
    traced = Traced(sampler, steps)
    request = ids if isinstance(ids, Request) else sampler.request(ids, seed, **fields)
    for _ in traced.stream(request, progress=progress):
        pass
    assert traced.trajectory is not None
    return traced.trajectory
