r"""Pseudo numerical methods: weights for eps that no grid changes, exact transfer of x at constant eps.

    x_s = alpha_s/alpha_t x_t + (sigma_s - alpha_s/alpha_t sigma_t) eps'

eps' is an average of evaluations. PNDM and IPNDM have the weights of even steps in t, whatever the grid; hence second
order. GradientEstimation and HeunPP have weights of their own, of first order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastscore.errors import typed
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule
from fastscore.solvers.exponential import Update, checked_order, multistep_rows, one_step_rows, with_first_order_ends
from fastscore.solvers.multistep import transfer

ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
@typed
class IPNDM:
    """Improved PNDM: Adams-Bashforth weights, one more evaluation a step up to ``evaluations``.

    Source: Zhang & Chen 2023, section on iPNDM; the weights: Liu et al. 2022, eq. 12.
    """

    evaluations: int = 4

    def __post_init__(self) -> None:
        checked_order("IPNDM", self.evaluations, 4)

    @property
    def order(self) -> int:
        """Order on any grid."""
        return min(self.evaluations, 2)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        def inner(schedule: Schedule, t: Array) -> list[list[Row]]:
            counts = [min(k + 1, self.evaluations) for k in range(len(t) - 1)]
            return multistep_rows(t, _updates(schedule, t, counts), "eps")

        return with_first_order_ends(schedule, t, inner)


@dataclass(frozen=True)
@typed
class PNDM:
    """PNDM: four-evaluation Adams-Bashforth weights (PLMS) after a start of its own.

    Args:
        prk: whether the first three steps are pseudo Runge-Kutta steps of four evaluations each; if not,
            the first step is done again with the mean of eps at its two ends (diffusers' skip_prk_steps),
            and the orders rise from there.

    Source: Liu et al. 2022, algorithm 2 and eq. 12 and 13. Deviation: the step after three Runge-Kutta
    steps has three evaluations where theirs has four: that would take a fifth slot, since the third step needs three
    for its stages while those of steps 0 and 1 are kept. ``prk=False`` has no deviation and equals diffusers'.
    """

    prk: bool = True
    order = 2

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return with_first_order_ends(schedule, t, self._inner)

    def _inner(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        n, warm = len(t) - 1, min(3 if self.prk else 1, len(t) - 1)
        if self.prk:
            groups = [_runge_kutta(schedule, t[k], t[k + 1], k) for k in range(warm)]
        else:
            groups = [_trapezoid(schedule, t[0], t[1])]
        if n > warm:
            counts = [min(k if self.prk else k + 1, 4) for k in range(warm, n)]
            groups += multistep_rows(t[warm:], _updates(schedule, t[warm:], counts), "eps", warm, 3)
        return groups


@dataclass(frozen=True)
@typed
class GradientEstimation:
    r"""Gradient estimation: DDIM with eps moved on from the last one, against the error of the estimate before it.

        eps' = gamma eps_t + (1 - gamma) eps_prev

    First order, but for gamma = 3/2 on even steps in rho = sigma / alpha, where it is Adams-Bashforth; gamma = 1 is
    DDIM. The first step and a step to sigma = 0 are DDIM's.

    Args:
        gamma: 2 is the paper's choice; at least 0.

    Raises:
        ValueError: gamma out of range.

    Source: Permenter & Yuan 2024, algorithm 2 and eq. 11.
    """

    gamma: float = 2.0
    order = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < math.inf:
            raise ValueError(f"GradientEstimation: gamma = {self.gamma} must be at least 0")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return with_first_order_ends(schedule, t, self._inner)

    def _inner(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        a, gain = transfer(schedule, t[:-1], t[1:])
        weights = [(1.0,), *[(self.gamma, 1.0 - self.gamma)] * (len(a) - 1)]
        return multistep_rows(t, [(a[k], [gain[k] * v for v in w], 0.0) for k, w in enumerate(weights)], "eps")


@dataclass(frozen=True)
@typed
class HeunPP:
    r"""Heun++2: Euler's step with an average of eps at its start, its end and the end of the next step.

        eps' = (1 - w_s - w_u) eps_t + w_s eps_s + w_u eps_u,   w_s = rho_s / 3 rho_0,   w_u = rho_u / 3 rho_0

    with rho = sigma / alpha, u the knot after s, eps_u at the end of an Euler step from s, and rho_0 that of the first
    knot with a signal. The last step but one has w_s = rho_s / 2 rho_0 alone, the last is Euler's. What a step does
    depends on where the run began, and the weights vanish with rho: first order, at three evaluations a step. It is
    here since users of ComfyUI know it; Heun, at two evaluations, is second order. Churn and AncestralSplit hand a
    solver one interval at a time, which leaves Euler's step of it.

    Source: ComfyUI's sample_heunpp2, after Carzit's code; there is no paper.
    """

    order = 1

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return with_first_order_ends(schedule, t, lambda on, knots: self._inner(on, knots, knots[-1] != t[-1]))

    def _inner(self, schedule: Schedule, t: Array, clean: bool) -> list[list[Row]]:
        rho = schedule.sigma(t) / schedule.alpha(t)
        ends, groups = len(t) - (not clean), []  # the knot that the last step goes to is no stage of another
        for k in range(len(t) - 1):
            stages = range(k + 1, min(k + 3, ends))
            weights = [float(rho[j] / (len(stages) + 1) / rho[0]) for j in stages]
            groups.append(_averaged(schedule, t, k, [1.0 - sum(weights), *weights]))
        return groups


def _averaged(schedule: Schedule, t: Array, k: int, weights: list[float]) -> list[Row]:
    """Return a step that goes over the next knots by Euler's, and back to the first of them with averaged eps."""
    times = np.array([*t[k : k + len(weights)], t[k + 1]])
    alpha = schedule.alpha(times)
    rho, a = schedule.sigma(times) / alpha, alpha[1:] / alpha[0]
    steps = np.diff(rho[:-1])
    stages = [[*alpha[i + 1] * steps[: i + 1]] for i in range(len(steps))]
    last = alpha[-1] * (rho[-1] - rho[0]) * np.array(weights)
    return one_step_rows(times, a.tolist(), [[float(v) for v in row] for row in (*stages, last)], "eps")


def _updates(schedule: Schedule, t: Array, counts: list[int]) -> list[Update]:
    a, gain = transfer(schedule, t[:-1], t[1:])
    return [(a[k], [gain[k] * v for v in ADAMS[n - 1]], 0.0) for k, n in enumerate(counts)]


def _runge_kutta(schedule: Schedule, t: np.float64, s: np.float64, k: int) -> list[Row]:
    middle = 0.5 * (t + s)
    (half, a), (gain_half, gain) = transfer(schedule, np.array([t]), np.array([middle, s]))
    weights = [
        [gain_half],
        [0.0, gain_half],
        [0.0, 0.0, gain],
        [gain / 6, gain / 3, gain / 3, gain / 6],
    ]
    # Slot k is the ring's; of the others, the third step takes the one of step 0.
    slots = ((0, 1, 2), (1, 0, 3), (2, 0, 3))[k]
    return one_step_rows([t, middle, middle, s, s], [half, half, a, a], weights, "eps", slots)


def _trapezoid(schedule: Schedule, t: np.float64, s: np.float64) -> list[Row]:
    (a,), (gain,) = transfer(schedule, np.array([t]), np.array([s]))
    return one_step_rows([t, s, s], [a, a], [[gain], [gain / 2, gain / 2]], "eps")
