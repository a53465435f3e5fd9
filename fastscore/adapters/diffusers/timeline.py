"""The network calls of a run as a pipeline sees them: times, noise levels, and where a run may begin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscore.engine.stepper import Stage, Stepper
from fastscore.errors import short
from fastscore.execution import Execution
from fastscore.guidance.denoiser import Guide
from fastscore.plan.rows import Solver
from fastscore.process.continuous import Flow
from fastscore.process.grid import Times
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule

EXACT = (torch.int32, torch.int64, torch.float32, torch.float64)  # dtypes that hold a time as it is


@dataclass(frozen=True)
class Timeline:
    """A solver between the knots of one run.

    Attributes:
        solver, schedule, reads, guide: as of a Stepper.
        knots: noisiest first, the end included.
    """

    solver: Solver
    schedule: Schedule
    reads: Parametrization
    guide: Guide | None
    knots: tuple[float, ...]

    def __deepcopy__(self, memo: object) -> Timeline:
        return self  # nothing of it changes

    def stepper(self, begin: int, shape: tuple[int, ...], batch: int, execution: Execution) -> Stepper:
        """Return the steps from stage ``begin`` on, for a pipeline's states.

        A run that begins in the middle is a run of its own on the rest of the knots: a multistep solver warms up there.

        Raises:
            ValueError: no step begins at this stage, or those from there on do not ask at the same times.
        """
        stepper = self._stepper(self.after(begin), shape, batch, execution)
        times, expected = ([s.t for s in part] for part in (stepper.stages, self.stages[begin:]))
        if not (len(times) == len(expected) and np.allclose(times, expected)):
            raise ValueError(f"{self.solver} warms up in other steps when it begins in the middle; take another solver")
        if stepper.opens:
            raise ValueError(
                f"{self.solver} adds noise before its first evaluation, which a pipeline makes before it calls the "
                "scheduler; begin where it adds none (timestep_spacing='trailing' begins at the most noise)"
            )
        return stepper

    def after(self, begin: int) -> tuple[float, ...]:
        """Return the knots from a stage on.

        Raises:
            ValueError: no step begins there.
        """
        if begin not in self.begins:
            raise ValueError(
                f"begin index = {begin}: {self.solver} takes several evaluations a step, and steps begin at "
                f"{', '.join(str(k) for k in list(self.begins)[:8])}, ..: a multiple of scheduler.order"
            )
        return self.knots[self.begins[begin] :]

    def _stepper(self, knots: tuple[float, ...], shape: tuple[int, ...], batch: int, execution: Execution) -> Stepper:
        return Stepper(
            self.solver, Times(knots), shape, batch, schedule=self.schedule, reads=self.reads, guide=self.guide,
            execution=execution,
        )  # fmt: skip

    @cached_property
    def _whole(self) -> Stepper:
        return self._stepper(self.knots, (1,), 1, Execution(device="cpu", backend="reference"))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The network calls."""
        return self._whole.stages

    @property
    def noisy(self) -> bool:
        """Whether the solver draws noise."""
        return self._whole.plan.draws > 0

    @cached_property
    def begins(self) -> dict[int, int]:
        """The stages at which steps begin, each with the number of its step."""
        groups = self.solver.steps(self.schedule, np.array(self.knots))
        ends = 1 + np.cumsum([len(group) for group in groups])  # after the row of the prior
        steps = np.searchsorted(ends, [stage.first for stage in self.stages], side="right").tolist()
        return {stage: step for stage, step in enumerate(steps) if stage == 0 or step != steps[stage - 1]}

    @property
    def order(self) -> int:
        """Evaluations of the last step but one: warming up may take more before, and the last one fewer."""
        return int(np.diff([*self.begins, len(self.stages)])[-2:][0])

    def time(self, stage: int) -> float:
        """Return the time of the state at a stage; behind the last one, of the end."""
        return self.stages[stage].t if stage < len(self.stages) else self.knots[-1]

    def level(self, t: float) -> float:
        """Return the noise level of a time as pipelines say it: sigma / alpha, or sigma of a flow."""
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        if isinstance(self.schedule, Flow):
            return sigma
        return abs(sigma / alpha) if alpha else math.inf  # of the data 0, not -0

    @property
    def sigmas(self) -> list[float]:
        """Noise levels of the stages and of the end."""
        return [self.level(t) for t in (*(stage.t for stage in self.stages), self.knots[-1])]


def stage_at(labels: list[float], timestep: Any) -> int:
    """Return the stage of a time of the network: the second one where it occurs twice, at which a step begins."""
    found = [k for k, label in enumerate(labels) if label == float(timestep)]
    if not found:
        raise ValueError(f"timestep {float(timestep):g} is none of scheduler.timesteps, {short(labels)}")
    return found[min(1, len(found) - 1)]


def check_turn(labels: list[float], stage: int, timestep: Any) -> None:
    """Raise ValueError for a step out of turn, where asking for the time does not wait for a device."""
    known = not isinstance(timestep, Tensor) or (
        timestep.numel() == 1 and timestep.device.type == "cpu" and timestep.dtype in EXACT
    )
    if known and stage < len(labels) and np.float32(timestep) != np.float32(labels[stage]):
        raise ValueError(
            f"timestep = {float(timestep):g}, but the next step is {stage}, at {labels[stage]:g}: steps go in order of "
            "scheduler.timesteps; set_timesteps starts again, set_begin_index in the middle"
        )
