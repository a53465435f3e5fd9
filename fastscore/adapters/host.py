"""Steps for a host that says from which time to which it goes, and nothing else: samplers of sbi and PhysicsNeMo."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastscore.engine.bind import fitting
from fastscore.engine.stepper import Stage, Stepper
from fastscore.errors import short
from fastscore.execution import Execution
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.plan.rows import Solver
from fastscore.process.grid import Grid, Times
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.names import named

Network = Callable[[Tensor, Tensor], Tensor]  # (input [n, *shape], label [n]) -> output

CLOSE = 1e-3  # of the way to the next knot: times that a host computed in float32


class HostSteps:
    """A solver's steps from knot to knot of one grid, each of them a call of the host's.

    A step from the first knot starts anew, whatever was before; any other must be the one that follows.

    Args:
        solver: with a plan, or its name.
        schedule, reads: that the network was trained on, and what it predicts.
        grid, steps: as of a Sampler.

    Attributes:
        knots: of the grid, noisiest first.

    Raises:
        ValueError: an adaptive solver, or what a Sampler refuses.
    """

    def __init__(
        self,
        solver: Solver | Adaptive | str,
        schedule: Schedule,
        reads: Parametrization,
        grid: Grid | Times | None = None,
        steps: int | None = None,
    ) -> None:
        made = named(solver) if isinstance(solver, str) else solver
        if isinstance(made, Adaptive):
            raise ValueError(f"{type(made).__name__} chooses its own steps; a host's loop needs a solver with a grid")
        model = ScoreModel(_absent, (1,), schedule, reads)
        fitted = fitting(model, schedule, made, grid, steps)
        assert isinstance(fitted, Grid | Times)
        self.solver, self.schedule, self.reads = made, schedule, reads
        self.knots: list[float] = fitted(schedule).tolist()
        self.grid = Times(tuple(self.knots))
        with np.errstate(divide="ignore", invalid="ignore"):  # infinities are named where rows are folded
            groups = made.steps(schedule, self.grid(schedule))
        self.last = list(itertools.accumulate(len(group) for group in groups))  # row of each step, after the first one
        self.at = len(self.knots)
        self.stepper: Stepper | None = None

    def step(self, x: Tensor, t: float, s: float, network: Network, key: Callable[[], NoiseKey]) -> Tensor:
        """Return the state at s, of one at t, both [n, *shape] in x's dtype.

        Args:
            network: evaluated as often as the solver asks for it.
            key: called at the start, for seed and id of each sample.

        Raises:
            ValueError: a step that is not the next one of the grid, or another number of samples on the way.
        """
        starts = self._is(t, 0)
        k = 0 if starts else self.at
        if k >= len(self.last) or not (self._is(t, k) and self._is(s, k + 1)):
            raise ValueError(
                f"a step from t = {t:.7g} to {s:.7g} is none of this solver's, whose times are {short(self.knots)}: "
                "give the host these times"
            )
        if starts:
            self.stepper = self._made(x)
            x = self.stepper.start(key(), x)
        assert self.stepper is not None
        self.at = k + 1
        for stage in self._stages(k):
            label = torch.full((len(x),), stage.c_noise, dtype=x.dtype, device=x.device)
            x = self.stepper.step(network(stage.c_in * x, label), x)
        return x

    def _is(self, time: float, k: int) -> bool:
        near = [abs(self.knots[k] - v) for v in self.knots[max(k - 1, 0) : k + 2] if v != self.knots[k]]
        return time == self.knots[k] or abs(time - self.knots[k]) <= CLOSE * min(near)

    def _stages(self, k: int) -> list[Stage]:
        assert self.stepper is not None
        first, last = 1 + (self.last[k - 1] if k else 0), self.last[k]
        return [stage for stage in self.stepper.stages if first <= stage.first <= last]

    def _made(self, x: Tensor) -> Stepper:
        n, shape, dtype = len(x), tuple(x.shape[1:]), torch.float64 if x.dtype == torch.float64 else torch.float32
        old = self.stepper
        if old is not None and (old.loop.batch, old.loop.model.shape) == (n, shape):
            if (old.execution.place, old.execution.dtype) == (x.device, dtype):
                return old
        execution = Execution(device=x.device, dtype=dtype)
        return Stepper(self.solver, self.grid, shape, n, schedule=self.schedule, reads=self.reads, execution=execution)


def _absent(u: Tensor, c_noise: Tensor) -> Tensor:
    raise RuntimeError("the host evaluates the network")
