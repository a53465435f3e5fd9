"""Identities that every row of every solver satisfies on every schedule."""

import math

import numpy as np
import pytest
from cases import CASES, PAIRS, SETTINGS, others_of, two_of
from cells import in_each
from checks import MODEL, check_invariants, planned

from fastscore.process.continuous import EDM
from fastscore.solvers import (
    DDIM,
    DEIS,
    IPNDM,
    LMS,
    RK2,
    AncestralSplit,
    AnnealedLangevin,
    Churn,
    DPMMultistep,
    DPMSolver,
    Euler,
    ImplicitMidpoint,
    Interval,
    Langevin,
    RePaint,
    Restart,
    SASolver,
    StochasticHeun,
    UniPC,
)


# Every solver on two schedules with both ends at every run; the rest of the product with the slow tests.
@pytest.mark.thirds
@pytest.mark.parametrize("name", CASES)
def test_rows(name):
    in_each(two_of(name), check_invariants)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if others_of(name)])
def test_rows_on_the_other_schedules(name):
    in_each(others_of(name), check_invariants)


def test_every_solver_has_a_case():
    import fastscore.solvers as solvers

    covered = {type(case.solver).__name__ for case in CASES.values()}
    parts = {type(getattr(case.solver, "corrector", None)).__name__ for case in CASES.values()} | {
        "Interval",
        "ScaledNoise",
    }
    adaptive = {"BogackiShampine", "DPMAdaptive", "Dopri5", "GottaGoFast"}  # no rows; their tests are of their own
    guided = {"CFGPlusPlus", "CFGPlusPlusVariant"}  # rows of two estimates: tests/guidance/test_cfgpp.py
    assert {getattr(solvers, name).__name__ for name in solvers.__all__} <= covered | parts | adaptive | guided


def test_every_schedule_has_a_solver():
    assert {setting for _, setting in PAIRS} == set(SETTINGS)


# One number of steps a schedule, in turn; the others with the slow tests.
@pytest.mark.thirds
@pytest.mark.parametrize("turn", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.family not in ("pc", "published")])
def test_few_steps_to_clean_on_every_schedule(name, turn):
    solver, k = CASES[name].solver, list(CASES).index(name) + turn
    pure = CASES[name].family == "exponential"  # the others have f, infinite at pure noise

    def check(setting, n):
        knots = np.append(SETTINGS[setting].knots[:n], SETTINGS[setting].knots[-1])
        last = planned(MODEL, setting, solver, knots).plan.rows[-1]
        assert (last.a, last.b, last.c, last.m, last.s) == (0.0, 1.0, 0.0, "x0", knots[-1])

    def few(i, setting):
        last = len(SETTINGS[setting].knots) - 1
        # A restart wants a level of the grid below its own.
        return ((1, 2, 3) if name != "restart" else (1, last, last))[(k + i) % 3]

    in_each(((s, few(i, s)) for i, s in enumerate(SETTINGS) if pure or s != "flow-from-noise"), check)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RK2(0.0), "a = 0.0 must lie in"),
        (lambda: ImplicitMidpoint(0), "sweeps = 0"),
        (lambda: ImplicitMidpoint(2**31), "sweeps = 2147483648 must lie in 1 .. 10000"),
        (lambda: Langevin(corrections=2**31), "corrections = 2147483648 must lie in 1 .. 10000"),
        (lambda: AnnealedLangevin(corrections=10_001), "corrections = 10001 must lie in 1 .. 10000"),
        (lambda: Interval(0.1, 0.3, 2**31), "steps and times lie in 1 .. 10000"),
        (lambda: Interval(0.1, 0.3, 3, 2**31), "steps and times lie in 1 .. 10000"),
        (lambda: RePaint(times=2**31), "times = 2147483648 lie in 1 .. 10000"),
        (lambda: StochasticHeun(-1.0), "eta = -1.0"),
        (lambda: DPMSolver(4), "order = 4 must lie in 1 .. 3"),
        (lambda: DPMSolver(2, "v"), "must be x0 or eps"),
        (lambda: DPMSolver(3, "x0", 1.0), "order 1 or 2"),
        (lambda: DPMMultistep(4, form="paper"), "order = 4 must lie in 1 .. 3"),
        (lambda: DPMMultistep(form="newton"), "must be one of exact, paper"),
        (lambda: DEIS(basis="t"), "log-rho, rho or tab"),
        (lambda: LMS(5), "order = 5"),
        (lambda: UniPC(variant="bh3"), "bh1, bh2, vary"),
        (lambda: SASolver(corrector=5), "corrector = 5"),
        (lambda: SASolver(tau=-1.0), "tau = -1.0"),
        (lambda: IPNDM(0), "order = 0"),
        (lambda: Churn(churn=-1.0), "churn = -1.0"),
        (lambda: AncestralSplit(Euler(), -1.0), "eta = -1.0"),
        (lambda: Interval(2.0, 1.0), "low < high"),
        (lambda: Interval(0.0, 1.0), "low < high must be positive"),
        (lambda: Interval(1.0, 1.0), "low < high"),
        (lambda: Interval(1.0, math.inf), "low < high"),
        (lambda: Interval(1.0, 2.0, steps=0), "steps and times lie in 1 .. 10000"),
        (lambda: Interval(1.0, 2.0, times=0), "steps and times lie in 1 .. 10000"),
        (lambda: _rows(AncestralSplit(DDIM(1.0))), "deterministic"),
        (lambda: _rows(Restart((Interval(0.1, 0.2),))), "lies below rho = 0.5"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _rows(solver):
    return solver.steps(EDM(), np.array([2.0, 1.0, 0.5]))


def test_churn_stays_inside_the_schedule():
    start = Churn(churn=40.0, high=100.0).steps(EDM(), np.array([80.0, 70.0, 10.0]))
    assert [group[0].s for group in start] == pytest.approx([70.0, 80.0])  # no noise at T itself, and up to T from 70
