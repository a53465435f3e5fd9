"""Where a phase runs: device, seconds and records; in a dry run tapes stand for graphs and wall time for events."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore as fs
from bench.card import lines, summary
from bench.clocks import Clock, CudaClock, HostClock, Recorded, recorded, recorder
from fastscore.engine.capture import Graphed
from fastscore.network.surroundings import undisturbed

Facts = Mapping[str, Any]
ROUND = 0.3  # seconds of one round of timing, at most


@dataclass
class Card:
    """What a phase is handed.

    Attributes:
        out: the folder of the run.
        phase: its name.
        seconds: how long it may take.
        dry: on the CPU, at tiny sizes: figures mean nothing.
        only: items to do; all if empty.
    """

    out: Path
    phase: str
    seconds: float
    dry: bool
    only: tuple[str, ...] = ()
    start: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """The first CUDA device; the CPU in a dry run."""
        return torch.device("cpu") if self.dry else torch.device("cuda", 0)

    def pick(self, full: Any, dry: Any) -> Any:
        """Return a size: of a real run, or of a dry one."""
        return dry if self.dry else full

    def left(self) -> float:
        """Return how many seconds the phase still has."""
        return self.start + self.seconds - time.monotonic()

    def put(self, item: str, ok: bool | None = None, **facts: Any) -> None:
        """Record one result; ``ok`` is None for a figure, which is neither right nor wrong."""
        record = {"phase": self.phase, "item": item, "ok": ok, "dry": self.dry, **facts}
        lines.write(self.out, record)
        print(
            f"{self.phase} {item}: {'' if ok is None else 'ok' if ok else 'FAILED'} {summary.facts(record)[:400]}",
            flush=True,
        )

    def do(self, item: str, work: Callable[[], Facts | None]) -> Facts | None:
        """Do one item and record what it returns; what it raises is its record."""
        if self.only and item not in self.only:
            return None
        if self.left() <= 0.0:
            self.put(item, skipped="no time left")
            return None
        start = time.monotonic()
        try:
            facts = work()
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error)[:500]}"
            self.put(item, False, error=reason, trace=traceback.format_exc(limit=-3)[-1500:])
            self.tidy()
            return None
        if facts is not None:
            took = {} if "seconds" in facts else {"seconds": round(time.monotonic() - start, 3)}
            self.put(item, **{**facts, **took})
        return facts

    def tidy(self) -> None:
        """Give back what a failed item held, so that the next one has memory."""
        gc.collect()
        if not self.dry:
            with suppress(RuntimeError):
                torch.cuda.empty_cache()

    def do_all(self, items: Mapping[str, Callable[[], Facts | None]]) -> None:
        """Do items in turn while there is time."""
        for item, work in items.items():
            self.do(item, work)

    def wait(self) -> None:
        """Wait for the device."""
        if not self.dry:
            torch.cuda.synchronize(self.device)

    @property
    def clock(self) -> Clock:
        """Device time of work that is one graph, or larger than the cache."""
        return HostClock() if self.dry else CudaClock(self.device, flush=False)

    def timed(self, work: Callable[[], object], calls: int = 10) -> float:
        """Return the least device time of three rounds, in seconds a call, once the work is warm."""
        work()
        self.wait()
        one = self.clock(work, 1)
        calls = max(1, min(calls, int(ROUND / max(one, 1e-9))))
        return min([one, *(self.clock(work, calls) for _ in range(self.pick(3, 0)))])

    def graph(self, work: Callable[[], object]) -> Recorded:
        """Return work recorded in one graph."""
        return recorded(work, self.device)

    def wall(self, work: Callable[[], object], calls: int = 1) -> float:
        """Return the host's seconds a call, the device's work included."""

        def done() -> None:
            for _ in range(calls):
                work()
            self.wait()

        return HostClock()(done, 1) / calls

    def sampler(self, model: fs.ScoreModel, graph: str = "off", **settings: Any) -> fs.Sampler | Taped:
        """Return a sampler on the card with rows replayed; in a dry run a tape of its loop stands for graphs."""
        if not self.dry:
            return fs.Sampler(model, graph=graph, device=self.device, **settings)
        sampler = fs.Sampler(
            model, device=self.device, backend="reference", **settings
        )  # a tape lists torch's own calls
        return sampler if graph == "off" else Taped(sampler, "step" if graph == "auto" else graph)

    def compile(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Return a function under torch.compile; in a dry run, which has no minutes for it, as it is."""
        if self.dry:
            return function
        torch.compiler.reset()  # else what was compiled before counts against the recompilation limit
        return torch.compile(function, fullgraph=True, dynamic=False, **options)


class Taped:
    """A sampler on a CPU whose rows are replayed from a tape, of one micro-batch."""

    def __init__(self, sampler: fs.Sampler, mode: str) -> None:
        self.sampler, self.mode = sampler, mode
        self.graphed: dict[bool, Graphed] = {}

    def run(self, ids: Iterable[int], seed: int = 0, **fields: Any) -> Tensor:
        """Draw as Sampler.run does."""
        request = self.sampler.request(list(ids), seed, **fields)
        known = request.known is not None
        loop = (self.sampler.inpainting if known else self.sampler.engine).loop
        with undisturbed(loop.x.dtype, loop.x.device):
            loop.load(request.padded(loop.batch))
            if known not in self.graphed:
                self.graphed[known] = Graphed(loop, recorder(loop.x.device), self.mode)
            return self.graphed[known].run()[: len(request)]

    def warm_up(self) -> dict[str, float | str]:
        """Record now."""
        start = time.perf_counter()
        labels = {"labels": 0} if self.sampler.model.classes else {}
        self.run(range(self.sampler.execution.batch), **labels)
        return {"first_s": 0.0, "capture_s": time.perf_counter() - start, "graph": self.mode}

    def release(self) -> None:
        """Free what was recorded."""
        self.graphed.clear()
        self.sampler.release()
