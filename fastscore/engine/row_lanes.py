"""Continuous batching of plans: samples in lanes, each at its own row of its own plan.

One tick evaluates the network once for all lanes, each at its own noise level, and then does the rows up to the next
evaluation. A sample enters by the rows ahead of its first evaluation, and leaves when its plan ends; the host knows
when, so that nothing is read from the device in between. Rows of one form (see ``Act``) are one call, whatever their
numbers; where a tick has several forms, each lane keeps what its own made of it. So a sample sees the very operations
that it would see alone, and has their bits whatever company it is in.

A sample whose plan mixes two outputs of the network takes two lanes: the other one evaluates its second output in the
same call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fastscore.engine.base import base_at, columns
from fastscore.engine.capture import Recorder
from fastscore.engine.lane_inputs import LaneInputs
from fastscore.engine.lane_outputs import LaneOutputs
from fastscore.engine.plan_table import Act, Entry, PlanTable
from fastscore.engine.replays import Replays
from fastscore.engine.request import Request
from fastscore.engine.subspace import Subspace
from fastscore.errors import NonFiniteError
from fastscore.execution import Execution
from fastscore.guidance.denoiser import Guide
from fastscore.guidance.mixture import BoundPlan
from fastscore.kernels import abi
from fastscore.model.condition_shapes import Condition
from fastscore.model.projection import dimensions, onto
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import Ops
from fastscore.ops.noise import NoiseKey
from fastscore.ops.update import KnownRow

Tick = tuple[tuple[int, ...], tuple[tuple[tuple[int, ...], bool], ...]]


class RowLanes:
    """Lanes of samples whose plans are rows.

    Args:
        model, second: the networks as they run.
        execution: device, lanes (its batch) and state dtype.
        ops: the backend. net_dtype: of the networks' inputs.
        guide: what changes the estimates of all lanes, or None.
        alike: whether both outputs are told things of one form, so that one call may have both.
        recorder: makes a recorder of ticks, to be replayed; None to do each anew.
    """

    def __init__(
        self,
        model: ScoreModel,
        second: ScoreModel,
        execution: Execution,
        ops: Ops,
        net_dtype: torch.dtype,
        guide: Guide | None = None,
        alike: bool = True,
        recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        self.model, self.second, self.ops = model, second, ops
        self.device, self.dtype, self.lanes = execution.place, execution.dtype, execution.batch
        self.d = math.prod(model.shape)
        self.plans = PlanTable(model, second, self.dtype, self.device)
        self.at: dict[int, tuple[Entry, int]] = {}  # of each lane in use: its plan, and the number of its evaluation
        self.x, self.scratch, self.u = self._zeros(self.d), self._zeros(abi.WIDTH), self._zeros(self.d, dtype=net_dtype)
        self.hist = self.x.new_zeros(0, *self.x.shape)
        self.row, self.idx, self.bad, seed, ids = (self._zeros(dtype=torch.int64) for _ in range(5))
        self.key, self.valid = NoiseKey(seed, ids), torch.ones_like(self.x[:, 0])
        self.index = torch.arange(self.lanes, device=self.device)
        self.second_of: dict[int, int] = {}  # of lanes in use: the one that evaluates their second output
        self.inputs = LaneInputs(model, second, self.lanes)
        self.outputs = LaneOutputs(model, second, guide, self.inputs, self.index, net_dtype, alike)
        self.dimensions = None if model.projection is None else self._zeros()
        self.replays = Replays(recorder, self.device)

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(self.lanes, *shape, dtype=dtype or self.dtype, device=self.device)

    @torch.no_grad()
    def enter(self, lanes: Sequence[int], bound: BoundPlan | None, part: Request) -> list[int]:
        """Put samples into free lanes, a line of ``part`` each; return those whose plan has no evaluation.

        Args:
            lanes: one for each sample; then another one for each, if the plan takes two.
        """
        assert bound is not None
        lanes, seconds = lanes[: len(part)], lanes[len(part) :]
        if part.known is not None and part.mask is not None:
            part = replace(part, known=part.known.to(self.dtype).contiguous(), mask=part.mask.contiguous())
        entry = self.plans.add(bound, part.known is not None)
        if len(self.hist) < self.plans.slots:
            hist = self.hist.new_zeros(self.plans.slots, *self.x.shape)
            hist[: len(self.hist)] = self.hist
            self.hist = hist
        at, other = (torch.tensor(v, dtype=torch.int64, device=self.device) for v in (lanes, seconds))
        x, u = self._opened(entry, part)
        self.at |= dict.fromkeys(lanes, (entry, 0))
        self.second_of |= dict(zip(lanes, seconds, strict=True)) if seconds else {}
        entry.users += len(lanes)
        # What goes wrong from here on leaves lanes that have to be cleared.
        self.x[at], self.u[at] = x, u
        self.key.ids[at], self.key.seed[at], self.bad[at] = part.key.ids, part.key.seed, -1
        self.inputs.take(at, part, bound.guidance, other)
        if self.dimensions is not None:
            self.dimensions[at] = dimensions(self.model, part.cond, len(part), self.device).to(self.dtype)
        self.row[at] = entry.first + len(entry.kinds)
        if seconds:
            self.outputs.source[other], self.outputs.partner[at] = at, other
        return [] if entry.stretches else list(lanes)

    def width(self, bound: BoundPlan | None) -> int:
        """Return how many lanes a sample of a plan takes."""
        rows = () if bound is None or not self.outputs.paired else bound.plan.rows
        return 2 if any(row.evaluate and row.calls != "F" for row in rows) else 1

    @property
    def taken(self) -> set[int]:
        """The lanes that are not free."""
        return {*self.at, *self.second_of.values()}

    def _opened(self, entry: Entry, part: Request) -> tuple[Tensor, Tensor]:
        """Return state and next input of new samples: the rows ahead of the first evaluation are done."""
        n, plan = len(part), entry.bound.plan
        x = torch.zeros(n, self.d, dtype=self.dtype, device=self.device)
        hist, u = x.new_zeros(plan.slots, n, self.d), torch.zeros_like(x, dtype=self.u.dtype)
        first = plan.rows[0]
        if first.a and part.init is not None:
            x.copy_(part.init)
        law = base_at(self.model, plan.schedule, first.t) if first.a and not first.noisy and first.draw == 0 else None
        if law is not None:
            mean, std = columns(law, self.model.shape, x)
            z = part.prior.normal(torch.zeros(1, dtype=torch.int64, device=self.device), self.d, self.dtype)
            torch.addcmul(mean, std, z, out=x)
        table = self.plans.columns
        for k, kind in enumerate(entry.kinds):
            idx = torch.full((n,), entry.first + k, device=self.device)
            key, known = part.prior if kind.first else part.key, None
            if part.known is not None and part.mask is not None:
                known = KnownRow(part.known, part.mask, table.known, idx, key)
            self.ops.update(x, None, hist, table.table, idx, key if kind.noisy else None, known=known, out_u=u)
            self._settle(x, u, idx, part.cond)
        return x, u

    def _settle(self, x: Tensor, u: Tensor, idx: Tensor, cond: Condition) -> None:
        """Bring what rows left back to the subspace of the data, if there is one, and make the next input again."""
        if self.dimensions is not None:
            columns = self.plans.columns
            x.copy_(onto(self.model, x, cond, columns.alpha.index_select(0, idx)))
            u.copy_(columns.table.index_select(0, idx)[:, abi.C_IN : abi.C_IN + 1] * x)

    @torch.no_grad()
    def tick(self) -> list[int]:
        """Evaluate every lane once, and do its rows up to the next evaluation; return the lanes that are done."""
        tick = self._forms()
        made = self.plans.made, self.inputs.made, len(self.hist)
        moving = (self.x, self.u, self.hist, self.row, self.bad)
        self.replays.do(tick, made, moving, partial(self._do, tick))
        done = []
        for lane, (entry, k) in self.at.items():
            self.at[lane] = entry, k + 1
            if k + 1 == len(entry.stretches):
                done.append(lane)
        return done

    def _forms(self) -> Tick:
        """Return the forms of a tick: numbers of its calls, and row by row those of its acts, and if all have a row."""
        calls, acts = set[int](), list[dict[int, int]]()
        for entry, k in self.at.values():
            stretch = entry.stretches[k]
            calls.add(stretch.call)
            for j, act in enumerate(stretch.acts):
                if j == len(acts):
                    acts.append({})
                acts[j][act] = acts[j].get(act, 0) + 1
        rows = tuple((tuple(sorted(forms)), sum(forms.values()) == len(self.at)) for forms in acts)
        return tuple(sorted(calls)), rows

    def begin(self) -> None:
        """Take notice of what has changed in the networks; called where a turn begins."""
        self.replays.begin(*self.model.networks, *self.second.networks)

    def _do(self, tick: Tick) -> None:
        """Do a tick, reading nothing but what lies on the device."""
        (numbers, acts), table = tick, self.plans.columns
        calls = [(k, self.plans.calls[k]) for k in numbers]
        count = self.lanes if self.replays.recorder is not None else 1 + max(self.taken, default=0)
        twice = any(entry.bound.plusplus for entry, _ in self.at.values())  # of one guide all are, or none
        F, F2 = self.outputs(calls, table, self.row, self.x, self.u, count, twice)
        subspace = None
        if self.dimensions is not None:
            subspace = Subspace(self.model, self.inputs, table.alpha, table.weights.t(), self.dimensions)
            F, F2 = (F, F2) if self.outputs.guide is not None or F is None else subspace.outputs(F, F2, self.row)
        length = table.length.index_select(0, self.row)
        for j, (forms, everyone) in enumerate(acts):
            torch.mul(self.row + j, j < length, out=self.idx)
            if len(forms) == 1 and everyone:
                self._act(self.plans.acts[forms[0]], F, F2, subspace, self.x, self.hist, self.u)
                continue
            before, of = (self.x, self.hist, self.u), table.act.index_select(0, self.idx)[:, None]
            after = [v.clone() for v in before]
            for k in forms:
                x, hist, u = (v.clone() for v in before)
                self._act(self.plans.acts[k], F, F2, subspace, x, hist, u)
                for own, v in zip(after, (x, hist, u), strict=True):
                    torch.where(of == k, v, own, out=own)
            for own, v in zip(before, after, strict=True):
                own.copy_(v)
        lost = (self.bad < 0) & ~torch.isfinite(self.x).all(1)
        torch.where(lost, self.row, self.bad, out=self.bad)
        self.row.add_(length)

    def _act(
        self, act: Act, F: Tensor | None, F2: Tensor | None, on: Subspace | None, x: Tensor, hist: Tensor, u: Tensor
    ) -> None:
        """Do rows of one form in all lanes, each at its ``idx``."""
        F, F2 = F if act.network else None, F2 if act.second else None
        columns, key, known = self.plans.columns, self.key, None
        table, idx = columns.table, self.idx
        if act.norm is not None:
            langevin = self.ops.langevin if on is None else on.langevin
            langevin(x, F, table, idx, key, self.scratch, act.norm, self.valid, F2=F2)
            table, idx = self.scratch, self.index
        if act.known and self.inputs.known is not None and self.inputs.mask is not None:
            known = KnownRow(self.inputs.known, self.inputs.mask, columns.known, self.idx, key)
        noise = key if act.noisy else None
        self.ops.update(x, F, hist[: act.slots], table, idx, noise, F2=F2, known=known, out_u=u)
        self._settle(x, u, self.idx, self.inputs.first)

    def leave(self, lanes: Sequence[int]) -> tuple[Tensor, list[Exception | None]]:
        """Take samples out of lanes; return them, [n, *shape], and what is wrong with each."""
        at = torch.tensor(lanes, device=self.device)
        x, errors = self.x[at], list[Exception | None]([None] * len(lanes))
        lost = (~torch.isfinite(x).all(1)).tolist()
        if any(lost):
            for k, (lane, row, sample) in enumerate(
                zip(lanes, self.bad[at].tolist(), self.key.ids[at].tolist(), strict=True)
            ):
                errors[k] = self._lost(lane, row, sample) if lost[k] else None
        self.clear(lanes)
        return x.view(-1, *self.model.shape), errors

    def _lost(self, lane: int, row: int, sample: int) -> NonFiniteError:
        entry, _ = self.at[lane]
        k = max(row - entry.first, 0)
        t = entry.bound.plan.rows[k].t
        return NonFiniteError(
            f"id {sample} is NaN or Inf at row {k} (t = {t:.6g}, {self.dtype}); the network's output or the step is "
            "not finite there"
        )

    def clear(self, lanes: Sequence[int]) -> None:
        """Empty lanes: they wait at row 0, with a state that any network can read."""
        at = torch.tensor(lanes, device=self.device)
        for v in (self.x, self.u, self.row):
            v[at] = 0
        self.hist[:, at] = 0.0
        for lane in lanes:
            self.at.pop(lane)[0].users -= 1
            if (second := self.second_of.pop(lane, None)) is not None:
                self.outputs.source[second] = second
