"""Rules that space noise levels between the most and the least noise, and lists of levels; see rules.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastscore.errors import typed
from fastscore.process.quantiles import falling_quantiles
from fastscore.process.rules import Rule, all_of
from fastscore.process.schedule import Array


@dataclass(frozen=True)
@typed
class Karras(Rule):
    """Even in level^(1/rho). Source: Karras et al. 2022, eq. 5."""

    rho: float = 7.0
    counts = "level"

    def __call__(self, n: int, high: float, low: float) -> Array:
        return np.linspace(high ** (1.0 / self.rho), low ** (1.0 / self.rho), n) ** self.rho


@dataclass(frozen=True)
@typed
class Polyexponential(Rule):
    """The logarithm falls as u^rho, u even from 1 to 0; geometric at rho = 1."""

    rho: float = 1.0
    counts = "level"

    def __call__(self, n: int, high: float, low: float) -> Array:
        return low * (high / low) ** (np.linspace(1.0, 0.0, n) ** self.rho)


@dataclass(frozen=True)
@typed
class BetaLevels(Rule):
    """Quantiles 1 - i/(n-1) of the distribution Beta(a, b), as parts of the way from the least noise to the most."""

    a: float = 0.6
    b: float = 0.6
    counts = "level"

    def __call__(self, n: int, high: float, low: float) -> Array:
        return low + (high - low) * falling_quantiles(n, self.a, self.b, to_zero=True)


@dataclass(frozen=True)
class KLOptimal(Rule):
    """Even in arctan(level), which pure noise has, too. Source: Sabour et al. 2024, for one Gaussian."""

    counts = "level"

    def __call__(self, n: int, high: float, low: float) -> Array:
        levels = np.tan(np.linspace(math.atan(high), math.atan(low), n))
        levels[0] = high  # which pi / 2 in float64 misses
        return levels


@dataclass(frozen=True)
class KLOptimalNoisy(KLOptimal):
    """As KLOptimal, ending at the least noise."""

    clean = False


@dataclass(frozen=True)
@typed
class LinearQuadratic(Rule):
    """The first half falls linearly, in all by ``threshold`` of the most noise, the rest as a parabola to 0."""

    threshold: float = 0.025
    counts = "level"

    def __call__(self, n: int, high: float, low: float) -> Array:
        i, half, q = np.arange(n), n // 2, self.threshold
        if half == 0:
            return np.array([high])
        excess, rest = half - q * n, n - half
        a, b = excess / (half * rest**2), q / half - 2.0 * excess / rest**2
        return high * (1.0 - np.where(i < half, i * q / half, a * i**2 + b * i + a * half**2))


@dataclass(frozen=True)
@typed
class Laplace(Rule):
    """Quantiles of a Laplace distribution of ln level, cut off at both ends; repeats are left out."""

    mu: float = 0.0
    beta: float = 0.5
    counts, clean = "level", False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu) and 0.0 < self.beta < math.inf):
            raise ValueError(f"Laplace: mu = {self.mu} must be finite and beta = {self.beta} positive")

    def __call__(self, n: int, high: float, low: float) -> Array:
        away = np.linspace(-0.5, 0.5, n) if n > 1 else np.array([-0.5])
        levels = np.exp(self.mu + self.beta * np.sign(away) * np.log(1.0 - 2.0 * abs(away) + 1e-5))
        return np.unique(np.clip(levels, low, high))[::-1]


@dataclass(frozen=True)
@typed
class Piecewise(Rule):
    """A rule of its own above and below a level of transition.

    Args:
        transition: sigma / alpha between the two.
        rho_high, rho_low: exponents of Karras' rule; None is geometric.
        steps_low: levels below the transition; half of them, rounded down, if left out. If it is 1, the least noise
            is not among them.
    """

    transition: float = 10.0
    rho_high: float | None = None
    rho_low: float | None = 7.0
    steps_low: int | None = None
    counts = "level"

    def __call__(self, n: int, high: float, low: float) -> Array:
        if not low < self.transition < high:
            raise ValueError(f"transition = {self.transition} must lie between the levels {low:.6g} and {high:.6g}")
        below = n // 2 if self.steps_low is None else self.steps_low
        if below >= n > 1:
            raise ValueError(f"steps_low = {below} must be below {n}, all there are")
        upper, lower = (Polyexponential() if rho is None else Karras(rho) for rho in (self.rho_high, self.rho_low))
        above = upper(n - below + 1, high, self.transition)
        return np.append(above, lower(below, self.transition, low)[1:])[:n]


@dataclass(frozen=True)
@typed
class KarrasExponential(Rule):
    """Karras' levels mixed with geometric ones, whose share falls from ``blend`` to 0; both begin 1.1 times as noisy.

    Levels below 1.5 times the least noise are ``sharpen`` times as high.
    """

    blend: float = 0.3
    sharpen: float = 0.9
    counts, clean = "level", False

    def __call__(self, n: int, high: float, low: float) -> Array:
        share = (1.0 - np.arange(n) / n) * self.blend
        levels = (1.0 - share) * Karras()(n, 1.1 * high, low) + share * Polyexponential()(n, 1.1 * high, low)
        return np.where(levels < 1.5 * low, self.sharpen, 1.0) * levels


# --- lists of their own --------------------------------------------------------------------------


@dataclass(frozen=True)
class Nodes(Rule):
    """n + 1 levels through a list, geometric between its nodes, the last of which becomes 0."""

    levels: tuple[float, ...]
    counts = "ratio"

    def __call__(self, n: int, high: float, low: float) -> Array:
        return _through(self.levels, n + 1)[:n]


@dataclass(frozen=True)
class NodesBeforeClean(Nodes):
    """n levels through a list, geometric between its nodes, the last before 0."""

    def __call__(self, n: int, high: float, low: float) -> Array:
        return _through(self.levels, n)


@dataclass(frozen=True)
class FlowNodes(Nodes):
    """n + 1 levels of a flow through a list, geometric between its nodes, the last of which becomes 0."""

    counts = "flow"


@dataclass(frozen=True)
class TheseLevels(Rule):
    """A list of levels, all of it."""

    levels: tuple[float, ...]
    counts = "ratio"

    def __call__(self, n: int, high: float, low: float) -> Array:
        return all_of(self.levels, n)


@dataclass(frozen=True)
@typed
class VPLevels(Rule):
    """Levels of a VP process with linear beta, at even times from 1 to ``end``."""

    beta_min: float = 0.1
    beta_slope: float = 19.9
    end: float = 1e-3
    counts = "ratio"

    def __call__(self, n: int, high: float, low: float) -> Array:
        t = np.linspace(1.0, self.end, n)
        return np.sqrt(np.expm1(0.5 * self.beta_slope * t**2 + self.beta_min * t))


@dataclass(frozen=True)
@typed
class Structures(Rule):
    """Karras' levels from 160 to 0.0004 times the standard deviation of the data, of atoms 16. Source: AlphaFold 3."""

    sigma_data: float = 16.0
    sigma_max: float = 160.0
    sigma_min: float = 4e-4
    rho: float = 7.0
    counts = "ratio"

    def __call__(self, n: int, high: float, low: float) -> Array:
        return self.sigma_data * Karras(self.rho)(n, self.sigma_max, self.sigma_min)


@dataclass(frozen=True)
class BongTangent(Rule):
    """A flow's sigma along two arctangents, from 1 to 1/2 and from there to 0."""

    counts = "flow"

    def __call__(self, n: int, high: float, low: float) -> Array:
        middle, slope = int(0.6 * (n + 2)), 8.0 / (n + 2)

        def leg(points: int, pivot: int) -> Array:
            curve = -np.arctan(slope * (np.arange(points) - pivot))
            return (curve - curve[-1]) / (curve[0] - curve[-1]) if points > 1 else np.ones(1)

        first, second = 0.5 + 0.5 * leg(middle, middle), 0.5 * leg(n + 2 - middle, 0)
        return np.append(first[:-1], second)[:n] if n > 1 else np.ones(1)


def _through(levels: tuple[float, ...], n: int) -> Array:
    at = np.linspace(0.0, 1.0, n), np.linspace(0.0, 1.0, len(levels))
    return np.exp(np.interp(*at, np.log(levels)))
