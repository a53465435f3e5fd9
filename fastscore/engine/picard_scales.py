"""The scale that a tolerance of Picard's sweeps is a fraction of, for each state that a stage begins with."""

from __future__ import annotations

from itertools import pairwise

from fastscore.plan.rows import Plan, Row
from fastscore.process.schedule import transition


def scales(plan: Plan, starts: list[int]) -> list[float]:
    """Return the standard deviation that the tolerance of the state entering each stage refers to."""
    found = [0.0]  # the first state of all is exact
    for before, after in pairwise(starts):
        rows = plan.rows[before:after]
        noise = max(abs(row.c) for row in rows)
        scale = max(noise, _posterior_std(plan, rows[0], plan.rows[after]))
        found.append(scale or found[-1])  # a second stage at the same time: as the first
    return found[: len(starts)]


def _posterior_std(plan: Plan, before: Row, after: Row) -> float:
    """Standard deviation of x_s given x_t and x_0 where the time falls from t to s; 0 where it does not."""
    if after.t >= before.t:
        return 0.0
    _, added = transition(plan.schedule, after.t, before.t)
    return float((added**0.5) * plan.schedule.sigma(after.t) / plan.schedule.sigma(before.t))
