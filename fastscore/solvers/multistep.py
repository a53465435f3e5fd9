"""Multistep exponential integrators: one evaluation a step, earlier ones kept in history slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastscore.plan import Row
from fastscore.schedule import Array, Schedule, lam


@dataclass(frozen=True)
class DPMpp2M:
    r"""DPM-Solver++(2M): the linear part exactly, D extrapolated from two evaluations.

        x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) [(1 + 1/2r) D_t - 1/2r D_prev]

    with h = lam_s - lam_t and r = h_prev / h. The first step and a step to sigma = 0 (h = inf) are
    first order by the same formula, since 1/r is 0 or undefined there.

    Source: Lu et al. 2022b, algorithm 2.
    """

    order = 2

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        h = np.diff(lam(schedule, t))
        sigma, alpha = schedule.sigma(t), schedule.alpha(t)
        groups = []
        for k in range(len(h)):
            gain = float(-alpha[k + 1] * np.expm1(-h[k]))
            # 0 on the first step and on the last one to sigma = 0 (h = inf)
            extrapolate = float(0.5 * h[k] / h[k - 1]) if k and np.isfinite(h[k]) else 0.0
            row = Row(
                float(t[k]),
                float(t[k + 1]),
                a=float(sigma[k + 1] / sigma[k]),
                b=gain * (1.0 + extrapolate),
                w=(-gain * extrapolate,) if extrapolate else (),
                push=0 if k + 1 < len(h) else None,
            )
            groups.append([row])
        return groups
