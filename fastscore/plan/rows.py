r"""Plans: what a solver does, as a table computed once in float64.

A row is one network evaluation (or none) and one linear update:

    m = p x + q F + q2 F2,   x' = a x + b m + sum_k w_k h_k + c z,   h[push] <- m,   u <- c_in x'

F2 is a second output, of rows that ``mix`` gave one. A solver emits rows in terms of a quantity m of its
choice ("x0", "score", ...); the pass ``fold`` writes m as an affine map of the network's own output. Passes
are pure functions Plan -> Plan, and ``str(plan)`` prints the table.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastscore.kernels import abi
from fastscore.process.schedule import Array, Schedule

NORMS = ("sample", "batch", "expected", "tutorial")
REPEATS = 10_000  # the most that a solver does a thing again in one step: more are gigabytes of rows


@dataclass(frozen=True, slots=True)
class LangevinStep:
    """A step size that depends on the norms of score and noise: min(scale (|z| / |s|)^2, cap).

    ``norm``: "sample" takes both norms of each sample, "expected" replaces |z| by sqrt(D), "batch"
    averages both over the batch, as Song's code does, "tutorial" averages |s| and replaces |z| by sqrt(D).
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
        q2: weight of a second output F2, 0 for none, set by ``mix``; c_in2, c_noise2: of its network.
        c_end, c_end2: labels of the time that the row leads to, of networks that take two times; else None.
        terms: weights of the outputs under several conditions that F is the sum of; () for one output.
        own: whether m is that of the estimate before a guide bounds it.
        clip: bound on |m|, 0 for none.
        guide: of a row that is mixed, m = m_u + guide (m_w - m_u): 1 is the mixture m_w, 0 what the second output says
            alone, m_u; CFG++ has both (see cfgpp.py).
        change: m is guide (m_w - m_u) and no more, 0 where nothing is mixed.
        calls: the outputs of its evaluation, "F", "F, F2", or "F2" where F is that of the second network, set by
            ``mix``.
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
    c_end: float | None = None
    c_end2: float | None = None
    clip: float = 0.0
    guide: float = 1.0
    change: bool = False
    calls: str = "F"
    draw: int = -1
    terms: tuple[float, ...] = ()
    own: bool = False

    @property
    def noisy(self) -> bool:
        """Whether the row consumes a noise draw."""
        return self.c != 0.0 or self.langevin is not None

    @property
    def reads_m(self) -> bool:
        """Whether m enters the state, a slot or a step size."""
        return self.b != 0.0 or self.push is not None or self.langevin is not None


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
        """Network evaluations a sample; a mixed row has two, or one for each condition of a weight."""
        calls = [(row.calls.split(", "), sum(w != 0.0 for w in row.terms) or 1) for row in self.rows if row.evaluate]
        return sum(("F" in called) * firsts + ("F2" in called) for called, firsts in calls)

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
        labels += [tuple(v for v in (r.c_end, r.c_end2) if v is not None) for r in self.rows]
        content = lower(self).tobytes() + np.array([v for label in labels for v in label]).tobytes()
        content += np.array([w for r in self.rows for w in r.terms]).tobytes()
        alone = ["F2" for r in self.rows if r.calls == "F2"]  # what has no such row keeps the hash it always had
        rest = [(r.evaluate, r.langevin) for r in self.rows], *alone
        return hashlib.sha256(content + repr(rest if alone else rest[0]).encode()).hexdigest()

    def __str__(self) -> str:
        weights = [k for k in range(self.slots) if any(len(r.w) > k and r.w[k] for r in self.rows)]
        by_rule = ["guide"] if any(r.change or r.guide != 1.0 for r in self.rows) else []
        head = ["row", "t", "s", "sigma_t", "m", *by_rule, "a", "b", "c", *(f"w{k}" for k in weights)]
        head += ["push", "net", "draw"]
        lines = [head]
        for k, r in enumerate(self.rows):
            w = [f"{r.w[j]:.6g}" if j < len(r.w) else "" for j in weights]
            b, c = (f"{r.b:.6g}", f"{r.c:.6g}") if r.langevin is None else (f"{r.langevin.norm}", "norm")
            sigma = float(self.schedule.sigma(r.t))
            push, net, draw = "" if r.push is None else r.push, _net(r), "" if r.draw < 0 else r.draw
            guide = ["change" if r.change else "" if r.guide == 1.0 else f"{r.guide:.4g}"] if by_rule else []
            numbers = (f"{r.t:.6g}", f"{r.s:.6g}", f"{sigma:.4g}", r.m, *guide, f"{r.a:.6g}")
            lines.append([str(v) for v in (k, *numbers, b, c, *w, push, net, draw)])
        widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
        return "\n".join("  ".join(v.rjust(n) for v, n in zip(line, widths, strict=True)).rstrip() for line in lines)


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
    return row.calls if row.evaluate else ""
