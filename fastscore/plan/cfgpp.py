r"""CFG++: a solver's own steps along the unguided estimate, each of which ends with the change that guidance makes.

    x_s = step_u(x_t) + alpha_s (D_w - D_u),   D_w = D_u + w (D_1 - D_2),   D_u = D_2,   both of x_t

For DDIM that is the published x_s = alpha_s D_w + sigma_s eps_u: the guided estimate of the data, and the noise of the
unguided one. Any solver with steps takes it: whatever a step evaluates beside x_t (later stages, correctors, history)
is unguided, and the change is that of the evaluation with which the step leaves t.

The change of a step does not shrink with the step, as that of a mixture does: w is a strength for one number of
steps, and no order of convergence is left.

Source: Chung et al. 2024 (CFG++, arXiv 2406.08070), algorithm 2, where w is lambda.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from fastscore.errors import short
from fastscore.kernels import abi
from fastscore.plan.rows import Row, Solver
from fastscore.process.parametrization import components, convert
from fastscore.process.schedule import Array, Schedule


def with_cfgpp(solver: Solver) -> Solver:
    """Return a solver whose rows say where CFG++ guides; ones that say so themselves stay as they are.

    Of a solver made of others, each of these has its own steps; what it adds, as noise and corrections, is unguided.

    Raises:
        ValueError: here or when rows are made: a solver that has no steps to less noise, or no history slot to spare.
    """
    if not callable(getattr(solver, "steps", None)):
        raise ValueError(f"CFG++ guides the steps of a solver with a grid, and {short(solver)} has none")
    parts = _parts(solver)
    changed: dict[str, Any] = {name: with_cfgpp(v) for name, v in parts.items() if _has(v, "steps")}
    correctors = {name: _Unguided(v) for name, v in parts.items() if _has(v, "rows")}
    made: Any = solver  # a dataclass, if it has parts
    return replace(made, **changed, **correctors) if changed else GuidedSteps(solver)


def guides_itself(solver: object) -> bool:
    """Return whether a solver, or one that it is made of, says where CFG++ guides, as CFGPlusPlus does."""
    return getattr(solver, "guided_by_cfgpp", False) or any(
        guides_itself(part) for part in _parts(solver).values() if _has(part, "steps")
    )


def _parts(solver: object) -> dict[str, Any]:
    if not is_dataclass(solver) or isinstance(solver, type):
        return {}
    return {f.name: getattr(solver, f.name) for f in fields(solver)}


def _has(value: object, method: str) -> bool:
    return not isinstance(value, type) and callable(getattr(value, method, None))


@dataclass(frozen=True)
class GuidedSteps:
    """A solver each of whose groups of rows is one step, by CFG++."""

    solver: Solver

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        groups = self.solver.steps(schedule, t)
        rows = [row for group in groups for row in group]
        if any(row.change or row.guide != 1.0 for row in rows):
            return called(groups)
        slot = 1 + max((row.push for row in rows if row.push is not None), default=-1)
        try:
            if getattr(self.solver, "on_grid", False):
                return called(_over_intervals(schedule, groups, slot))
            return called([_step(schedule, group, slot) for group in groups])
        except ValueError as error:
            raise ValueError(f"CFG++ with {short(self.solver)}: {error}") from None


@dataclass(frozen=True)
class _Unguided:
    """A corrector along the unguided score."""

    corrector: Any

    def rows(self, schedule: Schedule, t: float, cleaner: float) -> list[Row]:
        rows = [replace(row, guide=0.0) for row in self.corrector.rows(schedule, t, cleaner)]
        return called([rows])[0]


def called(groups: list[list[Row]]) -> list[list[Row]]:
    """Return rows that say which networks they call, for the plan of a run that is guided everywhere."""
    rows = [row for group in groups for row in group]
    starts = [k for k, row in enumerate(rows) if row.evaluate]
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        guided = any(row.change or row.guide != 0.0 for row in rows[start:end] if row.reads_m)
        rows[start] = replace(rows[start], calls="F, F2" if guided else "F2")
    left = iter(rows)
    return [[next(left) for _ in group] for group in groups]


def _step(schedule: Schedule, group: list[Row], slot: int) -> list[Row]:
    """Return the rows of one step, with the change at its end: as part of its only row, or kept in a history slot."""
    rows = [replace(row, guide=0.0) for row in group]
    leaves = next((k for k, row in enumerate(rows) if row.s != row.t), None)
    start = max((k for k in range(len(rows)) if rows[k].evaluate and leaves is not None and k <= leaves), default=None)
    if start is None or leaves is None:
        raise ValueError("it has no step to less noise that the network makes; guide it with rule='cfg'")
    last, share = rows[-1], float(schedule.alpha(max(rows[-1].s, schedule.t_clean)))
    if start == len(rows) - 1 and last.push is None:
        of_x0 = last.b * _x0_weight(schedule, last)
        if of_x0 != 0.0:
            return [*rows[:-1], replace(last, guide=share / of_x0)]
    if slot >= abi.SLOTS:
        raise ValueError(f"it fills all {abi.SLOTS} history slots, of which CFG++ needs one; use PNDM(prk=False)")
    t = rows[start].t
    keep = Row(t, t, 1.0, 0.0, push=slot, change=True)
    rows[start] = replace(rows[start], evaluate=False)
    w = [*rows[-1].w, *[0.0] * (slot + 1 - len(rows[-1].w))]
    w[slot] += share
    rows[-1] = replace(rows[-1], w=tuple(w))
    return [*rows[:start], keep, *rows[start:]]


def _over_intervals(schedule: Schedule, groups: list[list[Row]], slot: int) -> list[list[Row]]:
    """Return the groups, of one row each, of steps over several intervals; a step's last row stores nothing."""
    result, step = [], []
    for group in groups:
        step += group
        if step[-1].push is None:
            rows = _step(schedule, step, slot)
            result += [rows[: len(rows) - len(step) + 1], *([row] for row in rows[len(rows) - len(step) + 1 :])]
            step = []
    return result


def _x0_weight(schedule: Schedule, row: Row) -> float:
    """Return q of m = p x + q D."""
    t = np.float64(row.t)
    of, x0 = components(row.m, schedule, t), components("x0", schedule, t)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = float(convert(of, x0, schedule.alpha(t), schedule.sigma(t))[1])
    return weight if np.isfinite(weight) else 0.0
