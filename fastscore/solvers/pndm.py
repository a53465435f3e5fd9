r"""Pseudo numerical methods: classical weights for eps, exact transfer of x at constant eps.

    x_s = alpha_s/alpha_t x_t + (sigma_s - alpha_s/alpha_t sigma_t) eps'

eps' is an average of evaluations with the weights of even steps in t, whatever the grid; hence second order.
"""

from __future__ import annotations

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
