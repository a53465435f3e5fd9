"""Default grids suit every solver on every schedule, and what another one loses is said."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from cells import in_each
from checks import MEAN, STD, moments
from gated import NIGHTLY, one_in

from bench.studies.default_grids import BOUNDS, SCHEDULES, TABLED, error, row
from fastscore.guidance.guides import DPS, Chain, PiGDM, StaticThreshold
from fastscore.guidance.measurements import Blur, Masked, Matrix
from fastscore.guidance.scales import finest
from fastscore.model.analytic import Empirical, GaussianMixture, gaussian, mixture, score_model
from fastscore.model.coordinates import Diagonal, whitened
from fastscore.model.score import ScoreModel
from fastscore.plan.gaussian import gaussian_moments
from fastscore.plan.passes import make_plan
from fastscore.process.beta import LinearBeta
from fastscore.process.continuous import EDM, VE, VP, Flow, Trig
from fastscore.process.discrete import discrete_vp
from fastscore.process.grid import Times, arctan, karras, logsnr, uniform
from fastscore.process.names import INDICES, SPACINGS
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import (
    DDIM,
    DEIS,
    Ancestral,
    AnnealedLangevin,
    Churn,
    DPMMultistep,
    DPMpp2M,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    InSigma,
    Langevin,
    PredictorCorrector,
    SASolver,
    ScoreSDE,
    StochasticHeun,
    UniPC,
)
from fastscore.solvers.grids import default_grid
from fastscore.solvers.names import named

EXPONENTIAL = ("dpmpp-2m", "unipc", "deis")


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_the_three_that_people_use_need_no_excuse(name):
    def check(schedule, steps):
        solver, here = named(name), SCHEDULES[schedule]
        loss = error(solver, here, default_grid(solver, here, here, steps))
        assert loss <= BOUNDS[steps], f"{name} on {schedule}, {steps} steps: {loss:.1%}"

    in_each(product(SCHEDULES, BOUNDS), check)


# Every other solver with every number of steps on a third of the schedules, others from solver to solver; the rest and
# all others at night.
@pytest.mark.parametrize("turns", [(0,), pytest.param((1, 2), marks=NIGHTLY)], ids=["third", "rest"])
@pytest.mark.parametrize("name", one_in(2, TABLED))
def test_no_default_grid_is_worse_than_the_named_ones(name, turns):
    k = list(TABLED).index(name)
    # It goes too far in each step, by just what even indices on this table do not go far enough.
    lucky = {"gradient-estimation": "cosine table"}.get(name)

    def check(schedule, steps):
        grid, loss, best, least = row(name, SCHEDULES[schedule], steps)
        assert loss <= max(BOUNDS[steps], 1.2 * least), (
            f"{name} on {schedule}: {loss:.1%} of {grid}, {best} {least:.1%}"
        )

    here = [schedule for j, schedule in enumerate(SCHEDULES) if (k + j) % 3 in turns and schedule != lucky]
    in_each(product(here, BOUNDS), check)


SHAPES = {  # rho and scale at 5, 10 and 20 steps
    "dpmpp-2m unipc dpmpp-3m res-multistep sa-ode": ((6.0, 8.0), (7.0, 8.0), (7.0, 8.0)),
    "dpm-2 dpm-fast dpmpp-2s": ((7.0, 8.0),) * 3,
    "dpm-2m dpm-3m deis deis-tab lms ipndm ipndm-v": ((3.0, 8.0), (4.0, 8.0), (4.0, 8.0)),
    "gradient-estimation": ((3.0, 4.0), (3.0, 4.0), (2.0, 1.0)),
    "er-sde er-sde-2": ((3.0, 4.0),) * 3,
    "er-sde-1 heunpp2": ((2.0, 1.0),) * 3,
    "ddim ancestral dpmpp-sde seeds-2 sa": ((5.0, 2.0),) * 3,
}


@pytest.mark.parametrize("names", SHAPES)
def test_more_of_few_steps_are_at_high_noise_with_a_history(names):
    for name, (steps, shape) in product(names.split(), zip((5, 10, 20), SHAPES[names], strict=True)):
        solver = SASolver(tau=0.0) if name == "sa-ode" else named(name)
        for one in (solver, InSigma(solver)) if name == "deis" else (solver,):
            assert default_grid(one, EDM(), EDM(), steps) == arctan(steps, rho=shape[0], scale=shape[1]), name


@pytest.mark.parametrize("solver", [DPMpp2M(), UniPC(), StochasticHeun(), Churn(), Ancestral(), Heun()], ids=repr)
def test_moments_are_those_of_samples_and_of_the_oracle(solver):
    """Against the tests' own propagation, through the folded rows of a sampler; and against the samples themselves."""
    model = score_model(gaussian(MEAN, STD, (4096,)))
    sampler = Sampler(model, schedule=VP(), solver=solver, grid=karras(6), batch=4, dtype=torch.float64)
    plan = make_plan(solver, VP(), karras(6)(VP()))
    mean, std = gaussian_moments(plan, MEAN, STD)
    expected = moments(sampler.plan, 0.0, 1.0)
    np.testing.assert_allclose([mean, std**2], expected, rtol=1e-9)
    x = sampler.run(range(8)).flatten()
    assert abs(float(x.mean()) - mean) < 5.0 * std / len(x) ** 0.5
    assert abs(float(x.std()) / std - 1.0) < 5.0 * (0.5 / len(x)) ** 0.5


def test_norms_have_no_moments():
    plan = make_plan(PredictorCorrector(EulerMaruyama(), Langevin()), VP(), uniform(3)(VP()))
    with pytest.raises(ValueError, match="depends on norms"):
        gaussian_moments(plan, 0.0, 1.0)


# FAULTS: N(0.5, 0.3^2) through an exact velocity on Flow, all defaults: 0.362, 0.025 (UniPC), 0.024 (3M), 2.9 (SA).
@pytest.mark.parametrize(
    "solver", ["dpmpp-2m", "unipc", "dpmpp-3m", "sa", "dpmpp-2m-sde", "deis", "heun", "em", "ddpm"]
)
def test_flow_from_pure_noise_has_the_spread_of_the_data(solver):
    def velocity(x, t, cond=None):
        t = t[:, None].double()
        gain = (1.0 - t) * 0.3**2 / (((1.0 - t) * 0.3) ** 2 + t**2)
        D = 0.5 + gain * (x - (1.0 - t) * 0.5)
        return (x - D) / t

    model = ScoreModel(velocity, (1000,), Flow(), Parametrization("flow"))
    x = Sampler(model, solver=solver, batch=4, dtype=torch.float64).run(range(4))
    bound = 0.2 if solver in ("em", "ddpm") else 0.05  # noise at every one of 20 steps, first order
    assert abs(float(x.std()) / 0.3 - 1.0) < bound + 4.0 * (0.5 / x.numel()) ** 0.5
    assert abs(float(x.mean()) - 0.5) < 0.02


@pytest.mark.parametrize("std", [1e-1, 1e-3])
@pytest.mark.parametrize("schedule", [VP(), VE(), EDM(), Flow(), Trig(), discrete_vp()], ids=lambda s: type(s).__name__)
def test_narrow_data_come_out_as_narrow(std, schedule):
    model = score_model(gaussian(0.5, std, (1000,)))
    x = Sampler(model, schedule=schedule, batch=4, dtype=torch.float64).run(range(4))
    assert abs(float(x.std()) / std - 1.0) < 0.05 + 4.0 * (0.5 / x.numel()) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-4])
@pytest.mark.parametrize("schedule", [VP(), EDM(), Flow(), discrete_vp()], ids=lambda s: type(s).__name__)
def test_a_posterior_is_as_narrow_as_its_measurement(noise, schedule):
    """PiGDM is exact on N(mu, s^2 I): the posterior of a measured element has s noise / sqrt(s^2 + noise^2)."""
    n, model = 512, score_model(gaussian(0.5, 0.5, (2, 8)))
    measured = torch.tensor([True, False])[:, None]
    guide = PiGDM(Masked(measured), noise, 0.5)
    x = Sampler(model, schedule=schedule, guide=guide, batch=256, dtype=torch.float64).run(
        range(n), y=torch.full((n, 2, 8), 0.7)
    )
    exact = 0.5 * noise / math.hypot(0.5, noise)
    assert abs(float(x[:, 0].std()) / exact - 1.0) < 0.05
    assert abs(float(x[:, 1].std()) / 0.5 - 1.0) < 0.05


def test_what_is_fine_is_known():
    assert mixture(8, 1.0, 0.1).scales == pytest.approx((0.1, math.hypot(0.1, math.sqrt(0.5))))
    assert score_model(Empirical(torch.eye(5))).scales is None
    wide = GaussianMixture(
        torch.tensor([0.5, 0.5]), torch.tensor([[30.0, 0.0], [-30.0, 0.0]]), torch.tensor([1.0, 2.0])
    )
    assert wide.scales == pytest.approx((1.0, math.hypot(2.0, 30.0)))
    squeezed = whitened(score_model(gaussian(0.0, 0.5)), Diagonal(torch.tensor([100.0, 0.5])))
    assert squeezed.scales == pytest.approx((0.005, 1.0))
    shape = (1, 4, 4)
    assert finest(PiGDM(Masked(torch.ones(shape, dtype=torch.bool)), 0.2), shape) == pytest.approx(0.2)
    assert finest(PiGDM(Matrix(torch.diag(torch.linspace(0.1, 5.0, 16))), 0.2), (16,)) == pytest.approx(0.04, rel=1e-2)
    assert finest(DPS(Blur(torch.full((1, 3), 1.0)), 0.3), shape) == pytest.approx(0.1, rel=1e-6)
    both = Chain((StaticThreshold(), PiGDM(Masked(torch.ones(shape, dtype=torch.bool)), 0.2), DPS(lambda x: x, 0.1)))
    assert finest(both, shape) == 0.1
    assert finest(None, shape) is finest(StaticThreshold(), shape) is finest(DPS(lambda x: x), shape) is None


def test_scales_are_checked():
    for scales in ((0.0, 1.0), (1.0, 0.5), (1.0, math.inf)):
        with pytest.raises(ValueError, match="scales ="):
            ScoreModel(lambda u, t, c: u, (2,), VP(), scales=scales)


def said(**settings):
    """Return what a sampler warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Sampler(settings.pop("model", score_model(gaussian(0.5, 0.3))), batch=2, **settings)
    return [str(w.message) for w in caught]


LOSSES = {
    "extrapolation at the end of even times": ({"schedule": Flow(), "grid": uniform(20, clean=True)}, "of 0.3"),
    "the same of a higher order": (
        {"schedule": Flow(), "solver": UniPC(), "grid": uniform(20, clean=True)},
        "is .* % wrong",
    ),
    "even times on VP": ({"schedule": VP(), "grid": uniform(20, clean=True)}, "on the default grid"),
    "knots of one's own": (
        {"schedule": EDM(), "solver": DEIS(), "grid": Times((80.0, 60.0, 40.0, 20.0, 0.002, 0.0))},
        "on the default grid",
    ),
    "data finer than the last noise": (
        {"schedule": VP(), "grid": karras(20), "model": score_model(gaussian(0.5, 1e-3))},
        "over a third of 0.001",
    ),
    "a measurement finer than the last noise": (
        {
            "schedule": EDM(),
            "grid": karras(20),
            "guide": PiGDM(Masked(torch.ones(2, dtype=torch.bool)), 1e-3),
        },
        "over a third of 0.001",
    ),
    "a beta without its factor T": ({"schedule": VP(LinearBeta(1e-4, 0.02))}, "not noise alone.*int beta of 10"),
    "a table of a tenth of its length": ({"schedule": discrete_vp(n=100), "solver": "ddpm"}, "not noise alone"),
    "a start of one's own": ({"schedule": EDM(), "grid": karras(20, start=1.0)}, "or start='data'"),
    "data wider than the noise": (
        {"schedule": EDM(), "model": score_model(gaussian(0.0, 100.0))},
        "sigma_max well above",
    ),
}


@pytest.mark.parametrize("schedule", [VP(), VE(), EDM(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [Euler(), Heun(), EulerMaruyama()], ids=repr)
def test_the_first_spacing_that_is_good_enough_is_taken(solver, schedule):
    """In the order that papers prefer: with an error below 1 / steps, or within 1.2 times the best of all."""
    grid, errors = default_grid(solver, schedule, schedule, 20), {}
    first = ("karras", "arctan", "uniform") if isinstance(solver, Heun) else ("uniform", "quadratic", "karras")
    for spacing in dict.fromkeys((*first, *(name for name in SPACINGS if name not in INDICES))):
        with contextlib.suppress(ValueError):  # singular there
            plan = make_plan(solver, schedule, replace(grid, spacing=spacing)(schedule))
            errors[spacing] = max(abs(gaussian_moments(plan, 0.0, [0.3, 1.0])[1] / [0.3, 1.0] - 1.0))
    bound = max(0.05, 1.2 * min(errors.values()))
    assert grid.spacing == next(name for name, found in errors.items() if found <= bound)


def test_score_sde_takes_the_steps_that_it_was_published_with():
    wide = score_model(gaussian(MEAN, STD, (32,)))
    for schedule in (VP(), VE()):  # of 20 a beta would be 1 on VP
        assert default_grid(ScoreSDE(), schedule, schedule).steps == 1000
        assert Sampler(wide, schedule=schedule, solver="score-sde").plan.nfe == 1000


@pytest.mark.parametrize("case", LOSSES)
def test_what_a_plan_loses_is_said_once_with_the_remedy(case):
    settings, message = LOSSES[case]
    (warning,) = said(**settings)
    assert re.search(message, warning), warning
    assert "leave grid out" in warning or "start='data'" in warning


def test_nothing_is_said_where_nothing_is_lost():
    for schedule, solver in product(
        (VP(), VE(), EDM(), Flow(), Trig(), discrete_vp()), ("dpmpp-2m", "heun", "ddpm", "em")
    ):
        assert not said(schedule=schedule, solver=solver)
        assert solver != "dpmpp-2m" or not said(schedule=schedule, solver=solver, steps=5)  # others: test_reach.py
    for grid in (karras(20), logsnr(20), arctan(8), karras(200), logsnr(18, clean=False), karras(40, end=1e-4)):
        for solver in (DPMpp2M(), DPMMultistep(3, "eps"), Ancestral()):
            few = isinstance(solver, Ancestral)  # evaluations, and that is said
            found = [text for text in said(schedule=EDM(), solver=solver, grid=grid) if not (few and "useful" in text)]
            assert not found, (grid, solver)
    fine = score_model(gaussian(0.5, 1e-3))
    assert not said(schedule=VP(), model=fine, grid=logsnr(60, end=1e-9))
    assert not said(schedule=EDM(), grid=karras(20, start=2.0), start="data")


@pytest.mark.parametrize("solver", [DPMpp2M(), UniPC(), DPMMultistep(3, "x0", "exact", 1.0)], ids=repr)
def test_history_from_before_a_corrector_is_said(solver):
    wide = score_model(gaussian(MEAN, STD, (64,)))
    for corrector in (Langevin(), AnnealedLangevin()):
        (warning,) = said(solver=PredictorCorrector(solver, corrector), model=wide)
        assert re.search("a history of x0 .* DDIM", warning)
    for alone in (DDIM(), Heun(), DPMSolver(3), EulerMaruyama(), DEIS()):
        assert not said(solver=PredictorCorrector(alone, Langevin()), model=wide)
    spreads = [
        float(Sampler(wide, schedule=VP(), solver=PredictorCorrector(one, Langevin()), batch=32).run(range(32)).std())
        for one in (solver, DDIM())
    ]
    assert abs(spreads[0] / STD - 1.0) > 2.0 * abs(spreads[1] / STD - 1.0)


def test_the_loss_that_is_said_is_the_loss_of_samples():
    """A last step to D loses 5 % where it is said: the spread of samples says the same of both grids."""
    for end, loses in ((2e-4, False), (5e-4, True)):
        model = score_model(gaussian(0.5, 1e-3, (1000,)))
        grid = logsnr(60, end=end)
        assert bool(said(schedule=EDM(), model=model, grid=grid)) is loses
        x = Sampler(model, schedule=EDM(), grid=grid, batch=4, dtype=torch.float64).run(range(4))
        assert (abs(float(x.std()) / 1e-3 - 1.0) > 0.05) is loses


def test_labels_stay_where_a_network_was_trained():
    """A DDPM table under EDM's schedule was asked for index -0.995."""
    seen = []

    def net(x, t, cond=None):
        seen.extend(t.tolist())
        return torch.zeros_like(x)

    for prediction, table in product(("eps", "v"), (discrete_vp(), discrete_vp(zero_snr=True))):
        for schedule in (EDM(), VP(), VE(), Flow(), None):
            if prediction == "eps" or schedule is not None:
                seen.clear()
                Sampler(ScoreModel(net, (2,), table, Parametrization(prediction)), schedule=schedule, batch=2).run([0])
                assert 0.0 <= min(seen) and max(seen) <= 999.0, (prediction, schedule)
    seen.clear()
    grid = karras(6, end=1e-4)  # said by the caller: the label stays at the table's first index
    Sampler(ScoreModel(net, (2,), discrete_vp()), schedule=EDM(), grid=grid, batch=2).run([0])
    assert min(seen) == 0.0


def test_zero_snr_tables_sample_by_every_solver():
    """v at alpha = 0 says the data: D = -v. Lin et al. 2024; diffusers#4195 and #5103."""
    table = discrete_vp("scaled-linear", 1000, 0.00085, 0.012, zero_snr=True)
    assert table.betas[-1] == 1.0
    assert (float(table.alpha(999.0)), float(table.sigma(999.0))) == (0.0, 1.0)
    root = np.sqrt(np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))  # algorithm 1
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(table.alpha(np.arange(1000.0)), root, rtol=1e-9, atol=1e-12)
    for t in (996.0, 998.0, 998.5, 999.0):  # between the indices alpha is smooth enough for its derivative
        h = 1e-4
        below, above = ((table.alpha(t + k * h) - table.alpha(t)) / (k * h) for k in (-1.0, 1.0))
        expected = 0.5 * (below + above) if t < 999.0 else below
        assert math.isclose(float(table.dalpha(t)), float(expected), rel_tol=1e-3)
    for name in ("dpmpp-2m", "unipc", "deis", "heun", "dpmpp-2m-sde"):
        grid = default_grid(named(name), table, table, 20)
        assert np.all(grid(table) == np.round(grid(table)))
        assert error(named(name), table, grid) <= 0.05, name


def test_a_grid_that_is_named_is_the_one_that_is_measured():
    assert error(DPMpp2M(), Flow(), uniform(20, clean=True)) == pytest.approx(0.196, abs=0.002)
