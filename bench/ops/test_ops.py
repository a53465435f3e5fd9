"""The operations under pytest-benchmark: pytest bench --benchmark-only.

Only the fastscore side, at the first size, behind the same gate as bench/run.py; for comparing commits
with pytest-benchmark's own storage. Paired ratios come from bench/run.py.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from bench.common import OURS, Setting

SETTING = Setting(torch.device("cuda" if torch.cuda.is_available() else "cpu"), quick=True)


@pytest.mark.parametrize("name", ["noise", "norms", "quantize", "update"])
def test_op(name: str, benchmark: Any) -> None:
    case = next(import_module(f"bench.ops.{name}").cases(SETTING))
    with torch.no_grad():
        assert all(check.ok for check in case.check()), "wrong result: nothing to time"

        def work() -> None:
            case.variants[OURS]()
            if SETTING.device.type == "cuda":
                torch.cuda.synchronize()

        benchmark(work)
