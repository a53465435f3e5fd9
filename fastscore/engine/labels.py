"""What the rows of a plan tell their networks: a label each, and the scale of a second input."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore.engine.kind import labels_of
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import Ops
from fastscore.plan.rows import Plan


class Labels:
    """A table by row, and on a GPU the line of the row that a counter points at, which moves on with it.

    There one launch moves both. On a CPU a line is looked up, which costs as little and is a network's to keep.

    Args:
        plan: folded. first, second: the models of its networks.
        like: of the device and dtype of the state.

    Attributes:
        row: the counter, int64 [1].
        tables: labels of both networks, [rows], or [rows, 2] of one that takes two times; and c_in2, [rows].
        moves: whether the line moves on.
    """

    def __init__(self, plan: Plan, first: ScoreModel, second: ScoreModel, like: Tensor) -> None:
        self.row, self.moves = torch.zeros(1, dtype=torch.int64, device=like.device), like.is_cuda
        scale = like.new_tensor([row.c_in2 for row in plan.rows])
        self.tables = [*labels_of(plan, first, second, like), scale]
        lines = torch.cat([v.view(len(scale), -1) for v in self.tables], 1)
        self.lines = torch.cat([lines, torch.zeros_like(lines[:1])])  # the counter ends behind the last row
        self.now = self.lines[:1].clone()
        parts = self.now.split([v[0].numel() for v in self.tables], 1)
        self.parts = [part.view_as(v[:1]) for part, v in zip(parts, self.tables, strict=True)]

    def label(self, network: int = 0) -> Tensor:
        """Return the label of the first network, or of the second, [1] or [1, 2], in the row of the counter."""
        return self.parts[network] if self.moves else self.tables[network].index_select(0, self.row)

    def scale(self) -> Tensor:
        """Return c_in2 of the row of the counter, [1]."""
        return self.label(2)

    def point(self, row: int) -> None:
        """Point the counter at a row."""
        self.row.fill_(row)
        if self.moves:
            self.now.copy_(self.lines[row : row + 1])

    def step(self, ops: Ops) -> None:
        """Move the counter on."""
        if self.moves:
            ops.step(self.row, self.lines, self.now)
        else:
            self.row.add_(1)
