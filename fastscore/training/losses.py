r"""Score-matching losses.

Denoising score matching of a network's output F, whose target is F* = A x_0 + B z (see parametrization).
At a given x_t every error is a multiple of every other one, so a loss is |F - F*|^2 / D times a weight:

    weighting     error                                source
    edm           EDM's output, (sigma^2 + d^2) / (sigma d)^2 |D - x_0|^2 at alpha = 1 with d = sigma_data:
                  1 for a network of unit scaling      Karras et al. 2022, eq. 8
    simple        the prediction: DDPM's |eps - z|^2, x0, v, score, flow       Ho et al. 2020, eq. 14
    sigma2        |eps - z|^2, lambda = sigma^2        Song et al. 2021, eq. 7
    likelihood    g^2 |s + z / sigma|^2, lambda = g^2: bounds the likelihood   Song et al. 2021b
    a function    lambda(t) |s + z / sigma|^2          yours

Every loss is a mean over the D elements of an example; published code sums some, which is D times as much
(784 for a 28 x 28 image).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastscore.errors import unknown
from fastscore.process.discrete import DiscreteVE
from fastscore.process.parametrization import Parametrization, components, convert
from fastscore.process.schedule import Array, Schedule, diffuse, g2, lam, remembered, t_of_lam

WEIGHTINGS = ("edm", "simple", "sigma2", "likelihood")
LOSSES = ("dsm", "implicit", "sliced")
TIMES = ("uniform", "lognormal", "importance")


Weighting = str | Callable[[Array], Array]


def default_weighting(parametrization: Parametrization) -> str:
    """Return the weighting under which a network trains well at every noise level.

    EDM's where input and output are scaled. Of a network's own output: the noise estimate for a score, whose own error
    grows like 1 / sigma, and else the prediction.
    """
    if parametrization.unit:
        return "edm"
    return "sigma2" if parametrization.prediction == "score" else "simple"


def default_times(schedule: Schedule) -> str:
    """Return the distribution of training times from which the solvers made for a schedule sample well.

    Levels of an SMLD table count alike, as in Song & Ermon 2019: annealed Langevin dynamics spends as many steps at
    each. Else log-normal around the scale of the data, where most of what a sample will be is decided.
    """
    return "uniform" if isinstance(schedule, DiscreteVE) else "lognormal"


def weights(weighting: Weighting, schedule: Schedule, parametrization: Parametrization, t: Array) -> Array:
    """Return the weight of |F - F*|^2 at times [N]; finite at pure noise, where eps and score tell nothing of F.

    Raises:
        ValueError: an unknown name, or values of lambda(t) that are negative or not finite.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    output = parametrization.components(schedule, t)

    def of(target: tuple[Array, Array]) -> Array:
        return convert(target, output, alpha, sigma)[1] ** 2

    if weighting == "edm":
        return of(Parametrization("edm", sigma_data=parametrization.sigma_data).components(schedule, t))
    if weighting == "simple":
        prediction = parametrization.prediction
        return of(output if prediction == "edm" else components(prediction, schedule, t))
    if weighting == "sigma2":
        return of(components("eps", schedule, t))
    score = of(components("score", schedule, t))
    if weighting == "likelihood":
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = g2(schedule, t)
    elif callable(weighting):
        rate = np.broadcast_to(np.asarray(weighting(t), np.float64), t.shape)
        if not np.all(np.isfinite(rate)) or np.any(rate < 0.0):
            raise ValueError(f"weighting: lambda(t) must be finite and at least 0, but is {rate.min()} .. {rate.max()}")
    else:
        raise unknown("weighting", weighting, WEIGHTINGS, ", or a function of t")
    with np.errstate(invalid="ignore"):
        return np.where(score > 0.0, score * rate, 0.0)


def denoising_score_matching(
    net: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x0: Tensor,
    t: Array,
    z: Tensor,
    cond: Tensor | None,
    schedule: Schedule,
    parametrization: Parametrization,
    weighting: Weighting,
) -> Tensor:
    """Return the denoising score matching loss of each example, [N].

    Args:
        net: the call convention of ScoreModel.
        x0: clean data [N, ...]; t: times [N]; z: standard normals like x0; cond: labels [N] or None.
        weighting: one of WEIGHTINGS, or lambda(t) as a function of times [N].
    """
    a, b = parametrization.components(schedule, t)
    weight = weights(weighting, schedule, parametrization, t)

    def column(v: Array) -> Tensor:
        return torch.as_tensor(v, dtype=x0.dtype, device=x0.device).reshape(-1, *[1] * (x0.ndim - 1))

    u = column(parametrization.c_in(schedule, t)) * diffuse(schedule, x0, t, z)
    label = torch.as_tensor(parametrization.c_noise(schedule, t), dtype=x0.dtype, device=x0.device)
    error = net(u, label, cond).to(x0.dtype) - (column(a) * x0 + column(b) * z)
    return column(weight).flatten() * error.flatten(1).square().mean(1)


def sample_times(
    schedule: Schedule, u: Array, times: str, mean: float = -1.2, std: float = 1.2, t_end: float | None = None
) -> Array:
    """Map uniforms in (0, 1] to training times.

    Args:
        u: uniforms; [N], or [N, 2] for "lognormal".
        times: "uniform" on [t_end, T]; "lognormal": ln(sigma/alpha) ~ N(mean, std^2), clipped to the
            schedule (EDM); "importance": density proportional to g^2/sigma^2, which cancels the
            likelihood weighting (Song et al. 2021b).
        t_end: the first, least noisy time; the schedule's own if left out.

    Raises:
        ValueError: an unknown ``times``, or importance where g^2/sigma^2 is infinite.
    """
    end = schedule.t_end if t_end is None else t_end
    if times == "uniform":
        return end + u * (schedule.T - end)
    if times == "importance":
        grid, density = _density(schedule, end)
        mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])
        return np.interp(u * mass[-1], mass, grid)
    if times == "lognormal":
        normal = np.sqrt(-2.0 * np.log(u[:, 0])) * np.cos(2.0 * np.pi * u[:, 1])
        low, high = -lam(schedule, np.array([end, schedule.T]))
        # No normal of 24 bits is beyond 8 standard deviations, and pure noise would be infinitely far.
        low, high = max(low, min(mean - 8.0 * std, high)), min(high, max(mean + 8.0 * std, low))
        log_sigma, knots = _inverse(schedule, low, high)
        return np.interp(mean + std * normal, log_sigma, knots)
    raise unknown("times", times, TIMES)


@remembered
def _inverse(schedule: Schedule, low: float, high: float) -> tuple[Array, Array]:
    """Return values of ln(sigma / alpha) and their times: every inversion is some 60 halvings."""
    log_sigma = np.linspace(low, high, 1025)
    return log_sigma, t_of_lam(schedule, -log_sigma)


def importance_weight(schedule: Schedule, t: Array, t_end: float | None = None) -> Array:
    """Return the factor that makes "importance" times unbiased: uniform density over theirs."""
    grid, density = _density(schedule, schedule.t_end if t_end is None else t_end)
    return np.trapezoid(density, grid) / (grid[-1] - grid[0]) / (g2(schedule, t) / schedule.sigma(t) ** 2)


def _density(schedule: Schedule, end: float) -> tuple[Array, Array]:
    """Return times and g^2/sigma^2 there."""
    grid = np.linspace(end, schedule.T, 4097)
    with np.errstate(divide="ignore", invalid="ignore"):
        density = g2(schedule, grid) / schedule.sigma(grid) ** 2
    if not np.all(np.isfinite(density)):
        raise ValueError(
            f"times = 'importance': g^2/sigma^2 of {type(schedule).__name__} is infinite at t = "
            f"{grid[~np.isfinite(density)][0]:g}, so it is no density; take times 'uniform' or 'lognormal'"
        )
    return grid, density


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
