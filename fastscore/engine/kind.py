"""What the host must know of a row, and the labels that its networks are given."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fastscore.guidance.mixture import BoundPlan
from fastscore.model.score import ScoreModel
from fastscore.plan.rows import Plan, Row


@dataclass(frozen=True)
class Kind:
    """The kind of a row, all that the host must know of it: which calls it makes, not with which numbers.

    ``network``: whether it uses an output; ``second``: whether it uses a second one; ``mixed``: whether two networks
    are evaluated for it, which a guide may make one of; ``alone``: whether only the second is; ``first``: whether it
    makes the state that samples start from, whose noise has a key of its own; ``terms``: weights of what the first
    output is the sum of, if it is one.
    """

    evaluate: bool
    network: bool
    noisy: bool
    norm: str | None
    second: bool = False
    mixed: bool = False
    alone: bool = False
    first: bool = False
    terms: tuple[float, ...] = ()

    @classmethod
    def of(cls, row: Row) -> Kind:
        """Return the kind of a folded row."""
        norm, second = row.langevin.norm if row.langevin else None, row.q2 != 0.0
        mixed, alone = second or row.calls == "F, F2", row.calls == "F2"
        return cls(row.evaluate, row.evaluate or row.reads_m, row.noisy, norm, second, mixed, alone, terms=row.terms)


def kinds_of(bound: BoundPlan, guide: bool) -> tuple[Kind, ...]:
    """Return the kinds of a plan's rows; ``guide``: whether one stands between the networks and the rows."""
    rows = bound.plan.rows
    kinds = [replace(Kind.of(row), first=k == 0) for k, row in enumerate(rows)]
    if guide:
        kinds = [
            replace(kind, mixed=row.calls == "F, F2" or x0.q2 != 0.0, terms=x0.terms)
            for kind, row, x0 in zip(kinds, rows, bound.x0, strict=True)
        ]
    return tuple(kinds)


def labels_of(plan: Plan, first: ScoreModel, second: ScoreModel, like: Tensor) -> list[Tensor]:
    """Return the labels of both networks, [rows], or [rows, 2] of one that takes two times."""
    pairs = [[(row.c_noise, row.c_end or 0.0) for row in plan.rows], [(r.c_noise2, r.c_end2 or 0.0) for r in plan.rows]]
    return [
        like.new_tensor(values)[:, slice(None) if model.two_times else 0].contiguous()
        for values, model in zip(pairs, (first, second), strict=True)
    ]
