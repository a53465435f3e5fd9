r"""A schedule and a plan as charts: what the forward SDE does over time, and what a solver does in each step.

x_t = alpha(t) x_0 + sigma(t) z,   dx = -beta(t)/2 x dt + g(t) dw,   log-SNR = 2 ln(alpha / sigma)
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.plan.rows import Plan, Row
from fastscore.process.config import schedule_from_dict
from fastscore.process.schedule import Array, Schedule, f, g2, lam
from fastscore.report.page import Chart, Part, Table

POINTS = 400  # of a curve
MARKS = 100  # knots that are marked
FEW = 60  # rows up to which coefficients are lines, and that a table lists


def schedule_charts(schedule: Schedule, knots: Sequence[float] | NDArray[Any] = ()) -> list[Part]:
    """Return charts of alpha and sigma, of the log-SNR, and of the rates beta and g^2 over t.

    Args:
        knots: times of a grid, which are marked below the curves.
    """
    t, log = _times(schedule, np.asarray(knots, np.float64))
    with np.errstate(all="ignore"):  # infinite rates and log-SNR are gaps
        curves = {
            "alpha": schedule.alpha(t),
            "sigma": schedule.sigma(t),
            "log-SNR": 2.0 * lam(schedule, t),
            "beta": -2.0 * f(schedule, t),
            "g²": g2(schedule, t),
        }
    curves = {name: (t, np.broadcast_to(np.asarray(y, np.float64), t.shape)) for name, y in curves.items()}
    apart = -(-len(knots) // MARKS)
    which = "the" if apart < 2 else f"every {apart}th of the"
    steps = f" Marks on the axis are {which} {len(knots):,} knots of the grid." if len(knots) else ""
    texts = {
        ("alpha", "sigma"): f"Signal alpha and noise sigma.{steps}",
        ("log-SNR",): "Log-SNR, 2 ln(alpha / sigma); infinite, and not drawn, where alpha or sigma is 0.",
        ("beta", "g²"): "Rates of the forward SDE, dx = -beta/2 x dt + g dw.",
    }
    charts = list[Part]()
    for names, text in texts.items():
        still = [name for name in names if not np.any(curves[name][1])]
        shown = {name: curves[name] for name in names if name not in still}
        text += f" {still[0].capitalize()} is 0." if still else ""
        wide = "log-SNR" not in names and any(_wide(y) for _, y in shown.values())
        charts.append(Chart(shown, "t", ", ".join(names), log_x=log, log_y=wide, text=text, marks=knots[:: apart or 1]))
    return charts


def plan_parts(plan: Plan) -> list[Part]:
    """Return a chart of the coefficients of every row but the first, which draws x_T, and a table of the rows."""
    rows = plan.rows[1:]
    number = np.arange(1, len(rows) + 1)
    series = {
        "a (state)": [row.a for row in rows],
        "b (estimate)": [math.nan if row.langevin else row.b for row in rows],
        "c (noise)": [math.nan if row.langevin else row.c for row in rows],
        **{f"w{k} (history)": [_weight(row, k) for row in rows] for k in range(plan.slots)},
    }
    series = {name: (number, y) for name, y in series.items() if name[0] in "ab" or np.any(np.nan_to_num(y))}
    what = sorted({row.m for row in rows if row.reads_m})
    text = f"Coefficients of x <- a x + b m + sum w h + c z, row by row; m is the estimate of {' or '.join(what)}."
    if any(row.langevin for row in rows):
        text += " Rows of Langevin steps have b and c at run time, from norms: they are not drawn."
    chart = Chart(series, "row", "coefficient", text=text, dots=series if len(rows) > FEW else ())
    return [chart, _rows(plan)]


def schedule_of(text: str) -> Schedule | None:
    """Return the schedule that a record writes as VP(beta=LinearBeta(..), ..); None of one that is not fastscore's."""

    def read(node: ast.expr) -> Any:
        match node:
            case ast.Call(func=ast.Name(id=name), args=[]):
                return {"name": name, **{k.arg or "": read(k.value) for k in node.keywords}}
            case ast.Constant(value=bool() | int() | float() | None as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
            case ast.Tuple(elts=parts):
                return tuple(map(read, parts))
            case ast.Name(id="nan" | "inf" as name):
                return float(name)
        raise ValueError("no schedule is written like that")

    try:
        found = schedule_from_dict(read(ast.parse(text, mode="eval").body))
    except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, Schedule) else None


def _times(schedule: Schedule, knots: Array) -> tuple[Array, bool]:
    """Return the times of the curves, and whether they spread over decades, as where t is the noise level."""
    low, high = schedule.t_end, max([schedule.T, *knots[np.isfinite(knots)]])
    if low > 0.0 and high > 2000.0 * low:
        return np.geomspace(min([low, *knots[knots > 0.0]]), high, POINTS), True
    low = schedule.t_clean if math.isfinite(schedule.t_clean) else min([low, *knots[np.isfinite(knots)]])
    return np.linspace(low, high, POINTS), False


def _wide(values: Array) -> bool:
    """Return whether values rise so high that a linear axis shows nothing but their top."""
    seen = values[np.isfinite(values)]
    return bool(len(seen)) and float(seen.max()) > max(5.0, 10.0 * float(np.median(seen)))


def _weight(row: Row, k: int) -> float:
    return row.w[k] if k < len(row.w) else 0.0


def _rows(plan: Plan) -> Table:
    weights = [k for k in range(plan.slots) if any(_weight(row, k) for row in plan.rows)]
    head = ["row", "from t", "to t", "sigma(t)", "m", "a", "b", "c", *(f"w{k}" for k in weights), "evaluates"]
    lines = [
        [
            number,
            row.t,
            row.s,
            float(plan.schedule.sigma(row.t)),
            row.m if row.reads_m else "",
            row.a,
            "by norms" if row.langevin else row.b,
            "by norms" if row.langevin else row.c,
            *(_weight(row, k) for k in weights),
            row.calls if row.evaluate else "",
        ]
        for number, row in enumerate(plan.rows[:FEW])
    ]
    rest = len(plan.rows) - len(lines)
    more = f"; {rest:,} more rows are left out here" if rest else ""
    return Table(head, lines, f"The plan, row by row: row 0 makes x_T{more}. In Python print(sampler.plan).")
