"""Runs of one plan, a micro-batch at a time: the plain loop, or the captured one."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastscore.engine.capture import Graphed, capture
from fastscore.engine.loop import Loop, Observer, Step, recorded
from fastscore.engine.recorded import frozen_in
from fastscore.engine.request import Request, bad_samples, micro_batches
from fastscore.engine.turn import Turn
from fastscore.errors import NonFiniteError
from fastscore.output.progress import Told, followed, within

Callback = Callable[[Step], None]


@dataclass(frozen=True)
class Chosen:
    """A callback that is called after some rows only, so that the others cost nothing.

    Attributes:
        rows: which; their set may change on the way. Once it is empty a run is as one without callback.
        call: what is called.
    """

    rows: set[int]
    call: Callback

    def __call__(self, step: Step) -> None:
        self.call(step)


class Batches:
    """Runs a loop on a request, micro-batch by micro-batch.

    Args:
        loop: the plan bound to a network.
        graph: "off", "step", "loop" or "auto"; see engine/capture.py.
    """

    def __init__(self, loop: Loop, graph: str) -> None:
        self.loop, self.graph = loop, graph
        self.turn = Turn(*loop.networks, execution=loop.execution)

    @cached_property
    def captured(self) -> Graphed | None:
        """The captured loop; None where the plain one runs."""
        if self.graph == "off":
            return None
        result = capture(self.loop, self.graph)
        self.frozen = self._frozen()
        return result

    def _frozen(self) -> list[object]:
        """Return what a graph has frozen: the code that ran, and where weights and conditions lie."""
        return [self.loop.conditions.made, *frozen_in(self.loop.networks, self.loop.x.device)]

    def _keep_up(self, begins: bool) -> None:
        """Forget a graph of tensors that were replaced, which is more than a change of what they hold.

        Weights are looked at where a run begins, as for a compiled network: a graph holds those that it reads.
        """
        if self.graph == "off" or "captured" not in vars(self):
            return
        if self.frozen[0] != self.loop.conditions.made or (begins and self.frozen != self._frozen()):
            del self.captured

    @property
    def mode(self) -> str:
        """The mode of a run: "off" (the plain loop), or captured as "step" or "loop"; "auto" before it was chosen."""
        if self.graph == "off":
            return "off"
        if "captured" not in vars(self):
            return self.graph
        graphed = self.captured
        return "off" if graphed is None else graphed.mode

    def warm_up(self, request: Request) -> dict[str, float | str]:
        """Compile and capture now; return what it took, in seconds."""
        with self.turn:
            self.loop.load(request.padded(self.loop.batch))
            start = time.perf_counter()
            self.loop.run().sum().item()  # waits for the device
            first = time.perf_counter() - start
            graphed = self.captured
        return {"first_s": first, "capture_s": graphed.capture_s if graphed else 0.0, "graph": self.mode}

    def stream(
        self, request: Request, callback: Callback | None = None, progress: Told = False, at_once: bool = False
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions in the request, samples) a micro-batch at a time.

        Args:
            callback: called with a Step after each row.
            progress: show a progress bar; or what is called with how many samples are done, parts of one included.
            at_once: see micro_batches.

        Raises:
            RuntimeError: this is in the middle of a micro-batch already.
            NonFiniteError: a sample became NaN or Inf.
        """
        if callback is not None and not callable(callback):
            raise ValueError(f"callback = {callback!r} must be a function of a Step")
        with followed(progress, len(request)) as reach:

            def compute(at: slice, part: Request) -> Tensor:
                told = within(reach, at.start, part.valid)
                return self._run(part, callback, told, begins=at.start == 0)

            yield from micro_batches(request, self.loop.batch, self.turn, compute, self._report, at_once)

    def _run(
        self, part: Request, callback: Callback | None, told: Callable[[float], None] | None, begins: bool
    ) -> Tensor:
        loop, count, rows = self.loop, part.valid, len(self.loop.plan.rows)
        seen: Container[int] = callback.rows if isinstance(callback, Chosen) else range(rows)
        callback = callback if seen else None
        loop.load(part)
        self._keep_up(begins)

        def observe(k: int, x0: Tensor | None) -> None:
            if told is not None:
                told((k + 1) / rows)
            if callback is not None and k in seen:
                row, shape = loop.plan.rows[k], (count, *loop.model.shape)
                estimate = None if x0 is None else x0[:count].reshape(shape)
                callback(Step(k, row.t, row.s, part.ids[:count], loop.x[:count].clone().reshape(shape), estimate))

        graphed = self.captured if callback is None and part.noise is None else None
        if graphed is None:
            watched = callback is not None or told is not None
            return loop.run(recorded(part), observe if watched else None, seen if callback is not None else ())
        x = graphed.run()
        if told is not None:
            told(1.0)
        return x

    def _report(self, at: slice, part: Request, x: Tensor) -> None:
        """Run the micro-batch again, which gives the same values, to find the first bad row."""
        loop = self.loop

        def check(k: int, x0: Tensor | None) -> None:
            state = loop.x[: part.valid]
            if not bool(torch.isfinite(state).all()):
                row = loop.plan.rows[k]
                raise NonFiniteError(
                    f"{bad_samples(state, part.ids)} at row {k} "
                    f"(t = {row.t:.6g}, {loop.x.dtype}); the network's output or the step is not finite there"
                )

        observer: Observer = check
        loop.load(part)  # the next one may have been loaded since
        loop.run(recorded(part), observer)
        raise NonFiniteError("samples are NaN or Inf, and were finite when run again: the network is not deterministic")
