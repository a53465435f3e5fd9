"""Which requests share lanes, and so every call of the network: all that one call can serve."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastscore.engine.adaptive.run import AdaptiveBatches
from fastscore.engine.cuda_graphs import CudaGraphs
from fastscore.engine.jobs import Job, Waiting
from fastscore.engine.request import Request
from fastscore.engine.row_lanes import RowLanes
from fastscore.engine.selfcheck import trusted
from fastscore.engine.step_lanes import StepLanes
from fastscore.errors import short
from fastscore.execution import Execution
from fastscore.guidance.chain import parts_of
from fastscore.model.condition_shapes import Condition, tensors_of
from fastscore.model.score import ScoreModel
from fastscore.network.prepare import prepare
from fastscore.network.surroundings import undisturbed
from fastscore.solvers.adaptive import GottaGoFast

KEPT = 8  # groups that nobody is in, whose buffers wait for the next request of their kind


@dataclass(eq=False)
class Group:
    """Lanes, and whose samples are in them.

    Attributes:
        kind: what its requests have in common. networks: what its calls evaluate.
        second: the other model of its requests, as it was given.
        jobs: its requests; waiting: those of them that have samples left to enter.
        held: of each lane in use: the request, and the position of the sample in it.
        emptied: lanes whose samples were given up, and are there until the next tick.
    """

    lanes: RowLanes | StepLanes
    kind: tuple[Any, ...]
    networks: tuple[object, ...]
    second: ScoreModel
    count: int
    jobs: dict[Job, None] = field(default_factory=dict)
    waiting: Waiting = field(default_factory=Waiting)
    held: dict[int, tuple[Job, int]] = field(default_factory=dict)
    emptied: list[int] = field(default_factory=list)

    def add(self, job: Job) -> None:
        """Take a request."""
        self.jobs[job] = None
        self.waiting.put(job)

    def drop(self, job: Job) -> None:
        """Forget a request; whose samples are in lanes of its are not there any more."""
        if job in self.jobs:
            del self.jobs[job]
        self.waiting.drop(job)
        if job.held:
            self.emptied += [lane for lane, (other, _) in self.held.items() if other is job]
            self.held = {lane: of for lane, of in self.held.items() if of[0] is not job}

    def tidy(self) -> None:
        """Empty the lanes whose samples were given up."""
        if self.emptied:
            lanes, self.emptied = self.emptied, []
            self.lanes.clear(lanes)

    def shares(self, entered: int) -> dict[Job, list[int]]:
        """Return which requests get which free lanes."""
        taken = self.lanes.taken
        free = [lane for lane in range(self.count) if lane not in taken]
        return self.waiting.shares(free, lambda job: self.lanes.width(job.bound), self.count, entered)

    def enter(self, job: Job, positions: dict[int, int], lanes: int) -> None:
        """Take notice of samples of a request that have entered so many lanes, each with its position in one."""
        self.held |= {lane: (job, k) for lane, k in positions.items()}
        job.entered, job.held = job.entered + len(positions), job.held + lanes
        self.waiting.put(job)

    def left(self, job: Job, n: int) -> None:
        """Take notice that n samples of a request have left their lanes."""
        job.held -= n * self.lanes.width(job.bound)
        job.done += n
        if job in self.jobs:
            self.waiting.put(job)


class Groups:
    """The groups of one network.

    Args:
        model: the score model.
        asked: how it is computed.
    """

    def __init__(self, model: ScoreModel, asked: Execution) -> None:
        self.model, self.asked = model, asked
        self.groups: list[Group] = []
        self._prepared: dict[int, tuple[ScoreModel, ScoreModel]] = {}
        self.execution, self.net_dtype = asked.around(*model.networks)
        self.ops = trusted(self.execution)

    def release(self) -> None:
        """Free lanes and prepared networks."""
        self.groups, self._prepared = [], {}

    def drop(self, group: Group) -> None:
        """Forget a group, whose state is of no use any more."""
        self.groups = [other for other in self.groups if other is not group]

    def check(self, sampler: Any, idle: bool) -> None:
        """Raise ValueError unless the samples of a sampler can be in these lanes.

        Args:
            idle: whether no request is under way, so that lanes can follow a network that was moved or cast.
        """
        if not isinstance(getattr(sampler, "settings", None), dict) or "solver" not in sampler.settings:
            raise ValueError(f"sampler = {short(sampler)} must be a fastscore.Sampler, which has the steps")
        if sampler.model is not self.model:
            raise ValueError(
                "this sampler has another model than the engine; make one engine for each model, and samplers of that "
                "very ScoreModel"
            )
        now = self.asked.around(*self.model.networks)
        if now != (self.execution, self.net_dtype):
            if not idle:
                raise ValueError("the network was moved or cast while requests are under way; wait for them first")
            self.release()
            (self.execution, self.net_dtype), self.ops = now, trusted(now[0])
        for name in ("device", "batch", "dtype", "network", "backend"):
            own, other = getattr(self.execution, name), getattr(sampler.execution, name)
            if own != other:
                raise ValueError(f"this sampler has {name} = {other}, the engine {own}; give both the same")
        if sampler.parallel is not None:
            raise ValueError("parallel: a window of steps fills lanes of its own; leave it out, lanes fill up anyway")
        rows = () if sampler.plan is None else sampler.plan.rows
        tied = {row.langevin.norm for row in rows if row.langevin} & {"batch", "tutorial"}
        if tied:
            raise ValueError(
                f"norm = {min(tied)!r} ties the samples of a batch together, and here they are each other's company by "
                "chance; use Langevin(norm='sample')"
            )
        for part in parts_of(sampler.guide):
            if getattr(part, "remembers", False):
                raise ValueError(f"{type(part).__name__}: momentum is kept for one batch at a time; set it to 0")

    def check_request(self, sampler: Any, request: Request) -> None:
        """Raise ValueError for what a request gives its samples and lanes do not take."""
        if request.noise is not None:
            raise ValueError("noise: recorded noise is for Sampler.run; leave it out")
        if request.known is not None and isinstance(sampler.solver, GottaGoFast):
            raise ValueError("known: this solver integrates the SDE, whose noise known data would need along the way")

    def of(self, sampler: Any, request: Request) -> Group:
        """Return the group that a request belongs to; made if there is none, in place of one that nobody is in."""
        kind = _kind(sampler, request)
        for group in self.groups:
            if _same(group.kind, kind):
                return group
        empty = [group for group in self.groups if not group.jobs]
        for group in empty[: max(0, len(empty) - KEPT + 1)]:
            self.drop(group)
        with undisturbed(self.execution.dtype, self.execution.place):
            lanes = self._steps(sampler) if sampler.plan is None else self._rows(sampler, "away" not in kind[-1])
        networks = (*self._ready(sampler.model).networks, *self._ready(sampler.second).networks, sampler.guide)
        self.groups.append(Group(lanes, kind, networks, sampler.second, self.execution.batch))
        used = {id(self.model), *(id(group.second) for group in self.groups)}
        self._prepared = {key: models for key, models in self._prepared.items() if key in used}
        return self.groups[-1]

    def _ready(self, model: ScoreModel) -> ScoreModel:
        """Return a model as it runs."""
        if id(model) not in self._prepared:
            run = self.execution
            self._prepared[id(model)] = model, prepare(model, run.batch, run.device, run.network)
        return self._prepared[id(model)][1]

    def _rows(self, sampler: Any, alike: bool) -> RowLanes:
        """Return lanes of plans; ``alike`` if what guidance leads away from has the form of the samples' own."""
        run = self.execution
        captured = run.place.type == "cuda" and run.graph != "off" and sampler.guide is None
        first, second = self._ready(sampler.model), self._ready(sampler.second)
        recorder = partial(CudaGraphs, run.place, (*first.networks, *second.networks)) if captured else None
        return RowLanes(first, second, run, self.ops, self.net_dtype, sampler.guide, alike, recorder)

    def _steps(self, sampler: Any) -> StepLanes:
        model, second = self._ready(sampler.model), self._ready(sampler.second)
        batches = AdaptiveBatches(
            model, sampler.schedule, sampler.solver, sampler.grid, self.execution, self.ops, self.net_dtype, second,
            sampler.guidance, sampler.guide, sampler.start,
        )  # fmt: skip
        return StepLanes(batches)


def _kind(sampler: Any, request: Request) -> tuple[Any, ...]:
    """Return what requests of one group have in common."""
    given = [_form(v) for v in (request.y, *request.guide)]
    conditions = [_form(cond) for cond in request.told]
    if sampler.plan is None:
        known = request.known is not None
        return "steps", sampler.settings, known, given, conditions
    plusplus = sampler.guide is not None and sampler.bound.plusplus
    guidance, away = sampler.bound.guidance, request.negative
    if guidance is not None and away is None:
        away = guidance.null_condition(sampler.model, request.at([0]).cond)
    forms = {"away": _form(away), **dict(enumerate(conditions[1:-1]))}
    strange = {name: form for name, form in forms.items() if form not in ([], conditions[0])}
    return "rows", id(sampler.second), sampler.guide, plusplus, given, conditions[0], strange


def _form(value: Condition | Tensor) -> list[tuple[torch.dtype, torch.Size]]:
    """Return dtypes and shapes of what one sample is given."""
    return [(v.dtype, v.shape[1:]) for v in tensors_of(value)]


def _same(one: Any, other: Any) -> bool:
    """Return whether two are equal; no where that cannot be said, as of tensors."""
    try:
        return bool(one == other)
    except (RuntimeError, ValueError, TypeError):
        return False
