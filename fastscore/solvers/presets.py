"""Published settings, as keyword arguments of Sampler: ``Sampler(model, **ncsnv2())``."""

from __future__ import annotations

import math
from typing import TypedDict

from fastscore.errors import typed
from fastscore.plan.rows import Solver
from fastscore.process.discrete import smld
from fastscore.process.grid import Grid, uniform
from fastscore.process.schedule import Schedule
from fastscore.solvers import AnnealedLangevin, PredictorCorrector


class Settings(TypedDict):
    """Keyword arguments of Sampler besides the model."""

    schedule: Schedule
    solver: Solver
    grid: Grid


@typed
def ncsn(
    levels: int = 10,
    sigma_max: float = 1.0,
    sigma_min: float = 0.01,
    epsilon: float = 2e-5,
    steps: int = 100,
    denoise: bool = False,
) -> Settings:
    r"""Annealed Langevin dynamics with NCSN's settings, which were one for all data sets.

    At each of ``levels`` geometric sigmas, ``steps`` times

        x <- x + alpha_i score + sqrt(2 alpha_i) z,   alpha_i = epsilon sigma_i^2 / sigma_L^2

    which is NCSNv2's algorithm 1 and what the code of both papers does. Algorithm 1 of the first paper
    is printed with alpha_i / 2 in place of alpha_i: its text is half this epsilon. Our runs start from
    N(0, sigma_1^2 I), theirs from uniform noise, which ``levels`` this coarse forget. Data lie in [0, 1].

    Args:
        levels: L. sigma_max, sigma_min: sigma_1 and sigma_L. epsilon: their step size. steps: T.
        denoise: end with x + sigma_L^2 score, one evaluation more.

    Raises:
        ValueError: fewer than two levels, or an epsilon or steps that are not positive.

    Source: Song & Ermon 2019, section 5; score_sde calls the same step snr = 0.316.
    """
    if levels < 2 or not 0.0 < sigma_min < sigma_max or not 0.0 < epsilon < math.inf:
        raise ValueError(
            f"levels = {levels} must be at least 2, sigma_min = {sigma_min} and sigma_max = {sigma_max} positive and "
            f"rising, epsilon = {epsilon} positive (2e-5 is NCSN's, 6.2e-6 NCSNv2's on CIFAR-10)"
        )
    # AnnealedLangevin's step is 2 (snr sigma)^2.
    corrector = AnnealedLangevin(math.sqrt(0.5 * epsilon) / sigma_min, steps)
    grid = uniform(levels, clean=True) if denoise else uniform(levels - 1)
    return Settings(schedule=smld(levels, sigma_min, sigma_max), solver=PredictorCorrector(None, corrector), grid=grid)


@typed
def ncsnv2(
    levels: int = 232,
    sigma_max: float = 50.0,
    sigma_min: float = 0.01,
    epsilon: float = 6.2e-6,
    steps: int = 5,
    denoise: bool = True,
) -> Settings:
    """Annealed Langevin dynamics with NCSNv2's settings for CIFAR-10, and its last denoising step.

    As ``ncsn``, whose arguments these are. For CelebA 64x64 the paper has levels = 500, sigma_max = 90,
    epsilon = 3.3e-6. Source: Song & Ermon 2020, algorithm 1 and appendix B; snr = 0.176 in score_sde.
    """
    return ncsn(levels, sigma_max, sigma_min, epsilon, steps, denoise)
