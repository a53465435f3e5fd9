"""Discrete schedules: tables of noise levels, whose time is the index and whose data is at -1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from fastscore.errors import typed, unknown
from fastscore.process.beta import CosineBeta, ordered
from fastscore.process.schedule import Array, ones, table, zeros

LONGEST = 1 << 20  # of a table; as many as a grid has steps


@dataclass(frozen=True)
@typed
class DiscreteVP:
    """DDPM table: abar_i = prod_{j<=i} (1 - beta_j), ln alpha linear between the indices.

    Time is the index itself, 0 .. N-1, with -1 for the data. A last beta of 1 ends at pure noise (zero terminal SNR),
    with alpha itself linear in that last interval.

    Source: Ho et al. 2020; the interpolation is DPM-Solver's (Lu et al. 2022, appendix).
    """

    betas: tuple[float, ...]
    t_end = 0.0
    t_clean = -1.0
    prior_std = 1.0

    def __post_init__(self) -> None:
        betas = table("DiscreteVP: betas", self.betas)
        inside = (betas > 0.0) & (betas < 1.0)
        if len(betas) == 0 or not (np.all(inside[:-1]) and 0.0 < betas[-1] <= 1.0):
            raise ValueError(
                "DiscreteVP: betas must be a non-empty list of numbers above 0 and below 1, of which the last may be "
                f"1; got {len(betas)} from {betas.min(initial=np.inf):.9g} to {betas.max(initial=-np.inf):.9g}"
            )
        object.__setattr__(self, "betas", tuple(float(b) for b in betas))

    @property
    def T(self) -> float:
        return float(len(self.betas) - 1)

    @property
    def _zero_snr(self) -> bool:
        return self.betas[-1] == 1.0

    @cached_property
    def _slopes(self) -> Array:
        """Of ln alpha, index k that between k - 1 and k; at pure noise that where the last interval begins."""
        betas = np.asarray(self.betas)
        return np.append(0.5 * np.log1p(-betas[:-1]), -1.0 if self._zero_snr else 0.5 * np.log1p(-betas[-1]))

    @cached_property
    def _knots(self) -> tuple[Array, Array]:
        """Times and ln alpha where that is finite."""
        log = np.append(0.0, np.cumsum(self._slopes[: len(self.betas) - self._zero_snr]))
        return np.arange(-1.0, len(log) - 1), log

    def _log_alpha(self, t: ArrayLike) -> Array:
        t, last = np.asarray(t, np.float64), len(self.betas) - 1
        log = np.interp(t, *self._knots)
        if not self._zero_snr:
            return log
        with np.errstate(divide="ignore"):  # alpha = 0 at the last index
            return log + np.log(np.clip(last - t, 0.0, 1.0))

    def alpha(self, t: ArrayLike) -> Array:
        return np.exp(self._log_alpha(t))

    def sigma(self, t: ArrayLike) -> Array:
        return np.sqrt(-np.expm1(2.0 * self._log_alpha(t)))

    def dalpha(self, t: ArrayLike) -> Array:
        slope, before = _slope(self._slopes, t) * self.alpha(t), len(self.betas) - 2.0
        return np.where(np.asarray(t) > before, -self.alpha(before), slope) if self._zero_snr else slope

    def dsigma(self, t: ArrayLike) -> Array:
        return -self.alpha(t) * self.dalpha(t) / self.sigma(t)


@dataclass(frozen=True)
@typed
class DiscreteVE:
    """SMLD table of increasing sigma_i: alpha = 1, ln sigma linear between the indices.

    Time is the index, 0 .. N-1, with -1 for the data (sigma = 0, reached linearly).
    Source: Song & Ermon 2019.
    """

    sigmas: tuple[float, ...]
    t_end = 0.0
    t_clean = -1.0
    alpha, dalpha = staticmethod(ones), staticmethod(zeros)

    def __post_init__(self) -> None:
        sigmas = table("DiscreteVE: sigmas", self.sigmas)
        if len(sigmas) == 0 or not (sigmas[0] > 0 and np.all(np.diff(sigmas) > 0) and sigmas[-1] < math.inf):
            raise ValueError("DiscreteVE: sigmas must be a non-empty list of increasing positive numbers")
        object.__setattr__(self, "sigmas", tuple(float(s) for s in sigmas))

    @property
    def T(self) -> float:
        return float(len(self.sigmas) - 1)

    @property
    def prior_std(self) -> float:
        return self.sigmas[-1]

    @cached_property
    def _log_sigmas(self) -> Array:
        return np.log(self.sigmas)

    def sigma(self, t: ArrayLike) -> Array:
        t = np.asarray(t, np.float64)
        log = np.interp(np.maximum(t, 0.0), np.arange(len(self.sigmas)), self._log_sigmas)
        return np.where(t >= 0.0, np.exp(log), self.sigmas[0] * (t + 1.0))

    def dsigma(self, t: ArrayLike) -> Array:
        if len(self.sigmas) == 1:
            return np.full_like(np.asarray(t, np.float64), self.sigmas[0])
        # The piece below index 0, linear in sigma, has no slope of ln sigma: a step that ends at 0 comes from above.
        log = np.diff(self._log_sigmas)
        slope = _slope(np.concatenate([log[:1], log]), t)
        return np.where(np.asarray(t) < 0.0, self.sigmas[0], slope * self.sigma(t))


def _slope(slopes: Array, t: ArrayLike) -> Array:
    """Return the slope at t of a line through a table, ``slopes[i]`` between i - 1 and i.

    At an index it is the mean of both sides: either side alone is the slope half an index away,
    an error that does not shrink with the steps and that leaves no second order to Heun.
    """
    t, last = np.asarray(t, np.float64), len(slopes) - 1
    below, above = (np.clip(k, 0, last).astype(int) for k in (np.ceil(t), np.floor(t) + 1.0))
    return 0.5 * (slopes[below] + slopes[above])


@typed
def discrete_vp(
    kind: str = "linear", n: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02, zero_snr: bool = False
) -> DiscreteVP:
    r"""Return a standard DDPM table of ``n`` betas: "linear", "scaled-linear" or "cosine".

    scaled-linear is linear in sqrt(beta) (latent diffusion uses 0.00085 .. 0.012); cosine is
    Nichol & Dhariwal 2021, with beta clipped at 0.999, and ignores beta_min and beta_max.

    zero_snr: shift and scale sqrt(abar) so that the last one is 0 and the first one stays,

        sqrt(abar_i) <- (sqrt(abar_i) - sqrt(abar_T)) sqrt(abar_0) / (sqrt(abar_0) - sqrt(abar_T))

    where a network must predict v, x0 or flow: at pure noise eps says nothing of the data. Source: Lin et al. 2024,
    algorithm 1.
    """
    if not 1 <= n <= LONGEST:
        raise ValueError(f"discrete_vp: n = {n} must be at least 1 and at most {LONGEST}")
    if kind == "linear":
        betas = np.linspace(beta_min, beta_max, n)
    elif kind == "scaled-linear":
        betas = np.linspace(beta_min**0.5, beta_max**0.5, n) ** 2
    elif kind == "cosine":
        edge = np.cos(CosineBeta()._angle(np.arange(n + 1) / n)) ** 2
        betas = np.minimum(1.0 - edge[1:] / edge[:-1], 0.999)
    else:
        raise unknown("discrete_vp: kind", kind, ("linear", "scaled-linear", "cosine"))
    if zero_snr:
        if n < 2:
            raise ValueError(f"discrete_vp: n = {n} must be at least 2 with zero_snr")
        root = np.exp(np.cumsum(0.5 * np.log1p(-betas)))
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        betas = 1.0 - (root / np.append(1.0, root[:-1])) ** 2
    return DiscreteVP(tuple(betas))


@typed
def smld(n: int = 10, sigma_min: float = 0.01, sigma_max: float = 1.0) -> DiscreteVE:
    """Return ``n`` geometric noise levels from sigma_min to sigma_max. Source: Song & Ermon 2019."""
    if not 1 <= n <= LONGEST:
        raise ValueError(f"smld: n = {n} must be at least 1 and at most {LONGEST}")
    ordered("sigma_min", sigma_min, "sigma_max", sigma_max if n > 1 else math.nextafter(sigma_min, math.inf))
    return DiscreteVE(tuple(np.exp(np.linspace(math.log(sigma_min), math.log(sigma_max), n))))
