r"""CFG++ as a solver, and the samplers of ComfyUI that have it built in.

``Guidance(w, rule="cfg++")`` guides any solver so; plan/cfgpp.py has the rule. Here are solvers that say it
themselves, for which a sampler's guidance is by that rule without being told: ``CFGPlusPlus`` around any other, and
``CFGPlusPlusVariant`` for what ComfyUI's samplers compute where they differ from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fastscore.errors import typed, unknown
from fastscore.plan.cfgpp import called, with_cfgpp
from fastscore.plan.rows import Row, Solver
from fastscore.process.schedule import Array, Schedule, t_of_lam
from fastscore.solvers.compose import planned
from fastscore.solvers.eta import checked_eta, etas_of
from fastscore.solvers.exponential import ancestral_split, exponential_moments
from fastscore.solvers.sde import DDIM


@dataclass(frozen=True)
@typed
class CFGPlusPlus:
    """A solver whose steps are guided by CFG++, whatever rule its sampler's guidance names; without guidance itself.

    Around DDIM() this is the published CFG++ and ComfyUI's euler_cfg_pp, around DDIM(1.0) euler_ancestral_cfg_pp,
    around GradientEstimation gradient_estimation_cfg_pp.

    Raises:
        ValueError: a solver without a grid; and on a grid, one whose rows CFG++ cannot guide.

    Source: Chung et al. 2024, algorithm 2.
    """

    solver: Solver
    guided_by_cfgpp = True

    def __post_init__(self) -> None:
        planned("CFGPlusPlus", self.solver)
        with_cfgpp(self.solver)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return with_cfgpp(self.solver).steps(schedule, t)


@dataclass(frozen=True)
@typed
class CFGPlusPlusVariant:
    r"""ComfyUI's samplers with CFG++ that differ from the rule, with D_w and D_u of the start and rho = sigma / alpha.

    - "2m": x_s = alpha_s [D_w + q (y - D_u) + (1 - q) h / 2 h_prev (D_w - D_u,prev)], q = rho_s / rho_t, y = x / alpha:
      the slope of DPM++ 2M from the unguided estimate before to the guided one now.
    - "res": from y + D_w - D_u in place of y, the step of RES in D_u alone, so that the change counts e^-h times; the
      first step and one to sigma = 0 are CFG++'s. The history's distance is that to the ancestral level, as there.
    - "2s": DPM++ 2S from y + D_w - D_u to the middle, at rho = sqrt(rho_t down), where D_w2 and D_u2 are evaluated;
      then down/rho (y + D_w - D_u2) + (1 - down/rho) D_w2: the change at the start is taken with D_u2 for D_u.
    - "ud10-ab": eps_u extrapolated by a tenth of its change, and a quarter of the step by Adams-Bashforth; a step to
      sigma = 0 extrapolates D_w to it. In the coordinates y, but on flow, alpha = 1 - sigma, in x itself.

    Args:
        form: "2m", "res", "2s" or "ud10-ab".
        eta: ancestral noise of "res" and "2s", see AncestralSplit; one number, or one a step (see eta.py).

    Without guidance "2m" and "res" are exact in the limit of many steps; "2s" is 6 % too narrow in however many (four
    Gaussians), as its middle's estimate stands for the start's, and "ud10-ab" 3 %.

    On flow models ComfyUI takes x for y, but for "ud10-ab": InSigma(CFGPlusPlusVariant(..)), where a change counts 1
    and not alpha.

    Raises:
        ValueError: a value out of range.

    Source: ComfyUI's sample_dpmpp_2m_cfg_pp, sample_res_multistep_cfg_pp, sample_dpmpp_2s_ancestral_cfg_pp (2025-10)
    and sample_cfgpp_ud10_ab (2026-08).
    """

    form: str
    eta: float | Callable[[float, float], float] = 0.0
    guided_by_cfgpp = True

    def __post_init__(self) -> None:
        checked_eta("CFGPlusPlusVariant", self.eta)
        if self.form not in _FORMS:
            raise unknown("CFGPlusPlusVariant: form", self.form, _FORMS)
        if self.form in ("2m", "ud10-ab") and self.eta:
            raise ValueError(f"CFGPlusPlusVariant: eta = {self.eta} belongs to res and 2s; leave it out")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        units, sigma = schedule.alpha(t), schedule.sigma(t)
        flow = self.form == "ud10-ab" and np.allclose(units + sigma, 1.0, 0.0, 1e-12)
        if flow:
            units = np.ones_like(sigma)
        first = int(units[0] == 0.0)  # nothing before pure noise depends on x
        etas = np.broadcast_to(etas_of("CFGPlusPlusVariant", self.eta, schedule, t), len(t) - 1).tolist()
        groups = CFGPlusPlus(DDIM(min(etas[0], 1.0))).steps(schedule, t[:2]) if first else []
        if len(t) == 1 + first:
            return groups
        path = _Path(schedule, t[first:], units[first:], (sigma[first:] / units[first:]).tolist(), etas[first:])
        return called(groups + _FORMS[self.form](path))


@dataclass(frozen=True)
class _Path:
    """Knots with y = x / units and the noise ``rho`` of y."""

    schedule: Schedule
    t: Array
    units: Array
    rho: list[float]
    eta: list[float]

    def row(self, k: int, a: float, b: float, w: tuple[float, ...] = (), c: float = 0.0, **more: Any) -> Row:
        """Return the row y <- a y + b m + sum w h + c z of step k."""
        start, unit = float(self.units[k]), float(self.units[k + 1])
        t, s = float(self.t[k]), float(self.t[k + 1])
        return Row(t, s, a * unit / start, b * unit, c * unit, tuple(v * unit for v in w), **more)

    def keep(self, k: int, push: int, **more: Any) -> Row:
        """Return the row that stores m at the start of step k."""
        t = float(self.t[k])
        return Row(t, t, 1.0, 0.0, push=push, **more)

    def at(self, rho: float) -> tuple[float, float]:
        """Return the time of a level, and the units there."""
        t = float(t_of_lam(self.schedule, -np.log(np.array([rho])))[0])
        return t, float(self.schedule.alpha(t))

    def split(self, k: int) -> tuple[float, float]:
        """Return the levels (down, up) of step k."""
        down, up = ancestral_split(self.rho[k], np.array(self.rho[k + 1]), self.eta[k])
        return float(down), float(up)


def _multistep(path: _Path) -> list[list[Row]]:
    groups, h_prev = [], math.inf
    for k, (rho, rho_s) in enumerate(pairwise(path.rho)):
        if rho_s == 0.0:
            groups.append([path.row(k, 0.0, 1.0)])
            continue
        q, h = rho_s / rho, math.log(rho / rho_s)
        slope = (1.0 - q) * 0.5 * h / h_prev
        groups.append(_two_estimates(path, k, q, 1.0 - q + slope, 0.0 - slope, 1.0 + slope))
        h_prev = h
    return groups


def _res(path: _Path) -> list[list[Row]]:
    groups, before = [], None  # of the step before, ln(rho / down)
    for k, rho in enumerate(path.rho[:-1]):
        down, up = path.split(k)
        if down == 0.0:
            groups.append([path.row(k, 0.0, 1.0, c=up)])
            continue
        q, h = down / rho, math.log(rho / down)
        old, change = 0.0, 1.0
        if before is not None:
            _, slope = exponential_moments(h, 2)
            old, change = -slope * h / before, q
        groups.append(_two_estimates(path, k, q, 1.0 - q - old, old, change, up))
        before = h
    return groups


def _two_estimates(path: _Path, k: int, q: float, now: float, old: float, change: float, c: float = 0.0) -> list[Row]:
    """Return y <- q y + now D_u + old D_u,prev + change (D_w - D_u) + c z; slot 0 keeps D_u."""
    keep = path.keep(k, 1, change=True)
    return [keep, path.row(k, q, now, (old, change), c, push=0, evaluate=False, guide=0.0)]


def _single_step(path: _Path) -> list[list[Row]]:
    groups = []
    for k, rho in enumerate(path.rho[:-1]):
        down, up = path.split(k)
        if down == 0.0:
            groups.append([path.row(k, 0.0, 1.0, c=up)])
            continue
        middle = math.sqrt(rho * down)
        t, unit = path.at(middle)
        r, q = down / middle, down / rho
        start, end = float(path.units[k]), float(path.units[k + 1])
        half = Row(
            float(path.t[k]), t, middle / rho * unit / start, (1.0 - middle / rho) * unit, 0.0, (unit,),
            push=1, evaluate=False, guide=0.0,
        )  # fmt: skip
        w = (end * (q - r), end * (2.0 * q - r), end * (1.0 - q))
        rest = Row(
            t, float(path.t[k + 1]), r * end / unit, (1.0 - 2.0 * q) * end, up * end, w, evaluate=False, guide=0.0
        )
        keep = Row(t, t, 1.0, 0.0, push=2, change=True)
        groups.append([path.keep(k, 0, change=True), half, keep, rest])
    return groups


def _extrapolated(path: _Path) -> list[list[Row]]:
    """The form ud10-ab. With a = alpha / units the plain step is E = a_s D_w + rho_s e~ - y = P + own e + older e_prev.

    Slots 0 and 1 keep e = eps_u of two steps, 2 and 3 P = (a_s - a) D_u + a_s (D_w - D_u) over ``scale``.
    """
    a, rho = (path.schedule.alpha(path.t) / path.units).tolist(), path.rho
    groups: list[list[Row]] = []
    dt_prev, scale_prev, own_prev, older_prev = math.inf, 0.0, 0.0, 0.0
    for k, (start, end) in enumerate(pairwise(rho)):
        dt, (e_now, e_old), (p_now, p_old) = end - start, (k % 2, (k + 1) % 2), (2 + k % 2, 2 + (k + 1) % 2)
        w = [0.0] * 4
        if end == 0.0:  # D_w - rho (D_w - D_w,prev) / (rho - rho_prev)
            w[e_now] = start / dt_prev
            groups.append([path.row(k, 0.0, 1.0 - w[e_now], tuple(w))])
            break
        ratio = dt / dt_prev
        now, before = 1.0 + 0.125 * ratio, 0.125 * ratio**2  # y_s = y + now E - before E_prev
        own, older = end * (1.0 + 0.1 * ratio) - start, -0.1 * end * ratio
        w[p_old], w[e_now] = -before * scale_prev, -before * older_prev
        w[e_old] = now * older - before * own_prev
        if rho[k + 2 : k + 3] == [0.0]:  # the step to the data wants D_w of this one, and nothing else
            w[p_now] = now * (own + start)
            store = path.keep(k, p_now, m="eps", guide=0.0)
            step = path.row(k, 1.0 - now, now * a[k + 1], tuple(w), push=e_old, evaluate=False)
        else:
            scale = a[k + 1] - a[k]
            change = abs(scale) < 1e-12
            scale = 1.0 if change else scale
            w[p_now] = now * scale
            store = path.keep(k, p_now, guide=a[k + 1] / scale, change=change)
            step = path.row(k, 1.0, now * own, tuple(w), push=e_now, evaluate=False, m="eps", guide=0.0)
            scale_prev, own_prev, older_prev = scale, own, older
        dt_prev = dt
        groups.append([store, step])
    return groups


_FORMS: dict[str, Callable[[_Path], list[list[Row]]]] = {
    "2m": _multistep, "res": _res, "2s": _single_step, "ud10-ab": _extrapolated,
}  # fmt: skip
