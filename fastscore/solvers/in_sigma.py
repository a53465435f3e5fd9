"""Solvers that step in sigma where they would step in sigma / alpha: what others' codes do on rectified flow."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastscore.errors import short, typed
from fastscore.plan.rows import Row, Solver
from fastscore.process.continuous import EDM, Flow
from fastscore.process.schedule import Array, Schedule
from fastscore.solvers.compose import planned


@dataclass(frozen=True)
@typed
class InSigma:
    r"""A solver that takes a rectified flow for a process with alpha = 1, as ComfyUI's samplers do.

        dx / dsigma = (x - D) / sigma

    is the probability-flow ODE of alpha = 1 and of alpha = 1 - sigma alike, so a method for the one is a method of the
    same order for the other, and not the one that the solver is by itself, which steps in rho = sigma / alpha: the two
    part where a step is long. At sigma = 1 there is a step like any other, not DDIM's. Noise that the solver adds is
    that of alpha = 1, and leaves alpha as it was before: too much signal, as ComfyUI's res_multistep_ancestral has it.

    On other schedules it is the solver itself; ComfyUI, too, has VP in x / alpha.

    Args:
        solver: any solver with a grid that steps in x0, eps or the flow, such as DPMpp2M, LMS, HeunPP, Churn(Euler()).

    Raises:
        ValueError: a solver without a grid, or one in the score; a flow with a shift, which belongs to the grid here.

    Source: ComfyUI's k_diffusion/sampling.py, which has no alpha in these samplers.
    """

    solver: Solver

    def __post_init__(self) -> None:
        planned("InSigma", self.solver)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        if not isinstance(schedule, Flow):
            return self.solver.steps(schedule, t)
        if schedule.shift != 1.0:
            raise ValueError(
                f"InSigma: {schedule} has a shift; sample on Flow() with its times shifted: fs.shifted(..)"
            )
        groups = self.solver.steps(EDM(0.5 * float(t[t > 0.0].min()), schedule.T), t)
        return [[self._row(row) for row in group] for group in groups]

    def _row(self, row: Row) -> Row:
        if row.m not in ("x0", "eps", "flow") or row.langevin is not None:
            raise ValueError(f"InSigma: {short(self.solver)} steps in the score; take one in x0 or eps, as DDIM")
        return row if row.m == "x0" else replace(row, m="flow")  # (x - D) / sigma, which is eps where alpha = 1
