"""The oracles can fail: a coefficient that is 0.1 % off turns them red."""

from dataclasses import replace

import pytest
from cases import CASES, knots_of
from cells import in_each
from checks import MODEL, ORDERED, check_invariants, check_order, check_textbook, planned
from gated import one_in

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


def kinds_of(name):
    """Kinds of coefficients that a case uses."""
    rows = planned(MODEL, _setting(name), CASES[name].solver, knots_of(name, _setting(name), False)).plan.rows[1:]
    return [kind for kind in KINDS if any(used(row, kind) for row in rows)]


def red(check, *arguments):
    try:
        check(*arguments)
    except AssertionError:
        return True
    return False


# The row that stores eps scales an x that nobody reads again: with an x0 model the next row has a = p = 0.
EQUIVALENT = {("ddim-keep-eps", "a")}


def check_each(check, name, kinds, *mutations):
    """Every kind of coefficient, scaled by every mutation, turns the check red."""

    def turns_red(kind, mutation):
        assert red(check, name, _setting(name), mutation(kind)), "still green"

    in_each(((kind, mutation) for kind in kinds for mutation in mutations), turns_red)


def to_noise(check):
    return lambda name, setting, mutate: check(name, setting, False, mutate)


@pytest.mark.parametrize("name", CASES)
def test_textbook_sees(name):
    kinds = [kind for kind in kinds_of(name) if (name, kind) not in EQUIVALENT]
    check_each(to_noise(check_textbook), name, kinds, every, one)


# The identities of a corrector leave its step free, and score_sde's coefficients obey none; the textbook has both.
IDENTITIES = ("exponential", "keep-eps", "sde", "ode")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.family in IDENTITIES])
def test_invariants_see(name):
    check_each(to_noise(check_invariants), name, kinds_of(name), every, one)


# One row of hundreds may be 0.1 % off without a trace in the order; all of them may not.
@pytest.mark.parametrize("name", one_in(4, [name for name in CASES if (name, _setting(name)) in ORDERED]))
def test_order_sees(name):
    check_each(check_order, name, kinds_of(name), every)
