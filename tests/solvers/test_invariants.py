"""Identities that every row of every solver satisfies on every schedule."""

import pytest
from cases import CASES, PAIRS, SETTINGS
from oracles import check_invariants


@pytest.mark.parametrize("clean", [pytest.param(True, id="to-clean"), pytest.param(False, id="to-noise")])
@pytest.mark.parametrize(("name", "setting"), PAIRS)
def test_rows(name, setting, clean):
    check_invariants(name, setting, clean)


def test_every_solver_has_a_case():
    import fastscore.solvers as solvers

    covered = {type(case.solver).__name__ for case in CASES.values()}
    parts = {type(getattr(case.solver, "corrector", None)).__name__ for case in CASES.values()} | {"Interval"}
    assert {getattr(solvers, name).__name__ for name in solvers.__all__} <= covered | parts


def test_every_schedule_has_a_solver():
    assert {setting for _, setting in PAIRS} == set(SETTINGS)
