"""What a caller of an engine holds: the samples of a request to come."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from torch import Tensor


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


class Handle(Promise):
    """The samples of a request to come: a ``concurrent.futures.Future`` of what ``sampler.run`` would return.

    Who waits for it does the work, if no thread of the engine does. Iteration yields (ids, samples) as they are done.

    Attributes:
        ids: of the samples, int64 [n].
    """

    def __init__(self, engine: Any, ids: Tensor) -> None:
        super().__init__()
        self.engine, self.ids = engine, ids

    def result(self, timeout: float | None = None) -> Tensor:
        """Return the samples, [n, *shape].

        Raises:
            concurrent.futures.TimeoutError: they are not done in ``timeout`` seconds; the work goes on where it was.
            concurrent.futures.CancelledError: the request was cancelled.
            NonFiniteError, StepSizeError: of one of its samples; or what the network raised.
        """
        return super().result(self.engine._drive(self.done, timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the request failed with, or None; raises as ``result`` does if it is not done or cancelled."""
        return super().exception(self.engine._drive(self.done, timeout))

    def cancel(self) -> bool:
        """Give the request up, on its way or not; return whether it is given up: False if it was done before."""
        if not super().cancel():  # callbacks are called here, in no lock of the engine's
            return False
        self.engine._given_up(self)
        return True

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seen = 0

        def more() -> bool:
            return len(self.arrived) > seen or self.done()

        while True:
            self.engine._drive(more)
            if seen == len(self.arrived):
                self.result()  # raises what there is to raise
                return
            at, seen = self.arrived[seen], seen + 1
            assert self.samples is not None
            yield self.ids[at], self.samples[at]
