from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastscore import plan as plans
from fastscore.kernels import abi
from fastscore.plan.rows import Plan, Row
from fastscore.process.continuous import VE, VP, Flow
from fastscore.process.grid import karras, uniform
from fastscore.process.parametrization import Parametrization
from fastscore.solvers import DDIM, DPMpp2M, EulerMaruyama, Heun, Langevin, PredictorCorrector, ReverseDiffusion


def make(solver, schedule=None, grid=None) -> Plan:
    schedule = schedule or VP()
    return plans.make_plan(solver, schedule, (grid or uniform(4))(schedule))


def test_first_row_draws_the_prior():
    row = make(EulerMaruyama(), VE()).rows[0]
    assert (row.a, row.b, row.c, row.draw, row.evaluate) == (0.0, 0.0, 50.0, 0, False)


def test_a_later_start_has_less_noise():
    sigma = float(VE().sigma(0.5))
    expected = 50.0 * np.hypot(1.0, sigma) / np.hypot(1.0, 50.0)
    assert make(EulerMaruyama(), VE(), uniform(4, start=0.5)).rows[0].c == pytest.approx(expected)
    assert make(EulerMaruyama(), VP(), uniform(4, start=0.8)).rows[0].c == pytest.approx(1.0, abs=1e-12)


def test_draws_are_numbered_without_gaps():
    plan = make(PredictorCorrector(ReverseDiffusion(), Langevin(corrections=2)))
    assert [r.draw for r in plan.rows if r.noisy] == list(range(plan.draws))
    assert plan.draws == 1 + 4 * 3
    assert plan.nfe == 4 * 3


def test_fold_to_the_same_prediction_is_the_identity():
    plan = plans.fold(make(DPMpp2M()), VP(), Parametrization("x0"))
    assert all((r.p, r.q, r.c_in) == (0.0, 1.0, 1.0) for r in plan.rows[1:])
    assert [r.c_noise for r in plan.rows[1:]] == [r.t for r in plan.rows[1:]]


def test_fold_writes_m_in_the_networks_output():
    plan = plans.fold(make(DPMpp2M()), VP(), Parametrization("eps", "999t"))
    row = plan.rows[2]
    alpha, sigma = VP().alpha(row.t), VP().sigma(row.t)
    assert row.p == pytest.approx(1 / alpha)
    assert row.q == pytest.approx(-sigma / alpha)
    assert row.c_noise == 999 * row.t


def test_lower_hands_on_the_next_input_scale():
    plan = plans.validate(plans.fold(make(Heun(), grid=karras(3)), VP(), Parametrization("edm", "log_sigma/4")))
    table = plans.lower(plan)
    assert table.shape == (len(plan.rows), abi.WIDTH)
    np.testing.assert_allclose(table[:-1, abi.C_IN], [r.c_in for r in plan.rows[1:]])
    assert table[-1, abi.C_IN] == 0.0
    assert set(table[:, abi.PUSH]) == {-1.0, 0.0}
    np.testing.assert_allclose(table[2, abi.W0], plan.rows[2].w[0])


def test_clip_rewrites_rows_in_x0():
    plan = plans.clip(make(EulerMaruyama()), 1.0)
    original = make(EulerMaruyama())
    for clipped, row in zip(plan.rows[1:], original.rows[1:], strict=True):
        assert (clipped.m, clipped.clip) == ("x0", 1.0)
        alpha, sigma = VP().alpha(row.t), VP().sigma(row.t)
        x, x0 = 0.3, -0.8
        score = -(x - alpha * x0) / sigma**2
        assert clipped.a * x + clipped.b * x0 == pytest.approx(row.a * x + row.b * score, rel=1e-10)


def test_clip_refuses_a_history_of_something_else():
    with pytest.raises(ValueError, match="history of 'flow'"):
        plans.clip(make(Heun()), 1.0)
    with pytest.raises(ValueError, match="clip = 0"):
        plans.clip(make(DDIM()), 0.0)


def test_singular_coefficients_are_named():
    plan = make(DPMpp2M(), Flow())
    with pytest.raises(ValueError, match=r"row 1 \(t = 1 to .*on Flow .* start the grid later"):
        plans.validate(plans.fold(plan, Flow(), Parametrization("eps")))


def test_history_is_checked():
    t = np.array([1.0, 0.5])
    good = make(DPMpp2M(), grid=lambda s: t)
    folded = plans.fold(good, VP(), Parametrization("x0"))
    reads = replace(folded, rows=(*folded.rows, replace(folded.rows[1], w=(0.0, 0.5))))
    with pytest.raises(ValueError, match="reads history slot 1 before"):
        plans.validate(reads)
    stores = replace(folded, rows=(*folded.rows, replace(folded.rows[1], push=4)))
    with pytest.raises(ValueError, match="stores in slot 4"):
        plans.validate(stores)


def test_hash_sees_every_coefficient():
    folded = plans.fold(make(DPMpp2M()), VP(), Parametrization("eps"))
    assert folded.hash == plans.fold(make(DPMpp2M()), VP(), Parametrization("eps")).hash
    for field in ("a", "b", "c", "p", "q", "c_noise"):
        row = replace(folded.rows[2], **{field: getattr(folded.rows[2], field) + 1e-12})
        changed = replace(folded, rows=(*folded.rows[:2], row, *folded.rows[3:]))
        assert changed.hash != folded.hash, field


def test_str_prints_one_line_a_row():
    plan = make(PredictorCorrector(DPMpp2M(), Langevin()), grid=karras(3))
    lines = str(plan).splitlines()
    assert len(lines) == 1 + len(plan.rows)
    assert lines[0].split()[:5] == ["row", "t", "s", "sigma_t", "m"]
    assert "sample" in lines[3]


def test_a_row_is_immutable():
    with pytest.raises(AttributeError):
        Row(1.0, 0.5, 1.0, 0.0).a = 2.0
