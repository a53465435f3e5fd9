"""Samplers in lam = ln(alpha / sigma) as plain loops, from their papers or first codes. Imports NumPy only.

All of them are written for y = x / alpha, a process with alpha = 1 and the noise rho = sigma / alpha, which is what any
linear process is; then lam = -ln rho, a prediction of x_0 is D(y, 1, rho) and eps = (y - D) / rho. Where the papers
have alpha, it is 1. Nothing is eliminated: each step starts from its own y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from textbook import Denoiser, Process

Step = Callable[[Denoiser, np.ndarray, float, float, Iterator], np.ndarray]


def _levels(process: Process, times) -> list[float]:
    return [process.sigma(t) / process.alpha(t) for t in times]


def _eps(D: Denoiser, y: np.ndarray, rho: float) -> np.ndarray:
    return (y - D(y, 1.0, rho)) / rho


def one_step(process: Process, D: Denoiser, times, x, z: Iterator, step: Step) -> np.ndarray:
    """One interval at a time; a step to rho = 0 is D."""
    y = x / process.alpha(times[0])
    for high, low in pairwise(_levels(process, times)):
        y = step(D, y, high, low, z)
    return process.alpha(times[-1]) * y


# --- single-step DPM-Solver -------------------------------------------------------------------


def dpm_solver_1(D: Denoiser, y, high: float, low: float, z: Iterator) -> np.ndarray:
    """Lu et al. 2022a, eq. 3.7."""
    return D(y, 1.0, high) if low == 0.0 else y - low * np.expm1(np.log(high / low)) * _eps(D, y, high)


def dpm_solver_2(D: Denoiser, y, high: float, low: float, z: Iterator) -> np.ndarray:
    """Lu et al. 2022a, algorithm 1."""
    if low == 0.0:
        return D(y, 1.0, high)
    h = np.log(high / low)
    middle = high * np.exp(-h / 2.0)
    u = y - middle * (np.exp(h / 2.0) - 1.0) * _eps(D, y, high)
    return y - low * (np.exp(h) - 1.0) * _eps(D, u, middle)


def dpm_solver_3(D: Denoiser, y, high: float, low: float, z: Iterator) -> np.ndarray:
    """Lu et al. 2022a, algorithm 2."""
    if low == 0.0:
        return D(y, 1.0, high)
    r1, r2, h = 1.0 / 3.0, 2.0 / 3.0, np.log(high / low)
    s1, s2 = high * np.exp(-r1 * h), high * np.exp(-r2 * h)
    e = _eps(D, y, high)
    d1 = _eps(D, y - s1 * (np.exp(r1 * h) - 1.0) * e, s1) - e
    phi = (np.exp(r2 * h) - 1.0) / (r2 * h) - 1.0
    d2 = _eps(D, y - s2 * (np.exp(r2 * h) - 1.0) * e - s2 * r2 / r1 * phi * d1, s2) - e
    return y - low * (np.exp(h) - 1.0) * e - low / r2 * ((np.exp(h) - 1.0) / h - 1.0) * d2


def dpm_fast(process: Process, D: Denoiser, times, x, z: Iterator) -> np.ndarray:
    """Lu et al. 2022a, section 3.3: as many evaluations as there are intervals, in blocks even in ln rho."""
    y, rho = x / process.alpha(times[0]), _levels(process, times)
    n = sum(level > 0.0 for level in rho) - 1
    orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    knots = np.geomspace(rho[0], rho[n], len(orders) + 1)
    for order, (high, low) in zip(orders, pairwise(knots), strict=True):
        y = (dpm_solver_1, dpm_solver_2, dpm_solver_3)[order - 1](D, y, high, low, z)
    return process.alpha(times[-1]) * (D(y, 1.0, knots[-1]) if rho[-1] == 0.0 else y)


def dpmpp_2s(D: Denoiser, y, high: float, low: float, z: Iterator, middle: float | None = None) -> np.ndarray:
    """Lu et al. 2022b, algorithm 1; r = 1/2 unless the intermediate level is given."""
    if low == 0.0:
        return D(y, 1.0, high)
    h = np.log(high / low)
    r = 0.5 if middle is None else np.log(high / middle) / h
    s, x0 = high * np.exp(-r * h), D(y, 1.0, high)
    u = s / high * y - np.expm1(-r * h) * x0
    x0 = (1.0 - 1.0 / (2.0 * r)) * x0 + 1.0 / (2.0 * r) * D(u, 1.0, s)
    return low / high * y - np.expm1(-h) * x0


def dpmpp_3s(D: Denoiser, y, high: float, low: float, z: Iterator) -> np.ndarray:
    """Lu et al. 2022a, algorithm 2, written for x_0: expm1 of -h for h, and both signs."""
    if low == 0.0:
        return D(y, 1.0, high)
    r1, r2, h = 1.0 / 3.0, 2.0 / 3.0, np.log(high / low)
    s1, s2 = high * np.exp(-r1 * h), high * np.exp(-r2 * h)
    x0 = D(y, 1.0, high)
    d1 = D(s1 / high * y - np.expm1(-r1 * h) * x0, 1.0, s1) - x0
    phi = np.expm1(-r2 * h) / (r2 * h) + 1.0
    d2 = D(s2 / high * y - np.expm1(-r2 * h) * x0 + r2 / r1 * phi * d1, 1.0, s2) - x0
    return low / high * y - np.expm1(-h) * x0 + (np.expm1(-h) / h + 1.0) / r2 * d2


def dpmpp_2s_on_grid(process: Process, D: Denoiser, times, x, z: Iterator) -> np.ndarray:
    """Two intervals a step; what is left over, and the step to rho = 0, is first order."""
    y, rho = x / process.alpha(times[0]), _levels(process, times)
    while len(rho) > 1:
        if len(rho) > 2 and rho[2] > 0.0:
            y, rho = dpmpp_2s(D, y, rho[0], rho[2], z, rho[1]), rho[2:]
        else:
            y, rho = dpm_solver_1(D, y, rho[0], rho[1], z), rho[1:]
    return process.alpha(times[-1]) * y


def dpmpp_sde(D: Denoiser, y, high: float, low: float, z: Iterator, eta: float = 1.0) -> np.ndarray:
    """k-diffusion's sample_dpmpp_sde with r = 1/2; each of its two moves goes down further and adds noise."""
    if low == 0.0:
        return D(y, 1.0, high)

    def move(level: float, x0: np.ndarray) -> np.ndarray:
        h = np.log(high / level)
        decay = np.exp(-(eta**2) * h)
        mean = level / high * decay * y - np.expm1(-(1.0 + eta**2) * h) * x0
        return mean + level * np.sqrt(1.0 - decay**2) * next(z)

    middle = np.sqrt(high * low)
    return move(low, D(move(middle, D(y, 1.0, high)), 1.0, middle))


def ancestral(D: Denoiser, y, high: float, low: float, z: Iterator, step: Step, eta: float = 1.0) -> np.ndarray:
    """k-diffusion's ancestral samplers: a step to sigma_down, then noise sigma_up."""
    if low == 0.0:
        return D(y, 1.0, high)
    up = min(low, eta * np.sqrt(low**2 * (high**2 - low**2) / high**2))
    down = low**2 / high if eta == 1.0 else np.sqrt(low**2 - up**2)  # the same, without cancellation
    return step(D, y, high, down, z) + up * next(z)


def churned(process: Process, D: Denoiser, times, x, z: Iterator, step: Step, churn, low, high, noise) -> np.ndarray:
    """Karras et al. 2022, algorithm 2, around any step."""
    y, rho = x / process.alpha(times[0]), _levels(process, times)
    for i in range(len(rho) - 1):
        gamma = min(churn / (len(rho) - 1), np.sqrt(2.0) - 1.0) if low <= rho[i] <= high else 0.0
        hat = rho[i] * (1.0 + gamma)
        if gamma > 0.0:
            y = y + np.sqrt(hat**2 - rho[i] ** 2) * noise * next(z)
        y = step(D, y, hat, rho[i + 1], z)
    return process.alpha(times[-1]) * y


def heun(D: Denoiser, y, high: float, low: float, z: Iterator) -> np.ndarray:
    """Karras et al. 2022, algorithm 1."""
    d = _eps(D, y, high)
    after = y + (low - high) * d
    return after if low == 0.0 else y + (low - high) * (0.5 * d + 0.5 * _eps(D, after, low))


def repaint(process: Process, D: Denoiser, times, x, z: Iterator, jump: int, repeats: int) -> np.ndarray:
    """Lugmayr et al. 2022, algorithm 1, their time schedule (appendix B) walked step by step, DDPM on the way down."""
    rho = _levels(process, times)
    last = len(rho) - 1 - (rho[-1] == 0.0)  # their time 0 is the last level above the data
    y, k = x / process.alpha(times[0]), 0
    jumps = {last - at: repeats - 1 for at in range(0, last + 1 - jump, jump)}
    while k < len(rho) - 1:
        high, low = rho[k], rho[k + 1]
        y, k = D(y, 1.0, high) + (low / high) ** 2 * (y - D(y, 1.0, high)), k + 1
        if low > 0.0:
            y = y + low * np.sqrt(1.0 - (low / high) ** 2) * next(z)
        if jumps.get(k, 0) > 0:
            jumps[k] -= 1
            y, k = y + np.sqrt(rho[k - jump] ** 2 - rho[k] ** 2) * next(z), k - jump
    return process.alpha(times[-1]) * y


def restart(process: Process, D: Denoiser, times, x, z: Iterator, step: Step, low, high, steps, times_) -> np.ndarray:
    """Xu et al. 2023, algorithm 1, with one restart interval moved to the nearest level of the grid."""
    y, rho = x / process.alpha(times[0]), _levels(process, times)
    inner = [v for v in rho[1:] if v > 0.0]
    at = min(inner, key=lambda v: abs(v - low)) if inner else None
    for start, end in pairwise(rho):
        y = step(D, y, start, end, z)
        if end == at:
            back = (high ** (1 / 7) + np.arange(steps + 1) / steps * (at ** (1 / 7) - high ** (1 / 7))) ** 7
            for _ in range(times_):
                y = y + np.sqrt(high**2 - at**2) * next(z)
                for a, b in pairwise(back):
                    y = step(D, y, a, b, z)
    return process.alpha(times[-1]) * y


# --- multistep --------------------------------------------------------------------------------

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)


def _integral(weight: Callable, points: list[float], j: int, a: float, b: float) -> float:
    """int_a^b weight l_j, l_j the Lagrange polynomial of ``points``, by Gauss-Legendre quadrature."""
    v = 0.5 * (b - a) * _NODES + 0.5 * (a + b)
    lagrange = np.ones_like(v)
    for i, point in enumerate(points):
        if i != j:
            lagrange = lagrange * (v - point) / (points[j] - point)
    return 0.5 * (b - a) * float(np.sum(_WEIGHTS * weight(v) * lagrange))


def _decaying(rate: float, points: list[float], j: int, a: float, b: float) -> float:
    return rate * _integral(lambda v: np.exp(-rate * (b - v)), points, j, a, b)


def adams(
    process: Process, D: Denoiser, times, x, z: Iterator, order: int, kind: str, eta: float = 0.0, clean: bool = True
) -> np.ndarray:
    """Adams-Bashforth: polynomials through the last evaluations, integrated against the kind's weight.

    "x0": Lu et al. 2022b, eq. 9 and, with noise, Xue et al. 2023, eq. 14. "eps": Lu et al. 2022a, eq. 3.4, which is
    log-rho DEIS (Zhang & Chen 2023). "rho": rhoAB DEIS and k-diffusion's sample_lms; to rho = 0 as well if not clean.
    """
    y, rho = x / process.alpha(times[0]), _levels(process, times)
    points, values = [], []
    for high, low in pairwise(rho):
        if low == 0.0 and clean:
            return D(y, 1.0, high)
        points = [high if kind == "rho" else -np.log(high), *points][:order]
        values = [D(y, 1.0, high) if kind == "x0" else _eps(D, y, high), *values][:order]
        if kind == "rho":
            y = y + sum(m * _integral(np.ones_like, points, j, high, low) for j, m in enumerate(values))
            continue
        a, b, rate = -np.log(high), -np.log(low), 1.0 + eta**2
        if kind == "x0":
            y = low / high * np.exp(-(eta**2) * (b - a)) * y
            gains = [_decaying(rate, points, j, a, b) for j in range(len(values))]
            noise = low * np.sqrt(1.0 - np.exp(-2.0 * eta**2 * (b - a)))
        else:
            gains = [-rate * _integral(lambda v: np.exp(-v), points, j, a, b) for j in range(len(values))]
            noise = eta * np.sqrt(high**2 - low**2)
        y = y + sum(g * m for g, m in zip(gains, values, strict=True))
        if eta:
            y = y + noise * next(z)
    return process.alpha(times[-1]) * y


def dpm_multistep(
    process: Process, D: Denoiser, times, x, z: Iterator, order: int, kind: str = "x0", eta: float = 0.0
) -> np.ndarray:
    """DPM-Solver(++) with half the slope from two evaluations and, from three, half of the quadratic term.

    Recorded runs agree of order 2 (diffusers' and k-diffusion's "midpoint", x0 and eps, ODE and SDE) and of the ODE's
    order 3 in x0 (diffusers). Their order 3 of the SDE is another: k-diffusion has the exact slope in its second step,
    diffusers another sign; see test_variants.py.
    """
    y, rho = x / process.alpha(times[0]), _levels(process, times)
    m, steps = [], []
    for high, low in pairwise(rho):
        if low == 0.0:
            return D(y, 1.0, high)
        h = np.log(high / low)
        m = [D(y, 1.0, high) if kind == "x0" else _eps(D, y, high), *m][:order]
        H = (1.0 + eta**2) * h if kind == "x0" else -h
        gain = 1.0 if kind == "x0" else (1.0 + eta**2) * low
        decay = low / high * np.exp(-(eta**2) * h) if kind == "x0" else 1.0
        y = decay * y - gain * np.expm1(-H) * m[0]
        if len(m) == 2:
            y = y - 0.5 * gain * np.expm1(-H) * (m[0] - m[1]) / (steps[0] / h)
        if len(m) == 3:
            r0, r1 = steps[0] / h, steps[1] / h
            d0, d1 = (m[0] - m[1]) / r0, (m[1] - m[2]) / r1
            phi2 = np.expm1(-H) / H + 1.0
            phi3 = phi2 / H - 0.5
            y = y + gain * (phi2 * (d0 + r0 / (r0 + r1) * (d0 - d1)) - phi3 * (d0 - d1) / (r0 + r1))
        if eta:
            noise = low * np.sqrt(1.0 - np.exp(-2.0 * h)) if kind == "x0" else np.sqrt(high**2 - low**2)
            assert eta == 1.0
            y = y + noise * next(z)
        steps = [h, *steps]
    return process.alpha(times[-1]) * y


def unipc(
    process: Process, D: Denoiser, times, x, z: Iterator, p: int, variant: str = "bh2", kind: str = "x0"
) -> np.ndarray:
    """Zhao et al. 2023, algorithms 5 to 8: R rho = b, with rho = 1/2 for a single unknown of bh1 and bh2."""
    y, rho = x / process.alpha(times[0]), _levels(process, times)
    predicted, m, lam = y, [], []
    correct = None
    for high, low in pairwise(rho):
        new = D(predicted, 1.0, high) if kind == "x0" else _eps(D, predicted, high)
        if correct is not None:
            y = correct(new)
        if low == 0.0:
            return D(predicted, 1.0, high)
        m, lam = [new, *m][:p], [-np.log(high), *lam][:p]
        h = np.log(high / low)
        hh = -h if kind == "x0" else h
        B = hh if variant == "bh1" else np.expm1(hh)
        base = low / high * y - np.expm1(hh) * m[0] if kind == "x0" else y - low * np.expm1(hh) * m[0]
        r = [(v - lam[0]) / h for v in lam[1:]]
        slopes = [(v - m[0]) / ratio for v, ratio in zip(m[1:], r, strict=True)]

        def solve(r: list[float], hh: float = hh, B: float = B) -> list[float]:
            if len(r) == 1 and variant != "vary":
                return [0.5]
            b, phi, factorial = [], np.expm1(hh) / hh - 1.0, 1.0  # h phi_2
            for i in range(1, len(r) + 1):
                b.append(phi * factorial / B)
                factorial *= i + 1
                phi = phi / hh - 1.0 / factorial
            return np.linalg.solve([[v**i for v in r] for i in range(len(r))], b).tolist()

        gain = 1.0 if kind == "x0" else low
        predicted = (
            base - gain * B * sum((w * d for w, d in zip(solve(r), slopes, strict=True)), 0.0 * y) if r else base
        )

        def corrected(new, base=base, B=B, r=r, slopes=slopes, first=m[0], gain=gain, solve=solve) -> np.ndarray:
            weights = solve([*r, 1.0])
            return base - gain * B * sum(w * d for w, d in zip(weights, [*slopes, new - first], strict=True))

        correct, y_before = corrected, predicted
    return process.alpha(times[-1]) * y_before


def sa_solver(process: Process, D: Denoiser, times, x, z: Iterator, predictor: int, corrector: int, tau: float):
    """Xue et al. 2023, algorithm 1: predict with old evaluations, correct with the new one, the same noise."""
    y, rho = x / process.alpha(times[0]), _levels(process, times)
    rate = 1.0 + tau**2
    predicted, m, lam, last = y, [], [], None
    for high, low in pairwise(rho):
        m, lam = [D(predicted, 1.0, high), *m], [-np.log(high), *lam]
        if low == 0.0:
            return m[0]
        if last is not None and corrector:
            base, a = last
            y = base + _sa_sum(m, lam, corrector, rate, a, lam[0])
        else:
            y = predicted
        a, b = lam[0], -np.log(low)
        base = low / high * np.exp(-(tau**2) * (b - a)) * y
        if tau:
            base = base + low * np.sqrt(1.0 - np.exp(-2.0 * tau**2 * (b - a))) * next(z)
        predicted, last = base + _sa_sum(m, lam, predictor, rate, a, b), (base, a)
    return process.alpha(times[-1]) * predicted


def _sa_sum(m: list, lam: list[float], count: int, rate: float, a: float, b: float) -> np.ndarray:
    points = lam[:count]
    weights = [_decaying(rate, points, j, a, b) for j in range(len(points))]
    return sum(w * v for w, v in zip(weights, m, strict=False))


# --- pseudo numerical methods -----------------------------------------------------------------

_ADAMS = {1: [1.0], 2: [1.5, -0.5], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


def pndm(process: Process, D: Denoiser, times, x, z: Iterator, start: str, most: int = 4) -> np.ndarray:
    """Liu et al. 2022, algorithm 2; the transfer of eq. 11 is y + (rho' - rho) e.

    start "prk": three Runge-Kutta steps, then the last three evaluations, then four. "plms": diffusers' first step,
    done again with the mean of eps at its ends. "rising": iPNDM (Zhang & Chen 2023).
    """
    y, e = x / process.alpha(times[0]), []
    for k, (t, s) in enumerate(pairwise(times)):
        high, low = _levels(process, (t, s))
        if low == 0.0:
            return D(y, 1.0, high)
        e = [_eps(D, y, high), *e]
        if start == "prk" and k < 3:
            (middle,) = _levels(process, [0.5 * (t + s)])
            e2 = _eps(D, y + (middle - high) * e[0], middle)
            e3 = _eps(D, y + (middle - high) * e2, middle)
            e4 = _eps(D, y + (low - high) * e3, low)
            mean = (e[0] + 2.0 * e2 + 2.0 * e3 + e4) / 6.0
        elif start == "plms" and k == 0:
            mean = 0.5 * (e[0] + _eps(D, y + (low - high) * e[0], low))
        else:
            count = min(k if start == "prk" else k + 1, most)
            mean = sum(w * v for w, v in zip(_ADAMS[count], e, strict=False))
        y = y + (low - high) * mean
    return process.alpha(times[-1]) * y
