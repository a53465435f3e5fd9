"""Runge-Kutta methods on the probability-flow ODE dx/dt = alpha' D + sigma' eps.

Which of them is symplectic is a question about Hamiltonian systems, and this ODE is none: x has no momenta, and its
flow does not keep volume (its divergence is what a likelihood integrates). What is left of it is symmetry, a step back
that undoes a step: ImplicitMidpoint has it, the explicit methods do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastscore.errors import typed
from fastscore.plan.rows import REPEATS, Row
from fastscore.process.schedule import Array, Schedule, lam, t_of_lam
from fastscore.solvers.adaptive import Tableau
from fastscore.solvers.exponential import one_step_rows, step_coefficients, with_first_order_ends
from fastscore.solvers.sde import denoise
from fastscore.solvers.variants import published, published_repr


@dataclass(frozen=True)
@typed
class Euler:
    """x_s = x_t - h d_t,  d = dx/dt of the probability-flow ODE.

    In the schedule's own time: on EDM this is EDM's Euler, on VE or VP Song's. ``denoise`` replaces
    a step to sigma = 0 by x_s = D, which leaves no noise behind on any schedule.
    """

    denoise: bool = True
    order = 1
    tableau = Tableau((0.0,), ((), (1.0,)))

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [[self._row(schedule, t, s)] for t, s in pairwise(t)]

    def _row(self, schedule: Schedule, t: np.float64, s: np.float64) -> Row:
        if s == schedule.t_clean and (self.denoise or not np.isfinite(s)):
            return denoise(t, s)
        return Row(float(t), float(s), a=1.0, b=float(s - t), m="flow")


@dataclass(frozen=True)
@typed
class Heun:
    """Heun's second-order method; a step to sigma = 0 is Euler's.

    x_e = x_t - h d_t,   x_s = x_e - h/2 (d_s - d_t). Source: Karras et al. 2022, algorithm 1.
    """

    denoise: bool = True
    order = 2
    tableau = Tableau((0.0, 1.0), ((), (1.0,), (0.5, 0.5)))

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [self._rows(schedule, t, s) for t, s in pairwise(t)]

    def _rows(self, schedule: Schedule, t: np.float64, s: np.float64) -> list[Row]:
        if s == schedule.t_clean:
            return Euler(self.denoise).steps(schedule, np.array([t, s]))[0]
        h = float(t - s)
        predict = Row(float(t), float(s), a=1.0, b=-h, m="flow", push=0)
        return [predict, Row(float(s), float(s), a=1.0, b=-0.5 * h, w=(0.5 * h,), m="flow")]


@dataclass(frozen=True)
@typed
class RK2:
    """The two-stage second-order family; a step to sigma = 0 is Euler's.

        x_m = x_t - a h d_t,   x_s = x_t - h [(1 - 1/2a) d_t + 1/2a d_m],   d_m at time t - a h

    a = 1/2 is the explicit midpoint rule, 2/3 Ralston's, 1 Heun's. Source: Karras et al. 2022, algorithm 3.
    """

    a: float = 0.5
    denoise: bool = True
    order = 2

    def __post_init__(self) -> None:
        if not 0.0 < self.a <= 1.0:
            raise ValueError(f"RK2: a = {self.a} must lie in 0 .. 1, without 0")

    @property
    def tableau(self) -> Tableau:
        """Nodes and weights."""
        weight = 0.5 / self.a
        return Tableau((0.0, self.a), ((), (self.a,), (1.0 - weight, weight)))

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [_explicit(schedule, t, s, self.tableau, self.denoise) for t, s in pairwise(t)]


@dataclass(frozen=True)
@typed
class RK4:
    """The classical fourth-order Runge-Kutta method; a step to sigma = 0 is Euler's. Source: Kutta 1901."""

    denoise: bool = True
    order = 4
    tableau = Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)))

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [_explicit(schedule, t, s, self.tableau, self.denoise) for t, s in pairwise(t)]


@dataclass(frozen=True)
@typed
class ImplicitMidpoint:
    """The implicit midpoint rule, solved by a fixed number of fixed-point sweeps.

        x_m = x_t - h/2 d(x_m, (t + s)/2),   x_s = x_t - h d(x_m, (t + s)/2)

    The first guess of x_m is Euler's, each sweep is one evaluation at it, the last one makes the step: one
    sweep is the explicit midpoint rule. The sweeps converge where h/2 times the Lipschitz constant of d is below 1;
    then the rule is symmetric, so that a step back undoes a step up to the last sweep's change.

    Args:
        sweeps: evaluations at x_m.
        denoise: whether a step to sigma = 0 is D; else it is Euler's.
        exponential: solve the stiff linear part exactly (see exponential.py), with D at the middle of lam:

            x_m = A(h/2) x_t + alpha_m (1 - e^{-h/2}) D(x_m),   x_s = A(h) x_t + alpha_s (1 - e^{-h}) D(x_m)

            A sweep then changes x_m by 1 - e^{-h/2} of the change before it, or less, where D is no steeper than
            1/alpha, as on Gaussian data: it converges on steps of any length, where the rule above diverges once
            they are long against the log-SNR. One sweep is DPM-Solver++(2S). A step to sigma = 0 is D.

    Raises:
        ValueError: fewer than one sweep, or exponential with denoise=False.

    Source: Hairer, Lubich & Wanner 2006, section VIII.6; exponential: Hochbruck & Ostermann 2010, section 2.
    """

    sweeps: int = 4
    denoise: bool = True
    exponential: bool = published(False)
    __repr__ = published_repr
    order = 2

    def __post_init__(self) -> None:
        if not 1 <= self.sweeps <= REPEATS:
            raise ValueError(f"ImplicitMidpoint: sweeps = {self.sweeps} must lie in 1 .. {REPEATS}")
        if self.exponential and not self.denoise:
            raise ValueError("ImplicitMidpoint: exponential=True ends with D; leave denoise=False out")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        if self.exponential:
            return with_first_order_ends(schedule, t, self._exponential)
        return [self._rows(schedule, t, s) for t, s in pairwise(t)]

    def _exponential(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        values = lam(schedule, t)
        middles, groups = t_of_lam(schedule, 0.5 * (values[:-1] + values[1:])), []
        half, whole = (step_coefficients(schedule, t[:-1], end, "x0") for end in (middles, t[1:]))
        for start, middle, s, (a1, g1, h1, _), (a, g, h, _) in zip(
            t[:-1], middles, t[1:], zip(*half, strict=True), zip(*whole, strict=True), strict=True
        ):
            b1, b = -g1 * math.expm1(-h1), -g * math.expm1(-h)
            guess = Row(float(start), float(middle), a1, b1, push=0)
            sweep = Row(float(middle), float(middle), 1.0, b1, w=(-b1,), push=0)
            step = Row(float(middle), float(s), a / a1, b, w=(-b1 * a / a1,))
            groups.append([guess, *[sweep] * (self.sweeps - 1), step])
        return groups

    def _rows(self, schedule: Schedule, t: np.float64, s: np.float64) -> list[Row]:
        if s == schedule.t_clean:
            return Euler(self.denoise).steps(schedule, np.array([t, s]))[0]
        h, middle = float(t - s), float(0.5 * (t + s))
        sweep = Row(middle, middle, 1.0, -0.5 * h, w=(0.5 * h,), m="flow", push=0)
        guess = Row(float(t), middle, 1.0, -0.5 * h, m="flow", push=0)
        return [guess, *[sweep] * (self.sweeps - 1), Row(middle, float(s), 1.0, -h, w=(0.5 * h,), m="flow")]


def _explicit(
    schedule: Schedule,
    t: np.float64,
    s: np.float64,
    tableau: Tableau,
    denoise: bool,
) -> list[Row]:
    """Return one step of a Runge-Kutta method."""
    if s == schedule.t_clean:
        return Euler(denoise).steps(schedule, np.array([t, s]))[0]
    h = float(s - t)
    times = [*(s if c == 1.0 else t + c * (s - t) for c in tableau.nodes), s]
    rows = tableau.rows[1:]
    return one_step_rows(times, [1.0] * len(rows), [[h * v for v in row] for row in rows], "flow")
