"""The loop over plan rows around the network; the only one there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastscore.kernels import abi
from fastscore.model import ScoreModel
from fastscore.noise import Noise
from fastscore.ops.norms import langevin_ref
from fastscore.ops.update import update_ref
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


Observer = Callable[[int, "Tensor | None"], None]


class Loop:
    """A plan bound to a network and one micro-batch size; its buffers are allocated once.

    Args:
        plan: folded and validated.
        model: the score model; its network already lives on ``device``.
        batch: samples of a micro-batch.
        dtype: of the state; float32, or float64 for parity runs.
    """

    def __init__(self, plan: Plan, model: ScoreModel, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        self.plan, self.model, self.batch = plan, model, batch
        d = int(np.prod(model.shape))
        rows = lower(plan)
        self.table = torch.tensor(rows, dtype=dtype, device=device)
        # Each sample's own row for steps that depend on its norms, behind the common ones.
        self.scratch = torch.zeros((batch, abi.WIDTH), dtype=dtype, device=device)
        self.own = torch.arange(batch, device=device)
        self.common = torch.arange(len(rows), device=device)
        self.labels = torch.tensor([row.c_noise for row in plan.rows], dtype=dtype, device=device)
        self.x = torch.zeros((batch, d), dtype=dtype, device=device)
        self.u = torch.zeros_like(self.x)
        self.hist = torch.zeros((plan.slots, batch, d), dtype=dtype, device=device)

    @cached_property
    def x0_rows(self) -> tuple[Row, ...]:
        """The same rows with m = x0: their p and q turn a network output into the estimate of x0."""
        in_x0 = replace(self.plan, rows=tuple(replace(row, m="x0") for row in self.plan.rows))
        return fold(in_x0, self.model.schedule, self.model.parametrization).rows

    @torch.no_grad()
    def run(
        self,
        noise: Noise,
        cond: Tensor | None,
        valid: Tensor,
        observer: Observer | None = None,
        estimate: bool = False,
    ) -> Tensor:
        """Run all rows and return a copy of the state, [batch, *shape].

        Args:
            noise: of the batch.
            cond: labels [batch] or None.
            valid: 1 for samples, 0 for padding, [batch] in the state's dtype.
            observer: called after each row as observer(row, x0); the state is ``self.x``.
            estimate: whether the observer wants x0, [batch, D]; it is None in rows without network.
        """
        self.x.zero_()
        self.hist.zero_()
        F = None
        for k, row in enumerate(self.plan.rows):
            x0 = None
            table, idx = self.table, self.common[k].expand(self.batch)
            if row.evaluate:
                u = self.u.view(self.batch, *self.model.shape)
                F = self.model.net(u, self.labels[k].expand(self.batch), cond).reshape(self.batch, -1)
                if estimate:
                    x0 = self.x0_rows[k].p * self.x + self.x0_rows[k].q * F.to(self.x.dtype)
                if row.langevin is not None:
                    langevin_ref(self.x, F, table, idx, noise, self.scratch, row.langevin.norm, valid)
                    table, idx = self.scratch, self.own
            uses_network = row.evaluate or row.b != 0.0
            update_ref(
                self.x,
                F if uses_network else None,
                self.hist,
                table,
                idx,
                noise if row.noisy else None,
                out_u=self.u,
            )
            if observer:
                observer(k, x0)
        return self.x.clone().view(self.batch, *self.model.shape)
