"""Few-step samplers of networks that leap to the data: an estimate of x_0, and noise on it again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastscore.errors import typed
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule
from fastscore.solvers.eta import checked_eta, eta_of
from fastscore.solvers.variants import published, published_repr


@dataclass(frozen=True)
@typed
class Renoise:
    r"""From x_t to the estimate of x_0 and back to the noise of s: "pingpong".

        x_s = alpha_s D + sigma_s (k eps + sqrt(1 - k^2) z),   k = 1 - gamma,   eps = (x_t - alpha_t D) / sigma_t

    gamma = 1, all noise new, is multistep consistency sampling, LCM, the stochastic steps of flow matching and Stable
    Audio's pingpong; gamma = 0 is DDIM; between them is TCD. A step to sigma = 0 is D.

    It is for networks whose D is a sample, as those of consistency models: distilled ones, and flow maps of two times.
    The D of a score network is a mean. All noise new then keeps no marginal of the data, however many steps there are,
    and too little of the spread is left.

    Args:
        gamma: share of the noise level that is new, 0 .. 1; one number, or one a step (see eta.py).
        of: the level that gamma shares out. "ratio" is sigma / alpha: x goes to k times that of s without noise, then
            up to s. "time" is t: x goes to the time k s, on a table to the whole index below, then up. That is TCD,
            whose last step goes to index 0 of its table, not to D: end the grid there.
        boundary: D is c_skip x_t + c_out D with c_skip = d^2 / (u^2 + d^2), c_out = u / sqrt(u^2 + d^2), u = boundary t
            and d = 1/2: LCM's networks, boundary = 10 on a table's indices. 0 for none; it goes with gamma = 1.
        sigma_min: what a consistency model takes for clean, as sigma / alpha, and so does not add again: the noise is
            alpha_s sqrt(rho_s^2 - sigma_min^2), with gamma = 1.

    Raises:
        ValueError: a value out of range, or options that exclude each other.

    Source: Song et al. 2023, algorithm 1 (sigma_min: their epsilon); Luo et al. 2023, algorithm 3, and appendix B.1 of
    the former (boundary); Zheng et al. 2024, algorithm 4 (TCD).
    """

    gamma: float | Callable[[float, float], float] = 1.0
    of: str = "ratio"
    boundary: float = published(0.0)
    sigma_min: float = published(0.0)
    order = 1
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_eta("Renoise", self.gamma, "gamma", most=1.0)
        if self.of not in ("ratio", "time"):
            raise ValueError(f"Renoise: of = {self.of!r} must be ratio or time")
        for name in ("boundary", "sigma_min"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"Renoise: {name} = {value} must be at least 0")
            if value and (self.gamma, self.of) != (1.0, "ratio"):
                raise ValueError(f"Renoise: {name} = {value} goes with gamma=1 and of='ratio'")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [[self._row(schedule, start, s)] for start, s in pairwise(t)]

    def _row(self, schedule: Schedule, t: np.float64, s: np.float64) -> Row:
        (alpha, alpha_s), (sigma, sigma_s) = (fn(np.array([t, s])) for fn in (schedule.alpha, schedule.sigma))
        k = self._kept(schedule, t, s)
        a = k * sigma_s / sigma
        b, c = alpha_s - alpha * a, sigma_s * np.sqrt((1.0 - k) * (1.0 + k))
        if self.boundary:
            u = self.boundary * t
            a, b = alpha_s * 0.25 / (u**2 + 0.25), alpha_s * u / np.sqrt(u**2 + 0.25)
        if self.sigma_min:
            least = alpha_s * self.sigma_min
            c = np.sqrt(np.maximum((sigma_s - least) * (sigma_s + least), 0.0))
        return Row(float(t), float(s), float(a), float(b), float(c))

    def _kept(self, schedule: Schedule, t: np.float64, s: np.float64) -> float:
        """Return the share k of the noise at s that is eps's."""
        if s == schedule.t_clean:
            return 0.0
        k = 1.0 - eta_of("Renoise", self.gamma, schedule, t, s, "gamma", 1.0)
        if self.of == "ratio":
            return k
        inner = max(np.floor(k * s), schedule.t_end) if schedule.t_clean == -1.0 else k * s
        alpha, sigma = schedule.alpha(np.array([inner, s])), schedule.sigma(np.array([inner, s]))
        return float(sigma[0] * alpha[1] / (sigma[1] * alpha[0]))
