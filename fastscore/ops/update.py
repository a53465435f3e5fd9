"""The fused row, in PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscore.kernels import abi
from fastscore.noise import Noise


def update_ref(
    x: Tensor,
    F: Tensor | None,
    hist: Tensor,
    table: Tensor,
    idx: Tensor,
    noise: Noise | None,
    *,
    out_u: Tensor | None = None,
) -> None:
    r"""Advance the state by one plan row.

        m = p x + q F,   x' = a x + b m + sum_k w_k h_k + c z,   h[push] <- m,   u' = c_in x'

    evaluated from left to right, every product and every sum rounded on its own. m is clipped to
    [-clip, clip] if clip > 0.

    Args:
        x: state x_t, [N, D] float32 (float64 in parity runs); updated in place.
        F: raw network output, [N, D], any float dtype; None if the row has none. May not alias x.
        hist: history slots, [S, N, D] like x, S = plan.slots (may be 0); finite from the start.
        table: lowered plan, [rows, abi.WIDTH] like x.
        idx: row read by each sample, [N] int32 or int64 (broadcast with stride 0). All samples must
            agree on push, draw and whether there is a clip.
        noise: where z comes from; None if the row's c is 0.
        out_u: next network input, [N, D] in the network's dtype; None to leave it.

    Raises:
        ValueError: shapes disagree.

    Error: float32 against float64 <= 4 u (|a x| + |b m| + sum |w h| + |c z|) with u = 2^-24 for each
    of the S + 3 terms; noise adds 1e-6 |c|.
    """
    if (F is not None and F.shape != x.shape) or hist.shape[1:] != x.shape or idx.shape != x.shape[:1]:
        shapes = tuple(None if t is None else tuple(t.shape) for t in (x, F, hist, idx))
        raise ValueError(f"update: x, F, hist and idx have shapes {shapes}; expected [N, D], [N, D], [S, N, D], [N]")
    row = table.index_select(0, idx)

    def column(k: int) -> Tensor:
        return row[:, k : k + 1]

    y = column(abi.A) * x
    if F is not None:
        m = column(abi.P) * x + column(abi.Q) * F.to(x.dtype)
        bound = column(abi.CLIP)
        bound = bound.masked_fill(bound <= 0.0, math.inf)
        m = torch.maximum(torch.minimum(m, bound), -bound)
        y = y + column(abi.B) * m
    for k in range(len(hist)):
        y = y + column(abi.W0 + k) * hist[k]
    if noise is not None:
        y = y + column(abi.C) * noise.normal(column(abi.DRAW)[:, 0], x.shape[1], x.dtype)
    if F is not None:
        for k in range(len(hist)):
            hist[k] = torch.where(column(abi.PUSH) == k, m, hist[k])
    x.copy_(y)
    if out_u is not None:
        out_u.copy_(column(abi.C_IN) * y)
