r"""Multistep predictor-correctors at one evaluation a step: the next evaluation corrects the step before it.

The predictor reaches x_p, where m is evaluated. The corrector replaces the step's polynomial by one that also passes
through that m, and the next step starts from the corrected x. Both differ by evaluations only,

    x_c = x_p + sum_j d_j m_j,

so correction and next prediction are one row and the state before the step needs no slot. Noise is the predictor's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule, lam
from fastscore.solvers.exponential import (
    Update,
    Weights,
    checked_eta,
    checked_order,
    checked_prediction,
    exact_weights,
    half_slope_weights,
    multistep_rows,
    step_coefficients,
    with_first_order_ends,
)
from fastscore.solvers.multistep import past

VARIANTS = ("bh1", "bh2", "vary")
Rule = Callable[[float, Weights], Weights]


@dataclass(frozen=True)
class UniPC:
    r"""UniPC-p: UniP-p, of order p, and UniC-p, which makes it p + 1.

    Args:
        p: 1 .. 3, evaluations of the predictor; the corrector has one more.
        variant: "bh1" (B = H) or "bh2" (B = 1 - e^-H) take B/2 for the weight of a slope from two
            evaluations; "vary" integrates exactly. From three evaluations on they are the same.
        prediction: "x0" or "eps".

    A step to sigma = 0 is D, which B = H = inf would make NaN; the order isn't lowered before it.

    Source: Zhao et al. 2023, algorithms 5 to 8 and section 3.3.
    """

    p: int = 3
    variant: str = "bh2"
    prediction: str = "x0"

    def __post_init__(self) -> None:
        checked_order("UniPC", self.p, 3)
        checked_prediction("UniPC", self.prediction)
        if self.variant not in VARIANTS:
            raise ValueError(f"UniPC: variant = {self.variant!r} must be one of {', '.join(VARIANTS)}")

    @property
    def order(self) -> int:
        """Order with the corrector."""
        return self.p + 1

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        def inner(schedule: Schedule, t: Array) -> list[list[Row]]:
            updates = corrected(schedule, t, self.prediction, 0.0, self.p, self.p + 1, self._weights)
            return multistep_rows(t, updates, self.prediction)

        return with_first_order_ends(schedule, t, inner)

    def _weights(self, H: float, nodes: Weights) -> Weights:
        if self.variant == "vary" or len(nodes) != 2:
            return exact_weights(H, nodes)
        # One of the two nodes is 0, the start of the step: the other one gives the slope.
        start, other = half_slope_weights(H, nodes[0] or nodes[1], H if self.variant == "bh1" else None)
        return [other, start] if nodes[0] else [start, other]


@dataclass(frozen=True)
class SASolver:
    r"""SA-Solver: stochastic Adams-Bashforth predictor and Adams-Moulton corrector in lam.

        x_s = sigma_s/sigma_t e^{-tau^2 h} x_t + sum_j b_j D_j + sigma_s sqrt(1 - e^{-2 tau^2 h}) z

    with b_j the integral of the Lagrange polynomial times (1 + tau^2) alpha_s e^{-(1 + tau^2)(lam_s - lam)}.

    Args:
        predictor: 1 .. 4, evaluations of the predictor.
        corrector: evaluations of the corrector, the new one included; 0 for none.
        tau: noise, 1 for Anderson's reverse SDE; the same at all times.

    Source: Xue et al. 2023, algorithm 1, eq. 14 and 17, without the published code's change of the
    second-order predictor.
    """

    predictor: int = 3
    corrector: int = 4
    tau: float = 1.0

    def __post_init__(self) -> None:
        checked_order("SASolver", self.predictor, 4)
        checked_eta("SASolver", self.tau, "tau")
        if self.corrector not in range(5):
            raise ValueError(f"SASolver: corrector = {self.corrector} must lie in 0 .. 4")

    @property
    def order(self) -> int:
        """Order of the ODE, tau = 0; with noise the variance is at most second order."""
        return min(self.corrector or self.predictor, self.predictor + 1)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        def inner(schedule: Schedule, t: Array) -> list[list[Row]]:
            return multistep_rows(
                t, corrected(schedule, t, "x0", self.tau, self.predictor, self.corrector, exact_weights), "x0"
            )

        return with_first_order_ends(schedule, t, inner)


def corrected(
    schedule: Schedule, t: Array, m: str, eta: float, predictor: int, corrector: int, rule: Rule
) -> list[Update]:
    """Return the updates from knot to knot, each with the correction of the step before it.

    Args:
        schedule, t, m, eta: see ``exponential``.
        predictor, corrector: evaluations that each may use, the corrector's new one included.
        rule: weights of evaluations at given theta.
    """
    values, updates, change = lam(schedule, t), [], []
    for k, (a, gain, H, c) in enumerate(zip(*step_coefficients(schedule, t[:-1], t[1:], m, eta), strict=True)):
        predict = [gain * v for v in rule(H, past(values, k, predictor))]
        updates.append((a, [p + a * d for p, d in zip_longest(predict, change, fillvalue=0.0)], c))
        if corrector:
            correct = [gain * v for v in rule(H, [1.0, *past(values, k, corrector - 1)])]
            change = [new - old for new, old in zip_longest(correct, [0.0, *predict], fillvalue=0.0)]
    return updates
