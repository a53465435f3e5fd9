"""The facade: a model, a schedule, a solver and a grid become a sampler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fastscore.engine import policy, trajectory
from fastscore.engine.adaptive.cost import Cost
from fastscore.engine.adaptive.run import AdaptiveBatches
from fastscore.engine.batches import Batches
from fastscore.engine.bind import bind, check_adaptive, fitting, ruled
from fastscore.engine.fitted import settled
from fastscore.engine.given import destination, with_noise
from fastscore.engine.loop import Loop, Step
from fastscore.engine.mixes import compiled_lines
from fastscore.engine.picard import Parallel, Picard
from fastscore.engine.record import record_of
from fastscore.engine.request import Request, RequestFields
from fastscore.engine.selfcheck import trusted
from fastscore.engine.subspace import check_subspace
from fastscore.engine.told import Hears, streamed
from fastscore.engine.turn import check_together, keep_up, made
from fastscore.engine.units import check_alike
from fastscore.errors import typed
from fastscore.execution import Execution, ExecutionFields
from fastscore.guidance.chain import Chain, check_guide
from fastscore.guidance.denoiser import Guide
from fastscore.guidance.mixture import BoundPlan, Guidance
from fastscore.guidance.per_sample import lines_of
from fastscore.guidance.thresholds import StaticThreshold
from fastscore.guidance.told import check_told
from fastscore.model.score import ScoreModel
from fastscore.network.prepare import Numerics, numerics, prepare
from fastscore.network.surroundings import undisturbed
from fastscore.output.progress import Told
from fastscore.plan.rows import Plan, Solver
from fastscore.process.grid import Grid, Span, Times
from fastscore.process.schedule import Schedule
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.names import chosen

if TYPE_CHECKING:
    from typing_extensions import Unpack

Engine = Batches | Parallel | AdaptiveBatches


class Sampler:
    """Draws samples of a score model. A pure function of (settings, seed, sample id).

    A sampler owns its buffers and does one run at a time; use one for each thread. The network stays as it is; what
    has changed in it counts from the next run on. A sampler can be copied and pickled, as its model and settings.

        x = Sampler(model, solver=DPMpp2M(), grid=karras(20)).run(ids=range(64), seed=0)
        x = Sampler(model, solver="heun", steps=20, batch=16).run(ids=range(64), seed=0)

    Args:
        model: the score model. schedule: the forward SDE to reverse; the model's own if left out. With another one, a
            grid without a start begins where the model's noise ends, if that is earlier.
        solver: see fastscore.solvers, or a name from solvers/names.py; DPM-Solver++(2M) if left out.
        grid: knots, see process/grid.py, or the name of a rule for ``steps`` of them, see process/README.md; "tuned",
            with a solver left out or that one, is what ``fit_grid`` fitted; a Span for an adaptive solver, to x0.
        steps: of a grid by name, or of the one that suits solver and schedule; 20 if left out.
        clip: bound on the x0 estimate of every row but Langevin's norm-dependent ones, or None.
        parallel: Picard sweeps over a window of steps in place of single ones; see engine/picard.py.
        guidance: classifier-free guidance or autoguidance; see guidance/mixture.py.
        guide: changes the estimate of x0 in every row that evaluates: DPS, .., see guidance/guides.py; not captured.
        start: what samples start from: "prior"; "data", the ``init`` of a run noised to the grid's first time
            (SDEdit: start the grid at an intermediate time); "state", ``init`` as it is (decoding a latent).
        execution, fields: how it is computed (see Execution); fields of it as keywords, as in ``batch=8``.

    Raises:
        ValueError: a solver, grid, model and execution that do not fit each other.
    """

    @typed
    def __init__(
        self,
        model: ScoreModel,
        *,
        schedule: Schedule | None = None,
        solver: Solver | Adaptive | str | None = None,
        grid: Grid | Times | Span | str | None = None,
        steps: int | None = None,
        clip: float | None = None,
        parallel: Picard | None = None,
        guidance: Guidance | None = None,
        guide: Guide | None = None,
        start: str = "prior",
        execution: Execution | None = None,
        **fields: Unpack[ExecutionFields],
    ) -> None:
        if not isinstance(second := (guidance and guidance.model) or model, ScoreModel):
            raise ValueError(f"guidance: the second model is a {type(second).__name__}; a Sampler takes a ScoreModel")
        asked = Execution.of(execution, **fields)
        solver, grid, steps, tuned = settled(model, schedule or model.schedule, solver, grid, steps, guidance)
        self.settings = {
            "schedule": schedule, "solver": solver, "grid": grid, "steps": steps, "clip": clip, "parallel": parallel,
            "guidance": guidance, "guide": guide, "start": start, "execution": asked,
        }  # fmt: skip
        check_alike(model, second)
        if clip is not None and model.transform is not None:
            raise ValueError(f"clip = {clip}: this model's columns have ranges of their own, which no one bound fits")
        self.model, self.second, self.schedule = model, second, schedule if schedule is not None else model.schedule
        self.execution, self.net_dtype = asked.around(*self.networks)
        self.ops = trusted(self.execution)
        self.solver, grid = chosen(solver, grid)
        guidance = ruled(guidance, self.solver)
        if guidance is not None:
            guidance.check(model)
        if adaptive := isinstance(self.solver, Adaptive):
            check_adaptive(self.solver, guidance, model, second)
        if clip is not None and (adaptive or (guidance is not None and guidance.plusplus)):
            guide, clip = StaticThreshold(clip) if guide is None else Chain((guide, StaticThreshold(clip))), None
        self.parallel, self.guidance, self.guide, self.start = parallel, guidance, guide, start
        check_together(self.execution, parallel is not None, guide is not None, start, adaptive, second is not model)
        self.grid = fitting(model, self.schedule, self.solver, grid, steps, guide)
        self.bound: BoundPlan | None = None
        if not isinstance(self.solver, Adaptive):
            binding = bind(model, self.schedule, self.solver, self.grid, start, clip, guidance, guide)
            self.bound = binding.bound
            for doubt in () if tuned else binding.doubts(given=grid is not None):
                warnings.warn(doubt, stacklevel=3)  # of the caller, behind typed
        check_guide(guide, guidance, self.schedule, self.plan, self.grid(self.schedule)[0], parallel is not None)

    @property
    def plan(self) -> Plan | None:
        """The rows that a run does; None for an adaptive solver."""
        return None if self.bound is None else self.bound.plan

    @cached_property
    def prepared(self) -> ScoreModel:
        """The model as it runs, its network prepared as the execution says."""
        return self._prepare(self.model)

    def _prepare(self, model: ScoreModel) -> ScoreModel:
        return prepare(model, compiled_lines(self), self.execution.device, self.execution.network)

    rollout, replay, replay_means = policy.rollout, policy.replay, policy.replay_means
    trajectory = trajectory.trajectory

    @property
    def numerics(self) -> Numerics:
        """The arithmetic of the network as it is evaluated; prepares it if it has not yet been."""
        return numerics(self.prepared.net, self.execution.network, self.execution.place)

    @cached_property
    def second_prepared(self) -> ScoreModel:
        """The second model of a mixture as it runs; the first one where there is no other."""
        return self.prepared if self.second is self.model else self._prepare(self.second)

    @cached_property
    def engine(self) -> Engine:
        """The engine that runs the plan or the adaptive solver; its buffers are made on first use."""
        return self._engine(known=False)

    @cached_property
    def inpainting(self) -> Engine:
        """The engine that runs the plan around known data."""
        return self._engine(known=True)

    def release(self) -> None:
        """Free what was made on first use: prepared networks, engines, graphs; the next run makes it again."""
        for name in ("prepared", "second_prepared", "engine", "inpainting", "actor"):
            vars(self).pop(name, None)

    @property
    def networks(self) -> tuple[object, ...]:
        """Networks of a run, and modules that they were said to run."""
        return (*self.model.networks, *self.second.networks)

    def __reduce__(self) -> tuple[Any, ...]:
        return made, (type(self), self.model, self.settings)

    def _engine_of(self, request: Request) -> Engine:
        keep_up(self, *self.networks)
        return self.engine if request.known is None or self.plan is None else self.inpainting

    def _engine(self, known: bool) -> Engine:
        model, second, execution, ops = self.prepared, self.second_prepared, self.execution, self.ops
        with undisturbed(execution.dtype, execution.place):
            if isinstance(self.solver, Adaptive):
                assert isinstance(self.grid, Span)
                return AdaptiveBatches(
                    model, self.schedule, self.solver, self.grid, execution, ops, self.net_dtype,
                    second, self.guidance, self.guide, self.start,
                )  # fmt: skip
            assert self.bound is not None
            loop = Loop(self.bound, model, execution, ops, self.net_dtype, second, self.guide, known)
            if self.parallel is not None:
                return Parallel(loop, self.parallel)
            return Batches(loop, execution.graph if execution.place.type == "cuda" and self.guide is None else "off")

    def warm_up(self, **fields: Unpack[RequestFields]) -> dict[str, float | str]:
        """Compile and capture now rather than on the first batch; return what it took, in seconds.

        Keys: ``first_s`` (the plain loop, any compilation in it), ``capture_s`` and ``graph`` (the mode that will run).
        Arguments as for ``run``, where a guide needs them.
        """
        example = {"init": torch.zeros(self.model.shape)} if self.start != "prior" else {}
        fields = cast(RequestFields, example | ({"labels": 0} if self.model.classes else {}) | fields)
        return self.engine.warm_up(self.request(range(self.execution.batch), **fields))

    def request(
        self, ids: Sequence[int] | Tensor, seed: int | Sequence[int] | Tensor = 0, **fields: Unpack[RequestFields]
    ) -> Request:
        """Check what is asked for and return it, one line a sample; arguments and errors as for ``run``."""
        keep_up(self, *self.networks)
        return self._fitting(Request.of(self.model, self.execution.place, ids, seed, **fields))

    def _fitting(self, request: Request) -> Request:
        """Return a request if it goes with the settings of this sampler."""
        request.check_start(self.start)
        check_told(request.told, self.guidance)
        at = float(self.grid(self.schedule)[0]) if self.start == "state" else None
        check_subspace(self.model, request, self.schedule, at)
        if request.y is not None and self.guide is None:
            raise ValueError("y is what a guide steers to; this sampler has none: Sampler(guide=..)")
        draws = 1 if (plan := self.plan) is None else plan.draws + len(plan.rows) * (request.known is not None)
        return with_noise(request, draws).guided(lines_of(self.guide, len(self.model.shape)))

    def run(
        self,
        ids: Sequence[int] | Tensor | Request,
        seed: int | Sequence[int] | Tensor = 0,
        *,
        callback: Callable[[Step], None] | None = None,
        progress: Told = False,
        log: Hears | None = None,
        out: Tensor | None = None,
        **fields: Unpack[RequestFields],
    ) -> Tensor:
        """Draw the samples ``ids`` of ``seed``.

        Args:
            ids: sample ids, 0 .. 2^63-1, in any order; sample k is the same whatever else is drawn. Or a Request.
            seed: 0 .. 2^64-1, one for all or one an id; a Request has its own, and its own of what follows.
            callback: called with a Step after each row of each micro-batch; what it raises ends the run.
            progress: show a progress bar; or what is called with how many samples are done, parts of one included.
            log: has log(dict, step=), or is a Log; told progress, estimates, step sizes: see output/README.md.
            out: where to write the samples, and what is then returned: any strides; see engine/given.py.
            labels: of a class-conditional model: one label for all, one an id, or "random" (uniform, a function of
                seed and id). cond: of a model with ``cond_shape``: [n, *cond_shape], or [*cond_shape] for all; a dict
                of such by name; in dtypes that are kept. What is left out is the model's null condition, if it has one.
            others: of a guidance with several weights: a list with one more condition for each weight after the first,
                each as ``labels`` or ``cond`` are, or a dict by name; a sample keeps its own value of other names.
            negative: what guidance leads away from in place of the null condition; as one of ``others``.
            init: where samples start from, [n, *shape] or [*shape]; belongs to start = "data" and "state".
            known: Known, the part of the data that the samples fill in. y: what the guide steers to, [n, ..].
            noise: recorded normals [plan.draws, n, *shape] in place of generated ones, and one more a row if ``known``.
            prior_ids: ids whose noise samples start from, in place of their own; their steps' noise stays their own.

        Returns: [n, *shape] in the state's dtype, in the order of ``ids``.

        Raises:
            ValueError: bad ids, seed or labels, no condition where the model has no null one, or a tensor of a shape
                that does not fit or with NaN.
            NonFiniteError: a sample became NaN or Inf.
        """
        request = self._fitting(ids) if isinstance(ids, Request) else self.request(ids, seed, **fields)
        result = destination(out, request, self.model.shape, self.execution)
        for at, x in streamed(self._engine_of(request), request, self.model, callback, progress, log, at_once=True):
            result[at] = x
        return result

    def stream(
        self,
        ids: Sequence[int] | Tensor | Request,
        seed: int | Sequence[int] | Tensor = 0,
        *,
        callback: Callable[[Step], None] | None = None,
        progress: Told = False,
        log: Hears | None = None,
        **fields: Unpack[RequestFields],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (ids, samples) a micro-batch at a time, or of an adaptive solver as they are done; else as ``run``."""
        request = self._fitting(ids) if isinstance(ids, Request) else self.request(ids, seed, **fields)
        told = streamed(self._engine_of(request), request, self.model, callback, progress, log)
        return ((request.ids[at], x) for at, x in told)

    @property
    def cost(self) -> Cost:
        """The cost of the last run of an adaptive solver; ValueError for one with a plan, which costs ``plan.nfe``."""
        if not isinstance(self.engine, AdaptiveBatches):
            raise ValueError(f"cost: {type(self.solver).__name__} has a plan; its cost is plan.nfe")
        return self.engine.cost

    def record(self) -> dict[str, Any]:
        """Return what samples are a function of beside seed, id and what a request gives, as plain values.

        It draws nothing: a graph mode of "auto" and an adaptive solver's cost are those of the last run.
        """
        return record_of(self)
