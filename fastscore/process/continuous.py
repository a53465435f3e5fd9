"""Continuous schedules: VP, sub-VP, VE, EDM, rectified flow and any pair (alpha, sigma) of your own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from fastscore.errors import typed
from fastscore.process.beta import Beta, CosineBeta, LinearBeta, ordered, vectorised
from fastscore.process.schedule import Array, ones, zeros


@dataclass(frozen=True)
@typed
class VP:
    """Variance preserving: alpha = exp(-1/2 int beta), sigma^2 = 1 - alpha^2.

    Args:
        beta: noise rate. t_end: default end of a stochastic solver.
        T: time of the prior; 1 if left out, or 0.9946 for a cosine rate, which diverges at 1.

    Source: Song et al. 2021, eq. 11 and 33.
    """

    beta: Beta = field(default_factory=LinearBeta)
    t_end: float = 1e-3
    T: float = math.nan
    t_clean = 0.0
    prior_std = 1.0

    def __post_init__(self) -> None:
        _fill_T(self)

    def alpha(self, t: ArrayLike) -> Array:
        return np.exp(-0.5 * self.beta.integral(t))

    def sigma(self, t: ArrayLike) -> Array:
        return np.sqrt(-np.expm1(-self.beta.integral(t)))

    def dalpha(self, t: ArrayLike) -> Array:
        return -0.5 * self.beta(t) * self.alpha(t)

    def dsigma(self, t: ArrayLike) -> Array:
        return 0.5 * self.beta(t) * self.alpha(t) ** 2 / self.sigma(t)


@dataclass(frozen=True)
@typed
class SubVP:
    """Sub-VP: alpha and T as VP, sigma = 1 - alpha^2. Source: Song et al. 2021, eq. 12 and 29."""

    beta: Beta = field(default_factory=LinearBeta)
    t_end: float = 1e-3
    T: float = math.nan
    t_clean = 0.0
    prior_std = 1.0

    def __post_init__(self) -> None:
        _fill_T(self)

    def alpha(self, t: ArrayLike) -> Array:
        return VP(self.beta).alpha(t)

    def sigma(self, t: ArrayLike) -> Array:
        return -np.expm1(-self.beta.integral(t))

    def dalpha(self, t: ArrayLike) -> Array:
        return VP(self.beta).dalpha(t)

    def dsigma(self, t: ArrayLike) -> Array:
        return self.beta(t) * self.alpha(t) ** 2


@dataclass(frozen=True)
@typed
class VE:
    """Variance exploding: sigma = sigma_min (sigma_max / sigma_min)^t.

    Source: Song et al. 2021, eq. 9 and 30. sigma reaches 0 only at t = -inf, so that is the
    clean end of a grid.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_end: float = 1e-5
    T = 1.0
    t_clean = -math.inf
    alpha, dalpha = staticmethod(ones), staticmethod(zeros)

    def __post_init__(self) -> None:
        ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def sigma(self, t: ArrayLike) -> Array:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** np.asarray(t, np.float64)

    def dsigma(self, t: ArrayLike) -> Array:
        return self.sigma(t) * math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
@typed
class TutorialVE:
    """dx = s^t dw: sigma^2 = (s^{2t} - 1) / (2 ln s). Source: Song's score-SDE tutorial."""

    base: float = 25.0
    t_end: float = 1e-3
    T = 1.0
    t_clean = 0.0
    alpha, dalpha = staticmethod(ones), staticmethod(zeros)

    def __post_init__(self) -> None:
        if not self.base > 1.0:
            raise ValueError(f"TutorialVE: base = {self.base} must be above 1 (the tutorial uses 25)")

    @property
    def prior_std(self) -> float:
        return float(self.sigma(self.T))

    def sigma(self, t: ArrayLike) -> Array:
        rate = 2.0 * math.log(self.base)
        return np.sqrt(np.expm1(rate * np.asarray(t, np.float64)) / rate)

    def dsigma(self, t: ArrayLike) -> Array:
        return 0.5 * self.base ** (2.0 * np.asarray(t, np.float64)) / self.sigma(t)


@dataclass(frozen=True)
@typed
class EDM:
    """alpha = 1, sigma = t, from sigma_max down to sigma_min. Source: Karras et al. 2022."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_clean = 0.0
    alpha, dalpha = staticmethod(ones), staticmethod(zeros)

    def __post_init__(self) -> None:
        ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def T(self) -> float:
        return self.sigma_max

    @property
    def t_end(self) -> float:
        return self.sigma_min

    def sigma(self, t: ArrayLike) -> Array:
        return np.asarray(t, np.float64) * 1.0

    def dsigma(self, t: ArrayLike) -> Array:
        return np.ones_like(np.asarray(t, np.float64))


@dataclass(frozen=True)
@typed
class Flow:
    """Rectified flow: sigma = k t / (1 + (k - 1) t), alpha = 1 - sigma, which is 1 - t and t where k = ``shift`` is 1.

    At T = 1 the state is pure noise (alpha = 0), where f is infinite. Networks are trained and labelled on Flow();
    Flow(shift=3) as the schedule of a sampler puts even times where Stable Diffusion 3 has them.

    Source: Liu et al. 2022, Lipman et al. 2022; shift: Esser et al. 2024, eq. 23.

    Raises:
        ValueError: a shift that is not positive.
    """

    t_end: float = 1e-3
    shift: float = 1.0
    T = 1.0
    t_clean = 0.0
    prior_std = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.shift < math.inf:
            raise ValueError(f"Flow: shift = {self.shift} must be positive")

    def alpha(self, t: ArrayLike) -> Array:
        t = np.asarray(t, np.float64)
        return (1.0 - t) / (1.0 + (self.shift - 1.0) * t)

    def sigma(self, t: ArrayLike) -> Array:
        t = np.asarray(t, np.float64)
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)

    def dalpha(self, t: ArrayLike) -> Array:
        return -self.dsigma(t)

    def dsigma(self, t: ArrayLike) -> Array:
        return self.shift / (1.0 + (self.shift - 1.0) * np.asarray(t, np.float64)) ** 2


@dataclass(frozen=True)
@typed
class Trig:
    """alpha = cos t, sigma = sin t on [0, pi/2]: every noise level, pure noise included.

    The schedule that exact score models are written on. Source: Lu & Song 2024 (TrigFlow).
    """

    t_end: float = 1e-3
    T = 0.5 * math.pi
    t_clean = 0.0
    prior_std = 1.0

    def alpha(self, t: ArrayLike) -> Array:
        return np.sin(0.5 * math.pi - np.asarray(t, np.float64))  # exactly 0 at T

    def sigma(self, t: ArrayLike) -> Array:
        return np.sin(np.asarray(t, np.float64))

    def dalpha(self, t: ArrayLike) -> Array:
        return -np.sin(np.asarray(t, np.float64))

    def dsigma(self, t: ArrayLike) -> Array:
        return np.cos(np.asarray(t, np.float64))


@dataclass(frozen=True)
@typed
class Pair:
    """Any pair of smooth functions (alpha, sigma); derivatives by sixth-order differences.

    Args:
        alpha_fn, sigma_fn: vectorised, float64; lam = ln(alpha/sigma) must decrease in t.
        T, t_end: first and last time of a stochastic solver.
        t_clean: the time with alpha = 1 and sigma = 0; -inf if sigma only tends to 0.
        std: prior_std, the standard deviation of x_T; sigma(T) if left out.
    """

    alpha_fn: Callable[[Array], Array]
    sigma_fn: Callable[[Array], Array]
    T: float = 1.0
    t_end: float = 1e-3
    t_clean: float = 0.0
    std: float | None = None

    def __post_init__(self) -> None:
        for name, function in (("alpha_fn", self.alpha_fn), ("sigma_fn", self.sigma_fn)):
            vectorised(f"Pair: {name}", function, self.t_end, self.T)

    @property
    def prior_std(self) -> float:
        return float(self.sigma(self.T)) if self.std is None else self.std

    def alpha(self, t: ArrayLike) -> Array:
        return np.asarray(self.alpha_fn(np.asarray(t, np.float64)), np.float64)

    def sigma(self, t: ArrayLike) -> Array:
        return np.asarray(self.sigma_fn(np.asarray(t, np.float64)), np.float64)

    def dalpha(self, t: ArrayLike) -> Array:
        return self._derivative(self.alpha, t)

    def dsigma(self, t: ArrayLike) -> Array:
        return self._derivative(self.sigma, t)

    def _derivative(self, fn: Callable[[Array], Array], t: ArrayLike) -> Array:
        t = np.asarray(t, np.float64)
        # Small against the distance to the clean end, where sigma may be as steep as a square root.
        h = 1e-2 * np.minimum(abs(self.T), t - self.t_clean) if math.isfinite(self.t_clean) else 1e-2
        near, middle, far = (fn(t + k * h) - fn(t - k * h) for k in (1, 2, 3))
        return (45.0 * near - 9.0 * middle + far) / (60.0 * h)


def _fill_T(schedule: VP | SubVP) -> None:
    """Set T where it was left out.

    Raises:
        ValueError: T not after t_end, or where a cosine rate diverges.
    """
    cosine = isinstance(schedule.beta, CosineBeta)
    if math.isnan(schedule.T):
        object.__setattr__(schedule, "T", 0.9946 if cosine else 1.0)
    if not schedule.t_end < schedule.T < (1.0 if cosine else math.inf):
        bound = " and below 1, where a cosine rate diverges" if cosine else ""
        raise ValueError(f"T = {schedule.T} must be above t_end = {schedule.t_end}{bound}")
