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

from fastscore.backend import REFERENCE, Ops
from fastscore.kernels import abi
from fastscore.model import ScoreModel
from fastscore.noise import Noise, NoiseKey
from fastscore.plan import Plan, Row, fold, lower


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

    @classmethod
    def of(cls, row: Row) -> Kind:
        """Return the kind of a folded row."""
        return cls(row.evaluate, row.evaluate or row.b != 0.0, row.noisy, row.langevin.norm if row.langevin else None)


Observer = Callable[[int, "Tensor | None"], None]


class Loop:
    """A plan bound to a network and one micro-batch size; its buffers are allocated once.

    Args:
        plan: folded and validated.
        model: the score model; its network already lives on ``device``.
        batch: samples of a micro-batch.
        dtype: of the state; float32, or float64 for parity runs.
        ops: the backend.
        net_dtype: of the network's input; the state's if left out.
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
    ) -> None:
        self.plan, self.model, self.batch, self.ops = plan, model, batch, ops
        self.kinds = tuple(Kind.of(row) for row in plan.rows)
        d = int(np.prod(model.shape))

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.table = torch.tensor(lower(plan), dtype=dtype, device=device)
        self.labels = torch.tensor([row.c_noise for row in plan.rows], dtype=dtype, device=device)
        self.row = zeros(1, dtype=torch.int64)
        # Each sample's own row, for steps that depend on its norms.
        self.scratch, self.own = zeros(batch, abi.WIDTH), torch.arange(batch, device=device)
        self.x, self.hist = zeros(batch, d), zeros(plan.slots, batch, d)
        self.u = zeros(batch, d, dtype=net_dtype or dtype)
        # Views of what is fixed, made once: a view costs the host as much as a small row costs the device.
        self.idx, self.input = self.row.expand(batch), self.u.view(batch, *model.shape)
        self.input_storage = self.u.untyped_storage()._cdata
        self.key = NoiseKey(zeros(1, dtype=torch.int64), zeros(batch, dtype=torch.int64))
        self.cond = zeros(batch, dtype=torch.int64) if model.classes else None
        self.valid = zeros(batch)

    @cached_property
    def x0_rows(self) -> tuple[Row, ...]:
        """The same rows with m = x0: their p and q turn a network output into the estimate of x0."""
        in_x0 = replace(self.plan, rows=tuple(replace(row, m="x0") for row in self.plan.rows))
        return fold(in_x0, self.model.schedule, self.model.parametrization).rows

    def load(self, seed: Tensor, ids: Tensor, cond: Tensor | None) -> None:
        """Put a micro-batch into the static inputs; a short one is padded with its last sample."""
        n = len(ids)
        self.key.seed.copy_(seed)
        for buffer, values in ((self.key.ids, ids), (self.cond, cond)):
            if buffer is not None and values is not None:
                buffer[:n].copy_(values)
                buffer[n:].copy_(values[-1:].expand(self.batch - n))
        self.valid[:n].fill_(1.0)
        self.valid[n:].fill_(0.0)

    def reset(self) -> None:
        """Return state and row counter to the start."""
        for buffer in (self.x, self.hist, self.row):
            buffer.zero_()

    @torch.no_grad()
    def run(self, noise: Noise | None = None, observer: Observer | None = None, estimate: bool = False) -> Tensor:
        """Run all rows on what was loaded and return a copy of the state, [batch, *shape].

        Args:
            noise: recorded noise in place of the generated one, or None.
            observer: called after each row as observer(row, x0); the state is ``self.x``.
            estimate: whether the observer wants x0, [batch, D]; it is None in rows without network.
        """
        self.reset()
        F = None
        for k, kind in enumerate(self.kinds):
            before = self.x.clone() if estimate else None
            F = self.advance(kind, F, noise)
            if observer:
                row, x0 = self.x0_rows[k] if estimate else None, None
                if row is not None and kind.evaluate and F is not None and before is not None:
                    x0 = row.p * before + row.q * F.to(before.dtype)
                    x0 = x0.clamp(-row.clip, row.clip) if row.clip else x0
                observer(k, x0)
        return self.result()

    def result(self) -> Tensor:
        """Return a copy of the state, [batch, *shape]."""
        return self.x.clone().view(self.batch, *self.model.shape)

    def advance(self, kind: Kind, F: Tensor | None, noise: Noise | None = None) -> Tensor | None:
        """Do the row that the counter points at, and advance the counter.

        Args:
            kind: of that row.
            F: the last network output, for rows that use it again.
            noise: recorded noise, or None for the generated one.

        Returns: the network output to hand to the next row.
        """
        ops = self.ops if noise is None else REFERENCE
        noise = self.key if noise is None else noise
        table, idx = self.table, self.idx
        if kind.evaluate:
            label = self.labels.index_select(0, self.row).expand(self.batch)
            F = self.model.net(self.input, label, self.cond)
            if F.shape != self.input.shape:
                raise ValueError(f"the network returned {tuple(F.shape)} for an input of {tuple(self.input.shape)}")
            # The row is about to overwrite u, which a network that works in place hands back.
            reused = F.untyped_storage()._cdata == self.input_storage
            F = (F.clone() if reused else F).reshape(self.u.shape)
        if kind.norm is not None:
            ops.langevin(self.x, F, table, idx, noise, self.scratch, kind.norm, self.valid)
            table, idx = self.scratch, self.own
        used = F if kind.network else None
        ops.update(self.x, used, self.hist, table, idx, noise if kind.noisy else None, out_u=self.u)
        self.row.add_(1)
        return F
