"""The oracles can fail: a coefficient that is 0.1 % off turns them red."""

from dataclasses import replace

import pytest
from cases import CASES, knots_of
from checks import MODEL, ORDERED, check_invariants, check_order, check_textbook, planned

pytestmark = pytest.mark.slow

KINDS = ("a", "b", "c", "w", "p", "q", "c_in", "c_noise", "scale")


def scaled(row, kind):
    """Return the row with one coefficient 0.1 % larger; the row itself if that changes nothing."""
    if kind == "w":
        return replace(row, w=tuple(1.001 * w for w in row.w))
    if kind == "scale":
        return (
            row
            if row.langevin is None
            else replace(row, langevin=replace(row.langevin, scale=1.001 * row.langevin.scale))
        )
    return replace(row, **{kind: 1.001 * getattr(row, kind)})


def used(row, kind):
    """Whether a coefficient takes part in what the row computes."""
    reads = row.b != 0.0 or row.push is not None or row.langevin is not None
    if kind in ("p", "q"):
        return reads and getattr(row, kind) != 0.0
    if kind in ("c_in", "c_noise"):
        return row.evaluate
    return scaled(row, kind) != row


def every(kind):
    """Scale a coefficient in all rows."""
    return lambda rows: tuple(scaled(row, kind) for row in rows)


def one(kind):
    """Scale a coefficient in the middle one of the rows that use it."""

    def mutate(rows):
        at = [k for k, row in enumerate(rows) if used(row, kind)]
        at = at[len(at) // 2] if at else None
        return tuple(scaled(row, kind) if k == at else row for k, row in enumerate(rows))

    return mutate


def _setting(name):
    return CASES[name].schedules[0]


def _mutants():
    for name in CASES:
        rows = planned(MODEL, _setting(name), CASES[name].solver, knots_of(name, _setting(name), False)).plan.rows[1:]
        yield from ((name, kind) for kind in KINDS if any(used(row, kind) for row in rows))


MUTANTS = list(_mutants())


def red(check, *arguments):
    try:
        check(*arguments)
    except AssertionError:
        return True
    return False


# The row that stores eps scales an x that nobody reads again: with an x0 model the next row has a = p = 0.
EQUIVALENT = {("ddim-keep-eps", "a")}


@pytest.mark.parametrize("mutation", [every, one])
@pytest.mark.parametrize(("name", "kind"), [mutant for mutant in MUTANTS if mutant not in EQUIVALENT])
def test_textbook_sees(name, kind, mutation):
    assert red(check_textbook, name, _setting(name), False, mutation(kind))


# The identities of a corrector leave its step free, and score_sde's coefficients obey none; the textbook has both.
IDENTITIES = ("exponential", "keep-eps", "sde", "ode")


@pytest.mark.parametrize("mutation", [every, one])
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in MUTANTS if CASES[n].family in IDENTITIES])
def test_invariants_see(name, kind, mutation):
    assert red(check_invariants, name, _setting(name), False, mutation(kind))


# One row of hundreds may be 0.1 % off without a trace in the order; all of them may not.
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in MUTANTS if (n, _setting(n)) in ORDERED])
def test_order_sees(name, kind):
    assert red(check_order, name, _setting(name), every(kind))
