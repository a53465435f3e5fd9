r"""Mixtures of two outputs, folded into plan rows: classifier-free guidance and autoguidance.

    D = D_2 + w (D_1 - D_2),   m = w m_1 + (1 - w) m_2 = p x + q F + q2 F2

D_1 is the model's own estimate, D_2 the same network's under the null condition (classifier-free) or a
worse network's under the same condition (autoguidance). Every quantity that a row may be in is affine in
the outputs, so the mixture of one is the mixture of all, and any solver takes it with no code of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fastscore.errors import typed
from fastscore.model.conditions import constant
from fastscore.model.score import Conditioned, ScoreModel
from fastscore.plan.passes import Folding, inside, mix, validate
from fastscore.plan.rows import Plan, Row


@dataclass(frozen=True)
@typed
class Guidance:
    """A mixture of two outputs: its weight, where it acts, and the output that it leads away from.

    A row outside the interval, and every row at weight 1, makes one evaluation and has the bits of the model alone.
    A mixed row calls the networks one after the other, each at the micro-batch of the run: a sample is
    still a function of its own settings, seed and id.

    Args:
        weight: w; 1 is the model itself, 0 the second model, above 1 leads away from the second.
        interval: (low, high), the noise-to-signal ratios sigma / alpha that are mixed: low < sigma / alpha <= high.
            EDM's sigma, whatever the schedule.
        model: the second model (a JointModel for a JointSampler); None for the same network under the null condition.
        null: the null condition in place of the model's own, of a model with ``cond_shape``: [*cond_shape].

    Raises:
        ValueError: a weight that is not finite or an interval that is empty.

    Source: Ho & Salimans 2022 (classifier-free; their w is w - 1 here); Kynkaanniemi et al. 2024, section 3
    (interval); Karras et al. 2024, eq. 3 (autoguidance).
    """

    weight: float
    interval: tuple[float, float] = (0.0, math.inf)
    model: Conditioned | None = None
    null: Tensor | None = None

    def __post_init__(self) -> None:
        if not -math.inf < self.weight < math.inf:
            raise ValueError(f"guidance weight = {self.weight} must be finite (1 is the model itself)")
        low, high = self.interval
        if not 0.0 <= low < high:
            raise ValueError(f"guidance interval = {self.interval} must be 0 <= low < high, in sigma / alpha")
        constant(null=self.null)

    def check(self, model: Conditioned) -> None:
        """Raise ValueError unless ``model`` can be mixed so."""
        if self.model is None and not model.classes and model.cond_shape is None:
            raise ValueError(
                "guidance: this model is unconditional and has no null condition; give Guidance a second model"
            )
        if self.model is not None and self.null is not None:
            raise ValueError("guidance: a second model is given the same condition; leave null out")
        second = self.model or model
        if second.shape != model.shape:
            raise ValueError(f"guidance: the second model has samples of shape {second.shape}, the first {model.shape}")
        if (second.classes or second.cond_shape) and (second.classes, second.cond_shape) != (
            model.classes,
            model.cond_shape,
        ):
            raise ValueError("guidance: the second model must take the first one's condition, or none")
        if self.null is not None and (model.cond_shape is None or tuple(self.null.shape) != tuple(model.cond_shape)):
            raise ValueError(
                f"guidance: null has shape {tuple(self.null.shape)}; the condition's is {model.cond_shape}"
            )
        if self.model is None and self.null is None and model.null is None:
            remedy = f"null={model.classes}" if model.classes else "null=torch.zeros(..)"
            raise ValueError(
                "guidance leads away from the null condition, and this model says of none that its network was trained "
                f"with it: ScoreModel({remedy}), or give Guidance a second model"
            )

    def null_condition(self, model: Conditioned, cond: Tensor) -> Tensor | None:
        """Return the second evaluation's conditions, given the buffer ``cond`` of the first one's."""
        if self.model is not None:
            return cond if self.model.classes or self.model.cond_shape else None
        null = model.null if self.null is None else self.null
        return torch.as_tensor(null).to(cond).expand_as(cond).contiguous()


class Conditions:
    """The conditions of a micro-batch where its networks read them, in the dtype that they came in.

    Attributes:
        first: of the first network, [batch, ..]; None if it takes none. second: of the second output.
    """

    def __init__(self, model: Conditioned, guidance: Guidance | None, batch: int) -> None:
        self.model, self.guidance, self.batch = model, guidance, batch
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def load(self, values: Tensor | None) -> None:
        """Take the conditions of a micro-batch, [batch, ..]; of another number, the first of them for all lines."""
        if values is None or not len(values):
            return
        if self.first is None or self.first.dtype != values.dtype:
            self.first = values.new_empty(self.batch, *values.shape[1:])
            self.second = self.first if self.guidance is None else self.guidance.null_condition(self.model, self.first)
        self.first.copy_(values if len(values) == self.batch else values[:1])


class BoundPlan:
    """A plan bound to the networks that it calls: its rows in m, in x0 and without a mixture, each folded once.

    Args:
        plan: of a solver, not folded.
        model: the first network.
        guidance: brings in the second, or None.
        guided: whether a guide (guidance/guides.py) stands between the networks and the rows: what a row then reads
            is an estimate of x0, which holds the mixture already, whatever the network predicts.

    Attributes:
        plan: folded and checked; the rows that are run.

    Raises:
        ValueError: a coefficient is singular; or, with a guide, the network's estimate of x0 is, as that of eps at
            pure noise.
    """

    def __init__(self, plan: Plan, model: ScoreModel, guidance: Guidance | None = None, guided: bool = False) -> None:
        self.unfolded, self.model, self.guidance = plan, model, guidance
        self._first = Folding(plan, model.schedule, model.parametrization)
        if guided:
            validate(replace(plan, rows=self.x0))
            rows = self._first.rows(output="x0")
        else:
            rows = self._mixed(None)
        self.plan = validate(replace(plan, rows=rows))

    @cached_property
    def x0(self) -> tuple[Row, ...]:
        """The rows with m = x0: p, q and q2 turn outputs into the estimate of x0."""
        return self._mixed("x0")

    @cached_property
    def x0_of_first(self) -> tuple[Row, ...]:
        """The rows with m = x0 of the first network alone."""
        return self._first.rows("x0")

    @cached_property
    def _second(self) -> tuple[list[bool], Folding | None]:
        """The rows that have a second output, and the coefficients of its network there."""
        guidance, plan = self.guidance, replace(self.unfolded, rows=self._first.rows())
        mixed = [False] * len(plan.rows) if guidance is None else inside(plan, guidance.interval)
        if guidance is None or guidance.weight == 1.0 or not any(mixed):
            return [False] * len(plan.rows), None
        second = guidance.model or self.model
        assert isinstance(second, ScoreModel)
        chosen = tuple(row for row, at in zip(self.unfolded.rows, mixed, strict=True) if at)
        return mixed, Folding(replace(plan, rows=chosen), second.schedule, second.parametrization)

    def _mixed(self, m: str | None) -> tuple[Row, ...]:
        rows, (mixed, folding) = self._first.rows(m), self._second
        if folding is None or self.guidance is None:
            return rows
        second_rows = iter(folding.rows(m))
        return mix(rows, tuple(next(second_rows) if at else None for at in mixed), self.guidance.weight)
