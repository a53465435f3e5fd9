"""Continuous batching of requests to one adaptive solver: its lanes, which samples of any request enter and leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastscore.engine.adaptive.arrivals import Seen
from fastscore.engine.adaptive.lanes import POLL
from fastscore.engine.adaptive.run import AdaptiveBatches
from fastscore.engine.request import Request
from fastscore.guidance.mixture import BoundPlan
from fastscore.model.condition_shapes import each
from fastscore.model.projection import onto


class StepLanes:
    """Lanes of samples that choose their own steps; entered, driven and left as those of rows are.

    Args:
        batches: the solver and its lanes, which nobody else runs.
    """

    def __init__(self, batches: AdaptiveBatches) -> None:
        self.batches, self.lanes, self.at, self.begun = batches, batches.lanes, set[int](), False
        self.work: Callable[[], None] = self.lanes.tick
        self.seen: Seen | None = None

    def width(self, bound: BoundPlan | None) -> int:
        """Return how many lanes a sample takes."""
        return 1

    @property
    def taken(self) -> set[int]:
        """The lanes that are not free."""
        return self.at

    @torch.no_grad()
    def enter(self, lanes: Sequence[int], bound: BoundPlan | None, part: Request) -> list[int]:
        """Put samples into free lanes, a line of ``part`` each; none of them is done at once."""
        field = self.batches.field
        if not self.begun:
            field.begin(part)
        field.request, self.begun = part, True
        if not self.at:
            self.work = self.lanes.ready()
        states = self.batches.begin(0, len(part))
        self.at |= set(lanes)
        self.lanes.enter(torch.tensor(lanes), torch.arange(len(part)), states, part.key)
        return []

    def begin(self) -> None:
        """Take notice of what has changed in the networks; called where a turn begins.

        A tick is recorded where the lanes are empty, which they may not be for long; until then it is done anew.
        """
        if not self.lanes.ticking.holds(lambda: self.lanes.field.made):
            self.work = self.lanes.tick

    def tick(self) -> list[int]:
        """Evaluate every lane a few times; return the lanes that are done."""
        for _ in range(POLL):
            self.work()
        self.seen = self.lanes.look()
        return [lane for lane in sorted(self.at) if not self.seen.live[lane]]

    @torch.no_grad()
    def leave(self, lanes: Sequence[int]) -> tuple[Tensor, list[Exception | None]]:
        """Take samples out of lanes; return them, [n, *shape], and what is wrong with each."""
        batches, at, errors = self.batches, self._index(lanes), list[Exception | None]()
        for lane in lanes:
            try:
                if self.seen is not None:
                    self.lanes.raise_faults(torch.tensor([lane]), self.seen)
                errors.append(None)
            except ArithmeticError as error:
                errors.append(error)
        (y, k), (state, change) = self.lanes.buffer[:2, at], batches.output
        x = state * y + change * k if change else state * y
        if batches.field.projects:
            x = onto(batches.model, x, each(lambda v: v[at], batches.field.conditions.first), batches.alpha_end)
        self.clear(lanes)
        return x.view(-1, *batches.model.shape), errors

    def clear(self, lanes: Sequence[int]) -> None:
        """Empty lanes."""
        self.lanes.live[self._index(lanes)] = False
        self.at -= set(lanes)

    def _index(self, lanes: Sequence[int]) -> Tensor:
        return torch.tensor(lanes, device=self.lanes.index.device)
