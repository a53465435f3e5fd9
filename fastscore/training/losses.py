r"""Score-matching losses.

Denoising score matching in a network's own prediction space: with F* = A x_0 + B z the target of
the prediction (see parametrization) and q = d eps / d F,

    eps_hat - z = q (F - F*),    loss = w(t) q^2 |F - F*|^2 / D

    weighting     w(t)        source
    sigma2        1           lambda = sigma^2 of Song et al. 2021 eq. 7: |eps_hat - z|^2
    likelihood    g^2/sigma^2 lambda = g^2: bounds the likelihood (Song et al. 2021b)
    simple        1/q^2       |F - F*|^2: DDPM's simple loss (eps), x0, v, flow and EDM's loss (edm)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastscore.process.parametrization import Parametrization, components, convert
from fastscore.process.schedule import Array, Schedule, g2, t_of_lam

WEIGHTINGS = ("simple", "sigma2", "likelihood")
LOSSES = ("dsm", "implicit", "sliced")
TIMES = ("uniform", "lognormal", "importance")


def denoising_score_matching(
    net: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x0: Tensor,
    t: Array,
    z: Tensor,
    cond: Tensor | None,
    schedule: Schedule,
    parametrization: Parametrization,
    weighting: str,
) -> Tensor:
    """Return the denoising score matching loss of each example, [N].

    Args:
        net: the call convention of ScoreModel.
        x0: clean data [N, ...]; t: times [N]; z: standard normals like x0; cond: labels [N] or None.
        weighting: one of WEIGHTINGS.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = parametrization.components(schedule, t)
    _, q = convert(components("eps", schedule, t), (a, b), alpha, sigma)
    if weighting == "simple":
        weight = np.ones_like(q)
    elif weighting == "sigma2":
        weight = q**2
    elif weighting == "likelihood":
        weight = q**2 * g2(schedule, t) / sigma**2
    else:
        raise ValueError(f"weighting = {weighting!r} must be one of {', '.join(WEIGHTINGS)}")

    def column(v: Array) -> Tensor:
        return torch.as_tensor(v, dtype=x0.dtype, device=x0.device).reshape(-1, *[1] * (x0.ndim - 1))

    u = column(parametrization.c_in(schedule, t)) * (column(alpha) * x0 + column(sigma) * z)
    label = torch.as_tensor(parametrization.c_noise(schedule, t), dtype=x0.dtype, device=x0.device)
    error = net(u, label, cond).to(x0.dtype) - (column(a) * x0 + column(b) * z)
    return column(weight).flatten() * error.flatten(1).square().mean(1)


def sample_times(schedule: Schedule, u: Array, times: str, mean: float = -1.2, std: float = 1.2) -> Array:
    """Map uniforms in (0, 1] to training times.

    Args:
        u: uniforms; [N], or [N, 2] for "lognormal".
        times: "uniform" on [t_end, T]; "lognormal": ln(sigma/alpha) ~ N(mean, std^2), clipped to the
            schedule (EDM); "importance": density proportional to g^2/sigma^2, which cancels the
            likelihood weighting (Song et al. 2021b).
    """
    if times == "uniform":
        return schedule.t_end + u * (schedule.T - schedule.t_end)
    if times == "importance":
        grid = np.linspace(schedule.t_end, schedule.T, 4097)
        density = g2(schedule, grid) / schedule.sigma(grid) ** 2
        mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])
        return np.interp(u * mass[-1], mass, grid)
    if times == "lognormal":
        normal = np.sqrt(-2.0 * np.log(u[:, 0])) * np.cos(2.0 * np.pi * u[:, 1])
        ends = np.array([schedule.t_end, schedule.T])
        low, high = np.log(schedule.sigma(ends)) - np.log(schedule.alpha(ends))
        return t_of_lam(schedule, -np.clip(mean + std * normal, low, high))
    raise ValueError(f"times = {times!r} must be one of {', '.join(TIMES)}")


def importance_weight(schedule: Schedule, t: Array) -> Array:
    """Return the factor that makes "importance" times unbiased: uniform density over theirs."""
    grid = np.linspace(schedule.t_end, schedule.T, 4097)
    density = g2(schedule, grid) / schedule.sigma(grid) ** 2
    return np.trapezoid(density, grid) / (schedule.T - schedule.t_end) / (g2(schedule, t) / schedule.sigma(t) ** 2)


def score_at(
    net: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    t: Array,
    cond: Tensor | None,
    schedule: Schedule,
    parametrization: Parametrization,
    like: Tensor,
) -> Callable[[Tensor], Tensor]:
    """Return the score x_t -> s(x_t, t) that a network predicts, for batches like ``like``, [N, ...]."""
    target, source = components("score", schedule, t), parametrization.components(schedule, t)
    p, q = convert(target, source, schedule.alpha(t), schedule.sigma(t))
    numbers = (p, q, parametrization.c_in(schedule, t), parametrization.c_noise(schedule, t))
    p, q, c_in, label = (torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in numbers)
    p, q, c_in = (v.reshape(-1, *[1] * (like.ndim - 1)) for v in (p, q, c_in))
    return lambda x: p * x + q * net(c_in * x, label, cond)


def implicit_score_matching(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return |s|^2 + 2 tr(grad s) of each example, with the exact trace: one backward per dimension.

    Source: Hyvarinen 2005. For small dimensions.
    """
    x = x.detach().requires_grad_(True)
    s = score(x).flatten(1)
    trace = sum(torch.autograd.grad(s[:, k].sum(), x, create_graph=True)[0].flatten(1)[:, k] for k in range(s.shape[1]))
    return s.square().sum(1) + 2.0 * trace


def sliced_score_matching(score: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """Return v^T grad(s) v + (s . v)^2 / 2 of each example for projections ``v`` like x.

    Source: Song et al. 2019, eq. 8.
    """
    x = x.detach().requires_grad_(True)
    along = (score(x) * v).flatten(1).sum(1)
    gradient = torch.autograd.grad(along.sum(), x, create_graph=True)[0]
    return (gradient * v).flatten(1).sum(1) + 0.5 * along.square()
