"""P4: what an operation takes and how near it comes to a copy: many launches in one graph, over rotating buffers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from bench.card.card import Card, Facts
from bench.clocks import HostClock, Work
from bench.common import Setting, copy_of
from bench.ops import norms, update
from bench.ops.inputs import Inputs, row
from fastscore.kernels import abi
from fastscore.ops.update import KnownRow

SHAPES = {"64x3072": (64, 3072), "512x3072": (512, 3072), "64x784": (64, 784), "1024x12288": (1024, 12288),
          "16x196608": (16, 196608), "1e6x2": (1_000_000, 2)}  # fmt: skip
LAUNCHES, ROTATED = 200, 2e8  # in a graph; bytes that rotate: several times a cache
BF16, F32 = torch.bfloat16, torch.float32


@dataclass
class Bed:
    """One shape, and the copies of as many bytes that were timed on it."""

    card: Card
    n: int
    d: int
    copies: dict[int, float] = field(default_factory=dict)

    @cached_property
    def sde(self) -> Callable[..., Any]:
        """The SDE row as one writes it in PyTorch."""
        return self.card.compile(update.sde)

    @property
    def setting(self) -> Setting:
        """How the operations are chosen."""
        return Setting(self.card.device)

    def rotated(self, make: Callable[[], Work], moved: int) -> tuple[float, Work]:
        """Return seconds a launch, in one graph over buffers that rotate, and one of the launches."""
        launches = self.card.pick(LAUNCHES, 2)
        buffers = max(1, min(launches, math.ceil(self.card.pick(ROTATED, 1) / moved)))
        works = [make() for _ in range(buffers)]

        def all_of_them() -> None:
            for k in range(launches):
                works[k % buffers]()

        return self.card.timed(self.card.graph(all_of_them), 3) / launches, works[0]

    def measure(self, make: Callable[[], Work], each: float) -> Facts:
        """Return the figures of an operation that must move ``each`` bytes an element."""
        moved = int(each * self.n * self.d)
        seconds, work = self.rotated(make, moved)
        if moved not in self.copies:
            self.copies[moved] = self.rotated(lambda: copy_of(moved, self.card.device), moved)[0]
        copied = self.copies[moved]
        host = HostClock()(work, self.card.pick(50, 1))
        self.card.wait()
        return {"us": 1e6 * seconds, "gb_per_s": moved / seconds / 1e9, "percent_of_copy": 100.0 * copied / seconds,
                "copy_gb_per_s": moved / copied / 1e9, "host_us": 1e6 * host, "bytes": moved}  # fmt: skip

    def row(
        self, noisy: bool, dtype: torch.dtype = F32, mixed: bool = False, known: bool = False, last: bool = False
    ) -> Callable[[], Work]:
        """Return what makes launches of the fused row, each on buffers of its own."""

        def make() -> Work:
            setting, ops = self.setting, self.setting.ops
            inputs = Inputs.of(setting, self.n, self.d, dtype, 0 if noisy else 1)
            kind: dict[str, float] = {"C": update.C} if noisy else {"W0": update.W, "PUSH": 0}
            kind |= {"Q2": 0.1} if mixed else {}
            table = row(setting, A=update.A, B=update.B, P=update.P, Q=update.Q, C_IN=update.C_IN, **kind)
            u, key = torch.empty_like(inputs.F), inputs.key if noisy else None
            F = self.images(inputs.F).contiguous(memory_format=torch.channels_last) if last else inputs.F
            F2 = inputs.F.clone() if mixed else None
            given = KnownRow(inputs.x.clone(), inputs.x > 0, table, inputs.idx, inputs.key) if known else None

            def work() -> None:
                ops.update(inputs.x, F, inputs.hist, table, inputs.idx, key, F2=F2, known=given, out_u=u)

            return work

        return make

    def langevin(self) -> Work:
        """Return a launch of the Langevin step."""
        setting, ops = self.setting, self.setting.ops
        inputs = Inputs.of(setting, self.n, self.d, F32, 0)
        table = row(setting, A=1.0, P=norms.P, Q=norms.Q, SNR=norms.SNR, CAP=1e9)
        scratch = torch.zeros(self.n, abi.WIDTH, device=self.card.device)
        valid = torch.ones(self.n, device=self.card.device)

        def work() -> None:
            ops.langevin(inputs.x, inputs.F, table, inputs.idx, inputs.key, scratch, "sample", valid)

        return work

    def noise(self) -> Work:
        """Return a launch of the row that every sampler starts with."""
        setting, ops = self.setting, self.setting.ops
        inputs, table = Inputs.of(setting, self.n, self.d, F32, 0), row(self.setting, C=1.0)
        return lambda: ops.update(inputs.x, None, inputs.hist, table, inputs.idx, inputs.key)

    def tensor(self, work: Callable[[torch.Tensor], Any]) -> Callable[[], Work]:
        """Return what makes launches of a function of one state."""

        def make() -> Work:
            x = torch.zeros(self.n, self.d, device=self.card.device)
            return lambda: work(x)

        return make

    def quantize(self) -> Callable[[], Work]:
        """Return what makes launches that turn images into bytes."""
        return self.tensor(lambda x: self.setting.ops.quantize(self.images(x)))

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """Return states as images, of three channels where D allows it."""
        return x.view(self.n, 3 if self.d % 3 == 0 else 1, 1, -1)

    def compiled(self) -> Work:
        """Return a launch of the SDE row as one writes it in PyTorch, compiled."""
        inputs, sde = Inputs.of(self.setting, self.n, self.d, F32, 0), self.sde
        sde(inputs.x, inputs.F)  # compiles, once for all buffers
        return lambda: sde(inputs.x, inputs.F)

    def items(self) -> dict[str, tuple[Callable[[], Work], float]]:
        """Return what to measure, and the bytes an element that each must move."""
        return {
            "row ODE": (self.row(noisy=False), 24),
            "row SDE": (self.row(noisy=True), 16),
            "row SDE bf16": (self.row(True, BF16), 12),
            "row SDE bf16, channels last": (self.row(True, BF16, last=True), 12),
            "row SDE, CFG": (self.row(True, mixed=True), 20),
            "row SDE, known": (self.row(True, known=True), 21),
            "norms": (self.langevin, 8),
            "noise": (self.noise, 4),
            "torch.randn": (self.tensor(lambda x: x.normal_()), 4),
            "quantize": (self.quantize(), 5),
            "SDE row of PyTorch, compiled": (self.compiled, 16),
        }


@torch.no_grad()
def run(card: Card) -> None:
    """Measure every operation on every shape."""
    shapes = card.pick(SHAPES, {"4x12": (4, 12)})
    for name, (n, d) in shapes.items():
        bed = Bed(card, n, d)
        card.do_all({f"{title} {name}": partial(bed.measure, make, each)
                     for title, (make, each) in bed.items().items()})  # fmt: skip
