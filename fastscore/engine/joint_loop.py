"""The loops of a joint model's parts, side by side: each row is one evaluation of the shared network and one a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fastscore.engine.kind import Kind
from fastscore.engine.loop import Loop, Outputs, recorded
from fastscore.engine.request import Request
from fastscore.guidance.mixture import Guidance
from fastscore.guidance.told import Conditions
from fastscore.model.joint import JointModel
from fastscore.ops.noise import Noise


@dataclass(frozen=True)
class Kinds:
    """The kinds of one row, a part each; parts evaluate together."""

    parts: tuple[Kind, ...]

    @property
    def evaluate(self) -> bool:
        """Whether the network is evaluated."""
        return self.parts[0].evaluate

    @cached_property
    def updates(self) -> tuple[Kind, ...]:
        """The kinds of what is left once the network was evaluated."""
        return tuple(replace(kind, evaluate=False) for kind in self.parts)

    @property
    def network(self) -> bool:
        """Whether an output is used, of this row or of one before."""
        return any(kind.network for kind in self.parts)


class JointLoop:
    """The rows of all parts, every part's row k before row k + 1 of any; stands where a Loop does.

    Args:
        loops: of each part, in step.
        model: the joint model as it runs; ``second`` that of mixed rows.
        columns: of each part in the state [batch, D of all parts].
    """

    def __init__(
        self,
        loops: dict[str, Loop],
        model: JointModel,
        second: JointModel,
        guidance: Guidance | None,
        columns: dict[str, slice],
    ) -> None:
        self.loops, self.model, self.second, self.columns = loops, model, second, columns
        self.batch, first = next(iter(loops.values())).batch, next(iter(loops.values()))
        self.conditions, self.x = Conditions(model, guidance, self.batch), first.x
        self.kinds = tuple(map(Kinds, zip(*(loop.kinds for loop in loops.values()), strict=True)))
        self.noise: list[Noise | None] = [None] * len(loops)

    @property
    def networks(self) -> tuple[object, ...]:
        """Whatever a run evaluates."""
        return (*self.model.networks, *self.second.networks)

    def point(self, row: int) -> None:
        """Point every counter at a row."""
        for loop in self.loops.values():
            loop.point(row)

    @property
    def made(self) -> list[int]:
        """How often conditions were made anew."""
        return [self.conditions.made, *(loop.conditions.made for loop in self.loops.values())]

    def load(self, part: Request) -> None:
        """Put a micro-batch, padded to its size, into the static inputs."""
        parts = [part.columns(at) for at in self.columns.values()]
        for loop, own in zip(self.loops.values(), parts, strict=True):
            loop.load(own)
        self.conditions.load(part.told)
        self.noise = [recorded(own) for own in parts]

    def reset(self) -> None:
        """Return states and row counters to the start."""
        for loop in self.loops.values():
            loop.reset()

    @torch.no_grad()
    def run(self, told: Callable[[float], None] | None = None) -> Tensor:
        """Run all rows on what was loaded and return a copy of the state, [batch, D of all parts]."""
        self.reset()
        outputs: Sequence[Outputs] = ()
        for row, kinds in enumerate(self.kinds, 1):
            outputs = self.advance(kinds, outputs)
            if told is not None:
                told(row / len(self.kinds))
        return self.result()

    def result(self) -> Tensor:
        """Return a copy of the state, [batch, D of all parts]."""
        return torch.cat([loop.x for loop in self.loops.values()], 1)

    def advance(self, kinds: Kinds, outputs: Sequence[Outputs]) -> Sequence[Outputs]:
        """Do the row that the counters point at, and advance them; return the outputs to hand to the next."""
        if kinds.evaluate:
            outputs = self._evaluate(kinds.parts)
        for k, (loop, kind) in enumerate(zip(self.loops.values(), kinds.updates, strict=True)):
            loop.advance(kind, outputs[k] if kind.network else (None, None), self.noise[k])
        return outputs

    def _evaluate(self, kinds: Sequence[Kind]) -> list[Outputs]:
        """Return F and F2 of each part."""
        u = {name: loop.input for name, loop in self.loops.items()}
        label = {name: loop.labels.label().expand(self.batch) for name, loop in self.loops.items()}
        terms, alone = next((kind.terms for kind in kinds if kind.terms), ()), [kind.alone for kind in kinds]
        second: Sequence[Tensor | None] = [None] * len(kinds)
        if any(alone) or any(kind.mixed for kind in kinds):
            inputs = {name: loop.second_input() for name, loop in self.loops.items()}
            u2 = {name: v for name, (v, _) in inputs.items()}
            label2 = {name: v.expand(self.batch) for name, (_, v) in inputs.items()}
            second = self.second.evaluate(u2, label2, self.conditions.second)
            if all(alone):
                return self._projected([(F2, None) for F2 in second])
        first = self.model.evaluate(u, label, self.conditions.of(terms))
        if terms and not all(kind.terms for kind in kinds):  # one time is another noise level for another part
            own = self.model.evaluate(u, label, self.conditions.first)
            first = [F if kind.terms else F1 for F, F1, kind in zip(first, own, kinds, strict=True)]
        both = zip(first, second, alone, strict=True)
        return self._projected([(F2, None) if at and F2 is not None else (F, F2) for F, F2, at in both])

    def _projected(self, outputs: Sequence[tuple[Tensor, Tensor | None]]) -> list[Outputs]:
        """Return the outputs of each part on its subspace."""
        return [
            pair if loop.subspace is None else loop.subspace.outputs(*pair, loop.row)
            for loop, pair in zip(self.loops.values(), outputs, strict=True)
        ]
