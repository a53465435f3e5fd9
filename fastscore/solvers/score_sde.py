r"""Song et al.'s published discretisation, step by step, for parity with their code and results.

It differs from the other solvers here in what their code does, not in the paper's mathematics:

- N evaluations at t = linspace(T, t_end, N), every step with dt = 1/N, which is not quite the
  spacing of those times;
- discrete beta_i and sigma_i from their own tables, indexed by step number (their floor of a
  float goes wrong for N > 1 / t_end);
- the corrector before the predictor, both at the same time;
- Langevin norms averaged over the batch, and alpha = 1 - beta_i on VP, 1 on VE;
- the result is the mean of the last predictor step (their ``noise_removal``).

Source: score_sde_pytorch, sampling.py and sde_lib.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from fastscore.errors import typed, unknown
from fastscore.plan.rows import Row
from fastscore.process.beta import LinearBeta
from fastscore.process.continuous import VE, VP, SubVP
from fastscore.process.schedule import Array, Schedule
from fastscore.solvers.correctors import AnnealedLangevin, Langevin, alpha_i
from fastscore.solvers.sde import EulerMaruyama

PREDICTORS = ("euler_maruyama", "reverse_diffusion", "ancestral_sampling", "none")


@dataclass(frozen=True)
@typed
class ScoreSDE:
    """The predictor-corrector sampler of score_sde_pytorch on VP, sub-VP or VE.

    Only the number of steps and the two ends of the grid are used.

    Args:
        predictor: a name from PREDICTORS.
        corrector: Langevin (with norm="batch" for parity), AnnealedLangevin or None.
        probability_flow: halve the score term and drop the noise (not for ancestral_sampling).
        denoise: return the mean of the last predictor step.

    Raises:
        ValueError: a combination that their code refuses or turns into NaN.
    """

    predictor: str = "reverse_diffusion"
    corrector: Langevin | AnnealedLangevin | None = field(default_factory=lambda: Langevin(norm="batch"))
    probability_flow: bool = False
    denoise: bool = True
    order = 1

    def __post_init__(self) -> None:
        if self.predictor not in PREDICTORS:
            raise unknown("predictor", self.predictor, PREDICTORS)
        if self.probability_flow and self.predictor == "ancestral_sampling":
            raise ValueError("ancestral_sampling has no probability flow; use euler_maruyama or reverse_diffusion")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        n = len(t) - 1
        known = isinstance(schedule, VE) or (isinstance(schedule, VP | SubVP) and isinstance(schedule.beta, LinearBeta))
        if not known:
            raise ValueError(
                f"ScoreSDE knows VP and SubVP with a linear beta, and VE; not {type(schedule).__name__}, which "
                "PredictorCorrector(EulerMaruyama(final='mean'), .., corrector_first=True) takes as any other"
            )
        if t[-1] == schedule.t_clean:
            raise ValueError("ScoreSDE ends at t_end > 0 as its model code does; use a grid with clean=False")
        groups = []
        for k, time in enumerate(np.linspace(t[0], t[-1], n)):
            index = n - 1 - k
            groups.append(self._correct(schedule, time, index, n) + self._predict(schedule, time, index, n))
        if self.denoise and self.predictor != "none":
            groups[-1][-1] = replace(groups[-1][-1], c=0.0)
        return groups

    def _predict(self, schedule: Schedule, t: np.float64, index: int, n: int) -> list[Row]:
        if self.predictor == "none":
            return []
        s = t - 1.0 / n
        # For sub-VP their reverse diffusion is the Euler-Maruyama step.
        plain = isinstance(schedule, SubVP) and self.predictor == "reverse_diffusion"
        if self.predictor == "euler_maruyama" or plain:
            return [EulerMaruyama(eta=0.0 if self.probability_flow else 1.0).row(schedule, t, s)]
        if self.predictor == "reverse_diffusion":
            r, v = _forward(schedule, index, n)
            score, noise = (0.5, 0.0) if self.probability_flow else (1.0, 1.0)
            return [Row(float(t), float(s), a=2.0 - r, b=score * v, c=noise * math.sqrt(v), m="score")]
        if isinstance(schedule, SubVP):
            raise ValueError("ancestral_sampling is undefined for sub-VP in score_sde; use the solver Ancestral")
        r, v = _forward(schedule, index, n)
        variance = v
        if isinstance(schedule, VE):
            low, high = _sigma(schedule, index - 1, n), _sigma(schedule, index, n)
            variance = v * (low / high) ** 2
        return [Row(float(t), float(s), a=1.0 / r, b=v / r, c=math.sqrt(variance), m="score")]

    def _correct(self, schedule: Schedule, t: np.float64, index: int, n: int) -> list[Row]:
        if self.corrector is None:
            return []
        if isinstance(schedule, VP):
            alpha = _forward(schedule, index, n)[0] ** 2
        else:  # 1 on VE; sub-VP raises an AttributeError in their code
            alpha = alpha_i(schedule, t, max(t - 1.0 / n, schedule.t_clean))
        scale = 2.0 * alpha * (self.corrector.snr * self.corrector.snr)
        if isinstance(self.corrector, AnnealedLangevin):
            scale *= float(schedule.sigma(t)) ** 2
        return [self.corrector.row(t, scale)] * self.corrector.corrections


def _forward(schedule: Schedule, index: int, n: int) -> tuple[float, float]:
    """Return (r, v) of the discrete forward step into ``index``, 0 the cleanest."""
    if isinstance(schedule, VE):
        return 1.0, _sigma(schedule, index, n) ** 2 - _sigma(schedule, index - 1, n) ** 2
    assert isinstance(schedule, VP) and isinstance(schedule.beta, LinearBeta)
    beta = float(np.linspace(schedule.beta.beta_min / n, schedule.beta.beta_max / n, n)[index])
    if beta >= 1.0:
        raise ValueError(
            f"ScoreSDE: beta_i = {beta:.3g} at {n} steps; it needs more than {schedule.beta.beta_max:.0f} steps "
            "(use ReverseDiffusion or Ancestral, which take any number)"
        )
    return math.sqrt(1.0 - beta), beta


def _sigma(schedule: VE, index: int, n: int) -> float:
    if index < 0:
        return 0.0
    return float(np.exp(np.linspace(math.log(schedule.sigma_min), math.log(schedule.sigma_max), n)[index]))
