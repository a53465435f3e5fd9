"""The loop over plan rows around the network; the only one there is.

Everything that a row depends on lies on the device: coefficients and labels in tables, the row
number in a counter that each row advances. The host only knows the kind of each row, so the same
code runs eagerly and under capture, and a captured group of rows can be replayed for all groups of
its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastscore.guidance.denoiser import Denoiser, Guide, output
from fastscore.guidance.mixture import Guidance, fold, in_x0
from fastscore.kernels import abi
from fastscore.model.conditions import Inputs, condition_buffer
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import REFERENCE, Ops
from fastscore.ops.noise import Noise, NoiseKey
from fastscore.ops.update import Known
from fastscore.plan.rows import Plan, Row, lower, lower_known


@dataclass(frozen=True)
class Step:
    """What a callback sees after a row: the micro-batch, padding removed.

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


@dataclass(frozen=True)
class Kind:
    """What the host must know of a row: which calls it makes, not with which numbers."""

    evaluate: bool
    network: bool
    noisy: bool
    norm: str | None
    guided: bool = False

    @classmethod
    def of(cls, row: Row) -> Kind:
        """Return the kind of a folded row."""
        norm = row.langevin.norm if row.langevin else None
        return cls(row.evaluate, row.evaluate or row.b != 0.0, row.noisy, norm, row.q2 != 0.0)


Observer = Callable[[int, "Tensor | None"], None]
Outputs = tuple["Tensor | None", "Tensor | None"]  # F and F2 of the last evaluation, [batch, D]


class Loop:
    """A plan bound to a network and one micro-batch size; its buffers are allocated once.

    Args:
        plan: folded and validated.
        model: the score model; its network already lives on ``device``.
        batch: samples of a micro-batch.
        dtype: of the state; float32, or float64 for parity runs.
        ops: the backend.
        net_dtype: of the network's input; the state's if left out.
        guidance: of guided rows, whose plan was folded with it.
        guide: what changes the denoiser of every row; the plan is then folded for a guided model.
        known: whether runs give known data.
    """

    def __init__(
        self,
        plan: Plan,
        model: ScoreModel,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
        ops: Ops = REFERENCE,
        net_dtype: torch.dtype | None = None,
        guidance: Guidance | None = None,
        guide: Guide | None = None,
        known: bool = False,
    ) -> None:
        self.guidance, self.guide = guidance, guide
        self.plan, self.model, self.batch, self.ops = plan, model, batch, ops
        self.kinds = tuple(Kind.of(row) for row in plan.rows)
        d = int(np.prod(model.shape))

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.table = torch.tensor(lower(plan), dtype=dtype, device=device)
        # Labels of both networks, and the input scale of the second.
        labels = [[row.c_noise for row in plan.rows], [row.c_noise2 for row in plan.rows]]
        self.labels, self.labels2 = torch.tensor(labels, dtype=dtype, device=device)
        self.c_in2 = torch.tensor([row.c_in2 for row in plan.rows], dtype=dtype, device=device)
        self.row = zeros(1, dtype=torch.int64)
        # Each sample's own row, for steps that depend on its norms.
        self.scratch, self.own = zeros(batch, abi.WIDTH), torch.arange(batch, device=device)
        self.x, self.hist = zeros(batch, d), zeros(plan.slots, batch, d)
        self.u = zeros(batch, d, dtype=net_dtype or dtype)
        # Views of what is fixed, made once: a view costs the host as much as a small row costs the device.
        self.idx, self.input = self.row.expand(batch), self.u.view(batch, *model.shape)
        self.key = NoiseKey(zeros(1, dtype=torch.int64), zeros(batch, dtype=torch.int64))
        self.update = ops.bind(self.x, self.hist, self.table, self.idx, self.key, self.u)
        self.cond = condition_buffer(model, batch, dtype, device)
        self.cond2 = self.cond if guidance is None or guidance.model else self._null(guidance.null)
        if guidance is not None and guidance.model and not (guidance.model.classes or guidance.model.cond_shape):
            self.cond2 = None
        self.init = zeros(batch, d) if plan.rows[0].a else None
        self.known = self.mask = None
        if known:
            self.known, self.mask = zeros(batch, d), zeros(batch, d, dtype=torch.bool)
        self.known_table = torch.tensor(lower_known(plan), dtype=dtype, device=device)
        self.y: Tensor | None = None  # read by guides, which are never captured
        self.valid = zeros(batch)
        self.denoiser = None
        if guide is not None:
            self.denoiser = Denoiser(in_x0(plan), model, guidance, self.u, dtype)
            second = [row.q2 != 0.0 for row in self.denoiser.plan.rows]
            self.kinds = tuple(replace(kind, guided=g) for kind, g in zip(self.kinds, second, strict=True))

    @cached_property
    def x0_rows(self) -> tuple[Row, ...]:
        """The same rows with m = x0: their p, q and q2 turn network outputs into the estimate of x0."""
        return fold(in_x0(self.plan), self.model, self.guidance, self.guide is not None).rows

    def _null(self, null: Tensor | None) -> Tensor | None:
        """Return the null condition of the batch."""
        if self.cond is None or self.model.classes:
            return None if self.cond is None else torch.full_like(self.cond, self.model.classes)
        return torch.zeros_like(self.cond) if null is None else null.to(self.cond).expand_as(self.cond).contiguous()

    def load(self, seed: Tensor, ids: Tensor, cond: Tensor | None, inputs: Inputs | None = None) -> None:
        """Put a micro-batch into the static inputs; a short one is padded with its last sample."""
        n, inputs = len(ids), inputs or Inputs()
        self.key.seed.copy_(seed)
        pairs = [(self.key.ids, ids), (self.cond, cond), (self.init, inputs.init)]
        for buffer, values in (*pairs, (self.known, inputs.known), (self.mask, inputs.mask)):
            if buffer is not None and values is not None:
                buffer[:n].copy_(values)
                buffer[n:].copy_(buffer[n - 1 : n].expand_as(buffer[n:]))
        y = inputs.y
        self.y = None if y is None else torch.cat([y, y[-1:].expand(self.batch - n, *y.shape[1:])])
        self.valid[:n].fill_(1.0)
        self.valid[n:].fill_(0.0)

    def reset(self) -> None:
        """Return state and row counter to the start."""
        for buffer in (self.x, self.hist, self.row):
            buffer.zero_()
        if self.init is not None:
            self.x.copy_(self.init)

    @torch.no_grad()
    def run(self, noise: Noise | None = None, observer: Observer | None = None, estimate: bool = False) -> Tensor:
        """Run all rows on what was loaded and return a copy of the state, [batch, *shape].

        Args:
            noise: recorded noise in place of the generated one, or None.
            observer: called after each row as observer(row, x0); the state is ``self.x``.
            estimate: whether the observer wants x0, [batch, D]; it is None in rows without network.
        """
        self.reset()
        outputs: Outputs = (None, None)
        for k, kind in enumerate(self.kinds):
            before = self.x.clone() if estimate else None
            outputs = self.advance(kind, outputs, noise)
            if observer:
                row, x0 = self.x0_rows[k] if estimate else None, None
                F, F2 = outputs
                if row is not None and kind.evaluate and F is not None and before is not None:
                    x0 = row.p * before + row.q * F.to(before.dtype)
                    x0 = x0 if F2 is None else x0 + row.q2 * F2.to(before.dtype)
                    x0 = x0.clamp(-row.clip, row.clip) if row.clip else x0
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
        F2 = F2 if kind.guided else None
        if noise is None and kind.norm is None and self.known is None:
            self.update(F, F2, kind.noisy)
        else:
            self._update(kind, F, F2, self.key if noise is None else noise, self.ops if noise is None else REFERENCE)
        self.row.add_(1)
        return outputs

    def _update(self, kind: Kind, F: Tensor | None, F2: Tensor | None, noise: Noise, ops: Ops) -> None:
        """Do a row whose step, noise or known data come from elsewhere."""
        table, idx = self.table, self.idx
        if kind.norm is not None:
            ops.langevin(self.x, F, table, idx, noise, self.scratch, kind.norm, self.valid, F2=F2)
            table, idx = self.scratch, self.own
        known = None
        if self.known is not None and self.mask is not None:
            known = Known(self.known, self.mask, self.known_table, self.idx, noise)
        own = noise if kind.noisy else None
        ops.update(self.x, F, self.hist, table, idx, own, F2=F2, known=known, out_u=self.u)

    def _evaluate(self, kind: Kind) -> Outputs:
        """Return the network's outputs for the row that the counter points at."""
        if self.guide is not None and self.denoiser is not None:
            denoise = self.denoiser.at(self.row, kind.guided, self.cond, self.cond2)
            x = self.x.view_as(self.input)
            D = self.guide(denoise, x, *denoise.scales(x), self.y)
            if D.shape != x.shape:
                raise ValueError(f"the guide returned {tuple(D.shape)} for a state of {tuple(x.shape)}")
            return D.detach().reshape(self.batch, -1), None
        F = output(self.model, self.input, self.labels.index_select(0, self.row), self.cond)
        F2 = None
        if kind.guided and self.guidance is not None:
            second = self.guidance.model
            u = self.c_in2.index_select(0, self.row) * self.x  # the input again, or that of a second network
            u = u.to(self.u.dtype).view_as(self.input)
            F2 = output(second or self.model, u, self.labels2.index_select(0, self.row), self.cond2)
        return F, F2
