r"""Figures of images: distances and shares in the feature space of a classifier, and the check for memorised images."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fastscore.report.metrics import frechet_of_fits
from fastscore.report.quality.points import distances, weighted
from fastscore.report.quality.resample import Floats, Judged, normal_tail

NEIGHBOURS = 3
_NEAR = 0.01  # the share of unseen images that count as near


class FeatureDistance:
    """The classifier-FID of features [n + m, F]; see report/metrics.py."""

    names = ("classifier-fid",)

    def __init__(self, features: Floats) -> None:
        self._x = features

    def __call__(self, a: Floats, c: Floats) -> Floats:
        """Return the distance of each weighting."""
        return np.array([[frechet_of_fits(*self._fit(u), *self._fit(v))] for u, v in zip(a, c, strict=True)])

    def _fit(self, w: Floats) -> tuple[Floats, Floats]:
        rows = np.flatnonzero(w)
        x, w = self._x[rows], w[rows, None]
        count = float(w.sum())
        mean = (w * x).sum(0) / count
        x = x - mean
        return mean, (w * x).T @ x / max(count - 1.0, 1.0)


class ClassShares:
    r"""Pearson's chi-square of predicted classes in two sets, sum (O - E)^2 / E over classes and sets (homogeneity)."""

    names = ("class-shares",)

    def __init__(self, predicted: NDArray[np.int64]) -> None:
        _, index = np.unique(predicted, return_inverse=True)
        self._rows = np.eye(int(index.max()) + 1)[index]

    def __call__(self, a: Floats, c: Floats) -> Floats:
        """Return chi-square of each weighting."""
        sets = [weighted(w, lambda rows: self._rows[rows]) for w in (a, c)]
        total = sets[0] + sets[1]
        everything = total.sum(1, keepdims=True)
        chi = 0.0
        for counts in sets:
            expected = total * counts.sum(1, keepdims=True) / everything
            chi = chi + (np.square(counts - expected) / np.maximum(expected, 1e-300)).sum(1)
        return np.asarray(chi)[:, None]


def inside(x: Floats, balls: Floats, k: int = NEIGHBOURS) -> NDArray[np.bool_]:
    """Return which rows of x [N, F] lie in a ball around a row of ``balls`` [M, F], out to its k-th nearest other row.

    Source: Kynkaanniemi et al. 2019, eq. 1.
    """
    radius = np.partition(distances(balls, balls), k, axis=1)[:, k]  # the nearest of all is the row itself
    return np.any(distances(x, balls) <= radius, axis=1, keepdims=True)[:, 0]


def precision(x: Floats, real: Floats, fit: Floats) -> tuple[Judged, float]:
    """Judge the share of samples x that lie among ``fit``, against that of other real data, which is the floor.

    Given ``fit`` all rows are independent, so the two shares are compared by their z.
    """
    here, there = inside(x, fit), inside(real, fit)
    return _shares(here, there), float(there.mean())


def recall(x: Floats, real: Floats, fit: Floats) -> tuple[Judged, float]:
    """Judge the share of real data ``fit`` that lie among samples x; the floor is that share among other real data.

    The p-value compares the real data with the second half of the samples, both among the first half: given that half
    all rows are independent.
    """
    here = inside(fit, x)
    half = len(x) // 2
    p = _shares(inside(fit, x[:half]), inside(x[half:], x[:half])).p
    return Judged(float(here.mean()), _binomial(here), p), float(inside(fit, real[: len(x)]).mean())


def agreement(here: NDArray[np.bool_], there: NDArray[np.bool_] | None) -> tuple[Judged, float | None]:
    """Judge the share of samples whose class is the one that was asked for, against that of real images."""
    if there is None:
        return Judged(float(here.mean()), _binomial(here), None), None
    return _shares(here, there), float(there.mean())


def memorised(near: Floats, unseen: Floats) -> tuple[Judged, float]:
    """Judge distances to the nearest training image: the share of samples nearer than 1 % of unseen images are.

    Args:
        near: of samples [n].
        unseen: of real images that were not trained on [m].

    Returns:
        The share, its binomial standard error and the exact p-value that as many samples of the law of the unseen ones
        lie below their r-th smallest, sum_k C(n, k) B(r + k, m - r + 1 + n - k) / B(r, m - r + 1); and the floor r / m.
    """
    n, m = len(near), len(unseen)
    r = max(1, math.ceil(_NEAR * m))
    below = near < np.partition(unseen, r - 1)[r - 1]
    k = np.arange(int(below.sum()), n + 1)

    def log_beta(a: Floats, b: Floats) -> Floats:
        lgamma = np.vectorize(math.lgamma, otypes=[float])
        return lgamma(a) + lgamma(b) - lgamma(a + b)

    choose = -np.log(n + 1.0) - log_beta(n - k + 1.0, k + 1.0)
    base = log_beta(np.array([float(r)]), np.array([m - r + 1.0]))
    p = float(np.exp(choose + log_beta(r + k + 0.0, m - r + 1.0 + n - k) - base).sum())
    return Judged(float(below.mean()), _binomial(below), min(1.0, p)), r / m


def nearest(
    x: NDArray[np.float32],
    train: Callable[[slice], NDArray[np.float32]],
    count: int,
    own: NDArray[np.int64] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Floats:
    """Return the distance of each row of x [N, D] to the nearest of ``count`` training rows, rms over the D numbers.

    Args:
        x: float32, in -1 .. 1.
        train: gives rows [n, D] of a slice.
        count: of training rows, which are looked at 2048 at a time.
        own: for rows that are training rows themselves their numbers [N], which are left out.
        tick: called after each part.
    """
    best, at = np.full(len(x), np.inf), np.zeros(len(x), np.int64)
    here, square = torch.from_numpy(x), np.square(x, dtype=np.float64).sum(1)
    for first in range(0, count, 2048):
        rows = train(slice(first, min(first + 2048, count)))
        part = -2.0 * (here @ torch.from_numpy(rows).T).numpy()
        part += np.square(rows, dtype=np.float64).sum(1).astype(np.float32)
        if own is not None:
            mine = np.flatnonzero((own >= first) & (own < first + len(rows)))
            part[mine, own[mine] - first] = np.inf
        k = part.argmin(1)
        found = part[np.arange(len(x)), k] + square
        closer = found < best
        best[closer], at[closer] = found[closer], first + k[closer]
        tick()
    # The product has lost the last digits of small distances: those of the nearest are computed again.
    exact = np.empty(len(x))
    for j, k in enumerate(at):
        exact[j] = math.sqrt(float(np.square(x[j].astype(np.float64) - train(slice(k, k + 1))[0]).mean()))
    return exact


def _shares(here: NDArray[np.bool_], there: NDArray[np.bool_]) -> Judged:
    """Compare two shares, two-sided, by the normal law with Yates's correction."""
    n, m = len(here), len(there)
    pooled = (int(here.sum()) + int(there.sum())) / (n + m)
    error = math.sqrt(pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m))
    gap = max(0.0, abs(float(here.mean() - there.mean())) - 0.5 * (1.0 / n + 1.0 / m))
    return Judged(float(here.mean()), _binomial(here), min(1.0, 2.0 * normal_tail(gap / error)) if error else 1.0)


def _binomial(there: NDArray[np.bool_]) -> float:
    """Return the standard error of a share; of none or all as if there were one more of each kind: it is not 0."""
    n = len(there)
    share = (int(there.sum()) + 1.0) / (n + 2.0) if there.all() or not there.any() else float(there.mean())
    return math.sqrt(share * (1.0 - share) / n)
