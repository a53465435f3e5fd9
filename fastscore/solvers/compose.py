"""Composition of solvers: any predictor with any corrector."""

from __future__ import annotations

from dataclasses import dataclass

from fastscore.plan import Row, Solver
from fastscore.schedule import Array, Schedule
from fastscore.solvers.correctors import Corrector
from fastscore.solvers.sde import denoise


@dataclass(frozen=True)
class PredictorCorrector:
    """Predictor to the next time, then corrector at that time.

    Args:
        predictor: any solver; None keeps x as it is (annealed Langevin dynamics, NCSN), and then
            the corrector also runs at the first time.
        corrector: any corrector. It is skipped at sigma = 0, where there is no score.

    Source: Song et al. 2021, algorithm 1.
    """

    predictor: Solver | None
    corrector: Corrector

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        last = len(t) - 2
        cleaner = [*t[1:], schedule.t_clean]
        if self.predictor is not None:
            groups = [list(group) for group in self.predictor.steps(schedule, t)]
        else:
            groups = [[] for _ in range(last + 1)]
            groups[0] += self.corrector.rows(schedule, t[0], cleaner[0])
        for k, group in enumerate(groups):
            if t[k + 1] != schedule.t_clean:
                group += self.corrector.rows(schedule, t[k + 1], cleaner[k + 1])
            elif self.predictor is None:
                group.append(denoise(t[k], t[k + 1]))
        return groups
