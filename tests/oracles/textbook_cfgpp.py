"""CFG++ as plain loops: around any one-step loop, multistep ones by hand, and ComfyUI's samplers. Imports NumPy only.

Chung et al. 2024, algorithm 2: with the guided estimate D_w and the unguided D_u of the start, x_s = alpha_s D_w +
sigma_s eps_u, which is DDIM's own step with D_u and then alpha_s (D_w - D_u). Any step's own stages see D_u.
ComfyUI's loops have y = x / units, of a flow model x itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from textbook import Denoiser, Process

Loop = Callable[..., np.ndarray]


def between_knots(D_w: Denoiser, loop: Loop) -> Loop:
    """A loop over one interval after the other, each guided."""

    def guided(process: Process, D: Denoiser, times, x, z: Iterator, **options) -> np.ndarray:
        for t, s in pairwise(times):
            at = process.alpha(t), process.sigma(t)
            change = D_w(x, *at) - D(x, *at)
            x = loop(process, D, np.array([t, s]), x, z, **options) + process.alpha(s) * change
        return x

    return guided


def on_grid(process: Process, D: Denoiser, times, x, z: Iterator, D_w: Denoiser, loop: Loop) -> np.ndarray:
    """Steps over two intervals, one over the interval that is left or that goes to the data."""
    times = list(times)
    while len(times) > 1:
        n = 2 if len(times) > 2 + (process.sigma(times[-1]) == 0.0) else 1
        at = process.alpha(times[0]), process.sigma(times[0])
        change = D_w(x, *at) - D(x, *at)
        x = loop(process, D, np.array(times[: n + 1]), x, z) + process.alpha(times[n]) * change
        times = times[n:]
    return x


def of_step(D_w: Denoiser, step: Loop) -> Loop:
    """A step in y = x / alpha from one sigma / alpha to another, guided."""

    def guided(D: Denoiser, y, high: float, low: float, z: Iterator, **options) -> np.ndarray:
        return step(D, y, high, low, z, **options) + D_w(y, 1.0, high) - D(y, 1.0, high)

    return guided


def _first_order(process: Process, D: np.ndarray, x: np.ndarray, t: float, s: float) -> np.ndarray:
    eps = (x - process.alpha(t) * D) / process.sigma(t)
    return process.alpha(s) * D + process.sigma(s) * eps


def dpmpp_2m(process: Process, D_w: Denoiser, D_u: Denoiser, times, x) -> np.ndarray:
    """DPM++ 2M in D_u, and then the change."""
    lam = [np.log(process.alpha(t) / process.sigma(t)) if process.sigma(t) else np.inf for t in times]
    before = None
    for i, (t, s) in enumerate(pairwise(times)):
        at = process.alpha(t), process.sigma(t)
        now = D_u(x, *at)
        change, mean = D_w(x, *at) - now, now
        if before is not None and process.sigma(s):
            mean = now + (now - before) * (lam[i + 1] - lam[i]) / (2.0 * (lam[i] - lam[i - 1]))
        shrink = process.sigma(s) / at[1]
        x = shrink * x + (process.alpha(s) - shrink * at[0]) * mean + process.alpha(s) * change
        before = now
    return x


def ipndm(process: Process, D_w: Denoiser, D_u: Denoiser, times, x) -> np.ndarray:
    """Adams-Bashforth weights of even steps on eps_u, as many evaluations as there are up to three."""
    weights, past = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12)), []
    for t, s in pairwise(times):
        at = process.alpha(t), process.sigma(t)
        D = D_u(x, *at)
        change = D_w(x, *at) - D
        if not process.sigma(s):
            return D + change
        past = [(x - at[0] * D) / at[1], *past][:3]
        eps = sum(w * e for w, e in zip(weights[len(past) - 1], past, strict=True))
        keep = process.alpha(s) / at[0]
        x = keep * x + (process.sigma(s) - keep * at[1]) * eps + process.alpha(s) * change
    return x


def unipc_1(process: Process, D_w: Denoiser, D_u: Denoiser, times, x) -> np.ndarray:
    """UniPC of p = 1 with B = 1 - e^-h: evaluations, and so changes, are those of the predicted states."""
    before = None
    for t, s in pairwise(times):
        at = process.alpha(t), process.sigma(t)
        D = D_u(x, *at)
        change = D_w(x, *at) - D
        if before is not None:
            x = x + 0.5 * before[1] * (D - before[0])
        gain = process.alpha(s) - process.sigma(s) * at[0] / at[1]
        x = process.sigma(s) / at[1] * x + gain * D + process.alpha(s) * change
        before = D, gain
    return x


# --- ComfyUI's samplers: levels s, in y = x / units; the model is asked for its estimates at a level ------------------

Model = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]  # (y, s) -> D_w, D_u


def _split(high: float, low: float, eta: float) -> tuple[float, float]:
    up = min(low, eta * np.sqrt(low**2 * (high**2 - low**2) / high**2))
    return np.sqrt(low**2 - up**2), up


def dpmpp_2m_cfg_pp(model: Model, y: np.ndarray, s: list[float], z: Iterator, eta: float) -> np.ndarray:
    old = None
    for i in range(len(s) - 1):
        D_w, D_u = model(y, s[i])
        if old is None or s[i + 1] == 0.0:
            mix = -s[i + 1] / s[i] * D_u
        else:
            h, last = np.log(s[i] / s[i + 1]), np.log(s[i - 1] / s[i])
            mix = -np.exp(-h) * D_u - np.expm1(-h) * h / (2.0 * last) * (D_w - old)
        y, old = D_w + mix + s[i + 1] / s[i] * y, D_u
    return y


def res_multistep_cfg_pp(model: Model, y: np.ndarray, s: list[float], z: Iterator, eta: float) -> np.ndarray:
    old, down_old = None, None
    for i in range(len(s) - 1):
        D_w, D_u = model(y, s[i])
        down, up = _split(s[i], s[i + 1], eta)
        if old is None or down == 0.0:
            y = D_w + down * (y - D_u) / s[i]
        else:
            h, c2 = np.log(s[i] / down), np.log(down_old / s[i - 1]) / np.log(s[i] / down)
            phi1, phi2 = -np.expm1(-h) / h, (np.expm1(-h) + h) / h**2
            y = np.exp(-h) * (y + D_w - D_u) + h * ((phi1 - phi2 / c2) * D_u + phi2 / c2 * old)
        y = y + up * next(z) if eta and s[i + 1] > 0.0 else y
        old, down_old = D_u, down
    return y


def dpmpp_2s_ancestral_cfg_pp(model: Model, y: np.ndarray, s: list[float], z: Iterator, eta: float) -> np.ndarray:
    for i in range(len(s) - 1):
        D_w, D_u = model(y, s[i])
        down, up = _split(s[i], s[i + 1], eta)
        if down == 0.0:
            y = D_w
        else:
            middle = np.sqrt(s[i] * down)
            inner = middle / s[i] * (y + D_w - D_u) + (1.0 - middle / s[i]) * D_w
            D_w2, D_u2 = model(inner, middle)
            y = down / s[i] * (y + D_w - D_u2) + (1.0 - down / s[i]) * D_w2
        y = y + up * next(z) if s[i + 1] > 0.0 and eta else y
    return y


def cfgpp_ud10_ab(model: Model, x: np.ndarray, s: list[float], z: Iterator, alpha: Callable) -> np.ndarray:
    """``alpha``: of a level, 1 - s of a flow model and 1 of others."""
    e_old = d_old = dt_old = D_old = None
    for i in range(len(s) - 1):
        D_w, D_u = model(x, s[i])
        dt, e = s[i + 1] - s[i], (x - alpha(s[i]) * D_u) / s[i]
        bent = e if e_old is None else e + 0.1 * dt / dt_old * (e - e_old)
        E = alpha(s[i + 1]) * D_w + s[i + 1] * bent - x
        d = E / dt
        if s[i + 1] == 0.0:
            return D_w if D_old is None else D_w - s[i] * (D_w - D_old) / (s[i] - s[i - 1])
        step = E
        if d_old is not None:
            r = dt / (2.0 * dt_old)
            step = 0.75 * E + 0.25 * dt * ((1.0 + r) * d - r * d_old)
        x, e_old, d_old, dt_old, D_old = x + step, e, d, dt, D_w
    return x
