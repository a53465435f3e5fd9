r"""Mixtures of two outputs, folded into plan rows: classifier-free guidance and autoguidance.

    D = D_2 + w (D_1 - D_2),   m = w m_1 + (1 - w) m_2 = p x + q F + q2 F2

D_1 is the model's own estimate, D_2 the same network's under the null condition (classifier-free) or a
worse network's under the same condition (autoguidance). Every quantity that a row may be in is affine in
the outputs, so the mixture of one is the mixture of all, and any solver takes it with no code of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastscore.errors import typed
from fastscore.model.condition_shapes import Condition, Conditioned, checked_null, each, tensors_of
from fastscore.model.conditions import constant
from fastscore.model.score import ScoreModel
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
        null: the null condition in place of the model's own: a label, a tensor [*cond_shape], or a dict of such by
            name. Each sample keeps its own value of names that are not in the dict.

    Raises:
        ValueError: a weight that is not finite or an interval that is empty.

    Source: Ho & Salimans 2022 (classifier-free; their w is w - 1 here); Kynkaanniemi et al. 2024, section 3
    (interval); Karras et al. 2024, eq. 3 (autoguidance).
    """

    weight: float
    interval: tuple[float, float] = (0.0, math.inf)
    model: Conditioned | None = None
    null: int | Tensor | Mapping[str, int | Tensor] | None = None

    def __post_init__(self) -> None:
        if not -math.inf < self.weight < math.inf:
            raise ValueError(f"guidance weight = {self.weight} must be finite (1 is the model itself)")
        low, high = self.interval
        if not 0.0 <= low < high:
            raise ValueError(f"guidance interval = {self.interval} must be 0 <= low < high, in sigma / alpha")
        constant(null=self.null)
        if isinstance(self.null, Mapping):
            object.__setattr__(self, "null", dict(self.null))  # that nobody else changes

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
        checked_null("guidance: null", self.null, model.classes, model.cond_shape)
        if self.model is None and self.null is None and model.null is None:
            remedy = f"null={model.classes}" if model.classes else "null=torch.zeros(..)"
            raise ValueError(
                "guidance leads away from the null condition, and this model says of none that its network was trained "
                f"with it: ScoreModel({remedy}), or give Guidance a second model"
            )

    def null_condition(self, model: Conditioned, cond: Condition) -> Condition:
        """Return the second evaluation's conditions, given the buffers ``cond`` of the first one's.

        Raises:
            ValueError: null has values that the dtype of what the samples were given has not.
        """
        if self.model is not None:
            return cond if self.model.classes or self.model.cond_shape is not None else None
        null: Any = model.null if self.null is None else self.null
        null = checked_null("guidance: null", null, model.classes, model.cond_shape)
        if isinstance(cond, dict):
            return {name: _lines(f"[{name!r}]", null[name], v) if name in null else v for name, v in cond.items()}
        return None if cond is None else _lines("", null, cond)


class Conditions:
    """The conditions of a micro-batch where its networks read them, in the dtype that they came in.

    They stay where they are, as CUDA graphs need it, until they come in another dtype or length.

    Attributes:
        first: of the first network, [batch, ..]; None if it takes none. second: of the second output.
        made: how often they were made anew.
    """

    def __init__(self, model: Conditioned, guidance: Guidance | None, batch: int) -> None:
        self.model, self.guidance, self.batch, self.made = model, guidance, batch, 0
        self.first: Condition = None
        self.second: Condition = None

    def load(self, values: Condition) -> None:
        """Take the conditions of a micro-batch, [batch, ..]; of another number, the first of them for all lines."""
        lines = tensors_of(values)
        if not lines or not len(lines[0]):
            return
        kinds = [(v.dtype, v.shape[1:]) for v in lines]
        if [(v.dtype, v.shape[1:]) for v in tensors_of(self.first)] != kinds:
            self.made += 1
            self.first = each(lambda v: v.new_empty(self.batch, *v.shape[1:]), values)
            self.second = self.first if self.guidance is None else self.guidance.null_condition(self.model, self.first)
        for buffer, v in zip(tensors_of(self.first), lines, strict=True):
            buffer.copy_(v if len(v) == self.batch else v[:1])


def _lines(name: str, null: int | Tensor, like: Tensor) -> Tensor:
    """Return a null condition once a line of ``like``, in its dtype."""
    value = torch.as_tensor(null, device=like.device)
    found = value.to(like.dtype)
    if not (value.is_floating_point() and like.is_floating_point()) and not found.to(value.dtype).equal(value):
        raise ValueError(
            f"guidance: null{name} is {value.dtype} and has values that the {like.dtype} of cond{name} has not; give "
            "both in one dtype, as the network takes it"
        )
    return found.expand(len(like), *value.shape).contiguous()


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

    @property
    def data_weights(self) -> tuple[list[float], list[float]]:
        """A of every row's outputs, F = A D + B eps: how much of the data's own subspace each of them holds."""
        mixed, folding = self._second
        weights = iter([] if folding is None else folding.data_weights())
        return self._first.data_weights(), [next(weights) if at else 0.0 for at in mixed]

    @cached_property
    def _second(self) -> tuple[list[bool], Folding | None]:
        """The rows that have a second output, and the coefficients of its network there."""
        guidance, none = self.guidance, [False] * len(self.unfolded.rows)
        if guidance is None or guidance.weight == 1.0:
            return none, None
        plan = replace(self.unfolded, rows=self._first.rows())
        mixed = inside(plan, guidance.interval)
        if not any(mixed):
            return none, None
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
