"""Capture: the loop's own calls, recorded once and replayed.

A recorder turns work over static buffers into a call that does it again. On a GPU that is a CUDA
graph. ``Tape`` is its stand-in anywhere else: it lists every tensor operation with the very tensors
it touched and executes the list again, so that what a CUDA graph would freeze (Python numbers,
addresses, control flow) is frozen there too.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastscore.engine.kind import Kind
from fastscore.engine.loop import Outputs
from fastscore.errors import unknown
from fastscore.execution import GRAPHS

Work = Callable[[], None]
LONGEST_PERIOD = 32  # rows of one repeated group: a solver's stages and its corrector's rounds


class Recorder(Protocol):
    """Records work that touches static buffers only."""

    def record(self, reset: Work, work: Work) -> Work:
        """Return a call that does ``work`` again; ``reset`` comes before each trial of it."""
        ...


class CudaGraphs:
    """CUDA graphs over one memory pool, which is freed with them."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def record(self, reset: Work, work: Work) -> Work:
        """Warm up on a side stream, then capture."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for _ in range(3):  # libraries choose kernels and workspaces before capture
                reset()
                work()
            reset()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            work()
        return graph.replay


class Tape:
    """The stand-in for CUDA graphs where there is no GPU; for tests, not for speed.

    Between replays every intermediate result is poisoned with NaN: a replay that reads anything
    but the static buffers and its own results shows.
    """

    def record(self, reset: Work, work: Work) -> Work:
        """Run the work once, listing its operations."""
        reset()
        calls = _Calls()
        with calls:
            work()
        return calls.replay


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor], list[bool]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        results = _tensors(out)
        self.calls.append(
            (func, args, kwargs, results, [t.untyped_storage().data_ptr() not in inputs for t in results])
        )
        return out

    def replay(self) -> None:
        for *_, results, fresh in self.calls:
            for t, is_fresh in zip(results, fresh, strict=True):
                if is_fresh and t.is_floating_point():
                    t.fill_(float("nan"))
        for func, args, kwargs, results, fresh in self.calls:
            again = _tensors(func(*args, **kwargs))
            for old, new, is_fresh in zip(results, again, fresh, strict=True):
                if is_fresh:
                    old.copy_(new)


@dataclass(frozen=True)
class Segment:
    """Rows start .. start + length - 1, and then the same kinds again, ``count`` times in all."""

    start: int
    length: int
    count: int


def segments(kinds: Sequence[Kind]) -> list[Segment]:
    """Split rows into runs of a repeated group, each time the run that covers most.

    A row that uses the network's last output again stays with the row that made it.
    """
    cuts = [k for k, kind in enumerate(kinds) if kind.evaluate or not kind.network] + [len(kinds)]
    result, at = [], 0
    while at < len(kinds):
        ends = [k for k in cuts if at < k <= at + LONGEST_PERIOD] or [next(k for k in cuts if k > at)]
        best = Segment(at, ends[0] - at, 1)
        for end in ends:
            period, count = end - at, 1
            while kinds[at + count * period : at + (count + 1) * period] == kinds[at:end]:
                count += 1
            if count > 1 and count * period > best.count * best.length:
                best = Segment(at, period, count)
        result.append(best)
        at += best.length * best.count
    return result


class Rows(Protocol):
    """Rows that a graph may be made of: a Loop, or those of several parts side by side."""

    row: Any
    kinds: Any
    x: Tensor
    advance: Callable[..., Any]

    def reset(self) -> None:
        """Return to the start."""
        ...

    def run(self) -> Tensor:
        """Do all rows on what was loaded."""
        ...

    def result(self) -> Tensor:
        """Return a copy of the state."""
        ...


class Graphed:
    """A loop whose rows were recorded: all in one graph ("loop"), or one graph a repeated group ("step")."""

    def __init__(self, loop: Rows, recorder: Recorder, mode: str) -> None:
        if mode not in GRAPHS:
            raise unknown("graph", mode, GRAPHS)
        self.loop, self.mode = loop, mode
        self.segments = [Segment(0, len(loop.kinds), 1)] if mode == "loop" else segments(loop.kinds)
        start = time.perf_counter()
        with torch.no_grad():
            self.replays = [recorder.record(*self._work(segment)) for segment in self.segments]
        self.capture_s = time.perf_counter() - start

    def _work(self, segment: Segment) -> tuple[Work, Work]:
        def reset() -> None:
            self.loop.row.fill_(segment.start)

        def work() -> None:
            outputs: Outputs = (None, None)
            for kind in self.loop.kinds[segment.start : segment.start + segment.length]:
                outputs = self.loop.advance(kind, outputs)

        return reset, work

    @torch.no_grad()
    def run(self) -> Tensor:
        """Replay all rows on what was loaded and return a copy of the state."""
        self.loop.reset()
        for segment, replay in zip(self.segments, self.replays, strict=True):
            for _ in range(segment.count):
                replay()
        return self.loop.result()


def capture(loop: Rows, mode: str) -> tuple[Graphed | None, dict[str, float]]:
    """Capture a loop on its CUDA device; return the way to run it and what each way took, in seconds.

    Args:
        mode: "step", "loop", or "auto", which captures both, times them against the plain loop on
            this very work and keeps the fastest (None is the plain loop).

    Raises:
        ValueError: the network cannot be captured and ``mode`` insists on it.
    """
    device = loop.x.device
    seconds: dict[str, float] = {}
    modes: dict[str, Graphed] = {}
    for name in GRAPHS if mode == "auto" else (mode,):
        try:
            modes[name] = Graphed(loop, CudaGraphs(device), name)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            if mode != "auto":
                raise ValueError(
                    f"graph = {mode!r}: the network cannot be captured ({reason}); use graph='off'"
                ) from error
            warnings.warn(f"no CUDA graph: the network cannot be captured ({reason})", stacklevel=3)
            return None, seconds
    if mode != "auto":
        return modes[mode], seconds
    runs: dict[str, Callable[[], Tensor]] = {"off": loop.run, **{name: graphed.run for name, graphed in modes.items()}}
    for name, run in runs.items():
        run()
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        seconds[name] = time.perf_counter() - start
    return modes.get(min(seconds, key=seconds.__getitem__)), seconds


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]
