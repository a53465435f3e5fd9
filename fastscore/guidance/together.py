"""The evaluations of a mixed row as one call, where all of them are of one network at one input."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore.guidance.told import Conditions
from fastscore.model.condition_shapes import Condition, Several, each, tensors_of
from fastscore.model.score import ScoreModel, evaluate


class Together:
    """F under each condition of a row, and F2, as one call with k micro-batches of lines.

    Inputs and conditions of all lines lie in buffers of their own: a row writes its input once more for each further
    evaluation and lays out nothing else. What is mixed of the outputs, and how, is as of one call after the other.

    Args:
        model: the network of all of them.
        conditions: of a micro-batch.
        terms: weights of the conditions that F is the sum of; empty where it is of the first alone.
        second: whether there is an F2, under the null or the negative condition.
        inputs: u of a micro-batch, and room for as many more as there are evaluations, [most, batch, D].

    Attributes:
        fits: whether the conditions that were loaded are of one shape, without which there is no such call.
    """

    def __init__(
        self, model: ScoreModel, conditions: Conditions, terms: tuple[float, ...], second: bool, inputs: Tensor
    ) -> None:
        self.model, self.conditions, self.second = model, conditions, second
        self.terms, self.calls = tuple(w for w in terms if w), calls_of(terms, second)
        self.places = [k for k, w in enumerate(terms) if w] or [0]
        self.first, self.further = inputs[:1], inputs[1 : self.calls]
        self.input = inputs[: self.calls].flatten(0, 1).view(-1, *model.shape)
        self.cond: Condition = None
        self.fits, self.made = False, 0

    def load(self) -> None:
        """Lay out the conditions that were loaded, one evaluation after the other."""
        conditions = self.conditions
        told = [*(conditions.all[k] for k in self.places), *([conditions.second] if self.second else [])]
        if self.made != conditions.made:
            shapes = [[(v.dtype, v.shape) for v in tensors_of(cond)] for cond in told]
            fits = all(shape == shapes[0] for shape in shapes)
            self.cond = each(lambda v: torch.cat([v] * self.calls), told[0]) if fits else None
            self.fits, self.made = fits, conditions.made
        if self.fits:
            for lines, *parts in zip(*map(tensors_of, (self.cond, *told)), strict=True):
                for place, part in zip(lines.chunk(self.calls), parts, strict=True):
                    place.copy_(part)

    def again(self, c_noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return F and F2, [batch, D], at the input that lies first in the buffer."""
        self.further.copy_(self.first.expand_as(self.further))
        return self._outputs(self.input, c_noise)

    def at(self, u: Tensor, c_noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return F and F2, [batch, D], at an input [batch, *shape], differentiable in it."""
        return self._outputs(u.repeat(self.calls, *[1] * (u.ndim - 1)), c_noise)

    def _outputs(self, u: Tensor, c_noise: Tensor) -> tuple[Tensor, Tensor | None]:
        parts = evaluate(self.model, u, c_noise, self.cond).chunk(self.calls)
        firsts, F2 = (parts[:-1], parts[-1]) if self.second else (parts, None)
        return Several(firsts, self.terms).sum(lambda F: [F])[0] if self.terms else firsts[0], F2  # pyright: ignore


def calls_of(terms: tuple[float, ...], second: bool) -> int:
    """Return how many evaluations a row makes."""
    return (sum(w != 0.0 for w in terms) or 1) + second
