"""Passes: pure functions Plan -> Plan, and the one that makes a plan of a solver."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from fastscore.errors import short, unknown
from fastscore.kernels import abi
from fastscore.plan.landing import end_labels
from fastscore.plan.rows import NORMS, Plan, Row, Solver
from fastscore.process.parametrization import Parametrization, components, convert, network_time
from fastscore.process.schedule import Array, Schedule

STARTS = ("prior", "data", "state")


def make_plan(solver: Solver, schedule: Schedule, t: Array, start: str = "prior") -> Plan:
    """Build the plan of a solver between the knots ``t``: first row, steps, numbered draws.

    Args:
        start: what the first row makes the state of: "prior", noise alone; "data", clean data x_0, which
            becomes alpha x_0 + sigma z at the first knot (SDEdit, Meng et al. 2022); "state", x at the first
            knot, which stays; "base", the same of one that the loop draws. Draw 0 belongs to this row, used or not.

    Raises:
        ValueError: another ``start``.
    """
    first = float(t[0])
    # A grid may start below T, where x has another length: that of data of variance one and its noise.
    length, top = (np.hypot(schedule.alpha(t), schedule.sigma(t)) for t in (first, schedule.T))
    if start not in (*STARTS, "base"):
        raise unknown("start", start, STARTS)
    a, c = {
        "prior": (0.0, schedule.prior_std * float(length / top)),
        "data": (float(schedule.alpha(first)), float(schedule.sigma(first))),
        "state": (1.0, 0.0),
        "base": (1.0, 0.0),
    }[start]
    prior = Row(first, first, a=a, b=0.0, c=c, evaluate=False)
    with np.errstate(divide="ignore", invalid="ignore"):  # infinities are named by validate
        try:
            groups = solver.steps(schedule, t)
        except OverflowError as error:
            raise ValueError(f"{short(solver)} overflows ({error}); use smaller numbers") from None
    rows = _number(row for group in groups for row in group)
    return Plan(schedule, (replace(prior, draw=-1 if start == "state" else 0), *rows))


class Folding:
    """The coefficients of a network at every row of a plan that uses its output: computed once, whatever m is.

    Args:
        plan: not folded.
        model, parametrization: the schedule that the network was trained on, and what it predicts.
        two_times: whether it is told where a step ends; see plan/landing.py.

    Raises:
        ValueError: the network was never trained at so much noise, or serves other steps than a row's.
    """

    def __init__(self, plan: Plan, model: Schedule, parametrization: Parametrization, two_times: bool = False) -> None:
        self.plan = plan
        self.reads_m = np.array([r.reads_m for r in plan.rows])
        self.t = np.array([r.t for r in plan.rows])[self.reads_m]
        times, scale = network_time(model, plan.schedule, self.t)
        self.output = parametrization.components(model, times)
        self.c_in, self.c_noise = scale * parametrization.c_in(model, times), parametrization.c_noise(model, times)
        ends = end_labels(plan, self.reads_m, model, parametrization) if two_times else []
        self.c_end: list[float | None] = [*ends] or [None] * len(self.t)

    def data_weights(self) -> list[float]:
        """Return A of every row's output F = A D + B eps; 0 of a row that has none."""
        weights = np.zeros(len(self.plan.rows))
        weights[self.reads_m] = self.output[0]
        return weights.tolist()

    def coefficients(self, m: str | None = None, output: str | None = None) -> tuple[Array, Array]:
        """Return p and q of m = p x + q F at ``t``; arguments as for ``rows``."""
        schedule, t = self.plan.schedule, self.t
        source = self.output if output is None else components(output, schedule, t)
        p, q = np.empty_like(t), np.empty_like(t)
        kinds = np.array([m or r.m for r in self.plan.rows])[self.reads_m]
        for kind in set(kinds):
            at = kinds == kind
            target = components(str(kind), schedule, t[at])
            alpha, sigma = schedule.alpha(t[at]), schedule.sigma(t[at])
            p[at], q[at] = convert(target, (source[0][at], source[1][at]), alpha, sigma)
        return p, q

    def rows(self, m: str | None = None, output: str | None = None) -> tuple[Row, ...]:
        """Return the rows with m = p x + q F.

        Args:
            m: the quantity of every row; each row's own if left out.
            output: what F is, if not what the network predicts: "x0" of one whose output a guide has turned into that.
        """
        p, q = self.coefficients(m, output)
        columns = iter(zip(p.tolist(), q.tolist(), self.c_in.tolist(), self.c_noise.tolist(), self.c_end, strict=True))
        rows = []
        for row, reads in zip(self.plan.rows, self.reads_m, strict=True):
            pk, qk, ck, label, end = next(columns) if reads else (0.0, 0.0, 1.0, 0.0, None)
            evaluate = row.evaluate and bool(reads)
            rows.append(replace(row, m=m or row.m, p=pk, q=qk, c_in=ck, c_noise=label, c_end=end, evaluate=evaluate))
        return tuple(rows)


def fold(plan: Plan, model: Schedule, parametrization: Parametrization) -> Plan:
    """Write every m as p x + q F for a network trained on ``model``; set its input and label."""
    rows = Folding(plan, model, parametrization).rows()
    return replace(plan, rows=mix(rows, (None,) * len(rows), 1.0))


def inside(plan: Plan, interval: tuple[float, float]) -> list[bool]:
    """Return which rows of a folded plan use an output that was evaluated at low < sigma / alpha <= high."""
    low, high = interval
    with np.errstate(divide="ignore"):  # pure noise
        levels = [float(np.divide(plan.schedule.sigma(row.t), plan.schedule.alpha(row.t))) for row in plan.rows]
    result, active, known = [], False, False
    for row, level in zip(plan.rows, levels, strict=True):
        # An output that is used again is mixed again; later stages of a step that CFG++ guides are as its first one.
        if row.evaluate and (row.guide != 0.0 or not known):
            active, known = low < level <= high, True
        result.append(active)
    return result


def mix(first: tuple[Row, ...], second: tuple[Row | None, ...], weight: float, thrifty: bool = True) -> tuple[Row, ...]:
    r"""Mix a second output into the m of rows, which stays affine: m = w_1 m_1 + w_2 m_2.

        p = w_1 p_1 + w_2 p_2,   q = w_1 q_1,   q2 = w_2 q_2,   w_1 = w guide,   w_2 = 1 - w_1

    with 0 for the 1 where m is the ``change`` alone. A row whose ``guide`` is 1 has the mixture w m_1 + (1 - w) m_2.

    Args:
        first, second: the folded rows of both networks; None where there is no second output.
        weight: w; 1 is the first alone.
        thrifty: evaluate no output that no row reads; a guide wants both.

    Source: Ho & Salimans 2022, eq. 6, with w = 1 + their w.
    """
    rows = []
    for row, second_row in zip(first, second, strict=True):
        if second_row is not None:
            w, whole = row.guide * weight, 0.0 if row.change else 1.0
            p, q2 = w * row.p + (whole - w) * second_row.p, (whole - w) * second_row.q
            q = row.q * (row.guide if row.terms else w)  # of several conditions F has the weights already
            labels = {"c_noise2": second_row.c_noise, "c_end2": second_row.c_end}
            row = replace(row, p=p, q=q, q2=q2, c_in2=second_row.c_in, **labels)
        elif row.change:
            row = replace(row, p=0.0, q=0.0)
        rows.append(row)
    return _called(rows) if thrifty else tuple(rows)


def _called(rows: list[Row]) -> tuple[Row, ...]:
    """Return rows whose evaluations call what they and the rows that use their outputs again read, and no more."""
    starts = [k for k, row in enumerate(rows) if row.evaluate]
    for start, end in pairwise([*starts, len(rows)]):
        first, second = (any(getattr(row, part) for row in rows[start:end]) for part in ("q", "q2"))
        calls = "F" if not second else "F, F2" if first else "F2"
        rows[start] = replace(rows[start], calls=calls)
        if calls != "F2":
            continue
        for k in range(start, end):  # F is then the second network's
            row = rows[k]
            labels = {"c_noise": row.c_noise2, "c_end": row.c_end2}
            rows[k] = replace(row, q=row.q2, q2=0.0, c_in=row.c_in2, calls=calls, terms=(), **labels)
    return tuple(rows)


def clip(plan: Plan, bound: float) -> Plan:
    """Clip the x0 estimate of every row to [-bound, bound]; to be applied before ``fold``.

    Rows in another quantity are rewritten in x0 first. A Langevin row whose step follows from the norm
    of its score is left as it is: its score has no clipped form.

    Raises:
        ValueError: bound not positive, or a row keeps a history of another quantity than x0.
    """
    if not 0.0 < bound < math.inf:
        raise ValueError(f"clip = {bound} must be a positive number")
    rows = []
    for row in plan.rows:
        if row.change or row.guide != 1.0:
            raise ValueError(
                f"clip = {bound}: CFG++ reads two estimates, of which one bound would clip one; leave it out"
            )
        if row.b == 0.0 or row.langevin is not None:
            rows.append(row)
            continue
        if row.m != "x0":
            if row.push is not None:
                raise ValueError(
                    f"clip: this solver keeps a history of {row.m!r}, not of x0; use DDIM or DPMpp2M, or in place of "
                    "clip guide=DynamicThreshold() or guide=StaticThreshold(bound), which go with every solver"
                )
            t = np.float64(row.t)
            x0 = components("x0", plan.schedule, t)
            p, q = convert(components(row.m, plan.schedule, t), x0, plan.schedule.alpha(t), plan.schedule.sigma(t))
            row = replace(row, a=float(row.a + row.b * p), b=float(row.b * q), m="x0")
        rows.append(replace(row, clip=bound))
    return replace(plan, rows=tuple(rows))


def validate(plan: Plan) -> Plan:
    """Return the plan if it can be run.

    Raises:
        ValueError: a coefficient is not finite, or a history slot is missing or read too early.
    """
    filled: set[int] = set()
    for k, row in enumerate(plan.rows):
        values = {"a": row.a, "b": row.b, "c": row.c, "p": row.p, "q": row.q, "c_in": row.c_in, "c_noise": row.c_noise}
        values |= {"q2": row.q2, "c_in2": row.c_in2, "c_noise2": row.c_noise2}
        values |= {f"w{j}": w for j, w in enumerate(row.w)}
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"row {k} (t = {row.t:.6g} to {row.s:.6g}): coefficient {name} = {value}; on "
                    f"{type(plan.schedule).__name__} this solver or prediction is singular there: start the grid "
                    "later or end it earlier"
                )
        read = {j for j, w in enumerate(row.w) if w != 0.0}
        if not read <= filled:
            raise ValueError(f"row {k} reads history slot {min(read - filled)} before anything was stored there")
        if row.push is not None:
            if not 0 <= row.push < abi.SLOTS:
                raise ValueError(f"row {k} stores in slot {row.push}; there are {abi.SLOTS}")
            filled.add(row.push)
        if row.langevin is not None and row.langevin.norm not in NORMS:
            raise unknown("norm", row.langevin.norm, NORMS)
    if plan.draws + len(plan.rows) > 1 << 24:  # those of a known part follow, one a row
        raise ValueError(f"{plan.draws} noise draws in {len(plan.rows)} rows; a plan has at most {1 << 24} of both")
    return plan


def _number(rows: Iterable[Row]) -> tuple[Row, ...]:
    numbered, draw = [], 1  # 0 is the first row's
    for row in rows:
        numbered.append(replace(row, draw=draw if row.noisy else -1))
        draw += row.noisy
    return tuple(numbered)
