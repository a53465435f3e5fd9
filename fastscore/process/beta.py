"""Noise rates beta(t) on [0, 1] for the variance-preserving family."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from fastscore.errors import short, typed
from fastscore.process.schedule import Array


class Beta(Protocol):
    """A noise rate beta(t) on [0, 1] and its integral from 0."""

    def __call__(self, t: ArrayLike) -> Array: ...
    def integral(self, t: ArrayLike) -> Array: ...


@dataclass(frozen=True)
@typed
class LinearBeta:
    """beta(t) = beta_min + t (beta_max - beta_min). Source: Song et al. 2021, eq. 33."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        ordered("beta_min", self.beta_min, "beta_max", self.beta_max)

    def __call__(self, t: ArrayLike) -> Array:
        return self.beta_min + np.asarray(t, np.float64) * (self.beta_max - self.beta_min)

    def integral(self, t: ArrayLike) -> Array:
        t = np.asarray(t, np.float64)
        return t * self.beta_min + 0.5 * t * t * (self.beta_max - self.beta_min)


@dataclass(frozen=True)
@typed
class ExponentialBeta:
    """beta(t) = beta_min (beta_max / beta_min)^t."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        ordered("beta_min", self.beta_min, "beta_max", self.beta_max)

    def __call__(self, t: ArrayLike) -> Array:
        return self.beta_min * (self.beta_max / self.beta_min) ** np.asarray(t, np.float64)

    def integral(self, t: ArrayLike) -> Array:
        rate = math.log(self.beta_max / self.beta_min)
        return self.beta_min * np.expm1(rate * np.asarray(t, np.float64)) / rate


@dataclass(frozen=True)
@typed
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
@typed
class FunctionBeta:
    """Any positive smooth beta(t) on [0, 1]; integrated by 64-point Gauss-Legendre quadrature."""

    fn: Callable[[Array], Array]

    def __post_init__(self) -> None:
        vectorised("FunctionBeta: fn", self.fn, 0.1, 0.9)

    def __call__(self, t: ArrayLike) -> Array:
        return np.asarray(self.fn(np.asarray(t, np.float64)), np.float64)

    def integral(self, t: ArrayLike) -> Array:
        t = np.asarray(t, np.float64)
        nodes, weights = np.polynomial.legendre.leggauss(64)
        return 0.5 * t * (self(0.5 * t[..., None] * (nodes + 1.0)) @ weights)


def vectorised(name: str, function: Callable[[Array], Array], low: float, high: float) -> None:
    """Raise ValueError unless a function of the caller's takes two times and returns two numbers."""
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{name.split(':')[0]}: times from {low} to {high} must rise, and be finite")
    try:
        got = np.asarray(function(np.array([low, high])), np.float64)
    except Exception as error:
        raise ValueError(f"{name} of two times raised {type(error).__name__}: {short(str(error), 120)}") from error
    if got.shape not in ((2,), ()) or not np.isfinite(got).all():
        raise ValueError(f"{name} must make an array of numbers of one of times; of two it made {short(got)}")


def ordered(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raise ValueError unless 0 < low < high < inf."""
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"{low_name} = {low} and {high_name} = {high} must satisfy 0 < {low_name} < {high_name}")
