"""Quantiles of the beta distribution in float64, without SciPy."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from fastscore.process.schedule import Array

LARGEST = 1000.0  # of a parameter


@lru_cache(maxsize=64)
def falling_quantiles(n: int, a: float, b: float, to_zero: bool) -> Array:
    """Return the quantiles of n even probabilities that fall from 1, the last of them 0 or one step before."""
    values = beta_quantile(1.0 - np.linspace(0.0, 1.0, n, endpoint=to_zero), a, b)
    values.flags.writeable = False
    return values


def beta_quantile(p: Array, a: float, b: float) -> Array:
    r"""Return x with I_x(a, b) = p, for p in 0 .. 1 and 0 < a, b <= LARGEST.

    Bisection to the last bit of float64 on the regularised incomplete beta function.

    Raises:
        ValueError: a or b out of range.
    """
    if not (0.0 < a <= LARGEST and 0.0 < b <= LARGEST):
        raise ValueError(f"Beta({a}, {b}): both must be above 0 and at most {LARGEST:g}")
    p = np.asarray(p, np.float64)
    lo, hi = np.zeros_like(p), np.where(p <= 0.0, 0.0, 1.0)
    while True:
        mid = 0.5 * (lo + hi)
        if np.all((mid <= lo) | (mid >= hi)):
            break
        below = beta_distribution(mid, a, b) < p
        lo, hi = np.where(below, mid, lo), np.where(below, hi, mid)
    median = 0.5 if a == b else math.nan  # which rounding would miss, and a tie of whole indices with it
    return np.where(p >= 1.0, 1.0, np.where((p == 0.5) & (a == b), median, hi))


def beta_distribution(x: Array, a: float, b: float) -> Array:
    """Return I_x(a, b), the regularised incomplete beta function.

    Source: the continued fraction of DLMF 8.17.22, which converges fast below the mean; above it I_x(a, b) is
    1 - I_{1-x}(b, a), 8.17.4.
    """
    x = np.asarray(x, np.float64)
    mirrored = x > (a + 1.0) / (a + b + 2.0)
    u, c, d = np.where(mirrored, 1.0 - x, x), np.where(mirrored, b, a), np.where(mirrored, a, b)
    with np.errstate(divide="ignore"):
        log = c * np.log(u) + d * np.log1p(-u) - np.log(c)
    log = log - (math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    value = np.exp(log) / _fraction(u, c, d)
    return np.where(mirrored, 1.0 - value, value)


def _fraction(x: Array, a: Array, b: Array) -> Array:
    """Return 1 + d_1 x / (1 + d_2 x / (1 + ..)), from its last term back; it converges in O(sqrt(max(a, b))) terms."""
    value = np.ones_like(x)
    for k in range(22 + int(4.0 * math.sqrt(max(a.max(), b.max()))), 0, -1):
        m = k // 2
        if k % 2:
            d = -(a + m) * (a + b + m) / ((a + 2 * m) * (a + 2 * m + 1.0))
        else:
            d = m * (b - m) / ((a + 2 * m - 1.0) * (a + 2 * m))
        value = 1.0 + d * x / value
    return value
