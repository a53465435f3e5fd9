r"""What a plan makes of Gaussian data, exactly and without a sample.

Where the data are N(mu, s^2 I) the estimate of x_0 is linear in x,

    D(x) = mu + k (x - alpha mu),   k = alpha s^2 / (alpha^2 s^2 + sigma^2)

so state, last estimate and history are jointly Gaussian after every row, and a run has a mean and a standard
deviation. What they differ by from mu and s is the error of solver and grid alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastscore.kernels import abi
from fastscore.plan.passes import Folding
from fastscore.plan.rows import Plan
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Array


def gaussian_moments(plan: Plan, mean: ArrayLike, std: ArrayLike) -> tuple[Array, Array]:
    """Return means and standard deviations of what a plan makes of data N(mean, std^2), for each element.

    Args:
        plan: of a solver, not folded, started from the prior.
        mean, std: of the data; of several sets, vectors.

    Raises:
        ValueError: a row's step depends on the norm of a score, or a coefficient is singular.
    """
    if any(row.langevin is not None for row in plan.rows):
        raise ValueError("gaussian_moments: a Langevin step that depends on norms has no Gaussian result")
    schedule = plan.schedule
    folding = Folding(plan, schedule, Parametrization("x0", exact=True))
    p, q = np.zeros((2, len(plan.rows)))
    change = np.array([row.change for row in plan.rows])
    p[folding.reads_m], q[folding.reads_m] = folding.coefficients()
    p[change], q[change] = 0.0, 0.0  # one model, and nothing that guides it
    written = [(row.a, row.b, row.c, *row.w) for row in plan.rows]
    if not all(np.isfinite(part).all() for part in (p, q, *written)):
        raise ValueError(f"gaussian_moments: a coefficient of the plan on {type(schedule).__name__} is not finite")
    mean, std = np.broadcast_arrays(np.asarray(mean, np.float64), np.asarray(std, np.float64))
    t = np.array([row.t for row in plan.rows]).reshape(-1, *(1,) * std.ndim)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
    size = 2 + abi.SLOTS  # x, D, then the history
    mu, cov = np.zeros((*std.shape, size)), np.zeros((*std.shape, size, size))
    for row, pk, qk, reads, k, at in zip(plan.rows, p, q, folding.reads_m, gain, alpha, strict=True):
        if row.evaluate and reads:
            mu[..., 1] = mean + k * (mu[..., 0] - at * mean)
            cov[..., 1, :] = k[..., None] * cov[..., 0, :]
            cov[..., :, 1] = cov[..., 1, :]
            cov[..., 1, 1] = k * k * cov[..., 0, 0]
        step = np.eye(size)
        step[0, : 2 + len(row.w)] = row.a + row.b * pk, row.b * qk, *row.w
        if row.push is not None:
            step[2 + row.push] = 0.0
            step[2 + row.push, :2] = pk, qk
        mu, cov = mu @ step.T, step @ cov @ step.T
        cov[..., 0, 0] += row.c * row.c  # inf, where a power raises
    return mu[..., 0], np.sqrt(np.maximum(cov[..., 0, 0], 0.0))
