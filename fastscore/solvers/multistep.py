"""Linear multistep solvers: one evaluation a step, earlier ones kept in history slots.

All of them start with lower orders, one more evaluation a step until they have all they use: the declared order is
met on grids whose first steps are short enough not to dominate, as those of Karras and in logSNR are towards the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule, lam
from fastscore.solvers.exponential import (
    Weights,
    checked_eta,
    checked_order,
    checked_prediction,
    exact_weights,
    exponential_moments,
    half_slope_weights,
    lagrange_weights,
    multistep_rows,
    step_coefficients,
    with_first_order_ends,
)

FORMS = ("exact", "paper")


@dataclass(frozen=True)
class DPMMultistep:
    r"""DPM-Solver and DPM-Solver++, multistep, for the ODE and for the reverse SDEs.

        x_s = A x_t + G int H e^{-H (1 - theta)} m(theta) dtheta + c z      (see exponential.py)

    with m through the last ``order`` evaluations.

    Args:
        order: 1 .. 4; of the ODE and, with noise, of the mean. The variance is second order from order 2 on.
        prediction: "x0" (DPM-Solver++) or "eps" (DPM-Solver).
        form: "exact" integrates the polynomial exactly (order 2: diffusers' "heun"). "paper" takes
            half the slope at order 2 ("midpoint"), and at order 3 half of the quadratic term, as the
            published code does, which leaves it second order.
        eta: noise, 1 for Anderson's reverse SDE (SDE-DPM-Solver(++); k-diffusion's eta is eta^2).

    Source: Lu et al. 2022a, appendix B; 2022b, algorithm 2 and appendix B; SDE: 2022b, eq. 18 and 19.
    """

    order: int = 3
    prediction: str = "x0"
    form: str = "exact"
    eta: float = 0.0

    def __post_init__(self) -> None:
        checked_order("DPMMultistep", self.order, 4 if self.form == "exact" else 3)
        checked_prediction("DPMMultistep", self.prediction)
        checked_eta("DPMMultistep", self.eta)
        if self.form not in FORMS:
            raise ValueError(f"DPMMultistep: form = {self.form!r} must be one of {', '.join(FORMS)}")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return with_first_order_ends(schedule, t, self._inner)

    def _inner(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        values = lam(schedule, t)
        updates = []
        for k, (a, gain, H, c) in enumerate(
            zip(*step_coefficients(schedule, t[:-1], t[1:], self.prediction, self.eta), strict=True)
        ):
            nodes = past(values, k, self.order)
            updates.append((a, [gain * v for v in self._weights(H, nodes)], c))
        return multistep_rows(t, updates, self.prediction)

    def _weights(self, H: float, nodes: Weights) -> Weights:
        if self.form == "exact" or len(nodes) == 1:
            return exact_weights(H, nodes)
        if len(nodes) == 2:
            return half_slope_weights(H, nodes[1])
        total, slope, curvature = exponential_moments(H, 3)
        return lagrange_weights(nodes, [total, slope, 0.5 * curvature])


@dataclass(frozen=True)
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
class DEIS:
    r"""DEIS: Adams-Bashforth on eps with the linear part exact.

        x_s = alpha_s (x_t / alpha_t + sum_j C_j eps_j),   C_j = int_{rho_t}^{rho_s} l_j d rho,   rho = sigma / alpha

    Args:
        order: 1 .. 4, evaluations used.
        basis: the variable of the Lagrange polynomials l_j: "log-rho" (what its authors and diffusers
            use; DPMMultistep in eps) or "rho" (rhoAB; LMS).

    Source: Zhang & Chen 2023, eq. 14 and appendix on rhoAB-DEIS, with exact integrals.
    """

    order: int = 3
    basis: str = "log-rho"

    def __post_init__(self) -> None:
        checked_order("DEIS", self.order, 4)
        if self.basis not in ("log-rho", "rho"):
            raise ValueError(f"DEIS: basis = {self.basis!r} must be log-rho or rho")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        solver = DPMMultistep(self.order, "eps") if self.basis == "log-rho" else LMS(self.order)
        return solver.steps(schedule, t)


@dataclass(frozen=True)
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
