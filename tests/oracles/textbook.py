"""Samplers as plain loops, each written from its paper. Imports NumPy only.

A loop takes a process (the forward SDE), an exact denoiser D(x, alpha, sigma) = E[x_0 | x_t = x], decreasing
times, the state at the first of them and an iterator of recorded normals. Where the last time has
sigma = 0 the last step returns D, Tweedie's estimate (Song et al. 2021, appendix G).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Fn = Callable[[float], float]
Denoiser = Callable[[np.ndarray, float, float], np.ndarray]


@dataclass(frozen=True)
class Process:
    """x_t = alpha x_0 + sigma z and dx = f x dt + g dw; ``kind`` "vp" or "ve" where the paper has its own form."""

    alpha: Fn
    sigma: Fn
    f: Fn
    g2: Fn
    kind: str = ""


def vp(beta: Fn, integral: Fn) -> Process:
    """Song et al. 2021, eq. 11 and 29."""
    return Process(
        lambda t: np.exp(-0.5 * integral(t)),
        lambda t: np.sqrt(-np.expm1(-integral(t))),
        lambda t: -0.5 * beta(t),
        beta,
        "vp",
    )


def subvp(beta: Fn, integral: Fn) -> Process:
    """Song et al. 2021, eq. 12 and 29."""
    return Process(
        lambda t: np.exp(-0.5 * integral(t)),
        lambda t: -np.expm1(-integral(t)),
        lambda t: -0.5 * beta(t),
        lambda t: -beta(t) * np.expm1(-2.0 * integral(t)),
    )


def ve(sigma: Fn, g2: Fn) -> Process:
    """dx = g dw, whatever sigma is. Song et al. 2021, eq. 9."""
    return Process(lambda t: 1.0, sigma, lambda t: 0.0, g2, "ve")


def ddpm_table(betas: np.ndarray) -> Process:
    """Ho et al. 2020: abar_i = prod (1 - beta_j); time is the index, -1 the data, ln abar linear in between.

    Its slope at an index is the mean of both sides.
    """
    log = np.concatenate([[0.0], np.cumsum(np.log(1.0 - betas))])
    rate = -np.diff(log)

    def abar(t: float) -> float:
        return np.exp(np.interp(t, np.arange(-1.0, len(betas)), log))

    def beta(t: float) -> float:
        return 0.5 * (rate[int(np.ceil(t))] + rate[min(int(np.floor(t)) + 1, len(betas) - 1)])

    return Process(lambda t: np.sqrt(abar(t)), lambda t: np.sqrt(1.0 - abar(t)), lambda t: -0.5 * beta(t), beta, "vp")


def smld_table(sigmas: np.ndarray) -> Process:
    """Song & Ermon 2019: levels sigma_0 < sigma_1 < ..; ln sigma linear in the index, -1 the data.

    Geometric levels; sigma itself is linear from the last level to the data.
    """
    rate = np.log(sigmas[1] / sigmas[0])

    def sigma(t: float) -> float:
        return sigmas[0] * (t + 1.0) if t < 0.0 else sigmas[0] * np.exp(rate * t)

    return ve(sigma, lambda t: 2.0 * rate * sigma(t) ** 2)


def mixture(weights: np.ndarray, means: np.ndarray, stds: np.ndarray) -> Denoiser:
    """E[x_0 | x] for data sum_k w_k N(mu_k, s_k^2 I)."""

    def denoise(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        variance = alpha**2 * stds**2 + sigma**2
        offset = x[:, None, :] - alpha * means
        log = np.log(weights) - 0.5 * (offset**2).sum(-1) / variance - 0.5 * x.shape[1] * np.log(variance)
        posterior = np.exp(log - log.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        return (posterior[:, :, None] * (means + (alpha * stds**2 / variance)[:, None] * offset)).sum(1)

    return denoise


def score(process: Process, D: Denoiser, t: float, x: np.ndarray) -> np.ndarray:
    """Tweedie: the score of p_t is (alpha D - x) / sigma^2."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return (alpha * D(x, alpha, sigma) - x) / sigma**2


def _denoise(process: Process, D: Denoiser, t: float, x: np.ndarray) -> np.ndarray:
    return D(x, process.alpha(t), process.sigma(t))


# --- one evaluation a step --------------------------------------------------------------------


def euler_maruyama(process: Process, D: Denoiser, times, x, z: Iterator, eta: float = 1.0) -> np.ndarray:
    """Euler-Maruyama on dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw, from t to s < t."""
    for t, s in pairwise(times):
        if process.sigma(s) == 0.0:
            return _denoise(process, D, t, x)
        h = t - s
        drift = process.f(t) * x - 0.5 * (1.0 + eta**2) * process.g2(t) * score(process, D, t, x)
        x = x - h * drift
        if eta:
            x = x + eta * np.sqrt(process.g2(t)) * np.sqrt(h) * next(z)
    return x


def reverse_diffusion(
    process: Process, D: Denoiser, times, x, z: Iterator, probability_flow: bool = False
) -> np.ndarray:
    """Song et al. 2021, eq. 46: x_i = x_{i+1} - f_i(x_{i+1}) + G_i G_i^T score + G_i z.

    f_i and G_i are those of the discrete forward chain x_{i+1} = x_i + f_i(x_i) + G_i z.
    """
    for t, s in pairwise(times):
        if process.sigma(s) == 0.0:
            return _denoise(process, D, t, x)
        if process.kind == "ve":  # algorithm 2
            f, G2 = 0.0, process.sigma(t) ** 2 - process.sigma(s) ** 2
        elif process.kind == "vp":  # algorithm 3
            beta = 1.0 - (process.alpha(t) / process.alpha(s)) ** 2
            f, G2 = np.sqrt(1.0 - beta) - 1.0, beta
        else:  # Var x_t = (1 + f)^2 Var x_s + G^2
            f = process.alpha(t) / process.alpha(s) - 1.0
            G2 = process.sigma(t) ** 2 - ((1.0 + f) * process.sigma(s)) ** 2
        gradient = G2 * score(process, D, t, x)
        x = x - f * x + (0.5 * gradient if probability_flow else gradient + np.sqrt(G2) * next(z))
    return x


def ancestral_ve(process: Process, D: Denoiser, times, x, z: Iterator) -> np.ndarray:
    """Song et al. 2021, eq. 47.

    Any other process is a VE process in y = x / alpha, with sigma / alpha as its noise.
    """
    y = x / process.alpha(times[0])
    for t, s in pairwise(times):
        high, low = process.sigma(t) / process.alpha(t), process.sigma(s) / process.alpha(s)
        change = high**2 - low**2
        y = y + change * (D(y, 1.0, high) - y) / high**2
        if low > 0.0:
            y = y + np.sqrt(low**2 * change / high**2) * next(z)
    return process.alpha(s) * y


def ancestral_vp(process: Process, D: Denoiser, times, x, z: Iterator, variance: str = "small") -> np.ndarray:
    """Ho et al. 2020, algorithm 2, with beta_t from the ratio of abar where times are skipped.

    sigma_t^2 is beta_t (large) or (1 - abar_{t-1}) / (1 - abar_t) beta_t (small).
    """
    for t, s in pairwise(times):
        abar, abar_before = process.alpha(t) ** 2, process.alpha(s) ** 2
        beta = 1.0 - abar / abar_before
        eps = (x - np.sqrt(abar) * _denoise(process, D, t, x)) / process.sigma(t)
        x = (x - beta / process.sigma(t) * eps) / np.sqrt(1.0 - beta)
        if process.sigma(s) > 0.0:
            ratio = process.sigma(s) ** 2 / process.sigma(t) ** 2 if variance == "small" else 1.0
            x = x + np.sqrt(ratio * beta) * next(z)
    return x


def ddim(process: Process, D: Denoiser, times, x, z: Iterator, eta: float = 0.0) -> np.ndarray:
    """Song et al. 2020 (DDIM), eq. 12 and 16.

    Any process divided by sqrt(alpha^2 + sigma^2) is variance preserving, which is what the paper is written in.
    """
    y = x / np.hypot(process.alpha(times[0]), process.sigma(times[0]))
    for t, s in pairwise(times):
        norm, norm_s = (np.hypot(process.alpha(v), process.sigma(v)) for v in (t, s))
        root, root_s = process.alpha(t) / norm, process.alpha(s) / norm_s  # sqrt(abar)
        noise, noise_s = process.sigma(t) / norm, process.sigma(s) / norm_s  # sqrt(1 - abar)
        x0 = D(y, root, noise)
        eps = (y - root * x0) / noise
        sigma = eta * noise_s / noise * np.sqrt(1.0 - root**2 / root_s**2)
        y = root_s * x0 + np.sqrt(noise_s**2 - sigma**2) * eps
        if sigma > 0.0:
            y = y + sigma * next(z)
    return norm_s * y


# --- ordinary differential equation -----------------------------------------------------------


def _flow(process: Process, D: Denoiser, t: float, x: np.ndarray) -> np.ndarray:
    """Song et al. 2021, eq. 13."""
    return process.f(t) * x - 0.5 * process.g2(t) * score(process, D, t, x)


def euler(process: Process, D: Denoiser, times, x, z: Iterator, denoise: bool = True) -> np.ndarray:
    """Euler's method on the probability-flow ODE."""
    for t, s in pairwise(times):
        if denoise and process.sigma(s) == 0.0:
            return _denoise(process, D, t, x)
        x = x + (s - t) * _flow(process, D, t, x)
    return x


def heun(process: Process, D: Denoiser, times, x, z: Iterator) -> np.ndarray:
    """Karras et al. 2022, algorithm 1, on the probability-flow ODE."""
    for t, s in pairwise(times):
        if process.sigma(s) == 0.0:
            return _denoise(process, D, t, x)
        d = _flow(process, D, t, x)
        d_next = _flow(process, D, s, x + (s - t) * d)
        x = x + (s - t) * (0.5 * d + 0.5 * d_next)
    return x


def edm(process: Process, D: Denoiser, times, x, z: Iterator) -> np.ndarray:
    """Karras et al. 2022, algorithm 2 with S_churn = 0."""
    for t, s in pairwise(times):
        d = (x - D(x, 1.0, t)) / t
        x_next = x + (s - t) * d
        if s != 0.0:
            d_next = (x_next - D(x_next, 1.0, s)) / s
            x_next = x + (s - t) * (0.5 * d + 0.5 * d_next)
        x = x_next
    return x


def dpmpp_2m(process: Process, D: Denoiser, times, x, z: Iterator) -> np.ndarray:
    """Lu et al. 2022b, algorithm 2; a step to lam = inf is first order."""
    with np.errstate(divide="ignore"):
        lam = [np.log(process.alpha(v)) - np.log(process.sigma(v)) for v in times]
    x0_last, h_last = x, None
    for k, (t, s) in enumerate(pairwise(times)):
        h = lam[k + 1] - lam[k]
        x0 = _denoise(process, D, t, x)
        if h_last is None or not np.isfinite(h):
            estimate = x0
        else:
            r = h_last / h
            estimate = (1.0 + 1.0 / (2.0 * r)) * x0 - 1.0 / (2.0 * r) * x0_last
        x = process.sigma(s) / process.sigma(t) * x - process.alpha(s) * (np.exp(-h) - 1.0) * estimate
        x0_last, h_last = x0, h
    return x


# --- more stages ------------------------------------------------------------------------------


def rk2(process: Process, D: Denoiser, times, x, z: Iterator, a: float = 0.5) -> np.ndarray:
    """Karras et al. 2022, algorithm 3: one evaluation at the start, one a part of the way."""
    for t, s in pairwise(times):
        if process.sigma(s) == 0.0:
            return _denoise(process, D, t, x)
        h, d = s - t, _flow(process, D, t, x)
        d_part = _flow(process, D, t + a * h, x + a * h * d)
        x = x + h * ((1.0 - 1.0 / (2.0 * a)) * d + 1.0 / (2.0 * a) * d_part)
    return x


def rk4(process: Process, D: Denoiser, times, x, z: Iterator) -> np.ndarray:
    """The classical Runge-Kutta method."""
    for t, s in pairwise(times):
        if process.sigma(s) == 0.0:
            return _denoise(process, D, t, x)
        h = s - t
        k1 = _flow(process, D, t, x)
        k2 = _flow(process, D, t + h / 2.0, x + h / 2.0 * k1)
        k3 = _flow(process, D, t + h / 2.0, x + h / 2.0 * k2)
        k4 = _flow(process, D, s, x + h * k3)
        x = x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    return x


def implicit_midpoint(process: Process, D: Denoiser, times, x, z: Iterator, sweeps: int = 4) -> np.ndarray:
    """x_s = x_t + h d((x_t + x_s)/2, (t + s)/2) by fixed-point iteration from Euler's x_s."""
    for t, s in pairwise(times):
        if process.sigma(s) == 0.0:
            return _denoise(process, D, t, x)
        h, after = s - t, x + (s - t) * _flow(process, D, t, x)
        for _ in range(sweeps):
            after = x + h * _flow(process, D, 0.5 * (t + s), 0.5 * (x + after))
        x = after
    return x


def stochastic_heun(process: Process, D: Denoiser, times, x, z: Iterator, eta: float = 1.0) -> np.ndarray:
    """Heun's method for additive noise: K1 and K2 with the same increment, x + (K1 + K2)/2."""
    for t, s in pairwise(times):
        if process.sigma(s) == 0.0:
            return _denoise(process, D, t, x)
        h, half = t - s, 0.5 * (1.0 + eta**2)
        noise = eta * np.sqrt(h * (process.g2(t) + process.g2(s)) / 2.0) * next(z)
        k1 = -h * (process.f(t) * x - half * process.g2(t) * score(process, D, t, x)) + noise
        k2 = -h * (process.f(s) * (x + k1) - half * process.g2(s) * score(process, D, s, x + k1)) + noise
        x = x + 0.5 * (k1 + k2)
    return x


# --- Langevin ---------------------------------------------------------------------------------


def langevin(
    process, D, t, x, z, alpha: float, snr: float, steps: int, norm: str = "sample", limit=np.inf
) -> np.ndarray:
    """Song et al. 2021, algorithms 4 (alpha = 1) and 5; norm "batch" is their code's mean over the batch.

    ``limit`` bounds the step at alpha^2 + sigma^2 times it, which the paper does not.
    """
    for _ in range(steps):
        noise, gradient = next(z), score(process, D, t, x)
        norms = [np.linalg.norm(v, axis=1, keepdims=True) for v in (noise, gradient)]
        if norm == "batch":
            norms = [v.mean() for v in norms]
        if norm == "expected":
            norms[0] = np.sqrt(x.shape[1])
        step = np.minimum(
            2.0 * alpha * (snr * norms[0] / norms[1]) ** 2, limit * (process.alpha(t) ** 2 + process.sigma(t) ** 2)
        )
        x = x + step * gradient + np.sqrt(2.0 * step) * noise
    return x


def ald(process, D, t, x, z, alpha: float, snr: float, steps: int) -> np.ndarray:
    """Annealed Langevin in the form of score_sde: step = 2 alpha (snr sigma)^2."""
    for _ in range(steps):
        step = 2.0 * alpha * (snr * process.sigma(t)) ** 2
        x = x + step * score(process, D, t, x) + np.sqrt(2.0 * step) * next(z)
    return x


def ncsn(process: Process, D: Denoiser, sigmas, x, z: Iterator, epsilon: float, steps: int) -> np.ndarray:
    """Song & Ermon 2019, algorithm 1: sigma_1 > .. > sigma_L, x <- x + alpha_i/2 score + sqrt(alpha_i) z."""
    for sigma in sigmas:
        alpha = epsilon * sigma**2 / sigmas[-1] ** 2
        for _ in range(steps):
            x = x + 0.5 * alpha * (D(x, 1.0, sigma) - x) / sigma**2 + np.sqrt(alpha) * next(z)
    return x


def predictor_corrector(process: Process, D: Denoiser, times, x, z: Iterator, predictor, corrector) -> np.ndarray:
    """Song et al. 2021, algorithm 1: at each time the predictor arrives, then the corrector works.

    The corrector's alpha_i is 1 - beta_i, the squared ratio of alpha to the next time's.
    """
    cleaner = [*times[2:], None]
    for (t, s), after in zip(pairwise(times), cleaner, strict=True):
        x = predictor(process, D, [t, s], x, z)
        if process.sigma(s) > 0.0:
            alpha_i = (process.alpha(s) / (1.0 if after is None else process.alpha(after))) ** 2
            x = corrector(process, D, s, x, z, alpha_i)
    return x


def published(
    process: Process, D: Denoiser, times, x, z: Iterator, predictor: str, table, corrector=None
) -> np.ndarray:
    """The sampler of score_sde's code: corrector, then predictor, at N times with dt = 1/N; the last mean.

    ``table`` holds their discrete beta_i (vp) or sigma_i (ve), cleanest first.
    """
    n = len(times) - 1
    for k, time in enumerate(np.linspace(times[0], times[-1], n)):
        i = n - 1 - k
        if corrector is not None:
            x = corrector(process, D, time, x, z, 1.0 - table[i] if process.kind == "vp" else 1.0)
        s = score(process, D, time, x)
        if predictor == "euler_maruyama" or not process.kind:
            mean = x - (process.f(time) * x - process.g2(time) * s) / n
            std = np.sqrt(process.g2(time) / n)
        elif process.kind == "vp":
            beta, std = table[i], np.sqrt(table[i])
            mean = (x + beta * s) / np.sqrt(1.0 - beta)
            if predictor == "reverse_diffusion":
                mean = (2.0 - np.sqrt(1.0 - beta)) * x + beta * s
        else:
            low, high = table[i - 1] if i else 0.0, table[i]
            mean = x + (high**2 - low**2) * s
            std = np.sqrt(high**2 - low**2) * (1.0 if predictor == "reverse_diffusion" else low / high)
        x = mean + std * next(z) if i else mean
    return x
