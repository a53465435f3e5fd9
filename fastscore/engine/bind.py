"""From a model, a solver and what the caller said of the grid to the rows that run; and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fastscore import plan as plans
from fastscore.guidance.denoiser import Guide
from fastscore.guidance.mixture import BoundPlan, Guidance
from fastscore.guidance.scales import finest
from fastscore.model.score import ScoreModel, one_step_only
from fastscore.plan.cfgpp import guides_itself, with_cfgpp
from fastscore.plan.rows import Plan, Solver
from fastscore.process.grid import Grid, Span, Times
from fastscore.process.names import grid_name
from fastscore.process.schedule import Array, Schedule
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.doubts import doubts
from fastscore.solvers.grids import Scales, default_grid, within
from fastscore.solvers.names import STEPS
from fastscore.solvers.useful import too_few

PER_NAT = 5.0  # default steps to a narrow posterior, for each factor e from 10 times the data to a tenth of it


def fitting(
    model: ScoreModel,
    schedule: Schedule,
    solver: Solver | Adaptive,
    grid: Grid | Times | Span | str | None = None,
    steps: int | None = None,
    guide: Guide | None = None,
    **rules: Any,
) -> Grid | Times | Span:
    """Return the caller's grid, or the one that suits solver, schedule and what is asked; within what the model knows.

    Every name of a grid for a model is resolved here: those of process.names.GRIDS by ``default_grid``, as a spacing.

    ``rules`` are those of ``default_grid``: spacing, start, end, clean, rho.

    Raises:
        ValueError: grid and steps at once, a Span for a solver with steps, or a grid for one without.
    """
    if isinstance(grid, str):
        rules["spacing"], grid = grid_name(grid), None
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


def step_of_rows(solver: Solver, schedule: Schedule, knots: Array) -> list[int]:
    """Return the number of the step that each row of a plan belongs to; the row that makes the first state is in 0."""
    with np.errstate(divide="ignore", invalid="ignore"):  # as where the plan is made
        groups = solver.steps(schedule, knots)
    return [0, *(k for k, group in enumerate(groups) for _ in group)]


@dataclass(frozen=True)
class Binding:
    """A plan bound to its networks, and what it was made of."""

    bound: BoundPlan
    plan: Plan
    solver: Solver
    grid: Grid | Times | Span
    start: str
    guide: Guide | None

    def doubts(self, given: bool) -> Iterator[str]:
        """Say what the plan gets wrong that no error tells; ``given``: whether its grid is the caller's own."""
        model, schedule, steps = self.bound.model, self.plan.schedule, len({row.s for row in self.plan.rows}) - 1

        def grid_of(solver: Solver, steps: int) -> Grid:
            grid = fitting(model, schedule, solver, None, steps, self.guide)
            assert isinstance(grid, Grid)
            return grid

        if isinstance(self.grid, Grid) and (there := len(self.grid(schedule)) - 1) != self.grid.steps:
            yield f"{self.grid.spacing} of {self.grid.steps} steps has {there} on this schedule, as in its own code"
        scales, size = scales_of(model, self.guide), math.prod(model.shape)
        if model.two_times:  # what a mean of the data would lose in such steps is no loss of a map's
            given, scales = False, None
        best = partial(grid_of, self.solver, steps) if given else None
        said = list(doubts(self.plan, self.solver, best, scales, self.start, size))
        if not said and self.start == "prior" and not model.two_times:
            said = list(too_few(self.plan, self.solver, grid_of, scales))
        yield from said


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
    knots, guided = grid(schedule), by_rule(solver, guidance)
    plan = plans.make_plan(guided, schedule, knots, start)
    clipped = plan if clip is None else plans.clip(plan, clip)
    plain = plan if guided is solver else plans.make_plan(solver, schedule, knots, start)
    steps = step_of_rows(guided, schedule, knots) if guide is not None or guidance is not None else None
    return Binding(BoundPlan(clipped, model, guidance, guide is not None, steps), plain, solver, grid, start, guide)


def by_rule(solver: Solver, guidance: Guidance | None) -> Solver:
    """Return a solver whose rows guide by the rule of ``guidance``."""
    return with_cfgpp(solver) if guidance is not None and guidance.plusplus else solver


def ruled(guidance: Guidance | None, solver: object) -> Guidance | None:
    """Return the guidance of a solver: one that says where CFG++ guides, as CFGPlusPlus, is guided by that rule."""
    return replace(guidance, rule="cfg++") if guidance is not None and guides_itself(solver) else guidance


def check_adaptive(solver: Adaptive, guidance: Guidance | None, *models: ScoreModel) -> None:
    """Raise ValueError unless a solver that chooses its own steps samples these models, guided so."""
    if guidance is not None and guidance.plusplus:
        raise ValueError(
            f"CFG++ guides at the end of every step of a grid, and {type(solver).__name__} chooses its own: the "
            "tighter the tolerance, the more guidance; use a solver with a grid, or rule='cfg'"
        )
    if any(model.two_times for model in models):
        raise ValueError(one_step_only(f"{type(solver).__name__} evaluates it for steps that it then rejects"))
