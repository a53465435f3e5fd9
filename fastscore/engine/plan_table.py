"""Many plans in one table: all that a row depends on beside its sample, on the device, row after row.

A plan takes rows of its own when its first sample comes, and leaves them to another when none needs it any more. Row 0
belongs to no plan: it is where empty lanes wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from fastscore.engine.kind import Kind, labels_of
from fastscore.engine.subspace import places
from fastscore.guidance.denoiser import Level
from fastscore.guidance.mixture import BoundPlan
from fastscore.kernels import abi
from fastscore.model.score import ScoreModel
from fastscore.plan.rows import lower, lower_known

ROWS = 256  # of a table at first
LEVELS = len(fields(Level))

One = TypeVar("One")


@dataclass(frozen=True)
class Call:
    """The outputs that an evaluation calls: of both networks, of the second alone, or the sum by ``terms``."""

    mixed: bool
    alone: bool
    terms: tuple[float, ...]


@dataclass(frozen=True)
class Act:
    """The form of a row's update: the terms that it has. Rows of one form may have any numbers in one call.

    A term that is missing is not one that is 0: x + 0 z is x but for the sign of a zero, and NaN where z is.
    """

    network: bool
    second: bool
    noisy: bool
    norm: str | None
    slots: int
    known: bool


@dataclass(frozen=True)
class Stretch:
    """An evaluation and the rows up to the next one: number of the Call and, row by row, of the Act."""

    call: int
    acts: tuple[int, ...]


@dataclass(eq=False)
class Entry:
    """A plan in the table.

    Attributes:
        bound: the plan. known: whether its samples have known data.
        first: number of its first row.
        kinds: of the rows ahead of the first evaluation.
        stretches: of its evaluations, in order.
        users: how many lanes are at its rows.
    """

    bound: BoundPlan
    known: bool
    first: int = 0
    kinds: tuple[Kind, ...] = ()
    stretches: tuple[Stretch, ...] = ()
    users: int = field(default=0, compare=False)

    @property
    def end(self) -> int:
        """The number of the row after its last one."""
        return self.first + len(self.bound.plan.rows)


@dataclass
class Columns:
    """What the device reads of a row; each [rows, ..]."""

    table: Tensor
    labels: Tensor
    labels2: Tensor
    c_in2: Tensor
    known: Tensor
    levels: Tensor  # of a guide
    alpha: Tensor  # of the next row, and the data in both outputs, of a model with a projection
    weights: Tensor
    length: Tensor  # rows of the stretch that begins here
    act: Tensor
    call: Tensor


class PlanTable:
    """The rows of all plans that are in use.

    Args:
        model, second: the networks, for the form of their labels.
        dtype, device: of the state.

    Attributes:
        columns: of all rows. calls, acts: by number. slots: history slots of the widest plan that there was.
        made: how often the columns were made anew, so that what knows their addresses is of no use any more.
    """

    def __init__(self, model: ScoreModel, second: ScoreModel, dtype: torch.dtype, device: torch.device) -> None:
        self.model, self.second, self.dtype, self.device = model, second, dtype, device
        self.entries: dict[tuple[BoundPlan, bool], Entry] = {}
        self.calls: list[Call] = []
        self.acts: list[Act] = []
        self.slots = self.made = 0
        self.columns = self._empty(ROWS)

    def add(self, bound: BoundPlan, known: bool) -> Entry:
        """Return the entry of a plan, which takes rows if it has none."""
        entry = self.entries.get((bound, known))
        if entry is None:
            entry = Entry(bound, known)
            entry.first = self._room(len(bound.plan.rows))
            self._write(entry)
            self.entries[bound, known] = entry  # once it is whole
            self.slots = max(self.slots, bound.plan.slots)
        return entry

    def _empty(self, rows: int) -> Columns:
        def zeros(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=self.device)

        labels, labels2 = (zeros(*([2] if m.two_times else [])) for m in (self.model, self.second))
        whole = (zeros(dtype=torch.int64) for _ in range(3))
        made = Columns(
            zeros(abi.WIDTH), labels, labels2, zeros(), zeros(abi.WIDTH), zeros(LEVELS), zeros(), zeros(2), *whole
        )
        made.table[:, abi.PUSH], made.act[0], made.call[0] = -1.0, -1, -1
        return made

    def _room(self, rows: int) -> int:
        """Return the first of so many rows that nobody needs; what nobody needs goes where there are none otherwise."""
        gap = self._gap(rows)
        if gap is None:
            self.entries = {key: entry for key, entry in self.entries.items() if entry.users}
            gap = self._gap(rows)
        if gap is not None:
            return gap
        old, count = self.columns, len(self.columns.table)
        end = max((entry.end for entry in self.entries.values()), default=1)
        new = self._empty(max(2 * count, 2 * (end + rows)))
        for column in fields(Columns):
            getattr(new, column.name)[:count] = getattr(old, column.name)
        self.columns, self.made = new, self.made + 1
        return end

    def _gap(self, rows: int) -> int | None:
        held = sorted((entry.first, entry.end) for entry in self.entries.values())
        for (_, end), (first, _) in pairwise([(0, 1), *held, (len(self.columns.table), 0)]):
            if first - end >= rows:
                return end
        return None

    def _write(self, entry: Entry) -> None:
        bound, columns, at = entry.bound, self.columns, slice(entry.first, entry.end)
        plan = bound.plan
        kinds = kinds_of(bound)
        starts = [k for k, kind in enumerate(kinds) if kind.evaluate]
        entry.kinds = kinds[: starts[0] if starts else len(kinds)]

        def column(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=self.device)

        acts = [_number(self.acts, Act(k.network, k.second, k.noisy, k.norm, plan.slots, entry.known)) for k in kinds]
        calls, length = [-1] * len(kinds), [0] * len(kinds)
        for start, end in pairwise([*starts, len(kinds)]):
            kind = kinds[start]
            calls[start] = _number(self.calls, Call(kind.mixed, kind.alone, kind.terms))
            length[start] = end - start
        entry.stretches = tuple(Stretch(calls[k], tuple(acts[k : k + length[k]])) for k in starts)

        columns.table[at] = torch.tensor(lower(plan), dtype=self.dtype, device=self.device)
        columns.labels[at], columns.labels2[at] = labels_of(plan, self.model, self.second, columns.table)
        columns.c_in2[at] = columns.table.new_tensor([row.c_in2 for row in plan.rows])
        if bound.guided:
            columns.levels[at] = Level.table(bound, self.dtype, self.device).t()
        if self.model.projection is not None:
            alpha, weights = (columns.table.new_tensor(v) for v in places(bound))
            columns.alpha[at], columns.weights[at] = alpha, weights.t()
        if entry.known:
            columns.known[at] = columns.table.new_tensor(lower_known(plan))
        columns.act[at], columns.call[at], columns.length[at] = column(acts), column(calls), column(length)
        if starts:  # empty lanes are evaluated too: at a label that the network knows
            columns.labels[0] = columns.labels[entry.first + starts[0]]
            mixed = [k for k in starts if kinds[k].mixed or kinds[k].alone]
            if mixed:
                columns.labels2[0] = columns.labels2[entry.first + mixed[0]]


def kinds_of(bound: BoundPlan) -> tuple[Kind, ...]:
    """Return the kinds of a plan's rows; with a guide between networks and rows, of what the guide calls."""
    kinds = [Kind.of(row) for row in bound.plan.rows]
    kinds[0] = replace(kinds[0], first=True)
    if bound.guided:
        both = zip(kinds, bound.plan.rows, bound.x0, strict=True)
        kinds = [replace(kind, mixed=row.calls == "F, F2" or x0.q2 != 0.0, terms=x0.terms) for kind, row, x0 in both]
    return tuple(kinds)


def _number(known: list[One], one: One) -> int:
    """Return the number of one of a list, which it joins if it is not in it."""
    if one not in known:
        known.append(one)
    return known.index(one)
