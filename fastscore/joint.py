r"""Coupled states of several tensors (an image and a vector, say), each with a schedule of its own.

    x^k_t = alpha_k(t) x^k_0 + sigma_k(t) z^k   for every part k, at one shared time t

The noises are independent, so part k follows its own reverse SDE with its block of the joint score,
grad_{x^k} ln p_t(x^1, .., x^K), and has its own plan. The plans run side by side: each row is one evaluation
of the shared network and one update a part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastscore import plan as plans
from fastscore.engine.bind import by_rule, ruled, step_of_rows
from fastscore.engine.capture import Graphed, capture
from fastscore.engine.given import destinations, with_noise
from fastscore.engine.in_step import check_in_step, knots_of
from fastscore.engine.joint_loop import JointLoop
from fastscore.engine.loop import Loop
from fastscore.engine.recorded import Recorded
from fastscore.engine.request import Request, RequestFields, bad_samples, micro_batches
from fastscore.engine.selfcheck import trusted
from fastscore.engine.subspace import check_subspace
from fastscore.engine.told import Hears
from fastscore.engine.turn import Turn, keep_up, made
from fastscore.engine.units import check_alike
from fastscore.errors import NonFiniteError, typed
from fastscore.execution import Execution, ExecutionFields
from fastscore.guidance.mixture import BoundPlan, Guidance
from fastscore.guidance.told import check_told
from fastscore.model.joint import JointModel, Tensors, alone
from fastscore.network.surroundings import undisturbed
from fastscore.output.log import Journal
from fastscore.output.progress import Told, followed, within
from fastscore.plan.rows import Plan, Solver
from fastscore.process.grid import Grid, Span, Times
from fastscore.process.schedule import Array
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.grids import default_grid
from fastscore.solvers.names import chosen

if TYPE_CHECKING:
    from typing_extensions import Unpack


class JointSampler:
    """Draws samples of a joint model: a pure function of (settings, seed, id), as Sampler's are.

    Draw d of part k of K is draw d K + k of the noise, so no two parts share a normal.

    Args:
        model: the network and its parts.
        solver: one for all parts, or a name. Its stages must fall on the same times for each of them, which those of
            Euler, Heun, RK2, RK4, the multistep solvers and the SDE schemes do.
        grid, steps: knots, spaced on the first part's schedule and shared by all, or as for Sampler. If
            they end clean, each part does, at its own clean end.
        clip: bound on the x0 estimate of every part, or None.
        guidance: as for Sampler; a second model is a JointModel of the same parts.
        start: as for Sampler; ``init`` of a run is then a dict by part.
        execution, fields: as for Sampler; the network runs as it is.

    Raises:
        ValueError: no parts, knots outside a part's schedule, or a solver whose stages differ by schedule.
    """

    @typed
    def __init__(
        self,
        model: JointModel,
        *,
        solver: Solver | str | None = None,
        grid: Grid | Times | str | None = None,
        steps: int | None = None,
        clip: float | None = None,
        guidance: Guidance | None = None,
        start: str = "prior",
        execution: Execution | None = None,
        **fields: Unpack[ExecutionFields],
    ) -> None:
        second = model if guidance is None or guidance.model is None else guidance.model
        if not isinstance(second, JointModel):
            raise ValueError(f"guidance: the second model is a {type(second).__name__}; parts need a JointModel")
        asked = Execution.of(execution, **fields)
        self.settings = {
            "solver": solver, "grid": grid, "steps": steps, "clip": clip, "guidance": guidance, "start": start,
            "execution": asked,
        }  # fmt: skip
        self.model, self.second, self.start = model, second, start
        self.execution, self.net_dtype = asked.around(*self.networks)
        if self.execution.network != "own":
            raise ValueError(f"network = {self.execution.network!r}: a joint network runs as it is; use network='own'")
        if guidance is not None:
            guidance.check(model)
        made, grid = chosen(solver, grid)
        first = next(iter(model.parts.values())).schedule
        if isinstance(grid, Grid | Times) and steps is not None:
            raise ValueError(f"steps = {steps} chooses a grid; leave it or grid = {grid} out")
        if isinstance(made, Adaptive) or isinstance(grid, Span):
            raise ValueError(f"{type(made).__name__}: parts share the times of a grid, so no solver chooses its own")
        self.guidance = ruled(guidance, made)
        if self.guidance is not None and self.execution.guided == "batched":
            raise ValueError("guided = 'batched': a joint network is evaluated once for each output; use guided='auto'")
        if not isinstance(grid, Grid | Times):
            named_grid = default_grid(made, first, first, steps, spacing=grid)
            assert isinstance(named_grid, Grid)
            grid = named_grid
        self.solver, self.grid = made, grid
        knots = self.grid(first)
        self.bound = {
            name: self._bind(name, knots_of(name, part.schedule, knots, first), k, clip)
            for k, (name, part) in enumerate(model.parts.items())
        }
        check_in_step({name: bound.plan for name, bound in self.bound.items()}, made, self.second is not model)
        self.ops = trusted(self.execution)
        widths = [math.prod(part.shape) for part in model.parts.values()]
        ends = np.cumsum([0, *widths]).tolist()
        self.columns = {name: slice(*ends[k : k + 2]) for k, name in enumerate(model.parts)}
        self.turn = Turn(*self.networks, execution=self.execution)
        self.graph = self.execution.graph if self.execution.place.type == "cuda" else "off"
        self.captured = Recorded[Graphed | None](self.networks, self.execution.place)

    def _bind(self, name: str, knots: Array, k: int, clip: float | None) -> BoundPlan:
        """Return the plan of one part, whose draws are every K-th."""
        part, parts = self.model.parts[name], len(self.model.parts)
        plan = plans.make_plan(by_rule(self.solver, self.guidance), part.schedule, knots, self.start)
        if clip is not None:
            plan = plans.clip(plan, clip)
        rows = tuple(replace(row, draw=row.draw * parts + k) if row.noisy else row for row in plan.rows)
        guidance, model = self.guidance, alone(part, self.model.cond_shape)
        if guidance is not None:
            # A condition is the joint network's and not a part's; a part only has its coefficients.
            second = alone(self.second.parts[name], self.second.cond_shape)
            check_alike(model, second)
            guidance = replace(guidance, model=second, null=None)
        steps = step_of_rows(by_rule(self.solver, self.guidance), part.schedule, knots)
        return BoundPlan(replace(plan, rows=rows), model, guidance, steps=steps)

    @cached_property
    def loop(self) -> JointLoop:
        """The loops of all parts; their buffers are made on first use."""
        with undisturbed(self.execution.dtype, self.execution.place):
            loops = {
                name: Loop(bound, bound.model, self.execution, self.ops, self.net_dtype)
                for name, bound in self.bound.items()
            }
            return JointLoop(loops, self.model, self.second, self.guidance, self.columns)

    @property
    def mode(self) -> str:
        """The mode of a run: "off" (the plain loop), or captured as "step" or "loop"; "auto" before it was chosen."""
        if self.graph == "off" or not self.captured.kept:
            return self.graph
        graphed = self.captured.kept[0]
        return "off" if graphed is None else graphed.mode

    def release(self) -> None:
        """Free the memory of the loops, and graphs; the next run makes them again."""
        vars(self).pop("loop", None)
        self.captured = Recorded[Graphed | None](self.networks, self.execution.place)

    @property
    def networks(self) -> tuple[object, ...]:
        """Networks of a run, and modules that they were said to run."""
        return (*self.model.networks, *self.second.networks)

    def __reduce__(self) -> tuple[Any, ...]:
        return made, (type(self), self.model, self.settings)

    @property
    def plans(self) -> dict[str, Plan]:
        """The rows of each part."""
        return {name: bound.plan for name, bound in self.bound.items()}

    def request(
        self, ids: Sequence[int] | Tensor, seed: int | Sequence[int] | Tensor = 0, **fields: Unpack[RequestFields]
    ) -> Request:
        """Check what is asked for and return it, one line a sample; as Sampler's, without known data and ``y``."""
        keep_up(self, *self.networks)
        return self._fitting(Request.of(self.model, self.execution.place, ids, seed, **fields))

    def _fitting(self, request: Request) -> Request:
        keep_up(self, *self.networks)
        check_told(request.told, self.guidance)
        if request.known is not None or request.y is not None:
            raise ValueError("known and y: parts of a joint model are drawn together; make what is known a condition")
        request.check_start(self.start)
        for name, bound in self.bound.items():
            first = bound.plan.rows[0].t if self.start == "state" else None
            check_subspace(bound.model, request.columns(self.columns[name]), bound.plan.schedule, first)
        return with_noise(request, max(plan.draws for plan in self.plans.values()))

    def run(
        self,
        ids: Sequence[int] | Tensor | Request,
        seed: int | Sequence[int] | Tensor = 0,
        *,
        progress: Told = False,
        log: Hears | None = None,
        out: Mapping[str, Tensor] | None = None,
        **fields: Unpack[RequestFields],
    ) -> Tensors:
        """Draw the samples ``ids`` of ``seed``: for each part [n, *shape], in the order of ``ids``.

        Arguments and errors as for Sampler.run: labels, cond, others, negative, noise [draws, n, D of all parts], init
        and out (dicts by part). A log is shown no estimates.
        """
        request = self._fitting(ids) if isinstance(ids, Request) else self.request(ids, seed, **fields)
        result = destinations(out, request, self.model.shape, self.execution)
        for at, x in self._batches(request, progress, Journal.of(log), at_once=not progress and log is None):
            for name, part in x.items():
                result[name][at] = part
        return result

    def stream(
        self,
        ids: Sequence[int] | Tensor | Request,
        seed: int | Sequence[int] | Tensor = 0,
        *,
        progress: Told = False,
        log: Hears | None = None,
        **fields: Unpack[RequestFields],
    ) -> Iterator[tuple[Tensor, Tensors]]:
        """Yield (ids, samples by part) a micro-batch at a time."""
        request = self._fitting(ids) if isinstance(ids, Request) else self.request(ids, seed, **fields)
        batches = self._batches(request, progress, Journal.of(log))  # which refuses now what is no logger
        return ((request.ids[at], x) for at, x in batches)

    def _batches(
        self, request: Request, progress: Told, journal: Journal | None, at_once: bool = False
    ) -> Iterator[tuple[slice, Tensors]]:
        """Yield (positions in the request, samples by part) a micro-batch at a time."""
        if journal is not None:
            journal.details = lambda: {"sample/evaluations": next(iter(self.plans.values())).nfe}
        told = nullcontext(progress) if journal is None else journal.following(progress, len(request))
        with told as each, followed(each, len(request)) as reach:

            def compute(at: slice, part: Request) -> Tensor:
                return self._run(part, within(reach, at.start, part.valid))

            for at, x in micro_batches(request, self.execution.batch, self.turn, compute, self._report, at_once):
                yield at, {k: x[:, c].reshape(-1, *self.model.shape[k]) for k, c in self.columns.items()}

    def _run(self, part: Request, told: Callable[[float], None] | None = None) -> Tensor:
        """Run all rows of a micro-batch; [batch, D of all parts]."""
        loop, graphed = self.loop, None
        loop.load(part)
        if self.graph != "off" and part.noise is None:
            graphed = self.captured.now(lambda: capture(loop, self.graph), lambda: loop.made)
        x = loop.run(told) if graphed is None else graphed.run()
        if told is not None:
            told(1.0)
        return x

    def _report(self, at: slice, part: Request, x: Tensor) -> None:
        for name, columns in self.columns.items():
            if not bool(torch.isfinite(x[:, columns]).all()):
                raise NonFiniteError(f"{name}: {bad_samples(x[:, columns], part.ids)}")
