r"""Langevin correctors: move along the score at one noise level, without changing the level.

    x <- x + step score + sqrt(2 step) z

``alpha_i = alpha(t)^2 / alpha(next cleaner t)^2`` scales the step. It is 1 - beta_i on a DDPM table
and 1 on VE, as in Song's code, and it exists for every schedule, sub-VP included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from fastscore.errors import typed, unknown
from fastscore.plan.rows import NORMS, REPEATS, LangevinStep, Row
from fastscore.process.schedule import Schedule


class Corrector(Protocol):
    """Rows that stay at time t; ``cleaner`` is the next time of the grid."""

    def rows(self, schedule: Schedule, t: float, cleaner: float) -> list[Row]: ...


@dataclass(frozen=True)
@typed
class Langevin:
    r"""Langevin corrector with a signal-to-noise ratio.

        step = min(2 alpha_i (snr |z| / |score|)^2, alpha(t)^2 + sigma(t)^2)

    The bound, the variance of x for data of variance one, is not in the paper. Norms that concentrate
    stay far below it; it keeps the step finite where a score vanishes. In low dimension norms do not
    concentrate: a step that depends on |score| then draws from p |score|^2 rather than p, so use
    AnnealedLangevin (or a norm of the batch) below some 32 dimensions.

    Args:
        snr: r of the paper.
        corrections: Langevin steps a time.
        norm: "sample" (algorithm 4 and 5, batch-independent), "expected" (|z| -> sqrt(D)), "batch" (norms
            averaged over the batch as in Song's code: samples depend on each other) or "tutorial" (his
            tutorial's: |z| -> sqrt(D), |score| averaged over the batch, and no bound on the step).

    Raises:
        ValueError: snr, corrections or norm out of range.

    Source: Song et al. 2021, algorithms 4 and 5.
    """

    snr: float = 0.16
    corrections: int = 1
    norm: str = "sample"

    def __post_init__(self) -> None:
        _check(self.snr, self.corrections)
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)

    def rows(self, schedule: Schedule, t: float, cleaner: float) -> list[Row]:
        scale = 2.0 * alpha_i(schedule, t, cleaner) * (self.snr * self.snr)
        cap = math.inf if self.norm == "tutorial" else float(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)
        return [self.row(t, scale, cap)] * self.corrections

    def row(self, t: float, scale: float, cap: float = math.inf) -> Row:
        """Return one Langevin row with step = min(scale (|z| / |score|)^2, cap)."""
        # b and c are set at run time, from the norms.
        return Row(float(t), float(t), a=1.0, b=0.0, m="score", langevin=LangevinStep(scale, self.norm, cap))


@dataclass(frozen=True)
@typed
class AnnealedLangevin:
    """Langevin corrector with a fixed step at each level: step = 2 alpha_i (snr sigma(t))^2.

    Source: Song & Ermon 2019, algorithm 1, in the form of Song et al. 2021's code (ald).
    """

    snr: float = 0.16
    corrections: int = 1

    def __post_init__(self) -> None:
        _check(self.snr, self.corrections)

    def rows(self, schedule: Schedule, t: float, cleaner: float) -> list[Row]:
        size = self.snr * float(schedule.sigma(t))
        step = 2.0 * alpha_i(schedule, t, cleaner) * (size * size)
        return [self.row(t, step)] * self.corrections

    def row(self, t: float, step: float) -> Row:
        """Return one Langevin row with a given step."""
        return Row(float(t), float(t), a=1.0, b=step, c=math.sqrt(2.0 * step), m="score")


def alpha_i(schedule: Schedule, t: float, cleaner: float) -> float:
    """Return alpha(t)^2 / alpha(cleaner)^2."""
    return float((schedule.alpha(t) / schedule.alpha(cleaner)) ** 2)


def _check(snr: float, corrections: int) -> None:
    if not 0.0 < snr < math.inf:
        raise ValueError(f"snr = {snr} must be positive (0.16 is Song et al.'s choice for CIFAR-10 VE)")
    if not 1 <= corrections <= REPEATS:
        raise ValueError(f"corrections = {corrections} must lie in 1 .. {REPEATS}")
