"""Parts of a coupled state in step: the knots that they share, and whether their plans fall on the same times."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fastscore.plan.rows import Plan, Solver
from fastscore.process.schedule import Array, Schedule


def knots_of(name: str, schedule: Schedule, knots: Array, first: Schedule) -> Array:
    """Return the shared knots as this part's, with its own clean end."""
    clean = knots[-1] == first.t_clean
    result = np.append(knots[:-1], schedule.t_clean) if clean else knots
    inner = result[:-1] if clean else result
    if inner[0] > schedule.T or inner[-1] <= schedule.t_clean:
        raise ValueError(
            f"part {name!r}: the shared times {inner[0]:.6g} .. {inner[-1]:.6g} leave {type(schedule).__name__}'s "
            f"range {schedule.T:.6g} .. {schedule.t_clean:.6g}; parts need schedules over the same times"
        )
    return result


def check_in_step(plans: Mapping[str, Plan], solver: Solver, second: bool) -> None:
    """Raise ValueError unless all plans evaluate in the same rows, at the same times.

    Args:
        second: whether there is a second network; a row that calls it alone has its scales, for all parts or none.
    """
    (name, first), *others = plans.items()
    times = [row.t if row.evaluate else math.nan for row in first.rows]
    for other, plan in others:
        calls = [(row.calls, own.calls) for row, own in zip(plan.rows, first.rows, strict=False) if row.evaluate]
        if second and any("F2" in pair and pair[0] != pair[1] for pair in calls):
            raise ValueError(
                f"guidance: rows that call the second model alone, and an interval that parts {name!r} and {other!r} "
                "enter at different steps; leave the interval out"
            )
        part_times = [row.t if row.evaluate else math.nan for row in plan.rows]
        if not np.array_equal(times, part_times, equal_nan=True):
            raise ValueError(
                f"{type(solver).__name__} evaluates parts {name!r} and {other!r} at different times, since its stages "
                "depend on the schedule; use Heun, DPMpp2M, EulerMaruyama or another solver of fixed stages"
            )
