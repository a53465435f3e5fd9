"""What the networks of a mixture are told of each sample: its own condition, further ones, and a negative one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastscore.guidance.mixture import Guidance
from fastscore.model.condition_shapes import Condition, Conditioned, Several, Told, each, tensors_of


def check_told(told: Sequence[Condition], guidance: Guidance | None) -> None:
    """Raise ValueError unless a request's ``told`` has the conditions that are mixed, and no others."""
    others, weights = len(told) - 2, () if guidance is None else guidance.weights[1:]
    if others != len(weights):
        has = "no guidance" if guidance is None else f"a guidance of weight {guidance.weight}"
        raise ValueError(
            f"others: {others} further conditions for a sampler with {has}; give one for each weight after the first, "
            "each for all samples or one an id: Guidance((3.0, 1.5)) and others=[[3, 9]]"
        )
    if told[-1] is not None and (guidance is None or guidance.model is not None):
        away = "nothing" if guidance is None else "a second model"
        raise ValueError(f"negative: this sampler leads away from {away}; give it Guidance(weight) without a model")


class Conditions:
    """The conditions of a micro-batch where its networks read them, in the dtype that they came in.

    They stay where they are, as CUDA graphs need it, until they come in another dtype or length.

    Attributes:
        first: of the first network, [batch, ..]; None if it takes none. second: of the second output.
        all: the first and the others of each sample. buffers: tensors of what comes in, in the order of ``lines_of``.
        made: how often they were made anew.
    """

    def __init__(self, model: Conditioned, guidance: Guidance | None, batch: int) -> None:
        self.model, self.guidance, self.batch, self.made = model, guidance, batch, 0
        self.first: Condition = None
        self.second: Condition = None
        self.all: tuple[Condition, ...] = ()
        self.buffers: list[Tensor] = []
        self.kinds: list[list[Any]] = []

    def load(self, told: Sequence[Condition]) -> None:
        """Take a request's ``told`` of a micro-batch, [batch, ..]; of another number, the first one for all lines."""
        lines = lines_of(told)
        if not lines or not len(lines[0]):
            return
        kinds = [[(v.dtype, v.shape[1:]) for v in tensors_of(cond)] for cond in told]
        if self.kinds != kinds:
            made = [each(lambda v: v.new_empty(self.batch, *v.shape[1:]), cond) for cond in told]
            self.buffers, self.first, self.all = lines_of(made), made[0], tuple(made[:-1])
            self.second = made[0] if self.guidance is None else self.guidance.null_condition(self.model, made[0])
            self.second = self.second if made[-1] is None else made[-1]
            self.made, self.kinds = self.made + 1, kinds  # once all of them are there
        for buffer, v in zip(self.buffers, lines, strict=True):
            buffer.copy_(v if len(v) == self.batch else v[:1])

    def of(self, terms: tuple[float, ...]) -> Told:
        """Return what the first output of a row is evaluated with, whose ``terms`` these are."""
        return Several(self.all, terms) if terms else self.first


def lines_of(told: Sequence[Condition]) -> list[Tensor]:
    """Return the tensors of a request's ``told``, in their order."""
    return [v for cond in told for v in tensors_of(cond)]
