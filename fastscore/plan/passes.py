"""Passes: pure functions Plan -> Plan, and the one that makes a plan of a solver."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fastscore.kernels import abi
from fastscore.plan.rows import NORMS, Plan, Row, Solver
from fastscore.process.parametrization import Parametrization, basis, convert, network_time
from fastscore.process.schedule import Array, Schedule


def make_plan(solver: Solver, schedule: Schedule, t: Array, start: str = "prior") -> Plan:
    """Build the plan of a solver between the knots ``t``: first row, steps, numbered draws.

    Args:
        start: what the first row makes the state of: "prior", noise alone; "data", clean data x_0, which
            becomes alpha x_0 + sigma z at the first knot (SDEdit, Meng et al. 2022); "state", x at the first
            knot, which stays. Draw 0 belongs to this row, used or not.

    Raises:
        ValueError: another ``start``.
    """
    first = float(t[0])
    # A grid may start below T, where x has another length: that of data of variance one and its noise.
    here, top = (np.hypot(schedule.alpha(t), schedule.sigma(t)) for t in (first, schedule.T))
    scales = {
        "prior": (0.0, schedule.prior_std * float(here / top)),
        "data": (float(schedule.alpha(first)), float(schedule.sigma(first))),
        "state": (1.0, 0.0),
    }
    if start not in scales:
        raise ValueError(f"start = {start!r} must be one of {', '.join(scales)}")
    a, c = scales[start]
    prior = Row(first, first, a=a, b=0.0, c=c, evaluate=False)
    with np.errstate(divide="ignore", invalid="ignore"):  # infinities are named by validate
        groups = solver.steps(schedule, t)
    rows = _number(row for group in groups for row in group)
    return Plan(schedule, (replace(prior, draw=0 if c else -1), *rows))


def fold(plan: Plan, model: Schedule, parametrization: Parametrization) -> Plan:
    """Write every m as p x + q F for a network trained on ``model``; set its input and label."""
    reads_m = np.array([r.b != 0.0 or r.push is not None or r.langevin is not None for r in plan.rows])
    t = np.array([r.t for r in plan.rows])[reads_m]
    there, scale = network_time(model, plan.schedule, t)
    source = parametrization.basis(model, there)
    c_in, c_noise = scale * parametrization.c_in(model, there), parametrization.c_noise(model, there)
    p, q = np.empty_like(t), np.empty_like(t)
    kinds = np.array([r.m for r in plan.rows])[reads_m]
    for kind in set(kinds):
        at = kinds == kind
        target = basis(str(kind), plan.schedule, t[at])
        alpha, sigma = plan.schedule.alpha(t[at]), plan.schedule.sigma(t[at])
        p[at], q[at] = convert(target, (source[0][at], source[1][at]), alpha, sigma)
    columns = iter(zip(p.tolist(), q.tolist(), c_in.tolist(), c_noise.tolist(), strict=True))
    rows = []
    for row, reads in zip(plan.rows, reads_m, strict=True):
        pk, qk, ck, label = next(columns) if reads else (0.0, 0.0, 1.0, 0.0)
        rows.append(replace(row, p=pk, q=qk, c_in=ck, c_noise=label, evaluate=row.evaluate and bool(reads)))
    return replace(plan, rows=tuple(rows))


def mix(
    plan: Plan, weight: float, interval: tuple[float, float], model: Schedule, parametrization: Parametrization
) -> Plan:
    r"""Mix a second output into every m of a folded plan: m = w m_1 + (1 - w) m_2, which stays affine.

        p = w p_1 + (1 - w) p_2,   q = w q_1,   q2 = (1 - w) q_2

    Args:
        weight: w; at 1 the plan is returned as it is.
        interval: (low, high) in sigma / alpha; a row is guided if its evaluation lies in low < sigma / alpha <= high.
        model, parametrization: of the second network.

    Source: Ho & Salimans 2022, eq. 6, with w = 1 + their w; Kynkaanniemi et al. 2024 for the interval.
    """
    with np.errstate(divide="ignore"):  # pure noise
        levels = [float(np.divide(plan.schedule.sigma(row.t), plan.schedule.alpha(row.t))) for row in plan.rows]
    guided, now = [], False
    for row, level in zip(plan.rows, levels, strict=True):
        now = interval[0] < level <= interval[1] if row.evaluate else now  # an output used again is guided again
        guided.append(now)
    if weight == 1.0 or not any(guided):
        return plan
    chosen = tuple(row for row, inside in zip(plan.rows, guided, strict=True) if inside)
    second = iter(fold(replace(plan, rows=chosen), model, parametrization).rows)
    rows = []
    for row, inside in zip(plan.rows, guided, strict=True):
        if inside:
            other, w = next(second), weight
            p, q, q2 = w * row.p + (1.0 - w) * other.p, w * row.q, (1.0 - w) * other.q
            row = replace(row, p=p, q=q, q2=q2, c_in2=other.c_in, c_noise2=other.c_noise)
        rows.append(row)
    return replace(plan, rows=tuple(rows))


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
        if row.b == 0.0 or row.langevin is not None:
            rows.append(row)
            continue
        if row.m != "x0":
            if row.push is not None:
                raise ValueError(f"clip: this solver keeps a history of {row.m!r}, not of x0; use DDIM or DPMpp2M")
            t = np.float64(row.t)
            x0 = basis("x0", plan.schedule, t)
            p, q = convert(basis(row.m, plan.schedule, t), x0, plan.schedule.alpha(t), plan.schedule.sigma(t))
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
            raise ValueError(f"norm = {row.langevin.norm!r} must be one of {', '.join(NORMS)}")
    if plan.draws + len(plan.rows) > 1 << 24:  # those of a known part follow, one a row
        raise ValueError(f"{plan.draws} noise draws in {len(plan.rows)} rows; a plan has at most {1 << 24} of both")
    return plan


def _number(rows: Iterable[Row]) -> tuple[Row, ...]:
    numbered, draw = [], 1  # 0 is the first row's
    for row in rows:
        numbered.append(replace(row, draw=draw if row.noisy else -1))
        draw += row.noisy
    return tuple(numbered)
