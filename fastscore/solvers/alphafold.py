"""AlphaFold 3's step: noise above a threshold, and steps longer than the ODE's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastscore.errors import typed
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule
from fastscore.solvers.compose import ratio, renoise, time_at
from fastscore.solvers.variants import published, published_repr


@dataclass(frozen=True)
@typed
class AlphaFold3:
    r"""The sampler of AlphaFold 3 and Boltz, rho = sigma / alpha being its sigma.

        rho^ = rho_t (1 + gamma),   gamma = gamma_0 if rho_s > gamma_min, else 0,
        x / alpha <- x / alpha + noise_scale sqrt(rho^^2 - rho_t^2) z,
        x_s / alpha_s = x / alpha + step_scale (rho_s - rho^) eps(x, rho^)

    With noise_scale = step_scale = 1 the marginals stay. A step_scale above 1 keeps none, by intent: it trades variety
    for likely samples, as a lower temperature would, and a step to sigma = 0 goes past D by (step_scale - 1)(D - x).
    rho^ does not exceed the schedule's rho(T). A step from pure noise is the ODE's, where x is all noise and its
    direction none. Rotations and centring of positions are the network's: see Centred.

    Args:
        gamma_0, gamma_min: how much noise, in shares of rho, and above which rho_s.
        noise_scale, step_scale: factors of the noise and of the step.
        beyond: rho^ may exceed rho(T), as in both codes; see Churn.

    Raises:
        ValueError: a value out of range; ``beyond`` on a schedule that has no more noise.

    Source: Abramson et al. 2024, supplement, algorithm 18; Boltz (Wohlwend et al. 2024) with its defaults.
    """

    gamma_0: float = 0.8
    gamma_min: float = 1.0
    noise_scale: float = 1.003
    step_scale: float = 1.5
    beyond: bool = published(False)
    order = 1
    __repr__ = published_repr

    def __post_init__(self) -> None:
        for name in ("gamma_0", "gamma_min", "noise_scale"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"AlphaFold3: {name} = {getattr(self, name)} must be at least 0")
        if not 0.0 < self.step_scale < math.inf:
            raise ValueError(f"AlphaFold3: step_scale = {self.step_scale} must be positive")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        rho, top = ratio(schedule, t), math.inf if self.beyond else float(ratio(schedule, schedule.T))
        gamma = np.where(rho[1:] > self.gamma_min, self.gamma_0, 0.0)
        raised = np.where(gamma > 0.0, np.minimum(rho[:-1] * (1.0 + gamma), top), rho[:-1])
        start, up = np.array(t[:-1]), raised > rho[:-1]
        if np.any(up):
            start[up] = time_at(schedule, raised[up])
        groups = []
        for k, (t_hat, s) in enumerate(zip(start, t[1:], strict=True)):
            rows = [renoise(schedule, t[k], t_hat, self.noise_scale)] if up[k] else []
            groups.append([*rows, self._step(schedule, t_hat, s)])
        return groups

    def _step(self, schedule: Schedule, t: np.float64, s: np.float64) -> Row:
        (alpha, alpha_s), (sigma, sigma_s) = (fn(np.array([t, s])) for fn in (schedule.alpha, schedule.sigma))
        ahead, longer = sigma_s / sigma, self.step_scale - 1.0 if alpha > 0.0 else 0.0
        a = ahead - longer * (alpha_s / alpha - ahead) if longer else ahead
        b = (1.0 + longer) * (alpha_s - alpha * ahead)
        return Row(float(t), float(s), float(a), float(b))
