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

from fastscore.engine.cuda_graphs import CudaGraphs, Work
from fastscore.engine.kind import Kind
from fastscore.engine.loop import Outputs
from fastscore.errors import unknown
from fastscore.execution import GRAPHS

NODES = 50_000  # kernels of one graph
LONGEST_PERIOD = 32  # rows of one repeated group: a solver's stages and its corrector's rounds


class Recorder(Protocol):
    """Records work that touches static buffers only."""

    def try_out(self, reset: Work, work: Work) -> int:
        """Warm up, and raise if the work cannot be recorded; return about how many kernels it launches."""
        ...

    def record(self, reset: Work, work: Work, tried: bool = False) -> Work:
        """Return a call that does ``work`` again; it is tried out first unless it was, ``reset`` before each time."""
        ...


class Tape:
    """The stand-in for CUDA graphs where there is no GPU; for tests, not for speed.

    Between replays every intermediate result is poisoned with NaN: a replay that reads anything
    but the static buffers and its own results shows.
    """

    def try_out(self, reset: Work, work: Work) -> int:
        """Refuse nothing: on a CPU there is nothing that could not be done again."""
        return 0

    def record(self, reset: Work, work: Work, tried: bool = False) -> Work:
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

    kinds: Any
    x: Tensor
    advance: Callable[..., Any]

    @property
    def networks(self) -> tuple[object, ...]:
        """Whatever a run evaluates."""
        ...

    def reset(self) -> None:
        """Return to the start."""
        ...

    def point(self, row: int) -> None:
        """Go to a row."""
        ...

    def result(self) -> Tensor:
        """Return a copy of the state."""
        ...


class Graphed:
    """A loop whose rows were recorded: all in one graph ("loop"), or one graph a repeated group ("step").

    Raises:
        ValueError: an unknown mode, or a loop of more than ``NODES`` kernels.
        Exception: it cannot be recorded; whatever the recorder raises.
    """

    def __init__(self, loop: Rows, recorder: Recorder, mode: str) -> None:
        if mode not in GRAPHS:
            raise unknown("graph", mode, GRAPHS)
        self.loop, self.mode = loop, mode
        groups = segments(loop.kinds)
        self.segments = [Segment(0, len(loop.kinds), 1)] if mode == "loop" else groups
        start = time.perf_counter()
        with torch.no_grad():
            # Each kind of row once, before any of them is recorded.
            works = [self._work(segment) for segment in groups]
            launches = [recorder.try_out(*work) for work in works]
            nodes = sum(n * segment.count for n, segment in zip(launches, groups, strict=True))
            if mode == "loop" and nodes > NODES:
                raise ValueError(
                    f"graph = 'loop': its {len(loop.kinds)} rows launch about {nodes} kernels, and a graph of more "
                    f"than {NODES} takes minutes and gigabytes to make; use graph='step', which replays the same ones"
                )
            if mode == "loop":
                works = [self._work(segment) for segment in self.segments]
            self.replays = [recorder.record(*work, tried=True) for work in works]
        self.capture_s = time.perf_counter() - start

    def _work(self, segment: Segment) -> tuple[Work, Work]:
        loop = self.loop  # and not what holds the recordings, which hold this: their memory ends with the last user

        def reset() -> None:
            loop.point(segment.start)

        def work() -> None:
            outputs: Outputs = (None, None)
            for kind in loop.kinds[segment.start : segment.start + segment.length]:
                outputs = loop.advance(kind, outputs)

        return reset, work

    @torch.no_grad()
    def run(self) -> Tensor:
        """Replay all rows on what was loaded and return a copy of the state."""
        self.loop.reset()
        for segment, replay in zip(self.segments, self.replays, strict=True):
            for _ in range(segment.count):
                replay()
        return self.loop.result()


def capture(loop: Rows, mode: str) -> Graphed | None:
    """Capture a loop on its CUDA device; None is the plain loop, with a warning that says why.

    Args:
        mode: "step"; "loop", which saves some microseconds a row and costs a node for each kernel of each row; or
            "auto": step where the network can be captured, else the plain loop.

    Raises:
        ValueError: it cannot be captured and ``mode`` insists on it, or a loop of too many rows.
    """
    try:
        return Graphed(loop, CudaGraphs(loop.x.device, loop.networks), "step" if mode == "auto" else mode)
    except Exception as error:  # of a network, of a compiler, of torch: whatever it is, nothing was recorded
        if isinstance(error, ValueError) and mode == "loop" and str(error).startswith("graph = "):
            raise
        reason = first_reason(error)
        if mode != "auto":
            raise ValueError(f"graph = {mode!r}: the network cannot be captured ({reason}); use graph='off'") from error
    warnings.warn(f"no CUDA graph: the network cannot be captured ({reason})", stacklevel=3)
    return None


def first_reason(error: BaseException) -> str:
    """Return in a line what went wrong first: the end of a broken capture raises an error of its own."""
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]
