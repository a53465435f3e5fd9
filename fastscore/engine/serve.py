"""Serving: requests to one network at any time and from any thread, all of them in its lanes together.

What ``sampler.run`` draws at once and alone, ``engine.submit(sampler, ..)`` promises: the same samples to the bit, as
lanes of the network come free, in the company of whatever else was asked for.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastscore.engine.lane_groups import Group, Groups
from fastscore.engine.request import Request, RequestFields
from fastscore.engine.turn import Turn
from fastscore.errors import typed
from fastscore.execution import Execution, ExecutionFields
from fastscore.model.score import ScoreModel

if TYPE_CHECKING:
    from typing_extensions import Unpack

TURN = 32  # ticks at most before the caller's surroundings, and another thread's wait, come first


class Handle(Future[Tensor]):
    """The samples of a request to come: a ``concurrent.futures.Future`` of what ``sampler.run`` would return.

    Who waits for it does the work, if no thread of the engine does. Iteration yields (ids, samples) as they are done.

    Attributes:
        ids: of the samples, int64 [n].
    """

    def __init__(self, engine: Engine, ids: Tensor) -> None:
        super().__init__()
        self.engine, self.ids = engine, ids
        self._samples: Tensor | None = None
        self._arrived: list[list[int]] = []  # positions

    def result(self, timeout: float | None = None) -> Tensor:
        """Return the samples, [n, *shape].

        Raises:
            concurrent.futures.TimeoutError: they are not done in ``timeout`` seconds; the work goes on where it was.
            concurrent.futures.CancelledError: the request was cancelled.
            NonFiniteError, StepSizeError: of one of its samples; or what the network raised.
        """
        self.engine._drive(self.done, timeout)
        return super().result(0 if self.done() else timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the request failed with, or None; raises as ``result`` does if it is not done or cancelled."""
        self.engine._drive(self.done, timeout)
        return super().exception(0 if self.done() else timeout)

    def cancel(self) -> bool:
        """Give the request up, on its way or not; return whether it was: False if it is done."""
        with self.engine._lock:
            fresh = not self.done()
            if not super().cancel():
                return False
            if fresh:
                self.set_running_or_notify_cancel()
        return True

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seen = 0
        while True:
            self.engine._drive(lambda: self.done() or len(self._arrived) > seen)
            arrived = self._arrived[seen:]
            for at in arrived:
                assert self._samples is not None
                yield self.ids[at], self._samples[at]
            seen += len(arrived)
            if self.done() and seen == len(self._arrived):
                self.result()  # raises what there is to raise
                return


@dataclass(eq=False)
class Job:
    """A request under way: how many of its samples have entered lanes, hold one, and are done.

    ``order`` says which one comes first; see Engine.
    """

    handle: Handle
    request: Request
    sampler: Any
    group: Group
    order: tuple[int, int]
    entered: int = 0
    held: int = 0
    done: int = 0


class Engine:
    """Continuous batching: one network, and samples of any plans, seeds, classes and guidance in its lanes.

        engine = Engine(model, batch=64)
        fast, good = Sampler(model, steps=8, batch=64), Sampler(model, solver="heun", steps=50, batch=64)
        a = engine.submit(fast, ids=range(4), seed=1, labels=3)
        b = engine.submit(good, ids=range(2), labels=[0, 5])
        x = a.result()

    A tick evaluates the network once, at ``batch`` lines, each sample at its own row; a sample that is done leaves its
    lane to the next one. Lanes go to the request that holds the fewest, so that none waits for all of a large one; then
    to the one that came first, where each evaluation of a plan counts as a tick that it came earlier: those that take
    longest begin first, and lanes run empty together. A sample is the one that ``sampler.run`` draws, to the bit, where the network's rounding does
    not depend on a line's place in the batch.

    It starts no thread: who waits for a handle, or reads ``stream``, does the work of all. ``start`` gives it one.
    All methods may be called from any thread. Requests that cannot share a call of the network (adaptive solvers, each
    with lanes of its own; guides; second networks; conditions of another shape) take turns with the others.

    Args:
        model: the score model; that of every sampler.
        execution, fields: how it is computed, as of a Sampler: device, batch, dtype, network, backend, graph.

    Raises:
        ValueError: an execution that does not fit the network.
    """

    @typed
    def __init__(
        self, model: ScoreModel, *, execution: Execution | None = None, **fields: Unpack[ExecutionFields]
    ) -> None:
        self.model = model
        self.asked = Execution.of(execution, **fields)
        self.groups = Groups(model, self.asked)
        self._lock, self._driving = threading.RLock(), threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._jobs: list[Job] = []
        self._orders, self._driver, self._closed = 0, 0, False
        self._thread: threading.Thread | None = None
        self._turn: Turn | None = None
        self.ticks = 0  # calls of a group's networks, about

    @property
    def waiting(self) -> int:
        """How many requests are not done."""
        return len(self._jobs)

    def submit(
        self,
        sampler: Any,
        ids: Sequence[int] | Tensor | Request,
        seed: int | Sequence[int] | Tensor = 0,
        **fields: Unpack[RequestFields],
    ) -> Handle:
        """Ask for the samples ``ids`` of ``seed``; return the handle of what ``sampler.run`` would return.

        Args:
            sampler: of this model, with the engine's device, batch, dtype, network and backend. Making one costs some
                milliseconds: keep those that come again.
            ids, seed, fields: as for ``run``.

        Raises:
            ValueError: whatever ``sampler.run`` refuses; a sampler of another model or execution; or what no other
                sample can be beside: norms over a batch, Picard sweeps, rules with momentum, recorded noise,
                projections.
            RuntimeError: the engine is closed.
        """
        with self._lock:
            self._open()
            self.groups.check(sampler, idle=not self._jobs)
        request = sampler._fitting(ids) if isinstance(ids, Request) else sampler.request(ids, seed, **fields)
        self.groups.check_request(sampler, request)
        handle = Handle(self, request.ids)
        if not len(request):
            handle.set_result(torch.empty(0, *self.model.shape, dtype=self.asked.dtype, device=request.ids.device))
            return handle
        with self._lock:
            self._open()
            group, known = self.groups.of(sampler, request), self._turn
            if known is None or known.networks != self.groups.networks:
                self._turn = Turn(*self.groups.networks, execution=self.groups.execution)
            self._orders += 1
            length = 0 if sampler.plan is None else sum(row.evaluate for row in sampler.plan.rows)
            self._jobs.append(Job(handle, request, sampler, group, (self.ticks - length, self._orders)))
            self._changed.notify_all()
        return handle

    def _open(self) -> None:
        if self._closed:
            raise RuntimeError("this engine is closed; make another one")

    def stream(self, handles: Iterable[Handle] | None = None) -> Iterator[Handle]:
        """Yield handles as they are done, failed or cancelled; work where no thread does.

        Args:
            handles: which; those that are not done, and whatever is submitted on the way, if left out.
        """
        left = None if handles is None else list(handles)
        seen: dict[Handle, None] = {} if left is None else dict.fromkeys(left)
        while True:
            if left is None:
                seen |= dict.fromkeys(job.handle for job in self._snapshot())
            if not seen:
                return
            self._drive(lambda: any(handle.done() for handle in seen))
            for handle in [handle for handle in seen if handle.done()]:
                del seen[handle]
                yield handle

    def start(self) -> Engine:
        """Give the engine a thread of its own, which works while there is anything to do; return the engine."""
        with self._lock:
            self._open()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="fastscore-engine", daemon=True)
                self._thread.start()
        return self

    def close(self, cancel: bool = False) -> None:
        """Take no more requests, and finish those that there are; or cancel them. Then free lanes and thread."""
        with self._lock:
            self._closed = True
            if cancel:
                for job in self._jobs:
                    job.handle.cancel()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._drive(lambda: not self._jobs)
        self.groups.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.close(cancel=kind is not None)

    def _snapshot(self) -> list[Job]:
        with self._lock:
            return list(self._jobs)

    def _work(self) -> None:
        """The engine's own thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
            self._turns(lambda: False, None)

    def _drive(self, until: Callable[[], bool], timeout: float | None = None) -> None:
        """Work, or wait for who does, until something holds, nothing is left to do, or the time is over."""
        end = None if timeout is None else time.monotonic() + timeout
        while not until() and self._jobs and (end is None or time.monotonic() < end):
            thread = self._thread
            if thread is not None and thread.is_alive() and thread is not threading.current_thread():
                with self._changed:
                    left = None if end is None else max(0.0, end - time.monotonic())
                    self._changed.wait_for(lambda: until() or not self._jobs, left)
            else:
                self._turns(until, end)

    def _turns(self, until: Callable[[], bool], end: float | None) -> None:
        """Do some ticks in the surroundings of a run, one thread at a time."""
        if self._driver == threading.get_ident():
            raise RuntimeError("this engine is in the middle of a tick: wait for a handle outside of network and callbacks")
        if not self._driving.acquire(timeout=-1 if end is None else max(0.0, end - time.monotonic())):
            return
        self._driver = threading.get_ident()
        try:
            if until() or self._turn is None:
                return
            with self._turn.surroundings():
                for _ in range(TURN):
                    self._tick()
                    if until() or not self._jobs or (end is not None and time.monotonic() >= end):
                        break
        finally:
            self._driver = 0
            self._driving.release()

    def _tick(self) -> None:
        """Let samples enter, evaluate all groups once, and let those leave that are done."""
        with self._lock:
            for job in [job for job in self._jobs if job.handle.done()]:
                self._end(job)
            groups = list(dict.fromkeys(job.group for job in self._jobs))
            jobs = list(self._jobs)
        for group in groups:
            try:
                for job, lanes in self._shares(group, [job for job in jobs if job.group is group]):
                    self._enter(group, job, lanes)
                self._leave(group, group.lanes.tick() if group.held else [])
                self.ticks += 1
            except BaseException as error:
                self._lose(group, error)
                if not isinstance(error, Exception):
                    raise
        with self._changed:
            self._changed.notify_all()

    def _shares(self, group: Group, jobs: list[Job]) -> list[tuple[Job, list[int]]]:
        """Return which requests get which free lanes: each goes to the one that holds fewest, the earlier first."""
        waiting = [(job.held, job.order, job) for job in jobs if job.entered < len(job.request)]
        heapq.heapify(waiting)
        shares: dict[Job, list[int]] = {}
        free = group.free()
        for lane in free if waiting else ():
            if not waiting:
                break
            held, order, job = waiting[0]
            lanes = shares.setdefault(job, [])
            lanes.append(lane)
            if job.entered + len(lanes) < len(job.request):
                heapq.heapreplace(waiting, (held + 1, order, job))
            else:
                heapq.heappop(waiting)
        return list(shares.items())

    def _enter(self, group: Group, job: Job, lanes: list[int]) -> None:
        """Put the next samples of a request into lanes; what goes wrong is that request's alone."""
        positions = range(job.entered, job.entered + len(lanes))
        try:
            done = group.lanes.enter(lanes, job.sampler.bound, job.request.at(positions))
        except Exception as error:
            self._end(job, error)
            return
        for lane, k in zip(lanes, positions, strict=True):
            group.held[lane] = job, k
        job.entered, job.held = positions.stop, job.held + len(lanes)
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
            job.held -= len(at)
            error = next((errors[n] for n in at if errors[n] is not None), None)
            if error is None:
                if handle._samples is None:
                    handle._samples = x.new_empty(len(job.request), *x.shape[1:])
                handle._samples[positions] = x[at]
                handle._arrived.append(positions)
                job.done += len(at)
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
        with self._lock:
            if job not in self._jobs:
                return
            self._jobs.remove(job)
            ends = not handle.done() and handle.set_running_or_notify_cancel()
        if not ends:
            return
        if error is not None:
            handle.set_exception(error)
        else:
            handle.set_result(handle._samples)

    def _lose(self, group: Group, error: BaseException) -> None:
        """End the requests that are in the lanes of a group, whose state nobody knows; those that wait go on."""
        held, group.held = {job: None for job, _ in group.held.values()}, {}
        with self._lock:
            if group in self.groups.groups:
                self.groups.groups.remove(group)
            for job in self._jobs:
                if job.group is group and job not in held:
                    job.group = self.groups.of(job.sampler, job.request)
        for job in held:
            self._end(job, error)
