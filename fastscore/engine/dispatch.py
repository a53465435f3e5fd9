"""Which samples enter which lanes, a tick of all lanes, and what becomes of the samples that leave them."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore.engine.handle import Promise
from fastscore.engine.jobs import Job
from fastscore.engine.lane_groups import Group, Groups
from fastscore.engine.request import Request
from fastscore.execution import Execution
from fastscore.model.score import ScoreModel
from fastscore.ops.host import behind, wait


class Dispatch:
    """The requests of an engine and the lanes of one network; ticked by one thread at a time.

    Args:
        model: the score model. asked: how it is computed.
        changed: held where requests come and go, and told of every tick.
    """

    def __init__(self, model: ScoreModel, asked: Execution, changed: threading.Condition) -> None:
        self.model, self.groups, self.changed = model, Groups(model, asked), changed
        self.jobs: dict[Promise, Job] = {}  # of requests that are not done
        self.lost: list[Job] = []  # given up during a tick
        self.before: list[Callable[[], None]] = []  # waits for what was done on other streams; see ops/host.py
        self.ticks = self.come = self.entered = 0

    @property
    def busy(self) -> list[Group]:
        """The groups that have requests."""
        return [group for group in self.groups.groups if group.jobs]

    def check(self, sampler: Any) -> None:
        """Raise ValueError unless the samples of a sampler can be in these lanes."""
        self.groups.check(sampler, idle=all(handle.done() for handle in self.jobs))

    def add(self, handle: Promise, sampler: Any, request: Request) -> None:
        """Take a request; one of no samples is done."""
        self.groups.check_request(sampler, request)
        if not len(request):
            run = self.groups.execution
            handle.set_result(torch.empty(0, *self.model.shape, dtype=run.dtype, device=run.place))
            return
        group = self.groups.of(sampler, request)
        length = 0 if sampler.plan is None else sum(row.evaluate for row in sampler.plan.rows)
        job = self.jobs[handle] = Job(handle, sampler, request, sampler.bound, group, length, self.come)
        group.add(job)
        self.come += len(request)
        self.mark()

    def mark(self) -> None:
        """Let the next tick, on whatever stream, come after what has been done on this one."""
        self.before.append(behind(self.groups.execution.place))

    def give_up(self, handle: Promise, ticking: bool) -> None:
        """Forget a request that was cancelled: now, or where a tick is going on once that is over."""
        job = self.jobs.pop(handle, None)
        if job is not None:
            handle.set_running_or_notify_cancel()
            self.lost.append(job)
        if not ticking:
            self.sweep()

    def sweep(self) -> None:
        """Forget the requests that were given up; no tick goes on."""
        while self.lost:
            self._forget(self.lost.pop())

    def begin(self, groups: Sequence[Group]) -> None:
        """Take notice of what has changed in networks; called where a turn begins, in its surroundings."""
        for group in groups:
            group.lanes.begin()

    def tick(self, groups: Sequence[Group]) -> None:
        """Let samples enter, evaluate the lanes of each group, and let those samples leave that are done.

        Args:
            groups: whose networks are in the surroundings of a run.
        """
        with self.changed:
            self.sweep()
            before, self.before = self.before, []
        for catch_up in before:
            catch_up()
        for group in groups:
            if not group.jobs:
                continue
            try:
                self._tick(group)
            except BaseException as error:
                _let_go(error)
                self._lose(group, error)
                if not isinstance(error, Exception):
                    raise
        with self.changed:
            self.changed.notify_all()

    def _tick(self, group: Group) -> None:
        group.tidy()
        with self.changed:
            shares = group.shares(self.entered)
        for job, lanes in shares.items():
            self._enter(group, job, lanes)
        group.tidy()
        if group.held:
            self.ticks += 1
            self._leave(group, group.lanes.tick())

    def fail(self, groups: Sequence[Group], error: BaseException) -> None:
        """End the requests of groups that nothing can be done for."""
        for job in [job for group in groups for job in group.jobs]:
            self._end(job, error)

    def _enter(self, group: Group, job: Job, lanes: list[int]) -> None:
        """Put the next samples of a request into lanes; what goes wrong is that request's alone."""
        width = group.lanes.width(job.bound)
        positions = range(job.entered, job.entered + len(lanes) // width)
        try:
            done = group.lanes.enter(lanes, job.bound, job.request.at(positions))
        except Exception as error:
            group.emptied += [lane for lane in lanes if lane in group.lanes.at]  # it may have been half inside
            self._end(job, error)
            return
        with self.changed:
            group.enter(job, dict(zip(lanes, positions, strict=False)), len(lanes))
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
        arrived: list[tuple[Job, list[int], Exception | None]] = []
        for job, both in parts.items():
            at, positions = map(list, zip(*both, strict=True))
            error = next((errors[n] for n in at if errors[n] is not None), None)
            arrived.append((job, positions, error or self._store(job, positions, x[at])))
            with self.changed:
                group.left(job, len(at))
        wait(x.device)  # whoever reads them may do so on any stream
        for job, positions, error in arrived:
            if error is None:
                job.handle.arrived.append(positions)
            if error is not None or job.done == len(job.request):
                self._end(job, error)

    def _store(self, job: Job, positions: list[int], x: Tensor) -> Exception | None:
        """Give samples to their request; return what is wrong, as that there is no room for all that it asks for."""
        try:
            if job.handle.samples is None:
                job.handle.samples = x.new_empty(len(job.request), *x.shape[1:])
            job.handle.samples[positions] = x
        except Exception as error:
            return error
        return None

    def _end(self, job: Job, error: BaseException | None = None) -> None:
        """Forget a request: its handle gets the samples or the error, and its lanes are free."""
        handle = job.handle
        with self.changed:
            if self.jobs.pop(handle, None) is None:  # it was given up
                return
            self._forget(job)
            if not handle.set_running_or_notify_cancel():
                return
        if error is not None:
            handle.set_exception(error)
        elif handle.samples is not None:
            handle.set_result(handle.samples)

    def _forget(self, job: Job) -> None:
        job.group.drop(job)
        self.entered += job.left

    def _lose(self, group: Group, error: BaseException) -> None:
        """End the requests that have entered the lanes of a group, whose state nobody knows; those that wait go on."""
        with self.changed:
            self.groups.drop(group)
            jobs, group.jobs = list(group.jobs), {}
            del group.lanes  # whoever keeps the error keeps frames that know the group
        for job in [job for job in jobs if job.entered]:
            self._end(job, error)
        for job in [job for job in jobs if not job.entered and job.handle in self.jobs]:
            try:
                with self.changed:
                    job.group = self.groups.of(job.sampler, job.request)
                    job.group.add(job)
            except Exception as again:
                self._end(job, again)


def _let_go(error: BaseException) -> None:
    """Empty the frames of ours that an error has passed through: who keeps it would keep what lanes hold."""
    for frame, _ in traceback.walk_tb(error.__traceback__ and error.__traceback__.tb_next):
        if frame.f_globals.get("__name__", "").startswith(("fastscore.", "torch.")):
            frame.clear()
