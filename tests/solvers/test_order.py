"""Convergence orders, measured on the exact moments of Gaussian data."""

import math

import numpy as np
import pytest
from cases import CASES
from cells import in_each
from checks import GAUSSIAN, MEAN, OFFSET, ORDERED, STD, check_order, moments

from fastscore.process.discrete import DiscreteVE, discrete_vp
from fastscore.process.grid import Times
from fastscore.sampler import Sampler
from fastscore.solvers import Euler, Heun


def settings_of(name):
    """Schedules on which the order of a solver is measured, another one first from solver to solver."""
    settings = [setting for of, setting in ORDERED if of == name]
    k = list(CASES).index(name) % len(settings)
    return [*settings[k:], *settings[:k]]


MEASURED = list(dict.fromkeys(name for name, _ in ORDERED))


# Every solver on one of the schedules at every run, on another with the slow tests, and on the rest at night.
@pytest.mark.thirds
@pytest.mark.parametrize("name", MEASURED)
def test_declared_order_is_the_measured_one(name):
    check_order(name, settings_of(name)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MEASURED if settings_of(name)[1:]])
def test_declared_order_is_the_measured_one_on_another_schedule(name):
    check_order(name, settings_of(name)[1])


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in MEASURED if settings_of(name)[2:]])
def test_declared_order_is_the_measured_one_on_the_other_schedules(name):
    in_each(((name, setting) for setting in settings_of(name)[2:]), check_order)


# ln alpha of a table has a kink at each index. Steps over many indices must see the smooth curve through them.
@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=["euler", "heun"])
@pytest.mark.parametrize(
    "table", [discrete_vp(n=1000), DiscreteVE(tuple(np.linspace(0.01, 3.0, 1000)))], ids=["ddpm", "smld-linear"]
)
def test_order_on_a_table(table, solver):
    strides, errors = np.array([32, 16, 8, 4]), []
    for stride in strides:
        t = np.arange(600.0, 87.0, -stride)
        plan = Sampler(GAUSSIAN, schedule=table, solver=solver, grid=Times(tuple(t))).plan
        (alpha, alpha_s), (sigma, sigma_s) = table.alpha(t[[0, -1]]), table.sigma(t[[0, -1]])
        V, V_s = (alpha * STD) ** 2 + sigma**2, (alpha_s * STD) ** 2 + sigma_s**2
        mean, variance = moments(plan, alpha * MEAN + OFFSET, V)
        errors.append([abs(mean - alpha_s * MEAN - OFFSET * math.sqrt(V_s / V)), abs(variance - V_s)])
    measured = np.polyfit(np.log(strides), np.log(errors), 1)[0]
    assert np.all(np.abs(measured - solver.order) < 0.15), measured
