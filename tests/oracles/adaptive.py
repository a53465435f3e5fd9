r"""Adaptive integration written from the papers, in NumPy: nothing here reads fastscore but its normals.

The state is y on the unit circle, alpha = cos phi, sigma = sin phi, of Gaussian-mixture data; errors are weighed on x
of EDM, x = y / cos phi. Each sample is integrated by itself, or all of them together where steps are shared.

Sources: Dormand & Prince 1980 and Bogacki & Shampine 1989 (coefficients as SciPy has them); Lu et al. 2022a, algorithms
1 and 2 and appendix C; Jolicoeur-Martineau et al. 2021, algorithm 1; Söderlind 2003 (controllers); k-diffusion's
PIDStepSizeController.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.integrate import RK23, RK45

from fastscore.ops.noise import NoiseKey

MEANS = np.array([[-0.8, 0.3, 0.5], [0.6, -0.2, -0.7]])
STDS, WEIGHTS = np.array([0.3, 0.15]), np.array([0.4, 0.6])
UNITS, KEPT_BITS = 1 << 16, 3
Array = np.ndarray


@dataclass(frozen=True)
class Settings:
    """What a run is told, in numbers; the defaults are the documented ones of Dopri5."""

    rtol: float = 1e-5
    atol: float = 1e-5
    first: float = 0.05
    order: float = 5.0
    i: float = 0.4
    p: float = 0.3
    d: float = 0.0
    safety: float = 0.9
    low: float = 0.2
    high: float = 5.0
    smooth: bool = False
    longest: float = math.inf
    together: bool = False
    accepted_below: float = 1.0
    largest: bool = False  # the error of the worst element in place of the root mean square


def denoised(y: Array, phi: float) -> Array:
    """Return E[x_0 | y] of the mixture, [n, D]."""
    alpha, sigma = math.cos(phi), math.sin(phi)
    variance = alpha**2 * STDS**2 + sigma**2
    offset = y[:, None] - alpha * MEANS
    log = np.log(WEIGHTS) - 0.5 * (offset**2).sum(2) / variance - 0.5 * y.shape[1] * np.log(variance)
    weight = np.exp(log - log.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    return (weight[:, :, None] * (MEANS + (alpha * STDS**2 / variance)[:, None] * offset)).sum(1)


def eps(y: Array, lam: float) -> Array:
    """Return E[z | y] at ln(alpha / sigma) = lam."""
    phi = math.atan2(1.0, math.exp(lam))
    return (y - math.cos(phi) * denoised(y, phi)) / math.sin(phi)


def circle(lam: float) -> tuple[float, float]:
    """Return alpha and sigma with ln(alpha / sigma) = lam."""
    return 1.0 / math.sqrt(1.0 + math.exp(-2.0 * lam)), 1.0 / math.sqrt(1.0 + math.exp(2.0 * lam))


# One step each: (y, clock, step, noise) -> result and result of lower order.


def runge_kutta(method: type) -> Callable[..., tuple[Array, Array]]:
    def rate(y: Array, phi: float) -> Array:
        return (math.cos(phi) * y - denoised(y, phi)) / math.sin(phi)

    def step(y: Array, phi: float, h: float, noise: Array) -> tuple[Array, Array]:
        k = []
        for c, row in zip(method.C, method.A, strict=True):
            k.append(rate(y + h * sum((a * v for a, v in zip(row, k, strict=False)), np.zeros_like(y)), phi + c * h))
        high = y + h * sum(b * v for b, v in zip(method.B, k, strict=True))
        k.append(rate(high, phi + h))
        return high, high + h * sum(e * v for e, v in zip(method.E, k, strict=True))

    return step


def dpm12(y: Array, lam: float, h: float, noise: Array) -> tuple[Array, Array]:
    (a, _), (a1, s1), (a2, s2) = circle(lam), circle(lam + 0.5 * h), circle(lam + h)
    e = eps(y, lam)
    u = a1 / a * y - s1 * math.expm1(0.5 * h) * e
    return a2 / a * y - s2 * math.expm1(h) * eps(u, lam + 0.5 * h), a2 / a * y - s2 * math.expm1(h) * e


def dpm23(y: Array, lam: float, h: float, noise: Array) -> tuple[Array, Array]:
    """DPM-Solver-3 with r = 1/3 and 2/3, and DPM-Solver-2 with r = 1/3 that shares its first point."""
    r1, r2 = 1.0 / 3.0, 2.0 / 3.0
    (a, _), (a1, s1), (a2, s2), (a3, s3) = (circle(lam + r * h) for r in (0.0, r1, r2, 1.0))
    e = eps(y, lam)
    u1 = a1 / a * y - s1 * math.expm1(r1 * h) * e
    D1 = eps(u1, lam + r1 * h) - e
    u2 = a2 / a * y - s2 * math.expm1(r2 * h) * e - s2 * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1.0) * D1
    D2 = eps(u2, lam + r2 * h) - e
    high = a3 / a * y - s3 * math.expm1(h) * e - s3 / r2 * (math.expm1(h) / h - 1.0) * D2
    return high, a3 / a * y - s3 * math.expm1(h) * e - s3 / (2.0 * r1) * math.expm1(h) * D1


def gotta_go_fast(y: Array, lam: float, h: float, noise: Array) -> tuple[Array, Array]:
    def drift(v: Array, at: float) -> Array:
        sigma = circle(at)[1]
        return sigma**2 * v - 2.0 * sigma * eps(v, at)

    g, g_end = (math.sqrt(2.0) * circle(at)[1] for at in (lam, lam + h))
    low = y + h * drift(y, lam) + g * noise
    return 0.5 * (y + low + h * drift(low, lam + h) + g_end * noise), low


STEPS = {"dopri5": runge_kutta(RK45), "bs32": runge_kutta(RK23), "dpm12": dpm12, "dpm23": dpm23, "ggf": gotta_go_fast}


@cache
def normal(seed: int, id: int, draw: int, d: int) -> Array:
    """Return the normals of one draw of a sample, [1, d]."""
    return NoiseKey.of(seed, [id]).normal(draw, d).double().numpy()


class Brownian:
    """Levy's construction on [0, S] in 2^16 units, from the draws of one sample."""

    def __init__(self, span: float, seed: int, id: int, d: int) -> None:
        self.span, self.seed, self.id, self.d, self.at, self.w = span, seed, id, d, 0, np.zeros((1, d))

    def _normal(self, draw: int) -> Array:
        return normal(self.seed, self.id, draw, self.d)

    def value(self, unit: int) -> Array:
        """Return W at a whole unit."""
        s, unit_length = unit * self.span / UNITS, self.span / UNITS
        w = s / math.sqrt(self.span) * self._normal(1)
        for level in range(16):
            length = UNITS >> level
            k, offset = divmod(unit, length)
            if offset:
                height = min(offset, length - offset) * unit_length / math.sqrt(length * unit_length)
                w = w + height * self._normal(1 + (1 << level) + k)
        return w

    def aim(self, h: float, last: bool) -> int:
        """Return the unit that a step leads to: one whose number has few bits, but for the last one."""
        units = UNITS - self.at if last else min(int(h * (UNITS / self.span)), UNITS - self.at - 1)
        coarse = max(units.bit_length() - 1 - KEPT_BITS, 0)
        return ((self.at + units) >> coarse) << coarse


def integrate(
    name: str, y: Array, start: float, end: float, s: Settings, path: Brownian | None = None
) -> tuple[Array, int, int]:
    """Return the last state [n, D], and how many steps were tried and rejected: all n together, on one clock."""
    step, in_angle = STEPS[name], name in ("dopri5", "bs32")

    def length(clock: float) -> float:
        phi = clock if in_angle else math.atan2(1.0, math.exp(clock))
        return 1.0 / math.cos(phi)

    clock, h, tried, rejected = start, s.first, 0, 0
    before = np.abs(y) * length(clock)
    history: list[float] | None = None  # 1/e of the last two accepted steps
    while clock != end:
        last = h >= abs(end - clock)
        size, reach, noise = abs(end - clock) if last else h, end, np.zeros_like(y)
        if path is not None:
            unit = path.aim(size, last)
            size, noise = (unit - path.at) * (path.span / UNITS), path.value(unit) - path.w
        signed = math.copysign(size, end - clock)
        if not last:
            reach = clock + signed
        high, low = step(y, clock, signed, noise)
        x_low = np.abs(low) * length(reach)
        weighed = (high - low) * length(reach) / np.maximum(s.atol, s.rtol * np.maximum(x_low, before))
        e = float(np.abs(weighed).max() if s.largest else math.sqrt(np.mean(weighed**2)))
        tried += 1

        new = 1.0 / (e + 1e-8)
        older = history or [new, new]
        a, b, c = (s.p + s.i + s.d) / s.order, -(s.p + 2.0 * s.d) / s.order, s.d / s.order
        factor = s.safety * new**a * older[0] ** b * older[1] ** c
        if s.smooth:
            factor = 1.0 + math.atan(factor - 1.0)
            good = factor >= 0.81 * s.accepted_below
        else:
            good = e <= s.accepted_below
            factor = min(max(factor if good else min(factor, s.safety), s.low), s.high)
        h = min(size * factor, s.longest)
        history = history or older
        if good:
            clock, y, before, history = reach, high, x_low, [new, older[0]]
            if path is not None:
                path.at, path.w = unit, path.w + noise
        else:
            rejected += 1
    return y, tried, rejected
