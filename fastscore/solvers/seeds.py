"""SEEDS: DPM-Solver++ for the reverse SDE along one Brownian path; exponential Heun and RES 2S are cases of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastscore.errors import typed
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule, lam, t_of_lam
from fastscore.solvers.eta import checked_eta, eta_of
from fastscore.solvers.exponential import (
    exact_weights,
    half_slope_weights,
    one_step_rows,
    step_coefficients,
    with_first_order_ends,
)
from fastscore.solvers.variants import published, published_repr

FORMS = ("phi_1", "phi_2")


@dataclass(frozen=True)
@typed
class SEEDS:
    r"""SEEDS-2 and SEEDS-3: exponential Runge-Kutta stages of the reverse SDE in x0, with the noise of one path.

        y_i = A_i x + alpha_i int_0^{r_i} H e^{-H (r_i - theta)} m(theta) dtheta + noise_i      (see exponential.py)

    with stages at lam_t + r_i h, A and H those of eta, and m a line through D and the last stage. noise_i is that of
    the SDE's own path, so what a stage drew is part of the next: each row goes on from the state of the one before and
    draws the noise of its part of the interval, which is the published z_1, z_2, .. to the letter.

    ``eta=0`` is the ODE's solver: DPM-Solver++ 2S ("phi_1") and 3S; in "phi_2" RES 2S with c2 = r, and exponential Heun
    at r = 1. ``SEEDS(2, eta, r=1.0, form="phi_2")`` is ComfyUI's exp_heun_2_x0_sde.

    Args:
        order: 2 or 3, of the ODE and, with noise, of the mean; the variance is second order then.
        eta: noise in units of Anderson's reverse SDE, at least 0 (ComfyUI's eta is eta^2); one number, or one a step
            (see eta.py).
        r: where the stages lie: of order 2 in 0 .. 1 with 1, 1/2 if left out; of order 3 a pair r_1 < r_2, (1/3, 2/3)
            if left out, and with an r_2 other than 2/3 second order.
        form: of order 2: "phi_1" takes half the slope between its two evaluations, "phi_2" integrates it exactly, as
            order 3 does.

    Raises:
        ValueError: a value out of range, or a form other than phi_1 with order 3.

    Source: Gonzalez et al. 2023 (SEEDS), algorithms 3 and 4; phi_2 at eta = 0: Zhang et al. 2023 (RES), algorithm 1.
    """

    order: int = 2
    eta: float | Callable[[float, float], float] = 1.0
    r: float | tuple[float, float] | None = published(None)
    form: str = published("phi_1")
    __repr__ = published_repr

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"SEEDS: order = {self.order} must be 2 or 3; DPMSolver(1, 'x0', eta) is its first order")
        checked_eta("SEEDS", self.eta)
        inside = self._fractions()
        rising = len(inside) == self.order - 1 and all(a < b for a, b in pairwise((0.0, *inside)))
        if not rising or inside[-1] > 1.0:
            wanted = "a number in 0 .. 1" if self.order == 2 else "a rising pair in 0 .. 1"
            raise ValueError(f"SEEDS: r = {self.r} of order {self.order} must be {wanted}, with 1 and without 0")
        if self.form not in FORMS or (self.form == "phi_2" and self.order == 3):
            raise ValueError(
                f"SEEDS: form = {self.form!r} must be phi_1 or, of order 2, phi_2; leave it out of order 3"
            )

    def _fractions(self) -> tuple[float, ...]:
        if self.r is None:
            return (1 / 2,) if self.order == 2 else (1 / 3, 2 / 3)
        return self.r if isinstance(self.r, tuple) else (self.r,)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return with_first_order_ends(schedule, t, self._inner)

    def _inner(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        values = lam(schedule, t)
        inside = [
            t[1:] if r == 1.0 else t_of_lam(schedule, values[:-1] + r * np.diff(values)) for r in self._fractions()
        ]
        return [self._step(schedule, times) for times in np.stack([t[:-1], *inside, t[1:]], axis=1)]

    def _step(self, schedule: Schedule, times: Array) -> list[Row]:
        eta = eta_of("SEEDS", self.eta, schedule, float(times[0]), float(times[-1]))
        a, gain, H, _ = step_coefficients(schedule, times[:1], times[1:], "x0", eta)
        fresh = step_coefficients(schedule, times[:-1], times[1:], "x0", eta)[3]
        r = self._fractions()
        weights = [exact_weights(H[0], [0.0])]
        if self.order == 3:
            weights.append(exact_weights(H[1], [0.0, r[0] / r[1]]))
        slope = half_slope_weights if self.order == 2 and self.form == "phi_1" else _exact_slope
        start, last = slope(H[-1], r[-1])
        weights.append([start, *[0.0] * (self.order - 2), last])
        return one_step_rows(
            times, a, [[g * v for v in row] for g, row in zip(gain, weights, strict=True)], "x0", noise=fresh
        )


def _exact_slope(H: float, node: float) -> list[float]:
    return list(exact_weights(H, [0.0, node]))
