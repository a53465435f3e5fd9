"""The same paths in few steps and in many: what a fit runs, with one network prepared once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastscore.engine.batches import Batches
from fastscore.engine.bind import bind, fitting
from fastscore.engine.fit_search import Levels
from fastscore.engine.fitted import levels_of, times_of
from fastscore.engine.loop import Loop, Step
from fastscore.engine.request import Request
from fastscore.engine.selfcheck import trusted
from fastscore.engine.subspace import check_subspace
from fastscore.errors import NonFiniteError
from fastscore.execution import Execution
from fastscore.guidance.mixture import BoundPlan, Guidance
from fastscore.model.score import ScoreModel
from fastscore.network.prepare import prepare
from fastscore.plan.rows import Solver
from fastscore.process.grid import Grid, Times
from fastscore.process.schedule import Array, Schedule, lam
from fastscore.solvers.multistep import DPMMultistep

TEACHER = DPMMultistep(3)
JUMPS = 1 << 24  # numbers of the states that the costs of jumps are taken from


@dataclass(frozen=True)
class Teacher:
    """A fine trajectory: its levels [N + 1], the ends of all samples [n, D], and the costs of jumps [N + 1, N + 1]."""

    levels: Levels
    ends: Tensor
    costs: Array


class Paths:
    """Runs of one request by any solver on any levels.

    Args:
        model: prepared here, once, as the execution says.
        schedule, guidance: sampled with.
        execution: on the network's device.
        net_dtype: that the network reads.
        request: the ids, their noise and conditions.

    Attributes:
        cost: evaluations of the network so far; ``told`` is called with it after each micro-batch.
    """

    def __init__(
        self,
        model: ScoreModel,
        schedule: Schedule,
        guidance: Guidance | None,
        execution: Execution,
        net_dtype: torch.dtype,
        request: Request,
    ) -> None:
        request.check_start("prior")
        check_subspace(model, request, schedule, None)
        self.model, self.schedule, self.guidance, self.request = model, schedule, guidance, request
        self.execution, self.net_dtype, self.ops, self.cost = execution, net_dtype, trusted(execution), 0
        second = (guidance and guidance.model) or model
        self.prepared = prepare(model, execution.batch, execution.device, execution.network)
        self.second = self.prepared
        if isinstance(second, ScoreModel) and second is not model:
            self.second = prepare(second, execution.batch, execution.device, execution.network)
        self.told: Callable[[int], None] = lambda cost: None
        exact, least = model.parametrization.exact, -float(lam(model.schedule, model.schedule.t_end))
        self.least = 0.0 if exact else math.exp(least) * (1.0 - 1e-9)
        widest = self.named(TEACHER, 2)
        self.greatest = math.inf if widest is None else widest[0] * (1.0 + 1e-9)

    def named(self, solver: Solver, steps: int, name: str = "default") -> Levels | None:
        """Return the levels of a named grid; None where there is none of so many steps."""
        try:
            grid = fitting(self.model, self.schedule, solver, name, steps)
            assert isinstance(grid, Grid | Times)
            return levels_of(self.schedule, grid(self.schedule))
        except ValueError:  # a rule that has no such number of steps, or not on this schedule
            return None

    def bound(self, solver: Solver, levels: Levels) -> BoundPlan:
        """Return the rows of a solver on levels; ValueError where a coefficient is singular."""
        times = times_of(levels, self.schedule, self.model.schedule)
        return bind(self.model, self.schedule, solver, times, guidance=self.guidance).bound

    def ends(self, solver: Solver, levels: Levels, at: slice) -> Tensor | None:
        """Return where some of the samples end, [n, D] on the host; None where the solver cannot take the levels.

        It cannot where knots repeat an index of a table, or where the network was never trained.
        """
        if not self.least <= levels[-2] <= levels[0] <= self.greatest:
            return None
        try:
            return self._run(self.bound(solver, levels), at)
        except (ValueError, NonFiniteError):  # a step that is singular
            return None

    def teacher(self, steps: int) -> Teacher:
        """Return the fine trajectory of all samples."""
        levels = self.named(TEACHER, steps)
        assert levels is not None
        few = max(1, min(64, len(self.request), JUMPS // (steps * math.prod(self.model.shape))))
        states: list[list[Tensor]] = [[] for _ in levels]
        guesses: list[list[Tensor]] = [[] for _ in levels]

        def keep(step: Step) -> None:
            states[step.row].append(step.x.flatten(1).cpu().double())
            if step.x0 is not None:
                guesses[step.row - 1].append(step.x0.flatten(1).cpu().double())

        bound = self.bound(TEACHER, levels)
        first, rest = self._run(bound, slice(0, few), keep), self._run(bound, slice(few, len(self.request)))
        t = np.array([bound.plan.rows[0].t, *(row.s for row in bound.plan.rows[1:])])
        costs = jump_costs(self.schedule, t, [torch.cat(x) for x in states], [torch.cat(x) for x in guesses[:-1]])
        return Teacher(levels, torch.cat([first, rest]), costs)

    def _run(self, bound: BoundPlan, at: slice, callback: Callable[[Step], None] | None = None) -> Tensor:
        loop = Loop(bound, self.prepared, self.execution, self.ops, self.net_dtype, self.second)
        parts = [torch.empty(0, math.prod(self.model.shape), dtype=self.execution.dtype)]
        for _, x in Batches(loop, "off").stream(self.request.part(at), callback):
            parts.append(x.flatten(1).cpu())
            self.cost += bound.plan.nfe * len(x)
            self.told(self.cost)
        return torch.cat(parts)


def jump_costs(schedule: Schedule, t: Array, states: list[Tensor], guesses: list[Tensor]) -> Array:
    """Return the rms error of the Euler jump from each knot to each later one, in x / alpha; [N + 1, N + 1].

    The jump keeps the estimates of x_0 and of the noise: x_j = alpha_j D_i + sigma_j eps_i.
    """
    alpha, sigma, n = schedule.alpha(t), schedule.sigma(t), len(t)
    costs = np.zeros((n, n))
    for i, guess in enumerate(guesses):
        eps = (states[i] - alpha[i] * guess) / sigma[i]
        for j in range(i + 1, n):
            error = guess + sigma[j] / alpha[j] * eps - states[j] / alpha[j]
            costs[i, j] = float(error.square().mean().sqrt())
    return costs
