"""Serving: requests to one network at any time and from any thread, all of them in its lanes together.

What ``sampler.run`` draws at once and alone, ``engine.submit(sampler, ..)`` promises: the same samples to the bit, as
lanes of the network come free, in the company of whatever else was asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastscore.engine.dispatch import Dispatch
from fastscore.engine.handle import Handle
from fastscore.engine.request import Request, RequestFields
from fastscore.engine.turn import Turn
from fastscore.errors import short, typed
from fastscore.execution import Execution, ExecutionFields
from fastscore.model.score import ScoreModel

if TYPE_CHECKING:
    from typing_extensions import Unpack

TURN = 32  # ticks in a row: what has changed in a network counts after them


class Engine:
    """Continuous batching: one network, and samples of any plans, seeds, classes and guidance in its lanes.

        engine = Engine(model, batch=64)
        fast, good = Sampler(model, steps=8, batch=64), Sampler(model, solver="heun", steps=50, batch=64)
        a = engine.submit(fast, ids=range(4), seed=1, labels=3)
        b = engine.submit(good, ids=range(2), labels=[0, 5])
        x = a.result()

    A tick evaluates the network once, at ``batch`` lines, each sample at its own row; a sample that is done leaves its
    lane to the next one. Lanes go to the request that holds the fewest, so that none waits for all of a large one; then
    to the longest plan, so that lanes run empty together; but to the one that came first once four times ``batch``
    samples have entered since its turn. A sample is the one that ``sampler.run`` draws, to the bit, if the network's
    rounding does not depend on a line's place in the batch; nor, where a guided run on CUDA evaluates more lines at a
    time (Execution.guided), on their number.

    It starts no thread: who waits for a handle, or reads ``stream``, does the work of all. ``start`` gives it one.
    All methods may be called from any thread. Requests that cannot share a call of the network (an adaptive solver has
    lanes of its own; so have guides, second networks, and conditions of another shape) take turns with the others.

    Args:
        model: the score model; that of every sampler.
        execution, fields: how it is computed, as of a Sampler: device, batch, dtype, network, backend, graph.

    Attributes:
        ticks: how many there were, of all lanes.

    Raises:
        ValueError: an execution that does not fit the network.
    """

    @typed
    def __init__(
        self, model: ScoreModel, *, execution: Execution | None = None, **fields: Unpack[ExecutionFields]
    ) -> None:
        self.model = model
        self._changed = threading.Condition(threading.RLock())
        self._dispatch = Dispatch(model, Execution.of(execution, **fields), self._changed)
        self._driver, self._closed = 0, False
        self._streams: list[Callable[[Handle], None]] = []
        self._thread: threading.Thread | None = None
        self._turn = Turn()

    @property
    def ticks(self) -> int:
        """How many ticks there were, of all lanes."""
        return self._dispatch.ticks

    @property
    def waiting(self) -> int:
        """How many requests are not done."""
        with self._changed:
            return sum(not handle.done() for handle in self._dispatch.jobs)

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
            ValueError: whatever ``sampler.run`` refuses; a sampler of another model or execution; or what others
                cannot be beside: norms over a batch, Picard sweeps, rules with momentum, recorded noise.
            TypeError: a keyword that is none of a request's, as ``callback``: a tick has rows of many plans.
            RuntimeError: the engine is closed.
        """
        strange = sorted(fields.keys() - RequestFields.__annotations__.keys())
        if strange:
            known = ", ".join(RequestFields.__annotations__)
            raise TypeError(f"unexpected keyword {', '.join(strange)}: what an engine's samples are given is {known}")
        with self._changed:
            self._open()
            self._dispatch.check(sampler)
        request = sampler._fitting(ids) if isinstance(ids, Request) else sampler.request(ids, seed, **fields)
        handle = Handle(self, request.ids)
        with self._changed:
            self._open()
            self._dispatch.add(handle, sampler, request)
            networks = tuple({id(net): net for group in self._dispatch.busy for net in group.networks}.values())
            execution = self._dispatch.groups.execution
            if (*map(id, self._turn.networks), self._turn.execution) != (*map(id, networks), execution):
                self._turn = Turn(*networks, execution=execution)
            for stream in list(self._streams):
                stream(handle)
            self._changed.notify_all()
        return handle

    def stream(self, handles: Iterable[Handle] | None = None) -> Iterator[Handle]:
        """Yield handles as they are done, failed or cancelled; work where no thread does.

        Args:
            handles: which; those that are not done, and whatever is submitted on the way, if left out.

        Raises:
            ValueError: a handle of another engine, which would do no work for this one.
        """
        left, done = set[Future[Tensor]](), SimpleQueue[Future[Tensor]]()

        def take(handle: Future[Tensor]) -> None:
            if not isinstance(handle, Handle) or handle.engine is not self:
                raise ValueError(f"handles: {short(handle)} is none of this engine's; give it what submit returned")
            if handle not in left:
                left.add(handle)
                handle.add_done_callback(done.put)

        for handle in handles or ():
            take(handle)
        with self._changed:
            for handle in list(self._dispatch.jobs) if handles is None else ():
                take(handle)
            if handles is None:
                self._streams.append(take)
        try:
            while left:
                self._drive(lambda: not done.empty())
                handle = done.get()  # or the last one is just being ended by another thread
                left.remove(handle)
                assert isinstance(handle, Handle)
                yield handle
        finally:
            if handles is None:
                self._streams.remove(take)

    def start(self) -> Engine:
        """Give the engine a thread of its own, which works while there is anything to do; return the engine.

        Raises:
            RuntimeError: the engine is closed.
        """
        with self._changed:
            self._open()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="fastscore-engine", daemon=True)
                self._thread.start()
        return self

    def close(self, cancel: bool = False) -> None:
        """Take no more requests, and finish those that there are, or cancel them; then free lanes and thread."""
        with self._changed:
            self._closed = True
            handles = list(self._dispatch.jobs) if cancel else []
            self._changed.notify_all()
        for handle in handles:
            handle.cancel()
        self._drive(lambda: not self._dispatch.jobs)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._changed:
            self._changed.wait_for(lambda: self._driver in (0, threading.get_ident()))
            self._dispatch.groups.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.close(cancel=kind is not None)

    def _given_up(self, handle: Handle) -> None:
        """Take notice that a handle was cancelled."""
        with self._changed:
            self._dispatch.give_up(handle, ticking=self._driver != 0)
            self._changed.notify_all()

    def _open(self) -> None:
        if self._closed:
            raise RuntimeError("this engine is closed; make another one")

    def _work(self) -> None:
        """The engine's own thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._driver and (self._dispatch.jobs or self._closed))
                if not self._dispatch.jobs:
                    return
                groups = self._dispatch.busy
            try:
                self._ticks(lambda: False, None)
            except Exception as error:  # of the surroundings of a run: who waits would wait for ever
                self._dispatch.fail(groups, error)

    def _drive(self, until: Callable[[], bool], timeout: float | None = None) -> float | None:
        """Work, or wait for who does, until something holds, nothing is left to do, or the time is over.

        Returns: the seconds that are left.

        Raises:
            RuntimeError: called by what a tick calls, which would wait for itself.
        """
        end = None if timeout is None else time.monotonic() + timeout

        def left() -> float | None:
            return None if end is None else max(0.0, end - time.monotonic())

        while not until() and self._dispatch.jobs and left() != 0.0:
            if self._driver == threading.get_ident():
                raise RuntimeError("this engine is in the middle of a tick, which cannot wait for the next one")
            with self._changed:
                self._changed.wait_for(lambda: until() or not self._dispatch.jobs or self._idle, left())
                ready = self._idle and not until()
            if ready:
                self._ticks(until, end)
        return left()

    @property
    def _idle(self) -> bool:
        """Whether nobody drives the engine."""
        thread = self._thread
        return not self._driver and (thread is None or not thread.is_alive())

    def _ticks(self, until: Callable[[], bool], end: float | None) -> None:
        """Do some ticks, in the surroundings of a run, unless another thread does; this is the one that drives."""
        me = threading.get_ident()
        try:
            with self._changed:
                if self._driver:
                    return
                self._driver = me
                turn, groups = self._turn, self._dispatch.busy
            with turn.surroundings():
                self._dispatch.begin(groups)
                for _ in range(TURN):
                    self._dispatch.tick(groups)
                    if until() or (end is not None and time.monotonic() >= end):
                        break
                    busy = self._dispatch.busy
                    if not busy or any(group not in groups for group in busy):  # of networks that are not in this turn
                        break
        finally:
            if self._driver == me:
                with self._changed:
                    self._dispatch.mark()
                    self._dispatch.sweep()
                    self._driver = 0
                    self._changed.notify_all()
