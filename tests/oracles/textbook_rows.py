"""Samplers of 2022 to 2024 as plain loops, from their papers or first codes. Imports NumPy only.

As in textbook_exponential.py they are written for y = x / alpha and rho = sigma / alpha, nothing is eliminated, and
every integral is a sum over Gauss-Legendre nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from textbook import Denoiser, Process
from textbook_exponential import _eps, _integral, _levels


def E1(H: float) -> float:
    return 1.0 - np.exp(-H)


def E2(H: float) -> float:
    return (np.exp(-H) - 1.0 + H) / H


def in_sigma(process: Process, D: Denoiser, times, x, z: Iterator, loop: Callable) -> np.ndarray:
    """ComfyUI's samplers on a flow: alpha is 1 in the loop, and the network is asked at the flow's own level."""
    start, end = (process.alpha(t) + process.sigma(t) for t in (times[0], times[-1]))
    if not np.isclose(start, 1.0) or not np.isclose(end, 1.0):
        return loop(process, D, times, x, z)
    blind = Process(lambda t: 1.0, process.sigma, process.f, process.g2)
    return loop(blind, lambda y, _, sigma: D(y, 1.0 - sigma, sigma), times, x, z)


# --- ER-SDE -----------------------------------------------------------------------------------


def _log10_scale(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inner = 1.0 + 100.0 * v**1.5
    log, slope = np.log10(inner), 150.0 * v**0.5 / inner / np.log(10.0)
    return v**0.9 * log, 0.9 * v**-0.1 * log + v**0.9 * slope


# phi and its derivative: Cui et al. 2023, section 4.2, and the authors' code.
PHI: dict[str, Callable] = {
    "ode": lambda v: (v, np.ones_like(v)),
    "sde": lambda v: (v**2, 2.0 * v),
    "sde_1": lambda v: (v * (np.exp(-1.0 / v) + 10.0), np.exp(-1.0 / v) + 10.0 + np.exp(-1.0 / v) / v),
    "sde_2": lambda v: (v**1.5, 1.5 * v**0.5),
    "sde_3": lambda v: (v**2.5, 2.5 * v**1.5),
    "sde_4": _log10_scale,
    "sde_5": lambda v: (v * (np.exp(v**0.3) + 10.0), np.exp(v**0.3) * (1.0 + 0.3 * v**0.3) + 10.0),
}


def er_sde(process: Process, D: Denoiser, times, x, z: Iterator, order: int, scale: str, taylor: bool = False):
    """Cui et al. 2023, eq. 17: the weight of D(v) is phi' / phi^2; D is Newton's polynomial, or their Taylor series."""
    y, rho, phi = x / process.alpha(times[0]), _levels(process, times), PHI[scale]
    levels, m = [], []
    for high, low in pairwise(rho):
        levels, m = [high, *levels][:order], [D(y, 1.0, high), *m][:order]
        if low == 0.0:
            return m[0]
        at_low, at_high = (float(phi(np.array(v))[0]) for v in (low, high))

        def weight(v: np.ndarray, scaled: float = at_low) -> np.ndarray:
            value, slope = phi(v)
            return scaled * slope / value**2

        kept = at_low / at_high
        new = kept * y + (1.0 - kept) * m[0]
        if len(m) > 1:
            first = (m[0] - m[1]) / (levels[0] - levels[1])
            new = new + _over(lambda v, w=weight, a=high: w(v) * (v - a), low, high) * first
        if len(m) > 2:
            second = (first - (m[1] - m[2]) / (levels[1] - levels[2])) / (levels[0] - levels[2])
            node = high if taylor else levels[1]
            new = new + _over(lambda v, w=weight, a=high, b=node: w(v) * (v - a) * (v - b), low, high) * second
        variance = low**2 - (high * kept) ** 2
        if scale != "ode":
            new = new + np.sqrt(variance) * next(z)
        y = new
    return process.alpha(times[-1]) * y


def offset_of(scale: str, high: float, low: float, std: float) -> float:
    """What is left of an offset of y's mean: d ln(offset) = phi' / phi rho^2 / (std^2 + rho^2) d rho."""
    phi = PHI[scale]
    return float(np.exp(-_over(lambda v: phi(v)[1] / phi(v)[0] * v**2 / (std**2 + v**2), low, high)))


def _over(function: Callable, low: float, high: float) -> float:
    """The integral from low to high, in parts by which v doubles at most."""
    edges = np.geomspace(low, high, 2 + int(np.log2(high / low)))
    return sum(_integral(function, [0.0], 0, a, b) for a, b in pairwise(edges))


# --- SEEDS and RES ----------------------------------------------------------------------------


def seeds_2(D: Denoiser, y, high: float, low: float, z: Iterator, eta: float, r: float = 0.5, exact: bool = False):
    """Gonzalez et al. 2023, algorithm 3, with any r and eta; both draws belong to one path."""
    if low == 0.0:
        return D(y, 1.0, high)
    h, noise = np.log(high / low), eta**2
    middle, H = high * np.exp(-r * h), (1.0 + noise) * h
    z1 = next(z) if eta else 0.0
    z2 = next(z) if eta and r < 1.0 else 0.0
    d = D(y, 1.0, high)
    u = (
        middle / high * np.exp(-r * noise * h) * y
        + E1(r * H) * d
        + middle * np.sqrt(1 - np.exp(-2 * r * noise * h)) * z1
    )
    last = E2(H) / r if exact else E1(H) / (2.0 * r)
    new = low / high * np.exp(-noise * h) * y + (E1(H) - last) * d + last * D(u, 1.0, middle)
    first = np.exp(-(1.0 - r) * noise * h) * np.sqrt(1.0 - np.exp(-2.0 * r * noise * h)) * z1
    return new + low * (first + np.sqrt(1.0 - np.exp(-2.0 * (1.0 - r) * noise * h)) * z2)


def seeds_3(D: Denoiser, y, high: float, low: float, z: Iterator, eta: float, r1: float = 1 / 3, r2: float = 2 / 3):
    """Gonzalez et al. 2023, algorithm 4; the path's noise after the parts r1, r2 and 1 of the step."""
    if low == 0.0:
        return D(y, 1.0, high)
    h, noise = np.log(high / low), eta**2
    s1, s2, H = high * np.exp(-r1 * h), high * np.exp(-r2 * h), (1.0 + noise) * h

    def further(n, part: float):
        if not eta:
            return 0.0
        return np.exp(-part * noise * h) * n + np.sqrt(1.0 - np.exp(-2.0 * part * noise * h)) * next(z)

    n1 = further(0.0, r1)
    n2 = further(n1, r2 - r1)
    n3 = further(n2, 1.0 - r2)
    d = D(y, 1.0, high)
    d1 = D(s1 / high * np.exp(-r1 * noise * h) * y + E1(r1 * H) * d + s1 * n1, 1.0, s1)
    w = r2 / r1 * E2(r2 * H)
    d2 = D(s2 / high * np.exp(-r2 * noise * h) * y + (E1(r2 * H) - w) * d + w * d1 + s2 * n2, 1.0, s2)
    b = E2(H) / r2
    return low / high * np.exp(-noise * h) * y + (E1(H) - b) * d + b * d2 + low * n3


def res_2s(D: Denoiser, y, high: float, low: float, z: Iterator, c2: float):
    """Zhang et al. 2023 (RES), algorithm 1, with the exponential weights of Hochbruck & Ostermann 2010."""
    if low == 0.0:
        return D(y, 1.0, high)
    h = np.log(high / low)
    phi1, phi2 = E1(h) / h, E2(h) / h  # of -h
    d = D(y, 1.0, high)
    middle = high * np.exp(-c2 * h)
    u = np.exp(-c2 * h) * y + c2 * h * (E1(c2 * h) / (c2 * h)) * d
    return np.exp(-h) * y + h * ((phi1 - phi2 / c2) * d + phi2 / c2 * D(u, 1.0, middle))


def res_multistep(process: Process, D: Denoiser, times, x, z: Iterator, eta: float):
    """Zhang et al. 2023 (RES), algorithm 2, down to less noise than wanted, and the rest of it fresh, as in ComfyUI."""
    y, rho = x / process.alpha(times[0]), _levels(process, times)
    before = None
    for high, low in pairwise(rho):
        d = D(y, 1.0, high)
        if low == 0.0:
            return d
        up = min(low, eta * np.sqrt(low**2 * (high**2 - low**2) / high**2))
        down = low**2 / high if eta == 1.0 else np.sqrt(low**2 - up**2)
        h = np.log(high / down)
        new = np.exp(-h) * y + E1(h) * d
        if before is not None:
            c2 = -before[1] / h
            new = new + E2(h) / c2 * (before[0] - d)
        before, y = (d, h), new + (up * next(z) if eta else 0.0)
    return process.alpha(times[-1]) * y


# --- eps in rho -------------------------------------------------------------------------------


def gradient_estimation(process: Process, D: Denoiser, times, x, z: Iterator, gamma: float):
    """Permenter & Yuan 2024, algorithm 2."""
    y, before = x / process.alpha(times[0]), None
    for high, low in pairwise(_levels(process, times)):
        if low == 0.0:
            return D(y, 1.0, high)
        e = _eps(D, y, high)
        y, before = y + (low - high) * (e if before is None else gamma * e + (1.0 - gamma) * before), e
    return process.alpha(times[-1]) * y


def heun_plus_plus(process: Process, D: Denoiser, times, x, z: Iterator):
    """ComfyUI's sample_heunpp2: the weights are levels over that of the run's start."""
    y, rho = x / process.alpha(times[0]), _levels(process, times)
    last = len(rho) - 2
    for k, (high, low) in enumerate(pairwise(rho)):
        if low == 0.0:
            return D(y, 1.0, high)
        e = _eps(D, y, high)
        if k == last:
            mean = e
        else:
            u = y + (low - high) * e
            e_s = _eps(D, u, low)
            if k == last - 1:
                share = low / (2.0 * rho[0])
                mean = (1.0 - share) * e + share * e_s
            else:
                e_u = _eps(D, u + (rho[k + 2] - low) * e_s, rho[k + 2])
                share, share_u = low / (3.0 * rho[0]), rho[k + 2] / (3.0 * rho[0])
                mean = (1.0 - share - share_u) * e + share * e_s + share_u * e_u
        y = y + (low - high) * mean
    return process.alpha(times[-1]) * y


def deis_tab(process: Process, D: Denoiser, times, x, z: Iterator, order: int):
    """Zhang & Chen 2023, eq. 14 (tAB), t of the VP process that diff-sampler fixes."""
    e, low_end, high_end = 1e-3, 0.002, 80.0
    beta_d = 2.0 * (np.log(low_end**2 + 1.0) / e - np.log(high_end**2 + 1.0)) / (e - 1.0)
    beta_min = np.log(high_end**2 + 1.0) - 0.5 * beta_d
    y, points, values = x / process.alpha(times[0]), [], []

    def slope(t: np.ndarray) -> np.ndarray:
        growth = np.exp(0.5 * beta_d * t**2 + beta_min * t)
        return 0.5 * (beta_d * t + beta_min) * growth / np.sqrt(np.expm1(0.5 * beta_d * t**2 + beta_min * t))

    def time(rho: float) -> float:
        return (np.sqrt(beta_min**2 + 2.0 * beta_d * np.log(rho**2 + 1.0)) - beta_min) / beta_d

    for high, low in pairwise(_levels(process, times)):
        if low == 0.0:
            return D(y, 1.0, high)
        points, values = [time(high), *points][:order], [_eps(D, y, high), *values][:order]
        edges = np.linspace(time(high), time(low), 6)
        for j, value in enumerate(values):
            y = y + value * sum(_integral(slope, points, j, a, b) for a, b in pairwise(edges))
    return process.alpha(times[-1]) * y
