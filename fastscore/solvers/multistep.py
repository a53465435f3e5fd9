"""Linear multistep solvers: one evaluation a step, earlier ones kept in history slots.

All of them start with lower orders, one more evaluation a step until they have all they use: the declared order is
met on grids whose first steps are short enough not to dominate, as those of Karras and in logSNR are towards the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from fastscore.errors import typed, unknown
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule, lam
from fastscore.solvers.adams_weights import ipndm_v_weights, tab_moments, vp_time
from fastscore.solvers.eta import checked_eta, etas_of
from fastscore.solvers.exponential import (
    Weights,
    checked_lowering,
    checked_order,
    checked_prediction,
    exact_weights,
    exponential_moments,
    half_slope_weights,
    highest_order,
    lagrange_weights,
    multistep_rows,
    reach_of,
    split_coefficients,
    step_coefficients,
    with_first_order_ends,
    within_reach,
)
from fastscore.solvers.variants import published, published_repr

NOISES = {"sde": math.inf, "split": 1.0}  # and the largest eta
Rule = Callable[[float, Weights], Weights]
FORMS = ("exact", "paper", "k-diffusion", "diffusers", "diffusers-heun")


@dataclass(frozen=True)
@typed
class DPMMultistep:
    r"""DPM-Solver and DPM-Solver++, multistep, for the ODE and for the reverse SDEs.

        x_s = A x_t + G int H e^{-H (1 - theta)} m(theta) dtheta + c z      (see exponential.py)

    with m through the last ``order`` evaluations.

    Args:
        order: 1 .. 4; of the ODE and, with noise, of the mean. The variance is second order from order 2 on.
        prediction: "x0" (DPM-Solver++) or "eps" (DPM-Solver).
        form: "exact" integrates the polynomial exactly (order 2: "heun" of diffusers and k-diffusion). The others are
            published code. "paper" takes half the slope at order 2 ("midpoint") and at order 3 half of the quadratic
            term, which leaves it second order. "k-diffusion" has the exact slope in a second step and half of the
            quadratic term from the third on (its DPM++ 3M SDE). "diffusers" is "paper", and "diffusers-heun" is
            "k-diffusion", but for its sde-dpmsolver++ of order 3, where a wrong sign in the quadratic term leaves
            first order. Order 2 in x0, "exact", is also RES multistep.
        eta: noise, 1 for Anderson's reverse SDE (SDE-DPM-Solver(++); k-diffusion's eta is eta^2); one number, or one
            a step (see eta.py).
        lower_order_final: the last step is first order, the one before it at most second, and so on, in runs of fewer
            than 15 steps as in diffusers (its default), or of fewer steps than a number that is given (10 in the
            authors' code). A step to sigma = 0 is D, and so first order, in any case.
        euler_at_final: the last step is first order, in runs of any length; diffusers' option.
        noise: "sde" is that of the reverse SDE. "split", with x0 and eta up to 1, is k-diffusion's, which
            AncestralSplit describes: H is then that of the step down, and evaluations lie as far apart as their H:
            ComfyUI's res_multistep_ancestral, with alpha. The two are one at eta = 1.
        reach: the span of lam above which steps take fewer evaluations, down to DPM++ 2M's half slope of two; orders do
            not fall again (see ``within_reach``, which says why). If None, pi / 2, and in eps three in any case; a
            published form or rule for the last steps takes what it is asked for, as math.inf does.

    Raises:
        ValueError: an order, prediction, form, eta, lower_order_final, noise or reach out of range.

    Source: Lu et al. 2022a, appendix B; 2022b, algorithm 2 and appendix B; SDE: 2022b, eq. 18 and 19; RES: Zhang et al.
    2023, algorithm 2.
    """

    order: int = 3
    prediction: str = "x0"
    form: str = "exact"
    eta: float | Callable[[float, float], float] = 0.0
    lower_order_final: bool | int = published(False)
    euler_at_final: bool = published(False)
    noise: str = published("sde")
    reach: float | None = published(None)
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_order("DPMMultistep", self.order, 4 if self.form == "exact" else 3)
        checked_lowering("DPMMultistep", self.lower_order_final)
        checked_prediction("DPMMultistep", self.prediction)
        checked_eta("DPMMultistep", self.eta, most=NOISES.get(self.noise, math.inf))
        if self.form not in FORMS:
            raise unknown("DPMMultistep: form", self.form, FORMS)
        if self.noise not in NOISES or (self.noise == "split" and self.prediction != "x0"):
            raise ValueError(f"DPMMultistep: noise = {self.noise!r} must be sde, or split with prediction x0")
        self._reach()

    def _reach(self) -> float:
        as_published = self.form != "exact" or self.lower_order_final or self.euler_at_final or self.noise == "split"
        return reach_of("DPMMultistep", self.reach, self.order <= self._always or bool(as_published))

    @property
    def _always(self) -> int:
        return 3 if self.prediction == "eps" and self.reach is None else 2  # evaluations, whatever they span

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        reach, steps, clean = self._reach(), len(t) - 1, t[-1] == schedule.t_clean

        def inner(schedule: Schedule, t: Array) -> list[list[Row]]:
            values, updates = lam(schedule, t), []
            eta = etas_of("DPMMultistep", self.eta, schedule, t, most=NOISES[self.noise])
            noisy = np.broadcast_to(np.asarray(eta) > 0.0, len(t) - 1)
            if self.noise == "split":
                coefficients = split_coefficients(schedule, t[:-1], t[1:], eta)
                values = np.cumsum([0.0, *coefficients[2]])
            else:
                coefficients = step_coefficients(schedule, t[:-1], t[1:], self.prediction, eta)
            limits = within_reach(values, self.order, reach, self._always)
            for k, (a, gain, H, c) in enumerate(zip(*coefficients, strict=True)):
                left = len(t) - 1 - k + int(clean)
                order = highest_order(self.order, steps, left, self.lower_order_final, self.euler_at_final)
                weights = predicted(H, past(values, k, order), limits[k], partial(self._weights, noisy=bool(noisy[k])))
                updates.append((a, [gain * v for v in weights], c))
            return multistep_rows(t, updates, self.prediction)

        return with_first_order_ends(schedule, t, inner)

    def _weights(self, H: float, nodes: Weights, noisy: bool) -> Weights:
        if self.form == "exact" or len(nodes) == 1:
            return exact_weights(H, nodes)
        if len(nodes) == 2:
            exact = self.form in ("k-diffusion", "diffusers-heun")
            return exact_weights(H, nodes) if exact else half_slope_weights(H, nodes[1])
        total, slope, curvature = exponential_moments(H, 3)
        wrong_sign = float(self.form.startswith("diffusers") and self.prediction == "x0" and noisy)
        return lagrange_weights(nodes, [total, slope, 0.5 * curvature - wrong_sign])


@dataclass(frozen=True)
@typed
class DPMpp2M:
    r"""DPM-Solver++(2M): the linear part exactly, D extrapolated from two evaluations.

        x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) [(1 + 1/2r) D_t - 1/2r D_prev]

    with h = lam_s - lam_t and r = h_prev / h. The first step and a step to sigma = 0 (h = inf) are
    first order. ``DPMMultistep`` has its other orders and forms, and the SDE.

    Source: Lu et al. 2022b, algorithm 2.
    """

    order = 2

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return DPMMultistep(2, "x0", "paper").steps(schedule, t)


@dataclass(frozen=True)
@typed
class DEIS:
    r"""DEIS: Adams-Bashforth on eps with the linear part exact.

        x_s = alpha_s (x_t / alpha_t + sum_j C_j eps_j),   C_j = int_{rho_t}^{rho_s} l_j d rho,   rho = sigma / alpha

    Args:
        order: 1 .. 4, evaluations used.
        basis: the variable of the Lagrange polynomials l_j: "log-rho" (diffusers'; DPMMultistep in
            eps), "rho" (rhoAB; LMS) or "tab" (tAB), the time of the VP process with rho = 0.002 at 0.001 and 80 at 1,
            which diff-sampler and ComfyUI take whatever the model: rho^2 + 1 = exp(a t^2 + b t).
        lower_order_final: with log-rho, lower orders at the end of short runs; see DPMMultistep. diffusers' default.
        points: of the integrals of "tab": 0 is exact; 10000 is the sum of diff-sampler and ComfyUI, over so many nodes
            in t with both ends, each weighing a part too little by one in so many.

    Raises:
        ValueError: an order, basis or number of points out of range, or an option of another basis.

    Source: Zhang & Chen 2023, eq. 14 and appendices on tAB- and rhoAB-DEIS, with exact integrals.
    """

    order: int = 3
    basis: str = "log-rho"
    lower_order_final: bool | int = published(False)
    points: int = published(0)
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_order("DEIS", self.order, 4)
        if self.basis not in ("log-rho", "rho", "tab"):
            raise ValueError(f"DEIS: basis = {self.basis!r} must be log-rho, rho or tab")
        checked_lowering("DEIS", self.lower_order_final)
        if self.lower_order_final and self.basis != "log-rho":
            raise ValueError(f"DEIS: lower_order_final goes with basis='log-rho'; leave it out with {self.basis}")
        if not (self.points == 0 or (self.basis == "tab" and 2 <= self.points <= 1 << 20)):
            raise ValueError(f"DEIS: points = {self.points} must be 0 or, with basis='tab', lie in 2 .. {1 << 20}")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        if self.basis == "rho":
            return LMS(self.order).steps(schedule, t)
        if self.basis == "tab":
            return with_first_order_ends(schedule, t, self._tab)
        return DPMMultistep(self.order, "eps", lower_order_final=self.lower_order_final).steps(schedule, t)

    def _tab(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        rho, updates = schedule.sigma(t) / schedule.alpha(t), []
        time = vp_time(rho)
        for k, (a, gain) in enumerate(zip(*transfer(schedule, t[:-1], t[1:]), strict=True)):
            nodes = past(time, k, self.order)
            v = lagrange_weights(nodes, tab_moments(rho[k], rho[k + 1], len(nodes), self.points))
            updates.append((a, [gain * value for value in v], 0.0))
        return multistep_rows(t, updates, "eps")


@dataclass(frozen=True)
@typed
class LMS:
    r"""Linear multistep (Adams-Bashforth) in rho = sigma / alpha, its integrals exact.

        x_s / alpha_s = x_t / alpha_t + sum_j eps_j int_{rho_t}^{rho_s} l_j(rho) d rho

    Args:
        order: 1 .. 4, evaluations used.
        denoise: whether a step to sigma = 0 is D; if not it is taken like any other, as k-diffusion and diffusers do.
        form: "exact", or "ipndm-v", what diff-sampler and ComfyUI compute under that name: a misplaced parenthesis
            leaves order 3 second order on uneven steps. Order 4 has a wrong sign besides, which makes it third order
            at best, and its weights sum to 1 on geometric and even steps only.
        reach: the span of lam of a polynomial above which this step and those before it are in ln rho, of order 3 at
            most: DEIS'. A line in rho through evaluations at rho and several times rho is all but flat, whatever eps
            does near rho, which leaves first order. None is math.inf, every step in rho; by the names lms and ipndm-v
            it is pi / 2.

    Raises:
        ValueError: an order, form or reach out of range.

    Source: k-diffusion's sample_lms, which integrates numerically; Zhang & Chen 2023 (rhoAB).
    """

    order: int = 4
    denoise: bool = True
    form: str = published("exact")
    reach: float | None = published(None)
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_order("LMS", self.order, 4)
        if self.form not in ("exact", "ipndm-v"):
            raise ValueError(f"LMS: form = {self.form!r} must be exact or ipndm-v")
        self._reach()

    def _reach(self) -> float:
        return reach_of("LMS", self.reach, True)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return with_first_order_ends(schedule, t, self._inner, self.denoise)

    def _inner(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        a, gain = transfer(schedule, t[:-1], t[1:])
        values, rho, updates = lam(schedule, t), schedule.sigma(t) / schedule.alpha(t), []
        for k, (n, halved) in enumerate(within_reach(values, self.order, self._reach())):
            if halved or n < min(self.order, k + 1):
                h, nodes = float(values[k + 1] - values[k]), past(values, k, min(self.order, 3))
                v = [w / -math.expm1(h) for w in exact_weights(-h, nodes)]
            else:
                nodes = past(rho, k, n)
                exact = self.form == "exact" or n < 3
                v = lagrange_weights(nodes, [1.0 / (j + 1) for j in range(n)]) if exact else ipndm_v_weights(nodes)
            updates.append((a[k], [gain[k] * value for value in v], 0.0))
        return multistep_rows(t, updates, "eps")


def predicted(H: float, nodes: Weights, limit: tuple[int, bool], rule: Rule) -> Weights:
    """Return the weights of the evaluations that predict a step, within a limit.

    Args:
        H: of the step, see ``exponential``.
        nodes: theta of the evaluations that are asked for, newest first.
        limit: of the step, see ``within_reach``.
        rule: weights of evaluations at given theta.
    """
    n, halved = limit
    return half_slope_weights(H, nodes[1]) if halved and len(nodes) > 1 else rule(H, nodes[:n])


def transfer(schedule: Schedule, t: Array, s: Array) -> tuple[list[float], list[float]]:
    """Return (A, G) of x_s = A x_t + G eps, exact where eps is constant (DDIM's step in eps)."""
    a = schedule.alpha(s) / schedule.alpha(t)
    return a.tolist(), (schedule.sigma(s) - a * schedule.sigma(t)).tolist()


def past(values: Array, k: int, n: int) -> Weights:
    """Return theta of the last n evaluations at step k, newest first: 0 at its start, 1 at its end."""
    recent = values[max(0, k - n + 1) : k + 1][::-1]
    return ((recent - values[k]) / (values[k + 1] - values[k])).tolist()
