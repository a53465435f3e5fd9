"""Published mistakes are found, and the same samplers without them pass."""

from __future__ import annotations

import pytest
from gated import one_in

from fastscore.conformance import check

from .bugs import BUGS

QUICK = ("heun with the wrong sigma",)  # at every run
NAMES = one_in(3, [pytest.param(name, marks=[]) if name in QUICK else name for name in BUGS])


def found(name: str, wrong: bool, seed: int = 0):
    bug = BUGS[name]
    return check(bug.fn(wrong), bug.schedule, **{"steps": 16, "seed": seed, **bug.options})


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_the_first_thing_that_is_found(name):
    report = found(name, True)
    assert not report.ok, report
    assert report.failures[0].check in BUGS[name].finds, report


@pytest.mark.parametrize("name", NAMES)
def test_without_the_mistake_nothing_is_off(name):
    report = found(name, False)
    assert report.ok, report


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", list(BUGS))
def test_no_false_alarm_in_twenty_seeds(name):
    alarms = [report for seed in range(1, 21) if not (report := found(name, False, 1000 * seed)).ok]
    assert not alarms, alarms[0]


def test_there_are_enough_pairs():
    assert len(BUGS) >= 40
