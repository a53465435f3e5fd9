r"""Gradients through an integration: of the map that was computed, its accepted steps held fixed.

A Runge-Kutta step is made of weighted sums and of evaluations of the field,

    p_j = y + h sum_i a_ji k_i,   k_j = f(p_j),   y' = y + h sum_j b_j k_j,

and its transpose of the same weights and of vector-Jacobian products, one an evaluation, in the opposite order:

    k*_j = h b_j y'* + h sum_(i > j) a_ij p*_i,   p*_j = (df/dp_j)^T k*_j,   y* = y'* + sum_j p*_j.

So the gradient is exact up to rounding for the numbers that the run returned, whatever its tolerance: unlike the
continuous adjoint, which solves another ODE with errors of its own. It costs two forward passes and one backward pass
of the network for each evaluation of an accepted step, and keeps one point [lanes, D] for each of them together with
the graph of a single evaluation: memory does not grow with the network times the steps.

Source: Hager 2000, Runge-Kutta methods in optimal control and the transformed adjoint system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastscore.engine.adaptive.field import Field
from fastscore.engine.kept import Kept
from fastscore.solvers.adaptive_steps import Method


class Trail:
    """The clocks that each sample of a run reached by accepted steps, and its states there if they are wanted too.

    Args:
        states: whether they are.
        keep: which states of a path to hold, state k being that after k accepted steps; all if left out.
    """

    def __init__(self, states: bool = False, keep: Kept | None = None) -> None:
        self.with_states, self.keep = states, keep
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.held: list[Records] = []
        self.recent: Records | None = None  # last states of samples under way, which may be among those from the end
        self.counts = torch.zeros(0, dtype=torch.int64)

    def add(self, accepted: Tensor, clock: Tensor, state: Tensor) -> None:
        """Take notice of a tick: the lanes (bool) whose step was accepted, and where all of them are now."""
        self.pending.append((accepted.clone(), clock.clone(), (state if self.with_states else state[:, :0]).clone()))

    def settle(self, occupants: Tensor) -> None:
        """Say which samples were in the lanes during the last ticks, [lanes] on the host."""
        accepted, clocks, states = (torch.stack(v)[:, : len(occupants)] for v in zip(*self.pending, strict=True))
        states = states[accepted].cpu()
        accepted, clocks = accepted.cpu(), clocks.cpu()
        _, lane = accepted.nonzero(as_tuple=True)
        position, under_way = occupants[lane], occupants[occupants >= 0]
        room = max(under_way.tolist(), default=-1) + 1
        self.counts = torch.cat([self.counts, self.counts.new_zeros(max(0, room - len(self.counts)))])
        number = self.counts[position] + accepted.cumsum(0)[accepted]
        self.counts[under_way] += accepted.sum(0)[occupants >= 0]
        self.pending = []
        self._hold(Records(position, number, clocks[accepted], states), under_way)

    def _hold(self, new: Records, under_way: Tensor) -> None:
        """Hold what is kept whatever comes, and of samples under way what may be among their last states."""
        if self.keep is None:
            self.held.append(new)
            return
        early = self.keep.early(new.number)
        self.held.append(new[early])
        if not self.keep.depth:
            return
        recent = new[~early] if self.recent is None else Records.cat([self.recent, new[~early]])
        recent = recent[recent.number > self.counts[recent.position] - self.keep.depth]
        staying = torch.isin(recent.position, under_way)
        self.held.append(recent[~staying])
        self.recent = recent[staying]

    def records(self) -> Records:
        """Return all that is held, by sample and number."""
        found = Records.cat(self.held if self.recent is None else [*self.held, self.recent])
        return found[(found.position * (int(self.counts.max()) + 1) + found.number).argsort()]

    def knots(self, start: float, end: float) -> Tensor:
        """Return ``start`` and the clocks that followed, float64 [n, K]; ``end`` again where a sample took fewer."""
        found = self.records()
        clocks = torch.full((len(self.counts), 1 + int(self.counts.max())), end, dtype=torch.float64)
        clocks[:, 0] = start
        clocks[found.position, found.number] = found.clock
        return clocks


@dataclass(frozen=True)
class Records:
    """Accepted steps: whose, which of its steps (from 1), the clock after it, and the state there, [R] and [R, D]."""

    position: Tensor
    number: Tensor
    clock: Tensor
    state: Tensor

    def __getitem__(self, at: Tensor) -> Records:
        return Records(self.position[at], self.number[at], self.clock[at], self.state[at])

    @staticmethod
    def cat(parts: list[Records]) -> Records:
        """Return all of several."""
        names = ("position", "number", "clock", "state")
        return Records(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


class _Transported(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, start: Tensor, end: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return end.view_as(end)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise ValueError("create_graph = True: a probability flow is differentiable once; leave create_graph out")
        return ctx.back(gradient), None, None


def transported(start: Tensor, end: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the ``end`` of an integration; ``back`` makes a gradient in its ``start`` of one in it, once."""
    return _Transported.apply(start, end, back)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def pull_back(field: Field, method: Method, start: Tensor, knots: Tensor, gradient: Tensor, lanes: int) -> Tensor:
    """Return the gradient in the states at the start [n, width], given that in those at the end.

    Args:
        field: differentiable in its state; loaded here with ``lanes`` samples at a time, the tail padded.
        method: the step, without noise.
        knots: clocks that steps lead to, float64 [n, K].
    """
    result, n = torch.empty_like(start), len(start)
    everyone = torch.arange(lanes, device=start.device)
    for first in range(0, n, lanes):
        positions = (first + everyone).clamp_max(n - 1)
        field.load(everyone, positions)
        steps = list(pairwise(knots[positions.to(knots.device)].to(start.device).unbind(1)))
        back = _Steps(field, method, start[positions], steps)(gradient[positions])
        result[first : first + lanes] = back[: n - first]
    return result


class _Steps:
    """The steps of one micro-batch, taken once to learn the points that they evaluate."""

    def __init__(self, field: Field, method: Method, y: Tensor, steps: list[tuple[Tensor, Tensor]]) -> None:
        self.field, self.method, self.steps = field, method, steps
        # The last evaluation of a method that shares it is the next step's first: no part of this one's result.
        self.stages = method.stages - int(method.fsal)
        self.points: list[list[tuple[Tensor, Tensor]]] = []
        for tau, reach in steps:
            states, points = [y], []
            for j in range(self.stages):
                place, weights = self._weights(j, tau, reach)
                points.append((_combined(weights, states), method.lam(tau + place * (reach - tau))))
                states.append(field(*points[-1]))
            y = _combined(self._weights(self.stages, tau, reach)[1], states)
            self.points.append(points)

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the gradient in the first state."""
        for (tau, reach), points in zip(reversed(self.steps), reversed(self.points), strict=True):
            columns = self._weights(self.stages, tau, reach)[1].to(gradient).unbind(1)
            parts = [column[:, None] * gradient for column in columns[: 1 + self.stages]]  # in y, k_0, k_1, ..
            for j in reversed(range(self.stages)):
                in_point = self._product(*points[j], parts[1 + j])
                for i, column in enumerate(self._weights(j, tau, reach)[1].to(gradient).unbind(1)[: 1 + j]):
                    parts[i] = parts[i] + column[:, None] * in_point
            gradient = parts[0]
        return gradient

    def _weights(self, stage: int, tau: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Return the place and the weights of a point; after the last one those of the result."""
        h, number = reach - tau, torch.full_like(tau, stage, dtype=torch.int64)
        if stage < self.stages or self.method.fsal:
            return self.method.point(number, tau, h)
        weights, _ = self.method.finish(tau, h)
        assert weights is not None
        return torch.ones_like(h), weights

    def _product(self, point: Tensor, lam: Tensor, gradient: Tensor) -> Tensor:
        """Return (df/dp)^T gradient."""
        with torch.enable_grad():
            at = point.detach().requires_grad_()
            return torch.autograd.grad(self.field(at, lam), at, gradient)[0]


def _combined(weights: Tensor, states: list[Tensor]) -> Tensor:
    """Return sum_j weights[:, j] states[j]."""
    columns = weights.to(states[0]).unbind(1)
    return sum((c[:, None] * v for c, v in zip(columns[1:], states[1:], strict=False)), columns[0][:, None] * states[0])
