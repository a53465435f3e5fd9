r"""Plans: what a solver does, as a table computed once in float64.

A row is one network evaluation (or none) and one linear update:

    m = p x + q F + q2 F2,   x' = a x + b m + sum_k w_k h_k + c z,   h[push] <- m,   u <- c_in x'

F2 is a second output, of rows that ``guide`` gave one. A solver emits rows in terms of a quantity m of its
choice ("x0", "score", ...); the pass ``fold`` writes m as an affine map of the network's own output. Passes
are pure functions Plan -> Plan, and ``str(plan)`` prints the table.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from fastscore.kernels import abi
from fastscore.parametrization import Parametrization, basis, convert, network_time
from fastscore.schedule import Array, Schedule

NORMS = ("sample", "batch", "expected")


@dataclass(frozen=True, slots=True)
class LangevinStep:
    """A step size that depends on the norms of score and noise: min(scale (|z| / |s|)^2, cap).

    ``norm``: "sample" takes both norms of each sample, "expected" replaces |z| by sqrt(D), "batch"
    averages both over the batch, as Song's code does.
    """

    scale: float
    norm: str = "sample"
    cap: float = math.inf


@dataclass(frozen=True, slots=True)
class Row:
    """One update from time t to time s.

    Attributes:
        a, b, c: weights of x, m and fresh noise z.
        w: weight of each history slot.
        m: the quantity that m is ("x0", "eps", "score", "v" or "flow"), evaluated at t.
        push: slot that receives m, after the slots were read.
        evaluate: whether the network runs; if not, m is made of its last output.
        langevin: sets b and c at run time.
        p, q: m = p x + q F, set by ``fold``; c_in, c_noise: network input scale and time label.
        q2: weight of a second output F2, 0 for none, set by ``guide``; c_in2, c_noise2: of its network.
        clip: bound on |m|, 0 for none.
        draw: number of the noise draw, -1 for none; set when the plan is built.
    """

    t: float
    s: float
    a: float
    b: float
    c: float = 0.0
    w: tuple[float, ...] = ()
    m: str = "x0"
    push: int | None = None
    evaluate: bool = True
    langevin: LangevinStep | None = None
    p: float = math.nan
    q: float = math.nan
    c_in: float = 1.0
    c_noise: float = 0.0
    q2: float = 0.0
    c_in2: float = 1.0
    c_noise2: float = 0.0
    clip: float = 0.0
    draw: int = -1

    @property
    def noisy(self) -> bool:
        """Whether the row consumes a noise draw."""
        return self.c != 0.0 or self.langevin is not None


class Solver(Protocol):
    """Turns a schedule and knots into rows, grouped by interval so that solvers compose."""

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        """Return one group of rows for each interval of the knots ``t``."""
        ...


@dataclass(frozen=True)
class Plan:
    """The rows of a whole run on one schedule; the first row draws the prior."""

    schedule: Schedule
    rows: tuple[Row, ...]

    @property
    def nfe(self) -> int:
        """Network evaluations a sample; a guided row has two."""
        return sum(row.evaluate * (1 + (row.q2 != 0.0)) for row in self.rows)

    @property
    def draws(self) -> int:
        """Noise draws a sample, the prior's included."""
        return 1 + max(row.draw for row in self.rows)

    @property
    def slots(self) -> int:
        """History slots in use."""
        return max((1 + row.push for row in self.rows if row.push is not None), default=0)

    @property
    def hash(self) -> str:
        """SHA-256 of the lowered table and its labels: equal plans, equal hash."""
        labels = [(r.c_noise, r.c_in2, r.c_noise2) if r.q2 else (r.c_noise,) for r in self.rows]
        content = lower(self).tobytes() + np.array([v for label in labels for v in label]).tobytes()
        return hashlib.sha256(content + repr([(r.evaluate, r.langevin) for r in self.rows]).encode()).hexdigest()

    def __str__(self) -> str:
        used = [k for k in range(self.slots) if any(len(r.w) > k and r.w[k] for r in self.rows)]
        head = ["row", "t", "s", "sigma_t", "m", "a", "b", "c", *(f"w{k}" for k in used), "push", "net", "draw"]
        lines = [head]
        for k, r in enumerate(self.rows):
            w = [f"{r.w[j]:.6g}" if j < len(r.w) else "" for j in used]
            b, c = (f"{r.b:.6g}", f"{r.c:.6g}") if r.langevin is None else (f"{r.langevin.norm}", "norm")
            sigma = float(self.schedule.sigma(r.t))
            push, net, draw = "" if r.push is None else r.push, _net(r), "" if r.draw < 0 else r.draw
            numbers = (f"{r.t:.6g}", f"{r.s:.6g}", f"{sigma:.4g}", r.m, f"{r.a:.6g}")
            lines.append([str(v) for v in (k, *numbers, b, c, *w, push, net, draw)])
        widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
        return "\n".join("  ".join(v.rjust(n) for v, n in zip(line, widths, strict=True)).rstrip() for line in lines)


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


def guide(
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


def lower(plan: Plan) -> Array:
    """Return the table that backends read, float64 [rows, abi.WIDTH]."""
    table = np.zeros((len(plan.rows), abi.WIDTH))
    c_in = 0.0  # of the next row that evaluates, hence the reverse order
    for k in range(len(plan.rows) - 1, -1, -1):
        row, line = plan.rows[k], table[k]
        line[[abi.A, abi.B, abi.C, abi.CLIP]] = row.a, row.b, row.c, row.clip
        line[[abi.P, abi.Q, abi.Q2]] = row.p, row.q, row.q2
        line[abi.W0 : abi.W0 + len(row.w)] = row.w
        line[abi.PUSH] = -1 if row.push is None else row.push
        line[abi.DRAW] = row.draw
        if row.langevin is not None:
            line[[abi.SNR, abi.CAP]] = row.langevin.scale, row.langevin.cap
        line[abi.C_IN] = c_in
        c_in = row.c_in if row.evaluate else c_in
    return table


def lower_known(plan: Plan) -> Array:
    r"""Return the rows that known data y follows, float64 [rows, abi.WIDTH]: alpha(t) y + sigma(t) z.

    t is the time at which the next row reads the state, and of the last row its own end, where sigma = 0
    leaves y itself. Each row has a draw of its own, numbered after the plan's.

    Source: Song et al. 2021, appendix I.2, with the noise of the state's own level.
    """
    table = np.zeros((len(plan.rows), abi.WIDTH))
    t = np.array([*(row.t for row in plan.rows[1:]), plan.rows[-1].s])
    table[:, abi.A], table[:, abi.C] = plan.schedule.alpha(t), plan.schedule.sigma(t)
    table[:, abi.PUSH], table[:, abi.DRAW] = -1, max(plan.draws, 1) + np.arange(len(plan.rows))
    return table


def _net(row: Row) -> str:
    return ("F, F2" if row.q2 else "F") if row.evaluate else ""


def _number(rows: Iterable[Row]) -> tuple[Row, ...]:
    numbered, draw = [], 1  # 0 is the first row's
    for row in rows:
        numbered.append(replace(row, draw=draw if row.noisy else -1))
        draw += row.noisy
    return tuple(numbered)
