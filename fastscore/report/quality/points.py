r"""Figures of two sets of points: moments, KL divergence, sliced Wasserstein distance, energy distance.

Each is a function of two weightings of the pooled rows; see resample.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastscore.ops.noise import NoiseKey
from fastscore.report.quality.resample import Floats, split

DIRECTIONS, DIRECTION_SEED = 128, 2
LARGEST = 32  # dimensions of which covariances are compared as they are; of more, in as many random directions
_ROWS = 4096


class Moments:
    r"""Differences of means and of standard deviations, in standard errors: the worst dimension, and rms over all.

        z_j = (mean_a - mean_c) / (s_a^2 / n + s_c^2 / m)^{1/2}
        z_j = (s_a - s_c) / (e_a^2 + e_c^2)^{1/2},    e^2 = (mu_4 - s^4) / (4 s^2 n)

    Source: Welch 1947; the standard error of a standard deviation by the delta method, Kendall and Stuart, 10.15.
    """

    names = ("mean-worst", "mean-rms", "std-worst", "std-rms")

    def __init__(self, x: Floats) -> None:
        shift, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
        self._x, self._shift, self._scale = x, shift, np.where(scale > 0.0, scale, 1.0)

    def __call__(self, a: Floats, c: Floats) -> Floats:
        """Return the four figures of each weighting."""

        def powers(rows: slice) -> Floats:
            x = (self._x[rows] - self._shift) / self._scale
            square = x * x
            return np.concatenate([x, square, square * x, square * square], axis=1)

        sets = []
        for w in (a, c):
            count = w.sum(1, keepdims=True)
            m1, m2, m3, m4 = np.split(weighted(w, powers) / count, 4, axis=1)
            variance = np.maximum(m2 - m1**2, 0.0)
            fourth = m4 - 4.0 * m1 * m3 + 6.0 * m1**2 * m2 - 3.0 * m1**4
            biased = variance
            variance = variance * count / np.maximum(count - 1.0, 1.0)
            error = np.maximum(fourth - biased**2, 0.0) / (4.0 * np.maximum(biased, 1e-12) * count)
            sets.append((m1, variance / count, np.sqrt(variance), error, count))
        (mean_a, of_a, std_a, error_a, n), (mean_c, of_c, std_c, error_c, m) = sets
        least = 1e-12 * (1.0 / n + 1.0 / m)  # of dimensions that are constant in both sets
        mean = np.abs(mean_a - mean_c) / np.sqrt(np.maximum(of_a + of_c, least))
        std = np.abs(std_a - std_c) / np.sqrt(np.maximum(error_a + error_c, least))
        return np.stack([mean.max(1), _rms(mean), std.max(1), _rms(std)], axis=1)


class Covariances:
    r"""Differences of covariances, |S_a - S_c|_F / |S_c|_F; and the Fisher divergence of the Gaussian fits.

        E_a |s_c(x) - s_a(x)|^2 = tr(A S_a A) + |S_c^{-1} (mu_a - mu_c)|^2,   A = S_c^{-1} - S_a^{-1}

    with s the scores of N(mu, S). The latter is there for ``fits`` only; of singular covariances it is infinite.
    """

    def __init__(self, x: Floats, fits: bool = False) -> None:
        self.names = ("covariance", "fisher-gaussian")[: 1 + fits]
        if x.shape[1] > LARGEST:
            x = x @ directions(LARGEST, x.shape[1]).T
        self._x, self._shift = x, x.mean(0, dtype=np.float64)

    def __call__(self, a: Floats, c: Floats) -> Floats:
        """Return the figures of each weighting."""
        d = self._x.shape[1]
        i, j = np.triu_indices(d)

        def products(rows: slice) -> Floats:
            x = self._x[rows] - self._shift
            return np.concatenate([x, x[:, i] * x[:, j]], axis=1)

        sets = []
        for w in (a, c):
            count = w.sum(1, keepdims=True)
            sums = weighted(w, products) / count
            mean, upper = sums[:, :d], sums[:, d:]
            full = np.empty((len(w), d, d))
            full[:, i, j] = full[:, j, i] = upper
            full -= mean[:, :, None] * mean[:, None, :]
            sets.append((mean, full * (count / np.maximum(count - 1.0, 1.0))[:, :, None]))
        (mean_a, cov_a), (mean_c, cov_c) = sets
        change, norm_a, norm = (np.linalg.norm(v, axis=(1, 2)) for v in (cov_a - cov_c, cov_a, cov_c))
        figures = [change / np.maximum(norm, 1e-6 * norm_a + 1e-300)]  # finite where references do not vary
        if len(self.names) == 2:
            inverse_a, inverse_c = np.linalg.pinv(cov_a, hermitian=True), np.linalg.pinv(cov_c, hermitian=True)
            change = inverse_c - inverse_a
            pull = np.einsum("bij,bj->bi", inverse_c, mean_a - mean_c)
            figures.append(np.einsum("bij,bjk,bki->b", change, cov_a, change) + np.square(pull).sum(1))
        return np.stack(figures, axis=1)


class GridKL:
    r"""KL divergences of histograms, in nats: sum_k p_k ln(p_k / q_k), samples from references and back.

    In one dimension the bins are 2 N^{2/5} of one width, in two sqrt(N / 8) a side, N the rows of the smaller set (at
    least 4 of them). They span the pooled 0.5 % to 99.5 % quantiles, widened by a tenth on both sides; the outer ones
    reach to infinity. Half a count is added to each bin that either set occupies (Krichevsky and Trofimov 1981), bins
    that neither does are left out; so the divergence is finite, and biased upwards by about (K - 1)(1/n + 1/m) / 2 of
    K occupied bins (Miller 1955), the floor alike.
    """

    names = ("kl-forward", "kl-reverse")

    def __init__(self, x: Floats, n: int, m: int) -> None:
        least, d = min(n, m), x.shape[1]
        count = 2.0 * least**0.4 if d == 1 else math.sqrt(least / 8.0)
        self.side = int(np.clip(round(count), 4, 512 if d == 1 else 64))
        low, high = np.quantile(x, (0.005, 0.995), axis=0)
        low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
        width = np.where(high > low, (high - low) / self.side, 1.0)
        place = np.clip(np.floor((x - low) / width), 0, self.side - 1).astype(np.int64)
        self.codes = place @ self.side ** np.arange(d)
        self._bins = self.side**d

    def __call__(self, a: Floats, c: Floats) -> Floats:
        """Return the divergences of each weighting, both ways."""
        figures = []
        for one, other in zip(a, c, strict=True):
            p, q = (np.bincount(self.codes, w, self._bins) for w in (one, other))
            there = p + q > 0.0
            p, q = p[there] + 0.5, q[there] + 0.5
            p, q = p / p.sum(), q / q.sum()
            ratio = np.log(p / q)
            figures.append((p @ ratio, -(q @ ratio)))
        return np.array(figures)


class SlicedWasserstein:
    r"""The sliced Wasserstein-2 distance, (mean over directions of W_2^2)^{1/2}.

    W_2 of a direction is that of the two empirical quantile functions, exact for any two sizes. Source: Rabin et al.
    2011; the DIRECTIONS directions are the same in every call.
    """

    names = ("sliced-w2",)

    def __init__(self, x: Floats, count: int = DIRECTIONS) -> None:
        along = directions(count, x.shape[1]) if x.shape[1] > 1 else np.ones((1, 1))
        projected = along @ x.T
        self._order = np.argsort(projected, axis=1, kind="stable")
        self._values = np.take_along_axis(projected, self._order, axis=1)

    def __call__(self, a: Floats, c: Floats) -> Floats:
        """Return the distance of each weighting."""
        return np.array([[self._distance(one.astype(np.int64), other.astype(np.int64))]
                         for one, other in zip(a, c, strict=True)])  # fmt: skip

    def _distance(self, a: NDArray[np.int64], c: NDArray[np.int64]) -> float:
        n, m = int(a.sum()), int(c.sum())
        u, v = (self._sorted(w) for w in (a, c))
        if n == m:
            return math.sqrt(float(np.square(u - v).mean()))
        # Between two neighbours of {i / n} and {j / m} both quantile functions are constant.
        edges = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
        width = np.diff(edges) / (n * m)
        return math.sqrt(float((np.square(u[:, edges[:-1] // m] - v[:, edges[:-1] // n]) @ width).mean()))

    def _sorted(self, w: NDArray[np.int64]) -> Floats:
        """Return the projections [directions, rows] in rising order, each as often as it counts."""
        counts = w[self._order]
        flat = self._values[counts > 0] if w.max() == 1 else np.repeat(self._values.ravel(), counts.ravel())
        return flat.reshape(len(self._values), -1)


class Energy:
    r"""The energy distance (2 E|X - Y| - E|X - X'| - E|Y - Y'|)^{1/2}, of all pairs, a row with itself included.

    Source: Szekely and Rizzo 2013.
    """

    names = ("energy",)

    def __init__(self, x: Floats) -> None:
        self._distances = distances(x, x)

    def __call__(self, a: Floats, c: Floats) -> Floats:
        """Return the distance of each weighting."""
        # With equal totals the energy is a quadratic form of the difference of the weights.
        change = a / a.sum(1, keepdims=True) - c / c.sum(1, keepdims=True)
        return np.sqrt(np.maximum(-((change @ self._distances) * change).sum(1), 0.0))[:, None]


def neighbour_likelihoods(fit: Floats, *sets: Floats, k: int = 5) -> list[tuple[Floats, Floats]]:
    r"""Return for the rows x of each set two densities by nearest neighbours among ``fit`` [M, D], in nats.

        ln p(x) = ln k - ln M - ln V_D - D ln r_k(x),    V_D = pi^{D/2} / Gamma(D/2 + 1)
        local(x) = D (mean_j ln r_k(y_j) - ln r_k(x)),    j over the k nearest of x

    with r_k the distance to the k-th nearest other row of ``fit``. The first is smoothed over r_k, so below the true
    ln p, for rows of one law alike. The second compares x with the density where its neighbours lie: parts of all
    widths count alike, where a sum of ln p is all about the widest spread of densities.

    Source: Loftsgaarden and Quesenberry 1965; Breunig et al. 2000 (the local outlier factor).
    """
    m, d = fit.shape
    k = min(k, m - 1)
    volume = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1.0)
    own = np.concatenate([near[0][:, k] for near in _neighbours(fit, fit, k + 1)])  # the nearest is the row itself
    least = float(own[own > 0.0].min(initial=np.inf))
    least = least if math.isfinite(least) else 1.0  # distances of 0 are those of rows that are the same
    log_own, found = np.log(np.maximum(own, least)), []
    for x in sets:
        parts = list(_neighbours(x, fit, k))
        log_r = np.log(np.maximum(np.concatenate([r[:, k - 1] for r, _ in parts]), least))
        around = log_own[np.concatenate([index for _, index in parts])].mean(1)
        found.append((math.log(k / m) - volume - d * log_r, d * (around - log_r)))
    return found


def _neighbours(x: Floats, fit: Floats, k: int) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
    """Yield distances and numbers of the k nearest rows of ``fit``, [n, k] each, of a few rows x at a time."""
    for first in range(0, len(x), 1024):
        r, index = torch.from_numpy(distances(x[first : first + 1024], fit)).topk(k, dim=1, largest=False)
        yield r.numpy(), index.numpy()


def sliced_wasserstein(x: Any, y: Any, projections: int = DIRECTIONS) -> float:
    """Return the sliced Wasserstein-2 distance of two sets [N, D] and [M, D]; see SlicedWasserstein."""
    x, y = (np.asarray(v, np.float64) for v in (x, y))
    return float(SlicedWasserstein(np.concatenate([x, y]), projections)(*split(len(x), len(y)))[0, 0])


def energy_distance(x: Any, y: Any) -> float:
    """Return the energy distance of two sets [N, D] and [M, D]; see Energy."""
    x, y = (np.asarray(v, np.float64) for v in (x, y))
    return float(Energy(np.concatenate([x, y]))(*split(len(x), len(y)))[0, 0])


def distances(x: Floats, y: Floats) -> Floats:
    """Return Euclidean distances [N, M]; from differences, not from expanded squares, which cancel."""
    pair = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y))
    if x.shape[1] > 64:  # many terms, little cancellation: by matrix product
        return torch.cdist(*pair, compute_mode="use_mm_for_euclid_dist").numpy()
    return torch.cdist(*pair, compute_mode="donot_use_mm_for_euclid_dist").numpy()


def directions(count: int, d: int) -> Floats:
    """Return unit vectors [count, d] from the project's own noise."""
    z = NoiseKey.of(DIRECTION_SEED, range(count)).normal(0, d, torch.float64)
    return (z / z.norm(dim=1, keepdim=True)).numpy()


def weighted(weights: Floats, rows_of: Any) -> Floats:
    """Return weights @ f of [B, N] weights and f = rows_of(slice) [n, K], of a few rows at a time."""
    n = weights.shape[1]
    parts = (slice(k, min(k + _ROWS, n)) for k in range(0, n, _ROWS))
    return sum((weights[:, rows] @ rows_of(rows) for rows in parts), start=np.zeros(1))


def _rms(z: Floats) -> Floats:
    return np.sqrt(np.square(z).mean(1))
