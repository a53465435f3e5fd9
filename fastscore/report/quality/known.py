r"""Figures that need the target itself: log-likelihoods, and the kernel Stein discrepancy with the exact score."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastscore.report.quality.points import distances
from fastscore.report.quality.resample import (
    PERMUTATIONS,
    RESAMPLES,
    Floats,
    Judged,
    normal_tail,
    resampled,
    signs,
    upper_tail,
)


def log_likelihood(here: Floats, there: Floats) -> tuple[Judged, float]:
    """Judge ln p of samples [n] against those of exact ones [m]; return it and the mean of the exact ones, the floor.

    The means are compared by Welch's z, two-sided; the standard error is that of the samples' mean.
    """
    value, floor = float(here.mean()), float(there.mean())
    stderr = float(here.std(ddof=1)) / math.sqrt(len(here))
    error = math.hypot(stderr, float(there.std(ddof=1)) / math.sqrt(len(there)))
    p = 2.0 * normal_tail(abs(value - floor) / max(error, 1e-300)) if value != floor else 1.0
    return Judged(value, stderr, p), floor


def local(log_p: Floats, score: Floats) -> Floats:
    r"""Return ln p - (D/2) ln |s|^2 of densities [n] and scores [n, D]: log-likelihoods in units of the local width.

    Where x is scaled by c, ln p falls by D ln c and |s|^2 by 2 ln c in the logarithm, so this stays as it is: parts of
    all widths count alike, where a mean of ln p is all about the widest spread of densities.
    """
    square = np.square(score).sum(1)
    return log_p - 0.5 * score.shape[1] * np.log(np.maximum(square, 1e-300))


class Stein:
    r"""The kernel Stein discrepancy of samples from a target of known score s, (E u(x, x'))^{1/2} over all pairs.

        u(x, y) = s(x).s(y) k + s(x).grad_y k + s(y).grad_x k + tr(grad_x grad_y k)
        k(x, y) = (1 + |x - y|^2 / h^2)^{-1/2},    h^2 = D / median |s(x)|^2

    It is a Fisher divergence E|s_p - s_q|^2 smoothed by k, and needs no score of the samples' own law; 0 only where
    both laws agree. The width h is that of a Gaussian of such scores, so that narrow parts are seen. The p-value is by
    random signs e_i: sum e_i e_j u_ij / n^2 has the law of the figure under the null. It sees weights of far modes
    badly, as everything made of scores does.

    Source: Gorham and Mackey 2017 (the kernel); Liu, Lee and Jordan 2016, Chwialkowski et al. 2016 (the test).
    """

    def __init__(self, x: Floats, score: Floats) -> None:
        r = distances(x, x)
        h2 = x.shape[1] / max(float(np.median(np.square(score).sum(1))), 1e-300)
        base = 1.0 + np.square(r) / h2
        across = score @ x.T
        along = (score * x).sum(1)[:, None] - across  # s(x_i).(x_i - x_j)
        self._u = (score @ score.T) / np.sqrt(base) + (along + along.T) / h2 * base**-1.5
        self._u += x.shape[1] / h2 * base**-1.5 - 3.0 * (np.square(r) / h2**2) * base**-2.5

    def value(self) -> float:
        """Return the discrepancy."""
        return math.sqrt(max(float(self._u.mean()), 0.0))

    def judged(self, seed: int) -> Judged:
        """Return it with its standard error by bootstrap and its p-value."""
        n = len(self._u)
        again = self._squares(resampled(n, seed, range(RESAMPLES)))
        null = self._squares(signs(n, PERMUTATIONS, seed))
        spread = float(np.sqrt(np.maximum(again, 0.0)).std(ddof=1))
        return Judged(self.value(), spread, upper_tail(float(self._u.mean()), null))

    def _squares(self, weights: Floats) -> Floats:
        return ((weights @ self._u) * weights).sum(1) / len(self._u) ** 2


def numbers(f: Callable[..., object], x: Floats, batch: int = 4096) -> Floats:
    """Return what a function of a tensor gives for rows x, float64, a batch at a time.

    Raises:
        ValueError: another number of rows, or values that are not finite.
    """
    import torch

    parts = [f(torch.from_numpy(x[k : k + batch])) for k in range(0, len(x), batch)]
    values = np.concatenate([np.asarray(part, np.float64) for part in parts])
    if len(values) != len(x) or not np.isfinite(values).all():
        raise ValueError(
            f"score and log_density must give a finite row for each of {len(x)} samples, got shape {values.shape}"
        )
    return values
