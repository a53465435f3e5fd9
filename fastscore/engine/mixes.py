"""The mixed rows of a loop whose evaluations are one call: which they are, what they read, and in how many lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fastscore.engine.kind import Kind, kinds_of
from fastscore.execution import Execution
from fastscore.guidance.mixture import BoundPlan
from fastscore.guidance.together import Together, calls_of
from fastscore.guidance.told import Conditions
from fastscore.model.score import ScoreModel

Mix = tuple[tuple[float, ...], bool]  # weights of what F is the sum of, and whether there is an F2


def batched_of(bound: BoundPlan, execution: Execution, kinds: Sequence[Kind]) -> dict[Mix, int]:
    """Return the mixtures whose evaluations are one call, and of how many each; see Execution.guided."""
    if bound.guidance is None or bound.guidance.model is not None:
        return {}
    calls = {(kind.terms, kind.mixed): calls_of(kind.terms, kind.mixed) for kind in kinds if kind.evaluate}
    if execution.fixed and len({*calls.values()}) > 1:
        return {}
    return {mix: n for mix, n in calls.items() if execution.batches(n)}


def batched_by(sampler: Any) -> dict[Mix, int]:
    """Return the mixtures that are one call in a run of a sampler."""
    if sampler.plan is None or sampler.parallel is not None:
        return {}
    return batched_of(sampler.bound, sampler.execution, kinds_of(sampler.bound, sampler.guide is not None))


def compiled_lines(sampler: Any) -> int:
    """Return how many lines a sampler prepares its networks for: those of a call, where they take no other number."""
    together = 1
    if sampler.plan is not None and sampler.parallel is not None:
        together = min(sampler.parallel.window, max(1, sum(row.evaluate for row in sampler.plan.rows)))
    elif sampler.execution.fixed:
        together = max([1, *batched_by(sampler).values()])
    return sampler.execution.batch * together


class Mixes:
    """What makes one call of a row's evaluations, by the kind of the row.

    Attributes:
        inputs: what networks read, u first and then once for each further evaluation, [most, batch, D].
    """

    def __init__(
        self,
        bound: BoundPlan,
        model: ScoreModel,
        execution: Execution,
        kinds: Sequence[Kind],
        conditions: Conditions,
        dtype: torch.dtype,
    ) -> None:
        batched = batched_of(bound, execution, kinds)
        sizes = max([1, *batched.values()]), execution.batch, math.prod(model.shape)
        self.inputs = torch.zeros(sizes, dtype=dtype, device=execution.place)
        self.made = {mix: Together(model, conditions, *mix, self.inputs) for mix in batched}

    def load(self) -> None:
        """Lay out the conditions of a micro-batch, which were loaded."""
        for together in self.made.values():
            together.load()

    def of(self, kind: Kind) -> Together | None:
        """Return what makes one call of a row that evaluates both outputs; None where they are calls of their own."""
        together = self.made.get((kind.terms, kind.mixed)) if self.made else None
        return together if together is not None and together.fits else None
