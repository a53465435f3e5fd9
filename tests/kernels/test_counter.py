"""The row counter of kernels/counter.py against step_ref."""

from __future__ import annotations

import pytest
import torch

from fastscore.ops.update import step_ref

from .cases import differing, normal


@pytest.mark.parametrize("width", [1, 3, 5])
def test_same_bits(executor, width):
    told = normal(4, width, seed=8, device=executor.device)
    rows = [torch.tensor([0], device=executor.device) for _ in range(2)]
    lines = [torch.full((1, width), torch.nan, device=executor.device) for _ in range(2)]
    for k in range(1, 4):
        step_ref(rows[0], told, lines[0])
        executor.counter.step_triton(rows[1], told, lines[1])
        assert rows[0].item() == rows[1].item() == k
        assert differing(lines[1], told[k : k + 1]) == differing(lines[0], told[k : k + 1]) == 0


def test_refuses(executor):
    told, row = normal(4, 3, seed=8, device=executor.device), torch.tensor([0], device=executor.device)
    with pytest.raises(ValueError, match=r"now is float32 \[3\]"):
        executor.counter.step_triton(row, told, told[0].clone())
    with pytest.raises(ValueError, match="row is int32"):
        executor.counter.step_triton(row.int(), told, told[:1].clone())
