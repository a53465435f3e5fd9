"""What a plan gets wrong that no error tells: too little noise at its start, too much left, a spread that is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from fastscore.plan.passes import make_plan
from fastscore.plan.rows import Plan, Solver
from fastscore.process.grid import Grid
from fastscore.process.schedule import Schedule, lam, remembered
from fastscore.solvers.grids import Scales, spread_errors

# What is said: signal in the prior; noise at the end over the data's std (5 % lost); error of a std; rows looked at.
SIGNAL, UNRESOLVED, LOSS, LONGEST = 0.2, 0.33, 0.05, 1000


def doubts(
    plan: Plan, solver: Solver, best: Callable[[], Grid] | None, scales: Scales | None, start: str, size: int
) -> Iterator[str]:
    """Say what a plan gets wrong that no error tells, each with its remedy.

    Args:
        plan, solver: of the caller's grid, not folded, and what made it.
        best: returns the default grid with as many steps; None if that is the plan's own.
        scales: as for ``default_grid``; standard deviations of 0.3 and 1 are tried if left out.
        start: of the plan; what a state or data is given has no prior.
        size: elements of a sample.
    """
    langevin = [row.langevin for row in plan.rows if row.langevin is not None]
    if size < 32 and any(step.norm not in ("batch", "tutorial") for step in langevin):
        yield (
            f"Langevin with per-sample norms is biased in {size} dimensions (its step depends on |score|); "
            "use AnnealedLangevin"
        )
    if _extrapolates_noise(plan):
        yield (
            "a predictor with a history of x0 extrapolates from estimates of before the corrector's noise, which makes "
            "samples too wide (DPM++ 2M in 20 steps by 15 %); take one without, as DDIM, Heun or EulerMaruyama"
        )
    if start != "prior" or langevin:
        return
    schedule, first = plan.schedule, plan.rows[0].t
    high = 1.0 if scales is None else scales[1]
    signal = float(schedule.alpha(first) / schedule.sigma(first)) * high
    if signal > SIGNAL:
        yield (
            f"{type(schedule).__name__} at t = {first:.6g} is not noise alone: data of standard deviation {high:.3g} "
            f"have {signal:.3g} times that of the noise, and samples start without; take a schedule with more noise "
            "at T (VP: int beta of 10, 1000 betas up to 0.02; VE: sigma_max well above the data), or start='data'"
        )
        return
    last = max((row.t for row in plan.rows if row.evaluate), key=lambda t: float(lam(schedule, t)), default=first)
    left = float(schedule.sigma(last) / schedule.alpha(last)) if schedule.alpha(last) else math.inf
    if scales is not None and plan.rows[-1].s == schedule.t_clean and left > UNRESOLVED * scales[0]:
        yield (
            f"noise of {left:.3g} is left at t = {last:.3g}, where the grid ends: over a third of {scales[0]:.3g}, "
            "the finest standard deviation of what is sampled, which will not come out; leave grid out or end it at a "
            "tenth of that noise. A network knows only what its schedule's t_end covers"
        )
        return
    if best is None or len(plan.rows) > LONGEST:
        return
    stds = scales or (0.3, 1.0)
    try:
        loss = spread_errors(plan, stds)
        if max(loss) > LOSS and max(loss) > 3.0 * max(default := _losses(solver, schedule, best(), stds)):
            k = loss.index(max(loss))
            yield (
                f"this grid loses the spread of the data with {solver}: a standard deviation of {stds[k]:.3g} is "
                f"{100.0 * loss[k]:.0f} % wrong, {100.0 * default[k]:.1f} % on the default grid; "
                "leave grid out, or use more steps"
            )
    except ValueError:  # singular, which is named where the plan is folded
        return


def _extrapolates_noise(plan: Plan) -> bool:
    """Return whether a row reads an x0 from before a corrector's noise at its level; eps changes little by it."""
    current: set[int] = set()
    for row in plan.rows:
        if row.m == "x0" and any(w != 0.0 and slot not in current for slot, w in enumerate(row.w)):
            return True
        current = set() if row.noisy and row.s == row.t else current
        if row.push is not None:
            current.add(row.push)
    return False


@remembered
def _losses(solver: Solver, schedule: Schedule, grid: Grid, stds: Scales) -> list[float]:
    return spread_errors(make_plan(solver, schedule, grid(schedule)), stds)
