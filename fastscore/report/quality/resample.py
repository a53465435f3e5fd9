r"""Standard errors and p-values of a figure of two sets, whatever the figure is.

A figure is a function T(a, c) of how often each row of the pooled sets counts, in the one and in the other. The sets
themselves, their bootstrap and their permutations are then weights of one kind, and everything that costs (distances,
projections, bins) is computed once:

    value    a = 1 on the n samples, c = 1 on the m references
    bootstrap    n rows drawn with replacement from the samples, m from the references
    permutation    n rows of all, without replacement, and the m others

If both sets have one law, every permutation is as likely as what was seen: the permutation p-value (1 + #{T_b >= T}) /
(1 + B) is exact for every n and m. Where it would rest on fewer than TAIL permutations, the upper tail of a gamma
distribution with their mean, variance and skewness stands for it; how often a right sampler is flagged is a test.

Source: Efron and Tibshirani 1993, sections 6 and 15; the tail: Winkler et al. 2016, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fastscore.ops.noise import NoiseKey

Floats = NDArray[Any]  # float64, whatever NumPy's stubs make of it
PERMUTATIONS, RESAMPLES, TAIL = 300, 100, 10
_PERMUTE, _SAMPLES, _REFERENCES, _ORDER, _SIGNS = range(1000, 1005)  # draws of the noise
_AT_ONCE = 1 << 24  # numbers of weights held at once


class Statistic(Protocol):
    """Figures of two weightings of the pooled rows: a, c, [B, n + m] each, to [B, figures]."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __call__(self, a: Floats, c: Floats) -> Floats: ...


class Judged(NamedTuple):
    """A figure with what its size means: the standard error by bootstrap, and the p-value."""

    value: float
    stderr: float | None
    p: float | None


def judge(
    statistic: Statistic, n: int, m: int, seed: int = 0, permutations: int = PERMUTATIONS, resamples: int = RESAMPLES
) -> dict[str, Judged]:
    """Return each figure of a statistic of n and m rows, which stand in this order.

    Args:
        statistic: of n + m rows.
        seed: of the resampling, which is the project's own noise: the same on every machine.
        permutations, resamples: how many; of none there is no p-value, or no standard error.
    """
    value = statistic(*split(n, m))[0]
    null = _each(statistic, permutations, n + m, lambda ids: _permuted(n, m, seed, ids))
    again = _each(statistic, resamples, n + m, lambda ids: _resampled(n, m, seed, ids))
    return {
        name: Judged(
            float(value[k]),
            float(again[:, k].std(ddof=1)) if len(again) else None,
            upper_tail(float(value[k]), null[:, k]) if len(null) else None,
        )
        for k, name in enumerate(statistic.names)
    }


def split(n: int, m: int) -> tuple[Floats, Floats]:
    """Return the weights [1, n + m] of the first n rows, and of the m that follow."""
    here = (np.arange(n + m) < n).astype(np.float64)[None]
    return here, 1.0 - here


def upper_tail(value: float, null: Floats) -> float:
    """Return the p-value of a figure that is large where sets differ, given draws of it under the null, [B]."""
    above = int((null >= value - 1e-12 * abs(value)).sum())
    if above >= TAIL or len(null) < 3 * TAIL:
        return (1 + above) / (1 + len(null))
    centred = null - null.mean()
    std = float(np.sqrt(np.square(centred).mean()))
    if std <= 1e-12 * max(abs(value), 1e-300):
        return 1.0 / (1 + len(null))
    z, skew = (value - float(null.mean())) / std, float((centred**3).mean()) / std**3
    if skew < 0.02:  # as good as none, or to the left, where the normal tail is the longer one
        return normal_tail(z)
    shape = 4.0 / skew**2
    return gamma_tail(shape, shape + z * math.sqrt(shape))


def normal_tail(z: float) -> float:
    """Return P(Z > z) of a standard normal."""
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def gamma_tail(shape: float, x: float) -> float:
    """Return P(G > x) of a gamma variable of unit scale; a chi-square has shape k / 2 at x / 2."""
    pair = torch.tensor([shape, max(x, 0.0)], dtype=torch.float64)
    return float(torch.special.gammaincc(pair[0], pair[1]))


def shuffled(n: int, seed: int, purpose: int = 0) -> NDArray[np.int64]:
    """Return 0 .. n-1 in an order that is a function of the seed."""
    u = NoiseKey.of(seed, [purpose]).uniform(_ORDER, n)[0]
    return torch.argsort(u, stable=True).numpy()


def signs(n: int, count: int, seed: int) -> Floats:
    """Return random signs [count, n]."""
    return NoiseKey.of(seed, range(count)).sign(_SIGNS, n, torch.float64).numpy()


def resampled(n: int, seed: int, ids: range, draw: int = _SAMPLES) -> Floats:
    """Return how often each of n rows comes in bootstrap samples of n, [B, n]."""
    u = NoiseKey.of(seed, ids).uniform(draw, n).double().numpy()
    rows = np.minimum((u * n).astype(np.int64), n - 1)
    return np.stack([np.bincount(r, minlength=n) for r in rows]).astype(np.float64)


def _resampled(n: int, m: int, seed: int, ids: range) -> tuple[Floats, Floats]:
    here, there = resampled(n, seed, ids), resampled(m, seed, ids, _REFERENCES)
    return np.pad(here, ((0, 0), (0, m))), np.pad(there, ((0, 0), (n, 0)))


def _permuted(n: int, m: int, seed: int, ids: range) -> tuple[Floats, Floats]:
    u = NoiseKey.of(seed, ids).uniform(_PERMUTE, n + m).numpy()
    here = np.zeros(u.shape)
    np.put_along_axis(here, np.argpartition(u, n - 1, axis=1)[:, :n], 1.0, axis=1)
    return here, 1.0 - here


def _each(statistic: Statistic, count: int, rows: int, weights: Callable[[range], tuple[Floats, Floats]]) -> Floats:
    at_once = max(1, min(100, _AT_ONCE // rows))
    parts = (range(first, min(first + at_once, count)) for first in range(0, count, at_once))
    return np.concatenate([np.empty((0, len(statistic.names))), *(statistic(*weights(part)) for part in parts)])
