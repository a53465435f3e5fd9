"""Runge-Kutta methods on the probability-flow ODE dx/dt = alpha' D + sigma' eps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastscore.plan import Row
from fastscore.schedule import Array, Schedule
from fastscore.solvers.sde import denoise


@dataclass(frozen=True)
class Euler:
    """x_s = x_t - h d_t,  d = dx/dt of the probability-flow ODE.

    In the schedule's own time: on EDM this is EDM's Euler, on VE or VP Song's. ``denoise`` replaces
    a step to sigma = 0 by x_s = D, which leaves no noise behind on any schedule.
    """

    denoise: bool = True
    order = 1

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [[self._row(schedule, t, s)] for t, s in pairwise(t)]

    def _row(self, schedule: Schedule, t: np.float64, s: np.float64) -> Row:
        if s == schedule.t_clean and (self.denoise or not np.isfinite(s)):
            return denoise(t, s)
        return Row(float(t), float(s), a=1.0, b=float(s - t), m="flow")


@dataclass(frozen=True)
class Heun:
    """Heun's second-order method; a step to sigma = 0 is Euler's.

    x_e = x_t - h d_t,   x_s = x_e - h/2 (d_s - d_t). Source: Karras et al. 2022, algorithm 1.
    """

    denoise: bool = True
    order = 2

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [self._rows(schedule, t, s) for t, s in pairwise(t)]

    def _rows(self, schedule: Schedule, t: np.float64, s: np.float64) -> list[Row]:
        if s == schedule.t_clean:
            return Euler(self.denoise).steps(schedule, np.array([t, s]))[0]
        h = float(t - s)
        predict = Row(float(t), float(s), a=1.0, b=-h, m="flow", push=0)
        return [predict, Row(float(s), float(s), a=1.0, b=-0.5 * h, w=(0.5 * h,), m="flow")]
