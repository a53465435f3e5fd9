"""The outputs of the networks in every lane: one call of the network for all, as far as one call will do."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore.engine.lane_inputs import LaneInputs
from fastscore.engine.plan_table import Call, Columns
from fastscore.guidance.denoiser import Denoiser, Guide, Level
from fastscore.guidance.per_sample import with_lines
from fastscore.model.condition_shapes import Told, each
from fastscore.model.score import ScoreModel, evaluate
from fastscore.network.prepared import Prepared

Outputs = tuple["Tensor | None", "Tensor | None"]


class LaneOutputs:
    """What evaluates lanes.

    Args:
        model, second: the networks as they run.
        guide: of all lanes, or None.
        inputs: what the lanes were given.
        index: numbers of the lanes, [lanes].
        net_dtype: of the networks' inputs.
        alike: whether both outputs are told things of one form.

    Attributes:
        paired: whether a second output has a lane of its own, which one network can evaluate beside the first ones.
        source: of each lane, the one whose sample it evaluates; partner: the one that evaluates its second output.
    """

    def __init__(
        self,
        model: ScoreModel,
        second: ScoreModel,
        guide: Guide | None,
        inputs: LaneInputs,
        index: Tensor,
        net_dtype: torch.dtype,
        alike: bool,
    ) -> None:
        self.model, self.second, self.guide, self.inputs, self.index = model, second, guide, inputs, index
        self.paired = alike and second is model and guide is None and len(index) > 1
        self.source, self.partner = index.clone(), index.clone()
        self.denoiser = Denoiser(model, second, net_dtype)

    def __call__(
        self,
        calls: list[tuple[int, Call]],
        columns: Columns,
        row: Tensor,
        x: Tensor,
        u: Tensor,
        count: int,
        twice: bool,
    ) -> Outputs:
        """Return F and F2 of every lane, [lanes, D] each; with a guide its estimates.

        Args:
            calls: those of the lanes, with their numbers.
            columns: of the plans. row: of each lane. x, u: states and inputs of the networks, [lanes, D].
            count: lanes from this one on need no output.
            twice: whether the second estimate of CFG++ is wanted too, beside a guide's.
        """
        if self.guide is not None:
            return self._guided(self.guide, calls, columns, row, x, twice)
        of, label, F, F2 = columns.call.index_select(0, row), columns.labels.index_select(0, row), None, None
        two, alone = any(call.mixed or call.alone for _, call in calls), [k for k, call in calls if call.alone]
        u2, label2 = self._second(columns, row, x, u) if two else (u, label)
        if two and self.paired:
            here = self.source != self.index
            u, label = (torch.where(here.view(-1, *[1] * (v.ndim - 1)), w, v) for v, w in ((u, u2), (label, label2)))
        firsts = [(k, call) for k, call in calls if not call.alone]
        sums = {call.terms for _, call in firsts if call.terms}
        for terms in sums or ({()} if firsts or self.paired else set()):
            everyone = len(sums) == 1 and all(call.terms for _, call in firsts) and not (two and self.paired)
            at = None if everyone else _among(of, [k for k, call in firsts if call.terms == terms])
            # Outside of ``at`` it is what the samples' own condition says.
            G = self._output(self.model, u, label, self.inputs.told(terms, at), count)
            F = G if F is None or at is None else torch.where(at[:, None], G, F)
        if two:
            if self.paired and F is not None:
                F2 = F.index_select(0, self.partner)
            else:
                F2 = self._output(self.second, u2, label2, self.inputs.away, count)
            F = F2 if F is None else torch.where(_among(of, alone)[:, None], F2, F) if alone else F
        return F, F2

    def _second(self, columns: Columns, row: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of second outputs, in the lanes that evaluate them."""
        if self.paired:
            row, x = row.index_select(0, self.source), x.index_select(0, self.source)
        return (columns.c_in2.index_select(0, row)[:, None] * x).to(u.dtype), columns.labels2.index_select(0, row)

    def _guided(
        self, guide: Guide, calls: list[tuple[int, Call]], columns: Columns, row: Tensor, x: Tensor, twice: bool
    ) -> Outputs:
        """Return the guide's estimates and, where there are two, the other one, [lanes, D] each."""
        x = x.view(-1, *self.model.shape)
        of, level = (v.index_select(0, row) for v in (columns.call, columns.levels))
        guide = with_lines(guide, len(self.model.shape), self.inputs.lines)
        F = F2 = None
        for k, call in calls:
            told = self.inputs.told(call.terms)
            denoise = self.denoiser.at(Level(*level.unbind(1)), call.mixed, told, self.inputs.away)
            if call.alone:
                D = free = denoise.of_second(x)
            else:
                D, free = denoise.guided(guide, x, self.inputs.y)
                free = denoise.of_second(x) if call.mixed and twice else free
            at = (of == k)[:, None]
            F, F2 = (v if own is None else torch.where(at, v, own) for v, own in ((D, F), (free, F2)))
        return F, F2

    def _output(self, model: ScoreModel, u: Tensor, label: Tensor, cond: Told, count: int) -> Tensor:
        """Return a network's output, [lanes, D]; lanes that need none may repeat one that is computed."""
        u, lanes = u.view(-1, *self.model.shape), len(u)
        needed = model.net.needed(count) if isinstance(model.net, Prepared) else lanes
        if needed >= lanes:
            return evaluate(model, u, label, cond)
        F = evaluate(model, u[:needed], label[:needed], each(lambda v: v[:needed], cond))
        return torch.cat([F, F[-1:].expand(lanes - needed, -1)])


def _among(of: Tensor, numbers: list[int]) -> Tensor:
    """Return where ``of`` is one of some numbers."""
    at = torch.zeros_like(of, dtype=torch.bool)
    for k in numbers:
        at = at | (of == k)
    return at
