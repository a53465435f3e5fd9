"""Runs of one plan, a micro-batch at a time: the plain loop, or the captured one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from fastscore.engine.capture import Graphed, capture
from fastscore.engine.loop import Loop, Observer, Step
from fastscore.errors import NonFiniteError
from fastscore.model.conditions import Inputs
from fastscore.ops.noise import NoiseKey, RecordedNoise

Callback = Callable[[Step], None]


class Batches:
    """Cuts ids into micro-batches of the loop's fixed size and runs them.

    Args:
        loop: the plan bound to a network.
        graph: "off", "step", "loop" or "auto"; see fastscore.engine.graph.
    """

    def __init__(self, loop: Loop, graph: str) -> None:
        self.loop, self.graph = loop, graph
        self._busy = False

    @cached_property
    def captured(self) -> tuple[Graphed | None, dict[str, float]]:
        """The captured loop, if any, and what each way took, in seconds."""
        return (None, {}) if self.graph == "off" else capture(self.loop, self.graph)

    @property
    def way(self) -> str:
        """How batches run: "off" (the plain loop), or the captured "step" or "loop"; captures if it has not yet."""
        graphed = self.captured[0]
        return "off" if graphed is None else graphed.mode

    def prepare(self, key: NoiseKey, cond: Tensor | None) -> dict[str, float | str]:
        """Compile and capture now; return what it took, in seconds."""
        self.loop.load(key.seed, key.ids, cond)
        start = time.perf_counter()
        self.loop.run().sum().item()  # waits for the device
        first = time.perf_counter() - start
        graphed, seconds = self.captured
        times = {f"{name}_s": value for name, value in seconds.items()}
        return {"first_s": first, "capture_s": graphed.capture_s if graphed else 0.0, "graph": self.way, **times}

    def stream(
        self,
        key: NoiseKey,
        cond: Tensor | None,
        noise: Tensor | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        inputs: Inputs | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions in ``key``, samples) a micro-batch at a time.

        Args:
            noise: recorded normals [draws, n, D], or None for the generated ones.
            callback: called with a Step after each row.
            progress: show a progress bar.
            inputs: what else the samples are given.

        Raises:
            RuntimeError: this is in the middle of a micro-batch already.
            NonFiniteError: a sample became NaN or Inf.
        """
        n, batch = len(key.ids), self.loop.batch
        with tqdm(total=len(self.loop.plan.rows) * -(-n // batch), unit="row", disable=not progress) as bar:
            for start in range(0, n, batch):
                part = slice(start, min(start + batch, n))
                if self._busy:
                    raise RuntimeError(
                        "this Sampler is in the middle of a run; use another one inside a callback or a thread"
                    )
                self._busy = True
                try:
                    given = None if inputs is None else inputs.part(part)
                    self.loop.load(key.seed, key.ids[part], None if cond is None else cond[part], given)
                    drawn = None if noise is None else noise[:, part]
                    x = self._run(key.ids[part], drawn, callback, bar if progress else None)
                finally:
                    self._busy = False
                yield part, x

    def _run(self, ids: Tensor, drawn: Tensor | None, callback: Callback | None, bar: tqdm | None) -> Tensor:
        loop, count = self.loop, len(ids)
        noise = None
        if drawn is not None:
            noise = RecordedNoise(torch.cat([drawn, drawn[:, -1:].expand(-1, loop.batch - count, -1)], dim=1))

        def run(observer: Observer | None) -> Tensor:
            return loop.run(noise, observer, callback is not None)[:count]

        def observe(k: int, x0: Tensor | None) -> None:
            if bar is not None:
                bar.update()
            if callback is not None:
                row, shape = loop.plan.rows[k], (count, *loop.model.shape)
                estimate = None if x0 is None else x0[:count].reshape(shape)
                callback(Step(k, row.t, row.s, ids, loop.x[:count].clone().reshape(shape), estimate))

        graphed = self.captured[0] if callback is None and noise is None else None
        if graphed is None:
            x = run(observe if callback or bar is not None else None)
        else:
            x = graphed.run()[:count]
            if bar is not None:
                bar.update(len(loop.plan.rows))
        # A finite sum has finite terms, and costs a tenth of looking at each; it may also have overflowed.
        if not math.isfinite(float(x.sum())) and not bool(torch.isfinite(x).all()):
            self._report(run, ids)
        return x

    def _report(self, run: Callable[[Observer], Tensor], ids: Tensor) -> None:
        """Run the micro-batch again, which gives the same values, to find the first bad row."""
        loop = self.loop

        def check(k: int, x0: Tensor | None) -> None:
            bad = ~torch.isfinite(loop.x[: len(ids)]).all(dim=1)
            if bool(bad.any()):
                row = loop.plan.rows[k]
                raise NonFiniteError(
                    f"{int(bad.sum())} of {len(ids)} samples are NaN or Inf, first id {int(ids[bad][0])} at row {k} "
                    f"(t = {row.t:.6g}, {loop.x.dtype}); the network's output or the step is not finite there"
                )

        run(check)
        raise NonFiniteError("samples are NaN or Inf, and were finite when run again: the network is not deterministic")
