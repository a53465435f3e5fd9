r"""Multistep predictor-correctors at one evaluation a step: the next evaluation corrects the step before it.

The predictor reaches x_p, where m is evaluated. The corrector replaces the step's polynomial by one that also passes
through that m, and the next step starts from the corrected x. Both differ by evaluations only,

    x_c = x_p + sum_j d_j m_j,

so correction and next prediction are one row and the state before the step needs no slot. Noise is the predictor's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from fastscore.errors import short, typed, unknown
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule, lam
from fastscore.solvers.eta import EtaWindow, checked_eta, etas_of
from fastscore.solvers.exponential import (
    Update,
    Weights,
    checked_order,
    checked_prediction,
    exact_weights,
    half_slope_weights,
    multistep_rows,
    reach_of,
    step_coefficients,
    with_first_order_ends,
    within_reach,
)
from fastscore.solvers.multistep import Rule, past, predicted
from fastscore.solvers.variants import published, published_repr

VARIANTS = ("bh1", "bh2", "vary")
LOWERINGS = ("", "diffusers", "comfyui")
Step = tuple[float, list[float], list[float], float]  # a, prediction, what the correction adds (its new m first), c


@dataclass(frozen=True)
@typed
class UniPC:
    r"""UniPC-p: UniP-p, of order p, and UniC-p, which makes it p + 1.

    Args:
        p: 1 .. 3, evaluations of the predictor; the corrector has one more. The third pays from some 20 steps on, and
            is taken where ``reach`` allows.
        variant: "bh1" (B = H) or "bh2" (B = 1 - e^-H) take B/2 for the weight of a slope from two
            evaluations; "vary" integrates exactly. From three evaluations on they are the same.
        prediction: "x0" or "eps".
        lower_order_final: p is at most the number of steps left, in runs of any length: ComfyUI's rule, and the
            default of diffusers.
        disable_corrector: numbers of the steps, from 0 on, that stay as predicted; diffusers' option.
        reach: the span of lam above which steps of p = 3 in x0 are steps of p = 2; as of DPMMultistep.

    A step to sigma = 0 is D, which B = H = inf would make NaN.

    Raises:
        ValueError: p, variant, prediction, a step's number or reach out of range.

    Source: Zhao et al. 2023, algorithms 5 to 8 and section 3.3.
    """

    p: int = 2
    variant: str = "bh2"
    prediction: str = "x0"
    lower_order_final: bool = published(False)
    disable_corrector: tuple[int, ...] = published(())
    reach: float | None = published(None)
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_order("UniPC", self.p, 3)
        checked_prediction("UniPC", self.prediction)
        if self.variant not in VARIANTS:
            raise unknown("UniPC: variant", self.variant, VARIANTS)
        steps = self.disable_corrector
        if not isinstance(steps, tuple | list) or not all(isinstance(k, int) and k >= 0 for k in steps):
            raise ValueError(f"UniPC: disable_corrector = {short(steps)} must be numbers of steps, from 0 on")
        self._reach()

    def _reach(self) -> float:
        as_published = self.lower_order_final or bool(self.disable_corrector)
        return reach_of("UniPC", self.reach, self.p < 3 or self.prediction == "eps" or as_published)

    @property
    def order(self) -> int:
        """Order with the corrector."""
        return self.p + 1

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        steps = len(t) - 1

        def inner(schedule: Schedule, t: Array, clean: bool) -> list[list[Row]]:
            n = len(t) - 1
            left = [n - k + int(clean) for k in range(n)]
            predictor = [min(self.p, left[k]) if self.lower_order_final else self.p for k in range(n)]
            first = steps - left[0]  # a step from pure noise comes before
            corrector = [0 if first + k in self.disable_corrector else p + 1 for k, p in enumerate(predictor)]
            updates = stepped(schedule, t, self.prediction, 0.0, predictor, corrector, self._weights, self._reach())
            return multistep_rows(t, merged(updates), self.prediction)

        return with_first_order_ends(schedule, t, lambda on, knots: inner(on, knots, t[-1] == schedule.t_clean))

    def _weights(self, H: float, nodes: Weights) -> Weights:
        if self.variant == "vary" or len(nodes) != 2:
            return exact_weights(H, nodes)
        return slope_weights(H, nodes, H if self.variant == "bh1" else None)


TauWindow = EtaWindow  # what the paper calls tau is the eta of the other solvers


@dataclass(frozen=True)
@typed
class SASolver:
    r"""SA-Solver: stochastic Adams-Bashforth predictor and Adams-Moulton corrector in lam.

        x_s = sigma_s/sigma_t e^{-tau^2 h} x_t + sum_j b_j D_j + sigma_s sqrt(1 - e^{-2 tau^2 h}) z

    with b_j the integral of the Lagrange polynomial times (1 + tau^2) alpha_s e^{-(1 + tau^2)(lam_s - lam)}.

    Args:
        predictor: 1 .. 4, evaluations of the predictor.
        corrector: evaluations of the corrector, the new one included; 0 for none.
        tau: noise, 1 for Anderson's reverse SDE; one number, or one a step, as every eta (see eta.py).
        simple_order_2: two evaluations have half of H for the weight of their slope, where the integral is
            H - 1 + e^-H over H: diffusers' second order, and ComfyUI's on demand.
        pece: evaluate again at the corrected x, and keep that evaluation; two evaluations a step.
        lower_order_final: with n steps left above sigma = 0, "diffusers" has at most n evaluations in the
            predictor and n + 1 in the corrector, "comfyui" at most n in both; "" lowers nothing.
        reach: the span of lam above which a predictor of 3 or 4 has fewer evaluations, two with half their slope; as of
            DPMMultistep. Its corrector has at most one more.

    Raises:
        ValueError: a value out of range.

    Source: Xue et al. 2023, algorithm 1, eq. 14 and 17; its appendix D for simple_order_2.
    """

    predictor: int = 3
    corrector: int = 4
    tau: float | Callable[[float, float], float] = 1.0
    simple_order_2: bool = published(False)
    pece: bool = published(False)
    lower_order_final: str = published("")
    reach: float | None = published(None)
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_order("SASolver", self.predictor, 4)
        checked_eta("SASolver", self.tau, "tau")
        if self.corrector not in range(5):
            raise ValueError(f"SASolver: corrector = {self.corrector} must lie in 0 .. 4")
        if self.pece and not self.corrector:
            raise ValueError("SASolver: pece evaluates at the corrected x; it needs a corrector of 1 .. 4")
        if self.lower_order_final not in LOWERINGS:
            raise ValueError(
                f"SASolver: lower_order_final = {self.lower_order_final!r} must be '', 'diffusers' or 'comfyui'"
            )
        self._reach()

    def _reach(self) -> float:
        as_published = self.simple_order_2 or self.pece or bool(self.lower_order_final)
        return reach_of("SASolver", self.reach, self.predictor < 3 or as_published)

    @property
    def order(self) -> int:
        """Order of the ODE, tau = 0; with noise the variance is at most second order."""
        return min(self.corrector or self.predictor, self.predictor + 1)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        def inner(schedule: Schedule, t: Array) -> list[list[Row]]:
            predictor, corrector = [self.predictor] * (len(t) - 1), [self.corrector] * (len(t) - 1)
            if self.lower_order_final:
                left, more = range(len(t) - 1, 0, -1), int(self.lower_order_final == "diffusers")
                predictor = [min(self.predictor, n) for n in left]
                corrector = [min(self.corrector, n + more) for n in left]
            tau = etas_of("SASolver", self.tau, schedule, t, "tau")
            updates = stepped(schedule, t, "x0", tau, predictor, corrector, self._weights, self._reach())
            return evaluated_twice(t, updates) if self.pece else multistep_rows(t, merged(updates), "x0")

        return with_first_order_ends(schedule, t, inner)

    def _weights(self, H: float, nodes: Weights) -> Weights:
        return slope_weights(H, nodes, H) if self.simple_order_2 and len(nodes) == 2 else exact_weights(H, nodes)


def slope_weights(H: float, nodes: Weights, B: float | None) -> Weights:
    """Return ``half_slope_weights`` of two nodes, one of which is 0, the start of the step, in their order."""
    start, other = half_slope_weights(H, nodes[0] or nodes[1], B)
    return [other, start] if nodes[0] else [start, other]


def stepped(
    schedule: Schedule,
    t: Array,
    m: str,
    eta: float | Array,
    predictor: Sequence[int],
    corrector: Sequence[int],
    rule: Rule,
    reach: float = math.inf,
) -> list[Step]:
    """Return what each step predicts and what its correction adds.

    Args:
        schedule, t, m, eta: see ``exponential``.
        predictor, corrector: evaluations of each step, the corrector's new one included; none where it is 0.
        rule: weights of evaluations at given theta.
        reach: see ``within_reach``, of predictors; a corrector, which interpolates, has one more than those it leaves.
    """
    values, steps = lam(schedule, t), []
    limits = within_reach(values, max(predictor), reach)
    for k, (a, gain, H, c) in enumerate(zip(*step_coefficients(schedule, t[:-1], t[1:], m, eta), strict=True)):
        asked = past(values, k, predictor[k])
        predict, change = [gain * v for v in predicted(H, asked, limits[k], rule)], []
        if corrector[k]:
            lowered = len(predict) < len(asked)
            before = min(corrector[k] - 1, len(predict)) if lowered else corrector[k] - 1
            correct = [gain * v for v in rule(H, [1.0, *past(values, k, before)])]
            change = [new - old for new, old in zip_longest(correct, [0.0, *predict], fillvalue=0.0)]
        steps.append((a, predict, change, c))
    return steps


def merged(steps: Sequence[Step]) -> list[Update]:
    """Return the updates from knot to knot, each with the correction of the step before it."""
    updates, before = [], []
    for a, predict, change, c in steps:
        updates.append((a, [p + a * d for p, d in zip_longest(predict, before, fillvalue=0.0)], c))
        before = change
    return updates


def evaluated_twice(t: Array, steps: Sequence[Step]) -> list[list[Row]]:
    """Return two rows for each step: the prediction, and the correction by an evaluation that is not kept."""
    ring = max(max(len(predict), len(change)) for _, predict, change, _ in steps) - 1
    groups = []
    for k, (a, predict, change, c) in enumerate(steps):
        start, end, w, w_correct = float(t[k]), float(t[k + 1]), [0.0] * ring, [0.0] * ring
        for j in range(1, len(predict)):
            w[(k - j) % ring] = predict[j]
        for j in range(1, len(change)):
            w_correct[(k + 1 - j) % ring] = change[j]
        rows = [Row(start, end, a, predict[0], c, tuple(w), "x0", k % ring)]
        groups.append([*rows, Row(end, end, 1.0, change[0], 0.0, tuple(w_correct), "x0")])
    return groups
