"""Linear multistep solvers: one evaluation a step, earlier ones kept in history slots.

All of them start with lower orders, one more evaluation a step until they have all they use: the declared order is
met on grids whose first steps are short enough not to dominate, as those of Karras and in logSNR are towards the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastscore.errors import typed
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule, lam
from fastscore.solvers.exponential import (
    Weights,
    checked_eta,
    checked_lowering,
    checked_order,
    checked_prediction,
    exact_weights,
    exponential_moments,
    half_slope_weights,
    highest_order,
    lagrange_weights,
    multistep_rows,
    step_coefficients,
    with_first_order_ends,
)
from fastscore.solvers.variants import published, published_repr

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
        form: "exact" integrates the polynomial exactly (order 2: "heun" of diffusers and k-diffusion). The
            others are published code. "paper" takes half the slope at order 2 ("midpoint") and at order 3
            half of the quadratic term, which leaves it second order. "k-diffusion" has the exact slope in a
            second step and half of the quadratic term from the third on (its DPM++ 3M SDE). "diffusers" is
            "paper", and "diffusers-heun" is "k-diffusion", but for its sde-dpmsolver++ of order 3, where a wrong
            sign in the quadratic term leaves first order.
        eta: noise, 1 for Anderson's reverse SDE (SDE-DPM-Solver(++); k-diffusion's eta is eta^2).
        lower_order_final: the last step is first order, the one before it at most second, and so on, in runs
            of fewer than 15 steps as in diffusers (its default), or of fewer steps than a number that is
            given (10 in the authors' code). A step to sigma = 0 is D, and so first order, in any case.
        euler_at_final: the last step is first order, in runs of any length; diffusers' option.

    Raises:
        ValueError: an order, prediction, form, eta or lower_order_final out of range.

    Source: Lu et al. 2022a, appendix B; 2022b, algorithm 2 and appendix B; SDE: 2022b, eq. 18 and 19.
    """

    order: int = 3
    prediction: str = "x0"
    form: str = "exact"
    eta: float = 0.0
    lower_order_final: bool | int = published(False)
    euler_at_final: bool = published(False)
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_order("DPMMultistep", self.order, 4 if self.form == "exact" else 3)
        checked_lowering("DPMMultistep", self.lower_order_final)
        checked_prediction("DPMMultistep", self.prediction)
        checked_eta("DPMMultistep", self.eta)
        if self.form not in FORMS:
            raise ValueError(f"DPMMultistep: form = {self.form!r} must be one of {', '.join(FORMS)}")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        steps, clean = len(t) - 1, t[-1] == schedule.t_clean

        def inner(schedule: Schedule, t: Array) -> list[list[Row]]:
            values, updates = lam(schedule, t), []
            for k, (a, gain, H, c) in enumerate(
                zip(*step_coefficients(schedule, t[:-1], t[1:], self.prediction, self.eta), strict=True)
            ):
                left = len(t) - 1 - k + int(clean)
                order = highest_order(self.order, steps, left, self.lower_order_final, self.euler_at_final)
                updates.append((a, [gain * v for v in self._weights(H, past(values, k, order))], c))
            return multistep_rows(t, updates, self.prediction)

        return with_first_order_ends(schedule, t, inner)

    def _weights(self, H: float, nodes: Weights) -> Weights:
        if self.form == "exact" or len(nodes) == 1:
            return exact_weights(H, nodes)
        if len(nodes) == 2:
            exact = self.form in ("k-diffusion", "diffusers-heun")
            return exact_weights(H, nodes) if exact else half_slope_weights(H, nodes[1])
        total, slope, curvature = exponential_moments(H, 3)
        wrong_sign = float(self.form.startswith("diffusers") and self.prediction == "x0" and self.eta > 0.0)
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
            eps) or "rho" (rhoAB; LMS).
        lower_order_final: with log-rho, lower orders at the end of short runs; see DPMMultistep. diffusers' default.

    Raises:
        ValueError: an order or basis out of range, or lower_order_final with the basis rho.

    Source: Zhang & Chen 2023, eq. 14 and appendix on rhoAB-DEIS, with exact integrals.
    """

    order: int = 3
    basis: str = "log-rho"
    lower_order_final: bool | int = published(False)
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_order("DEIS", self.order, 4)
        if self.basis not in ("log-rho", "rho"):
            raise ValueError(f"DEIS: basis = {self.basis!r} must be log-rho or rho")
        checked_lowering("DEIS", self.lower_order_final)
        if self.lower_order_final and self.basis == "rho":
            raise ValueError("DEIS: lower_order_final goes with basis='log-rho'; leave it out with rho")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        if self.basis == "rho":
            return LMS(self.order).steps(schedule, t)
        return DPMMultistep(self.order, "eps", lower_order_final=self.lower_order_final).steps(schedule, t)


@dataclass(frozen=True)
@typed
class LMS:
    r"""Linear multistep (Adams-Bashforth) in rho = sigma / alpha, its integrals exact.

        x_s / alpha_s = x_t / alpha_t + sum_j eps_j int_{rho_t}^{rho_s} l_j(rho) d rho

    ``denoise=False`` takes the step to sigma = 0 like any other, as k-diffusion and diffusers do.

    Source: k-diffusion's sample_lms, which integrates numerically; Zhang & Chen 2023 (rhoAB).
    """

    order: int = 4
    denoise: bool = True

    def __post_init__(self) -> None:
        checked_order("LMS", self.order, 4)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return with_first_order_ends(schedule, t, self._inner, self.denoise)

    def _inner(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        a, gain = transfer(schedule, t[:-1], t[1:])
        rho, updates = schedule.sigma(t) / schedule.alpha(t), []
        for k in range(len(a)):
            nodes = past(rho, k, self.order)
            v = lagrange_weights(nodes, [1.0 / (n + 1) for n in range(len(nodes))])
            updates.append((a[k], [gain[k] * value for value in v], 0.0))
        return multistep_rows(t, updates, "eps")


def transfer(schedule: Schedule, t: Array, s: Array) -> tuple[list[float], list[float]]:
    """Return (A, G) of x_s = A x_t + G eps, exact where eps is constant (DDIM's step in eps)."""
    a = schedule.alpha(s) / schedule.alpha(t)
    return a.tolist(), (schedule.sigma(s) - a * schedule.sigma(t)).tolist()


def past(values: Array, k: int, n: int) -> Weights:
    """Return theta of the last n evaluations at step k, newest first: 0 at its start, 1 at its end."""
    recent = values[max(0, k - n + 1) : k + 1][::-1]
    return ((recent - values[k]) / (values[k + 1] - values[k])).tolist()
