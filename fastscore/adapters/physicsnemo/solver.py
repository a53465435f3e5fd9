"""Our solvers in PhysicsNeMo's own loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore.adapters.host import HostSteps
from fastscore.adapters.physicsnemo.model import PREDICTS, schedule_of
from fastscore.errors import typed, unknown
from fastscore.ops.noise import NoiseKey
from fastscore.plan.rows import Row
from fastscore.plan.rows import Solver as Planned
from fastscore.process.grid import Grid, Times
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Array, Schedule


@dataclass(frozen=True)
@typed
class LastEuler:
    """A solver whose last step is PhysicsNeMo's, x + (s - t) dx/dt from t: on EDM's levels the estimate of x_0.

    On others an Euler step to t = 0 is none: it leaves out how much alpha and sigma bend on the way. Its Euler and Heun
    end so; here they return the estimate if this is left out.
    """

    solver: Planned

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        last, end = float(t[-2]), float(t[-1])
        return [*self.solver.steps(schedule, t)[:-1], [Row(last, end, 1.0, end - last, m="flow")]]


class Solver:
    r"""A solver of ours as ``physicsnemo.diffusion.samplers.sample`` takes one: an object with ``step``.

        solver = Solver(x0_predictor, scheduler, solver="dpmpp-2m", steps=18)
        x = sample(None, solver.init_latents(shape, ids), scheduler, 0, solver=solver, time_steps=solver.time_steps)

    One call goes one step, with as many evaluations as the solver has; multistep ones keep their history and start
    anew at the first time. The last step, to t = 0, is exact: the estimate of x_0 itself, where a right-hand side
    would be singular. ``sample`` does not use its own denoiser then.

    Args:
        predictor: (x, t) -> what it predicts: a network with its condition bound, as ``get_denoiser`` takes it.
        scheduler: linear and Gaussian.
        solver, grid, steps: as of a Sampler; ``times(scheduler, n)`` is PhysicsNeMo's own grid of n steps, which
            ``sample(.., num_steps=n)`` then has, too.
        predicts: one of PREDICTS.
        seed, ids: of the members of a batch, whose noise on the way is a function of seed, id and step. Without ids
            they are 0, 1, .. of a first batch, and go on in the next.

    Attributes:
        time_steps: the times, float64 [steps + 1]; cast by ``sample``.

    Raises:
        ValueError: what ``from_physicsnemo`` and Sampler refuse; a step that is not the next one of the grid.
    """

    @typed
    def __init__(
        self,
        predictor: Callable[..., Tensor],
        scheduler: Any,
        *,
        solver: Planned | str = "dpmpp-2m",
        grid: Grid | Times | None = None,
        steps: int | None = None,
        predicts: str = "x0",
        seed: int = 0,
        ids: Any = None,
    ) -> None:
        if predicts not in PREDICTS:
            raise unknown("predicts", predicts, PREDICTS)
        self.predictor, self.schedule, self.seed, self.ids, self.drawn = predictor, schedule_of(scheduler), seed, ids, 0
        self.steps = HostSteps(solver, self.schedule, Parametrization(PREDICTS[predicts], "t"), grid, steps)
        self.time_steps = torch.tensor(self.steps.knots, dtype=torch.float64)

    def step(self, x: Tensor, t_cur: Tensor, t_next: Tensor) -> Tensor:
        """Return the states at t_next, [B, *shape], of those at t_cur; both times are [B], the same for all."""
        t, s = (float(v.reshape(-1)[0]) for v in (t_cur, t_next))
        return self.steps.step(x, t, s, self.predictor, lambda: self._key(x))

    def init_latents(
        self, shape: Sequence[int], ids: Any, device: Any = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return where these members start, sigma(T) z, [n, *shape], and have the next steps be theirs."""
        self.ids = ids
        z = NoiseKey.of(self.seed, ids, device).normal(0, math.prod(shape), dtype or torch.float32)
        return (float(self.schedule.sigma(self.steps.knots[0])) * z).view(-1, *shape)

    def _key(self, x: Tensor) -> NoiseKey:
        if self.ids is not None and len(self.ids) != len(x):
            raise ValueError(
                f"{len(self.ids)} ids for a batch of {len(x)}; set solver.ids, or init_latents(shape, ids)"
            )
        ids = range(self.drawn, self.drawn + len(x)) if self.ids is None else self.ids
        self.drawn += len(x)
        return NoiseKey.of(self.seed, ids, x.device)
