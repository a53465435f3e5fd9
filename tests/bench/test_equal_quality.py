"""Equal quality: its metric, and that the ratio is taken at the error of PC."""

from __future__ import annotations

import pytest
import torch

from bench.studies import equal_quality


def test_equal_quality_compares_at_the_error_of_pc(env):
    exact = equal_quality.target(500, 1)
    assert equal_quality.sliced(exact, exact.flip(0)) == 0.0
    shift = torch.tensor([1.0, 0.0])  # seen at an angle a it is cos a, whose mean square is 1/2
    assert equal_quality.sliced(exact, exact + shift) == pytest.approx(0.5**0.5, rel=1e-4)
    run = equal_quality.study(200, 4)
    assert run["errors"][run["nfe"]] <= run["bound"]
    assert f"| fastscore, DPM-Solver++(2M) | {run['nfe']} |" in equal_quality.table({**run, "env": env})
