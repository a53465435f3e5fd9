"""From a model, a solver and what the caller said of the grid to the rows that run; and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastscore import plan as plans
from fastscore.guidance.denoiser import Guide
from fastscore.guidance.mixture import BoundPlan, Guidance
from fastscore.guidance.scales import finest
from fastscore.model.score import ScoreModel
from fastscore.plan.rows import Plan, Solver
from fastscore.process.grid import Grid, Span, Times
from fastscore.process.schedule import Schedule
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.grids import Scales, default_grid, doubts, within
from fastscore.solvers.names import STEPS

PER_NAT = 5.0  # default steps to a narrow posterior, for each factor e from 10 times the data to a tenth of it


def fitting(
    model: ScoreModel,
    schedule: Schedule,
    solver: Solver | Adaptive,
    grid: Grid | Times | Span | None = None,
    steps: int | None = None,
    guide: Guide | None = None,
    **rules: Any,
) -> Grid | Times | Span:
    """Return the caller's grid, or the one that suits solver, schedule and what is asked; within what the model knows.

    ``rules`` are those of ``default_grid``: spacing, start, end, clean, rho.

    Raises:
        ValueError: grid and steps at once, a Span for a solver with steps, or a grid for one without.
    """
    if grid is not None and steps is not None:
        raise ValueError(f"steps = {steps} chooses a grid; leave it or grid = {grid} out")
    adaptive = isinstance(solver, Adaptive)
    if grid is None:
        scales = scales_of(model, guide)
        if steps is None and not adaptive and scales is not None and scales != model.scales:
            steps = max(STEPS, math.ceil(PER_NAT * math.log(100.0 * scales[1] / scales[0])))
        reads = model.parametrization
        grid = default_grid(solver, schedule, model.schedule, steps, scales=scales, reads=reads, **rules)
    elif isinstance(grid, Span) != adaptive:
        raise ValueError(
            f"{type(solver).__name__} {'chooses its own steps' if adaptive else 'needs the steps of a grid'}; "
            f"grid must be {'a Span' if adaptive else 'a Grid or Times'}, not {grid}"
        )
    return within(grid, schedule, model.schedule, model.parametrization)


def scales_of(model: ScoreModel, guide: Guide | None) -> Scales | None:
    """Return the scales of what is sampled: the data's, down to the finest that a guide asks for."""
    unit = 1.0 if model.transform is None else max(model.transform.scale)
    std = finest(guide, model.shape, unit)
    if std is None:
        return model.scales
    low, high = model.scales or (std, max(1.0, std))
    return min(low, std), high


@dataclass(frozen=True)
class Binding:
    """A plan bound to its networks, and what it was made of."""

    bound: BoundPlan
    plan: Plan
    solver: Solver
    start: str
    guide: Guide | None

    def doubts(self, given: bool) -> Iterator[str]:
        """Say what the plan gets wrong that no error tells; ``given``: whether its grid is the caller's own."""
        model, schedule, steps = self.bound.model, self.plan.schedule, len({row.s for row in self.plan.rows}) - 1

        def best() -> Grid:
            grid = fitting(model, schedule, self.solver, None, steps, self.guide)
            assert isinstance(grid, Grid)
            return grid

        scales, size = scales_of(model, self.guide), math.prod(model.shape)
        return doubts(self.plan, self.solver, best if given else None, scales, self.start, size)


def bind(
    model: ScoreModel,
    schedule: Schedule,
    solver: Solver,
    grid: Grid | Times | Span,
    start: str = "prior",
    clip: float | None = None,
    guidance: Guidance | None = None,
    guide: Guide | None = None,
) -> Binding:
    """Make the plan of a solver and fold the networks into it."""
    if start == "prior" and model.base is not None:
        start = "base"
    plan = plans.make_plan(solver, schedule, grid(schedule), start)
    clipped = plan if clip is None else plans.clip(plan, clip)
    return Binding(BoundPlan(clipped, model, guidance, guide is not None), plan, solver, start, guide)
