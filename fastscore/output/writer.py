"""Samples into an array, by threads that convert and copy while the next ones are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscore.ops.host import pinned
from fastscore.output.images import THREADS


class Writer:
    """Fills an array with samples as they come, in whatever order; at most two micro-batches a thread wait.

        with Writer(samples, ids, quantize_ref) as writer:
            for part, x in sampler.stream(ids):
                writer.put(part, x)
            writer.finish()

    Args:
        samples: the array to fill, a line for each of ``ids``.
        ids: all ids that will come, each once, in the order of the array.
        convert: what is done to a micro-batch first (quantize images), or None.
    """

    def __init__(
        self,
        samples: NDArray[Any],
        ids: Sequence[int] | NDArray[np.int64],
        convert: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.samples, self.convert = samples, convert
        self._ids = np.asarray(ids, np.int64)
        self._order = np.argsort(self._ids, kind="stable")
        self._pool, self._waiting = ThreadPoolExecutor(THREADS, "fastscore-writer"), deque[Future[None]]()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def put(self, ids: Tensor, x: Tensor) -> None:
        """Hand over the samples ``x`` [n, *] of ``ids`` [n]; waits while too many wait already."""
        copied = None
        if x.is_cuda:  # convert and copy behind the sampler's own work; the worker waits for these copies alone
            ids = pinned(ids)[0]
            x, copied = pinned(x if self.convert is None else self.convert(x))
        while len(self._waiting) >= 2 * THREADS:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, ids, x, copied))

    def finish(self) -> None:
        """Wait until all is there."""
        while self._waiting:
            self._waiting.popleft().result()

    def _write(self, ids: Tensor, x: Tensor, copied: torch.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        elif self.convert is not None:
            x = self.convert(x)
        self.samples[self._order[np.searchsorted(self._ids, ids.numpy(), sorter=self._order)]] = x.numpy()
