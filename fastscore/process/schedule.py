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
from dataclasses import dataclass, is_dataclass
from functools import lru_cache, wraps
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastscore.errors import short

Array = NDArray[np.float64]
Result = TypeVar("Result")
ROUNDING = 4e-7  # relative, of a time or noise level that went through float32


@runtime_checkable
class Schedule(Protocol):
    """A forward SDE, as far as a solver needs to know it.

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


def table(name: str, values: Any) -> Array:
    """Return a list of numbers, [n] float64, of anything that is one; ValueError for what is none."""
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = np.array(math.nan)
    if numbers.ndim != 1:
        raise ValueError(f"{name} = {short(values)} must be a list of numbers")
    return numbers


def remembered(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return the function with its last results kept, but those of arguments that may change, as a caller's own can."""
    kept = lru_cache(maxsize=256)(function)

    @wraps(function)
    def call(*arguments: Any) -> Result:
        if not all(_constant(argument) for argument in arguments):
            return function(*arguments)
        try:
            return kept(*arguments)
        except TypeError:  # a field that cannot be hashed
            return function(*arguments)

    return call


def _constant(argument: Any) -> bool:
    if is_dataclass(argument):
        return argument.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    return argument is None or isinstance(argument, str | bytes | int | float | tuple)


def t_of_lam(schedule: Schedule, value: ArrayLike) -> Array:
    """Invert lam: return the time at which ln(alpha/sigma) equals ``value``.

    Bisection to the last bit of float64, which holds for any schedule whose lam decreases in t.

    Raises:
        ValueError: a value lies outside lam(T) .. lam(close to the clean end).
    """
    value = np.atleast_1d(np.asarray(value, dtype=np.float64))
    return _inverted(schedule, value.tobytes()).reshape(value.shape).copy()


@remembered
def _inverted(schedule: Schedule, values: bytes) -> Array:
    """Return the times of the values that bytes hold, which can be remembered by them."""
    value = np.frombuffer(values)
    # VE reaches sigma = 0 only at t = -inf: 64 units below T every sigma is below 1e-200.
    low = schedule.t_clean if math.isfinite(schedule.t_clean) else schedule.T - 64.0
    lo, hi = np.full_like(value, low), np.full_like(value, schedule.T)
    bottom = float(lam(schedule, schedule.T))
    slack = ROUNDING * max(1.0, abs(bottom)) if math.isfinite(bottom) else 0.0
    if np.any(np.isnan(value)) or np.any(value < bottom - slack):
        raise ValueError(
            f"lam = {float(value.min()):.10g} is noisier than {type(schedule).__name__} gets: its "
            f"lam(T) is {bottom:.10g}; start the grid later or use a schedule with more noise at T"
        )
    for halvings in range(1, 1100):  # enough to cross the whole exponent range of float64
        mid = 0.5 * (lo + hi)
        cleaner = lam(schedule, mid) > value
        lo, hi = np.where(cleaner, mid, lo), np.where(cleaner, hi, mid)
        if halvings % 8 == 0 and np.all(np.nextafter(lo, hi) >= hi):  # one halving more than enough changes nothing
            break
    with np.errstate(invalid="ignore"):  # -inf - -inf, where hi is the answer
        near = np.abs(lam(schedule, lo) - value) < np.abs(lam(schedule, hi) - value)
    return np.where(near, lo, hi)


def at_ends(schedule: Schedule, t: ArrayLike) -> Array:
    """Return times with those one float32 rounding beyond T or t_clean moved there."""
    t = np.asarray(t, np.float64)
    last, first = schedule.T, schedule.t_clean
    t = np.where((t > last) & (t <= last + ROUNDING * abs(last)), last, t)
    return np.where((t < first) & (t >= first - ROUNDING * abs(first)), first, t) if math.isfinite(first) else t


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


def ones(t: ArrayLike) -> Array:
    """Return alpha = 1, of every schedule that only adds noise."""
    return np.ones_like(np.asarray(t, np.float64))


def zeros(t: ArrayLike) -> Array:
    """Return the derivative of ``ones``."""
    return np.zeros_like(np.asarray(t, np.float64))


@dataclass(frozen=True)
class Started:
    """A schedule that begins at another T, with a standard deviation of its own there.

    T may lie behind the schedule's own, where its functions go on.
    """

    schedule: Schedule
    T: float
    prior_std: float

    @property
    def t_end(self) -> float:
        return min(self.schedule.t_end, self.T)

    @property
    def t_clean(self) -> float:
        return self.schedule.t_clean

    def alpha(self, t: ArrayLike) -> Array:
        return self.schedule.alpha(t)

    def sigma(self, t: ArrayLike) -> Array:
        return self.schedule.sigma(t)

    def dalpha(self, t: ArrayLike) -> Array:
        return self.schedule.dalpha(t)

    def dsigma(self, t: ArrayLike) -> Array:
        return self.schedule.dsigma(t)
