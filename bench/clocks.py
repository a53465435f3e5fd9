"""Clocks: of the host, between CUDA events, and of work that a CUDA graph replays.

Each is handed what it needs (a time, events, a recorder), so that tests and dry runs give it stand-ins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

import numpy as np
import torch

from fastscore.engine.capture import CudaGraphs, Recorder, Tape

Work = Callable[[], object]
FEWEST = 3  # rounds that a median is taken of, however little time is left


class Clock(Protocol):
    """Times repeated work."""

    def __call__(self, work: Work, calls: int) -> float:
        """Return the seconds of one call."""
        ...


@dataclass(frozen=True)
class HostClock:
    """Wall time; for devices that work synchronously."""

    now: Callable[[], float] = time.perf_counter

    def __call__(self, work: Work, calls: int) -> float:
        start = self.now()
        for _ in range(calls):
            work()
        return (self.now() - start) / calls


class CudaClock:
    """Time between CUDA events, with the L2 cache flushed before each call.

    The flush also keeps the device busy while the host queues the work, so that of a short call the
    device time is measured and not the launches, for baselines as for fastscore. Work that is one graph is
    one launch: ``recorded`` makes it one.

    Args:
        device: a CUDA device.
        flush: whether to; not for work over more memory than the cache holds.
        event: makes an event that can be timed.
    """

    def __init__(self, device: torch.device, flush: bool = True, event: Callable[[], Any] | None = None) -> None:
        self.device, self.cache = device, None
        self.event = event or (lambda: torch.cuda.Event(enable_timing=True))
        if flush:
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self.cache = torch.empty(size, dtype=torch.uint8, device=device)

    def __call__(self, work: Work, calls: int) -> float:
        marks = [[self.event() for _ in range(2)] for _ in range(calls)]
        for start, end in marks:
            if self.cache is not None:
                self.cache.zero_()
            start.record()
            work()
            end.record()
        torch.cuda.synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in marks) / calls / 1000.0


def recorder(device: torch.device) -> Recorder:
    """Return what records work on a device: CUDA graphs, or a tape where there are none."""
    return CudaGraphs(device) if device.type == "cuda" else Tape()


@dataclass(frozen=True)
class Recorded:
    """The replay of a graph, with the work that was recorded: a graph reads memory that it does not own."""

    replay: Callable[[], None]
    work: Work

    def __call__(self) -> None:
        self.replay()


def recorded(work: Work, device: torch.device) -> Recorded:
    """Return the replay of a graph of work that touches nothing but the device: no launch of it is left to the host.

    Raises:
        Exception: it cannot be captured; whatever the recorder raises.
    """

    def once() -> None:
        work()

    own = recorder(device)
    # Tried out here and not there: baselines draw from torch's generator, which a graph holds and an engine may not.
    tried = {"tried": True} if "tried" in signature(own.record).parameters else {}
    with torch.no_grad():
        for _ in range(2):  # libraries choose kernels before capture
            once()
        return Recorded(own.record(lambda: None, once, **tried), work)


def paired(
    variants: dict[str, Work],
    clock: Clock,
    repeats: int,
    least: float,
    left: Callable[[], float] = lambda: math.inf,
) -> dict[str, list[float]]:
    """Time every variant once a round, in alternating order, so that a drift of the machine cancels in ratios.

    Args:
        variants: already warm.
        clock: what times them.
        repeats: rounds.
        least: seconds that a variant takes in a round at least; short work is called often enough.
        left: says how many seconds are left: after FEWEST rounds no round begins that would outlast them.

    Returns: seconds a call of each variant, one a round; 5 rounds where a round takes longer than a second.
    """
    single_calls = {
        name: min(clock(work, 1), clock(work, 1)) for name, work in variants.items()
    }  # one alone may be a hiccup
    calls = {name: max(1, min(1000, math.ceil(least / max(seconds, 1e-9)))) for name, seconds in single_calls.items()}
    repeats = repeats if sum(single_calls.values()) < 1.0 else min(repeats, 5)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for k in range(repeats):
        longest = sum(calls[name] * single_calls[name] for name in variants)
        if k >= FEWEST and left() < longest:
            break
        for name in variants if k % 2 == 0 else reversed(variants):
            seconds[name].append(clock(variants[name], calls[name]))
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the 20th, 50th and 80th percentile."""
    return dict(zip(("p20", "p50", "p80"), np.quantile(values, (0.2, 0.5, 0.8)).tolist(), strict=True))


@contextmanager
def tf32(use: bool | None) -> Iterator[None]:
    """Let products and convolutions of float32 run in TF32, or not; None leaves both as the user has them."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends if use is not None else ():
            backend.allow_tf32 = use
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
