"""Runs of an adaptive solver: what engine/batches.py is for plans, with slots in place of micro-batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastscore.engine.adaptive.brownian import Path
from fastscore.engine.adaptive.control import Rule
from fastscore.engine.adaptive.cost import Effort
from fastscore.engine.adaptive.levels import Level, Levels, angle
from fastscore.engine.adaptive.slots import Slots, lanes_of
from fastscore.engine.loop import Step
from fastscore.model.conditions import Inputs, condition_buffer
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import Ops
from fastscore.ops.noise import NoiseKey
from fastscore.process.grid import Span
from fastscore.process.schedule import Schedule, lam
from fastscore.solvers.adaptive import Adaptive, GottaGoFast
from fastscore.solvers.adaptive_steps import method_of


class ScoreField:
    """p x + q F of a network, for the sample in each slot.

    Args:
        net_dtype: of the network's input.
    """

    def __init__(
        self,
        model: ScoreModel,
        levels: Levels,
        slots: int,
        device: torch.device,
        dtype: torch.dtype,
        net_dtype: torch.dtype,
    ) -> None:
        self.model, self.levels, self.dtype, self.net_dtype = model, levels, dtype, net_dtype
        self.parts: tuple[int, int] = (math.prod(model.shape), 0)
        self.cond = condition_buffer(model, slots, dtype, device)
        self.given: Tensor | None = None  # the conditions of the run's samples

    def load(self, slots: Tensor, positions: Tensor) -> None:
        """Give slots the conditions of their new samples."""
        if self.cond is not None and self.given is not None:
            self.cond[slots] = self.given[positions]

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        """Return the quantity of ``levels``, [slots, D]; lam is float64 [lanes]."""
        level = self.levels.at(lam)
        p, q = (column[: len(y), None].to(self.dtype) for column in (level.p, level.q))
        return p * y + q * self.network(y, level).to(self.dtype)

    def network(self, y: Tensor, level: Level) -> Tensor:
        """Return F, [slots, D] in the network's dtype."""
        u = (level.c_in[: len(y), None].to(self.dtype) * y).to(self.net_dtype).view(-1, *self.model.shape)
        F = self.model.net(u, level.c_noise[: len(y)].to(self.dtype), self.cond)
        if F.shape != u.shape:
            raise ValueError(f"the network returned {tuple(F.shape)} for an input of {tuple(u.shape)}")
        return F.reshape(len(y), -1)


class AdaptiveBatches:
    """Draws samples with an adaptive solver.

    Args:
        model: its network already lives on ``device``.
        schedule: the tolerances and the undenoised state are meant on it.
        solver: see solvers/adaptive.py.
        span: times of ``schedule``, and what is returned at the end.
        slots: samples at once.
        dtype: of the state; net_dtype: of the network's input.
        ops: the backend that makes normals.
    """

    way = "off"

    def __init__(
        self,
        model: ScoreModel,
        schedule: Schedule,
        solver: Adaptive,
        span: Span,
        slots: int,
        device: torch.device,
        dtype: torch.dtype,
        ops: Ops,
        net_dtype: torch.dtype,
    ) -> None:
        start, end = span(schedule).tolist()
        self.model, self.solver, self.noisy = model, solver, isinstance(solver, GottaGoFast)
        method = method_of(solver, device)
        levels = Levels(model, schedule, method.quantity, start, end, device)
        ends = [max(float(lam(schedule, t)), solver.earliest) for t in (start, end)]
        if solver.clock == "angle":
            ends = [angle(v) for v in ends]
        self.key = NoiseKey(*(torch.zeros(n, dtype=torch.int64, device=device) for n in (1, slots)))
        width = math.prod(model.shape)
        path = None
        if self.noisy:
            path = Path(self.key, ends[1] - ends[0], width, lanes_of(slots), dtype, ops)
        self.field = ScoreField(model, levels, slots, device, dtype, net_dtype)
        self.slots = Slots(
            self.field,
            method,
            levels,
            Rule.of(solver),
            *ends,
            slots=slots,
            settle=span.clean,
            key=self.key,
            dtype=dtype,
            path=path,
        )
        top = float(torch.hypot(*(torch.as_tensor(v(schedule.T)) for v in (schedule.alpha, schedule.sigma))))
        self.std = schedule.prior_std / top
        last = ends[1] if solver.clock == "angle" else angle(ends[1])
        self.output = _output(method.quantity, last, span.clean, schedule, end)
        self._busy = False

    @property
    def effort(self) -> Effort:
        """What the last run cost."""
        return self.slots.effort

    def prepare(self, key: NoiseKey, cond: Tensor | None) -> dict[str, float | str]:
        """Compile now; return what it took, in seconds."""
        self.field.given = cond
        start = time.perf_counter()
        y = self.slots.buffer[0]
        with torch.no_grad():
            self.field(y, self.slots.method.lam(self.slots.tau)).sum().item()  # waits for the device
        return {"first_s": time.perf_counter() - start, "capture_s": 0.0, "graph": self.way}

    def stream(
        self,
        key: NoiseKey,
        cond: Tensor | None,
        noise: Tensor | None = None,
        callback: Callable[[Step], None] | None = None,
        progress: bool = False,
        inputs: Inputs | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (positions in ``key``, samples) as they arrive, about as many at a time as there are slots.

        Args:
            noise: recorded normals of the prior [1, n, D], or None for the generated ones.
            progress: show a progress bar.
            inputs: not used; they belong to the rows of a plan.

        Raises:
            ValueError: a callback, or recorded noise for a stochastic solver.
            RuntimeError: this is in the middle of a run already.
            NonFiniteError: a sample became NaN or Inf.
            StepSizeError: the tolerance cannot be reached.
        """
        if callback is not None:
            raise ValueError("callback: an adaptive solver has no rows; leave it out, or use a solver with a grid")
        if noise is not None and self.noisy:
            raise ValueError("noise: an adaptive SDE solver draws as many normals as it needs; leave recorded ones out")
        if self._busy:
            raise RuntimeError("this Sampler is in the middle of a run; use another one inside a thread")
        self._busy = True
        try:
            dtype, d = self.slots.buffer.dtype, math.prod(self.model.shape)
            self.key.seed.copy_(key.seed)
            self.field.given = cond

            def begin(first: int, last: int) -> Tensor:
                if noise is not None:
                    return noise[0, first:last].to(dtype) * self.std
                return NoiseKey(key.seed, key.ids[first:last]).normal(0, d, dtype) * self.std

            for at, y, k in self.slots.run(len(key.ids), begin, key.ids, progress):
                state, change = self.output
                x = state * y + change * k if change else state * y
                yield at, x.view(-1, *self.model.shape)
        finally:
            self._busy = False


def _output(quantity: str, phi: float, clean: bool, schedule: Schedule, end: float) -> tuple[float, float]:
    """Return the weights of y and its last evaluation k that make the sample.

    On the unit circle D = cos phi y - sin phi v = (y - sin phi eps) / cos phi, and sin phi eps =
    (sin^2 phi y - drift) / 2. Without the estimate the state is that of the schedule.
    """
    if not clean:
        return math.hypot(float(schedule.alpha(end)), float(schedule.sigma(end))), 0.0
    cos, sin = math.cos(phi), math.sin(phi)
    return {
        "v": (cos, -sin),
        "eps": (1.0 / cos, -sin / cos),
        "drift": ((1.0 - 0.5 * sin * sin) / cos, 0.5 / cos),
    }[quantity]
