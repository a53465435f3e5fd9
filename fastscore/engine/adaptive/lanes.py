"""Continuous batching: samples in lanes, each at its own noise level, with its own step and at its own stage.

One tick evaluates the network once for all lanes, each at the point that its sample needs next. A sample whose step
is complete accepts or rejects it there and then; one that has arrived leaves its lane, and the next takes it. All of
that is masked arithmetic on the device: the host looks at a flag every POLL ticks, which only says who has arrived, so
no value depends on it. A sample's numbers never depend on the lanes around it, nor on which lane it is in.

Whatever outlives a tick is changed where it lies, and a tick makes the same calls whatever it finds: so one can be
recorded, and replayed for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastscore.engine.adaptive.adjoint import Trail
from fastscore.engine.adaptive.arrivals import Seen, StartingStates, joined
from fastscore.engine.adaptive.brownian import UNITS, Path
from fastscore.engine.adaptive.control import Controller, StepRule
from fastscore.engine.adaptive.cost import Cost
from fastscore.engine.adaptive.field import Field
from fastscore.engine.adaptive.levels import NoiseLevels
from fastscore.engine.adaptive.sums import WeightedSums
from fastscore.engine.cuda_graphs import Work
from fastscore.engine.recorded import Repeated
from fastscore.errors import NonFiniteError, StepSizeError
from fastscore.ops.backend import REFERENCE, Ops
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
    """The lanes of one integration, from clock ``start`` to ``end``; buffers are allocated once, y, k_0, .. in one.

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
        ops: the backend that adds up weighted evaluations.
        graph, networks: whether ticks are recorded, see Repeated; and what the field evaluates.
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
        ops: Ops = REFERENCE,
        graph: str = "off",
        networks: tuple[object, ...] = (),
    ) -> None:
        self.field, self.method, self.levels, self.rule = field, method, levels, rule
        self.start, self.end, self.lanes, self.settle = start, end, lanes, settle
        self.key, self.path, self.trail = key, path, trail
        device, width = key.ids.device, sum(field.parts)
        self.padded, self.index = padded_lanes(lanes), torch.arange(lanes, device=device)

        def scalar(value: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.full((self.padded,), value, dtype=dtype, device=device)

        self.buffer = torch.zeros(method.width, lanes, width, dtype=dtype, device=device)
        self.sums = WeightedSums(self.buffer, ops)
        self.point, self.result, self.error, self.low = (torch.zeros_like(self.buffer[0]) for _ in range(4))
        self.tau, self.h = scalar(start), scalar(rule.first)
        self.counts = torch.zeros(6, self.padded, dtype=torch.int64, device=device)
        self.stage, self.nfe, self.steps, self.rejected, self.fault, self.id = self.counts
        self.live, self.accepted = scalar(0, torch.bool), scalar(0, torch.bool)
        self.cost = Cost.of(torch.zeros(3, 0, dtype=torch.int64), 0, lanes)
        self.controller = Controller(rule, self.padded, device)
        self.ticking = Repeated(graph, device, networks)
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
        tick = self.ready()
        occupants = torch.full((self.lanes,), -1, dtype=torch.int64, device="cpu")  # their samples' positions
        loaded, ticks, arrived, start = 0, 0, [], StartingStates(begin, n, self.lanes)
        with followed(progress, n) as reach:
            free = torch.arange(self.lanes, device="cpu")
            while True:
                if loaded < n and len(free):
                    free = free[: n - loaded]
                    occupants[free] = torch.arange(loaded, loaded + len(free), device="cpu")
                    self.enter(free, occupants[free], start(len(free)), key)
                    loaded += len(free)
                if not bool((occupants >= 0).any()):
                    break
                for _ in range(POLL):
                    tick()
                    if self.trail is not None:
                        self.trail.add(self.accepted, self.tau, self.buffer[0])
                ticks += POLL
                if self.trail is not None:
                    self.trail.settle(occupants)
                seen = self.look()
                finished = (occupants >= 0) & (seen.live == 0)
                if reach is not None:
                    way = (seen.tau - self.start) / (self.end - self.start)
                    reach(loaded - int((occupants >= 0).sum()) + float(way[occupants >= 0].sum()))
                if not bool(finished.any()):
                    free = free[:0]
                    continue
                free = finished.nonzero()[:, 0]
                positions = occupants[free]
                self.raise_faults(free, seen)
                counts[:, positions] = seen.cost[:, free]
                self.cost = Cost.of(counts, ticks, self.lanes)
                at = free.to(self.index.device)
                arrived.append((positions, self.buffer[0][at], self.buffer[1][at]))
                occupants[free] = -1
                if sum(len(part[0]) for part in arrived) >= self.lanes:
                    yield joined(arrived)
                    arrived = []
        if arrived:
            yield joined(arrived)

    def ready(self) -> Work:
        """Empty the lanes, whose ticks then change nothing that matters, and return what does a tick."""
        self._empty()
        if self.path is not None:
            self.path.looks &= self.ticking.recorder is None
        return self.ticking.now(self.tick, self._empty, lambda: self.field.made)

    def _empty(self) -> None:
        self.live.fill_(False)

    def enter(self, lanes: Tensor, positions: Tensor, y: Tensor, key: NoiseKey) -> None:
        """Put new samples into lanes."""
        at, positions = lanes.to(self.index.device), positions.to(self.index.device)
        self.counts[:, at] = 0
        self.key.ids[at] = self.id[at] = key.ids[positions]
        self.key.seed[at] = key.seed if len(key.seed) == 1 else key.seed[positions]
        self.field.load(at, positions)
        self.buffer[:, at] = 0.0  # NaN that an earlier sample left would not vanish under a weight of 0
        self.buffer[0, at] = y
        self.tau[at], self.h[at] = self.start, self.rule.first
        self.low[at] = y.abs() * self._scale(self.tau)[at]
        self.live[at], self.controller.fresh[at] = True, True
        if self.path is not None:
            self.path.reset(at)

    def look(self) -> Seen:
        """Return where the lanes stand, on the host, by one copy: all that it waits for."""
        finite = self.buffer[0].abs().amax(1) < math.inf
        rows = self.counts, self.tau.view(torch.int64)[None], self.live[None]
        return Seen(torch.cat([*(v[:, : self.lanes] for v in rows), finite[None]]).cpu())

    @torch.no_grad()
    def tick(self) -> None:
        """Evaluate every lane once, at its own point, and end the steps that are complete."""
        method, rule, live, y = self.method, self.rule, self.live, self.buffer[0]
        h, reach = self._aim()
        place, weights = method.point(self.stage, self.tau, h)
        if self.path is not None:
            self.buffer[-1].copy_(self.path.increment(live & (self.stage == 1)))
        point = self.sums(weights, self.point)
        k = self.field(point, method.lam(self.tau + place * (reach - self.tau)))
        self.buffer[1 + self.stage[: self.lanes], self.index] = k
        self.counts[:2].add_(live)  # stage and nfe

        complete = live & (self.stage == method.stages)
        weights, against = method.finish(self.tau, h)
        result = point if weights is None else self.sums(weights, self.result)
        if self.field.projects:
            result = self.field.onto(result, method.lam(reach))
        self.accepted.copy_(complete)
        advancing = self.accepted[: self.lanes, None]
        if rule.knots is None and against is not None:
            error = self.field.along(self.sums(against, self.error))
            factor, good, low = self._judge(result, error, reach, complete)
            self.accepted.logical_and_(good)
            torch.where(complete, (h.abs() * factor).clamp_max_(rule.control.longest), self.h, out=self.h)
            torch.where(advancing, low, self.low, out=self.low)
        self.steps.add_(complete)
        self.rejected.add_(complete ^ self.accepted)
        torch.where(self.accepted, reach, self.tau, out=self.tau)
        torch.where(advancing, result, y, out=y)
        if method.fsal:
            torch.where(advancing, self.buffer[method.stages], self.buffer[1], out=self.buffer[1])
        if self.path is not None:
            self.path.accept(self.accepted)
        self.stage.masked_fill_(complete, 1)  # a rejected step's first evaluation serves again
        if not method.fsal:
            self.stage.masked_fill_(self.accepted, 0)

        ended = self.tau == self.end
        going = live & ~(ended & (self.stage >= int(self.settle)))
        if rule.knots is None:
            self.fault.masked_fill_(live & (self.h < self.shortest) & ~ended, 2)
            self.fault.masked_fill_(going & (self.steps >= rule.attempts), 3)
        finite = k.abs().amax(1) < math.inf
        self.fault[: self.lanes].masked_fill_(live[: self.lanes] & ~finite, 1)
        torch.logical_and(going, self.fault == 0, out=live)

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
        length = self.levels.length(self.method.lam(tau))[:, None].to(self.buffer.dtype)
        state, further = self.field.parts
        if not further:
            return length
        return torch.cat([length.expand(-1, state), torch.ones_like(length).expand(-1, further)], 1)

    def raise_faults(self, at: Tensor, seen: Seen) -> None:
        """Raise NonFiniteError or StepSizeError for the first of these lanes whose sample cannot go on."""
        if (lane := next((k for k in at.tolist() if seen.faults[k]), None)) is None:
            return
        fault, steps, sample = (int(v[lane]) for v in (seen.faults, seen.steps, seen.id))
        lam = float(self.method.lam(self.tau)[lane])
        place = f"id {sample} at sigma/alpha = {math.exp(-lam):.4g} after {int(seen.nfe[lane])} evaluations"
        dtype, tolerance = self.buffer.dtype, f"rtol = {self.rule.rtol:g} and atol = {self.rule.atol:g}"
        if fault == 1:
            raise NonFiniteError(f"{place} ({dtype}) is NaN or Inf; the network's output is not finite there")
        if fault == 2:
            raise StepSizeError(
                f"{place} needs a step of less than {self.shortest:.2g} to meet {tolerance} in {dtype}; raise them, or "
                "end the integration earlier"
            )
        raise StepSizeError(
            f"{place} has taken {steps} steps, the most that the solver allows, for {tolerance}; raise "
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
