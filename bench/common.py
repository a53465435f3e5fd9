"""What every bench shares: the gate, the clock, paired runs and the record they make."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch

from bench import telemetry
from bench.clocks import Clock, CudaClock, HostClock, Work, paired, recorded, spread
from fastscore.execution import Execution
from fastscore.network.jit import has_compiler
from fastscore.ops.backend import Ops, resolve

OURS, EAGER, COMPILED, COPY = "fastscore", "eager", "torch.compile", "copy"
REDUCED, NETWORKS = "reduce-overhead", ("own", "compile")
TF32_TOLERANCE = 0.02  # of the largest |x|


class RedGate(RuntimeError):
    """A result is wrong, so its speed is of no interest."""


@dataclass(frozen=True)
class Check:
    """One comparison of the gate; NaN is red."""

    name: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether the error is within its bound."""
        return self.error <= self.bound


@dataclass(frozen=True)
class Setting:
    """Where and how thoroughly one call of run.py measures.

    Attributes:
        device: where everything runs.
        quick: smallest sizes, fewest repeats, no torch.compile: to see that it works, not how fast.
        points: number of two-dimensional samples, where a bench draws some.
        match: only the peers' cases whose name, "bench: library, solver", contains it.
        batch: micro-batch around networks; each bench's own if None.
        networks: how networks run, as in Execution.network; "own" is always among them.
        deadline, now: when to end, by a clock: what is measured in rounds then takes fewer.
    """

    device: torch.device
    quick: bool = False
    points: int = 1_000_000
    match: str = ""
    batch: int | None = None
    networks: tuple[str, ...] = NETWORKS
    deadline: float = math.inf
    now: Callable[[], float] = time.monotonic

    def left(self) -> float:
        """Return how many seconds are left."""
        return self.deadline - self.now()

    def execution(self, batch: int, **fields: Any) -> Execution:
        """Return how a sampler runs here: on this device, with this micro-batch, float32."""
        return Execution.of(device=self.device, batch=batch, **fields)

    @cached_property
    def ops(self) -> Ops:
        """The backend that fastscore chooses by itself."""
        return resolve("auto", self.device)

    @property
    def no_compile(self) -> str | None:
        """Why there is no torch.compile baseline; None if there is one."""
        if self.quick:
            return "--quick"
        return None if has_compiler(self.device) else "no C++ compiler (g++ or clang++)"

    @property
    def graphs(self) -> bool:
        """Whether work is replayed from graphs where it can be, so that launches do not show."""
        return self.device.type == "cuda"

    def tolerance(self, exact: float) -> float:
        """Return what two loops around one network may differ by: TF32 has ten bits, and a network amplifies them."""
        tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        return max(exact, TF32_TOLERANCE) if self.device.type == "cuda" and tf32 else exact


@dataclass
class Case:
    """One measurement: variants of the same work, timed in turn.

    Attributes:
        bench: name of the bench it belongs to.
        name: shape or setting, unique within the bench.
        variants: what is timed, by name.
        pairs: ratios to publish, (variant, baseline): how often the variant runs in the baseline's time.
        check: the gate.
        items: samples or elements that a call makes, and their name.
        moved: bytes that OURS must at least read and write; a copy of as many is timed beside it.
        facts: what else the record should say.
        skipped: what is not timed, with the reason.
        derive: further figures, from the median seconds of each variant.
        costed: variants whose power, energy and memory are read, each in a run of its own.
        recorded: variants that touch nothing but the device, so that a GPU replays them as one graph.
    """

    bench: str
    name: str
    variants: dict[str, Work]
    pairs: Sequence[tuple[str, str]]
    check: Callable[[], list[Check]]
    items: tuple[int, str]
    moved: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    derive: Callable[[dict[str, float]], dict[str, Any]] = field(default=lambda seconds: {})
    costed: Sequence[str] = (OURS,)
    recorded: Sequence[str] = ()


def op_case(
    setting: Setting,
    bench: str,
    name: str,
    ours: Work,
    eager: Callable[..., object],
    arguments: tuple[Any, ...],
    check: Callable[[], list[Check]],
    elements: int,
    bytes_each: int,
) -> Case:
    """Return the case of one operation against eager PyTorch and the same under torch.compile."""
    variants: dict[str, Work] = {OURS: ours, EAGER: lambda: eager(*arguments)}
    skipped = {}
    if setting.no_compile:
        skipped[COMPILED] = setting.no_compile
    else:
        torch.compiler.reset()  # else the shapes of earlier cases count against the recompilation limit
        fast = torch.compile(eager, fullgraph=True, dynamic=False)
        variants[COMPILED] = lambda: fast(*arguments)
    pairs = [(OURS, base) for base in (EAGER, COMPILED) if base in variants]
    facts = {"backend": setting.ops.name, "bytes_per_element": bytes_each}
    return Case(
        bench, name, variants, pairs, check, (elements, "element"), elements * bytes_each, facts=facts,
        skipped=skipped, recorded=(*variants, COPY),
    )  # fmt: skip


def count(text: str) -> int:
    """Return a whole number of a command line, also written 10k or 2M.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    match = re.fullmatch(r"(\d{1,12})([kKmM]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number (examples: 64, 10k, 2M)")
    return int(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()]


@torch.no_grad()
def measure(case: Case, setting: Setting, clock: Clock | None = None) -> dict[str, Any]:
    """Check a case, then time it; return its record.

    Raises:
        RedGate: a check failed; nothing was timed.
    """
    checks = case.check()
    red = [f"{c.name}: error {c.error:.3g}, bound {c.bound:.3g}" for c in checks if not c.ok]
    if red:
        raise RedGate(f"{case.bench} {case.name}: no figures, the result is wrong ({'; '.join(red)})")
    variants = dict(case.variants)
    if case.moved:
        variants[COPY] = copy_of(case.moved, setting.device)
    first = {name: HostClock()(lambda work=work: _finish(work, setting.device), 1) for name, work in variants.items()}
    replay(case, variants, setting)
    if clock is None:
        clock = CudaClock(setting.device) if setting.device.type == "cuda" else HostClock()
    repeats, least = (5, 0.002) if setting.quick else (15, 0.05)
    rounds = paired(variants, clock, repeats, least, setting.left)
    timed = {name: spread(values) for name, values in rounds.items()}
    medians = {name: value["p50"] for name, value in timed.items()}
    record: dict[str, Any] = {
        "bench": case.bench,
        "case": case.name,
        "quick": setting.quick,
        "checks": [asdict(c) for c in checks],
        "seconds": timed,
        "first_call_s": first,
        "repeats": max((len(values) for values in rounds.values()), default=0),
        "ratios": [
            {"of": a, "over": b, **spread([y / x for x, y in zip(rounds[a], rounds[b], strict=True)])}
            for a, b in case.pairs
        ],
        "items": {"count": case.items[0], "name": case.items[1]},
        "skipped": case.skipped,
        "facts": case.facts,
        "derived": case.derive(medians) if variants else {},
    }
    if case.moved and variants:
        record["bandwidth"] = {
            "bytes": case.moved,
            "gb_per_s": case.moved / medians[OURS] / 1e9,
            "copy_gb_per_s": case.moved / medians[COPY] / 1e9,
            "percent_of_copy": 100.0 * medians[COPY] / medians[OURS],
        }
    long = 0.1 if setting.quick else min(2.0, max(0.1, setting.left() / 8))
    costed = (name for name in case.costed if name in variants)
    record["cost"] = {name: telemetry.cost(variants[name], case.items[0], setting.device, long) for name in costed}
    return record


def replay(case: Case, variants: dict[str, Work], setting: Setting) -> None:
    """Put the replay of a graph in the place of each variant that can be one; say which cannot."""
    for name in case.recorded if setting.graphs else ():
        if name in variants:
            try:
                variants[name] = recorded(variants[name], setting.device)
            except Exception as error:  # of the work, of a compiler, of torch
                reason = " ".join(str(error).split())[:200]
                case.skipped[f"graph of {name}"] = f"it cannot be captured, so its launches are timed too ({reason})"


def copy_of(moved: int, device: torch.device) -> Work:
    """Return a copy that reads and writes ``moved`` bytes in all: the floor of work that moves as many."""
    source = torch.zeros(max(1, moved // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _finish(work: Work, device: torch.device) -> None:
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
