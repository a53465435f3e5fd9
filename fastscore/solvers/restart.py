"""Back up to more noise and down again: Restart at some levels, RePaint's resampling at every few steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from fastscore.errors import short, typed
from fastscore.plan.rows import REPEATS, Row, Solver
from fastscore.process.schedule import Array, Schedule, t_of_lam, transition
from fastscore.solvers.compose import between, planned, ratio, renoise
from fastscore.solvers.ode import Heun
from fastscore.solvers.sde import DDPM


@dataclass(frozen=True)
@typed
class Interval:
    """A restart: noise is added from rho = ``low`` to ``high``, then ``steps`` lead back; ``times`` times."""

    low: float
    high: float
    steps: int = 3
    times: int = 1

    def __post_init__(self) -> None:
        counts = 1 <= self.steps <= REPEATS and 1 <= self.times <= REPEATS
        if not (0.0 < self.low < self.high < math.inf and counts):
            raise ValueError(f"{self}: low < high must be positive, steps and times lie in 1 .. {REPEATS}")


@dataclass(frozen=True)
@typed
class Restart:
    r"""Restart: at some noise levels, go back up by fresh noise and solve the ODE down again.

        x / alpha <- x / alpha + noise sqrt(rho_high^2 - rho_low^2) z,   rho = sigma / alpha

    The way back has Karras levels (exponent 7). ``low`` is moved to the grid's nearest level below its first one.

    Args:
        intervals: restarts, any number; two at one level happen in the order given.
        solver: of the ODE; a multistep solver starts anew after each restart.
        noise: S_noise.

    Source: Xu et al. 2023, algorithm 1 and its published code (whose n levels are n - 1 steps).
    """

    intervals: tuple[Interval, ...]
    solver: Solver = field(default_factory=Heun)
    noise: float = 1.0

    def __post_init__(self) -> None:
        planned("Restart", self.solver)
        if not isinstance(self.intervals, tuple | list) or not all(isinstance(k, Interval) for k in self.intervals):
            raise ValueError(f"Restart: intervals = {short(self.intervals)} must be a tuple of Interval(low, high)")
        if not 0.0 < self.noise < math.inf:
            raise ValueError(f"Restart: noise = {self.noise} must be positive")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        rho = ratio(schedule, t)
        inner = np.flatnonzero((rho > 0.0) & (np.arange(len(t)) > 0))
        if not len(inner):
            return self.solver.steps(schedule, t)
        at = [int(inner[np.argmin(np.abs(rho[inner] - interval.low))]) for interval in self.intervals]
        groups = []
        for a, b in pairwise([0, *sorted({*at, len(t) - 1})]):
            groups += self.solver.steps(schedule, t[a : b + 1])
            for k, interval in zip(at, self.intervals, strict=True):
                if k == b:
                    groups[-1] = [*groups[-1], *self._restart(schedule, t[k], float(rho[k]), interval)]
        return groups

    def _restart(self, schedule: Schedule, low: np.float64, rho: float, interval: Interval) -> list[Row]:
        if interval.high <= rho:
            raise ValueError(f"{interval} lies below rho = {rho:.6g}, the grid's level nearest to its low end")
        levels = np.linspace(interval.high ** (1 / 7), rho ** (1 / 7), interval.steps + 1)[:-1] ** 7
        knots = np.append(t_of_lam(schedule, -np.log(levels)), low)
        back = [row for group in self.solver.steps(schedule, knots) for row in group]
        return [renoise(schedule, low, knots[0], self.noise), *back] * interval.times


@dataclass(frozen=True)
@typed
class RePaint:
    r"""RePaint's resampling: every ``jump`` steps back up by as many, and down again, ``times`` times in all.

        x_up = r x_t + sqrt(v) z,   the exact forward transition over ``jump`` intervals of the grid

    With known data (Known) each round harmonises the rest with it; without, it is Restart on every level. The
    jumps end at the last time before sigma = 0 and at every ``jump``-th knot above it.

    Args:
        solver: one that draws noise, as DDPM; a multistep solver starts anew after each jump.
        jump, times: j and r of the paper.

    Source: Lugmayr et al. 2022, algorithm 1 and appendix B; their jumps go step by step, which is the same law.
    """

    solver: Solver = field(default_factory=DDPM)
    jump: int = 10
    times: int = 10

    def __post_init__(self) -> None:
        planned("RePaint", self.solver)
        if self.jump < 1 or not 1 <= self.times <= REPEATS:
            raise ValueError(
                f"RePaint: jump = {self.jump} must be at least 1, and times = {self.times} lie in 1 .. {REPEATS}"
            )

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        last = len(t) - 2 if t[-1] == schedule.t_clean else len(t) - 1
        stops = [k for k in range(last, self.jump - 1, -self.jump)][::-1]
        groups = []
        for a, b in pairwise(sorted({0, *stops, len(t) - 1})):
            groups += between(self.solver, schedule, t[a : b + 1])
            if b in stops:
                top = b - self.jump
                r, v = transition(schedule, t[b], t[top])
                up = Row(float(t[b]), float(t[top]), float(r), 0.0, float(np.sqrt(v)), evaluate=False)
                back = [row for group in self.solver.steps(schedule, t[top : b + 1]) for row in group]
                groups[-1] = [*groups[-1], *[up, *back] * (self.times - 1)]
        return groups
