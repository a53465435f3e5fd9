"""Few-step samplers, AlphaFold 3's and the ancestral rule of rectified flow as plain loops. Imports NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from textbook import Denoiser, Process

Step = Callable[[Denoiser, np.ndarray, float, float, Iterator], np.ndarray]


def consistency(process: Process, D: Denoiser, times, x, z: Iterator, sigma_min: float = 0.0) -> np.ndarray:
    """Song et al. 2023, algorithm 1, for y = x / alpha: x <- f(x, tau), x^ = x + sqrt(tau^2 - epsilon^2) z."""
    for t, s in pairwise(times):
        clean = D(x, process.alpha(t), process.sigma(t))
        if process.sigma(s) == 0.0:
            return clean
        tau = process.sigma(s) / process.alpha(s)
        noise = np.sqrt(tau**2 - sigma_min**2)
        x = process.alpha(s) * (clean + (noise * next(z) if noise else 0.0))
    return x


def lcm(process: Process, D: Denoiser, times, x, z: Iterator, scaling: float) -> np.ndarray:
    """Luo et al. 2023, algorithm 3, with their boundary condition at sigma_data = 1/2."""
    for t, s in pairwise(times):
        u = scaling * t
        clean = 0.5**2 / (u**2 + 0.5**2) * x + u / np.sqrt(u**2 + 0.5**2) * D(x, process.alpha(t), process.sigma(t))
        x = process.alpha(s) * clean
        if process.sigma(s) > 0.0:
            x = x + process.sigma(s) * next(z)
    return x


def tcd(process: Process, D: Denoiser, times, x, z: Iterator, gamma: float, table: bool = False) -> np.ndarray:
    """Zheng et al. 2024, algorithm 4: down to s = (1 - gamma) t', then q(x_t' | x_s)."""
    for t, after in pairwise(times):
        alpha, sigma = process.alpha(t), process.sigma(t)
        clean = D(x, alpha, sigma)
        if process.sigma(after) == 0.0:
            return clean
        s = np.floor((1.0 - gamma) * after) if table else (1.0 - gamma) * after
        y = process.alpha(s) * clean + process.sigma(s) * (x - alpha * clean) / sigma
        ratio = process.alpha(after) / process.alpha(s)
        variance = process.sigma(after) ** 2 - (ratio * process.sigma(s)) ** 2
        x = ratio * y + (np.sqrt(variance) * next(z) if s != after else 0.0)
    return x


def partly_renoised(process: Process, D: Denoiser, times, x, z: Iterator, gamma: float) -> np.ndarray:
    """TCD in the noise level of y = x / alpha: down to (1 - gamma) rho', then up to rho'."""
    y = x / process.alpha(times[0])
    for t, after in pairwise(times):
        rho, up = (process.sigma(v) / process.alpha(v) for v in (t, after))
        clean = D(y, 1.0, rho)
        down = (1.0 - gamma) * up
        y = clean + down * (y - clean) / rho
        if up > 0.0:
            y = y + np.sqrt(up**2 - down**2) * next(z)
    return process.alpha(times[-1]) * y


def alphafold3(
    process: Process, D: Denoiser, times, x, z: Iterator, gamma_0, gamma_min, noise_scale, step_scale, capped=False
) -> np.ndarray:
    """Abramson et al. 2024, algorithm 18, for y = x / alpha; t^ is at most the first level if ``capped``."""
    y = x / process.alpha(times[0])
    levels = [process.sigma(t) / process.alpha(t) for t in times]
    for before, now in pairwise(levels):
        gamma = gamma_0 if now > gamma_min else 0.0
        hat = min(before * (gamma + 1.0), levels[0] if capped else np.inf)
        if hat > before:
            y = y + noise_scale * np.sqrt(hat**2 - before**2) * next(z)
        delta = (y - D(y, 1.0, hat)) / hat
        y = y + step_scale * (now - hat) * delta
    return process.alpha(times[-1]) * y


def rectified(process: Process, D: Denoiser, times, x, z: Iterator, step: Step, eta: float = 1.0) -> np.ndarray:
    """The ancestral rule of rectified flow, for y = x / (alpha + sigma): a flow in s = sigma / (alpha + sigma)."""
    y = x / (process.alpha(times[0]) + process.sigma(times[0]))
    levels = [process.sigma(t) / (process.alpha(t) + process.sigma(t)) for t in times]
    for s, after in pairwise(levels):
        if after == 0.0:
            y = D(y, 1.0 - s, s)
            break
        down = after * (1.0 + (after / s - 1.0) * eta)
        y = step(D, y, s, down, z)
        q = (1.0 - after) / (1.0 - down)
        if eta > 0.0:
            y = q * y + np.sqrt(after**2 - down**2 * q**2) * next(z)
    return (process.alpha(times[-1]) + process.sigma(times[-1])) * y


def flow_euler(D: Denoiser, y, s: float, after: float, z: Iterator) -> np.ndarray:
    """A step along dy/ds = (y - D) / s."""
    return y + (after - s) * (y - D(y, 1.0 - s, s)) / s


def flow_dpm_2(D: Denoiser, y, s: float, after: float, z: Iterator) -> np.ndarray:
    """k-diffusion's DPM-2 along the same: all of the slope at sqrt(s after)."""
    middle = np.exp(0.5 * (np.log(s) + np.log(after)))
    inner = flow_euler(D, y, s, middle, z)
    return y + (after - s) * (inner - D(inner, 1.0 - middle, middle)) / middle


def flow_dpmpp_2s(D: Denoiser, y, s: float, after: float, z: Iterator) -> np.ndarray:
    """DPM++ 2S in lam = ln((1 - s) / s)."""
    lam = [np.log((1.0 - v) / v) for v in (s, after)]
    middle = 1.0 / (1.0 + np.exp(0.5 * (lam[0] + lam[1])))
    inner = middle / s * y + (1.0 - middle / s) * D(y, 1.0 - s, s)
    return after / s * y + (1.0 - after / s) * D(inner, 1.0 - middle, middle)
