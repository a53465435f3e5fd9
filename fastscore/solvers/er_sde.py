"""ER-SDE solvers: reverse SDEs of any noise scale phi, and their multistep methods in rho = sigma / alpha."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastscore.errors import typed, unknown
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule
from fastscore.solvers.exponential import (
    Weights,
    checked_order,
    lagrange_weights,
    multistep_rows,
    quadrature,
    with_first_order_ends,
)
from fastscore.solvers.multistep import past
from fastscore.solvers.variants import published, published_repr

# ln(phi(rho) / rho), which does not overflow; of the ODE 0.
NOISE_SCALES: dict[str, Callable[[Array], Array]] = {
    "ode": np.zeros_like,
    "sde": np.log,
    "sde_1": lambda v: np.log(np.exp(-1.0 / v) + 10.0),
    "sde_2": lambda v: 0.5 * np.log(v),
    "sde_3": lambda v: 1.5 * np.log(v),
    "sde_4": lambda v: np.log(np.log1p(100.0 * v**1.5)) - 0.1 * np.log(v),
    "sde_5": lambda v: np.logaddexp(v**0.3, math.log(10.0)),
}
FORMS = ("exact", "taylor")


@dataclass(frozen=True)
@typed
class ERSDE:
    r"""ER-SDE-Solver-1/2/3: the reverse SDE with noise scale phi, D a polynomial in rho = sigma / alpha.

        x_s / alpha_s = k x_t / alpha_t + int_k^1 D(v(q)) dq + sqrt(rho_s^2 - k^2 rho_t^2) z

    with q(v) = phi(rho_s) / phi(v) and k = q(rho_t): an SDE with the forward SDE's marginals for every phi with
    phi(rho) / rho rising. phi = rho is the probability-flow ODE, phi = rho^2 Anderson's reverse SDE.

    Args:
        order: 1 .. 3, evaluations used, one more a step; of the ODE and, with noise, of the mean. The variance is
            second order from order 2 on.
        noise_scale: phi, by the authors' names: "ode" rho, "sde" rho^2, "sde_1" rho (e^{-1/rho} + 10), "sde_2" rho^1.5,
            "sde_3" rho^2.5, "sde_4" rho^0.9 log10(1 + 100 rho^1.5), up to rho = 1022, and "sde_5", their choice,
            rho (e^{rho^0.3} + 10). A number from 1 on is the power of rho: 1 + eta^2 is the SDE of eta elsewhere here
            (ComfyUI's "Reverse-time SDE", whose eta is that power less 1).
        form: how D goes on from its last evaluations. "exact" is the polynomial through all of them. "taylor", the
            paper's, has the slope of the last two at rho_t where order 3 needs the derivative there, which leaves it
            second order.
        points: of the integral over a step: 0 is exact, a number that of a left Riemann sum: 100 in the authors' code
            and 200 in ComfyUI, whose results are some 1e-4 off.
        floor: variances of x_s / alpha_s below it count as none; 1e-6 in the authors' code.

    A step to sigma = 0 is D.

    Raises:
        ValueError: a value out of range; a grid on which phi(rho) / rho falls.

    Source: Cui et al. 2023 (ER-SDE-Solver), proposition 3 and algorithms 1 to 3; phi: their section 4.2 and code.
    """

    order: int = 3
    noise_scale: str | float = "sde_5"
    form: str = published("exact")
    points: int = published(0)
    floor: float = published(0.0)
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_order("ERSDE", self.order, 3)
        scale = self.noise_scale
        if not (scale in NOISE_SCALES if isinstance(scale, str) else 1.0 <= scale < math.inf):
            raise unknown("ERSDE: noise_scale", scale, NOISE_SCALES, ", or a power of rho from 1 on")
        if self.form not in FORMS:
            raise ValueError(f"ERSDE: form = {self.form!r} must be exact or taylor")
        if not 0 <= self.points <= 1 << 20:
            raise ValueError(f"ERSDE: points = {self.points} must lie in 0 .. {1 << 20}; 0 integrates exactly")
        if not 0.0 <= self.floor < math.inf:
            raise ValueError(f"ERSDE: floor = {self.floor} must be at least 0")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return with_first_order_ends(schedule, t, self._inner)

    def _inner(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        alpha = schedule.alpha(t)
        rho, updates = schedule.sigma(t) / alpha, []
        log_share = np.diff(self._scale(rho))  # of k in rho_s / rho_t
        if np.any(log_share > 0.0):
            worst = float(rho[int(np.argmax(log_share))])
            raise ValueError(
                f"ERSDE: phi(rho) / rho of noise_scale = {self.noise_scale!r} falls at rho = {worst:.6g}, where no SDE "
                "has it; start the grid later, or use sde_5"
            )
        variance = rho[1:] ** 2 * -np.expm1(2.0 * log_share)
        c = alpha[1:] * np.sqrt(np.where(variance > self.floor, variance, 0.0))
        for k in range(len(t) - 1):
            kept = float(rho[k + 1] / rho[k] * np.exp(log_share[k]))
            nodes = past(rho, k, self.order)
            v = self._weights(nodes, self._moments(rho[k], rho[k + 1], kept, len(nodes)))
            updates.append((float(alpha[k + 1] / alpha[k]) * kept, [float(alpha[k + 1]) * w for w in v], float(c[k])))
        return multistep_rows(t, updates, "x0")

    def _scale(self, rho: Array) -> Array:
        """Return ln(phi(rho) / rho)."""
        if isinstance(self.noise_scale, str):
            return NOISE_SCALES[self.noise_scale](rho)
        return (self.noise_scale - 1.0) * np.log(rho)

    def _moments(self, high: float, low: float, kept: float, n: int) -> Weights:
        """Return int_k^1 theta^j dq for j < n, by parts; theta is 0 at the start of a step and 1 at its end."""
        if n == 1:
            return [1.0 - kept]
        if self.points:
            theta, weights = 1.0 - np.arange(self.points) / self.points, np.full(self.points, 1.0 / self.points)
            v = high + theta * (low - high)
        else:
            v, weights = quadrature(low, high)
            theta, weights = (v - high) / (low - high), weights / (high - low)
        q = low / v * np.exp(self._scale(np.array(low)) - self._scale(v)) * weights
        return [1.0 - kept, *(float(1.0 - j * np.sum(theta ** (j - 1) * q)) for j in range(1, n))]

    def _weights(self, nodes: Weights, moments: Weights) -> Weights:
        if self.form == "exact" or len(nodes) < 3:
            return lagrange_weights(nodes, moments)
        first, second = nodes[1:]  # Taylor: the slope between the last two evaluations, and twice the second difference
        total, slope, curvature = moments
        d, dd = np.array([-1.0, 1.0, 0.0]) / first, np.array([0.0, -1.0, 1.0]) / (second - first)
        return (total * np.array([1.0, 0.0, 0.0]) + slope * d + curvature * (dd - d) / second).tolist()
