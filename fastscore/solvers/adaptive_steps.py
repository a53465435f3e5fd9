"""One attempted step of each adaptive solver, as weights of what was evaluated.

The state at the step's start, y, and the evaluations k_0, k_1, .. (with a noise increment last, if there is one)
make every point that a step evaluates, its result and its error:

    point_j = w_0 y + sum_i w_(1+i) k_i

Weights depend on the clock and the step, float64 [lanes] each: a sample has its own. Evaluation 0 is at y itself.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from fastscore.solvers.adaptive import Adaptive, DPMAdaptive, GottaGoFast, Tableau


class Method(Protocol):
    """One attempted step of a solver, stage by stage.

    Attributes:
        quantity: what an evaluation gives; see engine/adaptive/field.py.
        stages: evaluations of a step, the first included.
        width: of the weights; 1 + stages, and 1 more for noise.
        fsal: whether the last evaluation is at the result.
    """

    quantity: str
    stages: int
    width: int
    fsal: bool

    def lam(self, tau: Tensor) -> Tensor:
        """Return lam at clock ``tau``."""
        ...

    def point(self, stage: Tensor, tau: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each lane evaluates next: its place in the step, 0 .. 1, and weights [lanes, width]."""
        ...

    def finish(self, tau: Tensor, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the weights of result and error; None for the last point, and for no error."""
        ...


def angle_to_lam(phi: Tensor) -> Tensor:
    """Return lam = -ln tan phi."""
    return -torch.log(torch.tan(phi))


class RungeKutta:
    """y' = y + h sum_i b_i k_i in the angle; the quantity is v."""

    quantity = "v"

    def __init__(self, tableau: Tableau, device: torch.device) -> None:
        self.fsal, self.stages = tableau.fsal, len(tableau.nodes)
        self.width = 1 + self.stages

        def padded(row: tuple[float, ...]) -> list[float]:
            return [0.0, *row, *[0.0] * (self.stages - len(row))]

        def tensor(values: list) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        self.nodes = tensor(list(tableau.nodes))
        self.rows = tensor([padded(row) for row in tableau.rows])
        self.start = tensor([1.0, *[0.0] * self.stages])
        self.error = tensor(padded(tableau.error)) if tableau.error else None

    def lam(self, tau: Tensor) -> Tensor:
        return angle_to_lam(tau)

    def point(self, stage: Tensor, tau: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.nodes[stage], self._weights(self.rows[stage], h)

    def finish(self, tau: Tensor, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        result = None if self.fsal else self._weights(self.rows[-1].expand(len(h), -1), h)
        return result, None if self.error is None else self.error * h[:, None]

    def _weights(self, rows: Tensor, h: Tensor) -> Tensor:
        return rows * h[:, None] + self.start


class DPM:
    """DPM-Solver-12 or -23 in lam, on the unit circle; the quantity is eps. Source: Lu et al. 2022a, alg. 1 and 2."""

    quantity, fsal = "eps", False

    def __init__(self, order: int, device: torch.device) -> None:
        self.order, self.stages, self.width = order, order, 1 + order
        nodes, gains = ((0.0, 0.5), (0.0, 0.0)) if order == 2 else ((0.0, 1 / 3, 2 / 3), (0.0, 0.0, 2.0))
        self.nodes = torch.tensor(nodes, dtype=torch.float64, device=device)
        self.gains = torch.tensor(gains, dtype=torch.float64, device=device)  # r_2 / r_1 in the third evaluation

    def lam(self, tau: Tensor) -> Tensor:
        return tau

    def point(self, stage: Tensor, tau: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        r = self.nodes[stage]
        a, sigma, growth, mean = self._step(tau, r * h)
        slope = self.gains[stage] * sigma * mean
        zeros = [torch.zeros_like(a)] * (self.order - 1)
        columns = [a, slope - sigma * growth, -slope, *zeros]
        return r, torch.stack(columns[: self.width], 1)

    def finish(self, tau: Tensor, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, sigma, growth, mean = self._step(tau, h)
        first, zero = -sigma * growth, torch.zeros_like(a)
        if self.order == 2:  # the slope between 0 and h/2, against none
            return torch.stack([a, zero, first], 1), torch.stack([zero, -first, first], 1)
        slope, rough = 1.5 * sigma * mean, 1.5 * first  # between 0 and 2h/3, against 0 and h/3
        result = torch.stack([a, first + slope, zero, -slope], 1)
        return result, torch.stack([zero, slope + rough, -rough, -slope], 1)

    def _step(self, tau: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return alpha'/alpha, sigma', e^h - 1 and (e^h - 1)/h - 1 of a step from lam = tau by h."""
        end = tau + h
        ratio = torch.sqrt((1.0 + torch.exp(-2.0 * tau)) / (1.0 + torch.exp(-2.0 * end)))
        growth = torch.expm1(h)
        return ratio, _sigma(end), growth, growth / h.masked_fill(h == 0.0, 1.0) - 1.0


class ImprovedEuler:
    """Stochastic Improved Euler in lam, on the unit circle, against Euler-Maruyama; the quantity is the drift.

    x_low = x + h k_0 + g dW,   x_high = x + h (k_0 + k_1) / 2 + (g + g') dW / 2,   g = sqrt(2) sigma

    with k_1 at x_low. Source: Jolicoeur-Martineau et al. 2021, algorithm 1.
    """

    quantity, fsal, stages, width = "drift", False, 2, 4

    def __init__(self, device: torch.device) -> None:
        self.nodes = torch.tensor((0.0, 1.0), dtype=torch.float64, device=device)

    def lam(self, tau: Tensor) -> Tensor:
        return tau

    def point(self, stage: Tensor, tau: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        second = self.nodes[stage]
        zero = torch.zeros_like(h)
        return second, torch.stack([zero + 1.0, second * h, zero, second * math.sqrt(2.0) * _sigma(tau)], 1)

    def finish(self, tau: Tensor, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        g, g_end = _sigma(tau) * math.sqrt(0.5), _sigma(tau + h) * math.sqrt(0.5)
        half, zero = 0.5 * h, torch.zeros_like(h)
        return torch.stack([zero + 1.0, half, half, g + g_end], 1), torch.stack([zero, -half, half, g_end - g], 1)


def method_of(solver: Adaptive | Tableau, device: torch.device) -> Method:
    """Return the step of a solver."""
    if isinstance(solver, DPMAdaptive):
        return DPM(solver.order, device)
    if isinstance(solver, GottaGoFast):
        return ImprovedEuler(device)
    return RungeKutta(solver if isinstance(solver, Tableau) else solver.tableau, device)  # pyright: ignore


def _sigma(lam: Tensor) -> Tensor:
    return 1.0 / torch.sqrt(1.0 + torch.exp(2.0 * lam))
