"""The loop the other way round: a host's loop calls the network, and hands its output to one step after another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastscore.engine.bind import bind
from fastscore.engine.loop import Loop, Outputs
from fastscore.engine.selfcheck import trusted
from fastscore.errors import short
from fastscore.execution import Execution
from fastscore.guidance.chain import check_guide
from fastscore.guidance.denoiser import Guide
from fastscore.model.score import ScoreModel
from fastscore.network.surroundings import undisturbed
from fastscore.ops.noise import Noise, NoiseKey
from fastscore.plan.cfgpp import guides_itself
from fastscore.plan.rows import Plan, Solver
from fastscore.process.grid import Grid, Times
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule
from fastscore.solvers.adaptive import Adaptive


@dataclass(frozen=True)
class Stage:
    """One evaluation and the rows up to the next one.

    Attributes:
        first, last: of its rows; the first one evaluates.
        t, s: times of the state that the network reads, and of the one that the last row leaves.
        c_in, c_noise: the factor on that state that makes the network's input, and the network's label.
    """

    first: int
    last: int
    t: float
    s: float
    c_in: float
    c_noise: float


def stages(plan: Plan) -> tuple[Stage, ...]:
    """Return the evaluations of a folded plan, each with the rows up to the next one."""
    firsts = [k for k, row in enumerate(plan.rows) if row.evaluate]
    ends = [*firsts[1:], len(plan.rows)]
    rows = plan.rows
    return tuple(
        Stage(k, end - 1, rows[k].t, rows[end - 1].s, rows[k].c_in, rows[k].c_noise)
        for k, end in zip(firsts, ends, strict=True)
    )


class Stepper:
    """A solver's rows for a host that evaluates the network: diffusers' pipelines, samplers of other libraries.

    It is ``Loop`` with a network that returns what it was handed, so a row here is a row there, to the bit.

        stepper = Stepper(solver, grid, shape, batch, schedule=schedule, reads=Parametrization("v"))
        x = stepper.start(NoiseKey.of(seed=0, ids=range(batch)))
        for stage in stepper.stages:
            F = net(stage.c_in * x, stage.c_noise)
            x = stepper.step(F, x)

    Args:
        solver: with a plan.
        grid: its knots.
        shape: of one sample. batch: samples of a step.
        schedule: that the state is on. trained: that of the network, the same one if left out.
        reads: what the network predicts, and which label it reads.
        start: as of a Sampler: "state", the host's, as it is; "prior", drawn by ``start``; "data".
        clip, guide: as of a Sampler; no guide that differentiates the network.
        execution: device, state dtype and backend; its batch is ``batch``.

    Attributes:
        stages: the evaluations, in order. at: the number of the one that ``step`` does next.

    Raises:
        ValueError: an adaptive solver, whose steps no host can know; one of CFG++; whatever a Sampler refuses.
    """

    def __init__(
        self,
        solver: Solver | Adaptive,
        grid: Grid | Times,
        shape: tuple[int, ...],
        batch: int,
        *,
        schedule: Schedule,
        trained: Schedule | None = None,
        reads: Parametrization | None = None,
        start: str = "state",
        clip: float | None = None,
        guide: Guide | None = None,
        execution: Execution | None = None,
    ) -> None:
        if isinstance(solver, Adaptive):
            raise ValueError(
                f"{type(solver).__name__} chooses its steps by what the network returns, so that a host with a loop of "
                "its own cannot run it; take a solver with a grid, as DPMpp2M"
            )
        if guides_itself(solver):
            raise ValueError(
                f"{short(solver)}: CFG++ reads two estimates a step, and a host hands one; take DDIM or DPMpp2M"
            )
        self._arguments: dict[str, Any] = {
            "solver": solver, "grid": grid, "shape": tuple(shape), "batch": batch, "schedule": schedule,
            "trained": trained, "reads": reads, "start": start, "clip": clip, "guide": guide, "execution": execution,
        }  # fmt: skip
        self.execution = replace((execution or Execution()).on(), batch=batch)
        self._handed: Tensor | None = None
        model = ScoreModel(self._network, tuple(shape), trained or schedule, reads or Parametrization())
        bound = bind(model, schedule, solver, grid, start, clip, guide=guide).bound
        check_guide(guide, None, schedule, bound.plan, float(grid(schedule)[0]))
        with undisturbed(self.execution.dtype, self.execution.place):
            self.loop = Loop(bound, model, self.execution, trusted(self.execution), guide=guide)
        self.stages = stages(bound.plan)
        self.at = 0
        self._noise: Noise | None = None

    @property
    def plan(self) -> Plan:
        """The rows, folded."""
        return self.loop.plan

    @property
    def opens(self) -> bool:
        """Whether rows ahead of the first evaluation change the host's state, as churn's noise does."""
        return any(row.noisy or row.a != 1.0 for row in self.plan.rows[: self._opening])

    @property
    def _opening(self) -> int:
        return self.stages[0].first if self.stages else len(self.plan.rows)

    def _network(self, u: Tensor, c_noise: Tensor, cond: Tensor | None) -> Tensor:
        assert self._handed is not None
        return self._handed

    @torch.no_grad()
    def start(self, key: NoiseKey, x: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        """Go to the start and do the rows ahead of the first evaluation; return the state, [batch, *shape].

        Args:
            key: seed and id of each sample, on any device.
            x: the state at the first knot, or the clean data of start = "data"; nothing of start = "prior".
            noise: recorded noise in place of the generated one.
        """
        loop, self.at, self._noise = self.loop, 0, noise
        loop.reset()
        loop.take(key)
        if x is not None:
            self._take(x)
        with undisturbed(self.execution.dtype, self.execution.place):
            for kind in loop.kinds[: self._opening]:
                loop.advance(kind, (None, None), noise)
        return self._state(x)

    @torch.no_grad()
    def step(self, F: Tensor, x: Tensor | None = None) -> Tensor:
        """Do the rows of the next stage; return the state after them, [batch, *shape], in x's dtype.

        Args:
            F: what the network returned for the input ``c_in x`` and the label of this stage, [batch, *shape].
            x: the state that the host kept, [batch, *shape]; the last one if left out. Whatever it is in, a row is
                computed in the state's dtype.

        Raises:
            ValueError: an output or a state of another shape, or no stage that is left.
        """
        if self.at >= len(self.stages):
            raise ValueError(f"all {len(self.stages)} steps are done; start again")
        loop, stage, self._handed = self.loop, self.stages[self.at], F
        outputs: Outputs = (None, None)
        if x is not None:
            self._take(x)
        try:
            with undisturbed(self.execution.dtype, self.execution.place):
                for kind in loop.kinds[stage.first : stage.last + 1]:
                    outputs = loop.advance(kind, outputs, self._noise)
        finally:
            self._handed = None
        self.at += 1
        return self._state(x)

    def _take(self, x: Tensor) -> None:
        batch, shape = self.loop.batch, self.loop.model.shape
        if x.shape != (batch, *shape):
            raise ValueError(f"state {tuple(x.shape)}; these steps are of {(batch, *shape)}")
        self.loop.x.copy_(x.reshape(batch, -1))

    def _state(self, x: Tensor | None) -> Tensor:
        result = self.loop.result()
        return result if x is None else result.to(x.dtype)

    def __getstate__(self) -> dict[str, Any]:
        loop = self.loop
        moving = {"x": loop.x, "hist": loop.hist, "row": loop.row, "seed": loop.key.seed, "ids": loop.key.ids}
        memory = {} if loop.denoiser is None else dict(loop.denoiser.memory)
        rest = {"at": self.at, "_noise": self._noise}
        return {"arguments": self._arguments, "moving": moving, "memory": memory, "rest": rest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["arguments"])
        loop, moving = self.loop, state["moving"]
        places = {"x": loop.x, "hist": loop.hist, "row": loop.row, "seed": loop.key.seed, "ids": loop.key.ids}
        for name, buffer in places.items():
            buffer.copy_(moving[name])
        loop.point(int(loop.row))
        if loop.denoiser is not None:
            loop.denoiser.memory.update(state["memory"])
        vars(self).update(state["rest"])
