"""Where a likelihood ends, and the grid that goes there."""

from __future__ import annotations

from typing import Any

from fastscore.process.continuous import EDM
from fastscore.process.grid import Grid, Span
from fastscore.process.names import NAMED
from fastscore.process.schedule import Schedule
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.grids import default_grid

LIKELIHOOD_END = 1e-5  # of a continuous schedule's time; Song et al. 2021 end likelihoods there
STEPS = 100


def likelihood_grid(
    solver: Any, schedule: Schedule, steps: int | None = None, spacing: str | None = None, end: float | None = None
) -> Grid | Span:
    """Return the grid of a likelihood, which ends at sigma > 0, with the rules of other codes at their own ends."""
    steps = STEPS if steps is None and not isinstance(solver, Adaptive) else steps
    end = likelihood_end(schedule) if end is None and spacing not in NAMED else end
    return default_grid(solver, schedule, schedule, steps, spacing=spacing, end=end, clean=False)


def likelihood_end(schedule: Schedule) -> float:
    """Return the time at which a likelihood ends if nothing else is said."""
    early = schedule.t_clean == 0.0 and not isinstance(schedule, EDM)
    return min(LIKELIHOOD_END, schedule.t_end) if early else schedule.t_end
