r"""Stochastic steps that reinforcement learning explores with: flow-SDE, DanceGRPO's SDE and CPS.

Each is a step of the probability-flow ODE with noise of a level of one's choice, x_s ~ N(mean, c^2): a policy with a
density. Their formulas are published for flow matching, alpha = 1 - t and sigma = t; they are written here for any
schedule, and are those there. See engine/rollout.py for what is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fastscore.errors import typed
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule
from fastscore.solvers.eta import checked_eta, eta_of
from fastscore.solvers.sde import denoise
from fastscore.solvers.variants import published, published_repr


@dataclass(frozen=True)
@typed
class FlowSDE:
    r"""Flow-GRPO's SDE: Euler-Maruyama on the reverse SDE whose noise is a multiple of the forward SDE's.

        x_s = x_t - h v + h G^2/2 score + G sqrt(h) z,   h = t - s,   G^2 = a^2 g^2 / 2

    v is dx/dt of the probability-flow ODE. On flow matching G = a sqrt(t / (1 - t)). At pure noise, alpha = 0, where g
    is infinite, 1 / alpha is that of the first step's end in place of its start. At a = sqrt(2) it is
    EulerMaruyama(), at a = 0 Euler().

    Args:
        noise_level: a, at least 0; one number, or one a step (see eta.py).
        last_noise: a step to sigma = 0 adds noise too, as in the published code, whose samples are then noisy. Without
            it that step is E[x_0 | x_t].

    Raises:
        ValueError: a noise level out of range; last_noise on a schedule whose clean end lies at -inf.

    Source: Liu et al. 2025 (Flow-GRPO, arXiv 2505.05470); the first step as in their code.
    """

    noise_level: float | Callable[[float, float], float] = 0.7
    last_noise: bool = published(False)
    order = 1
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_eta(type(self).__name__, self.noise_level, "noise_level")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [[self._row(schedule, t, s)] for t, s in pairwise(t)]

    def _row(self, schedule: Schedule, t: np.float64, s: np.float64) -> Row:
        if s == schedule.t_clean and not self.last_noise:
            return denoise(t, s)
        alpha = schedule.alpha(t) or schedule.alpha(s)
        level = eta_of("FlowSDE", self.noise_level, schedule, float(t), float(s), "noise_level")
        return _diffused(schedule, t, s, level**2 * schedule.sigma(t) * _wronskian(schedule, t) / alpha)


@dataclass(frozen=True)
@typed
class DanceSDE:
    r"""DanceGRPO's SDE: the same step with noise of one strength in the schedule's own time, G = a.

        x_s = x_t - h v + h a^2/2 score + a sqrt(h) z,   h = t - s

    Args:
        noise_level: a, at least 0, one number or one a step: of the square root of a unit of time, which is 1 from data
            to noise in flow matching, but a level of noise on EDM and an index on a table.
        last_noise: as for FlowSDE. The published code then decodes E[x_0 | x_t] of the last step and leaves x_s.

    Raises:
        ValueError: a noise level out of range; last_noise on a schedule whose clean end lies at -inf.

    Source: Xue et al. 2025 (DanceGRPO, arXiv 2505.07818), and their code.
    """

    noise_level: float | Callable[[float, float], float] = 0.3
    last_noise: bool = published(False)
    order = 1
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_eta(type(self).__name__, self.noise_level, "noise_level")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [[self._row(schedule, t, s)] for t, s in pairwise(t)]

    def _row(self, schedule: Schedule, t: np.float64, s: np.float64) -> Row:
        if s == schedule.t_clean and not self.last_noise:
            return denoise(t, s)
        level = eta_of("DanceSDE", self.noise_level, schedule, float(t), float(s), "noise_level")
        return _diffused(schedule, t, s, level**2)


@dataclass(frozen=True)
@typed
class CPS:
    r"""Coefficients-preserving sampling: DDIM with one share of the noise drawn anew in every step.

        x_s = alpha_s D + cos(a pi/2) sigma_s eps + sin(a pi/2) sigma_s z

    A step to sigma = 0 is D. At a = 0 it is DDIM(), at a = 1 every step begins from D alone. The share does not shrink
    with the step, so this is the step of no SDE, and does not converge to the model's distribution: at a = 0.8 Gaussian
    data come out a fifth too narrow, in however many steps.

    Args:
        noise_level: a, 0 .. 1; one number, or one a step (see eta.py).

    Raises:
        ValueError: a noise level out of range.

    Source: Wang & Yu 2025 (Coefficients-Preserving Sampling, arXiv 2509.05952), and their code.
    """

    noise_level: float | Callable[[float, float], float] = 0.8
    order = 1

    def __post_init__(self) -> None:
        checked_eta("CPS", self.noise_level, "noise_level", 1.0)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [[self._row(schedule, t, s)] for t, s in pairwise(t)]

    def _row(self, schedule: Schedule, t: np.float64, s: np.float64) -> Row:
        if s == schedule.t_clean:
            return denoise(t, s)
        level = eta_of("CPS", self.noise_level, schedule, float(t), float(s), "noise_level", 1.0)
        angle, sigma = 0.5 * math.pi * level, float(schedule.sigma(s))
        a = math.cos(angle) * sigma / float(schedule.sigma(t))
        return Row(float(t), float(s), a, float(schedule.alpha(s) - schedule.alpha(t) * a), math.sin(angle) * sigma)


def _wronskian(schedule: Schedule, t: np.float64) -> np.float64:
    """Return alpha sigma' - alpha' sigma; g^2 is 2 sigma / alpha times it."""
    return np.float64(schedule.alpha(t) * schedule.dsigma(t) - schedule.dalpha(t) * schedule.sigma(t))


def _diffused(schedule: Schedule, t: np.float64, s: np.float64, strength: Any) -> Row:
    """Return Euler's step with noise of G^2 = ``strength``; in v, so that it exists at pure noise.

    score = -eps / sigma, and eps = (alpha v - alpha' x) / (alpha sigma' - alpha' sigma).
    """
    if not math.isfinite(s):
        raise ValueError(
            f"last_noise: the clean end of {type(schedule).__name__} lies at t = {s}, and the step there has no "
            "length; leave it out"
        )
    h = t - s
    pull = 0.5 * h * strength / (schedule.sigma(t) * _wronskian(schedule, t))
    a, b = 1.0 + pull * schedule.dalpha(t), -h - pull * schedule.alpha(t)
    return Row(float(t), float(s), float(a), float(b), float(np.sqrt(h * strength)), m="flow")
