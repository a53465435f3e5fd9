"""The loop over plan rows around the network, all samples of a micro-batch at one row.

Where each sample is at a row of its own, ``RowLanes`` does the same rows by the same operations.

Everything that a row depends on lies on the device: coefficients and labels in tables, the row
number in a counter that each row advances. The host only knows the kind of each row, so the same
code runs eagerly and under capture, and a captured group of rows can be replayed for all groups of
its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastscore.engine.base import base_at, columns
from fastscore.engine.kind import Kind, kinds_of
from fastscore.engine.labels import Labels
from fastscore.engine.mixes import Mixes
from fastscore.engine.request import Request
from fastscore.engine.subspace import Subspace
from fastscore.execution import Execution
from fastscore.guidance.denoiser import Denoiser, Guide, Level
from fastscore.guidance.mixture import BoundPlan
from fastscore.guidance.per_sample import with_lines
from fastscore.guidance.told import Conditions
from fastscore.kernels import abi
from fastscore.model.condition_shapes import Told, each
from fastscore.model.score import ScoreModel, evaluate
from fastscore.network.prepared import Prepared
from fastscore.ops.backend import REFERENCE, Ops
from fastscore.ops.noise import Noise, NoiseKey, RecordedNoise
from fastscore.ops.update import KnownRow
from fastscore.plan.rows import Row, lower, lower_known


@dataclass(frozen=True)
class Step:
    """The state that a callback sees after a row: the micro-batch, padding removed.

    Attributes:
        row: number of the row; t, s: its times.
        ids: sample ids, [n].
        x: state x_s, [n, *shape]; a copy.
        x0: the estimate E[x_0 | x_t] that the row's evaluation gave; None if it had none.
    """

    row: int
    t: float
    s: float
    ids: Tensor
    x: Tensor
    x0: Tensor | None


Observer = Callable[[int, "Tensor | None"], None]
Outputs = tuple["Tensor | None", "Tensor | None"]  # F and F2 of the last evaluation, as rows read them


class Loop:
    """A plan bound to a network and one micro-batch size; its buffers are allocated once.

    Args:
        bound: the plan with its networks' coefficients.
        model: the score model as it runs; ``second`` that of mixed rows, the same one if left out.
        execution: its device, micro-batch and state dtype.
        ops: the backend.
        net_dtype: of the network's input.
        guide: what changes the estimate of every row; the plan is then bound as a guided one.
        known: whether requests give known data.
    """

    def __init__(
        self,
        bound: BoundPlan,
        model: ScoreModel,
        execution: Execution,
        ops: Ops = REFERENCE,
        net_dtype: torch.dtype | None = None,
        second: ScoreModel | None = None,
        guide: Guide | None = None,
        known: bool = False,
    ) -> None:
        plan, batch, device, dtype = bound.plan, execution.batch, execution.place, execution.dtype
        self.bound, self.plan, self.model, self.batch, self.ops, self.guide = bound, plan, model, batch, ops, guide
        self.execution = execution
        self.second = second or model
        self.kinds = kinds_of(bound, guide is not None)
        d = int(np.prod(model.shape))

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.table = torch.tensor(lower(plan), dtype=dtype, device=device)
        self.labels = Labels(plan, model, self.second, self.table)
        self.row = self.labels.row
        # Each sample's own row, for steps that depend on its norms.
        self.scratch, self.scratch_row = zeros(batch, abi.WIDTH), torch.arange(batch, device=device)
        self.x, self.hist = zeros(batch, d), zeros(plan.slots, batch, d)
        self.conditions = Conditions(model, bound.guidance, batch)
        self.mixes = Mixes(bound, model, execution, self.kinds, self.conditions, net_dtype or dtype)
        self.u = self.mixes.inputs[0]
        self.u2 = self.u if bound.guidance is None else torch.zeros_like(self.u)
        # Views of what is fixed, made once: a view costs the host as much as a small row costs the device.
        self.idx, self.input = self.row.expand(batch), self.u.view(batch, *model.shape)
        self.key, self.prior = (NoiseKey(*(zeros(batch, dtype=torch.int64) for _ in range(2))) for _ in range(2))
        rows, own = (self.table, self.idx), (self.scratch, self.scratch_row)
        self.update, self.draw_prior, self.update_own = (
            ops.bind(self.x, self.hist, *where, key, self.u)
            for where, key in ((rows, self.key), (rows, self.prior), (own, self.key))
        )
        self.init, first = zeros(batch, d) if plan.rows[0].a else None, plan.rows[0]
        law = base_at(model, plan.schedule, first.t) if first.a and not first.noisy and first.draw == 0 else None
        self.base = None if law is None else columns(law, model.shape, self.x)
        self.known = self.mask = self.known_table = None
        if known:
            self.known, self.mask = zeros(batch, d), zeros(batch, d, dtype=torch.bool)
            self.known_table = torch.tensor(lower_known(plan), dtype=dtype, device=device)
        self.subspace = Subspace.of(bound, self.conditions, self.x) if model.projection is not None else None
        self.y: Tensor | None = None  # read by guides, which are never captured
        self.lines: tuple[Tensor, ...] = ()  # what the guide holds for each sample; ``guided`` is the guide with them
        self.guided = guide
        self.valid, self.count = zeros(batch).fill_(1.0), batch
        self.denoiser = None
        if guide is not None:
            self.denoiser = Denoiser(model, self.second, self.u.dtype)
            self.levels = Level.table(bound, dtype, device)

    @property
    def networks(self) -> tuple[object, ...]:
        """Whatever a run evaluates: networks, modules that they were said to run, and the guide."""
        return (*self.model.networks, *self.second.networks, self.guide)

    @cached_property
    def x0_rows(self) -> tuple[Row, ...]:
        """The rows that turn what they read, outputs or a guide's estimate, into the estimate of x0."""
        if self.guide is None:
            return self.bound.x0
        return tuple(replace(row, p=0.0, q=1.0, q2=0.0) if row.evaluate else row for row in self.bound.x0)

    def load(self, part: Request) -> None:
        """Put a micro-batch, padded to its size, into the static inputs."""
        self.take(part.key, part.prior)
        for buffer, values in ((self.init, part.init), (self.known, part.known), (self.mask, part.mask)):
            if buffer is not None and values is not None:
                buffer.copy_(values)
        if self.base is not None and self.init is not None:
            noise = recorded(part) or self.prior
            z = noise.normal(torch.zeros_like(self.row), self.init.shape[1], self.init.dtype)
            torch.addcmul(self.base[0], self.base[1], z, out=self.init)
        self.conditions.load(part.told)
        self.mixes.load()
        if self.subspace is not None:
            self.subspace.load()
        self.y, self.lines = part.y, part.guide
        self.guided = with_lines(self.guide, len(self.model.shape), self.lines)
        if self.count != part.valid:
            self.count = part.valid
            self.valid[: self.count].fill_(1.0)
            self.valid[self.count :].fill_(0.0)

    def take(self, key: NoiseKey, prior: NoiseKey | None = None) -> None:
        """Put the keys of a micro-batch into the static inputs; ``prior`` is that of the first row, ``key`` if None."""
        for own, given in ((self.key, key), (self.prior, prior or key)):
            own.seed.copy_(given.seed)
            own.ids.copy_(given.ids)

    def reset(self) -> None:
        """Return state and row counter to the start."""
        for buffer in (self.x, self.hist):
            buffer.zero_()
        self.point(0)
        if self.init is not None:
            self.x.copy_(self.init)
        if self.denoiser is not None:
            self.denoiser.memory.clear()

    def point(self, row: int) -> None:
        """Point the row counter at a row."""
        self.labels.point(row)

    @torch.no_grad()
    def run(
        self, noise: Noise | None = None, observer: Observer | None = None, estimate: Container[int] = ()
    ) -> Tensor:
        """Run all rows on what was loaded and return a copy of the state, [batch, *shape].

        Args:
            noise: recorded noise in place of the generated one, or None.
            observer: called after each row as observer(row, x0); the state is ``self.x``.
            estimate: rows whose x0, [batch, D], the observer wants; it is None in rows without network.
        """
        self.reset()
        outputs: Outputs = (None, None)
        for k, kind in enumerate(self.kinds):
            before = self.x.clone() if k in estimate else None
            outputs = self.advance(kind, outputs, noise)
            if observer:
                x0, (F, F2) = None, outputs if self.guide is None else (outputs[0], None)
                if before is not None and kind.evaluate and F is not None:
                    row = self.x0_rows[k]
                    x0 = row.p * before + row.q * F.flatten(1).to(before.dtype)
                    x0 = x0 if F2 is None else x0 + row.q2 * F2.flatten(1).to(before.dtype)
                    x0 = x0.clamp(-row.clip, row.clip) if row.clip else x0
                    x0 = x0 if self.subspace is None else self.subspace.estimate(x0)
                observer(k, x0)
        return self.result()

    def result(self) -> Tensor:
        """Return a copy of the state, [batch, *shape]."""
        return self.x.clone().view(self.batch, *self.model.shape)

    def advance(self, kind: Kind, outputs: Outputs, noise: Noise | None = None) -> Outputs:
        """Do the row that the counter points at, and advance the counter.

        Args:
            kind: of that row.
            outputs: the last network outputs, for rows that use them again.
            noise: recorded noise, or None for the generated one.

        Returns: the network outputs to hand to the next row.
        """
        if kind.evaluate:
            outputs = self._evaluate(kind)
        F, F2 = outputs if kind.network else (None, None)
        F2 = F2 if kind.second else None
        source, ops = (self.prior if kind.first else self.key, self.ops) if noise is None else (noise, REFERENCE)
        if kind.norm is not None:
            langevin = ops.langevin if self.subspace is None else self.subspace.langevin
            langevin(self.x, F, self.table, self.idx, source, self.scratch, kind.norm, self.valid, F2=F2)
        if noise is None and self.known is None:
            bound = self.draw_prior if kind.first else self.update if kind.norm is None else self.update_own
            bound(F, F2, kind.noisy)
        else:
            self._update(kind, F, F2, source, ops)
        if self.subspace is not None:
            self.x.copy_(self.subspace.state(self.x, self.row))
            # The next input again, with the arithmetic of a row.
            self.u.copy_(self.table.index_select(0, self.row)[:, abi.C_IN : abi.C_IN + 1] * self.x)
        self.labels.step(self.ops)
        return outputs

    def _update(self, kind: Kind, F: Tensor | None, F2: Tensor | None, noise: Noise, ops: Ops) -> None:
        """Do a row whose noise or known data come from elsewhere."""
        table, idx = (self.table, self.idx) if kind.norm is None else (self.scratch, self.scratch_row)
        known = None
        if self.known is not None and self.mask is not None and self.known_table is not None:
            known = KnownRow(self.known, self.mask, self.known_table, self.idx, noise)
        row_noise = noise if kind.noisy else None
        ops.update(self.x, F, self.hist, table, idx, row_noise, F2=F2, known=known, out_u=self.u)

    def level(self, at: Tensor) -> Level:
        """Return the levels of rows ``at``, [N] or [1]; of a guided loop."""
        return Level(*self.levels.index_select(1, at).unbind(0))

    def second_input(self) -> tuple[Tensor, Tensor]:
        """Return input and label of the second evaluation of the row that the counter points at."""
        torch.mul(self.labels.scale(), self.x, out=self.u2)  # the input again, or that of a second network
        return self.u2.view_as(self.input), self.labels.label(1)

    def _evaluate(self, kind: Kind) -> Outputs:
        """Return the network's outputs for the row that the counter points at."""
        told, null, together = self.conditions.of(kind.terms), self.conditions.second, self.mixes.of(kind)
        if self.guided is not None and self.denoiser is not None:
            denoise = self.denoiser.at(self.level(self.row), kind.mixed, told, null, together)
            x = self.x.view_as(self.input)
            if kind.alone:
                return denoise.of_second(x), None
            D, free = denoise.guided(self.guided, x, self.y)
            return D, denoise.of_second(x) if kind.mixed and self.bound.plusplus else free
        if kind.alone:
            F, F2 = self._output(self.second, self.input, self.labels.label(1), null), None
        elif together is not None:
            F, F2 = together.again(self.labels.label())
        else:
            F = self._output(self.model, self.input, self.labels.label(), told)
            F2 = self._output(self.second, *self.second_input(), null) if kind.mixed else None
        return (F, F2) if self.subspace is None else self.subspace.outputs(F, F2, self.row)

    def _output(self, model: ScoreModel, u: Tensor, label: Tensor, cond: Told) -> Tensor:
        """Return a network's output, as rows read it; lines of padding that it need not compute repeat its last one."""
        needed = model.net.needed(self.count) if isinstance(model.net, Prepared) else self.batch
        if needed >= self.batch:
            return evaluate(model, u, label, cond, as_left=self.subspace is None)
        F = evaluate(model, u[:needed], label, each(lambda v: v[:needed], cond))
        return torch.cat([F, F[-1:].expand(self.batch - needed, -1)])


def recorded(part: Request) -> RecordedNoise | None:
    """Return the recorded noise of a micro-batch; None if its noise is generated."""
    return None if part.noise is None else RecordedNoise(part.noise)
