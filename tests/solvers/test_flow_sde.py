"""Stochastic steps for reinforcement learning: their limits, their ends, their order, and windows of them."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from cases import SETTINGS
from checks import GAUSSIAN, MEAN, OFFSET, STD, moments

import fastscore as fs
from fastscore.plan.gaussian import gaussian_moments
from fastscore.plan.passes import make_plan
from fastscore.solvers.window import without_noise

KNOTS = np.array([0.95, 0.7, 0.4, 0.1, 0.0])
FLOW = fs.Flow()


def rows(solver, schedule=FLOW, knots=KNOTS):
    return [row for group in solver.steps(schedule, knots) for row in group]


def same(ours, theirs, schedule=FLOW, knots=KNOTS):
    """Whether rows in any quantity leave the same weights of x_0, eps and z."""
    for own, other in zip(rows(ours, schedule, knots), rows(theirs, schedule, knots), strict=True):
        found = []
        for row in (own, other):
            plan = fs.Sampler(GAUSSIAN, schedule=schedule, solver=_One(row), grid=fs.Times((row.t, row.s))).plan
            row = plan.rows[1]
            alpha, sigma = schedule.alpha(row.t), schedule.sigma(row.t)
            weights = (row.a * alpha + row.b * (row.p * alpha + row.q), (row.a + row.b * row.p) * sigma, row.c)
            found.append([float(v) for v in weights])
        np.testing.assert_allclose(found[0], found[1], rtol=1e-12, atol=1e-13)


@dataclass(frozen=True)
class _Stubborn:
    """A solver whose eta is not all of its noise."""

    eta: float = 1.0

    def steps(self, schedule, t):
        return fs.DDPM().steps(schedule, t)


class _One:
    def __init__(self, row):
        self.row = row

    def steps(self, schedule, t):
        return [[self.row]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("setting", ["flow", *(pytest.param(s, marks=pytest.mark.slow) for s in ("vp-linear", "edm"))])
def test_limits_are_solvers_that_are_there(setting):
    schedule, knots = SETTINGS[setting].schedule, np.array(SETTINGS[setting].knots)
    for ours, theirs in (
        (fs.FlowSDE(0.0), fs.Euler()),
        (fs.DanceSDE(0.0), fs.Euler()),
        (fs.CPS(0.0), fs.DDIM()),
        (fs.FlowSDE(math.sqrt(2.0)), fs.EulerMaruyama()),
        (fs.FlowSDE(0.7), fs.EulerMaruyama(0.7 / math.sqrt(2.0))),
    ):
        same(ours, theirs, schedule, knots)
    assert rows(fs.CPS(1.0), schedule, knots)[0].a == pytest.approx(0.0, abs=1e-15)


def test_pure_noise_takes_the_end_of_the_first_step():
    """g = a sqrt(s / (1 - s)) with 1 - sigma_1 for 1 - s at s = 1 alone, sigma_1 that of the grid in use."""
    for second in (0.9, 0.5):
        first, after = rows(fs.FlowSDE(0.7), FLOW, np.array([1.0, second, 0.3]))
        g2 = 0.49 / (1.0 - second)
        assert first.c == pytest.approx(math.sqrt(g2 * (1.0 - second)), rel=1e-14)
        assert (first.a, first.b) == (pytest.approx(1.0 + g2 * (second - 1.0) / 2.0), pytest.approx(second - 1.0))
        assert after.c == pytest.approx(math.sqrt(0.49 * second / (1.0 - second) * (second - 0.3)), rel=1e-14)
    (only,) = rows(fs.FlowSDE(0.7, last_noise=True), FLOW, np.array([1.0, 0.0]))
    assert only.c == pytest.approx(0.7)


def test_a_last_step_adds_noise_only_if_it_is_asked_to():
    for solver in (fs.FlowSDE(), fs.DanceSDE(), fs.CPS()):
        last = rows(solver)[-1]
        assert (last.a, last.b, last.c, last.m) == (0.0, 1.0, 0.0, "x0")
    assert rows(fs.FlowSDE(0.7, last_noise=True))[-1].c == pytest.approx(0.7 * math.sqrt(0.1 / 0.9 * 0.1))
    assert rows(fs.DanceSDE(0.3, last_noise=True))[-1].c == pytest.approx(0.3 * math.sqrt(0.1))
    assert repr(fs.FlowSDE()) == "FlowSDE(noise_level=0.7)"
    assert repr(fs.DanceSDE(0.3, True)) == "DanceSDE(noise_level=0.3, last_noise=True)"
    with pytest.raises(ValueError, match="clean end of VE lies at t = -inf"):
        rows(fs.FlowSDE(last_noise=True), fs.VE(), np.array([0.5, -np.inf]))


def test_dance_converges_to_its_sde_at_first_order():
    """An offset of the mean shrinks with the ODE and by exp(-a^2/2 int dt / V), V = std^2 + t^2 on EDM."""
    a, start, end = 0.8, 1.6, 0.35
    V, V_s = STD**2 + start**2, STD**2 + end**2
    shrink = math.sqrt(V_s / V) * math.exp(-0.5 * a**2 / STD * (math.atan(start / STD) - math.atan(end / STD)))
    errors = []
    for n in (64, 128, 256):
        plan = fs.Sampler(
            GAUSSIAN, schedule=fs.EDM(), solver=fs.DanceSDE(a), grid=fs.Times(tuple(np.linspace(start, end, n + 1))),
            start="state",
        ).plan  # fmt: skip
        mean, variance = moments(plan, MEAN + OFFSET, V)
        errors.append([abs(mean - MEAN - shrink * OFFSET), abs(variance - V_s)])
    measured = -np.polyfit(np.log([64, 128, 256]), np.log(errors), 1)[0]
    assert np.all(np.abs(measured - fs.DanceSDE.order) < 0.15), measured


def test_cps_does_not_converge():
    knots = fs.uniform(300, clean=True)(FLOW)
    std = gaussian_moments(make_plan(fs.CPS(0.8), FLOW, knots), 0.0, (0.3, 1.0))[1]
    assert np.all(np.abs(std / [0.3, 1.0] - 0.8) < 0.02), std


@pytest.mark.filterwarnings("ignore:divide by zero")  # Churn's rho at pure noise, as where plans are made
def test_a_window_is_the_solver_inside_and_its_ode_outside():
    for solver, ode in (
        (fs.FlowSDE(0.5), fs.FlowSDE(0.0)),
        (fs.CPS(0.5), fs.CPS(0.0)),
        (fs.DDIM(0.5), fs.DDIM()),
        (fs.Ancestral("large"), fs.DDIM()),
        (fs.ReverseDiffusion(), fs.ReverseDiffusion(probability_flow=True)),
        (fs.ScaledNoise(fs.EulerMaruyama(), 1.1), fs.EulerMaruyama(0.0)),
        (fs.DPMSolver(2, "x0", 1.0), fs.DPMSolver(2, "x0", 0.0)),
        (fs.Churn(fs.Heun(), low=0.0, high=99.0), fs.Churn(fs.Heun(), 0.0, low=0.0, high=99.0)),
    ):
        assert without_noise(solver) == ode
        inside, outside = solver.steps(FLOW, KNOTS), ode.steps(FLOW, KNOTS)
        for window in ((1, 3), {1, 2}, range(1, 3), frozenset((2, 1))):
            found = fs.Window(solver, window).steps(FLOW, KNOTS)
            assert found == [outside[0], inside[1], inside[2], outside[3]]
        assert fs.Window(solver, {0, 2}).steps(FLOW, KNOTS) == [inside[0], outside[1], inside[2], outside[3]]
    other = fs.Window(fs.DDPM(), (0, 1), outside=fs.Heun()).steps(FLOW, KNOTS)
    assert other == [fs.DDPM().steps(FLOW, KNOTS)[0], *fs.Heun().steps(FLOW, KNOTS)[1:]]


def test_a_window_of_a_multistep_method_keeps_its_history():
    solver = fs.DPMMultistep(2, "x0", "paper", 1.0)
    found, ode = fs.Window(solver, (1, 2)).steps(FLOW, KNOTS), fs.DPMMultistep(2, "x0", "paper", 0.0).steps(FLOW, KNOTS)
    assert found == [ode[0], solver.steps(FLOW, KNOTS)[1], *ode[2:]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.FlowSDE(-0.1), "FlowSDE: noise_level = -0.1 must be at least 0"),
        (lambda: fs.DanceSDE(math.inf), "noise_level = inf must be at least 0"),
        (lambda: fs.CPS(1.1), "CPS: noise_level = 1.1 must lie in 0 .. 1"),
        (lambda: fs.Window(fs.FlowSDE(), (2, 2)), "0 <= start < stop"),
        (lambda: fs.Window(fs.FlowSDE(), (-1, 2)), "0 <= start < stop"),
        (lambda: fs.Window(fs.FlowSDE(), set()), "must be .start, stop."),
        (lambda: fs.Window(fs.FlowSDE(), [1, 2]), "must be .start, stop."),
        (lambda: fs.Window(fs.FlowSDE(), (1, 2.5)), "must be .start, stop."),
        (lambda: fs.Window(fs.Dopri5(), (0, 1)), "takes solvers with a grid"),
        (lambda: rows(fs.Window(fs.FlowSDE(), (0, 5))), "has step 4; this grid has the steps 0 .. 3"),
        (lambda: rows(fs.Window(fs.FlowSDE(), (0, 1 << 62))), "this grid has the steps 0 .. 3"),
        (lambda: rows(fs.Window(fs.Heun(), (0, 1))), "no noise level that could be 0"),
        (lambda: rows(fs.Window(_Stubborn(), (0, 1))), "adds noise all the same"),
        (lambda: rows(fs.Window(fs.DDPM(), (0, 1), fs.DPMpp2M())), "read what earlier steps have kept"),
        (lambda: rows(fs.Window(fs.DPMMultistep(2, eta=1.0), (0, 1), fs.DPMMultistep(3))), "read what earlier steps"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
