r"""The Gaussian that samples start from, of a model with a ``base``: what is left of its data at T, and the noise.

A network that is trained on wide or shifted data has seen x_T = alpha_T x_0 + sigma_T z with more than the noise in
it: N(m, s^2) by column. On the way there, and on another schedule, the same data give

    m_t = (alpha_t / alpha_T) m,   s_t^2 = (alpha_t / alpha_T)^2 (s^2 - sigma_T^2) + sigma_t^2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscore.data.affine import Affine
from fastscore.model.score import ScoreModel
from fastscore.process.parametrization import network_time
from fastscore.process.schedule import Schedule


def base_at(model: ScoreModel, schedule: Schedule, t: float) -> Affine | None:
    """Return mean and standard deviation by column of what starts at time t of a schedule; None without a base.

    Raises:
        ValueError: of a start below T, at which the base of this model says nothing: where no data are left at T, or
            its standard deviation is less than the noise.
    """
    if model.base is None:
        return None
    own = model.schedule
    times, factor = network_time(own, schedule, t)
    time, k = float(times), float(factor)  # the network sees k x at its own time
    if abs(time - own.T) <= 1e-6 * abs(own.T):
        return _scaled(model.base, 1.0 / k)
    (top, noise), (alpha, sigma) = ((float(own.alpha(v)), float(own.sigma(v))) for v in (own.T, time))
    ratio = alpha / top if top else math.inf
    variances = [ratio**2 * (s - noise) * (s + noise) + sigma**2 for s in model.base.scale]
    if not all(0.0 < v < math.inf for v in variances):
        raise ValueError(
            f"this model says where samples start at T = {own.T:.6g} of its own schedule, and nothing of t = "
            f"{time:.6g}, where this grid starts; start it at T"
        )
    mean = tuple(ratio * m for m in model.base.shift)
    return _scaled(Affine(mean, tuple(map(math.sqrt, variances))), 1.0 / k)


def prior_at(model: ScoreModel, schedule: Schedule, t: float) -> Affine:
    """Return mean and standard deviation by column of what starts at time t of a schedule, with a base or without."""
    length, top = (math.hypot(float(schedule.alpha(v)), float(schedule.sigma(v))) for v in (t, schedule.T))
    n, std = model.shape[-1], schedule.prior_std * length / top
    return base_at(model, schedule, t) or Affine((0.0,) * n, (std,) * n)


def _scaled(law: Affine, k: float) -> Affine:
    return Affine(tuple(k * v for v in law.shift), tuple(k * v for v in law.scale))


def columns(law: Affine, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the elements of a sample, [D] each, of the type and device of ``like``."""
    mean, std = (torch.tensor(v, dtype=torch.float64).expand(shape).flatten() for v in (law.shift, law.scale))
    return mean.to(like), std.to(like)
