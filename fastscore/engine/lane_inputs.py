"""What the samples in lanes were given, each in its lane's line of buffers that stay where they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscore.engine.request import Request
from fastscore.guidance.mixture import Guidance
from fastscore.model.condition_shapes import Condition, Several, Told, each, tensors_of
from fastscore.model.score import ScoreModel


class LaneInputs:
    """Conditions, known data and what guides read, of each lane; lines of empty lanes are zeros or a former sample's.

    Args:
        model, second: the networks as they run.
        lanes: how many.

    Attributes:
        first: the samples' own conditions, [lanes, ..]; None if the network takes none. others: further ones.
        away: what the second output is told. known, mask: known data and where. y, lines: of a guide.
        made: how often a buffer was made, so that what knows their addresses is of no use any more.
    """

    def __init__(self, model: ScoreModel, second: ScoreModel, lanes: int) -> None:
        self.model, self.lanes, self.made = model, lanes, 0
        self.takes = bool(second.classes) or second.cond_shape is not None
        self.first: Condition = None
        self.away: Condition = None
        self.others: list[Condition] = []
        self.known: Tensor | None = None
        self.mask: Tensor | None = None
        self.y: Tensor | None = None
        self.lines: tuple[Tensor, ...] = ()

    def take(self, at: Tensor, part: Request, guidance: Guidance | None, other: Tensor) -> None:
        """Give lanes ``at`` what ``part`` says of their new samples; lanes ``other`` are those of second outputs."""
        own, away = part.cond, part.negative
        if away is None:
            away = own if guidance is None else guidance.null_condition(self.model, own)
        self.first = self._filled(self.first, own, at)
        self.away = self._filled(self.away, away if self.takes else None, at)
        if len(other):
            self.first = self._filled(self.first, away, other)
        self.others += [None] * (len(part.others) - len(self.others))
        for k, further in enumerate(part.others):
            self.others[k] = self._filled(self.others[k], further, at)
        for name in ("known", "mask", "y"):
            setattr(self, name, self._filled(getattr(self, name), getattr(part, name), at))
        lines = self.lines or [None] * len(part.guide)
        self.lines = tuple(self._filled(line, v, at) for line, v in zip(lines, part.guide, strict=True))

    def told(self, terms: tuple[float, ...], at: Tensor | None = None) -> Told:
        """Return what the first output is evaluated with; by ``terms``, if there are, a sum, in lanes ``at`` or all."""
        if not terms:
            return self.first
        return Several((self.first, *self.others[: len(terms) - 1]), terms, at)

    def _filled(self, buffer: Any, values: Any, at: Tensor) -> Any:
        """Return a buffer of all lanes, made if there is none, with values in some of them."""
        if values is None:
            return buffer
        if buffer is None:
            self.made += 1
            buffer = each(lambda v: torch.zeros(self.lanes, *v.shape[1:], dtype=v.dtype, device=v.device), values)
        for own, new in zip(tensors_of(buffer), tensors_of(values), strict=True):
            own[at] = new
        return buffer
