"""Which cases of a table run when: every day, with the gate's slow tests, or at night."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

SLOW, NIGHTLY = (pytest.mark.slow,), (pytest.mark.slow, pytest.mark.nightly)


def one_in(n: int, cases: Iterable[object]) -> list:
    """Return parameters of cases, every n-th for the gate and the others for the night; those of every day stay so."""
    found, count = [], 0
    for case in cases:
        if not hasattr(case, "marks"):
            case = pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=SLOW)
        if case.marks:
            case = pytest.param(*case.values, id=case.id, marks=NIGHTLY if count % n else SLOW)
            count += 1
        found.append(case)
    return found


def at_night(cases: Iterable[object], *gate: object) -> list:
    """Return parameters of cases: those named for the gate, the others for the night."""
    return [pytest.param(case, marks=SLOW if case in gate else NIGHTLY) for case in cases]
