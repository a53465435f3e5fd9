"""The gate of each operation."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from bench import common


@pytest.mark.parametrize("name", ["noise", "norms", "output", "quantize", "update"])
def test_the_gate_of_each_operation_sees_one_wrong_element(name, quick):
    """The backend computes the right thing, and then spoils the last sample a little."""
    right = quick.ops

    def spoiled(op, which):
        def call(*args, **kwargs):
            out = op(*args, **kwargs)
            target = args[which] if out is None else out
            target[-1].add_(1 if target.dtype == torch.uint8 else 1e-3)
            return out

        return call

    wrong = common.Setting(quick.device, quick=True)
    ops = {"update": spoiled(right.update, 0), "langevin": spoiled(right.langevin, 5)}
    wrong.__dict__["ops"] = SimpleNamespace(name="spoiled", quantize=spoiled(right.quantize, 0), **ops)
    cases = import_module(f"bench.ops.{name}").cases
    assert all(check.ok for check in next(cases(quick)).check())
    with pytest.raises(common.RedGate):
        common.measure(next(cases(wrong)), wrong)
