r"""Guidance by a second evaluation: classifier-free guidance and autoguidance, folded into plan rows.

    D = D_2 + w (D_1 - D_2),   m = w m_1 + (1 - w) m_2 = p x + q F + q2 F2

D_1 is the model's own estimate, D_2 the same network's under the null condition (classifier-free) or a
worse network's under the same condition (autoguidance). Every quantity that a row may be in is affine in
the outputs, so the mixture of one is the mixture of all, and any solver guides with no code of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from fastscore import plan as plans
from fastscore.model.score import ScoreModel
from fastscore.plan.rows import Plan


@dataclass(frozen=True)
class Guidance:
    """A weight, where it acts, and what it is measured against.

    A row outside the interval, and every row at weight 1, makes one evaluation and is unguided to the bit.
    A guided row calls the networks one after the other, each at the micro-batch of the run: a sample is
    still a function of its own settings, seed and id.

    Args:
        weight: w; 1 is the model itself, 0 the second model, above 1 leads away from the second.
        interval: (low, high), the noise-to-signal ratios sigma / alpha that are guided: low < sigma / alpha <= high.
            EDM's sigma, whatever the schedule.
        model: the second model; None for the same network under the null condition.
        null: the null condition of a model with ``cond_shape``, [*cond_shape]; zeros if left out. A
            class-conditional model has a null class.

    Raises:
        ValueError: a weight that is not finite or an interval that is empty.

    Source: Ho & Salimans 2022 (classifier-free; their w is w - 1 here); Kynkaanniemi et al. 2024, section 3
    (interval); Karras et al. 2024, eq. 3 (autoguidance).
    """

    weight: float
    interval: tuple[float, float] = (0.0, math.inf)
    model: ScoreModel | None = None
    null: Tensor | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"guidance weight = {self.weight} must be finite (1 is the model itself)")
        low, high = self.interval
        if not 0.0 <= low < high:
            raise ValueError(f"guidance interval = {self.interval} must be 0 <= low < high, in sigma / alpha")

    def fits(self, model: ScoreModel) -> None:
        """Raise ValueError unless ``model`` can be guided so."""
        if self.model is None and not model.classes and model.cond_shape is None:
            raise ValueError(
                "guidance: this model is unconditional and has no null condition; give Guidance a second model"
            )
        if self.model is not None and self.null is not None:
            raise ValueError("guidance: a second model is given the same condition; leave null out")
        other = self.model or model
        if other.shape != model.shape:
            raise ValueError(f"guidance: the second model has samples of shape {other.shape}, the first {model.shape}")
        if (other.classes or other.cond_shape) and (other.classes, other.cond_shape) != (
            model.classes,
            model.cond_shape,
        ):
            raise ValueError("guidance: the second model must take the first one's condition, or none")
        if self.null is not None and tuple(self.null.shape) != model.cond_shape:
            raise ValueError(
                f"guidance: null has shape {tuple(self.null.shape)}; the condition's is {model.cond_shape}"
            )


def in_x0(plan: Plan) -> Plan:
    """Return the plan with m = x0 in every row: folded, it says how network outputs become estimates of x0."""
    return replace(plan, rows=tuple(replace(row, m="x0") for row in plan.rows))


def fold(plan: Plan, model: ScoreModel, guidance: Guidance | None = None, guided: bool = False) -> Plan:
    """Fold a plan for a model with its guidance.

    Args:
        guided: whether a guide (see guidance/guides.py) runs the model: its output is an estimate of x0, which holds
            the guidance already, whatever the network predicts.

    Raises:
        ValueError: guided, and the network's estimate of x0 is singular at a row, as that of eps at pure noise is.
    """
    if guided:
        plans.validate(fold(in_x0(plan), model, guidance))
        return plans.fold(plan, model.schedule, replace(model.parametrization, prediction="x0"))
    plan = plans.fold(plan, model.schedule, model.parametrization)
    if guidance is None:
        return plan
    second = guidance.model or model
    return plans.mix(plan, guidance.weight, guidance.interval, second.schedule, second.parametrization)
