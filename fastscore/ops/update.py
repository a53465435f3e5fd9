"""The fused row, in PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore.kernels import abi
from fastscore.ops.noise import Noise


@dataclass(frozen=True)
class KnownRow:
    """The known part of an image that is being inpainted: it follows a row of its own.

        x' <- a y + c z   where mask is 1, with a, c and the number of the draw z from ``table[idx]``

    Attributes:
        y: clean values, [N, D] like x.
        mask: 1 where y is known, [N, D] bool.
        table, idx: as for update_ref; only columns A, C and DRAW are read.
        noise: where z comes from; the same key as the row's own noise.
    """

    y: Tensor
    mask: Tensor
    table: Tensor
    idx: Tensor
    noise: Noise


def update_ref(
    x: Tensor,
    F: Tensor | None,
    hist: Tensor,
    table: Tensor,
    idx: Tensor,
    noise: Noise | None,
    *,
    F2: Tensor | None = None,
    known: KnownRow | None = None,
    out_u: Tensor | None = None,
    out_mean: Tensor | None = None,
) -> None:
    r"""Advance the state by one plan row.

        m = p x + q F + q2 F2,   x' = a x + b m + sum_k w_k h_k + c z,   h[push] <- m,   u' = c_in x'

    evaluated from left to right, every product and every sum rounded on its own. m is clipped to
    [-clip, clip] if clip > 0.

    Args:
        x: state x_t, [N, D] float32 (float64 in parity runs); updated in place.
        F: raw network output, [N, D], or [N, C, ...] as the network left it; any float dtype; None if the row has
            none. May not alias x.
        hist: history slots, [S, N, D] like x, S = plan.slots (may be 0); finite from the start.
        table: lowered plan, [rows, abi.WIDTH] like x.
        idx: row read by each sample, [N] int32 or int64 (broadcast with stride 0); rows may differ in everything.
        noise: where z comes from; None if the row's c is 0.
        F2: second network output (a mixture), like F, if not of its layout; None leaves its term out.
        known: what replaces x' inside a mask, before u' is made; None for no mask.
        out_u: next network input, [N, D] in the network's dtype; None to leave it.
        out_mean: receives x' without its noise term, and a y inside the mask, [N, D] like x.

    Raises:
        ValueError: shapes disagree, or there is an F2 without F.

    Error: float32 against float64 <= 4 u (|a x| + |b m| + sum |w h| + |c z|) with u = 2^-24 for each
    of the S + 3 terms; noise adds 1e-6 |c|.
    """
    F, F2 = (v if v is None else v.flatten(1) for v in (F, F2))
    if F2 is not None and (F is None or F2.shape != F.shape):
        raise ValueError(f"update: F2 {tuple(F2.shape)} needs an F of the same shape")
    if (F is not None and F.shape != x.shape) or hist.shape[1:] != x.shape or idx.shape != x.shape[:1]:
        shapes = tuple(None if t is None else tuple(t.shape) for t in (x, F, hist, idx))
        raise ValueError(f"update: x, F, hist and idx have shapes {shapes}; expected [N, D], [N, D], [S, N, D], [N]")
    row = table.index_select(0, idx)

    def column(k: int) -> Tensor:
        return row[:, k : k + 1]

    y = column(abi.A) * x
    if F is not None:
        m = network_value(row, x, F, F2)
        bound = column(abi.CLIP)
        bound = bound.masked_fill(bound <= 0.0, math.inf)
        m = torch.maximum(torch.minimum(m, bound), -bound)
        y = y + column(abi.B) * m
    for k in range(len(hist)):
        y = y + column(abi.W0 + k) * hist[k]
    mean = y
    if noise is not None:
        y = y + column(abi.C) * noise.normal(column(abi.DRAW)[:, 0], x.shape[1], x.dtype)
    if known is not None:
        rows = known.table.index_select(0, known.idx)
        center = rows[:, abi.A : abi.A + 1] * known.y
        z = known.noise.normal(rows[:, abi.DRAW], x.shape[1], x.dtype)
        y = torch.where(known.mask, center + rows[:, abi.C : abi.C + 1] * z, y)
        mean = torch.where(known.mask, center, mean)
    if F is not None:
        for k in range(len(hist)):
            hist[k] = torch.where(column(abi.PUSH) == k, m, hist[k])
    x.copy_(y)
    if out_u is not None:
        out_u.copy_(column(abi.C_IN) * y)
    if out_mean is not None:
        out_mean.copy_(mean)


def network_value(row: Tensor, x: Tensor, F: Tensor, F2: Tensor | None) -> Tensor:
    """Return m = p x + q F + q2 F2, [N, D], for each sample's row [N, abi.WIDTH]."""
    m = row[:, abi.P : abi.P + 1] * x + row[:, abi.Q : abi.Q + 1] * F.to(x.dtype)
    if F2 is not None:
        m = m + row[:, abi.Q2 : abi.Q2 + 1] * F2.to(x.dtype)
    return m


def step_ref(row: Tensor, told: Tensor, now: Tensor) -> None:
    """Move the row counter on by one, and copy what the networks are told in that row.

    Args:
        row: number of the row, [1] int64.
        told: what each row tells them, and a line more for the end, [rows + 1, W].
        now: that of the row, [1, W].
    """
    row.add_(1)
    torch.index_select(told, 0, row, out=now)
