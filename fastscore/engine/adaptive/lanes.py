"""Continuous batching: samples in lanes, each at its own noise level, with its own step and at its own stage.

One tick evaluates the network once for all lanes, each at the point that its sample needs next. A sample whose step
is complete accepts or rejects it there and then; one that has arrived leaves its lane, and the next takes it. All of
that is masked arithmetic on the device: the host looks at a flag every POLL ticks, which only says who has arrived, so
no value depends on it. A sample's numbers never depend on the lanes around it, nor on which lane it is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastscore.engine.adaptive.adjoint import Trail
from fastscore.engine.adaptive.brownian import UNITS, Path
from fastscore.engine.adaptive.control import Controller, StepRule
from fastscore.engine.adaptive.cost import Cost
from fastscore.engine.adaptive.field import Field
from fastscore.engine.adaptive.levels import NoiseLevels
from fastscore.errors import NonFiniteError, StepSizeError
from fastscore.ops.noise import NoiseKey
from fastscore.ops.norms import sum_of_squares
from fastscore.output.progress import Told, followed
from fastscore.solvers.adaptive_steps import Method

POLL = 4
SHORTEST = 1e-10  # of the way, below which a step is given up
# The scalars of the lanes fill whole vectors, and one thread's share: the last elements of a tensor go through other
# code than the rest, whose exp and log may differ in the last bit.
VECTOR, MAX_LANES = 16, 1 << 15


class Lanes:
    """The lanes of one integration, from clock ``start`` to ``end``; buffers are allocated once.

    Args:
        field: what is integrated.
        method: the step.
        levels: of the schedule that the tolerances are meant on.
        rule: acceptance and step size.
        start, end: of the clock, in either direction.
        lanes: how many samples at once.
        settle: whether the evaluation at the end is wanted too; it is there already with ``method.fsal``.
        key: its ids belong to the lanes.
        dtype: of the state.
        path: Brownian paths of the lanes, for a method with noise.
        trail: records the accepted steps.
    """

    def __init__(
        self,
        field: Field,
        method: Method,
        levels: NoiseLevels,
        rule: StepRule,
        start: float,
        end: float,
        *,
        lanes: int,
        settle: bool,
        key: NoiseKey,
        dtype: torch.dtype,
        path: Path | None = None,
        trail: Trail | None = None,
    ) -> None:
        self.field, self.method, self.levels, self.rule = field, method, levels, rule
        self.start, self.end, self.lanes, self.settle = start, end, lanes, settle
        self.key, self.path, self.trail = key, path, trail
        device, width = key.ids.device, sum(field.parts)
        self.padded, self.index = padded_lanes(lanes), torch.arange(lanes, device=device)

        def scalar(value: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.full((self.padded,), value, dtype=dtype, device=device)

        # y, k_0, k_1, ..; rows are added up with weights.
        self.buffer = torch.zeros(method.width, lanes, width, dtype=dtype, device=device)
        self.spare, self.low = (torch.zeros(lanes, width, dtype=dtype, device=device) for _ in range(2))
        self.tau, self.h = scalar(start), scalar(rule.first)
        self.stage, self.nfe, self.steps, self.rejected, self.fault, self.id = (
            scalar(0, torch.int64) for _ in range(6)
        )
        self.live = scalar(0, torch.bool)
        self.cost = Cost.of(torch.zeros(3, 0, dtype=torch.int64), 0, lanes)
        self.controller = Controller(rule, self.padded, device)
        self.shortest = abs(end - start) * (SHORTEST if path is None else 1.0 / UNITS)

    def run(
        self, n: int, begin: Callable[[int, int], Tensor], key: NoiseKey, progress: Told = False
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Integrate samples 0 .. n-1; yield (positions, y, k) of those that arrived, k being their last evaluation 0.

        Args:
            begin: begin(first, last) returns the initial states, [last - first, width].
            key: of the samples, for noise and messages.
            progress: show a progress bar; or what is called with how many samples are done, parts of one included.

        Raises:
            NonFiniteError: a sample became NaN or Inf.
            StepSizeError: a step fell below what can be resolved, or a sample took too many.
        """
        counts = torch.zeros(3, n, dtype=torch.int64, device="cpu")
        self.cost = Cost.of(counts, 0, self.lanes)
        self.live.fill_(False)
        occupants = torch.full((self.lanes,), -1, dtype=torch.int64, device="cpu")  # their samples' positions
        loaded, ticks, arrived, start = 0, 0, [], _StartingStates(begin, n, self.lanes)
        with followed(progress, n) as reach:
            free = torch.arange(self.lanes, device="cpu")
            while True:
                if loaded < n and len(free):
                    free = free[: n - loaded]
                    occupants[free] = torch.arange(loaded, loaded + len(free), device="cpu")
                    self._enter(free, occupants[free], start(len(free)), key)
                    loaded += len(free)
                if not bool((occupants >= 0).any()):
                    break
                for _ in range(POLL):
                    self._tick()
                ticks += POLL
                if self.trail is not None:
                    self.trail.settle(occupants)
                finished = (occupants >= 0) & ~self.live[: self.lanes].cpu()
                if reach is not None:
                    way = ((self.tau - self.start) / (self.end - self.start))[: self.lanes].cpu()
                    reach(loaded - int((occupants >= 0).sum()) + float(way[occupants >= 0].sum()))
                if not bool(finished.any()):
                    free = free[:0]
                    continue
                free = finished.nonzero()[:, 0]
                at, positions = free.to(self.index.device), occupants[free]
                self._raise_faults(at)
                counts[:, positions] = torch.stack([self.nfe[at], self.steps[at], self.rejected[at]]).cpu()
                self.cost = Cost.of(counts, ticks, self.lanes)
                arrived.append((positions, self.buffer[0][at], self.buffer[1][at]))
                occupants[free] = -1
                if sum(len(part[0]) for part in arrived) >= self.lanes:
                    yield _joined(arrived)
                    arrived = []
        if arrived:
            yield _joined(arrived)

    def _enter(self, lanes: Tensor, positions: Tensor, y: Tensor, key: NoiseKey) -> None:
        """Put new samples into lanes."""
        at, positions = lanes.to(self.index.device), positions.to(self.index.device)
        self.key.ids[at] = self.id[at] = key.ids[positions]
        self.key.seed[at] = key.seed if len(key.seed) == 1 else key.seed[positions]
        self.field.load(at, positions)
        self.buffer[0][at] = y
        self.tau[at], self.h[at] = self.start, self.rule.first
        for count in (self.stage, self.nfe, self.steps, self.rejected, self.fault):
            count[at] = 0
        self.low[at] = y.abs() * self._scale(self.tau)[at]
        self.live[at], self.controller.fresh[at] = True, True
        if self.path is not None:
            self.path.reset(at)

    @torch.no_grad()
    def _tick(self) -> None:
        """Evaluate every lane once, at its own point, and end the steps that are complete."""
        method, rule = self.method, self.rule
        h, reach = self._aim()
        place, weights = method.point(self.stage, self.tau, h)
        if self.path is not None:
            self.buffer[-1] = self.path.increment(self.live & (self.stage == 1))
        point = self._combine(weights)
        k = self.field(point, method.lam(self.tau + place * (reach - self.tau)))
        self.buffer[1 + self.stage[: self.lanes], self.index] = k
        self.stage += self.live
        self.nfe += self.live

        complete = self.live & (self.stage == method.stages)
        weights, against = method.finish(self.tau, h)
        result = point if weights is None else self._combine(weights)
        if self.field.projects:
            result = self.field.onto(result, method.lam(reach))
        low = accepted = None
        if rule.knots is None and against is not None:
            error = self.field.along(self._combine(against))
            factor, accepted, low = self._judge(result, error, reach, complete)
            self.h = torch.where(complete, (h.abs() * factor).clamp_max(rule.control.longest), self.h)
        accepted = complete if accepted is None else accepted & complete
        self.steps += complete
        self.rejected += complete & ~accepted
        self.tau = torch.where(accepted, reach, self.tau)
        advancing = accepted[: self.lanes, None]
        self.buffer[0] = torch.where(advancing, result, self.buffer[0])
        if self.trail is not None:
            self.trail.add(accepted, self.tau, self.buffer[0])
        if low is not None:
            self.low = torch.where(advancing, low, self.low)
        if method.fsal:
            self.buffer[1] = torch.where(advancing, self.buffer[method.stages], self.buffer[1])
        if self.path is not None:
            self.path.accept(accepted)
        again = torch.ones_like(self.stage) if method.fsal else (~accepted).to(torch.int64)
        self.stage = torch.where(complete, again, self.stage)

        arrived = (self.tau == self.end) & (self.stage >= int(self.settle))
        if rule.knots is None:
            short = (self.tau != self.end) & (self.h < self.shortest)
            self.fault.masked_fill_(self.live & short, 2)
            self.fault.masked_fill_(self.live & ~arrived & (self.steps >= rule.attempts), 3)
        self.fault[: self.lanes].masked_fill_(self.live[: self.lanes] & ~torch.isfinite(k).all(1), 1)
        self.live = self.live & ~arrived & (self.fault == 0)

    def _aim(self) -> tuple[Tensor, Tensor]:
        """Return the signed step of every lane, and the clock that it leads to: exactly the end for the last one."""
        remaining = self.end - self.tau
        if self.rule.knots is not None:
            reach = self.rule.knots[(self.steps + 1).clamp_max(len(self.rule.knots) - 1)]
            return (reach - self.tau).masked_fill(remaining == 0.0, 0.0), reach
        last = self.h >= remaining.abs()
        h = torch.where(last, remaining, torch.copysign(self.h, remaining))
        if self.path is not None:
            h = self.path.aim(h, last)
        return h, (self.tau + h).masked_fill(last, self.end)

    def _combine(self, weights: Tensor) -> Tensor:
        """Return sum_j weights[:, j] buffer[j], each product and each sum rounded on its own, [lanes, width]."""
        columns = weights[: self.lanes].to(self.buffer.dtype)
        total = columns[:, 0:1] * self.buffer[0]
        for j in range(1, weights.shape[1]):
            torch.mul(columns[:, j : j + 1], self.buffer[j], out=self.spare)
            total.add_(self.spare)
        return total

    def _judge(self, result: Tensor, error: Tensor, reach: Tensor, complete: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return factor and acceptance of the steps [padded], and |x_low| of the chosen schedule [lanes, width]."""
        scale = self._scale(reach)[: self.lanes]
        low = (result - error).abs_().mul_(scale)
        bound = torch.maximum(low, self.low).mul_(self.rule.rtol).clamp_min_(self.rule.atol)
        ratio = error.mul_(scale).div_(bound)
        squared = self.h.new_zeros(self.padded)
        for part, size in zip(ratio.split(self.field.parts, 1), self.field.sizes, strict=True):
            if part.shape[1]:
                squared[: self.lanes] += sum_of_squares(part).double() / size
        return *self.controller(squared, complete), low

    def _scale(self, tau: Tensor) -> Tensor:
        """Return the factor from the state to x of the chosen schedule, [padded, width]; 1 for the further columns."""
        length = self.levels.at(self.method.lam(tau)).length[:, None].to(self.buffer.dtype)
        state, further = self.field.parts
        if not further:
            return length
        return torch.cat([length.expand(-1, state), torch.ones_like(length).expand(-1, further)], 1)

    def _raise_faults(self, at: Tensor) -> None:
        fault = torch.where(torch.isfinite(self.buffer[0][at]).all(1), self.fault[at], 1).tolist()
        faulty = next((k for k, code in enumerate(fault) if code), None)
        if faulty is None:
            return
        lane = at[faulty]
        sample, lam = int(self.id[lane]), float(self.method.lam(self.tau)[lane])
        place = f"id {sample} at sigma/alpha = {math.exp(-lam):.4g} after {int(self.nfe[lane])} evaluations"
        dtype, tolerance = self.buffer.dtype, f"rtol = {self.rule.rtol:g} and atol = {self.rule.atol:g}"
        if fault[faulty] == 1:
            raise NonFiniteError(f"{place} ({dtype}) is NaN or Inf; the network's output is not finite there")
        if fault[faulty] == 2:
            raise StepSizeError(
                f"{place} needs a step of less than {self.shortest:.2g} to meet {tolerance} in {dtype}; raise them, or "
                "end the integration earlier"
            )
        raise StepSizeError(
            f"{place} has taken {int(self.steps[lane])} steps, the most that the solver allows, for {tolerance}; raise "
            "them, or the solver's attempts"
        )


def padded_lanes(lanes: int) -> int:
    """Return how many scalars ``lanes`` samples take.

    Raises:
        ValueError: more than one thread's share.
    """
    if lanes > MAX_LANES:
        raise ValueError(f"batch = {lanes}: an adaptive solver holds at most {MAX_LANES} samples at once")
    return -(-lanes // VECTOR) * VECTOR


class _StartingStates:
    """Initial states, made for as many samples at once as there are lanes."""

    def __init__(self, begin: Callable[[int, int], Tensor], n: int, block: int) -> None:
        self.begin, self.n, self.block, self.computed = begin, n, block, 0
        self.queue: Tensor | None = None

    def __call__(self, count: int) -> Tensor:
        while self.queue is None or len(self.queue) < count:
            last = min(self.computed + self.block, self.n)
            new = self.begin(self.computed, last)
            self.queue, self.computed = new if self.queue is None else torch.cat([self.queue, new]), last
        head, self.queue = self.queue[:count], self.queue[count:]
        return head


def _joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = zip(*parts, strict=True)
    return torch.cat(a), torch.cat(b), torch.cat(c)
