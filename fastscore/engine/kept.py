"""Which states of a path are kept: some by their number, counted from noise or, if negative, from the end; a slice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor

from fastscore.errors import short

Steps = int | Sequence[int] | slice | None


@dataclass(frozen=True)
class Kept:
    """The states of a path that are kept, in rising order; state 0 is the prior's, -1 the sample.

    The length of an adaptive path is known at its end only: what a choice may still ask for until then, ``early`` and
    ``depth`` say, and no more than that is held.

    Args:
        steps: numbers, a slice of them with a positive step, or None for all states.

    Raises:
        ValueError: no number at all, something that is none, or a slice that runs backwards.
    """

    steps: tuple[int, ...] | slice

    @classmethod
    def of(cls, steps: Steps) -> Kept:
        """Return the choice that an argument stands for."""
        if steps is None:
            return cls(slice(None))
        if isinstance(steps, slice):
            ends = [v for v in (steps.start, steps.stop, steps.step) if v is not None]
            if not all(_whole(v) for v in ends) or (steps.step is not None and steps.step < 1):
                raise ValueError(f"steps = {steps} must be a slice of whole numbers with a step of at least 1")
            return cls(steps)
        given: Any = list(steps) if isinstance(steps, Iterable) else [steps]
        if not given or isinstance(steps, str) or not all(_whole(v) for v in given):
            raise ValueError(f"steps = {short(steps)} must be whole numbers, as [0, 5, -1], a slice, or None for all")
        return cls(tuple(sorted({int(v) for v in given}, key=lambda v: (v < 0, v))))

    def rows(self, length: int) -> list[int]:
        """Return the numbers of the states kept of a path of ``length`` states; -1 for one that it does not have."""
        if isinstance(self.steps, slice):
            return list(range(length)[self.steps])
        numbers = [k if k >= 0 else length + k for k in self.steps]
        return [k if 0 <= k < length else -1 for k in numbers]

    def within(self, length: int) -> list[int]:
        """Return the numbers of the states kept of a path whose ``length`` is known, rising, each once.

        Raises:
            ValueError: one that it does not have; or none is chosen.
        """
        rows = sorted(set(self.rows(length)))
        if not rows or rows[0] < 0:
            chosen = self.steps if isinstance(self.steps, slice) else list(self.steps)
            raise ValueError(f"steps = {chosen} must be states that there are: 0 .. {length - 1}, or -{length} .. -1")
        return rows

    @property
    def depth(self) -> int:
        """How many of its last states a path has to hold until its end is known."""
        if isinstance(self.steps, slice):
            return max(0, -(self.steps.start or 0))
        return max(0, *(-k for k in self.steps), 0)

    def early(self, number: Tensor) -> Tensor:
        """Return whether states are kept, or may be, however long the path becomes; bool like ``number``."""
        if not isinstance(self.steps, slice):
            return (number[..., None] == number.new_tensor([k for k in self.steps if k >= 0])).any(-1)
        start, stop, step = self.steps.start or 0, self.steps.stop, self.steps.step or 1
        if start < 0:
            return number < 0
        chosen = (number >= start) & ((number - start) % step == 0)
        return chosen if stop is None or stop < 0 else chosen & (number < stop)


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
