"""torchdiffeq: fixed-grid methods on the probability-flow ODE dx/dsigma = eps(x; sigma)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

import fastscore as fs
from peers import SIGMA_MAX, SIGMA_MIN, Draw, Entry, Model, named


def entries(steps: int) -> list[Entry]:
    """Return midpoint and fourth-order Runge-Kutta on Karras' levels, down to sigma_min."""
    schedule = fs.EDM(SIGMA_MIN, SIGMA_MAX)

    def entry(name: str, method: str, solver: Any, n: int, tolerance: float = 1e-4) -> Entry:
        grid = fs.karras(n, clean=False)
        knots = torch.tensor(grid(schedule), dtype=torch.float32)

        def run(model: Model, z: Tensor, draw: Draw | None) -> Tensor:
            with torch.no_grad():
                return odeint(lambda t, x: model(x, t), z * SIGMA_MAX, knots.to(z.device), method=method)[-1]

        return Entry(named("torchdiffeq"), name, schedule, solver, grid, "eps", run, tolerance)

    return [
        entry("midpoint", "midpoint", fs.RK2(), max(2, steps // 2)),
        # Theirs is the 3/8 rule, ours the classical one: the same order, other errors.
        entry("RK4", "rk4", fs.RK4(), max(2, steps // 4), tolerance=0.05),
    ]
