"""DPM-Solver, one step at a time: intermediate evaluations in place of earlier ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from fastscore.errors import typed
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule, lam, t_of_lam
from fastscore.solvers.eta import checked_eta, etas_of
from fastscore.solvers.exponential import (
    checked_order,
    checked_prediction,
    exact_weights,
    half_slope_weights,
    one_step_rows,
    split_coefficients,
    step_coefficients,
    with_first_order_ends,
)
from fastscore.solvers.sde import DDIM
from fastscore.solvers.variants import published, published_repr

FORMS = ("exact", "midpoint")
NOISES = ("sde", "split")


@dataclass(frozen=True)
@typed
class DPMSolver:
    r"""DPM-Solver-1/2/3 and DPM-Solver++ 1S/2S/3S, and DPM-Solver++ for the reverse SDE.

    ``order`` evaluations a step, at t and at lam_t + r h with r = 1/2, or 1/3 and 2/3. Order 2 with
    "eps" is also k-diffusion's DPM2, with "x0" its DPM++ 2S; see AncestralSplit for their ancestral forms.

    Args:
        order: 1 .. 3; of the ODE.
        prediction: "eps" (DPM-Solver) or "x0" (DPM-Solver++). "flow", of order 2, is DPM2 as codes of rectified flow
            have it: eps - D over q = sigma / (alpha + sigma), of the second evaluation alone, at the geometric mean.
        eta: noise in units of Anderson's reverse SDE, with x0 and order 1 or 2; one number, or one a step (see
            eta.py). Each stage starts from x_t with its own noise, as in k-diffusion's DPM++ SDE; weak order 1. In a
            plan that clips, the second stage's x_t is alpha D + sigma eps with the clipped D.
        on_grid: the intermediate times are knots of the grid, ``order`` intervals a step, as in diffusers;
            intervals left over, and the one to sigma = 0, have the order that remains.
        form: of order 3 on_grid: "exact" interpolates all three evaluations, since the paper's weights
            need r = 2/3. "midpoint", diffusers' default, takes half the slope from the second one and leaves
            that out at the end; second order.
        r: of order 2, between 0 and 1; 1/2 if left out. Order 3 has 1/3 and 2/3.
        noise: "sde" is that of the reverse SDE, sigma_s^2 (1 - e^{-2 eta^2 h}); "split" is k-diffusion's, which
            AncestralSplit describes, for its DPM++ SDE. The two are one at eta = 1.
        middle: of order 2 with x0, lam of the second evaluation in a step from pure noise, between whose ends there is
            none halfway: ComfyUI's is that of sigma = 0.9999 on a flow, ln(1e-4 / 0.9999). Else that step is order 1.
        lower_order_final: on_grid, the last step is first order if the orders would end with a whole step of
            ``order``, as diffusers has it; a step to sigma = 0 is first order in any case.

    Raises:
        ValueError: a value out of range, or options that exclude each other.

    Source: Lu et al. 2022a, algorithms 1 and 2; 2022b, algorithm 1; k-diffusion's sample_dpmpp_sde.
    """

    order: int = 2
    prediction: str = "eps"
    eta: float | Callable[[float, float], float] = 0.0
    on_grid: bool = False
    form: str = published("exact")
    r: float | None = published(None)
    noise: str = published("sde")
    lower_order_final: bool = published(False)
    middle: float | None = published(None)
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_order("DPMSolver", self.order, 3)
        if self.prediction != "flow":
            checked_prediction("DPMSolver", self.prediction)
        elif self.order != 2 or self.on_grid or self.r is not None:
            raise ValueError("DPMSolver: prediction = 'flow' goes with order 2, on_grid=False and no r")
        checked_eta("DPMSolver", self.eta)
        if self.eta and (self.prediction != "x0" or self.order == 3 or self.on_grid):
            raise ValueError("DPMSolver: eta > 0 goes with prediction='x0', order 1 or 2 and on_grid=False")
        if self.form not in FORMS or (self.form == "midpoint" and not (self.on_grid and self.order == 3)):
            raise ValueError(
                f"DPMSolver: form = {self.form!r} must be exact, or midpoint with order 3 and on_grid=True"
            )
        if self.r is not None and not (0.0 < self.r < 1.0 and self.order == 2 and not self.on_grid):
            raise ValueError(f"DPMSolver: r = {self.r} must lie in 0 .. 1, with order 2 and on_grid=False")
        if self.noise not in NOISES or (self.noise == "split" and not self.eta):
            raise ValueError(f"DPMSolver: noise = {self.noise!r} must be sde, or split with eta > 0")
        if self.middle is not None and (self.order, self.prediction, self.r) != (2, "x0", None):
            raise ValueError(f"DPMSolver: middle = {self.middle} goes with order 2, prediction='x0' and no r")
        if self.middle is not None and (self.eta or self.on_grid or not math.isfinite(self.middle)):
            raise ValueError(f"DPMSolver: middle = {self.middle} must be a lam, with eta=0 and on_grid=False")
        if self.lower_order_final and not self.on_grid:
            raise ValueError("DPMSolver: lower_order_final=True goes with on_grid=True; leave it out")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        if self.prediction == "flow":
            return with_first_order_ends(schedule, t, _in_flow, pure=False)
        if not self.on_grid:
            return with_first_order_ends(schedule, t, self._inner, pure=self.middle is None)
        lower = self.lower_order_final and t[-1] != schedule.t_clean
        return with_first_order_ends(schedule, t, lambda on, knots: self._shared(on, knots, lower))

    def _inner(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        values = lam(schedule, t)
        fractions = {1: (), 2: (self.r or 1 / 2,), 3: (1 / 3, 2 / 3)}[self.order]
        inside = [values[:-1] + r * np.diff(values) for r in fractions]
        if self.middle is not None:
            if not self.middle < values[1]:
                raise ValueError(
                    f"DPMSolver: middle = {self.middle} must lie below lam = {values[1]:.6g} of the step's end"
                )
            inside = [np.where(values[:-1] == -np.inf, self.middle, inside[0])]
        inside = [t_of_lam(schedule, v) for v in inside]
        stages = np.stack([t[:-1], *inside, t[1:]], axis=1)
        etas = np.broadcast_to(etas_of("DPMSolver", self.eta, schedule, t), len(stages)).tolist()
        return [
            self._noisy(schedule, times, eta) if eta else self._step(schedule, times)
            for times, eta in zip(stages, etas, strict=True)
        ]

    def _shared(self, schedule: Schedule, t: Array, lower: bool) -> list[list[Row]]:
        n = len(t) - 1
        ends = {*range(0, n, self.order), n} | ({n - 1} if lower and n % self.order == 0 else set())
        return [[row] for k, end in pairwise(sorted(ends)) for row in self._step(schedule, t[k : end + 1])]

    def _step(self, schedule: Schedule, times: Array) -> list[Row]:
        a, gain, H, _ = step_coefficients(schedule, times[:1], times[1:], self.prediction)
        values = lam(schedule, times) - lam(schedule, times[0])
        weights = [exact_weights(H[0], [0.0])]
        if len(H) == 2:
            weights.append(half_slope_weights(H[1], 0.5 if H[1] == np.inf else values[1] / values[2]))
        elif len(H) == 3:
            second = half_slope_weights if self.form == "midpoint" else _slope_weights
            weights.append(second(H[1], values[1] / values[2]))
            r = (values[:3] / values[3]).tolist()
            if self.on_grid and self.form == "exact":
                weights.append(exact_weights(H[2], r))
            else:
                start, inside = _slope_weights(H[2], r[2])
                weights.append([start, 0.0, inside])
        return one_step_rows(
            times, a, [[g * v for v in row] for g, row in zip(gain, weights, strict=True)], self.prediction
        )

    def _noisy(self, schedule: Schedule, times: Array, eta: float) -> list[Row]:
        a, gain, H, c = step_coefficients(schedule, times[:1], times[1:], "x0", eta)
        if self.noise == "split":
            a, _, H, c = split_coefficients(schedule, times[:1], times[1:], eta)
        t, s = float(times[0]), float(times[1])
        first = Row(t, s, a[0], gain[0] * exact_weights(H[0], [0.0])[0], c[0])
        if self.order == 1:
            return [first]
        # x_t = alpha D + sigma eps is kept as two slots: it can't be recovered from a stage that has noise of its own.
        keep = Row(t, t, 1.0, 0.0, m="eps", push=0)
        predict = Row(t, s, first.a, first.b, first.c, push=1, evaluate=False)
        start, inside = half_slope_weights(H[1], self.r or 0.5)
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        w = (a[1] * sigma, a[1] * alpha + gain[1] * start)
        return [keep, predict, Row(s, float(times[2]), 0.0, gain[1] * inside, c[1], w)]


@dataclass(frozen=True)
@typed
class DPMFast:
    r"""DPM-Solver-fast: as many evaluations as the grid has steps, in blocks of order 3 with lower ones at the end.

    Of the knots only the two ends of finite lam count. Between them n steps make n // 3 + 1 blocks, even in lam: all
    but the last of order 3 and that of order n mod 3; or, if 3 divides n, the last two of orders 2 and 1.

    Args:
        prediction: "eps" (as published and in k-diffusion) or "x0".

    Raises:
        ValueError: another prediction.

    Source: Lu et al. 2022a, section 3.3 and appendix D.2; k-diffusion's sample_dpm_fast.
    """

    prediction: str = "eps"

    def __post_init__(self) -> None:
        checked_prediction("DPMFast", self.prediction)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return with_first_order_ends(schedule, t, self._inner)

    def _inner(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        n, ends = len(t) - 1, lam(schedule, t[[0, -1]])
        orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
        knots = t_of_lam(schedule, np.linspace(ends[0], ends[1], len(orders) + 1))
        knots[[0, -1]] = t[[0, -1]]
        blocks = zip(orders, pairwise(knots), strict=True)
        rows = [DPMSolver(k, self.prediction).steps(schedule, np.array(block))[0] for k, block in blocks]
        return [[row] for group in rows for row in group]  # one evaluation to each interval of the grid


def _in_flow(schedule: Schedule, t: Array) -> list[list[Row]]:
    """Return steps of DPM2 along dy/dq = (y - D) / q = eps - D, y = x / (alpha + sigma)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    length = alpha + sigma
    q = sigma / length
    middle = np.sqrt(q[:-1] * q[1:])
    times = t_of_lam(schedule, np.log((1.0 - middle) / middle))
    groups = []
    for k, m in enumerate(middle.tolist()):
        ahead = replace(DDIM().steps(schedule, np.array([t[k], times[k]]))[0][0], push=0)
        a = float(sigma[k + 1] / schedule.sigma(times[k]))
        b, w = (float(length[k + 1] * v / m) for v in (q[k] - q[k + 1], m - q[k]))
        groups.append([ahead, Row(float(times[k]), float(t[k + 1]), a, b, w=(w,))])
    return groups


def _slope_weights(H: float, node: float) -> list[float]:
    return list(exact_weights(H, [0.0, node]))
