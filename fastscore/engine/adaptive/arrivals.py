"""What the host holds of an integration: where the lanes stand, states that samples start from, those that arrived."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Seen:
    """Where the lanes stand as the host saw it; see Lanes.look.

    ``faults``: 1 is not finite, 2 too short a step, 3 too many; 0 is none.
    """

    def __init__(self, rows: Tensor) -> None:
        _, self.nfe, self.steps, _, fault, self.id, tau, self.live, finite = rows
        self.cost, self.tau = rows[1:4], tau.view(torch.float64)
        self.faults = torch.where(finite == 1, fault, 1)


class StartingStates:
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


def joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions, states and last evaluations of several arrivals."""
    a, b, c = zip(*parts, strict=True)
    return torch.cat(a), torch.cat(b), torch.cat(c)
