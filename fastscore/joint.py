r"""Coupled states of several tensors (an image and a vector, say), each with a schedule of its own.

    x^k_t = alpha_k(t) x^k_0 + sigma_k(t) z^k   for every part k, at one shared time t

The noises are independent, so part k follows its own reverse SDE with its block of the joint score,
grad_{x^k} ln p_t(x^1, .., x^K), and has its own plan. The plans run side by side: each row is one evaluation
of the shared network and one update a part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from fastscore import plan as plans
from fastscore.engine.loop import Loop
from fastscore.engine.selfcheck import trusted
from fastscore.errors import NonFiniteError
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.plan.rows import Plan, Solver
from fastscore.process.grid import Grid, Times, default_grid
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Array, Schedule
from fastscore.sampler import network_dtype
from fastscore.solvers import DPMpp2M

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One tensor of a coupled state.

    Attributes:
        shape: of one sample, without the batch axis.
        schedule: the forward SDE of this part.
        parametrization: what the network's output for this part means, and which label it receives.
    """

    shape: tuple[int, ...]
    schedule: Schedule
    parametrization: Parametrization = field(default_factory=Parametrization)


@dataclass(frozen=True)
class JointModel:
    """A network of several tensors.

    Attributes:
        net: ``net(u, c_noise) -> F``, each a dict by part: u = c_in x [N, *shape], labels [N], F like u.
        parts: by name, in the order that numbers their noise.
    """

    net: Callable[[Tensors, Tensors], Mapping[str, Tensor]]
    parts: Mapping[str, Part]


class JointSampler:
    """Draws samples of a joint model: a pure function of (settings, seed, id), as Sampler's are.

    Draw d of part k of K is draw d K + k of the noise, so no two parts share a normal.

    Args:
        model: the network and its parts.
        solver: one for all parts. Its stages must fall on the same times for each of them, which those of
            Euler, Heun, RK2, RK4, the multistep solvers and the SDE schemes do.
        grid: knots, spaced by the rule on the first part's schedule and shared by all; 20 steps if left out.
            If it ends clean, each part does, at its own clean end.
        batch, device, dtype, backend: as for Sampler.

    Raises:
        ValueError: no parts, knots outside a part's schedule, or a solver whose stages differ by schedule.
    """

    def __init__(
        self,
        model: JointModel,
        *,
        solver: Solver | None = None,
        grid: Grid | Times | None = None,
        batch: int = 64,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
    ) -> None:
        if not model.parts or batch < 1:
            raise ValueError(f"JointSampler: {len(model.parts)} parts and batch = {batch}; both must be at least 1")
        self.model, self.batch, self.device = model, batch, torch.device(device)
        ops = trusted(backend, self.device, dtype)
        first = next(iter(model.parts.values())).schedule
        knots = (grid if grid is not None else default_grid(first))(first)
        solver = solver if solver is not None else DPMpp2M()
        self.plans = {
            name: _plan(part, solver, _own(name, part.schedule, knots, first), k, len(model.parts))
            for k, (name, part) in enumerate(model.parts.items())
        }
        _check_in_step(self.plans, solver)
        if isinstance(model.net, nn.Module):
            model.net.to(self.device).eval()
        inner = network_dtype(model.net, dtype)
        self.loops = {
            name: Loop(
                self.plans[name], ScoreModel(_absent, part.shape, part.schedule), batch, self.device, dtype, ops, inner
            )
            for name, part in model.parts.items()
        }

    def run(self, ids: Sequence[int], seed: int = 0) -> Tensors:
        """Draw the samples ``ids`` of ``seed``: for each part [n, *shape], in the order of ``ids``.

        Raises:
            ValueError: bad ids or seed.
            NonFiniteError: a sample became NaN or Inf.
        """
        done = [x for _, x in self.stream(ids, seed)]
        empty = {name: loop.result()[:0] for name, loop in self.loops.items()}
        return {name: torch.cat([part[name] for part in [empty, *done]]) for name in self.loops}

    def stream(self, ids: Sequence[int], seed: int = 0) -> Iterator[tuple[Tensor, Tensors]]:
        """Yield (ids, samples by part) a micro-batch at a time."""
        key = NoiseKey.of(seed, ids, self.device)
        for some in key.ids.split(self.batch) if len(key.ids) else ():
            for loop in self.loops.values():
                loop.load(key.seed, some, None)
            x = {name: part[: len(some)] for name, part in self._run().items()}
            for name, part in x.items():
                bad = ~torch.isfinite(part.flatten(1)).all(1)
                if bool(bad.any()):
                    raise NonFiniteError(
                        f"{name}: {int(bad.sum())} of {len(some)} samples are NaN or Inf, first id {int(some[bad][0])}"
                    )
            yield some, x

    @torch.no_grad()
    def _run(self) -> Tensors:
        """Run all rows on what was loaded, every part's row k before row k + 1 of any."""
        loops = list(self.loops.values())
        for loop in loops:
            loop.reset()
        F: list[Tensor | None] = [None] * len(loops)
        for kinds in zip(*(loop.kinds for loop in loops), strict=True):
            if kinds[0].evaluate:
                F = [*self._evaluate()]
            for k, (loop, kind) in enumerate(zip(loops, kinds, strict=True)):
                loop.advance(replace(kind, evaluate=False), (F[k], None))
        return {name: loop.result() for name, loop in self.loops.items()}

    def _evaluate(self) -> list[Tensor]:
        u = {name: loop.u.view(self.batch, *loop.model.shape) for name, loop in self.loops.items()}
        label = {name: loop.labels.index_select(0, loop.row).expand(self.batch) for name, loop in self.loops.items()}
        out = self.model.net(dict(u), label)
        shapes = {name: tuple(F.shape) for name, F in out.items()}
        if shapes != {name: tuple(v.shape) for name, v in u.items()}:
            raise ValueError(f"the network returned {shapes} for { ({name: tuple(v.shape) for name, v in u.items()}) }")
        inputs = {v.untyped_storage()._cdata for v in u.values()}  # the rows are about to overwrite them
        made = [out[name] for name in self.loops]
        made = [F.clone() if F.untyped_storage()._cdata in inputs else F for F in made]
        return [F.reshape(self.batch, -1) for F in made]


def _own(name: str, schedule: Schedule, knots: Array, first: Schedule) -> Array:
    """Return the shared knots as this part's, with its own clean end."""
    clean = knots[-1] == first.t_clean
    own = np.append(knots[:-1], schedule.t_clean) if clean else knots
    inner = own[:-1] if clean else own
    if inner[0] > schedule.T or inner[-1] <= schedule.t_clean:
        raise ValueError(
            f"part {name!r}: the shared times {inner[0]:.6g} .. {inner[-1]:.6g} leave {type(schedule).__name__}'s "
            f"range {schedule.T:.6g} .. {schedule.t_clean:.6g}; parts need schedules over the same times"
        )
    return own


def _plan(part: Part, solver: Solver, knots: Array, k: int, parts: int) -> Plan:
    plan = plans.make_plan(solver, part.schedule, knots)
    rows = tuple(replace(row, draw=row.draw * parts + k) if row.noisy else row for row in plan.rows)
    return plans.validate(plans.fold(replace(plan, rows=rows), part.schedule, part.parametrization))


def _check_in_step(made: Mapping[str, Plan], solver: Solver) -> None:
    """Raise ValueError unless all plans evaluate in the same rows, at the same times."""
    (name, first), *others = made.items()
    times = [row.t if row.evaluate else math.nan for row in first.rows]
    for other, plan in others:
        own = [row.t if row.evaluate else math.nan for row in plan.rows]
        if not np.array_equal(times, own, equal_nan=True):
            raise ValueError(
                f"{type(solver).__name__} evaluates parts {name!r} and {other!r} at different times, since its stages "
                "depend on the schedule; use Heun, DPMpp2M, EulerMaruyama or another solver of fixed stages"
            )


def _absent(u: Tensor, c_noise: Tensor, cond: Tensor | None) -> Tensor:
    raise AssertionError("a part has no network of its own")
