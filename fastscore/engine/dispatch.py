"""Which samples enter which lanes, a tick of all lanes, and what becomes of the samples that leave them."""

from __future__ import annotations

import heapq
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore.engine.lane_groups import Group, Groups
from fastscore.engine.request import Request
from fastscore.execution import Execution
from fastscore.guidance.mixture import BoundPlan
from fastscore.model.score import ScoreModel

AHEAD = 4  # batches of samples that may enter before one whose turn it is


class Promise(Future[Tensor]):
    """A future of samples that arrive one after the other.

    Attributes:
        samples: of the request, [n, *shape]; those that have not arrived hold anything. None before the first one.
        arrived: their positions, as they came.
    """

    def __init__(self) -> None:
        super().__init__()
        self.samples: Tensor | None = None
        self.arrived: list[list[int]] = []


@dataclass(eq=False)
class Job:
    """A request under way: how many of its samples have entered lanes, are in some, and have arrived.

    Attributes:
        bound: the plan; None of an adaptive solver.
        length: evaluations of the plan; 0 of an adaptive solver. place: how many samples were asked for before.
    """

    handle: Promise
    sampler: Any
    request: Request
    bound: BoundPlan | None
    group: Group
    length: int
    place: int
    entered: int = 0
    held: int = 0
    done: int = 0


class Dispatch:
    """The requests of an engine and the lanes of one network; ticked by one thread at a time.

    Args:
        model: the score model. asked: how it is computed.
        changed: held where requests come and go, and told of every tick.
    """

    def __init__(self, model: ScoreModel, asked: Execution, changed: threading.Condition) -> None:
        self.model, self.groups, self.changed = model, Groups(model, asked), changed
        self.jobs: list[Job] = []
        self.ticks = self.come = self.entered = 0

    @property
    def going(self) -> list[Job]:
        """The requests that are not done; one that was cancelled leaves ``jobs`` with the next tick."""
        return [job for job in self.jobs if not job.handle.done()]

    def check(self, sampler: Any) -> None:
        """Raise ValueError unless the samples of a sampler can be in these lanes."""
        self.groups.check(sampler, idle=not self.going)

    def add(self, handle: Promise, sampler: Any, request: Request) -> None:
        """Take a request; one of no samples is done."""
        self.groups.check_request(sampler, request)
        if not len(request):
            run = self.groups.execution
            handle.set_result(torch.empty(0, *self.model.shape, dtype=run.dtype, device=run.place))
            return
        group = self.groups.of(sampler, request)
        length = 0 if sampler.plan is None else sum(row.evaluate for row in sampler.plan.rows)
        self.jobs.append(Job(handle, sampler, request, sampler.bound, group, length, self.come))
        self.come += len(request)

    def begin(self) -> None:
        """Take notice of what has changed in networks; called where a turn begins, in its surroundings."""
        for group in self.groups.groups:
            group.lanes.begin()

    def tick(self) -> None:
        """Let samples enter, evaluate the lanes of each group, and let those samples leave that are done."""
        with self.changed:
            jobs = list(self.jobs)
        for job in [job for job in jobs if job.handle.done()]:  # cancelled
            self._end(job)
            jobs.remove(job)
        for group in dict.fromkeys(job.group for job in jobs):
            try:
                for job, lanes in self._shares(group, [job for job in jobs if job.group is group]):
                    self._enter(group, job, lanes)
                if group.held:
                    self.ticks += 1
                    self._leave(group, group.lanes.tick())
            except BaseException as error:
                self._lose(group, error)
                if not isinstance(error, Exception):
                    raise
        with self.changed:
            self.changed.notify_all()

    def _shares(self, group: Group, jobs: list[Job]) -> list[tuple[Job, list[int]]]:
        """Return which requests get which free lanes: each goes to the one that holds fewest; see Engine."""

        def turn(job: Job) -> tuple[bool, int, int]:
            late = job.place + job.entered + AHEAD * group.count <= self.entered
            return not late, 0 if late else -job.length, job.place

        free = group.free()
        waiting = [(job.held, turn(job), job) for job in jobs if job.entered < len(job.request)] if free else []
        heapq.heapify(waiting)
        shares: dict[Job, list[list[int]]] = {}
        while waiting and len(free) >= (width := group.lanes.width(waiting[0][2].bound)):
            held, order, job = waiting[0]
            taken = shares.setdefault(job, [])
            taken.append(free[:width])
            free = free[width:]
            if job.entered + len(taken) < len(job.request):
                heapq.heapreplace(waiting, (held + width, order, job))
            else:
                heapq.heappop(waiting)
        return [(job, [lane for of in zip(*taken, strict=True) for lane in of]) for job, taken in shares.items()]

    def _enter(self, group: Group, job: Job, lanes: list[int]) -> None:
        """Put the next samples of a request into lanes; what goes wrong is that request's alone."""
        width = group.lanes.width(job.bound)
        positions = range(job.entered, job.entered + len(lanes) // width)
        try:
            done = group.lanes.enter(lanes, job.bound, job.request.at(positions))
        except Exception as error:
            self._end(job, error)
            return
        group.held |= {lane: (job, k) for lane, k in zip(lanes, positions, strict=False)}
        job.entered, job.held = positions.stop, job.held + len(lanes)
        self.entered += len(positions)
        self._leave(group, done)

    def _leave(self, group: Group, lanes: list[int]) -> None:
        """Take samples that are done out of their lanes, and give them to their requests."""
        if not lanes:
            return
        x, errors = group.lanes.leave(lanes)
        x = x if self.model.transform is None else self.model.transform(x)
        parts: dict[Job, list[tuple[int, int]]] = {}  # line of x, position in the request
        for n, lane in enumerate(lanes):
            job, k = group.held.pop(lane)
            parts.setdefault(job, []).append((n, k))
        for job, both in parts.items():
            handle, (at, positions) = job.handle, map(list, zip(*both, strict=True))
            job.held -= len(at) * group.lanes.width(job.bound)
            job.done += len(at)
            error = next((errors[n] for n in at if errors[n] is not None), None)
            if error is None:
                if handle.samples is None:
                    handle.samples = x.new_empty(len(job.request), *x.shape[1:])
                handle.samples[positions] = x[at]
                handle.arrived.append(positions)
            if error is not None or job.done == len(job.request):
                self._end(job, error)

    def _end(self, job: Job, error: BaseException | None = None) -> None:
        """Forget a request: its handle gets the samples or the error, and its lanes are free."""
        group, handle = job.group, job.handle
        lanes = [lane for lane, (other, _) in group.held.items() if other is job]
        if lanes:
            group.lanes.clear(lanes)
        for lane in lanes:
            del group.held[lane]
        with self.changed:
            if job not in self.jobs:
                return
            self.jobs.remove(job)
            self.entered += len(job.request) - job.entered
            if handle.done():
                return
            handle.set_running_or_notify_cancel()
        if error is not None:
            handle.set_exception(error)
        elif handle.samples is not None:
            handle.set_result(handle.samples)

    def _lose(self, group: Group, error: BaseException) -> None:
        """End the requests that have entered the lanes of a group, whose state nobody knows; those that wait go on."""
        group.held = {}
        with self.changed:
            self.groups.drop(group)
            jobs = [job for job in self.jobs if job.group is group]
        lost, waiting = [job for job in jobs if job.entered], [job for job in jobs if not job.entered]
        for job in lost:
            self._end(job, error)
        for job in waiting:
            try:
                job.group = self.groups.of(job.sampler, job.request)
            except Exception as again:
                self._end(job, again)
