"""How many evaluations a solver needs to be of use: known exactly, without a network, from Gaussian data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fastscore.plan.passes import make_plan
from fastscore.plan.rows import Plan, Solver
from fastscore.process.grid import Grid
from fastscore.process.schedule import Schedule
from fastscore.solvers.grids import Scales, spread_errors
from fastscore.solvers.multistep import DPMpp2M
from fastscore.solvers.renoise import Renoise

# A fifth of a standard deviation. Plans of more evaluations than FEW are not looked at; no more than MOST are advised.
USEFUL, FEW, MOST = 0.2, 64, 500
GridOf = Callable[[Solver, int], Grid]  # the default grid of a solver with so many steps


def too_few(plan: Plan, solver: Solver, grid_of: GridOf, scales: Scales | None) -> Iterator[str]:
    """Say that a plan has fewer evaluations than its solver needs, and how many those are.

    A solver is of use with as many evaluations as its default grid needs to bring out standard deviations of 0.3 and 1,
    or ``scales``, within a fifth: moments of Gaussian data are exact (plan/gaussian.py), and a solver that fails on
    one Gaussian fails on data that are made of many (bench/results/few_evaluations.md). Nothing is said where DPM++ 2M
    in as many evaluations is not twice as good: no other solver would help.

    Args:
        plan, solver: not folded, and what made it.
        grid_of: see ``GridOf``.
        scales: see ``default_grid``.
    """
    if plan.nfe > FEW or isinstance(solver, Renoise):  # of networks that were distilled to a few steps
        return
    stds, schedule = scales or (0.3, 1.0), plan.schedule
    try:
        loss = max(spread_errors(plan, stds))
        if loss <= USEFUL or loss <= 2.0 * _loss(DPMpp2M(), schedule, plan.nfe, grid_of, stds)[0]:
            return
        enough = useful(solver, schedule, grid_of, stds, plan.nfe)
    except ValueError:  # singular, which is named where the plan is folded; steps that depend on norms; a short table
        return
    needs = f"more than {MOST} steps" if enough is None else f"{enough[0]} ({enough[1]} steps)"
    yield (
        f"this grid loses the spread of the data: {solver} in {plan.nfe} evaluations makes a standard deviation "
        f"{100.0 * loss:.0f} % wrong; its useful number of evaluations begins at {needs}; below it take dpmpp-2m"
    )


def useful(
    solver: Solver, schedule: Schedule, grid_of: GridOf, stds: Scales = (0.3, 1.0), above: int = 0
) -> tuple[int, int] | None:
    """Return the fewest evaluations with which a solver is of use, see ``too_few``, and their steps.

    None if they take more than MOST steps; above 16 steps each 16th part is tried.

    Args:
        solver, schedule, grid_of, stds: see ``too_few``.
        above: more evaluations than this are asked for.

    Raises:
        ValueError: a plan is singular, or has steps that depend on norms.
    """
    steps = 1
    while steps <= MOST:
        loss, nfe = _loss(solver, schedule, steps, grid_of, stds)
        if nfe > above and loss <= USEFUL:
            return nfe, steps
        steps += 1 + steps // 16
    return None


def _loss(solver: Solver, schedule: Schedule, steps: int, grid_of: GridOf, stds: Scales) -> tuple[float, int]:
    plan = make_plan(solver, schedule, grid_of(solver, steps)(schedule))
    return max(spread_errors(plan, stds)), plan.nfe
