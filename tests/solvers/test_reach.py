"""Orders by reach: which polynomial each step takes, what that leaves of orders, and what it does to samples."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES
from checks import check_order

import fastscore as fs
from fastscore.engine.bind import fitting
from fastscore.model.analytic import GaussianMixture, gaussian, score_model
from fastscore.plan import make_plan
from fastscore.plan.gaussian import gaussian_moments
from fastscore.process.grid import Times
from fastscore.solvers import DEIS, LMS, DPMMultistep, DPMpp2M, DPMSolver, SASolver, UniPC
from fastscore.solvers.exponential import REACH, exact_weights, half_slope_weights, within_reach
from fastscore.solvers.names import named
from fastscore.solvers.useful import USEFUL, useful

EDM = fs.EDM()


def even(h, n=8):
    """Knots of even steps of lam."""
    return np.exp(-h * np.arange(n + 1))


def rows(solver, knots, schedule=EDM):
    return [row for group in solver.steps(schedule, np.asarray(knots)) for row in group]


def counts(solver, knots):
    """Evaluations that each step uses."""
    return [sum(w != 0.0 for w in row.w) + (row.b != 0.0) for row in rows(solver, knots)]


def close(ours, theirs):
    """Both solvers have the same coefficients, whatever slots they keep them in."""
    for one, other in zip(ours, theirs, strict=True):
        found = [(row.a, row.b, row.c, *sorted(w for w in row.w if w)) for row in (one, other)]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_polynomial_of_n_evaluations_spans_n_steps(eta):
    for order, most in ((3, [1, 2, 3, 3, 3, 3, 3, 3]), (4, [1, 2, 3, 4, 4, 4, 4, 4])):
        third, fourth = REACH / 3, REACH / 4
        for h, cap in ((0.999 * fourth, 4), (1.001 * fourth, 3), (0.999 * third, 3), (1.001 * third, 2), (3.0, 2)):
            expected = [min(n, cap) for n in most]
            assert counts(DPMMultistep(order, eta=eta), even(h)) == expected, (order, h)
            assert counts(SASolver(order, 0, eta), even(h)) == expected, (order, h)
        assert counts(DPMMultistep(order, eta=eta, reach=math.inf), even(3.0)) == most
        assert counts(DPMMultistep(order, eta=eta, reach=0.1), even(0.2)) == [1, *[2] * 7]
    predictor = UniPC(3, disable_corrector=tuple(range(30)), reach=REACH)
    assert counts(predictor, even(1.001 * REACH / 3)) == [1, *[2] * 7]
    assert counts(predictor, even(0.999 * REACH / 3)) == [1, 2, *[3] * 6]


def test_orders_rise_and_do_not_fall_again():
    """The span counts, from the oldest evaluation to the end of the step, of this step and of all that follow."""
    values = np.array([0.0, 1.0, 1.4, 1.6, 1.9, 2.2, 2.9])

    def taken(order, reach):
        return [n for n, _ in within_reach(values, order, reach)]

    assert taken(4, math.inf) == [1, 2, 3, 4, 4, 4]
    assert taken(4, 1.61) == [1, 2, 3, 3, 4, 4]  # spans of four: 1.9, 1.2, 1.5
    assert taken(4, 1.45) == [1, 2, 2, 3, 3, 3]  # the last step has three, and so has the one before
    assert taken(3, 1.45) == [1, 2, 2, 3, 3, 3]
    assert taken(3, 1.25) == [1, 2, 2, 2, 2, 2]
    assert [halved for _, halved in within_reach(values, 3, 1.45)] == [False, True, True, False, False, False]
    assert [halved for _, halved in within_reach(values, 3, 1.61)] == [False] * 6
    assert [halved for _, halved in within_reach(values, 2, 0.9)] == [False, *[True] * 5]
    assert [halved for _, halved in within_reach(values, 2, 1.1)] == [False, True, False, False, False, False]
    assert within_reach(values, 1, 0.1) == [(1, False)] * 6
    assert within_reach(values, 4, 1.45, 3) == [(n, False) for n in (1, 2, 3, 3, 3, 3)]
    assert within_reach(values, 4, 1.61, 3) == [(n, False) for n in (1, 2, 3, 3, 4, 4)]


def test_beyond_reach_a_step_is_that_of_second_order():
    long = even(1.2)
    for order in (3, 4):
        close(rows(DPMMultistep(order), long), rows(DPMpp2M(), long))
        close(rows(SASolver(order, 0, 0.0), long), rows(DPMpp2M(), long))
        close(rows(DPMMultistep(order, eta=0.7), long), rows(DPMMultistep(2, "x0", "paper", 0.7), long))
    close(rows(DEIS(4), long), rows(DEIS(3), long))  # in eps third order is never worse
    close(rows(DPMMultistep(4, "eps", reach=REACH), long), rows(DPMMultistep(2, "eps", "paper"), long))
    close(rows(UniPC(3), long), rows(UniPC(2), long))
    close(rows(UniPC(3, "vary"), long), rows(SASolver(3, 4, 0.0), long))
    close(rows(SASolver(4, 4, 0.0), long), rows(SASolver(3, 4, 0.0), long))
    close(rows(named("lms"), long), rows(DEIS(3), long))
    close(rows(named("res-multistep"), long), rows(DPMpp2M(), long))
    for name in ("dpmpp-3m", "dpmpp-3m-sde"):  # and the names say so
        assert max(counts(named(name), long)) == 2
    short = even(0.99 * REACH / 4)
    for solver in (
        DPMMultistep(4),
        DPMMultistep(4, eta=1.0),
        SASolver(4, 4),
        UniPC(3),
        LMS(4, reach=REACH),
        DPMMultistep(4, "eps"),
    ):
        assert rows(solver, short) == rows(replace(solver, reach=math.inf), short)


def test_a_corrector_has_one_more_than_its_predictor_has_left():
    """The correction of a step stands in the row after it: the sum of both is an exact parabola through three."""
    h, knots = 1.2, even(1.2)
    for solver in (SASolver(3, 4, 0.0), SASolver(4, 4, 0.0), UniPC(3, "vary")):
        after = rows(solver, knots)[5]
        corrected = exact_weights(h, [1.0, 0.0, -1.0])
        predicted = half_slope_weights(h, -1.0)
        newest = after.b - half_slope_weights(h, -1.0)[0]  # alpha = 1: weights are those of D
        assert newest == pytest.approx(math.exp(-h) * corrected[0])
        assert sorted(w for w in after.w if w) == pytest.approx(
            sorted(
                [
                    predicted[1] + math.exp(-h) * (corrected[1] - predicted[0]),
                    math.exp(-h) * (corrected[2] - predicted[1]),
                ]
            )
        )
    assert max(counts(SASolver(3, 2, 0.0), knots)) == 3  # a corrector of two, after a predictor of two


@pytest.mark.parametrize("name", ["dpmpp-3m", "unipc-3", "sa-ode", "lms"])
def test_the_declared_order_stays_on_fine_grids(name, monkeypatch):
    reach = REACH if name == "lms" else None
    monkeypatch.setitem(CASES, name, replace(CASES[name], solver=replace(CASES[name].solver, reach=reach)))
    check_order(name, "vp-linear" if name != "sa-ode" else "edm")


def test_published_forms_have_every_order_that_they_are_asked_for():
    long = even(1.2)
    for solver in (
        DPMMultistep(3, "x0", "k-diffusion", 1.0),
        DPMMultistep(3, "x0", "diffusers"),
        DPMMultistep(3, lower_order_final=True),
        DPMMultistep(3, euler_at_final=True),
        DPMMultistep(3, "eps"),
        DPMMultistep(2),
        DEIS(4),
        LMS(4, denoise=False),
        UniPC(3, lower_order_final=True),
        UniPC(3, disable_corrector=(0,)),
        UniPC(3, prediction="eps"),
        UniPC(2, "vary"),
        LMS(),
        SASolver(3, 4, lower_order_final="comfyui"),
        SASolver(3, 4, simple_order_2=True),
        SASolver(3, 4, pece=True),
        SASolver(2, 2),
    ):
        unlimited = solver if isinstance(solver, DEIS) else replace(solver, reach=math.inf)
        assert rows(solver, long) == rows(unlimited, long), solver
        assert "reach" not in repr(solver)
    assert repr(DPMMultistep(3, reach=2.0)).endswith("reach=2.0)")
    for make in (DPMMultistep, UniPC, SASolver, LMS):
        for wrong in (0.0, -1.0):
            with pytest.raises(ValueError, match=f"{make.__name__}: reach = .* must be positive"):
                make(reach=wrong)


def worst(solver, n, schedule=EDM):
    """The largest relative error of a standard deviation between 0.03 and 3 on the default grid."""
    model = score_model(gaussian(0.0, 1.0))
    grid = fitting(model, schedule, solver, None, n)
    stds = np.geomspace(0.03, 3.0, 13)
    plan = make_plan(solver, schedule, grid(schedule))
    return float(np.abs(gaussian_moments(plan, 0.0, stds)[1] / stds - 1.0).max())


@pytest.mark.thirds
@pytest.mark.parametrize("schedule", [fs.EDM(), fs.VP(), fs.Flow()], ids=lambda s: type(s).__name__)
def test_no_higher_order_is_worse_than_second_on_gaussians(schedule):
    second = {
        "x0": DPMpp2M(),
        "pc": UniPC(2),
        "eps": DPMMultistep(2, "eps", "paper"),
        "sde": DPMMultistep(2, "x0", "paper", 1.0),
    }
    higher = {
        "x0": (DPMMultistep(3), DPMMultistep(4)),
        "pc": (UniPC(3), SASolver(tau=0.0), SASolver(4, 4, 0.0)),
        "eps": (DPMMultistep(3, "eps"), DEIS(), named("lms")),
        "sde": (DPMMultistep(3, eta=1.0), SASolver()),
    }
    for kind, solvers in higher.items():
        most = 1.3 if kind == "sde" else 1.1  # SA-Solver corrects, and 2M SDE does not
        for n in (4, 6, 10, 16, 24):
            least = worst(second[kind], n, schedule)
            for solver in solvers:
                assert worst(solver, n, schedule) <= most * least + 0.01, (solver, n)
    assert worst(DPMMultistep(3, reach=math.inf), 6, schedule) > 1.5 * worst(DPMMultistep(3), 6, schedule)


MIXTURE = GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2]).double(),
    torch.tensor([[1.0, 0.0, 0.5], [-1.0, 0.3, 0.0], [0.0, -1.2, -1.0]]).double(),
    torch.tensor([0.1, 0.2, 0.3]).double(),
)


@pytest.mark.parametrize("schedule", [fs.EDM(), fs.Flow()], ids=lambda s: type(s).__name__)
def test_no_higher_order_is_far_from_second_on_a_mixture(schedule):
    """Root mean square error of samples against those of the same ids after 60 steps of DPM-Solver-3."""
    model, ids = score_model(MIXTURE), range(256)

    def draw(solver, steps):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of too few evaluations
            settings = {"schedule": schedule, "solver": solver, "steps": steps, "batch": len(ids)}
            return fs.Sampler(model, **settings, dtype=torch.float64).run(ids)

    exact = draw(DPMSolver(3), 60)
    for n in (5, 10):
        least = float((draw("dpmpp-2m", n) - exact).square().mean().sqrt())
        for solver in ("dpmpp-3m", UniPC(3), SASolver(tau=0.0), "dpm-3m", "deis", "lms", "ipndm"):
            found = float((draw(solver, n) - exact).square().mean().sqrt())
            assert found <= 1.25 * least, (solver, n, found, least)


def said(**settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fs.Sampler(settings.pop("model", score_model(gaussian(0.5, 0.3))), batch=2, **settings)
    return [str(w.message) for w in caught]


def test_too_few_evaluations_are_said_once_with_the_useful_number():
    for name, few in (("ddpm", 5), ("em", 6), ("ddim", 6), ("heun", 4), ("pndm", 4), ("dpmpp-sde", 5)):
        (warning,) = said(solver=name, steps=few, schedule=EDM)
        enough = int(warning.split("begins at ")[1].split(" ")[0])
        steps = int(warning.split(f"{enough} (")[1].split(" ")[0])
        assert steps > few
        assert "below it take dpmpp-2m" in warning
        assert not said(solver=name, steps=steps, schedule=EDM), name
        assert useful(named(name), EDM, grid_of, (0.3, 0.3)) == (enough, steps)
    for name in ("dpmpp-2m", "dpmpp-3m", "unipc", "dpm-3m", "deis", "gradient-estimation", "dpm-2m"):
        for n in (5, 6, 8, 10):
            assert not said(solver=name, steps=n, schedule=EDM), (name, n)
    for n in (2, 3):  # where nothing is of use, nothing is better
        assert not said(solver="ddim", steps=n, schedule=EDM)
    assert not said(solver="ddpm", steps=5, start="data")
    assert len(said(solver="ddpm", grid=fs.uniform(5, clean=True), schedule=fs.VP())) == 1


def grid_of(solver, steps):
    return fitting(score_model(gaussian(0.5, 0.3)), EDM, solver, None, steps)


def two_steps(solver, steps):
    """However many are asked for."""
    return Times((80.0, 1.0, 0.0))


def test_the_useful_number_is_where_a_fifth_of_the_spread_is_lost():
    def loss(steps):
        plan = make_plan(named("ddpm"), EDM, grid_of(named("ddpm"), steps)(EDM))
        return plan.nfe, float(np.abs(gaussian_moments(plan, 0.0, (0.3, 1.0))[1] / (0.3, 1.0) - 1.0).max())

    nfe, steps = useful(named("ddpm"), EDM, grid_of)
    assert loss(steps)[0] == nfe
    assert loss(steps)[1] <= USEFUL < loss(steps - 1)[1]
    assert useful(named("ddpm"), EDM, two_steps) is None
