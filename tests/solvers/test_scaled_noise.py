"""Noise scaled in every row of any solver, and values out of range by their own name."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import fastscore as fs
from fastscore.plan import make_plan

SOLVERS = (
    fs.DDIM(1.0),
    fs.DPMSolver(2, "x0", 1.0),
    fs.AncestralSplit(fs.DPMSolver(2)),
    fs.EulerMaruyama(),
    fs.DPMpp2M(),
)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_c_is_scaled_and_nothing_else(solver):
    schedule, t = fs.VP(), fs.uniform(5)(fs.VP())
    plain, scaled = (make_plan(s, schedule, t).rows for s in (solver, fs.ScaledNoise(solver, 1.25)))
    assert scaled == (plain[0], *(replace(row, c=1.25 * row.c) for row in plain[1:]))
    assert make_plan(fs.ScaledNoise(solver, 1.0), schedule, t).rows == plain


def test_the_variance_it_adds_is_the_square():
    """A step from pure noise on VP: x' = a x + b D + c z with z of its own."""
    t = fs.uniform(1, end=0.5)(fs.VP())
    rows = [make_plan(fs.ScaledNoise(fs.DDIM(1.0), s), fs.VP(), t).rows[1] for s in (0.0, 1.0, 2.0)]
    assert rows[0].c == 0.0
    assert rows[2].c ** 2 == pytest.approx(4.0 * rows[1].c ** 2, rel=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.ScaledNoise(fs.DDIM(), -0.1), "s_noise = -0.1 must be at least 0"),
        (lambda: fs.ScaledNoise(fs.DDIM(), math.nan), "s_noise = nan"),
        (lambda: fs.SASolver(tau=-1.0), "SASolver: tau = -1.0 must be at least 0"),
        (lambda: fs.DPMSolver(2, "x0", -1.0), "DPMSolver: eta = -1.0 must be at least 0"),
    ],
)
def test_values_out_of_range_have_their_own_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
