"""Weighted sums over the lanes' evaluations, each lane with weights of its own: rows of the fused update."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore.kernels import abi
from fastscore.ops.backend import REFERENCE, Ops


class WeightedSums:
    """The sums sum_j w_j buffer[j] of the lanes, each product and each sum rounded on its own, from left to right.

    A pass of the fused row adds as many terms as it has history slots; further ones go on from there with a = 1. On a
    CPU a sample of fewer numbers than its row has, or one that no kernel computes, is added up as it is: same bits.

    Args:
        buffer: [width, lanes, D], width at least 2; read where it lies.
        ops: the backend; it adds up float32.
    """

    def __init__(self, buffer: Tensor, ops: Ops) -> None:
        width, self.lanes, d = buffer.shape
        self.buffer, self.first = buffer, buffer[0]
        ops = ops if buffer.dtype == torch.float32 else REFERENCE
        self.plain = buffer.device.type == "cpu" and (ops is REFERENCE or d < abi.WIDTH)
        if self.plain:
            self.term = torch.zeros_like(self.first)
            return
        self.update, self.index = ops.update, torch.arange(self.lanes, device=buffer.device)
        starts = range(1, width, abi.SLOTS)
        table = buffer.new_zeros(len(starts), self.lanes, abi.WIDTH)
        table[1:, :, abi.A], table[:, :, abi.PUSH] = 1.0, -1.0
        # Views of what is fixed, made once: a view costs the host as much as a small sum costs the device.
        self.own = table[0, :, abi.A]
        self.passes = [
            (slice(k, k + len(part)), table[j, :, abi.W0 : abi.W0 + len(part)], part, table[j])
            for j, k in enumerate(starts)
            for part in [buffer[k : k + abi.SLOTS]]
        ]

    def __call__(self, weights: Tensor, out: Tensor) -> Tensor:
        """Return ``out``, [lanes, D], that now holds the sums; weights are float64 [padded, width]."""
        weights = weights[: self.lanes]
        if self.plain:
            columns = weights.to(out.dtype)
            torch.mul(columns[:, :1], self.first, out=out)
            for j in range(1, columns.shape[1]):
                out.add_(torch.mul(columns[:, j : j + 1], self.buffer[j], out=self.term))
            return out
        self.own.copy_(weights[:, 0])
        out.copy_(self.first)
        for terms, columns, part, rows in self.passes:
            columns.copy_(weights[:, terms])
            self.update(out, None, part, rows, self.index, None)
        return out
