r"""Noise schedules: every linear SDE is a pair (alpha, sigma) of functions of time.

    x_t = alpha(t) x_0 + sigma(t) z,   z ~ N(0, I)

The drift and the diffusion of the forward SDE  dx = f(t) x dt + g(t) dw  follow:

    f = d ln(alpha)/dt,   g^2 = d(sigma^2)/dt - 2 f sigma^2,   lam = ln(alpha / sigma).

A schedule is a frozen dataclass with four functions of time (``alpha``, ``sigma`` and their
derivatives) and four numbers. Everything else is derived here, once, for all of them. NumPy
float64 in and out; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@runtime_checkable
class Schedule(Protocol):
    """What a solver needs to know of a forward SDE.

    ``T`` is the time of the prior, ``t_end`` the default end of a stochastic solver,
    ``t_clean`` the time at which alpha = 1 and sigma = 0 (the data), ``prior_std`` the standard
    deviation of the Gaussian that x_T is drawn from.
    """

    @property
    def T(self) -> float: ...
    @property
    def t_end(self) -> float: ...
    @property
    def t_clean(self) -> float: ...
    @property
    def prior_std(self) -> float: ...
    def alpha(self, t: ArrayLike) -> Array: ...
    def sigma(self, t: ArrayLike) -> Array: ...
    def dalpha(self, t: ArrayLike) -> Array: ...
    def dsigma(self, t: ArrayLike) -> Array: ...


# --- what follows from (alpha, sigma) ---------------------------------------------------------


def f(schedule: Schedule, t: ArrayLike) -> Array:
    """Return the drift coefficient f(t) = alpha'(t) / alpha(t)."""
    return schedule.dalpha(t) / schedule.alpha(t)


def g2(schedule: Schedule, t: ArrayLike) -> Array:
    """Return the squared diffusion coefficient g(t)^2 = 2 sigma sigma' - 2 f sigma^2."""
    sigma = schedule.sigma(t)
    return 2.0 * sigma * (schedule.dsigma(t) - f(schedule, t) * sigma)


def lam(schedule: Schedule, t: ArrayLike) -> Array:
    """Return the half log-SNR lam(t) = ln(alpha / sigma); +inf at the clean end."""
    with np.errstate(divide="ignore"):
        return np.log(schedule.alpha(t)) - np.log(schedule.sigma(t))


def t_of_lam(schedule: Schedule, value: ArrayLike) -> Array:
    """Invert lam: return the time at which ln(alpha/sigma) equals ``value``.

    Bisection to the last bit of float64, which holds for any schedule whose lam decreases in t.

    Raises:
        ValueError: a value lies outside lam(T) .. lam(close to the clean end).
    """
    value = np.atleast_1d(np.asarray(value, dtype=np.float64))
    # VE reaches sigma = 0 only at t = -inf: 64 units below T every sigma is below 1e-200.
    low = schedule.t_clean if math.isfinite(schedule.t_clean) else schedule.T - 64.0
    lo, hi = np.full_like(value, low), np.full_like(value, schedule.T)
    bottom = float(lam(schedule, schedule.T))
    slack = 1e-12 * max(1.0, abs(bottom)) if math.isfinite(bottom) else 0.0
    if np.any(np.isnan(value)) or np.any(value < bottom - slack):
        raise ValueError(
            f"lam = {float(np.nanmin(value)):.6g} is noisier than {type(schedule).__name__} gets: its "
            f"lam(T) is {bottom:.6g}; start the grid later or use a schedule with more noise at T"
        )
    for _ in range(1100):  # enough halvings to cross the whole exponent range of float64
        mid = 0.5 * (lo + hi)
        cleaner = lam(schedule, mid) > value
        lo, hi = np.where(cleaner, mid, lo), np.where(cleaner, hi, mid)
        if np.all((mid == lo) | (mid == hi)) and np.all(np.nextafter(lo, hi) >= hi):
            break
    with np.errstate(invalid="ignore"):  # -inf - -inf, where hi is the answer
        near = np.abs(lam(schedule, lo) - value) < np.abs(lam(schedule, hi) - value)
    return np.where(near, lo, hi)


def transition(schedule: Schedule, s: ArrayLike, t: ArrayLike) -> tuple[Array, Array]:
    r"""Return (r, v) of the exact forward transition from s to t > s.

        x_t = r x_s + sqrt(v) z,   r = alpha_t / alpha_s,   v = sigma_t^2 - r^2 sigma_s^2

    For a DDPM table and neighbouring indices this is (sqrt(1 - beta), beta), for SMLD
    (1, sigma_{i+1}^2 - sigma_i^2): the discrete forward steps of both papers.
    """
    r = schedule.alpha(t) / schedule.alpha(s)
    noise = schedule.sigma(t)
    carried = r * schedule.sigma(s)
    return r, np.maximum((noise - carried) * (noise + carried), 0.0)


def diffuse(schedule: Schedule, x0: Any, t: ArrayLike, z: Any) -> Any:
    """Sample q(x_t | x_0) = N(alpha x_0, sigma^2 I) from the normals ``z`` (arrays or tensors).

    A vector of times pairs with the leading axis of ``x0``.
    """
    shape = np.shape(t) + (1,) * (len(np.shape(x0)) - len(np.shape(t)))
    alpha, sigma = np.reshape(schedule.alpha(t), shape), np.reshape(schedule.sigma(t), shape)
    if not isinstance(x0, np.ndarray):
        alpha, sigma = x0.new_tensor(alpha), x0.new_tensor(sigma)
    return alpha * x0 + sigma * z


# --- beta(t) of the variance-preserving family ------------------------------------------------


class Beta(Protocol):
    """A noise rate beta(t) on [0, 1] and its integral from 0."""

    def __call__(self, t: ArrayLike) -> Array: ...
    def integral(self, t: ArrayLike) -> Array: ...


@dataclass(frozen=True)
class LinearBeta:
    """beta(t) = beta_min + t (beta_max - beta_min). Source: Song et al. 2021, eq. 33."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _ordered("beta_min", self.beta_min, "beta_max", self.beta_max)

    def __call__(self, t: ArrayLike) -> Array:
        return self.beta_min + np.asarray(t, np.float64) * (self.beta_max - self.beta_min)

    def integral(self, t: ArrayLike) -> Array:
        t = np.asarray(t, np.float64)
        return t * self.beta_min + 0.5 * t * t * (self.beta_max - self.beta_min)


@dataclass(frozen=True)
class ExponentialBeta:
    """beta(t) = beta_min (beta_max / beta_min)^t."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _ordered("beta_min", self.beta_min, "beta_max", self.beta_max)

    def __call__(self, t: ArrayLike) -> Array:
        return self.beta_min * (self.beta_max / self.beta_min) ** np.asarray(t, np.float64)

    def integral(self, t: ArrayLike) -> Array:
        rate = math.log(self.beta_max / self.beta_min)
        return self.beta_min * np.expm1(rate * np.asarray(t, np.float64)) / rate


@dataclass(frozen=True)
class CosineBeta:
    r"""alpha(t) = cos(pi/2 (t + o)/(1 + o)) / cos(pi/2 o/(1 + o)). Source: Nichol & Dhariwal 2021.

    beta diverges at t = 1, so a schedule on it starts at T = 0.9946, as DPM-Solver does.
    """

    offset: float = 0.008

    def _angle(self, t: ArrayLike) -> Array:
        return 0.5 * np.pi * (np.asarray(t, np.float64) + self.offset) / (1.0 + self.offset)

    def __call__(self, t: ArrayLike) -> Array:
        return np.pi / (1.0 + self.offset) * np.tan(self._angle(t))

    def integral(self, t: ArrayLike) -> Array:
        return -2.0 * (np.log(np.cos(self._angle(t))) - np.log(np.cos(self._angle(0.0))))


@dataclass(frozen=True)
class FunctionBeta:
    """Any positive smooth beta(t) on [0, 1]; integrated by 64-point Gauss-Legendre quadrature."""

    fn: Callable[[Array], Array]

    def __call__(self, t: ArrayLike) -> Array:
        return np.asarray(self.fn(np.asarray(t, np.float64)), np.float64)

    def integral(self, t: ArrayLike) -> Array:
        t = np.asarray(t, np.float64)
        nodes, weights = np.polynomial.legendre.leggauss(64)
        return 0.5 * t * (self(0.5 * t[..., None] * (nodes + 1.0)) @ weights)


# --- continuous schedules ---------------------------------------------------------------------


@dataclass(frozen=True)
class VP:
    """Variance preserving: alpha = exp(-1/2 int beta), sigma^2 = 1 - alpha^2.

    Source: Song et al. 2021, eq. 11 and 33.
    """

    beta: Beta = field(default_factory=LinearBeta)
    t_end: float = 1e-3
    t_clean = 0.0
    prior_std = 1.0

    @property
    def T(self) -> float:
        return 0.9946 if isinstance(self.beta, CosineBeta) else 1.0

    def alpha(self, t: ArrayLike) -> Array:
        return np.exp(-0.5 * self.beta.integral(t))

    def sigma(self, t: ArrayLike) -> Array:
        return np.sqrt(-np.expm1(-self.beta.integral(t)))

    def dalpha(self, t: ArrayLike) -> Array:
        return -0.5 * self.beta(t) * self.alpha(t)

    def dsigma(self, t: ArrayLike) -> Array:
        return 0.5 * self.beta(t) * self.alpha(t) ** 2 / self.sigma(t)


@dataclass(frozen=True)
class SubVP:
    """Sub-VP: alpha as VP, sigma = 1 - alpha^2. Source: Song et al. 2021, eq. 12 and 29."""

    beta: Beta = field(default_factory=LinearBeta)
    t_end: float = 1e-3
    t_clean = 0.0
    prior_std = 1.0

    @property
    def T(self) -> float:
        return 0.9946 if isinstance(self.beta, CosineBeta) else 1.0

    def alpha(self, t: ArrayLike) -> Array:
        return np.exp(-0.5 * self.beta.integral(t))

    def sigma(self, t: ArrayLike) -> Array:
        return -np.expm1(-self.beta.integral(t))

    def dalpha(self, t: ArrayLike) -> Array:
        return -0.5 * self.beta(t) * self.alpha(t)

    def dsigma(self, t: ArrayLike) -> Array:
        return self.beta(t) * self.alpha(t) ** 2


@dataclass(frozen=True)
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

    def __post_init__(self) -> None:
        _ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def alpha(self, t: ArrayLike) -> Array:
        return np.ones_like(np.asarray(t, np.float64))

    def sigma(self, t: ArrayLike) -> Array:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** np.asarray(t, np.float64)

    def dalpha(self, t: ArrayLike) -> Array:
        return np.zeros_like(np.asarray(t, np.float64))

    def dsigma(self, t: ArrayLike) -> Array:
        return self.sigma(t) * math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class TutorialVE:
    """dx = s^t dw: sigma^2 = (s^{2t} - 1) / (2 ln s). Source: Song's score-SDE tutorial."""

    base: float = 25.0
    t_end: float = 1e-3
    T = 1.0
    t_clean = 0.0

    def __post_init__(self) -> None:
        if not self.base > 1.0:
            raise ValueError(f"TutorialVE: base = {self.base} must be above 1 (the tutorial uses 25)")

    @property
    def prior_std(self) -> float:
        return float(self.sigma(self.T))

    def alpha(self, t: ArrayLike) -> Array:
        return np.ones_like(np.asarray(t, np.float64))

    def sigma(self, t: ArrayLike) -> Array:
        rate = 2.0 * math.log(self.base)
        return np.sqrt(np.expm1(rate * np.asarray(t, np.float64)) / rate)

    def dalpha(self, t: ArrayLike) -> Array:
        return np.zeros_like(np.asarray(t, np.float64))

    def dsigma(self, t: ArrayLike) -> Array:
        return 0.5 * self.base ** (2.0 * np.asarray(t, np.float64)) / self.sigma(t)


@dataclass(frozen=True)
class EDM:
    """alpha = 1, sigma = t, from sigma_max down to sigma_min. Source: Karras et al. 2022."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_clean = 0.0

    def __post_init__(self) -> None:
        _ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    @property
    def T(self) -> float:
        return self.sigma_max

    @property
    def t_end(self) -> float:
        return self.sigma_min

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def alpha(self, t: ArrayLike) -> Array:
        return np.ones_like(np.asarray(t, np.float64))

    def sigma(self, t: ArrayLike) -> Array:
        return np.asarray(t, np.float64) * 1.0

    def dalpha(self, t: ArrayLike) -> Array:
        return np.zeros_like(np.asarray(t, np.float64))

    def dsigma(self, t: ArrayLike) -> Array:
        return np.ones_like(np.asarray(t, np.float64))


@dataclass(frozen=True)
class Flow:
    """Rectified flow: alpha = 1 - t, sigma = t. Source: Liu et al. 2022, Lipman et al. 2022.

    At T = 1 the state is pure noise (alpha = 0), where f is infinite: solvers written in f and
    g^2 need a grid that starts below 1, exponential integrators do not.
    """

    t_end: float = 1e-3
    T = 1.0
    t_clean = 0.0
    prior_std = 1.0

    def alpha(self, t: ArrayLike) -> Array:
        return 1.0 - np.asarray(t, np.float64)

    def sigma(self, t: ArrayLike) -> Array:
        return np.asarray(t, np.float64) * 1.0

    def dalpha(self, t: ArrayLike) -> Array:
        return -np.ones_like(np.asarray(t, np.float64))

    def dsigma(self, t: ArrayLike) -> Array:
        return np.ones_like(np.asarray(t, np.float64))


@dataclass(frozen=True)
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
class Pair:
    """Any pair of smooth functions (alpha, sigma); derivatives by sixth-order differences.

    Args:
        alpha_fn, sigma_fn: vectorised, float64; lam = ln(alpha/sigma) must decrease in t.
        T, t_end: first and last time of a stochastic solver.
        t_clean: the time with alpha = 1 and sigma = 0; -inf if sigma only tends to 0.
        prior_std: of x_T; sigma(T) if left out.
    """

    alpha_fn: Callable[[Array], Array]
    sigma_fn: Callable[[Array], Array]
    T: float = 1.0
    t_end: float = 1e-3
    t_clean: float = 0.0
    std: float | None = None

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


# --- discrete tables: time is the index, -1 is the data ---------------------------------------


@dataclass(frozen=True)
class DiscreteVP:
    """DDPM table: abar_i = prod_{j<=i} (1 - beta_j), ln alpha linear between the indices.

    Time is the index itself, 0 .. N-1, with -1 for the data. Source: Ho et al. 2020; the
    interpolation is DPM-Solver's (Lu et al. 2022, appendix).
    """

    betas: tuple[float, ...]
    t_end = 0.0
    t_clean = -1.0
    prior_std = 1.0

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, np.float64)
        if betas.ndim != 1 or len(betas) == 0 or not np.all((betas > 0.0) & (betas < 1.0)):
            raise ValueError(
                "DiscreteVP: betas must be a non-empty list of numbers strictly between 0 and 1; "
                f"got {len(betas)} from {betas.min(initial=np.inf):.4g} to {betas.max(initial=-np.inf):.4g}"
            )
        object.__setattr__(self, "betas", tuple(float(b) for b in betas))

    @property
    def T(self) -> float:
        return float(len(self.betas) - 1)

    def _log_alpha(self, t: ArrayLike) -> Array:
        knots = np.concatenate([[0.0], np.cumsum(0.5 * np.log1p(-np.asarray(self.betas)))])
        return np.interp(np.asarray(t, np.float64), np.arange(-1.0, len(self.betas)), knots)

    def alpha(self, t: ArrayLike) -> Array:
        return np.exp(self._log_alpha(t))

    def sigma(self, t: ArrayLike) -> Array:
        return np.sqrt(-np.expm1(2.0 * self._log_alpha(t)))

    def dalpha(self, t: ArrayLike) -> Array:
        return 0.5 * _slope(np.log1p(-np.asarray(self.betas)), t) * self.alpha(t)

    def dsigma(self, t: ArrayLike) -> Array:
        return -self.alpha(t) * self.dalpha(t) / self.sigma(t)


@dataclass(frozen=True)
class DiscreteVE:
    """SMLD table of increasing sigma_i: alpha = 1, ln sigma linear between the indices.

    Time is the index, 0 .. N-1, with -1 for the data (sigma = 0, reached linearly).
    Source: Song & Ermon 2019.
    """

    sigmas: tuple[float, ...]
    t_end = 0.0
    t_clean = -1.0

    def __post_init__(self) -> None:
        sigmas = np.asarray(self.sigmas, np.float64)
        if sigmas.ndim != 1 or len(sigmas) == 0 or sigmas[0] <= 0 or np.any(np.diff(sigmas) <= 0):
            raise ValueError("DiscreteVE: sigmas must be a non-empty list of increasing positive numbers")
        object.__setattr__(self, "sigmas", tuple(float(s) for s in sigmas))

    @property
    def T(self) -> float:
        return float(len(self.sigmas) - 1)

    @property
    def prior_std(self) -> float:
        return self.sigmas[-1]

    def alpha(self, t: ArrayLike) -> Array:
        return np.ones_like(np.asarray(t, np.float64))

    def sigma(self, t: ArrayLike) -> Array:
        t = np.asarray(t, np.float64)
        log = np.interp(np.maximum(t, 0.0), np.arange(len(self.sigmas)), np.log(self.sigmas))
        return np.where(t >= 0.0, np.exp(log), self.sigmas[0] * (t + 1.0))

    def dalpha(self, t: ArrayLike) -> Array:
        return np.zeros_like(np.asarray(t, np.float64))

    def dsigma(self, t: ArrayLike) -> Array:
        if len(self.sigmas) == 1:
            return np.full_like(np.asarray(t, np.float64), self.sigmas[0])
        # The interval below index 0, linear in sigma, has no slope of ln sigma: a step that ends at 0 comes from above.
        log = np.diff(np.log(self.sigmas))
        return np.where(np.asarray(t) < 0.0, self.sigmas[0], _slope(np.concatenate([log[:1], log]), t) * self.sigma(t))


def _slope(slopes: Array, t: ArrayLike) -> Array:
    """Return the slope at t of a line through a table, ``slopes[i]`` between i - 1 and i.

    At an index it is the mean of both sides: either side alone is the slope half an index away,
    an error that does not shrink with the steps and that leaves no second order to Heun.
    """
    t, last = np.asarray(t, np.float64), len(slopes) - 1
    below, above = (np.clip(k, 0, last).astype(int) for k in (np.ceil(t), np.floor(t) + 1.0))
    return 0.5 * (slopes[below] + slopes[above])


def ddpm(kind: str = "linear", n: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> DiscreteVP:
    """Return a standard DDPM table of ``n`` betas: "linear", "scaled-linear" or "cosine".

    scaled-linear is linear in sqrt(beta) (latent diffusion uses 0.00085 .. 0.012); cosine is
    Nichol & Dhariwal 2021, with beta clipped at 0.999, and ignores beta_min and beta_max.
    """
    if n < 1:
        raise ValueError(f"ddpm: n = {n} must be at least 1")
    if kind == "linear":
        betas = np.linspace(beta_min, beta_max, n)
    elif kind == "scaled-linear":
        betas = np.linspace(beta_min**0.5, beta_max**0.5, n) ** 2
    elif kind == "cosine":
        edge = np.cos(CosineBeta()._angle(np.arange(n + 1) / n)) ** 2
        betas = np.minimum(1.0 - edge[1:] / edge[:-1], 0.999)
    else:
        raise ValueError(f"ddpm: kind = {kind!r} must be one of linear, scaled-linear, cosine")
    return DiscreteVP(tuple(betas))


def smld(n: int = 10, sigma_min: float = 0.01, sigma_max: float = 1.0) -> DiscreteVE:
    """Return ``n`` geometric noise levels from sigma_min to sigma_max. Source: Song & Ermon 2019."""
    if n < 1:
        raise ValueError(f"smld: n = {n} must be at least 1")
    return DiscreteVE(tuple(np.exp(np.linspace(math.log(sigma_min), math.log(sigma_max), n))))


# --- as JSON ----------------------------------------------------------------------------------

_CLASSES = {
    c.__name__: c
    for c in (VP, SubVP, VE, TutorialVE, EDM, Flow, Trig, DiscreteVP, DiscreteVE, LinearBeta, ExponentialBeta, CosineBeta)
}


def to_dict(schedule: Any) -> dict[str, Any]:
    """Return a schedule as plain JSON values, with its class under ``name``."""
    name = type(schedule).__name__
    if name not in _CLASSES:
        raise ValueError(f"{name} holds Python functions and cannot be saved; only {', '.join(_CLASSES)} can")
    values = {k.name: getattr(schedule, k.name) for k in fields(schedule)}
    nested = {k: to_dict(v) if is_dataclass(v) else v for k, v in values.items()}
    return {"name": name, **nested}


def from_dict(data: dict[str, Any]) -> Any:
    """Build the schedule that ``to_dict`` described.

    Raises:
        ValueError: unknown name or argument.
    """
    values = dict(data)
    name = values.pop("name", None)
    if name not in _CLASSES:
        raise ValueError(f"schedule name = {name!r} must be one of {', '.join(_CLASSES)}")
    values = {k: from_dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    try:
        return _CLASSES[name](**values)
    except TypeError as error:
        raise ValueError(f"schedule {name}: {error}") from None


def _ordered(low_name: str, low: float, high_name: str, high: float) -> None:
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"{low_name} = {low} and {high_name} = {high} must satisfy 0 < {low_name} < {high_name}")
