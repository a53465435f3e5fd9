r"""Brownian paths over lam, each a pure function of (seed, id), read at any time in any order.

On [0, S] divided into 2^16 units, with normals z of numbered draws (Levy's construction):

    W(s) = s / sqrt(S) z_1 + sum_l min(s - a, b - s) / sqrt(b - a) z_n,    n = 1 + 2^l + k,

where [a, b], number k of the 2^l intervals of level l = 0 .. 15, contains s. A sum without state: a step that is
rejected and tried again shorter reads the same path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore.kernels import abi
from fastscore.ops.backend import REFERENCE, Ops
from fastscore.ops.noise import NoiseKey

LEVELS = 16
UNITS = 1 << LEVELS
EXACT = 3  # bits that a rounded step keeps below its leading one


class Path:
    """The paths of the samples in the lanes.

    Args:
        key: whose ids are the samples'; a buffer that the engine refills.
        span: S > 0.
        width: elements of a sample.
        padded: at least as many as lanes.
        dtype: of the path.
        ops: the backend that makes the normals.
    """

    def __init__(self, key: NoiseKey, span: float, width: int, padded: int, dtype: torch.dtype, ops: Ops) -> None:
        lanes, device = len(key.ids), key.ids.device
        self.key, self.span, self.lanes = key, span, lanes
        self.ops = ops if dtype == torch.float32 else REFERENCE
        self.index = torch.arange(lanes, device=device)
        # Whether the host may see how many levels are reached, and leave out the rest: never where it is recorded.
        self.looks = device.type == "cpu"
        # A row for the first draw and one for each level; intervals of a level are ``length`` units, 2^below.
        self.table = torch.zeros(1 + LEVELS, lanes, abi.WIDTH, dtype=dtype, device=device)
        self.table[:, :, abi.A], self.table[0, :, abi.DRAW], self.table[:, :, abi.PUSH] = 1.0, 1.0, -1.0
        self.below = torch.arange(LEVELS, 0, -1, device=device)[:, None]
        self.length = 1 << self.below
        self.first = 1 + (1 << torch.arange(LEVELS, device=device)[:, None])
        scales = [(span / UNITS / (1 << below)) ** 0.5 for below in range(LEVELS, 0, -1)]
        self.scales = torch.tensor(scales, dtype=dtype, device=device)[:, None]
        self.no_history = torch.zeros(0, lanes, width, dtype=dtype, device=device)
        # W at the step's start, at its end, and as it is added up; whole units from 0 of the first two.
        self.w_start, self.w_end, self.w = (torch.zeros(lanes, width, dtype=dtype, device=device) for _ in range(3))
        self.at, self.to = (torch.zeros(padded, dtype=torch.int64, device=device) for _ in range(2))

    def reset(self, lanes: Tensor) -> None:
        """Begin the paths of new samples: W(0) = 0."""
        self.w_start[lanes] = 0.0
        self.at[lanes] = 0

    def aim(self, h: Tensor, last: Tensor) -> Tensor:
        """Round steps down to whole units with few bits, which few levels reach; return them, float64 [padded].

        A ``last`` one (bool) leads to S. A step below one unit becomes 0.
        """
        remaining = UNITS - self.at
        units = torch.where(last, remaining, torch.minimum((h * (UNITS / self.span)).to(torch.int64), remaining - 1))
        bits = torch.frexp(units.to(torch.float64))[1].to(torch.int64)
        coarse = (bits - 1 - EXACT).clamp_min(0)
        torch.bitwise_left_shift((self.at + units) >> coarse, coarse, out=self.to)
        return (self.to - self.at) * (self.span / UNITS)

    def increment(self, lanes: Tensor) -> Tensor:
        """Return W(end) - W(start) of the lanes that are set (bool); [lanes, width], others undefined."""
        s, active = self.to[: self.lanes], lanes[: self.lanes]
        k = s >> self.below
        offset = (s - (k << self.below)).mul_(active)
        reach = torch.minimum(offset, self.length - offset)
        self.table[0, :, abi.C] = s * (self.span**0.5 / UNITS) * active
        self.table[1:, :, abi.DRAW] = k.add_(self.first)
        self.table[1:, :, abi.C] = reach * self.scales
        self.w.zero_()
        # Every path is at a node of an earlier level than those that are left out.
        count = int(offset.any(1).sum()) if self.looks else LEVELS
        for row in self.table[: 1 + count]:
            self.ops.update(self.w, None, self.no_history, row, self.index, self.key)
        torch.where(active[:, None], self.w, self.w_end, out=self.w_end)
        return self.w_end - self.w_start

    def accept(self, lanes: Tensor) -> None:
        """Move the start of the lanes that are set (bool) to the end of their step."""
        torch.where(lanes, self.to, self.at, out=self.at)
        torch.where(lanes[: self.lanes, None], self.w_end, self.w_start, out=self.w_start)
