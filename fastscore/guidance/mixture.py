r"""Mixtures of outputs, folded into plan rows: classifier-free guidance, autoguidance, several conditions.

    D = D_2 + w (D_1 - D_2),   m = w m_1 + (1 - w) m_2 = p x + q F + q2 F2

D_1 is the model's own estimate, D_2 the same network's under the null or a negative condition (classifier-free) or
a worse network's under the same condition (autoguidance). Every quantity that a row may be in is affine in the
outputs, so the mixture of one is the mixture of all, and any solver takes it with no code of its own. Of several
conditions F is the sum of w_i F_i, and w the sum of the w_i:

    D = D_2 + sum_i w_i (D_1i - D_2),   m = p x + q sum_i w_i F_i + (1 - sum_i w_i) q F2
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastscore.errors import typed, unknown
from fastscore.model.condition_shapes import Condition, Conditioned, checked_null
from fastscore.model.conditions import constant, in_dtype
from fastscore.model.score import ScoreModel
from fastscore.plan.passes import Folding, inside, mix, validate
from fastscore.plan.rows import Plan, Row
from fastscore.solvers.variants import published, published_repr

RULES = ("cfg", "cfg++")


@dataclass(frozen=True)
@typed
class Guidance:
    """A mixture of outputs: its weights, where it acts, and the output that it leads away from.

    A row outside the interval, and every row at weight 1 of "cfg", makes one evaluation and has the bits of the model
    alone. A mixed row calls the networks one after the other, each at the micro-batch of the run, or one network once
    with the lines of all calls (Execution.guided): a sample is still a function of its own settings, seed and id.

    Args:
        weight: w; 1 is the model itself, 0 the second model, above 1 leads away from the second. Several: one for each
            condition of a sample, ``labels`` or ``cond`` of a run first and its ``others`` then; outside the interval
            the first condition acts alone.
        interval: (low, high), the noise-to-signal ratios sigma / alpha that are mixed: low < sigma / alpha <= high.
            EDM's sigma, whatever the schedule.
        model: the second model (a JointModel for a JointSampler); None for the same network under the null condition.
        null: the null condition in place of the model's own: a label, a tensor [*cond_shape], or a dict of such by
            name. Each sample keeps its own value of names that are not in the dict. ``negative`` of a run stands in its
            place, one for each sample.
        rule: "cfg", where a solver sees nothing but the mixture; or "cfg++" (plan/cfgpp.py), where it steps along the
            second output alone and each step ends with alpha (D - D_2): DDIM then makes alpha_s D + sigma_s eps_2. The
            weight is CFG++'s lambda: 0 is the second output alone to the bit, 1 alpha_s D_1 + sigma_s eps_2, which
            is not the model itself; more steps guide more. A step is the model's own if it starts outside the interval.
        steps: (start, stop), shares of the n steps of a grid: step i = 0, 1, .. is mixed if int(start n) <= i <
            int(stop n), and if it lies in the interval. Where it acts then depends on the grid; diffusers counts so.

    Raises:
        ValueError: a weight that is not finite, several of 0, an interval or shares that are empty, or another rule.

    Source: Ho & Salimans 2022 (classifier-free; their w is w - 1 here, and so is that of diffusers'
    use_original_formulation); Liu et al. 2022, eq. 11 (several conditions); Kynkaanniemi et al. 2024, section 3
    (interval); Karras et al. 2024, eq. 3 (autoguidance); Chung et al. 2024, algorithm 2 (CFG++).
    """

    weight: float | tuple[float, ...]
    interval: tuple[float, float] = (0.0, math.inf)
    model: Conditioned | None = None
    null: int | Tensor | Mapping[str, int | Tensor] | None = None
    rule: str = published("cfg")
    steps: tuple[float, float] = published((0.0, 1.0))
    __repr__ = published_repr

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("guidance rule", self.rule, RULES)
        if isinstance(self.weight, tuple) and len(self.weight) == 1:
            object.__setattr__(self, "weight", self.weight[0])
        if not all(map(math.isfinite, self.weights)) or (self.several and not any(self.weights)):
            raise ValueError(f"guidance weight = {self.weight} must be finite (1: the model itself), several not all 0")
        if not 0.0 <= self.steps[0] < self.steps[1] <= 1.0:
            raise ValueError(f"guidance steps = {self.steps} must be shares 0 <= start < stop <= 1 of the steps")
        low, high = self.interval
        if not 0.0 <= low < high:
            raise ValueError(f"guidance interval = {self.interval} must be 0 <= low < high, in sigma / alpha")
        constant(null=self.null)
        if isinstance(self.null, Mapping):
            object.__setattr__(self, "null", dict(self.null))  # that nobody else changes

    @property
    def plusplus(self) -> bool:
        """Whether the rule is CFG++."""
        return self.rule == "cfg++"

    @property
    def weights(self) -> tuple[float, ...]:
        """One for each condition."""
        return self.weight if isinstance(self.weight, tuple) else (self.weight,)

    @property
    def total(self) -> float:
        """The sum of the weights; 1 needs no second output, but by CFG++."""
        return math.fsum(self.weights)

    @property
    def several(self) -> bool:
        """Whether there are further conditions."""
        return len(self.weights) > 1

    def check(self, model: Conditioned) -> None:
        """Raise ValueError unless ``model`` can be mixed so."""
        if self.several and self.model is not None:
            raise ValueError(
                f"guidance weights = {self.weights} are of several conditions of one network; a second model takes one"
            )
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
        leads = self.plusplus or not (self.several and self.total == 1.0)
        if self.model is None and self.null is None and model.null is None and leads:
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
        if null is None:  # of weights that sum to 1, or with a negative condition in its place
            return None
        null = checked_null("guidance: null", null, model.classes, model.cond_shape)
        if isinstance(cond, dict):
            return {name: _lines(f"[{name!r}]", null[name], v) if name in null else v for name, v in cond.items()}
        return None if cond is None else _lines("", null, cond)


def _lines(name: str, null: int | Tensor, like: Tensor) -> Tensor:
    """Return a null condition once a line of ``like``, in its dtype."""
    value = torch.as_tensor(null, device=like.device)
    return in_dtype(f"guidance: null{name}", value, like, f"cond{name}").expand(len(like), *value.shape).contiguous()


class BoundPlan:
    """A plan bound to the networks that it calls: its rows in m, in x0 and without a mixture, each folded once.

    Args:
        plan: of a solver, not folded.
        model: the first network.
        guidance: brings in the second, or None.
        guided: whether a guide (guidance/guides.py) stands between the networks and the rows: what a row then reads
            is an estimate of x0, which holds the mixture already, whatever the network predicts. By CFG++ F2 is then
            the estimate of the second network, which no guide has changed.
        steps: number of the step that each row belongs to, where something asks for it.

    Attributes:
        plan: folded and checked; the rows that are run.

    Raises:
        ValueError: a coefficient is singular; or, with a guide, the network's estimate of x0 is, as that of eps at
            pure noise.
    """

    def __init__(
        self,
        plan: Plan,
        model: ScoreModel,
        guidance: Guidance | None = None,
        guided: bool = False,
        steps: Sequence[int] | None = None,
    ) -> None:
        self.unfolded, self.model, self.guidance, self.guided, self.steps = plan, model, guidance, guided, steps
        if guidance is not None and not self.plusplus and any(row.change or row.guide != 1.0 for row in plan.rows):
            raise ValueError("guidance: this solver says where CFG++ guides its steps; give Guidance(.., rule='cfg++')")
        if guided and model.two_times:
            raise ValueError(
                "guide: a network of two times (two_times) says where one step leads, and what it takes for x0 on the "
                "way is no estimate of the data; leave the guide out"
            )
        self._first = Folding(plan, model.schedule, model.parametrization, model.two_times)
        if guided:
            if self.plusplus and any(row.own for row in plan.rows):
                raise ValueError("CFG++ and keep_eps=True both say which eps a guided step has; leave one of them out")
            validate(replace(plan, rows=self.x0))
            rows = self._first.rows(output="x0")
            both = zip(rows, self._second[0], strict=True)
            rows = mix(rows, tuple(row if at and self.plusplus else None for row, at in both), 1.0)
            # Of an estimate that is bounded after all the second output is what it was before.
            rows = tuple(replace(row, q=0.0, q2=row.q) if row.own else row for row in rows)
        else:
            rows = tuple(replace(row, own=False) if row.own else row for row in self._mixed(self._first.rows()))
        self.plan = validate(replace(plan, rows=rows))

    @property
    def plusplus(self) -> bool:
        """Whether rows may read the second output alone, beside the mixture."""
        return self.guidance is not None and self.guidance.plusplus

    @cached_property
    def x0(self) -> tuple[Row, ...]:
        """The rows with m = x0: p, q and q2 turn outputs into the estimate of x0."""
        rows = [
            replace(row, guide=float(calls != "F2"), change=False)
            for row, calls in zip(self._first.rows("x0"), self._calls, strict=True)
        ]
        return self._mixed(tuple(rows), "x0")

    @cached_property
    def x0_of_first(self) -> tuple[Row, ...]:
        """The rows with m = x0 of the first network alone."""
        return self._first.rows("x0")

    @cached_property
    def x0_of_second(self) -> tuple[Row | None, ...]:
        """The rows with m = x0 of the second network alone; None where there is no second output."""
        return self._seconds("x0")

    @cached_property
    def mixed(self) -> list[bool]:
        """The rows whose m is a mixture."""
        guidance, rows = self.guidance, self._first.rows()
        if guidance is None or (guidance.weight == 1.0 and not guidance.plusplus):
            return [False] * len(rows)
        result, chosen = inside(replace(self.unfolded, rows=rows), guidance.interval), True
        if guidance.steps != (0.0, 1.0):
            assert self.steps is not None
            n = max(self.steps) + 1
            first, last = (int(share * n) for share in guidance.steps)
            for k, (row, step) in enumerate(zip(rows, self.steps, strict=True)):
                chosen = first <= step < last if row.evaluate else chosen  # an output that is used again, as before
                result[k] = result[k] and chosen
        return result

    @property
    def weights(self) -> list[float]:
        """The weight of every row's mixture, 1 where there is none."""
        return [self.guidance.total if at and self.guidance is not None else 1.0 for at in self.mixed]

    @property
    def data_weights(self) -> tuple[list[float], list[float]]:
        """A of every row's outputs, F = A D + B eps: how much of the data's own subspace each of them holds."""
        second, folding = self._second
        weights = iter([] if folding is None else folding.data_weights())
        total = self.guidance.total if self.guidance is not None and self.guidance.several else 1.0
        firsts = [total * A if at else A for A, at in zip(self._first.data_weights(), self.mixed, strict=True)]
        seconds = [next(weights) if at else 0.0 for at in second]
        alone = [row.calls == "F2" for row in self.plan.rows]
        return [A2 if at else A for A, A2, at in zip(firsts, seconds, alone, strict=True)], seconds

    @cached_property
    def _second(self) -> tuple[list[bool], Folding | None]:
        """The rows that have a second output, and the coefficients of its network there."""
        guidance, mixed = self.guidance, self.mixed
        if guidance is None or (guidance.total == 1.0 and not guidance.plusplus) or not any(mixed):
            return [False] * len(mixed), None
        second = guidance.model or self.model
        assert isinstance(second, ScoreModel)
        chosen = tuple(row for row, at in zip(self.unfolded.rows, mixed, strict=True) if at)
        plan = replace(self.unfolded, rows=chosen)
        return mixed, Folding(plan, second.schedule, second.parametrization, second.two_times)

    def _seconds(self, m: str | None) -> tuple[Row | None, ...]:
        second, folding = self._second
        rows = iter(() if folding is None else folding.rows(m))
        return tuple(next(rows) if at else None for at in second)

    @cached_property
    def _calls(self) -> list[str]:
        """The outputs that the last evaluation of each row called."""
        calls = "F"
        return [calls := row.calls if row.evaluate else calls for row in self._mixed(self._first.rows())]

    def _mixed(self, first: tuple[Row, ...], m: str | None = None) -> tuple[Row, ...]:
        guidance = self.guidance
        if guidance is not None and guidance.several:
            mixed = zip(first, self.mixed, strict=True)
            first = tuple(replace(row, terms=guidance.weights) if at else row for row, at in mixed)
        weight = 1.0 if guidance is None else guidance.total
        return mix(first, self._seconds(m), weight, thrifty=self.plusplus or not self.guided)
