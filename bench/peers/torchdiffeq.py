"""torchdiffeq: fixed-grid methods on the probability-flow ODE dx/dsigma = eps(x; sigma)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

import fastscore as fs
from bench.peers import SIGMA_MAX, SIGMA_MIN, Draw, Entry, Model, versioned
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule
from fastscore.solvers.exponential import one_step_rows


class ThreeEighths:
    """The 3/8 rule, torchdiffeq's "rk4", written for fastscore outside of it: a Butcher tableau. Source: Kutta 1901."""

    order = 4

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        """Return four evaluations for each interval."""
        table = ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0), (1 / 8, 3 / 8, 3 / 8, 1 / 8))
        groups = []
        for t0, t1 in pairwise(t):
            h = float(t1 - t0)
            times = [t0, t0 + h / 3, t0 + 2 * h / 3, t1, t1]
            groups.append(one_step_rows(times, [1.0] * 4, [[h * v for v in row] for row in table], "flow"))
        return groups


def entries(steps: int) -> list[Entry]:
    """Return midpoint and fourth-order Runge-Kutta on Karras' levels, down to sigma_min."""
    schedule = fs.EDM(SIGMA_MIN, SIGMA_MAX)

    def entry(name: str, method: str, solver: Any, n: int) -> Entry:
        grid = fs.karras(n, clean=False)
        knots = torch.tensor(grid(schedule), dtype=torch.float32)

        def run(model: Model, z: Tensor, draw: Draw | None) -> Tensor:
            with torch.no_grad():
                return odeint(lambda t, x: model(x, t), z * SIGMA_MAX, knots.to(z.device), method=method)[-1]

        return Entry(versioned("torchdiffeq"), name, schedule, solver, grid, "eps", run)

    return [
        entry("midpoint", "midpoint", fs.RK2(), max(2, steps // 2)),
        entry("RK4 (3/8 rule)", "rk4", ThreeEighths(), max(2, steps // 4)),
    ]
